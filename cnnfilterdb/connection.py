"""The DuckDB connection of a database, with the views and macros that match what is stored."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Protocol, runtime_checkable

import duckdb

from cnnfilterdb import sql
from cnnfilterdb.analysis.bases import Bases
from cnnfilterdb.analysis.queries import translated, unreachable
from cnnfilterdb.errors import CorruptError, DatabaseError
from cnnfilterdb.reports import Problem, Progress, printable
from cnnfilterdb.scan.scan import FilterFiles
from cnnfilterdb.scan.steady import Snapshot

__all__ = ["Connection", "Storage"]


class Storage(FilterFiles, Protocol):
    """Where a database lies: a folder (:class:`~cnnfilterdb.store.folder.Store`) or a release."""

    @property
    def location(self) -> str:
        """As DuckDB and people spell it."""

    @property
    def published(self) -> bool:
        """Whether its tables are in the shards of a release."""

    @property
    def annotated(self) -> bool:
        """Whether there are annotations beside it."""

    def snapshot(self) -> Snapshot:
        """Its state, by which a question finds out that what it read was replaced meanwhile."""

    def model_ids(self) -> list[str]:
        """Keys of its models, sorted."""

    def kernels(self) -> list[str]:
        """Kernel sizes of its filters."""

    def attach(self, connection: duckdb.DuckDBPyConnection) -> None:
        """Teach a connection how to reach it."""

    def verify(self, *, progress: Progress | None = None) -> list[Problem]:
        """Check every count and every hash."""


@runtime_checkable
class PublishedStorage(Storage, Protocol):
    """A release, whose tables are checked before they are read."""

    def shards(self) -> Mapping[str, Sequence[str]]:
        """Paths of the files of each table, relative to the release."""

    def check(self, query: str) -> None:
        """Check the tables that a query may read."""


class Connection:
    """A DuckDB database in memory whose views show a storage.

    Args:
        storage: The database.
        bases: Its bases.
    """

    def __init__(self, storage: Storage, bases: Bases) -> None:
        self._storage = storage
        self._bases = bases
        self._connection: duckdb.DuckDBPyConnection | None = None
        self._named: set[str] = set()  # kernel sizes whose views were asked for
        self.text: str | None = None

    def close(self) -> None:
        """Close the connection; the next query opens a new one."""
        if self._connection is not None:
            self._connection.close()
        self._connection, self.text = None, None

    def connect(self, query: str = "") -> duckdb.DuckDBPyConnection:
        """The connection, its views and macros brought up to date.

        Args:
            query: What is going to be run. Of a release, views that it does not name are not created, because each
                would fetch the end of a file.
        """
        storage = self._storage
        kernels = storage.kernels()
        shards = None
        if isinstance(storage, PublishedStorage):
            storage.check(query)
            shards = storage.shards()
            self._named |= {kernel for kernel in kernels if re.search(rf"_{kernel}\b", query)}
            self._named |= {"3x3"} if "svd_coefficients" in query else set()
            kernels = [kernel for kernel in kernels if kernel in self._named]
        current = self._bases.current() if kernels else {}
        bases = {kernel: (fitted.basis_id, fitted.basis) for kernel, fitted in current.items()}
        text = sql.render(
            storage.location,
            kernels,
            bases,
            annotated=storage.annotated,
            published=storage.published,
            shards=shards,
        )
        if self._connection is None:
            self._connection = duckdb.connect()
            # Footers of files that have not changed are not read again.
            self._connection.execute("SET parquet_metadata_cache = true")
            self._connection.execute("SET VARIABLE cnnfilterdb_path = $path", {"path": storage.location})
            storage.attach(self._connection)
        if text != self.text:
            try:
                self._connection.execute(text)
            except duckdb.Error as error:
                if known := unreachable(error):
                    raise known from None
                if storage.published:
                    reason = printable(error)[:300]
                    raise CorruptError(f"{storage.location}: its tables cannot be read ({reason})") from None
                raise translated(error, DatabaseError) from error
            self.text = text
        return self._connection
