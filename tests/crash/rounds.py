"""The command line that the scripts of this folder share."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Mapping
from typing import Any


def main(description: str, run: Callable[..., Mapping[str, int]], **options: Any) -> None:
    """Run a script, print what it tried, and exit with status 1 if anything failed.

    Args:
        description: What the script does.
        run: Called with the number of rounds, ``seed``, ``seconds``, ``verbs`` and the options; returns how often it
            tried what.
        options: Further options of ``run``.
    """
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("rounds", type=int, nargs="?", default=100)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--seconds", type=float)
    parser.add_argument("--verbs", default="", help="Names, with commas between them.")
    given = parser.parse_args()
    verbs = [name for name in given.verbs.split(",") if name]
    tried = run(given.rounds, seed=given.seed, seconds=given.seconds, verbs=verbs, **options)
    for what, number in sorted(tried.items()):
        sys.stdout.write(f"{number:6} {what}\n")
    sys.exit(any("FAILED" in what for what in tried))
