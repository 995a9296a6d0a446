"""The verb that checks the machine."""

from __future__ import annotations

import sys
from pathlib import Path

import click

from cnnfilterdb.cli.options import db_option, rows_options
from cnnfilterdb.cli.output import Output, emit, say, warn

__all__ = ["doctor"]


@click.command(short_help="Check versions, disks, locks, network and speed.")
@click.option("--offline", is_flag=True, help="Do not access the network.")
@db_option
@rows_options
def doctor(offline: bool, path: Path | str, rows: Output) -> None:
    """Check whether everything works here: versions, disk, locks, network, and how fast a scan is.

    In the folder of the database files are written and locked, and removed again. Each line is ok, a warning or a
    failure with its remedy; after a failure the exit status is 1.

    \b
      cnnfilterdb doctor
      cnnfilterdb doctor --offline --format json
    """
    import pyarrow as pa

    from cnnfilterdb import doctor as examine

    if not isinstance(path, Path):
        raise click.UsageError(f"--db {path}: expected a folder; a release is not written to")
    findings = examine(path, offline=offline)
    if rows.for_people():
        for finding in findings:
            say(f"{finding.status:<8} {finding.check}: {finding.found}")
            if finding.remedy:
                say(f"         {finding.remedy}")
    else:
        names = ("check", "status", "found", "remedy")
        emit(pa.table({name: [getattr(finding, name) for finding in findings] for name in names}), rows)
    failures = sum(finding.status == "failure" for finding in findings)
    if failures:
        warn(f"error: {failures} failure{'s' * (failures != 1)}")
        sys.exit(1)
