"""Files that real writers wrote, inspected without a database: what is reported, against what a database stores."""

from __future__ import annotations

import math

import h5py
import numpy as np
import pandas as pd
import pytest
import torch
import torchconvquality as tcq
from hypothesis import given
from hypothesis import strategies as st
from onnx import TensorProto, helper, numpy_helper, save_model
from safetensors.numpy import save_file
from torch import nn

import cnnfilterdb
from cnnfilterdb import stats
from cnnfilterdb.core.errors import SelectionError, WeightFileError
from cnnfilterdb.ingest import formats
from cnnfilterdb.ingest.inspection import LABELS


def network() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(3, 16, 3), nn.BatchNorm2d(16), nn.ReLU(), nn.Conv2d(16, 16, 3, groups=16), nn.Conv2d(16, 24, 1),
        nn.Conv2d(24, 12, 5),
    )  # fmt: skip


def arrays() -> dict[str, np.ndarray]:
    return {name: value.numpy() for name, value in network().state_dict().items()}


def write_onnx(path):
    """What an exporter writes: two convolutions in a row."""
    state = arrays()
    nodes = [
        helper.make_node("Conv", ["x", "0.weight"], ["y"], kernel_shape=[3, 3]),
        helper.make_node("Conv", ["y", "3.weight"], ["z"], kernel_shape=[3, 3], group=16),
    ]
    graph = helper.make_graph(
        nodes,
        "net",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [1, 3, 32, 32])],
        [helper.make_tensor_value_info("z", TensorProto.FLOAT, None)],
        [numpy_helper.from_array(state[name], name) for name in ("0.weight", "3.weight")],
    )
    save_model(helper.make_model(graph, producer_name="pytorch", producer_version="2.0"), path)


def write_keras(path, version=b"2.15.0"):
    """Weights of one layer, as Keras 2 writes them."""
    with h5py.File(path, "w") as file:
        file.attrs["layer_names"] = [b"conv2d"]
        file.attrs["backend"] = b"tensorflow"
        file.attrs["keras_version"] = version
        group = file.create_group("conv2d")
        group.attrs["weight_names"] = [b"conv2d/kernel:0"]
        group.create_dataset("conv2d/kernel:0", data=np.float32(arrays()["0.weight"].transpose(2, 3, 1, 0)))


WRITERS = {
    "net.safetensors": lambda path: save_file(arrays(), path),
    "net.pt": lambda path: torch.save(network().state_dict(), path),
    "old.pth": lambda path: torch.save(network().state_dict(), path, _use_new_zipfile_serialization=False),
    "net.npz": lambda path: np.savez(path, **arrays()),
    "net.onnx": write_onnx,
    "net.h5": write_keras,
}
FORMATS = {
    "net.safetensors": ("safetensors", None),
    "net.pt": ("torch-zip", "pytorch"),
    "old.pth": ("torch-legacy", "pytorch"),
    "net.npz": ("npz", None),
    "net.onnx": ("onnx", "pytorch"),
    "net.h5": ("keras-h5", "keras"),
}


@pytest.mark.parametrize("name", WRITERS)
def test_a_database_would_store_the_same(tmp_path, name):
    path = tmp_path / name
    WRITERS[name](path)
    found = cnnfilterdb.inspect(path)
    with cnnfilterdb.create(tmp_path / "db") as db:
        db.add(path, "net")
        model, stored = db.sql("FROM models").to_arrow_table().to_pylist()[0], db.layers()
    common = [column for column in found.layers if column in stored]
    assert set(stored) - set(common) == {
        "model_id", "raw_mean", "raw_variance", "scaled_mean", "scaled_scatter", "nonsparse_mean", "nonsparse_scatter",
    }  # fmt: skip
    # Sums depend in their last bit on where an array lies in memory.
    pd.testing.assert_frame_equal(found.layers[common], stored[common], check_exact=False, rtol=1e-12, atol=0)
    assert (found.format, found.framework) == FORMATS[name] == (model["file_format"], model["framework"])
    assert found.parameters == model["parameters"]
    assert [f"{one.name}: {one.reason}" for one in found.skipped] == model["skipped"]
    assert found.untrained == model["untrained"]
    assert found.bytes == path.stat().st_size
    assert found.name == str(path)
    assert found.producer == {"net.onnx": "pytorch 2.0", "net.h5": "keras 2.15.0"}.get(name)


def test_modules_and_mappings_in_memory():
    module, mapping = cnnfilterdb.inspect(network()), cnnfilterdb.inspect(arrays())
    assert (module.format, mapping.format) == ("module", "state_dict")
    assert module.layers["sparsity"].equals(mapping.layers["sparsity"])
    assert module.layers["kind"].tolist() == ["conv", "depthwise", "conv", "conv"]
    assert module.bytes is None
    assert module.title == "Sequential: module, framework pytorch"


def test_names_and_numbers_are_those_of_torchconvquality():
    torch.manual_seed(1)
    layer = nn.Conv2d(16, 64, 3)
    with torch.no_grad():
        layer.weight[:40] *= 1e-5
        layer.weight[..., 0] *= 0.1
    theirs = tcq.measure_layer_quality(layer)
    ours = cnnfilterdb.inspect(nn.Sequential(layer)).layers.iloc[0]
    assert theirs.pop("n") == ours["filters"]
    for name, value in theirs.items():
        assert ours[name] == pytest.approx(value, abs=2e-5), name


def layer_of(weight, **tensors):
    """The labels of a layer of given weights."""
    found = cnnfilterdb.inspect({"a.weight": np.asarray(weight, np.float32), **tensors})
    return set(found.layers["labels"][0].split(", ")) - {""}


def trained(outs=32, ins=16):
    """Kernels of no special kind: smooth, and of many sizes."""
    rng = np.random.default_rng(0)
    mixing = np.diag(np.geomspace(1, 0.2, 9)) @ np.linalg.qr(rng.normal(size=(9, 9)))[0]
    return (rng.normal(size=(outs * ins, 9)) @ mixing).reshape(outs, ins, 3, 3)


def test_labels():
    rng = np.random.default_rng(0)
    weight = trained()
    assert layer_of(weight) == set()
    assert layer_of(rng.normal(size=weight.shape)) == {"random"}
    assert layer_of(np.zeros_like(weight)) == {"zero"}
    sparse = weight.copy()
    sparse[:, :4] *= 1e-6
    assert layer_of(sparse) == {"sparse"}
    repetitive = trained() * 0.01 + rng.normal(size=(32, 16, 1, 1)) * weight[0, 0]
    assert layer_of(repetitive) == {"repetitive"}
    repetitive[:, :4] *= 1e-6
    assert layer_of(repetitive) == {"collapsed"}
    assert layer_of(np.sign(weight) * rng.uniform(1, 2, (32, 16, 1, 1))) >= {"binary"}
    assert layer_of(np.round(weight * 2)) >= {"quantised"}
    low = (rng.normal(size=(512, 7)) @ rng.normal(size=(7, 9))).reshape(weight.shape)
    assert "low rank" in layer_of(low)


def test_every_label_is_explained_in_its_warning():
    found = cnnfilterdb.inspect({"a.weight": np.zeros((4, 4, 3, 3)), "b.weight": np.zeros((4, 4, 3, 3))})
    assert found.warnings == (f"zero: 2 of 2 layers ({LABELS['zero']}): a, b",)


@given(st.integers(1, 8), st.integers(0, 2**32 - 1), st.sampled_from([1e-12, 1.0, 1e12]))
def test_rank_of_kernels_is_that_of_their_matrix(rank, seed, scale):
    rng = np.random.default_rng(seed)
    filters = (scale * rng.normal(size=(60, rank)) @ rng.normal(size=(rank, 9))).astype(np.float32)
    found = stats.kernel_rank(stats.Moments.of(filters, scale=False))
    assert found == np.linalg.matrix_rank(filters.astype(np.float64), tol=1e-5 * np.linalg.norm(filters, 2))
    assert stats.kernel_rank(stats.Moments.of(filters[:8], scale=False)) is None


def test_damaged_layers_are_left_out_with_a_warning():
    state = arrays()
    state["0.weight"][0, 0, 0, :2] = np.nan
    found = cnnfilterdb.inspect(state)
    assert found.layers["layer_name"].tolist() == ["3", "4", "5"]
    assert found.layers["layer"].tolist() == [0, 1, 2]
    assert found.warnings[0].startswith("left out: 0: layer 0 has 2 NaN or infinite weights of 432")
    assert any(line.startswith("excluded 1: 0: ") for line in found.coverage)


def test_coverage_names_what_was_excluded():
    state = arrays() | {"mask.kernel": np.ones((4, 4, 3, 3), np.float32), "fc.weight": np.ones((10, 100), np.float32)}
    found = cnnfilterdb.inspect(state)
    first, contents, excluded = found.coverage
    held = sum(value.size for name, value in arrays().items() if value.ndim == 4)
    assert first.startswith("read 4 of 5 convolution weights, 1 of them 1x1; 352 spatial kernels")
    numbers = sum(np.size(value) for value in state.values())
    assert f"{held:,} of {numbers:,} numbers" in contents
    assert "the rest: 1 excluded (144), 1 matrix (1,000)" in contents
    assert excluded == "excluded 1: mask.kernel: four dimensions, but its name does not end in weight"


def test_files_without_convolutions(tmp_path):
    save_file({"fc.weight": np.ones((10, 10), np.float32)}, tmp_path / "linear.safetensors")
    found = cnnfilterdb.inspect(tmp_path / "linear.safetensors")
    assert found.layers.empty
    assert found.warnings == ("no two-dimensional convolution among its weights",)
    assert "no two-dimensional convolution" in found._repr_html_()


def test_what_is_no_weight_file(tmp_path):
    with pytest.raises(WeightFileError, match="does not exist; expected a weight file"):
        cnnfilterdb.inspect(tmp_path / "missing.pt")
    (tmp_path / "notes.txt").write_text("hello")
    with pytest.raises(WeightFileError, match=r"notes\.txt: "):
        cnnfilterdb.inspect(tmp_path / "notes.txt")
    with pytest.raises(SelectionError, match="inspect: a int was given; expected a path"):
        cnnfilterdb.inspect(3)


def test_what_a_file_says_of_its_producer_is_one_short_printable_line(tmp_path):
    write_keras(tmp_path / "net.h5", b"2\x1b[2J\n" + 1000 * b"a")
    found = cnnfilterdb.inspect(tmp_path / "net.h5")
    assert found.producer.isprintable()
    assert len(found.producer) < 300
    assert f"written by {found.producer}" in found.title


def test_names_of_layers_cannot_break_out_of_a_page():
    found = cnnfilterdb.inspect({"<script>.weight": np.zeros((4, 4, 3, 3))})
    assert "<script>" not in found._repr_html_()


# ----------------------------------------------------------------------------------------------- with a database


def test_percentiles_are_ranks_among_layers_of_the_same_size(sample, tensors):
    found = cnnfilterdb.inspect(tensors["photo-b"])
    comparison = found.compare(sample)
    others = sample.layers(where="kernel = '3x3'")
    for row in comparison.layers.itertuples():
        mine = found.layers.loc[row.layer]
        assert row.reference_layers == len(others)
        for column in ("variance_entropy", "orthogonality"):
            rank = (others[column] < mine[column]).sum() + (others[column] == mine[column]).sum() / 2
            assert getattr(row, f"{column}_percentile") == pytest.approx(100 * rank / others[column].notna().sum())


def test_percentiles_within_a_family(sample, tensors):
    found = cnnfilterdb.inspect(tensors["ct-a"])
    comparison = found.compare(sample, family="U-Net")
    assert comparison.layers["reference_layers"].tolist() == [4, 4, 1]
    assert math.isclose(comparison.layers["sparsity_percentile"][2], 50)
    with pytest.raises(SelectionError, match="no 3x3 or 5x5 layer of the family 'VGG'"):
        found.compare(sample, family="VGG")


def test_the_nearest_models_are_those_of_a_shift(sample, tensors):
    found = cnnfilterdb.inspect(tensors["face"]).compare(sample, top=4)
    matrix = sample.kl_shift("model_id")
    expected = matrix.loc["custom/face"].sort_values(kind="stable").head(4)
    assert found.models["model_id"].tolist() == expected.index.tolist()
    np.testing.assert_allclose(found.models["shift"], expected, atol=1e-9)
    assert found.models["domain"][0] == "faces"
    assert sample.bases()[0].basis_id in repr(found)
    assert "custom/face" in found._repr_html_()


def test_comparisons_that_cannot_be_made(sample, tensors):
    found = cnnfilterdb.inspect(tensors["face"])
    with pytest.raises(SelectionError, match="no 5x5 layer to compare"):
        found.compare(sample, kernel="5x5")
    with pytest.raises(SelectionError, match="top: 0 given"):
        found.compare(sample, top=0)
    with pytest.raises(SelectionError, match="no layer with spatial kernels"):
        cnnfilterdb.inspect({"a.weight": np.ones((4, 4, 1, 1))}).compare(sample)


def test_a_release_is_compared_with_too(release_path, sample, tensors):
    found = cnnfilterdb.inspect(tensors["face"])
    with cnnfilterdb.open(release_path) as release:
        there = found.compare(release)
    pd.testing.assert_frame_equal(there.models, found.compare(sample).models)


def test_a_file_is_read_in_a_child_process(sample, tmp_path, monkeypatch):
    weights = {f"{layer}.weight": sample.layer_weights("custom/face", layer) for layer in (0, 1)}
    save_file(weights, tmp_path / "mine.safetensors")

    def refuse(path, **options):
        raise AssertionError(f"{path}: read in this process")

    expected = cnnfilterdb.inspect(weights).compare(sample).models
    monkeypatch.setattr(formats, "read", refuse)
    found = cnnfilterdb.inspect(tmp_path / "mine.safetensors")
    assert len(found.layers) == 2
    assert found.compare(sample).models.equals(expected)
    monkeypatch.chdir(tmp_path)
    (tmp_path / "notes.pt").write_text("hello")
    with pytest.raises(WeightFileError, match=r"^notes\.pt: "):  # the path as it was given
        cnnfilterdb.inspect("notes.pt")
    monkeypatch.setenv("CNNFILTERDB_ISOLATION", "off")
    with pytest.raises(AssertionError, match="read in this process"):
        cnnfilterdb.inspect(tmp_path / "mine.safetensors")


def test_a_file_is_not_hashed_to_inspect_it(tmp_path, monkeypatch):
    save_file(arrays(), tmp_path / "a.safetensors")
    monkeypatch.setattr("cnnfilterdb.ingest.sources.files.sha256_of", None)
    assert len(cnnfilterdb.inspect(tmp_path / "a.safetensors").layers) == 4
