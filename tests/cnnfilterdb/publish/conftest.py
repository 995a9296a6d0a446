"""A Hub on the loopback interface, and small releases to publish there."""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from cnnfilterdb.core.durable import sha256
from cnnfilterdb.core.paths import MARKER, shard_path
from cnnfilterdb.core.schema import release_schema
from cnnfilterdb.publish import hub as publishing
from cnnfilterdb.release.manifest import Manifest, ReleaseFile

TOKEN = "hf_secretsecret"

CARD = """---
license: mit
pretty_name: Kernels
configs:
- config_name: models
  default: true
  data_files: models/*.parquet
- config_name: layers
  data_files: layers/*.parquet
- config_name: filters_3x3
  data_files: filters_3x3/*.parquet
---
# Kernels
"""


def _loopback():
    """The package tests/loopback_hub; tests are not a package, so it is not importable by a name."""
    if "loopback_hub" not in sys.modules:
        path = Path(__file__).parents[2] / "loopback_hub" / "__init__.py"
        specification = importlib.util.spec_from_file_location("loopback_hub", path)
        module = sys.modules["loopback_hub"] = importlib.util.module_from_spec(specification)
        specification.loader.exec_module(module)
    return sys.modules["loopback_hub"]


@pytest.fixture
def loopback():
    """The module of the server."""
    return _loopback()


@pytest.fixture
def hub(monkeypatch, tmp_path):
    """A server where the token of the tests may write as "owner", and nothing else of whoever runs the tests."""
    from huggingface_hub import close_session

    for name in ("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN", "HF_ENDPOINT", "HF_HUB_OFFLINE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr("huggingface_hub.constants.HF_TOKEN_PATH", str(tmp_path / "no-token"))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_DISABLE_XET", True)
    monkeypatch.setenv("NO_PROXY", "127.0.0.1,localhost")
    server = _loopback().Hub()
    server.tokens[TOKEN] = _loopback().Token()
    server.waits = []
    # Waiting is for real servers
    monkeypatch.setattr("time.sleep", server.waits.append)
    close_session()
    yield server
    server.close()
    close_session()


@pytest.fixture
def xet_hub(hub, tmp_path, monkeypatch):
    """The same with Xet; clients of it run in processes of their own, see ``client``."""
    monkeypatch.setenv("HF_HOME", str(tmp_path / "hf-home-of-the-server"))  # where hf_xet writes its logs
    hub.xet = tmp_path / "xet"
    hub.xet.mkdir()
    return hub


@pytest.fixture
def client(hub, tmp_path):
    """Runs Python code in a process whose Hub is the loopback one; its last line of output, as JSON, is the answer."""

    def run(code, xet=False, token=TOKEN, **arguments):
        # Nothing of a user's settings, and no cache but that of the test
        kept = {key: value for key, value in os.environ.items() if not key.startswith(("HF_", "HUGGING"))}
        settings = {
            "HF_ENDPOINT": hub.url,
            "HF_HOME": str(tmp_path / "hf-home"),
            "HF_HUB_DISABLE_XET": "0" if xet else "1",
            "HF_HUB_DISABLE_TELEMETRY": "1",
            "NO_PROXY": "127.0.0.1,localhost",
            **({"HF_TOKEN": token} if token else {}),
        }
        prologue = "import json, sys\nargs = json.loads(sys.argv[1])\n"
        done = subprocess.run(
            [sys.executable, "-c", prologue + code, json.dumps(arguments)],
            env=kept | settings,
            capture_output=True,
            text=True,
            timeout=600,
            check=False,
        )
        assert done.returncode == 0, done.stderr
        assert TOKEN not in done.stdout + done.stderr
        return json.loads(done.stdout.splitlines()[-1])

    return run


def filters(model_id, number):
    """Rows of the table of 3x3 filters: random ones, the same for the same model."""
    schema = release_schema("filters_3x3")
    rng = np.random.default_rng(sum(model_id.encode()))
    weights = rng.normal(size=(9, number)).astype(np.float32)
    keys = [
        pa.array([model_id] * number),
        pa.array(np.zeros(number, np.int32)),
        pa.array(np.arange(number, dtype=np.int32) // 16),
        pa.array(np.arange(number, dtype=np.int32) % 16),
    ]
    return pa.Table.from_arrays([*keys, *map(pa.array, weights)], schema=schema)


def _rows(table, model_ids, number):
    """Rows of the tables of models and layers; what may be unknown is."""
    known = {
        "source": "custom",
        "layer": 0,
        "name": "conv",
        "layer_name": "conv",
        "kernel": "3x3",
        "kernel_h": 3,
        "kernel_w": 3,
        "dtype": "float32",
        "stored": True,
        "conv_layers": 1,
        "filters": number,
        "stored_filters": number,
        "license": "MIT",
        "ingested_at": 0,
    }
    schema = release_schema(table)
    columns = {**known, "metrics": [{"key": "top1", "value": 0.5}]} if table == "models" else known
    rows = [
        {key: value for key, value in columns.items() if key in schema.names} | {"model_id": one} for one in model_ids
    ]
    return pa.Table.from_pylist(rows, schema=schema)


def _write(folder, shards, version="1.0.0", number=4096, card=CARD):
    """A release of shards of filters, each a list of models; returns its manifest."""
    model_ids = [one for shard in shards for one in shard]
    tables = {shard_path(table, 0): [_rows(table, model_ids, number)] for table in ("models", "layers")}
    for i, shard in enumerate(shards):
        # A row group per model, so that a model more leaves the bytes of the others as they are
        tables[shard_path("filters_3x3", i)] = [filters(one, number) for one in shard]
    files = []
    for path, groups in tables.items():
        target = folder / path
        target.parent.mkdir(parents=True, exist_ok=True)
        with pq.ParquetWriter(target, groups[0].schema, compression="zstd", write_page_index=True) as writer:
            for group in groups:
                writer.write_table(group)
        rows = sum(group.num_rows for group in groups)
        files.append(ReleaseFile(path, path.partition("/")[0], rows, target.stat().st_size, sha256(target)))
    manifest = Manifest(version, len(model_ids), number * len(model_ids), tuple(files), created_by="tests")
    (folder / MARKER).write_text(manifest.to_json())
    (folder / "README.md").write_text(card)
    (folder / "shift.png").write_bytes(b"\x89PNG\r\n\x1a\n" + version.encode())
    return manifest


@pytest.fixture
def make(tmp_path):
    """Makes release folders: ``make(shards, version)`` -> (folder, manifest)."""

    def write(shards, version="1.0.0", name=None, **options):
        folder = tmp_path / (name or f"release-{version}")
        return folder, _write(folder, shards, version, **options)

    return write


@pytest.fixture
def publish(hub):
    """Publishes a release to the loopback Hub."""

    def run(release, repo="owner/kernels", token=TOKEN, **options):
        folder, manifest = release
        return publishing.upload(folder, manifest, repo, token=token, endpoint=hub.url, **options)

    return run


@pytest.fixture
def state(hub):
    """What readers of a repository see: the paths on main, and the tags."""

    def look(repo="owner/kernels"):
        known = hub.repos.get(repo)
        return (sorted(known.at("main").entries), dict(known.tags)) if known else None

    return look


@pytest.fixture
def changed():
    """A manifest with a file described otherwise."""

    def change(manifest, path, **what):
        files = tuple(replace(file, **what) if file.path == path else file for file in manifest.files)
        return replace(manifest, files=files)

    return change
