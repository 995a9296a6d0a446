"""OpenVINO, Core ML, GGUF, Darknet, Caffe, MXNet, ncnn and Flax.

Files of OpenVINO, Core ML, GGUF and ncnn were written by their own programs (tests/data/make_openvino.py,
make_coreml.py, make_gguf.py, make_ncnn.py); the others are written here byte by byte, as their sources define them.
"""

from __future__ import annotations

import struct
import zipfile
from pathlib import Path

import ml_dtypes
import numpy as np
import pytest

from cnnfilterdb.core.errors import WeightFileError
from cnnfilterdb.ingest import formats

_DATA = Path(__file__).parents[2] / "data"
rng = np.random.default_rng(0)


def random_weight(*shape):
    return rng.standard_normal(shape).astype(np.float32)


def unzipped(name, folder):
    with zipfile.ZipFile(_DATA / name) as archive:
        archive.extractall(folder)
    return np.load(folder / "net.npz")


def stored(array, groups):
    """A transposed weight (in, out / groups, h, w) as (out, in / groups, h, w), one group after the other."""
    return np.concatenate([part.swapaxes(0, 1) for part in np.split(array, groups)])


# ---------------------------------------------------------------------------------------------------------------------
# OpenVINO


@pytest.mark.parametrize(("name", "dtype"), [("net.xml", "float32"), ("net_f16.xml", "float16")])
def test_openvino(tmp_path, name, dtype):
    truth = unzipped("openvino.zip", tmp_path)
    weights = formats.read(tmp_path / name)
    assert (weights.format, weights.skipped) == ("openvino", ())
    assert weights.parameters == sum(truth[key].size for key in truth)
    facts = [(layer.name, layer.kind, layer.groups, layer.in_channels, layer.conv_depth) for layer in weights.layers]
    assert facts == [
        ("stem", "conv", 1, 3, 0),
        ("dw", "depthwise", 8, 8, 1),
        ("grouped", "grouped", 2, 8, 2),
        ("up", "transposed", 1, 12, 3),
        ("updw", "transposed", 5, 5, 4),
    ]
    assert [layer.stride for layer in weights.layers] == [(2, 2), (1, 1), (1, 1), (2, 2), (2, 2)]
    assert weights.layers[1].dilation == (1, 2)
    for layer in weights.layers:
        expected = truth[layer.name].astype(dtype).astype(np.float32)
        expected = stored(expected, layer.groups) if layer.kind == "transposed" else expected
        assert layer.dtype == dtype
        assert np.array_equal(layer.read(), expected)


def compressed(folder, *, entity="", version=11):
    """An int8 weight with a zero point and a scale for each output."""
    integers = rng.integers(0, 256, (4, 2, 3, 3)).astype(np.uint8)
    zero, scale = rng.integers(0, 256, (4, 1, 1, 1)).astype(np.uint8), np.abs(random_weight(4, 1, 1, 1)) + 0.1
    data = integers.tobytes() + zero.tobytes() + scale.tobytes()

    def layer(number, kind, attributes, inputs=0):
        ports = "".join(f'<port id="{port}"/>' for port in range(inputs))
        return f'<layer id="{number}" name="l{number}" type="{kind}"><data {attributes}/><input>{ports}</input></layer>'

    def constant(number, kind, shape, start, size):
        return layer(number, "Const", f'element_type="{kind}" shape="{shape}" offset="{start}" size="{size}"')

    layers = [
        layer(0, "Parameter", 'shape="1,2,8,8"'),
        constant(1, "u8", "4, 2, 3, 3", 0, 72),
        layer(2, "Convert", 'destination_type="f32"', 1),
        constant(3, "u8", "4, 1, 1, 1", 72, 4),
        layer(4, "Convert", 'destination_type="f32"', 1),
        layer(5, "Subtract", "", 2),
        constant(6, "f32", "4, 1, 1, 1", 76, 16),
        layer(7, "Multiply", "", 2),
        layer(8, "Convolution", 'strides="1,1" dilations="1,1"', 2),
    ]
    edges = [(1, 2, 0), (3, 4, 0), (2, 5, 0), (4, 5, 1), (5, 7, 0), (6, 7, 1), (0, 8, 0), (7, 8, 1)]
    text = "".join(f'<edge from-layer="{a}" from-port="9" to-layer="{b}" to-port="{c}"/>' for a, b, c in edges)
    path = folder / "int8.xml"
    path.write_text(
        f'<?xml version="1.0"?>{entity}<net name="n" version="{version}"><layers>{"".join(layers)}</layers>'
        f"<edges>{text}</edges></net>"
    )
    path.with_suffix(".bin").write_bytes(data)
    return path, (integers.astype(np.float32) - zero) * scale


def test_openvino_with_integers(tmp_path):
    path, expected = compressed(tmp_path)
    (layer,) = formats.read(path).layers
    assert (layer.dtype, layer.kind, layer.conv_depth) == ("quint8", "conv", 0)
    assert np.array_equal(layer.read(), expected)


def test_constants_of_openvino_are_counted_wherever_they_are(tmp_path):
    path, _ = compressed(tmp_path)
    text = path.read_text()
    # A second use of the weight, and an operation with a network of its own that has constants
    ports = '<input><port id="0"/><port id="1"/></input>'
    second = f'<layer id="9" name="again" type="Convolution"><data strides="1,1"/>{ports}</layer>'
    inner = '<layer id="0" name="w" type="Const"><data element_type="f32" shape="2,2" offset="76" size="16"/></layer>'
    loop = f'<layer id="10" name="loop" type="If"><then_body><layers>{inner}</layers></then_body></layer>'
    edges = "".join(
        f'<edge from-layer="{source}" from-port="9" to-layer="9" to-port="{port}"/>'
        for source, port in ((0, 0), (7, 1))
    )
    path.write_text(text.replace("</layers><edges>", f"{second}{loop}</layers><edges>{edges}", 1))
    weights = formats.read(path)
    assert [(one.name, one.reason) for one in weights.skipped] == [
        ("again", "shares the weight of l8"),
        ("loop", "an operation of type If"),
    ]
    # The constant of the loop is at the place of the scales, which are a part of the kernel
    assert weights.contents == {"kernels": (3, 80)}
    path.write_text(path.read_text().replace('shape="2,2" offset="76" size="16"', 'shape="2,2" offset="0" size="16"'))
    assert formats.read(path).contents == {"kernels": (3, 80), "excluded": (1, 4)}


def test_openvino_files_that_are_refused(tmp_path):
    path, _ = compressed(tmp_path, entity='<!DOCTYPE net [<!ENTITY a "aaaa">]>')
    with pytest.raises(WeightFileError, match="declares a document type or entities"):
        formats.read(path)
    with pytest.raises(WeightFileError, match="an OpenVINO model of version 7; versions 10 and 11 are read"):
        formats.read(compressed(tmp_path, version=7)[0])
    path, _ = compressed(tmp_path)
    path.with_suffix(".bin").unlink()
    with pytest.raises(WeightFileError, match=r"'int8\.bin', which is missing"):
        formats.read(path)


# ---------------------------------------------------------------------------------------------------------------------
# Core ML


@pytest.mark.parametrize(
    ("name", "dtype"),
    [
        ("net", "float32"),
        ("net_f16", "float16"),
        ("net_linear8", "quint8"),
        ("net_linear3", "quint8"),
        ("net_table4", "quint8"),
    ],
)
def test_core_ml(tmp_path, name, dtype):
    truth = unzipped("coreml.zip", tmp_path)
    weights = formats.read(tmp_path / f"{name}.mlmodel")
    facts = [(layer.name, layer.kind, layer.groups, layer.in_channels, layer.conv_depth) for layer in weights.layers]
    assert facts == [("stem", "conv", 1, 3, 0), ("dw", "depthwise", 8, 8, 1), ("up", "transposed", 1, 8, 2)]
    assert [layer.stride for layer in weights.layers] == [(2, 2), (1, 1), (2, 2)]
    for layer in weights.layers:
        assert layer.dtype == dtype
        expected = truth[f"{name}/{layer.name}" if dtype == "quint8" else layer.name]
        assert np.array_equal(layer.read(), expected.astype("f2" if dtype == "float16" else "f4").astype(np.float32))


def test_core_ml_in_a_pipeline_and_as_an_empty_program(tmp_path):
    unzipped("coreml.zip", tmp_path)
    network = (tmp_path / "net.mlmodel").read_bytes()
    path = tmp_path / "other.mlmodel"
    head = field(1, 4) + field(2, b"")
    path.write_bytes(head + field(202, field(1, network)))
    assert [layer.name for layer in formats.read(path).layers] == ["stem", "dw", "up"]
    path.write_bytes(head + field(502, b""))
    assert formats.read(path).layers == ()  # a program without functions


# ---------------------------------------------------------------------------------------------------------------------
# GGUF


def test_gguf(tmp_path):
    truth = unzipped("gguf.zip", tmp_path)
    weights = formats.read(tmp_path / "net.gguf")
    assert [(layer.name, layer.dtype) for layer in weights.layers] == [("stem", "float32"), ("next", "float16")]
    for layer in weights.layers:
        assert np.array_equal(layer.read(), truth[layer.name].astype(np.float32))
    (left_out,) = weights.skipped
    assert left_out.name == "blocks.weight"
    assert "quantised blocks" in left_out.reason


# ---------------------------------------------------------------------------------------------------------------------
# Darknet

_CFG = """
[net]
channels=3
[convolutional]   # 0
batch_normalize=1
filters=8
size=3
stride=2
[convolutional]   # 1
filters=4
size=1
[convolutional]   # 2
batch_normalize=1
filters=8
size=3
groups=4
[shortcut]        # 3
from=-3
[maxpool]         # 4
[upsample]        # 5
[route]           # 6
layers=-1, 1
[convolutional]   # 7
filters=5
size=3
[yolo]
"""


def darknet(folder, cfg=_CFG, name="net"):
    shapes = {0: (8, 3, 3, 3), 1: (4, 8, 1, 1), 2: (8, 1, 3, 3), 7: (5, 12, 3, 3)}
    kernels = {number: random_weight(*shape) for number, shape in shapes.items()}
    data = struct.pack("<3iQ", 0, 2, 5, 12345)
    for number, kernel in kernels.items():
        vectors = 4 if number in (0, 2) else 1
        data += random_weight(vectors * len(kernel)).tobytes() + kernel.tobytes()
    (folder / f"{name}.weights").write_bytes(data)
    if cfg is not None:
        (folder / f"{name}.cfg").write_text(cfg)
    return folder / f"{name}.weights", kernels


def test_darknet(tmp_path):
    path, kernels = darknet(tmp_path)
    weights = formats.read(path)
    assert [layer.name for layer in weights.layers] == [f"{number}/convolutional" for number in kernels]
    assert [layer.kind for layer in weights.layers] == ["conv", "conv", "depthwise", "conv"]
    assert [layer.in_channels for layer in weights.layers] == [3, 8, 4, 12]
    assert [layer.stride for layer in weights.layers] == [(2, 2), (1, 1), (1, 1), (1, 1)]
    assert [layer.conv_depth for layer in weights.layers] == [0, 1, 2, 3]
    numbers = (path.stat().st_size - 20) // 4
    assert weights.contents == {
        "kernels": (4, sum(kernel.size for kernel in kernels.values())),
        "vectors": (6, 8 + 8 + 4 + 8 + 8 + 5),
        "buffers": (4, 4 * 8),
    }
    assert sum(size for _, size in weights.contents.values()) == weights.parameters + 4 * 8 == numbers
    for layer, kernel in zip(weights.layers, kernels.values(), strict=True):
        assert np.array_equal(layer.read(), kernel)


def test_darknet_needs_the_network_that_belongs_to_it(tmp_path):
    path, _ = darknet(tmp_path, cfg=None)
    with pytest.raises(WeightFileError, match=r"neither names nor sizes; put the network, net\.cfg, beside it"):
        formats.read(path)
    for cfg in (_CFG.replace("filters=5", "filters=6"), _CFG.replace("filters=5", "filters=4")):
        path, _ = darknet(tmp_path, cfg)
        with pytest.raises(WeightFileError, match=r"put the matching \.cfg beside it"):
            formats.read(path)


def test_darknet_layers_behind_one_of_unknown_size_are_reported(tmp_path):
    path, _ = darknet(tmp_path, _CFG.replace("[maxpool]", "[crnn]"))
    weights = formats.read(path)
    assert len(weights.layers) == 3
    assert "the convolutions after it are left out" in weights.skipped[0].reason
    assert weights.contents["excluded"] == (1, 5 + 5 * 12 * 9)
    assert sum(size for _, size in weights.contents.values()) == (path.stat().st_size - 20) // 4


# ---------------------------------------------------------------------------------------------------------------------
# Caffe


def varint(number):
    out = bytearray()
    while number > 127:
        out.append(number & 127 | 128)
        number >>= 7
    return bytes([*out, number])


def field(number, content):
    if isinstance(content, int):
        return varint(number << 3) + varint(content)
    content = content.encode() if isinstance(content, str) else content
    return varint(number << 3 | 2) + varint(len(content)) + content


def blob(array, old=False):
    sides = array.shape if not old else (1,) * (4 - array.ndim) + array.shape
    shape = b"".join(field(n + 1, side) for n, side in enumerate(sides))
    return (shape if old else field(7, field(1, b"".join(map(varint, sides))))) + field(5, array.tobytes())


@pytest.mark.parametrize("old", [False, True])
def test_caffe(tmp_path, old):
    kernels = {"conv": random_weight(8, 3, 3, 3), "dw": random_weight(8, 1, 3, 5), "up": random_weight(8, 4, 2, 2)}
    options = {"conv": field(6, 2), "dw": field(5, 8) + field(18, 2), "up": field(13, 2) + field(14, 3)}
    if old:
        names, kinds = (4, 5, 2, 3, 6, 10, 2), {"conv": 4, "dw": 4, "up": 39}
    else:
        names, kinds = (1, 2, 3, 4, 7, 106, 100), {"conv": "Convolution", "dw": "Convolution", "up": "Deconvolution"}
    name, kind, bottom, top, blobs, options_field, layer = names
    net, last = field(1, "net"), "data"
    for key, kernel in kernels.items():
        content = field(name, key) + field(kind, kinds[key]) + field(bottom, last) + field(top, key)
        content += field(blobs, blob(kernel, old)) + field(blobs, blob(random_weight(len(kernel)), old))
        net += field(layer, content + field(options_field, options[key]))
        last = key
    net += field(
        layer,
        field(name, "fc") + field(kind, 14 if old else "InnerProduct") + field(blobs, blob(random_weight(3, 8), old)),
    )
    if not old:
        net += field(layer, field(name, "bn") + field(kind, "BatchNorm") + field(blobs, blob(random_weight(8))))
    path = tmp_path / "net.caffemodel"
    path.write_bytes(net)
    weights = formats.read(path)
    assert [(layer.name, layer.kind, layer.groups) for layer in weights.layers] == [
        ("conv", "conv", 1),
        ("dw", "depthwise", 8),
        ("up", "transposed", 1),
    ]
    assert [layer.stride for layer in weights.layers] == [(2, 2), (1, 1), (2, 3)]
    assert [layer.dilation for layer in weights.layers] == [(1, 1), (2, 2), (1, 1)]
    assert [layer.conv_depth for layer in weights.layers] == [0, 1, 2]
    expected = {
        "kernels": (3, sum(kernel.size for kernel in kernels.values())),
        "matrices": (1, 24),
        "vectors": (3, 24),
    }
    assert weights.contents == (expected if old else expected | {"buffers": (1, 8)})
    for layer in weights.layers:
        kernel = kernels[layer.name]
        assert np.array_equal(layer.read(), stored(kernel, 1) if layer.name == "up" else kernel)


# ---------------------------------------------------------------------------------------------------------------------
# MXNet


def mxnet(path, arrays, version):
    data = struct.pack("<QQQ", 0x112, 0, len(arrays))
    for array in arrays.values():
        if version == 2:
            data += struct.pack("<IiI", 0xF993FAC9, 0, array.ndim) + struct.pack(f"<{array.ndim}q", *array.shape)
        else:
            data += struct.pack("<I", array.ndim) + struct.pack(f"<{array.ndim}I", *array.shape)
        kind = {"float32": 0, "float64": 1, "float16": 2}[array.dtype.name]
        data += struct.pack("<iii", 1, 0, kind) + array.tobytes()
    data += struct.pack("<Q", len(arrays))
    for name in arrays:
        data += struct.pack("<Q", len(name)) + name.encode()
    path.write_bytes(data)
    return path


@pytest.mark.parametrize("version", [0, 2])
def test_mxnet(tmp_path, version):
    arrays = {
        "arg:conv0_weight": random_weight(8, 3, 3, 3),
        "arg:conv0_bias": random_weight(8),
        "arg:conv1_weight": random_weight(16, 8, 1, 7).astype(np.float16),
        "aux:bn0_moving_mean": random_weight(16),
    }
    weights = formats.read(mxnet(tmp_path / "net-0000.params", arrays, version))
    assert [(layer.name, layer.kind) for layer in weights.layers] == [("conv0", "conv"), ("conv1", "conv")]
    for layer in weights.layers:
        assert np.array_equal(layer.read(), arrays[f"arg:{layer.name}_weight"].astype(np.float32))


# ---------------------------------------------------------------------------------------------------------------------
# Flax


def packed(value):
    """MessagePack, as much of it as Flax writes."""
    if isinstance(value, dict):
        head = bytes([0x80 | len(value)]) if len(value) < 16 else b"\xde" + struct.pack(">H", len(value))
        return head + b"".join(packed(part) for item in value.items() for part in item)
    if isinstance(value, str):
        return (bytes([0xA0 | len(value)]) if len(value) < 32 else bytes([0xD9, len(value)])) + value.encode()
    if isinstance(value, bytes):
        return b"\xc6" + struct.pack(">I", len(value)) + value
    if isinstance(value, int):
        return b"\xcd" + struct.pack(">H", value)
    if isinstance(value, list | tuple):
        return bytes([0x90 | len(value)]) + b"".join(map(packed, value))
    content = packed((list(value.shape), value.dtype.name, value.tobytes()))
    return b"\xc9" + struct.pack(">Ib", len(content), 1) + content


def test_flax(tmp_path):
    kernels = {
        "Conv_0": random_weight(3, 3, 3, 8),
        "Conv_10": random_weight(3, 3, 16, 4).astype(ml_dtypes.bfloat16),
        "Conv_2": random_weight(1, 5, 8, 16),
    }
    tree = {
        "params": {
            name: {"bias": random_weight(kernel.shape[3]), "kernel": kernel} for name, kernel in kernels.items()
        },
        "batch_stats": {"BatchNorm_0": {"mean": random_weight(8), "var": random_weight(8)}},
        "opt_state": {"mu": {"Conv_0": {"kernel": random_weight(3, 3, 3, 8)}}},
        "step": 17,
    }
    path = tmp_path / "flax_model.msgpack"
    path.write_bytes(packed(tree))
    weights = formats.read(path)
    assert [layer.name for layer in weights.layers] == ["Conv_0", "Conv_2", "Conv_10"]
    for layer in weights.layers:
        assert np.array_equal(layer.read(), kernels[layer.name].astype(np.float32).transpose(3, 2, 0, 1))
    path.write_bytes(packed({"a": {"b": 3}}))
    with pytest.raises(WeightFileError, match="MessagePack without arrays"):
        formats.read(path)


# ---------------------------------------------------------------------------------------------------------------------
# ncnn


def ncnn(folder, half=False):
    kernels = {"stem": random_weight(8, 3, 3, 3), "dw": random_weight(8, 1, 3, 5), "up": random_weight(4, 8, 2, 2)}

    def marked(array):
        raw = array.astype(np.float16 if half else np.float32).tobytes()
        return struct.pack("<I", 0x01306B47 if half else 0) + raw + bytes(-len(raw) % 4)

    data = marked(kernels["stem"]) + bytes(32) + bytes(4 * 4 * 8) + marked(kernels["dw"]) + marked(kernels["up"])
    path = folder / "net.param"
    path.write_text(
        "7767517\n6 6\n"
        "Input       in   0 1 x\n"
        "Convolution stem 1 1 x a 0=8 1=3 3=2 5=1 6=216\n"
        "BatchNorm   bn   1 1 a b 0=8\n"
        "ReLU        relu 1 1 b c\n"
        "ConvolutionDepthWise dw 1 1 c d 0=8 1=5 11=3 6=120 7=8 -23310=2,1,1\n"
        "Deconvolution up 1 1 d y 0=4 1=2 3=2 6=128\n"
    )
    path.with_suffix(".bin").write_bytes(data)
    return path, kernels


@pytest.mark.parametrize("half", [False, True])
def test_ncnn(tmp_path, half):
    path, kernels = ncnn(tmp_path, half)
    weights = formats.read(path)
    facts = [(layer.name, layer.kind, layer.groups, layer.in_channels, layer.stride) for layer in weights.layers]
    assert facts == [
        ("stem", "conv", 1, 3, (2, 2)),
        ("dw", "depthwise", 8, 8, (1, 1)),
        ("up", "transposed", 1, 8, (2, 2)),
    ]
    assert [layer.conv_depth for layer in weights.layers] == [0, 1, 2]
    sizes = sum(kernel.size for kernel in kernels.values())
    assert weights.contents == {"kernels": (3, sizes), "vectors": (3, 24), "buffers": (2, 16)}
    for layer in weights.layers:
        expected = kernels[layer.name].astype(np.float16 if half else np.float32).astype(np.float32)
        assert np.array_equal(layer.read(), expected)


@pytest.mark.parametrize(("name", "dtype"), [("net", "float32"), ("net_f16", "float16")])
def test_ncnn_of_its_converter(tmp_path, name, dtype):
    truth = unzipped("ncnn.zip", tmp_path)
    weights = formats.read(tmp_path / f"{name}.param")
    facts = [(layer.kind, layer.groups, layer.in_channels, layer.stride) for layer in weights.layers]
    assert facts == [
        ("conv", 1, 3, (1, 1)),
        ("depthwise", 8, 8, (1, 1)),
        ("grouped", 2, 8, (1, 1)),
        ("transposed", 1, 12, (2, 2)),
        ("transposed", 3, 6, (1, 1)),
        ("conv", 1, 6, (1, 1)),
    ]
    assert [layer.conv_depth for layer in weights.layers] == list(range(6))
    for layer, key in zip(weights.layers, ("stem", "dw", "grouped", "up", "updw", "head"), strict=True):
        expected = truth[f"{key}.weight"].astype(dtype).astype(np.float32)
        expected = stored(expected, layer.groups) if layer.kind == "transposed" else expected
        # pnnx fuses the normalisation of the first layer in an order of its own
        tolerance = 0 if key != "stem" else 1e-6 if dtype == "float32" else 1e-3
        assert np.allclose(layer.read(), expected, rtol=tolerance, atol=0)
    assert [(one.name.rstrip("_0123456789"), one.reason) for one in weights.skipped] == [
        ("conv1d", "a one-dimensional convolution")
    ]
    assert weights.contents["kernels"] == (6, sum(layer.read().size for layer in weights.layers))


def test_ncnn_whose_files_do_not_belong_together(tmp_path):
    path, _ = ncnn(tmp_path)
    path.with_suffix(".bin").write_bytes(path.with_suffix(".bin").read_bytes() + bytes(4))
    with pytest.raises(WeightFileError, match="check that the two files belong together"):
        formats.read(path)
    path.write_text(path.read_text().replace("BatchNorm  ", "Quantize   "))
    weights = formats.read(path)
    assert [layer.name for layer in weights.layers] == ["stem"]
    assert [(entry.name, entry.reason) for entry in weights.skipped] == [
        ("bn", "a layer of type Quantize, whose size is not known"),
        ("dw", "its numbers follow those of bn, whose size is not known"),
        ("up", "its numbers follow those of bn, whose size is not known"),
    ]
    # What is left is one tensor; the mark of the first layer is no number
    size = path.with_suffix(".bin").stat().st_size
    assert sum(numbers for _, numbers in weights.contents.values()) == size // 4 - 1


# ---------------------------------------------------------------------------------------------------------------------
# Formats that are recognised


@pytest.mark.parametrize(
    ("name", "content", "what"),
    [
        ("net.engine", b"ftrt" + bytes(64), "a TensorRT engine"),
        ("Manifest.json", b'{"fileFormatVersion": "1.0.0", "itemInfoEntries": {}}', "Core ML package"),
    ],
)
def test_formats_that_are_recognised_are_named(tmp_path, name, content, what):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(WeightFileError, match=what) as error:
        formats.read(tmp_path / name)
    assert "recognised but not read" in str(error.value)


@pytest.mark.parametrize(
    ("name", "content", "what"),
    [
        ("net.ort", bytes(4) + b"ORTM" + bytes(64), r"a damaged ONNX file \(without a graph\)"),
        ("net.pdiparams", bytes(64), r"a PaddlePaddle inference model without net\.pdmodel; put it beside"),
        ("zarr.json", b'{"zarr_format": 3, "node_type": "group"}', "a Zarr folder without arrays"),
    ],
)
def test_formats_that_are_read_say_what_is_missing(tmp_path, name, content, what):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(WeightFileError, match=what) as error:
        formats.read(tmp_path / name)
    assert "recognised but not read" not in str(error.value)


# ---------------------------------------------------------------------------------------------------------------------
# Damage


def intact(folder):
    """Pairs (model, the one of its files to damage), each in a folder of its own."""

    def inside(name):
        (folder / name).mkdir()
        return folder / name

    for archive, model, damaged in (
        ("openvino", "net.xml", "net.xml"),
        ("openvino", "net.xml", "net.bin"),
        ("coreml", "net.mlmodel", "net.mlmodel"),
        ("coreml", "net_linear3.mlmodel", "net_linear3.mlmodel"),
        ("ncnn", "net.param", "net.param"),
        ("ncnn", "net_f16.param", "net_f16.bin"),
        ("gguf", "net.gguf", "net.gguf"),
    ):
        home = inside(damaged)
        unzipped(f"{archive}.zip", home)
        yield home / model, home / damaged
    for suffix in (".param", ".bin"):
        path, _ = ncnn(inside(f"ncnn{suffix}"))
        yield path, path.with_suffix(suffix)
    for suffix in (".cfg", ".weights"):
        path, _ = darknet(inside(f"darknet{suffix}"))
        yield path, path.with_suffix(suffix)
    net = field(100, field(1, "c") + field(2, "Convolution") + field(7, blob(random_weight(4, 3, 3, 3))))
    tree = packed({"params": {"c": {"kernel": random_weight(3, 3, 3, 4), "bias": random_weight(4)}}})
    for name, content in (("net.caffemodel", net), ("net.msgpack", tree)):
        path = inside(name) / name
        path.write_bytes(content)
        yield path, path
    path = mxnet(inside("mxnet") / "net.params", {"arg:c_weight": random_weight(4, 3, 3, 3)}, 2)
    yield path, path


def test_damaged_files_are_read_or_refused(tmp_path, survives_damage):
    survives_damage(list(intact(tmp_path)))
