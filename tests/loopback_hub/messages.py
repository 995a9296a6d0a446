"""Who asks, what was asked, and what goes wrong."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field


@dataclass(frozen=True)
class Token:
    """Who somebody is, and what they may do."""

    user: str = "owner"
    role: str = "write"
    expired: bool = False


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
