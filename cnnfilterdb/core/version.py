"""The version of the installed package."""

from __future__ import annotations

from functools import cache
from importlib.metadata import PackageNotFoundError, version

__all__ = ["package_version"]


@cache
def package_version() -> str:
    """Version of the installed package; ``0`` if it runs from a checkout that is not installed."""
    try:
        return version("cnnfilterdb")
    except PackageNotFoundError:
        return "0"
