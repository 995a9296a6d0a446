"""Merges LoRA adapters into the layers that they change, on request.

A layer with an adapter computes with W + s B A instead of W: A (r, in, h, w) reduces the input to r channels, B
(out, r, 1, 1) expands them, and s is ``lora_alpha / r``, or ``lora_alpha / sqrt(r)`` of rank-stabilised adapters (Hu et
al., arXiv 2106.09685; Kalajdzievski, arXiv 2312.03732). DoRA scales each output channel to a length m of its own:
m (W + s B A) / |W + s B A| (Liu et al., arXiv 2402.09353). This is what ``merge_and_unload`` of peft computes.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterable, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import numpy.typing as npt

from cnnfilterdb.core.errors import WeightFileError
from cnnfilterdb.ingest.network.judge import ADAPTER, is_adapter
from cnnfilterdb.ingest.network.layers import Skipped, Tensor

__all__ = ["merged", "scaling_beside", "unmerged"]

_FACTOR = re.compile(
    r"(?P<layer>.+)\.(?:lora_(?P<factor>A|B|down|up)|lora\.(?P<plain>down|up)|lora_(?P<size>magnitude_vector))"
    r"(?:\.(?P<adapter>\w+))??(?:\.weight)?"
)
_DOWN, _UP = ("A", "down"), ("B", "up")


def scaling_beside(path: Path) -> float | None:
    """The factor s that the ``adapter_config.json`` of peft beside a file states; None where there is none.

    Raises:
        WeightFileError: It is damaged, or gives layers different factors.
    """
    config = path.with_name("adapter_config.json")
    if not config.is_file():
        return None
    try:
        known = json.loads(config.read_bytes())
        rank, alpha = float(known["r"]), float(known["lora_alpha"])
        if known.get("rank_pattern") or known.get("alpha_pattern"):
            raise WeightFileError(
                f"{config}: layers have different ranks or scales; merge the adapter with peft (merge_and_unload)"
            )
        return alpha / (math.sqrt(rank) if known.get("use_rslora") else rank)
    except (OSError, ValueError, KeyError, TypeError, ZeroDivisionError, AttributeError) as error:
        raise WeightFileError(f"{config}: not the configuration of a LoRA adapter ({error})") from error


def unmerged(tensors: Iterable[Tensor], reported: Iterable[Skipped]) -> tuple[Skipped, ...]:
    """What to report of adapters whose factors are matrices or vectors: one of them, if no other factor is reported.

    >>> unmerged([Tensor("c.vera_lambda_b", (8,), "float32", lambda: np.ones(8))], [])[0].name
    'c.vera_lambda_b'
    """
    first = next((tensor.name for tensor in tensors if is_adapter(tensor.name)), None)
    if first is None or any(one.reason == ADAPTER for one in reported):
        return ()
    return (Skipped(first, ADAPTER),)


def merged(tensors: Sequence[Tensor], scaling: float | None) -> list[Tensor]:
    """Tensors of a network with the adapters of its convolutions merged into their layers, in place of the factors.

    Args:
        tensors: Those of one network: ``<layer>.weight``, ``<layer>.lora_A.<adapter>.weight``, ...
        scaling: The factor s of adapters without an ``alpha`` of their own.

    Raises:
        WeightFileError: A layer is missing, has several adapters, or does not fit; or the factor is not known.

    >>> def tensor(name, *shape):
    ...     return Tensor(name, shape, "float32", read=lambda: np.ones(shape, np.float32))
    >>> parts = [tensor("c.weight", 8, 4, 3, 3), tensor("c.lora_A.weight", 2, 4, 3, 3)]
    >>> parts.append(tensor("c.lora_B.weight", 8, 2, 1, 1))
    >>> [(one.name, one.read()[0, 0, 0, 0]) for one in merged(parts, 0.5)]
    [('c.weight', np.float32(2.0))]
    """
    index = {tensor.name: tensor for tensor in tensors}
    layers: dict[str, dict[str, Tensor]] = {}
    for tensor in tensors:
        match = _FACTOR.fullmatch(tensor.name)
        factor = match and (match["factor"] or match["plain"] or match["size"])
        if match is None or factor is None or (len(tensor.shape) != 4 and factor != "magnitude_vector"):
            continue
        kind = "down" if factor in _DOWN else "up" if factor in _UP else "size"
        if kind in layers.setdefault(match["layer"], {}):
            raise WeightFileError(f"{match['layer']}: has several adapters; merge them with peft (merge_and_unload)")
        layers[match["layer"]][kind] = tensor
    new: dict[str, Tensor] = {}
    gone: set[str] = set()
    for layer, parts in layers.items():
        if "down" in parts and "up" in parts:
            new[f"{layer}.weight"] = _merged(layer, parts, index, scaling)
            gone |= {part.name for part in parts.values()}
    return [new.get(tensor.name, tensor) for tensor in tensors if tensor.name not in gone]


def _merged(layer: str, parts: dict[str, Tensor], index: dict[str, Tensor], scaling: float | None) -> Tensor:
    base, down, up, size = index.get(f"{layer}.weight"), parts["down"], parts["up"], parts.get("size")
    if base is None:
        raise WeightFileError(f"{layer}: the layer of an adapter is not in the file; pass base and adapter in one file")
    out, channels, height, width = base.shape if len(base.shape) == 4 else (0, 0, 0, 0)
    rank = down.shape[0]
    if down.shape != (rank, channels, height, width) or up.shape != (out, rank, 1, 1) or not rank:
        raise WeightFileError(
            f"{layer}: factors of the shapes {down.shape} and {up.shape} do not fit a layer of shape {base.shape}"
        )
    if size is not None and math.prod(size.shape) != out:
        raise WeightFileError(
            f"{layer}: {math.prod(size.shape)} lengths of DoRA do not fit a layer of shape {base.shape}"
        )
    alpha = index.get(f"{layer}.alpha")
    if alpha is None and scaling is None:
        raise WeightFileError(
            f"{layer}: the scale of its adapter (lora_alpha / r) is not in the file; put adapter_config.json beside it "
            "or pass the scale: merge_adapters=2.0"
        )

    def read() -> npt.NDArray[np.generic]:
        factor = float(scaling or 0.0) if alpha is None else float(np.asarray(alpha.read()).item()) / rank
        first, second = _float32(down).reshape(rank, -1), _float32(up).reshape(out, rank)
        weight: npt.NDArray[np.float32] = _float32(base) + (second @ first).reshape(base.shape) * np.float32(factor)
        if size is not None:
            norm = np.sqrt(np.square(weight, dtype=np.float64).sum((1, 2, 3), keepdims=True))
            weight = weight * (_float32(size).reshape(out, 1, 1, 1) / np.where(norm > 0, norm, 1)).astype(np.float32)
        return weight

    merged_parts = [base, down, up, *(one for one in (size, alpha) if one is not None)]
    return replace(base, read=read, parts=tuple(part for one in merged_parts for part in one.parts))


def _float32(tensor: Tensor) -> npt.NDArray[np.float32]:
    return np.asarray(tensor.read(), np.float32)
