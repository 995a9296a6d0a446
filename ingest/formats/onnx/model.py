"""ONNX: convolution layers out of the nodes of a graph.

A graph shows what a list of tensors cannot: which tensor is the weight of a convolution, its groups, stride and
dilation, its depth and whether its result is used. The file is parsed, never run or checked, and tensors are
decoded when a layer is read.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
from google.protobuf.message import DecodeError  # type: ignore[import-untyped]

from cnnfilterdb.core.errors import WeightFileError
from cnnfilterdb.ingest.formats import limits, register
from cnnfilterdb.ingest.formats.damage import undamaged
from cnnfilterdb.ingest.formats.onnx.constants import Constants, UnknownConstantError, onnx_dtype_name
from cnnfilterdb.ingest.formats.onnx.graph import Graph, Step, Value, flatten
from cnnfilterdb.ingest.formats.onnx.runtime import IDENTIFIER, onnx_model
from cnnfilterdb.ingest.formats.protobuf import MalformedError, varint
from cnnfilterdb.ingest.network.contents import contents_of
from cnnfilterdb.ingest.network.extract import conv_depths, conv_facts
from cnnfilterdb.ingest.network.layers import ConvLayer, Kind, Skipped, Tensor, Weights, stated

__all__ = ["OnnxFormat"]


@register
class OnnxFormat:
    """``.onnx`` files, with or without data outside of them, and ``.ort`` files of ONNX Runtime."""

    name = "onnx"
    suffixes = (".onnx", ".ort")

    def matches(self, path: Path, head: bytes) -> bool:
        """Whether the file begins as a ModelProto does, which has no magic number, or is one of ONNX Runtime."""
        return head[4:8] == IDENTIFIER or _is_model(head, path.stat().st_size)

    def read(self, path: Path) -> Weights:
        """Read the convolution layers of a model.

        The depth of a layer is that of its first use; a weight that several nodes use is listed once. ``bn_folded``
        is False for a layer whose result goes into a batch normalisation, and True where the names that an exporter
        gives prove that one was folded into the weight (see :func:`_bn_folded`); else it is None.

        Raises:
            WeightFileError: The file is damaged, or a part of it is missing or outside of its folder.
        """
        with undamaged(str(path), "ONNX file"):
            model = _parsed(path)
            graph = flatten(model, str(path))
            exporter = _Exporter.of(model)
            constants = Constants(path)
            layers, skipped = _layers(graph, constants, exporter)
            producer = f"{model.producer_name} {model.producer_version}".strip() or None
            entries = [("domain", model.domain), ("doc_string", model.doc_string)]
            entries += [(entry.key, entry.value) for entry in model.metadata_props]
            metadata = stated([("producer", producer), *entries])
            contents = _contents(graph, layers, skipped)
            return Weights(
                self.name, exporter.framework, layers, _parameters(graph), skipped, producer, metadata, contents
            )


def _parsed(path: Path) -> onnx.ModelProto:
    content = path.read_bytes()
    if content[4:8] == IDENTIFIER:
        return onnx_model(memoryview(content))
    model = onnx.ModelProto()
    try:
        model.ParseFromString(content)
    except DecodeError as error:
        raise WeightFileError(
            f"{path}: begins as an ONNX file, but is truncated or damaged ({path.stat().st_size:,} bytes); "
            "download it again"
        ) from error
    return model


# ---------------------------------------------------------------------------------------------------------------------
# Recognition

_VARINT, _BYTES = 0, 2
# Fields of ModelProto: number -> wire type
_FIELDS = {1: _VARINT, 5: _VARINT, **dict.fromkeys((2, 3, 4, 6, 7, 8, 14, 20, 25, 26), _BYTES)}
_TEXTS = (2, 3, 4, 6)
_GRAPH = 7
# First fields of GraphProto: node, name, initializer, doc_string, input, output, value_info, ... (all bytes)
_GRAPH_TAGS = {number << 3 | _BYTES for number in (1, 2, 5, 10, 11, 12, 13, 14, 15, 16)}


def _is_model(head: bytes, size: int) -> bool:
    """Walk the fields of a ModelProto in the first bytes: all must be known up to the graph or the end of the bytes.

    >>> from onnx import helper
    >>> model = helper.make_model(helper.make_graph([], "empty", [], [])).SerializeToString()
    >>> _is_model(model, len(model)), _is_model(b"GIF89a", 6)
    (True, False)
    """
    data = memoryview(head)
    position = version = 0
    try:
        while position < len(head):
            tag, position = varint(data, position)
            number, wire = tag >> 3, tag & 7
            if _FIELDS.get(number) != wire:
                return False
            value, position = varint(data, position)
            if number == 1:
                version = value
            if wire == _VARINT:
                continue
            if number == _GRAPH:
                # A truncated file counts as one: the reader reports what is wrong with it
                return 0 < version < 1000 and (not head[position:] or head[position] in _GRAPH_TAGS)
            if number in _TEXTS and not _is_text(head[position : position + value]):
                return False
            position += value
    except MalformedError:
        # The number at the end of the first bytes may be cut off
        if len(head) - position > 10 or len(head) == size:
            return False
    return 0 < version < 1000 and position < size


def _is_text(data: bytes) -> bool:
    text = data.decode("utf-8", "replace").rstrip("\ufffd")  # a character may be cut off
    return "\ufffd" not in text and all(character.isprintable() or character.isspace() for character in text)


# ---------------------------------------------------------------------------------------------------------------------
# Convolutions


@dataclass(frozen=True, slots=True)
class _Op:
    """Where an operator keeps its weight.

    Attributes:
        weight: Position of the weight among the inputs.
        bias: Position of the bias.
        scale: Position of the scale of a weight of integers.
        zero: Position of its zero point.
        transposed: Whether it is a transposed convolution, whose weight is (in, out / groups, h, w).
        last: Whether the weight is (out, h, w, in / groups).
    """

    weight: int = 1
    bias: int = 2
    scale: int | None = None
    zero: int | None = None
    transposed: bool = False
    last: bool = False


_QLINEAR = _Op(weight=3, bias=8, scale=4, zero=5)
_OPS = {
    ("", "Conv"): _Op(),
    ("", "ConvTranspose"): _Op(transposed=True),
    ("", "DeformConv"): _Op(bias=3),
    ("", "QLinearConv"): _QLINEAR,
    ("", "ConvInteger"): _Op(bias=-1, zero=3),
    ("com.microsoft", "QLinearConv"): _QLINEAR,
    ("com.microsoft", "FusedConv"): _Op(),
    ("com.microsoft", "NhwcFusedConv"): _Op(),
    ("com.microsoft", "NhwcConv"): _Op(last=True),
    ("com.microsoft", "ConvTransposeWithDynamicPads"): _Op(bias=3, transposed=True),
}
_DIMENSIONS = {3: "a one-dimensional convolution", 5: "a three-dimensional convolution"}


def _layers(
    graph: Graph, constants: Constants, exporter: _Exporter
) -> tuple[tuple[ConvLayer, ...], tuple[Skipped, ...]]:
    layers: list[ConvLayer] = []
    depths: list[int | None] = []
    skipped: list[Skipped] = []
    seen: dict[int, int] = {}  # key of a weight -> index of its layer
    names: set[str] = set()
    for step in graph.steps:
        op = _OPS.get((step.domain, step.op))
        if op is None:
            if re.search(r"Conv(?:Transpose)?$", step.op):
                skipped.append(
                    Skipped(step.name, f"operator {step.domain}.{step.op}, whose weight has an unknown layout")
                )
            continue
        try:
            layer, key = _layer(step, op, constants, exporter)
        except UnknownConstantError as error:
            weight = step.input(op.weight)
            sources = constants.sources(weight) if weight and weight.constant else ()
            skipped.append(Skipped(step.name, str(error), tuple(one.name for one in sources)))
            continue
        if key in seen:
            first = seen[key]
            skipped.append(Skipped(step.name, f"shares the weight of {layers[first].name}"))
            if layers[first].dead and not layer.dead:
                layers[first] = replace(layers[first], dead=False)
            known = [depth for depth in (depths[first], step.depth) if depth is not None]
            depths[first] = min(known, default=None)
            continue
        seen[key] = len(layers)
        if layer.name in names:
            layer = replace(layer, name=_unused(layer.name, names))
        names.add(layer.name)
        layers.append(layer)
        depths.append(step.depth)
    ranked = (
        replace(layer, conv_depth=rank, conv_depth_norm=norm, depth_source=None if rank is None else "graph")
        for layer, (rank, norm) in zip(layers, conv_depths(depths), strict=True)
    )
    return tuple(ranked), tuple(skipped)


def _unused(name: str, names: set[str]) -> str:
    return next(f"{name}#{number}" for number in range(2, len(names) + 3) if f"{name}#{number}" not in names)


def _layer(step: Step, op: _Op, constants: Constants, exporter: _Exporter) -> tuple[ConvLayer, int]:
    weight = step.input(op.weight)
    if weight is None:
        raise UnknownConstantError("a convolution without a weight")
    if not weight.constant:
        reason = "is computed from the input" if weight.maker else "is an input of the graph and not in the file"
        raise UnknownConstantError(f"its weight {reason}")
    shape = constants.shape(weight)
    if len(shape) != 4:
        raise UnknownConstantError(_DIMENSIONS.get(len(shape), f"a weight of {len(shape)} dimensions"))
    if 0 in shape:
        raise UnknownConstantError(f"an empty weight of shape {shape}")
    groups = step.integer("group", 1)
    if groups < 1 or shape[0] % groups:
        raise UnknownConstantError(f"{groups} groups, which a weight of shape {shape} cannot have")
    scale, zero = _quantisation(step, op)
    for part in (scale, zero):
        if part is not None and math.prod(constants.shape(part)) not in (1, shape[0]):
            raise UnknownConstantError(f"a scale of shape {constants.shape(part)} for a weight of shape {shape}")

    first, second, height, width = (shape[axis] for axis in (0, 3, 1, 2)) if op.last else shape
    turned = (second * groups, first // groups, height, width) if op.transposed else (first, second, height, width)
    per_group = turned[1]
    sources = constants.sources(weight)
    source = sources[0]
    numbers = {"stride": step.integers("strides") or (1, 1), "dilation": step.integers("dilations") or (1, 1)}
    facts = conv_facts(step.op, numbers.get)
    layer = ConvLayer(
        name=_layer_name(step, source.name),
        shape=turned,
        read=_reader(constants, step, op, (weight, scale, zero), groups, turned),
        dtype=onnx_dtype_name(source.tensor),
        kind=_kind(op.transposed, groups, per_group),
        in_channels=per_group * groups,
        groups=groups,
        stride=facts.stride,
        dilation=facts.dilation,
        dead=not step.used,
        bn_folded=_bn_folded(step, op, source, exporter),
        weight_norm=_weight_norm([source.name for source in sources], constants.operators(weight)),
        tensors=tuple(
            part.name for value in (weight, scale, zero) if value is not None for part in constants.sources(value)
        ),
    )
    return layer, constants.key(weight)


def _kind(transposed: bool, groups: int, per_group: int) -> Kind:
    if transposed:
        return "transposed"
    if groups == 1:
        return "conv"
    return "depthwise" if per_group == 1 else "grouped"


def _reader(
    constants: Constants,
    step: Step,
    op: _Op,
    values: tuple[Value, Value | None, Value | None],
    groups: int,
    shape: tuple[int, int, int, int],
) -> Callable[[], npt.NDArray[np.float32]]:
    def read() -> npt.NDArray[np.float32]:
        try:
            stored, scale, zero = (None if value is None else constants.read(value) for value in values)
        except UnknownConstantError as error:
            raise WeightFileError(f"{constants.path}: {step.name}: {error}") from error
        assert stored is not None
        with np.errstate(all="ignore"):
            weight = stored.astype(np.float32)
            # One value for all, or one for each output channel, which QLinearConv has on the first axis
            if zero is not None:
                weight -= zero.astype(np.float32).reshape(-1, 1, 1, 1)
            if scale is not None:
                weight *= scale.astype(np.float32).reshape(-1, 1, 1, 1)
        if op.last:
            weight = weight.transpose(0, 3, 1, 2)
        elif op.transposed:
            # (in, out / groups, h, w) to (out, in / groups, h, w), group by group
            grouped = weight.reshape(groups, weight.shape[0] // groups, *weight.shape[1:])
            weight = grouped.swapaxes(1, 2)
        return np.ascontiguousarray(weight.reshape(shape))

    return read


def _quantisation(step: Step, op: _Op) -> tuple[Value | None, Value | None]:
    """Scale and zero point of a weight of integers.

    Raises:
        UnknownConstantError: There is none, or it is computed from the input.
    """
    zero = None if op.zero is None else step.input(op.zero)
    if op.scale is not None:
        scale = step.input(op.scale)
    elif step.op == "ConvInteger":
        scale = _scale_after(step)
    else:
        return None, None
    if scale is None or not scale.constant or (zero is not None and not zero.constant):
        raise UnknownConstantError("a weight of integers whose scale is not in the graph")
    return scale, zero


def _scale_after(step: Step) -> Value | None:
    """The scale of the weight of a ConvInteger: the factor of its result besides the scale of the input.

    Dynamic quantisation multiplies the result by (scale of the input x scale of the weight), the first one computed.
    """
    values = list(step.outputs)
    for _ in range(4):
        readers = {reader: value for value in values for reader in value.readers}
        limits.current().step(1 + len(readers))
        for reader, value in readers.items():
            if reader.op == "Mul" and len(reader.inputs) == 2:
                other = reader.inputs[1] if reader.inputs[0] is value else reader.inputs[0]
                product = other.maker if other is not None else None
                if product is not None and product.op == "Mul":
                    return next((part for part in product.inputs if part is not None and part.constant), None)
                return None
        values = [out for reader in readers if reader.op in ("Cast", "Add", "Identity") for out in reader.outputs]
    return None


# ---------------------------------------------------------------------------------------------------------------------
# Names, and what they reveal

# Names that the exporter of PyTorch makes up: onnx::Conv_14, and 14 in its older versions
_MADE_UP = re.compile(r"(?:onnx::\w+_)?\d+(?:_quantized)?")


def _layer_name(step: Step, weight: str) -> str:
    """The name of a layer: that of its weight, or of its node where the exporter made up the name of the weight.

    >>> from onnx import helper
    >>> step = Step(helper.make_node("Conv", [], [], name="/stem/Conv"), "", 1, {}, "")
    >>> _layer_name(step, "stem.weight"), _layer_name(step, "onnx::Conv_14")
    ('stem', '/stem/Conv')
    """
    if not weight or (_MADE_UP.fullmatch(weight) and step.node.name):
        return step.name
    weight = weight.removesuffix("_quantized")
    part = _PART.fullmatch(weight)
    return (part[1] if part else weight.removesuffix(".weight")) or step.name


# What PyTorch stores instead of a composed weight: direction and gain, or a matrix and its singular vectors
_PART = re.compile(r"(.*)\.(?:parametrizations\.weight\.original1?|weight_v|weight_orig)")


def _weight_norm(sources: Sequence[str], operators: Collection[str]) -> str | None:
    """How a weight was composed: from the tensors behind it, the largest first, and the operators between."""
    part = _PART.fullmatch(sources[0])
    if part is None:
        return None
    if any(name in sources for name in (f"{part[1]}.parametrizations.weight.original0", f"{part[1]}.weight_g")):
        return "weight_norm"
    # w / (u' W v)
    return "spectral_norm" if "MatMul" in operators and "Div" in operators else None


@dataclass(frozen=True, slots=True)
class _Exporter:
    """What wrote the file.

    Attributes:
        framework: ``pytorch``, ``tensorflow``, ``keras``, or ``onnx`` for anything else.
        folds: True for versions of PyTorch that fold batch normalisation and lose the names of what they fold.
    """

    framework: str
    folds: bool

    @classmethod
    def of(cls, model: Any) -> _Exporter:
        producer = model.producer_name.lower()
        frameworks = {"pytorch": "pytorch", "tf2onnx": "tensorflow", "keras2onnx": "keras"}
        version = re.match(r"(\d+)\.(\d+)", model.producer_version)
        folds = producer == "pytorch" and version is not None and (int(version[1]), int(version[2])) >= (1, 2)
        return cls(frameworks.get(producer, "onnx"), folds)


# Where the exporter of PyTorch records what it has done to a node
_RULE = "pkg.onnxscript.rewriter.rule_name"
# Names that ONNX Runtime and tf2onnx give to a weight with a folded batch normalisation
_FOLDED = re.compile(r"ConvBnFusion_W_|_weights_fused_bn")


def _bn_folded(step: Step, op: _Op, weight: Value, exporter: _Exporter) -> bool | None:
    """Whether a batch normalisation was folded into the weight.

    No, when one follows. Yes, when

    - the exporter of PyTorch says that its rule FuseBatchNorm made the node, or has named the bias, which the layer
      did not have before, after the weight;
    - its older one, based on TorchScript (from PyTorch 1.2 on), has made up names for weight and bias both, as it does
      when it folds: a weight that was only composed leaves the bias its name;
    - ONNX Runtime or tf2onnx have said so in the name of the weight.

    Otherwise it is unknown: a file without batch normalisation may never have had one.
    """
    if any(reader.op == "BatchNormalization" for output in step.outputs for reader in output.readers):
        return False
    if _FOLDED.search(weight.name):
        return True
    if any(entry.key == _RULE and "FuseBatchNorm" in entry.value for entry in step.node.metadata_props):
        return True
    bias = step.input(op.bias) if op.bias >= 0 else None
    if bias is None or not exporter.folds:
        return None
    made_up = _MADE_UP.fullmatch(weight.name) and _MADE_UP.fullmatch(bias.name)
    return True if made_up or bias.name == f"{weight.name}_bias" else None


# ---------------------------------------------------------------------------------------------------------------------
# Parameters

# Inputs that are numbers but not parameters: running statistics, scales of activations, sizes, bounds
_NO_PARAMETERS: Mapping[str, tuple[int, ...]] = {
    "BatchNormalization": (3, 4),
    "QuantizeLinear": (1, 2),
    "DequantizeLinear": (1, 2),
    "QLinearConv": (1, 2, 4, 5, 6, 7),
    "QLinearMatMul": (1, 2, 4, 5, 6, 7),
    "Resize": (1, 2, 3),
    "Upsample": (1,),
    "Clip": (1, 2),
    "Pad": (2,),
}
# Inputs that are parameters though they are stored as integers
_INTEGERS: Mapping[str, tuple[int, ...]] = {
    "DequantizeLinear": (0,),
    "QLinearConv": (3, 8),
    "QLinearMatMul": (3,),
    "ConvInteger": (1,),
    "MatMulInteger": (1,),
}


def _contents(graph: Graph, layers: Sequence[ConvLayer], skipped: Sequence[Skipped]) -> dict[str, tuple[int, int]]:
    """What became of the constants that are stored as tensors, each once."""
    integers = set(_inputs(graph, _INTEGERS))
    stored = {
        id(value.tensor): Tensor(
            value.name,
            tuple(value.tensor.dims),
            "qint8" if value in integers else onnx_dtype_name(value.tensor),
            read=lambda: np.empty(0),
        )
        for value in graph.tensors
    }
    buffers = {value.name for value in _inputs(graph, _NO_PARAMETERS)}
    return contents_of(stored.values(), layers, skipped, buffers=buffers)


def _parameters(graph: Graph) -> int:
    """Number of parameters: constants with at least one dimension, those of integers when they stand for numbers."""
    excluded = set(_inputs(graph, _NO_PARAMETERS))
    integers = set(_inputs(graph, _INTEGERS))
    total = 0
    for value in graph.tensors:
        dims = value.tensor.dims
        floating = onnx_dtype_name(value.tensor).startswith(("float", "bfloat"))
        if len(dims) and value not in excluded and (floating or value in integers):
            total += math.prod(dims)
    return total


def _inputs(graph: Graph, positions: Mapping[str, tuple[int, ...]]) -> Iterator[Value]:
    for step in graph.steps:
        for position in positions.get(step.op, ()):
            value = step.input(position)
            if value is not None:
                yield value
