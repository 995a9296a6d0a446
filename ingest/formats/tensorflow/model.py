"""TensorFlow models: SavedModel, checkpoint, frozen graph.

TensorFlow is not needed, and no graph is executed. Any file of a model may be given:

    saved_model.pb, variables/variables.index, variables/variables.data-00000-of-00001    SavedModel
    model.ckpt.index, model.ckpt.data-00000-of-00001 [, model.ckpt.meta]                  checkpoint [with its graph]
    model.ckpt                                                                 checkpoint of the format's first version
    frozen.pb                                                                             graph of constants

A graph shows which variables are kernels, in which layout and at what depth; a checkpoint without one has names and
shapes only.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import numpy.typing as npt

from cnnfilterdb.core.errors import WeightFileError
from cnnfilterdb.ingest.formats import register
from cnnfilterdb.ingest.formats.companions import companion
from cnnfilterdb.ingest.formats.damage import undamaged
from cnnfilterdb.ingest.formats.mapping import mapped
from cnnfilterdb.ingest.formats.protobuf import fields, message
from cnnfilterdb.ingest.formats.tensorflow.bundle import MAGIC, Bundle, first_version, prefix_of
from cnnfilterdb.ingest.formats.tensorflow.dataflow import Dataflow, dataflow_layers
from cnnfilterdb.ingest.formats.tensorflow.graphdef import definition, meta_graphs
from cnnfilterdb.ingest.network.contents import contents_of
from cnnfilterdb.ingest.network.judge import natural
from cnnfilterdb.ingest.network.layers import ConvLayer, Skipped, Tensor, Weights
from cnnfilterdb.ingest.network.variables import is_training_state, layers_from_variables

__all__ = ["TensorflowFormat"]

_WHAT = "TensorFlow file"
_SAVED_MODEL = "saved_model.pb"
_DATA = re.compile(r".\.data-\d{5}-of-\d{5}$")
# What a frozen graph adds to the name of a variable
_READ = re.compile(r"(?:/(?:read|resource|ReadVariableOp|Identity))+$")
# Lists of the layers of a model of Keras 2 and of Keras 3
_OBJECTS = re.compile(r"(?:^|/)(?:layer_with_weights-\d|_operations/\d)")
_AVERAGE = "/ExponentialMovingAverage"
# The first node of a GraphDef: a message, in it a name and the name of an operation
_GRAPH = re.compile(
    rb"\x0a[\x80-\xff]{0,9}[\x00-\x7f]\x0a(?:[\x01-\x7f]|[\x80-\xff][\x01-\x3f])[\w./>][^\x00-\x1f]{0,500}"
    rb"\x12[\x01-\x40][A-Za-z_][A-Za-z0-9_>]*(?=[\x1a\x22\x2a])",
    re.DOTALL,
)


@register
class TensorflowFormat:
    """``.pb``, ``.index``, ``.meta``, ``.data-00000-of-00001`` and old ``.ckpt`` files."""

    name = "tensorflow"
    suffixes = (".pb", ".index", ".ckpt")

    def matches(self, path: Path, head: bytes) -> bool:
        """Whether the file is a part of a SavedModel or checkpoint, or a graph."""
        return (
            _is_saved_model(path, head)
            or (path.suffix == ".meta" and head.startswith(b"\x0a"))
            or (_DATA.search(path.name) is not None and _index_of(path).is_file())
            or _ends_as_index(path)
            or _GRAPH.match(head) is not None
        )

    def read(self, path: Path) -> Weights:
        """Read the graph and the places of the variables; the variables when the layers are read.

        Raises:
            WeightFileError: A file of the model is damaged or missing.
        """
        with undamaged(str(path), _WHAT):
            folder = _saved_model_of(path)
            if folder is not None:
                return _saved_model(folder)
            if path.suffix == ".meta" or _DATA.search(path.name) or _ends_as_index(path):
                return _checkpoint(path)
            return _frozen(path)


def _is_saved_model(path: Path, head: bytes) -> bool:
    # schema_version = 1, then the graphs. ONNX may begin so too, but not with a text that is as long as the file
    if not head.startswith(b"\x08\x01\x12"):
        return False
    size = shift = 0
    for position, byte in enumerate(head[3:13], 4):
        size |= (byte & 127) << shift
        shift += 7
        if byte < 128:
            return path.name == _SAVED_MODEL or position + size == path.stat().st_size
    return False


def _index_of(path: Path) -> Path:
    prefix = prefix_of(path)
    return prefix.with_name(f"{prefix.name}.index")


def _ends_as_index(path: Path) -> bool:
    if not path.is_file() or path.stat().st_size < 48:
        return False
    with path.open("rb") as file:
        file.seek(-8, 2)
        return file.read(8) == MAGIC


def _saved_model_of(path: Path) -> Path | None:
    """The folder of the SavedModel that a path is a part of."""
    if path.name == _SAVED_MODEL:
        return path.parent
    if path.parent.name == "variables" and prefix_of(path).name == "variables":
        folder = path.parent.parent
        return folder if (folder / _SAVED_MODEL).is_file() else None
    return None


# ---------------------------------------------------------------------------------------------------------------------
# The three kinds


def _frozen(path: Path) -> Weights:
    flow = Dataflow(definition(mapped(path)))

    def weight(number: int) -> Tensor | Skipped:
        node = flow.node(number)
        tensor = node.constant() if flow.op(number) == "Const" else None
        return tensor or Skipped(
            node.name, "a variable, whose value is not in the graph; freeze the graph, or pass a checkpoint"
        )

    found, skipped = dataflow_layers(flow, _guarded(path, weight))
    return _of_constants("tf-graph", flow, found, skipped)


def _of_constants(format: str, flow: Dataflow, found: Sequence[ConvLayer], skipped: Sequence[Skipped]) -> Weights:
    """The weights of a graph whose tensors are constants of it."""
    constants = {tensor.name: tensor for tensor in flow.constants()}
    count = _parameters(tensor for tensor in constants.values() if tensor.shape)
    contents = contents_of(constants.values(), found, skipped)
    return Weights(format, "tensorflow", tuple(found), count, tuple(skipped), contents=contents)


def _of_bundle(
    bundle: Bundle, found: Sequence[ConvLayer], skipped: Sequence[Skipped], names: Mapping[str, str]
) -> dict[str, tuple[int, int]]:
    """What became of the variables of a checkpoint.

    Args:
        bundle: The checkpoint.
        found: The layers.
        skipped: What was left out.
        names: What the graph calls variables, by key.
    """
    every = [
        replace(tensor, name=names.get(key, key.removesuffix("/.ATTRIBUTES/VARIABLE_VALUE")))
        for key, tensor in bundle.tensors.items()
    ]
    kept = [one for one in every if not any(map(is_training_state, (one.name, *one.parts)))]
    whole = len(every), sum(math.prod(one.shape) for one in every)
    return contents_of(kept, found, skipped, whole=whole)


def _saved_model(folder: Path) -> Weights:
    path = folder / _SAVED_MODEL
    graphs = meta_graphs(mapped(path))
    if not graphs:
        raise WeightFileError(f"{path}: contains no graph; expected one written by tf.saved_model.save")
    prefix = folder / "variables" / "variables"
    index = prefix.with_name("variables.index")
    bundle = None
    if index.is_file():
        companion(path, index.relative_to(folder).as_posix())  # no link out of the folder
        bundle = Bundle(prefix)
    # One graph for each set of tags; the one to serve comes first where there are several
    graph = min(graphs, key=lambda parts: b"serve" not in bytes(message(parts[1][-1])) if 1 in parts else True)
    return _with_graph(path, message(graph[2][-1]), bundle, "tf-saved-model")


def _checkpoint(path: Path) -> Weights:
    if path.suffix not in (".index", ".meta") and not _DATA.search(path.name):
        old = first_version(path)
        if old is None:
            raise WeightFileError(f"{path}: the index of a renamed checkpoint; expected a name that ends in .index")
        return _first_version(path, *old)
    prefix = prefix_of(path)
    bundle = Bundle(prefix)
    meta = prefix.with_name(f"{prefix.name}.meta")
    if meta.is_file():
        companion(path, meta.name)
        return _with_graph(meta, message(fields(mapped(meta), (2,))[2][-1]), bundle, "tf-checkpoint")
    found, skipped, count = _by_name(bundle, set(), {})
    skipped = (*bundle.skipped, *skipped)
    contents = _of_bundle(bundle, found, skipped, {key: name for name, key in bundle.names.items()})
    return Weights("tf-checkpoint", "tensorflow", found, count, skipped, contents=contents)


def _first_version(path: Path, tensors: Mapping[str, Tensor], incomplete: list[Skipped]) -> Weights:
    read = _guarded_reads(path)
    kept = [
        read(replace(tensors.get(f"{name}{_AVERAGE}", tensor), name=name))
        for name, tensor in tensors.items()
        if not is_training_state(name) and not name.endswith(_AVERAGE)
    ]
    kept.sort(key=lambda tensor: natural(tensor.name))
    found, skipped, count = layers_from_variables(kept, ordered=False)
    left_out = (*incomplete, *skipped)
    whole = len(tensors), sum(math.prod(tensor.shape) for tensor in tensors.values())
    contents = contents_of(kept, found, left_out, whole=whole)
    return Weights("tf-checkpoint", "tensorflow", found, count, left_out, contents=contents)


def _with_graph(path: Path, graph: memoryview, bundle: Bundle | None, format: str) -> Weights:
    """Layers of a graph, then kernels of the checkpoint that the graph does not use."""
    flow = Dataflow(definition(graph))
    restored = flow.restored()
    tensors = {} if bundle is None else bundle.tensors
    keys: set[str] = set()

    def weight(number: int) -> Tensor | Skipped:
        node = flow.node(number)
        if flow.op(number) == "Const":
            return node.constant() or Skipped(node.name, "a constant without a value")
        shared = node.text("shared_name") or node.name
        names = {} if bundle is None else bundle.names
        key = restored.get(number) or names.get(shared) or next((n for n in (shared, node.name) if n in tensors), "")
        if key not in tensors:
            return Skipped(node.name, "a variable that is not in the checkpoint")
        keys.add(key)
        average = f"{key}{_AVERAGE}"
        return tensors.get(average, tensors[key])

    found, skipped = dataflow_layers(flow, _guarded(path, weight))
    if bundle is None:
        return _of_constants(format, flow, found, skipped)
    seen = {bundle.checksums[key] for key in keys}
    same = {key for key, sums in bundle.checksums.items() if sums in seen}
    named = {key: flow.node(number).name for number, key in restored.items()}
    further, reasons, count = _by_name(bundle, same, named)
    # What the graph has already reported about a variable, by its name there
    reported = {entry.name for entry in skipped}
    skipped += [entry for entry in (*bundle.skipped, *reasons) if entry.name not in reported]
    layers = (*found, *further)
    names = {key: name for name, key in bundle.names.items()} | named
    contents = _of_bundle(bundle, layers, skipped, names)
    return Weights(format, "tensorflow", layers, count, tuple(skipped), contents=contents)


def _by_name(
    bundle: Bundle, taken: set[str], named: Mapping[str, str]
) -> tuple[tuple[ConvLayer, ...], tuple[Skipped, ...], int]:
    """Layers of the variables of a checkpoint except those in ``taken``, and the number of its parameters.

    Args:
        bundle: The checkpoint.
        taken: Keys of variables whose layers are known.
        named: What the graph calls variables, by key.
    """
    known = {key: name for name, key in bundle.names.items()} | dict(named)
    # Keras 3 exports every variable twice, in two lists, and calls only those of one list by their names
    lists = ("variables/", "_all_variables/")
    twice = all(any(key.startswith(part) for key in bundle.tensors) for part in lists)
    other = lists[not any(key.startswith(lists[1]) for key in named)]
    variables = []
    for key, tensor in bundle.tensors.items():
        path = key.removesuffix("/.ATTRIBUTES/VARIABLE_VALUE")
        name = known.get(key, path)
        if (twice and key.startswith(other)) or any(map(is_training_state, (key, name))) or key.endswith(_AVERAGE):
            continue
        average = bundle.tensors.get(f"{key}{_AVERAGE}")
        variables.append((path, key, replace(average or tensor, name=name if "/" in name else path)))
    variables.sort(key=lambda entry: natural(entry[0]))
    # Objects of Keras are in the order of its layers; the names of a graph are in alphabetical order
    ordered = any(_OBJECTS.search(path) for path, _, _ in variables)
    # Keras 3 keeps the kernel of a plain convolution as _kernel, those of depthwise and transposed ones as kernel
    third = any(path.endswith("/_kernel") for path, _, _ in variables)
    odd = {tensor.name for path, _, tensor in variables if third and path.endswith("/kernel")}
    found, skipped, count = layers_from_variables([tensor for _, _, tensor in variables], ordered=ordered, odd=odd)
    if taken:
        rest = [tensor for _, key, tensor in variables if key not in taken]
        found, skipped, _ = layers_from_variables(rest, ordered=False, odd=odd)
    return found, skipped, count


def _parameters(constants: Iterable[Tensor]) -> int:
    _, _, count = layers_from_variables([replace(t, name=_READ.sub("", t.name)) for t in constants], ordered=False)
    return count


def _guarded(path: Path, weight: Callable[[int], Tensor | Skipped]) -> Callable[[int], Tensor | Skipped]:
    """Tensors whose errors name the file."""
    guarded = _guarded_reads(path)

    def find(number: int) -> Tensor | Skipped:
        tensor = weight(number)
        return tensor if isinstance(tensor, Skipped) else guarded(tensor)

    return find


def _guarded_reads(path: Path) -> Callable[[Tensor], Tensor]:
    def guarded(tensor: Tensor) -> Tensor:
        def read() -> npt.NDArray[np.generic]:
            with undamaged(str(path), _WHAT):
                return tensor.read()

        return replace(tensor, read=read)

    return guarded
