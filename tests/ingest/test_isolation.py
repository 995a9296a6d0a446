import json
import os
import sys
import threading

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.numpy import save_file

from cnnfilterdb.core.errors import UnsafeFileError, WeightFileError
from cnnfilterdb.ingest import formats, isolation
from cnnfilterdb.ingest.isolation import FileReader, IsolatedReader
from cnnfilterdb.ingest.network.folding import folded
from cnnfilterdb.ingest.network.layers import ConvLayer, Weights


@pytest.fixture(scope="module")
def reader():
    with IsolatedReader() as reader:
        yield reader


@pytest.fixture
def net(tmp_path):
    rng = np.random.default_rng(0)
    path = tmp_path / "net.safetensors"
    tensors = {
        "a.weight": rng.normal(size=(8, 4, 3, 3)),
        "b.weight": rng.normal(size=(4, 8, 5, 5)),
        "empty.weight": rng.normal(size=(0, 8, 3, 3)),
        "\ud7ff\u00e4.weight": rng.normal(size=(2, 2, 1, 7)),
    }
    save_file({name: value.astype(np.float32) for name, value in tensors.items()}, path)
    return path


def facts(layer):
    return {
        name: getattr(layer, name) for name in type(layer).__dataclass_fields__ if name not in ("read", "batch_norm")
    }


def test_a_file_reads_as_it_does_in_this_process(reader, net):
    here, there = formats.read(net), reader.read(net)
    assert (there.format, there.framework, there.parameters) == (here.format, here.framework, here.parameters)
    assert there.skipped == here.skipped
    assert [facts(layer) for layer in there.layers] == [facts(layer) for layer in here.layers]
    # In any order, and more than once
    for one, other in [*zip(here.layers, there.layers, strict=True)][::-1] * 2:
        array = other.read()
        assert (array.dtype, array.flags.c_contiguous, array.flags.writeable) == (np.float32, True, True)
        np.testing.assert_array_equal(array, one.read())


def test_batch_normalisations_are_folded_alike(reader, tmp_path):
    torch = pytest.importorskip("torch")

    net = torch.nn.Sequential(torch.nn.Conv2d(3, 8, 3), torch.nn.BatchNorm2d(8), torch.nn.ReLU()).eval()
    with torch.no_grad():
        net[1].weight.uniform_(0.5, 2)
        net[1].running_var.uniform_(0.5, 2)
    path = tmp_path / "net.onnx"
    torch.onnx.export(
        net, (torch.zeros(1, 3, 9, 9),), str(path), dynamo=False, do_constant_folding=False,
        training=torch.onnx.TrainingMode.PRESERVE,
    )  # fmt: skip
    here, there = formats.read(path).layers, reader.read(path).layers
    assert [layer.batch_norm is None for layer in there] == [layer.batch_norm is None for layer in here]
    for one, other in zip(here, there, strict=True):
        np.testing.assert_array_equal(folded(other).read(), folded(one).read())


def answers_of(reader, monkeypatch):
    """The answers that a reader gets from its child from now on."""
    answers, ask = [], reader._ask

    def recorded(request):
        answer, data = ask(request)
        answers.append(answer)
        return answer, data

    monkeypatch.setattr(reader, "_ask", recorded)
    return answers


def saved(kind, folder, weight):
    """A file in which a weight is stored as it is used, unless its numbers are converted."""
    if kind.startswith("torch"):
        torch = pytest.importorskip("torch")
        path = folder / "net.pt"
        torch.save({"a.weight": torch.from_numpy(weight)}, path, _use_new_zipfile_serialization=kind == "torch zip")
    elif kind == "shards":
        path = folder / "model.safetensors.index.json"
        shard = "model-00001-of-00001.safetensors"
        save_file({"a.weight": weight}, folder / shard)
        path.write_text(json.dumps({"metadata": {}, "weight_map": {"a.weight": shard}}))
    else:
        path = folder / "net.safetensors"
        save_file({"a.weight": weight}, path)
    return path


@pytest.mark.parametrize("dtype", [np.float32, np.float16])
@pytest.mark.parametrize("kind", ["safetensors", "shards", "torch zip", "torch legacy"])
def test_weights_that_are_stored_as_they_are_used_are_read_from_the_file(reader, tmp_path, monkeypatch, kind, dtype):
    weight = np.random.default_rng(0).normal(size=(8, 4, 3, 3)).astype(dtype)
    path = saved(kind, tmp_path, weight)
    answers = answers_of(reader, monkeypatch)
    (layer,) = reader.read(path).layers
    found = layer.read()
    np.testing.assert_array_equal(found, weight.astype(np.float32))
    assert found.flags.writeable
    stored = dtype == np.float32
    assert ("file" in answers[-1], "bytes" in answers[-1]) == (stored, not stored)


@given(st.data())
@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_views_of_storages_are_the_tensors_that_pytorch_loads(reader, tmp_path, data):
    torch = pytest.importorskip("torch")
    sides = st.integers(1, 4)
    storage = torch.arange(4096, dtype=torch.float32)
    state = {}
    for number in range(data.draw(st.integers(1, 3))):
        shape = [data.draw(sides) + 1, data.draw(sides), 3, data.draw(st.integers(2, 3))]
        strides = [data.draw(st.integers(0, 40)) for _ in shape] if data.draw(st.booleans()) else None
        if strides is None:
            strides = torch.empty(shape).stride()
        state[f"{number}.weight"] = torch.as_strided(storage, shape, strides, data.draw(st.integers(0, 99)))
    path = tmp_path / "net.pt"
    torch.save(state, path, _use_new_zipfile_serialization=data.draw(st.booleans()))
    found = {f"{layer.name}.weight": layer.read() for layer in reader.read(path).layers}
    for name, weight in torch.load(path).items():
        if name in found:
            np.testing.assert_array_equal(found[name], weight.numpy())
    assert found


def test_a_file_that_becomes_shorter_while_it_is_read(net):
    with IsolatedReader() as reader:
        layers = reader.read(net).layers
        layers[0].read()
        os.truncate(net, 1000)
        for layer in layers[:2]:
            with pytest.raises(WeightFileError, match=r"net\.safetensors: became shorter while it was read"):
                layer.read()


def test_a_child_can_only_name_files_beside_the_one_that_is_open(net, tmp_path):
    secret = tmp_path / "secret.txt"
    secret.write_bytes(b"password")
    inner = tmp_path / "inner"
    inner.mkdir()
    with IsolatedReader() as reader:
        reader.read(net.rename(inner / net.name))
        for name in (str(secret), "../secret.txt"):
            with pytest.raises(WeightFileError, match="became shorter"):
                reader._stored(name, 0, 8)
        size = (inner / net.name).stat().st_size
        for start, length in ((-1, 4), (0, size + 1), (size, 1), (4, -1)):
            with pytest.raises(WeightFileError, match="became shorter"):
                reader._stored(net.name, start, length)


def test_errors_are_those_of_the_readers(reader, tmp_path, net):
    import pickle

    class Hostile:
        def __reduce__(self):
            return os.system, (f"touch {tmp_path / 'canary'}",)

    (tmp_path / "page.pth").write_text("<html></html>")
    (tmp_path / "hostile.pth").write_bytes(pickle.dumps(Hostile(), protocol=2))
    for name, kind in (("page.pth", WeightFileError), ("hostile.pth", UnsafeFileError), ("gone.pt", WeightFileError)):
        with pytest.raises(WeightFileError) as here:
            formats.read(tmp_path / name)
        with pytest.raises(WeightFileError) as there:
            reader.read(tmp_path / name)
        assert type(there.value) is type(here.value) is kind
        assert str(there.value) == str(here.value)
    assert not (tmp_path / "canary").exists()
    assert reader.read(net).layers


def test_layers_of_a_file_that_was_left(reader, net):
    layer = reader.read(net).layers[0]
    reader.read(net)
    with pytest.raises(Exception, match="no longer open"):
        layer.read()


def test_a_format_that_only_this_process_knows_is_read_in_it(net, monkeypatch):
    formats.registered()
    monkeypatch.setattr(formats, "_formats", dict(formats._formats))

    @formats.register
    class Raw:
        name = "raw"
        suffixes = (".raw",)

        def matches(self, path, head):
            return head.startswith(b"RAWKERN") or path.suffix == ".safetensors"

        def read(self, path):
            weight = np.ones((8, 8, 3, 3), np.float32)
            return Weights("raw", "pytorch", (ConvLayer("conv", weight.shape, read=lambda: weight),), weight.size)

    raw = net.with_name("a.raw")
    raw.write_bytes(b"RAWKERN")
    with FileReader() as read:
        assert [layer.read().shape for layer in read(raw).layers] == [(8, 8, 3, 3)]
        # All others are still read in the child, also those that it would take from a format of the package
        monkeypatch.setattr(formats, "read", None)
        found = read(net)
        assert found.format == "safetensors"
        assert found.layers[0].read().shape == (8, 4, 3, 3)
        with pytest.raises(WeightFileError, match="cannot be opened"):
            read(net.with_name("gone.pt"))


# Readers that do what limits are for: the child runs them in the place of formats.read.
MISBEHAVING = {
    "memory": "import numpy; numpy.ones(1 << 30)",
    "slow": "import time; time.sleep(600)",
    "busy": "while True: pass",
    "crash": "import os; os.abort()",
    "exit": "import os; os._exit(0)",
    "chatter": "print('not an answer'); import os; os.write(1, b'nor this\\n'); raise ValueError('bad')",
    "recursion": "f = lambda: f(); f()",
}


@pytest.mark.parametrize("kind", MISBEHAVING)
def test_a_misbehaving_reader_fails_one_file(net, monkeypatch, kind):
    start = isolation._START.replace(
        "serve()",
        "from cnnfilterdb.ingest import formats; whole = formats.read\n"
        "def read(path, **asked):\n"
        f"    if path.name.startswith('bad'): exec({MISBEHAVING[kind]!r}, {{}})\n"
        "    return whole(path, **asked)\n"
        "formats.read = read; serve()",
    )
    monkeypatch.setattr(isolation, "_START", start)
    bad = net.rename(net.with_name("bad.safetensors"))
    good = net.with_name("good.safetensors")
    good.write_bytes(bad.read_bytes())
    with IsolatedReader(memory=1 << 30, seconds=20 if kind != "slow" else 2) as reader:
        reader.start()
        assert reader.read(good).layers
        reader._seconds = 1.0 if kind in ("slow", "busy") else 60.0
        expected = {"slow": "takes too long", "busy": "takes too long", "chatter": "bad", "recursion": "recursion"}
        with pytest.raises(WeightFileError, match=expected.get(kind, "takes too much memory or crashes")) as caught:
            reader.read(bad)
        assert str(bad) in str(caught.value)
        assert "\n" not in str(caught.value)
        reader._seconds = 60.0
        assert len(reader.read(good).layers) == len(formats.read(good).layers)


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux limits address space")
def test_memory_is_limited_for_each_file(net, monkeypatch):
    monkeypatch.setattr(isolation, "_GROWTH", 0)
    shape, size = (1 << 12, 1 << 8, 7, 7), (1 << 20) * 49 * 8  # 400 MB as float64 become 200 MB more as float32
    header = json.dumps({"a.weight": {"dtype": "F64", "shape": shape, "data_offsets": [0, size]}}).encode()
    big = net.with_name("big.safetensors")
    with big.open("wb") as file:
        file.write(len(header).to_bytes(8, "little") + header)
        file.truncate(8 + len(header) + size)

    def read(memory):
        with IsolatedReader(memory=memory) as reader:
            return [layer.read().shape for layer in reader.read(big).layers]

    assert read(4 << 30) == [shape]
    with pytest.raises(WeightFileError, match="takes too much memory"):
        read(0)


@pytest.mark.parametrize(
    "message", ["field 'target' is required for AnnAssign", "/lib/a.so: failed to map segment from shared object"]
)
def test_a_module_for_which_there_is_no_memory_is_a_lack_of_memory(net, monkeypatch, message):
    answer = json.dumps({"error": ["ValueError", message]})
    monkeypatch.setattr(isolation, "_START", f"import sys; sys.stdin.readline(); print({answer!r}, flush=True)")
    with IsolatedReader() as reader, pytest.raises(WeightFileError, match="takes too much memory"):
        reader.read(net)


def test_nothing_is_left_behind(net):
    with IsolatedReader() as reader:
        layers = reader.read(net).layers
        child = reader._child
        threads = [threading.Thread(target=layer.read) for layer in layers]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert child.poll() is not None


def test_a_python_that_cannot_be_started(net, monkeypatch):
    monkeypatch.setattr(sys, "executable", "/nonexistent/python")
    with IsolatedReader() as reader, pytest.raises(Exception, match="set CNNFILTERDB_ISOLATION=off"):
        reader.read(net)


@pytest.mark.parametrize(("value", "expected"), [("", True), ("on", True), ("off", False), ("0", False), ("No", False)])
def test_the_switch(monkeypatch, value, expected):
    monkeypatch.setenv("CNNFILTERDB_ISOLATION", value)
    assert isolation.enabled() is expected
