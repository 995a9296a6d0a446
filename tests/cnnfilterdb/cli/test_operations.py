"""The options that every verb has, logs for machines, and the check of the machine."""

from __future__ import annotations

import json
import shutil

import pytest

import cnnfilterdb
from cnnfilterdb import health
from cnnfilterdb.cli import cli


@pytest.fixture
def unindexed(tmp_path, sample_path):
    path = tmp_path / "copy.db"
    shutil.copytree(sample_path, path)
    for basis in (path / "index").glob("3x3-*"):
        shutil.rmtree(basis)
    return path


def events(text: str) -> list[dict]:
    return [json.loads(line) for line in text.splitlines()]


def test_every_verb_takes_the_common_options(run, sample_path):
    for verb in cli.commands.values():
        assert {"threads", "memory", "runner", "log_format", "quiet"} <= {option.name for option in verb.params}
    query = "SELECT current_setting('threads') AS t, current_setting('memory_limit') AS m"
    for line in (
        ["--threads", 3, "--memory", "1GB", "sql", query],
        ["sql", query, "--threads", 3, "--memory", "1GB"],
        ["--threads", 1, "--memory", "2GB", "sql", query, "--threads", 3, "--memory", "1GB"],
    ):
        status, out, _ = run(*line, "--db", sample_path, "--format", "csv")
        assert (status, out.splitlines()) == (0, ["t,m", "3,686.6 MiB"])


@pytest.mark.parametrize(
    ("line", "message"),
    [
        (["--memory", "much", "models"], "expected a size such as 400MB"),
        (["--memory", "10MB", "models"], "the least that can be kept is 400 MB"),
        (["models", "--threads", "0"], "0 is not in the range"),
        (["models", "--log-format", "xml"], "'xml' is not one of"),
    ],
)
def test_wrong_options(run, line, message):
    status, _, err = run(*line)
    assert status == 2
    assert message in err


def test_an_unknown_runner(run, sample_path):
    status, _, err = run("models", "--runner", "thread", "--db", sample_path)
    assert (status, err.count("\n")) == (1, 1)
    assert "expected serial, threads, processes, ray" in err


def test_progress_is_json_on_request(run, unindexed):
    status, out, err = run("--log-format", "json", "index", "--db", unindexed)
    assert status == 0
    assert "explained variance ratio" in out
    found = events(err)
    assert {(one["level"], one["step"]) for one in found} == {
        ("progress", "range of 3x3"),
        ("progress", "histograms of 3x3"),
    }
    assert found[-1]["done"] == found[-1]["total"] == 5
    assert run("index", "--log-format", "json", "--quiet", "--db", unindexed)[2] == ""


def test_an_ingest_logs_each_model(run, tmp_path, checkpoint):
    status, _, err = run("ingest", "files", checkpoint, tmp_path / "none.pt", "--db", tmp_path / "a.db")
    assert (status, events_or_text(err)) == (1, "text")
    line = ["ingest", "files", checkpoint, "--allow-untrained", "--db", tmp_path / "b.db", "--log-format", "json"]
    status, _, err = run(*line)
    assert status == 0
    progress = [one for one in events(err) if one["level"] == "progress" and one["step"] == "models"]
    assert [(one["done"], one["total"]) for one in progress] == [(0, 1), (1, 1)]
    assert progress[1]["outcome"] == "done"


def events_or_text(err: str) -> str:
    try:
        events(err)
    except json.JSONDecodeError:
        return "text"
    return "events"


@pytest.mark.parametrize(
    ("line", "status"),
    [(["models", "--db", "none.db"], 1), (["models", "--nosuch"], 2), (["shift", "nosuch", "--db", "SAMPLE"], 1)],
)
def test_errors_are_events_too(run, sample_path, line, status):
    line = [sample_path if word == "SAMPLE" else word for word in line]
    found, _, err = run("--log-format", "json", *line)
    assert found == status
    assert events(err)[0]["level"] == "error"
    assert all(one["message"] for one in events(err))
    # The choice ends with the command.
    assert not run(*line)[2].startswith("{")


def test_doctor(run, sample_path, monkeypatch):
    status, out, _ = run("doctor", "--offline", "--db", sample_path)
    assert status == 0
    assert "5 models, kernels of 3 sizes" in out
    status, out, _ = run("doctor", "--offline", "--db", sample_path, "--format", "json")
    checks = {row["check"]: row for row in json.loads(out)}
    assert checks["locks"]["status"] == checks["writing"]["status"] == "ok"
    assert "million per second" in checks["scan"]["found"]
    assert not list(sample_path.glob(".cnnfilterdb-doctor-*"))
    monkeypatch.setattr(health, "_NO_DISK", 1 << 60)
    status, out, err = run("doctor", "--offline", "--db", sample_path)
    assert (status, err) == (1, "error: 1 failure\n")
    assert "failure  disk" in out
    assert "free some space" in out


def test_doctor_finds_a_folder_that_is_no_database(tmp_path):
    (tmp_path / "notes.txt").write_text("mine")
    found = {one.check: one for one in cnnfilterdb.doctor(tmp_path, offline=True)}
    assert found["database"].status == "failure"
    assert (tmp_path / "notes.txt").exists()
    assert [path.name for path in tmp_path.iterdir()] == ["notes.txt"]


def test_doctor_reports_locks_that_do_not_hold(tmp_path, monkeypatch):
    import fcntl

    monkeypatch.setattr(fcntl, "flock", lambda *_: None)
    found = {one.check: one for one in cnnfilterdb.doctor(tmp_path / "new.db", offline=True)}
    assert found["locks"].status == "failure"
    assert "--shard I/N" in found["locks"].remedy


def test_doctor_asks_the_configured_servers_once(tmp_path, monkeypatch):
    from http.server import BaseHTTPRequestHandler, HTTPServer
    from threading import Thread

    asked = []

    class Index(BaseHTTPRequestHandler):
        def do_HEAD(self):
            asked.append(self.path)
            self.send_response(200 if "simple" in self.path else 503)
            self.end_headers()

        def log_message(self, *_):
            pass

    server = HTTPServer(("127.0.0.1", 0), Index)
    Thread(target=server.serve_forever, daemon=True).start()
    place = f"http://127.0.0.1:{server.server_port}"
    for name in ("PIP_EXTRA_INDEX_URL", "HF_HUB_OFFLINE", "HTTP_PROXY", "HTTPS_PROXY", "http_proxy", "https_proxy"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("PIP_CONFIG_FILE", "/dev/null")
    monkeypatch.setenv("PIP_INDEX_URL", f"http://me:secret@127.0.0.1:{server.server_port}/simple/")
    monkeypatch.setenv("HF_ENDPOINT", f"{place}/hub")
    found = {one.check: one for one in cnnfilterdb.doctor(tmp_path / "new.db")}
    server.shutdown()
    assert found["package index"].status == "ok"
    assert "secret" not in found["package index"].found
    assert (found["hub"].status, found["hub"].remedy[:17]) == ("warning", "check the network")
    assert asked == ["/simple/", "/hub"]
