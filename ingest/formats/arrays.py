"""Named arrays of files that do not state their layout: NumPy archives, pickles of arrays, safetensors."""

from __future__ import annotations

import re
from collections.abc import Sequence

from cnnfilterdb.ingest.formats.variables import is_training_state, layers_from_variables
from cnnfilterdb.ingest.network.extract import layers_from_tensors
from cnnfilterdb.ingest.network.judge import UNCLEAR, Layout, layout_of, natural, objection
from cnnfilterdb.ingest.network.layers import ConvLayer, Skipped, Tensor

__all__ = ["layers_from_arrays"]

_TORCH_NAME = re.compile(r"(?:^|\.)\w*weight(?:_\w+)?$")


def layers_from_arrays(
    tensors: Sequence[Tensor], *, ordered: bool = False, declared: Layout | None = None
) -> tuple[Sequence[ConvLayer], Sequence[Skipped]]:
    """Find the two-dimensional convolution layers among named arrays.

    Args:
        tensors: Those of one network.
        ordered: Whether those with names as in PyTorch are in the order in which the network was built.
        declared: The layout, if the file states it.

    Returns:
        The layers, and what looked like one but was left out. The layout is decided by
        :mod:`cnnfilterdb.ingest.network.judge`.
    """
    tensors = _caffe_names([tensor for tensor in tensors if not is_training_state(tensor.name)])
    index = {tensor.name: tensor for tensor in tensors}
    kernels = [
        tensor
        for tensor in tensors
        if len(tensor.shape) == 4 and tensor.dtype.startswith(("float", "bfloat")) and objection(tensor, index) is None
    ]
    named = [kernel for kernel in kernels if _TORCH_NAME.search(kernel.name)]
    if kernels and len(named) == len(kernels):
        return layers_from_tensors(tensors, ordered=ordered, layout=declared)
    # Kernels first, if their names identify them: a mean image may be among the arrays
    layout = layout_of(kernels, tensors, declared=declared)
    if layout not in ("OIHW", "HWIO"):
        if named:
            return layers_from_tensors(tensors, ordered=ordered, layout=declared)
        return (), [Skipped(tensor.name, UNCLEAR) for tensor in kernels]
    # A file is in alphabetical order, or that of a hash; but consecutively numbered layers are in order
    ordered = len({re.sub(r"[\d_]+", "", kernel.name) for kernel in kernels}) == 1
    if ordered:
        tensors = sorted(tensors, key=lambda tensor: natural(tensor.name))
    layers, skipped, _ = layers_from_variables(tensors, ordered=ordered, layout=layout)
    return layers, skipped


def _caffe_names(tensors: Sequence[Tensor]) -> list[Tensor]:
    """Name the arrays of a list [weight, bias], as Caffe's layers are often stored."""
    ranks = {tensor.name: len(tensor.shape) for tensor in tensors}
    return [_spelt_out(tensor, ranks) for tensor in tensors]


def _spelt_out(tensor: Tensor, ranks: dict[str, int]) -> Tensor:
    match = re.fullmatch(r"(.*[./])([01])", tensor.name)
    if match is None:
        return tensor
    rank, stem = len(tensor.shape), match[1]
    if match[2] == "1" and rank == 1 and ranks.get(f"{stem}0") in (2, 4):
        return _renamed(tensor, f"{stem}bias")
    return _renamed(tensor, f"{stem}weight") if match[2] == "0" and rank in (2, 4) else tensor


def _renamed(tensor: Tensor, name: str) -> Tensor:
    return Tensor(name, tensor.shape, tensor.dtype, tensor.read, tensor.parameter, tensor.unreadable)
