"""Decides which of two copies of one network in one file is the model.

Training often keeps a second copy of the network, which follows the first one slowly, and both are in the checkpoint.
They are one model, not two, so one of them is imported and the other is reported in ``skipped``:

- A copy meant to be used after the training is the model: a moving average (``ema``, ``shadow``, ``swa``,
  ``averaged``), and the teacher of self-distillation (``teacher`` beside ``student``).
- A copy that serves the training only is not: the momentum encoder of MoCo (``encoder_k`` beside ``encoder_q``), the
  target network of BYOL or of Q-learning (``target`` beside ``online`` or ``policy``), a reference or an earlier state
  (``ref``, ``old``, ``init``, ``best``, ``copy``).
- Averages whose tensors have lost their names are not: ``ema_backbone_conv_weight``, which OpenMMLab keeps as buffers
  of the network, beside ``backbone.conv.weight``. When OpenMMLab saves, the network itself has the averaged weights.
- The module that peft replaced (``original_module``) is not; its trained copy is (``modules_to_save``).

Networks are copies if one has a word of a copy in its name, and either the other has the same name without that word,
or with its counterpart, and contains all kernels of the copy, by name and shape; or the other is the only one beside it
with the same kernels; or all that is beside it is the network, without a name of its own (``ema.stem.weight`` beside
``stem.weight``). A teacher of another architecture, a generator and its discriminator, or the layers ``query``
and ``key`` of an attention, each of which is one kernel, are no copies, and all are imported.

To import the other copy, or one of several networks, select it by its name: ``network=`` in Python, ``--network`` on
the command line.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence, Set
from dataclasses import replace

from cnnfilterdb.ingest.network.contents import without_layers
from cnnfilterdb.ingest.network.layers import Skipped, Weights

__all__ = [
    "WRAPPERS",
    "Kernels",
    "replaced_modules",
    "second_copies",
    "suspects",
    "underscored_copies",
    "without_copies",
]

#: Kernels of a network: their names and shapes.
Kernels = Set[tuple[str, tuple[int, ...]]]

#: Names that wrappers put before those of a network: DataParallel, Lightning, ...
WRAPPERS = ("module", "model", "net", "network", "backbone", "state_dict")

# Words of a copy that is the model, and of one that is not
_MODEL_WORDS = {"ema", "teacher", "shadow", "swa", "averaged", "average", "avg", "polyak"}
_TRAINING_WORDS = {"k", "m", "key", "momentum", "target", "slow", "ref", "reference", "old", "prev", "previous"} | {
    "init",
    "initial",
    "frozen",
    "best",
    "copy",
    "clone",
    "backup",
}
_STATES = {"best", "copy", "clone", "backup", "old", "prev", "previous", "init", "initial"}
_ALL_WORDS = _MODEL_WORDS | _TRAINING_WORDS
# Levels of names among which copies are looked for
_LEVELS = 3
# Layers have such words in their names too; beside one of these nouns they mean a copy
_OF_ATTENTION = {"k", "m", "key"}
_NOUNS = ("encoder", "net", "model", "backbone", "trunk", "extractor", "module")
# What the network itself may be called beside such a copy
_COUNTERPARTS: dict[str, tuple[str, ...]] = {
    "teacher": ("student",),
    "k": ("q",),
    "key": ("query",),
    "momentum": ("online", "base"),
    "target": ("online", "policy", "current"),
    "slow": ("fast",),
}


def second_copies(parts: Mapping[str, Kernels]) -> Iterator[tuple[str, str]]:
    """Which of several networks side by side are copies that are left out, with the reason.

    Args:
        parts: The kernels of each, by its name.

    >>> kernels = {("stem.weight", (8, 3, 3, 3)), ("conv.weight", (8, 8, 3, 3))}
    >>> [name for name, _ in second_copies({"encoder_q": kernels, "encoder_k": kernels})]
    ['encoder_k']
    >>> [name for name, _ in second_copies({"net": kernels, "average_model": kernels, "head": set()})]
    ['net']
    >>> [name for name, _ in second_copies({"stem": {("weight", (8, 3, 3, 3))}, "conv": {("weight", (8, 8, 3, 3))},
    ...                                     "shadow": kernels})]
    ['stem', 'conv']
    >>> one = {("weight", (8, 8, 3, 3))}
    >>> list(second_copies({"query": one, "key": one}))
    []
    """
    plain = {name: _unwrapped(kernels) for name, kernels in parts.items()}
    lower = {name.lower(): name for name in parts}
    dropped: set[str] = set()
    for name, kernels in plain.items():
        word = _word(name)
        if word is None or name in dropped or not _is_network(parts[name]):
            continue
        named = [lower[other] for other in _originals(name) if lower.get(other, name) != name]
        others = [other for other in named if other not in dropped and plain[other]]
        # An average is that of the network whose name it has
        if not named and (word != "ema" or not any(one not in ("", word) for one in _words(name))):
            others = [other for other in plain if _word(other) is None and other not in dropped]
            others = [other for other in others if plain[other] == kernels]
            others = others if len(others) == 1 else []
        for other in others:
            if word in _MODEL_WORDS and plain[other] <= kernels:
                dropped.add(other)
                yield other, f"its copy {name}, which is used after the training, was imported instead"
            elif word in _TRAINING_WORDS and kernels <= plain[other]:
                dropped.add(name)
                use = "" if word in _STATES else " that is used only in training"
                yield name, f"a copy of {other}{use}; {other} was imported"
                break
        if not named and not others:
            yield from _copy_of_all(name, word, plain, dropped)


def _copy_of_all(name: str, word: str, parts: Mapping[str, Kernels], dropped: set[str]) -> Iterator[tuple[str, str]]:
    """What is left out if a network is a copy of all that is beside it, layer by layer."""
    beside = {other: kernels for other, kernels in parts.items() if other != name and other not in dropped}
    layers = {(_below(other, layer), shape) for other, kernels in beside.items() for layer, shape in kernels}
    same = parts[name] & layers
    if len(same) < 2:
        return
    if word in _TRAINING_WORDS and same == parts[name]:
        dropped.add(name)
        yield name, "a copy of the network that is used only in training"
    elif word in _MODEL_WORDS:
        for other, kernels in beside.items():
            if kernels and {(_below(other, layer), shape) for layer, shape in kernels} <= same:
                dropped.add(other)
                yield other, f"its copy in {name}, which is used after the training, was imported instead"


def _below(network: str, layer: str) -> str:
    return f"{network}.{layer}" if layer else network


def without_copies(weights: Weights) -> Weights:
    """Weights of a file without a graph, in which a network and its copy are told apart by the names of layers alone.

    >>> from cnnfilterdb.ingest.network.layers import ConvLayer
    >>> def layer(name):
    ...     return ConvLayer(name, (8, 8, 3, 3), read=lambda: ...)
    >>> names = ["student/a", "student/b", "teacher/a", "teacher/b"]
    >>> found = without_copies(Weights("keras-v3", "keras", tuple(map(layer, names))))
    >>> [layer.name for layer in found.layers], found.skipped[0].name
    (['teacher/a', 'teacher/b'], 'student')
    """
    if any(layer.depth_source == "graph" for layer in weights.layers):
        return weights  # the graph executes all of them
    paths = {layer.name: re.split(r"[./]", layer.name) for layer in weights.layers}
    parts: dict[str, dict[str, set[tuple[str, tuple[int, ...]]]]] = {}
    for layer in weights.layers:
        path = paths[layer.name]
        for level in range(min(len(path), _LEVELS)):
            parent = "".join(f"{part}." for part in path[:level])
            below = parts.setdefault(parent, {}).setdefault(path[level], set())
            below.add((".".join(path[level + 1 :]), layer.shape))
    dropped = {
        f"{parent}{name}": reason for parent, below in parts.items() for name, reason in second_copies(below)
    }  # fmt: skip
    if not dropped:
        return weights

    def is_left_out(path: list[str]) -> bool:
        return any(".".join(path[: level + 1]) in dropped for level in range(_LEVELS))

    gone = [layer for layer in weights.layers if is_left_out(paths[layer.name])]
    return replace(
        weights,
        layers=tuple(layer for layer in weights.layers if not is_left_out(paths[layer.name])),
        contents=without_layers(weights, gone),
        skipped=(*weights.skipped, *(Skipped(name, reason) for name, reason in dropped.items())),
    )


def suspects(names: Set[str]) -> set[str]:
    """The names of networks that may be copies of each other: all, if one of them has a word of a copy.

    >>> sorted(suspects({"encoder_q", "encoder_k"})), suspects({"generator", "discriminator"})
    (['encoder_k', 'encoder_q'], set())
    """
    return set(names) if any(_word(name) is not None for name in names) else set()


def underscored_copies(names: Set[str]) -> set[str]:
    """Tensors of a moving average that have lost the dots of their names.

    >>> underscored_copies({"a.conv.weight", "ema_a_conv_weight", "ema_mixer.weight"})
    {'ema_a_conv_weight'}
    """
    flat = {name.replace(".", "_") for name in names}
    return {name for name in names if name.startswith("ema_") and "." not in name and name.removeprefix("ema_") in flat}


def replaced_modules(names: Sequence[str]) -> list[tuple[str, str]]:
    """Layers that peft has replaced by trained copies, and the copies of other adapters than the first, with reasons.

    >>> names = ["c.original_module.weight", "c.modules_to_save.default.weight", "c.modules_to_save.b.weight"]
    >>> [name for name, _ in replaced_modules(names)]
    ['c.original_module', 'c.modules_to_save.b']
    """
    saved: dict[str, list[str]] = {}
    for name in names:
        owner, found, below = name.rpartition(".modules_to_save.")
        if found and below.partition(".")[0] not in saved.setdefault(owner, []):
            saved[owner].append(below.partition(".")[0])
    replaced = []
    for owner, adapters in saved.items():
        if not any(name.startswith(f"{owner}.original_module.") for name in names):
            continue
        used = "default" if "default" in adapters else adapters[0]
        replaced.append((f"{owner}.original_module", f"its trained copy, modules_to_save.{used}, was imported instead"))
        replaced += [
            (f"{owner}.modules_to_save.{other}", f"another copy of the layer; modules_to_save.{used} was imported")
            for other in adapters
            if other != used
        ]
    return replaced


def _words(name: str) -> list[str]:
    return re.split(r"[_\-]", name.lower())


def _word(name: str) -> str | None:
    """The word of a copy in a name."""
    words = _words(name)
    noun = any(noun in word for word in words for noun in _NOUNS)
    return next((one for one in words if one in _ALL_WORDS and (noun or one not in _OF_ATTENTION)), None)


def _is_network(kernels: Kernels) -> bool:
    """Whether kernels are those of a network, not one layer."""
    return len(kernels) > 1 or any("." in name for name, _ in kernels)


def _unwrapped(kernels: Kernels) -> Kernels:
    """Kernels without the names of wrappers before theirs."""
    while True:
        firsts = {name.partition(".")[0] for name, _ in kernels}
        if len(firsts) != 1 or not firsts <= set(WRAPPERS) or any("." not in name for name, _ in kernels):
            return kernels
        kernels = {(name.partition(".")[2], shape) for name, shape in kernels}


def _originals(name: str) -> Iterator[str]:
    """Names of the network that a name may mean a copy of."""
    word, words = _word(name), _words(name)
    separator = "-" if "-" in name else "_"
    place = words.index(word) if word is not None else 0
    for other in (*_COUNTERPARTS.get(word or "", ()), ""):
        replaced = [*words[:place], *([other] if other else []), *words[place + 1 :]]
        if replaced:
            yield separator.join(replaced)
