"""Run the benchmarks: `python -m benchmarks [name ...]`. Each prints one Markdown table."""

import runpy
import sys
from pathlib import Path

names = sys.argv[1:] or sorted(p.stem for p in Path(__file__).parent.glob("*.py") if not p.stem.startswith("_"))
for name in names:
    print(f"\n## {name}\n")
    sys.argv = [f"benchmarks.{name}"]
    runpy.run_module(f"benchmarks.{name}", run_name="__main__")
