"""Named variables of TensorFlow, Keras, JAX and their like, without a graph: which of them are convolutions.

Names and shapes are converted to PyTorch's form, ``scope.weight`` of (out, in / groups, h, w), or for a
transposed layer (in, out / groups, h, w). What they prove is then decided by
:func:`~cnnfilterdb.ingest.network.extract.layers_from_tensors`, as for any other file.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Collection, Sequence
from dataclasses import replace

import numpy as np
import numpy.typing as npt

from cnnfilterdb.ingest.network.axes import unique_names
from cnnfilterdb.ingest.network.composition import parameters
from cnnfilterdb.ingest.network.extract import ConvFacts, layers_from_tensors
from cnnfilterdb.ingest.network.folding import EPSILON_KERAS, EPSILON_TORCH
from cnnfilterdb.ingest.network.judge import is_depthwise, odd_form, separator_of, transposed_order
from cnnfilterdb.ingest.network.layers import ConvLayer, Skipped, Tensor

__all__ = ["is_training_state", "layers_from_variables"]

#: Usual names of a kernel, and of the other tensors of a layer.
_KERNELS = {"kernel", "kernels", "weight", "weights", "filter", "filters", "w", "W"} | {
    "pointwise_kernel",
    "pointwise_weights",
}
_DEPTHWISE = {"depthwise_kernel", "depthwise_weights"}
_OTHERS = {
    **dict.fromkeys(("bias", "biases", "b", "B"), "bias"),
    **dict.fromkeys(("gamma", "scale"), "weight"),
    **dict.fromkeys(("beta", "offset"), "bias"),
    **dict.fromkeys(("moving_mean", "mean", "avg_mean", "pop_mean"), "running_mean"),
    **dict.fromkeys(("moving_variance", "variance", "var", "avg_var", "pop_var"), "running_var"),
}

# State of the optimiser, which has the shape of the weights, and counters. An optimiser of Keras 3 that keeps averages
# also lists the weights themselves, and a checkpoint has them under that name alone.
_TRAINING = re.compile(
    r"(?:^|/)(?:\.OPTIMIZER_SLOT|_?optimizer(?!/_trainable_variables/)|training|Adam(?:_\d+)?|AdamW(?:_\d+)?|Momentum|"
    r"RMSProp(?:_\d+)?|Adagrad|Adadelta|Ftrl|sgd|keras_api|metrics|loss_scale|beta\d_power|save_counter|global_step|local_step|biased)"
    r"(?:/|:|$)"
)
_ODD = (
    "a kernel of a depthwise or a transposed layer, neither bias nor neighbours show which; save the model as a .keras "
    "file"
)
_STANDARDISED = re.compile(r"standardi[sz]ed", re.IGNORECASE)


def is_training_state(name: str) -> bool:
    """Whether a variable belongs to the optimiser or to a metric.

    >>> is_training_state("conv/kernel/Adam_1"), is_training_state("conv/kernel")
    (True, False)
    >>> is_training_state("optimizer/_variables/0"), is_training_state("optimizer/_trainable_variables/0")
    (True, False)
    """
    return _TRAINING.search(name) is not None


def layers_from_variables(
    variables: Sequence[Tensor], *, ordered: bool, layout: str = "HWIO", odd: Collection[str] = ()
) -> tuple[tuple[ConvLayer, ...], tuple[Skipped, ...], int]:
    """Find the two-dimensional convolution layers among variables.

    Args:
        variables: Those of one network, without the state of its training: ``scope/kernel``, ``scope/bias``, ...
        ordered: Whether they are in the order in which the network was built.
        layout: ``HWIO``, as TensorFlow stores a kernel (``HWOI`` in a transposed layer, (h, w, in, multiplier) in a
            depthwise one), or ``OIHW``, as Chainer and PyTorch do.
        odd: Names of kernels that are known not to be those of plain convolutions.

    Returns:
        The layers in the order of the variables, what looked like one but was left out, and the number of parameters.

    >>> kernel = Tensor("stem/kernel", (3, 3, 1, 8), "float32", read=lambda: np.ones((3, 3, 1, 8)))
    >>> layers, _, count = layers_from_variables([kernel], ordered=True)
    >>> layers[0].name, layers[0].shape, layers[0].kind, count
    ('stem', (8, 1, 3, 3), 'conv', 72)
    """
    kernels = Counter(_split(v.name)[0] for v in variables if _split(v.name)[1] in _KERNELS | _DEPTHWISE)
    biases = {scope: v.shape for v in variables for scope, leaf in [_split(v.name)] if leaf in ("bias", "biases", "b")}
    tensors: list[Tensor] = []
    unclear: list[Skipped] = []
    before: int | None = None  # outputs of the kernel before
    holders: dict[str, str] = {}
    names: dict[str, str] = {}
    facts: dict[str, ConvFacts] = {}
    for variable in variables:
        scope, leaf = _split(variable.name)
        dotted = scope.replace("/", ".")
        bias = biases.get(scope)
        # Keras 3 calls the kernel of a depthwise layer as that of any other
        kernel = leaf in _KERNELS and layout == "HWIO" and len(variable.shape) == 4
        form = odd_form(scope, variable.shape, bias, before) if kernel and variable.name in odd else ""
        if form is None:
            unclear.append(Skipped(variable.name, _ODD))
            before = None
            continue
        depthwise = leaf in _DEPTHWISE or form == "depthwise" or (kernel and is_depthwise(scope, variable.shape, bias))
        if leaf in _KERNELS or depthwise:
            if kernels[scope] > 1:  # the halves of a separable convolution
                dotted = variable.name.replace("/", ".")
            name = f"{dotted}.weight" if dotted else "weight"
            holders[name] = variable.name
            names[dotted or "weight"] = scope if scope and kernels[scope] == 1 else variable.name
            tensor = variable
            if len(variable.shape) == 4 and layout == "HWIO":
                facts[dotted], axes = _facts(variable, bias, scope, leaf, depthwise)
                if form == "transposed":
                    facts[dotted] = replace(facts[dotted], transposed=True, groups=1)
                tensor = _to_oihw(variable, axes, depthwise)
                before = tensor.shape[1 if facts[dotted].transposed else 0]
            tensors.append(replace(tensor, name=name))
        elif leaf in _OTHERS:
            name = f"{dotted}.{_OTHERS[leaf]}" if dotted else _OTHERS[leaf]
            holders.setdefault(name, variable.name)
            tensors.append(replace(variable, name=name))
        else:
            tensors.append(variable)
    epsilon = EPSILON_KERAS if layout == "HWIO" else EPSILON_TORCH
    found, skipped = layers_from_tensors(tensors, facts=facts, ordered=ordered, epsilon=epsilon)
    named = unique_names(
        [replace(one, name=names.get(one.name, one.name)) for one in found],
        [holders.get(f"{one.name}.weight", one.name) for one in found],
    )
    return (
        tuple(named),
        (*unclear, *(replace(entry, name=holders.get(entry.name, entry.name)) for entry in skipped)),
        parameters(tensors),
    )


def _split(name: str) -> tuple[str, str]:
    """Scope and leaf of a name: ``a/b/kernel:0``, ``a.b.kernel`` and ``a_W`` alike."""
    name = re.sub(r":\d+$", "", name)
    separator = separator_of(name)
    scope, _, leaf = name.rpartition(separator)
    # kernel_1: TensorFlow has numbered what would have had one name; _kernel: an attribute of Keras 3
    plain = re.sub(r"^_(?=kernel$)|_\d+$", "", leaf)
    leaf = plain if plain in _KERNELS or plain in _DEPTHWISE or plain in _OTHERS else leaf
    return (scope, leaf) if separator != "_" or leaf in _KERNELS or leaf in _OTHERS else ("", name)


def _facts(
    variable: Tensor, bias: tuple[int, ...] | None, scope: str, leaf: str, depthwise: bool
) -> tuple[ConvFacts, tuple[int, int, int, int]]:
    """What names say about a layer, unless its bias contradicts, and the axes that convert HWIO to PyTorch's order."""
    if depthwise:
        return ConvFacts(transposed=False, groups=variable.shape[2]), (2, 3, 0, 1)
    if leaf.startswith("pointwise"):
        return ConvFacts(transposed=False, groups=1), (3, 2, 0, 1)
    order = transposed_order(scope, variable.shape, bias)
    if order is not None:
        return ConvFacts(transposed=order != "plain", groups=1), (2, 3, 0, 1) if order == "hwio" else (3, 2, 0, 1)
    return ConvFacts(weight_norm="std" if _STANDARDISED.search(scope) else None), (3, 2, 0, 1)


def _to_oihw(variable: Tensor, axes: tuple[int, int, int, int], depthwise: bool) -> Tensor:
    first, second, height, width = (variable.shape[axis] for axis in axes)
    shape = (first * second, 1, height, width) if depthwise else (first, second, height, width)

    def read() -> npt.NDArray[np.generic]:
        return np.ascontiguousarray(variable.read().transpose(axes).reshape(shape))

    return replace(variable, shape=shape, read=read)
