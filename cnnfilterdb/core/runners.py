"""Where units of work run: in this process, in threads, in other processes, on Ray, or on any executor.

A long operation is a function applied to many units, such as the row groups of a file or the models of a source. It is
written once: :meth:`Runner.run` gives the same results in the same order wherever they are computed, and retries units
whose worker, node or connection was lost. Beyond this process, functions are of the top level of a module, and they,
units and results are pickled.
"""

from __future__ import annotations

import os
import threading
import time
from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator
from concurrent.futures import (
    BrokenExecutor,
    CancelledError,
    Executor,
    Future,
    ThreadPoolExecutor,
)
from contextvars import copy_context
from dataclasses import dataclass, field
from functools import partial
from itertools import count
from queue import SimpleQueue
from typing import TYPE_CHECKING, Any, TypeVar

from cnnfilterdb.core.errors import CnnFilterDbError, RemoteError, WorkerLostError
from cnnfilterdb.core.workers import limited, one_blas_thread, threads

if TYPE_CHECKING:
    from concurrent.futures import ProcessPoolExecutor

__all__ = ["KINDS", "Demand", "Given", "Processes", "Runner", "Serial", "Threads"]

T = TypeVar("T")
U = TypeVar("U")

#: Names of runners; ``ray://HOST:PORT`` names the Ray cluster at an address.
KINDS = ("serial", "threads", "processes", "ray")

#: How often a unit is tried whose worker, node or connection is lost.
TRIES = 4

#: What a unit may fail with although nothing is wrong with it. BrokenExecutor: its worker or node ended.
_TRANSIENT = (BrokenExecutor, CancelledError, ConnectionError, TimeoutError, RemoteError)

_PAUSE = 0.1  # seconds before the second try; twice as long before each further one

#: Units in flight on an executor that does not say how many workers it has.
_UNKNOWN_WORKERS = 64


@dataclass(frozen=True, slots=True)
class Demand:
    """What one unit needs, for an engine that places units on nodes.

    Attributes:
        cpus: Processors.
        memory: Bytes.
    """

    cpus: float = 1
    memory: int = 500_000_000


_MODEST = Demand()


@dataclass(slots=True, eq=False)
class _Attempt:
    """A unit on its way.

    Attributes:
        number: Its place among the units.
        unit: What the function is applied to.
        weight: Its part of the budget.
        tries: How often it was started.
    """

    number: int
    unit: Any
    weight: int
    tries: int = 0


class Runner(ABC):
    """Runs the units of an operation.

    Attributes:
        name: One of :data:`KINDS`, an address of Ray, or the class of an executor.
        workers: How many units run at a time.
        remote: Whether they run outside of this process.
        repeats: Whether units whose worker, node or connection was lost are run again.
    """

    name: str
    workers: int
    remote: bool = False
    repeats: bool = True

    @abstractmethod
    def _open(self, demand: Demand) -> Any:
        """Something to submit to, for a run; it is started if it is not running."""

    def _close(self, executor: Any) -> None:  # noqa: B027 - most have nothing to do
        """A run has ended, and waits for nothing more."""

    def _renew(self, executor: Any) -> bool:
        """Forget an executor that is broken, so that another is started; False if that is not possible."""
        return False

    def stop(self, *, now: bool = False) -> None:  # noqa: B027
        """End the workers; a later run starts new ones.

        Args:
            now: Do not wait for units that are running.
        """

    def run(
        self,
        function: Callable[[T], U],
        units: Iterable[T],
        *,
        window: int | None = None,
        weight: Callable[[T], int] | None = None,
        budget: int | None = None,
        ordered: bool = True,
        demand: Demand = _MODEST,
        again: Callable[[T], T] | None = None,
    ) -> Generator[tuple[T, Future[U]], None, None]:
        """Apply a function to units.

        Close the generator, or exhaust it: what has not been started is then cancelled.

        Args:
            function: The function; for a runner that is remote it can be pickled, and being called twice for a unit
                has the effect of being called once.
            units: Consumed one by one as space becomes free, so the iterable may be of any length.
            window: How many may be in flight, including those whose results have not been consumed; by default two for
                each worker.
            weight: Weight of a unit, such as the memory that it takes.
            budget: Largest sum of the weights in flight; a single unit is always admitted.
            ordered: Yield in the order of the units, or as they are done.
            demand: What a unit needs.
            again: Makes of a unit the one that is run after it was lost; by default it is the same.

        Yields:
            Each unit with its future, which has the result or the error. A unit that was lost :data:`TRIES` times has a
            :class:`~cnnfilterdb.WorkerLostError`.

        >>> [future.result() for _, future in Threads(2).run(abs, [-1, 2, -3])]
        [1, 2, 3]
        """
        flight = _Flight(self, function, iter(units), weight, budget, demand, again)
        most = max(1, 2 * self.workers if window is None else window)
        finished: dict[int, tuple[_Attempt, Future[U]]] = {}
        following = 0
        interrupted = True
        try:
            while True:
                while len(flight.running) + len(finished) < most and flight.start():
                    pass
                while finished and (not ordered or following in finished):
                    attempt, future = finished.pop(following if ordered else next(iter(finished)))
                    following += 1
                    yield attempt.unit, future
                    del future  # and with it the result
                    flight.held -= attempt.weight
                    if len(flight.running) + len(finished) < most:
                        flight.start()
                if flight.running:
                    for attempt, future in flight.landed():
                        finished[attempt.number] = attempt, future
                        del future
                elif not finished and not flight.start():
                    break
            interrupted = False
        finally:
            running = flight.cancel()
            self._close(flight.executor)
            if running and interrupted and self.remote:
                self.stop(now=True)


@dataclass(slots=True)
class _Flight:
    """The units of a run that are waiting or running.

    Attributes:
        running: The units that were submitted, by their futures.
        held: Weight of the units in flight.
        executor: What they were submitted to.
    """

    runner: Runner
    function: Callable[[Any], Any]
    units: Iterator[Any]
    weight: Callable[[Any], int] | None
    budget: int | None
    demand: Demand
    again: Callable[[Any], Any] | None
    running: dict[Future[Any], _Attempt] = field(default_factory=dict)
    held: int = 0
    executor: Any = None
    _again: deque[_Attempt] = field(default_factory=deque)
    # Units that ran when an executor broke. One of them may be the cause, so they run alone, one after another.
    _suspects: deque[_Attempt] = field(default_factory=deque)
    _alone: bool = False
    _ended: SimpleQueue[Future[Any]] = field(default_factory=SimpleQueue)
    _numbers: Iterator[int] = field(default_factory=count)
    _ahead: _Attempt | None = None

    def start(self) -> bool:
        """Start a unit, if there is one that may start now."""
        if self.running and (self._alone or self._suspects):
            return False
        attempt = self._next()
        if attempt is None:
            return False
        attempt.tries += 1
        work = partial(_work, self.function) if self.runner.remote else self.function
        while True:
            if self.executor is None:
                self.executor = self.runner._open(self.demand)
            try:
                future = self.executor.submit(work, attempt.unit)
                break
            except BrokenExecutor as error:
                if not self._renewed():
                    raise WorkerLostError(
                        f"runner {self.runner.name}: it is broken ({error}); make a new executor and repeat the call"
                    ) from error
        future = future if isinstance(future, Future) else _adopted(future)
        self.running[future] = attempt
        future.add_done_callback(self._ended.put)
        return True

    def _next(self) -> _Attempt | None:
        """The unit to start: one that was lost, or a new one if the budget has room for it."""
        self._alone = bool(self._suspects)
        for lost in (self._suspects, self._again):
            if lost:
                return lost.popleft()
        if self._ahead is None:
            for unit in self.units:
                self._ahead = _Attempt(next(self._numbers), unit, self.weight(unit) if self.weight else 0)
                break
        attempt = self._ahead
        if attempt is None or (self.budget is not None and self.held and self.held + attempt.weight > self.budget):
            return None
        self.held += attempt.weight
        self._ahead = None
        return attempt

    def _renewed(self) -> bool:
        """Whether another executor takes the place of the broken one."""
        executor, self.executor = self.executor, None
        return executor is None or self.runner._renew(executor)

    def landed(self) -> list[tuple[_Attempt, Future[Any]]]:
        """Wait until some units have ended; those that were lost are scheduled again and left out."""
        # Not concurrent.futures.wait, which overlooks units that were cancelled with their executor.
        done = [self._ended.get()]
        while not self._ended.empty():
            done.append(self._ended.get())
        ended: list[tuple[_Attempt, Future[Any]]] = []
        pause = 0.0
        for future in done:
            attempt = self.running.pop(future)
            error = CancelledError() if future.cancelled() else future.exception()
            if not self.runner.repeats or not isinstance(error, _TRANSIENT):
                ended.append((attempt, future))
            elif attempt.tries >= TRIES:
                ended.append((attempt, _lost(attempt, future, error)))
            else:
                if self.again is not None:
                    attempt.unit = self.again(attempt.unit)
                pause = max(pause, _PAUSE * 2 ** (attempt.tries - 1))
                broken = isinstance(error, BrokenExecutor)
                (self._suspects if broken else self._again).append(attempt)
                if broken and getattr(self.executor, "_broken", False):
                    self._renewed()
        if pause and not ended:
            time.sleep(pause)
        return ended

    def cancel(self) -> bool:
        """Cancel what has not been started; whether some units go on running."""
        still = [future for future in self.running if not (future.cancel() or future.done())]
        return bool(still)


def _lost(attempt: _Attempt, future: Future[Any], error: BaseException) -> Future[Any]:
    """The future of a unit that was lost too often."""
    if isinstance(error, CnnFilterDbError):
        return future
    failed: Future[Any] = Future()
    reason = WorkerLostError(
        f"its worker or connection was lost {attempt.tries} times ({str(error) or type(error).__name__}); it may need "
        "more memory than there is: give fewer threads, and repeat the command"
    )
    reason.__cause__ = error
    failed.set_exception(reason)
    return failed


def _work(function: Callable[[T], U], unit: T) -> U:
    """Apply a function to a unit in another process, which has one processor for it."""
    with limited(1), one_blas_thread():
        return function(unit)


def _adopted(job: Any) -> Future[Any]:
    """A future for a job of an executor that has its own kind of them, such as submitit's."""
    future: Future[Any] = Future()

    def watch() -> None:
        try:
            future.set_result(job.result())
        except BaseException as error:
            future.set_exception(error)

    threading.Thread(target=watch, daemon=True, name="job").start()
    return future


class _Here(Executor):
    """Runs a unit when it is submitted."""

    def submit(self, function: Callable[..., T], /, *args: Any, **options: Any) -> Future[T]:
        future: Future[T] = Future()
        try:
            future.set_result(function(*args, **options))
        except Exception as error:
            future.set_exception(error)
        return future


class Serial(Runner):
    """One unit after another, in the calling thread, each when its turn has come."""

    name, workers = "serial", 1

    def run(
        self, function: Callable[[T], U], units: Iterable[T], **options: Any
    ) -> Generator[tuple[T, Future[U]], None, None]:
        """See :meth:`Runner.run`."""
        return super().run(function, units, **(options | {"window": 1}))

    def _open(self, demand: Demand) -> Executor:
        return _Here()


class _ThreadPool(ThreadPoolExecutor):
    """Threads that have the context variables of what submits to them, such as limits."""

    def submit(self, function: Callable[..., T], /, *args: Any, **options: Any) -> Future[T]:
        return super().submit(copy_context().run, function, *args, **options)


class Threads(Runner):
    """Threads of this process; each run has its own, which end with it.

    Args:
        workers: Number of threads.
        repeats: Whether units whose connection was lost are run again.
    """

    name = "threads"

    def __init__(self, workers: int, *, repeats: bool = True) -> None:
        self.workers = workers
        self.repeats = repeats

    def run(
        self, function: Callable[[T], U], units: Iterable[T], **options: Any
    ) -> Generator[tuple[T, Future[U]], None, None]:
        """See :meth:`Runner.run`."""
        with one_blas_thread():
            yield from super().run(function, units, **options)

    def _open(self, demand: Demand) -> Executor:
        return _ThreadPool(self.workers, thread_name_prefix="unit")

    def _close(self, executor: Any) -> None:
        if executor is not None:
            executor.shutdown(cancel_futures=True)


class Processes(Runner):
    """Processes of this machine, started at the first run and kept for the next ones.

    Args:
        workers: Number of processes.
    """

    name, remote = "processes", True

    def __init__(self, workers: int) -> None:
        self.workers = workers
        self._pool: ProcessPoolExecutor | None = None
        self._lock = threading.Lock()

    def _open(self, demand: Demand) -> Executor:
        with self._lock:
            if self._pool is None:
                from concurrent.futures import ProcessPoolExecutor

                from cnnfilterdb.core.spawning import CONTEXT

                self._pool = ProcessPoolExecutor(self.workers, CONTEXT, _prepare)
            return self._pool

    def _renew(self, executor: Any) -> bool:
        with self._lock:
            if self._pool is executor:
                self._pool = None
        executor.shutdown(wait=False)
        return True

    def stop(self, *, now: bool = False) -> None:
        """See :meth:`Runner.stop`."""
        with self._lock:
            pool, self._pool = self._pool, None
        if pool is None:
            return
        processes = list((getattr(pool, "_processes", None) or {}).values())
        pool.shutdown(wait=not now, cancel_futures=True)
        if now:
            for process in processes:
                process.terminate()

    def __reduce__(self) -> tuple[type[Processes], tuple[int]]:
        return Processes, (self.workers,)


def _prepare() -> None:
    """In a worker process: leave Ctrl-C to the parent, and end with it even if it is killed."""
    import multiprocessing
    import signal

    signal.signal(signal.SIGINT, signal.SIG_IGN)
    parent = multiprocessing.parent_process()

    def follow() -> None:
        if parent is not None:
            parent.join()
            os._exit(1)

    threading.Thread(target=follow, daemon=True, name="parent").start()


class Given(Runner):
    """An executor of the user: a :class:`concurrent.futures.Executor`, or anything with such a ``submit``.

    Args:
        executor: The executor; it is never shut down here.
    """

    remote = True

    def __init__(self, executor: Any) -> None:
        self._given = executor
        self.name = type(executor).__name__
        self.workers = getattr(executor, "_max_workers", None) or _UNKNOWN_WORKERS

    def _open(self, demand: Demand) -> Any:
        return self._given

    def __reduce__(self) -> tuple[type[Threads], tuple[int]]:
        return Threads, (threads(),)  # the copy of a database in another process does not have the executor
