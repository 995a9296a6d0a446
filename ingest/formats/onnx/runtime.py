"""Models of ONNX Runtime (``.ort``): the graph of an ONNX file as FlatBuffers (ort.fbs of ONNX Runtime 1.32).

Only what the reader of ONNX needs is converted: nodes with their attributes, and initialisers. The numbers of the
fields below are those of the schema.
"""

from __future__ import annotations

import struct

import onnx

from cnnfilterdb.ingest.formats import limits
from cnnfilterdb.ingest.formats.flatbuffer import Table

__all__ = ["IDENTIFIER", "onnx_model"]

IDENTIFIER = b"ORTM"

# InferenceSession, Model, OperatorSetId
_MODEL = 1
_IR_VERSION, _OPSETS, _PRODUCER, _PRODUCER_VERSION, _GRAPH = 0, 1, 2, 3, 7
_OPSET_DOMAIN, _OPSET_VERSION = 0, 1
# Graph
_INITIALISERS, _NODES, _INPUTS, _OUTPUTS = 0, 2, 5, 6
# Node
_NAME, _DOMAIN, _OPERATOR, _NODE_INPUTS, _NODE_OUTPUTS, _ATTRIBUTES = 0, 2, 5, 8, 9, 10
# Attribute
_KIND, _FLOAT, _INTEGER, _TEXT, _TENSOR, _SUBGRAPH, _FLOATS, _INTEGERS = 2, 3, 4, 5, 6, 7, 8, 9
# Tensor
_DIMENSIONS, _TYPE, _RAW, _EXTERNAL = 2, 3, 4, 6


def onnx_model(data: memoryview) -> onnx.ModelProto:
    """The model of a file, as the message of an ONNX file.

    Raises:
        ValueError: It is damaged, or keeps weights in another file.
    """
    stored = Table.root(data).table(_MODEL)
    graph = stored and stored.table(_GRAPH)
    if stored is None or graph is None:
        raise ValueError("without a graph")
    model = onnx.ModelProto()
    model.ir_version = stored.number(_IR_VERSION, "<q")
    model.producer_name, model.producer_version = stored.text(_PRODUCER), stored.text(_PRODUCER_VERSION)
    for opset in stored.tables(_OPSETS):
        model.opset_import.add(domain=opset.text(_OPSET_DOMAIN), version=opset.number(_OPSET_VERSION, "<q"))
    _convert_graph(graph, model.graph)
    return model


def _convert_graph(stored: Table, graph: onnx.GraphProto) -> None:
    with limits.current().nested():
        for tensor in stored.tables(_INITIALISERS):
            _convert_tensor(tensor, graph.initializer.add())
        for name in stored.texts(_INPUTS):
            graph.input.add(name=name)
        for name in stored.texts(_OUTPUTS):
            graph.output.add(name=name)
        for node in stored.tables(_NODES):
            limits.current().create()
            new = graph.node.add(name=node.text(_NAME), op_type=node.text(_OPERATOR), domain=node.text(_DOMAIN))
            new.input.extend(node.texts(_NODE_INPUTS))
            new.output.extend(node.texts(_NODE_OUTPUTS))
            for attribute in node.tables(_ATTRIBUTES):
                _convert_attribute(attribute, new.attribute.add())


def _convert_attribute(stored: Table, attribute: onnx.AttributeProto) -> None:
    limits.current().step()
    attribute.name = stored.text(_NAME)
    kind = stored.number(_KIND, "<i")
    attribute.type = kind if kind in onnx.AttributeProto.AttributeType.values() else 0
    attribute.i = stored.number(_INTEGER, "<q")
    attribute.f = struct.unpack("<f", struct.pack("<I", stored.number(_FLOAT, "<I")))[0]
    attribute.s = stored.text(_TEXT).encode()
    attribute.ints.extend(stored.integers(_INTEGERS, "<i8"))
    attribute.floats.extend(float(one) for one in stored.array(_FLOATS, "<f4"))
    if (tensor := stored.table(_TENSOR)) is not None:
        _convert_tensor(tensor, attribute.t)
    if (graph := stored.table(_SUBGRAPH)) is not None:
        _convert_graph(graph, attribute.g)


def _convert_tensor(stored: Table, tensor: onnx.TensorProto) -> None:
    raw = stored.array(_RAW, "u1")
    limits.current().allocate(len(raw))
    tensor.name = stored.text(_NAME)
    tensor.dims.extend(stored.integers(_DIMENSIONS, "<i8"))
    tensor.data_type = stored.number(_TYPE, "<i")
    if stored.number(_EXTERNAL, "<q", -1) >= 0:
        raise ValueError(f"the weight {tensor.name[:100]} is in another file; pass the .onnx file it was made from")
    tensor.raw_data = raw.tobytes()
