"""What may keep this package from working on a machine: versions, disks, locks, limits, network, speed."""

from __future__ import annotations

import os
import shutil
import sys
import tempfile
import time
from collections.abc import Callable
from contextlib import closing, suppress
from dataclasses import dataclass, replace
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from cnnfilterdb.core import paths
from cnnfilterdb.core.errors import CnnFilterDbError, DatabaseError
from cnnfilterdb.core.locks import acquire
from cnnfilterdb.core.version import package_version
from cnnfilterdb.core.workers import threads

if TYPE_CHECKING:
    from cnnfilterdb.ingest.fetch.download import Session
    from cnnfilterdb.store.folder import Store

__all__ = ["Finding", "doctor"]

_NEEDED = ("duckdb", "pyarrow", "numpy", "numba", "pandas", "fsspec", "huggingface_hub")
_OPTIONAL = ("torch", "timm", "tables", "ray", "s3fs", "adlfs", "aiohttp", "starlette")

_LOW_DISK, _NO_DISK = 5_000_000_000, 200_000_000
_FEW_HANDLES = 1024
_SLOW_SYNC = 0.25  # seconds
_SLOW_SCAN = 1_000_000  # 3x3 kernels per second; two processors of a laptop scan several million
_SCANNED = 2_000_000  # kernels
_SCAN_SECONDS = 5.0
_NETWORK_SECONDS = 5.0

#: File systems of clusters, whose locks depend on how they are mounted.
_SHARED = ("nfs", "nfs4", "lustre", "gpfs", "beegfs", "ceph", "cifs", "smb3", "9p")


@dataclass(frozen=True, slots=True)
class Finding:
    """What one check found.

    Attributes:
        check: What was checked.
        status: ``ok``, ``warning`` (it works, but slowly or not for long) or ``failure`` (it does not work).
        found: What was found.
        remedy: What to do; empty if it is ``ok``.
    """

    check: str
    status: Literal["ok", "warning", "failure"]
    found: str
    remedy: str = ""


def doctor(path: str | Path = "filters.db", *, offline: bool = False) -> list[Finding]:
    """Check whether everything that the package needs works here, and how fast it is.

    In the folder of the database, or in the one where it would be created, files are written, renamed, synchronised and
    locked, and removed again. The package index and the Hub that are configured get one request each.

    Args:
        path: Folder of a database, which need not exist.
        offline: Do not access the network.

    Returns:
        A finding for each check.

    >>> import cnnfilterdb
    >>> findings = cnnfilterdb.doctor(cnnfilterdb.example().path, offline=True)
    >>> [finding.check for finding in findings]
    ['versions', 'processors', 'file handles', 'cache', 'database', 'disk', 'writing', 'locks', 'scan']
    >>> {finding.status for finding in findings if finding.check in ("versions", "database", "writing", "locks")}
    {'ok'}
    """
    folder = Path(path)
    findings = [_versions(), _processors(), _handles(), *_checked("cache", _cache)]
    store = None
    if (folder / paths.MARKER).exists() or not folder.exists():
        findings += _checked("database", lambda: [_database(folder)])
        with suppress(CnnFilterDbError):
            store = _opened(folder)
    else:
        findings.append(Finding("database", "failure", f"{folder}: not a database", "choose another folder with --db"))
    place = next(parent for parent in (folder.absolute(), *folder.absolute().parents) if parent.is_dir())
    findings.append(_disk(place))
    findings += _checked("writing", lambda: _writing(place))
    if not offline:
        findings += [*_checked("package index", _package_index), *_checked("hub", _hub)]
    if store is not None and store.kernels():
        scanned = store
        findings += _checked("scan", lambda: [_scan(scanned)])
    return findings


def _checked(name: str, check: Callable[[], list[Finding]]) -> list[Finding]:
    """The findings of a check; an error that it does not expect is a failure."""
    try:
        return check()
    except Exception as error:
        reason = " ".join(str(error).split()) or type(error).__name__
        return [Finding(name, "failure", reason[:300], "see the message; report it if it does not help")]


def _versions() -> Finding:
    python = ".".join(map(str, sys.version_info[:3]))
    found = [f"cnnfilterdb {package_version()}", f"Python {python}"]
    missing = []
    for name in (*_NEEDED, *_OPTIONAL):
        try:
            found.append(f"{name} {version(name)}")
        except PackageNotFoundError:
            if name in _NEEDED:
                missing.append(name)
    if missing:
        remedy = "install the package again: pip install --force-reinstall cnnfilterdb"
        return Finding("versions", "failure", f"missing: {', '.join(missing)}", remedy)
    return Finding("versions", "ok", ", ".join(found))


def _processors() -> Finding:
    found = f"{threads()} of {os.cpu_count()} processors"
    with suppress(AttributeError, ValueError, OSError):
        page = os.sysconf("SC_PAGE_SIZE")
        total, free = page * os.sysconf("SC_PHYS_PAGES"), page * os.sysconf("SC_AVPHYS_PAGES")
        found += f", {_size(free)} of {_size(total)} memory free"
    load = os.getloadavg()[0] if hasattr(os, "getloadavg") else 0.0
    if load > 2 * (os.cpu_count() or 1):
        return Finding("processors", "warning", f"{found}, load {load:.1f}", "other programs use the processors; wait")
    return Finding("processors", "ok", found)


def _handles() -> Finding:
    try:
        import resource
    except ImportError:  # not on Windows
        return Finding("file handles", "ok", "no limit is known")
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft != resource.RLIM_INFINITY and soft < _FEW_HANDLES:
        remedy = f"raise it: ulimit -n {min(hard, 4096) if hard != resource.RLIM_INFINITY else 4096}"
        return Finding("file handles", "warning", f"at most {soft:,} open files", remedy)
    return Finding("file handles", "ok", f"at most {soft:,} open files")


def _cache() -> list[Finding]:
    from cnnfilterdb.ingest.fetch.cache import Cache

    cache = Cache()
    entries = cache.entries() if cache.folder.exists() else []
    found = f"{cache.folder}: {len(entries):,} files, {_size(sum(entry.bytes for entry in entries))}"
    place = next(parent for parent in (cache.folder.absolute(), *cache.folder.absolute().parents) if parent.is_dir())
    if not os.access(place, os.W_OK):
        return [
            Finding("cache", "failure", f"{found}; cannot be written to", "set CNNFILTERDB_CACHE to another folder")
        ]
    free = shutil.disk_usage(place).free
    if free < _LOW_DISK:
        remedy = "`cnnfilterdb cache clear` deletes the downloads, or set CNNFILTERDB_CACHE to a folder on another disk"
        return [Finding("cache", "warning", f"{found}; {_size(free)} free", remedy)]
    return [Finding("cache", "ok", f"{found}; {_size(free)} free")]


def _opened(folder: Path) -> Store | None:
    from cnnfilterdb.store.folder import Store

    return Store.open(folder) if (folder / paths.MARKER).exists() else None


def _database(folder: Path) -> Finding:
    store = _opened(folder)
    if store is None:
        return Finding("database", "ok", f"{folder}: no database yet")
    models = store.model_ids()
    found = f"{folder}: {len(models):,} models, kernels of {len(store.kernels()):,} sizes"
    left = sorted(path.name for path in (store.path / paths.STAGING).glob("*"))
    if left:
        remedy = "if no other process writes now: the next command that writes tidies up"
        return Finding("database", "warning", f"{found}; {len(left)} changes in progress or interrupted", remedy)
    return Finding("database", "ok", found)


def _disk(place: Path) -> Finding:
    usage = shutil.disk_usage(place)
    found = f"{place}: {_size(usage.free)} of {_size(usage.total)} free"
    if kind := _file_system(place):
        found += f", {kind}"
    if usage.free < _NO_DISK:
        return Finding("disk", "failure", found, "free some space, or choose another folder with --db")
    if usage.free < _LOW_DISK:
        return Finding("disk", "warning", found, "free some space; a thousand models need about 10 GB")
    return Finding("disk", "ok", found)


def _file_system(place: Path) -> str:
    """The kind of file system of a folder; empty where the system does not tell."""
    kind, longest = "", -1
    with suppress(OSError):
        for line in Path("/proc/mounts").read_text(encoding="utf-8", errors="replace").splitlines():
            _, point, name, *_ = line.split(" ")
            point = point.replace("\\040", " ")
            if place.is_relative_to(point) and len(point) > longest:
                kind, longest = name, len(point)
    return kind


def _writing(place: Path) -> list[Finding]:
    """Whether files can be written, renamed, synchronised and locked in a folder, and how long that takes."""
    from cnnfilterdb.core.durable import sync, sync_folder

    remedy = "choose a folder of your own with --db, or check its permissions and the disk"
    try:
        folder = Path(tempfile.mkdtemp(prefix=".cnnfilterdb-doctor-", dir=place))
    except OSError as error:
        return [Finding("writing", "failure", f"{place}: {error.strerror or error}", remedy)]
    try:
        started = time.perf_counter()
        content = os.urandom(1 << 20)
        first, second = folder / "a", folder / "b"
        second.write_bytes(b"")
        first.write_bytes(content)
        sync(first)
        first.rename(second)
        sync_folder(folder)
        seconds = time.perf_counter() - started
        if first.exists() or second.read_bytes() != content:
            return [Finding("writing", "failure", f"{place}: what was written is not what is read", remedy)]
        found = f"{place}: 1 MiB written, renamed and synchronised in {1000 * seconds:.0f} ms"
        slow = Finding("writing", "warning", found, "a local disk is faster; merge parts into one database afterwards")
        return [slow if seconds > _SLOW_SYNC else Finding("writing", "ok", found), _locks(folder, place)]
    except (OSError, DatabaseError) as error:
        return [Finding("writing", "failure", f"{place}: {error}", remedy)]
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _locks(folder: Path, place: Path) -> Finding:
    from filelock import Timeout

    kind = _file_system(place)
    remedy = "let each process write a database of its own (--shard I/N), and merge them"
    target = str(folder / "lock")
    try:
        with acquire(target, 5):
            try:
                with acquire(target, 0):
                    return Finding("locks", "failure", f"{place}: a file was locked twice at a time", remedy)
            except Timeout:
                pass
    except OSError as error:
        return Finding("locks", "failure", f"{place}: cannot lock files ({error})", remedy)
    if kind in _SHARED:
        between = f"check that they hold between nodes ({kind}); if not: {remedy}"
        return Finding("locks", "warning", f"{place}: locks hold on this machine, {kind}", between)
    return Finding("locks", "ok", f"{place}: locks hold")


def _package_index() -> list[Finding]:
    from cnnfilterdb.ingest.fetch.packages import PackageIndex
    from cnnfilterdb.ingest.fetch.pip_settings import read_settings

    index = PackageIndex(replace(read_settings(), retries=0, timeout=_NETWORK_SECONDS))
    if not index.urls:
        return [Finding("package index", "warning", "pip is configured to use none", "check `pip config list`")]
    remedy = "check the network and `pip config list`, or work with --offline"
    return [_reached("package index", index.session, url, remedy) for url in index.urls]


def _hub() -> list[Finding]:
    from cnnfilterdb.ingest.fetch.download import Session
    from cnnfilterdb.ingest.fetch.hugging_face import HuggingFace
    from cnnfilterdb.ingest.fetch.pip_settings import read_settings

    hub = HuggingFace()
    if hub.offline:
        return [Finding("hub", "warning", f"{hub.endpoint}: HF_HUB_OFFLINE is set", "unset it to use the Hub")]
    session = Session(replace(read_settings(), retries=0, timeout=_NETWORK_SECONDS))
    remedy = "check the network and HF_ENDPOINT; only models and releases of the Hub need it"
    return [_reached("hub", session, hub.endpoint, remedy)]


def _reached(check: str, session: Session, url: str, remedy: str) -> Finding:
    """Whether a server answers."""
    from unearth import Link

    from cnnfilterdb.ingest.fetch.download import explain_failure

    session.grace = _NETWORK_SECONDS
    shown = Link(url).redacted  # without a password
    if (link := Link(url)).is_file:
        there = link.file_path.exists()
        return Finding(
            check, "ok" if there else "warning", shown + ("" if there else ": missing"), "" if there else remedy
        )
    started = time.perf_counter()
    try:
        answer = session.head(url)
    except Exception as error:
        return Finding(check, "warning", f"{shown}: {explain_failure(error)}", remedy)
    seconds = time.perf_counter() - started
    return Finding(check, "ok", f"{shown}: answered {answer.status_code} in {1000 * seconds:.0f} ms")


def _scan(store: Store) -> Finding:
    """How many kernels a scan reads in a second, and whether the disk or the processors limit it."""
    from cnnfilterdb.scan.scan import scan

    kernel = "3x3" if "3x3" in store.kernels() else store.kernels()[0]
    files = sorted(store.filter_files(kernel), key=lambda file: file.stat().st_size, reverse=True)

    def rate() -> tuple[int, float]:
        counts: list[int] = []
        started = time.perf_counter()
        with closing(scan(files, kernel, len, progress=counts.append)) as results:
            for _ in results:
                if sum(counts) >= _SCANNED or time.perf_counter() - started > _SCAN_SECONDS:
                    break
        return sum(counts), time.perf_counter() - started

    filters, seconds = rate()
    again, warm = rate()
    found = f"{filters:,} {kernel} kernels read at {_rate(filters, seconds)}, again at {_rate(again, warm)}"
    if filters < _SCANNED // 10:  # too few to tell
        return Finding("scan", "ok", found)
    if again / warm < _SLOW_SCAN:
        remedy = "the processors limit it: give more threads, or wait until other programs have ended"
        return Finding("scan", "warning", found, remedy)
    if filters / seconds < _SLOW_SCAN:
        return Finding("scan", "warning", found, "the disk limits it: copy the database to a local one")
    return Finding("scan", "ok", found)


def _rate(filters: int, seconds: float) -> str:
    return f"{filters / max(seconds, 1e-9) / 1e6:.1f} million per second"


def _size(count: float) -> str:
    for unit in ("bytes", "kB", "MB", "GB"):
        if count < 1000 or unit == "GB":
            return f"{count:,.0f} {unit}" if unit == "bytes" else f"{count:,.1f} {unit}"
        count /= 1000
    raise AssertionError
