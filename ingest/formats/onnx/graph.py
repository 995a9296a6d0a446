"""The graph of an ONNX model, flat: every node that runs, in order, with its depth and whether its result is used.

The bodies of control flow (``If``, ``Loop``, ``Scan``) replace their node, those of the model's own functions each
call.
 Nothing is computed and no tensor is decoded.
"""

from __future__ import annotations

import heapq
from collections import ChainMap
from collections.abc import Iterable, Iterator, Mapping, MutableMapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import onnx
from onnx import AttributeProto, numpy_helper

from cnnfilterdb.core.errors import WeightFileError
from cnnfilterdb.ingest.formats import limits

__all__ = ["MAX_STEPS", "Graph", "Step", "Value", "flatten"]

#: A model that expands to more nodes is refused. The largest of published models have some 100,000.
MAX_STEPS = 1_000_000
_MAX_CALLS = 50  # functions that call each other
# Memory in bytes of a node with its results, and of each connection between nodes
_BYTES_PER_STEP, _BYTES_PER_EDGE = 1536, 64

_STANDARD = ("", "ai.onnx")


@dataclass(eq=False, slots=True)
class Value:
    """The result of a node, an input, or a constant of the file.

    Attributes:
        name: Its name in its own graph.
        depth: Depth of the node that makes it, -1 for an input of the model, None for what depends on no input.
        constant: True if it follows from the file alone.
        tensor: The tensor, for a constant that is stored as one.
        maker: The step that computes it.
        readers: The steps that read it.
    """

    name: str
    depth: int | None = None
    constant: bool = False
    tensor: Any = None
    maker: Step | None = None
    readers: list[Step] = field(default_factory=list)


@dataclass(eq=False, slots=True)
class Step:
    """A node that runs.

    Attributes:
        node: The node.
        domain: Its operator set; empty for that of ONNX itself.
        version: Version of that operator set, 0 if the model does not state it.
        attributes: Its attributes by name; those that a function passes on are resolved.
        scope: Names of the functions and branches that contain it, each with a slash.
        inputs: What it reads, by position; None for an input that is left out.
        outputs: What it makes.
        bodies: Results of the bodies of its branches or of its loop.
        number: Its place in the order of execution.
        depth: Longest path, in edges, from an input of the model; None when no path leads to it.
        used: Whether its result reaches an output of the model.
    """

    node: Any
    domain: str
    version: int
    attributes: dict[str, Any]
    scope: str
    inputs: list[Value | None] = field(default_factory=list)
    outputs: list[Value] = field(default_factory=list)
    bodies: list[Value] = field(default_factory=list)
    number: int = 0
    depth: int | None = None
    used: bool = False

    @property
    def op(self) -> str:
        """Name of the operator."""
        return str(self.node.op_type)

    @property
    def name(self) -> str:
        """Name of the node with its scope; a node without a name is called by its operator."""
        return f"{self.scope}{self.node.name or self.op}"

    def input(self, index: int) -> Value | None:
        """An input by position, None where it is left out."""
        return self.inputs[index] if index < len(self.inputs) else None

    def integer(self, name: str, default: int) -> int:
        """An attribute that is a whole number."""
        attribute = self.attributes.get(name)
        return int(attribute.i) if attribute is not None and attribute.type == AttributeProto.INT else default

    def integers(self, name: str) -> tuple[int, ...] | None:
        """An attribute that is a list of whole numbers, None where there is none."""
        attribute = self.attributes.get(name)
        return tuple(attribute.ints) if attribute is not None and attribute.type == AttributeProto.INTS else None


@dataclass(frozen=True, slots=True)
class Graph:
    """A flat graph.

    Attributes:
        steps: All nodes that run, each after those whose results it reads.
        tensors: All constants that are stored as tensors.
    """

    steps: tuple[Step, ...]
    tensors: tuple[Value, ...]


def flatten(model: Any, origin: str) -> Graph:
    """Flatten the nodes of a model into one list.

    The depth of a node is its longest path, in edges, from an input of the model, nodes of all kinds counted: those
    that read an input have depth 0. Nodes that depend on constants alone have none. Nodes in the body of an
    ``If`` or a ``Loop`` are deeper than that node.

    Args:
        model: An ``onnx.ModelProto``.
        origin: What to call the file in an error message.

    Raises:
        WeightFileError: The graph is circular, a function calls itself, or it expands to too many nodes.

    >>> from onnx import TensorProto, helper
    >>> nodes = [helper.make_node("Relu", ["x"], ["y"]), helper.make_node("Neg", ["y"], ["z"])]
    >>> x, z = (helper.make_tensor_value_info(name, TensorProto.FLOAT, [1]) for name in "xz")
    >>> graph = flatten(helper.make_model(helper.make_graph(nodes, "g", [x], [z])), "two.onnx")
    >>> [(step.op, step.depth, step.used) for step in graph.steps]
    [('Relu', 0, True), ('Neg', 1, True)]
    """
    builder = _Builder(model, origin)
    outputs = builder.main(model.graph)
    _mark_used(builder.steps, outputs)
    return Graph(tuple(builder.steps), tuple(builder.tensors))


def _mark_used(steps: Sequence[Step], outputs: Iterable[Value]) -> None:
    for value in outputs:
        if value.maker:
            value.maker.used = True
    for step in reversed(steps):
        if step.used:
            for source in (*step.inputs, *step.bodies):
                if source is not None and source.maker:
                    source.maker.used = True


@dataclass(frozen=True, slots=True)
class _Frame:
    """The surroundings of nodes: what is visible to them besides their own graph."""

    scope: str
    versions: Mapping[str, int]
    attributes: Mapping[str, Any] | None  # those of the function that is called; None outside of functions
    floor: int | None = None  # depth of the control flow that contains them
    calls: tuple[tuple[str, str, str], ...] = ()


class _Builder:
    def __init__(self, model: Any, origin: str) -> None:
        self.origin = origin
        self.steps: list[Step] = []
        self.tensors: list[Value] = []
        self.count = 0
        self.versions = _versions(model.opset_import)
        self.functions = {_function_key(function): function for function in model.functions}

    def main(self, graph: Any) -> list[Value]:
        names = {value.name: Value(value.name, depth=-1) for value in graph.input}
        return self.graph(graph, names, _Frame("", self.versions, None))

    def graph(self, graph: Any, names: MutableMapping[str, Value], frame: _Frame) -> list[Value]:
        """Append the steps of a graph; names maps what is visible in it and is added to."""
        # Up to IR version 3 initialisers had to be listed as inputs too, so they go before those
        for tensor in graph.initializer:
            names[tensor.name] = self.stored(tensor.name, tensor)
        for tensor in graph.sparse_initializer:
            names[tensor.values.name] = self.stored(tensor.values.name, tensor)
        self.nodes(graph.node, names, frame)
        return [names.get(value.name) or Value(value.name) for value in graph.output]

    def stored(self, name: str, tensor: Any) -> Value:
        limits.current().allocate(_BYTES_PER_STEP // 2)
        value = Value(name, constant=True, tensor=tensor)
        self.tensors.append(value)
        return value

    def nodes(self, nodes: Sequence[Any], names: MutableMapping[str, Value], frame: _Frame) -> None:
        for node in self.sorted(nodes):
            self.count += 1
            if self.count > MAX_STEPS:
                raise WeightFileError(f"{self.origin}: its graph expands to more than {MAX_STEPS:,} nodes; refused")
            edges = len(node.input) + len(node.output) + len(node.attribute)
            limits.current().allocate(_BYTES_PER_STEP + _BYTES_PER_EDGE * edges)
            function = self.functions.get(_call_key(node))
            if function is not None:
                self.call(node, function, names, frame)
            else:
                self.step(node, names, frame)

    def step(self, node: Any, names: MutableMapping[str, Value], frame: _Frame) -> None:
        domain = "" if node.domain in _STANDARD else node.domain
        attributes = _attributes(node, frame.attributes)
        step = Step(node, domain, frame.versions.get(domain, 0), attributes, frame.scope)
        step.inputs = [(names.get(name) or Value(name)) if name else None for name in node.input]
        before = [value.depth for value in step.inputs if value is not None and value.depth is not None]
        if before:
            step.depth = max(before) + 1 if frame.floor is None else max(*before, frame.floor) + 1
        bodies = list(_bodies(attributes))
        depth = step.depth
        for label, body in bodies:
            inner = _Frame(
                f"{frame.scope}{node.name or node.op_type}/{label}/",
                frame.versions,
                frame.attributes,
                step.depth if step.depth is not None else frame.floor,
                frame.calls,
            )
            inputs = {value.name: Value(value.name, depth=step.depth) for value in body.input}
            step.bodies += self.graph(body, ChainMap(inputs, names), inner)
        for value in step.bodies:
            if value.depth is not None:
                depth = max(value.depth, -1 if depth is None else depth)
        constant = (
            not bodies
            and all(value is None or value.constant for value in step.inputs)
            and "Random" not in step.op
            and step.op not in ("Bernoulli", "Multinomial")
        )
        tensor = _constant_tensor(step) if step.op == "Constant" and not domain else None
        for name in node.output:
            value = self.stored(name, tensor) if tensor is not None else Value(name, depth, constant, maker=step)
            step.outputs.append(value)
            if name:
                names[name] = value
        for source in step.inputs:
            if source is not None:
                source.readers.append(step)
        step.number = len(self.steps)
        self.steps.append(step)

    def call(self, node: Any, function: Any, names: MutableMapping[str, Value], frame: _Frame) -> None:
        key = _function_key(function)
        if key in frame.calls:
            raise WeightFileError(f"{self.origin}: function {function.name} calls itself, which ONNX does not allow")
        if len(frame.calls) == _MAX_CALLS:
            raise WeightFileError(f"{self.origin}: its functions call each other more than {_MAX_CALLS} deep; refused")
        given = _attributes(node, frame.attributes)
        attributes = {attribute.name: attribute for attribute in function.attribute_proto}
        attributes |= {name: given[name] for name in (*function.attribute, *attributes) if name in given}
        inner = _Frame(
            f"{frame.scope}{node.name or node.op_type}/",
            _versions(function.opset_import) or frame.versions,
            attributes,
            frame.floor,
            (*frame.calls, key),
        )
        inside = {
            parameter: names[name]
            for parameter, name in zip(function.input, node.input, strict=False)
            if name and name in names
        }
        self.nodes(function.node, inside, inner)
        for name, result in zip(node.output, function.output, strict=False):
            if name:
                names[name] = inside.get(result) or Value(result)

    def sorted(self, nodes: Sequence[Any]) -> Iterator[Any]:
        """The nodes, each after those that it reads from; in file order where that is right, as it should be."""
        limits.current().allocate(_BYTES_PER_STEP // 2 * len(nodes))
        makers: dict[str, int] = {}
        for number, node in enumerate(nodes):
            for name in node.output:
                if name:
                    makers.setdefault(name, number)
        needs = [{makers[name] for name in _reads(node) if name in makers} for node in nodes]
        if all(before < number for number, needed in enumerate(needs) for before in needed):
            yield from nodes
            return
        followers: dict[int, list[int]] = {}
        missing = [len(needed) for needed in needs]
        for number, needed in enumerate(needs):
            for before in needed:
                followers.setdefault(before, []).append(number)
        ready = [number for number, count in enumerate(missing) if not count]
        done = 0
        while ready:
            number = heapq.heappop(ready)
            done += 1
            yield nodes[number]
            for follower in followers.get(number, ()):
                missing[follower] -= 1
                if not missing[follower]:
                    heapq.heappush(ready, follower)
        if done < len(nodes):
            raise WeightFileError(f"{self.origin}: its graph is circular, which ONNX does not allow")


def _versions(imports: Iterable[Any]) -> dict[str, int]:
    return {"" if entry.domain in _STANDARD else entry.domain: entry.version for entry in imports}


def _function_key(function: Any) -> tuple[str, str, str]:
    return ("" if function.domain in _STANDARD else function.domain, function.name, getattr(function, "overload", ""))


def _call_key(node: Any) -> tuple[str, str, str]:
    return ("" if node.domain in _STANDARD else node.domain, node.op_type, getattr(node, "overload", ""))


def _attributes(node: Any, passed: Mapping[str, Any] | None) -> dict[str, Any]:
    attributes = {}
    for attribute in node.attribute:
        if attribute.ref_attr_name:
            attribute_of_call = (passed or {}).get(attribute.ref_attr_name)
            if attribute_of_call is None:
                continue
            attributes[attribute.name] = attribute_of_call
        else:
            attributes[attribute.name] = attribute
    return attributes


def _bodies(attributes: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
    for name, attribute in attributes.items():
        if attribute.type == AttributeProto.GRAPH:
            yield name, attribute.g
        elif attribute.type == AttributeProto.GRAPHS:
            for number, graph in enumerate(attribute.graphs):
                yield f"{name}.{number}", graph


def _reads(node: Any) -> Iterator[str]:
    """Names that a node reads, those in its bodies included, whichever graph they belong to."""
    yield from node.input
    for attribute in node.attribute:
        graphs = [attribute.g] if attribute.type == AttributeProto.GRAPH else attribute.graphs
        for graph in graphs:
            inside = {value.name for value in graph.input} | {tensor.name for tensor in graph.initializer}
            inside.update(name for inner in graph.node for name in inner.output)
            for inner in graph.node:
                yield from (name for name in _reads(inner) if name not in inside)
            yield from (value.name for value in graph.output if value.name not in inside)


def _constant_tensor(step: Step) -> Any:
    """The tensor of a Constant node, whichever of its attributes holds it."""
    for name, attribute in step.attributes.items():
        if name == "value" and attribute.type == AttributeProto.TENSOR:
            return attribute.t
        if name == "sparse_value" and attribute.type == AttributeProto.SPARSE_TENSOR:
            return attribute.sparse_tensor
        if name in ("value_float", "value_floats", "value_int", "value_ints"):
            value = onnx.helper.get_attribute_value(attribute)
            return numpy_helper.from_array(np.asarray(value, np.float32 if "float" in name else np.int64))
    return None
