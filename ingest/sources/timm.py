"""Pretrained networks of timm, the PyTorch image models (Ross Wightman and others).

The catalog describes all of them that have a 3x3 convolution, so neither the library nor the network is needed until
weights are requested. Most weights are downloaded from Hugging Face, a few from their authors' addresses, or read from
a folder.

A file of tensors does not state the order in which layers are executed. If timm is installed (extra ``timm``), the
network is built without weights, and running it on shapes gives order, depth, groups, strides, shared and dead layers,
weights that are standardised before use, and the experts of CondConv. Without timm the layers are in the order of their
names, without depth.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Sequence
from dataclasses import replace
from functools import cached_property, lru_cache
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from cnnfilterdb.core.errors import DownloadError, IngestError
from cnnfilterdb.core.schema import ModelFacts
from cnnfilterdb.ingest.fetch.cache import ByteProgress, Cache, sha256_of
from cnnfilterdb.ingest.fetch.download import Session
from cnnfilterdb.ingest.fetch.hub_cache import HubCache, RepositoryFile
from cnnfilterdb.ingest.fetch.hugging_face import HuggingFace
from cnnfilterdb.ingest.fetch.partial_safetensors import partial_origin
from cnnfilterdb.ingest.network.layers import Weights
from cnnfilterdb.ingest.sources import register
from cnnfilterdb.ingest.sources.catalog_source import CatalogSource
from cnnfilterdb.ingest.sources.web import WebSource

if TYPE_CHECKING:
    from cnnfilterdb.catalog import CatalogModel
    from cnnfilterdb.ingest.network.architecture import Architecture

__all__ = ["TimmSource"]

_log = logging.getLogger(__name__)

#: Files of a repository that may hold the weights, by preference: those of timm, then those of OpenCLIP.
_FILES = ("model.safetensors", "pytorch_model.bin", "open_clip_model.safetensors", "open_clip_pytorch_model.bin")
_SUFFIXES = (".safetensors", ".bin", ".pth", ".pt")
# Columns of the catalog that the models table does not have
_STATED = ("tag", "module", "input_size", "test_input_size", "num_classes")


class _Originals(WebSource):
    """The files that have their own address outside the repositories."""

    name = "timm"

    def available(self, name: str) -> Path | None:
        """The file of a model if it is in the folder or the cache."""
        origin = self._origin(name)
        return self.resolve(name) if self._search(origin.file) or self._cached(origin) else None


@register
class TimmSource(CatalogSource):
    """Models of the catalog that timm publishes; names are those of timm, such as ``resnet18.a1_in1k``."""

    name = "timm"
    isolated = False  # the library's own repositories

    def __init__(
        self,
        models: Sequence[CatalogModel] | None = None,
        *,
        folder: str | Path | None = None,
        offline: bool = False,
        partial: bool = False,
        cache: Cache | None = None,
        client: HuggingFace | None = None,
        session: Session | None = None,
    ) -> None:
        """Offer models; nothing is connected yet.

        Args:
            models: The models on offer; those of the catalog by default.
            folder: A folder that is searched before anything is downloaded: ``<model>.safetensors`` (or ``.bin``,
                ``.pth``, ``.pt``), ``<model>/model.safetensors`` or ``<model>/pytorch_model.bin``, the original file
                name of the authors, or a cache of huggingface_hub. Or one weight file, for one model.
            offline: Do not access the network.
            partial: Download only the convolutions of a safetensors file, by ranges. Its hash cannot be verified then.
            cache: Where files are kept; the user's cache by default.
            client: How Hugging Face is reached.
            session: How other servers are reached.
        """
        place = None if folder is None else Path(folder).expanduser()
        self._client = client or HuggingFace(cache=cache, offline=offline, folder=place)
        super().__init__(models, folder=place, offline=self._client.offline, cache=self._client.cache)
        self._partial = partial
        self._session = session
        self._found: dict[str, RepositoryFile] = {}
        self._local: dict[str, tuple[Path, str]] = {}

    @cached_property
    def _originals(self) -> _Originals:
        models = []
        for model in self._models.values():
            if url := model.origin["url"]:
                prefix = re.search(r"-([0-9a-f]{8,64})\.\w+$", url)
                origin = {"file": url.rpartition("/")[2], "urls": url, "sha256_prefix": prefix[1] if prefix else ""}
                models.append(replace(model, origin=MappingProxyType(origin)))
        folder = self._folder if self._folder is not None and self._folder.is_dir() else None
        client = self._client
        return _Originals(models, folder=folder, offline=client.offline, cache=client.cache, session=self._session)

    def describe(self, name: str) -> ModelFacts:
        """What the catalog knows about a model; no network.

        After :meth:`resolve`, also the commit and the SHA-256 of the file. The hash of a partial file is the one that
        the server states for the whole file, unverified; it is recorded in ``original``.

        Raises:
            UnknownModelError: No such model exists.
        """
        model = self._model(name)
        stated = {key: value for key in _STATED if (value := model.origin[key])}
        repo, url = model.origin["hf_hub_id"], model.origin["url"]
        facts = model.facts.updated(
            framework="pytorch", url=f"pkg:huggingface/{repo}" if repo else url, original=stated
        )
        if name in self._local:
            return facts.updated(weights_sha256=self._local[name][1])
        found = self._found.get(name)
        return facts if found is None else found.facts(facts)

    def resolve(self, name: str, progress: ByteProgress | None = None) -> Path:
        """Find the weight file of a model in the folder or the cache, or download it, and return its path.

        Cached files need no network. The commit of a repository is the newest one at the first download of its file.

        Args:
            name: Name of the model.
            progress: Called with (bytes done, bytes expected).

        Raises:
            UnknownModelError: No such model exists.
            DownloadError: It cannot be downloaded; the message states how to get it.
            HashMismatchError: It is not the expected file.
        """
        origin = self._model(name).origin
        repo, url = origin["hf_hub_id"], origin["url"]
        if self._folder is not None and (path := self._in_folder(name, repo)):
            self._local[name] = path, sha256_of(path)
            return path
        if url and (path := self._originals.available(name)):
            return self._original(name, path)
        if not repo:
            return self._original(name, self._originals.resolve(name, progress))
        try:
            found = self._client.local.file(repo, _FILES)
            if found is None and self._partial:
                found = self._client.local.partial_file(repo, _FILES)
            if found is None:
                fetch = self._client.fetch_partial if self._partial else self._client.fetch
                found = fetch(repo, _FILES, progress=progress)
        except IngestError as error:
            if not url or self._client.offline:
                raise
            _log.warning("%s; trying %s", error, url)
            return self._original(name, self._originals.resolve(name, progress))
        self._found[name] = found
        return found.path

    def download_size(self, name: str) -> int | None:
        """About four bytes for each parameter; None where only some ranges are downloaded.

        0 for a file in the cache or the folder.
        """
        origin = self._model(name).origin
        repo, parameters = origin["hf_hub_id"], origin.get("params", "")
        if self._folder is not None and self._in_folder(name, repo):
            return 0
        if repo and self._client.local.repository(repo) is not None:
            return 0
        return None if self._partial or not parameters else 4 * int(parameters)

    def enrich(self, name: str, weights: Weights) -> Weights:
        """Add what the architecture states, if timm is installed."""
        path = self._path(name)
        if path is not None and (origin := partial_origin(path)):
            weights = replace(weights, parameters=int(origin["parameters"]))
        known = _architecture(name)
        if known is None:
            return weights
        from cnnfilterdb.ingest.network.architecture import described

        return described(weights, known, None if path is None else _matrices(path))

    def _path(self, name: str) -> Path | None:
        if name in self._local:
            return self._local[name][0]
        return self._found[name].path if name in self._found else None

    def _original(self, name: str, path: Path) -> Path:
        sha256 = self._originals.describe(name).weights_sha256
        self._local[name] = path, sha256 or sha256_of(path)
        return path

    def _in_folder(self, name: str, repo: str) -> Path | None:
        folder = self._folder
        assert folder is not None
        if folder.is_file():
            return folder
        if not folder.is_dir():
            raise DownloadError(f"{folder}: no such file or folder to look for {name} in; pass an existing one")
        names = dict.fromkeys(part for part in (name, repo, repo.rpartition("/")[2]) if part)
        places = [f"{stem}{suffix}" for stem in names for suffix in _SUFFIXES]
        places += [f"{stem}/{file}" for stem in names for file in _FILES]
        for place in places:
            if (folder / place).is_file():
                return folder / place
        found = HubCache(folder).file(repo, _FILES) if repo else None
        return None if found is None else found.path


def _matrix(path: Path, name: str) -> npt.NDArray[np.float32] | None:
    """A matrix of a PyTorch weight file as float32; None if it has none of that name."""
    import torch
    from safetensors import safe_open

    with path.open("rb") as file:
        is_safetensors = file.read(9)[8:] == b"{"
    if is_safetensors:
        with safe_open(path, "pt") as tensors:
            value = tensors.get_tensor(name) if name in tensors.keys() else None  # noqa: SIM118
    else:
        state = torch.load(path, map_location="cpu", weights_only=True)
        value = next((part[name] for part in (state, *state.values()) if isinstance(part, dict) and name in part), None)
    return None if value is None else value.float().numpy()


def _matrices(path: Path) -> Any:
    """A function that returns matrices of a file by name, and keeps the last one."""
    kept: dict[str, npt.NDArray[np.float32] | None] = {}

    def matrix(name: str) -> npt.NDArray[np.float32] | None:
        if name not in kept:
            kept.clear()
            kept[name] = _matrix(path, name)
        return kept[name]

    return matrix


@lru_cache(maxsize=1)
def _library() -> Any:
    """The library timm, or None if it is not installed."""
    try:
        return _imported()
    except ImportError as error:
        _log.warning(
            "timm cannot be imported (%s): layers get no order, depth or groups; "
            'install it: pip install "cnnfilterdb[timm]"',
            error,
        )
        return None


# Operators are removed with the object that declared them.
_declared: list[Any] = []


def _imported() -> Any:
    try:
        import timm
    except RuntimeError as error:
        # A torchvision with CUDA beside a PyTorch without it: its operators are missing, and its import fails for that
        # reason. Declaring the two that it registers lets it import; nothing here calls them.
        if "torchvision::nms" not in str(error):
            raise
        import torch

        schema = "(Tensor dets, Tensor scores, float iou_threshold) -> Tensor"
        _declared.append(torch.library.Library("torchvision", "DEF"))
        for operator in ("nms", "qnms"):
            _declared[-1].define(operator + schema)
        import timm
    return timm


@lru_cache(maxsize=4)  # several sets of weights of one architecture, without using more memory
def _architecture(name: str) -> Architecture | None:
    """The architecture of a timm model; None if timm is not installed or does not have it."""
    timm = _library()
    if timm is None:
        return None
    import torch

    from cnnfilterdb.ingest.network.architecture import architecture

    try:
        with torch.device("meta"):
            module = timm.create_model(name, pretrained=False).eval()
            size = module.pretrained_cfg["input_size"]
            example = torch.empty(1, *size)
    except Exception as error:  # constructors of another version of timm may raise any error
        _log.warning("timm %s cannot build %s (%s); its layers get no order or depth", timm.__version__, name, error)
        return None
    return architecture(module, example)
