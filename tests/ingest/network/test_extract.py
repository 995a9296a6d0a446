import io
import subprocess
import sys

import numpy as np
import onnx
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from cnnfilterdb.core.errors import BadWeightsError, WeightFileError
from cnnfilterdb.ingest.network.extract import (
    ConvFacts,
    conv_depths,
    conv_facts,
    layers_from_tensors,
)
from cnnfilterdb.ingest.network.layers import Tensor
from cnnfilterdb.ingest.network.memory import weights_from_module, weights_from_state_dict

# ---------------------------------------------------------------------------------------------------------------------
# Depths


@given(st.lists(st.none() | st.integers(-(10**6), 10**6)))
def test_ranks_of_depths(depths):
    found = conv_depths(depths)
    known = [depth for depth in depths if depth is not None]
    distinct, ranks = np.unique(known, return_inverse=True)
    assert [rank for rank, _ in found if rank is not None] == ranks.tolist()
    for depth, (rank, norm) in zip(depths, found, strict=True):
        assert (depth is None) == (rank is None) == (norm is None)
        if rank is not None:
            assert norm == (rank / (len(distinct) - 1) if len(distinct) > 1 else 0.0)


def papers_depths(module, *inputs):
    """Ranks as the extraction code of the papers finds them: longest path in the ONNX graph, (rank, shape) of each."""
    buffer = io.BytesIO()
    torch.onnx.export(module.eval(), inputs, buffer, opset_version=13, dynamo=False)
    graph = onnx.load_from_string(buffer.getvalue()).graph
    constants = {tensor.name: tuple(tensor.dims) for tensor in graph.initializer}
    consumers = {}
    for node in graph.node:
        if node.op_type == "Identity" and node.input[0] in constants:  # equal weights are stored once
            constants[node.output[0]] = constants[node.input[0]]
        for name in node.input:
            consumers.setdefault(name, []).append(node)
    # Level by level, a node's level being the last one at which it is met
    level = {}
    front = [node for value in graph.input for node in consumers.get(value.name, [])]
    for depth in range(len(graph.node)):
        level.update({node.name: depth for node in front})
        front = list({n.name: n for node in front for name in node.output for n in consumers.get(name, [])}.values())
    convolutions = [node for node in graph.node if node.op_type in ("Conv", "ConvTranspose")]
    distinct = sorted({level[node.name] for node in convolutions})
    found = []
    for node in convolutions:
        shape = constants[node.input[1]]
        found.append(
            (distinct.index(level[node.name]), (shape[1], shape[0], *shape[2:]) if "T" in node.op_type else shape)
        )
    return sorted(found)


def block(first, second, size=3, stride=1, **options):
    return nn.Sequential(
        nn.Conv2d(first, second, size, stride, padding=size // 2, bias=False, **options),
        nn.BatchNorm2d(second),
        nn.ReLU(),
    )


class Residual(nn.Module):
    def __init__(self, first, second, stride):
        super().__init__()
        # Registered in another order than it is run
        self.downsample = nn.Conv2d(first, second, 1, stride, bias=False) if stride > 1 else nn.Identity()
        self.conv1, self.bn1 = nn.Conv2d(first, second, 3, stride, 1, bias=False), nn.BatchNorm2d(second)
        self.conv2, self.bn2 = nn.Conv2d(second, second, 3, 1, 1, bias=False), nn.BatchNorm2d(second)

    def forward(self, x):
        y = self.bn2(self.conv2(F.relu(self.bn1(self.conv1(x)))))
        return F.relu(y + self.downsample(x))


class ResNet(nn.Module):
    def __init__(self):
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, 8, 7, 2, 3, bias=False), nn.BatchNorm2d(8), nn.ReLU(), nn.MaxPool2d(2))
        self.blocks = nn.Sequential(Residual(8, 8, 1), Residual(8, 16, 2), Residual(16, 16, 1))
        self.head = nn.Linear(16, 10)

    def forward(self, x):
        return self.head(self.blocks(self.stem(x)).mean((2, 3)))


class Inception(nn.Module):
    """Parallel branches of different lengths."""

    def __init__(self):
        super().__init__()
        self.stem = block(3, 8)
        self.one = block(8, 4, 1)
        self.two = nn.Sequential(block(8, 4, 1), block(4, 6))
        self.three = nn.Sequential(block(8, 4, 1), block(4, 6), block(6, 6))
        self.pool = nn.Sequential(nn.AvgPool2d(3, 1, 1), block(8, 4, 1))
        self.last = block(20, 8)

    def forward(self, x):
        x = self.stem(x)
        return self.last(torch.cat([self.one(x), self.two(x), self.three(x), self.pool(x)], 1))


class UNet(nn.Module):
    def __init__(self):
        super().__init__()
        self.down1, self.down2, self.bottom = block(1, 8), block(8, 16), block(16, 32)
        self.upconv2, self.dec2 = nn.ConvTranspose2d(32, 16, 2, 2), block(32, 16)
        self.upconv1, self.dec1 = nn.ConvTranspose2d(16, 8, 2, 2), block(16, 8)
        self.last = nn.Conv2d(8, 2, 1)

    def forward(self, x):
        one = self.down1(x)
        two = self.down2(F.max_pool2d(one, 2))
        x = self.bottom(F.max_pool2d(two, 2))
        x = self.dec2(torch.cat([self.upconv2(x), two], 1))
        return self.last(self.dec1(torch.cat([self.upconv1(x), one], 1)))


class Separable(nn.Module):
    def __init__(self):
        super().__init__()
        self.stem = block(3, 8, stride=2)
        self.dw, self.pw = block(8, 8, 5, groups=8), block(8, 16, 1)
        self.mix, self.far = block(16, 16, groups=4), nn.Conv2d(16, 16, 3, padding=(2, 4), dilation=(2, 4))
        self.multiplied = nn.Conv2d(16, 32, 3, groups=16, stride=(1, 2))

    def forward(self, x):
        return self.multiplied(self.far(self.mix(self.pw(self.dw(self.stem(x))))))


NETWORKS = {
    "resnet": (ResNet, 3),
    "inception": (Inception, 3),
    "unet": (UNet, 1),
    "separable": (Separable, 3),
}


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # the exporter that folds as the papers' files were
@pytest.mark.parametrize("name", NETWORKS)
def test_depths_are_those_of_the_papers(name):
    make, channels = NETWORKS[name]
    torch.manual_seed(0)
    module = make()
    weights = weights_from_module(module)
    expected = papers_depths(module, torch.zeros(1, channels, 64, 64))
    assert sorted((layer.conv_depth, layer.shape) for layer in weights.layers) == expected
    last = max(rank for rank, _ in expected)
    for layer in weights.layers:
        assert layer.depth_source == "graph"
        assert layer.dead is False
        assert layer.conv_depth_norm == layer.conv_depth / last


# ---------------------------------------------------------------------------------------------------------------------
# Live modules


def by_name(weights):
    return {layer.name: layer for layer in weights.layers}


def test_layers_come_in_order_of_execution():
    names = [layer.name for layer in weights_from_module(ResNet()).layers]
    assert names == [
        "stem.0", "blocks.0.conv1", "blocks.0.conv2", "blocks.1.conv1", "blocks.1.conv2", "blocks.1.downsample",
        "blocks.2.conv1", "blocks.2.conv2",
    ]  # fmt: skip


def test_parallel_branches_share_a_depth():
    depth = {name: layer.conv_depth for name, layer in by_name(weights_from_module(Inception())).items()}
    assert depth["one.0"] == depth["two.0.0"] == depth["three.0.0"] == 1
    assert depth["two.1.0"] == depth["three.1.0"]
    assert depth["last.0"] == max(depth.values())


def test_facts_are_those_of_the_modules():
    module = Separable()
    layers = by_name(weights_from_module(module))
    expected = {name: part for name, part in module.named_modules() if isinstance(part, nn.Conv2d)}
    assert layers.keys() == expected.keys()
    kinds = {"stem.0": "conv", "dw.0": "depthwise", "pw.0": "conv", "mix.0": "grouped", "far": "conv"}
    for name, layer in layers.items():
        part = expected[name]
        assert layer.kind == kinds.get(name, "depthwise")
        assert (layer.groups, layer.in_channels, layer.stride, layer.dilation) == (
            part.groups,
            part.in_channels,
            part.stride,
            part.dilation,
        )
        np.testing.assert_array_equal(layer.read(), part.weight.detach().numpy())
    assert layers["far"].dilation == (2, 4)
    assert layers["multiplied"].stride == (1, 2)


@pytest.mark.parametrize("groups", [1, 2, 4])
@pytest.mark.parametrize("as_module", [True, False])
def test_transposed_layers_are_turned(groups, as_module):
    """The kernel from an input channel to an output channel is what an impulse in the one leaves in the other."""
    module = nn.ConvTranspose2d(8, 4, (2, 3), groups=groups)
    network = nn.ModuleDict({"a": module})
    (layer,) = (weights_from_module(network) if as_module else weights_from_state_dict(network.state_dict())).layers
    assert (layer.kind, layer.groups, layer.in_channels) == ("transposed", groups, 8)
    assert layer.shape == (4, 8 // groups, 2, 3)
    weight = layer.read()
    assert weight.flags.c_contiguous
    for channel in range(8):
        impulse = torch.zeros(1, 8, 1, 1)
        impulse[0, channel] = 1
        answer = F.conv_transpose2d(impulse, module.weight, groups=groups).detach().numpy()[0]
        group, place = divmod(channel, 8 // groups)
        outputs = range(4 // groups * group, 4 // groups * (group + 1))
        for output in range(4):
            expected = weight[output, place] if output in outputs else np.zeros((2, 3))
            np.testing.assert_array_equal(answer[output], expected)


def test_standardised_layers_are_flagged_and_stored_as_they_are():
    class ScaledStdConv2d(nn.Conv2d):
        def __init__(self, first, second):
            super().__init__(first, second, 3, padding=1)
            self.gain = nn.Parameter(torch.ones(second, 1, 1, 1))

        def forward(self, x):
            flat = self.weight.reshape(1, len(self.weight), -1)
            flat = F.batch_norm(flat, None, None, self.gain.reshape(-1), training=True)
            return F.conv2d(x, flat.reshape_as(self.weight), self.bias, padding=1)

    class WSConv2d(nn.Conv2d):
        def forward(self, x):
            return F.conv2d(x, self.weight - self.weight.mean((1, 2, 3), keepdim=True))

    module = nn.Sequential(ScaledStdConv2d(3, 8), WSConv2d(8, 8, 3), nn.Conv2d(8, 8, 3))
    weights = weights_from_module(module)
    assert [layer.weight_norm for layer in weights.layers] == ["scaled_std", "std", None]
    assert [(layer.conv_depth, layer.depth_source) for layer in weights.layers] == [
        (0, "graph"),
        (1, "graph"),
        (2, "graph"),
    ]
    for layer, part in zip(weights.layers, module, strict=True):
        np.testing.assert_array_equal(layer.read(), part.weight.detach().numpy())
    # Without the class its gain still identifies one of them
    assert [layer.weight_norm for layer in weights_from_state_dict(module.state_dict()).layers] == [
        "scaled_std",
        None,
        None,
    ]


def test_shared_weights_are_stored_once_and_reported():
    shared = nn.Conv2d(8, 8, 3, padding=1)
    module = nn.Sequential(nn.Conv2d(3, 8, 3), shared, nn.ReLU(), shared)
    tied = nn.Conv2d(8, 8, 3)
    tied.weight = shared.weight
    module.append(tied)
    for weights in (weights_from_module(module), weights_from_state_dict(module.state_dict())):
        assert [layer.name for layer in weights.layers] == ["0", "1"]
        assert [(s.name, s.reason) for s in weights.skipped] == [
            ("3.weight", "shares the weight of 1.weight"),
            ("4.weight", "shares the weight of 1.weight"),
        ]
        assert weights.parameters == sum(parameter.numel() for parameter in module.parameters())
    assert [layer.conv_depth for layer in weights_from_module(module).layers] == [0, 1]


def test_what_is_stored_does_not_change_with_the_network():
    module = nn.Conv2d(3, 8, 3)
    before = module.weight.detach().numpy().copy()
    for weights in (weights_from_module(module), weights_from_state_dict(module.state_dict())):
        read = weights.layers[0].read()
        with torch.no_grad():
            module.weight += 1
        np.testing.assert_array_equal(read, before)
        with torch.no_grad():
            module.weight.copy_(torch.from_numpy(before))


@pytest.mark.filterwarnings("ignore::UserWarning")  # PyTorch will give up these types
def test_quantised_layers_hand_out_their_weight():
    layer = torch.ao.nn.quantized.Conv2d(4, 8, 3, groups=2, stride=2)
    module = nn.Sequential(nn.Conv2d(3, 4, 3), layer)
    weights = weights_from_module(module)
    found = by_name(weights)["1"]
    assert (found.dtype, found.kind, found.groups, found.stride) == ("qint8", "grouped", 2, (2, 2))
    # It does not run on shapes, which says nothing about it
    assert found.dead is None
    np.testing.assert_array_equal(found.read(), layer.weight().dequantize().numpy())


class Mixture(nn.Module):
    """A convolution whose kernel is mixed from experts for every image, as CondConv does (arXiv 1904.04971)."""

    def __init__(self, experts, out_channels, in_channels, groups):
        super().__init__()
        self.weight_shape = (out_channels, in_channels // groups, 3, 3)
        self.weight = nn.Parameter(torch.randn(experts, out_channels * in_channels // groups * 9))
        self.groups, self.stride, self.dilation = groups, (2, 2), (1, 1)
        self.gate = nn.Linear(in_channels, experts)

    def forward(self, images):
        mixed = torch.sigmoid(self.gate(images.mean((2, 3)))) @ self.weight
        kernel = mixed.view(-1, *self.weight_shape[1:])
        batch, channels, height, width = images.shape
        together = images.reshape(1, batch * channels, height, width)
        result = nn.functional.conv2d(together, kernel, stride=self.stride, groups=self.groups * batch)
        return result.view(batch, self.weight_shape[0], *result.shape[2:])


def test_each_expert_of_a_mixture_is_a_layer():
    module = nn.Sequential(nn.Conv2d(3, 8, 3), Mixture(4, 8, 8, 8), nn.Conv2d(8, 6, 3))
    weights = weights_from_module(module)
    experts = [layer for layer in weights.layers if ".experts." in layer.name]
    assert [layer.name for layer in weights.layers] == ["0", *(f"1.experts.{i}" for i in range(4)), "2"]
    for i, layer in enumerate(experts):
        expected = module[1].weight[i].detach().numpy().reshape(8, 1, 3, 3)
        np.testing.assert_array_equal(layer.read(), expected)
    assert {(layer.kind, layer.groups, layer.stride) for layer in experts} == {("depthwise", 8, (2, 2))}
    # The experts are one convolution, so that they have one depth
    assert [layer.conv_depth for layer in weights.layers] == [0, 1, 1, 1, 1, 2]
    assert not any(layer.dead for layer in weights.layers)
    assert weights.parameters == sum(value.numel() for value in module.parameters())


def test_shapes_alone_determine_all_but_the_weights():
    with torch.device("meta"):
        module = nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ConvTranspose2d(8, 4, 2, stride=2))
    weights = weights_from_module(module, shapes=True)
    assert [(layer.name, layer.kind, layer.conv_depth) for layer in weights.layers] == [
        ("0", "conv", 0),
        ("2", "transposed", 1),
    ]


def test_module_without_convolutions():
    weights = weights_from_module(nn.Linear(3, 4))
    assert weights.layers == ()
    assert weights.parameters == 16


@pytest.mark.parametrize("as_module", [True, False])
def test_weights_that_are_not_there(as_module):
    with pytest.raises(BadWeightsError, match=r"^0\.weight: .* without weights; .*"):
        weights_from_module(nn.Sequential(nn.LazyConv2d(8, 3) if as_module else nn.Conv2d(3, 8, 3, device="meta")))


def test_pytorch_is_not_imported_for_arrays():
    script = """
import sys
import numpy as np
from cnnfilterdb.ingest.network.memory import weights_from_state_dict
weights = weights_from_state_dict({"conv.weight": np.ones((8, 3, 3, 3))})
assert weights.framework is None and weights.layers[0].read().shape == (8, 3, 3, 3)
assert "torch" not in sys.modules
"""
    subprocess.run([sys.executable, "-P", "-c", script], check=True, timeout=600)


# ---------------------------------------------------------------------------------------------------------------------
# Names and shapes alone


def tensors(*entries):
    """Tensors of (name, *shape)."""
    return [Tensor(name, shape, "float32", read=lambda s=shape: np.zeros(s, np.float32)) for name, *shape_ in entries
            for shape in [tuple(shape_)]]  # fmt: skip


def kinds(*entries, **options):
    layers, _ = layers_from_tensors(tensors(*entries), **options)
    return {layer.name: (layer.kind, layer.groups) for layer in layers}


@pytest.mark.parametrize("name", NETWORKS)
def test_state_dict_never_contradicts_the_module(name):
    module = NETWORKS[name][0]()
    truth = by_name(weights_from_module(module))
    found = by_name(weights_from_state_dict(module.state_dict()))
    assert found.keys() == truth.keys()
    for layer in found.values():
        for fact in ("kind", "groups", "in_channels"):
            assert getattr(layer, fact) in (None, getattr(truth[layer.name], fact)), (layer.name, fact)
        np.testing.assert_array_equal(layer.read(), truth[layer.name].read())


def test_kinds_of_a_state_dict():
    found = by_name(weights_from_state_dict(Separable().state_dict()))
    assert {name: (layer.kind, layer.groups) for name, layer in found.items()} == {
        "stem.0": ("conv", 1),
        "dw.0": ("depthwise", 8),
        "pw.0": ("conv", 1),
        "mix.0": (None, None),  # may be grouped, and a plain layer that takes something else
        "far": ("conv", 1),
        "multiplied": (None, None),  # may begin a part that takes grey images
    }


CHANNELS = st.sampled_from([1, 2, 3, 4, 6, 8, 12, 16])


@st.composite
def chains(draw):
    """Layers in a row as people build them: with a bias or a norm, names that say nothing."""
    channels = draw(st.sampled_from([1, 3, 4]))
    modules = []
    for number in range(draw(st.integers(1, 6))):
        kind = draw(st.sampled_from(["conv", "depthwise", "grouped", "transposed"]))
        size = draw(st.sampled_from([1, 2, 3, 5]))
        norm = draw(st.booleans())
        if kind == "depthwise" and number and channels > 1:
            out, groups = channels * draw(st.sampled_from([1, 1, 2])), channels
        elif kind == "grouped" and number and channels % 2 == 0:
            out, groups = channels * draw(st.sampled_from([1, 2])), 2
        else:
            out, groups = draw(CHANNELS), 1
        if kind == "transposed" and out != channels:
            conv = nn.ConvTranspose2d(channels, out, size, bias=not norm)
        else:
            conv = nn.Conv2d(channels, out, size, groups=groups, bias=not norm)
        modules.append(nn.Sequential(conv, nn.BatchNorm2d(out)) if norm else nn.Sequential(conv))
        channels = out
    return nn.Sequential(*modules)


@settings(max_examples=300)
@given(chains())
def test_shapes_never_suggest_what_is_not_so(module):
    found = by_name(weights_from_state_dict(module.state_dict()))
    for name, part in module.named_modules():
        if isinstance(part, nn.Conv2d | nn.ConvTranspose2d):
            layer = found[name]
            plain = "conv" if part.groups == 1 else "depthwise" if part.groups == part.in_channels else "grouped"
            assert layer.kind in (None, "transposed" if part.transposed else plain)
            assert layer.groups in (None, part.groups)
            assert layer.in_channels in (None, part.in_channels)
            if part.transposed and (part.bias is not None or part.out_channels > 1):
                assert layer.kind == "transposed"


@pytest.mark.parametrize("names", [["stem", "a", "b"], ["net.0", "net.1", "net.2"]])
def test_first_layer_of_grey_images_is_no_depthwise_one(names):
    stem, a, b = names
    found = kinds((f"{stem}.weight", 64, 1, 7, 7), (f"{a}.weight", 64, 64, 3, 3), (f"{b}.weight", 64, 1, 3, 3))
    assert found == {stem: ("conv", 1), a: ("conv", 1), b: ("depthwise", 64)}


@pytest.mark.parametrize(
    ("second", "expected"),
    [
        (("depth.conv1.weight", 64, 1, 7, 7), (None, None)),  # a second encoder, for grey images
        (("depth.conv1.weight", 64, 3, 7, 7), (None, None)),
        (("stages.0.conv_dw.weight", 96, 1, 7, 7), ("depthwise", None)),
        (("rgb.layer.weight", 96, 1, 7, 7), ("depthwise", None)),
        (("depth.conv1.weight", 512, 1, 3, 3), ("depthwise", 512)),  # takes what comes
    ],
)
def test_first_layer_of_a_part(second, expected):
    found = kinds(("rgb.conv1.weight", 64, 3, 7, 7), ("rgb.conv2.weight", 512, 64, 3, 3), second)
    assert found[second[0].removesuffix(".weight")] == expected


def test_parallel_branches_of_the_first_layer():
    found = kinds(("stem.a.weight", 48, 1, 3, 3), ("stem.b.weight", 48, 1, 1, 1), ("c.weight", 48, 48, 3, 3))
    assert found == {"stem.a": ("conv", 1), "stem.b": (None, None), "c": ("conv", 1)}


def test_parallel_depthwise_branches_have_the_input_of_the_first():
    found = kinds(
        ("a.weight", 48, 3, 3, 3), ("b.0.weight", 96, 1, 7, 7), ("b.1.weight", 96, 1, 3, 3), ("c.weight", 9, 96, 1, 1)
    )
    assert found["b.1"] == ("depthwise", None)  # of 48, or of 96 channels


def test_first_layer_may_be_depthwise_on_colour_images():
    assert kinds(("a.weight", 3, 1, 3, 3), ("b.weight", 32, 3, 1, 1))["a"] == (None, None)
    assert kinds(("dw.weight", 3, 1, 3, 3), ("pw.weight", 32, 3, 1, 1))["dw"] == ("depthwise", None)


def test_many_bands_are_not_guessed():
    assert kinds(("a.weight", 32, 13, 3, 3), ("b.weight", 32, 32, 3, 3)) == {"a": (None, None), "b": ("conv", 1)}


@pytest.mark.parametrize(
    ("entries", "expected"),
    [
        # Bias and norm decide
        ([("a.weight", 8, 4, 2, 2), ("a.bias", 4)], ("transposed", 1)),
        ([("a.weight", 8, 2, 2, 2), ("a.bias", 4)], ("transposed", 2)),
        ([("first.b.weight", 8, 1, 4, 4), ("first.b.bias", 8)], ("depthwise", None)),
        ([("up.weight", 8, 4, 2, 2), ("up.bias", 8)], (None, None)),
        ([("m.0.weight", 100, 64, 4, 4), ("m.1.weight", 64), ("m.1.running_mean", 64)], ("transposed", 1)),
        ([("m.0.weight", 100, 16, 4, 4), ("m.1.weight", 64), ("m.1.running_mean", 64)], ("transposed", 4)),
        ([("m.0.weight", 64, 100, 4, 4), ("m.1.weight", 64)], (None, None)),
        # A bias that fits neither
        ([("a.weight", 9, 3, 2, 2), ("a.bias", 10)], (None, None)),
        # Names, where these do not
        ([("deconv.weight", 8, 8, 3, 3), ("deconv.bias", 8)], ("transposed", 1)),
        ([("mask_predictor.conv5_mask.weight", 8, 8, 2, 2), ("mask_predictor.conv5_mask.bias", 8)], ("transposed", 1)),
        ([("decoder.up1.weight", 8, 8, 2, 2), ("decoder.up1.bias", 8)], ("transposed", 1)),
        ([("decoder.up1.weight", 8, 8, 3, 3), ("decoder.up1.bias", 8)], (None, None)),
        ([("up.proj.weight", 64, 1, 4, 4)], ("transposed", None)),
        ([("conv_transition.weight", 8, 8, 3, 3)], (None, None)),
        ([("conv_trans.weight", 8, 8, 1, 1)], (None, None)),
        ([("supervised.weight", 8, 8, 2, 2)], (None, None)),
    ],
)
def test_evidence_of_transposed_layers(entries, expected):
    # After a layer of other channels, so that the chain of channels proves nothing
    found = kinds(("first.weight", 7, 3, 3, 3), ("fc.weight", 5, 7), *entries)
    assert found[entries[0][0].removesuffix(".weight")] == expected


def test_chain_of_channels_identifies_plain_layers():
    found = kinds(("a.weight", 8, 3, 3, 3), ("up.weight", 16, 8, 2, 2), ("up2.weight", 4, 8, 2, 2))
    assert found["up"] == ("conv", 1)  # 8 come in
    assert found["up2"] == ("transposed", None)  # named so, and 16 come in


def test_names_in_alphabetical_order_prove_less():
    entries = [
        ("bn1.weight", 64), ("conv1.weight", 64, 1, 7, 7), ("layers.0.weight", 64, 1, 3, 3),
        ("layers.1.weight", 64, 64, 1, 1), ("up.0.weight", 64, 32, 2, 2), ("up.1.weight", 32),
    ]  # fmt: skip
    grey = kinds(*entries, ordered=False)
    assert grey == {
        "conv1": (None, None),
        "layers.0": (None, None),
        "layers.1": (None, None),
        "up.0": ("transposed", 1),
    }
    colour = kinds(*entries, ("stem.weight", 64, 3, 7, 7), ordered=False)
    assert colour["layers.0"] == ("depthwise", None)


def test_facts_go_before_shapes():
    found, _ = layers_from_tensors(
        tensors(("a.weight", 8, 4, 3, 3), ("a.bias", 8), ("b.weight", 8, 4, 3, 3)),
        facts={
            "a": ConvFacts(transposed=False, groups=2, stride=(2, 1), dilation=(1, 3), weight_norm="std"),
            "b": ConvFacts(transposed=True, groups=3),
        },
    )
    assert [(layer.kind, layer.groups, layer.in_channels, layer.stride, layer.dilation) for layer in found] == [
        ("grouped", 2, 8, (2, 1), (1, 3)),
        ("transposed", None, 8, None, None),  # 8 channels do not fall into 3 groups
    ]
    assert found[0].weight_norm == "std"


@pytest.mark.parametrize(
    ("class_name", "attributes", "expected"),
    [
        ("Conv2d", {}, ConvFacts(transposed=False)),
        ("ConvTranspose2d", {"groups": 2, "stride": 2}, ConvFacts(transposed=True, groups=2, stride=(2, 2))),
        ("DeformConv2d", {"groups": 1, "dilation": [1, 2]}, ConvFacts(groups=1, dilation=(1, 2))),
        ("ScaledStdConv2dSame", {"transposed": False}, ConvFacts(transposed=False, weight_norm="scaled_std")),
        ("ParametrizedStdConv2d", {}, ConvFacts(weight_norm="std")),
        ("Conv2d", {"groups": True, "stride": (1, "2"), "dilation": (0, 1)}, ConvFacts(transposed=False)),
        ("Conv2d", {"groups": -1, "stride": (1, 2, 3), "dilation": 1 << 40}, ConvFacts(transposed=False)),
        ("Conv2d", {"transposed": "yes", "groups": "2"}, ConvFacts(transposed=False)),
    ],
)
def test_facts_of_modules(class_name, attributes, expected):
    assert conv_facts(class_name, attributes.get) == expected


# ---------------------------------------------------------------------------------------------------------------------
# Whole checkpoints


def test_state_dict_of_torch():
    module = ResNet()
    weights = weights_from_state_dict({"epoch": 3, "state_dict": nn.DataParallel(module).state_dict()})
    assert (weights.format, weights.framework) == ("state_dict", "pytorch")
    assert weights.parameters == sum(parameter.numel() for parameter in module.parameters())
    assert [layer.name for layer in weights.layers][:3] == ["stem.0", "blocks.0.conv1", "blocks.0.conv2"]
    assert {layer.depth_source for layer in weights.layers} == {None}


def test_two_networks_have_each_a_first_layer():
    weights = weights_from_state_dict({"netG": UNet().state_dict(), "netD": UNet().state_dict()})
    found = by_name(weights)
    assert found["netG.down1.0"].kind == found["netD.down1.0"].kind == "conv"
    assert len(found) == 2 * 9 - 2


def test_hostile_nesting_ends_in_one_line():
    nested = {"conv.weight": np.ones((8, 3, 3, 3))}
    for _ in range(5000):
        nested = {"wrapped": nested}
    with pytest.raises(WeightFileError, match="nested too deeply"):
        weights_from_state_dict(nested)


# ---------------------------------------------------------------------------------------------------------------------
# Published architectures


@pytest.fixture(scope="session")
def create_model():
    """Maker of the library's architectures, with random weights."""
    try:
        timm = pytest.importorskip("timm")
    except RuntimeError:  # torchvision cannot load its operators beside a build of torch without CUDA; none is needed
        library = torch.library.Library("torchvision", "DEF")
        for name in ("nms", "qnms"):
            library.define(f"{name}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
        timm = pytest.importorskip("timm")
        timm.library = library  # must stay alive
    return timm.create_model


@pytest.mark.parametrize(
    ("name", "depths"),
    [
        ("resnet18", 17),  # 20 layers, of which 3 are beside others
        ("densenet121", 120),
        ("inception_v3", 56),
        ("mobilenetv3_small_050", 53),
        ("convnext_atto", 40),
        ("repvgg_a0", 22),
        ("lowformer_b0", 63),
        ("hrnet_w18_small", 46),
        ("coat_lite_tiny", 12),  # calls some layers several times
    ],
)
def test_published_architectures(create_model, name, depths):
    module = create_model(name, pretrained=False)
    weights = weights_from_module(module)
    expected = {
        name: "transposed" if part.transposed else "conv" if part.groups == 1 else "depthwise"
        for name, part in module.named_modules()
        if isinstance(part, nn.Conv2d | nn.ConvTranspose2d)
    }
    assert {layer.name: layer.kind for layer in weights.layers} == expected
    assert {layer.depth_source for layer in weights.layers} == {"graph"}
    assert {layer.conv_depth for layer in weights.layers} == set(range(depths))
    assert not any(layer.dead for layer in weights.layers)
    assert weights.parameters == sum(parameter.numel() for parameter in module.parameters())
    # Names and shapes alone prove less, and nothing else
    truth = by_name(weights)
    for layer in weights_from_state_dict(module.state_dict()).layers:
        assert layer.kind in (None, truth[layer.name].kind)
        assert layer.groups in (None, truth[layer.name].groups)
