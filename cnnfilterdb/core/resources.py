"""What the work on a database may use: threads, memory, and a runner."""

from __future__ import annotations

import ctypes
import re
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from cnnfilterdb.core.errors import SelectionError
from cnnfilterdb.core.runners import KINDS, Given, Processes, Runner, Serial, Threads
from cnnfilterdb.core.workers import threads as processors

__all__ = ["LEAST_MEMORY", "Resources", "parse_size", "release_memory", "runner_of"]

#: The least memory that can be kept.
LEAST_MEMORY = 400_000_000

# What the interpreter and its libraries take (190 MB), with results and the small tables of a database.
_BASE = 280_000_000
# Copies of a row group while it is read: its pages as they are stored, and as they are decoded.
_COPIES = 3

_UNITS = {"": 1, "k": 10**3, "m": 10**6, "g": 10**9, "t": 10**12, "ki": 2**10, "mi": 2**20, "gi": 2**30, "ti": 2**40}


def parse_size(size: int | str, what: str = "memory") -> int:
    """Bytes of a size, such as ``400 MB``, ``1.5G`` or ``2 GiB``.

    Args:
        size: A number of bytes, or a number with a unit: kB, MB, GB, TB are decimal, KiB, MiB, GiB, TiB binary.
        what: Name of the argument for the message.

    Raises:
        SelectionError: Not a size.

    >>> parse_size("400MB"), parse_size("1.5 GiB"), parse_size(1000)
    (400000000, 1610612736, 1000)
    """
    text = str(size).strip().lower()
    match = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([kmgt]?i?)b?", text)
    if isinstance(size, bool) or match is None or match[2] not in _UNITS:
        raise SelectionError(f"{what}: {size!r} given; expected a size such as 400MB or 2GiB")
    return int(float(match[1]) * _UNITS[match[2]])


@dataclass(frozen=True, slots=True)
class Resources:
    """What the work on a database may use.

    Attributes:
        threads: Number of threads.
        memory: Bytes of memory of this process; None does not limit them.
        runner: Where units of work run.
    """

    threads: int
    memory: int | None
    runner: Runner

    @classmethod
    def of(cls, *, threads: int | None = None, memory: int | str | None = None, runner: Any = None) -> Resources:
        """Resources as users state them.

        Args:
            threads: Number of threads or processes; by default the processors that this process may use.
            memory: Size, such as ``"400MB"``.
            runner: See :func:`runner_of`.

        Raises:
            SelectionError: Less than one thread, not a size, less memory than can be kept, or an unknown runner.

        >>> Resources.of(threads=2, memory="1GB").memory
        1000000000
        >>> Resources.of(memory="100MB")
        Traceback (most recent call last):
        cnnfilterdb.SelectionError: memory: 100MB given; the least that can be kept is 400 MB
        """
        if threads is not None and (isinstance(threads, bool) or not isinstance(threads, int) or threads < 1):
            raise SelectionError(f"threads: {threads!r} given; expected a whole number of at least 1")
        size = None if memory is None else parse_size(memory)
        if size is not None and size < LEAST_MEMORY:
            raise SelectionError(f"memory: {memory} given; the least that can be kept is {LEAST_MEMORY // 10**6} MB")
        count = processors() if threads is None else threads
        return cls(count, size, runner_of(runner, count))

    @property
    def budget(self) -> int | None:
        """Bytes of row groups, decoded, that a scan may have in flight: it has what DuckDB has while no scan runs."""
        return None if self.memory is None else (self.memory - _BASE) // _COPIES

    def duckdb_settings(self) -> Mapping[str, str | int]:
        """Settings of DuckDB: its limit is the memory that the libraries leave.

        >>> dict(Resources.of(threads=2, memory="400MB").duckdb_settings())
        {'threads': 2, 'memory_limit': '120000000B'}
        """
        if self.memory is None:
            return {"threads": self.threads}
        return {"threads": self.threads, "memory_limit": f"{self.memory - _BASE}B"}

    def prepare(self) -> None:
        """Make this process keep to the memory: Arrow's usual allocator does not return what was freed.

        What Arrow allocates inside its own functions is only reached by the variable ``ARROW_DEFAULT_MEMORY_POOL``,
        which the command line sets.
        """
        if self.memory is None:
            return
        import pyarrow as pa

        if "jemalloc" in pa.supported_memory_backends():
            pa.jemalloc_set_decay_ms(0)
            pa.set_memory_pool(pa.jemalloc_memory_pool())
        else:
            pa.set_memory_pool(pa.system_memory_pool())


def release_memory() -> None:
    """Return freed memory to the system, before work that needs much of it.

    Allocators keep what was freed for what they will allocate; those of Arrow and of C each have their own.
    """
    import pyarrow as pa

    pa.default_memory_pool().release_unused()
    if sys.platform == "linux" and (trim := getattr(ctypes.CDLL(None), "malloc_trim", None)):  # of glibc
        trim(0)


def runner_of(given: Any, workers: int) -> Runner:
    """The runner that a user names.

    Args:
        given: One of :data:`KINDS`, ``ray://HOST:PORT``, or an executor; None means threads.
        workers: Number of threads or processes.

    Raises:
        SelectionError: None of these.

    >>> runner_of("processes", 2).name
    'processes'
    >>> runner_of("thread", 2)
    Traceback (most recent call last):
    cnnfilterdb.SelectionError: runner: 'thread' given; expected serial, threads, processes, ray, ray://HOST:PORT or ...
    """
    if isinstance(given, Runner):
        return given
    if given is None or given == "threads":
        return Threads(workers)
    if given == "serial":
        return Serial()
    if given == "processes":
        return Processes(workers)
    if isinstance(given, str) and (given == "ray" or given.startswith("ray://")):
        from cnnfilterdb.core.ray_runner import Ray

        return Ray(given, workers)
    if not isinstance(given, str) and callable(getattr(given, "submit", None)):
        return Given(given)
    raise SelectionError(f"runner: {given!r} given; expected {', '.join(KINDS)}, ray://HOST:PORT or an executor")
