"""Sums of stored histograms: what groups are made of when the index answers."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import duckdb
import numpy as np
import numpy.typing as npt
import pyarrow as pa

from cnnfilterdb.analysis.grouping import Grouping
from cnnfilterdb.analysis.queries import batches, condition, damaged_index
from cnnfilterdb.analysis.storage import Totals
from cnnfilterdb.core.schema import PAPERS_LAYER
from cnnfilterdb.core.sqltext import expression, literal
from cnnfilterdb.sql import parquet_rows, without_wildcards

__all__ = ["StoredHistograms", "Sums"]

#: Histograms that are added up at a time: so few that their memory is used again and again.
_CHUNK = 512


@dataclass(frozen=True, slots=True)
class StoredHistograms:
    """The stored histograms of a basis.

    Attributes:
        connection: With the macro ``group_layers``.
        basis_id: Key of the basis.
        width: Number of counts of a histogram, for all components together.
        totals: Says, given the key of a basis, where the histograms of whole models are; None if there are those of
            layers only.
    """

    connection: duckdb.DuckDBPyConnection
    basis_id: str
    width: int
    totals: Callable[[str], Totals | None]

    def sums(self, grouping: Grouping, *, by_model: bool = False) -> Sums:
        """The sums of each group, or with ``by_model`` of the models in each.

        Adding up arrays takes less time than grouping their numbers in SQL. The histograms are read batch by batch, so
        that memory does not grow with their number. Those of whole models are used where the question allows it.

        Raises:
            SelectionError: ``by`` or ``where`` cannot be answered, or selects nothing.
        """
        if grouping.of_models and (totals := self.totals(self.basis_id)):
            query = _of_models(grouping, self.basis_id, totals, by_model)
        else:
            query = f"""
                SELECT number, "group", model_id, 1::BIGINT AS layers, filters, factor, counts, low, high,
                       CAST(list_sum(below) + list_sum(above) AS BIGINT) AS outside
                FROM group_layers({grouping.arguments(self.basis_id)}, by_model := {by_model})"""
        sums = Sums(self.width)
        for batch in batches(self.connection, query, _CHUNK):
            grouping.check_kind(batch)
            sums.add(batch, balanced=grouping.balance != "filters")
        if not sums.close():
            raise grouping.empty()
        return sums


def _of_models(grouping: Grouping, basis_id: str, totals: Totals, by_model: bool) -> str:
    """The query that answers what ``group_layers`` does, where all layers of a model are in the same group.

    Its rows are of whole models, and of single layers of the models that have no totals.
    """
    where, of_papers = condition(grouping.where), "true" if grouping.all_layers else PAPERS_LAYER
    basis, recipe, kernel = map(literal, (basis_id, grouping.recipe, grouping.kernel))
    pieces = f"""
        SELECT model_id, NULL::INTEGER AS layer, layers, filters, counts, low, high, outside
        FROM {_rows(totals.totals)}
        WHERE basis_id = {basis} AND recipe = {recipe} AND (papers_layer OR {grouping.all_layers})"""
    if totals.layers:
        pieces += f"""
        UNION ALL
        SELECT l.model_id, l.layer, 1::BIGINT, l.filters, h.counts, h.low, h.high,
               CAST(list_sum(h.below) + list_sum(h.above) AS BIGINT)
        FROM (FROM {_rows(totals.layers)} WHERE stored AND kernel = {kernel} AND {of_papers}) AS l
        LEFT JOIN (FROM {_rows(totals.histograms)} WHERE basis_id = {basis} AND recipe = {recipe}) AS h
        USING (model_id, layer, tensor_sha256)"""
    members = "model_id" if grouping.balance == "models" else "coalesce(family, architecture, model_id)"
    factor, sizes = "1.0", ""
    if grouping.balance != "filters":
        factor = "1.0 / total"
        sizes = f"""
        JOIN (
            SELECT "group", {members} AS member, sum(filters) AS total FROM selected JOIN pieces USING (model_id)
            GROUP BY ALL
        ) AS sizes ON sizes."group" IS NOT DISTINCT FROM selected."group" AND sizes.member = {members}"""
    return f"""
        WITH selected AS (
            SELECT model_id, family, architecture, {expression(grouping.by, "by")} AS "group",
                   CAST(dense_rank() OVER (ORDER BY "group"{", model_id" if by_model else ""}) AS UINTEGER) AS number
            FROM models WHERE {where} AND "group" IS NOT NULL
        ), pieces AS NOT MATERIALIZED ({pieces}
        )
        SELECT number, selected."group" AS "group", selected.model_id AS model_id, layers, filters, {factor} AS factor,
               counts, low, high, outside
        FROM pieces JOIN selected USING (model_id){sizes}
        WHERE CASE WHEN low IS NULL THEN error('layer ' || layer || ' of ' || selected.model_id
                                               || ' is not in the index ' || {basis} || ': run `cnnfilterdb index`')
                   ELSE true END"""


def _rows(files: Sequence[str]) -> str:
    return parquet_rows(f"[{', '.join(literal(without_wildcards(file)) for file in files)}]")


class Sums:
    """What the histograms of each group add up to.

    Args:
        width: Number of counts of a histogram.

    Attributes:
        kind: Type of the labels.
        labels: The groups, sorted.
        models: Number of models, (g,).
        layers: Number of layers, (g,).
        filters: Number of filters, (g,).
        outside: Number of coefficients outside the range, (g,).
        counts: Histograms, (g, width).
        low: Left edge of the range.
        high: Right edge.
    """

    def __init__(self, width: int) -> None:
        self.counts = np.zeros((0, width))
        self.layers, self.filters, self.outside, self.models = (np.zeros(0, np.int64) for _ in range(4))
        self.low = self.high = math.nan
        self.kind = pa.null()
        self.labels: list[Any] = []
        self._labels: dict[int, Any] = {}
        self._models: set[tuple[int, str]] = set()

    def add(self, batch: pa.RecordBatch, *, balanced: bool) -> None:
        """Add some histograms. Those of a model follow each other, so that few sums are of few rows."""
        numbers = _array(batch["number"]).astype(np.int64) - 1
        if (groups := int(numbers.max()) + 1) > len(self.counts):
            self._resize(max(groups, 2 * len(self.counts)))  # how many there are is known at the end only
        self._models.update(zip(numbers.tolist(), batch["model_id"].to_pylist(), strict=True))
        if not self._labels:
            self.kind = batch["group"].type
            self.low, self.high = batch["low"][0].as_py(), batch["high"][0].as_py()
        rows = _lists(batch["counts"], self.counts.shape[1])
        if balanced:
            rows = rows * _array(batch["factor"])[:, None]
        layers, filters, outside = (_array(batch[name]) for name in ("layers", "filters", "outside"))
        starts = np.flatnonzero(np.diff(numbers, prepend=-1))
        for start, end in pairwise([*starts.tolist(), len(numbers)]):
            number = numbers[start]
            if number not in self._labels:
                self._labels[number] = batch["group"][start].as_py()
            self.counts[number] += rows[start:end].sum(axis=0)
            self.layers[number] += layers[start:end].sum()
            self.filters[number] += filters[start:end].sum()
            self.outside[number] += outside[start:end].sum()

    def close(self) -> bool:
        """Leave out what has no histograms; False if nothing is left."""
        there = sorted(self._labels)
        self.labels = [self._labels[number] for number in there]
        self.models = np.bincount([number for number, _ in self._models], minlength=len(self.counts))[there]
        self.counts, self.layers = self.counts[there], self.layers[there]
        self.filters, self.outside = self.filters[there], self.outside[there]
        return bool(there)

    def _resize(self, groups: int) -> None:
        """Hold as many groups."""
        self.counts.resize((groups, self.counts.shape[1]), refcheck=False)
        for sums in (self.layers, self.filters, self.outside):
            sums.resize(groups, refcheck=False)


def _array(column: pa.Array | pa.ChunkedArray) -> npt.NDArray[Any]:
    """A column of numbers without NULL as an array; to_numpy of pyarrow would import pandas."""
    whole = column.combine_chunks() if isinstance(column, pa.ChunkedArray) else column
    return np.from_dlpack(whole)


def _lists(column: pa.Array, width: int) -> npt.NDArray[Any]:
    """A column of lists without NULL as an array (rows, width); flatten would import all of pyarrow.compute."""
    ends = np.from_dlpack(column.offsets)
    if other := set(np.diff(ends).tolist()) - {width}:
        raise damaged_index(f"a histogram of {min(other)} counts, expected {width}")
    found: npt.NDArray[Any] = np.from_dlpack(column.values)[ends[0] : ends[-1]]
    return found.reshape(-1, width)
