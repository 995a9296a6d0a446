"""The code of a TorchScript archive, parsed.

An archive contains its network as code in a small language with the syntax of Python, which PyTorch prints from its
graph (``torch/csrc/jit/serialization/python_print.cpp``). The code is never run; :mod:`ast` only parses it.

The language: https://docs.pytorch.org/docs/stable/jit_language_reference.html
"""

from __future__ import annotations

import ast
import warnings
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

__all__ = ["Class", "Code"]


@dataclass(slots=True)
class Class:
    """What the code says about a class: attributes that all its objects share, and its methods."""

    parameters: tuple[str, ...] = ()
    buffers: tuple[str, ...] = ()
    constants: dict[str, Any] = field(default_factory=dict)
    methods: dict[str, ast.FunctionDef] = field(default_factory=dict)


class Code:
    r"""Classes and functions of an archive, by their full names.

    Example:
        >>> code = Code({"__torch__.net": "class Net(Module):\n  __parameters__ = ['w']\n  groups : Final[int] = 4"})
        >>> code.constant("__torch__.net.Net", "groups"), code.parameters("__torch__.net.Net")
        (4, ('w',))
    """

    def __init__(self, sources: Mapping[str, str]) -> None:
        """Parse the code.

        Args:
            sources: Text of each file, by the name of its module.

        Raises:
            SyntaxError: It does not have the syntax of Python.
            RecursionError, MemoryError: It is nested too deeply.
        """
        self.classes: dict[str, Class] = {}
        self.functions: dict[str, ast.FunctionDef] = {}
        for module, source in sources.items():
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # about the style of the code, which does not concern our users
                tree = ast.parse(source)
            for part in tree.body:
                if isinstance(part, ast.FunctionDef):
                    self.functions[f"{module}.{part.name}"] = part
                elif isinstance(part, ast.ClassDef):
                    self.classes[f"{module}.{part.name}"] = _class(part)

    def parameters(self, cls: str) -> tuple[str, ...]:
        """Names of the parameters of a class; none for one that is not known."""
        return self.classes[cls].parameters if cls in self.classes else ()

    def buffers(self, cls: str) -> tuple[str, ...]:
        """Names of its buffers."""
        return self.classes[cls].buffers if cls in self.classes else ()

    def constant(self, cls: str, name: str) -> Any:
        """An attribute that is the same for all objects of a class; None where there is none."""
        return self.classes[cls].constants.get(name) if cls in self.classes else None


def _class(tree: ast.ClassDef) -> Class:
    found = Class()
    for part in tree.body:
        if isinstance(part, ast.FunctionDef):
            found.methods[part.name] = part
        elif isinstance(part, ast.AnnAssign) and isinstance(part.target, ast.Name) and part.value is not None:
            found.constants[part.target.id] = _literal(part.value)
        elif isinstance(part, ast.Assign) and isinstance(part.targets[0], ast.Name):
            names = _literal(part.value)
            if isinstance(names, list) and all(isinstance(name, str) for name in names):
                if part.targets[0].id == "__parameters__":
                    found.parameters = tuple(names)
                elif part.targets[0].id == "__buffers__":
                    found.buffers = tuple(names)
    return found


def _literal(tree: ast.expr) -> Any:
    try:
        return ast.literal_eval(tree)
    except (ValueError, TypeError, RecursionError, MemoryError):
        return None
