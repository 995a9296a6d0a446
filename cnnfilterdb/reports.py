"""What long work reports: progress while it runs, and what was found when it ends. No I/O."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

__all__ = ["Problem", "Progress"]

#: Called with what is being done, how much of it is done and how much there is.
Progress = Callable[[str, int, int], None]


@dataclass(frozen=True, slots=True)
class Problem:
    """Something that is not as it should be.

    Attributes:
        model_id: Key of the model; None when it cannot be told.
        path: The file.
        message: What was expected and what was found.
    """

    model_id: str | None
    path: Path
    message: str

    def __str__(self) -> str:
        """One line.

        >>> print(Problem("pypi/a", Path("db/layers/a.parquet"), "is missing"))
        db/layers/a.parquet: is missing
        """
        return f"{self.path}: {self.message}"
