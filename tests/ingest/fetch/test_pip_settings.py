import ast
import importlib.util
import os
import subprocess
import sys

import pytest

from cnnfilterdb.core.errors import DownloadError
from cnnfilterdb.ingest.fetch.pip_settings import Settings, read_settings


@pytest.fixture
def home(tmp_path, monkeypatch):
    """A home without any configuration; the test is the only one to say anything."""
    for key in list(os.environ):
        if key.startswith(("PIP_", "UV_", "XDG_")) or key in {"REQUESTS_CA_BUNDLE", "CURL_CA_BUNDLE"}:
            monkeypatch.delenv(key)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("USERPROFILE", str(tmp_path))
    monkeypatch.setenv("XDG_CONFIG_DIRS", str(tmp_path / "etc"))
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "config"))
    return tmp_path


def write(path, text):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)


@pytest.mark.skipif(importlib.util.find_spec("pip") is None, reason="compares with pip")
@pytest.mark.skipif(sys.platform != "linux", reason="the files are put where Linux has them")
@pytest.mark.parametrize("named", [None, "named.conf", "missing.conf", os.devnull])
def test_options_are_those_that_pip_finds(home, monkeypatch, named):
    write(
        home / "etc/pip/pip.conf",
        "[global]\nindex-url = https://site.example/simple\nTimeout = 20\nretries = 1\n[install]\nno-index = \n",
    )
    # pip 26.3 no longer reads this one, so it holds only what another file overrides.
    write(home / ".pip/pip.conf", "[global]\ncert = legacy.pem\n")
    write(
        home / "config/pip/pip.conf",
        "[global]\ncert = user.pem\nextra-index-url =\n    https://a.example/simple\n    https://b.example/simple\n"
        "[install]\ntrusted-host = a.example\n[list]\nproxy = none\n",
    )
    write(home / "named.conf", "[global]\nretries = 9\nfind-links = /wheels /more\n[install]\nretries = 7\n")
    if named:
        monkeypatch.setenv("PIP_CONFIG_FILE", str(home / named) if named != os.devnull else named)
    monkeypatch.setenv("PIP_PROXY", "http://proxy.example:8080")
    monkeypatch.setenv("PIP_CLIENT_CERT", "")

    listing = subprocess.run(
        [sys.executable, "-m", "pip", "config", "list"], capture_output=True, text=True, check=True
    )
    found = {"global": {}, "install": {}, ":env:": {}}
    for line in listing.stdout.splitlines():
        key, _, value = line.partition("=")
        section, _, option = key.rpartition(".")
        if section in found and ast.literal_eval(value).strip():
            found[section][option] = ast.literal_eval(value).strip()
    options = found["global"] | found["install"] | found[":env:"]
    assert read_settings() == Settings(
        index_url=options.get("index-url"),
        extra_index_urls=tuple(options.get("extra-index-url", "").split()),
        find_links=tuple(options.get("find-links", "").split()),
        trusted_hosts=tuple(options.get("trusted-host", "").split()),
        cert=options.get("cert"),
        proxy=options.get("proxy"),
        timeout=float(options.get("timeout", 15)),
        retries=int(options.get("retries", 5)),
    )
    assert options["proxy"] == "http://proxy.example:8080"
    assert ("index-url" in options) == (named != os.devnull)


def test_nothing_is_configured(home):
    if not any((path / "pip.conf").exists() for path in map(type(home), ("/etc", sys.prefix))):
        assert read_settings() == Settings()
    assert read_settings({"PIP_CONFIG_FILE": os.devnull}) == Settings()


def test_environment_of_uv_is_the_second_choice(home):
    none = {"PIP_CONFIG_FILE": os.devnull}
    uv = none | {
        "UV_DEFAULT_INDEX": "own=https://uv.example/simple",
        "UV_INDEX": "https://x.example b=https://y.example",
    }
    assert read_settings(uv).index_url == "https://uv.example/simple"
    assert read_settings(uv).extra_index_urls == ("https://x.example", "https://y.example")
    assert read_settings(none | {"UV_INDEX_URL": "https://old.example"}).index_url == "https://old.example"
    assert read_settings(uv | {"PIP_INDEX_URL": "https://pip.example"}).index_url == "https://pip.example"


def test_certificates_of_other_tools(home):
    none = {"PIP_CONFIG_FILE": os.devnull}
    assert read_settings(none | {"CURL_CA_BUNDLE": "curl.pem"}).cert == "curl.pem"
    assert (
        read_settings(none | {"CURL_CA_BUNDLE": "curl.pem", "REQUESTS_CA_BUNDLE": "requests.pem"}).cert
        == "requests.pem"
    )
    assert read_settings(none | {"REQUESTS_CA_BUNDLE": "requests.pem", "PIP_CERT": "pip.pem"}).cert == "pip.pem"


def test_no_index(home):
    assert read_settings({"PIP_CONFIG_FILE": os.devnull, "PIP_NO_INDEX": "1"}).no_index
    assert not read_settings({"PIP_CONFIG_FILE": os.devnull, "PIP_NO_INDEX": "false"}).no_index


@pytest.mark.parametrize("text", ["index-url = https://x\n", "[global]\ntimeout = soon\n", "[global\n"])
def test_broken_configuration(home, text):
    write(home / "pip.conf", text)
    with pytest.raises(DownloadError, match=r"pip's .*; correct it") as caught:
        read_settings({"PIP_CONFIG_FILE": str(home / "pip.conf")})
    assert "\n" not in str(caught.value)
