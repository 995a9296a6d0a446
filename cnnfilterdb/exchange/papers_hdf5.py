"""The table of layers in the layout of the papers' released data set, CNN Filter DB 1.0.0. Written, never read."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc

from cnnfilterdb.core.schema import PAPERS_LAYER
from cnnfilterdb.core.sqltext import literal

__all__ = ["frame_image", "released_frame"]

#: The columns that the released data set always has, in its order; columns of some models only follow.
_RELEASED = (
    "filter_ids", "model", "producer", "op_set", "depth", "Name", "Paper", "Pretraining-Dataset", "Training-Dataset",
    "Visual Category", "Task", "Accessible", "Dataset URL", "total_filters", "3x3_filter_share", "source",
    "architecture", "family", "license", "layer_name", "in_channels", "out_channels",
)  # fmt: skip
_WHOLE = ("model_id", "conv_depth", "op_set", "depth", "in_channels", "out_channels")
_TEXT = frozenset(_RELEASED) - {*_WHOLE, "total_filters", "3x3_filter_share"}
_INDEX = ("model_id", "conv_depth", "conv_depth_norm")
#: Columns with the current values of the database, not those that the released data set stated.
_SHOWN = {
    "model": "name", "Task": "task", "Visual Category": "domain", "Training-Dataset": "training_dataset",
    "Pretraining-Dataset": "pretraining_dataset", "Paper": "paper", "source": "source", "architecture": "architecture",
    "family": "family", "license": "license",
}  # fmt: skip


def released_frame(layers: pa.Table, ask: Callable[[str], pa.Table]) -> pd.DataFrame:
    """The frame ``meta``, one row per layer, in the order of the filters.

    Args:
        layers: ``model_id``, ``layer_name``, ``filters``, ``out_channels``, ``conv_depth`` and ``conv_depth_norm``,
            sorted by model and layer.
        ask: Answers a query about the tables ``models`` and ``layers`` of the database.
    """
    models = _models(pc.unique(layers["model_id"]).to_pylist(), ask)
    rows: list[dict[str, Any]] = []
    stop = 0
    columns = ["model_id", "layer_name", "filters", "out_channels", *_INDEX[1:]]
    for layer in layers.select(columns).to_pylist():
        model, count = models[layer.pop("model_id")], layer.pop("filters")
        inputs = None if layer["out_channels"] is None else count // layer["out_channels"]
        stop += count
        rows.append(model | layer | {"filter_ids": f"{stop - count}:{stop - 1}", "in_channels": inputs})
    names = dict.fromkeys((*_RELEASED, *sorted({name for row in models.values() for name in row} - {*_INDEX})))
    frame = pd.DataFrame({name: _cells(name, [row.get(name) for row in rows]) for name in names})
    levels = [_cells(name, [row[name] for row in rows]) for name in _INDEX]
    frame.index = pd.MultiIndex.from_arrays(levels, names=_INDEX)
    frame.columns = frame.columns.astype(object)
    return frame


def frame_image(frame: pd.DataFrame, name: Path) -> bytes:
    """A frame as pandas writes it under the key ``meta``: the bytes of an HDF5 file.

    It is built in memory, because on a full disk PyTables ends silently, with a broken file.

    Args:
        frame: The frame.
        name: File name for PyTables, which writes nothing to it.
    """
    options: dict[str, Any] = {"driver": "H5FD_CORE", "driver_core_backing_store": 0}
    with warnings.catch_warnings(), pd.HDFStore(str(name), "w", **options) as store:
        warnings.simplefilter("ignore", pd.errors.PerformanceWarning)  # text is pickled, as it is in the release
        store.put("meta", frame, format="fixed", track_times=False)
        image: bytes = store.root._v_file.get_file_image()
    return image


def _models(model_ids: list[str], ask: Callable[[str], pa.Table]) -> dict[str, dict[str, Any]]:
    """The values of the frame for each model: model_id -> column -> value."""
    among = ", ".join(map(literal, model_ids))
    columns = ", ".join(("model_id", *_SHOWN.values(), "framework", "url"))
    original = "CASE WHEN starts_with(source, 'released-') THEN map_entries(original) END AS original"
    models = ask(f"SELECT {columns}, {original} FROM models WHERE model_id IN ({among}) ORDER BY model_id")
    counted: dict[str, dict[str, float]] = {model_id: {} for model_id in model_ids}
    query = (
        "SELECT model_id, kernel_h, kernel_w, sum(filters)::BIGINT AS filters FROM layers "
        f"WHERE {PAPERS_LAYER} AND model_id IN ({among}) GROUP BY ALL ORDER BY ALL"
    )
    for row in ask(query).to_pylist():
        counted[row["model_id"]][f"({row['kernel_h']}, {row['kernel_w']}) filters"] = row["filters"]
    found = {}
    for model in models.to_pylist():
        stated = {entry["key"]: entry["value"] for entry in model["original"] or ()}
        counts = counted[model["model_id"]]
        total = sum(count for name, count in counts.items() if name != "(1, 1) filters")
        facts = {"total_filters": total, "3x3_filter_share": counts["(3, 3) filters"] / total, **counts}
        facts |= {"Name": model["name"], "producer": model["framework"], "Accessible": model["url"]}
        corrected = {column: model[fact] for column, fact in _SHOWN.items()}
        found[model["model_id"]] = facts | stated | corrected
    _number(found)
    return found


def _number(models: dict[str, dict[str, Any]]) -> None:
    """Number the models as the released data set does if all of them have such a number, otherwise from 0."""
    stated = [str(model.get("model_id")) for model in models.values()]
    kept = len(set(stated)) == len(stated) and all(map(str.isdecimal, stated))
    for place, model in enumerate(models.values()):
        model["model_id"] = int(stated[place]) if kept else place
        model.pop("Datatype", None)  # what v0.1.0 calls Visual Category


def _cells(name: str, values: list[Any]) -> pd.Series[Any]:
    """A column of the frame: text as Python objects, numbers as float64, or int64 where all are known and whole."""
    cells = pd.Series([np.nan if value is None else value for value in values], dtype=object)
    if name in _TEXT:
        return cells
    numbers = pd.to_numeric(cells, errors="coerce")
    if numbers.notna().sum() < cells.notna().sum():  # text that only other releases have
        return cells
    return numbers.astype(np.int64 if name in _WHOLE and (numbers % 1 == 0).all() else np.float64)
