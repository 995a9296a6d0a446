"""The papers' released dataset: one HDF5 file of 3x3 kernels, with a table of their models and layers.

There are three layouts (measured, or documented by the authors' notebooks):

====================  =====================  ==========================  =====================================
release               ``/filters``           ``/meta``                   index of the table
====================  =====================  ==========================  =====================================
v0.1.0                (N, 9) float32         CSV text, as bytes          three columns
v1.0.0                (N, 3, 3) float64      pandas frame                model_id, conv_depth, conv_depth_norm
robustness set        (N, 3, 3) float64      pandas frame                the same and layer_id
====================  =====================  ==========================  =====================================

A row of the table describes one layer, whose kernels are the rows ``first:last`` of ``/filters``, both included.
:class:`ReleasedDataset` checks that the table accounts for every kernel once, and returns the models one by one;
kernels are read when a layer is requested.

What the table states about a model is kept in the column ``original``. The corrections of the papers and of this
project are data: ``released_overrides.csv`` of the catalog.
"""

from __future__ import annotations

import csv
import io
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import closing, suppress
from dataclasses import dataclass
from fnmatch import fnmatchcase
from functools import cache, partial
from importlib.resources import files
from pathlib import Path
from types import TracebackType
from typing import Any

import h5py
import numpy as np
import numpy.typing as npt
import pandas as pd

from cnnfilterdb.core.errors import CatalogError, MissingExtraError, UnsafeFileError, WeightFileError
from cnnfilterdb.core.reports import IngestReport, Observer
from cnnfilterdb.core.runners import Threads
from cnnfilterdb.core.schema import ModelFacts
from cnnfilterdb.core.workers import threads
from cnnfilterdb.ingest import formats
from cnnfilterdb.ingest.formats import frame, hdf5, limits
from cnnfilterdb.ingest.network.layers import ConvLayer, Skipped, Weights
from cnnfilterdb.ingest.pipeline import IngestRun, Projector, StoppedError, allowance_of, attach_report, take_in
from cnnfilterdb.store.folder import Store

__all__ = ["Edition", "Override", "ReleasedDataset", "import_models", "overrides"]

#: Largest number of models that are written at the same time. One more than there are processors, because each commit
#: waits for the disk.
_WRITERS = 4

#: Kernels that are read from the file at a time, so that reading a layer takes little more memory than the layer.
_BLOCK = 1 << 15

#: Kernels of the largest layer that is accepted: four times those of 4096 to 4096 channels.
_LARGEST_LAYER = 1 << 26


@dataclass(frozen=True, slots=True)
class Edition:
    """One of the published files.

    Attributes:
        source: Name of the source under which its models are stored.
        version: Version that its authors gave it.
        url: Where it is published.
        filters: Number of kernels in it; None where it is unknown. A file of the same layout with another number has
            another author.
    """

    source: str
    version: str | None
    url: str
    filters: int | None


V0_1_0 = Edition("released-v0.1.0", "v0.1.0", "https://www.kaggle.com/datasets/paulgavrikov/cnn-filter-db", None)
V1_0_0 = Edition("released-v1.0.0", "v1.0.0", "https://doi.org/10.5281/zenodo.6371680", 1_464_797_156)
ROBUSTNESS = Edition("released-robustness", None, "https://doi.org/10.5281/zenodo.6414075", 1_008_168_592)

#: Licence of all three, as stated by their authors.
_LICENSE = "CC-BY-SA-4.0"

#: Columns of the models table, and the columns of the dataset that fill them.
_FACTS = {
    "task": ("Task",),
    "domain": ("Visual Category", "Datatype"),
    "training_dataset": ("Training-Dataset",),
    "pretraining_dataset": ("Pretraining-Dataset",),
    "paper": ("Paper",),
}
_METRICS = {"clean_accuracy": "Clean Accuracy", "robust_accuracy": "Robust Accuracy"}

_INDEX = ("model_id", "conv_depth", "conv_depth_norm")
#: Columns that describe a layer, not its model.
_OF_LAYERS = frozenset({*_INDEX[1:], "layer_id", "layer_depth", "filter_ids", "in_channels", "out_channels"})


@dataclass(frozen=True, slots=True)
class Override:
    """A correction of what an edition states.

    Attributes:
        model: Names of the models that it applies to, a shell-style pattern.
        column: Column of the models table.
        original: What the edition states, a shell-style pattern; ``*`` matches an absent value too.
        corrected: The correct value; empty for an unknown value.
        reason: Why.
    """

    model: str
    column: str
    original: str
    corrected: str
    reason: str

    def matches(self, model: str, value: str | None) -> bool:
        """Whether it applies to this model and this value."""
        return fnmatchcase(model, self.model) and fnmatchcase(value or "", self.original)


@cache
def overrides() -> tuple[Override, ...]:
    """The corrections of the catalog, in the order in which they are applied.

    Raises:
        CatalogError: A line has unexpected columns, or does not name a column of the models table.
    """
    text = files("cnnfilterdb.catalog").joinpath("released_overrides.csv").read_text(encoding="utf-8")
    found = []
    for number, row in enumerate(csv.DictReader(io.StringIO(text)), start=2):
        if set(row) != set(Override.__slots__) or None in row.values() or row["column"] not in _FACTS:
            raise CatalogError(
                f"released_overrides.csv, line {number}: expected the columns {', '.join(Override.__slots__)}, with a "
                f"column out of {', '.join(_FACTS)}"
            )
        found.append(Override(**row))
    return tuple(found)


def corrected(model: str, facts: Mapping[str, str | None]) -> dict[str, str | None]:
    """Facts of a model as the catalog corrects them.

    >>> corrected("unet", {"task": "Segmentation (binary)", "domain": "formula"})
    {'task': 'Segmentation', 'domain': 'fractals'}
    """
    result = dict(facts)
    for override in overrides():
        if override.column in result and override.matches(model, result[override.column]):
            result[override.column] = override.corrected or None
    return result


@dataclass(frozen=True, slots=True)
class _Layer:
    """A row of the table."""

    rows: str  # as written in the file
    start: int
    stop: int
    conv_depth: int | None
    conv_depth_norm: float | None
    channels: tuple[int, int] | None  # output channels, and input channels per group


@dataclass(frozen=True, slots=True)
class _Model:
    name: str
    original: dict[str, str]
    layers: tuple[_Layer, ...]


class ReleasedDataset:
    """A released file, opened; a context manager.

    Args:
        path: The file.
        trust: Let pandas unpickle the table if it cannot be read safely. That may run code in the file. A table that
            asks for code to be run is refused nevertheless.

    Raises:
        UnsafeFileError: The table asks for code to be executed.
        WeightFileError: Not a released file, a damaged one, one that refers to other files, or one whose rows do not
            account for every kernel once.
        MissingExtraError: ``trust`` needs PyTables, which is not installed.

    Attributes:
        path: The file.
        edition: Which of the published files it is, by its layout.
        filters: Number of kernels.
    """

    def __init__(self, path: str | Path, *, trust: bool = False) -> None:
        self.path = Path(path)
        self._file = _open(self.path)
        try:
            # Kernels are read in blocks: however many there are, they need no memory here.
            with limits.active(limits.Limits(str(self.path), memory=1 << 62)):
                hdf5.guard(self._file, self.path)
            with limits.reading(str(self.path), self.path.stat().st_size):
                self._kernels = self._filters_array()
                self.filters: int = self._kernels.shape[0]
                table, self.edition = self._table(trust)
                self._models = {model.name: model for model in _models(table, self.path, self.filters)}
        except BaseException:
            self._file.close()
            raise

    def __enter__(self) -> ReleasedDataset:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._file.close()

    def names(self) -> list[str]:
        """Names of the models, in the order of the file."""
        return list(self._models)

    def describe(self, name: str) -> ModelFacts:
        """What is known about a model, as the catalog corrects it."""
        original = self._models[name].original
        stated = {
            fact: next((original[column] for column in columns if column in original), None)
            for fact, columns in _FACTS.items()
        }
        # A file of the same layout may have another author: the number of its kernels shows it.
        published = self.edition.filters in (None, self.filters)
        metrics = {metric: _number(original.get(column)) for metric, column in _METRICS.items()}
        return ModelFacts(
            **corrected(original["model"], stated),
            # v1.0.0 has this column too, but its authors say not to use it
            architecture=original.get("Backbone") if self.edition is ROBUSTNESS else None,
            framework=_framework(original.get("producer")),
            revision=self.edition.version if published else None,
            url=self.edition.url if published else None,
            license=_LICENSE if published else None,
            metrics={metric: value for metric, value in metrics.items() if value is not None} or None,
            original=original,
        )

    def weights(self, name: str) -> Weights:
        """The layers of a model, which can be read while the file is open."""
        model = self._models[name]
        return Weights(
            "hdf5", None, tuple(self._layer(layer) for layer in model.layers), skipped=tuple(_left_out(model.original))
        )

    def _layer(self, layer: _Layer) -> ConvLayer:
        out_channels, in_channels = layer.channels or (1, layer.stop - layer.start)
        shape = (out_channels, in_channels, 3, 3)
        return ConvLayer(
            name=layer.rows,
            shape=shape,
            read=lambda: self._read(layer.start, layer.stop).reshape(shape),
            dtype=self._kernels.dtype.name,
            conv_depth=layer.conv_depth,
            conv_depth_norm=layer.conv_depth_norm,
            depth_source=None if layer.conv_depth is None else "graph",
            channels=layer.channels is not None,
        )

    def _read(self, start: int, stop: int) -> npt.NDArray[np.float32]:
        """Kernels (n, 9) of the rows from ``start`` to before ``stop``."""
        if stop - start > _LARGEST_LAYER:
            raise WeightFileError(
                f"{self.path}: a layer of {stop - start:,} kernels (rows {start} to {stop - 1} of /filters), "
                f"expected at most {_LARGEST_LAYER:,}; download the file again"
            )
        kernels = np.empty((stop - start, *self._kernels.shape[1:]), np.float32)
        buffer = np.empty((min(_BLOCK, stop - start), *self._kernels.shape[1:]), self._kernels.dtype)
        try:
            for first in range(start, stop, _BLOCK):
                part = buffer[: min(_BLOCK, stop - first)]
                self._kernels.read_direct(part, np.s_[first : first + len(part)])
                with np.errstate(over="ignore"):  # values beyond single precision are reported as infinite weights
                    kernels[first - start : first - start + len(part)] = part
        except OSError as error:
            raise WeightFileError(
                f"{self.path}: rows {start} to {stop - 1} of /filters cannot be read ({error}); download the file again"
            ) from error
        return kernels

    def _filters_array(self) -> h5py.Dataset:
        found = self._file.get("filters", self._file.get("filter"))  # its documentation says /filter
        if not isinstance(found, h5py.Dataset):
            keys = ", ".join(f"/{key}" for key in self._file) or "nothing"
            raise WeightFileError(f"{self.path}: no array /filters, found {keys}; expected the papers' dataset.h5")
        if (
            found.shape is None
            or found.shape[1:] not in ((3, 3), (9,))
            or found.dtype.name not in ("float64", "float32")
        ):
            raise WeightFileError(
                f"{self.path}: /filters is {found.dtype} {found.shape}, expected float64 or float32 of (N, 3, 3) or "
                "(N, 9); only the released files can be imported, use `cnnfilterdb add` for your own weights"
            )
        return found

    def _table(self, trust: bool) -> tuple[pd.DataFrame, Edition]:
        meta = self._file.get("meta")
        if isinstance(meta, h5py.Dataset):
            hdf5.guard_dataset(meta, self.path)
            return _checked_columns(_csv(meta, self.path), self.path), V0_1_0
        if meta is None:
            raise WeightFileError(
                f"{self.path}: no table /meta of the models and layers of the kernels; download the file again"
            )
        try:
            table = frame.read_frame(meta, f"{self.path}: /meta")
        except UnsafeFileError:
            raise
        except WeightFileError as error:
            if not trust:
                raise WeightFileError(
                    f"{error}; if you trust the author of this file, --trust (trust=True) lets pandas unpickle it, "
                    "which can run code in the file (needs: pip install 'cnnfilterdb[hdf5]')"
                ) from error
            table = _unpickled(self.path)
        return _checked_columns(table, self.path), ROBUSTNESS if "layer_id" in table else V1_0_0


def import_models(
    store: Store,
    dataset: ReleasedDataset,
    *,
    projector: Callable[[], Projector],
    overwrite: bool = False,
    observer: Observer | None = None,
) -> IngestReport:
    """Import the models of a released file into the store, a few at a time.

    Models already present are skipped; repeat the call to resume an interrupted import. A model that fails is reported
    without stopping the others; a full disk ends the run.

    Args:
        store: Where to write.
        dataset: The file.
        projector: Makes the objects that add a model's histograms in existing bases.
        overwrite: Import models again that are already present.
        observer: Receives progress events.

    Returns:
        The outcome of each model. An exception that leaves this function, such as KeyboardInterrupt, has it as its
        attribute ``report``.
    """
    source = dataset.edition.source
    run = IngestRun(store, observer or Observer(), overwrite=overwrite)
    allowance = allowance_of(store)

    def import_one(name: str) -> int:
        return take_in(
            store,
            dataset.weights(name),
            source=source,
            name=name,
            facts=partial(dataset.describe, name),
            projector=projector(),
            overwrite=overwrite,
            origin=f"{dataset.path}: {name}",
            allowance=allowance,
        )

    with attach_report(run.report):
        wanted = run.wanted({name: f"{source}/{name}" for name in dataset.names()})
        writers = Threads(min(threads() + 1, _WRITERS), repeats=False)
        with closing(writers.run(import_one, wanted)) as models, suppress(StoppedError):
            for name, filters in models:
                run.record(f"{source}/{name}", filters.result)
    return run.report


# ------------------------------------------------------------------------------------------------------------ the table


def _open(path: Path) -> h5py.File:
    try:
        with path.open("rb") as file:
            head = file.read(4096)
    except OSError as error:
        raise WeightFileError(f"{path}: cannot be opened: {error.strerror or error}") from error
    formats.reject(path, head)
    for magic, tool in ((b"\xfd7zXZ", "xz -dk"), (b"PK\x03\x04", "unzip"), (b"\x1f\x8b", "gunzip -k")):
        if head.startswith(magic):
            raise WeightFileError(f"{path}: is compressed; unpack it first: {tool} {path.name}")
    try:
        return h5py.File(path, "r")
    except OSError as error:
        raise WeightFileError(f"{path}: not a readable HDF5 file ({error}); download it again") from error


def _csv(meta: h5py.Dataset, path: Path) -> pd.DataFrame:
    content = meta[()]
    data = content if isinstance(content, bytes) else np.asarray(content).tobytes()
    try:
        text = data.decode("utf-8-sig")
        return pd.read_csv(io.StringIO(text), low_memory=False, dtype={"filter_ids": object, "model": object})
    except ValueError as error:  # of the decoder and of pandas
        reason = " ".join(str(error).split())
        raise WeightFileError(f"{path}: /meta is not CSV text ({reason}); download the file again") from error


def _unpickled(path: Path) -> pd.DataFrame:
    """The table as read by pandas and PyTables, which unpickle everything in it."""
    try:
        table = pd.read_hdf(path, "meta")
    except ImportError as error:
        raise MissingExtraError(
            f"{path}: --trust needs PyTables; install it: pip install 'cnnfilterdb[hdf5]'"
        ) from error
    # Unpickling runs code, which may fail in any way.
    except Exception as error:
        raise WeightFileError(f"{path}: pandas cannot read /meta ({error}); download the file again") from error
    if not isinstance(table, pd.DataFrame):
        raise WeightFileError(f"{path}: /meta contains a {type(table).__name__}, expected a DataFrame")
    return table.reset_index()


def _checked_columns(table: pd.DataFrame, path: Path) -> pd.DataFrame:
    missing = [column for column in (*_INDEX, "filter_ids", "model") if column not in table]
    if missing:
        raise WeightFileError(
            f"{path}: /meta has no {', '.join(missing)} among its {len(table.columns)} columns "
            f"({', '.join(map(str, table.columns[:8]))}, ...); expected the papers' dataset.h5"
        )
    if table.empty:
        raise WeightFileError(f"{path}: /meta has no rows; download the file again")
    for column in ("model_id", "conv_depth"):
        values = pd.to_numeric(table[column], errors="coerce")
        absent = table[column].isna() & (column != "model_id")
        for row in np.flatnonzero((values % 1 != 0) & ~absent)[:1].tolist():
            raise WeightFileError(
                f"{path}: row {row} of /meta has {column} {table[column].iloc[row]}, expected a whole number; "
                "download the file again"
            )
    return table


def _models(table: pd.DataFrame, path: Path, filters: int) -> Iterator[_Model]:
    """The models of the table, in the order of their kernels."""
    spans = _spans(table["filter_ids"].tolist(), path)
    order = np.argsort(spans[:, 0], kind="stable")
    _check_cover(spans[order], [table["filter_ids"].iloc[row] for row in order], path, filters)
    rows: dict[int, list[int]] = {}
    for row in order.tolist():
        rows.setdefault(int(table["model_id"].iloc[row]), []).append(row)
    texts = {
        str(column): [_text(value) for value in table[column].tolist()] for column in table if column not in _OF_LAYERS
    }
    originals = {model_id: _agreed(texts, own) for model_id, own in rows.items()}
    for model_id, own in rows.items():
        if "model" not in originals[model_id]:
            names = sorted({texts["model"][row] or "" for row in own})
            raise WeightFileError(
                f"{path}: model_id {model_id} of /meta has the names {', '.join(map(repr, names))}, expected one; "
                "download the file again"
            )
    layers = _layers(table, spans)
    shared = Counter(original["model"] for original in originals.values())
    for model_id, own in rows.items():
        name = originals[model_id]["model"]
        yield _Model(
            name=name if shared[name] == 1 else f"{name}.{model_id}",
            original=originals[model_id],
            layers=tuple(layers[row] for row in own),
        )


def _spans(filter_ids: list[Any], path: Path) -> npt.NDArray[np.int64]:
    """First and last row of each layer, (rows, 2)."""
    spans = np.empty((len(filter_ids), 2), np.int64)
    for row, text in enumerate(filter_ids):
        first, colon, last = str(text).partition(":")
        if not (colon and first.isdecimal() and last.isdecimal() and int(first) <= int(last) < 1 << 62):
            raise WeightFileError(
                f"{path}: row {row} of /meta has filter_ids {text!r}, expected first:last, such as 0:191"
            )
        spans[row] = int(first), int(last)
    return spans


def _check_cover(spans: npt.NDArray[np.int64], names: list[str], path: Path, filters: int) -> None:
    """Check that layers, sorted by their first row, cover each row of /filters once."""
    expected = np.concatenate([[0], spans[:, 1] + 1])
    found = np.concatenate([spans[:, 0], [filters]])
    for place in np.flatnonzero(expected != found)[:1].tolist():
        here = f"before {names[place]}" if place < len(names) else "at the end"
        there = f"after {names[place - 1]}, " if place else ""
        if place == len(names) and expected[place] > filters:
            problem = f"{names[-1]} reaches beyond the {filters:,} rows of /filters"
        elif expected[place] > found[place]:
            problem = f"{names[place - 1]} and {names[place]} overlap"
        else:
            problem = f"rows {expected[place]} to {found[place] - 1} of /filters belong to no layer ({there}{here})"
        raise WeightFileError(f"{path}: {problem}; expected each row in one layer of /meta; download the file again")


def _layers(table: pd.DataFrame, spans: npt.NDArray[np.int64]) -> list[_Layer]:
    def numbers(column: str) -> list[float | None]:
        if column not in table:
            return [None] * len(table)
        values = pd.to_numeric(table[column], errors="coerce").tolist()
        return [None if value != value else float(value) for value in values]

    layers = []
    columns = map(numbers, ("conv_depth", "conv_depth_norm", "out_channels", "in_channels"))
    for (first, last), depth, norm, outs, ins in zip(spans.tolist(), *columns, strict=True):
        # The channels of the table are only used if they account for the kernels.
        known = outs is not None and ins is not None and outs * ins == last - first + 1
        layers.append(
            _Layer(
                rows=f"{first}:{last}",
                start=first,
                stop=last + 1,
                conv_depth=None if depth is None else int(depth),
                conv_depth_norm=norm,
                channels=(int(outs or 0), int(ins or 0)) if known else None,
            )
        )
    return layers


def _agreed(texts: Mapping[str, list[str | None]], rows: list[int]) -> dict[str, str]:
    """What all rows of a model agree on: column -> text."""
    agreed = {}
    for column, values in texts.items():
        stated = {text for row in rows if (text := values[row]) is not None}
        if len(stated) == 1:
            agreed[column] = stated.pop()
    return agreed


def _text(value: Any) -> str | None:
    """A cell as text; None where it is empty.

    >>> _text(53.0), _text(0.25), _text(True), _text(float("nan"))
    ('53', '0.25', 'True', None)
    """
    if value is None or value != value:
        return None
    if isinstance(value, float) and value.is_integer():
        return str(int(value))
    return str(value).strip() or None


def _number(text: str | None) -> float | None:
    try:
        return None if text is None else float(text)
    except ValueError:
        return None


def _framework(producer: str | None) -> str | None:
    """Framework of a model, derived from its exporter.

    >>> _framework("pytorch 1.11"), _framework("keras2onnx 1.7.0"), _framework(None)
    ('pytorch', 'keras', None)
    """
    if producer is None:
        return None
    word = producer.split()[0].lower()
    return {"keras2onnx": "keras", "tf2onnx": "tensorflow"}.get(word, word)


def _left_out(original: Mapping[str, str]) -> Iterator[Skipped]:
    """Kernels of other sizes, which the table counts and the file does not contain."""
    for column, count in original.items():
        if column.startswith("(") and column.endswith(") filters") and column != "(3, 3) filters" and count != "0":
            yield Skipped(column, f"{count} counted by the source, not in its file")
