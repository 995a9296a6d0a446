"""A Hugging Face Hub on the loopback interface, for unmodified clients: data sets, commits, tags, large files, tokens.

Its repositories live in memory. A test says what is there, what goes wrong with which request, and afterwards what was
asked and how many bytes moved::

    hub = Hub()                                            # HF_ENDPOINT=hub.url, or endpoint=hub.url per call
    hub.tokens["hf_x"] = Token("owner")                    # may write to owner/...
    hub.create("owner/name").push({"README.md": b"..."})   # as somebody else would
    hub.fail("PUT /lfs/", status=500, times=2)
    hub.received("PUT /lfs/")                              # bytes of request bodies

Large files go by Git LFS, or, with ``xet=FOLDER``, through hf_xet, which then keeps its objects in that folder instead
of sending them to a server. ``local://`` is an internal matter of hf_xet: the layout of the folder is that of 1.8.
"""

from __future__ import annotations

import base64
import contextlib
import fnmatch
import hashlib
import json
import re
import shutil
import socket
import struct
import tempfile
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import parse_qs, unquote

#: What a new repository has in it, shortened.
GITATTRIBUTES = b"*.parquet filter=lfs diff=lfs merge=lfs -text\n*.png filter=lfs diff=lfs merge=lfs -text\n"

#: Files above this size are large whatever their name.
LARGE = 10 << 20

_REPO = r"(?P<repo>[^/]+/[^/]+)"


@dataclass(frozen=True)
class Token:
    """Who somebody is, and what they may do."""

    user: str = "owner"
    role: str = "write"
    expired: bool = False


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


@dataclass
class Fault:
    """What goes wrong with requests that match, a number of times.

    A status is answered without more. ``cut`` closes the connection after so many bytes: of the request where it has a
    body, else of the answer. ``lost`` does what is asked and closes the connection instead of an answer. ``action`` is
    called before, for what happens meanwhile.
    """

    pattern: str
    times: int = 1
    status: int | None = None
    headers: Mapping[str, str] = field(default_factory=dict)
    body: bytes = b""
    cut: int | None = None
    lost: bool = False
    action: Callable[[], None] | None = None


@dataclass(frozen=True)
class Request:
    """What was asked: bytes of its body, bytes of the body of the answer."""

    method: str
    path: str
    status: int
    received: int
    sent: int
    authorization: str | None


class Refused(Exception):
    """An answer that is no success."""

    def __init__(self, status: int, code: str = "", message: str = "") -> None:
        super().__init__(status, code, message)
        self.status, self.code, self.message = status, code, message


def _git_oid(data: bytes) -> str:
    return hashlib.sha1(b"blob %d\0" % len(data) + data).hexdigest()


class Repository:
    """A data set: branches and tags name commits."""

    def __init__(self, hub: Hub, name: str, private: bool, gated: bool) -> None:
        self.hub, self.name, self.private, self.gated = hub, name, private, gated
        self.commits: dict[str, Commit] = {}
        self.branches: dict[str, str] = {}
        self.tags: dict[str, str] = {}
        self._add("main", "initial commit", {".gitattributes": self._small(GITATTRIBUTES)}, ())

    def push(self, files: Mapping[str, bytes | None], branch: str = "main", title: str = "somebody else") -> str:
        """Commit files, None for those that go; small and large are told apart as for everybody."""
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
            raise Refused(404, "RevisionNotFound", f"Invalid rev id: {revision}")
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
            raise Refused(
                400, "", "Your push was rejected because an LFS pointer pointed to a file that does not exist."
            )
        pointer = f"version https://git-lfs.github.com/spec/v1\noid sha256:{sha256}\nsize {known}\n".encode()
        return Entry(known, _git_oid(pointer), None, sha256, len(pointer))

    def commit(self, branch: str, lines: list[dict]) -> str:
        """What the commit endpoint does with its lines."""
        if branch not in self.branches:
            raise Refused(404, "RevisionNotFound", f"Invalid rev id: {branch}")
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
                    raise Refused(404, "EntryNotFound", "A file with this name doesn't exist")
                gone.append(value["path"])
            else:
                raise Refused(400, "", f"unknown key {line['key']}")
        if header.get("parentCommit") not in (None, head.id):
            raise Refused(412, "", "A commit has happened since. Please refresh and try again.")
        return self._add(branch, header["summary"], changes, gone).id

    def _small(self, data: bytes) -> Entry:
        return Entry(len(data), _git_oid(data), data)

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


class Hub:
    """The server; it runs until it is closed.

    Args:
        xet: Folder in which hf_xet keeps objects; None for a server without Xet.
    """

    def __init__(self, xet: Path | None = None) -> None:
        self.xet = xet
        self.repos: dict[str, Repository] = {}
        self.tokens: dict[str, Token] = {}
        self.granted: set[tuple[str, str]] = set()  # (user, repository) that a gated repository admits
        self.faults: list[Fault] = []
        self.lies: dict[str, dict] = {}  # path -> what the listings say of it instead of the truth
        self.requests: list[Request] = []
        self.lock = threading.RLock()
        self._store: dict[str, bytes] = {}
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), _handler(self))
        self._server.daemon_threads = True
        threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self._server.server_port}"

    def create(self, name: str, private: bool = False, gated: bool = False) -> Repository:
        """A new repository with its first commit."""
        self.repos[name] = Repository(self, name, private, gated)
        return self.repos[name]

    def fail(self, pattern: str, **what: object) -> None:
        """The next requests that match ("METHOD /path", a regular expression) go wrong; see :class:`Fault`."""
        self.faults.append(Fault(pattern, **what))

    def asked(self, pattern: str) -> list[Request]:
        """Requests so far that match "METHOD /path"."""
        return [one for one in self.requests if re.search(pattern, f"{one.method} {one.path}")]

    def received(self, pattern: str = "") -> int:
        """Bytes of the bodies of requests."""
        return sum(one.received for one in self.asked(pattern))

    def sent(self, pattern: str = "") -> int:
        """Bytes of the bodies of answers."""
        return sum(one.sent for one in self.asked(pattern))

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()

    # ---------------------------------------------------------------------------------------------- large objects

    def keep(self, data: bytes) -> str:
        """Put an object into the store."""
        sha256 = hashlib.sha256(data).hexdigest()
        self._store[sha256] = data
        return sha256

    def size_of(self, sha256: str) -> int | None:
        """Size of an object; None for one that is not here."""
        if sha256 in self._store:
            return len(self._store[sha256])
        return self.xet_objects().get(sha256, (None, None))[1]

    def content(self, entry: Entry) -> bytes:
        """Content of a file."""
        if entry.data is not None:
            return entry.data
        if entry.sha256 not in self._store:
            self._store[entry.sha256] = self._from_xet(entry.sha256)
        return self._store[entry.sha256]

    def xet_objects(self) -> dict[str, tuple[str, int]]:
        """What hf_xet has brought: SHA-256 -> (its own hash, size), from the shards that tell of whole files."""
        found: dict[str, tuple[str, int]] = {}
        for path in sorted((self.xet / "xet/xorbs/shards").glob("*.mdb")) if self.xet else ():
            data, at = path.read_bytes(), 48
            while data[at : at + 32] != b"\xff" * 32:
                file_hash = _hexadecimal(data[at : at + 32])
                flags, number = struct.unpack_from("<II", data, at + 32)
                at += 48
                size = sum(struct.unpack_from("<I", data, at + 48 * i + 36)[0] for i in range(number))
                at += 48 * number * (2 if flags >> 31 & 1 else 1)
                if flags >> 30 & 1:
                    found[_hexadecimal(data[at : at + 32])] = (file_hash, size)
                    at += 48
        return found

    def xet_bytes(self) -> int:
        """Bytes of the blocks of content that hf_xet has brought."""
        assert self.xet is not None
        return sum(path.stat().st_size for path in (self.xet / "xet/xorbs/xorbs").glob("default.*"))

    def _from_xet(self, sha256: str) -> bytes:
        import hf_xet

        assert self.xet is not None
        file_hash, size = self.xet_objects()[sha256]
        with tempfile.TemporaryDirectory() as folder:
            # A copy, because a client that is at work has the database of the folder locked
            shutil.copytree(self.xet / "xet/xorbs", Path(folder, "xet/xorbs"))
            session = hf_xet.XetSession()
            with session.new_file_download_group(endpoint=f"local://{folder}") as group:
                group.start_download_file(hf_xet.XetFileInfo(file_hash, size), f"{folder}/content")
            return Path(folder, "content").read_bytes()


def _hexadecimal(data: bytes) -> str:
    """A hash as hf_xet spells it: four little-endian numbers."""
    return b"".join(data[i : i + 8][::-1] for i in range(0, 32, 8)).hex()


def _handler(hub: Hub) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"
        disable_nagle_algorithm = True  # an answer is two packets, and the second one would wait
        token: Token | None = None

        def log_message(self, *args):
            pass

        def do_GET(self):
            self.serve()

        do_HEAD = do_POST = do_PUT = do_DELETE = do_GET

        # ------------------------------------------------------------------------------------------ coming and going

        def serve(self):
            path, _, query = self.path.partition("?")
            self.asked, self.query = path, {key: values[-1] for key, values in parse_qs(query).items()}
            self.body, self.fault = b"", self.next_fault(f"{self.command} {path}")
            if self.fault.action:
                self.fault.action()
            length = int(self.headers.get("Content-Length") or 0)
            if self.fault.cut is not None and length:
                self.body = self.rfile.read(min(self.fault.cut, length))
                return self.hang_up(0)
            self.body = (
                self.read_chunks() if self.headers.get("Transfer-Encoding") == "chunked" else self.rfile.read(length)
            )
            if self.fault.status is not None:
                return self.answer(self.fault.status, self.fault.body, self.fault.headers)
            try:
                with hub.lock:
                    self.route()
            except Refused as refused:
                headers = {"X-Error-Code": refused.code, "X-Error-Message": refused.message}
                self.json(
                    {"error": refused.message}, refused.status, {key: value for key, value in headers.items() if value}
                )

        def next_fault(self, what):
            with hub.lock:
                for fault in hub.faults:
                    if fault.times > 0 and re.search(fault.pattern, what):
                        fault.times -= 1
                        return replace(fault)
            return Fault("")

        def read_chunks(self):
            chunks = []
            while size := int(self.rfile.readline().split(b";")[0], 16):
                chunks.append(self.rfile.read(size))
                self.rfile.readline()
            self.rfile.readline()
            return b"".join(chunks)

        def answer(self, status, body=b"", headers=None):
            if self.fault.lost:
                return self.hang_up(status)
            part = body[: self.fault.cut] if self.command != "HEAD" else b""
            self.log(status, len(part))
            self.send_response(status)
            for key, value in {"Content-Length": str(len(body)), **(headers or {})}.items():
                self.send_header(key, value)
            self.end_headers()
            with contextlib.suppress(OSError):
                self.wfile.write(part)
                self.wfile.flush()
            if self.command != "HEAD" and len(part) < len(body):
                self.close_connection = True

        def hang_up(self, status):
            self.log(status, 0)
            self.close_connection = True
            with contextlib.suppress(OSError):
                self.connection.shutdown(socket.SHUT_RDWR)

        def log(self, status, sent):
            authorization = self.headers.get("Authorization")
            hub.requests.append(Request(self.command, unquote(self.asked), status, len(self.body), sent, authorization))

        def json(self, value, status=200, headers=None):
            self.answer(status, json.dumps(value).encode(), {"Content-Type": "application/json", **(headers or {})})

        # -------------------------------------------------------------------------------------------------- who asks

        def identify(self):
            authorization = self.headers.get("Authorization")
            if authorization is None:
                return None
            token = hub.tokens.get(authorization.removeprefix("Bearer "))
            if token is None or token.expired:
                raise Refused(401, "", "Invalid credentials in Authorization header")
            return token

        def reading(self, name):
            """The repository, for somebody who may know of it."""
            repo = hub.repos.get(name)
            if repo is None or (repo.private and (self.token is None or self.token.user != name.partition("/")[0])):
                raise Refused(401 if self.token is None else 404, "RepoNotFound", "Repository not found")
            return repo

        def writing(self, name):
            repo = self.reading(name)
            self.may_write(name.partition("/")[0])
            return repo

        def may_write(self, owner):
            if self.token is None:
                raise Refused(401, "", "Invalid username or password.")
            if self.token.role != "write":
                raise Refused(403, "", "Forbidden: you must use a write token to push to a repository.")
            if self.token.user != owner:
                raise Refused(403, "", f"You don't have the rights to write in the namespace {owner!r}")

        # ------------------------------------------------------------------------------------------- what is asked

        def route(self):
            # The other host, to which tokens do not go
            if match := re.fullmatch(r"/lfs/([0-9a-f]{64})", self.asked):
                return self.put(match[1]) if self.command == "PUT" else self.send(hub._store[match[1]], {})
            self.token = self.identify()
            for method, pattern, function in self.routes:
                match = re.fullmatch(pattern, self.asked)
                if match and method == self.command.replace("HEAD", "GET"):
                    return function(self, **{key: unquote(value or "") for key, value in match.groupdict().items()})
            raise Refused(404, "", f"no such address: {self.asked}")

        def whoami(self):
            if self.token is None:
                raise Refused(401, "", "Invalid username or password.")
            access = {"displayName": "test", "role": self.token.role}
            self.json({"type": "user", "name": self.token.user, "orgs": [], "auth": {"accessToken": access}})

        def validate(self):
            asked = json.loads(self.body)
            if not asked["content"].startswith("---\n"):
                return self.json(
                    {"errors": [], "warnings": [{"message": "empty or missing yaml metadata in repo card"}]}
                )
            import yaml

            try:
                yaml.safe_load(asked["content"].split("---\n")[1])
            except yaml.YAMLError as error:
                return self.json({"errors": [{"message": str(error)}], "warnings": []}, 400)
            return self.json({"errors": [], "warnings": []})

        def new_repo(self):
            asked = json.loads(self.body)
            owner = asked.get("organization") or (self.token.user if self.token else "")
            name = f"{owner}/{asked['name']}"
            self.may_write(owner)
            if name in hub.repos:
                message = "You already created this dataset repo"
                return self.json({"error": message, "url": f"{hub.url}/datasets/{name}"}, 409)
            hub.create(name, private=asked.get("visibility") == "private" or asked.get("private") is True)
            return self.json({"url": f"{hub.url}/datasets/{name}", "name": name})

        def info(self, repo, revision=""):
            known = self.reading(repo)
            commit = known.at(revision or "main")
            siblings = [{"rfilename": path} for path in commit.entries]
            described = {"id": repo, "sha": commit.id, "private": known.private, "gated": known.gated and "manual"}
            self.json({**described, "tags": [], "siblings": siblings, "lastModified": commit.date, "downloads": 0})

        def auth_check(self, repo):
            self.open_to(self.reading(repo))
            self.json({})

        def auth_check_write(self, repo):
            self.writing(repo)
            self.json({})

        def refs(self, repo):
            known = self.reading(repo)

            def listed(kind, names):
                return [
                    {"name": key, "ref": f"refs/{kind}/{key}", "targetCommit": value} for key, value in names.items()
                ]

            self.json({"branches": listed("heads", known.branches), "tags": listed("tags", known.tags), "converts": []})

        def commits(self, repo, revision):
            known = self.reading(repo)
            found, commit = [], known.at(revision)
            while commit:
                found.append(
                    {"id": commit.id, "title": commit.title, "message": "", "date": commit.date, "authors": []}
                )
                commit = known.commits.get(commit.parent or "")
            self.json(found)

        def branch(self, repo, revision):
            known = self.writing(repo)
            start = json.loads(self.body or b"{}").get("startingPoint") or "main"
            if revision in known.branches:
                raise Refused(409, "", "Reference already exists")
            known.branches[revision] = known.at(start).id
            self.json({})

        def tag(self, repo, revision):
            known, name = self.writing(repo), json.loads(self.body)["tag"]
            if name in known.tags:
                raise Refused(409, "", "Tag already exists")
            known.tags[name] = known.at(revision).id
            self.json({})

        def forget(self, repo, kind, revision):
            names = getattr(self.writing(repo), {"branch": "branches", "tag": "tags"}[kind])
            if revision not in names:
                raise Refused(404, "RevisionNotFound", f"Invalid rev id: {revision}")
            del names[revision]
            self.json({})

        # --------------------------------------------------------------------------------------------------- listings

        def tree(self, repo, revision, path=""):
            commit = self.reading(repo).at(revision)
            prefix = f"{path}/" if path else ""
            below = [one for one in sorted(commit.entries) if one.startswith(prefix)]
            if path and not below:
                raise Refused(404, "EntryNotFound", f"{path} does not exist on {revision!r}")
            folders = {"/".join(one.split("/")[:i]) for one in below for i in range(1, one.count("/") + 1)}
            everything = sorted({*below, *(one for one in folders if one.startswith(prefix))})
            recursive = self.query.get("recursive", "").lower() == "true"
            wanted = [one for one in everything if recursive or "/" not in one.removeprefix(prefix)]
            self.json([self.described(commit, one) for one in wanted])

        def paths_info(self, repo, revision):
            commit = self.reading(repo).at(revision)
            text = self.body.decode()
            if "json" in self.headers.get("Content-Type", ""):
                asked = json.loads(text)
                paths, self.query["expand"] = asked["paths"], str(asked.get("expand", ""))
            else:
                asked = parse_qs(text)
                paths, self.query["expand"] = asked.get("paths", []), asked.get("expand", [""])[-1]
            folders = {"/".join(one.split("/")[:i]) for one in commit.entries for i in range(1, one.count("/") + 1)}
            self.json([self.described(commit, one) for one in paths if one in commit.entries or one in folders])

        def described(self, commit, path):
            entry = commit.entries.get(path)
            expand = self.query.get("expand", "").lower() == "true"
            below = [value for key, value in commit.changed.items() if key == path or key.startswith(f"{path}/")]
            last = max((hub_commit for hub_commit in below), key=lambda one: self.dates[one]) if expand else ""
            found = {"lastCommit": {"id": last, "title": "", "date": self.dates[last]}} if expand else {}
            if entry is None:
                return {
                    "type": "directory",
                    "oid": hashlib.sha1(path.encode()).hexdigest(),
                    "size": 0,
                    "path": path,
                    **found,
                }
            found = {"type": "file", "oid": entry.oid, "size": entry.size, "path": path, **found}
            if entry.sha256:
                found["lfs"] = {"oid": entry.sha256, "size": entry.size, "pointerSize": entry.pointer_size}
                if entry.sha256 in (objects := hub.xet_objects()):
                    found["xetHash"] = objects[entry.sha256][0]
            for key, value in hub.lies.get(path, {}).items():
                found[key] = {**found.get(key, {}), **value} if isinstance(value, dict) else value
            return found

        @property
        def dates(self):
            return {commit.id: commit.date for repo in hub.repos.values() for commit in repo.commits.values()}

        # ----------------------------------------------------------------------------------------------------- files

        def preupload(self, repo, revision):
            known = self.writing(repo)
            entries, answer = known.at(revision).entries, []
            for one in json.loads(self.body)["files"]:
                large = known.is_large(one["path"], one["size"], revision)
                entry = entries.get(one["path"])
                found = {"path": one["path"], "uploadMode": "lfs" if large else "regular", "shouldIgnore": False}
                answer.append(found | ({"oid": entry.sha256 or entry.oid} if entry else {}))
            self.json({"files": answer})

        def batch(self, repo):
            self.writing(repo)
            objects = []
            for one in json.loads(self.body)["objects"]:
                found = {"oid": one["oid"], "size": one["size"]}
                if hub.size_of(one["oid"]) is None:
                    elsewhere = hub.url.replace("127.0.0.1", "localhost")
                    verify = {"href": f"{hub.url}/api/lfs-verify/{repo}"}
                    found["actions"] = {"upload": {"href": f"{elsewhere}/lfs/{one['oid']}"}, "verify": verify}
                objects.append(found)
            self.json(
                {"transfer": "basic", "objects": objects}, headers={"Content-Type": "application/vnd.git-lfs+json"}
            )

        def put(self, sha256):
            if hashlib.sha256(self.body).hexdigest() != sha256:
                return self.answer(400, b"<Error><Code>BadDigest</Code></Error>", {"Content-Type": "application/xml"})
            hub.keep(self.body)
            return self.answer(200)

        def verify(self, repo):
            self.writing(repo)
            asked = json.loads(self.body)
            if hub.size_of(asked["oid"]) != asked["size"]:
                raise Refused(404, "", "no such object")
            self.json({})

        def commit(self, repo, revision):
            known = self.writing(repo)
            commit = known.commit(revision, [json.loads(line) for line in self.body.splitlines() if line.strip()])
            self.json({"success": True, "commitOid": commit, "commitUrl": f"{hub.url}/datasets/{repo}/commit/{commit}"})

        def xet_token(self, repo, kind, revision):
            (self.writing if kind == "write" else self.reading)(repo)
            if hub.xet is None:
                raise Refused(404, "", "no Xet here")
            url, expires = f"local://{hub.xet}", int(time.time()) + 3600
            headers = {"X-Xet-Cas-Url": url, "X-Xet-Token-Expiration": str(expires), "X-Xet-Access-Token": "xet-access"}
            self.json({"casUrl": url, "exp": expires, "accessToken": "xet-access"}, headers=headers)

        def open_to(self, repo):
            owner = repo.name.partition("/")[0]
            if repo.gated and not (
                self.token and (self.token.user == owner or (self.token.user, repo.name) in hub.granted)
            ):
                raise Refused(403 if self.token else 401, "GatedRepo", f"Access to dataset {repo.name} is restricted.")

        def resolve(self, repo, revision, path):
            known = self.reading(repo)
            self.open_to(known)
            commit = known.at(revision)
            entry = commit.entries.get(path)
            if entry is None:
                raise Refused(404, "EntryNotFound", f"{path} does not exist on {revision!r}")
            headers = {"X-Repo-Commit": commit.id, "ETag": f'"{entry.oid}"'}
            if entry.sha256 is None:
                return self.send(hub.content(entry), headers)
            headers |= {"X-Linked-Size": str(entry.size), "X-Linked-ETag": f'"{entry.sha256}"'}
            if entry.sha256 in (objects := hub.xet_objects()):
                refresh = f"{hub.url}/api/datasets/{repo}/xet-read-token/{commit.id}"
                headers |= {"X-Xet-Hash": objects[entry.sha256][0], "Link": f'<{refresh}>; rel="xet-auth"'}
            hub.content(entry)
            headers["Location"] = f"{hub.url.replace('127.0.0.1', 'localhost')}/lfs/{entry.sha256}"
            return self.answer(302, b"", headers)

        def send(self, data, headers):
            headers = {"Accept-Ranges": "bytes", "Content-Type": "application/octet-stream", **headers}
            span = re.fullmatch(r"bytes=(\d*)-(\d*)", self.headers.get("Range", ""))
            if span is None or span[0] == "bytes=-":
                return self.answer(200, data, headers)
            first = int(span[1]) if span[1] else max(len(data) - int(span[2]), 0)
            stop = min(int(span[2]) + 1, len(data)) if span[1] and span[2] else len(data)
            if first >= len(data):
                return self.answer(416, b"", {"Content-Range": f"bytes */{len(data)}"})
            return self.answer(
                206, data[first:stop], headers | {"Content-Range": f"bytes {first}-{stop - 1}/{len(data)}"}
            )

        _api = rf"/api/datasets/{_REPO}"
        routes = (
            ("GET", r"/api/whoami-v2", whoami),
            ("POST", r"/api/validate-yaml", validate),
            ("POST", r"/api/repos/create", new_repo),
            ("GET", _api, info),
            ("GET", _api + r"/revision/(?P<revision>[^/]+)", info),
            ("GET", _api + r"/auth-check", auth_check),
            ("GET", _api + r"/auth-check/write", auth_check_write),
            ("GET", _api + r"/refs", refs),
            ("GET", _api + r"/commits/(?P<revision>[^/]+)", commits),
            ("POST", _api + r"/branch/(?P<revision>[^/]+)", branch),
            ("POST", _api + r"/tag/(?P<revision>[^/]+)", tag),
            ("DELETE", _api + r"/(?P<kind>branch|tag)/(?P<revision>[^/]+)", forget),
            ("GET", _api + r"/tree/(?P<revision>[^/]+)(?:/(?P<path>.+))?", tree),
            ("POST", _api + r"/paths-info/(?P<revision>[^/]+)", paths_info),
            ("POST", _api + r"/preupload/(?P<revision>[^/]+)", preupload),
            ("POST", rf"/datasets/{_REPO}\.git/info/lfs/objects/batch", batch),
            ("POST", rf"/api/lfs-verify/{_REPO}", verify),
            ("POST", _api + r"/commit/(?P<revision>[^/]+)", commit),
            ("GET", _api + r"/xet-(?P<kind>read|write)-token/(?P<revision>[^/]+)", xet_token),
            ("GET", rf"/datasets/{_REPO}/resolve/(?P<revision>[^/]+)/(?P<path>.+)", resolve),
        )

    return Handler
