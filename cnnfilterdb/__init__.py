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
    from cnnfilterdb.publish.hub import releases
    from cnnfilterdb.reading import Reader
    from cnnfilterdb.stats import Basis
    from cnnfilterdb.transfer import pull

__all__ = [
    "Basis",
    "CnnFilterDbError",
    "FilterDB",
    "Reader",
    "__version__",
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
    "Reader": "cnnfilterdb.reading",
    "load_basis": "cnnfilterdb.artefact",
    "pull": "cnnfilterdb.transfer",
    "releases": "cnnfilterdb.publish.hub",
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


def open(path: str | Path, *, create: bool = True, **options: Any) -> FilterDB:
    """Open a database.

    Args:
        path: Its folder; or a release, which can be read only (:class:`Reader`): its folder, or its address, such as
            ``hf://datasets/owner/name@v1.0.0`` or ``s3://bucket/folder``. Of a release only what is asked for is
            fetched.
        create: Make the folder when it does not exist yet.
        **options: For an address, those of its fsspec file system, such as ``token``.

    Raises:
        NotADatabaseError: The folder is something else, or absent and not to be made; no release lies at the address.
        DatabaseError: A newer version of the package wrote it.
        RemoteError: The address cannot be reached.
    """
    from cnnfilterdb.release import Release, ReleaseBases, is_release

    if is_release(path):
        from cnnfilterdb.reading import Reader

        release = Release.open(path, **options)
        return Reader(release, ReleaseBases(release.location, lambda: release.table("bases")))  # type: ignore[return-value]
    from cnnfilterdb.database import FilterDB

    return FilterDB(path, create=create)
