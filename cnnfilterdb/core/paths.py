"""The names of the files in a database folder: the only module that spells one. Every join goes through ``inside``.

::

    cnnfilterdb.json                                    marker: the format of the folder
    models/<slug>.parquet                               one row; a model exists when this file exists
    layers/<slug>.parquet
    filters/kernel=3x3/source=pypi/<slug>.parquet
    index/<basis id>/basis.parquet
    index/<basis id>/histograms/<slug>.parquet
    index/fingerprints/<slug>.parquet
    annotations.csv, annotations.csv.sha256             the user's corrections, and their checksum
    init.sql                                            views and macros for any DuckDB client
    .gathered/<name>/                                   copies of small tables (:mod:`cnnfilterdb.store.gathered`)
    .locks/<name>.lock                                  held by the process that writes <name>
    .staging/<name>-<random>/                           what is being written, moved into place by renames
    .quarantine/<time>/...                              files that were set aside, under the paths they had

What is derived of several parts that are opened together is in the cache of the user, ``parts/<name>/index/...``, like
the index of a folder.

A release has the same marker and ``init.sql``, and its tables in shards, ``models/00000.parquet``,
``filters_3x3/00000.parquet`` and so on (:mod:`cnnfilterdb.release.manifest`).

All paths are relative to the folder and use ``/``, as in the ``files`` column of the models table. The functions
:func:`inside` and :func:`regular` look at the disk to refuse links that leave the folder; everything else is text.
"""

from __future__ import annotations

import hashlib
import os
import re
import stat
from pathlib import Path
from urllib.parse import quote

from cnnfilterdb.core.errors import UnsafePathError

__all__ = [
    "ANNOTATIONS",
    "ANNOTATIONS_SUM",
    "BASIS",
    "COMMIT",
    "EMPTY",
    "FINGERPRINTS",
    "FITTED",
    "FOLDERS",
    "GATHERED",
    "HISTOGRAMS",
    "INDEX",
    "INIT",
    "LAYERS",
    "LOCKS",
    "MARKER",
    "MEMBERS",
    "MODELS",
    "PARTS",
    "QUARANTINE",
    "STAGING",
    "TOTALS",
    "UNFINISHED",
    "bases_pattern",
    "basis_folder",
    "basis_path",
    "detail_patterns",
    "empty_filters_path",
    "filters_path",
    "filters_pattern",
    "fingerprints_path",
    "fingerprints_pattern",
    "gathered_folder",
    "histograms_path",
    "histograms_pattern",
    "histograms_table",
    "inside",
    "is_basis_id",
    "is_gathered_table",
    "is_indexed",
    "is_parts_list",
    "is_slug",
    "kernel_folder",
    "layers_path",
    "layers_pattern",
    "lock_path",
    "members_path",
    "models_path",
    "models_pattern",
    "regular",
    "relative",
    "root",
    "shard_path",
    "shard_table",
    "shards_pattern",
    "slug",
    "totals_table",
]

#: The file that makes a folder a database, or a release.
MARKER = "cnnfilterdb.json"

#: The views and macros for any DuckDB client.
INIT = "init.sql"

#: The user's corrections of facts about models (:mod:`cnnfilterdb.store.annotations`), and their checksum.
ANNOTATIONS = "annotations.csv"
ANNOTATIONS_SUM = "annotations.csv.sha256"

#: The file that says that a release in a folder is not finished.
UNFINISHED = ".cnnfilterdb-unfinished"

#: Folder of the bases, their histograms, and the fingerprints of layers.
INDEX = "index"

#: Folders of the models rows and of the layers rows, and names of these tables.
MODELS = "models"
LAYERS = "layers"

#: Folder of copies of the small tables, and name, in a folder there, of the list of models that it has copies of.
GATHERED = ".gathered"
MEMBERS = "members.json"

#: Folders of locks, of work in progress, and of files that were set aside.
LOCKS = ".locks"
STAGING = ".staging"
QUARANTINE = ".quarantine"

#: Folder, in the cache, of what is derived of several parts that are opened together, one folder each.
PARTS = "parts"

#: Folder in there of the bases that were fitted on all parts; those that belong to one part are not in it.
FITTED = "fitted"

#: Everything that a database folder consists of, besides single files.
FOLDERS = frozenset({LOCKS, STAGING, QUARANTINE, GATHERED, MODELS, LAYERS, "filters", INDEX})

#: Name, in a staging folder, of the record of a commit. The commit is decided when this file exists.
COMMIT = "commit.json"

#: Names, in the folder of a basis, of the basis and of the folder of its histograms.
BASIS = "basis.parquet"
HISTOGRAMS = "histograms"

#: Name of the tables of the histograms of whole models, which are among the copies only.
TOTALS = "totals"

#: Name, in the folder of the index, of the folder of fingerprints; no basis has such a key.
FINGERPRINTS = "fingerprints"

#: Stem of the files without rows, by which DuckDB can bind a view before there is a model. The underscore makes pyarrow
#: (and Spark) skip them; no slug begins with one.
EMPTY = "_empty"

_READABLE = 80  # characters; with the hash and the suffix far below the 255 bytes that file systems allow
_HASH = 10  # hexadecimal digits
_SLUG = re.compile(rf"[A-Za-z0-9][A-Za-z0-9_-]{{0,{_READABLE}}}-[0-9a-f]{{{_HASH}}}", re.ASCII)
_SHARD = re.compile(r"([a-z]{1,20}(?:_[1-9][0-9]{0,3}x[1-9][0-9]{0,3})?)/[0-9]{5,9}\.parquet", re.ASCII)
_BASIS = re.compile(r"[1-9][0-9]{0,3}x[1-9][0-9]{0,3}-[A-Za-z0-9]{1,64}", re.ASCII)
_NAME_BYTES = 255  # of one part of a path

# Windows opens devices under these names, with any extension.
_DEVICES = frozenset({"con", "prn", "aux", "nul", *(f"{port}{n}" for port in ("com", "lpt") for n in range(10))})


def root(path: Path) -> Path:
    """The folder of a database as an absolute path, which stays valid after a change of the working directory.

    Raises:
        UnsafePathError: A backslash in it, which is part of a name on this system and a separator for DuckDB.
    """
    path = path.absolute()
    if os.name != "nt" and "\\" in str(path):
        raise UnsafePathError(f"{path}: a path with a backslash, which DuckDB cannot read; rename the folder")
    return path


def slug(model_id: str) -> str:
    """Name of the files of a model: the readable part of its key, and a hash that makes it unique.

    The readable part keeps ASCII letters, digits and underscores, so the name is one path component on any file
    system, needs no quoting in a shell or in SQL, and contains no wildcard, no dot and no ``=``, which has a meaning in
    Hive paths. The hash distinguishes keys that differ in case only, or beyond the readable part; it also keeps the
    name from being one that Windows reserves, such as ``con``.

    >>> slug("pypi/facenet_pytorch/onet.pt")
    'pypi-facenet_pytorch-onet-pt-262a6a7121'
    >>> slug("custom/../é")
    'custom-53e55c2708'
    """
    readable = re.sub(r"[^A-Za-z0-9_]+", "-", model_id).strip("-_")[:_READABLE].rstrip("-_")
    digest = hashlib.sha256(model_id.encode("utf-8", "surrogatepass")).hexdigest()[:_HASH]
    return f"{readable or 'model'}-{digest}"


def is_parts_list(location: object) -> bool:
    """Whether a location is that of a list of parts, by its name.

    >>> is_parts_list("corpus.parts.toml"), is_parts_list("facts.toml")
    (True, False)
    """
    return str(location).endswith(".parts.toml") and "://" not in str(location)


def is_slug(text: str) -> bool:
    """Whether a text has the form of a :func:`slug`.

    >>> is_slug("custom-a-0123456789"), is_slug("my_notes")
    (True, False)
    """
    return _SLUG.fullmatch(text) is not None


def is_basis_id(text: object) -> bool:
    """Whether a value has the form of the key of a basis: kernel size, hyphen, letters and digits.

    >>> is_basis_id("3x3-0a1b2c3d"), is_basis_id("../3x3-0a"), is_basis_id(None)
    (True, False, False)
    """
    return isinstance(text, str) and _BASIS.fullmatch(text) is not None


def models_path(slug: str) -> str:
    """The models row of a model."""
    return f"{MODELS}/{slug}.parquet"


def layers_path(slug: str) -> str:
    """The layers rows of a model."""
    return f"{LAYERS}/{slug}.parquet"


def filters_path(kernel: str, source: str, slug: str) -> str:
    """The filters of one kernel size of a model. The source is percent-encoded, which Hive readers undo.

    >>> filters_path("3x3", "my/source", "x-0123456789")
    'filters/kernel=3x3/source=my%2Fsource/x-0123456789.parquet'
    """
    return f"{kernel_folder(kernel)}/source={quote(source, safe='')}/{slug}.parquet"


def kernel_folder(kernel: str) -> str:
    """The folder of the filters of a kernel size."""
    return f"filters/kernel={kernel}"


def empty_filters_path(kernel: str) -> str:
    """The file without rows of a kernel size."""
    return filters_path(kernel, "_", EMPTY)


def basis_folder(basis_id: str) -> str:
    """The folder of a basis of the index."""
    return f"{INDEX}/{basis_id}"


def basis_path(basis_id: str) -> str:
    """A basis of the index."""
    return f"{INDEX}/{basis_id}/{BASIS}"


def histograms_path(basis_id: str, slug: str) -> str:
    """The histograms of a model in a basis."""
    return f"{INDEX}/{basis_id}/{HISTOGRAMS}/{slug}.parquet"


def fingerprints_path(slug: str) -> str:
    """The fingerprints of the layers of a model."""
    return f"{INDEX}/{FINGERPRINTS}/{slug}.parquet"


def gathered_folder(name: str) -> str:
    """A folder of copies of small tables."""
    return f"{GATHERED}/{name}"


def members_path(name: str) -> str:
    """The list of the models of such a folder."""
    return f"{GATHERED}/{name}/{MEMBERS}"


def histograms_table(basis_id: str) -> str:
    """Name of the table of the histograms in a basis.

    >>> histograms_table("3x3-0a1b2c3d")
    'histograms-3x3-0a1b2c3d'
    """
    return f"{HISTOGRAMS}-{basis_id}"


def totals_table(basis_id: str) -> str:
    """Name of the table of the histograms of whole models in a basis.

    >>> totals_table("3x3-0a1b2c3d")
    'totals-3x3-0a1b2c3d'
    """
    return f"{TOTALS}-{basis_id}"


def is_gathered_table(name: str) -> bool:
    """Whether a text is the name of a small table.

    >>> is_gathered_table("layers"), is_gathered_table("histograms-3x3-0a"), is_gathered_table("histograms-../x")
    (True, True, False)
    """
    kind, _, basis_id = name.partition("-")
    return name in (MODELS, LAYERS, FINGERPRINTS) or (kind in (HISTOGRAMS, TOTALS) and is_basis_id(basis_id))


def lock_path(name: str) -> str:
    """The lock of what is written under a name."""
    return f"{LOCKS}/{name}.lock"


# Patterns as Path.glob and DuckDB read them; with an argument, a slug, a kernel size or a basis may stay open.


# The last letters of a slug and of a file without rows: a user's own file beside those of models has others
_OWN = f"*{''.join(f'[{letter}0-9a-f]' for letter in EMPTY)}"


def models_pattern() -> str:
    """All models rows. Files whose names do not end as those of models are left out."""
    return models_path(_OWN)


def layers_pattern() -> str:
    """All layers rows. Files whose names do not end as those of models are left out."""
    return layers_path(_OWN)


def filters_pattern(kernel: str = "*", slug: str = "*") -> str:
    """All filters of a kernel size, of a model, or of both."""
    return f"{kernel_folder(kernel)}/source=*/{slug}.parquet"


def bases_pattern() -> str:
    """All bases."""
    return basis_path("*")


def histograms_pattern(basis_id: str = "[!.]*", slug: str = "*") -> str:
    """All histograms in a basis, of a model, or of both."""
    return histograms_path(basis_id, slug)


def fingerprints_pattern(slug: str = "*") -> str:
    """All fingerprints, or those of a model."""
    return fingerprints_path(slug)


def detail_patterns() -> tuple[str, ...]:
    """All files that queries read besides the models rows and the bases."""
    return layers_pattern(), filters_pattern(), histograms_pattern("*"), fingerprints_pattern(), ANNOTATIONS


def is_indexed(path: str) -> bool:
    """Whether a file of a model, relative to the folder, belongs to the index and is not listed in its models row.

    >>> is_indexed("index/3x3-0a/histograms/a-0123456789.parquet"), is_indexed("layers/a-0123456789.parquet")
    (True, False)
    """
    return path.startswith(f"{INDEX}/")


def shard_path(table: str, number: int) -> str:
    """A shard of a table of a release.

    >>> shard_path("filters_3x3", 7)
    'filters_3x3/00007.parquet'
    """
    return f"{table}/{number:05}.parquet"


def shards_pattern(table: str) -> str:
    """All shards of a table of a release."""
    return f"{table}/*.parquet"


def shard_table(path: object) -> str | None:
    """The table of a shard of a release by the path of the shard; None for anything else.

    >>> shard_table("layers/00000.parquet"), shard_table("layers/notes.parquet"), shard_table("../layers/00000.parquet")
    ('layers', None, None)
    """
    found = _SHARD.fullmatch(path) if isinstance(path, str) else None
    return found[1] if found else None


def relative(path: str) -> tuple[str, ...]:
    """The parts of a relative path that comes from elsewhere: a manifest, an archive, a commit record.

    Args:
        path: With ``/`` between its parts.

    Raises:
        UnsafePathError: It is empty or absolute, has an empty, reserved or too long part, ``.`` or ``..``, a drive, a
            backslash or a control character; on one of the systems that the package runs on, it would leave its folder
            or name a device.

    >>> relative("models/a.parquet")
    ('models', 'a.parquet')
    >>> relative("../victim")
    Traceback (most recent call last):
    ...
    cnnfilterdb.UnsafePathError: '../victim': not a relative path inside a folder: it has a part '..'
    """
    parts = tuple(path.split("/")) if isinstance(path, str) else ()
    found = "it is empty" if not parts or path == "" else None
    for part in parts if found is None else ():
        if part == "" and part is parts[0]:
            found = "it is absolute"
        elif part == "":
            found = "it has an empty part"
        elif part in (".", ".."):
            found = f"it has a part {part!r}"
        elif "\\" in part or any(ord(character) < 32 or ord(character) == 127 for character in part):
            found = "it has a backslash or a control character"
        elif re.match(r"[A-Za-z]:", part):
            found = "it has a drive letter"
        elif part.split(".")[0].rstrip(" ").lower() in _DEVICES:
            found = f"{part!r} is the name of a device on Windows"
        elif len(part.encode("utf-8", "replace")) > _NAME_BYTES:
            found = "one of its parts is too long"
        elif not part.isprintable() and any(0xD800 <= ord(character) <= 0xDFFF for character in part):
            found = "it is not valid Unicode"
        if found:
            break
    if found:
        shown = path if len(str(path)) <= 200 else f"{str(path)[:200]}..."
        raise UnsafePathError(f"{shown!r}: not a relative path inside a folder: {found}")
    return parts


def inside(root: Path, path: str) -> Path:
    """Join a folder and a relative path that comes from elsewhere; every such join goes through here.

    The file need not exist. Links inside the folder may not lead out of it.

    Args:
        root: The folder.
        path: See :func:`relative`.

    Raises:
        UnsafePathError: The path is not a relative one, or a link on the way leaves the folder.
    """
    target = root.joinpath(*relative(path))
    if not target.resolve().is_relative_to(root.resolve()):
        raise UnsafePathError(f"{target}: a link that leads out of {root}; replace it with the file itself")
    return target


def regular(root: Path, path: str) -> Path:
    """Like :func:`inside`, for a file that is going to be read: it must exist and be a regular file.

    Devices, sockets and named pipes are refused: reading one could block forever.

    Raises:
        UnsafePathError: See :func:`inside`; or it is not a regular file.
        FileNotFoundError: It does not exist.
    """
    target = inside(root, path)
    if not stat.S_ISREG(target.stat().st_mode):
        raise UnsafePathError(f"{target}: not a regular file; remove it, or replace it with a file")
    return target
