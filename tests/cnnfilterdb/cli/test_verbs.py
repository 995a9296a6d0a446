"""The command line as a person types it: what it prints and how it exits."""

import errno
import hashlib
import io
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pyarrow.parquet as pq
import pytest
import torch

import cnnfilterdb
from cnnfilterdb import ModelFacts
from cnnfilterdb.cli import cli
from cnnfilterdb.ingest import sources
from cnnfilterdb.ingest.fetch.cache import Cache


def test_every_verb_has_help_and_the_readme_names_it(run):
    from importlib.metadata import metadata

    readme = metadata("cnnfilterdb").get_payload() or metadata("cnnfilterdb")["Description"]
    for verb in cli.commands:
        status, out, _ = run(verb, "--help")
        assert status == 0
        assert "Usage" in out
        assert f"cnnfilterdb {verb}" in readme, f"{verb} is not in the README"


def test_add_models_layers_remove(run, checkpoint, tmp_path):
    db = tmp_path / "my.db"
    assert run("add", checkpoint, "--name", "mine", "--domain", "thermal", "--db", db) == (
        0,
        "custom/mine: 1 of 1 convolution weight, 24 filters; kernels in 1 of 1 tensor, 216 of 216 numbers (100.0%)\n",
        "",
    )
    status, out, _ = run("models", "--db", db)
    assert status == 0
    assert "custom/mine" in out
    assert "thermal" in out
    status, out, _ = run("layers", "--db", db, "--format", "csv")
    assert pd.read_csv(io.StringIO(out))["filters"].tolist() == [24]
    status, _, err = run("add", checkpoint, "--name", "mine", "--db", db)
    assert status == 1
    assert err.startswith("error: custom/mine is in")
    assert err.count("\n") == 1
    assert run("remove", "custom/m*", "--db", db) == (0, "removed 1 model; 0 left\n", "")
    status, _, err = run("remove", "custom/mine", "--db", db)
    assert status == 1
    assert "no model 'custom/mine'" in err


@pytest.mark.parametrize(
    ("repeated", "says"),
    [
        (["custom/ct-b", "custom/face"], "removed 2 models; 3 left\n"),
        (["custom/face"], "removed 1 model; 3 left\n"),
        (["custom/ct*", "*/face"], "removed 3 models; 2 left\n"),
        (["custom/*"], "removed 5 models; 0 left\n"),
    ],
)
def test_a_killed_removal_is_finished_by_the_same_command(run, sample_path, tmp_path, monkeypatch, repeated, says):
    path = shutil.copytree(sample_path, tmp_path / "copy.db")

    def killed(folder):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr("cnnfilterdb.store.folder.discard_removed", killed)
        assert run("remove", "custom/ct-b", "custom/face", "--db", path)[0] == 130
    assert run("remove", *repeated, "--db", path) == (0, says, "")
    assert not list(path.glob(".staging/removal-*"))
    assert run("remove", *repeated, "--db", path)[0] == 1


def test_what_is_left_out_of_a_file_is_listed(run, tmp_path):
    arrays = {"conv.weight": (8, 3, 3, 3), "conv.bias": (8,), "cube.weight": (8, 3, 3, 3, 3)}
    arrays |= {f"bank{number}": (4, 4, 3, 3) for number in range(12)}
    rng = np.random.default_rng(0)
    torch.save(
        {name: torch.from_numpy(rng.standard_normal(shape).astype("f4")) for name, shape in arrays.items()},
        tmp_path / "a.pt",
    )
    left_out = 648 + 12 * 144
    numbers = 216 + 8 + left_out
    read = (
        f"1 of 14 convolution weights, 24 filters; kernels in 1 of 15 tensors, 216 of {numbers:,} numbers "
        f"({216 / numbers:.1%}); the rest: 13 excluded ({left_out:,}), 1 vector (8)"
    )
    for line in (["add", tmp_path / "a.pt", "--name", "a"], ["ingest", "files", tmp_path, "--allow-untrained"]):
        status, out, _ = run(*line, "--db", tmp_path / "my.db")
        lines = out.splitlines()
        assert (status, lines[0].partition(": ")[2]) == (0, read)
        assert sum(line.startswith("left out: bank") for line in lines) == 9
        assert "left out: cube.weight: five dimensions, as in a three-dimensional convolution" in lines
        assert "left out: 3 more; " in out
    assert "left out" not in run("ingest", "files", tmp_path, "--overwrite", "--allow-untrained", "--quiet",
                                 "--db", tmp_path / "my.db")[1]  # fmt: skip


def test_a_folder_that_is_a_model_is_read(run, tmp_path):
    config = {"name": "c", "filters": 8, "kernel_size": [3, 3], "strides": [1, 1], "padding": "same", "groups": 1,
              "data_format": "channels_last", "dilation_rate": [1, 1], "use_bias": False}  # fmt: skip
    layers = [{"class_name": "Conv2D", "config": config}]
    graph = {"class_name": "Sequential", "config": {"name": "s", "layers": layers}}
    entry = {"name": "c/kernel", "shape": [3, 3, 3, 8], "dtype": "float32"}
    manifest = [{"paths": ["group1-shard1of1.bin"], "weights": [entry]}]
    folder = tmp_path / "web"
    folder.mkdir()
    kernel = np.random.default_rng(0).standard_normal((3, 3, 3, 8)).astype("<f4")
    (folder / "group1-shard1of1.bin").write_bytes(kernel.tobytes())
    (folder / "model.json").write_text(
        json.dumps({"modelTopology": {"model_config": graph}, "weightsManifest": manifest})
    )
    assert run("add", folder, "--name", "web", "--db", tmp_path / "my.db")[0] == 0
    assert run("ingest", "files", folder, "--allow-untrained", "--db", tmp_path / "my.db")[0] == 0
    db = cnnfilterdb.open(tmp_path / "my.db")
    for model_id in ("custom/web", "files/model"):
        np.testing.assert_array_equal(db.layer_weights(model_id, 0), kernel.transpose(3, 2, 0, 1))


def test_new_words_are_introduced_on_purpose(run, checkpoint, tmp_path):
    line = ["add", checkpoint, "--name", "mine", "--domain", "plankton", "--db", tmp_path / "my.db"]
    assert run(*line)[0] == 1
    assert run(*line, "--new-word")[0] == 0
    assert "plankton" in run("models", "--db", tmp_path / "my.db")[1]


def test_rows_in_every_format(run, sample_path, tmp_path):
    query = "SELECT name, domain, stored_filters FROM models ORDER BY name"
    _, table, _ = run("sql", query, "--db", sample_path)
    assert table.splitlines()[0].split() == ["name", "domain", "stored_filters"]
    _, csv, _ = run("sql", query, "--db", sample_path, "--format", "csv")
    frame = pd.read_csv(io.StringIO(csv))
    _, text, _ = run("sql", query, "--db", sample_path, "--format", "json")
    assert [row["name"] for row in json.loads(text)] == frame["name"].tolist()
    target = tmp_path / "rows.parquet"
    assert run("sql", query, "--db", sample_path, "--format", "parquet", "-o", target)[0] == 0
    assert pq.read_table(target).to_pandas()["stored_filters"].tolist() == frame["stored_filters"].tolist()


def test_shift_prints_the_matrix_and_how_it_was_made(run, sample_path, sample):
    status, out, _ = run("shift", "domain", "--db", sample_path)
    assert status == 0
    assert f"{sample.kl_shift('domain').loc['faces', 'natural']:.3f}" in out
    assert sample.bases()[0].basis_id in out
    status, out, _ = run("shift", "domain", "--db", sample_path, "--format", "csv", "--balance", "models")
    frame = pd.read_csv(io.StringIO(out)).set_index("domain")
    np.testing.assert_allclose(frame.to_numpy(), sample.kl_shift("domain", balance="models").to_numpy())


def test_quality_verify_index(run, sample_path, tmp_path):
    path = shutil.copytree(sample_path, tmp_path / "copy.db")
    assert "sparsity" in run("quality", "domain", "--db", path)[1]
    assert "all counts and hashes are correct" in run("verify", "--db", path)[1]
    assert "explained variance ratio" in run("index", "--refit", "--db", path)[1]
    (damaged, *_) = path.glob("filters/kernel=3x3/*/*face*")
    content = bytearray(damaged.read_bytes())
    content[len(content) // 2] ^= 1
    damaged.write_bytes(content)
    status, out, err = run("verify", "--db", path)
    assert status == 1
    assert "custom/face" in out
    assert "problem" in err


@pytest.mark.parametrize("kind", ["shift", "ridge", "eigenfilters", "quality"])
def test_plots_are_pictures(run, sample_path, tmp_path, kind):
    target = tmp_path / f"{kind}.png"
    status, out, err = run("plot", kind, "--db", sample_path, "-o", target)
    assert status == 0
    assert err == "warning: 1 of the models used are flagged untrained: custom/ct-a\n"
    assert out.splitlines()[0] == str(target)
    assert out.splitlines()[1].startswith("used 5 of 5 models")
    assert target.read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize("kind", ["shift", "quality", "map"])
def test_a_plot_states_what_small_groups_it_leaves_out(run, sample_path, tmp_path, kind):
    asked = ["--min-models", "2", "--db", sample_path]
    _, out, _ = run("plot", kind, "-o", tmp_path / "x.png", *asked)
    _, expected, _ = run("shift", "domain", *asked)
    assert "in groups that are too small" in out
    assert out.splitlines()[1] == expected.splitlines()[-1]


def test_plot_of_a_layer_and_the_report(run, sample_path, tmp_path, monkeypatch):
    target = tmp_path / "filters.png"
    assert run("plot", "filters", "--model", "custom/face", "--layer", 1, "--db", sample_path, "-o", target)[0] == 0
    assert target.read_bytes().startswith(b"\x89PNG")
    page = tmp_path / "page.html"
    monkeypatch.setenv("CNNFILTERDB", str(sample_path))
    assert run("report", "-o", page)[0] == 0
    text = page.read_text(encoding="utf-8")
    assert "custom/face" in text.replace("<wbr>", "")
    assert f"<code>cnnfilterdb report -o {page} --db {sample_path}</code>" in text  # as it works elsewhere, too


def test_ingest_continues_after_failures(run, checkpoint, tmp_path):
    (tmp_path / "page.pt").write_text("<!DOCTYPE html><p>quota exceeded</p>")
    (tmp_path / "empty.onnx").touch()
    db = tmp_path / "my.db"
    status, out, err = run("ingest", "files", tmp_path / "*.*", "--db", db)
    assert status == 1
    assert "1 done, 0 skipped, 2 failed" in err
    assert "HTML page" in err
    assert "empty" in err
    assert run("verify", "--db", db)[0] == 0
    (tmp_path / "page.pt").unlink()
    (tmp_path / "empty.onnx").unlink()
    status, out, _ = run("ingest", "files", tmp_path / "*.*", "--db", db)
    assert (status, out) == (0, "0 done, 1 skipped, 0 failed\n")


def test_the_catalog_is_listed_without_a_database(run, tmp_path):
    status, out, _ = run("models", "--available", "--format", "json", "--db", tmp_path / "none.db")
    assert status == 0
    assert len(json.loads(out)) > 100


def test_one_source_of_the_catalog(run, tmp_path):
    status, out, _ = run("models", "--available", "--source", "timm", "--format", "json", "--db", tmp_path / "none.db")
    assert status == 0
    assert {row["model_id"].partition("/")[0] for row in json.loads(out)} == {"timm"}
    where = "domain = 'natural' AND model_id LIKE 'timm/resnet%'"
    _, out, _ = run("models", "--available", "--where", where, "--format", "json", "--db", tmp_path / "none.db")
    assert {row["domain"] for row in json.loads(out)} == {"natural"}
    status, _, err = run("models", "--source", "timm", "--db", tmp_path / "none.db")
    assert status == 2
    assert "--available" in err
    assert run("models", "--available", "--source", "tim", "--db", tmp_path / "none.db")[0] == 1


class _Zoo:
    """A source of another package, as small as it may be."""

    name = "zoo"

    def list(self, patterns=()):
        return ["lion"]

    def describe(self, name):
        return ModelFacts(domain="thermal", license="MIT")

    def resolve(self, name):
        raise ConnectionError("the zoo is closed")


class _Closed(_Zoo):
    name = "closed"

    def list(self, patterns=()):
        raise ConnectionError("no list today")


@pytest.fixture
def other_packages(monkeypatch):
    """Two packages have sources, of which one fails."""
    real = sources.entry_points

    def points(group, name=None):
        made = [
            SimpleNamespace(name=one.name, load=lambda one=one: one, module=one.__module__) for one in (_Zoo, _Closed)
        ]
        return [*real(group=group), *made] if name is None else [one for one in made if one.name == name]

    monkeypatch.setattr(sources, "entry_points", points)
    monkeypatch.setattr(sources, "_sources", dict(sources._sources))


def test_what_other_packages_offer_is_available(run, other_packages):
    status, out, err = run("models", "--available", "--where", "domain = 'thermal'", "--format", "json")
    assert (status, err) == (
        0,
        "warning: source closed failed: ConnectionError: no list today; report it to the author of the source\n",
    )
    assert "zoo/lion" in [row["model_id"] for row in json.loads(out)]
    status, out, err = run("models", "--available", "--source", "zoo", "--format", "json")
    assert (status, err) == (0, "")
    assert [(row["model_id"], row["license"]) for row in json.loads(out)] == [("zoo/lion", "MIT")]
    status, out, err = run("models", "--available", "--source", "closed")
    assert (status, out) == (1, "")
    assert err.startswith("error: source closed failed: ConnectionError: no list today")


def test_a_source_without_a_list_of_its_models(run):
    status, _, err = run("models", "--available", "--source", "files")
    assert (status, err) == (
        1,
        "error: source files has no list of its models; name some to `cnnfilterdb ingest files`\n",
    )


def test_an_import_of_unknown_size_says_so(run, other_packages, tmp_path):
    status, _, err = run("ingest", "zoo", "--db", tmp_path / "new.db")
    assert status == 1
    assert err.splitlines() == [
        "1 model: an unknown amount to download and keep in the cache",
        "failed: zoo/lion: ConnectionError: the zoo is closed",
        "0 done, 0 skipped, 1 failed",
    ]


def test_the_demo_ends_with_what_to_do_next(run, sample_path, tmp_path, monkeypatch):
    shutil.copytree(sample_path, tmp_path / "demo.db")
    monkeypatch.setattr("cnnfilterdb.cli.ingesting._collected", lambda name: {})
    monkeypatch.setattr("matplotlib.figure.Figure.savefig", lambda *_, **__: None)
    monkeypatch.setattr("cnnfilterdb.database.filterdb.FilterDB.report", lambda self, page, **_: page)
    status, out, err = run("demo", "--db", tmp_path / "demo.db", "--report", tmp_path / "report")
    assert (status, err) == (0, "warning: 1 of the models used are flagged untrained: custom/ct-a\n")
    assert out.splitlines()[-3:] == [
        f"Figures and a report: {tmp_path / 'report' / 'report.html'}",
        "0 done, 0 skipped, 0 failed",
        f'Next: cnnfilterdb sql --db {tmp_path / "demo.db"} "FROM kl_shift(task)"',
    ]


def test_every_summary_is_complete(run):
    _, out, _ = run("--help")
    lines = out[out.index("Import models:") :].splitlines()
    for name, command in cli.commands.items():
        assert any(line.split() == [name, *command.short_help.split()] for line in lines), name


def test_vocabularies(run):
    _, out, _ = run("vocabulary", "--format", "json")
    assert {"domains", "tasks"} <= {row["vocabulary"] for row in json.loads(out)}
    _, out, _ = run("vocabulary", "domains", "--format", "jsonl")
    assert "natural" in {json.loads(line)["name"] for line in out.splitlines()}


def test_the_cache_is_listed_and_cleared(run, tmp_path, monkeypatch):
    monkeypatch.setenv("CNNFILTERDB_CACHE", str(tmp_path))
    with Cache(tmp_path).lock("x"):
        pass
    digest = hashlib.sha256(b"weights").hexdigest()
    Cache(tmp_path).add(io.BytesIO(b"weights"), "model.bin", size=7, sha256=digest)
    status, out, _ = run("cache", "--format", "json")
    assert status == 0
    assert [row["bytes"] for row in json.loads(out)] == [7]
    assert "1 file, 0.0 MB" in run("cache")[1]
    assert run("cache", "clear")[0] == 0
    assert json.loads(run("cache", "list", "--format", "json")[1]) == []


@pytest.mark.parametrize("line", [["nosuch"], ["files", "x.pt", "--partial"]])
def test_a_refused_import_makes_no_database(run, tmp_path, line):
    assert run("ingest", *line, "--db", tmp_path / "new.db")[0] == 1
    assert list(tmp_path.iterdir()) == []


def test_models_by_conditions_over_layers_and_wildcards(run, sample_path, tmp_path):
    _, out, _ = run("models", "--where", "kernel = '5x5'", "--db", sample_path, "--format", "csv")
    assert pd.read_csv(io.StringIO(out))["name"].tolist() == ["ct-a"]
    target = tmp_path / "photos.parquet"
    assert run("export", target, "custom/photo-*", "custom/face", "--db", sample_path)[0] == 0
    assert set(pq.read_table(target)["model_id"].to_pylist()) == {"custom/photo-a", "custom/photo-b", "custom/face"}


def test_groups_can_be_named(run, sample_path):
    by = "CASE WHEN domain = 'faces' THEN 'people' ELSE 'things' END AS kind"
    for verb in ("shift", "quality"):
        status, out, _ = run(verb, by, "--db", sample_path)
        assert status == 0
        assert out.split()[0] == "kind"


def test_quiet_works_with_every_verb(run, sample_path):
    for verb in cli.commands.values():
        assert "quiet" in {parameter.name for parameter in verb.params}
    _, loud, _ = run("shift", "domain", "--db", sample_path)
    _, quiet, _ = run("shift", "domain", "--quiet", "--db", sample_path)
    assert loud.startswith(quiet)
    assert "used 5 of 5 models" in loud
    assert "used" not in quiet


def test_python_dash_m(tmp_path):
    line = [sys.executable, "-P", "-m", "cnnfilterdb", "models", "--db", str(tmp_path / "none")]
    done = subprocess.run(line, capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert done.stderr.startswith("error: ")
    assert done.stderr.count("\n") == 1


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
@pytest.mark.parametrize(
    ("number", "status", "read"),
    [(signal.SIGINT, 130, True), (signal.SIGTERM, 143, True), (signal.SIGTERM, 143, False)],
)
def test_a_signal_ends_a_running_query_soon(sample_path, number, status, read):
    query = "SELECT sum(a.range * b.range) FROM range(10000000) AS a, range(10000000) AS b"
    line = [sys.executable, "-P", "-m", "cnnfilterdb", "sql", query, "--db", str(sample_path)]
    # A shell that runs the suite in the background has SIGINT ignored.
    former = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        process = subprocess.Popen(line, stderr=subprocess.PIPE, text=True)
    finally:
        signal.signal(signal.SIGINT, former)
    try:
        # The query runs once the process has spent more time than its start takes.
        spent = 0.0
        while spent < 3:
            time.sleep(0.1)
            ticks = Path(f"/proc/{process.pid}/stat").read_text().split(")")[1].split()[11:13]
            spent = sum(map(int, ticks)) / os.sysconf("SC_CLK_TCK")
        if not read:
            process.stderr.close()  # as when what started it has ended
        process.send_signal(number)  # without which the query would run for days
        _, err = process.communicate(timeout=300) if read else (process.wait(timeout=300), "Interrupted.\n")
        assert (process.returncode, err.count("\n")) == (status, 1)
        assert err.startswith("Interrupted.")
    finally:
        process.kill()


def test_verify_repairs(run, sample_path, tmp_path):
    path = shutil.copytree(sample_path, tmp_path / "copy.db")
    (path / "init.sql").write_text("broken")
    next(path.glob("index/*/histograms/*.parquet")).write_bytes(b"broken")
    assert run("verify", "--repair", "--db", path)[0] == 0
    assert "all counts and hashes are correct" in run("verify", "--db", path)[1]


def test_a_warning_is_one_line_without_the_place_in_the_code(run, sample_path, tmp_path):
    path = tmp_path / "copy.db"
    shutil.copytree(sample_path, path)
    basis = next(path.glob("index/3x3-*/basis.parquet"))
    basis.write_bytes(b"")
    status, out, err = run("shift", "domain", "--db", path)
    assert status == 0
    assert "medical ct" in out
    assert err.startswith("warning: ")
    assert ".py" not in err


def test_ingest_states_what_it_downloads_and_asks_before_much(run, tmp_path, monkeypatch):
    from cnnfilterdb.cli import ingesting

    monkeypatch.setenv("CNNFILTERDB_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(ingesting, "_ingest_all", lambda *_, **__: pytest.fail("the import began"))
    monkeypatch.setattr(ingesting, "_interactive", lambda: True)
    monkeypatch.setattr(ingesting, "_LARGE", 1_000_000)
    asked = []
    monkeypatch.setattr(ingesting.click, "confirm", lambda *_, **__: asked.append(True))
    status, out, err = run("ingest", "pypi", "deepcr/*", "--db", tmp_path / "my.db")
    assert (status, out, asked) == (1, "", [True])
    assert re.fullmatch(
        r"9 models: \d+ MB to download and keep in the cache, about \d+ MB of database\nnothing was imported\n", err
    )
    assert not (tmp_path / "my.db").exists()


@pytest.mark.parametrize(("options", "keeps"), [([], True), (["--no-cache"], False)])
def test_downloads_are_kept_unless_asked_otherwise(run, tmp_path, monkeypatch, options, keeps):
    import os

    from cnnfilterdb.cli import ingesting
    from cnnfilterdb.core.reports import IngestReport

    cache, used = tmp_path / "cache", []
    monkeypatch.setenv("CNNFILTERDB_CACHE", str(cache))

    def download(*_, **__):
        used.append(Path(os.environ["CNNFILTERDB_CACHE"]))
        (used[0] / "models").mkdir(parents=True)
        return IngestReport()

    monkeypatch.setattr(ingesting, "_ingest_all", download)
    status, _, err = run("ingest", "pypi", "deepcr/*", "--db", tmp_path / "my.db", "--yes", *options)
    assert status == 0
    assert ("keep in the cache" in err, "delete at the end" in err) == (keeps, not keeps)
    assert (used[0] == cache, used[0].exists()) == (keeps, keeps)
    assert os.environ["CNNFILTERDB_CACHE"] == str(cache)


def test_a_grouping_without_a_column_is_explained(run, sample_path):
    status, _, err = run("shift", "1", "--db", sample_path)
    assert status == 0
    assert "warning: 1 names no column, so all filters are in one group; use a column such as domain\n" in err


@pytest.mark.parametrize("by", ["'models'", "'group'", "domain || 'filters' AS models", 'domain AS "group"'])
@pytest.mark.parametrize("form", ["table", "csv", "json", "parquet"])
def test_groups_may_be_named_like_columns(run, sample_path, tmp_path, by, form):
    target = tmp_path / f"rows.{form}"
    line = ["shift", by, "--db", sample_path, "--min-models", 1]
    status, out, err = run(*line) if form == "table" else run(*line, "-o", target)
    assert status == 0, err
    assert out if form == "table" else target.stat().st_size
    assert "Traceback" not in err


def test_a_page_that_cannot_be_written_leaves_nothing(run, sample_path, tmp_path, monkeypatch):
    def full(descriptor):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    (tmp_path / "report.html").write_text("the old page")
    monkeypatch.setattr(os, "fsync", full)
    status, _, err = run("report", "--db", sample_path, "-o", tmp_path / "report.html")
    assert status == 1
    assert err.count("\n") == 1
    assert {path.name: path.read_text() for path in tmp_path.iterdir()} == {"report.html": "the old page"}


def test_verify_takes_wildcards(run, sample_path):
    status, out, _ = run("verify", "custom/ct-*", "--db", sample_path)
    assert (status, out) == (0, f"{sample_path}: 2 models, all counts and hashes are correct\n")


@pytest.mark.parametrize(("options", "expected"), [([], True), (["--quiet"], False)])
def test_the_first_question_after_an_import_reports_its_progress(
    run, sample_path, tmp_path, monkeypatch, options, expected
):
    from cnnfilterdb.cli import progress

    monkeypatch.setattr(progress, "_PAUSE", 0)
    shutil.copytree(sample_path, tmp_path / "my.db")
    for basis in (tmp_path / "my.db" / "index").glob("*x*"):
        shutil.rmtree(basis)
    status, _, err = run("shift", "domain", "--db", tmp_path / "my.db", *options)
    assert status == 0
    assert ("updating the index: range of 3x3, " in err) == expected
