"""The file that lists parts, and what it may say: it may come from a stranger, so it is checked before it is used.

::

    duplicates = "first"                           # or "error", the default

    [parts]                                        # name = folder beside this file, or address
    mine = "mydb"
    published = "hf://datasets/owner/name@v1.0.0"
    corpus = "reference"                           # the corpus in the package

It can name databases and nothing else: no options of file systems, so that it cannot send a token or a key to a server
of its choice, and no file system that runs commands or reads other archives. Nothing is ever written to a part.
"""

from __future__ import annotations

import re
import stat
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from cnnfilterdb.core.errors import DatabaseError, NotADatabaseError, SelectionError
from cnnfilterdb.core.paths import is_parts_list
from cnnfilterdb.core.reports import printable
from cnnfilterdb.release.address import REFERENCE

__all__ = ["DUPLICATES", "PartsList", "check_duplicates", "check_location", "check_name"]

#: What to do about models of the same key in several parts.
DUPLICATES = ("error", "first")

#: The schemes of addresses that a list may name.
_SCHEMES = ("abfs", "abfss", "az", "gcs", "gs", "hf", "https", "s3")

_BYTES = 1 << 20
_MOST = 1000
_NAME = 100  # characters


@dataclass(frozen=True)
class PartsList:
    """What a list of parts says.

    Attributes:
        path: The file, as an absolute path.
        parts: The location of each part by its name, in order: an absolute path, an address or ``reference``.
        duplicates: One of :data:`DUPLICATES`.
    """

    path: Path
    parts: Mapping[str, str]
    duplicates: str

    @classmethod
    def read(cls, path: Path) -> PartsList:
        """Read a list.

        Raises:
            NotADatabaseError: It does not exist.
            DatabaseError: It is not a list of parts.
        """
        path = path.absolute()
        try:
            status = path.stat()
            if not stat.S_ISREG(status.st_mode):
                raise DatabaseError(f"{path}: not a regular file; expected a list of parts")
            if status.st_size > _BYTES:
                raise DatabaseError(f"{path}: {status.st_size:,} bytes; a list of parts has at most {_BYTES:,}")
            known = tomllib.loads(path.read_bytes().decode())
        except FileNotFoundError:
            raise NotADatabaseError(f"{path}: does not exist; expected a list of parts") from None
        except (ValueError, RecursionError) as error:  # of TOML, or of UTF-8
            raise DatabaseError(f"{path}: not TOML ({printable(error):.200}); correct the file") from error
        except OSError as error:
            if isinstance(error, DatabaseError):
                raise
            raise NotADatabaseError(f"{path}: cannot be read ({error.strerror or error}); check the path") from error
        if more := sorted(known.keys() - {"duplicates", "parts"}):
            raise DatabaseError(f"{path}: {more[0]!r:.100} is unknown; expected duplicates and the table parts")
        found = known.get("parts")
        if not isinstance(found, dict) or not 1 <= len(found) <= _MOST:
            raise DatabaseError(f"{path}: expected a table parts of 1 to {_MOST:,} lines, such as mine = 'mydb'")
        duplicates = known.get("duplicates", "error")
        try:
            check_duplicates(duplicates)
            parts = {check_name(name): _location(location, path.parent) for name, location in found.items()}
        except (DatabaseError, SelectionError) as error:
            raise DatabaseError(f"{path}: {error}") from None
        return cls(path, parts, duplicates)


def check_duplicates(duplicates: object) -> str:
    """The choice, if it is one.

    Raises:
        SelectionError: It is not.
    """
    if duplicates not in DUPLICATES:
        raise SelectionError(f"duplicates: {duplicates!r:.100} given; expected one of {', '.join(DUPLICATES)}")
    return str(duplicates)


def check_name(name: object) -> str:
    """The name of a part, if it can be one: it is a value of the column ``part``.

    Raises:
        SelectionError: It is empty, too long or not printable.
    """
    if not isinstance(name, str) or not 0 < len(name) <= _NAME or not name.isprintable():
        raise SelectionError(f"{name!r:.120}: expected the name of a part, printable and of at most {_NAME} characters")
    return name


def check_location(location: str) -> None:
    """Make sure that a location can stand in a view.

    Raises:
        DatabaseError: It has control characters.
    """
    if not location or not location.isprintable():
        raise DatabaseError(f"{location!r:.200}: expected a folder or an address, printable; rename the folder")


def _location(location: object, folder: Path) -> str:
    """The location of a line of the file."""
    if not isinstance(location, str):
        raise DatabaseError(f"{location!r:.100}: expected the folder or the address of a part, as text")
    check_location(location)
    if location == REFERENCE:
        return location
    if "::" in location:
        raise DatabaseError(f"{location!r:.200}: chained file systems are not opened from a list; open it in Python")
    scheme, found, _ = location.partition("://")
    if found:
        if scheme not in _SCHEMES:
            raise DatabaseError(f"{location!r:.200}: expected an address with one of {', '.join(_SCHEMES)}")
        if re.match(r"[^/]*@", location[len(scheme) + 3 :]) and scheme != "hf":
            raise DatabaseError(f"{location!r:.200}: an address with a user name; leave it out")
        return location
    if "\\" in location:  # on Windows it may name another machine, which would be sent the user's password
        raise DatabaseError(f"{location!r:.200}: a backslash; write folders with /")
    if is_parts_list(location):
        raise DatabaseError(f"{location!r:.200}: a list in a list; name its parts")
    return str(folder / location)
