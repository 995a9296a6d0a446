"""Run command lines in this process, and a checkpoint to add."""

import numpy as np
import pytest
from safetensors.numpy import save_file

from cnnfilterdb.cli import main


@pytest.fixture
def run(monkeypatch, capsys):
    """Run a line; returns (exit status, standard output, standard error)."""

    def call(*args: object) -> tuple[int, str, str]:
        monkeypatch.setattr("sys.argv", ["cnnfilterdb", *map(str, args)])
        status = 0
        try:
            main()
        except SystemExit as exit_:
            status = int(exit_.code or 0)
        out, err = capsys.readouterr()
        return status, out, err

    return call


@pytest.fixture
def checkpoint(tmp_path):
    rng = np.random.default_rng(0)
    path = tmp_path / "mine.safetensors"
    save_file({"a.weight": rng.normal(size=(8, 3, 3, 3)).astype(np.float32)}, path)
    return path
