"""The file that lists parts, which may be a stranger's."""

from __future__ import annotations

import os
from contextlib import suppress

import pytest
from hypothesis import given
from hypothesis import strategies as st

import cnnfilterdb
from cnnfilterdb.parts.listing import PartsList


@pytest.fixture
def write(tmp_path):
    def write(text: str, name: str = "corpus.parts.toml"):
        path = tmp_path / name
        path.write_text(text, encoding="utf-8")
        return path

    return write


def test_parts_are_beside_the_file(write, part_of, tmp_path, monkeypatch):
    part_of(tmp_path / "one.db", ("face",))
    part_of(tmp_path / "deeper" / "two.db", ("ct-a",))
    path = write('[parts]\nmine = "one.db"\n"the other" = "deeper/two.db"\ncorpus = "reference"\n')
    monkeypatch.chdir("/")
    with cnnfilterdb.open(path) as db:
        assert db.location == str(path)
        assert db.sql("SELECT part, count(*) FROM models GROUP BY ALL ORDER BY ALL").fetchall() == [
            ("corpus", 245),
            ("mine", 1),
            ("the other", 1),
        ]
    with pytest.raises(cnnfilterdb.NotADatabaseError, match="can only be read"):
        cnnfilterdb.open(path, read_only=False)
    for create in (cnnfilterdb.create, cnnfilterdb.FilterDB):
        with pytest.raises(cnnfilterdb.NotADatabaseError, match=r"a list of parts, which can only be read"):
            create(path)


def test_what_to_do_about_duplicates(write, part_of, tmp_path):
    part_of(tmp_path / "one.db", ("face",))
    part_of(tmp_path / "two.db", ("face", "ct-a"))
    parts = '[parts]\none = "one.db"\ntwo = "two.db"\n'
    with pytest.raises(cnnfilterdb.DatabaseError, match="custom/face is in the parts one and two"):
        cnnfilterdb.open(write(parts))
    with cnnfilterdb.open(write(f'duplicates = "first"\n{parts}')) as db:
        assert db.models()["part"].tolist() == ["two", "one"]
    with pytest.raises(cnnfilterdb.DatabaseError, match="custom/face"):
        cnnfilterdb.open(write(f'duplicates = "first"\n{parts}'), duplicates="error")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "expected a table parts"),
        ("[parts]", "expected a table parts"),
        ('parts = ["a"]', "expected a table parts"),
        ("[parts]\n" + "\n".join(f'p{i} = "x"' for i in range(1001)), "expected a table parts of 1 to 1,000 lines"),
        ("no toml", "not TOML"),
        ('duplicates = "last"\n[parts]\na = "a"', "'last' given; expected one of error, first"),
        ('[parts]\na = "a"\n[options]\nkey = "x"', "'options' is unknown"),
        ("[parts]\na = 1", "as text"),
        ('[parts]\na = {path = "a", endpoint_url = "https://evil"}', "as text"),
        ('[parts]\na = ""', "expected a folder or an address"),
        ('[parts]\na = "x\\u001b[2J"', "printable"),
        ('[parts]\n"\\u0007" = "a"', "the name of a part"),
        ('[parts]\na = "file:///etc"', "expected an address with one of"),
        ('[parts]\na = "http://169.254.169.254/latest"', "expected an address with one of"),
        ('[parts]\na = "ssh://host/x"', "expected an address with one of"),
        ('[parts]\na = "zip://a::https://host/x.zip"', "chained file systems"),
        ('[parts]\na = "s3://key:secret@bucket/x"', "a user name"),
        ('[parts]\na = "\\\\\\\\host\\\\share"', "a backslash"),
        ('[parts]\na = "other.parts.toml"', "a list in a list"),
    ],
)
def test_what_it_may_not_say(write, text, message):
    path = write(text)
    with pytest.raises(cnnfilterdb.DatabaseError, match=message) as caught:
        cnnfilterdb.open(path)
    assert str(caught.value).startswith(f"{path}: ")
    assert str(caught.value).isprintable()


def test_it_must_be_a_small_regular_file(tmp_path, write):
    with pytest.raises(cnnfilterdb.NotADatabaseError, match="does not exist"):
        cnnfilterdb.open(tmp_path / "none.parts.toml")
    os.mkfifo(tmp_path / "pipe.parts.toml")
    with pytest.raises(cnnfilterdb.DatabaseError, match="not a regular file"):
        cnnfilterdb.open(tmp_path / "pipe.parts.toml")
    with pytest.raises(cnnfilterdb.DatabaseError, match="a list of parts has at most"):
        cnnfilterdb.open(write("#" * (1 << 21)))
    path = tmp_path / "bytes.parts.toml"
    path.write_bytes(b"\xff\xfe")
    with pytest.raises(cnnfilterdb.DatabaseError, match="not TOML"):
        cnnfilterdb.open(path)


@given(content=st.binary(max_size=200))
def test_any_content_is_a_list_or_one_line(content, tmp_path_factory):
    path = tmp_path_factory.mktemp("any") / "x.parts.toml"
    path.write_bytes(content)
    with suppress(cnnfilterdb.DatabaseError):  # and nothing else
        assert PartsList.read(path).parts
