"""Zarr folders of versions 2 and 3, and the checkpoints of Orbax, which are Zarr arrays in files or in OCDBT.

An array is a description (``.zarray`` or ``zarr.json``) and chunks, each compressed alone; chunks that are equal to the
fill value may be missing. Specifications: https://zarr-specs.readthedocs.io. Arrays with a codec that
:mod:`~cnnfilterdb.ingest.formats.codecs` does not know are reported.
"""

from __future__ import annotations

import itertools
import json
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from cnnfilterdb.core.errors import WeightFileError
from cnnfilterdb.ingest.formats import limits, register
from cnnfilterdb.ingest.formats.blob import Blob
from cnnfilterdb.ingest.formats.codecs import Decoder, decoder
from cnnfilterdb.ingest.formats.companions import companion
from cnnfilterdb.ingest.formats.damage import undamaged
from cnnfilterdb.ingest.formats.dtypes import NAMED
from cnnfilterdb.ingest.formats.ocdbt import MANIFEST, stored_values
from cnnfilterdb.ingest.network.arrays import layers_from_arrays
from cnnfilterdb.ingest.network.composition import parameters as count_parameters
from cnnfilterdb.ingest.network.contents import contents_of
from cnnfilterdb.ingest.network.judge import natural
from cnnfilterdb.ingest.network.layers import Skipped, Tensor, Weights

__all__ = ["ZarrFormat"]

_WHAT = "Zarr folder"
_ORBAX = "_METADATA"
_GROUPS = (MANIFEST, _ORBAX, "zarr.json", ".zgroup")
_MAX_FILES = 100_000
_MAX_DIMENSIONS = 32
# Place of a chunk that is not stored
_ABSENT = (1 << 64) - 1
_TRAINING = ("opt_state", "optimizer", "step", "rng")
# Parts of a training state that hold the network
_COLLECTIONS = ("params", "model", "state", "default")


@register
class ZarrFormat:
    """Folders, by ``.zgroup``, ``zarr.json``, or ``_METADATA`` or ``manifest.ocdbt`` of Orbax in them."""

    name = "zarr"
    suffixes = (".ocdbt", ".zgroup")

    def matches(self, path: Path, head: bytes) -> bool:
        """Whether a file is the one that describes such a folder."""
        return path.name in _GROUPS

    def read(self, path: Path) -> Weights:
        """Read names and descriptions; the chunks of an array when its layer is read.

        Raises:
            WeightFileError: The folder is damaged, or contains no arrays.
        """
        with undamaged(str(path), _WHAT):
            values = stored_values(path) if path.name == MANIFEST else _files(path)
            orbax = (path.parent / _ORBAX).is_file()
            names = _names(path.parent / _ORBAX) if orbax else {}
            tensors, skipped = [], []
            sizes: list[int] = []
            training: dict[str, Skipped] = {}
            for key, described in _descriptions(values):
                name = names.get(key, key.replace(".", "/") if orbax or path.name == MANIFEST else key)
                parts = name.split("/")
                sizes.append(math.prod(described["shape"]))
                if parts[0] in _TRAINING:
                    if len(described["shape"]) > 2:
                        training[parts[0]] = Skipped(parts[0], "state of the training")
                    continue
                parts = parts[1:] if len(parts) > 2 and parts[0] in _COLLECTIONS else parts
                array = _array(key, described, values)
                if isinstance(array, str):
                    skipped.append(Skipped(name, array))
                else:
                    tensors.append(array.tensor(path, "/".join(parts)))
            if not tensors and not skipped:
                raise WeightFileError(f"{path}: a Zarr folder without arrays; pass the folder that contains them")
            tensors.sort(key=lambda tensor: natural(tensor.name))
            layers, more = layers_from_arrays(tensors, declared="HWIO" if orbax else None)
            count = count_parameters(tensors)
            left_out = [*skipped, *training.values(), *more]
            return Weights(
                "orbax" if orbax else "zarr",
                "jax" if orbax else None,
                tuple(layers),
                count,
                tuple(left_out),
                contents=contents_of(tensors, layers, left_out, whole=(len(sizes), sum(sizes))),
            )


def _files(path: Path) -> dict[str, Blob]:
    """The files of a folder, by their relative paths."""
    found: dict[str, Blob] = {}
    for file in itertools.islice(sorted(path.parent.rglob("*")), _MAX_FILES):
        limits.current().step()
        if file.is_file():
            name = file.relative_to(path.parent).as_posix()
            real = companion(path, name)
            limits.current().opened(real.stat().st_size)
            limits.current().create()
            found[name] = Blob.of_file(real)
    return found


def _names(metadata: Path) -> dict[str, str]:
    """The names of the arrays of Orbax, by their keys: their parts may contain dots."""
    tree = json.loads(metadata.read_bytes()).get("tree_metadata", {})
    found = {}
    for entry in tree.values():
        limits.current().step()
        parts = [str(part["key"]) for part in entry["key_metadata"]]
        found[".".join(parts)] = "/".join(parts)
    return found


def _descriptions(values: Mapping[str, Blob]) -> list[tuple[str, dict[str, Any]]]:
    found = []
    for key, value in values.items():
        folder, _, name = key.rpartition("/")
        if name not in (".zarray", "zarr.json"):
            continue
        limits.current().allocate(20 * value.size)
        described = json.loads(value.read())
        if name == ".zarray" or described.get("node_type") == "array":
            found.append((folder, described))
    return found


@dataclass(frozen=True, slots=True)
class _Array:
    """An array.

    Attributes:
        key: Its folder.
        shape: Its shape.
        chunk: Shape of its chunks.
        dtype: Element type, with the order of bytes.
        fill: Value of what is missing.
        order: ``C`` or ``F``: order of the elements of a chunk.
        named: The key of a chunk, by its place in the grid.
        decoders: Undo what was done to a chunk, in this order.
        values: The values of the store, by key.
        inner: Shape of the chunks that a chunk consists of, if it is a shard.
        turn: Order of the axes in a chunk; empty where it is that of the array.
    """

    key: str
    shape: tuple[int, ...]
    chunk: tuple[int, ...]
    dtype: np.dtype[Any]
    fill: float
    order: str
    named: Callable[[Sequence[int]], str]
    decoders: tuple[Decoder, ...]
    values: Mapping[str, Blob]
    inner: tuple[int, ...] = ()
    turn: tuple[int, ...] = ()

    def tensor(self, path: Path, name: str) -> Tensor:
        def read() -> npt.NDArray[np.generic]:
            with undamaged(f"{path}: {name}", _WHAT):
                array = self.read()
                floating = array.dtype.name.startswith(("float", "bfloat"))
                return array.astype(np.float32) if floating else array

        return Tensor(name, self.shape, self.dtype.name, read)

    def read(self) -> npt.NDArray[Any]:
        limits.current().allocate(math.prod(self.shape) * max(self.dtype.itemsize, 4))
        whole = np.full(self.shape, self.fill, self.dtype)
        grid = [range(math.ceil(side / step)) for side, step in zip(self.shape, self.chunk, strict=True)]
        for place in itertools.product(*grid):
            limits.current().step()
            blob = self.values.get(f"{self.key}/{self.named(place)}".removeprefix("/"))
            if blob is None:
                continue
            values = self.shard(blob.read()) if self.inner else self.decoded(blob.read(), self.chunk)
            starts = [at * step for at, step in zip(place, self.chunk, strict=True)]
            stops = [min(at + step, side) for at, step, side in zip(starts, self.chunk, self.shape, strict=True)]
            sides = [slice(0, stop - start) for start, stop in zip(starts, stops, strict=True)]
            whole[tuple(slice(start, stop) for start, stop in zip(starts, stops, strict=True))] = values[tuple(sides)]
        return whole

    def decoded(self, data: bytes, shape: tuple[int, ...]) -> npt.NDArray[Any]:
        """The numbers of one chunk."""
        for undo in self.decoders:
            data = undo(data)
        if len(data) != math.prod(shape) * self.dtype.itemsize:
            raise ValueError(f"a chunk of {len(data):,} bytes; expected {shape} of {self.dtype}")
        if self.turn:
            stored = np.frombuffer(data, self.dtype).reshape([shape[axis] for axis in self.turn])
            return stored.transpose(np.argsort(self.turn))
        return np.frombuffer(data, self.dtype).reshape(shape, order="F" if self.order == "F" else "C")

    def shard(self, data: bytes) -> npt.NDArray[Any]:
        """The numbers of a shard: its chunks, and at its end their places, with a checksum."""
        grid = [side // step for side, step in zip(self.chunk, self.inner, strict=True)]
        size = 16 * math.prod(grid)
        if len(data) < size + 4:
            raise ValueError("a shard without its index: truncated")
        index = np.frombuffer(data[-size - 4 : -4], "<u8").reshape(-1, 2)
        whole = np.full(self.chunk, self.fill, self.dtype)
        for place, (start, length) in zip(np.ndindex(*grid), index.tolist(), strict=True):
            limits.current().step()
            if start == length == _ABSENT:
                continue
            if start + length > len(data):
                raise ValueError("a chunk beyond the end of its shard: truncated")
            sides = (slice(at * step, (at + 1) * step) for at, step in zip(place, self.inner, strict=True))
            whole[tuple(sides)] = self.decoded(data[start : start + length], self.inner)
        return whole


def _array(key: str, given: Mapping[str, Any], values: Mapping[str, Blob]) -> _Array | str:
    """An array by its description; or why it is not read."""
    inner: tuple[int, ...] = ()
    if "zarr_format" in given and given["zarr_format"] == 3:
        chunk, codecs = given["chunk_grid"]["configuration"]["chunk_shape"], given["codecs"]
        if len(codecs) == 1 and codecs[0]["name"] == "sharding_indexed":
            shard = codecs[0]["configuration"]
            inner, codecs = tuple(shard["chunk_shape"]), shard["codecs"]
            plain = [one["name"] for one in shard["index_codecs"]] == ["bytes", "crc32c"]
            if not plain or shard.get("index_location", "end") != "end":
                return "shards whose index is not at their end"
        # From array to array, from array to bytes, from bytes to bytes
        turns = [codec["configuration"]["order"] for codec in codecs if codec["name"] == "transpose"]
        decoders = _decoders([codec for codec in codecs if codec["name"] not in ("bytes", "transpose")])
        dtype = _dtype(given["data_type"])
        encoding = given.get("chunk_key_encoding", {})
        separator = encoding.get("configuration", {}).get("separator", "/")
        named = partial(_named_3, separator, encoding.get("name") == "v2")
        order = "C"
        big = any(codec.get("configuration", {}).get("endian") == "big" for codec in codecs)
        dtype = dtype.newbyteorder(">") if big and dtype is not None else dtype
    else:
        chunk, order = given["chunks"], given.get("order", "C")
        dtype = _dtype(given["dtype"])
        compressor, turns = given.get("compressor"), []
        decoders = _decoders([*(given.get("filters") or ()), *(() if compressor is None else (compressor,))])
        named = partial(_named_2, given.get("dimension_separator", "."))
    shape = tuple(given["shape"])
    if dtype is None:
        return f"elements of type {str(given.get('data_type', given.get('dtype')))[:40]}, which are not read"
    if isinstance(decoders, str):
        return f"chunks with {decoders}"
    sizes = (*shape, *chunk, *inner)
    if len(shape) != len(chunk) or len(shape) > _MAX_DIMENSIONS or any(type(n) is not int or n < 0 for n in sizes):
        raise ValueError(f"{key[:100]}: an array of an impossible shape")
    if inner and (len(inner) != len(chunk) or 0 in inner or any(a % b for a, b in zip(chunk, inner, strict=True))):
        raise ValueError(f"{key[:100]}: shards that do not consist of whole chunks")
    if 0 in chunk or math.prod(chunk) > 1 << 40:
        raise ValueError(f"{key[:100]}: chunks of an impossible shape")
    if len(turns) > 1 or any(sorted(turn) != list(range(len(shape))) for turn in turns):
        return "chunks with axes in an order that is not read"
    fill = given.get("fill_value")
    fill = float(fill) if isinstance(fill, int | float) else 0.0
    return _Array(key, shape, tuple(chunk), dtype, fill, order, named, decoders, values, inner, tuple(*turns))


def _dtype(name: Any) -> np.dtype[Any] | None:
    if not isinstance(name, str):
        return None
    if name in NAMED:
        return NAMED[name]
    try:
        dtype: np.dtype[Any] = np.dtype(name)
    except TypeError:
        return None
    return dtype if dtype.kind in "fiub" else None


def _decoders(codecs: Sequence[Mapping[str, Any]]) -> tuple[Decoder, ...] | str:
    """What undoes the codecs of a chunk, the last one first; or what is not read."""
    found: tuple[Decoder, ...] = ()
    for codec in reversed(codecs):
        one = decoder(codec)
        if isinstance(one, str):
            return one
        found += (one,)
    return found


def _named_2(separator: str, place: Sequence[int]) -> str:
    return separator.join(map(str, place)) or "0"


def _named_3(separator: str, old: bool, place: Sequence[int]) -> str:
    return _named_2(separator, place) if old else separator.join(("c", *map(str, place)))
