from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from cnnfilterdb.core.durable import sha256
from cnnfilterdb.core.errors import UnknownModelError
from cnnfilterdb.core.paths import (
    basis_path,
    empty_filters_path,
    filters_path,
    histograms_path,
    layers_path,
    models_path,
    slug,
)
from cnnfilterdb.core.reports import Problem
from cnnfilterdb.core.schema import filter_schema
from cnnfilterdb.store.folder import Store
from cnnfilterdb.store.writer import filter_settings

A, B = "custom/a", "custom/b"
FILTERS, LAYERS, MODELS = filters_path("3x3", "custom", slug(A)), layers_path(slug(A)), models_path(slug(A))
HISTOGRAMS = histograms_path("3x3-test", slug(A))


@pytest.fixture
def full(store, write_model) -> Store:
    """A database of two models."""
    write_model(store, A, seed=1)
    write_model(store, B, seed=2)
    assert store.verify() == []
    return store


def edit(store: Store, path: str, change: Callable[[pa.Table], pa.Table]) -> None:
    """Rewrite a file."""
    table = change(pq.ParquetFile(store.path / path).read())
    pq.write_table(table, store.path / path)


def put(column: str, row: int, value: object) -> Callable[[pa.Table], pa.Table]:
    """A change of one cell, or of one list element of it by a function."""

    def change(table: pa.Table) -> pa.Table:
        number, values = table.column_names.index(column), table[column].to_pylist()
        values[row] = value(values[row]) if callable(value) else value
        return table.set_column(number, table.schema.field(column), pa.array(values, table.schema.field(column).type))

    return change


def reseal(store: Store, path: str) -> None:
    """Make the models row agree with a file that was changed, as somebody would who knows the format."""
    target = store.path / path
    seal = {"bytes": target.stat().st_size, "sha256": sha256(target), "rows": pq.read_metadata(target).num_rows}
    edit(store, MODELS, put("files", 0, lambda files: [f | seal if f["path"] == path else f for f in files]))


def text_of(problems: list[Problem]) -> str:
    return "\n".join(map(str, problems))


def test_every_flipped_byte_of_filters_and_layers_is_found(full):
    for path in (FILTERS, LAYERS):
        target = full.path / path
        content = target.read_bytes()
        for position in [0, 4, len(content) // 3, len(content) // 2, len(content) - 10, len(content) - 1]:
            target.write_bytes(content[:position] + bytes([content[position] ^ 0x10]) + content[position + 1 :])
            problems = full.verify()
            assert any(p.path == target and p.model_id == A and "SHA-256" in p.message for p in problems)
        target.write_bytes(content)
    assert full.verify() == []


def test_flipped_bytes_of_the_models_row_are_found_by_its_checksums(full):
    target = full.path / MODELS
    content = target.read_bytes()
    column = pq.read_metadata(target).row_group(0).column(0)
    start = column.dictionary_page_offset or column.data_page_offset
    for position in range(start + column.total_compressed_size - 5, start + column.total_compressed_size):
        target.write_bytes(content[:position] + bytes([content[position] ^ 0x10]) + content[position + 1 :])
        (problem, *_) = full.verify()
        assert problem.path == target


@pytest.mark.parametrize("sealed", [False, True])
def test_a_dropped_row_is_found(full, sealed):
    edit(full, FILTERS, lambda table: table.slice(0, table.num_rows - 1))
    if sealed:
        reseal(full, FILTERS)
    message = "47 filters, expected 48 by the layers table" if sealed else "47 rows, expected 48"
    assert message in text_of(full.verify([A]))
    assert full.verify([B]) == []


def test_exchanged_rows_are_found_by_their_order(full):
    edit(full, FILTERS, lambda table: table.take([1, 0, *range(2, 48)]))
    reseal(full, FILTERS)
    found = text_of(full.verify())
    assert "layer 0 (conv0): its 24 filters are not in order" in found
    assert "SHA-256 of the weight" in found


@pytest.mark.parametrize("value", [1e-7, np.nan, np.inf])
def test_a_changed_weight_is_found_though_all_hashes_of_files_agree(full, value):
    edit(full, FILTERS, put("w4", 30, lambda old: float(np.float32(old) + np.float32(value))))
    reseal(full, FILTERS)
    found = text_of(full.verify())
    assert f"{FILTERS}: layer 2 (conv2): SHA-256 of the weight is" in found
    assert ("contains NaN or infinite weights" in found) == (not np.isfinite(value))


@pytest.mark.parametrize(
    ("path", "column", "row", "value", "message"),
    [
        (MODELS, "stored_filters", 0, 88, "87 stored filters, expected 88"),
        (MODELS, "conv_layers", 0, 6, "5 layers, expected 6"),
        (MODELS, "source", 0, "pypi", "are not those of custom/a"),
        (MODELS, "model_id", 0, B, f"whose file is {models_path(slug(B))}"),
        (MODELS, "files", 0, lambda files: [f | {"rows": 1} for f in files], "rows, expected 1"),
        (MODELS, "files", 0, lambda files: [f | {"bytes": 1} for f in files], "bytes, expected 1"),
        (MODELS, "files", 0, lambda files: files[1:], "is not in the list of files"),
        (MODELS, "files", 0, lambda files: [*files, files[0] | {"path": "../x"}], "../x: is missing"),
        (LAYERS, "filters", 0, 25, "88 stored filters, expected 87"),
        (LAYERS, "out_channels", 0, 4, "not in order of layer, out_channel, in_channel"),
        (LAYERS, "tensor_sha256", 0, "0" * 64, "expected 0000"),
        (LAYERS, "scaled_mean", 0, lambda mean: [mean[0] + 1e-8, *mean[1:]], "scaled_mean is not that of its filters"),
        (LAYERS, "scaled_scatter", 2, lambda scatter: scatter[:-1], "scaled_scatter is not that of its filters"),
        (LAYERS, "scaled_norm_max", 0, lambda norm: norm * 0.9, "scaled_norm_max is not that of its filters"),
        (LAYERS, "layer", 1, 7, "not numbered from 0"),
        (LAYERS, "model_id", 1, B, "layers of a model other than"),
        (LAYERS, "kernel_h", 1, 3, "kernel is not kernel_h x kernel_w"),
        (FILTERS, "model_id", 7, B, f"layer 0 (conv0) belongs to {B}"),
        (FILTERS, "layer", 7, 1, "not in order of layer"),
        (FILTERS, "in_channel", 47, 0, "layer 2 (conv2): its 24 filters are not in order"),
        (HISTOGRAMS, "filters", 0, 25, "its counts do not add up to its 25 filters"),
        (HISTOGRAMS, "counts", 1, lambda counts: [counts[0] + 1, *counts[1:]], "do not add up"),
        (HISTOGRAMS, "above", 1, [3] * 9, "do not add up"),
        (HISTOGRAMS, "below", 1, [0] * 8, "not 4 counts for each of 9 components"),
        (HISTOGRAMS, "layer", 2, 0, "are not the 3x3 layers of the model"),
        (HISTOGRAMS, "model_id", 1, B, "histograms of another model"),
    ],
)
def test_an_edited_value_is_found_though_all_hashes_of_files_agree(full, path, column, row, value, message):
    edit(full, path, put(column, row, value))
    if path in (LAYERS, FILTERS):
        reseal(full, path)
    found = full.verify([A])
    assert message in text_of(found)
    assert "\n" not in "".join(problem.message for problem in found)
    assert full.verify([B]) == []


def test_histograms_that_agree_with_themselves_but_not_with_the_layer_are_found(full):
    edit(full, HISTOGRAMS, put("filters", 0, 25))
    edit(full, HISTOGRAMS, put("above", 0, [3] * 9))
    assert "layer 0, recipe cvpr2022: 25 filters, the layer has 24" in text_of(full.verify())


def test_exchanged_files_are_found(full):
    one, other = full.path / FILTERS, full.path / filters_path("3x3", "custom", slug(B))
    spare = one.with_suffix(".spare")
    one.rename(spare)
    other.rename(one)
    spare.rename(other)
    reseal(full, FILTERS)
    found = text_of(full.verify())
    assert f"{one}: layer 0 (conv0) belongs to {B}" in found
    assert f"{other}: layer 0 (conv0) belongs to {A}" in found


def test_missing_files_are_found(full):
    for path in (FILTERS, LAYERS):
        (full.path / path).unlink()
        assert f"{path}: is missing" in text_of(full.verify())
    (full.path / basis_path("3x3-test")).unlink()
    assert f"{HISTOGRAMS}: no basis 3x3-test exists" in text_of(full.verify([B])).replace(slug(B), slug(A))


@pytest.mark.parametrize("damage", ["nothing", "text", "cut", "link"])
def test_a_damaged_basis_is_no_problem_of_the_models_that_are_counted_in_it(full, damage, tmp_path):
    path = full.path / basis_path("3x3-test")
    sound = path.read_bytes()
    path.unlink()
    if damage == "link":
        (tmp_path / "elsewhere").write_bytes(sound)
        path.symlink_to(tmp_path / "elsewhere")
    else:
        path.write_bytes({"nothing": b"", "text": b"PAR1 nothing PAR1", "cut": sound[:-9]}[damage])
    assert [problem.path for problem in full.verify()] == [path]


def test_a_file_that_is_no_parquet_is_found(full):
    for path in (FILTERS, LAYERS, HISTOGRAMS, MODELS):
        kept = (full.path / path).read_bytes()
        for content in (b"", b"PAR1 nothing PAR1", kept[:-9]):
            (full.path / path).write_bytes(content)
            assert f"{path}: cannot be read" in text_of(full.verify())
        (full.path / path).write_bytes(kept)
    assert full.verify() == []


def test_other_columns_are_found(full):
    edit(
        full,
        FILTERS,
        lambda table: table.rename_columns(["w9" if name == "w8" else name for name in table.column_names]),
    )
    assert "its columns are not those of the schema" in text_of(full.verify())


def test_files_that_belong_to_no_model_are_found_and_cleaned(full):
    strays = [
        layers_path("stray-0123456789"),
        filters_path("5x5", "pypi", "stray-0123456789"),
        histograms_path("3x3-test", "stray-0123456789"),
    ]
    for path in strays:
        (full.path / path).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(full.path / LAYERS, full.path / path)
    (full.path / MODELS).unlink()
    found = {problem.path.relative_to(full.path).as_posix() for problem in full.verify()}
    assert found >= {*strays, FILTERS, LAYERS, HISTOGRAMS}
    assert full.verify([B]) == []

    before = {path.relative_to(full.path) for path in full.path.rglob("*.parquet")}
    Store.create(full.path).recover()
    assert {path.relative_to(full.path) for path in full.path.rglob("*.parquet")} == before
    with pytest.warns(UserWarning, match="belong to no model"):
        moved = full.quarantine_strays()
    assert {path.split("/", 2)[2] for path in moved} == found
    assert all((full.path / path).exists() for path in moved)
    assert full.verify() == []
    assert full.model_ids() == [B]
    assert not any((full.path / path).exists() for path in strays)


def test_an_index_in_the_making_is_left_alone(full):
    hidden = full.path / "index" / ".3x3-new-x" / "histograms"
    hidden.mkdir(parents=True)
    for stem in (slug(A), "stray-0123456789"):
        shutil.copy(full.path / HISTOGRAMS, hidden / f"{stem}.parquet")
    assert full.verify() == []
    assert full.recover() == []


def test_a_file_of_another_source_is_found(full):
    target = full.path / filters_path("3x3", "pypi", slug(A))
    target.parent.mkdir(parents=True)
    (full.path / FILTERS).rename(target)
    found = text_of(full.verify())
    assert f"{FILTERS}: is missing" in found
    assert f"{target}: is not in the list of files" in found


def test_progress_and_unknown_models(full):
    calls = []
    full.verify(progress=lambda *args: calls.append(args))
    assert sorted(calls) == [(A, 1, 2), (B, 2, 2)]
    with pytest.raises(UnknownModelError, match="custom/c"):
        full.verify(["custom/c"])


def test_verification_reads_layers_across_batches_and_row_groups(store, monkeypatch):
    for module in ("scan.ordered", "store.verify"):
        monkeypatch.setattr(f"cnnfilterdb.{module}.PIECE", 7)
    monkeypatch.setattr("cnnfilterdb.store.writer.ROW_GROUP_ROWS", 10)
    rng = np.random.default_rng(0)
    with store.writer(A) as writer:
        for number, shape in enumerate([(1, 1, 3, 3), (5, 5, 3, 3), (1, 2, 3, 3), (40, 1, 3, 3)]):
            writer.add_layer({"layer_name": str(number), "dtype": "float32"}, rng.normal(size=shape).astype(np.float32))
        writer.commit({})
    assert store.verify() == []


def test_files_without_rows_follow_the_schema(full):
    path: Path = full.path / empty_filters_path("5x5")
    assert pq.read_schema(path).equals(filter_schema("5x5"))
    assert filter_settings("5x5")["column_encoding"].keys() == set(filter_schema("5x5").names[4:])
