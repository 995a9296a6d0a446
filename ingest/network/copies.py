"""Decides which of two copies of one network in one file is the model.

Training often keeps a second copy of the network, which follows the first one slowly, and both are in the checkpoint.
They are one model, not two, so one of them is imported and the other is reported in ``skipped``:

- A copy meant to be used after the training is the model: a moving average (``ema``, ``shadow``, ``swa``,
  ``averaged``), and the teacher of self-distillation (``teacher`` beside ``student``).
- A copy that only serves as a target during the training is not: the momentum encoder of MoCo (``encoder_k`` beside
  ``encoder_q``), the target network of BYOL or of Q-learning (``target`` beside ``online`` or ``policy``).
- Averages whose tensors have lost their names are not: ``ema_backbone_conv_weight``, which OpenMMLab keeps as buffers
  of the network, beside ``backbone.conv.weight``.

This holds for copies: all kernels of the one that is left out must be in the other, with the same names and shapes. A
teacher of another architecture, or a generator and its discriminator, are different networks, and all are imported.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Set

__all__ = ["Kernels", "second_copies", "suspects", "underscored_copies"]

#: Kernels of a network: their names and shapes.
Kernels = Set[tuple[str, tuple[int, ...]]]

# Word of a copy: words that replace it in the name of the network, and whether the copy is the model. An empty word
# means a name without it.
_COPIES: dict[str, tuple[tuple[str, ...], bool]] = {
    "teacher": (("student", ""), True),
    "shadow": (("",), True),
    "swa": (("",), True),
    "averaged": (("",), True),
    "k": (("q",), False),
    "key": (("query",), False),
    "momentum": (("online", ""), False),
    "target": (("online", "policy", "current", ""), False),
}


def second_copies(parts: Mapping[str, Kernels]) -> Iterator[tuple[str, str]]:
    """Which of several networks side by side are copies that are left out, with the reason.

    Args:
        parts: The kernels of each, by its name.

    >>> kernels = {("conv.weight", (8, 3, 3, 3))}
    >>> [name for name, _ in second_copies({"encoder_q": kernels, "encoder_k": kernels})]
    ['encoder_k']
    >>> [name for name, _ in second_copies({"student": kernels, "teacher": kernels})]
    ['student']
    """
    lower = {name.lower(): name for name in parts}
    dropped: set[str] = set()
    for name, kernels in parts.items():
        for original, is_model in _originals(name):
            other = lower.get(original)
            if other is None or other == name or {name, other} & dropped or not kernels:
                continue
            if is_model and parts[other] and parts[other] <= kernels:
                dropped.add(other)
                yield other, f"its copy {name}, which is used after the training, was imported instead"
            elif kernels <= parts[other]:
                dropped.add(name)
                yield name, f"a copy of {other} that is used only in training; {other} was imported"


def suspects(names: Set[str]) -> set[str]:
    """The names that may be those of two copies of one network.

    >>> sorted(suspects({"encoder_q", "encoder_k", "head"}))
    ['encoder_k', 'encoder_q']
    """
    lower = {name.lower(): name for name in names}
    pairs = [(name, lower[one]) for name in names for one, _ in _originals(name) if lower.get(one, name) != name]
    return {name for pair in pairs for name in pair}


def _originals(name: str) -> Iterator[tuple[str, bool]]:
    """Names of the network that a name may mean a copy of."""
    words = re.split(r"[_\-]", name.lower())
    separator = "-" if "-" in name else "_"
    for place, word in enumerate(words):
        others, is_model = _COPIES.get(word, ((), False))
        for other in others:
            replaced = [*words[:place], *([other] if other else []), *words[place + 1 :]]
            if replaced:
                yield separator.join(replaced), is_model


def underscored_copies(names: Set[str]) -> set[str]:
    """Tensors of a moving average that have lost the dots of their names.

    >>> underscored_copies({"a.conv.weight", "ema_a_conv_weight", "ema_mixer.weight"})
    {'ema_a_conv_weight'}
    """
    flat = {name.replace(".", "_") for name in names}
    return {name for name in names if name.startswith("ema_") and name.removeprefix("ema_").replace(".", "_") in flat}
