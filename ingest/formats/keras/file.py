"""The files of Keras: HDF5, the zip that contains one, and the JSON that lists several. What they store, by name.

Keras writes HDF5 in two ways. Keras 2, and Keras 3 as ``.h5``, list the layers and the weights of each in attributes.
Keras 3 as ``.weights.h5`` has a group for every object of the model, and numbers the weights in it; a ``.keras`` file
is a zip of such a file and the configuration. Large models of Keras 3 may be split into shards, with a
``.weights.json`` that says which shard has which group.

Only what the files themselves contain is read (:mod:`~cnnfilterdb.ingest.formats.hdf5`).
"""

from __future__ import annotations

import io
import json
import math
import mmap
import re
import zipfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, replace
from functools import partial
from itertools import count, takewhile
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import Any

import h5py
import ml_dtypes
import numpy as np
import numpy.typing as npt

from cnnfilterdb.core.errors import WeightFileError
from cnnfilterdb.ingest.formats import limits
from cnnfilterdb.ingest.formats.blob import Blob
from cnnfilterdb.ingest.formats.companions import companion
from cnnfilterdb.ingest.formats.damage import undamaged
from cnnfilterdb.ingest.formats.hdf5 import check_heaps, guard, guard_dataset, link_type, member, texts
from cnnfilterdb.ingest.formats.keras.config import LayerNode
from cnnfilterdb.ingest.network.layers import Tensor

__all__ = [
    "HDF5_MAGIC",
    "ZIP_MAGIC",
    "KerasArchive",
    "Stored",
    "Variable",
    "is_archive",
    "is_keras_index",
    "read_hdf5",
    "read_shards",
]

HDF5_MAGIC = b"\x89HDF\r\n\x1a\n"
ZIP_MAGIC = b"PK\x03\x04"

_CONFIG, _WEIGHTS = "config.json", "model.weights.h5"
_MAX_GROWTH = 200  # DEFLATE hardly compresses weights, and JSON about twentyfold
_MAX_ELEMENTS = 1 << 28  # 1 GiB as float32
_MAX_INDEX = 1 << 26
_BYTES_PER_VARIABLE = 2048  # of memory
_COMPRESSIONS = (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED)


@dataclass(frozen=True, slots=True)
class Variable:
    """A weight.

    Attributes:
        group: Path of the object that it belongs to, as stored.
        label: Name of that object, if it differs from the path.
        role: What it is called: ``kernel``, ``bias``, or a number.
        tensor: The array.
        place: Offset of its numbers in the file; None for what is not stored in one piece.
    """

    group: tuple[str, ...]
    label: str | None
    role: str
    tensor: Tensor
    place: int | None = None


@dataclass(frozen=True, slots=True)
class Stored:
    """What a file stores.

    Attributes:
        variables: The weights, in the order in which the file lists them.
        numbered: True where roles are numbers, as Keras 3 writes them.
        config: Configuration of the model, as JSON; None for weights alone.
        version: Version of Keras, if the file states it.
        backend: Backend of Keras, if the file states it.
        partial: Why it may not be the whole model; None where nothing suggests it.
        named: Whether it is not of Keras, but of named arrays, as Chainer and users' own programs write them.
        whole: Arrays of numbers in the file and their elements, where it may hold more than the weights.
        parts: Layers that hold weights and that the configuration does not have, of a model in memory.
    """

    variables: tuple[Variable, ...]
    numbered: bool
    config: Any
    version: str | None
    backend: str | None
    partial: str | None = None
    named: bool = False
    whole: tuple[int, int] | None = None
    parts: tuple[LayerNode, ...] = ()


# ---------------------------------------------------------------------------------------------------------------------
# The zip


def is_archive(path: Path, head: bytes) -> bool:
    """Whether a file is a ``.keras`` zip, whose first member is ``metadata.json``; those of PyTorch begin otherwise."""
    if not head.startswith(ZIP_MAGIC):
        return False
    try:
        with zipfile.ZipFile(path) as archive:
            return _WEIGHTS in archive.namelist()
    except (zipfile.BadZipFile, OSError, ValueError, NotImplementedError):
        first = head[30 : 30 + int.from_bytes(head[26:28], "little")]
        return first in (b"metadata.json", _CONFIG.encode())


class KerasArchive:
    """A ``.keras`` file."""

    def __init__(self, path: Path) -> None:
        """Look at its members.

        Raises:
            WeightFileError: It is truncated, lacks a member, or contains an invalid one.
        """
        self.path = path
        try:
            with zipfile.ZipFile(path) as archive:
                self._members = {info.filename: info for info in archive.infolist()}
        except (zipfile.BadZipFile, OSError, ValueError, NotImplementedError) as error:
            raise WeightFileError(f"{path}: a damaged .keras file ({error}); download it again") from error
        for name, info in self._members.items():
            plain = PurePosixPath(name.replace("\\", "/"))
            if plain.is_absolute() or ".." in plain.parts or PureWindowsPath(name).drive:
                raise WeightFileError(f"{path}: its member {name!r} would escape the folder of the archive; refused")
            if info.file_size > _MAX_GROWTH * max(info.compress_size, 1):
                raise WeightFileError(
                    f"{path}: its member {name} grows from {info.compress_size:,} to {info.file_size:,} bytes; "
                    "refused as a decompression bomb"
                )
        for name in (_CONFIG, _WEIGHTS):
            if name not in self._members:
                raise WeightFileError(
                    f"{path}: does not contain {name}; expected a .keras file as model.save writes it"
                )
        # What is not compressed is read in place, anything else is kept in memory
        self._unpacked: bytes | None = None
        if self._members[_WEIGHTS].compress_type != zipfile.ZIP_STORED:
            self._unpacked = self._read(_WEIGHTS)

    def _read(self, name: str) -> bytes:
        info = self._members[name]
        limits.current().allocate(info.file_size)
        with undamaged(f"{self.path}: {name}", ".keras file"), zipfile.ZipFile(self.path) as archive:
            if info.compress_type not in _COMPRESSIONS:
                raise ValueError(f"compressed by method {info.compress_type}, which Keras does not use")
            with archive.open(info) as file:
                # Given a size, it decompresses no more than that, even if the list of members says otherwise
                return file.read(info.file_size)

    def config(self) -> Any:
        """The configuration, as JSON."""
        return _json(self._read(_CONFIG), f"{self.path}: {_CONFIG}")

    @contextmanager
    def open(self) -> Iterator[h5py.File]:
        """Open the HDF5 file in it."""
        with undamaged(f"{self.path}: {_WEIGHTS}", "HDF5 file"):
            if self._unpacked is not None:
                raw: Any = io.BytesIO(self._unpacked)
            else:
                info = self._members[_WEIGHTS]
                with self.path.open("rb") as file:
                    file.seek(info.header_offset)
                    header = file.read(30)
                if len(header) < 30 or not header.startswith(ZIP_MAGIC):
                    raise ValueError("its entry in the list of members points elsewhere")
                lengths = int.from_bytes(header[26:28], "little") + int.from_bytes(header[28:30], "little")
                start = info.header_offset + 30 + lengths
                raw = Blob(lambda: self.path.open("rb"), start, info.file_size).stream()
            with raw, h5py.File(raw, "r") as opened:
                yield opened

    def stored(self) -> Stored:
        """What the archive stores."""
        with undamaged(f"{self.path}: {_WEIGHTS}", "HDF5 file"):
            longest = _longest_text(self.path) if self._unpacked is None else check_heaps(self._unpacked)
        source = _Source(str(self.path), self.open, longest)
        with self.open() as file:
            guard(file, self.path)
            variables = source.numbered(file)
            whole = source.whole(file)
        return Stored(variables, True, self.config(), None, None, whole=whole)


def _json(text: str | bytes, name: str) -> Any:
    limits.current().allocate(20 * len(text))
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:
        raise WeightFileError(f"{name}: not valid JSON ({error}); download it again") from error


# ---------------------------------------------------------------------------------------------------------------------
# HDF5


def read_hdf5(path: Path) -> Stored:
    """Read what an HDF5 file of Keras lists.

    Raises:
        WeightFileError: It is damaged, or not of Keras: the message says what it contains.
    """
    index = _index_beside(path)
    if index is not None:
        return read_shards(index)
    source = _source(path)
    with source.open() as file:
        guard(file, path)
        config = source.text(file, "model_config")
        weights: Any = file
        if file.get("model_weights", getclass=True, getlink=True) is not None:
            weights = member(file, "model_weights", path)
        version, backend = (source.text(weights, key) or source.text(file, key) for key in ("keras_version", "backend"))
        if isinstance(weights, h5py.Group) and (names := source.names(weights, "layer_names")) is not None:
            variables = source.listed(weights, names)
            parsed = None if config is None else _json(config, f"{path}: model_config")
            return Stored(variables, False, parsed, version, backend, whole=source.whole(file))
        variables = source.numbered(file)
        if variables:
            partial = _lone_shard(path, variables)
            return Stored(variables, True, None, version, backend, partial, whole=source.whole(file))
        if "nb_layers" in file.attrs:
            raise WeightFileError(
                f"{path}: weights of Keras 0, which does not say what its layers are; "
                "load them in Keras 1 or 2 and save the model again"
            )
        arrays = source.arrays(file)
        if not any(len(one.tensor.shape) == 4 and one.tensor.dtype.startswith("float") for one in arrays):
            held = ", ".join(repr(name) for name in list(file)[:5]) or "nothing"
            raise WeightFileError(
                f"{path}: an HDF5 file, but not one of Keras, nor with arrays of four dimensions (at its top: {held}); "
                "expected what model.save or model.save_weights writes, or arrays that are named as those of a network"
            )
        return Stored(arrays, False, None, None, None, named=True)


def is_keras_index(head: bytes) -> bool:
    """Whether a file is the ``.weights.json`` of a model of Keras 3 that is split into shards."""
    return head.lstrip().startswith(b"{") and b'"weight_map"' in head and b".weights.h5" in head


def read_shards(path: Path) -> Stored:
    """Read all shards that a ``.weights.json`` lists.

    Raises:
        WeightFileError: A shard is missing, outside of the folder or damaged, or variables are missing in all of them.
    """
    index = _json(path.read_bytes(), str(path))
    mapped = index.get("weight_map") if isinstance(index, dict) else None
    # Keras 3.15 lists the shards of a group
    entries = list(mapped.values()) if isinstance(mapped, dict) else [None]
    names: list[Any] = [name for entry in entries for name in (entry if isinstance(entry, list) else [entry])]
    if not all(isinstance(name, str) for name in names):
        raise WeightFileError(f"{path}: has no map of weights to shards; expected the .weights.json that Keras writes")
    shards = sorted(set(names))
    # Earlier versions name the first shard of a group that is continued in the next one
    last = re.fullmatch(r"(.*_)(\d{5})(\.weights\.h5)", shards[-1]) if shards else None
    if last is not None:
        following = f"{last[1]}{int(last[2]) + 1:05d}{last[3]}"
        shards += [following] if (path.parent / following).is_file() else []
    found: list[Variable] = []
    for number, name in enumerate(shards):
        shard = companion(path, name)
        limits.current().opened(shard.stat().st_size)
        source = _source(shard)
        with source.open() as file:
            guard(file, shard)
            # The layers of a shard come before those of the next one
            found += [replace(one, place=(number << 48) + (one.place or 0)) for one in source.numbered(file)]
    metadata = index.get("metadata")
    expected = metadata.get("total_size") if isinstance(metadata, dict) else None
    held = sum(math.prod(one.tensor.shape) * _width(one.tensor.dtype) for one in found)
    if isinstance(expected, int | float) and held < expected:
        raise WeightFileError(
            f"{path}: its {len(shards)} shards ({shards[0]} to {shards[-1]}) hold {held:,} bytes of weights, "
            f"{expected:,.0f} are expected; put the missing shards beside it"
        )
    merged: dict[tuple[tuple[str, ...], str], Variable] = {}
    for one in found:
        merged.setdefault((one.group, one.role), one)
    return Stored(tuple(merged.values()), True, None, None, None)


def _width(dtype: str) -> int:
    return 2 if dtype == "bfloat16" else np.dtype(dtype).itemsize


_SHARD = re.compile(r"(.*)_(\d{5})\.weights\.h5")


def _index_beside(path: Path) -> Path | None:
    """The ``.weights.json`` of the model that a file is a shard of, where it is beside the file and lists it."""
    shard = _SHARD.fullmatch(path.name)
    index = path if shard is None else path.with_name(f"{shard[1]}.weights.json")
    if shard is None or not index.is_file() or index.stat().st_size > _MAX_INDEX:
        return None
    return index if path.name.encode() in index.read_bytes() else None


def _lone_shard(path: Path, variables: Sequence[Variable]) -> str | None:
    """Why a file may be one of several, judged by its name; None if nothing suggests it.

    Raises:
        WeightFileError: The file lacks layers that Keras has numbered before those in it.
    """
    shard = _SHARD.fullmatch(path.name)
    if shard is None:
        return None
    groups = {variable.group for variable in variables}
    for *parents, last in groups:
        number = re.fullmatch(r"(.*)_\d+", last)
        first = (*parents, number[1]) if number else None
        if first is not None and not any(group[: len(first)] == first for group in groups) and int(shard[2]):
            raise WeightFileError(
                f"{path}: one shard of a model in several (it has {'/'.join((*parents, last))} but not "
                f"{'/'.join(first)}); put all shards and {shard[1]}.weights.json beside it"
            )
    return f"its name may be that of one shard of a larger model, whose {shard[1]}.weights.json is not beside it"


def _source(path: Path) -> _Source:
    @contextmanager
    def opened() -> Iterator[h5py.File]:
        with undamaged(str(path), "HDF5 file"), h5py.File(path, "r") as file:
            yield file

    with undamaged(str(path), "HDF5 file"):
        return _Source(str(path), opened, _longest_text(path))


def _longest_text(path: Path) -> int:
    with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content:
        return check_heaps(content)


def _is_number(dtype: np.dtype[Any]) -> bool:
    """Whether an array has numbers, among them those of bfloat16, which Keras stores as two bytes without a meaning."""
    return dtype.kind in "fiu" or (dtype.kind == "V" and dtype.names is None and dtype.itemsize == 2)


@dataclass(frozen=True, slots=True)
class _Source:
    """An HDF5 file of Keras.

    Attributes:
        origin: Its name in messages.
        open: Opens it.
        longest: Size of the longest string of variable length in it.
    """

    origin: str
    open: Callable[[], AbstractContextManager[h5py.File]]
    longest: int

    def text(self, holder: Any, key: str) -> str | None:
        """An attribute that is a string."""
        return next(iter(texts(holder, key, self.longest) or ()), None)

    def names(self, group: h5py.Group, key: str) -> list[str] | None:
        """An attribute that is a list of names; long ones are cut into key0, key1, ..."""
        names = texts(group, key, self.longest)
        if names is not None:
            return names
        parts = (texts(group, f"{key}{number}", self.longest) for number in count())
        chunks = list(takewhile(lambda chunk: chunk is not None, parts))
        return [name for chunk in chunks for name in chunk or ()] if chunks else None

    def listed(self, weights: h5py.Group, layers: list[str]) -> tuple[Variable, ...]:
        """The weights that attributes list, each dataset once."""
        found = []
        seen: set[int] = set()
        for layer in layers:
            limits.current().step()
            group = member(weights, layer, self.origin)
            if not isinstance(group, h5py.Group):
                raise WeightFileError(f"{self.origin}: its layer {layer!r} is not a group; download the file again")
            for name in self.names(group, "weight_names") or []:
                limits.current().step()
                dataset = member(group, name, self.origin)
                if isinstance(dataset, h5py.Dataset) and (address := h5py.h5o.get_info(dataset.id).addr) not in seen:
                    seen.add(address)
                    parts = [part for part in re.sub(r":\d+$", "", name).split("/") if part]
                    tensor = self.tensor(dataset)
                    found.append(Variable((layer, *parts[:-1]), None, parts[-1] if parts else "", tensor))
        return tuple(found)

    def numbered(self, file: h5py.File) -> tuple[Variable, ...]:
        """The weights of Keras 3: numbered, in groups called vars, inside a group for each object."""
        found: list[Variable] = []
        seen: set[int] = set()
        stack: list[tuple[tuple[str, ...], Any]] = [((), file)]
        while stack:
            path, group = stack.pop()
            address = h5py.h5o.get_info(group.id).addr
            if address in seen:
                continue  # a group may contain itself
            seen.add(address)
            inner = []
            for name in group:
                limits.current().step()
                inside = member(group, name, self.origin)
                if not isinstance(inside, h5py.Group):
                    continue
                # Older versions on Windows wrote the whole path as one name
                parts = [part for part in name.split("\\") if part]
                if parts[-1:] == ["vars"]:
                    label = self.text(inside, "name")
                    for key in sorted((key for key in inside if key.isdecimal()), key=int):
                        dataset = member(inside, key, self.origin)
                        if isinstance(dataset, h5py.Dataset):
                            variable = (*path, *parts[:-1]), label, key, self.tensor(dataset), dataset.id.get_offset()
                            found.append(Variable(*variable))
                else:
                    inner.append(((*path, *parts), inside))
            stack += reversed(inner)
        return tuple(found)

    def arrays(self, file: h5py.File) -> tuple[Variable, ...]:
        """All arrays of numbers, by their paths."""
        found: list[Variable] = []
        seen: set[int] = set()
        stack: list[tuple[tuple[str, ...], Any]] = [((), file)]
        while stack:
            path, node = stack.pop()
            address = h5py.h5o.get_info(node.id).addr
            if address in seen:
                continue
            seen.add(address)
            if isinstance(node, h5py.Dataset):
                if node.dtype.kind in "fiu":
                    found.append(Variable(path[:-1], None, path[-1], self.tensor(node)))
                continue
            limits.current().step(len(node))
            stack += reversed([((*path, name), member(node, name, self.origin)) for name in node])
        return tuple(found)

    def whole(self, file: h5py.File) -> tuple[int, int]:
        """Number of all arrays of numbers in a file, and of their elements."""
        sizes: list[int] = []
        seen: set[int] = set()
        stack: list[Any] = [file]
        while stack:
            group = stack.pop()
            for name in group:
                limits.current().step()
                if link_type(group, name) != h5py.h5l.TYPE_HARD:
                    continue
                try:
                    node = group[name]
                    address = h5py.h5o.get_info(node.id).addr
                except (KeyError, OSError, RuntimeError, ValueError):  # damage that does not concern the weights
                    continue
                if address in seen:
                    continue
                seen.add(address)
                if isinstance(node, h5py.Group):
                    stack.append(node)
                elif isinstance(node, h5py.Dataset) and _is_number(node.dtype):
                    sizes.append(math.prod(node.shape or ()))
        return len(sizes), sum(sizes)

    def tensor(self, dataset: h5py.Dataset) -> Tensor:
        """A dataset as a tensor that is read later."""
        limits.current().allocate(_BYTES_PER_VARIABLE)
        # Legacy files of Keras 3 have it as two bytes without a meaning
        opaque = dataset.dtype.kind == "V" and dataset.dtype.names is None
        bfloat = (opaque or self.text(dataset, "dtype") == "bfloat16") and dataset.dtype.itemsize == 2
        name = str(dataset.name)
        return Tensor(
            name=name,
            shape=tuple(dataset.shape or ()),
            dtype="bfloat16" if bfloat else dataset.dtype.name,
            read=partial(self._read, name, bfloat),
        )

    def _read(self, name: str, bfloat: bool) -> npt.NDArray[np.generic]:
        with self.open() as file:
            dataset = member(file, name, self.origin)
            guard_dataset(dataset, self.origin)
            if math.prod(dataset.shape) > _MAX_ELEMENTS:
                raise WeightFileError(
                    f"{self.origin}: {name} of shape {dataset.shape} is too large to be a kernel; refused"
                )
            array: npt.NDArray[Any] = np.asarray(dataset[()])
        if bfloat:
            array = array.view(ml_dtypes.bfloat16)
        return array.astype(np.float32) if bfloat or array.dtype.kind == "f" else array
