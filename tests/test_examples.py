"""The notebooks in examples/ run, and print what is written in them."""

from __future__ import annotations

import importlib.util
import warnings
from pathlib import Path

import pytest

pytestmark = pytest.mark.thorough

nbformat = pytest.importorskip("nbformat")
pytest.importorskip("nbclient")
pytest.importorskip("ipykernel")

ROOT = Path(__file__).parents[1]
NOTEBOOKS = sorted((ROOT / "examples").glob("*.ipynb"))


@pytest.fixture(scope="module")
def executed():
    """The script that writes the output into the notebooks."""
    specification = importlib.util.spec_from_file_location("notebooks", ROOT / "scripts/notebooks.py")
    module = importlib.util.module_from_spec(specification)
    specification.loader.exec_module(module)
    return module.executed


def printed(notebook):
    """What each cell prints; of a picture, that there is one."""
    found = []
    for cell in notebook.cells:
        for output in cell.get("outputs", []):
            data = output.get("data", {"text/plain": output.get("text")})
            found.append("picture" if "image/png" in data else data["text/plain"])
    return found


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_a_notebook_prints_what_is_written_in_it(path, executed, tmp_path, monkeypatch):
    monkeypatch.setenv("CNNFILTERDB_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("JUPYTER_PLATFORM_DIRS", "1")
    monkeypatch.setenv("IPYTHONDIR", str(tmp_path / "ipython"))
    written = nbformat.read(path, as_version=4)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of Jupyter about itself
        found = executed(path)
    assert printed(found) == printed(written), f"run python scripts/notebooks.py {path.relative_to(ROOT)}"
    assert "picture" in printed(found)


def test_every_notebook_is_linked_and_small():
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    manual = (ROOT / "docs/index.md").read_text(encoding="utf-8")
    assert NOTEBOOKS
    for path in NOTEBOOKS:
        assert f"examples/{path.name}" in readme
        assert f"examples/{path.name}" in manual
        assert path.stat().st_size < 400_000
        assert "/home/" not in (text := path.read_text(encoding="utf-8"))
        assert "/tmp/" not in text
