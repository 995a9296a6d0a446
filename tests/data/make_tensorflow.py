"""Make tensorflow.zip: two tiny networks of random weights as TensorFlow itself writes them, in every format.

This is the independent oracle of the readers, which do without TensorFlow. Run it in an environment of its own:

    pip install tensorflow-cpu==2.21.0
    pip download --no-deps tensorflowjs==4.22.0 && unzip tensorflowjs-4.22.0-py3-none-any.whl -d tfjs
    PYTHONPATH=tfjs python make_tensorflow.py
"""

import importlib
import sys
import tempfile
import types
import zipfile
from pathlib import Path

import keras
import numpy as np
import tensorflow as tf
from tensorflow.python.framework.convert_to_constants import convert_variables_to_constants_v2

random = np.random.RandomState(0)


class Net(tf.Module):
    """One layer of each kind."""

    def __init__(self):
        super().__init__()

        def variable(name, *shape):
            return tf.Variable((random.normal(size=shape) * 0.3).astype(np.float32), name=name)

        self.stem = variable("stem/kernel", 3, 3, 3, 8)
        self.bias = variable("stem/bias", 8)
        self.dw = variable("dw/depthwise_kernel", 3, 5, 8, 2)
        self.group = variable("group/kernel", 3, 3, 4, 8)
        self.up = variable("up/kernel", 2, 3, 5, 8)
        self.dil = variable("dil/kernel", 3, 3, 5, 4)
        self.one = variable("one/kernel", 1, 1, 4, 3)

    @tf.function(input_signature=[tf.TensorSpec([None, 16, 16, 3], tf.float32, name="image")])
    def __call__(self, x):
        x = tf.nn.relu(tf.nn.bias_add(tf.nn.conv2d(x, self.stem, [1, 2, 2, 1], "SAME"), self.bias))
        x = tf.nn.depthwise_conv2d(x, self.dw, [1, 1, 1, 1], "SAME")
        x = tf.nn.conv2d(x, self.group, 1, "SAME")
        x = tf.nn.conv2d_transpose(x, self.up, tf.stack([tf.shape(x)[0], 16, 16, 5]), [1, 2, 2, 1], "SAME")
        x = tf.nn.conv2d(x, self.dil, 1, "SAME", dilations=2)
        return {"y": tf.nn.conv2d(x, self.one, 1, "SAME")}


def values(variables, name=lambda variable: variable.name.split(":")[0]):
    return {name(variable): variable.numpy() for variable in variables}


def main(folder):
    net = Net()
    image = random.normal(size=(1, 16, 16, 3)).astype(np.float32)
    np.savez(folder / "net.npz", image=image, y=net(image)["y"].numpy(), **values(net.variables))
    tf.saved_model.save(net, str(folder / "saved"), signatures=net.__call__)
    tf.train.Checkpoint(net=net).write(str(folder / "ckpt2"))
    frozen = convert_variables_to_constants_v2(net.__call__.get_concrete_function()).graph.as_graph_def()
    (folder / "frozen.pb").write_bytes(frozen.SerializeToString())
    converter = tf.lite.TFLiteConverter.from_saved_model(str(folder / "saved"))
    (folder / "net.tflite").write_bytes(converter.convert())
    converter.optimizations = [tf.lite.Optimize.DEFAULT]
    converter.target_spec.supported_types = [tf.float16]
    (folder / "net_f16.tflite").write_bytes(converter.convert())

    model = keras.Sequential(
        [
            keras.Input((16, 16, 3)),
            keras.layers.Conv2D(8, 3, strides=2, name="c1"),
            keras.layers.BatchNormalization(name="bn"),
            keras.layers.SeparableConv2D(6, 3, name="sep"),
            keras.layers.Conv2DTranspose(5, 2, name="up"),
            keras.layers.DepthwiseConv2D(3, name="dw"),
        ],
        name="sequential",
    )
    model.export(str(folder / "keras3"), verbose=False)
    np.savez(folder / "keras3.npz", **values(model.variables, lambda variable: variable.path))
    model.save(str(folder / "model.h5"))
    converter = tf.lite.TFLiteConverter.from_keras_model(model)
    converter.optimizations = [tf.lite.Optimize.DEFAULT]
    converter.representative_dataset = lambda: (
        [random.normal(size=(1, 16, 16, 3)).astype(np.float32)] for _ in range(9)
    )
    int8 = converter.convert()
    (folder / "keras_i8.tflite").write_bytes(int8)

    training(folder)
    javascript(folder)
    for path in (folder / "model.h5", folder / "tf1" / "checkpoint", *folder.glob("*/fingerprint.pb")):
        path.unlink()


def training(folder):
    """A checkpoint of TensorFlow 1 with the graph of its training: gradients, optimiser, moving averages."""
    tf1 = tf.compat.v1
    with tf.Graph().as_default(), tf1.Session() as session:
        image = tf1.placeholder(tf.float32, [None, 8, 8, 1])
        first = tf1.get_variable("a/weights", [3, 3, 1, 4], initializer=tf1.random_normal_initializer(seed=1))
        second = tf1.get_variable("b/weights", [3, 3, 4, 2], initializer=tf1.random_normal_initializer(seed=2))
        x = tf1.nn.relu(tf1.nn.conv2d(image, first, [1, 1, 1, 1], "SAME"))
        loss = tf1.reduce_mean(tf1.nn.conv2d(x, second, [1, 2, 2, 1], "VALID") ** 2)
        average = tf1.train.ExponentialMovingAverage(0.9).apply([first, second])
        step = tf1.train.AdamOptimizer(0.1).minimize(loss)
        session.run(tf1.global_variables_initializer())
        for _ in range(3):
            session.run(step, {image: random.normal(size=(2, 8, 8, 1))})
            session.run(average)
        tf1.train.Saver().save(session, str(folder / "tf1" / "model.ckpt"))
        found = {variable.name.split(":")[0]: session.run(variable) for variable in tf1.global_variables()}
        np.savez(folder / "tf1.npz", **found)


def javascript(folder):
    """What the converter of TensorFlow.js writes; what it imports for other inputs is not needed."""
    for name in ("tensorflow_hub", "tensorflow_decision_forests", "jax", "jax.experimental", "jax.experimental.jax2tf"):
        sys.modules[name] = types.ModuleType(name)
    vars(np).update(object=object, bool=bool)
    for name in ("tensorflowjs", "tensorflowjs.converters"):
        package = types.ModuleType(name)
        package.__path__ = [str(Path(path, *name.split("."))) for path in sys.path]
        sys.modules[name] = package
    graphs = importlib.import_module("tensorflowjs.converters.tf_saved_model_conversion_v2")
    graphs.convert_tf_saved_model(str(folder / "saved"), str(folder / "tfjs_graph"))
    graphs.convert_tf_saved_model(
        str(folder / "saved"),
        str(folder / "tfjs_u8"),
        quantization_dtype_map={"uint8": True},
        weight_shard_size_bytes=500,
    )
    layers = importlib.import_module("tensorflowjs.converters.keras_h5_conversion")
    topology, groups = layers.h5_merged_saved_model_to_tfjs_format(str(folder / "model.h5"))
    (folder / "tfjs_layers").mkdir()
    layers.write_artifacts(topology, groups, str(folder / "tfjs_layers"), quantization_dtype_map={"float16": "*"})


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as name:
        main(Path(name))
        target = Path(__file__).with_name("tensorflow.zip")
        with zipfile.ZipFile(target, "w", zipfile.ZIP_DEFLATED, compresslevel=9) as archive:
            for path in sorted(Path(name).rglob("*")):
                if path.is_file():
                    archive.writestr(
                        zipfile.ZipInfo(str(path.relative_to(name))), path.read_bytes(), zipfile.ZIP_DEFLATED, 9
                    )
