"""Writes onnxruntime.zip: one network as ONNX Runtime saves it, plain and for one processor. Random weights.

pip install onnx onnxruntime==1.32.0
python tests/data/make_onnxruntime.py
"""

import tempfile
import zipfile
from pathlib import Path

import numpy as np
import onnxruntime
from onnx import TensorProto, helper, numpy_helper

OUT = Path(__file__).with_name("onnxruntime.zip")

rng = np.random.default_rng(0)
shapes = {"stem": (16, 3, 3, 3), "dw": (16, 1, 3, 3), "up": (16, 4, 3, 3), "grouped": (4, 2, 5, 3)}
weights = {name: rng.standard_normal(shape).astype(np.float32) for name, shape in shapes.items()}
nodes = [
    helper.make_node("Conv", ["x", "stem"], ["a"], pads=[1] * 4),
    helper.make_node("Relu", ["a"], ["b"]),
    helper.make_node("Conv", ["b", "dw"], ["c"], group=16, strides=[2, 2], pads=[1] * 4),
    helper.make_node("ConvTranspose", ["c", "up"], ["d"]),
    helper.make_node("Conv", ["d", "grouped"], ["y"], group=2, dilations=[2, 1]),
]
image = helper.make_tensor_value_info("x", TensorProto.FLOAT, [1, 3, 32, 32])
result = helper.make_tensor_value_info("y", TensorProto.FLOAT, None)
constants = [numpy_helper.from_array(weight, name) for name, weight in weights.items()]
graph = helper.make_graph(nodes, "net", [image], [result], constants)
model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)

LEVELS = {"net": "ORT_ENABLE_BASIC", "blocked": "ORT_ENABLE_ALL"}
with tempfile.TemporaryDirectory() as folder, zipfile.ZipFile(OUT, "w", zipfile.ZIP_DEFLATED) as archive:
    for name, level in LEVELS.items():
        options = onnxruntime.SessionOptions()
        options.graph_optimization_level = getattr(onnxruntime.GraphOptimizationLevel, level)
        options.optimized_model_filepath = f"{folder}/{name}.ort"
        options.add_session_config_entry("session.save_model_format", "ORT")
        onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    np.savez(f"{folder}/net.npz", **weights)
    for file in sorted(Path(folder).iterdir()):
        archive.write(file, file.name)
