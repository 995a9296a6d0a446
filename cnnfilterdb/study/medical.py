"""Does medical imaging learn different filters? The study that answers it with the models of a database."""

from __future__ import annotations

from importlib.metadata import version
from pathlib import PurePath
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from cnnfilterdb import stats
from cnnfilterdb.core.errors import SelectionError
from cnnfilterdb.core.reports import Progress, counted
from cnnfilterdb.study import drawing
from cnnfilterdb.study.document import Block, Claim, Picture, Rows, Section, Study, number, p_value, probability
from cnnfilterdb.study.outliers import FEW_OUTLIERS, Outliers, find_outliers, properties
from cnnfilterdb.study.paper import paper_section
from cnnfilterdb.study.question import (
    ALIKE,
    DIFFERS,
    OPEN,
    TRAINED,
    VARIANTS,
    Answered,
    Factors,
    domains_table,
    explained,
    main_question,
    purity_table,
    sensitivity,
)
from cnnfilterdb.study.sample import Contrast, Sample, read_sample

if TYPE_CHECKING:
    from cnnfilterdb.questions.conclusions import Conclusions

__all__ = ["medical_study"]

_TITLE = "Does medical imaging learn different filters?"


def is_medical(models: pd.DataFrame) -> pd.Series[bool]:
    """Which rows of the models table are of medical images: the name of the domain begins with ``medical``."""
    found: pd.Series[bool] = models["domain"].fillna("").str.startswith("medical")
    return found


def medical_study(
    db: Conclusions, *, permutations: int = 999, scan: bool = True, progress: Progress | None = None
) -> Study:
    """Compare the medical models of a database with its other models, and with the paper of 2022.

    Args:
        db: The database.
        permutations: Of each test.
        scan: Also try bases that need a scan of all filters.
        progress: Called with the current step, the amount done and the total.

    Raises:
        SelectionError: There is no medical model with 3x3 kernels, or no other.
    """
    done = 0

    steps = 4 + len(VARIANTS) + 3 * scan

    def step() -> None:
        nonlocal done
        if progress:
            progress("study", done, steps)
        done += 1

    step()
    models = read_sample(db, is_medical, where=TRAINED, balance="models")
    sides = np.bincount(models.medical, minlength=2)
    if sides.min() == 0:
        kind = "medical model" if sides[1] == 0 else "model of another domain"
        raise SelectionError(
            f"{db.location}: no {kind} with 3x3 kernels; ingest one, or annotate the domain of a model"
        )
    units, answered = main_question(models, permutations)
    step()
    factors = explained(units, ["medical", "family", "task"], permutations)
    by_domain = explained(units, ["domain", "family", "task"], permutations)
    with_dataset = explained(units, ["training_dataset", "domain", "family", "task"], permutations)
    step()
    purity = purity_table(units, permutations)
    outliers = find_outliers(models, properties(db, TRAINED), permutations)
    bases = _bases(db) if scan else {}
    variants = sensitivity(db, is_medical, answered, permutations, step, bases)
    step()
    papers = read_sample(db, is_medical, where=TRAINED, balance="models", recipe="medneurips2022")
    pooled = read_sample(db, is_medical, where=TRAINED, balance="filters")
    paper, here = paper_section(db, papers, pooled, answered, outliers, permutations)
    claims = _claims(answered, by_domain or factors, factors, purity, outliers, variants)
    sections = [
        _compared(models, units),
        Section(
            "rest",
            "Medical against the rest",
            [_READING, answered.table(), answered.null_picture(), *_map(units, outliers)],
        ),
        _explained_section(factors, by_domain, with_dataset, units, permutations),
        Section("neighbours", "Do medical models resemble one another?", _neighbours(units, purity, permutations)),
        _outliers_section(outliers),
        Section("decisions", "Does the answer depend on decisions of the analysis?", [_DECISIONS, variants]),
        paper,
        _method(),
        _models(models),
    ]
    if progress:
        progress("study", steps, steps)
    return Study(
        title=_TITLE,
        answer=_answer(answered, factors, outliers),
        claims=claims,
        opening=[_overview(answered)],
        sections=sections,
        tiles={
            "medical models": int(sides[1]),
            "other models": int(sides[0]),
            "independent medical units": int(units.medical.sum()),
            "other units": int(len(units) - units.medical.sum()),
            "3x3 filters": int(models.facts["filters"].sum()),
            "models of the paper": len(here.found),
        },
        made={
            "Database": PurePath(db.location).name,
            "Basis": str(db.groups("model_id", where=TRAINED).basis_id),
            "Recipe": "cvpr2022, models of one origin together, each origin with the same weight",
            "Tests": f"{permutations} permutations each, seed 0",
            "Versions": ", ".join(f"{name} {version(name)}" for name in ("cnnfilterdb", "duckdb", "numpy")),
        },
    )


def _bases(db: Conclusions) -> dict[str, stats.Basis]:
    """Bases other than the stored one."""
    found = {}
    for name, where, variant in (
        ("fitted on medical models only", f"{TRAINED} AND domain LIKE 'medical%'", "all"),
        ("fitted on the other models only", f"{TRAINED} AND domain NOT LIKE 'medical%'", "all"),
        ("fitted without sparse filters", TRAINED, "nonsparse"),
    ):
        try:
            found[name] = db.basis(where=where, variant=variant)
        except SelectionError:
            continue  # for example, too few filters
    return found


_READING = (
    "Each row compares two sets of units by the shift of their pooled distributions. A shift is never negative, and "
    "large between small sets, so the column By chance shows its mean over random exchanges of the labels of whole "
    "units, and the next one its 95th percentile. From and To are the 95 % interval of the shift between the "
    "populations; with the family or task held fixed, of the shift that remains among families or tasks with both, if "
    "they were as frequent among the other units as among the medical ones. With the task held fixed, the models of "
    "one origin count once for each of their tasks. A row of one family or task is judged by the p-value "
    "adjusted for their number. The last row counts every model as independent, which models of one origin are not: it "
    "shows how much that matters."
)
_DECISIONS = (
    "The same question asked with another recipe, measure, weighting, basis, kernel size or selection. Rows without "
    "numbers cannot be asked of these models."
)


def _interval(one: Contrast) -> str:
    return "" if one.high is None else f"{number(one.low)} to {number(one.high)} nats"


def _effect(one: Contrast) -> str:
    return f"shift {number(one.shift)} nats, by chance {number(one.chance)}"


def _test(one: Contrast) -> str:
    return f"Permutation test, {one.units} medical against {counted(one.others, 'other unit')}."


def _answer(answered: Answered, factors: Factors | None, outliers: Outliers | None) -> list[str]:
    """The answer in a few sentences, from the verdicts."""
    whole, held = answered.all, answered.within_family
    overall, fixed = answered.verdict(whole), OPEN if held is None else answered.verdict(held)
    if overall == DIFFERS and fixed == DIFFERS:
        first = "Yes: in this database, medical models have other filters than the rest, also within the same family."
    elif overall == DIFFERS:
        first = (
            "Medical models as a whole have other filters than the rest, but that is not shown with the family of "
            "architectures held fixed."
        )
    elif overall == ALIKE and fixed == DIFFERS:
        first = "Medical models differ from others of the same family, but not as a whole."
    elif overall == ALIKE:
        first = "No: no difference of note was found between the filters of medical models and those of other models."
    else:
        first = "The models of this database cannot decide whether medical imaging learns different filters."
    numbers = (
        f"{counted(whole.units, 'independent medical unit')} (the models of one package or repository and family "
        f"count "
        f"as one) differ from {whole.others:,} others by {number(whole.shift)} nats; random sets of these sizes "
        f"differ "
        f"by {number(whole.chance)} on average, and by less than {number(whole.chance_high)} in 95 of 100 cases "
        f"({probability(whole.p)})"
    )
    if held is not None:
        numbers += f". With the family held fixed, {probability(held.p)}"
    if answered.yardstick is not None:
        numbers += f". For comparison: two families differ by {number(answered.yardstick)} nats beyond chance"
    texts = [f"{first} {numbers}."]
    second = []
    if factors is not None:
        shares = {
            name: f"{_FACTORS.get(name, name)} {100 * alone[0]:.0f} % ({probability(factors.alone_adjusted[name])})"
            for name, alone in zip(factors.names, factors.alone, strict=True)
        }
        second.append(f"Of the differences between models, each by itself explains: {', '.join(shares.values())}.")
        last = dict(zip(factors.names, factors.last, strict=True)).get("medical")
        if last is not None:
            second.append(
                f"After family and task, medical or not explains {100 * last[0]:.1f} % "
                f"({probability(factors.last_adjusted['medical'])})."
            )
        if len(factors.names) > 1:
            second.append("These p-values are adjusted for the number of factors (Holm).")
    single = answered.single
    if single.p <= 0.05 < whole.p:
        second.append(
            f"Counted model by model the difference looks significant ({probability(single.p)}), because many models "
            "are siblings from one origin, which are not independent."
        )
    if outliers is not None:
        found, reasons = len(outliers.found), outliers.explained
        second.append(
            f"{found} of {int(outliers.frame['medical'].sum())} medical models "
            f"{'is an outlier' if found == 1 else 'are outliers'}."
        )
        if found:
            second.append(
                f"{_have(reasons, found)} an unusual property, such as the size of the network or the sparsity of its "
                f"kernels; so have {100 * outliers.usual_share():.0f} % of the models that are no outliers."
            )
    return [*texts, *([" ".join(second)] if second else [])]


def _have(some: int, of: int) -> str:
    """The beginning of a sentence on some of a number of things.

    >>> _have(0, 1), _have(1, 1), _have(2, 3)
    ('It does not have', 'It has', '2 of them have')
    """
    if of == 1:
        return "It has" if some else "It does not have"
    return f"{some} of them {'has' if some == 1 else 'have'}"


_FACTORS = {"medical": "medical or not", "training_dataset": "training data set"}


def _percent(low: float, high: float) -> str:
    return f"{100 * low:.0f} to {100 * high:.0f} %"


def _wilson(share: float, count: int) -> tuple[float, float]:
    """95 % interval of a share of independent cases (Wilson, *Probable inference*, 1927)."""
    square = 1.96**2 / count
    middle, reach = share + square / 2, np.sqrt(square * (share * (1 - share) + square / 4))
    return float((middle - reach) / (1 + square)), float((middle + reach) / (1 + square))


def _claims(
    answered: Answered,
    factors: Factors | None,
    sides: Factors | None,
    purity: tuple[Rows, stats.Purity] | None,
    outliers: Outliers | None,
    variants: Rows,
) -> list[Claim]:
    """The conclusions of the first page."""

    def claim(text: str, one: Contrast | None) -> Claim:
        if one is None:
            return Claim(text, OPEN, "No stratum has both medical and other models.")
        p = answered.adjusted.get(one.what, one.p)
        test = _test(one) + (" p adjusted for the number of families (Holm)." if one.what in answered.adjusted else "")
        return Claim(text, answered.verdict(one), test, _effect(one), _interval(one), p)

    claims = [
        claim("Medical models against all others", answered.all),
        claim("With the family of architectures held fixed", answered.within_family),
        claim("With the task held fixed", answered.within_task),
        *(claim(f"Among models of the family {one.what.partition(' ')[2]}", one) for one in answered.families),
    ]
    if factors is not None:
        terms = dict(zip(factors.names, factors.alone, strict=True))
        effect = "; ".join(
            f"{_FACTORS.get(name, name)} {100 * term[0]:.0f} %, beyond chance {max(0, 100 * term[1]):.0f} % "
            f"({probability(factors.alone_adjusted[name])})"
            for name, term in terms.items()
        )
        beyond = "; ".join(
            f"{_FACTORS.get(name, name)} {_percent(*ends)}"
            for name, ends in zip(factors.names, factors.alone_interval, strict=True)
        )
        significant = [_FACTORS.get(name, name) for name, p in factors.alone_adjusted.items() if p <= 0.05]
        claims.append(
            Claim(
                "What explains the differences between models: domain, family or task?",
                " and ".join(significant) if significant else OPEN,
                "PERMANOVA, each factor alone; p adjusted for the number of factors (Holm).",
                effect,
                f"beyond chance: {beyond}",
            )
        )
    last = None if sides is None else dict(zip(sides.names, sides.last, strict=True)).get("medical")
    if sides is not None and last is not None:
        p_last = sides.last_adjusted["medical"]
        claims.append(
            Claim(
                "After family and task, it still matters whether a model is medical",
                "not shown" if p_last > 0.05 else "yes, little" if last[1] < 0.05 else "yes",
                "PERMANOVA, after family and task; p adjusted for the number of factors (Holm).",
                f"{100 * last[0]:.1f} % of the differences, {max(0, 100 * last[1]):.1f} % beyond chance",
                f"beyond chance: {_percent(*sides.last_interval[sides.names.index('medical')])}",
                p_last,
            )
        )
    if purity is not None:
        found = purity[1]
        claims.append(
            Claim(
                "The model nearest to a medical model is medical, more often than by chance",
                "yes" if found.p <= 0.05 else OPEN if found.models < 10 else "not shown",
                f"Permutation test, {counted(found.models, 'medical unit')}, neighbours of other origins.",
                f"{100 * found.share:.0f} %, by chance {100 * found.null_mean:.0f} %, and below "
                f"{100 * found.null_high:.0f} % in 95 of 100 cases",
                _percent(*_wilson(found.share, found.models)),
                found.p,
            )
        )
    if outliers is not None:
        found_count = len(outliers.found)
        claims.append(
            Claim(
                "Medical outliers are due to the network (size, sparsity, binary kernels, ...), not to the images",
                OPEN if found_count < FEW_OUTLIERS else f"{outliers.explained} of {found_count} have such a property",
                "Properties outside of the middle 90 % of other models.",
                f"{100 * outliers.share():.0f} % of the medical models are outliers, 5 % of the others; such a "
                f"property: {outliers.explained} of {found_count} outliers, "
                f"{100 * outliers.usual_share():.0f} % of the models that are none",
            )
        )
    asked = [row for row in variants.rows if row[8] is not None]
    agreeing = sum((row[8] <= 0.05) == (answered.all.p <= 0.05) for row in asked)
    claims.append(
        Claim(
            "The answer depends on recipe, measure, weighting, basis, kernel size, untrained or degenerate layers",
            "no" if agreeing == len(asked) else f"in {len(asked) - agreeing} of {len(asked)} variants",
            f"The first test, repeated in {len(asked)} variants.",
            f"p from {p_value(min(row[8] for row in asked))} to {p_value(max(row[8] for row in asked))}",
        )
    )
    claims.append(Claim("Pre-training on any images serves medical imaging as well", OPEN,
                        "Needs training, not weights: this study cannot answer it."))  # fmt: skip
    return claims


def _overview(answered: Answered) -> Picture:
    return Picture(
        "against_chance",
        drawing.against_chance(list(answered.rows()), answered.yardstick, "between families"),
        "Shifts of medical models from others, beside what occurs by chance.",
        "Points: shift of medical models from others; coloured where p is at most 0.05, before any adjustment. A "
        "point "
        "within its grey bar is what random labels give. Numbers of units in grey. The last row counts every model "
        "as "
        "independent.",
    )


def _compared(models: Sample, units: Sample) -> Section:
    facts = units.facts
    rows = [
        [
            family,
            int((part["medical"]).sum()),
            int((~part["medical"].astype(bool)).sum()),
            sum(len(names) for names in part["models"][part["medical"]]),
            sum(len(names) for names in part["models"][~part["medical"].astype(bool)]),
        ]
        for family, part in facts.groupby(facts["family"].fillna("unknown"))
    ]
    text = (
        "Medical are the models whose domain begins with the word medical: people and animals under X-rays, CT, MRI, "
        "ultrasound, microscopes and cameras. Compared are all models with a known domain and 3x3 kernels, but not "
        "those "
        "whose weights look untrained, and of their layers those that the papers read (neither transposed nor dead). "
        "Models of one package or repository are siblings: the same network trained several times, or trained on. "
        "They "
        "are not independent, so those of one origin and family count as one unit, with the mean of their histograms."
    )
    columns = ("Family", "Medical units", "Other units", "Medical models", "Other models")
    domains = models.facts[models.facts["medical"]].groupby("domain")
    by_domain = [[name, part["origin"].nunique(), len(part), int(part["filters"].sum())] for name, part in domains]
    return Section(
        "compared",
        "What was compared",
        [
            text,
            Rows("Units and models by family.", columns, rows),
            Rows("Medical models by domain.", ("Domain", "Origins", "Models", "3x3 filters"), by_domain),
        ],
    )


def _map(units: Sample, outliers: Outliers | None) -> list[Block]:
    if len(units) < 3:
        return []
    found = stats.embedding(units.shifts(), 2)
    far = set() if outliers is None else set(outliers.found.index)
    names = [
        str(models[0]).partition("/")[2] if medical and far & set(models) else ""
        for models, medical in zip(units.facts["models"], units.facts["medical"], strict=True)
    ]
    figure = drawing.places(found.coordinates, units.medical.astype(bool), found.explained.tolist(), names)
    return [
        Picture(
            "map", figure, "Medical and other units in a plane.",
            "Classical scaling: distances in the plane approach the roots of the shifts between units. If medical "
            "models had filters of their own, the coloured points would form a group. Outliers are named "
            "where there is room.",
        )
    ]  # fmt: skip


def _explained_section(
    factors: Factors | None, by_domain: Factors | None, with_dataset: Factors | None, units: Sample, permutations: int
) -> Section:
    blocks: list[Block] = []
    if factors is None:
        blocks.append("Too few units, or one family only: cannot be decided with these models.")
    else:
        blocks += [
            "The shifts between units are divided among factors (PERMANOVA). A factor of many levels explains much "
            "by "
            "chance; beyond chance corrects for that. Alone, a factor takes credit for what it shares with others; "
            "after the others, only for what they leave.",
            (by_domain or factors).picture(),
            factors.table(),
        ]
        if by_domain is not None:
            blocks.append(by_domain.table())
        if with_dataset is not None and "training_dataset" in with_dataset.names:
            blocks.append(with_dataset.table())
            blocks.append(
                f"The data set is recorded for {with_dataset.units} of {len(units)} units only, and most data sets "
                "occur once, so that data set and domain can hardly be distinguished."
            )
        else:
            blocks.append("Data set: too few units with a recorded data set; cannot be decided with these models.")
    try:
        spread = stats.dispersion(units.shifts(), units.medical, permutations=permutations)
        blocks.append(
            f"Spread: a medical unit is {number(float(spread.means[1]))} from the centre of its side, others are "
            f"{number(float(spread.means[0]))} (roots of nats, {probability(spread.p)}). Unequal spread can look "
            "like a difference in these tests."
        )
    except SelectionError:
        blocks.append("Spread: too few units.")
    return Section("explained", "What explains the differences?", blocks)


def _neighbours(units: Sample, purity: tuple[Rows, stats.Purity] | None, permutations: int) -> list[Block]:
    blocks: list[Block] = [
        "If medical images shaped the filters, the nearest model of a medical model would often be medical, even in "
        "another family.",
        "Too few models: cannot be decided." if purity is None else purity[0],
    ]
    if (domains := domains_table(units, permutations)) is not None:
        blocks += ["Medical imaging beside other domains: how far is each from all others?", domains]
    return blocks


def _outliers_section(outliers: Outliers | None) -> Section:
    if outliers is None:
        blocks: list[Block] = ["Fewer than five models on one side: cannot be decided with these models."]
    else:
        blocks = [outliers.picture()]
        if len(outliers.found):
            blocks.append(outliers.table())
        blocks.append(outliers.correlations_table())
    return Section("outliers", "Which medical models are outliers, and why?", blocks)


def _method() -> Section:
    return Section(
        "method",
        "How to read this, and its limits",
        [
            "Each 3x3 kernel is divided by its largest absolute weight and projected on the SVD basis of the "
            "database. "
            "The coefficients of each model become one histogram of 70 bins per component, each model with the same "
            "weight. A shift is the symmetric Kullback-Leibler divergence in nats, summed over the components by "
            "their "
            "explained variance, as in CNN Filter DB (arXiv 2203.15331).",
            "Verdicts follow fixed rules. Differs: p at most 0.05, adjusted (Holm) where there is a row per family or "
            "task. No difference of note: p above 0.05, at least eight units on each side, and the interval of the "
            "difference ends below the mean difference between families. Everything else cannot be decided with these "
            "models.",
            "Intervals are of the shift between the populations that the units are samples of. They invert "
            "bootstrap tests (cnnfilterdb.stats.population_shift). From eight units on each side they cover the true "
            "shift in 92 to 99 of 100 cases, by simulation: rather too wide than too narrow. With fewer units, they "
            "are a rough guide.",
            "The models are those that can be downloaded; they are no random sample of medical imaging, and most are "
            "small. Domain, family and task are entangled: most medical models are U-Nets for segmentation. Labels "
            "are "
            "those of the catalog. Models of different origins can still share an ancestor; permuted copies of one "
            "network are not recognised.",
        ],
    )


def _models(models: Sample) -> Section:
    facts = models.facts[models.facts["medical"]]
    rows = [
        [names[0], domain, task, family, int(layers), int(filters)]
        for names, domain, task, family, layers, filters in zip(
            facts["models"], facts["domain"], facts["task"], facts["family"], facts["layers"], facts["filters"],
            strict=True,
        )
    ]  # fmt: skip
    columns = ("Model", "Domain", "Task", "Family", "3x3 layers", "3x3 filters")
    return Section("models", "The medical models", [Rows("All that were compared.", columns, rows)])
