"""Files of Core ML, ONNX Runtime, PaddlePaddle, Orbax, Zarr and torch.distributed, written by their own programs.

tests/data/make_coreml_program.py, make_onnxruntime.py, make_paddle.py and make_zarr.py wrote all but the last.
"""

from __future__ import annotations

import pickle
import shutil
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.distributed.checkpoint as distributed
from torch import nn

from cnnfilterdb.errors import WeightFileError
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


@pytest.mark.parametrize("variant", ["f32", "f16", "q8", "p4"])
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
# torch.distributed


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    """A checkpoint of one process, and the weights in it."""
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


def test_damaged_files_are_read_or_refused(tmp_path, checkpoint, survives_damage):
    unzipped("onnxruntime.zip", tmp_path)
    unzipped("paddle.zip", tmp_path)
    unzipped("coreml_program.zip", tmp_path)
    shutil.copytree(checkpoint[0], tmp_path / "distributed")
    program = tmp_path / "q8.mlpackage" / "Data" / "com.apple.CoreML"
    model, metadata = program / "model.mlmodel", tmp_path / "distributed" / ".metadata"
    pairs = [
        (tmp_path / "net.ort", tmp_path / "net.ort"),
        (tmp_path / "net.pdmodel", tmp_path / "net.pdmodel"),
        (tmp_path / "net.pdmodel", tmp_path / "net.pdiparams"),
        (model, model),
        (model, program / "weights" / "weight.bin"),
        (metadata, metadata),
        (metadata, tmp_path / "distributed" / "__0_0.distcp"),
    ]
    survives_damage(pairs, 40)


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


def test_arrays_with_other_codecs_are_reported(folders):
    folder, _ = folders
    path = folder / "zarr2" / "Conv_1" / "kernel" / ".zarray"
    path.write_text(path.read_text().replace('"gzip"', '"blosc"'))
    weights = formats.read(folder / "zarr2")
    assert [(entry.name, "Blosc" in entry.reason) for entry in weights.skipped] == [("Conv_1/kernel", True)]


def test_a_checkpoint_of_orbax_without_its_files(folders):
    folder, _ = folders
    (data,) = (folder / "ocdbt" / "d").iterdir()
    data.unlink()
    with pytest.raises(WeightFileError, match="which is missing"):
        formats.read(folder / "ocdbt")


def test_damaged_folders_are_read_or_refused(folders, survives_damage):
    folder, _ = folders
    pairs = []
    mains = {"ocdbt": "manifest.ocdbt", "files": "_METADATA", "files3": "_METADATA", "zarr3": "zarr.json"}
    for name, main in mains.items():
        inside = [file for file in sorted((folder / name).rglob("*")) if file.is_file() and file.stat().st_size > 100]
        pairs += [(folder / name / main, file) for file in inside if "kernel" in str(file) or name == "ocdbt"]
    survives_damage(pairs[:16], 20)
