"""How much memory and time reading one weight file may take.

A small file can ask its reader for any amount of either: a compressed array of zeros, a pickle of ten million empty
sets, a graph that doubles a tensor at every node, offsets that all point to one table. One :class:`Limits` object
accounts for all of it while a file of any format is read::

    with limits.reading("net.npz", file_size):          # done by formats.read
        limits.current().allocate(nbytes)               # before an array or a buffer is made
        limits.current().create(len(tensors))           # for each entry, node or layer that is kept
        limits.current().step()                         # in every loop whose length the file decides
        with limits.current().nested():                 # around every recursion
            ...

The object is ambient (a context variable), so that it reaches every reader without passing through every signature.
Nothing has to be released: the limits count what a file asked for in total, not what is in memory at the same time.
Layers are read after the file: :func:`~cnnfilterdb.ingest.formats.read` gives each of them limits of the same size.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field

from cnnfilterdb.core.errors import WeightFileError

__all__ = ["Limits", "active", "current", "reading"]

#: Memory is limited to this many times the size of the file and 64 MB, ...
GROWTH = 200
BASE_MEMORY = 64 << 20
#: ... but beyond half a gigabyte to this many times: four-bit weights grow as much, and nothing real grows more.
LARGE_GROWTH = 8
LARGE = 512 << 20


@dataclass(slots=True)
class Limits:
    """What reading one file may use, and what it has used.

    Every method raises WeightFileError, with a message of one line that names the file, once a limit is exceeded.

    Attributes:
        name: Name of the file in messages.
        memory: Bytes that may be allocated.
        objects: Tensors, nodes or layers that may be kept.
        steps: Steps of loops whose length the file decides.
        depth: Levels of nesting.
        seconds: Time that may pass.

    >>> limits = Limits.of("net.npz", size=1_000_000)
    >>> limits.memory == 200 * 1_000_000 + 64 * 1024 * 1024
    True
    >>> limits.allocate(1 << 40)
    Traceback (most recent call last):
    cnnfilterdb.WeightFileError: net.npz: reading it takes more than 267,108,864 bytes of memory, the limit for \
a file of its size; refused as a decompression bomb or a damaged file
    """

    name: str
    memory: int
    objects: int = 1_000_000
    steps: int = 20_000_000
    depth: int = 200
    seconds: float = 60.0
    _started: float = field(default_factory=time.monotonic)
    _allocated: int = 0
    _created: int = 0
    _stepped: int = 0
    _depth: int = 0
    _size: int = 0

    @classmethod
    def of(cls, name: str, size: int) -> Limits:
        """The default limits of a file of a size in bytes."""
        return cls(name, BASE_MEMORY + _growth(size), _size=size)

    def renewed(self) -> Limits:
        """The same limits with nothing used."""
        return Limits(self.name, self.memory, self.objects, self.steps, self.depth, self.seconds, _size=self._size)

    def opened(self, size: int) -> None:
        """Raise the limit of memory for another file of the same model, of a size in bytes."""
        self.memory += _growth(self._size + size) - _growth(self._size)
        self._size += size

    def allocate(self, size: int) -> None:
        """Account for memory, in bytes, that is about to be allocated."""
        self._allocated += size
        if self._allocated > self.memory:
            raise WeightFileError(
                f"{self.name}: reading it takes more than {self.memory:,} bytes of memory, the limit for a file of its "
                "size; refused as a decompression bomb or a damaged file"
            )
        self._check_time()

    def create(self, number: int = 1) -> None:
        """Account for entries, nodes or layers that are kept."""
        self._created += number
        if self._created > self.objects:
            raise WeightFileError(f"{self.name}: has more than {self.objects:,} parts, more than any network; refused")

    def step(self, number: int = 1) -> None:
        """Account for steps of a loop whose length the file decides."""
        self._stepped += number
        if self._stepped > self.steps:
            raise WeightFileError(f"{self.name}: reading it takes more than {self.steps:,} steps; refused")
        self._check_time()

    @contextmanager
    def nested(self) -> Iterator[None]:
        """Account for one level of recursion."""
        if self._depth >= self.depth:
            raise WeightFileError(f"{self.name}: is nested more than {self.depth} levels deep; refused")
        self._depth += 1
        try:
            yield
        finally:
            self._depth -= 1

    def _check_time(self) -> None:
        if time.monotonic() - self._started > self.seconds:
            raise WeightFileError(f"{self.name}: reading it takes more than {self.seconds:g} seconds; refused")


def _growth(size: int) -> int:
    return max(min(GROWTH * size, LARGE), LARGE_GROWTH * size)


_current: ContextVar[Limits | None] = ContextVar("limits", default=None)
# A reader used directly, without formats.read, does not know the size of the file
_ALONE = 1 << 30


def current() -> Limits:
    """The limits of the file that is being read; otherwise generous ones, with nothing used."""
    return _current.get() or Limits("the file", _ALONE)


@contextmanager
def active(limits: Limits) -> Iterator[Limits]:
    """Make limits the current ones within a block."""
    token = _current.set(limits)
    try:
        yield limits
    finally:
        _current.reset(token)


@contextmanager
def reading(name: str, size: int) -> Iterator[Limits]:
    """The limits of a file within a block; those of the outer file if this one is read on its behalf.

    Args:
        name: Name of the file in messages.
        size: Its size in bytes.
    """
    outer = _current.get()
    if outer is not None:
        outer.opened(size)
        yield outer
        return
    with active(Limits.of(name, size)) as limits:
        yield limits
