import hashlib
import os
from pathlib import Path, PureWindowsPath

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from safetensors.numpy import save_file

from cnnfilterdb.core.errors import DownloadError, UnknownModelError
from cnnfilterdb.ingest.sources import get
from cnnfilterdb.ingest.sources.files import FilesSource, _names, suffixes


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


def test_facts_name_no_folder(folder):
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


@pytest.mark.parametrize("pattern", ["empty", "*.nothing", "**/*.pt"])
def test_what_matches_nothing(tmp_path, monkeypatch, pattern):
    (tmp_path / "empty").mkdir()
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UnknownModelError, match="is not a weight file and contains none"):
        FilesSource().list([pattern])


def test_a_file_that_went_away(folder):
    source = FilesSource()
    source.list([str(folder)])
    (folder / "thermal" / "net.pth").unlink()
    for call in (source.describe, source.resolve):
        with pytest.raises(UnknownModelError, match="no file 'thermal/net'"):
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


def test_links_out_of_a_folder_are_left_out(folder, tmp_path):
    expected = FilesSource().list([str(folder)])
    (tmp_path / "secret").mkdir()
    (tmp_path / "secret" / "key.pt").write_bytes(b"secret")
    (folder / "key.pt").symlink_to(tmp_path / "secret" / "key.pt")
    (folder / "linked").symlink_to(tmp_path / "secret")
    (folder / "circle.pt").symlink_to(folder / "circle.pt")
    for pattern in (folder, folder / "**/*", folder / "*/*"):
        with pytest.warns(UserWarning, match=r"a link that leads out of .*, left out"):
            found = FilesSource().list([str(pattern)])
        assert "thermal/net" in found
        assert "key" not in found
        assert "linked/key" not in found
    with pytest.warns(UserWarning, match="key.pt"):
        assert FilesSource().list([str(folder)]) == expected
    assert FilesSource().list([str(folder / "key.pt")]) == ["key"]  # the user named it


def test_the_cache_of_the_hub_is_a_folder_of_links(tmp_path):
    snapshot = tmp_path / "models--a--b" / "snapshots" / "0123"
    snapshot.mkdir(parents=True)
    (tmp_path / "models--a--b" / "blobs").mkdir()
    (tmp_path / "models--a--b" / "blobs" / "abc").write_bytes(b"weights")
    (snapshot / "net.pt").symlink_to("../../blobs/abc")
    (snapshot / "other.pt").symlink_to("../../../outside")
    (tmp_path / "outside").write_bytes(b"secret")
    with pytest.warns(UserWarning, match="other.pt"):
        assert FilesSource().list([str(snapshot)]) == ["net"]


def test_suffixes_are_lower_case():
    assert all(suffix == suffix.lower() and suffix.startswith(".") for suffix in suffixes())


def test_drives_of_windows_keep_files_apart():
    found = {PureWindowsPath(path): ("a.pt",) for path in (r"C:\x\a.pt", r"D:\x\a.pt", r"\\server\share\x\a.pt")}
    names = _names(found)
    assert set(names.values()) == set(found)
    assert len(names) == 3


@given(st.sets(st.from_regex(r"(C:|D:|//s/t)(/[ab]){1,3}\.pt", fullmatch=True), min_size=1, max_size=6))
def test_names_of_any_paths_are_distinct(paths):
    found = {PureWindowsPath(path): (PureWindowsPath(path).name,) for path in paths}
    assert set(_names(found).values()) == set(found)


def test_a_string_is_one_name(folder):
    assert FilesSource().list(str(folder / "thermal" / "net.pth")) == ["net"]


def test_paths_begin_in_the_folder(folder):
    source = FilesSource(folder=folder, offline=True)
    assert source.list(["thermal/net.pth"]) == ["net"]
    assert source.list(["*/net.pth"]) == ["medical/net", "thermal/net"]
    assert source.list(["medical"]) == ["net"]
    assert FilesSource(folder=folder).resolve("thermal/net.pth") == folder / "thermal" / "net.pth"
    with pytest.raises(UnknownModelError, match=r"files: 'nothing.pt' does not exist; expected a file, folder or"):
        source.list(["nothing.pt"])


@pytest.mark.parametrize("suffix", [".npz", ".npy", ".tflite", ".pb", ".index", ".safetensors", ".onnx", ".keras"])
def test_a_folder_of_any_format(tmp_path, suffix):
    (tmp_path / f"net{suffix}").write_bytes(b"weights")
    assert FilesSource().list([str(tmp_path)]) == ["net"]


def test_parts_and_settings_are_not_models_of_their_own(tmp_path):
    save_file({"a.weight": np.ones((1, 1, 3, 3), np.float32)}, tmp_path / "net.safetensors")
    for name in (
        "config.json", "tokenizer.json", "group1-shard1of2.bin", "group1-shard2of2.bin", "x.data-00000-of-00001",
        "saved/variables/variables.index", "model-00001-of-00002.safetensors",
    ):  # fmt: skip
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text("{}")
    (tmp_path / "saved" / "saved_model.pb").write_bytes(b"graph")
    (tmp_path / "web").mkdir()
    (tmp_path / "web" / "model.json").write_text(
        '{"format": "layers-model", "modelTopology": {}, "weightsManifest": []}'
    )
    (tmp_path / "model.safetensors.index.json").write_text('{"metadata": {}, "weight_map": {}}')
    assert sorted(FilesSource().list([str(tmp_path)])) == ["model", "net", "saved/saved_model", "web/model"]


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="this platform has no pipes")
def test_pipes_are_not_weight_files(tmp_path):
    os.mkfifo(tmp_path / "pipe.pt")
    for pattern in (tmp_path / "pipe.pt", tmp_path):
        with pytest.raises(UnknownModelError):
            FilesSource().list([str(pattern)])
    with pytest.raises(UnknownModelError):
        FilesSource().resolve(str(tmp_path / "pipe.pt"))
