"""The content of a weight file as data: tensors, convolution layers, and what was left out.

Nothing here reads a file. A tensor or a layer carries a function that does, so that a file of any size is imported one
layer at a time.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, replace
from itertools import islice
from typing import Literal

import numpy as np
import numpy.typing as npt

from cnnfilterdb.core.reports import escaped

__all__ = ["ConvLayer", "Kind", "Skipped", "Tensor", "Weights", "stated"]

Kind = Literal["conv", "depthwise", "grouped", "transposed"]


@dataclass(frozen=True, slots=True)
class Tensor:
    """A named array of a weight file, read on request.

    Attributes:
        name: The key under which the file stores it.
        shape: Its shape as stored.
        dtype: Its element type as stored: a NumPy name, or ``bfloat16``, ``float8_e4m3fn``, ...
        read: Returns the array as stored, but floating types narrower or wider than float32 as float32.
        parameter: False if the file marks it as a buffer (a fixed blur kernel), None if that is unknown.
        unreadable: Why its numbers cannot be read, if that is known beforehand; :attr:`read` then fails.
        parts: Names, in the file, of the tensors whose numbers it holds. They stay when the tensor is renamed.
    """

    name: str
    shape: tuple[int, ...]
    dtype: str
    read: Callable[[], npt.NDArray[np.generic]]
    parameter: bool | None = None
    unreadable: str | None = None
    parts: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        """A tensor that is made for a file is its own only part."""
        if not self.parts:
            object.__setattr__(self, "parts", (self.name,))


@dataclass(frozen=True, slots=True)
class ConvLayer:
    """One two-dimensional convolution layer. What cannot be known from the file is None, never a guess.

    Attributes:
        name: Name of the layer in its file, without the trailing ``.weight``.
        shape: (out_channels, in_channels / groups, kernel height, kernel width), of the result of :attr:`read`.
        read: Returns the weight: float32, C-contiguous, of :attr:`shape`. Transposed layers are converted to this
            layout too; their kernels are not flipped.
        dtype: Element type as stored in the file.
        kind: conv, depthwise (one input channel per group and as many groups as input channels), grouped, or
            transposed.
        in_channels: Input channels of the layer, over all groups.
        groups: Number of groups.
        stride: (vertical, horizontal).
        dilation: (vertical, horizontal).
        conv_depth: Rank, from 0, of the layer's depth among the distinct depths that contain a convolution
            (papers' definition: depth is the longest path from an input).
        conv_depth_norm: conv_depth / (number of distinct depths - 1), from 0 to 1; 0 when there is one depth only.
        depth_source: ``graph`` (longest path in a known graph), ``order`` (rank in execution order) or ``family``
            (longest path in an architecture that names and shapes show); None without depth.
        dead: True when the layer is known to be never executed.
        bn_folded: True when a batch normalisation was folded into the weight.
        weight_norm: ``weight_norm`` or ``spectral_norm`` when the stored weight had to be composed from its parts;
            ``std`` or ``scaled_std`` when the network standardises the stored weight before use.
        batch_norm: Returns the scale (out_channels,) by which folding the batch normalisation that follows multiplies
            the kernels of each output channel, float32; or None if its data prove that it does not follow. The field
            is None if no normalisation is known to follow.
        channels: False if the file lists the kernels of the layer in a row, without stating how many of them belong
            to one output channel. The shape is then (1, kernels, kernel height, kernel width).
        tensors: Names, in the file, of the tensors that the weight is read from; empty where they are not known.
    """

    name: str
    shape: tuple[int, int, int, int]
    read: Callable[[], npt.NDArray[np.float32]]
    dtype: str = "float32"
    kind: Kind | None = None
    in_channels: int | None = None
    groups: int | None = None
    stride: tuple[int, int] | None = None
    dilation: tuple[int, int] | None = None
    conv_depth: int | None = None
    conv_depth_norm: float | None = None
    depth_source: str | None = None
    dead: bool | None = None
    bn_folded: bool | None = None
    weight_norm: str | None = None
    batch_norm: Callable[[], npt.NDArray[np.float32] | None] | None = None
    channels: bool = True
    tensors: tuple[str, ...] = ()

    @property
    def kernel(self) -> str:
        """Kernel size as written in the database.

        >>> ConvLayer("stem", (64, 3, 7, 7), read=lambda: ...).kernel
        '7x7'
        """
        return f"{self.shape[2]}x{self.shape[3]}"


@dataclass(frozen=True, slots=True)
class Skipped:
    """A tensor or node that looks like a convolution but was left out, and why.

    Attributes:
        name: Its name in the file.
        reason: Why it was left out.
        tensors: Names, in the file, of the tensors of its weight, where they are neither that name nor below it.
    """

    name: str
    reason: str
    tensors: tuple[str, ...] = field(default=(), compare=False)


#: Entries that are kept of what a file states about itself, and characters of a name and of a text.
_STATED, _NAME, _TEXT = 64, 100, 1000


def stated(entries: Iterable[tuple[object, object]]) -> dict[str, str]:
    """The entries of a file's metadata that are texts; empty ones are left out.

    >>> stated([("license", "mit"), ("author", ""), ("epochs", 3)])
    {'license': 'mit'}
    """
    return {
        name: text.strip()
        for name, text in entries
        if isinstance(name, str) and isinstance(text, str) and name.strip() and text.strip()
    }


@dataclass(frozen=True, slots=True)
class Weights:
    """The content of a weight file.

    Attributes:
        format: ``torch-zip``, ``torch-legacy``, ``torchscript``, ``pickle``, ``safetensors``, ``onnx``, ``keras-h5``,
            ``keras-v3``, ``tf-saved-model``, ``tf-checkpoint``, ``tf-graph``, ``tflite``, ``tfjs``, ``npz``, or
            ``module`` / ``state_dict`` for objects in memory.
        framework: ``pytorch``, ``onnx``, ``keras`` or ``tensorflow``; None if the file does not state it.
        layers: The convolution layers, in order of execution where a graph is known, else in file order.
        parameters: Number of floating-point parameters in the file, all layers counted, buffers left out where known.
        skipped: What looked like a convolution and was left out.
        producer: Program that wrote the file and its version, where the file says so.
        metadata: What the file states about itself in fields meant for that, by its own names.
        contents: How many tensors and numbers the file holds, by what became of them
            (:mod:`cnnfilterdb.ingest.network.contents`); empty where the reader does not count them.
    """

    format: str
    framework: str | None
    layers: tuple[ConvLayer, ...]
    parameters: int | None = None
    skipped: tuple[Skipped, ...] = ()
    producer: str | None = None
    metadata: Mapping[str, str] = field(default_factory=dict)
    contents: Mapping[str, tuple[int, int]] = field(default_factory=dict)

    def printable(self) -> Weights:
        """The same without control characters, and what cannot be encoded, in names and reasons."""
        return replace(
            self,
            layers=tuple(replace(layer, name=escaped(layer.name)) for layer in self.layers),
            skipped=tuple(Skipped(escaped(one.name), escaped(one.reason)) for one in self.skipped),
            producer=self.producer and escaped(self.producer[:200]),
            metadata={
                escaped(name[:_NAME]): escaped(text[:_TEXT]) for name, text in islice(self.metadata.items(), _STATED)
            },
        )
