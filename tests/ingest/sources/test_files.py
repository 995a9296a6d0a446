import hashlib
import os
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cnnfilterdb.errors import DownloadError, UnknownModelError
from cnnfilterdb.ingest.sources import get
from cnnfilterdb.ingest.sources.files import FilesSource, suffixes


@pytest.fixture
def folder(tmp_path):
    for name in (
        "resnet18.a1_in1k.safetensors",
        "thermal/net.pth",
        "thermal/deep/net.pth.tar",
        "thermal/NET2.ONNX",
        "medical/net.pth",
        ".git/object.bin",
        "medical/.hidden.pt",
        "readme.md",
    ):
        path = tmp_path / "weights" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(name.encode())
    return tmp_path / "weights"


def test_a_folder(folder):
    source = get("files")
    names = source.list([str(folder)])
    assert sorted(names) == ["medical/net", "resnet18.a1_in1k", "thermal/NET2", "thermal/deep/net", "thermal/net"]
    assert source.resolve("thermal/deep/net") == folder / "thermal" / "deep" / "net.pth.tar"
    # Names do not depend on what else is listed.
    assert FilesSource().list([str(folder), str(folder / "thermal" / "net.pth")]) == names


def test_files_and_globs(folder, monkeypatch):
    source = FilesSource()
    assert source.list([str(folder / "thermal" / "net.pth")]) == ["net"]
    assert source.list([str(folder / "readme.md")]) == ["readme.md"]
    assert source.list([f"{folder}/*/net.pth"]) == ["medical/net", "thermal/net"]
    assert source.list([f"{folder}/**/*"]) == sorted(FilesSource().list([str(folder)]))
    monkeypatch.chdir(folder)
    assert source.list(["thermal/*.pth"]) == ["net"]
    assert source.resolve("net") == folder / "thermal" / "net.pth"
    assert source.list() == []


def test_names_with_wildcards_of_existing_files(tmp_path):
    (tmp_path / "net[1].pt").write_bytes(b"weights")
    assert FilesSource().list([str(tmp_path / "net[1].pt")]) == ["net[1]"]


def test_clashes(tmp_path):
    paths = [tmp_path / name for name in ("a/net.pt", "a/net.onnx", "b/net.pt", "b/other.pt")]
    for path in paths:
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(b"weights")
    assert FilesSource().list([str(tmp_path / "a")]) == ["net.onnx", "net.pt"]
    source = FilesSource()
    names = source.list([str(tmp_path / "a" / "net.pt"), str(tmp_path / "b")])
    assert names == ["a/net.pt", "b/net.pt", "other"]
    assert [source.resolve(name) for name in names] == [paths[0], paths[2], paths[3]]


@settings(deadline=None)
@given(
    names=st.sets(st.from_regex(r"([ab]/){0,2}[ab]\.(pt|onnx|pth\.tar)", fullmatch=True), min_size=1),
    roots=st.lists(st.sampled_from(["", "a", "b", "a/b"]), min_size=1),
)
def test_every_file_has_one_name_of_its_own(tmp_path_factory, names, roots):
    folder = tmp_path_factory.mktemp("weights")
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).touch()
    roots = [folder / root for root in roots if any(Path(name).is_relative_to(root) for name in names)]
    expected = {folder / name for name in names if any((folder / name).is_relative_to(root) for root in roots)}
    source = FilesSource()
    listed = source.list([str(root) for root in roots])
    assert len(set(listed)) == len(listed) == len(expected)
    assert {source.resolve(name) for name in listed} == expected


def test_facts_tell_no_folder(folder):
    source = FilesSource()
    source.list([str(folder)])
    facts = source.describe("thermal/net")
    assert facts.weights_sha256 == hashlib.sha256(b"thermal/net.pth").hexdigest()
    assert facts.url == "net.pth"
    assert str(folder) not in str(facts)
    assert facts.domain is None


def test_a_path_is_a_name_too(folder):
    path = folder / "thermal" / "net.pth"
    assert FilesSource().resolve(str(path)) == path


@pytest.mark.parametrize("pattern", ["missing.pt", "empty", "*.nothing", "**/*.pt"])
def test_what_stands_for_nothing(tmp_path, monkeypatch, pattern):
    (tmp_path / "empty").mkdir()
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UnknownModelError, match="is not a weight file and contains none"):
        FilesSource().list([pattern])


def test_a_file_that_went_away(folder):
    source = FilesSource()
    source.list([str(folder)])
    (folder / "thermal" / "net.pth").unlink()
    for call in (source.describe, source.resolve):
        with pytest.raises(UnknownModelError, match="there is no file 'thermal/net'"):
            call("thermal/net")


def test_a_file_that_cannot_be_read(folder, monkeypatch):
    source = FilesSource()
    source.list([str(folder)])

    def refuse(*args, **kwargs):
        raise PermissionError(13, os.strerror(13))

    monkeypatch.setattr(Path, "open", refuse)
    with pytest.raises(DownloadError, match=r"net.pth: cannot be read: Permission denied"):
        source.describe("thermal/net")


def test_links_keep_their_names(folder, tmp_path):
    (tmp_path / "model.pt").symlink_to(folder / "readme.md")
    assert FilesSource().list([str(tmp_path / "model.pt")]) == ["model"]


def test_suffixes_are_lower_case():
    assert all(suffix == suffix.lower() and suffix.startswith(".") for suffix in suffixes())
