import hashlib
import io
import re
import subprocess
import sys
from dataclasses import replace
from functools import lru_cache

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from safetensors.torch import save

import cnnfilterdb
from cnnfilterdb import catalog
from cnnfilterdb.cli import cli
from cnnfilterdb.core.errors import DownloadError, HashMismatchError, UnknownModelError
from cnnfilterdb.ingest import formats
from cnnfilterdb.ingest.fetch.cache import Cache
from cnnfilterdb.ingest.fetch.download import Session
from cnnfilterdb.ingest.fetch.hugging_face import HuggingFace
from cnnfilterdb.ingest.fetch.pip_settings import Settings
from cnnfilterdb.ingest.sources import Source, get
from cnnfilterdb.ingest.sources import timm as adapter
from cnnfilterdb.ingest.sources.timm import TimmSource

pytestmark = pytest.mark.thorough

NAME = "resnet18.a1_in1k"
REPO = f"timm/{NAME}"


@pytest.fixture(scope="module")
def timm():
    return adapter._imported()


@pytest.fixture(scope="module")
def checkpoint(timm):
    """Makes the state dict of a network of timm with random weights."""

    @lru_cache
    def make(name):
        # Random numbers instead of timm's own initialisation, which takes much longer
        with torch.device("meta"):
            state = timm.create_model(name, pretrained=False).state_dict(keep_vars=True)
        generator = torch.Generator().manual_seed(0)
        drawn = {}
        for value in state.values():
            if value.is_floating_point():
                drawn.setdefault(id(value), torch.empty(value.shape).normal_(generator=generator))
            else:
                drawn.setdefault(id(value), torch.zeros(value.shape, dtype=value.dtype))
        return {name: drawn[id(value)] for name, value in state.items()}

    return make


@pytest.fixture
def client(hub, tmp_path):
    def make(**options):
        return HuggingFace(cache=Cache(tmp_path / "cache"), endpoint=hub.url, **options)

    return make


@pytest.fixture
def source(client):
    def make(offline=False, **options):
        session = Session(Settings(retries=0, timeout=5.0), pause=0.001)
        return TimmSource(client=client(offline=offline), session=session, **options)

    return make


def safetensors(state):
    return save({name: value.contiguous() for name, value in state.items()}, metadata={"format": "pt"})


def pickled(value):
    buffer = io.BytesIO()
    torch.save(value, buffer)
    return buffer.getvalue()


def learnable(state):
    """Number of parameters: all that is no statistic of a batch normalisation."""
    return sum(value.numel() for key, value in state.items() if value.is_floating_point() and "running" not in key)


def kernels(state):
    return {
        name.removesuffix(".weight"): value.numpy()
        for name, value in state.items()
        if value.dim() == 4 and name.endswith(".weight")
    }


# ---------------------------------------------------------------------------------------------------------------------
# The catalog


def test_it_is_a_source_of_1117_models():
    found: Source = get("timm", offline=True)
    assert len(found.list()) == 1117
    assert len(found.list(["resnet*.a1_in1k"])) >= 6
    with pytest.raises(UnknownModelError, match=r"nearest: resnet18.*a1_in1k"):
        found.list(["resnet18.a1_in1"])


def test_every_model_is_described_without_a_download():
    source = TimmSource(offline=True)
    for name in source.list():
        facts = source.describe(name)
        assert facts.license
        assert facts.family
        assert facts.architecture == name.partition(".")[0]
        assert facts.url.startswith(("pkg:huggingface/", "https://"))
        assert facts.original["tag"] == name.partition(".")[2]
    facts = source.describe("convnext_atto_ols.a2_in1k")
    assert (facts.training_dataset, facts.pretraining_dataset, facts.domain) == ("ImageNet-1k", None, "natural")
    facts = source.describe("regnety_1280.seer_ft_in1k")
    assert (facts.training_dataset, facts.pretraining_dataset) == ("ImageNet-1k", "SEER Instagram")
    assert facts.metrics == {"top1": 84.426, "top1_img_size": 384.0}
    assert facts.license == "LicenseRef-SEER-Noncommercial"
    assert facts.original["input_size"] == "384"


# The data sets that tags name, in the order of training; what stands for a data set only in one place is left out.
TOKENS = {
    "in1k": "ImageNet-1k",
    "in12k": "ImageNet-12k",
    "in21k": "ImageNet-21k",
    "in22k": "ImageNet-22k",
    "inw21k": "ImageNet-W21k",
    "jft": "JFT-300M",
    "ig1b": "IG-1B",
    "swag": "IG-3.6B",
    "seer": "SEER Instagram",
    "yfcc100m": "YFCC100M",
    "yfcc15m": "YFCC15M",
    "cc12m": "CC12M",
    "datacomp1b": "DataComp-1B",
    "dfndr2b": "DFNDR-2B",
    "sa1b": "SA-1B",
    "openai": "WIT-400M",
    "bamboo": "Bamboo",
}


def test_data_sets_are_those_of_the_tags():
    unknown = []
    for model in catalog.models("timm"):
        stated = [TOKENS[token] for token in model.origin["tag"].split("_") if token in TOKENS]
        found = [text for text in (model.facts.pretraining_dataset, model.facts.training_dataset) if text]
        assert "; ".join(found) == "; ".join(stated), model.name
        if not stated:
            unknown.append(model.name)
    assert len(unknown) == 6


def test_the_catalog_is_that_of_timm(timm):
    """Against the library's own registry."""
    spdx = {"apache-2.0": "Apache-2.0", "mit": "MIT", "bsd-3-clause": "BSD-3-Clause", "cc-by-nc-4.0": "CC-BY-NC-4.0"}
    for model in catalog.models("timm"):
        config = timm.get_pretrained_cfg(model.name)
        repo = (config.hf_hub_id or "").rstrip("/")
        assert model.origin["hf_hub_id"] == (f"timm/{model.name}" if repo == "timm" else repo)
        assert model.origin["url"] == (config.url or "")
        assert int(model.origin["input_size"]) == config.input_size[-1]
        assert int(model.origin["num_classes"]) == config.num_classes
        if config.license in spdx:
            assert model.facts.license == spdx[config.license]
        module = timm.models.model_entrypoint(model.facts.architecture).__module__
        assert model.origin["module"] == module.rpartition(".")[2]
        assert (model.format == "safetensors") == bool(repo)


# ---------------------------------------------------------------------------------------------------------------------
# Bringing


def test_weights_of_a_repository(hub, source, checkpoint):
    state = checkpoint(NAME)
    commit = hub.push(REPO, {"model.safetensors": safetensors(state), "pytorch_model.bin": b"not asked for"})
    timm_source = source()
    path = timm_source.resolve(NAME)
    weights = timm_source.enrich(NAME, formats.read(path))
    facts = timm_source.describe(NAME)
    assert (facts.revision, facts.weights_sha256) == (commit, hashlib.sha256(path.read_bytes()).hexdigest())
    assert facts.url == f"pkg:huggingface/{REPO}@{commit}#model.safetensors"
    assert weights.parameters == 11_689_512
    assert len(weights.layers) == 20
    known = kernels(state)
    for layer in weights.layers:
        np.testing.assert_array_equal(layer.read(), known[layer.name])
    by_name = {layer.name: layer for layer in weights.layers}
    # The longest path has 17 convolutions (He et al. 2015); a shortcut runs beside the second one of its block
    assert weights.layers[0].name == "conv1"
    assert max(layer.conv_depth for layer in weights.layers) == 16
    assert {layer.depth_source for layer in weights.layers} == {"graph"}
    assert by_name["layer2.0.conv1"].stride == (2, 2)
    assert by_name["layer4.1.conv2"].conv_depth_norm == 1.0
    assert not any(layer.dead for layer in weights.layers)
    assert {layer.kind for layer in weights.layers} == {"conv"}
    before = len(hub.requests)
    assert source(offline=True).resolve(NAME) == path
    assert len(hub.requests) == before


def test_pytorch_files_where_there_is_no_safetensors(hub, source, checkpoint):
    hub.push(REPO, {"pytorch_model.bin": pickled(checkpoint(NAME))})
    timm_source = source(partial=True)
    path = timm_source.resolve(NAME)
    assert path.name == "pytorch_model.bin"
    assert len(timm_source.enrich(NAME, formats.read(path)).layers) == 20
    assert timm_source.describe(NAME).weights_sha256 == hashlib.sha256(path.read_bytes()).hexdigest()


def test_partial(hub, source, checkpoint):
    name = "mobilenetv3_small_050.lamb_in1k"
    state = checkpoint(name)
    data = safetensors(state)
    hub.push(f"timm/{name}", {"model.safetensors": data})
    timm_source = source(partial=True)
    weights = timm_source.enrich(name, formats.read(timm_source.resolve(name)))
    assert hub.sent < len(data) / 2
    assert weights.parameters == learnable(state)
    known = kernels(state)
    assert {layer.name for layer in weights.layers} == set(known)
    for layer in weights.layers:
        np.testing.assert_array_equal(layer.read(), known[layer.name])
    depthwise = [layer for layer in weights.layers if layer.kind == "depthwise"]
    assert len(depthwise) == 11
    assert all(layer.groups == layer.shape[0] for layer in depthwise)


def test_experts_of_condconv(hub, source, checkpoint, tmp_path):
    name = "tf_efficientnet_cc_b0_4e.in1k"
    state = checkpoint(name)
    hub.push(f"timm/{name}", {"model.safetensors": safetensors(state)})
    (tmp_path / f"{name}.bin").write_bytes(pickled(state))
    for options in {"partial": True}, {"folder": tmp_path}:
        timm_source = source(**options)
        weights = timm_source.enrich(name, formats.read(timm_source.resolve(name)))
        experts = [layer for layer in weights.layers if ".experts." in layer.name]
        matrices = {key for key, value in state.items() if value.dim() == 2 and "conv" in key and "routing" not in key}
        matrices -= {key for key in matrices if key.startswith("classifier")}
        assert len(experts) == 4 * len(matrices) > 0
        for layer in experts[:8]:
            owner, _, number = layer.name.partition(".experts.")
            row = state[f"{owner}.weight"][int(number)].numpy().reshape(layer.shape)
            np.testing.assert_array_equal(layer.read(), row)
        same = [layer for layer in experts if layer.name.startswith(experts[0].name[:-1])]
        assert len({layer.conv_depth for layer in same}) == 1
        assert weights.parameters == learnable(state)


@pytest.mark.parametrize(
    ("name", "expected"),
    [("test_nfnet.r160_in1k", {"scaled_std"}), ("vit_small_r26_s32_224.augreg_in21k", {"std"})],
)
def test_standardised_weights(timm, name, expected):
    known = adapter._architecture(name)
    assert {layer.weight_norm for layer in known.layers if layer.kernel == "3x3"} == expected


@pytest.mark.parametrize(
    "name",
    [
        "lowformer_b0.in1k",
        pytest.param("coat_tiny.in1k", marks=pytest.mark.thorough),
        pytest.param("hrnet_w18_small.gluon_in1k", marks=pytest.mark.thorough),
    ],
)
def test_shared_transposed_and_parallel_layers(timm, checkpoint, tmp_path, name):
    state = checkpoint(name)
    folder = tmp_path / "models"
    folder.mkdir()
    (folder / f"{name}.pth").write_bytes(pickled(state))
    timm_source = TimmSource(folder=folder, offline=True, cache=Cache(tmp_path / "cache"))
    weights = timm_source.enrich(name, formats.read(timm_source.resolve(name)))
    module = timm.create_model(name, pretrained=False)
    wanted = {
        part: module.get_submodule(part)
        for part, found in module.named_modules()
        if isinstance(found, torch.nn.Conv2d | torch.nn.ConvTranspose2d)
    }
    assert {layer.name for layer in weights.layers} == set(wanted)
    for layer in weights.layers:
        part = wanted[layer.name]
        assert (layer.kind == "transposed") == isinstance(part, torch.nn.ConvTranspose2d)
        assert (layer.groups, layer.stride, layer.in_channels) == (part.groups, part.stride, part.in_channels)
        stored = state[f"{layer.name}.weight"].numpy()
        if layer.kind != "transposed":
            np.testing.assert_array_equal(layer.read(), stored)
        assert layer.read().shape == layer.shape
        assert layer.read().sum(dtype=np.float64) == pytest.approx(stored.sum(dtype=np.float64), rel=1e-4, abs=1e-4)
        assert layer.conv_depth is not None


def test_files_of_another_network_get_no_depths(source, checkpoint, tmp_path, caplog):
    file = tmp_path / "mine.pth"
    file.write_bytes(pickled(checkpoint("mobilenetv3_small_050.lamb_in1k")))
    timm_source = source(folder=file, offline=True)
    weights = timm_source.enrich(NAME, formats.read(timm_source.resolve(NAME)))
    assert "are not in the file" in caplog.text
    assert {layer.conv_depth for layer in weights.layers} == {None}


@pytest.mark.parametrize(
    "place",
    [f"{NAME}.safetensors", f"{NAME}/model.safetensors", f"{REPO}/model.safetensors", "resnet18.a1_in1k.safetensors"],
)
def test_folders(source, checkpoint, tmp_path, hub, place):
    path = tmp_path / "models" / place
    path.parent.mkdir(parents=True)
    path.write_bytes(safetensors(checkpoint(NAME)))
    for folder in (tmp_path / "models", path):
        timm_source = source(folder=folder)
        assert timm_source.resolve(NAME) == path
        assert timm_source.describe(NAME).weights_sha256 == hashlib.sha256(path.read_bytes()).hexdigest()
    assert not hub.requests


def test_cache_of_another_program(hub, source, checkpoint, tmp_path):
    hub.push(REPO, {"model.safetensors": safetensors(checkpoint(NAME))})
    source().resolve(NAME)
    other = TimmSource(folder=tmp_path / "cache" / "huggingface", offline=True, cache=Cache(tmp_path / "second"))
    assert other.resolve(NAME).is_relative_to(tmp_path / "cache")


def test_files_of_the_authors_are_checked(source, tmp_path, checkpoint):
    """A name such as ``...-4bb0ce65.pth`` begins the hash of its file."""
    folder = tmp_path / "models"
    folder.mkdir()
    (folder / "seresnet18-4bb0ce65.pth").write_bytes(b"another file")
    with pytest.raises(HashMismatchError, match="expected SHA-256 4bb0ce65"):
        source(folder=folder, offline=True).resolve("legacy_seresnet18.in1k")


def test_the_authors_address_where_the_repository_fails(hub, source, checkpoint, client):
    """A repository that is gone, and the same weights at the other address that timm knows."""
    data = pickled(checkpoint(NAME))
    hub.push("files/of", {"resnet18.pth": data})
    url = f"{hub.url.replace('127.0.0.1', 'localhost')}/store/{hashlib.sha256(data).hexdigest()}"
    [known] = [model for model in catalog.models("timm") if model.name == NAME]
    timm_source = source(models=[replace(known, origin={**known.origin, "url": url})])
    path = timm_source.resolve(NAME)
    assert path.read_bytes() == data
    assert timm_source.describe(NAME).weights_sha256 == hashlib.sha256(data).hexdigest()
    before = len(hub.requests)
    assert source(models=[replace(known, origin={**known.origin, "url": url})], offline=True).resolve(NAME) == path
    assert len(hub.requests) == before


def test_offline_names_the_remedy(source):
    for name in (NAME, "legacy_seresnet18.in1k"):
        with pytest.raises(DownloadError, match=r"offline.*--from \(option folder\)"):
            source(offline=True).resolve(name)
    with pytest.raises(DownloadError, match="no such file or folder"):
        source(folder="/nowhere/at/all").resolve(NAME)
    with pytest.raises(UnknownModelError, match="nearest"):
        source().resolve("ResNet18.a1_in1k")


def test_without_timm_the_layers_come_as_in_the_file():
    """In a process that cannot import timm, and that never imports PyTorch."""
    script = """
import sys
sys.modules["timm"] = None
import numpy as np
from cnnfilterdb.ingest.network.layers import ConvLayer, Weights
from cnnfilterdb.ingest.sources.timm import TimmSource
weights = Weights("safetensors", "pytorch", (ConvLayer("conv1", (8, 3, 7, 7), lambda: np.zeros((8, 3, 7, 7))),))
assert TimmSource(offline=True).enrich("resnet18.a1_in1k", weights) == weights
assert "torch" not in sys.modules
"""
    done = subprocess.run([sys.executable, "-c", script], check=True, timeout=600, capture_output=True, text=True)
    assert re.search(r'pip install "cnnfilterdb\[timm\]"', done.stderr)


@pytest.mark.parametrize("options", [[], ["--partial"]])
def test_from_the_command_line_into_a_database(hub, checkpoint, tmp_path, monkeypatch, options):
    names = ["test_byobnet.r160_in1k", "test_resnet.r160_in1k"]
    for name in names:
        hub.push(f"timm/{name}", {"model.safetensors": safetensors(checkpoint(name))})
    monkeypatch.setenv("HF_ENDPOINT", hub.url)
    monkeypatch.setenv("CNNFILTERDB_CACHE", str(tmp_path / "cache"))
    path = tmp_path / "timm.db"
    command = ["ingest", "timm", *names[:1], "test_resnet*", "--allow-untrained", *options, "--db", str(path)]
    outcome = CliRunner().invoke(cli, command)
    assert outcome.exit_code == 0, outcome.output
    with cnnfilterdb.create(path) as db:
        models = db.models().set_index("name")
        assert set(models.index) == set(names)
        assert set(models["license"]) == {"Apache-2.0"}
        assert all(re.fullmatch("[0-9a-f]{40}", revision) for revision in models["revision"])
        for name in names:
            state = checkpoint(name)
            assert models.loc[name, "conv_layers"] == len(kernels(state))
            assert models.loc[name, "parameters"] == learnable(state)
        layers = db.layers()
        assert set(layers["depth_source"]) == {"graph"}
        assert list(layers.groupby("model_id")["conv_depth_norm"].max()) == [1.0, 1.0]
        assert len(db.models(where="original['input_size'] = '160'")) == 2
