"""Run the test suite with the lowest versions of the dependencies that pyproject.toml allows.

    python scripts/lowest.py [--venv DIR] [--only-install] [test ...]

It makes an environment of its own, installs the package with uv's resolution `lowest-direct`, so that a floor that is
too low fails here rather than at a user's, and runs the tests that need none of the large optional packages (PyTorch,
timm, datasets, ...), whose lowest versions are gigabytes of accelerator libraries, and take no more than seconds. Only
what is declared is installed: an import of anything else fails, too.
"""

from __future__ import annotations

import argparse
import ast
import subprocess
import sys
import tomllib
import venv
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).parent.parent
#: Extras of the package, and packages of the extra `dev`, that the tests run with.
EXTRAS = ("explore", "hdf5", "http")
TOOLS = (
    "flatbuffers", "hypothesis", "joblib", "markdown-it-py", "networkx", "polars", "pytest", "scikit-learn", "tflite"
)  # fmt: skip
#: Modules that are not installed.
ABSENT = frozenset(
    {"adlfs", "axe_playwright_python", "datasets", "moto", "playwright", "s3fs", "sphinx", "timm", "torch",
     "torchconvquality", "torchvision"}
)  # fmt: skip


def install(environment: Path) -> Path:
    """Make the environment; returns its Python."""
    venv.create(environment, with_pip=True, clear=True)
    python = environment / ("Scripts" if sys.platform == "win32" else "bin") / "python"
    with (ROOT / "pyproject.toml").open("rb") as file:
        development = tomllib.load(file)["project"]["optional-dependencies"]["dev"]
    tools = [one for one in development if one.partition(">")[0] in TOOLS]
    run = [python, "-m"]
    subprocess.run([*run, "pip", "install", "--quiet", "uv"], check=True)
    package = f"{ROOT}[{','.join(EXTRAS)}]"
    lowest = ["--python", python, "--resolution", "lowest-direct"]
    subprocess.run([*run, "uv", "pip", "install", *lowest, "--editable", package, *tools], check=True)
    return python


def imported(path: Path) -> Iterator[str]:
    """Names of the packages that a module imports when it is imported itself."""
    for node in ast.parse(path.read_text(encoding="utf-8")).body:
        if isinstance(node, ast.Import):
            yield from (alias.name.partition(".")[0] for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            yield node.module.partition(".")[0]


def skipped() -> list[Path]:
    """Test modules, and folders whose conftest.py, that import what is not installed."""
    found = {path for path in (ROOT / "tests").rglob("*.py") if ABSENT.intersection(imported(path))}
    folders = {path.parent for path in found if path.name == "conftest.py"}
    return sorted(folders | {path for path in found if path.name.startswith("test_")})


def main() -> None:
    """Parse the arguments and run."""
    parser = argparse.ArgumentParser(description="Test with the lowest allowed versions.")
    parser.add_argument("--venv", type=Path, default=ROOT / ".lowest", metavar="DIR")
    parser.add_argument("--only-install", action="store_true")
    parser.add_argument("tests", nargs="*", default=["tests/catalog", "tests/cnnfilterdb", "tests/ingest"])
    options = parser.parse_args()
    python = install(options.venv.absolute())
    subprocess.run([python, "-m", "uv", "pip", "list", "--python", python], check=True)
    if not options.only_install:
        ignored = [f"--ignore={path}" for path in skipped()]
        run = [python, "-P", "-m", "pytest", "-q", "-p", "no:cacheprovider", "-m", "not thorough"]
        tests = [*run, *ignored, *options.tests]
        sys.exit(subprocess.run(tests, cwd=ROOT, check=False).returncode)


if __name__ == "__main__":
    main()
