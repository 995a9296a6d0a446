"""Pandas frames in HDF5, against what pandas itself reads."""

from __future__ import annotations

import os
import pickle
import warnings
from fractions import Fraction

import h5py
import numpy as np
import pandas as pd
import pytest

from cnnfilterdb.core.errors import UnsafeFileError, WeightFileError
from cnnfilterdb.ingest.formats import frame
from cnnfilterdb.ingest.network.objects import Object

pytest.importorskip("tables")


def write(table, path, **options):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", pd.errors.PerformanceWarning)
        table.to_hdf(path, key="meta", **options)
    return path


def read(path):
    with h5py.File(path) as file:
        return frame.read_frame(file["meta"], path.name)


def objects(table):
    """Text columns as one block of Python objects, as pandas before 3 stores them."""
    text = [column for column in table if pd.api.types.is_string_dtype(table[column])]
    mixed = pd.DataFrame({column: table[column].astype(object) for column in text}, index=table.index)
    return pd.concat(
        [pd.DataFrame(mixed.to_numpy(), mixed.index, text, dtype=object), table.drop(columns=text)], axis=1
    )


@pytest.fixture
def table():
    rows = [(0, 0, 0.0), (0, 1, 0.5), (0, 1, 0.5), (5, 2, 1.0), (9, 0, np.nan)]
    return pd.DataFrame(
        {
            "filter_ids": ["0:1", "2:2", "3:9", "10:11", "12:12"],
            "Task": ["Segmentation (binary)", None, "Super Résolution", "日本", np.nan],
            "depth": [11, 11, 11, 7, 3],
            "small": np.array([1, 2, 3, 4, 250], np.uint8),
            "single": np.array([1, np.nan, 0.1, -0.0, np.inf], np.float32),
            "(3, 3) filters": [2.0, 1.0, np.nan, 2.0, 1.0],
            "Conv": [1.0, np.nan, np.nan, 5.0, 1e300],
            "stored": [True, False, True, True, False],
        },
        index=pd.MultiIndex.from_tuples(rows, names=["model_id", "conv_depth", "conv_depth_norm"]),
    )


@pytest.mark.parametrize("as_stored", [objects, lambda table: table], ids=["objects", "pandas 3"])
@pytest.mark.parametrize("levels", [1, 3])
def test_it_is_what_pandas_reads(tmp_path, table, as_stored, levels):
    table = as_stored(table if levels == 3 else table.reset_index(level=[1, 2]))
    path = write(table, tmp_path / "a.h5")
    expected = pd.read_hdf(path, "meta").reset_index()
    found = read(path)
    pd.testing.assert_frame_equal(found, expected, check_dtype=False)
    assert found["stored"].dtype == bool
    assert found["Task"].isna().tolist() == [False, True, False, False, True]


def test_columns_of_text_share_one_pickle_as_in_the_released_files(tmp_path, table):
    path = write(objects(table), tmp_path / "a.h5")
    with h5py.File(path) as file:
        pickled = [name for name in file["meta"] if file["meta"][name].attrs.get("CLASS") == b"VLARRAY"]
        (name,) = pickled
        assert len(file["meta"][name.replace("values", "items")]) == 2
        assert pickle.loads(file["meta"][name][0].tobytes()).shape == (5, 2)


def test_compressed_frame(tmp_path, table):
    path = write(objects(table), tmp_path / "a.h5", complib="zlib", complevel=9)
    pd.testing.assert_frame_equal(read(path), pd.read_hdf(path, "meta").reset_index(), check_dtype=False)


def test_other_objects_stay_inert(tmp_path, table):
    table["fraction"] = [Fraction(1, n) for n in range(1, 6)]
    found = read(write(objects(table), tmp_path / "a.h5"))
    assert all(isinstance(value, Object) and str(value.cls) == "fractions.Fraction" for value in found["fraction"])
    assert found["filter_ids"].tolist() == table["filter_ids"].tolist()


class Hostile:
    def __init__(self, canary):
        self.canary = canary

    def __reduce__(self):
        return os.system, (f"touch {self.canary}",)


@pytest.mark.parametrize("place", ["cell", "whole"])
def test_nothing_in_a_pickle_is_run(tmp_path, table, place):
    path, canary = write(objects(table), tmp_path / "a.h5"), tmp_path / "canary"
    evil = Hostile(canary)
    cells = np.full((5, 2), "text", object)
    cells[3, 1] = evil
    with h5py.File(path, "r+") as file:
        (name,) = [name for name in file["meta"] if file["meta"][name].attrs.get("CLASS") == b"VLARRAY"]
        file["meta"][name][0] = np.frombuffer(pickle.dumps(cells if place == "cell" else evil), np.uint8)
    with pytest.raises(UnsafeFileError, match=r"a\.h5/meta/block\d_values: asks for \w+\.system to be called"):
        read(path)
    assert not canary.exists()


def test_table_format_is_reported(tmp_path, table):
    path = write(table[["depth", "Conv"]], tmp_path / "a.h5", format="table")
    with pytest.raises(WeightFileError, match=r"a\.h5: not a readable pandas frame \(pandas_type is 'frame_table'"):
        read(path)


def damage_code(group):
    group["axis1_label0"][0] = 100


def damage_block(group):
    del group["block0_values"]


def damage_rows(group):
    values = group["axis1_label1"][:-1]
    attributes = dict(group["axis1_label1"].attrs)
    del group["axis1_label1"]
    group["axis1_label1"] = values
    group["axis1_label1"].attrs.update(attributes)


def damage_pickle(group):
    (name,) = [name for name in group if group[name].attrs.get("CLASS") == b"VLARRAY"]
    group[name][0] = group[name][0][:-20]


def damage_shape(group):
    (name,) = [name for name in group if group[name].attrs.get("CLASS") == b"VLARRAY"]
    group[name][0] = np.frombuffer(pickle.dumps(np.full((5, 3), "x", object)), np.uint8)


def damage_missing(group):
    del group.attrs["nblocks"]


@pytest.mark.parametrize(
    "damage", [damage_code, damage_block, damage_rows, damage_pickle, damage_shape, damage_missing]
)
def test_damage_is_one_clear_error(tmp_path, table, damage):
    path = write(objects(table), tmp_path / "a.h5")
    with h5py.File(path, "r+") as file:
        damage(file["meta"])
    with pytest.raises(WeightFileError, match=r"a\.h5") as error:
        read(path)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("stored", "shape"), [(b"(I0\ntp1\n.", (0,)), (b"(I0\nI3\ntp0\n.", (0, 3)), (np.array([0, 2]), (0, 2))]
)
def test_the_shape_of_an_empty_array_is_a_pickled_tuple_or_an_array(stored, shape):
    assert frame._shape(stored) == shape


@pytest.mark.parametrize("stored", [b"", b"(I0\n.", b"cos\nsystem\n(I0\ntR.", b"(I-1\ntp1\n."])
def test_a_shape_that_is_no_tuple_of_integers_is_refused(stored):
    with pytest.raises(ValueError, match="tuple of integers"):
        frame._shape(stored)
