"""Search over the stored filters: the ones most similar to a given kernel, and layers that models share."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from cnnfilterdb.core.schema import weight_columns
from cnnfilterdb.scan.scan import FilterFile, FilterFiles, Run, grouped_layers, joined, open_parquet, scan
from cnnfilterdb.stats import Nearest, Pattern

__all__ = ["nearest_filters"]


def nearest_filters(
    store: FilterFiles,
    kernel: str,
    pattern: Pattern,
    layers: set[tuple[str, int]] | None,
    limit: int,
    progress: Callable[[int], None] | None = None,
) -> pa.Table:
    """The filters most similar to a pattern: one scan, and memory for a few row groups.

    Args:
        store: The storage whose files are scanned.
        kernel: Kernel size.
        pattern: What to look for.
        layers: (model id, layer) of the layers to search; None searches all.
        limit: How many to return.
        progress: Called with the number of filters done since the last call.

    Returns:
        In decreasing order of similarity: ``similarity``, ``variant`` (what was done to the given kernel; ``negated``
        for a negative multiple), and the row of the filters table.
    """
    wanted = None if layers is None else grouped_layers(layers)
    files = store.filter_files(kernel, None if wanted is None else sorted(wanted))
    best = Nearest(limit)
    search = _Search(pattern, limit, wanted)
    for found in scan(files, kernel, search, layers=wanted, resources=store.resources, progress=progress):
        best.merge(found)
    lookup = _Lookup(files, kernel)
    rows = [lookup.row(file, int(row)) for file, row, _ in best.places.reshape(-1, 3).tolist()]
    names = [_name(pattern, int(which)) for which in best.places.reshape(-1, 3)[:, 2]]
    table = pa.concat_tables(rows) if rows else pa.table({name: [] for name in _columns(kernel)})
    return table.add_column(0, "variant", pa.array(names, pa.string())).add_column(
        0, "similarity", pa.array(best.similarity, pa.float64())
    )


@dataclass(slots=True)
class _Search:
    """The filters of the wanted layers among some runs that are most similar to a pattern.

    Attributes:
        pattern: The pattern.
        limit: How many are kept.
        wanted: Layers by model; None for all.
        least: As many filters as are kept are known to be at least so similar. Threads share it without a lock: one
            that reads an older, smaller value only does more than it needs to.
    """

    pattern: Pattern
    limit: int
    wanted: Mapping[str, Collection[int]] | None
    least: float = -np.inf

    def of(self, model_ids: Iterable[str]) -> _Search:
        """The same for some models."""
        if self.wanted is None:
            return self
        return replace(self, wanted={model_id: self.wanted.get(model_id, ()) for model_id in model_ids})

    def __call__(self, runs: list[Run]) -> Nearest:
        found = Nearest(self.limit)
        for wanted, run in joined(runs, self._wanted):
            if wanted:
                least = max(self.least, found.least)
                similarity, which, numbers = self.pattern.similarity(run.columns, least)
                # Only candidates get a place, which excludes most of a row group.
                chosen = found.candidates(similarity, least)
                places = np.empty((len(chosen), 3), np.int64)
                places[:, 0], places[:, 1], places[:, 2] = run.number, run.row + numbers[chosen], which[chosen]
                found.update(similarity[chosen], places)
        self.least = max(self.least, found.least)
        return found

    def _wanted(self, run: Run) -> bool:
        return self.wanted is None or run.layer in self.wanted.get(run.model_id, ())


def _columns(kernel: str) -> list[str]:
    return ["model_id", "layer", "out_channel", "in_channel", *weight_columns(kernel)]


def _name(pattern: Pattern, which: int) -> str:
    return pattern.names[which] if which >= 0 else f"{pattern.names[-1 - which]}, negated"


class _Lookup:
    """Rows of files by their number; each row group is read once."""

    def __init__(self, files: Sequence[FilterFile], kernel: str) -> None:
        self._files = files
        self._columns = _columns(kernel)
        self._open: dict[int, pq.ParquetFile] = {}
        self._groups: dict[tuple[int, int], pa.Table] = {}

    def row(self, number: int, row: int) -> pa.Table:
        """A row of the file of that number."""
        if number not in self._open:
            self._open[number] = open_parquet(self._files[number])
        file = self._open[number]
        for group in range(file.metadata.num_row_groups):
            rows = file.metadata.row_group(group).num_rows
            if row < rows:
                if (number, group) not in self._groups:
                    self._groups[number, group] = file.read_row_group(group, columns=self._columns)
                return self._groups[number, group].slice(row, 1)
            row -= rows
        raise AssertionError("a scan gives rows of the file that it reads")
