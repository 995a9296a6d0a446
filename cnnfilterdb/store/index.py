"""Files of the index: bases and their histograms, derived from the filters and rebuilt when damaged or missing.

A basis is fitted on the layers present at the time, from the moments in the layers table, and is never changed
afterwards. Beside it are the histograms of every layer's coefficients in it, one file per model. Because histograms add
up, every shift between any groups is a sum of these small rows. Models that come later are projected on every basis
that exists, and coefficients outside the range of a basis are counted.

::

    index/<basis id>/basis.parquet
    index/<basis id>/histograms/<slug>.parquet

Histograms carry the ``tensor_sha256`` of the layer that they were computed from. The SQL macros join on it, so a
histogram of other weights is never part of an answer. Files are moved into place under the lock of their model, and
only if the model is the one that was read. The basis in use is the one with the highest ``sequence``, not the newest by
the clock.

Everything here is derived data. A file that is empty, truncated, foreign, inconsistent or of another version is skipped
with a Python warning and rebuilt by the next process that may write (:meth:`Index.build`).
"""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Iterator, Sequence
from contextlib import ExitStack, closing, suppress
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from cnnfilterdb.analysis.bases import Bases, FittedBasis, basis_table, fitted_basis, histogram_table, ranges
from cnnfilterdb.analysis.fitting import basis_key, fit, hashes_of, model_histograms
from cnnfilterdb.core import paths
from cnnfilterdb.core.durable import make_folder, move, sync_folder, whole, writing
from cnnfilterdb.core.errors import CnnFilterDbError, CorruptError, LockedError
from cnnfilterdb.core.listing import entries
from cnnfilterdb.core.recipes import RECIPES
from cnnfilterdb.core.reports import Progress, first_line
from cnnfilterdb.core.runners import Threads
from cnnfilterdb.core.schema import BASES, HISTOGRAMS, indexable, papers_layers
from cnnfilterdb.core.sharding import Share
from cnnfilterdb.scan.steady import steady
from cnnfilterdb.stats import Basis, Histogram, histograms
from cnnfilterdb.store.fingerprints import Fingerprints
from cnnfilterdb.store.folder import Store
from cnnfilterdb.store.rows import sealed_rows
from cnnfilterdb.store.seals import write_sealed
from cnnfilterdb.store.writer import Writer, histogram_settings

__all__ = [
    "Index",
    "Projection",
    "read_basis",
]

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)

#: Models whose histograms may wait for the thread that writes them.
_WRITTEN_BEHIND = 8

_IDENTITY = ("model_id", "layer", "kernel", "stored", "tensor_sha256")


class Index(Bases):
    """The index of a database folder.

    Args:
        store: The folder.
    """

    def __init__(self, store: Store) -> None:
        self.store = store
        self.location = store.location
        self.path = store.path / paths.INDEX
        self.fingerprints = Fingerprints(store)
        self._skipped: dict[str, str] = {}  # bases that a warning has named
        self._unfit: dict[str, object] = {}  # kernel sizes without a basis, and the state in which that was found

    def bases(self) -> list[FittedBasis]:
        """All sound bases, the ones in use last. Others are skipped with one Python warning."""
        found, wrong = self._read_bases()
        if wrong and wrong != self._skipped:
            path, reason = next(iter(wrong.items()))
            more = f" (and {len(wrong) - 1} more)" if len(wrong) > 1 else ""
            warnings.warn(
                f"{self.store.path / path}{more}: skipped: {reason}; `cnnfilterdb index` rebuilds it", stacklevel=2
            )
        self._skipped = wrong
        return sorted(found, key=lambda fitted: (fitted.sequence, fitted.basis_id))

    def unsound(self) -> dict[str, str]:
        """What is wrong with the bases and with the files without rows; :meth:`damage` looks at all files.

        This runs before every question that needs the index, so files that have not changed are not read again.
        """
        empty = paths.EMPTY
        without_rows = {paths.basis_path(empty): BASES, paths.histograms_path(empty, empty): HISTOGRAMS}
        found = {path: _wrong_empty(*self._state(path), schema) for path, schema in without_rows.items()}
        return self._read_bases()[1] | {path: wrong for path, wrong in found.items() if wrong}

    def _read_bases(self) -> tuple[list[FittedBasis], dict[str, str]]:
        """The sound bases, and what is wrong with others: their folder -> what was found."""
        found: list[FittedBasis] = []
        wrong: dict[str, str] = {}
        for folder in sorted(self.store.path.glob(paths.basis_folder("*"))):
            if folder.name in (paths.EMPTY, paths.FINGERPRINTS):
                continue
            if folder.name.startswith(".") and not (folder / paths.BASIS).exists():
                continue  # hidden, and nothing that SQL reads
            fitted, reason = read_basis(*self._state(paths.basis_path(folder.name)))
            if fitted is not None:
                found.append(fitted)
            elif folder.exists():  # it is not being pruned at this moment
                wrong[paths.basis_folder(folder.name)] = reason
        return found, wrong

    def _state(self, path: str) -> tuple[Path, str, int, int]:
        """A file and its state. It never changes in place but by a rename, which gives it another time and inode."""
        try:
            status = (self.store.path / path).lstat()
        except OSError:
            return self.store.path, path, 0, 0
        return self.store.path, path, status.st_mtime_ns, status.st_ino

    def missing(self) -> dict[str, list[str]]:
        """Models whose layers are not yet in a basis: basis id -> model ids.

        Compares file names only; this runs before every query that needs the index. :meth:`damage` looks into the
        files, and the SQL macros compare the hashes of the weights.
        """
        gaps: dict[str, set[str]] = {}
        stored = self.store.filter_slugs()
        for fitted in self.bases():
            there = entries(self.store.path, paths.histograms_pattern(fitted.basis_id))
            present = {entry.name.removesuffix(".parquet") for _, entry, _ in there}
            if absent := stored.get(fitted.basis.kernel, set()) - present:
                gaps[fitted.basis_id] = absent
        names = {self.store.slug(model_id): model_id for model_id in self.store.model_ids()} if gaps else {}
        return {basis_id: sorted(names[slug] for slug in slugs if slug in names) for basis_id, slugs in gaps.items()}

    def unindexed(self) -> list[str]:
        """Kernel sizes that could have a basis but have none."""
        current = self.current()
        wanted = [kernel for kernel in self.store.kernels() if kernel not in current and indexable(kernel)]
        if wanted and (state := self.store.snapshot()) != self._unfit.get("state"):
            import pyarrow.compute as pc

            # For example sizes that only transposed layers have, on which nothing is fitted; checked once per state.
            layers = papers_layers(
                self.store.layers(columns=("model_id", "kernel", "kind", "dead", "stored", "filters"))
            )
            self._unfit = {"state": state}
            for kernel in wanted:
                if (pc.sum(layers.filter(pc.field("kernel") == kernel)["filters"]).as_py() or 0) < 2:
                    self._unfit[kernel] = True
        return [kernel for kernel in wanted if kernel not in self._unfit]

    def without_fingerprints(self) -> list[str]:
        """Models whose layers have no fingerprints yet. Compares file names only."""
        return self.fingerprints.missing()

    def damage(self) -> dict[str, str]:
        """What is wrong with the files of the index: path, relative to the database -> what was found.

        Reads every file. Histograms must be sealed, of the schema, and of the weights that their model has now.
        """
        found = self.unsound()
        sound = {fitted.basis_id for fitted in self._read_bases()[0]}
        hashes = hashes_of(self.store.layers(columns=_IDENTITY))
        committed = {self.store.slug(model_id): model_id for model_id in self.store.model_ids()}
        for path in sorted(self.store.path.glob(paths.histograms_pattern())):
            basis_id, relative = path.parent.parent.name, path.relative_to(self.store.path).as_posix()
            if basis_id in sound and path.stem in committed:
                reason = _wrong_histograms(self.store.path, relative, basis_id, committed[path.stem], hashes)
                if reason:
                    found[relative] = reason
        return found | self.fingerprints.damage(hashes) | self.store.gathered_damage()

    def build(
        self, *, refit: bool = False, fingerprints: bool = True, progress: Progress | None = None
    ) -> list[FittedBasis]:
        """Update the index: fit missing bases, and compute missing histograms and fingerprints.

        Sets damaged files aside, fits a basis for each kernel size without one (for every size with ``refit``) and
        adds the histograms of models that are missing in any basis.

        Args:
            refit: Fit new bases on all models that exist now. The older bases stay (:meth:`prune` removes them); one
                that was fitted on the same layers is reused.
            fingerprints: Add the fingerprints that are missing. They take longer than all the rest.
            progress: Called with what is being done, how much is done and how much there is.

        Returns:
            The bases that were fitted.

        Raises:
            LockedError: Another process is fitting the same basis.
        """
        self.store.recover_once()
        self._set_damaged_aside()
        if self.unsound():
            self.store.restore()
        for basis_id, model_ids in self.missing().items():
            self._fill(self.get(basis_id), model_ids, progress)
        kernels = self.store.kernels() if refit else self.unindexed()
        built = [self._fit(kernel, progress) for kernel in kernels if indexable(kernel)]
        if fingerprints:
            self.fingerprints.fill(progress)
        return [fitted for fitted in built if fitted is not None]

    def build_share(self, share: Share, *, progress: Progress | None = None) -> None:
        """Add what is missing of the models of a share: histograms in the bases that exist, and fingerprints.

        Several processes may each build another share; :meth:`build` fits the bases and adds the rest.

        Args:
            share: The share.
            progress: Called with what is being done, how much is done and how much there is.
        """
        self.store.recover_once()
        for basis_id, model_ids in self.missing().items():
            if own := share.among(model_ids):
                self._fill(self.get(basis_id), own, progress, f"{basis_id}-{share}")
        self.fingerprints.fill(progress, share=share)

    def prune(self) -> list[str]:
        """Remove the bases that are not in use, with their histograms.

        Returns:
            Their keys.

        Raises:
            LockedError: Another process is writing one of them.
        """
        used = {fitted.basis_id for fitted in self.current().values()}
        old = [fitted.basis_id for fitted in self.bases() if fitted.basis_id not in used]
        for basis_id in old:
            with self.store.staging(basis_id) as staging, writing(self.path):
                (self.path / basis_id).rename(staging / basis_id)
                sync_folder(self.path)
        return old

    def project(self, basis: Basis, columns: Sequence[npt.NDArray[np.float32]]) -> list[Histogram]:
        """Histograms of some filters in a basis, one per recipe."""
        return histograms(columns, basis, ranges(basis), basis.bins)

    def _set_damaged_aside(self) -> None:
        """Move damaged files to the quarantine, together, except those that another process holds."""
        if damage := self.damage():
            with ExitStack() as locks:
                free = set()
                for name in {_lock_of(path) for path in damage}:
                    with suppress(LockedError):
                        locks.enter_context(self.store.locked(name))
                        free.add(name)
                # Again, now that they cannot change, and from the disk: another process may have replaced a model while
                # they were read, and an error of the disk may have passed.
                read_basis.cache_clear()
                _wrong_empty.cache_clear()
                damage = self.damage()
                held = [path for path in damage if _lock_of(path) in free]
                more = f" and {len(held) - 1} more" if len(held) > 1 else ""
                self.store.quarantine(held, f"damaged index: {held[0]}{more} ({damage[held[0]]})" if held else "")

    def _fit(self, kernel: str, progress: Progress | None) -> FittedBasis | None:
        """Fit a basis on the layers of a kernel size, and write it with the histograms of every model in it."""
        fitted, model_ids = steady(self.store.snapshot, lambda: self._fitted(kernel, progress))
        if fitted is None:
            return None
        basis_id = fitted.basis_id
        if any(known.basis_id == basis_id for known in self.bases()):
            return self._renew(basis_id)
        # Staged outside `index/`, whose files every reader assumes to be complete; it appears by one rename, with the
        # histograms of every model in it.
        with self.store.staging(basis_id) as staging:
            if any(known.basis_id == basis_id for known in self.bases()):
                return None  # by another process, a moment ago
            place = staging / basis_id

            def histograms_of_all() -> dict[str, object]:
                written: dict[str, object] = {}
                there = [model_id for model_id in model_ids if self.store.has(model_id)]
                for slug, stamp, part in self._histograms(fitted, there, staging, progress):
                    written[slug] = stamp
                    with writing(self.path):
                        move(part, place / paths.HISTOGRAMS / f"{slug}.parquet")
                return written

            stamps = steady(self.store.snapshot, histograms_of_all)
            with writing(self.path):
                write_sealed(basis_table(fitted), place / paths.BASIS)
                for folder in (place / paths.HISTOGRAMS, place):
                    if folder.exists():
                        sync_folder(folder)
                make_folder(self.path)
                if (self.path / basis_id).exists():  # without a valid basis, or it would have been found above
                    self.store.quarantine(
                        [paths.basis_folder(basis_id)], f"{paths.basis_folder(basis_id)}: no valid basis in it"
                    )
                place.rename(self.path / basis_id)
                sync_folder(self.path)
            self._drop_stale(basis_id, stamps)
        return fitted

    def _fitted(self, kernel: str, progress: Progress | None) -> tuple[FittedBasis | None, list[str]]:
        """A basis of a kernel size, and the models that have layers of that size; of a known one without its range."""
        import pyarrow.compute as pc

        layers = self.store.layers().filter((pc.field("kernel") == kernel) & pc.field("stored"))
        chosen = papers_layers(layers)
        known = {fitted.basis_id for fitted in self.bases()}
        fitted = fit(
            self.store,
            chosen,
            kernel,
            sequence=self._next(),
            measured=basis_key(chosen, kernel) not in known,
            progress=progress,
        )
        return fitted, [] if fitted is None else sorted(set(layers["model_id"].to_pylist()))

    def _drop_stale(self, basis_id: str, stamps: dict[str, object]) -> None:
        """Remove the histograms of models that were replaced before the new basis was in place.

        From now on, a writer that replaces a model also moves its old histograms away. One that is moving files right
        now holds the lock.
        """
        for slug, stamp in stamps.items():
            if self.store.stamp(slug) != stamp:
                with suppress(LockedError), self.store.locked(slug):
                    if self.store.stamp(slug) != stamp:
                        (self.store.path / paths.histograms_path(basis_id, slug)).unlink(missing_ok=True)

    def _renew(self, basis_id: str) -> FittedBasis | None:
        """Reuse a basis that was fitted on exactly the present layers; None if it is in use already."""
        fitted = self.get(basis_id)
        if self.current()[fitted.basis.kernel].basis_id == basis_id:
            return None
        fitted = replace(fitted, created_at=datetime.now(UTC), sequence=self._next())
        self.put(fitted)
        return fitted

    def _next(self) -> int:
        return max((fitted.sequence for fitted in self.bases()), default=0) + 1

    def put(self, fitted: FittedBasis) -> None:
        """Write a basis without its histograms: one that exists already, or one of another database."""
        folder = self.store.path / paths.basis_folder(fitted.basis_id)
        if not paths.is_basis_id(fitted.basis_id):
            raise CorruptError(f"{fitted.basis_id!r:.100} is not the key of a basis; leave it out")
        with self.store.staging(fitted.basis_id) as staging, writing(folder):
            make_folder(folder)
            with whole(folder / paths.BASIS, staging) as part:
                write_sealed(basis_table(fitted), part)

    def _fill(
        self, fitted: FittedBasis, model_ids: Sequence[str], progress: Progress | None, name: str | None = None
    ) -> None:
        """Add the histograms of models to a basis; each is moved into place if its model is still the one read.

        Args:
            fitted: The basis.
            model_ids: The models.
            progress: As in :meth:`build`.
            name: Under which one process at a time fills it; by default the key of the basis.
        """
        with self.store.staging(name or fitted.basis_id) as staging:

            def fill() -> None:
                there = [model_id for model_id in model_ids if self.store.has(model_id)]
                for slug, stamp, part in self._histograms(fitted, there, staging, progress):
                    target = self.store.path / paths.histograms_path(fitted.basis_id, slug)
                    with suppress(LockedError), self.store.locked(slug):
                        if self.store.stamp(slug) == stamp and (self.path / fitted.basis_id).exists():
                            with writing(target):
                                move(part, target)
                                sync_folder(target.parent)

            steady(self.store.snapshot, fill)

    def _histograms(
        self, fitted: FittedBasis, model_ids: Sequence[str], staging: Path, progress: Progress | None
    ) -> Iterator[tuple[str, object, Path]]:
        """Write the histograms of models to a staging folder.

        Yields:
            For each model the name of its files, the stamp of the model that was read, and the file.
        """
        kernel = fitted.basis.kernel
        stamps = {model_id: self.store.stamp(self.store.slug(model_id)) for model_id in model_ids}
        hashes = hashes_of(self.store.layers(model_ids, columns=_IDENTITY))
        files = self.store.filter_files(kernel, model_ids)

        def write(found: tuple[str, pa.Table]) -> Path:
            model_id, table = found
            if model_id not in stamps:
                raise CorruptError(f"{model_id}: changed during the scan of its filters; try again")
            path = staging / f"{self.store.slug(model_id)}.parquet"
            with writing(self.path):
                write_sealed(table, path, **histogram_settings(table))
            return path

        # In a thread of its own, so that counting does not wait for the disk.
        tables = model_histograms(files, fitted, hashes, self.store.resources)
        with closing(tables), closing(Threads(1, repeats=False).run(write, tables, window=_WRITTEN_BEHIND)) as written:
            for number, ((model_id, _), path) in enumerate(written, 1):
                yield self.store.slug(model_id), stamps[model_id], path.result()
                if progress:
                    progress(f"histograms of {kernel}", number, len(files))


def _lock_of(path: str) -> str:
    """Under which lock a file of the index is moved: that of the model, or of the basis."""
    parts = paths.relative(path)
    return Path(parts[-1]).stem if len(parts) == 4 or parts[1] == paths.FINGERPRINTS else parts[1]


@lru_cache(maxsize=256)
def _wrong_empty(root: Path, path: str, changed: int, inode: int, schema: pa.Schema) -> str | None:
    """What is wrong with a file without rows."""
    try:
        return "has rows" if sealed_rows(root, path, schema).num_rows else None
    except (OSError, ValueError, pa.ArrowException, CnnFilterDbError) as error:
        return _reason(error)


@lru_cache(maxsize=256)
def read_basis(root: Path, path: str, changed: int, inode: int) -> tuple[FittedBasis | None, str]:
    """The basis of a file, or what is wrong with it.

    Args:
        root: The folder that the path is relative to.
        path: That of the basis; see :func:`cnnfilterdb.core.paths.basis_path`.
        changed: When it was changed, and
        inode: which file it is: one that has not changed is not read again.
    """
    basis_id = path.split("/")[1]
    try:
        if not paths.is_basis_id(basis_id):
            return None, f"{basis_id!r:.100} is not the key of a basis"
        table = sealed_rows(root, path, BASES)
        if table.num_rows != 1:
            return None, f"{table.num_rows} rows, expected 1"
        fitted = fitted_basis(_only_row(table))
    except (OSError, ValueError, pa.ArrowException, CnnFilterDbError) as error:
        return None, _reason(error)
    if fitted.basis_id != basis_id:
        return None, f"contains the basis {fitted.basis_id}"
    return fitted, ""


def _only_row(table: pa.Table) -> dict[str, Any]:
    """The row of a table of one row; for times, and to cast, pyarrow imports modules that take longer."""
    times = [field.name for field in table.schema if pa.types.is_timestamp(field.type)]
    row: dict[str, Any] = table.drop_columns(times).to_pylist()[0]
    for name in times:
        microseconds = table[name].chunk(0).view(pa.int64())[0].as_py()
        row[name] = None if microseconds is None else _EPOCH + timedelta(microseconds=microseconds)
    return row


def _reason(error: Exception) -> str:
    if isinstance(error, FileNotFoundError):
        return "missing"
    return first_line(error)


def _wrong_histograms(
    root: Path, path: str, basis_id: str, model_id: str, hashes: dict[tuple[str, int], str]
) -> str | None:
    try:
        table = sealed_rows(root, path, HISTOGRAMS)
    except (OSError, ValueError, pa.ArrowException, CnnFilterDbError) as error:
        return _reason(error)
    if set(table["model_id"].to_pylist()) - {model_id} or set(table["basis_id"].to_pylist()) - {basis_id}:
        return "contains histograms of another model or basis"
    if set(table["recipe"].to_pylist()) != set(RECIPES):
        return f"not the recipes {', '.join(RECIPES)}"
    for layer, digest in zip(table["layer"].to_pylist(), table["tensor_sha256"].to_pylist(), strict=True):
        if hashes.get((model_id, layer)) != digest:
            return f"layer {layer}: computed from other weights than {model_id} has now"
    return None


class Projection:
    """Projects a model that is being written on every existing basis, so that no later scan is needed.

    Args:
        index: The index.
        but: Keys of bases in which its histograms are known.
    """

    def __init__(self, index: Index, but: Iterable[str] = ()) -> None:
        self._index = index
        known = set(but)
        self._bases = [fitted for fitted in index.bases() if fitted.basis_id not in known]
        self._model_id = ""
        self._found: dict[str, list[tuple[int, list[Histogram]]]] = {}

    def begin(self, model_id: str) -> None:
        """Start a model."""
        self._model_id = model_id
        self._found = {}

    def add(self, layer: int, kernel: str, filters: npt.NDArray[np.float32]) -> None:
        """Add the filters (n, k) of one layer."""
        bases = [fitted for fitted in self._bases if fitted.basis.kernel == kernel]
        if not bases:
            return
        columns = list(np.ascontiguousarray(filters.T))
        for fitted in bases:
            found = self._index.project(fitted.basis, columns)
            self._found.setdefault(fitted.basis_id, []).append((layer, found))

    def finish(self, writer: Writer) -> None:
        """Pass the rows to the writer, which commits them together with the model."""
        for fitted in self._bases:
            if rows := self._found.get(fitted.basis_id):
                table = histogram_table(fitted.basis_id, self._model_id, fitted.basis, rows, writer.hashes)
                writer.add_index(fitted.basis_id, table)
