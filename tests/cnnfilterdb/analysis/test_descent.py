"""Lineage: chains of real fine-tuning are recovered; directions come from what is documented."""

import copy

import numpy as np
import pandas as pd
import pytest
from click.testing import CliRunner
from matplotlib.image import imread

import cnnfilterdb
from cnnfilterdb.cli import cli
from cnnfilterdb.core.errors import SelectionError

torch = pytest.importorskip("torch")

#: model -> parent
TREE = {"root": None, "left": "root", "right": "root", "left-a": "left", "left-b": "left", "right-a": "right"}


def network(seed):
    torch.manual_seed(seed)
    nn = torch.nn
    return nn.Sequential(
        nn.Conv2d(1, 16, 3), nn.ReLU(), nn.Conv2d(16, 32, 3), nn.ReLU(), nn.Conv2d(32, 32, 3), nn.ReLU(),
        nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(32, 10),
    )  # fmt: skip


def trained(net, images, labels, seed, steps):
    net = copy.deepcopy(net)
    generator = torch.Generator().manual_seed(seed)
    optimiser = torch.optim.Adam(net.parameters(), 2e-3)
    for _ in range(steps):
        batch = torch.randint(0, len(images), (32,), generator=generator)
        optimiser.zero_grad()
        torch.nn.functional.cross_entropy(net(images[batch]), labels[batch]).backward()
        optimiser.step()
    return net


@pytest.fixture(scope="module")
def family(tmp_path_factory):
    """A network trained on digits, children that were fine-tuned to other tasks, grandchildren, and strangers."""
    from sklearn.datasets import load_digits

    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    digits, classes = load_digits(return_X_y=True)
    images = torch.tensor(digits / 16, dtype=torch.float32).reshape(-1, 1, 8, 8)
    classes = torch.tensor(classes)
    nets = {"root": trained(network(0), images, classes, 0, 150)}
    db = cnnfilterdb.create(tmp_path_factory.mktemp("descent") / "models.db")
    for number, (name, parent) in enumerate(TREE.items()):
        if parent is not None:
            turned = torch.rot90(images, number % 4, (2, 3)) if number % 4 else 1 - images
            other = torch.randperm(10, generator=torch.Generator().manual_seed(number))[classes]
            nets[name] = trained(nets[parent], turned, other, number, 60)
        facts = {"training_dataset": f"task {name}", "pretraining_dataset": parent and f"task {parent}"}
        db.add(nets[name], name, domain="natural", new_words=True, **facts)
    for seed in (1, 2):
        db.add(trained(network(seed), images, classes, seed, 150), f"stranger{seed}", domain="natural")
    torch.set_num_threads(threads)
    yield db
    db.close()


def short(frame):
    return {row.model.partition("/")[2]: None if pd.isna(row.parent) else row.parent.partition("/")[2]
            for row in frame.itertuples()}  # fmt: skip


def test_a_tree_of_fine_tuned_networks_is_recovered(family):
    found = family.lineage()
    assert short(found) == TREE
    assert found["tree"].tolist() == [0] * 6
    edges = found[found["parent"].notna()]
    assert set(edges["direction"]) == {"known"}
    assert set(edges["evidence"]) == {"pretraining"}
    assert edges["layers"].tolist() == [3] * 5
    for row in edges.itertuples():  # against the weights themselves
        one = family.diff(row.parent, row.model).attrs["total"]
        assert row.distance == pytest.approx(one["distance"], rel=0.3)
        assert row.cosine == pytest.approx(one["cosine"], abs=0.1)


def test_without_documents_the_same_models_are_joined_and_no_direction_is_claimed(family, tmp_path):
    with cnnfilterdb.create(tmp_path / "bare.db") as db:
        db.merge(family.path)
        db.annotate("custom/*", training_dataset=None, pretraining_dataset=None)
        found = db.lineage()
        pairs = {frozenset(pair) for pair in short(found).items() if None not in pair}
        assert pairs == {frozenset(pair) for pair in TREE.items() if None not in pair}
        assert set(found["direction"].dropna()) == {"unknown"}
        assert found["evidence"].isna().all()
        for kurtosis in ("rises", "falls"):
            hinted = db.lineage(kurtosis=kurtosis)
            assert set(hinted["direction"].dropna()) <= {"likely", "unknown"}
            assert "likely" in set(hinted["direction"])
            assert {frozenset(pair) for pair in short(hinted).items() if None not in pair} == pairs
        with pytest.raises(SelectionError, match="'up' given; expected rises or falls"):
            db.lineage(kurtosis="up")


def test_an_untrained_network_is_an_ancestor(tmp_path):
    rng = np.random.default_rng(0)
    start = rng.normal(size=(32, 16, 3, 3)).astype(np.float32)
    with cnnfilterdb.create(tmp_path / "x.db") as db:
        db.add({"a.weight": start}, "start")
        mixing = np.eye(9) + 0.2 * rng.normal(size=(9, 9))
        learnt = (start.reshape(-1, 9) @ mixing).reshape(start.shape).astype(np.float32)
        db.add({"a.weight": learnt}, "learnt")
        assert db.models()["untrained"].tolist() == [False, True]
        (edge,) = db.lineage().dropna(subset=["parent"]).itertuples()
        assert (edge.parent, edge.model, edge.direction, edge.evidence) == (
            "custom/start", "custom/learnt", "known", "untrained",
        )  # fmt: skip


def test_nothing_is_related_to_constants_zeros_or_nothing(tmp_path):
    rng = np.random.default_rng(0)
    weight = rng.normal(size=(16, 8, 3, 3)).astype(np.float32)
    with cnnfilterdb.create(tmp_path / "x.db") as db:
        for ask in (db.related_models, db.lineage):
            assert ask().empty
        for name, one in {"zeros": 0 * weight, "zeros2": 0 * weight, "even": 0 * weight + 1, "one": weight}.items():
            db.add({"a.weight": one}, name)
        assert db.related_models().empty
        assert db.lineage().empty
        for name, factor in {"twin": 1, "huge": 1e30, "tiny": 1e-38, "negative": -1}.items():
            db.add({"a.weight": weight * np.float32(factor)}, name)
        found = db.related_models()
        assert set(found["model_a"]) | set(found["model_b"]) == {f"custom/{name}" for name in
                                                                  ("one", "twin", "huge", "tiny")}  # fmt: skip
        assert found["cosine"].tolist() == pytest.approx([1.0] * 6)
        lineage = db.lineage().set_index("model")
        assert lineage.loc["custom/twin", "distance"] == pytest.approx(0, abs=1e-6)
        assert np.isfinite(lineage["distance"].dropna().to_numpy(float)).all()
        assert db.verify() == []


def test_the_figure_and_the_verb(family, tmp_path):
    for style in ("screen", "paper"):
        words = ["plot", "lineage", "--db", str(family.path), "--style", style, "-o", str(tmp_path / "x.png")]
        assert CliRunner().invoke(cli, words).exit_code == 0
        assert imread(tmp_path / "x.png").std() > 0.01
    axes = family.plot.lineage().axes[0]
    drawn = {text.get_text() for text in axes.texts}
    assert {f"custom/{name}" for name in TREE} <= drawn
    lines = [line for line in axes.lines if len(line.get_xdata()) == 3]
    lengths = sorted(line.get_xdata()[2] - line.get_xdata()[0] for line in lines)
    assert lengths == pytest.approx(sorted(family.lineage()["distance"].dropna()))
    done = CliRunner().invoke(cli, ["lineage", "--db", str(family.path), "--format", "csv"])
    assert done.stdout.splitlines()[-6].startswith("0,custom/root,")
    with cnnfilterdb.example() as db, pytest.raises(SelectionError, match="no two of these models are related"):
        db.plot.lineage()
