"""What the catalog is made of, without I/O: terms, data sets, licences, models, collections."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from cnnfilterdb.schema import ModelFacts

__all__ = [
    "CONDITIONS",
    "FORBIDDING",
    "FORMATS",
    "LIST_SEPARATOR",
    "ORIGINS",
    "REDISTRIBUTION",
    "STATUSES",
    "Catalog",
    "CatalogModel",
    "Collection",
    "Dataset",
    "License",
    "Term",
    "license_parts",
]

#: Where a term comes from: the vocabulary of CNN Filter DB (CVPR 2022), or an addition for weights that came later.
ORIGINS = ("cvpr2022", "extended")

#: Formats of weight files that :mod:`cnnfilterdb.ingest.formats` reads.
FORMATS = ("torch", "torchscript", "safetensors", "onnx", "keras", "npz", "tensorflow", "tflite", "tfjs")

#: What the spectrum of the 3x3 kernels tells of the training; ``unjudged`` where there are too few of them, or
#: nobody has looked.
STATUSES = ("trained", "close to initialisation", "weakly trained", "unjudged")

#: Whether a licence lets kernels of a model be passed on in a public data set that names the model's source, its
#: licence and the licence's conditions; ``no`` too where it asks for more than that.
REDISTRIBUTION = ("yes", "no", "unknown")

#: What a licence asks of those who pass something on, or restricts, and what that means.
CONDITIONS = MappingProxyType(
    {
        "attribution": "name the authors and keep the notices and the text of the licence",
        "share-alike": "pass on what is made from it under the same licence only",
        "source": "offer the form in which it was made along with it",
        "noncommercial": "no commercial use",
        "use-restrictions": "no use that the licence lists as forbidden, and the same for all who get it from you",
        "no-derivatives": "only unchanged copies may be passed on, and kernels taken out of a model are not one",
        "research-only": "for research or teaching only",
        "agreement": "its terms have to come with each copy and bind all who take it",
    }
)

#: The conditions that a public data set cannot meet.
FORBIDDING = ("no-derivatives", "research-only", "agreement")

#: Between several data sets, or conditions, in one cell.
LIST_SEPARATOR = "; "


def license_parts(expression: str) -> list[str]:
    """The licences that all apply, of an SPDX expression without alternatives.

    >>> license_parts("AGPL-3.0-only AND CC-BY-NC-SA-3.0")
    ['AGPL-3.0-only', 'CC-BY-NC-SA-3.0']
    """
    return expression.split(" AND ")


@dataclass(frozen=True, slots=True)
class Term:
    """A word of a vocabulary.

    Attributes:
        name: The word, as it stands in the models table.
        origin: ``cvpr2022`` when it is one of the paper's words, else ``extended``.
        paper_models: Models under that word in the paper's data, version 1.0.0; None for other words.
        description: What it means.
    """

    name: str
    origin: str
    paper_models: int | None
    description: str


@dataclass(frozen=True, slots=True)
class License:
    """A licence that weights come under.

    Attributes:
        name: SPDX identifier, or one that begins with ``LicenseRef-``.
        permissive: It asks for no more than attribution, and is one that people know.
        redistribution: Whether kernels of a model under it may be passed on, one of REDISTRIBUTION.
        conditions: What it asks for, of CONDITIONS and in their order.
        hub: Its identifier in the cards of the Hugging Face Hub, None where that has none.
        url: Where its text is, None where it is not known.
        title: Its name in full.
    """

    name: str
    permissive: bool
    redistribution: str
    conditions: tuple[str, ...]
    hub: str | None
    url: str | None
    title: str


@dataclass(frozen=True, slots=True)
class Dataset:
    """A data set that models were trained on.

    Attributes:
        name: Its short name, as it stands in the models table.
        domain: Image domain of its pictures.
        origin: ``cvpr2022`` when models of the paper were trained on it, else ``extended``.
        title: What it is.
        url: Where it is described, None where that is not known.
        license: Its licence, None where that is not known.
    """

    name: str
    domain: str
    origin: str
    title: str
    url: str | None
    license: str | None


@dataclass(frozen=True, slots=True)
class CatalogModel:
    """A model on offer.

    Attributes:
        source: Name of the source that brings it.
        name: Its name there.
        facts: What is known about it.
        origin: What its source needs to find it: the columns of the source's file that other sources do not have.
        format: Format of its weight file, one of FORMATS.
        status: What its 3x3 kernels tell of its training, one of STATUSES.
        permissive: All its licences ask for no more than attribution.
        conv_layers: Two-dimensional convolutions, transposed and 1x1 ones included, None where they were not counted.
        conv3x3_layers: Those of kernel size 3x3.
        conv3x3_filters: 3x3 kernels.
        note: A remark for those who review the catalog.
    """

    source: str
    name: str
    facts: ModelFacts
    origin: Mapping[str, str]
    format: str
    status: str
    permissive: bool
    conv_layers: int | None
    conv3x3_layers: int | None
    conv3x3_filters: int | None
    note: str | None

    @property
    def model_id(self) -> str:
        """The key that it has in a database."""
        return f"{self.source}/{self.name}"

    @property
    def pinned(self) -> bool:
        """Its origin holds a SHA-256, so that the file that was reviewed is the file that comes."""
        return any(value for column, value in self.origin.items() if column.endswith("sha256"))


@dataclass(frozen=True, slots=True)
class Collection:
    """A named list of models.

    Attributes:
        name: Its name.
        title: What it is for.
        models: Models as (source, name), in the order in which the collection lists them.
    """

    name: str
    title: str
    models: tuple[tuple[str, str], ...]


@dataclass(frozen=True, slots=True)
class Catalog:
    """Everything, by name."""

    domains: Mapping[str, Term]
    tasks: Mapping[str, Term]
    licenses: Mapping[str, License]
    datasets: Mapping[str, Dataset]
    models: Mapping[str, tuple[CatalogModel, ...]]
    collections: Mapping[str, Collection]
