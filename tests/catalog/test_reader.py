from __future__ import annotations

import re

import pytest

from cnnfilterdb.catalog.entries import FORMATS
from cnnfilterdb.catalog.reader import catalog_problems, read_catalog
from cnnfilterdb.core.errors import CatalogError


def test_a_valid_catalog(folder):
    assert catalog_problems(folder) == []
    catalog = read_catalog(folder)
    assert list(catalog.domains) == ["natural", "medical ct", "games"]
    assert catalog.domains["natural"].paper_models == 557
    assert catalog.domains["games"].paper_models is None
    assert catalog.tasks["Tracking"].origin == "extended"
    mit, gpl, house, lost = catalog.licenses.values()
    assert (mit.permissive, mit.redistribution, mit.conditions, mit.hub) == (True, "yes", ("attribution",), "mit")
    assert mit.url == "https://spdx.org/licenses/MIT.html"
    assert (gpl.permissive, gpl.conditions) == (False, ("attribution", "share-alike", "source"))
    assert (house.redistribution, house.hub, house.url) == ("no", None, "https://example.org/house")
    assert (lost.redistribution, lost.conditions, lost.url) == ("unknown", (), None)
    assert catalog.datasets["Boards"].license == "MIT"
    assert catalog.datasets["Tiles"].url is None
    one, two, three = catalog.models["here"]
    assert one.model_id == "here/chess/one"
    assert one.origin == {"archive": "one.whl", "archive_bytes": "10", "archive_sha256": "0a" * 32}
    assert one.facts.training_dataset == "Boards; Tiles"
    assert one.facts.metrics == {"top1": 93.5, "top5": 99.0}
    assert (one.conv_layers, one.conv3x3_layers, one.conv3x3_filters) == (20, 16, 300)
    assert one.note == "checked, twice"
    # What is unknown is None.
    assert two.facts.domain is two.facts.architecture is two.facts.metrics is two.conv_layers is two.note is None
    assert [one.permissive, two.permissive, three.permissive] == [True, False, False]
    assert catalog.collections["small"].models == (("here", "lung/three"), ("here", "chess/two"))
    assert len(catalog.collections["all"].models) == 3


# file, what is replaced, by what, the message
BREAKS = {
    "unknown domain": ("here.csv", ",games,Boards", ",gamse,Boards",
        "here.csv, line 2 (chess/one): domain 'gamse' is not in domains.csv; did you mean 'games'?"),
    "unknown task": ("here.csv", "Classification", "Juggling",
        "line 2 (chess/one): task 'Juggling' is not in tasks.csv; choose one of tasks.csv or add it there"),
    "unknown data set": ("here.csv", "Boards; Tiles", "Boards; Cards",
        "line 2 (chess/one): training_dataset 'Cards' is not in datasets.csv"),
    "empty data set in a list": ("here.csv", "Boards; Tiles,Tiles", "Boards; Tiles,Tiles;",
        "pretraining_dataset 'Tiles;' is not in datasets.csv; did you mean 'Tiles'?"),
    "unknown licence": ("here.csv", "MIT AND GPL-3.0-only", "MIT AND GPLv3",
        "line 3 (chess/two): license 'GPLv3' is not in licenses.csv"),
    "no licence": ("here.csv", "MIT AND GPL-3.0-only", "", "line 3 (chess/two): license is empty; fill it in"),
    "unknown format": ("here.csv", ",onnx,", ",onxx,",
        f"line 2 (chess/one): format 'onxx' is not in {', '.join(FORMATS)}; did you mean 'onnx'?"),
    "unknown status": ("here.csv", "weakly trained", "hardly trained",
        "(lung/three): status 'hardly trained' is not in"),
    "short hash": ("here.csv", "0a" * 32, "0a" * 31,
        "archive_sha256 should be 64 hexadecimal digits in lower case, is '0a0a"),
    "upper-case hash": ("here.csv", "0a" * 32, "0A" * 32,
        "archive_sha256 should be 64 hexadecimal digits in lower case"),
    "no hash": ("here.csv", "0a" * 32, "", "line 2 (chess/one): archive_sha256 is empty; fill it in"),
    "size of nothing": ("here.csv", ",10,", ",0,", "archive_bytes should be a whole number of at least 1, is '0'"),
    "size with a unit": ("here.csv", ",10,", ",10 MB,",
        "archive_bytes should be a whole number of at least 1, is '10 MB'"),
    "count that is no number": ("here.csv", ",20,16,", ",2e1,16,",
        "conv_layers should be a whole number of at least 0"),
    "more 3x3 layers than layers": ("here.csv", ",20,16,", ",16,20,", "conv3x3_layers 20 is more than conv_layers 16"),
    "fewer filters than layers": ("here.csv", ",16,300,", ",16,3,", "conv3x3_filters 3 is less than conv3x3_layers 16"),
    "paper without a kind": ("here.csv", "arXiv:1512.03385", "1512.03385",
        "paper should be doi:10..., arXiv:1234.56789 or a URL"),
    "metric without a value": ("here.csv", "top5=99", "top5", "metrics should be name=number"),
    "metric without a name": ("here.csv", "top5=99", "=99", "metrics should be name=number"),
    "metric twice": ("here.csv", "top5=99", "top1=99", "metrics should be name=number"),
    "model twice": ("here.csv", "chess/two", "chess/one",
        "here.csv, line 3 (chess/one): the name is already in line 2; names are unique"),
    "model without a name": ("here.csv", "chess/two,", ",", "here.csv, line 3: name is empty; fill it in"),
    "space at the end": ("here.csv", ",ResNet,", ",ResNet ,",
        "line 2 (chess/one): family begins or ends with a space; remove it"),
    "cell too many": ("here.csv", '"checked, twice"', "checked, twice",
        "here.csv, line 2: 19 cells expected, 20 found; quote cells that contain a comma"),
    "missing column": ("here.csv", ",license,paper", ",paper",
        "here.csv, line 1: expected the columns name, format, status"),
    "column twice": ("here.csv", "archive_bytes,", "archive,", "twice or without a name: archive"),
    "stray quote": ("here.csv", '"checked, twice"', '"checked" twice', "here.csv, line 2: is not a CSV row"),
    "unknown column of a vocabulary": ("domains.csv", "paper_models", "papers",
        "missing: paper_models, unknown: papers"),
    "unknown origin of a term": ("domains.csv", "games,extended", "games,eccv2022",
        "line 4 (games): origin 'eccv2022' is not in"),
    "paper's term without a count": ("tasks.csv", ",555,", ",,",
        "paper_models is a count for the terms of origin cvpr2022"),
    "count of another term": ("tasks.csv", "Tracking,extended,,", "Tracking,extended,2,",
        "(Tracking): paper_models is a count"),
    "term without a description": ("domains.csv", "boards", "", "domains.csv, line 4 (games): description is empty"),
    "term twice": ("domains.csv", "games,extended,,boards", "natural,extended,,boards",
        "the name is already in line 2"),
    "licence neither permissive nor not": ("licenses.csv", "MIT,yes", "MIT,maybe",
        "permissive 'maybe' is not in yes, no"),
    "licence that may permit": ("licenses.csv", "House,no,no", "House,no,perhaps",
        "licenses.csv, line 4 (LicenseRef-House): redistribution 'perhaps' is not in yes, no, unknown"),
    "licence that says nothing": ("licenses.csv", "House,no,no", "House,no,", "redistribution is empty; fill it in"),
    "unknown condition": ("licenses.csv", "share-alike", "sharealike",
        "conditions 'sharealike' is not in attribution, share-alike, "),
    "conditions in another order": ("licenses.csv", "attribution; share-alike; source", "source; share-alike",
        "conditions should be 'share-alike; source', each once and in this order"),
    "condition twice": ("licenses.csv", "attribution; share-alike; source", "source; source",
        "conditions should be 'source', each once and in this order"),
    "condition without a name": ("licenses.csv", "; share-alike; ", "; ; ",
        "conditions should be 'attribution; source', each once"),
    "permissive with conditions": ("licenses.csv", "3.0-only,no,yes", "3.0-only,yes,yes",
        "permissive is yes, but it requires more than attribution"),
    "permissive and forbidding": ("licenses.csv", "MIT,yes,yes", "MIT,yes,no", "or forbids redistribution"),
    "permitting and forbidding": ("licenses.csv", "House,no,no", "House,no,yes",
        "redistribution is yes, but research-only forbids it"),
    "url of a licence": ("licenses.csv", "https://example.org/h", "h", "url should begin with https://, is 'house'"),
    "domain of a data set": ("datasets.csv", "Tiles,games", "Tiles,game",
        "datasets.csv, line 3 (Tiles): domain 'game' is not in domains.csv; did you mean 'games'?"),
    "licence of a data set": ("datasets.csv", "boards,MIT", "boards,BSD", "license 'BSD' is not in licenses.csv"),
    "url of a data set": ("datasets.csv", "https://example", "example",
        "url should begin with https://, is 'example.org/boards'"),
    "separator in a name": ("datasets.csv", "Tiles,games", "Tiles; more,games", "a data set cannot contain ';'"),
    "source without a file": ("sources.csv", "here,", "there,", "there.csv: cannot be read: No such file"),
    "collection of nothing": ("collections.toml", "here/chess/t*", "here/ches/t*",
        "collections.toml, [small]: no model matches 'here/ches/t*'; nearest: here/chess/*"),
    "collection without a title": ("collections.toml", 'title = "Two of them"', "",
        "collections.toml, [small]: expected a title and a list of models"),
    "collection of a text": ("collections.toml", '["here/*"]', '"here/*"',
        "collections.toml, [all]: expected a title and"),
    "not TOML": ("collections.toml", "[small]", "[small", "collections.toml: is not TOML: "),
}  # fmt: skip


@pytest.mark.parametrize("kind", BREAKS)
def test_the_schema_catches(folder, kind):
    name, old, new, message = BREAKS[kind]
    path = folder / name
    text = path.read_text(encoding="utf-8")
    assert old in text
    path.write_text(text.replace(old, new, 1), encoding="utf-8")
    found = catalog_problems(folder)
    assert any(message in problem for problem in found), found
    assert all(len(problem.splitlines()) == 1 for problem in found)
    with pytest.raises(CatalogError, match=re.escape(found[0])):
        read_catalog(folder)


def test_all_problems_are_reported_at_once(folder):
    path = folder / "here.csv"
    path.write_text(path.read_text().replace("onnx", "onxx").replace("arXiv:", "arxiv "))
    assert len(catalog_problems(folder)) == 2
    with pytest.raises(CatalogError, match="and 1 more problem of the catalog"):
        read_catalog(folder)


@pytest.mark.parametrize("name", ["domains.csv", "licenses.csv", "here.csv", "collections.toml"])
def test_a_missing_file_is_named(folder, name):
    (folder / name).unlink()
    assert catalog_problems(folder)[0].startswith(f"{name}: cannot be read: ")


def test_a_file_in_another_encoding_is_named(folder):
    (folder / "tasks.csv").write_bytes("name,origin,paper_models,description\nGröße,extended,,x\n".encode("latin-1"))
    assert catalog_problems(folder)[0].startswith("tasks.csv: is not UTF-8 ")


def test_lines_are_counted_as_an_editor_does(folder):
    path = folder / "here.csv"
    path.write_text(path.read_text().replace('"checked, twice"', '"checked,\ntwice"').replace("weakly", "weekly"))
    assert catalog_problems(folder)[0].startswith("here.csv, line 5 (lung/three): status")


def test_files_of_others_in_the_folder_do_no_harm(folder):
    (folder / "notes.csv").write_text("whatever\n")
    assert catalog_problems(folder) == []


def test_a_source_may_have_no_models_yet(folder):
    path = folder / "sources.csv"
    path.write_text(path.read_text() + "there,files of another test,\n")
    header = (folder / "here.csv").read_text().splitlines()[0]
    (folder / "there.csv").write_text(header.replace("archive", "weights") + "\n")
    assert read_catalog(folder).models["there"] == ()


@pytest.mark.parametrize(("column", "valid"), [("beside", True), ("mirror", True), ("elsewhere", False)])
def test_some_columns_of_an_origin_may_be_empty(folder, column, valid):
    header, first, *others = (folder / "here.csv").read_text().splitlines()
    rows = [f"{column},{header}", f"x,{first}", *(f",{row}" for row in others)]
    (folder / "here.csv").write_text("\n".join(rows) + "\n")
    assert [f"{column} is empty" in problem for problem in catalog_problems(folder)] == [True] * (0 if valid else 2)
