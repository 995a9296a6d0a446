"""One connection to the loopback Hub: reads requests, lets some of them fail, and answers."""

from __future__ import annotations

import contextlib
import json
import re
import socket
from dataclasses import replace
from http.server import BaseHTTPRequestHandler
from typing import TYPE_CHECKING
from urllib.parse import parse_qs, unquote

from loopback_hub.messages import Fault, Request, Token
from loopback_hub.repositories import HubError

if TYPE_CHECKING:
    from loopback_hub.hub import Hub


class Connection(BaseHTTPRequestHandler):
    """Requests and answers; what they mean is the matter of :mod:`loopback_hub.api`."""

    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True  # an answer is two packets, and the second one would wait
    token: Token | None = None

    def log_message(self, *args):
        pass

    def do_GET(self):
        self.serve()

    do_HEAD = do_POST = do_PUT = do_DELETE = do_GET

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
            with self.hub.lock:
                self.route()
        except HubError as refused:
            headers = {"X-Error-Code": refused.code, "X-Error-Message": refused.message}
            self.json(
                {"error": refused.message}, refused.status, {key: value for key, value in headers.items() if value}
            )

    def next_fault(self, what):
        with self.hub.lock:
            for fault in self.hub.faults:
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
        self.hub.requests.append(
            Request(self.command, unquote(self.asked), status, len(self.body), sent, authorization)
        )

    def json(self, value, status=200, headers=None):
        self.answer(status, json.dumps(value).encode(), {"Content-Type": "application/json", **(headers or {})})

    @property
    def hub(self) -> Hub:
        """The Hub that is asked."""
        return self.server.hub

    # -------------------------------------------------------------------------------------------------- who asks

    def identify(self):
        authorization = self.headers.get("Authorization")
        if authorization is None:
            return None
        token = self.hub.tokens.get(authorization.removeprefix("Bearer "))
        if token is None or token.expired:
            raise HubError(401, "", "Invalid credentials in Authorization header")
        return token

    def reading(self, name):
        """The repository, for somebody who may know of it."""
        repo = self.hub.repos.get(name)
        if repo is None or (repo.private and (self.token is None or self.token.user != name.partition("/")[0])):
            raise HubError(401 if self.token is None else 404, "RepoNotFound", "Repository not found")
        return repo

    def writing(self, name):
        repo = self.reading(name)
        self.may_write(name.partition("/")[0])
        return repo

    def may_write(self, owner):
        if self.token is None:
            raise HubError(401, "", "Invalid username or password.")
        if self.token.role != "write":
            raise HubError(403, "", "Forbidden: you must use a write token to push to a repository.")
        if self.token.user != owner:
            raise HubError(403, "", f"You don't have the rights to write in the namespace {owner!r}")
