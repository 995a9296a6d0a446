"""Imports the models of a run, several at a time, in threads of this process."""

from __future__ import annotations

import threading
from collections.abc import Callable, Generator, Iterator
from concurrent.futures import Future, ThreadPoolExecutor, as_completed
from contextlib import ExitStack
from contextvars import copy_context
from dataclasses import replace
from pathlib import Path
from queue import SimpleQueue
from typing import Generic, TypeVar

import numpy as np
import numpy.typing as npt

from cnnfilterdb.ingest.allowance import EndedError
from cnnfilterdb.ingest.isolation import FileReader
from cnnfilterdb.ingest.network.layers import ConvLayer, Weights

__all__ = ["Importers", "until"]

T = TypeVar("T")


class Importers(Generic[T]):
    """Threads that import models. Most models are small: opening the file of one takes as long as writing another.

    Args:
        count: How many import at a time.
        downloads: Name of each model, with the path of its file once it is there.
        work: Imports a model: given its name, its path, what reads files, and what the thread has of its own.
        own: Makes what a thread has of its own.
        isolated: Whether files are read in child processes, one for each thread.
        ended: Set when the run has ended, so that threads give up what they are at (:func:`until`).
    """

    def __init__(
        self,
        count: int,
        downloads: Iterator[tuple[str, Future[Path]]],
        work: Callable[[str, Path, FileReader, T], int | None],
        own: Callable[[], T],
        *,
        isolated: bool,
        ended: threading.Event,
    ) -> None:
        self._count, self._downloads, self._work, self._own = count, downloads, work, own
        self._isolated, self._ended = isolated, ended
        self._following = threading.Lock()
        self._tools: SimpleQueue[tuple[FileReader, T]] = SimpleQueue()

    def run(self, models: int) -> Generator[tuple[str, Future[int | None]], None, None]:
        """Import so many models. Closing the generator before its end gives up what is being imported.

        Yields:
            The name of a model and what became of it, as it is done.
        """
        with ExitStack() as stack:
            readers = [stack.enter_context(FileReader(isolated=self._isolated)) for _ in range(self._count)]
            for reader in readers:
                self._tools.put((reader, self._own()))
            pool = stack.enter_context(ThreadPoolExecutor(self._count, thread_name_prefix="import"))
            pending = [pool.submit(copy_context().run, self._import_next) for _ in range(models)]
            try:
                for future in as_completed(pending):
                    yield future.result()
            finally:
                self._ended.set()
                for future in pending:
                    future.cancel()
                for reader in readers:
                    reader.kill()

    def _import_next(self) -> tuple[str, Future[int | None]]:
        with self._following:  # in the order of the names, so that none is downloaded long before it is imported
            name, path = next(self._downloads)
        tools = self._tools.get()
        outcome: Future[int | None] = Future()
        try:
            if self._ended.is_set():
                raise EndedError
            outcome.set_result(self._work(name, path.result(), *tools))
        except Exception as error:
            outcome.set_exception(error)
        finally:
            self._tools.put(tools)
        return name, outcome


def until(ended: threading.Event, weights: Weights) -> Weights:
    """Weights whose layers cannot be read after an event; that raises :class:`EndedError`."""

    def limited(layer: ConvLayer) -> ConvLayer:
        def read() -> npt.NDArray[np.float32]:
            if ended.is_set():
                raise EndedError
            return layer.read()

        return replace(layer, read=read)

    return replace(weights, layers=tuple(map(limited, weights.layers)))
