"""The forward pass of a TorchScript archive, followed without being run.

:func:`follow` goes through the forward pass with placeholders instead of tensors: it learns which convolutions exist,
with which stride and groups, in which order, and how deep in the graph. It computes nothing and calls nothing. Anything
unknown, such as a loop with a convolution in it whose length depends on the image, ends the journey; order and depth
are then unknown.
"""

from __future__ import annotations

import ast
import operator
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from cnnfilterdb.ingest.formats import limits
from cnnfilterdb.ingest.formats.torch.script_code import Code
from cnnfilterdb.ingest.formats.torch.script_operations import (
    _PLAIN,
    ARITHMETIC,
    CHANGES_OF_LISTS,
    CONVOLUTIONS,
    DILATION,
    GROUPS,
    PACKERS,
    QUESTIONS,
    STRIDE,
    TRANSPOSED,
    is_plain,
)
from cnnfilterdb.ingest.network.extract import ConvFacts, conv_facts
from cnnfilterdb.ingest.network.objects import Object

__all__ = ["Journey", "Use", "first_kernel", "follow"]

# Steps of a forward pass. Inception-v3 takes 2,000.
_MAX_STEPS = 1_000_000
_MAX_CALLS = 100


@dataclass(frozen=True, slots=True)
class Use:
    """A convolution of the forward pass.

    Attributes:
        weight: Its weight, as the archive's reader represents it.
        owner: The module whose method calls it.
        facts: Stride and similar arguments of the call.
        depth: Longest path from the input, in operations; 0 if it reads the input itself.
    """

    weight: Any
    owner: Object
    facts: ConvFacts
    depth: int


@dataclass(slots=True)
class Journey:
    """The result of following the code.

    Attributes:
        uses: The convolutions, in order.
        complete: Whether the end was reached. If not, facts of the uses hold, order and depth do not.
    """

    uses: list[Use] = field(default_factory=list)
    complete: bool = False


def follow(
    code: Code, root: Object, constants: Sequence[Any], is_kernel: Callable[[Any], bool], method: str = "forward"
) -> Journey:
    """Follow the forward pass of a network.

    Args:
        code: Code of the archive.
        root: The network.
        constants: What the code names ``CONSTANTS.c0``, ``CONSTANTS.c1``, ...
        is_kernel: Whether a value is a stored tensor that may be the weight of a convolution.
        method: Name of the forward pass.
    """
    traveller = _Traveller(code, constants, is_kernel)
    try:
        traveller.call_method(root, method, None, {})
    # Code may be wrong in any way; only the order is lost then, not the weights
    except Exception:
        return traveller.journey
    traveller.journey.complete = True
    return traveller.journey


# ---------------------------------------------------------------------------------------------------------------------
# Placeholders


@dataclass(frozen=True, slots=True)
class _Value:
    """The result of an operation.

    Attributes:
        depth: Longest path from the input; None if it does not depend on it.
        weight: The stored tensor that it was computed from, if that may be the weight of a convolution.
        facts: For a packed weight: stride and similar facts.
    """

    depth: int | None = None
    weight: Any = None
    facts: ConvFacts | None = None


@dataclass(frozen=True, slots=True)
class _Name:
    """A name that begins with ``torch``, ``ops`` or ``__torch__``."""

    path: str


@dataclass(frozen=True, slots=True)
class _Method:
    owner: Object
    name: str


class _LostError(Exception):
    """The code cannot be followed any further."""


class _RaisedError(Exception):
    """The code raises an error in this branch."""


class _ReturnedError(Exception):
    """Carries the value of a return statement."""

    def __init__(self, value: Any) -> None:
        self.value = value


class _Traveller:
    """Goes through the code, statement by statement."""

    def __init__(self, code: Code, constants: Sequence[Any], is_kernel: Callable[[Any], bool]) -> None:
        self.code = code
        self.constants = constants
        self.is_kernel = is_kernel
        self.journey = Journey()
        self.steps = 0
        self.unsure = 0  # number of choices since it was certain that this branch is taken
        self.entered = 0  # the same, where the current function begins
        self.owners: list[Object] = []
        self.changed: dict[tuple[int, str], Any] = {}  # attributes that the code has set
        self.restored: set[int] = set()

    def step(self) -> None:
        self.steps += 1
        limits.current().step()
        if self.steps > _MAX_STEPS:
            raise _LostError

    # Functions

    def call_method(self, owner: Object, name: str, args: Sequence[Any] | None, keywords: Mapping[str, Any]) -> Any:
        cls = self.code.classes.get(str(owner.cls))
        method = cls.methods.get(name) if cls else None
        if method is None:
            # A class that is part of PyTorch; what its methods give depends on what they are given
            if args is None or not owner.cls.module.startswith("__torch__.torch.classes"):
                raise _LostError
            return self.unknown([owner, *args, *keywords.values()])
        self.owners.append(owner)
        try:
            return self.call(method, None if args is None else [owner, *args], keywords, owner)
        finally:
            self.owners.pop()

    def call(
        self, function: ast.FunctionDef, args: Sequence[Any] | None, keywords: Mapping[str, Any], owner: Any = None
    ) -> Any:
        """Call a function; without arguments as the user calls the network, with images."""
        if len(self.owners) > _MAX_CALLS:
            raise _LostError
        names = [argument.arg for argument in function.args.args]
        defaults = dict(zip(reversed(names), reversed(function.args.defaults), strict=False))
        if args is None:
            args = [owner, *(_Value(-1) for name in names[1:] if name not in defaults)]
        if len(args) > len(names):
            raise _LostError
        env: dict[str, Any] = dict(zip(names, args, strict=False))
        env.update({name: value for name, value in keywords.items() if name in names})
        for name in names:
            if name not in env:
                if name not in defaults:
                    raise _LostError
                env[name] = self.evaluate(defaults[name], {})
        entered, self.entered = self.entered, self.unsure
        try:
            self.execute(function.body, env)
        except _ReturnedError as returned:
            return returned.value
        finally:
            self.entered = entered
        return None

    def restore(self, owner: Object) -> None:
        """Call the __setstate__ of an object that has one, such as a quantised layer."""
        cls = self.code.classes.get(str(owner.cls))
        if owner.state is None or id(owner) in self.restored or not cls or "__setstate__" not in cls.methods:
            return
        self.restored.add(id(owner))
        unsure, self.unsure = self.unsure, 0
        try:
            self.call_method(owner, "__setstate__", [owner.state], {})
        finally:
            self.unsure = unsure

    # Statements

    def execute(self, statements: Iterable[ast.stmt], env: dict[str, Any]) -> None:
        for statement in statements:
            self.step()
            match statement:
                case ast.Assign(targets=[target], value=value):
                    self.assign(target, self.evaluate(value, env), env)
                case ast.AnnAssign(target=target, value=value):
                    if value is not None:
                        self.assign(target, self.evaluate(value, env), env)
                case ast.Expr(value=value):
                    self.evaluate(value, env)
                case ast.Return(value=value):
                    if self.unsure > self.entered:
                        raise _LostError
                    raise _ReturnedError(None if value is None else self.evaluate(value, env))
                case ast.If():
                    self.branch(statement, env)
                case ast.For():
                    self.iterate(statement, env)
                case ast.While():
                    self.repeat(statement, env)
                case ast.Pass():
                    pass
                case _:
                    raise _LostError

    def assign(self, target: ast.expr, value: Any, env: dict[str, Any]) -> None:
        match target:
            case ast.Name(id=name):
                env[name] = value
            case ast.Tuple(elts=parts):
                if not isinstance(value, list | tuple) or len(value) != len(parts):
                    value = [self.unknown([value])] * len(parts)
                for part, item in zip(parts, value, strict=True):
                    self.assign(part, item, env)
            case ast.Attribute(value=base, attr=name):
                owner = self.evaluate(base, env)
                if isinstance(owner, Object):
                    self.changed[id(owner), name] = value
            case _:
                raise _LostError

    def branch(self, statement: ast.If, env: dict[str, Any]) -> None:
        condition = self.evaluate(statement.test, env)
        if is_plain(condition):
            self.execute(statement.body if condition else statement.orelse, env)
            return
        ways = []
        for body in (statement.body, statement.orelse):
            self.steps += len(env)
            way = dict(env)
            try:
                self.uncertain(body, way)
            except _RaisedError:
                continue
            ways.append(way)
        if not ways:
            raise _RaisedError
        env.update(ways[0] if len(ways) == 1 else self.joined(*ways))

    def uncertain(self, body: Iterable[ast.stmt], env: dict[str, Any]) -> None:
        self.unsure += 1
        try:
            self.execute(body, env)
        finally:
            self.unsure -= 1

    def joined(self, first: dict[str, Any], second: dict[str, Any]) -> dict[str, Any]:
        return {
            name: first[name] if first[name] is second[name] else self.join(first[name], second[name])
            for name in first.keys() & second.keys()
        }

    def join(self, first: Any, second: Any) -> Any:
        if is_plain(first) and is_plain(second) and type(first) is type(second) and first == second:
            return first
        if isinstance(first, Object) or isinstance(second, Object):
            raise _LostError
        return _Value(self.depth([first, second]))

    def iterate(self, statement: ast.For, env: dict[str, Any]) -> None:
        items = self.evaluate(statement.iter, env)
        if isinstance(items, range | list | tuple):
            for item in items:
                self.step()
                self.assign(statement.target, item, env)
                self.execute(statement.body, env)
            return
        way = dict(env)
        self.assign(statement.target, self.unknown([items]), way)
        self.uncertain(statement.body, way)
        env.update(self.joined(env, way))

    def repeat(self, statement: ast.While, env: dict[str, Any]) -> None:
        while True:
            self.step()
            condition = self.evaluate(statement.test, env)
            if not is_plain(condition):
                break
            if not condition:
                return
            self.execute(statement.body, env)
        way = dict(env)
        self.uncertain(statement.body, way)
        env.update(self.joined(env, way))

    # Expressions

    def evaluate(self, tree: ast.expr, env: dict[str, Any]) -> Any:
        self.step()
        match tree:
            case ast.Constant(value=value):
                return value
            case ast.Name(id=name):
                if name in env:
                    return env[name]
                return {"inf": float("inf"), "nan": float("nan")}.get(name, _Name(name))
            case ast.Attribute(value=base, attr=name):
                return self.attribute(self.evaluate(base, env), name)
            case ast.Call():
                return self.evaluate_call(tree, env)
            case ast.Tuple(elts=parts):
                return tuple(self.evaluate(part, env) for part in parts)
            case ast.List(elts=parts):
                return [self.evaluate(part, env) for part in parts]
            case ast.Dict(keys=keys, values=values):
                items = [
                    (self.evaluate(key, env) if key else None, value) for key, value in zip(keys, values, strict=True)
                ]
                found = {key: self.evaluate(value, env) for key, value in items if isinstance(key, _PLAIN)}
                return found if len(found) == len(items) else self.unknown(found.values())
            case ast.Subscript(value=base, slice=index):
                return self.item(self.evaluate(base, env), self.evaluate(index, env))
            case ast.UnaryOp(op=ast.USub(), operand=operand):
                value = self.evaluate(operand, env)
                return -value if isinstance(value, int | float) else self.unknown([value])
            case ast.IfExp(test=test, body=body, orelse=orelse):
                condition = self.evaluate(test, env)
                if is_plain(condition):
                    return self.evaluate(body if condition else orelse, env)
                return self.join(self.evaluate(body, env), self.evaluate(orelse, env))
        raise _LostError

    def attribute(self, owner: Any, name: str) -> Any:
        if isinstance(owner, _Name):
            if owner.path == "CONSTANTS":
                return self.constants[int(name.removeprefix("c"))]
            return _Name(f"{owner.path}.{name}")
        if isinstance(owner, Object):
            self.restore(owner)
            if name == "training":
                return False
            if (id(owner), name) in self.changed:
                return self.changed[id(owner), name]
            if name in owner.attributes:
                return owner.attributes[name]
            constants = self.code.classes[str(owner.cls)].constants if str(owner.cls) in self.code.classes else {}
            return constants[name] if name in constants else _Method(owner, name)
        return self.unknown([owner])

    def item(self, container: Any, index: Any) -> Any:
        if isinstance(container, list | tuple) and isinstance(index, int) and -len(container) <= index < len(container):
            return container[index]
        if isinstance(container, dict) and isinstance(index, _PLAIN) and index in container:
            return container[index]
        return self.unknown([container])

    def evaluate_call(self, tree: ast.Call, env: dict[str, Any]) -> Any:
        function = self.evaluate(tree.func, env)
        if isinstance(function, _Name) and function.path in ("annotate", "unchecked_cast", "isinstance"):
            # Types are not values
            value = self.evaluate(tree.args[1 if function.path != "isinstance" else 0], env)
            return value if function.path != "isinstance" else self.unknown([])
        if isinstance(function, _Name) and function.path == "uninitialized":
            return _Value()
        args = [self.evaluate(argument, env) for argument in tree.args]
        keywords = {keyword.arg: self.evaluate(keyword.value, env) for keyword in tree.keywords if keyword.arg}
        match function:
            case _Method(owner=owner, name=name):
                return self.call_method(owner, name, args, keywords)
            case _Name(path=path):
                return self.call_name(path, args, keywords)
        return self.unknown([function, *args, *keywords.values()])

    def call_name(self, path: str, args: list[Any], keywords: dict[str, Any]) -> Any:
        if path in self.code.functions:
            owner = self.owners[-1]
            self.owners.append(owner)
            try:
                return self.call(self.code.functions[path], args, keywords)
            finally:
                self.owners.pop()
        first, _, rest = path.partition(".")
        if first == "__torch__":
            # An object or a named tuple of the code; networks are not made while they run
            return self.unknown([*args, *keywords.values()])
        if first in ("torch", "ops") and rest:
            return self.operation(rest.removeprefix("aten."), args, keywords)
        if path == "getattr" and len(args) == 2 and isinstance(args[1], str):
            return self.attribute(args[0], args[1])
        if path == "range" and all(type(argument) is int for argument in args):
            return range(*args)
        if path in ("int", "float", "bool", "str") and len(args) == 1:
            return args[0] if isinstance(args[0], bool | int) and path != "str" else self.unknown(args)
        if path in ("range", "str", "ord", "chr", "print", "hasattr", "min", "max"):
            return self.unknown(args)
        raise _LostError

    def operation(self, name: str, args: list[Any], keywords: dict[str, Any]) -> Any:
        """An operation of PyTorch."""
        if name in CONVOLUTIONS:
            return self.convolution(name, args, keywords)
        if name in PACKERS:
            facts = self.facts(name, PACKERS[name], args, keywords)
            return _Value(None, self.weight(args[0]), facts)
        if name == "prim.RaiseException":
            raise _RaisedError
        if name in ("__is__", "__isnot__") and len(args) == 2:
            return self.identity(args, name == "__is__")
        if name in ARITHMETIC and args and not keywords and all(is_plain(argument) for argument in args):
            return self.arithmetic(ARITHMETIC[name], args)
        if name == "len" and len(args) == 1 and isinstance(args[0], list | tuple | dict):
            return len(args[0])
        if name == "__getitem__" and len(args) == 2:
            return self.item(args[0], args[1])
        if name in QUESTIONS:
            return _Value()
        if args and isinstance(args[0], list | dict) and name.rstrip("_") in CHANGES_OF_LISTS:
            return self.change(name, args)
        if name in ("values", "keys", "items") and args and isinstance(args[0], dict):
            return [*getattr(args[0], name)()]
        depth = self.depth([*args, *keywords.values()])
        if depth is not None:
            return _Value(depth + 1)
        weights = [weight for argument in args if (weight := self.weight(argument)) is not None]
        return _Value(None, weights[0] if weights else None)

    def identity(self, args: list[Any], same: bool) -> Any:
        if None not in [argument if argument is None else 0 for argument in args]:
            return _Value()
        return all(argument is None for argument in args) == same

    def arithmetic(self, function: Callable[..., Any], args: list[Any]) -> Any:
        numbers = all(isinstance(argument, int | float | None) for argument in args)
        if not numbers and function in (operator.mul, operator.mod):
            return _Value()  # long lists and texts are made so
        try:
            value = function(*args)
        except (TypeError, ValueError, IndexError, ZeroDivisionError, OverflowError):
            return _Value()
        if isinstance(value, int) and abs(value) >= 1 << 63:
            raise _LostError
        return value if is_plain(value) else _Value()

    def change(self, name: str, args: list[Any]) -> Any:
        """A change of a list or dict, which the code may know by other names too."""
        target, *rest = args
        if self.unsure:
            raise _LostError
        match name, target, rest:
            case "append", list(), [value]:
                target.append(value)
            case "extend", list(), [list(values)]:
                self.steps += len(values)
                self.step()
                target.extend(values)
            case "insert", list(), [int(place), value]:
                target.insert(place, value)
            case "_set_item", list(), [int(place), value] if -len(target) <= place < len(target):
                target[place] = value
            case "_set_item", dict(), [key, value] if isinstance(key, _PLAIN):
                target[key] = value
            case "pop", list(), [] if target:
                return target.pop()
            case "reverse", list(), []:
                target.reverse()
            case "clear", _, []:
                target.clear()
            case _:
                raise _LostError
        return target

    # Convolutions

    def convolution(self, name: str, args: list[Any], keywords: dict[str, Any]) -> _Value:
        weight = self.weight(args[1])
        packed = args[1].facts if isinstance(args[1], _Value) else _packed_facts(args[1])
        depth = self.depth([*args, *keywords.values()])
        if depth is None or (weight is None and self.depth([args[1]]) is None):
            # A convolution of constants, or with a weight that is not known: it may be any
            raise _LostError
        if self.unsure:
            raise _LostError
        if weight is not None:
            facts = packed or self.facts(name, CONVOLUTIONS[name], args, keywords)
            self.journey.uses.append(Use(weight, self.owners[-1], facts, depth + 1))
        return _Value(depth + 1)

    def facts(
        self, name: str, places: Mapping[int, str], args: Sequence[Any], keywords: Mapping[str, Any]
    ) -> ConvFacts:
        # Missing arguments have their default, 1
        given: dict[str, Any] = {STRIDE: 1, DILATION: 1, GROUPS: 1, TRANSPOSED: "transpose" in name}
        if name.startswith("quantized.") and not places:
            given = {TRANSPOSED: "transpose" in name}
        for place, key in places.items():
            if place < len(args):
                given[key] = args[place]
        given.update({key: value for key, value in keywords.items() if key in given})
        for key in (STRIDE, DILATION):
            values = given.get(key)
            if isinstance(values, list | tuple) and len(values) == 1:
                given[key] = [*values, *values]
        return conv_facts("", given.get)

    def weight(self, value: Any) -> Any:
        """The stored kernels behind a value; None if there are none, or if they depend on the image."""
        if isinstance(value, _Value):
            return value.weight
        if isinstance(value, Object):
            return first_kernel(value.state, self.is_kernel)
        return value if self.is_kernel(value) else None

    def depth(self, values: Iterable[Any]) -> int | None:
        """The deepest of some values."""
        found: int | None = None
        stack = [*values]
        while stack:
            self.step()
            value = stack.pop()
            if isinstance(value, _Value) and value.depth is not None:
                found = value.depth if found is None else max(found, value.depth)
            elif isinstance(value, list | tuple):
                stack += value
            elif isinstance(value, dict):
                stack += value.values()
        return found

    def unknown(self, values: Iterable[Any]) -> _Value:
        """A value computed from some values."""
        return _Value(self.depth(values))


def _packed_facts(value: Any) -> ConvFacts | None:
    """What the packed weight of a quantised layer states in front of it, in a frozen network; None for other values."""
    settings = first_kernel(value.state, _are_settings) if isinstance(value, Object) else None
    if settings is None:
        return None
    _, *numbers, groups, transposed = (int(number) for number in settings.read())
    given = {STRIDE: numbers[:2], DILATION: numbers[4:6], GROUPS: groups, TRANSPOSED: transposed % 2 == 1}
    return conv_facts("", given.get)


def _are_settings(value: Any) -> bool:
    # Dimensions, stride, padding, dilation, padding of the output, groups, whether it is transposed
    return getattr(value, "dtype", None) == "int16" and getattr(value, "shape", None) == (11,)


def first_kernel(value: Any, is_kernel: Callable[[Any], bool], depth: int = 0) -> Any:
    """The first kernel in a value or in the lists that it is made of; None where there is none."""
    if is_kernel(value):
        return value
    if isinstance(value, list | tuple) and depth < 4:
        for part in value[:16]:
            if (found := first_kernel(part, is_kernel, depth + 1)) is not None:
                return found
    return None
