"""What was published, read by clients as they are: huggingface_hub, datasets, pandas, polars, DuckDB; with Xet too."""

import duckdb
import numpy as np
import pandas as pd
import pytest
from huggingface_hub import HfFileSystem, snapshot_download
from huggingface_hub.errors import GatedRepoError, HfHubHTTPError, RepositoryNotFoundError

from cnnfilterdb.release.manifest import Manifest

TOKEN = "hf_secretsecret"
REPO = "owner/kernels"
ONE = [["custom/a", "custom/b"], ["custom/c"]]
ADDRESS = f"hf://datasets/{REPO}@v1.0.0"

PUBLISH = """
from pathlib import Path
from cnnfilterdb.core.errors import PublishError
from cnnfilterdb.core.paths import MARKER
from cnnfilterdb.release.manifest import Manifest
from cnnfilterdb.publish.hub import upload

folder = Path(args["folder"])
manifest = Manifest.from_json((folder / MARKER).read_text(), "")
try:
    print(json.dumps(upload(folder, manifest, args["repo"]).commit))
except PublishError as error:
    print(json.dumps(f"error: {error}"))
"""


def contents(folder):
    """Files of a release by path, without what the Hub and its client add."""
    found = {path.relative_to(folder).as_posix(): path for path in folder.rglob("*") if path.is_file()}
    return {path: source.read_bytes() for path, source in found.items() if not path.startswith((".git", ".cache"))}


@pytest.fixture
def filesystem(hub):
    HfFileSystem.clear_instance_cache()
    yield HfFileSystem(endpoint=hub.url, token=TOKEN)
    HfFileSystem.clear_instance_cache()


@pytest.fixture
def published(hub, make, publish):
    """A release, and the publication of a later one on top of it that readers of its tag do not see."""
    release = make(ONE)
    publish(release)
    publish(make([["custom/z"]], "2.0.0"))
    return release


def test_huggingface_hub(hub, published, tmp_path):
    folder = snapshot_download(
        REPO, repo_type="dataset", revision="v1.0.0", local_dir=tmp_path / "got", endpoint=hub.url, token=TOKEN
    )
    assert folder == str(tmp_path / "got")
    assert contents(tmp_path / "got") == contents(published[0])
    # Content comes from another host, which learns no token
    assert not any(one.authorization for one in hub.asked("GET /lfs/"))


def test_huggingface_hub_without_access(hub, loopback, make, publish, tmp_path):
    hub.tokens["hf_other"] = loopback.Token(user="other")
    publish(make(ONE), "owner/private", private=True)
    hub.create("owner/gated", gated=True)
    publish(make(ONE), "owner/gated")

    def download(name, token):
        return snapshot_download(
            f"owner/{name}", repo_type="dataset", cache_dir=tmp_path / f"{name} {token}", endpoint=hub.url, token=token
        )

    for token in (False, "hf_other"):
        with pytest.raises(RepositoryNotFoundError):
            download("private", token)
        with pytest.raises(GatedRepoError):
            download("gated", token)
    hub.granted.add(("other", "owner/gated"))
    download("gated", "hf_other")
    with pytest.raises(HfHubHTTPError, match="401"):
        download("gated", "hf_wrong")


def test_pandas(hub, published):
    options = {"endpoint": hub.url, "token": TOKEN}
    models = pd.read_parquet(f"{ADDRESS}/models/00000.parquet", storage_options=options)
    assert list(models.model_id) == ["custom/a", "custom/b", "custom/c"]
    filters = pd.read_parquet(f"{ADDRESS}/filters_3x3/00001.parquet", storage_options=options, columns=["w0"])
    assert filters.w0.dtype == np.float32
    assert len(filters) == 4096


def test_polars(hub, published):
    polars = pytest.importorskip("polars")
    # Its own hf:// knows the public Hub only; an address of a file does for any other
    url = f"{hub.url}/datasets/{REPO}/resolve/v1.0.0/filters_3x3/00000.parquet"
    found = (
        polars.scan_parquet(url)
        .group_by("model_id")
        .agg(polars.len(), polars.col("w8").max())
        .sort("model_id")
        .collect()
    )
    expected = pd.read_parquet(published[0] / "filters_3x3/00000.parquet").groupby("model_id").w8.max()
    assert found["model_id"].to_list() == ["custom/a", "custom/b"]
    assert found["len"].to_list() == [4096, 4096]
    assert found["w8"].to_list() == expected.tolist()


def test_duckdb(hub, published, filesystem):
    with duckdb.connect() as connection:
        connection.register_filesystem(filesystem)
        counted = connection.execute(
            f"SELECT model_id, count(*), sum(w0) FROM '{ADDRESS}/filters_3x3/*.parquet' GROUP BY ALL ORDER BY ALL"
        ).fetchall()
        expected = connection.execute(
            f"SELECT model_id, count(*), sum(w0) FROM '{published[0]}/filters_3x3/*.parquet' GROUP BY ALL ORDER BY ALL"
        ).fetchall()
    assert [row[:2] for row in counted] == [(f"custom/{name}", 4096) for name in "abc"]
    assert [row[2] for row in counted] == pytest.approx([row[2] for row in expected])


DATASETS = """
import datasets
import itertools

stream = datasets.load_dataset("owner/kernels", "filters_3x3", split="train", streaming=True, revision="v1.0.0")
models = datasets.load_dataset("owner/kernels", split="train", revision="v1.0.0")
answer = {
    "configurations": datasets.get_dataset_config_names("owner/kernels", revision="v1.0.0"),
    "first": next(iter(stream)),
    "rows": sum(1 for _ in stream),
    "type": str(stream.features["w0"]),
    "models": models["model_id"][:],
    "metrics": models[0]["metrics"],
}
print(json.dumps(answer))
"""


@pytest.mark.thorough
def test_datasets(published, client):
    pytest.importorskip("datasets")
    found = client(DATASETS)
    assert found["configurations"] == ["models", "layers", "filters_3x3"]
    assert found["rows"] == 3 * 4096
    first = pd.read_parquet(published[0] / "filters_3x3/00000.parquet").iloc[0].to_dict()
    assert found["first"] == pytest.approx(first)
    assert found["type"] == "Value('float32')"
    assert found["models"] == ["custom/a", "custom/b", "custom/c"]
    assert found["metrics"] == [{"key": "top1", "value": 0.5}]


SNAPSHOT = """
from huggingface_hub import snapshot_download
print(json.dumps(snapshot_download("owner/kernels", repo_type="dataset", revision=args["tag"], local_dir=args["to"])))
"""


@pytest.mark.thorough
def test_xet(xet_hub, make, client, tmp_path, filesystem):
    """Chunks that are there are not sent again, neither those of an earlier release nor those of a cut run."""
    hub = xet_hub
    many = {"number": 20_000}
    folder, manifest = make([["custom/a", "custom/b", "custom/c", "custom/d"], ["custom/e"]], **many)
    commit = client(PUBLISH, xet=True, folder=str(folder), repo=REPO)
    assert not hub.asked("PUT /lfs/")
    large = sum(file.bytes for file in manifest.files)
    first = hub.xet_bytes()
    assert 0.9 * large < first < 1.1 * large
    repo = hub.repos[REPO]
    assert repo.tags == {"v1.0.0": commit}
    assert {path: data for path, data in repo.files("v1.0.0").items() if path != ".gitattributes"} == contents(folder)

    # A model more, in the middle of a file: that file is another one, and most of it is known
    folder, manifest = make(
        [["custom/a", "custom/b", "custom/bb", "custom/c", "custom/d"], ["custom/e"]], "1.1.0", **many
    )
    hub.fail("POST .*/commit/release-v1.1.0", times=100, status=400)
    said = client(PUBLISH, xet=True, folder=str(folder), repo=REPO)
    assert said.startswith("error: owner/kernels: http://127.0.0.1")
    assert repo.tags == {"v1.0.0": commit}
    second = hub.xet_bytes() - first
    changed = manifest.of("filters_3x3")[0].bytes
    assert second < 0.5 * changed
    hub.faults.clear()
    commit = client(PUBLISH, xet=True, folder=str(folder), repo=REPO)
    assert hub.xet_bytes() - first - second < 0.02 * changed
    assert repo.tags["v1.1.0"] == commit

    # Read by Xet, and without
    client(SNAPSHOT, xet=True, tag="v1.1.0", to=str(tmp_path / "got"))
    assert not hub.asked("GET /lfs/")
    expected = contents(folder)
    assert contents(tmp_path / "got") == expected
    assert filesystem.info(f"{ADDRESS}/README.md")["size"] == len(expected["README.md"])
    for path in expected:
        assert filesystem.cat_file(f"hf://datasets/{REPO}@v1.1.0/{path}") == expected[path]
    assert Manifest.from_json(expected["cnnfilterdb.json"].decode(), "") == manifest

    # Without access, hf_xet complains in its own way
    hub.fail("GET .*/xet-write-token", status=403, body=f'{{"error": "not with {TOKEN}"}}'.encode())
    said = client(PUBLISH, xet=True, folder=str(make([["custom/x"]], "1.2.0")[0]), repo=REPO)
    assert said.startswith("error: owner/kernels: the request failed (")
    assert said.endswith("; check what the token may do")
    assert TOKEN not in said

    # Whatever it writes down
    logs = list((tmp_path / "hf-home").rglob("*.log"))
    assert logs
    for path in (tmp_path / "hf-home").rglob("*"):
        assert path.is_dir() or TOKEN.encode() not in path.read_bytes()
