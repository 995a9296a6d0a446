"""Graphs of TensorFlow operations: which of them convolve, with which weights, how deep.

The same operations come as protocol buffers (SavedModel, frozen graph) and as JSON (TensorFlow.js). Functions are
inlined first, so that paths lead from the input of the model through every call; operations that no path reaches are
ignored. Weights are traced back to the constant or the variable that holds them, or from which they are computed.
"""

from __future__ import annotations

import math
import re
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Protocol, TypeAlias

from cnnfilterdb.core.errors import WeightFileError
from cnnfilterdb.ingest.formats import limits
from cnnfilterdb.ingest.formats.tensorflow.values import computed
from cnnfilterdb.ingest.network.axes import Pair, turned, unique_names
from cnnfilterdb.ingest.network.extract import conv_depths
from cnnfilterdb.ingest.network.layers import ConvLayer, Skipped, Tensor

__all__ = [
    "Convolution",
    "Dataflow",
    "Function",
    "GraphDefinition",
    "Node",
    "dataflow_layers",
    "layer",
    "layer_name",
]

# A hostile file may call functions from functions, each twice as often.
_MAX_NODES = 2_000_000
_MAX_CALLS = 60
_BYTES_PER_STEP, _BYTES_PER_INPUT = 640, 160  # of memory


class Node(Protocol):
    """One operation. Attributes that it does not have are empty."""

    @property
    def name(self) -> str:
        """Its name in its graph or function."""

    @property
    def op(self) -> str:
        """What it computes: ``Conv2D``, ..."""

    @property
    def inputs(self) -> Sequence[str]:
        """Its inputs: ``node``, ``node:output``, ``node:name:output``; ``^node`` is a control dependency."""

    def integers(self, key: str) -> tuple[int, ...]:
        """A number, or list of numbers."""

    def numbers(self, key: str) -> tuple[float, ...]:
        """A fractional number, or list of them."""

    def text(self, key: str) -> str:
        """A string."""

    def functions(self, key: str) -> tuple[str, ...]:
        """Names of functions."""

    def shape(self, key: str) -> tuple[int | None, ...] | None:
        """A shape; a side that is not known is None, as is a shape that is not known at all."""

    def constant(self) -> Tensor | None:
        """The value of a ``Const``."""

    def strings(self) -> tuple[str, ...]:
        """The value of a ``Const`` of strings."""


@dataclass(frozen=True, slots=True)
class Function:
    """A function that graphs call.

    Attributes:
        arguments: Names of its arguments.
        results: What it returns, each written like an input.
        nodes: Its operations.
    """

    arguments: tuple[str, ...]
    results: tuple[str, ...]
    nodes: Sequence[Node]


@dataclass(frozen=True, slots=True)
class GraphDefinition:
    """A graph as a file defines it.

    Attributes:
        nodes: Operations of the graph itself.
        function: Finds a function by name.
    """

    nodes: Sequence[Node]
    function: Callable[[str], Function | None] = lambda name: None


@dataclass(frozen=True, slots=True)
class Convolution:
    """A convolution of a graph, before its weight is found.

    Attributes:
        name: Name of the operation.
        form: How the weight is laid out: ``conv``, ``depthwise``, ``transposed``, or ``volume`` for three dimensions.
        source: Number of the operation that holds or computes the weight.
        depth: Its longest path from an input; None when no input leads to it.
        channels: Channels of its input, where the graph shows them.
        stride: (vertical, horizontal).
        dilation: (vertical, horizontal).
    """

    name: str
    form: str
    source: int
    depth: int | None
    channels: int | None
    stride: Pair | None
    dilation: Pair | None


# Operation -> layout of the weight, and which inputs are the weight and the image.
_CONVOLUTIONS = {
    "Conv2D": ("conv", 1, 0),
    "_FusedConv2D": ("conv", 1, 0),
    "FusedConv2D": ("conv", 1, 0),
    "FusedPadConv2D": ("conv", 2, 0),
    "FusedResizeAndPadConv2D": ("conv", 3, 0),
    "DepthwiseConv2dNative": ("depthwise", 1, 0),
    "_FusedDepthwiseConv2dNative": ("depthwise", 1, 0),
    "FusedDepthwiseConv2dNative": ("depthwise", 1, 0),
    "Conv2DBackpropInput": ("transposed", 1, 2),
    "Conv2DBackpropInputV2": ("transposed", 1, 2),
    "Conv3D": ("volume", 1, 0),
    "Conv3DBackpropInput": ("volume", 1, 2),
    "Conv3DBackpropInputV2": ("volume", 1, 2),
}
# Axes that turn a stored weight to (out, in / groups, h, w); a depthwise one is (in, multiplier, h, w) then.
_AXES = {"conv": (3, 2, 0, 1), "depthwise": (2, 3, 0, 1), "transposed": (2, 3, 0, 1)}


def _words(text: str) -> frozenset[str]:
    return frozenset(text.split())


_CALLS = {
    "PartitionedCall": ("f",),
    "StatefulPartitionedCall": ("f",),
    "If": ("then_branch", "else_branch"),
    "StatelessIf": ("then_branch", "else_branch"),
    "Case": ("branches",),
    "StatelessCase": ("branches",),
    "While": ("body",),
    "StatelessWhile": ("body",),
}
_VOLUME = "five dimensions, as in a three-dimensional convolution"
_LINK = ""  # what an argument or a result of an inlined call is: no operation, no step of a path
_VARIABLES = frozenset({"VarHandleOp", "VariableV2", "Variable", "_VarHandlesOp"})
_NOT_INPUTS = _VARIABLES | {"Const", "NoOp", "HashTableV2", "MutableHashTableV2", "Assert", _LINK}
# Operations that return the value of their first input.
_SAME = _words("""
    Identity ReadVariableOp Enter RefEnter Exit RefIdentity Cast StopGradient PreventGradient Snapshot Switch RefSwitch
    CheckNumerics PlaceholderWithDefault EnsureShape
""") | {_LINK}
# Operations that keep the number of channels.
_KEEP = _SAME | _words("""
    Relu Relu6 Elu Selu LeakyRelu Sigmoid Tanh Softplus Softsign Exp Neg Abs Square Sqrt Rsqrt Softmax HardSwish Prelu
    MaxPool MaxPoolV2 AvgPool FusedBatchNorm FusedBatchNormV2 FusedBatchNormV3 _FusedBatchNormEx LRN Pad PadV2 MirrorPad
    ResizeBilinear ResizeNearestNeighbor ResizeBicubic ResizeArea CropAndResize SpaceToBatchND BatchToSpaceND Merge
    NextIteration BiasAdd BiasAddV1 ClipByValue FakeQuantWithMinMaxVars FakeQuantWithMinMaxArgs
""")
_ELEMENTWISE = _words("Add AddV2 AddN Sub Mul RealDiv Div Maximum Minimum SquaredDifference Pow Select SelectV2")


@dataclass(slots=True)
class _Step:
    op: str
    node: Node | None
    inputs: list[Pair | None] = field(default_factory=list)


_Scope: TypeAlias = dict[str, int | list[int]]


class Dataflow:
    """A graph with its functions inlined.

    Example:
        >>> Dataflow(GraphDefinition(nodes=())).convolutions()
        ([], [])
    """

    def __init__(self, definition: GraphDefinition) -> None:
        """Inline the functions of a graph and order its operations.

        Raises:
            WeightFileError: Functions call each other without end.
        """
        self._definition = definition
        self._steps: list[_Step] = []
        self._open: list[tuple[int, _Scope, str]] = []
        self._inline(definition.nodes, {}, 0)
        for number, scope, reference in self._open:
            self._steps[number].inputs.append(_find(scope, reference))
        self._open.clear()
        self._order = self._sorted()
        self._depths = self._longest_paths()

    def _add(self, op: str, node: Node | None = None) -> int:
        if len(self._steps) >= _MAX_NODES:
            raise WeightFileError(f"a graph of more than {_MAX_NODES:,} operations; its functions call each other")
        limits.current().allocate(_BYTES_PER_STEP)
        self._steps.append(_Step(op, node))
        return len(self._steps) - 1

    def _inline(self, nodes: Sequence[Node], scope: _Scope, level: int) -> _Scope:
        if level > _MAX_CALLS:
            raise WeightFileError("a graph whose functions call each other without end")
        for node in nodes:
            # A function may call others and have no operation itself
            limits.current().allocate(_BYTES_PER_INPUT * (1 + len(node.inputs)))
            references = [reference for reference in node.inputs if not reference.startswith("^")]
            names = [name for key in _CALLS.get(node.op, ()) for name in node.functions(key)]
            bodies = [body for name in names or [node.op] if (body := self._definition.function(name)) is not None]
            if not bodies:
                number = self._add(node.op, node)
                scope[node.name] = number
                self._open += [(number, scope, reference) for reference in references]
                continue
            given = references[1:] if node.op.endswith(("If", "Case")) else references
            outputs: list[int] = []
            scope[node.name] = outputs
            for body in bodies:
                inner: _Scope = {}
                for argument, reference in zip(body.arguments, given, strict=False):
                    link = self._add(_LINK)
                    inner[argument] = link
                    self._open.append((link, scope, reference))
                self._inline(body.nodes, inner, level + 1)
                outputs += [self._add(_LINK) for _ in range(len(body.results) - len(outputs))]
                self._open += [(link, inner, result) for link, result in zip(outputs, body.results, strict=False)]
        return scope

    def _edges(self, number: int) -> list[int]:
        return [edge[0] for edge in self._steps[number].inputs if edge and self._steps[edge[0]].op != "NextIteration"]

    def _sorted(self) -> list[int]:
        """Operations, each after its inputs; those in a cycle that is not a TensorFlow loop are left out."""
        waiting = [0] * len(self._steps)
        consumers: list[list[int]] = [[] for _ in self._steps]
        for number in range(len(self._steps)):
            for edge in self._edges(number):
                waiting[number] += 1
                consumers[edge].append(number)
        ready = deque(number for number, count in enumerate(waiting) if not count)
        order = []
        while ready:
            number = ready.popleft()
            order.append(number)
            for consumer in consumers[number]:
                waiting[consumer] -= 1
                if not waiting[consumer]:
                    ready.append(consumer)
        return order

    def _longest_paths(self) -> list[int | None]:
        depths: list[int | None] = [None] * len(self._steps)
        for number in self._order:
            step = self._steps[number]
            before = [depth for edge in self._edges(number) if (depth := depths[edge]) is not None]
            if before:
                depths[number] = max(before) + (step.op != _LINK)
            elif not step.inputs and step.op not in _NOT_INPUTS:
                depths[number] = 0
        return depths

    # -----------------------------------------------------------------------------------------------------------------
    # Values

    def holder(self, edge: Pair | None) -> Pair | None:
        """The operation and output that a value comes from, through operations that return their input unchanged."""
        for _ in range(len(self._steps) + 1):
            limits.current().step()
            if edge is None:
                return None
            step = self._steps[edge[0]]
            if step.op == "IdentityN":
                edge = step.inputs[edge[1]] if edge[1] < len(step.inputs) else None
            elif step.op in _SAME and step.inputs:
                edge = step.inputs[0]
            else:
                return edge
        return None

    def op(self, number: int) -> str:
        """What an operation computes."""
        return self._steps[number].op

    def inputs(self, number: int) -> Sequence[Pair | None]:
        """What an operation reads."""
        return self._steps[number].inputs

    def node(self, number: int) -> Node:
        """An operation."""
        node = self._steps[number].node
        assert node is not None  # holder() goes through links
        return node

    def constants(self) -> list[Tensor]:
        """Values of all constants."""
        return [
            tensor
            for step in self._steps
            if step.op == "Const" and step.node and (tensor := step.node.constant()) is not None
        ]

    def _constant(self, edge: Pair | None) -> list[int] | None:
        """A small constant of whole numbers."""
        holder = self.holder(edge)
        if holder is None or self.op(holder[0]) != "Const":
            return None
        tensor = self.node(holder[0]).constant()
        if tensor is None or not tensor.dtype.startswith("int") or math.prod(tensor.shape) > 64:
            return None
        return [int(value) for value in tensor.read().reshape(-1)]

    def restored(self) -> dict[int, str]:
        """Variables by the key under which the graph itself restores them from a checkpoint."""
        keys: dict[int, str] = {}
        listed: dict[int, tuple[str, ...]] = {}  # one list names all variables
        for step in self._steps:
            if step.op not in ("Assign", "AssignVariableOp") or len(step.inputs) < 2:
                continue
            variable, value = self.holder(step.inputs[0]), self.holder(step.inputs[1])
            if variable is None or value is None or self.op(value[0]) != "RestoreV2":
                continue
            inputs = self._steps[value[0]].inputs
            names = self.holder(inputs[1]) if len(inputs) > 1 else None
            if names is not None and self.op(names[0]) == "Const" and self.op(variable[0]) in _VARIABLES:
                if names[0] not in listed:
                    listed[names[0]] = self.node(names[0]).strings()
                if value[1] < len(listed[names[0]]):
                    keys[variable[0]] = listed[names[0]][value[1]]
        return keys

    # -----------------------------------------------------------------------------------------------------------------
    # Convolutions

    def convolutions(self) -> tuple[list[Convolution], list[Skipped]]:
        """Convolutions in order of depth, each weight where it is used first, and what was left out.

        The gradient of a convolution is one too, with the same weight; it comes deeper in the graph.
        """
        found: list[Convolution] = []
        skipped: list[Skipped] = []
        channels = self._channels()
        for number in self._order:
            step = self._steps[number]
            if step.op not in _CONVOLUTIONS or step.node is None:
                if step.node and re.search(r"Conv2[Dd]", step.op) and "Backprop" not in step.op:
                    skipped.append(Skipped(step.node.name, f"an operation of type {step.op}"))
                continue
            form, weight, image = _CONVOLUTIONS[step.op]
            if len(step.inputs) <= max(weight, image):
                continue
            holder = self.holder(step.inputs[weight])
            if holder is None or self.op(holder[0]) == _LINK:
                how = "an input of the network" if holder is None else "computed by a call"
                skipped.append(Skipped(step.node.name, f"its weight is {how}"))
                continue
            taken = step.inputs[image]
            found.append(
                Convolution(
                    name=step.node.name,
                    form=form,
                    source=holder[0],
                    depth=self._depths[number],
                    channels=None if taken is None else channels[taken[0]],
                    stride=_spatial(step.node, "strides"),
                    dilation=self._dilation(step.node, taken),
                )
            )
        ordered = set(self._order)
        skipped += [
            Skipped(step.node.name, "part of a cycle of operations that is not a TensorFlow loop")
            for number, step in enumerate(self._steps)
            if number not in ordered and step.op in _CONVOLUTIONS and step.node is not None
        ]
        found.sort(key=lambda conv: (conv.depth is None, conv.depth or 0))
        first: dict[int, Convolution] = {}
        for conv in found:
            first.setdefault(conv.source, conv)
        return list(first.values()), skipped

    def _dilation(self, node: Node, image: Pair | None) -> Pair | None:
        # Older versions put a dilated convolution between two operations that move pixels into the batch
        holder = self.holder(image)
        if holder is not None and self.op(holder[0]) == "SpaceToBatchND":
            block = self._constant(self._steps[holder[0]].inputs[1])
            return (block[0], block[1]) if block is not None and len(block) == 2 else None
        return _spatial(node, "dilations") or (1, 1)

    def _channels(self) -> list[int | None]:
        """Channels of the output of every operation, if the operations before it determine them."""
        channels: list[int | None] = [None] * len(self._steps)
        for number in self._order:
            step = self._steps[number]
            inputs = [None if edge is None else channels[edge[0]] for edge in step.inputs]
            channels[number] = self._channels_of(step, inputs)
        return channels

    def _channels_of(self, step: _Step, inputs: list[int | None]) -> int | None:
        node = step.node
        if step.op in _CONVOLUTIONS:
            return self._given(step)
        if step.op in _KEEP and inputs:
            return next((count for count in inputs if count is not None), None) if step.op == "Merge" else inputs[0]
        if step.op in _ELEMENTWISE:
            return max((count for count in inputs if count is not None), default=None)
        if node is None:
            return None
        axis = -1 if node.text("data_format") != "NCHW" else 1
        if step.op in ("Placeholder", "PlaceholderV2", "_Arg"):
            shape = node.shape("shape")
            return shape[axis] if shape is not None and len(shape) == 4 else None
        if step.op in ("ConcatV2", "Concat") and len(inputs) > 1:
            parts, where = (inputs[:-1], step.inputs[-1]) if step.op == "ConcatV2" else (inputs[1:], step.inputs[0])
            known = [count for count in parts if count is not None]
            if len(known) == len(parts) and self._constant(where) in ([3], [-1]):
                return sum(known)
        if (
            step.op in ("DepthToSpace", "SpaceToDepth")
            and inputs
            and inputs[0]
            and (block := node.integers("block_size"))
        ):
            area = max(block[0], 1) ** 2
            return inputs[0] // area if step.op == "DepthToSpace" else inputs[0] * area
        if step.op == "Mean" and inputs and node.integers("keep_dims") == (1,):
            return inputs[0]
        if step.op == "Reshape" and len(step.inputs) > 1:
            target = self._constant(step.inputs[1])
            return target[-1] if target and len(target) == 4 and target[-1] > 0 else None
        return None

    def _given(self, step: _Step) -> int | None:
        form, weight, _ = _CONVOLUTIONS[step.op]
        holder = self.holder(step.inputs[weight]) if len(step.inputs) > weight else None
        if holder is None or form == "volume":
            return None
        shape = self.weight_shape(holder[0])
        if shape is None or len(shape) != 4:
            return None
        *_, second, last = shape
        if second is None or last is None:
            return None
        return {"conv": last, "depthwise": second * last, "transposed": second}[form]

    def weight_shape(self, number: int) -> tuple[int | None, ...] | None:
        """Shape of what a constant or a variable holds."""
        node = self._steps[number].node
        if node is None:
            return None
        if self.op(number) == "Const":
            tensor = node.constant()
            return None if tensor is None else tensor.shape
        return node.shape("shape")


def _find(scope: Mapping[str, int | list[int]], reference: str) -> Pair | None:
    name, *rest = reference.split(":")
    output = int(rest[-1]) if rest and rest[-1].isdecimal() and len(rest[-1]) < 10 else 0
    target = scope.get(name)
    if isinstance(target, list):
        return (target[output], 0) if output < len(target) else None
    return None if target is None else (target, output)


def _spatial(node: Node, key: str) -> Pair | None:
    values = node.integers(key)
    if len(values) != 4 or not all(0 < value < 1 << 31 for value in values):
        return None
    return (values[2], values[3]) if node.text("data_format") == "NCHW" else (values[1], values[2])


# ---------------------------------------------------------------------------------------------------------------------
# Layers

_WEIGHT_LEAF = re.compile(
    r"/(?:kernel|weights?|filters?|W|w|depthwise_kernel|depthwise_weights|pointwise_kernel|pointwise_weights)"
    r"(?:_\d+)?(?::0)?$"
)
_READING = re.compile(r"(?:/(?:read|resource|ReadVariableOp|Identity|Enter))+(?:_\d+)?$")
_OPERATION = re.compile(
    r"(?:/(?:Conv2D|convolution|depthwise|separable_conv2d|conv2d_transpose|conv_transpose|Conv2DBackpropInput|"
    r"DepthwiseConv2d(?:Native)?)(?:_\d+)?)+$"
)


def layer_name(holder: str, operation: str) -> str:
    """Name of a layer: that of its weight where this is called a kernel, else that of the operation, without its kind.

    >>> layer_name("net/conv1/kernel/read", "net/conv1/Conv2D"), layer_name("Const_3", "net/conv2/Conv2D")
    ('net/conv1', 'net/conv2')
    """
    name = _READING.sub("", holder)
    return _WEIGHT_LEAF.sub("", name) if _WEIGHT_LEAF.search(name) else _OPERATION.sub("", _READING.sub("", operation))


def layer(conv: Convolution, tensor: Tensor, holder: str) -> ConvLayer | Skipped:
    """A layer, from a convolution and its weight.

    Args:
        conv: The convolution.
        tensor: Its weight: (h, w, in / groups, out), or for a depthwise convolution (h, w, in, multiplier), or for a
            transposed one (h, w, out, in).
        holder: Name of the constant or variable.
    """
    if conv.form == "volume":
        return Skipped(conv.name, _VOLUME)
    return turned(
        layer_name(holder, conv.name),
        tensor,
        form=conv.form,
        axes=_AXES[conv.form],
        channels=conv.channels,
        stride=conv.stride,
        dilation=conv.dilation,
    )


def _is_stored(op: str) -> bool:
    return op in _VARIABLES or op == "Const"


def dataflow_layers(flow: Dataflow, weight: Callable[[int], Tensor | Skipped]) -> tuple[list[ConvLayer], list[Skipped]]:
    """The layers of a graph.

    Args:
        flow: The graph.
        weight: Finds the tensor that a constant or variable holds, or the reason why there is none.

    Returns:
        The layers in order of depth, and what was left out.
    """
    convolutions, skipped = flow.convolutions()
    found: list[tuple[ConvLayer, Convolution, str]] = []
    for conv in convolutions:
        holder = flow.node(conv.source).name
        tensor: Tensor | Skipped
        if _is_stored(flow.op(conv.source)):
            tensor = weight(conv.source)
        elif conv.form == "volume":
            tensor = Skipped(conv.name, _VOLUME)
        else:
            made = computed(flow, conv.source, weight, _is_stored)
            tensor, holder = (Skipped(conv.name, f"its weight is {made}"), holder) if isinstance(made, str) else made
        if isinstance(tensor, Skipped):
            skipped.append(tensor)
            continue
        one = layer(conv, tensor, holder)
        if isinstance(one, Skipped):
            skipped.append(one)
        else:
            found.append((one, conv, holder))
    ranks = conv_depths([conv.depth for _, conv, _ in found])
    placed = [
        replace(
            _stem(one, rank),
            conv_depth=rank,
            conv_depth_norm=norm,
            depth_source=None if rank is None else "graph",
        )
        for (one, _, _), (rank, norm) in zip(found, ranks, strict=True)
    ]
    return unique_names(placed, [_READING.sub("", holder) for _, _, holder in found]), skipped


def _stem(one: ConvLayer, rank: int | None) -> ConvLayer:
    # The image that the first layer takes has at most four channels, so a layer of as many is not grouped
    if rank == 0 and one.kind is None and one.shape[1] <= 4:
        return replace(one, kind="conv", groups=1, in_channels=one.shape[1])
    return one
