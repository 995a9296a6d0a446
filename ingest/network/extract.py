"""From tensors to convolution layers: kind, order, depth.

A file of tensors contains names and shapes only. :func:`layers_from_tensors` infers what these prove and leaves the
rest None.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from cnnfilterdb.ingest.network import choices
from cnnfilterdb.ingest.network.adapters import merged, unmerged
from cnnfilterdb.ingest.network.checkpoint import all_tensors, networks
from cnnfilterdb.ingest.network.composition import Weight, compose
from cnnfilterdb.ingest.network.composition import parameters as count_parameters
from cnnfilterdb.ingest.network.contents import contents_of
from cnnfilterdb.ingest.network.folding import EPSILON_TORCH, batch_norms, paired_by_name
from cnnfilterdb.ingest.network.judge import Layout, settled, speaks_pytorch
from cnnfilterdb.ingest.network.layers import ConvLayer, Kind, Skipped, Tensor, Weights
from cnnfilterdb.ingest.network.likeness import alike, side_path
from cnnfilterdb.ingest.network.objects import Object

__all__ = [
    "ConvFacts",
    "conv_depths",
    "conv_facts",
    "layers_from_tensors",
    "untransposed",
    "weights_from_checkpoint",
]


def conv_depths(depths: Sequence[int | None]) -> list[tuple[int | None, float | None]]:
    """Rank the depths of convolution layers, as the papers do.

    The depth of a node is its longest path from an input of the graph. The rank of a layer (``conv_depth``) counts the
    distinct depths above it that contain a convolution; parallel layers share a rank. Scaled by the largest rank it is
    ``conv_depth_norm`` (CNN Filter DB, arXiv 2203.15331, as computed by its extraction code). A model with one depth
    only, for which that quotient is 0/0, gets 0.0.

    Args:
        depths: Longest-path depth of each layer, in any unit that keeps the order; None where it is not known.

    Returns:
        (conv_depth, conv_depth_norm) of each layer, in the given order; (None, None) where the depth is None.

    >>> conv_depths([4, 0, 4, 9])
    [(1, 0.5), (0, 0.0), (1, 0.5), (2, 1.0)]
    >>> conv_depths([7, None])
    [(0, 0.0), (None, None)]
    """
    ranks = {depth: rank for rank, depth in enumerate(sorted({depth for depth in depths if depth is not None}))}
    last = max(len(ranks) - 1, 1)
    return [(None, None) if depth is None else (ranks[depth], ranks[depth] / last) for depth in depths]


@dataclass(frozen=True, slots=True)
class ConvFacts:
    """What a module states about its convolution; None for what it does not state.

    Attributes:
        transposed: Whether it is a transposed convolution.
        groups: Number of groups.
        stride: (vertical, horizontal).
        dilation: (vertical, horizontal).
        weight_norm: ``std`` or ``scaled_std`` for a layer that standardises its weight before use.
        epsilon: The constant that a normalisation adds to the variance.
    """

    transposed: bool | None = None
    groups: int | None = None
    stride: tuple[int, int] | None = None
    dilation: tuple[int, int] | None = None
    weight_norm: str | None = None
    epsilon: float | None = None


# Layers that subtract the mean and divide by the standard deviation of their weight at every call: timm, BiT, ...
_STANDARDISED = re.compile(r"StdConv|WSConv|ConvWS|Conv2dWS|WeightStandardi[sz]ed")


def conv_facts(class_name: str, attribute: Callable[[str], Any]) -> ConvFacts:
    """Read the facts of a convolution from a module, live or pickled.

    Args:
        class_name: Name of its class.
        attribute: Returns an attribute by name, or None. Its result is checked.

    >>> attributes = {"groups": 4, "stride": (2, 2), "transposed": False}
    >>> conv_facts("Conv2d", attributes.get)
    ConvFacts(transposed=False, groups=4, stride=(2, 2), dilation=None, weight_norm=None, epsilon=None)
    """
    transposed = attribute("transposed")
    if not isinstance(transposed, bool):
        transposed = {"Conv2d": False, "ConvTranspose2d": True}.get(class_name)
    groups, epsilon = attribute("groups"), attribute("eps")
    standardised = _STANDARDISED.search(class_name)
    return ConvFacts(
        transposed=transposed,
        groups=groups if isinstance(groups, int) and not isinstance(groups, bool) and groups > 0 else None,
        stride=_pair(attribute("stride")),
        dilation=_pair(attribute("dilation")),
        weight_norm=("scaled_std" if "Scaled" in class_name else "std") if standardised else None,
        epsilon=epsilon if isinstance(epsilon, float) and 0 < epsilon < 1 else None,
    )


def _pair(value: Any) -> tuple[int, int] | None:
    values = (value, value) if isinstance(value, int) else value
    if (
        isinstance(values, tuple | list)
        and len(values) == 2
        and all(isinstance(n, int) and 0 < n < 1 << 31 for n in values)
    ):
        return values[0], values[1]
    return None


def layers_from_tensors(
    tensors: Sequence[Tensor],
    *,
    facts: Mapping[str, ConvFacts] | None = None,
    ordered: bool = True,
    epsilon: float = EPSILON_TORCH,
    layout: Layout | None = "OIHW",
    assumed: Layout | None = None,
    doubted: bool = False,
) -> tuple[tuple[ConvLayer, ...], tuple[Skipped, ...]]:
    """Find the two-dimensional convolution layers among named tensors.

    A layer is a floating-point tensor of four dimensions whose name ends in ``weight``, or the parts that weight
    normalisation, spectral normalisation or pruning store instead, from which the effective weight is composed.

    Names show which batch normalisation follows a layer (:func:`~cnnfilterdb.ingest.network.folding.paired_by_name`).
    The kind is what names and shapes prove. One input channel per group and several outputs mean a depthwise layer,
    except where the input itself may have one channel: in the first layer of the network or of a part of it. The length
    of the bias, or of the normalisation that follows, distinguishes a transposed layer from others; its name decides
    only if they do not. A layer with as many input channels as the layer before it in the file has output channels is
    a plain convolution; otherwise its shape does not show whether it is grouped, and kind and groups are None, unless
    other layers prove it (:mod:`~cnnfilterdb.ingest.network.likeness`).

    Args:
        tensors: The tensors of one network.
        facts: Known facts of layers, by name; they take precedence over what the shapes show.
        ordered: Whether the tensors are in the order in which the network was built.
        epsilon: The constant that batch normalisations add to the variance, if the facts do not state it.
        layout: Layout of the kernels; None if the file does not state it, so that evidence decides
            (:mod:`cnnfilterdb.ingest.network.judge`).
        assumed: The layout to take where the evidence is silent.
        doubted: Whether sizes, too, may contradict the layout, as they may one that a header declares.

    Returns:
        The layers, in the order of the tensors, and what looked like one but was left out.

    >>> stem = Tensor("stem.weight", (8, 3, 3, 3), "float32", read=lambda: ...)
    >>> depthwise = Tensor("dw.weight", (8, 1, 3, 3), "float32", read=lambda: ...)
    >>> layers, _ = layers_from_tensors([stem, depthwise])
    >>> [(layer.name, layer.kind, layer.groups) for layer in layers]
    [('stem', 'conv', 1), ('dw', 'depthwise', 8)]
    """
    if choices.chosen().merge_adapters:
        tensors = merged(tensors, choices.chosen().scaling)
    tensors, unclear = settled(tensors, declared=layout, assumed=assumed, doubted=doubted)
    index = {tensor.name: tensor for tensor in tensors}
    found = [compose(tensor, index) for tensor in tensors]
    skipped = unclear + tuple(part for part in found if isinstance(part, Skipped))
    skipped += unmerged(tensors, skipped)
    weights = [part for part in found if isinstance(part, Weight)]
    evidence = _Evidence(tensors, index, found, ordered)
    layers = []
    for weight in weights:
        given = (facts or {}).get(weight.prefix.removesuffix("."), ConvFacts())
        layers.append(_layer(weight, given, evidence))
    layers = alike(layers, ordered=ordered)
    known_epsilons = {name: given.epsilon for name, given in (facts or {}).items() if given.epsilon is not None}
    norms = batch_norms(tensors, epsilon=epsilon, epsilons=known_epsilons)
    return paired_by_name(layers, tensors, norms, ordered=ordered), skipped


# ---------------------------------------------------------------------------------------------------------------------
# The kind of a layer

# conv5_mask: of Mask R-CNN, in torchvision and others
_TRANSPOSED_NAME = re.compile(r"deconv|transpose|convt(?:rans)?(?![a-z])|trans_?conv|conv_?trans(?!i)|tconv|conv5_mask")
_UPSAMPLING_NAME = re.compile(r"(?:^|[._])up")
# The left singular vector of spectral normalisation, below the name of a layer
_LEFT = ("weight_u", "parametrizations.weight.0._u")
_DEPTHWISE_NAME = re.compile(r"dw|depth_?wise", re.IGNORECASE)


def _named_transposed(weight: Weight) -> bool:
    name, (height, width) = weight.name.lower(), weight.shape[2:]
    upsampling = height == width and height in (2, 4) and _UPSAMPLING_NAME.search(name) is not None
    return upsampling or (height * width > 1 and _TRANSPOSED_NAME.search(name) is not None)


class _Evidence:
    """What the tensors around a weight reveal about it."""

    def __init__(
        self,
        tensors: Sequence[Tensor],
        index: Mapping[str, Tensor],
        found: Sequence[Weight | Skipped | None],
        ordered: bool,
    ) -> None:
        self.index = index
        self.before: dict[str, int] = {}  # output channels of what precedes the layer in the file
        self.after: dict[str, int] = {}  # channels of the normalisation that follows it
        self.stem: str | None = None
        self.unclear: set[str] = set()  # layers that need not be depthwise if they have one input channel
        weights = [part for part in found if isinstance(part, Weight)]
        if not weights:
            return
        if ordered:
            self.stem = weights[0].name
            self.unclear.add(self.stem)
            self._walk(tensors, found)
            firsts = {weight.name.partition(".")[0]: weight for weight in reversed(weights)}.values()
            self.unclear |= {w.name for w in firsts if self.before.get(w.name) != w.shape[0]}
        else:
            # In alphabetical order norms come before convolutions; only numbered siblings are informative then
            for weight in weights:
                parent, _, last = weight.name.rpartition(".")
                if last.isdecimal():
                    norm = index.get(f"{parent}.{int(last) + 1}.weight" if parent else f"{int(last) + 1}.weight")
                    if norm is not None and len(norm.shape) == 1:
                        self.after[weight.name] = norm.shape[0]
            # Any layer of one channel may be the first one, unless that takes colour images
            if not any(weight.shape[1] == 3 for weight in weights):
                self.unclear = {weight.name for weight in weights}

    def _walk(self, tensors: Sequence[Tensor], found: Sequence[Weight | Skipped | None]) -> None:
        channels: int | None = None
        last: Weight | None = None  # the weight that a norm would belong to
        previous: Weight | None = None
        side, entered = "", channels  # the shortcut or gate that the layer before is in, and what went into that
        for tensor, part in zip(tensors, found, strict=True):
            if isinstance(part, Weight):
                # What a shortcut or a gate of channels gives is not what the next layer of its block reads
                inside = side_path(part.name)
                if inside != side:
                    if side and part.name.startswith(side.rpartition(".")[0]):
                        channels = entered
                    side, entered = inside, channels
                # A layer like the one before may be its parallel branch, with the same input
                if (
                    previous is not None
                    and previous.shape[:2] == part.shape[:2]
                    and part.shape[1] == 1
                    and not self.transposed(previous)[0]
                ):
                    channels = self.before.get(previous.name)
                    if channels == 1 or previous.name in self.unclear:
                        channels = None
                        self.unclear.add(part.name)
                if channels is not None:
                    self.before[part.name] = channels
                channels, last, previous = self.bias(part), part, part
                if channels is None and not _named_transposed(part):
                    channels = part.shape[0]
            elif len(tensor.shape) == 1 and tensor.name.endswith(".weight"):
                owner = tensor.name.removesuffix(".weight")
                if tensor.shape[0] == 1 and f"{owner}.running_mean" not in self.index:
                    continue  # an activation with one parameter
                if last is not None and owner.rpartition(".")[0] == last.name.rpartition(".")[0]:
                    self.after.setdefault(last.name, tensor.shape[0])
                channels, last = tensor.shape[0], None
            elif len(tensor.shape) >= 2 and tensor.name.endswith("weight"):
                channels, last = None, None

    def is_unclear(self, weight: Weight) -> bool:
        """Whether a layer with one input channel per group may also have only one input channel."""
        return weight.name in self.unclear and not _DEPTHWISE_NAME.search(weight.name)

    def bias(self, weight: Weight) -> int | None:
        bias = self.index.get(f"{weight.prefix}bias")
        return bias.shape[0] if bias is not None and len(bias.shape) == 1 else None

    def transposed(self, weight: Weight) -> tuple[bool, int | None]:
        """Whether the layer is transposed, and its groups if so and known."""
        # The first axis of a plain layer is its output, of a transposed one its input. Bias and norm have the output's
        # length, which for a transposed layer is second x groups.
        first, second = weight.shape[:2]
        before, bias = self.before.get(weight.name), self.bias(weight)
        out = self.after.get(weight.name) if bias is None else bias
        groups = out // second if out and out % second == 0 and first % (out // second) == 0 else None
        if bias is not None and bias != first:
            return groups is not None, groups
        # PyTorch unfolds the weight of a transposed layer along its second axis to normalise it
        left = next((found for name in _LEFT if (found := self.index.get(f"{weight.prefix}{name}"))), None)
        if left is not None and math.prod(left.shape) == second != first:
            return True, groups
        named = _named_transposed(weight)
        if out != first and groups is not None and before in (None, first):
            return True, groups
        if first != second and not (named and second == 1) and (out == first or (out is None and before == second)):
            return False, None
        return named, groups if named else None


def _layer(weight: Weight, facts: ConvFacts, evidence: _Evidence) -> ConvLayer:
    first, second, height, width = weight.shape
    transposed, groups = facts.transposed, facts.groups
    if transposed is None:
        transposed, proved = evidence.transposed(weight)
        groups = groups or proved
    elif transposed and groups is None and (bias := evidence.bias(weight)) is not None and bias % second == 0:
        groups = bias // second
    if groups is not None and first % groups:
        groups = None  # not the layout of the weight

    read = weight.read
    kind: Kind | None
    in_channels: int | None
    if transposed:
        kind, in_channels = "transposed", first
        split = groups or 1
        shape = (second * split, first // split, height, width)
        read = untransposed(read, split)
    else:
        shape = (first, second, height, width)
        if groups is None:
            groups = _groups(weight, evidence)
        in_channels = None if groups is None else second * groups
        if groups == 1:
            kind = "conv"
        elif second == 1 and (groups is not None or not evidence.is_unclear(weight)):
            kind = "depthwise"
        else:
            kind = None if groups is None else "grouped"
    return ConvLayer(
        name=weight.name,
        shape=shape,
        read=read,
        dtype=weight.dtype,
        kind=kind,
        in_channels=in_channels,
        groups=groups,
        stride=facts.stride,
        dilation=facts.dilation,
        weight_norm=weight.weight_norm or facts.weight_norm,
        tensors=weight.tensors,
    )


def _groups(weight: Weight, evidence: _Evidence) -> int | None:
    """Groups of a layer that is not transposed, if shape and neighbours prove them."""
    first, second = weight.shape[:2]
    before = evidence.before.get(weight.name)
    if first == 1 or before == second:
        return 1
    unclear = evidence.is_unclear(weight)
    if second == 1 and before == first and not unclear:
        return first
    # Images have one to four channels. One, with as few outputs, may also mean a depthwise layer on colour images.
    grey = second == 1 and first > 4 and unclear
    return 1 if weight.name == evidence.stem and (grey or 2 <= second <= 4) else None


def untransposed(read: Callable[[], npt.NDArray[np.float32]], groups: int) -> Callable[[], npt.NDArray[np.float32]]:
    """The weight of a transposed layer in the layout of a plain one.

    Args:
        read: Returns it as stored: (in, out / groups, height, width).
        groups: Number of groups.

    Returns:
        A function that returns it as (out, in / groups, height, width), group by group.
    """

    def plain() -> npt.NDArray[np.float32]:
        stored = read()
        first, second, height, width = stored.shape
        grouped = stored.reshape(groups, first // groups, second, height, width).swapaxes(1, 2)
        return np.ascontiguousarray(grouped.reshape(groups * second, first // groups, height, width))

    return plain


# ---------------------------------------------------------------------------------------------------------------------
# Whole checkpoints and modules

#: Layers, and what was left out.
Found = tuple[Sequence[ConvLayer], Sequence[Skipped]]


def weights_from_checkpoint(
    root: Any,
    *,
    format: str,
    framework: str | None,
    is_tensor: Callable[[Any], bool],
    tensor: Callable[[str, Any, bool | None], Tensor],
    identity: Callable[[Any], Any] = id,
    facts: Callable[[Object], ConvFacts] | None = None,
    arrays: Callable[[Sequence[Tensor]], Found] | None = None,
    is_declared: Callable[[Any], bool] = lambda value: True,
) -> Weights:
    """Find the networks of a checkpoint, and their convolution layers.

    Args:
        root: The content of the file: containers, tensors and stubs of modules.
        format: Name of the format.
        framework: Framework that wrote it, if known.
        is_tensor: Whether a value is a tensor of the file, not a container.
        tensor: Makes a named tensor from one of them, given (name, value, parameter or None).
        identity: A hashable value that two tensors share if they are the same data.
        facts: Facts from the stub of a module.
        arrays: Finds the layers of a network of tensors with an unknown layout.
        is_declared: Whether a tensor has the layout of PyTorch.

    Raises:
        WeightFileError: The checkpoint is nested too deeply.
    """
    found, left_out = networks(root, is_tensor)
    layers: list[ConvLayer] = []
    skipped = list(left_out)
    parameters = 0
    every: list[Tensor] = []
    first: dict[Any, str] = {}
    for network in found:
        tensors = []
        for entry in network.entries:
            original = first.setdefault(identity(entry.value), entry.name)
            if original == entry.name:
                tensors.append(tensor(entry.name, entry.value, entry.parameter))
            elif len(getattr(entry.value, "shape", ())) == 4:
                skipped.append(Skipped(entry.name, f"shares the weight of {original}"))
        known = {name: facts(module) for name, module in network.modules.items()} if facts else {}
        declared = any(is_declared(entry.value) for entry in network.entries) and speaks_pytorch(tensors)
        if arrays is None or declared:
            found_here: Found = layers_from_tensors(tensors, facts=known)
        else:
            found_here = arrays(tensors)
        layers += found_here[0]
        skipped += found_here[1]
        parameters += count_parameters(tensors)
        every += tensors
    whole = all_tensors(root, is_tensor, identity)
    contents = {} if whole is None else contents_of(every, layers, skipped, whole=whole)
    return Weights(format, framework, tuple(layers), parameters, tuple(skipped), contents=contents)
