"""Networks that TensorFlow itself has written: see tests/data/make_tensorflow.py."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
from torch.nn import functional

from cnnfilterdb.core.errors import CnnFilterDbError
from cnnfilterdb.ingest import formats

_ZIP = Path(__file__).parents[2] / "data" / "tensorflow.zip"


@pytest.fixture(scope="session")
def _unzipped(tmp_path_factory):
    folder = tmp_path_factory.mktemp("tensorflow")
    with zipfile.ZipFile(_ZIP) as archive:
        archive.extractall(folder)
    return folder


@pytest.fixture
def written(_unzipped):
    """Folder of files that TensorFlow has written. Do not write to it."""
    return _unzipped


@pytest.fixture
def copied(_unzipped, tmp_path):
    """The same, to write to."""
    return shutil.copytree(_unzipped, tmp_path / "written")


def _same(size, kernel, stride, dilation):
    """Padding of TensorFlow's SAME: what the output needs, the odd pixel at the end."""
    out = -(-size // stride)
    total = max((out - 1) * stride + (kernel - 1) * dilation + 1 - size, 0)
    return total // 2, total - total // 2


def _compute(layers, image, bias):
    """Run the layers of the network of make_tensorflow.py in PyTorch, by nothing but what was read of them."""
    x = torch.from_numpy(image).permute(0, 3, 1, 2)
    for number, layer in enumerate(layers):
        weight = torch.from_numpy(layer.read().copy())
        if layer.kind == "transposed":
            height, width = x.shape[2] * layer.stride[0], x.shape[3] * layer.stride[1]
            x = functional.conv_transpose2d(x, weight.transpose(0, 1), stride=layer.stride)[:, :, :height, :width]
            continue
        vertical, horizontal = (
            _same(x.shape[2 + i], weight.shape[2 + i], layer.stride[i], layer.dilation[i]) for i in (0, 1)
        )
        x = functional.pad(x, (*horizontal, *vertical))
        x = functional.conv2d(x, weight, stride=layer.stride, dilation=layer.dilation, groups=layer.groups)
        if number == 0:
            x = functional.relu(x + torch.from_numpy(bias)[None, :, None, None])
    return x.permute(0, 2, 3, 1).numpy()


@pytest.fixture
def assert_same_network(written):
    """Asserts that layers compute what TensorFlow computed with the network, and are described correctly."""
    truth = np.load(written / "net.npz")

    def check(layers, tolerance):
        assert [layer.kind for layer in layers] == ["conv", "depthwise", "grouped", "transposed", "conv", "conv"]
        assert [layer.shape for layer in layers] == [
            (8, 3, 3, 3),
            (16, 1, 3, 5),
            (8, 4, 3, 3),
            (5, 8, 2, 3),
            (4, 5, 3, 3),
            (3, 4, 1, 1),
        ]
        assert [layer.in_channels for layer in layers] == [3, 8, 16, 8, 5, 4]
        assert [layer.groups for layer in layers] == [1, 8, 4, 1, 1, 1]
        assert [layer.stride[0] for layer in layers] == [2, 1, 1, 2, 1, 1]
        assert [layer.dilation[1] for layer in layers] == [1, 1, 1, 1, 2, 1]
        assert [layer.conv_depth for layer in layers] == [0, 1, 2, 3, 4, 5]
        assert layers[-1].conv_depth_norm == 1
        assert {layer.depth_source for layer in layers} == {"graph"}
        for layer in layers:
            weight = layer.read()
            assert weight.shape == layer.shape
            assert weight.dtype == np.float32
            assert weight.flags.c_contiguous
        expected = truth["y"]
        assert (
            np.abs(_compute(layers, truth["image"], truth["stem/bias"]) - expected).max()
            <= tolerance * np.abs(expected).max()
        )

    return check


@pytest.fixture
def read_all():
    """Reads a file with all its layers; an error must be one of this package, in one line."""

    def read(path):
        message = None
        try:
            weights = formats.read(path)
            return weights, [layer.read() for layer in weights.layers]
        except CnnFilterDbError as error:
            message = str(error)
        assert "\n" not in message
        return None

    return read


# Damages files at random, and reads them with all their layers
_FUZZ = """
import json, random, sys, time, warnings
from pathlib import Path
warnings.simplefilter("ignore")
from cnnfilterdb.core.errors import CnnFilterDbError
from cnnfilterdb.ingest import formats
from cnnfilterdb.ingest.formats.limits import Limits
formats.registered()

def peak():
    line = next(line for line in open("/proc/self/status") if line.startswith("VmHWM"))
    return int(line.split()[1]) * 1024

def changed(content, number, choose):
    copy = bytearray(content)
    if number % 3 == 0:
        del copy[choose.randrange(len(copy)) :]
    elif number % 3 == 1:
        end = choose.choice((len(copy), min(len(copy), 600)))  # headers decide the most
        for _ in range(choose.choice((1, 8))):
            copy[choose.randrange(end)] ^= 1 << choose.randrange(8)
    else:
        start, end = sorted(choose.randrange(len(copy)) for _ in range(2))
        place = choose.randrange(len(copy))
        copy[place : place + choose.choice((0, end - start))] = content[start:end]
    return bytes(copy)

def read(path):
    try:
        layers = formats.read(path).layers
    except CnnFilterDbError as error:
        assert str(error).isprintable(), error
        return
    for layer in layers:
        try:
            assert layer.read().shape == layer.shape
        except CnnFilterDbError as error:
            assert str(error).isprintable(), error

for model, damaged in json.loads(sys.argv[1]):
    model, damaged = Path(model), Path(damaged)
    content, choose, slowest = damaged.read_bytes(), random.Random(0), 0.0
    read(model)
    before = peak()
    for number in range(int(sys.argv[2])):
        damaged.write_bytes(changed(content, number, choose))
        start = time.process_time()
        read(model)
        slowest = max(slowest, time.process_time() - start)
    allowed = Limits.of("", 2 * model.stat().st_size + 2 * len(content)).memory
    print(json.dumps([str(damaged), slowest, peak() - before, allowed]), flush=True)
"""
_SECONDS, _SLACK = 5, 32 << 20


@pytest.fixture
def survives_damage():
    """Asserts that damaged files are read or refused in one line, within limits of time and memory, in a child process.

    Its arguments are pairs (model, the one of its files that is damaged), and how often each is damaged.
    """

    def check(files, times=100):
        pairs = json.dumps([[str(path) for path in pair] for pair in files])
        done = subprocess.run(
            [sys.executable, "-P", "-c", _FUZZ, pairs, str(times)],
            capture_output=True, text=True, timeout=300, check=False,
        )  # fmt: skip
        assert done.returncode == 0, done.stderr
        results = [json.loads(line) for line in done.stdout.splitlines()]
        assert len(results) == len(files)
        for name, seconds, memory, allowed in results:
            assert seconds < _SECONDS, name
            assert memory < allowed + _SLACK, name

    return check
