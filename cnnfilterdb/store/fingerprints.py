"""Fingerprints of layers: their spectra, and sketches by which related models are found.

One file per model, with one row for each of its stored layers::

    index/fingerprints/<slug>.parquet

They are derived from the filters, like the bases and histograms of :mod:`cnnfilterdb.store.index`, carry the
``tensor_sha256`` of the weight that they were computed from, and are rebuilt when damaged or missing. Computing them
takes longer than counting histograms; only what reads them waits for them.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from cnnfilterdb.analysis.fingerprints import fingerprint, wrong_fingerprints
from cnnfilterdb.core import paths
from cnnfilterdb.core.durable import move, sync_folder, writing
from cnnfilterdb.core.errors import CnnFilterDbError, CorruptError, LockedError
from cnnfilterdb.core.reports import Progress, first_line
from cnnfilterdb.core.resources import release_memory
from cnnfilterdb.core.schema import FINGERPRINTS, weight_columns
from cnnfilterdb.core.sharding import Share
from cnnfilterdb.scan.ordered import PIECE, RowCursor
from cnnfilterdb.scan.steady import steady
from cnnfilterdb.store.folder import Store
from cnnfilterdb.store.rows import sealed_rows
from cnnfilterdb.store.seals import write_sealed

__all__ = ["FINGERPRINT_ENCODING", "Fingerprints"]

#: How the fingerprints are encoded: the bytes of their numbers are random, but some of them are few.
FINGERPRINT_ENCODING: dict[str, Any] = {
    "use_dictionary": ["model_id"],
    "column_encoding": {
        **{field.name: "BYTE_STREAM_SPLIT" for field in FINGERPRINTS if field.type == pa.float64()},
        "sketch.list.element": "BYTE_STREAM_SPLIT",
    },
}


#: Bytes of layers in memory for each thread, unless the memory of the process is limited to less: more than most models
#: need, so that only the largest layers come one after another.
_LAYERS = 120_000_000


class Fingerprints:
    """The fingerprints in a database folder.

    Args:
        store: The folder.
    """

    def __init__(self, store: Store) -> None:
        self.store = store

    def missing(self) -> list[str]:
        """Models with filters that have no fingerprints yet. Compares file names only."""
        present = {path.stem for path in self.store.path.glob(paths.fingerprints_pattern())}
        absent = set[str]().union(*self.store.filter_slugs().values()) - present
        names = {self.store.slug(model_id): model_id for model_id in self.store.model_ids()} if absent else {}
        return sorted(names[slug] for slug in absent if slug in names)

    def damage(self, hashes: dict[tuple[str, int], str]) -> dict[str, str]:
        """What is wrong with the files: path, relative to the database -> what was found.

        Args:
            hashes: Hash of the weight of each stored layer.
        """
        found: dict[str, str] = {}
        empty = paths.fingerprints_path(paths.EMPTY)
        if (self.store.path / empty).exists() and (wrong := _wrong_empty(self.store.path)):
            found[empty] = wrong
        committed = {self.store.slug(model_id): model_id for model_id in self.store.model_ids()}
        for path in sorted(self.store.path.glob(paths.fingerprints_pattern())):
            if path.stem in committed:
                relative = path.relative_to(self.store.path).as_posix()
                try:
                    table = sealed_rows(self.store.path, relative, FINGERPRINTS)
                    wrong = wrong_fingerprints(table, committed[path.stem], hashes)
                except (OSError, ValueError, pa.ArrowException, CnnFilterDbError) as error:
                    wrong = first_line(error)
                if wrong:
                    found[relative] = wrong
        return found

    def fill(self, progress: Progress | None = None, *, share: Share | None = None) -> None:
        """Compute those that are missing; each is moved into place if its model is still the one that was read.

        Args:
            progress: Called with "fingerprints", the number of models done and of all.
            share: Those of its models only; several processes may each fill another share.
        """
        store = self.store
        if not (store.path / paths.fingerprints_path(paths.EMPTY)).exists():  # written before there were fingerprints
            store.restore()

        def fill() -> None:
            there = [model_id for model_id in self.missing() if store.has(model_id)]
            there = there if share is None else share.among(there)
            if not there:
                return
            release_memory()  # of the scans before: a large layer takes more than they did
            stamps = {model_id: store.stamp(store.slug(model_id)) for model_id in there}
            with store.staging(paths.FINGERPRINTS if share is None else f"{paths.FINGERPRINTS}-{share}") as staging:
                for done, (model_id, table) in enumerate(self.computed(there), 1):
                    slug = store.slug(model_id)
                    part, target = staging / f"{slug}.parquet", store.path / paths.fingerprints_path(slug)
                    with suppress(LockedError), writing(store.path):
                        write_sealed(table, part, **FINGERPRINT_ENCODING)
                        with store.locked(slug):
                            if store.stamp(slug) == stamps[model_id]:
                                move(part, target)
                                sync_folder(target.parent)
                    if progress:
                        progress("fingerprints", done, len(there))

        steady(store.snapshot, fill)

    def computed(self, model_ids: Sequence[str]) -> Iterator[tuple[str, pa.Table]]:
        """Compute the rows of models, with the resources of the folder, and write nothing."""
        resources = self.store.resources
        runner = resources.runner
        most = _LAYERS * runner.workers
        budget = None if runner.remote else min(most, resources.budget or most)
        units = runner.run(_table, self._models(model_ids), weight=_size, budget=budget)
        with closing(units) as tables:
            for model, future in tables:
                yield model.model_id, future.result()

    def _models(self, model_ids: Sequence[str]) -> Iterator[_Model]:
        columns = ["model_id", "layer", "kernel", "out_channels", "filters", "stored", "tensor_sha256"]
        layers: dict[str, dict[str, list[dict[str, Any]]]] = {}
        for row in self.store.layers(model_ids, columns=columns).to_pylist():
            if row["stored"]:
                layers.setdefault(row["model_id"], {}).setdefault(row["kernel"], []).append(row)
        for model_id in model_ids:
            own = layers.get(model_id, {})
            yield _Model(model_id, own, {kernel: self.store.filter_files(kernel, [model_id]) for kernel in own})


@dataclass(frozen=True, slots=True)
class _Model:
    """A model: rows of its stored layers, and the files of their filters, by kernel size."""

    model_id: str
    layers: Mapping[str, Sequence[dict[str, Any]]]
    files: Mapping[str, Sequence[Path]]


def _size(model: _Model) -> int:
    """Bytes of the largest layer, as one is in memory at a time: its kernels, and two matrices of its spectrum."""
    return max(
        (
            4 * len(weight_columns(kernel)) * row["filters"] + 16 * _narrow(row["filters"], row["out_channels"]) ** 2
            for kernel, rows in model.layers.items()
            for row in rows
        ),
        default=0,
    )


def _narrow(filters: int, out_channels: int | None) -> int:
    """The smaller side of the matrix of a position."""
    rows = out_channels or 1
    return min(rows, filters // rows)


def _table(model: _Model) -> pa.Table:
    """The rows of a model."""
    found: list[dict[str, Any]] = []
    for kernel, layers in model.layers.items():
        for path in model.files[kernel]:
            found += _rows(path, model.model_id, kernel, layers)
    found.sort(key=lambda row: int(row["layer"]))
    return pa.Table.from_pylist(found, schema=FINGERPRINTS)


def _rows(path: Path, model_id: str, kernel: str, layers: Sequence[dict[str, Any]]) -> Iterator[dict[str, Any]]:
    try:
        with pq.ParquetFile(path, pre_buffer=False) as file:  # else all of it is read before the first batch
            rows_of = RowCursor(file.iter_batches(PIECE, use_threads=False), kernel)
            for layer in layers:
                if layer["tensor_sha256"] is None:
                    raise CorruptError(f"{model_id}: a stored layer has no hash; remove the model and import it again")
                kernels = np.empty((layer["filters"], len(weight_columns(kernel))), np.float32)
                for start, models, keys, part in rows_of.pieces(len(kernels)):
                    if models != {model_id} or (keys[0] != layer["layer"]).any():
                        raise CorruptError(
                            f"{path}: its filters are not those of the layers; `cnnfilterdb verify` checks it"
                        )
                    kernels[start : start + len(part)] = part
                yield {
                    "model_id": model_id,
                    "layer": layer["layer"],
                    "tensor_sha256": layer["tensor_sha256"],
                } | fingerprint(kernels, kernel, layer["out_channels"])
    except (OSError, ValueError, pa.ArrowException) as error:
        raise CorruptError(f"{path}: cannot be read ({first_line(error, 200)})") from error


def _wrong_empty(root: Path) -> str | None:
    try:
        rows: int = sealed_rows(root, paths.fingerprints_path(paths.EMPTY), FINGERPRINTS).num_rows
    except (OSError, ValueError, pa.ArrowException, CnnFilterDbError) as error:
        return first_line(error)
    return "has rows" if rows else None
