"""Reads untrusted weight files in a child process with limits on memory and time.

The readers of :mod:`cnnfilterdb.ingest.formats` have their own limits. Anything that these miss, in this package or in
a library, ends the child process and becomes one failed model; the run continues with a new child.

The child describes the layers of a file as JSON, and the weights of a layer when they are requested: as bytes through a
pipe or, where they are stored as they are used, as their place in the file, from which this process then reads them. So
memory stays bounded by the largest layer as it does without a child. Nothing that it sends is unpickled or executed. It
is started by ``subprocess``, so no memory is shared by fork and every platform is supported; on systems without a limit
for address space (macOS, Windows) only the time limit applies.

``CNNFILTERDB_ISOLATION=off`` reads every file in the main process.
"""

from __future__ import annotations

import dataclasses
import json
import mmap
import os
import re
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from itertools import islice
from pathlib import Path
from types import TracebackType
from typing import IO, Any

import numpy as np
import numpy.typing as npt

from cnnfilterdb.core import errors
from cnnfilterdb.core.errors import CnnFilterDbError, IngestError, WeightFileError
from cnnfilterdb.ingest import formats
from cnnfilterdb.ingest.formats import mapping
from cnnfilterdb.ingest.network.layers import ConvLayer, Skipped, Weights

__all__ = ["FileReader", "IsolatedReader", "enabled", "serve"]

#: Bytes of memory that a file may take to read, besides a multiple of its size.
MEMORY = 1 << 30
_GROWTH = 8

#: Seconds that a file may take to read, besides those for its size.
SECONDS = 120.0
_BYTES_PER_SECOND = 5 << 20

#: Seconds between two looks at whether an answer is late.
_WATCHED = 0.2

#: Bytes of a layer that the child can send before they are read.
_PIPE = 1 << 20

# Bytes from which on memory comes from the system: with fewer, asking it takes longer than the rest
_MAPPED = 1 << 20

_START = (
    "import json, sys; sys.path[:] = json.loads(sys.argv[1]); from cnnfilterdb.ingest.isolation import serve; serve()"
)
# Functions of a layer, which stay in the child
_READ, _BATCH_NORM = "read", "batch_norm"
# What the system, or the compiler of Python, says when there is no memory left for a module that a reader imports
_NO_MODULE = re.compile(r"failed to map segment|^field '\w+' is required for \w+$")
# Files that name other files of a model: the size of the model is that of its folder.
_IN_SEVERAL_FILES = (".json", ".index", ".pb", ".onnx", ".metadata")
# The same, with folders below
_IN_FOLDERS = ("manifest.ocdbt", "_METADATA", "zarr.json", ".zgroup", "model.mlmodel")
_MOST_FILES = 100_000


def enabled() -> bool:
    """Whether untrusted files are read in a child process: yes, unless ``CNNFILTERDB_ISOLATION`` is off."""
    return os.environ.get("CNNFILTERDB_ISOLATION", "").strip().lower() not in {"off", "0", "no", "false"}


class FileReader:
    """Reads weight files; a context manager. The layers of a file can be read until the next file is, or the end.

    Args:
        isolated: Read them in a child process, because anybody may have made them, unless that is switched off. Files
            of a format that code outside this package registered are read in this process, because a child does not
            know it.
    """

    def __init__(self, *, isolated: bool = True) -> None:
        self._child = IsolatedReader() if isolated and enabled() else None

    def __enter__(self) -> FileReader:
        if self._child is not None:
            self._child.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._child is not None:
            self._child.__exit__(kind, error, trace)

    def __call__(self, path: Path, *, network: str | None = None, merge_adapters: bool | float = False) -> Weights:
        """Read a file; see :func:`cnnfilterdb.ingest.formats.read`."""
        child = None if formats.known_here_only(path) else self._child
        read = formats.read if child is None else child.read
        return read(path, network=network, merge_adapters=merge_adapters)

    def kill(self) -> None:
        """End what a child process reads, from any thread."""
        if self._child is not None:
            self._child.kill()


@dataclass(slots=True)
class _Limit:
    """When an answer has to be there, and whether the child was ended because it was not."""

    until: float
    exceeded: bool = False


class IsolatedReader:
    """Reads weight files in a child process; a context manager.

    Args:
        memory: Bytes of memory that a file may take, besides eight times its size.
        seconds: Seconds that a file may take, besides those for its size.
    """

    def __init__(self, *, memory: int = MEMORY, seconds: float = SECONDS) -> None:
        self._memory, self._seconds = memory, seconds
        self._lock = threading.Lock()
        self._child: subprocess.Popen[bytes] | None = None
        self._path = Path()
        self._left = 0.0
        self._opened = 0
        self._limit: _Limit | None = None

    def __enter__(self) -> IsolatedReader:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        with self._lock:
            self._stop()

    def start(self) -> None:
        """Start the child now, so that it is ready when the first file is."""
        with self._lock:
            self._started()

    def kill(self) -> None:
        """End the child, from any thread; what is being read then fails."""
        child = self._child
        if child is not None:
            child.kill()

    def read(self, path: Path, *, network: str | None = None, merge_adapters: bool | float = False) -> Weights:
        """Read a weight file of any known format; its layers can be read until the next file is.

        The arguments are those of :func:`cnnfilterdb.ingest.formats.read`.

        Raises:
            WeightFileError: It is not a readable weight file, or it takes too much memory or time.
        """
        size = _size(path)
        with self._lock:
            self._path = path
            self._left = self._seconds + size / _BYTES_PER_SECOND
            self._opened += 1
            asked = {"open": str(path.absolute()), "memory": self._memory + _GROWTH * size}
            answer, _ = self._ask(asked | {"network": network, "merge_adapters": merge_adapters})
        return _weights(answer["weights"], partial(self._array, self._opened))

    def _array(self, opened: int, layer: int, what: str) -> npt.NDArray[np.float32] | None:
        with self._lock:
            if opened != self._opened:
                raise IngestError(f"layer {layer} of a file that is no longer open")
            answer, data = self._ask({what: layer})
        if answer["dtype"] is None:
            return None
        if "file" in answer:
            data = self._stored(answer["file"], answer["start"], answer["length"])
        array: npt.NDArray[np.float32] = data.view(answer["dtype"]).reshape(answer["shape"])
        return array

    def _stored(self, name: str, start: int, length: int) -> npt.NDArray[np.uint8]:
        """Bytes of the file that is open, or of one beside it: its numbers are stored as they are used."""
        path = self._path.absolute().parent / Path(name).name
        shorter = WeightFileError(f"{path}: became shorter while it was read; pass it when it is complete")
        try:
            size = path.stat().st_size if path.is_file() else 0
            if not 0 <= start <= start + length <= size:
                raise shorter
            with path.open("rb", buffering=0) as file:
                file.seek(start)
                return _exactly(file, length)
        except EOFError:
            raise shorter from None
        except OSError as error:
            raise WeightFileError(f"{path}: cannot be read: {error.strerror or error}") from error

    def _ask(self, request: Mapping[str, Any]) -> tuple[dict[str, Any], npt.NDArray[np.uint8]]:
        """One request and its answer, with the bytes that follow it."""
        child = self._started()
        assert child.stdin is not None
        assert child.stdout is not None
        began = time.monotonic()
        limit = self._limit = _Limit(began + max(self._left, 0.0))
        try:
            child.stdin.write(json.dumps(request).encode() + b"\n")
            child.stdin.flush()
            line = child.stdout.readline()
            answer: dict[str, Any] = json.loads(line) if line.endswith(b"\n") else {}
            data = _exactly(child.stdout, answer.get("bytes", 0))
        except (OSError, ValueError, EOFError):
            answer, data = {}, np.empty(0, np.uint8)
        except BaseException:
            self._stop()  # its answer would be mistaken for that to the next request
            raise
        finally:
            self._limit = None
            self._left -= time.monotonic() - began
        if "error" in answer:
            name, message = answer["error"]
            # The child was given an absolute path.
            if above := str(self._path.absolute()).removesuffix(str(self._path)):
                message = message.replace(above, "")
            if name == "MemoryError" or _NO_MODULE.search(message):
                self._stop()
                raise self._too_large()
            kind = getattr(errors, name, None)
            known = isinstance(kind, type) and issubclass(kind, CnnFilterDbError)
            if kind is not None and known:
                raise kind(message)
            raise WeightFileError(f"{self._path}: cannot be read ({name}: {message})")
        if not answer:
            self._stop()
            if limit.exceeded:
                raise WeightFileError(f"{self._path}: reading it takes too long; it may be damaged or malicious")
            raise self._too_large()
        return answer, data

    def _too_large(self) -> WeightFileError:
        return WeightFileError(
            f"{self._path}: reading it takes too much memory or crashes the reader; it may be damaged or malicious "
            "(for a file that you trust, set CNNFILTERDB_ISOLATION=off)"
        )

    def _started(self) -> subprocess.Popen[bytes]:
        if self._child is None or self._child.poll() is not None:
            try:
                self._child = subprocess.Popen(
                    [sys.executable, "-c", _START, json.dumps(sys.path)],
                    stdin=subprocess.PIPE,
                    stdout=subprocess.PIPE,
                    stderr=subprocess.DEVNULL,
                )
            except OSError as error:
                raise IngestError(
                    f"{sys.executable}: cannot be started to read weight files ({error.strerror or error}); "
                    "set CNNFILTERDB_ISOLATION=off to read them in the main process"
                ) from error
            _widen(self._child.stdout)
            threading.Thread(target=self._watch, args=(self._child,), name="watch", daemon=True).start()
        return self._child

    def _watch(self, child: subprocess.Popen[bytes]) -> None:
        """End a child whose answer is late. One thread for all answers: starting one takes as long as a small layer."""
        while child.poll() is None:
            limit = self._limit
            if limit is not None and time.monotonic() > limit.until:
                limit.exceeded = True
                child.kill()
                return
            time.sleep(_WATCHED)

    def _stop(self) -> None:
        child, self._child = self._child, None
        if child is not None:
            child.kill()
            child.wait()
            for stream in (child.stdin, child.stdout):
                if stream is not None:
                    with suppress(OSError):  # bytes that it did not read
                        stream.close()


def serve() -> None:
    """Run the child: answer requests from standard input until it is closed."""
    mapping.enable()
    requests, answers = sys.stdin.buffer, os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # output of a library must not get between the answers
    layers: tuple[ConvLayer, ...] = ()
    path = Path()
    for line in iter(requests.readline, b""):
        request = json.loads(line)
        data: bytes | memoryview = b""
        answer: dict[str, Any]
        try:
            if "open" in request:
                layers = ()
                mapping.forget()
                _limit_memory(request["memory"])
                asked = {key: request[key] for key in ("network", "merge_adapters")}
                path = Path(request["open"])
                weights = formats.read(path, **asked)
                layers = weights.layers
                answer = {"weights": _described(weights)}
            else:
                what, number = next(iter(request.items()))
                array = getattr(layers[number], what)()
                answer = {"dtype": None, "shape": None}
                if array is not None:
                    array = np.ascontiguousarray(array)
                    answer = {"dtype": array.dtype.str, "shape": array.shape}
                    stored = mapping.stored_at(array)
                    if stored is not None and stored[0].parent == path.parent:
                        answer |= {"file": stored[0].name, "start": stored[1], "length": array.nbytes}
                    else:
                        answer["bytes"] = array.nbytes
                        data = array.tobytes() if array.size == 0 else array.data.cast("B")
            text = json.dumps(answer).encode()
        except BaseException as error:  # any exception is an answer
            layers = layers if isinstance(error, Exception) else ()
            data = b""
            text = json.dumps({"error": [type(error).__name__, " ".join(str(error).split())]}).encode()
        answers.write(text + b"\n")
        answers.write(data)
        answers.flush()


def _limit_memory(budget: int) -> None:
    """Limit the growth of the address space to a number of bytes, if the operating system supports that."""
    try:
        import resource

        pages = int(Path("/proc/self/statm").read_text().split()[0])
        soft = pages * resource.getpagesize() + budget
        hard = resource.getrlimit(resource.RLIMIT_AS)[1]
        resource.setrlimit(resource.RLIMIT_AS, (soft if hard == resource.RLIM_INFINITY else min(soft, hard), hard))
    except (ImportError, OSError, ValueError):
        pass


def _described(weights: Weights) -> dict[str, Any]:
    """What is known about a file, as JSON; functions are left out, and whether a layer has one is recorded."""
    known = {
        field.name: getattr(weights, field.name)
        for field in dataclasses.fields(weights)
        if field.name not in {"layers", "skipped"}
    }
    layers = [
        {
            field.name: getattr(layer, field.name)
            for field in dataclasses.fields(layer)
            if field.name not in {_READ, _BATCH_NORM}
        }
        | {_BATCH_NORM: layer.batch_norm is not None}
        for layer in weights.layers
    ]
    return known | {"layers": layers, "skipped": [[one.name, one.reason] for one in weights.skipped]}


def _weights(described: dict[str, Any], array: Callable[[int, str], Any]) -> Weights:
    layers = []
    for number, layer in enumerate(described.pop("layers")):
        has_norm = layer.pop(_BATCH_NORM)
        fields: dict[str, Any] = {
            key: tuple(value) if isinstance(value, list) else value for key, value in layer.items()
        }
        layers.append(
            ConvLayer(
                **fields,
                read=partial(array, number, _READ),
                batch_norm=partial(array, number, _BATCH_NORM) if has_norm else None,
            )
        )
    skipped = tuple(Skipped(name, reason) for name, reason in described.pop("skipped"))
    contents = {what: (tensors, numbers) for what, (tensors, numbers) in described.pop("contents").items()}
    return Weights(**described, layers=tuple(layers), skipped=skipped, contents=contents)


def _widen(pipe: IO[bytes] | None) -> None:
    """Let a pipe hold a megabyte, if the system can do that and allows it: both sides then wait less often."""
    with suppress(ImportError, AttributeError, OSError):
        import fcntl

        fcntl.fcntl(pipe.fileno(), fcntl.F_SETPIPE_SZ, _PIPE)  # type: ignore[union-attr]


def _exactly(stream: Any, count: int) -> npt.NDArray[np.uint8]:
    """Read a number of bytes from a stream.

    Raises:
        EOFError: It ends too early.
    """
    data = _memory(count)
    view, done = memoryview(data.data), 0
    while done < count:
        got = stream.readinto(view[done:])
        if not got:
            raise EOFError
        done += got
    return data


def _memory(count: int) -> npt.NDArray[np.uint8]:
    """Memory that is not filled with zeros first, as a bytearray is.

    Much of it comes from the system and goes back there at once. What the C library frees, it keeps for each of the
    many threads of an import: with the number of models that grew to a gigabyte.
    """
    return np.empty(count, np.uint8) if count < _MAPPED else np.frombuffer(mmap.mmap(-1, count), np.uint8)


def _size(path: Path) -> int:
    """Bytes of a model: of its file, or of the files next to it where it may be in several."""
    several = path.suffix.lower() in _IN_SEVERAL_FILES or path.name in (*_IN_SEVERAL_FILES, *_IN_FOLDERS)
    folder = path if path.is_dir() else path.parent if several else None
    try:
        if folder is None:
            return path.stat().st_size
        nested = folder.rglob("*") if path.name in _IN_FOLDERS else ()
        inside = (folder / "variables").iterdir() if (folder / "variables").is_dir() else ()
        files = [*folder.iterdir(), *inside, *islice(nested, _MOST_FILES)]
        return sum(one.stat().st_size for one in files if one.is_file())
    except OSError:
        return 0
