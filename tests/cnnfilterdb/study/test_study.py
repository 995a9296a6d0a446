"""Studies: what they conclude from models whose differences are known, and how they are written."""

import json
import re
from dataclasses import replace
from html.parser import HTMLParser

import numpy as np
import pandas as pd
import pytest
from matplotlib.backends.backend_agg import FigureCanvasAgg

import cnnfilterdb
from cnnfilterdb import catalog
from cnnfilterdb.core.errors import SelectionError
from cnnfilterdb.study.document import Claim, Rows, Section
from cnnfilterdb.study.drawing import places
from cnnfilterdb.study.medical import _answer, _claims
from cnnfilterdb.study.outliers import FEW_OUTLIERS, Outliers
from cnnfilterdb.study.paper import _second_figure, present
from cnnfilterdb.study.question import ALIKE, DIFFERS, OPEN, main_question
from cnnfilterdb.study.sample import read_sample

FAMILIES = ("U-Net", "ResNet", "YOLO")


def weights(rng, mixing, filters=400):
    own = mixing + 0.15 * rng.normal(size=(9, 9))
    return (rng.normal(size=(filters, 9)) @ own).astype(np.float32).reshape(filters // 10, 10, 3, 3)


def made(path, *, medical_differs=False, siblings=1, origins=6):
    """A database of three families with medical and other models of several origins each."""
    rng = np.random.default_rng(4)
    kinds = {family: np.eye(9) + rng.normal(size=(9, 9)) for family in FAMILIES}
    own = rng.normal(size=(9, 9))
    db = cnnfilterdb.create(path)
    for family, mixing in kinds.items():
        for side in ("medical mri", "natural"):
            for origin in range(origins):
                centre = mixing + 0.4 * rng.normal(size=(9, 9)) + (2 * own if medical_differs and "med" in side else 0)
                for sibling in range(siblings if side == "medical mri" and origin == 0 else 1):
                    name = f"{family}-{side[:3]}-{origin}/{sibling}"
                    tensors = {"a.weight": weights(rng, centre)}
                    db.add(tensors, name, domain=side, family=family, task="Segmentation")
    db.index()
    return db


def is_medical(models):
    return models["domain"].str.startswith("medical")


@pytest.fixture(scope="module")
def different(tmp_path_factory):
    with made(tmp_path_factory.mktemp("study") / "different.db", medical_differs=True) as db:
        yield db


@pytest.fixture(scope="module")
def alike(tmp_path_factory):
    with made(tmp_path_factory.mktemp("study") / "alike.db", siblings=6) as db:
        yield db


@pytest.fixture(scope="module")
def difference(different):
    """The study of that database."""
    return different.study(permutations=99, scan=False)


def test_a_difference_is_found(different, difference):
    study = difference
    verdicts = {claim.text: claim for claim in study.claims}
    for text in ("Medical models against all others", "With the family of architectures held fixed"):
        assert verdicts[text].verdict == DIFFERS
        assert verdicts[text].p == 0.01
    assert study.answer[0].startswith("Yes: in this database")
    shift = different.kl_shift("domain", balance="models").loc["medical mri", "natural"]
    assert verdicts["Medical models against all others"].effect.startswith(f"shift {shift:.3f} nats")


def test_the_numbers_in_sentences_are_those_of_the_api(different, difference):
    """In this database every model is of an origin of its own, so that its units are its models."""
    text = " ".join([*difference.answer, *(block for section in difference.sections for block in section.blocks
                                           if isinstance(block, str))]).replace("\N{NO-BREAK SPACE}", " ")  # fmt: skip
    (row,) = different.shift_test("domain", permutations=99).to_dict("records")
    assert f"{row['models_a']} independent medical units" in text
    assert f"differ from {row['models_b']} others by {row['shift']:.3f} nats" in text
    assert f"differ by {row['null_mean']:.3f} on average, and by less than {row['null_high']:.3f} in 95 of 100" in text
    assert f"(p {row['p']:.3f})" in text
    shares = different.variance_explained(["family", "domain"], permutations=99).set_index("factor")["r2"]
    assert f"medical or not {100 * shares['domain']:.0f} %" in text
    assert f"family {100 * shares['family']:.0f} %" in text
    assert f"After family and task, medical or not explains {100 * shares['domain']:.1f} %" in text
    spread = different.dispersion_test("domain", permutations=99)["distance"]
    assert f"a medical unit is {spread['medical mri']:.3f} from the centre of its side" in text
    assert f"others are {spread['natural']:.3f}" in text


def test_the_factors_of_the_first_page_are_adjusted_for_their_number(difference):
    study = difference
    tables = [block for section in study.sections for block in section.blocks if isinstance(block, Rows)]
    (table,) = (one for one in tables if one.columns[0] == "Factor" and one.rows[0][0] == "medical")
    place = {name: number for number, name in enumerate(table.columns)}
    for raw, adjusted in (("p", "p, adjusted"), ("p, after others", "p, after others, adjusted")):
        found = [row[place[raw]] for row in table.rows if row[place[raw]] is not None]
        # Holm by hand: the smallest times their number, then the next smallest, ...
        by_hand, least = {}, 0.0
        for rank, p in enumerate(sorted(found)):
            least = max(least, min(1.0, p * (len(found) - rank)))
            by_hand[p] = max(by_hand.get(p, 0), least)
        assert len(found) > 1
        for row in table.rows:
            if row[place[raw]] is not None:
                assert row[place[adjusted]] == pytest.approx(by_hand[row[place[raw]]])
    claim = next(claim for claim in study.claims if claim.text.startswith("What explains"))
    assert "Holm" in claim.test
    assert any("adjusted for the number of factors (Holm)" in text for text in study.answer)


def test_the_null_distribution_is_shown_with_the_test_that_it_belongs_to(different, difference):
    _, answered = main_question(read_sample(different, is_medical, balance="models"), 99)
    whole = answered.all
    assert whole.null.shape == (99,)
    assert whole.p == ((whole.null >= whole.shift).sum() + 1) / 100
    assert (whole.chance, whole.chance_high) == (whole.null.mean(), np.quantile(whole.null, 0.95))
    picture = answered.null_picture()
    assert picture.name in {one.name for one in difference.pictures()}


def test_models_of_one_origin_count_once(alike):
    models = read_sample(alike, is_medical, balance="models")
    units, answered = main_question(models, 199)
    assert (len(models), len(units)) == (51, 36)
    assert units.medical.sum() == 18
    siblings = units.facts["models"].map(len)
    assert sorted(siblings)[-3:] == [6, 6, 6]
    place = int(np.flatnonzero(siblings == 6)[0])
    family = units.facts["family"][place]
    members = [names[0] in units.facts["models"][place] for names in models.facts["models"]]
    np.testing.assert_allclose(units.counts[place], models.counts[members].mean(axis=0))
    assert answered.all.p > 0.05
    assert answered.verdict(answered.all) == ALIKE
    assert {one.what for one in answered.families} == {f"family {name}" for name in FAMILIES}
    assert family in FAMILIES


def test_the_interval_covers_and_the_verdict_needs_it(alike):
    units, answered = main_question(read_sample(alike, is_medical, balance="models"), 99)
    assert 0 <= answered.all.low <= answered.all.high
    pair = [np.flatnonzero(units.medical == side)[0] for side in (0, 1)]
    lonely = units.where(np.isin(np.arange(len(units)), pair)).contrast("two units")
    assert (lonely.low, lonely.high) == (None, None)
    assert answered.verdict(lonely) == OPEN
    with pytest.raises(SelectionError, match="one side has no model"):
        units.where(units.medical == 1).contrast("medical")


@pytest.fixture(scope="module")
def of_the_paper(tmp_path_factory):
    """Some of the paper's models, by their names in the released data, with the properties that it states."""
    rng = np.random.default_rng(0)
    known = catalog.published()["medical"]
    by_key = {one["model_id"]: one["paper"] for one in known["models"]}
    db = cnnfilterdb.create(tmp_path_factory.mktemp("study") / "paper.db")
    mixing = np.eye(9) + rng.normal(size=(9, 9))
    binary = (0.1 * rng.choice([-1.0, 1.0], size=(40, 10, 3, 3))).astype(np.float32)
    sparse = weights(rng, mixing, 2000)
    sparse.reshape(-1, 9)[20:] *= 1e-6
    for key, weight, family, domain in (
        (known["binary"]["model_id"], binary, "CompNet", "medical mri"),
        (known["nonsparse"]["model_id"], sparse, "ResNet", "medical xray"),
        ("lungmask/r231", weights(rng, mixing), "U-Net", "medical ct"),
        ("custom/buda-unet", weights(rng, mixing), "U-Net", "medical mri"),
    ):
        db.add({"a.weight": weight}, by_key[key], domain=domain, family=family, task="Segmentation")
    for number in range(3):
        db.add({"a.weight": weights(rng, mixing)}, f"other{number}", domain="natural", family="U-Net",
               task="Segmentation")  # fmt: skip
    db.index()
    yield db
    db.close()


@pytest.mark.thorough
def test_the_statements_of_the_paper(of_the_paper):
    study = of_the_paper.study(permutations=19, scan=False)
    paper = next(section for section in study.sections if section.key == "paper")
    tables = {block.caption: block for block in paper.blocks if hasattr(block, "rows")}
    missing = next(table for caption, table in tables.items() if "missing" in caption)
    assert len(missing.rows) == 12
    assert all(row[3] for row in missing.rows)
    stated = {row[0]: row for row in next(t for c, t in tables.items() if "states" in c).rows}
    assert stated["Filters of CompNet are nearly binary."][3] == "confirmed"
    row = stated["About 1 % of the filters of ResNet-50 (512 px) are not sparse."]
    assert row[1] == "12,900 of 1,257,472 (1.03 %)"
    assert row[2] == "20 of 2,000 (1.00 %)"
    assert row[3] == "confirmed"
    pairs = next(table for caption, table in tables.items() if caption.startswith("U-Net"))
    ((names, published, here),) = pairs.rows
    assert published == 0.103
    first, second = names.split(" – ")
    matrix = of_the_paper.kl_shift("model_id", recipe="medneurips2022")
    assert here == pytest.approx(matrix.loc[first, second])
    assert {"figure_1", "figure_2", "figure_3_unet"} <= {picture.name for picture in study.pictures()}


def test_the_published_values_are_whole():
    known = catalog.published()["medical"]
    keys = {f"{source}/{name}" for source, name in catalog.expand("medical-2022")}
    assert len(known["models"]) == 16
    assert {one["model_id"] for one in known["models"]} <= keys
    for name in ("unet", "densenet121"):
        matrix = np.array(known[name]["matrix"])
        assert (matrix == matrix.T).all()
        assert set(known[name]["labels"]) <= keys
    assert len(present([]).missing) == 16


class _Page(HTMLParser):
    def __init__(self):
        super().__init__()
        self.tags, self.addresses = [], []

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.addresses += [value for name, value in attrs if name in ("src", "href")]


def test_a_page_loads_nothing_and_names_are_inert(tmp_path):
    with cnnfilterdb.example(tmp_path / "example.db") as db:
        tensors = {"a.weight": weights(np.random.default_rng(0), np.eye(9) + 1)}
        db.add(tensors, "<script>alert(1)</script>|*x*", domain="medical ct", task="Segmentation", family="U-Net")
        study = db.study(permutations=9, scan=False)
    page = _Page()
    html = study.to_html()
    page.feed(html)
    assert not {"script", "link", "iframe"} & set(page.tags)
    assert page.tags.count("b") == len(study.tiles)
    assert all(address.startswith(("data:image/png;base64,", "#")) for address in page.addresses)
    assert "<script>" not in study.to_markdown()
    assert study.to_dict()["claims"][0]["verdict"] == OPEN
    assert study.to_html() == html
    # Commands in sentences are code, which no backtick shows.
    assert "<code>cnnfilterdb ingest --collection medical-2022</code>" in html
    assert "`" not in re.sub(r"<style>.*?</style>", "", html, flags=re.DOTALL)


@pytest.mark.thorough
def test_every_number_of_the_json_is_finite(alike):
    text = alike.study(permutations=9, scan=True).to_json()
    found = json.loads(text)
    assert not re.search(r"NaN|Infinity", text)
    decisions = next(section for section in found["sections"] if section["key"] == "decisions")
    rows = {row["Compared"]: row for row in decisions["blocks"][1]["rows"]}
    assert rows["basis fitted on medical models only"]["p"] is not None
    assert rows["5x5 kernels"]["p"] is None
    assert rows["as above"]["Medical"] == 18


def test_kernels_that_a_database_of_statistics_lacks_are_not_drawn():
    with cnnfilterdb.reference() as db:
        (text,) = _second_figure(db, present(db.storage.model_ids()))
    assert "It cannot be drawn: the reference corpus has the statistics of 3x3 filters" in text


def test_what_cannot_be_asked(alike, tmp_path):
    with pytest.raises(SelectionError, match="study: 'space' given; there is medical"):
        alike.study("space")
    with cnnfilterdb.create(tmp_path / "one.db") as db:
        tensors = {"a.weight": weights(np.random.default_rng(0), np.eye(9) + 1)}
        db.add(tensors, "only", domain="natural", family="U-Net", task="Segmentation")
        with pytest.raises(SelectionError, match="no medical model with 3x3 kernels; ingest one"):
            db.study()


def test_names_in_the_plane_touch_nothing():
    rng = np.random.default_rng(0)
    coordinates = np.concatenate([0.02 * rng.normal(size=(30, 2)), rng.uniform(-1, 1, (10, 2)), [[1.5, 0], [1.5, 0.0]]])
    names = [f"package-{number}/model" for number in range(len(coordinates))]
    figure = places(coordinates, np.arange(len(names)) < 20, [0.5, 0.2], names)
    renderer = FigureCanvasAgg(figure).get_renderer()
    figure.draw(renderer)
    (axes,) = figure.axes
    boxes = [text.get_window_extent(renderer) for text in axes.texts]
    assert 5 <= len(boxes) < len(names)
    points = axes.transData.transform(coordinates)
    for number, box in enumerate(boxes):
        assert not any(box.overlaps(other) for other in boxes[:number])
        assert not any(box.contains(*point) for point in points)
        assert 0 <= box.x0 < box.x1 <= figure.bbox.width


@pytest.mark.parametrize("far", [1, FEW_OUTLIERS])
def test_a_property_of_outliers_says_little_unless_other_models_lack_it(different, far):
    """Of ten medical and ten other models, a quarter of those that are no outliers are sparse, and one outlier."""
    outlier = np.arange(20) < far
    reasons = np.where(np.arange(20) % 4 == 0, "sparse kernels", "none of these")
    medical = np.arange(20) < 10
    outliers = Outliers(pd.DataFrame({"medical": medical, "outlier": outlier, "reasons": reasons}), 0.1, 0.2, {})
    assert (len(outliers.found), outliers.explained) == (far, 1)
    share = np.mean(reasons[far:] == "sparse kernels")
    assert outliers.usual_share() == pytest.approx(share)
    _, answered = main_question(read_sample(different, is_medical, balance="models"), 19)
    nothing = Rows("", (), [[None] * 7 + [0.0, 0.5]])
    claims = _claims(answered, None, None, None, outliers, nothing)
    (claim,) = (one for one in claims if one.text.startswith("Medical outliers"))
    assert claim.verdict == (OPEN if far < FEW_OUTLIERS else "1 of 3 have such a property")
    assert claim.effect.endswith(f"1 of {far} outliers, {100 * share:.0f} % of the models that are none")
    said = " ".join(_answer(answered, None, outliers))
    counted = "1 of 10 medical models is an outlier" if far == 1 else "3 of 10 medical models are outliers"
    assert f"{counted}. {'It has' if far == 1 else '1 of them has'} an unusual property" in said
    assert f"so have {100 * share:.0f} % of the models that are no outliers." in said


def test_code_in_a_paragraph_is_code_in_every_format(difference):
    text = "Run `cnnfilterdb ingest --collection a_b` on 2 * 3 models."
    study = replace(difference, sections=[Section("run", "Run", [text])])
    assert "Run `cnnfilterdb ingest --collection a_b` on 2 \\* 3 models." in study.to_markdown()
    assert "<code>cnnfilterdb ingest --collection a_b</code>" in study.to_html()


@pytest.mark.parametrize(("p", "text"), [(0.0432, "0.043"), (0.05, "0.050"), (0.0496, "0.0496"), (0.05004, "0.05004")])
def test_a_p_value_shows_on_which_side_of_the_limit_it_is(difference, p, text):
    rows = Rows("Both in one table.", ("Compared", "Shift", "p", "p, adjusted"), [("a", 0.1996, p, np.float64(p))])
    claim = Claim("They differ", DIFFERS, p=p)
    study = replace(difference, claims=[claim], opening=[], sections=[Section("run", "Run", [rows])])
    markdown, html = study.to_markdown(), study.to_html()
    assert len(re.findall(rf"(?<= ){re.escape(text)}(?= )", markdown)) == 3
    assert len(re.findall(rf">{re.escape(text)}<", html)) == 3
    assert re.search(r"\| +0\.200 \|", markdown)  # a shift is rounded as ever
    assert study.to_dict()["claims"][0]["p"] == p
