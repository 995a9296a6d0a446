"""Releases on the Hugging Face Hub: upload one so that no reader ever sees half of it, and list the published ones.

An upload has several steps; an interrupted one is resumed by running it again::

    branch release-vX.Y.Z     created from main; large files are sent in batches, then committed at once
    its listing               paths, sizes and hashes are compared with those of the release
    main                      one commit that refers to the large files of the branch; refused if main has moved
    tag vX.Y.Z                on that commit, after comparing its listing too; then the branch is deleted

Nothing is sent twice: files that main or the branch contains, at any path, are only referred to, and before another
one is sent the server is asked for it by its hash.
"""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cnnfilterdb.core.errors import PublishError
from cnnfilterdb.core.paths import MARKER
from cnnfilterdb.core.reports import Progress
from cnnfilterdb.publish.files import LocalFile, release_files
from cnnfilterdb.publish.repository import DatasetRepository, Refused, StoredFile, hub_endpoint, without_bars
from cnnfilterdb.publish.shards import BuiltShard, WholeShard
from cnnfilterdb.release.manifest import Manifest, version_of

__all__ = ["Published", "Released", "copied_by", "next_version", "releases", "upload"]

_log = logging.getLogger(__name__)

_MAIN = "main"
_CARD = "README.md"
# Files of a release, besides Parquet, that a later one may lack
_OPTIONAL = frozenset({"init.sql", "MODELS.md", "CITATION.cff", "shift.png"})
# What is sent between two calls of progress
_BATCH_FILES = 32
_BATCH_BYTES = 2 << 30


@dataclass(frozen=True, slots=True)
class Published:
    """An uploaded release.

    Attributes:
        repo: The data set repository, ``owner/name``.
        tag: The tag, ``vX.Y.Z``.
        commit: The tagged commit on main, 40 hexadecimal digits.
        url: Its web page.
        uploaded_bytes: Bytes of the files whose content the repository did not have. At most that many were sent: Xet
            sends only the parts that are new to it, and a resumed upload only what was missing.
        new_files: Files that are new on main, or changed.
        unchanged_files: Files that were already present with the same content.
        manifest: The manifest of the release.
    """

    repo: str
    tag: str
    commit: str
    url: str
    uploaded_bytes: int
    new_files: int
    unchanged_files: int
    manifest: Manifest


@dataclass(frozen=True, slots=True)
class Released:
    """A published release.

    Attributes:
        tag: The tag, ``vX.Y.Z``.
        version: Its three numbers.
        commit: The tagged commit, 40 hexadecimal digits.
    """

    tag: str
    version: tuple[int, int, int]
    commit: str


def copied_by(endpoint: str | None) -> Callable[[WholeShard], bool]:
    """Which files of other releases a Hub can copy: those that it has.

    Args:
        endpoint: Address of the Hub; by default as for :func:`upload`.
    """

    def copies(shard: WholeShard) -> bool:
        filesystem: Any = shard.there.filesystem
        return "hf" in getattr(filesystem, "protocol", ()) and filesystem.endpoint.rstrip("/") == hub_endpoint(endpoint)

    return copies


def upload(
    folder: Path,
    manifest: Manifest,
    repo: str,
    *,
    token: str | None = None,
    endpoint: str | None = None,
    private: bool = False,
    absent: Mapping[str, WholeShard | BuiltShard] | None = None,
    progress: Progress | None = None,
) -> Published:
    """Publish a release folder as a data set, and tag it.

    Main changes by one commit, after everything has arrived and was compared with the manifest. Parquet files of an
    earlier release that this one does not contain are deleted; files that somebody else added stay.

    Args:
        folder: The release: the files of the manifest, ``cnnfilterdb.json``, and texts beside them.
        manifest: Its manifest.
        repo: The data set repository, ``owner/name``; it is created if it does not exist.
        token: Token with write access; by default ``HF_TOKEN``, or that of ``hf auth login``.
        endpoint: Address of the Hub; by default the value of ``HF_ENDPOINT``, else the public one.
        private: Create the repository as a private one. An existing one must be private then.
        absent: Where files of the manifest come from that are not in the folder, by their paths.
        progress: Called with "upload", the number of files that have arrived and of all.

    Raises:
        PublishError: The folder does not match the manifest, the token or the repository is refused, the version is
            already published, the connection broke, or another client published meanwhile.
    """
    repository = DatasetRepository(repo, token, endpoint)
    repository.need_token()
    files = release_files(folder, manifest, absent)
    repository.check_token()
    branches, tags = _prepare(repository, private)
    if manifest.tag in tags:
        following = _version_after(_released(tags))
        raise PublishError(f"{repo}: {manifest.tag} is already published; the next free version is {following}")
    if _MAIN not in branches:
        raise PublishError(f"{repo}: has no branch {_MAIN}; create one on its page, or publish to another repository")
    with without_bars():
        return _Upload(repository, manifest, files, branches).run(progress)


class _Upload:
    """The steps of an upload.

    Args:
        repository: The repository, which has a main branch.
        manifest: Manifest of the release.
        files: Its files.
        branches: Commits by branch before the upload.
    """

    def __init__(
        self,
        repository: DatasetRepository,
        manifest: Manifest,
        files: Sequence[LocalFile],
        branches: Mapping[str, str],
    ) -> None:
        self._repository = repository
        self._manifest = manifest
        self._files = files
        self._head = branches[_MAIN]
        # Everything is sent to a separate branch, that of an interrupted run if one exists.
        self._branch = f"release-{manifest.tag}"
        self._base = branches.get(self._branch)

    def run(self, progress: Progress | None) -> Published:
        """Upload the release and tag it."""
        repository, manifest, files = self._repository, self._manifest, self._files
        before = repository.tree(self._head)
        _check_purpose(repository.name, before)
        for file in files:
            if file.path == _CARD:
                repository.check_card(file.source)
        staged, arrived, sent = self._stage(before, progress)
        changed = [file for file in files if not _is_at(file, before)]
        commit = self._release(changed, before, staged, arrived)
        repository.tag(manifest.tag, commit)
        repository.forget_branch(self._branch)
        return Published(
            repo=repository.name,
            tag=manifest.tag,
            commit=commit,
            url=f"{repository.url}/tree/{manifest.tag}",
            uploaded_bytes=sent,
            new_files=len(changed),
            unchanged_files=len(files) - len(changed),
            manifest=manifest,
        )

    def _stage(
        self, before: Mapping[str, StoredFile], progress: Progress | None
    ) -> tuple[str, Mapping[str, StoredFile], int]:
        """Send what is missing to the branch: its new commit, the files of that, and the bytes that were new."""
        repository, files = self._repository, self._files
        if self._base is None:
            repository.create_branch(self._branch, self._head)
        base = self._base or self._head
        there = repository.tree(base)
        known = _large({self._head: before, base: there})
        missing = [file for file in files if not _is_at(file, there)]
        fresh = [file for file in missing if file.sha256 not in known]
        title = f"Files of {self._manifest.tag}"

        def commit(copied: Mapping[str, Any]) -> tuple[str, int]:
            to_send = [file for file in fresh if file.path not in copied]
            operations = _send(repository, to_send, self._branch, len(files), progress)
            operations += [*copied.values(), *_copies(missing, known), *_deletions(files, there)]
            made = repository.commit(operations, self._branch, base, title, self._is_complete)
            return made, sum(file.size for file in to_send)

        copied = self._copied(fresh)
        try:
            staged, sent = commit(copied)
        except Refused as refused:
            if not copied or refused.passing:
                raise
            _log.warning("%s: the Hub copies no files of other data sets (%s); they are sent", repository.name, refused)
            staged, sent = commit({})
        arrived = repository.tree(staged)
        _require_complete(f"{repository.name}, branch {self._branch}", files, arrived)
        return staged, arrived, sent

    def _copied(self, files: Sequence[LocalFile]) -> dict[str, Any]:
        """Operations by which the Hub copies files from where it has them, by their paths."""
        from huggingface_hub import CommitOperationCopy

        found: dict[str, Any] = {}
        trees: dict[tuple[str, str], Mapping[str, StoredFile]] = {}
        for file in files:
            if not isinstance(file.absent, WholeShard):
                continue
            there = file.absent.there
            place = there.filesystem.resolve_path(there.path)  # type: ignore[union-attr]
            name, revision = place.repo_id, place.revision
            if (name, revision) not in trees:
                try:
                    trees[name, revision] = self._repository.other(name).tree(revision)
                except Refused:  # this token does not reach it
                    trees[name, revision] = {}
            stored = trees[name, revision].get(place.path_in_repo)
            if stored is None or not stored.large or stored.digest != file.sha256:
                continue
            other: dict[str, str] = {}
            if name != self._repository.name:
                if "src_repo_id" not in CommitOperationCopy.__dataclass_fields__:
                    continue
                other = {"src_repo_id": name, "src_repo_type": place.repo_type}
            found[file.path] = CommitOperationCopy(place.path_in_repo, file.path, src_revision=revision, **other)
        return found

    def _release(
        self,
        changed: Sequence[LocalFile],
        before: Mapping[str, StoredFile],
        staged: str,
        arrived: Mapping[str, StoredFile],
    ) -> str:
        """Make main refer to the files of the branch, in one commit, which is returned."""
        repository, files = self._repository, self._files
        small = {file.path: file.source for file in changed if not arrived[file.path].large}
        operations = repository.send(small, _MAIN) if small else []
        operations += [*_copies(changed, _large({staged: arrived})), *_deletions(files, before)]
        title = f"Release {self._manifest.tag}"
        commit = repository.commit(operations, _MAIN, self._head, title, self._is_complete)
        _require_complete(repository.name, files, repository.tree(commit))
        return commit

    def _is_complete(self, tree: Mapping[str, StoredFile]) -> bool:
        return not _problems(self._files, tree)


def releases(repo: str, *, token: str | None = None, endpoint: str | None = None) -> list[Released]:
    """The releases of a repository, newest version first.

    Args:
        repo: The data set repository, ``owner/name``.
        token: Token, for a private repository; by default as for :func:`upload`.
        endpoint: Address of the Hub; by default as for :func:`upload`.

    Raises:
        PublishError: The repository does not exist, access is refused, or the Hub cannot be reached.
    """
    return _released(DatasetRepository(repo, token, endpoint).refs()[1])


def next_version(repo: str, *, token: str | None = None, endpoint: str | None = None) -> str:
    """The version for the next release: one minor version up, or ``1.0.0`` for the first one.

    Args:
        repo: The data set repository, ``owner/name``; it need not exist.
        token: Token, for a private repository; by default as for :func:`upload`.
        endpoint: Address of the Hub; by default as for :func:`upload`.

    Raises:
        PublishError: Access is refused, or the Hub cannot be reached.
    """
    try:
        return _version_after(releases(repo, token=token, endpoint=endpoint))
    except Refused as refused:
        if not refused.missing:
            raise
    return _version_after([])


def _released(tags: Mapping[str, str]) -> list[Released]:
    """The tags that name a release, newest version first.

    >>> [one.version for one in _released({"v1.9.0": "a", "v1.10.0": "b", "1.11.0": "c", "draft": "d"})]
    [(1, 10, 0), (1, 9, 0)]
    """
    known = [(tag, version_of(tag), commit) for tag, commit in tags.items() if tag.startswith("v")]
    found = [Released(tag, version, commit) for tag, version, commit in known if version]
    return sorted(found, key=lambda one: one.version, reverse=True)


def _version_after(known: Sequence[Released]) -> str:
    """The next minor version.

    >>> _version_after([Released("v1.9.2", (1, 9, 2), "")]), _version_after([])
    ('1.10.0', '1.0.0')
    """
    return f"{known[0].version[0]}.{known[0].version[1] + 1}.0" if known else "1.0.0"


def _is_at(file: LocalFile, tree: Mapping[str, StoredFile]) -> bool:
    """Whether a repository contains a file at its path, with its content."""
    stored = tree.get(file.path)
    if stored is None or stored.size != file.size:
        return False
    return stored.digest == (file.sha256 if stored.large else _git_oid(file))


def _git_oid(file: LocalFile) -> str:
    """The git object id of the content of a file; requested for small files only."""
    data = file.source.read_bytes()
    if hashlib.sha256(data).hexdigest() != file.sha256:
        raise PublishError(f"{file.source}: its SHA-256 is no longer {file.sha256}; build the release again")
    return hashlib.sha1(b"blob %d\0" % len(data) + data, usedforsecurity=False).hexdigest()


def _prepare(repository: DatasetRepository, private: bool) -> tuple[dict[str, str], dict[str, str]]:
    """Branches and tags of a repository, which is created if it does not exist."""
    refs = None
    try:
        refs = repository.refs()
    except Refused as refused:
        if not refused.missing:
            raise
    if refs is None:
        repository.create(private)
        return repository.refs()
    if private and not repository.is_private():
        raise PublishError(
            f"{repository.name}: a public data set; make it private in its settings, or publish without `--private`"
        )
    return refs


def _check_purpose(repo: str, tree: Mapping[str, StoredFile]) -> None:
    """Refuse a repository that contains another data set."""
    other = [path for path in tree if path.endswith(".parquet")]
    if other and MARKER not in tree:
        raise PublishError(
            f"{repo}: contains another data set ({other[0]}, and no {MARKER}); publish to another repository"
        )


def _send(
    repository: DatasetRepository, files: Sequence[LocalFile], branch: str, total: int, progress: Progress | None
) -> list[Any]:
    """Send files in batches; all others of the total are already present."""
    operations: list[Any] = []
    for batch in _batches(files):
        if progress:
            progress("upload", total - len(files) + len(operations), total)
        for file in batch:
            file.fetch()
        operations += repository.send({file.path: file.source for file in batch}, branch)
        for file in batch:
            file.forget()
    if progress:
        progress("upload", total, total)
    return operations


def _batches(files: Sequence[LocalFile]) -> Iterator[list[LocalFile]]:
    batch: list[LocalFile] = []
    for file in files:
        if batch and (len(batch) == _BATCH_FILES or sum(one.size for one in batch) + file.size > _BATCH_BYTES):
            yield batch
            batch = []
        batch.append(file)
    if batch:
        yield batch


def _stale(files: Sequence[LocalFile], tree: Mapping[str, StoredFile]) -> list[str]:
    """Files of an earlier release that the new one does not contain."""
    paths = {file.path for file in files}
    return sorted(path for path in tree if path not in paths and (path.endswith(".parquet") or path in _OPTIONAL))


def _problems(files: Sequence[LocalFile], tree: Mapping[str, StoredFile]) -> list[str]:
    """Differences between a repository and a release."""
    problems = [f"{path}: expected no such file" for path in _stale(files, tree)]
    for file in files:
        if not _is_at(file, tree):
            stored = tree.get(file.path)
            found = f"{stored.size} with digest {stored.digest}" if stored else "no such file"
            problems.append(f"{file.path}: expected {file.size} bytes with SHA-256 {file.sha256}, found {found}")
    return problems


def _require_complete(where: str, files: Sequence[LocalFile], tree: Mapping[str, StoredFile]) -> None:
    problems = _problems(files, tree)
    if problems:
        others = f", and {len(problems) - 1} more" if problems[1:] else ""
        raise PublishError(
            f"{where}: differs from what was sent: {problems[0]}{others}; nothing was tagged; "
            "run it again, and if that does not help, build the release again"
        )


def _large(trees: Mapping[str, Mapping[str, StoredFile]]) -> dict[str, tuple[str, str]]:
    """Large files of several revisions: SHA-256 -> (path, revision)."""
    return {
        stored.digest: (path, revision)
        for revision, tree in trees.items()
        for path, stored in tree.items()
        if stored.large
    }


def _copies(files: Sequence[LocalFile], known: Mapping[str, tuple[str, str]]) -> Iterator[Any]:
    """Operations that refer to large files which the repository contains; they move no content."""
    from huggingface_hub import CommitOperationCopy

    for file in files:
        if file.sha256 in known:
            path, revision = known[file.sha256]
            yield CommitOperationCopy(path, file.path, src_revision=revision)


def _deletions(files: Sequence[LocalFile], tree: Mapping[str, StoredFile]) -> Iterator[Any]:
    from huggingface_hub import CommitOperationDelete

    for path in _stale(files, tree):
        yield CommitOperationDelete(path, is_folder=False)
