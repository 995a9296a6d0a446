"""Build the reference corpus that the package contains: `make reference`.

    python scripts/reference.py [--db DIR] [--folder DIR]

Imports the models of the collection `pypi` whose licences permit publication into a database (by default
build/reference.db, which is kept, so that an interrupted run resumes), and writes their statistics as a release without
filters to cnnfilterdb/release/reference: all models and layers, the fingerprints of all layers, and the moments, basis
and histograms of 3x3 kernels.
The same inputs give the same bytes on the same kind of processor; on another one, sums may differ in their last digits.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

import cnnfilterdb
from cnnfilterdb import catalog
from cnnfilterdb.analysis.bases import basis_table
from cnnfilterdb.cli.progress import progress_bars, progress_observer
from cnnfilterdb.core import paths
from cnnfilterdb.core.durable import sha256
from cnnfilterdb.core.recipes import RECIPES
from cnnfilterdb.core.schema import FINGERPRINTS, HISTOGRAMS, release_schema
from cnnfilterdb.publish.card import models_page
from cnnfilterdb.publish.licenses import decide
from cnnfilterdb.publish.shards import plain
from cnnfilterdb.release.manifest import LeftOut, Manifest, ReleaseFile

ROOT = Path(__file__).parents[1]
FOLDER = ROOT / "cnnfilterdb" / "release" / "reference"
COLLECTION = "pypi"
KERNEL = "3x3"

# A release of new content gets a new version and date; the date stands for all times in its tables.
VERSION = "1.3.0"
DATE = datetime(2026, 11, 30, tzinfo=UTC)

# Moments and counts are most of the bytes. Splitting the bytes of numbers lets zstd compress exponents and leading
# zeros: 6.0 MB instead of 7.3 MB.
_SETTINGS: dict[str, Any] = {"compression": "zstd", "compression_level": 19, "write_statistics": False}


def write(db: cnnfilterdb.FilterDB, folder: Path, left_out: Sequence[LeftOut] = ()) -> Manifest:
    """Write the statistics of a database, whose index is up to date, as a release without filters.

    Args:
        db: The database.
        folder: Where to write.
        left_out: The models that are missing for their licences.
    """
    store, ids = db.storage, db.storage.model_ids()
    models = db.sql("FROM models ORDER BY model_id").to_arrow_table()
    fitted = [one for one in db.bases() if one.basis.kernel == KERNEL][-1]
    tables = {
        "models": [_with_date(models, "ingested_at")],
        "layers": [_without_other_moments(store.layers(ids))],
        "histograms": [_histograms(store, fitted.basis_id, ids, recipe) for recipe in RECIPES],
        "bases": [_with_date(basis_table(replace(fitted, sequence=1)), "created_at")],
        "fingerprints": [_fingerprints(store, ids)],
    }
    files = [_write(folder, table, parts) for table, parts in tables.items()]
    manifest = Manifest(
        version=VERSION,
        models=len(ids),
        filters=pc.sum(models["stored_filters"]).as_py(),
        files=tuple(files),
        left_out=tuple(left_out),
        created_by="scripts/reference.py",
        statistics_only=True,
    )
    (folder / "MODELS.md").write_text(models_page("the reference corpus", manifest, models.to_pandas()), "utf-8")
    (folder / paths.MARKER).write_text(manifest.to_json(), "utf-8")
    return manifest


def _with_date(table: pa.Table, column: str) -> pa.Table:
    kind = table.schema.field(column).type
    dates = pa.array([DATE] * table.num_rows, kind)
    return table.set_column(table.schema.get_field_index(column), table.schema.field(column), dates)


def _without_other_moments(layers: pa.Table) -> pa.Table:
    """The layers with the moments of one kernel size only; those of large kernels would be most of the bytes."""
    kept = pc.equal(layers["kernel"], KERNEL)
    for place, field in enumerate(layers.schema):
        if pa.types.is_list(field.type):
            values = pc.if_else(kept, layers[field.name].combine_chunks(), pa.scalar(None, field.type))
            layers = layers.set_column(place, field, values)
    return layers


def _histograms(store: Any, basis_id: str, ids: Sequence[str], recipe: str) -> pa.Table:
    files = (store.path / paths.histograms_path(basis_id, store.slug(model_id)) for model_id in ids)
    parts = [pq.read_table(file, schema=HISTOGRAMS, filters=pc.field("recipe") == recipe)
             for file in files if file.exists()]  # fmt: skip
    return pa.concat_tables(parts)


def _fingerprints(store: Any, ids: Sequence[str]) -> pa.Table:
    """The fingerprints of all layers, of every kernel size: models are compared by all of them."""
    files = (store.path / paths.fingerprints_path(store.slug(model_id)) for model_id in sorted(ids))
    return pa.concat_tables([pq.read_table(file, schema=FINGERPRINTS) for file in files if file.exists()])


def _write(folder: Path, table: str, parts: Sequence[pa.Table]) -> ReleaseFile:
    """Write a table, each part as a row group, because a query reads one recipe."""
    # Without the descriptions of the columns, whose words may change while the content does not.
    schema = pa.schema([field.remove_metadata() for field in release_schema(table)])
    path = folder / paths.shard_path(table, 0)
    path.parent.mkdir(parents=True, exist_ok=True)
    with pq.ParquetWriter(path, schema, **_SETTINGS, **_encodings(schema)) as writer:
        for part in parts:
            rows = pa.table([plain(part[name]) for name in schema.names], schema=schema)
            writer.write_table(rows, row_group_size=max(1, rows.num_rows))
    return ReleaseFile(
        path=path.relative_to(folder).as_posix(),
        table=table,
        rows=sum(part.num_rows for part in parts),
        bytes=path.stat().st_size,
        sha256=sha256(path),
    )


def _encodings(schema: pa.Schema) -> dict[str, Any]:
    """Split the bytes of moments, counts and fingerprints; dictionaries for all other columns."""
    split = {field.name: field.name for field in schema if field.type == pa.float64()}
    split |= {
        field.name: f"{field.name}.list.element"
        for field in schema
        if pa.types.is_list(field.type) and field.type.value_type in (pa.float64(), pa.int64(), pa.int16())
    }
    if not split:
        return {}
    others = [field.name for field in schema if field.name not in split and not pa.types.is_nested(field.type)]
    return {"use_dictionary": others, "column_encoding": dict.fromkeys(split.values(), "BYTE_STREAM_SPLIT")}


def permitted() -> tuple[dict[str, list[str]], list[LeftOut]]:
    """The models of the collection that may be published, by source, and the others with the reason."""
    licenses = {model.model_id: model.facts.license for model in catalog.models()}
    wanted: dict[str, list[str]] = {}
    left_out = []
    for source, name in catalog.expand(COLLECTION):
        license_ = licenses[f"{source}/{name}"]
        verdict = decide(license_, ())
        if verdict.allowed:
            wanted.setdefault(source, []).append(name)
        else:
            left_out.append(LeftOut(f"{source}/{name}", license_, verdict.reason))
    return wanted, left_out


def main() -> None:
    """Import what is missing, bring the index up to date, and write the corpus."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--db", type=Path, default=ROOT / "build" / "reference.db", help="database that it is made of")
    parser.add_argument("--folder", type=Path, default=FOLDER, help="folder of the corpus")
    options = parser.parse_args()
    wanted, left_out = permitted()
    with cnnfilterdb.create(options.db) as db:
        for source, names in wanted.items():
            with progress_observer(quiet=False) as observer:
                report = db.ingest(source, names, observer=observer)
            if report.failed:
                sys.exit("\n".join(f"{failure.model_id}: {failure.reason}" for failure in report.failed))
        there = set(db.models()["model_id"])
        if there != {f"{source}/{name}" for source, names in wanted.items() for name in names}:
            sys.exit(f"{options.db}: has other models than the collection; remove them, or give another --db")
        with progress_bars(quiet=False) as progress:
            db.index(progress=progress)
            if db.kl_shift("true").attrs["coverage"]["warnings"]:  # fitted on an unfinished import
                db.index(refit=True, prune=True, progress=progress)
        manifest = write(db, options.folder, left_out)
    size = sum(file.bytes for file in manifest.files)
    print(f"{options.folder}: {manifest.models} models, {manifest.filters:,} filters, {size:,} bytes; "
          f"left out for their licences: {len(left_out)}")  # fmt: skip


if __name__ == "__main__":
    main()
