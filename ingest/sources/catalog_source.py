"""The common base of sources whose models are rows of the catalog."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from functools import cached_property
from glob import escape
from pathlib import Path
from typing import TYPE_CHECKING

from cnnfilterdb import catalog
from cnnfilterdb.core.errors import DownloadError, UnknownModelError
from cnnfilterdb.ingest.fetch.cache import Cache
from cnnfilterdb.ingest.sources import Source

if TYPE_CHECKING:
    from cnnfilterdb.catalog import CatalogModel

__all__ = ["CatalogSource"]


class CatalogSource(Source):
    """A source of models that the catalog describes. Nothing is connected before a model is resolved.

    Args:
        models: The models on offer; those of the catalog by default.
        folder: A folder that is searched before anything is downloaded.
        offline: Do not access the network.
        cache: Where files are kept; the user's cache by default.
    """

    def __init__(
        self,
        models: Sequence[CatalogModel] | None = None,
        *,
        folder: str | Path | None = None,
        offline: bool = False,
        cache: Cache | None = None,
    ) -> None:
        self._models = {model.name: model for model in (catalog.models(self.name) if models is None else models)}
        self._folder = None if folder is None else Path(folder).expanduser()
        self._offline = offline
        self._cache = cache or Cache()

    def list(self, patterns: Sequence[str] = ()) -> Sequence[str]:
        """Names of the models that match any of the patterns, all without patterns; no network.

        Raises:
            UnknownModelError: A pattern matches nothing; the message gives the nearest names.
        """
        return catalog.match([*self._models], patterns) if patterns else [*self._models]

    def _model(self, name: str) -> CatalogModel:
        """The model of that name.

        Raises:
            UnknownModelError: No such model exists; the message gives the nearest names.
        """
        if name not in self._models:
            # Patterns match in either case, names do not.
            near = self.list([escape(name)])
            raise UnknownModelError(f"no model {name!r}; nearest: {', '.join(near)}")
        return self._models[name]

    def _search(self, file: str) -> tuple[Path, ...]:
        """Files of that name in the user's folder and its subfolders, the nearest first; none without a folder.

        Raises:
            DownloadError: The folder does not exist.
        """
        if self._folder is None:
            return ()
        if not self._folder.is_dir():
            raise DownloadError(f"{self._folder}: no such folder to look for {file} in; pass an existing one")
        return tuple(path for path in self._listing.get(file, ()) if path.is_file())

    @cached_property
    def _listing(self) -> Mapping[str, Sequence[Path]]:
        """The files of the folder by name; listed once, because hundreds of models may look for theirs."""
        found: dict[str, list[Path]] = {}
        assert self._folder is not None
        for parent, _, files in os.walk(self._folder):
            for file in files:
                found.setdefault(file, []).append(Path(parent, file))
        return {file: sorted(paths, key=lambda path: (len(path.parts), path)) for file, paths in found.items()}
