"""Formats keep the contract that the package publishes for those who add one."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from safetensors.numpy import save_file

from cnnfilterdb.core.errors import WeightFileError
from cnnfilterdb.ingest import formats
from cnnfilterdb.testing import FormatTests


def tensors():
    rng = np.random.default_rng(0)
    return {name: rng.normal(size=shape).astype(np.float32) for name, shape in {
        "a": (4, 3, 3, 3), "b": (8, 4, 5, 5), "c": (2, 8, 1, 1),
    }.items()}  # fmt: skip


class TestSafetensors(FormatTests):
    def format(self):
        return formats.registered()["safetensors"]

    def examples(self, folder):
        save_file({f"{name}.weight": value for name, value in tensors().items()}, folder / "net.safetensors")
        return {folder / "net.safetensors": tensors()}


class TestNpz(FormatTests):
    def format(self):
        return formats.registered()["npz"]

    def examples(self, folder):
        arrays = {f"{name}.weight": value for name, value in tensors().items()}
        arrays |= {f"{name}.bias": np.zeros(len(value), np.float32) for name, value in tensors().items()}
        np.savez(folder / "plain.npz", **arrays)
        np.savez_compressed(folder / "small.npz", **arrays)
        return {folder / "plain.npz": tensors(), folder / "small.npz": tensors()}


class TestTorch(FormatTests):
    def format(self):
        return formats.registered()["torch"]

    def examples(self, folder):
        state = {f"{name}.weight": torch.from_numpy(value) for name, value in tensors().items()}
        torch.save(state, folder / "net.pt")
        torch.save(state, folder / "old.pt", _use_new_zipfile_serialization=False)
        return {folder / "net.pt": tensors(), folder / "old.pt": tensors()}


@pytest.mark.parametrize(
    "error",
    [ValueError("two  lines\nof it"), KeyError("w"), IndexError(), OverflowError(), RecursionError(), MemoryError()],
)
def test_whatever_a_weight_raises_when_it_is_read_is_damage(tmp_path, monkeypatch, error):
    """Weights are read long after the file was opened, by the code of any format."""

    def fails():
        raise error

    path = tmp_path / "weights.safetensors"
    save_file({"layer.weight": np.zeros((2, 1, 3, 3), np.float32)}, path)
    whole = formats.read(path)
    broken = replace(whole, layers=tuple(replace(layer, read=fails) for layer in whole.layers))
    monkeypatch.setattr(formats, "_printable", lambda path, fmt: broken)
    (layer,) = formats.read(path).layers
    with pytest.raises(WeightFileError) as caught:
        layer.read()
    what = "reading this weight takes more memory" if isinstance(error, MemoryError) else "a damaged weight ("
    assert str(caught.value).startswith(f"{path}: layer: {what}")
    assert "\n" not in str(caught.value)
