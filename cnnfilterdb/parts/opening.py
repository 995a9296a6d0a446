"""Opening several databases and releases as one: from their locations, or from a list of them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from cnnfilterdb.core.errors import SelectionError
from cnnfilterdb.core.paths import is_parts_list
from cnnfilterdb.parts.common import CommonBases
from cnnfilterdb.parts.listing import PartsList, check_duplicates, check_location, check_name
from cnnfilterdb.parts.locations import Opened, opened
from cnnfilterdb.parts.parts import OpenPart, Parts
from cnnfilterdb.release.release import Release
from cnnfilterdb.store.folder import Store

__all__ = ["GivenParts", "opened_list", "opened_parts"]

#: Parts as they are given: locations, or what is open already; in a mapping by their names.
GivenParts = Sequence[str | Path | Opened] | Mapping[str, str | Path | Opened]


def opened_list(path: str | Path, *, duplicates: str | None = None) -> Opened:
    """Open the parts that a file lists; see :mod:`cnnfilterdb.parts.listing`.

    Args:
        path: The file.
        duplicates: As in :func:`opened_parts`; by default what the file says.
    """
    listed = PartsList.read(Path(path))
    return opened_parts(listed.parts, duplicates=duplicates or listed.duplicates, location=str(listed.path))


def opened_parts(given: GivenParts, *, duplicates: str = "error", location: str | None = None) -> Opened:
    """Open several databases and releases as one.

    Args:
        given: The parts.
        duplicates: What to do about models of the same key: ``error``, or ``first``.
        location: What the whole is called; by default the locations of the parts.

    Raises:
        SelectionError: No part, two parts that are the same, or an unknown choice.
        NotADatabaseError: A location contains neither a database nor a release.
        DatabaseError: A model is in several parts, and ``duplicates`` is ``error``.
        RemoteError: An address cannot be reached.
    """
    check_duplicates(duplicates)
    parts: list[OpenPart] = []
    for name, one in _named(given):
        storage, bases = _opened(one)
        if isinstance(storage, Parts):
            if name is not None:
                raise SelectionError(f"{name}: several parts; give each of them a name of its own")
            parts += storage.parts
            continue
        if not isinstance(storage, Store | Release):
            raise SelectionError(f"{storage.location}: neither a database nor a release; it cannot be a part")
        if storage.location in (part.storage.location for part in parts):
            raise SelectionError(f"{storage.location}: given twice; name each part once")
        check_location(storage.location)
        part = OpenPart(name or "", storage, bases)
        parts.append(part if name else replace(part, name=part.location))
    if not parts:
        raise SelectionError("no parts given; expected the locations of databases or releases")
    parts = [replace(part, name=name) for name, part in zip(_short(parts), parts, strict=True)]
    whole = Parts(parts, location or _joined(part.location for part in parts), duplicates=duplicates)
    return whole, CommonBases(whole)


def _opened(one: str | Path | Opened) -> Opened:
    if not isinstance(one, str | Path):
        return one
    return opened_list(one) if is_parts_list(one) else opened(one)


def _named(given: GivenParts) -> Iterable[tuple[str | None, str | Path | Opened]]:
    if isinstance(given, Mapping):
        return [(check_name(name), one) for name, one in given.items()]
    return [(None, one) for one in given]


def _short(parts: Sequence[OpenPart]) -> list[str]:
    """The names of the parts, those that are locations by their last piece, unless another part has it, too."""
    last = [part.name.rstrip("/").rpartition("/")[2] for part in parts]
    names = [
        piece if part.name == part.location and last.count(piece) == 1 else part.name
        for part, piece in zip(parts, last, strict=True)
    ]
    if twice := next((name for name in names if names.count(name) > 1), None):
        raise SelectionError(f"two parts are called {twice}; give each a name of its own")
    return names


def _joined(locations: Iterable[str]) -> str:
    found = list(locations)
    more = f" and {len(found) - 3} more" if len(found) > 3 else ""
    return f"{', '.join(found[:3])}{more}"
