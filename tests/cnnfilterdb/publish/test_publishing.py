"""From a database to the Hub and back: every client gives the same numbers."""

from __future__ import annotations

import json
import shutil
import traceback
from pathlib import Path

import duckdb
import numpy as np
import pandas as pd
import pytest
from huggingface_hub import HfFileSystem

import cnnfilterdb
from cnnfilterdb.core.errors import CorruptError, PublishError, RemoteError

TOKEN = "hf_secretsecret"
REPO = "owner/sample"
ADDRESS = f"hf://datasets/{REPO}"


@pytest.fixture
def db(sample_path, tmp_path):
    """A copy of the sample database, with a model that may not be published."""
    shutil.copytree(sample_path, tmp_path / "sample.db")
    with cnnfilterdb.open(tmp_path / "sample.db") as db:
        rng = np.random.default_rng(0)
        db.add({"a.weight": rng.normal(size=(4, 4, 3, 3)).astype(np.float32)}, "secret", domain="faces")
        yield db


@pytest.fixture
def published(hub, db, monkeypatch):
    monkeypatch.setenv("HF_ENDPOINT", hub.url)
    HfFileSystem.clear_instance_cache()
    yield db.publish(REPO, token=TOKEN)
    HfFileSystem.clear_instance_cache()


@pytest.fixture
def shift(sample):
    """What everybody should find: shifts between the models with a licence, which are all of the sample."""
    return sample.kl_shift("domain")


def opened(hub, address=f"{ADDRESS}@v1.0.0"):
    return cnnfilterdb.open(address, storage_options={"endpoint": hub.url, "token": TOKEN})


def test_publish_reports_what_it_did(published, state):
    assert (published.tag, published.manifest.models) == ("v1.0.0", 5)
    assert [left.model_id for left in published.manifest.left_out] == ["custom/secret"]
    paths, tags = state(REPO)
    assert tags == {"v1.0.0": published.commit}
    assert {"README.md", "MODELS.md", "CITATION.cff", "cnnfilterdb.json", "init.sql"} <= set(paths)


def test_the_same_shift_in_place_pulled_and_in_sql(hub, published, db, sample, shift, tmp_path):
    with opened(hub) as remote:
        assert remote.location == f"{ADDRESS}@v1.0.0"
        assert remote.verify() == []
        pd.testing.assert_frame_equal(remote.kl_shift("domain"), shift, check_exact=True)
        pd.testing.assert_frame_equal(remote.models(), sample.models())
        where = "domain = 'faces'"
        pd.testing.assert_frame_equal(remote.filters(where=where), sample.filters(where=where))
        long = remote.sql("SELECT group_a, group_b, shift FROM kl_shift(domain)").df()
        pivoted = long.pivot(index="group_a", columns="group_b", values="shift")
        np.testing.assert_allclose(pivoted, shift, rtol=1e-9, atol=1e-12)
    options = {"endpoint": hub.url, "token": TOKEN}
    report = cnnfilterdb.pull(f"{REPO}@v1.0.0", tmp_path / "pulled", storage_options=options)
    assert len(report.done) == 5
    with cnnfilterdb.open(tmp_path / "pulled") as pulled:
        assert pulled.verify() == []
        pd.testing.assert_frame_equal(pulled.kl_shift("domain"), shift, check_exact=True)


def test_a_release_on_the_hub_is_a_part(hub, published, db, shift, tmp_path, monkeypatch):
    monkeypatch.setenv("CNNFILTERDB_CACHE", str(tmp_path / "cache"))
    with opened(hub) as remote, cnnfilterdb.open([remote, db], duplicates="first") as both:
        assert both.models()["part"].value_counts().to_dict() == {"sample@v1.0.0": 5, "sample.db": 1}
        licensed = both.kl_shift("domain", where="name != 'secret'")
        pd.testing.assert_frame_equal(licensed, shift, check_exact=True)  # in the basis that both have
        assert both.sql("SELECT count(*) FROM filters_3x3").fetchall() == [(len(db.filters()),)]
        pd.testing.assert_frame_equal(both.filters(), db.filters(), check_exact=True)


def test_duckdb_runs_the_macros_of_the_repository(hub, published, shift):
    files = HfFileSystem(endpoint=hub.url, token=TOKEN)
    text = files.read_text(f"datasets/{REPO}@v1.0.0/init.sql")
    connection = duckdb.connect()
    connection.register_filesystem(files)
    connection.execute(text)
    found = connection.sql("SELECT group_a, group_b, shift FROM kl_shift(domain)").df()
    pivoted = found.pivot(index="group_a", columns="group_b", values="shift")
    np.testing.assert_allclose(pivoted, shift, rtol=1e-9, atol=1e-12)
    assert connection.sql("SELECT count(*) FROM filters_5x5").fetchall() == [(256,)]
    assert connection.sql("SELECT count(c8) FROM coefficients_3x3").fetchall() == [(3190,)]
    connection.close()


def from_filters(filters, models, notebook):
    """The papers' method over filters that some client has read."""
    joined = filters.merge(models[["model_id", "domain"]], on="model_id")
    columns = [f"w{i}" for i in range(9)]
    groups = {name: rows[columns].to_numpy(np.float32) for name, rows in joined.groupby("domain")}
    return notebook(groups, np.concatenate(list(groups.values())))


def test_pandas(hub, published, shift, notebook):
    options = {"endpoint": hub.url, "token": TOKEN}
    filters, models = (
        pd.read_parquet(f"{ADDRESS}@v1.0.0/{table}/00000.parquet", storage_options=options)
        for table in ("filters_3x3", "models")
    )
    assert filters.dtypes["w0"] == np.float32
    assert filters.dtypes["layer"] == np.int32
    np.testing.assert_allclose(from_filters(filters, models, notebook), shift, rtol=1e-9, atol=1e-11)


def test_polars(hub, published, shift, notebook):
    pl = pytest.importorskip("polars")
    web = f"{hub.url}/datasets/{REPO}/resolve/v1.0.0"
    options = {"token": TOKEN, "allow_http": "true"}
    filters, models = (
        pl.scan_parquet(f"{web}/{table}/00000.parquet", storage_options=options).collect()
        for table in ("filters_3x3", "models")
    )
    assert filters.schema["w0"] == pl.Float32
    assert models.schema["ingested_at"] == pl.Datetime("us", "UTC")
    assert models.schema["metrics"] == pl.List(pl.Struct({"key": pl.String, "value": pl.Float64}))
    found = from_filters(filters.to_pandas(), models.select("model_id", "domain").to_pandas(), notebook)
    np.testing.assert_allclose(found, shift, rtol=1e-9, atol=1e-11)


DATASETS = """
from datasets import load_dataset

found = {}
for name in ("filters_3x3", "models", "layers", "filters_5x5", "filters_7x7", "histograms", "bases", "fingerprints"):
    rows = load_dataset("owner/sample", name, split="train", streaming=True, revision="v1.0.0")
    found[name] = {"rows": sum(1 for _ in rows), "features": {k: repr(v) for k, v in rows.features.items()}}
default = load_dataset("owner/sample", split="train", revision="v1.0.0")
found["default"] = default["model_id"][:]
table = load_dataset("owner/sample", "filters_3x3", split="train", revision="v1.0.0").to_pandas()
table.to_parquet(args["target"])
print(json.dumps(found))
"""


@pytest.mark.thorough
def test_datasets(client, published, sample, shift, notebook, tmp_path):
    pytest.importorskip("datasets")
    found = client(DATASETS, target=str(tmp_path / "filters.parquet"))
    assert {name: table["rows"] for name, table in found.items() if name != "default"} == {
        file.table: file.rows for file in published.manifest.files
    }
    assert found["default"] == sample.models()["model_id"].tolist()
    assert found["filters_3x3"]["features"]["w8"] == "Value('float32')"
    assert found["models"]["features"]["ingested_at"] == "Value('timestamp[us, tz=UTC]')"
    assert found["layers"]["features"]["scaled_mean"] == "List(Value('float64'))"
    filters = pd.read_parquet(tmp_path / "filters.parquet")
    np.testing.assert_allclose(from_filters(filters, sample.models(), notebook), shift, rtol=1e-9, atol=1e-11)


def test_a_second_release_sends_what_is_new(hub, published, db, loopback):
    before = hub.received("PUT /lfs")
    rng = np.random.default_rng(5)
    weight = rng.normal(size=(32, 32, 7, 7)).astype(np.float32)
    db.add({"a.weight": weight}, "new", license="CC-BY-4.0", domain="art")
    second = db.publish(REPO, token=TOKEN)
    assert second.tag == "v1.1.0"
    sent = hub.received("PUT /lfs") - before
    untouched = [file.bytes for file in second.manifest.files if file.table in ("filters_3x3", "filters_5x5")]
    assert second.unchanged_files >= 2
    figure = 100_000  # at most; it is drawn anew
    assert figure < sum(untouched)
    assert weight.nbytes * 0.8 < sent < sum(file.bytes for file in second.manifest.files) - sum(untouched) + figure
    with opened(hub, f"{ADDRESS}@v1.1.0") as remote, opened(hub) as first:
        assert len(remote.models()) == 6
        assert len(first.models()) == 5
    assert [one.tag for one in cnnfilterdb.releases(REPO, token=TOKEN)] == ["v1.1.0", "v1.0.0"]


def test_without_a_version_the_newest_commit_is_read_and_stays(hub, published, db):
    with opened(hub, ADDRESS) as remote:
        assert remote.location == f"{ADDRESS}@{published.commit}"
        db.annotate("custom/face", domain="thermal")
        db.publish(REPO, token=TOKEN)
        assert "thermal" not in set(remote.models()["domain"])
    HfFileSystem.clear_instance_cache()
    with opened(hub, ADDRESS) as remote:
        assert "thermal" in set(remote.models()["domain"])


def test_metadata_move_kilobytes(hub, published):
    before = hub.sent("GET"), len(hub.asked("GET .*filters_3x3"))
    with opened(hub) as remote:
        remote.models()
        remote.models(where="domain = 'faces'")
    assert (
        hub.sent("GET") - before[0]
        < sum(file.bytes for file in published.manifest.files if "filters" not in file.path) + 65536
    )
    assert len(hub.asked("GET .*filters_3x3")) == before[1]


def test_what_cannot_be_reached(hub, published, monkeypatch):
    manifest = published.manifest.to_json().encode()
    hub.create("owner/private", private=True).push({"cnnfilterdb.json": manifest})
    hub.create("owner/gated", gated=True).push({"cnnfilterdb.json": manifest})
    hub.tokens["hf_other"] = type(hub.tokens[TOKEN])(user="other")
    hub.tokens["hf_old"] = type(hub.tokens[TOKEN])(expired=True)
    cases = [
        (f"{ADDRESS}@v9.9.9", TOKEN, "not found; check the address and the version"),
        ("hf://datasets/owner/nothing", TOKEN, "not found"),
        ("hf://datasets/owner/private", "hf_other", "not found|access is refused"),
        ("hf://datasets/owner/gated", "hf_other", "access is refused|is not there"),
        (ADDRESS, "hf_old", "token"),
    ]
    for address, token, message in cases:
        HfFileSystem.clear_instance_cache()
        with pytest.raises(RemoteError, match=message) as caught:
            cnnfilterdb.open(address, storage_options={"endpoint": hub.url, "token": token})
        assert "\n" not in str(caught.value)
        assert token not in "".join(traceback.format_exception(caught.value))


def test_a_server_that_fails_while_it_is_asked(hub, published):
    with opened(hub) as remote:
        remote.models()
        hub.fail("GET /datasets/.*filters_3x3", times=1000, status=404)
        for ask in (
            remote.filters,
            lambda: remote.nearest([[1, 0, -1]] * 3),
            lambda: remote.kl_shift("domain", bins=3),
            lambda: remote.sql("SELECT max(w0) FROM filters_3x3").df(),
            lambda: remote.sql("SELECT max(w0) FROM filters_3x3").fetchall(),
        ):
            with pytest.raises(RemoteError) as caught:
                ask()
            assert "\n" not in str(caught.value)


def test_a_damaged_database_is_not_published(hub, db, state):
    (path,) = (db.path / "filters" / "kernel=5x5").glob("*/custom-ct-a*")
    data = bytearray(path.read_bytes())
    data[500] ^= 1
    path.write_bytes(data)
    with pytest.raises(CorruptError, match="nothing was published"):
        db.publish(REPO, token=TOKEN, version="1.0.0")
    assert state(REPO) is None


def test_versions_are_three_numbers(db):
    with pytest.raises(PublishError, match=r"'1\.0' given; expected three numbers, such as 1\.0\.0"):
        db.publish(REPO, version="1.0", token=TOKEN)


# ------------------------------------------------------------------------------------------------------- command line


@pytest.fixture
def line(hub, run, tmp_path, monkeypatch):
    """Runs a command line with the loopback Hub."""
    monkeypatch.setenv("HF_ENDPOINT", hub.url)
    # What a process that is started with the variable has
    template = "huggingface_hub.constants.HUGGINGFACE_CO_URL_TEMPLATE"
    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", hub.url)
    monkeypatch.setattr(template, f"{hub.url}/{{repo_id}}/resolve/{{revision}}/{{filename}}")
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    monkeypatch.chdir(tmp_path)
    HfFileSystem.clear_instance_cache()

    def call(*arguments, status=0):
        found, out, err = run(*arguments)
        assert found == status, err
        assert TOKEN not in out + err
        return out if status == 0 else err

    yield call
    HfFileSystem.clear_instance_cache()


def test_the_verbs(hub, db, line, shift, tmp_path, monkeypatch):
    output = line("publish", REPO, "--db", db.path, "--dry-run", tmp_path / "release")
    assert f"{'filters_3x3':<16} {3190:>14,} rows      1 file" in output
    assert "left out: 1 model\n      1  no licence: " in output
    assert output.endswith(f"{tmp_path / 'release'}: release 1.0.0 of 5 models; nothing was uploaded\n")
    assert not hub.asked("")
    monkeypatch.chdir(tmp_path / "release")  # where `duckdb -init init.sql` reads the files beside it, not the Hub's
    with duckdb.connect() as connection:
        connection.execute(Path("init.sql").read_text(encoding="utf-8"))
        assert connection.sql("SELECT count(*) FROM filters_3x3").fetchall() == [(3190,)]
        assert connection.sql("SELECT count(*) FROM kl_shift(domain)").fetchall() == [(len(shift) ** 2,)]
    monkeypatch.chdir(tmp_path)
    (tmp_path / "cnnfilterdb.json").write_text("{}")  # another release is not taken for this one
    with duckdb.connect() as connection:
        connection.execute((tmp_path / "release/init.sql").read_text(encoding="utf-8").split("\n\n")[0])
        assert connection.sql("SELECT getvariable('cnnfilterdb_path')").fetchall() == [(f"{ADDRESS}@v1.0.0",)]
    assert f"published v1.0.0: {hub.url}/datasets/{REPO}/tree/v1.0.0" in line("publish", REPO, "--db", db.path)
    assert line("releases", REPO, "--format", "csv").splitlines()[1].startswith("v1.0.0,")
    output = line("pull", f"{REPO}@v1.0.0", "--db", tmp_path / "pulled", "--where", "domain = 'natural'")
    assert output == "2 done, 0 skipped, 0 duplicates, 0 conflicts, 0 failed\n"
    found = json.loads(line("sql", "FROM models", "--db", f"{ADDRESS}@v1.0.0", "--format", "json"))
    assert len(found) == 5
    assert line("shift", "domain", "--db", f"{ADDRESS}@v1.0.0") == line("shift", "domain", "--db", tmp_path / "release")
    output = line("merge", tmp_path / "release", "--db", tmp_path / "pulled")
    assert output == "3 done, 2 skipped, 0 duplicates, 0 conflicts, 0 failed\n"
    assert "all counts and hashes are correct" in line("verify", "--db", tmp_path / "pulled")
    assert "256 filters of 1 model" in line("export", "x.npz", "--kernel", "5x5", "--db", f"{ADDRESS}@v1.0.0")
    output = line("index", "--db", f"{ADDRESS}@v1.0.0", status=1)
    assert output == (f"error: {ADDRESS}@v1.0.0: a release, which can only be read; pull copies it into a folder\n")
