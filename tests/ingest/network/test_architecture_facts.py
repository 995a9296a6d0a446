import numpy as np
import pytest
import torch
from torch import nn

from cnnfilterdb.ingest.network.architecture import architecture, described
from cnnfilterdb.ingest.network.memory import weights_from_module, weights_from_state_dict


class Net(nn.Module):
    """Built in another order than it is executed; one layer twice, one transposed and grouped, one unused."""

    def __init__(self):
        super().__init__()
        self.last = nn.Conv2d(8, 2, 1)
        self.up = nn.ConvTranspose2d(8, 8, 3, groups=2, bias=False)
        self.first = nn.Conv2d(3, 8, 3, stride=2)
        self.alias = self.body = nn.Conv2d(8, 8, 3, groups=4)
        self.unused = nn.Conv2d(8, 8, 3)

    def forward(self, images):
        return self.last(self.up(self.body(self.body(self.first(images)))))


def shapes():
    with torch.device("meta"):
        return Net()


@pytest.mark.parametrize("prefix", ["", "tower.trunk."])
def test_a_file_is_described_as_its_module_is(prefix):
    module = Net()
    # Of a file nothing is known but names and shapes, and a shared weight may be there twice
    state = {prefix + name: value.detach().clone() for name, value in module.state_dict().items()}
    if prefix:
        state["other.conv.weight"] = torch.randn(4, 3, 5, 5)
    known = architecture(shapes(), torch.empty(1, 3, 32, 32, device="meta"))
    found = described(weights_from_state_dict(state), known)
    expected = weights_from_module(module).layers
    layers = found.layers[: len(expected)]
    for layer, wanted in zip(layers, expected, strict=True):
        name = prefix + wanted.name
        assert layer.name in (name, name.replace("alias", "body"), name.replace("body", "alias"))
        for fact in ("shape", "kind", "groups", "in_channels", "stride", "conv_depth", "conv_depth_norm", "dead"):
            assert getattr(layer, fact) == getattr(wanted, fact), fact
        np.testing.assert_array_equal(layer.read(), wanted.read())
    assert [layer.name for layer in found.layers[len(expected) :]] == (["other.conv"] if prefix else [])
    assert any("shares the weight" in one.reason for one in found.skipped)
    assert [layer.dead for layer in layers] == [False] * 4 + [True]


def test_a_file_that_lacks_layers_gets_no_depths(caplog):
    state = {name: value for name, value in Net().state_dict().items() if not name.startswith("first")}
    found = described(weights_from_state_dict(state), architecture(shapes()))
    assert "1 of the 5 layers of the architecture are not in the file, first first" in caplog.text
    assert {layer.conv_depth for layer in found.layers} == {None}
    assert {layer.name.replace("alias", "body") for layer in found.layers} == {"last", "up", "body", "unused"}


def test_a_layer_of_another_shape_is_not_the_same(caplog):
    state = Net().state_dict() | {"first.weight": torch.randn(8, 4, 3, 3)}
    found = described(weights_from_state_dict(state), architecture(shapes()))
    assert "first first" in caplog.text
    assert next(layer for layer in found.layers if layer.name == "first").shape == (8, 4, 3, 3)
