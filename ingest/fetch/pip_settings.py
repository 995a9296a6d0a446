"""How the user reaches package indexes: pip's settings, read the way pip reads them.

Users who can ``pip install`` behind a proxy, with a company's certificate or from a mirror have configured pip for it,
and the same configuration applies here.

The locations and their order are those of pip's documentation ("Configuration", section "Location"): system-wide, user
and environment files, the file that ``PIP_CONFIG_FILE`` names, then ``PIP_*`` variables. The sections ``[global]`` and
``[install]`` count. pip itself is not run and need not be installed.
"""

from __future__ import annotations

import configparser
import locale
import os
import re
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import platformdirs

from cnnfilterdb.core.errors import DownloadError

__all__ = ["Settings", "read_settings"]


@dataclass(frozen=True, slots=True)
class Settings:
    """Where packages come from and how their hosts are reached.

    Attributes:
        index_url: The main index; None means pip's default.
        extra_index_urls: Further indexes.
        find_links: Folders, files or pages that list archives.
        no_index: True when only :attr:`find_links` may be used.
        trusted_hosts: Hosts (``name`` or ``name:port``) whose certificate is not verified, or that use plain HTTP.
        cert: A file or folder of certificate authorities; None means the system's.
        client_cert: A file with the user's certificate and key.
        proxy: A proxy for all requests; None uses the usual environment variables.
        timeout: Seconds to wait for a connection or for the next bytes.
        retries: How often a failed request is repeated.
    """

    index_url: str | None = None
    extra_index_urls: tuple[str, ...] = ()
    find_links: tuple[str, ...] = ()
    no_index: bool = False
    trusted_hosts: tuple[str, ...] = ()
    cert: str | None = None
    client_cert: str | None = None
    proxy: str | None = None
    timeout: float = 15.0
    retries: int = 5


def read_settings(environ: Mapping[str, str] | None = None) -> Settings:
    """Read the settings from pip's files and the environment.

    Where pip has no index, uv's variables are used, and where it has no certificates, ``REQUESTS_CA_BUNDLE`` and
    ``CURL_CA_BUNDLE``. (The HTTP client reads ``SSL_CERT_FILE``, ``SSL_CERT_DIR`` and the proxy variables.)

    Args:
        environ: The environment; that of the process by default.

    Raises:
        DownloadError: A configuration file cannot be parsed, or a setting is not a number.

    >>> settings = read_settings({"PIP_CONFIG_FILE": os.devnull, "PIP_TRUSTED_HOST": "a.example b.example:81"})
    >>> settings.trusted_hosts, settings.timeout
    (('a.example', 'b.example:81'), 15.0)
    """
    environ = os.environ if environ is None else environ
    sections: dict[str, dict[str, str]] = {"global": {}, "install": {}}
    for path in config_files(environ):
        parser = _parse(path)
        for section in sections.keys() & set(parser.sections()):
            sections[section] |= {_normal(key): value.strip() for key, value in parser.items(section) if value.strip()}
    variables = {_normal(key[4:]): value for key, value in environ.items() if key.startswith("PIP_") and value}
    options = sections["global"] | sections["install"] | variables

    extra = options.get("extra-index-url") or environ.get("UV_INDEX") or environ.get("UV_EXTRA_INDEX_URL") or ""
    index = options.get("index-url") or environ.get("UV_DEFAULT_INDEX") or environ.get("UV_INDEX_URL")
    return Settings(
        index_url=_unnamed(index) if index else None,
        extra_index_urls=tuple(map(_unnamed, extra.split())),
        find_links=tuple(options.get("find-links", "").split()),
        no_index=options.get("no-index", "").lower() in {"1", "true", "yes", "on", "y", "t"},
        trusted_hosts=tuple(options.get("trusted-host", "").split()),
        cert=options.get("cert") or environ.get("REQUESTS_CA_BUNDLE") or environ.get("CURL_CA_BUNDLE") or None,
        client_cert=options.get("client-cert"),
        proxy=options.get("proxy"),
        # Two spellings of one option of pip.
        timeout=_number(options, "timeout", _number(options, "default-timeout", 15.0)),
        retries=int(_number(options, "retries", 5)),
    )


def config_files(environ: Mapping[str, str]) -> Iterator[Path]:
    """The files that pip would read, lowest precedence first; not all of them exist."""
    named = environ.get("PIP_CONFIG_FILE")
    if named == os.devnull:
        return
    name = "pip.ini" if sys.platform == "win32" else "pip.conf"
    home = Path.home()
    if sys.platform == "darwin":
        yield from _folders(platformdirs.site_data_dir("pip", appauthor=False, multipath=True), name)
        user = Path(platformdirs.user_data_dir("pip", appauthor=False))
        user = user if user.is_dir() else home / ".config" / "pip"
    else:
        yield from _folders(platformdirs.site_config_dir("pip", appauthor=False, multipath=True), name)
        if sys.platform != "win32":
            yield Path("/etc") / name
        user = Path(platformdirs.user_config_dir("pip", appauthor=False, roaming=True))
    if not (named and Path(named).exists()):
        yield home / ("pip" if sys.platform == "win32" else ".pip") / name
        yield user / name
    yield Path(sys.prefix) / name
    if named:
        yield Path(named)


def _folders(joined: str, name: str) -> Iterator[Path]:
    return (Path(folder) / name for folder in joined.split(os.pathsep))


def _parse(path: Path) -> configparser.RawConfigParser:
    parser = configparser.RawConfigParser()
    try:
        parser.read(path, encoding=locale.getpreferredencoding(False))
    except (configparser.Error, UnicodeDecodeError, OSError) as error:
        reason = str(error).replace("\n", " ")
        raise DownloadError(f"pip's configuration file {path} cannot be read: {reason}; correct it") from error
    return parser


def _normal(key: str) -> str:
    return key.lower().replace("_", "-").removeprefix("--")


def _unnamed(index: str) -> str:
    """The address of an index in uv's form, without its optional name (``name=address``)."""
    return re.sub(r"^[\w.-]+=(?=\w+://)", "", index)


def _number(options: Mapping[str, str], key: str, default: float) -> float:
    try:
        return float(options.get(key, default))
    except ValueError as error:
        raise DownloadError(f"pip's setting {key} is {options[key]!r}, expected a number; correct it") from error
