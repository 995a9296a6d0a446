"""Builds a release in a folder: the models that may be published, as shards, with card, macros and manifest."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

import pyarrow as pa
import pyarrow.compute as pc

from cnnfilterdb import sql
from cnnfilterdb.analysis.bases import basis_table
from cnnfilterdb.core import paths, sqltext
from cnnfilterdb.core.durable import make_folder, sha256, sync, sync_folder, writing
from cnnfilterdb.core.errors import CnnFilterDbError, PublishError
from cnnfilterdb.core.reports import Progress
from cnnfilterdb.core.version import package_version
from cnnfilterdb.publish import card
from cnnfilterdb.publish.licenses import decide
from cnnfilterdb.publish.shards import SIZES, Absent, write_filter_shards, write_shards
from cnnfilterdb.publish.sources import Query, ReleaseSource
from cnnfilterdb.release.manifest import LeftOut, Manifest

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ["DataSet", "Draw", "build"]

#: Draws the shifts between the image domains of the models that a condition selects.
Draw = Callable[[str], "Figure"]

_FIGURE = "shift.png"
_TEXTS = (paths.INIT, "MODELS.md", "CITATION.cff", "README.md")
_DPI = 120


@dataclass(frozen=True, slots=True)
class DataSet:
    """A data set that a release is published in, for everybody: it has a card, and models whose licences permit that.

    Attributes:
        repo: ``owner/name``.
        draw: Draws the shifts between the image domains of the models that a condition selects.
        include_license: Licences whose models are included although they are not known to permit it.

    >>> DataSet("owner/name", draw=print).address("1.0.0")
    'hf://datasets/owner/name@v1.0.0'
    """

    repo: str
    draw: Draw
    include_license: Sequence[str] = ()

    def address(self, version: str) -> str:
        """Address under which a release is read on the Hub."""
        return f"hf://datasets/{self.repo}@v{version}"


def build(
    source: ReleaseSource,
    folder: Path,
    *,
    version: str,
    address: str,
    query: Query,
    data_set: DataSet | None = None,
    sizes: tuple[int, int] = SIZES,
    absent: Absent | None = None,
    progress: Progress | None = None,
) -> Manifest:
    """Write a release.

    The same database gives the same bytes again, except for the card.

    Args:
        source: What it is made of, up to date.
        folder: Folder to write to: empty, absent, or left behind by an interrupted build.
        version: Its version, ``X.Y.Z``.
        address: The address under which it is going to be read.
        query: Answers SQL over the views of the database.
        data_set: What it is published in; without one it has all models, and no card.
        sizes: Smallest and largest size of a file of filters, in bytes.
        absent: Takes files of filters that are not needed in the folder.
        progress: Called with the current step, the amount done and the total.

    Raises:
        PublishError: No model may be published, or the folder is not empty.
        DatabaseError: The disk is full.
    """
    storage = source.storage
    facts = query("FROM models ORDER BY model_id")
    if not facts.num_rows:
        raise PublishError(f"{storage.location}: contains no models; `cnnfilterdb ingest` imports some")
    chosen, left_out = _permitted(facts, data_set)
    if not chosen:
        raise PublishError(
            f"{storage.location}: none of its {len(left_out)} models may be published: {left_out[0].reason}; "
            "`--include-license` names exceptions"
        )
    _prepare(folder)
    bases = source.bases()
    kernels = list(dict.fromkeys(["3x3", *storage.kernels()]))
    models = facts.filter(pc.is_in(facts["model_id"], pa.array(chosen)))
    layers = storage.layers(chosen)
    files = write_shards(folder, "models", [models]) + write_shards(folder, "layers", [layers])
    for kernel in kernels:
        filters = source.filters(kernel, chosen)
        files += write_filter_shards(folder, kernel, filters, sizes=sizes, absent=absent, progress=progress)
    files += write_shards(folder, "histograms", source.histograms(bases, chosen))
    files += write_shards(folder, "bases", [basis_table(fitted) for fitted in bases])
    files += write_shards(folder, "fingerprints", source.fingerprints(chosen))
    manifest = Manifest(
        version=version,
        models=len(chosen),
        filters=pc.sum(models["stored_filters"]).as_py() or 0,
        files=tuple(files),
        left_out=tuple(left_out),
        created_by=f"cnnfilterdb {package_version()}",
    )
    shards = {table: [file.path for file in manifest.of(table)] for table in manifest.tables()}
    mark = manifest.of("models")[0].sha256
    texts = {paths.INIT: sql.render(address, kernels, published=True, shards=shards, mark=mark)}
    if data_set is not None:
        frame = models.to_pandas()
        texts |= {
            "MODELS.md": card.models_page(data_set.repo, manifest, frame),
            "CITATION.cff": card.citation(data_set.repo, manifest, frame),
            "README.md": card.readme(
                data_set.repo,
                manifest,
                frame,
                layers.select(["model_id", "kernel", "filters", "stored"]).to_pandas(),
                [row for fitted in bases for row in basis_table(fitted).to_pylist()],
                figure=_save_figure(data_set.draw, folder, chosen),
            ),
        }
    with writing(folder):
        for name, text in texts.items():
            (folder / name).write_text(text, encoding="utf-8")
        pages = {path.name: sha256(path) for path in sorted(folder.iterdir()) if path.name in {*_TEXTS, _FIGURE}}
        manifest = replace(manifest, pages=pages)
        # Last: a folder with this file contains a complete release.
        (folder / paths.MARKER).write_text(manifest.to_json(), encoding="utf-8")
        for path in (*folder.rglob("*"), folder):
            (sync_folder if path.is_dir() else sync)(path)
        (folder / paths.UNFINISHED).unlink()
        sync_folder(folder)
    return manifest


def _prepare(folder: Path) -> None:
    """Create the folder; one with an unfinished release is emptied, because a release is always built from scratch."""
    with writing(folder):
        unfinished = folder / paths.UNFINISHED
        there = [path for path in folder.rglob("*") if not path.is_dir()] if folder.exists() else []
        own = {path for path in there if _is_own(path.relative_to(folder).as_posix())}
        if there and not (unfinished in there and own == set(there)):
            raise PublishError(f"{folder}: not an empty folder; choose another one for the release")
        for path in own - {unfinished}:
            path.unlink()
        make_folder(folder)
        unfinished.touch()
        sync_folder(folder)


def _is_own(path: str) -> bool:
    """Whether a release has a file of this name."""
    return path in {*_TEXTS, _FIGURE, paths.MARKER, paths.UNFINISHED} or paths.shard_table(path) is not None


def _permitted(models: pa.Table, data_set: DataSet | None) -> tuple[list[str], list[LeftOut]]:
    """The models that a release may have, and those that are left out."""
    if data_set is None:
        return models["model_id"].to_pylist(), []
    chosen, left_out = [], []
    for model_id, license_ in zip(models["model_id"].to_pylist(), models["license"].to_pylist(), strict=True):
        verdict = decide(license_, data_set.include_license)
        if verdict.allowed:
            chosen.append(model_id)
        else:
            left_out.append(LeftOut(model_id, license_, verdict.reason))
    return chosen, left_out


def _save_figure(draw: Draw, folder: Path, model_ids: Sequence[str]) -> str | None:
    """Save the shifts between domains as a picture; None if there are fewer than two domains."""
    ids = ", ".join(sqltext.literal(model_id) for model_id in model_ids)
    try:
        figure = draw(f"model_id IN ({ids})")
    except CnnFilterDbError:
        return None
    with writing(folder):
        figure.savefig(folder / _FIGURE, dpi=_DPI)
    return _FIGURE
