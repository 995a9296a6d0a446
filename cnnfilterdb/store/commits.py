"""Changes of a database that are made completely or not at all, even if a process is killed at any time.

A change is prepared in a staging folder, ``.staging/<name>-<random>/``, and *decided* by one rename: the commit record
``commit.json`` appears in it, flushed to the disk like everything that it needs. Then files are moved one by one, by
renames that can be repeated: those that are replaced go to ``replaced/`` in the staging folder, the models row first,
so that no reader sees a row of one model beside the filters of another; then the new ones take their places, the models
row last. A model exists when its models row exists. At the end the staging folder is removed, the record first.

After a kill, the next process that writes finds the staging folder (:meth:`cnnfilterdb.store.folder.Store.recover`)
and, under the lock of its name, repeats the moves if a record exists, and discards the folder otherwise.
When a move fails with an error, the change is undone: the record is renamed to ``undo.json`` and everything moves back,
which a recovery repeats too.

A record is read from the disk, perhaps from an untrusted database: it is validated before anything is moved
(:meth:`Commit.read`). Every path must be one that the package itself would give to that model.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from cnnfilterdb.core import paths
from cnnfilterdb.core.durable import move, sha256, sync_folder, whole
from cnnfilterdb.core.errors import CorruptError, UnsafePathError
from cnnfilterdb.core.listing import entries
from cnnfilterdb.core.schema import is_model_id, storable

__all__ = [
    "Commit",
    "Removal",
    "decided",
    "discard",
    "discard_removed",
    "files_of",
    "finish",
    "rows_set_aside",
    "undo",
    "unfinished",
]

_REPLACED = "replaced"
_UNDO = "undo.json"
_MAX_RECORD = 16 << 20  # bytes; a model has one file per kernel size and basis


@dataclass(frozen=True, slots=True)
class Commit:
    """A decided change of one model.

    Attributes:
        model_id: Its key.
        files: Its new files, relative to the database, the models row last.
    """

    model_id: str
    files: tuple[str, ...]

    @property
    def slug(self) -> str:
        """Name of the files of the model."""
        return paths.slug(self.model_id)

    def decide(self, folder: Path) -> None:
        """Write the record: from now on the change will be completed, not discarded."""
        _write(folder, asdict(self))

    @classmethod
    def read(cls, folder: Path) -> Commit:
        """Read and validate the record in a staging folder.

        Raises:
            CorruptError: It is not a record that this package would write for this folder.
        """
        record, where = _read(folder)
        model_id, files = record.get("model_id"), record.get("files")
        if not isinstance(model_id, str) or not isinstance(files, list) or set(record) != {"model_id", "files"}:
            raise CorruptError(f"{where}: not the record of a commit; expected model_id and files")
        slug, source = paths.slug(model_id), model_id.partition("/")[0]
        if not is_model_id(model_id) or folder.name.rpartition("-")[0] != slug:
            raise CorruptError(f"{where}: the record is of {model_id!r:.200}, which is not the model of this folder")
        for file in files:
            if not _belongs(file, source, slug):
                raise CorruptError(f"{where}: {file!r:.200} is not a file of {model_id!r:.200}")
        if len(set(files)) != len(files) or not files or files[-1] != paths.models_path(slug):
            raise CorruptError(f"{where}: the files do not end in {paths.models_path(slug)}, each once")
        return cls(model_id, tuple(files))

    def apply(self, root: Path, folder: Path) -> None:
        """Move the files into place. May be repeated after a kill; undone when a move fails.

        Raises:
            OSError: A file could not be moved; nothing has changed then.
        """
        old = [file for file in files_of(root, self.slug) if file not in self.files or (folder / file).exists()]
        moved: list[str] = []
        try:
            _set_aside(root, folder, old)
            for file in self.files:
                if os.path.lexists(folder / file):
                    if file == self.files[-1]:
                        _sync({(root / file).parent for file in moved})
                    move(paths.regular(folder, file), paths.inside(root, file))
                    moved.append(file)
            _sync({(root / file).parent for file in [self.files[-1], *old] if (root / file).parent.exists()})
        except (OSError, UnsafePathError):
            _begin_undo(folder)
            self.revert(root, folder)
            (folder / _UNDO).unlink()
            raise

    def revert(self, root: Path, folder: Path) -> None:
        """Move the new files back into the staging folder and the old ones into place. May be repeated after a kill."""
        for file in reversed(self.files):
            # The files without rows may be in use by others; they do no harm.
            if Path(file).stem == self.slug and not (folder / file).exists() and (root / file).exists():
                move(root / file, folder / file)
        _put_back(root, folder)


@dataclass(frozen=True, slots=True)
class Removal:
    """A decided removal of models.

    Attributes:
        rows: SHA-256 of the models row of each: model id -> hash. A model of the same key that was written afterwards
            has another row and is kept.
    """

    rows: dict[str, str]

    def decide(self, folder: Path) -> None:
        """Write the record: from now on the removal will be completed, not discarded."""
        _write(folder, asdict(self))

    @classmethod
    def read(cls, folder: Path) -> Removal:
        """Read and validate the record in a staging folder.

        Raises:
            CorruptError: It is not a record that this package would write.
        """
        record, where = _read(folder)
        rows = record.get("rows")
        if (
            not isinstance(rows, dict)
            or set(record) != {"rows"}
            or not all(isinstance(value, str) for value in rows.values())
        ):
            raise CorruptError(f"{where}: not the record of a removal; expected rows")
        return cls(rows)

    def apply(self, root: Path, folder: Path, model_id: str) -> None:
        """Set the files of one of the models aside, under its lock. May be repeated after a kill.

        Raises:
            OSError: A file could not be moved; :meth:`revert` undoes what was done.
        """
        row = root / paths.models_path(paths.slug(model_id))
        if not row.exists() or sha256(row) == self.rows[model_id]:
            old = files_of(root, paths.slug(model_id))
            _set_aside(root, folder, old)
            _sync({(root / file).parent for file in old})

    def revert(self, root: Path, folder: Path) -> None:
        """Move the files of all models back into place. May be repeated after a kill."""
        _put_back(root, folder)


def finish(root: Path, folder: Path) -> str | None:
    """After a kill, under the lock of a model: complete or undo its commit, or discard it if it was not decided.

    Returns:
        What is wrong with the record, in which case the folder is left unchanged.
    """
    try:
        if decided(folder):
            commit = Commit.read(folder)
            if os.path.lexists(folder / _UNDO):
                commit.revert(root, folder)
            else:
                commit.apply(root, folder)
    except (CorruptError, UnsafePathError, FileNotFoundError) as error:
        return str(error)
    discard(folder)
    return None


def undo(root: Path, folder: Path, removal: Removal) -> None:
    """Undo a removal that could not be finished."""
    _begin_undo(folder)
    removal.revert(root, folder)
    discard(folder)


def unfinished(folder: Path) -> bool | None:
    """Whether a removal is to be finished (True) or undone (False); None when it was not decided."""
    if (folder / _UNDO).exists():
        return False
    return True if (folder / paths.COMMIT).exists() else None


def decided(folder: Path) -> bool:
    """Whether a staging folder has a record, and so must not be discarded."""
    return os.path.lexists(folder / paths.COMMIT) or os.path.lexists(folder / _UNDO)


def discard_removed(folder: Path) -> None:
    """Remove what a finished removal has set aside, the record last, so that a repeated removal finds it."""
    shutil.rmtree(folder / _REPLACED, ignore_errors=True)
    discard(folder)


def discard(folder: Path) -> None:
    """Remove a staging folder, the record first: a folder with one is a decided change."""
    if decided(folder):
        for name in (paths.COMMIT, _UNDO):
            (folder / name).unlink(missing_ok=True)
        # A record that came back after a power loss would be followed again. The change itself is complete.
        with suppress(OSError):
            sync_folder(folder)
    shutil.rmtree(folder, ignore_errors=True)


def files_of(root: Path, slug: str) -> list[str]:
    """Files of a model that are in place, relative to the database, the models row first."""
    known = [root / paths.models_path(slug), root / paths.layers_path(slug)]
    files = [path for path in known if os.path.lexists(path)]
    for pattern in (
        paths.filters_pattern(slug=slug),
        paths.histograms_pattern(slug=slug),
        paths.fingerprints_pattern(slug),
    ):
        files += sorted(root.glob(pattern))
    return [path.relative_to(root).as_posix() for path in files]


def rows_set_aside(root: Path) -> set[str]:
    """The models rows that are set aside right now, while the rows that replace them are not in place yet."""
    found = set()
    for path, _, linked in entries(root, f"{paths.STAGING}/*/{_REPLACED}/{paths.models_pattern()}"):
        folder, _, row = path.partition(f"/{_REPLACED}/")
        if not linked and (root / folder / row).exists():
            found.add(path)
    return found


def _belongs(file: Any, source: str, slug: str) -> bool:
    """Whether a path is one that the package gives to a file of a model."""
    if file in (paths.models_path(slug), paths.layers_path(slug)):
        return True
    try:
        parts = paths.relative(file)
        if len(parts) != 4:
            return False
        if paths.is_indexed(file):
            return paths.is_basis_id(parts[1]) and file == paths.histograms_path(parts[1], slug)
        kernel = parts[1].removeprefix("kernel=")
        return storable(kernel) and file in (paths.filters_path(kernel, source, slug), paths.empty_filters_path(kernel))
    except UnsafePathError:
        return False


def _write(folder: Path, record: dict[str, Any]) -> None:
    try:
        with whole(folder / paths.COMMIT, folder) as part:
            part.write_text(json.dumps(record), encoding="utf-8")
    except OSError:
        (folder / paths.COMMIT).unlink(missing_ok=True)  # renamed, but perhaps not yet on the disk
        raise


def _read(folder: Path) -> tuple[dict[str, Any], str]:
    name = _UNDO if (folder / _UNDO).exists() else paths.COMMIT
    where = f"{folder / name}"
    path = paths.regular(folder, name)
    try:
        if path.stat().st_size > _MAX_RECORD:
            raise CorruptError(f"{where}: {path.stat().st_size:,} bytes, larger than any commit record")
        record = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise CorruptError(f"{where}: not the record of a commit ({type(error).__name__})") from error
    if not isinstance(record, dict):
        raise CorruptError(f"{where}: not the record of a commit; expected an object")
    return record, where


def _begin_undo(folder: Path) -> None:
    (folder / paths.COMMIT).replace(folder / _UNDO)


def _set_aside(root: Path, folder: Path, files: Iterable[str]) -> None:
    """Set files aside; a models row, which is the first of them, is gone from the disk before the others are."""
    for file in files:
        move(paths.inside(root, file), folder / _REPLACED / file)
        if file == paths.models_path(Path(file).stem):
            sync_folder((root / file).parent)


def _put_back(root: Path, folder: Path) -> None:
    """Move what was set aside back into place, the models rows last."""
    aside = folder / _REPLACED
    files = [path.relative_to(aside).as_posix() for path in aside.rglob("*") if not path.is_dir()]
    for file in sorted(files, key=lambda file: paths.relative(file)[0] == "models"):
        if file == paths.models_path(Path(file).stem):
            _sync({(root / other).parent for other in files})
        move(aside / file, paths.inside(root, file))
    _sync({(root / file).parent for file in files})


def _sync(folders: Iterable[Path]) -> None:
    for folder in folders:
        if folder.exists():
            sync_folder(folder)
