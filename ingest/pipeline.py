"""The one way in: source -> format -> layers -> statistics -> store.

:func:`take_in` writes one model. :func:`ingest` brings many from a source: the next ones are downloaded while one is
written, a model that fails is reported and the rest goes on.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from contextlib import closing
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from cnnfilterdb import catalog
from cnnfilterdb.errors import BadWeightsError, CnnFilterDbError, NoConvolutionError
from cnnfilterdb.ingest import formats
from cnnfilterdb.ingest.network.folding import SUFFIX, folded
from cnnfilterdb.ingest.network.layers import ConvLayer, Weights
from cnnfilterdb.ingest.sources import Source
from cnnfilterdb.schema import MAX_KERNEL_WEIGHTS, ModelFacts
from cnnfilterdb.stats import LayerStatistics, layer_statistics, looks_untrained
from cnnfilterdb.store.folder import Store
from cnnfilterdb.store.writer import Writer
from cnnfilterdb.workers import ahead

__all__ = ["Failure", "IngestReport", "Observer", "Projector", "ingest", "stored_name", "take_in"]

#: Downloads that run while a model is written.
_AHEAD = 4


class Projector(Protocol):
    """Adds a model's histograms in the bases that exist already; the database's index does this."""

    def begin(self, model_id: str) -> None:
        """Start a model."""

    def add(self, layer: int, kernel: str, filters: npt.NDArray[np.float32]) -> None:
        """Take in the filters (n, k) of one layer."""

    def finish(self, writer: Writer) -> None:
        """Hand the histogram rows of the model to the writer."""


@dataclass(frozen=True, slots=True)
class Failure:
    """A model that was not taken in, and why."""

    model_id: str
    error: CnnFilterDbError

    @property
    def reason(self) -> str:
        """The reason in one line."""
        return " ".join(str(self.error).split()).removeprefix(f"{self.model_id}: ")


@dataclass(slots=True)
class IngestReport:
    """What became of each model of a run.

    Attributes:
        done: Models taken in: model id -> stored filters.
        skipped: Models that were in the database already.
        failed: Models that were not taken in, with the reason.
    """

    done: dict[str, int] = field(default_factory=dict)
    skipped: list[str] = field(default_factory=list)
    failed: list[Failure] = field(default_factory=list)

    def __str__(self) -> str:
        """One line of counts.

        >>> str(IngestReport(done={"pypi/a": 10}))
        '1 done, 0 skipped, 0 failed'
        """
        return f"{len(self.done)} done, {len(self.skipped)} skipped, {len(self.failed)} failed"


class Observer:
    """Hears what a run does; the command line draws its progress bar from it. All methods may be overridden."""

    def started(self, total: int) -> None:
        """The number of models is known."""

    def downloading(self, model_id: str, done: int, total: int | None) -> None:
        """Bytes of a model's file have come. Called from worker threads."""

    def finished(self, model_id: str, outcome: str) -> None:
        """A model is ``done``, ``skipped`` or ``failed``."""


def _statistics_row(statistics: LayerStatistics) -> dict[str, Any]:
    moments, nonsparse = statistics.moments, statistics.nonsparse
    return {
        "sparsity": statistics.sparsity,
        "variance_entropy": statistics.variance_entropy,
        "randomness_threshold": statistics.randomness_threshold,
        "variance_entropy_clean": statistics.variance_entropy_clean,
        "variance_entropy_scaled": statistics.variance_entropy_scaled,
        "orthogonality": statistics.orthogonality,
        "norm_l1": statistics.norm_l1,
        "norm_l2": statistics.norm_l2,
        "isotropy": statistics.isotropy,
        "binary_filters": statistics.binary_filters,
        "levels": statistics.levels,
        "raw_mean": statistics.raw.mean,
        "raw_variance": statistics.raw.scatter.diagonal() / statistics.raw.count,
        "scaled_mean": moments.mean,
        "scaled_scatter": moments.packed(),
        "nonsparse_filters": nonsparse.count if nonsparse else None,
        "nonsparse_mean": nonsparse.mean if nonsparse else None,
        "nonsparse_scatter": nonsparse.packed() if nonsparse else None,
    }


def _layer_row(layer: ConvLayer, stored: bool, weight: npt.NDArray[np.float32]) -> dict[str, Any]:
    out_channels, in_per_group, height, width = layer.shape
    stride_h, stride_w = layer.stride or (None, None)
    dilation_h, dilation_w = layer.dilation or (None, None)
    return {
        "layer_name": layer.name,
        "kind": layer.kind,
        "kernel": layer.kernel,
        "kernel_h": height,
        "kernel_w": width,
        "in_channels": layer.in_channels,
        "out_channels": out_channels if layer.channels else None,
        "groups": layer.groups,
        "stride_h": stride_h,
        "stride_w": stride_w,
        "dilation_h": dilation_h,
        "dilation_w": dilation_w,
        "conv_depth": layer.conv_depth,
        "conv_depth_norm": layer.conv_depth_norm,
        "depth_source": layer.depth_source,
        "dead": layer.dead,
        "bn_folded": layer.bn_folded,
        "weight_norm": layer.weight_norm,
        "dtype": layer.dtype,
        "stored": stored,
        "filters": out_channels * in_per_group,
        # Little-endian, so that the hash is the same on every machine.
        "tensor_sha256": hashlib.sha256(np.ascontiguousarray(weight, "<f4").data).hexdigest(),
    }


def _checked(layer: ConvLayer, origin: str) -> npt.NDArray[np.float32]:
    weight = layer.read()
    if weight.shape != layer.shape or weight.dtype != np.float32:
        raise BadWeightsError(
            f"{origin}: layer {layer.name} was announced as float32 {layer.shape}, "
            f"read as {weight.dtype} {weight.shape}"
        )
    bad = weight.size - int(np.count_nonzero(np.isfinite(weight)))
    if bad:
        raise BadWeightsError(
            f"{origin}: layer {layer.name} holds {bad:,} NaN or infinite weights of {weight.size:,}; "
            "the checkpoint is damaged or the training diverged"
        )
    return weight


def take_in(
    store: Store,
    weights: Weights,
    *,
    source: str,
    name: str,
    facts: ModelFacts,
    projector: Projector,
    overwrite: bool = False,
    origin: str | None = None,
    fold_bn: bool = False,
    allow_untrained: bool = True,
) -> int:
    """Write one model into the store, whole or not at all.

    Args:
        store: Where to write.
        weights: Its layers.
        source: Name of the source.
        name: Name of the model in it.
        facts: What else is known about the model.
        projector: Adds its histograms.
        overwrite: Replace a model of the same name.
        origin: What to call the weights in an error message; the model id by default.
        fold_bn: Fold the batch normalisations that are known to follow into the kernels
            (:mod:`cnnfilterdb.ingest.network.folding`); ``name`` should be a :func:`stored_name` then.
        allow_untrained: Take it in, and flag it, when all its kernels look like random initialisation.

    Returns:
        The number of stored filters.

    Raises:
        NoConvolutionError: There is no two-dimensional convolution.
        BadWeightsError: A weight is NaN or infinite, or the model looks untrained and that is not allowed.
    """
    model_id = f"{source}/{name}"
    origin = origin or model_id
    if not weights.layers:
        left_out = (
            f"; left out: {'; '.join(f'{s.name}: {s.reason}' for s in weights.skipped[:3])}" if weights.skipped else ""
        )
        raise NoConvolutionError(f"{origin}: no two-dimensional convolution among its weights{left_out}")

    chosen = map(folded, weights.layers) if fold_bn else iter(weights.layers)
    filters = 0
    seen: list[LayerStatistics] = []

    def measured(numbered: tuple[int, ConvLayer]) -> tuple[dict[str, Any], npt.NDArray[np.float32] | None]:
        number, layer = numbered
        weight = _checked(layer, origin)
        size = layer.shape[2] * layer.shape[3]
        stored = 1 < size <= MAX_KERNEL_WEIGHTS and weight.size > 0
        row = _layer_row(layer, stored, weight)
        if not stored:
            return row, None
        statistics = layer_statistics(weight)
        seen.append(statistics)
        projector.add(number, layer.kernel, weight.reshape(-1, size))
        return row | _statistics_row(statistics), weight

    with store.writer(model_id, overwrite=overwrite) as writer:
        projector.begin(model_id)
        # One layer is read and measured while the one before it is written, so that few are in memory at a time.
        with closing(ahead(measured, enumerate(chosen), threads=1, window=2)) as layers:
            for _, layer in layers:
                row, weight = layer.result()
                filters += 0 if weight is None else row["filters"]
                writer.add_layer(row, weight)
        untrained = looks_untrained(seen)
        if untrained and not allow_untrained:
            raise BadWeightsError(
                f"{origin}: no layer differs from random initialisation; check that the file holds trained weights, or "
                "take it in as a control with --allow-untrained (allow_untrained=True)"
            )
        projector.finish(writer)
        known = asdict(facts)
        writer.commit(
            known
            | {
                "source": source,
                "name": name,
                "framework": facts.framework or weights.framework,
                "file_format": weights.format,
                "parameters": weights.parameters,
                "untrained": untrained,
                "skipped": [f"{skipped.name}: {skipped.reason}" for skipped in weights.skipped],
            }
        )
    return filters


def stored_name(name: str, *, fold_bn: bool) -> str:
    """The name under which a model is stored: folded and raw variants are two models.

    >>> stored_name("deepcr/mask", fold_bn=True)
    'deepcr/mask+bn'
    """
    return f"{name}{SUFFIX}" if fold_bn else name


def ingest(
    store: Store,
    source: Source,
    names: Sequence[str],
    *,
    projector: Projector,
    overwrite: bool = False,
    observer: Observer | None = None,
    fold_bn: bool = False,
    allow_untrained: bool = False,
) -> IngestReport:
    """Bring models from a source into the store.

    A model that is there already is skipped before anything is downloaded. A model that fails is reported, and the rest
    goes on. One whose weights look untrained fails too, unless the catalog pins the hash of its file: then it is known
    what it is, and it is only flagged.

    Args:
        store: Where to write.
        source: Where they come from.
        names: Their names in the source.
        projector: Adds their histograms in existing bases.
        overwrite: Bring models again that are there already.
        observer: Hears what is done.
        fold_bn: Store kernels with folded batch normalisations, under the name with
            :data:`~cnnfilterdb.ingest.network.folding.SUFFIX`.
        allow_untrained: Take in models whose weights look like random initialisation.
    """
    observer = observer or Observer()
    pinned = {model.name for model in catalog.models() if model.source == source.name and model.pinned}
    report = IngestReport()
    observer.started(len(names))
    wanted = []

    def key(name: str) -> str:
        return f"{source.name}/{stored_name(name, fold_bn=fold_bn)}"

    for name in names:
        model_id = key(name)
        if not overwrite and store.has(model_id):
            report.skipped.append(model_id)
            observer.finished(model_id, "skipped")
        else:
            wanted.append(name)

    def bring(name: str) -> Path:
        return source.resolve(name, lambda done, total: observer.downloading(key(name), done, total))

    for name, download in ahead(bring, wanted, threads=_AHEAD, window=2 * _AHEAD):
        model_id = key(name)
        try:
            path = download.result()
            facts = source.describe(name)
            report.done[model_id] = take_in(
                store,
                source.enrich(name, formats.read(path)),
                source=source.name,
                name=stored_name(name, fold_bn=fold_bn),
                facts=facts,
                projector=projector,
                overwrite=overwrite,
                fold_bn=fold_bn,
                allow_untrained=allow_untrained or name in pinned,
            )
        except CnnFilterDbError as error:
            report.failed.append(Failure(model_id, error))
            observer.finished(model_id, "failed")
        else:
            observer.finished(model_id, "done")
    return report
