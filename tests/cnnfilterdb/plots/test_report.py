import base64
import dataclasses
import datetime
import hashlib
import re
from html.parser import HTMLParser

import numpy as np
import pandas as pd
import pytest

from cnnfilterdb.core.errors import SelectionError
from cnnfilterdb.plots import Coefficients, GroupingData, Method, ReportData, report

HOSTILE = "<script>alert('x')</script><img src=http://evil.example/x onerror=alert(1)>\"&\u0000$title${tiles}"
VOID = {"meta", "img", "br", "link", "input", "hr", "wbr"}


class Page(HTMLParser):
    """Checks that tags are balanced, and collects what the page holds."""

    def __init__(self, text):
        super().__init__(convert_charrefs=True)
        self.open, self.tags, self.text, self.ids, self.rows = [], [], [], [], []
        self.feed(text)
        self.close()
        assert not self.open, f"left open: {self.open}"

    def handle_starttag(self, tag, attributes):
        names = [name for name, _ in attributes]
        assert len(names) == len(set(names)), f"an attribute twice in {tag}"
        self.tags.append((tag, dict(attributes)))
        if "id" in names:
            self.ids.append(dict(attributes)["id"])
        if tag == "tr":
            self.rows.append([])
        if tag in ("td", "th") and self.rows:
            self.rows[-1].append("")
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open, f"</{tag}> closes nothing"
        assert self.open.pop() == tag, f"</{tag}> closes another tag"

    def handle_data(self, data):
        self.text.append(data)
        if {"td", "th"} & set(self.open) and self.rows:
            self.rows[-1][-1] += data

    def attributes(self, name):
        return [attributes[name] for _, attributes in self.tags if name in attributes]


@pytest.fixture
def data(histograms, make_basis):
    rng = np.random.default_rng(0)
    domains = ["faces", "natural", "natural", "thermal", None]
    models = pd.DataFrame(
        {
            "model_id": [f"custom/m{i}" for i in range(5)],
            "name": ["first", HOSTILE, "third", "fourth", "fifth"],
            "architecture": ["ResNet-18", None, HOSTILE, "U-Net", "U-Net"],
            "domain": domains,
            "task": "Classification",
            "training_dataset": [None, "ImageNet", None, None, None],
            "conv_layers": pd.array([10, 20, 30, 40, None], dtype="Int64"),
            "stored_filters": [1000, 2000, 3000, 4000, 5_000_000],
            "sparsity": [0.0, 0.125, np.nan, 0.001, 1.0],
            "license": ["MIT", None, "Apache-2.0", HOSTILE, "MIT"],
            "untrained": pd.array([False, None, True, False, False], dtype="boolean"),
        }
    )
    groups = ["faces", "natural", "thermal"]
    shift = pd.DataFrame([[0, 0.1, 0.9], [0.1, 0, 0.5], [0.9, 0.5, 0]], index=groups, columns=groups)
    layers = pd.DataFrame(
        {
            "domain": rng.choice(groups, 60),
            "sparsity": rng.beta(0.3, 4, 60),
            "normalised_entropy": rng.uniform(0.3, 1, 60),
            "orthogonality": rng.uniform(0.5, 1, 60),
        }
    )
    domain = GroupingData(
        by="domain",
        shift=shift,
        coefficients=Coefficients(counts=histograms(3), low=-4, high=4, labels=groups),
        bases={group: make_basis(seed=i) for i, group in enumerate(groups)},
        layers=layers,
        method=Method(
            recipe="cvpr2022",
            basis_id="3x3-0123abcd",
            basis_models=4,
            basis_filters=9000,
            bins=70,
            low=-4.0,
            high=4.0,
            weights="the explained variance ratio",
            filters=10000,
            outside=45,
            versions={"cnnfilterdb": "0.1.0", "numpy": "2.0"},
        ),
    )
    return ReportData(
        title="Kernels " + HOSTILE,
        models=models,
        groupings=[domain, GroupingData(by="task")],
        command="cnnfilterdb report --title '</code><script>'",
        created_at=datetime.datetime(2030, 1, 2, 3, 4, tzinfo=datetime.UTC),
    )


def changed(data, **parts):
    """The data with other parts of its first grouping."""
    first, *others = data.groupings
    return dataclasses.replace(data, groupings=[dataclasses.replace(first, **parts), *others])


@pytest.fixture
def page(data):
    return Page(report(data))


def test_page_is_well_formed(page):
    assert page.tags[0][0] == "html"
    assert len(page.ids) == len(set(page.ids))
    targets = [link[1:] for link in page.attributes("href") if link.startswith("#")]
    assert targets == ["groups", "models", "cite"]
    assert page.ids == [*targets, "tip"]
    headings = [
        "How far the groups are apart",
        "Distributions of coefficients",
        "Eigenfilters",
        "Quality of the layers",
    ]
    assert [text for text in page.text if text in headings] == headings


def test_hostile_names_stay_text(page):
    tags = {tag for tag, _ in page.tags}
    assert not tags & {"iframe", "object", "embed", "link", "base", "form"}
    assert [tag for tag, _ in page.tags].count("script") == 1
    assert not [name for _, attributes in page.tags for name in attributes if name.startswith("on")]
    readable = HOSTILE.replace("\u0000", " ")
    assert any(row[0] == readable for row in page.rows)
    assert "".join(page.text).count(readable) >= 4
    assert "\u0000" not in "".join(page.text)


def test_nothing_is_loaded_from_elsewhere(data):
    text = report(data)
    page = Page(text)
    assert all(source.startswith("data:image/png;base64,") for source in page.attributes("src"))
    outward = {link for link in page.attributes("href") if not link.startswith("#")}
    licences = {f"https://spdx.org/licenses/{name}.html" for name in ("MIT", "Apache-2.0")}
    assert outward == {"https://arxiv.org/abs/2203.15331", "https://arxiv.org/abs/2210.13799", *licences}
    style = re.search(r"<style>(.*?)</style>", text, re.S).group(1)
    assert "url(" not in style
    assert "@import" not in style


def test_only_the_script_and_the_styles_of_the_package_may_run(data):
    text = report(data)
    policy = re.search(r'http-equiv="Content-Security-Policy" content="([^"]*)"', text).group(1)
    for tag in ("style", "script"):
        (content,) = re.findall(f"<{tag}>(.*?)</{tag}>", text, re.S)
        digest = base64.b64encode(hashlib.sha256(content.encode()).digest()).decode()
        assert f"{tag}-src 'sha256-{digest}'" in policy.replace("&#39;", "'")
    assert policy.startswith("default-src &#39;none&#39;") or policy.startswith("default-src 'none'")


@pytest.fixture
def opened(browser, data, tmp_path):
    """Opens the report in Chromium; nothing may go wrong in it, and nothing be asked of a server."""
    path, contexts, wrong = tmp_path / "report.html", [], []
    path.write_text(report(data), encoding="utf-8")

    def show(place="", **options):
        contexts.append(browser.new_context(**options))
        contexts[-1].set_default_timeout(300_000)  # however busy the machine is
        page = contexts[-1].new_page()
        page.on("console", lambda message: wrong.append(message.text))
        page.on("pageerror", lambda error: wrong.append(str(error)))
        page.on("request", lambda one: one.url.startswith(("file:", "data:")) or wrong.append(one.url))
        page.goto(f"file://{path}{place}")
        return page

    yield show
    for context in contexts:
        context.close()
    assert wrong == []


@pytest.mark.parametrize(("width", "scheme"), [(1280, "light"), (390, "dark")])
def test_the_page_has_no_barriers_and_fits_the_window(opened, barriers, width, scheme):
    page = opened(viewport={"width": width, "height": 900}, color_scheme=scheme)
    for details in page.locator("details").all():
        details.evaluate("element => { element.open = true }")
    assert barriers(page) == []
    assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")


def test_only_what_is_cut_off_says_that_it_scrolls(opened):
    page = opened(viewport={"width": 390, "height": 900})
    page.wait_for_function("document.querySelector('.scroll.whole')")
    found = page.evaluate(
        """[...document.querySelectorAll('.scroll')].filter(part => part.clientWidth).map(part => [
            part.scrollWidth > part.clientWidth, getComputedStyle(part, '::after').content.includes('scroll')])"""
    )
    assert all(cut == stated for cut, stated in found)
    assert {cut for cut, _ in found} == {True, False}


def test_long_names_continue_behind_their_separators(data):
    models = data.models.assign(name=["pypi/mc_cnn", "b", "c", "d", "e"], sparsity=0.125)
    text = report(dataclasses.replace(data, models=models))
    assert '<th scope="row">pypi/<wbr>mc_<wbr>cnn' in text
    assert any(row[0] == "pypi/mc_cnn" for row in Page(text).rows)


def test_a_browser_runs_the_script(opened):
    page = opened("#by=task")
    shown = {one.get_attribute("data-name"): one.is_visible() for one in page.locator(".grouping").all()}
    assert shown == {"domain": False, "task": True}
    page.get_by_role("button", name="domain", exact=True).click()
    assert page.url.endswith("#by=domain")
    names = page.locator("#models tbody th")
    heading = page.locator("#models thead button", has_text="Filters")
    heading.click()
    assert names.first.inner_text().startswith("fifth")  # the largest first
    heading.click()
    assert names.first.inner_text().startswith("first")
    # The texts of the cells are shown by the script, not twice.
    cells = page.locator("svg.map rect[data-tip]")
    assert cells.count() == 9
    assert page.locator("svg.map rect title").count() == 0
    cells.nth(1).hover()
    assert "KL shift D (nats)" in page.locator("#tip:not([hidden])").inner_text()


def test_pictures_are_png_with_a_description(page):
    pictures = [attributes for tag, attributes in page.tags if tag == "img"]
    assert len(pictures) == 3
    for picture in pictures:
        content = base64.b64decode(picture["src"].partition(",")[2], validate=True)
        assert content.startswith(b"\x89PNG")
        assert len(picture["alt"]) > 20
        assert int(picture["width"]) > 100


def test_same_data_same_page(data):
    assert report(data) == report(data)


def test_numbers_of_the_database(page):
    text = " ".join(" ".join(page.text).split())
    for number, noun in (("5", "models"), ("100", "convolution layers"), ("5,010,000", "filters"), ("3", "domains")):
        assert f"{number} {noun}" in text


def test_groups_are_counted_from_the_models(page):
    assert ["natural", "2", "50", "5,000", "Apache-2.0, not recorded"] in page.rows
    assert ["faces", "1", "10", "1,000", "MIT"] in page.rows
    assert any(row[:4] == ["unknown", "1", "0", "5,000,000"] for row in page.rows)


def test_given_groups_win(data):
    given = pd.DataFrame({"models": [7], "filters": [12345]}, index=["faces · Detection"])
    rows = Page(report(changed(data, groups=given, by="domain || task", layers=None))).rows
    assert ["faces · Detection", "7", "12,345"] in rows


def test_models_table_states_what_is_known(page):
    assert [
        "Name",
        "Architecture",
        "Domain",
        "Task",
        "Training data",
        "Layers",
        "Filters",
        "Sparsity",
        "Licence",
    ] in page.rows
    assert ["first", "ResNet-18", "faces", "Classification", "–", "10", "1,000", "0.00 %", "MIT"] in page.rows
    assert [row[0] for row in page.rows if "untrained" in row[0]] == ["third untrained"]
    assert ["fifth", "U-Net", "–", "Classification", "–", "–", "5,000,000", "100.00 %", "MIT"] in page.rows


def test_pairs_ascend(page):
    pairs = [row for row in page.rows if len(row) == 2 and " – " in row[0]]
    assert pairs == [["faces – natural", "0.100"], ["natural – thermal", "0.500"], ["faces – thermal", "0.900"]]


def test_closest_and_most_distant_pairs_of_many_groups(data):
    rng = np.random.default_rng(0)
    values = rng.uniform(0.1, 1, (9, 9))
    values = values + values.T
    np.fill_diagonal(values, 0)
    names = [f"g{i}" for i in range(9)]
    many = changed(data, shift=pd.DataFrame(values, index=names, columns=names))
    found = [float(row[1]) for row in Page(report(many)).rows if len(row) == 2 and " – " in row[0]]
    upper = np.sort(values[np.triu_indices(9, 1)])
    assert found == pytest.approx([*upper[:8], *upper[::-1][:8]], abs=6e-4)


def test_method_states_basis_range_and_what_fell_outside(page):
    text = " ".join(" ".join(page.text).split())
    for part in ("cvpr2022", "3x3-0123abcd", "4 models, 9,000 filters", "45 of 90,000 coefficient values (0.05 %)"):
        assert part in text
    assert "70 bins from −4 to 4" in text
    assert "cnnfilterdb 0.1.0, numpy 2.0" in text
    assert "2030-01-02 03:04 UTC" in text
    assert "For 1 model no licence is recorded" in text


def test_a_basis_that_is_not_stored_is_reported_as_such(data):
    method = dataclasses.replace(data.groupings[0].method, basis_id="", basis_models=0)
    text = " ".join(" ".join(Page(report(changed(data, method=method))).text).split())
    assert "Basis fitted for this report Fitted on 9,000 filters" in text


def test_sections_without_data_are_left_out(data):
    page = Page(report(ReportData(title="Bare", models=data.models[["model_id", "stored_filters"]])))
    assert page.ids == ["models", "cite", "tip"]
    assert not page.attributes("src")
    assert ["custom/m0", "1,000"] in page.rows
    one = changed(data, shift=pd.DataFrame([[0.0]], index=["a"], columns=["a"]), bases={}, coefficients=None)
    text = Page(report(one)).text
    assert "Quality of the layers" in text
    assert not {"How far the groups are apart", "Eigenfilters"} & set(text)


def test_pictures_of_many_groups_are_cut_and_say_so(data, histograms):
    names = [f"group {i}" for i in range(45)]
    many = changed(
        data,
        coefficients=Coefficients(counts=histograms(45, 50), low=-4, high=4, labels=names),
        shift=pd.DataFrame(1.0 - np.eye(45), index=names, columns=names),
        bases={},
    )
    text = report(many)
    assert "The 40 largest groups are drawn, 5 are not." in text
    assert "40 groups are drawn, 5 are not." in text


def test_small_groups_are_set_apart_and_do_not_set_the_colours(data):
    names = [f"g{i}" for i in range(6)]
    values = np.full((6, 6), 0.1)
    values[5] = values[:, 5] = 50.0
    np.fill_diagonal(values, 0)
    sizes = pd.DataFrame({"models": 1, "filters": [10_000] * 5 + [2_080]}, index=names)
    text = report(changed(data, shift=pd.DataFrame(values, index=names, columns=names), compared=sizes))
    assert "1 group of fewer than 2,100 filters" in text
    first_row = {
        title.split("\n")[1].partition(" (")[0]: fill
        for fill, title in re.findall(r'fill="(#\w+)"><title>(.*?)</title>', text, re.S)
        if title.startswith("g0")
    }
    assert first_row["g1"] != first_row["g0"]  # 0.1 is the brightest colour, not hidden by the 50 of the small group
    assert first_row["g1"] == first_row["g5"]


def test_a_report_needs_models(data):
    with pytest.raises(SelectionError, match="ingest or add one first"):
        report(dataclasses.replace(data, models=data.models.iloc[:0]))
    with pytest.raises(SelectionError, match="name or model_id"):
        report(ReportData(title="t", models=data.models[["stored_filters"]]))
