"""The units that a study compares: models, or all models of one origin taken together.

Models of one package are often the same network, trained again or trained on: they are not independent of each other,
and a test that takes them as independent finds differences that are none. A study therefore counts the models of one
origin, of one family, and of one side of its question as one unit, with the mean of their histograms.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Hashable
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, Unpack

import numpy as np
import numpy.typing as npt
import pandas as pd

from cnnfilterdb import stats
from cnnfilterdb.analysis.options import GroupOptions
from cnnfilterdb.core.errors import SelectionError

if TYPE_CHECKING:
    from cnnfilterdb.questions.conclusions import Conclusions

__all__ = ["Contrast", "Sample", "origin_of", "read_sample"]

#: Fewer arrangements than this: p cannot reach 5 %.
_FEW = 20
#: Fewer units on one side than this: their spread cannot be known.
_FEW_UNITS = 3
#: With fewer units on one side than this, intervals do not keep what they promise (see ``benchmarks/errors.py``).
_FEW_FOR_INTERVALS = 8
#: Draws for an interval.
_DRAWS = 499


@dataclass(frozen=True, slots=True)
class Contrast:
    """Units of one side of a question compared with those of the other.

    Attributes:
        what: What was compared, in words.
        units: Units on the side of the question.
        others: Units on the other side.
        shift: Observed shift.
        chance: Mean shift by chance, for sides of these sizes.
        chance_high: 95th percentile of the shift by chance.
        p: Probability of a shift at least as large by chance.
        low: Lower end of the 95 % interval of the shift between the populations that the units come from
            (:func:`cnnfilterdb.stats.population_shift`); None where a side has fewer than three units. With strata held
            fixed, of the shift that remains if both sides had the strata of the first one.
        high: Upper end; None also where the units are too few for one.
        arrangements: Number of ways to exchange the labels.
        null: The shifts by chance, (permutations,).
    """

    what: str
    units: int
    others: int
    shift: float
    chance: float
    chance_high: float
    p: float
    low: float | None
    high: float | None
    arrangements: float
    null: npt.NDArray[np.float64] = field(repr=False, compare=False)

    @property
    def excess(self) -> float:
        """Shift beyond that by chance."""
        return self.shift - self.chance

    @property
    def too_few(self) -> bool:
        """Whether no outcome could have been significant, or a side is too small to trust the interval."""
        return self.arrangements < _FEW or min(self.units, self.others) < _FEW_FOR_INTERVALS


@dataclass(frozen=True, slots=True, eq=False)
class Sample:
    """Units with their histograms and facts.

    Attributes:
        facts: One row per unit: ``models`` (keys), ``medical``, and the facts of its models.
        counts: Histograms, (n, k, bins); each sums to 1 per component, unless filters have the same weight.
        weights: Weight of each component, (k,).
        low: Left edge of the range.
        high: Right edge.
        by_filters: Whether filters have the same weight, so that the histograms of an origin add up; otherwise models
            have, and their histograms are averaged.
    """

    facts: pd.DataFrame
    counts: npt.NDArray[np.float64]
    weights: npt.NDArray[np.float64]
    low: float
    high: float
    by_filters: bool = False

    def __len__(self) -> int:
        return len(self.facts)

    @property
    def medical(self) -> npt.NDArray[np.int64]:
        """1 for a unit on the side of the question, 0 for others, (n,)."""
        return self.facts["medical"].to_numpy(np.int64)

    def codes(self, column: str) -> npt.NDArray[np.int64]:
        """Numbers of the values of a column, (n,); unknown is a value too."""
        found: npt.NDArray[np.int64] = pd.factorize(self.facts[column].fillna("unknown"), sort=True)[0]
        return found

    def where(self, kept: npt.NDArray[np.bool_] | pd.Series[bool]) -> Sample:
        """Some of the units."""
        chosen = np.asarray(kept, bool)
        return replace(self, facts=self.facts[chosen].reset_index(drop=True), counts=self.counts[chosen])

    def shifts(self, metric: str = "kl") -> npt.NDArray[np.float64]:
        """Shifts between the units, (n, n)."""
        return stats.kl_shift(self.counts, self.weights, self.low, self.high, metric=metric)

    def by_origin(self, *keys: str) -> Sample:
        """The models of each origin as one unit for each combination of the values of some columns.

        Facts in which the models differ are those of most of them.
        """
        rows = self.facts[["origin", *keys]].astype(object).fillna("unknown")
        codes = pd.factorize(pd.MultiIndex.from_frame(rows))[0]
        number = int(codes.max(initial=-1)) + 1
        counts = np.zeros((number, *self.counts.shape[1:]))
        np.add.at(counts, codes, self.counts)
        if not self.by_filters:
            counts /= np.bincount(codes, minlength=number)[:, None, None]
        members: list[list[dict[Hashable, Any]]] = [[] for _ in range(number)]
        for code, row in zip(codes, self.facts.to_dict("records"), strict=True):
            members[code].append(row)
        facts = pd.DataFrame([_together(models) for models in members])
        return replace(self, facts=facts, counts=counts)

    def contrast(
        self,
        what: str,
        side: npt.NDArray[np.int64] | None = None,
        *,
        within: str | None = None,
        metric: str = "kl",
        permutations: int = 999,
    ) -> Contrast:
        """Test one side against the other by exchanging the labels of units, within strata if a column is given.

        Args:
            what: What is compared, in words.
            side: 1 or 0 for each unit, (n,); by default medical.
            within: Column of strata.
            metric: One of :data:`~cnnfilterdb.stats.METRICS`.
            permutations: Number of random permutations.

        Raises:
            SelectionError: A side has no unit.
        """
        side = self.medical if side is None else side
        sizes = np.bincount(side, minlength=2)
        if sizes.min() == 0:
            raise SelectionError(f"{what}: one side has no model")
        found = stats.shift_test(
            self.counts, 1 - side, self.weights, self.low, self.high, metric=metric,
            strata=None if within is None else self.codes(within), permutations=permutations, keep_null=True,
        )  # fmt: skip
        population = None
        first, second = self._sides(side, within)
        if min(len(first), len(second)) >= _FEW_UNITS:
            population = stats.population_shift(
                first, second, self.weights, self.low, self.high, metric=metric, samples=_DRAWS
            )
        return Contrast(
            what, int(sizes[1]), int(sizes[0]), float(found.shift[0]), float(found.null_mean[0]),
            float(found.null_high[0]), float(found.p[0]), population.low if population else None,
            population.high if population else None, float(found.arrangements[0]),
            np.empty(0) if found.null is None else found.null[:, 0],
        )  # fmt: skip

    def _sides(
        self, side: npt.NDArray[np.int64], within: str | None
    ) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]]:
        """The histograms of both sides; with strata, as if both had the strata of the first one.

        Units of strata without both sides are left out; the others of the second side are weighted so that each
        stratum has the share that it has on the first side (direct standardisation).
        """
        counts = self.counts.astype(np.float64)
        if within is None:
            return counts[side == 1], counts[side == 0]
        codes = self.codes(within)
        here, there = (np.bincount(codes[side == value], minlength=codes.max() + 1) for value in (1, 0))
        kept = ((here > 0) & (there > 0))[codes]
        factors = (here / np.maximum(there, 1))[codes][:, None, None]
        return counts[kept & (side == 1)], (counts * factors)[kept & (side == 0)]


def origin_of(source: str, name: str) -> str:
    """Where a model comes from: its package or repository, or the model itself where its name has neither.

    >>> origin_of("pypi", "deepcr/mask-decam"), origin_of("timm", "resnet18.a1_in1k")
    ('pypi/deepcr', 'timm/resnet18.a1_in1k')
    """
    return f"{source}/{name.partition('/')[0]}"


def read_sample(
    db: Conclusions, medical: Callable[[pd.DataFrame], pd.Series[bool]], **options: Unpack[GroupOptions]
) -> Sample:
    """The models that some options select, one unit each.

    Args:
        db: The database.
        medical: Which models are on the side of the question, from the models table.
        **options: Those of :meth:`Reader.groups`. With ``balance="filters"``, a model counts by its filters.

    Raises:
        SelectionError: Nothing is selected.
    """
    groups = db.groups("model_id", **options)
    models = db.models().set_index("model_id").loc[groups.labels].reset_index()
    counts = groups.counts
    by_filters = options.get("balance", "filters") == "filters"
    if not by_filters:
        # A component without a coefficient in the range says nothing: it counts as even.
        totals = counts.sum(axis=-1, keepdims=True)
        counts = np.where(totals > 0, counts / np.where(totals > 0, totals, 1), 1 / counts.shape[-1])
    facts = pd.DataFrame(
        {
            "models": [[model_id] for model_id in models["model_id"]],
            "origin": [origin_of(*pair) for pair in zip(models["source"], models["name"], strict=True)],
            "medical": medical(models).to_numpy(bool),
            "filters": groups.filters,
            "layers": groups.layers,
            **{name: models[name] for name in ("architecture", "family", "task", "domain", "training_dataset")},
        }
    )
    return Sample(facts, counts, groups.weights, groups.low, groups.high, by_filters)


def _together(members: list[dict[Hashable, Any]]) -> dict[Hashable, Any]:
    """The facts of one unit: those of most of its models."""
    facts: dict[Hashable, Any] = {"models": sorted(key for model in members for key in model["models"])}
    for name in [name for name in members[0] if name not in facts]:
        values = [model[name] for model in members]
        if name in ("filters", "layers"):
            facts[name] = int(sum(values))
        else:
            known = Counter(value for value in values if not pd.isna(value))
            facts[name] = known.most_common(1)[0][0] if known else None
    return facts
