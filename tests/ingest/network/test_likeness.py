"""Kinds that other layers prove: no other number of groups than the modules have, and found where they are clear."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from cnnfilterdb.ingest.network.extract import layers_from_tensors
from cnnfilterdb.ingest.network.layers import Tensor
from cnnfilterdb.ingest.network.likeness import alike


def conv(channels, out, size=3, groups=1, bias=False):
    return nn.Conv2d(channels, out, size, padding=size // 2, groups=groups, bias=bias)


class Bottleneck(nn.Module):
    """A block of ResNeXt, with or without a gate of channels, its shortcut first or last."""

    def __init__(self, channels, out, groups, first, gate, multiplier):
        super().__init__()
        width = out // 2
        if first:
            self.shortcut = nn.Sequential(conv(channels, out, 1), nn.BatchNorm2d(out))
        if multiplier:
            self.conv_dw = conv(channels, channels * multiplier, 5, groups=channels)
            channels = channels * multiplier
        self.conv1 = conv(channels, width, 1)
        self.bn1 = nn.BatchNorm2d(width)
        if gate:
            self.se = nn.Sequential(conv(width, 8, 1, bias=True), nn.ReLU(), conv(8, width, 1, bias=True))
        self.conv2 = conv(width, width, 3, groups)
        self.bn2 = nn.BatchNorm2d(width)
        self.conv3 = conv(width, out, 1)
        if not first and not multiplier:
            self.downsample = nn.Sequential(conv(channels, out, 1), nn.BatchNorm2d(out))


class Inception(nn.Module):
    """Parallel branches, whose results are joined."""

    def __init__(self, channels, width):
        super().__init__()
        self.branch1 = conv(channels, width, 1)
        self.branch2 = nn.Sequential(conv(channels, width // 2, 1), conv(width // 2, width, 3))
        self.branch_pool = conv(channels, width, 1)


@st.composite
def networks(draw):
    groups = draw(st.sampled_from([1, 4, 8]))
    first, gate = draw(st.booleans()), draw(st.booleans())
    multiplier = draw(st.sampled_from([0, 0, 1, 2]))
    channels = draw(st.sampled_from([32, 64]))
    parts = [conv(draw(st.sampled_from([1, 3])), channels, 7), nn.BatchNorm2d(channels)]
    for _ in range(draw(st.integers(1, 4))):
        if draw(st.booleans()):
            out = channels * draw(st.sampled_from([1, 2]))
            parts.append(Bottleneck(channels, out, groups, first, gate, multiplier))
            channels = out
        else:
            parts.append(Inception(channels, 16))
            channels = 48
    return nn.Sequential(*parts)


def read(network):
    tensors = [Tensor(name, tuple(value.shape), "float32", lambda: ...) for name, value in network.state_dict().items()]
    return layers_from_tensors(tensors)[0]


@given(network=networks())
@settings(max_examples=60)
def test_groups_are_those_of_the_modules_or_unknown(network):
    modules = dict(network.named_modules())
    for layer in read(network):
        module = modules[layer.name]
        assert layer.groups in (None, module.groups), layer.name
        assert layer.in_channels in (None, module.in_channels), layer.name
        if layer.kind is not None:
            depthwise = module.groups == module.in_channels > 1
            expected = "depthwise" if depthwise else "grouped" if module.groups > 1 else "conv"
            assert layer.kind == expected, layer.name


def test_shortcuts_gates_and_cardinality():
    blocks = [Bottleneck(64 * (1 + (n > 0)), 128, 8, first=False, gate=True, multiplier=0) for n in range(3)]
    found = {layer.name: layer for layer in read(nn.Sequential(conv(3, 64, 7), nn.BatchNorm2d(64), *blocks))}
    assert {layer.kind for name, layer in found.items() if name.endswith("conv2")} == {"grouped"}
    assert {layer.groups for name, layer in found.items() if name.endswith("conv2")} == {8}
    assert {layer.kind for name, layer in found.items() if "downsample" in name} == {"conv"}


def test_two_blocks_or_a_contradiction_prove_no_cardinality():
    def kinds(*groups):
        blocks = [Bottleneck(64, 64, count, first=False, gate=False, multiplier=0) for count in groups]
        return [layer.kind for layer in read(nn.Sequential(conv(3, 64, 7), *blocks)) if layer.name.endswith("conv2")]

    assert kinds(4, 4) == [None, None]
    assert kinds(4, 4, 4) == ["grouped"] * 3
    assert set(kinds(4, 4, 4, 2)) == {None}


def test_branches_of_repeated_blocks():
    network = nn.Sequential(conv(3, 48, 7, bias=True), Inception(48, 16), Inception(48, 16))
    assert {layer.kind for layer in read(network)} == {"conv"}


@pytest.mark.parametrize("channels", [1, 2, 3, 4])
def test_layers_that_may_read_an_image_stay_unknown(channels):
    first = Tensor("a.0.conv.weight", (8, channels, 3, 3), "float32", lambda: ...)
    layers = layers_from_tensors([first], ordered=False)[0]
    repeated = alike([*layers, *(layer for layer in layers)], ordered=False)
    assert [layer.kind for layer in repeated] == [layer.kind for layer in layers] * 2


def test_what_is_known_stays():
    torch.manual_seed(0)
    layers = list(read(nn.Sequential(conv(3, 8), conv(8, 16), conv(16, 16, groups=16))))
    assert alike(layers, ordered=True) == layers
