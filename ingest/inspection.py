"""What a weight file is, how much of it was read and what its layers are like, without a database."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from html import escape
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from cnnfilterdb import stats
from cnnfilterdb.core.errors import BadWeightsError, SelectionError, WeightFileError
from cnnfilterdb.core.reports import Progress, counted, printable, read_of
from cnnfilterdb.core.schema import LAYERS, papers_layers
from cnnfilterdb.core.sqltext import literal
from cnnfilterdb.ingest.measurement import measure
from cnnfilterdb.ingest.network.contents import CLASSES, contents_line, without_layers
from cnnfilterdb.ingest.network.families import recognised
from cnnfilterdb.ingest.network.folding import folded
from cnnfilterdb.ingest.network.layers import ConvLayer, Skipped, Weights
from cnnfilterdb.ingest.pipeline import weights_given

if TYPE_CHECKING:
    import pandas as pd

__all__ = ["LABELS", "Comparison", "Inspection", "contents_table", "inspect"]

#: The labels of layers, and what each means.
LABELS: Mapping[str, str] = {
    "dead": "never executed",
    "zero": "all weights are 0",
    "random": "entropy near or above that of random kernels",
    "collapsed": "sparse and repetitive",
    "sparse": f"{stats.HIGH_SPARSITY:.0%} of the kernels or more are close to zero",
    "repetitive": "low entropy: the kernels are much alike",
    "binary": "half of the kernels or more have weights of one magnitude",
    "quantised": "few different weights per output channel, or integers in the file",
    "low rank": "the kernels span fewer dimensions than they have weights",
}

#: Columns that a database compares, each with the column of its percentile.
_COMPARED = {
    "sparsity": "sparsity_percentile",
    "variance_entropy": "variance_entropy_percentile",
    "orthogonality": "orthogonality_percentile",
}

# Element types of quantised weights: int8, uint8, q4_0, ...
_INTEGER = re.compile(r"u?int\d+|i?q\d.*", re.IGNORECASE)
# Names of layers that a line of text lists.
_NAMED = 3

_SCHEMA = pa.schema(
    [
        *(field for field in LAYERS if field.name != "model_id" and not pa.types.is_list(field.type)),
        pa.field("variance_entropy_norm", pa.float64()),
        pa.field("variance_entropy_clean_norm", pa.float64()),
        pa.field("kernel_rank", pa.int32()),
        pa.field("labels", pa.string()),
    ]
)


class Database(Protocol):
    """What a comparison asks a database; every :class:`cnnfilterdb.Reader` can answer it."""

    def sql(self, query: str) -> Any:
        """Run a query."""

    def groups(self, by: str, *, kernel: str) -> Any:
        """Histograms of groups in the stored basis."""


@dataclass(frozen=True, slots=True, eq=False, repr=False)
class Comparison:
    """The layers of a file among those of a database. Made by :meth:`Inspection.compare`.

    Attributes:
        layers: One row per layer: ``layer``, ``layer_name``, ``kernel``, ``reference_layers`` (how many layers it is
            compared with), ``sparsity_percentile``, ``variance_entropy_percentile`` and ``orthogonality_percentile``
            (0 to 100: the share of them below it, ties counting half).
        models: The nearest models by ascending ``shift``, with ``domain``, ``family``, ``architecture`` and the number
            of ``filters``; no rows if the database has no distributions of these kernels.
        reference: What the layers and the models are compared with, in words.
    """

    layers: pd.DataFrame
    models: pd.DataFrame
    reference: tuple[str, ...]

    def __repr__(self) -> str:
        return "\n".join(["Comparison", *self.reference])

    def _repr_html_(self) -> str:
        """The nearest models, for notebooks."""
        return f"<p>{'<br>'.join(map(escape, self.reference))}</p>{self.models.to_html()}"


#: Entries of a file's metadata that are shown, and characters of each.
_STATED, _TEXT = 8, 80


@dataclass(frozen=True, slots=True, eq=False, repr=False)
class Inspection:
    """What was found in a weight file or in tensors. Made by :func:`inspect`.

    Attributes:
        name: The file, or the type of the object.
        format: Format of the file, as in the column ``file_format`` of a database.
        framework: Framework that wrote it; None where the file does not say.
        producer: Program that wrote it and its version; None where the file does not say.
        metadata: What the file states about itself, by its own names, such as ``license``.
        bytes: Size of the file; None for objects in memory.
        parameters: Floating-point parameters of the file; None where that is not known.
        layers: One row per convolution layer, with the columns of :meth:`cnnfilterdb.Reader.layers` except the moments,
            and: ``variance_entropy_norm`` and ``variance_entropy_clean_norm``, entropies divided by the randomness
            threshold of as many kernels (the names and, for 3x3 kernels, the numbers of torchconvquality),
            ``kernel_rank`` (:func:`cnnfilterdb.stats.kernel_rank`), and ``labels``, those of :data:`LABELS` that apply,
            separated by commas.
        skipped: What looked like a convolution and was left out, with the reason.
        contents: Tensors and numbers of the whole file by what became of them, classes of
            :mod:`cnnfilterdb.ingest.network.contents`; empty where the
            reader does not count them.
        untrained: Whether no layer differs from random initialisation; None where this cannot be determined.
        warnings: What deserves attention, one line each.
    """

    name: str
    format: str
    framework: str | None
    producer: str | None
    metadata: Mapping[str, str]
    bytes: int | None
    parameters: int | None
    layers: pd.DataFrame
    skipped: tuple[Skipped, ...]
    contents: Mapping[str, tuple[int, int]]
    untrained: bool | None
    warnings: tuple[str, ...]
    _given: Any
    _kept: tuple[int, ...]  # numbers of the layers among those of the file
    _fold_bn: bool

    @property
    def title(self) -> str:
        """Name, format, framework, producer and size in one line."""
        facts = [self.format]
        if self.framework:
            facts.append(f"framework {self.framework}")
        if self.producer:
            facts.append(f"written by {self.producer}")
        if self.bytes is not None:
            facts.append(f"{self.bytes / 1e6:,.1f} MB" if self.bytes >= 1e5 else f"{self.bytes:,} bytes")
        return printable(f"{self.name}: {', '.join(facts)}")

    @property
    def coverage(self) -> tuple[str, ...]:
        """How much was read, and what was excluded for which reason, one line each."""
        stored = self.layers[self.layers["stored"]]
        text = f"read {read_of(len(self.layers), len(self.skipped))}"
        if others := len(self.layers) - len(stored):
            what = "1x1" if others == (self.layers["kernel"] == "1x1").sum() else "1x1, empty or too large to be stored"
            text += f", {others:,} of them {what}"
        text += f"; {counted(stored['filters'].sum(), 'spatial kernel')}"
        whole = contents_line(self.contents)
        by_reason: dict[str, list[str]] = {}
        for one in self.skipped:
            by_reason.setdefault(one.reason, []).append(one.name)
        known = (text, whole) if whole else (text,)
        return (*known, *(f"excluded {len(names):,}: {_listed(names)}: {why}" for why, names in by_reason.items()))

    @property
    def statement(self) -> str:
        """What the file states about itself, in one line; empty if it states nothing."""
        parts = [
            f"{name} {text if len(text) <= _TEXT else text[:_TEXT] + '…'!r}" for name, text in self.metadata.items()
        ]
        more = f", and {len(parts) - _STATED:,} more" if len(parts) > _STATED else ""
        return printable(f"the file states {', '.join(parts[:_STATED])}{more}") if parts else ""

    def __str__(self) -> str:
        """What :func:`inspect` found except the table of layers: title, statement, warnings, coverage."""
        head = [self.title, self.statement] if self.metadata else [self.title]
        return "\n".join([*head, *(f"warning: {warning}" for warning in self.warnings), *self.coverage])

    def __repr__(self) -> str:
        return f"Inspection of {self}"

    def _repr_html_(self) -> str:
        """The same, and the table of layers, for notebooks."""
        lines = "<br>".join(map(escape, str(self).splitlines()))
        return f"<p>{lines}</p>{self.layers[list(SHOWN)].to_html(max_rows=60)}"

    def compare(
        self, db: Database, *, family: str | None = None, kernel: str | None = None, top: int = 5
    ) -> Comparison:
        """Compare the layers with those of a database.

        Args:
            db: An opened database or release.
            family: Compare with layers of this family only, such as ``ResNet``. In any case a layer is compared with
                layers of its kernel size.
            kernel: Kernel size of the distribution shift to each model, in the stored basis; by default the one with
                the most kernels here, and no models are listed if the database has no distributions of that size.
                Transposed and dead layers are left out, as in :meth:`Reader.kl_shift`.
            top: How many of the nearest models are listed.

        Raises:
            SelectionError: No layer of that family, or no layer or basis of the kernel size that was given.

        >>> import cnnfilterdb
        >>> db = cnnfilterdb.example()
        >>> found = cnnfilterdb.inspect({"conv.weight": db.layer_weights("custom/scans", 1)})
        >>> comparison = found.compare(db)
        >>> comparison.layers[["layer_name", "reference_layers", "sparsity_percentile"]]
          layer_name  reference_layers  sparsity_percentile
        0       conv                 5                 50.0
        >>> comparison.models["model_id"].tolist()
        ['custom/scans', 'custom/photos-large', 'custom/photos-small']
        """
        if top < 1:
            raise SelectionError(f"top: {top} given; expected at least 1")
        import pandas as pd

        if not self.layers["stored"].any():
            raise SelectionError(f"{self.name}: no layer with spatial kernels to compare")
        layers, reference = self._percentiles(db, family)
        try:
            models, nearest = self._nearest(db, kernel, top)
        except SelectionError as error:
            if kernel is not None:
                raise
            models, nearest = pd.DataFrame(columns=[*_NEAREST]), f"no nearest models: {error}"
        return Comparison(layers, models, (reference, nearest))

    def _percentiles(self, db: Database, family: str | None) -> tuple[pd.DataFrame, str]:
        stored = self.layers[self.layers["stored"]]
        kernels = sorted(set(stored["kernel"]))
        found = stored[["layer", "layer_name", "kernel"]].reset_index(drop=True)
        chosen = "true" if family is None else f"family = {literal(family)}"
        sizes = ", ".join(map(literal, kernels)) or "NULL"
        others = db.sql(
            f"SELECT kernel, {', '.join(_COMPARED)} FROM facts WHERE stored AND kernel IN ({sizes}) AND {chosen}"
        ).df()
        if family is not None and others.empty:
            known = [
                name for (name,) in db.sql("SELECT DISTINCT family FROM models WHERE family IS NOT NULL").fetchall()
            ]
            near = get_close_matches(family, known, 1, 0.4)
            hint = f"; did you mean {near[0]!r}?" if near else ""
            raise SelectionError(f"family: no {' or '.join(kernels) or 'stored'} layer of the family {family!r}{hint}")
        by_kernel = dict(list(others.groupby("kernel")))
        empty = others.iloc[:0]
        found["reference_layers"] = [len(by_kernel.get(kernel, empty)) for kernel in found["kernel"]]
        for column, name in _COMPARED.items():
            found[name] = [
                _percentile(value, by_kernel.get(kernel, empty)[column].to_numpy(np.float64))
                for value, kernel in zip(stored[column], stored["kernel"], strict=True)
            ]
        of = "" if family is None else f" of the family {family}"
        return found, f"percentiles among {len(others):,} layers{of} of the same kernel sizes"

    def _nearest(self, db: Database, kernel: str | None, top: int) -> tuple[pd.DataFrame, str]:
        columns = ["layer", "kernel", "kind", "dead", "stored", "filters"]
        schema = pa.schema([_SCHEMA.field(name) for name in columns])
        kept = papers_layers(pa.Table.from_pandas(self.layers[columns], schema, preserve_index=False)).to_pandas()
        if kernel is None:
            if kept.empty:
                raise SelectionError(f"{self.name}: no layer with spatial kernels to compare")
            kernel = str(kept.groupby("kernel")["filters"].sum().idxmax())
        numbers = kept.loc[kept["kernel"] == kernel, "layer"]
        if numbers.empty:
            raise SelectionError(f"{self.name}: no {kernel} layer to compare")
        groups = db.groups("model_id", kernel=kernel)
        bins = groups.counts.shape[2]
        with weights_given(self._given, "compare") as (read, _, _):
            layers = _layers(recognised(read), self._fold_bn)
            counts = sum(
                stats.Histogram.of_columns(
                    _columns(layers[self._kept[n]]), groups.basis, groups.low, groups.high, bins
                ).counts
                for n in numbers
            )
        own = np.broadcast_to(np.asarray(counts, np.float64), groups.counts.shape)
        shifts = stats.paired_shift(own, groups.counts, groups.weights, groups.low, groups.high)
        models = groups.sizes()[["filters"]].assign(shift=shifts).sort_values("shift", kind="stable").head(top)
        facts = db.sql("SELECT model_id, domain, family, architecture FROM models").df()
        models = models.reset_index().merge(facts, on="model_id", how="left", sort=False)
        return (
            models[[*_NEAREST]],
            f"nearest of {len(groups.labels):,} models by symmetric KL divergence of {kernel} kernels, "
            f"basis {groups.basis_id}",
        )


_NEAREST = ("model_id", "shift", "domain", "family", "architecture", "filters")
#: Columns that a person sees first.
SHOWN = ("layer_name", "kind", "kernel", "in_channels", "out_channels", "groups", "filters", "conv_depth_norm",
         "sparsity", "variance_entropy", "variance_entropy_norm", "orthogonality", "levels", "labels")  # fmt: skip


def inspect(
    weights: Any,
    *,
    fold_bn: bool = False,
    network: str | None = None,
    merge_adapters: bool | float = False,
    progress: Progress | None = None,
) -> Inspection:
    """Look at a weight file, or at tensors in memory, without a database.

    The numbers are those that :meth:`FilterDB.add` would store. A layer with weights that are NaN, infinite or
    unreadable, for which ``add`` refuses a model, is left out here with a warning. A file is read in a child process
    with limits on memory and time (:mod:`cnnfilterdb.ingest.isolation`).

    Args:
        weights: A weight file, a mapping of names to tensors or arrays, a ``torch.nn.Module`` or a ``keras.Model``.
        fold_bn: Fold batch normalisations into the kernels first.
        network: Which network of a file with several; see :meth:`FilterDB.add`.
        merge_adapters: Merge LoRA adapters into their layers; see :meth:`FilterDB.add`.
        progress: Called with what is being done, how much is done and how much there is.

    Raises:
        IngestError: It is not a weight file, or it cannot be read.
        SelectionError: An object of another type.

    >>> rng = np.random.default_rng(0)
    >>> weights = {"stem.weight": rng.normal(size=(16, 3, 3, 3)), "head.weight": np.ones((8, 16, 3, 3))}
    >>> found = inspect(weights)
    >>> print(found)
    dict: state_dict
    warning: random: 1 of 2 layers (entropy near or above that of random kernels): stem
    warning: binary: 1 of 2 layers (half of the kernels or more have weights of one magnitude): head
    warning: quantised: 1 of 2 layers (few different weights per output channel, or integers in the file): head
    warning: low rank: 1 of 2 layers (the kernels span fewer dimensions than they have weights): head
    read 2 of 2 convolution weights; 176 spatial kernels
    kernels in 2 of 2 tensors, 1,584 of 1,584 numbers (100.0%)
    >>> found.layers[["layer_name", "kernel", "filters", "sparsity", "labels"]]
      layer_name kernel  filters  sparsity                       labels
    0       stem    3x3       48       0.0                       random
    1       head    3x3      128       0.0  binary, quantised, low rank
    """
    path = Path(weights) if isinstance(weights, str | Path) else None
    name = type(weights).__name__ if path is None else str(path)
    rows: list[dict[str, Any]] = []
    kept: list[int] = []
    seen: list[stats.LayerStatistics] = []
    damaged: list[Skipped] = []
    with weights_given(weights, "inspect", network=network, merge_adapters=merge_adapters) as (given, _, _):
        read = recognised(given)
        for number, layer in enumerate(_layers(read, fold_bn)):
            try:
                row, _, statistics = measure(layer, name)
            except (BadWeightsError, WeightFileError) as error:
                damaged.append(Skipped(layer.name, printable(error).removeprefix(f"{name}: ")))
                continue
            rows.append({"layer": len(kept)} | row | _derived(row, statistics))
            kept.append(number)
            if statistics is not None:
                seen.append(statistics)
            if progress:
                progress("layers", number + 1, len(read.layers))
    untrained = stats.looks_untrained(seen)
    layers = pa.Table.from_pylist(rows, _SCHEMA).to_pandas()
    return Inspection(
        name=name,
        format=read.format,
        framework=read.framework,
        producer=read.producer,
        metadata=read.metadata,
        bytes=None if path is None else _size(path),
        parameters=read.parameters,
        layers=layers,
        skipped=(*read.skipped, *damaged),
        contents=_without(read, damaged),
        untrained=untrained,
        warnings=tuple(_warnings(layers, damaged, untrained)),
        _given=weights,
        _kept=tuple(kept),
        _fold_bn=fold_bn,
    )


def _without(read: Weights, damaged: Sequence[Skipped]) -> Mapping[str, tuple[int, int]]:
    names = {one.name for one in damaged}
    return without_layers(read, [layer for layer in read.layers if layer.name in names])


def contents_table(contents: Mapping[str, tuple[int, int]]) -> pd.DataFrame:
    """The contents of a file as a table: ``class``, ``tensors``, ``numbers`` and ``meaning``.

    >>> contents_table({"kernels": (2, 1584)})[["class", "tensors", "numbers"]]
         class  tensors  numbers
    0  kernels        2     1584
    """
    import pandas as pd

    rows = [(what, *contents[what], meaning) for what, meaning in CLASSES.items() if what in contents]
    return pd.DataFrame(rows, columns=["class", "tensors", "numbers", "meaning"])


def _layers(read: Weights, fold_bn: bool) -> tuple[ConvLayer, ...]:
    return tuple(map(folded, read.layers)) if fold_bn else read.layers


def _size(path: Path) -> int:
    """Bytes of a file, or of all files of a folder."""
    files = (one for one in path.rglob("*") if one.is_file()) if path.is_dir() else (path,)
    return sum(one.stat().st_size for one in files)


def _derived(row: Mapping[str, Any], statistics: stats.LayerStatistics | None) -> dict[str, Any]:
    """What is computed from the statistics of a layer for a person to read."""
    if statistics is None:
        return {"labels": ", ".join(_labels(row, None, None))}
    size = row["kernel_h"] * row["kernel_w"]
    clean = row["filters"] if statistics.nonsparse is None else statistics.nonsparse.count
    rank = stats.kernel_rank(statistics.raw)
    return {
        "variance_entropy_norm": _share(row["variance_entropy"], row["randomness_threshold"]),
        "variance_entropy_clean_norm": _share(
            row["variance_entropy_clean"], stats.randomness_threshold(clean, size) if clean else None
        ),
        "kernel_rank": rank,
        "labels": ", ".join(_labels(row, statistics, rank)),
    }


def _share(entropy: float | None, threshold: float | None) -> float | None:
    return entropy / threshold if entropy is not None and threshold is not None and threshold > 0 else None


def _labels(row: Mapping[str, Any], statistics: stats.LayerStatistics | None, rank: int | None) -> list[str]:
    """Those of :data:`LABELS` that apply to a layer, in that order."""
    found = {"dead"} if row["dead"] else set()
    if _INTEGER.fullmatch(row["dtype"]):
        found.add("quantised")
    if statistics is not None:
        size = row["kernel_h"] * row["kernel_w"]
        if statistics.norm_l2 == 0:
            return [label for label in LABELS if label in found | {"zero"}]
        entropy, threshold = (
            np.nan if value is None else value
            for value in (statistics.variance_entropy, statistics.randomness_threshold)
        )
        found.add(stats.degeneration(entropy, threshold, statistics.sparsity, weights=size)[0])
        if 2 * statistics.binary_filters >= row["filters"]:
            found.add("binary")
        if stats.is_quantised(statistics.levels, row["filters"] * size / (row["out_channels"] or 1)):
            found.add("quantised")
        if rank is not None and rank < size:
            found.add("low rank")
    return [label for label in LABELS if label in found]


def _warnings(layers: pd.DataFrame, damaged: Sequence[Skipped], untrained: bool | None) -> Iterable[str]:
    for one in damaged:
        yield f"left out: {one.name}: {one.reason}"
    if layers.empty:
        yield "no two-dimensional convolution among its weights"
    if untrained:
        yield "no layer differs from random initialisation: the weights look untrained"
    labels = [text.split(", ") for text in layers["labels"]]
    counts = Counter(label for some in labels for label in some)
    for label, meaning in LABELS.items():
        if counts[label]:
            names = [name for name, some in zip(layers["layer_name"], labels, strict=True) if label in some]
            yield f"{label}: {counts[label]:,} of {len(layers):,} layers ({meaning}): {_listed(names)}"


def _listed(names: Sequence[str]) -> str:
    rest = len(names) - _NAMED
    return ", ".join(map(printable, names[:_NAMED])) + (f" and {rest:,} more" if rest > 0 else "")


def _percentile(value: float, others: npt.NDArray[np.float64]) -> float:
    """Share of numbers below a value, in percent, equal ones counting half; NaN where one is not defined."""
    others = others[~np.isnan(others)]
    if value != value or not len(others):
        return float("nan")
    return 100 * float(np.mean(others < value) + np.mean(others == value) / 2)


def _columns(layer: ConvLayer) -> list[npt.NDArray[np.float32]]:
    """The kernels of a layer as one array per weight."""
    filters = layer.read().reshape(-1, layer.shape[2] * layer.shape[3])
    return list(np.ascontiguousarray(filters.T))
