"""The manual builds without a warning, and every example in it and in the README is true."""

from __future__ import annotations

import importlib.util
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from matplotlib.testing.compare import compare_images

import cnnfilterdb
from cnnfilterdb.ingest import formats, sources
from cnnfilterdb.testing import FormatTests, SourceTests

ROOT = Path(__file__).parents[1]
DOCS = ROOT / "docs"
PAGES = sorted(DOCS.rglob("*.md"))
#: The tutorial imports real models.
NETWORK = {DOCS / "tutorial.md"}


def _module(name):
    specification = importlib.util.spec_from_file_location(f"manual_{name}", DOCS / f"{name}.py")
    module = sys.modules[specification.name] = importlib.util.module_from_spec(specification)
    specification.loader.exec_module(module)
    return module


examples = _module("examples")


def _without_network(page):
    return pytest.param(page, marks=[pytest.mark.network] if page in NETWORK else [], id=str(page.relative_to(DOCS)))


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """An empty folder to run examples in, and registries that forget what they register."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("MPLBACKEND", "Agg")
    monkeypatch.setenv("CNNFILTERDB_CACHE", str(tmp_path / "cache"))
    formats.registered()  # a module registers its format once
    monkeypatch.setattr(sources, "_sources", dict(sources._sources))
    monkeypatch.setattr(formats, "_formats", dict(formats._formats))
    cnnfilterdb.example("my.db").close()
    return tmp_path


@pytest.mark.parametrize("page", [_without_network(page) for page in PAGES])
def test_examples_are_true(page, folder):
    names = {}
    found = examples.run(page, folder / "my.db", names=names)
    wrong = [
        f"{one.place}: {one.prompt}expected:\n{one.expected}\nfound:\n{one.found}" for one in found if not one.true
    ]
    assert not wrong, "\n\n".join(wrong)
    for figure in examples.figures(page):
        assert compare_images(str(figure), figure.name, tol=5) is None
    suites = [made for made in names.values() if isinstance(made, type) and made.__module__ == "builtins"]
    for suite in (one for one in suites if issubclass(one, FormatTests | SourceTests)):
        tests = [name for name in dir(suite) if name.startswith("test_")]
        assert tests
        for number, name in enumerate(tests):
            (own := folder / f"{suite.__name__}{number}").mkdir()
            getattr(suite(), name)(own)


def test_the_examples_of_the_readme_run(folder, sample_path):
    for name in ("demo.db", "filters.db"):
        shutil.copytree(sample_path, name)
    with cnnfilterdb.open("demo.db") as db:
        from safetensors.numpy import save_file

        save_file({"conv.weight": db.layer_weights("custom/ct-a", 1)}, "my.safetensors")
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    found = examples.run(ROOT / "README.md", folder / "demo.db")
    assert len(found) > 10
    wrong = [f"{one.place}: {one.prompt}{one.found}" for one in found if not one.true]
    assert not wrong, "\n\n".join(wrong)
    assert "```python" in text


def test_every_page_is_in_a_table_of_contents():
    linked = {
        (page.parent / line).resolve().with_suffix(".md")
        for page in PAGES
        for tree in re.findall(r"```{toctree}\n(.*?)```", page.read_text(encoding="utf-8"), re.DOTALL)
        for line in tree.split()
        if not line.startswith(":")
    }
    assert {*PAGES} - linked == {DOCS / "index.md"}


@pytest.fixture(scope="module")
def built(tmp_path_factory):
    """The manual, built."""
    folder = tmp_path_factory.mktemp("manual")
    line = [sys.executable, "-m", "sphinx", "-W", "--keep-going", "-q", "-b", "html", str(DOCS), str(folder)]
    done = subprocess.run(line, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return folder


@pytest.mark.thorough
def test_the_manual_builds_without_a_warning(built):
    pages = {path.relative_to(built): path.read_text(encoding="utf-8") for path in built.rglob("*.html")}
    sql = pages[Path("reference/sql.html")]
    for name in ("kl_shift", "filter_quality", "nearest_3x3", "binary_residual", "shared_layers"):
        assert f"<h3>{name}" in sql
    assert "5.695" in sql  # the output of an example
    assert "conv_depth_norm" in pages[Path("reference/tables.html")]
    assert "cnnfilterdb shift" in pages[Path("reference/command-line.html")]
    assert "cnnfilterdb.Reader.kl_shift" in pages[Path("reference/python.html")]
    assert "medical ct" in pages[Path("reference/vocabularies.html")]
    # Everything is on the machine of the reader
    assert not [name for name, page in pages.items() if re.search(r"<(script|link|img)[^>]+(src|href)=\"https?:", page)]


@pytest.mark.thorough
@pytest.mark.parametrize(("width", "scheme"), [(1280, "light"), (390, "dark")])
def test_the_manual_has_no_barriers(built, browser, barriers, width, scheme):
    context = browser.new_context(viewport={"width": width, "height": 900}, color_scheme=scheme)
    context.set_default_timeout(300_000)  # however busy the machine is
    page = context.new_page()
    # A page of prose, one of consoles, one of long tables, and those that the theme makes itself.
    for name in (
        "index",
        "guides/comparing-groups",
        "reference/vocabularies",
        "reference/tables",
        "genindex",
        "search",
    ):
        page.goto((built / f"{name}.html").as_uri())
        assert barriers(page) == [], name
    context.close()
