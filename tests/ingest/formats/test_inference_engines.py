"""Files of Core ML, ONNX Runtime, PaddlePaddle, ExecuTorch, Orbax, Zarr and torch.distributed, by their own programs.

tests/data/make_coreml_program.py, make_onnxruntime.py, make_paddle.py, make_executorch.py and make_zarr.py wrote all
but the last.
"""

from __future__ import annotations

import pickle
import shutil
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from cnnfilterdb.core.errors import WeightFileError
from cnnfilterdb.ingest import formats

_DATA = Path(__file__).parents[2] / "data"


def unzipped(name, folder):
    with zipfile.ZipFile(_DATA / name) as archive:
        archive.extractall(folder)
    return np.load(folder / "net.npz")


def plain(name, weight):
    """A weight as it is stored: that of the transposed layer with outputs first."""
    return weight.swapaxes(0, 1) if name.startswith("up") else weight


KINDS = {
    "stem": ("conv", 1, (1, 1), (1, 1)),
    "dw": ("depthwise", 8, (2, 2), (1, 1)),
    "up": ("transposed", 1, (1, 1), (1, 1)),
    "grouped": ("grouped", 2, (1, 1), (2, 1)),
}


def assert_layers(weights, truth, names=KINDS):
    assert weights.skipped == ()
    assert [layer.conv_depth for layer in weights.layers] == list(range(len(KINDS)))
    for layer, name in zip(weights.layers, names, strict=True):
        kind, groups, stride, dilation = KINDS[name]
        assert (layer.kind, layer.stride, layer.dilation) == (kind, stride, dilation)
        assert layer.groups == (layer.in_channels if kind == "depthwise" else groups)
        assert np.array_equal(layer.read(), plain(name, truth[name]))


# ---------------------------------------------------------------------------------------------------------------------
# Core ML


@pytest.mark.parametrize("variant", ["f32", "f16", "q8", "p4", "sparse"])
def test_programs_of_core_ml(tmp_path, variant):
    truth = unzipped("coreml_program.zip", tmp_path)
    expected = {name: truth[f"{'f32' if variant == 'f16' else variant}/{name}"] for name in KINDS}
    if variant == "f16":
        expected = {name: weight.astype(np.float16).astype(np.float32) for name, weight in expected.items()}
    assert_layers(formats.read(tmp_path / f"{variant}.mlpackage"), expected)


def test_a_program_of_core_ml_without_its_weights(tmp_path):
    unzipped("coreml_program.zip", tmp_path)
    folder = tmp_path / "f32.mlpackage" / "Data" / "com.apple.CoreML"
    (folder / "weights" / "weight.bin").write_bytes(b"\0" * 64)
    with pytest.raises(WeightFileError, match=r"after the end of @model_path/weights/weight\.bin: truncated"):
        formats.read(folder / "model.mlmodel").layers[0].read()
    (folder / "weights" / "weight.bin").unlink()
    with pytest.raises(WeightFileError, match=r"weight\.bin', which is missing"):
        formats.read(folder / "model.mlmodel").layers[0].read()
    with pytest.raises(WeightFileError, match=r"pass the \.mlpackage folder"):
        formats.read(tmp_path / "f32.mlpackage" / "Manifest.json")


# ---------------------------------------------------------------------------------------------------------------------
# ONNX Runtime


def test_onnx_runtime(tmp_path):
    truth = unzipped("onnxruntime.zip", tmp_path)
    assert_layers(formats.read(tmp_path / "net.ort"), truth)


def test_weights_in_the_layout_of_a_processor_are_reported(tmp_path):
    truth = unzipped("onnxruntime.zip", tmp_path)
    weights = formats.read(tmp_path / "blocked.ort")
    assert {entry.reason for entry in weights.skipped} == {
        "operator com.microsoft.nchwc.Conv, whose weight has an unknown layout"
    }
    for layer in weights.layers:
        assert np.array_equal(layer.read(), plain(layer.name, truth[layer.name]))


# ---------------------------------------------------------------------------------------------------------------------
# PaddlePaddle


@pytest.mark.parametrize("name", ["net.pdmodel", "net.pdiparams"])
def test_inference_models_of_paddle(tmp_path, name):
    truth = unzipped("paddle.zip", tmp_path)
    assert_layers(formats.read(tmp_path / name), truth)


def test_states_of_paddle(tmp_path):
    truth = unzipped("paddle.zip", tmp_path)
    layers = formats.read(tmp_path / "net.pdparams").layers
    assert [layer.name for layer in layers] == list(KINDS)
    for layer in layers:
        assert np.array_equal(layer.read(), plain(layer.name, truth[layer.name]))


def test_files_of_paddle_that_do_not_belong_together(tmp_path):
    unzipped("paddle.zip", tmp_path)
    parameters = tmp_path / "net.pdiparams"
    whole = parameters.read_bytes()
    parameters.write_bytes(whole[:-100])
    with pytest.raises(WeightFileError, match="truncated"):
        formats.read(parameters)
    parameters.write_bytes(whole + b"\0\0")
    with pytest.raises(WeightFileError, match=r"not that of the program: 2 bytes too long"):
        formats.read(parameters)
    parameters.unlink()
    with pytest.raises(WeightFileError, match=r"without net\.pdiparams; put it beside net\.pdmodel"):
        formats.read(tmp_path / "net.pdmodel")


# ---------------------------------------------------------------------------------------------------------------------
# ExecuTorch

LAYERS = {
    "stem": ("conv", 3, 1, (2, 2), (1, 1), 0),
    "dw": ("depthwise", 8, 8, (1, 1), (1, 2), 1),
    "grouped": ("grouped", 16, 2, (1, 1), (1, 1), 2),
    "side": ("conv", 16, 1, (1, 1), (1, 1), 2),
    "up": ("transposed", 24, 2, (2, 2), (1, 1), 3),
    "head": ("conv", 6, 1, (1, 1), (1, 1), 4),
}


def of_executorch(truth, variant):
    """The weights that a program should hold, with outputs first: those of the network, of the fusion of its
    normalisation, and of its quantiser."""
    found = {}
    for name in LAYERS:
        weight = truth["fused" if name == "stem" and "xnnpack" in variant else f"{name}.weight"]
        quantised = f"int8/{'x'.join(map(str, weight.shape))}"
        found[name] = truth[quantised] if "int8" in variant and quantised in truth else weight
    first, second = found["up"][:12], found["up"][12:]
    return found | {"up": np.concatenate([first.swapaxes(0, 1), second.swapaxes(0, 1)])}


@pytest.mark.parametrize("variant", ["portable", "segments", "int8", "xnnpack", "xnnpack_int8", "apart/net", "methods"])
def test_executorch(tmp_path, variant):
    truth = unzipped("executorch.zip", tmp_path)
    expected = of_executorch(truth, variant)
    weights = formats.read(tmp_path / f"{variant}.pte")
    assert (weights.format, weights.framework, weights.skipped) == ("executorch", "pytorch", ())
    found = {layer.shape: layer for layer in weights.layers}
    assert len(weights.layers) == len(LAYERS)
    for name, (kind, inputs, groups, stride, dilation, depth) in LAYERS.items():
        layer = found[expected[name].shape]
        assert np.array_equal(layer.read(), expected[name]), name
        assert (layer.kind, layer.in_channels, layer.groups) == (kind, inputs, groups)
        assert (layer.stride, layer.dilation, layer.conv_depth) == (stride, dilation, depth)
        assert not variant.startswith("apart") or layer.name == name
    if variant == "portable":
        scale = truth["norm.weight"] / np.sqrt(truth["norm.running_var"] + np.float32(1e-5))
        assert np.allclose(found[expected["stem"].shape].batch_norm(), scale)
        assert found[expected["head"].shape].batch_norm is None


def test_weights_of_executorch_in_a_file_of_their_own(tmp_path):
    truth = unzipped("executorch.zip", tmp_path)
    (alone,) = (tmp_path / "apart").glob("*.ptd")
    for layer in formats.read(alone).layers:
        assert np.array_equal(layer.read(), of_executorch(truth, "portable")[layer.name])
    alone.unlink()
    with pytest.raises(WeightFileError, match=r"'stem\.weight' is in another file, which is missing; put the \.ptd"):
        formats.read(tmp_path / "apart" / "net.pte")


def test_a_part_for_another_delegate_is_reported(tmp_path):
    unzipped("executorch.zip", tmp_path)
    path = tmp_path / "xnnpack.pte"
    path.write_bytes(path.read_bytes().replace(b"XnnpackBackend", b"XVulkanBackend"))
    weights = formats.read(path)
    assert weights.layers == ()
    assert [entry.name for entry in weights.skipped] == ["forward: delegate 0", "forward: delegate 1"]
    assert "compiled for XVulkanBackend, whose weights are not read" in weights.skipped[0].reason


# ---------------------------------------------------------------------------------------------------------------------
# torch.distributed


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    """A checkpoint of one process, and the weights in it."""
    from torch.distributed import checkpoint as distributed  # takes seconds

    folder = tmp_path_factory.mktemp("distributed") / "step_100"
    net = nn.Sequential(nn.Conv2d(3, 8, 3), nn.Conv2d(8, 16, 3))
    optimiser = torch.optim.Adam(net.parameters())
    net(torch.randn(1, 3, 8, 8)).sum().backward()
    optimiser.step()
    state = {"model": net.state_dict(), "optim": optimiser.state_dict(), "step": 100}
    distributed.save(state, checkpoint_id=folder, no_dist=True)
    return folder, {name: net[int(name)].weight.detach().numpy() for name in ("0", "1")}


def test_distributed_checkpoints(checkpoint):
    folder, truth = checkpoint
    weights = formats.read(folder)
    assert (weights.format, [layer.name for layer in weights.layers]) == ("torch-distributed", ["0", "1"])
    for layer in weights.layers:
        assert np.array_equal(layer.read(), truth[layer.name])
    assert [(entry.name, entry.reason) for entry in weights.skipped] == [("optim", "state of the training")]


def test_a_distributed_checkpoint_is_complete_or_refused(checkpoint, tmp_path):
    folder = tmp_path / "a"
    shutil.copytree(checkpoint[0], folder)
    with pytest.raises(WeightFileError, match=r"a part of a distributed checkpoint of PyTorch.*pass its folder"):
        formats.read(folder / "__0_0.distcp")
    (folder / "__0_0.distcp").unlink()
    with pytest.raises(WeightFileError, match=r"'__0_0\.distcp', which is missing"):
        formats.read(folder)


def split(folder, parts):
    """Save a kernel in parts along its first axis, as processes that share it do, with PyTorch's own classes."""
    from torch.distributed.checkpoint.filesystem import _StorageInfo
    from torch.distributed.checkpoint.metadata import (
        ChunkStorageMetadata,
        Metadata,
        MetadataIndex,
        TensorProperties,
        TensorStorageMetadata,
    )

    folder.mkdir()
    whole = torch.cat([tensor for _, tensor in parts])
    chunks, places = [], {}
    for number, (start, tensor) in enumerate(parts):
        file = folder / f"__{number}_0.distcp"
        torch.save(tensor, file)
        offsets = torch.Size([start, 0, 0, 0])
        chunks.append(ChunkStorageMetadata(offsets=offsets, sizes=tensor.shape))
        places[MetadataIndex("conv.weight", offsets)] = _StorageInfo(file.name, 0, file.stat().st_size)
    stored = TensorStorageMetadata(TensorProperties(), whole.shape, chunks)
    metadata = Metadata({"conv.weight": stored}, {"conv.weight": ("conv.weight",)}, places)
    (folder / ".metadata").write_bytes(pickle.dumps(metadata))
    return whole


def test_a_tensor_in_parts_is_joined(tmp_path):
    first, second = torch.randn(5, 3, 3, 3), torch.randn(3, 3, 3, 3)
    whole = split(tmp_path / "a", [(0, first), (5, second)])
    (layer,) = formats.read(tmp_path / "a").layers
    assert np.array_equal(layer.read(), whole.numpy())
    split(tmp_path / "b", [(0, first), (6, second)])
    with pytest.raises(WeightFileError, match="do not make a tensor of shape"):
        formats.read(tmp_path / "b")


# ---------------------------------------------------------------------------------------------------------------------
# Zarr and Orbax


@pytest.fixture
def folders(tmp_path):
    """Checkpoints of Orbax and folders of Zarr (tests/data/make_zarr.py), and the kernels in them."""
    return tmp_path, unzipped("zarr.zip", tmp_path)


@pytest.mark.parametrize("name", ["ocdbt", "ocdbt3", "files", "files3", "steps/7", "zarr2", "zarr3"])
def test_zarr_and_orbax(folders, name):
    folder, truth = folders
    weights = formats.read(folder / name)
    assert weights.format == ("zarr" if name.startswith("zarr") else "orbax")
    assert [layer.name for layer in weights.layers] == ["Conv_0", "Conv_1"]
    left_out = [(entry.name, entry.reason) for entry in weights.skipped]
    assert left_out == ([] if name.startswith("zarr") else [("opt_state", "state of the training")])
    for layer in weights.layers:
        assert np.array_equal(layer.read(), truth[layer.name])


def test_chunks_that_are_missing_have_the_fill_value(folders):
    folder, truth = folders
    (folder / "zarr2" / "Conv_0" / "kernel" / "0.0.0.0").unlink()
    first = formats.read(folder / "zarr2").layers[0]
    expected = truth["Conv_0"].copy()
    expected[:2, :2, :2, :2] = 0
    assert np.array_equal(first.read(), expected)


@pytest.mark.parametrize("codec", ["blosc", "blosc_zstd", "blosc_3", "lz4", "zlib", "bz2", "lzma"])
def test_codecs(folders, codec):
    folder, truth = folders
    weights = formats.read(folder / "codecs" / codec)
    assert weights.skipped == ()
    assert {layer.name for layer in weights.layers} == set(truth)
    for layer in weights.layers:
        assert np.array_equal(layer.read(), truth[layer.name])


def test_codecs_that_are_not_read_are_reported(folders, monkeypatch):
    folder, _ = folders
    path = folder / "zarr2" / "Conv_1" / "kernel" / ".zarray"
    path.write_text(path.read_text().replace('"gzip"', '"zfpy"'))
    (entry,) = formats.read(folder / "zarr2").skipped
    assert (entry.name, entry.reason) == (
        "Conv_1/kernel", "chunks with the codec zfpy, which is not read; save it with Zstandard or gzip"
    )  # fmt: skip
    monkeypatch.setattr("cnnfilterdb.ingest.formats.codecs.find_spec", lambda name: None)
    weights = formats.read(folder / "codecs" / "blosc")
    assert {entry.reason for entry in weights.skipped} == {
        "chunks with the codec Blosc, which needs numcodecs: pip install 'cnnfilterdb[zarr]'"
    }


@pytest.mark.parametrize("codec", ["blosc", "lz4"])
def test_a_chunk_that_states_an_enormous_length_is_refused(folders, codec):
    folder, _ = folders
    path = folder / "codecs" / codec / "Conv_0" / "kernel" / "0.0.0.0"
    place = 4 if codec == "blosc" else 0
    data = path.read_bytes()
    path.write_bytes(data[:place] + b"\xff\xff\xff\x7f" + data[place + 4 :])
    layer = formats.read(folder / "codecs" / codec).layers[0]
    with pytest.raises(WeightFileError, match=r"more than .* bytes of memory"):
        layer.read()


def test_a_checkpoint_of_orbax_without_its_files(folders):
    folder, _ = folders
    (data,) = (folder / "ocdbt" / "d").iterdir()
    data.unlink()
    with pytest.raises(WeightFileError, match="which is missing"):
        formats.read(folder / "ocdbt")


# ---------------------------------------------------------------------------------------------------------------------
# Damage


def intact(folder):
    """Pairs (model, the one of its files to damage), each in a folder of its own."""

    def inside(name, archive):
        unzipped(archive, folder / name)
        return folder / name

    home = inside("ort", "onnxruntime.zip")
    yield home / "net.ort", home / "net.ort"
    for damaged in ("net.pdmodel", "net.pdiparams"):
        home = inside(damaged, "paddle.zip")
        yield home / "net.pdmodel", home / damaged
    packages = inside("coreml", "coreml_program.zip")
    for name in ("q8", "sparse"):
        home = packages / f"{name}.mlpackage" / "Data" / "com.apple.CoreML"
        for damaged in ("model.mlmodel", "weights/weight.bin"):
            yield home / "model.mlmodel", home / damaged
    home = inside("executorch", "executorch.zip")
    for name in ("portable.pte", "segments.pte", "int8.pte", "xnnpack.pte", "xnnpack_int8.pte"):
        yield home / name, home / name
    for damaged in ("net.pte", "_default_external_constant.ptd"):
        yield home / "apart" / "net.pte", home / "apart" / damaged
    home = inside("zarr", "zarr.zip")
    mains = {"ocdbt": "manifest.ocdbt", "files": "_METADATA", "files3": "_METADATA", "zarr3": "zarr.json"}
    for name, main in mains.items():
        files = [file for file in sorted((home / name).rglob("*")) if file.is_file() and file.stat().st_size > 100]
        for file in [one for one in files if "kernel" in str(one) or name == "ocdbt"][:4]:
            yield home / name / main, file
    for codec in ("blosc", "lz4", "bz2"):
        group = home / "codecs" / codec
        yield group / ".zgroup", group / "Conv_0" / "kernel" / "0.0.0.0"


def test_damaged_files_are_read_or_refused(tmp_path, checkpoint, survives_damage):
    shutil.copytree(checkpoint[0], tmp_path / "distributed")
    metadata = tmp_path / "distributed" / ".metadata"
    pairs = [(metadata, metadata), (metadata, tmp_path / "distributed" / "__0_0.distcp"), *intact(tmp_path)]
    survives_damage(pairs, 30)
