"""The page in Chromium with 600 models and 21,000 layers: everything fits, and nothing is left out."""

from __future__ import annotations

import numpy as np
import pytest

import cnnfilterdb

from .conftest import serving
from .test_browser import Visit

pytestmark = pytest.mark.thorough

MODELS, LAYERS = 600, 35
DOMAINS = ("natural", "medical ct", "medical mri", "faces", "satellite", "art")


@pytest.fixture(scope="module")
def many(tmp_path_factory):
    path = tmp_path_factory.mktemp("many") / "many.db"
    rng = np.random.default_rng(0)
    with cnnfilterdb.create(path) as db:
        for number in range(MODELS):
            mixing = np.eye(9) + 0.2 * np.random.default_rng(number % len(DOMAINS)).normal(size=(9, 9))
            kernels = rng.normal(size=(LAYERS, 16, 9)) @ mixing
            weights = kernels.astype(np.float32).reshape(LAYERS, 4, 4, 3, 3)
            tensors = {f"block{place}.conv.weight": weight for place, weight in enumerate(weights)}
            db.add(tensors, f"model-{number:03}", domain=DOMAINS[number % len(DOMAINS)])
        db.index()
    with serving(path, memory="512MB") as running:
        yield running


@pytest.mark.parametrize(("width", "scheme"), [(1280, "dark"), (390, "light")])
def test_a_large_database_in_every_view(browser, many, width, scheme):
    visit = Visit(browser, many, viewport={"width": width, "height": 900}, color_scheme=scheme)
    page = visit.page
    page.get_by_role("status").get_by_text("600 models").wait_for()
    for view in (
        "models?f.domain=art",
        "groups",
        "groups?by=model_id",
        "groups?by=model_id&tab=distributions",
        "groups?by=model_id&tab=quality",
        "map?colour=domain",
        "model?model=custom%2Fmodel-599",
        "layer?model=custom%2Fmodel-599&layer=34",
        "sql?query=FROM+kl_shift(model_id)",
    ):
        visit.show(view)
        assert page.locator("main .error").count() == 0, (view, page.locator("main .error").all_inner_texts())
        assert page.evaluate("document.documentElement.scrollWidth <= innerWidth"), f"{view} is wider than the window"
    visit.show("models?f.domain=art")
    page.get_by_text("100 of 600 models").wait_for()
    visit.show("groups?by=domain&f.domain=art&f.domain=faces")
    assert "Used 200 of 200 models" in page.locator(".method").inner_text()
    visit.context.close()
    assert visit.wrong == []
