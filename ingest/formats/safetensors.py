"""Weight files of safetensors: a JSON header of names, types, shapes and places, then the bytes.

The header is read here, because the safetensors library returns bfloat16 or float8 only with PyTorch. Layout: the
length of the header as eight little-endian bytes, the header, the bytes of the tensors, C-contiguous and little-endian
(https://github.com/safetensors/safetensors#format).

A model in several files, or shards, is read as one: pass its index (``model.safetensors.index.json``) or any of its
shards (``model-00001-of-00003.safetensors``), whose siblings are then found beside it by their names.

The file does not preserve the order in which a network was built. Layers are in the order of their names, in which
numbers are compared as numbers.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from cnnfilterdb.ingest.formats import limits, register
from cnnfilterdb.ingest.formats.blob import Blob
from cnnfilterdb.ingest.formats.damage import undamaged
from cnnfilterdb.ingest.formats.dtypes import by_code
from cnnfilterdb.ingest.formats.shards import is_index, shards
from cnnfilterdb.ingest.network.arrays import layers_from_arrays
from cnnfilterdb.ingest.network.checkpoint import networks
from cnnfilterdb.ingest.network.composition import parameters
from cnnfilterdb.ingest.network.contents import contents_of
from cnnfilterdb.ingest.network.judge import Layout, natural
from cnnfilterdb.ingest.network.layers import ConvLayer, Skipped, Tensor, Weights, stated
from cnnfilterdb.ingest.network.variables import is_training_state

__all__ = ["SafetensorsFormat"]

_WHAT = "safetensors file"
_SUFFIXES = (".safetensors",)
# The library refuses longer headers too
_MAX_HEADER = 100_000_000

_DTYPES = by_code(
    {
        "BF16": "bfloat16",
        "BOOL": "bool",
        "C64": "complex64",
        "F16": "float16",
        "F32": "float32",
        "F64": "float64",
        "F8_E4M3": "float8_e4m3fn",
        "F8_E4M3FNUZ": "float8_e4m3fnuz",
        "F8_E5M2": "float8_e5m2",
        "F8_E5M2FNUZ": "float8_e5m2fnuz",
        "F8_E8M0": "float8_e8m0fnu",
        "I16": "int16",
        "I32": "int32",
        "I64": "int64",
        "I8": "int8",
        "U16": "uint16",
        "U32": "uint32",
        "U64": "uint64",
        "U8": "uint8",
    }
)
# Names of the libraries that write such files, as stated in the header
_FRAMEWORKS = {"pt": "pytorch", "tf": "tensorflow"}
# The layout of kernels that this declares
_LAYOUTS: dict[str, Layout] = {"pt": "OIHW", "mlx": "OHWI"}


@dataclass(frozen=True, slots=True)
class _Stored:
    """A tensor of a file.

    Attributes:
        path: The file.
        dtype: Element type, as safetensors names it.
        shape: Its shape as stored.
        start: Its first byte in the file.
        stop: The byte after its last.
    """

    path: Path
    dtype: str
    shape: tuple[int, ...]
    start: int
    stop: int

    def tensor(self, name: str) -> Tensor:
        dtype = _DTYPES[self.dtype].name if self.dtype in _DTYPES else self.dtype.lower()
        return Tensor(name, self.shape, dtype, partial(self.read, name))

    def read(self, name: str) -> npt.NDArray[np.generic]:
        with undamaged(f"{self.path}: {name}", _WHAT):
            dtype = _DTYPES.get(self.dtype)
            if dtype is None:
                raise ValueError(f"elements of type {self.dtype} cannot be read")
            limits.current().allocate(self.stop - self.start + 4 * math.prod(self.shape))
            data = Blob(lambda: self.path.open("rb"), self.start, self.stop - self.start, self.path).buffer()
            array: npt.NDArray[Any] = np.frombuffer(data, dtype).reshape(self.shape)
            if self.dtype.startswith(("F", "BF")):
                with np.errstate(over="ignore"):  # what float32 cannot represent becomes infinite, and is refused later
                    return array.astype(np.float32, copy=False)
            return np.ascontiguousarray(array)


def _read_file(path: Path) -> tuple[dict[str, _Stored], dict[str, str]]:
    """The tensors of one file by name, and what it states about itself."""
    size = path.stat().st_size
    with path.open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
        if not 2 <= length <= min(_MAX_HEADER, size - 8):
            raise ValueError(f"a header of {length:,} bytes in a file of {size:,}: truncated")
        header = json.loads(file.read(length))
    if not isinstance(header, dict):
        raise ValueError("a header that is not a table")
    metadata = header.pop("__metadata__", None)
    limits.current().create(len(header))
    tensors = {}
    for name, entry in header.items():
        dtype, shape, (start, stop) = entry["dtype"], entry["shape"], entry["data_offsets"]
        numbers = [*shape, start, stop]
        if not isinstance(dtype, str) or not all(type(n) is int and 0 <= n < 1 << 48 for n in numbers):
            raise ValueError(f"tensor {name[:100]} has an impossible type, shape or place")
        expected = math.prod(shape) * _DTYPES[dtype].itemsize if dtype in _DTYPES else stop - start
        if stop - start != expected:
            raise ValueError(f"tensor {name[:100]} has {stop - start:,} bytes where {expected:,} are expected")
        if 8 + length + stop > size:
            raise ValueError(f"tensor {name[:100]} ends after the end of the file: truncated")
        place = 8 + length
        tensors[name] = _Stored(path, dtype, tuple(shape), place + start, place + stop)
    reached = 0
    for one in sorted(tensors.values(), key=lambda one: (one.start, one.stop)):
        if one.start < reached and one.stop > one.start:
            raise ValueError("two tensors that share bytes, which the format does not allow")
        reached = max(reached, one.stop)
    texts = stated(metadata.items()) if isinstance(metadata, dict) else {}
    # What this package notes in the header of a part that it downloaded is known of the source.
    return tensors, {name: text for name, text in texts.items() if not name.startswith("cnnfilterdb.")}


def _layers(
    tensors: Mapping[str, _Stored], layout: Layout | None
) -> tuple[tuple[ConvLayer, ...], int, tuple[Skipped, ...], Mapping[str, tuple[int, int]]]:
    names = sorted(tensors, key=natural)
    found, left_out = networks({name: tensors[name] for name in names}, lambda value: isinstance(value, _Stored))
    layers: list[ConvLayer] = []
    skipped = list(left_out)
    total = 0
    every: list[Tensor] = []
    for network in found:
        named = [entry.value.tensor(entry.name) for entry in network.entries]
        more, reasons = layers_from_arrays(named, declared=layout)
        layers += more
        skipped += reasons
        total += parameters(named)
        every += (one for one in named if not is_training_state(one.name))
    whole = len(tensors), sum(math.prod(one.shape) for one in tensors.values())
    return tuple(layers), total, tuple(skipped), contents_of(every, layers, skipped, whole=whole)


@register
class SafetensorsFormat:
    """Files of safetensors, and indexes of sharded ones."""

    name = "safetensors"
    suffixes = _SUFFIXES

    def matches(self, path: Path, head: bytes) -> bool:
        """A header length of possible size and a JSON object, or an index of shards."""
        length = int.from_bytes(head[:8], "little")
        return (head[8:9] == b"{" and length <= _MAX_HEADER) or (
            is_index(head) and not is_index(head, (".bin", ".pt", ".pth"))
        )

    def read(self, path: Path) -> Weights:
        """Read the header, or those of all shards; the tensors when the layers are read.

        Raises:
            WeightFileError: The file is damaged, or shards are missing.
        """
        tensors: dict[str, _Stored] = {}
        libraries: set[str | None] = set()
        metadata: dict[str, str] = {}
        with undamaged(str(path), _WHAT):
            for shard in shards(path, _SUFFIXES):
                with undamaged(str(shard), _WHAT):
                    if shard != path:
                        limits.current().opened(shard.stat().st_size)
                    more, texts = _read_file(shard)
                tensors |= more
                libraries.add(texts.pop("format", None))
                metadata |= texts
            library = libraries.pop() if len(libraries) == 1 else None
            layers, total, skipped, contents = _layers(tensors, _LAYOUTS.get(library or ""))
        framework = _FRAMEWORKS.get(library or "")
        return Weights("safetensors", framework, layers, total, skipped, metadata=metadata, contents=contents)
