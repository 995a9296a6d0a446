"""LoRA and DoRA merged into convolutions, against the formula of peft computed by PyTorch."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import save_file

import cnnfilterdb
from cnnfilterdb.core.errors import SelectionError, WeightFileError
from cnnfilterdb.ingest import formats
from cnnfilterdb.ingest.network.memory import weights_in_memory


def factors(layer="conv", size=3, rank=4, adapter="default"):
    torch.manual_seed(0)
    name = f".{adapter}" if adapter else ""
    return {
        f"{layer}.base_layer.weight": torch.randn(16, 8, size, size),
        f"{layer}.lora_A{name}.weight": torch.randn(rank, 8, size, size),
        f"{layer}.lora_B{name}.weight": torch.randn(16, rank, 1, 1),
    }


@pytest.mark.parametrize(
    "names",
    [
        {"c.oft_blocks": (4, 8, 8)},
        {"c.base_layer.weight": (16, 8, 3, 3), "c.vera_lambda_b.default": (16,)},
        {"c.base_layer.weight": (16, 8, 3, 3), "c.lora_A": (24, 24), "c.lora_B": (48, 24)},
        {"lora_unet_c.diff": (16, 8, 3, 3)},
        {"lora_unet_c.hada_t1": (4, 4, 3, 3), "lora_unet_c.hada_w1_a": (16, 4)},
        {"c.base_layer.weight": (16, 8, 3, 3), "c.ia3_l.default": (1, 16, 1, 1)},
    ],
    ids=lambda names: list(names)[-1],
)
def test_adapters_of_every_kind_are_reported(tmp_path, names):
    save_file({name: torch.ones(shape) for name, shape in names.items()}, tmp_path / "a.safetensors")
    weights = formats.read(tmp_path / "a.safetensors")
    assert len(weights.layers) == sum("base_layer" in name for name in names)
    assert any("adapter" in entry.reason for entry in weights.skipped)


def delta(down, up, scaling):
    """peft.tuners.lora.layer.Conv2d.get_delta_weight."""
    if down.shape[2:] == (1, 1):
        return (up.squeeze(3).squeeze(2) @ down.squeeze(3).squeeze(2)).unsqueeze(2).unsqueeze(3) * scaling
    return F.conv2d(down.permute(1, 0, 2, 3), up).permute(1, 0, 2, 3) * scaling


def only(weights):
    (layer,) = weights.layers
    assert weights.skipped == ()
    return layer.read()


@pytest.mark.parametrize("size", [1, 3])
@pytest.mark.parametrize("adapter", ["default", ""])
def test_lora(size, adapter):
    base, down, up = (tensors := factors(size=size, adapter=adapter)).values()
    merged = only(weights_in_memory(tensors, "add", merge_adapters=0.5))
    np.testing.assert_allclose(merged, (base + delta(down, up, 0.5)).numpy(), rtol=1e-5, atol=1e-6)
    plain = weights_in_memory(tensors, "add")
    assert np.array_equal(plain.layers[0].read(), base.numpy())
    assert len(plain.skipped) == 2


def test_dora():
    base, down, up = (tensors := factors()).values()
    length = torch.rand(1, 16, 1, 1) + 0.5
    tensors["conv.lora_magnitude_vector.default.weight"] = length
    changed = base + delta(down, up, 2.0)
    # peft.tuners.lora.dora: the norm of each output channel, as a vector (1, out, 1, 1)
    norm = changed.norm(p=2, dim=(1, 2, 3), keepdim=True).transpose(1, 0)
    expected = (length / norm).view(-1, 1, 1, 1) * changed
    merged = only(weights_in_memory(tensors, "add", merge_adapters=2.0))
    np.testing.assert_allclose(merged, expected.numpy(), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(("rslora", "scaling"), [(False, 2.0), (True, 4.0)])
def test_the_scale_is_that_of_the_configuration_beside_the_file(tmp_path, rslora, scaling):
    tensors = factors()
    base, down, up = tensors.values()
    save_file(tensors, tmp_path / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(WeightFileError, match=r"put adapter_config\.json beside it or pass the scale"):
        formats.read(tmp_path / "model.safetensors", merge_adapters=True)
    config = tmp_path / "adapter_config.json"
    config.write_text(json.dumps({"r": 4, "lora_alpha": 8, "use_rslora": rslora}))
    merged = only(formats.read(tmp_path / "model.safetensors", merge_adapters=True))
    np.testing.assert_allclose(merged, (base + delta(down, up, scaling)).numpy(), rtol=1e-5, atol=1e-6)
    db = cnnfilterdb.create(tmp_path / "a.db")
    db.add(tmp_path / "model.safetensors", "merged", merge_adapters=True)
    assert np.array_equal(db.layer_weights("custom/merged", 0), merged)
    config.write_text(json.dumps({"r": 4, "lora_alpha": 8, "rank_pattern": {"conv": 2}}))
    with pytest.raises(WeightFileError, match="different ranks or scales"):
        formats.read(tmp_path / "model.safetensors", merge_adapters=True)


def test_the_scale_is_that_of_alpha():
    base, down, up = (tensors := factors()).values()
    names = ("conv.weight", "conv.lora_down.weight", "conv.lora_up.weight")
    tensors = dict(zip(names, tensors.values(), strict=True)) | {"conv.alpha": torch.tensor(8.0)}
    merged = only(weights_in_memory(tensors, "add", merge_adapters=True))
    np.testing.assert_allclose(merged, (base + delta(down, up, 2.0)).numpy(), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"conv.base_layer.weight": None}, "the layer of an adapter is not in the file"),
        ({"conv.lora_B.default.weight": torch.ones(16, 3, 1, 1)}, "do not fit a layer of shape"),
        ({"conv.lora_A.other.weight": torch.ones(4, 8, 3, 3)}, "has several adapters"),
        ({"conv.lora_magnitude_vector": torch.ones(3)}, "do not fit a layer of shape"),
    ],
)
def test_adapters_that_cannot_be_merged(change, message):
    tensors = {name: tensor for name, tensor in (factors() | change).items() if tensor is not None}
    with pytest.raises(WeightFileError, match=message):
        weights_in_memory(tensors, "add", merge_adapters=1.0)


def test_a_scale_that_is_no_number():
    with pytest.raises(SelectionError, match="expected True, or the scale as a number"):
        weights_in_memory(factors(), "add", merge_adapters="yes")
