import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from torch import nn
from torch.nn.utils import parametrizations, prune

from cnnfilterdb.ingest.network.composition import Weight, compose, parameters
from cnnfilterdb.ingest.network.layers import Skipped, Tensor
from cnnfilterdb.ingest.network.memory import weights_from_module, weights_from_state_dict

pytestmark = pytest.mark.filterwarnings("ignore::FutureWarning")  # the older weight_norm is deprecated


def tensors(**arrays):
    """An index of tensors; a double underscore in a name stands for a dot."""
    named = {name.replace("__", "."): np.asarray(array, np.float32) for name, array in arrays.items()}
    return {name: Tensor(name, array.shape, "float32", read=lambda array=array: array) for name, array in named.items()}


def composed(index, name):
    found = compose(index[name], index)
    assert isinstance(found, Weight), found
    weight = found.read()
    assert weight.shape == found.shape
    assert weight.dtype == np.float32
    assert weight.flags.c_contiguous
    return found, weight


def normal(*shape, seed=0):
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


def trained(module, rounds=3):
    """A module whose weights have moved after its normalisation last looked at them, as after a step of training."""
    torch.manual_seed(0)
    channels = module.in_channels
    for _ in range(rounds):
        module(torch.randn(1, channels, 9, 9))
    with torch.no_grad():
        for parameter in module.parameters():
            parameter += 0.05 * torch.randn_like(parameter)
    return module.eval()


def layers():
    torch.manual_seed(1)
    yield nn.Conv2d(3, 8, 3)
    yield nn.Conv2d(6, 6, (1, 5), groups=3)
    yield nn.ConvTranspose2d(4, 4, 3)
    yield nn.ConvTranspose2d(4, 6, 3, bias=False)


def expected(module):
    """The weight that the module uses, out channel first."""
    # One call makes the older hooks compose it
    module(torch.zeros(1, module.in_channels, 9, 9))
    weight = module.weight.detach().numpy()
    return weight.swapaxes(0, 1) if module.transposed else weight


@pytest.mark.parametrize("as_module", [True, False])
@pytest.mark.parametrize("number", range(4))
@pytest.mark.parametrize(
    ("wrap", "name"),
    [
        (nn.utils.weight_norm, "weight_norm"),
        (lambda module: nn.utils.weight_norm(module, dim=1), "weight_norm"),
        (lambda module: nn.utils.weight_norm(module, dim=None), "weight_norm"),
        (parametrizations.weight_norm, "weight_norm"),
        (lambda module: parametrizations.weight_norm(module, dim=1), "weight_norm"),
        (nn.utils.spectral_norm, "spectral_norm"),
        (lambda module: nn.utils.spectral_norm(module, n_power_iterations=3), "spectral_norm"),
        (parametrizations.spectral_norm, "spectral_norm"),
        (lambda module: prune.l1_unstructured(module, "weight", 0.4), None),
        (lambda module: prune.ln_structured(module, "weight", 0.5, n=2, dim=0), None),
    ],
)
def test_weights_are_those_that_torch_uses(wrap, name, number, as_module):
    module = trained(wrap(list(layers())[number]))
    name_of_layer = "deconv" if module.transposed else "conv"
    network = nn.ModuleDict({name_of_layer: module})
    weights = weights_from_module(network) if as_module else weights_from_state_dict(network.state_dict())
    (layer,) = weights.layers
    assert (layer.name, layer.weight_norm) == (name_of_layer, name)
    assert (layer.kind == "transposed") == module.transposed
    if as_module:
        assert layer.groups == module.groups
    np.testing.assert_allclose(layer.read(), expected(module), rtol=2e-5, atol=1e-7)


@pytest.mark.parametrize("transposed", [False, True])
def test_spectral_norm_of_a_square_layer_unfolds_along_the_right_axis(transposed):
    """The vectors fit along both axes, but give the norm along one."""
    torch.manual_seed(3)
    module = trained(nn.utils.spectral_norm((nn.ConvTranspose2d if transposed else nn.Conv2d)(16, 16, 3)), 30)
    index = {
        name: Tensor(name, tuple(value.shape), "float32", read=value.numpy)
        for name, value in module.state_dict().items()
    }
    _, weight = composed(index, "weight_orig")
    module(torch.zeros(1, 16, 5, 5))
    np.testing.assert_allclose(weight, module.weight.detach().numpy(), rtol=2e-5)


def test_spectral_norm_with_one_vector_is_one_power_iteration_away():
    weight, u = normal(6, 4, 3, 3), normal(6, seed=1)
    u /= np.linalg.norm(u)
    found, read = composed(tensors(conv__weight_bar=weight, conv__weight_u=u), "conv.weight_bar")
    matrix = weight.reshape(6, -1).astype(float)
    v = matrix.T @ u / np.linalg.norm(matrix.T @ u)
    np.testing.assert_allclose(read, weight / (u @ matrix @ v), rtol=1e-6)
    assert (found.name, found.weight_norm) == ("conv", "spectral_norm")


def test_spectral_norm_of_pytorch_0_4_stored_the_composed_weight_too():
    index = tensors(
        conv__weight=normal(6, 4, 3, 3), conv__weight_orig=2 * normal(6, 4, 3, 3), conv__weight_u=normal(6, seed=1)
    )
    assert compose(index["conv.weight_orig"], index) is None
    found, weight = composed(index, "conv.weight")
    assert (found.name, found.weight_norm) == ("conv", "spectral_norm")
    np.testing.assert_array_equal(weight, normal(6, 4, 3, 3))


@settings(max_examples=60)
@given(data=st.data())
def test_weight_norm_of_any_shape(data):
    shape = data.draw(hnp.array_shapes(min_dims=4, max_dims=4, max_side=4))
    keep = data.draw(st.sampled_from([0, 1, 2, 3, None]))
    numbers = st.floats(-4, 4, width=32)
    direction = data.draw(hnp.arrays(np.float32, shape, elements=numbers))
    sides = () if keep is None else tuple(side if axis == keep else 1 for axis, side in enumerate(shape))
    gain = data.draw(hnp.arrays(np.float32, sides, elements=numbers))
    _, weight = composed(tensors(weight_g=gain, weight_v=direction), "weight_v")
    norm = torch.norm_except_dim(torch.from_numpy(direction.astype(float)), 2, -1 if keep is None else keep).numpy()
    expected = np.divide(direction * gain.astype(float), norm, out=np.zeros(shape), where=norm > 0)
    np.testing.assert_allclose(weight, expected, rtol=1e-5, atol=1e-6)


def test_zero_weights_stay_finite():
    zeros = np.zeros((4, 4, 3, 3))
    for index, name in [
        (tensors(weight_g=np.ones((4, 1, 1, 1)), weight_v=zeros), "weight_v"),
        (tensors(weight_orig=zeros, weight_u=np.ones(4), weight_v=np.ones(36)), "weight_orig"),
    ]:
        assert not composed(index, name)[1].any()


@pytest.mark.filterwarnings("ignore::UserWarning")  # PyTorch will give up these types; files of them stay
@pytest.mark.parametrize("per_channel", [False, True])
def test_quantised_weights_are_read_as_the_numbers_they_represent(per_channel):
    torch.manual_seed(0)
    weight = torch.randn(8, 3, 3, 3)
    quantised = (
        torch.quantize_per_channel(weight, torch.rand(8) / 20, torch.zeros(8, dtype=torch.long), 0, torch.qint8)
        if per_channel
        else torch.quantize_per_tensor(weight, 0.02, 3, torch.qint8)
    )
    (layer,) = weights_from_state_dict({"conv.weight": quantised}).layers
    assert layer.dtype == "qint8"
    np.testing.assert_array_equal(layer.read(), quantised.dequantize().numpy())


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64, torch.float8_e4m3fn])
def test_other_floating_types(dtype):
    weight = torch.randn(8, 3, 3, 3).to(dtype)
    (layer,) = weights_from_state_dict({"conv.weight": weight}).layers
    assert layer.dtype == str(dtype).removeprefix("torch.")
    np.testing.assert_array_equal(layer.read(), weight.float().numpy())
    assert layer.read().dtype == np.float32


def test_big_endian_arrays():
    weight = normal(8, 3, 3, 3)
    (layer,) = weights_from_state_dict({"conv.weight": weight.astype(">f4")}).layers
    assert layer.dtype == "float32"
    np.testing.assert_array_equal(layer.read(), weight)


def test_gain_of_scaled_standardisation_is_flagged_and_the_stored_weight_kept():
    index = tensors(
        a__weight=normal(8, 3, 3, 3), a__gain=np.ones((8, 1, 1, 1)), b__weight=normal(8, 8, 3, 3), b__gain=np.ones(8)
    )
    found, weight = composed(index, "a.weight")
    assert found.weight_norm == "scaled_std"
    np.testing.assert_array_equal(weight, normal(8, 3, 3, 3))
    assert composed(index, "b.weight")[0].weight_norm is None
    assert compose(index["a.gain"], index) is None


@pytest.mark.parametrize(
    ("shape", "name", "reason"),
    [
        ((8, 3, 5), "a.weight", "one-dimensional convolution"),
        ((8, 3, 5, 5, 5), "a.weight", "three-dimensional convolution"),
        ((8, 1, 3, 3), "a.filt", "a fixed blur kernel"),
        ((1, 192, 14, 14), "pos_embed", "a map of positions or tokens, to judge by its name and shape"),
        ((8, 0, 3, 3), "a.weight", "empty"),
        ((8, 3, 3, 3), "a.parametrizations.weight.original", "an unknown parametrisation"),
        ((8, 3, 3, 3), "a.parametrizations.weight.original1", "gain is missing"),
        ((8, 3, 3, 3), "a.weight_orig", "an unknown parametrisation"),
    ],
)
def test_what_is_left_out_is_reported_with_the_reason(shape, name, reason):
    index = {name: Tensor(name, shape, "float32", read=lambda: np.zeros(shape, np.float32))}
    found = compose(index[name], index)
    assert isinstance(found, Skipped)
    assert found.name == name
    assert reason in found.reason


@pytest.mark.parametrize(
    ("name", "others", "reason"),
    [
        ("weight_orig", {"weight_mask": (8, 3, 3, 1)}, "mask of shape"),
        ("weight_orig", {"weight_u": (5,)}, "vector of shape"),
        ("weight_orig", {"weight_u": (8,), "weight_v": (26,)}, "vector of shape"),
        ("weight_v", {"weight_g": (4, 1, 1, 1)}, "does not fit"),
        ("weight_v", {"weight_g": (8,)}, "does not fit"),
    ],
)
def test_parts_that_do_not_fit(name, others, reason):
    index = tensors(**{name: np.ones((8, 3, 3, 3))}, **{other: np.ones(shape) for other, shape in others.items()})
    found = compose(index[name], index)
    assert isinstance(found, Skipped)
    assert reason in found.reason


@pytest.mark.parametrize(
    ("name", "shape"),
    [
        ("a.bias", (8,)),
        ("fc.weight", (10, 8)),
        ("a.scale", (8, 1, 1, 1)),
        ("a.weight_g", (8, 1, 1, 1)),
        ("a.weight_mask", (8, 3, 3, 3)),
        ("a.running_mean", (8,)),
        ("scalar", ()),
    ],
)
def test_what_does_not_look_like_a_convolution_is_not_mentioned(name, shape):
    index = tensors(**{name.replace(".", "__"): np.ones(shape)})
    assert compose(index[name], index) is None


def test_integers_and_buffers_are_reported():
    whole = Tensor("a.weight", (8, 3, 3, 3), "int8", read=lambda: np.ones((8, 3, 3, 3), np.int8))
    buffer = Tensor("b.weight", (8, 3, 3, 3), "float32", read=lambda: np.ones((8, 3, 3, 3)), parameter=False)
    table = Tensor("c.table", (8, 3, 3, 3), "int64", read=lambda: np.ones((8, 3, 3, 3), np.int64))
    found = [compose(tensor, {}) for tensor in (whole, buffer, table)]
    assert found[0].reason == "elements of type int8"
    assert found[1].reason == "a buffer, not a parameter"
    assert found[2] is None


def test_two_parametrisations_of_one_weight_are_not_guessed():
    module = parametrizations.spectral_norm(parametrizations.weight_norm(nn.Conv2d(3, 8, 3)))
    weights = weights_from_state_dict(nn.ModuleDict({"conv": module}).state_dict())
    assert not weights.layers
    assert "parametrisation" in weights.skipped[0].reason
    orthogonal = parametrizations.orthogonal(nn.Conv2d(3, 8, 3))
    weights = weights_from_state_dict(orthogonal.state_dict())
    assert not weights.layers
    assert "parametrisation" in weights.skipped[0].reason


class Everything(nn.Module):
    def __init__(self):
        super().__init__()
        self.a = nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8))
        self.b = nn.utils.weight_norm(nn.Conv2d(8, 8, 3))
        self.c = nn.utils.spectral_norm(nn.Conv2d(8, 8, 3))
        self.d = parametrizations.spectral_norm(parametrizations.weight_norm(nn.Linear(8, 8), "bias"))
        self.e = prune.l1_unstructured(nn.Conv2d(8, 8, 3), "weight", 0.5)
        self.register_buffer("filt", torch.ones(8, 1, 3, 3))
        self.pos_embed = nn.Parameter(torch.zeros(1, 8, 4, 4))


def test_parameters_are_counted_as_torch_counts_them():
    module = Everything()
    count = sum(parameter.numel() for parameter in module.parameters())
    assert weights_from_module(module).parameters == count
    assert weights_from_state_dict(module.state_dict()).parameters == count


def test_a_tensor_that_is_given_twice_is_counted_once():
    tensor = Tensor("a.weight", (2, 3), "float32", read=lambda: np.ones((2, 3)))
    assert parameters([tensor, tensor]) == 6
