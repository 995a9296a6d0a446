"""The entries of the catalog, without I/O: terms, data sets, licences, models, collections."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from cnnfilterdb.core.schema import ModelFacts

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

#: Where a term comes from: the vocabulary of CNN Filter DB (CVPR 2022), or an addition for other weights.
ORIGINS = ("cvpr2022", "extended")

#: Formats of weight files that are read: name -> module below :mod:`cnnfilterdb.ingest.formats`, in the order in which
#: they are tried. A module is imported when the first file is read.
FORMATS = MappingProxyType(
    {
        "keras": "keras.model",
        "safetensors": "safetensors",
        "tflite": "tflite",
        "executorch": "executorch",
        "npz": "npz",
        "tfjs": "tfjs",
        "openvino": "openvino",
        "gguf": "gguf",
        "mxnet": "mxnet",
        "caffe": "caffe",
        "coreml": "coreml",
        "darknet": "darknet",
        "flax": "flax",
        "zarr": "zarr",
        "paddle": "paddle",
        "ncnn": "ncnn",
        "tensorflow": "tensorflow.model",
        "torch": "torch.checkpoint",
        "torchscript": "torch.checkpoint",
        "onnx": "onnx.model",
    }
)

#: What the spectrum of the 3x3 kernels shows about the training; ``unjudged`` where there are too few of them, or
#: they have not been examined.
STATUSES = ("trained", "close to initialisation", "weakly trained", "unjudged")

#: Whether a licence permits kernels of a model in a public data set that names the model's source, its licence and
#: the licence's conditions; ``no`` also where it requires more than that.
REDISTRIBUTION = ("yes", "no", "unknown")

#: What a licence requires from those who redistribute something, or restricts, and what that means.
CONDITIONS = MappingProxyType(
    {
        "attribution": "name the authors and keep the notices and the text of the licence",
        "share-alike": "redistribute what is made from it under the same licence only",
        "source": "offer the form in which it was made along with it",
        "noncommercial": "no commercial use",
        "use-restrictions": "no use that the licence forbids, and the same for every recipient",
        "no-derivatives": "only unchanged copies may be redistributed, and kernels of a model are not one",
        "research-only": "for research or teaching only",
        "agreement": "its terms must accompany each copy and bind every recipient",
    }
)

#: The conditions that a public data set cannot meet.
FORBIDDING = ("no-derivatives", "research-only", "agreement")

#: Separates several data sets, or conditions, in one cell.
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
        name: The word, as it is stored in the models table.
        origin: ``cvpr2022`` when it is a word of the paper, else ``extended``.
        paper_models: Models under that word in the paper's data, version 1.0.0; None for other words.
        description: What it means.
    """

    name: str
    origin: str
    paper_models: int | None
    description: str


@dataclass(frozen=True, slots=True)
class License:
    """A licence of weights.

    Attributes:
        name: SPDX identifier, or one that begins with ``LicenseRef-``.
        permissive: It requires no more than attribution, and is well known.
        redistribution: Whether kernels of a model under it may be redistributed, one of REDISTRIBUTION.
        conditions: What it requires, of CONDITIONS and in their order.
        hub: Its identifier in the cards of the Hugging Face Hub, None if it has none.
        url: Address of its text, None if it is unknown.
        title: Its full name.
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
        name: Its short name, as it is stored in the models table.
        domain: Image domain of its images.
        origin: ``cvpr2022`` when models of the paper were trained on it, else ``extended``.
        title: What it is.
        url: Where it is described, None if that is unknown.
        license: Its licence, None if that is unknown.
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
        source: Name of the source that provides it.
        name: Its name there.
        facts: What is known about it.
        origin: What its source needs to find it: the columns of the source's file that other sources do not have.
        format: Format of its weight file, one of FORMATS.
        status: What its 3x3 kernels show about its training, one of STATUSES.
        permissive: All its licences require no more than attribution.
        conv_layers: Two-dimensional convolutions, transposed and 1x1 ones included, None if they were not counted.
        conv3x3_layers: Those of kernel size 3x3.
        conv3x3_filters: 3x3 kernels.
        note: A remark for reviewers of the catalog.
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
        """Its key in a database."""
        return f"{self.source}/{self.name}"

    @property
    def pinned(self) -> bool:
        """Its origin has a SHA-256, so the file that was reviewed is the file that is downloaded."""
        return any(value for column, value in self.origin.items() if column.endswith("sha256"))


@dataclass(frozen=True, slots=True)
class Collection:
    """A named list of models.

    Attributes:
        name: Its name.
        title: Its purpose.
        models: Models as (source, name), in the order in which the collection lists them.
    """

    name: str
    title: str
    models: tuple[tuple[str, str], ...]


@dataclass(frozen=True, slots=True)
class Catalog:
    """The whole catalog, by name."""

    domains: Mapping[str, Term]
    tasks: Mapping[str, Term]
    licenses: Mapping[str, License]
    datasets: Mapping[str, Dataset]
    models: Mapping[str, tuple[CatalogModel, ...]]
    collections: Mapping[str, Collection]
