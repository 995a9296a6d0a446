"""ncnn networks: a text with the layers (``.param``) and their numbers in a row (``.bin``).

The numbers have no names: those of a layer follow those of the layer before, so reading ends at the first layer
whose size is unknown. Weights are (out, in / groups, h, w), of deconvolutions too (modelbin.cpp of ncnn).
"""

from __future__ import annotations

import math
import struct
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt

from cnnfilterdb.core.errors import WeightFileError
from cnnfilterdb.ingest.formats import limits, register
from cnnfilterdb.ingest.formats.companions import companion
from cnnfilterdb.ingest.formats.damage import undamaged
from cnnfilterdb.ingest.formats.dtypes import by_code
from cnnfilterdb.ingest.formats.explicit import explicit_layer, explicit_weights
from cnnfilterdb.ingest.formats.mapping import mapped
from cnnfilterdb.ingest.network.layers import ConvLayer, Skipped, Tensor, Weights

__all__ = ["NcnnFormat"]

_WHAT = "ncnn network"
_MAGIC = b"7767517"
_BYTES_PER_LAYER = 2048  # of memory
_CONVOLUTIONS = {
    "Convolution": False,
    "ConvolutionDepthWise": False,
    "Deconvolution": True,
    "DeconvolutionDepthWise": True,
    "DeformableConv2D": False,
}
# Convolutions of other dimensions
_DIMENSIONS = {
    f"{kind}{dimensions}D": why
    for kind in ("Convolution", "ConvolutionDepthWise", "Deconvolution", "DeconvolutionDepthWise")
    for dimensions, why in ((1, "a one-dimensional convolution"), (3, "a three-dimensional convolution"))
}
# Marks before numbers of half precision, of float32 (twice), and of integers
_MARKED = by_code({0x01306B47: "float16", 0x0002C056: "float32", 0: "float32"})
_INTEGERS = 0x000D4B38
_STATISTICS = ("mean", "variance")  # of a normalisation, which are not trained
# A tensor: its name, whether a mark is before it, its shape
_Part: TypeAlias = tuple[str, bool, tuple[int, ...]]
# Layers with a weight and perhaps a bias: keys that say whether, and how many numbers the weight has
_WEIGHTED = {"InnerProduct": (1, 2), "Embed": (2, 3), **dict.fromkeys(_DIMENSIONS, (5, 6))}
# Recurrent layers: gates, and vectors of the bias
_GATES = {"LSTM": (4, 4), "GRU": (3, 4), "RNN": (1, 1)}
# Normalisations: keys of the size and of whether it scales, and what it has then
_NORMS = {
    "LayerNorm": (0, 2, ("gamma", "beta")),
    "RMSNorm": (0, 2, ("gamma",)),
    "GroupNorm": (1, 3, ("gamma", "beta")),
    "InstanceNorm": (0, 2, ("gamma", "beta")),
}
# Other layers that have numbers, or may have them
_UNKNOWN = (
    *("Norm", "LSTM", "GRU", "RNN", "Embed", "Attention", "Gemm", "onvolution", "InnerProduct", "Scale", "uantize"),
)


@register
class NcnnFormat:
    """``.param`` files with their ``.bin``."""

    name = "ncnn"
    suffixes = (".param",)

    def matches(self, path: Path, head: bytes) -> bool:
        """Whether the first line is the magic number of ncnn."""
        return head.startswith((_MAGIC + b"\n", _MAGIC + b"\r"))

    def read(self, path: Path) -> Weights:
        """Read the layers; the numbers when the layers are read.

        Raises:
            WeightFileError: The text is damaged, or the ``.bin`` is missing or not of this network.
        """
        with undamaged(str(path), _WHAT):
            content = path.read_bytes()
            limits.current().allocate(8 * len(content))
            lines = content.decode("utf-8", "replace").splitlines()[2:]
            data = companion(path, f"{path.stem}.bin")
            limits.current().opened(data.stat().st_size)
            return _Numbers(path, mapped(data)).weights([line.split() for line in lines if line.strip()])


class _Numbers:
    def __init__(self, path: Path, data: memoryview) -> None:
        self.path, self.data, self.place = path, data, 0
        self.stored: list[Tensor] = []

    def weights(self, lines: list[list[str]]) -> Weights:
        found: list[tuple[ConvLayer | Skipped, int]] = []
        reached: dict[str, int] = {}
        lost: str | None = None
        for kind, name, inputs, outputs, *rest in lines:
            limits.current().allocate(_BYTES_PER_LAYER)
            blobs, given = rest[: int(inputs) + int(outputs)], rest[int(inputs) + int(outputs) :]
            depth = max((reached.get(one, -1) for one in blobs[: int(inputs)]), default=-1) + 1
            reached |= dict.fromkeys(blobs[int(inputs) :], depth)
            # Arrays of parameters have keys below -23300
            values = {
                int(key): text for key, _, text in (one.partition("=") for one in given) if not key.startswith("-")
            }
            if lost is not None:
                if kind in _CONVOLUTIONS:
                    found.append((Skipped(name, f"its numbers follow those of {lost}, whose size is not known"), depth))
            elif kind in _DIMENSIONS and self._passed_over(kind, name, values):
                found.append((Skipped(name, _DIMENSIONS[kind]), depth))
            elif kind in _CONVOLUTIONS and values.get(_computed(kind), "0") != "0":
                found.append((Skipped(name, "a convolution whose weight is computed"), depth))
            elif kind in _CONVOLUTIONS:
                layer = self._convolution(kind, name, values)
                found.append((layer, depth))
                lost = name if isinstance(layer, Skipped) else None
            elif not self._passed_over(kind, name, values):
                found.append((Skipped(name, f"a layer of type {kind}, whose size is not known"), depth))
                lost = name
        if lost is not None:
            behind = (len(self.data) - self.place) // 4
            self.stored.append(Tensor(lost, (behind,), "float32", read=lambda: np.empty(0)))
        elif self.place != len(self.data):
            raise WeightFileError(
                f"{self.path}: its layers take {self.place:,} bytes, its .bin has {len(self.data):,}; "
                "check that the two files belong together"
            )
        return explicit_weights("ncnn", "ncnn", self.stored, found)

    def _convolution(self, kind: str, name: str, values: dict[int, str]) -> ConvLayer | Skipped:
        def number(key: int, default: int) -> int:
            return int(values.get(key, default))

        out, width, size, groups = number(0, 0), number(1, 0), number(6, 0), number(7, 1)
        height = number(11, width)
        if number(8, 0):
            return Skipped(name, "a weight of integers; use the network before quantisation")
        if out < 1 or width < 1 or height < 1 or size < 1 or size % (out * height * width):
            return Skipped(name, f"a convolution of {size:,} numbers for {out} outputs of {height}x{width}")
        weight = self._marked(f"{name}/weight", (out, size // (out * height * width), height, width))
        if number(5, 0):
            self._plain(f"{name}/bias", out)
        layer = explicit_layer(
            name,
            weight,
            groups=groups,
            stride=(number(13, number(3, 1)), number(3, 1)),
            dilation=(number(12, number(2, 1)), number(2, 1)),
        )
        if isinstance(layer, Skipped) or not _CONVOLUTIONS[kind]:
            return layer
        return replace(layer, kind="transposed")

    def _passed_over(self, kind: str, name: str, values: dict[int, str]) -> bool:
        """Note the numbers of a layer that is not a convolution, if their size is known."""

        def number(key: int, default: int = 0) -> int:
            return int(values.get(key, default))

        parts = _parts(kind, number)
        for part, marked, shape in parts or ():
            if marked:
                self._marked(f"{name}/{part}", shape)
            else:
                self._plain(f"{name}/{part}", *shape)
        return parts is not None

    def _skip(self, size: int) -> None:
        if size < 0 or self.place + size > len(self.data):
            raise ValueError(f"{self.place + size:,} bytes are expected, the .bin has {len(self.data):,}")
        self.place += size

    def _plain(self, name: str, *shape: int) -> None:
        """Numbers of float32."""
        self._take(name, shape, np.dtype("<f4"))

    def _marked(self, name: str, shape: tuple[int, ...]) -> Tensor:
        """Numbers that have a mark of their type before them."""
        (mark,) = struct.unpack_from("<I", self.data, self.place)
        dtype: np.dtype[Any] | None = _MARKED.get(mark)
        if dtype is None:
            kind = "integers" if mark == _INTEGERS else "a table of numbers"
            raise ValueError(f"weights stored as {kind}, which are not read; use the network before quantisation")
        self._skip(4)
        return self._take(name, shape, dtype)

    def _take(self, name: str, shape: tuple[int, ...], dtype: np.dtype[Any]) -> Tensor:
        start = self.place
        self._skip(-(-math.prod(shape) * dtype.itemsize // 4) * 4)

        def read() -> npt.NDArray[np.generic]:
            return (
                np.frombuffer(self.data, dtype, math.prod(shape), start).reshape(shape).astype(np.float32, copy=False)
            )

        trained = not name.endswith(_STATISTICS)
        self.stored.append(Tensor(name, shape, dtype.name, read, parameter=trained))
        return self.stored[-1]


def _computed(kind: str) -> int:
    """The key that says whether the weight of a convolution is an input."""
    return 28 if kind.startswith("Deconvolution") else 19


def _parts(kind: str, number: Callable[..., int]) -> list[_Part] | None:
    """The tensors of a layer that is not a two-dimensional convolution, in order; None if they are not known.

    Args:
        kind: Its type.
        number: A parameter of the layer by its key, and by default 0 or another number.

    >>> _parts("InnerProduct", lambda key, default=0: {0: 10, 1: 1, 2: 80}.get(key, default))
    [('weight', True, (10, 8)), ('bias', False, (10,))]
    """
    out = number(0)
    vectors: list[str] = []
    if kind in _WEIGHTED:
        bias, size = _WEIGHTED[kind]
        if number(18 if kind == "Embed" else 8):  # integers
            return None
        if number(_computed(kind)):
            return []
        weight: _Part = ("weight", True, (out, number(size) // max(out, 1)))
        return [weight, ("bias", False, (out,))] if number(bias) else [weight]
    if kind in _GATES and not number(8):
        gates, biases = _GATES[kind]
        directions, hidden = 2 if number(2) == 2 else 1, number(3, out) if kind == "LSTM" else out
        rows = directions * hidden * gates
        held: list[_Part] = [
            ("weight_xc", True, (rows, number(1) // max(rows, 1))),
            ("bias_c", True, (directions * hidden * biases,)),
            ("weight_hc", True, (rows, out)),
        ]
        return [*held, ("weight_hr", True, (directions * out, hidden))] if hidden != out else held
    if kind == "MultiHeadAttention" and not number(18):
        width = number(2) // max(out, 1)
        shapes = {"q": (out, width), "k": (out, number(3, out)), "v": (out, number(4, out)), "out": (width, out)}
        return [
            part
            for name, shape in shapes.items()
            for part in ((f"{name}_weight", True, shape), (f"{name}_bias", False, shape[:1]))
        ]
    if kind == "Gemm" and not number(18):
        rows, columns, inner = number(7), number(8), number(9)
        sums = {0: (1,), 1: (rows,), 2: (rows,), 3: (rows, columns), 4: (columns,)}
        operands: list[tuple[int, ...]] = [(rows, inner), (columns, inner), sums.get(number(10), ())]
        given = enumerate(zip("abc", operands, strict=True), 4)
        return [(name, True, shape) for key, (name, shape) in given if number(key) and shape]
    if kind == "MemoryData":
        shape = tuple(number(key) for key in (2, 11, 1, 0) if number(key))
        return [("data", number(21, 1) == 0, shape or (1,))]
    if kind == "Scale" and out != -233:
        vectors = ["scale", "bias"] if number(1) else ["scale"]
    elif kind == "BatchNorm":
        vectors = ["slope", *_STATISTICS, "bias"]
    elif kind in ("PReLU", "Bias"):
        vectors = ["weight"]
    elif kind in _NORMS:
        size, affine, names = _NORMS[kind]
        out, vectors = number(size), list(names) if number(affine, 1) else []
    elif any(word in kind for word in _UNKNOWN):
        return None
    return [(name, False, (out,)) for name in vectors]
