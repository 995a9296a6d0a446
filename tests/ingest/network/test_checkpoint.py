import pickle
import time
from collections import OrderedDict
from collections.abc import Mapping

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from cnnfilterdb.core.errors import WeightFileError
from cnnfilterdb.ingest import formats
from cnnfilterdb.ingest.network.checkpoint import networks
from cnnfilterdb.ingest.network.objects import Global, Object

KERNEL = np.zeros((8, 3, 3, 3), np.float32)
VECTOR = np.zeros(8, np.float32)
FLAT = {"conv.weight": KERNEL, "conv.bias": VECTOR, "head.fc.weight": np.zeros((10, 8), np.float32)}
NAMES = ["conv.weight", "conv.bias", "head.fc.weight"]


def is_array(value):
    return isinstance(value, np.ndarray)


def read(root):
    """Names in each network, and what was left out with the reason."""
    found, skipped = networks(root, is_array)
    return [[entry.name for entry in network.entries] for network in found], {s.name: s.reason for s in skipped}


def named(prefix, names=NAMES):
    return [f"{prefix}.{name}" for name in names]


def below(prefix, content=FLAT):
    return {f"{prefix}.{name}": value for name, value in content.items()}


@pytest.mark.parametrize(
    "root",
    [
        FLAT,
        OrderedDict(FLAT),
        {"state_dict": FLAT, "epoch": 3, "arch": "resnet18", "best": np.float32(0.9)},
        {"model": FLAT, "optimizer": {"state": {0: {"exp_avg": KERNEL}}, "param_groups": [{"lr": 0.1}]}},
        {"model": FLAT, "adam": {"state": {0: {"exp_avg": KERNEL}}, "param_groups": [{"lr": 0.1}]}},
        {"model": FLAT, "adams": [{"state": {0: {"exp_avg": KERNEL}}, "param_groups": []}]},
        {"net": {"state_dict": FLAT}, "lr_schedulers": [{"a": KERNEL}], "callbacks": {"best": KERNEL}},
        {"state_dict": FLAT, "sample": np.zeros((1, 3, 32, 32), np.float32)},
        {"weights": FLAT, "loss": {"vgg.weight": KERNEL}, "amp": {"scale": KERNEL}},
        [FLAT],
        (3, {"params": FLAT}),
        below("module"),
        below("module.model"),
        below("model._orig_mod"),
        below("_orig_mod.module.net"),
        {"conv._orig_mod.weight": KERNEL, "conv._orig_mod.bias": VECTOR, "head.fc.weight": np.zeros((10, 8))},
        {"state_dict": below("model") | below("loss_fn.vgg")},
        below("ema"),
        below("ema_model.module"),
        {"anything": FLAT},
    ],
)
def test_the_network_is_found_whatever_wraps_it(root):
    found, _ = read(root)
    assert found == [NAMES]


@pytest.mark.parametrize(
    ("root", "taken", "left"),
    [
        ({"state_dict": FLAT, "state_dict_ema": dict(FLAT)}, "state_dict_ema", "state_dict"),
        ({"model": FLAT, "ema": dict(FLAT), "epoch": 3}, "ema", "model"),
        ({"params": FLAT, "params_ema": dict(FLAT)}, "params_ema", "params"),
        ({"model": FLAT, "model_ema": {"module": dict(FLAT)}}, "model_ema", "model"),
        ({"model": below("module"), "EMA": dict(FLAT)}, "EMA", "model"),
        ({"state_dict": FLAT, "ema_state_dict": {"decay": 0.9, **below("module")}}, "ema_state_dict", "state_dict"),
        (below("model") | below("model_ema"), "model_ema", "model"),
        (below("online_model") | below("ema_model"), "ema_model", "online_model"),
    ],
)
def test_a_moving_average_is_preferred(root, taken, left):
    found, skipped = read(root)
    assert found == [NAMES]
    assert skipped == {left: f"its moving average, {taken}, was imported instead"}


def test_the_average_itself_is_read():
    network = {name: value + 1 for name, value in FLAT.items()}
    (found,), _ = networks({"model": network, "model_ema": FLAT}, is_array)
    assert all(not entry.value.any() for entry in found.entries)


@pytest.mark.parametrize(
    "average",
    [
        {"decay": 0.9, "shadow_params": list(FLAT.values())[:-1]},
        {"decay": 0.9, "shadow_params": list(FLAT.values())[::-1]},
        {name.replace(".", ""): value[:1] for name, value in FLAT.items()},
        {name.replace(".", "_"): value for name, value in FLAT.items()},
        {"conv.bias": VECTOR, "other.weight": KERNEL},
    ],
)
def test_an_average_whose_names_cannot_be_proved_is_not(average):
    found, skipped = read({"model": FLAT, "ema": average})
    assert found == [NAMES]
    assert skipped == {"ema": "a moving average whose tensors do not have the names of model"}


SHAPES = st.lists(
    st.sampled_from([(4, 3, 3, 3), (4, 4, 3, 3), (4,), (4, 4)]), min_size=2, max_size=8
).filter(lambda shapes: any(len(shape) == 4 for shape in shapes))  # fmt: skip


@given(
    shapes=SHAPES,
    form=st.sampled_from(["list", "parameters", "without dots", "beside", "of all"]),
    wrapper=st.sampled_from(["", "module.", "diffusion_model."]),
    buffers=st.booleans(),
)
def test_an_average_gets_back_the_names_that_it_has_lost(shapes, form, wrapper, buffers):
    """torch_ema keeps a list, latent diffusion names without dots, of the network or of all: it is the model."""
    names = {f"{wrapper}layers.{number}.weight": shape for number, shape in enumerate(shapes)}
    network = {name: np.zeros(shape) for name, shape in names.items()}
    if buffers:
        network |= {f"{wrapper}bn.running_mean": np.zeros(4), f"{wrapper}bn.num_batches_tracked": np.zeros(())}
    average = {name: np.full(shape, number + 1.0) for number, (name, shape) in enumerate(names.items())}
    dotless = {name.replace(".", ""): value for name, value in average.items()}
    if form == "list":
        everything = [average.get(name, value) for name, value in network.items()]
        root = {"model": network, "ema": {"decay": 0.9, "shadow_params": everything, "collected_params": None}}
    elif form == "parameters":
        root = {"model": network, "ema": {"decay": 0.9, "shadow_params": list(average.values())}}
    elif form == "without dots":
        root = {"model": network, "ema": {"num_updates": 3, **dotless}}
    elif form == "beside":
        root = {f"model.{name}": value for name, value in network.items()}
        root |= {f"model_ema.{name}": value for name, value in dotless.items()} | {"model_ema.decay": np.zeros(())}
    else:
        root = network | {f"model_ema.{name}": value for name, value in dotless.items()}
        root |= {"head.0.weight": np.zeros((2, 3)), "model_ema.head0weight": np.zeros((2, 3))}
    found, left_out = networks(root, is_array)
    kernels = {
        entry.name: entry.value for one in found for entry in one.entries if entry.value.ndim == 4
    }  # fmt: skip
    expected = [value for name, value in average.items() if value.ndim == 4]
    kept = [value for value in kernels.values() if value.any()]
    assert len(kept) == len(expected)
    for one, other in zip(kept, expected, strict=True):
        np.testing.assert_array_equal(one, other)
    # A network of one kernel looks like a layer
    assert len(kernels) == len(expected) or (form == "of all" and len(expected) == 1)
    assert left_out or len(expected) == 1


def test_what_is_only_called_so_is_no_average():
    attention = {"ema.conv1x1.weight": KERNEL}  # efficient multi-scale attention
    found, skipped = read(below("model") | attention)
    assert found == [[*named("model"), "ema.conv1x1.weight"]]
    assert skipped == {}
    assert read({"schema": FLAT, "cinema": dict(FLAT)})[0] == [named("schema"), named("cinema")]


def test_networks_side_by_side_are_all_taken():
    found, skipped = read({"netG": below("module"), "netD": FLAT, "optimG": {"a": KERNEL}})
    assert found == [named("netG"), named("netD")]
    assert skipped == {"optimG": "state of the training"}
    found, skipped = read({"g": FLAT, "d": FLAT, "g_ema": dict(FLAT), "d_optim": {"state": {"0": KERNEL}}})
    assert found == [named("d"), named("g_ema")]
    assert skipped == {"g": "its moving average, g_ema, was imported instead", "d_optim": "state of the training"}
    assert read([FLAT, FLAT])[0] == [named("0"), named("1")]


def test_what_is_beside_the_main_network_is_reported():
    found, skipped = read({"step": {"model": FLAT, "discriminator": FLAT, "best_model": FLAT}})
    assert found == [NAMES]
    assert skipped == {
        "discriminator": "another part of the checkpoint; model was imported",
        "best_model": "a copy of model; model was imported",
    }


def test_networks_of_the_loss_are_reported_and_left_out():
    found, skipped = read({"state_dict": below("decoder") | below("loss.perceptual_loss.net") | below("encoder")})
    assert found == [[*named("decoder"), *named("encoder")]]
    assert skipped == {"loss": "used only in training"}
    weights = {"loss.weight": VECTOR, **FLAT}  # of classes: no kernels
    assert read(weights) == ([["loss.weight", *NAMES]], {})


def test_a_container_for_each_layer_is_one_network():
    nested = {
        "stem": {"weight": KERNEL, "bias": VECTOR},
        "body": {"0": {"weight": KERNEL}, "1": {"dw": {"weight": np.zeros((8, 1, 3, 3))}}},
        "fc": {"weight": np.zeros((10, 8))},
    }
    names = ["stem.weight", "stem.bias", "body.0.weight", "body.1.dw.weight", "fc.weight"]
    for root in (nested, {"params": nested, "optimizer": {"mu": nested}}, {"model": {"state_dict": nested}}):
        found, skipped = read(root)
        assert found == [names]
        assert skipped == ({"optimizer": "state of the training"} if "optimizer" in root else {})
    found, skipped = read({"generator": nested, "generator_ema": nested})
    assert found == [names]
    assert list(skipped) == ["generator"]


@pytest.mark.parametrize(
    ("root", "names"),
    [
        # One name of a layer is left, where any tensor has more
        ({"model.weight": KERNEL, "model.bias": VECTOR}, ["model.weight", "model.bias"]),
        ({"model.conv.weight": KERNEL, "model.scale": VECTOR}, ["conv.weight", "scale"]),
        # Not all have it
        ({"model.conv.weight": KERNEL, "head.weight": VECTOR}, ["model.conv.weight", "head.weight"]),
        # Two would have one name
        (
            {"conv.weight": KERNEL, "conv._orig_mod.weight": KERNEL, "b.c.weight": KERNEL},
            ["conv.weight", "conv._orig_mod.weight", "b.c.weight"],
        ),
        # Not a wrapper's
        (
            {"block.module.weight": KERNEL, "block.norm.weight": VECTOR},
            ["block.module.weight", "block.norm.weight"],
        ),
    ],
)
def test_names_that_are_kept(root, names):
    assert read(root)[0] == [names]


@pytest.mark.parametrize("root", [None, 3, "text", b"bytes", [], {}, {"a": {}}, KERNEL, {"fc.weight": VECTOR}])
def test_without_kernels_there_is_no_network(root):
    assert read(root) == ([], {})


def test_keys_that_are_no_names_are_skipped():
    assert read({("a", 1): FLAT, 2: {"conv.weight": KERNEL}, None: KERNEL})[0] == [["conv.weight"]]


class Made(Mapping):
    """Makes its containers anew at every look, as files that are read on demand do."""

    def __init__(self, content):
        self.content = content

    def __getitem__(self, key):
        value = self.content[key]
        return Made(value) if isinstance(value, dict) else value

    def __iter__(self):
        return iter(self.content)

    def __len__(self):
        return len(self.content)


def test_containers_that_are_made_on_demand():
    root = {f"part{number}": {"a": {"b": {"note": number}}} for number in range(200)}
    found, _ = read(Made({**root, "model": {"inner": FLAT}}))
    assert found == [NAMES]


# ---------------------------------------------------------------------------------------------------------------------
# Pickled modules


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, 8, 3, stride=2), nn.BatchNorm2d(8))
        self.body = nn.ConvTranspose2d(8, 8, 2, groups=2)
        self.register_buffer("kernel_weight", torch.ones(8, 1, 3, 3))


class Trainer:
    def __init__(self, model, **more):
        self.model, self.path = model, "somewhere"
        self.__dict__.update(more)


@pytest.mark.parametrize(
    "wrap",
    [
        lambda net: net,
        lambda net: {"model": net, "epoch": 3},
        lambda net: nn.DataParallel(net),
        lambda net: Trainer(net, history=[KERNEL]),
        lambda net: [Trainer(net)],
    ],
)
def test_pickled_modules(tmp_path, wrap):
    net = Net()
    torch.save(wrap(net), tmp_path / "net.pt")
    weights = formats.read(tmp_path / "net.pt")
    assert [(layer.name, layer.kind, layer.stride, layer.groups) for layer in weights.layers] == [
        ("stem.0", "conv", (2, 2), 1),
        ("body", "transposed", (1, 1), 2),
    ]
    assert weights.parameters == sum(parameter.numel() for parameter in net.parameters())
    reasons = {(s.name, s.reason) for s in weights.skipped} - {("history", "state of the training")}
    assert reasons == {("kernel_weight", "a buffer, not a parameter")}
    np.testing.assert_array_equal(weights.layers[0].read(), net.stem[0].weight.detach().numpy())


def test_pickled_networks_side_by_side(tmp_path):
    # Together they have more modules than a checkpoint may have parts
    big = nn.Sequential(*(nn.Sequential(nn.Conv2d(1, 1, 3)) for _ in range(600)))
    torch.save({"netG": big, "netD": big[:2], "netG_optimizer": None}, tmp_path / "pair.pt")
    weights = formats.read(tmp_path / "pair.pt")
    # The second holds the very same weights
    assert [layer.name for layer in weights.layers] == [f"netG.{number}.0" for number in range(600)]
    assert [s.name for s in weights.skipped] == ["netD.0.0.weight", "netD.1.0.weight"]


def test_modules_are_named_as_their_tensors_are():
    conv = Object(Global("torch.nn", "Conv2d"), attributes={"_parameters": {"weight": KERNEL}, "_modules": {}})
    net = Object(
        Global("nets", "Net"),
        attributes={"_parameters": {}, "_modules": {"conv": conv}, "_buffers": {"mean": VECTOR}},
    )
    wrapped = Object(Global("torch.nn", "DataParallel"), attributes={"_modules": {"module": net}})
    (found,), _ = networks({"ema": wrapped}, is_array)
    assert [(entry.name, entry.parameter) for entry in found.entries] == [("mean", False), ("conv.weight", True)]
    assert found.modules["conv"] is conv
    (one, two), _ = networks({"a": wrapped, "b": net}, is_array)
    assert one.modules["a.conv"] is two.modules["b.conv"] is conv


# ---------------------------------------------------------------------------------------------------------------------
# Hostile nesting


def deep(levels, content, make=lambda inner: {"a": inner}):
    for _ in range(levels):
        content = make(content)
    return content


def shared(levels, content):
    """Each level holds the next one twice: as many paths as 2 to the levels."""
    return deep(levels, content, lambda inner: {"model": inner, "ema": inner, "x": [inner, inner]})


@pytest.mark.parametrize(
    "make",
    [
        lambda: deep(50_000, FLAT),
        lambda: deep(50_000, FLAT, lambda inner: [inner]),
        lambda: deep(50_000, FLAT, lambda inner: Object(Global("a", "B"), attributes={"a": inner})),
        lambda: {"conv.weight": KERNEL, "rest": deep(50_000, FLAT)},
        lambda: shared(60, FLAT),
        lambda: {str(number): FLAT for number in range(5000)},
        lambda: deep(60, FLAT, lambda inner: {"a": inner, "b": inner}),
    ],
    ids=["dicts", "lists", "objects", "beside", "shared", "many", "doubled"],
)
def test_hostile_nesting_ends_soon_and_in_one_line(make):
    root = make()
    start = time.process_time()
    with pytest.raises(WeightFileError, match="save the state dict alone") as caught:
        read(root)
    assert "\n" not in str(caught.value)
    assert time.process_time() - start < 20


def test_hostile_nesting_without_kernels_ends_soon():
    start = time.process_time()
    assert read(deep(60, {"a": 1}, lambda inner: {"a": inner, "b": inner})) == ([], {})
    assert read({"model": FLAT, "x": deep(50_000, {})})[0] == [NAMES]
    assert time.process_time() - start < 20


def test_long_logs_are_skipped():
    log = [(step, 0.5) for step in range(400_000)]
    assert read({"all": {"model": FLAT, "log": log}, "more": log})[0] == [NAMES]


def test_containers_that_hold_themselves():
    loop = {"a": {}}
    loop["a"]["back"] = loop
    assert read(loop) == ([], {})
    module = Object(Global("a", "B"), attributes={"_parameters": {"weight": KERNEL}, "_modules": {}})
    module.attributes["_modules"]["child"] = module
    with pytest.raises(WeightFileError, match="nested too deeply"):
        read(module)


KEYS = st.sampled_from(
    ["model", "state_dict", "ema", "model_ema", "netG", "optimizer", "loss", "module", "conv.weight", "weight", "0", 1]
)
LEAVES = st.sampled_from([KERNEL, VECTOR, None, 3, "text"])
TREES = st.recursive(
    LEAVES, lambda inner: st.dictionaries(KEYS, inner, max_size=4) | st.lists(inner, max_size=3), max_leaves=20
)


def tensors_below(value):
    if is_array(value):
        yield value
    elif isinstance(value, dict | list):
        for child in value.values() if isinstance(value, dict) else value:
            yield from tensors_below(child)


@settings(max_examples=300)
@given(TREES)
def test_any_tree(root):
    found, skipped = networks(pickle.loads(pickle.dumps(root)), is_array)
    names = [entry.name for network in found for entry in network.entries]
    assert len(set(names)) == len(names)
    assert all(names)
    assert len(names) <= len(list(tensors_below(root)))
    assert all(part.name and part.reason for part in skipped)
    assert all(any(entry.value.ndim == 4 for entry in network.entries) for network in found)
