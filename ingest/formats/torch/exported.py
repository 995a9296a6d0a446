"""Weights of the archives of ``torch.export.save`` (``.pt2``), as PyTorch 2.8 and later write them.

``data/weights/model_weights_config.json`` lists the tensors: name, type, shape, strides, and the member that holds the
bytes. The graph of the program is not read. Layout: ``torch/export/pt2_archive`` of PyTorch 2.13.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from functools import partial
from typing import Any

from cnnfilterdb.ingest.formats import limits
from cnnfilterdb.ingest.formats.torch.archive import TorchArchive
from cnnfilterdb.ingest.formats.torch.tensors import StoredTensor, TensorStorage

__all__ = ["exported_tensors"]

# torch._export.serde.schema.ScalarType
_TYPES = {
    1: "uint8", 2: "int8", 3: "int16", 4: "int32", 5: "int64", 6: "float16", 7: "float32", 8: "float64",
    10: "complex64", 11: "complex128", 12: "bool", 13: "bfloat16", 28: "uint16", 29: "float8_e4m3fn", 30: "float8_e5m2",
    31: "float8_e4m3fnuz", 32: "float8_e5m2fnuz",
}  # fmt: skip


def exported_tensors(archive: TorchArchive, config: str, unpickled: Callable[[str], Any]) -> dict[str, StoredTensor]:
    """The parameters and buffers of a program, by name.

    Args:
        archive: The archive.
        config: Its member that lists them.
        unpickled: Reads a member that is a file of ``torch.save``.

    Raises:
        ValueError: The list is damaged.
    """
    folder = config.rpartition("/")[0]
    entries = json.loads(archive.member(config).read())["config"]
    limits.current().create(len(entries))
    found = {}
    for name, entry in entries.items():
        member = f"{folder}/{entry['path_name']}"
        tensor = unpickled(member) if entry.get("use_pickle") else _tensor(archive, member, entry["tensor_meta"])
        if not isinstance(tensor, StoredTensor):
            raise ValueError(f"{name[:100]} is not a tensor")
        tensor.parameter = entry.get("is_param") is True
        found[name] = tensor
    return found


def _tensor(archive: TorchArchive, member: str, meta: dict[str, Any]) -> StoredTensor:
    dtype = _TYPES.get(meta["dtype"], f"number {meta['dtype']}")
    storage = TensorStorage(member, dtype, archive.size(member), partial(archive.member, member))
    shape, strides = (tuple(_whole(side) for side in meta[key]) for key in ("sizes", "strides"))
    return StoredTensor(storage, dtype, _whole(meta["storage_offset"]), shape, strides)


def _whole(number: Any) -> int:
    value = number["as_int"]
    if type(value) is not int:
        raise ValueError("a size that is not a number")
    return value
