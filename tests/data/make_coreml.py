"""Writes tests/data/coreml.zip with coremltools: pip install coremltools, then run this file. Random weights."""

import io
import tempfile
import zipfile
from pathlib import Path

import numpy as np
from coremltools.models import datatypes
from coremltools.models.neural_network import NeuralNetworkBuilder

rng = np.random.default_rng(0)
# (h, w, in / groups, out), as the builder takes them; of a deconvolution (h, w, in, out / groups)
STEM, DEPTHWISE, UP = (rng.standard_normal(shape).astype("f4") for shape in ((3, 3, 3, 8), (3, 5, 1, 8), (2, 2, 8, 5)))

builder = NeuralNetworkBuilder([("x", datatypes.Array(3, 16, 16))], [("y", None)], disable_rank5_shape_mapping=True)
common = {"border_mode": "same", "b": None, "has_bias": False}
builder.add_convolution("stem", 3, 8, 3, 3, 2, 2, groups=1, W=STEM, input_name="x", output_name="a", **common)
builder.add_convolution("dw", 1, 8, 3, 5, 1, 1, groups=8, W=DEPTHWISE, input_name="a", output_name="b", **common)
builder.add_activation("relu", "RELU", "b", "c")
builder.add_convolution(
    "up", 8, 5, 2, 2, 2, 2, groups=1, W=UP, input_name="c", output_name="y", is_deconv=True, **common
)
full = builder.spec.SerializeToString()
half = type(builder.spec).FromString(full)
for layer in half.neuralNetwork.layers:
    if layer.HasField("convolution"):
        numbers = np.array(layer.convolution.weights.floatValue, "f2")
        del layer.convolution.weights.floatValue[:]
        layer.convolution.weights.float16Value = numbers.tobytes()
truth = io.BytesIO()
np.savez(truth, stem=STEM.transpose(3, 2, 0, 1), dw=DEPTHWISE.transpose(3, 2, 0, 1), up=UP.transpose(3, 2, 0, 1))
with (
    tempfile.TemporaryDirectory() as folder,
    zipfile.ZipFile(Path(__file__).with_name("coreml.zip"), "w", zipfile.ZIP_DEFLATED) as archive,
):
    for name, spec in (("net", full), ("net_f16", half.SerializeToString())):
        path = Path(folder) / f"{name}.mlmodel"
        path.write_bytes(spec)
        archive.write(path, path.name)
    archive.writestr("net.npz", truth.getvalue())
