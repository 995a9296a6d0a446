"""Files by patterns, compared with pathlib."""

from __future__ import annotations

import pytest

import cnnfilterdb
from cnnfilterdb.core import paths
from cnnfilterdb.core.listing import entries

PATTERNS = (
    paths.models_pattern(),
    paths.bases_pattern(),
    paths.filters_pattern(),
    paths.filters_pattern("3x3"),
    paths.histograms_pattern(),
    *paths.detail_patterns(),
    "*", "*/*", "models/[!_]*", "no/*", "models/?ustom*",
)  # fmt: skip


@pytest.mark.parametrize("pattern", PATTERNS)
def test_the_same_files_as_pathlib_finds(pattern):
    root = cnnfilterdb.example().path
    (root / "models" / ".hidden.parquet").touch()
    (root / "models" / "folder.parquet").mkdir()
    (root / "models" / "line\nbreak.parquet").touch()
    (root / "models" / "UPPER.PARQUET").touch()
    (root / "index" / ".hidden").mkdir()
    (root / "index" / ".hidden" / paths.BASIS).touch()
    (root / "filters" / "kernel=3x3" / "source=link").symlink_to("source=custom")
    (root / "filters" / "kernel=loop").symlink_to("kernel=loop")
    found = {path: linked for path, _, linked in entries(root, pattern)}
    assert sorted(found) == sorted(path.relative_to(root).as_posix() for path in root.glob(pattern))
    assert {path for path, linked in found.items() if linked} == {path for path in found if "source=link/" in path}
