"""The page in Chromium: every view, by mouse, by keyboard and by URL, wide and narrow, light and dark."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from .conftest import MARKUP, TOKEN

pytestmark = pytest.mark.thorough

#: Milliseconds until a page that waits in vain is given up, on however busy a machine.
PATIENCE = 300_000

VIEWS = {
    "models": "models?f.domain=natural&f.domain=faces",
    "shifts": "groups?by=model_id&a=custom%2Fct-a&b=custom%2Fhostile",
    "distributions": "groups?tab=distributions",
    "quality": "groups?tab=quality",
    "sizes": "groups?tab=sizes&min_models=2",
    "map": "map?colour=task",
    "map of numbers": "map?colour=stored_filters",
    "model": "model?model=custom%2Fhostile",
    "layer": "layer?model=custom%2Fhostile&layer=0",
    "kernel": "kernel?model=custom%2Fct-a&layer=1&out=3&in=2&rotation=true",
    "sql": "sql?query=SELECT+domain%2C+count(*)+AS+models+FROM+models+GROUP+BY+ALL",
}

CLICK_AT_ONCE = """label => new MutationObserver((changes, observer) => {
  const button = [...document.querySelectorAll("button")].find(one => one.textContent === label);
  if (button) { observer.disconnect(); button.click(); }
}).observe(document, {childList: true, subtree: true})"""


class Visit:
    """A page, with what went wrong in it."""

    def __init__(self, browser, served, **options):
        self.url = served.url
        self.context = browser.new_context(accept_downloads=True, **options)
        self.context.set_default_timeout(PATIENCE)
        self.page = self.context.new_page()
        self.wrong: list[str] = []
        self.page.on("console", lambda message: message.type != "log" and self.wrong.append(message.text))
        self.page.on("pageerror", lambda error: self.wrong.append(str(error)))
        self.page.on("request", self._asked)
        self.page.goto(f"{served.url}/#token={TOKEN}")
        self.page.get_by_role("region", name="Models").wait_for()
        self.ready()

    def _asked(self, request):
        if not request.url.startswith((f"{self.url}/", "blob:", "data:")):
            self.wrong.append(f"request to {request.url}")
        if TOKEN in request.url or TOKEN in request.headers.get("referer", ""):
            self.wrong.append("the token left the page")

    def show(self, view: str) -> None:
        self.page.evaluate("hash => { location.hash = hash }", f"#/{view}")
        self.ready()

    def ready(self) -> None:
        """Wait until the page shows completely what its URL says."""
        self.page.wait_for_function("() => document.getElementById('main').dataset.shown === location.hash")


@pytest.fixture
def visit(browser, served):
    visits = []

    def make(**options):
        visits.append(Visit(browser, served, **options))
        return visits[-1]

    yield make
    for one in visits:
        one.context.close()
        assert one.wrong == []


@pytest.mark.parametrize(("width", "scheme"), [(1280, "light"), (390, "dark")])
def test_every_view_by_its_url(visit, barriers, width, scheme):
    opened = visit(viewport={"width": width, "height": 900}, color_scheme=scheme)
    page = opened.page
    assert TOKEN not in page.url
    for name, view in VIEWS.items():
        opened.show(view)
        assert page.locator("main .error").count() == 0, (name, page.locator("main .error").all_inner_texts())
        assert page.evaluate("document.documentElement.scrollWidth <= innerWidth"), f"{name} is wider than the window"
        assert page.locator("main h1").count() == 1
        # Names are texts, wherever they come from.
        assert page.locator("main img, main b").count() == 0
        assert page.evaluate("window.owned") is None
        assert page.locator("a[href^='javascript']").count() == 0
        assert barriers(page) == [], name
    opened.show(VIEWS["model"])
    assert MARKUP in page.locator("main").inner_text()


def test_choosing_filters_every_view_and_back_undoes_it(visit):
    opened = visit()
    page = opened.page
    page.get_by_role("group", name="Domain").get_by_label("medical ct").check()
    page.get_by_text("2 of 6 models").wait_for()
    page.get_by_role("navigation").get_by_role("link", name="Groups").click()
    page.get_by_label("Group by (SQL)").fill("name")
    page.get_by_label("Group by (SQL)").press("Enter")
    page.wait_for_url(re.compile("by=name"))
    canvas = page.locator("canvas.heat")
    canvas.wait_for()
    opened.ready()
    assert "Used 2 of 2 models" in page.locator(".method").inner_text()
    # Open the pair by the keyboard.
    canvas.focus()
    for key in ("ArrowRight", "ArrowRight", "Enter"):
        page.keyboard.press(key)
    page.get_by_role("heading", name=re.compile(r"ct-. – ct-.: .* nats")).wait_for()
    there = page.url
    # The URL restores the view, in another tab too.
    other = opened.context.new_page()
    other.goto(there)
    other.get_by_role("heading", name=re.compile(r"ct-. – ct-.: .* nats")).wait_for()
    other.get_by_text("2 of 6 models").wait_for()
    other.close()
    page.go_back()
    page.wait_for_url(lambda url: "a=" not in url)
    page.go_back()
    page.go_back()
    page.get_by_role("heading", name="Models", level=1).wait_for()
    page.get_by_role("button", name="Clear selection").click()
    page.get_by_role("status").get_by_text("6 models").wait_for()
    page.get_by_label("Search").fill("photo-a")
    page.get_by_role("status").get_by_text("1 models").wait_for()


def test_from_a_model_to_its_kernels(visit):
    opened = visit()
    page = opened.page
    page.get_by_role("link", name="custom/ct-a").click()
    page.get_by_role("link", name="mid").click()
    picture = page.locator("canvas.kernels")
    picture.wait_for()
    opened.ready()
    picture.click(position={"x": 3, "y": 3})
    page.get_by_role("heading", name="Kernel out 0, in 0").wait_for()
    page.locator(".gallery li").nth(24).wait_for()
    page.get_by_label("Negatives count too").check()
    page.wait_for_url(re.compile("sign=true"))
    opened.ready()


def test_from_a_model_to_its_kernels_by_the_keyboard(visit):
    opened = visit(color_scheme="dark")
    page = opened.page
    for link in ("custom/ct-a", "mid"):
        page.get_by_role("link", name=link).focus()
        page.keyboard.press("Enter")
        page.get_by_role("heading", name=link.removeprefix("custom/")).wait_for()
        opened.ready()
    picture = page.locator("canvas.kernels")
    picture.focus()
    for key in ("ArrowRight", "ArrowDown", "ArrowRight"):
        page.keyboard.press(key)
    said = picture.get_attribute("aria-label")
    page.keyboard.press("Enter")
    page.get_by_role("heading", name=re.compile("^Kernel out ")).wait_for()
    out, into = re.findall(r"[0-9]+", page.get_by_role("heading", level=1).inner_text())
    assert f"out {out}" in said
    assert f"in {into}" in said
    assert (int(out), int(into)) != (0, 0)


def test_a_weight_beyond_the_colours_has_the_last_colour(visit):
    opened = visit()
    opened.show("layer?model=custom%2Fhostile&layer=0")
    drawn = """(weights) => import("/static/charts.js").then(({ kernelCanvas }) => {
      const look = { columns: 1, zoom: 1, bound: 1, gap: 0 };
      const { element } = kernelCanvas(Float32Array.from(weights), [1, 1, 3], look);
      return [...element.getContext("2d").getImageData(0, 0, 3, 1).data];
    })"""
    beyond, at_the_end = (opened.page.evaluate(drawn, weights) for weights in ([-50, 0, 50], [-1, 0, 1]))
    assert beyond == at_the_end
    assert beyond[:3] == [33, 102, 172]  # the darkest blue


def test_the_lasso_selects_models(visit):
    opened = visit(viewport={"width": 1280, "height": 1000})
    page = opened.page
    # The button acts as soon as it is in the page: nobody can be too early.
    page.evaluate(CLICK_AT_ONCE, "Lasso")
    opened.show("map")
    assert page.get_by_role("button", name="Lasso").get_attribute("aria-pressed") == "true"
    box = page.locator(".chart").bounding_box()
    corners = [(0.02, 0.1), (0.98, 0.1), (0.98, 0.98), (0.02, 0.98), (0.02, 0.12)]
    for i, (x, y) in enumerate(corners):
        page.mouse.move(box["x"] + x * box["width"], box["y"] + y * box["height"], steps=6)
        if i == 0:
            page.mouse.down()
    page.mouse.up()
    page.get_by_text("6 models in the lasso").wait_for()
    page.get_by_role("button", name="Select these models").click()
    page.get_by_text("6 of 6 models").wait_for()


def test_sql_is_written_run_charted_downloaded_and_cancelled(visit, tmp_path):
    opened = visit()
    page = opened.page
    page.get_by_role("navigation").get_by_role("link", name="SQL").click()
    editor = page.get_by_role("textbox", name="SQL")
    editor.click()
    page.keyboard.type("select model_id, stored_fil")
    page.get_by_role("option", name=re.compile("stored_filters")).first.wait_for()  # the editor knows columns
    page.wait_for_timeout(250)  # the editor takes no key for an answer that comes at once
    page.keyboard.press("Enter")
    page.keyboard.type(" from models ")
    page.keyboard.press("Control+Enter")
    page.get_by_text("6 rows").wait_for()
    page.locator(".chart canvas").wait_for()
    assert page.get_by_role("region", name="Result").get_by_role("link", name="custom/ct-a").count() == 1
    with page.expect_download() as download:
        page.get_by_role("button", name="CSV").click()
    path = tmp_path / "query.csv"
    download.value.save_as(path)
    assert path.read_text().startswith("model_id,stored_filters\n")
    editor.click()
    page.keyboard.press("Control+a")
    page.keyboard.type("select count(*) from range(100000000000) a, range(1000) b where hash(a.range+b.range) = 1")
    page.keyboard.press("Escape")
    page.keyboard.press("Control+Enter")
    page.get_by_role("button", name="Cancel").click()
    page.get_by_role("alert").get_by_text("Cancelled.").wait_for()
    page.get_by_label("Queries").select_option(label="Models and filters by domain")
    page.get_by_role("region", name="Result").wait_for()


def test_a_search_of_kernels_shows_how_far_it_is_and_can_be_cancelled(visit):
    opened = visit()
    page, held = opened.page, []
    page.route("**/api/nearest", lambda route: held.append(route))  # a search that takes long
    page.route("**/api/progress", lambda route: route.fulfill(json={"done": 1234}))
    page.evaluate("hash => { location.hash = hash }", f"#/{VIEWS['kernel']}")
    page.get_by_text(re.compile(r"1,234 of [\d,]+ kernels searched")).wait_for()
    assert page.locator("progress").evaluate("bar => bar.value") == 1234
    page.get_by_role("button", name="Cancel").click()
    page.get_by_role("alert").get_by_text("Cancelled.").wait_for()
    assert len(held) == 1
    page.unroute_all(behavior="ignoreErrors")


def test_without_the_token_nothing_is_shown(browser, served):
    context = browser.new_context()
    page = context.new_page()
    page.goto(served.url)
    page.get_by_text("open the URL that").wait_for()
    assert page.locator("table").count() == 0
    context.close()


def test_nothing_is_left_of_static_files_but_what_the_page_loads():
    folder = Path(__file__).parents[3] / "cnnfilterdb/explore/static"
    scripts = "".join(path.read_text(encoding="utf-8") for path in folder.rglob("*.js"))
    pages = scripts + (folder / "index.html").read_text(encoding="utf-8")
    for path in folder.rglob("*"):
        assert path.is_dir() or path.name in ("index.html", "LICENSES.txt") or path.name in pages, path
    own = "".join(path.read_text(encoding="utf-8") for path in folder.rglob("*.js") if "vendor" not in path.parts)
    assert not re.search(r"innerHTML|outerHTML|insertAdjacentHTML|document\.write|\beval\(|new Function", own)
