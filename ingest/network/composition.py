"""The weight of a convolution, composed from the parts that a file may store instead.

Weight normalisation, spectral normalisation and pruning replace ``weight`` by other tensors; the network computes the
weight from them at every call. The database stores the weight that the network uses.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from cnnfilterdb.ingest.network.judge import ADAPTER, is_adapter, is_floating, objection
from cnnfilterdb.ingest.network.layers import Skipped, Tensor

__all__ = ["Weight", "compose", "parameters"]


@dataclass(frozen=True, slots=True)
class Weight:
    """A convolution weight as stored in the file, before its kind is known.

    Attributes:
        name: Name of the layer.
        prefix: Prefix of the names of its other tensors: the name and a dot, or nothing.
        shape: Shape as stored.
        dtype: Element type as stored.
        read: Returns the effective weight, of this shape.
        weight_norm: Normalisation that made composing it necessary.
        tensors: Names, in the file, of the tensors that it is composed from.
    """

    name: str
    prefix: str
    shape: tuple[int, int, int, int]
    dtype: str
    read: Callable[[], npt.NDArray[np.float32]]
    weight_norm: str | None = None
    tensors: tuple[str, ...] = ()


_Read = Callable[[], npt.NDArray[np.float32]]

# Tensors that belong to a layer or a normalisation and are not trained
_BUFFERS = {"running_mean", "running_var", "num_batches_tracked", "weight_mask", "weight_u", "_u", "_v", "filt"}
_DIMENSIONS = {
    3: "three dimensions, as in a one-dimensional convolution",
    5: "five dimensions, as in a three-dimensional convolution",
}
# Element types that need a scale, which quantising programs store under these names beside the weight
_SCALES = ("weight_scale", "scale_weight", "weight_scale_inv")
_PACKED = (
    "weights packed into integers (bitsandbytes, GPTQ or AWQ), whose kernels are not read; "
    "dequantise the model before you save it"
)
_UNKNOWN = "an unknown parametrisation; save the plain weight"


def compose(tensor: Tensor, index: Mapping[str, Tensor]) -> Weight | Skipped | None:
    """Classify a tensor: the weight of a convolution, something to report, or neither.

    Args:
        tensor: Any tensor of a network.
        index: All its tensors by name, among them the other parts of the weight.

    >>> weight = Tensor("conv.weight", (8, 3, 3, 3), "float32", read=lambda: np.ones((8, 3, 3, 3)))
    >>> found = compose(weight, {"conv.weight": weight})
    >>> found.name, found.shape
    ('conv', (8, 3, 3, 3))
    """
    stem, _, leaf = tensor.name.rpartition(".")
    prefix = f"{stem}." if stem else ""
    owner = prefix.removesuffix("parametrizations.weight.")
    parts = {
        "weight_orig",
        "weight_bar",  # spectral normalisation in code from before PyTorch had it
        *(["weight_v"] if f"{prefix}weight_g" in index else []),
        *(["original", "original1"] if owner != prefix else []),
    }
    rank = len(tensor.shape)
    if tensor.unreadable is not None and (leaf.endswith("weight") or leaf in parts) and rank in (0, 3, 4, 5):
        return Skipped(tensor.name, tensor.unreadable)
    if rank == 4 and is_adapter(tensor.name):
        return Skipped(tensor.name, ADAPTER)
    if leaf == "qweight" or (leaf == "weight" and tensor.dtype == "uint8" and f"{tensor.name}.absmax" in index):
        return Skipped(tensor.name, _PACKED)
    named = leaf.endswith("weight") or leaf in parts
    if rank not in (3, 4, 5) or (rank != 4 and not named):
        return None
    if not named:
        if leaf == "filt":
            return Skipped(tensor.name, "a fixed blur kernel")
        vector = tensor.shape[2] * tensor.shape[3] <= 1 and sum(side > 1 for side in tensor.shape) <= 1
        if leaf in _BUFFERS or vector or not is_floating(tensor):
            return None
        why = objection(tensor, index) or "four dimensions, but its name does not end in weight"
        return Skipped(tensor.name, why)
    if not is_floating(tensor):
        return Skipped(tensor.name, f"elements of type {tensor.dtype}")
    if tensor.parameter is False:
        return Skipped(tensor.name, "a buffer, not a parameter")
    if 0 in tensor.shape:
        return Skipped(tensor.name, f"empty: shape {tensor.shape}")
    # Only layers have their weights normalised or pruned
    modulated = rank == 5 and tensor.shape[0] == 1 and _is_modulated(tensor, prefix, index)
    against = None if leaf in parts or modulated else objection(tensor, index, known_layout=True)
    if against is not None:
        return Skipped(tensor.name, against)
    if modulated:
        # A style multiplies the weight for every image; the first axis is that of the images
        _, first, second, height, width = tensor.shape
        return Weight(
            owner.removesuffix(".") or tensor.name,
            owner,
            (first, second, height, width),
            tensor.dtype,
            lambda: np.ascontiguousarray(_float32(tensor)[0]),
            tensors=tensor.parts,
        )
    if rank in _DIMENSIONS:
        return Skipped(tensor.name, _DIMENSIONS[rank])
    if leaf in ("weight_orig", "weight_bar") and _same_shape(tensor, index.get(f"{prefix}weight")):
        return None  # PyTorch 0.4 stored what it composed, too
    composed = _composed(tensor, index, prefix, leaf if leaf in parts else "weight", parametrised=owner != prefix)
    if isinstance(composed, Skipped):
        return composed
    name = owner.removesuffix(".") if leaf == "weight" or leaf in parts else ""
    first, second, height, width = tensor.shape
    read, weight_norm, others = composed
    held = tuple(part for one in (tensor, *others) for part in one.parts)
    return Weight(name or tensor.name, owner, (first, second, height, width), tensor.dtype, read, weight_norm, held)


def _is_modulated(tensor: Tensor, prefix: str, index: Mapping[str, Tensor]) -> bool:
    """Whether (1, out, in, h, w) is that of StyleGAN2: a linear layer of its owner gives a style of ``in`` numbers."""
    _, first, second, height, width = tensor.shape
    if height != width:
        return False
    bias = index.get(f"{prefix}bias")
    return (bias is not None and bias.shape == (1, first, 1, 1)) or any(
        name.startswith(prefix) and name != tensor.name and len(one.shape) == 2 and one.shape[0] == second
        for name, one in index.items()
        if prefix and name.endswith(".weight")
    )


def parameters(tensors: Iterable[Tensor]) -> int:
    """Number of floating-point parameters, without tensors known to be buffers by mark or by name.

    >>> def tensor(name, *shape):
    ...     return Tensor(name, shape, "float32", read=lambda: np.zeros(shape))
    >>> parameters([tensor("bn.weight", 8), tensor("bn.bias", 8), tensor("bn.running_mean", 8)])
    16
    """
    names = {tensor.name: tensor for tensor in tensors}
    total = 0
    for name, tensor in names.items():
        stem, _, leaf = name.rpartition(".")
        vector = leaf == "weight_v" and f"{stem}.weight_g".removeprefix(".") not in names  # of spectral normalisation
        if is_floating(tensor) and tensor.parameter is not False and leaf not in _BUFFERS and not vector:
            total += math.prod(tensor.shape)
    return total


def _same_shape(tensor: Tensor, other: Tensor | None) -> bool:
    return other is not None and other.shape == tensor.shape


def _composed(
    tensor: Tensor, index: Mapping[str, Tensor], prefix: str, leaf: str, parametrised: bool
) -> tuple[_Read, str | None, tuple[Tensor, ...]] | Skipped:
    """How to read the effective weight, the normalisation that made composing it necessary, and its other parts."""

    def part(name: str) -> Tensor | None:
        return index.get(prefix + name)

    if parametrised and any(name.startswith(f"{prefix}1.") for name in index):  # a second one on top of the first
        return Skipped(tensor.name, _UNKNOWN)
    if leaf in ("weight_v", "original1"):
        gain = part("weight_g" if leaf == "weight_v" else "original0")
        sides = zip(gain.shape, tensor.shape, strict=False) if gain else ()
        if gain is None or len(gain.shape) not in (0, 4) or any(side not in (1, full) for side, full in sides):
            return Skipped(tensor.name, "weight normalisation whose gain is missing or does not fit")
        return lambda: _weight_norm(_float32(tensor), _float32(gain)), "weight_norm", (gain,)
    if leaf in ("weight_orig", "weight_bar", "original"):
        if mask := part("weight_mask"):
            if mask.shape != tensor.shape:
                return Skipped(tensor.name, f"pruning with a mask of shape {mask.shape}")
            return lambda: _float32(tensor) * _float32(mask), None, (mask,)
        left, right = (part("0._u"), part("0._v")) if parametrised else (part("weight_u"), part("weight_v"))
        if left is None:
            return Skipped(tensor.name, _UNKNOWN)
        vectors = [left] if right is None else [left, right]
        if not _axes(tensor.shape, *(math.prod(vector.shape) for vector in vectors)):
            return Skipped(tensor.name, f"spectral normalisation with a vector of shape {left.shape}")
        return lambda: _spectral_norm(_float32(tensor), *map(_float32, vectors)), "spectral_norm", tuple(vectors)
    if _same_shape(tensor, part("weight_orig")) and part("weight_u"):
        return lambda: _float32(tensor), "spectral_norm", ()
    scale = next((found for name in _SCALES if (found := part(name)) is not None), None)
    if scale is not None and tensor.dtype.startswith("float8"):
        if scale.name.endswith("_inv") or math.prod(scale.shape) not in (1, tensor.shape[0]):
            return Skipped(
                tensor.name, f"elements of type {tensor.dtype} with a scale of shape {scale.shape} for blocks"
            )
        return lambda: _float32(tensor) * _float32(scale).reshape(-1, 1, 1, 1), None, (scale,)
    # timm's ScaledStdConv2d keeps its gain beside the weight
    gain = part("gain")
    scaled = gain is not None and gain.shape == (tensor.shape[0], 1, 1, 1)
    return lambda: _float32(tensor), "scaled_std" if scaled else None, ()


def _float32(tensor: Tensor) -> npt.NDArray[np.float32]:
    return np.asarray(tensor.read(), np.float32, order="C")


def _weight_norm(direction: npt.NDArray[np.float32], gain: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
    # w = g v / |v|, the norm over the axes that the gain does not have (Salimans and Kingma, arXiv 1602.07868)
    axes = tuple(axis for axis in range(4) if gain.ndim == 0 or gain.shape[axis] == 1)
    norm = np.sqrt(np.square(direction, dtype=np.float64).sum(axes, keepdims=True))
    return (direction * (gain / np.where(norm > 0, norm, 1))).astype(np.float32)


def _axes(shape: tuple[int, ...], left: int, right: int | None = None) -> list[int]:
    """Axes along which a weight can have been unfolded into a matrix for vectors of these lengths."""
    size = math.prod(shape)
    return [axis for axis in (0, 1) if left == shape[axis] and right in (None, size // shape[axis])]


def _spectral_norm(
    weight: npt.NDArray[np.float32], left: npt.NDArray[np.float32], right: npt.NDArray[np.float32] | None = None
) -> npt.NDArray[np.float32]:
    # w / sigma with sigma = u' W v (Miyato et al., arXiv 1802.05957)
    sigma = 0.0
    for axis in _axes(weight.shape, left.size, None if right is None else right.size):
        matrix = np.moveaxis(weight, axis, 0).reshape(weight.shape[axis], -1).astype(np.float64)
        projected = left.reshape(-1) @ matrix
        # Where u alone is stored, v is one power iteration away
        found = float(np.linalg.norm(projected) if right is None else projected @ right.reshape(-1))
        # Plain layers unfold along the first axis, transposed ones along the second. Where both would fit, the vectors
        # are those of a singular value along one of them only.
        sigma = max(sigma, found, key=abs)
    return (weight / (sigma or 1.0)).astype(np.float32)
