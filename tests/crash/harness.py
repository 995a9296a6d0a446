"""Kills writing verbs at chosen and at random moments, and checks what is left.

By hand: ``make crash N=500``. Each round copies a small world, runs one verb in a child process and kills it with
SIGKILL: before one of its system calls that create, write, flush, rename or remove something (half of the data of a
write is written), each in turn, or after a random time. Then

- the database opens, and answers, and nothing has been written by that;
- every model that is present is whole, and each is as before the verb or as after it;
- the same verb run again finishes, and the result is that of an undisturbed run, file by file;
- ``verify`` finds nothing, and nothing is left behind.
"""

from __future__ import annotations

import os
import random
import signal
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Sequence
from functools import partial
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))
import rounds
import shim


def run(
    rounds: int, *, seed: int = 0, seconds: float | None = None, verbs: Sequence[str] = (), keep: str | None = None
) -> Counter[str]:
    """Kill, check, and count.

    Args:
        rounds: Number of kills.
        seed: Of the choice of moments.
        seconds: Stop after this time, which begins when the worlds are made; one round is always tried.
        verbs: Names of verbs; all by default.
        keep: Go on after a failure, and print it with this prefix.

    Returns:
        Number of kills by verb and kind; failures, and verbs with the number of their calls.
    """
    from world import VERBS, Worlds, forked

    chooser, tried = random.Random(seed), Counter[str]()
    chosen = list(verbs or VERBS)
    with tempfile.TemporaryDirectory() as folder:
        worlds = Worlds(Path(folder))
        end = time.monotonic() + (seconds or 1e9)
        points: dict[str, list[int]] = {}
        durations: dict[str, float] = {}

        def killed(verb: str, world: Path, point: int) -> None:
            shim.arm(world, shim.KILL, point=point)
            worlds.run(verb, world)
            (worlds.root / "calls").write_text(str(shim.calls()))

        for number in range(rounds):
            if time.monotonic() > end:
                break
            verb = chosen[number % len(chosen)]
            if verb not in points:
                worlds.after(verb)
                world, began = worlds.world(verb), time.monotonic()
                assert forked(partial(killed, verb, world, -1)) == 0
                durations[verb] = time.monotonic() - began
                calls = int((worlds.root / "calls").read_text())
                tried[f"calls of {verb}"] = calls
                points[verb] = chooser.sample(range(calls), calls)
            world = worlds.world(verb)
            if number // len(chosen) % 5 == 4:
                kind, moment = "at a random time", chooser.uniform(0, durations[verb])
                pid = os.fork()
                if pid == 0:
                    killed(verb, world, -1)
                    os._exit(0)
                time.sleep(moment)
                os.kill(pid, signal.SIGKILL)
                os.waitpid(pid, 0)
            else:
                # Each call in turn, and again from the start.
                kind, moment = "at a call", points[verb].pop()
                points[verb].insert(0, int(moment))
                status = forked(partial(killed, verb, world, int(moment)))
                assert status in (-signal.SIGKILL, 0), status
            failed = forked(partial(worlds.check, verb, world)) != 0
            if failed:
                text = f"{verb}, {kind}, {moment}, seed {seed}"
                assert keep is not None, text
                sys.stdout.write(f"{keep}{text}\n")
                sys.stdout.flush()
            tried[f"{verb} {kind}" + (" FAILED" if failed else "")] += 1
    return tried


if __name__ == "__main__":
    shim.loaded()
    rounds.main("Kill writing verbs and check what is left.", run, keep="FAILED: ")
