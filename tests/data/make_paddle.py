"""Writes paddle.zip: a network as PaddlePaddle saves it, state and inference model. Random weights.

pip install paddlepaddle==3.3.1
FLAGS_enable_pir_api=0 python tests/data/make_paddle.py
"""

import tempfile
import zipfile
from pathlib import Path

import numpy as np
import paddle

OUT = Path(__file__).with_name("paddle.zip")

paddle.seed(0)


class Net(paddle.nn.Layer):
    def __init__(self):
        super().__init__()
        self.stem = paddle.nn.Conv2D(3, 8, 3)
        self.norm = paddle.nn.BatchNorm2D(8)
        self.dw = paddle.nn.Conv2D(8, 8, 3, groups=8, stride=2)
        self.up = paddle.nn.Conv2DTranspose(8, 4, 3)
        self.grouped = paddle.nn.Conv2D(4, 4, (5, 3), groups=2, dilation=(2, 1))

    def forward(self, image):
        return self.grouped(self.up(self.dw(self.norm(self.stem(image)))))


net = Net()
net.eval()
spec = [paddle.static.InputSpec([1, 3, 32, 32], "float32", "image")]
with tempfile.TemporaryDirectory() as folder, zipfile.ZipFile(OUT, "w", zipfile.ZIP_DEFLATED) as archive:
    paddle.save(net.state_dict(), f"{folder}/net.pdparams")
    paddle.jit.save(paddle.jit.to_static(net, input_spec=spec, full_graph=True), f"{folder}/net")
    weights = {name: value.numpy() for name, value in net.state_dict().items()}
    np.savez(f"{folder}/net.npz", **{name.removesuffix(".weight"): w for name, w in weights.items() if w.ndim == 4})
    for file in sorted(Path(folder).glob("net.*")):
        if file.suffix != ".info":
            archive.write(file, file.name)
