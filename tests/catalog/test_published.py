"""The published numbers are whole, and agree with one another."""

import numpy as np
import pytest

from cnnfilterdb import catalog


def test_the_basis_of_the_released_data():
    basis = catalog.published()["basis"]
    for name in ("mean", "mean_recomputed", "explained_variance_ratio"):
        assert len(basis[name]) == 9
    ratios = basis["explained_variance_ratio"]
    assert sum(ratios) == pytest.approx(1, abs=1e-6)
    assert ratios == sorted(ratios, reverse=True)
    assert np.abs(np.subtract(basis["mean"], basis["mean_recomputed"])).max() < 0.0011
    for ratios in basis["nonsparse"].values():
        assert sum(ratios) == pytest.approx(1, abs=2e-4)


@pytest.mark.parametrize("by", ["task", "domain", "depth"])
def test_matrices_are_symmetric_and_named_by_the_vocabulary(by):
    shift = catalog.published()["shift"][by]
    matrix = np.array(shift["matrix"])
    assert matrix.shape == (len(shift["labels"]),) * 2
    assert (matrix == matrix.T).all()
    assert (matrix.diagonal() == 0).all()
    if by != "depth":
        # The published order: by ascending mean of the columns, to the precision of the reading.
        assert (np.diff(matrix.mean(axis=0)) > -0.003).all()
        known = {"task": catalog.tasks(), "domain": catalog.domains()}[by]
        assert {name for name, term in known.items() if term.origin == "cvpr2022"} == set(shift["labels"])
