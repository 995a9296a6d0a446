"""Bases as files: JSON, which any language reads, or NumPy's .npz."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import zipfile
from pathlib import Path
from typing import Any

import numpy as np

from cnnfilterdb.core.durable import replacing
from cnnfilterdb.core.errors import DatabaseError
from cnnfilterdb.core.schema import kernel_shape
from cnnfilterdb.stats import Basis

__all__ = ["load_basis", "save_basis"]

#: Version of the layout of a file; a reader refuses a higher one.
VERSION = 1

_ARRAYS = ("mean", "components", "explained_variance", "explained_variance_ratio")
_SUFFIXES = (".json", ".npz")


def save_basis(basis: Basis, path: str | Path) -> Path:
    """Write a basis to a file, to be applied to other models later or elsewhere.

    The file holds every attribute of the basis in double precision, a version of the layout, and a SHA-256 of its
    numbers.

    Args:
        basis: The basis.
        path: Ends in ``.json`` or ``.npz``.

    Raises:
        DatabaseError: Another suffix, or the file cannot be written.

    >>> import tempfile
    >>> from cnnfilterdb.stats import Moments
    >>> basis = Basis.fit(Moments.of(np.eye(9, dtype=np.float32)), "3x3")
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     again = load_basis(save_basis(basis, Path(folder) / "basis.json"))
    >>> bool((again.components == basis.components).all())
    True
    """
    path = _checked(Path(path))
    values = dataclasses.asdict(basis) | {"version": VERSION, "sha256": _digest(basis)}
    with replacing(path) as part:
        if path.suffix == ".json":
            text = json.dumps(values, default=lambda array: array.tolist(), indent=1) + "\n"
            part.write_text(text, encoding="utf-8")
        else:
            facts = json.dumps({key: value for key, value in values.items() if key not in _ARRAYS})
            with part.open("wb") as file:
                np.savez(file, facts=np.array(facts), **{key: values[key] for key in _ARRAYS})
    return path


def load_basis(path: str | Path) -> Basis:
    """Read a basis from a file that :func:`save_basis` wrote.

    Raises:
        DatabaseError: The file cannot be read, is damaged, or was written by a newer version of the package.

    >>> import tempfile
    >>> from cnnfilterdb.stats import Moments
    >>> basis = Basis.fit(Moments.of(np.eye(9, dtype=np.float32)), "3x3")
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     load_basis(save_basis(basis, Path(folder) / "basis.npz")).kernel
    '3x3'
    """
    path = _checked(Path(path))
    try:
        if path.suffix == ".json":
            values: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        else:
            with np.load(path, allow_pickle=False) as archive:
                values = json.loads(str(archive["facts"])) | {key: archive[key] for key in _ARRAYS}
        if values.pop("version") > VERSION:
            raise DatabaseError(f"{path}: written by a newer version of cnnfilterdb; upgrade it")
        expected = values.pop("sha256")
        values |= {key: np.asarray(values[key], np.float64) for key in _ARRAYS}
        basis = Basis(**values)
        height, width = kernel_shape(basis.kernel)
        size = height * width
        shapes = [getattr(basis, key).shape for key in _ARRAYS]
        sound = shapes == [(size,), (size, size), (size,), (size,)] and _digest(basis) == expected
    except OSError as error:
        raise DatabaseError(f"{path}: cannot be read: {error.strerror or error}") from error
    except (ValueError, LookupError, TypeError, zipfile.BadZipFile) as error:
        raise DatabaseError(f"{path}: not a basis that cnnfilterdb wrote ({error}); save it again") from error
    if not sound:
        raise DatabaseError(f"{path}: damaged: its numbers are not those that were saved; save it again")
    return basis


def _checked(path: Path) -> Path:
    if path.suffix not in _SUFFIXES:
        raise DatabaseError(f"{path}: expected a file name that ends in {' or '.join(_SUFFIXES)}")
    return path


def _digest(basis: Basis) -> str:
    digest = hashlib.sha256(f"{basis.kernel} {basis.filters} {basis.low} {basis.high} {basis.bins}".encode())
    for key in _ARRAYS:
        digest.update(np.ascontiguousarray(getattr(basis, key), "<f8").tobytes())
    return digest.hexdigest()
