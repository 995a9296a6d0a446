"""Sources: where models come from. Each lists models, describes one, and brings its weight file.

A source is one module with one small class, registered by the decorator :func:`register`; packages of third parties
register theirs through the entry-point group ``cnnfilterdb.sources``.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from importlib.metadata import entry_points
from inspect import signature
from pathlib import Path
from typing import Any, Protocol, TypeVar

from cnnfilterdb.errors import SelectionError, UnknownModelError
from cnnfilterdb.ingest.network.layers import Weights
from cnnfilterdb.schema import ModelFacts

__all__ = ["Progress", "Source", "get", "register", "registered"]

#: Called with (bytes done, bytes expected or None) while a file is brought.
Progress = Callable[[int, int | None], None]


class Source(Protocol):
    """A place that models come from."""

    name: str

    def list(self, patterns: Sequence[str] = ()) -> Sequence[str]:
        """Names of the models that match any of the shell-style patterns (all without patterns); no network.

        Raises:
            UnknownModelError: A pattern matches nothing; the message gives the nearest names.
        """

    def describe(self, name: str) -> ModelFacts:
        """What is known about a model before its weights are read; no network."""

    def resolve(self, name: str, progress: Progress | None = None) -> Path:
        """Bring the weight file of a model into the cache, check its hash, and return its path.

        Raises:
            DownloadError: It cannot be brought.
            HashMismatchError: It is not the expected file.
        """

    def enrich(self, name: str, weights: Weights) -> Weights:
        """Add to the layers of a file what the source knows of the model and the file does not tell.

        Order and depth from the architecture, layers that are never executed, ... A source that knows nothing of the
        kind returns what it is given.
        """


_sources: dict[str, Callable[..., Source]] = {}

S = TypeVar("S", bound=Callable[..., Source])


def register(cls: S) -> S:
    """Class decorator: add a source to the registry under its class attribute ``name``."""
    _sources[cls.name] = cls  # type: ignore[attr-defined]
    return cls


def registered() -> Iterable[str]:
    """Names of all sources, built-in and of other packages."""
    return sorted({*_sources, *(point.name for point in entry_points(group="cnnfilterdb.sources"))})


def get(name: str, **options: Any) -> Source:
    """The source of that name.

    Args:
        name: Its name.
        **options: Passed to its class; None stands for an option that is not given.

    Raises:
        UnknownModelError: There is none.
        SelectionError: It does not have such an option.
    """
    if name not in _sources:
        for point in entry_points(group="cnnfilterdb.sources", name=name):
            _sources.setdefault(name, point.load())
    if name not in _sources:
        raise UnknownModelError(f"no source named {name!r}; known: {', '.join(registered())}")
    given = {key: value for key, value in options.items() if value is not None}
    known = signature(_sources[name]).parameters
    if unknown := sorted(given.keys() - known.keys()):
        raise SelectionError(f"source {name} has no option {unknown[0]}; it has {', '.join(known) or 'none'}")
    return _sources[name](**given)
