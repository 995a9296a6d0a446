"""Where a database is: what a folder, a release and several parts have in common for those who read them."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Sequence
from dataclasses import astuple, dataclass
from typing import TYPE_CHECKING

import pyarrow as pa

from cnnfilterdb.core.reports import Problem, Progress
from cnnfilterdb.core.resources import Resources
from cnnfilterdb.scan.scan import FilterFile
from cnnfilterdb.scan.steady import Snapshot
from cnnfilterdb.sql import Definition

if TYPE_CHECKING:
    import duckdb

__all__ = ["Storage", "Totals"]


@dataclass(frozen=True, slots=True)
class Totals:
    """The files from which questions about whole models are answered, as they are in a basis.

    Attributes:
        totals: Files with histograms of whole models.
        layers: The layers of all other models.
        histograms: The histograms of these layers; at least one file, perhaps without rows.
    """

    totals: tuple[str, ...]
    layers: tuple[str, ...]
    histograms: tuple[str, ...]

    def within(self, folder: str) -> Totals:
        """The same files, if their paths are relative to a folder."""
        return Totals(*(tuple(f"{folder}/{file}" for file in files) for files in astuple(self)))


class Storage(ABC):
    """Where a database is: a folder (:class:`~cnnfilterdb.store.folder.Store`), a release, or parts that are either.

    Attributes:
        location: Its path or address, as DuckDB and users write it.
        published: Whether it never changes, as a release.
        composed: Whether it consists of parts, which the models name in the column ``part``.
        resources: What work on it may use.
    """

    location: str
    published: bool = False
    composed: bool = False
    resources: Resources = Resources.of()

    @property
    def annotated(self) -> bool:
        """Whether it has annotations."""
        return False

    @abstractmethod
    def definitions(self) -> dict[str, Definition]:
        """Its views and macros by name, in an order in which they can be created."""

    @abstractmethod
    def snapshot(self) -> Snapshot:
        """Its state; a query compares it to detect that files were replaced while it ran."""

    @abstractmethod
    def slugs(self) -> set[str]:
        """Names of the files that its models have in a folder (:func:`cnnfilterdb.core.paths.slug`); fast."""

    @abstractmethod
    def layers(self, model_ids: Iterable[str] | None = None, *, columns: Sequence[str] | None = None) -> pa.Table:
        """The layers table, sorted by ``model_id`` and ``layer``.

        Args:
            model_ids: Of these models only.
            columns: These columns only.
        """

    @abstractmethod
    def model_ids(self) -> list[str]:
        """Keys of its models, sorted."""

    @abstractmethod
    def kernels(self) -> list[str]:
        """Kernel sizes of its filters, sorted by number of weights, then by name."""

    @abstractmethod
    def filter_files(self, kernel: str, model_ids: Iterable[str] | None = None) -> Sequence[FilterFile]:
        """The Parquet files of a kernel size that may contain some models; by default of all."""

    @abstractmethod
    def verify(self, *, progress: Progress | None = None) -> list[Problem]:
        """Check every count and every hash."""

    def shown(self) -> str | tuple[str, ...]:
        """How command lines name it: its location, or the options that name its parts."""
        return self.location

    def places(self) -> list[str]:
        """The folders and addresses that its views read."""
        return [self.location]

    def small_files(self, tables: Iterable[str]) -> dict[str, dict[str, int]]:
        """The files of small tables of folders that views read, and of how many models each is at most.

        Args:
            tables: Of ``models``, ``layers``, ``histograms`` and ``fingerprints``.
        """
        return {table: {} for table in tables}

    def totals(self, basis_id: str) -> Totals | None:
        """The files that have the histograms of whole models in a basis; None if there are none."""
        return None

    def doubt(self, error: Exception) -> bool:
        """Stop using copies of tables that an error names; True if asking again may help."""
        return False

    def attach(self, connection: duckdb.DuckDBPyConnection) -> None:  # noqa: B027 (most storages need nothing)
        """Enable a connection to reach it; DuckDB itself can read folders."""

    def check(self, query: str) -> None:  # noqa: B027 (most storages need nothing)
        """Check the tables that a query may read, before DuckDB reads them."""

    def require_filters(  # noqa: B027 (most storages need nothing)
        self, model_ids: Iterable[str] | None = None
    ) -> None:
        """Make sure that it has filters, not only their statistics.

        Args:
            model_ids: Of these models; by default of any.
        """

    def damage(self) -> str | None:
        """A file that cannot be read and what is wrong with it, asked after a query failed."""
        return None
