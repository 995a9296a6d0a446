"""The names of the files in a database folder. Nothing here touches the disk.

::

    models/<slug>.parquet
    layers/<slug>.parquet
    filters/kernel=3x3/source=pypi/<slug>.parquet
    index/<basis id>/basis.parquet
    index/<basis id>/histograms/<slug>.parquet

All paths are relative to the folder and use ``/``, as they stand in the ``files`` column of the models table.
"""

from __future__ import annotations

import hashlib
import re
from urllib.parse import quote

__all__ = [
    "ANNOTATIONS",
    "EMPTY",
    "MARKER",
    "basis_path",
    "empty_filters_path",
    "filters_path",
    "histograms_path",
    "layers_path",
    "models_path",
    "slug",
]

#: Stem of the files without rows, by which DuckDB can bind a view before there is a model. The underscore makes pyarrow
#: (and Spark) pass over them; no slug begins with one.
EMPTY = "_empty"

#: The file that says what a folder holds: a database, or a release with its manifest.
MARKER = "cnnfilterdb.json"

#: The user's corrections of facts about models (:mod:`cnnfilterdb.store.annotations`).
ANNOTATIONS = "annotations.csv"

_READABLE = 80  # characters; with the hash and the suffix far below the 255 bytes that file systems allow
_HASH = 10  # hexadecimal digits


def slug(model_id: str) -> str:
    """Name of the files of a model: what is readable of its key, and a hash that makes it unique.

    The readable part keeps ASCII letters, digits and underscores. So the name is one path component on any file
    system, needs no quoting in a shell or in SQL, and holds no wildcard, no dot and no ``=``, which has a meaning in
    Hive paths. The hash tells apart keys that differ in case only, or beyond the readable part; it also keeps the name
    from being one that Windows reserves, such as ``con``.

    >>> slug("pypi/facenet_pytorch/onet.pt")
    'pypi-facenet_pytorch-onet-pt-262a6a7121'
    >>> slug("custom/../é")
    'custom-53e55c2708'
    """
    readable = re.sub(r"[^A-Za-z0-9_]+", "-", model_id).strip("-_")[:_READABLE].rstrip("-_")
    digest = hashlib.sha256(model_id.encode("utf-8", "surrogatepass")).hexdigest()[:_HASH]
    return f"{readable or 'model'}-{digest}"


def models_path(slug: str) -> str:
    """The models row of a model."""
    return f"models/{slug}.parquet"


def layers_path(slug: str) -> str:
    """The layers rows of a model."""
    return f"layers/{slug}.parquet"


def filters_path(kernel: str, source: str, slug: str) -> str:
    """The filters of one kernel size of a model. The source is percent-encoded, which Hive readers undo.

    >>> filters_path("3x3", "my/source", "x-0123456789")
    'filters/kernel=3x3/source=my%2Fsource/x-0123456789.parquet'
    """
    return f"filters/kernel={kernel}/source={quote(source, safe='')}/{slug}.parquet"


def empty_filters_path(kernel: str) -> str:
    """The file without rows of a kernel size."""
    return filters_path(kernel, "_", EMPTY)


def basis_path(basis_id: str) -> str:
    """A basis of the index."""
    return f"index/{basis_id}/basis.parquet"


def histograms_path(basis_id: str, slug: str) -> str:
    """The histograms of a model in a basis."""
    return f"index/{basis_id}/histograms/{slug}.parquet"
