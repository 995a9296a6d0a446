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
from typing import Any

import numpy as np
import numpy.typing as npt

from cnnfilterdb.core.errors import WeightFileError
from cnnfilterdb.ingest.formats import limits, register
from cnnfilterdb.ingest.formats.companions import companion
from cnnfilterdb.ingest.formats.damage import undamaged
from cnnfilterdb.ingest.formats.dtypes import by_code
from cnnfilterdb.ingest.formats.explicit import explicit_layer, placed
from cnnfilterdb.ingest.formats.protobuf import mapped
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
}
# Marks before numbers of half precision, of float32 (twice), and of integers
_MARKED = by_code({0x01306B47: "float16", 0x0002C056: "float32", 0: "float32"})
_INTEGERS = 0x000D4B38
# Layers that have numbers, or may have them, in a way that is not read
_UNKNOWN = ("Norm", "LSTM", "GRU", "RNN", "Embed", "Attention", "Gemm", "Convolution", "Quantize", "Requantize")


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

    def weights(self, lines: list[list[str]]) -> Weights:
        found: list[ConvLayer] = []
        depths: list[int | None] = []
        skipped: list[Skipped] = []
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
                    skipped.append(Skipped(name, f"its numbers follow those of {lost}, whose size is not known"))
            elif kind in _CONVOLUTIONS:
                layer = self._convolution(kind, name, values)
                if isinstance(layer, Skipped):
                    skipped.append(layer)
                    lost = name
                else:
                    found.append(layer)
                    depths.append(depth)
            elif not self._passed_over(kind, values):
                lost = name
        if lost is None and self.place != len(self.data):
            raise WeightFileError(
                f"{self.path}: its layers take {self.place:,} bytes, its .bin has {len(self.data):,}; "
                "check that the two files belong together"
            )
        return Weights("ncnn", "ncnn", placed(found, depths), None, tuple(skipped))

    def _convolution(self, kind: str, name: str, values: dict[int, str]) -> ConvLayer | Skipped:
        def number(key: int, default: int) -> int:
            return int(values.get(key, default))

        out, width, size, groups = number(0, 0), number(1, 0), number(6, 0), number(7, 1)
        height = number(11, width)
        if number(8, 0):
            return Skipped(name, "a weight of integers; use the network before quantisation")
        if out < 1 or width < 1 or height < 1 or size < 1 or size % (out * height * width):
            return Skipped(name, f"a convolution of {size:,} numbers for {out} outputs of {height}x{width}")
        dtype, start = self._marked(size)
        self._skip(4 * out if number(5, 0) else 0)
        shape = (out, size // (out * height * width), height, width)
        layer = explicit_layer(
            name,
            Tensor(name, shape, dtype.name, self._reader(shape, dtype, start)),
            groups=groups,
            stride=(number(13, number(3, 1)), number(3, 1)),
            dilation=(number(12, number(2, 1)), number(2, 1)),
        )
        if isinstance(layer, Skipped) or not _CONVOLUTIONS[kind]:
            return layer
        return replace(layer, kind="transposed")

    def _passed_over(self, kind: str, values: dict[int, str]) -> bool:
        """Skip the numbers of a layer that is not a convolution, if their size is known."""

        def number(key: int) -> int:
            return int(values.get(key, 0))

        if kind == "InnerProduct" and not number(8):
            self._marked(number(2))
            self._skip(4 * number(0) if number(1) else 0)
        elif kind == "BatchNorm":
            self._skip(16 * number(0))
        elif kind == "Scale" and number(0) != -233:
            self._skip(4 * number(0) * (1 + number(1)))
        elif kind in ("PReLU", "Bias"):
            self._skip(4 * number(0))
        elif kind == "MemoryData":
            self._skip(4 * math.prod(max(number(key), 1) for key in (0, 1, 2)))
        else:
            return kind != "InnerProduct" and not any(word in kind for word in _UNKNOWN)
        return True

    def _skip(self, size: int) -> None:
        if size < 0 or self.place + size > len(self.data):
            raise ValueError(f"{self.place + size:,} bytes are expected, the .bin has {len(self.data):,}")
        self.place += size

    def _marked(self, size: int) -> tuple[np.dtype[Any], int]:
        """Element type and place of numbers that have a mark before them."""
        (mark,) = struct.unpack_from("<I", self.data, self.place)
        dtype: np.dtype[Any] | None = _MARKED.get(mark)
        if dtype is None:
            kind = "integers" if mark == _INTEGERS else "a table of numbers"
            raise ValueError(f"weights stored as {kind}, which are not read; use the network before quantisation")
        start = self.place + 4
        self._skip(4 + -(-size * dtype.itemsize // 4) * 4)
        return dtype, start

    def _reader(
        self, shape: tuple[int, ...], dtype: np.dtype[Any], start: int
    ) -> Callable[[], npt.NDArray[np.generic]]:
        def read() -> npt.NDArray[np.generic]:
            return np.frombuffer(self.data, dtype, math.prod(shape), start).reshape(shape).astype(np.float32)

        return read
