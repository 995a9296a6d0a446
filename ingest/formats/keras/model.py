"""Keras models: HDF5 files of Keras 1 to 3, and ``.keras`` archives. Neither Keras nor TensorFlow is needed.

The configuration of the model, where the file has one, gives the class of every layer and the graph of all. Weights
alone are classified by the names that Keras gives to layers without a name, and by what their shapes prove.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np

from cnnfilterdb.ingest.formats import register
from cnnfilterdb.ingest.formats.damage import undamaged
from cnnfilterdb.ingest.formats.keras.config import ConvClass, LayerNode, conv_class, leaves, parse, place
from cnnfilterdb.ingest.formats.keras.file import (
    HDF5_MAGIC,
    KerasArchive,
    Stored,
    Variable,
    is_archive,
    is_keras_index,
    read_hdf5,
    read_shards,
)
from cnnfilterdb.ingest.network.arrays import layers_from_arrays
from cnnfilterdb.ingest.network.axes import turned
from cnnfilterdb.ingest.network.composition import parameters as count_parameters
from cnnfilterdb.ingest.network.contents import contents_of
from cnnfilterdb.ingest.network.extract import conv_depths, conv_facts
from cnnfilterdb.ingest.network.folding import EPSILON_KERAS, BatchNorm, paired
from cnnfilterdb.ingest.network.judge import is_adapter, natural, order_of_biases, shows_convolution
from cnnfilterdb.ingest.network.layers import ConvLayer, Skipped, Tensor, Weights, stated
from cnnfilterdb.ingest.network.variables import layers_from_variables

__all__ = ["KerasFormat", "layers_of"]


@register
class KerasFormat:
    """``.h5``, ``.hdf5``, ``.weights.h5``, ``.weights.json`` and ``.keras`` files."""

    name = "keras"
    suffixes = (".h5", ".hdf5", ".keras")

    def matches(self, path: Path, head: bytes) -> bool:
        """Any HDF5 file, and zip and JSON files that contain or list one as those of Keras do."""
        return head.startswith(HDF5_MAGIC) or is_archive(path, head) or is_keras_index(head)

    def read(self, path: Path) -> Weights:
        """Read the convolution layers of a model.

        With a configuration they come in order of execution, with the depth of their first use. A separable
        convolution gives two layers, ``name/depthwise_kernel`` and ``name/pointwise_kernel``. Without a configuration
        they come in the order of the file, without depth. A model that is split into shards is read from its
        ``.weights.json`` or from any shard beside it.

        Raises:
            WeightFileError: The file is damaged, incomplete, not of Keras, or would make HDF5 open other files.
        """
        with undamaged(str(path), "Keras file"):
            with path.open("rb") as file:
                head = file.read(4096)
            if head.startswith(HDF5_MAGIC):
                stored = read_hdf5(path)
            elif is_keras_index(head):
                stored = read_shards(path)
            else:
                stored = KerasArchive(path).stored()
            if stored.named:
                return _named(stored)
            format = "keras-v3" if stored.numbered else "keras-h5"
            layers, skipped, parameters, contents = layers_of(stored)
            if stored.partial:
                skipped = (*skipped, Skipped(path.name, stored.partial))
            producer = f"keras {stored.version}" if stored.version else None
            metadata = stated([("keras_version", stored.version), ("backend", stored.backend)])
            return Weights(format, "keras", layers, parameters, skipped, producer, metadata, contents)


def _named(stored: Stored) -> Weights:
    """The layers of an HDF5 file of named arrays, whose layout is judged."""
    tensors = [replace(one.tensor, name="/".join((*one.group, one.role))) for one in stored.variables]
    layers, skipped = layers_from_arrays(tensors, ordered=False)
    contents = contents_of(tensors, layers, skipped)
    return Weights("hdf5", None, tuple(layers), count_parameters(tensors), tuple(skipped), contents=contents)


# ---------------------------------------------------------------------------------------------------------------------
# Which weight belongs to which layer

# Groups of Keras 3 that contain the layers of a model and are not part of their names; the second in 2.13
_CONTAINERS = ("layers", "_layer_checkpoint_dependencies")
# Parts of a model besides its layers
_TRAINING = re.compile(r"_?optimizer|optimizer_weights|_?(?:compile_)?metrics|_?compile_loss|_?loss_tracker")
# Roles in the order in which Keras 3 numbers them
_NUMBERED = {
    "conv": ("kernel", "bias"),
    "transposed": ("kernel", "bias"),
    "depthwise": ("depthwise_kernel", "bias"),
    "separable": ("depthwise_kernel", "pointwise_kernel", "bias"),
}
_ROLES_1 = {"W": "kernel", "b": "bias", "running_mean": "moving_mean", "running_std": "moving_variance"}


@dataclass(frozen=True, slots=True)
class _Weight:
    """A weight and the layer that it belongs to.

    Attributes:
        owner: Name of the layer, preceded by those of the models that contain it.
        role: ``kernel``, ``depthwise_kernel``, ``pointwise_kernel``, ``bias``, ``gamma``, ...
        tensor: The array.
        node: The layer in the configuration, None where that does not have it.
        family: What the name says about a layer that is missing in the configuration.
        old: Whether it is the kernel of a layer of Keras 1.
    """

    owner: str
    role: str
    tensor: Tensor
    node: LayerNode | None
    family: ConvClass | None = None
    old: bool = False


class _Owners:
    """Finds the layer of a weight in the configuration."""

    def __init__(self, model: LayerNode | None, parts: Iterable[LayerNode] = ()) -> None:
        self.by_path: dict[tuple[str, ...], LayerNode] = {}
        self.tops: dict[str, LayerNode] = {}
        self.parts = {part.full_name: part for part in parts}
        if model is not None:
            self.by_path = {leaf.path: leaf for leaf in leaves(model)}
            self.tops = {child.name: child for child in model.children or ()}

    def numbered(self, group: tuple[str, ...]) -> LayerNode | None:
        path = tuple(part for part in group if part not in _CONTAINERS)
        if path in self.by_path:
            return self.by_path[path]
        # Parts of a layer, such as the cell of a recurrent one, have their own groups
        above = (self.by_path.get(path[:length]) for length in range(len(path) - 1, 0, -1))
        return next((node for node in above if node is not None and node.class_name in _OTHERS), None)

    def listed(self, group: tuple[str, ...]) -> LayerNode | None:
        exactly = self.parts.get("/".join(group))
        if exactly is not None:
            return exactly
        top = self.tops.get(group[0])
        if top is None or top.children is None:
            return top
        # The weights of a model used as a layer are named after its own layers
        inside: dict[str, list[LayerNode]] = {}
        for leaf in leaves(top):
            inside.setdefault(leaf.name, []).append(leaf)
        for part in reversed(group[1:]):
            for name in (part, re.sub(r"_\d+$", "", part)):
                if found := inside.get(name):
                    return max(found, key=lambda leaf: _agreement(leaf, group))
        return None


def _agreement(leaf: LayerNode, group: tuple[str, ...]) -> int:
    return sum(part in group for part in leaf.full_name.split("/"))


def _weights(stored: Stored, model: LayerNode | None) -> tuple[list[_Weight], list[Skipped]]:
    """The weights with their layers, and what was left out: copies, and the kernels of recurrent layers."""
    owners = _Owners(model, stored.parts)
    kept = [
        variable for variable in stored.variables if not (variable.group and _TRAINING.fullmatch(variable.group[0]))
    ]
    if not stored.numbered:
        shared = _one_layer_groups(kept)
        return _without_recurrent([_listed(variable, owners, shared) for variable in kept])
    groups: dict[tuple[str, ...], list[Variable]] = {}
    for variable in kept:
        groups.setdefault(variable.group, []).append(variable)
    # HDF5 lists groups by name, but Keras has written them in the order of the layers: the largest weight of each, as
    # HDF5 may put small ones into gaps
    places = {name: max(group, key=lambda one: math.prod(one.tensor.shape)).place for name, group in groups.items()}
    weights, skipped = [], []
    for name in sorted(groups, key=lambda name: (places[name] or 0, natural("/".join(name)))):
        wrapped = {variable.tensor.shape for variable in groups.get((*name, "layer"), ())}
        for variable in groups[name]:
            if len(variable.tensor.shape) == 4 and variable.tensor.shape in wrapped:
                reason = "a copy or a mask of the kernel of the layer that it wraps, which is read from that layer"
                skipped.append(Skipped("/".join((*name, variable.role)), reason))
            else:
                weights.append(_numbered(variable, owners, groups[name]))
    weights, recurrent = _without_recurrent(weights)
    return weights, [*skipped, *recurrent]


def _without_recurrent(weights: Sequence[_Weight]) -> tuple[list[_Weight], list[Skipped]]:
    """Leave out recurrent layers that the configuration does not name: their classes, or their weights, show them."""
    parts: dict[str, list[_Weight]] = {}
    for weight in weights:
        if weight.node is None or weight.node.class_name not in _OTHERS:
            parts.setdefault(weight.owner, []).append(weight)
    found = set()
    for owner, own in parts.items():
        kernels = [weight for weight in own if len(weight.tensor.shape) == 4]
        # The gates, concatenated: (h, w, in, n x filters), and for the state (h, w, filters, n x filters)
        gates = any(
            first.tensor.shape[3] == second.tensor.shape[3] == gates * second.tensor.shape[2]
            for first, second in pairwise(kernels)
            for gates in (3, 4)
        )
        unknown = all(weight.node is None and weight.family is None for weight in own)
        if kernels and (
            any(weight.role == "recurrent_kernel" for weight in own)
            or _RECURRENT.search(owner)
            or (gates and unknown and len(kernels) == 2)
        ):
            found.add(owner)
    kept = [weight for weight in weights if weight.owner not in found]
    return kept, [Skipped(owner, _OTHERS["ConvLSTM2D"]) for owner in parts if owner in found]


def _one_layer_groups(variables: Iterable[Variable]) -> set[str]:
    """Groups of Keras 2 whose weights all have the same scope: those of a layer, not of a model."""
    scopes: dict[str, set[tuple[str, ...]]] = {}
    for variable in variables:
        scopes.setdefault(variable.group[0], set()).add(variable.group[1:])
    return {group for group, found in scopes.items() if len(found) == 1}


def _listed(variable: Variable, owners: _Owners, single: set[str]) -> _Weight:
    node = owners.listed(variable.group)
    group = variable.group
    if node is not None:
        owner = node.full_name
    elif group[0] in single:
        owner = group[0]
    else:
        # Keras 3 repeats the name of the model in front
        owner = "/".join(group[:1] + (group[2:] if group[1:2] == group[:1] else group[1:]))
    inside = _inside(node, group, single)
    if inside:
        owner = "/".join((owner, *inside))
    role = variable.role
    old = False
    for suffix, meaning in _ROLES_1.items():
        if role == suffix or (role.endswith(f"_{suffix}") and not is_adapter(role)):
            role, old = meaning, True
    known = None if node is None or inside else node.class_name
    found = conv_class(owner.rpartition("/")[2], whole=False) if known is None else conv_class(known)
    if role == "kernel" and found is not None and found.kind == "depthwise":
        role = "depthwise_kernel"  # as Keras 2 calls it, and Keras 3 does not
    return _Weight(owner, role, variable.tensor, node, found if known is None else None, old and role == "kernel")


def _inside(node: LayerNode | None, group: tuple[str, ...], single: set[str]) -> tuple[str, ...]:
    """Names of the parts of a layer of a user's class that a weight belongs to, where it has several parts."""
    if node is None or conv_class(node.class_name) or node.class_name in _OTHERS or group[0] in single:
        return ()
    place = len(group) - 1 - group[::-1].index(node.name) if node.name in group else 0
    return group[place + 1 :]


def _numbered(variable: Variable, owners: _Owners, group: Sequence[Variable]) -> _Weight:
    node = owners.numbered(variable.group)
    parts = [part for part in variable.group if part not in _CONTAINERS]
    kind_name = parts[-1] if parts else ""
    if node is not None:
        owner, found = node.full_name, conv_class(node.class_name)
        normalisation = "BatchNorm" in node.class_name
    else:
        owner = "/".join([*parts[:-1], variable.label or kind_name])
        found = conv_class(kind_name, whole=False) or conv_class(variable.label or "", whole=False)
        normalisation = kind_name.startswith("batch_normalization")
        if re.fullmatch(r"normalization(_\d+)?", kind_name):  # statistics of the data, not trained
            return _Weight(owner, "mean", variable.tensor, None)
    index, role = int(variable.role), variable.role
    if found is not None:
        role = dict(enumerate(_NUMBERED[found.kind])).get(index, role)
    elif normalisation:
        # It has no gamma without scale, and no beta without center
        config = {} if node is None else node.config
        absent = {"gamma": config.get("scale") is False, "beta": config.get("center") is False}
        roles = [part for part in ("gamma", "beta", *_BUFFERS[:2]) if not absent.get(part)]
        count = len(group)
        role = roles[index - count] if count - len(roles) <= index < count else role
    elif index == 0 and len(variable.tensor.shape) == 4:
        role = "kernel"
    elif index == 1 and len(variable.tensor.shape) == 1:
        role = "bias"
    return _Weight(owner, role, variable.tensor, node, None if node else found)


# ---------------------------------------------------------------------------------------------------------------------
# Layers

_BUFFERS = ("moving_mean", "moving_variance", "mean", "variance", "count")
_OTHERS = {
    "ConvLSTM2D": "a recurrent layer, whose kernels are those of four gates",
    "LocallyConnected2D": "its kernels differ from place to place",
}
_ADAPTER = (
    "a factor of a LoRA adapter, which changes a layer and is not one; for the changed layer, save the model as "
    ".keras, in which Keras merges them"
)
# Recurrent layers by the names that Keras and others give to their groups
_RECURRENT = re.compile(r"conv_?(?:lstm|gru|rnn)", re.IGNORECASE)
_DIMENSIONS = {1: "a one-dimensional convolution", 3: "a three-dimensional convolution"}
_Axes: TypeAlias = tuple[int, int, int, int]
# Order of the stored axes that makes (out, in / groups, h, w), by form; a depthwise one is (in, multiplier, h, w) then
_AXES: Mapping[str, _Axes] = {
    "conv": (3, 2, 0, 1),
    "depthwise": (2, 3, 0, 1),
    "pointwise": (3, 2, 0, 1),
    "transposed": (2, 3, 0, 1),
}
# Keras 1 had two orders, named after Theano and TensorFlow
_AXES_1: Mapping[str, tuple[_Axes, _Axes]] = {
    "conv": ((0, 1, 2, 3), (3, 2, 0, 1)),
    "depthwise": ((1, 0, 2, 3), (2, 3, 0, 1)),
    "pointwise": ((0, 1, 2, 3), (3, 2, 0, 1)),
    "transposed": ((0, 1, 2, 3), (3, 2, 0, 1)),
}
# Role of the kernel and form of the layer, by kind of the class
_KERNELS: Mapping[str, tuple[tuple[str, str], ...]] = {
    "conv": (("kernel", "conv"),),
    "transposed": (("kernel", "transposed"),),
    "depthwise": (("depthwise_kernel", "depthwise"),),
    "separable": (("depthwise_kernel", "depthwise"), ("pointwise_kernel", "pointwise")),
}


def layers_of(
    stored: Stored,
) -> tuple[tuple[ConvLayer, ...], tuple[Skipped, ...], int, Mapping[str, tuple[int, int]]]:
    """The layers of a file, what was left out, the number of parameters, and the contents of the file."""
    model = parse(stored.config)
    order = _with_parts(list(leaves(model)) if model is not None else [], stored.parts)
    if model is not None:
        place(model)
    weights, left_out = _weights(stored, model)
    biases = {weight.owner: weight.tensor.shape for weight in weights if weight.role == "bias"}
    by_node: dict[LayerNode, list[_Weight]] = {}
    rest = []
    for weight in weights:
        if is_adapter(weight.role):
            left_out.append(Skipped(f"{weight.owner}/{weight.role}", _ADAPTER))
            continue
        class_name = None if weight.node is None else weight.node.class_name
        if class_name is not None and (conv_class(class_name) is not None or class_name in _OTHERS):
            assert weight.node is not None
            by_node.setdefault(weight.node, []).append(weight)
        elif _is_unproved(weight, biases.get(weight.owner), stored):
            whose = f"of a layer of class {class_name}" if class_name else "of a layer whose class is not known"
            reason = f"{whose}; neither that nor a bias shows that shape {weight.tensor.shape} is a convolution"
            left_out.append(Skipped(weight.owner, reason))
        elif class_name is None or len(weight.tensor.shape) in (1, 3, 4, 5):
            rest.append(weight)  # a class that Keras does not have; it may contain kernels
    places = {node: number for number, node in enumerate(order)}
    nodes = {weight.owner: weight.node for weight in weights if weight.node is not None}

    norms = _norms(weights)
    found = [part for node in order for part in _from_config(node, by_node.get(node, ()), norms.get(node.norm))]
    found += _from_names(rest, stored)
    layers = [part for part in found if isinstance(part, ConvLayer)]
    skipped = (*left_out, *(part for part in found if isinstance(part, Skipped)))
    holders = [_holder(layer, nodes) for layer in layers]
    placed = []
    depths = []
    for layer, node in zip(layers, holders, strict=True):
        # The two halves of a separable convolution follow each other
        depth = None if node is None or node.depth is None else node.depth + layer.name.endswith("/pointwise_kernel")
        unused = None if node is None or node.used is None else not node.used
        depths.append(depth)
        placed.append(replace(layer, dead=unused))
    ranked = [
        (
            len(places) if node is None else places[node],
            replace(layer, conv_depth=rank, conv_depth_norm=norm, depth_source=None if rank is None else "graph"),
        )
        for layer, node, (rank, norm) in zip(placed, holders, conv_depths(depths), strict=True)
    ]
    if stored.backend == "theano":
        # Keras itself flipped the kernels of depthwise layers before calling Theano, so those correlate
        turned_before = {
            name
            for weight in weights
            if weight.role in ("depthwise_kernel", "pointwise_kernel")
            for name in (weight.owner, f"{weight.owner}/{weight.role}")
        }
        ranked = [(number, layer if layer.name in turned_before else _flipped(layer)) for number, layer in ranked]
    ranked.sort(key=lambda item: item[0])
    layers = [layer for _, layer in ranked]
    named = [replace(weight.tensor, name=f"{weight.owner}/{weight.role}") for weight in weights]
    whole = stored.whole or (len(stored.variables), sum(math.prod(one.tensor.shape) for one in stored.variables))
    buffers = {f"{weight.owner}/{weight.role}" for weight in weights if not _is_parameter(weight)}
    contents = contents_of(named, layers, skipped, whole=whole, buffers=buffers)
    return tuple(layers), skipped, _parameters(weights), contents


def _with_parts(order: list[LayerNode], parts: Sequence[LayerNode]) -> list[LayerNode]:
    """Layers in order, and after each of them those inside it."""
    inside: dict[str, list[LayerNode]] = {leaf.full_name: [] for leaf in order}
    rest: list[LayerNode] = []
    for part in parts:
        above = part.full_name
        while above and above not in inside:
            above = above.rpartition("/")[0]
        (inside[above] if above else rest).append(part)
    return [*(one for leaf in order for one in (leaf, *inside.pop(leaf.full_name, ()))), *rest]


def _is_unproved(weight: _Weight, bias: tuple[int, ...] | None, stored: Stored) -> bool:
    """Whether a tensor of four dimensions has nothing but its shape to show that it is the kernel of a convolution.

    A class that is not known may have any parameter of four dimensions, such as a map of positions. Where the file
    names its weights, those names are judged instead.
    """
    shape = weight.tensor.shape
    if len(shape) != 4 or weight.family is not None or (weight.node is None and not stored.numbered):
        return False
    names = (weight.owner.rpartition("/")[2], weight.node.class_name if weight.node else "")
    return not shows_convolution(names, shape, bias)


def _holder(layer: ConvLayer, nodes: Mapping[str, LayerNode]) -> LayerNode | None:
    """The layer of the configuration that holds a kernel, whose name begins with that of the layer."""
    name = layer.name
    while name:
        if name in nodes:
            return nodes[name]
        name = name.rpartition("/")[0]
    return None


def _parameters(weights: Iterable[_Weight]) -> int:
    return sum(math.prod(weight.tensor.shape) for weight in weights if _is_parameter(weight))


def _is_parameter(weight: _Weight) -> bool:
    return (
        weight.role not in _BUFFERS
        and weight.tensor.dtype.startswith(("float", "bfloat"))
        and (weight.node is None or weight.node.class_name != "Normalization")
    )


def _norms(weights: Iterable[_Weight]) -> dict[LayerNode | None, BatchNorm]:
    """The batch normalisations of the configuration."""
    parts: dict[LayerNode, dict[str, Tensor]] = {}
    for weight in weights:
        if weight.node is not None and "BatchNorm" in weight.node.class_name:
            parts.setdefault(weight.node, {})[weight.role] = weight.tensor
    found: dict[LayerNode | None, BatchNorm] = {}
    for node, roles in parts.items():
        variance, gamma, mean = (roles.get(role) for role in ("moving_variance", "gamma", "moving_mean"))
        if variance is not None and len(variance.shape) == 1 and (gamma is None or gamma.shape == variance.shape):
            epsilon = node.config.get("epsilon", EPSILON_KERAS)
            if isinstance(epsilon, float) and epsilon > 0:
                found[node] = BatchNorm(node.full_name, variance, gamma, mean, epsilon)
    return found


def _from_config(node: LayerNode, weights: Sequence[_Weight], norm: BatchNorm | None) -> Iterator[ConvLayer | Skipped]:
    """The layers of an entry of the configuration."""
    found = conv_class(node.class_name)
    if node.class_name in _OTHERS:
        yield Skipped(node.full_name, _OTHERS[node.class_name])
    elif found is not None and found.dimensions in _DIMENSIONS:
        yield Skipped(node.full_name, _DIMENSIONS[found.dimensions])
    elif found is not None and node.wrapper == "WeightNormalization":
        yield Skipped(node.full_name, "weight normalisation by a wrapper; save the plain kernel")
    elif found is not None:
        by_role = {weight.role: weight for weight in weights}
        for role, form in _KERNELS[found.kind]:
            if role not in by_role:
                yield Skipped(node.full_name, "a convolution whose kernel is not in the file")
                continue
            name = f"{node.full_name}/{role}" if found.kind == "separable" else node.full_name
            layer = _layer(name, by_role[role].tensor, form, node)
            # The norm reads the second half of a separable convolution, and no norm reads past an activation
            linear = node.config.get("activation") in (None, "linear") and not name.endswith("/depthwise_kernel")
            yield paired(layer, norm if linear else None, known=True) if isinstance(layer, ConvLayer) else layer


def _layer(name: str, tensor: Tensor, form: str, node: LayerNode) -> ConvLayer | Skipped:
    config = node.config
    old = "nb_filter" in config
    if len(tensor.shape) != 4:
        return Skipped(name, f"a kernel of shape {tensor.shape}; expected four dimensions")
    candidates = [_AXES[form]]
    if old:
        candidates = list(_AXES_1[form] if config.get("dim_ordering") == "th" else reversed(_AXES_1[form]))
    axes = next((axes for axes in candidates if _fits(tensor.shape, axes, form, config)), None)
    if axes is None:
        return Skipped(name, f"a kernel of shape {tensor.shape}, which is not that of its configuration")
    values = {
        "groups": config.get("groups", 1),
        "stride": _pair(config.get("subsample" if old else "strides")),
        "dilation": _pair(config.get("atrous_rate" if old else "dilation_rate")),
    }
    facts = conv_facts(node.class_name, values.get)
    second = tensor.shape[axes[1]]
    # Of a separable convolution only the first half moves by strides
    pointwise = form == "pointwise"
    layer = turned(
        name,
        tensor,
        form="conv" if pointwise else form,
        axes=axes,
        channels=second * (facts.groups or 1) if form == "conv" else second if pointwise else None,
        stride=(1, 1) if pointwise else facts.stride,
        dilation=(1, 1) if pointwise else facts.dilation,
    )
    if isinstance(layer, Skipped):
        return layer
    followed = node.normalised and not name.endswith("/depthwise_kernel")
    return replace(layer, bn_folded=False if followed else None, weight_norm=facts.weight_norm)


def _pair(value: Any) -> Any:
    return (1, 1) if value is None else value


def _fits(shape: tuple[int, ...], axes: _Axes, form: str, config: Mapping[str, Any]) -> bool:
    """Whether a kernel has the size and the number of filters that the configuration states, if it states them."""
    first, second, height, width = (shape[axis] for axis in axes)
    if form == "pointwise":
        size: Any = (1, 1)
    elif "nb_row" in config:
        size = (config["nb_row"], config.get("nb_col"))
    else:
        size = config.get("kernel_size", (height, width))
    size = (size, size) if isinstance(size, int) else size
    if not isinstance(size, Sequence) or tuple(size) != (height, width):
        return False
    if form == "depthwise":
        return bool(second == config.get("depth_multiplier", second))
    return bool(first == config.get("filters", config.get("nb_filter", first)))


def _flipped(layer: ConvLayer) -> ConvLayer:
    """Theano convolves where all others correlate, so its kernels are stored flipped."""
    return replace(layer, read=lambda: np.ascontiguousarray(layer.read()[:, :, ::-1, ::-1]))


# ---------------------------------------------------------------------------------------------------------------------
# Weights without configuration


def _from_names(weights: Sequence[_Weight], stored: Stored) -> list[ConvLayer | Skipped]:
    """The layers of weights alone: what names and shapes prove.

    A layer that Keras named after its class (``conv2d_transpose_3``) is assumed to be of that class and without
    groups, which weights do not show and hardly any model has.
    """
    tensors = [replace(weight.tensor, name=f"{weight.owner}/{weight.role}") for weight in weights]
    layout = "OIHW" if _is_theano_order(weights, stored) else "HWIO"
    layers, skipped, _ = layers_from_variables(tensors, ordered=not stored.numbered, layout=layout)
    named: dict[str, ConvLayer | Skipped] = {}
    for weight in weights:
        if weight.family is None or weight.family.dimensions != 2 or len(weight.tensor.shape) != 4:
            continue
        for role, form in _KERNELS[weight.family.kind]:
            if role == weight.role:
                name = f"{weight.owner}/{role}" if weight.family.kind == "separable" else weight.owner
                axes = _AXES_1[form][0] if layout == "OIHW" else _AXES[form]
                channels = weight.tensor.shape[axes[1]] if form in ("conv", "pointwise") else None
                form = "conv" if form == "pointwise" else form
                named[name] = turned(name, weight.tensor, form=form, axes=axes, channels=channels)
    found: list[ConvLayer | Skipped] = [named.pop(layer.name, layer) for layer in layers]
    return [*found, *named.values(), *skipped]


def _is_theano_order(weights: Iterable[_Weight], stored: Stored) -> bool:
    """Whether kernels of Keras 1 are (out, in, h, w), as opposed to (h, w, in, out), by their biases."""
    if stored.version is not None and not stored.version.startswith("1"):
        return False
    kernels = {weight.owner: weight.tensor.shape for weight in weights if weight.old and len(weight.tensor.shape) == 4}
    layout = order_of_biases(
        (kernels[weight.owner], weight.tensor.shape)
        for weight in weights
        if weight.role == "bias" and weight.owner in kernels
    )
    return layout == "OIHW" or (layout is None and bool(kernels) and stored.backend == "theano")
