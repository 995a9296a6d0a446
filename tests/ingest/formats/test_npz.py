import io
import os
import pickle
import zipfile

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cnnfilterdb.core.errors import UnsafeFileError, WeightFileError
from cnnfilterdb.ingest import formats
from cnnfilterdb.ingest.network import judge

QUICK = settings(max_examples=60)


def array(*shape, seed=0):
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


@pytest.fixture
def saved(tmp_path):
    """Writes arrays with NumPy and reads the file."""

    def save(arrays, compressed=False):
        path = tmp_path / "weights.npz"
        (np.savez_compressed if compressed else np.savez)(path, **arrays)
        return formats.read(path)

    return save


@pytest.mark.parametrize("compressed", [True, False])
def test_chainer(saved, compressed):
    arrays = {
        "conv3/W": array(8, 16, 4, 4),
        "conv3/b": array(16),
        "conv2/W": array(8, 4, 3, 3),
        "conv2/b": array(8),
        "conv1/W": array(4, 3, 3, 3),
        "conv1/b": array(4),
        "fc/W": array(10, 8),
        "fc/b": array(10),
    }
    weights = saved(arrays, compressed)
    assert (weights.format, weights.framework) == ("npz", None)
    stated = {layer.name: (layer.kind, layer.shape) for layer in weights.layers}
    # A hash has the order of the file; the numbers of the layers have that of the network
    assert stated == {
        "conv1": ("conv", (4, 3, 3, 3)),
        "conv2": ("conv", (8, 4, 3, 3)),
        "conv3": ("transposed", (16, 8, 4, 4)),
    }
    assert list(stated) == sorted(stated)
    layers = {layer.name: layer for layer in weights.layers}
    assert np.array_equal(layers["conv2"].read(), arrays["conv2/W"])
    assert np.array_equal(layers["conv3"].read(), arrays["conv3/W"].swapaxes(0, 1))
    assert weights.parameters == sum(value.size for value in arrays.values())


def test_pytorch(saved):
    arrays = {
        "features.0.weight": array(8, 3, 3, 3),
        "features.0.bias": array(8),
        "features.1.weight": array(8),
        "features.1.running_mean": array(8),
        "features.3.weight": array(8, 1, 3, 3),
    }
    weights = saved(arrays)
    assert [(layer.name, layer.kind) for layer in weights.layers] == [
        ("features.0", "conv"),
        ("features.3", "depthwise"),
    ]
    assert np.array_equal(weights.layers[0].read(), arrays["features.0.weight"])
    assert weights.parameters == 216 + 8 + 8 + 72


def test_flax_and_keras(saved):
    arrays = {
        "params/ConvTranspose_0/kernel": array(3, 3, 16, 4),
        "params/ConvTranspose_0/bias": array(4),
        "params/Conv_0/kernel": array(3, 5, 3, 16),
        "params/Conv_0/bias": array(16),
        "params/resnet/standardized_conv2d/kernel": array(3, 3, 16, 32),
        "params/separable/depthwise_kernel": array(3, 3, 16, 2),
        "params/separable/pointwise_kernel": array(1, 1, 32, 8),
        "opt_state/Adam/Conv_0/kernel": array(3, 5, 3, 16),
    }
    weights = saved(arrays)
    layers = {layer.name: layer for layer in weights.layers}
    assert {name: (layer.kind, layer.shape) for name, layer in layers.items()} == {
        "params/ConvTranspose_0": ("transposed", (4, 16, 3, 3)),
        "params/Conv_0": (None, (16, 3, 3, 5)),
        "params/resnet/standardized_conv2d": (None, (32, 16, 3, 3)),
        "params/separable/depthwise_kernel": ("depthwise", (32, 1, 3, 3)),
        "params/separable/pointwise_kernel": ("conv", (8, 32, 1, 1)),
    }
    assert layers["params/resnet/standardized_conv2d"].weight_norm == "std"
    assert np.array_equal(layers["params/Conv_0"].read(), arrays["params/Conv_0/kernel"].transpose(3, 2, 0, 1))
    stored = arrays["params/ConvTranspose_0/kernel"]  # (h, w, in, out), unlike Keras
    assert np.array_equal(layers["params/ConvTranspose_0"].read(), stored.transpose(3, 2, 0, 1))
    stored = arrays["params/separable/depthwise_kernel"]
    assert np.array_equal(
        layers["params/separable/depthwise_kernel"].read()[:, 0], stored.reshape(3, 3, 32).transpose(2, 0, 1)
    )


@pytest.mark.parametrize("pickled", ["pairs", "named"])
def test_networks_of_caffe_as_a_pickled_dictionary(tmp_path, pickled):
    first, second = array(3, 3, 3, 8), array(3, 3, 8, 8)
    if pickled == "pairs":
        content = {"conv1": [first, array(8)], "conv2": [second, array(8)]}
    else:
        content = {
            "conv1": {"weights": first, "biases": array(8)},
            "conv2": {"weights": second, "biases": array(8)},
        }
    path = tmp_path / "net.npy"
    np.save(path, content, allow_pickle=True)
    weights = formats.read(path)
    assert [layer.shape for layer in weights.layers] == [(8, 3, 3, 3), (8, 8, 3, 3)]
    assert weights.layers[0].name.startswith("conv1")
    assert np.array_equal(weights.layers[1].read(), second.transpose(3, 2, 0, 1))
    np.savez(tmp_path / "net.npz", net=np.array(content, dtype=object))
    assert [layer.shape for layer in formats.read(tmp_path / "net.npz").layers] == [(8, 3, 3, 3), (8, 8, 3, 3)]


@pytest.mark.parametrize("end", ["/value", ".value", "/raw_value"])
def test_variables_of_nnx_keep_their_array_in_an_attribute(saved, end):
    first, second, bias = array(3, 3, 3, 8), array(3, 3, 8, 16), array(16)
    arrays = {"a/kernel": first, "b/bias": bias, "b/kernel": second}
    weights = saved({f"{name}{end}": value for name, value in arrays.items()})
    assert [layer.name for layer in weights.layers] == ["a", "b"]
    for layer, kernel in zip(weights.layers, (first, second), strict=True):
        assert np.array_equal(layer.read(), kernel.transpose(3, 2, 0, 1))
    assert weights.contents == {"kernels": (2, first.size + second.size), "vectors": (1, 16)}


def test_what_is_left_out_has_the_name_that_it_has_in_the_file(saved):
    arrays = {
        "a/kernel": array(3, 3, 3, 8),
        "a/bias": array(8),
        "grn/gamma": array(1, 1, 1, 8),
        "grn/beta": array(1, 1, 1, 8),
    }
    weights = saved(arrays)
    assert [one.name for one in weights.skipped] == ["grn/beta", "grn/gamma"]
    assert weights.contents == {"kernels": (1, 216), "excluded": (2, 16), "vectors": (1, 8)}


def test_layout_that_nothing_proves_is_left_open(saved):
    weights = saved({"a/kernel": array(3, 3, 3, 3), "b/kernel": array(5, 5, 5, 5)})
    assert weights.layers == ()
    assert [entry.name for entry in weights.skipped] == ["a/kernel", "b/kernel"]
    assert {entry.reason for entry in weights.skipped} == {judge.UNCLEAR}


def test_layouts_that_contradict_each_other_are_left_open(saved):
    weights = saved({"a/W": array(8, 3, 5, 5), "a/b": array(8), "b/W": array(5, 5, 3, 8), "b/b": array(8)})
    assert weights.layers == ()
    assert len(weights.skipped) == 2


@given(st.data())
@QUICK
def test_layout_is_found_again(saved, data):
    sizes = st.integers(1, 7)
    channels = st.integers(12, 40)
    arrays, expected = {}, {}
    outer = data.draw(st.booleans())
    last = data.draw(channels)
    for number in range(data.draw(st.integers(1, 4))):
        height, width, out = data.draw(sizes), data.draw(sizes), data.draw(channels)
        kernel = array(out, last, height, width, seed=number)
        expected[f"layer{number}"] = kernel
        arrays[f"layer{number}/W"] = kernel if outer else kernel.transpose(2, 3, 1, 0)
        if data.draw(st.booleans()):
            arrays[f"layer{number}/b"] = array(out)
        last = out
    weights = saved(arrays)
    assert {layer.name for layer in weights.layers} == set(expected)
    for layer in weights.layers:
        assert np.array_equal(layer.read(), expected[layer.name])


@pytest.mark.parametrize("dtype", ["<f2", ">f4", "<f8"])
def test_element_types_and_orders(saved, dtype):
    kernel = np.asfortranarray(array(16, 12, 3, 3).astype(dtype))
    (layer,) = saved({"c/W": kernel, "c/b": array(16)}).layers
    assert np.array_equal(layer.read(), kernel.astype(np.float32))
    assert layer.dtype == np.dtype(dtype).name


def test_code_in_a_pickle_is_not_run(tmp_path):
    class Attack:
        def __reduce__(self):
            return os.system, (f"touch {tmp_path / 'canary'}",)

    np.save(tmp_path / "attack.npy", np.array({"conv": Attack()}, dtype=object), allow_pickle=True)
    with pytest.raises(UnsafeFileError, match=r"asks for \w+.system"):
        formats.read(tmp_path / "attack.npy")
    header = io.BytesIO()
    np.lib.format.write_array_header_1_0(header, {"descr": "|O", "fortran_order": False, "shape": ()})
    with zipfile.ZipFile(tmp_path / "attack.npz", "w") as archive:
        archive.writestr("w.npy", header.getvalue() + pickle.dumps(Attack()))
    with pytest.raises(UnsafeFileError):
        formats.read(tmp_path / "attack.npz")
    assert not (tmp_path / "canary").exists()


def test_single_array_has_no_name(tmp_path):
    np.save(tmp_path / "one.npy", array(8, 3, 3, 3))
    with pytest.raises(WeightFileError, match="an array without a name"):
        formats.read(tmp_path / "one.npy")


def test_array_of_another_size_than_its_header_states(tmp_path):
    buffer = io.BytesIO()
    np.save(buffer, array(8, 3, 3, 3))
    with zipfile.ZipFile(tmp_path / "w.npz", "w") as archive:
        archive.writestr("c.npy", buffer.getvalue()[:-4])
    with pytest.raises(WeightFileError, match=r"c\.npy should have 864 bytes for float32 \(8, 3, 3, 3\), has 860"):
        formats.read(tmp_path / "w.npz")


def test_archives_of_pytorch_are_left_to_its_reader(tmp_path):
    torch = pytest.importorskip("torch")
    torch.save({"c.weight": torch.zeros(8, 3, 3, 3)}, tmp_path / "w.npz")
    assert formats.read(tmp_path / "w.npz").format == "torch-zip"


@QUICK
@given(data=st.data())
def test_damaged_files_are_reported_as_such(tmp_path, read_all, data):
    path = tmp_path / "w.npz"
    kind = data.draw(st.sampled_from([np.savez, np.savez_compressed]))
    kind(path, **{"c/W": array(4, 3, 3, 3), "c/b": array(4), "o": np.array({"a": [array(2)]}, dtype=object)})
    broken = bytearray(path.read_bytes())
    for place in data.draw(st.lists(st.integers(4, len(broken) - 1), min_size=1, max_size=5)):
        broken[place] = data.draw(st.integers(0, 255))
    path.write_bytes(broken[: data.draw(st.integers(40, len(broken)))])
    read_all(path)
