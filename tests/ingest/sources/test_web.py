"""Files at addresses of the web, downloaded from a loopback server, in the formats in which they are published."""

from __future__ import annotations

import dataclasses
import hashlib
import io
import json
import random
import sys
import textwrap
import threading
import types
from collections import Counter
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from itertools import pairwise
from types import SimpleNamespace

import h5py
import numpy as np
import pytest
import torch
from torch import nn

from cnnfilterdb import catalog
from cnnfilterdb.core.errors import (
    CatalogError,
    DownloadError,
    HashMismatchError,
    IngestError,
    UnknownModelError,
    WeightFileError,
)
from cnnfilterdb.core.schema import ModelFacts
from cnnfilterdb.ingest import formats, sources
from cnnfilterdb.ingest.fetch.cache import Cache
from cnnfilterdb.ingest.fetch.download import Session
from cnnfilterdb.ingest.fetch.pip_settings import Settings
from cnnfilterdb.ingest.network.memory import weights_from_module, weights_from_state_dict
from cnnfilterdb.ingest.sources import web

SOURCES = ("torchxrayvision", "lungmask", "torchvision", "custom")
URL = "https://github.com/some/where/releases/download/v1/net.pt"
PLACE = URL.removeprefix("https://")
DATA = random.Random(0).randbytes(200_000)
SHA256 = hashlib.sha256(DATA).hexdigest()


def entry(**origin):
    """What the catalog says about a model; only what a source of this kind reads."""
    return SimpleNamespace(
        name="net",
        facts=ModelFacts(task="Segmentation", license="MIT"),
        origin={"file": "net.pt", "urls": URL} | origin,
        conv_layers=None,
        conv3x3_layers=None,
        conv3x3_filters=None,
    )


@pytest.fixture
def make(index_server, tmp_path):
    """Makes a source whose addresses all lead to the loopback server: to its path /files/<host>/<path>."""

    def make(*models, kind=web.CustomSource, **options):
        given = {
            "mirror": f"http://{index_server.host}/files",
            "cache": Cache(tmp_path / "cache"),
            "session": Session(Settings(retries=2, timeout=10.0), pause=0.001),
        }
        return kind(models or None, **(given | options))

    return make


@pytest.fixture
def offer(index_server):
    """Puts a file where an address leads to."""

    def offer(data=DATA, url=URL):
        place = url.split("://")[1]
        index_server.files[f"/files/{place}"] = data
        return place

    return offer


def stored(folder):
    """Files of a cache, but for its locks."""
    return sorted(
        str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file() and ".lock" not in path.name
    )


# ---------------------------------------------------------------------------------------------------------------------
# Networks as they are published. The originals are not at hand: these have their names and shapes.

DENSENET = """
    from collections import OrderedDict
    import torch
    from torch import nn

    class Layer(nn.Sequential):
        def __init__(self, channels, growth, width):
            super().__init__()
            self.add_module("norm1", nn.BatchNorm2d(channels))
            self.add_module("relu1", nn.ReLU())
            self.add_module("conv1", nn.Conv2d(channels, width * growth, 1, bias=False))
            self.add_module("norm2", nn.BatchNorm2d(width * growth))
            self.add_module("relu2", nn.ReLU())
            self.add_module("conv2", nn.Conv2d(width * growth, growth, 3, padding=1, bias=False))

        def forward(self, x):
            return torch.cat([x, super().forward(x)], 1)

    class DenseNet(nn.Module):
        def __init__(self, growth=32, blocks=(6, 12, 24, 16), channels=64, width=4):
            super().__init__()
            self.features = nn.Sequential(OrderedDict(
                conv0=nn.Conv2d(1, channels, 7, stride=2, padding=3, bias=False),
                norm0=nn.BatchNorm2d(channels), relu0=nn.ReLU(), pool0=nn.MaxPool2d(3, 2, 1)))
            for number, layers in enumerate(blocks, 1):
                block = nn.Sequential()
                for i in range(layers):
                    block.add_module(f"denselayer{i + 1}", Layer(channels, growth, width))
                    channels += growth
                self.features.add_module(f"denseblock{number}", block)
                if number < len(blocks):
                    self.features.add_module(f"transition{number}", nn.Sequential(OrderedDict(
                        norm=nn.BatchNorm2d(channels), relu=nn.ReLU(),
                        conv=nn.Conv2d(channels, channels // 2, 1, bias=False), pool=nn.AvgPool2d(2))))
                    channels //= 2
            self.features.add_module("norm5", nn.BatchNorm2d(channels))
            self.classifier = nn.Linear(channels, 18)
            self.op_threshs = torch.full((18,), 0.5)

        def forward(self, x):
            return self.classifier(torch.relu(self.features(x)).mean((2, 3)))
"""


@pytest.fixture
def library():
    """A throw-away module named as the library's, gone again before anything is read."""
    module = types.ModuleType("torchxrayvision.models")
    package = types.ModuleType("torchxrayvision")
    exec(textwrap.dedent(DENSENET), module.__dict__)
    for cls in (module.DenseNet, module.Layer):
        cls.__module__ = module.__name__
    sys.modules |= {"torchxrayvision": package, module.__name__: module}
    yield module
    for name in ("torchxrayvision", module.__name__):
        sys.modules.pop(name, None)


class ConvBlock(nn.Module):
    """lungmask's: a layer for a residual that is registered, stored and, without residuals, never used."""

    def __init__(self, inputs, outputs):
        super().__init__()
        self.residual_input_conv = nn.Conv2d(inputs, outputs, 1)
        self.block = nn.Sequential(
            *(nn.Conv2d(inputs, outputs, 3, padding=1), nn.ReLU(), nn.BatchNorm2d(outputs)),
            *(nn.Conv2d(outputs, outputs, 3, padding=1), nn.ReLU(), nn.BatchNorm2d(outputs)),
        )

    def forward(self, x):
        return self.block(x)


class UpBlock(nn.Module):
    def __init__(self, inputs, outputs):
        super().__init__()
        self.residual_input_conv = nn.Conv2d(inputs, outputs, 1)
        self.up = nn.Sequential(nn.Upsample(scale_factor=2), nn.Conv2d(inputs, outputs, 1))
        self.conv_block = ConvBlock(inputs, outputs)

    def forward(self, x, bridge):
        return self.conv_block(torch.cat([self.up(x), bridge], 1))


class LungUNet(nn.Module):
    def __init__(self, classes=3, depth=5, wf=6):
        super().__init__()
        widths = [2 ** (wf + i) for i in range(depth)]
        self.down_path = nn.ModuleList(ConvBlock(a, b) for a, b in zip([1, *widths], widths, strict=False))
        self.up_path = nn.ModuleList(UpBlock(b, a) for a, b in reversed([*pairwise(widths)]))
        self.last = nn.Conv2d(widths[0], classes, 1)

    def forward(self, x):
        bridges = []
        for down in self.down_path:
            x = down(x)
            bridges.append(x)
            x = nn.functional.avg_pool2d(x, 2) if down is not self.down_path[-1] else x
        for up, bridge in zip(self.up_path, bridges[-2::-1], strict=True):
            x = up(x, bridge)
        return self.last(x)


class BudaUNet(nn.Module):
    def __init__(self, features=32):
        super().__init__()
        widths = [features * 2**i for i in range(5)]
        names = ["enc1", "enc2", "enc3", "enc4", "bottleneck"]
        for i, (name, inputs, outputs) in enumerate(zip(names, [3, *widths], widths, strict=False)):
            setattr(self, f"encoder{i + 1}" if i < 4 else name, self.block(name, inputs, outputs))
        for i in (4, 3, 2, 1):
            setattr(self, f"upconv{i}", nn.ConvTranspose2d(widths[i], widths[i - 1], 2, stride=2))
            setattr(self, f"decoder{i}", self.block(f"dec{i}", 2 * widths[i - 1], widths[i - 1]))
        self.conv = nn.Conv2d(features, 1, 1)

    @staticmethod
    def block(name, inputs, outputs):
        block = nn.Sequential()
        for number, channels in (1, inputs), (2, outputs):
            block.add_module(f"{name}conv{number}", nn.Conv2d(channels, outputs, 3, padding=1, bias=False))
            block.add_module(f"{name}norm{number}", nn.BatchNorm2d(outputs))
            block.add_module(f"{name}relu{number}", nn.ReLU())
        return block

    def forward(self, x):
        bridges = []
        for i in range(1, 5):
            x = getattr(self, f"encoder{i}")(x)
            bridges.append(x)
            x = nn.functional.max_pool2d(x, 2)
        x = self.bottleneck(x)
        for i in (4, 3, 2, 1):
            x = getattr(self, f"decoder{i}")(torch.cat([getattr(self, f"upconv{i}")(x), bridges[i - 1]], 1))
        return self.conv(x)


class CarvanaUNet(nn.Module):
    """milesial's, with transposed convolutions."""

    def __init__(self, features=64):
        super().__init__()
        widths = [features * 2**i for i in range(5)]
        double = self.double
        self.inc = nn.ModuleDict({"double_conv": double(3, features)})
        for i in range(4):
            block = nn.ModuleDict({"double_conv": double(widths[i], widths[i + 1])})
            setattr(self, f"down{i + 1}", nn.ModuleDict({"maxpool_conv": nn.Sequential(nn.MaxPool2d(2), block)}))
        for i in range(4):
            wide, narrow = widths[4 - i], widths[3 - i]
            up = nn.ConvTranspose2d(wide, narrow, 2, stride=2)
            block = nn.ModuleDict({"double_conv": double(wide, narrow)})
            setattr(self, f"up{i + 1}", nn.ModuleDict({"up": up, "conv": block}))
        self.outc = nn.ModuleDict({"conv": nn.Conv2d(features, 2, 1)})

    @staticmethod
    def double(inputs, outputs):
        layers = []
        for channels in inputs, outputs:
            conv = nn.Conv2d(channels, outputs, 3, padding=1, bias=False)
            layers += [conv, nn.BatchNorm2d(outputs), nn.ReLU()]
        return nn.Sequential(*layers)


def compnet(graph):
    """A file as Keras 2 saves it, whole or without the graph: two convolutions and an upsampling one."""
    rng = np.random.default_rng(0)
    shapes = {"conv2d_1": (3, 3, 1, 8), "conv2d_transpose_1": (2, 2, 4, 8), "final_op": (1, 1, 4, 1)}
    arrays = {name: rng.normal(size=shape).astype("f4") for name, shape in shapes.items()}
    buffer = io.BytesIO()
    with h5py.File(buffer, "w") as file:
        group = file.create_group("model_weights") if graph else file
        group.attrs["layer_names"] = [name.encode() for name in shapes]
        group.attrs["backend"], group.attrs["keras_version"] = b"tensorflow", b"2.2.4"
        for name, array in arrays.items():
            layer = group.create_group(name)
            layer.attrs["weight_names"] = [f"{name}/kernel:0".encode()]
            layer.create_dataset(f"{name}/kernel:0", data=array)
        if graph:
            layers, before = [], None
            for name, shape in shapes.items():
                cls = "Conv2DTranspose" if "transpose" in name else "Conv2D"
                filters = shape[2] if "transpose" in name else shape[3]
                config = {"name": name, "filters": filters, "kernel_size": shape[:2], "strides": [1, 1]}
                if before is None:
                    layers.append(
                        {
                            "name": "input_1",
                            "class_name": "InputLayer",
                            "config": {"name": "input_1"},
                            "inbound_nodes": [],
                        }
                    )
                inbound = [[[before or "input_1", 0, 0, {}]]]
                layers.append({"name": name, "class_name": cls, "config": config, "inbound_nodes": inbound})
                before = name
            config = {"layers": layers, "input_layers": [["input_1", 0, 0]], "output_layers": [[before, 0, 0]]}
            file.attrs["model_config"] = json.dumps({"class_name": "Model", "config": config}).encode()
            file.create_group("optimizer_weights").create_dataset("moment", data=np.zeros((3, 3, 1, 8), "f4"))
    return buffer.getvalue(), arrays


def saved(value, **options):
    buffer = io.BytesIO()
    torch.save(value, buffer, **options)
    return buffer.getvalue()


# Classes of the throw-away module have no source that the old format could keep
pytestmark = pytest.mark.filterwarnings("ignore:Couldn't retrieve source code")
LEGACY = {"_use_new_zipfile_serialization": False}


def imported(source, name="net"):
    """A model as the database would get it."""
    return source.enrich(name, formats.read(source.resolve(name)))


def described(model_id):
    """The catalog's model of that name."""
    source, _, name = model_id.partition("/")
    return next(model for model in catalog.models(source) if model.name == name)


def small(model, library):
    """A file of the kind that the catalog says a model has, of a small network."""
    if model.format == "keras":
        return compnet(graph=False)[0]
    if model.name.startswith("densenet121"):
        return saved(library.DenseNet(4, (2, 2), 8, 2), **LEGACY)
    if model.source == "lungmask":
        return saved(LungUNet(wf=2).state_dict())
    network = BudaUNet(4) if model.name == "buda-unet" else CarvanaUNet(4)
    return saved(network.state_dict())


# ---------------------------------------------------------------------------------------------------------------------
# The catalog


def web_models(collection=None):
    pairs = (
        catalog.expand(collection) if collection else [(m.source, m.name) for s in SOURCES for m in catalog.models(s)]
    )
    return [f"{source}/{name}" for source, name in pairs if source in SOURCES]


def test_the_papers_medical_models_are_there():
    models = [described(model_id) for model_id in web_models("medical-2022")]
    domains = Counter(model.facts.domain for model in models)
    # Without Buda's, the MRI models are CompNets
    assert {domain: n for domain, n in domains.items() if "medical" in domain} == {
        "medical mri": 4,
        "medical ct": 3,
        "medical xray": 9,
    }
    assert set(domains) >= {"cars", "seismic", "natural"}


@pytest.mark.parametrize("model_id", web_models("medical-2022"))
def test_each_medical_model_comes(index_server, make, offer, library, tmp_path, model_id):
    model = described(model_id)
    data = small(model, library)
    for name in ("torchxrayvision", "torchxrayvision.models"):
        sys.modules.pop(name)
    origin = {**model.origin, "sha256_prefix": hashlib.sha256(data).hexdigest()[:8]}
    kind = type(sources.get(model.source))
    urls = origin["urls"].split()
    for url in urls:
        offer(data, url)
    source = make(dataclasses.replace(model, origin=origin), kind=kind)
    if not urls:
        with pytest.raises(DownloadError, match="get it by hand: ") as raised:
            source.resolve(model.name)
        assert origin["manual"] in str(raised.value)
        (tmp_path / "mine" / "below").mkdir(parents=True)
        (tmp_path / "mine" / "below" / origin["file"]).write_bytes(data)
        source = make(dataclasses.replace(model, origin=origin), kind=kind, folder=tmp_path / "mine")
    path = source.resolve(model.name)
    assert path.name == origin["file"]
    assert path.read_bytes() == data
    assert len(index_server.requests) == (1 if urls else 0)
    weights = source.enrich(model.name, formats.read(path))
    assert len(weights.layers) > 2
    assert all(layer.read().shape == layer.shape for layer in weights.layers)
    facts = source.describe(model.name)
    assert facts.weights_sha256 == hashlib.sha256(data).hexdigest()
    assert facts.license == model.facts.license
    assert facts.url == (urls[0] if urls else None)


@pytest.mark.parametrize("model_id", web_models("medical-2022"))
def test_published_hashes_are_asked_for(make, offer, model_id):
    model = described(model_id)
    known = model.origin["sha256_prefix"] or model.origin["sha256"]
    if not known:
        assert model.origin["manual"] or model.source == "torchxrayvision" or "carvana" in model.name
        return
    for url in model.origin["urls"].split():
        offer(url=url)
    with pytest.raises(HashMismatchError, match=f"expected SHA-256 {known}"):
        make(model, kind=type(sources.get(model.source))).resolve(model.name)


def test_addresses_and_hashes_agree_with_file_names():
    for model_id in web_models():
        model = described(model_id)
        origin = web.WebFile.parse(model_id, model.origin)
        assert not origin.urls or origin.urls[0].endswith(f"/{origin.file}"), model_id
        assert all(url.startswith("https://") for url in origin.urls)
        stem = origin.file.rpartition(".")[0]
        if len(origin.sha256) < 64:
            assert stem.endswith(f"-{origin.sha256}" if origin.sha256 else ""), model_id
        assert model.facts.license
        assert set(origin.sha256) <= set("0123456789abcdef")


@pytest.mark.parametrize(
    ("model_id", "build"),
    [
        ("torchxrayvision/densenet121-res224-all", lambda library: library.DenseNet()),
        ("lungmask/ltrclobes", lambda _: LungUNet(6)),
        ("custom/buda-unet", lambda _: BudaUNet()),
        ("custom/unet-carvana-scale0.5", lambda _: CarvanaUNet()),
    ],
)
def test_counts_are_those_of_the_architecture(make, library, caplog, model_id, build):
    """The networks at full size, without memory for their weights."""
    model = described(model_id)
    with torch.device("meta"):
        shapes = {name: tuple(tensor.shape) for name, tensor in build(library).state_dict().items()}
    weights = weights_from_state_dict({name: torch.tensor(0.5).expand(shape) for name, shape in shapes.items()})
    layers = make(model, kind=type(sources.get(model.source))).enrich(model.name, weights).layers
    squares = [layer.shape[0] * layer.shape[1] for layer in layers if layer.kernel == "3x3"]
    counts = (len(layers), len(squares), sum(squares))
    assert counts == (model.conv_layers, model.conv3x3_layers, model.conv3x3_filters)
    assert not caplog.records
    assert {layer.depth_source for layer in layers if not layer.dead} == {"order"}


def test_another_network_under_the_name_is_reported(make, caplog):
    model = described("custom/buda-unet")
    weights = weights_from_state_dict(BudaUNet(4).state_dict())
    make(model).enrich(model.name, weights)
    assert "custom/buda-unet: expected" in caplog.text


# ---------------------------------------------------------------------------------------------------------------------
# What the files hold


@pytest.mark.parametrize("options", [{}, LEGACY], ids=["zip", "legacy"])
def test_whole_pickled_modules_without_their_library(make, offer, library, options):
    network = library.DenseNet(4, (2, 3), 8, 2).eval()
    offer(saved(network, **options))
    truth = weights_from_module(network, torch.zeros(1, 1, 64, 64))
    for name in ("torchxrayvision", "torchxrayvision.models"):
        sys.modules.pop(name)
    weights = imported(make(entry(execution_order="yes")))
    assert "torchxrayvision" not in sys.modules
    assert weights.format == ("torch-legacy" if options else "torch-zip")
    state = network.state_dict()
    assert [layer.name for layer in weights.layers] == [layer.name for layer in truth.layers]
    for layer, known in zip(weights.layers, truth.layers, strict=True):
        np.testing.assert_array_equal(layer.read(), state[f"{layer.name}.weight"].numpy())
        assert (layer.kind, layer.stride) == (known.kind, known.stride)
    # One layer after the other: rank in the graph and in the file are the same
    assert [layer.conv_depth for layer in weights.layers] == [layer.conv_depth for layer in truth.layers]
    assert [layer.conv_depth_norm for layer in weights.layers] == [layer.conv_depth_norm for layer in truth.layers]
    assert {layer.depth_source for layer in weights.layers} == {"order"}


def test_layers_that_are_never_executed(make, offer):
    network = LungUNet(wf=2).eval()
    offer(saved(network.state_dict()))
    weights = imported(make(entry(dead="*residual_input_conv", execution_order="yes")))
    truth = weights_from_module(network, torch.zeros(1, 1, 64, 64))
    dead = {layer.name for layer in weights.layers if layer.dead}
    assert len(dead) == 13
    assert dead == {layer.name for layer in truth.layers if layer.dead}
    alive = [layer for layer in weights.layers if not layer.dead]
    assert [layer.name for layer in alive] == [layer.name for layer in truth.layers if not layer.dead]
    assert [layer.conv_depth for layer in alive] == list(range(23))
    assert [layer.conv_depth for layer in weights.layers if layer.dead] == [None] * 13
    assert weights.parameters == sum(parameter.numel() for parameter in network.parameters())


def test_the_unet_for_brain_mri(make, offer):
    network = BudaUNet(4).eval()
    offer(saved(network.state_dict()))
    layers = imported(make(entry(execution_order="yes"))).layers
    truth = weights_from_module(network, torch.zeros(1, 3, 64, 64)).layers
    assert [layer.name for layer in layers] == [layer.name for layer in truth]
    assert [layer.conv_depth for layer in layers] == [layer.conv_depth for layer in truth]
    assert [layer.name for layer in layers if layer.kind == "transposed"] == [f"upconv{i}" for i in (4, 3, 2, 1)]


@pytest.mark.parametrize("graph", [True, False])
def test_keras_files_of_compnet(make, tmp_path, graph):
    data, arrays = compnet(graph)
    (tmp_path / "net.h5").write_bytes(data)
    link = "https://drive.google.com/file/d/1o70/view"
    source = make(entry(file="net.h5", urls="", manual=link, execution_order="yes"), folder=tmp_path)
    weights = imported(source)
    assert weights.format == "keras-h5"
    by_name = {layer.name: layer for layer in weights.layers}
    np.testing.assert_array_equal(by_name["conv2d_1"].read(), arrays["conv2d_1"].transpose(3, 2, 0, 1))
    assert by_name["conv2d_transpose_1"].kind == "transposed"
    # What a file says about its graph precedes its order
    assert {layer.depth_source for layer in weights.layers} == {"graph" if graph else "order"}
    assert [layer.conv_depth for layer in weights.layers] == [0, 1, 2]


def test_archives_of_torchscript(make, offer):
    network = nn.Sequential(nn.Conv2d(1, 8, 3), nn.ReLU(), nn.Conv2d(8, 4, 3)).eval()
    buffer = io.BytesIO()
    torch.jit.save(torch.jit.trace(network, torch.zeros(1, 1, 16, 16)), buffer)
    offer(buffer.getvalue())
    weights = imported(make(entry()))
    assert weights.format == "torchscript"
    assert [layer.shape for layer in weights.layers] == [(8, 1, 3, 3), (4, 8, 3, 3)]


def test_checkpoints_of_lightning(make, offer):
    state = {
        "encoder.conv_in.weight": torch.randn(8, 3, 3, 3),
        "loss.discriminator.main.0.weight": torch.randn(8, 3, 4, 4),
        "loss.perceptual_loss.net.0.weight": torch.randn(8, 3, 3, 3),
    }
    checkpoint = {"epoch": 3, "pytorch-lightning_version": "1.9", "state_dict": state, "optimizer_states": []}
    offer(saved(checkpoint))
    weights = imported(make(entry(drop="loss.*")))
    assert [layer.name for layer in weights.layers] == ["encoder.conv_in"]
    # The prefix of a wrapper goes
    offer(saved({"state_dict": {"model.conv1.weight": torch.randn(8, 3, 7, 7)}}), URL.replace("net", "other"))
    source = make(entry(file="other.pt", urls=URL.replace("net", "other")))
    assert [layer.name for layer in imported(source).layers] == ["conv1"]


def test_what_is_no_part_of_the_network_is_left_out(make):
    tensors = {f"{name}.weight": np.ones((4, 4, 3, 3), "f4") for name in ("a", "judge.b", "c")}
    weights = make(entry(drop="judge.*", execution_order="yes")).enrich("net", weights_from_state_dict(tensors))
    assert [(layer.name, layer.conv_depth, layer.dead) for layer in weights.layers] == [("a", 0, None), ("c", 1, None)]
    assert [skipped.name for skipped in weights.skipped] == ["judge.b"]
    assert weights.parameters is None


def test_nothing_is_made_up(make):
    """Without knowledge in the catalog, layers stay as the file states them."""
    weights = weights_from_state_dict({"a.weight": np.ones((4, 4, 3, 3), "f4")})
    assert make(entry()).enrich("net", weights).layers == weights.layers


# ---------------------------------------------------------------------------------------------------------------------
# On the way


def test_redirects(index_server, make, offer):
    offer()
    moved = make(entry(), mirror=f"http://{index_server.host}/moved/files")
    assert moved.resolve("net").read_bytes() == DATA
    assert [request.status for request in index_server.requests] == [301, 200]


def test_too_many_requests(index_server, packaging, make, offer):
    index_server.fail(offer(), packaging.Fault(429, {"Retry-After": "0"}), packaging.Fault(503))
    assert make(entry()).resolve("net").read_bytes() == DATA
    assert [request.status for request in index_server.requests] == [429, 503, 200]


@pytest.mark.parametrize("status", [403, 404, 410])
def test_refusals_lead_to_the_next_address(index_server, packaging, make, offer, status):
    other = URL.replace("github.com", "mirror.example")
    place = offer()
    index_server.fail(place, *[packaging.Fault(status)] * 2)
    with pytest.raises(DownloadError, match=rf"custom/net: .*{status}.*put net.pt into a folder") as raised:
        make(entry()).resolve("net")
    assert "\n" not in str(raised.value)
    offer(url=other)
    source = make(entry(urls=f"{URL} {other}"))
    assert source.resolve("net").read_bytes() == DATA
    assert [request.path.split("/")[2] for request in index_server.requests[-2:]] == ["github.com", "mirror.example"]


def test_a_cut_connection_is_resumed(index_server, packaging, make, offer):
    place, calls = offer(), []
    index_server.fail(place, packaging.Fault(cut=70_000), packaging.Fault(cut=30_000))
    make(entry(sha256=SHA256)).resolve("net", lambda *call: calls.append(call))
    assert [request.range for request in index_server.requests] == [None, "bytes=70000-", "bytes=100000-"]
    # The server stated the size
    assert calls[-1] == (len(DATA), len(DATA))


@pytest.mark.parametrize("validator", [{"ETag": '"one"'}, {"Last-Modified": "Wed, 25 Nov 2026 10:00:00 GMT"}])
def test_without_a_hash_the_validator_vouches_for_a_part(index_server, packaging, make, offer, validator):
    place = offer()
    index_server.fail(place, packaging.Fault(headers=validator, cut=70_000), packaging.Fault(headers=validator))
    assert make(entry()).resolve("net").read_bytes() == DATA
    assert [request.range for request in index_server.requests] == [None, "bytes=70000-"]


@pytest.mark.parametrize("validator", [{}, {"ETag": '"two"'}, {"ETag": 'W/"one"'}])
def test_without_a_hash_a_part_of_another_file_is_not_resumed(index_server, packaging, make, offer, validator):
    place = offer(DATA[::-1])
    first = packaging.Fault(headers={"ETag": '"one"'} if validator.get("ETag") == '"two"' else validator, cut=70_000)
    index_server.fail(place, first, *[packaging.Fault(403)] * 9)
    with pytest.raises(DownloadError):
        make(entry()).resolve("net")
    index_server.faults.clear()
    offer()
    index_server.fail(place, *[packaging.Fault(headers=validator)] * 3)
    assert make(entry()).resolve("net").read_bytes() == DATA


def test_an_earlier_run_is_resumed(index_server, packaging, make, offer):
    place = offer()
    index_server.fail(place, packaging.Fault(cut=70_000), packaging.Fault(403))
    with pytest.raises(DownloadError, match="403"):
        make(entry(sha256_prefix=SHA256[:8])).resolve("net")
    assert make(entry(sha256_prefix=SHA256[:8])).resolve("net").read_bytes() == DATA
    assert index_server.requests[-1].range == "bytes=70000-"


@pytest.mark.parametrize("known", [{"sha256": SHA256}, {"sha256_prefix": SHA256[:10]}, {"bytes": str(len(DATA))}])
def test_another_file_is_refused(make, offer, tmp_path, known):
    offer(bytes(len(DATA) + 1))
    with pytest.raises(HashMismatchError, match=r"^custom/net: net.pt: expected .*it is not the expected file"):
        make(entry(**known)).resolve("net")
    assert stored(tmp_path / "cache") == []


PAGES = {
    "text/html": (b"<!DOCTYPE html><html><title>Google Drive - Quota exceeded</title>", "a proxy, a login or a quota"),
    "application/octet-stream": (b"\n<!doctype html><html><body>Too many users</body></html>", "an HTML page, not"),
    "text/plain": (b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n", "a Git LFS pointer"),
    "binary/octet-stream": (b"", "empty"),
}


@pytest.mark.parametrize("kind", PAGES)
def test_pages_in_the_place_of_weights(index_server, packaging, make, offer, tmp_path, kind):
    page, message = PAGES[kind]
    place = offer()
    index_server.fail(place, packaging.Fault(body=page, headers={"Content-Type": kind}))
    with pytest.raises(IngestError, match=message) as raised:
        make(entry()).resolve("net")
    assert isinstance(raised.value, DownloadError if kind == "text/html" else WeightFileError)
    # It is neither kept nor trusted
    assert stored(tmp_path / "cache") == []
    assert make(entry()).resolve("net").read_bytes() == DATA


@pytest.fixture
def lengthless():
    """A server that does not announce how long a file is: it sends chunks, or closes the connection at the end."""

    class Handler(BaseHTTPRequestHandler):
        def log_message(self, *args):
            pass

        def do_GET(self):
            chunked = self.path.startswith("/chunked/")
            self.protocol_version = "HTTP/1.1" if chunked else "HTTP/1.0"
            self.close_connection = True
            self.send_response(200)
            if chunked:
                self.send_header("Transfer-Encoding", "chunked")
            self.end_headers()
            for part in (DATA[:90_000], DATA[90_000:]):
                self.wfile.write(b"%x\r\n%b\r\n" % (len(part), part) if chunked else part)
            if chunked:
                self.wfile.write(b"0\r\n\r\n")

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    server.server_close()


def test_files_of_unannounced_length(index_server, make, lengthless, tmp_path):
    calls = []
    source = make(entry(), mirror=f"{lengthless}/chunked", cache=Cache(tmp_path / "chunked"))
    assert source.resolve("net", lambda *call: calls.append(call)).read_bytes() == DATA
    assert calls[-1] == (len(DATA), None)
    # Where only the closed connection marks the end, it must be the end of something known
    source = make(entry(sha256_prefix=SHA256[:8]), mirror=f"{lengthless}/closed")
    assert source.resolve("net").read_bytes() == DATA
    with pytest.raises(DownloadError, match="sent no size and no checksum is known"):
        make(entry(), mirror=f"{lengthless}/closed", cache=Cache(tmp_path / "other")).resolve("net")


def test_a_wrong_file_at_one_address_only(make, offer, caplog):
    other = URL.replace("github.com", "mirror.example")
    offer(b"changed")
    offer(url=other)
    assert make(entry(urls=f"{URL} {other}", sha256=SHA256)).resolve("net").read_bytes() == DATA
    assert "trying the next address" in caplog.text


def test_many_want_one_file(index_server, make, offer):
    offer()
    found, source = [], make(entry())
    threads = [threading.Thread(target=lambda: found.append(source.resolve("net"))) for _ in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(set(found)) == 1
    assert len(index_server.requests) == 1


# ---------------------------------------------------------------------------------------------------------------------
# What is remembered


@pytest.mark.parametrize("known", [{}, {"sha256_prefix": SHA256[:8]}])
def test_trust_on_first_use(index_server, make, offer, tmp_path, known):
    offer()
    source = make(entry(**known))
    assert source.describe("net").weights_sha256 is None
    path = source.resolve("net")
    assert source.describe("net").weights_sha256 == SHA256
    record = tmp_path / "cache" / "trusted" / "custom_net.pt.json"
    stated = json.loads(record.read_text())
    assert (stated["sha256"], stated["bytes"], stated["url"]) == (SHA256, len(DATA), URL)
    # Another run needs no network
    again = make(entry(**known), offline=True)
    assert again.describe("net").weights_sha256 == SHA256
    assert again.resolve("net") == path
    assert len(index_server.requests) == 1


def test_a_file_that_changed_since_is_refused_until_accepted(make, offer, tmp_path):
    offer()
    path = make(entry()).resolve("net")
    path.unlink()
    offer(DATA[::-1])
    with pytest.raises(HashMismatchError, match=r"has changed since its first download; delete .*custom_net.pt.json"):
        make(entry()).resolve("net")
    (tmp_path / "cache" / "trusted" / "custom_net.pt.json").unlink()
    assert make(entry()).resolve("net").read_bytes() == DATA[::-1]


def test_a_damaged_record(make, offer, tmp_path):
    record = tmp_path / "cache" / "trusted" / "custom_net.pt.json"
    record.parent.mkdir(parents=True)
    record.write_text("[]")
    offer()
    with pytest.raises(DownloadError, match=r"custom_net.pt.json: cannot be read .*; delete it"):
        make(entry()).resolve("net")


def test_a_damaged_file_is_downloaded_again(index_server, make, offer):
    offer()
    path = make(entry()).resolve("net")
    path.write_bytes(b"harmed")
    assert make(entry()).resolve("net").read_bytes() == DATA
    assert len(index_server.requests) == 2


def test_offline(index_server, make, offer, tmp_path):
    offer()
    with pytest.raises(DownloadError, match=rf"custom/net: offline, and .*{tmp_path}.*--from.*go online for {URL}"):
        make(entry(), offline=True).resolve("net")
    with pytest.raises(DownloadError, match=f"nor below {tmp_path}"):
        make(entry(), offline=True, folder=tmp_path).resolve("net")
    assert index_server.requests == []


def test_a_folder_goes_before_the_network(index_server, make, offer, tmp_path):
    offer()
    (tmp_path / "deep" / "below").mkdir(parents=True)
    mine = tmp_path / "deep" / "below" / "net.pt"
    mine.write_bytes(b"mine")
    source = make(entry(), folder=tmp_path / "deep")
    assert source.resolve("net") == mine
    assert source.describe("net").weights_sha256 == hashlib.sha256(b"mine").hexdigest()
    assert index_server.requests == []
    with pytest.raises(HashMismatchError, match=r"below/net.pt: expected SHA-256 .* it is not the file of custom/net"):
        make(entry(sha256_prefix=SHA256[:8]), folder=tmp_path).resolve("net")
    with pytest.raises(DownloadError, match="nowhere: no such folder"):
        make(entry(), folder=tmp_path / "nowhere").resolve("net")
    # What is not in it is downloaded
    (tmp_path / "empty").mkdir()
    assert make(entry(), folder=tmp_path / "empty").resolve("net").read_bytes() == DATA


# ---------------------------------------------------------------------------------------------------------------------
# The rest of a source


@pytest.mark.parametrize("name", SOURCES)
def test_registered(name):
    source = sources.get(name, offline=True, folder=None)
    assert source.name == name
    assert list(source.list()) == [model.name for model in catalog.models(name)]
    first = source.list()[0]
    assert source.list([f"{first[:4]}*"])[0] == first
    assert source.describe(first).license
    with pytest.raises(UnknownModelError, match="nearest"):
        source.resolve(first[:-1])


@pytest.mark.parametrize(
    "origin", [{"file": ""}, {"urls": "", "manual": ""}, {"bytes": "10 MB"}], ids=["no file", "no way", "no number"]
)
def test_bad_origins(make, origin):
    with pytest.raises(CatalogError, match="custom/net: its origin needs a file"):
        make(entry(**origin)).resolve("net")
