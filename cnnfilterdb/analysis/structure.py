"""Structure of kernels asked of a database: overlap of subspaces, named shapes, and the first layers of models."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import duckdb
import numpy as np
import numpy.typing as npt
import pyarrow as pa

from cnnfilterdb import stats
from cnnfilterdb.analysis.bases import moments_of
from cnnfilterdb.analysis.queries import condition, run
from cnnfilterdb.core.errors import SelectionError
from cnnfilterdb.core.schema import kernel_shape, weight_columns
from cnnfilterdb.core.sqltext import literal
from cnnfilterdb.scan.ordered import filters_of
from cnnfilterdb.scan.scan import FilterFiles, Run, scan

if TYPE_CHECKING:
    import pandas as pd

__all__ = ["first_layers", "overlap", "shapes"]


def overlap(rows: pa.Table, by: str, kernel: str, dimensions: int) -> pd.DataFrame:
    """The square frame of :meth:`Reader.subspace_overlap`.

    Args:
        rows: The layers, from :func:`cnnfilterdb.analysis.groups.selection`, sorted by group.
        by: The grouping expression.
        kernel: Kernel size.
        dimensions: Number of components.
    """
    import pandas as pd

    coded = rows["group"].combine_chunks().dictionary_encode()
    numbers = coded.indices.to_numpy()
    edges = np.flatnonzero(np.diff(numbers, prepend=-1))
    parts = [
        moments_of(rows.slice(start, stop - start), kernel)
        for start, stop in zip(edges, [*edges[1:], len(numbers)], strict=True)
    ]
    labels = coded.dictionary.to_pylist()
    empty = [label for label, part in zip(labels, parts, strict=True) if not part.scatter.trace() > 0]
    if empty:
        raise SelectionError(f"the kernels of {empty[0]} by {by} are all the same; leave them out with where")
    found = stats.subspace_overlap(np.stack([part.scatter for part in parts]), dimensions)
    index = pd.Index(labels, name=by)
    frame = pd.DataFrame(found, index=index, columns=index)
    own = [np.sort(np.linalg.eigvalsh(part.scatter))[-dimensions:].sum() / part.scatter.trace() for part in parts]
    frame.attrs = {"dimensions": dimensions, "kernel": kernel, "own": dict(zip(labels, map(float, own), strict=True))}
    return frame


def shapes(store: FilterFiles, rows: pa.Table, by: str, kernel: str) -> pd.DataFrame:
    """The frame of :meth:`Reader.shapes`: one scan of the filters of the selected layers.

    Args:
        store: The storage whose files are scanned.
        rows: The layers, from :func:`cnnfilterdb.analysis.groups.selection`.
        by: The grouping expression.
        kernel: Kernel size.
    """
    import pandas as pd

    names = [*stats.SHAPES, "other"]
    coded = rows["group"].combine_chunks().dictionary_encode()
    groups: dict[str, dict[int, int]] = {}
    keys = zip(rows["model_id"].to_pylist(), rows["layer"].to_pylist(), coded.indices.to_pylist(), strict=True)
    for model_id, layer, group in keys:
        groups.setdefault(model_id, {})[layer] = group
    counts = np.zeros((len(coded.dictionary), len(names)), np.int64)
    files = store.filter_files(kernel, sorted(groups))
    for part in scan(files, kernel, _Named(kernel, groups), layers=groups, resources=store.resources):
        for group, found in part.items():
            counts[group] += found
    filters = counts.sum(axis=1)
    frame = pd.DataFrame(
        counts / filters[:, None], index=pd.Index(coded.dictionary.to_pylist(), name=by), columns=names
    )
    frame.insert(0, "filters", filters)
    chance = stats.by_chance(*kernel_shape(kernel))
    frame.attrs = {
        "kernel": kernel,
        "by_chance": dict(zip(names, [*chance.tolist(), 1 - float(chance.sum())], strict=True)),
    }
    return frame


@dataclass(frozen=True, slots=True)
class _Named:
    """Numbers of kernels of each shape, of each group of the chosen layers among some runs; ``other`` is the last."""

    kernel: str
    groups: Mapping[str, Mapping[int, int]]

    def of(self, model_ids: Iterable[str]) -> _Named:
        """The same for some models."""
        return replace(self, groups={model_id: self.groups.get(model_id, {}) for model_id in model_ids})

    def __call__(self, runs: list[Run]) -> dict[int, npt.NDArray[np.int64]]:
        number = len(stats.SHAPES) + 1
        found: dict[int, npt.NDArray[np.int64]] = {}
        for one in runs:
            group = self.groups.get(one.model_id, {}).get(one.layer)
            if group is not None:
                shape = stats.named_shapes(np.column_stack(one.columns), *kernel_shape(self.kernel)).shape
                counts = np.bincount(shape % number, minlength=number)  # -1 is the last
                found[group] = found.get(group, 0) + counts
        return found


def first_layers(
    store: FilterFiles, connection: duckdb.DuckDBPyConnection, where: str | None, kernel: str
) -> pd.DataFrame:
    """The frame of :meth:`Reader.first_layer_profile`."""
    import pandas as pd

    height, width = kernel_shape(kernel)
    chosen = run(
        connection,
        "SELECT model_id, min(layer) AS layer FROM facts WHERE stored AND in_channels = 3 AND groups = 1 "
        f"AND out_channels IS NOT NULL AND kind = 'conv' AND kernel = {literal(kernel)} AND {condition(where)} "
        "GROUP BY model_id ORDER BY model_id",
    ).to_pylist()
    if not chosen:
        raise SelectionError(f"no selected model has a layer of {kernel} kernels with three input channels")
    profiles = [
        stats.first_layer_profile(weight.reshape(-1, 3, height, width)).ravel()
        for weight in _weights(store, chosen, kernel)
    ]
    names = [f"{colour}_{u}_{v}" for colour in stats.COLOURS for u in range(height) for v in range(width)]
    index = pd.Index([row["model_id"] for row in chosen], name="model_id")
    return pd.DataFrame(np.stack(profiles), index=index, columns=names)


def _weights(store: FilterFiles, layers: list[dict[str, object]], kernel: str) -> Iterator[npt.NDArray[np.float32]]:
    """The kernels of layers one after the other, (n, k) each."""
    wanted: dict[str, list[int]] = {}
    for row in layers:
        wanted.setdefault(str(row["model_id"]), []).append(int(str(row["layer"])))
    parts: list[npt.NDArray[np.float32]] = []
    current: tuple[str, int] | None = None
    for table in filters_of(store, kernel, wanted):
        weights = np.column_stack([table[name].to_numpy() for name in weight_columns(kernel)])
        numbers = table["layer"].to_numpy()
        model_id = table["model_id"][0].as_py()
        edges = np.flatnonzero(np.diff(numbers, prepend=-1))
        for start, stop in zip(edges, [*edges[1:], len(numbers)], strict=True):
            key = (model_id, int(numbers[start]))
            if current not in (None, key):
                yield np.concatenate(parts)
                parts = []
            current = key
            parts.append(weights[start:stop])
    if parts:
        yield np.concatenate(parts)
