"""The figures and statements of *Does Medical Imaging learn different Convolution Filters?*, on today's models.

The published values are in the catalog (``published.toml``). What the models of a database cannot show is said to be
missing, with the model that it needs.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import pandas as pd

from cnnfilterdb import catalog, plots, stats
from cnnfilterdb.core.errors import SelectionError
from cnnfilterdb.core.sqltext import literal
from cnnfilterdb.study.document import Block, Picture, Rows, Section, number, probability
from cnnfilterdb.study.outliers import FEW_OUTLIERS, Outliers
from cnnfilterdb.study.question import DIFFERS, OPEN, Answered
from cnnfilterdb.study.sample import Sample

if TYPE_CHECKING:
    from cnnfilterdb.questions.conclusions import Conclusions

__all__ = ["Present", "paper_section", "present", "spikes", "spikes_test"]

#: Ridges and rows of a figure.
_DRAWN = 30

#: Filters from which on the shape of a histogram is more than noise.
_ENOUGH = 5_000


@dataclass(frozen=True, slots=True)
class Present:
    """Which models of the paper a database has.

    Attributes:
        found: Key in the catalog -> key in the database.
        missing: Keys in the catalog.
    """

    found: dict[str, str]
    missing: list[str]


def present(model_ids: Sequence[str]) -> Present:
    """Look for the 16 models of the paper, by their key in the catalog or their name in the released data.

    >>> here = present(["lungmask/r231", "cvpr2022/unet_lgg_mri_segmentation_11"])
    >>> sorted(here.found), len(here.missing)
    (['custom/buda-unet', 'lungmask/r231'], 14)
    """
    by_name = {model_id.partition("/")[2]: model_id for model_id in model_ids}
    found, missing = {}, []
    for one in catalog.published()["medical"]["models"]:
        model_id = one["model_id"] if one["model_id"] in set(model_ids) else by_name.get(one["paper"])
        if model_id is None:
            missing.append(one["model_id"])
        else:
            found[one["model_id"]] = model_id
    return Present(found, missing)


def spikes(sample: Sample) -> npt.NDArray[np.float64]:
    """How spiky the distributions of each unit are, (n,): the mean over components of the sum of |second differences|.

    A smooth curve has a small sum, isolated peaks a large one; its largest value is 4. Histograms of few filters are
    spiky by chance.

    >>> facts = pd.DataFrame({"models": [["smooth"], ["spiky"]]})
    >>> two = Sample(facts, np.array([[[0.2, 0.3, 0.3, 0.2]], [[0.0, 1.0, 0.0, 0.0]]]), np.ones(1), -1, 1)
    >>> spikes(two).round(2).tolist()
    [0.4, 4.0]
    """
    shares = sample.counts / np.maximum(sample.counts.sum(axis=-1, keepdims=True), 1e-300)
    edges = np.pad(shares, ((0, 0), (0, 0), (1, 1)))
    found: npt.NDArray[np.float64] = np.abs(np.diff(edges, 2, axis=-1)).sum(axis=-1).mean(axis=-1)
    return found


def spikes_test(models: Sample, permutations: int) -> tuple[float, float, float] | None:
    """Mean spikiness of medical and of other units of at least 5,000 filters, and the p-value of the difference.

    Labels are exchanged among origins within a family. None with fewer than three units on a side.
    """
    chosen = models.where((models.facts["filters"] >= _ENOUGH).to_numpy())
    if not len(chosen):
        return None
    rows = chosen.facts[["origin", "medical", "family"]].assign(spikes=spikes(chosen))
    units = rows.groupby(["origin", "medical", "family"], dropna=False)["spikes"].mean().reset_index()
    medical = units["medical"].to_numpy(bool)
    if min(medical.sum(), (~medical).sum()) < 3:
        return None
    values, families = units["spikes"].to_numpy(), units["family"].fillna("unknown").to_numpy(str)
    observed = values[medical].mean() - values[~medical].mean()
    rng, as_large = np.random.default_rng(0), 0
    for _ in range(permutations):
        order = np.lexsort((rng.random(len(values)), families))
        labels = np.empty_like(medical)
        labels[np.argsort(families, kind="stable")] = medical[order]
        as_large += abs(values[labels].mean() - values[~labels].mean()) >= abs(observed) - 1e-12
    return float(values[medical].mean()), float(values[~medical].mean()), (as_large + 1) / (permutations + 1)


def paper_section(
    db: Conclusions, models: Sample, pooled: Sample, answered: Answered, outliers: Outliers | None, permutations: int
) -> tuple[Section, Present]:
    """The figures and statements of the paper beside what this database shows.

    Args:
        db: The database.
        models: Its models in the recipe of the paper, one unit each.
        pooled: The same in that of CNN Filter DB, each by its filters.
        answered: The main answers.
        outliers: The outliers.
        permutations: Of each test.
    """
    units = models.by_origin("medical", "family")
    here = present(db.storage.model_ids())
    blocks: list[Block] = [
        f"Of the 16 medical models of the paper, this database has {len(here.found)}. "
        + (
            "`cnnfilterdb ingest --collection medical-2022` downloads the others from their servers, and "
            "`cnnfilterdb import` "
            "reads them from the released data set; the table at the end of this part tells where they are. Where "
            "a figure "
            "needs them, it shows medical models of this database in their place."
            if here.missing
            else "Every figure below is of these models."
        )
    ]
    blocks.append(_statements(db, models, pooled, answered, outliers, here, permutations))
    blocks += _first_figure(db, units, here)
    blocks += _second_figure(db, here)
    blocks += _third_figure(db, units, here, permutations)
    if here.missing:
        blocks.append(_missing(here.missing))
    return Section("paper", "The paper of 2022, statement by statement", blocks), here


def _missing(missing: Sequence[str]) -> Rows:
    entries = {model.model_id: model for source in ("custom", "lungmask", "torchxrayvision")
               for model in catalog.models(source)}  # fmt: skip
    rows = [
        [key, entries[key].facts.domain, entries[key].facts.architecture, entries[key].origin.get("manual")
         or entries[key].origin.get("urls")]
        for key in missing
    ]  # fmt: skip
    return Rows("Models of the paper that are missing.", ("Model", "Domain", "Architecture", "Where it is"), rows)


def _statements(
    db: Conclusions, models: Sample, pooled: Sample, answered: Answered, outliers: Outliers | None, here: Present,
    permutations: int,
) -> Rows:  # fmt: skip
    domains = np.array(catalog.published()["shift"]["domain"]["matrix"])
    tasks = np.array(catalog.published()["shift"]["task"]["matrix"])
    rows: list[list[str | None]] = []
    for what, column, matrix in (("domains", "domain", domains), ("tasks", "task", tasks)):
        values = matrix[np.triu_indices(len(matrix), 1)]
        found = _pooled(pooled, column)
        rows.append(
            [
                f"On average, {what} differ little.",
                f"median shift {number(float(np.median(values)))}, mean {number(float(values.mean()))}, "
                f"{len(matrix)} {what}",
                "fewer than two" if found is None else
                f"median shift {number(found[0])}, mean {number(found[1])}, {found[2]} {what}; labels exchanged "
                f"among "
                f"origins: mean {number(found[3])}",
                OPEN if found is None else
                "no more than by chance" if found[1] <= found[4] else "more than by chance",
            ]
        )  # fmt: skip
    spiky = spikes_test(models, permutations)
    rows.append(
        [
            "Medical models have spiky distributions.", "shown, without a number",
            "too few models" if spiky is None else
            f"spikiness {number(spiky[0])}, others {number(spiky[1])}; family fixed, {probability(spiky[2])}",
            OPEN if spiky is None else DIFFERS if spiky[2] <= 0.05 else "not shown",
        ]
    )  # fmt: skip
    rows.append(
        [
            "The outliers come from the processing in some architectures.", "CompNet (binary), ResNet-50 (sparse)",
            "too few models" if outliers is None else
            f"{len(outliers.found)} of {int(outliers.frame['medical'].sum())} medical models are outliers; size, "
            f"sparsity, binary, quantised, repetitive or depthwise kernels set {outliers.explained} apart, and "
            f"{100 * outliers.usual_share():.0f} % of the models that are none",
            OPEN if outliers is None or len(outliers.found) < FEW_OUTLIERS else
            f"for {outliers.explained} of {len(outliers.found)}",
        ]
    )  # fmt: skip
    share = _largest_share(db)
    rows.append(
        [
            "CompNet weighs too much, because filters are counted.", "shown, without a number",
            "no medical model" if share is None else
            f"{share[0]} has {100 * share[1]:.0f} % of all medical filters",
            OPEN if share is None else "the same here" if share[1] > 0.25 else "not here",
        ]
    )  # fmt: skip
    for one in answered.families:
        rows.append(
            [
                f"Medical models do not differ from others of a standard architecture: {one.what.partition(' ')[2]}.",
                "U-Net 0.001 to 0.440, DenseNet-121 0.001 to 0.481, between single models",
                f"shift {number(one.shift)}, by chance {number(one.chance)}, {probability(one.p)}",
                answered.verdict(one),
            ]
        )
    if not answered.families:
        rows.append(["Medical models do not differ from others of a standard architecture.",
                     "U-Net, DenseNet-121", "no family with two origins on each side", OPEN])  # fmt: skip
    rows += [_nonsparse(db, here), _binary(db, here)]
    rows.append(
        ["Pre-training can use any diverse images.", "concluded from the above",
         "needs training, not weights", OPEN]
    )  # fmt: skip
    return Rows(
        "What the paper states, and what today's models show.",
        ("The paper states", "Published", "Here", "These models show"),
        rows,
    )


def _pooled(pooled: Sample, column: str) -> tuple[float, float, int, float, float] | None:
    """Median and mean shift between groups as the papers pool them, their number, and mean and 95 % of chance."""
    units = pooled.where(pooled.facts[column].notna().to_numpy()).by_origin(column)
    if units.facts[column].nunique() < 2:
        return None
    codes = units.codes(column)
    sums = np.zeros((codes.max() + 1, *units.counts.shape[1:]))
    np.add.at(sums, codes, units.counts)
    shifts = stats.kl_shift(sums, units.weights, units.low, units.high)[np.triu_indices(len(sums), 1)]
    chance = stats.overall_test(units.counts, codes, units.weights, units.low, units.high, permutations=99)
    return float(np.median(shifts)), float(shifts.mean()), len(sums), chance.null_mean, chance.null_high


def _largest_share(db: Conclusions) -> tuple[str, float] | None:
    sizes = db.sql(
        "SELECT model_id, sum(filters) AS filters FROM facts WHERE stored AND kernel = '3x3' AND papers_layer "
        "AND untrained IS NOT TRUE AND domain LIKE 'medical%' GROUP BY ALL ORDER BY filters DESC, model_id"
    ).df()
    if sizes.empty:
        return None
    return str(sizes["model_id"].iloc[0]), float(sizes["filters"].iloc[0] / sizes["filters"].sum())


def _nonsparse(db: Conclusions, here: Present) -> list[str | None]:
    """The share of kernels that are not sparse in one model, by the paper's own rule."""
    known = catalog.published()["medical"]["nonsparse"]
    statement = "About 1 % of the filters of ResNet-50 (512 px) are not sparse."
    published = f"{known['nonsparse']:,} of {known['filters']:,} ({100 * known['nonsparse'] / known['filters']:.2f} %)"
    if known["model_id"] not in here.found:
        return [statement, published, f"{known['model_id']} is missing", OPEN]
    rows = db.sql(
        "SELECT layer, count(*) AS filters, sparsity(w, rule := 'medneurips2022') AS sparse FROM filters_3x3 "
        f"WHERE model_id = {literal(here.found[known['model_id']])} GROUP BY layer"
    ).df()
    kept = round(float(((1 - rows["sparse"]) * rows["filters"]).sum()))
    total = int(rows["filters"].sum())
    alike = abs(kept / max(total, 1) - known["nonsparse"] / known["filters"]) < 0.002
    return [statement, published, f"{kept:,} of {total:,} ({100 * kept / max(total, 1):.2f} %)",
            "confirmed" if alike else DIFFERS]  # fmt: skip


def _binary(db: Conclusions, here: Present) -> list[str | None]:
    known = catalog.published()["medical"]["binary"]
    statement = "Filters of CompNet are nearly binary."
    if known["model_id"] not in here.found:
        return [statement, "figure 2", f"{known['model_id']} is missing", OPEN]
    share = db.quality("model_id", where=f"model_id = {literal(here.found[known['model_id']])}").iloc[0]
    found = float(share["binary_filters"] / share["filters"])
    return [statement, "figure 2", f"{100 * found:.1f} % of its kernels have weights of one magnitude",
            "confirmed" if found > 0.5 else DIFFERS]  # fmt: skip


def _first_figure(db: Conclusions, units: Sample, here: Present) -> list[Block]:
    """Distributions of the coefficients, a row per model."""
    ratio = db.basis().explained_variance_ratio
    if here.found:
        groups = db.groups("model_id", recipe="medneurips2022",
                           where=f"model_id IN ({', '.join(map(literal, here.found.values()))})")  # fmt: skip
        figure = plots.ridge(groups.counts, groups.low, groups.high, groups.labels, filters=groups.filters,
                             explained_variance_ratio=ratio)  # fmt: skip
        caption = f"The paper's figure 1, of those of its models that are here ({len(here.found)} of 16)."
    else:
        medical = units.where(units.medical == 1)
        medical = medical.where(np.arange(len(medical)) < _DRAWN)
        names = _names(medical)
        figure = plots.ridge(medical.counts, medical.low, medical.high, names,
                             filters=medical.facts["filters"].to_numpy(float),
                             explained_variance_ratio=ratio)  # fmt: skip
        caption = "In place of the paper's figure 1: medical models of this database, those of one origin together."
    caption += " Each curve is the distribution of one coefficient of the SVD basis, drawn to the same height."
    return [Picture("figure_1", figure, "Distributions of coefficients of medical models.", caption)]


def _second_figure(db: Conclusions, here: Present) -> list[Block]:
    """Kernels of almost one magnitude."""
    known = catalog.published()["medical"]["binary"]
    if known["model_id"] in here.found:
        model_id = here.found[known["model_id"]]
        layers = db.layers(where=f"model_id = {literal(model_id)} AND kernel = '3x3'")["layer"]
        layer = int(layers.iloc[min(known["layer"], len(layers) - 1)])
        caption = "The paper's figure 2: the first kernels of one layer of the sagittal CompNet."
    else:
        rows = db.sql(
            "SELECT model_id, layer, binary_filters / filters AS share FROM facts WHERE kernel = '3x3' AND stored "
            "AND papers_layer AND untrained IS NOT TRUE AND domain LIKE 'medical%' AND filters >= 25 "
            "AND binary_filters > 0 ORDER BY share DESC, filters DESC, model_id, layer LIMIT 1"
        ).df()
        if rows.empty:
            return [
                "The paper's figure 2 shows nearly binary kernels of CompNet, which is missing. No medical model "
                "of this "
                "database has a layer with kernels whose weights are of one magnitude."
            ]
        model_id, layer, share = rows.iloc[0].tolist()
        caption = (
            f"In place of the paper's figure 2: the medical layer with the largest share of kernels of one magnitude "
            f"({100 * share:.1f} %), layer {layer} of {model_id}."
        )
    try:
        weights = db.layer_weights(str(model_id), int(layer)).reshape(-1, 3, 3)[: known["kernels"]]
    except SelectionError as error:  # a database of statistics has no kernels to draw
        return [f"{caption} It cannot be drawn: {error}."]
    figure = plots.filter_grid(weights, columns=5, scale="layer", title=str(model_id), subtitle=f"layer {layer}")
    return [Picture("figure_2", figure, "Kernels of one layer.", caption)]


def _third_figure(db: Conclusions, units: Sample, here: Present, permutations: int) -> list[Block]:
    """Shifts between single models of one architecture, beside the published ones."""
    blocks: list[Block] = []
    stored = set(db.storage.model_ids())
    for key, name in (("unet", "U-Net"), ("densenet121", "DenseNet-121")):
        known = catalog.published()["medical"][key]
        labels = [here.found.get(label, label if label in stored else None) for label in known["labels"]]
        places = [place for place, label in enumerate(labels) if label is not None]
        if len(places) < 2:
            missing = [label for label, there in zip(known["labels"], labels, strict=True) if there is None]
            blocks.append(f"Figure 3, {name}: cannot be recomputed; missing are {', '.join(missing)}.")
            continue
        chosen = [str(labels[place]) for place in places]
        matrix = db.kl_shift("model_id", recipe="medneurips2022",
                             where=f"model_id IN ({', '.join(map(literal, chosen))})").loc[chosen, chosen]  # fmt: skip
        values = matrix.to_numpy()
        published = np.array(known["matrix"])[np.ix_(places, places)]
        blocks.append(
            Picture(
                f"figure_3_{key}", plots.heatmap(matrix, order=None, vmax=0.5), f"Shifts between {name} models.",
                f"The paper's figure 3, {name}, of those of its models that are here.",
            )
        )  # fmt: skip
        pairs = [[f"{chosen[i]} – {chosen[j]}", float(published[i, j]), float(values[i, j])]
                 for i in range(len(chosen)) for j in range(i + 1, len(chosen))]  # fmt: skip
        blocks.append(
            Rows(
                f"{name}: shifts as published and here. The published ones are in the basis of all 647 models of the "
                "released data, these in the basis of this database.",
                ("Pair", "Published", "Here"), pairs,
            )
        )  # fmt: skip
    unet = units.where(((units.facts["family"] == "U-Net") & (units.facts["task"] == "Segmentation")).to_numpy())
    if 3 <= len(unet) <= 2 * _DRAWN and not any(isinstance(block, Picture) for block in blocks):
        names = [f"{name} ({domain})" for name, domain in zip(_names(unet), unet.facts["domain"], strict=True)]
        matrix = pd.DataFrame(unet.shifts(), index=names, columns=names)
        tested = ""
        if 0 < unet.medical.sum() < len(unet):
            one = unet.contrast("U-Nets for segmentation", permutations=permutations)
            tested = (
                f" Their shift from the others is {number(one.shift)} nats, by chance {number(one.chance)} "
                f"({probability(one.p)})."
            )
        blocks.append(
            Picture(
                "figure_3", plots.heatmap(matrix, order="cluster", vmax=0.5), "Shifts between U-Nets of this "
                "database.",
                "In place of the paper's figure 3: all U-Nets for segmentation in this database, those of one origin "
                "and side together, in the colours of the paper (brightest from 0.5 nats). Similar ones stand side "
                f"by side; if domain mattered most, medical ones would stand together.{tested}",
            )
        )  # fmt: skip
    return blocks


def _names(sample: Sample) -> list[str]:
    """A name for each unit: its origin without the source, or its only model; numbered where several are alike."""
    names = [
        str(models[0]).partition("/")[2] if len(models) == 1 else str(origin).partition("/")[2]
        for models, origin in zip(sample.facts["models"], sample.facts["origin"], strict=True)
    ]
    seen: dict[str, int] = {}
    found: list[Any] = []
    for name in names:
        seen[name] = seen.get(name, 0) + 1
        found.append(name if seen[name] == 1 else f"{name} ({seen[name]})")
    return found
