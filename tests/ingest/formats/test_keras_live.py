"""Models of Keras in memory: as the same models in files, and the layers that only memory has."""

import math
import os
import subprocess
import sys

import numpy as np
import pytest

import cnnfilterdb
from cnnfilterdb.errors import SelectionError
from cnnfilterdb.ingest import formats
from cnnfilterdb.ingest.formats.keras.live import weights_from_keras


@pytest.fixture(scope="module")
def keras():
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("KERAS_BACKEND", os.environ.get("KERAS_BACKEND", "torch"))  # jax and tensorflow pass, too
        yield pytest.importorskip("keras")


def network(keras):
    """A network with every kind of convolution, a model in it, a shared layer and a wrapper."""
    layers = keras.layers
    inside = keras.Input((8, 8, 8))
    inner = keras.Model(inside, layers.SeparableConv2D(6, 3, depth_multiplier=2, name="sep")(inside), name="nest")
    image = keras.Input((32, 32, 3), name="image")
    x = layers.Conv2D(8, 3, strides=2, padding="same", name="stem")(image)
    x = layers.BatchNormalization(name="bn")(x)
    x = layers.DepthwiseConv2D(3, depth_multiplier=2, padding="same", name="dw")(x)
    shared = layers.Conv2D(8, 3, padding="same", name="shared")
    left = layers.Conv2D(16, 3, groups=4, padding="same", dilation_rate=2, name="grouped")(x)
    x = layers.AveragePooling2D(2)(layers.Add()([shared(x), shared(left)]))
    x = layers.Conv2DTranspose(5, 2, name="up")(inner(x))
    return keras.Model(image, layers.Dense(3)(layers.Flatten()(x)))


def facts(layer):
    known = ("name", "shape", "dtype", "kind", "groups", "in_channels", "stride", "dilation", "conv_depth", "dead")
    return {name: getattr(layer, name) for name in (*known, "depth_source", "bn_folded", "weight_norm")}


def test_a_model_in_memory_is_as_in_its_file(keras, tmp_path):
    model = network(keras)
    model.save(tmp_path / "net.keras")
    live, file = weights_from_keras(model, "add"), formats.read(tmp_path / "net.keras")
    assert list(map(facts, live.layers)) == list(map(facts, file.layers))
    assert len(live.layers) == 7
    for one, other in zip(live.layers, file.layers, strict=True):
        assert np.array_equal(one.read(), other.read()), one.name
    assert (live.framework, live.parameters, live.skipped) == ("keras", file.parameters, ())
    assert live.producer == f"keras {keras.__version__}"
    np.testing.assert_array_equal(live.layers[0].batch_norm(), file.layers[0].batch_norm())
    assert live.contents["kernels"] == (7, sum(math.prod(layer.shape) for layer in live.layers))
    held = [math.prod(weight.shape) for weight in model.weights]
    assert (len(held), sum(held)) == tuple(map(sum, zip(*live.contents.values(), strict=True)))


def test_layers_inside_layers_of_a_user(keras):
    layers = keras.layers

    class Block(layers.Layer):
        def __init__(self, filters, **more):
            super().__init__(**more)
            self.first = layers.Conv2D(filters, 3, padding="same", name="first")
            self.second = layers.DepthwiseConv2D(5, padding="same", name="second")
            self.gain = self.add_weight(shape=(1, 1, 1, filters), name="gain", initializer="ones")

        def call(self, x):
            return self.second(self.first(x)) * self.gain

    class Net(keras.Model):
        def __init__(self):
            super().__init__(name="net")
            self.stem = layers.Conv2D(4, 7, name="stem")
            self.blocks = [Block(8, name="a"), Block(6, name="b")]
            self.times = layers.TimeDistributed(layers.Conv2D(2, 3, name="t"), name="times")
            self.norm = layers.SpectralNormalization(layers.Conv2D(2, 1, name="inner"), name="norm")

        def call(self, x):
            x = self.stem(x)
            for block in self.blocks:
                x = block(x)
            return self.norm(self.times(x[:, None])[:, 0])

    net = Net()
    net(np.zeros((1, 16, 16, 3), np.float32))
    image = keras.Input((16, 16, 3))
    blocks = [Block(8, name="a"), Block(6, name="b")]
    functional = keras.Model(image, blocks[1](blocks[0](layers.Conv2D(4, 7, name="stem")(image))))
    truth = {
        "stem": (4, 3, 7, 7), "a/first": (8, 4, 3, 3), "a/second": (8, 1, 5, 5), "b/first": (6, 8, 3, 3),
        "b/second": (6, 1, 5, 5),
    }  # fmt: skip
    for model, more in ((functional, {}), (net, {"times/t": (2, 6, 3, 3), "norm/inner": (2, 2, 1, 1)})):
        found = weights_from_keras(model, "add")
        assert {layer.name: layer.shape for layer in found.layers} == truth | more
        kinds = {layer.name: layer.kind for layer in found.layers}
        assert {name for name, kind in kinds.items() if kind == "depthwise"} == {"a/second", "b/second"}
        first = model.blocks[0].first if model is net else blocks[0].first
        kernel = np.asarray(keras.ops.convert_to_numpy(first.kernel))
        np.testing.assert_array_equal(found.layers[1].read(), kernel.transpose(3, 2, 0, 1))
        # The order inside a block is not known
        assert {layer.conv_depth for layer in found.layers if "/" in layer.name} == {None}


def test_recurrent_layers_and_others_are_left_out_with_a_reason(keras):
    layers = keras.layers
    model = keras.Sequential([
        keras.Input((3, 8, 8, 2)),
        layers.ConvLSTM2D(4, 3, name="lstm"),
        layers.Conv2D(5, 3, name="conv"),
        layers.Reshape((4, 4, 5, 1)),
        layers.Conv3D(2, 3, name="cube"),
    ])  # fmt: skip
    found = weights_from_keras(model, "add")
    assert [layer.name for layer in found.layers] == ["conv"]
    assert [one.name for one in found.skipped] == ["lstm", "cube"]
    assert found.contents["excluded"][0] == 5


def test_a_model_is_added_and_inspected(keras, tmp_path):
    model = keras.Sequential([keras.Input((32, 32, 3)), keras.layers.Conv2D(8, 5, name="conv")])
    with cnnfilterdb.create(tmp_path / "db") as db:
        assert db.add(model, "net", domain="thermal") == "custom/net"
        kernel = keras.ops.convert_to_numpy(model.layers[0].kernel)
        np.testing.assert_array_equal(db.layer_weights("custom/net", 0), kernel.transpose(3, 2, 0, 1))
        assert db.models()[["framework", "file_format"]].to_numpy().tolist() == [["keras", "module"]]
    found = cnnfilterdb.inspect(model)
    assert found.layers["layer_name"].tolist() == ["conv"]
    assert cnnfilterdb.inspect(model.layers[0]).layers["layer_name"].tolist() == ["conv"]


def test_a_model_that_is_not_built_is_refused(keras, tmp_path):
    with pytest.raises(SelectionError, match=r"inspect: a Sequential of Keras without weights was given; call it"):
        cnnfilterdb.inspect(keras.Sequential([keras.layers.Conv2D(8, 5)]))


class Variable:
    """A weight of Keras 2: its name is that of its layer and its own."""

    def __init__(self, name, array):
        self.name, self.array, self.shape, self.dtype = name, array, array.shape, array.dtype

    def __array__(self, dtype=None, copy=None):
        return self.array


def stand_in(name, weights=(), inner=(), config=None):
    """A layer of ``tf_keras`` in a process without TensorFlow: what this package asks of it."""

    def all_of(self):
        return [*self.own, *(weight for layer in self.inner for weight in layer.weights)]

    members = {"weights": property(all_of), "get_config": lambda self: config or {}}
    members["_flatten_layers"] = lambda self, recursive, include_self: iter(self.inner)
    made = type(config["class"] if config else "Conv2D", (), {"__module__": "tf_keras.src.layers", **members})()
    made.name, made.own, made.inner = name, list(weights), list(inner)
    return made


def test_a_model_of_keras_2():
    kernel = np.random.default_rng(0).standard_normal((3, 3, 4, 8)).astype("f4")
    weights = [Variable("stem/kernel:0", kernel), Variable("stem/bias:0", np.zeros(8, "f4"))]
    stem = stand_in("stem", weights, config={"class": "Conv2D", "filters": 8, "kernel_size": (3, 3), "strides": (2, 2)})
    model = stand_in("net", inner=[stem], config={"class": "Functional"})
    model.layers = [stem]
    found = cnnfilterdb.inspect(model)
    assert found.framework == "keras"
    assert found.layers[["layer_name", "stride_h", "out_channels"]].to_numpy().tolist() == [["stem", 2, 8]]
    assert found.contents == {"kernels": (1, 288), "vectors": (1, 8)}


def test_keras_is_not_imported_for_others():
    code = (
        "import sys, numpy, cnnfilterdb; cnnfilterdb.inspect({'a.weight': numpy.ones((4, 4, 3, 3))}); "
        "sys.exit(any(name in sys.modules for name in ('keras', 'h5py', 'tensorflow')))"
    )
    assert subprocess.run([sys.executable, "-P", "-c", code], check=False).returncode == 0
