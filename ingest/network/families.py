"""Depth and kind of the layers of well-known architectures, from the names and shapes in a file of tensors.

A file of tensors contains no graph. If all its layers have the names of one family of architectures, these show how the
layers are connected, and shapes must confirm it layer by layer: each layer has to read what the one before it gives.
The depth is then the longest path, as in an exported graph, because connections that skip layers never make it longer.
What contradicts stays unknown.

:data:`FAMILIES` is the table; a new family is a row, and a test that compares it with the graph of such a network.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Literal

from cnnfilterdb.ingest.network.extract import conv_depths, untransposed
from cnnfilterdb.ingest.network.layers import ConvLayer, Weights

__all__ = ["FAMILIES", "Family", "Part", "recognised"]

#: How a layer is connected:
#:
#: - ``next``: reads the output of the layer before it.
#: - ``skip``: the same, or that output together with the output of an earlier layer, as in a U-Net.
#: - ``shortcut``: reads what the first layer of its block reads, and is added to the output of the block.
#: - ``twin``: reads what the layer before it reads; nothing reads its output but the caller, or it joins an output.
#: - ``joins``: reads what the layer before it reads, and both outputs are concatenated.
#: - ``grows``: reads the output of the layer before it, and its own is concatenated to what its block reads.
#: - ``maxout``: reads the output of the layer before it, and keeps the larger one of each two channels of its own.
Role = Literal["next", "skip", "shortcut", "twin", "joins", "grows", "maxout"]


@dataclass(frozen=True, slots=True)
class Part:
    """Layers of a family that are connected alike.

    Attributes:
        names: Regular expression for their names. The group ``block`` is the block that a layer belongs to; numbers in
            the other groups, and then words by :attr:`Family.words`, sort the layers of a family that is sorted.
        role: How they are connected.
        falling: Whether the first number falls in order of execution.
    """

    names: str
    role: Role = "next"
    falling: bool = False


@dataclass(frozen=True, slots=True)
class Family:
    """A family of architectures.

    Attributes:
        name: What it is, and whose names it has.
        parts: Its layers; in order of execution if it is sorted.
        sorted: Whether the parts and the numbers in names give the order; otherwise it is that of the file.
        words: The order of words in names.
        required: Regular expressions, each of which has to match a name.
        widening: Whether no layer may have fewer channels than the one before it, where names say little.
    """

    name: str
    parts: tuple[Part, ...]
    sorted: bool = False
    words: tuple[str, ...] = ()
    required: tuple[str, ...] = ()
    widening: bool = False


_INVERTED = ("expand", "depthwise", "project")

FAMILIES = (
    Family(
        "ResNet of torchvision, and of CIFAR",
        (
            Part(r"conv1"),
            Part(r"(?P<block>layer\d+\.\d+)\.conv\d"),
            Part(r"(?P<block>layer\d+\.\d+)\.(?:downsample|shortcut)\.0", "shortcut"),
        ),
        required=(r"layer\d+\.\d+\.conv2",),
    ),
    Family(
        "DenseNet of torchvision",
        (
            Part(r"conv0"),
            Part(r"(?P<block>denseblock\d+)\.denselayer\d+\.conv1"),
            Part(r"(?P<block>denseblock\d+)\.denselayer\d+\.conv2", "grows"),
            Part(r"transition\d+\.conv"),
        ),
        required=(r"denseblock1\.denselayer1\.conv2",),
    ),
    Family(
        "SqueezeNet of torchvision",
        (
            Part(r"features\.0"),
            Part(r"features\.\d+\.(?:squeeze|expand1x1)"),
            Part(r"features\.\d+\.expand3x3", "joins"),
            Part(r"classifier\.1"),
        ),
        required=(r"features\.\d+\.expand3x3",),
    ),
    Family(
        "MobileNetV2 of torchvision, and others with its modules",
        (Part(r"\d+\.0"), Part(r"\d+\.conv\.\d+(?:\.0)?")),
        required=(r"0\.0", r"1\.conv\.0(?:\.0)?", r"2\.conv\.\d+(?:\.0)?"),
    ),
    Family(
        "MobileNetV3 of torchvision",
        (Part(r"\d+\.0"), Part(r"\d+\.block\.\d+\.(?:0|fc1|fc2)")),
        required=(r"0\.0", r"1\.block\.0\.0"),
    ),
    Family(
        "EfficientNet of torchvision",
        (Part(r"\d+\.0"), Part(r"\d+\.\d+\.block\.\d+\.(?:0|fc1|fc2)")),
        required=(r"0\.0", r"1\.0\.block\.0\.0"),
    ),
    Family(
        "EfficientNet, MobileNetV2 and MobileNetV3 of timm",
        (
            Part(r"conv_stem|conv_head"),
            Part(r"blocks\.\d+\.\d+\.(?:conv|conv_pw|conv_dw|conv_pwl|se\.conv_reduce|se\.conv_expand)"),
        ),
        required=(r"blocks\.1\.0\.conv_dw", r"conv_stem"),
    ),
    Family(
        "EfficientNet of efficientnet-pytorch",
        (
            Part(r"_conv_stem|_conv_head"),
            Part(r"_blocks\.\d+\.(?:_(?:expand|depthwise|project)_conv|_se_reduce|_se_expand)"),
        ),
        required=(r"_blocks\.0\._depthwise_conv", r"_conv_stem"),
    ),
    Family(
        "MobileNetV2 of Keras",
        (
            Part(r"Conv1"),
            Part(r"expanded_conv_(depthwise|project)"),
            Part(r"block_(\d+)_(expand|depthwise|project)"),
            Part(r"Conv_1"),
        ),
        sorted=True,
        words=_INVERTED,
        required=(r"expanded_conv_depthwise", r"block_1_expand"),
    ),
    Family(
        "MobileNetV2 of early versions of Keras",
        (Part(r"Conv1"), Part(r"mobl(\d+)_conv_\d+_(expand|depthwise|project)"), Part(r"Conv_1")),
        sorted=True,
        words=_INVERTED,
        required=(r"mobl0_conv_0_depthwise",),
    ),
    Family(
        "U-Net with inc, down, up and outc",
        (
            Part(r"inc(?:\.\w+)*\.\d"),
            Part(r"down\d+(?:\.\w+)*\.\d"),
            Part(r"up\d+\.up"),
            Part(r"up\d+\.conv(?:\.\w+)*\.\d", "skip"),
            Part(r"outc(?:\.conv)?"),
        ),
        required=(r"down1\..*", r"up\d+\.conv.*", r"outc.*"),
    ),
    Family(
        "U-Net with enc, bottleneck and up",
        (
            Part(r"(?:enc\d+|bottleneck)(?:\.\w+)*\.\d"),
            Part(r"up\d+(?:\.\w+)*\.\d", "skip"),
            Part(r"head"),
        ),
        required=(r"enc1\..*", r"bottleneck\..*", r"up1\..*"),
    ),
    Family(
        "U-Net of Keras with transposed convolutions",
        (Part(r"conv2d(?:_\d+)?", "skip"), Part(r"conv2d_transpose(?:_\d+)?")),
        required=(r"conv2d_transpose(?:_\d+)?",),
    ),
    Family(
        "StarDist",
        (
            Part(r"conv2d(?:_(\d+))?"),
            Part(r"down_level_(\d+)_no_(\d+)"),
            Part(r"middle_(\d+)"),
            Part(r"up_level_(\d+)_no_(\d+)", "skip", falling=True),
            Part(r"features"),
            Part(r"prob"),
            Part(r"dist|prob_class", "twin"),
        ),
        sorted=True,
        required=(r"down_level_0_no_0", r"up_level_0_no_0", r"prob", r"dist"),
    ),
    Family(
        "plain network of Keras",
        (Part(r"conv2d(?:_(\d+))?"),),
        sorted=True,
        widening=True,
    ),
    Family(
        "MTCNN P-Net",
        (Part(r"conv([1-3])"), Part(r"conv4_1"), Part(r"conv4_2", "twin")),
        sorted=True,
        required=(r"conv4_1", r"conv4_2"),
    ),
    Family(
        "ResNet10 and UpResNet10 of waifu2x",
        (Part(r"conv_pre"), Part(r"res(\d+)[/.]conv(\d)"), Part(r"conv_bridge"), Part(r"conv_post")),
        sorted=True,
        required=(r"conv_pre", r"conv_bridge", r"conv_post"),
    ),
    Family(
        "LightCNN",
        (Part(r"conv\d+\.filter", "maxout"), Part(r"block\d+\.\d+\.conv\d\.filter", "maxout")),
        required=(r"block1\.0\.conv1\.filter",),
    ),
)


def recognised(weights: Weights) -> Weights:
    """Add depths, and kinds that they prove, to the layers of a file whose architecture is recognised.

    Nothing is changed if a layer has a depth already, or is known to be dead, or if no family fits.

    >>> read = lambda: ...
    >>> sizes = [(8, 1, 3, 3), (16, 8, 3, 3), (32, 16, 3, 3)]
    >>> layers = tuple(ConvLayer(f"conv{n}", size, read) for n, size in enumerate(sizes))
    >>> [(layer.conv_depth, layer.kind) for layer in recognised(Weights("npz", None, layers)).layers]
    [(0, 'conv'), (1, 'conv'), (2, 'conv')]
    >>> [layer.conv_depth for layer in recognised(Weights("npz", None, layers[::2])).layers]
    [None, None]
    """
    layers = weights.layers
    names = [layer.name for layer in layers]
    if len(set(names)) != len(names) or not names:
        return weights
    if any(layer.depth_source or layer.dead or not layer.channels for layer in layers):
        return weights
    for family in (None, *FAMILIES):
        places = _numbered(names) if family is None else _placed(family, names)
        traced = None if places is None else _traced(layers, places)
        if places is None or traced is None:
            continue
        first = layers[places[0].number]
        if family is None and first.shape[0] == first.shape[1]:
            continue  # layers that are all alike may be parallel
        widths = [layers[place.number].shape[0] for place in places]
        if family is None or not family.widening or widths == sorted(widths):
            depths = conv_depths([depth for _, depth in traced])
            found = tuple(
                replace(layer, conv_depth=rank, conv_depth_norm=norm, depth_source="family")
                for (layer, _), (rank, norm) in zip(traced, depths, strict=True)
            )
            return replace(weights, layers=found)
    return weights


@dataclass(frozen=True, slots=True)
class _Place:
    """A layer in order of execution: its number in the file, and how it is connected."""

    number: int
    role: Role
    block: str | None = None


# Otherwise one input channel, and as many outputs as the layer before it has, may mean a parallel branch
_DEPTHWISE = re.compile(r"dw|depth_?wise", re.IGNORECASE)
# Layers that Keras names by itself, and those of others with one number that counts them
_KERAS = re.compile(r"(?:.*/)?conv2d(?:_\d+)?")


def _numbered(names: Sequence[str]) -> list[_Place] | None:
    """The places of layers whose names differ in one number only: a plain chain."""
    if any(_KERAS.fullmatch(name) for name in names):
        return None
    tokens = [re.split(r"(\d+)", name) for name in names]
    if len({len(one) for one in tokens}) != 1:
        return None
    differing = [place for place, values in enumerate(zip(*tokens, strict=True)) if len(set(values)) > 1]
    if len(differing) != 1 or differing[0] % 2 == 0:
        return None
    numbers = sorted((int(one[differing[0]]), number) for number, one in enumerate(tokens))
    return [_Place(number, "next") for _, number in numbers]


def _placed(family: Family, names: Sequence[str]) -> list[_Place] | None:
    """The places of layers that all have names of a family, after a prefix that is the same for all."""
    cuts = [0, *(match.end() for match in re.finditer(r"[./]", names[0]))]
    for prefix in (names[0][:cut] for cut in cuts):
        if not all(name.startswith(prefix) for name in names):
            continue
        rest = [name.removeprefix(prefix) for name in names]
        if all(any(re.fullmatch(pattern, name) for name in rest) for pattern in family.required):
            found = [_part(family, number, name) for number, name in enumerate(rest)]
            places = [place for place in found if place is not None]
            if len(places) == len(names):
                return [place for _, place in (sorted(places, key=lambda one: one[0]) if family.sorted else places)]
    return None


def _part(family: Family, number: int, name: str) -> tuple[tuple[int, ...], _Place] | None:
    """The place of a layer, and the key that sorts it; None if its name is not of the family."""
    for place, part in enumerate(family.parts):
        match = re.fullmatch(part.names, name)
        if match is not None:
            groups = match.groupdict()
            values = [
                int(value) if value.isdecimal() else family.words.index(value)
                for value in (match.groups("0") if family.sorted else ())
            ]
            values = [-values[0], *values[1:]] if part.falling else values
            return (place, *values), _Place(number, part.role, groups.get("block"))
    return None


class _Contradiction(Exception):
    """Shapes that do not fit."""


@dataclass
class _Trace:
    """The state of a walk through the layers in order of execution.

    Attributes:
        channels: What the next layer reads; None before the first one.
        depth: Depth of the last layer on the longest path.
        reads: Channels and depth of what the layer before read.
        outputs: Channels of outputs that a later layer may still read.
        blocks: Channels that the first layer of each block reads, and its depth.
    """

    channels: int | None = None
    depth: int = -1
    reads: int | None = None
    outputs: list[int] = field(default_factory=list)
    blocks: dict[str, tuple[int | None, int]] = field(default_factory=dict)

    def visit(self, layer: ConvLayer, place: _Place) -> tuple[ConvLayer, int]:
        """The layer with its kind, and its depth.

        Raises:
            _Contradiction: It does not fit to what came before.
        """
        before = self.channels
        if place.role in ("twin", "joins"):
            found = _reading(layer, self.reads)
            self.channels = (before or 0) + found.shape[0] if place.role == "joins" else before
            return found, self.depth
        if place.role == "shortcut":
            channels, depth = self.blocks.get(place.block or "", (None, -1))
            found = _reading(layer, channels)
            if found.shape[0] != before:
                raise _Contradiction
            return found, depth
        if place.block is not None:
            self.blocks.setdefault(place.block, (before, self.depth + 1))
        if place.role == "skip" and before is not None and layer.shape[1] > before:
            self._use(layer.shape[1] - before)
            before = layer.shape[1]
        found = _reading(layer, before)
        self.depth += 1
        self.reads, self.channels = before, found.shape[0]
        if place.role == "maxout":
            self.channels //= 2
        if place.role == "grows":
            grown = self.blocks[place.block or ""][0] or 0
            self.channels += grown
            self.blocks[place.block or ""] = (self.channels, self.depth + 1)
        self.outputs.append(self.channels)
        return found, self.depth

    def _use(self, channels: int) -> None:
        """Take the latest output of so many channels, other than the last one; those after it can no longer be read."""
        for place in range(len(self.outputs) - 2, -1, -1):
            if self.outputs[place] == channels:
                del self.outputs[place:-1]
                return
        raise _Contradiction


def _reading(layer: ConvLayer, channels: int | None) -> ConvLayer:
    """A layer that reads so many channels, with its kind."""
    first, second, height, width = layer.shape
    if channels is None:  # the first layer of the network reads images
        return layer if layer.kind is not None else replace(layer, kind="conv", groups=1, in_channels=second)
    if layer.kind is not None:
        if layer.in_channels not in (None, channels) or (layer.in_channels is None and second != channels):
            raise _Contradiction
        return layer
    if second == channels:
        return replace(layer, kind="conv", groups=1, in_channels=channels)
    if second == 1 and first == channels and _DEPTHWISE.search(layer.name):
        return replace(layer, kind="depthwise", groups=channels, in_channels=channels)
    if first == channels and height == width and height % 2 == 0 and layer.batch_norm is None:
        # A kernel of an even size that reads its first axis: a transposed convolution, as it is stored
        return replace(
            layer,
            shape=(second, first, height, width),
            read=untransposed(layer.read, 1),
            kind="transposed",
            groups=1,
            in_channels=channels,
        )
    raise _Contradiction


def _traced(layers: Sequence[ConvLayer], places: Sequence[_Place]) -> list[tuple[ConvLayer, int]] | None:
    """Each layer with its kind, and its depth, in the order of the file; None if shapes contradict."""
    trace = _Trace()
    found: dict[int, tuple[ConvLayer, int]] = {}
    try:
        for place in places:
            found[place.number] = trace.visit(layers[place.number], place)
    except _Contradiction:
        return None
    return [found[number] for number in range(len(layers))]
