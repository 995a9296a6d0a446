"""Which file of a database cannot be read, asked after a query failed with an error that names none."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Protocol

import pyarrow as pa
import pyarrow.parquet as pq

from cnnfilterdb.analysis.queries import CHECK
from cnnfilterdb.core import paths
from cnnfilterdb.core.errors import DatabaseError
from cnnfilterdb.core.reports import first_line, printable
from cnnfilterdb.core.schema import BASES, FINGERPRINTS, HISTOGRAMS, LAYERS, MODELS, filter_schema, storable
from cnnfilterdb.store.regular import check_size, require_regular

__all__ = ["first_damage"]


_SMALL = (MODELS, LAYERS, BASES, HISTOGRAMS, FINGERPRINTS)


class DatabaseFolder(Protocol):
    """The folder of a database."""

    path: Path


def first_damage(store: DatabaseFolder) -> str | None:
    """The first file whose footer cannot be read or has other columns, and what is wrong; None if all are sound.

    Only footers are read.
    """
    for path, schema in _files(store.path):
        try:
            require_regular(store.path, path)
            with pq.ParquetFile(path) as file:
                if not file.schema_arrow.equals(schema):
                    return f"{path}: its columns are not those of the schema; {_remedy(store.path, path)}"
                if schema in _SMALL:
                    check_size(file, path)
        except FileNotFoundError:
            continue
        except DatabaseError as error:
            return printable(error)
        except (OSError, ValueError, pa.ArrowException) as error:
            reason = first_line(error)
            return f"{path}: cannot be read ({reason:.200}); {_remedy(store.path, path)}"
    return None


def _remedy(root: Path, path: Path) -> str:
    if path.relative_to(root).parts[0] == paths.INDEX:
        return "`cnnfilterdb index` rebuilds it"
    return CHECK


def _files(root: Path) -> Iterator[tuple[Path, pa.Schema]]:
    small = {
        paths.models_pattern(): MODELS,
        paths.layers_pattern(): LAYERS,
        paths.bases_pattern(): BASES,
        paths.histograms_pattern("*"): HISTOGRAMS,
        paths.fingerprints_pattern(): FINGERPRINTS,
    }
    for pattern, schema in small.items():
        yield from ((path, schema) for path in sorted(root.glob(pattern)))
    for path in sorted(root.glob(paths.filters_pattern())):
        kernel = path.parent.parent.name.partition("=")[2]
        if storable(kernel):
            yield path, filter_schema(kernel)
