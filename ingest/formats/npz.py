"""NumPy files of weights: ``.npz`` archives, and ``.npy`` files that hold a dictionary.

``numpy.load(..., allow_pickle=True)`` would run code that such a file names. Here arrays are located by their headers
and read when their layer is, and objects are read as data by :mod:`~cnnfilterdb.ingest.formats.pickle`.

The format has names and shapes and no convention for either, so that the layout is decided by evidence
(:mod:`cnnfilterdb.ingest.network.judge`): (out, in, h, w), as in Chainer, Lasagne and PyTorch, (h, w, in, out), as in
Keras, JAX and what was converted from Caffe for TensorFlow, or (out, h, w, in), as in MLX.
"""

from __future__ import annotations

import io
import math
import zipfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import numpy as np
import numpy.typing as npt
from numpy.lib import format as npy

from cnnfilterdb.core.errors import WeightFileError
from cnnfilterdb.ingest.formats import limits, pickle, register
from cnnfilterdb.ingest.formats.damage import undamaged
from cnnfilterdb.ingest.formats.pickled_arrays import Array
from cnnfilterdb.ingest.formats.tensorflow.graphdef import widened
from cnnfilterdb.ingest.network.arrays import layers_from_arrays
from cnnfilterdb.ingest.network.checkpoint import all_tensors, networks
from cnnfilterdb.ingest.network.composition import parameters
from cnnfilterdb.ingest.network.contents import contents_of
from cnnfilterdb.ingest.network.layers import ConvLayer, Tensor, Weights
from cnnfilterdb.ingest.network.variables import is_training_state

__all__ = ["NpzFormat"]

_WHAT = "NumPy file"
_ZIP = b"PK\x03\x04"
_NPY = b"\x93NUMPY"


@register
class NpzFormat:
    """``.npz`` and ``.npy`` files."""

    name = "npz"
    suffixes = (".npz", ".npy")

    def matches(self, path: Path, head: bytes) -> bool:
        """A zip file whose first member is an array, or an array."""
        if head.startswith(_NPY):
            return True
        # Name of the first member: 30 bytes after the beginning; its length is 4 bytes before
        length = int.from_bytes(head[26:28], "little")
        return head.startswith(_ZIP) and head[30 : 30 + length].endswith(b".npy")

    def read(self, path: Path) -> Weights:
        """Read names and shapes; an array when its layer is read.

        Raises:
            WeightFileError: The file is damaged, or contains no named arrays.
            UnsafeFileError: An object in it asks for code to be executed.
        """
        with undamaged(str(path), _WHAT):
            return _weights(_root(path), path)


@dataclass(frozen=True, slots=True)
class _Stored:
    """An array of a file.

    Attributes:
        dtype: Its element type.
        shape: Its shape.
        read: Reads it.
    """

    dtype: np.dtype[Any]
    shape: tuple[int, ...]
    read: Callable[[], npt.NDArray[Any]]

    def tensor(self, name: str) -> Tensor:
        return Tensor(name, self.shape, self.dtype.name, lambda: widened(self.read()))


# ---------------------------------------------------------------------------------------------------------------------
# The container


def _root(path: Path) -> Any:
    """The content of a file: a dictionary of arrays, or a pickled object."""
    with path.open("rb") as file:
        if file.read(len(_NPY)) == _NPY:
            file.seek(0)
            return _member(path, None, file, path.stat().st_size)
    found: dict[str, Any] = {}
    with zipfile.ZipFile(path) as archive:
        entries = archive.infolist()
        limits.current().create(len(entries))
        for entry in entries:
            with archive.open(entry) as member:
                found[entry.filename.removesuffix(".npy")] = _member(path, entry, member, entry.file_size)
    return found


def _member(path: Path, entry: zipfile.ZipInfo | None, file: IO[bytes], size: int) -> Any:
    """An array, to be read later, or the content of a pickle."""
    shape, fortran, dtype, start = _header(file)
    if dtype.hasobject:
        limits.current().allocate(size)
        value = pickle.load(io.BytesIO(file.read(size)), str(path))
        # One object is stored as an array without dimensions
        objects = value.data if isinstance(value, Array) and isinstance(value.data, list) else value
        return objects[0] if isinstance(objects, list) and len(objects) == 1 and shape in ((), (1,)) else objects
    expected = math.prod(shape) * dtype.itemsize
    if entry is None and size - start > expected:
        file.seek(start + expected)
        if file.read(len(_NPY)) == _NPY:
            raise WeightFileError(
                f"{path}: several arrays one after the other, without names (numpy.save, called again on an open "
                "file); load each with numpy.load and save all with numpy.savez(path, **{'conv.weight': array})"
            )
    if size - start != expected:
        raise WeightFileError(
            f"{path}: {entry.filename if entry else 'the array'} should have {expected:,} bytes for {dtype.name} "
            f"{shape}, has {size - start:,}; download it again"
        )

    def read() -> npt.NDArray[Any]:
        with undamaged(str(path), _WHAT):
            limits.current().allocate(expected)
            if entry is None:
                with path.open("rb") as file:
                    file.seek(start)
                    data = file.read(expected)
            else:
                with zipfile.ZipFile(path) as archive, archive.open(entry) as member:
                    member.read(start)
                    data = member.read(expected)
            return np.frombuffer(data, dtype).reshape(shape, order="F" if fortran else "C")

    return _Stored(dtype, shape, read)


def _header(file: IO[bytes]) -> tuple[tuple[int, ...], bool, np.dtype[Any], int]:
    """Shape, order, element type and length of the header of an array."""
    version = npy.read_magic(file)
    length_bytes = 2 if version == (1, 0) else 4
    length = file.read(length_bytes)
    text = file.read(int.from_bytes(length, "little"))
    # NumPy's own function parses the header, as a literal
    reader = npy.read_array_header_1_0 if version == (1, 0) else npy.read_array_header_2_0
    shape, fortran, dtype = reader(io.BytesIO(length + text))
    return tuple(int(side) for side in shape), bool(fortran), dtype, 6 + 2 + length_bytes + len(text)


# ---------------------------------------------------------------------------------------------------------------------
# The layers


def _is_array(value: Any) -> bool:
    return isinstance(value, _Stored) or (isinstance(value, Array) and isinstance(value.data, bytes))


def _weights(root: Any, path: Path) -> Weights:
    if _is_array(root):
        raise WeightFileError(
            f"{path}: an array without a name, of shape {root.shape}; expected an .npz file or a pickled dictionary of "
            "arrays, such as numpy.savez(path, **{'conv.weight': array})"
        )
    found, left_out = networks(root, _is_array)
    layers: list[ConvLayer] = []
    skipped = list(left_out)
    count = 0
    every: list[Tensor] = []
    for network in found:
        tensors = []
        for entry in network.entries:
            value = entry.value
            if isinstance(value, Array):
                value = _Stored(value.dtype, value.shape, value.read)
            if not is_training_state(entry.name):
                tensors.append(value.tensor(entry.name))
        more, reasons = layers_from_arrays(tensors, ordered=True)
        layers += more
        skipped += reasons
        count += parameters(tensors)
        every += tensors
    whole = all_tensors(root, _is_array)
    contents = {} if whole is None else contents_of(every, layers, skipped, whole=whole)
    return Weights("npz", None, tuple(layers), count, tuple(skipped), contents=contents)
