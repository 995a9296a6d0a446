from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cnnfilterdb import catalog
from cnnfilterdb.catalog.entries import CONDITIONS
from cnnfilterdb.publish.licenses import Verdict, card_licenses, decide, known, terms

COPYLEFT = ("attribution", "share-alike", "source")


@pytest.mark.parametrize(
    ("stated", "conditions"),
    [
        ("MIT", ("attribution",)),
        ("mit", ("attribution",)),
        ("MIT License", ("attribution",)),
        ("CC0-1.0", ()),
        ("CC-BY-SA-4.0", ("attribution", "share-alike")),
        ("CC-BY-NC-4.0", ("attribution", "noncommercial")),
        ("LicenseRef-Apple-FastViT", ("attribution",)),
        ("apple-ascl", ("attribution",)),
        # As the source `hub` writes what is no SPDX identifier
        ("LicenseRef-creativeml-openrail-m", ("attribution", "use-restrictions")),
        ("gpl-3.0", COPYLEFT),
        ("GPL-2.0+", COPYLEFT),
        ("GPL-2.0-only WITH Classpath-exception-2.0", COPYLEFT),
        ("AGPL-3.0-only AND CC-BY-NC-SA-3.0", (*COPYLEFT, "noncommercial")),
        ("mit and (apache-2.0 or gpl-3.0-only)", ("attribution",)),
        ("GPL-3.0-only OR MIT", ("attribution",)),
        ("CC-BY-ND-4.0 OR GPL-3.0-only", COPYLEFT),
        # AND binds closer than OR
        ("CC-BY-ND-4.0 AND MIT OR MIT", ("attribution",)),
        ("MIT OR MIT AND CC-BY-ND-4.0", ("attribution",)),
        ("(GPL-3.0-only)", COPYLEFT),
        ("  MIT\n", ("attribution",)),
    ],
)
def test_permitted(stated, conditions):
    verdict = decide(stated)
    assert verdict.allowed
    assert not verdict.named
    assert verdict.conditions == conditions
    assert terms(stated) == verdict


@pytest.mark.parametrize(
    ("stated", "reason"),
    [
        (None, "no licence is stated"),
        ("", "no licence is stated"),
        ("LicenseRef-Unknown", "no licence is stated"),
        ("unknown", "no licence is stated"),
        ("LicenseRef-House", "the catalog does not know the licence 'LicenseRef-House'"),
        ("Apache 2", "the catalog does not know the licence 'Apache 2'"),
        ("MIT AND LicenseRef-House", "the catalog does not know the licence 'LicenseRef-House'"),
        ("MIT AND", "the catalog does not know the licence 'MIT AND'"),
        ("MIT MIT", "the catalog does not know the licence 'MIT MIT'"),
        ("(MIT", "the catalog does not know the licence '(MIT'"),
        ("MIT WITH AND", "the catalog does not know the licence 'MIT WITH AND'"),
        ("(MIT AND CC-BY-ND-4.0) OR CC-BY-ND-4.0", "CC-BY-ND-4.0 does not permit it: only unchanged copies may be "
         "redistributed, and kernels of a model are not one"),
        ("MIT AND LicenseRef-SEER-Noncommercial",
         "LicenseRef-SEER-Noncommercial does not permit it: for research or teaching only"),
        ("LicenseRef-cc", "it is not known whether LicenseRef-CC permits redistribution"),
        ("x" * 5000, f"the catalog does not know the licence '{'x' * 57}...'"),
        (" AND ".join(["MIT"] * 1000), "the catalog does not know the licence '" + "MIT AND " * 7 + "M...'"),
        ("(" * 50_000, "the catalog does not know the licence '" + "(" * 57 + "...'"),
    ],
    ids=lambda value: str(value)[:30],
)  # fmt: skip
def test_left_out(stated, reason):
    verdict = decide(stated)
    assert not verdict.allowed
    assert verdict.reason == reason
    assert terms(stated).named


def test_reasons_of_several_are_reported():
    verdict = decide("CC-BY-ND-4.0 OR LicenseRef-Gemma")
    assert verdict.reason.count("does not permit it") == 2
    assert verdict.licenses == ("CC-BY-ND-4.0", "LicenseRef-Gemma")


@pytest.mark.parametrize(
    ("stated", "include"),
    [
        (None, "unknown"),
        ("", "UNKNOWN"),
        ("LicenseRef-Unknown", "unknown"),
        (None, "LicenseRef-Unknown"),
        ("LicenseRef-House", "licenseref-house"),
        ("LicenseRef-House", "house"),
        ("My own  licence", "my own licence"),
        ("LicenseRef-Gemma", "gemma"),
        ("LicenseRef-Apple-AMLR", "apple-amlr"),
        ("MIT AND LicenseRef-House", "LicenseRef-House"),
        ("MIT AND LicenseRef-House", "mit and licenseref-house"),
    ],
)
def test_named_exceptions(stated, include):
    assert not decide(stated).allowed
    assert not decide(stated, ["something else"]).allowed
    verdict = decide(stated, ["something else", include])
    assert verdict.allowed
    assert verdict.named
    assert verdict == terms(stated)


def test_an_exception_lets_nothing_else_in():
    assert not decide("LicenseRef-House AND CC-BY-ND-4.0", ["LicenseRef-House"]).allowed
    assert not decide("LicenseRef-House", ["unknown"]).allowed
    # Nor is it needed where something else permits it.
    assert decide("LicenseRef-House OR GPL-3.0-only", ["LicenseRef-House"]) == decide("GPL-3.0-only")


def test_an_exception_keeps_the_conditions_that_are_known():
    assert terms("AGPL-3.0-only AND LicenseRef-House").conditions == COPYLEFT
    assert terms("LicenseRef-Gemma").conditions == ("attribution", "use-restrictions", "agreement")


PERMITTED = ["MIT", "GPL-3.0-only", "CC-BY-NC-4.0"]
# Each with what it means: a function of which licences are permitted.
expressions = st.recursive(
    st.sampled_from([*PERMITTED, "CC-BY-ND-4.0", "LicenseRef-Gemma", "LicenseRef-House"]).map(
        lambda name: (name, lambda permitted: name in permitted)
    ),
    lambda inner: st.tuples(inner, st.sampled_from(["AND", "OR"]), inner).map(
        lambda parts: (
            f"({parts[0][0]} {parts[1]} {parts[2][0]})",
            lambda permitted: (all if parts[1] == "AND" else any)([parts[0][1](permitted), parts[2][1](permitted)]),
        )
    ),
    max_leaves=8,
)


@given(expressions)
def test_expressions_mean_what_they_say(expression):
    text, holds = expression
    assert decide(text).allowed == holds(PERMITTED)
    assert decide(text, ["LicenseRef-House"]).allowed == holds([*PERMITTED, "LicenseRef-House"])


@given(st.one_of(st.text(), st.lists(st.sampled_from(["MIT", "AND", "or", "(", ")", "With", "+", "x"])).map(" ".join)))
def test_any_text_gets_a_verdict(stated):
    verdict = decide(stated)
    assert isinstance(verdict, Verdict)
    assert "\n" not in verdict.reason
    assert terms(stated).allowed
    assert terms(stated).licenses
    assert set(card_licenses([stated])) in ({"license"}, {"license", "license_name", "license_link"})


def test_every_licence_of_the_catalog():
    for name, entry in catalog.licenses().items():
        verdict = decide(name)
        assert verdict.allowed == (entry.redistribution == "yes")
        assert verdict.conditions == entry.conditions
        assert set(verdict.conditions) <= set(CONDITIONS)
        assert known(name) is known(name.lower()) is entry
        assert entry.hub is None or decide(entry.hub).allowed == verdict.allowed
        assert entry.hub is None or known(entry.hub).conditions == entry.conditions
    for model in catalog.models():
        assert "does not know" not in decide(model.facts.license).reason, model.model_id


def test_the_card_has_the_identifiers_of_the_hub():
    assert card_licenses(["MIT"]) == {"license": "mit"}
    assert card_licenses(["MIT", "AGPL-3.0-only AND CC-BY-NC-SA-3.0"])["license"] == [
        "agpl-3.0",
        "cc-by-nc-sa-3.0",
        "mit",
    ]
    assert card_licenses(["MIT", None]) == {"license": ["mit", "unknown"]}
    assert card_licenses(["gpl-3.0", "GPL-3.0-or-later"]) == {"license": "gpl-3.0"}
    # Of alternatives the one that is taken
    assert card_licenses(["MIT OR GPL-3.0-only"]) == {"license": "mit"}
    assert card_licenses([]) == {"license": "unknown"}


def test_the_card_names_other_licences():
    assert card_licenses(["CECILL-2.1", "MIT"], "https://example.org") == {
        "license": ["mit", "other"],
        "license_name": "cecill-2.1",
        "license_link": "https://spdx.org/licenses/CECILL-2.1.html",
    }
    assert card_licenses(["LicenseRef-BWH"])["license_link"].startswith("https://github.com/pnlbwh/")
    assert card_licenses(["CECILL-2.1", "My own: 'licence'"], "https://example.org") == {
        "license": "other",
        "license_name": "several",
        "license_link": "https://example.org",
    }
    assert card_licenses(["日本"], "x") == {"license": "other", "license_name": "other", "license_link": "x"}
