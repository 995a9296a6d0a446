"""Data sets of the loopback Hub: commits, branches and tags, in memory."""

from __future__ import annotations

import base64
import fnmatch
import hashlib
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from loopback_hub.hub import Hub

#: What a new repository has in it, shortened.
GITATTRIBUTES = b"*.parquet filter=lfs diff=lfs merge=lfs -text\n*.png filter=lfs diff=lfs merge=lfs -text\n"

#: Files above this size are large whatever their name.
LARGE = 10 << 20


@dataclass(frozen=True)
class Entry:
    """A file in a commit: small ones with their content, large ones with the hash of it."""

    size: int
    oid: str
    data: bytes | None = None
    sha256: str | None = None
    pointer_size: int = 0


@dataclass(frozen=True)
class Commit:
    id: str
    parent: str | None
    title: str
    date: str
    entries: Mapping[str, Entry]
    changed: Mapping[str, str]  # path -> commit that changed it last


class HubError(Exception):
    """An answer that is not a success."""

    def __init__(self, status: int, code: str = "", message: str = "") -> None:
        super().__init__(status, code, message)
        self.status, self.code, self.message = status, code, message


def git_oid(data: bytes) -> str:
    return hashlib.sha1(b"blob %d\0" % len(data) + data).hexdigest()


class FakeRepository:
    """A data set: branches and tags name commits."""

    def __init__(self, hub: Hub, name: str, private: bool, gated: bool) -> None:
        self.hub, self.name, self.private, self.gated = hub, name, private, gated
        self.commits: dict[str, Commit] = {}
        self.branches: dict[str, str] = {}
        self.tags: dict[str, str] = {}
        self._add("main", "initial commit", {".gitattributes": self._small(GITATTRIBUTES)}, ())

    def push(self, files: Mapping[str, bytes | None], branch: str = "main", title: str = "somebody else") -> str:
        """Commit files, None for those that go; small and large are handled as the real Hub handles them."""
        changes = {}
        for path, data in files.items():
            if data is not None and self.is_large(path, len(data), branch):
                changes[path] = self.large(self.hub.keep(data))
            elif data is not None:
                changes[path] = self._small(data)
        return self._add(branch, title, changes, [path for path, data in files.items() if data is None]).id

    def files(self, revision: str = "main") -> dict[str, bytes]:
        """Contents of a revision by path."""
        return {path: self.hub.content(entry) for path, entry in self.at(revision).entries.items()}

    def at(self, revision: str) -> Commit:
        """The commit of a branch, a tag or a commit."""
        commit = self.branches.get(revision) or self.tags.get(revision) or revision
        if commit not in self.commits:
            raise HubError(404, "RevisionNotFound", f"Invalid rev id: {revision}")
        return self.commits[commit]

    def is_large(self, path: str, size: int, revision: str) -> bool:
        """Whether a file goes by LFS, as .gitattributes says."""
        attributes = self.at(revision).entries.get(".gitattributes")
        lines = (attributes.data or b"").decode().splitlines() if attributes else []
        patterns = [line.split()[0] for line in lines if "filter=lfs" in line]
        return size > LARGE or any(
            fnmatch.fnmatch(path, one) or fnmatch.fnmatch(Path(path).name, one) for one in patterns
        )

    def large(self, sha256: str, size: int | None = None) -> Entry:
        """The entry of an object of the store."""
        known = self.hub.size_of(sha256)
        if known is None or size not in (None, known):
            raise HubError(
                400, "", "Your push was rejected because an LFS pointer pointed to a file that does not exist."
            )
        pointer = f"version https://git-lfs.github.com/spec/v1\noid sha256:{sha256}\nsize {known}\n".encode()
        return Entry(known, git_oid(pointer), None, sha256, len(pointer))

    def commit(self, branch: str, lines: list[dict]) -> str:
        """What the commit endpoint does with its lines."""
        if branch not in self.branches:
            raise HubError(404, "RevisionNotFound", f"Invalid rev id: {branch}")
        head, header, changes, gone = self.at(branch), {}, {}, []
        for line in lines:
            value = line["value"]
            if line["key"] == "header":
                header = value
            elif line["key"] == "file":
                changes[value["path"]] = self._small(base64.b64decode(value["content"]))
            elif line["key"] == "lfsFile":
                changes[value["path"]] = self.large(value["oid"], value.get("size"))
            elif line["key"] == "deletedFile":
                if value["path"] not in head.entries:
                    raise HubError(404, "EntryNotFound", "A file with this name doesn't exist")
                gone.append(value["path"])
            else:
                raise HubError(400, "", f"unknown key {line['key']}")
        if header.get("parentCommit") not in (None, head.id):
            raise HubError(412, "", "A commit has happened since. Please refresh and try again.")
        return self._add(branch, header["summary"], changes, gone).id

    def _small(self, data: bytes) -> Entry:
        return Entry(len(data), git_oid(data), data)

    def _add(self, branch: str, title: str, changes: Mapping[str, Entry], gone: list[str] | tuple[()]) -> Commit:
        parent = self.commits.get(self.branches.get(branch, ""))
        entries = {**(parent.entries if parent else {}), **changes}
        seconds = len(self.commits)
        date = time.strftime("%Y-%m-%dT%H:%M:%S.000Z", time.gmtime(1_790_000_000 + seconds))
        text = f"{self.name} {parent and parent.id} {title} {seconds} {sorted(entries)}"
        commit = hashlib.sha1(text.encode()).hexdigest()
        changed = {**(parent.changed if parent else {}), **dict.fromkeys(changes, commit)}
        for path in gone:
            del entries[path], changed[path]
        self.commits[commit] = Commit(commit, parent.id if parent else None, title, date, entries, changed)
        self.branches[branch] = commit
        return self.commits[commit]
