"""A database of the kernels of trained convolutional networks.

>>> import cnnfilterdb
>>> db = cnnfilterdb.open("mydb")                                   # doctest: +SKIP
>>> db.ingest("pypi", ["deepcr/*"])                                 # doctest: +SKIP
>>> db.kl_shift(by="domain")                                        # doctest: +SKIP
"""

from __future__ import annotations

from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cnnfilterdb.errors import CnnFilterDbError

if TYPE_CHECKING:
    from cnnfilterdb.artefact import load_basis, save_basis
    from cnnfilterdb.database import FilterDB
    from cnnfilterdb.stats import Basis

__all__ = ["Basis", "CnnFilterDbError", "FilterDB", "__version__", "load_basis", "open", "save_basis"]

# Looked up on first use, so that `import cnnfilterdb` costs nothing.
_lazy = {
    "Basis": "cnnfilterdb.stats",
    "FilterDB": "cnnfilterdb.database",
    "load_basis": "cnnfilterdb.artefact",
    "save_basis": "cnnfilterdb.artefact",
}


def __getattr__(name: str) -> Any:
    if name in _lazy:
        return getattr(import_module(_lazy[name]), name)
    if name == "__version__":
        from importlib.metadata import version

        return version("cnnfilterdb")
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})


def open(path: str | Path, *, create: bool = True) -> FilterDB:
    """Open a database.

    Args:
        path: Its folder.
        create: Make it when it does not exist yet.

    Raises:
        NotADatabaseError: The folder is something else, or absent and not to be made.
        DatabaseError: A newer version of the package wrote it.
    """
    from cnnfilterdb.database import FilterDB

    return FilterDB(path, create=create)
