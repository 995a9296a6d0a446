"""Splitting models among the tasks of a batch system, without a list that the tasks would have to agree on."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable
from dataclasses import dataclass

from cnnfilterdb.core.errors import SelectionError

__all__ = ["Share"]


@dataclass(frozen=True, slots=True)
class Share:
    """One of several shares of all models: which one a model is in depends on its key and their number only.

    A model that is added to a list or removed from it moves no other one.

    Attributes:
        number: Which share, from 1.
        count: Number of shares.
    """

    number: int
    count: int

    @classmethod
    def of(cls, text: str | None) -> Share | None:
        """The share that a user names, such as ``3/64``; None for all.

        Raises:
            SelectionError: Not a share.

        >>> Share.of("3/64")
        Share(number=3, count=64)
        >>> Share.of("0/4")
        Traceback (most recent call last):
        cnnfilterdb.SelectionError: shard: '0/4' given; expected I/N, with I from 1 to N, such as 3/64
        """
        if text is None:
            return None
        match = re.fullmatch(r"\s*(\d{1,9})\s*/\s*(\d{1,9})\s*", text) if isinstance(text, str) else None
        if match is None or not 1 <= int(match[1]) <= int(match[2]):
            raise SelectionError(f"shard: {text!r} given; expected I/N, with I from 1 to N, such as 3/64")
        return cls(int(match[1]), int(match[2]))

    def __str__(self) -> str:
        """As in the name of a file.

        >>> str(Share(3, 64))
        '3-of-64'
        """
        return f"{self.number}-of-{self.count}"

    def has(self, model_id: str) -> bool:
        """Whether a model is in it.

        >>> [number for number in (1, 2, 3) if Share(number, 3).has("pypi/deepcr/mask")]
        [2]
        """
        digest = hashlib.sha256(model_id.encode()).digest()
        return int.from_bytes(digest[:8], "big") % self.count == self.number - 1

    def among(self, model_ids: Iterable[str]) -> list[str]:
        """Those of some models that are in it, in their order."""
        return [model_id for model_id in model_ids if self.has(model_id)]
