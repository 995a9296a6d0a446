"""What the user chooses where a file leaves a choice: which of its networks, and whether adapters are merged.

The choices are ambient (a context variable), as the limits of :mod:`cnnfilterdb.ingest.formats.limits` are, so that
they reach every reader without passing through every signature.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, replace

from cnnfilterdb.core.errors import SelectionError, WeightFileError
from cnnfilterdb.ingest.network.contents import without_layers
from cnnfilterdb.ingest.network.copies import without_copies
from cnnfilterdb.ingest.network.layers import Weights

__all__ = ["Choices", "applied", "choosing", "chosen", "of"]


@dataclass(slots=True)
class Choices:
    """The choices for one file.

    Attributes:
        network: Name of the network to read; None for the one that the rule of
            :mod:`cnnfilterdb.ingest.network.copies` selects, or for all networks that are not copies.
        merge_adapters: Whether adapters (LoRA) are merged into the layers that they change.
        scaling: Factor of the adapters that state none, from the configuration beside the file.
        found: Whether a reader has selected :attr:`network`; otherwise it selects layers by their names.
    """

    network: str | None = None
    merge_adapters: bool = False
    scaling: float | None = None
    found: bool = False


def of(network: str | None, merge_adapters: bool | float) -> Choices:
    """The choices that arguments of the public functions state.

    Raises:
        SelectionError: The scale of adapters is not a number.
    """
    merges = merge_adapters is not False
    if not isinstance(merge_adapters, bool | int | float):
        raise SelectionError(f"merge_adapters: {merge_adapters!r} given; expected True, or the scale as a number")
    return Choices(network, merges, None if isinstance(merge_adapters, bool) else float(merge_adapters))


def applied(weights: Weights, origin: str) -> Weights:
    """Weights that were read, without copies, or without layers of other networks where the reader has selected none.

    Raises:
        WeightFileError: No layer belongs to the network.
    """
    network = chosen().network
    if network is None:
        return without_copies(weights)
    if chosen().found:
        return weights
    layers = tuple(layer for layer in weights.layers if re.match(rf"{re.escape(network)}[./]", layer.name))
    if not layers:
        names = [layer.name for layer in weights.layers] + [one.name for one in weights.skipped]
        parts = dict.fromkeys(re.split(r"[./]", name)[0] for name in names)
        known = ", ".join(list(parts)[:8]) or "none"
        raise WeightFileError(f"{origin}: has no network {network!r}; parts of it with convolutions: {known}")
    kept = {layer.name for layer in layers}
    gone = [layer for layer in weights.layers if layer.name not in kept]
    return replace(weights, layers=layers, parameters=None, contents=without_layers(weights, gone))


_current: ContextVar[Choices | None] = ContextVar("choices", default=None)


def chosen() -> Choices:
    """The choices for the file that is being read; by default none."""
    return _current.get() or Choices()


@contextmanager
def choosing(choices: Choices) -> Iterator[Choices]:
    """Make choices the current ones within a block."""
    token = _current.set(choices)
    try:
        yield choices
    finally:
        _current.reset(token)
