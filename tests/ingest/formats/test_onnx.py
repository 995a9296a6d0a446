"""The ONNX reader against ONNX's reference implementation and PyTorch: a layer convolves as its node does."""

from __future__ import annotations

import contextlib
import struct
import warnings
from pathlib import Path

import ml_dtypes
import numpy as np
import onnx
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper, numpy_helper
from onnx.reference import ReferenceEvaluator
from torch import nn
from torch.nn import functional as F

from cnnfilterdb.core.errors import CnnFilterDbError, WeightFileError
from cnnfilterdb.ingest.formats.onnx import constants as onnx_constants
from cnnfilterdb.ingest.formats.onnx import graph
from cnnfilterdb.ingest.formats.onnx.model import OnnxFormat


def weight(*shape, seed=0, dtype=np.float32):
    return np.random.default_rng(seed).normal(size=shape).astype(dtype)


def tensors(**arrays):
    """Initialisers by name; two underscores in a keyword stand for a dot."""
    return [numpy_helper.from_array(np.asarray(array), name.replace("__", ".")) for name, array in arrays.items()]


def model(nodes, initializers=(), *, inputs=None, outputs=None, opset=21, domains=(), functions=(), **attributes):
    """A model of nodes; what no node reads is its output."""
    read = {name for node in nodes for name in node.input}
    inputs = {"x": [1, 4, 9, 9]} if inputs is None else inputs
    outputs = outputs or [name for node in nodes for name in node.output if name not in read]
    graph = helper.make_graph(
        nodes,
        "graph",
        [helper.make_tensor_value_info(name, TensorProto.FLOAT, shape) for name, shape in inputs.items()],
        [helper.make_empty_tensor_value_info(name) for name in outputs],
        list(initializers),
    )
    imports = [helper.make_opsetid("", opset), *(helper.make_opsetid(domain, 1) for domain in domains)]
    return helper.make_model(graph, opset_imports=imports, functions=functions, ir_version=10, **attributes)


def conv(x="x", w="w", y="y", op="Conv", **attributes):
    return helper.make_node(op, [x, w], [y], **attributes)


def read(made, folder, name="model.onnx"):
    path = folder / name
    path.write_bytes(made if isinstance(made, bytes) else made.SerializeToString())
    assert OnnxFormat().matches(path, path.read_bytes()[:4096])
    return OnnxFormat().read(path)


def only(made, folder):
    weights = read(made, folder)
    assert len(weights.layers) == 1, weights.skipped
    layer = weights.layers[0]
    array = layer.read()
    assert array.shape == layer.shape
    assert array.dtype == np.float32
    assert array.flags.c_contiguous
    return layer


def convolve(layer, x):
    """What the layer makes of an image, by PyTorch."""
    x, kernel = torch.from_numpy(x), torch.from_numpy(layer.read())
    options = {"stride": layer.stride, "dilation": layer.dilation, "groups": layer.groups}
    if layer.kind != "transposed":
        return F.conv2d(x, kernel, **options).numpy()
    out, per_group, *size = kernel.shape
    grouped = kernel.reshape(layer.groups, out // layer.groups, per_group, *size).swapaxes(1, 2)
    return F.conv_transpose2d(x, grouped.reshape(layer.groups * per_group, -1, *size), **options).numpy()


def run(made, x):
    return ReferenceEvaluator(made).run(None, {"x": x})[0]


# ---------------------------------------------------------------------------------------------------------------------
# Convolutions


@pytest.mark.parametrize(
    ("op", "shape", "attributes", "kind", "expected"),
    [
        ("Conv", (8, 4, 3, 3), {}, "conv", (8, 4, 3, 3)),
        ("Conv", (8, 4, 3, 5), {"strides": [2, 1], "dilations": [1, 2]}, "conv", (8, 4, 3, 5)),
        ("Conv", (6, 2, 3, 3), {"group": 2}, "grouped", (6, 2, 3, 3)),
        ("Conv", (8, 1, 3, 3), {"group": 4}, "depthwise", (8, 1, 3, 3)),
        ("ConvTranspose", (4, 6, 3, 2), {"strides": [2, 2]}, "transposed", (6, 4, 3, 2)),
        ("ConvTranspose", (4, 3, 2, 2), {"group": 2, "strides": [2, 1]}, "transposed", (6, 2, 2, 2)),
    ],
)
def test_a_layer_convolves_as_its_node(tmp_path, op, shape, attributes, kind, expected):
    made = model([conv(op=op, **attributes)], tensors(w=weight(*shape)))
    layer = only(made, tmp_path)
    assert (layer.kind, layer.shape, layer.in_channels) == (kind, expected, 4)
    assert layer.groups == attributes.get("group", 1)
    assert layer.stride == tuple(attributes.get("strides", (1, 1)))
    assert layer.dilation == tuple(attributes.get("dilations", (1, 1)))
    assert (layer.name, layer.dtype, layer.dead, layer.weight_norm) == ("w", "float32", False, None)
    x = weight(1, 4, 9, 9, seed=1)
    if "group" in attributes and kind == "transposed":  # which the reference does not know
        options = {"stride": layer.stride, "groups": layer.groups}
        expected = F.conv_transpose2d(torch.from_numpy(x), torch.from_numpy(weight(*shape)), **options).numpy()
    else:
        expected = run(made, x)
    np.testing.assert_allclose(convolve(layer, x), expected, rtol=1e-4, atol=1e-4)


def test_deformable_convolution(tmp_path):
    node = helper.make_node("DeformConv", ["x", "w", "offset"], ["y"], kernel_shape=[3, 3])
    made = model([node], tensors(w=weight(8, 4, 3, 3), offset=np.zeros((1, 18, 7, 7), np.float32)))
    layer = only(made, tmp_path)
    x = weight(1, 4, 9, 9, seed=1)
    np.testing.assert_allclose(convolve(layer, x), run(made, x), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("per_channel", [False, True])
def test_qlinear_convolution(tmp_path, per_channel):
    rng = np.random.default_rng(0)
    count = 8 if per_channel else 1
    constants = tensors(
        x_scale=np.float32(0.02),
        x_zero=np.uint8(120),
        w=rng.integers(-128, 128, (8, 2, 3, 3)).astype(np.int8),
        w_scale=np.squeeze(rng.uniform(0.01, 0.1, count).astype(np.float32)),
        w_zero=np.squeeze(rng.integers(-5, 5, count).astype(np.int8)),
        y_scale=np.float32(0.5),
        y_zero=np.uint8(128),
    )
    names = ["q", "x_scale", "x_zero", "w", "w_scale", "w_zero", "y_scale", "y_zero"]
    nodes = [
        helper.make_node("QuantizeLinear", ["x", "x_scale", "x_zero"], ["q"]),
        helper.make_node("QLinearConv", names, ["r"], group=2),
        helper.make_node("DequantizeLinear", ["r", "y_scale", "y_zero"], ["y"]),
    ]
    made = model(nodes, constants)
    layer = only(made, tmp_path)
    assert (layer.kind, layer.dtype, layer.conv_depth) == ("grouped", "int8", 0)
    x = np.round(rng.uniform(-2, 2, (1, 4, 9, 9)) / 0.02).astype(np.float32) * np.float32(0.02)
    expected = np.clip(convolve(layer, x), -64, 63.5)  # what uint8 around 128 in steps of 0.5 can represent
    np.testing.assert_allclose(expected, run(made, x), atol=0.2501)


@pytest.mark.parametrize("per_channel", [False, True])
def test_dynamically_quantised_convolution(tmp_path, per_channel):
    rng = np.random.default_rng(0)
    scale = rng.uniform(0.01, 0.1, (1, 8, 1, 1) if per_channel else (1,)).astype(np.float32)
    zero = rng.integers(100, 140, 8 if per_channel else ()).astype(np.uint8)
    constants = tensors(w__quantized=rng.integers(0, 256, (8, 4, 3, 3)).astype(np.uint8), s=scale, z=zero)
    constants[0].name = "stem.weight_quantized"
    nodes = [
        helper.make_node("DynamicQuantizeLinear", ["x"], ["q", "x_scale", "x_zero"]),
        helper.make_node("ConvInteger", ["q", "stem.weight_quantized", "x_zero", "z"], ["i"]),
        helper.make_node("Cast", ["i"], ["f"], to=TensorProto.FLOAT),
        helper.make_node("Mul", ["x_scale", "s"], ["product"]),
        helper.make_node("Mul", ["f", "product"], ["y"]),
    ]
    made = model(nodes, constants)
    layer = only(made, tmp_path)
    assert (layer.name, layer.dtype, layer.kind) == ("stem", "uint8", "conv")
    stored = numpy_helper.to_array(constants[0]).astype(np.float64)
    expected = (stored - zero.reshape(-1, 1, 1, 1)) * scale.reshape(-1, 1, 1, 1)
    np.testing.assert_allclose(layer.read(), expected, rtol=1e-6)
    if not per_channel:  # the reference takes one zero point only
        x = weight(1, 4, 9, 9, seed=1)
        difference = np.abs(convolve(layer, x) - run(made, x)).max()
        assert difference < 0.05 * np.abs(run(made, x)).max()


def test_integers_without_a_scale_are_left_out(tmp_path):
    nodes = [
        helper.make_node("DynamicQuantizeLinear", ["x"], ["q", "x_scale", "x_zero"]),
        helper.make_node("ConvInteger", ["q", "w", "x_zero"], ["y"]),
    ]
    weights = read(model(nodes, tensors(w=np.ones((8, 4, 3, 3), np.uint8))), tmp_path)
    assert not weights.layers
    assert "whose scale is not in the graph" in weights.skipped[0].reason


@pytest.mark.parametrize("opset", [10, 13, 21])
def test_weight_behind_dequantisation(tmp_path, opset):
    rng = np.random.default_rng(0)
    axis = {} if opset == 10 else {"axis": 0}
    scale = rng.uniform(0.01, 0.1, () if opset == 10 else 8).astype(np.float32)
    stored = rng.integers(-128, 128, (8, 4, 3, 3)).astype(np.int8)
    zero = np.zeros_like(scale, dtype=np.int8)
    nodes = [helper.make_node("DequantizeLinear", ["q", "s", "z"], ["w"], **axis), conv()]
    layer = only(model(nodes, tensors(q=stored, s=scale, z=zero), opset=opset), tmp_path)
    assert (layer.dtype, layer.name) == ("int8", "q")
    np.testing.assert_array_equal(layer.read(), stored * scale.reshape(-1, 1, 1, 1))


def test_fake_quantised_weight(tmp_path):
    plain = weight(8, 4, 3, 3)
    nodes = [
        helper.make_node("QuantizeLinear", ["plain", "s", "z"], ["q"]),
        helper.make_node("DequantizeLinear", ["q", "s", "z"], ["w"]),
        conv(),
    ]
    layer = only(model(nodes, tensors(plain=plain, s=np.float32(0.03), z=np.int8(0)), opset=13), tmp_path)
    np.testing.assert_allclose(layer.read(), np.clip(np.round(plain / 0.03), -128, 127) * 0.03, atol=1e-6)
    assert layer.dtype == "float32"


def test_four_bit_weight(tmp_path):
    values = np.random.default_rng(0).integers(-8, 8, (3, 1, 3, 3))
    stored = helper.make_tensor("q", TensorProto.INT4, values.shape, values.ravel().tolist())
    nodes = [helper.make_node("DequantizeLinear", ["q", "s"], ["w"]), conv()]
    layer = only(model(nodes, [stored, *tensors(s=np.float32(0.5))]), tmp_path)
    assert layer.dtype == "int4"
    np.testing.assert_array_equal(layer.read(), values * 0.5)


def test_operators_of_onnx_runtime(tmp_path):
    ours, last = weight(8, 4, 3, 3), weight(8, 3, 3, 4, seed=1)
    nodes = [
        conv(op="FusedConv", domain="com.microsoft", y="a"),
        conv(op="NhwcConv", domain="com.microsoft", w="last", y="b"),
        conv(op="Conv", domain="com.microsoft.nchwc", w="blocked", y="c"),
    ]
    constants = tensors(w=ours, last=last, blocked=ours)
    weights = read(model(nodes, constants, domains=["com.microsoft", "com.microsoft.nchwc"]), tmp_path)
    first, second = weights.layers
    np.testing.assert_array_equal(first.read(), ours)
    np.testing.assert_array_equal(second.read(), last.transpose(0, 3, 1, 2))
    assert second.shape == (8, 4, 3, 3)
    assert [skipped.reason for skipped in weights.skipped] == [
        "operator com.microsoft.nchwc.Conv, whose weight has an unknown layout"
    ]


# ---------------------------------------------------------------------------------------------------------------------
# Where weights are


def chain(*steps):
    """Nodes that turn ``stored`` into ``w``, each given as (operator, other inputs, attributes)."""
    nodes, last = [], "stored"
    for number, (op, others, attributes) in enumerate(steps):
        name = "w" if number == len(steps) - 1 else f"v{number}"
        nodes.append(helper.make_node(op, [last, *others], [name], **attributes))
        last = name
    return [*nodes, conv()]


@pytest.mark.parametrize(
    ("steps", "constants", "expected"),
    [
        ([("Identity", [], {})], {}, lambda s: s),
        ([("Identity", [], {}), ("Dropout", [], {})], {}, lambda s: s),
        ([("Cast", [], {"to": TensorProto.FLOAT16})], {}, lambda s: s.astype(np.float16)),
        ([("Transpose", [], {"perm": [3, 2, 0, 1]})], {}, lambda s: s.transpose(3, 2, 0, 1)),
        ([("Transpose", [], {})], {}, lambda s: s.T),
        ([("Reshape", ["shape"], {})], {"shape": [8, 4, 3, -1]}, lambda s: s.reshape(8, 4, 3, -1)),
        ([("Squeeze", ["axis"], {}), ("Unsqueeze", ["axis"], {})], {"axis": [0]}, lambda s: s),
        (
            [("Mul", ["gain"], {}), ("Add", ["gain"], {})],
            {"gain": np.float32([0.5, 2])},
            lambda s: s * np.float32([0.5, 2]) + np.float32([0.5, 2]),
        ),
        ([("Slice", ["from", "to"], {})], {"from": [0, 1], "to": [1, 3]}, lambda s: s[:, 1:3]),
    ],
)
def test_weight_behind_nodes(tmp_path, steps, constants, expected):
    stored = weight(1, 12, 12, 2)
    others = {name: np.asarray(value) for name, value in constants.items()}
    layer = only(model(chain(*steps), tensors(stored=stored, **others)), tmp_path)
    np.testing.assert_array_equal(layer.read(), expected(stored).astype(np.float32))
    assert layer.name == "stored"


@pytest.mark.parametrize("opset", [11, 13])
def test_attributes_are_those_of_the_version(tmp_path, opset):
    # Before version 13 the axes of Squeeze were an attribute, then an input
    others, attributes = ([], {"axes": [0]}) if opset < 13 else (["axes"], {})
    constants = {} if opset < 13 else {"axes": np.asarray([0])}
    stored = weight(1, 8, 4, 3, 3)
    layer = only(
        model(chain(("Squeeze", others, attributes)), tensors(stored=stored, **constants), opset=opset), tmp_path
    )
    np.testing.assert_array_equal(layer.read(), stored[0])


@pytest.mark.parametrize(
    ("dtype", "name"),
    [(np.float16, "float16"), (ml_dtypes.bfloat16, "bfloat16"), (np.float64, "float64"), (np.float32, "float32")],
)
def test_element_types(tmp_path, dtype, name):
    stored = weight(8, 4, 3, 3).astype(dtype)
    layer = only(model([conv()], tensors(w=stored)), tmp_path)
    assert layer.dtype == name
    np.testing.assert_array_equal(layer.read(), stored.astype(np.float32))


def test_values_in_typed_fields(tmp_path):
    values = weight(2, 1, 3, 3)
    stored = helper.make_tensor("w", TensorProto.FLOAT, values.shape, values.ravel().tolist())
    np.testing.assert_array_equal(only(model([conv()], [stored]), tmp_path).read(), values)


def test_constant_nodes(tmp_path):
    stored = weight(8, 4, 3, 3)
    sparse = np.zeros((2, 1, 3, 3), np.float32)
    sparse.reshape(-1)[[2, 7]] = 1, -2
    coordinates = helper.make_sparse_tensor(
        numpy_helper.from_array(np.float32([1, -2]), "values"),
        numpy_helper.from_array(np.int64([2, 7]), "indices"),
        sparse.shape,
    )
    nodes = [
        helper.make_node("Constant", [], ["w"], value=numpy_helper.from_array(stored)),
        helper.make_node("Constant", [], ["sparse"], sparse_value=coordinates),
        helper.make_node("Constant", [], ["one"], value_float=1.0),
        helper.make_node("ConstantOfShape", ["size"], ["box"], value=numpy_helper.from_array(np.float32([0.25]))),
        conv(y="a"),
        conv(x="a", w="sparse", y="b"),
        conv(x="b", w="box", y="c"),
        helper.make_node("Add", ["c", "one"], ["y"]),
    ]
    first, second, third = read(model(nodes, tensors(size=np.int64([1, 2, 2, 2]))), tmp_path).layers
    np.testing.assert_array_equal(first.read(), stored)
    np.testing.assert_array_equal(second.read(), sparse)
    np.testing.assert_array_equal(third.read(), np.full((1, 2, 2, 2), 0.25, np.float32))
    assert first.name == "w"


def test_sparse_initialiser(tmp_path):
    made = model([conv()])
    entry = made.graph.sparse_initializer.add(dims=[2, 4, 3, 3])
    entry.values.CopyFrom(numpy_helper.from_array(np.float32([5]), "w"))
    entry.indices.CopyFrom(numpy_helper.from_array(np.int64([[1, 2, 0, 1]]), "where"))
    kernel = only(made, tmp_path).read()
    assert kernel[1, 2, 0, 1] == kernel.sum() == 5


@pytest.mark.parametrize(
    ("nodes", "inputs", "constants", "reason"),
    [
        ([conv()], {"x": [1, 4, 9]}, {"w": weight(8, 4, 3)}, "a one-dimensional convolution"),
        ([conv()], {"x": [1, 4, 9, 9, 9]}, {"w": weight(8, 4, 3, 3, 3)}, "a three-dimensional convolution"),
        (
            [conv()],
            {"x": [1, 4, 9, 9], "w": [8, 4, 3, 3]},
            {},
            "its weight is an input of the graph and not in the file",
        ),
        (
            [helper.make_node("Mul", ["v", "x"], ["w"]), conv()],
            {"x": [8, 4, 3, 3]},
            {"v": weight(8, 4, 3, 3)},
            "its weight is computed from the input",
        ),
        (
            [helper.make_node("MaxPool", ["v"], ["w"], kernel_shape=[1, 1]), conv()],
            {"x": [1, 4, 9, 9]},
            {"v": weight(8, 4, 3, 3)},
            "its weight is computed by MaxPool, which is not evaluated",
        ),
        (
            [conv(group=3)],
            None,
            {"w": weight(8, 4, 3, 3)},
            "3 groups, which a weight of shape (8, 4, 3, 3) cannot have",
        ),
        ([conv()], None, {"w": weight(0, 4, 3, 3)}, "an empty weight of shape (0, 4, 3, 3)"),
    ],
)
def test_what_is_left_out(tmp_path, nodes, inputs, constants, reason):
    weights = read(model(nodes, tensors(**constants), inputs=inputs), tmp_path)
    assert weights.layers == ()
    assert [skipped.reason for skipped in weights.skipped] == [reason]


def test_a_weight_that_is_used_twice_is_stored_once(tmp_path):
    # Quantisers give each user of a weight a node of its own
    scale = tensors(q=np.ones((4, 4, 3, 3), np.int8), s=np.float32(0.5), w=weight(4, 4, 3, 3))
    nodes = [
        helper.make_node("DequantizeLinear", ["q", "s"], ["one"]),
        helper.make_node("DequantizeLinear", ["q", "s"], ["two"]),
        helper.make_node("Identity", ["w"], ["alias"]),
        conv(w="one", y="a", name="first"),
        conv(x="a", w="two", y="b", name="second"),
        conv(x="b", w="w", y="c", name="third"),
        conv(x="c", w="alias", y="d", name="fourth"),
        helper.make_node("Mul", ["w", "s"], ["half"]),
        conv(x="d", w="half", name="fifth"),
    ]
    weights = read(model(nodes, scale, opset=13), tmp_path)
    assert [(layer.name, layer.conv_depth) for layer in weights.layers] == [("q", 0), ("w", 1), ("w#2", 2)]
    assert [(skipped.name, skipped.reason) for skipped in weights.skipped] == [
        ("second", "shares the weight of q"),
        ("fourth", "shares the weight of w"),
    ]


def test_parameters_are_counted(tmp_path):
    torch.manual_seed(0)
    network = nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU6(), nn.Flatten(), nn.Linear(8 * 36, 5))
    path = tmp_path / "model.onnx"
    export(network, path, training=torch.onnx.TrainingMode.TRAINING, do_constant_folding=False)
    assert OnnxFormat().read(path).parameters == sum(parameter.numel() for parameter in network.parameters())


# ---------------------------------------------------------------------------------------------------------------------
# Depth


def longest(sources, node, seen):
    """Depth by the definition: the longest path from the input, found by trying all."""
    if node == 0:
        return -1
    if node not in seen:
        seen[node] = max(longest(sources, source, seen) for source in sources[node]) + 1
    return seen[node]


@settings(max_examples=40, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow])
@given(st.data())
def test_depths_of_any_graph(tmp_path, data):
    size = data.draw(st.integers(1, 12))
    sources = {
        n: data.draw(st.lists(st.integers(0, n - 1), min_size=1, max_size=3), f"of {n}") for n in range(1, size + 1)
    }
    kinds = {n: data.draw(st.sampled_from(["Conv", "Sum"]), f"kind {n}") for n in sources}
    names = {0: "x"} | {n: f"v{n}" for n in sources}
    nodes = []
    for n, kind in kinds.items():
        read = [names[source] for source in sources[n]]
        sources[n] = sources[n][:1] if kind == "Conv" else sources[n]
        nodes.append(helper.make_node(kind, [read[0], f"w{n}"] if kind == "Conv" else read, [names[n]]))
    nodes = data.draw(st.permutations(nodes))
    constants = tensors(**{f"w{n}": weight(4, 4, 1, 1) for n, kind in kinds.items() if kind == "Conv"})
    made = model(nodes, constants, outputs=[names[size]])
    layers = {layer.name: layer for layer in read_any(made, tmp_path).layers}

    used, stack = set(), [size]
    while stack:
        n = stack.pop()
        if n not in used and n:
            used.add(n)
            stack += sources[n]
    depths = {f"w{n}": longest(sources, n, {}) for n, kind in kinds.items() if kind == "Conv"}
    order = sorted(set(depths.values()))
    assert {name: layer.conv_depth for name, layer in layers.items()} == {n: order.index(d) for n, d in depths.items()}
    assert {name for name, layer in layers.items() if layer.dead} == {n for n in depths if int(n[1:]) not in used}
    assert all(layer.depth_source == "graph" for layer in layers.values())
    assert all(layer.conv_depth_norm == layer.conv_depth / max(len(order) - 1, 1) for layer in layers.values())
    # Layers come after those that they read from
    place = {int(name[1:]): number for number, name in enumerate(layers)}
    assert all(place[source] < place[n] for n in place for source in sources[n] if source in place)


def read_any(made, folder):
    path = folder / "any.onnx"
    path.write_bytes(made.SerializeToString())
    return OnnxFormat().read(path)


def test_parallel_layers_share_a_depth(tmp_path):
    nodes = [
        conv(y="stem", w="a"),
        helper.make_node("Relu", ["stem"], ["r"]),
        conv(x="r", w="b", y="left"),
        conv(x="r", w="c", y="right"),
        helper.make_node("Add", ["left", "right"], ["sum"]),
        conv(x="sum", w="d"),
    ]
    layers = read(model(nodes, tensors(**{name: weight(4, 4, 1, 1) for name in "abcd"})), tmp_path).layers
    assert [(layer.name, layer.conv_depth, layer.conv_depth_norm) for layer in layers] == [
        ("a", 0, 0.0),
        ("b", 1, 0.5),
        ("c", 1, 0.5),
        ("d", 2, 1.0),
    ]


def test_initialisers_that_are_listed_as_inputs(tmp_path):
    # So it was required up to IR version 3
    nodes = [conv(w="a", y="m"), conv(x="m", w="b")]
    made = model(nodes, tensors(a=weight(4, 4, 3, 3), b=weight(4, 4, 3, 3)), inputs={"b": [4], "a": [4], "x": [1]})
    assert [layer.conv_depth for layer in read(made, tmp_path).layers] == [0, 1]


def branch(name, nodes, output, initializers=()):
    return helper.make_graph(nodes, name, [], [helper.make_empty_tensor_value_info(output)], list(initializers))


def test_branches(tmp_path):
    inner = helper.make_node(
        "If",
        ["flag"],
        ["deep"],
        then_branch=branch("a", [conv(x="m", w="inner", y="t")], "t", tensors(inner=weight(4, 4, 3, 3))),
        else_branch=branch("b", [helper.make_node("Identity", ["m"], ["e"])], "e"),
    )
    node = helper.make_node(
        "If",
        ["flag"],
        ["joined"],
        name="choice",
        then_branch=branch("then", [conv(x="m", w="outer", y="t"), inner], "deep"),
        else_branch=branch("else", [conv(x="m", w="lonely", y="e")], "e", tensors(lonely=weight(4, 4, 3, 3))),
    )
    nodes = [conv(w="first", y="m"), node, conv(x="joined", w="last")]
    constants = tensors(flag=np.bool_(True), **{name: weight(4, 4, 3, 3) for name in ("first", "outer", "last")})
    layers = {layer.name: layer for layer in read(model(nodes, constants), tmp_path).layers}
    assert next(iter(layers)) == "first"
    assert list(layers)[-1] == "last"
    assert [layers[name].conv_depth for name in ("first", "outer", "inner", "lonely", "last")] == [0, 1, 1, 1, 2]
    assert [name for name, layer in layers.items() if layer.dead] == ["outer"]


def test_loops(tmp_path):
    body = helper.make_graph(
        [helper.make_node("Identity", ["on"], ["still"]), conv(x="state", w="w", y="next")],
        "body",
        [helper.make_empty_tensor_value_info(name) for name in ("i", "on", "state")],
        [helper.make_empty_tensor_value_info(name) for name in ("still", "next")],
    )
    nodes = [
        conv(w="before", y="m"),
        helper.make_node("Loop", ["times", "", "m"], ["out"], body=body),
        conv(x="out", w="after"),
    ]
    constants = tensors(times=np.int64(3), **{name: weight(4, 4, 1, 1) for name in ("before", "w", "after")})
    layers = read(model(nodes, constants), tmp_path).layers
    assert [(layer.name, layer.conv_depth, layer.dead) for layer in layers] == [
        ("before", 0, False),
        ("w", 1, False),
        ("after", 2, False),
    ]


def block(name, nodes, inputs=("x", "w"), outputs=("y",), attributes=(), domain="local"):
    imports = [helper.make_opsetid("", 21), helper.make_opsetid("local", 1)]
    return helper.make_function(domain, name, list(inputs), list(outputs), nodes, imports, list(attributes))


def test_functions_with_attributes(tmp_path):
    inside = helper.make_node("Conv", ["x", "w"], ["y"])
    for name, kind in (("group", onnx.AttributeProto.INT), ("strides", onnx.AttributeProto.INTS)):
        inside.attribute.add(name=name, ref_attr_name=name, type=kind)
    function = block("Block", [inside, helper.make_node("Relu", ["y"], ["z"])], outputs=["z"], attributes=["strides"])
    function.attribute_proto.append(helper.make_attribute("group", 2))
    nodes = [
        helper.make_node("Block", ["x", "a.weight"], ["m"], domain="local", strides=[2, 2]),
        helper.make_node("Block", ["m", "b.weight"], ["y"], domain="local", group=4),
    ]
    constants = tensors(a__weight=weight(4, 2, 3, 3), b__weight=weight(4, 1, 3, 3))
    layers = read(model(nodes, constants, domains=["local"], functions=[function]), tmp_path).layers
    assert [(layer.name, layer.kind, layer.groups, layer.stride, layer.conv_depth) for layer in layers] == [
        ("a", "grouped", 2, (2, 2), 0),
        ("b", "depthwise", 4, (1, 1), 1),
    ]


def test_hostile_functions(tmp_path):
    call = helper.make_node("F0", ["x", "w"], ["y"], domain="local")
    itself = block("F0", [call])
    with pytest.raises(WeightFileError, match="F0 calls itself"):
        read(model([call], tensors(w=weight(4, 4, 3, 3)), domains=["local"], functions=[itself]), tmp_path)
    # Each calls the next twice: 2^40 nodes
    twice = [
        block(
            f"F{n}",
            [helper.make_node(f"F{n + 1}", [x, "w"], [y], domain="local") for x, y in (("x", "m"), ("m", "y"))],
        )
        for n in range(40)
    ]
    functions = [*twice, block("F40", [conv()])]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(graph, "MAX_STEPS", 1000)
        with pytest.raises(WeightFileError, match="expands to more than 1,000 nodes"):
            read(model([call], tensors(w=weight(4, 4, 3, 3)), domains=["local"], functions=functions), tmp_path)
    chained = [block(f"F{n}", [helper.make_node(f"F{n + 1}", ["x", "w"], ["y"], domain="local")]) for n in range(200)]
    with pytest.raises(WeightFileError, match="more than 50 deep"):
        read(model([call], tensors(w=weight(4, 4, 3, 3)), domains=["local"], functions=chained), tmp_path)


def test_circular_graph(tmp_path):
    nodes = [helper.make_node("Add", ["x", "b"], ["a"]), helper.make_node("Relu", ["a"], ["b"])]
    with pytest.raises(WeightFileError, match="circular"):
        read(model(nodes, outputs=["b"]), tmp_path)


def test_hostile_constants(tmp_path, monkeypatch):
    monkeypatch.setattr(onnx_constants, "_MAX_ELEMENTS", 1 << 20)
    # 2^60 elements by joining a tensor with itself; 2^60 additions of one with itself
    joined, added = "stored", "stored"
    join, add = [], []
    for n in range(60):
        join.append(helper.make_node("Concat", [joined, joined], [f"j{n}"], axis=0))
        add.append(helper.make_node("Add", [added, added], [f"a{n}"]))
        joined, added = f"j{n}", f"a{n}"
    constants = tensors(stored=np.ones((4, 4, 3, 3), np.float32))
    weights = read(model([*join, conv(w=joined)], constants), tmp_path)
    assert "too large" in weights.skipped[0].reason
    assert only(model([*add, conv(w=added)], constants), tmp_path).read()[0, 0, 0, 0] == 2.0**60
    huge = TensorProto(name="w", data_type=TensorProto.FLOAT, dims=[1 << 20, 1 << 20, 3, 3], raw_data=b"1234")
    assert "too large" in read(model([conv()], [huge]), tmp_path).skipped[0].reason
    short = TensorProto(name="w", data_type=TensorProto.FLOAT, dims=[2, 2, 3, 3], raw_data=b"1234")
    assert read(model([conv()], [short]), tmp_path).skipped[0].reason == "its tensor w should have 144 bytes and has 4"


# ---------------------------------------------------------------------------------------------------------------------
# Data outside of the file


@pytest.fixture
def outside(tmp_path):
    """A model with its data beside it."""
    folder = tmp_path / "net"
    folder.mkdir()
    arrays = {"a": weight(4, 4, 3, 3), "b": weight(4, 4, 3, 3, seed=1)}
    made = model([conv(w="a", y="m"), conv(x="m", w="b")], tensors(**arrays))
    path = folder / "model.onnx"
    onnx.save_model(made, path, save_as_external_data=True, location="model.data", size_threshold=0)
    return path, arrays


def relocate(path, **entries):
    made = onnx.load(path, load_external_data=False)
    for entry in made.graph.initializer[0].external_data:
        if entry.key in entries:
            entry.value = entries[entry.key]
    path.write_bytes(made.SerializeToString())
    return path


def test_data_outside_is_read_when_a_layer_is(outside):
    path, arrays = outside
    layers = OnnxFormat().read(path).layers
    for layer in layers:
        np.testing.assert_array_equal(layer.read(), arrays[layer.name])
    (path.parent / "model.data").unlink()
    with pytest.raises(WeightFileError, match=r"'model\.data', which is missing"):
        layers[0].read()
    with pytest.raises(WeightFileError, match=r"put it beside model\.onnx"):
        OnnxFormat().read(path)


@pytest.mark.parametrize(
    "location", ["../secret", "/etc/passwd", "C:\\secret", "..\\secret", "a/../../secret", "", "\0"]
)
def test_data_outside_of_the_folder_is_refused(outside, location):
    path, _ = outside
    (path.parent.parent / "secret").write_bytes(bytes(10_000))
    with pytest.raises(WeightFileError, match="outside of its folder; refused"):
        OnnxFormat().read(relocate(path, location=location))


def test_links_out_of_the_folder_are_refused(outside):
    path, _ = outside
    secret = path.parent.parent / "secret"
    secret.write_bytes(bytes(10_000))
    (path.parent / "model.data").unlink()
    (path.parent / "model.data").symlink_to(secret)
    with pytest.raises(WeightFileError, match="outside of its folder; refused"):
        OnnxFormat().read(path)


def test_a_cache_of_links_is_read(outside):
    # The cache of the Hugging Face Hub keeps files under their hashes and links to them
    path, arrays = outside
    blobs = path.parent.parent / "blobs"
    blobs.mkdir()
    for number, name in enumerate(("model.onnx", "model.data")):
        (path.parent / name).rename(blobs / f"hash{number}")
        (path.parent / name).symlink_to(blobs / f"hash{number}")
    for layer in OnnxFormat().read(path).layers:
        np.testing.assert_array_equal(layer.read(), arrays[layer.name])


@pytest.mark.parametrize("entries", [{"length": "100"}, {"offset": "9999999"}, {"offset": "-8"}, {"length": "x"}])
def test_data_that_does_not_fit(outside, entries):
    path, _ = outside
    with pytest.raises(WeightFileError, match="the two files do not belong together"):
        OnnxFormat().read(relocate(path, **entries))


# ---------------------------------------------------------------------------------------------------------------------
# Exporters


def export(network, path, *, dynamo=False, **options):
    with warnings.catch_warnings(), contextlib.redirect_stdout(None):
        warnings.simplefilter("ignore")
        options |= {"verbose": False, "external_data": False} if dynamo else {}
        torch.onnx.export(network, (torch.zeros(2, 3, 8, 8),), str(path), dynamo=dynamo, **options)
    return path


class Network(nn.Module):
    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.stem, self.norm = nn.Conv2d(3, 8, 3, bias=False), nn.BatchNorm2d(8)
        self.wide = nn.Conv2d(8, 8, 3, groups=8, padding=1)
        self.biased, self.norm2 = nn.Conv2d(8, 6, 3), nn.BatchNorm2d(6)
        self.up = nn.ConvTranspose2d(6, 4, 2, stride=2, groups=2)
        self.weighted = nn.utils.parametrizations.weight_norm(nn.Conv2d(4, 4, 3))
        for norm in (self.norm, self.norm2):
            norm.running_var.uniform_(0.5, 2)
            norm.running_mean.normal_()
            nn.init.uniform_(norm.weight, -2, 2)
            nn.init.normal_(norm.bias)

    def forward(self, x):
        x = self.wide(self.norm(self.stem(x)).relu())
        return self.weighted(self.up(self.norm2(self.biased(x))))

    def expected(self):
        """The weights of the layers with the normalisations folded in."""

        def scale(norm):
            return (norm.weight / torch.sqrt(norm.running_var + norm.eps)).reshape(-1, 1, 1, 1)

        up = self.up.weight.reshape(2, 3, 2, 2, 2).swapaxes(1, 2).reshape(4, 3, 2, 2)
        folded = [self.stem.weight * scale(self.norm), self.wide.weight, self.biased.weight * scale(self.norm2)]
        return [*folded, up, self.weighted.weight]


@pytest.mark.parametrize("dynamo", [False, True])
def test_models_exported_by_pytorch(tmp_path, dynamo):
    if dynamo:
        pytest.importorskip("onnxscript")
    network = Network().eval()
    weights = OnnxFormat().read(export(network, tmp_path / "model.onnx", dynamo=dynamo))
    for layer, expected in zip(weights.layers, network.expected(), strict=True):
        np.testing.assert_allclose(layer.read(), expected.detach().numpy(), rtol=1e-5, atol=1e-6)
    assert weights.framework == "pytorch"
    assert [layer.bn_folded for layer in weights.layers] == [True, None, True, None, None]
    assert [layer.kind for layer in weights.layers] == ["conv", "depthwise", "conv", "transposed", "conv"]
    assert [layer.conv_depth for layer in weights.layers] == [0, 1, 2, 3, 4]
    names = [layer.name for layer in weights.layers]
    if not dynamo:
        assert names == ["/stem/Conv", "wide", "/biased/Conv", "up", "weighted"]
        assert weights.layers[4].weight_norm == "weight_norm"


def test_normalisation_that_is_not_folded(tmp_path):
    options = {"training": torch.onnx.TrainingMode.TRAINING, "do_constant_folding": False}
    layers = OnnxFormat().read(export(Network(), tmp_path / "model.onnx", **options)).layers
    assert [(layer.name, layer.bn_folded) for layer in layers] == [
        ("stem", False),
        ("wide", None),
        ("biased", False),
        ("up", None),
        ("weighted", None),
    ]


def test_spectral_normalisation(tmp_path):
    pytest.importorskip("onnxscript")
    torch.manual_seed(0)
    # Smaller weights are computed by the exporter
    network = nn.Sequential(nn.utils.parametrizations.spectral_norm(nn.Conv2d(3, 400, 3))).eval()
    layer = OnnxFormat().read(export(network, tmp_path / "model.onnx", dynamo=True)).layers[0]
    assert (layer.name, layer.weight_norm) == ("0", "spectral_norm")
    np.testing.assert_allclose(layer.read(), network[0].weight.detach().numpy(), rtol=1e-5)


@pytest.mark.parametrize(
    ("producer", "version", "names", "expected"),
    [
        ("pytorch", "1.9", ("10", "11"), True),
        ("pytorch", "2.0.0", ("onnx::Conv_10", "onnx::Conv_11"), True),
        ("pytorch", "2.0.0", ("onnx::Conv_10", "stem.bias"), None),
        ("pytorch", "2.9.0", ("stem.weight", "stem.weight_bias"), True),
        ("pytorch", "2.9.0", ("stem.weight", "stem.bias"), None),
        ("pytorch", "0.4", ("10", "11"), None),
        ("", "", ("10", "11"), None),
        ("tf2onnx", "1.16", ("stem/Conv2D_weights_fused_bn", "stem/Conv2D_bias_fused_bn"), True),
        ("onnx.quantize", "0.1.0", ("ConvBnFusion_W_stem.weight", "ConvBnFusion_BN_B_bn.bias"), True),
    ],
)
def test_what_names_say_about_normalisation(tmp_path, producer, version, names, expected):
    node = helper.make_node("Conv", ["x", *names], ["y"], name="node")
    arrays = weight(8, 4, 3, 3), weight(8)
    constants = [numpy_helper.from_array(array, name) for name, array in zip(names, arrays, strict=True)]
    made = model([node], constants, producer_name=producer, producer_version=version)
    layer = only(made, tmp_path)
    assert layer.bn_folded is expected
    made_up = names[0].startswith(("1", "onnx::"))
    assert layer.name == ("node" if made_up else names[0].removesuffix(".weight"))


@pytest.mark.parametrize(
    ("producer", "framework"),
    [
        ("pytorch", "pytorch"),
        ("tf2onnx", "tensorflow"),
        ("keras2onnx", "keras"),
        ("", "onnx"),
        ("PaddlePaddle", "onnx"),
    ],
)
def test_framework(tmp_path, producer, framework):
    assert read(model([conv()], producer_name=producer), tmp_path).framework == framework


# ---------------------------------------------------------------------------------------------------------------------
# Other files, and damaged ones


@pytest.mark.parametrize(
    "data",
    [
        b"GIF89a" + bytes(100),
        b"\x89HDF\r\n\x1a\n" + bytes(100),
        b"PK\x03\x04" + bytes(100),
        b"\x80\x02}q\x00.",
        b"\x08",
        b"\x08\x07",  # a version and nothing else
        b"\x08\x04\x12\x10\x0a\x05input\x12\x07\x0a\x05image",  # Core ML: a description in the place of a name
        b"\x08\x01\x12\x20\x0a\x10\x12\x04test\x2a\x08" + bytes(20),  # a SavedModel
        b"\x0a\x20\x0a\x05input\x12\x0bPlaceholder" + bytes(20),  # a graph of TensorFlow
        b"\x1c\x00\x00\x00TFL3" + bytes(20),
        b"plain text",
        struct.pack("<Q", 16) + b'{"w": {"dtype": ',
    ],
)
def test_other_files_are_not_taken(tmp_path, data):
    path = tmp_path / "file"
    path.write_bytes(data)
    assert not OnnxFormat().matches(path, data[:4096])


def test_beginnings_are_recognised(tmp_path):
    plain = model([conv()], tensors(w=weight(8, 4, 3, 3)), producer_name="pytorch", producer_version="2.0")
    described = model([conv()], doc_string="A long text. " * 1000)
    for made in (plain, described, model([conv()], domain="org.example")):
        data = made.SerializeToString()
        path = tmp_path / "model"
        path.write_bytes(data)
        assert OnnxFormat().matches(path, data[:4096])
        path.write_bytes(data[: len(data) - 10])
        assert OnnxFormat().matches(path, data[: len(data) - 10][:4096])


SAMPLE = model(
    [
        helper.make_node("DequantizeLinear", ["q", "s"], ["w"], axis=0),
        conv(y="m", strides=[2, 2]),
        helper.make_node("Transpose", ["stored"], ["turned"], perm=[3, 2, 0, 1]),
        conv(x="m", w="turned", y="n", op="ConvTranspose", group=2),
        helper.make_node("If", ["flag"], ["y"], then_branch=branch("a", [conv(x="n", w="w", y="t")], "t")),
    ],
    tensors(
        q=np.ones((2, 4, 3, 3), np.int8),
        s=np.float32([0.5, 1]),
        stored=weight(3, 3, 1, 2),
        flag=np.bool_(True),
    ),
    producer_name="pytorch",
    producer_version="2.0",
).SerializeToString()


def readable(data, folder):
    """Whether a file can be read, or is refused as it should be."""
    path = Path(folder) / "damaged.onnx"
    path.write_bytes(data)
    OnnxFormat().matches(path, data[:4096])
    message = None
    try:
        arrays = [(layer, layer.read()) for layer in OnnxFormat().read(path).layers]
    except CnnFilterDbError as error:
        message = str(error)
    if message is None:
        return all(array.shape == layer.shape for layer, array in arrays)
    assert str(path) in message
    assert "\n" not in message
    return False


def test_truncated_files(tmp_path):
    assert readable(SAMPLE, tmp_path)
    whole = [cut for cut in range(1, len(SAMPLE)) if readable(SAMPLE[:cut], tmp_path)]
    # Cut between two fields, what is left is a message; the graph is one field
    assert len(whole) < 20
    with pytest.raises(WeightFileError, match=r"truncated or damaged \(200 bytes\); download it again"):
        read(SAMPLE[:200], tmp_path)


@settings(max_examples=150)
@given(st.lists(st.tuples(st.integers(0, len(SAMPLE) - 1), st.integers(0, 255)), min_size=1, max_size=4))
def test_damaged_files(tmp_path, changes):
    data = bytearray(SAMPLE)
    for place, value in changes:
        data[place] = value
    readable(bytes(data), tmp_path)
