"""Batch normalisations: which one follows a convolution, and the effect of folding it into the kernels.

The networks of the papers were exported to ONNX, which folds a batch normalisation into the convolution before it. With
y = gamma (w * x - mean) / sqrt(var + eps) + beta, every kernel of an output channel is multiplied by gamma / sqrt(var +
eps) of that channel: a scale, and a change of sign where gamma is negative. The models of this database contain the
kernels as they were trained, unless folding is requested.

A graph shows which normalisation reads the output of a convolution (:mod:`cnnfilterdb.ingest.network.execution`, the
readers of Keras). A file of tensors has names only; :func:`paired_by_name` uses those that are unambiguous.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise

import numpy as np
import numpy.typing as npt

from cnnfilterdb.ingest.network.layers import ConvLayer, Tensor

__all__ = ["EPSILON_KERAS", "EPSILON_TORCH", "SUFFIX", "BatchNorm", "batch_norms", "folded", "paired", "paired_by_name"]

#: The constant that PyTorch adds to a variance if the file does not state one.
EPSILON_TORCH = 1e-5
#: The constant that Keras and TensorFlow add.
EPSILON_KERAS = 1e-3

#: Suffix of the name of a model with folded kernels, so that both variants can be in one database.
SUFFIX = "+bn"

# Fewer running means than these may all be positive by chance
_MIN_CHANNELS = 8
# The network does not use the stored weight itself, so scaling that weight would have no effect
_STANDARDISED = ("std", "scaled_std")


@dataclass(frozen=True, slots=True)
class BatchNorm:
    """A batch normalisation with running statistics.

    Attributes:
        name: Its name.
        variance: Running variance.
        gamma: Trained scale, None if it has none.
        mean: Running mean.
        epsilon: What is added to the variance.
    """

    name: str
    variance: Tensor
    gamma: Tensor | None
    mean: Tensor | None
    epsilon: float

    @property
    def channels(self) -> int:
        """Number of channels."""
        return self.variance.shape[0]

    def scale(self) -> npt.NDArray[np.float32]:
        """The scale gamma / sqrt(var + eps), (channels,), as PyTorch's ``fuse_conv_bn_weights`` has it."""
        variance = np.asarray(self.variance.read(), np.float32)
        scale: npt.NDArray[np.float32] = 1 / np.sqrt(variance + np.float32(self.epsilon))
        if self.gamma is not None:
            scale *= np.asarray(self.gamma.read(), np.float32)
        return scale

    def scale_if_linear(self) -> npt.NDArray[np.float32] | None:
        """The scale, or None if the running means prove that the norm does not read the convolution itself.

        A weighted sum has means of both signs. If no mean is negative, the norm reads an activation (ReLU, sigmoid)
        that names do not show, and there is nothing to fold.
        """
        if self.mean is not None and self.channels >= _MIN_CHANNELS:
            mean = np.asarray(self.mean.read(), np.float32)
            if mean.min() >= 0 < mean.max():
                return None
        return self.scale()


def folded(layer: ConvLayer) -> ConvLayer:
    """A layer with the batch normalisation that follows it folded into its weight.

    ``bn_folded`` shows whether it was. A layer that is already folded is not changed.

    >>> layer = ConvLayer("conv", (2, 1, 1, 2), read=lambda: np.ones((2, 1, 1, 2), np.float32),
    ...                   batch_norm=lambda: np.array([2, -1], np.float32))
    >>> folded(layer).read().tolist(), folded(layer).bn_folded
    ([[[[2.0, 2.0]]], [[[-1.0, -1.0]]]], True)
    """
    if layer.batch_norm is None or layer.bn_folded:
        return layer
    scale = layer.batch_norm()
    if scale is None:
        return replace(layer, batch_norm=None)

    def read() -> npt.NDArray[np.float32]:
        return np.ascontiguousarray(layer.read() * scale[:, None, None, None], np.float32)

    return replace(layer, read=read, bn_folded=True, batch_norm=None)


def batch_norms(
    tensors: Sequence[Tensor], *, epsilon: float = EPSILON_TORCH, epsilons: Mapping[str, float] | None = None
) -> dict[str, BatchNorm]:
    """The batch normalisations among named tensors: those with a ``running_var``.

    Args:
        tensors: The tensors of one network.
        epsilon: The constant added to the variance by default.
        epsilons: The constants of single normalisations, by name.

    Returns:
        By name, in the order of the tensors.
    """
    index = {tensor.name: tensor for tensor in tensors}
    found = {}
    for tensor in tensors:
        name, _, leaf = tensor.name.rpartition(".")
        if leaf != "running_var" or len(tensor.shape) != 1:
            continue
        prefix = f"{name}." if name else ""
        gamma, mean = index.get(f"{prefix}weight"), index.get(f"{prefix}running_mean")
        if all(part is None or part.shape == tensor.shape for part in (gamma, mean)):
            found[name] = BatchNorm(name, tensor, gamma, mean, (epsilons or {}).get(name, epsilon))
    return found


def paired(layer: ConvLayer, norm: BatchNorm | None, *, known: bool) -> ConvLayer:
    """A layer with the batch normalisation that follows it.

    Args:
        layer: The layer.
        norm: The one that follows; with None, or one that does not fit, the layer gets none.
        known: Whether a graph shows it. If only names do, the running means must agree.
    """
    if norm is None or norm.channels != layer.shape[0] or layer.weight_norm in _STANDARDISED or not layer.channels:
        return layer if layer.batch_norm is None else replace(layer, batch_norm=None)
    # A separate normalisation has not been folded into the weight
    raw = False if layer.bn_folded is None else layer.bn_folded
    return replace(layer, batch_norm=norm.scale if known else norm.scale_if_linear, bn_folded=raw)


# ---------------------------------------------------------------------------------------------------------------------
# By name

_CONV = re.compile(r"conv(?:2d)?|deconv")
_WORDS = ("bn", "norm", "batchnorm", "batch_norm")


def paired_by_name(
    layers: Sequence[ConvLayer], tensors: Sequence[Tensor], norms: Mapping[str, BatchNorm], *, ordered: bool
) -> tuple[ConvLayer, ...]:
    """Assign to layers the batch normalisation that follows them, if names are unambiguous.

    A normalisation follows a layer when it

    - is the next entry of the same ``Sequential``: ``down.0`` and ``down.1``;
    - is inside it: ``res2.conv1`` and ``res2.conv1.norm``;
    - has its name with another word: ``conv1`` and ``bn1``, ``x.conv`` and ``x.bn``, ``stem_conv`` and ``stem_bn``.
      In networks that normalise first, ``bn1`` comes before ``conv1``. So this holds for a whole network or not at
      all: every such pair must have one length and be in this order; if the file has no order, at least one layer must
      have different numbers of inputs and outputs;
    - is next to it, in a file in the order of the network, in a module in which both alternate: ``conv_dw`` and
      ``bn2``.

    A normalisation that could belong to two layers is assigned to neither.

    Args:
        layers: Layers of one network, with the names by which the tensors know them.
        tensors: All its tensors.
        norms: Its batch normalisations, by name.
        ordered: Whether the tensors stand in the order in which the network was built.
    """
    if not norms:
        return tuple(layers)
    places: dict[str, int] = {}
    for tensor in tensors:
        places.setdefault(_owner(tensor.name), len(places))
    by_name = {layer.name: layer for layer in layers}
    lower: dict[str, list[str]] = {}
    for name in norms:
        lower.setdefault(name.lower(), []).append(name)

    found: dict[str, str] = {}
    for name, layer in by_name.items():
        for candidate in _inside(name):
            matches = lower.get(candidate.lower(), [])
            if len(matches) == 1 and norms[matches[0]].channels == layer.shape[0]:
                found[name] = matches[0]
    alike = {name: next(iter(same)) for name in by_name if len(same := _alike(name, lower)) == 1}
    holds = _holds(alike, by_name, norms, places, ordered)
    if holds:
        found = {name: norm for name, norm in alike.items() if name not in found} | found
    if ordered:
        taken = set(found.values()) | (set(alike.values()) if holds else set())
        for name, norm in _neighbours(by_name, norms, places).items():
            if name not in found and norm not in taken:
                found[name] = norm
    claims: dict[str, int] = {}
    for norm in found.values():
        claims[norm] = claims.get(norm, 0) + 1
    return tuple(
        paired(layer, norms[norm] if norm is not None and claims[norm] == 1 else None, known=False)
        for layer in layers
        for norm in (found.get(layer.name),)
    )


def _owner(tensor: str) -> str:
    return tensor.rpartition(".")[0].removesuffix(".parametrizations.weight")


def _inside(name: str) -> list[str]:
    """Names of the modules that follow a layer in a Sequential, or belong to it."""
    parent, _, leaf = name.rpartition(".")
    after = [f"{parent}.{int(leaf) + 1}".removeprefix(".")] if leaf.isdecimal() else []
    return [*after, *(f"{name}.{word}" for word in _WORDS)]


def _alike(name: str, norms: Mapping[str, list[str]]) -> set[str]:
    """Normalisations with the name of a layer except for the word."""
    parent, _, leaf = name.lower().rpartition(".")
    prefix = f"{parent}." if parent else ""
    names = {f"{prefix}{leaf}_{word}" for word in _WORDS} | {f"{prefix}{word}_{leaf}" for word in _WORDS}
    words = list(_CONV.finditer(leaf))
    if words:
        start, stop = words[-1].span()
        names |= {f"{prefix}{leaf[:start]}{word}{leaf[stop:]}" for word in _WORDS}
    return {norm for candidate in names for norm in norms.get(candidate, ())}


def _holds(
    alike: Mapping[str, str],
    layers: Mapping[str, ConvLayer],
    norms: Mapping[str, BatchNorm],
    places: Mapping[str, int],
    ordered: bool,
) -> bool:
    """Whether similar names mean that the normalisation follows."""
    if any(layers[name].shape[0] != norms[norm].channels for name, norm in alike.items()):
        return False
    if ordered:
        return all(places[name] < places[norm] for name, norm in alike.items() if name in places)
    return any(_widens(layers[name]) for name in alike)


def _widens(layer: ConvLayer) -> bool:
    """Whether the layer has different numbers of inputs and outputs, for any number of groups."""
    out_channels, in_per_group = layer.shape[:2]
    if layer.in_channels is not None:
        return layer.in_channels != out_channels
    return out_channels % in_per_group != 0


def _neighbours(
    layers: Mapping[str, ConvLayer], norms: Mapping[str, BatchNorm], places: Mapping[str, int]
) -> dict[str, str]:
    """Adjacent pairs in a module in which layers and normalisations alternate."""
    modules: dict[str, list[str]] = {}
    for name in places:
        # Entries of a Sequential were matched by their numbers
        if (name in layers or name in norms) and not name.rpartition(".")[2].isdecimal():
            modules.setdefault(name.rpartition(".")[0], []).append(name)
    found: dict[str, str] = {}
    for names in modules.values():
        pairs = list(pairwise(names))
        if any((one in layers) == (other in layers) for one, other in pairs):
            continue
        found |= {
            one: other
            for one, other in pairs
            if one in layers and places[other] == places[one] + 1 and layers[one].shape[0] == norms[other].channels
        }
    return found
