"""Names of files: paths from elsewhere stay inside their folder, on every system."""

import os
import socket
import string
from pathlib import Path, PurePosixPath, PureWindowsPath

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cnnfilterdb.core import paths
from cnnfilterdb.core.errors import DatabaseError, UnsafePathError

HOSTILE = [
    "",
    "/etc/passwd",
    "//server/share",
    "..",
    "../victim",
    "a/../../victim",
    "a/./b",
    ".",
    "a//b",
    "a/",
    "C:/x",
    "c:x",
    "a/d:stream",
    "a\\b",
    "..\\x",
    "\\\\server\\share",
    "a\0b",
    "a\nb",
    "a\x1b[31m",
    "nul",
    "models/CON.parquet",
    "COM1",
    "lpt9.txt",
    "aux .x",
    "x" * 256,
    "a/" + "é" * 128,
    "\ud800",
]
PARTS = st.one_of(
    st.text(min_size=1, max_size=8),
    st.sampled_from(["..", ".", "", "con", "a", "C:", "nul.x", "\\", "\0"]),
    st.text(string.ascii_letters + "./\\:", max_size=6),
)


@pytest.mark.parametrize("path", HOSTILE)
def test_a_hostile_path_is_refused_in_one_line(tmp_path, path):
    for function in (lambda: paths.relative(path), lambda: paths.inside(tmp_path, path)):
        with pytest.raises(UnsafePathError, match="not a relative path inside a folder") as caught:
            function()
        assert "\n" not in str(caught.value)
        assert "\x1b" not in str(caught.value)
        assert len(str(caught.value)) < 400
    assert isinstance(caught.value, DatabaseError)


@pytest.mark.parametrize("value", [None, 3, b"a", ["a"]])
def test_what_is_not_a_text_is_refused(value):
    with pytest.raises(UnsafePathError):
        paths.relative(value)


@given(st.lists(PARTS, max_size=5).map("/".join))
def test_whatever_is_accepted_stays_inside_on_any_system(path):
    try:
        parts = paths.relative(path)
    except UnsafePathError:
        return
    assert "/".join(parts) == path
    for flavour in (PurePosixPath, PureWindowsPath):
        root = flavour("root/folder")
        joined = root.joinpath(*parts)
        assert joined.parts[:2] == root.parts
        assert joined.parts[2:] == parts
        assert not flavour(path).is_absolute()
        assert not flavour(path).drive


@given(st.lists(PARTS, max_size=5).map("/".join))
def test_inside_agrees_with_the_file_system(path):
    root = Path("/work-that-does-not-exist")
    try:
        target = paths.inside(root, path)
    except UnsafePathError:
        return
    assert os.path.normpath(target) == str(target)
    assert os.path.commonpath([root, target]) == str(root)


@given(
    st.text(min_size=1),
    st.text(min_size=1),
    st.integers(1, 40).flatmap(lambda h: st.just(f"{h}x{h}")),
    st.text("abc09"),
)
def test_the_names_of_a_database_are_accepted(source, name, kernel, digest):
    slug = paths.slug(f"{source}/{name}")
    assert paths.is_slug(slug)
    basis = f"{kernel}-0{digest}"
    assert paths.is_basis_id(basis)
    for path in (
        paths.models_path(slug),
        paths.layers_path(slug),
        paths.basis_path(basis),
        paths.histograms_path(basis, slug),
        paths.empty_filters_path(kernel),
        paths.lock_path(slug),
    ):
        assert "/".join(paths.relative(path)) == path
    try:
        quoted = paths.filters_path(kernel, source, slug)
    except UnicodeEncodeError:
        return
    if len(quoted.split("/")[2]) <= 255:
        assert "/".join(paths.relative(quoted)) == quoted


@given(st.text())
def test_a_slug_is_recognised_and_little_else(text):
    assert not paths.is_slug(text) or all(c in string.ascii_letters + string.digits + "_-" for c in text)
    assert not paths.is_basis_id(text) or all(c in string.ascii_letters + string.digits + "-" for c in text)


def test_links_that_leave_are_refused_and_links_inside_are_not(tmp_path):
    root = tmp_path / "root"
    (root / "models").mkdir(parents=True)
    (tmp_path / "outside").mkdir()
    (tmp_path / "outside" / "a").write_text("x")
    (root / "models" / "b").write_text("x")
    (root / "out").symlink_to(tmp_path / "outside")
    (root / "models" / "c").symlink_to(tmp_path / "outside" / "a")
    (root / "in").symlink_to(root / "models")
    for path in ("out/a", "out", "models/c", "out/not-there"):
        with pytest.raises(UnsafePathError, match="a link that leads out of"):
            paths.inside(root, path)
    assert paths.regular(root, "in/b").read_text() == "x"
    (tmp_path / "link").symlink_to(root)  # the folder itself may be reached by a link
    assert paths.regular(tmp_path / "link", "models/b").read_text() == "x"


def test_only_regular_files_are_read(tmp_path, monkeypatch):
    os.mkfifo(tmp_path / "pipe")
    with socket.socket(socket.AF_UNIX) as server:
        monkeypatch.chdir(tmp_path)  # the path of a socket is short
        server.bind("socket")
    for name in ("pipe", "socket", "."):
        with pytest.raises(UnsafePathError):
            paths.regular(tmp_path, name)
    with pytest.raises(FileNotFoundError):
        paths.regular(tmp_path, "absent")
