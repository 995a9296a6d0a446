"""What files state about themselves: it is kept with the model, and shown by inspect."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper
from safetensors.numpy import save_file

import cnnfilterdb
from cnnfilterdb.ingest.network.contents import CONTENTS, from_text
from cnnfilterdb.ingest.network.layers import stated

KERNELS = np.random.default_rng(0).normal(size=(8, 3, 3, 3)).astype(np.float32)


def safetensors_file(folder: Path, **metadata: str) -> Path:
    save_file({"conv.weight": KERNELS}, folder / "a.safetensors", metadata=metadata)
    return folder / "a.safetensors"


def onnx_file(folder: Path) -> Path:
    graph = helper.make_graph(
        [helper.make_node("Conv", ["x", "w"], ["y"])],
        "graph",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [1, 3, 8, 8])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, None)],
        [numpy_helper.from_array(KERNELS, "w")],
    )
    model = helper.make_model(graph, producer_name="pytorch", producer_version="2.1", doc_string="lungs")
    helper.set_model_props(model, {"license": "MIT"})
    onnx.save(model, folder / "a.onnx")
    return folder / "a.onnx"


@pytest.mark.parametrize(
    ("make", "expected"),
    [
        (lambda folder: safetensors_file(folder, format="pt", license="mit", empty=" "), {"license": "mit"}),
        (onnx_file, {"producer": "pytorch 2.1", "doc_string": "lungs", "license": "MIT"}),
    ],
    ids=["safetensors", "onnx"],
)
def test_metadata_of_files_is_shown_and_kept(tmp_path, make, expected):
    file = make(tmp_path)
    found = cnnfilterdb.inspect(file)
    assert found.metadata == expected
    for name, text in expected.items():
        assert f"{name} {text!r}" in str(found).splitlines()[1]
    with cnnfilterdb.create(tmp_path / "a.db") as db:
        db.add(file, name="mine", original={"licence": "as the author wrote"})
        kept = db.sql("SELECT original FROM models").fetchall()[0][0]
        assert from_text(kept.pop(CONTENTS)) == found.contents
        assert kept == {f"file: {name}": text for name, text in expected.items()} | {"licence": "as the author wrote"}
        assert db.verify() == []


def test_a_file_without_metadata_states_nothing(tmp_path):
    found = cnnfilterdb.inspect(safetensors_file(tmp_path))
    assert (found.metadata, found.statement) == ({}, "")


def test_hostile_metadata_is_cut_and_printable(tmp_path):
    metadata = {f"key{number:03}": "x" for number in range(500)} | {"a\x1b[2J": "red\x1b[31m\n" + "y" * 100_000}
    found = cnnfilterdb.inspect(safetensors_file(tmp_path, **metadata))
    assert len(found.metadata) <= 64
    assert all(len(text) <= 2000 for text in found.metadata.values())
    assert found.statement.isprintable()
    assert len(found.statement) < 2000
    assert "more" in found.statement


def test_only_texts_are_metadata(tmp_path):
    assert stated([("a", "b"), (1, "c"), ("d", None), ("e", ["f"]), ("", "g")]) == {"a": "b"}
    header = json.dumps(
        {
            "__metadata__": {"n": 1, "t": "x"},
            "c.weight": {"dtype": "F32", "shape": [1, 1, 3, 3], "data_offsets": [0, 36]},
        }
    ).encode()
    file = tmp_path / "a.safetensors"
    file.write_bytes(len(header).to_bytes(8, "little") + header + np.arange(9, dtype=np.float32).tobytes())
    assert cnnfilterdb.inspect(file).metadata == {"t": "x"}
