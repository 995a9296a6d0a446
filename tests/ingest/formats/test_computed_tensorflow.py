"""Weights that TensorFlow graphs compute, variables in slices, the first checkpoint format, manifests alone."""

from __future__ import annotations

import json
import struct

import numpy as np
import pytest

from cnnfilterdb.core.errors import WeightFileError
from cnnfilterdb.ingest import formats

rng = np.random.default_rng(0)
KERNEL = rng.standard_normal((3, 3, 2, 8)).astype(np.float32)
SCALE = np.abs(rng.standard_normal(8)).astype(np.float32) + 0.1


def varint(number):
    number &= (1 << 64) - 1
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


def shape(*sides):
    return b"".join(field(2, field(1, side)) for side in sides)


def tensor(array):
    kind = {"float32": 1, "int32": 3}[array.dtype.name]
    return field(1, kind) + field(2, shape(*array.shape)) + field(4, array.tobytes())


def node(name, op, *inputs, **attributes):
    text = field(1, name) + field(2, op) + b"".join(field(3, one) for one in inputs)
    return text + b"".join(field(5, field(1, key) + field(2, value)) for key, value in attributes.items())


def constant(name, array):
    return node(name, "Const", value=field(8, tensor(array)))


def frozen(folder, *nodes):
    image = node("x", "Placeholder", dtype=field(6, 1))
    conv = node("net/Conv2D", "Conv2D", "x", "weight", strides=field(1, field(3, b"\1\1\1\1")))
    path = folder / "net.pb"
    path.write_bytes(b"".join(field(1, one) for one in (image, *nodes, conv)))
    return path


def number(value):
    return b"\x25" + struct.pack("<f", value)


def quantised(values, low, high, levels=255):
    """What TensorFlow documents: scaled to integers, rounded, scaled back; zero exactly."""
    step = (high - low) / levels
    zero = np.round(np.clip(-low / step, 0, levels))
    return (np.clip(np.round(values / step) + zero, 0, levels) - zero) * step


@pytest.mark.parametrize(
    ("nodes", "expected", "tolerance"),
    [
        ([node("weight", "Mul", "w", "s")], KERNEL * SCALE, 0),
        ([node("weight", "Mul", "s", "w")], KERNEL * SCALE, 0),
        ([node("r", "Rsqrt", "s"), node("weight", "Mul", "w", "r")], KERNEL / np.sqrt(SCALE), 1e-6),
        ([node("weight", "RealDiv", "w", "s")], KERNEL / SCALE, 0),
        (
            [node("weight", "FakeQuantWithMinMaxArgs", "w", min=number(-1), max=number(1.5), num_bits=field(3, 8))],
            quantised(KERNEL, -1, 1.5),
            1e-5,
        ),
        (
            [
                constant("low", np.float32(-2)),
                constant("high", np.float32(1.7)),
                node("q", "FakeQuantWithMinMaxVars", "w", "low", "high", num_bits=field(3, 8)),
                node("weight", "Identity", "q"),
            ],
            quantised(KERNEL, -2, 1.7),
            1e-5,
        ),
    ],
    ids=["mul", "reversed", "rsqrt", "div", "fake-args", "fake-vars"],
)
def test_computed_weights_are_evaluated(tmp_path, nodes, expected, tolerance):
    path = frozen(tmp_path, constant("w", KERNEL), constant("s", SCALE), *nodes)
    weights = formats.read(path)
    (layer,) = weights.layers
    assert (layer.name, weights.skipped) == ("net", ())
    np.testing.assert_allclose(layer.read(), expected.transpose(3, 2, 0, 1), rtol=0, atol=tolerance)


def test_standardised_weights_are_evaluated(tmp_path):
    axes = constant("axes", np.array([0, 1, 2], np.int32))
    keep = {"keep_dims": b"\x28\x01"}
    nodes = [
        node("mean", "Mean", "w", "axes", **keep),
        node("centred", "Sub", "w", "mean"),
        node("square", "Square", "centred"),
        node("variance", "Mean", "square", "axes", **keep),
        node("scale", "Rsqrt", "variance"),
        node("weight", "Mul", "centred", "scale"),
    ]
    (layer,) = formats.read(frozen(tmp_path, constant("w", KERNEL), axes, *nodes)).layers
    centred = KERNEL - KERNEL.mean((0, 1, 2))
    np.testing.assert_allclose(layer.read(), (centred / KERNEL.std((0, 1, 2))).transpose(3, 2, 0, 1), atol=1e-5)


def test_weights_computed_from_the_input_or_in_a_circle_are_left_out(tmp_path):
    circle = [node("a", "Add", "weight", "w"), node("weight", "Mul", "a", "w")]
    for nodes, reason in (([node("weight", "Mul", "w", "x")], "its weight is computed"), (circle, "part of a cycle")):
        weights = formats.read(frozen(tmp_path, constant("w", KERNEL), *nodes))
        assert weights.layers == ()
        assert reason in weights.skipped[0].reason


# ---------------------------------------------------------------------------------------------------------------------
# Checkpoints


def ordered(value):
    """A number as keys have it; those up to 8,191 take two bytes at most."""
    sign = 0xFF if value < 0 else 0
    plain = ~value if value < 0 else value
    code = bytes([0x80 | plain]) if plain < 64 else struct.pack(">H", 0xC000 | plain)
    return bytes(byte ^ sign for byte in code)


def slice_key(name, extents):
    text = name.encode().replace(b"\xff", b"\xff\0").replace(b"\0", b"\0\xff")
    key = b"\0" + text + b"\0\1" + bytes([1, len(extents)])
    return key + b"".join(ordered(start) + ordered(length) for start, length in extents)


def extents_message(extents):
    return b"".join(
        field(1, (field(1, start) if start else b"") + (field(2, length) if length >= 0 else b""))
        for start, length in extents
    )


def table(path, entries):
    block = b"".join(
        varint(0) + varint(len(key)) + varint(len(value)) + key + value for key, value in sorted(entries.items())
    )
    block += struct.pack("<II", 0, 1)
    handle = varint(0) + varint(len(block))
    index = varint(0) + varint(1) + varint(len(handle)) + b"z" + handle + struct.pack("<II", 0, 1)
    footer = (varint(0) * 2 + varint(len(block) + 5) + varint(len(index))).ljust(40, b"\0")
    path.write_bytes(block + bytes(5) + index + bytes(5) + footer + (0xDB4775248B80FB57).to_bytes(8, "little"))


SLICES = [((0, -1), (0, -1), (0, -1), (0, 5)), ((0, -1), (0, -1), (0, -1), (5, 3))]
WIDE = [((0, -1), (0, -1), (0, -1), (0, 100)), ((0, -1), (0, -1), (0, -1), (100, 200))]


def parts_of(kernel, slices):
    return [kernel[..., one[3][0] : one[3][0] + one[3][1]] for one in slices]


@pytest.mark.parametrize("slices", [SLICES, WIDE])
@pytest.mark.parametrize("complete", [True, False])
def test_variables_in_slices_are_joined(tmp_path, slices, complete):
    kernel = rng.standard_normal((3, 3, 2, 8 if slices is SLICES else 300)).astype(np.float32)
    listed = b"".join(field(7, extents_message(one)) for one in slices)
    entries = {b"": field(1, 1), b"net/weights": field(1, 1) + field(2, shape(*kernel.shape)) + listed}
    data = b""
    for one, part in zip(slices, parts_of(kernel, slices), strict=True):
        place = field(1, 1) + field(2, shape(*part.shape)) + field(4, len(data)) + field(5, part.nbytes)
        entries[slice_key("net/weights", one)] = place
        data += part.tobytes()
    if not complete:
        del entries[slice_key("net/weights", slices[1])]
    table(tmp_path / "m.index", entries)
    (tmp_path / "m.data-00000-of-00001").write_bytes(data)
    weights = formats.read(tmp_path / "m.index")
    if complete:
        (layer,) = weights.layers
        assert np.array_equal(layer.read(), kernel.transpose(3, 2, 0, 1))
    else:
        assert weights.layers == ()
        assert [(one.name, one.reason) for one in weights.skipped] == [
            ("net/weights", "a variable in several slices, some of which are missing")
        ]


@pytest.mark.parametrize("sliced", [False, True])
def test_checkpoints_of_the_first_format(tmp_path, sliced):
    slices = SLICES if sliced else [((0, -1),) * 4]
    parts = parts_of(KERNEL, SLICES) if sliced else [KERNEL]
    described = field(1, "conv1/weights") + field(2, shape(*KERNEL.shape)) + field(3, 1)
    entries = {b"": field(1, field(1, described))}
    for one, part in zip(slices, parts, strict=True):
        numbers = field(1, 1) + field(5, part.tobytes())
        saved = field(1, "conv1/weights") + field(2, extents_message(one)) + field(3, numbers)
        entries[slice_key("conv1/weights", one)] = field(2, saved)
    table(tmp_path / "vgg_16.ckpt", entries)
    (layer,) = formats.read(tmp_path / "vgg_16.ckpt").layers
    assert layer.name == "conv1"
    assert np.array_equal(layer.read(), KERNEL.transpose(3, 2, 0, 1))


# ---------------------------------------------------------------------------------------------------------------------
# Manifests


def test_a_weights_manifest_alone(tmp_path):
    integers = rng.integers(0, 256, (3, 3, 2, 8)).astype(np.uint8)
    quantisation = {"dtype": "uint8", "scale": 0.25, "min": -4.0}
    manifest = [
        {
            "paths": ["folder\\shard1"],
            "weights": [
                {"name": "conv0/filters", "shape": [3, 3, 2, 8], "dtype": "float32", "quantization": quantisation},
                {"name": "conv0/bias", "shape": [8], "dtype": "float32"},
            ],
        }
    ]
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder" / "shard1").write_bytes(integers.tobytes() + bytes(32))
    path = tmp_path / "face-weights_manifest.json"
    path.write_text(json.dumps(manifest))
    (layer,) = formats.read(path).layers
    assert np.array_equal(layer.read(), (integers * 0.25 - 4).astype(np.float32).transpose(3, 2, 0, 1))
    (tmp_path / "folder" / "shard1").unlink()
    with pytest.raises(WeightFileError, match="which is missing; put it beside"):
        formats.read(path)


def test_shards_that_are_links_out_of_the_folder_are_refused(tmp_path):
    (tmp_path / "secret").write_bytes(bytes(1000))
    (tmp_path / "net").mkdir()
    (tmp_path / "net" / "shard").symlink_to(tmp_path / "secret")
    path = tmp_path / "net" / "manifest.json"
    path.write_text(json.dumps([{"paths": ["shard"], "weights": []}]))
    with pytest.raises(WeightFileError, match="outside of its folder; refused"):
        formats.read(path)
