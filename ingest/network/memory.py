"""Convolution layers of what is in memory: a state dict, or a live module, which is run on shapes alone."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from cnnfilterdb.core.errors import SelectionError, WeightFileError
from cnnfilterdb.ingest.network import choices
from cnnfilterdb.ingest.network.arrays import layers_from_arrays
from cnnfilterdb.ingest.network.composition import parameters as count_parameters
from cnnfilterdb.ingest.network.contents import contents_of
from cnnfilterdb.ingest.network.extract import (
    conv_depths,
    conv_facts,
    layers_from_tensors,
    weights_from_checkpoint,
)
from cnnfilterdb.ingest.network.folding import batch_norms, paired
from cnnfilterdb.ingest.network.layers import ConvLayer, Skipped, Tensor, Weights
from cnnfilterdb.ingest.network.live import identity_of, is_array, is_torch, named_tensor

if TYPE_CHECKING:
    from cnnfilterdb.ingest.network.execution import Execution

__all__ = ["weights_from_module", "weights_from_state_dict", "weights_in_memory"]


def weights_in_memory(
    weights: Any, method: str, *, network: str | None = None, merge_adapters: bool | float = False
) -> Weights:
    """The layers of a mapping of names to tensors or arrays, or of a ``torch.nn.Module``.

    Args:
        weights: One of these.
        method: Name of the method for error messages.
        network: Which of several networks; see :func:`cnnfilterdb.ingest.formats.read`.
        merge_adapters: Whether LoRA adapters are merged, or their scale.

    Raises:
        SelectionError: An object of another type.
        WeightFileError: There is no such network, or an adapter cannot be merged.
    """
    with choices.choosing(choices.of(network, merge_adapters)):
        if isinstance(weights, Mapping):
            return choices.applied(weights_from_state_dict(weights).printable(), "the mapping")
        if not isinstance(weights, type) and hasattr(weights, "named_parameters") and hasattr(weights, "state_dict"):
            return choices.applied(weights_from_module(weights).printable(), f"the module {type(weights).__name__}")
    given = f"the class {weights.__name__}" if isinstance(weights, type) else f"a {type(weights).__name__}"
    raise SelectionError(
        f"{method}: {given} was given; expected a path, a mapping of names to tensors, a torch.nn.Module "
        "or a keras.Model"
    )


def weights_from_state_dict(state_dict: Mapping[str, Any]) -> Weights:
    """Read a state dict in memory: names and tensors of PyTorch, arrays of NumPy, or values that convert to one.

    Arrays that are named as in PyTorch, ``<layer>.weight``, are (out, in, h, w) unless biases or shapes contradict; the
    layout of others is judged (:mod:`cnnfilterdb.ingest.network.judge`).

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
        arrays=partial(layers_from_arrays, ordered=True, assumed="OIHW"),
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
    if not entries and type(module).__name__ == "RecursiveScriptModule":
        raise WeightFileError(
            "a frozen module of TorchScript, whose weights are constants of its code; save it with torch.jit.save and "
            "pass that path"
        )
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
    whole = len(entries), sum(math.prod(value.shape) for _, value, _ in entries)
    contents = contents_of(tensors, layers, skipped, whole=whole)
    layers = _placed(layers, execution, mixtures)
    return Weights("module", "pytorch", layers, count_parameters(tensors), skipped, contents=contents)


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
        replace(tensor, name=f"{prefix}experts.{expert}.weight", shape=tuple(shape), read=partial(row, expert))
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
