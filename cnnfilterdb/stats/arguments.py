"""Arguments that many functions share: whole numbers, levels, seeds of random numbers, and finite weights."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from cnnfilterdb.core.errors import SelectionError

__all__ = ["are_finite", "between", "random_numbers", "whole_number"]


def whole_number(least: int, argument: str, value: int, better: str = "") -> None:
    """Refuse anything but a whole number of at least ``least``.

    Args:
        least: The least number.
        argument: Name of the argument, for the message.
        value: What was given.
        better: What to give, if it is not the least number.

    Raises:
        SelectionError: It is not such a number.

    >>> whole_number(1, "permutations", 0, "better 999")
    Traceback (most recent call last):
    cnnfilterdb.SelectionError: permutations: 0 given; expected a whole number of at least 1, better 999
    """
    if not isinstance(value, int | np.integer) or isinstance(value, bool) or value < least:
        hint = f", {better}" if better else ""
        raise SelectionError(f"{argument}: {value!r} given; expected a whole number of at least {least}{hint}")


def between(low: float, high: float, argument: str, value: float, expected: str) -> None:
    """Refuse anything but a finite number of at least ``low`` and below ``high``.

    Raises:
        SelectionError: It is not such a number; the message says what was ``expected``.
    """
    real = isinstance(value, int | float | np.integer | np.floating) and not isinstance(value, bool)
    if not (real and np.isfinite(value) and low <= value < high):
        raise SelectionError(f"{argument}: {value!r} given; expected {expected}")


def random_numbers(seed: int | None) -> np.random.Generator:
    """Random numbers from a seed: the same seed, the same numbers; None takes others each time.

    Raises:
        SelectionError: The seed is not a whole number of at least 0.

    >>> random_numbers(0).integers(100, size=3).tolist()
    [85, 63, 51]
    """
    if seed is not None:
        whole_number(0, "seed", seed)
    return np.random.default_rng(seed)


def are_finite(weights: npt.NDArray[np.float32]) -> bool:
    """Whether no weight is NaN or infinite.

    >>> are_finite(np.float32([1, 3e38])), are_finite(np.float32([1, np.nan]))
    (True, False)
    """
    flat = weights.reshape(-1)
    # Their sum of squares takes a third of the time, but is also infinite where weights are very large.
    with np.errstate(all="ignore"):
        return bool(np.isfinite(np.dot(flat, flat)) or np.isfinite(flat).all())
