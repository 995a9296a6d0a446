"""What is not read is called by its name, with a tool that converts it."""

from __future__ import annotations

import pickle

import numpy as np
import pytest

from cnnfilterdb.errors import WeightFileError
from cnnfilterdb.ingest import formats
from cnnfilterdb.reports import escaped

FILES = {
    "pytorch_model.bin": (b"Entry not found", "a text of 15 characters \\('Entry not found'\\)"),
    "a.bin": (b'{"error":"Repository not found"}', "Repository not found"),
    "b.bin": (b"<!DOCTYPE html><html>", "an HTML page"),
    "feed.xml": (b'<?xml version="1.0"?><rss/>', "an XML document"),
    "c.bin": (b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n", "git lfs pull"),
    "d.engine": (b"ftrt" + bytes(30), "TensorRT"),
    "e.prototxt": (b'name: "net"\nlayer { }', "pass its .caffemodel"),
    "h.distcp": (b"PK\x03\x04" + bytes(30), "dcp_to_torch FOLDER FILE"),
    "f.pte": (b"\x00\x01\x00\x00ET12" + bytes(30), "ExecuTorch"),
    "g.ort": (b"\x00\x01\x00\x00ORTM" + bytes(30), "ONNX Runtime"),
    "i.weights": (b"\x00\x00\x00\x00\x02\x00\x00\x00" + bytes(30), "Darknet"),
    "k.gz": (b"\x1f\x8b\x08" + bytes(30), "gzip"),
    "l.pkl": (b"x\x9c\x00\x01\x02" + bytes(30), "joblib"),
    "m.svg": (b"<svg>" + b"x" * 5000, "an XML document"),
    "n.cfg": (b"[net]\nbatch=1\n", "pass the .weights file"),
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


def test_folders_are_called_by_their_name(tmp_path):
    (tmp_path / ".metadata").write_bytes(b"")
    (tmp_path / "__0_0.distcp").write_bytes(b"")
    with pytest.raises(WeightFileError, match="dcp_to_torch"):
        formats.read(tmp_path)


def test_names_in_messages_can_be_printed(tmp_path):
    arrays = {"a\x1b[31m.weight": np.ones((8, 3, 3, 3, 3), "f4"), "b\x07.weight": np.ones((8, 3, 3, 3), "f4")}
    arrays |= {"b\x07.bias": np.ones(8, "f4")}
    (tmp_path / "a.pkl").write_bytes(pickle.dumps(arrays))
    weights = formats.read(tmp_path / "a.pkl")
    assert [layer.name for layer in weights.layers] == ["b\\x07"]
    assert [entry.name for entry in weights.skipped] == ["a\\x1b[31m.weight"]
    assert escaped("\ud800").isprintable()
