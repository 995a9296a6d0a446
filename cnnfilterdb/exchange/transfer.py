"""Copies models from one database to another, for pulling a release and merging two folders.

Each model is committed atomically, as an ingest does, and the weight of each layer is compared with its hash. An
interrupted run is resumed by repeating it. Histograms are computed from the copied filters, never copied.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from contextlib import closing
from typing import Any

import numpy as np
import numpy.typing as npt

from cnnfilterdb.core.durable import unwritable
from cnnfilterdb.core.errors import CnnFilterDbError, CorruptError, DatabaseError
from cnnfilterdb.core.reports import Progress, TransferReport, printable
from cnnfilterdb.core.runners import Threads
from cnnfilterdb.exchange.origins import IDENTITY, DatabaseOrigin, FolderOrigin, ReleaseOrigin, signatures
from cnnfilterdb.release.release import Release
from cnnfilterdb.scan.ordered import RowCursor
from cnnfilterdb.stats import layer_statistics, statistics_row
from cnnfilterdb.store import annotations as notes
from cnnfilterdb.store.folder import Store
from cnnfilterdb.store.index import Index, Projection
from cnnfilterdb.store.writer import Writer

__all__ = ["merge", "transfer"]

# Each thread mostly waits for the network or the disk, and keeps one layer in memory.
_WRITERS = 3
# Relative difference of statistics that two machines may compute of the same filters
_ROUNDING = 1e-5


def merge(
    store: Store,
    other: Store | Release,
    model_ids: Iterable[str] | None = None,
    *,
    drop_duplicates: bool = False,
    overwrite: bool = False,
    progress: Progress | None = None,
) -> TransferReport:
    """Copy the models of another database folder or of a release; see :func:`transfer` for the arguments."""
    if isinstance(other, Release):
        other.require_filters()
    settings: dict[str, Any] = {"drop_duplicates": drop_duplicates, "overwrite": overwrite, "progress": progress}
    origin = FolderOrigin(other) if isinstance(other, Store) else ReleaseOrigin(other)
    return transfer(store, origin, model_ids, **settings)


def transfer(
    store: Store,
    origin: DatabaseOrigin,
    model_ids: Iterable[str] | None = None,
    *,
    drop_duplicates: bool = False,
    overwrite: bool = False,
    progress: Progress | None = None,
) -> TransferReport:
    """Copy models.

    A database without a basis for a kernel size adopts that of the origin, so that both give the same numbers. The
    models are projected on every basis of the database.

    Args:
        store: The database to copy to.
        origin: The database to copy from.
        model_ids: Copy these models only.
        drop_duplicates: Leave out a model if another one in the store, or earlier in the origin, has the same weights.
        overwrite: Replace models of the same key that have other weights.
        progress: Called with the key of a model, the number of models done and the total.

    Returns:
        The outcome for each model; one that fails does not stop the others, but a full or read-only disk ends the run.
    """
    index = Index(store)
    wanted = sorted(origin.facts if model_ids is None else model_ids)
    report = TransferReport()
    chosen = _choose(store, origin, wanted, report, drop_duplicates=drop_duplicates, overwrite=overwrite)
    # First, so that no reader finds histograms without their basis.
    if chosen:
        _take_bases(index, origin)
    done = len(wanted) - len(chosen)

    def take(model_id: str) -> int:
        with store.writer(model_id, overwrite=overwrite) as writer:
            return _copy_model(writer, origin, model_id, index)

    with closing(Threads(_WRITERS, repeats=False).run(take, chosen)) as models:
        for model_id, filters in models:
            try:
                report.done[model_id] = filters.result()
            except CnnFilterDbError as error:
                if not overwrite and store.has(model_id):  # meanwhile, by another run or what a killed one had decided
                    report.skipped.append(model_id)
                else:
                    report.failed[model_id] = error
                    if unwritable(error):
                        report.stopped = str(error)
                        break
            except Exception as error:  # one model fails, for any reason; the others are still copied
                reason = f"{type(error).__name__}: {printable(error)[:200]}"
                report.failed[model_id] = DatabaseError(f"{origin.location}: {model_id} cannot be copied ({reason})")
            done += 1
            if progress:
                progress(model_id, done, len(wanted))
    try:
        _annotate(store, origin, report)
    except DatabaseError as error:
        if report.stopped is None:
            raise
        report.stopped = f"{report.stopped} (and no annotations were copied: {error})"
    return report


def _choose(
    store: Store,
    origin: DatabaseOrigin,
    wanted: list[str],
    report: TransferReport,
    *,
    drop_duplicates: bool,
    overwrite: bool,
) -> list[str]:
    """The models to copy, in order; the others go into the report."""
    new = origin.signatures()
    old = signatures(store.layers(columns=IDENTITY))
    holder = {signature: model_id for model_id, signature in old.items()}
    chosen = []
    for model_id in wanted:
        signature = new.get(model_id)
        if store.has(model_id):
            if old.get(model_id) == signature:
                report.skipped.append(model_id)
                continue
            if not overwrite:
                report.conflicts.append(model_id)
                continue
        elif drop_duplicates and signature in holder:
            report.duplicates[model_id] = holder[signature]
            continue
        if signature is not None:
            holder.setdefault(signature, model_id)
        chosen.append(model_id)
    return chosen


def _take_bases(index: Index, origin: DatabaseOrigin) -> None:
    """Copy the bases of kernel sizes that have none yet."""
    own = index.current()
    for kernel, fitted in origin.bases.current().items():
        if kernel not in own:
            index.put(fitted)


def _copy_model(writer: Writer, origin: DatabaseOrigin, model_id: str, index: Index) -> int:
    """Write one model. Its histograms are computed here, and its statistics too, to compare those of the origin."""
    projection = Projection(index)
    projection.begin(model_id)
    layers = origin.layers(model_id).to_pylist()
    stored: dict[str, list[int]] = {}
    for layer in layers:
        if layer["stored"]:
            stored.setdefault(layer["kernel"], []).append(layer["layer"])
    rows = {kernel: origin.rows(model_id, kernel, numbers) for kernel, numbers in stored.items()}
    total = 0
    for layer in layers:
        number, kernel = layer["layer"], layer["kernel"]
        if not layer["stored"]:
            writer.add_layer(layer, None)
            continue
        what = f"{origin.location}: {model_id}, layer {number} ({layer['layer_name']})"
        weight = _weight(rows[kernel], layer, what)
        writer.add_layer(layer, weight)
        _check_statistics(layer, weight, what)
        projection.add(number, kernel, weight.reshape(-1, weight.shape[2] * weight.shape[3]))
        total += layer["filters"]
    projection.finish(writer)
    writer.commit(origin.facts[model_id])
    return total


def _check_statistics(layer: dict[str, Any], weight: npt.NDArray[np.float32], what: str) -> None:
    """Compare the statistics of a layer with those of its filters."""
    for column, value in statistics_row(layer_statistics(weight)).items():
        stated = layer[column]
        if not _agree(column, stated, value):
            found = "" if isinstance(value, np.ndarray) else f" ({printable(stated)[:30]}, expected {value})"
            raise CorruptError(f"{what}: {column} is not that of its filters{found}; ask its publisher to rebuild it")


def _agree(column: str, stated: Any, value: Any) -> bool:
    """Whether two values of a statistic are the same, to the rounding of another machine's libraries."""
    if stated is None or value is None:
        return stated is value
    found, expected = np.asarray(stated, np.float64), np.asarray(value, np.float64)
    if found.shape != expected.shape:
        return False
    size = np.abs(expected).max(initial=0.0)
    # Those of a bounded range are compared on it; the others, such as norms, relative to their size.
    tolerance = _ROUNDING * (size if expected.ndim or column.startswith("norm") else max(1.0, size))
    return bool((np.abs(found - expected) <= tolerance).all())  # false for NaN


def _weight(rows: RowCursor, layer: dict[str, Any], what: str) -> npt.NDArray[np.float32]:
    """The weight of a layer, compared with its hash."""
    try:
        models, keys, weights = rows.take(layer["filters"])
    except CorruptError as error:
        raise CorruptError(f"{what}: {error}; ask its publisher to rebuild it, or leave the model out") from error
    digest = hashlib.sha256(weights.data).hexdigest()
    if models != {layer["model_id"]} or (keys[0] != layer["layer"]).any() or digest != layer["tensor_sha256"]:
        raise CorruptError(f"{what}: SHA-256 of its weight is {digest}, expected {layer['tensor_sha256']}; try again")
    out_channels = layer["out_channels"] or 1
    return weights.reshape(out_channels, -1, layer["kernel_h"], layer["kernel_w"]).astype(np.float32, copy=False)


def _annotate(store: Store, origin: DatabaseOrigin, report: TransferReport) -> None:
    """Copy the annotations of the models: of those that were there already, if they have none here.

    A run that was killed may have copied a model without its annotations.
    """
    here = notes.stored_facts(store.path)
    wanted = {*report.done, *(model_id for model_id in report.skipped if not here.get(model_id))}
    copied = {model_id: facts for model_id, facts in origin.annotations().items() if model_id in wanted}
    if copied:
        notes.change(store, lambda known: known.update(copied))
