"""Who gets an answer, and that answers are those of the methods, of SQL and of the command line."""

import base64
import csv
import http.client
import io
import json
import shlex
import threading
import time
import urllib.error
import urllib.request

import numpy as np
import pandas as pd
import pyarrow.parquet as pq
import pytest
from click.testing import CliRunner

import cnnfilterdb
from cnnfilterdb import plots
from cnnfilterdb.cli import cli
from cnnfilterdb.explore import server
from cnnfilterdb.explore.jobs import CancelledError, Job, current
from cnnfilterdb.explore.watched import WatchedReader

from .conftest import MARKUP, TOKEN

SELECTIONS = [
    {},
    {"facets": {"domain": ["medical ct", "natural"], "flags": ["trained"]}},
    {"facets": {"family": [None]}},
    {"search": "photo CLASS"},
    {"where": "kernel = '5x5' OR domain = 'faces'"},
    {"models": ["custom/ct-a", "custom/photo-b"], "facets": {"license": ["MIT"]}},
]


def authorised(extra=None):
    return {"Authorization": f"Bearer {TOKEN}", **(extra or {})}


# ------------------------------------------------------------------------------------------------------ security


@pytest.mark.parametrize("token", [None, "", "Bearer", "Bearer wrong", TOKEN, f"bearer {TOKEN}", f"Bearer {TOKEN} "])
def test_nothing_is_answered_without_the_token(served, token):
    headers = {} if token is None else {"Authorization": token}
    status, body = served.request("/api/models", b"{}", headers)
    # HTTP strips the space at the end of a value.
    assert status == (200 if token == f"Bearer {TOKEN} " else 401)
    assert status == 200 or b"rows" not in body


@pytest.mark.parametrize(
    "host", ["evil.example", "127.0.0.1", "localhost", "127.0.0.1:1", "localhost.evil.example:{port}", ""]
)
def test_another_host_is_refused(served, host):
    port = served.url.rpartition(":")[2]
    for path, data in (("/", None), ("/api/models", b"{}"), ("/static/app.js", None)):
        assert served.request(path, data, authorised({"Host": host.format(port=port)}))[0] in (400, 403)


@pytest.mark.parametrize(
    "origin", ["http://evil.example", "null", "https://127.0.0.1", "http://127.0.0.1:1", "file://"]
)
def test_another_origin_is_refused(served, origin):
    assert served.request("/api/models", b"{}", authorised({"Origin": origin}))[0] == 403


def test_the_page_itself_is_answered(served):
    headers = authorised({"Origin": served.url, "Sec-Fetch-Site": "same-origin"})
    assert served.request("/api/models", b"{}", headers)[0] == 200
    # A link in another page may lead here: it gets the page, which has no data in it.
    assert served.request("/", None, {"Sec-Fetch-Site": "cross-site", "Sec-Fetch-Mode": "navigate"})[0] == 200
    assert (
        served.request("/static/app.js", None, {"Sec-Fetch-Site": "cross-site", "Sec-Fetch-Mode": "no-cors"})[0] == 403
    )
    assert served.request("/api/models", b"{}", authorised({"Sec-Fetch-Site": "cross-site"}))[0] == 403


def test_every_answer_has_the_headers_that_confine_the_page(served):
    host = served.url.removeprefix("http://")
    asked = [("GET", "/", host), ("GET", "/none", host), ("POST", "/api/sql", host), ("GET", "/", "evil")]
    for method, path, given in asked:
        connection = http.client.HTTPConnection(host)
        connection.request(method, path, headers={"Host": given})
        headers = connection.getresponse().headers
        policy = headers["Content-Security-Policy"]
        assert policy.startswith("default-src 'none'; script-src 'self'; style-src 'self';")
        assert "unsafe" not in policy
        assert "http" not in policy
        assert headers["Referrer-Policy"] == "no-referrer"
        assert headers["X-Content-Type-Options"] == "nosniff"
        assert headers["Cache-Control"] == "no-store"
        assert "Access-Control-Allow-Origin" not in headers
        connection.close()


@pytest.mark.parametrize("path", ["../server.py", "%2e%2e/server.py", "..%2fserver.py", "/etc/hostname", ""])
def test_no_other_file_is_served(served, path):
    connection = http.client.HTTPConnection(served.url.removeprefix("http://"))
    connection.request("GET", f"/static/{path}")
    assert connection.getresponse().status == 404
    connection.close()


@pytest.mark.parametrize("body", [b"", b"[]", b"{", b'"x"', b"\xff", b"[" * 100_000, b" " * (5 * 2**20)])
def test_a_request_that_is_no_object_is_refused(served, body):
    status, answer = served.request("/api/start", body, authorised())
    assert status == (200 if body == b"" else 400), answer[:200]


@pytest.mark.parametrize(
    "request_",
    [
        {"selection": []},
        {"selection": {"facets": {"nothing": ["x"]}}},
        {"selection": {"facets": {"domain": "x"}}},
        {"selection": {"facets": {"flags": ["x"]}}},
        {"selection": {"models": [1]}},
        {"selection": {"where": "true) OR (SELECT true"}},
        {"selection": {"where": "read_text('/etc/hostname') = ''"}},
        {"order": "model_id; DROP VIEW models"},
        {"limit": -1},
        {"limit": True},
        {"limit": 10**9},
    ],
)
def test_a_wrong_request_is_an_error_of_one_line(served, request_):
    assert "\n" not in served.error("models", **request_)


def test_no_view_of_that_name(served):
    for name in ("nothing", "__init__", "prepare"):
        assert served.request(f"/api/{name}", b"{}", authorised())[0] == 404


def test_a_closed_connection_interrupts_the_query(served):
    host = served.url.removeprefix("http://")
    query = {"query": "SELECT count(*) FROM range(100000000000) a SEMI JOIN range(100000) b ON hash(a.range) = b.range"}
    connection = http.client.HTTPConnection(host)
    connection.request("POST", "/api/sql", json.dumps(query), authorised())
    time.sleep(0.3)
    connection.close()
    # All eight places are free again: after nine such queries, the answer would otherwise not come in time.
    for _ in range(9):
        connection = http.client.HTTPConnection(host)
        connection.request("POST", "/api/sql", json.dumps(query), authorised())
        time.sleep(0.05)
        connection.close()
    assert served.ask("sql", query="SELECT 42 AS n")["rows"] == [[42]]


def test_the_token_is_in_no_argument_of_a_process(monkeypatch):
    opened = []
    monkeypatch.setattr("webbrowser.open", lambda url: opened.append(url))
    with server._opened("http://127.0.0.1:1/#token=secret"):
        (url,) = opened
        path = url.removeprefix("file://")
        with open(path) as file:  # noqa: PTH123
            assert "secret" in file.read()
    assert "secret" not in url


def test_from_python_it_runs_in_a_thread_until_it_is_closed(db, monkeypatch):
    shown = []
    monkeypatch.setattr("webbrowser.open", shown.append)
    with cnnfilterdb.example().explore(port=0, browser=True) as explorer:
        assert "running" in repr(explorer)
        assert f'href="{explorer.url}"' in explorer._repr_html_()
        address, _, token = explorer.url.partition("#token=")
        assert len(shown) == 1
        headers = {"Authorization": f"Bearer {token}"}
        with urllib.request.urlopen(urllib.request.Request(f"{address}api/models", b"{}", headers)) as response:
            assert json.load(response)["total"] == 3
        # A second one has a port and a token of its own.
        with db.explore(port=0) as other:
            assert other.url.partition("#")[0] != address
    assert "not running" in repr(explorer)
    assert "href" not in explorer._repr_html_()
    explorer.close()
    with pytest.raises(urllib.error.URLError):
        urllib.request.urlopen(address)
    assert len(db.models()) > 0, "closing an explorer closes the database"


def test_a_search_of_kernels_can_be_cancelled(db):
    with WatchedReader(db, memory="256MB") as watched, Job(60) as job:
        token = current.set(job)
        try:
            assert len(watched.nearest([[1, 0, -1]] * 3)) == 10
            threading.Thread(target=job.stop, args=["cancelled"], daemon=True).start()
            while not job.stopped():
                time.sleep(0.001)
            with pytest.raises(CancelledError, match="cancelled"):
                watched.nearest([[1, 0, -1]] * 3)
        finally:
            current.reset(token)


def test_a_search_of_kernels_counts_what_it_has_searched(db):
    with WatchedReader(db, memory="256MB") as watched, Job(60) as job:
        token = current.set(job)
        try:
            watched.nearest([[1, 0, -1]] * 3)
        finally:
            current.reset(token)
        assert job.done == len(db.filters(kernel="3x3"))


def test_a_named_question_can_be_asked_how_far_it_is(served):
    connection = http.client.HTTPConnection(served.url.removeprefix("http://"))
    query = {"query": "SELECT count(*) FROM range(100000000000) WHERE hash(range) = 1", "job": "long one"}
    assert served.ask("progress", job="long one") == {"done": None}
    connection.request("POST", "/api/sql", json.dumps(query), authorised())
    while served.ask("progress", job="long one") == {"done": None}:
        time.sleep(0.02)
    assert served.ask("progress", job="long one") == {"done": 0}
    assert served.ask("progress", job="another") == served.ask("progress") == {"done": None}
    connection.close()
    while served.ask("progress", job="long one") != {"done": None}:
        time.sleep(0.02)


def test_the_port_is_a_free_one_if_the_usual_one_is_in_use():
    with server._listen("127.0.0.1", 0) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(cnnfilterdb.DatabaseError, match=f"127.0.0.1:{port}: cannot listen there"):
            server._listen("127.0.0.1", port)


# ------------------------------------------------------------------------------------------------------ numbers


def printed(command: str) -> pd.DataFrame:
    """What the command line prints as CSV."""
    words = shlex.split(command)
    assert words.pop(0) == "cnnfilterdb"
    done = CliRunner().invoke(cli, [words[0], "--format", "csv", *words[1:]], catch_exceptions=False)
    assert done.exit_code == 0, done.output
    return pd.read_csv(io.StringIO(done.stdout))


def lower(label):
    """A group as the explorer writes it."""
    return str(label).lower() if str(label) in ("True", "False") else str(label)


def matrix(answer):
    size = len(answer["labels"])
    values = np.frombuffer(base64.b64decode(answer["matrix"]), "<f8").reshape(size, size)
    return pd.DataFrame(values, answer["labels"], answer["labels"])


@pytest.fixture(scope="module")
def db(served):
    with cnnfilterdb.open(served.path, read_only=True) as opened:
        yield opened


@pytest.mark.parametrize("selection", SELECTIONS, ids=str)
def test_models_are_those_of_the_condition_of_sql_and_of_the_command_line(served, db, selection):
    answer = served.ask("models", selection=selection)
    keys = [row["model_id"] for row in answer["rows"]]
    assert keys == db.models(where=answer["where"])["model_id"].tolist()
    assert keys == db.sql(answer["sql"]).df()["model_id"].tolist()
    assert keys == printed(answer["command"])["model_id"].tolist()
    assert answer["total"] == len(keys) > 0


def test_facets_count_what_choosing_a_value_would_select(served):
    chosen = {"facets": {"domain": ["natural", "medical ct"]}, "search": "o"}
    facets = served.ask("models", selection=chosen)["facets"]
    assert {one["value"] for one in facets["domain"]} == {"natural", "medical ct", "faces"}
    for name, values in facets.items():
        for one in values:
            selection = {**chosen, "facets": {**chosen["facets"], name: [one["value"]]}}
            assert served.ask("models", selection=selection)["total"] == one["models"], (name, one)


@pytest.mark.parametrize(
    ("by", "options"),
    [
        ("domain", {}),
        ("task || family", {"balance": "models"}),
        ("model_id", {"metric": "wasserstein", "recipe": "medneurips2022"}),
        ("floor(layer / 2)", {"metric": "directed", "balance": "layers"}),
        ("out_channels > 20", {"metric": "jensen_shannon", "min_filters": 100, "all_layers": True}),
        ("name", {"metric": "total_variation", "selection": {"facets": {"domain": ["natural"]}}}),
        ("domain", {"kernel": "5x5", "order": "name"} | {"by": "kind"}),
    ],
    ids=str,
)
def test_shifts_are_those_of_the_method_of_sql_and_of_the_command_line(served, db, by, options):
    request = {"by": by, **options}
    by = request["by"]
    answer = served.ask("groups", **request)
    found = matrix(answer)
    names = ("metric", "recipe", "balance", "kernel", "min_filters", "all_layers")
    where = served.ask("models", selection=options.get("selection", {}))["where"]
    direct = db.kl_shift(by, where=where, **{name: options[name] for name in names if name in options})
    direct.index = direct.columns = [lower(label) for label in direct]
    pd.testing.assert_frame_equal(found.loc[direct.index, direct.columns], direct, check_names=False, rtol=1e-9)

    rows = db.sql(answer["sql"]).fetchall()
    assert len(rows) == found.size
    for first, second, value in rows:
        first, second = (lower(first), lower(second))
        assert found.loc[first, second] == pytest.approx(value, rel=1e-6, abs=1e-9)

    table = printed(answer["command"]).set_index(by)
    table.index, table.columns = (table.index.map(lower), [lower(column) for column in table.columns])
    pd.testing.assert_frame_equal(
        found.loc[table.index, table.columns], table, check_names=False, check_exact=False, rtol=1e-9
    )


def test_groups_below_the_minimum_are_listed(served):
    answer = served.ask("groups", by="domain", min_models=2)
    assert set(answer["labels"]) == {"medical ct", "natural"}
    assert [(row["group"], row["models"]) for row in answer["excluded"]] == [("faces", 1)]
    assert "used" in answer["coverage"]


def test_a_pair_adds_up_to_its_shift(served, db):
    answer = served.ask("pair", by="domain", a="natural", b="faces", balance="models")
    direct = db.kl_shift("domain", balance="models").loc["natural", "faces"]
    assert answer["shift"] == pytest.approx(direct, rel=1e-9)
    assert sum(row["shift"] for row in answer["components"]) == pytest.approx(direct, rel=1e-9)
    rows = db.sql(answer["sql"]).df()
    assert rows["shift"].sum() == pytest.approx(direct, rel=1e-6)
    table = printed(answer["command"]).query("group_a == 'natural' and group_b == 'faces'")
    assert table["shift"].tolist() == pytest.approx([row["shift"] for row in answer["components"]])
    assert answer["shape"] == [2, 9, 70]
    assert "no group 'x'" in served.error("pair", by="domain", a="natural", b="x")


def test_quality_is_that_of_the_method_of_sql_and_of_the_command_line(served, db):
    answer = served.ask("quality", by="domain")
    direct = db.quality("domain")
    for row in answer["rows"]:
        for name in direct.columns:
            value = direct.loc[row["group"], name]
            assert row[name] == pytest.approx(value, nan_ok=True) or (row[name] is None and np.isnan(value))
    rows = db.sql(answer["sql"]).df().set_index("group")
    assert rows["sparsity"].tolist() == pytest.approx(direct["sparsity"].tolist())
    assert printed(answer["command"])["sparsity"].tolist() == pytest.approx(direct["sparsity"].tolist())


@pytest.fixture
def drawn(tmp_path, monkeypatch):
    """The arguments with which the command line of a figure calls the function that draws it."""

    def run(command, function):
        calls = []
        draw = getattr(plots, function)

        def spied(*given, **options):
            calls.append((given, options))
            return draw(*given, **options)

        monkeypatch.setattr(plots, function, spied)
        monkeypatch.chdir(tmp_path)
        done = CliRunner().invoke(cli, shlex.split(command)[1:], catch_exceptions=False)
        assert done.exit_code == 0, done.output
        monkeypatch.setattr(plots, function, draw)
        ((given, options),) = calls
        return given, options

    return run


def test_the_map_is_the_embedding(served, db, drawn):
    answer = served.ask("map", colour="task", balance="models")
    direct = db.embed()
    assert answer["models"] == direct.index.tolist()
    for axis, column in (("x", "x0"), ("y", "x1")):
        assert np.abs(answer[axis]) == pytest.approx(np.abs(direct[column]), abs=1e-6)
    tasks = db.models().set_index("model_id")["task"]
    assert [None if pd.isna(tasks[key]) else tasks[key] for key in answer["models"]] == answer["colour"]
    assert answer["python"] == "db.embed()"
    assert None in answer["colour"]
    by_size = served.ask("map", colour="size", balance="models")
    for given in (answer, by_size):
        (points, labels), _ = drawn(given["command"], "model_map")
        np.testing.assert_allclose(np.abs(points), np.abs(np.column_stack([given["x"], given["y"]])), atol=1e-6)
        assert [None if pd.isna(label) else label for label in labels] == given["colour"]
    # SQL gives the distances.
    shift = db.kl_shift("model_id", balance="models")
    for first, second, value in db.sql(answer["sql"]).fetchall():
        assert shift.loc[first, second] == pytest.approx(value, rel=1e-6, abs=1e-9)
    by_filters = served.ask("map", colour="task", balance="filters")
    assert "balance='filters'" in by_filters["python"]
    assert "--balance filters" in by_filters["command"]
    assert "not a column" in served.error("map", colour="x, 1")


def test_a_model_has_its_facts_its_layers_and_its_neighbours(served, db):
    answer = served.ask("model", model="custom/ct-a")
    assert answer["facts"]["domain"] == "medical ct"
    assert [row["layer_name"] for row in answer["layers"]] == ["enc", "mid", "up"]
    direct = db.nearest_groups("model_id", "custom/ct-a", top=12)
    assert [row["model_id"] for row in answer["nearest"]] == direct.index.tolist()
    assert [row["shift"] for row in answer["nearest"]] == pytest.approx(direct["shift"].tolist())
    layers, nearest = answer["sql"].split(";\n")
    assert len(db.sql(layers).df()) == 3
    assert db.sql(nearest).df()["group"].tolist() == direct.index.tolist()
    first, second = answer["command"].split("\n")
    assert len(printed(first)) == 3
    assert printed(second)["model_id"].tolist() == direct.index.tolist()
    assert "no/such" in served.error("model", model="no/such")


def test_related_models_are_those_of_sql_and_of_the_command_line(tensors, tmp_path):
    from cnnfilterdb.explore.views import Explorer

    with cnnfilterdb.create(tmp_path / "families.db") as db:
        parent = tensors["ct-a"]
        tuned = {name: weight + 0.1 * np.abs(weight).mean() for name, weight in parent.items()}
        for name, weights in (("parent", parent), ("child", tuned), ("stranger", tensors["photo-a"])):
            db.add(weights, name, domain="natural", license="MIT")
        db.index()
    with cnnfilterdb.open(tmp_path / "families.db", read_only=True) as db, WatchedReader(db, memory="256MB") as watched:
        answer = Explorer(watched, str(tmp_path / "families.db")).related({"model": "custom/child"})
        (row,) = answer["rows"]
        assert {row["model_a"], row["model_b"]} == {"custom/child", "custom/parent"}
        assert row["cosine"] == pytest.approx(db.related_models()["cosine"].iloc[0])
        assert printed(answer["command"])["cosine"].tolist() == [pytest.approx(row["cosine"])]


def test_a_layer_is_its_weights(served, db, drawn):
    body = served.request(
        "/api/layer", json.dumps({"model": "custom/ct-a", "layer": 1, "out": 5, "in": 3}).encode(), authorised()
    )[1]
    size = int.from_bytes(body[:4], "little")
    head = json.loads(body[4 : 4 + size])
    weights = np.frombuffer(body[4 + size :], "<f4").reshape(head["shape"])
    whole = db.layer_weights("custom/ct-a", 1)
    assert head["whole"] == list(whole.shape) == [32, 16, 3, 3]
    assert np.array_equal(weights, whole[5:, 3:])
    assert head["largest"] == pytest.approx(np.abs(whole).max())
    rows = db.sql(head["sql"]).df().filter(regex=r"^w\d$").to_numpy(np.float32)
    assert np.array_equal(rows, whole.reshape(-1, 9))
    (kernels,), options = drawn(head["command"], "filter_grid")
    assert np.array_equal(kernels, whole.reshape(-1, 3, 3))
    assert options["scale"] == "layer"  # as the page shows it
    assert "no layer 7" in served.error("layer", model="custom/ct-a", layer=7)
    found = served.ask("coefficients", model="custom/ct-a", layer=1)
    assert found["labels"] == ["this layer", "family U-Net"]
    assert found["filters"][0] == 32 * 16
    assert_densities(found, db)


def assert_densities(answer, db):
    """SQL gives the distributions of a view, to the single precision of what it adds."""
    shares = np.frombuffer(base64.b64decode(answer["shares"]), "<f8").reshape(answer["shape"])
    rows = db.sql(answer["sql"]).df().sort_values("component").set_index("group")
    for label, share in zip(answer["labels"], shares, strict=True):
        assert np.stack(rows.loc[label, "share"].tolist()) == pytest.approx(share, abs=1e-5)


def test_ridges_are_the_probabilities_of_sql_and_the_figure_of_the_command_line(served, db, tmp_path, monkeypatch):
    answer = served.ask("ridges", by="domain", balance="models")
    assert_densities(answer, db)
    direct = db.groups("domain", balance="models")
    assert answer["filters"] == direct.filters.tolist()
    monkeypatch.chdir(tmp_path)
    done = CliRunner().invoke(cli, shlex.split(answer["command"])[1:], catch_exceptions=False)
    assert done.exit_code == 0, done.output
    assert (tmp_path / "ridge.svg").read_bytes().startswith(b"<?xml")


def test_a_kernel_finds_itself_first(served, db):
    request = {"model": "custom/photo-a", "layer": 1, "out": 7, "in": 2, "sign": True}
    kernel, answer = served.ask("kernel", **request), served.ask("nearest", **request)
    first = answer["nearest"][0]
    assert (first["model_id"], first["layer"], first["out_channel"], first["in_channel"]) == ("custom/photo-a", 1, 7, 2)
    assert first["similarity"] == pytest.approx(1)
    pattern = db.layer_weights("custom/photo-a", 1)[7, 2]
    assert kernel["weights"] == pattern.ravel().tolist()
    assert kernel["searched"] == len(db.filters(kernel="3x3"))
    assert db.sql(kernel["sql"]).df().filter(regex=r"^w\d$").to_numpy().tolist() == [pattern.ravel().tolist()]
    assert kernel["coefficients"] == pytest.approx(db.basis().project(pattern.reshape(1, -1))[0].tolist())
    assert db.sql(answer["sql"]).df()["similarity"].tolist() == pytest.approx(
        [row["similarity"] for row in answer["nearest"]]
    )
    assert printed(answer["command"])["similarity"].tolist() == pytest.approx(
        [row["similarity"] for row in answer["nearest"]]
    )


def test_rows_of_a_query_and_their_files(served):
    query = "SELECT model_id, layer, raw_mean, '=1+1' AS formula, 'nan'::DOUBLE AS nan FROM layers ORDER BY ALL"
    answer = served.ask("sql", query=query, rows=3)
    assert [column["type"] for column in answer["columns"]] == ["text", "number", "other", "text", "number"]
    assert answer["more"]
    assert len(answer["rows"]) == 3
    assert answer["rows"][0][4] is None
    for style in ("csv", "parquet"):
        status, body = served.request(
            "/api/file", json.dumps({"kind": "sql", "format": style, "query": query}).encode(), authorised()
        )
        assert status == 200
        if style == "csv":
            rows = list(csv.DictReader(io.StringIO(body.decode())))
            assert rows[0]["formula"] == "'=1+1"
        else:
            rows = pq.read_table(io.BytesIO(body)).to_pylist()
        assert len(rows) > 10


@pytest.mark.parametrize(
    ("kind", "style", "start"),
    [
        ("shift", "png", b"\x89PNG"),
        ("shift", "svg", b"<?xml"),
        ("shift", "csv", b"domain,"),
        ("ridge", "svg", b"<?xml"),
        ("quality", "png", b"\x89PNG"),
        ("quality", "csv", b"domain,"),
        ("quality", "pdf", b"%PDF-"),
        ("models", "csv", b"model_id,"),
    ],
)
def test_files_of_views(served, kind, style, start):
    status, body = served.request("/api/file", json.dumps({"kind": kind, "format": style}).encode(), authorised())
    assert status == 200
    assert body.startswith(start)


def test_no_file_of_that_kind(served):
    assert "no file" in served.error("file", kind="shift", format="exe")
    assert "COPY" in served.error("file", kind="sql", format="csv", query="COPY models TO 'x'")


def test_canned_queries_run_and_what_the_editor_knows_exists(served, db):
    start = served.ask("start")
    for one in start["queries"]:
        assert served.ask("sql", query=one["sql"])["columns"], one["title"]
    for view, columns in start["tables"].items():
        there = [row[0] for row in db.sql(f"DESCRIBE {view}").fetchall()]
        assert set(columns) <= set(there), view
        if not view.startswith(("filters_", "coefficients_")):
            assert columns == there, view
    there = {row[0] for row in db.sql("SELECT DISTINCT function_name FROM duckdb_functions()").fetchall()}
    names = [one["name"] for one in start["macros"]]
    assert {"kl_shift", "filter_quality", "sparsity", "nearest_3x3"} <= set(names) <= there


def test_names_are_passed_on_as_they_are(served):
    answer = served.ask("model", model="custom/hostile")
    assert answer["facts"]["architecture"] == MARKUP
    assert answer["layers"][0]["layer_name"] == MARKUP
