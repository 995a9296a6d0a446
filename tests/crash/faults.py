"""Makes the file system fail under writing verbs, and checks what is left.

By hand: ``make crash N=500``. Each round copies a small world and runs one verb in a child process in which

- one system call that creates, writes, flushes, renames or removes something fails with an error (no space, a quota,
  an input/output error, a read-only file system, no permission);
- or all of them do from one call on, as on a full disk;
- or one reading call fails;
- or no file may become larger than some size, or few files may be open (limits of the process).

The verb finishes, or ends with one error of this package in one line. Then everything holds that holds after a kill:
the database opens and answers, every model is whole, and the verb run again without faults finishes with the result of
an undisturbed run (:mod:`harness`).
"""

from __future__ import annotations

import errno
import os
import random
import resource
import signal
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))
import rounds
import shim

ERRORS = ("ENOSPC", "EIO", "EDQUOT", "EROFS", "EACCES")
#: Files that a process may always have open: those of the interpreter and of its libraries.
FEW_FILES = 64


def run(
    rounds: int, *, seed: int = 0, seconds: float | None = None, verbs: Sequence[str] = (), keep: str | None = None
) -> Counter[str]:
    """Let calls fail, check, and count.

    Args:
        rounds: Number of faults.
        seed: Of the choice of faults.
        seconds: Stop after this time, which begins when the worlds are made; one round is always tried.
        verbs: Names of verbs; all by default.
        keep: Go on after a failure, and print it with this prefix.

    Returns:
        Number of faults by verb and kind.
    """
    from world import VERBS, Worlds, forked

    from cnnfilterdb.core.errors import CnnFilterDbError

    chooser, tried = random.Random(seed), Counter[str]()
    chosen = list(verbs or VERBS)
    with tempfile.TemporaryDirectory() as folder:
        worlds = Worlds(Path(folder))
        end = time.monotonic() + (seconds or 1e9)
        calls: dict[tuple[str, str], int] = {}

        def disturbed(verb: str, world: Path, begin: Callable[[], None], finish: Callable[[], None]) -> None:
            """In a child: run the verb, and write down what became of it."""
            begin()
            try:
                worlds.run(verb, world)
                said = ""
            except (CnnFilterDbError, AssertionError) as error:  # an assertion: models that the report lists as failed
                said = str(error)
                if "\n" in said.strip() and isinstance(error, CnnFilterDbError):
                    raise AssertionError(f"an error of several lines: {said}") from error
            finally:
                finish()
            (worlds.root / "said").write_text(said or "finished")

        def counted(verb: str, kinds: str) -> int:
            """How many calls a verb makes."""
            if (verb, kinds) not in calls:
                worlds.after(verb)
                world = worlds.world(verb)

                def count() -> None:
                    shim.arm(world, shim.COUNT, kinds=kinds)
                    worlds.run(verb, world)
                    (worlds.root / "calls").write_text(str(shim.calls()))

                assert forked(count) == 0
                calls[verb, kinds] = int((worlds.root / "calls").read_text())
            return calls[verb, kinds]

        for number in range(rounds):
            if time.monotonic() > end:
                break
            verb, kind = chosen[number % len(chosen)], ("once", "from", "reads", "size", "files")[number % 5]
            worlds.after(verb)
            name, finish = chooser.choice(ERRORS), shim.disarm
            if kind in ("size", "files"):
                limit = FEW_FILES if kind == "files" else int(2 ** chooser.uniform(6, 16))
                what = resource.RLIMIT_NOFILE if kind == "files" else resource.RLIMIT_FSIZE
                name, begin, finish = str(limit), partial(limited, what, limit), partial(unlimited, what)
                world = worlds.world(verb)
            else:
                kinds = "r" if kind == "reads" else ""
                name = "EIO" if kind == "reads" else name
                point = chooser.randrange(max(counted(verb, kinds), 1))
                world = worlds.world(verb)
                mode = shim.FAIL_ON if kind == "from" else shim.FAIL_ONCE
                begin = partial(shim.arm, world, mode, point=point, error=getattr(errno, name), kinds=kinds)
                name = f"{name} at {point}"
            failed = forked(partial(disturbed, verb, world, begin, finish)) != 0
            finished = not failed and (worlds.root / "said").read_text() == "finished"
            failed = failed or forked(partial(worlds.check, verb, world)) != 0
            failed = failed or (kind == "files" and not finished)
            if failed:
                text = f"{verb}, {kind}, {name}, seed {seed}"
                assert keep is not None, text
                sys.stdout.write(f"{keep}{text}\n")
                sys.stdout.flush()
            tried[f"{kind}, {'finished' if finished else 'refused'}" + (" FAILED" if failed else "")] += 1
    return tried


def limited(what: int, limit: int) -> None:
    """Limit this process; a write beyond the size fails instead of ending the process."""
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    if what == resource.RLIMIT_NOFILE:
        os.closerange(3, 4096)
    resource.setrlimit(what, (limit, resource.getrlimit(what)[1]))


def unlimited(what: int) -> None:
    """End a limit, so that what became of the verb can be written down."""
    hard = resource.getrlimit(what)[1]
    resource.setrlimit(what, (hard, hard))


if __name__ == "__main__":
    shim.loaded()
    rounds.main("Make the file system fail under writing verbs and check what is left.", run, keep="FAILED: ")
