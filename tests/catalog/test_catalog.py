from __future__ import annotations

import subprocess
import sys
from fnmatch import fnmatchcase

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cnnfilterdb import catalog
from cnnfilterdb.core.errors import SelectionError, UnknownModelError

NAMES = ["deepcr/mask-decam", "deepcr/mask-acs-wfc", "facenet-pytorch/onet", "facenet-pytorch/pnet", "odd/[x]*"]


@pytest.mark.parametrize(
    ("patterns", "found"),
    [
        (["deepcr/mask-decam"], ["deepcr/mask-decam"]),
        (["facenet-pytorch/?net"], ["facenet-pytorch/onet", "facenet-pytorch/pnet"]),
        (["*net", "deepcr/*"], NAMES[:4]),
        (["*/*", "deepcr/mask-decam"], NAMES),
        (["odd/[x]*"], ["odd/[x]*"]),
        (["odd/[[]x]*"], ["odd/[x]*"]),
        (["DEEPCR/*-Decam"], ["deepcr/mask-decam"]),
        ([], []),
    ],
)
def test_match(patterns, found):
    assert catalog.match(NAMES, patterns) == found


letters = st.text("aAb/*?[!]", max_size=5)


@given(st.lists(letters), st.lists(letters, max_size=3))
def test_match_is_fnmatch(names, patterns):
    fits = {
        p: [n for n in names if n == p] or [n for n in names if fnmatchcase(n.lower(), p.lower())] for p in patterns
    }
    if all(fits.values()):
        wanted = {name for found in fits.values() for name in found}
        assert catalog.match(names, patterns) == [name for name in dict.fromkeys(names) if name in wanted]
    else:
        with pytest.raises(UnknownModelError, match="no model matches"):
            catalog.match(names, patterns)


@pytest.mark.parametrize(
    ("pattern", "near"),
    [
        ("deepcr/mask-decan", "nearest: deepcr/mask-decam, "),
        ("Deepcr/mask_decam", "nearest: deepcr/mask-decam, "),
        ("onet", "nearest: facenet-pytorch/onet"),
        ("facenet_pytorch/*", r"nearest: facenet-pytorch/\*$"),
        ("deepcrr", r"nearest: deepcr/\*$"),
        ("facenet-pytorch", "nearest: facenet-pytorch/[op]net, facenet-pytorch/[op]net$"),
        ("zzz", "no name is similar; `cnnfilterdb models --available` lists all"),
    ],
)
def test_an_unknown_name_gives_the_nearest(pattern, near):
    with pytest.raises(UnknownModelError, match=near) as caught:
        catalog.match(NAMES, ["*", pattern])
    assert "\n" not in str(caught.value)


def test_expand():
    pairs = catalog.expand("pypi")
    assert pairs == [(model.source, model.name) for model in catalog.models("pypi")]
    assert set(catalog.expand("demo")) < set(pairs)


def test_an_unknown_collection_gives_the_nearest():
    with pytest.raises(UnknownModelError, match=r"no collection named 'demmo'; nearest: demo; there are demo, pypi"):
        catalog.expand("demmo")
    with pytest.raises(UnknownModelError, match=r"no collection named 'xyz'; there are demo, pypi"):
        catalog.expand("xyz")


def test_models_of_one_source_and_of_all():
    assert {model.source for model in catalog.models("pypi")} == {"pypi"}
    assert all(model in catalog.models() for model in catalog.models("pypi"))
    with pytest.raises(SelectionError, match="the catalog has no source 'pipy'; it has "):
        catalog.models("pipy")


def test_what_is_read_cannot_be_changed():
    model = catalog.models()[0]
    with pytest.raises(TypeError):
        model.origin["member"] = "other"  # type: ignore[index]
    with pytest.raises(TypeError):
        catalog.domains()["moon"] = catalog.domains()["natural"]  # type: ignore[index]


def test_the_import_is_light():
    heavy = "numpy", "pandas", "pyarrow", "duckdb", "torch", "onnx", "h5py", "csv", "tomllib"
    code = f"import sys; from cnnfilterdb import catalog; print(sorted(set({heavy!r}) & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
