"""Files are written by TensorFlow itself, or by the code that its compiler makes of the schema (package tflite)."""

import flatbuffers
import numpy as np
import pytest
import tflite
from hypothesis import given, settings
from hypothesis import strategies as st

from cnnfilterdb.core.errors import WeightFileError
from cnnfilterdb.ingest import formats

QUICK = settings(max_examples=60)


@pytest.mark.parametrize(("name", "tolerance", "dtype"), [("net", 1e-5, "float32"), ("net_f16", 2e-3, "float16")])
def test_layers_compute_what_tensorflow_computes(written, assert_same_network, name, tolerance, dtype):
    weights = formats.read(written / f"{name}.tflite")
    assert_same_network(weights.layers, tolerance)
    assert (weights.format, weights.framework, weights.skipped) == ("tflite", "tensorflow", ())
    assert {layer.dtype for layer in weights.layers} == {dtype}


def test_integers_represent_numbers_within_half_a_step(written):
    weights = formats.read(written / "keras_i8.tflite")
    truth = np.load(written / "keras3.npz")
    names = ["c1/kernel", "sep/depthwise_kernel", "sep/pointwise_kernel", "up/kernel", "dw/kernel"]
    assert [layer.kind for layer in weights.layers] == ["conv", "depthwise", "conv", "transposed", "depthwise"]
    for layer, name in zip(weights.layers, names, strict=True):
        axes = (3, 2, 0, 1) if layer.kind == "conv" else (2, 3, 0, 1)
        exact = truth[f"sequential/{name}"].transpose(axes).reshape(layer.shape)
        read = layer.read()
        assert layer.dtype == "qint8"
        # One scale for each output channel, its largest weight 127 steps
        step = np.abs(exact).max((1, 2, 3), keepdims=True) / 127
        assert (np.abs(read - exact) <= 0.5001 * step + 1e-3 * np.abs(exact)).all()


class Writer:
    """Writes a file of one graph."""

    def __init__(self):
        self.builder = flatbuffers.Builder()
        self.buffers = [b""]
        self.tensors = []
        self.operators = []
        self.codes = []

    def vector(self, values, dtype):
        return self.builder.CreateNumpyVector(np.asarray(values, dtype))

    def offsets(self, offsets):
        self.builder.StartVector(4, len(offsets), 4)
        for offset in reversed(offsets):
            self.builder.PrependUOffsetTRelative(offset)
        return self.builder.EndVector()

    def buffer(self, data):
        self.buffers.append(data)
        return len(self.buffers) - 1

    def tensor(self, name, shape, kind=tflite.TensorType.FLOAT32, buffer=0, scale=(), zero=(), axis=0, sparsity=None):
        builder = self.builder
        quantisation = None
        if len(scale):
            scales, zeros = self.vector(scale, np.float32), self.vector(zero, np.int64)
            tflite.QuantizationParametersStart(builder)
            tflite.QuantizationParametersAddScale(builder, scales)
            tflite.QuantizationParametersAddZeroPoint(builder, zeros)
            tflite.QuantizationParametersAddQuantizedDimension(builder, axis)
            quantisation = tflite.QuantizationParametersEnd(builder)
        sparse = self.sparsity(*sparsity) if sparsity else None
        text, sides = builder.CreateString(name), self.vector(shape, np.int32)
        tflite.TensorStart(builder)
        tflite.TensorAddShape(builder, sides)
        tflite.TensorAddType(builder, kind)
        tflite.TensorAddBuffer(builder, buffer)
        tflite.TensorAddName(builder, text)
        if quantisation is not None:
            tflite.TensorAddQuantization(builder, quantisation)
        if sparse is not None:
            tflite.TensorAddSparsity(builder, sparse)
        self.tensors.append(tflite.TensorEnd(builder))
        return len(self.tensors) - 1

    def sparsity(self, order, blocks, levels):
        builder, made = self.builder, []
        for level in levels:
            if isinstance(level, int):
                tflite.DimensionMetadataStart(builder)
                tflite.DimensionMetadataAddFormat(builder, tflite.DimensionType.DENSE)
                tflite.DimensionMetadataAddDenseSize(builder, level)
            else:
                segments, indices = [self.indices(values) for values in level]
                tflite.DimensionMetadataStart(builder)
                tflite.DimensionMetadataAddFormat(builder, tflite.DimensionType.SPARSE_CSR)
                tflite.DimensionMetadataAddArraySegmentsType(builder, tflite.SparseIndexVector.Uint8Vector)
                tflite.DimensionMetadataAddArraySegments(builder, segments)
                tflite.DimensionMetadataAddArrayIndicesType(builder, tflite.SparseIndexVector.Uint8Vector)
                tflite.DimensionMetadataAddArrayIndices(builder, indices)
            made.append(tflite.DimensionMetadataEnd(builder))
        metadata, orders, maps = self.offsets(made), self.vector(order, np.int32), self.vector(blocks, np.int32)
        tflite.SparsityParametersStart(builder)
        tflite.SparsityParametersAddTraversalOrder(builder, orders)
        tflite.SparsityParametersAddBlockMap(builder, maps)
        tflite.SparsityParametersAddDimMetadata(builder, metadata)
        return tflite.SparsityParametersEnd(builder)

    def indices(self, values):
        content = self.vector(values, np.uint8)
        tflite.Uint8VectorStart(self.builder)
        tflite.Uint8VectorAddValues(self.builder, content)
        return tflite.Uint8VectorEnd(self.builder)

    def operator(self, code, inputs, outputs, custom=None, **options):
        builder = self.builder
        self.codes.append((code, custom))
        made = None
        if options:
            tflite.Conv2DOptionsStart(builder)
            for key, value in options.items():
                getattr(tflite, f"Conv2DOptionsAdd{key}")(builder, value)
            made = tflite.Conv2DOptionsEnd(builder)
        into, out = self.vector(inputs, np.int32), self.vector(outputs, np.int32)
        tflite.OperatorStart(builder)
        tflite.OperatorAddOpcodeIndex(builder, len(self.codes) - 1)
        tflite.OperatorAddInputs(builder, into)
        tflite.OperatorAddOutputs(builder, out)
        if made is not None:
            tflite.OperatorAddBuiltinOptionsType(builder, tflite.BuiltinOptions.Conv2DOptions)
            tflite.OperatorAddBuiltinOptions(builder, made)
        self.operators.append(tflite.OperatorEnd(builder))

    def write(self, path, inputs):
        builder = self.builder
        made = []
        for data in self.buffers:
            content = builder.CreateByteVector(data) if data else None
            tflite.BufferStart(builder)
            if content is not None:
                tflite.BufferAddData(builder, content)
            made.append(tflite.BufferEnd(builder))
        buffers, codes = self.offsets(made), []
        for code, custom in self.codes:
            text = builder.CreateString(custom) if custom else None
            tflite.OperatorCodeStart(builder)
            tflite.OperatorCodeAddDeprecatedBuiltinCode(builder, min(code, 127))
            tflite.OperatorCodeAddBuiltinCode(builder, code)
            if text is not None:
                tflite.OperatorCodeAddCustomCode(builder, text)
            codes.append(tflite.OperatorCodeEnd(builder))
        codes = self.offsets(codes)
        tensors, operators = self.offsets(self.tensors), self.offsets(self.operators)
        inputs = self.vector(inputs, np.int32)
        tflite.SubGraphStart(builder)
        tflite.SubGraphAddTensors(builder, tensors)
        tflite.SubGraphAddInputs(builder, inputs)
        tflite.SubGraphAddOperators(builder, operators)
        graphs = self.offsets([tflite.SubGraphEnd(builder)])
        tflite.ModelStart(builder)
        tflite.ModelAddVersion(builder, 3)
        tflite.ModelAddOperatorCodes(builder, codes)
        tflite.ModelAddSubgraphs(builder, graphs)
        tflite.ModelAddBuffers(builder, buffers)
        builder.Finish(tflite.ModelEnd(builder), b"TFL3")
        path.write_bytes(builder.Output())
        return path


CONV = tflite.BuiltinOperator.CONV_2D


def one_layer(path, shape, **weight):
    writer = Writer()
    image = writer.tensor("image", (1, 8, 8, shape[3]))
    data = weight.pop("data")
    kernel = writer.tensor("net/conv/Conv2D", shape, buffer=writer.buffer(data), **weight)
    output = writer.tensor("out", (1, 8, 8, shape[0]))
    writer.operator(CONV, [image, kernel], [output], StrideW=1, StrideH=2, DilationWFactor=3, DilationHFactor=4)
    return writer.write(path, [image])


@pytest.fixture
def path(tmp_path):
    return tmp_path / "net.tflite"


@pytest.mark.parametrize("kind", ["INT8", "UINT8"])
@pytest.mark.parametrize("per_axis", [True, False])
def test_scale_and_zero_point(path, kind, per_axis):
    rng = np.random.default_rng(0)
    stored = rng.integers(-128, 128, (4, 3, 3, 2)) + (128 if kind == "UINT8" else 0)
    scale = rng.uniform(0.01, 1, 4 if per_axis else 1).astype(np.float32)
    zero = rng.integers(-9, 9, scale.size)
    one_layer(
        path,
        stored.shape,
        kind=getattr(tflite.TensorType, kind),
        data=stored.astype(np.uint8).tobytes(),
        scale=scale,
        zero=zero,
    )
    (layer,) = formats.read(path).layers
    expected = (stored - zero.reshape(-1, 1, 1, 1)) * scale.astype(np.float64).reshape(-1, 1, 1, 1)
    assert np.array_equal(layer.read(), expected.astype(np.float32).transpose(0, 3, 1, 2))
    assert (layer.name, layer.kind, layer.dtype) == ("net/conv", "conv", f"q{kind.lower()}")
    assert (layer.stride, layer.dilation) == ((2, 1), (4, 3))


def test_four_bits(path):
    stored = np.arange(-8, 7).reshape(5, 3, 1, 1)  # an odd number, so that half a byte is left
    pairs = np.append(stored.reshape(-1), 0).reshape(-1, 2) & 15
    data = (pairs[:, 0] | pairs[:, 1] << 4).astype(np.uint8).tobytes()
    one_layer(path, stored.shape, kind=tflite.TensorType.INT4, data=data, scale=[0.5], zero=[0])
    (layer,) = formats.read(path).layers
    assert np.array_equal(layer.read(), stored.transpose(0, 3, 1, 2) * 0.5)


@given(st.integers(0, 1 << 32), st.booleans())
@QUICK
def test_sparse_weights(path, seed, blocked):
    rng = np.random.default_rng(seed)
    dense = rng.normal(size=(4, 2, 2, 6)).astype(np.float32)
    matrix = dense.reshape(4, -1)
    if blocked:
        # Blocks of four inputs out of every output channel and its 24 weights, as the schema describes them for
        # matrices; the axes: output, h, w, input in blocks of 2
        blocks = dense.reshape(4, 2, 2, 3, 2)
        blocks[rng.random((4, 2, 2, 3)) < 0.6] = 0
        kept = blocks.any(-1)
        rows = kept.reshape(-1, 3)
        segments = np.concatenate([[0], np.cumsum(rows.sum(1))])
        levels = [4, 2, 2, (segments, np.nonzero(rows)[1]), 2]
        order, maps, values = [0, 1, 2, 3, 4], [3], blocks[kept].reshape(-1)
    else:
        matrix[rng.random(matrix.shape) < 0.6] = 0
        # Columns of the output first: the levels may stand in any order
        turned = dense.transpose(3, 1, 2, 0)
        rows = turned.reshape(-1, 4)
        segments = np.concatenate([[0], np.cumsum((rows != 0).sum(1))])
        levels = [6, 2, 2, (segments, np.nonzero(rows)[1])]
        order, maps, values = [3, 1, 2, 0], [], rows[rows != 0]
    writer = Writer()
    image = writer.tensor("image", (1, 8, 8, 6))
    narrow = writer.tensor(
        "net/conv/Conv2D",
        dense.shape,
        kind=tflite.TensorType.FLOAT16,
        buffer=writer.buffer(values.astype(np.float16).tobytes() or b"\0\0"),
        sparsity=(order, maps, levels),
    )
    wide, full, output = (writer.tensor(name, dense.shape) for name in ("wide", "full", "output"))
    writer.operator(tflite.BuiltinOperator.DENSIFY, [narrow], [wide])
    writer.operator(tflite.BuiltinOperator.DEQUANTIZE, [wide], [full])
    writer.operator(CONV, [image, full], [output], StrideW=1, StrideH=1)
    (layer,) = formats.read(writer.write(path, [image])).layers
    assert np.array_equal(layer.read(), dense.astype(np.float16).astype(np.float32).transpose(0, 3, 1, 2))
    assert layer.dtype == "float16"


def test_sparse_weights_that_would_fill_the_memory(path):
    one_layer(path, (1 << 14, 3, 3, 1 << 14), data=b"abcd", sparsity=([0, 1, 2, 3], [], [1 << 14, 3, 3, 1 << 14]))
    with pytest.raises(WeightFileError, match="takes more than"):
        formats.read(path).layers[0].read()


def test_depth_sharing_and_what_is_left_out(path):
    writer = Writer()
    image = writer.tensor("image", (1, 8, 8, 2))
    kernel = writer.tensor("a/Conv2D;bn/FusedBatchNormV3", (2, 3, 3, 2), buffer=writer.buffer(bytes(144)))
    block = writer.tensor("block", (2,), tflite.TensorType.INT32, writer.buffer(np.array([2, 3], "<i4").tobytes()))
    crops = writer.tensor("crops", (2, 2), tflite.TensorType.INT32, writer.buffer(bytes(16)))
    dilated = writer.tensor("b/Conv2D", (4, 1, 1, 2), buffer=writer.buffer(bytes(32)))
    first, again, moved, last, odd = (writer.tensor(name, (1, 8, 8, 2)) for name in ("x", "y", "z", "u", "v"))
    writer.operator(CONV, [image, kernel], [first], StrideW=1, StrideH=1)
    writer.operator(CONV, [first, kernel], [again], StrideW=1, StrideH=1)
    writer.operator(tflite.BuiltinOperator.SPACE_TO_BATCH_ND, [again, block, crops], [moved])
    writer.operator(CONV, [moved, dilated], [last], StrideW=1, StrideH=1)
    writer.operator(tflite.BuiltinOperator.CUSTOM, [last], [odd], custom="MyConvolution")
    writer.operator(CONV, [image, first], [odd], StrideW=1, StrideH=1)
    weights = formats.read(writer.write(path, [image]))
    assert [(layer.name, layer.conv_depth, layer.bn_folded) for layer in weights.layers] == [
        ("a", 0, True),
        ("b", 1, None),
    ]
    assert weights.layers[1].dilation == (2, 3)
    assert weights.parameters == 36 + 8
    assert [(entry.name, entry.reason) for entry in weights.skipped] == [
        ("v", "an operator of type MyConvolution"),
        ("v", "its weight is computed"),
    ]


@QUICK
@given(data=st.data())
def test_damaged_files_are_reported_as_such(written, path, read_all, data):
    name = data.draw(st.sampled_from(["net.tflite", "keras_i8.tflite"]))
    broken = bytearray((written / name).read_bytes())
    for place in data.draw(st.lists(st.integers(8, len(broken) - 1), min_size=1, max_size=8)):
        broken[place] = data.draw(st.integers(0, 255))
    path.write_bytes(broken[: data.draw(st.integers(8, len(broken)))])
    read_all(path)
