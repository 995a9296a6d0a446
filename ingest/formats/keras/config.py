"""The configuration of a Keras model: its layers, in order of execution, and their depths.

A configuration is JSON and is treated as data: Lambda layers, custom classes and initialisers, whose code or names it
may contain, are never looked up.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

__all__ = ["ConvClass", "LayerNode", "conv_class", "leaves", "parse", "place"]


@dataclass(frozen=True, slots=True)
class ConvClass:
    """What the name of a class says about a convolution.

    Attributes:
        kind: conv, depthwise, separable (a depthwise and a 1x1 convolution) or transposed.
        dimensions: 1, 2 or 3.
    """

    kind: str
    dimensions: int


_CONV = re.compile(r"(separable|depthwise)?(?:atrous)?(de)?conv(?:olution)?([123])d(transpose)?")


def conv_class(name: str, *, whole: bool = True) -> ConvClass | None:
    """Read the name of a class, or of a layer that Keras has named after its class.

    Args:
        name: Such as ``Conv2D``, ``SeparableConvolution2D`` (Keras 1) or ``conv2d_transpose_3``; case and underscores
            do not count.
        whole: The name ends there, as that of a class does. A layer may have more after it.

    >>> conv_class("MyDepthwiseConv2D"), conv_class("Cropping2D")
    (ConvClass(kind='depthwise', dimensions=2), None)
    >>> conv_class("conv2d_transpose_3", whole=False)
    ConvClass(kind='transposed', dimensions=2)
    """
    plain = name.rpartition(">")[2].replace("_", "").lower()
    found = re.search(f"{_CONV.pattern}$", plain) if whole else _CONV.match(plain)
    if found is None:
        return None
    before, deconvolution, dimensions, transpose = found.groups()
    kind = before or ("transposed" if deconvolution or transpose else "conv")
    return ConvClass(kind, int(dimensions))


@dataclass(eq=False, slots=True)
class LayerNode:
    """A layer, or a model used as a layer.

    Attributes:
        name: Its name in the model that contains it.
        full_name: The names of the models that contain it and its own, with slashes.
        class_name: Its class; that of the wrapped layer for wrappers such as TimeDistributed.
        wrapper: Class of the wrapper, if there is one.
        wrapped_at: Where the weights of Keras 3 have the wrapper itself.
        config: Its configuration.
        path: Where the weights of Keras 3 have it: a group for each model on the way, named after its class.
        children: The layers of a model, in order; None for a layer.
        calls: For each time that it is used, the (layer, call) pairs that it reads from; None in a Sequential model.
        inputs: Layers that take the inputs of a model.
        outputs: The (layer, call) pairs that give the outputs of a model.
        depth: Longest path from an input, None where it is not known.
        used: Whether an output depends on it, None where that is not known.
        normalised: Whether a batch normalisation reads its result, None where that is not known.
        norm: The batch normalisation that reads its result, where nothing else does.
    """

    name: str
    full_name: str
    class_name: str
    config: Mapping[str, Any]
    path: tuple[str, ...]
    wrapper: str | None = None
    wrapped_at: tuple[str, ...] | None = None
    children: list[LayerNode] | None = None
    calls: list[list[tuple[str, int]]] | None = None
    inputs: list[str] = field(default_factory=list)
    outputs: list[tuple[str, int]] = field(default_factory=list)
    depth: int | None = None
    used: bool | None = None
    normalised: bool | None = None
    norm: LayerNode | None = None


def parse(config: Any) -> LayerNode | None:
    """Read the configuration of a model.

    Args:
        config: Content of the JSON of ``model_config`` or ``config.json``.

    Returns:
        The model, or None if the configuration names no layers, as for a model with its own code.

    >>> convolution = {"class_name": "Conv2D", "config": {"name": "stem", "filters": 8}}
    >>> model = parse({"class_name": "Sequential", "config": {"name": "net", "layers": [convolution]}})
    >>> [(layer.full_name, layer.class_name) for layer in leaves(model)]
    [('stem', 'Conv2D')]
    """
    if not isinstance(config, Mapping):
        return None
    node = _node(config, "", (), {})
    return None if node is None or node.children is None else node


def leaves(node: LayerNode) -> Iterator[LayerNode]:
    """The layers of a model, with those of nested models in place of the models."""
    if node.children is None:
        yield node
    for child in node.children or ():
        yield from leaves(child)


def _node(entry: Any, prefix: str, path: tuple[str, ...], taken: dict[str, int], root: bool = True) -> LayerNode | None:
    if not isinstance(entry, Mapping) or not isinstance(entry.get("class_name"), str):
        return None
    config = entry.get("config")
    class_name = entry["class_name"].rpartition(">")[2]
    group = _snake_case(class_name)
    taken[group] = taken.get(group, -1) + 1
    if not root:
        path = (*path, f"{group}_{taken[group]}" if taken[group] else group)
    name = entry.get("name")
    if not isinstance(name, str):
        name = config.get("name") if isinstance(config, Mapping) else None
    name = name if isinstance(name, str) else group
    full_name = "" if root else f"{prefix}{name}"
    node = LayerNode(name, full_name, class_name, config if isinstance(config, Mapping) else {}, path)
    inbound = entry.get("inbound_nodes")
    if isinstance(inbound, list):
        # An input layer is used once, and reads nothing
        node.calls = [list(_references(call)) for call in inbound] or [[]]

    layers = config if isinstance(config, list) else node.config.get("layers")
    inner = node.config.get("layer")
    if isinstance(layers, list) and class_name != "Merge":
        names: dict[str, int] = {}
        inside = f"{full_name}/" if full_name else ""
        children = [_node(layer, inside, path, names, root=False) for layer in layers]
        node.children = [child for child in children if child is not None]
        node.inputs = [name for name, _ in _references(node.config.get("input_layers"))]
        node.outputs = list(_references(node.config.get("output_layers")))
    elif isinstance(inner, Mapping) and (wrapped := _node(inner, full_name, (*path, "layer"), {}, root=True)):
        # The wrapper is called; the wrapped layer has the weights
        node.wrapper, node.wrapped_at, node.class_name = class_name, path, wrapped.class_name
        node.config, node.path, node.children = wrapped.config, wrapped.path, wrapped.children
        node.inputs, node.outputs = wrapped.inputs, wrapped.outputs
    return node


def _references(value: Any) -> Iterator[tuple[str, int]]:
    """(layer, call) of all tensors named in a piece of configuration, of Keras 2 and 3, in order.

    Keras 2 writes a tensor as [layer, call, output] with or without arguments after it; Keras 3 puts such a list into
    ``keras_history``.
    """
    if isinstance(value, Mapping):
        for part in value.values():
            yield from _references(part)
    elif isinstance(value, list):
        if len(value) >= 3 and isinstance(value[0], str) and all(type(number) is int for number in value[1:3]):
            if value[1] >= 0:  # Keras 2 writes a constant as ["_CONSTANT_VALUE", -1, value, arguments]
                yield value[0], value[1]
            for part in value[3:]:
                yield from _references(part)
        else:
            for part in value:
                yield from _references(part)


def _snake_case(name: str) -> str:
    """The name that Keras 3 derives from a class: words are split where a capital follows a lower-case letter.

    >>> _snake_case("DepthwiseConv2D"), _snake_case("Conv2DTranspose"), _snake_case("ReLU")
    ('depthwise_conv2d', 'conv2d_transpose', 're_lu')
    """
    name = re.sub(r"\W+", "", name)
    name = re.sub(r"(.)([A-Z][a-z]+)", r"\1_\2", name)
    return re.sub(r"([a-z])([A-Z])", r"\1_\2", name).lower()


# ---------------------------------------------------------------------------------------------------------------------
# Depth

_MAX_CALLS = 1_000_000


class _UnknownGraphError(Exception):
    """The configuration does not describe a graph."""


def place(model: LayerNode) -> None:
    """Set depth, use and what follows of all layers, where the configuration has the whole graph.

    The depth is the longest path, in layers, from an input to the first use of a layer; layers that read an input have
    depth 0, a separable convolution counts as two layers. Models used as layers are entered.
    """
    placer = _Placer()
    try:
        placer.run(model, [-1] * max(len(model.inputs), 1))
    except _UnknownGraphError:
        return
    for node in leaves(model):
        node.depth = placer.depths.get(node)
        node.used = node in placer.depths
        if node.used:
            node.normalised = node in placer.normalised
            readers = placer.readers.get(node, [None])
            if all(reader is readers[0] for reader in readers) and node in placer.normalised:
                node.norm = readers[0]


class _Placer:
    def __init__(self) -> None:
        self.depths: dict[LayerNode, int] = {}
        self.normalised: set[LayerNode] = set()
        self.readers: dict[LayerNode, list[LayerNode | None]] = {}  # None means the caller of the model
        self.count = 0

    def run(self, model: LayerNode, inputs: Sequence[int]) -> int:
        """Depth of the deepest output of a model, given the depths of what goes into it."""
        children = model.children or []
        if model.outputs:
            return self.functional(model, children, inputs)
        if any(child.calls is not None for child in children):
            raise _UnknownGraphError  # connected layers whose outputs are not stated
        depth = max(inputs, default=-1)
        for before, child in zip([None, *children], children, strict=False):
            depth = self.call(child, [depth], [before] if before else [])
        return depth

    def functional(self, model: LayerNode, children: Sequence[LayerNode], inputs: Sequence[int]) -> int:
        by_name = {child.name: child for child in children}
        for name, _ in model.outputs:
            if name in by_name:
                self.readers.setdefault(by_name[name], []).append(None)
        given = dict(zip(model.inputs, inputs, strict=False)) if len(model.inputs) == len(inputs) else {}
        done: dict[tuple[str, int], int] = {}
        started: set[tuple[str, int]] = set()
        stack = list(reversed(model.outputs))
        while stack:
            key = stack[-1]
            if key in done:
                stack.pop()
                continue
            child = by_name.get(key[0])
            if child is None or child.calls is None or key[1] >= len(child.calls):
                raise _UnknownGraphError
            reads = child.calls[key[1]]
            missing = [source for source in reads if source not in done]
            if missing:
                if key in started:
                    raise _UnknownGraphError  # circular
                started.add(key)
                stack += missing
                continue
            stack.pop()
            if reads:
                done[key] = self.call(child, [done[source] for source in reads], [by_name[name] for name, _ in reads])
            else:
                done[key] = given.get(child.name, max(inputs, default=-1))
                self.depths.setdefault(child, done[key])
        return max(done[key] for key in model.outputs)

    def call(self, node: LayerNode, inputs: Sequence[int], before: Sequence[LayerNode]) -> int:
        self.count += 1
        if self.count > _MAX_CALLS:
            raise _UnknownGraphError
        for source in before:
            self.readers.setdefault(source, []).append(node)
        if "BatchNorm" in node.class_name:
            self.normalised.update(before)
        if node.children is not None:
            return self.run(node, inputs)
        if node.class_name == "InputLayer":
            return max(inputs)
        depth = max(inputs) + 1
        self.depths[node] = min(depth, self.depths.get(node, depth))
        found = conv_class(node.class_name)
        return depth + 1 if found is not None and found.kind == "separable" else depth
