"""What the package imports is what it declares, and what it declares is what it ships."""

from __future__ import annotations

import ast
import re
import sys
import tomllib
from pathlib import Path

ROOT = Path(__file__).parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))

#: Modules whose distribution has another name.
DISTRIBUTIONS = {
    "PIL": "pillow", "google": "protobuf", "yaml": "pyyaml", "ml_dtypes": "ml_dtypes", "markdown_it": "markdown-it-py",
    "sklearn": "scikit-learn"
}  # fmt: skip
#: Declared for a library that imports it by itself.
INDIRECT = {"pytz"}


def names(requirements: list[str]) -> set[str]:
    return {re.match(r"[\w.-]+", requirement)[0].lower() for requirement in requirements}


def imported(*folders: str, anywhere: bool = True) -> dict[str, str]:
    """Distributions that the modules of some folders import, with a module that does.

    Args:
        folders: The folders.
        anywhere: Whether imports inside functions and conditions count.
    """
    found: dict[str, str] = {}
    for folder in folders:
        for path in (ROOT / folder).rglob("*.py"):
            tree = ast.parse(path.read_text(encoding="utf-8"))
            for node in ast.walk(tree) if anywhere else tree.body:
                modules = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
                modules += [node.module] if isinstance(node, ast.ImportFrom) else []
                for module in modules:
                    top = module.partition(".")[0]
                    if top not in sys.stdlib_module_names | {"cnnfilterdb"}:
                        found[DISTRIBUTIONS.get(top, top).lower()] = str(path.relative_to(ROOT))
    return found


def test_every_import_is_declared_and_every_declaration_imported():
    declared = names(PROJECT["project"]["dependencies"])
    optional = names([one for extra in PROJECT["project"]["optional-dependencies"].values() for one in extra])
    found = imported("cnnfilterdb", "ingest", "catalog")
    assert not {name: path for name, path in found.items() if name not in declared | optional}
    assert not declared - found.keys() - INDIRECT


def test_tests_and_benchmarks_import_what_developers_install():
    """What only one of them needs is imported where it is used, or with pytest.importorskip."""
    project = PROJECT["project"]
    declared = names(project["dependencies"] + project["optional-dependencies"]["dev"])
    ours = {path.stem.lower() for path in (ROOT / "tests").rglob("*")} | {"tests", "benchmarks"}
    found = imported("tests/catalog", "tests/cnnfilterdb", "tests/ingest", "benchmarks", "scripts", anywhere=False)
    assert {name: path for name, path in found.items() if name not in declared | ours} == {}


def test_every_dependency_is_pinned():
    pinned = names([line for line in (ROOT / "constraints.txt").read_text().splitlines() if line[:1] not in ("", "#")])
    assert not names(PROJECT["project"]["dependencies"]) - pinned


def test_every_package_is_shipped():
    folders = set()
    for folder in ("cnnfilterdb", "ingest", "catalog"):
        for path in (ROOT / folder).rglob("__init__.py"):
            parts = path.parent.relative_to(ROOT).parts
            folders.add(".".join(parts if folder == "cnnfilterdb" else ("cnnfilterdb", *parts)))
    assert set(PROJECT["tool"]["setuptools"]["packages"]) == folders


def test_versions_that_import_another_http_library_are_not_allowed():
    from packaging.requirements import Requirement

    (unearth,) = (one for one in map(Requirement, PROJECT["project"]["dependencies"]) if one.name == "unearth")
    assert not any(old in unearth.specifier for old in ("0.17.0", "0.17.2", "0.18.0"))


def test_only_systems_that_are_tested_are_claimed():
    claimed = [one for one in PROJECT["project"]["classifiers"] if one.startswith("Operating System")]
    assert claimed == ["Operating System :: MacOS", "Operating System :: POSIX :: Linux"]
    assert PROJECT["project"]["authors"]
