"""The words that describe models, what they mean, and a check that a fact uses one of them.

Groups are compared by these words, so a typo would form a separate group. Facts are therefore checked against the
catalog before they are stored.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from difflib import get_close_matches
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

from cnnfilterdb.core.errors import SelectionError

if TYPE_CHECKING:
    from cnnfilterdb.catalog.entries import Catalog, CatalogModel

__all__ = ["CHECKED", "FRAMEWORKS", "VOCABULARIES", "Word", "check_words", "words"]

#: Frameworks that write weight files, and what they are.
FRAMEWORKS = MappingProxyType(
    {
        "pytorch": "PyTorch: checkpoints, TorchScript, ExecuTorch and most safetensors files",
        "keras": "Keras: .keras and .h5 files",
        "tensorflow": "TensorFlow: SavedModel, checkpoints, frozen graphs, TensorFlow Lite, TensorFlow.js",
        "onnx": "ONNX files whose exporter is unknown",
        "jax": "JAX, with Flax, Haiku or Equinox",
        "caffe": "Caffe",
        "caffe2": "Caffe2",
        "darknet": "Darknet",
        "mxnet": "Apache MXNet and Gluon",
        "paddle": "PaddlePaddle",
        "mindspore": "MindSpore",
        "matlab": "MATLAB Deep Learning Toolbox",
        "cntk": "Microsoft CNTK",
        "chainer": "Chainer",
        "coreml": "Core ML",
        "openvino": "OpenVINO",
        "dlib": "dlib",
        "mlx": "MLX",
    }
)

#: The facts that are checked, and the vocabulary of each.
CHECKED = {"domain": "domains", "task": "tasks", "framework": "frameworks", "family": "families"}


@dataclass(frozen=True, slots=True)
class Word:
    """A word of a vocabulary.

    Attributes:
        name: The word, as it is stored in the models table.
        description: What it means; empty if the catalog does not state it.
        models: Models of the catalog that it describes.
    """

    name: str
    description: str
    models: int


def words(catalog: Catalog, vocabulary: str) -> list[Word]:
    """The words of a vocabulary.

    Args:
        catalog: The catalog.
        vocabulary: One of :data:`VOCABULARIES`.

    Raises:
        SelectionError: No such vocabulary exists; the message lists them.
    """
    if vocabulary not in VOCABULARIES:
        raise SelectionError(f"no vocabulary {vocabulary!r}; choose one of {', '.join(VOCABULARIES)}")
    return VOCABULARIES[vocabulary](catalog)


def check_words(catalog: Catalog, facts: Mapping[str, Any]) -> None:
    """Refuse facts that use a word the catalog does not know. See :func:`cnnfilterdb.catalog.check_facts`."""
    for fact, vocabulary in CHECKED.items():
        value = facts.get(fact)
        if not value:
            continue
        known = [word.name for word in words(catalog, vocabulary)]
        if value in known:
            continue
        near = _near(str(value), known)
        hint = f"did you mean {' or '.join(map(repr, near))}? " if near else ""
        raise SelectionError(
            f"unknown {fact} {value!r}; {hint}`cnnfilterdb vocabulary {vocabulary}` lists the known words; "
            "pass --new-word (new_words=True) to introduce a new one"
        )


def _near(value: str, known: Iterable[str]) -> list[str]:
    """Up to three words that may have been meant: similar ones, else those that contain it as a word."""
    folded: dict[str, str] = {}
    for word in known:
        folded.setdefault(word.casefold(), word)
    wanted = value.strip().casefold().replace("_", " ")
    near = get_close_matches(wanted, folded, 3, 0.7)
    near = [wanted] if wanted in near else near
    near = near or [word for word in folded if wanted in word.replace("-", " ").split()][:3]
    return [folded[word] for word in near]


def _terms(kind: str, fact: str) -> Callable[[Catalog], list[Word]]:
    def found(catalog: Catalog) -> list[Word]:
        counts = Counter(getattr(model.facts, fact) for model in _models(catalog))
        return [Word(term.name, term.description, counts[term.name]) for term in getattr(catalog, kind).values()]

    return found


def _titled(kind: str, fact: str, separator: str) -> Callable[[Catalog], list[Word]]:
    def found(catalog: Catalog) -> list[Word]:
        stated = (getattr(model.facts, fact) or "" for model in _models(catalog))
        counts = Counter(part for text in stated for part in text.split(separator))
        return [Word(entry.name, entry.title, counts[entry.name]) for entry in getattr(catalog, kind).values()]

    return found


def _families(catalog: Catalog) -> list[Word]:
    counts: Counter[str] = Counter()
    examples: dict[str, dict[str, None]] = {}
    for model in _models(catalog):
        if family := model.facts.family:
            counts[family] += 1
            examples.setdefault(family, {})[model.facts.architecture or model.name] = None
    return [
        Word(family, _examples(list(examples[family])), counts[family]) for family in sorted(counts, key=str.casefold)
    ]


def _examples(architectures: list[str]) -> str:
    return "such as " + ", ".join(architectures[:3])


def _frameworks(catalog: Catalog) -> list[Word]:
    # The framework of a model is determined from its file, not from the catalog.
    return [Word(name, description, 0) for name, description in FRAMEWORKS.items()]


def _models(catalog: Catalog) -> Iterable[CatalogModel]:
    return (model for group in catalog.models.values() for model in group)


#: How the words of each vocabulary are found.
VOCABULARIES: Mapping[str, Callable[[Catalog], list[Word]]] = MappingProxyType(
    {
        "domains": _terms("domains", "domain"),
        "tasks": _terms("tasks", "task"),
        "families": _families,
        "frameworks": _frameworks,
        "datasets": _titled("datasets", "training_dataset", "; "),
        "licenses": _titled("licenses", "license", " AND "),
    }
)
