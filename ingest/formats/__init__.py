"""Weight file formats: tensors out of files, safely.

A format is one module with one small class, registered by :func:`register`. :func:`read` looks at the first bytes of a
file, never at its name alone, and passes it to the matching format. No format executes code in a file.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from importlib import import_module
from pathlib import Path
from typing import Protocol, TypeVar

from cnnfilterdb.errors import CnnFilterDbError, WeightFileError
from cnnfilterdb.ingest.formats import limits
from cnnfilterdb.ingest.formats.companions import leads_out
from cnnfilterdb.ingest.formats.recognised import described_file, described_folder, described_text
from cnnfilterdb.ingest.network.layers import ConvLayer, Skipped, Weights
from cnnfilterdb.reports import escaped

__all__ = ["Format", "main_file", "read", "register", "registered"]


class Format(Protocol):
    """How one family of weight files is recognised and read."""

    name: str

    def matches(self, path: Path, head: bytes) -> bool:
        """Whether the file is of this format, judged by its first bytes (up to 4 KiB) and its name."""

    def read(self, path: Path) -> Weights:
        """Read the file.

        Raises:
            WeightFileError: The file is damaged, or turns out not to be of this format.
            UnsafeFileError: The file asks for code to be executed.
        """


_formats: dict[str, Format] = {}

# Imported on first use: reading a safetensors file should not import the ONNX library. Formats are tried in this
# order.
_modules = (
    "keras.model",
    "safetensors",
    "tflite",
    "npz",
    "tfjs",
    "openvino",
    "gguf",
    "mxnet",
    "caffe",
    "coreml",
    "darknet",
    "flax",
    "ncnn",
    "tensorflow.model",
    "torch.checkpoint",
    "onnx.model",
)
# Files from which a folder that is one model is read
_MAIN_FILES = ("saved_model.pb", "model.json")


def register(cls: Callable[[], Format]) -> Callable[[], Format]:
    """Class decorator: add a format to the registry under its ``name``."""
    fmt = cls()
    _formats[fmt.name] = fmt
    return cls


def registered() -> dict[str, Format]:
    """All formats by name, in the order in which they are tried."""
    for module in _modules:
        import_module(f"{__name__}.{module}")
    # Independent of the order of imports: a NumPy archive is a zip file too, which the PyTorch format would claim.
    order = {f"{__name__}.{module}": place for place, module in enumerate(_modules)}
    return dict(sorted(_formats.items(), key=lambda item: order.get(type(item[1]).__module__, len(order))))


def main_file(path: Path) -> Path:
    """The file that a model is read from: the path itself, or the main file of a folder that is one model.

    Raises:
        WeightFileError: A folder that is not a model that is read; the message says what it is.
    """
    if not path.is_dir():
        return path
    inside = next((path / name for name in _MAIN_FILES if (path / name).is_file()), None)
    if inside is None:
        what = described_folder(path) or f"a folder without {' or '.join(_MAIN_FILES)}; pass a weight file in it"
        raise WeightFileError(f"{path}: {what}")
    if leads_out(path, inside):
        raise WeightFileError(f"{inside}: a link that leads out of the folder; pass the file that it points at")
    return inside


def read(path: str | Path) -> Weights:
    """Read a weight file of any known format.

    Args:
        path: The file; for a model in several files any of them, or the folder of a SavedModel.

    Raises:
        WeightFileError: Not a weight file; the message says what it is instead and what to do.
    """
    path = main_file(Path(path))
    try:
        with path.open("rb") as file:
            head = file.read(4096)
    except OSError as error:
        raise WeightFileError(f"{path}: cannot be opened: {error.strerror}") from error
    reject(path, head)
    if (what := described_file(path, head)) is not None:
        raise WeightFileError(f"{path}: {what}")
    for fmt in registered().values():
        if fmt.matches(path, head):
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
    return replace(
        weights,
        layers=tuple(replace(layer, name=escaped(layer.name)) for layer in weights.layers),
        skipped=tuple(Skipped(escaped(one.name), escaped(one.reason)) for one in weights.skipped),
        producer=weights.producer and escaped(weights.producer[:200]),
    )


def _limited(weights: Weights, used: limits.Limits) -> Weights:
    """The weights of a file, each layer of which is read within its own limits."""
    used.create(len(weights.layers))
    # Many layers may be views of the same bytes
    whole = used.renewed()
    whole.allocate(sum(4 * math.prod(layer.shape) for layer in weights.layers))
    return replace(weights, layers=tuple(_limited_layer(layer, used) for layer in weights.layers))


T = TypeVar("T")


def _limited_layer(layer: ConvLayer, used: limits.Limits) -> ConvLayer:
    def within(read: Callable[[], T]) -> Callable[[], T]:
        def limited() -> T:
            with limits.active(used.renewed()):
                return read()

        return limited

    norm = layer.batch_norm
    return replace(layer, read=within(layer.read), batch_norm=None if norm is None else within(norm))


def reject(path: Path, head: bytes) -> None:
    """Refuse what is often saved instead of weights: an empty file, a web page, or a Git LFS pointer."""
    if not head:
        raise WeightFileError(f"{path}: the file is empty; download it again")
    if head.startswith(b"version https://git-lfs"):
        raise WeightFileError(
            f"{path}: a Git LFS pointer, not the weights; run `git lfs pull` or download the file itself"
        )
    text = head[:512].lstrip(b"\xef\xbb\xbf \t\r\n").lower()
    if text.startswith((b"<!doctype html", b"<html", b"<head")):
        raise WeightFileError(f"{path}: an HTML page, not weights; the download was refused or the address is wrong")
