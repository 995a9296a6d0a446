"""Several databases and releases as one storage: what is asked of all is asked of each, and nothing is copied.

Which part a model is of is decided by the names of its files (:func:`cnnfilterdb.core.paths.slug`), which every part
can list quickly; the views decide it by the keys themselves (:mod:`cnnfilterdb.sql.parts`), with the same result.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

import pyarrow as pa
import pyarrow.compute as pc

from cnnfilterdb import sql
from cnnfilterdb.analysis.bases import Bases
from cnnfilterdb.analysis.storage import Storage
from cnnfilterdb.core import paths, sqltext
from cnnfilterdb.core.errors import DatabaseError, QueryError, SelectionError, unknown_model
from cnnfilterdb.core.reports import Problem, Progress
from cnnfilterdb.core.schema import kernel_order
from cnnfilterdb.parts.derived import DerivedFolder
from cnnfilterdb.release.address import REFERENCE, reference_folder
from cnnfilterdb.release.release import Release
from cnnfilterdb.scan.scan import FilterFile
from cnnfilterdb.sql.parts import PartTables, part_definitions
from cnnfilterdb.store.folder import Store

if TYPE_CHECKING:
    import duckdb

__all__ = ["OpenPart", "Parts"]


@dataclass(frozen=True)
class OpenPart:
    """A part.

    Attributes:
        name: Its name, by which no other part goes.
        storage: Its tables and filters.
        bases: Its bases.
    """

    name: str
    storage: Store | Release
    bases: Bases

    @property
    def location(self) -> str:
        """Where it is, as users write it."""
        return REFERENCE if self.storage.location == str(reference_folder()) else self.storage.location

    @property
    def has_filters(self) -> bool:
        """Whether it has the filters of its models, not only their statistics."""
        return isinstance(self.storage, Store) or not self.storage.manifest.statistics_only


@dataclass
class Counted:
    """Which bases answer questions about all parts, and where their histograms are.

    Attributes:
        bases: Files of the bases.
        stored: For each part by number, the keys of the bases whose histograms are taken from the part itself.
        derived: For each part by number, files of histograms that were counted for all parts together.
        fingerprints: For each part by number, files of fingerprints that it lacks.
    """

    bases: list[str] = field(default_factory=list)
    stored: dict[int, list[str]] = field(default_factory=dict)
    derived: dict[int, list[str]] = field(default_factory=dict)
    fingerprints: dict[int, list[str]] = field(default_factory=dict)


class Parts(Storage):
    """Several databases and releases, which are only read.

    Args:
        parts: The parts.
        location: What the whole is called: the file that lists them, or their locations.
        duplicates: ``error`` refuses models of the same key in several parts, ``first`` takes that of the first part.

    Attributes:
        parts: The parts, in order.
        derived: The folder of what is derived of all of them together.
        counted: Which of it is used.

    Raises:
        DatabaseError: A model is in several parts, and ``duplicates`` is ``error``.
    """

    composed = True

    def __init__(self, parts: Sequence[OpenPart], location: str, *, duplicates: str = "error") -> None:
        self.parts = list(parts)
        self.location = location
        self.first_wins = duplicates == "first"
        self.derived = DerivedFolder([part.storage.location for part in parts])
        self.counted = Counted()
        self.owners()

    def __repr__(self) -> str:
        return f"Parts({self.location!r})"

    @property
    def annotated(self) -> bool:
        """Whether a part has annotations."""
        return any(part.storage.annotated for part in self.parts)

    # ------------------------------------------------------------------------------------------------- models

    def owners(self) -> dict[str, int]:
        """The number of the part that each model is taken from, by the name of its files.

        Raises:
            DatabaseError: A model is in several parts, and the first is not to be taken.
        """
        found: dict[str, int] = {}
        for number, part in enumerate(self.parts):
            slugs = part.storage.slugs()
            if not self.first_wins and (twice := found.keys() & slugs):
                slug = min(twice)
                key = next((model_id for model_id in part.storage.model_ids() if paths.slug(model_id) == slug), slug)
                more = f" and {len(twice) - 1:,} more are" if len(twice) > 1 else " is"
                raise DatabaseError(
                    f"{key}{more} in the parts {self.parts[found[slug]].name} and {part.name}; open them with "
                    'duplicates="first", or leave one of them out'
                )
            for slug in slugs:
                found.setdefault(slug, number)
        return found

    def owned(self, model_ids: Iterable[str] | None = None) -> dict[int, list[str]]:
        """Models by the number of the part that they are taken from; by default all.

        Raises:
            UnknownModelError: No part has one of them.
        """
        owners = self.owners()
        found: dict[int, list[str]] = {}
        if model_ids is None:
            for number, part in enumerate(self.parts):
                own = [one for one in part.storage.model_ids() if owners.get(paths.slug(one)) == number]
                if own:
                    found[number] = own
            return found
        for model_id in model_ids:
            number = owners.get(paths.slug(model_id), -1)
            if number < 0:
                raise unknown_model(model_id, self.model_ids(), self.location)
            found.setdefault(number, []).append(model_id)
        return found

    def slugs(self) -> set[str]:
        """Names of the files of the models of all parts."""
        return set(self.owners())

    def model_ids(self) -> list[str]:
        """Keys of the models of all parts, sorted."""
        return sorted({model_id for part in self.parts for model_id in part.storage.model_ids()})

    def layers(self, model_ids: Iterable[str] | None = None, *, columns: Sequence[str] | None = None) -> pa.Table:
        """The layers of all parts, sorted by ``model_id`` and ``layer``.

        Args:
            model_ids: Of these models only.
            columns: These columns only, which must include the two.
        """
        if model_ids is not None:
            tables = [
                self.parts[number].storage.layers(own, columns=columns)
                for number, own in sorted(self.owned(model_ids).items())
            ]
        else:
            owners = self.owners()
            tables = [
                _rows_of(part.storage.layers(columns=columns), owners, number) for number, part in enumerate(self.parts)
            ]
        if len(tables) == 1:
            return tables[0]
        if not tables:
            return self.parts[0].storage.layers([], columns=columns)
        joined = pa.concat_tables([table.cast(_plain(table.schema)) for table in tables])
        return joined.sort_by([("model_id", "ascending"), ("layer", "ascending")])

    # ------------------------------------------------------------------------------------------------ filters

    def kernels(self) -> list[str]:
        """Kernel sizes of the filters of all parts."""
        return sorted({kernel for part in self.parts for kernel in part.storage.kernels()}, key=kernel_order)

    def require_filters(self, model_ids: Iterable[str] | None = None) -> None:
        """Make sure that the filters of models are there, not only their statistics.

        Args:
            model_ids: The models; by default it is enough that a part has filters.

        Raises:
            SelectionError: A part has the statistics of one of them only.
        """
        if model_ids is None:
            if not any(part.has_filters for part in self.parts):
                self.parts[0].storage.require_filters()
            return
        for number, own in self.owned(model_ids).items():
            self._require(number, own)

    def _require(self, number: int, own: Sequence[str]) -> None:
        part = self.parts[number]
        if not part.has_filters:
            condition = f"part != {sqltext.literal(part.name)}"
            raise SelectionError(
                f"the part {part.name} has the statistics of {len(own):,} of these models, not their filters; "
                f'narrow the question with where="{condition}", or leave this part out'
            )

    def filter_files(self, kernel: str, model_ids: Iterable[str] | None = None) -> list[FilterFile]:
        """The files of a kernel size that may contain some models, those of each part together.

        Raises:
            SelectionError: A part has the statistics of one of them only.
            UnknownModelError: No part has one of them.
        """
        found: list[FilterFile] = []
        for number, own in sorted(self.owned(model_ids).items()):
            self._require(number, own)
            found += self.parts[number].storage.filter_files(kernel, own)
        return found

    # -------------------------------------------------------------------------------------------------- views

    def definitions(self) -> dict[str, sql.Definition]:
        """The views and macros over all parts."""
        no_bases, no_histograms, no_fingerprints = self.derived.empty_files()
        tables = [self._tables(number, part) for number, part in enumerate(self.parts)]
        return part_definitions(
            tables,
            bases=[no_bases, *self.counted.bases],
            no_histograms=no_histograms,
            no_fingerprints=no_fingerprints,
            first_wins=self.first_wins,
        )

    def _tables(self, number: int, part: OpenPart) -> PartTables:
        storage = part.storage
        found = PartTables(
            name=part.name,
            root=storage.location,
            shards=None,
            bases=tuple(self.counted.stored.get(number, ())),
            histograms=tuple(self.counted.derived.get(number, ())),
            more_fingerprints=tuple(self.counted.fingerprints.get(number, ())),
        )
        if isinstance(storage, Release):
            shards = storage.shards()
            return replace(
                found,
                root=storage.under(_protocol(number)),
                shards=shards,
                kernels=tuple(storage.kernels()),
                fingerprints="fingerprints" in shards,
            )
        return replace(
            found,
            # A folder always has a file without rows of 3x3 filters.
            kernels=tuple(dict.fromkeys(["3x3", *storage.kernels()])),
            annotated=storage.annotated,
            listed=storage.listed(),
            fingerprints=paths.inside(storage.path, paths.fingerprints_path(paths.EMPTY)).exists(),
        )

    def shown(self) -> str | tuple[str, ...]:
        """The list of the parts, or the options that name them."""
        if paths.is_parts_list(self.location):
            return self.location
        words = [word for part in self.parts for word in ("--db", part.location)]
        return (*words, "--duplicates", "first") if self.first_wins else tuple(words)

    def places(self) -> list[str]:
        """What the views read: the parts, and what is derived of them."""
        remote = [
            f"{_protocol(number)}://" for number, part in enumerate(self.parts) if isinstance(part.storage, Release)
        ]
        return [*(part.storage.location for part in self.parts), *remote, str(self.derived.path)]

    def small_files(self, tables: Iterable[str]) -> dict[str, dict[str, int]]:
        """The files of small tables of the parts that are database folders."""
        found: dict[str, dict[str, int]] = {table: {} for table in tables}
        for part in self.parts:
            for table, files in part.storage.small_files(found).items():
                found[table] |= files
        return found

    def doubt(self, error: Exception) -> bool:
        """Stop using the copies of tables in a part that an error names."""
        doubted = [part.storage.doubt(error) for part in self.parts]  # of all of them
        return any(doubted)

    def attach(self, connection: duckdb.DuckDBPyConnection) -> None:
        """Let a connection read the parts that are not on this machine."""
        for number, part in enumerate(self.parts):
            if isinstance(part.storage, Release):
                part.storage.attach(connection, _protocol(number))

    def check(self, query: str) -> None:
        """Check the tables of the releases among the parts.

        Raises:
            QueryError: The query reads filters, and a part has the statistics of its models only.
        """
        if sql.reads_filters(query) and not all(part.has_filters for part in self.parts):
            for number, own in self.owned().items():
                try:
                    self._require(number, own)
                except SelectionError as error:
                    raise QueryError(
                        f"{error}".replace("narrow the question with where=", "in Python use where=")
                    ) from None
        for part in self.parts:
            if isinstance(part.storage, Release):
                part.storage.check_tables(query)

    # -------------------------------------------------------------------------------------------------- state

    def snapshot(self) -> dict[str, object]:
        """The state of the parts; releases do not change."""
        return {file: stamp for part in self.parts for file, stamp in part.storage.snapshot().items()}

    def damage(self) -> str | None:
        """The first damaged file of a part."""
        return next((found for part in self.parts if (found := part.storage.damage())), None)

    def verify(self, *, progress: Progress | None = None) -> list[Problem]:
        """Check every count and every hash of every part."""
        return [problem for part in self.parts for problem in part.storage.verify(progress=progress)]


def _rows_of(layers: pa.Table, owners: Mapping[str, int], number: int) -> pa.Table:
    """Those rows of a layers table that are of models of a part."""
    there = layers["model_id"].unique().to_pylist()
    own = [model_id for model_id in there if owners.get(paths.slug(model_id)) == number]
    return layers if len(own) == len(there) else layers.filter(pc.is_in(layers["model_id"], pa.array(own, pa.string())))


def _protocol(number: int) -> str:
    """Under which DuckDB reads a release that is not on this machine."""
    return f"part{number}"


def _plain(schema: pa.Schema) -> pa.Schema:
    """The columns of a layers table without what differs between a folder and a release: descriptions, nullability."""
    return pa.schema([pa.field(one.name, one.type) for one in schema])
