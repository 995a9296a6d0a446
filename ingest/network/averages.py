"""Gives the tensors of a moving average the names that they have lost, where that can be proved.

Programs that keep the average of a network beside it often drop the names of its tensors. Two forms keep enough to find
them again:

- **Names without dots** (``model_ema.diffusion_modelinput_blocks00weight`` of latent diffusion): every tensor has the
  name of one tensor of the network without its dots, of no other, and its shape.
- **A list** (``shadow_params`` of torch_ema and of diffusers): as many tensors as the network has parameters, or
  parameters and buffers, each of the shape of its counterpart. PyTorch lists parameters in the order of the state dict.

Otherwise nothing is proved, such as where some parameters are frozen and have no average: the average is reported then.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

__all__ = ["names_of_average"]

# A name and a shape
_Named = tuple[str, tuple[int, ...]]

_BUFFERS = ("running_mean", "running_var", "num_batches_tracked")


def names_of_average(average: Sequence[_Named], network: Sequence[_Named]) -> dict[str, str]:
    """The names in a network of the tensors of its moving average, by their names in the average.

    Args:
        average: Names and shapes of its tensors.
        network: Names and shapes of those of the network, in the order of its state dict.

    Returns:
        The names; nothing where they cannot be proved.

    >>> network = [("a.weight", (8, 3, 3, 3)), ("a.bias", (8,)), ("bn.running_mean", (8,))]
    >>> names_of_average([("decay", ()), ("aweight", (8, 3, 3, 3)), ("abias", (8,))], network)
    {'aweight': 'a.weight', 'abias': 'a.bias'}
    >>> names_of_average([("shadow_params.0", (8, 3, 3, 3)), ("shadow_params.1", (8,))], network)
    {'shadow_params.0': 'a.weight', 'shadow_params.1': 'a.bias'}
    >>> names_of_average([("shadow_params.0", (8, 3, 3, 3))], network)
    {}
    """
    return _without_dots(average, network) or _listed(average, network)


def _without_dots(average: Sequence[_Named], network: Sequence[_Named]) -> dict[str, str]:
    known = {name.replace(".", ""): (name, shape) for name, shape in network}
    counts = Counter(name.replace(".", "") for name, _ in network)
    found = {}
    for name, shape in average:
        original, expected = known.get(name.replace(".", ""), ("", ()))
        if original and expected == shape and counts[name.replace(".", "")] == 1:
            found[name] = original
        elif shape:  # numbers, such as the decay, may be beside the tensors
            return {}
    return found if any(name != original for name, original in found.items()) else {}


def _listed(average: Sequence[_Named], network: Sequence[_Named]) -> dict[str, str]:
    lists: dict[str, list[_Named]] = {}
    for name, shape in average:
        parent, _, number = name.rpartition(".")
        if number != str(len(lists.get(parent, ()))):
            if shape:
                return {}
            continue
        lists.setdefault(parent, []).append((name, shape))
    shadows = [listed for parent, listed in lists.items() if "shadow" in parent] or list(lists.values())
    if len(shadows) != 1:
        return {}
    (shadow,) = shadows
    parameters = [(name, shape) for name, shape in network if name.rpartition(".")[2] not in _BUFFERS]
    for counterparts in (parameters, network):
        if [shape for _, shape in shadow] == [shape for _, shape in counterparts]:
            return {name: original for (name, _), (original, _) in zip(shadow, counterparts, strict=True)}
    return {}
