"""What a weight file holds in all: how many tensors and numbers, by what became of them.

Every tensor of a file is counted once, in one class of :data:`CLASSES`, so that the classes add up to the file. The
numbers of a tensor are its elements, of any type.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Collection, Iterable, Mapping

from cnnfilterdb.core.reports import counted
from cnnfilterdb.ingest.network.judge import is_floating
from cnnfilterdb.ingest.network.layers import ConvLayer, Skipped, Tensor, Weights

__all__ = ["CLASSES", "CONTENTS", "added", "as_text", "contents_line", "contents_of", "from_text", "without_layers"]

#: The classes of the tensors of a file, and what each means.
CLASSES: Mapping[str, str] = {
    "kernels": "weights of the two-dimensional convolutions that were read, 1x1 included, and what they are made from",
    "excluded": "what `skipped` lists with a reason: other convolutions, tables, maps, networks that were not selected",
    "matrices": "two axes: weights of linear layers, attention and embeddings",
    "vectors": "one axis or none: biases, and weights of normalisations and scales",
    "others": "of another form that no convolution has, such as tokens and positions",
    "buffers": "not trained: running statistics, counters, masks and all integers that are no weights",
    "beside": "parts beside the network that was read: copies of it, the state of the training, logs",
}

#: The key of the facts of a model, ``original``, under which a database has the contents of its file.
CONTENTS = "contents"

Contents = Mapping[str, tuple[int, int]]

# What is not trained, by the names of PyTorch, of Keras and of TensorFlow
_BUFFERS = {"running_mean", "running_var", "num_batches_tracked", "weight_mask", "weight_u", "_u", "_v"} | {
    "moving_mean",
    "moving_variance",
}
# What a line calls the tensors of a class
_WORDS: Mapping[str, tuple[str, str]] = {
    "excluded": ("excluded", "excluded"),
    "matrices": ("matrix", "matrices"),
    "vectors": ("vector", "vectors"),
    "others": ("of another form", "of another form"),
    "buffers": ("buffer", "buffers"),
    "beside": ("beside the network", "beside the network"),
}
# No name of a layer is longer
_MAX_NAME = 1000


def contents_of(
    tensors: Iterable[Tensor],
    layers: Iterable[ConvLayer],
    skipped: Iterable[Skipped],
    *,
    whole: tuple[int, int] | None = None,
    buffers: Collection[str] = (),
) -> dict[str, tuple[int, int]]:
    """Count the tensors of a file by what became of them.

    Args:
        tensors: All tensors of its networks.
        layers: The layers that were read.
        skipped: What was left out. An entry stands for its tensors, for that of its name, and for all below that name.
        whole: Tensors and numbers of the file, where it holds more than these tensors.
        buffers: Names of tensors that are known not to be trained.

    Returns:
        (tensors, numbers) of each class of :data:`CLASSES` that occurs, in that order.

    >>> def tensor(name, *shape):
    ...     return Tensor(name, shape, "float32", read=lambda: ...)
    >>> conv = ConvLayer("conv", (8, 3, 3, 3), read=lambda: ..., tensors=("conv.weight",))
    >>> named = [tensor("conv.weight", 8, 3, 3, 3), tensor("conv.bias", 8), tensor("fc.weight", 10, 8)]
    >>> contents_of(named, [conv], [], whole=(4, 400))
    {'kernels': (1, 216), 'matrices': (1, 80), 'vectors': (1, 8), 'beside': (1, 96)}
    """
    read = {name for layer in layers for name in layer.tensors}
    reported = {name for one in skipped for name in (one.name, *one.tensors)}
    found: dict[str, tuple[int, int]] = {}
    for tensor in tensors:
        if any(part in read for part in tensor.parts):
            what = "kernels"
        elif any(name in reported for name in (*tensor.parts, *_above(tensor.name))):
            what = "excluded"
        elif tensor.name in buffers or _is_buffer(tensor):
            what = "buffers"
        else:
            rank = len(tensor.shape)
            what = "vectors" if rank < 2 else "matrices" if rank == 2 else "others"
        found = added(found, {what: (1, math.prod(tensor.shape))})
    if whole is not None:
        beside = [whole[0] - sum(n for n, _ in found.values()), whole[1] - sum(n for _, n in found.values())]
        if beside[0] > 0:
            found["beside"] = (beside[0], beside[1])
    return {what: found[what] for what in CLASSES if what in found}


def _above(name: str) -> Iterable[str]:
    """A name, and the names of what contains it.

    >>> list(_above("a.b/c"))
    ['a.b/c', 'a.b', 'a']
    """
    yield name
    if len(name) > _MAX_NAME:
        return
    for place in range(len(name) - 1, 0, -1):
        if name[place] in "./":
            yield name[:place]


def _is_buffer(tensor: Tensor) -> bool:
    return tensor.parameter is False or re.split("[./]", tensor.name)[-1] in _BUFFERS or not is_floating(tensor)


def without_layers(weights: Weights, gone: Iterable[ConvLayer]) -> Contents:
    """The contents of a file after layers were left out that had been read."""
    if not weights.contents:
        return {}
    sizes = [(len(layer.tensors), math.prod(layer.shape)) for layer in gone]
    moved = (sum(tensors for tensors, _ in sizes), sum(numbers for _, numbers in sizes))
    found = added(weights.contents, {"kernels": (-moved[0], -moved[1]), "excluded": moved})
    return {what: found[what] for what in CLASSES if found.get(what, (0, 0)) != (0, 0)}


def added(first: Contents, second: Contents) -> dict[str, tuple[int, int]]:
    """The contents of two files together.

    >>> added({"kernels": (1, 9)}, {"kernels": (1, 18), "vectors": (1, 2)})
    {'kernels': (2, 27), 'vectors': (1, 2)}
    """
    found = dict(first)
    for what, (tensors, numbers) in second.items():
        before = found.get(what, (0, 0))
        found[what] = (before[0] + tensors, before[1] + numbers)
    return found


def contents_line(contents: Contents) -> str:
    """The contents of a file, or of several together, in one line; empty if they are not known.

    >>> contents_line({"kernels": (2, 1584), "matrices": (1, 80), "vectors": (3, 42)})
    'kernels in 2 of 6 tensors, 1,584 of 1,706 numbers (92.8%); the rest: 1 matrix (80), 3 vectors (42)'
    """
    if not contents:
        return ""
    tensors, numbers = (sum(one[place] for one in contents.values()) for place in (0, 1))
    own = contents.get("kernels", (0, 0))
    text = f"kernels in {own[0]:,} of {counted(tensors, 'tensor')}, {own[1]:,} of {counted(numbers, 'number')}"
    text += f" ({own[1] / numbers:.1%})" if numbers else ""
    rest = [
        f"{contents[what][0]:,} {singular if contents[what][0] == 1 else plural} ({contents[what][1]:,})"
        for what, (singular, plural) in _WORDS.items()
        if what in contents
    ]
    return f"{text}; the rest: {', '.join(rest)}" if rest else text


def as_text(contents: Contents) -> str:
    """The contents of a file as they are stored in a database: JSON.

    >>> as_text({"kernels": (2, 1584)})
    '{"kernels": [2, 1584]}'
    """
    return json.dumps({what: list(numbers) for what, numbers in contents.items()})


def from_text(text: str | None) -> Contents:
    """The contents of a file from a database; empty where it has none or others."""
    try:
        found = json.loads(text or "{}")
        return {what: (int(found[what][0]), int(found[what][1])) for what in CLASSES if what in found}
    except (ValueError, TypeError, LookupError):
        return {}
