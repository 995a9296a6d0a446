"""Importing models outside of this process: each is downloaded, read, measured and written by a worker.

The workers write to the folder of the database, under the lock of each model, exactly as several commands that run at a
time do. What a worker has committed remains if it is lost afterwards; its model is then found present.
"""

from __future__ import annotations

import secrets
import threading
from collections.abc import Sequence
from contextlib import closing
from dataclasses import dataclass, field, replace
from functools import lru_cache, partial
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq

from cnnfilterdb import catalog
from cnnfilterdb.core import paths
from cnnfilterdb.core.durable import unwritable
from cnnfilterdb.core.errors import CnnFilterDbError, IngestError, LockedError, WorkerLostError
from cnnfilterdb.core.reports import Failure, IngestReport, Observer
from cnnfilterdb.core.runners import Demand
from cnnfilterdb.ingest import pipeline, sources
from cnnfilterdb.ingest.isolation import FileReader
from cnnfilterdb.store.folder import Store
from cnnfilterdb.store.index import Index, Projection

__all__ = ["ingest_elsewhere"]

#: What reading and measuring a model takes besides its weights, and how often a worker holds these: as they are in the
#: file, as they are read, and as they are written.
_MEMORY, _COPIES = 700_000_000, 3


@dataclass(frozen=True, slots=True)
class _Task:
    """A model to import.

    Attributes:
        run: Name of the run.
        path: Folder of the database.
        source: Name of the source.
        options: Its options, as pairs.
        patterns: What was asked for; a source may know only the models that it has listed.
        name: Name of the model in it.
        overwrite: Whether a model that is present is imported again.
        fold_bn: Whether batch normalisations are folded.
        allow_untrained: Whether weights may look like random initialisation.
        again: Whether a worker was lost with it, perhaps after it had imported the model.
    """

    run: str
    path: Path
    source: str
    options: tuple[tuple[str, Any], ...]
    patterns: tuple[str, ...]
    name: str
    overwrite: bool
    fold_bn: bool
    allow_untrained: bool
    again: bool = False

    @property
    def model_id(self) -> str:
        """Key of the model."""
        return f"{self.source}/{pipeline.stored_name(self.name, fold_bn=self.fold_bn)}"

    def repeated(self) -> _Task:
        """The task for another worker, after one was lost."""
        return replace(self, again=True)


@dataclass(frozen=True, slots=True)
class _Outcome:
    """What became of a model.

    Attributes:
        filters: Number of its stored filters; None if it was not imported.
        error: Why it failed; None if it was skipped.
        stop: Whether every further model would fail, too.
    """

    filters: int | None = None
    error: CnnFilterDbError | None = field(default=None)
    stop: bool = False


def ingest_elsewhere(
    store: Store,
    source: str,
    options: dict[str, Any],
    patterns: Sequence[str],
    names: Sequence[str],
    *,
    overwrite: bool = False,
    observer: Observer | None = None,
    fold_bn: bool = False,
    allow_untrained: bool = False,
) -> IngestReport:
    """Import models by the runner of a database; see :func:`cnnfilterdb.ingest.pipeline.ingest`.

    The report is in the order of the names, wherever the models were imported. Bytes of downloads are not reported.

    Args:
        store: Where to write: a folder that every worker reaches by the same path.
        source: Name of the source; workers make it anew.
        options: Its options.
        patterns: The names or wildcards that were asked for.
        names: Names of the models in it.
        overwrite: Import models again that are already present.
        observer: Receives progress events.
        fold_bn: Store kernels with folded batch normalisations.
        allow_untrained: Import models whose weights look like random initialisation.
    """
    observer = observer or Observer()
    pinned = {model.name for model in catalog.models() if model.source == source and model.pinned}
    known = _listed(source, tuple(options.items()), tuple(patterns))
    run = pipeline.IngestRun(store, observer, overwrite=overwrite)
    report, given = run.report, tuple(options.items())
    token = secrets.token_hex(8)
    keys = {name: f"{source}/{pipeline.stored_name(name, fold_bn=fold_bn)}" for name in names}
    with pipeline.attach_report(report):
        tasks = [
            _Task(
                token,
                store.path,
                source,
                given,
                tuple(patterns),
                name,
                overwrite,
                fold_bn,
                allow_untrained or name in pinned,
            )
            for name in run.wanted(keys)
        ]
        sizes = [known.download_size(task.name) or 0 for task in tasks]
        demand = Demand(memory=_MEMORY + _COPIES * max(sizes, default=0))
        runs = store.resources.runner.run(_import, tasks, ordered=False, demand=demand, again=_Task.repeated)
        try:
            with closing(runs):
                for task, future in runs:
                    try:
                        outcome = future.result()
                    except WorkerLostError as error:
                        outcome = _Outcome(error=error)
                    if not _record(report, observer, task.model_id, outcome):
                        break
        finally:
            report.sort(keys.values())
    return report


def _record(report: IngestReport, observer: Observer, model_id: str, outcome: _Outcome) -> bool:
    """Write an outcome into the report; False if the run has to end."""
    if outcome.error is not None:
        report.failed.append(Failure(model_id, outcome.error))
        observer.finished(model_id, "failed")
    elif outcome.filters is None:
        report.skipped.append(model_id)
        observer.finished(model_id, "skipped")
    else:
        report.done[model_id] = outcome.filters
        observer.finished(model_id, "done")
    if outcome.stop:
        report.stopped = report.failed[-1].reason
    return not outcome.stop


def _import(task: _Task) -> _Outcome:
    """Import a model, in a worker; any exception fails this model only."""
    store = Store.open(task.path)
    if not task.overwrite and store.has(task.model_id):
        return _Outcome(_stored(store, task.model_id) if task.again else None)
    try:
        source = _source(task.run, task.source, task.options, task.patterns)
        path = pipeline.weight_path(source.resolve(task.name, None))
        filters = pipeline.take_in(
            store,
            source.enrich(task.name, _reader(source.isolated)(path)),
            source=task.source,
            name=pipeline.stored_name(task.name, fold_bn=task.fold_bn),
            facts=partial(source.describe, task.name),
            projector=Projection(Index(store)),
            overwrite=task.overwrite,
            fold_bn=task.fold_bn,
            allow_untrained=task.allow_untrained,
        )
    except Exception as error:
        if not task.overwrite and (isinstance(error, LockedError) or store.has(task.model_id)):
            return _Outcome(_stored(store, task.model_id) if task.again and store.has(task.model_id) else None)
        known = error if isinstance(error, CnnFilterDbError) else None
        return _Outcome(error=known or IngestError(_described(task.model_id, error)), stop=unwritable(error))
    return _Outcome(filters)


def _described(model_id: str, error: Exception) -> str:
    return f"{model_id}: {type(error).__name__}: {' '.join(str(error).split())}"


def _stored(store: Store, model_id: str) -> int:
    """Number of filters of a model that is present."""
    path = paths.inside(store.path, paths.models_path(store.slug(model_id)))
    count: int = pq.read_table(path, columns=["stored_filters"])["stored_filters"][0].as_py()
    return count


def _listed(name: str, options: tuple[tuple[str, Any], ...], patterns: tuple[str, ...]) -> sources.Source:
    """The source, which has listed what was asked for."""
    source = sources.get(name, **dict(options))
    source.list(patterns)
    return source


@lru_cache(maxsize=1)
def _source(run: str, name: str, options: tuple[tuple[str, Any], ...], patterns: tuple[str, ...]) -> sources.Source:
    """The same, once in a worker for all tasks of a run."""
    return _listed(name, options, patterns)


_readers = threading.local()


def _reader(isolated: bool) -> FileReader:
    """Reads weight files; the child process that does it is started once for a worker, and ends with it."""
    known: dict[bool, FileReader] = _readers.__dict__.setdefault("known", {})
    if isolated not in known:
        known[isolated] = FileReader(isolated=isolated).__enter__()
    return known[isolated]
