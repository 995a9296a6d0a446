"""Run the command line: ``cnnfilterdb``, or ``python -m cnnfilterdb``.

Importing the command line takes a while, and an interrupt meanwhile would print where in an import it happened. Before
and after a command there is nothing to tidy up, so a signal ends the process at once, with one line.
"""

from __future__ import annotations

import os
import signal

__all__ = ["main"]


def main() -> None:
    """Run the command line; see :func:`cnnfilterdb.cli.main`."""
    for number in (signal.SIGINT, signal.SIGTERM):
        if signal.getsignal(number) is not signal.SIG_IGN:  # as of a shell that runs it in the background
            signal.signal(number, _leave)
    from cnnfilterdb.cli import main as run

    run()


def _leave(number: int, frame: object) -> None:
    os.write(2, b"Interrupted.\n")
    os._exit(128 + number)


if __name__ == "__main__":
    main()
