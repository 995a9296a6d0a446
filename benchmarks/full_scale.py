"""All work on a database of the size of the papers' dataset, or a fraction of it, beside reading its nine columns.

At fraction 1 it has 647 models, 21,436 layers and 1.46 billion kernels (about 53 GB), imported through the package's
own code; a smaller one has a share of these models. Each kind of work runs in a process of its own, which reports its
seconds, those of its processors and its peak memory. Reading the nine columns with pyarrow, and writing the same
columns with pyarrow, are measured in the same run: compare rates with these, not with another machine's.

    python -m benchmarks.full_scale --fraction 0.01 [--folder DIR] [--keep] [--without publish]
"""

from __future__ import annotations

import argparse
import json
import os
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np

from benchmarks._synthetic import DOMAINS, LAYER_COUNT, MODEL_COUNT, SyntheticModel, build, kernels, measured, peak_gb

KERNELS = 1_464_797_156
#: Kernels of a sample that pyarrow writes for comparison; its rate does not depend on the rest.
SAMPLE = 8_000_000
QUERY = [[1, 0, -1], [2, 0, -2], [1, 0, -1]]


def corpus(fraction: float) -> list[SyntheticModel]:
    """The models: their layers have a few hundred to a few million kernels, and add up to those of the dataset."""
    rng = np.random.default_rng(0)
    sizes = np.minimum(rng.lognormal(9.5, 1.8, LAYER_COUNT), 6e6) + 64
    sizes *= KERNELS / sizes.sum()
    outputs = np.maximum(np.sqrt(sizes).astype(int), 1)
    channels = list(zip(outputs.tolist(), np.rint(sizes / outputs).astype(int).tolist(), strict=True))
    domains = np.repeat(list(DOMAINS), list(DOMAINS.values()))
    order = rng.permutation(MODEL_COUNT)
    count = max(1, round(MODEL_COUNT * fraction))
    return [
        SyntheticModel(f"m{number}", str(domains[number]), tuple(channels[number::MODEL_COUNT]))
        for number in order[:count].tolist()
    ]


def _timed(action: Callable[[], Any]) -> dict[str, float]:
    start, spent = time.perf_counter(), time.process_time()
    action()
    return {"seconds": time.perf_counter() - start, "cpu": time.process_time() - spent}


def ingest(path: Path, fraction: float) -> dict[str, float]:
    """Import all models, after a small one that loads the compiled loops."""
    with tempfile.TemporaryDirectory(dir=path.parent) as folder:
        build(Path(folder) / "first.db", [SyntheticModel("first", "natural", ((8, 8), (8, 8)))])
    return build(path, corpus(fraction))


def writing(path: Path, fraction: float) -> dict[str, float]:
    """Seconds per kernel of writing the same columns with pyarrow, encoded alike, from memory, times all kernels."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    from cnnfilterdb.core.schema import weight_columns
    from cnnfilterdb.store.writer import filter_settings, row_group_rows

    model = SyntheticModel("sample", "natural", ((512, 512),) * (SAMPLE // 512**2))
    names = ("model_id", "layer", "out_channel", "in_channel", *weight_columns("3x3"))
    parts: dict[str, list[Any]] = {name: [] for name in names}
    for layer, (outputs, inputs) in enumerate(model.layers):
        first, second = np.divmod(np.arange(outputs * inputs, dtype=np.int32), np.int32(inputs))
        columns = [pa.repeat("synthetic/sample", outputs * inputs), np.full(outputs * inputs, layer, np.int32)]
        columns += [first, second, *kernels(model, layer).reshape(-1, 9).T]
        for part, column in zip(parts.values(), columns, strict=True):
            part.append(pa.array(column))
    table = pa.table({name: pa.chunked_array(part).combine_chunks() for name, part in parts.items()})
    target = path.parent / "sample.parquet"
    found = _timed(
        lambda: pq.write_table(table, target, row_group_size=row_group_rows("3x3"), **filter_settings("3x3"))
    )
    target.unlink()
    share = sum(model.filters for model in corpus(fraction)) / model.filters
    return {name: value * share for name, value in found.items()}


def forget(path: Path) -> None:
    """Let the system forget what it has in memory of a database that does not fit into memory.

    Otherwise a scan takes the less time the more the work before it happened to leave there.
    """
    files = [file for file in path.rglob("*.parquet") if file.is_file()]
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    if sum(file.stat().st_size for file in files) < memory or not hasattr(os, "posix_fadvise"):
        return
    for file in files:
        with file.open("rb") as opened:
            os.posix_fadvise(opened.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def reading(path: Path, fraction: float) -> dict[str, float]:
    """Read the nine columns with pyarrow, in its threads, and keep nothing; the mean of two times, one after another.

    The work that it is compared with scans twice, too, and finds as much in memory.
    """
    import pyarrow.dataset as ds

    def read() -> None:
        files = ds.dataset(path / "filters" / "kernel=3x3", format="parquet")
        for _ in files.scanner(columns=[f"w{i}" for i in range(9)]).to_batches():
            pass

    forget(path)
    once, again = _timed(read), _timed(read)
    return {name: (once[name] + again[name]) / 2 for name in once}


def _on_database(action: Callable[[Any], Any]) -> Callable[[Path, float], dict[str, float]]:
    def side(path: Path, fraction: float) -> dict[str, float]:
        import cnnfilterdb

        with cnnfilterdb.example() as small:
            small.kl_shift("domain", basis="selection")  # loads the compiled loops
            small.nearest(QUERY)
        forget(path)
        with cnnfilterdb.open(path) as db:
            return _timed(lambda: action(db))

    return side


def _again(action: Callable[[Any], Any]) -> Callable[[Path, float], dict[str, float]]:
    """Of a database that has answered the question before."""

    def side(path: Path, fraction: float) -> dict[str, float]:
        import cnnfilterdb

        with cnnfilterdb.open(path) as db:
            action(db)
            return _timed(lambda: action(db))

    return side


def _index(db: Any) -> None:
    """What `index` does, without fingerprints."""
    db._index.build(fingerprints=False)
    db._store.gather()


def _publish(db: Any) -> None:
    """All that `publish` does except to send: verify, build each file, and build the large ones again one by one."""
    from cnnfilterdb.publish import publish
    from cnnfilterdb.publish.files import release_files

    def send(folder: Path, manifest: Any, repo: str, *, absent: Any, **options: Any) -> None:
        for file in release_files(folder, manifest, absent):
            file.fetch()
            file.forget()

    with patch.object(publish, "upload", send):
        db.publish("benchmarks/full-scale", version="1.0.0")


def _one_model(db: Any) -> None:
    name = db.models()["model_id"].iloc[0]
    assert len(db.filters(where=f"model_id = '{name}'", kernel="3x3"))


#: In this order: each kind of work, and whether its rate is one of kernels.
WORK: dict[str, tuple[Callable[[Path, float], dict[str, float]], bool]] = {
    "ingest": (ingest, True),
    "writing": (writing, True),
    "reading": (reading, True),
    "index": (_on_database(_index), True),
    "fingerprints": (_on_database(lambda db: db.index()), True),
    "fresh": (_on_database(lambda db: db.kl_shift("domain", basis="selection")), True),
    "nearest": (_on_database(lambda db: db.nearest(QUERY)), True),
    "verify": (_on_database(lambda db: db.verify()), True),
    "publish": (_on_database(_publish), True),
    "model": (_on_database(_one_model), False),
    "first": (_on_database(lambda db: db.kl_shift("domain")), False),
    "stored": (_again(lambda db: db.kl_shift("domain")), False),
    "models": (_again(lambda db: db.kl_shift("model_id")), False),
    "quality": (_again(lambda db: db.quality("domain")), False),
}
LABELS = {
    "ingest": "`ingest`, from a safetensors file of each model",
    "writing": "pyarrow writes the same columns, from memory",
    "reading": "pyarrow reads the nine columns",
    "index": "`index`: basis and histograms, two scans",
    "fingerprints": "`index`: fingerprints (spectra and sketches)",
    "fresh": "fresh basis, histograms and shift",
    "nearest": "`nearest` to one kernel",
    "verify": "`verify`: every byte and hash",
    "publish": "`publish`, all except sending",
    "model": "all kernels of one model",
    "first": "stored shift by domain, first question after `open`",
    "stored": "stored shift by domain, once open",
    "models": "stored shift between all models, once open",
    "quality": "`quality` by domain, once open",
}


def main() -> None:
    """Build the database, do each kind of work, print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--fraction", type=float, default=0.01, help="share of the models (default: %(default)s)")
    parser.add_argument("--folder", type=Path, help="where the database is built; a temporary folder by default")
    parser.add_argument("--keep", action="store_true", help="keep the database in --folder, or use the one there")
    parser.add_argument("--without", action="append", default=[], choices=list(WORK), help="leave this work out")
    parser.add_argument("--output", type=Path, help="also append the figures to this file, as a line of JSON")
    parser.add_argument("--work", choices=list(WORK), help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.work:
        found = WORK[arguments.work][0](arguments.folder / "made.db", arguments.fraction)
        print(json.dumps({"peak_gb": peak_gb(), **found}))
        return
    if arguments.folder:
        arguments.folder.mkdir(parents=True, exist_ok=True)
    models = corpus(arguments.fraction)
    total = sum(model.filters for model in models)
    with tempfile.TemporaryDirectory(dir=arguments.folder, prefix="full-scale-") as scratch:
        folder = arguments.folder if arguments.keep else Path(scratch)
        path = folder / "made.db"
        rows: dict[str, dict[str, float]] = {}
        for work in WORK:
            if work in arguments.without or (work == "ingest" and path.exists()):
                continue
            rows[work] = measured("full_scale", "--work", work, "--folder", folder, "--fraction", arguments.fraction)
        size = sum(file.stat().st_size for file in path.rglob("*") if file.is_file())
    layers = sum(len(model.layers) for model in models)
    if arguments.output:
        figures = {"models": len(models), "layers": layers, "kernels": total, "bytes": size, "work": rows}
        with arguments.output.open("a", encoding="utf-8") as file:
            file.write(json.dumps(figures) + "\n")
    print(f"{len(models):,} models, {layers:,} layers, {total:,} kernels, {size / 1e9:.2f} GB on disk\n")
    print("| work | s | processor s | million kernels / s | of the rate of reading | peak memory, GB |")
    print("|---|--:|--:|--:|--:|--:|")
    for work, row in rows.items():
        rate = f"{total / row['seconds'] / 1e6:.2f}" if WORK[work][1] else ""
        share = f"{rows['reading']['seconds'] / row['seconds']:.0%}" if rate and "reading" in rows else ""
        print(f"| {LABELS[work]} | {row['seconds']:.2f} | {row['cpu']:.2f} | {rate} | {share} | {row['peak_gb']:.2f} |")


if __name__ == "__main__":
    main()
