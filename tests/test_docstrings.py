"""The examples in the docstrings of every module are true."""

import doctest
import pkgutil
from importlib import import_module

import pytest

import cnnfilterdb
import cnnfilterdb.catalog
import cnnfilterdb.ingest

# Two of the packages lie in folders of their own, which a walk from the top of an editable install does not see.
PACKAGES = (cnnfilterdb, cnnfilterdb.ingest, cnnfilterdb.catalog)
MODULES = sorted(
    {package.__name__ for package in PACKAGES}
    | {
        module.name
        for package in PACKAGES
        for module in pkgutil.walk_packages(package.__path__, f"{package.__name__}.")
    }
)


def test_all_parts_of_the_package_are_found():
    assert {"cnnfilterdb.stats.basis", "cnnfilterdb.ingest.sources.pypi", "cnnfilterdb.catalog.reader"} <= set(MODULES)


@pytest.mark.parametrize("name", MODULES)
def test_examples(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert doctest.testmod(import_module(name)).failed == 0
