"""What one location means: a database folder, a release, or the corpus in the package."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from cnnfilterdb.analysis.bases import Bases
from cnnfilterdb.analysis.storage import Storage
from cnnfilterdb.release.address import REFERENCE, is_release, reference_folder
from cnnfilterdb.store.folder import Store
from cnnfilterdb.store.index import Index

__all__ = ["Opened", "opened"]

#: A storage and its bases: what a reader needs.
Opened = tuple[Storage, Bases]


def opened(location: str | Path, options: Mapping[str, Any] | None = None) -> Opened:
    """Open what is at a location, to be read.

    Args:
        location: A folder, an address, or ``reference``.
        options: For an address, those of its fsspec file system.

    Raises:
        NotADatabaseError: It contains neither a database nor a release.
        RemoteError: The address cannot be reached.
    """
    if location == REFERENCE:
        location = reference_folder()
    if is_release(location):
        from cnnfilterdb.release.release import Release

        release = Release.open(location, **(options or {}))
        return release, release.bases
    store = Store.open(Path(location).resolve())
    return store, Index(store)
