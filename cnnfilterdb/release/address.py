"""Which paths and names mean a release; no file of one is opened, except the marker of a folder."""

from __future__ import annotations

import json
import re
import stat
from pathlib import Path

from cnnfilterdb.core.errors import NotADatabaseError
from cnnfilterdb.core.paths import MARKER, is_parts_list
from cnnfilterdb.release.manifest import MANIFEST_BYTES

__all__ = ["REFERENCE", "folder_to_write", "hub_address", "is_release", "reference_folder"]

#: The name under which the corpus in the package is opened.
REFERENCE = "reference"

_REPOSITORY = re.compile(r"[\w.-]+/[\w.-]+(@[\w./-]+)?")


def hub_address(location: str | Path) -> str | Path:
    """The address of a release: a text that looks like a repository of the Hub, and is not a folder, is one.

    >>> hub_address("owner/name@v1.0.0")
    'hf://datasets/owner/name@v1.0.0'
    >>> hub_address("s3://bucket/folder")
    's3://bucket/folder'
    """
    text = str(location)
    if _REPOSITORY.fullmatch(text) and not Path(text).exists():
        return f"hf://datasets/{text}"
    return location


def is_release(path: str | Path) -> bool:
    """Whether a path is that of a release: an address, or a folder with the manifest of one.

    >>> is_release("hf://datasets/owner/name"), is_release("mydb")
    (True, False)
    """
    if "://" in str(path):
        return True
    marker = Path(path) / MARKER
    try:
        if not stat.S_ISREG(marker.stat().st_mode) or marker.stat().st_size > MANIFEST_BYTES:
            return False
        known = json.loads(marker.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return False
    return isinstance(known, dict) and known.get("layout") == "release"


def reference_folder() -> Path:
    """The folder of the reference corpus, which is a part of the package."""
    return Path(__file__).resolve().parent / REFERENCE


def folder_to_write(path: str | Path) -> Path:
    """The absolute path of a folder to write to, so that it stays valid after a change of directory."""
    if path == REFERENCE:
        raise NotADatabaseError(f"{path}: the corpus in the package, which can only be read; ./{path} is a folder")
    if is_parts_list(path):
        raise NotADatabaseError(f"{path}: a list of parts, which can only be read; open the one to write to")
    if is_release(path):
        raise NotADatabaseError(f"{path}: a release, which can only be read; pull copies it into a folder")
    return Path(path).resolve()
