"""The examples in the docstrings of every module are true, and every public method has one."""

import doctest
import inspect
import pkgutil
from importlib import import_module

import pytest

import cnnfilterdb
import cnnfilterdb.catalog
import cnnfilterdb.ingest
from cnnfilterdb.plots.figures import Figures

# Two of the packages are in folders of their own, which a walk from the top of an editable install does not see.
PACKAGES = (cnnfilterdb, cnnfilterdb.ingest, cnnfilterdb.catalog)
MODULES = sorted(
    {package.__name__ for package in PACKAGES}
    | {
        module.name
        for package in PACKAGES
        for module in pkgutil.walk_packages(package.__path__, f"{package.__name__}.")
    }
)

#: Modules whose examples use ``db``, which is the example database.
ABOUT_A_DATABASE = {
    "cnnfilterdb.database.filterdb",
    "cnnfilterdb.database.imports",
    "cnnfilterdb.plots.figures",
    "cnnfilterdb.database.reader",
    "cnnfilterdb.questions.conclusions",
    "cnnfilterdb.questions.lineage",
    "cnnfilterdb.questions.statistics",
    "cnnfilterdb.questions.structure",
    "cnnfilterdb.questions.tables",
}


def test_all_parts_of_the_package_are_found():
    assert {"cnnfilterdb.stats.basis", "cnnfilterdb.ingest.sources.pypi", "cnnfilterdb.catalog.reader"} <= set(MODULES)


@pytest.mark.parametrize("name", MODULES)
def test_examples(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("MPLBACKEND", "Agg")
    monkeypatch.setenv("CNNFILTERDB_CACHE", str(tmp_path / "cache"))
    known = {"cnnfilterdb": cnnfilterdb, "db": cnnfilterdb.example()} if name in ABOUT_A_DATABASE else {}
    flags = doctest.NORMALIZE_WHITESPACE | doctest.ELLIPSIS
    assert doctest.testmod(import_module(name), extraglobs=known, optionflags=flags).failed == 0


def documented() -> dict[str, object]:
    """Everything public that users call: functions at the root, methods of databases and of their figures."""
    found: dict[str, object] = {
        name: getattr(cnnfilterdb, name)
        for name in cnnfilterdb.__all__
        if inspect.isfunction(getattr(cnnfilterdb, name)) and name != "releases"  # which asks the Hub
    }
    for cls in (cnnfilterdb.Reader, cnnfilterdb.FilterDB, Figures):
        for name, member in inspect.getmembers(cls):
            if not name.startswith("_") and (inspect.isfunction(member) or isinstance(member, property)):
                found[f"{cls.__name__}.{name}"] = member
    return found


@pytest.mark.parametrize("name", sorted(documented()))
def test_everything_that_users_call_has_an_example(name):
    examples = doctest.DocTestParser().get_examples(inspect.getdoc(documented()[name]) or "")
    assert examples, f"{name}: add an example to its docstring"
    assert not any(doctest.SKIP in example.options for example in examples)
