import pytest
from hypothesis import given
from hypothesis import strategies as st

from cnnfilterdb import catalog
from cnnfilterdb.catalog.words import FRAMEWORKS, VOCABULARIES
from cnnfilterdb.core.errors import SelectionError

CHECKED = {"domain": "domains", "task": "tasks", "framework": "frameworks", "family": "families"}


@pytest.mark.parametrize("name", VOCABULARIES)
def test_every_vocabulary_lists_distinct_words_with_a_meaning(name):
    words = catalog.vocabulary(name)
    names = [word.name for word in words]
    assert names
    assert len(set(names)) == len(names)
    assert all(word.description and word.models >= 0 for word in words)


def test_counts_are_those_of_the_models():
    for name, fact in {"domains": "domain", "tasks": "task", "families": "family"}.items():
        for word in catalog.vocabulary(name):
            assert word.models == sum(getattr(model.facts, fact) == word.name for model in catalog.models())
    licenses = {word.name: word.models for word in catalog.vocabulary("licenses")}
    assert licenses["MIT"] == sum("MIT" in model.facts.license.split(" AND ") for model in catalog.models())


def test_an_unknown_vocabulary_is_refused():
    with pytest.raises(SelectionError, match=r"no vocabulary 'colours'; choose one of domains, tasks"):
        catalog.vocabulary("colours")


@pytest.mark.parametrize(
    ("fact", "value", "meant"),
    [
        ("domain", "naturel", "natural"),
        ("domain", "Natural", "natural"),
        ("domain", "medical_ct", "medical ct"),
        ("domain", "ct", "medical ct"),
        ("task", "segmantation", "Segmentation"),
        ("task", "classification", "Classification"),
        ("framework", "PyTorch", "pytorch"),
        ("framework", "tensor flow", "tensorflow"),
        ("family", "unet", "U-Net"),
        ("family", "resnet", "ResNet"),
    ],
)
def test_near_misses_are_refused_with_a_suggestion(fact, value, meant):
    with pytest.raises(SelectionError, match=rf"unknown {fact} '{value}'; did you mean .*'{meant}'") as caught:
        catalog.check_facts({fact: value})
    assert "--new-word (new_words=True)" in str(caught.value)
    assert "\n" not in str(caught.value)
    catalog.check_facts({fact: value}, new_words=True)


def test_a_word_near_to_nothing_is_refused_without_a_suggestion():
    with pytest.raises(SelectionError, match=r"unknown domain 'zzzzqqq'; `cnnfilterdb vocabulary domains` lists"):
        catalog.check_facts({"domain": "zzzzqqq"})


@given(st.text())
def test_any_text_is_known_or_refused_in_one_line(text):
    for fact, vocabulary in CHECKED.items():
        known = {word.name for word in catalog.vocabulary(vocabulary)}
        if not text or text in known:
            catalog.check_facts({fact: text})
        else:
            with pytest.raises(SelectionError):
                catalog.check_facts({fact: text})


def test_the_catalog_itself_uses_known_words():
    for model in catalog.models():
        catalog.check_facts(
            {"domain": model.facts.domain, "task": model.facts.task, "family": model.facts.family, "license": "any"}
        )


def test_every_framework_that_a_reader_reports_is_a_known_word():
    assert {"pytorch", "keras", "tensorflow", "onnx"} <= FRAMEWORKS.keys()
