"""The folder on disk: models that are there whole or not at all.

How a model is committed. Its files are written in a staging folder inside the database, ``.staging/<slug>-<random>/``,
and flushed to the disk. Then a list of them is staged, and last the models row, by a rename: from that moment the
commit is decided. The files are moved in place one by one, the models row last. A model exists when its models file
exists; the SQL views and every method here pass over files without one.

So a process may be killed at any moment. If the commit was not decided, the staging folder is thrown away by the next
writer of that model or by :meth:`Store.clean`; if it was, they finish the move. A model that replaces another takes the
same way: the old models row goes first, so that no reader sees the rows of one beside the filters of the other; when a
move fails (other than by a kill), the old files are put back.

One process writes a model at a time, by a lock in ``.locks/``; processes that write different models do not meet. A
reader takes no lock. One that reads a model while it is being replaced or removed may find a file gone, and should read
again.
"""

from __future__ import annotations

import json
import os
import shutil
import tempfile
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.dataset as ds
from filelock import FileLock, Timeout

from cnnfilterdb import paths
from cnnfilterdb.errors import (
    CorruptError,
    DatabaseError,
    LockedError,
    NotADatabaseError,
    SelectionError,
    UnknownModelError,
    unknown_model,
)
from cnnfilterdb.reports import Problem, Progress
from cnnfilterdb.schema import (
    BASES,
    FORMAT_VERSION,
    HISTOGRAMS,
    LAYERS,
    MODELS,
    check_format,
    filter_schema,
    kernel_order,
    kernel_shape,
)
from cnnfilterdb.store.durable import move, sync_folder, writing
from cnnfilterdb.store.verify import verify_models
from cnnfilterdb.store.writer import MANIFEST, Writer, write_table
from cnnfilterdb.version import package_version

__all__ = ["LOCK_SECONDS", "Problem", "Store", "Writer", "unknown_model"]

#: How long a writer waits for another one of the same model.
LOCK_SECONDS = 5.0

_REPLACED = "replaced"


class Store:
    """A database folder. Made by :meth:`create` or :meth:`open`.

    Attributes:
        path: The folder.
    """

    def __init__(self, path: Path) -> None:
        self.path = path

    def __repr__(self) -> str:
        return f"Store({str(self.path)!r})"

    # ------------------------------------------------------------------------------------------------ open

    @classmethod
    def create(cls, path: str | Path) -> Store:
        """Open a database for writing, making it if it is missing, and clean up after killed runs.

        Args:
            path: The folder: absent, empty, or a database.

        Raises:
            NotADatabaseError: It is a file, or a folder with something else in it.
            DatabaseError: A newer version of the package wrote it, or it cannot be written to.
        """
        store = cls(Path(path))
        if not (store.path / paths.MARKER).exists():
            store._make()
        store._check()
        if os.access(store.path, os.W_OK):
            store.clean()
        return store

    @classmethod
    def open(cls, path: str | Path) -> Store:
        """Open a database. Nothing is written.

        Raises:
            NotADatabaseError: There is none.
            DatabaseError: A newer version of the package wrote it.
        """
        store = cls(Path(path))
        if not (store.path / paths.MARKER).exists():
            what = (
                "holds no database"
                if store.path.is_dir()
                else "is no folder"
                if store.path.exists()
                else "does not exist"
            )
            raise NotADatabaseError(f"{store.path}: {what}; give the folder of a database, or make one by an ingest")
        store._check()
        return store

    def _check(self) -> None:
        marker = self.path / paths.MARKER
        try:
            found = json.loads(marker.read_text(encoding="utf-8"))["format_version"]
            if not isinstance(found, int):
                raise TypeError(f"{found!r} is not a number")
        except (OSError, ValueError, LookupError, TypeError) as error:
            raise DatabaseError(f"{marker}: no format version in it ({error}); restore this file") from error
        check_format(found, str(self.path), "ingest its models again into a new folder")

    def _make(self) -> None:
        try:
            entries = {entry.name for entry in self.path.iterdir()}
        except FileNotFoundError:
            entries = set()
        except NotADirectoryError as error:
            raise NotADatabaseError(f"{self.path}: a file, not a database folder; choose another path") from error
        # The folder of locks comes first and the marker last: a creation that was killed between them may go on.
        if entries and not (paths.LOCKS in entries and entries <= paths.FOLDERS):
            raise NotADatabaseError(
                f"{self.path}: a folder with other things in it ({', '.join(sorted(entries)[:3])}), not a database; "
                "choose an empty or a new one"
            )
        empty = paths.EMPTY
        with writing(self.path):
            (self.path / paths.LOCKS).mkdir(parents=True, exist_ok=True)
            with self._locked(paths.MARKER, str(self.path)):
                if (self.path / paths.MARKER).exists():
                    return
                with self._staging(paths.MARKER) as folder:
                    for schema, relative in (
                        (MODELS, paths.models_path(empty)),
                        (LAYERS, paths.layers_path(empty)),
                        (filter_schema("3x3"), paths.empty_filters_path("3x3")),
                        (BASES, paths.basis_path(empty)),
                        (HISTOGRAMS, paths.histograms_path(empty, empty)),
                    ):
                        write_table(schema.empty_table(), folder / relative)
                        move(folder / relative, self.path / relative)
                    marker = {
                        "format_version": FORMAT_VERSION,
                        "created_by": f"cnnfilterdb {package_version()}",
                        "created_at": datetime.now(UTC).isoformat(timespec="seconds"),
                    }
                    (folder / paths.MARKER).write_text(json.dumps(marker, indent=2) + "\n", encoding="utf-8")
                    move(folder / paths.MARKER, self.path / paths.MARKER)
                    sync_folder(self.path)

    # ------------------------------------------------------------------------------------------------ read

    @property
    def location(self) -> str:
        """The folder, as an absolute path."""
        return str(self.path.resolve())

    @property
    def published(self) -> bool:
        """False: each model has files of its own, unlike in a release."""
        return False

    @property
    def annotated(self) -> bool:
        """Whether there is a file of annotations."""
        return (self.path / paths.ANNOTATIONS).exists()

    def attach(self, connection: object) -> None:
        """Nothing: DuckDB reads folders by itself."""

    def slug(self, model_id: str) -> str:
        """Name of the files of a model; see :func:`cnnfilterdb.paths.slug`."""
        return paths.slug(model_id)

    def has(self, model_id: str) -> bool:
        """Whether the model is committed."""
        return (self.path / paths.models_path(paths.slug(model_id))).exists()

    def require(self, model_ids: Iterable[str]) -> None:
        """Make sure that models are committed.

        Raises:
            UnknownModelError: One of them is not; the message gives the nearest keys.
        """
        for model_id in model_ids:
            if not self.has(model_id):
                raise self._unknown(model_id)

    def model_ids(self) -> list[str]:
        """Keys of the committed models, sorted."""
        ids: list[str] = self.models(columns=["model_id"])["model_id"].to_pylist()
        return ids

    def models(self, *, columns: Sequence[str] | None = None) -> pa.Table:
        """The models table, sorted by ``model_id``.

        Args:
            columns: These columns only.
        """
        return self._table("models", MODELS, columns=columns)

    def layers(self, model_ids: Iterable[str] | None = None, *, columns: Sequence[str] | None = None) -> pa.Table:
        """The layers table, sorted by ``model_id`` and ``layer``.

        Args:
            model_ids: Of these models only.
            columns: These columns only. Without the moments the table is read several times as fast.

        Raises:
            UnknownModelError: One of them is not there.
        """
        return self._table("layers", LAYERS, self._chosen(model_ids), columns)

    def kernels(self) -> list[str]:
        """Kernel sizes of which a committed model has filters, sorted by number of weights, then by name."""
        committed = self._committed()
        sizes = {path.parts[-3].partition("=")[2] for path in self._filter_files("*") if path.stem in committed}
        return sorted(sizes, key=kernel_order)

    def filter_files(self, kernel: str, model_ids: Iterable[str] | None = None) -> list[Path]:
        """The Parquet files of a kernel size, of committed models only, sorted.

        Args:
            kernel: Kernel size, such as ``3x3``.
            model_ids: Of these models only; those without filters of that size have no file.

        Raises:
            UnknownModelError: One of them is not there.
        """
        kernel_shape(kernel)  # no wildcard gets further than this
        slugs = self._chosen(model_ids)
        return sorted(path for path in self._filter_files(kernel) if path.stem in slugs)

    def verify(self, model_ids: Iterable[str] | None = None, progress: Progress | None = None) -> list[Problem]:
        """Check every count and every hash.

        Meant for a database that nobody writes to: a model that is replaced meanwhile may be reported.

        Args:
            model_ids: Check these models only, and do not look for files that belong to no model.
            progress: Called with the key of a model, the number of models done and of all.

        Returns:
            What is wrong, sorted by path; an empty list means that all is well.

        Raises:
            UnknownModelError: One of the models is not there.
        """
        problems = verify_models(self.path, sorted(self._chosen(model_ids)), self._files, progress)
        if model_ids is None:
            problems += [
                Problem(None, self.path / path, "belongs to no model; opening the database for writing removes it")
                for slug in sorted(self._strays())
                if not self._busy(slug)
                for path in self._files(slug)
            ]
        return sorted(problems, key=lambda problem: str(problem.path))

    def _committed(self) -> set[str]:
        return {path.stem for path in (self.path / "models").glob("*.parquet")} - {paths.EMPTY}

    def _chosen(self, model_ids: Iterable[str] | None) -> set[str]:
        if model_ids is None:
            return self._committed()
        chosen = list(model_ids)
        self.require(chosen)
        return {paths.slug(model_id) for model_id in chosen}

    def _unknown(self, model_id: str) -> UnknownModelError:
        return unknown_model(model_id, self.model_ids(), self.path)

    def _filter_files(self, kernel: str) -> Iterator[Path]:
        return (self.path / "filters").glob(f"kernel={kernel}/source=*/*.parquet")

    def _table(
        self, kind: str, schema: pa.Schema, slugs: Iterable[str] | None = None, columns: Sequence[str] | None = None
    ) -> pa.Table:
        """One table of the committed models; read again when a model goes away meanwhile."""
        while True:
            committed = self._committed()
            chosen = committed if slugs is None else committed.intersection(slugs)
            # The file without rows makes a table of no models a table all the same.
            files = [self.path / kind / f"{slug}.parquet" for slug in (paths.EMPTY, *sorted(chosen))]
            try:
                return _rows(files, schema, columns or schema.names)
            except (OSError, pa.ArrowException) as error:
                if self._committed() >= committed:
                    raise _damaged(files, schema, error) from error

    # ----------------------------------------------------------------------------------------------- write

    @contextmanager
    def writer(self, model_id: str, *, overwrite: bool = False) -> Iterator[Writer]:
        """Write a model. Leaving the block without :meth:`Writer.commit` leaves nothing behind.

        Args:
            model_id: Its key, ``source/name``.
            overwrite: Replace the model of that key.

        Raises:
            SelectionError: Not of the form ``source/name``.
            DatabaseError: The model is there already, or the disk is full.
            LockedError: Another process writes the same model.
        """
        source, _, name = model_id.partition("/")
        if not (source and name):
            raise SelectionError(f"{model_id!r}: a model is named source/name, such as custom/mine")
        slug = paths.slug(model_id)
        with self._locked(slug, model_id):
            with writing(self.path):
                self._recover(slug)
            if self.has(model_id) and not overwrite:
                raise DatabaseError(f"{model_id}: is in {self.path} already; remove it or overwrite it")
            with self._staging(slug) as folder:
                writer = Writer(model_id, folder, self.path, lambda: self._publish(slug, folder))
                try:
                    yield writer
                finally:
                    if not writer.committed:
                        writer.abandon()

    def remove(self, model_id: str) -> None:
        """Remove a model and all its files. The models row goes first.

        Raises:
            UnknownModelError: It is not there.
            LockedError: Another process writes it.
        """
        slug = paths.slug(model_id)
        with self._locked(slug, model_id), writing(self.path):
            self._recover(slug)
            if not self.has(model_id):
                raise self._unknown(model_id)
            self._unlink(self._files(slug))

    def clean(self) -> list[str]:
        """Remove what killed runs have left, or finish it if its commit was decided.

        What a live writer holds is not touched.

        Returns:
            What was found, as paths relative to the database.
        """
        staged = {path.name.rpartition("-")[0] for path in (self.path / paths.STAGING).glob("*")}
        found: list[str] = []
        for slug in sorted(staged | self._strays()):
            with suppress(LockedError), self._locked(slug, slug, seconds=0), writing(self.path):
                found += self._recover(slug)
        return found

    def write_init(self, text: str) -> None:
        """Write ``init.sql``, the views and macros for any DuckDB client.

        A database that cannot be written to keeps the one that it has.
        """
        path = self.path / paths.INIT
        if (path.exists() and path.read_text(encoding="utf-8") == text) or not os.access(self.path, os.W_OK):
            return
        with self.staging(paths.INIT) as folder, writing(path):
            (folder / paths.INIT).write_text(text, encoding="utf-8")
            move(folder / paths.INIT, path)

    @contextmanager
    def staging(self, name: str) -> Iterator[Path]:
        """A new folder inside the database, to write what is then moved in place by a rename.

        It is removed at the end of the block, and by :meth:`clean` after a kill.

        Args:
            name: What is being written; one process at a time writes it.

        Raises:
            LockedError: Another process writes it.
        """
        with self._locked(name, name), self._staging(name) as folder:
            yield folder

    @contextmanager
    def _locked(self, name: str, what: str, seconds: float | None = None) -> Iterator[None]:
        """Hold the lock of a slug."""
        lock = FileLock(self.path / paths.LOCKS / f"{name}.lock")
        with writing(self.path):
            (self.path / paths.LOCKS).mkdir(exist_ok=True)
            try:
                lock.acquire(timeout=LOCK_SECONDS if seconds is None else seconds)
            except Timeout as error:
                raise LockedError(f"{what}: another process is writing it; wait for it and run this again") from error
        try:
            yield
        finally:
            lock.release()

    def _busy(self, slug: str) -> bool:
        try:
            with self._locked(slug, slug, seconds=0):
                return False
        except LockedError:
            return True
        except DatabaseError:  # a folder that cannot be written to has no writer
            return False

    @contextmanager
    def _staging(self, name: str) -> Iterator[Path]:
        """A new folder whose name tells the lock under which it is used; removed at the end, whatever is in it."""
        with writing(self.path):
            (self.path / paths.STAGING).mkdir(exist_ok=True)
            folder = Path(tempfile.mkdtemp(prefix=f"{name}-", dir=self.path / paths.STAGING))
        try:
            yield folder
        finally:
            self._discard(folder)

    def _discard(self, folder: Path) -> None:
        # The staged models row goes first: a folder with one is a decided commit.
        for row in (folder / "models").glob("*.parquet"):
            row.unlink(missing_ok=True)
        shutil.rmtree(folder, ignore_errors=True)

    def _publish(self, slug: str, folder: Path) -> None:
        """Move the files of a decided commit in place. May be called again after a kill."""
        new: list[str] = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))
        old = [path for path in self._files(slug) if path not in new or (folder / path).exists()]
        moved: list[str] = []
        try:
            self._move(old, self.path, folder / _REPLACED)
            for path in new:
                if (folder / path).exists():
                    if path == new[-1]:
                        self._sync({(self.path / path).parent for path in moved})
                    move(folder / path, self.path / path)
                    moved.append(path)
            self._sync({(self.path / new[-1]).parent})
        except OSError:
            (folder / new[-1]).unlink(missing_ok=True)
            self._unlink(path for path in reversed(moved) if Path(path).stem == slug)
            back = [path for path in reversed(old) if (folder / _REPLACED / path).exists()]
            self._move(back, folder / _REPLACED, self.path)
            raise

    def _move(self, paths: Iterable[str], source: Path, target: Path) -> None:
        for path in paths:
            move(source / path, target / path)

    def _sync(self, folders: Iterable[Path]) -> None:
        for folder in folders:
            sync_folder(folder)

    def _unlink(self, paths: Iterable[str]) -> None:
        for path in paths:
            (self.path / path).unlink(missing_ok=True)

    def _recover(self, slug: str) -> list[str]:
        """Under the lock of a slug: finish or throw away what a killed run has left."""
        found = []
        for folder in (self.path / paths.STAGING).glob(f"{slug}-*"):
            if folder.name.rpartition("-")[0] != slug:
                continue
            found.append(folder.relative_to(self.path).as_posix())
            if (folder / paths.models_path(slug)).exists():
                self._publish(slug, folder)
            self._discard(folder)
        if not (self.path / paths.models_path(slug)).exists():
            left = self._files(slug)
            found += left
            self._unlink(left)
        return found

    def _files(self, slug: str) -> list[str]:
        """Files of a model that are in place, the models row first."""
        known = [self.path / paths.models_path(slug), self.path / paths.layers_path(slug)]
        files = [path for path in known if path.exists()]
        files += (self.path / "filters").glob(f"*/*/{slug}.parquet")
        files += (self.path / "index").glob(f"[!.]*/histograms/{slug}.parquet")
        return [path.relative_to(self.path).as_posix() for path in files]

    def _strays(self) -> set[str]:
        """Slugs of files in place that have no models row."""
        found: set[Any] = {path.stem for path in (self.path / "layers").glob("*.parquet")}
        found |= {path.stem for path in self._filter_files("*")}
        found |= {path.stem for path in (self.path / "index").glob("[!.]*/histograms/*.parquet")}
        # The models are listed last: one that is committed meanwhile is none.
        return found - self._committed() - {paths.EMPTY}


def _rows(files: Iterable[Path], schema: pa.Schema, columns: Sequence[str]) -> pa.Table:
    """Rows of Parquet files, sorted by the keys that the table has."""
    keys = [name for name in ("model_id", "layer") if name in schema.names]
    dataset = ds.dataset([str(file) for file in files], schema=schema, format="parquet")
    table = dataset.to_table(columns=list(dict.fromkeys([*keys, *columns])))
    return table.sort_by([(key, "ascending") for key in keys]).select(list(columns))


def _damaged(files: Iterable[Path], schema: pa.Schema, error: Exception) -> CorruptError:
    """Which of the files could not be read."""
    for file in files:
        try:
            _rows([file], schema, schema.names)
        except (OSError, pa.ArrowException) as found:
            reason = str(found).partition("\n")[0]
            return CorruptError(f"{file}: cannot be read ({reason}); remove the model and bring it again")
    return CorruptError(f"a table could not be read a moment ago ({error}); try again")
