"""Publishes a database folder, or several parts: verifies it, updates its index, builds the release and sends it."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from cnnfilterdb.core.errors import CorruptError, PublishError
from cnnfilterdb.core.reports import Progress
from cnnfilterdb.publish.build import DataSet, build
from cnnfilterdb.publish.hub import Published, copied_by, next_version, upload
from cnnfilterdb.publish.objects import ObjectFolder
from cnnfilterdb.publish.repository import check_repository
from cnnfilterdb.publish.shards import Absent
from cnnfilterdb.publish.sources import Query, ReleaseSource
from cnnfilterdb.release.manifest import Manifest, version_of

__all__ = ["publish", "push"]


def publish(
    source: ReleaseSource,
    data_set: DataSet,
    *,
    query: Query,
    version: str | None = None,
    private: bool = False,
    token: str | None = None,
    endpoint: str | None = None,
    folder: Path | None = None,
    verify: bool = True,
    progress: Progress | None = None,
) -> Published | Manifest:
    """Publish a release; see :meth:`cnnfilterdb.Reader.publish`.

    Args:
        source: What it is made of.
        data_set: The data set to publish it in.
        query: Answers SQL over the views of the database.
        version: ``X.Y.Z``; by default the next minor version, or 1.0.0 if ``folder`` is given.
        private: Create a new data set as a private one.
        token: Access token of the user.
        endpoint: Address of the Hub; by default the value of ``HF_ENDPOINT``.
        folder: Write the release to this folder and upload nothing.
        verify: Check every count and every hash first.
        progress: Called with the current step, the amount done and the total.
    """
    if version is not None and version_of(version) is None:
        raise PublishError(f"version: {version!r} given; expected three numbers, such as 1.0.0")
    repo, version = data_set.repo, (version or "").removeprefix("v")
    check_repository(repo)
    if folder is None:
        version = version or next_version(repo, token=token, endpoint=endpoint)
    version = version or "1.0.0"
    _ready(source, verify=verify, progress=progress)

    def built(target: Path, absent: Absent | None = None) -> Manifest:
        return build(
            source,
            target,
            version=version,
            address=data_set.address(version),
            query=query,
            data_set=data_set,
            absent=absent,
            progress=progress,
        )

    if folder is not None:
        return built(folder)
    absent = Absent(copied_by(endpoint))
    with source.staging() as staged:
        manifest = built(staged / "files", absent)
        return upload(
            staged / "files",
            manifest,
            repo,
            token=token,
            endpoint=endpoint,
            private=private,
            absent=absent.shards,
            progress=progress,
        )


def push(
    source: ReleaseSource,
    address: str,
    *,
    query: Query,
    storage_options: Mapping[str, Any] | None = None,
    verify: bool = True,
    progress: Progress | None = None,
) -> Manifest:
    """Write a part to object storage; see :meth:`cnnfilterdb.Reader.push`.

    Args:
        source: What it is made of.
        address: Where to write it.
        query: Answers SQL over the views of the database.
        storage_options: Options of the file system.
        verify: Check every count and every hash first.
        progress: Called with the current step, the amount done and the total.
    """
    place = ObjectFolder.at(address, storage_options or {})
    _ready(source, verify=verify, progress=progress)
    absent = Absent(place.takes)
    with source.staging() as staged:
        manifest = build(
            source,
            staged / "files",
            version="1.0.0",
            address=address,
            query=query,
            absent=absent,
            progress=progress,
        )
        return place.put(staged / "files", manifest, progress, absent=absent.shards)


def _ready(source: ReleaseSource, *, verify: bool, progress: Progress | None) -> None:
    """Check what a release is made of, and bring its index up to date."""

    def report(model_id: str, done: int, total: int) -> None:
        if progress:
            progress("models verified", done, total)

    if verify and (problems := source.storage.verify(progress=report)):
        raise CorruptError(f"{len(problems)} problems, the first is {problems[0]}; nothing was published")
    source.prepare(progress)
