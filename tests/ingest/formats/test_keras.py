"""Files as Keras lays them out, made with h5py, and where Keras is installed those that it writes itself."""

import io
import json
import random
import zipfile

import h5py
import networkx
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cnnfilterdb.core.errors import WeightFileError
from cnnfilterdb.ingest import formats

QUICK = settings(max_examples=40)


# ---------------------------------------------------------------------------------------------------------------------
# How Keras writes


def entry(class_name, name, *calls, keras=2, **config):
    """A layer in a functional model; each call lists the layers, or (layer, call) pairs, that it reads."""
    calls = [[source if isinstance(source, tuple) else (source, 0) for source in call] for call in calls]
    if keras == 2:
        nodes = [[[source, call, 0, {}] for source, call in reads] for reads in calls]
    else:
        tensors = [[_keras_tensor(*source) for source in reads] for reads in calls]
        nodes = [{"args": tensor if len(tensor) == 1 else [tensor], "kwargs": {}} for tensor in tensors]
    return {"class_name": class_name, "config": {"name": name, **config}, "name": name, "inbound_nodes": nodes}


def _keras_tensor(layer, call):
    config = {"shape": [None, 32, 32, 8], "dtype": "float32", "keras_history": [layer, call, 0]}
    return {"class_name": "__keras_tensor__", "config": config}


def functional(name, layers, inputs, outputs, keras=2):
    ends = [[[end, 0, 0] for end in ends] for ends in (inputs, outputs)]
    if keras == 3:  # a single tensor stands without a list around it
        ends = [end[0] if len(end) == 1 else end for end in ends]
    config = {"name": name, "layers": layers, "input_layers": ends[0], "output_layers": ends[1]}
    return {"class_name": "Functional", "config": config}


def sequential(*layers):
    return {"class_name": "Sequential", "config": {"name": "sequential", "layers": list(layers)}}


def plain(class_name, name, **config):
    """A layer in a sequential model."""
    return {"class_name": class_name, "config": {"name": name, **config}}


def write_h5(path, weights, config=None, *, whole=True, chunked=False, version="2.15.0", backend="tensorflow"):
    """What ``model.save`` (whole) or ``model.save_weights`` of Keras 2 write; weights: {layer: {name: array}}."""
    with h5py.File(path, "w") as file:
        root = file.create_group("model_weights") if whole else file
        for holder in (file, root):
            holder.attrs["keras_version"] = version.encode()
            holder.attrs["backend"] = backend.encode()
        if whole and config is not None:
            file.attrs["model_config"] = json.dumps(config)
        names = np.array([name.encode() for name in weights])
        if chunked:
            for number, chunk in enumerate(np.array_split(names, 3)):
                root.attrs[f"layer_names{number}"] = chunk
        else:
            root.attrs["layer_names"] = names
        for layer, arrays in weights.items():
            group = root.create_group(layer)
            group.attrs["weight_names"] = np.array([name.encode() for name in arrays] or np.array([], "S1"))
            for name, array in arrays.items():
                group[name] = array
        if whole:
            state = file.create_group("optimizer_weights")
            state["Adam/stem/kernel/m:0"] = np.ones((3, 3, 3, 8), np.float32)
    return path


def write_numbered(file, groups):
    """What Keras 3 writes as ``.weights.h5``; groups: {path: (name of the layer, arrays)}."""
    with h5py.File(file, "w") as opened:
        for path, (name, arrays) in groups.items():
            variables = opened.create_group(f"{path}/vars")
            if name:
                variables.attrs["name"] = name
            for number, array in enumerate(arrays):
                variables[str(number)] = array
        opened["optimizer/vars/0"] = np.ones((3, 3, 4, 4), np.float32)
    return file


def write_keras(path, groups, config, compression=zipfile.ZIP_STORED, **more):
    raw = io.BytesIO()
    write_numbered(raw, groups)
    with zipfile.ZipFile(path, "w", compression) as archive:
        archive.writestr("metadata.json", json.dumps({"keras_version": "3.15.1", "date_saved": "2026-01-01"}))
        archive.writestr("config.json", config if isinstance(config, str) else json.dumps(config))
        archive.writestr("model.weights.h5", raw.getvalue())
        for name, content in more.items():
            archive.writestr(name, content)
    return path


def array(*shape):
    return np.random.default_rng(shape).standard_normal(shape).astype(np.float32)


# ---------------------------------------------------------------------------------------------------------------------
# One network, with every kind of convolution, in every file

KERNELS = {
    "stem": array(3, 3, 3, 8),
    "dw": array(3, 5, 8, 2),
    "grouped": array(3, 3, 4, 8),
    "side": array(1, 1, 16, 8),
    "inner_c": array(3, 3, 8, 8),
    "inner_sep/depthwise_kernel": array(3, 3, 8, 2),
    "inner_sep/pointwise_kernel": array(1, 1, 16, 6),
    "up": array(2, 3, 5, 6),
    "last": array(3, 3, 5, 4),
}
BIAS = array(8)
NORM = [array(8), array(8), array(8), np.abs(array(8)) + 1]  # gamma, beta, mean, variance
PARAMETERS = sum(kernel.size for kernel in KERNELS.values()) + BIAS.size + 2 * 8


def network(keras):
    def layer(class_name, name, *calls, **config):
        return entry(class_name, name, *calls, keras=keras, **config)

    inner = [
        layer("InputLayer", "inner_in"),
        layer("Conv2D", "inner_c", ["inner_in"], filters=8, kernel_size=[3, 3], strides=[1, 1]),
        layer(
            "SeparableConv2D",
            "inner_sep",
            ["inner_c"],
            filters=6,
            kernel_size=[3, 3],
            depth_multiplier=2,
            strides=[2, 2],
        ),
    ]
    nest = functional("nest", inner, ["inner_in"], ["inner_sep"], keras)
    layers = [
        layer("InputLayer", "image"),
        layer(
            "Conv2D", "stem", ["image"], filters=8, kernel_size=[3, 3], strides=[2, 2], groups=1, activation="linear"
        ),
        layer("BatchNormalization", "bn", ["stem"], epsilon=0.01),
        layer("DepthwiseConv2D", "dw", ["bn"], kernel_size=[3, 5], depth_multiplier=2, dilation_rate=[1, 1]),
        layer("Conv2D", "side", ["dw"], filters=8, kernel_size=[1, 1]),
        layer("Conv2D", "grouped", ["dw"], filters=8, kernel_size=[3, 3], groups=4, use_bias=False),
        layer("Lambda", "code", ["side"], function=["4wEAAAAAAAAA", None, None]),
        layer("Add", "add", ["grouped", "code"]),
        {**layer(nest["class_name"], "nest", ["add"]), "config": nest["config"]},
        layer("Conv2DTranspose", "up", ["nest"], filters=5, kernel_size=[2, 3], strides=[2, 3]),
        layer("Conv2D", "last", ["up"], filters=4, kernel_size=[3, 3], dilation_rate=[2, 3]),
    ]
    return functional("net", layers, ["image"], ["last"], keras)


def listed(suffix=":0", nest="", depthwise="depthwise_kernel"):
    """Weights of the network as HDF5 of Keras 2 lists them, or of Keras 3, given other names."""
    k = KERNELS
    roles = ("gamma", "beta", "moving_mean", "moving_variance")
    sep = {part: k[f"inner_sep/{part}"] for part in ("depthwise_kernel", "pointwise_kernel")}
    return {
        "image": {},
        "stem": {f"stem/kernel{suffix}": k["stem"], f"stem/bias{suffix}": BIAS},
        "bn": {f"bn/{role}{suffix}": value for role, value in zip(roles, NORM, strict=True)},
        "dw": {f"dw/{depthwise}{suffix}": k["dw"]},
        "side": {f"side/kernel{suffix}": k["side"]},
        "grouped": {f"grouped/kernel{suffix}": k["grouped"]},
        "nest": {
            f"{nest}inner_c/kernel{suffix}": k["inner_c"],
            **{f"{nest}inner_sep/{part}{suffix}": value for part, value in sep.items()},
        },
        "up": {f"up/kernel{suffix}": k["up"]},
        "last": {f"last/kernel{suffix}": k["last"]},
    }


def numbered():
    """The same, as Keras 3 numbers them."""
    k = KERNELS
    return {
        "layers/conv2d": ("stem", [k["stem"], BIAS]),
        "layers/batch_normalization": ("bn", NORM),
        "layers/depthwise_conv2d": ("dw", [k["dw"]]),
        "layers/conv2d_1": ("side", [k["side"]]),
        "layers/conv2d_2": ("grouped", [k["grouped"]]),
        "layers/functional/layers/conv2d": ("inner_c", [k["inner_c"]]),
        "layers/functional/layers/separable_conv2d": (
            "inner_sep",
            [k["inner_sep/depthwise_kernel"], k["inner_sep/pointwise_kernel"]],
        ),
        "layers/conv2d_transpose": ("up", [k["up"]]),
        "layers/conv2d_3": ("last", [k["last"]]),
    }


def in_our_layout(name, kernel):
    """(out, in / groups, h, w), as the facts about the formats state it."""
    if name in ("dw", "inner_sep/depthwise_kernel"):
        height, width, channels, multiplier = kernel.shape
        return kernel.transpose(2, 3, 0, 1).reshape(channels * multiplier, 1, height, width)
    return kernel.transpose((2, 3, 0, 1) if name == "up" else (3, 2, 0, 1))


def assert_network(weights):
    """Asserts that the network was read as it was written, with all that its configuration states."""
    layers = {layer.name.removeprefix("nest/"): layer for layer in weights.layers}
    assert set(layers) == set(KERNELS)
    for name, layer in layers.items():
        kernel = layer.read()
        assert kernel.dtype == np.float32
        assert kernel.flags.c_contiguous
        assert kernel.shape == layer.shape
        assert np.array_equal(kernel, in_our_layout(name, KERNELS[name])), name
    assert {name: layer.kind for name, layer in layers.items() if layer.kind != "conv"} == {
        "dw": "depthwise",
        "grouped": "grouped",
        "inner_sep/depthwise_kernel": "depthwise",
        "up": "transposed",
    }
    assert {name: layer.groups for name, layer in layers.items() if layer.groups != 1} == {
        "dw": 8,
        "grouped": 4,
        "inner_sep/depthwise_kernel": 8,
    }
    assert [layers[name].in_channels for name in KERNELS] == [3, 8, 16, 16, 8, 8, 16, 6, 5]
    assert {name: layer.stride for name, layer in layers.items() if layer.stride != (1, 1)} == {
        "stem": (2, 2),
        "inner_sep/depthwise_kernel": (2, 2),
        "up": (2, 3),
    }
    assert {name: layer.dilation for name, layer in layers.items() if layer.dilation != (1, 1)} == {"last": (2, 3)}
    # side and grouped are parallel; the half of a separable convolution reads the other half
    assert [layers[name].conv_depth for name in KERNELS] == [0, 1, 2, 2, 3, 4, 5, 6, 7]
    assert [layers[name].conv_depth_norm for name in KERNELS] == pytest.approx(
        [n / 7 for n in (0, 1, 2, 2, 3, 4, 5, 6, 7)]
    )
    assert {(layer.depth_source, layer.dead, layer.dtype) for layer in layers.values()} == {("graph", False, "float32")}
    assert (weights.framework, weights.skipped, weights.parameters) == ("keras", (), PARAMETERS)
    assert layers["stem"].bn_folded is False
    assert layers["last"].bn_folded is None
    assert np.allclose(layers["stem"].batch_norm(), NORM[0] / np.sqrt(NORM[3] + 0.01))


@pytest.mark.parametrize("chunked", [False, True])
@pytest.mark.parametrize("keras", [2, 3])
def test_whole_models_in_hdf5(tmp_path, keras, chunked):
    parts = listed() if keras == 2 else listed("", "nest/", "kernel")
    version = {2: "2.15.0", 3: "3.15.1"}[keras]
    path = write_h5(tmp_path / "net.h5", parts, network(keras), chunked=chunked, version=version)
    weights = formats.read(path)
    assert_network(weights)
    assert weights.format == "keras-h5"


@pytest.mark.parametrize("compression", [zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED])
def test_archives(tmp_path, compression):
    weights = formats.read(write_keras(tmp_path / "net.keras", numbered(), network(3), compression))
    assert_network(weights)
    assert weights.format == "keras-v3"


def test_weights_alone_are_identified_by_names_of_layers(tmp_path):
    kernels = {
        "conv2d": ("kernel", array(3, 3, 3, 8)),
        "depthwise_conv2d": ("depthwise_kernel", array(3, 3, 8, 2)),
        "conv2d_transpose": ("kernel", array(2, 2, 5, 16)),
        "conv2d_1": ("kernel", array(1, 1, 5, 4)),
    }
    parts = {name: {f"{name}/{role}:0": value} for name, (role, value) in kernels.items()}
    parts["dense"] = {"dense/kernel:0": array(4, 10)}
    layers = formats.read(write_h5(tmp_path / "w.h5", parts, whole=False)).layers
    assert [(layer.name, layer.kind) for layer in layers] == [
        ("conv2d", "conv"),
        ("depthwise_conv2d", "depthwise"),
        ("conv2d_transpose", "transposed"),
        ("conv2d_1", "conv"),
    ]
    assert {(layer.conv_depth, layer.depth_source, layer.stride) for layer in layers} == {(None, None, None)}
    kernels = {name: value for name, (_, value) in kernels.items()}
    assert np.array_equal(layers[0].read(), kernels["conv2d"].transpose(3, 2, 0, 1))
    assert np.array_equal(layers[1].read(), kernels["depthwise_conv2d"].transpose(2, 3, 0, 1).reshape(16, 1, 3, 3))
    assert np.array_equal(layers[2].read(), kernels["conv2d_transpose"].transpose(2, 3, 0, 1))


def test_numbered_weights_alone_are_identified_by_names_of_classes(tmp_path):
    weights = formats.read(write_numbered(tmp_path / "net.weights.h5", numbered()))
    layers = {layer.name.removeprefix("functional/"): layer for layer in weights.layers}
    assert set(layers) == set(KERNELS)
    for name, layer in layers.items():
        assert np.array_equal(layer.read(), in_our_layout(name, KERNELS[name])), name
    assert {name for name, layer in layers.items() if layer.kind == "depthwise"} == {
        "dw",
        "inner_sep/depthwise_kernel",
    }
    assert layers["up"].kind == "transposed"
    assert {layer.depth_source for layer in layers.values()} == {None}
    assert weights.parameters == PARAMETERS
    # HDF5 lists groups by name; the layers come as they were written
    assert list(layers)[:5] == ["stem", "dw", "side", "grouped", "inner_c"]


@pytest.mark.parametrize("given", ["scale", "center", "both"])
def test_normalisations_without_scale_or_offset(tmp_path, given):
    gamma, beta, mean, variance = NORM
    scale, center = given != "center", given != "scale"
    arrays = [*([gamma] if scale else []), *([beta] if center else []), mean, variance]
    config = sequential(
        plain("Conv2D", "c", filters=8, kernel_size=[3, 3]),
        plain("BatchNormalization", "bn", epsilon=0.001, scale=scale, center=center),
    )
    groups = {"layers/conv2d": ("c", [KERNELS["stem"]]), "layers/batch_normalization": ("bn", arrays)}
    (layer,) = formats.read(write_keras(tmp_path / "net.keras", groups, config)).layers
    assert np.allclose(layer.batch_norm(), (gamma if scale else 1) / np.sqrt(variance + 0.001))


# ---------------------------------------------------------------------------------------------------------------------
# Depth


def conv_config(number, keras, *calls):
    return entry("Conv2D", f"c{number}", *calls, keras=keras, filters=2, kernel_size=[3, 3])


def write_convs(path, config, names):
    return write_h5(path, {name: {f"{name}/kernel:0": array(3, 3, 2, 2)} for name in names}, config)


@QUICK
@given(data=st.data(), keras=st.sampled_from([2, 3]), size=st.integers(1, 12))
def test_depth_is_the_longest_path_from_an_input(tmp_path, data, keras, size):
    graph = networkx.DiGraph()
    graph.add_node("image")
    layers, convs = [entry("InputLayer", "image", keras=keras)], []
    for number in range(size):
        is_conv = data.draw(st.booleans())
        reads = data.draw(
            st.lists(st.sampled_from(sorted(graph)), min_size=1, max_size=1 if is_conv else 3, unique=True)
        )
        if is_conv:
            layers.append(conv_config(number, keras, reads))
            convs.append(f"c{number}")
        else:
            layers.append(entry("Add", f"a{number}", reads, keras=keras))
        name = layers[-1]["name"]
        graph.add_edges_from((source, name) for source in reads)
    end = layers[-1]["name"]
    config = functional("net", data.draw(st.permutations(layers)), ["image"], [end], keras)
    found = formats.read(write_convs(tmp_path / "net.h5", config, convs)).layers

    used = networkx.ancestors(graph, end) | {end}
    levels = {
        node: level
        for level, nodes in enumerate(networkx.topological_generations(graph.subgraph(used)))
        for node in nodes
    }
    ranks = {level: rank for rank, level in enumerate(sorted({levels[name] for name in convs if name in used}))}
    last = max(len(ranks) - 1, 1)
    assert {layer.name for layer in found} == set(convs)
    for layer in found:
        rank = ranks[levels[layer.name]] if layer.name in used else None
        assert (layer.conv_depth, layer.dead) == (rank, layer.name not in used)
        assert layer.conv_depth_norm == (None if rank is None else rank / last)


@pytest.mark.parametrize("keras", [2, 3])
def test_shared_layers_count_once_where_they_come_first(tmp_path, keras):
    layers = [
        entry("InputLayer", "image", keras=keras),
        conv_config(0, keras, ["image"], [("c1", 0)]),  # used twice
        conv_config(1, keras, [("c0", 0)]),
        conv_config(2, keras, [("c0", 1)]),
    ]
    found = formats.read(
        write_convs(tmp_path / "net.h5", functional("net", layers, ["image"], ["c2"], keras), ["c0", "c1", "c2"])
    ).layers
    assert [(layer.name, layer.conv_depth) for layer in found] == [("c0", 0), ("c1", 1), ("c2", 2)]


def test_circular_graphs_and_unknown_layers_give_no_depth(tmp_path):
    for source in ("c1", "missing"):
        layers = [entry("InputLayer", "image"), conv_config(0, 2, [source]), conv_config(1, 2, ["c0"])]
        path = write_convs(tmp_path / "net.h5", functional("net", layers, ["image"], ["c1"]), ["c0", "c1"])
        assert {layer.conv_depth for layer in formats.read(path).layers} == {None}


def test_sequential_models_and_wrappers(tmp_path):
    config = sequential(
        plain("InputLayer", "image"),
        plain("Conv2D", "a", filters=2, kernel_size=3),
        {"class_name": "TimeDistributed", "config": {"name": "td", "layer": plain("Conv2D", "b", filters=2)}},
        plain("Conv1D", "line", filters=2),
        plain("ConvLSTM2D", "lstm", filters=2),
        plain("Dense", "dense", units=2),
    )
    parts = {
        "a": {"a/kernel:0": array(3, 3, 2, 2)},
        "td": {"td/kernel:0": array(5, 5, 2, 2)},
        "line": {"line/kernel:0": array(3, 2, 2)},
        "lstm": {"lstm/kernel:0": array(3, 3, 2, 8)},
        "dense": {"dense/kernel:0": array(4, 2)},
    }
    weights = formats.read(write_h5(tmp_path / "net.h5", parts, config))
    assert [(layer.name, layer.conv_depth, layer.shape[2]) for layer in weights.layers] == [("a", 0, 3), ("td", 1, 5)]
    assert {part.name for part in weights.skipped} == {"line", "lstm"}


# ---------------------------------------------------------------------------------------------------------------------
# Orientation


def test_theano_stores_kernels_the_other_way_round(tmp_path):
    config = sequential(plain("Conv2D", "c", filters=8, kernel_size=[3, 3]))
    parts = {"c": {"c/kernel:0": KERNELS["stem"]}}
    for options in ({"config": config}, {"whole": False}):
        (layer,) = formats.read(write_h5(tmp_path / "t.h5", parts, backend="theano", **options)).layers
        assert np.array_equal(layer.read(), KERNELS["stem"].transpose(3, 2, 0, 1)[:, :, ::-1, ::-1])


@pytest.mark.parametrize("order", ["th", "tf"])
@pytest.mark.parametrize("backend", ["theano", "tensorflow"])
@pytest.mark.parametrize("stated", [True, False])
def test_both_orders_of_keras_1(tmp_path, order, backend, stated):
    kernel = array(16, 3, 3, 5)  # (out, in, h, w)
    stored = kernel if order == "th" else kernel.transpose(2, 3, 1, 0)
    facts = {"nb_filter": 16, "nb_row": 3, "nb_col": 5, "subsample": [2, 1], "dim_ordering": order}
    config = sequential(plain("Convolution2D", "conv1", **facts)) if stated else None
    parts = {"conv1": {"conv1_W": stored, "conv1_b": array(16)}}
    path = write_h5(tmp_path / "k1.h5", parts, config, whole=stated, version="1.2.2", backend=backend)
    (layer,) = formats.read(path).layers
    assert np.array_equal(layer.read(), kernel[:, :, ::-1, ::-1] if backend == "theano" else kernel)
    assert layer.stride == ((2, 1) if stated else None)


# ---------------------------------------------------------------------------------------------------------------------
# What is no honest file


@pytest.mark.parametrize("whole", [True, False])
@pytest.mark.parametrize("link", [h5py.SoftLink("/elsewhere"), h5py.ExternalLink("other.h5", "/elsewhere")])
@pytest.mark.parametrize("place", ["c", "c/c/kernel:0"])
def test_links_are_refused(tmp_path, whole, link, place):
    path = write_h5(tmp_path / "net.h5", {"c": {"c/kernel:0": KERNELS["stem"]}}, whole=whole)
    with h5py.File(tmp_path / "other.h5", "w") as other:
        other["elsewhere"] = KERNELS["stem"]
    with h5py.File(path, "a") as file:
        root = file["model_weights"] if whole else file
        file["elsewhere"] = KERNELS["stem"]
        del root[place]
        root[place] = link
    with pytest.raises(WeightFileError, match="link to another file or object; refused"):
        formats.read(path)


@pytest.mark.parametrize("kind", ["external", "virtual"])
def test_numbers_in_other_files_are_refused(tmp_path, kind):
    secret = tmp_path / "secret"
    secret.write_bytes(bytes(range(144)))
    path = write_numbered(tmp_path / "net.weights.h5", {"layers/conv2d": ("c", [])})
    with h5py.File(path, "a") as file:
        group = file["layers/conv2d/vars"]
        if kind == "external":
            group.create_dataset("0", (3, 3, 2, 2), "f4", external=[(str(secret), 0, 144)])
        else:
            layout = h5py.VirtualLayout((3, 3, 2, 2), "f4")
            layout[...] = h5py.VirtualSource("other.h5", "x", (3, 3, 2, 2))
            group.create_virtual_dataset("0", layout)
    with pytest.raises(WeightFileError, match="stored in another file; refused"):
        formats.read(path)


def test_groups_that_hold_themselves(tmp_path):
    path = write_numbered(tmp_path / "net.weights.h5", {"layers/conv2d": ("c", [KERNELS["stem"]])})
    with h5py.File(path, "a") as file:
        file["layers/again"] = file["layers"]
    assert len(formats.read(path).layers) == 1


@pytest.mark.parametrize("name", ["../evil", "/etc/evil", "assets\\..\\..\\evil", "C:evil"])
def test_members_outside_of_the_archive_are_refused(tmp_path, name):
    path = write_keras(tmp_path / "net.keras", numbered(), network(3), **{name: "x"})
    with pytest.raises(WeightFileError, match="would escape the folder of the archive; refused"):
        formats.read(path)


def test_bombs_are_refused(tmp_path):
    bomb = {"assets/vocabulary.txt": bytes(10_000_000)}
    path = write_keras(tmp_path / "net.keras", numbered(), network(3), zipfile.ZIP_DEFLATED, **bomb)
    with pytest.raises(WeightFileError, match="refused as a decompression bomb"):
        formats.read(path)


@pytest.mark.parametrize(("config", "message"), [("{", "not valid JSON"), ("[" * 100_000, "not valid JSON")])
def test_configurations_that_are_none(tmp_path, config, message):
    with pytest.raises(WeightFileError, match=message):
        formats.read(write_keras(tmp_path / "net.keras", numbered(), config))


def test_archives_without_configuration(tmp_path):
    whole = write_keras(tmp_path / "net.keras", numbered(), network(3))
    path = tmp_path / "half.keras"
    with zipfile.ZipFile(whole) as source, zipfile.ZipFile(path, "w") as target:
        for name in ("metadata.json", "model.weights.h5"):
            target.writestr(name, source.read(name))
    with pytest.raises(WeightFileError, match=r"does not contain config\.json"):
        formats.read(path)


def test_other_hdf5_files(tmp_path):
    path = tmp_path / "data.h5"
    with h5py.File(path, "w") as file:
        file["images"] = np.zeros((2, 3, 8, 8))
    weights = formats.read(path)
    assert (weights.layers, [entry.name for entry in weights.skipped]) == ((), ["images"])
    with h5py.File(path, "w") as file:
        file["labels"] = np.zeros(8)
    with pytest.raises(WeightFileError, match=r"nor with arrays of four dimensions \(at its top: 'labels'"):
        formats.read(path)
    with h5py.File(path, "w") as file:
        file.attrs["nb_layers"] = 3
    with pytest.raises(WeightFileError, match="weights of Keras 0"):
        formats.read(path)


def test_layers_that_are_listed_but_missing(tmp_path):
    path = write_h5(tmp_path / "net.h5", listed(), network(2))
    with h5py.File(path, "a") as file:
        del file["model_weights/up"]
    with pytest.raises(WeightFileError, match="lists 'up' but does not contain it"):
        formats.read(path)


def test_kernels_that_contradict_the_configuration_are_left_out(tmp_path):
    parts = listed()
    parts["up"] = {"up/kernel:0": array(2, 3, 6, 5)}
    weights = formats.read(write_h5(tmp_path / "net.h5", parts, network(2)))
    (left_out,) = weights.skipped
    assert left_out.name == "up"
    assert "not that of its configuration" in left_out.reason
    assert "up" not in {layer.name for layer in weights.layers}


@pytest.fixture(params=["net.h5", "net.weights.h5", "net.keras"])
def intact(request, tmp_path):
    path = tmp_path / request.param
    if request.param == "net.h5":
        return write_h5(path, listed(), network(2))
    if request.param == "net.weights.h5":
        return write_numbered(path, numbered())
    return write_keras(path, numbered(), network(3))


def test_truncated_files_are_reported_as_such(intact, read_all):
    content = intact.read_bytes()
    for length in range(8, len(content), len(content) // 40):
        intact.write_bytes(content[:length])
        assert read_all(intact) is None


def test_flipped_bits_give_a_result_or_an_error_of_this_package(intact, read_all):
    # A fixed choice: what is damaged goes through a library in C
    choose = random.Random(0)
    content = intact.read_bytes()
    for _ in range(80):
        damaged = bytearray(content)
        for _ in range(choose.choice((1, 8))):
            damaged[choose.randrange(8, len(damaged))] ^= 1 << choose.randrange(8)
        intact.write_bytes(damaged)
        result = read_all(intact)
        assert result is None or all(isinstance(kernel, np.ndarray) for kernel in result[1])


@pytest.mark.parametrize("intact", ["net.h5", "net.keras"], indirect=True)
@pytest.mark.parametrize(("size", "index"), [(1024, 0), (0, 0), (2**64 - 16, 7), (4096, 7)])
def test_heaps_in_which_hdf5_would_run_forever(intact, size, index):
    content = bytearray(intact.read_bytes())
    place = content.index(b"GCOL") + 16
    while int.from_bytes(content[place : place + 2], "little"):  # up to the free space
        place += 16 + -(-int.from_bytes(content[place + 8 : place + 16], "little") // 8) * 8
    content[place : place + 2] = index.to_bytes(2, "little")
    content[place + 8 : place + 16] = size.to_bytes(8, "little")
    intact.write_bytes(content)
    with pytest.raises(WeightFileError, match="an object of a global heap has an impossible size"):
        formats.read(intact)


@QUICK
@given(data=st.data())
def test_anything_in_the_place_of_anything_in_a_configuration(tmp_path, read_all, data):
    config = network(data.draw(st.sampled_from([2, 3])))
    place, key = config, "config"
    for _ in range(data.draw(st.integers(0, 7))):
        value = place[key]
        if not isinstance(value, dict | list) or not value:
            break
        place = value
        keys = sorted(value) if isinstance(value, dict) else range(len(value))
        key = data.draw(st.sampled_from(keys))
    place[key] = data.draw(st.sampled_from([None, True, -1, 2**70, 1.5, "x", [], {}, [[]], ["image", 0, 0], [2, 2]]))
    read_all(write_keras(tmp_path / "net.keras", numbered(), config))


# ---------------------------------------------------------------------------------------------------------------------
# The real thing


def test_what_keras_writes(tmp_path, monkeypatch):
    monkeypatch.setenv("KERAS_BACKEND", "torch")
    keras = pytest.importorskip("keras")
    layers = keras.layers
    inside = keras.Input((8, 8, 8))
    inner = keras.Model(inside, layers.SeparableConv2D(6, 3, depth_multiplier=2, name="sep")(inside), name="nest")
    image = keras.Input((32, 32, 3), name="image")
    x = layers.Conv2D(8, 3, strides=2, padding="same", name="stem")(image)
    x = layers.BatchNormalization(center=False, name="bn")(x)
    x = layers.DepthwiseConv2D(3, depth_multiplier=2, padding="same", name="dw")(x)
    shared = layers.Conv2D(8, 3, padding="same", name="shared")
    left = layers.Conv2D(16, 3, groups=4, padding="same", dilation_rate=2, name="grouped")(x)
    x = layers.Add()([shared(x), shared(left)])
    x = layers.AveragePooling2D(2)(x)
    x = layers.Conv2DTranspose(5, 2, name="up")(inner(x))
    model = keras.Model(image, layers.Dense(3)(layers.Flatten()(x)))
    gamma, _, _, variance = NORM
    model.get_layer("bn").set_weights([gamma, np.zeros(8), variance])
    truth = {
        name: layer.get_weights()[0]
        for name, layer in [(layer.name, layer) for layer in model.layers]
        if name in ("stem", "dw", "shared", "grouped", "up")
    }
    truth |= dict(
        zip(("sep/depthwise_kernel", "sep/pointwise_kernel"), inner.get_layer("sep").get_weights(), strict=False)
    )
    depths = {"stem": 0, "dw": 1, "grouped": 2, "shared": 2}
    depths |= {"sep/depthwise_kernel": 3, "sep/pointwise_kernel": 4, "up": 5}

    for suffix in (".keras", ".h5", ".weights.h5"):
        path = tmp_path / f"model{suffix}"
        (model.save_weights if "weights" in suffix else model.save)(path)
        weights = formats.read(path)
        found = {layer.name.removeprefix("nest/").removeprefix("functional/"): layer for layer in weights.layers}
        assert set(found) == set(truth), suffix
        assert weights.parameters == sum(np.prod(weight.shape) for weight in model.trainable_weights)
        for name, layer in found.items():
            expected = truth[name]
            if name in ("dw", "sep/depthwise_kernel"):
                expected = expected.transpose(2, 3, 0, 1).reshape(-1, 1, 3, 3)
            else:
                expected = expected.transpose((2, 3, 0, 1) if name == "up" else (3, 2, 0, 1))
            assert np.array_equal(layer.read(), expected), (suffix, name)
        if "weights" not in suffix:
            assert {name: layer.conv_depth for name, layer in found.items()} == depths
            assert found["grouped"].groups == 4
            assert np.allclose(found["stem"].batch_norm(), gamma / np.sqrt(variance + 0.001))
