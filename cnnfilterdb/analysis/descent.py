"""The forest of related models: distances from sketches, directions from what is known about models."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from cnnfilterdb import stats
from cnnfilterdb.core.errors import SelectionError

if TYPE_CHECKING:
    import pandas as pd

__all__ = ["KURTOSIS", "lineage_frame"]

#: How the kurtosis of weights may move from a parent to its children.
KURTOSIS = ("rises", "falls")

_COLUMNS = ("tree", "model", "parent", "distance", "cosine", "layers", "direction", "evidence")
# What is documented outweighs any number of hints.
_DOCUMENTED, _HINT = 1000.0, 1.0


def lineage_frame(related: pa.Table, sketches: pa.Table, models: pa.Table, kurtosis: str | None) -> pd.DataFrame:
    """The frame of :meth:`Reader.lineage`.

    Args:
        related: Rows of the view ``related_models``.
        sketches: Rows of the view ``layer_sketches`` of these models, with their ``kurtosis``.
        models: ``model_id``, ``training_dataset``, ``pretraining_dataset`` and ``untrained`` of these models.
        kurtosis: One of :data:`KURTOSIS`, or None.
    """
    import pandas as pd

    if kurtosis not in (None, *KURTOSIS):
        raise SelectionError(f"kurtosis: {kurtosis!r} given; expected rises or falls, or None where it is not known")
    ids = sorted({*related["model_a"].to_pylist(), *related["model_b"].to_pylist()})
    place = {model_id: number for number, model_id in enumerate(ids)}
    squares, inner, layers, rise = _sums(sketches, place)
    pairs = np.zeros((len(ids), len(ids)), bool)
    for a, b in zip(related["model_a"].to_pylist(), related["model_b"].to_pylist(), strict=True):
        pairs[place[a], place[b]] = pairs[place[b], place[a]] = True
    with np.errstate(divide="ignore", invalid="ignore"):
        # |a - b| / sqrt(|a| |b|), over the layers of the pair: squares[a, b] is |a|^2 of those that b has, too.
        size = np.sqrt(squares * squares.T)
        cosine = np.clip(inner / size, -1, 1)
        distance = np.where(pairs, np.sqrt(np.maximum(squares + squares.T - 2 * inner, 0) / size), np.inf)
    documented = _documented({row["model_id"]: row for row in models.to_pylist()}, ids)
    hint = np.sign(rise) * {None: 0.0, "rises": 1.0, "falls": -1.0}[kurtosis]
    evidence = _DOCUMENTED * np.sign(documented) + np.where(documented == 0, _HINT * hint, 0)
    found = stats.forest(distance, evidence)
    words = {0: None, 1: "pretraining", 2: "untrained"}
    rows: list[dict[str, Any]] = []
    for child, model_id in enumerate(ids):
        parent, support = int(found.parent[child]), found.support[child]
        row: dict[str, Any] = {"tree": int(found.tree[child]), "model": model_id, "parent": None}
        if parent >= 0:
            row |= {
                "parent": ids[parent],
                "distance": float(distance[parent, child]),
                "cosine": float(cosine[parent, child]),
                "layers": int(layers[parent, child]),
                "direction": "known" if support >= _DOCUMENTED else "likely" if support > 0 else "unknown",
                "evidence": (words[abs(int(documented[parent, child]))] or "kurtosis") if support > 0 else None,
            }
        rows.append(row)
    frame = pd.DataFrame(_ordered(rows), columns=_COLUMNS)
    return frame.astype({"tree": "Int64", "distance": "Float64", "cosine": "Float64", "layers": "Int64"})


def _sums(sketches: pa.Table, place: dict[str, int]) -> tuple[npt.NDArray[Any], ...]:
    """Sums over the layers that two models both have, each (n, n).

    Squared norms of the first, inner products, number of layers, and by how much the kurtosis of the second is larger.
    """
    count = len(place)
    squares, inner, layers, rise = (np.zeros((count, count)) for _ in range(4))
    table = sketches.to_pandas()
    for _, group in table.groupby(["kernel", "filters", "out_channels", "place"], sort=False):
        if len(group) < 2:
            continue
        rows = np.array([place[model_id] for model_id in group["model_id"]])
        norms = group["norm"].to_numpy(np.float64)
        numbers = np.stack(group["sketch"].to_list()).astype(np.float64)
        units = numbers / np.linalg.norm(numbers, axis=1, keepdims=True)
        cells = np.ix_(rows, rows)
        squares[cells] += (norms**2)[:, None]
        inner[cells] += np.outer(norms, norms) * np.clip(units @ units.T, -1, 1)
        layers[cells] += 1
        heavy = group["kurtosis"].to_numpy(np.float64, na_value=0.0)
        rise[cells] += heavy[None, :] - heavy[:, None]
    return squares, inner, layers, rise


def _documented(known: dict[str, dict[str, Any]], ids: list[str]) -> npt.NDArray[np.int64]:
    """At [u, v] 1 if the pretraining of v is the training of u, 2 if u is untrained; negative the other way round."""
    found = np.zeros((len(ids), len(ids)), np.int64)
    for i, u in enumerate(ids):
        for j, v in enumerate(ids):
            a, b = known[u], known[v]
            before, after = a["training_dataset"], b["pretraining_dataset"]
            if before is not None and before == after and b["training_dataset"] != before:
                found[i, j] = 1
            if a["untrained"] and b["untrained"] is False:
                found[i, j] = 2
    both = (found > 0) & (found.T > 0)
    return np.where(both, 0, found - found.T)


def _ordered(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Trees by size, each from its root on, children by their distance."""
    children: dict[str | None, list[dict[str, Any]]] = {}
    for row in rows:
        children.setdefault(row["parent"], []).append(row)
    sizes: dict[int, int] = {}
    for row in rows:
        sizes[row["tree"]] = sizes.get(row["tree"], 0) + 1
    found: list[dict[str, Any]] = []
    roots = sorted(children.get(None, []), key=lambda row: (-sizes[row["tree"]], row["model"]))
    for number, root in enumerate(roots):
        pending = [root]
        while pending:
            row = pending.pop()
            found.append(row | {"tree": number})
            after = sorted(children.get(row["model"], []), key=lambda child: (child["distance"], child["model"]))
            pending += reversed(after)
    return found
