"""Answers as values that JSON and files can hold: labels, numbers, packed arrays, rows."""

from __future__ import annotations

import base64
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd
import pyarrow as pa

from cnnfilterdb.analysis.groups import Groups
from cnnfilterdb.core.rows import encoded

__all__ = [
    "densities",
    "distinct",
    "encoded_table",
    "group_text",
    "json_value",
    "kind_of",
    "packed",
    "records",
    "simple",
]


def group_text(label: Any) -> str:
    """A group as text: whole numbers without a decimal point, dates as DuckDB writes them."""
    if isinstance(label, bool | np.bool_):
        return str(bool(label)).lower()
    return str(label)


def json_value(value: Any) -> Any:
    """A NumPy number as a Python one, NaN as None."""
    value = value.item() if isinstance(value, np.generic) else value
    return None if isinstance(value, float) and not np.isfinite(value) else value


def simple(value: Any) -> Any:
    """A number, a text or None as it is; anything else as text."""
    return json_value(value) if isinstance(value, bool | int | float | str | np.generic | None) else str(value)


def records(frame: pd.DataFrame) -> list[dict[str, Any]]:
    """The rows of a frame, by name of column."""
    return [{str(name): json_value(value) for name, value in row.items()} for row in frame.to_dict("records")]


def packed(values: npt.NDArray[np.float64]) -> str:
    """Numbers as base64 of float64, little-endian."""
    return base64.b64encode(np.ascontiguousarray(values, "<f8").tobytes()).decode()


def densities(groups: Groups) -> dict[str, Any]:
    """Share of the coefficients in each bin, (groups, components, bins)."""
    totals = groups.counts.sum(axis=2, keepdims=True)
    return {
        "labels": [group_text(label) for label in groups.labels],
        "filters": groups.filters.tolist(),
        "models_of": groups.models.tolist(),
        "shares": packed(groups.counts / np.where(totals > 0, totals, 1)),
        "shape": list(groups.counts.shape),
        "low": groups.low,
        "high": groups.high,
        "ratios": groups.basis.explained_variance_ratio.tolist(),
    }


def encoded_table(table: pa.Table, style: str) -> bytes:
    """A table as ``csv`` or ``parquet``."""
    data = encoded(table.replace_schema_metadata(None), style)
    return data if isinstance(data, bytes) else data.encode()


def distinct(names: list[str]) -> list[str]:
    """Names of columns, of which a query may have several that are alike."""
    seen: dict[str, int] = {}
    found = []
    for name in names:
        seen[name] = seen.get(name, 0) + 1
        found.append(name if seen[name] == 1 else f"{name}_{seen[name]}")
    return found if len(set(found)) == len(found) else [f"column_{number}" for number in range(len(names))]


def kind_of(kind: pa.DataType) -> str:
    """What a column holds, for the chart: number, text or other."""
    if pa.types.is_integer(kind) or pa.types.is_floating(kind) or pa.types.is_decimal(kind):
        return "number"
    if pa.types.is_string(kind) or pa.types.is_boolean(kind) or pa.types.is_temporal(kind):
        return "text"
    return "other"
