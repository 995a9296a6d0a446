"""Files as people have them: other layouts and names, wrappers, second copies, archives. Nothing is wrong or silent.

Each case is a network whose kernels are known. What is read must be one of them, once; what is not read is reported.
"""

from __future__ import annotations

import bz2
import collections
import gzip
import io
import lzma
import pickle
import tarfile
import zipfile
import zlib

import h5py
import joblib
import numpy as np
import pandas as pd
import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from cnnfilterdb.core.errors import WeightFileError
from cnnfilterdb.ingest import formats
from cnnfilterdb.ingest.network.memory import weights_from_state_dict

dill = pytest.importorskip("dill")

rng = np.random.default_rng(0)
SHAPES = [(32, 3, 3, 3), (64, 32, 3, 3), (64, 64, 3, 3)]
KERNELS = [rng.standard_normal(shape).astype(np.float32) for shape in SHAPES]
BIASES = [np.zeros(len(kernel), np.float32) for kernel in KERNELS]
HWIO = [np.ascontiguousarray(kernel.transpose(2, 3, 1, 0)) for kernel in KERNELS]


def assert_reads(weights, kernels=KERNELS):
    """All kernels come back, in any order, and nothing else."""
    found = [layer.read() for layer in weights.layers]
    assert len(found) == len(kernels), [(layer.name, layer.shape) for layer in weights.layers]
    for kernel in kernels:
        assert sum(kernel.shape == one.shape and np.array_equal(kernel, one) for one in found) == 1


def network(seed):
    torch.manual_seed(seed)
    layers = {"c0": nn.Conv2d(3, 8, 3), "b0": nn.BatchNorm2d(8), "c1": nn.Conv2d(8, 16, 3), "c2": nn.Conv2d(16, 16, 3)}
    return nn.Sequential(collections.OrderedDict(layers))


FIRST, SECOND = network(1), network(2)
ONE, TWO = FIRST.state_dict(), SECOND.state_dict()


def kernels_of(state):
    return [value.numpy() for value in state.values() if value.dim() == 4]


def below(prefix, state):
    return {f"{prefix}{name}": value for name, value in state.items()}


def saved(content, path):
    torch.save(content, path)
    return formats.read(path)


# ---------------------------------------------------------------------------------------------------------------------
# Names and layouts of other frameworks


def named(pattern, kernels, biases=BIASES):
    kernel, bias = pattern
    arrays = {}
    for number, (weight, vector) in enumerate(zip(kernels, biases, strict=True)):
        arrays[kernel.format(number)] = weight
        arrays[bias.format(number)] = vector
    return arrays


NAMES = {
    "keras": (("conv2d_{}/kernel", "conv2d_{}/bias"), HWIO),
    "flax": (("layers.{}.kernel", "layers.{}.bias"), HWIO),
    "haiku": (("net/~/conv2_d_{}.w", "net/~/conv2_d_{}.b"), HWIO),
    "tensorflow": (("conv{}/w", "conv{}/b"), HWIO),
    "pytorch": (("features.{}.weight", "features.{}.bias"), KERNELS),
    "converted": (("features.{}.weight", "features.{}.bias"), HWIO),
    "chainer": (("predictor/conv{}/W", "predictor/conv{}/b"), KERNELS),
}


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("container", ["memory", "pickle", "npz", "safetensors", "hdf5"])
def test_layouts_and_names(tmp_path, name, container):
    arrays = named(*NAMES[name])
    if container == "memory":
        assert_reads(weights_from_state_dict(arrays))
        return
    path = tmp_path / "net"
    if container == "pickle":
        path.write_bytes(pickle.dumps(arrays))
    elif container == "npz":
        with path.open("wb") as file:
            np.savez(file, **arrays)
    elif container == "safetensors":
        save_file({key: torch.from_numpy(value.copy()) for key, value in arrays.items()}, path)
    else:
        with h5py.File(path, "w") as file:
            for key, value in arrays.items():
                file[key] = value
    assert_reads(formats.read(path))


@pytest.mark.parametrize("kernels", [KERNELS, HWIO], ids=["OIHW", "HWIO"])
def test_lists_of_weights(tmp_path, kernels):
    arrays = [array for pair in zip(kernels, BIASES, strict=True) for array in pair]
    np.savez(tmp_path / "a.npz", *arrays)
    assert_reads(formats.read(tmp_path / "a.npz"))
    (tmp_path / "a.pkl").write_bytes(pickle.dumps(arrays))
    assert_reads(formats.read(tmp_path / "a.pkl"))
    objects = np.empty(len(arrays), object)
    objects[:] = arrays
    np.save(tmp_path / "a.npy", objects, allow_pickle=True)
    assert_reads(formats.read(tmp_path / "a.npy"))
    assert_reads(weights_from_state_dict({"weights": arrays}))


def test_tensors_of_pytorch_with_kernels_of_keras(tmp_path):
    arrays = {key: torch.from_numpy(value.copy()) for key, value in named(*NAMES["flax"]).items()}
    assert_reads(saved(arrays, tmp_path / "a.pt"))
    # With PyTorch's own names, the biases contradict what the tensors declare
    arrays = {key: torch.from_numpy(value.copy()) for key, value in named(*NAMES["converted"]).items()}
    weights = saved(arrays, tmp_path / "b.pt")
    assert weights.layers == ()
    assert len(weights.skipped) == len(KERNELS)


@pytest.mark.parametrize(
    ("name", "shape"),
    [
        ("prelu", (1, 64, 1, 1)),
        ("frn.tau", (1, 64, 1, 1)),
        ("noise_strength", (1, 1, 1, 1)),
        ("ls", (64, 1, 1, 1)),
        ("query_embed", (1, 100, 16, 16)),
        ("const_input", (1, 512, 4, 4)),
        ("rel_h", (1, 27, 64, 1)),
        ("attn.relative_position_bias_table", (1, 8, 49, 49)),
        ("something", (1, 64, 14, 14)),
        ("codebook", (512, 64, 2, 2)),
        ("rezero", (1, 1, 1, 1)),
        ("filter.complex", (14, 8, 384, 2)),
        ("query", (100, 1, 1, 256)),
        ("gate", (1, 1, 1, 64)),
        ("positions", (1, 64, 224, 96)),
    ],
)
def test_parameters_that_are_not_kernels(tmp_path, name, shape):
    weights = saved({**ONE, f"{name}.weight": torch.randn(shape)}, tmp_path / "a.pt")
    assert_reads(weights, kernels_of(ONE))
    assert [entry.name for entry in weights.skipped] == [f"{name}.weight"]


def test_numbers_of_an_expanded_tensor_and_of_a_scalar(tmp_path):
    wide = torch.randn(8, 8, 1, 1).expand(8, 8, 3, 3)
    assert_reads(saved({"a.weight": wide}, tmp_path / "a.pt"), [wide.numpy()])
    conv = torch.nn.utils.weight_norm(nn.Conv2d(3, 8, 3), dim=None)  # its gain has no axes
    expected = conv.weight.detach().numpy()
    (layer,) = saved(conv.state_dict(), tmp_path / "b.pt").layers
    np.testing.assert_allclose(layer.read(), expected, rtol=1e-6)


def test_float8_with_a_scale(tmp_path):
    weight = torch.randn(8, 3, 3, 3).to(torch.float8_e4m3fn)
    scale = torch.rand(8, 1, 1, 1) + 0.5
    weights = saved({"a.weight": weight, "a.weight_scale": scale}, tmp_path / "a.pt")
    assert_reads(weights, [(weight.float() * scale).numpy()])
    blocks = saved({"a.weight": weight, "a.weight_scale_inv": torch.ones(2, 1)}, tmp_path / "b.pt")
    assert (blocks.layers, [entry.name for entry in blocks.skipped]) == ((), ["a.weight"])


def test_packed_weights_are_reported(tmp_path):
    packed = {"c.weight": torch.zeros(108, 1, dtype=torch.uint8), "c.weight.absmax": torch.rand(4)}
    weights = saved({**ONE, **packed, "fc.qweight": torch.zeros(4, 8, dtype=torch.int32)}, tmp_path / "a.pt")
    assert_reads(weights, kernels_of(ONE))
    assert [entry.name for entry in weights.skipped] == ["c.weight", "fc.qweight"]


# ---------------------------------------------------------------------------------------------------------------------
# Wrappers and second copies


@pytest.mark.parametrize(
    "content",
    [
        below("module.", ONE),
        below("_orig_mod.module.", ONE),
        below("_fsdp_wrapped_module.", ONE),
        {"state_dict": below("_forward_module.model.", ONE)},
        {name.replace("c1.", "c1._checkpoint_wrapped_module."): value for name, value in ONE.items()},
        (ONE, {"state": []}),
        {"epoch": 3, "model": FIRST, "ema": None},
    ],
    ids=["ddp", "compiled", "fsdp", "deepspeed", "checkpointed", "tuple", "module"],
)
def test_names_of_wrappers_are_removed(tmp_path, content):
    weights = saved(content, tmp_path / "a.pt")
    assert [layer.name for layer in weights.layers] == ["c0", "c1", "c2"]
    assert_reads(weights, kernels_of(ONE))


# The content of a checkpoint with two copies, and which of the two is the model
COPIES = {
    "lightning": (below("model.", ONE) | below("ema_model.", TWO), 2),
    "wrapped": (below("net.", ONE) | below("average_model.module.", TWO), 2),
    "moco v3": (below("module.base_encoder.", ONE) | below("module.momentum_encoder.", TWO), 1),
    "albef": (below("visual_encoder.", ONE) | below("visual_encoder_m.", TWO), 1),
    "reference": (below("model.", ONE) | below("ref_model.", TWO), 1),
    "slow": (below("encoder.", ONE) | below("encoder_slow.", TWO), 1),
    "dino": ({"student": below("module.backbone.", ONE), "teacher": below("backbone.", TWO)}, 2),
    "double dqn": (below("q_net.features.", ONE) | below("q_net_target.features.", TWO), 1),
    "shadow list": ({"model": ONE, "ema": {"shadow_params": list(TWO.values())}}, 2),
    "shadow list of a part": ({"model": ONE, "ema": {"shadow_params": list(TWO.values())[:-2]}}, 1),
    "ema state": ({"model": ONE, "ema_state": TWO}, 2),
    "latent diffusion": (
        below("model.", ONE) | {f"model_ema.{name.replace('.', '')}": value for name, value in TWO.items()},
        2,
    ),
    "modules to save": (below("base.original_module.", ONE) | below("base.modules_to_save.default.", TWO), 2),
    "best": ({"state_dict": ONE, "best_state_dict": TWO}, 1),
    "average beside layers": (ONE | below("ema.", TWO), 2),
    "shadow beside layers": (below("module.", ONE | below("shadow.", TWO)), 2),
    "teacher beside layers": (ONE | below("teacher.module.", TWO), 2),
    "target beside layers": (ONE | below("target.", TWO), 1),
    "copy": (below("net.", ONE) | below("net_copy.", TWO), 1),
    "best model": (below("model.", ONE) | below("best_model.", TWO), 1),
    "ema_shadow": ({"model": ONE, "ema_shadow": TWO}, 2),
    "inner": (below("model.unet.", ONE) | below("model.unet_ema.", TWO), 2),
    "master weights": ({"model": ONE, "optimizer": {"state": {}, "fp32": list(TWO.values())}}, 1),
}


@pytest.mark.parametrize("name", COPIES)
def test_of_two_copies_one_is_read_and_the_other_reported(tmp_path, name):
    content, number = COPIES[name]
    weights = saved(content, tmp_path / "a.pt")
    assert_reads(weights, kernels_of((ONE, TWO)[number - 1]))
    assert weights.skipped


@pytest.mark.parametrize("container", ["safetensors", "npz", "hdf5", "weights.h5"])
@pytest.mark.parametrize(
    ("model", "copy"), [("teacher", "student"), ("online", "target"), ("ema", ""), ("ema", "model")]
)
def test_copies_in_files_of_other_programs(tmp_path, container, model, copy):
    """Student and teacher, as TensorFlow and Keras name them: the copy is left out and reported."""
    leaves = ("vars/0", "vars/1") if container == "weights.h5" else ("kernel", "bias")
    arrays = {}
    for part, factor in ((model, 1), (copy, 2)):
        for number, (kernel, bias) in enumerate(zip(HWIO, BIASES, strict=True)):
            for leaf, value in zip(leaves, (kernel, bias), strict=True):
                arrays["/".join(filter(None, (part, f"conv{number}", leaf)))] = factor * value
    path = tmp_path / ("a.weights.h5" if container == "weights.h5" else "a")
    if container == "safetensors":
        save_file({key: torch.from_numpy(value.copy()) for key, value in arrays.items()}, path)
    elif container == "npz":
        with path.open("wb") as file:
            np.savez(file, **arrays)
    else:
        with h5py.File(path, "w") as file:
            for key, value in arrays.items():
                file[key] = value
    weights = formats.read(path)
    assert_reads(weights)
    assert weights.skipped


@pytest.mark.parametrize(
    "content",
    [
        below("q1.", ONE) | below("q2.", TWO),
        below("G_A.", ONE) | below("G_B.", TWO),
        below("actor.", ONE) | below("critic.", TWO),
        {"G": ONE, "D": TWO},
    ],
    ids=["twins", "cycle", "actor and critic", "gan"],
)
def test_networks_that_are_no_copies_are_all_read(tmp_path, content):
    weights = saved(content, tmp_path / "a.pt")
    assert_reads(weights, kernels_of(ONE) + kernels_of(TWO))


def test_layers_of_an_attention_are_no_copies(tmp_path):
    names = ("attn.query", "attn.key", "attn.value", "conv_q", "conv_k")
    layers = {f"{name}.weight": torch.randn(16, 16, 3, 3) for name in names}
    assert_reads(saved({**ONE, **layers}, tmp_path / "a.pt"), kernels_of(ONE) + kernels_of(layers))


def test_a_network_is_selected_by_its_name(tmp_path):
    path = tmp_path / "a.pt"
    for content, first, second in (
        ({"model": ONE, "ema": TWO}, "model", "ema"),
        ({"state_dict": below("model.", ONE) | below("ema_model.", TWO)}, "model", "ema_model"),
        (below("module.encoder_q.", ONE) | below("module.encoder_k.", TWO), "encoder_q", "encoder_k"),
        ({"G": ONE, "D": TWO, "optG": {"state": {}}}, "G", "D"),
        ({"nets": {"a": ONE, "b": TWO}}, "nets.a", "nets.b"),
    ):
        torch.save(content, path)
        for name, state in ((first, ONE), (second, TWO)):
            weights = formats.read(path, network=name)
            assert_reads(weights, kernels_of(state))
            assert [layer.name for layer in weights.layers] == ["c0", "c1", "c2"]
    with pytest.raises(WeightFileError, match="has no network 'c'; parts of it with convolutions"):
        formats.read(path, network="c")


def test_a_network_of_any_format_is_selected_by_the_names_of_its_layers(tmp_path):
    arrays = {
        f"{part}/{name}": array for part in ("encoder", "decoder") for name, array in named(*NAMES["keras"]).items()
    }
    np.savez(tmp_path / "a.npz", **arrays)
    weights = formats.read(tmp_path / "a.npz", network="decoder")
    assert {layer.name.partition("/")[0] for layer in weights.layers} == {"decoder"}
    assert len(weights.layers) == len(KERNELS)


def test_what_belongs_to_the_training_is_reported(tmp_path):
    moments = {"state": {0: {"exp_avg": torch.randn(8, 3, 3, 3)}}, "param_groups": []}
    content = {
        "state_dict": ONE,
        "optimizer_states": [moments],
        "hyper_parameters": {"kernel": torch.randn(8, 8, 3, 3)},
    }
    weights = saved(content, tmp_path / "a.pt")
    assert_reads(weights, kernels_of(ONE))
    assert {entry.name: entry.reason for entry in weights.skipped} == {
        "optimizer_states": "state of the training",
        "hyper_parameters": "state of the training",
    }
    alone = saved(moments, tmp_path / "optimizer.pt")
    assert not alone.layers
    assert [(one.name, one.reason) for one in alone.skipped] == [
        ("the file", "the state of an optimiser, not a network")
    ]


# ---------------------------------------------------------------------------------------------------------------------
# Archives and pickles


ARRAYS = {name: value.numpy() for name, value in ONE.items()}


def in_memory(state):
    file = io.BytesIO()
    torch.save(state, file)
    return file.getvalue()


def tarred(mode):
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode=mode) as archive:
        for name, content in (("net.pt", in_memory(ONE)), ("README.md", b"a network")):
            member = tarfile.TarInfo(name)
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))
    return file.getvalue()


def zipped():
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("net/net.pt", in_memory(ONE))
        archive.writestr("net/README.md", "a network")
        archive.writestr("__MACOSX/._net.pt", b"x")
    return file.getvalue()


def dumped_by_joblib(compress):
    file = io.BytesIO()
    joblib.dump(ARRAYS, file, compress=compress)
    return file.getvalue()


ARCHIVES = {
    "gzip": lambda: gzip.compress(in_memory(ONE)),
    "gzip of a pickle": lambda: gzip.compress(pickle.dumps(ARRAYS)),
    "bzip2": lambda: bz2.compress(in_memory(ONE)),
    "xz": lambda: lzma.compress(in_memory(ONE)),
    "lzma": lambda: lzma.compress(pickle.dumps(ARRAYS), lzma.FORMAT_ALONE),
    "zlib": lambda: zlib.compress(pickle.dumps(ARRAYS)),
    "tar.gz": lambda: tarred("w:gz"),
    "tar": lambda: tarred("w:"),
    "zip": zipped,
    "joblib": lambda: dumped_by_joblib(0),
    "joblib zlib": lambda: dumped_by_joblib(3),
    "joblib gzip": lambda: dumped_by_joblib(("gzip", 3)),
    "joblib xz": lambda: dumped_by_joblib(("xz", 3)),
    "dill": lambda: dill.dumps(ARRAYS),
    "two pickles": lambda: pickle.dumps({"version": 1}) + pickle.dumps(ARRAYS),
    "masked": lambda: pickle.dumps({name: np.ma.masked_array(value) for name, value in ARRAYS.items()}),
    "torch.save in a pickle": lambda: pickle.dumps({"lr": 0.1, "__cuda_dependent_attributes__": in_memory(ONE)}),
    "skorch in a pipeline": lambda: pickle.dumps({"steps": [("net", {"lr": 0.1, "content": in_memory(ONE)})]}),
    "torch.save in a file in memory": lambda: pickle.dumps({"module": io.BytesIO(in_memory(ONE))}),
    "keys of bytes": lambda: pickle.dumps({name.encode(): value for name, value in ARRAYS.items()}),
    "big-endian": lambda: pickle.dumps({name: value.astype(">f8") for name, value in ARRAYS.items()}),
    "series": lambda: pickle.dumps(pd.Series(ARRAYS)),
}


@pytest.mark.parametrize("name", ARCHIVES)
def test_archives_and_pickles(tmp_path, name):
    (tmp_path / "net").write_bytes(ARCHIVES[name]())
    assert_reads(formats.read(tmp_path / "net"), kernels_of(ONE))


def test_arrays_in_an_unknown_object_are_reported(tmp_path):
    frame = pd.DataFrame({"name": list(ARRAYS), "value": list(ARRAYS.values())})
    frame.to_pickle(tmp_path / "a.pkl")
    weights = formats.read(tmp_path / "a.pkl")
    assert weights.layers == ()
    assert any("which is not known" in entry.reason for entry in weights.skipped)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (lambda: gzip.compress(in_memory(ONE))[:-20], "a compressed stream without its end: truncated"),
        (
            lambda: gzip.compress(b"\x89HDF\r\n\x1a\n"),
            "a gzip archive that contains neither a PyTorch file nor a pickle",
        ),
        (lambda: zlib.compress(bytes(1 << 28)), "reading it takes more than"),
        (lambda: bz2.compress(bytes(1 << 28)), "reading it takes more than"),
    ],
    ids=["truncated", "other", "bomb", "bomb of bzip2"],
)
def test_compressed_files_that_are_refused(tmp_path, content, message):
    (tmp_path / "a.gz").write_bytes(content())
    with pytest.raises(WeightFileError, match=message):
        formats.read(tmp_path / "a.gz")


@pytest.mark.parametrize(
    ("members", "message"),
    [
        ({"model.json": b'{"weightsManifest": []}', "a.bin": b"x"}, "a TensorFlow.js model; unpack it"),
        ({"net.h5": b"\x89HDF"}, "a zip archive of net.h5, which is not a PyTorch file; unpack it"),
        ({"a.pt": b"x", "b.pt": b"y"}, r"pass the weight file in it \(a.pt, b.pt\)"),
    ],
)
def test_zip_archives_of_other_files(tmp_path, members, message):
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as archive:
        for name, content in members.items():
            archive.writestr(name, content)
    with pytest.raises(WeightFileError, match=message):
        formats.read(tmp_path / "a.zip")
