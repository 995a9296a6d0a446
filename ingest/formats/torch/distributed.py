"""Distributed checkpoints of PyTorch (DCP): a folder with ``.metadata`` and ``*.distcp`` files.

``.metadata`` is a pickle: the shape of every tensor, the chunks that it was split into, and for each chunk its file and
place there, where it lies as a file of ``torch.save``. Layout: ``torch/distributed/checkpoint`` of PyTorch 2.13.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from cnnfilterdb.ingest.formats import limits
from cnnfilterdb.ingest.formats.blob import Blob
from cnnfilterdb.ingest.formats.companions import companion
from cnnfilterdb.ingest.formats.torch.tensors import StoredTensor
from cnnfilterdb.ingest.network.objects import Object

__all__ = ["METADATA", "distributed_content"]

METADATA = ".metadata"

_Offsets = tuple[int, ...]
_Chunk = tuple[_Offsets, StoredTensor]


def distributed_content(metadata: Any, path: Path, unpickled: Callable[[Blob, str], Any]) -> dict[Any, Any]:
    """The state that a checkpoint holds, nested as it was saved, its tensors read when a layer is.

    Args:
        metadata: The content of its ``.metadata``.
        path: That file.
        unpickled: Reads bytes that are a file of ``torch.save``, given them and a name for messages.

    Raises:
        ValueError: The metadata are damaged, or chunks of a tensor are missing.
        WeightFileError: A file is missing.
    """
    states, paths, places = (
        _dictionary(metadata, key) for key in ("state_dict_metadata", "planner_data", "storage_data")
    )
    found: dict[str, dict[_Offsets, tuple[str, int, int]]] = {}
    for index, info in places.items():
        name, offsets = _attribute(index, "fqn"), _attribute(index, "offset")
        place = tuple(_attribute(info, key) for key in ("relative_path", "offset", "length"))
        if not isinstance(name, str) or not isinstance(place[0], str) or not _are_sizes(place[1:]):
            raise ValueError("a place that is not (file, offset, length)")
        found.setdefault(name, {})[() if offsets is None else _sizes(offsets)] = place
    blobs: dict[str, Blob] = {}

    def part(file: str, start: int, length: int) -> Blob:
        if file not in blobs:
            real = companion(path, file)
            limits.current().opened(real.stat().st_size)
            blobs[file] = Blob.of_file(real)
        return blobs[file].part(start, length)

    root: dict[Any, Any] = {}
    limits.current().create(len(states))
    for name, state in states.items():
        if _attribute(state, "chunks") is None:
            continue  # an object that is not a tensor
        shape = _sizes(_attribute(state, "size"))
        chunks: list[_Chunk] = []
        for chunk in _attribute(state, "chunks"):
            limits.current().step()
            offsets, sizes = _sizes(_attribute(chunk, "offsets")), _sizes(_attribute(chunk, "sizes"))
            if offsets not in found.get(name, {}):
                raise ValueError(f"a part of {name[:100]} is missing")
            tensor = unpickled(part(*found[name][offsets]), f"{path}: {name}")
            if not isinstance(tensor, StoredTensor) or tensor.shape != sizes:
                raise ValueError(f"a part of {name[:100]} does not have its shape")
            chunks.append((offsets, tensor))
        _insert(root, paths.get(name) or (name,), _assembled(name, shape, chunks))
    return root


def _assembled(name: str, shape: tuple[int, ...], chunks: list[_Chunk]) -> StoredTensor:
    if len(chunks) == 1 and chunks[0][1].shape == shape:
        return chunks[0][1]
    inside = all(
        len(offsets) == len(one.shape) == len(shape)
        and all(at + n <= side for at, n, side in zip(offsets, one.shape, shape, strict=True))
        for offsets, one in chunks
    )
    if not chunks or not inside or sum(one.elements for _, one in chunks) != math.prod(shape):
        raise ValueError(f"the parts of {name[:100]} do not make a tensor of shape {shape}")
    strides = tuple(math.prod(shape[axis + 1 :]) for axis in range(len(shape)))
    tensor = StoredTensor(None, chunks[0][1].dtype, 0, shape, strides)

    def joined() -> npt.NDArray[Any]:
        limits.current().allocate(4 * math.prod(shape))
        parts = [(offsets, one.read()) for offsets, one in chunks]
        whole = np.empty(shape, parts[0][1].dtype)
        for offsets, values in parts:
            whole[tuple(slice(at, at + n) for at, n in zip(offsets, values.shape, strict=True))] = values
        return whole

    tensor.dense = joined
    return tensor


def _insert(root: dict[Any, Any], path: Any, tensor: StoredTensor) -> None:
    if not isinstance(path, tuple | list) or not path or len(path) > 100:
        raise ValueError("a tensor without a place in the state")
    for key in path[:-1]:
        root = root.setdefault(key, {})
        if not isinstance(root, dict):
            raise ValueError("a tensor within a tensor")
    root[path[-1]] = tensor


def _dictionary(value: Any, key: str) -> dict[Any, Any]:
    found = _attribute(value, key)
    if not isinstance(found, dict):
        if found is None and key == "planner_data":
            return {}
        raise ValueError(f"metadata without {key}")
    return found


def _attribute(value: Any, key: str) -> Any:
    return value.attributes.get(key) if isinstance(value, Object) else None


def _sizes(value: Any) -> tuple[int, ...]:
    if not isinstance(value, tuple | list) or not _are_sizes(value):
        raise ValueError("an impossible shape")
    return tuple(value)


def _are_sizes(values: Any) -> bool:
    return all(type(n) is int and 0 <= n < 1 << 48 for n in values)
