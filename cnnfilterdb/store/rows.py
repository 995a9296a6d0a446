"""Rows of the small tables: read from the files of the models, with an error that names the damaged one."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from cnnfilterdb.core.reports import printable
from cnnfilterdb.errors import CorruptError
from cnnfilterdb.store.regular import check_size, require_regular

__all__ = ["damaged_file", "read_rows"]


def read_rows(root: Path, files: Iterable[Path], schema: pa.Schema, columns: Sequence[str]) -> pa.Table:
    """Rows of Parquet files of a database, sorted by the keys that the table has.

    Raises:
        DatabaseError: A file is not a regular one inside the folder, or would take too much memory.
        OSError: A file cannot be read; or :class:`pyarrow.ArrowException`.
    """
    import pyarrow.dataset as ds

    files = list(files)
    for file in files:
        require_regular(root, file)
        with pq.ParquetFile(file) as opened:
            if not opened.schema_arrow.equals(schema):
                raise CorruptError(f"{file}: its columns are not those of the schema; import the model again")
            check_size(opened, file)
    keys = [name for name in ("model_id", "layer") if name in schema.names]
    dataset = ds.dataset([str(file) for file in files], schema=schema, format="parquet")
    table = dataset.to_table(columns=list(dict.fromkeys([*keys, *columns])))
    return table.sort_by([(key, "ascending") for key in keys]).select(list(columns))


def damaged_file(root: Path, files: Iterable[Path], schema: pa.Schema, error: Exception) -> CorruptError:
    """Which of the files could not be read."""
    for file in files:
        try:
            read_rows(root, [file], schema, schema.names)
        except (OSError, pa.ArrowException) as found:
            reason = printable(str(found).partition("\n")[0])
            return CorruptError(f"{file}: cannot be read ({reason}); remove the model and import it again")
    return CorruptError(f"a table could not be read a moment ago ({error}); try again")
