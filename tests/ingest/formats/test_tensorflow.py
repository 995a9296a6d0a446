import random
import struct
from dataclasses import dataclass, field
from types import SimpleNamespace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cnnfilterdb.core.errors import WeightFileError
from cnnfilterdb.ingest import formats
from cnnfilterdb.ingest.fetch.cache import Cache
from cnnfilterdb.ingest.formats.protobuf import MalformedError, fields, float32s, integers
from cnnfilterdb.ingest.formats.tensorflow.bundle import Bundle
from cnnfilterdb.ingest.formats.tensorflow.dataflow import Dataflow, Function, GraphDefinition
from cnnfilterdb.ingest.network.layers import Tensor
from cnnfilterdb.ingest.sources.pypi import PypiSource

QUICK = settings(max_examples=40)


# ---------------------------------------------------------------------------------------------------------------------
# What TensorFlow has written


@pytest.mark.parametrize(
    ("path", "format", "tolerance"),
    [
        ("saved", "tf-saved-model", 1e-5),
        ("saved/saved_model.pb", "tf-saved-model", 1e-5),
        ("saved/variables/variables.index", "tf-saved-model", 1e-5),
        ("saved/variables/variables.data-00000-of-00001", "tf-saved-model", 1e-5),
        ("frozen.pb", "tf-graph", 1e-5),
    ],
)
def test_layers_compute_what_tensorflow_computes(written, assert_same_network, path, format, tolerance):
    weights = formats.read(written / path)
    assert_same_network(weights.layers, tolerance)
    truth = np.load(written / "net.npz")
    sizes = [truth[name].size for name in truth.files if "/" in name]
    assert (weights.format, weights.framework, weights.parameters) == (format, "tensorflow", sum(sizes))
    assert weights.skipped == ()
    if path != "frozen.pb":
        assert [layer.name for layer in weights.layers] == ["stem", "dw", "group", "up", "dil", "one"]
        stored = truth["up/kernel"]
        assert np.array_equal(weights.layers[3].read(), stored.transpose(2, 3, 0, 1))


def test_export_of_keras_3_stores_every_variable_twice(written):
    weights = formats.read(written / "keras3")
    truth = np.load(written / "keras3.npz")
    read = {layer.name.removeprefix("sequential/").removesuffix("_1"): layer for layer in weights.layers}
    assert list(read) == ["c1", "sep/depthwise_kernel", "sep/pointwise_kernel", "up", "dw"]
    assert weights.skipped == ()
    buffers = {"moving_mean", "moving_variance"}
    trained = [truth[name] for name in truth.files if name.rpartition("/")[2] not in buffers]
    assert weights.parameters == sum(array.size for array in trained)
    expected = {name.removeprefix("sequential/").removesuffix("/kernel"): truth[name] for name in truth.files}
    for name, layer in read.items():
        axes = (3, 2, 0, 1) if layer.kind == "conv" else (2, 3, 0, 1)
        assert np.array_equal(layer.read(), expected[name].transpose(axes).reshape(layer.shape))
    assert [layer.conv_depth for layer in weights.layers] == [0, 1, 2, 3, 4]


@pytest.mark.parametrize("part", ["index", "meta", "data-00000-of-00001"])
def test_graph_of_a_training_gives_the_averages_that_are_used(written, part):
    weights = formats.read(written / f"tf1/model.ckpt.{part}")
    truth = np.load(written / "tf1.npz")
    assert [layer.name for layer in weights.layers] == ["a", "b"]
    for layer in weights.layers:
        average = truth[f"{layer.name}/weights/ExponentialMovingAverage"]
        assert not np.allclose(average, truth[f"{layer.name}/weights"])
        assert np.array_equal(layer.read(), average.transpose(3, 2, 0, 1))
    # Not the gradients of convolutions, nor what the optimiser remembers
    assert weights.parameters == 36 + 72
    assert weights.skipped == ()
    assert [layer.stride for layer in weights.layers] == [(1, 1), (2, 2)]
    assert [layer.conv_depth_norm for layer in weights.layers] == [0, 1]


def test_checkpoint_without_a_graph_has_names_and_shapes(written):
    weights = formats.read(written / "ckpt2.index")
    truth = np.load(written / "net.npz")
    layers = {layer.name: layer for layer in weights.layers}
    assert set(layers) == {"stem", "dw", "group", "up", "dil", "one"}
    assert layers["dw"].kind == "depthwise"
    assert layers["group"].kind is None
    assert {layer.conv_depth for layer in weights.layers} == {None}
    assert np.array_equal(layers["stem"].read(), truth["stem/kernel"].transpose(3, 2, 0, 1))
    assert np.array_equal(layers["dw"].read()[:, 0], truth["dw/depthwise_kernel"].reshape(3, 5, 16).transpose(2, 0, 1))


def test_saved_model_whose_variables_are_missing(copied):
    (copied / "saved/variables/variables.data-00000-of-00001").unlink()
    with pytest.raises(WeightFileError, match=r"variables\.data-00000-of-00001: missing"):
        formats.read(copied / "saved")
    (copied / "saved/variables/variables.index").unlink()
    weights = formats.read(copied / "saved")
    assert weights.layers == ()
    assert {entry.reason for entry in weights.skipped} == {"a variable that is not in the checkpoint"}


def test_saved_model_of_links_out_of_its_folder(copied):
    (copied / "saved/variables").rename(copied / "elsewhere")
    (copied / "saved/variables").symlink_to(copied / "elsewhere")
    with pytest.raises(WeightFileError, match="outside of its folder; refused"):
        formats.read(copied / "saved")
    (copied / "saved/saved_model.pb").rename(copied / "graph.pb")
    (copied / "saved/saved_model.pb").symlink_to(copied / "graph.pb")
    with pytest.raises(WeightFileError, match="a link that leads out of the folder"):
        formats.read(copied / "saved")


def test_checkpoint_whose_data_are_cut_off(copied):
    data = copied / "tf1/model.ckpt.data-00000-of-00001"
    data.write_bytes(data.read_bytes()[:50])
    layers = formats.read(copied / "tf1/model.ckpt.index").layers
    with pytest.raises(WeightFileError, match="truncated or of another checkpoint"):
        [layer.read() for layer in layers]


def test_folder_that_is_no_model(tmp_path):
    with pytest.raises(WeightFileError, match="a folder of no weight file; expected one model, such as a SavedModel"):
        formats.read(tmp_path)


def test_index_under_another_name(copied):
    path = (copied / "ckpt2.index").rename(copied / "net.ckpt")
    with pytest.raises(WeightFileError, match=r"expected a name that ends in \.index"):
        formats.read(path)


@pytest.mark.parametrize(
    "name", ["frozen.pb", "saved/saved_model.pb", "saved/variables/variables.index", "tf1/model.ckpt.meta"]
)
@QUICK
@given(data=st.data())
def test_damaged_files_are_reported_as_such(copied, read_all, name, data):
    path = copied / name
    original = path.read_bytes()
    broken = bytearray(original)
    for place in data.draw(st.lists(st.integers(0, len(broken) - 1), min_size=1, max_size=5)):
        broken[place] = data.draw(st.integers(0, 255))
    if data.draw(st.booleans()):
        del broken[data.draw(st.integers(1, len(broken) - 1)) :]
    path.write_bytes(broken)
    try:
        read_all(path)
    finally:
        path.write_bytes(original)


@pytest.mark.network
def test_a_real_checkpoint_from_the_configured_index(tmp_path):
    model = SimpleNamespace(
        name="morpheus-astro/model-440",
        origin={
            "package": "morpheus-astro",
            "version": "0.5.1",
            "archive": "morpheus_astro-0.5.1-py3-none-any.whl",
            "archive_bytes": "1063596",
            "archive_sha256": "38b5138a9c1a49a2a12d05861a7d88b88b157d9095103e6e1398c898fd5a3e3f",
            "member": "morpheus/core/model_weights/model-440.data-00000-of-00001",
            "member_bytes": "908100",
            "member_sha256": "2dc955d48dcf25e1a21f4a9824c1bea2629ba85c996dff6be96f112b6d2cef1e",
            "companions": (
                "morpheus/core/model_weights/model-440.index:9510:"
                "98babf211fb0784f57215b339e10362e80d418a5c1b7ae89c9450f2a18309db5; "
                "morpheus/core/model_weights/model-440.meta:2668833:"
                "8e13f60fbb759fd6085bfab35075b67f2ff63d3cb31e1f250b92600cfa888261"
            ),
        },
    )
    weights = formats.read(PypiSource([model], cache=Cache(tmp_path)).resolve(model.name))
    # A U-Net of 20 layers, every one with 3x3 kernels
    assert {layer.kernel for layer in weights.layers} == {"3x3"}
    assert sum(layer.shape[0] * layer.shape[1] for layer in weights.layers) == 8256
    assert [layer.conv_depth for layer in weights.layers] == list(range(20))
    assert {layer.kind for layer in weights.layers} == {"conv"}


# ---------------------------------------------------------------------------------------------------------------------
# The wire format


def message(*parts):
    """Protocol buffer of (number, value) pairs: an integer, or bytes."""
    out = b""
    for number, value in parts:
        if isinstance(value, int):
            out += varint(number << 3) + varint(value)
        else:
            out += varint(number << 3 | 2) + varint(len(value)) + value
    return out


def varint(value):
    value &= (1 << 64) - 1
    out = bytearray()
    while value > 127:
        out.append(value & 127 | 128)
        value >>= 7
    return bytes([*out, value])


@given(st.lists(st.tuples(st.integers(1, 1 << 20), st.integers(0, (1 << 64) - 1) | st.binary(max_size=300))))
def test_fields_of_a_message(parts):
    expected = {}
    for number, value in parts:
        expected.setdefault(number, []).append(value)
    assert fields(memoryview(message(*parts))) == expected


@given(st.lists(st.integers(-(1 << 63), (1 << 63) - 1)))
def test_packed_integers(numbers):
    assert integers([memoryview(b"".join(map(varint, numbers)))]) == numbers


def test_fixed_size_fields():
    data = bytes([1 << 3 | 5]) + struct.pack("<f", 1.5) + bytes([2 << 3 | 1]) + struct.pack("<d", 2.5)
    found = fields(memoryview(data))
    assert float32s(found[1]) == [1.5]
    assert struct.unpack("<d", found[2][0].to_bytes(8, "little")) == (2.5,)


@pytest.mark.parametrize("data", [b"\x0a\x05ab", b"\x08", b"\x08" + b"\xff" * 11, b"\x0b", b"\x0d\x00"])
def test_what_is_no_message(data):
    with pytest.raises(MalformedError):
        fields(memoryview(data))


def node(name, op, inputs=(), **attributes):
    return message(
        (1, name.encode()),
        (2, op.encode()),
        *((3, text.encode()) for text in inputs),
        *((5, message((1, key.encode()), (2, value))) for key, value in attributes.items()),
    )


def shape(*sides):
    return message(*((2, message((1, side))) for side in sides))


def graph(tmp_path, *nodes):
    path = tmp_path / "graph.pb"
    path.write_bytes(message(*((1, one) for one in nodes)))
    return path


def constant(name, dtype, sides, *content):
    return node(name, "Const", value=message((8, message((1, dtype), (2, shape(*sides)), *content))))


IMAGE = node("image", "Placeholder", shape=message((7, shape(1, 8, 8, 2))))
STRIDES = message((1, message((3, b"\1\1\1\1"))))


@pytest.mark.parametrize("how", ["float_val", "half_val", "bfloat16", "double_val"])
def test_constants_in_lists_of_numbers(tmp_path, how):
    values = np.arange(-6, 6, dtype=np.float32) / 4
    high = values.view(np.uint32) >> 16  # of these numbers bfloat16 keeps all
    number, content = {
        "float_val": (1, (5, values.tobytes())),
        "double_val": (2, (6, values.astype(np.float64).tobytes())),
        "half_val": (19, (13, b"".join(map(varint, values.astype(np.float16).view(np.uint16).tolist())))),
        "bfloat16": (14, (13, b"".join(map(varint, high.tolist())))),
    }[how]
    path = graph(
        tmp_path,
        IMAGE,
        constant("conv/kernel", number, (3, 1, 2, 2), content),
        node("conv/Conv2D", "Conv2D", ["image", "conv/kernel"], strides=STRIDES),
    )
    (layer,) = formats.read(path).layers
    assert np.array_equal(layer.read(), values.reshape(3, 1, 2, 2).transpose(3, 2, 0, 1))
    assert (layer.name, layer.kind, layer.in_channels) == ("conv", "conv", 2)


def test_number_that_is_repeated_to_any_amount_is_refused(tmp_path):
    path = graph(
        tmp_path,
        IMAGE,
        constant("w", 1, (3, 3, 1 << 20, 1 << 20), (5, b"\0\0\0\0")),
        node("c", "Conv2D", ["image", "w"], strides=STRIDES),
    )
    with pytest.raises(WeightFileError, match="takes more than"):
        formats.read(path).layers[0].read()


def test_weight_that_is_computed_by_an_unknown_operation_is_left_out(tmp_path):
    path = graph(
        tmp_path,
        IMAGE,
        constant("w", 1, (1, 1, 2, 1), (5, bytes(8))),
        node("product", "MyOperation", ["w", "w"]),
        node("c", "Conv2D", ["image", "product"], strides=STRIDES),
        node("d", "Conv2D", ["image", "image"], strides=STRIDES),
    )
    reasons = {entry.name: entry.reason for entry in formats.read(path).skipped}
    assert reasons == {"c": "its weight is computed by MyOperation", "d": "its weight is computed by Placeholder"}


def test_dilation_by_pixels_moved_into_the_batch(tmp_path):
    path = graph(
        tmp_path,
        IMAGE,
        constant("block", 3, (2,), (7, bytes([2, 4]))),
        node("moved", "SpaceToBatchND", ["image", "block"]),
        constant("w", 1, (1, 1, 2, 1), (5, bytes(8))),
        node("c", "Conv2D", ["moved", "w"], strides=STRIDES),
    )
    assert formats.read(path).layers[0].dilation == (2, 4)


def test_functions_that_call_each_other_without_end(tmp_path):
    def call(name):
        return node("next", "PartitionedCall", f=message((10, message((1, name)))))

    def function(name, *calls):
        return message((1, message((1, name))), *((3, one) for one in calls))

    endless = message((1, function(b"f", call(b"f"))))
    path = tmp_path / "graph.pb"
    path.write_bytes(message((1, call(b"f")), (2, endless)))
    with pytest.raises(WeightFileError, match="call each other without end"):
        formats.read(path)


# ---------------------------------------------------------------------------------------------------------------------
# The index of a checkpoint


def checkpoint(folder, entries, compression=0, restarts=1):
    """A checkpoint by the description of the format: (key, dtype, shape, bytes or prepared message)."""
    data, block, before = b"", b"", b""
    header = [(b"", message((1, 1)))]
    for key, dtype, sides, content in entries:
        where = message((1, dtype), (2, shape(*sides)), (4, len(data)), (5, len(content)))
        header.append((key, where))
        data += content
    for key, value in header:
        shared = next(
            (i for i, (a, b) in enumerate(zip(before, key, strict=False)) if a != b), min(len(before), len(key))
        )
        block += varint(shared) + varint(len(key) - shared) + varint(len(value)) + key[shared:] + value
        before = key

    def closed(block):
        return block + bytes(4 * restarts) + restarts.to_bytes(4, "little")

    block = closed(block)
    handle = varint(0) + varint(len(block))
    index = closed(varint(0) + varint(1) + varint(len(handle)) + b"z" + handle)
    trailer = bytes([compression]) + bytes(4)
    footer = (bytes(2) + varint(len(block) + 5) + varint(len(index))).ljust(40, b"\0")
    magic = (0xDB4775248B80FB57).to_bytes(8, "little")
    (folder / "m.index").write_bytes(block + trailer + index + trailer + footer + magic)
    (folder / "m.data-00000-of-00001").write_bytes(data)
    return folder / "m.index"


def test_keys_that_share_their_beginnings(tmp_path):
    arrays = {
        f"net/conv{i}/{leaf}".encode(): np.random.default_rng(i).normal(size=sides).astype("<f4")
        for i in range(30)
        for leaf, sides in (("bias", (4,)), ("kernel", (3, 3, 4, 4)))
    }
    path = checkpoint(tmp_path, [(key, 1, array.shape, array.tobytes()) for key, array in sorted(arrays.items())])
    weights = formats.read(path)
    assert [layer.name for layer in weights.layers] == [f"net/conv{i}" for i in range(30)]
    assert np.array_equal(weights.layers[7].read(), arrays[b"net/conv7/kernel"].transpose(3, 2, 0, 1))
    assert weights.parameters == 30 * (4 + 144)


@pytest.mark.parametrize(
    ("changes", "reason"),
    [({"compression": 1}, "a compressed block"), ({"restarts": 1 << 20}, "a damaged checkpoint")],
)
def test_index_that_cannot_be_read(tmp_path, changes, reason):
    path = checkpoint(tmp_path, [(b"a", 1, (1,), bytes(4))], **changes)
    if "restarts" in changes:
        data = path.read_bytes()
        path.write_bytes(data[:20] + data[-48:])
    with pytest.raises(WeightFileError, match=reason):
        formats.read(path)


def test_keys_that_would_fill_the_memory(tmp_path):
    path = checkpoint(tmp_path, [(b"k" * 5000, 1, (1,), bytes(4))])
    with pytest.raises(WeightFileError, match="damaged"):
        Bundle(path.with_name("m"))


def test_names_that_identify_a_layer(tmp_path):
    zeros = np.zeros
    arrays = {
        b"conv1d/kernel": zeros((3, 4, 4)),
        b"deconv/bias": zeros(5),
        b"deconv/kernel": zeros((3, 3, 5, 7)),
        b"depthwise_conv2d/kernel": zeros((3, 3, 6, 2)),
        b"depthwise_like/bias": zeros(2),
        b"depthwise_like/kernel": zeros((3, 3, 6, 2)),
        b"keras3/bias": zeros(12),
        b"keras3/kernel": zeros((3, 3, 6, 2)),
        b"mobile/depthwise_weights": zeros((3, 3, 6, 1)),
        b"other": zeros((3, 3, 2, 2)),
        b"sep/depthwise_kernel": zeros((3, 3, 6, 2)),
        b"sep/pointwise_kernel": zeros((1, 1, 12, 9)),
        b"upconv_block/bias": zeros(7),
        b"upconv_block/kernel": zeros((3, 3, 5, 7)),
        b"volume/kernel": zeros((3, 3, 3, 2, 2)),
    }
    entries = [(key, 1, array.shape, array.astype("<f4").tobytes()) for key, array in arrays.items()]
    weights = formats.read(checkpoint(tmp_path, entries))
    stated = {layer.name: (layer.kind, layer.shape) for layer in weights.layers}
    assert stated == {
        "deconv": ("transposed", (5, 7, 3, 3)),
        "depthwise_conv2d": ("depthwise", (12, 1, 3, 3)),
        "depthwise_like": (None, (2, 6, 3, 3)),
        "keras3": ("depthwise", (12, 1, 3, 3)),
        "mobile": ("depthwise", (6, 1, 3, 3)),
        "sep/depthwise_kernel": ("depthwise", (12, 1, 3, 3)),
        "sep/pointwise_kernel": ("conv", (9, 12, 1, 1)),
        "upconv_block": ("conv", (7, 5, 3, 3)),
    }
    assert {entry.name for entry in weights.skipped} == {"conv1d/kernel", "other", "volume/kernel"}
    assert weights.parameters == sum(array.size for array in arrays.values())


def test_kernels_of_keras_3_that_are_not_those_of_plain_convolutions(tmp_path):
    """Keras 3 keeps the kernel of a plain convolution as _kernel, that of a depthwise or a transposed one as kernel."""
    rng = np.random.default_rng(0)
    shapes = {
        "1/_kernel": (3, 3, 3, 8),
        "2/kernel": (3, 3, 8, 2),
        "3/kernel": (2, 2, 12, 16),
        "4/kernel": (3, 3, 12, 1),
    }
    shapes |= {"5/kernel": (3, 3, 5, 7), "6/_kernel": (3, 3, 5, 4)}
    arrays = {part: rng.standard_normal(shape).astype("<f4") for part, shape in shapes.items()}
    entries = [
        (f"m/_operations/{part}/.ATTRIBUTES/VARIABLE_VALUE".encode(), 1, array.shape, array.tobytes())
        for part, array in sorted(arrays.items())
    ]
    weights = formats.read(checkpoint(tmp_path, entries))
    expected = {
        "1": ("conv", arrays["1/_kernel"].transpose(3, 2, 0, 1)),
        "2": ("depthwise", arrays["2/kernel"].transpose(2, 3, 0, 1).reshape(16, 1, 3, 3)),
        "3": ("transposed", arrays["3/kernel"].transpose(2, 3, 0, 1)),
        "4": ("depthwise", arrays["4/kernel"].transpose(2, 3, 0, 1)),
        "6": (None, arrays["6/_kernel"].transpose(3, 2, 0, 1)),
    }
    assert [layer.name.rpartition("/")[2] for layer in weights.layers] == list(expected)
    for layer, (kind, kernel) in zip(weights.layers, expected.values(), strict=True):
        assert layer.kind == kind
        assert np.array_equal(layer.read(), kernel)
    (left_out,) = weights.skipped
    assert left_out.name.endswith("5/kernel")
    assert "a depthwise or a transposed layer" in left_out.reason


# ---------------------------------------------------------------------------------------------------------------------
# Paths through a graph


@dataclass
class Operation:
    name: str
    op: str
    inputs: list = field(default_factory=list)
    bodies: dict = field(default_factory=dict)
    size: tuple = (1, 1, 1, 1)

    def integers(self, key):
        return ()

    def text(self, key):
        return ""

    def functions(self, key):
        return self.bodies.get(key, ())

    def shape(self, key):
        return None

    def constant(self):
        return Tensor(self.name, self.size, "float32", lambda: np.zeros(self.size)) if self.op == "Const" else None

    def strings(self):
        return ()


def depths(nodes, functions=None):
    found, skipped = Dataflow(GraphDefinition(nodes, (functions or {}).get)).convolutions()
    assert not skipped
    return {conv.name: conv.depth for conv in found}


@given(st.integers(0, 1 << 32))
def test_depth_is_the_longest_path(seed):
    rng = random.Random(seed)
    nodes, longest = [Operation("in", "Placeholder")], {"in": 0}
    for i in range(rng.randrange(1, 40)):
        taken = rng.sample(sorted(longest), rng.randrange(1, min(3, len(longest)) + 1))
        name = f"n{i}"
        if rng.random() < 0.4:
            nodes.append(Operation(f"w{i}", "Const"))
            nodes.append(Operation(name, "Conv2D", [taken[0], f"w{i}"]))
            taken = taken[:1]
        else:
            nodes.append(Operation(name, "Add", [*taken, "^n0"] if i > 3 else taken))
        longest[name] = 1 + max(longest[other] for other in taken)
    rng.shuffle(nodes)  # the order of a file proves nothing
    convolutions = {one.name for one in nodes if one.op == "Conv2D"}
    assert depths(nodes) == {name: depth for name, depth in longest.items() if name in convolutions}


def test_paths_lead_through_calls_and_by_their_outputs():
    body = [
        Operation("relu", "Relu", ["x"]),
        Operation("inner", "Conv2D", ["relu:activations:0", "w"]),
        Operation("long", "Relu", ["inner:output:0"]),
    ]
    nodes = [
        Operation("in", "Placeholder"),
        Operation("w1", "Const"),
        Operation("w2", "Const"),
        Operation("w3", "Const"),
        Operation("call", "StatefulPartitionedCall", ["in", "w1"], {"f": ("body",)}),
        Operation("by_long", "Conv2D", ["call", "w2"]),
        Operation("by_short", "Conv2D", ["call:1", "w3"]),
    ]
    found = depths(nodes, {"body": Function(("x", "w"), ("long:activations:0", "relu:activations:0"), body)})
    assert found["inner"] == 2
    assert found["by_long"] == 4
    assert found["by_short"] == 2


@pytest.mark.parametrize("op", ["If", "StatelessIf"])
def test_both_branches_are_part_of_the_graph(op):
    def branch(name):
        return Function(("x", "w"), (f"{name}:0",), [Operation(name, "Conv2D", ["x", "w"])])

    nodes = [
        Operation("in", "Placeholder"),
        Operation("training", "Const"),
        Operation("w", "Const"),
        Operation("if", op, ["training", "in", "w"], {"then_branch": ("yes",), "else_branch": ("no",)}),
    ]
    # They share a weight, so that one stands for both
    assert list(depths(nodes, {"yes": branch("yes"), "no": branch("no")}).values()) == [1]


def test_loops_of_tensorflow_1_are_entered_once():
    nodes = [
        Operation("in", "Placeholder"),
        Operation("w", "Const"),
        Operation("enter", "Enter", ["in"]),
        Operation("merge", "Merge", ["enter", "next"]),
        Operation("conv", "Conv2D", ["merge", "w"]),
        Operation("next", "NextIteration", ["conv"]),
    ]
    assert depths(nodes) == {"conv": 3}


def test_gradient_with_the_same_weight_is_no_layer():
    nodes = [
        Operation("in", "Placeholder"),
        Operation("w", "Const"),
        Operation("up", "Conv2DBackpropInput", ["size", "w", "in"]),
        Operation("loss", "Mean", ["up"]),
        Operation("gradient", "Conv2D", ["loss", "w"]),
    ]
    assert depths(nodes) == {"up": 1}


def test_what_no_input_leads_to_has_no_depth():
    nodes = [Operation("c", "Const"), Operation("w", "Const"), Operation("conv", "Conv2D", ["c", "w"])]
    assert depths(nodes) == {"conv": None}
