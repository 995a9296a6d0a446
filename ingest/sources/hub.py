"""Any model repository of Hugging Face, by name: ``owner/name[@revision][:file]``.

The name of a file shows whether it contains the weights; if several files could, the user chooses. The model card (the
YAML at the top of ``README.md``) gives licence, data set, task and paper, as far as it is unambiguous; its own words
are recorded in ``original``.
"""

from __future__ import annotations

import json
import logging
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from cnnfilterdb.core.errors import DownloadError, UnknownModelError, WeightFileError
from cnnfilterdb.core.reports import counted
from cnnfilterdb.core.schema import ModelFacts
from cnnfilterdb.ingest.fetch.cache import ByteProgress, Cache, sha256_of
from cnnfilterdb.ingest.fetch.hub_cache import HubCache, RepositoryFile, RepositoryFiles
from cnnfilterdb.ingest.fetch.hugging_face import HuggingFace
from cnnfilterdb.ingest.fetch.partial_safetensors import partial_origin
from cnnfilterdb.ingest.network.layers import Weights
from cnnfilterdb.ingest.sources import Source, register

__all__ = ["HubReference", "HubSource", "card_facts"]

_log = logging.getLogger(__name__)

_NAME = re.compile(
    r"(?P<repo>[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*)(?:@(?P<revision>[\w.-][\w./-]*))?(?::(?P<file>[^:\s]+))?"
)
_CARD = "README.md"
# By preference: each pattern is a kind of weight file, of which there should be one
_KINDS = tuple(
    re.compile(pattern)
    for pattern in (
        r"model\.safetensors",
        r"model\.safetensors\.index\.json",
        r"(?:open_clip_model|diffusion_pytorch_model)\.safetensors",
        r"[^/]+\.safetensors",
        r"pytorch_model\.bin",
        r"[^/]+\.(?:bin|pt|pth|ckpt|pth\.tar|torchscript)",
        r"(?:onnx/)?model\.onnx",
        r"[^/]+\.onnx",
        r"[^/]+\.keras",
        r"[^/]+\.(?:h5|hdf5)",
        r"[^/]+/[^/].*\.(?:safetensors|bin|pt|pth|ckpt|onnx|keras|h5)",
    )
)
# State of a training, one of several shards, and files often uploaded with a model
_NO_WEIGHTS = re.compile(
    r"(?:.*/)?(?:training_args|optimizer|scheduler|scaler|rng_state|random_states|adapter_model)[^/]*"
    r"|.*-\d{5}-of-\d{5}\.\w+"
)
# The tasks of Hugging Face, in the words of the catalog
_TASKS = {
    "image-classification": "Classification",
    "image-segmentation": "Segmentation",
    "mask-generation": "Segmentation",
    "object-detection": "Object Detection",
    "depth-estimation": "Depth Estimation",
}
# Data sets of the catalog that have other identifiers there
_DATASETS = {
    "imagenet-1k": "ImageNet-1k",
    "ILSVRC/imagenet-1k": "ImageNet-1k",
    "imagenet-12k": "ImageNet-12k",
    "imagenet-21k": "ImageNet-21k",
    "imagenet-22k": "ImageNet-22k",
    "cifar10": "CIFAR-10",
    "uoft-cs/cifar10": "CIFAR-10",
    "cifar100": "CIFAR-100",
    "uoft-cs/cifar100": "CIFAR-100",
    "mnist": "MNIST",
    "ylecun/mnist": "MNIST",
    "coco": "MS-COCO",
    "detection-datasets/coco": "MS-COCO",
}
_UNKNOWN_LICENSE = "LicenseRef-Unknown"


@dataclass(frozen=True, slots=True)
class HubReference:
    """A name of this source, parsed.

    Attributes:
        repo: ``owner/name``.
        revision: Branch, tag or commit.
        file: Path of the weight file; None if the source has to find it.
    """

    repo: str
    revision: str = "main"
    file: str | None = None

    @classmethod
    def parse(cls, name: str) -> HubReference:
        """From ``owner/name[@revision][:file]``.

        Raises:
            UnknownModelError: Not of that form.

        >>> HubReference.parse("owner/net@v1.0:weights/net.onnx")
        HubReference(repo='owner/net', revision='v1.0', file='weights/net.onnx')
        """
        match = _NAME.fullmatch(name)
        file = match["file"] if match else None
        if match is None or (file and (file.startswith("/") or ".." in file.split("/"))):
            raise UnknownModelError(
                f"hub: {name!r} is not the name of a repository; expected owner/name, owner/name@revision, or "
                "owner/name:file (wildcards are not supported)"
            )
        return cls(match["repo"], match["revision"] or "main", file)


@register
class HubSource(Source):
    """Models of Hugging Face, by the names of their repositories.

    Example:
        >>> HubSource(offline=True).list(["timm/resnet18.a1_in1k@main"])
        ['timm/resnet18.a1_in1k@main']
    """

    name = "hub"

    def __init__(
        self,
        *,
        folder: str | Path | None = None,
        offline: bool = False,
        partial: bool = False,
        cache: Cache | None = None,
        client: HuggingFace | None = None,
    ) -> None:
        """Nothing is connected yet.

        Args:
            folder: A folder that is searched before anything is downloaded: a cache of huggingface_hub, or
                ``<owner>/<name>/<file>``, or ``<name>/<file>``.
            offline: Do not access the network.
            partial: Download only the convolutions of a safetensors file, by ranges. Its hash cannot be verified then.
            cache: Where files are kept; the user's cache by default.
            client: How Hugging Face is reached.
        """
        self._folder = None if folder is None else Path(folder).expanduser()
        self._partial = partial
        self._client = client or HuggingFace(cache=cache, offline=offline, folder=self._folder)
        self._found: dict[str, RepositoryFile] = {}
        self._hashes: dict[str, str] = {}
        self._cards: dict[str, ModelFacts] = {}

    def list(self, patterns: Sequence[str] = ()) -> Sequence[str]:
        """The names themselves, each once; whether they exist is checked when they are resolved.

        Raises:
            UnknownModelError: A name is not of the form ``owner/name[@revision][:file]``.
        """
        names = [patterns] if isinstance(patterns, str) else patterns
        for name in names:
            HubReference.parse(name)
        return [*dict.fromkeys(names)]

    def describe(self, name: str) -> ModelFacts:
        """The facts of the model card, the commit and the SHA-256; before :meth:`resolve`, the address only.

        Raises:
            UnknownModelError: Not the name of a repository.
        """
        reference = HubReference.parse(name)
        facts = self._cards.get(name, ModelFacts(license=_UNKNOWN_LICENSE))
        if found := self._found.get(name):
            return found.facts(facts)
        return facts.updated(url=f"pkg:huggingface/{reference.repo}", weights_sha256=self._hashes.get(name))

    def resolve(self, name: str, progress: ByteProgress | None = None) -> Path:
        """Find the weight file of a repository in the folder or the cache, or download it, and return its path.

        A name with a file, and any name while offline, need no network for cached files; for any other name one request
        lists the files. Files that belong together are downloaded together.

        Args:
            name: ``owner/name[@revision][:file]``.
            progress: Called with (bytes done, bytes expected).

        Raises:
            UnknownModelError: Not such a name, or several files match.
            DownloadError: It cannot be downloaded; the message states how to get it.
            HashMismatchError: Its bytes are not those that the server states.
        """
        reference = HubReference.parse(name)
        if self._folder is not None and (path := self._in_folder(name, reference)):
            return path
        client = self._client
        known = client.local.repository(reference.repo, reference.revision)
        enough = known is not None and (reference.file in known.files or client.offline)
        if known is not None and enough and (found := self._from_cache(client.local, name, reference, known)):
            return found.path
        repository = client.repository(reference.repo, reference.revision)
        file = reference.file or _weight_file(name, repository.files)
        if file not in repository.files:
            raise DownloadError(
                f"{reference.repo}: has no {file} at revision {reference.revision}; it has "
                f"{', '.join(_candidates(repository.files)) or 'no weight file'}"
            )
        repo, commit = reference.repo, repository.revision
        if _CARD in repository.files:
            card = client.local.file(repo, [_CARD], commit) or client.fetch(repo, [_CARD], commit)
            self._read_card(name, card.path)
        found = client.local.file(repo, [file], commit)
        if found is None and self._partial and file.endswith(".safetensors"):
            found = client.local.partial_file(repo, [file], commit)
            found = found or client.fetch_partial(repo, [file], commit, progress)
        if found is None:
            found = client.fetch(repo, [file], commit, progress)
        if not found.partial:
            for companion in _companions(found.path, file, repository.files):
                if client.local.file(repo, [companion], commit) is None:
                    client.fetch(repo, [companion], commit, progress)
        client.local.note(repo, reference.revision, commit)
        self._found[name] = found
        return found.path

    def enrich(self, name: str, weights: Weights) -> Weights:
        """The layers as the file states them; for a partial file, with the number of parameters of the whole one."""
        found = self._found.get(name)
        origin = partial_origin(found.path) if found else None
        return replace(weights, parameters=int(origin["parameters"])) if origin else weights

    def _from_cache(
        self, cache: HubCache, name: str, reference: HubReference, known: RepositoryFiles
    ) -> RepositoryFile | None:
        files = [reference.file or _weight_file(name, known.files)]
        found = cache.file(known.name, files, known.revision)
        if found is None and self._partial and cache is self._client.local:
            found = cache.partial_file(known.name, files, known.revision)
        if found is None:
            return None
        if not self._client.offline and not _is_whole(found.path, files[0]):
            return None
        if card := cache.file(known.name, [_CARD], known.revision):
            self._read_card(name, card.path)
        self._found[name] = found
        return found

    def _in_folder(self, name: str, reference: HubReference) -> Path | None:
        folder = self._folder
        assert folder is not None
        if not folder.is_dir():
            raise DownloadError(f"{folder}: no such folder to look for {name} in; pass an existing one")
        for place in (folder / reference.repo, folder / reference.repo.partition("/")[2]):
            files = [path.relative_to(place).as_posix() for path in place.rglob("*") if path.is_file()]
            file = reference.file or (_weight_file(name, files) if _candidates(files) else None)
            if file in files:
                path = place / str(file)
                self._hashes[name] = sha256_of(path)
                if _CARD in files:
                    self._read_card(name, place / _CARD)
                return path
        # The folder may be a cache of huggingface_hub.
        other = HubCache(folder)
        known = other.repository(reference.repo, reference.revision)
        found = None if known is None else self._from_cache(other, name, reference, known)
        return None if found is None else found.path

    def _read_card(self, name: str, path: Path) -> None:
        from huggingface_hub import metadata_load

        try:
            card = metadata_load(path)
        except Exception as error:  # handwritten YAML can be wrong in any way; only the weights matter
            _log.warning("%s: its model card cannot be read (%s)", name, " ".join(str(error).split()))
            return
        self._cards[name] = card_facts(card or {})


def _candidates(files: Sequence[str]) -> list[str]:
    """Files that may contain weights, of the most preferred kind that is present."""
    weights = [file for file in files if not _NO_WEIGHTS.fullmatch(file)]
    for kind in _KINDS:
        if found := sorted(file for file in weights if kind.fullmatch(file)):
            return found
    return []


def _weight_file(name: str, files: Sequence[str]) -> str:
    """The file that contains the weights of a repository.

    >>> _weight_file("owner/net", ["README.md", "pytorch_model.bin", "training_args.bin", "model.safetensors"])
    'model.safetensors'
    """
    found = _candidates(files)
    if not found:
        raise DownloadError(
            f"hub/{name}: no weight file among its {counted(len(files), 'file')}; "
            f"name another by {name.partition(':')[0]}:FILE"
        )
    if len(found) > 1:
        shown = ", ".join(found[:8]) + (", ..." if len(found) > 8 else "")
        raise UnknownModelError(f"hub/{name}: several weight files: {shown}; choose one by {name}:{found[0]}")
    return found[0]


def _companions(path: Path, file: str, files: Sequence[str]) -> list[str]:
    """Files without which a file cannot be read: the shards of an index, the external data of ONNX."""
    parent = file.rpartition("/")[0]
    if file.endswith(".index.json"):
        try:
            shards = set(json.loads(path.read_bytes())["weight_map"].values())
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
            raise WeightFileError(f"{path}: not an index of shards ({error})") from error
        wanted = {f"{parent}/{shard}".removeprefix("/") for shard in shards if isinstance(shard, str)}
        return sorted(wanted.intersection(files))
    if file.endswith(".onnx"):
        stem = file.removesuffix(".onnx")
        return sorted({f"{file}_data", f"{file}.data", f"{stem}.data", f"{stem}.bin"}.intersection(files))
    return []


def _is_whole(path: Path, file: str) -> bool:
    """Whether the files that belong to a file are next to it, if that can be known without its repository."""
    if file.endswith(".index.json"):
        try:
            shards = set(json.loads(path.read_bytes())["weight_map"].values())
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
            return False
        return all(isinstance(shard, str) and (path.parent / shard).is_file() for shard in shards)
    return not file.endswith(".onnx")


def card_facts(card: Mapping[str, Any]) -> ModelFacts:
    """Facts from the YAML of a model card.

    The licence is always set, even if it is unknown. A single data set is that of the training; of several, it is
    unknown which was last. The domain is that of a data set in the catalog.

    >>> facts = card_facts({"license": "apache-2.0", "datasets": ["imagenet-1k"], "library_name": "timm"})
    >>> facts.license, facts.training_dataset, facts.domain
    ('Apache-2.0', 'ImageNet-1k', 'natural')
    """
    from cnnfilterdb import catalog

    datasets = _texts(card.get("datasets"))
    tags = _texts(card.get("tags"))
    dataset = _DATASETS.get(datasets[0], datasets[0]) if len(datasets) == 1 else None
    known = catalog.datasets().get(dataset or "")
    papers = {tag.partition(":")[2] for tag in tags if re.fullmatch(r"arxiv:\d{4}\.\d{4,5}", tag.lower())}
    stated = {
        "license": _text(card.get("license_name") if card.get("license") == "other" else card.get("license")),
        "datasets": "; ".join(datasets),
        "tags": "; ".join(tags),
        "pipeline_tag": _text(card.get("pipeline_tag")),
        "library_name": _text(card.get("library_name")),
    }
    return ModelFacts(
        task=_TASKS.get(stated["pipeline_tag"]),
        domain=known.domain if known else None,
        training_dataset=dataset,
        license=_license(stated["license"]),
        paper=f"arXiv:{papers.pop()}" if len(papers) == 1 else None,
        original={key: value for key, value in stated.items() if value} or None,
    )


def _text(value: Any) -> str:
    texts = _texts(value)
    return texts[0] if len(texts) == 1 else ""


def _texts(value: Any) -> list[str]:
    values = value if isinstance(value, list) else [value]
    return [str(one).strip() for one in values if isinstance(one, str | int | float) and str(one).strip()]


def _license(stated: str) -> str:
    """An SPDX identifier.

    >>> _license("mit"), _license("CreativeML OpenRAIL-M"), _license("")
    ('MIT', 'LicenseRef-CreativeML-OpenRAIL-M', 'LicenseRef-Unknown')
    """
    from packaging.licenses import InvalidLicenseExpression, canonicalize_license_expression

    if stated.lower() in ("", "unknown", "other"):
        return _UNKNOWN_LICENSE
    try:
        return str(canonicalize_license_expression(stated))
    except InvalidLicenseExpression:
        return "LicenseRef-" + (re.sub(r"[^A-Za-z0-9.]+", "-", stated).strip("-") or "Unknown")
