"""Rows of filters, taken off a stream layer by layer."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from cnnfilterdb.errors import CorruptError
from cnnfilterdb.schema import weight_columns

__all__ = ["Rows"]


class Rows:
    """Takes the rows of layers off a stream of filters, a batch in memory at a time.

    Args:
        batches: Record batches of filters, in the order of layers.
        kernel: Their kernel size.
    """

    def __init__(self, batches: Iterable[pa.RecordBatch], kernel: str) -> None:
        self._columns = weight_columns(kernel)
        self._batches: Iterator[pa.RecordBatch] = iter(batches)
        self._batch: pa.RecordBatch | None = None

    def take(self, count: int) -> tuple[set[str], npt.NDArray[np.int32], npt.NDArray[np.float32]]:
        """The next rows.

        Returns:
            Their models; (3, count) layer, out channel and in channel; (count, weights) little-endian, C-contiguous.

        Raises:
            CorruptError: The stream ends before.
        """
        models: set[str] = set()
        keys = np.empty((3, count), np.int32)
        weights = np.empty((count, len(self._columns)), "<f4")
        start = 0
        while start < count:
            if self._batch is None or not self._batch.num_rows:
                self._batch = next(self._batches, None)
                if self._batch is None:
                    raise CorruptError(f"ends {count - start:,} filters early")
            part = self._batch.slice(0, count - start)
            stop = start + part.num_rows
            models.update(pc.unique(part["model_id"]).to_pylist())
            for number, column in enumerate(("layer", "out_channel", "in_channel")):
                keys[number, start:stop] = part[column]
            for number, column in enumerate(self._columns):
                weights[start:stop, number] = part[column]
            self._batch = self._batch.slice(part.num_rows)
            start = stop
        return models, keys, weights
