"""The options that several methods share, and their check."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from difflib import get_close_matches
from typing import Any, Literal, TypedDict

import numpy as np

from cnnfilterdb.core.errors import SelectionError
from cnnfilterdb.stats import Basis
from cnnfilterdb.stats.arguments import whole_number

__all__ = [
    "BasisChoice",
    "ComponentWeights",
    "GroupOptions",
    "ShiftOptions",
    "check_histogram",
    "check_options",
    "names_given",
    "names_of",
]

#: A basis, the key of a stored one, ``"selection"`` to fit one on the selected rows, or None for the stored default.
BasisChoice = Basis | Literal["selection"] | str | None

#: Weights of the components: numbers, a name, or None for those of the recipe.
ComponentWeights = Sequence[float] | Literal["uniform", "explained_variance"] | None


class GroupOptions(TypedDict, total=False):
    """Which filters are grouped, and how their coefficients are counted; see :meth:`Reader.groups`."""

    where: str | None
    recipe: str
    basis: BasisChoice
    bins: int | None
    range: tuple[float, float] | None
    balance: str
    kernel: str
    all_layers: bool
    min_models: int
    min_filters: int


class ShiftOptions(GroupOptions, total=False):
    """The options of groups, and of their comparison; see :meth:`Reader.kl_shift`."""

    metric: str
    weights: ComponentWeights


def check_options(question: str, given: Mapping[str, Any], known: type) -> None:
    """Refuse an option that a method does not have.

    Args:
        question: Name of the method, for the message.
        given: The options.
        known: The TypedDict that declares them.

    Raises:
        SelectionError: One is unknown; the message suggests the nearest name.

    >>> check_options("kl_shift", {"balanse": "models"}, GroupOptions)
    Traceback (most recent call last):
    cnnfilterdb.SelectionError: kl_shift: unknown option 'balanse'; did you mean 'balance'?
    """
    names = list(known.__annotations__)
    for name in given:
        if name not in names:
            near = get_close_matches(name, names, 1)
            raise SelectionError(
                f"{question}: unknown option {name!r}; "
                + (f"did you mean {near[0]!r}?" if near else f"it has {', '.join(sorted(names))}")
            )


def check_histogram(bins: int | None, limits: tuple[float, float] | None) -> None:
    """Check the number of bins and the range of a histogram; None means the default.

    Raises:
        SelectionError: Not a whole number of at least 1, or not two ascending numbers.
    """
    if bins is not None:
        whole_number(1, "bins", bins)
    if limits is None:
        return
    try:
        low, high = (float(limit) for limit in limits)
    except (TypeError, ValueError) as error:
        raise SelectionError(f"range: {limits!r} given; expected two numbers, such as (-3, 3)") from error
    if not (np.isfinite([low, high]).all() and low < high):
        raise SelectionError(f"range: ({low}, {high}) given; expected two finite numbers in ascending order")


def names_of(argument: str, given: str | Sequence[str]) -> list[str]:
    """The names of an argument; a single text is one name."""
    names = [given] if isinstance(given, str) else list(given)
    if wrong := [name for name in names if not isinstance(name, str)]:
        raise SelectionError(f"{argument}: {wrong[0]!r} given; expected names as text")
    return names


def names_given(method: str, given: Sequence[str]) -> list[str]:
    """The names that a method was given one by one."""
    if wrong := [name for name in given if not isinstance(name, str)]:
        raise SelectionError(f"{method}: {wrong[0]!r} given; give each model as an argument: {method}(*names)")
    return list(given)
