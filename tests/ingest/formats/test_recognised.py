"""What is not read is called by its name, with a tool that converts it."""

from __future__ import annotations

import gzip
import pickle
import re
import zipfile
from pathlib import Path

import numpy as np
import pytest

from cnnfilterdb.catalog.entries import FORMATS
from cnnfilterdb.core.errors import WeightFileError
from cnnfilterdb.core.reports import escaped
from cnnfilterdb.ingest import formats

FILES = {
    "pytorch_model.bin": (b"Entry not found", "a text of 15 characters \\('Entry not found'\\)"),
    "a.bin": (b'{"error":"Repository not found"}', "Repository not found"),
    "b.bin": (b"<!DOCTYPE html><html>", "an HTML page"),
    "feed.xml": (b'<?xml version="1.0"?><rss/>', "an XML document"),
    "c.bin": (b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n", "git lfs pull"),
    "d.engine": (b"ftrt" + bytes(30), "TensorRT"),
    "e.prototxt": (b'name: "net"\nlayer { }', "pass its .caffemodel"),
    "h.distcp": (b"PK\x03\x04" + bytes(30), "pass its folder"),
    "f.t7": (b"\x04\0\0\0\x01\0\0\0" + bytes(30), "Torch7"),
    "f.om": (b"IMOD" + bytes(30), "Huawei Ascend"),
    "f.ms": (b"\x10\0\0\0MSL2" + bytes(30), "MindSpore Lite"),
    "f.mindir": (b"\n\x05" + bytes(30), "file_format='ONNX'"),
    "f.plan": (b"ptrt" + bytes(30), "TensorRT"),
    "net.onnx.data": (bytes(30), "pass the .onnx file beside it"),
    "empty.keras": (b"PK\x05\x06" + bytes(18), "an empty zip archive"),
    "checkpoint": (b'model_checkpoint_path: "net-7"\n', "pass the checkpoint that it names: net-7.index"),
    "f.bpte": (b"\x00\x01\x00\x00BP08" + bytes(30), "ExecuTorch"),
    "p.mat": (b"MATLAB 7.3 MAT-file, Platform" + bytes(500), "MATLAB"),
    "q.json": (b'{"architectures": ["ResNet"]}', "a JSON document of 29 characters"),
    "r.bin": (bytes(5000), "only zeros, not weights; the download is incomplete"),
    "s.html": (b"<!-- saved -->\n<html><body>404</body></html>", "an HTML page"),
    "t.lz4": (b"\x04\x22\x4d\x18" + bytes(30), "LZ4"),
    "i.weights": (b"\x00\x00\x00\x00\x02\x00\x00\x00" + bytes(30), "Darknet"),
    "k.gz": (gzip.compress(b"Entry not found"), "a gzip archive that contains neither a PyTorch file nor a pickle"),
    "m.svg": (b"<svg>" + b"x" * 5000, "an XML document"),
    "n.cfg": (b"[net]\nbatch=1\n", "pass the .weights file"),
    "u.bin": ("Entry not found".encode("utf-16"), "a text of 15 characters \\('Entry not found'\\)"),
    "v.bin": (b"\x1b[31mAccess denied\x1b[0m\n", "a text of 23 characters \\('\\[31mAccess denied"),
    "o.txt": ("ä".encode() * 3000, "a text \\('ä"),
}


@pytest.mark.parametrize("name", FILES)
def test_files_are_called_by_their_name(tmp_path, name):
    data, what = FILES[name]
    (tmp_path / name).write_bytes(data)
    with pytest.raises(WeightFileError, match=what) as caught:
        formats.read(tmp_path / name)
    assert str(caught.value).isprintable()
    assert "download it again" not in str(caught.value)


def test_several_arrays_in_one_file_are_not_called_damage(tmp_path):
    with (tmp_path / "a.npy").open("wb") as file:
        for _ in range(2):
            np.save(file, np.ones((8, 3, 3, 3)))
    with pytest.raises(WeightFileError, match=r"several arrays one after the other.*numpy\.savez") as caught:
        formats.read(tmp_path / "a.npy")
    assert "download" not in str(caught.value)


def test_compiled_packages_of_pytorch_are_called_so(tmp_path):
    with zipfile.ZipFile(tmp_path / "a.pt2", "w") as archive:
        archive.writestr("a/archive_format", "pt2")
        archive.writestr("a/data/aotinductor/model/kernel.so", b"\x7fELF")
    with pytest.raises(WeightFileError, match="a package of AOTInductor"):
        formats.read(tmp_path / "a.pt2")


def test_folders_are_called_by_their_name(tmp_path):
    (tmp_path / "kernel").mkdir()
    (tmp_path / "kernel" / ".zarray").write_bytes(b"{}")
    with pytest.raises(WeightFileError, match="a Zarr folder without the description of its group"):
        formats.read(tmp_path)


def test_a_pipeline_of_diffusers_names_its_models(tmp_path):
    for name in ("unet", "vae"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "config.json").write_text("{}")
    (tmp_path / "model_index.json").write_text('{"_class_name": "StableDiffusionPipeline"}')
    with pytest.raises(WeightFileError, match=r"a pipeline of diffusers, .*\(unet, vae\); pass the folder"):
        formats.read(tmp_path)


def test_a_folder_of_one_weight_file_is_that_model(tmp_path):
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(WeightFileError, match="a folder of no weight file"):
        formats.read(tmp_path)
    np.savez(tmp_path / "net.npz", **{"a.weight": np.ones((8, 3, 3, 3)), "b.weight": np.ones((8, 8, 3, 3))})
    assert len(formats.read(tmp_path).layers) == 2
    np.savez(tmp_path / "other.npz", **{"a.weight": np.ones((8, 3, 3, 3))})
    with pytest.raises(WeightFileError, match=r"a folder of 2 weight files, net\.npz, other\.npz; pass one"):
        formats.read(tmp_path)


def test_a_folder_of_checkpoints_names_them(tmp_path):
    """As Orbax keeps the steps of a training."""
    for step in ("100", "200", "300"):
        (tmp_path / step).mkdir()
        (tmp_path / step / "manifest.ocdbt").write_bytes(b"")
    with pytest.raises(WeightFileError, match=r"a folder of 3 models, 100, 200, \.\.\.; pass one$"):
        formats.read(tmp_path)


def test_names_in_messages_can_be_printed(tmp_path):
    arrays = {"a\x1b[31m.weight": np.ones((8, 3, 3, 3, 3), "f4"), "b\x07.weight": np.ones((8, 3, 3, 3), "f4")}
    arrays |= {"b\x07.bias": np.ones(8, "f4")}
    (tmp_path / "a.pkl").write_bytes(pickle.dumps(arrays))
    weights = formats.read(tmp_path / "a.pkl")
    assert [layer.name for layer in weights.layers] == ["b\\x07"]
    assert [entry.name for entry in weights.skipped] == ["a\\x1b[31m.weight"]
    assert escaped("\ud800").isprintable()


def test_the_manual_lists_every_format():
    manual = (Path(__file__).parents[3] / "docs" / "guides" / "weight-files.md").read_text(encoding="utf-8")
    assert set(FORMATS) <= set(re.findall(r"`(\w+)`", manual))
    for format in formats.registered().values():
        assert any(suffix in manual for suffix in format.suffixes), format.name


def test_the_manual_names_tests_that_exist():
    manual = (Path(__file__).parents[3] / "docs" / "guides" / "weight-files.md").read_text(encoding="utf-8")
    source = "".join(path.read_text(encoding="utf-8") for path in Path(__file__).parents[2].rglob("test_*.py"))
    named = set(re.findall(r"`(test_\w+)`", manual))
    assert len(named) > 40
    assert {name for name in named if f"def {name}(" not in source} == set()
    modules = set(re.findall(r"`((?:network|formats)(?:\.\w+)+)`", manual))
    ingest = Path(formats.__file__).parents[1]
    assert {one for one in modules if not (ingest / f"{one.replace('.', '/')}.py").is_file()} == set()
