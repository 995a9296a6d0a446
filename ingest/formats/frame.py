"""Pandas frames in HDF5 files, read without PyTables and without executing anything.

The fixed format of ``DataFrame.to_hdf`` (pandas 0.2x to 3, module ``pandas.io.pytables``)::

    axis0                                    names of the columns
    axis1_level0, axis1_label0, ...          index: the values of each level, and for each row a number into them
    block0_items, block0_values, ...         columns of one type together: their names, and their values (rows, columns)

A block of Python objects, mostly text, is one pickle in an array of bytes. It is read by
:mod:`cnnfilterdb.ingest.formats.pickle`, so functions that the pickle names are never called.
"""

from __future__ import annotations

import io
import re
from typing import Any

import h5py
import numpy as np
import numpy.typing as npt
import pandas as pd

from cnnfilterdb.core.errors import CnnFilterDbError, WeightFileError
from cnnfilterdb.ingest.formats import pickle
from cnnfilterdb.ingest.formats.pickled_arrays import Array

__all__ = ["read_frame"]


def read_frame(group: h5py.Group, name: str) -> pd.DataFrame:
    """Read a frame.

    Args:
        group: The group that ``to_hdf`` has written.
        name: Its name in messages.

    Returns:
        Its columns, with the levels of its index before them by their names, and rows numbered from 0. What is neither
        text nor a number in it is a :class:`~cnnfilterdb.ingest.formats.pickle.Object`.

    Raises:
        UnsafeFileError: A pickle in it names a function that runs code.
        WeightFileError: It is damaged, or not of the fixed format.
    """
    try:
        return _read(group, name)
    except CnnFilterDbError:
        raise
    # A damaged or hostile file can fail in any way; the file is at fault.
    except Exception as error:
        reason = " ".join(str(error).split())[:200] or type(error).__name__
        raise WeightFileError(f"{name}: not a readable pandas frame ({reason})") from error


def _read(group: h5py.Group, name: str) -> pd.DataFrame:
    kind = _text(group.attrs.get("pandas_type", ""))
    if kind != "frame":
        raise ValueError(f"pandas_type is {kind!r}, expected 'frame', the fixed format")
    encoding = _text(group.attrs.get("encoding", "UTF-8"))
    levels = _index(group, name, encoding)
    columns: dict[str, npt.NDArray[Any]] = {}
    for number in range(int(group.attrs["nblocks"])):
        items = _labels(group[f"block{number}_items"], name, encoding)
        values = _values(group[f"block{number}_values"], name)
        if values.ndim == 1:  # a column with an extension type, such as the `str` of pandas 3
            values = values[:, None]
        if values.ndim != 2 or values.shape[1] != len(items):
            raise ValueError(f"block {number} is of shape {values.shape} and has {len(items)} columns")
        columns |= {item: values[:, column] for column, item in enumerate(items)}
    order = [item for item in _labels(group["axis0"], name, encoding) if item not in levels]
    return pd.DataFrame({**levels, **{item: columns[item] for item in order}})


def _index(group: h5py.Group, name: str, encoding: str) -> dict[str, npt.NDArray[Any]]:
    if _text(group.attrs["axis1_variety"]) != "multi":
        level = group["axis1"]
        return {_text(level.attrs.get("name", "")) or "index": np.asarray(_labels(level, name, encoding))}
    index = {}
    for number in range(int(group.attrs["axis1_nlevels"])):
        level, codes = group[f"axis1_level{number}"], group[f"axis1_label{number}"][...]
        labels = pd.Series(_labels(level, name, encoding))
        if len(codes) and not -1 <= codes.min() <= codes.max() < len(labels):
            raise ValueError(
                f"level {number} of its index has {len(labels)} values and a row with number {codes.max()}"
            )
        # -1 means a missing value, which only some types of NumPy have: `reindex` chooses one that does
        index[_text(level.attrs["name"])] = labels.reindex(codes).to_numpy()
    return index


def _labels(dataset: h5py.Dataset, name: str, encoding: str) -> list[Any]:
    """Names of columns, or values of a level of the index."""
    values = _values(dataset, name)
    if values.dtype.kind == "S":
        return [value.decode(encoding) for value in values.tolist()]
    return values.ravel().tolist()


def _values(dataset: h5py.Dataset, name: str) -> npt.NDArray[Any]:
    attributes = dataset.attrs
    kind = _text(attributes.get("value_type", ""))
    if kind.startswith(("datetime", "timedelta", "period")):
        raise ValueError(f"{dataset.name} holds values of the type {kind}")
    if "shape" in attributes:  # an empty array is stored as one with a single element
        shape = _shape(attributes["shape"])
        if 0 not in shape or not all(0 <= side < 1 << 31 for side in shape):
            raise ValueError(f"{dataset.name} is announced as empty and of shape {shape}")
        return np.empty(shape, object)
    if _text(attributes.get("CLASS", "")) == "VLARRAY":
        pickled = pickle.load(io.BytesIO(np.asarray(dataset[0], np.uint8).tobytes()), f"{name}{dataset.name}")
        values = pickled.read() if isinstance(pickled, Array) else np.asarray(pickled, object)
    elif dataset.id.get_type().get_class() == h5py.h5t.BITFIELD:
        values = dataset[...].astype(bool)
    else:
        values = dataset[...]
    return values if attributes.get("transposed", False) else values.T


def _shape(value: Any) -> tuple[int, ...]:
    """The attribute ``shape``: an array, or a tuple of integers that PyTables pickled as text, such as (0,)."""
    if isinstance(value, bytes):
        if not re.fullmatch(rb"\((?:I\d+\n)+t(?:p\d+\n)?\.", value):
            raise ValueError(f"a shape should be a tuple of integers, found {value[:40]!r}")
        value = re.findall(rb"I(\d+)\n", value)
    return tuple(int(side) for side in value)


def _text(value: Any) -> str:
    """An attribute as text; PyTables writes text as bytes, and what it cannot write, such as None, as a pickle."""
    if isinstance(value, bytes):
        value = value.decode("utf-8", "replace")
    return value if isinstance(value, str) and not value.endswith("\n.") and value != "N." else ""
