"""Files of Hugging Face repositories in a cache folder, read without the network.

    <folder>/models--<owner>--<name>/...            the cache of huggingface_hub, with its layout
    <partial>/<owner>--<name>/<commit>/<file>       convolutions of safetensors files, read by ranges

A branch or a tag is resolved to the commit that it had when one of its files was last downloaded.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from cnnfilterdb.core.schema import ModelFacts, is_sha256
from cnnfilterdb.ingest.fetch.cache import sha256_of, writing_cache
from cnnfilterdb.ingest.fetch.partial_safetensors import partial_origin

__all__ = ["HubCache", "RepositoryFile", "RepositoryFiles", "snapshot_of", "stated_sha256"]

_log = logging.getLogger(__name__)

_COMMIT = re.compile(r"[0-9a-f]{40}")


@dataclass(frozen=True, slots=True)
class RepositoryFile:
    """A file of a repository in the cache.

    Attributes:
        path: Its path.
        repo: The repository, ``owner/name``.
        file: Its path in the repository.
        revision: Its commit, 40 hexadecimal digits.
        sha256: Its SHA-256; None for a partial file, whose bytes are not those of the repository.
        stated: The SHA-256 that the server states; None where it states none.
    """

    path: Path
    repo: str
    file: str
    revision: str
    sha256: str | None
    stated: str | None = None

    @property
    def url(self) -> str:
        """The package URL (purl, ECMA-427).

        >>> RepositoryFile(Path("x"), "timm/vgg11.tv_in1k", "model.safetensors", "0" * 40, None).url[:44]
        'pkg:huggingface/timm/vgg11.tv_in1k@000000000'
        """
        return f"pkg:huggingface/{self.repo}@{self.revision}#{self.file}"

    @property
    def partial(self) -> bool:
        """Only convolution tensors were downloaded."""
        return self.sha256 is None

    def facts(self, known: ModelFacts) -> ModelFacts:
        """Facts of a model, completed by those of its file.

        The hash of a partial file is the one that the server states for the whole file, unverified; it is recorded in
        ``original``.
        """
        original = dict(known.original or {})
        if self.partial:
            original["partial"] = "convolutions only; the hash of the whole file was not verified"
            if self.stated:
                original["stated_sha256"] = self.stated
        return known.updated(
            url=self.url, revision=self.revision, weights_sha256=self.sha256, original=original or None
        )


@dataclass(frozen=True, slots=True)
class RepositoryFiles:
    """The files of a repository at a commit.

    Attributes:
        name: ``owner/name``.
        revision: The commit, 40 hexadecimal digits.
        files: Paths of its files; in a cache, of those that were downloaded.
    """

    name: str
    revision: str
    files: tuple[str, ...] = field(default=())


class HubCache:
    """Reads a cache of huggingface_hub: the package's own, or that of another program.

    Args:
        folder: The cache.
        partial: Folder of partial files, if there is one.

    Attributes:
        folder: The cache.
    """

    def __init__(self, folder: Path, partial: Path | None = None) -> None:
        self.folder, self._partial = folder, partial

    def file(self, repo: str, files: Sequence[str], revision: str = "main") -> RepositoryFile | None:
        """The first of some files that is in the cache, complete and intact; None if there is none.

        Args:
            repo: The repository, ``owner/name``.
            files: Paths in it, by preference.
            revision: A commit, a branch or a tag.
        """
        from huggingface_hub import try_to_load_from_cache

        for file in files:
            known = try_to_load_from_cache(repo, file, cache_dir=self.folder, revision=revision)
            if isinstance(known, str):
                path = Path(known)
                stated = stated_sha256(path)
                sha256 = sha256_of(path)
                if stated in (None, sha256):
                    return RepositoryFile(path, repo, file, snapshot_of(path, file).name, sha256, stated)
                _log.warning("%s was changed after it was downloaded", path)
        return None

    def partial_file(self, repo: str, files: Sequence[str], revision: str = "main") -> RepositoryFile | None:
        """The first of some files whose convolutions are in the cache; None if there is none."""
        commit = self.commit(repo, revision)
        for file in files if commit else ():
            path = self.partial_path(repo, commit, file)
            if path.is_file() and (origin := partial_origin(path)) is not None:
                return RepositoryFile(path, repo, file, commit, None, origin.get("sha256"))
        return None

    def repository(self, repo: str, revision: str = "main") -> RepositoryFiles | None:
        """The files of a repository that are in the cache; None if there are none."""
        commit = self.commit(repo, revision)
        if not commit:
            return None
        snapshot = self._storage(repo) / "snapshots" / commit
        files = {path.relative_to(snapshot).as_posix() for path in snapshot.rglob("*") if path.is_file()}
        if self._partial is not None:
            parts = self.partial_path(repo, commit, "x").parent
            files |= {
                path.relative_to(parts).as_posix()
                for path in parts.rglob("*")
                if path.is_file() and path.suffix != ".part"
            }
        return RepositoryFiles(repo, commit, tuple(sorted(files))) if files else None

    def commit(self, repo: str, revision: str) -> str:
        """The commit of a revision if the cache knows it, else an empty string."""
        if _COMMIT.fullmatch(revision):
            return revision
        try:
            text = (self._storage(repo) / "refs" / revision).read_text(encoding="utf-8").strip()
        except (OSError, ValueError):
            return ""
        return text if _COMMIT.fullmatch(text) else ""

    def note(self, repo: str, revision: str, commit: str) -> None:
        """Record the commit of a branch or a tag, as huggingface_hub does.

        Raises:
            DownloadError: The cache cannot be written.
        """
        if revision != commit:
            path = self._storage(repo) / "refs" / revision
            with writing_cache(self.folder):
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_text(commit, encoding="utf-8")

    def partial_path(self, repo: str, commit: str, file: str) -> Path:
        """Where the convolutions of a file are, or would be."""
        assert self._partial is not None
        return self._partial / repo.replace("/", "--") / commit / file

    def _storage(self, repo: str) -> Path:
        return self.folder / f"models--{repo.replace('/', '--')}"


def snapshot_of(path: Path, file: str) -> Path:
    """The folder of the commit of a cached file."""
    return path.parents[file.count("/")]


def stated_sha256(path: Path) -> str | None:
    """The SHA-256 under which huggingface_hub keeps a large file; small ones have another kind of hash."""
    name = path.resolve().name
    return name if path.is_symlink() and is_sha256(name) else None
