"""Small files that ask for much memory or time: each is read in a process of its own, whose peak is measured."""

from __future__ import annotations

import io
import json
import pickle
import subprocess
import sys
import threading
import zipfile

import h5py
import numpy as np
import pytest
import torch

from cnnfilterdb.core.errors import WeightFileError
from cnnfilterdb.ingest import formats
from cnnfilterdb.ingest.formats import limits

pytestmark = pytest.mark.thorough

# The peak of a process that has imported the readers is some 200 MB
_MAX_MEMORY = 600 << 20
_MAX_SECONDS = 20

_PROGRAM = """
import sys, time, warnings
from pathlib import Path
warnings.simplefilter("ignore")
from cnnfilterdb.core.errors import CnnFilterDbError
from cnnfilterdb.ingest import formats
start, path = time.process_time(), Path(sys.argv[1])
try:
    if path.suffix == ".h5":
        import h5py
        from cnnfilterdb.ingest.formats import frame
        with h5py.File(path) as file:
            frame.read_frame(file["table"], path.name)
    else:
        for layer in formats.read(path).layers:
            layer.read()
except CnnFilterDbError as error:
    print("refused:", error)
else:
    print("read")
peak = next(line for line in open("/proc/self/status") if line.startswith("VmHWM")).split()[1]
print(int(peak) * 1024, time.process_time() - start)
"""


def run(path):
    """Read a file in a child process; what it said, after a check of memory and time."""
    done = subprocess.run(
        [sys.executable, "-P", "-c", _PROGRAM, str(path)], capture_output=True, text=True, timeout=600, check=False
    )
    assert done.returncode == 0, done.stderr
    said, numbers = done.stdout.splitlines()
    memory, seconds = numbers.split()
    assert int(memory) < _MAX_MEMORY
    assert float(seconds) < _MAX_SECONDS
    return said


def npy(array):
    data = io.BytesIO()
    np.save(data, array)
    return data.getvalue()


def deflated(path, members):
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, data in members.items():
            archive.writestr(name, data)
    return path


def one_array(folder):
    return deflated(folder / "a.npz", {"conv/kernel.npy": npy(np.zeros((3, 3, 4096, 4096), np.float32))})


def many_arrays(folder):
    array = npy(np.zeros((3, 3, 512, 768), np.float32))
    return deflated(folder / "a.npz", {f"conv{n}/kernel.npy": array for n in range(44)})


def empty_sets(folder):
    header = npy(np.empty(1, object))
    header = header[: header.index(b"\n") + 1]
    return deflated(folder / "a.npz", {"a.npy": header + b"\x80\x04(" + b"\x8f" * 9_900_000 + b"t."})


def torch_storages(folder):
    torch.save({f"c{n}.weight": torch.zeros(1024, 1024, 3, 3) for n in range(9)}, folder / "stored.pt")
    with zipfile.ZipFile(folder / "stored.pt") as archive:
        return deflated(folder / "a.pt", {name: archive.read(name) for name in archive.namelist()})


def safetensors(path, header, size):
    text = json.dumps(header).encode()
    path.write_bytes(len(text).to_bytes(8, "little") + text + bytes(size))
    return path


def overlapping(folder):
    entry = {"dtype": "F32", "shape": [1024, 1024, 3, 3], "data_offsets": [0, 37_748_736]}
    return safetensors(folder / "a.safetensors", {f"c{n}.weight": entry for n in range(200)}, 37_748_736)


def formatted_text(folder):
    class Net(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.conv = torch.nn.Conv2d(3, 4, 3)

        def forward(self, x):
            return self.conv(x)

    torch.jit.save(torch.jit.script(Net()), str(folder / "small.pt"))
    path = folder / "a.pt"
    with zipfile.ZipFile(folder / "small.pt") as archive, zipfile.ZipFile(path, "w") as changed:
        for name in archive.namelist():
            data = archive.read(name)
            if name.endswith(".py"):
                text = data.decode()
                place = text.index("  def forward")
                line = text.index("\n", place) + 1
                # 3 GB of blanks, where `%` formats a text
                data = f'{text[:line]}    a = torch.remainder("%3000000000d", 1)\n{text[line:]}'.encode()
            changed.writestr(name, data)
    return path


def empty_frame(folder):
    with h5py.File(folder / "a.h5", "w") as file:
        group = file.create_group("table")
        group.attrs["pandas_type"], group.attrs["nblocks"], group.attrs["axis1_variety"] = "frame", 0, "regular"
        for name in ("axis0", "axis1"):
            group[name] = np.zeros(1)
            group[name].attrs["shape"] = [1 << 20, 1 << 10]
    return folder / "a.h5"


def maps_as_keys(folder):
    """MessagePack whose keys are maps in maps: the text of each is twice as long as that of the one in it."""
    key = b"\xa2'\""
    for _ in range(40):
        key = b"\x81" + key + b"\x01"
    path = folder / "a.msgpack"
    path.write_bytes(b"\x82\xa1a\x01" + key + b"\x01")
    return path


class Layout:
    """A sparse tensor's layout, whose name is a list of the same list twice, and so on."""

    def __reduce__(self):
        name = ["torch.strided"]
        for _ in range(60):
            name = [name, name]
        return torch.serialization._get_layout, (name,)


@pytest.mark.parametrize(
    "bomb",
    [one_array, many_arrays, empty_sets, torch_storages, overlapping, empty_frame, maps_as_keys],
    ids=lambda bomb: bomb.__name__,
)
def test_bombs_are_refused(bomb, tmp_path):
    said = run(bomb(tmp_path))
    assert said.startswith(f"refused: {tmp_path}") or said.startswith("refused: a.h5")


def test_a_format_string_of_torchscript_makes_no_text(tmp_path):
    assert run(formatted_text(tmp_path)) == "read"


def test_a_name_that_is_a_container_is_not_written_out(tmp_path):
    (tmp_path / "a.pkl").write_bytes(pickle.dumps({"a.weight": np.ones((4, 2, 3, 3)), "layout": Layout()}))
    assert run(tmp_path / "a.pkl") == "read"


def test_a_hundred_thousand_entries(tmp_path):
    entries = {
        f"c{n}.weight": {"dtype": "F32", "shape": [1, 1, 1, 2], "data_offsets": [8 * n, 8 * n + 8]}
        for n in range(100_000)
    }
    run(safetensors(tmp_path / "a.safetensors", entries, 800_000))


def test_a_plain_file_of_a_size_is_within_its_limits(tmp_path):
    array = np.zeros((3, 3, 64, 128), np.float32)  # grows to a thousand times its size, but is small
    path = deflated(tmp_path / "a.npz", {"conv/kernel.npy": npy(array), "conv/bias.npy": npy(np.zeros(128, "f4"))})
    assert [layer.read().shape for layer in formats.read(path).layers] == [(128, 64, 3, 3)]


def test_each_layer_has_limits_of_its_own(tmp_path):
    path = tmp_path / "a.npz"
    np.savez_compressed(path, **{"c/kernel": np.zeros((3, 3, 1024, 1024), "f4"), "c/bias": np.zeros(1024, "f4")})
    layer = formats.read(path).layers[0]
    for _ in range(5):
        assert layer.read().shape == (1024, 1024, 3, 3)


def test_limits_are_counted():
    used = limits.Limits("a.bin", memory=100, objects=10, steps=10, depth=2)
    used.allocate(100)
    used.create(10)
    used.step(10)
    with used.nested(), used.nested():
        pass
    for excess in (lambda: used.allocate(1), used.create, used.step):
        with pytest.raises(WeightFileError, match=r"^a\.bin: "):
            excess()
    with used.nested(), used.nested(), pytest.raises(WeightFileError, match="levels deep"), used.nested():
        pass


def test_time_is_limited():
    used = limits.Limits("a.bin", memory=1, seconds=0.0)
    with pytest.raises(WeightFileError, match="seconds"):
        used.step()


def test_the_limits_of_a_file_hold_for_what_it_is_read_with():
    with limits.reading("outer", 1_000) as outer:
        before = outer.memory
        assert limits.current() is outer
        with limits.reading("inner", 10) as inner:
            assert inner is outer
        assert outer.memory == before + 10 * limits.GROWTH
        seen = []
        thread = threading.Thread(target=lambda: seen.append(limits.current()))
        thread.start()
        thread.join()
        assert seen[0] is not outer  # a thread that reads something else is not limited by this file
    assert limits.current() is not outer


@pytest.mark.parametrize(("size", "memory"), [(0, 0), (1 << 10, 200 << 10), (1 << 30, 8 << 30), (16 << 20, 512 << 20)])
def test_memory_grows_with_the_file(size, memory):
    assert limits.Limits.of("a", size).memory == memory + (64 << 20)


def test_pickles_of_arrays_pay_for_their_bytes_once(tmp_path):
    # Protocol 2 writes bytes as text; dozens of large arrays are common
    arrays = {f"{n}.weight": np.random.default_rng(n).random((64, 64, 3, 3)) for n in range(12)}
    (tmp_path / "a.pkl").write_bytes(pickle.dumps(arrays, 2))
    assert len(formats.read(tmp_path / "a.pkl").layers) == 12
