import json

import pytest

from cnnfilterdb.core.errors import PublishError
from cnnfilterdb.core.paths import MARKER
from cnnfilterdb.core.schema import FORMAT_VERSION
from cnnfilterdb.publish import hub as publishing
from cnnfilterdb.publish.hub import Released

TOKEN = "hf_secretsecret"
REPO = "owner/kernels"
ONE = [["custom/a", "custom/b"], ["custom/c"]]
TWO = [*ONE, ["custom/d"]]
# Of a table with the manifest, the card, the picture
TEXTS = [MARKER, "README.md", "shift.png"]


def contents(folder):
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def parquet_bytes(manifest, *without):
    return sum(file.bytes for file in manifest.files if file.path not in without)


def test_a_release_in_a_new_repository(hub, make, publish):
    folder, manifest = make(ONE)
    calls = []
    published = publish((folder, manifest), progress=lambda *call: calls.append(call))
    repo = hub.repos[REPO]
    commit = repo.tags["v1.0.0"]
    assert (published.repo, published.tag, published.commit) == (REPO, "v1.0.0", commit)
    assert published.url == f"{hub.url}/datasets/owner/kernels/tree/v1.0.0"
    assert repo.branches == {"main": commit}
    found = repo.files("v1.0.0")
    assert found.pop(".gitattributes")
    assert found == contents(folder)
    # One commit on main
    assert repo.commits[repo.commits[commit].parent].title == "initial commit"
    # All Parquet is large, and was sent once, without the token, which is not for the store
    entries = repo.at("main").entries
    assert {file.path: file.sha256 for file in manifest.files} == {
        path: entry.sha256 for path, entry in entries.items() if path.endswith(".parquet")
    }
    puts = hub.asked("PUT /lfs/")
    picture = (folder / "shift.png").stat().st_size
    assert hub.received("PUT /lfs/") == parquet_bytes(manifest) + picture
    assert not any(put.authorization for put in puts)
    assert (published.new_files, published.unchanged_files) == (len(manifest.files) + 3, 0)
    assert published.uploaded_bytes == sum(map(len, contents(folder).values()))
    assert calls[0] == ("upload", 0, 7)
    assert calls[-1] == ("upload", 7, 7)
    assert hub.waits == []


def test_no_reader_sees_half_a_release(hub, make, publish, state):
    publish(make(ONE))
    old = state()
    seen = []
    hub.fail(".", times=10**6, action=lambda: seen.append(state()))
    publish(make(TWO, "1.1.0"))
    new = state()
    without_tag = (new[0], old[1])
    states = [one for i, one in enumerate(seen) if i == 0 or one != seen[i - 1]]
    assert states == [old, without_tag, new]


def test_a_second_release_sends_what_is_new(hub, make, publish):
    first = publish(make(ONE))
    before = hub.received("PUT /lfs/")
    folder, manifest = make(TWO, "1.1.0")
    second = publish((folder, manifest))
    # Shards of filters stay as they are; the tables of all models change
    assert {file.path for file in manifest.files} - {"filters_3x3/00000.parquet", "filters_3x3/00001.parquet"} == {
        "filters_3x3/00002.parquet",
        "models/00000.parquet",
        "layers/00000.parquet",
    }
    new = parquet_bytes(manifest, "filters_3x3/00000.parquet", "filters_3x3/00001.parquet")
    assert hub.received("PUT /lfs/") - before == new + (folder / "shift.png").stat().st_size
    # The card is the same
    assert (second.new_files, second.unchanged_files) == (5, 3)
    assert second.uploaded_bytes == new + sum((folder / name).stat().st_size for name in ("shift.png", MARKER))
    repo = hub.repos[REPO]
    assert repo.tags == {"v1.0.0": first.commit, "v1.1.0": second.commit}
    assert repo.commits[second.commit].parent == first.commit
    for version, kept in (("1.0.0", "v1.0.0"), ("1.1.0", "v1.1.0")):
        found = repo.files(kept)
        del found[".gitattributes"]
        assert found == contents(folder.with_name(f"release-{version}"))


def test_shards_that_only_move_are_not_sent(hub, make, publish):
    publish(make(ONE))
    before = hub.received("PUT /lfs/")
    folder, manifest = make([["custom/0"], *ONE], "1.1.0")
    published = publish((folder, manifest))
    moved = ("filters_3x3/00001.parquet", "filters_3x3/00002.parquet")
    assert hub.received("PUT /lfs/") - before == parquet_bytes(manifest, *moved) + len(b"\x89PNG\r\n\x1a\n1.1.0")
    assert published.uploaded_bytes < parquet_bytes(manifest, *moved) + 10_000
    assert hub.repos[REPO].files()["filters_3x3/00002.parquet"] == (folder / moved[1]).read_bytes()


def test_stale_files_go_and_those_of_others_stay(hub, make, publish):
    folder, manifest = make(TWO)
    (folder / "init.sql").write_text("SELECT 1;")
    publish((folder, manifest))
    hub.repos[REPO].push({"notes/readers.md": b"mine", "init.sql": b"SELECT 2;"})
    folder, manifest = make([ONE[0]], "2.0.0")
    publish((folder, manifest))
    found = hub.repos[REPO].files()
    assert found.pop("notes/readers.md") == b"mine"
    assert found.pop(".gitattributes")
    assert found == contents(folder)


def test_a_repository_that_exists(hub, make, publish):
    repo = hub.create(REPO)
    old = repo.push({"README.md": b"soon\n", "LICENSE": b"MIT\n"})
    published = publish(make(ONE), private=False)
    assert repo.commits[published.commit].parent == old
    assert repo.files()["LICENSE"] == b"MIT\n"
    assert repo.files()["README.md"].startswith(b"---\nlicense")
    assert not hub.asked("POST /api/repos/create")


def test_a_repository_of_another_data_set_is_left_alone(hub, make, publish, state):
    hub.create(REPO).push({"data/train.parquet": b"PAR1", "README.md": b"mine"})
    before = state()
    with pytest.raises(PublishError, match=r"contains another data set \(data/train.parquet, and no cnnfilter"):
        publish(make(ONE))
    assert state() == before
    assert hub.repos[REPO].branches.keys() == {"main"}


def test_a_repository_without_main(hub, make, publish):
    hub.create(REPO).branches.clear()
    with pytest.raises(PublishError, match="has no branch main"):
        publish(make(ONE))


def test_private(hub, make, publish):
    publish(make(ONE), private=True)
    assert hub.repos[REPO].private
    publish(make(ONE, "1.1.0"), private=True)
    hub.create("owner/public")
    with pytest.raises(PublishError, match="a public data set; make it private"):
        publish(make(ONE), "owner/public", private=True)


def test_a_gated_repository_of_ones_own(hub, make, publish):
    hub.create(REPO, gated=True)
    assert publish(make(ONE)).tag == "v1.0.0"


def test_releases_and_versions(hub, make, publish):
    known = {"token": TOKEN, "endpoint": hub.url}
    assert publishing.next_version(REPO, **known) == "1.0.0"
    with pytest.raises(PublishError, match="no such data set"):
        publishing.releases(REPO, **known)
    repo = hub.create(REPO)
    assert publishing.releases(REPO, **known) == []
    assert publishing.next_version(REPO, **known) == "1.0.0"
    first = publish(make(ONE, "1.9.1"))
    second = publish(make(TWO, "1.10.0"))
    repo.tags |= {"draft": first.commit, "1.11.0": first.commit, "v2": first.commit, "v1.2": first.commit}
    assert publishing.releases(REPO, endpoint=hub.url) == [
        Released("v1.10.0", (1, 10, 0), second.commit),
        Released("v1.9.1", (1, 9, 1), first.commit),
    ]
    assert publishing.next_version(REPO, **known) == "1.11.0"
    asked = len(hub.requests)
    with pytest.raises(PublishError, match=r"v1.9.1 is already published; the next free version is 1.11.0"):
        publish(make(TWO, "1.9.1", name="again"))
    assert {one.method for one in hub.requests[asked:]} == {"GET"}


def test_private_releases_need_the_token(hub, make, publish):
    publish(make(ONE), private=True)
    with pytest.raises(PublishError, match="or a private one"):
        publishing.releases(REPO, endpoint=hub.url)
    assert publishing.next_version(REPO, endpoint=hub.url) == "1.0.0"
    assert publishing.next_version(REPO, endpoint=hub.url, token=TOKEN) == "1.1.0"


# ------------------------------------------------------------------------------------------------------------ refusals


@pytest.mark.parametrize(
    "name", ["kernels", "a/b/c", "owner/ker nels", "owner/", "/kernels", "owner/a..b", "owner/x.git"]
)
def test_what_is_no_repository(hub, make, publish, name):
    with pytest.raises(PublishError, match="expected owner/name"):
        publish(make(ONE), name)
    assert hub.requests == []


def test_what_is_no_hub(make):
    folder, manifest = make(ONE)
    with pytest.raises(PublishError, match="'nowhere' is not the address of a Hub"):
        publishing.upload(folder, manifest, REPO, token=TOKEN, endpoint="nowhere")


def test_tokens(hub, loopback, make, publish, state, monkeypatch):
    release = make(ONE)
    with pytest.raises(PublishError, match="needs a token with write access; create one at"):
        publish(release, token=None)
    for odd in ("hf_sécret", "hf_a b"):
        with pytest.raises(PublishError, match="characters that no token has") as caught:
            publish(release, token=odd)
        assert odd not in str(caught.value)
    assert hub.requests == []
    hub.tokens |= {
        "hf_old": loopback.Token(expired=True),
        "hf_reader": loopback.Token(role="read"),
        "hf_other": loopback.Token(user="other"),
    }
    for token, reason in (
        ("hf_unknown", "the token is refused"),
        ("hf_old", "the token is refused.*create another at"),
        ("hf_reader", "the token may only read; create one with write access"),
        ("hf_other", "the token may not do this: You don't have the rights"),
    ):
        with pytest.raises(PublishError, match=reason):
            publish(release, token=token)
        assert state() is None
    hub.create(REPO)
    with pytest.raises(PublishError, match="the token may not do this"):
        publish(release, token="hf_other")
    hub.create("owner/secret", private=True)
    with pytest.raises(PublishError, match="the token may not do this"):
        publish(release, "owner/secret", token="hf_other")
    # Blanks around it come from copying; and the one of the environment is taken
    monkeypatch.setenv("HF_TOKEN", f" {TOKEN}\n")
    assert publish(release, token=None).tag == "v1.0.0"


def test_an_expired_token_on_the_way(hub, loopback, make, publish, state):
    def expire():
        hub.tokens[TOKEN] = loopback.Token(expired=True)

    hub.fail("POST .*/commit/release-v1.0.0", action=expire)
    with pytest.raises(PublishError, match="the token is refused"):
        publish(make(ONE))
    assert state() == ([".gitattributes"], {})


def test_folders_that_are_no_release(hub, make, publish, changed):
    folder, manifest = make(ONE)
    models = "models/00000.parquet"
    cases = [
        (changed(manifest, models, bytes=1), "not the manifest of this release"),
        (manifest, "expected .* bytes, found no such file; build the release again"),
        (manifest, "expected .* bytes, found 5; build"),
        (manifest, "extra.parquet: not in the manifest"),
        (manifest, r"not a release \(.*cnnfilterdb.json: the marker of a database folder"),
        (manifest, r"not a release \(.*No such file"),
    ]
    original = (folder / models).read_bytes()
    for number, (stated, reason) in enumerate(cases):
        if number == 1:
            (folder / models).unlink()
        elif number == 2:
            (folder / models).write_bytes(b"short")
        elif number == 3:
            (folder / models).write_bytes(original)
            (folder / "models/extra.parquet").write_bytes(b"PAR1")
        elif number == 4:
            (folder / MARKER).write_text(json.dumps({"format_version": FORMAT_VERSION}))
        elif number == 5:
            (folder / MARKER).unlink()
        with pytest.raises(PublishError, match=reason):
            publish((folder, stated))
    assert hub.requests == []


def test_content_that_is_not_that_of_the_manifest(hub, make, publish, state):
    folder, manifest = make(ONE)
    path = folder / "models/00000.parquet"
    path.write_bytes(bytes(path.stat().st_size))
    with pytest.raises(
        PublishError, match=r"models/00000.parquet: expected \d+ bytes with SHA-256 \w{64}, found \d+ with"
    ):
        publish((folder, manifest))
    assert state() == ([".gitattributes"], {})


def test_a_card_that_the_hub_refuses(hub, make, publish, state):
    with pytest.raises(PublishError, match=r"README.md: .* answered 400: .*; correct it and run again"):
        publish(make(ONE, card="---\nconfigs: [\n---\n"))
    assert state() == ([".gitattributes"], {})
    assert not hub.asked("PUT /lfs/")


def test_what_the_server_says_is_compared(hub, make, publish, state):
    release = make(ONE)
    hub.false_listings["filters_3x3/00001.parquet"] = {"size": 3, "lfs": {"size": 3}}
    with pytest.raises(PublishError, match=r"branch release-v1.0.0: differs from what was sent: filters_3x3/00001"):
        publish(release)
    assert state() == ([".gitattributes"], {})
    hub.false_listings["filters_3x3/00001.parquet"] = {"lfs": {"oid": "0" * 64}}
    with pytest.raises(PublishError, match=r"found \d+ with digest 0{64}; nothing was tagged; run it again"):
        publish(release)
    assert state() == ([".gitattributes"], {})
    hub.false_listings.clear()
    # On main, after its commit: no tag
    hub.fail("POST .*/commit/main", action=lambda: hub.false_listings.update({"README.md": {"oid": "0" * 40}}))
    with pytest.raises(PublishError, match=r"^owner/kernels: differs from what was sent: README.md"):
        publish(release)
    assert hub.repos[REPO].tags == {}
    hub.false_listings.clear()
    commits = len(hub.repos[REPO].commits)
    publish(release)
    assert hub.repos[REPO].tags.keys() == {"v1.0.0"}
    assert len(hub.repos[REPO].commits) == commits


def test_parquet_that_is_not_large(hub, make, publish):
    """Where .gitattributes does not name them, small files are objects of git."""
    repo = hub.create(REPO)
    repo.push({".gitattributes": b""})
    publish(make(ONE, number=64))
    folder, manifest = make(TWO, "1.1.0", number=64)
    published = publish((folder, manifest))
    assert not any(entry.sha256 for entry in repo.at("main").entries.values())
    found = repo.files()
    del found[".gitattributes"]
    assert found == contents(folder)
    assert published.unchanged_files == 3
    path = folder / "models/00000.parquet"
    path.write_bytes(bytes(path.stat().st_size))
    hub.create("owner/second").push({".gitattributes": b""})
    with pytest.raises(PublishError, match="its SHA-256 is no longer"):
        publish((folder, manifest), "owner/second")
