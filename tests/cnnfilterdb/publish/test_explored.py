"""The explorer of a release on a Hub: nothing is downloaded but what a view needs."""

import json
import os
import subprocess
import sys
import urllib.request

import numpy as np
import pytest

import cnnfilterdb

TOKEN = "hf_secretsecret"


@pytest.fixture
def explored(hub, release_path):
    """The release, opened in place, and what asks its explorer."""
    files = {path.relative_to(release_path).as_posix(): path.read_bytes() for path in release_path.rglob("*.*")}
    hub.create("owner/sample").push(files)
    options = {"endpoint": hub.url, "token": TOKEN}
    with (
        cnnfilterdb.open("hf://datasets/owner/sample", storage_options=options) as db,
        db.explore(port=0, memory="256MB") as explorer,
    ):
        address, _, token = explorer.url.partition("#token=")

        def ask(view, **request):
            headers = {"Authorization": f"Bearer {token}"}
            asked = urllib.request.Request(f"{address}api/{view}", json.dumps(request).encode(), headers)
            with urllib.request.urlopen(asked, timeout=600) as response:
                return response.read()

        yield db, ask


def test_views_of_a_release_on_a_hub_are_those_of_the_database(hub, explored, sample):
    _, ask = explored
    assert json.loads(ask("models"))["total"] == 5
    found = json.loads(ask("groups", by="domain", order="name"))
    expected = sample.kl_shift("domain")
    assert found["labels"] == list(expected.index)
    assert found["sql"].startswith("SELECT group_a, group_b, shift FROM kl_shift(domain")
    assert "--db hf://datasets/owner/sample" in found["command"]
    assert not any("filters_" in one.path for one in hub.asked("GET")), "filters were read for statistics"
    layer = ask("layer", model="custom/ct-a", layer=1)
    length = int.from_bytes(layer[:4], "little")
    weights = np.frombuffer(layer[4 + length :], "<f4").reshape(json.loads(layer[4 : 4 + length])["shape"])
    np.testing.assert_array_equal(weights, sample.layer_weights("custom/ct-a", 1))
    near = json.loads(ask("nearest", model="custom/ct-a", layer=1, out=3, **{"in": 2}))["nearest"]
    assert near[0]["similarity"] == pytest.approx(1)
    assert ask("file", kind="shift", format="pdf").startswith(b"%PDF-")


def test_the_command_line_explores_a_release_on_a_hub(hub, release_path, tmp_path):
    files = {path.relative_to(release_path).as_posix(): path.read_bytes() for path in release_path.rglob("*.*")}
    hub.create("owner/sample").push(files)
    line = [sys.executable, "-m", "cnnfilterdb", "explore", "--db", "hf://datasets/owner/sample", "--no-browser"]
    settings = {"HF_ENDPOINT": hub.url, "HF_TOKEN": TOKEN, "HF_HOME": str(tmp_path), "NO_PROXY": "127.0.0.1,localhost",
                "CNNFILTERDB_CACHE": str(tmp_path / "cache")}  # fmt: skip
    with subprocess.Popen(
        line, env=os.environ | settings, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as server:
        try:
            address, _, token = server.stdout.readline().split()[-1].partition("#token=")
            headers = {"Authorization": f"Bearer {token}"}
            body = json.dumps({"by": "domain"}).encode()
            with urllib.request.urlopen(
                urllib.request.Request(f"{address}api/groups", body, headers), timeout=60
            ) as response:
                found = json.load(response)
            assert set(found["labels"]) == {"faces", "medical ct", "natural"}
            assert "--db hf://datasets/owner/sample" in found["command"]
        finally:
            server.terminate()
            said, errors = server.communicate()
    assert (server.returncode, said.splitlines()[-1]) == (143, "The explorer has ended.")
    assert TOKEN not in errors
    assert "Traceback" not in errors
    assert not any("filters_" in one.path for one in hub.asked("GET")), "filters were read for statistics"
