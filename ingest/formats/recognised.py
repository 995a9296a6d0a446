"""What a file is that no reader reads: its name, and what to do instead.

A message should never guess that a file is damaged when it is a healthy file of another kind. Formats with a magic
number, or with a suffix that no other format has, are recognised before any reader is asked, because some formats that
are read have none. Texts are described last: some formats that are read are texts.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

__all__ = ["described_file", "described_folder", "described_text"]


@dataclass(frozen=True, slots=True)
class _Known:
    """A kind of file that is not read.

    Attributes:
        what: Its name, with an article.
        remedy: What to do instead; empty where the file holds no weights.
        magic: First bytes of such files, any of them.
        identifier: What stands at byte 4, as in FlatBuffers.
        suffixes: Suffixes that only such files have.
        json: A key that the first object of such a JSON file has.
    """

    what: str
    remedy: str = ""
    magic: tuple[bytes, ...] = ()
    identifier: bytes | None = None
    suffixes: tuple[str, ...] = ()
    json: bytes | None = None

    def matches(self, name: str, head: bytes) -> bool:
        return (
            (bool(self.magic) and head.startswith(self.magic))
            or (self.identifier is not None and re.match(self.identifier, head[4:8]) is not None)
            or name.endswith(self.suffixes)
            or (self.json is not None and self.json in head and head.lstrip().startswith(b"{"))
        )

    def __str__(self) -> str:
        return f"{self.what}, which is recognised but not read; {self.remedy}" if self.remedy else self.what


_ORIGINAL = "pass the model that it was converted from"
_UNPACK = "unpack it and pass the weight file in it"
_JOBLIB = "unpack it, or save it with joblib.dump(..., compress=0)"
_ZARR = "open it with zarr.open_group and save it with zarr.save_group, or pass the folder above it"

_KNOWN = (
    _Known("a GGML file of llama.cpp or whisper.cpp", _ORIGINAL, magic=(b"ggml", b"lmgg")),
    _Known(
        "a TensorRT engine, compiled for one kind of GPU",
        _ORIGINAL,
        magic=(b"ftrt", b"ptrt"),
        suffixes=(".engine", ".trt", ".plan"),
    ),
    _Known("a network in the UFF of TensorRT", _ORIGINAL, suffixes=(".uff",)),
    _Known("an offline model of Huawei Ascend", _ORIGINAL, magic=(b"IMOD",), suffixes=(".om",)),
    _Known("a MindSpore Lite model", _ORIGINAL, identifier=rb"MSL\d", suffixes=(".ms",)),
    _Known(
        "a MindIR graph of MindSpore",
        "export it as ONNX: mindspore.export(..., file_format='ONNX')",
        suffixes=(".mindir",),
    ),
    _Known("a model of Paddle Lite", _ORIGINAL, suffixes=(".nb",)),
    _Known("a model of TNN", _ORIGINAL, suffixes=(".tnnmodel", ".tnnproto")),
    _Known("a Hailo executable", _ORIGINAL, suffixes=(".hef",)),
    _Known("a deep learning container of Qualcomm SNPE", _ORIGINAL, suffixes=(".dlc",)),
    _Known("a model of K210 (nncase)", _ORIGINAL, magic=(b"LDMK",), suffixes=(".kmodel",)),
    _Known("a program in MLIR", _ORIGINAL, suffixes=(".mlir",)),
    _Known(
        "a file of Torch7 (Lua)",
        "load it with torch.utils.serialization.load_lua of PyTorch 0.4 and save its state dict",
        magic=(b"\x04\0\0\0\x01\0\0\0", b"4\n1\n"),
        suffixes=(".t7",),
    ),
    _Known(
        "weights of an ONNX model in a file of their own",
        "pass the .onnx file beside it",
        suffixes=(".onnx.data", ".onnx_data"),
    ),
    _Known("an empty zip archive", "repeat the download", magic=(b"PK\x05\x06",)),
    _Known("an RKNN model of Rockchip", _ORIGINAL, magic=(b"RKNN",)),
    _Known("a bundled program of ExecuTorch, made for tests", "pass the .pte file in it", identifier=rb"BP\d\d"),
    _Known("an MNN model", _ORIGINAL, suffixes=(".mnn",)),
    _Known("the binary form of an ncnn network", "pass the .param that is text", magic=(b"\xdd\x85\x76\0",)),
    _Known("a PaddlePaddle program", "convert it with paddle2onnx, or pass the .pdparams file", json=b'"magic":"pir"'),
    _Known("a part of a distributed checkpoint of PyTorch", "pass its folder", suffixes=(".distcp",)),
    _Known("the manifest of a Core ML package", "pass the .mlpackage folder", json=b'"itemInfoEntries"'),
    _Known("an array of a Zarr folder", "pass the folder that contains its group", suffixes=(".zarray",)),
    _Known(
        "a MATLAB file",
        "save its arrays with scipy.io.loadmat and numpy.savez, or export the network with exportONNXNetwork",
        magic=(b"MATLAB 5.0 MAT-file", b"MATLAB 7.3 MAT-file"),
    ),
    _Known("an LZ4 archive", _JOBLIB, magic=(b"\x04\x22\x4d\x18",)),
    _Known("a Zstandard archive", _UNPACK, magic=(b"\x28\xb5\x2f\xfd",)),
    _Known("a 7z archive", _UNPACK, magic=(b"7z\xbc\xaf\x27\x1c",)),
    _Known("a RAR archive", _UNPACK, magic=(b"Rar!",)),
    _Known("a PDF document, not weights", magic=(b"%PDF",)),
    _Known("an image, not weights", magic=(b"\x89PNG", b"\xff\xd8\xff", b"GIF8")),
    _Known("a program or a library, not weights", magic=(b"\x7fELF", b"MZ")),
    _Known("a Parquet file, not weights", magic=(b"PAR1",)),
    _Known("an SQLite database, not weights", magic=(b"SQLite format 3",)),
)


def described_file(path: Path, head: bytes) -> str | None:
    """What a file is that is not read, and what to do instead; None for any other file.

    Args:
        path: The file.
        head: Its first bytes.

    >>> described_file(Path("model.engine"), b"ftrt")
    'a TensorRT engine, compiled for one kind of GPU, which is recognised but not read; pass the model that it was \
converted from'
    """
    return next((str(known) for known in _KNOWN if known.matches(path.name.lower(), head)), None)


def described_text(path: Path, head: bytes) -> str | None:
    """What a text is that no reader reads; None for what is not a text.

    Args:
        path: The file.
        head: Its first bytes, up to 4 KiB.

    >>> described_text(Path("model.bin"), b"Entry not found")
    "a text of 15 characters ('Entry not found'), not weights; pass the weight file itself; where it was downloaded, \
the download failed or the address is wrong"
    """
    text = _text(head)
    if text is None:
        return (
            "only zeros, not weights; the download is incomplete, repeat it" if head and not head.strip(b"\0") else None
        )
    start = text.lstrip("\ufeff \t\r\n")
    lower = start.lower()
    if "<html" in lower or lower.startswith(("<!doctype html", "<head")):
        return "an HTML page, not weights; the download was refused or the address is wrong"
    if lower.startswith("<"):
        return "an XML document, not weights; the download was refused or the address is wrong"
    if lower.startswith("[net]"):
        return "the configuration of a Darknet network, without weights; pass the .weights file beside it"
    if lower.startswith("model_checkpoint_path:"):
        named = start.partition('"')[2].partition('"')[0]
        return (
            f"a list of TensorFlow checkpoints, without weights; pass the checkpoint that it names: {named[:100]}.index"
        )
    if path.suffix == ".prototxt":
        return "the architecture of a Caffe network, without weights; pass its .caffemodel"
    what = "a JSON document" if start.startswith(("{", "[")) else "a text"
    shown = " ".join("".join(char if char.isprintable() else " " for char in start).split())
    shown = shown if len(shown) <= 60 else f"{shown[:57]}..."
    length = f"{what} of {len(text)} characters" if len(head) < 4096 else what
    remedy = "pass the weight file itself; where it was downloaded, the download failed or the address is wrong"
    return f"{length} ({shown!r}), not weights; {remedy}"


def described_folder(path: Path) -> str | None:
    """What a folder is that is not read, and what to do instead; None for any other folder."""
    names = {entry.name for entry in path.iterdir()}
    if len(parts := [name for name in names if re.fullmatch(r"mp_rank_\d+(?:_\d+)*", name)]) > 1:
        return f"a checkpoint of {len(parts)} processes; merge them with the program that wrote them"
    if "model_index.json" in names:
        parts = sorted(child.name for child in path.iterdir() if (child / "config.json").is_file())
        return f"a pipeline of diffusers, of several models ({', '.join(parts[:8])}); pass the folder of one of them"
    if ".zarray" in names or any((child / ".zarray").is_file() for child in path.iterdir()):
        return str(_Known("a Zarr folder without the description of its group", _ZARR))
    return None


def _text(head: bytes) -> str | None:
    if head.startswith((b"\xff\xfe", b"\xfe\xff")):  # as programs of Windows write it
        head = head[: len(head) // 2 * 2].decode("utf-16", "replace").encode()
    try:
        text = head.decode("utf-8")
    except UnicodeDecodeError as error:
        if error.start < len(head) - 4:  # a character may be cut at the end
            return None
        text = head[: error.start].decode("utf-8")
    allowed = "\t\r\n\ufeff\x07\x08\x1b"  # colours of a terminal are among them
    plain = text and "\ufffd" not in text and all(char.isprintable() or char in allowed for char in text)
    return text if plain else None
