"""Facts about models, as data that people review.

The files beside this module are the catalog: vocabularies (``domains.csv``, ``tasks.csv``, ``licenses.csv``), data sets
(``datasets.csv``), sources (``sources.csv``) with the models of each (``<source>.csv``), and named lists of models
(``collections.toml``). ``README.md`` describes their columns. They are read and checked on first use; importing this
module costs nothing.

>>> from cnnfilterdb import catalog
>>> catalog.domains()["medical ct"].origin
'cvpr2022'
>>> catalog.match([model.name for model in catalog.models("pypi")], ["facenet-pytorch/?net"])
['facenet-pytorch/onet', 'facenet-pytorch/pnet', 'facenet-pytorch/rnet']
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache
from importlib import import_module
from typing import TYPE_CHECKING, Any

from cnnfilterdb.catalog.names import match, near
from cnnfilterdb.core.errors import SelectionError, UnknownModelError

if TYPE_CHECKING:
    from cnnfilterdb.catalog.entries import Catalog, CatalogModel, Collection, Dataset, License, Term
    from cnnfilterdb.catalog.words import Word

__all__ = [
    "Catalog",
    "CatalogModel",
    "Collection",
    "Dataset",
    "License",
    "Term",
    "check_facts",
    "collections",
    "datasets",
    "domains",
    "expand",
    "licenses",
    "match",
    "models",
    "published",
    "tasks",
    "vocabulary",
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

    from cnnfilterdb.catalog.reader import read_catalog

    return read_catalog(files("cnnfilterdb.catalog"))


@cache
def published() -> Mapping[str, Any]:
    """Numbers that the papers published, for comparison: the SVD basis and shift matrices of version 1.0.0.

    ``basis`` contains ``mean``, ``mean_recomputed``, ``explained_variance_ratio`` (9,) and the sizes of the data;
    ``basis.nonsparse`` the ratios without sparse filters; ``shift`` the matrices by ``task``, ``domain`` and ``depth``,
    each with its ``labels``. ``published.toml`` gives the origin of each number.

    >>> len(published()["shift"]["domain"]["labels"])
    16
    """
    import tomllib
    from importlib.resources import files

    return tomllib.loads(files("cnnfilterdb.catalog").joinpath("published.toml").read_text(encoding="utf-8"))


def domains() -> Mapping[str, Term]:
    """Image domains by name: the papers' visual categories, and additions for other weights."""
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
    """Models of the catalog, in the order of the files.

    Args:
        source: Return the models of this source only.

    Raises:
        SelectionError: The catalog has no such source.
    """
    by_source = _shipped().models
    if source is None:
        return tuple(model for group in by_source.values() for model in group)
    if source not in by_source:
        raise SelectionError(f"the catalog has no source {source!r}; it has {', '.join(by_source)}")
    return by_source[source]


def check_facts(facts: Mapping[str, Any], *, new_words: bool = False) -> None:
    """Refuse facts whose domain, task, framework or family is not in the catalog.

    Args:
        facts: Facts of a model by name. Facts that are None, empty or not checked are ignored.
        new_words: Accept words that the catalog does not know.

    Raises:
        SelectionError: A word is unknown; the message suggests the nearest known ones.

    >>> check_facts({"domain": "natural", "task": None, "license": "MIT"})
    >>> check_facts({"domain": "naturel"})  # doctest: +ELLIPSIS
    Traceback (most recent call last):
    cnnfilterdb.SelectionError: unknown domain 'naturel'; did you mean 'natural'? ...
    """
    from cnnfilterdb.catalog.words import CHECKED, check_words

    if not new_words and any(facts.get(fact) for fact in CHECKED):  # the catalog is read only if it is needed
        check_words(_shipped(), facts)


def vocabulary(name: str) -> list[Word]:
    """The words of a vocabulary, with their meaning and the number of models in the catalog that they describe.

    Args:
        name: ``domains``, ``tasks``, ``families``, ``frameworks``, ``datasets`` or ``licenses``.

    Raises:
        SelectionError: No such vocabulary exists.

    >>> vocabulary("tasks")[0].name
    'Classification'
    """
    from cnnfilterdb.catalog.words import words

    return words(_shipped(), name)


def expand(collection: str) -> list[tuple[str, str]]:
    """The models of a collection as (source, name), each once.

    Raises:
        UnknownModelError: No such collection exists; the message gives the nearest names.

    >>> expand("demo")[0]
    ('pypi', 'deepcr/mask-acs-wfc-f606w')
    """
    there = collections()
    if collection not in there:
        nearest = near(collection, there)
        hint = f"; nearest: {', '.join(nearest)}" if nearest else ""
        raise UnknownModelError(f"no collection named {collection!r}{hint}; there are {', '.join(there)}")
    return list(there[collection].models)
