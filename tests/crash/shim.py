"""Builds and loads the library that watches the system calls of this process; see shim.c.

A program calls :func:`loaded` first, which starts it again with the library; children that it forks :func:`arm` it.
"""

from __future__ import annotations

import ctypes
import functools
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

SOURCE = Path(__file__).with_name("shim.c")

#: What is done at a call.
COUNT, KILL, FAIL_ONCE, FAIL_ON, RECORD = range(1, 6)


def available() -> bool:
    """Whether it can be built and loaded here."""
    return sys.platform == "linux" and shutil.which("cc") is not None


def loaded() -> None:
    """Start this program again with the library, unless that was done."""
    if "CNNFILTERDB_SHIM" in os.environ:
        shutil.rmtree(Path(os.environ.pop("CNNFILTERDB_SHIM")).parent)  # it stays mapped
        os.environ.pop("LD_PRELOAD")  # programs that this one starts do without
        return
    library = Path(tempfile.mkdtemp(prefix="cnnfilterdb-shim-")) / "shim.so"
    subprocess.run(["cc", "-O1", "-shared", "-fPIC", "-o", library, SOURCE, "-ldl", "-lpthread"], check=True)
    environment = os.environ | {"LD_PRELOAD": str(library), "CNNFILTERDB_SHIM": str(library)}
    os.execve(sys.executable, [sys.executable, "-P", *sys.argv], environment)


@functools.cache
def _library() -> ctypes.CDLL:
    library = ctypes.CDLL(None)
    library.shim_arm.argtypes = [ctypes.c_char_p, *[ctypes.c_int, ctypes.c_long, ctypes.c_int], ctypes.c_char_p,
                                 ctypes.c_int]  # fmt: skip
    library.shim_calls.restype = ctypes.c_long
    return library


def arm(root: Path, mode: int, *, point: int = 0, error: int = 0, kinds: str = "", log: int = -1) -> None:
    """From now on, watch this process.

    Args:
        root: Folder below which calls count.
        mode: What is done at a call.
        point: Number of the call, counted from 0.
        error: Number of the error with which calls fail.
        kinds: Letters of the calls that count; all that change something by default.
        log: Open file to which calls are recorded.
    """
    _library().shim_arm(os.fsencode(root), mode, point, error, kinds.encode(), log)


def calls() -> int:
    """Number of calls since :func:`arm`."""
    number: int = _library().shim_calls()
    return number


def disarm() -> None:
    """Stop watching."""
    _library().shim_arm(b"/", 0, 0, 0, b"", -1)
