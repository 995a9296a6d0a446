"""Weight formats that are recognised but not read: what a file is, and what to do instead."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from cnnfilterdb.errors import WeightFileError
from cnnfilterdb.ingest.formats import register
from cnnfilterdb.ingest.network.layers import Weights

__all__ = ["RecognisedFormat"]


@dataclass(frozen=True, slots=True)
class _Known:
    """A format that is not read.

    Attributes:
        what: Its name, with an article.
        remedy: What to do instead.
        matches: Whether a file with this name and these first bytes is of the format.
    """

    what: str
    remedy: str
    matches: Callable[[str, bytes], bool]


_ORIGINAL = "take the model that it was converted from"
_KNOWN = (
    _Known(
        "the binary form of an ncnn network",
        "take the .param that is text",
        lambda name, head: head.startswith(b"\xdd\x85\x76\0"),
    ),
    _Known(
        "an ONNX Runtime model",
        "take the .onnx file that it was converted from",
        lambda name, head: head[4:8] == b"ORTM",
    ),
    _Known("a TensorRT engine, compiled for one kind of GPU", _ORIGINAL, lambda name, head: head.startswith(b"ftrt")),
    _Known(
        "a PaddlePaddle inference model",
        "convert it with paddle2onnx, or take the .pdparams file",
        lambda name, head: name.endswith((".pdmodel", ".pdiparams")),
    ),
    _Known(
        "the manifest of a Core ML package",
        _ORIGINAL,
        lambda name, head: head.lstrip().startswith(b"{") and b'"itemInfoEntries"' in head,
    ),
    _Known(
        "a part of a Zarr or Orbax checkpoint of JAX",
        "load it with orbax.checkpoint and save its arrays with safetensors.flax.save_file",
        lambda name, head: (
            head.lstrip().startswith(b"{")
            and (name in (".zarray", ".zgroup", "zarr.json", "_metadata") or b'"zarr_format"' in head)
        ),
    ),
    _Known(
        "an MNN model",
        "convert it with MNNConvert, or take the model that it was converted from",
        lambda name, head: name.endswith(".mnn"),
    ),
)


@register
class RecognisedFormat:
    """Files that are refused by the name of their format."""

    name = "recognised"
    suffixes: tuple[str, ...] = ()

    def matches(self, path: Path, head: bytes) -> bool:
        """Whether the file is of one of these formats."""
        return any(known.matches(path.name.lower(), head) for known in _KNOWN)

    def read(self, path: Path) -> Weights:
        """Refuse the file.

        Raises:
            WeightFileError: Always; the message says what the file is and what to do.
        """
        with path.open("rb") as file:
            head = file.read(4096)
        known = next(known for known in _KNOWN if known.matches(path.name.lower(), head))
        raise WeightFileError(f"{path}: {known.what}, which is recognised but not read; {known.remedy}")
