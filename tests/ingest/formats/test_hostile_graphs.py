"""Small files of models with a graph, or of Keras, that ask for much memory or time.

All are read by one child process, which reports its peak memory after each: no file may take more than its limits.
"""

from __future__ import annotations

import json
import struct
import subprocess
import sys
import zipfile

import h5py
import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from cnnfilterdb.ingest.formats.limits import Limits

pytestmark = pytest.mark.thorough

_SECONDS = 20
_SLACK = 48 << 20  # modules that a reader imports when it is used

_PROGRAM = """
import json, sys, time, warnings
from pathlib import Path
warnings.simplefilter("ignore")
from cnnfilterdb.core.errors import CnnFilterDbError
from cnnfilterdb.ingest import formats
import onnx.reference
formats.registered()

def peak():
    line = next(line for line in open("/proc/self/status") if line.startswith("VmHWM"))
    return int(line.split()[1]) * 1024

before = peak()
for name in sys.argv[1:]:
    start = time.process_time()
    try:
        for layer in formats.read(Path(name)).layers:
            layer.read()
    except CnnFilterDbError as error:
        said = str(error)
    else:
        said = None
    print(json.dumps([Path(name).name, said, time.process_time() - start, peak() - before]), flush=True)
"""


# ---------------------------------------------------------------------------------------------------------------------
# The files


def _values(*names):
    return [helper.make_tensor_value_info(name, TensorProto.FLOAT, None) for name in names]


def _onnx(path, nodes, functions=(), **more):
    graph = helper.make_graph(nodes, "g", _values("x"), _values("y"), **more)
    path.write_bytes(helper.make_model(graph, functions=functions).SerializeToString())
    return path


def constant_chain(folder):
    """A few bytes that expand to half a gigabyte, eight times over."""
    chain = [helper.make_node("Neg", [f"e{n}"], [f"e{n + 1}"]) for n in range(8)]
    sides = numpy_helper.from_array(np.array([(1 << 27) // 9, 1, 3, 3]), "s")
    return _onnx(
        folder / "chain.onnx",
        [helper.make_node("Expand", ["c", "s"], ["e0"]), *chain, helper.make_node("Conv", ["x", "e8"], ["y"])],
        initializer=[numpy_helper.from_array(np.float32([1]), "c"), sides],
    )


def sparse_tensor(folder):
    one, place = (numpy_helper.from_array(np.array([value]), name) for value, name in ((np.float32(1), "w"), (0, "i")))
    sparse = helper.make_sparse_tensor(one, place, [(1 << 27) // 9, 1, 3, 3])
    return _onnx(folder / "sparse.onnx", [helper.make_node("Conv", ["x", "w"], ["y"])], sparse_initializer=[sparse])


def doubling_functions(folder):
    functions = []
    for level in range(40):
        called = [helper.make_node(f"f{level + 1}", [a], [b], domain="d") for a, b in ("ab", "bc")]
        body = called if level < 39 else [helper.make_node("Neg", ["a"], ["c"])]
        imports = [helper.make_opsetid("", 18), helper.make_opsetid("d", 1)]
        functions.append(helper.make_function("d", f"f{level}", ["a"], ["c"], body, imports))
    return _onnx(folder / "functions.onnx", [helper.make_node("f0", ["x"], ["y"], domain="d")], functions)


def empty_nodes(folder):
    graph = onnx.GraphProto(name="g")
    path = folder / "nodes.onnx"
    path.write_bytes(b"\x08\x08\x3a" + _varint(2 << 19) + graph.SerializeToString() + b"\x0a\x00" * ((2 << 18) - 2))
    content = bytearray(path.read_bytes())
    size = len(content) - 3 - len(_varint(2 << 19))
    path.write_bytes(b"\x08\x08\x3a" + _varint(size) + bytes(content[-size:]))
    return path


def _varint(number):
    out = bytearray()
    while number > 127:
        out.append(number & 127 | 128)
        number >>= 7
    return bytes([*out, number])


def _field(number, content):
    return _varint(number << 3 | 2) + _varint(len(content)) + content


def functions_without_operations(folder):
    """Functions that call two more each, sixty levels deep, and compute nothing."""

    def node(name, op):
        return _field(1, name) + _field(2, op)

    library = b""
    for level in range(50):
        calls = b"".join(_field(3, node(name, b"f%d" % (level + 1))) for name in (b"a", b"b")) if level < 49 else b""
        library += _field(1, _field(1, _field(1, b"f%d" % level)) + calls)
    first = _field(1, node(b"x", b"Placeholder") + _field(3, b"x"))
    path = folder / "functions.pb"
    path.write_bytes(first + _field(1, node(b"y", b"f0")) + _field(2, library))
    return path


def nodes_of_two_bytes(folder):
    path = folder / "nodes.pb"
    path.write_bytes(_field(1, _field(1, b"x") + _field(2, b"Placeholder") + _field(3, b"x")) + b"\x0a\x00" * 1_000_000)
    return path


def long_keys(folder):
    """Keys of 4,000 letters, which share all of them but the last few with the one before."""
    entries = _varint(0) + _varint(4000) + _varint(0) + b"k" * 4000
    for number in range(50_000):
        added = b"%05d" % number
        entries += _varint(4000 - 5 if number else 3995) + _varint(5) + _varint(0) + added
    block = entries + struct.pack("<II", 0, 1)
    data = block + bytes(5)
    handle = _varint(0) + _varint(len(block))
    index = _varint(0) + _varint(1) + _varint(len(handle)) + b"z" + handle + struct.pack("<II", 0, 1)
    footer = (_varint(0) * 2 + _varint(len(data)) + _varint(len(index))).ljust(40, b"\0")
    magic = (0xDB4775248B80FB57).to_bytes(8, "little")
    path = folder / "keys.index"
    path.write_bytes(data + index + bytes(5) + footer + magic)
    return path


def shared_tables(folder):
    """Twenty thousand offsets to one table, whose shape has twenty thousand sides."""
    count = 20_000
    # model: version, codes, graphs; graph: tensors; tensor: shape. Each table has its vtable in front.
    file = bytearray(struct.pack("<I4s", 0, b"TFL3"))

    def table(slots):
        """A table of offsets, to be filled in; its position."""
        vtable = len(file)
        file.extend(struct.pack(f"<{2 + slots}H", 4 + 2 * slots, 4 + 4 * slots, *(4 + 4 * n for n in range(slots))))
        file.extend(bytes(-len(file) % 4))
        position = len(file)
        file.extend(struct.pack("<i", position - vtable) + bytes(4 * slots))
        return position

    def point(place, target):
        file[place : place + 4] = struct.pack("<I", target - place)

    model = table(3)
    file[0:4] = struct.pack("<I", model)
    point(model + 8, len(file))  # operator codes: none
    file.extend(struct.pack("<I", 0))
    point(model + 12, len(file))
    file.extend(struct.pack("<II", 1, 0))
    graphs = len(file) - 4
    graph = table(1)
    point(graphs, graph)
    tensors = len(file)
    point(graph + 4, tensors)
    file.extend(struct.pack("<I", count) + bytes(4 * count))
    tensor = table(1)
    for number in range(count):
        point(tensors + 4 + 4 * number, tensor)
    point(tensor + 4, len(file))
    file.extend(struct.pack("<I", count) + struct.pack("<i", 1) * count)
    # The first slot of the model is its version, not an offset
    file[model + 4 : model + 8] = struct.pack("<I", 3)
    path = folder / "tables.tflite"
    path.write_bytes(file)
    return path


def _numbered_weights(path, **options):
    with h5py.File(path, "w") as file:
        group = file.create_group("layers/conv2d/vars")
        group.create_dataset("0", dtype="f4", **options)
    return path


def fill_value(folder):
    return _numbered_weights(folder / "fill.weights.h5", shape=(3, 3, 1 << 12, 1 << 13), fillvalue=0.5)


def large_chunk(folder):
    options = {"shape": (1, 1, 1, 1), "maxshape": (None,) * 4, "chunks": (3, 3, 1 << 12, 1 << 13)}
    return _numbered_weights(folder / "chunk.weights.h5", **options, compression="gzip")


def one_text_for_many(folder):
    """A list of names that all stand for one text of a megabyte."""
    path = folder / "texts.h5"
    with h5py.File(path, "w") as file:
        file.attrs["model_config"] = "x" * (1 << 20)
        file.attrs.create("layer_names", ["a" * 900] * 4000, dtype=h5py.string_dtype())
    content = bytearray(path.read_bytes())
    # Make every name refer to the first object of the heap that has the long text
    long_text = content.index(b"x" * 1000) - 16
    heap = content.rindex(b"GCOL", 0, long_text)
    reference = struct.pack("<IQI", 1 << 20, heap, int.from_bytes(content[long_text : long_text + 2], "little"))
    place = 0
    while (place := content.find(struct.pack("<I", 900), place)) >= 0:
        address = int.from_bytes(content[place + 4 : place + 12], "little")
        if content[address : address + 4] == b"GCOL":
            content[place : place + 16] = reference
        place += 4
    path.write_bytes(content)
    return path


def deflated_archive(folder):
    weights = _numbered_weights(folder / "zeros.weights.h5", data=np.zeros((3, 3, 1 << 10, 1 << 13), np.float32))
    path = folder / "zeros.keras"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("config.json", json.dumps({"class_name": "Sequential", "config": {"layers": []}}))
        archive.write(weights, "model.weights.h5")
    weights.unlink()
    return path


def endless_strings(folder):
    (folder / "strings.bin").write_bytes(bytes(4_000_000))
    text = [{"name": "s", "shape": [1 << 40], "dtype": "string"}]
    path = folder / "strings.json"
    path.write_text(json.dumps([{"paths": ["strings.bin"], "weights": text}]))
    return path


def one_shard_often(folder):
    (folder / "shard.bin").write_bytes(bytes(1 << 20))
    kernel = {"name": "c/kernel", "shape": [3, 3, 1 << 12, 1 << 13], "dtype": "float32"}
    path = folder / "shards.json"
    path.write_text(json.dumps([{"paths": ["shard.bin"] * (9 << 7), "weights": [kernel]}]))
    return path


# ---------------------------------------------------------------------------------------------------------------------

BOMBS = (
    constant_chain,
    sparse_tensor,
    doubling_functions,
    empty_nodes,
    functions_without_operations,
    nodes_of_two_bytes,
    long_keys,
    shared_tables,
    fill_value,
    large_chunk,
    one_text_for_many,
    deflated_archive,
    endless_strings,
    one_shard_often,
)


@pytest.fixture(scope="module")
def results(tmp_path_factory):
    """What the child said of each file, the seconds it took, and its peak since the start."""
    folder = tmp_path_factory.mktemp("bombs")
    paths = {bomb: bomb(folder) for bomb in BOMBS}
    done = subprocess.run(
        [sys.executable, "-P", "-c", _PROGRAM, *map(str, paths.values())],
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    said = {name: rest for name, *rest in map(json.loads, done.stdout.splitlines())}
    return {bomb: (path, *said[path.name]) for bomb, path in paths.items()}


@pytest.mark.parametrize("bomb", BOMBS, ids=lambda bomb: bomb.__name__)
def test_bombs_are_refused_within_the_limits(results, bomb):
    path, said, seconds, peak = results[bomb]
    assert said is not None
    assert said.startswith(str(path.parent))
    assert "\n" not in said
    assert seconds < _SECONDS
    # Peaks only rise: that of a file is at most the largest limit up to it
    before = BOMBS[: BOMBS.index(bomb) + 1]
    limit = max(Limits.of(str(results[one][0]), results[one][0].stat().st_size).memory for one in before)
    assert peak < limit + _SLACK
