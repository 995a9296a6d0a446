"""The options that several questions share, and their check."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from difflib import get_close_matches
from typing import Any, Literal, TypedDict

from cnnfilterdb.errors import SelectionError
from cnnfilterdb.stats import Basis

__all__ = ["BasisChoice", "GroupOptions", "ShiftOptions", "Weights", "check_options"]

#: A basis, the key of a stored one, ``"selection"`` to fit one on the selected rows, or None for the stored default.
BasisChoice = Basis | Literal["selection"] | str | None

#: Weights of the components: numbers, a name, or None for those of the recipe.
Weights = Sequence[float] | Literal["uniform", "explained_variance"] | None


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
    """The options of groups, and how two of them are compared; see :meth:`Reader.kl_shift`."""

    metric: str
    weights: Weights


def check_options(question: str, given: Mapping[str, Any], known: type) -> None:
    """Refuse an option that a question does not have.

    Args:
        question: Name of the method, for the message.
        given: The options.
        known: The TypedDict that declares them.

    Raises:
        SelectionError: One is unknown; the message suggests the nearest name.

    >>> check_options("kl_shift", {"balanse": "models"}, GroupOptions)
    Traceback (most recent call last):
    cnnfilterdb.errors.SelectionError: kl_shift: unknown option 'balanse'; did you mean 'balance'?
    """
    names = list(known.__annotations__)
    for name in given:
        if name not in names:
            near = get_close_matches(name, names, 1)
            raise SelectionError(
                f"{question}: unknown option {name!r}; "
                + (f"did you mean {near[0]!r}?" if near else f"it has {', '.join(sorted(names))}")
            )
