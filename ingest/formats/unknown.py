"""What a file is that no reader claims: its name for it, and a tool that converts it.

A message should never guess that a file is damaged when it is a healthy file of another kind.
"""

from __future__ import annotations

import re
from pathlib import Path

__all__ = ["described_file", "described_folder"]

_ONNX = "export the model that it was made of to ONNX, or save its PyTorch or Keras weights"

# First bytes, and what they begin
_MAGIC: tuple[tuple[bytes, str], ...] = (
    (b"ggml", "a GGML file of llama.cpp; convert the original model instead, which is usually a PyTorch file"),
    (b"lmgg", "a GGML file of whisper.cpp; convert the original model instead, which is usually a PyTorch file"),
    (b"ftrt", f"a TensorRT engine, whose weights belong to one GPU; {_ONNX}"),
    (b"RKNN", f"an RKNN model of Rockchip; {_ONNX}"),
    (b"MATLAB 5.0 MAT-file", "a MATLAB file; save its arrays with scipy.io.loadmat and numpy.savez, or export the "
     "network to ONNX with exportONNXNetwork"),
    (b"\x1f\x8b", "a gzip archive; unpack it and pass the weight file in it"),
    (b"BZh", "a bzip2 archive, or a compressed joblib file; unpack it, or save it with compress=0"),
    (b"\xfd7zXZ\x00", "an xz archive, or a compressed joblib file; unpack it, or save it with compress=0"),
    (b"\x28\xb5\x2f\xfd", "a Zstandard archive; unpack it and pass the weight file in it"),
    (b"7z\xbc\xaf\x27\x1c", "a 7z archive; unpack it and pass the weight file in it"),
    (b"Rar!", "a RAR archive; unpack it and pass the weight file in it"),
    (b"%PDF", "a PDF document, not weights"),
    (b"\x89PNG", "a PNG image, not weights"),
    (b"\xff\xd8\xff", "a JPEG image, not weights"),
    (b"GIF8", "a GIF image, not weights"),
    (b"\x7fELF", "a program or a compiled model, not weights"),
    (b"MZ", "a Windows program or library, not weights"),
    (b"PAR1", "a Parquet file, not weights"),
    (b"SQLite format 3", "an SQLite database, not weights"),
)  # fmt: skip
# Identifiers of FlatBuffers, at byte 4
_FLATBUFFERS = (
    (b"ORTM", "an ONNX Runtime model (.ort); pass the .onnx file that it was converted from"),
    (b"ET", "an ExecuTorch program (.pte); pass the PyTorch checkpoint, or the .pt2 file of torch.export"),
)
_SUFFIXES = {
    ".pdiparams": "PaddlePaddle inference parameters; convert the model with paddle2onnx",
    ".pdmodel": "a PaddlePaddle graph; convert the model with paddle2onnx",
    ".mnn": f"an MNN model; {_ONNX}",
    ".engine": f"a TensorRT engine; {_ONNX}",
    ".plan": f"a TensorRT engine; {_ONNX}",
    ".distcp": "a part of a distributed checkpoint of PyTorch; convert its folder with "
    "`python -m torch.distributed.checkpoint.format_utils dcp_to_torch FOLDER FILE`",
}


def described_file(path: Path, head: bytes) -> str | None:
    """What a file is, and what to do with it; None where that is not known.

    Args:
        path: The file.
        head: Its first bytes.

    >>> described_file(Path("model.bin"), b"Entry not found")
    "a text of 15 characters ('Entry not found'), not weights; the download failed or the address is wrong"
    """
    for magic, what in _MAGIC:
        if head.startswith(magic):
            return what
    for magic, what in _FLATBUFFERS:
        if head[4:8].startswith(magic) and (magic != b"ET" or head[6:8].isdigit()):
            return what
    if head[:1] == b"x" and head[1:2] in (b"\x01", b"\x5e", b"\x9c", b"\xda") and b"\x00" in head:
        return "compressed data, as joblib.dump(..., compress=...) writes it; save it with compress=0"
    text = _text(head)
    if text is not None:
        return _described_text(path, text, len(head) < 4096)
    return _SUFFIXES.get(path.suffix.lower())


def _described_text(path: Path, text: str, whole: bool) -> str:
    start = text.lstrip("\ufeff \t\r\n")
    lower = start.lower()
    if lower.startswith(("<!doctype html", "<html", "<head")) or ("<?xml" in lower[:10] and "<html" in lower):
        return "an HTML page, not weights; the download was refused or the address is wrong"
    if re.match(r"(?:<\?xml[^>]*>\s*)?<net\s", lower):
        return (
            "the graph of an OpenVINO model (IR), whose weights are in the .bin file beside it; convert it with "
            f"openvino2onnx, or {_ONNX}"
        )
    if lower.startswith(("<?xml", "<")):
        return "an XML document, not weights; the download was refused or the address is wrong"
    if lower.startswith("[net]"):
        return "the configuration of a Darknet network, without weights; convert both with darknet2pytorch"
    if lower.startswith(("name:", "layer {", "input:")) and path.suffix == ".prototxt":
        return "the architecture of a Caffe network, without weights; convert its .caffemodel with MMdnn"
    shown = " ".join(start.split())
    shown = shown if len(shown) <= 60 else f"{shown[:57]}..."
    length = f"a text of {len(text)} characters" if whole else "a text"
    return f"{length} ({shown!r}), not weights; the download failed or the address is wrong"


def _text(head: bytes) -> str | None:
    try:
        text = head.decode("utf-8")
    except UnicodeDecodeError as error:
        if error.start < len(head) - 4:  # a character may be cut at the end
            return None
        text = head[: error.start].decode("utf-8")
    return text if text and all(char.isprintable() or char in "\t\r\n\ufeff" for char in text) else None


def described_folder(path: Path) -> str | None:
    """What a folder is that is not read."""
    names = {entry.name for entry in path.iterdir()}
    if ".metadata" in names and any(name.endswith(".distcp") for name in names):
        return _SUFFIXES[".distcp"].replace("a part of a distributed", "a distributed").replace("its folder", "it")
    if path.suffix == ".mlpackage" or "Manifest.json" in names:
        return f"a Core ML package; convert it with coremltools, or {_ONNX}"
    if names & {".zarray", ".zgroup", "zarr.json", "_CHECKPOINT_METADATA", "manifest.ocdbt"}:
        return "an Orbax or Zarr checkpoint of JAX; save its parameters with safetensors.flax.save_file"
    return None
