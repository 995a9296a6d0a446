"""What the loopback Hub can be asked, by theme, as the Hugging Face Hub answers it."""

from __future__ import annotations

import hashlib
import json
import re
import time
from urllib.parse import parse_qs, unquote

from loopback_hub.connection import Connection
from loopback_hub.repositories import HubError

REPO = r"(?P<repo>[^/]+/[^/]+)"


class Accounts(Connection):
    """Who somebody is, and what may be created."""

    def whoami(self):
        if self.token is None:
            raise HubError(401, "", "Invalid username or password.")
        access = {"displayName": "test", "role": self.token.role}
        self.json({"type": "user", "name": self.token.user, "orgs": [], "auth": {"accessToken": access}})

    def validate(self):
        asked = json.loads(self.body)
        if not asked["content"].startswith("---\n"):
            return self.json({"errors": [], "warnings": [{"message": "empty or missing yaml metadata in repo card"}]})
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
        if name in self.hub.repos:
            message = "You already created this dataset repo"
            return self.json({"error": message, "url": f"{self.hub.url}/datasets/{name}"}, 409)
        self.hub.create(name, private=asked.get("visibility") == "private" or asked.get("private") is True)
        return self.json({"url": f"{self.hub.url}/datasets/{name}", "name": name})


class References(Connection):
    """Data sets, their branches and tags."""

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
            return [{"name": key, "ref": f"refs/{kind}/{key}", "targetCommit": value} for key, value in names.items()]

        self.json({"branches": listed("heads", known.branches), "tags": listed("tags", known.tags), "converts": []})

    def commits(self, repo, revision):
        known = self.reading(repo)
        found, commit = [], known.at(revision)
        while commit:
            found.append({"id": commit.id, "title": commit.title, "message": "", "date": commit.date, "authors": []})
            commit = known.commits.get(commit.parent or "")
        self.json(found)

    def branch(self, repo, revision):
        known = self.writing(repo)
        start = json.loads(self.body or b"{}").get("startingPoint") or "main"
        if revision in known.branches:
            raise HubError(409, "", "Reference already exists")
        known.branches[revision] = known.at(start).id
        self.json({})

    def tag(self, repo, revision):
        known, name = self.writing(repo), json.loads(self.body)["tag"]
        if name in known.tags:
            raise HubError(409, "", "Tag already exists")
        known.tags[name] = known.at(revision).id
        self.json({})

    def forget(self, repo, kind, revision):
        names = getattr(self.writing(repo), {"branch": "branches", "tag": "tags"}[kind])
        if revision not in names:
            raise HubError(404, "RevisionNotFound", f"Invalid rev id: {revision}")
        del names[revision]
        self.json({})


class Listings(Connection):
    """Files of a revision."""

    def tree(self, repo, revision, path=""):
        commit = self.reading(repo).at(revision)
        prefix = f"{path}/" if path else ""
        below = [one for one in sorted(commit.entries) if one.startswith(prefix)]
        if path and not below:
            raise HubError(404, "EntryNotFound", f"{path} does not exist on {revision!r}")
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
        last = max((commit for commit in below), key=lambda one: self.dates[one]) if expand else ""
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
            if entry.sha256 in (objects := self.hub.xet_objects()):
                found["xetHash"] = objects[entry.sha256][0]
        for key, value in self.hub.false_listings.get(path, {}).items():
            found[key] = {**found.get(key, {}), **value} if isinstance(value, dict) else value
        return found

    @property
    def dates(self):
        return {commit.id: commit.date for repo in self.hub.repos.values() for commit in repo.commits.values()}


class Uploads(Connection):
    """Large files, and commits."""

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
            if self.hub.size_of(one["oid"]) is None:
                elsewhere = self.hub.url.replace("127.0.0.1", "localhost")
                verify = {"href": f"{self.hub.url}/api/lfs-verify/{repo}"}
                found["actions"] = {"upload": {"href": f"{elsewhere}/lfs/{one['oid']}"}, "verify": verify}
            objects.append(found)
        self.json({"transfer": "basic", "objects": objects}, headers={"Content-Type": "application/vnd.git-lfs+json"})

    def put(self, sha256):
        if hashlib.sha256(self.body).hexdigest() != sha256:
            return self.answer(400, b"<Error><Code>BadDigest</Code></Error>", {"Content-Type": "application/xml"})
        self.hub.keep(self.body)
        return self.answer(200)

    def verify(self, repo):
        self.writing(repo)
        asked = json.loads(self.body)
        if self.hub.size_of(asked["oid"]) != asked["size"]:
            raise HubError(404, "", "no such object")
        self.json({})

    def duplicate(self, repo):
        known, asked = self.reading(repo), json.loads(self.body)
        self.open_to(known)
        self.writing(asked["target"]["name"])
        there = {entry.sha256 for commit in known.commits.values() for entry in commit.entries.values()}
        absent = [one["sha256"] for one in asked["files"] if one["sha256"] not in there]
        self.json({"failed": [{"sha256": one, "error": "no such file"} for one in absent]})

    def commit(self, repo, revision):
        known = self.writing(repo)
        commit = known.commit(revision, [json.loads(line) for line in self.body.splitlines() if line.strip()])
        self.json(
            {"success": True, "commitOid": commit, "commitUrl": f"{self.hub.url}/datasets/{repo}/commit/{commit}"}
        )


class Downloads(Connection):
    """Contents of files."""

    def xet_token(self, repo, kind, revision):
        (self.writing if kind == "write" else self.reading)(repo)
        if self.hub.xet is None:
            raise HubError(404, "", "no Xet here")
        url, expires = f"local://{self.hub.xet}", int(time.time()) + 3600
        headers = {"X-Xet-Cas-Url": url, "X-Xet-Token-Expiration": str(expires), "X-Xet-Access-Token": "xet-access"}
        self.json({"casUrl": url, "exp": expires, "accessToken": "xet-access"}, headers=headers)

    def open_to(self, repo):
        owner = repo.name.partition("/")[0]
        if repo.gated and not (
            self.token and (self.token.user == owner or (self.token.user, repo.name) in self.hub.granted)
        ):
            raise HubError(403 if self.token else 401, "GatedRepo", f"Access to dataset {repo.name} is restricted.")

    def resolve(self, repo, revision, path):
        known = self.reading(repo)
        self.open_to(known)
        commit = known.at(revision)
        entry = commit.entries.get(path)
        if entry is None:
            raise HubError(404, "EntryNotFound", f"{path} does not exist on {revision!r}")
        headers = {"X-Repo-Commit": commit.id, "ETag": f'"{entry.oid}"'}
        if entry.sha256 is None:
            return self.send(self.hub.content(entry), headers)
        headers |= {"X-Linked-Size": str(entry.size), "X-Linked-ETag": f'"{entry.sha256}"'}
        if entry.sha256 in (objects := self.hub.xet_objects()):
            refresh = f"{self.hub.url}/api/datasets/{repo}/xet-read-token/{commit.id}"
            headers |= {"X-Xet-Hash": objects[entry.sha256][0], "Link": f'<{refresh}>; rel="xet-auth"'}
        self.hub.content(entry)
        headers["Location"] = f"{self.hub.url.replace('127.0.0.1', 'localhost')}/lfs/{entry.sha256}"
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
        return self.answer(206, data[first:stop], headers | {"Content-Range": f"bytes {first}-{stop - 1}/{len(data)}"})


_API = rf"/api/datasets/{REPO}"
ROUTES = (
    ("GET", r"/api/whoami-v2", "whoami"),
    ("POST", r"/api/validate-yaml", "validate"),
    ("POST", r"/api/repos/create", "new_repo"),
    ("GET", _API, "info"),
    ("GET", _API + r"/revision/(?P<revision>[^/]+)", "info"),
    ("GET", _API + r"/auth-check", "auth_check"),
    ("GET", _API + r"/auth-check/write", "auth_check_write"),
    ("GET", _API + r"/refs", "refs"),
    ("GET", _API + r"/commits/(?P<revision>[^/]+)", "commits"),
    ("POST", _API + r"/branch/(?P<revision>[^/]+)", "branch"),
    ("POST", _API + r"/tag/(?P<revision>[^/]+)", "tag"),
    ("DELETE", _API + r"/(?P<kind>branch|tag)/(?P<revision>[^/]+)", "forget"),
    ("GET", _API + r"/tree/(?P<revision>[^/]+)(?:/(?P<path>.+))?", "tree"),
    ("POST", _API + r"/paths-info/(?P<revision>[^/]+)", "paths_info"),
    ("POST", _API + r"/preupload/(?P<revision>[^/]+)", "preupload"),
    ("POST", rf"/datasets/{REPO}\.git/info/lfs/objects/batch", "batch"),
    ("POST", rf"/api/lfs-verify/{REPO}", "verify"),
    ("POST", _API + r"/lfs-files/duplicate", "duplicate"),
    ("POST", _API + r"/commit/(?P<revision>[^/]+)", "commit"),
    ("GET", _API + r"/xet-(?P<kind>read|write)-token/(?P<revision>[^/]+)", "xet_token"),
    ("GET", rf"/datasets/{REPO}/resolve/(?P<revision>[^/]+)/(?P<path>.+)", "resolve"),
)


class Handler(Accounts, References, Listings, Uploads, Downloads):
    """Finds what a request asks for."""

    def route(self):
        # The other host, to which tokens do not go
        if match := re.fullmatch(r"/lfs/([0-9a-f]{64})", self.asked):
            return self.put(match[1]) if self.command == "PUT" else self.send(self.hub.objects[match[1]], {})
        self.token = self.identify()
        for method, pattern, function in ROUTES:
            match = re.fullmatch(pattern, self.asked)
            if match and method == self.command.replace("HEAD", "GET"):
                return getattr(self, function)(
                    **{key: unquote(value or "") for key, value in match.groupdict().items()}
                )
        raise HubError(404, "", f"no such address: {self.asked}")
