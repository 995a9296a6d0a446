"""Databases without a download: the reference corpus in the package, and an example that is generated on the spot."""

from __future__ import annotations

import atexit
import os
import shutil
import tempfile
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from cnnfilterdb.core.errors import NotADatabaseError
from cnnfilterdb.database.filterdb import FilterDB, create, open
from cnnfilterdb.database.reader import Reader

__all__ = ["example", "reference"]

# Name -> facts, what its kernels are made of, and the shapes of its layers.
_MODELS: dict[str, tuple[dict[str, Any], str, dict[str, tuple[int, int, int, int]]]] = {
    "photos-small": (
        {"domain": "natural", "task": "Classification", "family": "ResNet", "license": "MIT"},
        "edges",
        {"stem": (8, 3, 5, 5), "block1": (16, 8, 3, 3), "head": (4, 16, 1, 1)},
    ),
    "photos-large": (
        {"domain": "natural", "task": "Classification", "family": "ResNet", "license": "MIT"},
        "edges",
        {"stem": (16, 3, 5, 5), "block1": (24, 16, 3, 3), "block2": (24, 24, 3, 3), "head": (4, 24, 1, 1)},
    ),
    "scans": (
        {"domain": "medical ct", "task": "Segmentation", "family": "U-Net", "license": "Apache-2.0"},
        "blobs",
        {"down": (16, 1, 3, 3), "middle": (24, 16, 3, 3), "up": (8, 24, 5, 5), "out": (2, 8, 1, 1)},
    ),
}


def reference() -> Reader:
    """The reference corpus: statistics of the models of the collection ``pypi``, as a part of the package.

    It has the models whose licences permit it, all of their layers with their quality, and for 3x3 kernels the moments,
    a basis and histograms. So comparisons of groups, tests, figures and reports need neither a download nor an import.
    What needs the kernels themselves, such as :meth:`Reader.filters`, is refused; ``cnnfilterdb ingest --collection
    pypi`` imports the same models with their kernels. ``cnnfilterdb.open("reference")`` is the same.

    >>> import cnnfilterdb
    >>> db = cnnfilterdb.reference()
    >>> len(db.models()), len(db.kl_shift("domain"))
    (245, 25)
    >>> db.nearest_groups("domain", "faces", min_models=8, top=2)["shift"].round(3).to_dict()
    {'medical microscopy': 0.01, 'microscopy': 0.011}
    """
    return open("reference")


def example(path: str | Path | None = None) -> FilterDB:
    """A small database with three generated models, to try things on.

    Two models for photographs have kernels like edge detectors, one for CT scans has kernels like blobs; all have some
    noise. There are layers with 3x3, 5x5 and 1x1 kernels. The numbers are the same on every call.

    Args:
        path: A new folder for it; by default a temporary one, which is removed when Python ends.

    Raises:
        NotADatabaseError: Something is already at the path.

    >>> import cnnfilterdb
    >>> db = cnnfilterdb.example()
    >>> db.models()[["model_id", "domain", "conv_layers", "stored_filters"]]
                  model_id      domain  conv_layers  stored_filters
    0  custom/photos-large     natural            4            1008
    1  custom/photos-small     natural            3             152
    2         custom/scans  medical ct            4             592
    """
    target = Path(_temporary()) / "example.db" if path is None else Path(path)
    if target.exists() and not (target.is_dir() and not any(target.iterdir())):
        raise NotADatabaseError(f"{target}: already exists; choose a new folder for the example")
    shutil.copytree(_template(), target, dirs_exist_ok=True)
    return FilterDB(target)


@cache
def _template() -> Path:
    """The folder of the example, made once per process; it is copied for each call."""
    path = Path(_temporary()) / "template.db"
    with create(path) as db:
        for seed, (name, (facts, kind, shapes)) in enumerate(_MODELS.items()):
            rng = np.random.default_rng(seed)
            db.add({f"{layer}.weight": _weight(shape, kind, rng) for layer, shape in shapes.items()}, name, **facts)
        db.index()
    return path


def _weight(shape: tuple[int, int, int, int], kind: str, rng: np.random.Generator) -> npt.NDArray[np.float32]:
    """Kernels that are mixtures of a few patterns of their kind, with noise, (out, in, height, width)."""
    out_channels, in_channels, height, width = shape
    centre = np.reshape([height // 2, width // 2], (2, 1, 1))
    y, x = (np.mgrid[:height, :width] - centre) / max(height, width)
    window = np.exp(-3 * (x**2 + y**2))
    patterns = {
        "edges": [x * window, y * window, (x + y) * window, window],
        "blobs": [window, (1 - 8 * (x**2 + y**2)) * window, x * y * window],
    }[kind]
    basis = np.stack([pattern.ravel() / (np.linalg.norm(pattern) or 1) for pattern in patterns])
    # The first patterns dominate, as the first components do in trained networks.
    mixture = rng.standard_normal((out_channels * in_channels, len(basis))) / np.arange(1, len(basis) + 1)
    kernels = mixture @ basis + 0.15 * rng.standard_normal((out_channels * in_channels, height * width))
    weight: npt.NDArray[np.float32] = (kernels * 0.1).reshape(shape).astype(np.float32)
    return weight


def _temporary() -> str:
    """A temporary folder that is removed when this process ends, and not when one that was forked from it does."""
    path = tempfile.mkdtemp(prefix="cnnfilterdb-example-")
    atexit.register(_remove, path, os.getpid())
    return path


def _remove(path: str, process: int) -> None:
    if os.getpid() == process:
        shutil.rmtree(path, ignore_errors=True)
