"""The package's root: what `import cnnfilterdb` offers, and what it costs."""

import importlib
import inspect
import subprocess
import sys

import pytest

import cnnfilterdb
from cnnfilterdb.core import errors, reports


def test_the_list_of_names_is_sorted_and_every_name_is_there():
    assert list(cnnfilterdb.__all__) == sorted(cnnfilterdb.__all__)
    assert len(set(cnnfilterdb.__all__)) == len(cnnfilterdb.__all__)
    for name in cnnfilterdb.__all__:
        found = getattr(cnnfilterdb, name)
        assert name == "__version__" or found.__name__ == name
    assert set(cnnfilterdb.__all__) <= set(dir(cnnfilterdb))


def test_the_errors_are_a_module_too():
    public = importlib.import_module("cnnfilterdb.errors")
    for name in errors.__all__:
        assert getattr(public, name) is getattr(errors, name)
    with pytest.raises(public.NotADatabaseError):
        cnnfilterdb.open("no such folder")


def test_all_errors_and_records_are_in_it():
    classes = {
        name for module in (errors, reports) for name in module.__all__ if inspect.isclass(getattr(module, name))
    }
    assert {name for name in classes if name != "Progress"} <= set(cnnfilterdb.__all__)


def test_what_public_methods_return_is_in_it():
    public = {
        name
        for cls in (cnnfilterdb.Reader, cnnfilterdb.FilterDB)
        for called, method in inspect.getmembers(cls, inspect.isfunction)
        if not called.startswith("_")
        for name in str(inspect.signature(method).return_annotation).replace("[", " ").replace("]", " ").split()
        if name.isidentifier() and name[0].isupper()
    }
    known = {"Self", "None", "Any", "Path", "Iterator"}
    assert public - known <= set(cnnfilterdb.__all__)


def test_an_unknown_name_is_an_attribute_error():
    with pytest.raises(AttributeError, match="nosuch"):
        cnnfilterdb.nosuch  # noqa: B018


def test_importing_it_loads_nothing_heavy():
    code = (
        "import sys, cnnfilterdb; print(*sorted({'numpy', 'pandas', 'pyarrow', 'duckdb', 'click'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-P", "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == ""
