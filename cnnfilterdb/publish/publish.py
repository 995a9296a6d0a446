"""Publishes a database: verify, build, upload."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from cnnfilterdb.errors import CorruptError, PublishError
from cnnfilterdb.publish.build import build
from cnnfilterdb.publish.hub import Published, next_version, upload
from cnnfilterdb.release.manifest import Manifest, version_of
from cnnfilterdb.reports import Progress
from cnnfilterdb.store.folder import Store

if TYPE_CHECKING:
    from cnnfilterdb.database import FilterDB

__all__ = ["publish"]

# Name of the folder in the database that holds the release meanwhile
_BUILT = "release"


def publish(
    db: FilterDB,
    repo: str,
    *,
    version: str | None = None,
    include_license: Sequence[str] = (),
    private: bool = False,
    token: str | None = None,
    endpoint: str | None = None,
    folder: Path | None = None,
    verify: bool = True,
    progress: Progress | None = None,
) -> Published | Manifest:
    """Publish a release; see :meth:`cnnfilterdb.FilterDB.publish`.

    Args:
        db: The database.
        repo: Where to, ``owner/name``.
        version: ``X.Y.Z``; by default the next minor version, and 1.0.0 where nothing is uploaded.
        include_license: Licences whose models are published all the same.
        private: Make a new data set private.
        token: Token of the user.
        endpoint: Address of the Hub, by default what ``HF_ENDPOINT`` says.
        folder: Write the release to this folder, and upload nothing.
        verify: Check every count and every hash first.
        progress: Called with what is being done, how much is done and how much there is.
    """
    if version is not None and version_of(version) is None:
        raise PublishError(f"version: {version!r} given; expected three numbers, such as 1.0.0")
    version = (version or "").removeprefix("v")
    if folder is None:
        version = version or next_version(repo, token=token, endpoint=endpoint)
    if verify:
        _verify(db, progress)
    db.index(progress=progress)
    if folder is not None:
        return build(
            db, folder, repo=repo, version=version or "1.0.0", include_license=include_license, progress=progress
        )
    with Store.open(db.path).staging(_BUILT) as staged:
        manifest = build(
            db, staged / "files", repo=repo, version=version, include_license=include_license, progress=progress
        )
        return upload(
            staged / "files", manifest, repo, token=token, endpoint=endpoint, private=private, progress=progress
        )


def _verify(db: FilterDB, progress: Progress | None) -> None:
    def told(model_id: str, done: int, total: int) -> None:
        if progress:
            progress("models verified", done, total)

    problems = db.verify(progress=told)
    if problems:
        raise CorruptError(f"{len(problems)} problems, the first is {problems[0]}; nothing was published")
