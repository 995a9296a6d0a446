"""A database of the kernels of trained convolutional networks.

>>> import cnnfilterdb
>>> with cnnfilterdb.example() as db:                     # three small models; cnnfilterdb.open("mydb") opens yours
...     db.kl_shift("domain").round(2)
domain      medical ct  natural
domain
medical ct        0.00     5.69
natural           5.69     0.00
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from cnnfilterdb.core.errors import (
    BadWeightsError,
    CatalogError,
    CnnFilterDbError,
    CorruptError,
    DamagedIndexError,
    DatabaseError,
    DownloadError,
    HashMismatchError,
    IngestError,
    LockedError,
    MissingExtraError,
    NoConvolutionError,
    NotADatabaseError,
    PublishError,
    QueryError,
    RemoteError,
    SelectionError,
    UnknownModelError,
    UnsafeFileError,
    UnsafePathError,
    WeightFileError,
    WorkerLostError,
)

if TYPE_CHECKING:
    from cnnfilterdb.analysis.bases import FittedBasis
    from cnnfilterdb.analysis.groups import Groups
    from cnnfilterdb.analysis.queries import QueryResult
    from cnnfilterdb.analysis.shifts import ShiftMatrix
    from cnnfilterdb.core.reports import Exported, Failure, IngestReport, Observer, Problem, TransferReport
    from cnnfilterdb.core.schema import ModelFacts
    from cnnfilterdb.database.examples import example, reference
    from cnnfilterdb.database.filterdb import FilterDB, create, open, pull
    from cnnfilterdb.database.reader import Reader
    from cnnfilterdb.exchange.basis_files import load_basis, save_basis
    from cnnfilterdb.explore.server import ExplorerServer
    from cnnfilterdb.health import Finding, doctor
    from cnnfilterdb.ingest.inspection import Comparison, Inspection, inspect
    from cnnfilterdb.publish.hub import Published, Released, releases
    from cnnfilterdb.release.manifest import LeftOut, Manifest, ReleaseFile
    from cnnfilterdb.stats import Basis, Moments
    from cnnfilterdb.study.document import Study

__all__ = [
    "BadWeightsError",
    "Basis",
    "CatalogError",
    "CnnFilterDbError",
    "Comparison",
    "CorruptError",
    "DamagedIndexError",
    "DatabaseError",
    "DownloadError",
    "ExplorerServer",
    "Exported",
    "Failure",
    "FilterDB",
    "Finding",
    "FittedBasis",
    "Groups",
    "HashMismatchError",
    "IngestError",
    "IngestReport",
    "Inspection",
    "LeftOut",
    "LockedError",
    "Manifest",
    "MissingExtraError",
    "ModelFacts",
    "Moments",
    "NoConvolutionError",
    "NotADatabaseError",
    "Observer",
    "Problem",
    "PublishError",
    "Published",
    "QueryError",
    "QueryResult",
    "Reader",
    "ReleaseFile",
    "Released",
    "RemoteError",
    "SelectionError",
    "ShiftMatrix",
    "Study",
    "TransferReport",
    "UnknownModelError",
    "UnsafeFileError",
    "UnsafePathError",
    "WeightFileError",
    "WorkerLostError",
    "__version__",
    "create",
    "doctor",
    "example",
    "inspect",
    "load_basis",
    "open",
    "pull",
    "reference",
    "releases",
    "save_basis",
]

# Imported on first use, so that `import cnnfilterdb` costs nothing.
_lazy = {
    "Basis": "cnnfilterdb.stats",
    "Comparison": "cnnfilterdb.ingest.inspection",
    "ExplorerServer": "cnnfilterdb.explore.server",
    "Exported": "cnnfilterdb.core.reports",
    "Failure": "cnnfilterdb.core.reports",
    "FilterDB": "cnnfilterdb.database.filterdb",
    "Finding": "cnnfilterdb.health",
    "FittedBasis": "cnnfilterdb.analysis.bases",
    "Groups": "cnnfilterdb.analysis.groups",
    "IngestReport": "cnnfilterdb.core.reports",
    "Inspection": "cnnfilterdb.ingest.inspection",
    "LeftOut": "cnnfilterdb.release.manifest",
    "Manifest": "cnnfilterdb.release.manifest",
    "ModelFacts": "cnnfilterdb.core.schema",
    "Moments": "cnnfilterdb.stats",
    "Observer": "cnnfilterdb.core.reports",
    "Problem": "cnnfilterdb.core.reports",
    "Published": "cnnfilterdb.publish.hub",
    "QueryResult": "cnnfilterdb.analysis.queries",
    "Reader": "cnnfilterdb.database.reader",
    "ReleaseFile": "cnnfilterdb.release.manifest",
    "Released": "cnnfilterdb.publish.hub",
    "ShiftMatrix": "cnnfilterdb.analysis.shifts",
    "Study": "cnnfilterdb.study.document",
    "TransferReport": "cnnfilterdb.core.reports",
    "create": "cnnfilterdb.database.filterdb",
    "doctor": "cnnfilterdb.health",
    "example": "cnnfilterdb.database.examples",
    "inspect": "cnnfilterdb.ingest.inspection",
    "load_basis": "cnnfilterdb.exchange.basis_files",
    "open": "cnnfilterdb.database.filterdb",
    "pull": "cnnfilterdb.database.filterdb",
    "reference": "cnnfilterdb.database.examples",
    "releases": "cnnfilterdb.publish.hub",
    "save_basis": "cnnfilterdb.exchange.basis_files",
}


def __getattr__(name: str) -> Any:
    if name in _lazy:
        return getattr(import_module(_lazy[name]), name)
    if name == "__version__":
        from cnnfilterdb.core.version import package_version

        return package_version()
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
