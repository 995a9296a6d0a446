"""What PyTorch and the programs around it write beside plain state dicts: archives of torch.export, shards, tensors
without numbers of their own, copies of a network, adapters, snapshots of StyleGAN, files of joblib."""

from __future__ import annotations

import argparse
import json
import pickle
import subprocess
import sys
import types

import h5py
import joblib
import ml_dtypes
import numpy as np
import pytest
import torch
from torch import nn
from torch._subclasses import FakeTensorMode
from torch.masked import masked_tensor

import cnnfilterdb
from cnnfilterdb.core.errors import SelectionError, UnsafeFileError, WeightFileError
from cnnfilterdb.ingest import formats
from cnnfilterdb.ingest.network.memory import weights_from_state_dict, weights_in_memory

pytestmark = pytest.mark.filterwarnings("ignore:.*torch.ao.quantization", "ignore:.*torch.jit", "ignore:.*deprecated")


def saved(content, path, **options):
    torch.save(content, path, **options)
    return formats.read(path)


def assert_holds(weights, expected):
    """The layers are exactly these, whatever their order: name -> array (out, in / groups, h, w)."""
    assert {layer.name for layer in weights.layers} == set(expected)
    for layer in weights.layers:
        np.testing.assert_array_equal(layer.read(), np.asarray(expected[layer.name], np.float32))


def reasons(weights):
    return {entry.name: entry.reason for entry in weights.skipped}


def two_layers():
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Conv2d(8, 4, 5)).eval()


def kernels_of(net):
    modules = {name: module for name, module in net.named_modules() if isinstance(module, nn.Conv2d)}
    return {name: module.weight.detach().numpy() for name, module in modules.items()}


# ---------------------------------------------------------------------------------------------------------------------
# Archives of torch.export, and shards


@pytest.fixture(scope="module")
def exported(tmp_path_factory):
    path = tmp_path_factory.mktemp("exported") / "net.pt2"
    net = two_layers()
    torch.export.save(torch.export.export(net, (torch.randn(1, 3, 16, 16),)), str(path))
    return net, path


def test_archives_of_torch_export(exported):
    net, path = exported
    weights = formats.read(path)
    assert_holds(weights, kernels_of(net))
    assert weights.parameters == sum(value.numel() for value in net.parameters())


def test_programs_in_memory(tmp_path):
    net = two_layers()
    db = cnnfilterdb.create(tmp_path / "a.db")
    db.add(torch.export.export(net, (torch.randn(1, 3, 16, 16),)), "a")
    for number, kernel in enumerate(kernels_of(net).values()):
        np.testing.assert_array_equal(db.layer_weights("custom/a", number), kernel)


@pytest.fixture
def sharded(tmp_path):
    """(folder, arrays) of a model in two shards with their index, as transformers writes it."""
    torch.manual_seed(0)
    arrays = {"a": torch.randn(8, 3, 3, 3), "b": torch.randn(6, 8, 3, 3)}
    files = {name: f"pytorch_model-0000{number}-of-00002.bin" for number, name in enumerate(arrays, 1)}
    for name, array in arrays.items():
        torch.save({f"{name}.weight": array}, tmp_path / files[name])
    index = {"metadata": {}, "weight_map": {f"{name}.weight": file for name, file in files.items()}}
    (tmp_path / "pytorch_model.bin.index.json").write_text(json.dumps(index))
    return tmp_path, arrays


@pytest.mark.parametrize("index", [True, False])
def test_shards_are_read_as_a_whole_or_not_at_all(sharded, index):
    folder, arrays = sharded
    names = [path.name for path in folder.iterdir()]
    if not index:
        (folder / "pytorch_model.bin.index.json").unlink()
        names.remove("pytorch_model.bin.index.json")
    for name in names:
        assert_holds(formats.read(folder / name), arrays)
    (folder / "pytorch_model-00002-of-00002.bin").unlink()
    names.remove("pytorch_model-00002-of-00002.bin")
    for name in names:
        with pytest.raises(WeightFileError, match=r"pytorch_model-00002-of-00002\.bin"):
            formats.read(folder / name)


@pytest.mark.parametrize(
    "pattern",
    ["model-{:05}-of-00002.fp16.bin", "model.fp16-{:05}-of-00002.bin", "model_{:05}_of_00002.pt", "model-{}-of-2.pth"],
)
def test_names_of_shards(tmp_path, pattern):
    torch.manual_seed(0)
    arrays = {"a": torch.randn(8, 3, 3, 3), "b": torch.randn(6, 8, 3, 3)}
    paths = [tmp_path / pattern.format(number) for number in (1, 2)]
    for path, (name, array) in zip(paths, arrays.items(), strict=True):
        torch.save({f"{name}.weight": array}, path)
    for path in paths:
        assert_holds(formats.read(path), arrays)
    paths[0].unlink()
    with pytest.raises(WeightFileError, match=f"1 of the 2 shards of the model is missing, first {paths[0].name}"):
        formats.read(paths[1])


PLAIN = {"a.weight": torch.ones(8, 3, 3, 3), "b.weight": torch.ones(6, 8, 3, 3)}
PARTS = {
    "mp_rank_00_model_states.pt": ({"module": PLAIN, "mp_world_size": 2, "ds_version": "0.14"}, "one of 2 parts"),
    "model_optim_rng.pt": (
        {"model": PLAIN, "args": argparse.Namespace(tensor_model_parallel_size=4, pipeline_model_parallel_size=1)},
        "one of 4 parts of a model, split over processes; merge",
    ),
    "nemo.ckpt": (
        {"state_dict": PLAIN, "hyper_parameters": {"cfg": {}, "pipeline_model_parallel_size": 3}},
        "one of 3 parts",
    ),
    "layer_03-model_00-model_states.pt": (PLAIN, "some layers of a model, which DeepSpeed split into stages"),
    "zero_pp_rank_0_mp_rank_00_optim_states.pt": (
        {"optimizer_state_dict": {"zero_stage": 2, "single_partition_of_fp32_groups": [torch.ones(80)]}},
        r"the optimiser of DeepSpeed.*zero_to_fp32\.py",
    ),
    "zero_pp_rank_0_mp_rank_00_model_states.pt": (
        {"module": {name: torch.empty(0) for name in PLAIN}, "ds_version": "0.14", "param_shapes": []},
        r"empty tensors; DeepSpeed ZeRO 3.*zero_to_fp32\.py",
    ),
}


@pytest.mark.parametrize("name", PARTS)
def test_parts_of_one_process_are_refused(tmp_path, name):
    content, message = PARTS[name]
    torch.save(content, tmp_path / name)
    with pytest.raises(WeightFileError, match=message) as caught:
        formats.read(tmp_path / name)
    assert str(caught.value).isprintable()


def test_what_one_process_has_written_alone_is_whole(tmp_path):
    """DeepSpeed and Megatron write the same files where nothing was split."""
    expected = {name.removesuffix(".weight"): value for name, value in PLAIN.items()}
    content = {"module": PLAIN, "mp_world_size": 1, "dp_world_size": 8, "ds_version": "0.14", "optimizer": None}
    assert_holds(saved(content, tmp_path / "mp_rank_00_model_states.pt"), expected)
    (tmp_path / "mp_rank_00").mkdir()
    path = tmp_path / "mp_rank_00" / "model_optim_rng.pt"
    options = argparse.Namespace(tensor_model_parallel_size=1)
    assert_holds(saved({"model": PLAIN, "args": options}, path), expected)
    (tmp_path / "mp_rank_01").mkdir()
    torch.save({"model": PLAIN}, tmp_path / "mp_rank_01" / path.name)
    with pytest.raises(WeightFileError, match="one of 2 parts"):
        formats.read(path)
    with pytest.raises(WeightFileError, match="a checkpoint of 2 processes"):
        formats.read(tmp_path)


@pytest.mark.parametrize("suffix", ["npz", "h5", "pickle"])
def test_shards_of_any_format_are_joined_or_refused(tmp_path, suffix):
    values = {name: part.numpy() for name, part in network(0).items() if part.dim() == 4}
    for number, (name, value) in enumerate(values.items(), 1):
        path = tmp_path / f"model-{number:05}-of-00002.{suffix}"
        part = {name: value, name.replace("weight", "bias"): np.zeros(len(value), "f4")}
        if suffix == "npz":
            np.savez(path, **part)
        elif suffix == "pickle":
            path.write_bytes(pickle.dumps(part))
        else:
            with h5py.File(path, "w") as file:
                for key, array in part.items():
                    file[key] = array
    expected = {name.removesuffix(".weight"): value for name, value in values.items()}
    first, second = sorted(tmp_path.iterdir())
    assert_holds(formats.read(first), expected)
    assert_holds(formats.read(second), expected)
    second.unlink()
    with pytest.raises(WeightFileError, match=r"1 of the 2 shards of the model is missing, first model-00002-of-00002"):
        formats.read(first)
    first.rename(tmp_path / f"fold-1-of-2.{suffix}")
    assert len(formats.read(tmp_path / f"fold-1-of-2.{suffix}").layers) == 1


def test_weights_joined_into_one_vector_are_reported(tmp_path):
    other = {"a.weight": torch.randn(8, 4, 3, 3)}
    for content in (
        {"_fsdp_wrapped_module.flat_param": torch.zeros(100), **other},
        {"module": other, "fp32_flat_groups": [torch.zeros(100)]},
    ):
        weights = saved(content, tmp_path / "a.pt")
        assert any("gather them" in reason for reason in reasons(weights).values())


def test_an_index_leads_nowhere_else(sharded):
    folder, _ = sharded
    index = folder / "pytorch_model.bin.index.json"
    for name in ("../a.bin", "/etc/passwd.bin", "..\\a.bin"):
        index.write_text(json.dumps({"weight_map": {"a.weight": name}, "x": '.bin"'}))
        with pytest.raises(WeightFileError, match=r"refused|expected shards"):
            formats.read(index)


# ---------------------------------------------------------------------------------------------------------------------
# Tensors that are not plain arrays


def negative():
    found = torch.view_as_complex(torch.randn(8, 4, 3, 3, 2)).conj().imag
    assert found.is_neg()
    return found, found.resolve_neg()


#: Makes of a plain tensor one of a kind, and the numbers that it stands for; None where there are none to be had.
UNUSUAL = {
    "sparse": lambda plain: (plain.to_sparse(), plain),
    "mkldnn": lambda plain: (plain.to_mkldnn(), plain),
    "negative bit": lambda plain: negative(),
    "meta": lambda plain: (plain.to("meta"), None),
    "lazy": lambda plain: (nn.LazyConv2d(3, 3).state_dict()["weight"], None),
    "conjugate": lambda plain: (torch.complex(plain, plain).conj().real, plain),
    "channels last": lambda plain: (plain.to(memory_format=torch.channels_last), plain),
    "ml_dtypes": lambda plain: (plain.bfloat16().float().numpy().astype(ml_dtypes.bfloat16), plain.bfloat16().float()),
    "float8": lambda plain: (plain.to(torch.float8_e4m3fn), plain.to(torch.float8_e4m3fn).float()),
    "big-endian": lambda plain: (plain.numpy().astype(">f8"), plain),
    "masked array": lambda plain: (np.ma.masked_array(plain.numpy()), plain),
    "fake": lambda plain: (FakeTensorMode().from_tensor(plain), None),
    "masked": lambda plain: (masked_tensor(plain, plain > 0), None),
    "nested": lambda plain: (torch.nested.nested_tensor([plain, plain[:4]]), None),
    "lists": lambda plain: (plain.tolist(), None),
    "no numbers": lambda plain: (np.full((8, 4, 3, 3), None), None),
    "dates": lambda plain: (np.zeros((8, 4, 3, 3), "M8[s]"), None),
    "memoryview": lambda plain: (memoryview(plain.numpy()), None),
}


def unusual(kind):
    torch.manual_seed(0)
    return UNUSUAL[kind](torch.randn(8, 4, 3, 3))


def check_unusual(weights, numbers, other):
    """The tensor is read as the numbers that it stands for, or it is reported; the other one is there in any case."""
    layers = {layer.name: layer.read() for layer in weights.layers}
    np.testing.assert_array_equal(layers.pop("b"), other)
    if layers:
        assert numbers is not None
        np.testing.assert_array_equal(layers.pop("a"), numbers)
        assert not layers
    else:
        assert reasons(weights)["a.weight"]


@pytest.mark.parametrize("kind", UNUSUAL)
def test_unusual_tensors_in_memory(kind):
    value, numbers = unusual(kind)
    other = torch.randn(4, 8, 3, 3)
    weights = weights_from_state_dict({"a.weight": value, "b.weight": other})
    check_unusual(weights, numbers, other)
    assert (numbers is None) == bool(weights.skipped)


@pytest.mark.parametrize("new", [True, False])
@pytest.mark.parametrize("kind", ["sparse", "negative bit", "meta", "lazy"])
def test_unusual_tensors_in_files(tmp_path, kind, new):
    value, numbers = unusual(kind)
    other = torch.randn(4, 8, 3, 3)
    weights = saved({"a.weight": value, "b.weight": other}, tmp_path / "a.pt", _use_new_zipfile_serialization=new)
    check_unusual(weights, numbers, other)
    assert (numbers is None) == bool(weights.skipped)


def test_names_of_tensors_in_memory_can_be_stored():
    weight = torch.randn(8, 4, 3, 3)
    weights = weights_from_state_dict({"a\ud800.weight": weight, b"b\x1b.weight": weight.clone()})
    assert [layer.name for layer in weights.printable().layers] == ["a\\ud800", "b\\x1b"]
    with pytest.raises(SelectionError, match="the class Conv2d was given; expected a path"):
        weights_in_memory(nn.Conv2d, "add")
    assert weights_from_state_dict({("params", "conv", "weight"): weight}).layers[0].name == "params/conv"


def test_tensors_of_a_transformation_fail_when_they_are_read():
    found = []
    torch.func.vmap(lambda tensor: found.append(tensor) or tensor)(torch.ones(2, 8, 4, 3, 3))
    (layer,) = weights_from_state_dict({"a.weight": found[0]}).layers
    with pytest.raises(WeightFileError, match=r"a\.weight: its numbers cannot be read from memory"):
        layer.read()


def test_frozen_modules_in_memory_are_called_so():
    with pytest.raises(WeightFileError, match=r"a frozen module of TorchScript.*save it with torch\.jit\.save"):
        weights_in_memory(torch.jit.freeze(torch.jit.script(two_layers())), "add")


def test_modules_of_torch_fx(tmp_path):
    net = two_layers()
    assert_holds(saved(torch.fx.symbolic_trace(net), tmp_path / "a.pt"), kernels_of(net))


def test_parts_of_distributed_tensors_are_reported(tmp_path):
    from torch import distributed
    from torch.distributed.tensor import DTensor, Replicate, Shard

    local, other = torch.randn(8, 4, 3, 3), torch.randn(4, 8, 3, 3)
    distributed.init_process_group("gloo", store=distributed.HashStore(), rank=0, world_size=1)
    try:
        mesh = distributed.device_mesh.init_device_mesh("cpu", (1,))
        whole = DTensor.from_local(local, mesh, [Replicate()])
        part = DTensor.from_local(local, mesh, [Shard(0)], shape=(16, 4, 3, 3), stride=(36, 9, 3, 1))
        for value, numbers in ((whole, local), (part, None)):
            state = {"a.weight": value, "b.weight": other}
            for weights in (weights_from_state_dict(state), saved(state, tmp_path / "a.pt")):
                check_unusual(weights, numbers, other)
    finally:
        distributed.destroy_process_group()


class Quantised(nn.Module):
    """A network that PyTorch quantises."""

    def __init__(self):
        from torch.ao import quantization

        super().__init__()
        self.quant, self.dequant = quantization.QuantStub(), quantization.DeQuantStub()
        self.c1, self.c2, self.c3 = nn.Conv2d(3, 8, 3), nn.Conv2d(8, 6, 3, stride=2), nn.Conv2d(6, 6, 3, groups=6)
        self.up = nn.ConvTranspose2d(6, 4, 2, groups=2)

    def forward(self, x):
        return self.dequant(self.up(self.c3(self.c2(self.c1(self.quant(x))))))


@pytest.fixture
def quantised():
    """The network after quantisation, and its weights with outputs first."""
    from torch.ao import quantization

    torch.manual_seed(0)
    net = Quantised().eval()
    net.qconfig = quantization.get_default_qconfig("fbgemm")
    net.up.qconfig = quantization.default_qconfig
    quantization.prepare(net, inplace=True)
    net(torch.randn(1, 3, 16, 16))
    quantization.convert(net, inplace=True)
    *plain, up = (one.weight().dequantize().numpy() for one in (net.c1, net.c2, net.c3, net.up))
    return net, [*plain, np.concatenate([part.swapaxes(0, 1) for part in np.split(up, 2)])]


def test_frozen_quantised_networks_keep_all_their_layers(quantised, tmp_path):
    net, weights = quantised
    torch.jit.save(torch.jit.freeze(torch.jit.script(net)), str(tmp_path / "a.pt"))
    layers = formats.read(tmp_path / "a.pt").layers
    assert [layer.conv_depth for layer in layers] == [0, 1, 2, 3]
    for layer, weight in zip(layers, weights, strict=True):
        np.testing.assert_array_equal(layer.read(), weight)


def test_whole_quantised_modules(quantised, tmp_path):
    net, weights = quantised
    torch.save(net, tmp_path / "a.pt")
    found = formats.read(tmp_path / "a.pt")
    facts = [(layer.name, layer.kind, layer.groups, layer.stride) for layer in found.layers]
    assert facts == [
        ("c1", "conv", 1, (1, 1)),
        ("c2", "conv", 1, (2, 2)),
        ("c3", "depthwise", 6, (1, 1)),
        ("up", "transposed", 2, (1, 1)),
    ]
    for layer, weight in zip(found.layers, weights, strict=True):
        np.testing.assert_array_equal(layer.read(), weight)
    assert found.skipped == ()


@pytest.mark.parametrize("new", [True, False])
@pytest.mark.parametrize(
    "extra",
    [np.zeros((3, 224, 224), "f4"), {"loss": np.linspace(0, 1, 9000)}, np.arange(20_000)],
    ids=["image", "history", "labels"],
)
def test_arrays_of_numpy_in_a_checkpoint(tmp_path, extra, new):
    kernel = torch.randn(8, 3, 3, 3)
    content = {"state_dict": {"conv.weight": kernel}, "extra": extra}
    weights = saved(content, tmp_path / "a.pt", _use_new_zipfile_serialization=new)
    assert_holds(weights, {"conv": kernel})


# ---------------------------------------------------------------------------------------------------------------------
# Two networks in one file


def network(seed, prefix=""):
    generator = torch.Generator().manual_seed(seed)
    shapes = {"conv1.weight": (16, 3, 7, 7), "bn1.weight": (16,), "layer1.conv.weight": (16, 16, 3, 3)}
    return {f"{prefix}{name}": torch.randn(shape, generator=generator) for name, shape in shapes.items()}


@pytest.mark.parametrize(
    ("model", "copy"),
    [
        ("encoder_q", "encoder_k"),
        ("teacher", "student"),
        ("online_network", "target_network"),
        ("backbone", "backbone_momentum"),
        ("policy", "target"),
    ],
)
@pytest.mark.parametrize("nested", [True, False])
def test_of_two_copies_one_is_the_model(tmp_path, model, copy, nested):
    first, second = network(0), network(1)
    if nested:
        content = {model: first, copy: second}
    else:
        parts = {model: first, copy: second}
        content = {f"{name}.{key}": value for name, part in parts.items() for key, value in part.items()}
    weights = saved(content, tmp_path / "a.pt")
    assert len(weights.layers) == 2
    for layer, name in zip(weights.layers, ("conv1", "layer1.conv"), strict=True):
        assert layer.name.endswith(name)
        np.testing.assert_array_equal(layer.read(), first[f"{name}.weight"])
    assert any(model in entry.reason and copy in f"{entry.name} {entry.reason}" for entry in weights.skipped)


def test_networks_that_are_not_copies_are_both_read(tmp_path):
    other = {"conv1.weight": torch.randn(8, 3, 3, 3)}
    assert len(saved({"teacher": network(0), "student": other}, tmp_path / "a.pt").layers) == 3


def test_averages_without_dots_are_copies(tmp_path):
    state = network(0, "backbone.")
    average = {f"ema_{name.replace('.', '_')}": value + 1 for name, value in state.items()}
    weights = saved({"state_dict": state | average}, tmp_path / "a.pt")
    kernels = {name.removesuffix(".weight"): value for name, value in network(0).items() if "conv" in name}
    assert_holds(weights, kernels)
    assert any("ema_" in entry.name or "ema_" in entry.reason for entry in weights.skipped)


def test_adapters_are_reported_and_the_base_is_read(tmp_path):
    base = torch.randn(32, 16, 3, 3)
    factors = {
        "conv.lora_A.default.weight": torch.randn(4, 16, 3, 3),
        "conv.lora_B.default.weight": torch.randn(32, 4, 1, 1),
    }
    state = {"conv.base_layer.weight": base, "conv.base_layer.bias": torch.zeros(32), **factors}
    weights = saved(state, tmp_path / "a.pt")
    assert [layer.shape for layer in weights.layers] == [(32, 16, 3, 3)]
    np.testing.assert_array_equal(weights.layers[0].read(), base)
    assert set(factors) <= set(reasons(weights))
    alone = saved(factors, tmp_path / "b.pt")
    assert alone.layers == ()
    assert all("merge_and_unload" in reason for reason in reasons(alone).values())


# ---------------------------------------------------------------------------------------------------------------------
# StyleGAN


def _reconstruct_persistent_obj(meta):
    raise NotImplementedError


def test_snapshots_of_stylegan(tmp_path, monkeypatch):
    package = types.ModuleType("torch_utils.persistence")
    monkeypatch.setitem(sys.modules, "torch_utils", types.ModuleType("torch_utils"))
    monkeypatch.setitem(sys.modules, "torch_utils.persistence", package)
    monkeypatch.setattr(_reconstruct_persistent_obj, "__module__", "torch_utils.persistence")
    package._reconstruct_persistent_obj = _reconstruct_persistent_obj

    class Persistent(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv0, self.torgb = nn.Conv2d(4, 8, 3), nn.Conv2d(8, 3, 3)

        def __reduce__(self):
            meta = {"type": "class", "version": 6, "module_src": "import os\n", "class_name": "Generator"}
            return _reconstruct_persistent_obj, (meta | {"state": dict(self.__dict__)},)

    nets = {"G": Persistent(), "D": Persistent(), "G_ema": Persistent()}
    (tmp_path / "network-snapshot.pkl").write_bytes(pickle.dumps(nets | {"augment_pipe": None}))
    weights = formats.read(tmp_path / "network-snapshot.pkl")
    found = {layer.name: layer.read() for layer in weights.layers}
    averaged = next(name for name in found if name.endswith("conv0") and not name.startswith(("D.", "G.")))
    np.testing.assert_array_equal(found[averaged], nets["G_ema"].conv0.weight.detach())
    assert not any(name.startswith("G.") for name in found)


def test_modulated_convolutions_have_an_axis_more(tmp_path):
    kernel, rgb = torch.randn(1, 32, 16, 3, 3), torch.randn(1, 3, 32, 1, 1)
    state = {"style.1.weight": torch.randn(64, 64), "conv1.conv.weight": kernel, "to_rgb.conv.weight": rgb}
    state |= {"conv1.conv.modulation.weight": torch.randn(16, 64), "to_rgb.conv.modulation.weight": torch.randn(32, 64)}
    weights = saved({"g_ema": state, "latent_avg": torch.zeros(64)}, tmp_path / "a.pt")
    assert_holds(weights, {"conv1.conv": kernel[0], "to_rgb.conv": rgb[0]})
    for name, shape in {"fc.weight": (16, 64), "style_fc.0.weight": (16, 64), "bias": (1, 32, 1, 1)}.items():
        other = saved({"up.conv.weight": kernel, f"up.conv.{name}": torch.randn(shape)}, tmp_path / "c.pt")
        assert_holds(other, {"up.conv": kernel[0]})
    cube = saved({"a.weight": torch.randn(1, 8, 16, 3, 3), "b.weight": torch.randn(8, 8, 3, 3)}, tmp_path / "b.pt")
    assert [layer.name for layer in cube.layers] == ["b"]  # without a modulation it has three dimensions


# ---------------------------------------------------------------------------------------------------------------------
# Other ways to pickle


def arrays(seed=0):
    values = np.random.default_rng(seed)
    return {"a.weight": values.random((8, 3, 3, 3), "f4"), "b.weight": values.random((6, 8, 5, 5), "f4")}


def test_files_of_joblib(tmp_path):
    content = arrays() | {"c.weight": np.asfortranarray(arrays(1)["b.weight"].astype("f8")[:, :6])}
    joblib.dump(content, tmp_path / "a.joblib")
    expected = {name.removesuffix(".weight"): value for name, value in content.items()}
    assert_holds(formats.read(tmp_path / "a.joblib"), expected)
    joblib.dump(content, tmp_path / "b.joblib", compress=3)
    assert_holds(formats.read(tmp_path / "b.joblib"), expected)


@pytest.mark.parametrize("protocol", [0, 1])
def test_old_protocols(tmp_path, protocol):
    (tmp_path / "a.pkl").write_bytes(pickle.dumps(arrays(), protocol))
    expected = {name.removesuffix(".weight"): value for name, value in arrays().items()}
    assert_holds(formats.read(tmp_path / "a.pkl"), expected)


@pytest.mark.parametrize(
    "names", [("conv{}_w", "conv{}_b"), ("conv2d_{}.w_0", "conv2d_{}.b_0")], ids=["caffe2", "paddle"]
)
def test_names_of_other_frameworks(tmp_path, names):
    values = list(arrays().values())
    content = {name.format(n): part for n, value in enumerate(values) for name, part in
               zip(names, (value, np.zeros(len(value), "f4")), strict=True)}  # fmt: skip
    (tmp_path / "a.pkl").write_bytes(pickle.dumps(content, 4))
    for layer, value in zip(formats.read(tmp_path / "a.pkl").layers, values, strict=True):
        np.testing.assert_array_equal(layer.read(), value)


def test_classes_of_a_notebook_saved_by_dill(tmp_path):
    # dill writes the code of classes that it finds in __main__
    code = "class Net(nn.Module):\n def __init__(self):\n  super().__init__()\n  self.conv = nn.Conv2d(3, 5, 3)\n"
    program = f"import dill, torch, sys\nfrom torch import nn\n{code}torch.save(Net(), sys.argv[1], pickle_module=dill)"
    subprocess.run([sys.executable, "-c", program, str(tmp_path / "a.pt")], check=True)
    with pytest.raises(UnsafeFileError, match="state_dict") as caught:
        formats.read(tmp_path / "a.pt")
    assert "dill" in str(caught.value)


# ---------------------------------------------------------------------------------------------------------------------
# Damage


def test_damaged_files_are_read_or_refused(tmp_path, exported, sharded, survives_damage):
    folder, _ = sharded
    index, shard = (folder / f"pytorch_model{name}" for name in (".bin.index.json", "-00002-of-00002.bin"))
    (tmp_path / "net.pt2").write_bytes(exported[1].read_bytes())
    joblib.dump(arrays(), tmp_path / "a.joblib")
    (tmp_path / "old.pkl").write_bytes(pickle.dumps(arrays(), 0))
    alone = [(path, path) for path in (tmp_path / "net.pt2", tmp_path / "a.joblib", tmp_path / "old.pkl", shard)]
    survives_damage([*alone, (index, index)])
