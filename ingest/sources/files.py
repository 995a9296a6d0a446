"""Weight files that are on disk already.

A model has the name of its file, without the suffix. In a folder that is its path from there, so that the same folder
gives the same names each time, whatever else is in it.
"""

from __future__ import annotations

import glob
import os
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path

from cnnfilterdb.errors import DownloadError, UnknownModelError
from cnnfilterdb.ingest.fetch.cache import sha256_of
from cnnfilterdb.ingest.network.layers import Weights
from cnnfilterdb.ingest.sources import Progress, register
from cnnfilterdb.schema import ModelFacts

__all__ = ["SUFFIXES", "FilesSource"]

#: Suffixes by which weight files are found in folders. A file that is named itself may have any.
SUFFIXES = frozenset(
    {
        ".bin",
        ".ckpt",
        ".h5",
        ".hdf5",
        ".jit",
        ".keras",
        ".onnx",
        ".pickle",
        ".pkl",
        ".pt",
        ".pth",
        ".safetensors",
        ".tar",
        ".torchscript",
    }
)


@register
class FilesSource:
    """Weight files of this machine. It knows nothing of them but their bytes.

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     (Path(folder) / "thermal").mkdir()
        ...     _ = (Path(folder) / "thermal" / "net.pth.tar").write_bytes(b"weights")
        ...     FilesSource().list([folder])
        ['thermal/net']
    """

    name = "files"

    def __init__(self) -> None:
        self._paths: dict[str, Path] = {}

    def list(self, patterns: Sequence[str] = ()) -> Sequence[str]:
        """Names for the weight files that paths, folders and globs stand for; nothing without any.

        A folder stands for all files below it that have one of the :data:`SUFFIXES`, hidden ones left out; ``**`` in a
        glob for any number of folders. The names are good for :meth:`describe` and :meth:`resolve` of this object.

        Raises:
            UnknownModelError: A pattern stands for no weight file.
        """
        found: dict[Path, tuple[str, ...]] = {}
        for pattern in patterns:
            files = dict(_expand(pattern))
            if not files:
                raise UnknownModelError(
                    f"files: {pattern!r} is no weight file and holds none; "
                    f"folders and globs are searched for {' '.join(sorted(SUFFIXES))}"
                )
            for path, parts in files.items():
                found.setdefault(path, parts)
        named = _names(found)
        self._paths |= named
        return list(named)

    def describe(self, name: str) -> ModelFacts:
        """The SHA-256 and the file name. Folders are not told, as they are nobody else's business.

        Raises:
            UnknownModelError: No file has that name.
            DownloadError: The file cannot be read.
        """
        path = self._path(name)
        try:
            return ModelFacts(weights_sha256=sha256_of(path), url=path.name)
        except OSError as error:
            raise DownloadError(f"{path}: cannot be read: {error.strerror or error}") from error

    def resolve(self, name: str, progress: Progress | None = None) -> Path:
        """The path of the file.

        Raises:
            UnknownModelError: No file has that name.
        """
        return self._path(name)

    def enrich(self, name: str, weights: Weights) -> Weights:
        """The layers as the file tells them."""
        return weights

    def _path(self, name: str) -> Path:
        path = self._paths.get(name, Path(name))
        if not path.is_file():
            raise UnknownModelError(f"files: there is no file {name!r}; give its path, or list its folder first")
        return path


def _expand(pattern: str) -> Iterator[tuple[Path, tuple[str, ...]]]:
    """Files that a pattern stands for, each with the parts of its name."""
    given = Path(pattern).expanduser()
    if given.is_file():
        yield _absolute(given), (given.name,)
    elif given.is_dir():
        for path in _below(given):
            yield _absolute(path), path.relative_to(given).parts
    elif glob.has_magic(pattern):
        fixed = _fixed(given)
        for path in sorted(fixed.glob(str(given.relative_to(fixed)))):
            if _is_weights(path.relative_to(fixed)) and path.is_file():
                yield _absolute(path), path.relative_to(fixed).parts


def _fixed(pattern: Path) -> Path:
    """The folders before the first wildcard."""
    parts = pattern.parts[:-1]
    wild = next((i for i, part in enumerate(parts) if glob.has_magic(part)), len(parts))
    return Path(*parts[:wild])


def _below(folder: Path) -> Iterator[Path]:
    for parent, folders, files in os.walk(folder):
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        yield from (Path(parent) / name for name in sorted(files) if _is_weights(Path(name)))


def _is_weights(path: Path) -> bool:
    return path.suffix.lower() in SUFFIXES and not any(part.startswith(".") for part in path.parts)


def _absolute(path: Path) -> Path:
    # Links are kept: a file of a content-addressed store has its telling name in the link.
    return Path(os.path.abspath(path))  # noqa: PTH100


def _names(found: dict[Path, tuple[str, ...]]) -> dict[str, Path]:
    """A name for each file: its path without the suffix, else with it, else with as many folders as it takes."""
    names = {path: "/".join((*parts[:-1], _stem(parts[-1]))) for path, parts in found.items()}
    folders = 0
    while clashes := {name for name, count in Counter(names.values()).items() if count > 1}:
        for path, name in names.items():
            if name in clashes:
                parts = path.relative_to(path.anchor).parts
                names[path] = "/".join(parts[-len(found[path]) - folders :])
        folders += 1
    return {name: path for path, name in names.items()}


def _stem(name: str) -> str:
    """A file name without its suffixes: ``net.pth.tar`` has two.

    >>> _stem("net.pth.tar"), _stem("resnet18.a1_in1k.pth")
    ('net', 'resnet18.a1_in1k')
    """
    path = Path(name)
    while path.suffix.lower() in SUFFIXES:
        path = path.with_suffix("")
    return path.name
