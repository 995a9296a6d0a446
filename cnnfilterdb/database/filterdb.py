"""FilterDB: a database folder that can be read and written."""

from __future__ import annotations

import os
import warnings
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import Any, Literal, Self, Unpack, overload

import duckdb

from cnnfilterdb import catalog
from cnnfilterdb.analysis.bases import FittedBasis
from cnnfilterdb.analysis.options import names_given, names_of
from cnnfilterdb.core import paths
from cnnfilterdb.core.errors import DamagedIndexError, DatabaseError, LockedError, NotADatabaseError, SelectionError
from cnnfilterdb.core.reports import Problem, Progress, TransferReport
from cnnfilterdb.core.resources import Resources
from cnnfilterdb.core.schema import AnnotatedFacts, check_fact_types
from cnnfilterdb.core.sharding import Share
from cnnfilterdb.database.imports import Imports
from cnnfilterdb.database.reader import Reader
from cnnfilterdb.parts.locations import Opened, opened
from cnnfilterdb.release.address import REFERENCE, folder_to_write, hub_address, is_release
from cnnfilterdb.store import annotations as notes
from cnnfilterdb.store.folder import Store
from cnnfilterdb.store.index import Index

__all__ = ["FilterDB", "create", "open", "pull"]

_MISSING = "is not in the index"


class FilterDB(Imports):
    """A database of convolution kernels in a folder, to be read and written. Made by :func:`open` or :func:`create`.

    Args:
        path: The folder of an existing database.
        threads: As in :func:`open`.
        memory: As in :func:`open`.
        runner: As in :func:`open`.

    Attributes:
        path: The folder, as an absolute path.
        progress: Called while a question brings the index up to date, as in :meth:`index`; None by default.

    Wherever a method takes ``where`` or ``by``, it is a SQL expression over the columns of the view ``facts``: every
    column of the models and the layers table (``name`` is the model's, ``layer_name`` the layer's).

    Raises:
        NotADatabaseError: The path contains no database, or it is a release, which can only be read.
        DatabaseError: A newer version of the package wrote it.
    """

    def __init__(
        self, path: str | Path, *, threads: int | None = None, memory: int | str | None = None, runner: Any = None
    ) -> None:
        self._store = Store.open(folder_to_write(path))
        self._store.resources = Resources.of(threads=threads, memory=memory, runner=runner)
        self.path = self._store.path
        self._index = Index(self._store)
        super().__init__(self._store, self._index)

    def __reduce__(self) -> tuple[Callable[..., Self], tuple[Any, ...]]:
        used = self._store.resources
        return partial(type(self), threads=used.threads, memory=used.memory, runner=used.runner), (self.path,)

    def annotate(
        self,
        *models: str,
        where: str | None = None,
        file: str | Path | None = None,
        reset: str | Sequence[str] = (),
        new_words: bool = False,
        **facts: Unpack[AnnotatedFacts],
    ) -> list[str]:
        """Correct or add facts about models without rewriting stored data.

        From then on every query uses the new values; ``models_stored`` has the old ones. The annotations are kept in
        ``annotations.csv`` of the folder (:mod:`cnnfilterdb.store.annotations`).

        Args:
            *models: Keys, or shell-style wildcards such as ``pypi/deepcr/*``.
            where: Condition over the columns of models and layers, which selects further ones.
            file: A CSV or TOML file with the facts of models (:func:`cnnfilterdb.store.annotations.load_facts`).
            reset: Facts whose annotations are removed, which restores the stored values.
            new_words: Accept a domain, task, framework or family that the catalog does not know.
            **facts: The facts; None says that one is unknown.

        Returns:
            Keys of the models that were annotated.

        Raises:
            UnknownModelError: A model is not in the database; nothing is annotated then.
            SelectionError: An unknown fact or word, a fact that is both set and reset, or nothing to do.
            CorruptError: The existing annotations cannot be read.

        >>> db = cnnfilterdb.example()
        >>> db.annotate("custom/photos-*", domain="faces")
        ['custom/photos-large', 'custom/photos-small']
        >>> db.models()["domain"].tolist()
        ['faces', 'faces', 'medical ct']
        >>> db.annotate("custom/photos-*", reset="domain")
        ['custom/photos-large', 'custom/photos-small']
        >>> db.models()["domain"].tolist()
        ['natural', 'natural', 'medical ct']
        """
        dropped = names_of("reset", reset)
        notes.check_fact_names([*facts, *dropped], options=("where", "file", "reset", "new_words"))
        check_fact_types(facts)
        check_words = partial(catalog.check_facts, new_words=new_words)
        check_words(facts)
        if both := sorted(set(facts) & set(dropped)):
            raise SelectionError(f"annotate: {both[0]} is both set and reset; choose one")
        present = self._store.model_ids()
        chosen = notes.matching(names_given("annotate", models), present)
        stated = {fact: str(value) if value else None for fact, value in facts.items()}
        if where is not None:
            chosen = list(dict.fromkeys([*chosen, *self.models(where=where)["model_id"]]))
        if bool(chosen) != bool(facts or dropped) or not (chosen or file):
            raise SelectionError(
                f"annotate: {len(chosen)} models and {len(facts) + len(dropped)} facts; "
                "pass models with facts such as domain='thermal', or a file of facts"
            )
        given = notes.load_facts(Path(file), present, check_words) if file else {}
        for model_id in chosen:
            given.setdefault(model_id, {}).update(stated)

        def apply(known: notes.Facts) -> None:
            for model_id, new in given.items():
                known.setdefault(model_id, {}).update(new)
            for model_id in chosen:
                for fact in dropped:
                    known[model_id].pop(fact, None)

        notes.change(self._store, apply)
        self._write_init()
        return list(given)

    def merge(
        self,
        *others: Reader | str | Path,
        where: str | None = None,
        overwrite: bool = False,
        keep_duplicates: bool = False,
        progress: Progress | None = None,
    ) -> TransferReport:
        """Import the models of other databases, with their annotations, one database after the other.

        Models already present are skipped; repeat the call to resume an interrupted run. The weight of each layer is
        compared with its hash.

        Args:
            *others: Databases, their folders, addresses of releases, or several parts that were opened as one.
            where: Condition over the columns of models, such as ``"domain LIKE 'medical%'"``: only these models. Of a
                release only their filters are fetched.
            overwrite: Replace models of the same key that have other weights; otherwise they are reported as conflicts.
            keep_duplicates: Import models whose weights another one has too; otherwise they are left out.
            progress: Called with the key of a model, the number of models done and the total.

        Raises:
            NotADatabaseError: No database exists there.
            RemoteError: It cannot be reached.
            SelectionError: A condition that cannot be answered.

        >>> other = cnnfilterdb.create("other.db")
        >>> print(other.merge(db, where="domain = 'natural'"))
        2 done, 0 skipped, 0 duplicates, 0 conflicts, 0 failed
        >>> other.models()["name"].tolist()
        ['photos-large', 'photos-small']
        """
        if not others:
            raise SelectionError("merge: no database given; pass those whose models are to be imported")
        with ExitStack() as stack:
            readers = [one if isinstance(one, Reader) else stack.enter_context(open(one)) for one in others]
            report = _merge(
                self._store, readers, where, progress=progress, drop_duplicates=not keep_duplicates, overwrite=overwrite
            )
        self._write_init()
        return report

    def remove(self, *models: str) -> list[str]:
        """Remove models with all their files and annotations: all of them or, after an error, none.

        If the process is killed, the next write completes the removal; repeating the call is then not an error.

        Args:
            models: Keys, or shell-style wildcards.

        Returns:
            Keys of the models that were removed.

        Raises:
            UnknownModelError: One of them does not exist, or a wildcard matches none; nothing is removed then.
            LockedError: Another process writes one of them; nothing is removed then.

        >>> db = cnnfilterdb.example()
        >>> db.remove("custom/scans")
        ['custom/scans']
        >>> db.models()["name"].tolist()
        ['photos-large', 'photos-small']
        """
        gone = self._store.remove(*names_given("remove", models))
        self._write_init()
        return gone

    def index(
        self,
        *,
        refit: bool = False,
        prune: bool = False,
        shard: str | None = None,
        progress: Progress | None = None,
    ) -> list[FittedBasis]:
        """Update the index; see :meth:`cnnfilterdb.store.index.Index.build`.

        Args:
            refit: Fit new bases on all models that exist now.
            prune: Remove the bases that are not in use afterwards, with their histograms.
            shard: ``"I/N"``: compute the fingerprints of the I-th of N shares of the models, and their histograms in
                the bases that exist. Tasks with other shares may do so at the same time; an index without ``shard``
                fits the bases and adds what is still missing.
            progress: Called with the current step, the amount done and the total.

        Returns:
            The bases that were fitted.

        Raises:
            LockedError: Another process is writing the index.
            SelectionError: Not a share, or ``refit`` or ``prune`` with one.

        >>> db.index()   # it is up to date
        []
        """
        if (share := Share.of(shard)) is not None:
            if refit or prune:
                raise SelectionError("shard: a share fits and removes no bases; leave refit and prune out")
            self._index.build_share(share, progress=progress)
            return []
        built = self._index.build(refit=refit, progress=progress)
        if prune:
            self._index.prune()
        self._write_init()
        return built

    def verify(self, *models: str, shard: str | None = None, progress: Progress | None = None) -> list[Problem]:
        """Check every count and every hash, and the annotations; an empty list means that no problem was found.

        Args:
            *models: Keys or wildcards of the models to check; without them everything is checked, the index included.
            shard: ``"I/N"``: only the I-th of N shares of the models; files that belong to no model are left out.
            progress: Called with the key of a model, the number of models done and the total.

        >>> db.verify(), db.verify("custom/photos-*")
        ([], [])
        """
        if models or shard is not None:
            share, present = Share.of(shard), self._store.model_ids()
            chosen = notes.matching(names_given("verify", models), present) if models else present
            return self._store.verify(chosen if share is None else share.among(chosen), progress)
        lost = Problem(None, self._store.path / paths.INIT, "is missing; `cnnfilterdb verify --repair` writes it")
        return self._store.verify(progress=progress) + ([] if lost.path.exists() else [lost])

    def repair(self, *, progress: Progress | None = None) -> list[Problem]:
        """Rebuild what is derived, set aside what is damaged, and report the models that must be imported again.

        The index and ``init.sql`` are rebuilt, changes of killed processes are completed, and damaged models and files
        that belong to no model are moved to ``.quarantine/`` in the folder; nothing is deleted.

        Args:
            progress: Called with the current step, the amount done and the total.

        Returns:
            What could not be repaired; an empty list means that :meth:`verify` finds no problem any more.

        >>> _ = Path(db.path, "init.sql").write_text("damaged")
        >>> len(db.verify()), db.repair(), db.verify()
        (1, [], [])
        """
        from cnnfilterdb.store.repair import repair

        self._views.renew()
        left = repair(self._store, self._index, progress)
        self._write_init()
        return left

    # ---------------------------------------------------------------------------------------------- private

    def _connect(self, query: str) -> duckdb.DuckDBPyConnection:
        if not self._store.path.exists():
            raise NotADatabaseError(f"{self.path}: the database no longer exists")
        return super()._connect(query)

    def _write_init(self) -> None:
        """Update ``init.sql`` and the gathered tables after a change."""
        try:
            self._store.gather()
            self._store.write_init(self._views.init_sql())
        except LockedError:  # another process is writing the same
            pass
        except DatabaseError as error:  # after the change itself, whose report must not be lost
            warnings.warn(f"init.sql was not updated: {error}", stacklevel=2)

    def _repair(self, error: Exception) -> bool:
        """Rebuild the index after a query found something wrong in it."""
        if super()._repair(error):
            return True
        on_index = isinstance(error, DamagedIndexError) or _MISSING in str(error)
        if not on_index or not os.access(self._store.path, os.W_OK):
            return False
        if not self._index.damage() and not self._index.missing() and not self._index.without_fingerprints():
            return False
        if not self._build(fingerprints=paths.FINGERPRINTS in str(error)):
            return False
        self._views.renew()
        return True

    def _ensure_index(self, *, fingerprints: bool = False) -> None:
        """Update the index, if this process may write and no other is doing it."""
        index, self._asking.indexed_elsewhere = self._index, False
        if os.access(self._store.path, os.W_OK) and (
            index.unsound() or index.unindexed() or index.missing() or (fingerprints and index.without_fingerprints())
        ):
            self._build(fingerprints=fingerprints)
        super()._ensure_index(fingerprints=fingerprints)

    def _build(self, *, fingerprints: bool = False) -> bool:
        """Build the index for a question; False where that cannot be done, so that the question has to do without."""
        try:
            self._index.build(fingerprints=fingerprints, progress=self.progress)
        except LockedError:
            self._asking.indexed_elsewhere = True
            return False
        except DatabaseError as error:  # a full or read-only disk
            warnings.warn(f"the index could not be updated: {error}", stacklevel=2)
            return False
        self._store.gather()
        return True


#: What can be opened: a location, or several parts, which may be open already; a mapping gives them names.
Openable = str | Path | Sequence[str | Path | Reader] | Mapping[str, str | Path | Reader]


@overload
def open(
    path: Openable,
    *,
    read_only: Literal[True],
    duplicates: str | None = None,
    storage_options: Mapping[str, Any] | None = None,
    threads: int | None = None,
    memory: int | str | None = None,
    runner: Any = None,
) -> Reader: ...
@overload
def open(
    path: str | Path,
    *,
    read_only: Literal[False],
    duplicates: None = None,
    storage_options: Mapping[str, Any] | None = None,
    threads: int | None = None,
    memory: int | str | None = None,
    runner: Any = None,
) -> FilterDB: ...
@overload
def open(
    path: str | Path,
    *,
    read_only: bool | None = None,
    duplicates: str | None = None,
    storage_options: Mapping[str, Any] | None = None,
    threads: int | None = None,
    memory: int | str | None = None,
    runner: Any = None,
) -> FilterDB | Reader: ...
@overload
def open(
    path: Sequence[str | Path | Reader] | Mapping[str, str | Path | Reader],
    *,
    read_only: bool | None = None,
    duplicates: str | None = None,
    storage_options: Mapping[str, Any] | None = None,
    threads: int | None = None,
    memory: int | str | None = None,
    runner: Any = None,
) -> Reader: ...
def open(
    path: Openable,
    *,
    read_only: bool | None = None,
    duplicates: str | None = None,
    storage_options: Mapping[str, Any] | None = None,
    threads: int | None = None,
    memory: int | str | None = None,
    runner: Any = None,
) -> FilterDB | Reader:
    """Open an existing database: a folder, or a release, of which queries fetch only what they need.

    Several are opened as one, each where it is, without copying. They are the parts of what is opened, and the models
    have a column ``part``. A basis in common is fitted on all of them when a question first needs one
    (:mod:`cnnfilterdb.parts.common`).

    Args:
        path: The folder of a database or of a release, or the address of a release, such as
            ``hf://datasets/owner/name@v1.0.0`` or ``s3://bucket/folder``; or ``reference``, the corpus in the
            package (:func:`cnnfilterdb.reference`); ``./reference`` is a folder. Or a list of these, a mapping that
            names them, or a file ``*.parts.toml`` that lists them (:mod:`cnnfilterdb.parts.listing`). A part may also
            be a database that is open already.
        read_only: True opens anything as a :class:`Reader`, which writes nothing; its SQL reads no other files, writes
            none, and changes no settings. False opens a folder as a
            :class:`FilterDB` and refuses a release. None chooses by what the path contains.
        duplicates: What to do about models of the same key in several parts: ``error``, or ``first`` to take that of
            the first part. By default what the file of parts says, or ``error``.
        storage_options: For an address, the options of its fsspec file system, such as ``{"token": ...}``.
        threads: Threads of DuckDB and of scans; by default one for each processor.
        memory: Memory of this process, such as ``"400MB"``, which DuckDB, Arrow and scans are then kept to; by default
            it is not limited. Arrow uses an allocator that returns memory, in all of the process from then on.
        runner: Where scans, imports, the index and the verification run: ``"threads"``, ``"serial"``,
            ``"processes"``, ``"ray"``, ``"ray://HOST:PORT"``, or any :class:`concurrent.futures.Executor`. The answers
            are the same.

    Returns:
        A :class:`FilterDB` for the folder of a database, a :class:`Reader` for a release and for several parts.

    Raises:
        NotADatabaseError: The path contains neither a database nor a release, or ``read_only=False`` for a release.
        DatabaseError: A newer version of the package wrote it, or a model is in several parts.
        SelectionError: ``storage_options`` for a folder, which has none; ``duplicates`` for one database; or not a
            number of threads, a size, or a runner.
        RemoteError: The address cannot be reached.

    >>> path = cnnfilterdb.example().path
    >>> with cnnfilterdb.open(path) as db:
    ...     len(db.models())
    3
    >>> both = cnnfilterdb.open([path, "reference"])
    >>> len(both.models(where="part = 'reference'")), both.kl_shift("part").shape
    (245, (2, 2))
    >>> cnnfilterdb.open("nowhere")
    Traceback (most recent call last):
        ...
    cnnfilterdb.NotADatabaseError: ...nowhere: does not exist; ...
    """
    if not isinstance(path, str | Path) or paths.is_parts_list(path):
        from cnnfilterdb.parts.opening import opened_list, opened_parts

        if read_only is False:
            shown = path if isinstance(path, str | Path) else f"{len(path)} parts"
            raise NotADatabaseError(f"{shown}: several parts, which can only be read; open the one to write to")
        if storage_options:
            raise SelectionError("storage_options: for one address; open the part with them, and give what is opened")
        if isinstance(path, str | Path):
            storage, bases = opened_list(path, duplicates=duplicates)
        else:
            storage, bases = opened_parts(_unwrapped(path), duplicates=duplicates or "error")
        storage.resources = Resources.of(threads=threads, memory=memory, runner=runner)
        return Reader(storage, bases, confined=bool(read_only))
    if duplicates is not None:
        raise SelectionError(f"{path}: one database, not several parts; leave out duplicates")
    if storage_options and "://" not in str(path):
        raise SelectionError(f"{path}: a folder, which has no storage_options; leave them out")
    if read_only is False or not (read_only or path == REFERENCE or is_release(path)):
        return FilterDB(path, threads=threads, memory=memory, runner=runner)
    storage, bases = opened(path, storage_options)
    storage.resources = Resources.of(threads=threads, memory=memory, runner=runner)
    return Reader(storage, bases, confined=bool(read_only))


def _unwrapped(
    given: Sequence[str | Path | Reader] | Mapping[str, str | Path | Reader],
) -> Sequence[str | Path | Opened] | Mapping[str, str | Path | Opened]:
    """Parts with the storage and bases of those that are open already."""

    def unwrap(one: str | Path | Reader) -> str | Path | Opened:
        return (one.storage, one._bases) if isinstance(one, Reader) else one

    if isinstance(given, Mapping):
        return {name: unwrap(one) for name, one in given.items()}
    return [unwrap(one) for one in given]


def create(
    path: str | Path, *, threads: int | None = None, memory: int | str | None = None, runner: Any = None
) -> FilterDB:
    """Create a database, or open the one that is already at the path and tidy up after interrupted writes.

    Args:
        path: A folder that does not exist or is empty, or that of a database.
        threads: As in :func:`open`.
        memory: As in :func:`open`.
        runner: As in :func:`open`.

    Raises:
        NotADatabaseError: The path is an address, a release, a file, or a folder with something else in it.
        DatabaseError: A newer version of the package wrote it, or it cannot be written to.

    >>> db = cnnfilterdb.create("new.db")
    >>> len(db.models())
    0
    """
    Store.create(folder_to_write(path))
    db = FilterDB(path, threads=threads, memory=memory, runner=runner)
    db._write_init()
    return db


def pull(
    location: str | Path,
    path: str | Path,
    *,
    where: str | None = None,
    shard: str | None = None,
    overwrite: bool = False,
    progress: Progress | None = None,
    storage_options: Mapping[str, Any] | None = None,
) -> TransferReport:
    """Download a release, or part of it, into a database folder.

    Models already present are skipped; repeat the call to resume an interrupted one. The weight of each layer is
    compared with its hash. A folder without bases adopts those of the release, and then gives the same numbers.

    Args:
        location: ``owner/name`` or ``owner/name@v1.0.0`` on the Hugging Face Hub, or the address or folder of a
            release.
        path: The folder of the database; it is created if it does not exist.
        where: Condition over the columns of models and layers, such as ``"domain LIKE 'medical%'"``: only the models
            that it selects are fetched.
        shard: ``"I/N"``: only the I-th of N shares of them.
        overwrite: Replace models of the same key that have other weights; otherwise they are reported as conflicts.
        progress: Called with the key of a model, the number of models done and the total.
        storage_options: For an address, the options of its fsspec file system, such as ``{"token": ...}``.

    Returns:
        The outcome for each model; one that fails does not stop the others.

    Raises:
        RemoteError: The release cannot be reached.
        NotADatabaseError: The location contains no release, or the path is not that of a database.
        SelectionError: A condition that cannot be answered, or no such shard.

    >>> manifest = cnnfilterdb.example().publish("owner/name", folder="shared")
    >>> print(cnnfilterdb.pull("shared", "pulled.db", where="task = 'Segmentation'"))
    1 done, 0 skipped, 0 duplicates, 0 conflicts, 0 failed
    """
    from cnnfilterdb.release.release import Release

    share = Share.of(shard)
    with open(hub_address(location), storage_options=storage_options) as reader:
        if isinstance(reader.storage, Release):
            reader.storage.check_all()  # before anything is written
        db = create(path)
        report = _merge(
            db._store, [reader], where, share=share, drop_duplicates=False, overwrite=overwrite, progress=progress
        )
        db._write_init()
        return report


def _merge(
    store: Store,
    readers: Sequence[Reader],
    where: str | None,
    *,
    progress: Progress | None,
    share: Share | None = None,
    **settings: bool,
) -> TransferReport:
    """Copy the models of several databases that a condition selects, one database after the other."""
    from cnnfilterdb.exchange.transfer import merge
    from cnnfilterdb.parts.parts import Parts

    sources: list[tuple[Any, list[str]]] = []
    for reader in readers:
        storage = reader.storage
        chosen = storage.model_ids() if where is None else list(reader.models(where=where)["model_id"])
        chosen = chosen if share is None else share.among(chosen)
        if isinstance(storage, Parts):
            sources += [(storage.parts[number].storage, own) for number, own in sorted(storage.owned(chosen).items())]
        else:
            sources.append((storage, chosen))
    total, report = sum(len(chosen) for _, chosen in sources), TransferReport()
    for storage, chosen in sources:
        before = report.models()

        def counted(model_id: str, done: int, of: int, before: int = before) -> None:
            if progress:
                progress(model_id, before + done, total)

        report.update(merge(store, storage, chosen, progress=counted, **settings))
        if report.stopped:
            break
    return report
