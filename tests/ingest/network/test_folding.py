"""Which batch normalisation follows a convolution, and that folding it gives what PyTorch and ONNX exports give."""

import copy
from collections import OrderedDict
from dataclasses import replace

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

import cnnfilterdb
from cnnfilterdb import catalog
from cnnfilterdb.core.errors import BadWeightsError, SelectionError
from cnnfilterdb.ingest import formats
from cnnfilterdb.ingest.network import memory
from cnnfilterdb.ingest.network.folding import folded
from cnnfilterdb.ingest.network.layers import ConvLayer


class Block(nn.Module):
    """Normalises after each convolution, as ResNet does; with a depthwise and a transposed layer."""

    def __init__(self):
        super().__init__()
        self.conv1 = nn.Conv2d(3, 16, 3, bias=False)
        self.bn1 = nn.BatchNorm2d(16)
        self.conv2 = nn.Conv2d(16, 16, 3, groups=16)
        self.bn2 = nn.BatchNorm2d(16, eps=1e-3)
        self.up = nn.Sequential(nn.ConvTranspose2d(16, 12, 2, stride=2), nn.BatchNorm2d(12))
        self.head = nn.Conv2d(12, 5, 3)

    def forward(self, x):
        return self.head(self.up(self.bn2(self.conv2(self.bn1(self.conv1(x)).relu()))))


class PreActivation(nn.Module):
    """Normalises before each convolution: bn1 comes before conv1."""

    def __init__(self, width=16):
        super().__init__()
        self.stem = nn.Conv2d(3, width, 3)
        self.bn1 = nn.BatchNorm2d(width)
        self.conv1 = nn.Conv2d(width, width, 3)
        self.bn2 = nn.BatchNorm2d(width)
        self.conv2 = nn.Conv2d(width, width, 3)

    def forward(self, x):
        return self.conv2(self.bn2(self.conv1(self.bn1(self.stem(x)).relu())).relu())


class Branches(nn.Module):
    """A convolution whose output is read twice, one whose output is changed first, one with an activation between."""

    def __init__(self):
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8)
        self.conv2, self.bn2 = nn.Conv2d(8, 8, 3, padding=1), nn.BatchNorm2d(8)
        self.conv3, self.bn3 = nn.Conv2d(8, 8, 3, padding=1), nn.BatchNorm2d(8)
        self.conv4, self.bn4 = nn.Conv2d(8, 8, 3, padding=1), nn.BatchNorm2d(8)

    def forward(self, x):
        x = self.conv1(x)
        x = self.bn1(x) + x
        y = self.conv2(x)
        y += x
        x = self.bn2(y)
        x = self.bn3(self.conv3(x).relu())
        return self.bn4(self.conv4(x))


def trained(module, seed=0):
    """As if it had been trained: statistics and scales that differ, some of them negative."""
    generator = torch.Generator().manual_seed(seed)
    for part in module.modules():
        if isinstance(part, nn.BatchNorm2d):
            part.running_mean.normal_(generator=generator)
            part.running_var.uniform_(0.2, 3, generator=generator)
            with torch.no_grad():
                part.weight.normal_(generator=generator)
    return module.eval()


def scales(weights):
    return {
        layer.name: scale for layer in weights.layers if layer.batch_norm and (scale := layer.batch_norm()) is not None
    }


def fused(conv, norm):
    return fuse_conv_bn_eval(copy.deepcopy(conv), norm, transpose=isinstance(conv, nn.ConvTranspose2d))


def turned(conv):
    """The weight as the database holds it."""
    weight = conv.weight.detach()
    if not isinstance(conv, nn.ConvTranspose2d):
        return weight.numpy()
    return torch.cat([part.transpose(0, 1) for part in weight.chunk(conv.groups)]).numpy()


@pytest.mark.parametrize("way", ["module", "state_dict", "file", "safetensors"])
def test_folded_kernels_are_those_of_pytorch(way, tmp_path):
    model = trained(Block())
    model.bn2.eps = 1e-5 if way != "module" else 1e-3  # a file of tensors does not state it
    if way == "module":
        weights = memory.weights_from_module(model)
    elif way == "state_dict":
        weights = memory.weights_from_state_dict(model.state_dict())
    elif way == "file":
        torch.save(model.state_dict(), tmp_path / "w.pth")
        weights = formats.read(tmp_path / "w.pth")
    else:
        save_file(model.state_dict(), tmp_path / "w.safetensors")
        weights = formats.read(tmp_path / "w.safetensors")
    layers = {layer.name: folded(layer) for layer in weights.layers}
    pairs = {"conv1": (model.conv1, model.bn1), "conv2": (model.conv2, model.bn2), "up.0": (*model.up,)}
    assert {name for name, layer in layers.items() if layer.bn_folded} == set(pairs)
    for name, (conv, norm) in pairs.items():
        expected = turned(fused(conv, norm))
        assert layers[name].shape == expected.shape
        np.testing.assert_allclose(layers[name].read(), expected, rtol=2e-6)
        assert (layers[name].read()[norm.weight.detach() < 0] * turned(conv)[norm.weight.detach() < 0] <= 0).all()
    assert layers["head"].bn_folded is None
    np.testing.assert_array_equal(layers["head"].read(), turned(model.head))


def test_folded_kernels_are_those_of_an_export_to_onnx(tmp_path):
    model = trained(Block())
    torch.onnx.export(model, (torch.zeros(1, 3, 16, 16),), tmp_path / "m.onnx", dynamo=False)
    exported = formats.read(tmp_path / "m.onnx").layers
    own = [folded(layer) for layer in memory.weights_from_module(model).layers]
    assert [layer.bn_folded for layer in exported] == [True, True, False, None]  # transposed ones are left
    assert [layer.bn_folded for layer in own] == [True, True, True, None]
    for one, other in zip(own, exported, strict=True):
        if one.kind == "transposed":
            continue
        np.testing.assert_allclose(one.read(), other.read(), rtol=2e-6, atol=1e-8)


@pytest.mark.parametrize("groups", [1, 2, 4])
def test_a_transposed_layer_of_groups_computes_the_same(groups):
    model = trained(nn.Sequential(nn.ConvTranspose2d(16, 12, 3, groups=groups), nn.BatchNorm2d(12)))
    (layer,) = memory.weights_from_module(model, torch.zeros(1, 16, 8, 8)).layers
    kernels = torch.from_numpy(folded(layer).read())  # (out, in / groups, h, w), PyTorch has (in, out / groups, h, w)
    weight = torch.cat([part.transpose(0, 1) for part in kernels.chunk(groups)])
    x = torch.randn(2, 16, 8, 8)
    with torch.no_grad():
        # Without what is added to every pixel, the network is linear
        expected = model(x) - model(torch.zeros_like(x))
    torch.testing.assert_close(nn.functional.conv_transpose2d(x, weight, groups=groups), expected, rtol=1e-4, atol=1e-5)


def test_what_reads_the_output_decides_in_a_module():
    assert scales(memory.weights_from_module(trained(Branches()))).keys() == {"conv4"}
    model = trained(PreActivation())
    found = scales(memory.weights_from_module(model))
    assert found.keys() == {"stem", "conv1"}
    np.testing.assert_allclose(
        found["conv1"], (model.bn2.weight / (model.bn2.running_var + 1e-5).sqrt()).detach(), rtol=1e-6
    )


def test_a_norm_that_two_layers_read_through_counts_for_both_and_two_norms_for_none():
    class Shared(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b, self.c = (nn.Conv2d(8, 8, 3, padding=1) for _ in range(3))
            self.one, self.two, self.three = (nn.BatchNorm2d(8) for _ in range(3))

        def forward(self, x):
            return self.one(self.a(x)) + self.one(self.b(x)) + self.two(self.c(x)) + self.three(self.c(x))

    assert scales(memory.weights_from_module(trained(Shared()), torch.zeros(1, 8, 8, 8))).keys() == {"a", "b"}


def test_names_of_a_network_that_normalises_first_do_not_mislead(tmp_path):
    model = trained(PreActivation())
    found = scales(memory.weights_from_state_dict(model.state_dict()))
    truth = scales(memory.weights_from_module(model))
    assert all(np.array_equal(found[name], truth[name]) for name in found)
    save_file(model.state_dict(), tmp_path / "w.safetensors")  # in the order of the alphabet, nothing decides
    assert scales(formats.read(tmp_path / "w.safetensors")) == {}


def tensors(*entries):
    found = OrderedDict()
    for name, channels in entries:
        if isinstance(channels, tuple):
            found[f"{name}.weight"] = np.ones(channels, np.float32)
        else:
            found[f"{name}.weight"] = np.full(channels, 3, np.float32)
            found[f"{name}.running_mean"] = np.resize(np.float32([-1, 1]), channels)
            found[f"{name}.running_var"] = np.full(channels, 4, np.float32)
    return found


@pytest.mark.parametrize(
    ("entries", "expected"),
    [
        ([("x.conv", (8, 3, 3, 3)), ("x.bn", 8)], ["x.conv"]),
        ([("x.conv", (8, 3, 3, 3)), ("x.norm", 8)], ["x.conv"]),
        ([("conv_stem", (8, 3, 3, 3)), ("bn1", 8)], ["conv_stem"]),
        ([("b.pw", (8, 3, 1, 1)), ("b.bn1", 8), ("b.dw", (8, 1, 3, 3)), ("b.bn2", 8)], ["b.dw", "b.pw"]),  # by turns
        ([("b.c1", (8, 3, 3, 3)), ("b.c2", (8, 8, 3, 3)), ("b.n1", 8), ("b.n2", 8)], []),  # no turns are taken
        ([("0", (8, 3, 3, 3)), ("1", 8)], ["0"]),
        ([("s.0", (8, 3, 3, 3)), ("s.2", 8)], []),  # something without weights is between
        ([("s.0", (8, 3, 3, 3)), ("s.1", 4)], []),  # another number of channels
        ([("res.conv1", (8, 3, 3, 3)), ("res.conv1.norm", 8)], ["res.conv1"]),
        ([("stem_conv", (8, 3, 3, 3)), ("stem_bn", 8)], ["stem_conv"]),
        ([("Conv1", (8, 3, 3, 3)), ("bn_Conv1", 8)], ["Conv1"]),
        ([("bn1", 8), ("conv1", (8, 8, 3, 3))], []),  # the norm comes first
        ([("conv1", (8, 3, 3, 3)), ("conv2", (8, 8, 3, 3)), ("bn1", 8), ("bn2", 8)], ["conv1", "conv2"]),
        ([("x.conv", (8, 3, 3, 3)), ("x.bn", 8), ("x.norm", 8)], []),  # which of them?
        # One pair contradicts, so that names that are alike prove nothing; neighbours still do
        ([("x.conv1", (8, 3, 3, 3)), ("x.bn1", 8), ("y.bn1", 3), ("y.conv1", (8, 3, 3, 3))], ["x.conv1"]),
        ([("x.conv1", (8, 3, 3, 3)), ("x.fc", (8, 8)), ("x.bn1", 8), ("y.bn1", 3), ("y.conv1", (8, 3, 3, 3))], []),
    ],
)  # fmt: skip
def test_names(entries, expected):
    found = scales(memory.weights_from_state_dict(tensors(*entries)))
    assert sorted(found) == sorted(expected)
    for scale in found.values():
        np.testing.assert_allclose(scale, 3 / np.sqrt(4 + 1e-5), rtol=1e-6)


def test_means_without_a_negative_one_are_those_of_an_activation():
    data = tensors(("conv1", (16, 3, 3, 3)), ("bn1", 16))
    data["bn1.running_mean"] = np.abs(np.random.default_rng(0).normal(size=16)).astype(np.float32)
    (layer,) = memory.weights_from_state_dict(data).layers
    after = folded(layer)
    assert (layer.bn_folded, after.bn_folded) == (False, False)
    np.testing.assert_array_equal(after.read(), layer.read())
    data["bn1.running_mean"] = np.zeros(16, np.float32)  # not trained yet
    assert folded(memory.weights_from_state_dict(data).layers[0]).bn_folded


def test_a_standardised_weight_is_left_alone():
    weight = {"x.conv.weight": np.ones((8, 3, 3, 3), np.float32), "x.conv.gain": np.ones((8, 1, 1, 1), np.float32)}
    (layer,) = memory.weights_from_state_dict(weight | tensors(("x.bn", 8))).layers
    assert layer.weight_norm == "scaled_std"
    assert layer.batch_norm is None


def test_what_is_folded_is_not_folded_twice():
    layer = ConvLayer("a", (1, 1, 1, 1), lambda: np.ones((1, 1, 1, 1), np.float32), bn_folded=True, batch_norm=np.ones)
    assert folded(layer) is layer


def test_raw_and_folded_live_side_by_side(tmp_path):
    model = trained(Block())
    db = cnnfilterdb.create(tmp_path / "a.db")
    assert db.add(model, "net") == "custom/net"
    assert db.add(model, "net", fold_bn=True) == "custom/net+bn"
    rows = db.layers().set_index(["model_id", "layer_name"])["bn_folded"]
    raw, fold = rows["custom/net"].to_dict(), rows["custom/net+bn"].to_dict()
    assert [raw[name] for name in ("conv1", "conv2", "up.0")] == [False] * 3
    assert [fold[name] for name in ("conv1", "conv2", "up.0")] == [True] * 3
    filters = db.filters(where="model_id = 'custom/net+bn' AND layer_name = 'conv1'")
    stored = filters[[f"w{i}" for i in range(9)]].to_numpy().reshape(16, 3, 3, 3)
    np.testing.assert_allclose(stored, turned(fused(model.conv1, model.bn1)), rtol=2e-6)
    assert db.verify() == []


def test_ingest_folds_and_skips_by_the_name_of_the_variant(tmp_path):
    torch.save(trained(Block()).state_dict(), tmp_path / "net.pth")
    db = cnnfilterdb.create(tmp_path / "a.db")
    options = {"allow_untrained": True}
    assert list(db.ingest("files", [str(tmp_path / "net.pth")], **options).done) == ["files/net"]
    assert list(db.ingest("files", [str(tmp_path / "net.pth")], fold_bn=True, **options).done) == ["files/net+bn"]
    assert db.ingest("files", [str(tmp_path / "net.pth")], fold_bn=True, **options).skipped == ["files/net+bn"]


def test_random_initialisation_is_refused_from_a_source_and_flagged_otherwise(tmp_path):
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv2d(32, 64, 3), nn.Conv2d(64, 64, 3))
    torch.save(net.state_dict(), tmp_path / "fresh.pth")
    db = cnnfilterdb.create(tmp_path / "a.db")
    (failure,) = db.ingest("files", [str(tmp_path / "fresh.pth")]).failed
    assert isinstance(failure.error, BadWeightsError)
    assert "--allow-untrained" in failure.reason
    assert len(db.models()) == 0
    assert db.verify() == []
    report = db.ingest("files", [str(tmp_path / "fresh.pth")], allow_untrained=True)
    assert list(report.done) == ["files/fresh"]
    db.add(net, "control")
    assert db.models()["untrained"].tolist() == [True, True]


def test_options_of_the_command_line(tmp_path, monkeypatch, capsys):
    from cnnfilterdb.cli import cli

    torch.save(trained(Block()).state_dict(), tmp_path / "net.pth")
    monkeypatch.setenv("CNNFILTERDB", str(tmp_path / "a.db"))
    arguments = ["ingest", "files", str(tmp_path / "net.pth"), "--fold-bn", "--allow-untrained", "--quiet"]
    cli.main(arguments, standalone_mode=False)
    cli.main(["add", str(tmp_path / "net.pth"), "--name", "mine", "--fold-bn"], standalone_mode=False)
    assert cnnfilterdb.open(tmp_path / "a.db").models()["model_id"].tolist() == ["custom/mine+bn", "files/net+bn"]
    for option in (["--offline"], ["--from", str(tmp_path)]):  # nothing is downloaded from there
        cli.main([*arguments, *option], standalone_mode=False)
    with pytest.raises(SelectionError, match="source files does not support --partial"):
        cli.main([*arguments, "--partial"], standalone_mode=False)


def test_what_the_catalog_pins_is_flagged_and_not_refused(tmp_path, monkeypatch):
    torch.manual_seed(0)
    torch.save(nn.Conv2d(32, 64, 3).state_dict(), tmp_path / "net.pth")
    model = next(model for model in catalog.models("pypi") if model.pinned)
    known = replace(model, source="files", name="net")
    monkeypatch.setattr(catalog, "models", lambda source=None: (known,))
    db = cnnfilterdb.create(tmp_path / "a.db")
    assert list(db.ingest("files", [str(tmp_path / "net.pth")]).done) == ["files/net"]
    assert db.models()["untrained"].tolist() == [True]
    monkeypatch.setattr(catalog, "models", lambda source=None: (replace(known, origin={"file": "net.pth"}),))
    (failure,) = db.ingest("files", [str(tmp_path / "net.pth")], overwrite=True).failed
    assert "random initialisation" in failure.reason
