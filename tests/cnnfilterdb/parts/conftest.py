"""The models of the sample database in three parts: a folder, a release in a folder, and one in an object store."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import fsspec
import pytest

import cnnfilterdb

#: The models of each part. Kernels of 5x5 and of 7x7 are in one part each.
MODELS = {"folder": ("ct-a", "photo-b"), "release": ("ct-b", "photo-a"), "s3": ("face",)}

#: Where the release in the object store is.
ADDRESS = "s3://parts/face"


@pytest.fixture(scope="session")
def part_of(sample_path: Path) -> Callable[[Path, Sequence[str]], Path]:
    """Makes a database of some models of the sample, with bases of its own."""

    def make(path: Path, names: Sequence[str]) -> Path:
        chosen = ", ".join(f"'{name}'" for name in names)
        with cnnfilterdb.create(path) as db:
            db.merge(sample_path, where=f"name IN ({chosen})")
            db.index(refit=True, prune=True)
        return path

    return make


@pytest.fixture(scope="session")
def part_paths(tmp_path_factory, part_of, object_store) -> dict[str, Path | str]:
    """Where the parts are, by name. Do not write to them."""
    root = tmp_path_factory.mktemp("parts")
    found: dict[str, Path | str] = {}
    for name, models in MODELS.items():
        path = part_of(root / f"{name}.db", models)
        if name != "folder":
            with cnnfilterdb.open(path) as db:
                db.publish("owner/part", folder=root / name, version="1.0.0")
            path = root / name
        found[name] = path
    store = fsspec.filesystem("s3", **object_store)
    store.mkdir("parts")
    store.put(f"{found['s3']}/", "parts/face/", recursive=True)
    return {**found, "s3": ADDRESS}


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    """What is derived of parts is not kept from one test to the next."""
    monkeypatch.setenv("CNNFILTERDB_CACHE", str(tmp_path / "cache"))


@pytest.fixture(scope="module")
def parts(part_paths, object_store, tmp_path_factory):
    """The three parts as one."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("CNNFILTERDB_CACHE", str(tmp_path_factory.mktemp("cache")))
        remote = cnnfilterdb.open(part_paths["s3"], storage_options=object_store)
        db = cnnfilterdb.open({"folder": part_paths["folder"], "release": part_paths["release"], "s3": remote})
        db.bases()
    with db:
        yield db
