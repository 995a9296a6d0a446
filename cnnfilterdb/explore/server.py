"""The server of the explorer: pages for everyone, answers for those who have the token.

The token stands behind the ``#`` of the printed URL. A browser sends that part to no server and puts it in no Referer;
the page keeps it in its own storage and sends it as a header, which no page of another origin can. So nothing is
answered to a forged form, a foreign page, a name that was rebound to loopback, or another user of the machine.
"""

from __future__ import annotations

import contextlib
import hmac
import html
import json
import os
import secrets
import socket
import tempfile
import threading
import time
import webbrowser
from collections.abc import Callable, Iterator
from functools import partial
from importlib.resources import files
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

import anyio
import anyio.to_thread

from cnnfilterdb.core.errors import CnnFilterDbError, DatabaseError, MissingExtraError
from cnnfilterdb.explore.jobs import CancelledError, Job, current
from cnnfilterdb.explore.views import MEDIA_TYPES, Explorer
from cnnfilterdb.explore.watched import WatchedReader

try:
    import uvicorn
    from starlette.applications import Starlette
    from starlette.concurrency import run_in_threadpool
    from starlette.middleware import Middleware
    from starlette.requests import ClientDisconnect
    from starlette.requests import Request as HttpRequest
    from starlette.responses import FileResponse, JSONResponse, Response
    from starlette.routing import Mount, Route
    from starlette.staticfiles import StaticFiles
except ImportError as error:
    raise MissingExtraError("explore needs Starlette and uvicorn: pip install 'cnnfilterdb[explore]'") from error

if TYPE_CHECKING:
    from starlette.types import ASGIApp, Message, Receive, Scope, Send

    from cnnfilterdb.questions.lineage import Lineage

__all__ = ["PORT", "ExplorerServer", "Guard", "application"]

#: The port unless one is chosen; a fixed one keeps bookmarks of views valid.
PORT = 8737

#: Largest request, in bytes.
_MAX_REQUEST = 4 * 2**20

#: What a page may do: load what this server has, and nothing else. No inline script or style.
_POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' blob: data:; connect-src 'self'; "
    "base-uri 'none'; form-action 'none'; frame-ancestors 'none'; require-trusted-types-for 'script'; "
    "trusted-types default"
)

_HEADERS = {
    "Content-Security-Policy": _POLICY,
    "Cache-Control": "no-store",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Permissions-Policy": "camera=(), geolocation=(), microphone=()",
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
}


class Guard:
    """Refuses requests under another name or from another page, and puts the headers on every answer.

    Args:
        app: What answers the rest.
        hosts: The names that this server has, with its port.
    """

    def __init__(self, app: ASGIApp, hosts: frozenset[str]) -> None:
        self._app = app
        self._hosts = hosts

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer a request (ASGI)."""
        if scope["type"] == "lifespan":
            await self._app(scope, receive, send)
            return
        if scope["type"] != "http":
            return  # no WebSocket is served: the connection is closed

        async def headed(message: Message) -> None:
            if message["type"] == "http.response.start":
                own = [(name.lower().encode(), value.encode()) for name, value in _HEADERS.items()]
                message["headers"] = [*message.get("headers", []), *own]
            await send(message)

        if reason := self._refusal(scope):
            await JSONResponse({"error": reason}, status_code=403)(scope, receive, headed)
        else:
            await self._app(scope, receive, headed)

    def _refusal(self, scope: Scope) -> str:
        """Why a request is refused; "" if it is not."""
        headers: dict[bytes, list[bytes]] = {}
        for name, value in scope["headers"]:
            headers.setdefault(name.lower(), []).append(value)
        hosts = [value.decode("latin-1").lower() for value in headers.get(b"host", [])]
        if len(hosts) != 1 or hosts[0] not in self._hosts:
            return "this server does not have that name (the header Host)"
        for origin in headers.get(b"origin", []):
            if origin.decode("latin-1").lower() not in {f"http://{host}" for host in self._hosts}:
                return "requests of other pages are refused (the header Origin)"
        if any(site not in (b"same-origin", b"none") for site in headers.get(b"sec-fetch-site", [])):
            navigation = headers.get(b"sec-fetch-mode") == [b"navigate"] and scope["method"] == "GET"
            if not navigation or scope["path"] != "/":
                return "requests of other pages are refused (the header Sec-Fetch-Site)"
        return ""


def application(
    db: Lineage,
    *,
    token: str,
    hosts: frozenset[str],
    shown: str | tuple[str, ...],
    seconds: float = 60,
    memory: str = "512MB",
) -> ASGIApp:
    """The application of one database, for an ASGI server.

    Args:
        db: The database; it is only read from.
        token: What requests must present.
        hosts: The names that this server has, with its port, such as ``127.0.0.1:8737``.
        shown: How command lines name the database.
        seconds: Time limit of a question.
        memory: Memory limit of DuckDB.
    """
    watched = WatchedReader(db, memory=memory)
    explorer = Explorer(watched, shown)
    pages = Path(str(files(__package__).joinpath("static")))
    limiter = anyio.CapacityLimiter(8)
    running: dict[str, Job] = {}

    async def page(request: HttpRequest) -> Response:
        return FileResponse(pages / "index.html")

    async def ask(request: HttpRequest) -> Response:
        given = request.headers.get("authorization", "")
        if not hmac.compare_digest(given.encode(), f"Bearer {token}".encode()):
            return JSONResponse({"error": "open the URL that `cnnfilterdb explore` printed"}, status_code=401)
        name = request.path_params["view"]
        if name == "progress":
            found = await _body(request) or {}
            job = running.get(str(found.get("job")))
            return JSONResponse({"done": job.done if job else None})
        question: Callable[[Any], Any] | None = explorer.file if name == "file" else explorer.views.get(name)
        if question is None:
            return JSONResponse({"error": f"no view {name!r}"}, status_code=404)
        try:
            body = await _body(request)
        except ClientDisconnect:
            return Response(status_code=499)
        if body is None:
            return JSONResponse({"error": "expected a JSON object of at most 4 MB"}, status_code=400)
        # The page may name a question, to ask how far it is.
        job, label = Job(seconds), str(body.get("job", ""))[:64]
        if label:
            running[label] = job
        try:
            answer = await _answered(request, partial(question, body), job, limiter)
        except CancelledError as error:
            return JSONResponse({"error": str(error), "cancelled": True}, status_code=409)
        except CnnFilterDbError as error:
            text = " ".join(str(error.args[0] if error.args else error).split())
            if "Out of Memory Error" in text:  # DuckDB's remedies are not those of a page
                text = f"more memory is needed than the limit of {memory}; select less, or raise it by --memory"
            return JSONResponse({"error": text}, status_code=422)
        finally:
            running.pop(label, None)
        if name == "file":
            data, filename = answer
            kind = MEDIA_TYPES[filename.rpartition(".")[2]]
            disposition = f'attachment; filename="{filename}"'
            return Response(data, media_type=kind, headers={"Content-Disposition": disposition})
        if isinstance(answer, bytes):
            return Response(answer, media_type="application/octet-stream")
        return Response(await run_in_threadpool(_json, answer), media_type="application/json")

    @contextlib.asynccontextmanager
    async def lifespan(app: Starlette) -> Any:
        # What the first views need is read while the browser starts.
        job = Job(seconds)

        def prepare() -> None:
            with job:
                current.set(job)
                explorer.prepare()

        thread = threading.Thread(target=prepare, daemon=True, name="prepare")
        thread.start()
        yield
        await run_in_threadpool(job.stop, "closed")
        thread.join()
        watched.close()

    return Starlette(
        routes=[
            Route("/", page, methods=["GET"]),
            Route("/api/{view}", ask, methods=["POST"]),
            Mount("/static", StaticFiles(directory=pages)),
        ],
        middleware=[Middleware(Guard, hosts=hosts)],
        lifespan=lifespan,
    )


def _json(answer: Any) -> bytes:
    return json.dumps(answer, ensure_ascii=False, allow_nan=False, default=str).encode("utf-8", "replace")


async def _body(request: HttpRequest) -> dict[str, Any] | None:
    """The JSON object of a request, or None."""
    data = b""
    async for part in request.stream():
        data += part
        if len(data) > _MAX_REQUEST:
            return None
    try:
        found = json.loads(data or b"{}")
    except (ValueError, RecursionError):
        return None
    return found if isinstance(found, dict) else None


async def _answered(request: HttpRequest, question: Callable[[], Any], job: Job, limiter: anyio.CapacityLimiter) -> Any:
    """The answer to a question, which is cancelled when the browser closes the connection."""

    def work() -> Any:
        with job:
            current.set(job)
            try:
                return question()
            except CancelledError:
                raise
            except Exception:
                job.check()  # the interrupt of a query is not an error of the question
                raise

    answers: list[Any] = []
    errors: list[BaseException] = []

    async def watch(scope: anyio.CancelScope) -> None:
        while (await request.receive())["type"] != "http.disconnect":
            pass
        if not answers and not errors:
            await run_in_threadpool(job.stop, "cancelled")

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(watch, tasks.cancel_scope)
        try:
            answers.append(await anyio.to_thread.run_sync(work, limiter=limiter))
        except Exception as error:  # raised below, not inside a group of tasks
            errors.append(error)
        tasks.cancel_scope.cancel()
    if errors:
        raise errors[0]
    return answers[0]


class ExplorerServer:
    """An explorer of one database, which listens: :meth:`run` serves in this thread, :meth:`start` in another.

    Args:
        db: The database; it is only read from.
        shown: How command lines name it.
        host: Address to listen on; any other than loopback lets other machines in, who need the token too.
        port: Port; by default :data:`PORT`, or a free one if that is in use.
        seconds: Time limit of a question.
        memory: Memory limit of DuckDB.

    Attributes:
        shown: What people call the database.
        url: What to open in a browser. It contains the token, so whoever has it can read the database.

    Raises:
        DatabaseError: The address is in use.
    """

    def __init__(
        self,
        db: Lineage,
        *,
        shown: str | tuple[str, ...],
        host: str = "127.0.0.1",
        port: int | None = None,
        seconds: float = 60,
        memory: str = "512MB",
    ) -> None:
        self._listener = _listen(host, port)
        number = self._listener.getsockname()[1]
        name = f"[{host}]" if ":" in host else host
        names = {name, "localhost", "127.0.0.1", "[::1]"} if host in ("127.0.0.1", "::1", "localhost") else {name}
        if host in ("0.0.0.0", "::"):
            names = {"localhost", "127.0.0.1", socket.gethostname().lower(), socket.getfqdn().lower()}
            name = socket.gethostname().lower()
        token = secrets.token_urlsafe(32)
        hosts = frozenset(f"{one.lower()}:{number}" for one in names)
        self.url = f"http://{name}:{number}/#token={token}"
        self.shown = shown if isinstance(shown, str) else db.location
        app = application(db, token=token, hosts=hosts, shown=shown, seconds=seconds, memory=memory)
        config = uvicorn.Config(
            app, log_level="warning", access_log=False, server_header=False, ws="none", timeout_graceful_shutdown=1
        )
        self._server = uvicorn.Server(config)
        self._browser = contextlib.ExitStack()  # what the browser reads
        self._thread: threading.Thread | None = None

    def __repr__(self) -> str:
        state = "running" if self._thread and self._thread.is_alive() else "not running"
        return f"ExplorerServer({self.shown!r}, {state})"

    def _repr_html_(self) -> str:
        """A link, for notebooks; the page itself refuses to be shown in a frame."""
        if not (self._thread and self._thread.is_alive()):
            return html.escape(repr(self))
        link = f'<a href="{html.escape(self.url)}" target="_blank" rel="noopener noreferrer">Open the explorer</a>'
        return f"{link} of {html.escape(self.shown)}; <code>close()</code> ends it."

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def show(self) -> None:
        """Open the browser."""
        self._browser.enter_context(_opened(self.url))

    def run(self) -> None:
        """Serve until the process is interrupted."""
        with self._listener, self._browser:
            self._server.run(sockets=[self._listener])

    def start(self) -> Self:
        """Serve in a thread that ends with the process, or by :meth:`close`; returns when requests are answered.

        Raises:
            DatabaseError: The server does not start.
        """
        self._thread = threading.Thread(target=self.run, daemon=True, name="explorer")
        self._thread.start()
        while not self._server.started:
            if not self._thread.is_alive():
                raise DatabaseError(f"{self.shown}: the explorer did not start; see the log for the reason")
            time.sleep(0.01)
        return self

    def close(self) -> None:
        """End the server and free its memory and port. Closing twice is allowed."""
        self._server.should_exit = True
        if self._thread:
            self._thread.join()
        self._browser.close()
        self._listener.close()


def _listen(host: str, port: int | None) -> socket.socket:
    """A socket that listens."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    for number in [port] if port is not None else [PORT, 0]:
        listener = socket.socket(family, socket.SOCK_STREAM)
        if os.name != "nt":
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            listener.bind((host, number))
            listener.listen()
        except OSError as error:
            listener.close()
            if number != PORT or port is not None:
                raise DatabaseError(
                    f"{host}:{number}: cannot listen there: {error.strerror or error}; give another --port or --host"
                ) from error
        else:
            return listener
    raise AssertionError


@contextlib.contextmanager
def _opened(url: str) -> Iterator[None]:
    """Open the browser on a file that leads to the URL: arguments of processes can be read by all users."""
    with tempfile.TemporaryDirectory(prefix="cnnfilterdb-") as folder:  # which only its owner can read
        path = Path(folder, "explore.html")
        path.write_text(f'<!doctype html><meta http-equiv="refresh" content="0; url={url}"><title>explorer</title>')
        with contextlib.suppress(webbrowser.Error):
            webbrowser.open(path.as_uri())
        yield
