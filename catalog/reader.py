"""Reads the catalog's files and checks them against their schema.

Every problem is one line that names the file and the row. All of them are found in one pass, so that a reviewer sees
them together.
"""

from __future__ import annotations

import csv
import io
import re
import tomllib
from collections.abc import Callable, Iterator, Mapping, Sequence
from collections.abc import Collection as Names
from difflib import get_close_matches
from importlib.resources.abc import Traversable
from types import MappingProxyType
from typing import TypeVar

from cnnfilterdb.catalog.entries import (
    CONDITIONS,
    FORBIDDING,
    FORMATS,
    LIST_SEPARATOR,
    ORIGINS,
    REDISTRIBUTION,
    STATUSES,
    Catalog,
    CatalogModel,
    Collection,
    Dataset,
    License,
    Term,
    license_parts,
)
from cnnfilterdb.catalog.names import match
from cnnfilterdb.core.errors import CatalogError, UnknownModelError
from cnnfilterdb.core.schema import is_sha256

__all__ = ["METADATA", "catalog_problems", "read_catalog"]

_SOURCE = ("name", "title", "optional")
_TERM = ("name", "origin", "paper_models", "description")
_LICENSE = ("name", "permissive", "redistribution", "conditions", "hub", "url", "title")
_DATASET = ("name", "domain", "origin", "title", "url", "license")

#: Columns that the models of every source have; all other columns of a source's file are its origin.
METADATA = (
    "name",
    "format",
    "status",
    "architecture",
    "family",
    "task",
    "domain",
    "training_dataset",
    "pretraining_dataset",
    "license",
    "paper",
    "metrics",
    "conv_layers",
    "conv3x3_layers",
    "conv3x3_filters",
    "note",
)

_COLLECTIONS = "collections.toml"
_SPDX = "https://spdx.org/licenses/{}.html"
_PAPER = re.compile(r"doi:10\.\d{4,}/\S+|arXiv:\d{4}\.\d{4,5}|https?://\S+")

T = TypeVar("T", Term, License, Dataset)


def read_catalog(folder: Traversable) -> Catalog:
    """Read and check a catalog.

    Args:
        folder: Folder of its files.

    Raises:
        CatalogError: They break the schema; the message states the first problem and the number of others.
    """
    reader = _Reader(folder)
    catalog = reader.catalog()
    if reader.problems:
        first, *others = reader.problems
        more = f"; and {len(others)} more problem{'s' * (len(others) > 1)} of the catalog" if others else ""
        raise CatalogError(first + more)
    return catalog


def catalog_problems(folder: Traversable) -> list[str]:
    """All problems of a catalog, a line each; none when it is valid.

    Args:
        folder: Folder of its files.
    """
    reader = _Reader(folder)
    reader.catalog()
    return reader.problems


class _Row(dict[str, str]):
    """A row of a file, with its location."""

    def __init__(self, cells: Mapping[str, str], where: str, problems: list[str]) -> None:
        super().__init__(cells)
        self._where, self._problems = where, problems

    def wrong(self, message: str) -> None:
        self._problems.append(f"{self._where}: {message}")

    def filled(self, *columns: str) -> None:
        for column in columns:
            if not self[column]:
                self.wrong(f"{column} is empty; fill it in")

    def one_of(self, column: str, known: Names[str], place: str, value: str | None = None) -> None:
        """The cell, or a part of it, is empty or one of the known values."""
        value = self[column] if value is None else value
        if value and value not in known:
            near = get_close_matches(value, known, 1)
            hint = f"; did you mean {near[0]!r}?" if near else f"; choose one of {place} or add it there"
            self.wrong(f"{column} {value!r} is not in {place}{hint}")

    def number(self, column: str, least: int = 0) -> int | None:
        if not self[column]:
            return None
        if not self[column].isascii() or not self[column].isdecimal() or int(self[column]) < least:
            self.wrong(f"{column} should be a whole number of at least {least}, is {self[column]!r}")
            return None
        return int(self[column])

    def address(self, column: str) -> None:
        if self[column] and not self[column].startswith(("https://", "http://")):
            self.wrong(f"{column} should begin with https://, is {self[column]!r}")

    def metrics(self, column: str) -> dict[str, float] | None:
        """``name=value`` pairs."""
        pairs = [pair.partition("=") for pair in self[column].split(LIST_SEPARATOR)] if self[column] else []
        try:
            values = {name: float(value) for name, _, value in pairs}
        except ValueError:
            values = {"": 0.0}
        if "" in values or len(values) < len(pairs):
            self.wrong(f"{column} should be name=number, several separated by {LIST_SEPARATOR!r}, is {self[column]!r}")
            return None
        return values or None


class _Reader:
    """One reading of a folder."""

    def __init__(self, folder: Traversable) -> None:
        self.problems: list[str] = []
        self._folder = folder

    def catalog(self) -> Catalog:
        """Read everything; problems are collected in ``problems``."""
        self._licenses = self._by_name("licenses.csv", _LICENSE, self._license)
        self._domains = self._by_name("domains.csv", _TERM, self._term)
        self._tasks = self._by_name("tasks.csv", _TERM, self._term)
        self._datasets = self._by_name("datasets.csv", _DATASET, self._dataset)
        models = {
            row["name"]: tuple(self._models(row["name"], row["optional"].split(LIST_SEPARATOR)))
            for row in self._rows("sources.csv", _SOURCE)
        }
        return Catalog(
            domains=MappingProxyType(self._domains),
            tasks=MappingProxyType(self._tasks),
            licenses=MappingProxyType(self._licenses),
            datasets=MappingProxyType(self._datasets),
            models=MappingProxyType(models),
            collections=MappingProxyType(self._collections(models)),
        )

    # ------------------------------------------------------------------------------------------------------ files

    def _text(self, name: str) -> str | None:
        try:
            return (self._folder / name).read_text(encoding="utf-8")
        except OSError as error:
            self.problems.append(f"{name}: cannot be read: {error.strerror}; the catalog needs it")
        except UnicodeDecodeError as error:
            self.problems.append(f"{name}: is not UTF-8 ({error.reason} at byte {error.start}); save it as UTF-8")
        return None

    def _rows(self, name: str, columns: Sequence[str], more: bool = False) -> Iterator[_Row]:
        """Complete rows of a file, each with a name that no other row has."""
        text = self._text(name)
        if text is None:
            return
        lines = csv.reader(io.StringIO(text, newline=""), strict=True)
        seen: dict[str, int] = {}
        try:
            header = next(lines, [])
            missing = [column for column in columns if column not in header]
            unknown = [] if more else [column for column in header if column not in columns]
            if missing or unknown or len(set(header)) < len(header) or "" in header:
                expected = ", ".join(columns) + (" and those of the origin" if more else "")
                self.problems.append(
                    f"{name}, line 1: expected the columns {expected}; "
                    f"missing: {', '.join(missing) or 'none'}, unknown: {', '.join(unknown) or 'none'}, "
                    f"twice or without a name: {', '.join(c or '(empty)' for c in _repeated(header)) or 'none'}"
                )
                return
            for cells in lines:
                where = f"{name}, line {lines.line_num}"
                if len(cells) != len(header):
                    self.problems.append(
                        f"{where}: {len(header)} cells expected, {len(cells)} found; quote cells that contain a comma"
                    )
                    continue
                row = _Row(dict(zip(header, cells, strict=True)), where, self.problems)
                row_name = row["name"]
                row = _Row(row, f"{where} ({row_name})" if row_name else where, self.problems)
                if spaced := [column for column in header if row[column] != row[column].strip()]:
                    row.wrong(f"{', '.join(spaced)} begins or ends with a space; remove it")
                row.filled("name")
                if row_name in seen:
                    row.wrong(f"the name is already in line {seen[row_name]}; names are unique")
                    continue
                seen[row_name] = lines.line_num
                yield row
        except csv.Error as error:
            self.problems.append(f"{name}, line {lines.line_num}: is not a CSV row: {error}")

    def _by_name(self, name: str, columns: Sequence[str], make: Callable[[_Row], T]) -> dict[str, T]:
        return {row["name"]: make(row) for row in self._rows(name, columns)}

    # ------------------------------------------------------------------------------------------------ vocabularies

    def _term(self, row: _Row) -> Term:
        row.filled("origin", "description")
        row.one_of("origin", ORIGINS, "the known origins")
        count = row.number("paper_models", least=1)
        if (row["origin"] == "cvpr2022") != bool(row["paper_models"]):
            row.wrong("paper_models is a count for the terms of origin cvpr2022, and empty for all others")
        return Term(row["name"], row["origin"], count, row["description"])

    def _license(self, row: _Row) -> License:
        row.filled("permissive", "redistribution", "title")
        row.one_of("permissive", ("yes", "no"), "yes, no")
        row.one_of("redistribution", REDISTRIBUTION, ", ".join(REDISTRIBUTION))
        conditions = row["conditions"].split(LIST_SEPARATOR) if row["conditions"] else []
        for condition in conditions:
            row.one_of("conditions", CONDITIONS, ", ".join(CONDITIONS), condition)
        ordered = [condition for condition in CONDITIONS if condition in conditions]
        if set(conditions) <= {*CONDITIONS, ""} and conditions != ordered:
            row.wrong(f"conditions should be {LIST_SEPARATOR.join(ordered)!r}, each once and in this order")
        permissive = row["permissive"] == "yes"
        if permissive and (row["redistribution"] != "yes" or set(conditions) - {"attribution"}):
            row.wrong("permissive is yes, but it requires more than attribution, or forbids redistribution")
        if row["redistribution"] == "yes" and (forbidding := [name for name in ordered if name in FORBIDDING]):
            row.wrong(f"redistribution is yes, but {', '.join(forbidding)} forbids it")
        row.address("url")
        return License(
            name=row["name"],
            permissive=permissive,
            redistribution=row["redistribution"],
            conditions=tuple(ordered),
            hub=row["hub"] or None,
            url=row["url"] or (None if row["name"].startswith("LicenseRef-") else _SPDX.format(row["name"])),
            title=row["title"],
        )

    def _dataset(self, row: _Row) -> Dataset:
        row.filled("domain", "origin", "title")
        row.one_of("domain", self._domains, "domains.csv")
        row.one_of("origin", ORIGINS, "the known origins")
        row.one_of("license", self._licenses, "licenses.csv")
        if LIST_SEPARATOR.strip() in row["name"]:
            row.wrong(f"the name of a data set cannot contain {LIST_SEPARATOR.strip()!r}, which separates data sets")
        row.address("url")
        return Dataset(
            name=row["name"],
            domain=row["domain"],
            origin=row["origin"],
            title=row["title"],
            url=row["url"] or None,
            license=row["license"] or None,
        )

    # ------------------------------------------------------------------------------------------------------ models

    def _models(self, source: str, optional: Names[str]) -> Iterator[CatalogModel]:
        # Not at the top: it imports pyarrow, which the vocabularies do not need.
        from cnnfilterdb.core.schema import ModelFacts

        for row in self._rows(f"{source}.csv", METADATA, more=True):
            row.filled("format", "status", "license")
            row.one_of("format", FORMATS, f"{', '.join(FORMATS)}")
            row.one_of("status", STATUSES, f"{', '.join(STATUSES)}")
            row.one_of("domain", self._domains, "domains.csv")
            row.one_of("task", self._tasks, "tasks.csv")
            for column in ("training_dataset", "pretraining_dataset"):
                for dataset in row[column].split(LIST_SEPARATOR):
                    row.one_of(column, self._datasets, "datasets.csv", dataset)
            parts = license_parts(row["license"])
            for part in parts:
                row.one_of("license", self._licenses, "licenses.csv", part)
            if row["paper"] and not _PAPER.fullmatch(row["paper"]):
                row.wrong(f"paper should be doi:10..., arXiv:1234.56789 or a URL, is {row['paper']!r}")
            origin = {column: cell for column, cell in row.items() if column not in METADATA}
            self._check_origin(row, origin, optional)
            layers, layers3, filters3 = (row.number(f"conv{what}") for what in ("_layers", "3x3_layers", "3x3_filters"))
            if layers is not None and layers3 is not None and layers3 > layers:
                row.wrong(f"conv3x3_layers {layers3} is more than conv_layers {layers}")
            if layers3 is not None and filters3 is not None and filters3 < layers3:
                row.wrong(f"conv3x3_filters {filters3} is less than conv3x3_layers {layers3}")
            yield CatalogModel(
                source=source,
                name=row["name"],
                facts=ModelFacts(
                    architecture=row["architecture"] or None,
                    family=row["family"] or None,
                    task=row["task"] or None,
                    domain=row["domain"] or None,
                    training_dataset=row["training_dataset"] or None,
                    pretraining_dataset=row["pretraining_dataset"] or None,
                    license=row["license"] or None,
                    paper=row["paper"] or None,
                    metrics=row.metrics("metrics"),
                ),
                origin=MappingProxyType(origin),
                format=row["format"],
                status=row["status"],
                permissive=all(part in self._licenses and self._licenses[part].permissive for part in parts),
                conv_layers=layers,
                conv3x3_layers=layers3,
                conv3x3_filters=filters3,
                note=row["note"] or None,
            )

    @staticmethod
    def _check_origin(row: _Row, origin: Mapping[str, str], optional: Names[str]) -> None:
        """Check the origin of a model: the source defines its columns, and their names show what they contain."""
        row.filled(*(column for column in origin if column not in optional))
        for column, cell in origin.items():
            if column.endswith("sha256") and cell and not is_sha256(cell):
                row.wrong(f"{column} should be 64 hexadecimal digits in lower case, is {cell!r}")
            if column.endswith("bytes"):
                row.number(column, least=1)

    # ------------------------------------------------------------------------------------------------- collections

    def _collections(self, models: Mapping[str, Sequence[CatalogModel]]) -> dict[str, Collection]:
        text = self._text(_COLLECTIONS)
        try:
            tables = tomllib.loads(text or "")
        except tomllib.TOMLDecodeError as error:
            self.problems.append(f"{_COLLECTIONS}: is not TOML: {error}")
            return {}
        names = [model.model_id for group in models.values() for model in group]
        collections = {}
        for name, table in tables.items():
            where = f"{_COLLECTIONS}, [{name}]"
            if not (
                isinstance(table, dict)
                and set(table) == {"title", "models"}
                and isinstance(table["title"], str)
                and isinstance(table["models"], list)
                and table["models"]
                and all(isinstance(pattern, str) for pattern in table["models"])
            ):
                self.problems.append(f"{where}: expected a title and a list of models, each source/name as text")
                continue
            chosen: list[str] = []
            for pattern in table["models"]:
                try:
                    chosen += match(names, [pattern])
                except UnknownModelError as error:
                    self.problems.append(f"{where}: {error}")
            pairs = (model_id.partition("/") for model_id in dict.fromkeys(chosen))
            collections[name] = Collection(name, table["title"], tuple((source, model) for source, _, model in pairs))
        return collections


def _repeated(header: Sequence[str]) -> list[str]:
    return sorted({column for column in header if not column or header.count(column) > 1})
