"""The pickle reader: pickles of Python and NumPy themselves, and pickles that want to run code."""

from __future__ import annotations

import collections
import io
import os
import pickle
import pickletools
import struct
import time
import tracemalloc
import types
from fractions import Fraction

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cnnfilterdb.core.errors import CnnFilterDbError, UnsafeFileError, WeightFileError
from cnnfilterdb.ingest.formats.pickle import load
from cnnfilterdb.ingest.formats.pickled_arrays import Array
from cnnfilterdb.ingest.network.objects import Global, Object

PROTOCOLS = range(6)


def read(data, **options):
    return load(io.BytesIO(data), "test.pkl", **options)


# What pickle.loads would give back, without what becomes a stub
scalars = (
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats(allow_nan=False)
    | st.text()
    | st.binary()
    | st.complex_numbers(allow_nan=False)
)
keys = st.text() | st.integers(-(1 << 59), 1 << 59) | st.binary() | st.booleans() | st.none()
values = st.recursive(
    scalars,
    lambda inner: (
        st.lists(inner)
        | st.lists(inner).map(tuple)
        | st.dictionaries(keys, inner)
        | st.frozensets(keys)
        | st.sets(keys)
    ),
    max_leaves=30,
)


@given(values, st.sampled_from(PROTOCOLS))
@settings(max_examples=200)
def test_plain_values_come_back_as_pickle_gives_them(value, protocol):
    data = pickle.dumps(value, protocol)
    found = read(data)
    assert found == pickle.loads(data)
    assert type(found) is type(value)


@pytest.mark.parametrize("protocol", PROTOCOLS)
@pytest.mark.parametrize("optimized", [False, True])
def test_shared_and_recursive_containers(protocol, optimized):
    shared = [1, 2]
    loop: list = [shared, shared]
    loop.append(loop)
    data = pickle.dumps({"loop": loop, "bytes": bytearray(b"ab")}, protocol)
    found = read(pickletools.optimize(data) if optimized else data)
    assert found["loop"][0] is found["loop"][1] == shared
    assert found["loop"][2] is found["loop"]
    assert found["bytes"] == b"ab"


@pytest.mark.parametrize("protocol", PROTOCOLS)
@pytest.mark.parametrize(
    "value",
    [
        collections.OrderedDict([("b", 1), ("a", 2)]),
        collections.defaultdict(list, {"a": [1]}),
        collections.Counter("aab"),
    ],
)
def test_dicts_of_the_standard_library_become_dicts_in_their_order(value, protocol):
    found = read(pickle.dumps(value, protocol))
    assert type(found) is dict
    assert list(found.items()) == list(value.items())


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_a_deque_becomes_a_list(protocol):
    assert read(pickle.dumps(collections.deque([1, 2], maxlen=5), protocol)) == [1, 2]


ARRAYS = [
    np.arange(24, dtype=np.float32).reshape(2, 3, 4),
    np.asfortranarray(np.arange(6, dtype=np.int64).reshape(2, 3)),
    np.arange(6, dtype=">f8"),
    np.array(3.5, np.float16),
    np.zeros((0, 3), np.uint8),
    np.arange(20, dtype=np.float32).reshape(4, 5)[::2, ::2],
    np.array(["ab", "c"]),
    np.array([True, False]),
    np.array([1 + 2j], np.complex64),
]


@pytest.mark.parametrize("protocol", PROTOCOLS)
@pytest.mark.parametrize("array", ARRAYS, ids=lambda array: f"{array.dtype}{array.shape}")
def test_numpy_arrays(array, protocol):
    found = read(pickle.dumps({"a": array, "b": array}, protocol))
    assert isinstance(found["a"], Array)
    assert found["a"] is found["b"]
    assert found["a"].shape == array.shape
    np.testing.assert_array_equal(found["a"].read(), array)
    assert found["a"].read().dtype.newbyteorder("=") == array.dtype.newbyteorder("=")


@pytest.mark.parametrize("dtype", [ml_dtypes.bfloat16, ml_dtypes.float8_e4m3fn])
def test_numpy_arrays_of_types_that_ml_dtypes_adds(dtype):
    array = np.arange(6).astype(dtype).reshape(2, 3)
    found = read(pickle.dumps(array, 2))
    np.testing.assert_array_equal(found.read(), array)
    assert found.dtype == array.dtype


@pytest.mark.parametrize("value", [np.float32(1.5), np.int64(-3), np.bool_(True)])
def test_numpy_scalars(value):
    assert read(pickle.dumps(value)) == value


def test_arrays_of_python_objects_keep_what_they_list():
    array = np.array([["a", None], [1, [2, 3]]], object)
    np.testing.assert_array_equal(read(pickle.dumps(array)).read(), array)


@pytest.mark.parametrize(
    "array", [np.zeros(2, [("a", "f4"), ("b", "i4")]), np.zeros(2, "datetime64[s]")], ids=["records", "dates"]
)
def test_arrays_that_hold_no_weights_do_not_spoil_the_file(array):
    found = read(pickle.dumps({"other": array, "weight": np.ones(3)}))
    assert found["other"].shape == ()
    np.testing.assert_array_equal(found["weight"].read(), np.ones(3))


def test_arrays_written_by_python_2():
    # What Python 2 and NumPy 1.16 wrote with protocol 2: text and bytes are both `str`
    data = (
        b"\x80\x02cnumpy.core.multiarray\n_reconstruct\nq\x01cnumpy\nndarray\nq\x02K\x00\x85q\x03U\x01bq\x04\x87q\x05R"
        b"q\x06(K\x01K\x02\x85q\x07cnumpy\ndtype\nq\x08U\x02f4q\tK\x00K\x01\x87q\nRq\x0b(K\x03U\x01<q\x0cNNNJ\xff\xff"
        b"\xff\xffJ\xff\xff\xff\xffK\x00tq\rb\x89U\x08\x00\x00\x80?\x00\x00\x00\xc0q\x0etq\x0fb."
    )
    np.testing.assert_array_equal(pickle.loads(data, encoding="latin1"), [1.0, -2.0])
    np.testing.assert_array_equal(read(data).read(), [1.0, -2.0])


class Network:
    """Cannot be imported where it is read: the reader never tries."""

    def __init__(self):
        self.training = False
        self.layers = [1, 2]

    def forward(self):
        pass


class Slots:
    __slots__ = ("a", "b")


class State:
    def __getstate__(self):
        return [1, 2]

    def __setstate__(self, state):
        raise AssertionError("called")


class Listed(list):
    pass


class Named(dict):
    pass


@pytest.mark.parametrize("protocol", range(2, 6))
def test_instances_become_stubs(protocol):
    network = Network()
    network.forward = network.forward  # as detectors do when they change their pass
    found = read(pickle.dumps(network, protocol))
    assert isinstance(found, Object)
    assert found.cls == Global(__name__, "Network")
    assert found.attributes["layers"] == [1, 2]
    assert found.attributes["forward"] == Global(__name__, "Network.forward")

    slots = Slots()
    slots.a, slots.b = 1, "x"
    assert read(pickle.dumps(slots, protocol)).attributes == {"a": 1, "b": "x"}
    assert read(pickle.dumps(State(), protocol)).state == [1, 2]
    assert read(pickle.dumps(Listed([3, 4]), protocol)).elements == [3, 4]
    assert read(pickle.dumps(Named(a=5), protocol)).items == {"a": 5}


@pytest.mark.parametrize("protocol", [0, 1])
def test_instances_of_old_protocols(protocol):
    assert read(pickle.dumps(Network(), protocol)).attributes["layers"] == [1, 2]


def test_instances_of_old_classes():
    # INST and OBJ, which only Python 2 writes
    assert read(b"(ia\nOld\n(dS'x'\nI1\nsb.").attributes == {"x": 1}
    assert read(b"(ca\nOld\nI7\no.").args == (7,)


def test_functions_and_classes_stay_names():
    found = read(pickle.dumps([Fraction, os.path.join, types.SimpleNamespace(a=1)]))
    assert found[0] == Global("fractions", "Fraction")
    assert str(found[1]) == "posixpath.join"
    assert found[2].attributes == {"a": 1}


def test_constructors_replace_exact_names_only():
    data = pickle.dumps([Fraction(1, 3), Network()])
    found = read(data, constructors={("fractions", "Fraction"): lambda *args: f"<{args}>"})
    assert found[0] == "<(1, 3)>"
    assert isinstance(found[1], Object)


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_persistent_ids(protocol):
    class Pickler(pickle.Pickler):
        def persistent_id(self, value):
            return "7" if isinstance(value, Network) else None

    stream = io.BytesIO()
    Pickler(stream, protocol).dump([1, Network()])
    assert read(stream.getvalue(), persistent=lambda identifier: f"resolved {identifier}") == [1, "resolved 7"]
    with pytest.raises(WeightFileError, match="outside the pickle"):
        read(stream.getvalue())


def test_the_stream_is_left_behind_the_pickle():
    stream = io.BytesIO(pickle.dumps(1) + pickle.dumps("b") + b"rest")
    assert [load(stream, "x"), load(stream, "x"), stream.read()] == [1, "b", b"rest"]


# ---------------------------------------------------------------------------------------------------------------------
# Hostile files


class Call:
    """Pickles as the call of a function."""

    def __init__(self, function, *args):
        self.function, self.args = function, args

    def __reduce__(self):
        return self.function, self.args


def hostile_objects(canary):
    command = f"touch {canary}"
    return {
        "os.system": Call(os.system, command),
        "exec": Call(exec, f"open({str(canary)!r}, 'w').close()"),
        "eval": Call(eval, f"open({str(canary)!r}, 'w').close()"),
        "open": Call(open, str(canary), "w"),
        "import": Call(__import__, "os"),
        "mkdir": Call(os.mkdir, str(canary)),
        "unlink": Call(os.unlink, str(canary)),
        "nested": {"state_dict": [({"a": Call(os.system, command)},)]},
        "getattr": Call(getattr, Call(__import__, "os"), "system"),
    }


@pytest.mark.parametrize("protocol", PROTOCOLS)
@pytest.mark.parametrize("kind", hostile_objects(""))
def test_nothing_is_executed(tmp_path, kind, protocol):
    canary = tmp_path / "canary"
    data = pickle.dumps(hostile_objects(canary)[kind], protocol)
    with pytest.raises(UnsafeFileError, match="nothing was executed") as caught:
        read(data)
    assert "\n" not in str(caught.value)
    assert not canary.exists()


def named(module, name):
    """A pickle that names something and calls it."""
    text = [piece for part in (module, name) for piece in (b"\x8c", bytes([len(part)]), part.encode())]
    return b"\x80\x04" + b"".join(text) + b"\x93)R."


@pytest.mark.parametrize(
    ("module", "name"),
    [
        ("os", "system"),
        ("posix", "system"),
        ("nt", "system"),
        ("os", "popen"),
        ("os.path", "os.system"),
        ("subprocess", "Popen"),
        ("builtins", "eval"),
        ("__builtin__", "execfile"),
        ("builtins", "getattr.__self__.eval"),
        ("builtins", "object.__subclasses__"),
        ("torch.serialization", "os.system"),
        ("torch", "serialization.os.system"),
        ("torch", "hub.load"),
        ("torch", "load"),
        ("torch.utils.cpp_extension", "load_inline"),
        ("numpy.testing._private.utils", "runstring"),
        ("numpy", "load"),
        ("runpy", "run_path"),
        ("importlib", "import_module"),
        ("pickle", "loads"),
        ("_pickle", "loads"),
        ("marshal", "loads"),
        ("types", "FunctionType"),
        ("types", "CodeType"),
        ("operator", "attrgetter"),
        ("functools", "partial.__reduce__.__globals__"),
        ("code", "interact"),
        ("webbrowser", "open"),
        ("urllib.request", "urlopen"),
        ("socket", "create_connection"),
        ("ctypes", "CDLL"),
        ("asyncio.subprocess", "create_subprocess_shell"),
        ("sys", "modules"),
        ("pip._internal", "main"),
    ],
)
def test_names_of_what_runs_code_are_refused(module, name):
    with pytest.raises(UnsafeFileError, match=r"test\.pkl: asks for"):
        read(named(module, name))


@pytest.mark.parametrize(
    ("module", "name"),
    [
        ("torch.nn.modules.conv", "Conv2d"),
        ("code.models", "Net"),
        ("code", "Net"),
        ("trace.models", "Net"),
        ("__main__", "Net"),
        ("builtins", "set"),
        ("builtins", "ValueError"),
        ("functools", "partial"),
        ("pathlib", "PosixPath"),
        ("argparse", "Namespace"),
        ("numpy.random", "RandomState"),
        ("models.os_net", "OSNet"),
        ("types", "SimpleNamespace"),
    ],
)
def test_names_of_harmless_things_are_not(module, name):
    read(named(module, name))


def test_getattr_reaches_no_further_than_a_name():
    assert read(b"\x80\x04\x8c\x01m\x8c\x03Net\x93\x8c\x07forward\x86\x8c\x08builtins\x8c\x07getattr\x93N.") is None
    call = b"c__builtin__\ngetattr\n(c%s\n%s\nV%s\ntR."
    assert read(call % (b"m", b"Net", b"forward")) == Global("m", "Net.forward")
    for module, name, attribute in [
        (b"torch", b"serialization", b"__dict__"),
        (b"torch.serialization", b"os", b"system"),
    ]:
        with pytest.raises(UnsafeFileError):
            read(call % (module, name, attribute))


def pushes(*parts):
    return b"\x80\x04" + b"".join(parts) + b"."


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b".",
        b"\x80",
        b"\x80\x04.",
        pushes(b"0"),  # POP of nothing
        pushes(b"h\x05"),  # a memo that is not there
        pushes(b"q\x00"),
        pushes(b"1"),  # POP_MARK without a mark
        pushes(b"t"),
        pushes(b"\x85"),
        pushes(b"NN\x93"),  # a class whose name is no text
        pushes(b"NNR"),
        pushes(b"Na"),
        pushes(b"NNs"),
        pushes(b"](Nu"),
        pushes(b"\x82\x01"),  # EXT1
        pushes(b"\x97"),  # NEXT_BUFFER
        b"\x80\x04cnumpy.core.multiarray\n_reconstruct\n)R(K\x01NNNtb.",
        b"cnumpy\ndtype\n(NtR.",
        b"c" + b"a." * 400_000 + b"\nb\n.",
        b"\x8d" + struct.pack("<Q", 1 << 62) + b"a",
        b"I" + b"9" * 10_000 + b"\n.",
        b"\x80\x04X\x02\x00\x00\x00\xff\xff.",
        b"not a pickle at all",
    ],
)
def test_damaged_pickles_give_one_clear_error(data):
    with pytest.raises(WeightFileError, match=r"test\.pkl: ") as caught:
        read(data)
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 500


def read_or_error(data):
    try:
        return read(data)
    except CnnFilterDbError:
        return None


def test_an_array_with_a_false_size():
    array = pickle.dumps(np.zeros(4, np.float32), 2)
    assert b"K\x04\x85" in array
    with pytest.raises(WeightFileError, match="16 bytes"):
        read(array.replace(b"K\x04\x85", b"J\xff\xff\xff\x7f\x85"))


def test_a_type_that_numpy_cannot_hold_is_no_way_to_objects():
    # "O" with bytes would make pointers out of the file
    array = pickle.dumps(np.zeros(1, np.float64), 2).replace(b"f8", b"O8")
    with pytest.raises(WeightFileError):
        read(array)


BOMBS = {
    # a list of a million, copied a million times
    "copies": b"\x80\x04]q\x00(" + b"N" * 100_000 + b"e" + b"cbuiltins\nlist\nq\x01h\x00\x85R" * 100_000 + b".",
    "sets": b"\x80\x04]q\x00(" + b"N" * 100_000 + b"e" + b"cbuiltins\ntuple\nh\x00\x85R" * 100_000 + b".",
    "states": b"\x80\x04}q\x00("
    + b"".join(b"J" + struct.pack("<i", i) + b"N" for i in range(100_000))
    + b"u"
    + b"ca\nb\n)Rh\x00b" * 100_000
    + b".",
    "bytearrays": b"\x80\x05\x96"
    + struct.pack("<Q", 1 << 20)
    + bytes(1 << 20)
    + b"q\x00cbuiltins\nbytes\nq\x01"
    + b"h\x01h\x00\x85R" * 100_000
    + b".",
    "new objects": b"\x80\x04(" + b"N" * 50_000 + b"tq\x00" + b"Nh\x00\x81" * 50_000 + b".",
}


@pytest.mark.parametrize("kind", BOMBS)
def test_memory_stays_in_proportion_to_the_file(kind):
    data = BOMBS[kind]
    tracemalloc.start()
    read_or_error(data)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 100 * len(data)


def test_depth_is_no_danger():
    # Deeply nested data is built and freed without recursion
    depth = 100_000
    found = read(b"\x80\x04" + b"]" * depth + b"a" * (depth - 1) + b".")
    assert found == found  # the same object
    read(b"\x80\x04N" + b"\x85" * depth + b".")
    # a deep tuple as a key is never hashed
    assert len(read(b"\x80\x04}N" + b"\x85" * depth + b"Ns.")) == 1


def test_keys_of_one_hash_take_no_quadratic_time():
    prime = (1 << 61) - 1
    items = b"".join(pickle.dumps(i * prime, 2)[2:-1] + b"N" for i in range(1, 40_000))
    start = time.process_time()
    found = read(b"\x80\x04}(" + items + b"u.")
    assert time.process_time() - start < 5
    assert len(found) == 39_999


EXAMPLES = [
    pickle.dumps(value, protocol)
    for protocol in (0, 2, 4)
    for value in (
        {"state_dict": collections.OrderedDict(a=np.ones((2, 3), np.float32)), "epoch": 3, "name": "é"},
        [Network(), Listed([1]), Named(a=(1, 2)), {1, 2}, Fraction(1, 3), 2.5, None, 1 << 80],
    )
]


@given(st.sampled_from(EXAMPLES), st.data())
@settings(max_examples=300)
def test_damage_anywhere_gives_a_result_or_our_error(data, draw):
    if draw.draw(st.booleans()):
        data = data[: draw.draw(st.integers(0, len(data) - 1))]
    else:
        place = draw.draw(st.integers(0, len(data) - 1))
        data = data[:place] + bytes([data[place] ^ (1 << draw.draw(st.integers(0, 7)))]) + data[place + 1 :]
    read_or_error(data)


@given(st.binary(max_size=200))
@settings(max_examples=300)
def test_any_bytes_give_a_result_or_our_error(data):
    read_or_error(b"\x80\x04" + data + b".")
