"""A checkpoint to add."""

import numpy as np
import pytest
from safetensors.numpy import save_file


@pytest.fixture
def checkpoint(tmp_path):
    rng = np.random.default_rng(0)
    path = tmp_path / "mine.safetensors"
    save_file({"a.weight": rng.normal(size=(8, 3, 3, 3)).astype(np.float32)}, path)
    return path
