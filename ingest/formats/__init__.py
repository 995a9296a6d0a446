"""Weight file formats: tensors out of files, safely.

A format is one module with one small class, registered by :func:`register`. :func:`read` looks at the first bytes of a
file, never at its name alone, and passes it to the matching format. No format executes code in a file.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from functools import reduce
from importlib import import_module
from pathlib import Path
from typing import Protocol, TypeVar

from cnnfilterdb.catalog.entries import FORMATS
from cnnfilterdb.core.errors import CnnFilterDbError, WeightFileError
from cnnfilterdb.core.reports import counted, escaped
from cnnfilterdb.ingest.formats import limits
from cnnfilterdb.ingest.formats.companions import leads_out
from cnnfilterdb.ingest.formats.damage import undamaged
from cnnfilterdb.ingest.formats.recognised import described_file, described_folder, described_text
from cnnfilterdb.ingest.formats.shards import separate_shards
from cnnfilterdb.ingest.network import choices
from cnnfilterdb.ingest.network.adapters import scaling_beside
from cnnfilterdb.ingest.network.contents import added
from cnnfilterdb.ingest.network.layers import ConvLayer, Weights

__all__ = ["Format", "is_weight_file", "known_here_only", "main_file", "read", "register", "registered"]


class Format(Protocol):
    """How one family of weight files is recognised and read."""

    name: str

    @property
    def suffixes(self) -> tuple[str, ...]:
        """Suffixes, in lower case, by which files of the format are found in folders."""

    def matches(self, path: Path, head: bytes) -> bool:
        """Whether the file is of this format, judged by its first bytes (up to 4 KiB) and its name."""

    def read(self, path: Path) -> Weights:
        """Read the file.

        Raises:
            WeightFileError: The file is damaged, or turns out not to be of this format.
            UnsafeFileError: The file asks for code to be executed.
        """


_formats: dict[str, Format] = {}

# Files from which a folder that is one model is read
_MAIN_FILES = (
    "flax_model.msgpack.index.json",
    "tf_model.h5.index.json",
    "saved_model.pb",
    "model.json",
    "model.safetensors.index.json",
    "pytorch_model.bin.index.json",
    "diffusion_pytorch_model.safetensors.index.json",
    ".metadata",
    "Data/com.apple.CoreML/model.mlmodel",
    *(f"{folder}{name}" for folder in ("", "default/") for name in ("manifest.ocdbt", "_METADATA")),
    "zarr.json",
    ".zgroup",
)


def register(cls: Callable[[], Format]) -> Callable[[], Format]:
    """Class decorator: add a format to the registry under its ``name``."""
    fmt = cls()
    _formats[fmt.name] = fmt
    return cls


def registered() -> dict[str, Format]:
    """All formats by name, in the order in which they are tried."""
    return {fmt.name: fmt for fmt in _tried()}


def _tried() -> Iterator[Format]:
    """The formats in the order in which they are tried; a module is imported when its turn has come.

    So a file of a format that is tried early does not wait for the imports of the others. The order matters: a NumPy
    archive is a zip file, too, which the PyTorch format would claim. Formats of other packages come last.
    """
    modules = [f"{__name__}.{module}" for module in dict.fromkeys(FORMATS.values())]
    for module in modules:
        import_module(module)
        yield from [fmt for fmt in _formats.values() if type(fmt).__module__ == module]
    yield from [fmt for fmt in _formats.values() if type(fmt).__module__ not in modules]


def is_weight_file(path: Path) -> bool:
    """Whether a file has a suffix of a format and begins as one does."""
    if not any(path.name.lower().endswith(suffix) for fmt in _tried() for suffix in fmt.suffixes):
        return False
    try:
        with path.open("rb") as file:
            head = file.read(4096)
    except OSError:
        return False
    return any(fmt.matches(path, head) for fmt in _tried())


def known_here_only(path: Path) -> bool:
    """Whether the format of a file was registered by code outside this package, which no child process has run.

    Raises:
        WeightFileError: A folder that is not a model that is read.
    """
    others = [fmt for fmt in _formats.values() if not type(fmt).__module__.startswith(f"{__name__}.")]
    if not others:
        return False
    path = main_file(path)
    try:
        with path.open("rb") as file:
            head = file.read(4096)
    except OSError:
        return False
    found = _format_of(path, head)
    return any(fmt is found for fmt in others)


def _format_of(path: Path, head: bytes) -> Format | None:
    return next((fmt for fmt in _tried() if fmt.matches(path, head)), None)


def main_file(path: Path) -> Path:
    """The file that a model is read from: the path itself, or the main file of a folder that is one model.

    Raises:
        WeightFileError: A folder that is not a model that is read; the message says what it is.
    """
    if not path.is_dir():
        return path
    inside = next((path / name for name in _MAIN_FILES if (path / name).is_file()), None)
    if inside is not None:
        if leads_out(path, inside):
            raise WeightFileError(f"{inside}: a link that leads out of the folder; pass the file that it points at")
        return inside
    if (what := described_folder(path)) is not None:
        raise WeightFileError(f"{path}: {what}")
    files = sorted(one for one in path.iterdir() if one.is_file() and is_weight_file(one))
    if len(files) == 1 and not leads_out(path, files[0]):
        return files[0]
    models = sorted(one for one in path.iterdir() if any((one / name).is_file() for name in _MAIN_FILES))
    for found, kind in ((files, "weight file"), (models, "model")):
        if found:
            names = ", ".join([*(one.name for one in found[:2]), *(["..."] if len(found) > 2 else [])])
            remedy = f"pass {found[0]}" if len(found) == 1 else "pass one"
            raise WeightFileError(f"{path}: a folder of {counted(len(found), kind)}, {names}; {remedy}")
    raise WeightFileError(
        f"{path}: a folder of no weight file; expected one model, such as a SavedModel or one weight file"
    )


def read(path: str | Path, *, network: str | None = None, merge_adapters: bool | float = False) -> Weights:
    """Read a weight file of any known format.

    Args:
        path: The file; for a model in several files any of them, or the folder of a model.
        network: Which network of a file with several, by its name: a part of the checkpoint (``ema``, ``netD``), or the
            first parts of the names of its layers. By default all that are not copies of each other
            (:mod:`cnnfilterdb.ingest.network.copies`).
        merge_adapters: Merge LoRA adapters into their layers (:mod:`cnnfilterdb.ingest.network.adapters`): True with
            the scale that the file or the ``adapter_config.json`` beside it states, or the scale.

    Raises:
        WeightFileError: Not a weight file, or without such a network; the message says what it is and what to do.
    """
    path = main_file(Path(path))
    selection = choices.of(network, merge_adapters)
    if selection.merge_adapters and selection.scaling is None:
        selection.scaling = scaling_beside(path)
    with choices.choosing(selection):
        return choices.applied(_read(path), str(path))


def _read(path: Path) -> Weights:
    try:
        with path.open("rb") as file:
            head = file.read(4096)
    except OSError as error:
        raise WeightFileError(f"{path}: cannot be opened: {error.strerror}") from error
    reject(path, head)
    if files := separate_shards(path):
        with limits.reading(str(path), path.stat().st_size):
            return _joined([_read_file(file) for file in files])
    return _read_file(path)


def _joined(parts: Sequence[Weights]) -> Weights:
    """The weights of a model whose shards were read one by one, which shows nothing of their order in the network."""
    counts = [part.parameters for part in parts]
    return replace(
        parts[0],
        layers=tuple(
            replace(layer, conv_depth=None, conv_depth_norm=None, depth_source=None)
            for part in parts
            for layer in part.layers
        ),
        parameters=None if None in counts else sum(count or 0 for count in counts),
        skipped=tuple(dict.fromkeys(one for part in parts for one in part.skipped)),
        contents=reduce(added, (part.contents for part in parts)) if all(part.contents for part in parts) else {},
    )


def _read_file(path: Path) -> Weights:
    with path.open("rb") as file:
        head = file.read(4096)
    if (what := described_file(path, head)) is not None:
        raise WeightFileError(f"{path}: {what}")
    if (fmt := _format_of(path, head)) is not None:
        with limits.reading(str(path), path.stat().st_size) as used:
            return _limited(_printable(path, fmt), used)
    what = described_text(path, head) or f"not a known weight format (begins with {head[:8].hex(' ')})"
    raise WeightFileError(f"{path}: {what}; readable formats: {', '.join(registered())}")


def _printable(path: Path, fmt: Format) -> Weights:
    """Read a file; names and messages never contain control characters."""
    try:
        weights = fmt.read(path)
    except CnnFilterDbError as error:
        if str(error).isprintable():
            raise
        raise type(error)(escaped(str(error))) from error
    return weights.printable()


def _limited(weights: Weights, used: limits.Limits) -> Weights:
    """The weights of a file, each layer of which is read within its own limits, and with errors of this package."""
    used.create(len(weights.layers))
    # Many layers may be views of the same bytes
    whole = used.renewed()
    whole.allocate(sum(4 * math.prod(layer.shape) for layer in weights.layers))
    return replace(weights, layers=tuple(_limited_layer(layer, used) for layer in weights.layers))


T = TypeVar("T")


def _limited_layer(layer: ConvLayer, used: limits.Limits) -> ConvLayer:
    def within(read: Callable[[], T]) -> Callable[[], T]:
        def limited() -> T:
            with limits.active(used.renewed()), undamaged(f"{used.name}: {layer.name}", "weight"):
                return read()

        return limited

    norm = layer.batch_norm
    return replace(layer, read=within(layer.read), batch_norm=None if norm is None else within(norm))


def reject(path: Path, head: bytes) -> None:
    """Refuse what is often saved instead of weights: an empty file, a web page, or a Git LFS pointer."""
    if not head:
        raise WeightFileError(f"{path}: the file is empty; download it again")
    if head.startswith((b"version https://git-lfs", b"version https://hawser")):
        raise WeightFileError(
            f"{path}: a Git LFS pointer, not the weights; run `git lfs pull` or download the file itself"
        )
    text = head[:512].lstrip(b"\xef\xbb\xbf \t\r\n").lower()
    if text.startswith((b"<!doctype html", b"<html", b"<head")):
        raise WeightFileError(f"{path}: an HTML page, not weights; the download was refused or the address is wrong")
