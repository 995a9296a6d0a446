"""How many bytes of layers may be in memory, of all models that are imported at the same time."""

from __future__ import annotations

import threading
from types import TracebackType

__all__ = ["Allowance", "EndedError", "Held"]


class EndedError(BaseException):
    """Ends what a thread does after that is of no more use."""


class Allowance:
    """Bytes that several models may hold together. One layer is always admitted, however large.

    Args:
        limit: The bytes.
    """

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._held = 0
        self._changed = threading.Condition()

    def take(self, count: int, holder: Held) -> None:
        """Wait until so many bytes may be held.

        Raises:
            EndedError: The holder was closed.
        """
        with self._changed:
            self._changed.wait_for(lambda: holder.closed or not self._held or self._held + count <= self._limit)
            if holder.closed:
                raise EndedError
            self._held += count
            holder.bytes += count

    def give_back(self, count: int, holder: Held) -> None:
        """Hold so many bytes less."""
        with self._changed:
            self._held -= count
            holder.bytes -= count
            self._changed.notify_all()

    def close(self, holder: Held) -> None:
        """Give back all that a holder has; nothing more is given to it."""
        with self._changed:
            holder.closed = True
            self.give_back(holder.bytes, holder)


class Held:
    """The part of an allowance that one model holds; a context manager, which gives it back.

    Layers are taken and given back in their order, so that the first of all that are held never waits for another.

    Args:
        allowance: The allowance.

    Attributes:
        bytes: How many these are.
        closed: Whether the block has ended.
    """

    def __init__(self, allowance: Allowance) -> None:
        self._allowance = allowance
        self.bytes = 0
        self.closed = False

    def __enter__(self) -> Held:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._allowance.close(self)

    def take(self, count: int) -> None:
        """Wait until so many more bytes may be held.

        Raises:
            EndedError: The block has ended.
        """
        self._allowance.take(count, self)

    def give_back(self, count: int) -> None:
        """Hold so many bytes less."""
        self._allowance.give_back(count, self)
