"""What goes wrong between here and the Hub, and that a token is never shown."""

import logging
import traceback

import pytest

from cnnfilterdb.core.errors import PublishError
from cnnfilterdb.publish import hub as publishing

TOKEN = "hf_secretsecret"
REPO = "owner/kernels"
ONE = [["custom/a", "custom/b"], ["custom/c"]]
TWO = [*ONE, ["custom/d"]]
NOTHING = ([".gitattributes"], {})

# Every kind of request of an upload
REQUESTS = [
    "GET /api/whoami-v2",
    "GET .*/refs",
    "POST /api/repos/create",
    "POST /api/validate-yaml",
    "POST .*/branch/release-v1.0.0",
    "GET .*/tree/",
    "POST .*/preupload/release-v1.0.0",
    "POST .*/info/lfs/objects/batch",
    "PUT /lfs/",
    "POST /api/lfs-verify/",
    "POST .*/commit/release-v1.0.0",
    "POST .*/paths-info/main",
    "POST .*/preupload/main",
    "POST .*/commit/main",
    "POST .*/tag/",
    "DELETE .*/branch/release-v1.0.0",
]


def is_published(hub, release, tag="v1.0.0"):
    found = hub.repos[REPO].files(tag)
    folder = release[0]
    return all(found[path.relative_to(folder).as_posix()] == path.read_bytes() for path in folder.rglob("*.*"))


@pytest.mark.parametrize("request_", REQUESTS)
@pytest.mark.parametrize(
    "fault",
    [{"status": 429, "headers": {"Retry-After": "0"}}, {"status": 500}, {"lost": True}],
    ids=["429", "500", "lost"],
)
def test_what_passes_is_repeated(hub, make, publish, request_, fault):
    """Also where a request did what it was to do, and only its answer was lost."""
    release = make(ONE, number=64)
    hub.fail(request_, times=2, **fault)
    published = publish(release)
    # A commit is looked for before it is repeated
    assert hub.faults[0].times == (1 if "lost" in fault and "/commit/" in request_ else 0)
    assert is_published(hub, release)
    repo = hub.repos[REPO]
    assert repo.tags == {"v1.0.0": published.commit}
    assert repo.branches == {"main": published.commit}
    assert len(hub.waits) <= 2
    assert all(wait <= 2 for wait in hub.waits)
    # Nothing was done twice: the first commit, that of the branch, that of main
    assert len(repo.commits) == 3


@pytest.mark.parametrize("request_", REQUESTS[:-1])
def test_what_does_not_pass_is_reported(hub, make, publish, state, request_):
    release = make(ONE, number=64)
    hub.fail(request_, times=100, status=503)
    with pytest.raises(PublishError, match=r"^owner/kernels: http://.* answered 503; wait a while, then run it again"):
        publish(release)
    # Six times, by each of five threads where it is about a large file
    threads = 5 if "/lfs" in request_ else 1
    assert 100 - hub.faults[0].times <= 6 * threads + 6
    assert sum(hub.waits) <= 23 * threads
    known = state()
    assert known is None or known[1] == {}
    assert known in (None, NOTHING) or "tag" in request_
    hub.faults.clear()
    publish(release)
    assert is_published(hub, release)


def test_a_branch_that_cannot_be_deleted_is_no_failure(hub, make, publish, caplog):
    hub.fail("DELETE", times=100, status=500)
    publish(make(ONE))
    assert "the branch release-v1.0.0 is left over" in caplog.text
    assert hub.repos[REPO].tags.keys() == {"v1.0.0"}


def test_the_server_says_how_long_to_wait(hub, make, publish):
    hub.fail("GET .*/refs", status=429, headers={"Retry-After": "17"})
    hub.fail("POST .*/tag/", status=429, headers={"RateLimit": '"api";r=0;t=33'})
    hub.fail("GET /api/whoami-v2", status=503, headers={"Retry-After": "100000"})
    publish(make(ONE))
    assert sorted(hub.waits) == [17, 33, 300]


def test_an_upload_that_breaks_is_resumed(hub, make, publish, state):
    folder, manifest = make(TWO)
    sizes = {file.path: file.bytes for file in manifest.files}
    large = sum(sizes.values()) + (folder / "shift.png").stat().st_size
    cut = next(file for file in manifest.files if file.path == "filters_3x3/00001.parquet")
    hub.fail(f"PUT /lfs/{cut.sha256}", times=6, cut=50_000)
    with pytest.raises(
        PublishError, match=r"the connection to http://\S+ broke \(.*\); run it again: nothing is sent twice"
    ):
        publish((folder, manifest))
    assert [put.received for put in hub.asked(f"PUT /lfs/{cut.sha256}")] == [50_000] * 6
    assert state() == NOTHING
    assert hub.repos[REPO].branches.keys() == {"main", "release-v1.0.0"}
    arrived = hub.received("PUT /lfs/") - 6 * 50_000
    assert arrived <= large - cut.bytes
    published = publish((folder, manifest))
    assert hub.received("PUT /lfs/") - 6 * 50_000 == large
    assert hub.received(f"PUT /lfs/{cut.sha256}") == 6 * 50_000 + cut.bytes
    assert is_published(hub, (folder, manifest))
    assert hub.repos[REPO].branches == {"main": published.commit}


def test_batches_arrive_one_by_one(hub, make, publish, monkeypatch):
    monkeypatch.setattr(publishing, "_BATCH_FILES", 2)
    folder, manifest = make(TWO)
    last = manifest.of("filters_3x3")[-1]
    hub.fail(f"PUT /lfs/{last.sha256}", times=6, cut=10)
    calls = []
    with pytest.raises(PublishError, match="broke"):
        publish((folder, manifest), progress=lambda *call: calls.append(call))
    assert calls == [("upload", done, 8) for done in (0, 2, 4)]
    before = hub.received("PUT /lfs/")
    publish((folder, manifest))
    assert hub.received("PUT /lfs/") - before == last.bytes + (folder / "shift.png").stat().st_size
    monkeypatch.undo()
    monkeypatch.setattr(publishing, "_BATCH_BYTES", 1)
    assert [len(batch) for batch in publishing._batches(publishing.release_files(folder, manifest))] == [1] * 8


def test_what_a_cut_run_committed_to_its_branch_is_taken(hub, make, publish, state):
    release = make(ONE)
    hub.fail("POST .*/commit/main", times=100, status=500)
    with pytest.raises(PublishError, match="answered 500"):
        publish(release)
    assert state() == NOTHING
    hub.faults.clear()
    hub.repos[REPO].push({"LICENSE": b"MIT"})
    asked = len(hub.requests)
    publish(release)
    later = [f"{one.method} {one.path}" for one in hub.requests[asked:]]
    assert not [one for one in later if "/lfs" in one or ("/branch/" in one and "POST" in one)]
    assert hub.repos[REPO].files()["LICENSE"] == b"MIT"
    assert is_published(hub, release)


def test_a_branch_of_another_build_is_updated(hub, make, publish):
    hub.fail("POST .*/commit/main", times=100, status=500)
    with pytest.raises(PublishError, match="answered 500"):
        publish(make(TWO))
    hub.faults.clear()
    release = make([["custom/x"]], name="again")
    publish(release)
    assert is_published(hub, release)
    assert len([path for path in hub.repos[REPO].at("v1.0.0").entries if path.startswith("filters")]) == 1


def test_somebody_else_changes_main_meanwhile(hub, make, publish, state):
    publish(make(ONE))
    release = make(TWO, "1.1.0")
    hub.fail("POST .*/commit/main", action=lambda: hub.repos[REPO].push({"README.md": b"theirs"}))
    with pytest.raises(
        PublishError, match="another client changed main meanwhile, and nothing of this release is visible"
    ):
        publish(release)
    repo = hub.repos[REPO]
    assert repo.tags.keys() == {"v1.0.0"}
    assert repo.files()["README.md"] == b"theirs"
    assert "filters_3x3/00002.parquet" not in repo.at("main").entries
    before = hub.received("PUT /lfs/")
    publish(release)
    assert hub.received("PUT /lfs/") == before
    assert is_published(hub, release, "v1.1.0")


def test_somebody_else_publishes_the_same_version_meanwhile(hub, make, publish):
    release = make(ONE)
    hub.fail("POST .*/commit/release-v1.0.0", action=lambda: hub.repos[REPO].push({"x": b"x"}, "release-v1.0.0"))
    with pytest.raises(PublishError, match=r"another client changed release-v1.0.0 meanwhile"):
        publish(release)
    hub.fail("POST .*/tag/", action=lambda: hub.repos[REPO].tags.update({"v1.0.0": "0" * 40}))
    with pytest.raises(
        PublishError, match=r"another client tagged v1.0.0 meanwhile; run it again with another version"
    ):
        publish(release)


def test_an_object_that_is_not_there_is_no_file(hub, loopback):
    """As on the real Hub: a commit cannot refer to content that never came."""
    repo = hub.create(REPO)
    line = {"key": "lfsFile", "value": {"path": "x.parquet", "oid": "0" * 64, "size": 3}}
    with pytest.raises(loopback.HubError) as caught:
        repo.commit("main", [{"key": "header", "value": {"summary": "x"}}, line])
    assert caught.value.status == 400


# ------------------------------------------------------------------------------------------------------------ secrecy


def everything(error):
    """All that can be read of an error: its texts, and those of what it came from."""
    seen, pending, texts = set(), [error], []
    while pending:
        one = pending.pop()
        if one is not None and id(one) not in seen:
            seen.add(id(one))
            texts += [str(one), repr(one), repr(vars(one)), *map(str, getattr(one, "__notes__", []))]
            texts += traceback.format_exception(one)
            pending += [one.__cause__, one.__context__]
    return "\n".join(texts)


def ways_to_fail():
    echo = f'{{"error": "no {TOKEN} here"}}'.encode()
    for status in (400, 401, 403, 404, 409, 412, 418, 429, 500):
        yield {"status": status}
        # A server that repeats the token
        yield {"status": status, "body": echo, "headers": {"X-Error-Message": f"bad {TOKEN}"}}
    yield {"status": 200, "body": b"<html>a login page</html>"}
    yield {"status": 200, "body": b"{}"}
    yield {"lost": True}


@pytest.mark.parametrize("request_", REQUESTS[:-1])
def test_a_token_is_never_shown(hub, make, publish, request_, caplog, capfd):
    errors = []
    for number, fault in enumerate(ways_to_fail()):
        # What the libraries below log about their work at level DEBUG has the headers of answers in it
        caplog.set_level(logging.INFO if "body" in fault else logging.DEBUG)
        release = make([[f"custom/{number}"]], name=f"release-{number}", number=16)
        hub.faults.clear()
        hub.fail(request_, times=10**6, **fault)
        try:
            publish(release, f"owner/kernels-{number}")
        except PublishError as error:
            errors.append(error)
        for path in release[0].rglob("*.*"):
            assert TOKEN.encode() not in path.read_bytes()
    assert len(errors) > 12
    for error in errors:
        assert TOKEN not in everything(error)
        assert error.__cause__ is None
        assert "\n" not in str(error)
    out = capfd.readouterr()
    assert TOKEN not in caplog.text + out.out + out.err
    assert any(one.authorization == f"Bearer {TOKEN}" for one in hub.requests)


def test_no_server(hub, make, publish):
    hub.close()
    with pytest.raises(PublishError, match=r"http://127.0.0.1:\d+ cannot be reached") as caught:
        publish(make(ONE))
    assert TOKEN not in everything(caught.value)
    assert sum(hub.waits) < 60
