"""Runs the notebooks in examples/ and writes their output into them: python scripts/notebooks.py [NOTEBOOK...]."""

from __future__ import annotations

import base64
import io
import sys
from pathlib import Path

import nbformat
from nbclient import NotebookClient
from PIL import Image

EXAMPLES = Path(__file__).parents[1] / "examples"


def executed(path: Path) -> nbformat.NotebookNode:
    """A notebook as it is after all of its cells were run, with nothing in it that changes from run to run.

    Args:
        path: The notebook; it is not changed.

    Raises:
        nbclient.exceptions.CellExecutionError: A cell fails.
    """
    notebook = nbformat.read(path, as_version=4)
    NotebookClient(notebook, timeout=120, record_timing=False, resources={"metadata": {"path": "."}}).execute()
    for cell in notebook.cells:
        cell.pop("execution_count", None)
        if cell.cell_type == "code":
            cell["execution_count"] = None
            for output in cell.outputs:
                if "execution_count" in output:
                    output["execution_count"] = None
                if picture := output.get("data", {}).get("image/png"):
                    output["data"]["image/png"] = _smaller(picture)
    notebook.metadata["language_info"] = {"name": "python"}
    return notebook


def _smaller(picture: str) -> str:
    """A PNG in base64 with a palette of 256 colours, a third of the size."""
    target = io.BytesIO()
    Image.open(io.BytesIO(base64.b64decode(picture))).convert("RGB").quantize(256).save(target, "png", optimize=True)
    return base64.b64encode(target.getvalue()).decode()


if __name__ == "__main__":
    for path in map(Path, sys.argv[1:]) if sys.argv[1:] else sorted(EXAMPLES.glob("*.ipynb")):
        nbformat.write(executed(path), path)
