"""The judge of layouts: networks in every layout come back identical or are left out with a reason."""

from __future__ import annotations

import io
import json
import pickle

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cnnfilterdb.ingest import formats
from cnnfilterdb.ingest.network import judge
from cnnfilterdb.ingest.network.layers import Tensor
from cnnfilterdb.ingest.network.memory import weights_from_state_dict

# From (out, in, h, w) to the layout
TO = {"OIHW": (0, 1, 2, 3), "HWIO": (2, 3, 1, 0), "OHWI": (0, 2, 3, 1)}


def safetensors(arrays, metadata=None):
    header = {} if metadata is None else {"__metadata__": metadata}
    data = b""
    for name, array in arrays.items():
        raw = np.ascontiguousarray(array, "<f4").tobytes()
        header[name] = {"dtype": "F32", "shape": array.shape, "data_offsets": [len(data), len(data) + len(raw)]}
        data += raw
    text = json.dumps(header).encode()
    return len(text).to_bytes(8, "little") + text + data


def npz(arrays):
    file = io.BytesIO()
    np.savez(file, **arrays)
    return file.getvalue()


WRITERS = {
    "a.safetensors": safetensors,
    "a.pkl": lambda arrays: pickle.dumps(arrays, 4),
    "old.pkl": lambda arrays: pickle.dumps(arrays, 0),
    "a.npz": npz,
}


@st.composite
def networks(draw):
    """Kernels (out, in, h, w) of a chain of layers, and their biases."""
    channels = draw(st.sampled_from([1, 3, 4]))
    layers = {}
    for number in range(draw(st.integers(2, 5))):
        out = draw(st.integers(2, 40))
        size = draw(st.sampled_from([1, 3, 3, 3, 5, 7]))
        shape = (out, channels, size, size)
        seed = draw(st.integers(0, 1 << 30))
        kernel = np.random.default_rng(seed).standard_normal(shape).astype(np.float32)
        layers[f"features.{number}"] = kernel, draw(st.booleans())
        channels = out
    return layers


@pytest.mark.parametrize("layout", TO)
@pytest.mark.parametrize("writer", [*WRITERS, "memory"])
@given(layers=networks())
@settings(max_examples=25)
def test_a_network_comes_back_identical_or_is_left_out(tmp_path, layout, writer, layers):
    arrays = {}
    for name, (kernel, biased) in layers.items():
        arrays[f"{name}.weight"] = kernel.transpose(TO[layout])
        if biased:
            arrays[f"{name}.bias"] = np.zeros(len(kernel), np.float32)
    if writer == "memory":
        weights = weights_from_state_dict(arrays)
    else:
        (tmp_path / writer).write_bytes(WRITERS[writer](arrays))
        weights = formats.read(tmp_path / writer)
    left_out = {entry.name.removesuffix(".weight"): entry.reason for entry in weights.skipped}
    assert {layer.name for layer in weights.layers} | left_out.keys() == layers.keys()
    assert all(left_out.values())
    kernels = [kernel for kernel, _ in layers.values()]
    # A chain of layers as wide as their kernels has the same shapes in the layouts of PyTorch and MLX: names decide,
    # for PyTorch. In memory they also decide where (a, a, b, b) may be (b, b, a, a), as `add` documents. What has one
    # axis larger than 1 says nothing
    decisive = [kernel.shape for kernel in kernels if sum(side > 1 for side in kernel.shape) > 1]
    alike = writer == "memory" and all(shape[0] == shape[1] and shape[2] == shape[3] for shape in decisive)
    if layout != "OIHW" and (alike or all(len(set(kernel.shape[1:])) == 1 for kernel in kernels)):
        return
    for layer in weights.layers:
        expected = layers[layer.name][0]
        found = layer.read()
        same = found.shape == expected.shape and np.array_equal(found, expected)
        # Whether a layer is transposed is another question, which shapes alone do not always answer
        assert same or (layer.kind == "transposed" and np.array_equal(found.swapaxes(0, 1), expected))


def tensor(name, *shape):
    return Tensor(name, shape, "float32", read=lambda: np.zeros(shape, np.float32))


@pytest.mark.parametrize(
    ("shapes", "layout"),
    [
        ({"a.weight": (32, 3, 3, 3), "b.weight": (64, 3, 3, 32)}, "OHWI"),
        ({"a.weight": (3, 3, 3, 32), "a.bias": (32,), "b.weight": (3, 3, 32, 64), "b.bias": (64,)}, "HWIO"),
        ({"a.weight": (8, 3, 3, 3), "b.weight": (8, 8, 3, 3)}, "OIHW"),
        ({"a/kernel": (3, 3, 3, 3)}, None),
        ({"a.weight": (3, 3, 16, 32)}, "HWIO"),
        ({"a.weight": (8, 3, 3, 3), "a.bias": (5,)}, None),
        ({"a.weight": (16, 8, 40, 40), "a.bias": (16,)}, "OIHW"),
        ({"a.weight": (8, 1, 1, 64), "b.weight": (16, 8, 22, 1)}, "OIHW"),
        # (a, a, b, b) may be (b, b, a, a): only a name of PyTorch alone tells
        ({"a.weight": (5, 5, 7, 7), "b.weight": (5, 5, 7, 7)}, None),
        ({"a.weight": (5, 5, 7, 7), "b.weight": (5, 5, 7, 7), "n.num_batches_tracked": ()}, "OIHW"),
        ({"a.weight": (4, 4, 3, 3)}, "OIHW"),
        ({"a.weight": (3, 3, 4, 4)}, None),
        ({"a.weight": (3, 3, 64, 64), "b.weight": (3, 3, 64, 64)}, "HWIO"),
        ({"a.weight": (64, 64, 3, 3), "b.weight": (64, 64, 3, 3)}, "OIHW"),
    ],
)
def test_layouts(shapes, layout):
    tensors = [tensor(name, *shape) for name, shape in shapes.items()]
    kernels = [one for one in tensors if len(one.shape) == 4]
    assert judge.layout_of(kernels, tensors) == layout


@pytest.mark.parametrize(("norm", "layout"), [(8, "HWIO"), (3, "OIHW"), (5, None), (None, None)])
def test_norms_decide_where_a_kernel_and_its_reverse_have_one_form(norm, layout):
    """(3, 3, 8, 8) may be 8 kernels of 3x3 for each of 8 channels, or 3 kernels of 8x8 for each of 3."""
    kernels = [tensor(f"block{number}/conv/w", 3, 3, 8, 8) for number in range(3)]
    norms = [] if norm is None else [tensor(f"block{number}/norm/scale", norm) for number in range(3)]
    assert judge.layout_of(kernels, [*kernels, *norms]) == layout
    # A layer with a bias, such as the last one, needs no norm
    last = [tensor("head/w", 5, 3, 8, 8), tensor("head/b", 5)] if layout == "OIHW" else []
    assert judge.layout_of(kernels + last[:1], [*kernels, *norms, *last]) == layout


def test_a_declared_layout_is_not_believed_against_all_evidence():
    kernels = [tensor("a.weight", 32, 3, 3, 3), tensor("b.weight", 64, 3, 3, 32)]
    assert judge.layout_of(kernels, kernels, declared="OIHW") is None
    plain = [tensor("a.weight", 32, 3, 3, 3), tensor("b.weight", 64, 32, 3, 3)]
    assert judge.layout_of(plain, plain, declared="OIHW") == "OIHW"


@pytest.mark.parametrize(
    ("name", "shape", "bias"),
    [
        ("stage.grn", (1, 1, 1, 160), None),
        ("stage.grn", (1, 1, 1, 160), (1, 1, 1, 160)),
        ("switch_norm", (1, 64, 1, 1), None),
        ("up.noise", (1, 64, 1, 1), None),
        ("x", (1, 64, 1, 1), (1, 64, 1, 1)),
        ("pos_embed", (1, 64, 14, 14), None),
        ("norms.0", (1, 64, 1, 1), None),
        ("gn", (1, 64, 1, 1), None),
        ("layer_scale_1", (64, 1, 1, 1), None),
        ("rpe", (1, 1, 13, 13), None),
        ("lut", (3, 33, 33, 33), None),
        ("filter.complex", (16, 9, 64, 2), None),
        ("conv.lora_A.default", (4, 16, 3, 3), None),
        ("lora_unet_down.lora_down", (4, 320, 3, 3), None),
    ],
)
def test_parameters_of_four_axes_that_are_not_convolutions(name, shape, bias):
    arrays = {"conv.weight": np.ones((8, 3, 3, 3), "f4"), f"{name}.weight": np.ones(shape, "f4")}
    if bias:
        arrays[f"{name}.bias"] = np.ones(bias, "f4")
    weights = weights_from_state_dict(arrays)
    assert [layer.name for layer in weights.layers] == ["conv"]
    assert f"{name}.weight" in {entry.name for entry in weights.skipped}


def test_kernels_of_separable_layers_in_a_list():
    """get_weights() of Keras has no names: the bias, or the pointwise kernel that follows, shows the depthwise one."""
    own, both, point = np.ones((3, 3, 16, 1), "f4"), np.ones((3, 3, 16, 2), "f4"), np.ones((1, 1, 32, 8), "f4")
    listed = [np.ones((3, 3, 3, 16), "f4"), np.ones(16, "f4"), own, np.ones(16, "f4"), both, point, np.ones(8, "f4")]
    layers = weights_from_state_dict({"weights": listed}).layers
    assert [layer.shape for layer in layers] == [(16, 3, 3, 3), (16, 1, 3, 3), (32, 1, 3, 3), (8, 32, 1, 1)]
    assert layers[1].kind == "depthwise"
    assert layers[2].kind in ("depthwise", None)


@pytest.mark.parametrize("gates", [3, 4])
@pytest.mark.parametrize("biased", [True, False])
def test_gates_in_a_list_are_left_out(gates, biased):
    """get_weights() of a ConvLSTM or a ConvGRU between convolutions: kernels for input and state, and a bias of all."""
    shapes = [(3, 3, 3, 8), (8,), (5, 5, 8, gates * 16), (5, 5, 16, gates * 16), (gates * 16,), (3, 3, 16, 4), (4,)]
    listed = [np.ones(shape, "f4") for shape in shapes if biased or shape != (gates * 16,)]
    weights = weights_from_state_dict({"weights": listed})
    assert [layer.shape for layer in weights.layers] == [(8, 3, 3, 3), (4, 16, 3, 3)]
    assert [(entry.name, entry.reason) for entry in weights.skipped] == [("2", judge.GATES), ("3", judge.GATES)]
    plain = [np.ones(shape, "f4") for shape in ((3, 3, 3, 8), (3, 3, 8, 16), (3, 3, 16, 64), (64,))]
    assert len(weights_from_state_dict({"weights": plain}).layers) == 3


@pytest.mark.filterwarnings("ignore::FutureWarning")
@pytest.mark.parametrize("wrap", ["spectral_norm", "parametrized"])
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("writer", ["npz", "memory"])
def test_spectral_normalisation_in_a_list(tmp_path, wrap, bias, writer):
    """The values of a state dict: the two vectors after a kernel tell, and which axis is that of the outputs."""
    torch = pytest.importorskip("torch")
    norm = torch.nn.utils.spectral_norm if wrap == "spectral_norm" else torch.nn.utils.parametrizations.spectral_norm
    torch.manual_seed(0)
    net = torch.nn.Sequential(
        torch.nn.Conv2d(3, 8, 3, bias=bias),
        norm(torch.nn.Conv2d(8, 16, 3, bias=bias)),
        norm(torch.nn.ConvTranspose2d(16, 4, 4, bias=bias)),
    )
    net(torch.randn(1, 3, 16, 16))
    net.eval()
    net(torch.randn(1, 3, 16, 16))
    listed = [value.numpy() for value in net.state_dict().values()]
    if writer == "npz":
        np.savez(tmp_path / "a.npz", *listed)
        weights = formats.read(tmp_path / "a.npz")
    else:
        weights = weights_from_state_dict({"weights": listed})
    effective = [part.weight.detach().numpy() for part in net]
    effective[2] = effective[2].transpose(1, 0, 2, 3)
    assert [layer.shape for layer in weights.layers] == [kernel.shape for kernel in effective]
    assert [layer.weight_norm for layer in weights.layers] == [None, "spectral_norm", "spectral_norm"]
    for layer, kernel in zip(weights.layers, effective, strict=True):
        np.testing.assert_allclose(layer.read(), kernel, rtol=1e-4, atol=1e-7)


def test_gains_and_directions_in_a_list_are_left_out():
    shapes = [(8, 3, 3, 3), (8,), (16,), (16, 1, 1, 1), (16, 8, 3, 3), (4, 16, 3, 3), (4,)]
    listed = [np.ones(shape, "f4") for shape in shapes]
    weights = weights_from_state_dict({"weights": listed})
    assert [layer.shape for layer in weights.layers] == [(8, 3, 3, 3), (4, 16, 3, 3)]
    assert [entry.name for entry in weights.skipped] == ["3", "4"]
    assert all("weight normalisation" in entry.reason for entry in weights.skipped)


def test_a_map_in_a_list_is_no_kernel():
    listed = [np.ones((1, 16, 16, 8), "f4"), np.ones((3, 3, 8, 16), "f4"), np.ones(16, "f4")]
    weights = weights_from_state_dict({"weights": listed})
    assert [layer.shape for layer in weights.layers] == [(16, 8, 3, 3)]
    assert len(weights.skipped) == 1


def test_recurrent_layers_of_keras_are_no_convolutions():
    arrays = {"conv/kernel": np.ones((3, 3, 3, 8)), "conv/bias": np.ones(8)}
    arrays |= {"cell/kernel": np.ones((3, 3, 8, 16)), "cell/recurrent_kernel": np.ones((3, 3, 4, 16))}
    weights = weights_from_state_dict(arrays | {"cell/bias": np.ones(16)})
    assert [layer.name for layer in weights.layers] == ["conv"]
    assert {entry.name for entry in weights.skipped} == {"cell/kernel", "cell/recurrent_kernel"}


@given(
    # As many as a side has, they would be square in another layout, too
    inputs=st.sampled_from([2, 4, 6, 8, 9]),
    channels=st.lists(st.integers(8, 64), min_size=1, max_size=4),
    sides=st.lists(st.sampled_from([3, 5, 7]), min_size=4, max_size=4),
    biased=st.booleans(),
)
def test_kernels_of_another_order_are_left_out(inputs, channels, sides, biased):
    """(in, h, w, out), as cuda-convnet had it, is not among the layouts that are read."""
    tensors = []
    for number, (before, after, side) in enumerate(zip([inputs, *channels], channels, sides, strict=False)):
        tensors.append(tensor(f"c{number}.weight", before, side, side, after))
        tensors += [tensor(f"c{number}.bias", after)] if biased else []
    kernels = [one for one in tensors if len(one.shape) == 4]
    # As (out, h, w, in) of MLX it may be read where nothing contradicts
    contradicted = biased and any(kernel.shape[0] != kernel.shape[3] for kernel in kernels)
    assert judge.layout_of(kernels, tensors) in ((None,) if contradicted else (None, "OHWI"))


@pytest.mark.parametrize("name", ["noise_conv", "out", "position"])
def test_a_bias_shows_a_convolution(name):
    arrays = {"conv.weight": np.ones((64, 3, 3, 3)), f"{name}.weight": np.ones((1, 64, 3, 3)), f"{name}.bias": [0.0]}
    arrays[f"{name}.bias"] = np.zeros(1)
    assert len(weights_from_state_dict(arrays).layers) == 2


def test_arrays_in_memory_are_those_of_pytorch_where_nothing_tells():
    arrays = {"a.weight": np.ones((5, 5, 7, 7), np.float32), "b.weight": np.ones((5, 5, 7, 7), np.float32)}
    assert [layer.shape for layer in weights_from_state_dict(arrays).layers] == [(5, 5, 7, 7)] * 2


def test_tensors_of_pytorch_are_not_doubted_because_of_sizes():
    kernels = [tensor("a.weight", 40, 1, 1, 200), tensor("b.weight", 8, 1, 1, 300)]
    assert judge.layout_of(kernels, kernels, declared="OIHW", doubted=False) == "OIHW"
    assert judge.layout_of(kernels, kernels, declared="OIHW") is None
