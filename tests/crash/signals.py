"""Sends SIGINT and SIGTERM to commands at any time, start-up included.

By hand: ``make crash N=500``. Each verb of the command line runs in a process of its own, and gets a signal after a
random time. It ends with status 130 or 143 and one line, without a traceback; or it had finished. The command is then
repeated, and leaves what an undisturbed one leaves.
"""

from __future__ import annotations

import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))
import rounds

#: Command lines in a world (see world.py); {shared} is the folder with what they read.
LINES = {
    "ingest": "ingest files {shared}/files --allow-untrained",
    "add": "add {shared}/files/m20.safetensors --name m20 --domain d0 --new-word",
    "remove": "remove custom/m0 custom/m1",
    "annotate": "annotate custom/m2 --task Denoising",
    "index": "index --refit --prune",
    "import": "import {shared}/papers.h5",
    "pull": "pull {shared}/release --db new",
    "merge": "merge {shared}/other",
    "export": "export out/all.parquet",
    "export npz": "export out/all.npz",
    "publish": "publish owner/name --dry-run out/release",
    "repair": "verify --repair",
    "verify": "verify",
    "models": "models -o out/models.csv",
    "shift": "shift domain -o out/shift.csv",
    "plot": "plot shift --by domain -o out/shift.png",
    "report": "report -o out/report.html",
    "sql": "sql 'FROM kl_shift(domain)' -o out/rows.parquet",
    "quality": "quality domain",
    "inspect": "inspect {shared}/files/m20.safetensors",
    "vocabulary": "vocabulary",
}


def command(verb: str, shared: Path) -> list[str]:
    import shlex

    line = shlex.split(LINES[verb].format(shared=shared))
    at = [] if "--db" in line or verb in ("inspect", "vocabulary") else ["--db", "db"]
    return [sys.executable, "-P", "-m", "cnnfilterdb", *line, *at, "--quiet"]


def run(
    rounds: int, *, seed: int = 0, seconds: float | None = None, verbs: Sequence[str] = (), keep_going: bool = False
) -> Counter[str]:
    """Interrupt, check, and count.

    Args:
        rounds: Number of signals.
        seed: Of the choice of moments.
        seconds: Stop after this time, which begins when the worlds are made; one round is always tried.
        verbs: Names of command lines; all by default.
        keep_going: Print failures and go on.
    """
    from world import forked, listing, make

    chooser, tried = random.Random(seed), Counter[str]()
    chosen = list(verbs or LINES)
    durations: dict[str, float] = {}
    os.environ.pop("PYTHONDONTWRITEBYTECODE", None)  # each command would compile all modules anew
    signal.signal(signal.SIGINT, signal.default_int_handler)  # ignored in a shell's background, and so in children
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        assert forked(lambda: make(root)) == 0
        line = {verb: command(verb, root / "shared") for verb in chosen}
        end = time.monotonic() + (seconds or 1e9)
        for number in range(rounds):
            if time.monotonic() > end:
                break
            verb = chosen[number % len(chosen)]
            world = root / "world"
            shutil.rmtree(world, ignore_errors=True)
            shutil.copytree(root / "start", world)
            if verb not in durations:
                began = time.monotonic()
                done = subprocess.run(line[verb], cwd=world, check=False, capture_output=True, text=True)
                assert done.returncode == 0, (verb, done.stderr)
                durations[verb] = time.monotonic() - began
                shutil.rmtree(world)
                shutil.copytree(root / "start", world)
            which = chooser.choice((signal.SIGINT, signal.SIGTERM))
            moment = chooser.uniform(0, 1.1 * durations[verb])
            process = subprocess.Popen(
                line[verb], cwd=world, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, errors="replace"
            )
            time.sleep(moment)
            process.send_signal(which)
            _, said = process.communicate(timeout=600)
            status, problem = process.returncode, ""
            if status == 128 + which:
                kind = "ended by a signal"
                if said.count("\n") != 1 or not said.startswith("Interrupted"):
                    problem = f"said {said!r}"
            elif status == -which or (status == 1 and said.startswith("Fatal Python error: init_")):
                kind = "ended before it began"  # the interpreter was starting: nothing of this package had run
            else:
                kind = "had finished"
                if status != 0 or "Traceback" in said:
                    problem = f"status {status}, said {said!r}"
            left = [name for name in listing(world) if name.endswith(".part") or "/.staging/" in name]
            if left:
                kind += ", left something to tidy up"
            if not problem:
                done = subprocess.run(line[verb], cwd=world, check=False, capture_output=True, text=True)
                left = [name for name in listing(world) if name.endswith(".part") or "/.staging/" in name]
                # What was finished cannot be added, removed or written again.
                repeated = verb in ("add", "remove", "publish")
                if left or (done.returncode != 0 and not repeated) or "Traceback" in done.stderr:
                    problem = f"repeated: status {done.returncode}, said {done.stderr!r}, left {left}"
            if problem:
                text = f"{verb}, {which.name} after {moment:.3f} of {durations[verb]:.1f} s, seed {seed}: {problem}"
                assert keep_going, text
                sys.stdout.write(f"FAILED: {text}\n")
                sys.stdout.flush()
                kind += " FAILED"
            tried[f"{verb} {kind}"] += 1
    return tried


if __name__ == "__main__":
    rounds.main("Interrupt commands and check what is left.", run, keep_going=True)
