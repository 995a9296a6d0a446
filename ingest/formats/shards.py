"""Models in several files: the shards of a checkpoint, found by their index or by their names.

An index (``model.safetensors.index.json``, ``pytorch_model.bin.index.json``) names the shard of each tensor. Without
one, the names of the other shards follow from the name of one (``model-00001-of-00003.safetensors``). A model is read
completely or not at all: one shard is not a model.
"""

from __future__ import annotations

import json
import re
from pathlib import Path

from cnnfilterdb.core.errors import WeightFileError
from cnnfilterdb.ingest.formats.companions import companion
from cnnfilterdb.ingest.formats.damage import undamaged

__all__ = ["is_index", "separate_shards", "shards"]

# Variants of precision are named before or after the number: model.fp16-1-of-2.bin, model-1-of-2.fp16.bin
_SHARD = re.compile(r"(?P<stem>.+[-_.])(?P<number>\d+)(?P<of>[-_]of[-_])(?P<count>\d+)(?P<suffix>(?:\.[A-Za-z]\w*)+)")
_MAX_SHARDS = 10_000


# Formats whose readers join shards themselves, by their suffixes
_JOINED = (".safetensors", ".bin", ".pt", ".pth")


def separate_shards(path: Path) -> list[Path]:
    """The files of a model in shards that are complete files of their format each; none for any other file.

    Args:
        path: An index, or a shard.

    Raises:
        WeightFileError: A shard is missing, or is not beside the others.
    """
    if path.name.endswith(_JOINED):
        return []
    with path.open("rb") as file:
        head = file.read(4096)
    if is_index(head):
        # Keras has an index of another name, which its reader reads
        joined = any(f'{suffix}"'.encode() in head for suffix in _JOINED)
        return [] if joined or not path.name.endswith(".index.json") else shards(path, ("",))
    # Other numbers may be those of the folds of a cross-validation
    match = _SHARD.fullmatch(path.name)
    files = shards(path, (path.suffix,)) if match is not None and len(match["number"]) == 5 else []
    return files if len(files) > 1 else []


def is_index(head: bytes, suffixes: tuple[str, ...] = ("",)) -> bool:
    """Whether a file is an index of shards, whose names end in one of some suffixes where those are given."""
    named = any(f'{suffix}"'.encode() in head for suffix in suffixes)
    return head.lstrip().startswith(b"{") and b'"weight_map"' in head and named


def shards(path: Path, suffixes: tuple[str, ...]) -> list[Path]:
    """The files of the model that a file belongs to; the file itself if it is the complete model.

    Args:
        path: An index, or a shard.
        suffixes: Suffixes that the names of shards may have.

    Raises:
        WeightFileError: A shard is missing or is not beside the index, or is a link that leaves the folder.
    """
    with path.open("rb") as file:
        head = file.read(4096)
    if is_index(head):
        kind = suffixes[0].removeprefix(".")
        with undamaged(str(path), "index of shards"):
            names = sorted(set(json.loads(path.read_bytes())["weight_map"].values()))
        for name in names:
            if Path(name).name != name or "\\" in name:
                raise WeightFileError(f"{path}: names the shard {name[:100]!r}, which is not a file beside it; refused")
            if not name.endswith(suffixes):
                raise WeightFileError(f"{path}: an index of {name[:100]}; expected shards that are {kind} files")
    else:
        match = _SHARD.fullmatch(path.name)
        if match is None or not path.name.endswith(suffixes):
            return [path]
        stem, number, of, count, suffix = match.group("stem", "number", "of", "count", "suffix")
        if not 1 <= int(number) <= int(count) <= _MAX_SHARDS:
            return [path]
        names = [f"{stem}{i:0{len(number)}}{of}{count}{suffix}" for i in range(1, int(count) + 1)]
    files = [path.parent / name for name in names]
    missing = [file.name for file in files if not file.is_file()]
    if missing:
        are = "is" if len(missing) == 1 else "are"
        raise WeightFileError(
            f"{path}: {len(missing)} of the {len(files)} shards of the model {are} missing, first {missing[0]}; "
            "put them beside it"
        )
    return [path if file == path else companion(path, file.name) for file in files]
