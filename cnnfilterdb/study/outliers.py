"""Which models of one kind are outliers, and what sets them apart: sparsity, binary kernels, depth, size."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt
import pandas as pd

from cnnfilterdb.study import drawing
from cnnfilterdb.study.document import Picture, Rows
from cnnfilterdb.study.sample import Sample

if TYPE_CHECKING:
    from cnnfilterdb.questions.conclusions import Conclusions

__all__ = ["FEW_OUTLIERS", "PROPERTIES", "Outliers", "find_outliers", "properties"]

#: Properties of a model that may set it apart: column -> name, and the words for a low and a high value.
PROPERTIES: dict[str, tuple[str, str, str]] = {
    "filters": ("3x3 filters", "few filters", "many filters"),
    "layers": ("3x3 layers", "few layers", "many layers"),
    "sparsity": ("Sparsity", "", "sparse kernels"),
    "binary": ("Binary kernels", "", "kernels of one magnitude"),
    "quantised": ("Quantised layers", "", "quantised weights"),
    "entropy": ("Entropy / that of random kernels", "repetitive kernels", "kernels close to random"),
    "depthwise": ("Depthwise filters", "", "depthwise kernels"),
}

#: Those of them that are whole numbers.
_COUNTS = ("filters", "layers")

#: What stands for the reasons of a model that has none of the properties.
_NO_REASON = "none of these"

#: With fewer outliers than this, nothing can be said of what they have in common.
FEW_OUTLIERS = 3

#: Models that the figure of outliers shows.
_SHOWN = 25


@dataclass(frozen=True, slots=True, eq=False)
class Outliers:
    """Distances of models and what goes along with them.

    Attributes:
        frame: One row per model, by falling distance: ``medical``, ``family``, ``domain``, ``distance``, the
            properties, ``outlier`` and ``reasons``.
        usual: Median distance of the models on the other side.
        limit: Their 95th percentile; medical models beyond it are outliers.
        correlations: Rank correlation of each property with the distance over all models, and its p-value.
    """

    frame: pd.DataFrame
    usual: float
    limit: float
    correlations: dict[str, tuple[float, float]]

    @property
    def found(self) -> pd.DataFrame:
        """The medical outliers."""
        return self.frame[self.frame["outlier"] & self.frame["medical"]]

    def share(self) -> float:
        """Share of the medical models that are outliers; by definition 5 % of the others are."""
        medical = self.frame[self.frame["medical"]]
        return float(medical["outlier"].mean())

    @property
    def explained(self) -> int:
        """Number of the medical outliers that have a property outside of the middle 90 % of the others."""
        return int((self.found["reasons"] != _NO_REASON).sum())

    def usual_share(self) -> float:
        """Share of the models that are no outliers, medical or not, that have such a property."""
        rest = self.frame[~self.frame["outlier"]]
        return float((rest["reasons"] != _NO_REASON).mean())

    def table(self) -> Rows:
        """The medical outliers, with their properties."""
        rows = [
            [
                model,
                row["family"],
                row["domain"],
                row["reasons"],
                row["distance"],
                *(int(row[name]) if name in _COUNTS else row[name] for name in PROPERTIES),
            ]
            for model, row in self.found.iterrows()
        ]
        columns = ("Model", "Family", "Domain", "Set apart by", "Distance", *(one[0] for one in PROPERTIES.values()))
        return Rows(
            f"Medical models whose median shift to the others is beyond {self.limit:.2f} nats, the 95th percentile "
            "of the other models. They are set apart by what lies outside of the middle 90 % of the others.",
            columns,
            rows,
        )

    def correlations_table(self) -> Rows:
        """What goes along with the distance over all models."""
        rows = [[PROPERTIES[name][0], rho, p] for name, (rho, p) in self.correlations.items()]
        return Rows(
            "Rank correlation (Spearman) of the properties of all models with their distance; p by permutation.",
            ("Property", "Correlation", "p"),
            rows,
        )

    def picture(self) -> Picture:
        """The most distant medical models."""
        medical = self.frame[self.frame["medical"]].head(_SHOWN)
        notes = [f"{int(count):,}" for count in medical["filters"]]
        figure = drawing.ranked(list(medical.index), medical["distance"].tolist(), notes, self.usual, self.limit)
        left_out = int(self.frame["medical"].sum()) - len(medical)
        return Picture(
            "outliers", figure, f"Distances of {len(medical)} medical models.",
            "Median shift of each medical model to the other models, the largest first; coloured beyond the limit."
            + (f" {left_out} nearer ones are not shown." if left_out else ""),
        )  # fmt: skip


def properties(db: Conclusions, where: str) -> pd.DataFrame:
    """Properties of the 3x3 layers of each model, by ``model_id``."""
    quality = db.quality("model_id", where=where)
    layers = db.layers(where=f"stored AND kernel = '3x3' AND papers_layer AND ({where})")
    depthwise = layers["filters"].where(layers["kind"] == "depthwise", 0).groupby(layers["model_id"]).sum()
    return pd.DataFrame(
        {
            "filters": quality["filters"].astype(float),
            "layers": quality["layers"].astype(float),
            "sparsity": quality["sparsity"].astype(float),
            "binary": quality["binary_filters"].astype(float) / quality["filters"],
            "quantised": quality["quantised_layers"].astype(float),
            "entropy": quality["normalised_entropy"].astype(float),
            "depthwise": depthwise.reindex(quality.index).astype(float) / quality["filters"],
        }
    )


def find_outliers(models: Sample, facts: pd.DataFrame, permutations: int) -> Outliers | None:
    """Models far from the others; None with fewer than five models on either side.

    The distance of a model is its median shift to the models of other origins on the other side of the question.

    Args:
        models: One unit per model.
        facts: Properties by ``model_id``, from :func:`properties`.
        permutations: Of the test of each correlation.
    """
    medical = models.medical.astype(bool)
    if min(medical.sum(), (~medical).sum()) < 5:
        return None
    shifts, origins = models.shifts(), models.codes("origin")
    compared = (origins[:, None] != origins) & ~medical
    if not compared.any(axis=1).all():
        return None
    distance = np.array([float(np.median(row[chosen])) for row, chosen in zip(shifts, compared, strict=True)])
    frame = pd.DataFrame(
        {
            "medical": medical,
            "family": models.facts["family"].to_numpy(),
            "domain": models.facts["domain"].to_numpy(),
            "distance": distance,
        },
        index=[names[0] for names in models.facts["models"]],
    ).join(facts)
    usual, limit = (float(value) for value in np.quantile(distance[~medical], [0.5, 0.95]))
    frame["outlier"] = frame["distance"] > limit
    others = frame[~frame["medical"]]
    ends = {name: others[name].dropna().quantile([0.05, 0.95]).tolist() for name in PROPERTIES}
    frame["reasons"] = [
        "; ".join(
            word
            for name, (_, low_word, high_word) in PROPERTIES.items()
            for word in ([low_word] if row[name] < ends[name][0] else [high_word] if row[name] > ends[name][1] else [])
            if word
        )
        or _NO_REASON
        for _, row in frame.iterrows()
    ]
    rng = np.random.default_rng(0)
    correlations = {}
    for name in PROPERTIES:
        known = frame[name].notna().to_numpy()
        if known.sum() >= 5 and frame[name][known].nunique() > 1:
            correlations[name] = _rank_correlation(frame[name].to_numpy()[known], distance[known], permutations, rng)
    return Outliers(frame.sort_values("distance", ascending=False, kind="stable"), usual, limit, correlations)


def _rank_correlation(
    x: npt.NDArray[np.float64], y: npt.NDArray[np.float64], permutations: int, rng: np.random.Generator
) -> tuple[float, float]:
    """Spearman's rank correlation, and its p-value by permutation, two-sided."""
    a, b = (pd.Series(values).rank().to_numpy(np.float64) for values in (x, y))
    a, b = (a - a.mean()) / (a.std() or 1), (b - b.mean()) / (b.std() or 1)
    observed = float(a @ b) / len(a)
    null = np.array([float(a @ rng.permutation(b)) / len(a) for _ in range(permutations)])
    return observed, float((np.count_nonzero(np.abs(null) >= abs(observed) - 1e-12) + 1) / (permutations + 1))
