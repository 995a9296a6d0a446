import hashlib
import io
import json

import numpy as np
import pytest
import torch
from safetensors.numpy import save
from safetensors.torch import save as save_torch

from cnnfilterdb.core.errors import (
    CnnFilterDbError,
    DownloadError,
    HashMismatchError,
    UnknownModelError,
    WeightFileError,
)
from cnnfilterdb.ingest import formats
from cnnfilterdb.ingest.fetch.cache import Cache
from cnnfilterdb.ingest.fetch.hugging_face import HuggingFace
from cnnfilterdb.ingest.fetch.partial_safetensors import partial_origin
from cnnfilterdb.ingest.sources import Source, get
from cnnfilterdb.ingest.sources.hub import HubSource, card_facts

REPO = "owner/net"
CARD = b"""---
license: mit
datasets:
- imagenet-1k
tags:
- timm
- arxiv:2110.00476
pipeline_tag: image-classification
library_name: timm
---
# Net
"""


def tensors(seed=0, big=0):
    rng = np.random.default_rng(seed)
    shapes = {
        "stem.weight": (8, 3, 3, 3),
        "stem_bn.weight": (8,),
        "body.weight": (16, 8, 3, 3),
        "head.weight": (10, 16 + big),
    }
    return {name: rng.normal(size=shape).astype(np.float32) for name, shape in shapes.items()}


def model(seed=0, big=0):
    return save(tensors(seed, big), metadata={"format": "pt"})


@pytest.fixture
def client(hub, tmp_path):
    """Makes clients of the loopback server that share a cache."""

    def make(**options):
        return HuggingFace(cache=Cache(tmp_path / "cache"), endpoint=hub.url, **options)

    return make


@pytest.fixture
def source(client):
    def make(folder=None, partial=False, **options):
        return HubSource(client=client(**options), folder=folder, partial=partial)

    return make


def test_it_is_a_source():
    found: Source = get("hub", offline=True)
    assert found.list(["a/b", "a/b", "c/d@v1:x/y.onnx"]) == ["a/b", "c/d@v1:x/y.onnx"]
    assert found.list() == []


@pytest.mark.parametrize("name", ["net", "a/b/c", "a/b:../x", "a/b:/x", "a/*", "a/b@", "https://a/b", "a/b:x y"])
def test_what_is_no_name(name):
    with pytest.raises(UnknownModelError, match="expected owner/name"):
        HubSource(offline=True).list([name])


def test_a_repository_is_downloaded_once_at_its_commit(hub, source, client):
    commit = hub.push(REPO, {"README.md": CARD, "model.safetensors": model()})
    hub_source = source()
    calls = []
    path = hub_source.resolve(REPO, lambda done, total: calls.append((done, total)))
    assert path.read_bytes() == model()
    assert calls[-1] == (len(model()), len(model()))
    facts = hub_source.describe(REPO)
    assert (facts.revision, facts.weights_sha256) == (commit, hashlib.sha256(model()).hexdigest())
    assert facts.url == f"pkg:huggingface/owner/net@{commit}#model.safetensors"
    assert (facts.license, facts.training_dataset, facts.domain) == ("MIT", "ImageNet-1k", "natural")
    assert (facts.task, facts.paper) == ("Classification", "arXiv:2110.00476")
    assert facts.original["library_name"] == "timm"
    weights = hub_source.enrich(REPO, formats.read(path))
    for layer in weights.layers:
        np.testing.assert_array_equal(layer.read(), tensors()[f"{layer.name}.weight"])
    # Another process, offline, and with the file named: the same facts without a request
    before = len(hub.requests)
    for again, name in (source(offline=True), REPO), (source(), f"{REPO}:model.safetensors"):
        assert again.resolve(name) == path
        assert again.describe(name) == facts
    assert len(hub.requests) == before


def test_a_later_commit_is_another_model(hub, source):
    first = hub.push(REPO, {"model.safetensors": model(0)}, tag="v1")
    second = hub.push(REPO, {"model.safetensors": model(1)})
    hub_source = source()
    for name, commit, seed in (f"{REPO}@v1", first, 0), (REPO, second, 1), (f"{REPO}@{first}", first, 0):
        assert hub_source.resolve(name).read_bytes() == model(seed)
        assert hub_source.describe(name).revision == commit


def test_files_of_every_kind_and_the_choice_between_them(hub, source):
    state = {name: torch.from_numpy(value) for name, value in tensors().items()}
    buffer = io.BytesIO()
    torch.save(state, buffer)
    hub.push(REPO, {"pytorch_model.bin": buffer.getvalue(), "training_args.bin": b"x", "optimizer.pt": b"x"})
    hub_source = source()
    assert len(formats.read(hub_source.resolve(REPO)).layers) == 2
    hub.push("owner/two", {"a.safetensors": model(0), "b.safetensors": model(1)})
    with pytest.raises(UnknownModelError, match=r"several weight files: a.safetensors, b.safetensors; choose"):
        hub_source.resolve("owner/two")
    assert hub_source.resolve("owner/two:b.safetensors").read_bytes() == model(1)
    # What is in the cache by chance is not what a name without a file means
    with pytest.raises(UnknownModelError, match="several weight files"):
        hub_source.resolve("owner/two")
    with pytest.raises(DownloadError, match=r"has no c.safetensors at revision main; it has a.safetensors"):
        hub_source.resolve("owner/two:c.safetensors")
    hub.push("owner/none", {"README.md": CARD})
    with pytest.raises(DownloadError, match="no weight file among its 1 file"):
        hub_source.resolve("owner/none")


def test_shards_come_together(hub, source):
    parts = [{"stem.weight": tensors()["stem.weight"]}, {"body.weight": tensors()["body.weight"]}]
    names = [f"model-0000{i}-of-00002.safetensors" for i in (1, 2)]
    index = {"weight_map": {"stem.weight": names[0], "body.weight": names[1]}}

    hub.push(
        REPO,
        {"model.safetensors.index.json": json.dumps(index).encode()} | dict(zip(names, map(save, parts), strict=True)),
    )
    assert {layer.name for layer in formats.read(source().resolve(REPO)).layers} == {"stem", "body"}
    assert formats.read(source(offline=True).resolve(REPO)).parameters == 216 + 1152


def test_only_convolutions_are_read(hub, source):
    whole = save_torch(
        {name: torch.from_numpy(value) for name, value in tensors(big=300_000).items()}, metadata={"format": "pt"}
    )
    commit = hub.push(REPO, {"model.safetensors": whole})
    hub_source = source(partial=True)
    path = hub_source.resolve(REPO)
    # The header and whatever is in the first 64 KiB, and the kernels
    assert hub.sent < 200_000 < len(whole) / 10
    assert path.stat().st_size < 10_000
    weights = hub_source.enrich(REPO, formats.read(path))
    assert weights.framework == "pytorch"
    assert weights.parameters == sum(value.size for value in tensors(big=300_000).values())
    for layer in weights.layers:
        np.testing.assert_array_equal(layer.read(), tensors(big=300_000)[f"{layer.name}.weight"])
    facts = hub_source.describe(REPO)
    assert (facts.revision, facts.weights_sha256) == (commit, None)
    assert facts.original["stated_sha256"] == hashlib.sha256(whole).hexdigest()
    assert partial_origin(path)["file_bytes"] == str(len(whole))
    before = len(hub.requests)
    again = source(partial=True, offline=True)
    assert again.resolve(REPO) == path
    assert again.describe(REPO) == facts
    assert len(hub.requests) == before
    # Whole files are whole all the same
    assert source().resolve(REPO).read_bytes() == whole


def test_partial_reading_resumes_where_it_was_cut(hub, source, client, monkeypatch):
    monkeypatch.setattr("cnnfilterdb.ingest.fetch.partial_safetensors._BLOCK", 2000)
    hub.push(REPO, {"model.safetensors": model(big=100_000)})
    # The header and the first blocks come, then the network goes
    hub.faults += [("GET /store", hub.Fault())] * 2 + [("GET /store", hub.Fault(status=404))]
    with pytest.raises(DownloadError, match="check the network and run again"):
        source(partial=True).resolve(REPO)
    sent = hub.sent
    path = source(partial=True).resolve(REPO)
    read = formats.read(path)
    assert [layer.name for layer in read.layers] == ["body", "stem"]
    for layer in read.layers:
        np.testing.assert_array_equal(layer.read(), tensors(big=100_000)[f"{layer.name}.weight"])
    assert hub.sent - sent < 65536 + sum(layer.read().nbytes for layer in read.layers)


def test_partial_reading_without_ranges_takes_the_whole(hub, source):
    hub.push(REPO, {"model.safetensors": model()})
    hub.ranges = False
    assert source(partial=True).resolve(REPO).read_bytes() == model()


def test_a_damaged_header_is_reported(hub, source):
    hub.push(REPO, {"model.safetensors": b"<html>not a model</html>"})
    with pytest.raises(WeightFileError, match="not a safetensors file"):
        source(partial=True).resolve(REPO)


@pytest.mark.parametrize(
    "mapped",
    [{"a": 3, "b": "part.safetensors"}, {"a": ["part.safetensors"]}, {"a": None}, [], 3],
    ids=["a number", "a list", "nothing", "no map", "a number instead of a map"],
)
def test_an_index_of_shards_that_is_none_is_one_line(hub, source, mapped):
    index = json.dumps({"metadata": {}, "weight_map": mapped, "x": "part.safetensors"})
    hub.push(REPO, {"model.safetensors.index.json": index.encode(), "part.safetensors": model()})
    with pytest.raises(CnnFilterDbError) as caught:
        formats.read(source().resolve(REPO))
    assert "\n" not in str(caught.value)


def test_a_cut_connection_is_resumed(hub, source):
    hub.push(REPO, {"model.safetensors": model(big=500_000)})
    hub.faults.append(("GET /store", hub.Fault(cut=15_000_000)))
    assert source().resolve(REPO).read_bytes() == model(big=500_000)
    assert [status for _, _, status, _ in hub.asked("GET", "/store")] == [200, 206]


@pytest.mark.parametrize("request_of", ["GET /api", "HEAD .*model", "GET /store"])
def test_too_many_requests_are_waited_for(hub, source, request_of):
    hub.push(REPO, {"model.safetensors": model()})
    hub.faults.append((request_of, hub.Fault(status=429, headers={"Retry-After": "7"})))
    assert source().resolve(REPO).read_bytes() == model()
    assert any(seconds in (7.0, 8.0) for seconds in hub.waits) or request_of.startswith("HEAD")


def test_garbled_bytes_are_downloaded_again_and_then_refused(hub, source):
    hub.push(REPO, {"model.safetensors": model()})
    hub.faults.append(("GET /store", hub.Fault(garble=True)))
    assert source().resolve(REPO).read_bytes() == model()
    hub.push("owner/other", {"model.safetensors": model(1)})
    hub.faults += [("GET /store", hub.Fault(garble=True))] * 2
    with pytest.raises(HashMismatchError, match="expected SHA-256"):
        source().resolve("owner/other")
    assert source().resolve("owner/other").read_bytes() == model(1)


def test_the_cache_is_checked(hub, source):
    hub.push(REPO, {"model.safetensors": model()})
    path = source().resolve(REPO)
    path.write_bytes(bytes(len(model())))
    assert source().resolve(REPO).read_bytes() == model()


def test_refusals_name_the_remedy(hub, source):
    hub.push("owner/gated", {"model.safetensors": model()})
    hub.gated.add("owner/gated")
    with pytest.raises(DownloadError, match=r"accept the conditions at http.*/owner/gated, then set HF_TOKEN"):
        source().resolve("owner/gated")
    with pytest.raises(DownloadError, match=r"no such repository at http.*, or a private one; check the name"):
        source().resolve("owner/nothing")
    with pytest.raises(DownloadError, match="has no revision v9"):
        source(token="hf_x").resolve("owner/gated@v9")
    hub.faults += [("GET /api", hub.Fault(status=503))] * 9
    with pytest.raises(DownloadError, match="answered 503; try again later"):
        source(token="hf_x").resolve("owner/gated")


def test_the_token_goes_to_the_hub_and_no_further(hub, source):
    hub.push("owner/private", {"README.md": CARD, "model.safetensors": model(big=100_000)})
    hub.private["owner/private"] = "Bearer hf_secret"
    for partial in (False, True):
        with pytest.raises(DownloadError, match="or a private one"):
            source(partial=partial, token="hf_wrong").resolve("owner/private")
    for partial in (True, False):
        source(partial=partial, token="hf_secret").resolve("owner/private")
    tokens = {token for _, path, _, token in hub.requests if path.startswith("/store")}
    assert tokens == {None}


def test_offline(hub, source, monkeypatch):
    hub.push(REPO, {"model.safetensors": model()})
    with pytest.raises(DownloadError, match=r"owner/net: offline, and .* not in the cache .*; put the file"):
        source(offline=True).resolve(REPO)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    with pytest.raises(DownloadError, match="offline"):
        source().resolve(REPO)
    assert not hub.requests


def test_endpoint_of_the_environment(hub, tmp_path, monkeypatch):
    hub.push(REPO, {"model.safetensors": model()})
    monkeypatch.setenv("HF_ENDPOINT", hub.url + "/")
    monkeypatch.setenv("CNNFILTERDB_CACHE", str(tmp_path / "here"))
    path = HubSource().resolve(REPO)
    assert path.is_relative_to(tmp_path / "here")


def test_a_server_that_is_not_there(tmp_path, hub):
    client = HuggingFace(cache=Cache(tmp_path), endpoint="http://127.0.0.1:9", patience=0)
    with pytest.raises(DownloadError, match="check the network"):
        HubSource(client=client).resolve(REPO)


def test_folders(hub, source, tmp_path):
    folder = tmp_path / "models"
    (folder / REPO).mkdir(parents=True)
    (folder / REPO / "model.safetensors").write_bytes(model())
    (folder / REPO / "README.md").write_bytes(CARD)
    hub_source = source(folder=folder)
    assert hub_source.resolve(REPO).read_bytes() == model()
    assert hub_source.describe(REPO).license == "MIT"
    assert hub_source.describe(REPO).weights_sha256 == hashlib.sha256(model()).hexdigest()
    assert not hub.requests
    # A cache of huggingface_hub that another program has filled
    hub.push("owner/other", {"README.md": CARD, "model.safetensors": model(1)})
    source().resolve("owner/other")
    before = len(hub.requests)
    lent = HubSource(folder=tmp_path / "cache" / "huggingface", client=HuggingFace(cache=Cache(tmp_path / "second")))
    assert lent.resolve("owner/other").read_bytes() == model(1)
    assert lent.describe("owner/other").license == "MIT"
    assert len(hub.requests) == before
    with pytest.raises(DownloadError, match="no such folder"):
        source(folder=tmp_path / "nowhere").resolve(REPO)


@pytest.mark.parametrize(
    ("card", "expected"),
    [
        ({}, {"license": "LicenseRef-Unknown", "original": None}),
        ({"license": "other", "license_name": "My Licence 2"}, {"license": "LicenseRef-My-Licence-2"}),
        ({"license": ["mit", "apache-2.0"]}, {"license": "LicenseRef-Unknown"}),
        ({"datasets": ["a/x", "b/y"]}, {"training_dataset": None, "original": {"datasets": "a/x; b/y"}}),
        ({"datasets": "a/x"}, {"training_dataset": "a/x", "domain": None}),
        ({"pipeline_tag": "image-to-image"}, {"task": None, "original": {"pipeline_tag": "image-to-image"}}),
        ({"tags": ["arxiv:2110.00476", "arxiv:1512.03385"]}, {"paper": None}),
        ({"tags": {"no": "list"}, "datasets": [None, 3]}, {"training_dataset": "3"}),
    ],
)
def test_cards(card, expected):
    facts = card_facts(card)
    assert {key: getattr(facts, key) for key in expected} == expected


def test_a_broken_card_does_not_matter(hub, source):
    hub.push(REPO, {"README.md": b"---\nlicense: [mit\n---\n", "model.safetensors": model()})
    hub_source = source()
    assert hub_source.resolve(REPO).exists()
    assert hub_source.describe(REPO).license == "LicenseRef-Unknown"
