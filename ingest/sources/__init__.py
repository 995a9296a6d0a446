"""Sources: where models come from. Each lists models, describes one, and provides its weight file.

A source is one module with one small class, registered by the decorator :func:`register`; packages of third parties
register theirs through the entry-point group ``cnnfilterdb.sources``. :class:`cnnfilterdb.testing.SourceTests` tests
that a source keeps the contract of :class:`Source`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from importlib.metadata import entry_points
from inspect import Parameter, signature
from pathlib import Path
from types import MappingProxyType
from typing import Any, TypeVar

from cnnfilterdb.core.errors import IngestError, SelectionError, UnknownModelError
from cnnfilterdb.core.schema import ModelFacts
from cnnfilterdb.ingest.fetch.cache import ByteProgress
from cnnfilterdb.ingest.network.layers import Weights

__all__ = ["Source", "as_source", "available", "get", "register", "registered"]

#: The options that every ingest may pass to a source, as users write them.
_SPELLING = {
    "folder": "--from (folder=...)",
    "offline": "--offline (offline=True)",
    "partial": "--partial (partial=True)",
}


class Source:
    """A place that models come from.

    A source defines :attr:`name`, :meth:`list`, :meth:`describe` and :meth:`resolve`. Everything else has a default.
    A source of another package need not derive from this class, and its ``resolve`` may take the name only.

    The constructor may take the options ``folder`` (look for files there first), ``offline`` (do not access the
    network) and ``partial`` (download only the convolutions). Users cannot pass an option that it does not take.

    Any exception that a method raises for a model fails that model only.

    Attributes:
        name: Name of the source; the models are stored as ``name/model``.
        unsupported: Options that make no sense for the source, with the reason, which completes the sentence
            "source x does not support --partial: ...".
        isolated: Whether weight files are read in a child process with limits, because they are untrusted.
    """

    name: str = ""
    unsupported: Mapping[str, str] = MappingProxyType({})
    isolated: bool = True

    def list(self, patterns: Sequence[str] = ()) -> Sequence[str]:
        """Names of the models that match any of the shell-style patterns (all without patterns); no network.

        Raises:
            UnknownModelError: A pattern matches nothing; the message gives the nearest names.
        """
        raise NotImplementedError

    def describe(self, name: str) -> ModelFacts:
        """What is known about a model before its weights are read; no network. Unknown facts are None.

        An import calls it from several threads, each with another name, once the file is there.

        Raises:
            UnknownModelError: No such model exists.
        """
        raise NotImplementedError

    def resolve(self, name: str, progress: ByteProgress | None = None) -> Path:
        """Provide the weight file of a model on this machine, verified, and return its path.

        Called from several threads, each with another name.

        Args:
            name: Name of the model.
            progress: Called with (bytes done, bytes expected or None) now and then. It may raise, to cancel the
                download; let its exception pass.

        Raises:
            UnknownModelError: No such model exists.
            DownloadError: The file is not available.
            HashMismatchError: It is not the expected file.
        """
        raise NotImplementedError

    def enrich(self, name: str, weights: Weights) -> Weights:
        """Add to the layers of a file what the source knows about the model and the file does not state.

        Order and depth from the architecture, layers that are never executed, ... Called after :meth:`resolve`; by
        default the layers are not changed. Called for one model at a time.
        """
        return weights

    def download_size(self, name: str) -> int | None:
        """Bytes that :meth:`resolve` would download; 0 for a cached or local file, None where it is unknown."""
        return None

    def download_key(self, name: str) -> str:
        """What :meth:`resolve` would download: models of the same key share one download. By default, none do."""
        return name


_sources: dict[str, Callable[..., Any]] = {}

S = TypeVar("S", bound=Callable[..., Any])


def register(cls: S) -> S:
    """Class decorator: add a source to the registry under its class attribute ``name``."""
    _sources[cls.name] = cls  # type: ignore[attr-defined]
    return cls


def registered() -> Iterable[str]:
    """Names of all sources, built-in ones and those of other packages."""
    return sorted({*_sources, *(point.name for point in entry_points(group="cnnfilterdb.sources"))})


def plugins() -> list[str]:
    """Names of the sources of other packages."""
    points = entry_points(group="cnnfilterdb.sources")
    modules = {name: made.__module__ for name, made in _sources.items()} | {one.name: one.module for one in points}
    return sorted(name for name, module in modules.items() if not module.startswith(f"{__name__}."))


def get(name: str, **options: Any) -> Source:
    """The source of that name.

    Args:
        name: Its name.
        **options: Passed to its class; None and False mean that an option is not given.

    Raises:
        UnknownModelError: No such source exists.
        SelectionError: It does not support such an option; the message states the reason.
        IngestError: A source of another package cannot be loaded.
    """
    made = _class(name)
    given = {key: value for key, value in options.items() if value is not None and value is not False}
    known = signature(made).parameters.values()
    anything = any(parameter.kind is Parameter.VAR_KEYWORD for parameter in known)
    reasons = getattr(made, "unsupported", {})
    for option in given:
        spelling = _SPELLING.get(option, f"{option}=...")
        if option in reasons:
            raise SelectionError(f"source {name} does not support {spelling}: {reasons[option]}")
        if not anything and option not in {parameter.name for parameter in known}:
            raise SelectionError(f"source {name} does not support {spelling}: it has no such option")
    try:
        return as_source(made(**given))
    except Exception as error:
        raise _broken(name, error) from error


def available(name: str) -> list[tuple[str, ModelFacts]]:
    """The models that a source offers without network, with what is known about them.

    Raises:
        UnknownModelError: No such source exists.
        IngestError: The source of another package fails.
    """
    source = get(name)
    try:
        return [(model, source.describe(model)) for model in source.list()]
    except Exception as error:
        raise _broken(name, error) from error


def as_source(source: Any) -> Source:
    """A source of another package with the whole contract of :class:`Source`."""
    if isinstance(source, Source) and "progress" in signature(source.resolve).parameters:
        return source
    return _Adapted(source)


class _Adapted(Source):
    """A source that defines only what it must."""

    def __init__(self, source: Any) -> None:
        self._source = source
        self.name = source.name
        self.unsupported = getattr(source, "unsupported", Source.unsupported)
        self.isolated = getattr(source, "isolated", Source.isolated)
        for optional in ("enrich", "download_size", "download_key"):
            if hasattr(source, optional):
                setattr(self, optional, getattr(source, optional))
        parameters = signature(source.resolve).parameters.values()
        self._reports = len(parameters) > 1 or any(p.kind is Parameter.VAR_POSITIONAL for p in parameters)

    def list(self, patterns: Sequence[str] = ()) -> Sequence[str]:
        found: Sequence[str] = self._source.list(patterns)
        return found

    def describe(self, name: str) -> ModelFacts:
        facts: ModelFacts = self._source.describe(name)
        return facts

    def resolve(self, name: str, progress: ByteProgress | None = None) -> Path:
        path = self._source.resolve(name, progress) if self._reports else self._source.resolve(name)
        return Path(path)


def _class(name: str) -> Callable[..., Any]:
    if name not in _sources:
        for point in entry_points(group="cnnfilterdb.sources", name=name):
            try:
                _sources.setdefault(name, point.load())
            except Exception as error:
                raise _broken(name, error) from error
    if name not in _sources:
        raise UnknownModelError(f"no source named {name!r}; known: {', '.join(registered())}")
    return _sources[name]


def _broken(name: str, error: Exception) -> Exception:
    """Errors of this package unchanged; any other as an error of a plugin."""
    if type(error).__module__.partition(".")[0] == "cnnfilterdb":
        return error
    reason = " ".join(str(error).split())
    return IngestError(f"source {name} failed: {type(error).__name__}: {reason}; report it to the author of the source")
