"""Does one kind of models differ from the rest, with family or task held fixed, and what explains differences?"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt
import pandas as pd

from cnnfilterdb import stats
from cnnfilterdb.analysis.options import GroupOptions
from cnnfilterdb.core.errors import SelectionError
from cnnfilterdb.plots import null_distributions
from cnnfilterdb.study import drawing
from cnnfilterdb.study.document import Picture, Rows
from cnnfilterdb.study.sample import Contrast, Sample, read_sample

if TYPE_CHECKING:
    from cnnfilterdb.questions.conclusions import Conclusions

__all__ = [
    "ALIKE",
    "DIFFERS",
    "OPEN",
    "TRAINED",
    "VARIANTS",
    "Answered",
    "Factors",
    "contrast_row",
    "domains_table",
    "explained",
    "main_question",
    "purity_table",
    "sensitivity",
]

#: The models that are compared: a domain is known, and the weights do not look untrained.
TRAINED = "domain IS NOT NULL AND untrained IS NOT TRUE"

#: Layers that count as degenerated, of 3x3 kernels; see :func:`cnnfilterdb.stats.degenerated`.
DEGENERATED = (
    f"variance_entropy >= randomness_threshold - {stats.MARGIN} "
    f"OR (variance_entropy < {stats.LOW_ENTROPY} AND sparsity >= {stats.HIGH_SPARSITY})"
)

#: What the models show about a difference.
DIFFERS = "differs"
ALIKE = "no difference of note"
OPEN = "cannot be decided"

#: Units that each side needs for a test of its own within a family or task.
_LEAST = 2


@dataclass(frozen=True, slots=True)
class Answered:
    """The main question with everything that was compared.

    Attributes:
        all: Medical against the rest.
        within_family: The same with family held fixed; None if no family has both.
        within_task: The same with task held fixed.
        single: Every model as a unit of its own, which counts the models of one origin as independent.
        families: Within each family that has both.
        tasks: Within each task.
        adjusted: p-values of ``families`` and ``tasks``, adjusted for their number (Holm), by what was compared.
        yardstick: Mean shift between families beyond chance; None with fewer than two families of three units.
    """

    all: Contrast
    within_family: Contrast | None
    within_task: Contrast | None
    single: Contrast
    families: list[Contrast]
    tasks: list[Contrast]
    adjusted: dict[str, float]
    yardstick: float | None

    def verdict(self, one: Contrast) -> str:
        """What a contrast shows.

        It differs if the shift is significant; a p-value of one of many families or tasks is adjusted for their number.
        There is no difference of note if, in addition, the interval of the difference ends below the yardstick.
        """
        if self.adjusted.get(one.what, one.p) <= 0.05:
            return DIFFERS
        if one.too_few or one.high is None or self.yardstick is None or one.high >= self.yardstick:
            return OPEN
        return ALIKE

    def rows(self) -> Iterator[Contrast]:
        """All contrasts, the main ones first."""
        yield self.all
        yield from (one for one in (self.within_family, self.within_task) if one is not None)
        yield from self.families
        yield from self.tasks
        yield self.single

    def null_picture(self) -> Picture:
        """The null distributions of the main tests."""
        rows = [one for one in (self.all, self.within_family, self.within_task) if one is not None]
        figure = null_distributions(
            [one.what for one in rows],
            [one.shift for one in rows],
            [one.null for one in rows],
            [one.p for one in rows],
            [f"{one.units} · {one.others}" for one in rows],
            heading="medical · other",
        )
        return Picture(
            "null", figure, "Shifts of medical models from others by chance, and the observed ones.",
            "Grey: how often each shift occurs when the labels of whole units are exchanged, darker its largest 5 %. "
            "Line: the observed shift, coloured where p is at most 0.05. With the family or task held fixed, labels "
            "are exchanged within it only, so that what families differ by remains in the shifts by chance.",
        )  # fmt: skip

    def table(self) -> Rows:
        """All contrasts as rows."""
        rows = [[*contrast_row(one), self.adjusted.get(one.what), self.verdict(one)] for one in self.rows()]
        columns = [*CONTRAST_COLUMNS, "p, adjusted", "These models show"]
        return Rows("Medical units against others. Shifts and their intervals are in nats.", columns, rows)


CONTRAST_COLUMNS = ("Compared", "Medical", "Other", "Shift", "By chance", "95 % of chance", "From", "To", "p")


def contrast_row(one: Contrast) -> list[str | float | int | None]:
    """The cells of :data:`CONTRAST_COLUMNS`."""
    return [one.what, one.units, one.others, one.shift, one.chance, one.chance_high, one.low, one.high, one.p]


def main_question(models: Sample, permutations: int) -> tuple[Sample, Answered]:
    """Compare medical models with the rest.

    Args:
        models: One unit per model.
        permutations: Of each test.

    Returns:
        The units by origin, and the answers.

    Raises:
        SelectionError: No medical model, or no other.
    """
    units = models.by_origin("medical", "family")
    by_task = models.by_origin("medical", "task")
    everything = units.contrast("all models", permutations=permutations)

    def held(sample: Sample, column: str) -> Contrast | None:
        codes = sample.codes(column)
        both = set(codes[sample.medical == 1]) & set(codes[sample.medical == 0])
        name = f"all models, {column} held fixed"
        return sample.contrast(name, within=column, permutations=permutations) if both else None

    def each(sample: Sample, column: str) -> list[Contrast]:
        found = []
        for value in sorted(set(sample.facts[column].dropna())):
            part = sample.where(sample.facts[column] == value)
            if np.bincount(part.medical, minlength=2).min() >= _LEAST:
                found.append(part.contrast(f"{column} {value}", permutations=permutations))
        return found

    families, tasks = each(units, "family"), each(by_task, "task")
    adjusted = {
        one.what: float(p)
        for group in (families, tasks)
        for one, p in zip(group, stats.adjusted_holm(np.array([one.p for one in group])), strict=True)
    }
    return units, Answered(
        everything,
        held(units, "family"),
        held(by_task, "task"),
        models.contrast("all models, each model by itself", permutations=permutations),
        families,
        tasks,
        adjusted,
        _yardstick(units, permutations),
    )


def _yardstick(units: Sample, permutations: int) -> float | None:
    """Mean shift between families of at least three units, beyond chance."""
    families = units.facts["family"].value_counts()
    kept = units.where(units.facts["family"].isin(families.index[families >= 3]).to_numpy())
    if kept.facts["family"].nunique() < 2:
        return None
    found = stats.overall_test(
        kept.counts, kept.codes("family"), kept.weights, kept.low, kept.high, permutations=min(permutations, 199)
    )
    return max(found.shift - found.null_mean, 0.0) or None


@dataclass(frozen=True, slots=True)
class Factors:
    """What explains the differences between units.

    Attributes:
        names: Factors.
        levels: Number of values of each.
        alone: Share, share beyond chance, and p of each factor alone.
        last: The same of each factor after all others; None where nothing is left to test against.
        alone_interval: 95 % interval of each share beyond chance, of each factor alone.
        last_interval: The same of each factor after all others.
        units: Number of units.
    """

    names: list[str]
    levels: list[int]
    alone: list[tuple[float, float, float]]
    last: list[tuple[float, float, float] | None]
    alone_interval: list[tuple[float, float]]
    last_interval: list[tuple[float, float]]
    units: int

    @property
    def alone_adjusted(self) -> dict[str, float]:
        """P of each factor alone, adjusted for the number of factors (Holm)."""
        return _adjusted(self.names, self.alone)

    @property
    def last_adjusted(self) -> dict[str, float]:
        """P of each factor after all others, likewise; without those where nothing is left to test against."""
        return _adjusted(self.names, self.last)

    def table(self) -> Rows:
        """One row per factor."""
        rows = [
            [
                name, levels, *alone[:2], *ends, alone[2], self.alone_adjusted[name], *(last or (None, None, None)),
                self.last_adjusted.get(name),
            ]
            for name, levels, alone, ends, last in zip(
                self.names, self.levels, self.alone, self.alone_interval, self.last, strict=True
            )
        ]  # fmt: skip
        return Rows(
            f"Share of the differences between {self.units} units that each factor explains (PERMANOVA). From and To "
            "are the 95 % interval of the share beyond chance (jackknife over units).",
            (
                "Factor",
                "Levels",
                "Share alone",
                "Beyond chance",
                "From",
                "To",
                "p",
                "p, adjusted",
                "After others: share",
                "Beyond chance, after others",
                "p, after others",
                "p, after others, adjusted",
            ),
            rows,
        )

    def picture(self) -> Picture:
        """Bars of the factors alone."""
        notes = [str(level) for level in self.levels]
        figure = drawing.factor_bars(self.names, [one[0] for one in self.alone], [one[1] for one in self.alone], notes)
        return Picture(
            "explained", figure, f"Shares that {', '.join(self.names)} explain.",
            "Share of the differences between models that each factor explains by itself. Any factor of many levels "
            "explains much by chance; the dark part is what remains without that (omega squared).",
        )  # fmt: skip


def _adjusted(names: Sequence[str], terms: Sequence[tuple[float, float, float] | None]) -> dict[str, float]:
    tested = {name: term[2] for name, term in zip(names, terms, strict=True) if term is not None}
    return dict(zip(tested, stats.adjusted_holm(np.array(list(tested.values()))).tolist(), strict=True))


def explained(units: Sample, names: Sequence[str], permutations: int) -> Factors | None:
    """What factors explain, alone and after all others; None where there are too few units or one level only."""
    kept = units.where(units.facts[list(names)].notna().all(axis=1).to_numpy())
    codes = {name: kept.codes(name) for name in names} if len(kept) >= 3 else {}
    varied = [name for name, levels in codes.items() if 1 < len(set(levels.tolist())) < len(kept)]
    if not varied:
        return None
    shifts = kept.shifts()
    alone = [stats.partition(shifts, [codes[name]], permutations=permutations)[0] for name in varied]
    marginal = (
        stats.partition(shifts, [codes[name] for name in varied], marginal=True, permutations=permutations)[:-2]
        if len(varied) > 1
        else []
    )

    def numbers(term: stats.ExplainedTerm) -> tuple[float, float, float]:
        return term.r2, term.omega2 or 0.0, 1.0 if term.p is None else term.p

    last = [numbers(term) if term.df and term.f else None for term in marginal] or [None] * len(varied)
    levels = [len(set(codes[name].tolist())) for name in varied]
    return Factors(
        varied,
        levels,
        [numbers(term) for term in alone],
        last,
        [_jackknife(shifts, [codes[name]])[0] for name in varied],
        _jackknife(shifts, [codes[name] for name in varied]),
        len(kept),
    )


def _jackknife(shifts: npt.NDArray[np.float64], factors: Sequence[npt.NDArray[np.int64]]) -> list[tuple[float, float]]:
    """95 % intervals of the shares beyond chance of some factors, each after the others, by leaving out each unit once.

    Source: Tukey, *Bias and confidence in not-quite large samples*, 1958. A share is from 0 to 1.
    """
    count = len(shifts)

    def shares(kept: npt.NDArray[np.int64]) -> list[float]:
        terms = stats.partition(
            shifts[np.ix_(kept, kept)], [codes[kept] for codes in factors], marginal=len(factors) > 1, permutations=1
        )
        return [term.omega2 or 0.0 for term in terms[:-2]]

    if count < 4:
        return [(0.0, 1.0)] * len(factors)
    whole = np.array(shares(np.arange(count)))
    without = np.array([shares(np.delete(np.arange(count), place)) for place in range(count)])
    reach = 1.96 * np.sqrt((count - 1) * without.var(axis=0))
    ends = np.clip([whole - reach, whole + reach], 0, 1)
    return [(float(low), float(high)) for low, high in ends.T]


def purity_table(units: Sample, permutations: int) -> tuple[Rows, stats.Purity] | None:
    """How often the nearest models of a medical model are medical; None with too few models."""
    shifts = units.shifts()
    origins, families = units.codes("origin"), units.codes("family")
    rows, first = [], None
    for neighbours in (1, 3, 5):
        for what, apart, strata in (
            ("models of other origins", origins, None),
            ("models of other families", families, None),
            ("models of other origins; labels exchanged within families", origins, families),
        ):
            try:
                found = stats.neighbour_purity(
                    shifts, units.medical, neighbours=neighbours, of=1, apart=apart, strata=strata,
                    permutations=permutations,
                )  # fmt: skip
            except SelectionError:
                continue  # too few models for so many neighbours
            first = first or found
            rows.append([what, neighbours, found.models, found.share, found.null_mean, found.null_high, found.p])
    if first is None:
        return None
    columns = ("Among", "Nearest", "Medical units", "Share medical", "By chance", "95 % of chance", "p")
    return Rows("How many of the units nearest to a medical unit are medical.", columns, rows), first


def domains_table(units: Sample, permutations: int) -> Rows | None:
    """Every domain of at least three units against all others: is medical special among domains?"""
    sizes = units.facts["domain"].value_counts()
    found = []
    for domain in sorted(sizes.index[sizes >= 3]):
        side = (units.facts["domain"] == domain).to_numpy(np.int64)
        if side.min() == 0:
            found.append(units.contrast(str(domain), side, permutations=permutations))
    if not found:
        return None
    adjusted = stats.adjusted_holm(np.array([one.p for one in found]))
    rows = [[*contrast_row(one), float(p)] for one, p in zip(found, adjusted, strict=True)]
    columns = ("Domain", "Units", "Other", *CONTRAST_COLUMNS[3:], "p, adjusted")
    return Rows("Each domain of at least three units against all others.", columns, rows)


#: How the main answer may depend on decisions of the analysis: what changes, the options of the groups that it changes,
#: and the metric.
VARIANTS: tuple[tuple[str, GroupOptions, str], ...] = (
    ("recipe of the medical paper (range -3 to 3, even weights)", {"recipe": "medneurips2022"}, "kl"),
    ("Jensen-Shannon divergence", {}, "jensen_shannon"),
    ("Wasserstein distance", {}, "wasserstein"),
    ("all layers of a model with the same weight", {"balance": "layers"}, "kl"),
    ("every filter with the same weight, as in the papers", {"balance": "filters"}, "kl"),
    ("with transposed and dead layers", {"all_layers": True}, "kl"),
    ("without degenerated layers", {"where": f"{TRAINED} AND NOT coalesce({DEGENERATED}, false)"}, "kl"),
    ("with models that look untrained", {"where": "domain IS NOT NULL"}, "kl"),
    ("first third of the depth, where it is known", {"where": f"{TRAINED} AND conv_depth_norm <= 1/3"}, "kl"),
    ("middle third", {"where": f"{TRAINED} AND conv_depth_norm > 1/3 AND conv_depth_norm <= 2/3"}, "kl"),
    ("last third", {"where": f"{TRAINED} AND conv_depth_norm > 2/3"}, "kl"),
    ("large models only (10,000 filters and more)", {"min_filters": 10_000}, "kl"),
    ("5x5 kernels", {"kernel": "5x5"}, "kl"),
    ("7x7 kernels", {"kernel": "7x7"}, "kl"),
)


def sensitivity(
    db: Conclusions,
    medical: Callable[[pd.DataFrame], pd.Series[bool]],
    first: Answered,
    permutations: int,
    progress: Callable[[], None],
    bases: Mapping[str, stats.Basis],
) -> Rows:
    """The main answer under other decisions.

    Args:
        db: The database.
        medical: Which models are medical.
        first: The main answers, for comparison.
        permutations: Of each test.
        progress: Called before each variant.
        bases: Further bases by name; each needs a scan of all filters.
    """
    rows: list[list[str | float | int | None]] = []

    def add(what: str, whole: Contrast, held: Contrast | None) -> None:
        rows.append([*contrast_row(replace(whole, what=what)), held.p if held else None])

    add("as above", first.all, first.within_family)
    variants = [*VARIANTS, *((f"basis {name}", GroupOptions(basis=basis), "kl") for name, basis in bases.items())]
    for what, changed, metric in variants:
        progress()
        options: GroupOptions = {"balance": "models", "where": TRAINED, **changed}
        try:
            units = read_sample(db, medical, **options).by_origin("medical", "family")
            whole = units.contrast(what, metric=metric, permutations=permutations)
        except SelectionError:
            rows.append([what, None, None, None, None, None, None, None, None, None])
            continue
        held = units.contrast(what, within="family", metric=metric, permutations=permutations)
        add(what, whole, held)
    return Rows(
        "Medical against other models under other decisions. Shifts of different measures, recipes and kernel sizes "
        "cannot be compared with each other; their p-values can.",
        (*CONTRAST_COLUMNS, "p, family fixed"),
        rows,
    )
