"""A selection as one file: what is written is read back by programs that know nothing of this package."""

from __future__ import annotations

import gzip
import shutil
import subprocess
import sys
import textwrap
from pathlib import Path

import fsspec
import h5py
import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.feather
import pyarrow.parquet as pq
import pytest
from scipy.stats import entropy
from sklearn.decomposition import PCA

import cnnfilterdb
from cnnfilterdb.core.errors import CorruptError, DatabaseError, MissingExtraError, RemoteError, SelectionError
from cnnfilterdb.core.reports import Exported
from cnnfilterdb.exchange import export as export_module
from cnnfilterdb.exchange.export import FACTS, FORMATS, export
from cnnfilterdb.stats import Moments

pytest.importorskip("tables")
pl = pytest.importorskip("polars")
torch = pytest.importorskip("torch")

KEYS = ["model_id", "layer", "out_channel", "in_channel"]
WEIGHTS = [f"w{i}" for i in range(9)]
UNICODE = 'Größe "模型", 1'
QUOTED = 'it\'s, a "test"\nof 画像'
TEXT = [name for name in FACTS if name not in ("in_channels", "out_channels", "groups", "conv_depth", "dead")]
TEXT = [name for name in TEXT if name not in ("conv_depth_norm", "bn_folded")]


def make_release(path: Path) -> Path:
    """A small file of the released kind, which does not state the channels. One of its models is a namesake."""
    rows = [
        (3, 0, 0.0, "0:199", "ct-a", "medical ct", "Segmentation (binary)", "pytorch 1.7", 12, 5.0),
        (3, 4, 1.0, "200:259", "ct-a", "medical ct", "Segmentation (binary)", "pytorch 1.7", 12, 5.0),
        (8, 0, 0.0, "260:299", "alone", None, None, None, 11, None),
    ]
    names = ["model_id", "conv_depth", "conv_depth_norm", "filter_ids", "model", "Datatype", "Task", "producer"]
    csv = pd.DataFrame(rows, columns=[*names, "op_set", "Relu"]).to_csv(index=False)
    with h5py.File(path, "w") as file:
        file["filters"] = np.random.default_rng(7).normal(size=(300, 9)).astype(np.float32)
        file["meta"] = np.frombuffer(csv.encode(), np.uint8)
    return path


def add_dead(db) -> None:
    """A model with a layer that is never run."""
    with db._store.writer("custom/pruned") as writer:
        for number, dead in enumerate((False, True)):
            weight = np.random.default_rng(number).normal(size=(6, 5, 3, 3)).astype(np.float32)
            moments = Moments.of(weight.reshape(-1, 9))
            row = {"layer_name": f"conv{number}", "dtype": "float32", "kind": "conv", "dead": dead, "in_channels": 5}
            writer.add_layer(row | {"scaled_mean": moments.mean, "scaled_scatter": moments.packed()}, weight)
        writer.commit({"domain": "natural"})


@pytest.fixture(scope="module")
def mixed_path(sample_path, tmp_path_factory):
    """The sample with whatever an export may meet. Do not write to it."""
    folder = tmp_path_factory.mktemp("mixed")
    path = shutil.copytree(sample_path, folder / "mixed.db")
    torch.manual_seed(0)
    layers = [torch.nn.Conv2d(3, 8, 3), torch.nn.ConvTranspose2d(8, 6, 3), torch.nn.Conv2d(6, 6, 3, groups=6)]
    with cnnfilterdb.create(path) as db:
        db.add(torch.nn.Sequential(*layers), UNICODE, domain="thermal", architecture=QUOTED)
        add_dead(db)
        assert not db.import_released(make_release(folder / "dataset.h5")).failed
        db.annotate("custom/face", domain="Gesichter", task=None, new_words=True)
        db.index(refit=True)
    return path


@pytest.fixture
def mixed(mixed_path):
    with cnnfilterdb.open(mixed_path) as db:
        yield db


def expected_rows(db, where=None, kernel="3x3") -> pd.DataFrame:
    """Keys, weights and facts, joined by pandas from what the database gives."""
    models = db.models().set_index("model_id")
    layers = db.layers().set_index(["model_id", "layer"])
    filters = db.filters(where=where, kernel=kernel)
    rows = filters.join(models[[name for name in FACTS if name in models]], on="model_id")
    return rows.join(layers[[name for name in FACTS if name in layers]], on=["model_id", "layer"])[
        [*filters.columns, *FACTS]
    ]


def same(found: pd.DataFrame, expected: pd.DataFrame) -> None:
    """The same cells; types of missing values differ from reader to reader."""
    assert list(found) == list(expected)
    for name in expected:
        one, other = found[name].astype(object), expected[name].astype(object)
        missing = other.isna().to_numpy()
        assert (one.isna().to_numpy() == missing).all(), name
        assert (one[~missing].to_numpy() == other[~missing].to_numpy()).all(), name


def by_pandas_csv(path):
    frame = pd.read_csv(path, dtype=dict.fromkeys(TEXT, object))
    frame[WEIGHTS] = frame[WEIGHTS].astype(np.float32)
    return frame


def by_polars_csv(path):
    return pl.read_csv(path, schema_overrides=dict.fromkeys(WEIGHTS, pl.Float32), infer_schema_length=None).to_pandas()


READERS = {
    "parquet by pandas": ("a.parquet", pd.read_parquet),
    "parquet by pyarrow": ("a.parquet", lambda path: pq.read_table(path).to_pandas()),
    "parquet by polars": ("a.parquet", lambda path: pl.read_parquet(path).to_pandas()),
    "parquet by duckdb": ("a.parquet", lambda path: __import__("duckdb").read_parquet(str(path)).df()),
    "feather by pandas": ("a.feather", pd.read_feather),
    "arrow by pyarrow": ("a.arrow", lambda path: pa.feather.read_table(path).to_pandas()),
    "arrow by polars": ("a.arrow", lambda path: pl.read_ipc(path).to_pandas()),
    "csv by pandas": ("a.csv", by_pandas_csv),
    "csv by polars": ("a.csv", by_polars_csv),
    "compressed csv by pandas": ("a.csv.gz", by_pandas_csv),
}


@pytest.mark.parametrize("reader", READERS)
def test_flat_files_hold_keys_weights_and_facts(mixed, tmp_path, reader):
    name, read = READERS[reader]
    received = []
    done = export(mixed, tmp_path / name, progress=lambda *stated: received.append(stated))
    expected = expected_rows(mixed)
    assert set(expected["domain"].dropna()) >= {"Gesichter", "thermal", "medical ct"}
    assert UNICODE in expected["model_id"].str.removeprefix("custom/").tolist()
    assert {True, False} < set(expected["dead"].astype(object))
    assert expected["out_channels"].isna().sum() == 300
    same(read(tmp_path / name), expected)
    kind = {"feather": "arrow", "compressed": "csv"}.get(reader.split()[0], reader.split()[0])
    size = (tmp_path / name).stat().st_size
    assert done == Exported(tmp_path / name, kind, len(expected), expected["model_id"].nunique(), size)
    assert received[0] == ("exporting", 0, len(expected))
    assert received[-1] == ("exporting", len(expected), len(expected))
    assert len(received) == 2
    assert [path.name for path in tmp_path.iterdir()] == [name]


@pytest.mark.parametrize("kernel", ["3x3", "5x5"])
def test_files_that_are_written_in_many_parts(mixed, tmp_path, monkeypatch, kernel):
    expected = expected_rows(mixed, kernel=kernel)
    monkeypatch.setattr(export_module, "row_group_rows", lambda kernel: 50)
    received = []
    readers = {"a.parquet": pd.read_parquet, "a.arrow": pd.read_feather}
    for name, read in readers.items():
        export(mixed, tmp_path / name, kernel=kernel, progress=lambda *stated: received.append(stated))
        same(read(tmp_path / name), expected)
    assert len(received) > len(expected) / 100 * len(readers)


def test_text_is_dictionary_encoded_and_columns_are_described(mixed, tmp_path):
    for name, read in {"a.parquet": pq.read_table, "a.arrow": pa.feather.read_table}.items():
        export(mixed, tmp_path / name)
        schema = read(tmp_path / name).schema
        assert [field.name for field in schema] == [*KEYS, *WEIGHTS, *FACTS]
        text = pa.dictionary(pa.int32(), pa.string())
        for column in ("model_id", *TEXT):
            assert schema.field(column).type == text
        assert {schema.field(column).type for column in WEIGHTS} == {pa.float32()}
        assert schema.field("conv_depth").type == pa.int32()
        assert schema.field("conv_depth_norm").type == pa.float64()
        assert schema.field("domain").metadata[b"description"].startswith(b"image domain")
        assert schema.metadata[b"kernel"] == b"3x3"
    assert not pd.read_csv(export(mixed, tmp_path / "a.csv").path, nrows=1).empty
    with gzip.open(export(mixed, tmp_path / "b.csv.gz").path) as file:
        assert file.read() == (tmp_path / "a.csv").read_bytes()


@pytest.mark.parametrize(("kernel", "rows"), [("3x3", 131_072), ("3x3", 100), ("5x5", 50), ("7x7", 131_072)])
def test_arrays(mixed, tmp_path, monkeypatch, kernel, rows):
    monkeypatch.setattr(export_module, "row_group_rows", lambda kernel: rows)
    export(mixed, tmp_path / "a.npz", kernel=kernel)
    expected = expected_rows(mixed, kernel=kernel)
    height, width = map(int, kernel.split("x"))
    with np.load(tmp_path / "a.npz", allow_pickle=False) as data:
        arrays = dict(data)
    weights = expected[[f"w{i}" for i in range(height * width)]].to_numpy()
    assert arrays["filters"].dtype == np.float32
    assert (arrays["filters"] == weights.reshape(-1, height, width)).all()
    assert (arrays["model_ids"][arrays["model"]] == expected["model_id"]).all()
    for key in KEYS[1:]:
        assert arrays[key].dtype == np.int32
        assert (arrays[key] == expected[key]).all()
    unknown = {"conv_depth_norm": np.nan} | dict.fromkeys(TEXT, "")
    for name in FACTS:
        found = arrays[f"layers_{name}"][arrays["layer_row"]]
        wanted = expected[name].astype(object)
        missing = wanted.isna().to_numpy()
        assert (found[~missing] == wanted[~missing]).all()
        if name == "conv_depth_norm":
            assert np.isnan(found[missing]).all()
        else:
            assert (found[missing] == unknown.get(name, -1)).all()
    starts = arrays["layers_first"]
    assert (np.repeat(np.arange(len(starts)), arrays["layers_filters"]) == arrays["layer_row"]).all()
    assert (starts == np.flatnonzero(np.diff(arrays["layer_row"], prepend=-1))).all()
    assert (arrays["layers_model_id"][arrays["layer_row"]] == expected["model_id"]).all()


def test_another_kernel_size_and_a_condition(mixed, tmp_path):
    where = "domain = 'medical ct' AND conv_depth_norm IS NULL OR name = 'ct-a' AND source = 'custom'"
    for kernel, filters in {"3x3": 16 * 3 + 32 * 16 + 260 - 260, "5x5": 8 * 32}.items():
        done = export(mixed, tmp_path / "a.parquet", where="name = 'ct-a' AND source = 'custom'", kernel=kernel)
        found = pd.read_parquet(done.path)
        assert (done.filters, done.models) == (filters, 1)
        same(found, expected_rows(mixed, "name = 'ct-a' AND source = 'custom'", kernel))
    done = export(mixed, tmp_path / "b.parquet", where=where)
    same(pd.read_parquet(done.path), expected_rows(mixed, where))
    # Layers that are not neighbours, read together
    where = "layer_name IN ('enc', 'c')"
    done = export(mixed, tmp_path / "c.parquet", where=where)
    found = pd.read_parquet(done.path)
    same(found, expected_rows(mixed, where))
    assert set(found["layer_name"]) == {"enc", "c"}


def test_a_format_can_be_named(sample, tmp_path):
    for to in FORMATS:
        done = export(sample, tmp_path / "selection.dat", to=to)
        assert done.format == to
        before = done.path.read_bytes()
        again = export(sample, done.path, to=to).path.read_bytes()
        assert again == before or to == "h5"  # in which pandas notes the time
    for name, kind in {"A.PARQUET": "parquet", "a.v1.csv.GZ": "csv", "x.hdf5": "h5", "y.feather": "arrow"}.items():
        assert export(sample, tmp_path / name).format == kind
    assert gzip.decompress((tmp_path / "a.v1.csv.GZ").read_bytes()).startswith(b'"model_id","layer"')


def test_a_release_is_exported_like_the_database_that_it_was_made_of(sample, release_path, tmp_path):
    memory = fsspec.filesystem("memory")
    memory.put(f"{release_path}/", "/exported/", recursive=True)
    try:
        with cnnfilterdb.open("memory:///exported") as release:
            for to in ("parquet", "arrow", "csv", "npz"):
                ours, theirs = (
                    export(db, tmp_path / str(number), to=to) for number, db in enumerate((sample, release))
                )
                assert ours.path.read_bytes() == theirs.path.read_bytes()
                ours.path.unlink()
                theirs.path.unlink()
            paths = [export(db, tmp_path / f"{number}.h5").path for number, db in enumerate((sample, release))]
            pd.testing.assert_frame_equal(*(pd.read_hdf(path, "meta") for path in paths))
            with h5py.File(paths[0]) as ours, h5py.File(paths[1]) as theirs:
                assert (ours["filters"][...] == theirs["filters"][...]).all()
            for path in paths:
                path.unlink()
        memory.rm("/exported/filters_3x3", recursive=True)
        with cnnfilterdb.open("memory:///exported") as release:
            with pytest.raises(RemoteError, match=r"^memory:///exported/filters_3x3/") as error:
                export(release, tmp_path / "a.npz")
            assert "\n" not in str(error.value)
        assert list(tmp_path.iterdir()) == []
    finally:
        memory.rm("/exported", recursive=True)


# -------------------------------------------------------------------------------------------------- the released layout


def notebook(path: Path, column: str, half: bool = False) -> pd.DataFrame:
    """The steps of the CVPR notebook, as it reads ``dataset.h5``: frame, filters, scaling, PCA, histograms, KL."""
    df_meta = pd.read_hdf(path, "meta")
    with h5py.File(path, "r") as file:
        X = file["filters"][...].reshape(-1, 9).astype(np.float16 if half else np.float32)
    peak = np.abs(X).max(axis=1)
    peak[peak == 0] = 1
    X = X / peak[:, None]
    pca = PCA(n_components=9)
    dX = pca.fit_transform(X.astype(np.float64))
    dX_n_range = (dX.min(), dX.max())
    task = df_meta["Task"].astype(object)
    df_meta.loc[task.str.contains("Segmentation", na=False).to_numpy(), "Task"] = "Segmentation"

    def rows_of(filter_ids: pd.Series) -> np.ndarray:
        bounds = [map(int, ids.split(":")) for ids in filter_ids]
        return np.concatenate([np.arange(first, last + 1) for first, last in bounds])

    distributions = {}
    for group, layers in df_meta.groupby(column):
        own = dX[rows_of(layers["filter_ids"])]
        densities = []
        for component in range(9):
            density, _ = np.histogram(own[:, component], bins=70, range=dX_n_range, density=True)
            density[density == 0] = np.finfo(np.float32).eps
            densities.append(density / density.sum())
        distributions[group] = densities
    return pd.DataFrame(
        {
            a: {
                b: sum(
                    weight * (entropy(p, q) + entropy(q, p))
                    for weight, p, q in zip(pca.explained_variance_ratio_, of_a, of_b, strict=True)
                )
                for b, of_b in distributions.items()
            }
            for a, of_a in distributions.items()
        }
    )


def test_the_notebook_finds_the_same_shifts(mixed, tmp_path):
    path = export(mixed, tmp_path / "dataset.h5").path
    for column, by in {"Visual Category": "domain", "Task": "task"}.items():
        found, ours = notebook(path, column), mixed.kl_shift(by=by)
        assert list(found) == list(ours) == list(found.index)
        assert len(ours) >= 3
        np.testing.assert_allclose(found.to_numpy(), ours.to_numpy(), rtol=1e-10, atol=1e-10)
    # It rounds weights to half precision before anything else
    rounded = notebook(path, "Visual Category", half=True)
    np.testing.assert_allclose(rounded.to_numpy(), mixed.kl_shift(by="domain").to_numpy(), atol=0.15)


def test_the_released_layout(mixed, tmp_path):
    done = export(mixed, tmp_path / "dataset.h5")
    frame = pd.read_hdf(done.path, "meta")
    assert frame.index.names == ["model_id", "conv_depth", "conv_depth_norm"]
    numbers = frame.index.get_level_values("model_id")
    assert numbers.dtype == np.int64
    assert numbers.unique().tolist() == list(range(done.models))
    known = frame.columns.tolist()
    assert known[:6] == ["filter_ids", "model", "producer", "op_set", "depth", "Name"]
    for column in ("Paper", "Pretraining-Dataset", "Training-Dataset", "Accessible", "Dataset URL", "total_filters"):
        assert column in known
    ends = [tuple(map(int, ids.split(":"))) for ids in frame["filter_ids"]]
    assert [first for first, _ in ends] == [0, *(last + 1 for _, last in ends[:-1])]
    assert ends[-1][1] + 1 == done.filters
    with h5py.File(done.path) as file:
        kernels = file["filters"]
        assert (kernels.shape, kernels.dtype, kernels.chunks) == ((done.filters, 3, 3), np.float64, None)
        weights = kernels[...].reshape(-1, 9)
        # Text in one block of Python objects, which pandas of the time of the release reads too
        blocks = [file[f"meta/block{number}_values"].attrs["CLASS"] for number in range(2)]
        assert sorted(blocks) == [b"ARRAY", b"VLARRAY"]
    papers = "kind IS DISTINCT FROM 'transposed' AND dead IS NOT TRUE"
    expected = mixed.filters(where=papers)
    assert len(expected) == len(mixed.filters()) - 8 * 6 - 6 * 5
    assert (weights == expected[WEIGHTS].to_numpy()).all()
    frame = frame.set_index("filter_ids", append=True).reset_index().set_index("model")
    own = frame.loc["ct-a"].set_index("source").loc["custom"]
    assert own["Visual Category"].tolist() == ["medical ct"] * 2
    assert own["(5, 5) filters"].tolist() == [256] * 2
    assert own["total_filters"].tolist() == [48 + 512 + 256] * 2
    assert own["3x3_filter_share"].tolist() == [560 / 816] * 2
    assert own[["in_channels", "out_channels"]].to_numpy().tolist() == [[3, 16], [16, 32]]
    assert own["op_set"].isna().all()
    assert own["license"].tolist() == ["MIT", "MIT"]
    assert frame.loc["photo-a", "(1, 1) filters"] == 16 * 64
    assert frame.loc["photo-a", "total_filters"] == 16 * 3 + 64 * 16
    assert frame.loc["face", "Visual Category"].tolist() == ["Gesichter"] * 2
    assert frame.loc["face", "Task"].isna().all()
    assert frame.loc[UNICODE, "architecture"].tolist() == [QUOTED] * 2
    # What the release said, with the corrections of the catalog
    old = frame.loc["ct-a"].set_index("source").loc["released-v0.1.0"]
    assert (
        old[["op_set", "Relu", "producer", "Task"]].to_numpy().tolist() == [[12, 5, "pytorch 1.7", "Segmentation"]] * 2
    )
    assert old["conv_depth"].tolist() == [0, 4]
    assert old["out_channels"].isna().all()
    assert "Datatype" not in frame
    assert np.isnan(frame.loc["alone", "Relu"])


def test_what_is_exported_can_be_imported_again(mixed, tmp_path):
    path = export(mixed, tmp_path / "dataset.h5").path
    with cnnfilterdb.create(tmp_path / "again.db") as again:
        report = again.import_released(path)
        assert not report.failed
        assert again.verify() == []
        papers = "kind IS DISTINCT FROM 'transposed' AND dead IS NOT TRUE"
        before, after = mixed.layers(where=f"kernel = '3x3' AND {papers}"), again.layers()
        assert sorted(before["tensor_sha256"]) == sorted(after["tensor_sha256"])
        assert sorted(before["out_channels"].fillna(0)) == sorted(after["out_channels"].fillna(0))
        ours, theirs = (dict(iter(db.filters(where=papers).groupby("model_id"))) for db in (mixed, again))
        names = [model_id.partition("/")[2] for model_id in ours]
        for number, (name, filters) in enumerate(zip(names, ours.values(), strict=True)):
            key = f"released-v1.0.0/{name}" if names.count(name) == 1 else f"released-v1.0.0/{name}.{number}"
            assert (theirs[key][WEIGHTS].to_numpy() == filters[WEIGHTS].to_numpy()).all()
            assert (theirs[key]["in_channel"].to_numpy() == filters["in_channel"].to_numpy()).all()
        assert len(ours) == len(theirs)
        models = again.models().set_index("name")
        assert models.loc["face", "domain"] == "Gesichter"
        assert models.loc["photo-b", "task"] == "Denoising"
        ours, theirs = mixed.kl_shift(by="domain"), again.kl_shift(by="domain")
        pd.testing.assert_frame_equal(ours, theirs, check_exact=False, rtol=1e-9)


def test_models_of_the_release_keep_their_numbers(mixed, tmp_path):
    path = export(mixed, tmp_path / "dataset.h5", where="source LIKE 'released-%'").path
    frame = pd.read_hdf(path, "meta")
    assert frame.index.tolist() == [(8, 0, 0.0), (3, 0, 0.0), (3, 4, 1.0)]
    assert frame["filter_ids"].tolist() == ["0:39", "40:239", "240:299"]
    assert frame["op_set"].tolist() == [11, 12, 12]
    assert frame["op_set"].dtype == np.int64


def test_h5_needs_3x3_kernels_and_pytables(sample, tmp_path, monkeypatch):
    with pytest.raises(SelectionError, match=r"released data, which have 3x3 kernels, not 5x5.*npz"):
        export(sample, tmp_path / "a.h5", kernel="5x5")
    monkeypatch.setitem(sys.modules, "tables", None)
    with pytest.raises(MissingExtraError, match=r"pip install 'cnnfilterdb\[hdf5\]'"):
        export(sample, tmp_path / "a.h5")
    assert list(tmp_path.iterdir()) == []


# ------------------------------------------------------------------------------------------------------------- failures


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("a.txt", {}, r"a.txt: its extension does not select a format; use one of .parquet, .*, or give the format"),
        ("a.csv", {"to": "xlsx"}, "format: 'xlsx' is not one of parquet, arrow, csv, npz, h5"),
        ("a.csv", {"where": "domain = 'x-ray'"}, "no 3x3 filters where domain = 'x-ray' in .*sample.db; "),
        ("a.csv", {"where": "domian = 'x'"}, 'Referenced column "domian" not found'),
        ("a.csv", {"where": "domain ="}, "syntax error"),
        ("a.csv", {"where": "CAST(name AS INTEGER) = 1"}, "Could not convert string"),
        ("a.csv", {"kernel": "9x9"}, "no 9x9 filters in .*sample.db; there are: 3x3, 5x5, 7x7"),
        ("a.csv", {"kernel": "1x1"}, "no 1x1 filters in .*sample.db; there are: 3x3, 5x5, 7x7"),
        ("a.csv", {"kernel": "three"}, "not a kernel size: 'three'; expected height x width"),
        ("a.csv", {"kernel": "5x5", "where": "domain = 'faces'"}, "no 5x5 filters where domain = 'faces'"),
    ],
)
def test_what_cannot_be_answered_is_reported_in_one_line(sample, tmp_path, name, options, message):
    with pytest.raises(SelectionError, match=message) as error:
        export(sample, tmp_path / name, **options)
    assert "\n" not in str(error.value)
    assert list(tmp_path.iterdir()) == []


def test_only_what_the_papers_leave_out_is_selected(mixed, tmp_path):
    with pytest.raises(
        SelectionError, match="no 3x3 filters where dead in layers that are neither transposed nor dead"
    ):
        export(mixed, tmp_path / "a.h5", where="dead")
    assert export(mixed, tmp_path / "a.csv", where="dead").filters == 30


@pytest.mark.parametrize("to", FORMATS)
def test_a_place_that_cannot_be_written(sample, tmp_path, to):
    with pytest.raises(DatabaseError, match=r"none/a: cannot be written: No such file or directory; check the folder"):
        export(sample, tmp_path / "none" / "a", to=to)
    with pytest.raises(DatabaseError, match="is a folder; expected the name of a file"):
        export(sample, tmp_path, to=to)
    (tmp_path / "file").write_text("")
    with pytest.raises(DatabaseError, match="cannot be written: Not a directory"):
        export(sample, tmp_path / "file" / "a", to=to)
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


@pytest.mark.parametrize("to", FORMATS)
def test_what_is_cut_off_leaves_what_was_there(sample, tmp_path, monkeypatch, to):
    target = tmp_path / "a"
    target.write_text("before")
    monkeypatch.setattr(export_module, "row_group_rows", lambda kernel: 200)

    def stop(what, done, total):
        if done > total / 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        export(sample, target, to=to, progress=stop)
    assert [path.name for path in tmp_path.iterdir()] == ["a"]
    assert target.read_text() == "before"
    assert export(sample, target, to=to).bytes == target.stat().st_size > 1000


def test_filters_that_are_not_those_of_the_layers_table(mixed_path, tmp_path):
    path = shutil.copytree(mixed_path, tmp_path / "a.db")
    with cnnfilterdb.create(path) as db:
        (row,) = db.sql("SELECT files FROM models WHERE model_id = 'custom/photo-b'").fetchall()
        (file,) = [path / entry["path"] for entry in row[0] if entry["path"].startswith("filters")]
        table = pq.read_table(file)
        count = len(table)

        def with_column(name, values):
            place = table.schema.get_field_index(name)
            return table.set_column(place, table.schema.field(place), pa.array(values, table.schema.types[place]))

        for damaged, found in (
            (table.slice(1), count - 1),
            (table.slice(0, count - 1), count - 1),
            (pa.concat_tables([table, table.slice(1)]), 2 * count - 1),
            (table.slice(0, 0), 0),
            (with_column("out_channel", np.zeros(count, np.int32)), count),
            (with_column("layer", np.ones(count, np.int32)), count),
            (with_column("model_id", ["custom/other"] * count), count),
        ):
            pq.write_table(damaged, file)
            for where in (None, "model_id <= 'custom/photo-b'"):  # there are others after it, or none
                message = (
                    "3x3 filters of custom/photo-b do not match the layers table, "
                    f"{count:,} were expected and {found:,} found; "
                )
                with pytest.raises(CorruptError, match=message) as error:
                    export(db, tmp_path / "a.npz", where=where)
                assert "\n" not in str(error.value)
        file.write_bytes(b"PAR1 and no more")
        with pytest.raises(DatabaseError, match=r"3x3 filters of .*cannot be read \(") as error:
            export(db, tmp_path / "a.npz")
        assert "\n" not in str(error.value)
    assert [path.name for path in tmp_path.iterdir()] == ["a.db"]


def run_script(script: str, *args: object) -> str:
    command = [sys.executable, "-P", "-c", textwrap.dedent(script), *map(str, args)]
    done = subprocess.run(command, text=True, capture_output=True, timeout=600, check=True)
    assert done.stderr == ""
    return done.stdout


@pytest.mark.skipif(sys.platform == "win32", reason="no limits on file sizes")
def test_a_real_limit_on_the_size_of_files(mixed_path, tmp_path):
    script = """
        import resource, signal, sys
        from pathlib import Path
        import cnnfilterdb
        from cnnfilterdb.core.errors import DatabaseError
        from cnnfilterdb.exchange.export import FORMATS, export

        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        db, target = cnnfilterdb.open(sys.argv[1]), Path(sys.argv[2])
        # Reached at once, within the filters, and, where a file has that, within the table that follows them
        for limit in (10, 100_000, 500_000):
            resource.setrlimit(resource.RLIMIT_FSIZE, (limit, resource.RLIM_INFINITY))
            for to in FORMATS:
                try:
                    assert export(db, target, to=to).bytes < limit
                    target.unlink()
                except DatabaseError as error:
                    print(to, limit, error)
    """
    stated = run_script(script, mixed_path, tmp_path / "a").splitlines()
    reached = [(to, 10) for to in FORMATS] + [(to, 100_000) for to in FORMATS] + [("csv", 500_000), ("h5", 500_000)]
    problem = f"{tmp_path / 'a'}: cannot be written: File too large; check the folder and its permissions"
    assert stated == [f"{to} {limit} {problem}" for to, limit in reached]
    assert list(tmp_path.iterdir()) == []


MEMORY = """
    import re, sys
    from pathlib import Path
    import cnnfilterdb
    from cnnfilterdb.exchange.export import export

    db = cnnfilterdb.open(sys.argv[1])
    export(db, Path(sys.argv[2]), where=f"layer < {sys.argv[3]}")
    # Not ru_maxrss, which a process inherits from the one that started it.
    print(re.search(r"VmHWM:\\s+(\\d+)", Path("/proc/self/status").read_text())[1])
"""


@pytest.mark.thorough
@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_memory_does_not_grow_with_the_number_of_filters(tmp_path):
    rng = np.random.default_rng(0)
    with cnnfilterdb.create(tmp_path / "large.db") as db, db._store.writer("custom/large") as writer:
        for number in range(16):
            weight = rng.standard_normal((512, 512, 3, 3), np.float32)
            writer.add_layer({"layer_name": f"conv{number}", "dtype": "float32"}, weight)
        writer.commit({})
    target = tmp_path / "a.parquet"
    few, many = (int(run_script(MEMORY, tmp_path / "large.db", target, layers)) / 1e3 for layers in (2, 16))
    assert target.stat().st_size > 130e6
    assert many - few < 100


def test_a_spreadsheet_runs_no_cell(tmp_path):
    weight = np.random.default_rng(0).normal(size=(2, 2, 3, 3)).astype(np.float32)
    with cnnfilterdb.create(tmp_path / "db") as db:
        db.add(
            {"@SUM(A1).weight": weight},
            "m",
            architecture="=1+cmd|' /C calc'!A0",
            family="+1",
            license="a-b",
            new_words=True,
        )
        db.export(tmp_path / "x.csv")
        db.export(tmp_path / "x.parquet")
    frame = pd.read_csv(tmp_path / "x.csv")
    assert set(frame["architecture"]) == {"'=1+cmd|' /C calc'!A0"}
    assert set(frame["family"]) == {"'+1"}
    assert set(frame["license"]) == {"a-b"}
    assert frame["layer_name"].str.startswith("'@SUM").all()
    np.testing.assert_array_equal(frame["w0"].astype(np.float32), weight[..., 0, 0].ravel())  # negative numbers stay
    assert set(pd.read_parquet(tmp_path / "x.parquet")["family"]) == {"+1"}
