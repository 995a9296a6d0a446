"""Writes tests/data/ncnn.zip with pnnx, the converter of ncnn: pip install pnnx==20261020 torch==2.13.0, then run this.

One network of random weights with every kind of convolution and of other layers, as float32 and as float16, and its
weights as ``net.npz``: those that pnnx makes of a normalisation are fused here by PyTorch.
"""

import subprocess
import sysconfig
import tempfile
import zipfile
from pathlib import Path

import numpy as np
import torch
from torch import nn

torch.manual_seed(0)


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3, padding=1)
        self.norm = nn.BatchNorm2d(8)
        self.dw = nn.Conv2d(8, 8, 3, groups=8, padding=1, bias=False)
        self.norms = nn.Sequential(nn.GroupNorm(2, 8), nn.InstanceNorm2d(8, affine=True), nn.PReLU(8))
        self.grouped = nn.Conv2d(8, 12, 3, groups=2, padding=1)
        self.up = nn.ConvTranspose2d(12, 6, 2, stride=2)
        self.updw = nn.ConvTranspose2d(6, 6, 3, groups=3, padding=1)
        self.head = nn.Conv2d(6, 4, (5, 3), padding=(2, 1))
        self.position = nn.Parameter(torch.randn(1, 4, 16))
        self.layer_norm = nn.LayerNorm(16)
        self.attention = nn.MultiheadAttention(16, 2, batch_first=True)
        self.lstm = nn.LSTM(16, 10, bidirectional=True, batch_first=True)
        self.gru = nn.GRU(20, 7, batch_first=True)
        self.flat = nn.Conv1d(7, 5, 3, padding=1)
        self.linear = nn.Linear(32, 9)

    def forward(self, x):
        x = self.norms(self.dw(torch.relu(self.norm(self.stem(x)))))
        x = self.head(self.updw(self.up(self.grouped(x)))).mean(2)
        t = self.layer_norm(x[:, :, :16]) + self.position
        t = self.gru(self.lstm(self.attention(t, t, t, need_weights=False)[0])[0])[0]
        return self.linear(x), self.flat(t.permute(0, 2, 1))


net = Net().eval()
with torch.no_grad():
    net.norm.running_mean.normal_()
    net.norm.running_var.uniform_(0.5, 2)
truth = {name: value.detach().numpy() for name, value in net.state_dict().items() if name.endswith("weight")}
truth["stem.weight"] = nn.utils.fusion.fuse_conv_bn_eval(net.stem, net.norm).weight.detach().numpy()

with (
    tempfile.TemporaryDirectory() as folder,
    zipfile.ZipFile(Path(__file__).with_name("ncnn.zip"), "w", zipfile.ZIP_DEFLATED) as archive,
):
    torch.jit.trace(net, torch.randn(1, 3, 16, 16), check_trace=False).save(f"{folder}/net.pt")
    for name, half in (("net", 0), ("net_f16", 1)):
        files = [f"{folder}/{name}.{suffix}" for suffix in ("param", "bin")]
        options = [f"fp16={half}", f"ncnnparam={files[0]}", f"ncnnbin={files[1]}"]
        program = Path(sysconfig.get_path("scripts"), "pnnx")
        subprocess.run([program, f"{folder}/net.pt", "inputshape=[1,3,16,16]", *options], check=True, cwd=folder)
        for file in files:
            archive.write(file, Path(file).name)
    np.savez(f"{folder}/net.npz", **truth)
    archive.write(f"{folder}/net.npz", "net.npz")
