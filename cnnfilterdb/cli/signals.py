"""Ctrl-C and SIGTERM end a command promptly, even while it waits for code that does not return to Python."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import sys
import threading
from collections.abc import Iterator
from types import FrameType

__all__ = ["Interrupted", "ending_soon"]

#: Seconds that a command has to end on its own.
_GRACE = 1.2

#: Seconds after which an interrupt is raised again.
_LATER = 0.02

#: The message of DuckDB's RuntimeError when a signal interrupts a query.
_DUCKDB = "Query interrupted"


class Interrupted(BaseException):
    """The process was asked to end, by Ctrl-C (SIGINT) or by SIGTERM.

    Not a KeyboardInterrupt, which click would turn into an exception of its own, after an empty line.

    Attributes:
        number: Number of the signal.
    """

    def __init__(self, number: int) -> None:
        self.number = number


@contextlib.contextmanager
def ending_soon(message: str) -> Iterator[None]:
    """Raise :class:`Interrupted` on Ctrl-C and on SIGTERM, and exit soon if it has no effect.

    Compiled code may not return to Python before its work is done, and only then would the exception be raised. A
    thread therefore waits a moment after a signal and then ends the process. Databases remain intact at any time.
    DuckDB detects a signal itself and raises a RuntimeError, which is converted to the exception of that signal. So is
    an error that the exception became on its way: Python makes a RuntimeError of any that leaves a ``__set_name__``.

    Args:
        message: The line to print in that case.
    """
    if threading.current_thread() is not threading.main_thread() or os.name == "nt":
        yield
        return

    received: list[int] = []

    main_thread = threading.get_ident()

    def send_later(number: int) -> None:
        later = threading.Timer(_LATER, signal.pthread_kill, (main_thread, number))
        later.daemon = True
        later.start()

    def interrupt(number: int, frame: FrameType | None) -> None:
        # An extension module whose import fails half-way may end the process in its own way.
        if _importing(frame):
            send_later(number)
        else:
            raise Interrupted(number)

    receiver, sender = socket.socketpair()
    sender.setblocking(False)
    former = {
        number: signal.signal(number, interrupt)
        for number in (signal.SIGINT, signal.SIGTERM)
        if signal.getsignal(number) is not signal.SIG_IGN  # as of a shell that runs it in the background
    }
    former_fd = signal.set_wakeup_fd(sender.fileno(), warn_on_full_buffer=False)
    started, done = threading.Event(), threading.Event()

    def watch() -> None:
        while number := receiver.recv(1):
            if number[0] in (signal.SIGINT, signal.SIGTERM):
                received.append(number[0])
                started.set()
                break
        if number and not done.wait(_GRACE):
            with contextlib.suppress(OSError):  # nobody may be left to read it
                os.write(2, f"{message}\n".encode())
            os._exit(128 + number[0])

    former_hook = sys.unraisablehook

    def again(lost: sys.UnraisableHookArgs) -> None:
        """An interrupt during a callback or a destructor, which Python only prints, is raised again."""
        if isinstance(lost.exc_value, Interrupted):
            send_later(lost.exc_value.number)  # what is raised before the hook has returned is lost, too
        else:
            former_hook(lost)

    sys.unraisablehook = again
    watcher = threading.Thread(target=watch, daemon=True, name="signals")
    watcher.start()
    try:
        yield
    except Exception as error:
        if (behind := _behind(error)) is not None:
            raise Interrupted(behind.number) from error
        if not isinstance(error, RuntimeError) or str(error) != _DUCKDB:
            raise
        started.wait(_GRACE / 2)  # the thread may not have run yet
        raise Interrupted(received[0] if received else signal.SIGINT) from error
    finally:
        done.set()
        signal.set_wakeup_fd(former_fd)
        for number, handler in former.items():
            signal.signal(number, handler)
        sys.unraisablehook = former_hook
        sender.close()
        watcher.join(1)
        receiver.close()


def _importing(frame: FrameType | None) -> bool:
    """Whether a frame runs while a module is imported."""
    while frame is not None and not frame.f_code.co_filename.startswith("<frozen importlib"):
        frame = frame.f_back
    return frame is not None


def _behind(error: BaseException) -> Interrupted | None:
    """The interrupt that an error was raised from, or while handling it."""
    rest: list[BaseException | None] = [error]
    seen = set[int]()  # errors that are raised again may be each other's cause
    while rest:
        one = rest.pop()
        if isinstance(one, Interrupted):
            return one
        if one is not None and id(one) not in seen:
            seen.add(id(one))
            rest += [one.__cause__, one.__context__]
    return None
