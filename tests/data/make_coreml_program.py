"""Writes coreml_program.zip: programs of Core ML with random weights, plain and compressed, and the weights.

pip install coremltools==9.0
python tests/data/make_coreml_program.py
"""

import json
import tempfile
import zipfile
from pathlib import Path

import coremltools
import coremltools.optimize.coreml as compression
import numpy as np
from coremltools.converters.mil import Builder
from coremltools.converters.mil.frontend.milproto.load import load

OUT = Path(__file__).with_name("coreml_program.zip")
IOS = coremltools.target.iOS15

rng = np.random.default_rng(0)
weights = {
    name: rng.standard_normal(shape).astype(np.float32)
    for name, shape in {"stem": (8, 3, 3, 3), "dw": (8, 1, 3, 3), "up": (8, 4, 3, 3), "grouped": (4, 2, 5, 3)}.items()
}


@Builder.program(input_specs=[Builder.TensorSpec(shape=(1, 3, 32, 32))], opset_version=IOS)
def program(x):
    x = Builder.conv(x=x, weight=weights["stem"], bias=np.ones(8, np.float32), pad_type="same", name="stem")
    x = Builder.relu(x=x)
    x = Builder.conv(x=x, weight=weights["dw"], groups=8, strides=[2, 2], pad_type="same", name="dw")
    x = Builder.conv_transpose(x=x, weight=weights["up"], pad_type="same", name="up")
    return Builder.conv(x=x, weight=weights["grouped"], groups=2, dilations=[2, 1], pad_type="valid", name="grouped")


def read_by_coremltools(model):
    """The weights of a model, decompressed: output of the convolution -> weight."""
    plain = compression.decompress_weights(model)
    found = {}
    for name, weight in compression.get_weights_metadata(plain, weight_threshold=1).items():
        layer = name.partition("_weight")[0]
        if weight.val.ndim == 4:
            found[layer] = weight.val.astype(np.float32)
    return found


def counted(path):
    """The constants of a program that are no texts, and their numbers, as coremltools loads it."""
    model = coremltools.models.MLModel(path, skip_model_load=True)
    specification = model.get_spec()
    found = []
    for function in load(specification, specification.specificationVersion, model.weights_dir).functions.values():
        for one in function.operations:
            if one.op_type == "const":
                found.append(one.outputs[0].val)
            elif one.op_type.startswith("constexpr_"):
                found += [value.val for value in one.inputs.values() if value.op is None]
    sizes = [array.size for array in map(np.asarray, found) if array.dtype.kind != "U"]
    return len(sizes), sum(sizes)


with tempfile.TemporaryDirectory() as folder:
    truth = {f"f32/{name}": weight for name, weight in weights.items()}
    for name, precision in (("f32", coremltools.precision.FLOAT32), ("f16", coremltools.precision.FLOAT16)):
        model = coremltools.convert(
            program, convert_to="mlprogram", compute_precision=precision, minimum_deployment_target=IOS
        )
        model.save(f"{folder}/{name}.mlpackage")
    model = coremltools.models.MLModel(f"{folder}/f32.mlpackage", skip_model_load=True)
    affine = compression.OpLinearQuantizerConfig(mode="linear_symmetric", weight_threshold=1)
    palette = compression.OpPalettizerConfig(nbits=4, weight_threshold=1)
    pruned = compression.OpThresholdPrunerConfig(threshold=0.5, minimum_sparsity_percentile=0.1, weight_threshold=1)
    for name, method, config in (
        ("q8", compression.linear_quantize_weights, affine),
        ("p4", compression.palettize_weights, palette),
        ("sparse", compression.prune_weights, pruned),
    ):
        small = method(model, compression.OptimizationConfig(global_config=config))
        small.save(f"{folder}/{name}.mlpackage")
        small = coremltools.models.MLModel(f"{folder}/{name}.mlpackage", skip_model_load=True)
        truth |= {f"{name}/{layer}": weight for layer, weight in read_by_coremltools(small).items()}
    np.savez(f"{folder}/net.npz", **truth)
    counts = {
        f"{name}.mlpackage": counted(f"{folder}/{name}.mlpackage") for name in ("f32", "f16", "q8", "p4", "sparse")
    }
    Path(folder, "counts.json").write_text(json.dumps(counts))
    with zipfile.ZipFile(OUT, "w", zipfile.ZIP_DEFLATED) as archive:
        for file in sorted(Path(folder).rglob("*")):
            if file.is_file():
                archive.write(file, file.relative_to(folder))
