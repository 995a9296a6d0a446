"""Processes that do not run the main module of their parent again.

A new process runs the user's script up to ``if __name__ == "__main__"``, and all of a script without that line, which
then starts processes of its own. Workers need nothing of it, because their functions are of this package.
"""

from __future__ import annotations

import sys
import threading
from multiprocessing import context
from types import ModuleType

__all__ = ["CONTEXT"]

_lock = threading.Lock()


class _Process(context.SpawnProcess):
    def start(self) -> None:
        """Start the process while the main module is another one."""
        with _lock:
            main = sys.modules["__main__"]
            sys.modules["__main__"] = ModuleType("__main__")
            try:
                super().start()
            finally:
                sys.modules["__main__"] = main


class _Context(context.SpawnContext):
    # Not forked: the threads of DuckDB and Arrow would be missing in the child.
    Process = _Process


#: To start workers with.
CONTEXT = _Context()
