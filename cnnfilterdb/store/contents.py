"""What a database folder contains: models, layers and filters, and the files that views read; nothing is written."""

from __future__ import annotations

import time
import warnings
from collections.abc import Iterable, Sequence
from contextlib import suppress
from fnmatch import fnmatchcase
from pathlib import Path

import pyarrow as pa

from cnnfilterdb import sql
from cnnfilterdb.analysis.storage import Storage, Totals
from cnnfilterdb.core import paths
from cnnfilterdb.core.errors import CorruptError, unknown_model
from cnnfilterdb.core.listing import entries
from cnnfilterdb.core.schema import LAYERS, MODELS, kernel_order, kernel_shape, storable
from cnnfilterdb.store.commits import files_of, rows_set_aside
from cnnfilterdb.store.diagnosis import first_damage
from cnnfilterdb.store.gathered import Gathered
from cnnfilterdb.store.regular import Stamp, check_regular, regular_files, stamp_of
from cnnfilterdb.store.rows import damaged_file, read_rows

__all__ = ["Contents"]

# Seconds that a reader waits for a model that is being replaced, and between two looks
_REPLACING, _PAUSE = 1.0, 0.005


class Contents(Storage):
    """The committed contents of a folder.

    Args:
        path: The folder.

    Attributes:
        path: The folder, as an absolute path.
        location: The same as text, with links resolved.
        gathered: Copies of its small tables.
    """

    def __init__(self, path: Path) -> None:
        self.path = paths.root(path)
        self.location = str(self.path.resolve())
        self.gathered = Gathered(self.path)
        self._left: set[str] = set()  # what was set aside by writers that seem to have been killed

    @property
    def annotated(self) -> bool:
        """Whether a file of annotations exists."""
        return (self.path / paths.ANNOTATIONS).exists()

    damage = first_damage

    def definitions(self) -> dict[str, sql.Definition]:
        """Its views and macros."""
        return sql.definitions(self.kernels(), annotated=self.annotated, listed=self.listed())

    def listed(self, bases: Iterable[str] | None = None) -> dict[str, dict[str, int]]:
        """The files of the small tables (:meth:`cnnfilterdb.store.gathered.Gathered.files`).

        Args:
            bases: Those of which the histograms are listed; by default all.
        """
        return self.gathered.files(self._stamps(), self._basis_ids() if bases is None else bases)

    def small_files(self, tables: Iterable[str]) -> dict[str, dict[str, int]]:
        """The files of small tables that views read, and of how many models each is at most."""
        patterns = {
            paths.MODELS: paths.models_pattern(),
            paths.LAYERS: paths.layers_pattern(),
            paths.HISTOGRAMS: paths.histograms_pattern("*"),
            paths.FINGERPRINTS: paths.fingerprints_pattern(),
        }
        listed, found = self.listed(), dict[str, dict[str, int]]()
        for table in tables:
            self._warn_of_others(table)
            files: dict[str, int] = {}
            for name in listed:
                files |= listed[name] if name.partition("-")[0] == table else {}
            if not files:
                files = {path: 1 for path, _, _ in entries(self.path, patterns[table])}
            found[table] = {f"{self.location}/{file}": models for file, models in files.items()}
        return found

    def _warn_of_others(self, table: str) -> None:
        """Warn of a file beside those of models that is not read, because it is not named as they are."""
        if table not in (paths.MODELS, paths.LAYERS):
            return
        _, _, own = (paths.models_pattern() if table == paths.MODELS else paths.layers_pattern()).partition("/")
        others = sorted(
            entry.path for _, entry, _ in entries(self.path, f"{table}/*.parquet") if not fnmatchcase(entry.name, own)
        )
        if others:
            more = f" (and {len(others) - 1} more)" if len(others) > 1 else ""
            warnings.warn(
                f"{others[0]}{more}: is no file of the database, and is not read; move it elsewhere", stacklevel=5
            )

    def totals(self, basis_id: str) -> Totals | None:
        """The files that have the histograms of whole models in a basis, as absolute paths; None if there are none."""
        found = self.gathered.totals(self._stamps(), basis_id)
        return None if found is None else found.within(self.location)

    def doubt(self, error: Exception) -> bool:
        """Stop using gathered tables that an error names."""
        return self.gathered.doubt(error)

    def _stamps(self) -> dict[str, Stamp]:
        """The stamps of the models rows, by the names of their files."""
        found = {}
        for path, status in regular_files(self.path, paths.models_pattern()):
            stem = path.rpartition("/")[2].removesuffix(".parquet")
            found[stem] = stamp_of(status)
        return found

    def gathered_damage(self) -> dict[str, str]:
        """What is wrong with the gathered tables: path, relative to the database -> what was found."""
        return self.gathered.damage(self._stamps())

    def _basis_ids(self) -> list[str]:
        found = (path.split("/")[1] for path, _, _ in entries(self.path, paths.bases_pattern()))
        return sorted(filter(paths.is_basis_id, found))

    def slug(self, model_id: str) -> str:
        """Name of the files of a model; see :func:`cnnfilterdb.core.paths.slug`."""
        return paths.slug(model_id)

    def has(self, model_id: str) -> bool:
        """Whether the model is committed."""
        return (self.path / paths.models_path(paths.slug(model_id))).exists()

    def require(self, model_ids: Iterable[str]) -> None:
        """Check that models are committed.

        Raises:
            UnknownModelError: One of them is not; the message gives the nearest keys.
        """
        for model_id in model_ids:
            if not self.has(model_id):
                raise unknown_model(model_id, self.model_ids(), self.path)

    def model_ids(self) -> list[str]:
        """Keys of the committed models, sorted."""
        ids: list[str] = self.models(columns=["model_id"])["model_id"].to_pylist()
        return ids

    def models(self, *, columns: Sequence[str] | None = None) -> pa.Table:
        """The models table, sorted by ``model_id``.

        Args:
            columns: These columns only.
        """
        return self._table(paths.MODELS, MODELS, columns=columns)

    def layers(self, model_ids: Iterable[str] | None = None, *, columns: Sequence[str] | None = None) -> pa.Table:
        """The layers table, sorted by ``model_id`` and ``layer``.

        Args:
            model_ids: Of these models only.
            columns: These columns only. Without the moments the table is read several times as fast.

        Raises:
            UnknownModelError: One of them does not exist.
        """
        if model_ids is not None:
            model_ids = list(model_ids)
            self.require(model_ids)
        return self._table(paths.LAYERS, LAYERS, model_ids, columns)

    def kernels(self) -> list[str]:
        """Kernel sizes of which a committed model has filters, by number of weights, then by name; no other folders."""
        committed, found = self.slugs(), list[str]()
        for _, entry, _ in entries(self.path, paths.kernel_folder("*")):
            if storable(kernel := entry.name.partition("=")[2]):
                there = entries(self.path, paths.filters_pattern(kernel))
                if any(path.rpartition("/")[2].removesuffix(".parquet") in committed for path, _, _ in there):
                    found.append(kernel)
        return sorted(found, key=kernel_order)

    def filter_slugs(self) -> dict[str, set[str]]:
        """The slugs of the committed models that have filters, by kernel size."""
        committed, found = self.slugs(), dict[str, set[str]]()
        for path, _, _ in entries(self.path, paths.filters_pattern()):
            _, kernel, _, name = path.split("/")
            if (slug := name.removesuffix(".parquet")) in committed and storable(kernel := kernel.partition("=")[2]):
                found.setdefault(kernel, set()).add(slug)
        return found

    def filter_files(self, kernel: str, model_ids: Iterable[str] | None = None) -> list[Path]:
        """The Parquet files of a kernel size, of committed models only, sorted.

        Args:
            kernel: Kernel size, such as ``3x3``.
            model_ids: Of these models only; those without filters of that size have no file.

        Raises:
            UnknownModelError: One of them does not exist.
        """
        kernel_shape(kernel)  # no wildcard passes this check
        slugs = self._chosen(model_ids)
        return sorted(path for path in self.path.glob(paths.filters_pattern(kernel)) if path.stem in slugs)

    def files(self, slug: str) -> list[str]:
        """Files of a model that are in place, relative to the database, the models row first."""
        return files_of(self.path, slug)

    def stamp(self, slug: str) -> object:
        """Identifies one commit of a model among those of the same key; None if the model does not exist."""
        try:
            return stamp_of((self.path / paths.models_path(slug)).lstat())
        except FileNotFoundError:
            return None

    def snapshot(self) -> dict[str, object]:
        """The state of the database: the stamp of every models row and basis (:mod:`cnnfilterdb.scan.steady`).

        A model that is being replaced is waited for: without its row the model would seem to be removed. If its writer
        was killed, the next one that writes finishes the replacement; until then the model is absent.

        Raises:
            UnsafePathError: A file that a query would read is a named pipe, a device, or a link that leaves the
                folder.
        """
        end = time.monotonic() + _REPLACING
        while True:
            found = self._state()
            between = rows_set_aside(self.path) - self._left
            if between and time.monotonic() < end:
                time.sleep(_PAUSE)
                continue
            self._left |= between
            return found

    def _state(self) -> dict[str, object]:
        found = dict[str, object]()
        patterns = (paths.models_pattern(), paths.bases_pattern())
        for pattern in patterns:
            for path, status in regular_files(self.path, pattern):
                found[f"{self.path}/{path}"] = stamp_of(status)
        for pattern in paths.detail_patterns():
            check_regular(self.path, pattern)
        return found

    def slugs(self) -> set[str]:
        """Names of the files of the committed models."""
        names = (entry.name.removesuffix(".parquet") for _, entry, _ in entries(self.path, paths.models_pattern()))
        return set(filter(paths.is_slug, names))

    def _committed(self) -> dict[str, Stamp]:
        """The same, with what changes when a model is replaced."""
        found = {}
        for _, entry, _ in entries(self.path, paths.models_pattern()):
            slug = entry.name.removesuffix(".parquet")
            with suppress(FileNotFoundError):
                status = entry.stat(follow_symlinks=False)
                if paths.is_slug(slug):
                    found[slug] = stamp_of(status)
        return found

    def _chosen(self, model_ids: Iterable[str] | None) -> set[str]:
        if model_ids is None:
            return self.slugs()
        chosen = list(model_ids)
        self.require(chosen)
        return {paths.slug(model_id) for model_id in chosen}

    def _table(
        self, kind: str, schema: pa.Schema, model_ids: Iterable[str] | None = None, columns: Sequence[str] | None = None
    ) -> pa.Table:
        """One table of the committed models; read again if a model is removed or replaced meanwhile."""
        own = None if model_ids is None else {paths.slug(model_id): model_id for model_id in model_ids}
        alone = False
        while True:
            committed = self._committed()
            chosen = committed.keys() if own is None else committed.keys() & own.keys()
            # With the file without rows, there is a table even if there are no models.
            place = paths.models_path if kind == paths.MODELS else paths.layers_path
            files = [self.path / place(slug) for slug in (paths.EMPTY, *sorted(chosen))]
            # The rows of most models are read sooner from the few files that have those of all.
            gathered = None if alone or 2 * len(chosen) <= len(committed) else self.listed(()).get(kind)
            only = None if own is None or gathered is None else [own[slug] for slug in chosen]
            names = columns or schema.names
            try:
                return read_rows(self.path, map(self.path.joinpath, gathered or files), schema, names, only)
            except (OSError, ValueError, pa.ArrowException, CorruptError) as error:
                if gathered is not None:
                    self.doubt(CorruptError(str(error)))
                    alone = True
                    continue
                if isinstance(error, CorruptError):
                    raise
                if committed.items() <= self._committed().items():
                    raise damaged_file(self.path, files, schema, error) from error
