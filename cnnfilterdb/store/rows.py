"""Rows of the small tables: read from the files of the models, with an error that names the damaged one."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from functools import cache, lru_cache
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from cnnfilterdb.core import paths
from cnnfilterdb.core.errors import CorruptError
from cnnfilterdb.core.reports import first_line
from cnnfilterdb.core.schema import BASES, FINGERPRINTS, HISTOGRAMS, LAYERS, MODELS
from cnnfilterdb.store.regular import Stamp, check_size, require_regular, stamp_of
from cnnfilterdb.store.seals import sealed

__all__ = ["WITHOUT_ROWS", "damaged_file", "read_rows", "sealed_rows"]

#: The files without rows of the small tables. Those of filters depend on the kernel sizes.
WITHOUT_ROWS = {
    paths.models_path(paths.EMPTY): MODELS,
    paths.layers_path(paths.EMPTY): LAYERS,
    paths.basis_path(paths.EMPTY): BASES,
    paths.histograms_path(paths.EMPTY, paths.EMPTY): HISTOGRAMS,
    paths.fingerprints_path(paths.EMPTY): FINGERPRINTS,
}


def read_rows(
    root: Path,
    files: Iterable[Path],
    schema: pa.Schema,
    columns: Sequence[str],
    model_ids: Sequence[str] | None = None,
) -> pa.Table:
    """Rows of Parquet files of a database, sorted by the keys that the table has.

    Args:
        root: The folder of the database.
        files: The files.
        schema: Their columns.
        columns: The columns to read.
        model_ids: The rows of these models only.

    Raises:
        DatabaseError: A file is not a regular one inside the folder, or would take too much memory.
        OSError: A file cannot be read; or ValueError, or :class:`pyarrow.ArrowException`.
    """
    import pyarrow.dataset as ds

    files = list(files)
    folders, check = set[Path](), _checks(schema)
    for file in files:
        require_regular(root, file, folders)
        check(file, stamp_of(file.stat()))
    keys = [name for name in ("model_id", "layer") if name in schema.names]
    dataset = ds.dataset([str(file) for file in files], schema=schema, format="parquet")
    wanted = None if model_ids is None else ds.field("model_id").isin(model_ids)
    table = dataset.to_table(columns=list(dict.fromkeys([*keys, *columns])), filter=wanted)
    return table.sort_by([(key, "ascending") for key in keys]).select(list(columns))


@cache
def _checks(schema: pa.Schema) -> Callable[[Path, Stamp], None]:
    """A function that checks the footer of a file, once for each of its stamps: that takes longer than to read it."""

    @lru_cache(maxsize=1 << 16)
    def check(file: Path, stamp: Stamp) -> None:
        with pq.ParquetFile(file) as opened:
            if not opened.schema_arrow.equals(schema):
                raise CorruptError(f"{file}: its columns are not those of the schema; import the model again")
            check_size(opened, file)

    return check


def damaged_file(root: Path, files: Iterable[Path], schema: pa.Schema, error: Exception) -> CorruptError:
    """Which of the files could not be read."""
    for file in files:
        try:
            read_rows(root, [file], schema, schema.names)
        except (OSError, ValueError, pa.ArrowException) as found:
            reason = first_line(found)
            return CorruptError(f"{file}: cannot be read ({reason}); remove the model and import it again")
    return CorruptError(f"a table could not be read a moment ago ({error}); try again")


def sealed_rows(root: Path, path: str, schema: pa.Schema) -> pa.Table:
    """Rows of a small file that this package wrote.

    Raises:
        CorruptError: It is not such a file, or its content has changed.
        FileNotFoundError: It does not exist.
    """
    file = paths.regular(root, path)
    if not sealed(file):
        raise CorruptError("its checksum is missing or wrong")
    opened = pq.ParquetFile(file)
    check_size(opened, file)
    table = opened.read(use_threads=False)
    if not table.schema.equals(schema):
        raise CorruptError("its columns are those of another version")
    return table
