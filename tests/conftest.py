"""Fixtures that several parts of the suite share."""

from __future__ import annotations

import os
import shutil
import socket
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, settings
from scipy.stats import entropy
from sklearn.decomposition import PCA

import cnnfilterdb

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
TESTS = Path(__file__).parent

#: Files that take longest. A process runs the tests of one file, and starts these first, so that none runs alone at the
#: end.
LONG = (
    "crash/test_crash.py",
    "cnnfilterdb/store/test_hostile_folders.py",
    "ingest/sources/test_timm.py",
    "test_demo.py",
    "cnnfilterdb/store/test_gathered.py",
    "cnnfilterdb/store/test_readers.py",
    "cnnfilterdb/store/test_every_damage.py",
    "ingest/formats/test_hostile_files.py",
    "ingest/formats/test_limits.py",
    "cnnfilterdb/explore/test_browser.py",
    "fuzz/test_guided.py",
    "ingest/formats/test_hostile_graphs.py",
    "crash/test_conditions.py",
    "cnnfilterdb/core/test_everywhere.py",
    "cnnfilterdb/store/test_folder.py",
    "cnnfilterdb/study/test_study.py",
    "cnnfilterdb/store/test_damaged_index.py",
    "cnnfilterdb/store/test_index.py",
    "cnnfilterdb/sql/test_sql.py",
    "cnnfilterdb/parts/test_answers.py",
    "test_manual.py",
    "test_examples.py",
    "test_cluster_examples.py",
    "cnnfilterdb/cli/test_verbs.py",
    "cnnfilterdb/publish/test_publishing.py",
    "cnnfilterdb/publish/test_faults.py",
    "cnnfilterdb/parts/test_parts.py",
    "cnnfilterdb/release/test_release.py",
    "cnnfilterdb/cli/test_inspect.py",
    "ingest/network/test_extract.py",
    "cnnfilterdb/plots/test_report.py",
    "test_docstrings.py",
)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Put the files that take longest first."""
    place = {TESTS / name: number for number, name in enumerate(LONG)}
    assert all(path.exists() for path in place), "a file of LONG was renamed"
    items.sort(key=lambda item: place.get(item.path, len(place)))


# One profile for all tests: none depends on how fast the machine is, and examples share what a fixture has made.
settings.register_profile(
    "cnnfilterdb", deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow, HealthCheck.differing_executors],
)  # fmt: skip
settings.load_profile("cnnfilterdb")


@pytest.fixture(scope="session", autouse=True)
def unflushed():
    """In the process of the tests nothing waits for the disk: no test takes its power away.

    Those of tests/crash, which do, have processes of their own.
    """
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "fsync", lambda descriptor: os.fstat(descriptor) and None)
        yield


def _state_dict(seed: int, sizes: dict[str, tuple[int, int, int, int]], smooth: float) -> dict[str, np.ndarray]:
    """Weights with some structure: random kernels mixed with their neighbours, differently for each model."""
    rng = np.random.default_rng(seed)
    tensors: dict[str, np.ndarray] = {}
    for name, shape in sizes.items():
        weight = rng.normal(size=shape).astype(np.float32)
        size = shape[2] * shape[3]
        mixing = np.eye(size) + smooth * rng.normal(size=(size, size)) / np.sqrt(size)
        weight = (weight.reshape(-1, size) @ mixing).astype(np.float32).reshape(shape)
        tensors[f"{name}.weight"] = weight * rng.uniform(0.01, 2)
        tensors[f"{name}.bias"] = np.zeros(shape[0], np.float32)
    return tensors


MODELS = {
    "ct-a": ("medical ct", "Segmentation", "U-Net", {"enc": (16, 3, 3, 3), "mid": (32, 16, 3, 3), "up": (8, 32, 5, 5)}),
    "ct-b": ("medical ct", "Segmentation", "U-Net", {"enc": (8, 1, 3, 3), "mid": (24, 8, 3, 3)}),
    "photo-a": (
        "natural",
        "Classification",
        "ResNet",
        {"stem": (16, 3, 7, 7), "a": (64, 16, 3, 3), "b": (16, 64, 1, 1)},
    ),
    "photo-b": ("natural", "Denoising", "DnCNN", {"a": (32, 3, 3, 3), "b": (32, 32, 3, 3), "c": (3, 32, 3, 3)}),
    "face": ("faces", "Face Detection", "MTCNN", {"a": (10, 3, 3, 3), "b": (16, 10, 3, 3)}),
}


@pytest.fixture(scope="session")
def tensors() -> dict[str, dict[str, np.ndarray]]:
    """The weights of the models of the sample database: name -> tensors."""
    return {name: _state_dict(i, sizes, 0.5 * i) for i, (name, (*_, sizes)) in enumerate(MODELS.items())}


@pytest.fixture(scope="session")
def sample_path(tmp_path_factory: pytest.TempPathFactory, tensors) -> Path:
    """Folder of a database of five small models in three domains, indexed. Do not write to it: copy it."""
    path = tmp_path_factory.mktemp("databases") / "sample.db"
    with cnnfilterdb.create(path) as db:
        for name, (domain, task, family, _) in MODELS.items():
            db.add(tensors[name], name, domain=domain, task=task, family=family, license="MIT", new_words=True)
        db.index()
    return path


@pytest.fixture
def sample(sample_path):
    """The sample database, opened."""
    with cnnfilterdb.open(sample_path) as db:
        yield db


@pytest.fixture(scope="session")
def object_store():
    """An S3 server on loopback."""
    server_module = pytest.importorskip("moto.server")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    server = server_module.ThreadedMotoServer(ip_address="127.0.0.1", port=port, verbose=False)
    server.start()
    yield {"endpoint_url": f"http://127.0.0.1:{port}", "key": "k", "secret": "s"}
    server.stop()


def notebook_shift(groups: dict[object, np.ndarray], everything: np.ndarray, recipe: str = "cvpr2022") -> np.ndarray:
    """The notebook's method, step by step and all in memory: groups of raw filters (n, k) -> matrix of shifts."""

    def scaled(filters: np.ndarray) -> np.ndarray:
        peak = np.abs(filters).max(axis=1, keepdims=True)
        peak[peak == 0] = 1
        return (filters / peak).astype(np.float64)

    pca = PCA(n_components=everything.shape[1])
    coefficients = pca.fit_transform(scaled(everything))
    limits = (coefficients.min(), coefficients.max()) if recipe == "cvpr2022" else (-3, 3)
    size = len(pca.components_)
    weights = pca.explained_variance_ratio_ if recipe == "cvpr2022" else np.full(size, 1 / size)
    probabilities = {}
    for label, filters in groups.items():
        projected = pca.transform(scaled(filters))
        for i in range(size):
            density, _ = np.histogram(projected[:, i], bins=70, range=limits, density=True)
            density[density == 0] = np.finfo(np.float32).eps
            probabilities[label, i] = density / density.sum()
    labels = list(groups)
    matrix = np.zeros((len(labels), len(labels)))
    for row, first in enumerate(labels):
        for column, second in enumerate(labels):
            for i in range(size):
                p, q = probabilities[first, i], probabilities[second, i]
                matrix[row, column] += weights[i] * (entropy(p, q) + entropy(q, p))
    return matrix


@pytest.fixture(scope="session")
def notebook():
    """The papers' method as an oracle: see notebook_shift."""
    return notebook_shift


@pytest.fixture(scope="session")
def release_path(tmp_path_factory: pytest.TempPathFactory, sample_path: Path) -> Path:
    """Folder of a release of the sample database. Do not write to it: copy it."""
    path = tmp_path_factory.mktemp("releases") / "sample"
    with cnnfilterdb.open(sample_path) as db:
        db.publish("owner/sample", folder=path, version="1.0.0")
    return path


@pytest.fixture(scope="module")
def browser():
    """Chromium, for the tests of one module: while it runs, no other event loop can run in this thread."""
    if CHROMIUM is None:
        pytest.skip("needs Chromium: apt-get install chromium")
    sync_api = pytest.importorskip("playwright.sync_api")
    with sync_api.sync_playwright() as playwright:
        launched = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield launched
        launched.close()


@pytest.fixture(scope="session")
def barriers():
    """What axe-core finds serious in a page that is shown: one line per finding."""
    axe = pytest.importorskip("axe_playwright_python.sync_playwright").Axe()

    def found(page) -> list[str]:
        # axe evaluates a script of its own, which the content policy of the page does not apply to.
        return [
            f"{one['id']}: {node['html'][:200]}: {node.get('failureSummary', '')[:300]}"
            for one in axe.run(page).response["violations"]
            if one["impact"] in ("serious", "critical")
            for node in one["nodes"][:3]
        ]

    return found
