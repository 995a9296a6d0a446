"""What an architecture reveals about the layers of a file: kind, order, depth, and what is shared or never executed.

A file of tensors contains names and shapes. If a library can build the network, without weights, on PyTorch's ``meta``
device, a run on shapes (:mod:`cnnfilterdb.ingest.network.execution`) provides the rest, and :func:`described` adds it
to the layers of the file. Weights come from the file alone.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt

from cnnfilterdb.ingest.network.extract import untransposed
from cnnfilterdb.ingest.network.layers import ConvLayer, Skipped, Weights
from cnnfilterdb.ingest.network.memory import weights_from_module

__all__ = ["Architecture", "architecture", "described"]

_log = logging.getLogger(__name__)

#: Returns a matrix of a file by the name of its tensor; None if the file has none of that name.
Matrix = Callable[[str], "npt.NDArray[np.float32] | None"]


@dataclass(frozen=True, slots=True)
class Architecture:
    """The layers of a network without their weights.

    Attributes:
        layers: In order of execution, with everything except weights.
        shared: Layers that use the weight of another one: name -> the other's name.
        mixtures: Layers of the experts of CondConv: name -> (name of the matrix, row).
    """

    layers: tuple[ConvLayer, ...]
    shared: Mapping[str, str]
    mixtures: Mapping[str, tuple[str, int]]


def architecture(module: Any, example: Any = None) -> Architecture:
    """Learn the architecture of a module, which may be on the ``meta`` device.

    Args:
        module: A ``torch.nn.Module``.
        example: An input, of which only the shape is used.
    """
    from cnnfilterdb.ingest.network.execution import named_tensors, unwrapped

    layers = weights_from_module(module, example, shapes=True).layers
    _, shared = named_tensors(unwrapped(module), shapes=True)
    mixtures = {}
    for layer in layers:
        owner, experts, number = layer.name.rpartition(".experts.")
        if experts and hasattr(module.get_submodule(owner), "weight_shape"):
            mixtures[layer.name] = f"{owner}.weight", int(number)
    ends = ".weight"
    return Architecture(layers, {one.removesuffix(ends): other.removesuffix(ends) for one, other in shared}, mixtures)


def described(weights: Weights, known: Architecture, matrix: Matrix | None = None) -> Weights:
    """Add to the layers of a file what their architecture reveals.

    Layers are found by their names, which may all have the same prefix in the file. If the file lacks layers of the
    architecture, a warning is issued and depths are left out, because they would be those of another network. Layers
    that only the file has (another tower, say) come last, as the file states them.

    Args:
        weights: The layers of a file.
        known: The network that the file belongs to.
        matrix: Returns a matrix of the file, for the experts of CondConv.

    >>> read = lambda: np.zeros((8, 3, 3, 3), np.float32)
    >>> file = Weights("safetensors", None, (ConvLayer("net.a", (8, 3, 3, 3), read),))
    >>> wanted = Architecture((ConvLayer("a", (8, 3, 3, 3), read, stride=(2, 2), conv_depth=0),), {}, {})
    >>> [(layer.name, layer.stride, layer.conv_depth) for layer in described(file, wanted).layers]
    [('net.a', (2, 2), 0)]
    """
    there = {layer.name: layer for layer in weights.layers}
    prefix = _prefix(there, known)
    aliases: dict[str, list[str]] = {}
    for alias, original in known.shared.items():
        aliases.setdefault(original, []).append(alias)
    layers: list[ConvLayer] = []
    skipped = list(weights.skipped)
    taken: set[str] = set()
    missing: list[str] = []
    for wanted in known.layers:
        names = [prefix + name for name in (wanted.name, *aliases.get(wanted.name, ()))]
        present = [name for name in names if name in there]
        layer = _expert(wanted, known, prefix, matrix) if wanted.name in known.mixtures else None
        if layer is None and present:
            layer = _matched(there[present[0]], wanted)
            if layer is not None:
                # Some formats keep a shared weight once, some under each of its names
                skipped += [Skipped(name, f"shares the weight of {present[0]}") for name in present[1:]]
                taken.update(present)
        if layer is None:
            missing.append(wanted.name)
        else:
            layers.append(layer)
    if missing:
        _log.warning(
            "%d of the %d layers of the architecture are not in the file, first %s; the layers get no depths",
            *(len(missing), len(known.layers), missing[0]),
        )
        layers = [replace(layer, conv_depth=None, conv_depth_norm=None, depth_source=None) for layer in layers]
    layers += [layer for layer in weights.layers if layer.name not in taken]
    return replace(weights, layers=tuple(layers), skipped=tuple(skipped))


def _prefix(there: Mapping[str, ConvLayer], known: Architecture) -> str:
    """The prefix of all names of the network in the file."""
    names = {layer.name for layer in known.layers}
    candidates = {""}
    for layer in known.layers[:1]:
        candidates |= {name.removesuffix(layer.name) for name in there if name.endswith(f".{layer.name}")}
    return max(sorted(candidates), key=lambda prefix: sum(prefix + name in there for name in names))


def _matched(layer: ConvLayer, wanted: ConvLayer) -> ConvLayer | None:
    """A layer with the facts of another; None if it cannot be the same layer."""
    shape, read = layer.shape, layer.read
    if (layer.kind == "transposed") != (wanted.kind == "transposed"):
        # The axes of the file were swapped, because shapes need not show a transposed layer; swapping is its own
        # inverse
        groups = (wanted if wanted.kind == "transposed" else layer).groups or 1
        if shape[0] % groups:
            return None
        shape, read = (shape[1] * groups, shape[0] // groups, *shape[2:]), untransposed(read, groups)
    if shape != wanted.shape:
        return None
    return replace(
        wanted,
        name=layer.name,
        read=read,
        dtype=layer.dtype,
        bn_folded=layer.bn_folded,
        batch_norm=layer.batch_norm,
        # The file shows which weights had to be composed, the network which ones are standardised
        weight_norm=wanted.weight_norm or layer.weight_norm,
    )


def _expert(wanted: ConvLayer, known: Architecture, prefix: str, matrix: Matrix | None) -> ConvLayer | None:
    name, row = known.mixtures[wanted.name]
    found = None if matrix is None else matrix(prefix + name)
    size = int(np.prod(wanted.shape))
    if found is None or found.ndim != 2 or found.shape[1] != size or row >= len(found):
        return None

    def read() -> npt.NDArray[np.float32]:
        rows = None if matrix is None else matrix(prefix + name)
        assert rows is not None
        return np.ascontiguousarray(rows[row].reshape(wanted.shape), np.float32)

    return replace(wanted, name=prefix + wanted.name, read=read)
