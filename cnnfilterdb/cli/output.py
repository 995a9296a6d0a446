"""What a verb prints or writes at its end: rows, the shift matrix, the outcome of an ingest."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from cnnfilterdb.errors import SelectionError

if TYPE_CHECKING:
    import pandas as pd

    from cnnfilterdb.reports import IngestReport

__all__ = ["emit", "print_shift", "print_summary", "writing"]


def emit(frame: pd.DataFrame, style: str, output: Path | None) -> None:
    """Print rows, or write them to a file."""
    if style == "parquet":
        if output is None and sys.stdout.isatty():
            raise click.UsageError("Parquet is binary: add --output FILE or redirect it")
        data: str | bytes = frame.to_parquet(index=False)
    elif style == "csv":
        data = frame.to_csv(index=False)
    elif style == "json":
        data = frame.to_json(orient="records", indent=1, date_format="iso", default_handler=str) + "\n"
    else:
        data = _table(frame)
    if output is None:
        click.echo(data, nl=False)
        return
    with writing(output):
        if isinstance(data, bytes):
            output.write_bytes(data)
        else:
            output.write_text(data, encoding="utf-8")


def print_shift(matrix: pd.DataFrame) -> None:
    """The matrix with the sizes of its groups, and under it how it was made."""
    sizes = matrix.attrs["groups"]
    frame = matrix.map(lambda value: f"{value:.3f}").astype(str)
    frame.columns = [str(label) for label in frame.columns]
    frame.insert(0, matrix.index.name, [str(label) for label in matrix.index])
    frame.insert(1, "models", [int(sizes[label]["models"]) for label in matrix.index])
    frame.insert(2, "filters", [int(sizes[label]["filters"]) for label in matrix.index])
    click.echo(_table(frame.reset_index(drop=True)), nl=False)
    attrs = matrix.attrs
    low, high = attrs["range"]
    outside = max(size["outside"] for size in sizes.values())
    click.echo(
        f"\nmetric {attrs['metric']}, basis {attrs['basis']}, recipe {attrs['recipe']}, {attrs['bins']} bins "
        f"from {low:.3f} to {high:.3f}, balance {attrs['balance']}; "
        f"at most {outside:.2%} of a group's coefficients fall outside"
    )


def print_summary(outcome: IngestReport, *, quiet: bool) -> None:
    """Tell what became of the models; the command ends with status 1 when some have failed."""
    for failure in outcome.failed:
        click.echo(f"failed: {failure.model_id}: {failure.reason}", err=True)
    if not quiet or outcome.failed:
        click.echo(str(outcome), err=bool(outcome.failed))
    if outcome.failed:
        sys.exit(1)


@contextlib.contextmanager
def writing(path: Path) -> Iterator[None]:
    """Tell in one line that a file of the user cannot be written."""
    try:
        yield
    except OSError as error:
        raise SelectionError(f"{path}: cannot be written: {error.strerror or error}") from error


def _table(frame: pd.DataFrame) -> str:
    """Plain aligned text: numbers right, everything else left; it can be piped and pasted."""
    import pandas as pd

    cells = [[_cell(value) for value in column] for column in (frame[name].tolist() for name in frame)]
    right = [pd.api.types.is_numeric_dtype(kind) for kind in frame.dtypes]
    names = [str(name) for name in frame]
    widths = [max([len(name), *map(len, column)]) for name, column in zip(names, cells, strict=True)]

    def line(values: list[str]) -> str:
        return "  ".join(
            text.rjust(width) if is_right else text.ljust(width)
            for text, width, is_right in zip(values, widths, right, strict=True)
        ).rstrip()

    body = [line(list(row)) for row in zip(*cells, strict=True)]
    return "\n".join([line(names), line(["-" * width for width in widths]), *body]) + "\n"


def _cell(value: Any) -> str:
    if value is None or (isinstance(value, float) and value != value):
        return ""
    if isinstance(value, float):
        return f"{value:.4g}" if value and abs(value) < 0.1 else f"{value:,.3f}".rstrip("0").rstrip(".")
    if isinstance(value, bool):
        return str(value).lower()
    return f"{value:,}" if isinstance(value, int) else str(value)
