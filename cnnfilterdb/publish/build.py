"""Builds a release of a database in a folder: what may be published, as shards, with card, macros and manifest."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from cnnfilterdb import paths, sql
from cnnfilterdb.analysis.bases import FittedBasis, basis_table
from cnnfilterdb.errors import CnnFilterDbError, PublishError
from cnnfilterdb.publish import card
from cnnfilterdb.publish.licenses import decide
from cnnfilterdb.publish.shards import SIZES, write_filters, write_table
from cnnfilterdb.release.manifest import MARKER, LeftOut, Manifest
from cnnfilterdb.reports import Progress
from cnnfilterdb.schema import HISTOGRAMS
from cnnfilterdb.stats import RECIPES
from cnnfilterdb.store.durable import writing
from cnnfilterdb.store.folder import Store
from cnnfilterdb.store.index import Index
from cnnfilterdb.version import package_version

if TYPE_CHECKING:
    from cnnfilterdb.database import FilterDB

__all__ = ["address", "build"]

_FIGURE = "shift.png"
_DPI = 120


def address(repo: str, version: str) -> str:
    """Where a release is read on the Hub.

    >>> address("owner/name", "1.0.0")
    'hf://datasets/owner/name@v1.0.0'
    """
    return f"hf://datasets/{repo}@v{version}"


def build(
    db: FilterDB,
    folder: Path,
    *,
    repo: str,
    version: str,
    include_license: Collection[str] = (),
    sizes: tuple[int, int] = SIZES,
    progress: Progress | None = None,
) -> Manifest:
    """Write a release.

    The same database gives the same bytes again, but for the card.

    Args:
        db: The database, with its index up to date.
        folder: Where to, an empty or absent folder.
        repo: Where it is to be published, ``owner/name``.
        version: Its version, ``X.Y.Z``.
        include_license: Licences whose models are taken in although they are not known to permit it.
        sizes: Bytes of a file of filters: at least, and at most.
        progress: Called with what is being done, how much is done and how much there is.

    Raises:
        PublishError: No model may be published, or the folder is not empty.
        DatabaseError: The disk is full.
    """
    if folder.exists() and any(folder.iterdir()):
        raise PublishError(f"{folder}: not an empty folder; choose another one for the release")
    facts = db.sql("FROM models ORDER BY model_id").to_arrow_table()
    chosen, left_out = _permitted(facts, include_license)
    if not facts.num_rows:
        raise PublishError(f"{db.path}: holds no model; `cnnfilterdb ingest` brings some")
    if not chosen:
        raise PublishError(
            f"{db.path}: none of its {len(left_out)} models may be published: {left_out[0].reason}; "
            "`--include-license` names exceptions"
        )
    store = Store.open(db.path)
    kernels = list(dict.fromkeys(["3x3", *store.kernels()]))
    with writing(folder):
        folder.mkdir(parents=True, exist_ok=True)
    # Those in use; older ones stay in the database.
    bases = list(Index(store).current().values())
    models = facts.filter(pc.is_in(facts["model_id"], pa.array(chosen)))
    layers = store.layers(chosen)
    files = write_table(folder, "models", [models]) + write_table(folder, "layers", [layers])
    for kernel in kernels:
        files += write_filters(folder, store, kernel, chosen, sizes=sizes, progress=progress)
    files += write_table(folder, "histograms", _histograms(store, bases, chosen))
    files += write_table(folder, "bases", [basis_table(fitted) for fitted in bases])
    manifest = Manifest(
        version=version,
        models=len(chosen),
        filters=pc.sum(models["stored_filters"]).as_py() or 0,
        files=tuple(files),
        left_out=tuple(left_out),
        created_by=f"cnnfilterdb {package_version()}",
    )
    current = {fitted.basis.kernel: (fitted.basis_id, fitted.basis) for fitted in bases}
    frame = models.to_pandas()
    texts = {
        "init.sql": sql.render(address(repo, version), kernels, current, published=True),
        MARKER: manifest.to_json(),
        "MODELS.md": card.models_page(repo, manifest, frame),
        "CITATION.cff": card.citation(repo, manifest, frame),
        "README.md": card.readme(
            repo,
            manifest,
            frame,
            layers.select(["model_id", "kernel", "filters", "stored"]).to_pandas(),
            [row for fitted in bases for row in basis_table(fitted).to_pylist()],
            figure=_draw(db, folder, chosen),
        ),
    }
    with writing(folder):
        for name, text in texts.items():
            (folder / name).write_text(text, encoding="utf-8")
    return manifest


def _permitted(models: pa.Table, include: Collection[str]) -> tuple[list[str], list[LeftOut]]:
    chosen, left_out = [], []
    for model_id, license_ in zip(models["model_id"].to_pylist(), models["license"].to_pylist(), strict=True):
        verdict = decide(license_, include)
        if verdict.allowed:
            chosen.append(model_id)
        else:
            left_out.append(LeftOut(model_id, license_, verdict.reason))
    return chosen, left_out


def _histograms(store: Store, bases: Sequence[FittedBasis], model_ids: Sequence[str]) -> Iterator[pa.Table]:
    """By basis and recipe, then by model: a question is asked in one basis and one recipe."""
    for fitted in bases:
        for recipe in RECIPES:
            for model_id in model_ids:
                path = store.path / paths.histograms_path(fitted.basis_id, store.slug(model_id))
                if path.exists():
                    yield pq.read_table(path, schema=HISTOGRAMS, filters=pc.field("recipe") == recipe)


def _draw(db: FilterDB, folder: Path, model_ids: Sequence[str]) -> str | None:
    """The shifts between domains as a picture; None where there are no two domains to compare."""
    ids = ", ".join(sql.literal(model_id) for model_id in model_ids)
    try:
        figure = db.plot.kl_shift(by="domain", where=f"model_id IN ({ids})")
    except CnnFilterDbError:
        return None
    with writing(folder):
        figure.savefig(folder / _FIGURE, dpi=_DPI)
    return _FIGURE
