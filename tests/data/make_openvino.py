"""Writes tests/data/openvino.zip with OpenVINO itself: pip install openvino==2026.4.1 onnx, then run this file.

One network of random weights with every kind of convolution, as float32, as float16, and its weights as ``net.npz``.
"""

import io
import json
import tempfile
import zipfile
from pathlib import Path

import numpy as np
import openvino as ov
from onnx import TensorProto, helper, numpy_helper

rng = np.random.default_rng(0)
WEIGHTS = {
    "stem": rng.standard_normal((8, 3, 3, 3)),
    "dw": rng.standard_normal((8, 1, 3, 5)),
    "grouped": rng.standard_normal((12, 4, 3, 3)),
    "up": rng.standard_normal((12, 5, 2, 2)),
    "updw": rng.standard_normal((5, 1, 4, 4)),
}
OPTIONS = {
    "stem": {"strides": [2, 2], "pads": [1, 1, 1, 1]},
    "dw": {"group": 8, "dilations": [1, 2], "pads": [1, 4, 1, 4]},
    "grouped": {"group": 2, "pads": [1, 1, 1, 1]},
    "up": {"strides": [2, 2]},
    "updw": {"strides": [2, 2], "group": 5},
}


def counted(path):
    """The constants of a model and their numbers, those at one place of the file once, as OpenVINO reads them."""
    constants = (one for one in ov.Core().read_model(path).get_ops() if one.get_type_name() == "Constant")
    sizes = {one.data.ctypes.data: one.data.size for one in constants}
    return len(sizes), sum(sizes.values())


nodes, last = [], "x"
for name, options in OPTIONS.items():
    kind = "ConvTranspose" if name.startswith("up") else "Conv"
    nodes.append(helper.make_node(kind, [last, f"{name}.weight"], [name], name=name, **options))
    nodes.append(helper.make_node("Relu", [name], [f"{name}_r"]))
    last = f"{name}_r"
graph = helper.make_graph(
    nodes,
    "net",
    [helper.make_tensor_value_info("x", TensorProto.FLOAT, [1, 3, 16, 16])],
    [helper.make_tensor_value_info(last, TensorProto.FLOAT, None)],
    [numpy_helper.from_array(weight.astype(np.float32), f"{name}.weight") for name, weight in WEIGHTS.items()],
)
with tempfile.TemporaryDirectory() as folder:
    source = Path(folder) / "net.onnx"
    source.write_bytes(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)]).SerializeToString())
    model = ov.convert_model(source)
    ov.save_model(model, Path(folder) / "net.xml", compress_to_fp16=False)
    ov.save_model(model, Path(folder) / "net_f16.xml", compress_to_fp16=True)
    truth = io.BytesIO()
    np.savez(truth, **{name: weight.astype(np.float32) for name, weight in WEIGHTS.items()})
    with zipfile.ZipFile(Path(__file__).with_name("openvino.zip"), "w", zipfile.ZIP_DEFLATED) as archive:
        for name in ("net.xml", "net.bin", "net_f16.xml", "net_f16.bin"):
            archive.write(Path(folder) / name, name)
        archive.writestr("net.npz", truth.getvalue())
        counts = {name: counted(Path(folder) / name) for name in ("net.xml", "net_f16.xml")}
        archive.writestr("counts.json", json.dumps(counts))
