"""Conclusions about groups of models: is a shift more than chance, and what explains the differences?

Everything starts from one histogram per model, from the index where possible, and the label of each model. Labels
belong to models: a grouping that splits the layers of one model cannot be tested this way.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any, Literal

import duckdb
import numpy as np
import numpy.typing as npt

from cnnfilterdb import stats
from cnnfilterdb.analysis.grouping import Grouping
from cnnfilterdb.analysis.groups import Groups
from cnnfilterdb.analysis.options import ComponentWeights
from cnnfilterdb.analysis.queries import condition, run
from cnnfilterdb.analysis.shifts import component_weights
from cnnfilterdb.core.errors import SelectionError
from cnnfilterdb.core.sqltext import expression, literal

if TYPE_CHECKING:
    import pandas as pd

__all__ = [
    "Labelled",
    "at_least",
    "dispersion_frame",
    "embedding_frame",
    "labelled",
    "model_shifts",
    "partition_frame",
    "purity_frame",
    "test_frame",
    "tested",
]

#: With fewer arrangements than this, p cannot reach the usual 5 %.
_FEW = 20
#: Shifts below this are those of equal models, rounded.
_ROUNDING = 1e-12
#: Level of intervals and findings unless one is given.
_LEVEL = 0.95


@dataclass(frozen=True, slots=True, eq=False)
class Labelled:
    """Models with their histograms and the labels of some expressions.

    Attributes:
        models: Histograms of the models, one group per model.
        labels: For each expression, the label of each model, in the order of ``models.labels``.
        unlabelled: Models left out because an expression is NULL for them: expression -> number of models.
    """

    models: Groups
    labels: dict[str, list[Any]]
    unlabelled: dict[str, int]

    def codes(self, expression: str) -> tuple[list[Any], npt.NDArray[np.int64]]:
        """The different labels of an expression, sorted, and the number of the label of each model."""
        names = sorted(set(self.labels[expression]), key=str)
        number = {name: i for i, name in enumerate(names)}
        return names, np.array([number[name] for name in self.labels[expression]], np.int64)

    def strata(self, within: str | None) -> npt.NDArray[np.int64] | None:
        """The number of the stratum of each model; None without strata."""
        return None if within is None else self.codes(within)[1]


def labelled(
    connection: duckdb.DuckDBPyConnection, models: Groups, expressions: Sequence[str], *, unknown: bool = False
) -> Labelled:
    """Look up the labels of models, and leave out the models without one.

    Args:
        connection: With the views of the database.
        models: Groups by ``model_id``.
        expressions: SQL expressions that have one value per model.
        unknown: Keep the models without one; their label is None.

    Raises:
        SelectionError: An expression differs between the layers of a model, or no model has a label.
    """
    if models.grouping.balance == "families":
        raise SelectionError("balance: models are compared one by one; choose filters, layers or models")
    wanted = list(dict.fromkeys(expressions))
    found = {text: _labels(connection, models.grouping, text) for text in wanted}
    unlabelled: dict[str, int] = {}
    kept = []
    for place, model_id in enumerate(models.labels):
        missing = [text for text in wanted if found[text].get(model_id) is None and not unknown]
        for text in missing[:1]:
            unlabelled[text] = unlabelled.get(text, 0) + 1
        if not missing:
            kept.append(place)
    if not kept:
        raise SelectionError(f"no selected model has a value of {' and '.join(wanted)}; fill it in with `annotate`")
    chosen = models.take(kept)
    return Labelled(chosen, {text: [found[text][m] for m in chosen.labels] for text in wanted}, unlabelled)


def _labels(connection: duckdb.DuckDBPyConnection, grouping: Grouping, text: str) -> dict[str, Any]:
    papers = "" if grouping.all_layers else "AND papers_layer"
    table = run(
        connection,
        f"SELECT model_id, {expression(text, 'by')} AS label FROM facts WHERE stored "
        f"AND kernel = {literal(grouping.kernel)} AND {condition(grouping.where)} {papers} GROUP BY ALL ORDER BY ALL",
    )
    labels: dict[str, Any] = {}
    for model_id, label in zip(table["model_id"].to_pylist(), table["label"].to_pylist(), strict=True):
        if labels.setdefault(model_id, label) != label:
            raise SelectionError(
                f"by: {text!r} has several values within {model_id}; a test needs one label per model, "
                "such as domain, because the layers of one model are not independent of each other"
            )
    return labels


def at_least(data: Labelled, by: str, models: int) -> Labelled:
    """The models whose group has at least some number of models.

    Raises:
        SelectionError: No group has.
    """
    _, codes = data.codes(by)
    kept = np.flatnonzero(np.bincount(codes)[codes] >= models).tolist()
    if not kept:
        raise SelectionError(f"no group by {by} has {models} models; the largest has {np.bincount(codes).max()}")
    labels = {text: [values[place] for place in kept] for text, values in data.labels.items()}
    return Labelled(data.models.take(kept), labels, data.unlabelled)


def tested(
    data: Labelled, by: str, within: str | None, metric: str, *, permutations: int, seed: int
) -> tuple[stats.ShiftTest, list[Any], npt.NDArray[np.int64]]:
    """The test of all pairs of groups with its null distributions, the groups, and the number of models of each.

    Raises:
        SelectionError: One group only.
    """
    names, codes = _groups(data, by)
    groups = data.models
    weights = component_weights(None, groups)
    found = stats.shift_test(
        groups.counts, codes, weights, groups.low, groups.high, metric=metric, strata=data.strata(within),
        permutations=permutations, seed=seed, keep_null=True,
    )  # fmt: skip
    return found, names, np.bincount(codes)


def _groups(data: Labelled, by: str) -> tuple[list[Any], npt.NDArray[np.int64]]:
    names, codes = data.codes(by)
    if len(names) < 2:
        raise SelectionError(f"by: {by} has one group only, {names[0]}; a test needs at least two")
    return names, codes


def test_frame(
    data: Labelled,
    by: str,
    within: str | None,
    weights: ComponentWeights,
    metric: str,
    *,
    level: float | None,
    tolerance: float | None,
    permutations: int,
    seed: int,
) -> pd.DataFrame:
    """The frame of :meth:`Reader.shift_test`."""
    import pandas as pd

    estimated = level is not None or tolerance is not None
    if estimated and within is not None:
        raise SelectionError(
            "within: with strata, a shift contains differences between the strata, which an interval would include; "
            "leave out level and tolerance, or select one stratum with where"
        )
    names, codes = _groups(data, by)
    groups = data.models
    chosen = component_weights(weights, groups)
    settings: dict[str, Any] = {
        "metric": metric, "strata": data.strata(within), "permutations": permutations, "seed": seed,
    }  # fmt: skip
    pairs = stats.shift_test(groups.counts, codes, chosen, groups.low, groups.high, **settings)
    overall = stats.overall_test(groups.counts, codes, chosen, groups.low, groups.high, **settings)
    sizes = np.bincount(codes)
    labels = pd.Series(names)
    frame = pd.DataFrame(
        {
            "group_a": labels.take(pairs.first).to_numpy(),
            "group_b": labels.take(pairs.second).to_numpy(),
            "shift": pairs.shift,
            "null_mean": pairs.null_mean,
            "null_high": pairs.null_high,
            "excess": pairs.shift - pairs.null_mean,
            "p": pairs.p,
            "p_holm": stats.adjusted_holm(pairs.p),
            "p_bh": stats.adjusted_bh(pairs.p),
            "models_a": sizes[pairs.first],
            "models_b": sizes[pairs.second],
            "arrangements": pairs.arrangements,
            "remark": [_remark(number) for number in pairs.arrangements.tolist()],
        }
    )
    attrs = how_computed(data, metric, permutations) | {"within": within, "overall": asdict(overall)}
    if estimated:
        level = _LEVEL if level is None else level
        parts = [groups.counts[codes == code] for code in range(len(names))]
        found = [
            stats.population_shift(
                parts[a], parts[b], chosen, groups.low, groups.high,
                metric=metric, level=level, tolerance=tolerance, seed=seed,
            )
            for a, b in zip(pairs.first.tolist(), pairs.second.tolist(), strict=True)
        ]  # fmt: skip
        frame = _with_estimates(frame, found, level, tolerance)
        attrs |= {"level": level, "tolerance": tolerance}
    frame.attrs |= attrs
    return frame


def _with_estimates(
    frame: pd.DataFrame, found: Sequence[stats.PopulationShift], level: float, tolerance: float | None
) -> pd.DataFrame:
    """The frame of a test with estimates of the shifts between the populations, before the numbers of models."""
    import pandas as pd

    columns: dict[str, Any] = {
        name: pd.array([getattr(one, name) for one in found], "Float64") for name in ("unbiased", "low", "high")
    }
    if tolerance is not None:
        p = np.array([one.p_equivalent for one in found], np.float64)
        columns |= {"p_equivalent": p, "p_equivalent_holm": stats.adjusted_holm(p)}
        differ, alike = frame["p_holm"] <= 1 - level, columns["p_equivalent_holm"] <= 1 - level
        columns["finding"] = np.select(
            [differ & alike, differ, alike],
            [f"differ, by less than {tolerance:g}", "differ", f"do not differ by {tolerance:g}"],
            "undecided",
        )
    place = frame.columns.tolist().index("models_a")
    for offset, (name, values) in enumerate(columns.items()):
        frame.insert(place + offset, name, values)
    single = frame[["models_a", "models_b"]].min(axis=1) < 2
    frame.loc[single, "remark"] = [
        "; ".join(filter(None, (remark, "a group of one model has no interval"))) for remark in frame["remark"][single]
    ]
    return frame


def _remark(arrangements: float) -> str:
    if arrangements < 2:
        return "cannot be tested: there is nothing to exchange"
    if arrangements < _FEW:
        return f"too few models: p cannot be below {1 / arrangements:.3f}"
    return ""


def partition_frame(
    data: Labelled,
    factors: Sequence[str],
    within: str | None,
    weights: ComponentWeights,
    metric: str,
    *,
    marginal: bool,
    permutations: int,
    seed: int,
) -> pd.DataFrame:
    """The frame of :meth:`Reader.variance_explained`."""
    import pandas as pd

    shifts = model_shifts(data, weights, metric)
    codes = [data.codes(factor)[1] for factor in factors]
    single = [factor for factor, levels in zip(factors, codes, strict=True) if levels.max() == 0]
    if single:
        raise SelectionError(f"by: {single[0]} has one value only among the selected models, so it explains nothing")
    terms = stats.partition(
        shifts, codes, marginal=marginal, strata=data.strata(within), permutations=permutations, seed=seed
    )
    frame = pd.DataFrame([asdict(term) for term in terms])
    frame.insert(0, "factor", [*factors, "residual", "total"])
    for column in ("omega2", "f", "p"):
        frame[column] = frame[column].astype("Float64")
    strata = data.strata(within)
    held = [strata is not None and stats.held_fixed(levels, strata) for levels in codes] + [False, False]
    frame["remark"] = [
        "cannot be tested: it has one value within each stratum" if constant
        else "" if term.f is None or term.f > 0 or term.p != 1
        else "determined by the other factors" if term.df == 0
        else "as many levels as models: nothing is left to test against"
        for term, constant in zip(terms, held, strict=True)
    ]  # fmt: skip
    frame.attrs |= how_computed(data, metric, permutations) | {"within": within, "marginal": marginal}
    return frame


def dispersion_frame(
    data: Labelled,
    by: str,
    weights: ComponentWeights,
    metric: str,
    *,
    centre: Literal["median", "centroid"],
    permutations: int,
    seed: int,
) -> pd.DataFrame:
    """The frame of :meth:`Reader.dispersion_test`."""
    import pandas as pd

    names, codes = data.codes(by)
    shifts = model_shifts(data, weights, metric)
    found = stats.dispersion(shifts, codes, centre=centre, permutations=permutations, seed=seed)
    frame = pd.DataFrame({"models": np.bincount(codes), "distance": found.means}, index=pd.Index(names, name=by))
    frame.attrs |= how_computed(data, metric, permutations) | {"centre": centre, "f": found.f, "p": found.p}
    return frame


def embedding_frame(data: Labelled, weights: ComponentWeights, metric: str, dimensions: int) -> pd.DataFrame:
    """The frame of :meth:`Reader.embed`."""
    import pandas as pd

    found = stats.embedding(model_shifts(data, weights, metric), dimensions)
    columns = [f"x{number}" for number in range(dimensions)]
    frame = pd.DataFrame(found.coordinates, index=pd.Index(data.models.labels, name="model_id"), columns=columns)
    for text, labels in data.labels.items():
        frame[text] = labels
    explained = {"explained": found.explained.tolist(), "negative": found.negative}
    frame.attrs |= how_computed(data, metric, None) | explained
    return frame


def purity_frame(
    data: Labelled,
    by: str,
    across: str | None,
    weights: ComponentWeights,
    metric: str,
    *,
    neighbours: int,
    permutations: int,
    seed: int,
) -> pd.DataFrame:
    """The frame of :meth:`Reader.neighbour_purity`."""
    import pandas as pd

    names, codes = data.codes(by)
    shifts = model_shifts(data, weights, metric)
    apart = None if across is None else data.codes(across)[1]
    rows = []
    for label, of in [("all", None), *((name, number) for number, name in enumerate(names))]:
        try:
            found = stats.neighbour_purity(
                shifts, codes, neighbours=neighbours, of=of, apart=apart, permutations=permutations, seed=seed
            )
        except SelectionError:
            if of is None:
                raise
            continue  # every model of this label is alone in its family
        rows.append({by: label, **asdict(found)})
    frame = pd.DataFrame(rows).set_index(by)
    frame.attrs |= how_computed(data, metric, permutations) | {"neighbours": neighbours, "across": across}
    return frame


def model_shifts(data: Labelled, weights: ComponentWeights, metric: str) -> npt.NDArray[np.float64]:
    """Shifts between the models, (m, m)."""
    groups = data.models
    chosen = component_weights(weights, groups)
    shifts = stats.kl_shift(groups.counts, chosen, groups.low, groups.high, metric=metric)
    # Equal models are at no distance, not at that of rounding.
    return np.where(shifts < _ROUNDING, 0.0, shifts)


def how_computed(data: Labelled, metric: str, permutations: int | None) -> dict[str, Any]:
    """How an answer about models was computed, for its ``.attrs``."""
    groups = data.models
    return {
        "basis": groups.basis_id or "given",
        "recipe": groups.grouping.recipe,
        "metric": metric,
        "balance": groups.grouping.balance,
        "kernel": groups.grouping.kernel,
        "models": len(groups.labels),
        "layers": int(groups.layers.sum()),
        "filters": int(groups.filters.sum()),
        "unlabelled": data.unlabelled,
    } | ({"permutations": permutations} if permutations is not None else {})
