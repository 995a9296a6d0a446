"""Publishes a database folder, or several parts: verifies it, updates its index, builds the release and uploads it."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from cnnfilterdb.core.reports import Progress
from cnnfilterdb.errors import CorruptError, PublishError
from cnnfilterdb.publish.build import Draw, build
from cnnfilterdb.publish.hub import Published, next_version, upload
from cnnfilterdb.publish.sources import Query, ReleaseSource
from cnnfilterdb.release.manifest import Manifest, version_of

__all__ = ["publish"]


def publish(
    source: ReleaseSource,
    repo: str,
    *,
    query: Query,
    draw: Draw,
    version: str | None = None,
    include_license: str | Sequence[str] = (),
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
        repo: Data set to publish to, ``owner/name``.
        query: Answers SQL over the views of the database.
        draw: Draws the shifts between the image domains of the models that a condition selects.
        version: ``X.Y.Z``; by default the next minor version, or 1.0.0 if ``folder`` is given.
        include_license: Licences whose models are published although they are not known to permit it.
        private: Create a new data set as a private one.
        token: Access token of the user.
        endpoint: Address of the Hub; by default the value of ``HF_ENDPOINT``.
        folder: Write the release to this folder and upload nothing.
        verify: Check every count and every hash first.
        progress: Called with the current step, the amount done and the total.
    """
    if version is not None and version_of(version) is None:
        raise PublishError(f"version: {version!r} given; expected three numbers, such as 1.0.0")
    version = (version or "").removeprefix("v")
    if folder is None:
        version = version or next_version(repo, token=token, endpoint=endpoint)
    if verify:
        _verify(source, progress)
    source.prepare(progress)

    def built(target: Path) -> Manifest:
        return build(
            source,
            target,
            repo=repo,
            version=version or "1.0.0",
            query=query,
            draw=draw,
            include_license=include_license,
            progress=progress,
        )

    if folder is not None:
        return built(folder)
    with source.staging() as staged:
        manifest = built(staged / "files")
        return upload(
            staged / "files", manifest, repo, token=token, endpoint=endpoint, private=private, progress=progress
        )


def _verify(source: ReleaseSource, progress: Progress | None) -> None:
    def report(model_id: str, done: int, total: int) -> None:
        if progress:
            progress("models verified", done, total)

    problems = source.storage.verify(progress=report)
    if problems:
        raise CorruptError(f"{len(problems)} problems, the first is {problems[0]}; nothing was published")
