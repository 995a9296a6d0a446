"""TorchScript: facts, order and depth out of the code of an archive, against the live network."""

from __future__ import annotations

import time
import warnings
import zipfile

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from cnnfilterdb.core.errors import CnnFilterDbError
from cnnfilterdb.ingest.formats.torch.checkpoint import TorchFormat
from cnnfilterdb.ingest.network.memory import weights_from_module

pytestmark = pytest.mark.filterwarnings("ignore")


class Block(nn.Module):
    def __init__(self, inner, outer, stride=1):
        super().__init__()
        # The shortcut stands first and runs last, c2 before c1
        self.shortcut = nn.Sequential(nn.Conv2d(inner, outer, 1, stride)) if inner != outer else nn.Identity()
        self.c2 = nn.Conv2d(outer, outer, 3, padding=1, groups=2)
        self.c1 = nn.Conv2d(inner, outer, 3, stride, padding=1, bias=False)
        self.bn = nn.BatchNorm2d(outer)

    def forward(self, x):
        y = F.relu(self.bn(self.c1(x)))
        return F.relu(self.c2(y) + self.shortcut(x), inplace=True)


class Residual(nn.Module):
    def __init__(self):
        super().__init__()
        self.up = nn.ConvTranspose2d(16, 8, 2, (2, 2), groups=2)
        self.stem = nn.Conv2d(3, 8, 7, 2, 3)
        self.blocks = nn.ModuleList([Block(8, 8), Block(8, 16, 2), Block(16, 16)])
        self.dw = nn.Conv2d(16, 16, (3, 1), dilation=(2, 1), padding=(2, 0), groups=16)
        self.head = nn.Linear(8, 3)

    def forward(self, x):
        x = self.stem(x)
        for block in self.blocks:
            x = block(x)
        y = F.interpolate(self.dw(x), size=x.shape[2:], mode="nearest")
        y = self.up(torch.cat([y], 1) + x)
        return self.head(y.mean([2, 3]))


class Dense(nn.Module):
    def __init__(self):
        super().__init__()
        self.layers = nn.ModuleList([nn.Conv2d(4 + 4 * i, 4, 3, padding=1) for i in range(4)])
        self.stem = nn.Conv2d(3, 4, 3, padding=1)

    def forward(self, x):
        features = [self.stem(x)]
        for layer in self.layers:
            features.append(F.relu(layer(torch.cat(features, 1))))
        return torch.cat(features, 1)


class Inception(nn.Module):
    def __init__(self):
        super().__init__()
        self.long = nn.Sequential(nn.Conv2d(3, 4, 1), nn.ReLU(), nn.Conv2d(4, 4, (1, 7), padding=(0, 3)))
        self.short = nn.Conv2d(3, 4, 1)
        self.pool = nn.Sequential(nn.AvgPool2d(3, 1, 1), nn.Conv2d(3, 4, 1))
        self.end = nn.Conv2d(12, 4, 3, padding="same")

    def forward(self, x):
        short, long, pool = self.short(x), self.long(x), self.pool(x)
        return {"out": self.end(torch.cat((short, long, pool), 1))}


class UNet(nn.Module):
    def __init__(self):
        super().__init__()
        self.down = nn.ModuleDict({"a": nn.Conv2d(3, 4, 3, padding=1), "b": nn.Conv2d(4, 8, 3, padding=1)})
        self.up = nn.ConvTranspose2d(8, 4, 2, stride=2)
        self.join = nn.Conv2d(8, 4, 3, padding=1)
        self.out = nn.Conv2d(4, 1, 1)

    def forward(self, x):
        skip = self.down["a"](x)
        x = self.up(F.max_pool2d(self.down["b"](skip), 2))
        return torch.sigmoid(self.out(self.join(torch.cat([x, skip], 1))))


class Recurrent(nn.Module):
    """One layer, called several times."""

    def __init__(self):
        super().__init__()
        self.second = nn.Conv2d(4, 3, 3, padding=1)
        self.first = nn.Conv2d(3, 4, 3, padding=1)

    def forward(self, x):
        for _ in range(3):
            x = self.second(self.first(x))
        return x


NETWORKS = {cls.__name__: cls for cls in (Residual, Dense, Inception, UNet, Recurrent)}
WAYS = {
    "script": torch.jit.script,
    "trace": lambda net: torch.jit.trace(net, torch.zeros(1, 3, 32, 32), strict=False),
}


def described(layer):
    return (
        *(layer.shape, layer.kind, layer.in_channels, layer.groups, layer.stride, layer.dilation),
        *(layer.conv_depth, layer.conv_depth_norm, layer.depth_source, layer.dead),
    )


def write(module, path):
    torch.jit.save(module, path)
    return TorchFormat().read(path)


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("name", NETWORKS)
def test_what_the_code_says_is_what_the_network_does(tmp_path, name, way):
    torch.manual_seed(0)
    net = NETWORKS[name]().eval()
    expected = weights_from_module(net, torch.zeros(1, 3, 32, 32))
    assert {layer.depth_source for layer in expected.layers} == {"graph"}
    weights = write(WAYS[way](net), tmp_path / "net.pt")
    assert weights.format == "torchscript"
    assert weights.framework == "pytorch"
    assert weights.parameters == sum(value.numel() for value in net.parameters())
    assert {layer.name: described(layer) for layer in weights.layers} == {
        layer.name: described(layer) for layer in expected.layers
    }
    for found, layer in zip(weights.layers, expected.layers, strict=True):
        assert found.name == layer.name
        np.testing.assert_array_equal(found.read(), layer.read())


@pytest.mark.parametrize("name", NETWORKS)
@pytest.mark.parametrize("way", WAYS)
def test_frozen_networks_keep_their_weights_in_the_code(tmp_path, name, way):
    net = NETWORKS[name]().eval()
    expected = weights_from_module(net, torch.zeros(1, 3, 32, 32)).layers
    weights = write(torch.jit.freeze(WAYS[way](net), optimize_numerics=False), tmp_path / "net.pt")
    assert [described(layer) for layer in weights.layers] == [described(layer) for layer in expected]
    for found, layer in zip(weights.layers, expected, strict=True):
        assert found.name.startswith("CONSTANTS.c")
        np.testing.assert_array_equal(found.read(), layer.read())


def test_layers_that_are_never_used_have_no_depth(tmp_path):
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.never = nn.Conv2d(3, 3, 3)
            self.used = nn.Conv2d(3, 4, 3)

        def forward(self, x):
            return self.used(x)

    weights = write(torch.jit.script(Net()), tmp_path / "net.pt")
    assert [(layer.name, layer.conv_depth, layer.dead) for layer in weights.layers] == [
        ("used", 0, False),
        ("never", None, None),  # it may have been of use in training
    ]


def test_parameters_are_kept_apart_from_buffers(tmp_path):
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv = nn.Conv2d(3, 4, 3)
            self.register_buffer("blur", torch.ones(4, 1, 3, 3))
            self.plain = torch.zeros(100)

        def forward(self, x):
            return F.conv2d(self.conv(x), self.blur, groups=4)

    net = Net()
    weights = write(torch.jit.script(net), tmp_path / "net.pt")
    assert [layer.name for layer in weights.layers] == ["conv"]
    assert [skipped.name for skipped in weights.skipped] == ["blur"]


def test_ways_that_are_known(tmp_path):
    class Net(nn.Module):
        def __init__(self, deep: bool):
            super().__init__()
            self.deep = deep
            self.a = nn.Conv2d(3, 3, 3)
            self.b = nn.Conv2d(3, 3, 3)

        def forward(self, x, mask: torch.Tensor | None = None):
            if x.dim() != 4:
                raise ValueError("images are needed")
            if mask is not None:
                x = self.b(x * mask)
            if self.training:
                x = self.b(x)
            for i in range(4):
                if i % 2 == 0:
                    x = self.a(x)
            if self.deep:
                x = self.b(x)
            return x

    weights = write(torch.jit.script(Net(True)), tmp_path / "net.pt")
    assert [(layer.name, layer.conv_depth) for layer in weights.layers] == [("a", 0), ("b", 1)]
    weights = write(torch.jit.script(Net(False)), tmp_path / "net.pt")
    assert [(layer.name, layer.conv_depth) for layer in weights.layers] == [("a", 0), ("b", None)]


class Loop(nn.Module):
    def __init__(self):
        super().__init__()
        self.b = nn.Conv2d(3, 3, 3, groups=3, stride=2)
        self.a = nn.Conv2d(3, 3, 3)

    def forward(self, x):
        x = self.a(x)
        for _ in range(x.shape[2]):
            x = self.b(x)
        return x


class Choice(Loop):
    def forward(self, x):
        if bool(x.mean() > 0):
            return self.a(x)
        return self.b(x)


@pytest.mark.parametrize("cls", [Loop, Choice])
def test_what_depends_on_the_image_has_no_depth(tmp_path, cls):
    weights = write(torch.jit.script(cls()), tmp_path / "net.pt")
    found = [(layer.name, layer.kind, layer.stride, layer.conv_depth) for layer in weights.layers]
    assert found == [("b", "depthwise", (2, 2), None), ("a", "conv", (1, 1), None)]
    assert {layer.dead for layer in weights.layers} == {None}


class Harmless(nn.Module):
    """What depends on the image holds no convolution here."""

    def __init__(self):
        super().__init__()
        self.b = nn.Conv2d(3, 3, 3)
        self.a = nn.Conv2d(3, 3, 3)

    def forward(self, x):
        x = self.a(x)
        if bool(x.mean() > 0):
            x = F.relu(x)
            x = torch.tanh(x * 2)
        for _ in range(x.shape[2]):
            x = x + 1
        while bool(x.mean() > 5):
            x = x / 2
        return self.b(x)


def test_what_depends_on_the_image_without_a_convolution_does_no_harm(tmp_path):
    weights = write(torch.jit.script(Harmless()), tmp_path / "net.pt")
    assert [(layer.name, layer.conv_depth) for layer in weights.layers] == [("a", 0), ("b", 1)]


class Standardised(nn.Conv2d):
    def forward(self, x):
        weight = F.batch_norm(self.weight.reshape(1, self.out_channels, -1), None, None, training=True)
        return F.conv2d(x, weight.reshape_as(self.weight), self.bias, self.stride, self.padding, self.dilation)


def test_a_weight_that_is_changed_before_use(tmp_path):
    net = nn.Sequential(Standardised(3, 4, 3), nn.ReLU(), Standardised(4, 4, 3))
    for way in WAYS.values():
        weights = write(way(net), tmp_path / "net.pt")
        assert [(layer.name, layer.conv_depth) for layer in weights.layers] == [("0", 0), ("2", 1)]
        np.testing.assert_array_equal(weights.layers[0].read(), net[0].weight.detach().numpy())


def test_weight_normalisation(tmp_path):
    # Hooks and parametrisations cannot be scripted, but traced
    net = nn.Sequential(nn.utils.weight_norm(nn.Conv2d(3, 4, 3)), nn.Conv2d(4, 4, 3)).eval()
    weights = write(torch.jit.trace(net, torch.zeros(1, 3, 9, 9)), tmp_path / "net.pt")
    assert [(layer.name, layer.weight_norm, layer.conv_depth) for layer in weights.layers] == [
        ("0", "weight_norm", 0),
        ("1", None, 1),
    ]
    np.testing.assert_allclose(weights.layers[0].read(), net[0].weight.detach().numpy(), rtol=1e-5)


@pytest.mark.parametrize("way", WAYS)
def test_quantized_networks(tmp_path, way):
    net = nn.Sequential(
        torch.ao.quantization.QuantStub(),
        nn.Conv2d(3, 8, 3, stride=2, groups=1),
        nn.Sequential(nn.Conv2d(8, 8, 3, groups=4, dilation=2), nn.ReLU()),
        torch.ao.quantization.DeQuantStub(),
    ).eval()
    torch.ao.quantization.fuse_modules(net[2], ["0", "1"], inplace=True)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        net.qconfig = torch.ao.quantization.get_default_qconfig("fbgemm")
        prepared = torch.ao.quantization.prepare(net)
        prepared(torch.randn(1, 3, 32, 32))
        net = torch.ao.quantization.convert(prepared)
        module = WAYS[way](net)
    weights = write(module, tmp_path / "net.pt")
    assert [(layer.name, layer.dtype, layer.kind, layer.stride, layer.dilation) for layer in weights.layers] == [
        ("1", "qint8", "conv", (2, 2), (1, 1)),
        ("2.0", "qint8", "grouped", (1, 1), (2, 2)),
    ]
    assert [layer.conv_depth for layer in weights.layers] == [0, 1]
    np.testing.assert_array_equal(weights.layers[0].read(), net[1].weight().dequantize().numpy())
    np.testing.assert_array_equal(weights.layers[1].read(), net[2][0].weight().dequantize().numpy())


def test_half_precision_and_other_layouts(tmp_path):
    net = nn.Sequential(nn.Conv2d(3, 8, 3), nn.Conv2d(8, 4, 3)).to(memory_format=torch.channels_last).half()
    weights = write(torch.jit.script(net), tmp_path / "net.pt")
    for layer, module in zip(weights.layers, net, strict=True):
        assert layer.dtype == "float16"
        np.testing.assert_array_equal(layer.read(), module.weight.detach().float().numpy())


# ---------------------------------------------------------------------------------------------------------------------
# Code that is damaged or hostile


def with_code(path, source):
    """A network whose forward pass is replaced."""
    net = nn.Sequential(nn.Conv2d(3, 4, 3, stride=2), nn.Conv2d(4, 4, 3))
    torch.jit.save(torch.jit.script(net), path)
    with zipfile.ZipFile(path) as archive:
        members = {name: archive.read(name) for name in archive.namelist()}
    with zipfile.ZipFile(path, "w") as archive:
        for name, data in members.items():
            if "container" in name and name.endswith(".py"):
                data = source(data.decode()).encode() if callable(source) else source.encode()
            archive.writestr(name, data)
    return path


def forward(*lines):
    text = "class Sequential(Module):\n  __parameters__ = []\n  def forward(self, input: Tensor) -> Tensor:\n"
    return text + "".join(f"    {line}\n" for line in lines)


HOSTILE = {
    "no Python": "this is ( no Python",
    "nothing": "",
    "null": "\0",
    "deep": "x = " + "-" * 500_000 + "1",
    "brackets": "x = " + "(" * 100_000,
    "attributes": "x = a" + ".b" * 500_000,
    "endless": forward("while True:", "  pass"),
    "numbers": forward("x = 2", "while True:", "  x = torch.mul(x, x)"),
    "texts": forward("x = 'ab'", "while True:", "  x = torch.add(x, x)"),
    "lists": forward("x = [1]", "while True:", "  x = torch.add(x, x)"),
    "extended": forward("x = [input]", "while True:", "  _0 = torch.extend(x, x)"),
    "repeated": forward("x = torch.mul([1], 1000000000000)"),
    "range": forward("for i in range(1000000000000):", "  pass"),
    "ranges": forward(*(f"{'  ' * i}for i{i} in range(100):" for i in range(15)), "  " * 15 + "pass"),
    "recursion": forward("return (self).forward(input, )"),
    "pairs": forward("x = input", "for i in range(100000):", "  x = (x, x)", "return torch.relu(x)"),
    "constants": forward("return torch.conv2d(input, CONSTANTS.c99, None)"),
    "attribute": forward("return self.forward.forward"),
    "import": forward("import os", "os.system('touch canary')"),
    "call": forward("return __import__('os').system('touch canary')"),
    "arguments": forward("return torch.conv2d()"),
    "index": forward("x = torch.__getitem__([1], 7)", "return x[9]"),
    "types": forward("return torch.floordiv(1, 0)"),
    "statement": forward("del input"),
}


@pytest.mark.parametrize("kind", HOSTILE)
def test_hostile_code_costs_only_the_order(tmp_path, kind, monkeypatch):
    monkeypatch.chdir(tmp_path)
    path = with_code(tmp_path / "net.pt", HOSTILE[kind])
    start = time.process_time()
    weights = TorchFormat().read(path)
    assert time.process_time() - start < 5
    assert [layer.name for layer in weights.layers] == ["0", "1"]
    assert {layer.conv_depth for layer in weights.layers} <= {None}
    assert not (tmp_path / "canary").exists()


def test_the_same_code_unchanged_is_followed(tmp_path):
    weights = TorchFormat().read(with_code(tmp_path / "net.pt", lambda text: text))
    assert [(layer.name, layer.stride, layer.conv_depth) for layer in weights.layers] == [
        ("0", (2, 2), 0),
        ("1", (1, 1), 1),
    ]


@given(st.data())
@settings(max_examples=150)
def test_damaged_code_costs_only_the_order(tmp_path, draw):
    def damaged(text):
        data = bytearray(text.encode())
        for _ in range(draw.draw(st.integers(1, 5))):
            place = draw.draw(st.integers(0, len(data) - 1))
            data[place : place + draw.draw(st.integers(0, 3))] = draw.draw(
                st.sampled_from([b"", b"0", b"(", b"\n", b"self"])
            )
        return data.decode(errors="ignore")

    path = with_code(tmp_path / "net.pt", damaged)
    try:
        weights = TorchFormat().read(path)
    except CnnFilterDbError:
        return
    assert {layer.name for layer in weights.layers} == {"0", "1"}
