"""Writes tests/data/gguf.zip with the gguf package: pip install gguf, then run this file. Random weights."""

import io
import tempfile
import zipfile
from pathlib import Path

import gguf
import numpy as np

rng = np.random.default_rng(0)
STEM = rng.standard_normal((8, 3, 3, 3)).astype("f4")
NEXT = rng.standard_normal((16, 8, 5, 3)).astype("f2")

with tempfile.TemporaryDirectory() as folder:
    path = Path(folder) / "net.gguf"
    writer = gguf.GGUFWriter(path, "clip")
    writer.add_string("general.name", "net")
    writer.add_array("labels", ["a", "b"])
    writer.add_uint32("number", 3)
    writer.add_tensor("stem.weight", STEM)
    writer.add_tensor("stem.bias", rng.standard_normal(8).astype("f4"))
    writer.add_tensor("next.weight", NEXT)
    blocks = np.zeros((8, 8, 3, 34), np.uint8)
    writer.add_tensor("blocks.weight", blocks, raw_shape=blocks.shape, raw_dtype=gguf.GGMLQuantizationType.Q8_0)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    truth = io.BytesIO()
    np.savez(truth, stem=STEM, next=NEXT)
    with zipfile.ZipFile(Path(__file__).with_name("gguf.zip"), "w", zipfile.ZIP_DEFLATED) as archive:
        archive.write(path, "net.gguf")
        archive.writestr("net.npz", truth.getvalue())
