"""Runs a PyTorch module on shapes alone, to find the order and depth of its convolutions.

The run uses a copy on the ``meta`` device, where tensors have a shape and no data. PyTorch is imported only in this
module of the package; whoever passes a PyTorch module has it installed.
"""

from __future__ import annotations

import copy
import inspect
import logging
import warnings
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch.jit import ScriptModule
from torch.optim.swa_utils import AveragedModel
from torch.overrides import TorchFunctionMode

from cnnfilterdb.core.errors import BadWeightsError

__all__ = ["Execution", "execute", "named_tensors", "unwrapped"]

# Heights and widths of the images that networks are made for, the commonest first.
_SIZES = (224, 256, 32, 512, 299, 128, 64, 28)


@dataclass(frozen=True, slots=True)
class Execution:
    """The result of a run on shapes.

    Attributes:
        order: Layers in the order of their first use.
        training: Layers that are used in training only, such as those of an auxiliary head.
        dead: Layers that are used in neither.
        depths: Longest path from an input to each layer, in nodes of the exported graph; empty without a graph.
        norms: The batch normalisation that is the only reader of the output of a layer: layer -> its name.
    """

    order: tuple[str, ...]
    training: frozenset[str]
    dead: frozenset[str]
    depths: Mapping[str, int]
    norms: Mapping[str, str]


def unwrapped(module: nn.Module) -> nn.Module:
    """The network inside wrappers for training or compiling (``DataParallel``, ``torch.compile``, ...)."""
    wrappers = (nn.DataParallel, nn.parallel.DistributedDataParallel, AveragedModel)
    while inner := dict(module.named_children()).get("module" if isinstance(module, wrappers) else "_orig_mod"):
        module = inner
    return module


def named_tensors(
    module: nn.Module, *, shapes: bool = False
) -> tuple[list[tuple[str, Any, bool]], list[tuple[str, str]]]:
    """Parameters and buffers of a module, each once, in the order of its modules.

    Args:
        module: The network.
        shapes: Also accept parameters on the ``meta`` device.

    Returns:
        (name, tensor, is a parameter) of each, and (name, first name) of those that occur twice and have four
        dimensions.

    Raises:
        BadWeightsError: The weights are missing: of a lazy module that has not been run, or on the ``meta`` device.
    """
    found: list[tuple[str, Any, bool]] = []
    shared: list[tuple[str, str]] = []
    first: dict[int, str] = {}
    for path, part in module.named_modules(remove_duplicate=False):
        for group, is_parameter in ((part._parameters, True), (part._buffers, False)):
            for key, value in group.items():
                if value is None:
                    continue
                name = f"{path}.{key}" if path else key
                if isinstance(value, nn.parameter.UninitializedTensorMixin):
                    raise BadWeightsError(f"{name}: a lazy module without weights; run the module once, then add it")
                if value.is_meta and is_parameter and not shapes:
                    raise BadWeightsError(f"{name}: a shape on the meta device, without weights; load them first")
                original = first.setdefault(id(value), name)
                if original == name:
                    found.append((name, value, is_parameter))
                elif value.dim() == 4:
                    shared.append((name, original))
        # Quantised layers keep their weight in a special form, and return it on request
        weight = getattr(part, "weight", None)
        if inspect.ismethod(weight) and isinstance(value := weight(), torch.Tensor):
            found.append((f"{path}.weight" if path else "weight", value, True))
    return found, shared


def execute(module: nn.Module, owners: Mapping[str, str], channels: int = 3, example: Any = None) -> Execution | None:
    """Run a module on shapes.

    Args:
        module: The network. It is not changed.
        owners: Layer that each parameter belongs to, for the parameters of convolutions, by name.
        channels: Channels of its input images, if known.
        example: An input, or a tuple of inputs; by default, images of common sizes are tried.

    Returns:
        The result of the run, or None if the module cannot be run without data.
    """
    # On this device, tensors that a module creates while it runs (coordinates, masks) are shapes, too
    with _quiet(), torch.no_grad(), torch.device("meta"):
        try:
            shadow = _shadow(module)
        except Exception:  # a module may contain what cannot be copied: then the order stays unknown
            return None
        layers = {
            id(value): owners[name] for name, value in shadow.named_parameters(remove_duplicate=False) if name in owners
        }
        # The inside of a compiled or quantised part is not visible
        compiled = any(list(part.parameters()) for part in shadow.modules() if isinstance(part, ScriptModule))
        if compiled or set(layers.values()) != set(owners.values()):
            return None
        shadow.eval()
        for inputs in _inputs(shadow, channels, example):
            uses = _run(shadow, inputs, layers)
            if uses is not None:
                break
        else:
            return None
        order = list(uses.order)
        used = set(order)
        unused = set(layers.values()) - used
        depths = _depths(shadow, inputs, layers)
        norms = uses.norms(shadow)
        training = None
        if unused:
            trained = _run(shadow.train(), tuple(_batch_of_two(value) for value in inputs), layers)
            training = None if trained is None else set(trained.order)
        return Execution(
            tuple(order),
            training=frozenset(unused.intersection(training or ())),
            dead=frozenset(unused.difference(training) if training is not None else ()),
            depths=depths,
            norms=norms,
        )


@contextmanager
def _quiet() -> Iterator[None]:
    # Some exports fail, and PyTorch's advice on how to change the model is not for our users
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        logger = logging.getLogger("torch")
        level = logger.level
        logger.setLevel(logging.CRITICAL)
        try:
            yield
        finally:
            logger.setLevel(level)


def _shadow(module: nn.Module) -> nn.Module:
    """A copy without data on the meta device."""
    # A tensor in the memo of deepcopy is not copied. All stay alive in the module, so their ids are not reused.
    memo: dict[int, Any] = {}
    for part in module.modules():
        for value in _tensors(vars(part)):
            shape = value.detach().to("meta")
            memo[id(value)] = nn.Parameter(shape, requires_grad=False) if isinstance(value, nn.Parameter) else shape
    shadow: nn.Module = copy.deepcopy(module, memo)
    for part in shadow.modules():
        part._forward_hooks.clear()
        part._backward_hooks.clear()
        for key, hook in list(part._forward_pre_hooks.items()):
            # Those of PyTorch compose weights (weight_norm, pruning); others belong to the user
            if not type(hook).__module__.startswith("torch.nn.utils"):
                del part._forward_pre_hooks[key]
    return shadow


def _tensors(value: Any) -> Iterator[torch.Tensor]:
    if isinstance(value, torch.Tensor):
        yield value
    elif isinstance(value, dict | list | tuple):
        for item in value.values() if isinstance(value, dict) else value:
            yield from _tensors(item)


def _inputs(module: nn.Module, channels: int, example: Any) -> Iterator[tuple[Any, ...]]:
    if example is not None:
        yield _without_data(example if isinstance(example, tuple) else (example,))
        return
    dtype = next((value.dtype for value in module.parameters() if value.is_floating_point()), torch.float32)
    # The network may add its own channels, such as coordinates
    for count in dict.fromkeys((channels, 3, 1)):
        for size in _SIZES:
            yield (torch.empty(1, count, size, size, dtype=dtype, device="meta"),)


def _without_data(value: Any) -> Any:
    if isinstance(value, torch.Tensor):
        return value.detach().to("meta")
    if isinstance(value, dict):
        return {key: _without_data(item) for key, item in value.items()}
    return type(value)(map(_without_data, value)) if type(value) in (list, tuple) else value


def _batch_of_two(value: Any) -> Any:
    # Batch normalisation cannot be trained on one sample
    return torch.cat([value, value]) if isinstance(value, torch.Tensor) and value.dim() and len(value) == 1 else value


class _Uses(TorchFunctionMode):
    """Records the order in which the weights of layers are used, and what reads the results."""

    def __init__(self, layers: Mapping[int, str]) -> None:
        super().__init__()
        self.layers = layers
        self.order: dict[str, None] = {}
        # The results of convolutions stay alive, so that no other tensor gets the id of one
        self.results: dict[int, tuple[str, Any]] = {}
        # Running variances of the normalisations that read them, None for any other function
        self.readers: dict[str, list[Any]] = {}

    def norms(self, module: nn.Module) -> dict[str, str]:
        """The batch normalisation that is the only reader of the results of a layer."""
        names = {
            id(value): name.rpartition(".")[0]
            for name, value in module.named_buffers(remove_duplicate=False)
            if name.rpartition(".")[2] == "running_var"
        }
        found = {layer: {names.get(id(variance)) for variance in readers} for layer, readers in self.readers.items()}
        return {layer: name for layer, (name, *more) in found.items() if name is not None and not more}

    def __torch_function__(
        self, func: Any, types: Any, args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        result = func(*args, **(kwargs or {}))
        # Reading a property of a weight, such as its size or device, is not a use of it
        if _holds_tensor(result):
            norm = func is nn.functional.batch_norm
            for value in _flat((*args, *(kwargs or {}).values())):
                if (layer := self.layers.get(id(value))) is not None:
                    self.order.setdefault(layer)
                if id(value) in self.results:
                    variance = _argument(args, kwargs, 2, "running_var") if norm else None
                    self.readers.setdefault(self.results[id(value)][0], []).append(variance)
            weight = _argument(args, kwargs, 1, "weight")
            if func in _CONVOLUTIONS and (layer := self.layers.get(id(weight))) is not None:
                self.results[id(result)] = layer, result
        return result


_CONVOLUTIONS = (nn.functional.conv2d, nn.functional.conv_transpose2d)


def _argument(args: Sequence[Any], kwargs: Mapping[str, Any] | None, place: int, name: str) -> Any:
    return args[place] if len(args) > place else (kwargs or {}).get(name)


def _flat(values: Iterable[Any]) -> Iterator[Any]:
    for value in values:
        if isinstance(value, list | tuple):
            yield from _flat(value)
        else:
            yield value


def _holds_tensor(value: Any) -> bool:
    return any(isinstance(item, torch.Tensor) for item in _flat((value,)))


def _run(module: nn.Module, inputs: tuple[Any, ...], layers: Mapping[int, str]) -> _Uses | None:
    uses = _Uses(layers)
    with uses:
        try:
            output = module(*inputs)
        except Exception:  # not the right size, or a forward pass that needs values: try another size, or give up
            return None
    # The output of the network is read by its caller
    values = output.values() if isinstance(output, Mapping) else (output,)
    for value in _flat(values):
        if id(value) in uses.results:
            uses.readers.setdefault(uses.results[id(value)][0], []).append(None)
    return uses


def _depths(module: nn.Module, inputs: tuple[Any, ...], layers: Mapping[int, str]) -> dict[str, int]:
    """Longest path, in edges, from an input to the convolution of each layer (its first, where it has several)."""
    try:
        program = torch.export.export(module, inputs, strict=False)
    except Exception:  # data-dependent control flow and the like
        return {}
    signature = program.graph_signature
    values = dict(module.named_parameters(remove_duplicate=False))
    weights = {
        node: layers[id(values[name])]
        for node, name in signature.inputs_to_parameters.items()
        if name in values and id(values[name]) in layers
    }
    depth: dict[Any, int | None] = {}
    found: dict[str, int] = {}
    for node in program.graph_module.graph.nodes:
        if node.op == "placeholder":
            depth[node] = -1 if node.name in signature.user_inputs else None
            continue
        before = [known for source in node.all_input_nodes if (known := depth.get(source)) is not None]
        depth[node] = here = max(before) + 1 if before else None
        if here is not None and "conv" in str(node.target) and len(node.args) > 1:
            layer = _layer_behind(node.args[1], weights, depth)
            if layer is not None:
                found[layer] = min(here, found.get(layer, here))
    return found


def _layer_behind(weight: Any, weights: Mapping[str, str], depth: Mapping[Any, int | None]) -> str | None:
    """The layer that a weight is computed from (standardised, composed), itself a constant of the graph."""
    stack, seen = [weight], set()
    while stack:
        node = stack.pop()
        if node in seen or depth.get(node) is not None:
            continue
        seen.add(node)
        if node.name in weights:
            return weights[node.name]
        stack += node.all_input_nodes
    return None
