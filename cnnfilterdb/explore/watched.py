"""The database of the explorer: its queries can be stopped, and what every view asks for is kept in memory."""

from __future__ import annotations

import threading
import time
from tempfile import TemporaryDirectory
from typing import Any

import duckdb
import numpy as np
import numpy.typing as npt

from cnnfilterdb.analysis import groups as groupings
from cnnfilterdb.analysis.bases import FittedBasis
from cnnfilterdb.analysis.connection import Connection
from cnnfilterdb.analysis.grouping import Grouping
from cnnfilterdb.analysis.groups import Groups, Histograms
from cnnfilterdb.core.schema import PAPERS_LAYER
from cnnfilterdb.core.sqltext import literal
from cnnfilterdb.explore.jobs import current
from cnnfilterdb.questions.lineage import Lineage

__all__ = ["WatchedReader"]

#: Size up to which the layers are kept, in bytes; a database with more reads them for every question.
_MOST_LAYERS = 192 * 2**20

#: Space on disk that queries may take which do not fit in memory.
_SCRATCH = "4GB"

#: Age at which the state of the database is looked at again.
_SECONDS = 2.0

#: Histograms that are kept at most, in bytes; more are read for every question.
_MOST_BYTES = 256 * 2**20


class WatchedReader(Lineage):
    """A database whose queries belong to the current job, within a limit of memory.

    The models, the layers, and the histograms of the bases asked for last, are kept in memory until a model is added,
    replaced or removed. Answers are those of :class:`~cnnfilterdb.Reader`, to rounding.

    Args:
        db: A database; it is only read from.
        memory: Memory limit of DuckDB, such as ``512MB``.
    """

    def __init__(self, db: Lineage, *, memory: str) -> None:
        super().__init__(db.storage, db._bases, confined=True)
        # What does not fit in memory is written to a folder that only its owner can read.
        self._scratch = TemporaryDirectory(prefix="cnnfilterdb-")
        settings = {
            "memory_limit": memory,
            "temp_directory": self._scratch.name,
            "max_temp_directory_size": _SCRATCH,
        }
        self._views = Connection(db.storage, confined=True, settings=settings)
        self._keeping = threading.RLock()
        self._state: Any = None
        self._looked_at = 0.0
        self._root: Any = None  # DuckDB's database that has the kept layers
        self._small = False  # whether the layers are kept
        self._histograms: dict[tuple[str, str], Histograms | None] = {}

    def close(self) -> None:
        """Close the connection, and remove what it has written to disk."""
        super().close()
        self._scratch.cleanup()

    def watched(self, query: str) -> duckdb.DuckDBPyConnection:
        """A cursor that the current job interrupts, on which SQL of a user sees the views as they are."""
        cursor = super()._connect(query)
        if job := current.get():
            job.watch(cursor)
        return cursor

    def _connect(self, query: str) -> duckdb.DuckDBPyConnection:
        cursor = self.watched(query)
        if self._keep():
            # Temporary views come before those of the database, also for the macros of the database.
            for view in ("models", "layers"):
                cursor.execute(f"CREATE TEMP VIEW {view} AS FROM explorer.{view}")
            cursor.execute(
                f"CREATE TEMP VIEW facts AS SELECT m.* EXCLUDE (files), l.* EXCLUDE (model_id), {PAPERS_LAYER} AS "
                "papers_layer FROM explorer.layers AS l JOIN explorer.models AS m USING (model_id)"
            )
        return cursor

    def _keep(self) -> bool:
        """Read the models and layers, unless what is kept is current; False if they are too large to be kept."""
        with self._keeping:
            if self._root is self._views._root and time.monotonic() - self._looked_at < _SECONDS:
                return self._small
            state = dict(self.storage.snapshot()) | {"annotated": self.storage.annotated}
            if self._root is not self._views._root or state != self._state:
                cursor = self.watched("models layers")
                cursor.execute("CREATE SCHEMA IF NOT EXISTS explorer")
                size = "600 + 8 * (6 * len(raw_mean) + 2 * coalesce(len(scaled_scatter), 0))"
                found = cursor.sql(f"SELECT sum({size}) FROM main.layers").fetchall()[0][0] or 0
                self._small = found <= _MOST_LAYERS
                for view in ("models", "layers") if self._small else ():
                    cursor.execute(f"CREATE OR REPLACE TABLE explorer.{view} AS FROM main.{view}")
                self._root, self._state, self._histograms = self._views._root, state, {}
            self._looked_at = time.monotonic()
            return self._small

    def _scanned(self, filters: int) -> None:
        if job := current.get():
            job.advance(filters)

    def _stored_groups(self, question: Grouping, fitted: FittedBasis) -> Groups:
        if kept := self._kept(fitted, question.recipe):
            rows = groupings.selection(self._connect("facts"), question, moments=False)
            try:
                return groupings.summed(question, rows, fitted, kept)
            except KeyError:
                pass  # a layer that is not in the index, which the query reports
        return super()._stored_groups(question, fitted)

    def _kept(self, fitted: FittedBasis, recipe: str) -> Histograms | None:
        """The histograms of a basis and recipe; None if they are too large to be kept."""
        self._keep()
        key = (fitted.basis_id, recipe)
        with self._keeping:
            if key not in self._histograms:
                found = self._read(fitted, recipe)
                while found and sum(_bytes(one) for one in (*self._histograms.values(), found)) > _MOST_BYTES:
                    del self._histograms[next(iter(self._histograms))]  # the oldest
                self._histograms[key] = found
            return self._histograms[key]

    def _read(self, fitted: FittedBasis, recipe: str) -> Histograms | None:
        here = f"basis_id = {literal(fitted.basis_id)} AND recipe = {literal(recipe)}"
        cursor = self.watched("histograms")
        number = cursor.sql(f"SELECT count(*) FROM histograms WHERE {here}").fetchall()[0][0]
        width = len(fitted.basis.mean) * fitted.basis.bins
        if not number or number * width * 4 > _MOST_BYTES:
            return None
        counts: npt.NDArray[np.integer[Any]] = np.empty((number, width), np.int32)
        outside, places, edges = np.empty(number, np.int64), {}, (0.0, 0.0)
        reader = cursor.sql(
            "SELECT model_id, layer, tensor_sha256, counts, low, high, "
            f"CAST(list_sum(below) + list_sum(above) AS BIGINT) AS outside FROM histograms WHERE {here}"
        ).to_arrow_reader(4096)
        place = 0
        for batch in reader:
            rows = batch.num_rows
            flat = batch["counts"].flatten().to_numpy(zero_copy_only=False).reshape(rows, width)
            if flat.max(initial=0) > np.iinfo(counts.dtype).max:
                counts = counts.astype(np.int64)
            counts[place : place + rows] = flat
            outside[place : place + rows] = batch["outside"].to_numpy()
            keys = zip(*(batch[name].to_pylist() for name in ("model_id", "layer", "tensor_sha256")), strict=True)
            places.update({key: place + i for i, key in enumerate(keys)})
            edges = (batch["low"][0].as_py(), batch["high"][0].as_py())
            place += rows
        return Histograms(places, counts, outside, *edges)


def _bytes(histograms: Histograms | None) -> int:
    return histograms.counts.nbytes if histograms else 0
