"""Depths of known families from names and shapes alone, against the exported graph of such networks."""

from __future__ import annotations

import random
import sys
from dataclasses import replace
from functools import cache
from types import ModuleType

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from cnnfilterdb.ingest.network.architecture import architecture
from cnnfilterdb.ingest.network.families import FAMILIES, _placed, recognised
from cnnfilterdb.ingest.network.layers import ConvLayer, Weights
from cnnfilterdb.ingest.network.memory import weights_from_state_dict

try:
    from torchvision import models
except RuntimeError:
    # Its compiled operators have to be built for the very build of PyTorch. Classifiers use none of them.
    for loaded in [name for name in sys.modules if name.partition(".")[0] == "torchvision"]:
        del sys.modules[loaded]
    sys.modules["torchvision._meta_registrations"] = ModuleType("torchvision._meta_registrations")
    from torchvision import models


def conv(*args, **options):
    return nn.Sequential(nn.Conv2d(*args, **options), nn.BatchNorm2d(args[1]), nn.ReLU())


class Double(nn.Module):
    def __init__(self, name, *channels):
        super().__init__()
        first, second = channels
        layers = [nn.Conv2d(first, second, 3, padding=1), nn.BatchNorm2d(second), nn.ReLU()]
        layers += [nn.Conv2d(second, second, 3, padding=1), nn.BatchNorm2d(second), nn.ReLU()]
        setattr(self, name, nn.Sequential(*layers))

    def forward(self, x):
        return next(self.children())(x)


class Up(nn.Module):
    def __init__(self, before, after):
        super().__init__()
        self.up = nn.ConvTranspose2d(before, after, 2, stride=2)
        self.conv = Double("conv", 2 * after, after)

    def forward(self, x, skip):
        return self.conv(torch.cat([skip, self.up(x)], 1))


class UNet(nn.Module):
    """The names of Pytorch-UNet and its descendants."""

    def __init__(self):
        super().__init__()
        self.inc = Double("conv", 2, 8)
        self.down1 = nn.Sequential(nn.MaxPool2d(2), Double("conv", 8, 16))
        self.down2 = nn.Sequential(nn.MaxPool2d(2), Double("conv", 16, 32))
        self.up7 = Up(32, 16)
        self.up8 = Up(16, 8)
        self.outc = nn.Conv2d(8, 1, 1)

    def forward(self, x):
        a = self.inc(x)
        b = self.down1(a)
        return self.outc(self.up8(self.up7(self.down2(b), b), a))


class EncoderDecoder(nn.Module):
    def __init__(self):
        super().__init__()
        self.enc1, self.enc2 = Double("block", 3, 8), Double("block", 8, 16)
        self.bottleneck = Double("block", 16, 32)
        self.up2, self.up1 = Double("block", 48, 16), Double("block", 24, 8)
        self.head = nn.Conv2d(8, 1, 1)

    def forward(self, x):
        a = self.enc1(x)
        b = self.enc2(nn.functional.max_pool2d(a, 2))
        c = self.bottleneck(nn.functional.max_pool2d(b, 2))
        c = self.up2(torch.cat([nn.functional.interpolate(c, scale_factor=2), b], 1))
        return self.head(self.up1(torch.cat([nn.functional.interpolate(c, scale_factor=2), a], 1)))


class StarDist(nn.Module):
    def __init__(self):
        super().__init__()
        shapes = {
            "conv2d": (1, 8), "conv2d_1": (8, 8),
            "down_level_0_no_0": (8, 8), "down_level_0_no_1": (8, 8),
            "down_level_1_no_0": (8, 16), "down_level_1_no_1": (16, 16),
            "middle_0": (16, 32), "middle_2": (32, 16),
            "up_level_1_no_0": (32, 16), "up_level_1_no_2": (16, 8),
            "up_level_0_no_0": (16, 8), "up_level_0_no_2": (8, 8), "features": (8, 24),
        }  # fmt: skip
        for name, (before, after) in shapes.items():
            setattr(self, name, nn.Conv2d(before, after, 3, padding=1))
        self.prob, self.dist = nn.Conv2d(24, 1, 1), nn.Conv2d(24, 32, 1)

    def run(self, x, *names):
        for name in names:
            x = nn.functional.relu(getattr(self, name)(x))
        return x

    def forward(self, x):
        x = nn.functional.max_pool2d(self.run(x, "conv2d", "conv2d_1"), 2)
        a = self.run(x, "down_level_0_no_0", "down_level_0_no_1")
        b = self.run(nn.functional.max_pool2d(a, 2), "down_level_1_no_0", "down_level_1_no_1")
        c = self.run(nn.functional.max_pool2d(b, 2), "middle_0", "middle_2")
        c = torch.cat([nn.functional.interpolate(c, scale_factor=2), b], 1)
        c = self.run(c, "up_level_1_no_0", "up_level_1_no_2")
        c = torch.cat([nn.functional.interpolate(c, scale_factor=2), a], 1)
        c = self.run(c, "up_level_0_no_0", "up_level_0_no_2", "features")
        return torch.sigmoid(self.prob(c)), self.dist(c)


class PNet(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv1, self.conv2, self.conv3 = nn.Conv2d(3, 10, 3), nn.Conv2d(10, 16, 3), nn.Conv2d(16, 32, 3)
        self.conv4_1, self.conv4_2 = nn.Conv2d(32, 2, 1), nn.Conv2d(32, 4, 1)

    def forward(self, x):
        x = self.conv3(self.conv2(nn.functional.max_pool2d(self.conv1(x), 2)))
        return torch.softmax(self.conv4_1(x), 1), self.conv4_2(x)


class Residual(nn.Module):
    def __init__(self, channels):
        super().__init__()
        self.conv1, self.conv2 = (nn.Conv2d(channels, channels, 3, padding=1) for _ in range(2))

    def forward(self, x):
        return x + self.conv2(nn.functional.leaky_relu(self.conv1(x)))


class UpResNet10(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv_pre, self.conv_bridge = nn.Conv2d(3, 8, 3, padding=1), nn.Conv2d(8, 8, 3, padding=1)
        for number in range(1, 6):
            setattr(self, f"res{number}", Residual(8))
        self.conv_post = nn.ConvTranspose2d(8, 3, 4, stride=2)

    def forward(self, x):
        x = skip = self.conv_pre(x)
        for number in range(1, 6):
            x = getattr(self, f"res{number}")(x)
        return self.conv_post(self.conv_bridge(x) + skip)


class Maxout(nn.Module):
    def __init__(self, before, after):
        super().__init__()
        self.filter = nn.Conv2d(before, 2 * after, 3, padding=1)

    def forward(self, x):
        return torch.maximum(*self.filter(x).chunk(2, 1))


class MaxoutBlock(nn.Module):
    def __init__(self, channels):
        super().__init__()
        self.conv1, self.conv2 = Maxout(channels, channels), Maxout(channels, channels)

    def forward(self, x):
        return x + self.conv2(self.conv1(x))


class LightCNN(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv1, self.block1 = Maxout(3, 8), nn.Sequential(MaxoutBlock(8))
        self.conv2, self.block2 = Maxout(8, 16), nn.Sequential(MaxoutBlock(16), MaxoutBlock(16))

    def forward(self, x):
        return self.block2(self.conv2(self.block1(self.conv1(x))))


def timm_model(name):
    import timm

    return timm.create_model(name)


MODELS = {
    "resnet of basic blocks": lambda: models.ResNet(models.resnet.BasicBlock, [1, 2, 1, 1]),
    "resnet of bottlenecks": lambda: models.ResNet(models.resnet.Bottleneck, [1, 2, 1, 1]),
    "densenet": lambda: models.DenseNet(growth_rate=4, block_config=(2, 3, 1), num_init_features=8),
    "squeezenet": models.squeezenet1_1,
    "mobilenet_v2": lambda: models.MobileNetV2(inverted_residual_setting=[[1, 8, 1, 1], [6, 16, 2, 2], [6, 24, 2, 2]]),
    "mobilenet_v3": lambda: models.MobileNetV3(
        [
            models.mobilenetv3.InvertedResidualConfig(16, 3, 16, 16, True, "RE", 2, 1, 1.0),
            models.mobilenetv3.InvertedResidualConfig(16, 3, 72, 24, False, "RE", 2, 1, 1.0),
            models.mobilenetv3.InvertedResidualConfig(24, 5, 96, 24, True, "HS", 1, 1, 1.0),
        ],
        last_channel=64,
    ),
    "efficientnet": lambda: models.EfficientNet(
        [
            models.efficientnet.MBConvConfig(1, 3, 1, 16, 8, 1, 1.0, 1.0),
            models.efficientnet.MBConvConfig(6, 3, 2, 8, 16, 2, 1.0, 1.0),
        ],
        dropout=0.2,
    ),
    "vgg": models.vgg11_bn,
    "alexnet": models.alexnet,
    "timm efficientnet": lambda: timm_model("efficientnet_b0"),
    "timm mobilenet_v3": lambda: timm_model("mobilenetv3_small_050"),
    "u-net": UNet,
    "encoder and decoder": EncoderDecoder,
    "stardist": StarDist,
    "p-net": PNet,
    "upresnet10": UpResNet10,
    "lightcnn": LightCNN,
}


@cache
def both(name):
    """The layers of a network: with the depths of its graph, and from names and shapes alone."""
    with torch.device("meta"):
        module = MODELS[name]().eval()
    graph = {layer.name: layer for layer in architecture(module).layers}
    return graph, from_names(module)


def from_names(module):
    # The shapes of its tensors, without the memory for them
    return weights_from_state_dict(
        {name: torch.zeros(()).expand(one.shape) for name, one in module.state_dict().items()}
    )


@pytest.mark.parametrize("name", MODELS)
def test_depths_are_those_of_the_graph(name):
    graph, weights = both(name)
    assert {layer.depth_source for layer in graph.values()} == {"graph"}
    assert {layer.depth_source for layer in weights.layers} == {None}
    found = recognised(weights)
    assert {layer.name: layer.conv_depth for layer in found.layers} == {
        layer.name: layer.conv_depth for layer in graph.values()
    }
    assert {layer.depth_source for layer in found.layers} == {"family"}
    assert [layer.name for layer in found.layers] == [layer.name for layer in weights.layers]
    for layer in found.layers:
        known = graph[layer.name]
        assert (layer.kind, layer.shape, layer.in_channels, layer.groups) == (
            *(known.kind, known.shape, known.in_channels, known.groups),
        )


def shaped(names, shapes, kinds=None):
    kinds = kinds or {}
    return Weights(
        "keras-h5",
        "keras",
        tuple(ConvLayer(name, shapes[name], lambda: None, kind=kinds.get(name)) for name in names),
    )


def test_keras_names_give_the_same_depths_as_the_same_network_of_torchvision():
    graph, _ = both("mobilenet_v2")
    ordered = sorted(graph.values(), key=lambda layer: layer.conv_depth)
    blocks = range(1, (len(ordered) - 1) // 3)
    names = ["Conv1", "expanded_conv_depthwise", "expanded_conv_project"]
    names += [f"block_{n}_{part}" for n in blocks for part in ("expand", "depthwise", "project")] + ["Conv_1"]
    early = ["Conv1", "mobl0_conv_0_depthwise", "mobl0_conv_0_project"]
    early += [f"mobl{n}_conv_{n}_{part}" for n in blocks for part in ("expand", "depthwise", "project")]
    early += ["Conv_1"]
    for spelled in (names, early, [f"mobilenetv2_1.00_160/{name}" for name in names]):
        shapes = {name: layer.shape for name, layer in zip(spelled, ordered, strict=True)}
        mixed = random.Random(0).sample(spelled, len(spelled))
        found = recognised(shaped(mixed, shapes))
        assert [layer.conv_depth for layer in found.layers] == [spelled.index(name) for name in mixed]
        assert {layer.kind for layer in found.layers} == {"conv", "depthwise"}


def test_names_of_efficientnet_pytorch_give_the_same_depths_as_the_same_network_of_timm():
    graph, weights = both("timm efficientnet")
    words = {"conv_pw": "_expand_conv", "conv_dw": "_depthwise_conv", "conv_pwl": "_project_conv"}
    words |= {"conv_reduce": "_se_reduce", "conv_expand": "_se_expand"}
    names, block, last = {}, -1, None
    for layer in weights.layers:
        *parents, leaf = layer.name.split(".")
        if not parents:
            names[layer.name] = f"_{leaf}"
            continue
        stage = [part for part in parents if part != "se"]
        block, last = block + (stage != last), stage
        separable = stage == ["blocks", "0", "0"] and leaf == "conv_pw"  # the first block has no expansion
        names[layer.name] = f"_blocks.{block}.{'_project_conv' if separable else words[leaf]}"
    found = recognised(replace(weights, layers=tuple(replace(one, name=names[one.name]) for one in weights.layers)))
    assert [one.conv_depth for one in found.layers] == [graph[one.name].conv_depth for one in weights.layers]


def test_plain_networks_of_keras_are_chains():
    shapes = {"conv2d": (8, 1, 3, 3), "conv2d_1": (8, 8, 3, 3), "conv2d_2": (16, 8, 3, 3)}
    found = recognised(shaped(["conv2d_1", "conv2d", "conv2d_2"], shapes))
    assert [layer.conv_depth for layer in found.layers] == [1, 0, 2]


def test_a_u_net_of_keras_reads_what_its_encoder_gives():
    shapes = {"conv2d": (8, 3), "conv2d_1": (16, 8), "conv2d_2": (32, 16)}
    shapes |= {"conv2d_transpose": (16, 32), "conv2d_3": (16, 32), "conv2d_transpose_1": (8, 16), "conv2d_4": (8, 16)}
    weights = shaped(shapes, {name: (*shape, 3, 3) for name, shape in shapes.items()})
    transposed = tuple(
        replace(layer, kind="transposed", in_channels=layer.shape[1], groups=1) if "transpose" in layer.name else layer
        for layer in weights.layers
    )
    found = recognised(replace(weights, layers=transposed))
    assert [layer.conv_depth for layer in found.layers] == list(range(7))


def test_parallel_layers_that_keras_named_are_no_chain():
    shapes = {"conv2d": (8, 1, 3, 3), "conv2d_1": (8, 1, 3, 3), "conv2d_2": (16, 8, 3, 3)}
    assert {layer.conv_depth for layer in recognised(shaped(shapes, shapes)).layers} == {None}
    falling = {"conv2d": (16, 1, 3, 3), "conv2d_1": (8, 16, 3, 3), "conv2d_2": (16, 8, 3, 3)}
    assert {layer.conv_depth for layer in recognised(shaped(falling, falling)).layers} == {None}


def test_layers_that_are_all_alike_may_be_parallel():
    shapes = {f"lateral.{n}": (64, 64, 3, 3) for n in range(4)}
    assert {layer.conv_depth for layer in recognised(shaped(shapes, shapes)).layers} == {None}


def test_known_depths_and_dead_layers_are_left_alone():
    _, weights = both("u-net")
    for fact in ({"depth_source": "order", "conv_depth": 3}, {"dead": True}):
        first = replace(weights.layers[0], **fact)
        given_facts = replace(weights, layers=(first, *weights.layers[1:]))
        assert recognised(given_facts) is given_facts


EXAMPLES = {
    "u-net": from_names(UNet()),
    "stardist": from_names(StarDist()),
    "lightcnn": from_names(LightCNN()),
    "resnet": from_names(models.ResNet(models.resnet.BasicBlock, [1, 2, 1, 1])),
}


@given(st.sampled_from(sorted(EXAMPLES)), st.data())
def test_a_shape_that_contradicts_leaves_the_depth_unknown(name, data):
    weights = EXAMPLES[name]
    number = data.draw(st.integers(1, len(weights.layers) - 1))
    more = data.draw(st.integers(1, 5))
    layer = weights.layers[number]
    first, second, height, width = layer.shape
    known = None if layer.in_channels is None else layer.in_channels + more
    wrong = replace(layer, shape=(first, second + more, height, width), in_channels=known, kind=layer.kind)
    layers = (*weights.layers[:number], wrong, *weights.layers[number + 1 :])
    assert {layer.depth_source for layer in recognised(replace(weights, layers=layers)).layers} == {None}


@given(st.sampled_from(sorted(EXAMPLES)), st.data())
def test_a_name_of_another_architecture_leaves_the_depth_unknown(name, data):
    weights = EXAMPLES[name]
    number = data.draw(st.integers(0, len(weights.layers) - 1))
    other = replace(weights.layers[number], name=data.draw(st.sampled_from(["attention", "aux.0", "conv9_9", "x/y"])))
    layers = (*weights.layers[:number], other, *weights.layers[number + 1 :])
    assert {layer.depth_source for layer in recognised(replace(weights, layers=layers)).layers} == {None}


def test_every_family_is_tested():
    renamed = {"plain network of Keras", "EfficientNet of efficientnet-pytorch"}
    renamed |= {family.name for family in FAMILIES if family.name.endswith("of Keras")}
    renamed |= {"MobileNetV2 of early versions of Keras", "U-Net of Keras with transposed convolutions"}
    built = [[layer.name for layer in both(name)[1].layers] for name in MODELS]
    tested = {family.name for family in FAMILIES for names in built if _placed(family, names)}
    assert tested | renamed >= {family.name for family in FAMILIES}
