"""Groups of a layer that its own shape does not show, proved by the layers around it.

A weight (out, second, h, w) is that of a plain layer with ``second`` input channels, or of a grouped one with a
multiple of them. The layer before it in the file usually shows which, because its outputs are the inputs. Where it
does not, because a network branches, three other observations do:

1. *Shortcuts and branches.* A layer whose name says that it is parallel to others (``downsample``, ``shortcut``,
   ``branch1``) reads what the first layer of its block reads. If that is plain and takes ``second`` channels, so is
   this one.
2. *Cardinality.* In the blocks of ResNeXt and its relatives ``conv1`` gives as many channels as ``conv2`` takes. Where
   three blocks or more agree on the number of groups, and no block contradicts, that number is taken.
3. *Repetition.* Two layers of one shape and one name, in blocks whose names differ in their numbers only, are those of
   one class, repeated: ``block1.conv`` and ``block2.conv``, but not ``conv1`` and ``conv2``, nor ``0`` and ``1``.

Layers with four input channels or fewer may read an image. Only the second observation decides them.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import replace

from cnnfilterdb.ingest.network.layers import ConvLayer

__all__ = ["alike", "side_path"]

_PARALLEL = re.compile(r"(?:downsample|shortcut|skip|identity|residual|branch)\w*")
_GATE = re.compile(r"se(?:_\w+)?|attn|attention")
_IMAGE = 4
_AGREE = 3


def alike(layers: Sequence[ConvLayer], *, ordered: bool) -> list[ConvLayer]:
    """Layers with the kinds that others prove.

    Args:
        layers: Those of a network; what has a kind keeps it.
        ordered: Whether they are in the order in which the network was built.

    >>> def layer(name, *shape, **known):
    ...     return ConvLayer(name, shape, read=lambda: ..., **known)
    >>> first = layer("block.conv1", 16, 8, 3, 3, kind="conv", in_channels=8, groups=1)
    >>> [one.kind for one in alike([first, layer("block.shortcut.0", 16, 8, 1, 1)], ordered=True)]
    ['conv', 'conv']
    """
    found = list(layers)
    if ordered:
        groups = _cardinality(found)
        found = [
            _grouped(one, groups) if groups and one.kind is None and _leaf(one) == "conv2" else one for one in found
        ]
    found = _repeated(found)
    if ordered:
        found = _repeated(_parallel(found))
    return found


def side_path(name: str) -> str:
    """The shortcut, branch or gate of channels that a layer is in; empty for a layer in none.

    >>> side_path("block.shortcut.conv"), side_path("block.se.fc1"), side_path("block.conv1")
    ('block.shortcut', 'block.se', '')
    """
    parts = name.split(".")
    for place, part in enumerate(parts):
        if _PARALLEL.fullmatch(part) or _GATE.fullmatch(part):
            return ".".join(parts[: place + 1])
    return ""


def _is_open(layer: ConvLayer) -> bool:
    return layer.kind is None and layer.shape[1] > _IMAGE


def _leaf(layer: ConvLayer) -> str:
    return layer.name.rpartition(".")[2]


def _grouped(layer: ConvLayer, groups: int) -> ConvLayer:
    return replace(layer, kind="conv" if groups == 1 else "grouped", groups=groups, in_channels=layer.shape[1] * groups)


def _cardinality(layers: Sequence[ConvLayer]) -> int | None:
    """The number of groups of all layers ``conv2`` that follow a ``conv1`` in their block; None where they differ."""
    found, widest = [], 0
    by_name = {layer.name: layer for layer in layers}
    for second in layers:
        block, _, leaf = second.name.rpartition(".")
        first = by_name.get(f"{block}.conv1")
        if leaf == "conv2" and first is not None:
            if first.shape[0] % second.shape[1]:
                return None
            found.append(first.shape[0] // second.shape[1])
            widest = max(widest, second.shape[1])
            if second.groups not in (None, found[-1]) or second.shape[0] % found[-1]:
                return None
    agreed = len(found) >= _AGREE and len(set(found)) == 1 and found[0] > 1
    return found[0] if agreed and widest > _IMAGE else None


def _parallel(layers: Sequence[ConvLayer]) -> list[ConvLayer]:
    """Layers with the kinds of shortcuts and branches."""
    first: dict[str, ConvLayer] = {}  # the first layer below each name
    found = []
    for layer in layers:
        parts = layer.name.split(".")
        place = next((place for place, part in enumerate(parts) if _PARALLEL.fullmatch(part)), None)
        if place is not None and _is_open(layer):
            beside = first.get(".".join(parts[:place]))
            if beside is not None and beside.kind == "conv" and beside.in_channels == layer.shape[1]:
                layer = _grouped(layer, 1)
        for length in range(len(parts)):
            first.setdefault(".".join(parts[:length]), layer)
        found.append(layer)
    return found


def _repeated(layers: Sequence[ConvLayer]) -> list[ConvLayer]:
    """Layers with the kinds of their repetitions."""
    known: dict[tuple[str, tuple[int, ...]], set[int | None]] = {}
    for layer in layers:
        if layer.kind is not None:
            groups = layer.groups if layer.kind in ("conv", "grouped") else None
            known.setdefault(_likeness(layer), set()).add(groups)
    found = []
    for layer in layers:
        (groups, *others) = known.get(_likeness(layer), {None})
        found.append(_grouped(layer, groups) if groups and not others and _is_open(layer) else layer)
    return found


def _likeness(layer: ConvLayer) -> tuple[str, tuple[int, ...]]:
    parts = layer.name.split(".")
    named = next((place for place in reversed(range(len(parts))) if not parts[place].isdecimal()), 0)
    blocks, own = ".".join(parts[:named]), ".".join(parts[named:])
    return f"{re.sub(r'[0-9]+', '#', blocks)}.{own}", layer.shape
