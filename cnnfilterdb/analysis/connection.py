"""The DuckDB connection of a database, with the views and macros that match what is stored."""

from __future__ import annotations

import ctypes
import os
import threading
from collections.abc import Mapping
from typing import Any
from weakref import WeakSet

import duckdb
import pyarrow as pa

from cnnfilterdb import sql
from cnnfilterdb.analysis.queries import translated, unreachable
from cnnfilterdb.analysis.storage import Storage
from cnnfilterdb.core import paths, sqltext
from cnnfilterdb.core.errors import CorruptError, DamagedIndexError, DatabaseError
from cnnfilterdb.core.footers import stated_rows
from cnnfilterdb.core.reports import printable
from cnnfilterdb.core.schema import FINGERPRINTS, HISTOGRAMS, LAYERS, MODELS

__all__ = ["Connection"]

#: Statements that may replace or drop one of our views; the views are created again after such a statement.
_CHANGING = frozenset({"alter", "create", "detach", "drop", "use"})


#: Small tables of a folder, the most rows that each can have of a model, and the definitions that read it.
_MOST_ROWS: tuple[tuple[str, pa.Schema, int, frozenset[str]], ...] = (
    (paths.MODELS, MODELS, 1, frozenset({"models_stored"})),
    (paths.LAYERS, LAYERS, 20_000, frozenset({"layers", "facts"})),
    (paths.HISTOGRAMS, HISTOGRAMS, 40_000, frozenset({"histogram_files", "histograms"})),
    (paths.FINGERPRINTS, FINGERPRINTS, 20_000, frozenset({"fingerprints"})),
)


class Connection:
    """A DuckDB database in memory whose views show a storage.

    It can be used from several threads: each question gets a cursor. It can be pickled, and used in a process that was
    forked: the copy opens its own DuckDB database.

    Args:
        storage: The database.
        confined: Let SQL read the files of the storage only, and write nothing; settings cannot be changed then.
        settings: Settings of DuckDB, such as ``{"memory_limit": "1GB"}``.

    Attributes:
        confined: Whether SQL is confined to the storage.
    """

    def __init__(
        self, storage: Storage, *, confined: bool = False, settings: Mapping[str, str | int] | None = None
    ) -> None:
        self.confined = confined
        self._settings = {**storage.resources.duckdb_settings(), **(settings or {})}
        self._storage = storage
        self._closed = False
        self._reset()

    def _reset(self) -> None:
        self._lock = threading.RLock()
        self._root: duckdb.DuckDBPyConnection | None = None
        self._created: dict[str, str] = {}  # definitions by name, as they were created
        self._commented: set[str] = set()  # those of them that have their comments
        self._counted: set[str] = set()  # names of the tables whose rows were counted
        _connections.add(self)

    def __getstate__(self) -> dict[str, Any]:
        kept = ("confined", "_settings", "_storage", "_closed")
        return {name: self.__dict__[name] for name in kept}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._reset()

    def close(self) -> None:
        """Close the connection, and with it every relation created from it."""
        with self._lock:
            self.renew()
            self._closed = True

    def renew(self) -> None:
        """Discard what DuckDB has cached of files that were replaced: the next query opens a new DuckDB database."""
        with self._lock:
            if self._root is not None:
                self._root.close()
            self._root, self._created, self._commented, self._counted = None, {}, set(), set()

    def connect(self, query: str) -> duckdb.DuckDBPyConnection:
        """A new cursor, on which the views and macros that a query names are up to date.

        Relations of a cursor remain valid after others are used. Session objects, such as temporary tables,
        end with the cursor.

        Args:
            query: What is going to be run, or the names of the views and macros that it uses.

        Raises:
            DatabaseError: It was closed; or a view that the query names cannot be created from the files.
            DamagedIndexError: The view reads the index, which is damaged.
            QueryError: A statement that writes files, while SQL is confined.
            RemoteError: The storage cannot be reached.
        """
        with self._lock:
            if self._closed:
                raise DatabaseError(f"{self._storage.location}: closed; open it again with cnnfilterdb.open")
            if self.confined:
                sqltext.check_confined(query)
            self._storage.check(query)
            known = self._storage.definitions()
            if self._root is None:
                self._root = self._open()
            cursor = self._cursor(self._root)
            named = sql.identifiers_in(query)
            needed = sql.needed(query, known)
            listed = bool(named & sql.LISTING) and not sql.needs_index(query)
            without_index = not self._check_rows(cursor, {one.name for one in needed}, listed=listed)
            for one in needed:
                if self._created.get(one.name) == one.text or (without_index and one.needs_index):
                    continue
                try:
                    cursor.execute(one.text)
                except duckdb.Error as error:
                    # A list of all views does without those of a damaged index.
                    if one.name.lower() in named or not named & sql.LISTING or not one.needs_index:
                        raise self._unreadable(error) from None
                else:
                    self._created[one.name] = one.text
                    self._commented.discard(one.name)
            if named & sql.COMMENTED:
                # Nobody else sees them, and there are hundreds.
                uncommented = [known[name] for name in self._created if name in known and name not in self._commented]
                cursor.execute("".join(one.comments for one in uncommented))
                self._commented.update(one.name for one in uncommented)
            if named & _CHANGING:
                self._created = {}
            return cursor

    def _check_rows(self, cursor: duckdb.DuckDBPyConnection, needed: set[str], *, listed: bool) -> bool:
        """Refuse small tables of more rows than they can have, before DuckDB reads them; once for each table.

        Some kilobytes can claim millions of rows.

        Args:
            cursor: It reads the footers of files that are not as expected.
            needed: Names of the views and macros that are used.
            listed: The query lists all views, and names none that reads the index.

        Returns:
            False if the index is damaged and the query lists only: its views are left out.
        """
        uncounted = [one for one in _MOST_ROWS if one[0] not in self._counted and one[3] & needed]
        listing = self._storage.small_files([table for table, *_ in uncounted]) if uncounted else {}
        for table, schema, most, _ in uncounted:
            limits = {path: most * models for path, models in listing[table].items()}
            stated = {path: stated_rows(path, schema) for path in limits}
            odd = [path for path, rows in stated.items() if rows is None or rows > limits[path]]
            try:
                if odd:
                    files = ", ".join(sqltext.literal(sql.without_wildcards(path)) for path in odd)
                    footers = f"SELECT file_name, num_rows FROM parquet_file_metadata([{files}])"
                    stated.update(cursor.execute(footers).fetchall())
            except duckdb.Error as error:
                unreadable = self._unreadable(error)
                if listed and isinstance(unreadable, DamagedIndexError):
                    return False  # the index is the last of them
                raise unreadable from None
            for path, rows in stated.items():
                if rows is None or rows > limits[path]:
                    raise CorruptError(f"{path}: {rows:,} rows, expected at most {limits[path]:,}; remove the model")
            self._counted.add(table)
        return True

    def _unreadable(self, error: duckdb.Error) -> Exception:
        """The error of a view that cannot be created."""
        if known := unreachable(error):
            return known
        if self._storage.published:
            reason = printable(error)[:300]
            return CorruptError(f"{self._storage.location}: its tables cannot be read ({reason})")
        return translated(error, DatabaseError)

    def init_sql(self) -> str:
        """The text of ``init.sql``: all views and macros, for any DuckDB client."""
        storage = self._storage
        return sql.render(storage.location, storage.kernels(), annotated=storage.annotated, published=storage.published)

    def _open(self) -> duckdb.DuckDBPyConnection:
        root = duckdb.connect(
            config={
                "autoinstall_known_extensions": False,
                "autoload_known_extensions": False,
                **self._settings,
            }
        )
        # Footers of files that have not changed are not read again.
        root.execute("SET GLOBAL parquet_metadata_cache = true")
        self._storage.attach(root)
        if self.confined:
            # The views put wildcards in brackets; a path is compared as it is written.
            places = self._storage.places()
            root.execute(
                "SET allowed_directories = $allowed", {"allowed": [*places, *map(sql.without_wildcards, places)]}
            )
            root.execute("SET enable_external_access = false")
            root.execute("SET lock_configuration = true")
        return root

    def _cursor(self, root: duckdb.DuckDBPyConnection) -> duckdb.DuckDBPyConnection:
        cursor = root.cursor()
        # A variable belongs to a session, and a cursor is one.
        cursor.execute("SET VARIABLE cnnfilterdb_path = $path", {"path": self._storage.location})
        return cursor


_connections: WeakSet[Connection] = WeakSet()


def _forget_parent() -> None:
    """In a forked process: leave the parent's DuckDB alone, whose threads do not exist here.

    Closing it would wait for these threads, so the object must outlive even the interpreter.
    """
    for connection in list(_connections):
        if connection._root is not None:
            ctypes.pythonapi.Py_IncRef(ctypes.py_object(connection._root))
        connection._reset()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forget_parent)
