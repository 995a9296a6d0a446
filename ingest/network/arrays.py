"""Named arrays of files that do not state their layout: NumPy archives, pickles of arrays, safetensors."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from dataclasses import replace
from itertools import pairwise

from cnnfilterdb.ingest.network.adapters import unmerged
from cnnfilterdb.ingest.network.extract import layers_from_tensors
from cnnfilterdb.ingest.network.judge import UNCLEAR, Layout, is_floating, is_recurrent, layout_of, natural, objection
from cnnfilterdb.ingest.network.layers import ConvLayer, Skipped, Tensor
from cnnfilterdb.ingest.network.variables import is_training_state, layers_from_variables

__all__ = ["layers_from_arrays"]

_RECURRENT = "a kernel of a recurrent layer, which is that of several gates"
_GAIN = (
    "may be the gain, or the direction, of a kernel with weight normalisation: a list without names does not show it; "
    "save the arrays with names"
)
_OUTPUT = re.compile(r":\d+$")
_VALUE = re.compile(r"[./](?:raw_)?value$|:\d+$")
_TORCH_NAME = re.compile(r"(?:^|\.)\w*weight(?:_\w+)?$")


def layers_from_arrays(
    tensors: Sequence[Tensor],
    *,
    ordered: bool = False,
    declared: Layout | None = None,
    assumed: Layout | None = None,
) -> tuple[Sequence[ConvLayer], Sequence[Skipped]]:
    """Find the two-dimensional convolution layers among named arrays.

    Args:
        tensors: Those of one network.
        ordered: Whether those with names as in PyTorch are in the order in which the network was built.
        declared: The layout, if the file states it.
        assumed: The layout to take where the evidence is silent.

    Returns:
        The layers, and what looked like one but was left out. The layout is decided by
        :mod:`cnnfilterdb.ingest.network.judge`.
    """
    # The number of an output of TensorFlow, or the attribute in which NNX of Flax keeps the array of a variable
    end = _VALUE if all(_VALUE.search(one.name) for one in tensors if len(one.shape) == 4) else _OUTPUT
    plain = [replace(tensor, name=end.sub("", tensor.name)) for tensor in tensors if not is_training_state(tensor.name)]
    named = _caffe_names(plain)
    layers, skipped = _judged(named, ordered, declared, assumed)
    given = {new.name: old.name for old, new in zip(plain, named, strict=True)}
    return layers, [replace(one, name=given.get(one.name, one.name)) for one in skipped]


def _judged(
    tensors: Sequence[Tensor], ordered: bool, declared: Layout | None, assumed: Layout | None
) -> tuple[Sequence[ConvLayer], Sequence[Skipped]]:
    """The layers among arrays that have names."""
    index = {tensor.name: tensor for tensor in tensors}
    gates = [Skipped(tensor.name, _RECURRENT) for tensor in tensors if is_recurrent(tensor.name, index)]
    if gates:
        kernels_of_gates = {one.name for one in gates}
        tensors = [tensor for tensor in tensors if tensor.name not in kernels_of_gates]
        layers, skipped = _judged(tensors, ordered, declared, assumed)
        return layers, [*skipped, *gates]
    pairs = [pair for pair in pairwise(tensors) if _are_gain_and_direction(*pair)]
    if pairs:
        unclear = {one.name for pair in pairs for one in pair}
        rest = [tensor for tensor in tensors if tensor.name not in unclear]
        layers, skipped = _judged(rest, ordered, declared, assumed)
        return layers, [*skipped, *(Skipped(one.name, _GAIN) for one in tensors if one.name in unclear)]
    kernels = [
        tensor
        for tensor in tensors
        if len(tensor.shape) == 4 and tensor.dtype.startswith(("float", "bfloat")) and objection(tensor, index) is None
    ]
    named = [kernel for kernel in kernels if _TORCH_NAME.search(kernel.name)]
    if 2 * len(named) > len(kernels):  # others, such as a mask, are reported by their names
        return layers_from_tensors(tensors, ordered=ordered, layout=declared, assumed=assumed, doubted=True)
    # Kernels first, if their names identify them: a mean image may be among the arrays
    layout = layout_of(kernels, tensors, declared=declared, assumed=assumed)
    if layout not in ("OIHW", "HWIO"):
        if named:
            return layers_from_tensors(tensors, ordered=ordered, layout=declared, assumed=assumed, doubted=True)
        others = [tensor for tensor in tensors if len(tensor.shape) == 4 and is_floating(tensor)]
        left_out = [Skipped(tensor.name, objection(tensor, index) or UNCLEAR) for tensor in others]
        return (), [*left_out, *unmerged(tensors, left_out)]
    # A file is in alphabetical order, or that of a hash; but consecutively numbered layers are in order
    ordered = len({re.sub(r"[\d_]+", "", kernel.name) for kernel in kernels}) == 1
    if ordered:
        tensors = sorted(tensors, key=lambda tensor: natural(tensor.name))
    layers, skipped, _ = layers_from_variables(tensors, ordered=ordered, layout=layout)
    return layers, skipped


def _caffe_names(tensors: Sequence[Tensor]) -> list[Tensor]:
    """Name the arrays of lists: [weight, bias] of one layer, as Caffe's are often stored, or those of all layers.

    In a list of all layers, a kernel or a matrix is followed by its vectors (``numpy.savez(path, *arrays)``,
    ``get_weights()`` of Keras): the first one names its outputs. Spectral normalisation of PyTorch has two vectors
    after a kernel, as long as the sides of its matrix, and the bias before it.
    """
    lists: dict[str, dict[int, Tensor]] = {}
    for tensor in tensors:
        match = re.fullmatch(r"(.*?)(\d{1,6})", tensor.name)
        if match is not None and "parametrizations." not in match[1]:
            lists.setdefault(match[1], {})[int(match[2])] = tensor
    names: dict[str, str] = {}  # new name by name
    for stem, found in lists.items():
        if not any(len(tensor.shape) == 4 for tensor in found.values()) and len(found) > 2:
            continue
        short = max(found) <= 1 and stem.endswith((".", "/"))
        owner = ""
        for number, tensor in sorted(found.items()):
            if tensor.name in names:
                continue
            left, right = found.get(number + 1), found.get(number + 2)
            if left is not None and right is not None and _is_spectral(tensor.shape, left.shape, right.shape):
                owner = f"{tensor.name}."
                parts = {"weight_orig": tensor, "weight_u": left, "weight_v": right}
                before = found.get(number - 1)
                if before is not None and before.name not in names and before.shape == left.shape:
                    parts["bias"] = before
                names |= {part.name: f"{owner}{leaf}" for leaf, part in parts.items()}
            elif len(tensor.shape) in (2, 4):
                owner = stem if short else f"{tensor.name}."
                names[tensor.name] = f"{owner}weight"
            elif len(tensor.shape) == 1 and owner and (number - 1) in found and len(found[number - 1].shape) in (2, 4):
                names[tensor.name] = f"{owner}bias"
    return [replace(tensor, name=names.get(tensor.name, tensor.name)) for tensor in tensors]


def _are_gain_and_direction(first: Tensor, second: Tensor) -> bool:
    """Whether two arrays of a list without names have the shapes of the parts of weight normalisation."""
    nameless = first.name not in first.parts and second.name not in second.parts
    return (
        nameless
        and len(second.shape) == 4
        and 1 < second.shape[0] < math.prod(second.shape)
        and first.shape == (second.shape[0], 1, 1, 1)
    )


def _is_spectral(weight: tuple[int, ...], left: tuple[int, ...], right: tuple[int, ...]) -> bool:
    """Whether two vectors are as long as the sides of the matrix of a kernel larger than 1x1.

    >>> _is_spectral((16, 8, 3, 3), (16,), (72,)), _is_spectral((16, 8, 4, 4), (8,), (256,))
    (True, True)
    >>> _is_spectral((16, 8, 3, 3), (16,), (16,)), _is_spectral((8, 8, 1, 1), (8,), (8,))
    (False, False)
    """
    if len(weight) != 4 or len(left) != 1 or len(right) != 1 or weight[2:] == (1, 1):
        return False
    return left[0] in weight[:2] and left[0] * right[0] == math.prod(weight)
