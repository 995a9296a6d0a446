"""Recognises parts of a checkpoint that several processes have written, each its own.

Megatron-LM, NeMo and DeepSpeed split layers over processes (tensor parallelism), or the network (pipeline parallelism),
or all weights as one vector (ZeRO). Such files do not say along which axis a tensor was split, nor whether it was split
at all, so that joining them could not be proved to be right. They are refused, with the program that joins them.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from cnnfilterdb.core.errors import WeightFileError
from cnnfilterdb.ingest.formats.torch.tensors import StoredTensor
from cnnfilterdb.ingest.network.objects import Object

__all__ = ["refuse_parts"]

_MERGE = "merge the parts with the program that wrote them (of Megatron-LM tools/checkpoint/convert.py)"
_GATHER = "gather them: python zero_to_fp32.py FOLDER OUTPUT, which DeepSpeed puts beside the checkpoint"
_RANK = re.compile(r"mp_rank_\d+(?:_\d+)*")
_PIPELINE = re.compile(r"layer_\d+-model_\d+-model_states\.pt")
# Where Megatron-LM and NeMo keep the options of a run, and how they call the numbers of processes
_OPTIONS = ("args", "hyper_parameters", "cfg")
_SIZES = ("tensor_model_parallel_size", "pipeline_model_parallel_size", "model_parallel_size")


def refuse_parts(root: Any, path: Path) -> None:
    """Refuse a file that has only a part of the weights of each layer, or of the layers.

    Args:
        root: The content of the file.
        path: The file, whose folder may contain those of other processes.

    Raises:
        WeightFileError: It is such a part.
    """
    if not isinstance(root, Mapping):
        return
    processes = _processes(root, path)
    if processes:
        raise WeightFileError(f"{path}: one of {processes} parts of a model, split over processes; {_MERGE}")
    if _PIPELINE.fullmatch(path.name):
        raise WeightFileError(f"{path}: some layers of a model, which DeepSpeed split into stages; {_MERGE}")
    optimiser, module = root.get("optimizer_state_dict"), root.get("module")
    if "zero_stage" in _keys(optimiser) and module is None:
        raise WeightFileError(f"{path}: the optimiser of DeepSpeed, which has the weights as one vector; {_GATHER}")
    tensors = [value for value in module.values() if _is_kernel(value)] if isinstance(module, Mapping) else []
    if "ds_version" in root and tensors and all(0 in value.shape for value in tensors):
        raise WeightFileError(f"{path}: empty tensors; DeepSpeed ZeRO 3 keeps the weights in other files; {_GATHER}")


def _processes(root: Mapping[Any, Any], path: Path) -> int:
    """Over how many processes a model was split; 0 if over one only, or if nothing says so."""
    stated = [root.get("mp_world_size")]
    for options in _OPTIONS:
        known = _keys(root.get(options))
        stated += [known.get(size) for size in _SIZES]
    sizes = [size for size in stated if type(size) is int and size > 1]
    if sizes:
        return max(sizes)
    own = path.parent if _RANK.fullmatch(path.parent.name) else None
    others = [one for one in own.parent.glob("mp_rank_*") if (one / path.name).is_file()] if own is not None else []
    return len(others) if len(others) > 1 else 0


def _keys(value: Any) -> Mapping[Any, Any]:
    if isinstance(value, Object):
        return {**value.attributes, **value.items}
    return value if isinstance(value, Mapping) else {}


def _is_kernel(value: Any) -> bool:
    # Without its numbers a tensor of ZeRO has one axis, which is empty
    return isinstance(value, StoredTensor)
