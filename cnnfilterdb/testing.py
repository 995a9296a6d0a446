"""Conformance suites for sources and formats, for pytest; the sources and formats of the package use them too.

Derive a test class, define how to make the object, and pytest runs the inherited tests::

    from cnnfilterdb.testing import SourceTests

    class TestMyZoo(SourceTests):
        def source(self, folder):
            return MyZoo()
"""

from __future__ import annotations

import io
import os
import pickle
import random
import socket
import time
import zipfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import numpy.typing as npt

from cnnfilterdb import catalog
from cnnfilterdb.core.errors import CnnFilterDbError, UnknownModelError, WeightFileError
from cnnfilterdb.core.schema import ModelFacts
from cnnfilterdb.ingest import formats
from cnnfilterdb.ingest.network.layers import Weights
from cnnfilterdb.ingest.sources import Source, as_source

__all__ = ["FormatTests", "SourceTests", "hostile_files", "no_network"]

_UNKNOWN = "no such model \N{HORIZONTAL ELLIPSIS}"
# Seconds that reading a damaged or hostile file may take, on a busy machine
_SECONDS = 60.0


@contextmanager
def no_network() -> Iterator[None]:
    """Make every attempt to connect to another machine or a local server fail."""

    def refuse(self: socket.socket, address: Any) -> None:
        raise AssertionError(f"connected to {address}; this must work without a network")

    with mock.patch.object(socket.socket, "connect", refuse), mock.patch.object(socket.socket, "connect_ex", refuse):
        yield


class SourceTests:
    """The contract of :class:`cnnfilterdb.ingest.sources.Source`."""

    def source(self, folder: Path) -> Any:
        """The source; creating it must not connect to anything.

        Args:
            folder: An empty folder, for caches and files.
        """
        raise NotImplementedError

    def available(self, source: Any) -> Sequence[str]:
        """Names of models that can be resolved in the test; none by default."""
        return ()

    def listed(self, source: Source) -> list[str]:
        """Names of models that the source lists, up to 50; those of :meth:`available` by default, if it lists none."""
        with no_network():
            return [*source.list(), *(() if source.list() else source.list(list(self.available(source))))][:50]

    def test_its_name_is_one_part_of_a_model_id(self, tmp_path: Path) -> None:
        """Models are stored as source/name."""
        name = self.source(tmp_path).name
        assert isinstance(name, str)
        assert name
        assert "/" not in name

    def test_it_lists_each_name_once(self, tmp_path: Path) -> None:
        """Without network, and a listed name selects itself."""
        source = as_source(self.source(tmp_path))
        names = self.listed(source)
        assert all(isinstance(name, str) and name for name in names)
        assert len(set(names)) == len(names)
        if source.list():
            with no_network():
                assert all(list(source.list([name])) == [name] for name in names)

    def test_an_unknown_name_is_refused(self, tmp_path: Path) -> None:
        """By every method, with UnknownModelError in one line."""
        source = as_source(self.source(tmp_path))
        with no_network():
            for call in (lambda: source.list([_UNKNOWN]), lambda: source.describe(_UNKNOWN)):
                error = _raised(call, UnknownModelError)
                assert "\n" not in str(error)
            _raised(lambda: source.resolve(_UNKNOWN), UnknownModelError)

    def test_it_describes_what_it_lists(self, tmp_path: Path) -> None:
        """Without network, in words of the catalog, with None for unknown facts."""
        source = as_source(self.source(tmp_path))
        for name in self.listed(source):
            with no_network():
                facts = source.describe(name)
            assert isinstance(facts, ModelFacts)
            known = asdict(facts)
            catalog.check_facts(known)
            assert not [fact for fact, value in known.items() if value == ""]

    def test_sizes_are_numbers_or_unknown(self, tmp_path: Path) -> None:
        """Without network."""
        source = as_source(self.source(tmp_path))
        for name in self.listed(source):
            with no_network():
                size = source.download_size(name)
            assert size is None or size >= 0

    def test_what_it_resolves_can_be_read(self, tmp_path: Path) -> None:
        """A regular file of a known format; a second time it is the same file."""
        own = self.source(tmp_path)
        source = as_source(own)
        names = source.list(list(self.available(own))) if self.available(own) else ()
        for name in names:
            path = source.resolve(name)
            assert path.is_file()
            weights = source.enrich(name, formats.read(path))
            assert isinstance(weights, Weights)
            assert weights.layers
            assert isinstance(source.describe(name), ModelFacts)
            assert source.resolve(name) == path


class FormatTests:
    """The contract of :class:`cnnfilterdb.ingest.formats.Format`."""

    def format(self) -> formats.Format:
        """The format."""
        raise NotImplementedError

    def examples(self, folder: Path) -> Mapping[Path, Mapping[str, npt.NDArray[np.float32]]]:
        """Write small weight files into a folder: path -> layer name -> weight (out, in/groups, h, w)."""
        raise NotImplementedError

    def test_examples_are_read(self, tmp_path: Path) -> None:
        """The format recognises them, and every weight is read exactly."""
        for path, expected in self.examples(tmp_path).items():
            assert self.format().matches(path, path.read_bytes()[:4096]), path
            found = {layer.name: layer for layer in formats.read(path).layers}
            assert found.keys() == expected.keys()
            for name, weight in expected.items():
                read = found[name].read()
                assert read.dtype == np.float32
                assert read.flags.c_contiguous
                assert read.shape == found[name].shape
                np.testing.assert_array_equal(read, weight)

    def test_damaged_files_are_read_or_refused(self, tmp_path: Path) -> None:
        """Reading a cut or changed file gives layers, or a WeightFileError of one line that names it."""
        for path in list(self.examples(tmp_path)):
            for damaged in _damaged(path.read_bytes(), random.Random(0)):
                path.write_bytes(damaged)
                self._read_or_refused(path)

    def test_hostile_files_are_read_or_refused(self, tmp_path: Path) -> None:
        """No code in a file is run, and no file takes long."""
        folder = tmp_path / "hostile"
        folder.mkdir()
        canary = tmp_path / "canary"
        for path in hostile_files(folder, canary):
            if self.format().matches(path, path.read_bytes()[:4096]):
                self._read_or_refused(path)
        assert not canary.exists()

    def test_pages_and_text_are_not_recognised(self, tmp_path: Path) -> None:
        """A format that accepts files of other formats hides those formats."""
        for content in (
            b"",
            b"<!DOCTYPE html><html></html>",
            b"version https://git-lfs.github.com/spec/v1\n",
            b"a,b\n1,2\n",
        ):
            assert not self.format().matches(tmp_path / "file", content)

    def _read_or_refused(self, path: Path) -> None:
        began = time.monotonic()
        refused: CnnFilterDbError | None = None
        try:
            for layer in formats.read(path).layers:
                layer.read()
        except CnnFilterDbError as error:
            refused = error
        assert refused is None or isinstance(refused, WeightFileError), refused
        assert refused is None or ("\n" not in str(refused) and path.name in str(refused)), refused
        assert time.monotonic() - began < _SECONDS, path


class _Touch:
    """A pickle that runs a command."""

    def __init__(self, canary: Path) -> None:
        self._canary = canary

    def __reduce__(self) -> tuple[Any, ...]:
        return os.system, (f"touch '{self._canary}'",)


def hostile_files(folder: Path, canary: Path) -> list[Path]:
    """Write files that ask for code, memory or time.

    Args:
        folder: The folder to write to.
        canary: A file that appears if code in one of them is run.
    """
    code = pickle.dumps({"x": _Touch(canary)}, protocol=2)
    deep = b"".join((b"\x80\x02", b"(" * 100_000, b"t" * 100_000, b"."))
    files = {
        "code.pkl": code,
        "code.pth": code,
        "deep.pkl": deep,
        "sets.pkl": b"\x80\x04" + b"\x8f" * 1_000_000 + b".",
        "code.pt": _zip({"archive/data.pkl": code, "archive/version": b"3\n", "archive/byteorder": b"little"}),
        "code.npz": _zip({"x.npy": _object_array(code)}),
        "bomb.npz": _zip({"x.npy": _header("<f4", (1 << 10, 1 << 10, 3, 3)) + bytes(1 << 26)}),
        "huge.npy": _header("<f4", (1 << 20, 1 << 20, 3, 3)),
        "huge.npz": _zip({"x.npy": _header("<f4", (1 << 20, 1 << 20, 3, 3))}),
        "huge.safetensors": (1 << 40).to_bytes(8, "little") + b"{}",
        "deep.safetensors": _safetensors(b'{"x":' + b"[" * 200_000),
        "outside.safetensors": _safetensors(b'{"a.weight":{"dtype":"F32","shape":[8,8,3,3],"data_offsets":[0,2304]}}'),
        "negative.safetensors": _safetensors(b'{"a.weight":{"dtype":"F32","shape":[-1,8,3,3],"data_offsets":[0,0]}}'),
        "deep.json": b"[" * 500_000,
        "outside.json": b'{"modelTopology":{},"weightsManifest":[{"paths":["../../etc/passwd"],"weights":[]}]}',
        "names.npz": _zip({"../../x.npy": _header("<f4", (1, 1, 3, 3)) + bytes(36)}),
        "zeros.h5": b"\x89HDF\r\n\x1a\n" + bytes(4096),
        "zeros.tflite": bytes(4) + b"TFL3" + bytes(4096),
        "zeros.onnx": b"\x08\x07" + bytes(4096),
    }
    paths = []
    for name, content in files.items():
        paths.append(folder / name)
        paths[-1].write_bytes(content)
    return paths


def _zip(members: Mapping[str, bytes]) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, data in members.items():
            archive.writestr(name, data)
    return buffer.getvalue()


def _header(dtype: str, shape: tuple[int, ...]) -> bytes:
    buffer = io.BytesIO()
    np.lib.format.write_array_header_1_0(buffer, {"descr": dtype, "fortran_order": False, "shape": shape})
    return buffer.getvalue()


def _object_array(content: bytes) -> bytes:
    return _header("|O", (1,)) + content


def _safetensors(header: bytes) -> bytes:
    return len(header).to_bytes(8, "little") + header


def _damaged(content: bytes, random: random.Random) -> Iterator[bytes]:
    """The content cut, changed and extended."""
    for part in range(8):
        yield content[: len(content) * part // 8]
    for _ in range(60):
        changed = bytearray(content)
        # Half of the changes are at the beginning, where headers are
        for _ in range(random.choice((1, 1, 8))):
            changed[random.randrange(min(len(content), random.choice((256, len(content)))))] = random.randrange(256)
        yield bytes(changed)
    yield content + bytes(1000)


def _raised(call: Any, kind: type[Exception]) -> Exception:
    try:
        found = call()
    except kind as error:
        return error
    raise AssertionError(f"expected {kind.__name__}, found {found!r}")
