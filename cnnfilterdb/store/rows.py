"""Rows of the small tables: read from the files of the models, with an error that names the damaged one."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path

import pyarrow as pa

from cnnfilterdb.errors import CorruptError

__all__ = ["damaged_file", "read_rows"]


def read_rows(files: Iterable[Path], schema: pa.Schema, columns: Sequence[str]) -> pa.Table:
    """Rows of Parquet files, sorted by the keys that the table has."""
    import pyarrow.dataset as ds

    keys = [name for name in ("model_id", "layer") if name in schema.names]
    dataset = ds.dataset([str(file) for file in files], schema=schema, format="parquet")
    table = dataset.to_table(columns=list(dict.fromkeys([*keys, *columns])))
    return table.sort_by([(key, "ascending") for key in keys]).select(list(columns))


def damaged_file(files: Iterable[Path], schema: pa.Schema, error: Exception) -> CorruptError:
    """Which of the files could not be read."""
    for file in files:
        try:
            read_rows([file], schema, schema.names)
        except (OSError, pa.ArrowException) as found:
            reason = str(found).partition("\n")[0]
            return CorruptError(f"{file}: cannot be read ({reason}); remove the model and import it again")
    return CorruptError(f"a table could not be read a moment ago ({error}); try again")
