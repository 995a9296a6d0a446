"""Weights that a TensorFlow graph computes from its constants and variables.

A graph may multiply a kernel by the scale of a batch normalisation, round it as quantisation-aware training does, or
standardise it. Such a weight is evaluated by NumPy, operation by operation; an operation that is not in the list
below is named instead. What is computed is accounted for (:mod:`~cnnfilterdb.ingest.formats.limits`).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any, Protocol, TypeAlias

import numpy as np
import numpy.typing as npt

from cnnfilterdb.core.errors import WeightFileError
from cnnfilterdb.ingest.formats import limits
from cnnfilterdb.ingest.formats.damage import reason_of
from cnnfilterdb.ingest.network.axes import Pair
from cnnfilterdb.ingest.network.layers import Skipped, Tensor

__all__ = ["computed"]

_Array: TypeAlias = npt.NDArray[Any]
_MAX_STEPS = 10_000  # operations behind one weight


class _Node(Protocol):
    @property
    def name(self) -> str: ...
    def integers(self, key: str) -> tuple[int, ...]: ...
    def numbers(self, key: str) -> tuple[float, ...]: ...


class _Graph(Protocol):
    def op(self, number: int) -> str: ...
    def node(self, number: int) -> Any: ...
    def inputs(self, number: int) -> Sequence[Pair | None]: ...
    def holder(self, edge: Pair | None) -> Pair | None: ...


class _NotEvaluatedError(Exception):
    """Why a weight cannot be computed."""


def computed(
    graph: _Graph, number: int, stored: Callable[[int], Tensor | Skipped], is_stored: Callable[[str], bool]
) -> tuple[Tensor, str] | str:
    """A weight that operations compute.

    Args:
        graph: The graph.
        number: The operation that makes it.
        stored: Finds the tensor that a constant or variable holds.
        is_stored: Whether an operation of a name holds a tensor.

    Returns:
        The weight, and the name of the largest tensor that it is computed from; or the operation that computes it,
        where that is not evaluated.
    """
    try:
        order = _behind(graph, number, is_stored)
        sources: dict[int, Tensor] = {}
        for one in order:
            if is_stored(graph.op(one)):
                tensor = stored(one)
                if isinstance(tensor, Skipped):
                    raise _NotEvaluatedError(f"computed from {tensor.name}: {tensor.reason}")
                sources[one] = tensor
        shape = _value(graph, number, order, sources).shape
    except _NotEvaluatedError as error:
        return str(error)
    if not sources:
        return "not computed from any tensor of the file"
    largest = max(sources, key=lambda one: math.prod(sources[one].shape))

    def read() -> npt.NDArray[np.generic]:
        return np.asarray(_value(graph, number, order, sources), np.float32)

    parts = tuple(part for source in sources.values() for part in source.parts)
    return Tensor(sources[largest].name, shape, sources[largest].dtype, read, parts=parts), graph.node(largest).name


def _behind(graph: _Graph, number: int, is_stored: Callable[[str], bool]) -> list[int]:
    """The operations behind a value, each after those that it reads."""
    order: list[int] = []
    state: dict[int, bool] = {}  # whether it is finished
    stack = [number]
    while stack:
        limits.current().step()
        one = stack[-1]
        if state.get(one):
            stack.pop()
            continue
        op = graph.op(one)
        if not is_stored(op) and op not in _OPERATIONS:
            raise _NotEvaluatedError(f"computed by {op or 'a call'}")
        reads = [] if is_stored(op) else [edge[0] for edge in _reads(graph, one)]
        missing = [source for source in reads if not state.get(source)]
        if not missing or one in state:
            if missing:
                raise _NotEvaluatedError("computed in a cycle")
            state[one] = True
            order.append(one)
            stack.pop()
            continue
        state[one] = False
        stack += missing
        if len(state) > _MAX_STEPS:
            raise _NotEvaluatedError(f"computed by more than {_MAX_STEPS:,} operations")
    return order


def _reads(graph: _Graph, number: int) -> list[Pair]:
    edges = [graph.holder(edge) for edge in graph.inputs(number)]
    if not edges or any(edge is None for edge in edges):
        raise _NotEvaluatedError("computed from an input of the network")
    return [edge for edge in edges if edge is not None]


def _value(graph: _Graph, number: int, order: Sequence[int], sources: dict[int, Tensor]) -> _Array:
    values: dict[int, _Array] = {}
    for one in order:
        if one in sources:
            limits.current().allocate(4 * math.prod(sources[one].shape))
            values[one] = np.asarray(sources[one].read())
            continue
        op = graph.op(one)
        given = [values[edge[0]] for edge in _reads(graph, one)]
        try:
            # None of them makes more elements than its inputs broadcast to
            size = math.prod(np.broadcast_shapes(*(array.shape for array in given))) if op in _ELEMENTWISE else 0
            limits.current().allocate(2 * max(size, *(array.size for array in given)) * 8)
            with np.errstate(all="ignore"):
                values[one] = np.asarray(_OPERATIONS[op](graph.node(one), *given))
        except WeightFileError:
            raise
        except Exception as error:  # shapes and attributes come from the file
            raise _NotEvaluatedError(f"computed by {op}, which fails ({reason_of(error)})") from error
    return values[number]


# ---------------------------------------------------------------------------------------------------------------------
# Operations, as TensorFlow defines them


def _axes(axes: _Array) -> tuple[int, ...]:
    return tuple(int(axis) for axis in axes.reshape(-1))


def _reduced(function: Callable[..., Any]) -> Callable[..., _Array]:
    def reduce(node: _Node, values: _Array, axes: _Array) -> _Array:
        keep = any(node.integers("keep_dims"))
        return np.asarray(function(values, axis=_axes(axes), keepdims=keep))

    return reduce


def _fake_quantised(node: _Node, values: _Array, low: _Array, high: _Array) -> _Array:
    """Rounded to the numbers that integers of a few bits represent, the range nudged so that 0 is one of them."""
    bits = (node.integers("num_bits") or (8,))[-1]
    if not 2 <= bits <= 16:
        raise ValueError(f"{bits} bits")
    least, most = float(any(node.integers("narrow_range"))), float(2**bits - 1)
    low, high = low.astype(np.float32), high.astype(np.float32)
    scale = (high - low) / np.float32(most - least)
    zero = np.clip(np.floor(least - low / scale + np.float32(0.5)), least, most)
    bottom, top = (np.float32(least) - zero) * scale, (np.float32(most) - zero) * scale
    shifted = np.clip(values, bottom, top) - bottom
    return np.asarray(np.floor(shifted / scale + np.float32(0.5)) * scale + bottom, np.float32)


def _fake_quantised_by_attributes(node: _Node, values: _Array) -> _Array:
    low, high = ((node.numbers(key) or (default,))[-1] for key, default in (("min", -6.0), ("max", 6.0)))
    return _fake_quantised(node, values, np.float32(low) * np.ones(()), np.float32(high) * np.ones(()))


_ELEMENTWISE: dict[str, Callable[..., Any]] = {
    "Add": np.add,
    "AddV2": np.add,
    "Sub": np.subtract,
    "Mul": np.multiply,
    "Div": np.divide,
    "RealDiv": np.divide,
    "DivNoNan": lambda a, b: np.where(b == 0, 0, a / np.where(b == 0, 1, b)),
    "Maximum": np.maximum,
    "Minimum": np.minimum,
    "Pow": np.power,
    "SquaredDifference": lambda a, b: np.square(a - b),
    "Neg": np.negative,
    "Abs": np.abs,
    "Square": np.square,
    "Sqrt": np.sqrt,
    "Rsqrt": lambda a: 1 / np.sqrt(a),
    "Exp": np.exp,
    "Log": np.log,
    "Tanh": np.tanh,
    "Sign": np.sign,
    "Round": np.round,
}


def _plain(function: Callable[..., Any]) -> Callable[..., Any]:
    return lambda node, *values: function(*values)


_OPERATIONS: dict[str, Callable[..., Any]] = {
    **{op: _plain(function) for op, function in _ELEMENTWISE.items()},
    "Mean": _reduced(np.mean),
    "Sum": _reduced(np.sum),
    "Max": _reduced(np.max),
    "Min": _reduced(np.min),
    "Reshape": lambda node, values, shape: values.reshape(_axes(shape)),
    "Transpose": lambda node, values, order: values.transpose(_axes(order)),
    "ExpandDims": lambda node, values, axis: np.expand_dims(values, _axes(axis)),
    "Squeeze": lambda node, values: np.squeeze(values, node.integers("squeeze_dims") or None),
    "ReverseV2": lambda node, values, axes: np.flip(values, _axes(axes)),
    "FakeQuantWithMinMaxArgs": _fake_quantised_by_attributes,
    "FakeQuantWithMinMaxVars": _fake_quantised,
    "FakeQuantWithMinMaxVarsPerChannel": _fake_quantised,
}
