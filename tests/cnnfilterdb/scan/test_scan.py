"""Scans: what they hand over, in which order, how much at a time, and what they say of damaged files."""

import os
import threading
import time
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cnnfilterdb.core.errors import CorruptError
from cnnfilterdb.core.resources import Resources
from cnnfilterdb.core.schema import filter_schema, weight_columns
from cnnfilterdb.core.workers import threads
from cnnfilterdb.scan import scan as scanning
from cnnfilterdb.scan.scan import joined, scan


def write(path, layers, group_rows, kernel="3x3", model_id="custom/m", seed=0, **options):
    """A file of filters with layers of so many filters, in row groups of so many rows; returns its weights."""
    size = len(weight_columns(kernel))
    total = sum(layers)
    weights = np.random.default_rng(seed).normal(size=(total, size)).astype(np.float32)
    columns = {
        "model_id": [model_id] * total,
        "layer": np.repeat(np.arange(len(layers)), layers),
        "out_channel": np.concatenate([np.arange(count) for count in layers]),
        "in_channel": np.zeros(total, int),
        **{name: weights[:, i] for i, name in enumerate(weight_columns(kernel))},
    }
    pq.write_table(pa.table(columns).cast(filter_schema(kernel)), path, row_group_size=group_rows, **options)
    return weights


@given(st.lists(st.integers(1, 12), min_size=1, max_size=6), st.integers(1, 20), st.sampled_from(["3x3", "1x7", "5x5"]))
@settings(max_examples=40)
def test_runs_are_the_layers_in_order_across_row_groups(tmp_path_factory, layers, group_rows, kernel):
    path = tmp_path_factory.mktemp("scan") / "m.parquet"
    weights = write(path, layers, group_rows, kernel)
    row_groups = list(scan([path], kernel, lambda runs: runs))
    assert len(row_groups) == -(-len(weights) // group_rows)
    runs = [run for group in row_groups for run in group]
    np.testing.assert_array_equal(np.concatenate([np.stack(run.columns, axis=1) for run in runs]), weights)
    assert all(column.dtype == np.float32 and column.flags.c_contiguous for run in runs for column in run.columns)
    assert [run.row for run in runs] == np.cumsum([0, *(run.filters for run in runs)])[:-1].tolist()
    assert {(run.model_id, run.path) for run in runs} == {("custom/m", path)}
    # A run ends where a layer or a row group ends, and nowhere else.
    ends = set(np.cumsum(layers)) | set(range(group_rows, len(weights), group_rows))
    assert {run.row + run.filters for run in runs} == ends
    filters = np.zeros(len(layers), int)
    for run in runs:
        filters[run.layer] += run.filters
    assert filters.tolist() == layers


@given(
    st.lists(st.integers(1, 12), min_size=1, max_size=6), st.integers(1, 20), st.sets(st.integers(0, 6)), st.booleans()
)
@settings(max_examples=40)
def test_row_groups_without_wanted_layers_are_not_read(tmp_path_factory, layers, group_rows, wanted, statistics):
    path = tmp_path_factory.mktemp("scan") / "m.parquet"
    write(path, layers, group_rows, write_statistics=statistics)
    everything = list(scan([path], "3x3", list))
    read = list(scan([path], "3x3", list, layers={"custom/m": wanted, "custom/other": {0}}))

    def places(row_groups):
        return [(run.row, run.layer, run.filters) for group in row_groups for run in group]

    needed = [group for group in everything if not statistics or wanted & {run.layer for run in group}]
    # By their smallest and largest layer, so that one between two wanted ones may be read, too.
    assert set(places(needed)) <= set(places(read)) <= set(places(everything))
    if len(wanted) == 1 or not statistics:
        assert places(read) == places(needed)


def nothing_in_memory(descriptor, buffers, place, flags):
    raise BlockingIOError


@pytest.mark.skipif(not hasattr(os, "posix_fadvise"), reason="the system has no posix_fadvise")
@pytest.mark.parametrize("error", [None, OSError, OverflowError])
def test_the_system_reads_ahead_all_bytes_of_a_file(tmp_path, monkeypatch, error):
    path = tmp_path / "m.parquet"
    weights = write(path, [5, 9, 3], 4)
    announced = []

    def advise(descriptor, start, length, advice):
        announced.append((start, start + length, advice))
        if error:
            raise error

    monkeypatch.setattr(os, "posix_fadvise", advise)
    monkeypatch.setattr(os, "preadv", nothing_in_memory, raising=False)
    found = list(scan([path], "3x3", lambda runs: sum(run.filters for run in runs)))
    assert sum(found) == len(weights)
    assert len(announced) == pq.read_metadata(path).num_row_groups > 1
    assert {advice for _, _, advice in announced} == {os.POSIX_FADV_WILLNEED}
    bounds = [0, *(stop for _, stop, _ in announced)]
    assert [start for start, _, _ in announced] == bounds[:-1]
    assert bounds == sorted(set(bounds))
    assert bounds[-1] == path.stat().st_size


@pytest.mark.skipif(not hasattr(os, "RWF_NOWAIT"), reason="the system does not say what is in memory")
def test_what_is_in_memory_is_not_read_ahead(tmp_path, monkeypatch):
    path = tmp_path / "m.parquet"
    weights = write(path, [5, 9, 3], 4)  # and read, so that its pages are there
    path.read_bytes()
    monkeypatch.setattr(os, "posix_fadvise", lambda *given: pytest.fail(f"was asked to read {given}"))
    assert sum(scan([path], "3x3", lambda runs: sum(run.filters for run in runs))) == len(weights)


def test_neighbouring_runs_are_joined(tmp_path):
    path = tmp_path / "m.parquet"
    weights = write(path, [3, 1, 4, 1, 5], 14)
    (runs,) = scan([path], "3x3", list)
    found = list(joined(runs, lambda run: run.layer in (1, 2)))
    assert [(key, run.layer, run.row, run.filters) for key, run in found] == [
        (False, 0, 0, 3),
        (True, 1, 3, 5),
        (False, 3, 8, 6),
    ]
    for _, run in found:
        np.testing.assert_array_equal(np.stack(run.columns, axis=1), weights[run.row : run.row + run.filters])


@pytest.mark.parametrize("statistics", [True, False, ["layer"]])
def test_files_need_no_statistics(tmp_path, statistics):
    path = tmp_path / "m.parquet"
    write(path, [3, 4], 5, write_statistics=statistics)
    runs = [run for group in scan([path], "3x3", list) for run in group]
    assert [(run.model_id, run.layer, run.filters) for run in runs] == [
        ("custom/m", 0, 3),
        ("custom/m", 1, 2),
        ("custom/m", 1, 2),
    ]


def test_results_come_in_order_however_long_they_take(tmp_path):
    paths = [tmp_path / f"{number}.parquet" for number in range(6)]
    for number, path in enumerate(paths):
        write(path, [4, 3], 5, model_id=f"custom/{number}")

    def work(runs):
        time.sleep(0.02 * (runs[0].model_id == "custom/0"))  # the first is the slowest
        return runs[0].model_id, runs[0].row

    done = []
    found = list(scan(paths, "3x3", work, progress=done.append))
    assert found == [(f"custom/{number}", row) for number in range(6) for row in (0, 5)]
    assert done == [5, 2] * 6


def test_a_bounded_number_of_row_groups_is_in_flight(tmp_path):
    path = tmp_path / "m.parquet"
    write(path, [200], 2)
    lock, started, most, at_once, peak = threading.Lock(), 0, 0, 0, 0
    taken = 0

    def work(runs):
        nonlocal started, most, at_once, peak
        with lock:
            started += 1
            at_once += 1
            most, peak = max(most, started - taken), max(peak, at_once)
        time.sleep(0.001)
        with lock:
            at_once -= 1
        return len(runs)

    for result in scan([path], "3x3", work, resources=Resources.of(threads=3)):
        assert result == 1
        time.sleep(0.002)  # a slow reader: results must wait, not pile up
        with lock:
            taken += 1
    assert started == 100
    assert 1 < peak <= 3
    assert most <= 2 * 3 + 1


def test_a_scan_that_is_left_early_stops(tmp_path):
    path = tmp_path / "m.parquet"
    write(path, [2000], 2)
    started = []
    results = scan([path], "3x3", lambda runs: started.append(runs[0].row))
    next(results)
    results.close()
    assert len(started) <= 2 * threads() + 1


def test_an_error_of_the_work_reaches_the_caller(tmp_path):
    path = tmp_path / "m.parquet"
    write(path, [20], 2)

    def work(runs):
        raise ZeroDivisionError(runs[0].row)

    with pytest.raises(ZeroDivisionError, match="0"):
        list(scan([path], "3x3", work))


def test_no_files_and_files_without_rows(tmp_path):
    assert list(scan([], "3x3", len)) == []
    path = tmp_path / "empty.parquet"
    pq.write_table(filter_schema("3x3").empty_table(), path)
    assert [runs for runs in scan([path], "3x3", list) if runs] == []


def break_header(path):
    path.write_bytes(b"nothing of a parquet file")


def break_footer(path):
    path.write_bytes(path.read_bytes()[:-30])


def break_middle(path):
    data = bytearray(path.read_bytes())
    data[4:4000] = bytes(3996)
    path.write_bytes(bytes(data))


def empty(path):
    path.write_bytes(b"")


def take_away(path):
    path.unlink()


def other_size(path):
    write(path, [3], 5, "1x7")


@pytest.mark.parametrize("damage", [break_header, break_footer, break_middle, empty, take_away, other_size])
def test_a_damaged_file_is_named(tmp_path, damage):
    good, bad = tmp_path / "a.parquet", tmp_path / "b.parquet"
    write(good, [9], 5)
    write(bad, [500, 500], 400)
    damage(bad)
    with pytest.raises(CorruptError, match=rf"{bad}: .*cnnfilterdb verify") as caught:
        list(scan([good, bad], "3x3", len))
    assert "\n" not in str(caught.value)


@given(st.lists(st.integers(1, 131_072), min_size=1, max_size=2000), st.integers(1, 64))
@settings(max_examples=50)
def test_work_for_other_processes_is_cut_into_few_units_of_some_size(rows, workers):
    places = [scanning._RowGroup(Path("m.parquet"), 0, group, 0, count, "m", None) for group, count in enumerate(rows)]
    units = list(scanning._units(places, len, ["w0"], scanning._remote_filters(places, workers)))
    assert [place for unit in units for place in unit.places] == places
    sizes = [sum(place.rows for place in unit.places) for unit in units]
    assert all(size >= 1 << 20 for size in sizes[:-1])
    assert max(sizes) < (1 << 23) + 131_072
    # Each unit may be a row group larger than it had to be.
    wanted = scanning._remote_filters(places, workers)
    assert len(units) >= sum(rows) // (wanted + 131_072)
    assert wanted == 1 << 20 or wanted <= sum(rows) // (4 * workers)


@given(st.lists(st.integers()), st.integers(0, 5))
def test_items_come_in_order_when_more_were_taken(items, count):
    taken = []
    delayed = scanning._delayed((taken.append(item) or item for item in items), count)
    for number, item in enumerate(delayed):
        assert item == items[number]
        assert len(taken) == min(number + 1 + count, len(items))
