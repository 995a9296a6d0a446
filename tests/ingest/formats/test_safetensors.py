"""The safetensors reader against the safetensors library."""

from __future__ import annotations

import json
import subprocess
import sys
import time
import tracemalloc
from pathlib import Path

import ml_dtypes
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file as save_numpy
from safetensors.torch import load_file, save_file
from torch import nn

from cnnfilterdb.core.errors import CnnFilterDbError, WeightFileError
from cnnfilterdb.ingest.formats.safetensors import SafetensorsFormat


def read(path):
    with path.open("rb") as file:
        head = file.read(4096)
    assert SafetensorsFormat().matches(path, head)
    return SafetensorsFormat().read(path)


def save(tensors, path, **metadata):
    save_file(tensors, path, metadata=metadata or {"format": "pt"})
    return path


def assert_same(weights, tensors):
    assert weights.format == "safetensors"
    kernels = {name for name, value in tensors.items() if value.ndim == 4}
    assert {f"{layer.name}.weight" for layer in weights.layers} == kernels
    for layer in weights.layers:
        found = layer.read()
        assert found.dtype == np.float32
        assert found.flags.c_contiguous
        assert found.tobytes() == tensors[f"{layer.name}.weight"].float().contiguous().numpy().tobytes()


def test_a_network(tmp_path):
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv2d(3, 8, 7), nn.BatchNorm2d(8), nn.Conv2d(8, 8, 3, groups=8), nn.Conv2d(8, 16, 3))
    weights = read(save(net.state_dict(), tmp_path / "model.safetensors"))
    assert weights.framework == "pytorch"
    assert weights.parameters == sum(value.numel() for value in net.parameters())
    assert_same(weights, load_file(tmp_path / "model.safetensors"))
    assert [(layer.name, layer.kind, layer.groups) for layer in weights.layers] == [
        ("0", None, None),  # by shape alone it may be grouped
        ("2", "depthwise", None),
        ("3", None, None),
    ]


def test_layers_are_in_natural_order(tmp_path):
    names = ["conv1", "layer1.0.conv", "layer1.2.conv", "layer1.10.conv", "layer2.conv", "layer10.conv"]
    tensors = {f"{name}.weight": torch.randn(4, 4, 3, 3) for name in names}
    path = save(tensors, tmp_path / "model.safetensors")
    with safe_open(path, "pt") as file:
        assert list(file.keys()) != list(tensors)
    assert [layer.name for layer in read(path).layers] == names


DTYPES = {
    "float64": "F64",
    "float32": "F32",
    "float16": "F16",
    "bfloat16": "BF16",
    "float8_e4m3fn": "F8_E4M3",
    "float8_e5m2": "F8_E5M2",
    "float8_e4m3fnuz": "F8_E4M3FNUZ",
    "float8_e5m2fnuz": "F8_E5M2FNUZ",
}


@pytest.mark.parametrize("dtype", DTYPES)
def test_floating_types(tmp_path, dtype):
    # every bit pattern of the small types, infinities and not-a-numbers among them
    bits = torch.arange(4 * 4 * 16 * getattr(torch, dtype).itemsize, dtype=torch.uint8).view(getattr(torch, dtype))
    tensors = {"a.weight": bits.view(4, 4, 4, 4), "b.weight": torch.randn(8, 4, 3, 3).to(getattr(torch, dtype))}
    path = save(tensors, tmp_path / "model.safetensors")
    assert f'"{DTYPES[dtype]}"'.encode() in path.read_bytes()
    weights = read(path)
    assert {layer.dtype for layer in weights.layers} == {dtype}
    for layer in weights.layers:
        np.testing.assert_array_equal(layer.read(), tensors[f"{layer.name}.weight"].float().numpy())


@pytest.mark.parametrize("dtype", [torch.int8, torch.uint8, torch.int64, torch.bool, torch.uint16, torch.complex64])
def test_other_types_are_left_out(tmp_path, dtype):
    tensors = {"a.weight": torch.zeros(8, 4, 3, 3).to(dtype), "b.weight": torch.ones(8, 8, 3, 3)}
    weights = read(save(tensors, tmp_path / "model.safetensors"))
    assert [layer.name for layer in weights.layers] == ["b"]
    assert [skipped.name for skipped in weights.skipped] == ["a.weight"]


def test_prefixes_and_composed_weights(tmp_path):
    conv = nn.utils.parametrizations.weight_norm(nn.Conv2d(4, 8, 3))
    tensors = {f"model.{name}": value for name, value in nn.Sequential(conv).state_dict().items()}
    weights = read(save(tensors, tmp_path / "model.safetensors"))
    (layer,) = weights.layers
    assert (layer.name, layer.weight_norm) == ("0", "weight_norm")
    np.testing.assert_allclose(layer.read(), conv.weight.detach().numpy(), rtol=1e-5)


@pytest.mark.parametrize(
    ("metadata", "framework"),
    [({"format": "pt"}, "pytorch"), ({"format": "tf"}, "tensorflow"), ({"format": "np"}, None), ({"a": "b"}, None)],
)
def test_the_framework_is_what_the_file_says(tmp_path, metadata, framework):
    path = save({"a.weight": torch.ones(4, 4, 3, 3)}, tmp_path / "model.safetensors", **metadata)
    assert read(path).framework == framework


def test_a_file_without_metadata(tmp_path):
    path = tmp_path / "model.safetensors"
    save_numpy({"a.weight": np.ones((4, 4, 3, 3), np.float32), "scalar": np.array(1, np.float32)}, path)
    weights = read(path)
    assert weights.framework is None
    assert weights.parameters == 145


def test_kernels_of_mlx_have_their_channels_last(tmp_path):
    weight = torch.randn(8, 5, 3, 4)  # (out, height, width, in)
    weights = read(save({"conv.weight": weight}, tmp_path / "model.safetensors", format="mlx"))
    assert weights.layers[0].shape == (8, 4, 5, 3)
    np.testing.assert_array_equal(weights.layers[0].read(), weight.permute(0, 3, 1, 2).numpy())


def test_empty_files(tmp_path):
    weights = read(save({}, tmp_path / "model.safetensors"))
    assert (weights.layers, weights.parameters) == ((), 0)


# ---------------------------------------------------------------------------------------------------------------------
# Shards


@pytest.fixture
def sharded(tmp_path):
    tensors = {f"layer{i}.conv.weight": torch.randn(4, 4, 3, 3) for i in range(12)}
    names = list(tensors)
    weight_map = {}
    for shard in range(3):
        file = f"model-{shard + 1:05}-of-00003.safetensors"
        part = {name: tensors[name] for name in names[shard::3]}
        save(part, tmp_path / file)
        weight_map |= dict.fromkeys(part, file)
    index = {"metadata": {"total_size": 12 * 576}, "weight_map": weight_map}
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps(index, indent=2))
    return tmp_path, tensors


@pytest.mark.parametrize(
    "given",
    ["model.safetensors.index.json", *(f"model-{shard:05}-of-00003.safetensors" for shard in (1, 2, 3))],
)
def test_the_index_or_any_shard_means_the_whole_model(sharded, given):
    folder, tensors = sharded
    weights = read(folder / given)
    assert_same(weights, tensors)
    assert [layer.name for layer in weights.layers] == [name.removesuffix(".weight") for name in tensors]
    assert weights.framework == "pytorch"


def test_shards_are_found_without_an_index(sharded):
    folder, tensors = sharded
    (folder / "model.safetensors.index.json").unlink()
    assert_same(read(folder / "model-00002-of-00003.safetensors"), tensors)


def test_missing_and_damaged_shards(sharded):
    folder, _ = sharded
    second = folder / "model-00002-of-00003.safetensors"
    data = second.read_bytes()
    second.write_bytes(data[:-1])
    with pytest.raises(WeightFileError, match=r"model-00002-of-00003\.safetensors: .*truncated"):
        read(folder / "model-00001-of-00003.safetensors")
    second.unlink()
    for name in ("model.safetensors.index.json", "model-00001-of-00003.safetensors"):
        with pytest.raises(WeightFileError, match=r"1 of the 3 shards .* missing, first model-00002-of-00003"):
            read(folder / name)


def test_shards_that_are_links_out_of_the_folder_are_refused(sharded, tmp_path_factory):
    folder, _ = sharded
    second = folder / "model-00002-of-00003.safetensors"
    secret = second.rename(tmp_path_factory.mktemp("elsewhere") / "secret.safetensors")
    second.symlink_to(secret)
    for name in ("model.safetensors.index.json", "model-00001-of-00003.safetensors"):
        with pytest.raises(WeightFileError, match="outside of its folder; refused"):
            read(folder / name)


@pytest.mark.parametrize("name", ["../secret.safetensors", "/etc/passwd", "a/b.safetensors", "..", "a\\b.safetensors"])
def test_an_index_names_files_beside_it_only(sharded, name):
    folder, _ = sharded
    index = folder / "model.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": {"a.weight": name}}))
    with pytest.raises(WeightFileError, match=r"not a file beside it|expected shards that are safetensors"):
        read(index)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('{"weight_map": 3}', "damaged"),
        ('{"weight_map": {"a": 3}}', "damaged"),
        ('{"weight_map": ', "damaged"),
        ('{"weight_map": {"a": "model-00001-of-00002.h5"}}', "expected shards that are safetensors files"),
    ],
)
def test_damaged_indexes(tmp_path, text, message):
    path = tmp_path / "model.safetensors.index.json"
    path.write_text(text)
    with pytest.raises(WeightFileError, match=message):
        read(path)


# ---------------------------------------------------------------------------------------------------------------------
# Laziness


def test_memory_holds_one_tensor(tmp_path):
    size = 512 * 512 * 9 * 4
    path = save({f"{i}.weight": torch.zeros(512, 512, 3, 3) for i in range(8)}, tmp_path / "model.safetensors")
    tracemalloc.start()
    weights = read(path)
    assert tracemalloc.get_traced_memory()[1] < size / 4
    for layer in weights.layers:
        layer.read()
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 2.5 * size


def test_pytorch_is_not_imported(tmp_path):
    path = save({"a.weight": torch.ones(4, 4, 3, 3).bfloat16()}, tmp_path / "model.safetensors")
    program = (
        "import sys; from pathlib import Path; from cnnfilterdb.ingest.formats.safetensors import SafetensorsFormat\n"
        "print(SafetensorsFormat().read(Path(sys.argv[1])).layers[0].read().sum(), 'torch' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-P", "-c", program, str(path)], capture_output=True, text=True)
    assert done.stdout == "144.0 False\n", done.stderr


# ---------------------------------------------------------------------------------------------------------------------
# Damaged and hostile files


def write(path, header, data=b"", length=None):
    raw = header if isinstance(header, bytes) else json.dumps(header).encode()
    path.write_bytes((len(raw) if length is None else length).to_bytes(8, "little") + raw + data)
    return path


def entry(**changes):
    return {"dtype": "F32", "shape": [2, 2, 1, 1], "data_offsets": [0, 16]} | changes


def test_an_honest_crafted_file_can_be_read(tmp_path):
    path = write(tmp_path / "a.safetensors", {"a.weight": entry()}, bytes(16))
    assert_same(read(path), load_file(path))


@pytest.mark.parametrize(
    "changes",
    [
        {"data_offsets": [0, 12]},
        {"data_offsets": [8, 24]},
        {"data_offsets": [16, 0]},
        {"data_offsets": [-16, 0]},
        {"data_offsets": [0]},
        {"data_offsets": [0, 1 << 70]},
        {"data_offsets": [0.0, 16.0]},
        {"data_offsets": "ab"},
        {"shape": [2, 2, 1, 2]},
        {"shape": [2, 2, 1, -1]},
        {"shape": [1 << 40, 1 << 40, 3, 3]},
        {"shape": 4},
        {"shape": [True, 4]},
        {"dtype": 3},
        {"dtype": "F64"},
        {"dtype": ["F32"]},
    ],
)
def test_false_sizes(tmp_path, changes):
    path = write(tmp_path / "a.safetensors", {"a.weight": entry(**changes)}, bytes(16))
    with pytest.raises(SafetensorError):
        safe_open(path, "np")
    with pytest.raises(WeightFileError, match=r"a\.safetensors: a damaged safetensors file") as caught:
        read(path)
    assert "\n" not in str(caught.value)


def test_types_that_are_not_known_fail_when_they_are_read(tmp_path):
    header = {"a.weight": entry(dtype="F6_E2M3", data_offsets=[16, 28]), "b.weight": entry()}
    weights = read(write(tmp_path / "a.safetensors", header, bytes(28)))
    assert [layer.name for layer in weights.layers] == ["b"]


@pytest.mark.parametrize(
    ("header", "length"),
    [
        (b"{", None),
        (b"{}", 100),
        (b"{]", None),
        (b'{"a": 1}', None),
        (b'{"a": {}}', None),
        (b'{"a": ' + b"[" * 200_000, None),
        (b'{"a": ' + b"9" * 10_000 + b"}", None),
        (b'{"\xff": 1}', None),
    ],
)
def test_headers_that_are_none(tmp_path, header, length):
    path = write(tmp_path / "a.safetensors", header, length=length)
    start = time.process_time()
    with pytest.raises(WeightFileError) as caught:
        read(path)
    assert time.process_time() - start < 2
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("head", [b"", b"PK\x03\x04", b"\x80\x02", b"<html>", b"{}", b'{"a": 1}', b"\xff" * 8 + b"{"])
def test_what_is_something_else_does_not_match(head):
    assert not SafetensorsFormat().matches(Path("model.safetensors"), head)


@pytest.fixture(scope="module")
def example(tmp_path_factory):
    path = tmp_path_factory.mktemp("example") / "a.safetensors"
    save_numpy(
        {"a.weight": np.ones((2, 2, 3, 3), np.float32), "b.weight": np.ones((2, 2, 1, 1), ml_dtypes.bfloat16)}, path
    )
    return path.read_bytes()


def test_any_beginning_of_a_file_gives_one_clear_error(tmp_path, example):
    path = tmp_path / "a.safetensors"
    for end in range(9, len(example)):
        path.write_bytes(example[:end])
        with pytest.raises(WeightFileError):
            read(path)


@given(st.data())
@settings(max_examples=300)
def test_damage_anywhere_gives_a_result_or_our_error(tmp_path, example, draw):
    data = bytearray(example)
    for _ in range(draw.draw(st.integers(1, 3))):
        data[draw.draw(st.integers(0, 300))] = draw.draw(st.integers(0, 255))
    path = tmp_path / "a.safetensors"
    path.write_bytes(data)
    if not SafetensorsFormat().matches(path, bytes(data[:4096])):
        return
    try:
        layers = SafetensorsFormat().read(path).layers
    except CnnFilterDbError:
        return
    for layer in layers:
        assert layer.read().shape == layer.shape
