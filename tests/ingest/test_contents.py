"""The contents of a weight file add up to what another program finds in it, whatever is read, left out or beside."""

import json
import math
import zipfile
from collections import Counter
from pathlib import Path

import h5py
import numpy as np
import onnx
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import helper, numpy_helper
from safetensors import safe_open
from safetensors.numpy import save_file

import cnnfilterdb
from cnnfilterdb.ingest import formats
from cnnfilterdb.ingest.network.contents import CLASSES, CONTENTS, added, contents_line, from_text
from cnnfilterdb.ingest.network.memory import weights_from_module

#: A layer of each kind: the arrays that it stores, by the ends of their names.
LAYERS = {
    "conv": {"weight": (8, 4, 3, 3), "bias": (8,)},
    "pointwise": {"weight": (6, 8, 1, 1)},
    "conv3d": {"weight": (4, 2, 3, 3, 3), "bias": (4,)},
    "linear": {"weight": (10, 6), "bias": (10,)},
    "norm": {"weight": (8,), "bias": (8,), "running_mean": (8,), "running_var": (8,), "num_batches_tracked": ()},
    "position": {"tokens": (1, 9, 6)},
    "grn": {"weight": (1, 1, 1, 6), "bias": (1, 1, 1, 6)},
}
#: What becomes of the arrays of a layer.
EXPECTED = {
    "conv": {"weight": "kernels", "bias": "vectors"},
    "pointwise": {"weight": "kernels"},
    "conv3d": {"weight": "excluded", "bias": "vectors"},
    "linear": {"weight": "matrices", "bias": "vectors"},
    "norm": {
        "weight": "vectors",
        "bias": "vectors",
        **dict.fromkeys(("running_mean", "running_var", "num_batches_tracked"), "buffers"),
    },
    "position": {"tokens": "others"},
    "grn": {"weight": "excluded", "bias": "excluded"},
}


def arrays_of(kinds):
    """The arrays of a network of such layers, by name."""
    random = np.random.default_rng(len(kinds))
    return {
        f"{kind}{number}.{leaf}": np.asarray(random.standard_normal(shape), np.int64 if leaf[:3] == "num" else "f4")
        for number, kind in enumerate(("conv", *kinds))
        for leaf, shape in LAYERS[kind].items()
    }


def expected_of(kinds):
    found = Counter()
    numbers = Counter()
    for kind in ("conv", *kinds):
        for leaf, shape in LAYERS[kind].items():
            what = EXPECTED[kind][leaf]
            found[what] += 1
            numbers[what] += math.prod(shape)
    return {what: (found[what], numbers[what]) for what in found}


def write_torch(path, arrays):
    state = {name: torch.from_numpy(np.array(array)) for name, array in arrays.items()}
    moments = {number: {"exp_avg": torch.zeros_like(value)} for number, value in enumerate(state.values())}
    torch.save({"state_dict": state, "optimizer": {"state": moments, "param_groups": []}, "epoch": 3}, path)


def sizes_torch(path):
    content = torch.load(path, weights_only=True)
    parts = [*content["state_dict"].values(), *(one["exp_avg"] for one in content["optimizer"]["state"].values())]
    return [part.numel() for part in parts]


def write_safetensors(path, arrays):
    save_file({name: np.asarray(array) for name, array in arrays.items()}, path, metadata={"format": "pt"})


def sizes_safetensors(path):
    with safe_open(path, "numpy") as file:
        return [file.get_tensor(name).size for name in file.offset_keys()]


def write_npz(path, arrays):
    np.savez(path, **arrays)


def sizes_npz(path):
    with np.load(path) as file:
        return [file[name].size for name in file.files]


def write_onnx(path, arrays):
    nodes = [
        helper.make_node("Conv", ["x", name], [f"y{number}"])
        for number, (name, array) in enumerate(arrays.items())
        if name.startswith(("conv", "pointwise")) and array.ndim > 3
    ]
    tensors = [numpy_helper.from_array(np.array(array), name) for name, array in arrays.items()]
    x = helper.make_tensor_value_info("x", onnx.TensorProto.FLOAT, None)
    outputs = [helper.make_tensor_value_info(node.output[0], onnx.TensorProto.FLOAT, None) for node in nodes]
    onnx.save(helper.make_model(helper.make_graph(nodes, "net", [x], outputs, tensors)), path)


def sizes_onnx(path):
    return [numpy_helper.to_array(one).size for one in onnx.load(path).graph.initializer]


def write_keras(path, arrays):
    """The weights of the layers that Keras has, as Keras 2 saves a model, with the state of its training."""
    roles = {
        "weight": "kernel:0",
        "bias": "bias:0",
        "running_mean": "moving_mean:0",
        "running_var": "moving_variance:0",
    }
    roles |= {"num_batches_tracked": "count:0", "tokens": "tokens:0"}
    with h5py.File(path, "w") as file:
        root = file.create_group("model_weights")
        names = list(dict.fromkeys(name.partition(".")[0] for name in arrays))
        root.attrs["layer_names"] = [name.encode() for name in names]
        for layer in names:
            group = root.create_group(layer)
            stored = {}
            for name, array in arrays.items():
                if name.startswith(f"{layer}."):
                    turned = (
                        np.moveaxis(array, (0, 1), (-1, -2)) if array.ndim in (4, 5) and "grn" not in name else array
                    )
                    stored[f"{layer}/{roles[name.rpartition('.')[2]]}"] = turned
            group.attrs["weight_names"] = [name.encode() for name in stored]
            for name, array in stored.items():
                group[name] = array
        file["optimizer_weights/Adam/m:0"] = np.ones((3, 3, 4, 8), np.float32)


def sizes_keras(path):
    found = []
    with h5py.File(path) as file:
        file.visititems(lambda _, node: found.append(node.size) if isinstance(node, h5py.Dataset) else None)
    return found


FORMATS = {
    "net.pt": (write_torch, sizes_torch),
    "net.safetensors": (write_safetensors, sizes_safetensors),
    "net.npz": (write_npz, sizes_npz),
    "net.onnx": (write_onnx, sizes_onnx),
    "net.h5": (write_keras, sizes_keras),
}


@pytest.mark.parametrize("name", FORMATS)
@settings(max_examples=20)
@given(kinds=st.lists(st.sampled_from(sorted(LAYERS)), max_size=6))
def test_every_number_of_a_file_is_in_one_class(tmp_path, name, kinds):
    write, sizes = FORMATS[name]
    arrays = arrays_of(kinds)
    path = tmp_path / name
    write(path, arrays)
    weights = formats.read(path)
    found, held = weights.contents, sizes(path)
    assert list(found) == [what for what in CLASSES if what in found]
    assert sum(tensors for tensors, _ in found.values()) == len(held)
    assert sum(numbers for _, numbers in found.values()) == sum(held)
    # The kernels are those that were read
    assert found["kernels"] == (len(weights.layers), sum(math.prod(layer.shape) for layer in weights.layers))
    if name in ("net.pt", "net.safetensors", "net.npz"):
        beside = {"beside": (len(arrays), sum(one.size for one in arrays.values()))} if name == "net.pt" else {}
        assert found == {what: n for what, n in (expected_of(kinds) | beside).items() if what in found}
        assert found.keys() == (expected_of(kinds) | beside).keys()


@pytest.mark.parametrize("archive", ["openvino", "coreml", "coreml_program", "executorch"])
def test_the_counts_are_those_of_the_program_of_the_format(tmp_path, archive):
    """Tensors and numbers of each file as OpenVINO, coremltools and ExecuTorch count them (tests/data/make_*.py)."""
    with zipfile.ZipFile(Path(__file__).parents[1] / "data" / f"{archive}.zip") as stored:
        stored.extractall(tmp_path)
    counts = json.loads((tmp_path / "counts.json").read_text())
    for name, counted in counts.items():
        found = formats.read(tmp_path / name)
        assert (sum(one for one, _ in found.contents.values()), sum(one for _, one in found.contents.values())) == (
            counted[0],
            counted[1],
        ), name
        assert found.contents["kernels"][0] >= len(found.layers)


def test_all_parts_of_a_composed_weight_are_kernels():
    conv = torch.nn.utils.parametrizations.weight_norm(torch.nn.Conv2d(4, 8, 3, bias=False))
    spectral = torch.nn.utils.parametrizations.spectral_norm(torch.nn.Conv2d(8, 8, 3))
    module = torch.nn.Sequential(conv, spectral, torch.nn.Flatten(), torch.nn.Linear(8, 2, bias=False))
    found = weights_from_module(module)
    held = [one.numel() for one in module.state_dict().values()]
    assert found.contents == {
        "kernels": (5, 4 * 8 * 9 + 8 + 8 * 8 * 9 + 8 + 72),
        "matrices": (1, 16),
        "vectors": (1, 8),
    }
    assert sum(numbers for _, numbers in found.contents.values()) == sum(held)


def test_tied_weights_count_once(tmp_path):
    conv = torch.nn.Conv2d(4, 4, 3)
    torch.save(torch.nn.Sequential(conv, conv).state_dict(), tmp_path / "net.pt")
    assert formats.read(tmp_path / "net.pt").contents == {"kernels": (1, 144), "vectors": (1, 4)}


def test_networks_that_are_not_selected_are_excluded(tmp_path):
    arrays = {f"{part}.{layer}.weight": np.ones((4, 4, 3, 3), "f4") for part in ("g", "d") for layer in ("a", "b")}
    save_file(arrays, tmp_path / "net.safetensors", metadata={"format": "pt"})
    both = formats.read(tmp_path / "net.safetensors").contents
    one = formats.read(tmp_path / "net.safetensors", network="g").contents
    assert both == {"kernels": (4, 576)}
    assert sum(n for n, _ in one.values()) == 4
    assert one["kernels"] == (2, 288)


def test_merged_adapters_are_parts_of_their_layers(tmp_path):
    arrays = {"c.weight": (8, 4, 3, 3), "c.lora_A.weight": (2, 4, 3, 3), "c.lora_B.weight": (8, 2, 1, 1)}
    save_file({name: np.ones(shape, "f4") for name, shape in arrays.items()}, tmp_path / "net.safetensors")
    assert formats.read(tmp_path / "net.safetensors").contents == {"kernels": (1, 288), "excluded": (2, 88)}
    assert formats.read(tmp_path / "net.safetensors", merge_adapters=1.0).contents == {"kernels": (3, 376)}


def test_contents_of_a_database(tmp_path):
    write_safetensors(tmp_path / "a.safetensors", arrays_of(["conv3d", "linear", "norm"]))
    expected = expected_of(["conv3d", "linear", "norm"])
    with cnnfilterdb.create(tmp_path / "db") as db:
        db.add(tmp_path / "a.safetensors", "a")
        db.ingest("files", [str(tmp_path / "a.safetensors")], allow_untrained=True)
        stored = [from_text(dict(original)[CONTENTS]) for original in db.models()["original"]]
    assert stored == [expected, expected]
    assert "1 excluded (216)" in contents_line(expected)
    assert "of 22 tensors" in contents_line(added(*stored))


@pytest.mark.parametrize("text", [None, "", "[]", "{", '{"kernels": 3}', '{"kernels": ["a", "b"]}', "7"])
def test_contents_of_others_are_unknown(text):
    assert from_text(text) == {}
    assert contents_line({}) == ""
