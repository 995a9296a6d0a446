"""Descriptors of the filters of a database: streamed with their keys, or averaged by layer."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import duckdb
import numpy as np
import pyarrow as pa

from cnnfilterdb.analysis.queries import condition, run
from cnnfilterdb.core.schema import filter_schema, kernel_shape, weight_columns
from cnnfilterdb.core.sqltext import literal
from cnnfilterdb.scan.scan import FilterFiles, Run, grouped_layers, scan
from cnnfilterdb.stats import DESCRIPTORS, DescriptorSums, descriptors

if TYPE_CHECKING:
    import pandas as pd

__all__ = ["describe_batch", "of_layers", "schema"]

_KEYS = ("model_id", "layer", "out_channel", "in_channel")


def schema() -> pa.Schema:
    """The keys of a filter, and its descriptors with their meaning as metadata."""
    keys = [filter_schema("1x1").field(name).remove_metadata() for name in _KEYS]
    return pa.schema(
        keys + [pa.field(name, pa.float64(), metadata={"description": text}) for name, text in DESCRIPTORS.items()]
    )


def describe_batch(batch: pa.RecordBatch, kernel: str) -> pa.RecordBatch:
    """The keys and descriptors of a batch of filters; NULL where a descriptor is not defined."""
    weights = np.column_stack([batch[name].to_numpy() for name in weight_columns(kernel)])
    found = descriptors(weights, kernel)
    arrays = [batch[name] for name in _KEYS] + [pa.array(found[name], from_pandas=True) for name in DESCRIPTORS]
    return pa.RecordBatch.from_arrays(arrays, schema=schema())


@dataclass(frozen=True, slots=True)
class _Description:
    """The sums of the descriptors of the wanted layers among some runs."""

    kernel: str
    wanted: Mapping[str, Collection[int]]

    def of(self, model_ids: Iterable[str]) -> _Description:
        """The same for some models."""
        return replace(self, wanted={model_id: self.wanted.get(model_id, ()) for model_id in model_ids})

    def __call__(self, runs: list[Run]) -> list[tuple[tuple[str, int], DescriptorSums]]:
        return [
            ((run.model_id, run.layer), DescriptorSums.of(descriptors(np.column_stack(run.columns), self.kernel)))
            for run in runs
            if run.layer in self.wanted.get(run.model_id, ())
        ]


def of_layers(
    store: FilterFiles, connection: duckdb.DuckDBPyConnection, where: str | None, kernel: str
) -> pd.DataFrame:
    """Mean descriptors of each layer: one row per layer, found by one scan of its filters.

    Args:
        store: The storage whose files are scanned.
        connection: With the views of the database.
        where: Condition over the columns of models and layers.
        kernel: Kernel size.
    """
    import pandas as pd

    kernel_shape(kernel)
    chosen = run(
        connection,
        "SELECT model_id, layer, filters FROM facts "
        f"WHERE stored AND kernel = {literal(kernel)} AND {condition(where)} ORDER BY model_id, layer",
    ).to_pandas()
    keys = list(zip(chosen["model_id"], chosen["layer"], strict=True))
    wanted = grouped_layers(keys)
    sums: dict[tuple[str, int], DescriptorSums] = {}
    files = store.filter_files(kernel, sorted(wanted))
    for found in scan(files, kernel, _Description(kernel, wanted), layers=wanted, resources=store.resources):
        for key, part in found:
            sums[key] = sums[key].merge(part) if key in sums else part
    means = pd.DataFrame([sums[key].means() for key in keys], columns=list(DESCRIPTORS), dtype=float)
    frame: pd.DataFrame = pd.concat([chosen, means], axis=1)
    return frame
