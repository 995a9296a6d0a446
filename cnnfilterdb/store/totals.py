"""Histograms of whole models: questions about models need no more, and read a thirtieth of the numbers.

They are added up while the histograms of layers are gathered (:mod:`cnnfilterdb.store.gathered`).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq

from cnnfilterdb.core import paths
from cnnfilterdb.core.recipes import RECIPES
from cnnfilterdb.core.schema import TOTALS, papers_layers
from cnnfilterdb.store.writer import HISTOGRAM_ENCODING

__all__ = ["TotalsFile"]

#: The columns of the layers table that are needed.
_COLUMNS = ["model_id", "layer", "tensor_sha256", "filters", "kernel", "stored", "kind", "dead"]

#: What identifies a layer of a model: its number, the hash of its weight, and its number of filters.
_Layer = tuple[int, str, int]

# Bytes of the rows that are in memory at most, about; they become one row group per recipe
_BYTES = 16 << 20


class TotalsFile:
    """A file of the histograms of whole models, in one basis.

    Each model has a row per recipe for the layers that the papers would have read, and one for its others, if it has
    such layers. A model whose histograms are not exactly those of its stored layers has no rows.

    Args:
        folder: Where it is written, beside the layers table of the models.
        basis_id: Key of the basis.

    Attributes:
        path: The file.
    """

    def __init__(self, folder: Path, basis_id: str) -> None:
        import pyarrow.compute as pc

        self.path = folder / f"{paths.totals_table(basis_id)}.parquet"
        layers = pq.read_table(folder / f"{paths.LAYERS}.parquet", columns=_COLUMNS)
        mine = layers.filter(pc.and_(layers["stored"], pc.equal(layers["kernel"], basis_id.partition("-")[0])))
        self._layers: dict[str, list[_Layer]] = {}
        for model_id, layer in _keys(mine):
            self._layers.setdefault(model_id, []).append(layer)
        self._papers = set(_keys(papers_layers(mine)))
        self._writer = pq.ParquetWriter(
            self.path, TOTALS, compression="lz4", write_page_checksum=True, **HISTOGRAM_ENCODING
        )
        self._rows: list[pa.Table] = []
        self._without = set(self._layers)

    def without(self) -> set[str]:
        """Names of the files of the models that have layers of the kernel size, and no rows."""
        return set(map(paths.slug, self._without))

    def added(self, parts: Iterator[pa.Table]) -> Iterator[pa.Table]:
        """Pass on the histograms of some models at a time, all those of a model together, and write their totals."""
        try:
            for part in parts:
                self._add(part)
                yield part
            self._flush()
        finally:
            self._writer.close()

    def _add(self, part: pa.Table) -> None:
        counts, below, above = (_matrix(part[name]) for name in ("counts", "below", "above"))
        if counts is None or below is None or above is None:
            return  # a question reads the file of the model instead, and reports the damage
        keys = _keys(part)
        rows: dict[str, dict[str, list[int]]] = {}
        for row, ((model_id, _), recipe) in enumerate(zip(keys, part["recipe"].to_pylist(), strict=True)):
            rows.setdefault(model_id, {}).setdefault(recipe, []).append(row)
        chosen: list[tuple[list[int], bool]] = []
        for model_id, by_recipe in rows.items():
            layers = sorted(self._layers.get(model_id, []))
            if any(sorted(keys[row][1] for row in by_recipe.get(recipe, [])) != layers for recipe in RECIPES):
                continue
            self._without.discard(model_id)
            for recipe in RECIPES:
                for papers in (True, False):
                    some = [row for row in by_recipe[recipe] if (keys[row] in self._papers) == papers]
                    chosen += [(some, papers)] if some else []
        if chosen:
            self._rows.append(_summed(part, chosen, counts, below.sum(axis=1) + above.sum(axis=1)))
        if sum(table.nbytes for table in self._rows) >= _BYTES:
            self._flush()

    def _flush(self) -> None:
        import pyarrow.compute as pc

        if self._rows:
            table = pa.concat_tables(self._rows)
            for recipe in RECIPES:
                self._writer.write_table(table.filter(pc.equal(table["recipe"], recipe)))
        self._rows = []


def _keys(rows: pa.Table) -> list[tuple[str, _Layer]]:
    """The model and the layer of each row."""
    model_ids, *layers = (rows[name].to_pylist() for name in ("model_id", "layer", "tensor_sha256", "filters"))
    return list(zip(model_ids, zip(*layers, strict=True), strict=True))


def _matrix(column: pa.ChunkedArray) -> npt.NDArray[np.int64] | None:
    """Lists of whole numbers that are equally long, (rows, length); None if they are not, or a number is missing."""
    lists = column.combine_chunks()
    values = lists.flatten()
    lengths = set(np.diff(lists.offsets.to_numpy()).tolist())
    if len(lengths) != 1 or lists.null_count or values.null_count:
        return None
    found: npt.NDArray[np.int64] = values.to_numpy().reshape(-1, lengths.pop())
    return found


def _summed(
    part: pa.Table,
    chosen: Sequence[tuple[list[int], bool]],
    counts: npt.NDArray[np.int64],
    outside: npt.NDArray[np.int64],
) -> pa.Table:
    """Rows of the table: of each set of rows of a model their sums, and whether they are of the papers' layers."""
    first = part.select(["basis_id", "model_id", "recipe", "low", "high"]).take([rows[0] for rows, _ in chosen])
    filters = part["filters"].to_numpy()
    sums = np.stack([counts[rows].sum(axis=0) for rows, _ in chosen])
    ends = np.arange(len(chosen) + 1, dtype=np.int32) * counts.shape[1]
    columns: dict[str, Any] = {name: first[name] for name in first.column_names} | {
        "papers_layer": [papers for _, papers in chosen],
        "layers": [len(rows) for rows, _ in chosen],
        "filters": [filters[rows].sum() for rows, _ in chosen],
        "outside": [outside[rows].sum() for rows, _ in chosen],
        "counts": pa.ListArray.from_arrays(ends, sums.reshape(-1)),
    }
    return pa.table({name: columns[name] for name in TOTALS.names}, schema=TOTALS)
