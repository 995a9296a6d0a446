"""Writes tests/data/coreml.zip with coremltools: pip install coremltools==9.0, then run this file. Random weights.

A network as float32, as float16, and quantised: by steps, by a table, and by less than 8 bits. Beside it its weights,
those of the quantised networks as coremltools dequantises them, and how many weights it finds in each file.
"""

import io
import json
import tempfile
import zipfile
from pathlib import Path

import numpy as np
from coremltools.models import datatypes
from coremltools.models.neural_network import NeuralNetworkBuilder, quantization_utils

rng = np.random.default_rng(0)
# (h, w, in / groups, out), as the builder takes them; of a deconvolution (h, w, in, out / groups)
STEM, DEPTHWISE, UP = (rng.standard_normal(shape).astype("f4") for shape in ((3, 3, 3, 8), (3, 5, 1, 8), (2, 2, 8, 5)))
QUANTISED = {
    "net_linear8": (8, "_linear_quantization"),
    "net_linear3": (3, "_linear_quantization"),
    "net_table4": (4, "_lookup_table_quantization_linear"),
}


builder = NeuralNetworkBuilder([("x", datatypes.Array(3, 16, 16))], [("y", None)], disable_rank5_shape_mapping=True)
common = {"border_mode": "same", "b": None, "has_bias": False}
builder.add_convolution("stem", 3, 8, 3, 3, 2, 2, groups=1, W=STEM, input_name="x", output_name="a", **common)
builder.add_batchnorm("norm", 8, *(np.ones(8) for _ in range(4)), input_name="a", output_name="n")
builder.add_convolution("dw", 1, 8, 3, 5, 1, 1, groups=8, W=DEPTHWISE, input_name="n", output_name="b", **common)
builder.add_activation("relu", "PRELU", "b", "c", params=np.ones(8))
builder.add_convolution(
    "up", 8, 5, 2, 2, 2, 2, groups=1, W=UP, input_name="c", output_name="d", is_deconv=True, **common
)
builder.add_inner_product("fc", np.ones((4, 5)), np.ones(4), 5, 4, has_bias=True, input_name="d", output_name="e")
builder.add_unilstm(
    "lstm", [np.ones((3, 4))] * 4, [np.ones((3, 3))] * 4, [np.ones(3)] * 4, 3, 4, ["e", "h", "s"], ["y", "i", "t"]
)


def counted(message):
    """How many numbers each weight of a network has."""
    found = []
    for field, value in message.ListFields():
        for one in value if field.is_repeated else [value]:
            if getattr(field.message_type, "name", "") == "WeightParams":
                bits = one.quantization.numberOfBits or 8
                found.append(len(one.floatValue) or len(one.float16Value) // 2 or len(one.rawValue) * 8 // bits)
            elif field.message_type is not None:
                found += counted(one)
    return [size for size in found if size]


def shape_of(convolution):
    """Shape of the weight, of a deconvolution with inputs first."""
    sides = (convolution.outputChannels, convolution.kernelChannels)
    return (*(sides[::-1] if convolution.isDeconvolution else sides), *convolution.kernelSize)


def weights_of(spec):
    """The weights of the convolutions, with outputs first."""
    found = {}
    for layer in spec.neuralNetwork.layers:
        if layer.HasField("convolution"):
            one = layer.convolution
            weight = np.array(one.weights.floatValue, "f4").reshape(shape_of(one))
            found[layer.name] = weight.swapaxes(0, 1) if one.isDeconvolution else weight
    return found


specs = {"net": builder.spec}
truth = weights_of(builder.spec)
half = specs["net_f16"] = type(builder.spec).FromString(builder.spec.SerializeToString())
for layer in half.neuralNetwork.layers:
    if layer.HasField("convolution"):
        numbers = np.array(layer.convolution.weights.floatValue, "f2")
        del layer.convolution.weights.floatValue[:]
        layer.convolution.weights.float16Value = numbers.tobytes()
for name, (bits, mode) in QUANTISED.items():
    small = type(builder.spec).FromString(builder.spec.SerializeToString())
    layers = [one.convolution for one in small.neuralNetwork.layers if one.HasField("convolution")]
    for one in layers:
        quantization_utils._quantize_wp_field(one.weights, bits, mode, shape_of(one), axis=int(one.isDeconvolution))
    specs[name] = type(small).FromString(small.SerializeToString())
    for one in layers:
        quantization_utils._dequantize_wp(one.weights, shape_of(one), axis=int(one.isDeconvolution))
    truth |= {f"{name}/{layer}": weight for layer, weight in weights_of(small).items()}
file = io.BytesIO()
np.savez(file, **truth)
with (
    tempfile.TemporaryDirectory() as folder,
    zipfile.ZipFile(Path(__file__).with_name("coreml.zip"), "w", zipfile.ZIP_DEFLATED) as archive,
):
    for name, spec in specs.items():
        path = Path(folder) / f"{name}.mlmodel"
        path.write_bytes(spec.SerializeToString())
        archive.write(path, path.name)
    archive.writestr("net.npz", file.getvalue())
    sizes = {f"{name}.mlmodel": counted(spec) for name, spec in specs.items()}
    archive.writestr("counts.json", json.dumps({name: (len(one), sum(one)) for name, one in sizes.items()}))
