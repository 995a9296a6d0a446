"""The database folder: each model is committed atomically, and opening changes nothing.

How a change is committed, and completed after a kill, is described in :mod:`cnnfilterdb.store.commits`. Opening and
reading write nothing at all: the changes of a killed process are completed by the next process that writes, under the
same lock. The SQL views and every method here ignore files without a models row.

One process writes a model at a time, by a lock in ``.locks/``; processes that write different models do not wait for
each other. A reader takes no lock. It compares :meth:`Store.snapshot` before and after a query, and repeats the query
if a model was replaced or removed meanwhile (:mod:`cnnfilterdb.analysis.connection`).

Only files that the package itself has staged are deleted. Files that belong to no model, because ``models/`` was moved
away or half a folder was copied, are not touched until :meth:`cnnfilterdb.FilterDB.repair` moves
them to ``.quarantine/``; files that are not in the form of the package's own are never touched.
"""

from __future__ import annotations

import json
import os
import secrets
import tempfile
import warnings
from collections.abc import Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager, suppress
from datetime import UTC, datetime
from pathlib import Path

from cnnfilterdb.core import paths
from cnnfilterdb.core.durable import make_folder, move, sha256, sync_folder, write_text, writing
from cnnfilterdb.core.errors import (
    CorruptError,
    DatabaseError,
    LockedError,
    NotADatabaseError,
    SelectionError,
    UnsafePathError,
    unknown_model,
)
from cnnfilterdb.core.locks import acquire
from cnnfilterdb.core.reports import Problem, Progress, first_line
from cnnfilterdb.core.schema import (
    FORMAT_VERSION,
    check_format,
    filter_schema,
    is_model_id,
    marker_text,
)
from cnnfilterdb.core.version import package_version
from cnnfilterdb.store import annotations as notes
from cnnfilterdb.store.commits import (
    Commit,
    Removal,
    decided,
    discard,
    discard_removed,
    finish,
    undo,
    unfinished,
)
from cnnfilterdb.store.contents import Contents
from cnnfilterdb.store.regular import read_small
from cnnfilterdb.store.rows import WITHOUT_ROWS
from cnnfilterdb.store.seals import seal_text, write_sealed
from cnnfilterdb.store.verify import verify_folder, verify_models
from cnnfilterdb.store.writer import Writer

__all__ = ["LOCK_SECONDS", "Problem", "Store", "Writer", "unknown_model"]

#: How long a writer waits for another writer of the same model.
LOCK_SECONDS = 5.0

# Lock and staging folders of removals.
_REMOVAL = "removal"


class Store(Contents):
    """A database folder. Made by :meth:`create` or :meth:`open`."""

    def __init__(self, path: Path) -> None:
        super().__init__(path)
        self._recovered = False

    def __repr__(self) -> str:
        return f"Store({str(self.path)!r})"

    # ------------------------------------------------------------------------------------------------ open

    @classmethod
    def create(cls, path: str | Path) -> Store:
        """Open a database, or create it if it does not exist. An existing one is not changed.

        Args:
            path: The folder: absent, empty, or a database.

        Raises:
            NotADatabaseError: It is a file, a release, or a folder with other contents.
            DatabaseError: It has another format, or cannot be written to.
        """
        store = cls(Path(path))
        if not os.path.lexists(store.path / paths.MARKER):
            store._make()
        store._check()
        return store

    @classmethod
    def open(cls, path: str | Path) -> Store:
        """Open a database. Nothing is written.

        Raises:
            NotADatabaseError: No database exists there.
            DatabaseError: It has another format.
        """
        store = cls(Path(path))
        if not os.path.lexists(store.path / paths.MARKER):
            found = store.path
            what = "not a database" if found.is_dir() else "is a file" if found.exists() else "does not exist"
            raise NotADatabaseError(
                f"{found}: {what}; expected the folder of a database, which `cnnfilterdb ingest` or `add` creates"
            )
        store._check()
        return store

    def _check(self) -> None:
        marker = self.path / paths.MARKER
        try:
            found = json.loads(read_small(self.path, paths.MARKER))
            version, layout = found["format_version"], found.get("layout")
            if type(version) is not int:
                raise TypeError(f"{version!r} is not a number")
        except (OSError, ValueError, LookupError, TypeError, AttributeError, RecursionError) as error:
            reason = first_line(error)
            raise DatabaseError(f"{marker}: no format version in it ({reason:.200}); restore this file") from error
        if layout is not None:
            raise NotADatabaseError(
                f"{self.path}: a {layout!r:.20}, which is read-only; `cnnfilterdb pull` imports it into your own folder"
            )
        check_format(version, str(self.path), "ingest its models again into a new folder")
        for name in sorted(paths.FOLDERS):
            paths.inside(self.path, name)

    def _make(self) -> None:
        try:
            entries = {entry.name for entry in self.path.iterdir()}
        except FileNotFoundError:
            entries = set()
        except NotADirectoryError as error:
            raise NotADatabaseError(f"{self.path}: a file, not a database folder; choose another path") from error
        # The folder of locks comes first and the marker last, so a creation that was killed between them can continue.
        if entries and not (paths.LOCKS in entries and entries <= paths.FOLDERS):
            if os.path.lexists(self.path / paths.MARKER):
                return  # another process has made it meanwhile
            raise NotADatabaseError(
                f"{self.path}: a folder with other things in it ({', '.join(sorted(entries)[:3])}), not a database; "
                "choose an empty or a new one"
            )
        with writing(self.path):
            make_folder(self.path / paths.LOCKS)
            with self._locked(paths.MARKER, str(self.path)):
                if (self.path / paths.MARKER).exists():
                    return
                with self._staging(paths.MARKER) as folder:
                    self._write_empty(folder)
                    self._write_marker(folder)

    def _write_marker(self, folder: Path) -> None:
        now = datetime.now(UTC).isoformat(timespec="seconds")
        made = {"created_by": f"cnnfilterdb {package_version()}", "created_at": now}
        write_text(self.path / paths.MARKER, marker_text({"format_version": FORMAT_VERSION} | made), folder)

    def _write_empty(self, folder: Path) -> None:
        """Write the files without rows, by which DuckDB can bind the views."""
        kernels = {"3x3", *self.kernels()}
        schemas = WITHOUT_ROWS | {paths.empty_filters_path(kernel): filter_schema(kernel) for kernel in kernels}
        for relative, schema in schemas.items():
            if not (self.path / relative).exists():
                write_sealed(schema.empty_table(), folder / relative)
                move(folder / relative, self.path / relative)
                sync_folder((self.path / relative).parent)

    def restore(self) -> None:
        """Write the marker and the files without rows again where they are damaged or missing; see repair."""
        with self.staging(paths.MARKER) as folder, writing(self.path):
            broken = {problem.path for problem in verify_folder(self.path)}
            if broken:  # an error of the disk may have passed
                broken &= {problem.path for problem in verify_folder(self.path)}
            names = sorted(path.relative_to(self.path).as_posix() for path in broken)
            self.quarantine([name for name in names if Path(name).stem == paths.EMPTY], "damaged files without rows")
            self._write_empty(folder)
            if paths.MARKER in names:
                self._write_marker(folder)

    # ----------------------------------------------------------------------------------------------- verify

    def verify(self, model_ids: Iterable[str] | None = None, progress: Progress | None = None) -> list[Problem]:
        """Check every count and every hash, and the annotations.

        Nothing else should write to the database: a model that is replaced meanwhile may be reported.

        Args:
            model_ids: Check these models only, and do not look for files that belong to no model.
            progress: Called with the key of a model, the number of models done and the total.

        Returns:
            The problems, sorted by path; an empty list means that none was found.

        Raises:
            UnknownModelError: One of the models does not exist.
        """
        problems = verify_models(self.path, sorted(self._chosen(model_ids)), self.files, self.resources, progress)
        if model_ids is None:
            problems += verify_folder(self.path) + notes.annotation_problems(self)
            problems += [Problem(None, self.path / file, why) for file, why in self.gathered_damage().items()]
            problems += [
                Problem(None, self.path / file, "belongs to no model; `cnnfilterdb verify --repair` sets it aside")
                for slug in sorted(self.strays())
                if not self._busy(slug)
                for file in self.files(slug)
            ]
        return sorted(problems, key=lambda problem: str(problem.path))

    # ----------------------------------------------------------------------------------------------- write

    def gather(self) -> None:
        """Gather the small tables of models that were added, if they are many; called by writers only."""
        stamps, bases = self._stamps(), self._basis_ids()
        chosen = self.gathered.wanted(stamps, bases)
        if not chosen and not (self.path / paths.GATHERED).exists():
            return
        with suppress(DatabaseError), self.staging(paths.GATHERED) as folder:  # every question is answered without them
            if chosen:
                self.gathered.write(chosen, stamps, bases, folder)
            else:
                self.gathered.tidy(stamps)

    @contextmanager
    def writer(self, model_id: str, *, overwrite: bool = False) -> Iterator[Writer]:
        """Write a model. Leaving the block without :meth:`Writer.commit` leaves nothing behind.

        Args:
            model_id: Its key, ``source/name``.
            overwrite: Replace the model of that key.

        Raises:
            SelectionError: Not the key of a model (:func:`cnnfilterdb.core.schema.is_model_id`).
            DatabaseError: The model already exists, or the disk is full.
            LockedError: Another process writes the same model.
        """
        if not is_model_id(model_id):
            raise SelectionError(f"{model_id!r:.200}: expected source/name, printable, such as custom/mine")
        slug = paths.slug(model_id)
        self.recover_once()
        with self._locked(slug, model_id):
            with writing(self.path):
                self._recover(slug)
                self._set_strays_aside(slug)
            if self.has(model_id) and not overwrite:
                raise DatabaseError(f"{model_id}: already present in {self.path}; remove it or overwrite it")
            with self._staging(slug) as folder:
                writer = Writer(model_id, folder, self.path, lambda: self._publish(folder))
                try:
                    yield writer
                finally:
                    writer.close()

    def _publish(self, folder: Path) -> None:
        Commit.read(folder).apply(self.path, folder)
        discard(folder)

    def remove(self, *names: str) -> list[str]:
        """Remove models with all their files and annotations: all of them or, after an error, none.

        A removal that was killed is finished by the next process that writes. Removing the same models again is not an
        error then.

        Args:
            names: Keys, or shell-style wildcards.

        Returns:
            Keys of the models that are gone, those of a finished removal included.

        Raises:
            UnknownModelError: One of them does not exist, or a wildcard matches none; nothing is removed then.
            LockedError: Another process writes one of them; nothing is removed then.
            DatabaseError: A file could not be moved; nothing is removed then.
        """
        with self._locked(_REMOVAL, str(self.path)):
            done = self._recover_removals()
            self.recover_once()
            gone, chosen = dict[str, None](), dict[str, None]()
            for name in names:
                # A key needs no table, which may be damaged.
                there = [name] if self.has(name) else notes.matches(name, self.model_ids())
                finished = notes.matches(name, done)
                if not there and not finished:
                    with self._locked(paths.slug(name), name):  # perhaps it is being written
                        self.require([name])
                    there = [name]
                chosen |= dict.fromkeys(there)
                gone |= dict.fromkeys(finished)
            if not chosen:
                return sorted(gone)
            with self._staging(_REMOVAL) as folder, writing(self.path):
                rows = {model_id: sha256(self.path / paths.models_path(paths.slug(model_id))) for model_id in chosen}
                removal = Removal(rows)
                removal.decide(folder)
                try:
                    self._finish_removal(folder, removal)
                except (OSError, DatabaseError):
                    undo(self.path, folder, removal)
                    raise
            return sorted(gone | chosen)

    def _finish_removal(self, folder: Path, removal: Removal) -> None:
        for model_id in removal.rows:
            slug = paths.slug(model_id)
            with self._locked(slug, model_id):
                self._recover(slug)
                removal.apply(self.path, folder, model_id)
        notes.forget(self, [model_id for model_id in removal.rows if not self.has(model_id)])
        discard_removed(folder)

    def _recover_removals(self) -> set[str]:
        """Under the lock of removals: finish those that were killed, and return their models."""
        done: set[str] = set()
        for folder in self._staged(_REMOVAL):
            with writing(self.path):
                finished = unfinished(folder)
                if finished is None:
                    discard(folder)
                    continue
                try:
                    removal = Removal.read(folder)
                except (CorruptError, UnsafePathError) as error:
                    self.quarantine([folder.relative_to(self.path).as_posix()], str(error))
                    continue
                if finished:
                    self._finish_removal(folder, removal)
                    done |= set(removal.rows)
                else:
                    undo(self.path, folder, removal)
        return done

    def recover_once(self) -> None:
        """Call :meth:`recover` before the first change that is made through this object."""
        if not self._recovered:
            self._recovered = True
            self.recover()

    def recover(self) -> list[str]:
        """Finish the decided changes of killed processes, and throw away what they had not decided.

        Nothing locked by a live writer is touched, and neither are files in place.

        Returns:
            The staging folders that were found, as paths relative to the database.
        """
        found: list[str] = []
        for name in sorted({folder.name.rpartition("-")[0] for folder in self._staged()}):
            with suppress(LockedError), self._locked(name, name, seconds=0), writing(self.path):
                if name == _REMOVAL:
                    found += [folder.relative_to(self.path).as_posix() for folder in self._staged(_REMOVAL)]
                    self._recover_removals()
                else:
                    found += self._recover(name)
        return found

    def quarantine(self, files: Iterable[str], why: str) -> list[str]:
        """Move files or folders aside, to ``.quarantine/<time>/`` and their path, with a Python warning.

        Args:
            files: Relative to the database.
            why: What is wrong with them.

        Returns:
            Where they are now, relative to the database.
        """
        moved: list[str] = []
        time = datetime.now(UTC).strftime("%Y%m%dT%H%M%S")
        folder = f"{paths.QUARANTINE}/{time}-{secrets.token_hex(4)}"
        for file in files:
            if os.path.lexists(self.path / file):
                moved.append(f"{folder}/{file}")
                with writing(self.path):
                    move(self.path.joinpath(*paths.relative(file)), self.path / moved[-1])
                    sync_folder((self.path / file).parent)
        if moved:
            warnings.warn(
                f"{self.path}: {why}; {len(moved)} moved to {folder}, remove them if they are of no use", stacklevel=2
            )
        return moved

    def quarantine_strays(self) -> list[str]:
        """Move the files that belong to no model to the quarantine, unless a live writer has locked them.

        Returns:
            Where they are now, relative to the database.
        """
        moved: list[str] = []
        for slug in sorted(self.strays()):
            with suppress(LockedError), self._locked(slug, slug, seconds=0):
                if not (self.path / paths.models_path(slug)).exists():
                    moved += self.quarantine(self.files(slug), "files that belong to no model")
        return moved

    def _set_strays_aside(self, slug: str) -> None:
        """Under the lock of a model that does not exist: keep what is in the way of its files."""
        if not (self.path / paths.models_path(slug)).exists():
            self.quarantine(self.files(slug), "files of a model without a models row were in the way")

    def write_init(self, text: str) -> None:
        """Write ``init.sql``, the views and macros for any DuckDB client; called by writers only."""
        self.recover_once()  # a repeated command may have nothing else to write
        with suppress(OSError, DatabaseError):  # of what is not a regular file, which is replaced
            if read_small(self.path, paths.INIT) == seal_text(text).encode():
                return
        with self.staging(paths.INIT) as folder:
            self._write_empty(folder)  # a view of files that do not exist could not be created
            write_text(self.path / paths.INIT, seal_text(text), folder)

    @contextmanager
    def staging(self, name: str) -> Iterator[Path]:
        """A new folder inside the database, to write what is then moved in place by a rename.

        It is removed at the end of the block, and by :meth:`recover` after a kill.

        Args:
            name: What is being written; one process at a time writes it.

        Raises:
            LockedError: Another process writes it.
        """
        self.recover_once()
        with self._locked(name, name), self._staging(name) as folder:
            yield folder

    def locked(self, slug: str, seconds: float | None = None) -> AbstractContextManager[None]:
        """Hold the lock of a model, to move files of it into place.

        Args:
            slug: Name of its files.
            seconds: How long to wait; by default :data:`LOCK_SECONDS`.

        Raises:
            LockedError: Another process writes it.
        """
        return self._locked(slug, slug, seconds)

    @contextmanager
    def _locked(self, name: str, what: str, seconds: float | None = None) -> Iterator[None]:
        """Hold the lock of a name; the same process may hold one several times."""
        from filelock import Timeout

        with writing(self.path):
            self._own_folder(paths.LOCKS)
            try:
                held = acquire(self.path / paths.lock_path(name), LOCK_SECONDS if seconds is None else seconds)
            except Timeout as error:
                raise LockedError(f"{what}: another process is writing it; wait for it and run this again") from error
        with held:
            yield

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
        """A new folder whose name says under which lock it is used; removed at the end unless a change is decided."""
        with writing(self.path):
            folder = Path(tempfile.mkdtemp(prefix=f"{name}-", dir=self._own_folder(paths.STAGING)))
        try:
            yield folder
        finally:
            if not decided(folder):
                discard(folder)

    def _own_folder(self, name: str) -> Path:
        """A folder that the package works in. A link would let it write, and tidy up, somewhere else."""
        folder = self.path / name
        if folder.is_symlink():
            raise UnsafePathError(f"{folder}: a link; replace it by a folder")
        folder.mkdir(exist_ok=True)
        return folder

    def _staged(self, name: str | None = None) -> list[Path]:
        """Staging folders, of one name or of all."""
        place = self.path / paths.STAGING
        if place.is_symlink():
            raise UnsafePathError(f"{place}: a link; replace it by a folder")
        found = sorted(place.iterdir()) if place.exists() else []
        return [folder for folder in found if name is None or folder.name.rpartition("-")[0] == name]

    def _recover(self, name: str) -> list[str]:
        """Under the lock of a name: finish or throw away what a killed process left."""
        found = []
        for folder in self._staged(name):
            found.append(folder.relative_to(self.path).as_posix())
            wrong = "not a folder" if folder.is_symlink() or not folder.is_dir() else finish(self.path, folder)
            if wrong:
                self.quarantine(found[-1:], f"{found[-1]} is not what this package leaves ({wrong})")
        return found

    def strays(self) -> set[str]:
        """Slugs of files in place that have no models row, and that this package may have written."""
        patterns = (
            paths.layers_pattern(), paths.filters_pattern(), paths.histograms_pattern(), paths.fingerprints_pattern(),
        )  # fmt: skip
        found = {path.stem for pattern in patterns for path in self.path.glob(pattern) if paths.is_slug(path.stem)}
        # The models are listed last: one that is committed meanwhile is not a stray.
        return found - self.slugs()
