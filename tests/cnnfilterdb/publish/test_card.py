from __future__ import annotations

import logging
import re
import shutil
from html.parser import HTMLParser

import numpy as np
import pandas as pd
import pyarrow.parquet as pq
import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st
from markdown_it import MarkdownIt

from cnnfilterdb.core.markdown import code, line, link, table, text
from cnnfilterdb.core.paths import shard_path
from cnnfilterdb.core.schema import MODELS, describe, release_schema
from cnnfilterdb.publish.card import citation, features, models_page, readme, size_category
from cnnfilterdb.release.manifest import LeftOut, Manifest, ReleaseFile

REPO = "owner/my-kernels"
TABLES = ["models", "layers", "filters_3x3", "filters_5x5", "filters_1x7", "histograms", "bases", "fingerprints"]
ROWS = {
    "models": 5,
    "layers": 13,
    "filters_3x3": 2000,
    "filters_5x5": 256,
    "histograms": 20,
    "bases": 3,
    "fingerprints": 10,
}


class Page(HTMLParser):
    """The tables, links and tags of a page, as a browser has them."""

    def __init__(self, markdown: str) -> None:
        super().__init__()
        self.tables: list[list[list[str]]] = []
        self.links: list[str] = []
        self.tags: set[str] = set()
        self._cell: str | None = None
        self.feed(
            MarkdownIt("commonmark").enable("table").render(re.sub(r"\A---\n.*?\n---\n", "", markdown, flags=re.S))
        )

    def handle_starttag(self, tag, attrs):
        self.tags.add(tag)
        self.links += [value for name, value in attrs if name == "href"]
        if tag == "table":
            self.tables.append([])
        elif tag == "tr":
            self.tables[-1].append([])
        elif tag in ("td", "th"):
            self._cell = ""

    def handle_endtag(self, tag):
        if tag in ("td", "th"):
            self.tables[-1][-1].append(self._cell)
            self._cell = None

    def handle_data(self, data):
        if self._cell is not None:
            self._cell += data

    def table(self, *headings: str) -> dict[str, list[str]]:
        """Rows of the table with these headings, by their first cell."""
        (found,) = [rows for rows in self.tables if rows[0] == list(headings)]
        return {row[0]: row[1:] for row in found[1:]}


def manifest_of(rows=ROWS, left_out=(), version="1.2.0"):
    files = []
    for name, count in rows.items():
        shards = [count // 2, count - count // 2] if name.startswith("filters") else [count]
        files += [ReleaseFile(shard_path(name, n), name, part, 1000 + n, "0") for n, part in enumerate(shards)]
    filters = sum(count for name, count in rows.items() if name.startswith("filters"))
    return Manifest(version, rows["models"], filters, tuple(files), tuple(left_out), "cnnfilterdb 0.1.0")


def models_of(**columns):
    """A models frame: what is not given is NULL."""
    count = len(next(iter(columns.values())))
    empty = {name: [None] * count for name in MODELS.names}
    names = [f"custom/{number}" for number in range(count)]
    known = {"model_id": names, "source": ["custom"] * count, "stored_filters": [9] * count, "conv_layers": [1] * count}
    return pd.DataFrame({**empty, **known, **columns})


def layers_of(models):
    return pd.DataFrame({"model_id": models["model_id"], "kernel": "3x3", "filters": 9, "stored": True})


def card_of(models, manifest=None, bases=(), figure=None):
    return readme(REPO, manifest or manifest_of(), models, layers_of(models), bases, figure=figure)


@pytest.fixture
def frames(sample):
    """Models, layers and bases of the sample database, as a release gets them."""
    models = sample.sql("FROM models ORDER BY model_id").to_arrow_table().to_pandas()
    layers = sample.sql("SELECT model_id, kernel, filters, stored FROM layers").df()
    return models, layers, sample.sql("FROM bases").to_arrow_table().to_pylist()


@pytest.fixture
def release(release_path, tmp_path):
    """A copy of a release: `datasets` looks for what else is in the folder."""
    shutil.copytree(release_path, tmp_path / "release")
    return tmp_path / "release"


# ----------------------------------------------------------------------------------------------------------- metadata


@pytest.mark.parametrize("name", TABLES)
def test_features_are_those_of_datasets(name):
    datasets = pytest.importorskip("datasets")
    schema = release_schema(name)
    found = features(schema)
    expected = datasets.Features.from_arrow_schema(schema)
    assert found == expected._to_yaml_list()
    assert datasets.Features._from_yaml_list(yaml.safe_load(yaml.safe_dump(found))) == expected


def test_datasets_loads_every_table_with_its_types(release, tmp_path, caplog, monkeypatch):
    pytest.importorskip("datasets")
    from datasets import Features, get_dataset_config_names, get_dataset_default_config_name, load_dataset

    manifest = Manifest.from_json((release / "cnnfilterdb.json").read_text(), "manifest")
    metadata = yaml.safe_load((release / "README.md").read_text(encoding="utf-8").split("\n---\n")[0])
    listed = {info["config_name"]: info["dataset_size"] for info in metadata["dataset_info"] if "splits" in info}
    assert list(listed) == [name for name in manifest.tables() if name.startswith("filters_")]
    monkeypatch.setattr(logging.getLogger("datasets"), "propagate", True)
    assert get_dataset_config_names(str(release)) == manifest.tables()
    assert get_dataset_default_config_name(str(release)) == "models"
    for name in manifest.tables():
        # It compares the number of rows with that of the card, where there is one.
        loaded = load_dataset(str(release), name, split="train", cache_dir=str(tmp_path / "cache"))
        streamed = load_dataset(str(release), name, split="train", streaming=True)
        expected = Features.from_arrow_schema(release_schema(name))
        assert loaded.features == streamed.features == expected
        assert loaded.num_rows == sum(shard.rows for shard in manifest.of(name))
        if name in listed:
            # Each batch has one offset more than it has rows.
            assert 0 <= loaded.info.splits["train"].num_bytes - listed[name] < 100
        assert loaded.with_format("arrow")[:].equals(pq.read_table(release / name).cast(expected.arrow_schema))
    assert caplog.messages == []


def test_the_metadata_survive_the_library_of_the_hub():
    from huggingface_hub import DatasetCard

    manifest = manifest_of()
    licences = ["MIT", "CC-BY-SA-4.0", "My: 'own' | #licence\n\"1\" é", None, "AGPL-3.0-only AND CC-BY-NC-SA-3.0"]
    written = card_of(models_of(license=licences, domain=["a: b", "- c", "'", '"', None]), manifest)
    _, block, _ = written.split("---\n", 2)
    metadata = yaml.safe_load(block)
    assert metadata["license"] == ["agpl-3.0", "cc-by-nc-sa-3.0", "cc-by-sa-4.0", "mit", "other", "unknown"]
    assert re.fullmatch("[a-z0-9.-]+", metadata["license_name"])
    assert metadata["license_link"] == f"https://huggingface.co/datasets/{REPO}/blob/v1.2.0/MODELS.md"
    assert metadata["size_categories"] == ["1K<n<10K"]
    assert [config["config_name"] for config in metadata["configs"]] == manifest.tables()
    assert [config["config_name"] for config in metadata["configs"] if config.get("default")] == ["models"]
    for config, info in zip(metadata["configs"], metadata["dataset_info"], strict=True):
        name = config["config_name"]
        assert config["data_files"] == [{"split": "train", "path": f"{name}/*.parquet"}]
        assert info["config_name"] == name
        assert info["features"] == features(release_schema(name))
        if name.startswith("filters_"):
            assert info["splits"][0]["num_examples"] == ROWS[name]
        assert info["download_size"] == sum(shard.bytes for shard in manifest.of(name))
    card = DatasetCard(written)
    assert card.data.to_dict() == metadata
    assert DatasetCard(str(card)).data.to_dict() == metadata
    assert DatasetCard(str(card)).text.strip() == card.text.strip()


def test_wide_tables_leave_their_types_to_the_files():
    rows = {"models": 1, "filters_11x11": 4, "filters_32x32": 4}
    metadata = yaml.safe_load(card_of(models_of(license=["MIT"]), manifest_of(rows)).split("---\n")[1])
    assert ["features" in info for info in metadata["dataset_info"]] == [True, True, False]


@pytest.mark.parametrize(
    ("rows", "name"),
    [(0, "n<1K"), (999, "n<1K"), (1000, "1K<n<10K"), (99_999, "10K<n<100K"), (100_000, "100K<n<1M"),
     (10**6, "1M<n<10M"), (10**9 - 1, "100M<n<1B"),
     (10**9, "1B<n<10B"), (10**12 - 1, "100B<n<1T"), (10**12, "n>1T"), (10**15, "n>1T")],
)  # fmt: skip
def test_size_categories(rows, name):
    assert size_category(rows) == name


# ------------------------------------------------------------------------------------------------------------- tables


def test_the_numbers_are_those_of_the_frames(frames):
    models, layers, bases = frames
    page = Page(readme(REPO, manifest_of(), models, layers, bases, figure="shift.png"))
    stored = layers[layers["stored"]].merge(models[["model_id", "domain", "task", "source", "license"]])
    for column, heading in (("domain", "image domain"), ("task", "task"), ("source", "source")):
        found = page.table(heading, "models", "layers", "filters")
        groups = models.groupby(column)["model_id"]
        assert {name: int(cells[0]) for name, cells in found.items()} == groups.size().to_dict()
        every = layers.merge(models[["model_id", column]]).groupby(column).size()
        assert {name: int(cells[1]) for name, cells in found.items()} == every.to_dict()
        filters = {name: int(cells[2].replace(",", "")) for name, cells in found.items()}
        assert filters == stored.groupby(column)["filters"].sum().to_dict()
        assert list(filters.values()) == sorted(filters.values(), reverse=True)
        assert sum(filters.values()) == models["stored_filters"].sum()
    kernels = page.table("kernel size", "models", "layers", "kernels", "table")
    assert list(kernels) == ["1x1", "3x3", "5x5", "7x7"]
    counts = {name: int(cells[2].replace(",", "")) for name, cells in kernels.items()}
    assert counts == layers.groupby("kernel")["filters"].sum().to_dict()
    # What has no table in the manifest is not stored.
    assert [name for name, cells in kernels.items() if cells[3] == "counted, not stored"] == ["1x1", "7x7"]
    assert kernels["3x3"][3] == "filters_3x3"
    assert page.table("licence", "models", "filters", "requires") == {
        "MIT": ["5", f"{models['stored_filters'].sum():,}", "attribution"]
    }
    tables = page.table("table", "one row is", "rows", "files", "size")
    assert {name: int(cells[1].replace(",", "")) for name, cells in tables.items()} == ROWS
    assert tables["filters_3x3"][2:] == ["2", "2.0 kB"]
    shown = page.table(
        "basis", "kernel size", "models", "filters", "variant", "explained variance ratio", "cvpr2022 bins"
    )
    for basis in bases:
        cells = shown[basis["basis_id"]]
        assert cells[:3] == [basis["kernel"], str(len(basis["models"])), f"{basis['filters']:,}"]
        ratios = [float(ratio) for ratio in cells[4].removesuffix(", ...").split(", ")]
        np.testing.assert_allclose(ratios, basis["explained_variance_ratio"][:9], atol=5e-4)
        assert cells[5] == f"{basis['bins']} from {basis['low']:.3f} to {basis['high']:.3f}"


def test_every_column_is_described(frames):
    models, layers, bases = frames
    page = Page(readme(REPO, manifest_of(), models, layers, bases, figure=None))
    found = [{row[0]: row[2] for row in rows[1:]} for rows in page.tables if rows[0] == ["column", "type", "meaning"]]
    schemas = [release_schema(name) for name in TABLES if "_5x5" not in name and "_1x7" not in name]
    assert len(found) == len(schemas)
    for columns, schema in zip(found, schemas, strict=True):
        listed = {name: meaning for name, meaning in describe(schema).items() if not re.fullmatch(r"w\d+", name)}
        assert {name: meaning for name, meaning in columns.items() if not name.startswith("w0")} == listed


def test_groups_that_are_many_are_summed_up():
    models = models_of(domain=[*(f"domain {number:03}" for number in range(99)), None], license=["MIT"] * 100)
    found = Page(card_of(models)).table("image domain", "models", "layers", "filters")
    assert len(found) == 40
    assert found["61 others"] == ["61", "61", "549"]
    assert sum(int(cells[0]) for cells in found.values()) == 100


def test_unknown_groups_come_last():
    found = Page(card_of(models_of(domain=[None, None, "faces", float("nan"), " "]))).table(
        "image domain", "models", "layers", "filters"
    )
    assert list(found.items()) == [("faces", ["1", "1", "9"]), ("unknown", ["4", "4", "36"])]


def test_figure_and_untrained_are_stated_where_they_are():
    plain = models_of(license=["MIT"], untrained=[False])
    assert "![" not in card_of(plain)
    assert "](shift.png)" in card_of(plain, figure="shift.png")
    assert "random initialisation" not in card_of(plain).split("## Provenance")[1]
    marked = models_of(license=["MIT"] * 3, untrained=[True, None, True])
    assert "random initialisation (`untrained`): 2 models." in card_of(marked)


def test_a_basis_states_that_it_knows_models_that_are_not_there(frames):
    models, layers, bases = frames
    whole = readme(REPO, manifest_of(), models, layers, bases, figure=None)
    assert "that this release does not hold" not in whole
    part = readme(REPO, manifest_of(), models[1:], layers, bases, figure=None)
    assert "The bases were also fitted on 1 model that this release does not contain." in part
    assert "This release has no basis." in readme(REPO, manifest_of(), models, layers, [], figure=None)


# ----------------------------------------------------------------------------------------------------------- licences


def test_share_alike_is_carried_to_the_card():
    models = models_of(license=["CC-BY-SA-4.0", "MIT", "CC-BY-SA-4.0"], source=["released-v1.0.0", "pypi", "custom"])
    for page in (card_of(models), models_page(REPO, manifest_of(), models)):
        assert "**Share-alike.** 2 models under [CC-BY-SA-4.0](" in page
        assert "- **share-alike**: redistribute what is made from it under the same licence only" in page
        assert "Non-commercial" not in page
        assert "Exceptions" not in page
    assert yaml.safe_load(card_of(models).split("---\n")[1])["license"] == ["cc-by-sa-4.0", "mit"]
    assert "Share-alike" not in card_of(models[1:2])


def test_conditions_and_exceptions_are_reported():
    both = "AGPL-3.0-only AND CC-BY-NC-SA-3.0"
    models = models_of(license=["CC-BY-NC-4.0", both, None, "LicenseRef-Gemma", "CC0-1.0"])
    written = card_of(models)
    assert "**Non-commercial.** 2 models under [CC-BY-NC-4.0](" in written
    assert "**Exceptions.**" in written
    page = Page(written)
    assert page.table("licence", "models", "filters", "requires") == {
        "CC-BY-NC-4.0": ["1", "9", "attribution, noncommercial"],
        both: ["1", "9", "attribution, share-alike, source, noncommercial"],
        "not stated": ["1", "9", "a named exception"],
        "LicenseRef-Gemma": ["1", "9", "attribution, use-restrictions, agreement, a named exception"],
        "CC0-1.0": ["1", "9", "nothing"],
    }
    for name in ("AGPL-3.0-only", "CC-BY-NC-SA-3.0", "CC0-1.0"):
        assert f"https://spdx.org/licenses/{name}.html" in page.links


def test_what_was_left_out_is_counted_and_listed():
    left_out = [
        LeftOut("timm/a", "LicenseRef-Gemma", "LicenseRef-Gemma does not permit it"),
        LeftOut("files/b|`c`", None, "no licence is stated"),
        LeftOut("files/d", "LicenseRef-Unknown", "no licence is stated"),
        LeftOut("files/e", "my | own", "the catalog does not know the licence 'my | own'"),
    ]
    models, manifest = models_of(license=["MIT"]), manifest_of(left_out=left_out)
    page = Page(card_of(models, manifest))
    assert page.table("licence", "models", "reason") == {
        "not stated": ["2", "no licence is stated"],
        "LicenseRef-Gemma": ["1", "LicenseRef-Gemma does not permit it"],
        "my | own": ["1", "the catalog does not know the licence 'my | own'"],
    }
    listed = Page(models_page(REPO, manifest, models)).table("model", "licence", "reason")
    licences = ["LicenseRef-Gemma", "not stated", "not stated", "my | own"]
    assert listed == {
        entry.model_id: [licence, entry.reason] for entry, licence in zip(left_out, licences, strict=True)
    }
    assert "No model of the database was left out." in card_of(models)


def test_the_page_of_models():
    models = models_of(
        license=["MIT", "CC-BY-SA-4.0", "LicenseRef-House"],
        url=["pkg:pypi/my-net@1.0?checksum=sha256:ab&file_name=a.whl#a/b.pt", "https://example.org/w(1).pt?a&lt;=2",
             "pkg:huggingface/timm/resnet18.a1_in1k"],
        paper=["arXiv:1512.03385", "doi:10.1000/a_b", None],
        training_dataset=["A | B", None, "C; D"],
    )  # fmt: skip
    page = Page(models_page(REPO, manifest_of(), models))
    rows = page.table("model", "licence", "requires", "source", "paper", "trained on")
    assert rows == {
        "custom/0": ["MIT", "attribution", "pkg:pypi/my-net@1.0", "arXiv:1512.03385", "A | B"],
        "custom/1": [
            "CC-BY-SA-4.0",
            "attribution, share-alike",
            "example.org/w(1).pt?a&lt;=2",
            "doi:10.1000/a_b",
            "",
        ],
        "custom/2": ["LicenseRef-House", "a named exception", "huggingface.co/timm/resnet18.a1_in1k", "", "C; D"],
    }
    assert {"https://example.org/w(1).pt?a&lt;=2", "https://arxiv.org/abs/1512.03385", "https://doi.org/10.1000/a_b",
            "https://huggingface.co/timm/resnet18.a1_in1k"} <= set(page.links)  # fmt: skip


# ----------------------------------------------------------------------------------------------------------- escaping

anything = st.one_of(st.text(), st.text("|\\`*_<>[]()&;#$~!:\n -a1"), st.from_regex(r"&#?\w+;|https?://\W+|\$\$.*"))
maybe = st.none() | anything


def shown(markdown):
    """What a browser shows of the Markdown of one cell."""
    page = Page(table(["a", "b"], [[markdown, "end"]]))
    assert [len(row) for row in page.tables[0]] == [2, 2]
    assert page.tables[0][1][1] == "end"
    assert page.tags <= {"table", "thead", "tbody", "tr", "th", "td", "code", "a"}
    assert all(re.match("https?://", address) for address in page.links)
    return page.tables[0][1][0]


@given(anything)
def test_any_text_is_shown_as_it_is(value):
    assert shown(text(value)) == line(value)
    assert shown(code(value)) == line(value)
    assert "\n" not in line(value)


@given(anything, maybe)
def test_links_lead_where_they_say(address, name):
    found = shown(link(address, name))
    if re.match(r"https?://[^/\s]", line(address)):
        assert len(found) <= 50
    else:
        assert found == line(name or address)


@settings(max_examples=30)
@given(st.lists(st.tuples(anything, maybe, anything, anything, maybe), min_size=1, max_size=3))
def test_pages_of_any_models(rows):
    """Whatever models say of themselves, every row has its cells, the metadata are read back, and no markup gets in."""
    names, licences, addresses, papers, sets = (list(column) for column in zip(*rows, strict=True))
    models = models_of(
        model_id=[f"{number}/{name}" for number, name in enumerate(names)], license=licences, url=addresses,
        paper=papers, training_dataset=sets, domain=sets, task=names, source=addresses,
    )  # fmt: skip
    left_out = [LeftOut(name, licence, "because " + name) for name, licence in zip(names, licences, strict=True)]
    manifest = manifest_of(left_out=left_out)
    page = Page(models_page(REPO, manifest, models))
    assert [(len(rows), {len(row) for row in rows}) for rows in page.tables] == [
        (len(models) + 1, {6}),
        (len(models) + 1, {3}),
    ]
    assert [row[0] for row in page.tables[0][1:]] == [line(name) for name in models["model_id"]]
    assert [row[5] for row in page.tables[0][1:]] == [line(name) for name in sets]
    card = card_of(models, manifest)
    rendered = Page(card)
    assert all(re.match(r"https?://|MODELS\.md", address) for address in page.links + rendered.links)
    assert not {"script", "img", "iframe", "b", "style"} & (page.tags | rendered.tags)
    assert all(len(row) == len(rows[0]) for rows in rendered.tables for row in rows)
    assert set(rendered.table("image domain", "models", "layers", "filters")) == {
        line(name) or "unknown" for name in sets
    }
    assert yaml.safe_load(card.split("\n---\n")[0])["configs"][0]["config_name"] == "models"
    assert yaml.safe_load(citation(REPO, manifest, models))["title"] == "Kernels of trained CNNs: my-kernels"


# ----------------------------------------------------------------------------------------------------- use, citation


def test_its_python_runs(release):
    """The blocks of the card, with the folder of the release in the place of its address."""
    pytest.importorskip("datasets")
    card = (release / "README.md").read_text(encoding="utf-8")
    blocks = re.findall(r"```python\n(.*?)```", card, re.S)
    assert [re.findall(r"^(?:import|from) (\w+)", block, re.M) for block in blocks] == [
        ["cnnfilterdb"], ["datasets"], ["pandas"], ["polars"]]  # fmt: skip
    found = {}
    for block in blocks:
        local = block.replace("hf://datasets/owner/sample@v1.0.0", str(release)).replace(
            '"owner/sample"', repr(str(release))
        )
        assert local != block
        exec(local, found)
    assert len(found["models"]) == len(found["db"].models()) == 5
    assert next(iter(found["rows"].collect()["model_id"])).startswith("custom/")
    assert "duckdb -init init.sql" in card
    assert "https://huggingface.co/datasets/owner/sample/resolve/v1.0.0/init.sql" in card


def check_cff(cff):
    """The schema of the Citation File Format 1.2.0, as far as these files use it."""
    known = {"cff-version": str, "message": str, "type": str, "title": str, "abstract": str, "authors": list,
             "version": str, "url": str, "license-url": str, "keywords": list, "references": list}  # fmt: skip
    of_reference = {"type": str, "title": str, "authors": list, "year": int, "collection-title": str, "start": int,
                    "end": int, "doi": str, "url": str, "publisher": dict}  # fmt: skip
    assert {"cff-version", "message", "title", "authors"} <= cff.keys()
    assert cff["cff-version"] == "1.2.0"
    assert cff["type"] in ("software", "dataset")
    assert len(set(cff["keywords"])) == len(cff["keywords"])
    for entry, types in [(cff, known), *((reference, of_reference) for reference in cff["references"])]:
        for key, value in entry.items():
            assert type(value) is types[key], key
            assert value, key
        for key in {"url", "license-url"} & entry.keys():
            assert entry[key].startswith("https://")
        assert entry.get("doi", "10.1/x").startswith("10.")
        assert entry["type"] in ("dataset", "data", "conference-paper")
        for author in entry["authors"]:
            assert set(author) in ({"name"}, {"given-names", "family-names"})
    for reference in cff["references"]:
        assert {"authors", "title", "type"} <= reference.keys()


def test_citation(frames):
    models = frames[0]
    written = citation(REPO, manifest_of(version="1.10.0"), models)
    assert "&id" not in written
    cff = yaml.safe_load(written)
    check_cff(cff)
    assert cff["version"] == "1.10.0"
    assert [reference["doi"] for reference in cff["references"]] == [
        "10.48550/arXiv.2203.15331",
        "10.48550/arXiv.2210.13799",
    ]


@pytest.mark.parametrize(
    ("source", "doi"),
    [("released-v1.0.0", "10.5281/zenodo.6371680"), ("released-robustness", "10.48550/arXiv.2204.02481")],
)
def test_released_data_is_cited(source, doi):
    models = models_of(license=["CC-BY-SA-4.0"], source=[source])
    cff = yaml.safe_load(citation(REPO, manifest_of(), models))
    check_cff(cff)
    assert [reference["doi"] for reference in cff["references"]][2:] == [doi]
    bibtex = re.search(r"```bibtex\n(.*?)```", card_of(models), re.S)[1]
    assert doi in bibtex
    keys = re.findall(r"^@\w+\{(\w+),$", bibtex, re.M)
    assert len(keys) == len(set(keys)) == 4
    assert bibtex.count("{") == bibtex.count("}")
