"""Decides for every format which tensors are convolution weights, and what each of their axes means.

If the format states it, that is used: the graph of an ONNX or TensorFlow file names the convolutions and the layout, a
pickled PyTorch tensor has PyTorch's layout. For all other files of named arrays (NumPy archives, pickles of arrays,
safetensors, dictionaries in memory) names and shapes are the only evidence, and it is weighed here.

**Is it a convolution?** (:func:`objection`, for every tensor of four axes, whatever its source.) A parameter of four
axes need not be one. It is not, and is reported with the reason, when

- its bias has the same shape, as in normalisations and scales of each channel: GRN, SwitchNorm;
- it has at most one axis larger than 1 and the name of a norm, a scale, an activation or a noise, or has the form
  (1, 1, 1, n);
- it has a first axis of 1 and the name of a map of positions, tokens or constants, or is a map by its size: without a
  bias, and with sides that no kernel of one output has, or of the form (1, n, n, c) with n of 8 or more where the
  layout is not known;
- it has the name of a table: a codebook, prototypes, a queue, a bank, a lookup table; or that of a map of positions or
  tokens and the form of a list of vectors (n, 1, 1, c);
- it consists of complex numbers, by its name and a last axis of 2, as the filters of GFNet: (h, w, channels, 2);
- its layout is known, and a kernel of its size would be larger than any: 64 if both sides are larger than 1;
- it is a kernel of the gates of a recurrent layer of Keras, beside a ``recurrent_kernel`` (:func:`is_recurrent`), or
  may be one in a list without names: two kernels (h, w, in, n) and (h, w, f, n) of which the first has no bias, with n
  of 3 or 4 times f, so that the first does not give what the second takes;
- it is a factor of an adapter (LoRA, LoHa, LoKr, IA3, OFT): it changes a layer and is not one. The base layer is
  imported.

A bias of one axis, as convolutions have, overrules names and sizes.

**Which axis is which?** (:func:`layout_of`, for all kernels of a file together, as one program wrote them.) There are
three layouts: OIHW (PyTorch, Chainer, Paddle, Caffe2), HWIO (TensorFlow, Keras, JAX) and OHWI (MLX). Evidence:

1. *Bias.* The vector beside a kernel has as many elements as the layer has outputs (OIHW: first axis, or second in a
   transposed layer; HWIO: last axis, third in a transposed layer, their product in a depthwise one; OHWI: first axis).
   One bias that a layout cannot explain excludes the layout.
2. *Sizes.* Kernels are small: up to 64 if square, up to 128 if of height or width 1, else up to 11. One kernel that is
   larger under a layout excludes it.
3. *Squares.* Under which layouts all kernels are square, and not all of them 1x1; if there is no such layout, those
   under which most kernels are square and larger than 1x1.
4. *Neighbours.* How many layers take as many inputs as the layer before them gives outputs.
5. *Norms.* Under which layouts every layer without a bias gives as many outputs as some normalisation has channels.
6. *Names.* ``conv.weight`` is a name in the style of PyTorch, which MLX adopted: other names never come from MLX.
   ``num_batches_tracked`` is a name of PyTorch alone.

How they decide:

- If bias and sizes leave one layout, it is taken; so is one that all biases agree on, whatever its sizes.
- If they leave several, those with squares come first, and among these, the one with the most neighbours. A layout
  comes before them if it is the only one under which no kernel is larger than 11, unless the names speak against it and
  its kernels are not square.
- If several have as many neighbours, the norms decide, if they fit one of them only; else the names decide between
  PyTorch and MLX. Between PyTorch and the others they decide if kernels have odd sides under PyTorch's layout only, or
  if one is ``num_batches_tracked``. Arrays in memory are taken as PyTorch's, which the documentation of ``add``
  requires. Otherwise (a, a, b, b) and its reverse cannot be distinguished, and such kernels are left out.
- A layout that the names speak against needs squares, and no fewer neighbours than the one that they speak for.
- Kernels that are all 1x1 under one layout and larger under another may be either. They are taken as 1x1 if that is
  PyTorch's layout and the names are PyTorch's, or if the rules above have chosen it; otherwise they are left out.
- Kernels of which none is square under the layout that is found, and all would be in an order that is not among the
  three, (in, h, w, out), are left out.
- PyTorch's layout is taken for its own tensors with its own names, except where the biases of two kernels or more all
  exclude it and another layout explains them. So is a layout that the header of a file declares, except where biases or
  sizes of two kernels or more do so.

Where witnesses contradict each other or say nothing, the kernels are left out, and the reason is reported.

**What TensorFlow and Keras leave open.** Their names and classes say more than those of other programs, so less has to
be judged. A parameter of four axes in a class that is not known is a convolution if a name contains ``conv``, or if its
bias is as long as one of the last two axes (:func:`shows_convolution`). A layer that is named as a transposed or as a
depthwise one is that unless its bias contradicts (:func:`transposed_order`, :func:`is_depthwise`); a bias as long as
the product of the last two axes shows a depthwise one. Checkpoints of Keras 3 call the kernels of all other layers
``_kernel``, so that one that is called ``kernel`` is either of them, which the layer before it may decide
(:func:`odd_form`). Keras 1 wrote (out, in, h, w) or (h, w, in, out): the one that more biases fit is taken
(:func:`order_of_biases`).

Whether a layer is grouped, depthwise or transposed is decided after that, from the same evidence, by
:func:`~cnnfilterdb.ingest.network.extract.layers_from_tensors`.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from itertools import pairwise
from typing import Literal

import numpy as np
import numpy.typing as npt

from cnnfilterdb.ingest.network.layers import Skipped, Tensor

__all__ = [
    "ADAPTER",
    "AXES",
    "CONTRADICTED",
    "GATES",
    "UNCLEAR",
    "Layout",
    "is_adapter",
    "is_depthwise",
    "is_floating",
    "is_recurrent",
    "layout_of",
    "natural",
    "objection",
    "odd_form",
    "order_of_biases",
    "scope_of",
    "separator_of",
    "settled",
    "shows_convolution",
    "speaks_pytorch",
    "transposed_order",
]

Layout = Literal["OIHW", "HWIO", "OHWI"]
TransposedOrder = Literal["hwoi", "hwio", "plain"]

#: Order of the stored axes that makes (out, in, h, w).
AXES: dict[Layout, tuple[int, int, int, int]] = {"OIHW": (0, 1, 2, 3), "HWIO": (3, 2, 0, 1), "OHWI": (0, 3, 1, 2)}

#: Why a kernel with indistinguishable axes is left out.
UNCLEAR = (
    "its layout is not clear: biases and shapes do not separate (out, in, h, w) from (h, w, in, out) or (out, h, w, in)"
)

#: Why a kernel is left out whose file states a layout that cannot be.
CONTRADICTED = (
    "its layout is not clear: biases or sizes contradict the layout that the file or its names state; convert kernels "
    "to (out, in, h, w) and save them again"
)

#: Why kernels are left out that may be those of gates.
GATES = (
    "may be a kernel of a recurrent layer, which is that of several gates: a list without names does not show it; "
    "save the arrays with names"
)

#: Why a factor of an adapter is left out.
ADAPTER = (
    "a factor of a LoRA adapter, which changes a layer and is not one; to import the changed layer, read base and "
    "adapter with merge_adapters=True (--merge-adapters), or merge them with peft: merge_and_unload"
)
_ADAPTER = re.compile(
    r"(?:^|[._/])(?:lora(?=[_.A-Z\d])|loraup|loradown|hada_[wt][12]|lokr_[wt]|ia3_|oft_|boft_|vera_lambda|dora_scale)"
)
_CHANNEL_WORDS = re.compile(
    r"(?:^|[._])(?:\w*norms?\d*|\w*bn\d*|(?:[abfgils]|[bfg]r)n\d*|rms|film|\w*noise\w*|gamma\w*|beta|\w*scale(?:r|_?\d+)?|"
    r"\w*scaling|gain|affine|ls\d*|\w*prelu\d*|act\d*|activation\d*|tau|alpha|lamb\w*|eps|\w*re_?zero|\w*strength|temperature|mean|std)$"
)
_PLACE_WORDS = re.compile(
    r"(?:^|[._])(?:\w*pos(?:ition\w*|_?emb\w*|_?enc\w*)?|\w*tokens?|rel_\w*|rpe|\w*embed(?:ding)?s?|"
    r"\w*quer(?:y|ies)|const\w*|\w*bias_table|\w*grid|\w*window|\w*prior)$"
)
_TABLE_WORDS = re.compile(
    r"(?:^|[._])(?:\w*codebook\w*|\w*prototypes?|queue\w*|\w*bank|\w*memory|\w*anchors?|\w*luts?)$"
)
_COMPLEX_WORDS = re.compile(r"complex|fourier|(?:^|[._])d?r?fft")

_PYTORCH_NAME = re.compile(r"(?:^|\.)(?:num_batches_tracked|\w*weight(?:_\w+)?|parametrizations\.\w+\.\w+)$")
_TRANSPOSED = re.compile(r"transpose|deconv|up_?conv|trans_?conv|conv_?trans|convt(?![a-z])", re.IGNORECASE)
_FLAX_TRANSPOSED = re.compile(r"ConvTranspose(?:_\d+)?$")


def is_adapter(name: str) -> bool:
    """Whether a tensor is a factor of an adapter, by its name.

    >>> is_adapter("conv.lora_A.default.weight"), is_adapter("colora.weight")
    (True, False)
    """
    return _ADAPTER.search(name) is not None


def is_floating(tensor: Tensor) -> bool:
    """Whether a tensor contains weights; quantised ones are dequantised when read."""
    return tensor.dtype.startswith(("float", "bfloat")) or tensor.dtype in ("qint8", "quint8", "qint32")


def objection(tensor: Tensor, index: Mapping[str, Tensor], *, known_layout: bool = False) -> str | None:
    """Why a tensor of four axes is not the weight of a convolution; None if there is no objection.

    Args:
        tensor: The tensor, named ``<owner>.<leaf>``.
        index: All tensors of its network by name.
        known_layout: Whether it is known to be (out, in, h, w), so that the size of its kernels tells, too.

    >>> grn = Tensor("grn.weight", (1, 1, 1, 160), "float32", read=lambda: ...)
    >>> objection(grn, {"grn.weight": grn})
    'one number for each channel, as in a normalisation or a scale'
    """
    if is_adapter(tensor.name):
        return ADAPTER
    owner, _, leaf = tensor.name.rpartition(".")
    bias = index.get(f"{owner}.bias" if owner else "bias")
    if bias is not None and len(bias.shape) == 4:
        return "its bias has four dimensions, as in a normalisation or a scale"
    if bias is not None and len(bias.shape) == 1:
        return None
    # A parameter itself may have the name, as in `conv_weight`, or its owner
    part = leaf.removesuffix("weight").rstrip("_.")
    name = (".".join(filter(None, (owner, part))) if leaf.endswith("weight") and owner else tensor.name).lower()
    if name.rpartition(".")[2].isdecimal():  # a number in a list, such as norms.0
        name = name.rpartition(".")[0]
    wide = sum(side > 1 for side in tensor.shape)
    if (wide == 1 and tensor.shape[:3] == (1, 1, 1)) or (wide <= 1 and _CHANNEL_WORDS.search(name)):
        return "one number for each channel, as in a normalisation or a scale"
    large = known_layout and len(tensor.shape) == 4 and not _may_have_one_output(tensor.shape)
    grid = not known_layout and len(tensor.shape) == 4 and tensor.shape[1] == tensor.shape[2] >= 8
    if tensor.shape[0] == 1 and (_PLACE_WORDS.search(name) or large or grid):
        return "a map of positions or tokens, to judge by its name and shape"
    listed = tensor.shape[1:3] == (1, 1) and tensor.shape[-1] > 1 and _PLACE_WORDS.search(name)
    if _TABLE_WORDS.search(name) or listed:
        return "a table of vectors, to judge by its name"
    if tensor.shape[-1] == 2 and tensor.shape[-2] != 2 and _COMPLEX_WORDS.search(name):
        return "complex numbers, as a filter of frequencies has them"
    if known_layout and len(tensor.shape) == 4 and min(tensor.shape[2:]) > 1 and max(tensor.shape[2:]) > 64:
        return f"a kernel of {tensor.shape[2]}x{tensor.shape[3]} would be larger than any; a map, to judge by its shape"
    return None


def is_recurrent(name: str, index: Mapping[str, Tensor]) -> bool:
    """Whether a tensor is a kernel of a recurrent layer, as Keras names them.

    >>> is_recurrent("cell/kernel", {"cell/recurrent_kernel": ...})
    True
    """
    scope, separator = name.rpartition(separator_of(name))[:2]
    return f"{scope}{separator}recurrent_kernel" in index and name.endswith("kernel")


def _may_have_one_output(shape: tuple[int, ...]) -> bool:
    """Whether a kernel (1, in, h, w) is as small as those of layers with one output, which average or predict."""
    return shape[1] == 1 or max(shape[2:]) <= 11 or 1 in shape[2:] or (shape[2] == shape[3] and shape[2] % 2 == 1)


def shows_convolution(names: Iterable[str], shape: tuple[int, ...], bias: tuple[int, ...] | None) -> bool:
    """Whether anything but its four axes shows that a parameter (h, w, in, out) of an unknown class is a kernel.

    Args:
        names: Names of the layer and of its class.
        shape: Shape of the parameter.
        bias: Shape of the bias beside it; None where there is none.

    >>> shows_convolution(["pos_embed", "PosEmb"], (1, 16, 16, 32), None)
    False
    >>> shows_convolution(["stem", "MyLayer"], (3, 3, 3, 32), (32,))
    True
    """
    return any("conv" in name.lower() for name in names) or bias in (shape[3:], shape[2:3])


def transposed_order(scope: str, shape: tuple[int, ...], bias: tuple[int, ...] | None) -> TransposedOrder | None:
    """How a kernel of TensorFlow whose name may say that its layer is transposed is stored.

    Args:
        scope: Name of the layer.
        shape: Shape of the kernel.
        bias: Shape of its bias; None where there is none.

    Returns:
        ``hwoi``, as TensorFlow stores transposed layers; ``hwio`` for Flax, which does not; ``plain`` for a layer that
        is not transposed after all, but named after what follows it. None where neither name nor bias decides.

    >>> transposed_order("up/conv2d_transpose", (3, 3, 8, 16), (8,)), transposed_order("up_conv", (3, 3, 8, 16), (16,))
    ('hwoi', 'plain')
    """
    if _TRANSPOSED.search(scope) is None:
        return None
    third, last = shape[2:]
    if bias == (last,) and third != last:
        return "hwio" if _FLAX_TRANSPOSED.search(scope) else "plain"
    return "hwoi" if bias is None or bias == (third,) else None


def is_depthwise(scope: str, shape: tuple[int, ...], bias: tuple[int, ...] | None) -> bool:
    """Whether a kernel of TensorFlow is (h, w, channels, multiplier), that of a depthwise layer.

    Args:
        scope: Name of the layer.
        shape: Shape of the kernel.
        bias: Shape of its bias; None where there is none.

    >>> is_depthwise("dw", (3, 3, 8, 2), (16,)), is_depthwise("depthwise", (3, 3, 8, 2), (2,))
    (True, False)
    """
    height, width, channels, multiplier = shape
    if bias is not None and bias[:1] not in ((channels,), (multiplier,)):
        return bias == (channels * multiplier,)
    named = "depthwise" in scope.rpartition("/")[2].lower()
    return named and (multiplier == 1 or (bias is None and max(height, width) > 1 and multiplier < channels))


def odd_form(
    scope: str, shape: tuple[int, ...], bias: tuple[int, ...] | None, before: int | None
) -> Literal["depthwise", "transposed"] | None:
    """What a kernel of Keras 3 is that is known not to be that of a plain convolution; None where nothing shows it.

    Args:
        scope: Name of the layer.
        shape: Shape of the kernel: (h, w, channels, multiplier) or (h, w, out, in).
        bias: Shape of its bias; None where there is none.
        before: Outputs of the layer before it; None where that is not known.

    >>> odd_form("a", (3, 3, 8, 2), None, 8), odd_form("a", (3, 3, 8, 2), (8,), 8), odd_form("a", (3, 3, 8, 2), None, 4)
    ('depthwise', 'transposed', None)
    """
    third, last = shape[2:]
    if is_depthwise(scope, shape, bias):
        return "depthwise"
    if _TRANSPOSED.search(scope) is not None:
        return "transposed"
    if last == 1:
        return "depthwise"
    if bias is not None:
        return "transposed" if bias == (third,) else None
    return None if third == last or before not in (third, last) else "depthwise" if before == third else "transposed"


def order_of_biases(pairs: Iterable[tuple[tuple[int, ...], tuple[int, ...]]]) -> Layout | None:
    """The layout, of the two that Keras 1 wrote, that more biases fit; None where there are as many for both.

    Args:
        pairs: Shapes of kernels and of their biases.

    >>> order_of_biases([((32, 3, 5, 5), (32,))]), order_of_biases([((32, 3, 3, 32), (32,))])
    ('OIHW', None)
    """
    votes = sum((bias == kernel[:1]) - (bias == kernel[3:]) for kernel, bias in pairs)
    return "OIHW" if votes > 0 else "HWIO" if votes < 0 else None


def scope_of(name: str) -> str:
    """The common prefix of the names of the tensors of one layer.

    >>> scope_of("a.conv.weight"), scope_of("a/conv/kernel"), scope_of("conv1_w")
    ('a.conv', 'a/conv', 'conv1')
    """
    return name.rpartition(separator_of(name))[0]


def separator_of(name: str) -> str:
    """What separates the last part of a name.

    >>> separator_of("net/~/conv.w"), separator_of("a.b/kernel"), separator_of("conv1_w")
    ('.', '/', '_')
    """
    return max("./", key=name.rfind) if "." in name or "/" in name else "_"


def natural(name: str) -> list[tuple[int, str]]:
    """Sorting key that compares the numbers in a name as numbers.

    >>> sorted(["layer10.conv", "layer2.conv", "layer2.bn"], key=natural)
    ['layer2.bn', 'layer2.conv', 'layer10.conv']
    """
    # int() of long digit strings is slow, so they are compared by length and value
    parts = re.findall(r"[0-9]+|[^0-9]+", name)
    return [(len(part.lstrip("0")), part.lstrip("0")) if part[0] in "0123456789" else (-1, part) for part in parts]


def layout_of(
    kernels: Sequence[Tensor],
    tensors: Sequence[Tensor],
    *,
    declared: Layout | None = None,
    assumed: Layout | None = None,
    doubted: bool = True,
) -> Layout | None:
    """The layout that the evidence agrees on; None if it is contradictory or missing.

    Args:
        kernels: The tensors of four axes that may be weights, in the order of the network or of their names.
        tensors: All tensors of the network.
        declared: The layout that the file states, if any.
        assumed: The layout to take where the evidence is silent.
        doubted: Whether sizes, too, may contradict the declared layout.

    >>> def tensor(name, *shape):
    ...     return Tensor(name, shape, "float32", read=lambda: ...)
    >>> kernels = [tensor("a.weight", 32, 3, 3, 3), tensor("b.weight", 64, 3, 3, 32)]
    >>> layout_of(kernels, kernels)
    'OHWI'
    """
    lengths: dict[str, set[int]] = {}
    for tensor in tensors:
        if len(tensor.shape) == 1:
            lengths.setdefault(scope_of(tensor.name), set()).add(tensor.shape[0])
    biased = []
    for kernel in kernels:
        found = lengths.get(scope_of(kernel.name), set())
        if len(found) == 1:
            biased.append((kernel.shape, next(iter(found))))
    shapes = [kernel.shape for kernel in kernels]
    layouts = [one for one in AXES if one != "OHWI" or declared == "OHWI" or speaks_pytorch(tensors)]
    explained = [one for one in layouts if all(_explains(one, shape, length) for shape, length in biased)]
    possible: list[Layout] = [one for one in explained if all(_is_small(one, shape) for shape in shapes)]
    if declared is not None:
        against = len(biased) > 1 and not any(_explains(declared, shape, length) for shape, length in biased)
        if doubted:
            against = against or (len(kernels) > 1 and declared not in possible)
        return None if against and possible else declared
    if not possible:
        # A kernel may be large if biases leave no other choice
        chosen = explained[0] if len(explained) == 1 and biased else None
    elif len(possible) == 1:
        chosen = possible[0]
    else:
        chosen = _favoured(possible, kernels, tensors, assumed)
    return None if chosen is None or _is_of_another_order(chosen, shapes) else chosen


def _is_of_another_order(layout: Layout, shapes: Sequence[tuple[int, ...]]) -> bool:
    """Whether no kernel is square under a layout, and all would be under (in, h, w, out) or (out, h, w, in)."""
    square = any(height == width for height, width in (_size(layout, shape) for shape in shapes))
    return layout != "OHWI" and not square and all(second == third > 1 for _, second, third, _ in shapes)


def _favoured(
    possible: Sequence[Layout],
    kernels: Sequence[Tensor],
    tensors: Sequence[Tensor],
    assumed: Layout | None,
) -> Layout | None:
    """The layout, of several possible ones, that squares, neighbours, norms and names favour."""
    shapes = [kernel.shape for kernel in kernels]
    sizes = {one: [_size(one, shape) for shape in shapes] for one in possible}
    all_square = [
        one
        for one in possible
        if any(size > (1, 1) for size in sizes[one]) and all(height == width for height, width in sizes[one])
    ]
    mostly = [one for one in possible if 2 * sum(height == width > 1 for height, width in sizes[one]) > len(shapes)]
    square = all_square or mostly
    chained = {
        one: sum(before[AXES[one][0]] == after[AXES[one][1]] for before, after in pairwise(shapes)) for one in possible
    }
    pytorch: Layout | None = "OIHW" if speaks_pytorch(tensors) else None
    # Kernels are mostly small, and channels mostly more than eleven
    tiny = [one for one in possible if all(max(size) <= 11 for size in sizes[one])]
    if len(tiny) == 1 and (pytorch is None or tiny[0] in (pytorch, *all_square)):
        return tiny[0]
    candidates = square or possible
    best = [one for one in candidates if chained[one] == max(chained[other] for other in candidates)]
    fitting = [one for one in best if _fits_norms(one, kernels, tensors)]
    best = fitting if len(fitting) == 1 else best
    odd = [one for one in best if all(height % 2 for height, _ in sizes[one])]
    own = any(tensor.name.endswith("num_batches_tracked") for tensor in tensors)
    decided = "HWIO" not in best or own or odd == [pytorch]
    named = pytorch if decided else assumed
    chosen = best[0] if len(best) == 1 else named if named in best else None
    # 1x1 kernels under one layout are larger ones under another, which no square supports: either may be right
    flat = [one for one in possible if all(size == (1, 1) for size in sizes[one])]
    if chosen is None or (flat and chosen not in flat):
        return pytorch if pytorch in flat else None
    # Names are overruled only by squares, and only if neighbours do not contradict
    if pytorch in possible and chosen != pytorch and (not square or chained[chosen] < chained["OIHW"]):
        return None
    return chosen


def _fits_norms(layout: Layout, kernels: Sequence[Tensor], tensors: Sequence[Tensor]) -> bool:
    """Whether every layer without a bias gives as many outputs as some normalisation has channels."""
    own = {scope_of(kernel.name) for kernel in kernels}
    vectors = [(scope_of(one.name), one.shape[0]) for one in tensors if len(one.shape) == 1]
    biased = {scope for scope, _ in vectors}
    channels = {length for scope, length in vectors if scope not in own}
    return all(one.shape[AXES[layout][0]] in channels for one in kernels if scope_of(one.name) not in biased)


def speaks_pytorch(tensors: Sequence[Tensor]) -> bool:
    """Whether the names are those of PyTorch, which MLX uses too."""
    return any(_PYTORCH_NAME.search(tensor.name) for tensor in tensors)


def _size(layout: Layout, shape: Sequence[int]) -> tuple[int, int]:
    _, _, height, width = AXES[layout]
    return shape[height], shape[width]


def _is_small(layout: Layout, shape: Sequence[int]) -> bool:
    height, width = _size(layout, shape)
    if height == width:
        return height <= 64
    return max(height, width) <= (128 if 1 in (height, width) else 11)


def _explains(layout: Layout, shape: Sequence[int], length: int) -> bool:
    """Whether a layer of a layout may have a bias of a length."""
    first, second, third, last = shape
    if layout == "OIHW":
        split = length // second if second and length % second == 0 else 0
        return length in (first, second) or (split > 0 and first % split == 0)
    if layout == "HWIO":
        return length in (third, last, third * last)
    return length == first


def settled(
    tensors: Sequence[Tensor],
    *,
    declared: Layout | None = None,
    assumed: Layout | None = None,
    doubted: bool = True,
) -> tuple[list[Tensor], tuple[Skipped, ...]]:
    """Convert the kernels of a file to PyTorch's layout, or leave them out.

    Args:
        tensors: Those of one network, named as PyTorch names them: ``<layer>.weight``, ``<layer>.bias``.
        declared: The layout that the file states.
        assumed: The layout to take where the evidence is silent.
        doubted: Whether sizes, too, may contradict the declared layout.

    Returns:
        The tensors, kernels as (out, in, h, w), without those whose layout is not clear; and these, with the reason.
    """
    index = {tensor.name: tensor for tensor in tensors}
    kernels = [
        one
        for one in tensors
        if len(one.shape) == 4 and is_floating(one) and _is_named_weight(one.name) and objection(one, index) is None
    ]
    if not kernels:
        return list(tensors), ()
    layout = layout_of(kernels, tensors, declared=declared, assumed=assumed, doubted=doubted)
    if layout == "OIHW":
        return list(tensors), ()
    chosen = {kernel.name for kernel in kernels}
    if layout is None:
        return (
            [one for one in tensors if one.name not in chosen],
            tuple(Skipped(kernel.name, CONTRADICTED if declared else UNCLEAR) for kernel in kernels),
        )
    biases = {kernel.name: index.get(f"{scope_of(kernel.name)}.bias".removeprefix(".")) for kernel in kernels}
    gates = {
        one.name
        for first, second in pairwise(tensors)
        if layout == "HWIO" and {first.name, second.name} <= chosen and biases[first.name] is None
        if _are_gates(first.shape, second.shape) and first.name not in first.parts
        for one in (first, second)
    }
    if gates:
        rest, unclear = settled(
            [one for one in tensors if one.name not in gates], declared=declared, assumed="HWIO", doubted=doubted
        )
        return rest, (*unclear, *(Skipped(one.name, GATES) for one in kernels if one.name in gates))
    halves = {
        first.name
        for first, second in pairwise(tensors)
        if first.name in chosen and second.name in chosen and biases[first.name] is None and _are_halves(first, second)
    }
    turned = {
        kernel.name: _turned(kernel, layout, biases[kernel.name], depthwise=kernel.name in halves) for kernel in kernels
    }
    return [turned.get(one.name, one) for one in tensors], ()


def _are_gates(first: tuple[int, ...], second: tuple[int, ...]) -> bool:
    """Whether two kernels (h, w, in, n) and (h, w, f, n) have the shapes of those of a ConvLSTM or a ConvGRU.

    >>> _are_gates((3, 3, 8, 64), (3, 3, 16, 64)), _are_gates((3, 3, 8, 16), (3, 3, 16, 64))
    (True, False)
    """
    same = first[:2] == second[:2] != (1, 1) and first[3] == second[3]
    return same and second[2] > 0 and second[3] in (3 * second[2], 4 * second[2])


def _is_named_weight(name: str) -> bool:
    return name.rpartition(".")[2].endswith("weight")


def _are_halves(first: Tensor, second: Tensor) -> bool:
    """Whether two kernels (h, w, in, out) are those of a separable layer, the first of which is depthwise."""
    _, _, channels, multiplier = first.shape
    return second.shape[:2] == (1, 1) and second.shape[2] == channels * multiplier != multiplier


def _turned(kernel: Tensor, layout: Layout, bias: Tensor | None, *, depthwise: bool = False) -> Tensor:
    axes = AXES[layout]
    shape = tuple(kernel.shape[axis] for axis in axes)
    # (h, w, in, multiplier) of a depthwise layer has a bias of their product
    outputs = bias.shape[0] if bias is not None and len(bias.shape) == 1 else kernel.shape[3]
    shown = outputs != kernel.shape[3] and outputs == math.prod(kernel.shape[2:])
    if layout == "HWIO" and (depthwise or shown):
        axes, shape = (2, 3, 0, 1), (math.prod(kernel.shape[2:]), 1, *kernel.shape[:2])

    def read() -> npt.NDArray[np.generic]:
        return np.ascontiguousarray(kernel.read().transpose(axes).reshape(shape))

    return replace(kernel, shape=shape, read=read)
