"""Weight files on this machine.

A model has the name of its file, without the suffix. In a folder that is its path from there, so the same folder gives
the same names each time, regardless of what else is listed.
"""

from __future__ import annotations

import glob
import os
import re
import warnings
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from functools import cache
from pathlib import Path, PurePath
from types import MappingProxyType

from cnnfilterdb.core.errors import DownloadError, UnknownModelError
from cnnfilterdb.core.schema import ModelFacts
from cnnfilterdb.ingest import formats
from cnnfilterdb.ingest.fetch.cache import ByteProgress, sha256_of
from cnnfilterdb.ingest.formats.companions import leads_out
from cnnfilterdb.ingest.sources import Source, register

__all__ = ["FilesSource", "suffixes"]

# Parts of a model in several files, which a file next to them lists: of TensorFlow.js, and of Hugging Face
_PARTS = (
    (re.compile(r".*-shard\d+of\d+(\.bin)?"), "*.json"),
    (re.compile(r".*-\d{5}-of-\d{5}\.\w+"), "*.index.json"),
)


@cache
def suffixes() -> frozenset[str]:
    """Suffixes by which weight files are found in folders: those of all formats. A file given by name may have any."""
    return frozenset(suffix for fmt in formats.registered().values() for suffix in fmt.suffixes)


@register
class FilesSource(Source):
    """Weight files on this machine, of which nothing but their bytes is known.

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     (Path(folder) / "thermal").mkdir()
        ...     _ = (Path(folder) / "thermal" / "net.pth.tar").write_bytes(b"weights")
        ...     FilesSource().list([folder])
        ['thermal/net']
    """

    name = "files"
    unsupported = MappingProxyType({"partial": "its files are already on this machine"})

    def __init__(self, *, folder: str | Path | None = None, offline: bool = False) -> None:
        """Nothing is read yet.

        Args:
            folder: Base of relative paths and globs; the current folder by default.
            offline: Accepted, because this source never accesses the network.
        """
        self._folder = None if folder is None else Path(folder).expanduser()
        self._paths: dict[str, Path] = {}

    def list(self, patterns: Sequence[str] = ()) -> Sequence[str]:
        """Names of the weight files that paths, folders and globs match; nothing without any.

        A folder means all files below it that have one of the :func:`suffixes`, except hidden ones and the parts of
        models in several files; ``**`` in a glob matches any number of folders. Links that lead out of the folder, or
        of the folders before the first wildcard, are left out with a Python warning. The names are valid for
        :meth:`describe` and :meth:`resolve` of this object.

        Raises:
            UnknownModelError: A pattern matches no weight file.
        """
        found: dict[Path, tuple[str, ...]] = {}
        for pattern in [patterns] if isinstance(patterns, str) else patterns:
            files = dict(_expand(Path(pattern).expanduser(), self._folder))
            if not files:
                if not glob.has_magic(pattern) and not _below(self._folder, Path(pattern).expanduser()).exists():
                    raise UnknownModelError(f"files: {pattern!r} does not exist; expected a file, folder or pattern")
                raise UnknownModelError(
                    f"files: {pattern!r} is not a weight file and contains none; "
                    f"folders and globs are searched for {' '.join(sorted(suffixes()))}"
                )
            for path, parts in files.items():
                found.setdefault(path, parts)
        named = _names(found)
        self._paths |= named
        return [*named]

    def describe(self, name: str) -> ModelFacts:
        """The SHA-256 and the file name. Parent folders are omitted for privacy.

        Raises:
            UnknownModelError: No file has that name.
            DownloadError: The file cannot be read.
        """
        path = self.resolve(name)
        try:
            return ModelFacts(weights_sha256=sha256_of(path), url=path.name)
        except OSError as error:
            raise DownloadError(f"{path}: cannot be read: {error.strerror or error}") from error

    def resolve(self, name: str, progress: ByteProgress | None = None) -> Path:
        """The path of the file.

        Raises:
            UnknownModelError: No regular file has that name.
        """
        path = self._paths.get(name) or _below(self._folder, Path(name))
        if not path.is_file():
            raise UnknownModelError(f"files: no file {name!r}; pass its path, or list its folder first")
        return path

    def download_size(self, name: str) -> int | None:
        """Nothing is downloaded."""
        return 0


def _below(folder: Path | None, path: Path) -> Path:
    """A path from the user, relative to the folder that the user chose."""
    return path if folder is None else folder / path


def _expand(pattern: Path, folder: Path | None) -> Iterator[tuple[Path, tuple[str, ...]]]:
    """Files that a pattern matches, each with the parts of its name."""
    given = _below(folder, pattern)
    if given.is_file():
        yield _absolute(given), (given.name,)
    elif given.is_dir():
        for path in _staying(given, _weight_files(given)):
            yield _absolute(path), path.relative_to(given).parts
    elif glob.has_magic(str(pattern)):
        fixed = _fixed(given, folder)
        found = sorted(fixed.glob(str(given.relative_to(fixed))))
        for path in _staying(fixed, (path for path in found if _is_weights(path.relative_to(fixed)))):
            if _is_main(path):
                yield _absolute(path), path.relative_to(fixed).parts


def _staying(folder: Path, files: Iterable[Path]) -> Iterator[Path]:
    """The files whose content is in the folder; a warning names the others."""
    outside: list[Path] = []
    for path in files:
        if leads_out(folder, path):
            outside.append(path)
        else:
            yield path
    if outside:
        warnings.warn(
            f"{outside[0]}: a link that leads out of {folder}, left out"
            + (f" like {len(outside) - 1:,} others" if len(outside) > 1 else "")
            + "; a file is read through a link if it is given by its own name",
            stacklevel=2,
        )


def _fixed(pattern: Path, folder: Path | None) -> Path:
    """The folders before the first wildcard; wildcards in the user's folder are literal."""
    start = 0 if folder is None else len(folder.parts)
    parts = pattern.parts[:-1]
    wild = next((i for i, part in enumerate(parts) if i >= start and glob.has_magic(part)), len(parts))
    return Path(*parts[:wild])


def _weight_files(folder: Path) -> Iterator[Path]:
    for parent, folders, files in os.walk(folder):
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        found = (Path(parent) / name for name in sorted(files) if _is_weights(Path(name)))
        yield from (path for path in found if _is_main(path))


def _is_weights(path: Path) -> bool:
    return path.suffix.lower() in suffixes() and not any(part.startswith(".") for part in path.parts)


def _is_main(path: Path) -> bool:
    """Whether a model is read from a file found in a folder: not a part of one, nor another file beside it."""
    if not path.is_file():
        return False
    if any(name.fullmatch(path.name) and any(path.parent.glob(listing)) for name, listing in _PARTS):
        return False
    if path.suffix.lower() in {".index", ".pb"} and (path.parent.parent / "saved_model.pb").is_file():
        return False  # the variables of a SavedModel
    if path.suffix.lower() == ".bin" and path.with_suffix(".xml").is_file():
        return False  # the weights of an OpenVINO model
    if path.suffix.lower() not in {".json", ".xml"}:
        return True
    # Most files with this suffix are settings: only those that a format recognises are weights.
    return formats.is_weight_file(path)


def _absolute(path: Path) -> Path:
    # Links are kept: a file of a content-addressed store has its readable name in the link.
    return Path(os.path.abspath(path))  # noqa: PTH100


def _names(found: dict[Path, tuple[str, ...]]) -> dict[str, Path]:
    """A name for each file: its path without the suffix, else with it, else with as many folders as it takes."""
    names = {path: "/".join((*parts[:-1], _stem(parts[-1]))) for path, parts in found.items()}
    folders = 0
    while clashes := {name for name, count in Counter(names.values()).items() if count > 1}:
        for path, name in names.items():
            if name in clashes:
                names[path] = "/".join(_parts(path)[-len(found[path]) - folders :])
        folders += 1
    return {name: path for path, name in names.items()}


def _parts(path: PurePath) -> tuple[str, ...]:
    r"""The parts of an absolute path, its drive included, so that no two files have the same.

    >>> from pathlib import PurePosixPath, PureWindowsPath
    >>> _parts(PureWindowsPath(r"C:\x\a.pt")), _parts(PurePosixPath("/x/a.pt"))
    (('C', 'x', 'a.pt'), ('x', 'a.pt'))
    """
    drive = path.drive.strip(":\\/").replace("\\", "/")
    return (*([drive] if drive else []), *path.relative_to(path.anchor).parts)


def _stem(name: str) -> str:
    """A file name without its suffixes: ``net.pth.tar`` has two.

    >>> _stem("net.pth.tar"), _stem("resnet18.a1_in1k.pth")
    ('net', 'resnet18.a1_in1k')
    """
    path = Path(name)
    while path.suffix.lower() in suffixes():
        path = path.with_suffix("")
    return path.name
