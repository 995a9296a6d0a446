"""TensorFlow.js models: ``model.json`` and the shards of weights beside it.

The JSON contains the topology, which is a graph of TensorFlow operations or the configuration of a Keras model, and a
manifest: which weights are in which files, one after the other. Weights may be quantised to integers, which represent
integer x scale + min, or to float16. Libraries such as face-api.js ship the manifest alone; names and shapes then show
what is a convolution.
"""

from __future__ import annotations

import base64
import json
import math
from bisect import bisect_right
from collections.abc import Mapping, Sequence
from itertools import accumulate
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from cnnfilterdb.core.errors import WeightFileError
from cnnfilterdb.ingest.formats import limits, register
from cnnfilterdb.ingest.formats.companions import companion
from cnnfilterdb.ingest.formats.damage import undamaged
from cnnfilterdb.ingest.formats.dtypes import by_code
from cnnfilterdb.ingest.formats.keras.config import leaves, parse
from cnnfilterdb.ingest.formats.keras.file import Stored, Variable
from cnnfilterdb.ingest.formats.keras.model import layers_of
from cnnfilterdb.ingest.formats.tensorflow.dataflow import Dataflow, Function, GraphDefinition, dataflow_layers
from cnnfilterdb.ingest.network.contents import contents_of
from cnnfilterdb.ingest.network.layers import Skipped, Tensor, Weights
from cnnfilterdb.ingest.network.variables import layers_from_variables

__all__ = ["TfjsFormat"]

_WHAT = "TensorFlow.js model"
#: Bytes of a shard that are read at a time where the lengths of strings are looked for.
_BLOCK = 1 << 16
_DTYPES = by_code(
    {
        "float32": "float32",
        "float16": "float16",
        "int32": "int32",
        "int16": "int16",
        "uint16": "uint16",
        "int8": "int8",
        "uint8": "uint8",
        "bool": "bool",
        "complex64": "complex64",
    }
)


@register
class TfjsFormat:
    """``model.json`` files, of graph models and of layers models, and weights manifests."""

    name = "tfjs"
    suffixes = (".json",)

    def matches(self, path: Path, head: bytes) -> bool:
        """Whether it is JSON that begins with the topology or the manifest of a model."""
        text = head.lstrip()
        if text.startswith(b"["):
            return b'"paths"' in text and b'"weights"' in text
        return text.startswith(b"{") and (b'"modelTopology"' in head or b'"weightsManifest"' in head)

    def read(self, path: Path) -> Weights:
        """Read topology and manifest; the shards when the layers are read.

        Raises:
            WeightFileError: The JSON is damaged, or a shard is missing or outside of its folder.
        """
        with undamaged(str(path), _WHAT):
            content = path.read_bytes()
            limits.current().allocate(20 * len(content))
            model = json.loads(content)
            if isinstance(model, list):
                return _manifest_alone(_tensors(path, model))
            tensors = _tensors(path, model.get("weightsManifest") or ())
            topology = model.get("modelTopology") or {}
            if "node" in topology:
                return _graph_model(topology, tensors)
            if not topology and tensors:
                return _manifest_alone(tensors)
            return _layers_model(topology, tensors)


# ---------------------------------------------------------------------------------------------------------------------
# Weights


class _Shards:
    """Files that are read as if they were one."""

    def __init__(self, model: Path, names: Sequence[str]) -> None:
        self.model = model
        self.paths = [companion(model, str(name)) for name in names]
        for path in set(self.paths):
            limits.current().opened(path.stat().st_size)
        self.ends = list(accumulate(path.stat().st_size for path in self.paths))
        self.size = self.ends[-1] if self.ends else 0

    def read(self, start: int, size: int) -> bytes:
        """Bytes of any place."""
        if start + size > self.size:
            raise WeightFileError(
                f"{self.model}: its shards hold {self.size:,} bytes, "
                f"weights are expected up to byte {start + size:,}; download them again"
            )
        parts = []
        while size > 0:
            number = bisect_right(self.ends, start)
            begin = self.ends[number - 1] if number else 0
            with self.paths[number].open("rb") as file:
                file.seek(start - begin)
                parts.append(file.read(min(size, self.ends[number] - start)))
            if not parts[-1]:
                raise WeightFileError(f"{self.paths[number]}: became shorter while it was read; download it again")
            start, size = start + len(parts[-1]), size - len(parts[-1])
        return b"".join(parts)


def _tensors(path: Path, manifest: Sequence[Any]) -> dict[str, Tensor]:
    """The weights by name, in the order of the manifest."""
    found: dict[str, Tensor] = {}
    for group in manifest:
        shards = _Shards(path, group["paths"])
        place = 0
        for entry in group["weights"]:
            shape = tuple(entry["shape"])
            if not all(type(side) is int and 0 <= side < 1 << 48 for side in shape):
                raise ValueError(f"{entry['name']} has the impossible shape {shape}")
            if entry["dtype"] == "string":
                place = _behind_strings(shards, place, math.prod(shape))
                continue
            quantisation = entry.get("quantization")
            dtype = _DTYPES[quantisation["dtype"] if quantisation else entry["dtype"]]
            found[entry["name"]] = _tensor(entry["name"], shards, place, dtype, shape, quantisation)
            place += math.prod(shape) * dtype.itemsize
    return found


def _behind_strings(shards: _Shards, place: int, count: int) -> int:
    """The place behind so many strings, each of which follows its length; a block of short strings is read at once."""
    start, block = place, b""
    for _ in range(count):
        limits.current().step()
        if place + 4 > start + len(block):
            start, block = place, shards.read(place, max(4, min(_BLOCK, shards.size - place)))
        length = block[place - start : place - start + 4]
        place += 4 + int.from_bytes(length, "little")
    return place


def _tensor(
    name: str,
    shards: _Shards,
    place: int,
    dtype: np.dtype[Any],
    shape: tuple[int, ...],
    quantisation: Mapping[str, Any] | None,
) -> Tensor:
    integers = quantisation is not None and dtype.kind in "iu"

    def read() -> npt.NDArray[Any]:
        with undamaged(str(shards.model), _WHAT):
            limits.current().allocate(16 * math.prod(shape))
            data = shards.read(place, math.prod(shape) * dtype.itemsize)
            values: npt.NDArray[Any] = np.frombuffer(data, dtype).reshape(shape)
            if quantisation is not None and integers:
                # In float64, rounded once
                return (values * float(quantisation["scale"]) + float(quantisation["min"])).astype(np.float32)
            return values.astype(np.float32) if dtype.kind == "f" else values

    is_weight = integers and quantisation is not None and quantisation.get("original_dtype", "float32") == "float32"
    return Tensor(name, shape, f"q{dtype.name}" if is_weight else dtype.name, read)


# ---------------------------------------------------------------------------------------------------------------------
# Graphs


class _JsonNode:
    """A NodeDef as JSON, whose constants are among the weights."""

    def __init__(self, entry: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> None:
        self.name = str(entry["name"])
        self.op = str(entry["op"])
        self.inputs: Sequence[str] = [str(name) for name in entry.get("input", ())]
        self._attributes: Mapping[str, Any] = entry.get("attr") or {}
        self._tensors = tensors

    def _values(self, key: str, kind: str) -> list[Any]:
        """Values of one kind: the attribute itself, or what is in its list."""
        attribute = self._attributes.get(key) or {}
        return [attribute[kind]] if kind in attribute else list((attribute.get("list") or {}).get(kind, ()))

    def integers(self, key: str) -> tuple[int, ...]:
        return tuple(int(value) for value in self._values(key, "i") or self._values(key, "b"))

    def numbers(self, key: str) -> tuple[float, ...]:
        return tuple(float(value) for value in self._values(key, "f"))

    def text(self, key: str) -> str:
        values = self._values(key, "s")
        return base64.b64decode(values[-1]).decode("utf-8", "replace") if values else ""

    def functions(self, key: str) -> tuple[str, ...]:
        return tuple(str(value["name"]) for value in self._values(key, "func"))

    def shape(self, key: str) -> tuple[int | None, ...] | None:
        values = self._values(key, "shape")
        if not values or values[-1].get("unknownRank"):
            return None
        sides = [int(side.get("size", 0)) for side in values[-1].get("dim", ())]
        return tuple(side if side >= 0 else None for side in sides)

    def constant(self) -> Tensor | None:
        return self._tensors.get(self.name)

    def strings(self) -> tuple[str, ...]:
        return ()


def _graph_model(topology: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> Weights:
    functions = {entry["signature"]["name"]: entry for entry in (topology.get("library") or {}).get("function", ())}

    def nodes(entries: Sequence[Any]) -> list[_JsonNode]:
        return [_JsonNode(entry, tensors) for entry in entries]

    def find(name: str) -> Function | None:
        entry = functions.get(name)
        if entry is None:
            return None
        signature, results = entry["signature"], entry.get("ret", {})
        return Function(
            tuple(argument["name"] for argument in signature.get("inputArg", ())),
            tuple(results.get(result["name"], "") for result in signature.get("outputArg", ())),
            nodes(entry.get("nodeDef", ())),
        )

    flow = Dataflow(GraphDefinition(nodes(topology["node"]), find))

    def weight(number: int) -> Tensor | Skipped:
        node = flow.node(number)
        return tensors.get(node.name) or Skipped(node.name, "a weight that is not in the manifest")

    found, skipped = dataflow_layers(flow, weight)
    _, _, count = layers_from_variables([tensor for tensor in tensors.values() if tensor.shape], ordered=False)
    contents = contents_of(tensors.values(), found, skipped)
    return Weights("tfjs", "tensorflow", tuple(found), count, tuple(skipped), contents=contents)


# ---------------------------------------------------------------------------------------------------------------------
# Layers


def _manifest_alone(tensors: Mapping[str, Tensor]) -> Weights:
    # The manifest has the weights in the order in which the network was built
    found, skipped, count = layers_from_variables(list(tensors.values()), ordered=True)
    contents = contents_of(tensors.values(), found, skipped)
    return Weights("tfjs", "tensorflow", found, count, skipped, contents=contents)


def _layers_model(topology: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> Weights:
    config = topology.get("model_config", topology)
    config = json.loads(config) if isinstance(config, str) else config
    model = parse(config)
    tops: dict[str, str] = {}
    if model is not None:
        for child in model.children or ():
            tops |= {leaf.name: child.name for leaf in leaves(child)}
        tops |= {child.name: child.name for child in model.children or ()}
    variables = []
    for name, tensor in tensors.items():
        *scopes, role = name.split("/")
        # An HDF5 file has a group for each layer of the model, named after it; here only the names of the weights are
        # known
        top = next((tops[scope] for scope in scopes if scope in tops), None)
        group = tuple(scopes) if top is None or scopes[:1] == [top] else (top, *scopes)
        variables.append(Variable(group or (role,), None, role, tensor))
    stored = Stored(
        variables=tuple(variables),
        numbered=False,
        config=config if model is not None else None,
        version=str(topology.get("keras_version") or "") or None,
        backend=None,
    )
    found, skipped, count, contents = layers_of(stored)
    return Weights("tfjs", "keras", found, count, skipped, contents=contents)
