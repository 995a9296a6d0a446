import json
import shutil

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cnnfilterdb.core.errors import WeightFileError
from cnnfilterdb.ingest import formats
from cnnfilterdb.ingest.formats import tfjs

QUICK = settings(max_examples=40)


@pytest.mark.parametrize(("folder", "tolerance"), [("tfjs_graph", 1e-5), ("tfjs_u8", 0.05)])
@pytest.mark.parametrize("path", ["", "model.json"])
def test_graph_models_compute_what_tensorflow_computes(written, assert_same_network, folder, path, tolerance):
    weights = formats.read(written / folder / path)
    assert_same_network(weights.layers, tolerance)
    assert (weights.format, weights.framework, weights.skipped) == ("tfjs", "tensorflow", ())
    truth = np.load(written / "net.npz")
    assert weights.parameters == sum(truth[name].size for name in truth.files if "/" in name)


def test_integers_represent_numbers_within_half_a_step(written):
    exact, quantised = (formats.read(written / folder).layers for folder in ("tfjs_graph", "tfjs_u8"))
    manifest = json.loads((written / "tfjs_u8/model.json").read_text())["weightsManifest"]
    entries = manifest[0]["weights"]
    step = max(entry["quantization"]["scale"] for entry in entries if "quantization" in entry)
    assert len(manifest[0]["paths"]) == 3  # kernels lie across their borders
    for one, other in zip(exact, quantised, strict=True):
        assert (one.dtype, other.dtype) == ("float32", "quint8")
        error = np.abs(one.read() - other.read()).max()
        # TensorFlow.js moves the smallest number so that zero is exact, by less than a step
        assert 0 < error <= 1.51 * step


def test_layers_models_state_the_classes_of_their_layers(written):
    weights = formats.read(written / "tfjs_layers")
    truth = np.load(written / "keras3.npz")
    assert [(layer.name, layer.kind) for layer in weights.layers] == [
        ("c1", "conv"),
        ("sep/depthwise_kernel", "depthwise"),
        ("sep/pointwise_kernel", "conv"),
        ("up", "transposed"),
        ("dw", "depthwise"),
    ]
    assert [layer.conv_depth for layer in weights.layers] == [0, 1, 2, 3, 4]
    assert weights.layers[0].stride == (2, 2)
    assert (weights.framework, {layer.dtype for layer in weights.layers}) == ("keras", {"float16"})
    kernel = truth["sequential/c1/kernel"].transpose(3, 2, 0, 1)
    assert np.array_equal(weights.layers[0].read(), kernel.astype(np.float16).astype(np.float32))
    kernel = truth["sequential/up/kernel"].transpose(2, 3, 0, 1)
    assert np.array_equal(weights.layers[3].read(), kernel.astype(np.float16).astype(np.float32))


@pytest.fixture
def model(written, tmp_path):
    """Changes the JSON of a model."""
    folder = shutil.copytree(written / "tfjs_u8", tmp_path / "model")

    def change(edit):
        path = folder / "model.json"
        content = json.loads(path.read_text())
        edit(content)
        path.write_text(json.dumps(content))
        return path

    return change


@pytest.mark.parametrize("name", ["../secret", "/etc/passwd", "..\\b", "C:x", "sub/../../x"])
def test_shards_outside_of_the_folder_are_refused(model, name):
    path = model(lambda content: content["weightsManifest"][0]["paths"].append(name))
    with pytest.raises(WeightFileError, match="refused"):
        formats.read(path)


def test_shards_that_are_missing_or_cut_off(model):
    path = model(lambda content: None)
    last = path.with_name("group1-shard3of3.bin")
    last.write_bytes(last.read_bytes()[:-100])
    weights = formats.read(path)
    with pytest.raises(WeightFileError, match="its shards hold 1,108 bytes"):
        [layer.read() for layer in weights.layers]
    last.unlink()
    with pytest.raises(WeightFileError, match=r"'group1-shard3of3\.bin', which is missing"):
        formats.read(path)


@pytest.mark.parametrize("block", [1, 4, 5, 9, 1 << 16])
def test_strings_among_the_weights_are_skipped(model, monkeypatch, block):
    monkeypatch.setattr(tfjs, "_BLOCK", block)
    content = [len(text).to_bytes(4, "little") + text for text in (b"one", b"", b"three")]

    def edit(json):
        group = json["weightsManifest"][0]
        group["paths"].insert(0, "strings.bin")
        group["weights"].insert(0, {"name": "vocabulary", "shape": [3], "dtype": "string"})

    before = [layer.read() for layer in formats.read(model(lambda content: None)).layers]
    path = model(edit)
    path.with_name("strings.bin").write_bytes(b"".join(content))
    after = [layer.read() for layer in formats.read(path).layers]
    assert all(np.array_equal(one, other) for one, other in zip(before, after, strict=True))


@QUICK
@given(data=st.data())
def test_damaged_models_are_reported_as_such(model, read_all, data):
    original = model(lambda content: None).read_bytes()

    def edit(content):
        # Anything in the place of anything
        place, key = content, data.draw(st.sampled_from(["weightsManifest", "modelTopology"]))
        for _ in range(data.draw(st.integers(1, 7))):
            value = place[key]
            if not isinstance(value, dict | list) or not value:
                break
            place = value
            key = data.draw(
                st.sampled_from(sorted(value)) if isinstance(value, dict) else st.integers(0, len(value) - 1)
            )
        place[key] = data.draw(st.sampled_from([None, -1, 1 << 40, "", "x", [], {}, [[]], True, 0.5]))

    path = model(edit)
    try:
        read_all(path)
    finally:
        path.write_bytes(original)
