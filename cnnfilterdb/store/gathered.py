"""Gathered tables: the small tables of many models in a few files, so that a question does not open thousands.

::

    .gathered/<name>/models.parquet, layers.parquet, fingerprints.parquet
    .gathered/<name>/histograms-<basis id>.parquet
    .gathered/<name>/totals-<basis id>.parquet   histograms of whole models (:mod:`cnnfilterdb.store.totals`)
    .gathered/<name>/members.json          the models, each with the stamp of its models row; these files

They are copies, made by writers, and can be deleted at any time. A query uses them only if the models row of every
member is the one that was copied: the same inode, time and size, by which a query also notices that a model was
replaced (:mod:`cnnfilterdb.scan.steady`). Everything else of a model changes with its row, or carries the hash of its
weights, as histograms do. All other models are read from their own files, which ``init.sql`` always reads.

A folder that was copied, or comes from somebody else, has other inodes, so what was gathered there is not used; the
next writer gathers it again.
"""

from __future__ import annotations

import json
import math
import secrets
import shutil
import stat
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import cache, lru_cache, partial
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from cnnfilterdb.analysis.storage import Totals
from cnnfilterdb.core import paths
from cnnfilterdb.core.durable import sha256, sync, sync_folder, writing
from cnnfilterdb.core.errors import CnnFilterDbError, CorruptError, DatabaseError
from cnnfilterdb.core.listing import entries
from cnnfilterdb.core.recipes import RECIPES
from cnnfilterdb.core.reports import first_line
from cnnfilterdb.core.schema import FINGERPRINTS, HISTOGRAMS, LAYERS, MODELS, TOTALS
from cnnfilterdb.store.regular import Stamp, check_size, read_small, require_regular, stamp_of
from cnnfilterdb.store.totals import TotalsFile
from cnnfilterdb.store.writer import HISTOGRAM_ENCODING

__all__ = ["LEAST", "Chunk", "Gathered"]

#: Models that are read one by one before they are gathered.
LEAST = 64

# Bytes of a list of members at most: it is read into memory, perhaps from somebody else's folder
_LARGEST = 8 << 20

# Models of a folder at most; rows and bytes of a row group, about
_MOST, _ROWS, _BYTES = 4096, 20_000, 16 << 20

#: The stamp of the models row of each present model, by the name of its files.
Stamps = Mapping[str, Stamp]


@dataclass(frozen=True)
class Chunk:
    """A folder of gathered tables.

    Attributes:
        name: Name of the folder.
        members: The models: the name of their files, and the stamp of the models row that was copied.
        tables: Name of each table -> its path, relative to the database.
        covered: Name of each table -> the members that had rows of it. Those of others, such as histograms, may be
            computed later.
        states: Path of each table -> its stamp and the SHA-256 of its content, when it was written.
    """

    name: str
    members: Stamps
    tables: Mapping[str, str]
    covered: Mapping[str, frozenset[str]]
    states: Mapping[str, tuple[Stamp, str]]


class Gathered:
    """The gathered tables of a database folder.

    Args:
        root: The folder.
    """

    def __init__(self, root: Path) -> None:
        self._root = root
        self._doubted = False

    def doubt(self, error: Exception) -> bool:
        """Stop using what is gathered if an error may come from it; True if asking again may help."""
        found = not self._doubted and (isinstance(error, DatabaseError) or f"/{paths.GATHERED}/" in str(error))
        self._doubted = self._doubted or found
        return found and bool(self.chunks())

    # ------------------------------------------------------------------------------------------------ read

    def chunks(self) -> list[Chunk]:
        """All folders whose files are as they were written, the largest first, and of equal ones the newest."""
        found = list[tuple[int, int, Chunk]]()
        for path, entry, linked in entries(self._root, paths.members_path("*")):
            with suppress(OSError):
                status = entry.stat(follow_symlinks=False)
                wrong = linked or status.st_size > _LARGEST
                chunk = None if wrong else _chunk(self._root, path, status.st_ino, status.st_mtime_ns)
                if chunk and all(_stamp(self._root / table) == stamp for table, (stamp, _) in chunk.states.items()):
                    found.append((len(chunk.members), status.st_mtime_ns, chunk))
        return [chunk for *_, chunk in sorted(found, key=lambda one: one[:2], reverse=True)]

    def current(self, stamps: Stamps) -> list[Chunk]:
        """Those of which every model is the one that was copied, and in no larger one of them."""
        found: list[Chunk] = []
        seen: set[str] = set()
        for chunk in () if self._doubted else self.chunks():
            if chunk.members.items() <= stamps.items() and seen.isdisjoint(chunk.members):
                seen.update(chunk.members)
                found.append(chunk)
        return found

    def files(self, stamps: Stamps, bases: Iterable[str]) -> dict[str, dict[str, int]]:
        """The files of each small table, relative to the database, and of how many models each may be.

        Args:
            stamps: Those of all files in ``models/`` that are read, which may be more than the models.
            bases: Keys of the bases whose histograms are listed.

        Returns:
            Name of the table -> its files; empty if nothing is gathered, and patterns name all files.
        """
        chunks = self.current(stamps)
        if not chunks:
            return {}
        found = {}
        for table, place in _tables(bases).items():
            gathered = [chunk for chunk in chunks if table in chunk.tables]
            names = set(stamps) if table in (paths.MODELS, paths.LAYERS) else _stems(self._root, place)
            if table == paths.LAYERS:
                names = {name for name in names if paths.is_slug(name)}
                names |= {paths.EMPTY} if (self._root / place(paths.EMPTY)).exists() else set()
            own = names.difference(*(chunk.covered[table] for chunk in gathered))
            found[table] = dict.fromkeys(map(place, sorted(own)), 1)
            found[table] |= {chunk.tables[table]: len(chunk.members) for chunk in gathered}
        return found

    def totals(self, stamps: Stamps, basis_id: str) -> Totals | None:
        """The files that questions about whole models read, relative to the database; None if nothing is gathered.

        Args:
            stamps: As in :meth:`files`.
            basis_id: Key of the basis.
        """
        table = paths.totals_table(basis_id)
        gathered = [chunk for chunk in self.current(stamps) if table in chunk.tables]
        if not gathered:
            return None
        own = sorted(set(filter(paths.is_slug, stamps)).difference(*(chunk.covered[table] for chunk in gathered)))
        place = partial(paths.histograms_path, basis_id)
        there = _stems(self._root, place) if own else set()
        return Totals(
            totals=tuple(chunk.tables[table] for chunk in gathered),
            layers=tuple(map(paths.layers_path, own)),
            histograms=(
                *(place(slug) for slug in own if slug in there),
                paths.histograms_path(paths.EMPTY, paths.EMPTY),
            ),
        )

    def damage(self, stamps: Stamps) -> dict[str, str]:
        """What is wrong with the files that queries use: path, relative to the database -> what was found."""
        return {
            path: "its content has changed"
            for chunk in self.current(stamps)
            for path, (_, digest) in chunk.states.items()
            if sha256(self._root / path) != digest
        }

    # ----------------------------------------------------------------------------------------------- write

    def wanted(self, stamps: Stamps, bases: Sequence[str]) -> list[str]:
        """The models to gather now, sorted: none while few are not; otherwise with those of smaller folders."""
        there = cache(partial(_stems, self._root))
        tables = _tables(bases)
        kept = [
            chunk
            for chunk in self.current(stamps)
            if all(
                len(covered := chunk.covered.get(table, frozenset())) == len(chunk.members)
                or (there(of) & chunk.members.keys()) <= covered
                for table, of in tables.items()
            )
            and all(paths.totals_table(basis_id) in chunk.tables for basis_id in _bases_in(chunk.tables))
        ]
        own = set(filter(paths.is_slug, stamps)).difference(*(chunk.members for chunk in kept))
        if len(own) < LEAST:
            return []
        for chunk in reversed(kept):
            if len(chunk.members) <= min(2 * len(own), _MOST - len(own)):
                own.update(chunk.members)
        return sorted(own)

    def write(self, slugs: Sequence[str], stamps: Stamps, bases: Iterable[str], staging: Path) -> None:
        """Gather models, in folders that appear as a whole, and remove the folders that they replace.

        Args:
            slugs: The models, sorted.
            stamps: Taken before any file of them is read.
            bases: Keys of all bases.
            staging: A folder on the same file system, of which this process holds the lock.

        Raises:
            DatabaseError: The disk is full, or a file of a model cannot be read.
        """
        tables = _tables(bases)
        with writing(self._root):
            if self._doubted:
                self._remove(set())
            (self._root / paths.GATHERED).mkdir(exist_ok=True)
            for start in range(0, len(slugs), _MOST):
                part = slugs[start : start + _MOST]
                place = staging / secrets.token_hex(8)
                place.mkdir()
                files = self._copy(part, tables, place)
                members = place / paths.MEMBERS
                members.write_text(json.dumps({"members": {slug: stamps[slug] for slug in part}, "files": files}))
                sync(members)
                sync_folder(place)
                place.rename(self._root / paths.gathered_folder(place.name))
                sync_folder(self._root / paths.GATHERED)
            self._doubted = False
            self.tidy(stamps)

    def _copy(
        self, slugs: Sequence[str], tables: Mapping[str, Callable[[str], str]], place: Path
    ) -> dict[str, tuple[Stamp | None, str, list[int]]]:
        """Write the tables of some models into a folder: name of each file -> its stamp, hash and models."""
        files = {}

        def wrote(path: Path, covered: list[int]) -> None:
            sync(path)
            files[path.name] = (_stamp(path), sha256(path), covered)

        for table, of in tables.items():
            path, covered = place / f"{table}.parquet", list[int]()
            rows = _rows(self._root, map(of, slugs), _schema(table), covered)
            if basis_ids := _bases_in([table]):
                totals = TotalsFile(place, basis_ids[0])
                # Counts take a quarter less time to read with LZ4, which makes their file a quarter larger.
                if _write(path, map(_by_recipe, totals.added(rows)), compression="lz4", **HISTOGRAM_ENCODING):
                    wrote(path, covered)
                    without = totals.without()
                    wrote(totals.path, [number for number, slug in enumerate(slugs) if slug not in without])
                else:
                    totals.path.unlink()
            elif _write(path, ([part] for part in rows), compression="zstd"):
                wrote(path, covered)
        return files

    def tidy(self, stamps: Stamps) -> None:
        """Remove the folders that no query uses: their models are in a larger one, were replaced, or are gone."""
        self._remove({chunk.name for chunk in self.current(stamps)})

    def _remove(self, kept: set[str]) -> None:
        for path, entry, _ in list(entries(self._root, paths.gathered_folder("*"))):
            if entry.name not in kept and entry.is_dir(follow_symlinks=False):
                shutil.rmtree(self._root / path, ignore_errors=True)


def _tables(bases: Iterable[str]) -> dict[str, Callable[[str], str]]:
    """The small tables, and where the rows of a model are."""
    tables: dict[str, Callable[[str], str]] = {
        paths.MODELS: paths.models_path,
        paths.LAYERS: paths.layers_path,
        paths.FINGERPRINTS: paths.fingerprints_path,
    }
    return tables | {paths.histograms_table(basis_id): partial(paths.histograms_path, basis_id) for basis_id in bases}


def _bases_in(tables: Iterable[str]) -> list[str]:
    """Keys of the bases whose histograms are among some tables."""
    named = (table.partition("-") for table in tables)
    return [basis_id for kind, _, basis_id in named if kind == paths.HISTOGRAMS]


def _schema(table: str) -> pa.Schema:
    schemas = {paths.MODELS: MODELS, paths.LAYERS: LAYERS, paths.FINGERPRINTS: FINGERPRINTS}
    return schemas.get(table, HISTOGRAMS)


def _stems(root: Path, place: Callable[[str], str]) -> set[str]:
    """The stems of the files of a table."""
    return {path.rpartition("/")[2].removesuffix(".parquet") for path, _, _ in entries(root, place("*"))}


def _stamp(path: Path) -> Stamp | None:
    try:
        status = path.lstat()
    except OSError:
        return None
    return stamp_of(status) if stat.S_ISREG(status.st_mode) else None  # a pipe would be read for ever


@lru_cache(maxsize=256)
def _chunk(root: Path, path: str, inode: int, changed: int) -> Chunk | None:
    """A gathered folder by its list of members, of which inode and time say which it is; None if it is not valid."""
    try:
        found = json.loads(read_small(root, path))
        members = {slug: _numbers(stamp) for slug, stamp in found["members"].items()}
        slugs = list(members)
        states = {name: (_numbers(stamp), str(digest)) for name, (stamp, digest, _) in found["files"].items()}
        covered = {
            name.removesuffix(".parquet"): frozenset(slugs[number] for number in numbers)
            for name, (*_, numbers) in found["files"].items()
        }
    except (OSError, ValueError, LookupError, TypeError, AttributeError, RecursionError, CnnFilterDbError):
        return None
    place = path.rpartition("/")[0]
    tables = {name.removesuffix(".parquet"): f"{place}/{name}" for name in states}
    if not all(map(paths.is_slug, members)) or not all(map(paths.is_gathered_table, tables)):
        return None
    states = {f"{place}/{name}": state for name, state in states.items()}
    if not {paths.MODELS, paths.LAYERS} <= tables.keys():
        return None
    if any(_stamp(root / table) != stamp for table, (stamp, _) in states.items()):
        return None  # nor is it kept in memory
    # DuckDB takes the columns, and how many rows to expect, from the first file: those are copies.
    for table, file in tables.items():
        kind = table.partition("-")[0]
        if kind == paths.HISTOGRAMS and not _has(root / file, HISTOGRAMS):
            return None
        if kind == paths.TOTALS and not _has(root / file, TOTALS, 2 * len(RECIPES) * len(members)):
            return None
    return Chunk(place.rpartition("/")[2], members, tables, covered, states)


def _has(path: Path, schema: pa.Schema, most: float = math.inf) -> bool:
    """Whether a file has the columns of a table, and states no more rows than it can have."""
    try:
        with pq.ParquetFile(path) as file:
            return bool(file.schema_arrow.equals(schema) and file.metadata.num_rows <= most)
    except (OSError, ValueError, pa.ArrowException):
        return False


def _numbers(values: Any) -> Stamp:
    inode, changed, size = map(int, values)
    return inode, changed, size


def _rows(root: Path, files: Iterable[str], schema: pa.Schema, there: list[int]) -> Iterator[pa.Table]:
    """The rows of the files that exist, some at a time; the numbers of these files are added to a list."""
    pending: list[pa.Table] = []
    seen: set[Path] = set()
    size = rows = 0
    for number, file in enumerate(files):
        path = root / file
        try:
            require_regular(root, path, seen)
            with pq.ParquetFile(path) as opened:
                if not opened.schema_arrow.equals(schema):
                    raise CorruptError(f"{path}: its columns are not those of the schema")
                check_size(opened, path)
                pending.append(opened.read(use_threads=False))
            size, rows = size + pending[-1].nbytes, rows + pending[-1].num_rows
            there.append(number)
        except FileNotFoundError:
            continue
        except (OSError, ValueError, pa.ArrowException) as error:
            raise CorruptError(f"{path}: cannot be read ({first_line(error, 200)})") from error
        if rows >= _ROWS or size >= _BYTES:
            yield pa.concat_tables(pending).combine_chunks()
            pending, size, rows = [], 0, 0
    if pending:
        yield pa.concat_tables(pending).combine_chunks()


def _by_recipe(histograms: pa.Table) -> Iterator[pa.Table]:
    """Row groups of histograms, of one recipe each, of which a query reads one."""
    import pyarrow.compute as pc

    for recipe in histograms["recipe"].unique():
        yield histograms.filter(pc.equal(histograms["recipe"], recipe))


def _write(path: Path, parts: Iterable[Iterable[pa.Table]], **options: Any) -> bool:
    """Write a table, given as parts of row groups; False if it has no rows, and so no file."""
    writer: pq.ParquetWriter | None = None
    try:
        for part in parts:
            for rows in part:
                writer = writer or pq.ParquetWriter(path, rows.schema, write_page_checksum=True, **options)
                writer.write_table(rows)
    finally:
        if writer:
            writer.close()
    return writer is not None
