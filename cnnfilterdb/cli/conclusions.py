"""The verbs that end in a conclusion: is a shift more than chance, and what explains the differences between models?"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import click

from cnnfilterdb.cli.options import (
    FileToWrite,
    db_option,
    group_arguments,
    group_options,
    metric_option,
    named,
    open_reader,
    permutations_option,
    rows_options,
    seed_option,
    within_option,
)
from cnnfilterdb.cli.output import QUIET, Output, emit, remark, say
from cnnfilterdb.cli.progress import progress_bars
from cnnfilterdb.core.durable import replacing

__all__ = ["explain", "study", "test"]


@click.command(short_help="Test shifts between groups against chance.")
@click.argument("by")
@click.option(
    "--level", type=float, metavar="SHARE", help="Add intervals that hold with this probability, such as 0.95."
)
@click.option("--tolerance", type=float, metavar="SHIFT", help="Also test whether groups differ by less than SHIFT.")
@within_option
@permutations_option
@seed_option
@metric_option
@group_options
@rows_options
@db_option
def test(
    by: str, level: float | None, tolerance: float | None, within: str | None, permutations: int, seed: int,
    rows: Output, path: Path, **options: Any,
) -> None:  # fmt: skip
    """Test the shift of every pair of groups by permuting the labels of whole models.

    BY is a SQL expression with one value per model; `EXPRESSION AS name` names it. `excess` is the shift beyond what
    chance gives for groups of these sizes; p_holm and p_bh are adjusted for the number of pairs.

    Sampling makes shifts larger: `unbiased` is the shift without this part, `low` and `high` bound the shift of the
    populations that the models come from. `finding` says whether groups differ, do not differ by the tolerance, or
    cannot be distinguished with these models.

    \b
      cnnfilterdb test "domain LIKE 'medical%' AS medical"
      cnnfilterdb test domain --tolerance 0.05 --min-models 8
      cnnfilterdb test domain --within family --min-models 3
    """
    by, _ = named(by)
    frame = open_reader(path).shift_test(
        by, within=within, level=level, tolerance=tolerance, permutations=permutations, seed=seed,
        **_by_models(group_arguments(options)),
    )  # fmt: skip
    emit(frame.sort_values(["p", "excess"], ascending=[True, False], kind="stable", ignore_index=True), rows)
    if rows.for_people():
        overall = frame.attrs["overall"]
        remark(
            f"all groups: mean shift {overall['shift']:.3f}, by chance {overall['null_mean']:.3f} (95 % of the "
            f"permutations below {overall['null_high']:.3f}), p {overall['p']:.3g}"
        )
        _print_how(frame.attrs)


@click.command(short_help="Show which factors explain the differences.")
@click.argument("factors", nargs=-1, required=True)
@click.option("--marginal", is_flag=True, help="Each factor after all others, instead of after those before it.")
@within_option
@permutations_option
@seed_option
@metric_option
@group_options
@rows_options
@db_option
def explain(
    factors: tuple[str, ...], marginal: bool, within: str | None, permutations: int, seed: int, rows: Output,
    path: Path, **options: Any,
) -> None:  # fmt: skip
    """Show what share of the differences between models each of the FACTORS explains (PERMANOVA).

    Each factor is a SQL expression with one value per model; without --marginal their order matters. `r2` is the share,
    `omega2` the share beyond what the same number of levels explains by chance.

    \b
      cnnfilterdb explain family task domain
    """
    frame = open_reader(path).variance_explained(
        list(factors), marginal=marginal, within=within, permutations=permutations, seed=seed,
        **_by_models(group_arguments(options)),
    )  # fmt: skip
    emit(frame, rows)
    if rows.for_people():
        _print_how(frame.attrs)


#: Formats of a study, by the suffix of its file.
_STUDY_FORMATS = {".html": "html", ".htm": "html", ".md": "md", ".json": "json"}


@click.command(short_help="Answer a question of the papers in a report.")
@click.argument("name", type=click.Choice(["medical"]))
@click.option(
    "--output",
    "-o",
    type=FileToWrite(),
    metavar="FILE",
    help="The file, such as study.html, .md or .json; by default NAME.html, and md and json are printed.",
)
@click.option(
    "--format",
    "style",
    type=click.Choice(["html", "md", "json"]),
    help="Format; by default the one of the suffix of FILE, or html.",
)
@click.option(
    "--figures",
    type=click.Path(path_type=Path, file_okay=False),
    metavar="DIR",
    help="Also write each figure to DIR, as PNG and PDF.",
)
@click.option(
    "--permutations", type=click.IntRange(min=1), default=999, show_default=True, help="Number of random permutations."
)
@click.option(
    "--no-scan",
    "scan",
    is_flag=True,
    flag_value=False,
    default=True,
    help="Leave out the comparison of bases, which reads all filters.",
)
@db_option
def study(
    name: str, output: Path | None, style: str | None, figures: Path | None, permutations: int, scan: bool, path: Path
) -> None:
    """Write a study of the models of a database, with its conclusions on the first page.

    \b
      medical   does medical imaging learn different filters? (arXiv 2210.13799)
    """  # fmt: skip
    chosen = style or ("html" if output is None else _STUDY_FORMATS.get(output.suffix.lower()))
    if chosen is None:
        raise click.UsageError(f"{output}: expected a suffix of {', '.join(_STUDY_FORMATS)}, or give --format")
    quiet = bool(click.get_current_context().meta.get(QUIET))
    with progress_bars(quiet) as progress:
        found = open_reader(path).study(name, permutations=permutations, scan=scan, progress=progress)
    if figures is not None:
        figures.mkdir(parents=True, exist_ok=True)
        for picture in found.pictures():
            for suffix in ("png", "pdf"):
                with replacing(figures / f"{picture.name}.{suffix}") as part:
                    picture.figure.savefig(part, format=suffix, dpi=192)
    target = output or (Path(f"{name}.html") if chosen == "html" else None)
    if chosen == "html":
        text = found.to_html()
    elif chosen == "json":
        text = found.to_json()
    else:
        text = found.to_markdown("" if figures is None else figures.as_posix())
    if target is None:
        click.echo(text, nl=False)
        return
    with replacing(target) as part:
        part.write_text(text, encoding="utf-8")
    say(str(target))
    for line in found.answer:
        remark(line.replace("\N{NO-BREAK SPACE}", " "))


def _by_models(arguments: dict[str, Any]) -> dict[str, Any]:
    """Tests compare models: they have the same weight unless the command line says otherwise."""
    context = click.get_current_context()
    source = context.get_parameter_source("balance")
    if source is not None and source.name == "DEFAULT":
        del arguments["balance"]
    return arguments


def _print_how(attrs: Mapping[Any, Any]) -> None:
    left_out = ", ".join(f"{number} without {text}" for text, number in attrs["unlabelled"].items())
    within = f" within {attrs['within']}" if attrs["within"] else ""
    remark(
        f"{attrs['models']} models{f' ({left_out}, left out)' if left_out else ''}, {attrs['permutations']} "
        f"permutations{within}, metric {attrs['metric']}, basis {attrs['basis']}, recipe {attrs['recipe']}, "
        f"balance {attrs['balance']}, {attrs['kernel']} filters"
    )
