"""The folder of what is derived of several parts together: the basis in common, histograms and fingerprints.

It is in the cache of the user, under a name that is a hash of the locations of the parts, and it has the form of the
index of a database folder, with one file of histograms for some models of a part. Everything in it can be computed
again: a file that is damaged is, and the folder may be deleted at any time. Where the cache cannot be written, a
temporary folder takes its place.
"""

from __future__ import annotations

import hashlib
import shutil
import tempfile
import warnings
from collections.abc import Iterable
from contextlib import suppress
from functools import lru_cache
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from cnnfilterdb.analysis.bases import FittedBasis, basis_table
from cnnfilterdb.core import paths
from cnnfilterdb.core.caching import cache_folder
from cnnfilterdb.core.durable import make_folder, replacing, writing
from cnnfilterdb.core.errors import DatabaseError
from cnnfilterdb.core.schema import BASES, FINGERPRINTS, HISTOGRAMS
from cnnfilterdb.store.fingerprints import FINGERPRINT_ENCODING
from cnnfilterdb.store.index import read_basis
from cnnfilterdb.store.seals import sealed, write_sealed
from cnnfilterdb.store.writer import histogram_settings

__all__ = ["DerivedFolder"]


class DerivedFolder:
    """The folder of what is derived of parts.

    Args:
        locations: Where the parts are.
    """

    def __init__(self, locations: Iterable[str]) -> None:
        self._name = hashlib.sha256("\n".join(sorted(locations)).encode("utf-8", "surrogatepass")).hexdigest()[:16]
        self._reset()

    def _reset(self) -> None:
        self._path: Path | None = None
        self._temporary: tempfile.TemporaryDirectory[str] | None = None

    def __getstate__(self) -> dict[str, Any]:
        return {"_name": self._name}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._reset()

    @property
    def path(self) -> Path:
        """The folder; it is made on first use."""
        if self._path is None:
            self._path = cache_folder().absolute() / paths.PARTS / self._name
            try:
                self._make()
            except (DatabaseError, OSError) as error:
                warnings.warn(f"{error}; what is derived of the parts is computed again the next time", stacklevel=2)
                self._temporary = tempfile.TemporaryDirectory(prefix="cnnfilterdb-parts-", ignore_cleanup_errors=True)
                self._path = Path(self._temporary.name).resolve()
        return self._path

    def _make(self) -> None:
        assert self._path is not None
        with writing(self._path):
            make_folder(self._path)
            self._path = self._path.resolve()
        self._write_empty(self._path)

    def _write_empty(self, root: Path) -> None:
        for path, schema in self._empty(root):
            if not _is_sealed(path, schema):
                _write(schema.empty_table(), path)

    def _empty(self, root: Path) -> list[tuple[Path, pa.Schema]]:
        empty = paths.EMPTY
        files = {
            paths.basis_path(empty): BASES,
            paths.histograms_path(empty, empty): HISTOGRAMS,
            paths.fingerprints_path(empty): FINGERPRINTS,
        }
        return [(paths.inside(root, name), schema) for name, schema in files.items()]

    def empty_files(self) -> list[str]:
        """The files of bases, of histograms and of fingerprints without rows, which are written where missing."""
        root = self.path
        self._write_empty(root)
        return [str(path) for path, _ in self._empty(root)]

    def fitted(self, basis_id: str) -> FittedBasis | None:
        """A basis that was fitted on all parts; None if it is not there, or damaged.

        Bases that belong to a part are kept apart: a stranger can give a basis any key.
        """
        self._adopt(f"{paths.FITTED}/{paths.basis_path(basis_id)}")
        return _basis(self.path / paths.FITTED, basis_id)

    def put_fitted(self, fitted: FittedBasis) -> None:
        """Keep a basis that was fitted on all parts."""
        _write(basis_table(fitted), paths.inside(self.path / paths.FITTED, paths.basis_path(fitted.basis_id)))

    def _adopt(self, name: str) -> None:
        """Copy a file that is missing from what was derived of other parts: its name says what it contains."""
        target = paths.inside(self.path, name)
        if target.exists() or self._temporary is not None:
            return
        for other in sorted(self.path.parent.glob(f"*/{name}")):
            with suppress(OSError, DatabaseError):
                make_folder(target.parent)
                with replacing(target) as part:
                    shutil.copyfile(other, part)
                return

    def put_basis(self, fitted: FittedBasis) -> str:
        """Write a basis, unless it is there.

        Returns:
            Its file.
        """
        path = paths.inside(self.path, paths.basis_path(fitted.basis_id))
        known = _basis(self.path, fitted.basis_id)
        if known is None or basis_table(known) != basis_table(fitted):
            _write(basis_table(fitted), path)
        return str(path)

    def histograms(self, basis_id: str, name: str) -> Path | None:
        """A file of histograms; None if it is not there, or damaged."""
        self._adopt(paths.histograms_path(basis_id, name))
        path = self._histograms(basis_id, name)
        return path if _is_sealed(path, HISTOGRAMS) else None

    def put_histograms(self, basis_id: str, name: str, table: pa.Table) -> Path:
        """Write a file of histograms, whose rows are sorted by recipe."""
        path = self._histograms(basis_id, name)
        _write(table, path, **histogram_settings(table))
        return path

    def fingerprints(self, name: str) -> Path | None:
        """A file of fingerprints; None if it is not there, or damaged."""
        self._adopt(paths.fingerprints_path(name))
        path = paths.inside(self.path, paths.fingerprints_path(name))
        return path if _is_sealed(path, FINGERPRINTS) else None

    def put_fingerprints(self, name: str, table: pa.Table) -> Path:
        """Write a file of fingerprints."""
        path = paths.inside(self.path, paths.fingerprints_path(name))
        _write(table, path, **FINGERPRINT_ENCODING)
        return path

    def _histograms(self, basis_id: str, name: str) -> Path:
        return paths.inside(self.path, paths.histograms_path(basis_id, name))


def _basis(root: Path, basis_id: str) -> FittedBasis | None:
    name = paths.basis_path(basis_id)
    try:
        status = paths.inside(root, name).stat()
    except OSError:
        return None
    return read_basis(root, name, status.st_mtime_ns, status.st_ino)[0]


def _write(table: pa.Table, path: Path, **settings: Any) -> None:
    with writing(path):
        make_folder(path.parent)
    with replacing(path) as part:
        write_sealed(table, part, **settings)


def _is_sealed(path: Path, schema: pa.Schema) -> bool:
    try:
        status = path.stat()
        return _checked(path, schema, status.st_mtime_ns, status.st_ino)
    except OSError:
        return False


@lru_cache(maxsize=4096)
def _checked(path: Path, schema: pa.Schema, changed: int, inode: int) -> bool:
    """Whether a file is what this package wrote; one that has not changed is not read again."""
    try:
        return bool(sealed(path)) and pq.read_schema(path).equals(schema)
    except (OSError, ValueError, pa.ArrowException):
        return False
