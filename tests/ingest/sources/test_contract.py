"""Every source keeps the contract, sources of other packages as small as it allows included."""

import shutil
from types import SimpleNamespace

import numpy as np
import pytest
from safetensors.numpy import save_file

from cnnfilterdb.core.errors import DownloadError, IngestError, SelectionError, UnknownModelError
from cnnfilterdb.core.schema import ModelFacts
from cnnfilterdb.ingest import sources
from cnnfilterdb.ingest.fetch.cache import Cache
from cnnfilterdb.ingest.pipeline import forecast
from cnnfilterdb.ingest.sources import Source, as_source, available, get, registered
from cnnfilterdb.ingest.sources.files import FilesSource
from cnnfilterdb.ingest.sources.hub import HubSource
from cnnfilterdb.ingest.sources.pypi import PypiSource
from cnnfilterdb.ingest.sources.timm import TimmSource
from cnnfilterdb.ingest.sources.web import CustomSource, LungmaskSource, TorchVisionSource, TorchXRayVisionSource
from cnnfilterdb.testing import SourceTests


def weights(path):
    path.parent.mkdir(parents=True, exist_ok=True)
    save_file({"a.weight": np.ones((2, 2, 3, 3), np.float32)}, path)
    return path


class TestPypi(SourceTests):
    def source(self, folder):
        return PypiSource(offline=True, cache=Cache(folder / "cache"))


class TestTorchXRayVision(SourceTests):
    def source(self, folder):
        return TorchXRayVisionSource(offline=True, cache=Cache(folder / "cache"))


class TestLungmask(SourceTests):
    def source(self, folder):
        return LungmaskSource(offline=True, cache=Cache(folder / "cache"))


class TestTorchVision(SourceTests):
    def source(self, folder):
        return TorchVisionSource(offline=True, cache=Cache(folder / "cache"))


class TestCustom(SourceTests):
    def source(self, folder):
        return CustomSource(offline=True, cache=Cache(folder / "cache"))


class TestTimm(SourceTests):
    def source(self, folder):
        return TimmSource(offline=True, cache=Cache(folder / "cache"))


class TestHub(SourceTests):
    def source(self, folder):
        weights(folder / "files" / "owner" / "net" / "model.safetensors")
        return HubSource(offline=True, folder=folder / "files", cache=Cache(folder / "cache"))

    def available(self, source):
        return ["owner/net"]


class TestFiles(SourceTests):
    def source(self, folder):
        for name in ("a/net", "b/net"):
            weights(folder / "files" / f"{name}.safetensors")
        return FilesSource(folder=folder / "files")

    def available(self, source):
        return ["a/net.safetensors", "b/net.safetensors"]


class Zoo:
    """A source of another package that defines what it must, and no more."""

    name = "zoo"

    def __init__(self, folder="."):
        self.path = folder

    def list(self, patterns=()):
        if any(pattern not in ("*", "net") for pattern in patterns):
            raise UnknownModelError(f"no model {patterns[0]!r}")
        return ["net"]

    def describe(self, name):
        if name != "net":
            raise UnknownModelError(f"no model {name!r}")
        return ModelFacts(domain="natural")

    def resolve(self, name):
        if name != "net":
            raise UnknownModelError(f"no model {name!r}")
        return str(self.path / "net.safetensors")


class TestZoo(SourceTests):
    def source(self, folder):
        weights(folder / "net.safetensors")
        return Zoo(folder)

    def available(self, source):
        return ["net"]


class TestChild(SourceTests):
    """The same, derived from the base."""

    def source(self, folder):
        weights(folder / "net.safetensors")

        class Child(Zoo, Source):
            pass

        return Child(folder)

    def available(self, source):
        return ["net"]


@pytest.fixture
def plugins(monkeypatch):
    """Registers sources of other packages: name -> what loading them does."""

    def install(**found):
        monkeypatch.setattr(
            sources,
            "entry_points",
            lambda group, name=None: [
                SimpleNamespace(name=one, load=load, module="zoo") for one, load in found.items() if name in (None, one)
            ],
        )
        monkeypatch.setattr(sources, "_sources", {})

    return install


def test_a_plugin_is_a_source(plugins):
    plugins(zoo=lambda: Zoo)
    assert list(registered()) == ["zoo"]
    source = get("zoo")
    assert isinstance(source, Source)
    assert (source.name, source.isolated, source.download_size("net")) == ("zoo", True, None)
    assert available("zoo") == [("net", ModelFacts(domain="natural"))]


@pytest.mark.parametrize("error", [ImportError("no module named x"), SyntaxError("bad"), RuntimeError("a\nb")])
def test_a_broken_plugin_hides_no_other(plugins, error):
    def load():
        raise error

    plugins(zoo=lambda: Zoo, broken=load)
    assert list(registered()) == sources.plugins() == ["broken", "zoo"]
    with pytest.raises(IngestError, match=f"source broken failed: {type(error).__name__}: .*; report it to") as caught:
        get("broken")
    assert "\n" not in str(caught.value)
    assert get("zoo").list() == ["net"]


def test_a_plugin_that_cannot_list(plugins):
    class Broken(Zoo):
        def list(self, patterns=()):
            raise ConnectionError("reset")

    plugins(zoo=lambda: Broken)
    with pytest.raises(IngestError, match="source zoo failed: ConnectionError: reset"):
        available("zoo")


OPTIONS = {"folder": "--from", "offline": "--offline", "partial": "--partial"}


@pytest.mark.parametrize("name", registered())
@pytest.mark.parametrize("option", OPTIONS)
def test_every_source_has_each_option_or_says_why_not(name, option, tmp_path, monkeypatch):
    monkeypatch.setenv("CNNFILTERDB_CACHE", str(tmp_path))
    value = tmp_path if option == "folder" else True
    if option == "partial" and name not in ("timm", "hub"):
        with pytest.raises(SelectionError) as caught:
            get(name, **{option: value})
        assert str(caught.value).startswith(f"source {name} does not support --partial (partial=True): ")
        assert str(caught.value).partition(": ")[2] != "it has no such option"
    else:
        assert get(name, **{option: value}).name == name
    assert get(name, **dict.fromkeys(OPTIONS)).name == name
    assert get(name, offline=False, partial=False).name == name


def test_a_plugin_without_an_option(plugins):
    plugins(zoo=lambda: Zoo)
    with pytest.raises(SelectionError, match=r"source zoo does not support --offline \(offline=True\): it has no such"):
        get("zoo", offline=True)
    assert get("zoo", folder="x")._source.path == "x"


def test_offline_says_where_it_looked_and_what_to_do(tmp_path):
    for source in (PypiSource, TorchVisionSource):
        made = source(offline=True, folder=tmp_path, cache=Cache(tmp_path / "cache"))
        with pytest.raises(
            DownloadError, match=r"offline, and .*not in the cache .* nor below .*--from .*online"
        ) as caught:
            made.resolve(made.list()[0])
        assert "\n" not in str(caught.value)


@pytest.mark.parametrize("kept", ["archive", "member"])
def test_packages_in_a_folder_need_no_network(packaging, tmp_path, kept):
    content = b"weights" * 100
    data = packaging.wheel({"net/a.pt": content})
    model = packaging.model("net/a", "net-1.0-py3-none-any.whl", data, "net/a.pt", content)
    folder = tmp_path / "files" / "deep"
    folder.mkdir(parents=True)
    (folder / "a.pt").write_bytes(b"another file of that name")
    if kept == "archive":
        (folder / "net-1.0-py3-none-any.whl").write_bytes(data)
    else:
        (folder.parent / "a.pt").write_bytes(content)
    source = PypiSource([model], folder=tmp_path / "files", offline=True, cache=Cache(tmp_path / "cache"))
    assert source.resolve("net/a").read_bytes() == content
    shutil.rmtree(tmp_path / "files")
    assert source.resolve("net/a").read_bytes() == content  # from the cache


@pytest.mark.parametrize("archive", ["net-1.0.tar.gz", "net-1.0-py3-none-any.whl"])
def test_an_archive_of_several_models_is_forecast_once(packaging, tmp_path, archive):
    """A source distribution, which is downloaded as a whole; of a wheel, each file by itself."""
    contents = {"net/a.pt": b"weights" * 100, "net/b.pt": b"others" * 100}
    is_wheel = archive.endswith(".whl")
    data = packaging.wheel(contents) if is_wheel else packaging.sdist(list(contents.items()))
    models = [
        packaging.model(member.removesuffix(".pt"), archive, data, member, content)
        for member, content in contents.items()
    ]
    source = PypiSource(models, cache=Cache(tmp_path / "cache"))
    expected = sum(map(len, contents.values())) if is_wheel else len(data)
    assert forecast(None, source, source.list()).download == expected
    (tmp_path / archive).write_bytes(data)
    local = PypiSource(models, folder=tmp_path, cache=Cache(tmp_path / "cache"))
    assert forecast(None, local, local.list()).download == 0


def test_a_member_is_hashed_once(index_server, packaging, tmp_path, monkeypatch):
    """A cached file as it is found, a downloaded one as it is written."""
    from cnnfilterdb.ingest.fetch import cache as module
    from cnnfilterdb.ingest.fetch.packages import PackageIndex
    from cnnfilterdb.ingest.fetch.pip_settings import Settings

    hashed = []
    monkeypatch.setattr(module, "sha256_of", lambda path: hashed.append(path) or _sha256(path))
    content = b"weights" * 100
    data = packaging.wheel({"net/a.pt": content})
    index_server.add("net", "net-1.0-py3-none-any.whl", data)
    model = packaging.model("net/a", "net-1.0-py3-none-any.whl", data, "net/a.pt", content)
    index = PackageIndex(Settings(index_url=index_server.url, retries=0), pause=0.001)
    source = PypiSource([model], cache=Cache(tmp_path / "cache"), index=index)
    path = source.resolve("net/a")
    assert hashed == []
    assert source.resolve("net/a") == path
    assert hashed == [path]


def _sha256(path):
    import hashlib

    return hashlib.sha256(path.read_bytes()).hexdigest()


def test_an_object_that_is_a_source_is_left_as_it_is():
    source = FilesSource()
    assert as_source(source) is source
