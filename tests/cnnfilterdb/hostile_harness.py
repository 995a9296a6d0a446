"""Runs hostile databases and releases, each in a child process: what it says, takes and leaves behind."""

from __future__ import annotations

import json
import os
import resource
import shutil
import signal
import sys
import time
from collections.abc import Callable, Iterable
from hashlib import sha256
from importlib import import_module
from pathlib import Path
from typing import Any

#: Seconds of processor time, and bytes of memory, that a case may take.
SECONDS = 20
MEMORY = 1_500 << 20
# A child that waits for something, such as a named pipe, is killed.
_WAITING = 60
_IMPORTED = (
    "duckdb",
    "cnnfilterdb.cli",
    "cnnfilterdb.database.filterdb",
    "cnnfilterdb.catalog.words",
    "cnnfilterdb.exchange.transfer",
    "cnnfilterdb.analysis.groups",
    "cnnfilterdb.analysis.shifts",
    "cnnfilterdb.stats.compiled",
    "cnnfilterdb.store.verify",
    "pyarrow.dataset",
    "scipy.special",
)


def tree(folder: Path) -> dict[str, str]:
    """Every file below a folder, with its content or its kind."""
    found = {}
    for path in sorted(folder.rglob("*")):
        name = str(path.relative_to(folder))
        if path.is_symlink():
            found[name] = f"-> {path.readlink()}"
        elif path.is_file():
            found[name] = sha256(path.read_bytes()).hexdigest()
        else:
            found[name] = "folder or pipe"
    return found


def in_child(place: Path, attempt: Callable[[], dict[str, Any]], cases: int = 1) -> dict[str, Any]:
    """Run something in a forked process whose working directory is a folder; it may take the time of some cases.

    Returns:
        What it returned, or ``died`` with the status of the process; the files below the folder that are new and that
        have changed; processor time in seconds and the largest memory in megabytes.
    """
    before = tree(place)
    reading, writing = os.pipe()
    child = os.fork()
    if not child:
        os.close(reading)
        resource.setrlimit(resource.RLIMIT_CPU, (SECONDS * cases, SECONDS * cases + 1))
        signal.alarm(_WAITING * cases)
        os.chdir(place)
        with os.fdopen(writing, "w") as pipe:
            json.dump(attempt(), pipe)
        os._exit(0)
    os.close(writing)
    with os.fdopen(reading) as pipe:
        text = pipe.read()
    _, status, usage = os.wait4(child, 0)
    after = tree(place)
    return {
        **(json.loads(text) if text and not status else {"died": f"RAW status {status}"}),
        "new": sorted(path for path in after if path not in before),
        "changed": sorted(path for path in before if after.get(path) != before[path]),
        "seconds": round(usage.ru_utime + usage.ru_stime, 2),
        "megabytes": usage.ru_maxrss >> 10,
    }


def copied(sound: Path, work: Path, name: str, as_name: str) -> Path:
    """A copy of a sound folder for a case, in a folder of its own beside a canary."""
    place = work / sha256(name.encode()).hexdigest()[:12]
    shutil.copytree(sound, place / as_name)
    (place / "canary").write_text("untouched")
    return place / as_name


def import_all() -> None:
    """Import what the cases need, before the forks, which then start in no time."""
    for module in _IMPORTED:
        import_module(module)


def print_outcomes(run: Callable[[str], dict[str, Any]], names: Iterable[str]) -> None:
    """Print a line of JSON for each case."""
    import_all()  # nothing has started a thread yet
    for name in names:
        began = time.monotonic()
        outcome = {"name": name, **run(name)}
        print(json.dumps(outcome | {"wall": round(time.monotonic() - began, 2)}), flush=True)
        sys.stdout.flush()
