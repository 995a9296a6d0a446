"""What is shipped: the wheel has the package with its data and nothing else, the sdist everything that is tracked."""

from __future__ import annotations

import shutil
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
BUILD = "from setuptools import build_meta as b; b.build_sdist('dist'); b.build_wheel('dist')"


@pytest.fixture(scope="module")
def tracked() -> set[str]:
    """The files of the repository, those that are about to be added included."""
    command = ["git", "ls-files", "--cached", "--others", "--exclude-standard", "-z"]
    listed = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    if listed.returncode:
        pytest.skip("not a repository")
    return {name for name in listed.stdout.split("\0") if name and (ROOT / name).is_file()}


@pytest.fixture(scope="module")
def built(tracked, tmp_path_factory) -> Path:
    """The folder of a wheel and an sdist, built from a copy of these files alone."""
    folder = tmp_path_factory.mktemp("sources")
    for name in tracked:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(ROOT / name, folder / name)
    subprocess.run([sys.executable, "-c", BUILD], cwd=folder, check=True, capture_output=True)
    return folder / "dist"


def installed_name(name: str) -> str | None:
    """Where a tracked file is in the wheel; None for one that does not belong there."""
    top, _, rest = name.partition("/")
    if top not in ("cnnfilterdb", "ingest", "catalog") or name == "catalog/README.md":
        return None
    return f"cnnfilterdb/{rest}" if top == "cnnfilterdb" else f"cnnfilterdb/{name}"


def test_the_wheel_has_the_package_and_nothing_else(built, tracked):
    (wheel,) = built.glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        found = {name for name in archive.namelist() if ".dist-info/" not in name}
    assert found == {place for name in tracked if (place := installed_name(name))}
    assert wheel.stat().st_size < 9e6


@pytest.mark.parametrize("page", ["README.md", "docs/start.md"])
def test_what_is_said_of_installing_works_before_the_first_release(page):
    text = (ROOT / page).read_text(encoding="utf-8")
    assert "pip install cnnfilterdb" in text
    assert "`pip install .` in a checkout" in text


def test_the_sdist_has_everything(built, tracked):
    (sdist,) = built.glob("*.tar.gz")
    with tarfile.open(sdist) as archive:
        found = {member.name.partition("/")[2] for member in archive if member.isfile()}
    made = {name for name in found if name in ("PKG-INFO", "setup.cfg") or ".egg-info/" in name}
    hidden = {name for name in tracked if name.startswith(".")}
    assert found - made == tracked - hidden
