"""Where files are kept that can be made or fetched again."""

from __future__ import annotations

import os
from pathlib import Path

import platformdirs

__all__ = ["cache_folder"]


def cache_folder() -> Path:
    """The cache folder: ``$CNNFILTERDB_CACHE``, else that of the platform."""
    named = os.environ.get("CNNFILTERDB_CACHE")
    return Path(named).expanduser() if named else Path(platformdirs.user_cache_dir("cnnfilterdb", appauthor=False))
