import copy
import warnings

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from cnnfilterdb.core.errors import BadWeightsError
from cnnfilterdb.ingest.network.execution import execute, named_tensors, unwrapped
from cnnfilterdb.ingest.network.memory import weights_from_module


def by_name(weights):
    return {layer.name: layer for layer in weights.layers}


def facts(module, example=None):
    """(conv_depth, depth_source, dead) of each layer, in the order in which they come."""
    weights = weights_from_module(module, example)
    return {layer.name: (layer.conv_depth, layer.depth_source, layer.dead) for layer in weights.layers}


class Chain(nn.Module):
    """Two layers of 3x3 behind each other, whatever a test adds."""

    def __init__(self, channels=3):
        super().__init__()
        self.a, self.b = nn.Conv2d(channels, 8, 3, padding=1), nn.Conv2d(8, 8, 3, padding=1)

    def forward(self, x):
        return self.b(self.a(x))


GRAPH = {"a": (0, "graph", False), "b": (1, "graph", False)}
ORDER = {"a": (0, "order", False), "b": (1, "order", False)}
UNKNOWN = {"a": (None, None, None), "b": (None, None, None)}


def test_a_chain():
    assert facts(Chain()) == GRAPH


class Dead(Chain):
    def __init__(self):
        super().__init__()
        self.unused = nn.Conv2d(3, 4, 1)

    def forward(self, x):
        assert self.unused.weight.shape[0] == self.unused.weight.size(0) == 4  # questions are no use
        assert self.unused.weight.stride()
        assert self.unused.weight.device == x.device
        return super().forward(x)


def test_dead_layers_come_last_and_have_no_depth():
    found = facts(Dead())
    assert found == {**GRAPH, "unused": (None, None, True)}
    assert list(found) == ["a", "b", "unused"]


class Auxiliary(Chain):
    """A head that serves in training only, and no layer that needs more than one image to be trained."""

    def __init__(self):
        super().__init__()
        self.head = nn.Sequential(nn.Conv2d(8, 4, 1), nn.AdaptiveAvgPool2d(1), nn.BatchNorm2d(4))
        self.unused = nn.Conv2d(3, 4, 1)

    def forward(self, x):
        x = self.a(x)
        return (self.b(x), self.head(x)) if self.training else self.b(x)


@pytest.mark.parametrize("training", [True, False])
def test_heads_of_the_training_are_not_dead(training):
    found = facts(Auxiliary().train(training))
    assert found == {**GRAPH, "head.0": (None, None, False), "unused": (None, None, True)}


class Picky(Auxiliary):
    def forward(self, x):
        if self.training:
            raise RuntimeError("targets are needed")
        return super().forward(x)


def test_what_cannot_be_trained_here_is_not_called_dead():
    assert facts(Picky()) == {**GRAPH, "head.0": (None, None, None), "unused": (None, None, None)}


class ByData(Chain):
    """Uses the weight in other ways than through its module."""

    def forward(self, x):
        return F.conv2d(F.conv2d(x, self.a.weight.data, padding=1), weight=self.b.weight.detach(), padding=1)


def test_weights_that_are_used_by_other_ways_are_used():
    assert {name: dead for name, (_, _, dead) in facts(ByData()).items()} == {"a": False, "b": False}


class Unfolded(Chain):
    """A convolution as a product of matrices, which no graph calls a convolution."""

    def forward(self, x):
        columns = F.unfold(self.a(x), 3, padding=1)
        return torch.einsum("ok,nkl->nol", self.b.weight.flatten(1), columns)


def test_without_a_convolution_in_the_graph_the_order_decides():
    assert facts(Unfolded()) == ORDER


class Looking(Chain):
    def forward(self, x):
        x = self.a(x)
        if torch.jit.is_scripting() or x.shape[0] < 0:
            return x
        return self.b(x if x.sum() > 0 else -x)  # asks for values


def test_networks_that_ask_for_values_cannot_be_run():
    assert facts(Looking()) == UNKNOWN


class Coordinates(Chain):
    """Makes tensors while it runs, and adds channels to the image."""

    def __init__(self):
        super().__init__(channels=5)

    def forward(self, x):
        height, width = x.shape[-2:]
        grid = torch.meshgrid(torch.linspace(-1, 1, height), torch.arange(width) / width, indexing="ij")
        x = torch.cat([x, torch.stack(grid).expand(len(x), 2, height, width)], 1)
        with torch.no_grad():
            x = self.a(x)
        return self.b(x) + torch.zeros(1)


def test_networks_that_make_tensors_as_they_run():
    assert facts(Coordinates()) == GRAPH


class Odd(Chain):
    def forward(self, images, scale, options):
        one, two = images
        assert one.shape == (2, 3, 17, 23)
        return super().forward(one + two) * scale * options["gain"]


def test_networks_that_need_odd_input():
    image = torch.rand(2, 3, 17, 23)
    assert facts(Odd()) == UNKNOWN
    assert facts(Odd(), ([image, image], 2.0, {"gain": torch.ones(1)})) == GRAPH
    before = image.clone()
    assert facts(Chain(), image) == GRAPH
    assert torch.equal(image, before)


def test_an_example_that_does_not_fit_is_no_error():
    assert facts(Chain(), torch.rand(1, 4, 8, 8)) == UNKNOWN


@pytest.mark.parametrize("size", [28, 32, 64, 224, 299, 512])
def test_common_sizes_are_tried(size):
    class Fixed(Chain):
        def __init__(self):
            super().__init__(1)
            self.head = nn.Linear(8 * size * size, 1)

        def forward(self, x):
            return self.head(super().forward(x).flatten(1))

    assert facts(Fixed()) == GRAPH


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_types(dtype):
    assert facts(Chain().to(dtype)) == GRAPH


class Repeated(Chain):
    def forward(self, x):
        x = self.a(x)
        return self.b(self.b(self.b(x)) + x)


def test_a_layer_that_is_called_again_has_the_depth_of_its_first_call():
    assert facts(Repeated()) == GRAPH


class Branches(nn.Module):
    """The graph has another order of depths than of calls."""

    def __init__(self):
        super().__init__()
        self.last, self.long2, self.long1, self.short = (nn.Conv2d(c, 8, 3, padding=1) for c in (16, 8, 3, 3))

    def forward(self, x):
        deep = self.long2(F.relu(self.long1(x)))
        return self.last(torch.cat([deep, self.short(x)], 1))


def test_parallel_branches_have_the_depths_of_the_longest_paths():
    found = facts(Branches())
    assert list(found) == ["long1", "long2", "short", "last"]
    assert [depth for depth, _, _ in found.values()] == [0, 1, 0, 2]


class Checkpointed(Chain):
    def forward(self, x):
        return self.b(torch.utils.checkpoint.checkpoint(self.a, x, use_reentrant=False))


def test_gradient_checkpoints():
    found = facts(Checkpointed())
    assert [depth for depth, _, _ in found.values()] == [0, 1]
    assert {dead for _, _, dead in found.values()} == {False}


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@pytest.mark.parametrize("wrap", [lambda module: module, lambda module: nn.Sequential(nn.Conv2d(3, 3, 3), module)])
def test_compiled_code_says_nothing(wrap):
    module = wrap(torch.jit.script(Chain()))
    found = facts(module)
    assert len(found) == sum(parameter.dim() == 4 for parameter in module.parameters())
    assert set(found.values()) == {(None, None, None)}


@pytest.mark.parametrize(
    "wrap",
    [
        nn.DataParallel,
        torch.compile,
        torch.optim.swa_utils.AveragedModel,
        lambda module: torch.compile(nn.DataParallel(module)),
    ],
)
def test_wrappers_are_taken_off(wrap):
    module = Chain()
    wrapped = wrap(module)
    assert not isinstance(unwrapped(wrapped), type(wrapped))
    assert facts(wrapped) == GRAPH
    assert unwrapped(module) is module


def test_modules_called_module_are_no_wrappers():
    class Network(nn.Module):
        def __init__(self):
            super().__init__()
            self.module = Chain()

        def forward(self, x):
            return self.module(x)

    assert set(facts(Network())) == {"module.a", "module.b"}


class Stateful(Chain):
    """Holds what must not be touched: tensors outside of its parameters, hooks, counters."""

    def __init__(self):
        super().__init__()
        self.norm = nn.BatchNorm2d(8)
        self.constants = {"mean": [torch.full((3, 1, 1), 0.5)]}
        self.calls = 0

    def forward(self, x):
        self.calls += 1
        x = super().forward(x - self.constants["mean"][0])
        return self.norm(x)


def test_the_module_is_not_changed():
    module = Stateful()
    called = []
    module.register_forward_hook(lambda *args: called.append("forward"))
    module.a.register_forward_pre_hook(lambda *args: called.append("before"))
    module.b.register_full_backward_hook(lambda *args: called.append("backward"))
    module.norm.eval()
    state = copy.deepcopy(module.state_dict())
    identities = {name: id(value) for name, value in module.named_parameters()}
    random = torch.get_rng_state()
    assert facts(module) == GRAPH
    assert called == []
    assert module.calls == 0
    assert {name: id(value) for name, value in module.named_parameters()} == identities
    assert all(torch.equal(value, state[name]) for name, value in module.state_dict().items())
    assert (module.training, module.norm.training) == (True, False)
    assert torch.equal(torch.get_rng_state(), random)
    assert module.constants["mean"][0].device.type == "cpu"
    assert torch.is_grad_enabled()
    assert torch.empty(0).device.type == "cpu"
    module(torch.rand(1, 3, 8, 8)).sum().backward()
    assert called == ["before", "forward", "backward"]


def test_what_cannot_be_copied_is_read_all_the_same():
    module = Chain()
    module.lock = (number for number in range(3))  # a generator
    assert facts(module) == UNKNOWN


def test_nothing_is_printed(capfd):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        facts(Looking())
        facts(Chain())
    assert capfd.readouterr() == ("", "")


def test_tensors_come_once_each_in_the_order_of_the_modules():
    module = nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8))
    module.append(module[0])
    found, shared = named_tensors(module)
    assert [(name, parameter) for name, _, parameter in found] == [
        ("0.weight", True), ("0.bias", True), ("1.weight", True), ("1.bias", True),
        ("1.running_mean", False), ("1.running_var", False), ("1.num_batches_tracked", False),
    ]  # fmt: skip
    assert shared == [("2.weight", "0.weight")]


def test_lazy_modules():
    module = nn.Sequential(nn.LazyConv2d(8, 3), nn.ReLU())
    with pytest.raises(BadWeightsError, match="run the module once"):
        weights_from_module(module)
    module(torch.zeros(1, 3, 8, 8))
    assert by_name(weights_from_module(module))["0"].shape == (8, 3, 3, 3)


def test_weights_that_are_no_parameters_leave_no_trace():
    assert execute(Chain(), {"a.weight": "a", "b.weight": "b", "c.weight": "c"}) is None
    run = execute(Chain(), {"a.weight": "a", "b.weight": "b"})
    assert run.order == ("a", "b")
    assert run.dead == run.training == frozenset()
    assert run.depths == {"a": 0, "b": 1}
