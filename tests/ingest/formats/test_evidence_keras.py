"""What shows that a weight of Keras is a kernel, once, and whole: classes, biases, wrappers, shards."""

from __future__ import annotations

import json
import zipfile

import h5py
import ml_dtypes
import numpy as np
import pytest

from cnnfilterdb.core.errors import WeightFileError
from cnnfilterdb.ingest import formats

rng = np.random.default_rng(0)


def weight(*shape):
    return rng.standard_normal(shape).astype(np.float32)


def conv(name, filters, **more):
    return "Conv2D", {"name": name, "filters": filters, "kernel_size": [3, 3], **more}


def numbered(path, groups):
    """A file of Keras 3; groups: {path: (label, arrays)}."""
    with h5py.File(path, "w") as file:
        for group, (label, arrays) in groups.items():
            inside = file.create_group(f"{group}/vars")
            inside.attrs["name"] = label
            for number, array in enumerate(arrays):
                inside[str(number)] = array
    return path


def archive(folder, layers, groups):
    entries = [{"class_name": name, "config": config} for name, config in layers]
    config = {"class_name": "Sequential", "config": {"name": "net", "layers": entries}}
    numbered(folder / "model.weights.h5", groups)
    with zipfile.ZipFile(folder / "net.keras", "w") as file:
        file.writestr("config.json", json.dumps(config))
        file.write(folder / "model.weights.h5", "model.weights.h5")
    (folder / "model.weights.h5").unlink()
    return folder / "net.keras"


@pytest.mark.parametrize("shape", [(1, 16, 16, 32), (16, 16, 32, 1), (1, 1, 1, 32), (32, 3, 3, 32)])
@pytest.mark.parametrize("whole", [True, False])
def test_parameters_of_custom_layers_need_evidence(tmp_path, shape, whole):
    stem, own = weight(3, 3, 3, 32), weight(*shape)
    groups = {"layers/conv2d": ("stem", [stem, weight(32)]), "layers/pos_emb": ("pe", [own])}
    if whole:
        path = archive(tmp_path, [conv("stem", 32), ("PosEmb", {"name": "pe"})], groups)
    else:
        path = numbered(tmp_path / "net.weights.h5", groups)
    weights = formats.read(path)
    assert [layer.name for layer in weights.layers] == ["stem"]
    assert [entry.name for entry in weights.skipped] == ["pe"]
    assert str(shape) in weights.skipped[0].reason


@pytest.mark.parametrize(("name", "bias"), [("MyConvBlock", False), ("Block", True)])
def test_custom_layers_with_evidence_are_read(tmp_path, name, bias):
    kernel = weight(3, 3, 8, 16)
    groups = {"layers/own": ("own", [kernel, weight(16)] if bias else [kernel])}
    config = [(name, {"name": "own"})]
    groups = {f"layers/{'my_conv_block' if name == 'MyConvBlock' else 'block'}": groups["layers/own"]}
    (layer,) = formats.read(archive(tmp_path, config, groups)).layers
    assert np.array_equal(layer.read(), kernel.transpose(3, 2, 0, 1))


@pytest.mark.parametrize("whole", [True, False])
def test_a_wrapper_and_what_it_wraps_are_one_layer(tmp_path, whole):
    kernel = weight(3, 3, 3, 8)
    groups = {
        "layers/spectral_normalization": ("sn", [kernel, weight(1, 8)]),
        "layers/spectral_normalization/layer": ("c", [kernel, weight(8)]),
    }
    inner = {"class_name": "Conv2D", "config": conv("c", 8)[1]}
    if whole:
        path = archive(tmp_path, [("SpectralNormalization", {"name": "sn", "layer": inner})], groups)
    else:
        path = numbered(tmp_path / "net.weights.h5", groups)
    weights = formats.read(path)
    (layer,) = weights.layers
    assert np.array_equal(layer.read(), kernel.transpose(3, 2, 0, 1))
    assert "which is read from that layer" in weights.skipped[0].reason


@pytest.mark.parametrize("how", ["keras", "weights", "listed"])
def test_recurrent_convolutions_are_reported_and_not_stored(tmp_path, how):
    parts = [weight(3, 3, 8, 16), weight(3, 3, 4, 16), weight(16)]
    if how == "listed":
        path = tmp_path / "net.h5"
        with h5py.File(path, "w") as file:
            file.attrs["layer_names"] = [b"mine"]
            group = file.create_group("mine")
            group.attrs["weight_names"] = [b"mine/kernel:0", b"mine/recurrent_kernel:0", b"mine/bias:0"]
            for name, array in zip(("kernel:0", "recurrent_kernel:0", "bias:0"), parts, strict=True):
                group[f"mine/{name}"] = array
    else:
        groups = {"layers/conv_lstm2d/cell": ("conv_lstm_cell", parts)}
        if how == "keras":
            path = archive(tmp_path, [("ConvLSTM2D", {"name": "lstm", "filters": 4})], groups)
        else:
            path = numbered(tmp_path / "net.weights.h5", groups)
    weights = formats.read(path)
    assert weights.layers == ()
    assert [entry.reason for entry in weights.skipped] == ["a recurrent layer, whose kernels are those of four gates"]


def test_theano_turns_the_kernels_of_plain_convolutions_only(tmp_path):
    kernels = {"c/kernel:0": weight(3, 3, 3, 8), "d/depthwise_kernel:0": weight(3, 3, 8, 1)}
    depthwise = {"kernel_size": [3, 3], "depth_multiplier": 1}
    entries = [conv("c", 8), ("DepthwiseConv2D", {"name": "d", **depthwise})]
    config = {"class_name": "Sequential", "config": [{"class_name": a, "config": b} for a, b in entries]}
    path = tmp_path / "net.h5"
    with h5py.File(path, "w") as file:
        file.attrs["model_config"] = json.dumps(config)
        root = file.create_group("model_weights")
        root.attrs["backend"], root.attrs["layer_names"] = b"theano", [b"c", b"d"]
        for name, kernel in kernels.items():
            root.create_group(name[0]).attrs["weight_names"] = [name.encode()]
            root[f"{name[0]}/{name}"] = kernel
    plain, depthwise_layer = formats.read(path).layers
    assert np.array_equal(plain.read(), kernels["c/kernel:0"].transpose(3, 2, 0, 1)[:, :, ::-1, ::-1])
    assert np.array_equal(depthwise_layer.read(), kernels["d/depthwise_kernel:0"].transpose(2, 3, 0, 1))


# ---------------------------------------------------------------------------------------------------------------------
# Shards


@pytest.fixture(params=[False, True], ids=["one shard each", "lists of shards"])
def shards(tmp_path, request):
    kernels = [weight(3, 3, 3, 8), weight(3, 3, 8, 8), weight(3, 3, 8, 4)]
    names = [f"net_{number:05d}.weights.h5" for number in range(3)]
    groups = ["layers/conv2d", "layers/conv2d_1", "layers/conv2d_2"]
    for name, group, kernel in zip(names, groups, kernels, strict=True):
        numbered(tmp_path / name, {group: (group.rpartition("/")[2], [kernel])})
    index = {
        "metadata": {"total_size": 4 * sum(kernel.size for kernel in kernels)},
        "weight_map": {
            f"/{group}/vars": [name] if request.param else name for group, name in zip(groups, names, strict=True)
        },
    }
    (tmp_path / "net.weights.json").write_text(json.dumps(index))
    return tmp_path, kernels


@pytest.mark.parametrize("name", ["net.weights.json", "net_00000.weights.h5", "net_00002.weights.h5"])
def test_shards_are_read_as_one_model(shards, name):
    folder, kernels = shards
    layers = formats.read(folder / name).layers
    assert [layer.name for layer in layers] == ["conv2d", "conv2d_1", "conv2d_2"]
    for layer, kernel in zip(layers, kernels, strict=True):
        assert np.array_equal(layer.read(), kernel.transpose(3, 2, 0, 1))


def test_missing_shards_are_named(shards):
    folder, _ = shards
    (folder / "net_00001.weights.h5").unlink()
    with pytest.raises(WeightFileError, match=r"'net_00001\.weights\.h5', which is missing"):
        formats.read(folder / "net.weights.json")
    (folder / "net.weights.json").unlink()
    with pytest.raises(WeightFileError, match="one shard of a model in several"):
        formats.read(folder / "net_00002.weights.h5")
    assert "one shard of a larger model" in formats.read(folder / "net_00000.weights.h5").skipped[0].reason


def test_shards_that_the_index_does_not_list_in_full(shards):
    folder, _ = shards
    index = json.loads((folder / "net.weights.json").read_text())
    del index["weight_map"]["/layers/conv2d_2/vars"]
    (folder / "net_00002.weights.h5").rename(folder / "elsewhere.h5")
    (folder / "net.weights.json").write_text(json.dumps(index))
    with pytest.raises(WeightFileError, match=r"hold 3,168 bytes of weights, 4,320 are expected"):
        formats.read(folder / "net.weights.json")


def listed(path, layers, config=None):
    """A file of Keras 2, and of Keras 3 as .h5; layers: {layer: {path of a weight: array}}."""
    with h5py.File(path, "w") as file:
        if config is not None:
            file.attrs["model_config"] = json.dumps(config)
        group = file.create_group("model_weights")
        group.attrs["layer_names"], group.attrs["backend"] = list(layers), "tensorflow"
        for layer, weights in layers.items():
            own = group.create_group(layer)
            own.attrs["weight_names"] = list(weights)
            for name, array in weights.items():
                own[name] = array
    return path


def configured(*layers):
    entries = [{"class_name": name, "config": config} for name, config in layers]
    return {"class_name": "Sequential", "config": {"name": "net", "layers": entries}}


def test_layers_within_a_layer_of_the_users_own(tmp_path):
    """Keras 3 writes all weights of a layer of an unknown class in one group, with the names of its parts."""
    first, second, depthwise = weight(3, 3, 3, 8), weight(3, 3, 8, 8), weight(3, 3, 8, 1)
    weights = {
        "net/block/pos": weight(1, 16, 16, 8),
        "net/block/conv2d/kernel": first,
        "net/block/conv2d/bias": weight(8),
        "net/block/depthwise_conv2d/kernel": depthwise,
        "net/block/conv2d_1/kernel": second,
        "net/block/conv2d_1/bias": weight(8),
    }
    path = listed(tmp_path / "net.h5", {"block": weights}, configured(("Block", {"name": "block"})))
    found = formats.read(path)
    layers = {layer.name: layer for layer in found.layers}
    assert list(layers) == ["block/conv2d", "block/depthwise_conv2d", "block/conv2d_1"]
    assert np.array_equal(layers["block/conv2d"].read(), first.transpose(3, 2, 0, 1))
    assert np.array_equal(layers["block/conv2d_1"].read(), second.transpose(3, 2, 0, 1))
    assert np.array_equal(layers["block/depthwise_conv2d"].read(), depthwise.transpose(2, 3, 0, 1))
    assert len(found.skipped) == 1


def test_adapters_are_reported_and_the_base_is_read(tmp_path):
    kernel = weight(3, 3, 3, 8)
    weights = {
        "c/kernel": kernel,
        "c/bias": weight(8),
        "c/lora_kernel_a": weight(3, 3, 3, 2),
        "c/lora_kernel_b": weight(2, 8),
    }
    found = formats.read(listed(tmp_path / "net.h5", {"c": weights}, configured(conv("c", 8))))
    assert [np.array_equal(layer.read(), kernel.transpose(3, 2, 0, 1)) for layer in found.layers] == [True]
    assert {entry.name for entry in found.skipped} == {"c/lora_kernel_a", "c/lora_kernel_b"}


def test_bfloat16_in_a_file_that_does_not_say_so(tmp_path):
    """Keras 3 writes it into .h5 as two bytes without a type."""
    kernel = weight(3, 3, 3, 8).astype(ml_dtypes.bfloat16)
    weights = {"c/kernel": kernel.view("V2"), "c/bias": np.zeros(8, "V2")}
    (layer,) = formats.read(listed(tmp_path / "net.h5", {"c": weights}, configured(conv("c", 8)))).layers
    assert np.array_equal(layer.read(), kernel.astype(np.float32).transpose(3, 2, 0, 1))
