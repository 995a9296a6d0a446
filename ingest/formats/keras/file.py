"""The files of Keras: HDF5, and the zip that holds one. What they store, under the names that they give it.

Keras writes HDF5 in two ways. Keras 2, and Keras 3 as ``.h5``, list the layers and the weights of each in attributes.
Keras 3 as ``.weights.h5`` has a group for every object of the model, and numbers the weights in it; a ``.keras`` file
is a zip of such a file and the configuration.

Only what the file itself holds is read: links, external and virtual datasets, which would make HDF5 open other files,
are refused.
"""

from __future__ import annotations

import io
import json
import math
import mmap
import re
import struct
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from itertools import count, takewhile
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import Any

import h5py
import ml_dtypes
import numpy as np
import numpy.typing as npt

from cnnfilterdb.errors import WeightFileError
from cnnfilterdb.ingest.formats.blob import Blob
from cnnfilterdb.ingest.formats.damage import undamaged
from cnnfilterdb.ingest.network.layers import Tensor

__all__ = ["HDF5_MAGIC", "ZIP_MAGIC", "Archive", "Stored", "Variable", "is_archive", "read_hdf5"]

HDF5_MAGIC = b"\x89HDF\r\n\x1a\n"
ZIP_MAGIC = b"PK\x03\x04"

_CONFIG, _WEIGHTS = "config.json", "model.weights.h5"
_MAX_GROWTH = 200  # DEFLATE makes weights hardly smaller, and JSON some twenty times
_MAX_CONFIG = 1 << 28
_MAX_OBJECTS = 1_000_000
_MAX_TEXT = 1 << 28
_MAX_ELEMENTS = 1 << 28  # 1 GiB as float32


@dataclass(frozen=True, slots=True)
class Variable:
    """A weight.

    Attributes:
        group: Path of the object that it belongs to, as the file has it.
        label: Name of that object, where the file tells another than the path.
        role: What it is called: ``kernel``, ``bias``, or a number.
        tensor: The array.
        place: Where the file has its numbers; None for what is not stored in one piece.
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
        version: Version of Keras, where told.
        backend: What Keras ran on, where told.
    """

    variables: tuple[Variable, ...]
    numbered: bool
    config: Any
    version: str | None
    backend: str | None


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


class Archive:
    """A ``.keras`` file."""

    def __init__(self, path: Path) -> None:
        """Look at its members.

        Raises:
            WeightFileError: It is truncated, lacks a member, or has one that is no honest one.
        """
        self.path = path
        try:
            with zipfile.ZipFile(path) as archive:
                self._members = {info.filename: info for info in archive.infolist()}
        except (zipfile.BadZipFile, OSError, ValueError, NotImplementedError) as error:
            raise WeightFileError(f"{path}: a damaged .keras file ({error}); bring it again") from error
        for name, info in self._members.items():
            plain = PurePosixPath(name.replace("\\", "/"))
            if plain.is_absolute() or ".." in plain.parts or PureWindowsPath(name).drive:
                raise WeightFileError(f"{path}: its member {name!r} would escape the folder of the archive; refused")
            if info.file_size > _MAX_GROWTH * max(info.compress_size, 1):
                raise WeightFileError(
                    f"{path}: its member {name} grows from {info.compress_size:,} to {info.file_size:,} bytes; "
                    "refused as a bomb"
                )
        for name in (_CONFIG, _WEIGHTS):
            if name not in self._members:
                raise WeightFileError(f"{path}: holds no {name}; expected a .keras file as model.save writes it")
        # What is not compressed is read in place, else it is held in memory
        self._unpacked: bytes | None = None
        if self._members[_WEIGHTS].compress_type != zipfile.ZIP_STORED:
            self._unpacked = self._read(_WEIGHTS)

    def _read(self, name: str) -> bytes:
        with undamaged(f"{self.path}: {name}", ".keras file"), zipfile.ZipFile(self.path) as archive:
            return archive.read(name)

    def config(self) -> Any:
        """The configuration, as JSON."""
        if self._members[_CONFIG].file_size > _MAX_CONFIG:
            raise WeightFileError(f"{self.path}: {_CONFIG} has more than {_MAX_CONFIG:,} bytes; refused")
        return _json(self._read(_CONFIG), f"{self.path}: {_CONFIG}")

    @contextmanager
    def open(self) -> Iterator[h5py.File]:
        """Open the HDF5 file in it."""
        with undamaged(f"{self.path}: {_WEIGHTS}", "HDF5 file"):
            if self._unpacked is not None:
                raw: Any = io.BytesIO(self._unpacked)
            else:
                info = self._members[_WEIGHTS]
                file = self.path.open("rb")
                file.seek(info.header_offset)
                header = file.read(30)
                if len(header) < 30 or not header.startswith(ZIP_MAGIC):
                    file.close()
                    raise ValueError("its entry in the list of members points elsewhere")
                lengths = int.from_bytes(header[26:28], "little") + int.from_bytes(header[28:30], "little")
                file.close()
                start = info.header_offset + 30 + lengths
                raw = Blob(lambda: self.path.open("rb"), start, info.file_size).stream()
            with raw, h5py.File(raw, "r") as opened:
                yield opened

    def stored(self) -> Stored:
        """What the archive stores."""
        with undamaged(f"{self.path}: {_WEIGHTS}", "HDF5 file"):
            if self._unpacked is None:
                _check_heaps_of(self.path)
            else:
                _check_heaps(self._unpacked)
        with self.open() as file:
            variables = _numbered(file, self.open, str(self.path))
        return Stored(variables, True, self.config(), None, None)


def _json(text: str | bytes, name: str) -> Any:
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:
        raise WeightFileError(f"{name}: no JSON ({error}); bring it again") from error


# ---------------------------------------------------------------------------------------------------------------------
# HDF5


def read_hdf5(path: Path) -> Stored:
    """Read what an HDF5 file of Keras lists.

    Raises:
        WeightFileError: It is damaged, or not of Keras: the message tells what it holds.
    """

    @contextmanager
    def opened() -> Iterator[h5py.File]:
        with undamaged(str(path), "HDF5 file"), h5py.File(path, "r") as file:
            yield file

    with undamaged(str(path), "HDF5 file"):
        _check_heaps_of(path)
    with opened() as file:
        origin = str(path)
        config = _text(file, "model_config")
        weights = file
        if file.get("model_weights", getclass=True, getlink=True) is not None:
            weights = _member(file, "model_weights", origin)
        version, backend = (_text(weights, key) or _text(file, key) for key in ("keras_version", "backend"))
        if isinstance(weights, h5py.Group) and (names := _names(weights, "layer_names")) is not None:
            variables = _listed(weights, names, opened, origin)
            parsed = None if config is None else _json(config, f"{path}: model_config")
            return Stored(variables, False, parsed, version, backend)
        variables = _numbered(file, opened, origin)
        if variables:
            return Stored(variables, True, None, version, backend)
        if "nb_layers" in file.attrs:
            raise WeightFileError(
                f"{path}: weights of Keras 0, which does not tell what its layers are; "
                "load them in Keras 1 or 2 and save the model again"
            )
        held = ", ".join(f"{name!r}" for name in list(file)[:5]) or "nothing"
        raise WeightFileError(
            f"{path}: an HDF5 file, but not one of Keras (at its top: {held}); "
            "expected what model.save or model.save_weights writes"
        )


_HEAP = b"GCOL\x01\0\0\0"
_HEAP_OBJECT = struct.Struct("<HHIQ")  # index, 0 for free space; uses; reserved; size


def _check_heaps_of(path: Path) -> None:
    with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content:
        _check_heaps(content)


def _check_heaps(content: bytes | mmap.mmap) -> None:
    """Check the global heaps, which hold strings of any length: HDF5 runs forever in one whose sizes are damaged.

    Raises:
        ValueError: An object in a heap has no size, or reaches beyond the heap; or there are too many.
    """
    start, objects = content.find(_HEAP), 0
    while start >= 0:
        head = content[start + 8 : start + 16]
        place, end = start + 16, min(start + int.from_bytes(head, "little"), len(content))
        while place + _HEAP_OBJECT.size <= end:
            index, _, _, size = _HEAP_OBJECT.unpack_from(content, place)
            # The size of free space counts its own head; that of an object neither head nor padding
            step = _HEAP_OBJECT.size + (size + 7) // 8 * 8 if index else size
            if step < _HEAP_OBJECT.size or place + step > end:
                raise ValueError(f"at byte {place:,}, an object of a global heap has an impossible size of {size:,}")
            place += step
            objects += 1
            if objects > _MAX_OBJECTS:
                raise ValueError(f"more than {_MAX_OBJECTS:,} objects in global heaps")
        start = content.find(_HEAP, start + len(_HEAP))


def _member(group: Any, name: str, origin: str) -> Any:
    """What a group holds under a path of names, as long as the file itself holds it."""
    for part in name.split("/"):
        if not part:
            continue
        link = group.get(part, getlink=True) if isinstance(group, h5py.Group) else None
        if link is None:
            raise WeightFileError(f"{origin}: lists {name!r}, which it does not hold; bring it again")
        if not isinstance(link, h5py.HardLink):
            raise WeightFileError(f"{origin}: {name!r} is a link to elsewhere; refused")
        group = group[part]
    return group


def _texts(holder: Any, key: str) -> list[str] | None:
    """An attribute that holds a string or a list of strings; an empty list for anything else, None where there is none.

    HDF5 crashes on damaged attributes of other types, so the type is looked at first.
    """
    if key not in holder.attrs:
        return None
    attribute = holder.attrs.get_id(key)
    stored = attribute.get_type()
    size = math.prod(attribute.shape) * stored.get_size()
    if not isinstance(stored, h5py.h5t.TypeStringID) or size > _MAX_TEXT:
        return []
    values = np.atleast_1d(np.asarray(holder.attrs[key], object)).ravel()
    return [value.decode("utf-8", "replace") if isinstance(value, bytes) else str(value) for value in values]


def _text(holder: Any, key: str) -> str | None:
    return next(iter(_texts(holder, key) or ()), None)


def _names(group: h5py.Group, key: str) -> list[str] | None:
    """An attribute that is a list of names; long ones are cut into key0, key1, ..."""
    names = _texts(group, key)
    if names is not None:
        return names
    chunks = list(takewhile(lambda chunk: chunk is not None, (_texts(group, f"{key}{n}") for n in count())))
    return [name for chunk in chunks for name in chunk or ()] if chunks else None


def _listed(weights: h5py.Group, layers: list[str], opened: Any, origin: str) -> tuple[Variable, ...]:
    found = []
    for layer in layers:
        group = _member(weights, layer, origin)
        if not isinstance(group, h5py.Group):
            raise WeightFileError(f"{origin}: its layer {layer!r} is no group; bring it again")
        for name in _names(group, "weight_names") or []:
            dataset = _member(group, name, origin)
            if isinstance(dataset, h5py.Dataset):
                parts = [part for part in re.sub(r":\d+$", "", name).split("/") if part]
                tensor = _tensor(dataset, opened, origin)
                found.append(Variable((layer, *parts[:-1]), None, parts[-1] if parts else "", tensor))
    return tuple(found)


def _numbered(file: h5py.File, opened: Any, origin: str) -> tuple[Variable, ...]:
    """The weights of Keras 3: numbers in groups called vars, of objects in groups of their own."""
    found: list[Variable] = []
    seen: set[int] = set()
    stack: list[tuple[tuple[str, ...], Any]] = [((), file)]
    while stack:
        path, group = stack.pop()
        address = h5py.h5o.get_info(group.id).addr
        if address in seen:
            continue  # a group may hold itself
        seen.add(address)
        if len(seen) > _MAX_OBJECTS:
            raise WeightFileError(f"{origin}: more than {_MAX_OBJECTS:,} groups; refused")
        inner = []
        for name in group:
            member = _member(group, name, origin)
            if not isinstance(member, h5py.Group):
                continue
            # Older versions on Windows wrote the whole path as one name
            parts = [part for part in name.split("\\") if part]
            if parts[-1:] == ["vars"]:
                label = _text(member, "name")
                for key in sorted((key for key in member if key.isdecimal()), key=int):
                    dataset = _member(member, key, origin)
                    if isinstance(dataset, h5py.Dataset):
                        tensor = _tensor(dataset, opened, origin)
                        found.append(Variable((*path, *parts[:-1]), label, key, tensor, dataset.id.get_offset()))
            else:
                inner.append(((*path, *parts), member))
        stack += reversed(inner)
    return tuple(found)


def _tensor(dataset: h5py.Dataset, opened: Any, origin: str) -> Tensor:
    name = str(dataset.name)
    if dataset.is_virtual or dataset.external:
        raise WeightFileError(f"{origin}: {name} is kept in another file; refused")
    bfloat = _text(dataset, "dtype") == "bfloat16" and dataset.dtype.itemsize == 2
    return Tensor(
        name=name,
        shape=tuple(dataset.shape or ()),
        dtype="bfloat16" if bfloat else dataset.dtype.name,
        read=partial(_read, opened, name, bfloat, origin),
    )


def _read(opened: Any, name: str, bfloat: bool, origin: str) -> npt.NDArray[np.generic]:
    with opened() as file:
        dataset = _member(file, name, origin)
        if math.prod(dataset.shape) > _MAX_ELEMENTS:
            raise WeightFileError(f"{origin}: {name} of shape {dataset.shape} is too large to be a kernel; refused")
        array: npt.NDArray[Any] = np.asarray(dataset[()])
    if bfloat:
        array = array.view(ml_dtypes.bfloat16)
    return array.astype(np.float32) if bfloat or array.dtype.kind == "f" else array
