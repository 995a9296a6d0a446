"""A database of the kernels of trained convolutional networks.

>>> import cnnfilterdb
>>> db = cnnfilterdb.open("mydb")                                   # doctest: +SKIP
>>> db.ingest("pypi", ["deepcr/*"])                                 # doctest: +SKIP
>>> db.kl_shift(by="domain")                                        # doctest: +SKIP
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from cnnfilterdb.errors import CnnFilterDbError

if TYPE_CHECKING:
    from cnnfilterdb.database import FilterDB, create, open, pull
    from cnnfilterdb.exchange.basis_files import load_basis, save_basis
    from cnnfilterdb.publish.hub import releases
    from cnnfilterdb.reader import Reader
    from cnnfilterdb.stats import Basis

__all__ = [
    "Basis",
    "CnnFilterDbError",
    "FilterDB",
    "Reader",
    "__version__",
    "create",
    "load_basis",
    "open",
    "pull",
    "releases",
    "save_basis",
]

# Looked up on first use, so that `import cnnfilterdb` costs nothing.
_lazy = {
    "Basis": "cnnfilterdb.stats",
    "FilterDB": "cnnfilterdb.database",
    "Reader": "cnnfilterdb.reader",
    "create": "cnnfilterdb.database",
    "load_basis": "cnnfilterdb.exchange.basis_files",
    "open": "cnnfilterdb.database",
    "pull": "cnnfilterdb.database",
    "releases": "cnnfilterdb.publish.hub",
    "save_basis": "cnnfilterdb.exchange.basis_files",
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
