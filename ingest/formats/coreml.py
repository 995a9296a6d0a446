"""Core ML models: ``.mlmodel``, a message with a neural network, a pipeline of models or a program (Model.proto).

What a network is reads :mod:`~cnnfilterdb.ingest.formats.coreml_network`; what a program is, the network of a
``.mlpackage`` folder, :mod:`~cnnfilterdb.ingest.formats.coreml_program`.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from cnnfilterdb.core.errors import WeightFileError
from cnnfilterdb.ingest.formats import limits, register
from cnnfilterdb.ingest.formats.coreml_network import NeuralNetwork
from cnnfilterdb.ingest.formats.coreml_program import Program
from cnnfilterdb.ingest.formats.damage import undamaged
from cnnfilterdb.ingest.formats.explicit import explicit_weights
from cnnfilterdb.ingest.formats.mapping import mapped
from cnnfilterdb.ingest.formats.protobuf import Fields, fields, message
from cnnfilterdb.ingest.network.layers import Weights

__all__ = ["CoremlFormat"]

_WHAT = "Core ML model"
# Fields of Model: networks, pipelines of models, and programs
_NETWORKS, _PIPELINES, _PROGRAM = (500, 403, 303), (202, 200, 201), 502


@register
class CoremlFormat:
    """``.mlmodel`` files, and those in ``.mlpackage`` folders."""

    name = "coreml"
    suffixes = (".mlmodel",)

    def matches(self, path: Path, head: bytes) -> bool:
        """Whether the suffix is that of Core ML and the file begins with a version and a description."""
        return path.suffix == ".mlmodel" and head[:1] == b"\x08" and head[1:2] < b"\x20" and head[2:3] == b"\x12"

    def read(self, path: Path) -> Weights:
        """Read the layers; the weights when the layers are read.

        Raises:
            WeightFileError: The file is damaged, or contains a model of another kind.
        """
        with undamaged(str(path), _WHAT):
            parts = list(_parts(path, fields(mapped(path))))
            if not parts:
                raise WeightFileError(f"{path}: a Core ML model without a neural network")
            # Depths count from the input of one network
            found = [(one, depth if len(parts) == 1 else None) for part in parts for one, depth in part.found]
            return explicit_weights("coreml", "coreml", [tensor for part in parts for tensor in part.stored], found)


def _parts(path: Path, model: Fields) -> Iterator[NeuralNetwork | Program]:
    """The networks and programs of a model, and of the models of a pipeline."""
    for field in _NETWORKS:
        for value in model.get(field, []):
            yield NeuralNetwork(path, message(value))
    for value in model.get(_PROGRAM, []):
        yield Program(path, message(value))
    for field in _PIPELINES:
        for value in model.get(field, []):
            # A pipeline for a task wraps a generic one
            pipeline = message(value) if field == 202 else message(fields(message(value), (1,))[1][-1])
            for inner in fields(pipeline, (1,)).get(1, []):
                with limits.current().nested():
                    yield from _parts(path, fields(message(inner)))
