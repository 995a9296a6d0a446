"""The convolutions of a remote safetensors file, read by ranges into a small file of the same format.

All tensors of four dimensions are read, all vectors (few bytes, and they show the kind of a layer), and the matrices of
CondConv. The metadata of the small file record the number of parameters, the size and the hash of the whole file.
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from cnnfilterdb.core.errors import DownloadError, WeightFileError
from cnnfilterdb.ingest.fetch.cache import ByteProgress
from cnnfilterdb.ingest.network.composition import parameters
from cnnfilterdb.ingest.network.layers import Tensor

__all__ = ["RangedFile", "gather", "partial_origin"]

# A shorter gap is read as well: another request would take longer.
_GAP = 64 << 10
_BLOCK = 8 << 20
_HEADER = 64 << 10
_MAX_HEADER = 100 << 20
_FLOATING = {"F16": "float16", "BF16": "bfloat16", "F32": "float32", "F64": "float64"}
# Prefix of the keys that a partial file has in its metadata
_MARK = "cnnfilterdb."


class RangedFile(Protocol):
    """A remote file of which ranges are read.

    Attributes:
        name: Its name in messages.
        size: Its number of bytes.
        sha256: The SHA-256 that the server states; None where it states none.
    """

    name: str
    size: int
    sha256: str | None

    def read(self, start: int, stop: int) -> bytes:
        """The bytes from start to before stop."""


def gather(remote: RangedFile, path: Path, progress: ByteProgress | None) -> None:
    """Write the wanted tensors of a remote safetensors file into a file of that format; a part is resumed.

    Args:
        remote: The file.
        path: Where to write; complete only when this function returns.
        progress: Called with (bytes done, bytes expected).

    Raises:
        WeightFileError: The header is damaged.
        DownloadError: The file cannot be read.
    """
    head = remote.read(0, min(_HEADER, remote.size))
    length = int.from_bytes(head[:8], "little")
    if not 2 <= length <= min(_MAX_HEADER, remote.size - 8):
        raise WeightFileError(f"{remote.name}: a header of {length:,} bytes; it is not a safetensors file")
    if len(head) < 8 + length:
        head += remote.read(len(head), 8 + length)
    try:
        entries = json.loads(head[8 : 8 + length])
        metadata = entries.pop("__metadata__", None) or {}
        places = {name: _place(entry, remote.size - 8 - length) for name, entry in entries.items()}
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
        raise WeightFileError(f"{remote.name}: its header is damaged ({' '.join(str(error).split())})") from error
    # CondConv has a gate beside the matrices of its experts
    mixing = any(".routing_fn." in name for name in entries)
    wanted = sorted(
        (name for name, entry in entries.items() if _is_wanted(name, entry["shape"], mixing)), key=lambda n: places[n]
    )
    if sum(places[name][1] - places[name][0] for name in wanted) > remote.size:
        raise WeightFileError(f"{remote.name}: its header is damaged (tensors that overlap)")
    total = parameters(
        Tensor(name, tuple(entry["shape"]), _FLOATING.get(entry["dtype"], entry["dtype"].lower()), _unread)
        for name, entry in entries.items()
    )
    origin = {"parameters": str(total), "file_bytes": str(remote.size)}
    if remote.sha256:
        origin["sha256"] = remote.sha256
    header: dict[str, Any] = {"__metadata__": metadata | {_MARK + key: value for key, value in origin.items()}}
    at = 0
    for name in wanted:
        start, stop = places[name]
        header[name] = entries[name] | {"data_offsets": [at, at + stop - start]}
        at += stop - start
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    beginning = len(text).to_bytes(8, "little") + text
    _write(remote, path, beginning, [places[name] for name in wanted], 8 + length, progress)


def partial_origin(path: Path) -> dict[str, str] | None:
    """What a partial file records about the whole one: ``parameters``, ``file_bytes`` and, where known, ``sha256``.

    None for a whole file, or one of another format.
    """
    try:
        with path.open("rb") as file:
            length = int.from_bytes(file.read(8), "little")
            if not 2 <= length <= _MAX_HEADER:
                return None
            metadata = json.loads(file.read(length)).get("__metadata__") or {}
            origin = {key.removeprefix(_MARK): value for key, value in metadata.items() if key.startswith(_MARK)}
    except (OSError, ValueError, AttributeError, RecursionError):
        return None
    return origin or None


def _is_wanted(name: str, shape: Sequence[int], mixing: bool) -> bool:
    """Whether a tensor is a kernel, or one of the few that show what kind a kernel is."""
    return len(shape) == 4 or len(shape) == 1 or (mixing and len(shape) == 2 and name.endswith(".weight"))


def _place(entry: Mapping[str, Any], size: int) -> tuple[int, int]:
    start, stop = entry["data_offsets"]
    numbers = [start, stop, *entry["shape"]]
    if not all(type(number) is int and number >= 0 for number in numbers) or not start <= stop <= size:
        raise ValueError("a tensor with an impossible place")
    if not isinstance(entry["dtype"], str) or (stop > start) != (math.prod(entry["shape"]) > 0):
        raise ValueError("a tensor with an impossible type or shape")
    return start, stop


def _unread() -> np.ndarray[Any, Any]:
    raise AssertionError("only its shape is used")


def _write(
    remote: RangedFile,
    path: Path,
    beginning: bytes,
    places: Sequence[tuple[int, int]],
    offset: int,
    progress: ByteProgress | None,
) -> None:
    """Write a file that consists of a header and the bytes of some places, resuming an earlier part."""
    total = len(beginning) + sum(stop - start for start, stop in places)
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(path.name + ".part")
    with part.open("ab+") as file:
        file.seek(0)
        # A commit does not change, so its bytes can be resumed.
        if file.read(len(beginning)) != beginning:
            file.truncate(0)
            file.write(beginning)
        file.seek(0, os.SEEK_END)
        done = file.tell()
        skip = done - len(beginning)
        for pieces in _requests(places, skip):
            first, last = pieces[0][0], pieces[-1][1]
            data = remote.read(offset + first, offset + last)
            for start, stop in pieces:
                file.write(data[start - first : stop - first])
                done += stop - start
            file.flush()
            if progress is not None:
                progress(done, total)
    if done != total:
        part.unlink()
        raise DownloadError(f"{path.name}: expected {total} bytes, {done} arrived; run again")
    part.replace(path)


def _requests(places: Sequence[tuple[int, int]], skip: int = 0) -> list[list[tuple[int, int]]]:
    """Places grouped into requests: neighbours together, long ones in several.

    Args:
        places: (start, stop) in ascending order.
        skip: Bytes of the places that are already present.

    >>> _requests([(0, 10), (20, 30), (1_000_000, 1_000_010)])
    [[(0, 10), (20, 30)], [(1000000, 1000010)]]
    >>> _requests([(0, 10), (20, 30)], skip=15)
    [[(25, 30)]]
    """
    pieces: list[tuple[int, int]] = []
    for start, stop in places:
        over = min(skip, stop - start)
        skip -= over
        pieces += [(at, min(at + _BLOCK, stop)) for at in range(start + over, stop, _BLOCK)]
    requests: list[list[tuple[int, int]]] = []
    for start, stop in pieces:
        last = requests[-1] if requests else None
        if last and start - last[-1][1] <= _GAP and stop - last[0][0] <= _BLOCK:
            last.append((start, stop))
        else:
            requests.append([(start, stop)])
    return requests
