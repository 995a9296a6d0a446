"""The range of the coefficients: that of all filters, though those that cannot widen it are not read."""

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import cnnfilterdb
from cnnfilterdb.analysis import bases
from cnnfilterdb.analysis.bases import coefficient_range
from cnnfilterdb.stats import Basis, Moments


def weight(rng, count, spread):
    """Filters whose norm, scaled, is near 3 for a small spread, and smaller for a larger one."""
    sign = rng.choice([-1, 1], (count, 1, 1, 1))
    return (sign * (1 + spread * rng.standard_normal((count, 1, 3, 3)))).astype(np.float32)


@pytest.fixture(scope="module")
def database(tmp_path_factory):
    rng = np.random.default_rng(0)
    with cnnfilterdb.create(tmp_path_factory.mktemp("range") / "my.db") as db:
        for model in range(6):
            spreads = [3.0, 0.05, 2.0, 1.0][: 1 + model % 4]
            tensors = {f"conv{n}.weight": weight(rng, 50 + 9 * n, spread) for n, spread in enumerate(spreads)}
            db.add(tensors, name=f"m{model}")
        yield db


def brute(db, basis, rows):
    frame = db.filters(kernel="3x3")
    wanted = set(zip(rows["model_id"].to_pylist(), rows["layer"].to_pylist(), strict=True))
    chosen = [pair in wanted for pair in zip(frame["model_id"], frame["layer"], strict=True)]
    found = basis.project(frame.loc[chosen, [f"w{i}" for i in range(9)]].to_numpy(np.float32))
    return found.min(), found.max()


@given(st.data())
@settings(max_examples=25)
def test_the_range_is_that_of_all_filters(database, data):
    layers = database._store.layers().sort_by([("model_id", "ascending"), ("layer", "ascending")])
    count = layers.num_rows
    rows = layers.take(sorted(data.draw(st.sets(st.integers(0, count - 1), min_size=1), "layers")))
    if data.draw(st.booleans(), "some norms are unknown"):
        norms = [data.draw(st.sampled_from([None, np.nan, norm])) for norm in rows["scaled_norm_max"].to_pylist()]
        place = rows.schema.get_field_index("scaled_norm_max")
        rows = rows.set_column(place, rows.field(place), pa.array(norms, pa.float64()))
    seed = data.draw(st.integers(0, 99), "basis")
    basis = Basis.fit(Moments.of(np.random.default_rng(seed).normal(size=(90, 9)).astype(np.float32)), "3x3")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(bases, "_FIRST", data.draw(st.sampled_from([1, 60, 10**6]), "filters at first"))
        steps = []
        found = coefficient_range(database._store, basis, rows, lambda *step: steps.append(step))
    assert found == brute(database, basis, rows)
    done = [step[1] for step in steps]
    assert done == sorted(done)
    assert steps[-1][1:] == (sum(rows["filters"].to_pylist()),) * 2


def test_layers_whose_filters_are_too_short_are_not_read(database, monkeypatch):
    basis, layers = database.basis(), database._store.layers()
    read = []
    scan = bases.scan

    def counted(files, kernel, work, *, layers, **options):
        read.extend((model_id, layer) for model_id in layers for layer in sorted(layers[model_id]))
        return scan(files, kernel, work, layers=layers, **options)

    monkeypatch.setattr(bases, "scan", counted)
    monkeypatch.setattr(bases, "_FIRST", 1)
    assert coefficient_range(database._store, basis, layers) == (basis.low, basis.high)
    norms = dict(zip(zip(layers["model_id"].to_pylist(), layers["layer"].to_pylist(), strict=True),
                     layers["scaled_norm_max"].to_pylist(), strict=True))  # fmt: skip
    reach = basis.reach(basis.low, basis.high)
    needed = {key for key, norm in norms.items() if norm >= reach}
    assert needed <= set(read)
    assert len(read) == len(set(read)) < len(norms) / 2
