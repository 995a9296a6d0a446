"""From tensors or modules to convolution layers: kind, order, depth.

A file of tensors contains names and shapes only. :func:`layers_from_tensors` infers what these prove and leaves the
rest None; :func:`weights_from_module` has a live module and runs it on shapes alone.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from cnnfilterdb.ingest.network.checkpoint import networks
from cnnfilterdb.ingest.network.composition import Weight, compose
from cnnfilterdb.ingest.network.composition import parameters as count_parameters
from cnnfilterdb.ingest.network.folding import EPSILON_TORCH, batch_norms, paired, paired_by_name
from cnnfilterdb.ingest.network.judge import Layout, settled
from cnnfilterdb.ingest.network.layers import ConvLayer, Kind, Skipped, Tensor, Weights
from cnnfilterdb.ingest.network.live import identity_of, is_array, is_torch, named_tensor
from cnnfilterdb.ingest.network.objects import Object

if TYPE_CHECKING:
    from cnnfilterdb.ingest.network.execution import Execution

__all__ = [
    "ConvFacts",
    "conv_depths",
    "conv_facts",
    "layers_from_tensors",
    "untransposed",
    "weights_from_checkpoint",
    "weights_from_module",
    "weights_from_state_dict",
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
) -> tuple[tuple[ConvLayer, ...], tuple[Skipped, ...]]:
    """Find the two-dimensional convolution layers among named tensors.

    A layer is a floating-point tensor of four dimensions whose name ends in ``weight``, or the parts that weight
    normalisation, spectral normalisation or pruning store instead, from which the effective weight is composed.

    Names show which batch normalisation follows a layer (:func:`~cnnfilterdb.ingest.network.folding.paired_by_name`).
    The kind is what names and shapes prove. One input channel per group and several outputs mean a depthwise layer,
    except where the input itself may have one channel: in the first layer of the network or of a part of it. The length
    of the bias, or of the normalisation that follows, distinguishes a transposed layer from others; its name decides
    only if they do not. A layer with as many input channels as the layer before it in the file has output channels is
    a plain convolution; otherwise its shape does not show whether it is grouped, and kind and groups are None.

    Args:
        tensors: The tensors of one network.
        facts: Known facts of layers, by name; they take precedence over what the shapes show.
        ordered: Whether the tensors are in the order in which the network was built.
        epsilon: The constant that batch normalisations add to the variance, if the facts do not state it.
        layout: Layout of the kernels; None if the file does not state it, so that evidence decides
            (:mod:`cnnfilterdb.ingest.network.judge`).

    Returns:
        The layers, in the order of the tensors, and what looked like one but was left out.

    >>> stem = Tensor("stem.weight", (8, 3, 3, 3), "float32", read=lambda: ...)
    >>> depthwise = Tensor("dw.weight", (8, 1, 3, 3), "float32", read=lambda: ...)
    >>> layers, _ = layers_from_tensors([stem, depthwise])
    >>> [(layer.name, layer.kind, layer.groups) for layer in layers]
    [('stem', 'conv', 1), ('dw', 'depthwise', 8)]
    """
    tensors, unclear = (tensors, ()) if layout == "OIHW" else settled(tensors, declared=layout)
    index = {tensor.name: tensor for tensor in tensors}
    found = [compose(tensor, index) for tensor in tensors]
    skipped = unclear + tuple(part for part in found if isinstance(part, Skipped))
    weights = [part for part in found if isinstance(part, Weight)]
    evidence = _Evidence(tensors, index, found, ordered)
    layers = []
    for weight in weights:
        given = (facts or {}).get(weight.prefix.removesuffix("."), ConvFacts())
        layers.append(_layer(weight, given, evidence))
    known_epsilons = {name: given.epsilon for name, given in (facts or {}).items() if given.epsilon is not None}
    norms = batch_norms(tensors, epsilon=epsilon, epsilons=known_epsilons)
    return paired_by_name(layers, tensors, norms, ordered=ordered), skipped


# ---------------------------------------------------------------------------------------------------------------------
# The kind of a layer

_TRANSPOSED_NAME = re.compile(r"deconv|transpose|convt(?:rans)?(?![a-z])|trans_?conv|conv_?trans(?!i)|tconv")
_UPSAMPLING_NAME = re.compile(r"(?:^|[._])up")
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
        for tensor, part in zip(tensors, found, strict=True):
            if isinstance(part, Weight):
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
        if arrays is None or any(is_declared(entry.value) for entry in network.entries):
            found_here: Found = layers_from_tensors(tensors, facts=known)
        else:
            found_here = arrays(tensors)
        layers += found_here[0]
        skipped += found_here[1]
        parameters += count_parameters(tensors)
    return Weights(format, framework, tuple(layers), parameters, tuple(skipped))


def weights_from_state_dict(state_dict: Mapping[str, Any]) -> Weights:
    """Read a state dict in memory: names and tensors of PyTorch, arrays of NumPy, or values that convert to one.

    Checkpoints that wrap a state dict are unwrapped as files are. PyTorch is never imported.

    Args:
        state_dict: The mapping. Its tensors are read when a layer is, so they must not change before that.

    >>> weights = weights_from_state_dict({"conv.weight": np.ones((8, 3, 3, 3)), "conv.bias": np.zeros(8)})
    >>> weights.layers[0].shape, weights.parameters
    ((8, 3, 3, 3), 224)
    """
    frameworks: set[str] = set()

    def tensor(name: str, value: Any, parameter: bool | None) -> Tensor:
        frameworks.add(type(value).__module__.partition(".")[0])
        return named_tensor(name, value, parameter)

    weights = weights_from_checkpoint(
        state_dict,
        format="state_dict",
        framework=None,
        is_tensor=is_array,
        tensor=tensor,
        identity=identity_of,
        arrays=lambda tensors: layers_from_tensors(tensors, layout=None),
        is_declared=is_torch,
    )
    return replace(weights, framework="pytorch" if "torch" in frameworks else None)


def weights_from_module(module: Any, example: Any = None, *, shapes: bool = False) -> Weights:
    """Read a live ``torch.nn.Module``.

    Kind, groups, stride and dilation are those of the modules. The forward pass is run on shapes alone (PyTorch's
    ``meta`` device, on a copy) to learn the order of the layers, the dead ones and their depths: no arithmetic on the
    weights, and no change to the module. Layers that mix the kernels of several experts for every image (CondConv,
    arXiv 1904.04971) become one layer for each expert, named ``<layer>.experts.<number>``.

    Args:
        module: The network.
        example: An input, or a tuple of inputs, of which only shape and type are used. By default, images of common
            sizes are tried.
        shapes: Also accept a module on the ``meta`` device, whose layers have everything except weights.

    Returns:
        Layers in order of execution where the forward pass could be run, dead ones last; else in the order of the
        module.
    """
    if type(module).__name__ == "ExportedProgram":  # its graph is not a module, its state dict is one of a module
        return weights_from_state_dict(dict(module.state_dict))
    # PyTorch is imported only where a module of it exists
    from cnnfilterdb.ingest.network.execution import execute, named_tensors, unwrapped

    module = unwrapped(module)
    entries, shared = named_tensors(module, shapes=shapes)
    parts = dict(module.named_modules())
    facts = {name: conv_facts(type(part).__name__, partial(_attribute, part)) for name, part in parts.items()}
    tensors: list[Tensor] = []
    mixtures: dict[str, str] = {}  # layer of an expert -> the layer that it belongs to
    for name, value, parameter in entries:
        tensor = named_tensor(name, value, parameter)
        tensor = replace(tensor, unreadable=None) if shapes else tensor
        owner = name.removesuffix(".weight")
        experts = _experts(tensor, getattr(parts.get(owner), "weight_shape", None))
        tensors += experts or [tensor]
        for expert in experts:
            layer = expert.name.removesuffix(".weight")
            mixtures[layer] = owner
            facts[layer] = replace(facts[owner], transposed=False)
    layers, skipped = layers_from_tensors(tensors, facts=facts)
    skipped += tuple(Skipped(name, f"shares the weight of {original}") for name, original in shared)
    names = {layer.name for layer in layers}
    owners = {}
    for name, value, parameter in entries:
        owner = name.rpartition(".")[0].removesuffix(".parametrizations.weight")
        layer = name if name in names else owner
        if parameter and ((value.dim() == 4 and layer in names) or owner in mixtures.values()) and value.dim() > 1:
            owners[name] = layer
    channels = next((layer.in_channels or layer.shape[1] for layer in layers), 3)
    execution = execute(module, owners, channels, example)
    if execution is not None:
        # The norm that reads the output of a layer takes precedence over what names suggest
        known_epsilons = {name: given.epsilon for name, given in facts.items() if given.epsilon is not None}
        norms = batch_norms(tensors, epsilons=known_epsilons)
        layers = tuple(paired(one, norms.get(execution.norms.get(one.name, "")), known=True) for one in layers)
    return Weights("module", "pytorch", _placed(layers, execution, mixtures), count_parameters(tensors), skipped)


def _experts(tensor: Tensor, shape: Any) -> list[Tensor]:
    """The kernels of the experts of CondConv, which are the rows of a matrix; none for any other tensor.

    >>> matrix = Tensor("mix.weight", (2, 36), "float32", lambda: np.arange(72, dtype=np.float32).reshape(2, 36))
    >>> [(expert.name, expert.read()[0, 0, 0, 0]) for expert in _experts(matrix, (4, 1, 3, 3))]
    [('mix.experts.0.weight', np.float32(0.0)), ('mix.experts.1.weight', np.float32(36.0))]
    """
    if not isinstance(shape, tuple | list) or len(shape) != 4 or not tensor.name.endswith(".weight"):
        return []
    if len(tensor.shape) != 2 or tensor.shape[1] != math.prod(shape):
        return []
    prefix = tensor.name.removesuffix("weight")

    def row(expert: int) -> npt.NDArray[np.generic]:
        kernels: npt.NDArray[np.generic] = tensor.read()[expert].reshape(shape)
        return kernels

    return [
        Tensor(f"{prefix}experts.{expert}.weight", tuple(shape), tensor.dtype, partial(row, expert), tensor.parameter)
        for expert in range(tensor.shape[0])
    ]


def _attribute(part: Any, key: str) -> Any:
    return getattr(part, key, None)


def _placed(
    layers: tuple[ConvLayer, ...], execution: Execution | None, mixtures: Mapping[str, str]
) -> tuple[ConvLayer, ...]:
    """Layers in order of execution, with their depths; those not executed come last, experts together."""
    if execution is None:
        return layers
    rank = {name: place for place, name in enumerate(execution.order)}
    executed = [mixtures.get(layer.name, layer.name) for layer in layers]
    in_order = sorted(zip(executed, layers, strict=True), key=lambda pair: rank.get(pair[0], len(rank)))
    executed, layers = [name for name, _ in in_order], tuple(layer for _, layer in in_order)
    graph = rank.keys() <= execution.depths.keys()
    places: Mapping[str, int] = execution.depths if graph else rank
    depths = conv_depths([places.get(name) for name in executed])
    known = dict.fromkeys(execution.dead, True) | dict.fromkeys((*execution.order, *execution.training), False)
    return tuple(
        replace(
            layer,
            conv_depth=depth,
            conv_depth_norm=norm,
            depth_source=None if depth is None else "graph" if graph else "order",
            dead=known.get(name),
        )
        for name, layer, (depth, norm) in zip(executed, layers, depths, strict=True)
    )
