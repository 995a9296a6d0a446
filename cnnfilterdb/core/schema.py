"""The tables of a database, as Arrow schemas, and the records that fill them.

This module has no I/O. Every column is described where it is declared; the description travels in the Parquet files as
field metadata, and the documentation is generated from it.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, TypedDict

import pyarrow as pa

from cnnfilterdb.core.errors import DatabaseError, SelectionError

__all__ = [
    "ANNOTATED",
    "BASES",
    "FINGERPRINTS",
    "FORMAT_VERSION",
    "HISTOGRAMS",
    "LAYERS",
    "MAX_INDEXED_WEIGHTS",
    "MAX_KERNEL_WEIGHTS",
    "MODELS",
    "PAPERS_LAYER",
    "TOTALS",
    "UNITS",
    "AnnotatedFacts",
    "GivenFacts",
    "ModelFacts",
    "check_fact_types",
    "check_format",
    "describe",
    "filter_schema",
    "indexable",
    "is_model_id",
    "is_sha256",
    "kernel_name",
    "kernel_order",
    "kernel_shape",
    "marker_sealed",
    "marker_text",
    "papers_layers",
    "release_schema",
    "storable",
    "weight_columns",
]

#: Version of the folder layout. A reader refuses any other: newer folders need a newer package, older ones an import.
FORMAT_VERSION = 3

#: Kernels with more weights than this (32 x 32) are counted, not stored: they are patch embeddings, not filters.
MAX_KERNEL_WEIGHTS = 1024

#: Kernel sizes with more weights (over 11 x 11) are stored but not indexed: too few exist for a distribution of so many
#: coefficients, and a histogram row would contain tens of thousands of numbers.
MAX_INDEXED_WEIGHTS = 121


def marker_text(known: Mapping[str, Any]) -> str:
    """The text of ``cnnfilterdb.json``, of a database or a release, with a SHA-256 of its contents.

    >>> marker_sealed(marker_text({"format_version": 3})), marker_sealed('{"format_version": 3}')
    (True, False)
    """
    rest = {key: value for key, value in known.items() if key != "sha256"}
    digest = hashlib.sha256(json.dumps(rest, sort_keys=True).encode()).hexdigest()
    return json.dumps({**rest, "sha256": digest}, indent=2) + "\n"


def marker_sealed(text: str) -> bool:
    """Whether a text is what :func:`marker_text` returned.

    Raises:
        ValueError: It is not JSON.
    """
    found = json.loads(text)
    return isinstance(found, dict) and marker_text(found) == text


def check_format(found: int, where: str, remedy: str) -> None:
    """Refuse a folder layout that this version does not read.

    Args:
        found: The version of the layout.
        where: The folder or release, for the message.
        remedy: What to do about an older one.

    Raises:
        DatabaseError: It is not :data:`FORMAT_VERSION`.
    """
    if found != FORMAT_VERSION:
        raise DatabaseError(
            f"{where}: written in format {found}, this version reads format {FORMAT_VERSION}; "
            + ("upgrade cnnfilterdb" if found > FORMAT_VERSION else remedy)
        )


_KERNEL = re.compile(r"([1-9][0-9]{0,4})x([1-9][0-9]{0,4})", re.ASCII)
_SHA256 = re.compile(r"[0-9a-f]{64}")
_MODEL_ID = 1000  # characters
# Control characters, line separators, characters that reverse the direction of text, and halves of surrogate pairs
_UNPRINTED = re.compile("[\x00-\x1f\x7f-\x9f\u2028-\u202e\u2066-\u2069\ud800-\udfff]")


def is_model_id(value: object) -> bool:
    """Whether a value has the form of the key of a model: source/name, without control characters.

    >>> is_model_id("pypi/deepcr/mask"), is_model_id("mask"), is_model_id("custom/\\x1b[2J"), is_model_id(None)
    (True, False, False, False)
    """
    return (
        isinstance(value, str)
        and 0 < value.find("/") < len(value) - 1
        and len(value) <= _MODEL_ID
        and _UNPRINTED.search(value) is None
    )


def is_sha256(value: object) -> bool:
    """Whether a value has the form of a SHA-256.

    >>> is_sha256("0" * 64), is_sha256("0" * 40), is_sha256(None)
    (True, False, False)
    """
    return isinstance(value, str) and _SHA256.fullmatch(value) is not None


def kernel_name(height: int, width: int) -> str:
    """Format a kernel size as in the database.

    >>> kernel_name(1, 7)
    '1x7'
    """
    return f"{height}x{width}"


def kernel_shape(kernel: str) -> tuple[int, int]:
    """Parse a kernel size as written in the database.

    Raises:
        SelectionError: Not of the form ``3x3``.

    >>> kernel_shape("1x7")
    (1, 7)
    """
    found = _KERNEL.fullmatch(kernel)
    if not found:
        raise SelectionError(f"not a kernel size: {kernel!r}; expected height x width, such as 3x3")
    return int(found[1]), int(found[2])


def kernel_order(kernel: str) -> tuple[int, str]:
    """Key to sort kernel sizes by: number of weights, then name.

    >>> sorted(["7x7", "3x3", "1x9"], key=kernel_order)
    ['1x9', '3x3', '7x7']
    """
    height, width = kernel_shape(kernel)
    return height * width, kernel


def storable(kernel: str) -> bool:
    """Whether filters of a size are stored; any text may be asked about, such as the name of a folder.

    >>> storable("32x32"), storable("1x1"), storable("1500x1500"), storable("x'; --")
    (True, False, False, False)
    """
    found = _KERNEL.fullmatch(kernel)
    return found is not None and 1 < int(found[1]) * int(found[2]) <= MAX_KERNEL_WEIGHTS


def indexable(kernel: str) -> bool:
    """Whether a kernel size gets a basis; see :data:`MAX_INDEXED_WEIGHTS`.

    >>> indexable("11x11"), indexable("1x128")
    (True, False)
    """
    height, width = kernel_shape(kernel)
    return height * width <= MAX_INDEXED_WEIGHTS


def weight_columns(kernel: str) -> list[str]:
    """Names of the weight columns of a kernel size, row-major.

    Raises:
        SelectionError: Not a kernel size, or one with more weights than :data:`MAX_KERNEL_WEIGHTS`.

    >>> weight_columns("1x3")
    ['w0', 'w1', 'w2']
    """
    height, width = kernel_shape(kernel)
    if height * width > MAX_KERNEL_WEIGHTS:
        raise SelectionError(f"{kernel}: filters of at most {MAX_KERNEL_WEIGHTS:,} weights are stored")
    return [f"w{i}" for i in range(height * width)]


def _field(name: str, kind: pa.DataType, description: str, nullable: bool = True) -> pa.Field:
    return pa.field(name, kind, nullable=nullable, metadata={"description": description})


MODELS = pa.schema(
    [
        _field("model_id", pa.string(), "source/name, the key of a model", nullable=False),
        _field("source", pa.string(), "where it came from: pypi, files, custom, timm, ...", nullable=False),
        _field("name", pa.string(), "its name in that source", nullable=False),
        _field("architecture", pa.string(), "architecture, such as ResNet-18"),
        _field("family", pa.string(), "family of architectures, such as ResNet"),
        _field("task", pa.string(), "what it was trained to do; a term of the catalog"),
        _field("domain", pa.string(), "image domain of its training data (the papers' visual category)"),
        _field("training_dataset", pa.string(), "data set of the last training"),
        _field("pretraining_dataset", pa.string(), "data set of the training before that"),
        _field("framework", pa.string(), "framework that wrote the file"),
        _field("file_format", pa.string(), "format of the weight file"),
        _field("weights_sha256", pa.string(), "SHA-256 of the weight file"),
        _field("revision", pa.string(), "version or commit of the source"),
        _field("url", pa.string(), "where to get it: a URL or a package URL (purl)"),
        _field("license", pa.string(), "licence of the weights, an SPDX identifier where there is one"),
        _field("paper", pa.string(), "paper to cite: a DOI, an arXiv number or a URL"),
        _field("parameters", pa.int64(), "floating-point parameters of the file"),
        _field("conv_layers", pa.int32(), "two-dimensional convolution layers, 1x1 included", nullable=False),
        _field("stored_filters", pa.int64(), "stored filters, of all kernel sizes", nullable=False),
        _field("untrained", pa.bool_(), "true when the kernels look like random initialisation"),
        _field("metrics", pa.map_(pa.string(), pa.float64()), "published metrics by name, such as top1"),
        _field(
            "original",
            pa.map_(pa.string(), pa.string()),
            "what the source states, by its own names and before corrections, where it states more than this table; "
            "`file: NAME` is what the file states, `contents` what it holds, as JSON: [tensors, numbers] by class",
        ),
        _field("skipped", pa.list_(pa.string()), "what looked like a convolution and was left out, with the reason"),
        _field(
            "files",
            pa.list_(
                pa.struct([("path", pa.string()), ("rows", pa.int64()), ("bytes", pa.int64()), ("sha256", pa.string())])
            ),
            "the Parquet files that hold its layers and filters, relative to the database",
        ),
        _field("cnnfilterdb_version", pa.string(), "version of the package that wrote it"),
        _field("ingested_at", pa.timestamp("us", tz="UTC"), "when it was committed", nullable=False),
    ]
)

LAYERS = pa.schema(
    [
        _field("model_id", pa.string(), "key of the model", nullable=False),
        _field("layer", pa.int32(), "order of the layer in its model, from 0", nullable=False),
        _field("layer_name", pa.string(), "name of the layer in its file", nullable=False),
        _field("kind", pa.string(), "conv, depthwise, grouped or transposed; NULL where it cannot be known"),
        _field("kernel", pa.string(), "kernel size as text, such as 3x3", nullable=False),
        _field("kernel_h", pa.int32(), "kernel height", nullable=False),
        _field("kernel_w", pa.int32(), "kernel width", nullable=False),
        _field("in_channels", pa.int32(), "input channels over all groups"),
        _field("out_channels", pa.int32(), "output channels; NULL where the source gives the kernels in a row only"),
        _field("groups", pa.int32(), "groups of channels"),
        _field("stride_h", pa.int32(), "vertical stride"),
        _field("stride_w", pa.int32(), "horizontal stride"),
        _field("dilation_h", pa.int32(), "vertical dilation"),
        _field("dilation_w", pa.int32(), "horizontal dilation"),
        _field("conv_depth", pa.int32(), "rank of its depth among the depths that hold a convolution, from 0"),
        _field("conv_depth_norm", pa.float64(), "conv_depth scaled to 0..1"),
        _field(
            "depth_source",
            pa.string(),
            "graph (longest path), order (rank in execution order) or family (known architecture)",
        ),
        _field("dead", pa.bool_(), "true when the layer is known to be never executed"),
        _field("bn_folded", pa.bool_(), "true when a batch normalisation is folded into the weight"),
        _field("weight_norm", pa.string(), "how the weight was composed, or is normalised before use"),
        _field("dtype", pa.string(), "element type in the weight file", nullable=False),
        _field("stored", pa.bool_(), "true when its filters are stored (not for 1x1)", nullable=False),
        _field("filters", pa.int64(), "kernels of the layer: out_channels x in_channels / groups", nullable=False),
        _field("tensor_sha256", pa.string(), "SHA-256 of the float32 weight (out, in / groups, kh, kw), little-endian"),
        _field("sparsity", pa.float64(), "share of kernels with all weights below 1 % of the layer's largest"),
        _field("variance_entropy", pa.float64(), "entropy, base 10, of the explained variance of the raw kernels"),
        _field("randomness_threshold", pa.float64(), "entropy expected of as many random kernels; NULL for rare sizes"),
        _field("variance_entropy_clean", pa.float64(), "variance entropy without the sparse kernels"),
        _field("variance_entropy_scaled", pa.float64(), "that of the scaled kernels, as arXiv 2204.02481 takes it"),
        _field("orthogonality", pa.float64(), "1 = all output filters orthogonal, 0 = all parallel"),
        _field("norm_l1", pa.float64(), "sum of absolute weights"),
        _field("norm_l2", pa.float64(), "root of the sum of squared weights"),
        _field("isotropy", pa.float64(), "p-value of independent random weights; NULL with too few kernels to decide"),
        _field("binary_filters", pa.int64(), "kernels whose weights are of one magnitude (binary_residual <= 0.01)"),
        _field("levels", pa.int32(), "largest number of different weights in an output channel; NULL above 256"),
        _field("scaled_norm_max", pa.float64(), "largest norm of a scaled kernel"),
        _field("raw_mean", pa.list_(pa.float64()), "mean of the raw kernels, one value per weight"),
        _field("raw_variance", pa.list_(pa.float64()), "variance of the raw kernels (n in the denominator), likewise"),
        _field("scaled_mean", pa.list_(pa.float64()), "mean of the scaled kernels, one value per weight"),
        _field(
            "scaled_scatter",
            pa.list_(pa.float64()),
            "centred second moment of the scaled kernels, sum over kernels of (x - mean)(x - mean)', "
            "upper triangle row by row",
        ),
        _field("nonsparse_filters", pa.int64(), "kernels that are not sparse; NULL when none is sparse"),
        _field("nonsparse_mean", pa.list_(pa.float64()), "scaled_mean without the sparse kernels; NULL when none is"),
        _field("nonsparse_scatter", pa.list_(pa.float64()), "scaled_scatter without the sparse kernels; NULL likewise"),
    ]
)

BASES = pa.schema(
    [
        _field("basis_id", pa.string(), "key of the basis", nullable=False),
        _field("kernel", pa.string(), "kernel size", nullable=False),
        _field("created_at", pa.timestamp("us", tz="UTC"), "when it was fitted, or put in use again"),
        _field("sequence", pa.int64(), "number of the fit; the highest of a kernel size is in use", nullable=False),
        _field("variant", pa.string(), "which filters it was fitted on: all, or nonsparse"),
        _field("models", pa.list_(pa.string()), "models that it was fitted on"),
        _field("layers", pa.int64(), "number of layers that it was fitted on"),
        _field("filters", pa.int64(), "number of filters that it was fitted on"),
        _field("mean", pa.list_(pa.float64()), "mean of the scaled filters"),
        _field("components", pa.list_(pa.list_(pa.float64())), "one row per component, by falling variance"),
        _field("explained_variance", pa.list_(pa.float64()), "variance along each component"),
        _field("explained_variance_ratio", pa.list_(pa.float64()), "its share of the total"),
        _field("bins", pa.int32(), "bins of each histogram"),
        _field("low", pa.float64(), "smallest coefficient of the filters that it was fitted on"),
        _field("high", pa.float64(), "largest coefficient"),
    ]
)

HISTOGRAMS = pa.schema(
    [
        _field("basis_id", pa.string(), "key of the basis", nullable=False),
        _field("model_id", pa.string(), "key of the model", nullable=False),
        _field("layer", pa.int32(), "layer of the model", nullable=False),
        _field("tensor_sha256", pa.string(), "hash of the weight that it was computed from", nullable=False),
        _field("recipe", pa.string(), "recipe that sets the range", nullable=False),
        _field("low", pa.float64(), "left edge of the first bin", nullable=False),
        _field("high", pa.float64(), "right edge of the last bin", nullable=False),
        _field("filters", pa.int64(), "filters counted", nullable=False),
        _field("counts", pa.list_(pa.int64()), "counts, component by component, bins values each", nullable=False),
        _field("below", pa.list_(pa.int64()), "per component, coefficients left of the range", nullable=False),
        _field("above", pa.list_(pa.int64()), "per component, coefficients right of the range", nullable=False),
    ]
)

TOTALS = pa.schema(
    [
        *map(HISTOGRAMS.field, ("basis_id", "model_id", "recipe", "low", "high", "filters", "counts")),
        _field("papers_layer", pa.bool_(), "whether of its layers that the papers would have read", nullable=False),
        _field("layers", pa.int64(), "layers counted", nullable=False),
        _field("outside", pa.int64(), "coefficients outside the range", nullable=False),
    ]
)

FINGERPRINTS = pa.schema(
    [
        _field("model_id", pa.string(), "key of the model", nullable=False),
        _field("layer", pa.int32(), "layer of the model", nullable=False),
        _field("tensor_sha256", pa.string(), "hash of the weight that it was computed from", nullable=False),
        _field(
            "alpha", pa.float64(), "exponent of the power law of the tail of the eigenvalues; NULL where there is none"
        ),
        _field("alpha_ks", pa.float64(), "Kolmogorov-Smirnov distance between the tail and its power law"),
        _field("lambda_max", pa.float64(), "largest eigenvalue: half the square of the spectral norm; NULL for zeros"),
        _field("stable_rank", pa.float64(), "sum of the eigenvalues divided by the largest; NULL for zeros"),
        _field("kurtosis", pa.float64(), "excess kurtosis of the weights; NULL where they do not vary"),
        _field("peak_ratio", pa.float64(), "largest absolute weight divided by the 99th percentile; NULL for zeros"),
        _field("centred_norm", pa.float64(), "norm of the weight less its mean kernel", nullable=False),
        _field(
            "sketch",
            pa.list_(pa.int16()),
            "count sketch of the weight less its mean kernel, up to a factor",
            nullable=False,
        ),
    ]
)

#: Units of the columns, by name: a column has the same one in every table. Scaled weights are divided by the largest
#: absolute weight of their kernel.
UNITS = {
    **dict.fromkeys(["parameters", "conv_layers", "stored_filters", "filters", "layers", "bins", "levels"], "count"),
    **dict.fromkeys(["in_channels", "out_channels", "groups", "binary_filters", "nonsparse_filters"], "count"),
    **dict.fromkeys(["counts", "below", "above"], "count"),
    **dict.fromkeys(["kernel_h", "kernel_w", "stride_h", "stride_w", "dilation_h", "dilation_w"], "pixels"),
    **dict.fromkeys(["layer", "out_channel", "in_channel", "sequence"], "number"),
    **dict.fromkeys(["created_at", "ingested_at"], "UTC"),
    **dict.fromkeys(["sparsity", "explained_variance_ratio"], "share, 0 to 1"),
    **dict.fromkeys(["variance_entropy", "variance_entropy_clean", "variance_entropy_scaled"], "base 10"),
    **dict.fromkeys(["norm_l1", "norm_l2", "raw_mean", "w0"], "unit of the weights"),
    **dict.fromkeys(["scaled_mean", "nonsparse_mean", "mean", "low", "high"], "scaled weights"),
    "scaled_norm_max": "scaled weights",
    **dict.fromkeys(["scaled_scatter", "nonsparse_scatter", "explained_variance"], "scaled weights, squared"),
    **dict.fromkeys(["alpha", "stable_rank", "kurtosis", "peak_ratio"], "ratio"),
    "alpha_ks": "0 to 1",
    "centred_norm": "unit of the weights",
    "components": "unit vectors",
    "conv_depth": "rank",
    "conv_depth_norm": "0 to 1",
    "isotropy": "probability",
    "lambda_max": "unit of the weights, squared",
    "metrics": "as published",
    "orthogonality": "0 to 1",
    "randomness_threshold": "base 10",
    "raw_variance": "unit of the weights, squared",
    "sketch": "up to a factor",
}


class AnnotatedFacts(TypedDict, total=False):
    """The facts that can be annotated: all of :class:`ModelFacts` that are text and not about the file.

    They are columns of the models table, where they are described; None says that a fact is unknown.
    """

    architecture: str | None
    family: str | None
    task: str | None
    domain: str | None
    training_dataset: str | None
    pretraining_dataset: str | None
    framework: str | None
    revision: str | None
    url: str | None
    license: str | None
    paper: str | None


class GivenFacts(AnnotatedFacts, total=False):
    """The facts that can be stated about a model when it is added: those of :class:`ModelFacts`."""

    file_format: str | None
    weights_sha256: str | None
    metrics: Mapping[str, float] | None
    original: Mapping[str, str] | None


#: Names of the facts that can be annotated.
ANNOTATED = tuple(AnnotatedFacts.__annotations__)


#: Values of columns of the layers table that the papers never saw. Their extraction reads the Conv nodes of exported
#: graphs: a transposed convolution is another kind of node, and a layer that is never executed is not in the graph.
_NOT_IN_PAPERS = {"kind": "transposed", "dead": True}

#: The papers' layer rule as a SQL condition over columns of the layers table; the column ``papers_layer`` of ``facts``.
PAPERS_LAYER = " AND ".join(f"{column} IS DISTINCT FROM {value!r}" for column, value in _NOT_IN_PAPERS.items())


def papers_layers(layers: pa.Table) -> pa.Table:
    """Those stored layers of a layers table that the papers would have seen: neither transposed nor dead.

    The same rule as :data:`PAPERS_LAYER`, applied to rows in memory.

    >>> rows = {"kind": ["conv", "transposed", None], "dead": [False, None, True], "stored": [True] * 3}
    >>> papers_layers(pa.table(rows))["kind"].to_pylist()
    ['conv']
    """
    import pyarrow.compute as pc

    kept = layers["stored"]
    for column, value in _NOT_IN_PAPERS.items():
        kept = pc.and_not(kept, pc.fill_null(pc.equal(layers[column], value), False))
    return layers.filter(kept)


def filter_schema(kernel: str) -> pa.Schema:
    """Schema of the filters of one kernel size: one row per kernel.

    The kernel size and the source are in the path of the file only.

    >>> filter_schema("1x2").names
    ['model_id', 'layer', 'out_channel', 'in_channel', 'w0', 'w1']
    """
    return pa.schema(
        [
            _field("model_id", pa.string(), "key of the model", nullable=False),
            _field("layer", pa.int32(), "layer of the model", nullable=False),
            _field("out_channel", pa.int32(), "output channel, slowest", nullable=False),
            _field(
                "in_channel",
                pa.int32(),
                "input channel within its group; number of the kernel in its layer where out_channels is NULL",
                nullable=False,
            ),
            *(_field(column, pa.float32(), "weight, row-major", nullable=False) for column in weight_columns(kernel)),
        ]
    )


def release_schema(table: str) -> pa.Schema:
    """Schema of a table as it is published: models, layers, filters_3x3 and so on, histograms, bases, fingerprints.

    A release has its rows in shards, so that the list of files of a model means nothing there; and maps, which the
    `datasets` library has no type for, are lists of key and value.

    >>> release_schema("models").field("metrics").type
    ListType(list<item: struct<key: string, value: double>>)
    """
    if table.startswith("filters_"):
        return filter_schema(table.removeprefix("filters_"))
    schema = {
        "models": MODELS,
        "layers": LAYERS,
        "histograms": HISTOGRAMS,
        "bases": BASES,
        "fingerprints": FINGERPRINTS,
    }[table]
    return pa.schema([_without_map(field) for field in schema if (table, field.name) != ("models", "files")])


def _without_map(field: pa.Field) -> pa.Field:
    if not pa.types.is_map(field.type):
        return field
    entry = pa.struct([("key", field.type.key_type), ("value", field.type.item_type)])
    return field.with_type(pa.list_(entry))


def describe(schema: pa.Schema) -> dict[str, str]:
    """Column descriptions of a schema by column name.

    >>> describe(BASES)["kernel"]
    'kernel size'
    """
    return {field.name: (field.metadata or {}).get(b"description", b"").decode() for field in schema}


@dataclass(frozen=True, slots=True)
class ModelFacts:
    """What is known about a model besides its weights. What is unknown is None, never a guess.

    The fields are columns of the models table, where they are described.
    """

    architecture: str | None = None
    family: str | None = None
    task: str | None = None
    domain: str | None = None
    training_dataset: str | None = None
    pretraining_dataset: str | None = None
    framework: str | None = None
    file_format: str | None = None
    weights_sha256: str | None = None
    revision: str | None = None
    url: str | None = None
    license: str | None = None
    paper: str | None = None
    metrics: dict[str, float] | None = None
    original: dict[str, str] | None = None

    def updated(self, **facts: Any) -> ModelFacts:
        """A copy with some facts replaced.

        Raises:
            TypeError: Not the name of a fact.

        >>> ModelFacts(task="Classification").updated(domain="natural").domain
        'natural'
        """
        return dataclasses.replace(self, **facts)


def check_fact_types(facts: Mapping[str, Any]) -> None:
    """Refuse facts of another type than the models table has.

    Raises:
        SelectionError: A fact that is not text, metrics that are not numbers by name, or originals that are not text.
    """
    kinds: dict[str, tuple[Any, str]] = {"metrics": (int | float, "numbers"), "original": (str, "texts")}
    for name, value in facts.items():
        kind, what = kinds.get(name, (None, ""))
        if value is None or (kind is None and isinstance(value, str)):
            continue
        if kind is None:
            raise SelectionError(f"{name}: {value!r} given; expected text, or None where it is unknown")
        if not isinstance(value, Mapping) or not all(
            isinstance(key, str) and isinstance(one, kind) for key, one in value.items()
        ):
            raise SelectionError(f"{name}: {value!r} given; expected {what} by name")
