"""What is known about models, as data that people review.

The files beside this module are the catalog: vocabularies (``domains.csv``, ``tasks.csv``, ``licenses.csv``), data sets
(``datasets.csv``), sources (``sources.csv``) with the models of each (``<source>.csv``), and named lists of models
(``collections.toml``). Their columns are told in ``README.md``. They are read and checked on first use; importing this
module costs nothing.

>>> from cnnfilterdb import catalog
>>> catalog.domains()["medical ct"].origin
'cvpr2022'
>>> catalog.match([model.name for model in catalog.models("pypi")], ["facenet-pytorch/?net"])
['facenet-pytorch/onet', 'facenet-pytorch/pnet', 'facenet-pytorch/rnet']
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from functools import cache
from importlib import import_module
from typing import TYPE_CHECKING, Any

from cnnfilterdb.errors import SelectionError, UnknownModelError

if TYPE_CHECKING:
    from cnnfilterdb.catalog.entries import Catalog, CatalogModel, Collection, Dataset, License, Term

__all__ = [
    "Catalog",
    "CatalogModel",
    "Collection",
    "Dataset",
    "License",
    "Term",
    "collections",
    "datasets",
    "domains",
    "expand",
    "licenses",
    "match",
    "models",
    "published",
    "tasks",
]

_entries = ("Catalog", "CatalogModel", "Collection", "Dataset", "License", "Term")


def __getattr__(name: str) -> Any:
    if name in _entries:
        return getattr(import_module("cnnfilterdb.catalog.entries"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})


@cache
def _shipped() -> Catalog:
    from importlib.resources import files

    from cnnfilterdb.catalog.reader import read

    return read(files("cnnfilterdb.catalog"))


@cache
def published() -> Mapping[str, Any]:
    """Numbers that the papers published, to compare with: the SVD basis and shift matrices of version 1.0.0.

    ``basis`` holds ``mean``, ``mean_recomputed``, ``explained_variance_ratio`` (9,) and the sizes of the data;
    ``basis.nonsparse`` the ratios without sparse filters; ``shift`` the matrices by ``task``, ``domain`` and ``depth``,
    each with its ``labels``. Where each is from stands in ``published.toml``.

    >>> len(published()["shift"]["domain"]["labels"])
    16
    """
    import tomllib
    from importlib.resources import files

    return tomllib.loads(files("cnnfilterdb.catalog").joinpath("published.toml").read_text(encoding="utf-8"))


def domains() -> Mapping[str, Term]:
    """Image domains by name: the papers' visual categories and what other weights needed."""
    return _shipped().domains


def tasks() -> Mapping[str, Term]:
    """Tasks by name."""
    return _shipped().tasks


def licenses() -> Mapping[str, License]:
    """Licences by SPDX identifier."""
    return _shipped().licenses


def datasets() -> Mapping[str, Dataset]:
    """Data sets by name."""
    return _shipped().datasets


def collections() -> Mapping[str, Collection]:
    """Named lists of models by name."""
    return _shipped().collections


def models(source: str | None = None) -> tuple[CatalogModel, ...]:
    """Models on offer, in the order of the files.

    Args:
        source: Those of one source only.

    Raises:
        SelectionError: The catalog has no such source.
    """
    by_source = _shipped().models
    if source is None:
        return tuple(model for group in by_source.values() for model in group)
    if source not in by_source:
        raise SelectionError(f"the catalog has no source {source!r}; it has {', '.join(by_source)}")
    return by_source[source]


def expand(collection: str) -> list[tuple[str, str]]:
    """The models of a collection as (source, name), each once.

    Raises:
        UnknownModelError: There is no such collection; the message gives the nearest names.

    >>> expand("demo")[0]
    ('pypi', 'deepcr/mask-acs-wfc-f606w')
    """
    there = collections()
    if collection not in there:
        near = _near(collection, there)
        hint = f"; nearest: {', '.join(near)}" if near else ""
        raise UnknownModelError(f"no collection named {collection!r}{hint}; there are {', '.join(there)}")
    return list(there[collection].models)


def match(names: Sequence[str], patterns: Iterable[str]) -> list[str]:
    """Those of some names that fit at least one pattern, in the order of the names.

    Args:
        names: Names to choose from.
        patterns: Names, or shell-style patterns as in :mod:`fnmatch`; ``*`` matches slashes too, and
            case does not matter.

    Raises:
        UnknownModelError: A pattern fits nothing; the message gives the nearest names.

    >>> match(["a/one", "a/two", "b/one"], ["*/one"])
    ['a/one', 'b/one']
    """
    from fnmatch import fnmatchcase

    def fits(name: str, pattern: str) -> bool:
        return fnmatchcase(name.lower(), pattern.lower())

    chosen: set[str] = set()
    known = set(names)
    for pattern in patterns:
        # A name is meant as it stands: it may hold a bracket, or differ from another one in case only.
        found = {pattern} if pattern in known else {name for name in names if fits(name, pattern)}
        if not found:
            near = ", ".join(_near(pattern, names))
            hint = f"nearest: {near}" if near else "no name is near it; `cnnfilterdb models --available` lists all"
            raise UnknownModelError(f"no model matches {pattern!r}; {hint}")
        chosen |= found
    return [name for name in dict.fromkeys(names) if name in chosen]


def _near(wanted: str, names: Iterable[str]) -> list[str]:
    """Up to three names that may have been meant, or groups of names when a whole group was asked for."""
    from difflib import get_close_matches

    names = list(names)
    text = wanted.strip("*?").lower()
    alike = get_close_matches(text, names, 3) or [name for name in names if text and text in name.lower()][:3]
    groups = list(dict.fromkeys(name[:at] for name in names for at, letter in enumerate(name) if letter == "/"))
    group = text.rpartition("/")[0] or text
    near_groups = [f"{near}/*" for near in get_close_matches(group, groups, 3)]
    return near_groups or alike if wanted.endswith("*") else alike or near_groups
