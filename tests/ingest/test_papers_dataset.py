"""The papers' released dataset: small files in each of its layouts, made by what made the real ones."""

from __future__ import annotations

import os
import pickle
import signal
import subprocess
import sys
import tracemalloc
import warnings
from dataclasses import dataclass

import h5py
import numpy as np
import pandas as pd
import pytest

import cnnfilterdb
from cnnfilterdb.cli import main
from cnnfilterdb.core.errors import (
    BadWeightsError,
    CnnFilterDbError,
    MissingExtraError,
    UnsafeFileError,
    WeightFileError,
)
from cnnfilterdb.core.reports import Observer
from cnnfilterdb.ingest.papers_dataset import ReleasedDataset, overrides

pytest.importorskip("tables")

SAGITTAL = "compnet_weights_sagittal_improvement_09_NITRC_IITmean_b0_256_12"


@dataclass
class Model:
    """A model of the small files."""

    id: int
    name: str
    task: str | None
    domain: str | None
    dataset: str | None
    layers: tuple[tuple[int, int, int], ...]  # depth, output channels, input channels per group


# What is in the real files too: kinds of segmentation, missing text, several data sets in one cell, parallel layers at
# one depth, gaps between the ids, a layer of a single kernel, a depthwise one, a name that two models share.
MODELS = (
    Model(0, "unet_11", "Segmentation (binary)", "medical ct", "ltrc,covid", ((0, 8, 3), (1, 8, 8), (1, 4, 8))),
    Model(1, SAGITTAL, "Segmentation", "medical ct", "oasis", ((0, 16, 1), (2, 16, 16))),
    Model(4, "resnet18_imagenet1k_12", "Classification", "natural", "imagenet1k", ((0, 16, 3), (1, 20, 16), (2, 1, 1))),
    Model(5, "mobilenet_11", "Classification", "natural", "imagenet1k", ((0, 32, 1), (1, 16, 2))),
    Model(9, "twin_11", "Super Resolution", "textures", None, ((0, 12, 12),)),
    Model(10, "twin_11", None, None, None, ((0, 6, 3), (1, 6, 6))),
)


def table():
    """The metadata of the models, one row per layer."""
    rows, start = [], 0
    for model in MODELS:
        last = max(depth for depth, _, _ in model.layers)
        for number, (depth, outs, ins) in enumerate(model.layers):
            rows.append(
                {
                    "model_id": model.id,
                    "conv_depth": depth,
                    "conv_depth_norm": depth / last if last else np.nan,
                    "layer_id": number,
                    "filter_ids": f"{start}:{start + outs * ins - 1}",
                    "model": model.name,
                    "producer": "pytorch 1.11" if model.id else "keras2onnx 1.7.0",
                    "op_set": 11,
                    "depth": 5 * last,
                    "Name": model.name.rpartition("_")[0],
                    "Paper": "https://arxiv.org/abs/1505.04597" if model.id == 0 else None,
                    "Pretraining-Dataset": None,
                    "Training-Dataset": model.dataset,
                    "Visual Category": model.domain,
                    "Task": model.task,
                    "Accessible": "https://example.org/model",
                    "Conv": 9.0,
                    "ConvTranspose": 2.0 if model.id == 0 else np.nan,
                    "(1, 1) filters": 64.0,
                    "(3, 3) filters": float(sum(outs * ins for _, outs, ins in model.layers)),
                    "(7, 7) filters": 192.0 if model.id == 4 else np.nan,
                }
            )
            start += outs * ins
    return pd.DataFrame(rows), start


def kernels(rows, filters):
    """Kernels that single precision can hold, as those of real networks; each model mixes them in its own way."""
    rng = np.random.default_rng(0)
    values = np.empty((filters, 9), np.float32)
    for _, row in rows.iterrows():
        first, last = map(int, row.filter_ids.split(":"))
        mixing = np.eye(9) + 0.4 * np.random.default_rng(row.model_id).normal(size=(9, 9))
        values[first : last + 1] = rng.normal(size=(last - first + 1, 9)) @ mixing * rng.uniform(0.01, 2)
    values[5] = 0  # a kernel of zeros
    first, last = map(int, rows.filter_ids.iloc[2].split(":"))
    values[first : last + 1] = 0  # a layer of zeros
    return values


def to_hdf(frame, path, **options):
    """Append a frame to a file, its text in one block of Python objects, as the pandas of that time stored it."""
    text = [column for column in frame if pd.api.types.is_string_dtype(frame[column])]
    cells = frame[text].astype(object).to_numpy()
    frame = pd.concat(
        [pd.DataFrame(cells, frame.index, text, dtype=object), frame[[c for c in frame if c not in text]]], axis=1
    )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", pd.errors.PerformanceWarning)
        frame.to_hdf(path, key="meta", **options)


def make_v1_0_0(path):
    rows, filters = table()
    with h5py.File(path, "w") as file:
        file["filters"] = kernels(rows, filters).astype(np.float64).reshape(-1, 3, 3)
    to_hdf(rows.drop(columns="layer_id").set_index(["model_id", "conv_depth", "conv_depth_norm"]), path)
    return path


def make_robustness(path):
    rows, filters = table()
    with h5py.File(path, "w") as file:
        file["filters"] = kernels(rows, filters).astype(np.float64).reshape(-1, 3, 3)
    channels = [(outs, ins) for model in MODELS for _, outs, ins in model.layers]
    rows["out_channels"], rows["in_channels"] = np.array(channels).T
    # This text has booleans in it, and a model that its authors' table does not know has none
    robust = [None if model.id == 10 else model.id < 5 for model in MODELS for _ in model.layers]
    rows["Robust"] = pd.Series(robust, dtype=object)
    rows["Pretraining-Dataset"] = pd.Series([False] * len(rows), dtype=object)
    rows["Clean Accuracy"] = [None if flag is None else 90.5 for flag in robust]
    rows["Robust Accuracy"] = [None if flag is None else 50.0 * flag for flag in robust]
    rows["Backbone"] = "WideResNet-28-10"
    index = ["model_id", "conv_depth", "conv_depth_norm", "layer_id"]
    # Grouping by the index has sorted the rows by depth, which is not the order of the kernels
    to_hdf(rows.set_index(index).iloc[::-1], path)
    pd.DataFrame({"entropy": [0.9]}).to_hdf(path, key="meta_pca")
    return path


def make_v0_1_0(path):
    rows, filters = table()
    csv = rows.drop(columns="layer_id").rename(columns={"Visual Category": "Datatype"})
    csv["Datatype"] = csv["Datatype"].replace("textures", "formula")
    with h5py.File(path, "w") as file:
        file["filters"] = kernels(rows, filters)
        file["meta"] = np.frombuffer(csv.to_csv(index=False).encode(), np.uint8)
    return path


LAYOUTS = {"released-v1.0.0": make_v1_0_0, "released-v0.1.0": make_v0_1_0, "released-robustness": make_robustness}


@pytest.fixture(scope="module", params=LAYOUTS)
def source(request):
    return request.param


@pytest.fixture(scope="module")
def path(source, tmp_path_factory):
    return LAYOUTS[source](tmp_path_factory.mktemp("released") / "dataset.h5")


@pytest.fixture(scope="module")
def imported(path, tmp_path_factory):
    """A database with all models of the file, indexed. Do not write to it."""
    db = cnnfilterdb.create(tmp_path_factory.mktemp("databases") / "released.db")
    report = db.import_released(path)
    assert not report.failed
    db.index()
    yield db
    db.close()


def names():
    return [model.name if model.name != "twin_11" else f"twin_11.{model.id}" for model in MODELS]


def test_every_kernel_arrives_in_order(imported, path, source):
    assert imported.models()["model_id"].tolist() == sorted(f"{source}/{name}" for name in names())
    rows, filters = table()
    with h5py.File(path) as file:
        expected = file["filters"][...].reshape(-1, 9)
    layers = imported.layers().set_index(["model_id", "layer_name"])
    assert len(layers) == len(rows)
    name = {model.id: f"{source}/{name}" for model, name in zip(MODELS, names(), strict=True)}
    for _, row in rows.iterrows():
        first, last = map(int, row.filter_ids.split(":"))
        layer = layers.loc[(name[row.model_id], row.filter_ids)]
        assert layer.filters == last - first + 1
        assert layer.conv_depth == row.conv_depth
        assert layer.conv_depth_norm == pytest.approx(row.conv_depth_norm, nan_ok=True)
        assert layer.depth_source == "graph"
        found = imported.filters(where=f"model_id = '{name[row.model_id]}' AND layer = {layer.layer}")
        assert (found[[f"w{i}" for i in range(9)]].to_numpy() == expected[first : last + 1]).all()
    assert imported.models()["stored_filters"].sum() == filters
    assert imported.verify() == []


def test_channels_are_those_of_the_file_or_unknown(imported, source):
    layers = imported.layers(where="name LIKE 'mobilenet%'")
    keys = imported.filters(where="name LIKE 'mobilenet%' AND layer = 1")[["out_channel", "in_channel"]].to_numpy()
    assert layers["kind"].isna().all()
    if source == "released-robustness":
        assert layers["out_channels"].tolist() == [32, 16]
        assert keys.tolist() == [[out, in_] for out in range(16) for in_ in range(2)]
        assert layers["orthogonality"].notna().all()
    else:
        assert layers["out_channels"].isna().all()
        assert keys.tolist() == [[0, number] for number in range(32)]
        assert layers["orthogonality"].isna().all()
    assert layers["sparsity"].notna().all()


def test_what_the_file_states_stays_readable_beside_what_the_catalog_corrects(imported, source):
    column = "Datatype" if source == "released-v0.1.0" else "Visual Category"
    query = f"SELECT name, task, domain, training_dataset, original['Task'], original['{column}'] FROM models"
    found = {name: rest for name, *rest in imported.sql(query).fetchall()}
    assert found["unet_11"] == ["Segmentation", "medical ct", "ltrc,covid", "Segmentation (binary)", "medical ct"]
    assert found[SAGITTAL][:3] == ["Segmentation", "medical mri", "nitrc_iitmean_b0/sagittal"]
    assert found[SAGITTAL][4] == "medical ct"
    assert found["twin_11.9"][:2] == ["Super Resolution", "fractals" if source == "released-v0.1.0" else "textures"]
    assert found["twin_11.9"][4] == ("formula" if source == "released-v0.1.0" else "textures")
    assert found["twin_11.10"] == [None] * 5


def test_facts_of_models(imported, source):
    models = imported.models().set_index("name")
    robustness = source == "released-robustness"
    assert models["framework"].to_dict()["unet_11"] == "keras"
    assert models["framework"].to_dict()[SAGITTAL] == "pytorch"
    assert set(models["file_format"]) == {"hdf5"}
    assert models["pretraining_dataset"].isna().all()
    assert models["paper"].notna().sum() == 1
    original = dict(models["original"]["resnet18_imagenet1k_12"])
    assert original["model_id"] == "4"
    assert original["Conv"] == "9"
    assert original["Accessible"] == "https://example.org/model"
    assert "ConvTranspose" not in original
    assert "filter_ids" not in original
    skipped = list(models["skipped"]["resnet18_imagenet1k_12"])
    assert [line.partition(":")[0] for line in skipped] == ["(1, 1) filters", "(7, 7) filters"]
    assert original.get("Robust") == ("True" if robustness else None)
    assert models["architecture"].notna().all() == robustness
    metrics = models["metrics"]["mobilenet_11"]
    assert (dict(metrics) if robustness else metrics) == (
        {"clean_accuracy": 90.5, "robust_accuracy": 0.0} if robustness else None
    )


@pytest.mark.parametrize("recipe", ["cvpr2022", "medneurips2022"])
@pytest.mark.parametrize("group", ["Visual Category", "Task"])
def test_shifts_are_those_of_the_notebook_straight_from_the_file(imported, path, source, notebook, group, recipe):
    """Pandas reads the table, h5py the kernels; `filter_ids` are unfolded and grouped as the notebooks do."""
    with h5py.File(path) as file:
        filters = file["filters"][...].reshape(-1, 9).astype(np.float32)
        csv = bytes(file["meta"][...]) if source == "released-v0.1.0" else None
    meta = pd.read_hdf(path, "meta") if csv is None else pd.read_csv(pd.io.common.BytesIO(csv))
    meta = meta.rename(columns={"Datatype": "Visual Category"}).replace("formula", "fractals")
    meta["Task"] = [
        "Segmentation" if isinstance(task, str) and "Segmentation" in task else task for task in meta["Task"]
    ]
    meta.loc[meta.model == SAGITTAL, "Visual Category"] = "medical mri"
    ids = meta["filter_ids"].apply(lambda text: np.arange(int(text.split(":")[0]), 1 + int(text.split(":")[1])))
    groups = {label: filters[np.hstack(list(found))] for label, found in ids.groupby(meta[group])}
    found = imported.kl_shift({"Visual Category": "domain", "Task": "task"}[group], recipe=recipe)
    assert found.index.tolist() == list(groups)
    np.testing.assert_allclose(found.to_numpy(), notebook(groups, filters, recipe), rtol=1e-6, atol=1e-9)
    assert found.to_numpy().max() > 0.1


def test_a_second_run_finishes_what_a_killed_one_began(path, source, tmp_path):
    db = tmp_path / "a.db"
    killed = """
import os, signal, sys
import cnnfilterdb
from cnnfilterdb.core.reports import Observer

class Killer(Observer):
    def finished(self, model_id, outcome):
        print(model_id, outcome, flush=True)
        if model_id.endswith("_12"):
            os.kill(os.getpid(), signal.SIGKILL)

cnnfilterdb.create(sys.argv[2]).import_released(sys.argv[1], observer=Killer())
"""
    run = subprocess.run([sys.executable, "-P", "-c", killed, path, db], capture_output=True, text=True)
    assert run.returncode == -signal.SIGKILL
    reported = run.stdout.split("\n")[:-1]
    assert reported[0] == f"{source}/unet_11 done"
    received = []

    class Recorder(Observer):
        def finished(self, model_id, outcome):
            received.append((model_id, outcome))

    with cnnfilterdb.create(db) as opened:
        there = set(opened.models()["model_id"])
        assert {line.split()[0] for line in reported} <= there
        report = opened.import_released(path, observer=Recorder())
        # Opening changes nothing: a commit that the killed run had decided is finished by the next writer.
        assert there <= set(report.skipped)
        assert set(report.done) == {f"{source}/{name}" for name in names()} - set(report.skipped)
        assert sorted(received) == sorted(
            [(model_id, "skipped") for model_id in report.skipped] + [(model_id, "done") for model_id in report.done]
        )
        assert opened.verify() == []
        assert not list((db / ".staging").glob("*"))
        again = opened.import_released(path, overwrite=True)
        assert len(again.done) == len(MODELS)
        assert opened.verify() == []


def test_models_that_come_to_an_index_are_projected_on_it(path, tmp_path, tensors):
    with cnnfilterdb.create(tmp_path / "a.db") as db:
        db.add(tensors["photo-b"], "own", domain="natural")
        (basis, *_) = db.index()
        db.import_released(path)
        assert db.index() == []
        assert set(db.kl_shift("source").index) == set(db.models()["source"])
        assert db.bases()[0].basis_id == basis.basis_id


def test_command_line(path, source, tmp_path, monkeypatch, capsys):
    db = tmp_path / "a.db"
    for expected in ("6 done, 0 skipped, 0 failed\n", "0 done, 6 skipped, 0 failed\n"):
        monkeypatch.setattr("sys.argv", ["cnnfilterdb", "import", str(path), "--db", str(db)])
        main()
        assert capsys.readouterr().out == expected
    monkeypatch.setattr("sys.argv", ["cnnfilterdb", "import", str(tmp_path / "no.h5"), "--db", str(db)])
    with pytest.raises(SystemExit) as exit_:
        main()
    assert exit_.value.code == 1
    assert capsys.readouterr().err == f"error: {tmp_path / 'no.h5'}: not a file; expected the papers' dataset.h5\n"


# ------------------------------------------------------------------------------------------------------------- damage


def write(path, filters, rows, **columns):
    """A file in the layout of v0.1.0, which takes any table."""
    frame = pd.DataFrame(rows, columns=["model_id", "conv_depth", "conv_depth_norm", "filter_ids", "model"])
    with h5py.File(path, "w") as file:
        if filters is not None:
            file["filters"] = filters
        if rows is not None:
            file["meta"] = np.frombuffer(frame.assign(**columns).to_csv(index=False).encode(), np.uint8)
    return path


ROWS = [(0, 0, 0.0, "0:3", "a"), (0, 1, 1.0, "4:9", "a"), (1, 0, 0.0, "10:11", "b")]
TWELVE = np.ones((12, 9), np.float32)


def changed(row, column, value):
    rows = [list(values) for values in ROWS]
    rows[row][column] = value
    return rows


@pytest.mark.parametrize(
    ("filters", "rows", "message"),
    [
        (TWELVE, ROWS[:2], r"rows 10 to 11 of /filters belong to no layer \(after 4:9, at the end\)"),
        (TWELVE, ROWS[1:], r"rows 0 to 3 of /filters belong to no layer \(before 4:9\)"),
        (TWELVE, changed(1, 3, "6:9"), r"rows 4 to 5 of /filters belong to no layer \(after 0:3, before 6:9\)"),
        (TWELVE, changed(1, 3, "3:9"), "0:3 and 3:9 overlap"),
        (TWELVE, changed(1, 3, "0:9"), "0:3 and 0:9 overlap"),
        (TWELVE, changed(0, 3, "0:9"), "0:9 and 4:9 overlap"),
        (TWELVE, changed(2, 3, "10:12"), "10:12 reaches beyond the 12 rows of /filters"),
        (TWELVE[:11], ROWS, "10:11 reaches beyond the 11 rows of /filters"),
        (TWELVE, changed(1, 3, "9:4"), "row 1 of /meta has filter_ids '9:4', expected first:last"),
        (TWELVE, changed(1, 3, "4-9"), "row 1 of /meta has filter_ids '4-9', expected first:last"),
        (TWELVE, changed(1, 3, None), "row 1 of /meta has filter_ids nan, expected first:last"),
        (TWELVE, changed(1, 3, "-4:9"), "row 1 of /meta has filter_ids '-4:9'"),
        (TWELVE, changed(1, 0, 0.5), "row 1 of /meta has model_id 0.5, expected a whole number"),
        (TWELVE, changed(1, 0, None), "row 1 of /meta has model_id nan, expected a whole number"),
        (TWELVE, changed(2, 1, "deep"), "row 2 of /meta has conv_depth deep, expected a whole number"),
        (TWELVE, changed(1, 4, "c"), "model_id 0 of /meta has the names 'a', 'c', expected one"),
        (TWELVE, changed(2, 4, None), "model_id 1 of /meta has the names '', expected one"),
        (TWELVE, [], "/meta has no rows"),
        (TWELVE, None, "no table /meta"),
        (None, ROWS, "no array /filters, found /meta"),
        (TWELVE.astype(np.float16), ROWS, r"/filters is float16 \(12, 9\), expected float64 or float32"),
        (TWELVE.astype(int), ROWS, r"/filters is int64 \(12, 9\)"),
        (np.ones((12, 5, 5)), ROWS, r"/filters is float64 \(12, 5, 5\), .* of \(N, 3, 3\) or \(N, 9\)"),
        (np.ones(12), ROWS, r"/filters is float64 \(12,\)"),
    ],
)
def test_a_file_that_does_not_add_up_is_refused_before_anything_is_written(tmp_path, filters, rows, message):
    path = write(tmp_path / "dataset.h5", filters, rows)
    with cnnfilterdb.create(tmp_path / "a.db") as db:
        with pytest.raises(WeightFileError, match=message) as error:
            db.import_released(path)
        assert str(error.value).startswith(f"{path}: ")
        assert "\n" not in str(error.value)
        assert db.models().empty


@pytest.mark.parametrize("column", ["model_id", "conv_depth", "conv_depth_norm", "filter_ids", "model"])
def test_a_missing_column_is_named(tmp_path, column):
    path = make_v0_1_0(tmp_path / "dataset.h5")
    rows = pd.DataFrame(ROWS, columns=["model_id", "conv_depth", "conv_depth_norm", "filter_ids", "model"])
    with h5py.File(path, "r+") as file:
        del file["meta"]
        file["meta"] = np.frombuffer(rows.drop(columns=column).to_csv(index=False).encode(), np.uint8)
    with pytest.raises(WeightFileError, match=f"/meta has no {column} among its 4 columns"):
        ReleasedDataset(path)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "the file is empty"),
        (b"<!DOCTYPE html><html>Not found</html>", "an HTML page"),
        (b"\xfd7zXZ\x00\x00", "is compressed; unpack it first: xz -dk dataset.h5"),
        (b"PK\x03\x04", "is compressed; unpack it first: unzip dataset.h5"),
        (b"version https://git-lfs.github.com/spec/v1", "a Git LFS pointer"),
        (b"something else", "not a readable HDF5 file"),
        (None, "not a readable HDF5 file .*truncated"),
    ],
)
def test_other_files_are_reported(tmp_path, content, message):
    path = tmp_path / "dataset.h5"
    if content is None:
        make_v1_0_0(path)
        content = path.read_bytes()[: path.stat().st_size // 2]
    path.write_bytes(content)
    with pytest.raises(WeightFileError, match=message):
        ReleasedDataset(path)


def test_csv_that_is_none(tmp_path):
    path = write(tmp_path / "dataset.h5", TWELVE, ROWS)
    for damage in (b"\xff\xfe\xfa", b'a,b\n"c,d\ne'):
        with h5py.File(path, "r+") as file:
            del file["meta"]
            file["meta"] = np.frombuffer(damage, np.uint8)
        with pytest.raises(CnnFilterDbError, match=r"/meta is not CSV text|/meta has no model_id"):
            ReleasedDataset(path)


@pytest.mark.parametrize("value", [np.nan, np.inf, 1e300])
def test_one_bad_model_stops_no_other(tmp_path, value):
    filters = np.ones((12, 3, 3))
    filters[7, 1, 1] = value
    path = write(tmp_path / "dataset.h5", filters, ROWS)
    with cnnfilterdb.create(tmp_path / "a.db") as db:
        report = db.import_released(path)
        assert report.done == {"released-v0.1.0/b": 2}
        (failure,) = report.failed
        assert isinstance(failure.error, BadWeightsError)
        assert failure.reason.startswith(f"{path}: a: layer 4:9 has 1 NaN or infinite weights of 54")
        assert db.verify() == []


def test_channels_that_contradict_the_kernels_are_not_used(tmp_path):
    path = write(tmp_path / "dataset.h5", TWELVE, ROWS, out_channels=[2, 3, 2], in_channels=[2, 3, np.nan])
    with ReleasedDataset(path) as dataset:
        layers = [layer for name in dataset.names() for layer in dataset.weights(name).layers]
    assert [(layer.shape, layer.channels) for layer in layers] == [
        ((2, 2, 3, 3), True),
        ((1, 6, 3, 3), False),
        ((1, 2, 3, 3), False),
    ]


# -------------------------------------------------------------------------------------------------------------- trust


class Hostile:
    def __init__(self, canary):
        self.canary = canary

    def __reduce__(self):
        return os.system, (f"touch {self.canary}",)


@pytest.mark.parametrize("trust", [False, True])
def test_a_table_that_wants_to_run_code_is_refused_whoever_is_trusted(tmp_path, trust):
    path, canary = make_v1_0_0(tmp_path / "dataset.h5"), tmp_path / "canary"
    with h5py.File(path, "r+") as file:
        (name,) = [name for name in file["meta"] if file["meta"][name].attrs.get("CLASS") == b"VLARRAY"]
        cells = pickle.loads(file["meta"][name][0].tobytes())
        cells[0, 0] = Hostile(canary)
        file["meta"][name][0] = np.frombuffer(pickle.dumps(cells), np.uint8)
    with cnnfilterdb.create(tmp_path / "a.db") as db:
        with pytest.raises(UnsafeFileError, match=r"system to be called.*nothing was executed"):
            db.import_released(path, trust=trust)
        assert db.models().empty
    assert not canary.exists()


@pytest.fixture
def unreadable(tmp_path):
    """A file whose table only pandas can read: its format is another one."""
    path = tmp_path / "dataset.h5"
    rows, filters = table()
    with h5py.File(path, "w") as file:
        file["filters"] = kernels(rows, filters).astype(np.float64).reshape(-1, 3, 3)
    rows = rows.drop(columns="layer_id").fillna({"conv_depth_norm": 0.0})
    text = rows.columns[[pd.api.types.is_string_dtype(rows[column]) for column in rows]]
    rows[text] = rows[text].fillna("").astype(object)
    index = ["model_id", "conv_depth", "conv_depth_norm"]
    rows.drop(columns=["Pretraining-Dataset"]).set_index(index).to_hdf(path, key="meta", format="table")
    return path


def test_what_cannot_be_read_safely_needs_trust(unreadable, tmp_path, monkeypatch, capsys):
    db = tmp_path / "a.db"
    monkeypatch.setattr("sys.argv", ["cnnfilterdb", "import", str(unreadable), "--db", str(db)])
    with pytest.raises(SystemExit):
        main()
    error = capsys.readouterr().err
    assert "--trust" in error
    assert "pip install 'cnnfilterdb[hdf5]'" in error
    assert error.count("\n") == 1
    monkeypatch.setattr("sys.argv", [*sys.argv, "--trust"])
    main()
    assert capsys.readouterr().out == "6 done, 0 skipped, 0 failed\n"
    with cnnfilterdb.create(db) as opened:
        assert opened.models().set_index("name")["task"]["unet_11"] == "Segmentation"
        assert opened.verify() == []


def test_trust_names_the_extra_that_it_needs(unreadable, monkeypatch):
    monkeypatch.setitem(sys.modules, "tables", None)
    with pytest.raises(MissingExtraError, match=r"pip install 'cnnfilterdb\[hdf5\]'"):
        ReleasedDataset(unreadable, trust=True)


# ------------------------------------------------------------------------------------------------------------- others


@pytest.mark.parametrize(
    ("filters", "levels", "url"),
    [
        (1_464_797_156, [], "https://doi.org/10.5281/zenodo.6371680"),
        (1_008_168_592, ["layer_id"], "https://doi.org/10.5281/zenodo.6414075"),
        (1_464_797_155, [], None),
    ],
)
def test_the_published_files_are_known_by_their_size(tmp_path, filters, levels, url):
    path = tmp_path / "dataset.h5"
    with h5py.File(path, "w") as file:
        file.create_dataset("filters", (filters, 3, 3), np.float64)  # takes no space until it is written
    index = ["model_id", "conv_depth", "conv_depth_norm", *levels]
    row = dict.fromkeys(index, 0) | {"filter_ids": f"0:{filters - 1}", "model": "all"}
    to_hdf(pd.DataFrame([row]).set_index(index), path)
    with ReleasedDataset(path) as dataset:
        facts = dataset.describe("all")
    assert facts.url == url
    assert facts.license == (None if url is None else "CC-BY-SA-4.0")
    assert facts.revision == ("v1.0.0" if url and not levels else None)


def test_reading_a_layer_takes_little_more_than_its_weights(tmp_path):
    filters = 2_000_000
    path = write(tmp_path / "dataset.h5", None, [(0, 0, 0.0, f"0:{filters - 1}", "a")])
    with h5py.File(path, "r+") as file:
        file.create_dataset("filters", (filters, 3, 3), np.float64)
    with ReleasedDataset(path) as dataset:
        (layer,) = dataset.weights("a").layers
        tracemalloc.start()
        try:
            weight = layer.read()
            _, peak = tracemalloc.get_traced_memory()
        finally:
            tracemalloc.stop()
    assert weight.nbytes == 72_000_000
    assert peak < 1.1 * weight.nbytes


def test_corrections_of_the_catalog_name_a_column_and_a_reason():
    assert len(overrides()) > 10
    for override in overrides():
        assert override.reason
        assert override.column in {"task", "domain", "training_dataset", "pretraining_dataset", "paper"}


# ------------------------------------------------------------------------------------------------------- other files


def external(file, secret):
    del file["filters"]
    file.create_dataset("filters", (12, 9), np.float32, external=[(str(secret), 0, h5py.h5f.UNLIMITED)])


def linked(file, secret):
    del file["filters"]
    file["filters"] = h5py.ExternalLink(str(secret), "/filters")


def soft(file, secret):
    file["elsewhere"] = h5py.SoftLink("/filters")


def virtual(file, secret):
    del file["filters"]
    layout = h5py.VirtualLayout((12, 9), np.float32)
    layout[:] = h5py.VirtualSource(str(secret), "filters", (12, 9))
    file.create_virtual_dataset("filters", layout)


@pytest.mark.parametrize("escape", [external, linked, soft, virtual])
def test_no_other_file_is_read(tmp_path, escape):
    secret = tmp_path / "secret.h5"
    with h5py.File(secret, "w") as file:
        file["filters"] = np.ones((12, 9), np.float32)
    path = write(tmp_path / "dataset.h5", TWELVE, ROWS)
    with h5py.File(path, "a") as file:
        escape(file, secret)
    with pytest.raises(WeightFileError, match="refused") as caught:
        ReleasedDataset(path)
    assert str(path) in str(caught.value)


def test_a_layer_of_impossible_size_fails_its_model(tmp_path):
    filters = (1 << 26) + 2
    rows = [(0, 0, 0.0, "0:0", "small"), (1, 0, 0.0, f"1:{filters - 1}", "large")]
    path = write(tmp_path / "dataset.h5", np.zeros((1, 9), np.float32), rows)
    with h5py.File(path, "a") as file:  # kernels that were never written take no space
        del file["filters"]
        file.create_dataset("filters", (filters, 9), np.float32, chunks=(1 << 12, 9))
    with ReleasedDataset(path) as dataset:
        (layer,) = dataset.weights("large").layers
        with pytest.raises(WeightFileError, match=r"a layer of 67,108,865 kernels .*expected at most 67,108,864"):
            layer.read()
        assert dataset.weights("small").layers[0].read().shape == (1, 1, 3, 3)
