"""What the editor of SQL knows: views with their columns, and macros."""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Any

from cnnfilterdb.core import schema
from cnnfilterdb.sql import Definition

__all__ = ["macros", "tables"]


def tables(kernels: list[str]) -> dict[str, list[str]]:
    """The columns of each view."""
    models = list(schema.MODELS.names)
    layers = list(schema.LAYERS.names)
    keys = ["model_id", "layer", "out_channel", "in_channel"]
    found = {
        "models": models,
        "layers": layers,
        "facts": [*(name for name in models if name != "files"), *layers[1:], "papers_layer"],
        "bases": list(schema.BASES.names),
        "histograms": list(schema.HISTOGRAMS.names),
        "fingerprints": list(schema.FINGERPRINTS.names),
        "spectra": [
            *layers[:3],
            "kernel",
            "filters",
            "alpha",
            "alpha_ks",
            "alpha_hat",
            "lambda_max",
            "spectral_norm",
            "stable_rank",
            "kurtosis",
            "peak_ratio",
        ],
        "layer_sketches": [*keys[:2], "kernel", "filters", "out_channels", "place", "norm", "sketch", "kurtosis"],
        "related_models": ["model_a", "model_b", "cosine", "layers"],
        "shared_models": ["model_a", "model_b", "shared_layers", "shared_filters", "share"],
        "shared_layers": ["tensor_sha256", "kernel", "filters", "models", "places"],
        "annotations": ["model_id", "column", "value"],
    }
    for kernel in kernels:
        weights = schema.weight_columns(kernel)
        found[f"filters_{kernel}"] = [*keys, *(weights if len(weights) <= 49 else []), "w"]
        if schema.indexable(kernel):
            found[f"coefficients_{kernel}"] = [*keys, *(f"c{i}" for i in range(min(len(weights), 49)))]
    return found


def macros(definitions: Iterable[Definition]) -> list[dict[str, Any]]:
    """Name, arguments and comment of each macro that users call."""
    found = []
    for one in definitions:
        match = re.search(r"CREATE OR REPLACE MACRO (\w+)\((.*?)\) AS( TABLE)?", one.text, re.DOTALL)
        comment = " ".join(re.findall(r"^-- (?!-)(.*)$", one.text, re.MULTILINE))
        if match and comment and match[1] not in ("database_files", "histogram_files", "basis_rows"):
            arguments = " ".join(match[2].split())
            found.append({"name": match[1], "arguments": arguments, "table": bool(match[3]), "about": comment[:300]})
    return found
