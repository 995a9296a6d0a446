"""Package indexes: where an archive of a known name is available.

unearth asks the configured indexes and reads their pages; no code of a package is run, not even to learn its metadata.
An archive is chosen by its exact file name and hash, regardless of the Python version or platform it was built for.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from packaging.version import InvalidVersion, Version
from unearth import Link, PackageFinder
from unearth.collector import is_secure_origin

from cnnfilterdb.core.errors import DownloadError, HashMismatchError
from cnnfilterdb.ingest.fetch.download import Session, explain_failure
from cnnfilterdb.ingest.fetch.pip_settings import Settings, read_settings

__all__ = ["Offer", "PackageIndex"]

_log = logging.getLogger(__name__)

# unearth warns about every index that lacks a package, which is normal if several are configured. If none has it, the
# error states the reasons.
logging.getLogger("unearth").addHandler(logging.NullHandler())


@dataclass(frozen=True, slots=True)
class Offer:
    """An archive that an index offers.

    Attributes:
        name: Its file name.
        version: The version of the package.
        url: Its address.
        sha256: Its SHA-256 according to the index; None if the index does not state it.
        path: The file, when the address is on this machine.
    """

    name: str
    version: str
    url: str
    sha256: str | None
    path: Path | None


class PackageIndex:
    """The package indexes that the user has configured for pip, as one.

    Attributes:
        session: The HTTP client for them and their archives.
        urls: Their addresses.
    """

    def __init__(self, settings: Settings | None = None, *, pause: float = 0.25) -> None:
        """Prepare requests; nothing is connected yet.

        Args:
            settings: The indexes and how to reach them; pip's settings by default.
            pause: Seconds before a failed request is repeated; doubled each time.

        Raises:
            DownloadError: pip's configuration or its certificates cannot be read.
        """
        settings = read_settings() if settings is None else settings
        indexes: tuple[str, ...] = ()
        if not settings.no_index:
            # A finder without any location has pip's default index.
            default = settings.index_url or PackageFinder().sources[0]["url"]
            indexes = (default, *settings.extra_index_urls)
        self.urls = indexes
        self.session = Session(settings, index_urls=indexes, pause=pause)
        self._locations = [(url, False) for url in indexes] + [(url, True) for url in settings.find_links]
        self._offers: dict[str, tuple[list[Offer], list[str]]] = {}

    def find(self, package: str, version: str, archive: str, sha256: str) -> list[Offer]:
        """Where an archive is available, the most certain offer first.

        Args:
            package: Name of the package.
            version: Its version.
            archive: File name of the archive.
            sha256: Its expected SHA-256.

        Raises:
            DownloadError: No index has it; the message states what they have instead, or why they did not answer.
            HashMismatchError: It is available, but with other bytes.
        """
        if package not in self._offers:
            self._offers[package] = self._ask(package)
        offers, notes = self._offers[package]
        named = [offer for offer in offers if offer.name == archive]
        fitting = [offer for offer in named if offer.sha256 in {sha256, None}]
        if fitting:
            return sorted(fitting, key=lambda offer: (offer.path is None, offer.sha256 is None))
        if named:
            raise HashMismatchError(
                f"{archive}: expected SHA-256 {sha256}, the package index offers it with {named[0].sha256}; "
                "it is not the file that the catalog describes"
            )
        raise DownloadError(self._nothing(package, version, archive, offers, notes))

    def _ask(self, package: str) -> tuple[list[Offer], list[str]]:
        """Everything that is offered of a package, and the answer of each location."""
        offers, notes, answered = [], [], False
        for url, is_links in self._locations:
            shown = Link(url).redacted if "://" in url else url
            try:
                found = list(self._ask_one(package, url, is_links))
            # A broken page can make the parser fail in any way; another index may still have the archive.
            except Exception as error:
                _log.info("package index %s: %s", shown, explain_failure(error))
                notes.append(f"{shown}: {explain_failure(error)}")
                continue
            answered = True
            offers += found
            notes.append(f"{shown}: {len(found)} files of {package}")
        if not answered:
            raise DownloadError(
                f"{package}: no package index can be reached ({'; '.join(notes) or 'none is configured'}); "
                "check the network and pip's configuration"
            )
        return offers, notes

    def _ask_one(self, package: str, url: str, is_links: bool) -> Iterator[Offer]:
        link = Link(url) if "://" in url else Link.from_path(Path(url).expanduser().absolute())
        if link.is_file and not link.file_path.exists():
            raise FileNotFoundError("does not exist")
        if not is_secure_origin(self.session, link):
            raise ValueError("is not encrypted; use https, or name its host as trusted-host")
        locations = {"find_links": [link.url]} if is_links else {"index_urls": [link.url]}
        finder = PackageFinder(session=self.session, ignore_compatibility=True, **locations)
        for found in finder.find_all_packages(package, allow_yanked=True):
            target: Link = found.link
            path = target.file_path if target.is_file else None
            if path is not None and not path.is_file():
                continue
            digest = ((target.hash_option or {}).get("sha256") or [""])[0]
            yield Offer(
                name=target.filename,
                version=found.version or "",
                url=target.url_without_fragment,
                sha256=digest.lower() or None,
                path=path,
            )

    @staticmethod
    def _nothing(package: str, version: str, archive: str, offers: list[Offer], notes: list[str]) -> str:
        asked = f"(asked: {'; '.join(notes)})"
        same = sorted({offer.name for offer in offers if offer.version == version})
        versions = sorted({offer.version for offer in offers}, key=_sortable, reverse=True)
        if same:
            return f"{archive}: not offered; {package} {version} has {', '.join(same)} {asked}"
        if versions:
            more = ", ..." if len(versions) > 8 else ""
            return f"{archive}: {package} {version} is not offered; available: {', '.join(versions[:8])}{more} {asked}"
        return f"{archive}: no package index offers any file of {package} {asked}"


def _sortable(version: str) -> Version:
    try:
        return Version(version)
    except InvalidVersion:
        return Version("0")
