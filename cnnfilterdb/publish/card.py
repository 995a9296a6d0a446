"""The texts of a release: the dataset card, the page of its models, and how to cite it. No I/O.

The card is the template ``card.md`` beside this module. The metadata of models can be any text, so all of it passes
through :mod:`cnnfilterdb.core.markdown`.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from functools import cache
from importlib.resources import files
from string import Template
from typing import Any

import pandas as pd
import pyarrow as pa

from cnnfilterdb.catalog.entries import CONDITIONS
from cnnfilterdb.core import paths
from cnnfilterdb.core.markdown import code, line, link, table, text
from cnnfilterdb.core.reports import counted
from cnnfilterdb.core.schema import describe, filter_schema, kernel_order, release_schema
from cnnfilterdb.publish.licenses import UNKNOWN, Verdict, card_licenses, known, terms
from cnnfilterdb.release.manifest import Manifest

__all__ = ["citation", "features", "models_page", "readme", "size_category"]

_TAGS = ["cnn", "convolution", "kernels", "filters", "model-weights", "distribution-shift", "cnnfilterdb"]

#: Rows of a generated table; the last one summarises the rest.
_MOST_ROWS = 40
#: For tables with more columns the card does not list the types: 32x32 kernels have 1,024 columns of weights.
_MOST_FEATURES = 150

_ONE_ROW = {
    "models": "a model",
    "layers": "a convolution layer of a model, with its statistics",
    "histograms": "the histograms of the coefficients of a layer, in one basis and one recipe",
    "bases": "an SVD basis",
    "fingerprints": "the spectrum of a stored layer, and a sketch of its weight by which related models are found",
}

_AUTHORS = (("Paul", "Gavrikov"), ("Janis", "Keuper"))

#: The papers of the method, all by these two authors.
_PAPERS: list[dict[str, Any]] = [
    {
        "type": "conference-paper",
        "title": "CNN Filter DB: An Empirical Investigation of Trained Convolutional Filters",
        "year": 2022,
        "collection-title": "Proceedings of the IEEE/CVF Conference on Computer Vision and Pattern Recognition (CVPR)",
        "start": 19066,
        "end": 19076,
        "doi": "10.48550/arXiv.2203.15331",
        "url": "https://arxiv.org/abs/2203.15331",
    },
    {
        "type": "conference-paper",
        "title": "Does Medical Imaging learn different Convolution Filters?",
        "year": 2022,
        "collection-title": "Medical Imaging meets NeurIPS Workshop",
        "doi": "10.48550/arXiv.2210.13799",
        "url": "https://arxiv.org/abs/2210.13799",
    },
]

#: Kernels published by the same authors, by the prefix of the source; releases with models of them cite these.
_RELEASED: dict[str, dict[str, Any]] = {
    "released-v": {
        "type": "data",
        "title": "CNN-Filter-DB",
        "year": 2022,
        "publisher": "Zenodo",
        "doi": "10.5281/zenodo.6371680",
        "url": "https://doi.org/10.5281/zenodo.6371680",
    },
    "released-robustness": {
        "type": "conference-paper",
        "title": "Adversarial Robustness Through the Lens of Convolutional Filters",
        "year": 2022,
        "collection-title": "Proceedings of the IEEE/CVF Conference on Computer Vision and Pattern Recognition "
        "(CVPR) Workshops",
        "start": 139,
        "end": 147,
        "doi": "10.48550/arXiv.2204.02481",
        "url": "https://arxiv.org/abs/2204.02481",
    },
}


# ------------------------------------------------------------------------------------------------------------ YAML


def features(schema: pa.Schema) -> list[dict[str, Any]]:
    """The columns of a table in the notation of the ``datasets`` library for the metadata of a card.

    >>> features(pa.schema([("a", pa.float32()), ("b", pa.list_(pa.int64()))]))
    [{'name': 'a', 'dtype': 'float32'}, {'name': 'b', 'list': 'int64'}]
    """
    return [_feature(field) for field in schema]


def _feature(field: pa.Field) -> dict[str, Any]:
    kind = _kind(field.type)
    return {"name": field.name, **(kind if isinstance(kind, dict) else {"dtype": kind})}


def _kind(kind: pa.DataType) -> str | dict[str, Any]:
    if pa.types.is_list(kind):
        inner = _kind(kind.value_type)
        if isinstance(inner, dict) and "struct" in inner:
            inner = inner["struct"]
        return {"list": inner}
    if pa.types.is_struct(kind):
        return {"struct": [_feature(kind.field(number)) for number in range(kind.num_fields)]}
    return {"double": "float64", "float": "float32"}.get(str(kind), str(kind))


def size_category(rows: int) -> str:
    """The size category of the Hub for a number of rows.

    >>> size_category(999), size_category(1000), size_category(1_464_797_156), size_category(10**13)
    ('n<1K', '1K<n<10K', '1B<n<10B', 'n>1T')
    """
    if rows < 1000:
        return "n<1K"
    power = len(str(rows)) - 1
    if power >= 12:
        return "n>1T"
    return f"{_thousands(power)}<n<{_thousands(power + 1)}"


def _thousands(power: int) -> str:
    return f"{10 ** (power % 3)}{' KMBT'[power // 3]}"


def _metadata(repo: str, manifest: Manifest, models: pd.DataFrame, layers: pd.DataFrame) -> dict[str, Any]:
    configs, infos = [], []
    for name in manifest.tables():
        config = {"config_name": name, "data_files": [{"split": "train", "path": paths.shards_pattern(name)}]}
        configs.append({**config, "default": True} if name == "models" else config)
        schema = release_schema(name)
        info: dict[str, Any] = {"config_name": name}
        if len(schema) <= _MOST_FEATURES:
            info["features"] = features(schema)
        if name.startswith("filters_"):
            # `datasets` accepts a number of rows only with the size in memory, which is not known for other tables.
            size = _in_memory(layers, name.removeprefix("filters_"))
            rows = sum(shard.rows for shard in manifest.of(name))
            info |= {"splits": [{"name": "train", "num_bytes": size, "num_examples": rows}], "dataset_size": size}
        infos.append({**info, "download_size": sum(shard.bytes for shard in manifest.of(name))})
    return {
        **card_licenses(_stated(models), _address(repo, manifest, "MODELS.md")),
        "pretty_name": _title(repo),
        "tags": _TAGS,
        "size_categories": [size_category(manifest.filters)],
        "configs": configs,
        "dataset_info": infos,
    }


def _in_memory(layers: pd.DataFrame, kernel: str) -> int:
    """Bytes of the filters of a kernel size as an Arrow table: the keys, and four bytes per number."""
    numbers = 4 * len(filter_schema(kernel))
    rows = layers[(layers["kernel"] == kernel) & layers["stored"].astype(bool)]
    return sum(
        int(count) * (len(model_id.encode()) + numbers)
        for model_id, count in zip(rows["model_id"], rows["filters"], strict=True)
    )


def _address(repo: str, manifest: Manifest, path: str = "") -> str:
    page = f"https://huggingface.co/datasets/{repo}"
    return f"{page}/blob/{manifest.tag}/{path}" if path else page


# ------------------------------------------------------------------------------------------------------------ card


def readme(
    repo: str,
    manifest: Manifest,
    models: pd.DataFrame,
    layers: pd.DataFrame,
    bases: Sequence[Mapping[str, Any]],
    *,
    figure: str | None,
) -> str:
    """The dataset card, ``README.md``.

    Args:
        repo: ``owner/name``.
        manifest: Manifest of the release.
        models: One row per published model, with the columns of the models table.
        layers: One row per layer: model_id, kernel, filters, stored.
        bases: Rows of the table of bases.
        figure: File name of the picture of the shifts; None if there is none.
    """
    from huggingface_hub import DatasetCardData

    metadata = DatasetCardData(**_metadata(repo, manifest, models, layers)).to_yaml()
    facts = _with_counts(models, layers)
    kernels = [name for name in manifest.tables() if name.startswith("filters_")]
    untrained = int(models["untrained"].eq(True).sum())
    body = _template().substitute(
        repo=repo,
        name=repo.rpartition("/")[2],
        tag=manifest.tag,
        version=manifest.version,
        created_by=text(manifest.created_by or "cnnfilterdb"),
        models=f"{len(models):,}",
        s="" if len(models) == 1 else "s",
        filters=f"{manifest.filters:,}",
        sizes=f"{len(kernels)} kernel sizes" if len(kernels) > 1 else "one kernel size",
        figure=_figure(figure),
        example=kernels[0] if kernels else "models",
        tables=_tables(manifest),
        by_domain=_grouped(facts, "domain", "image domain"),
        by_task=_grouped(facts, "task", "task"),
        by_source=_grouped(facts, "source", "source"),
        by_kernel=_kernels(layers, manifest),
        by_license=_licences(facts),
        columns=_columns(manifest),
        bases=_bases(bases, models),
        conditions=_conditions(models),
        license_notes=_notes(models),
        left_out=_left_out(manifest),
        untrained=f" Flagged as resembling random initialisation (`untrained`): {counted(untrained, 'model')}."
        if untrained
        else "",
        bibtex=_bibtex(repo, manifest, models),
    )
    return f"---\n{metadata}\n---\n\n{body}"


@cache
def _template() -> Template:
    return Template(files(__package__).joinpath("card.md").read_text(encoding="utf-8"))


def _figure(figure: str | None) -> str:
    if figure is None:
        return ""
    return (
        f"![Matrix of the shifts between the image domains]({figure})\n\n"
        "Shift of the 3x3 filters between image domains: the larger it is, the more the kernels of two domains differ."
    )


def _with_counts(models: pd.DataFrame, layers: pd.DataFrame) -> pd.DataFrame:
    """The models with their numbers of layers and of stored filters."""
    stored = layers["filters"].where(layers["stored"].astype(bool), 0)
    counts = stored.groupby(layers["model_id"]).agg(["size", "sum"])
    facts = models[["model_id", "source", "domain", "task", "license"]].astype(object)
    for column, count in (("layers", "size"), ("filters", "sum")):
        facts[column] = facts["model_id"].map(counts[count]).fillna(0).astype("int64")
    return facts


def _grouped(facts: pd.DataFrame, column: str, heading: str) -> str:
    """Models, layers and filters of each group, the largest first; models without a known value come last."""
    groups = facts.groupby(facts[column].map(line), sort=True).agg(
        models=("model_id", "size"), layers=("layers", "sum"), filters=("filters", "sum")
    )
    groups = groups.assign(unknown=groups.index == "").sort_values(["unknown", "filters"], ascending=[True, False])
    rows = [
        [text(name) or "*unknown*", f"{row.models:,}", f"{row.layers:,}", f"{row.filters:,}"]
        for name, row in zip(groups.index, groups.itertuples(), strict=True)
    ]
    if len(rows) > _MOST_ROWS:
        rest = groups.iloc[_MOST_ROWS - 1 :]
        counts = [f"{int(rest[name].sum()):,}" for name in ("models", "layers", "filters")]
        rows = [*rows[: _MOST_ROWS - 1], [f"*{len(rest):,} others*", *counts]]
    return table([heading, ">models", ">layers", ">filters"], rows)


def _kernels(layers: pd.DataFrame, manifest: Manifest) -> str:
    groups = layers.groupby("kernel").agg(
        models=("model_id", "nunique"), layers=("model_id", "size"), filters=("filters", "sum")
    )
    order = sorted(groups.index, key=kernel_order)
    tables = manifest.tables()
    rows = []
    for kernel in order:
        row = groups.loc[kernel]
        place = f"`filters_{kernel}`" if f"filters_{kernel}" in tables else "counted, not stored"
        rows.append([kernel, *(f"{int(row[name]):,}" for name in ("models", "layers", "filters")), place])
    return table(["kernel size", ">models", ">layers", ">kernels", "table"], rows)


def _tables(manifest: Manifest) -> str:
    rows = []
    for name in manifest.tables():
        shards = manifest.of(name)
        kernel = name.removeprefix("filters_")
        one = _ONE_ROW.get(name, f"a {kernel} filter: one kernel of a layer")
        count = sum(shard.rows for shard in shards)
        rows.append([f"`{name}`", one, f"{count:,}", f"{len(shards):,}", _size(sum(shard.bytes for shard in shards))])
    return table(["table", "one row is", ">rows", ">files", ">size"], rows)


def _columns(manifest: Manifest) -> str:
    """Descriptions of the columns of each table; the tables of filters differ in their number of weights only."""
    parts, kernels = [], [name for name in manifest.tables() if name.startswith("filters_")]
    for name in manifest.tables():
        if name in kernels[1:]:
            continue
        schema = release_schema(name)
        same = kernels if name in kernels else [name]
        rows = [
            [f"`{column}`", f"`{schema.field(column).type}`", text(description)]
            for column, description in describe(schema).items()
            if not (name in kernels and re.fullmatch(r"w\d+", column))
        ]
        if name in kernels:
            rows.append(["`w0`, `w1`, ...", "`float`", "weights, row by row: `w0` to `w8` for 3x3"])
        # Markdown is not interpreted within a line of HTML.
        summary = f"<summary>{', '.join(f'<code>{one}</code>' for one in same)}</summary>"
        parts.append(f"<details>\n{summary}\n\n{table(['column', 'type', 'meaning'], rows)}\n\n</details>")
    return "\n\n".join(parts)


def _size(count: int) -> str:
    """A number of bytes in readable units.

    >>> _size(999), _size(1_234_000)
    ('999 B', '1.2 MB')
    """
    size, units = float(count), ["B", "kB", "MB", "GB", "TB"]
    while size >= 999.95 and len(units) > 1:
        size, units = size / 1000, units[1:]
    return f"{size:.0f} B" if units[0] == "B" else f"{size:.1f} {units[0]}"


def _bases(bases: Sequence[Mapping[str, Any]], models: pd.DataFrame) -> str:
    if not bases:
        return "This release has no basis."
    fitted = {model_id for basis in bases for model_id in basis["models"] or []}
    absent = len(fitted.difference(models["model_id"]))
    note = (
        f"\n\nThe bases were also fitted on {counted(absent, 'model')} that this release does not contain."
        if absent
        else ""
    )
    rows = [
        [
            code(basis["basis_id"]),
            text(basis["kernel"]),
            f"{len(basis['models'] or []):,}",
            f"{basis['filters'] or 0:,}",
            text(basis["variant"]),
            ", ".join(f"{ratio:.3f}" for ratio in (basis["explained_variance_ratio"] or [])[:9])
            + (", ..." if len(basis["explained_variance_ratio"] or []) > 9 else ""),
            f"{basis['bins']} from {basis['low']:.3f} to {basis['high']:.3f}",
        ]
        for basis in bases
    ]
    headings = ["basis", "kernel size", ">models", ">filters", "variant", "explained variance ratio", "`cvpr2022` bins"]
    return table(headings, rows) + note


# -------------------------------------------------------------------------------------------------------- licences


def _statement(license: object) -> str | None:
    """The stated licence of a model; None also for values that mean that none is stated."""
    entry = known(line(license))
    return None if entry and entry.name == UNKNOWN else line(license) or None


def _stated(models: pd.DataFrame) -> list[str | None]:
    return [_statement(value) for value in models["license"]]


def _verdicts(models: pd.DataFrame) -> dict[str | None, Verdict]:
    return {stated: terms(stated) for stated in dict.fromkeys(_stated(models))}


def _license(stated: str | None) -> str:
    """The stated licence, with links to the texts known to the catalog."""
    if not stated:
        return "*not stated*"
    if known(stated) is None and terms(stated).licenses == (stated,):
        return code(stated)
    words = [stated] if known(stated) else re.split(r"([\s()]+)", stated)
    entries = [known(word) for word in words]
    return "".join(
        link(entry.url, word) if entry and entry.url else text(word) if word.strip() else word
        for word, entry in zip(words, entries, strict=True)
    )


def _asked(verdict: Verdict) -> str:
    named = ["*a named exception*"] if verdict.named else []
    return ", ".join([*verdict.conditions, *named]) or "nothing"


def _licences(facts: pd.DataFrame) -> str:
    verdicts = _verdicts(facts)
    groups = facts.assign(license=[stated or "" for stated in _stated(facts)]).groupby("license")
    counts = groups.agg(models=("model_id", "size"), filters=("filters", "sum")).sort_values("filters", ascending=False)
    rows = [
        [_license(name or None), f"{row.models:,}", f"{row.filters:,}", _asked(verdicts[name or None])]
        for name, row in zip(counts.index, counts.itertuples(), strict=True)
    ]
    return table(["licence", ">models", ">filters", "requires"], rows)


def _conditions(models: pd.DataFrame) -> str:
    asked = {condition for verdict in _verdicts(models).values() for condition in verdict.conditions}
    lines = [f"- **{name}**: {meaning}" for name, meaning in CONDITIONS.items() if name in asked]
    return "\n".join(lines) or "- nothing"


def _notes(models: pd.DataFrame) -> str:
    """Notes on share-alike and non-commercial licences and on exceptions."""
    verdicts, stated = _verdicts(models), _stated(models)

    def those(condition: str) -> str:
        names = [name for name, verdict in verdicts.items() if name and condition in verdict.conditions]
        count = sum(name in names for name in stated)
        return f"{counted(count, 'model')} under {'; '.join(_license(name) for name in names)}" if names else ""

    notes = []
    if alike := those("share-alike"):
        notes.append(
            f"**Share-alike.** {alike}. Rows of such a model, and works derived from them, may only be shared under "
            "the same licence. Bases fitted on them are offered under these licences where they apply."
        )
    if commercial := those("noncommercial"):
        notes.append(
            f"**Non-commercial.** {commercial}. For commercial use, filter out their rows by the column `license`, and "
            "the bases that were fitted on them; `cnnfilterdb index --refit` fits new bases to the remaining models."
        )
    if exceptions := [name for name, verdict in verdicts.items() if verdict.named]:
        count = sum(name in exceptions for name in stated)
        notes.append(
            "**Exceptions.** Included by the publisher of this data set although the licence is not known to permit "
            f"redistribution: {counted(count, 'model')} under {'; '.join(_license(name) for name in exceptions)}."
        )
    return "\n\n".join(notes)


def _left_out(manifest: Manifest) -> str:
    if not manifest.left_out:
        return "No model of the database was left out."
    reasons: dict[tuple[str | None, str], int] = {}
    for entry in manifest.left_out:
        key = (_statement(entry.license), entry.reason)
        reasons[key] = reasons.get(key, 0) + 1
    rows = [
        [_license(stated), f"{count:,}", text(reason)]
        for (stated, reason), count in sorted(reasons.items(), key=lambda item: -item[1])
    ]
    return (
        f"{counted(len(manifest.left_out), 'model')} of the database may not be redistributed, or it is not known "
        f"whether they may; [MODELS.md](MODELS.md#left-out) lists them.\n\n"
        f"{table(['licence', '>models', 'reason'], rows)}"
    )


# ----------------------------------------------------------------------------------------------------------- models


def models_page(repo: str, manifest: Manifest, models: pd.DataFrame) -> str:
    """The page of all models, ``MODELS.md``: licence, conditions and provenance of each, and the models left out.

    Args:
        repo: ``owner/name``.
        manifest: Manifest of the release.
        models: One row per published model, with the columns of the models table.
    """
    verdicts = _verdicts(models)
    rows = [
        [
            code(row.model_id),
            _license(stated),
            _asked(verdicts[stated]),
            _origin(line(row.url)),
            _paper(line(row.paper)),
            text(row.training_dataset),
        ]
        for row, stated in zip(models.itertuples(), _stated(models), strict=True)
    ]
    left_out = [
        [code(entry.model_id), _license(_statement(entry.license)), text(entry.reason)] for entry in manifest.left_out
    ]
    parts = [
        f"# Models of {repo} {manifest.tag}",
        f"{counted(len(models), 'model')}. Each keeps its own licence. Licences link to their text, sources to the "
        "origin of the weights; the column `models.url` has the full address.",
        "What the licences require:",
        _conditions(models),
        _notes(models),
        "## Published",
        table(["model", "licence", "requires", "source", "paper", "trained on"], rows),
        "## Left out",
        table(["model", "licence", "reason"], left_out) if left_out else "Nothing.",
    ]
    return "\n\n".join(part for part in parts if part) + "\n"


def _origin(url: str) -> str:
    """The origin of weights: a web address, or a package URL without hashes and file."""
    if url.startswith("pkg:huggingface/"):
        return link(f"https://huggingface.co/{url.removeprefix('pkg:huggingface/')}")
    if url.startswith("pkg:"):
        return code(re.split(r"[?#]", url)[0])
    return link(url) if url else ""


def _paper(paper: str) -> str:
    if paper.startswith("doi:"):
        return link(f"https://doi.org/{paper.removeprefix('doi:')}", paper)
    if paper.startswith("arXiv:"):
        return link(f"https://arxiv.org/abs/{paper.removeprefix('arXiv:')}", paper)
    return link(paper) if paper else ""


# --------------------------------------------------------------------------------------------------------- citation


def _references(models: pd.DataFrame) -> list[dict[str, Any]]:
    """The papers of the method, and the published kernel collections that models come from."""
    sources = [line(source) for source in models["source"]]
    released = [entry for start, entry in _RELEASED.items() if any(source.startswith(start) for source in sources)]
    return _PAPERS + released


def citation(repo: str, manifest: Manifest, models: pd.DataFrame) -> str:
    """``CITATION.cff``, in the Citation File Format 1.2.0.

    Args:
        repo: ``owner/name``.
        manifest: Manifest of the release.
        models: One row per published model, with the columns of the models table.
    """
    import yaml  # type: ignore[import-untyped]

    owner, _, name = repo.rpartition("/")
    references = [
        {
            "type": entry["type"],
            "title": entry["title"],
            "authors": [{"given-names": given, "family-names": family} for given, family in _AUTHORS],
            **({"publisher": {"name": entry["publisher"]}} if "publisher" in entry else {}),
            **{key: value for key, value in entry.items() if key != "publisher"},
        }
        for entry in _references(models)
    ]
    cff = {
        "cff-version": "1.2.0",
        "message": "Cite this data set, the papers of its method, and the papers of the models that you use.",
        "type": "dataset",
        "title": _title(repo),
        "abstract": f"{manifest.filters:,} convolution kernels of {counted(len(models), 'model')}, with metadata, "
        "statistics of each layer, SVD bases and histograms.",
        "authors": [{"name": owner or name}],
        "version": manifest.version,
        "url": _address(repo, manifest),
        # Each model has its own licence; a list of licences would mean that one may be chosen.
        "license-url": _address(repo, manifest, "MODELS.md"),
        "keywords": _TAGS,
        "references": references,
    }
    return str(yaml.safe_dump(cff, sort_keys=False, allow_unicode=True, width=120))


def _title(repo: str) -> str:
    return f"Kernels of trained CNNs: {repo.rpartition('/')[2]}"


def _bibtex(repo: str, manifest: Manifest, models: pd.DataFrame) -> str:
    authors = " and ".join(f"{family}, {given}" for given, family in _AUTHORS)
    entries = []
    for entry in _references(models):
        key = "gavrikov2022" + re.sub(r"[^a-z]", "", entry["title"].lower())[:12]
        paper = "collection-title" in entry
        facts = {
            "author": authors,
            "title": f"{{{entry['title']}}}",
            "booktitle" if paper else "publisher": entry["collection-title"] if paper else entry["publisher"],
            "year": entry["year"],
            **({"pages": f"{entry['start']}--{entry['end']}"} if "start" in entry else {}),
            "doi": entry["doi"],
        }
        entries.append((f"inproceedings{{{key}" if paper else f"misc{{{key}", facts))
    owner, _, name = repo.rpartition("/")
    this = {
        "author": f"{{{owner or name}}}",
        "title": f"{{{_title(repo)}}}",
        "version": manifest.version,
        "url": _address(repo, manifest),
    }
    entries.append((f"misc{{{re.sub(r'[^a-z0-9]', '', name.lower()) or 'kernels'}", this))
    return "\n\n".join(
        f"@{head},\n" + "".join(f"  {key} = {{{value}}},\n" for key, value in facts.items()) + "}"
        for head, facts in entries
    )
