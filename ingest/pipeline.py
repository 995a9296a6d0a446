"""The single entry point: source -> format -> layers -> statistics -> store.

:func:`take_in` writes one model. :func:`ingest` imports many from a source: the next ones are downloaded while one
is written, and a model that fails is reported without stopping the others.
"""

from __future__ import annotations

import math
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, contextmanager, suppress
from dataclasses import asdict, astuple, dataclass
from functools import cache, partial
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from cnnfilterdb import catalog
from cnnfilterdb.core.durable import unwritable
from cnnfilterdb.core.errors import (
    BadWeightsError,
    CnnFilterDbError,
    IngestError,
    LockedError,
    NoConvolutionError,
    WeightFileError,
)
from cnnfilterdb.core.reports import Failure, IngestReport, Observer
from cnnfilterdb.core.runners import Threads
from cnnfilterdb.core.schema import ModelFacts
from cnnfilterdb.core.sharding import Share
from cnnfilterdb.core.workers import limited, threads
from cnnfilterdb.ingest import formats
from cnnfilterdb.ingest.allowance import Allowance, EndedError, Held
from cnnfilterdb.ingest.importers import Importers, until
from cnnfilterdb.ingest.isolation import FileReader, enabled
from cnnfilterdb.ingest.measurement import measure
from cnnfilterdb.ingest.network import choices, memory
from cnnfilterdb.ingest.network.contents import CONTENTS, as_text
from cnnfilterdb.ingest.network.families import recognised
from cnnfilterdb.ingest.network.folding import SUFFIX, folded
from cnnfilterdb.ingest.network.layers import ConvLayer, Weights
from cnnfilterdb.ingest.network.live import is_keras
from cnnfilterdb.ingest.sources import as_source, get
from cnnfilterdb.stats import LayerStatistics, looks_untrained
from cnnfilterdb.store.folder import Store
from cnnfilterdb.store.writer import Writer

__all__ = [
    "Forecast",
    "IngestRun",
    "Projector",
    "StoppedError",
    "allowance_of",
    "attach_report",
    "forecast",
    "in_share",
    "ingest",
    "stored_name",
    "take_in",
    "weight_path",
    "weights_given",
]

#: Downloads that run while models are imported, and models that are imported at a time, at most.
_AHEAD, _AT_A_TIME = 4, 4

#: Layers that are read and measured before they are written, and the bytes of all of them: so many that neither waits
#: for the other where layers differ in size, and one of the largest beside others.
_LAYERS_AHEAD, _BYTES_AHEAD = 16, 300_000_000


class Projector(Protocol):
    """Adds a model's histograms in the existing bases; the database's index does this."""

    def begin(self, model_id: str) -> None:
        """Start a model."""

    def add(self, layer: int, kernel: str, filters: npt.NDArray[np.float32]) -> None:
        """Add the filters (n, k) of one layer."""

    def finish(self, writer: Writer) -> None:
        """Pass the histogram rows of the model to the writer."""


class StoppedError(Exception):
    """No further model can be imported; the report states why."""


class IngestRun:
    """A run over many models: decides what the outcome of each means for the run.

    Args:
        store: Where models are written.
        observer: Receives progress events.
        overwrite: Whether existing models are imported again.

    Attributes:
        report: The outcome of each model so far.
    """

    def __init__(self, store: Store, observer: Observer, *, overwrite: bool) -> None:
        self.report = IngestReport()
        self._store, self._observer, self._overwrite = store, observer, overwrite

    def wanted(self, model_ids: dict[str, str]) -> list[str]:
        """Of models, by name -> model id, the names of those to import; the others are skipped."""
        self._observer.started(len(model_ids))
        return [name for name, model_id in model_ids.items() if not self.skipped(model_id)]

    def skipped(self, model_id: str) -> bool:
        """Whether a model is skipped because it is present, perhaps because another process was faster."""
        present = not self._overwrite and self._store.has(model_id)
        if present:
            self._skip(model_id)
        return present

    def record(self, model_id: str, work: Callable[[], int | None]) -> None:
        """Import a model, and record the outcome. Any exception fails this model only.

        Args:
            model_id: Its key.
            work: Imports it and returns the number of stored filters, or None if it is skipped.

        Raises:
            StoppedError: The disk is full or read-only, so that every further model would fail too.
        """
        try:
            filters = work()
            if filters is None:
                self._skip(model_id)
                return
        except Exception as error:
            if not self._overwrite and (isinstance(error, LockedError) or self._store.has(model_id)):
                self._skip(model_id)
                return
            known = error if isinstance(error, CnnFilterDbError) else _unexpected(model_id, error)
            self.report.failed.append(Failure(model_id, known))
            self._observer.finished(model_id, "failed")
            if unwritable(error):
                self.report.stopped = self.report.failed[-1].reason
                raise StoppedError from error
        else:
            self.report.done[model_id] = filters
            self._observer.finished(model_id, "done")

    def _skip(self, model_id: str) -> None:
        self.report.skipped.append(model_id)
        self._observer.finished(model_id, "skipped")


@contextmanager
def attach_report(report: IngestReport) -> Iterator[None]:
    """Give any exception that leaves the block, such as KeyboardInterrupt, the attribute ``report``."""
    try:
        yield
    except BaseException as error:
        error.report = report  # type: ignore[attr-defined]
        raise


def _unexpected(model_id: str, error: Exception) -> IngestError:
    """Any exception of a plugin or a library, as an error of this package."""
    known = IngestError(f"{model_id}: {type(error).__name__}: {' '.join(str(error).split())}")
    known.__cause__ = error
    return known


def take_in(
    store: Store,
    weights: Weights,
    *,
    source: str,
    name: str,
    facts: Callable[[], ModelFacts],
    projector: Projector,
    overwrite: bool = False,
    origin: str | None = None,
    fold_bn: bool = False,
    allow_untrained: bool = True,
    allowance: Allowance | None = None,
) -> int:
    """Write one model into the store, completely or not at all.

    Args:
        store: Where to write.
        weights: Its layers.
        source: Name of the source.
        name: Name of the model in it.
        facts: Says what else is known about the model. It is called in a thread, so that a file is hashed while its
            layers are written.
        projector: Adds its histograms.
        overwrite: Replace a model of the same name.
        origin: Name of the weights in error messages; the model id by default.
        fold_bn: Fold the batch normalisations that are known to follow into the kernels
            (:mod:`cnnfilterdb.ingest.network.folding`); ``name`` should be a :func:`stored_name` then.
        allow_untrained: Import it, and flag it, when all its kernels look like random initialisation.
        allowance: Bytes of layers that may be in memory, if other models are imported at the same time.

    Returns:
        The number of stored filters.

    Raises:
        NoConvolutionError: It has no two-dimensional convolution.
        BadWeightsError: A weight is NaN or infinite, or the model looks untrained and that is not allowed.
    """
    model_id = f"{source}/{name}"
    origin = origin or model_id
    if not weights.layers:
        left_out = (
            f"; excluded: {'; '.join(f'{s.name}: {s.reason}' for s in weights.skipped[:3])}" if weights.skipped else ""
        )
        raise NoConvolutionError(f"{origin}: no two-dimensional convolution among its weights{left_out}")

    weights = recognised(weights)
    chosen = map(folded, weights.layers) if fold_bn else iter(weights.layers)
    filters = 0
    seen: list[LayerStatistics] = []

    def size(layer: ConvLayer) -> int:
        return 4 * math.prod(layer.shape)

    def measured(numbered: tuple[int, ConvLayer]) -> tuple[dict[str, Any], npt.NDArray[np.float32] | None]:
        number, layer = numbered
        held.take(size(layer))
        row, weight, statistics = measure(layer, origin)
        if statistics is None:
            return row, None
        seen.append(statistics)
        projector.add(number, layer.kernel, weight.reshape(row["filters"], -1))
        return row, weight

    with (
        limited(min(threads(), store.resources.threads)),
        store.writer(model_id, overwrite=overwrite) as writer,
        ThreadPoolExecutor(1, thread_name_prefix="facts") as aside,
    ):
        described = aside.submit(facts)
        projector.begin(model_id)
        # Layers are read and measured while the previous ones are written.
        measuring = Threads(1, repeats=False).run(measured, enumerate(chosen), window=_LAYERS_AHEAD)
        with closing(measuring) as layers, Held(allowance or allowance_of(store)) as held:
            for (_, layer), found in layers:
                row, weight = found.result()
                filters += 0 if weight is None else row["filters"]
                writer.add_layer(row, weight)
                del found, weight  # before the next one is read
                held.give_back(size(layer))
        untrained = looks_untrained(seen)
        if untrained and not allow_untrained:
            raise BadWeightsError(
                f"{origin}: no layer differs from random initialisation; check that the file has trained weights, or "
                "import it as a control with --allow-untrained (allow_untrained=True)"
            )
        projector.finish(writer)
        about = described.result()
        original = {f"file: {name}": text for name, text in weights.metadata.items()} | (about.original or {})
        if weights.contents:
            original[CONTENTS] = as_text(weights.contents)
        writer.commit(
            asdict(about)
            | {
                "original": original or None,
                "source": source,
                "name": name,
                "framework": about.framework or weights.framework,
                "file_format": weights.format,
                "parameters": weights.parameters,
                "untrained": untrained,
                "skipped": [f"{skipped.name}: {skipped.reason}" for skipped in weights.skipped],
            }
        )
    return filters


def allowance_of(store: Store) -> Allowance:
    """The bytes of layers that all models that are imported at the same time may hold together."""
    return Allowance(min(_BYTES_AHEAD, store.resources.budget or _BYTES_AHEAD))


def stored_name(name: str, *, fold_bn: bool) -> str:
    """The name under which a model is stored: folded and raw variants are two models.

    >>> stored_name("deepcr/mask", fold_bn=True)
    'deepcr/mask+bn'
    """
    return f"{name}{SUFFIX}" if fold_bn else name


def in_share(source: str, names: Sequence[str], shard: str | None, *, fold_bn: bool) -> list[str]:
    """The models of a source that are in a share of all; see :class:`cnnfilterdb.core.sharding.Share`.

    Args:
        source: Name of the source.
        names: Names of the models in it.
        shard: ``I/N``; None for all.
        fold_bn: Whether they are stored under the names of folded models.

    Raises:
        SelectionError: Not a share.
    """
    share = Share.of(shard)
    return [name for name in names if share is None or share.has(f"{source}/{stored_name(name, fold_bn=fold_bn)}")]


def ingest(
    store: Store,
    source: Any,
    names: Sequence[str],
    *,
    projector: Callable[[], Projector],
    overwrite: bool = False,
    observer: Observer | None = None,
    fold_bn: bool = False,
    allow_untrained: bool = False,
) -> IngestReport:
    """Import models from a source into the store.

    Several are imported at a time if child processes read them and memory is not limited. A model that is present is
    skipped before anything is downloaded, and so is one that another process imports at the same time. A model that
    fails, with any exception, is reported without stopping the others. One whose weights look untrained fails too,
    unless the catalog pins the hash of its file: then the file was reviewed, and the model is only flagged. A full
    disk ends the run. Untrusted files are read in child processes (:mod:`cnnfilterdb.ingest.isolation`).

    Args:
        store: Where to write.
        source: Their :class:`~cnnfilterdb.ingest.sources.Source`.
        names: Their names in the source.
        projector: Makes what adds the histograms of a model in existing bases.
        overwrite: Import models again that are already present.
        observer: Receives progress events.
        fold_bn: Store kernels with folded batch normalisations, under the name with
            :data:`~cnnfilterdb.ingest.network.folding.SUFFIX`.
        allow_untrained: Import models whose weights look like random initialisation.

    Returns:
        The outcome of each model, in the order of the names. An exception that leaves this function, such as
        KeyboardInterrupt, has it as its attribute ``report``.
    """
    source = as_source(source)
    observer = observer or Observer()
    run = IngestRun(store, observer, overwrite=overwrite)
    ended, enriching, allowance = threading.Event(), threading.Lock(), allowance_of(store)

    def key(name: str) -> str:
        return f"{source.name}/{stored_name(name, fold_bn=fold_bn)}"

    @cache
    def pinned() -> set[str]:
        return {model.name for model in catalog.models() if model.source == source.name and model.pinned}

    def resolve(name: str) -> Path:
        def progress(done: int, total: int | None) -> None:
            if ended.is_set():
                raise EndedError
            observer.downloading(key(name), done, total)

        if ended.is_set():
            raise EndedError
        path: Path = source.resolve(name, progress)
        return path

    def work(name: str, path: Path, read: FileReader, projecting: Projector) -> int | None:
        if not overwrite and store.has(key(name)):
            return None
        reviewed = name in pinned()  # read while a child process starts
        weights = read(weight_path(path))
        with enriching:
            weights = source.enrich(name, weights)
        return take_in(
            store,
            until(ended, weights),
            source=source.name,
            name=stored_name(name, fold_bn=fold_bn),
            facts=partial(source.describe, name),
            projector=projecting,
            overwrite=overwrite,
            fold_bn=fold_bn,
            allow_untrained=allow_untrained or reviewed,
            allowance=allowance,
        )

    with attach_report(run.report):
        keys = {name: key(name) for name in names}
        wanted = run.wanted(keys)
        alone = store.resources.runner.workers == 1
        many = 1 if alone else _AHEAD
        # In this process, readers and what a source adds may change what other threads use, as PyTorch does.
        together = source.isolated and enabled() and store.resources.budget is None and not alone
        count = max(1, min(threads(), store.resources.threads, _AT_A_TIME, len(wanted))) if together else 1
        downloads = Threads(many, repeats=False).run(resolve, wanted, window=2 * many if many > 1 else 1)
        importers = Importers(count, downloads, work, projector, isolated=bool(wanted) and source.isolated, ended=ended)
        try:
            with closing(downloads), closing(importers.run(len(wanted))) as outcomes, suppress(StoppedError):
                for name, outcome in outcomes:
                    run.record(key(name), outcome.result)
        finally:
            run.report.sort(keys.values())
    return run.report


@contextmanager
def weights_given(
    weights: Any, method: str = "add", *, network: str | None = None, merge_adapters: bool | float = False
) -> Iterator[tuple[Weights, str | None, Callable[[], ModelFacts]]]:
    """Open what a user gives in the place of weights: a weight file, tensors by name, or a module.

    Args:
        weights: The weights. A file is read in a child process, because anybody may have made it.
        method: Name of the method for messages.
        network: Which of several networks; see :func:`cnnfilterdb.ingest.formats.read`.
        merge_adapters: Whether LoRA adapters are merged, or their scale.

    Yields:
        The layers, a name for messages, and a function that says what is known about the file: it hashes it.

    Raises:
        SelectionError: It is none of these.
        WeightFileError: It cannot be read.
    """
    if isinstance(weights, str | Path):
        path = formats.main_file(weight_path(Path(weights)))
        with FileReader() as read:
            layers = read(path, network=network, merge_adapters=merge_adapters)
            yield layers, str(path), partial(get("files").describe, str(path))
    elif is_keras(weights):
        from cnnfilterdb.ingest.formats.keras.live import weights_from_keras  # only they need h5py

        with choices.choosing(choices.of(network, merge_adapters)):
            found = choices.applied(weights_from_keras(weights, method), f"the model {type(weights).__name__}")
        yield found.printable(), None, ModelFacts
    else:
        found = memory.weights_in_memory(weights, method, network=network, merge_adapters=merge_adapters)
        yield found, None, ModelFacts


def weight_path(path: Path) -> Path:
    """The path of a regular file or a folder: reading a device or a pipe may never end.

    Raises:
        WeightFileError: It is something else, or does not exist.
    """
    if not path.is_file() and not path.is_dir():
        what = "not a regular file" if path.exists() else "does not exist"
        raise WeightFileError(f"{path}: {what}; expected a weight file")
    return path


@dataclass(frozen=True, slots=True)
class Forecast:
    """The resources that an ingest will need.

    Attributes:
        models: Models to import.
        present: Models that are already in the database.
        download: Bytes to download, if they are known.
        unknown: Models whose download size is unknown.
        database: Bytes by which the database grows, if the number of kernels is known.
    """

    models: int
    present: int
    download: int
    unknown: int
    database: int

    def __str__(self) -> str:
        """One line.

        >>> str(Forecast(models=24, present=0, download=52_000_000, unknown=0, database=40_000_000))
        '24 models: 52 MB to download, about 40 MB of database'
        """
        text = f"{self.models:,} model{'s' * (self.models != 1)}: "
        if self.unknown and not self.download:
            text += "an unknown amount to download"
        else:
            text += f"{_megabytes(self.download)} to download"
            if self.unknown:
                text += f" (without {self.unknown:,} of unknown size)"
        return f"{text}, about {_megabytes(self.database)} of database" if self.database else text

    def __add__(self, other: Forecast) -> Forecast:
        """What two of them need together."""
        return Forecast(*(mine + theirs for mine, theirs in zip(astuple(self), astuple(other), strict=True)))


#: Bytes of the database for each 3x3 kernel: weights, statistics and histograms, measured on the collection pypi.
_BYTES_PER_KERNEL = 40


def forecast(
    store: Store | None, source: Any, names: Sequence[str], *, overwrite: bool = False, fold_bn: bool = False
) -> Forecast:
    """What an ingest will download and keep; nothing is downloaded.

    Args:
        store: Where to write; None if there is no database yet.
        source: The source of the models.
        names: Their names in the source.
        overwrite: Import models again that are already present.
        fold_bn: They are stored under the names of folded models.
    """
    source = as_source(source)
    kernels = {model.name: model.conv3x3_filters or 0 for model in catalog.models() if model.source == source.name}
    keys = {name: f"{source.name}/{stored_name(name, fold_bn=fold_bn)}" for name in names}
    wanted = [name for name, key in keys.items() if overwrite or store is None or not store.has(key)]
    sizes = list({source.download_key(name): source.download_size(name) for name in wanted}.values())
    return Forecast(
        models=len(wanted),
        present=len(names) - len(wanted),
        download=sum(size for size in sizes if size is not None),
        unknown=sum(size is None for size in sizes),
        database=_BYTES_PER_KERNEL * sum(kernels.get(name, 0) for name in wanted),
    )


def _megabytes(count: int) -> str:
    return f"{count / 1e9:,.1f} GB" if count >= 1e9 else f"{count / 1e6:,.0f} MB"
