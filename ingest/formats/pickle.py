"""Pickles read as data: nothing in the file is ever imported or called.

A pickle is a program for a small stack machine. :func:`load` runs that program on inert values only: a class or
function that the file names becomes a :class:`Global` (two strings), an instance becomes an :class:`Object` (what the
file stores in it), and a call is carried out only if the caller provides its own function for exactly that name.
So a whole pickled network becomes a tree that can be walked without its source code.

A file that names functions that run code (``os.system``, ``builtins.eval``, ``subprocess.Popen``, ...) could do no harm
here, but is refused: it is not a weight file, and other readers would run it.

The machine follows the opcode table of :mod:`pickletools` (Python 3.11, protocols 0 to 5).
"""

from __future__ import annotations

import math
import pickletools
from collections.abc import Callable, Collection, Iterable, Mapping
from typing import Any, NoReturn, Protocol

from cnnfilterdb.core.errors import UnsafeFileError, WeightFileError
from cnnfilterdb.ingest.formats import limits
from cnnfilterdb.ingest.formats.damage import undamaged
from cnnfilterdb.ingest.formats.pickled_arrays import ARRAY_CONSTRUCTORS, Array, ElementType
from cnnfilterdb.ingest.network.objects import Global, Object

__all__ = ["MAX_OPCODES", "Constructors", "Stream", "load"]

#: A pickle with more opcodes is refused. A state dict takes about fifty per tensor.
MAX_OPCODES = 10_000_000
# Names of classes are shorter; parsing one takes time that grows with the square of its length
_MAX_NAME = 1_000


# Bytes of memory that an opcode takes, roughly; they are accounted for in batches.
_COST = 64
_COSTS = {"EMPTY_SET": 216, "FROZENSET": 216, "MARK": 120, "EMPTY_DICT": 120, "REDUCE": 320, "NEWOBJ": 320, "OBJ": 320}
_PAID_EVERY = 1024
# Protocol 2 has no bytes: the content of an array is a text that is encoded, and then taken as the state of the array
_COPIES = 4


class Stream(Protocol):
    """A stream that a pickle is read from. ``read`` must never allocate more than the file contains."""

    def read(self, size: int = -1, /) -> bytes:
        """Up to ``size`` bytes."""

    def readline(self) -> bytes:
        """Bytes up to and with the next newline."""


class _Untold:
    """A stream that does not tell its position, which :mod:`pickletools` would ask for at every opcode."""

    def __init__(self, stream: Stream) -> None:
        self.read, self.readline = stream.read, stream.readline


class _Opaque:
    """Stands in for a dict key whose hash would have to be computed by content."""


Constructors = Mapping[tuple[str, str], Callable[..., Any]]


def _words(text: str) -> frozenset[str]:
    return frozenset(text.split())


# Standard modules that can run code, reach the system or the network, or look up names at run time. Exact
# names: a user's own package may be called `trace`, but `trace.models` cannot be the standard module.
_REFUSED_MODULES = _words("""
    _frozen_importlib _frozen_importlib_external _pickle _posixsubprocess _socket _thread antigravity atexit bdb cPickle
    cProfile codeop commands distutils.file_util distutils.spawn ftplib gc imp linecache marshal nt pdb pickle
    pickletools pipes pkgutil popen2 posix profile pty runpy shelve shutil signal smtplib socket socketserver ssl
    subprocess sys telnetlib threading timeit trace webbrowser zipimport
""")
# The same, including all of their submodules.
_REFUSED_PACKAGES = _words("""
    _ctypes aiohttp asyncio cffi ctypes ensurepip http httplib httpx idlelib importlib multiprocessing numpy.distutils
    numpy.f2py numpy.testing os pexpect pip pydoc requests torch.hub torch.utils.cpp_extension urllib urllib2 urllib3
    venv
""")
_REFUSED_NAMES = _words("""
    _io.FileIO _io.open _operator.attrgetter _operator.methodcaller cloudpickle.load cloudpickle.loads
    code.InteractiveConsole code.InteractiveInterpreter code.interact codecs.open
    dill.load dill.loads io.FileIO io.open joblib.load numpy.load operator.attrgetter operator.methodcaller
    pandas.read_pickle torch.jit.load torch.load torch.serialization.load types.CodeType types.FunctionType
""")
# Of the built-ins only those that store or compare data; eval, exec, open, __import__ and all others, present and
# future, are refused. Bound methods (`model.forward`) are written as getattr; its target is checked.
_HARMLESS_BUILTINS = _words("""
    Ellipsis NotImplemented abs all any bool bytearray bytes complex dict enumerate float frozenset getattr int len list
    long max min object print range reversed round set slice sorted staticmethod str sum tuple type unicode xrange zip
""")
_BUILTINS = ("builtins", "__builtin__", "__builtins__")


def _refused(module: str, name: str) -> bool:
    spellings = [(module, name)]
    # A dotted name reaches through attributes: torch.serialization holds `os`, so `os.system` may be spelt by way of
    # it, and every built-in function holds its module as `__self__`.
    outer, _, attribute = name.rpartition(".")
    if outer and any(part.startswith("__") for part in name.split(".")):
        return True
    while outer:
        spellings += [(outer, attribute), (outer.rpartition(".")[2], attribute), (f"{module}.{outer}", attribute)]
        outer, _, attribute = outer.rpartition(".")
    return any(_refused_spelling(module, name) for module, name in spellings)


def _refused_spelling(module: str, name: str) -> bool:
    if module in _BUILTINS:
        return name.partition(".")[0] not in _HARMLESS_BUILTINS and not name.endswith(("Error", "Exception", "Warning"))
    parts = module.split(".")
    return (
        module in _REFUSED_MODULES
        or f"{module}.{name}" in _REFUSED_NAMES
        or any(".".join(parts[:end]) in _REFUSED_PACKAGES for end in range(1, len(parts) + 1))
    )


def _pairs(content: Any = ()) -> dict[Any, Any]:
    content = content.items() if isinstance(content, dict) else content
    return {_key(key): value for key, value in content}


def _members(content: Iterable[Any] = ()) -> set[Any]:
    return {_key(value) for value in content}


def _default_dict(factory: Any = None, content: Any = ()) -> dict[Any, Any]:
    return _pairs(content)


def _new_object(cls: Any, *args: Any) -> Object:
    return Object(cls if isinstance(cls, Global) else Global("", "?"), args)


def _encode(text: str, encoding: str = "latin1") -> bytes:
    # Protocol 2 has no bytes; Python writes them as `_codecs.encode(text, "latin1")`.
    if encoding not in ("latin1", "latin-1"):
        raise ValueError("bytes in an unknown encoding")
    return text.encode("latin-1")


def _bytes(data: Any = b"", encoding: str = "latin1") -> bytes:
    # `bytes(n)` would make n zeros; the result of such a call is discarded
    return (
        _encode(data, encoding)
        if isinstance(data, str)
        else bytes(data)
        if isinstance(data, bytes | bytearray)
        else b""
    )


_CONSTRUCTORS: dict[tuple[str, str], Callable[..., Any]] = {
    ("collections", "OrderedDict"): _pairs,
    ("collections", "Counter"): _pairs,
    ("collections", "defaultdict"): _default_dict,
    ("collections", "deque"): lambda content=(), *_: list(content),
    ("copyreg", "__newobj__"): _new_object,
    ("copyreg", "_reconstructor"): _new_object,
    ("copy_reg", "_reconstructor"): _new_object,
    ("_codecs", "encode"): _encode,
    **ARRAY_CONSTRUCTORS,
}
for _module in ("builtins", "__builtin__"):
    _CONSTRUCTORS |= {
        (_module, "bytearray"): _bytes,
        (_module, "bytes"): _bytes,
        (_module, "complex"): lambda real=0.0, imag=0.0: complex(float(real), float(imag)),
        (_module, "dict"): _pairs,
        (_module, "frozenset"): lambda content=(): frozenset(_members(content)),
        (_module, "list"): lambda content=(): list(content),
        (_module, "set"): _members,
        (_module, "tuple"): lambda content=(): tuple(content),
    }


def load(
    stream: Stream,
    name: str,
    constructors: Constructors | None = None,
    persistent: Callable[[Any], Any] | None = None,
) -> Any:
    """Read one pickle, and leave the stream at its end.

    Args:
        stream: Where it begins.
        name: Name of the file in messages.
        constructors: Functions that replace the named ones, as (module, name); those for the containers of Python
            and for NumPy arrays are built in. They receive arguments from the file, and so must check them.
        persistent: Resolves a persistent id.

    Returns:
        Plain Python values, :class:`Global`, :class:`Object`, :class:`Array` and what ``constructors`` and
        ``persistent`` return.

    Raises:
        UnsafeFileError: The file names a function that runs code.
        WeightFileError: Not a pickle, or a damaged one.

    >>> import io, pickle
    >>> from fractions import Fraction
    >>> load(io.BytesIO(pickle.dumps({"a": Fraction(1, 3)})), "example.pkl")["a"].cls
    Global(module='fractions', name='Fraction')
    """
    machine = _Machine(name, {**_CONSTRUCTORS, **(constructors or {})}, persistent)
    with undamaged(name, "pickle"):
        return machine.run(stream)


def _key(value: Any) -> Any:
    # Hashing a tuple hashes what it holds, to any depth: a nested one would overflow the stack. Large integers and
    # tuples of integers can be made to have one hash, with which a dict takes quadratic time. Objects hash by identity.
    if isinstance(value, str | float | bytes | None | Global | Object) or (
        isinstance(value, int) and abs(value) < 1 << 60
    ):
        return value
    if isinstance(value, tuple) and all(isinstance(part, str | bytes | None) for part in value):
        return value
    return _Opaque()


class _Machine:
    """The stack machine: one method per group of opcodes."""

    def __init__(self, name: str, constructors: Constructors, persistent: Callable[[Any], Any] | None) -> None:
        self.name = name
        self.constructors = constructors
        self.persistent = persistent
        self.stack: list[Any] = []
        self.marks: list[list[Any]] = []
        self.memo: dict[int, Any] = {}
        self.used = limits.current()
        self.stream: Stream | None = None
        self.carries_code = False  # written by dill or cloudpickle, which store functions and classes as code
        self.allowance = 1 << 16

    def run(self, stream: Stream) -> Any:
        unpaid = 0
        self.stream = stream
        # pickletools decodes opcodes and their arguments, and checks the lengths
        for count, (opcode, argument, _) in enumerate(pickletools.genops(_Untold(stream))):  # type: ignore[arg-type]
            if count > MAX_OPCODES:
                raise WeightFileError(f"{self.name}: a pickle of more than {MAX_OPCODES:,} opcodes; not a weight file")
            if opcode.name == "STOP":
                break
            self.allowance += 1
            unpaid += _COSTS.get(opcode.name, _COST)
            if count % _PAID_EVERY == 0:
                self.used.allocate(unpaid)
                unpaid = 0
            if opcode.name in _PUSHED:
                self.stack.append(argument)
                self.allowance += _COPIES * len(argument) if isinstance(argument, str | bytes | bytearray) else 0
            else:
                _ACTIONS[opcode.name](self, argument)
        return self.stack.pop()

    def push(self, value: Any) -> None:
        # `self.stack.append(self.since_mark())` would append to the stack of before the call
        self.stack.append(value)

    def since_mark(self) -> list[Any]:
        items, self.stack = self.stack, self.marks.pop()
        return items

    def mark(self, _: Any) -> None:
        self.marks.append(self.stack)
        self.stack = []

    def pop(self, _: Any) -> None:
        if self.stack:
            self.stack.pop()
        else:
            self.since_mark()

    def get(self, index: Any) -> None:
        self.stack.append(self.memo[int(index)])

    def put(self, index: Any) -> None:
        self.memo[int(index)] = self.stack[-1]

    def memoize(self, _: Any) -> None:
        self.memo[len(self.memo)] = self.stack[-1]

    def tuple_of(self, size: int) -> None:
        items = tuple(self.stack[-size:])
        if len(items) != size:
            raise ValueError("the stack is empty")
        self.stack[-size:] = [items]

    def extend(self, items: list[Any]) -> None:
        target = self.stack[-1]
        if isinstance(target, Object):
            target.elements.extend(items)
        elif isinstance(target, list):
            target.extend(items)
        elif isinstance(target, set):
            target.update(map(_key, items))
        else:
            raise ValueError(f"elements added to {type(target).__name__}")

    def update(self, items: list[Any]) -> None:
        target = self.stack[-1]
        target = target.items if isinstance(target, Object) else target
        if not isinstance(target, dict) or len(items) % 2:
            raise ValueError(f"items set in {type(target).__name__}")
        for key, value in zip(items[::2], items[1::2], strict=True):
            target[_key(key)] = value

    def name_global(self, module: Any, name: Any) -> Global:
        if not isinstance(module, str) or not isinstance(name, str):
            raise ValueError("a class without a name")
        if len(module) + len(name) > _MAX_NAME:
            raise ValueError("a class whose name does not end")
        self.carries_code = self.carries_code or module.partition(".")[0] in ("dill", "cloudpickle")
        if _refused(module, name):
            if self.carries_code:
                raise UnsafeFileError(
                    f"{self.name}: a pickle of dill or cloudpickle that stores a class or a function as code, which is "
                    "never run here; where the class is known, save the weights: torch.save(net.state_dict(), path)"
                )
            raise UnsafeFileError(
                f"{self.name}: asks for {' '.join(f'{module}.{name}'.split())[:200]} to be called, which a weight file "
                "never needs; nothing was executed; do not open it with other software"
            )
        return Global(module, name)

    def call(self, function: Any, args: Any, keywords: Any = None) -> None:
        if not isinstance(args, tuple):
            raise ValueError("a call without arguments")
        if not isinstance(function, Global):
            self.stack.append(Object(function.cls if isinstance(function, Object) else Global("", "?"), args))
        elif function.module in _BUILTINS and function.name == "getattr":
            self.stack.append(self.attribute(*args))
        elif constructor := self.constructors.get((function.module, function.name)):
            self.pay(args, *args)
            self.stack.append(constructor(*args))
        else:
            self.stack.append(Object(function, args))
            if isinstance(keywords, dict):
                self.pay(keywords)
                self.stack[-1].attributes.update(keywords)

    def pay(self, *copied: Any) -> None:
        # One long list that is copied a million times would fill the memory: what is copied in total must stay in
        # proportion to what the file holds.
        self.allowance -= sum(len(part) for part in copied if isinstance(part, Collection))
        if self.allowance < 0:
            raise ValueError("the same data is copied too many times")

    def attribute(self, owner: Any, name: Any, *_: Any) -> Global:
        """The name of the target of getattr, after the same checks as if the file had named it."""
        cls = owner.cls if isinstance(owner, Object) else owner
        module, outer = (cls.module, cls.name) if isinstance(cls, Global) else ("", type(owner).__name__)
        return self.name_global(module, f"{outer}.{name}")

    def reduce(self, _: Any) -> None:
        args = self.stack.pop()
        self.call(self.stack.pop(), args)

    def new_object_ex(self, _: Any) -> None:
        keywords, args = self.stack.pop(), self.stack.pop()
        self.call(self.stack.pop(), args, keywords)

    def instance(self, argument: str) -> None:
        args = tuple(self.since_mark())
        self.call(self.name_global(*argument.split(" ", 1)), args)

    def object(self, _: Any) -> None:
        function, *args = self.since_mark()
        self.call(function, tuple(args))

    def stack_global(self, _: Any) -> None:
        name, module = self.stack.pop(), self.stack.pop()
        self.stack.append(self.name_global(module, name))

    def build(self, _: Any) -> None:
        state, target = self.stack.pop(), self.stack[-1]
        if isinstance(target, Object) and target.cls.module == "joblib.numpy_pickle" and isinstance(state, dict):
            self.stack[-1] = self.joblib_array(state)
            return
        # Attributes of containers (`_metadata` of a state dict) and of classes are not needed here
        if isinstance(target, Object | Array | ElementType):
            self.pay(*(state if isinstance(state, tuple) else (state,)))
            target.build(state)

    def joblib_array(self, state: dict[Any, Any]) -> Array:
        """An array whose bytes follow the opcode, which is how joblib writes arrays into a pickle."""
        dtype, shape, order = state.get("dtype"), state.get("shape"), state.get("order")
        if not isinstance(dtype, ElementType) or dtype.dtype is None or dtype.dtype.hasobject or self.stream is None:
            raise ValueError("an array of joblib without numbers")
        if not isinstance(shape, tuple) or not all(type(side) is int and 0 <= side < 1 << 48 for side in shape):
            raise ValueError("an array of an impossible shape")
        if state.get("numpy_array_alignment_bytes") is not None:
            self.stream.read(self.stream.read(1)[0])
        size = math.prod(shape) * dtype.dtype.itemsize
        self.used.allocate(size)
        array = Array()
        array.fill(self.stream.read(size), dtype, shape, "F" if order == "F" else "C")
        return array

    def resolve(self, identifier: Any) -> None:
        if self.persistent is None:
            raise ValueError("a reference to data outside the pickle")
        self.stack.append(self.persistent(identifier))

    def unsupported(self, _: Any) -> NoReturn:
        raise ValueError("an extension or out-of-band buffer, which weight files do not use")


_PUSHED = _words("""
    INT BININT BININT1 BININT2 LONG LONG1 LONG4 FLOAT BINFLOAT STRING BINSTRING SHORT_BINSTRING UNICODE BINUNICODE
    SHORT_BINUNICODE BINUNICODE8 BINBYTES SHORT_BINBYTES BINBYTES8 BYTEARRAY8
""")
_ACTIONS: dict[str, Callable[[_Machine, Any], None]] = {
    "PROTO": lambda machine, _: None,
    "FRAME": lambda machine, _: None,
    "MARK": _Machine.mark,
    "POP": _Machine.pop,
    "POP_MARK": lambda machine, _: machine.since_mark().clear(),
    "DUP": lambda machine, _: machine.stack.append(machine.stack[-1]),
    "GET": _Machine.get,
    "BINGET": _Machine.get,
    "LONG_BINGET": _Machine.get,
    "PUT": _Machine.put,
    "BINPUT": _Machine.put,
    "LONG_BINPUT": _Machine.put,
    "MEMOIZE": _Machine.memoize,
    "NONE": lambda machine, _: machine.stack.append(None),
    "NEWTRUE": lambda machine, _: machine.stack.append(True),
    "NEWFALSE": lambda machine, _: machine.stack.append(False),
    "EMPTY_LIST": lambda machine, _: machine.stack.append([]),
    "EMPTY_DICT": lambda machine, _: machine.stack.append({}),
    "EMPTY_SET": lambda machine, _: machine.stack.append(set()),
    "EMPTY_TUPLE": lambda machine, _: machine.stack.append(()),
    "LIST": lambda machine, _: machine.push(machine.since_mark()),
    "TUPLE": lambda machine, _: machine.push(tuple(machine.since_mark())),
    "TUPLE1": lambda machine, _: machine.tuple_of(1),
    "TUPLE2": lambda machine, _: machine.tuple_of(2),
    "TUPLE3": lambda machine, _: machine.tuple_of(3),
    "FROZENSET": lambda machine, _: machine.push(frozenset(map(_key, machine.since_mark()))),
    "APPEND": lambda machine, _: machine.extend([machine.stack.pop()]),
    "APPENDS": lambda machine, _: machine.extend(machine.since_mark()),
    "ADDITEMS": lambda machine, _: machine.extend(machine.since_mark()),
    "GLOBAL": lambda machine, name: machine.stack.append(machine.name_global(*name.split(" ", 1))),
    "STACK_GLOBAL": _Machine.stack_global,
    "REDUCE": _Machine.reduce,
    "NEWOBJ": _Machine.reduce,
    "NEWOBJ_EX": _Machine.new_object_ex,
    "INST": _Machine.instance,
    "OBJ": _Machine.object,
    "BUILD": _Machine.build,
    "PERSID": _Machine.resolve,
    "BINPERSID": lambda machine, _: machine.resolve(machine.stack.pop()),
    "EXT1": _Machine.unsupported,
    "EXT2": _Machine.unsupported,
    "EXT4": _Machine.unsupported,
    "NEXT_BUFFER": _Machine.unsupported,
    "READONLY_BUFFER": _Machine.unsupported,
}


def _set_item(machine: _Machine, _: Any) -> None:
    value, key = machine.stack.pop(), machine.stack.pop()
    machine.update([key, value])


def _new_dict(machine: _Machine, _: Any) -> None:
    items = machine.since_mark()
    machine.stack.append({})
    machine.update(items)


_ACTIONS |= {
    "SETITEM": _set_item,
    "SETITEMS": lambda machine, _: machine.update(machine.since_mark()),
    "DICT": _new_dict,
}
