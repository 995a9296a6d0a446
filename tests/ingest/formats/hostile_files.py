"""Hostile weight files of all formats, generated, and the child process that reads them.

``python hostile_files.py FOLDER [MORE]`` makes them in a folder, with MORE random ones of each format, reads them and
prints what became of each, as JSON.
"""

from __future__ import annotations

import importlib.util
import io
import json
import os
import pickle
import random
import shutil
import struct
import subprocess
import sys
import time
import zipfile
from collections.abc import Callable, Iterator
from itertools import islice
from pathlib import Path

import numpy as np

_HERE = Path(__file__).parent
#: What a file outside of the models' folders contains; no layer may have it.
SECRET = np.float32(12345.678)


def _module(name: str):
    spec = importlib.util.spec_from_file_location(f"hostile_{name}", _HERE / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


# ------------------------------------------------------------------------------------------------ intact files


def intact(folder: Path) -> Iterator[tuple[str, Path, Path]]:
    """Name, model, and the one of its files to damage, each in a folder of its own."""
    import h5py
    import onnx
    import torch
    import torch.distributed.checkpoint
    from safetensors.numpy import save_file

    rng = np.random.default_rng(0)
    weight = rng.standard_normal((4, 3, 3, 3)).astype(np.float32)

    def home(name: str) -> Path:
        (folder / name).mkdir(parents=True)
        return folder / name

    save_file({"a.weight": weight, "b.weight": weight[:, :, :1]}, home("safetensors") / "net.safetensors")
    np.savez_compressed(
        home("npz") / "net.npz", **{"a/kernel": weight.transpose(2, 3, 1, 0), "a/bias": weight[:, 0, 0, 0]}
    )
    state = {"a.weight": torch.from_numpy(weight), "a.bias": torch.zeros(4)}
    torch.save({"state_dict": state, "epoch": 3}, home("torch zip") / "net.pt")
    torch.save(state, home("torch legacy") / "net.pth", _use_new_zipfile_serialization=False)
    (home("pickle") / "net.pkl").write_bytes(pickle.dumps({"a.weight": weight}, 4))
    torch.jit.save(torch.jit.script(torch.nn.Sequential(torch.nn.Conv2d(3, 4, 3))), home("torchscript") / "net.pt")
    with h5py.File(home("keras h5") / "net.h5", "w") as file:
        file.attrs["backend"], file.attrs["layer_names"] = b"tensorflow", [b"conv"]
        group = file.create_group("conv")
        group.attrs["weight_names"] = [b"conv/kernel:0", b"conv/bias:0"]
        group["conv/kernel:0"], group["conv/bias:0"] = weight.transpose(2, 3, 1, 0), np.zeros(4, np.float32)
    with h5py.File(home("keras v3") / "model.weights.h5", "w") as file:
        group = file.create_group("layers/conv2d/vars")
        group["0"], group["1"] = weight.transpose(2, 3, 1, 0), np.zeros(4, np.float32)
    layers = [{"class_name": "Conv2D", "config": {"name": "conv2d", "filters": 4, "kernel_size": [3, 3]}}]
    with zipfile.ZipFile(folder / "keras v3" / "net.keras", "w") as archive:
        archive.writestr("config.json", json.dumps({"class_name": "Sequential", "config": {"layers": layers}}))
        archive.write(folder / "keras v3" / "model.weights.h5", "model.weights.h5")
    (folder / "keras v3" / "model.weights.h5").unlink()
    torch.distributed.checkpoint.save(state, checkpoint_id=home("torch distributed"), no_dist=True)
    graph = onnx.helper.make_graph(
        [onnx.helper.make_node("Conv", ["x", "w"], ["y"])],
        "net",
        [onnx.helper.make_tensor_value_info("x", onnx.TensorProto.FLOAT, [1, 3, 8, 8])],
        [onnx.helper.make_tensor_value_info("y", onnx.TensorProto.FLOAT, None)],
        [onnx.numpy_helper.from_array(weight, "w")],
    )
    onnx.save(onnx.helper.make_model(graph), home("onnx") / "net.onnx")
    for name, suffix in (
        ("safetensors", ".safetensors"), ("npz", ".npz"), ("torch zip", ".pt"), ("torch legacy", ".pth"),
        ("pickle", ".pkl"), ("torchscript", ".pt"), ("keras h5", ".h5"), ("keras v3", ".keras"), ("onnx", ".onnx"),
    ):  # fmt: skip
        yield name, folder / name / f"net{suffix}", folder / name / f"net{suffix}"
    yield "torch distributed", folder / "torch distributed" / ".metadata", folder / "torch distributed" / ".metadata"
    with zipfile.ZipFile(_HERE.parents[1] / "data" / "tensorflow.zip") as archive:
        archive.extractall(folder / "tensorflow")
    written = folder / "tensorflow"
    for name, model, damaged in (
        ("tflite", "net.tflite", ""),
        ("graphdef", "frozen.pb", ""),
        ("saved model", "saved/saved_model.pb", ""),
        ("variables", "saved/saved_model.pb", "saved/variables/variables.index"),
        ("checkpoint", "ckpt2.index", ""),
        ("checkpoint data", "ckpt2.index", "ckpt2.data-00000-of-00001"),
        ("tfjs", "tfjs_layers/model.json", ""),
        ("tfjs graph", "tfjs_graph/model.json", ""),
        ("tfjs shard", "tfjs_u8/model.json", "tfjs_u8/group1-shard2of3.bin"),
    ):
        yield name, written / model, written / (damaged or model)
    (folder / "others").mkdir()
    for model, damaged in _module("test_other_frameworks").intact(folder / "others"):
        yield damaged.parent.name, model, damaged
    for number, (model, damaged) in enumerate(_module("test_inference_engines").intact(folder / "engines")):
        yield f"{model.name} {number} {damaged.suffix}", model, damaged


def copied(model: Path, damaged: Path, target: Path, content: bytes) -> Path:
    """A copy of a model, with what is beside it, in which one file is damaged; the path of the model."""
    root = Path(os.path.commonpath([model.parent, damaged.parent]))
    for file in root.rglob("*"):
        same = file.stem.partition(".")[0] == model.stem.partition(".")[0] or file.parent != root
        if file.is_file() and (same or root.name not in ("tensorflow",)):
            place = target / file.relative_to(root)
            place.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(file, place)
    (target / damaged.relative_to(root)).write_bytes(content)
    return target / model.relative_to(root)


# ------------------------------------------------------------------------------------------------ any format

_PAGE = b"<!DOCTYPE html><html><head><title>404</title></head><body>Not found</body></html>"
_POINTER = b"version https://git-lfs.github.com/spec/v1\noid sha256:" + b"0" * 64 + b"\nsize 12345\n"


def damages(content: bytes, choose: random.Random, more: int) -> Iterator[tuple[str, bytes]]:
    """What may be wrong with a file of any format."""
    size = len(content)
    for length in sorted({0, 1, 4, 8, 16, size // 4, size // 2, size - 8, size - 1}):
        yield f"cut at {length}", content[:length]
    for place in (0, 8, size - 22, *(choose.randrange(max(1, size - 8)) for _ in range(2))):
        for what, number in (("ones", b"\xff" * 8), ("large", b"\xff\xff\xff\x7f")):
            yield f"{what} at {place}", content[:place] + number + content[place + len(number) :]
    yield "a page", _PAGE
    yield "a pointer", _POINTER
    yield "null", b"null"
    yield "zeros", bytes(size)
    yield "noise", choose.randbytes(1000)
    yield "twice", content + content
    yield "halves exchanged", content[size // 2 :] + content[: size // 2]
    for number in range(more):
        changed = bytearray(content)
        for _ in range(choose.choice((1, 2, 8, 64))):
            changed[choose.randrange(size)] = choose.randrange(256)
        yield f"changed {number}", bytes(changed)


# ------------------------------------------------------------------------------------------------ one format

Make = Callable[[Path, Path], Path]
SPECIAL: dict[str, Make] = {}


def special(name: str) -> Callable[[Make], Make]:
    def known(make: Make) -> Make:
        SPECIAL[name] = make
        return make

    return known


def _safetensors(name: str, header: object, size: int = 432) -> None:
    def make(home: Path, canary: Path) -> Path:
        text = header if isinstance(header, bytes) else json.dumps(header).encode()
        (home / "a.safetensors").write_bytes(len(text).to_bytes(8, "little") + text + bytes(size))
        return home / "a.safetensors"

    SPECIAL[f"safetensors: {name}"] = make


_ENTRY = {"dtype": "F32", "shape": [4, 3, 3, 3], "data_offsets": [0, 432]}
for _name, _header in {
    "negative shape": {"a.weight": _ENTRY | {"shape": [-4, 3, 3, 3]}},
    "shape of fractions": {"a.weight": _ENTRY | {"shape": [4.5, 3, 3, 3]}},
    "huge shape": {"a.weight": _ENTRY | {"shape": [1 << 62, 1 << 62, 3, 3]}},
    "offsets outside": {"a.weight": _ENTRY | {"data_offsets": [0, 1 << 40]}},
    "offsets exchanged": {"a.weight": _ENTRY | {"data_offsets": [432, 0]}},
    "offsets negative": {"a.weight": _ENTRY | {"data_offsets": [-432, 0]}},
    "offsets of text": {"a.weight": _ENTRY | {"data_offsets": ["0", "432"]}},
    "unknown type": {"a.weight": _ENTRY | {"dtype": "Q7"}},
    "overlapping": {f"a{n}.weight": _ENTRY for n in range(5000)},
    "a list": [1, 2, 3],
    "entries that are numbers": {"a.weight": 5},
    "deep": b'{"a":' + b"[" * 200_000,
    "deep and closed": b'{"a":' + b"[" * 50_000 + b"]" * 50_000 + b"}",
    "lone surrogates": b'{"\\ud800.weight": {"dtype": "F32", "shape": [4, 3, 3, 3], "data_offsets": [0, 431]}}',
    "lone surrogates in a layer": b'{"\\ud800.weight": {"dtype":"F32","shape":[4,3,3,3],"data_offsets":[0,432]}}',
    "control characters": {"\x1b[2J\x07a\n.weight": _ENTRY | {"data_offsets": [0, 1]}},
    "control characters in a layer": {"\x1b[2J\x07a\n.weight": _ENTRY},
    "same name twice": b'{"a.weight": %s, "a.weight": %s}' % ((json.dumps(_ENTRY).encode(),) * 2),
    "huge numbers": b'{"a.weight": {"dtype": "F32", "shape": [%s], "data_offsets": [0, 432]}}' % (b"9" * 100_000),
    "not a number": b'{"a.weight": {"dtype": "F32", "shape": [NaN, Infinity], "data_offsets": [0, 432]}}',
    "many dimensions": {"a.weight": _ENTRY | {"shape": [1] * 100_000}},
    "metadata of numbers": {"__metadata__": {"a": 5}, "a.weight": _ENTRY},
    "long name": {"a" * 3_000_000 + ".weight": _ENTRY | {"data_offsets": [0, 1]}},
}.items():
    _safetensors(_name, _header)


@special("safetensors: length of the header")
def _(home: Path, canary: Path) -> Path:
    (home / "a.safetensors").write_bytes((1 << 62).to_bytes(8, "little") + b"{}")
    return home / "a.safetensors"


class _Calls:
    def __init__(self, function: object, *args: object) -> None:
        self.how = (function, args)

    def __reduce__(self) -> tuple[object, ...]:
        return self.how


def _pickles(canary: Path) -> dict[str, bytes]:
    touch = _Calls(os.system, f"touch {canary / 'touched'}")
    deep: object = ()
    for _ in range(400):
        deep = (deep,)
    memo = b"".join(b"]q" + bytes([n]) + b"h" + bytes([n]) + b"a" for n in range(100))
    return {
        "runs a command": pickle.dumps({"a.weight": touch}, 2),
        "opens a file": pickle.dumps(_Calls(open, str(canary / "opened"), "w"), 2),
        "evaluates": pickle.dumps(_Calls(eval, f"open({str(canary / 'evaluated')!r}, 'w')"), 4),
        "names an attribute": b"\x80\x04\x8c\x08builtins\x8c\x0cstr.__init__\x93.",
        "deep": b"\x80\x02" + b"(" * 1_000_000 + b".",
        "deep tuples": pickle.dumps(deep, 2),
        "refers to itself": b"\x80\x02]q\x00h\x00a.",
        "many of them": b"\x80\x02(" + memo + b"t.",
        "long text": b"\x80\x02X\xff\xff\xff\x7f" + b"a" * 100,
        "long bytes": b"\x80\x04\x8e" + struct.pack("<Q", 1 << 40) + b"a",
        "long number": b"\x80\x02\x8b\xff\xff\xff\x7f" + b"\xff" * 100,
        "negative length": b"\x80\x02\x8b\xff\xff\xff\xff.",
        "frame": b"\x80\x04\x95" + struct.pack("<Q", 1 << 60) + b".",
        "memo": b"\x80\x02]r\xff\xff\xff\xff.",
        "unknown memo": b"\x80\x02h\x05.",
        "nothing on the stack": b"\x80\x02" + b"a" * 10,
        "text in control characters": pickle.dumps({"\x1b]0;title\x07": 1}, 2),
        "lone surrogate": b"\x80\x02}X\x03\x00\x00\x00\xed\xa0\x80K\x01s.",
        "persistent": b"\x80\x02X\x01\x00\x00\x00aQ.",
        "duplicates": b"\x80\x02]" + b"2" * 1_000_000 + b".",
        "doubling": b"\x80\x02(" + b"".join(b"(2222t" for _ in range(2000)) + b"t.",
        "import of a path": b"\x80\x02c../../canary\nsecret\n.",
    }


def _pickled(name: str, suffix: str) -> None:
    def make(home: Path, canary: Path) -> Path:
        content = _pickles(canary)[name]
        path = home / f"a{suffix}"
        if suffix == ".pt":
            with zipfile.ZipFile(path, "w") as archive:
                archive.writestr("a/data.pkl", content)
                archive.writestr("a/data/0", bytes(432))
                archive.writestr("a/version", "3\n")
        else:
            path.write_bytes(content)
        return path

    SPECIAL[f"pickle{suffix}: {name}"] = make


for _name in _pickles(Path("canary")):
    for _suffix in (".pkl", ".pt", ".pth"):
        _pickled(_name, _suffix)


def _npy(header: str, size: int = 432) -> bytes:
    text = header.encode("latin-1").ljust(118) + b"\n"
    return b"\x93NUMPY\x01\x00" + struct.pack("<H", len(text)) + text + bytes(size)


_HEADER = "{'descr': '<f4', 'fortran_order': False, 'shape': (3, 3, 3, 4), }"
_ARRAYS = {
    "huge shape": _npy("{'descr': '<f4', 'fortran_order': False, 'shape': (3, 3, 99999999999, 4), }"),
    "negative shape": _npy("{'descr': '<f4', 'fortran_order': False, 'shape': (3, 3, -3, -4), }"),
    "shape of texts": _npy("{'descr': '<f4', 'fortran_order': False, 'shape': ('3', 3), }"),
    "objects": _npy("{'descr': '|O', 'fortran_order': False, 'shape': (1,), }") + pickle.dumps([os.getcwd]),
    "expression": _npy("{'descr': '<f4', 'fortran_order': False, 'shape': (__import__('os').getpid(),), }"),
    "deep header": _npy("(" * 5000),
    "long type": _npy("{'descr': '<f4000000000', 'fortran_order': False, 'shape': (3, 3, 3, 4), }"),
    "nested type": _npy("{'descr': [('a', '<f4', (1000, 1000))], 'fortran_order': False, 'shape': (1000,), }"),
    "length of the header": b"\x93NUMPY\x02\x00\xff\xff\xff\xff{}",
    "no header": b"\x93NUMPY\x01\x00\x00\x00",
    "cut": _npy(_HEADER, 100),
}


def _zipped(name: str, members: dict[str, bytes], **changes: tuple[bytes, bytes]) -> None:
    def make(home: Path, canary: Path) -> Path:
        data = io.BytesIO()
        with zipfile.ZipFile(data, "w", zipfile.ZIP_DEFLATED) as archive:
            for member, content in members.items():
                archive.writestr(member, content)
        content = data.getvalue()
        for old, new in changes.values():
            content = content.replace(old, new)
        (home / "a.npz").write_bytes(content)
        return home / "a.npz"

    SPECIAL[f"npz: {name}"] = make


for _name, _array in _ARRAYS.items():
    _zipped(_name, {"conv/kernel.npy": _array})
_GOOD = _npy(_HEADER)
_zipped("path of a member", {"../../canary/kernel.npy": _GOOD})
_zipped("absolute path of a member", {"/canary/kernel.npy": _GOOD})
_zipped("control characters", {"\x1b[2Jconv/kernel.npy": _GOOD[:-9]})
_zipped("zeros without end", {"conv/kernel.npy": _npy(_HEADER, 64 << 20)})
_zipped("many members", {f"{n}/kernel.npy": b"" for n in range(20_000)})
_zipped("unknown compression", {"conv/kernel.npy": _GOOD}, method=(b"\x08\x00", b"\x63\x00"))
_zipped("local names differ", {"conv/kernel.npy": _GOOD}, header=(b"PK\x03\x04", b"PK\x03\x05"))


@special("keras: external link")
def _(home: Path, canary: Path) -> Path:
    import h5py

    with h5py.File(home / "a.h5", "w") as file:
        file.attrs["layer_names"] = [b"conv"]
        group = file.create_group("conv")
        group.attrs["weight_names"] = [b"k"]
        group["k"] = h5py.ExternalLink(str(canary / "secret.h5"), "/k")
    return home / "a.h5"


@special("keras: external storage")
def _(home: Path, canary: Path) -> Path:
    import h5py

    with h5py.File(home / "a.h5", "w") as file:
        file.attrs["layer_names"] = [b"conv"]
        group = file.create_group("conv")
        group.attrs["weight_names"] = [b"k"]
        group.create_dataset("k", (3, 3, 3, 4), "f4", external=[(str(canary / "secret.bin"), 0, 432)])
    return home / "a.h5"


@special("keras: links in a circle")
def _(home: Path, canary: Path) -> Path:
    import h5py

    with h5py.File(home / "a.h5", "w") as file:
        file["a"], file["b"] = h5py.SoftLink("/b"), h5py.SoftLink("/a")
        file["c"] = file.create_group("d")
        file["d/e"] = file["d"]
    return home / "a.h5"


@special("keras: names")
def _(home: Path, canary: Path) -> Path:
    import h5py

    with h5py.File(home / "a.h5", "w") as file:
        file.attrs["layer_names"] = [b"\xff\xfe\x1b[2J"]
        file.create_group(b"\xff\xfe\x1b[2J").attrs["weight_names"] = [b"\xed\xa0\x80"]
    return home / "a.h5"


@special("keras: deep configuration")
def _(home: Path, canary: Path) -> Path:
    with zipfile.ZipFile(home / "a.keras", "w") as archive:
        archive.writestr("config.json", '{"config": ' + "[" * 100_000)
        archive.writestr("metadata.json", "{}")
        archive.writestr("model.weights.h5", b"\x89HDF\r\n\x1a\n")
    return home / "a.keras"


def _onnx(name: str, **external: str) -> None:
    def make(home: Path, canary: Path) -> Path:
        import onnx

        weight = onnx.TensorProto(name="w", data_type=1, dims=[4, 3, 3, 3], data_location=1)
        for key, value in external.items():
            weight.external_data.add(key=key, value=value.replace("CANARY", str(canary)))
        graph = onnx.helper.make_graph([onnx.helper.make_node("Conv", ["x", "w"], ["y"])], "net", [], [], [weight])
        (home / "a.onnx").write_bytes(onnx.helper.make_model(graph).SerializeToString())
        (home / "link").symlink_to(canary)
        (home / "data.bin").write_bytes(bytes(432))
        return home / "a.onnx"

    SPECIAL[f"onnx: {name}"] = make


_onnx("data outside", location="../canary/secret.bin")
_onnx("data at an absolute path", location="CANARY/secret.bin")
_onnx("data behind a link", location="link/secret.bin")
_onnx("data at a device", location="/dev/zero")
_onnx("data nowhere", location="nothing.bin")
_onnx("data behind the end", location="data.bin", offset="432", length="432")
_onnx("data of negative length", location="data.bin", offset="0", length="-1")
_onnx("data of a wrong length", location="data.bin", length="99999999999999999999")
_onnx("data at text", location="data.bin", offset="abc")
_onnx("data without a place")


def _tfjs(name: str, *shards: str, **spec: object) -> None:
    def make(home: Path, canary: Path) -> Path:
        weight = {"name": "conv/kernel", "dtype": "float32", "shape": [3, 3, 3, 4]} | spec
        shown = [shard.replace("CANARY", str(canary)) for shard in shards]
        manifest = [{"paths": shown, "weights": [weight]}]
        (home / "model.json").write_text(
            json.dumps({"format": "layers-model", "modelTopology": {}, "weightsManifest": manifest})
        )
        (home / "a.bin").write_bytes(bytes(432))
        (home / "link.bin").symlink_to(canary / "secret.bin")
        return home / "model.json"

    SPECIAL[f"tfjs: {name}"] = make


_tfjs("shard outside", "../canary/secret.bin")
_tfjs("shard at an absolute path", "CANARY/secret.bin")
_tfjs("shard behind a link", "link.bin")
_tfjs("shard on the network", "http://127.0.0.1:9/a.bin")
_tfjs("shard with NUL", "a\0.bin")
_tfjs("shard is a folder", ".")
_tfjs("one shard often", *["a.bin"] * 20_000)
_tfjs("huge shape", "a.bin", shape=[1 << 40, 1 << 40, 3, 3])
_tfjs("negative shape", "a.bin", shape=[-3, -3, 3, 4])
_tfjs("shape of texts", "a.bin", shape=["3", None])
_tfjs("unknown type", "a.bin", dtype="float8")
_tfjs("quantized by nonsense", "a.bin", quantization={"dtype": "uint8", "scale": "x", "min": []})


@special("openvino: entities")
def _(home: Path, canary: Path) -> Path:
    lines = ['<!ENTITY a0 "aaaaaaaaaa">', *(f'<!ENTITY a{n} "{f"&a{n - 1};" * 10}">' for n in range(1, 12))]
    (home / "a.xml").write_text(f'<?xml version="1.0"?><!DOCTYPE net [{"".join(lines)}]><net version="11">&a11;</net>')
    (home / "a.bin").write_bytes(bytes(432))
    return home / "a.xml"


@special("openvino: external entity")
def _(home: Path, canary: Path) -> Path:
    entity = f'<!DOCTYPE net [<!ENTITY a SYSTEM "file://{canary}/secret.bin">]>'
    (home / "a.xml").write_text(f'<?xml version="1.0"?>{entity}<net version="11">&a;</net>')
    (home / "a.bin").write_bytes(bytes(432))
    return home / "a.xml"


@special("openvino: deep")
def _(home: Path, canary: Path) -> Path:
    (home / "a.xml").write_text('<?xml version="1.0"?><net version="11">' + "<layers>" * 200_000)
    (home / "a.bin").write_bytes(bytes(432))
    return home / "a.xml"


@special("executorch: segments without end")
def _(home: Path, canary: Path) -> Path:
    segments = struct.pack("<QQ", 1 << 63, 1 << 63)
    (home / "a.pte").write_bytes(struct.pack("<I4s4sI", 60, b"ET12", b"eh00", 32) + segments * 3 + bytes(400))
    return home / "a.pte"


@special("executorch: a delegate that is no graph")
def _(home: Path, canary: Path) -> Path:
    with zipfile.ZipFile(_HERE.parents[1] / "data" / "executorch.zip") as archive:
        whole = archive.read("xnnpack.pte")
    (home / "a.pte").write_bytes(whole.replace(b"XH00", b"XH01").replace(b"XN01", b"XM01"))
    return home / "a.pte"


@special("executorch: weights behind a link")
def _(home: Path, canary: Path) -> Path:
    with zipfile.ZipFile(_HERE.parents[1] / "data" / "executorch.zip") as archive:
        (home / "a.pte").write_bytes(archive.read("apart/net.pte"))
        (canary / "a.ptd").write_bytes(archive.read("apart/_default_external_constant.ptd"))
    (home / "a.ptd").symlink_to(canary / "a.ptd")
    return home / "a.pte"


@special("zarr: a bomb of each codec")
def _(home: Path, canary: Path) -> Path:
    import bz2
    import zlib

    (home / ".zgroup").write_text('{"zarr_format": 2}')
    content = bytes(256 << 20)
    packed = {"bz2": bz2.compress(content), "zlib": zlib.compress(content), "lz4": b"\xff\xff\xff\x7f" + bytes(400)}
    packed["blosc"] = struct.pack("<4B3I", 2, 1, 33, 4, 0x7FFFFFFF, 1 << 20, 416) + bytes(400)
    for name, data in packed.items():
        place = home / name / "kernel"
        place.mkdir(parents=True)
        described = {"zarr_format": 2, "shape": [4, 3, 3, 3], "chunks": [4, 3, 3, 3], "dtype": "<f4", "order": "C"}
        (place / ".zarray").write_text(json.dumps(described | {"compressor": {"id": name}, "fill_value": 0}))
        (place / "0.0.0.0").write_bytes(data)
    return home / ".zgroup"


@special("gguf: counts")
def _(home: Path, canary: Path) -> Path:
    (home / "a.gguf").write_bytes(b"GGUF" + struct.pack("<IQQ", 3, 1 << 60, 1 << 60))
    return home / "a.gguf"


@special("gguf: nested arrays")
def _(home: Path, canary: Path) -> Path:
    nested = struct.pack("<IQ", 9, 1) * 50_000
    (home / "a.gguf").write_bytes(
        b"GGUF" + struct.pack("<IQQ", 3, 0, 1) + struct.pack("<Q", 1) + b"a" + b"\x09\0\0\0" + nested
    )
    return home / "a.gguf"


@special("flax: deep")
def _(home: Path, canary: Path) -> Path:
    (home / "a.msgpack").write_bytes(b"\x81\xa1a" * 100_000)
    return home / "a.msgpack"


@special("flax: lengths")
def _(home: Path, canary: Path) -> Path:
    (home / "a.msgpack").write_bytes(b"\x81\xa1a\xdd\xff\xff\xff\xff\xc9\xff\xff\xff\xff\x01")
    return home / "a.msgpack"


@special("protobuf: groups")
def _(home: Path, canary: Path) -> Path:
    (home / "a.onnx").write_bytes(b"\x08\x08" + b"\x3b" * 500_000)
    return home / "a.onnx"


@special("protobuf: nested messages")
def _(home: Path, canary: Path) -> Path:
    content = b""
    for _ in range(3000):
        size, head = len(content), b""
        while size > 127:
            head, size = head + bytes([size & 127 | 128]), size >> 7
        content = b"\x0a" + head + bytes([size]) + content
    (home / "a.pb").write_bytes(content)
    return home / "a.pb"


@special("darknet: layers without end")
def _(home: Path, canary: Path) -> Path:
    layer = "[convolutional]\nfilters=999999999\nsize=999\n"
    (home / "a.cfg").write_text("[net]\nwidth=416\nheight=416\nchannels=3\n" + layer * 10_000)
    (home / "a.weights").write_bytes(struct.pack("<3iQ", 0, 2, 0, 0) + bytes(4000))
    return home / "a.weights"


@special("a folder")
def _(home: Path, canary: Path) -> Path:
    (home / "a.pt").mkdir()
    return home / "a.pt"


@special("a named pipe")
def _(home: Path, canary: Path) -> Path:
    os.mkfifo(home / "a.safetensors")
    return home / "a.safetensors"


@special("a device")
def _(home: Path, canary: Path) -> Path:
    (home / "a.npz").symlink_to("/dev/zero")
    return home / "a.npz"


# ------------------------------------------------------------------------------------------------ all of them


def make(folder: Path, more: int = 0, share: int = 1) -> dict[str, Path]:
    """All cases, by name; beside them the folder ``canary``, which none may read or change.

    Args:
        folder: A folder that does not exist.
        more: Number of randomly changed files of each kind.
        share: Make only every so many of the files that are damaged in the same way for all formats.
    """
    import h5py

    canary = folder / "canary"
    canary.mkdir(parents=True)
    secret = np.full((3, 3, 3, 4), SECRET, np.float32)
    (canary / "secret.bin").write_bytes(secret.tobytes())
    with h5py.File(canary / "secret.h5", "w") as file:
        file["k"] = secret
    paths: dict[str, Path] = {}
    for name, model, damaged in intact(folder / "intact"):
        choose = random.Random(name)
        for what, content in islice(damages(damaged.read_bytes(), choose, more), len(name) % share, None, share):
            home = folder / f"{len(paths):05}"
            home.mkdir()
            paths[f"{name}: {what}"] = copied(model, damaged, home, content)
    for name, build in SPECIAL.items():
        home = folder / f"{len(paths):05}"
        home.mkdir()
        paths[name] = build(home, canary)
    return paths


def tree(folder: Path) -> dict[str, tuple[int, bytes]]:
    """Every file of a folder, and its content."""
    return {
        path.relative_to(folder).as_posix(): (path.lstat().st_mtime_ns, path.read_bytes() if path.is_file() else b"")
        for path in sorted(folder.rglob("*"))
    }


def outcomes(paths: dict[str, Path], *, batches: int = 2) -> dict[str, dict[str, object]]:
    """Read files in child processes, and return what became of each."""
    names, found = list(paths), {}
    children = []
    for batch in range(batches):
        some = json.dumps([[name, str(paths[name])] for name in names[batch::batches]])
        line = [sys.executable, "-P", str(Path(__file__)), "--read"]
        child = subprocess.Popen(line, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        assert child.stdin is not None
        child.stdin.write(some)
        child.stdin.close()
        children.append(child)
    for child in children:
        assert child.stdout is not None
        assert child.stderr is not None
        for line in child.stdout:
            one = json.loads(line)
            found[one["name"]] = one
        said = child.stderr.read()
        assert child.wait() == 0, said[-3000:]
    return found


def _read_all() -> None:
    """In the child: read the files named on standard input, and print what became of each."""
    import resource
    import warnings

    from cnnfilterdb.core.errors import CnnFilterDbError
    from cnnfilterdb.ingest import formats, pipeline

    warnings.simplefilter("ignore")
    resource.setrlimit(resource.RLIMIT_AS, (8 << 30, 8 << 30))
    formats.registered()
    for name, text in json.load(sys.stdin):
        path, said, raw = Path(text), "read", False
        Path("/proc/self/clear_refs").write_text("5")  # the peak begins anew
        began = time.process_time()
        try:
            for layer in formats.read(pipeline.weight_path(path)).layers:
                str(layer.name).encode()
                if layer.shape[0] and (layer.read() == SECRET).any():
                    said = "SECRET"
        except CnnFilterDbError as error:
            said = str(error)
        except BaseException as error:
            said, raw = f"{type(error).__name__}: {error}", True
        seconds = time.process_time() - began
        peak = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmHWM"))
        print(
            json.dumps(
                {"name": name, "said": said, "raw": raw, "seconds": seconds, "peak": int(peak.split()[1]) << 10}
            ),
            flush=True,
        )


def _by_hand() -> None:
    folder, more = Path(sys.argv[1]), int(sys.argv[2]) if len(sys.argv) > 2 else 0
    paths = make(folder, more)
    before = tree(folder / "canary")
    found = outcomes(paths)
    for one in found.values():
        bad = one["raw"] or one["said"] == "SECRET" or one["seconds"] > 20 or one["peak"] > 1.5e9
        if bad or "\n" in one["said"] or not one["said"].isprintable():
            print(json.dumps(one))
    print(f"{len(found)} files, {sum(one['said'] == 'read' for one in found.values())} read")
    print(f"at most {max(one['seconds'] for one in found.values()):.1f} s")
    print(f"and {max(one['peak'] for one in found.values()) / 1e6:,.0f} MB; canary {tree(folder / 'canary') == before}")


if __name__ == "__main__":
    _read_all() if sys.argv[1:] == ["--read"] else _by_hand()
