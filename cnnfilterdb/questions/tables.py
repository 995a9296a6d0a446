"""Tables: the stored models, layers and filters of a database, and SQL over all of them."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial, wraps
from pathlib import Path
from typing import TYPE_CHECKING, Any, Concatenate, ParamSpec, Self, TypeVar

import duckdb
import numpy as np
import numpy.typing as npt
import pyarrow as pa

from cnnfilterdb import sql, stats
from cnnfilterdb.analysis.bases import Bases
from cnnfilterdb.analysis.connection import Connection
from cnnfilterdb.analysis.options import names_of
from cnnfilterdb.analysis.queries import FAILURES, QueryResult, condition, only_reads, run, translated
from cnnfilterdb.analysis.storage import Storage
from cnnfilterdb.core import paths, sqltext
from cnnfilterdb.core.errors import (
    CnnFilterDbError,
    CorruptError,
    DamagedIndexError,
    DatabaseError,
    QueryError,
    SelectionError,
    unknown_model,
)
from cnnfilterdb.core.reports import Problem, Progress, html_table, printable
from cnnfilterdb.core.schema import filter_schema, kernel_name, kernel_shape, weight_columns
from cnnfilterdb.scan import nearest
from cnnfilterdb.scan.ordered import filters_of
from cnnfilterdb.scan.steady import Snapshot, steady, watched
from cnnfilterdb.stats.arguments import whole_number

if TYPE_CHECKING:
    import pandas as pd

__all__ = ["Tables", "undisturbed"]

P = ParamSpec("P")
R = TypeVar("R", bound="Tables")
T = TypeVar("T")


def undisturbed(method: Callable[Concatenate[R, P], T]) -> Callable[Concatenate[R, P], T]:
    """Make a method see one state of the database while others write (:mod:`cnnfilterdb.scan.steady`)."""

    @wraps(method)
    def asked(this: R, /, *args: P.args, **options: P.kwargs) -> T:
        return this._undisturbed(lambda: method(this, *args, **options))

    return asked


class Tables:
    """The stored tables of a database; :class:`~cnnfilterdb.Reader` adds the results computed from them.

    Args:
        storage: Where the database is located.
        bases: Its bases.
        confined: Let SQL read the files of the database only, and write nothing.

    Attributes:
        storage: Where the database is located.
        progress: Called while a question computes what is missing in the index; None by default.
    """

    progress: Progress | None = None

    def __init__(self, storage: Storage, bases: Bases, *, confined: bool = False) -> None:
        self.storage = storage
        self._bases = bases
        storage.resources.prepare()
        self._views = Connection(storage, confined=confined)
        self._asking = threading.local()

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.location!r})"

    def _repr_html_(self) -> str:
        """Location and stored filters by kernel size, for notebooks."""
        try:
            rows = self._table(
                "SELECT kernel, count(DISTINCT model_id) AS models, count(*) AS layers, sum(filters)::BIGINT AS filters"
                " FROM layers WHERE stored GROUP BY kernel ORDER BY filters DESC, kernel"
            ).to_pylist()
        except CnnFilterDbError as error:  # a notebook should show the object even if the database cannot be read
            rows = [{"error": str(error)}]
        return html_table(repr(self), rows)

    def __reduce__(self) -> tuple[Callable[..., Self], tuple[Any, ...]]:
        # A copy in another process opens its own connection.
        return partial(type(self), confined=self._views.confined), (self.storage, self._bases)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def close(self) -> None:
        """Close the DuckDB connection. Results that were not read yet are lost; later queries are refused.

        >>> db = cnnfilterdb.example()
        >>> db.close()
        >>> db.models()
        Traceback (most recent call last):
        cnnfilterdb.DatabaseError: ...: closed; open it again with cnnfilterdb.open
        """
        self._views.close()
        self.storage.resources.runner.stop()

    @property
    def location(self) -> str:
        """Where the database is located: the absolute path of a folder, or an address.

        >>> db.location == str(db.path)
        True
        """
        return self.storage.location

    @undisturbed
    def models(self, *, where: str | None = None) -> pd.DataFrame:
        """The models table: one row per model.

        Args:
            where: Condition over the columns of models and layers, such as ``"domain LIKE 'medical%'"``. One over
                layers selects the models that have such a layer: ``"kernel = '5x5'"``.

        Raises:
            SelectionError: A condition that cannot be answered.

        >>> db.models(where="task = 'Classification'")[["model_id", "domain", "conv_layers", "stored_filters"]]
                      model_id   domain  conv_layers  stored_filters
        0  custom/photos-large  natural            4            1008
        1  custom/photos-small  natural            3             152
        >>> db.models(where="kernel = '3x3' AND out_channels = 16")["model_id"].tolist()
        ['custom/photos-small', 'custom/scans']
        """
        frame: pd.DataFrame = self.models_table(where=where).to_pandas()
        return frame

    @undisturbed
    def models_table(self, *, where: str | None = None, columns: str | Sequence[str] | None = None) -> pa.Table:
        """The models table as :meth:`models` returns it, as an Arrow table, which keeps the types of columns.

        Args:
            where: As in :meth:`models`.
            columns: These columns only, which is faster where there are many models.

        Raises:
            SelectionError: A condition that cannot be answered, or an unknown column.

        >>> db.models_table(where="domain = 'natural'", columns=["model_id", "license"]).to_pylist()[0]
        {'model_id': 'custom/photos-large', 'license': 'MIT'}
        """
        names = "* EXCLUDE (files)"
        if columns is not None:
            names = ", ".join(map(sqltext.identifier, names_of("columns", columns)))
        rows, chosen = f"SELECT {names} FROM models", condition(where)
        try:  # the models table alone, which is much smaller than that of the layers
            return self._table(f"{rows} WHERE {chosen} ORDER BY model_id")
        except SelectionError:
            if chosen == "true":
                raise
        chosen = f"SEMI JOIN (SELECT model_id FROM facts WHERE {chosen}) USING (model_id)"
        return self._table(f"{rows} {chosen} ORDER BY model_id")

    @undisturbed
    def layers(self, *, where: str | None = None) -> pd.DataFrame:
        """The layers table: one row per convolution layer, with its statistics.

        Args:
            where: Condition over the columns of models and layers, such as ``"task = 'Segmentation' AND kernel =
                '3x3'"``.

        Raises:
            SelectionError: A condition that cannot be answered.

        >>> db.layers(where="name = 'scans'")[["layer", "layer_name", "kernel", "filters", "sparsity"]]
           layer layer_name kernel  filters  sparsity
        0      0       down    3x3       16       0.0
        1      1     middle    3x3      384       0.0
        2      2         up    5x5      192       0.0
        3      3        out    1x1       16       NaN
        """
        return self._frame(
            f"SELECT layers.* FROM layers SEMI JOIN (SELECT model_id, layer FROM facts WHERE {condition(where)}) "
            "USING (model_id, layer) ORDER BY model_id, layer"
        )

    @undisturbed
    def filters(self, *, where: str | None = None, kernel: str = "3x3") -> pd.DataFrame:
        """The filters of one kernel size: their keys and one column per weight.

        All that ``where`` selects is read into memory; :meth:`filter_batches` streams.

        Args:
            where: Condition over the columns of models and layers.
            kernel: Kernel size.

        Returns:
            ``model_id``, ``layer``, ``out_channel``, ``in_channel`` and the weights ``w0``, ``w1``, ... row by row
            (float32), sorted by the keys.

        Raises:
            SelectionError: A condition that cannot be answered, or a kernel size that is not stored.

        >>> db.filters(where="name = 'scans' AND layer = 0")[["out_channel", "in_channel", "w0", "w4"]].head(2).round(4)
           out_channel  in_channel      w0      w4
        0            0           0 -0.0221 -0.0086
        1            1           0 -0.0665 -0.0536
        >>> len(db.filters(kernel="5x5"))
        264
        """
        batches = self.filter_batches(where=where, kernel=kernel)
        frame: pd.DataFrame = pa.Table.from_batches(batches, filter_schema(kernel)).to_pandas()
        return frame

    def filter_batches(
        self, *, where: str | None = None, kernel: str = "3x3", rows: int = 131_072
    ) -> Iterator[pa.RecordBatch]:
        """Stream filters as Arrow record batches, sorted by model, layer and channels.

        A few row groups are in memory at a time. The arguments are checked immediately, before the first batch is read.

        Args:
            where: Condition over the columns of models and layers.
            kernel: Kernel size.
            rows: Largest number of rows in a batch.

        Raises:
            SelectionError: A condition that cannot be answered, or a kernel size that is not stored.
            DatabaseError: While the stream is read: another process has replaced or removed one of its models.

        >>> [batch.num_rows for batch in db.filter_batches(rows=500)]
        [500, 460, 128, 400]
        """
        kernel_shape(kernel)
        self._require_filters()
        if kernel != "3x3":  # which may be absent from an empty database
            self._check_stored(kernel)
        whole_number(1, "rows", rows)
        query = (
            f"SELECT model_id, layer FROM facts WHERE stored AND kernel = {sqltext.literal(kernel)} "
            f"AND {condition(where)}"
        )
        before, chosen = self._undisturbed(lambda: (self.storage.snapshot(), self._table(query)))
        layers: dict[str, list[int]] = {}
        for model_id, layer in zip(chosen["model_id"].to_pylist(), chosen["layer"].to_pylist(), strict=True):
            layers.setdefault(model_id, []).append(layer)
        batches = (
            batch
            for table in filters_of(self.storage, kernel, layers)
            for batch in table.to_batches(max_chunksize=rows)
        )
        own = set(map(paths.slug, layers))
        return watched(
            self.storage.snapshot, {file: stamp for file, stamp in before.items() if Path(file).stem in own}, batches
        )

    @undisturbed
    def layer_weights(self, model_id: str, layer: int) -> npt.NDArray[np.float32]:
        """The weight of one layer as an array.

        Args:
            model_id: Key of the model.
            layer: Number of the layer in its model, from 0; the column ``layer`` of :meth:`layers`.

        Returns:
            (out channels, in channels / groups, height, width), float32: the weight as in frameworks. If the
            number of output channels is unknown, as in the papers' data set, all kernels are in one output channel.

        Raises:
            UnknownModelError: No such model exists.
            SelectionError: No such layer exists, or its kernels are not stored, as for 1x1 layers.

        >>> db.layer_weights("custom/scans", 1).shape
        (24, 16, 3, 3)
        """
        found = self._table(
            "SELECT layer, kernel, stored, out_channels FROM layers "
            f"WHERE model_id = {sqltext.literal(model_id)} ORDER BY layer"
        ).to_pylist()
        if not found:
            raise unknown_model(model_id, self.storage.model_ids(), self.location)
        row = next((row for row in found if row["layer"] == layer), None)
        if row is None:
            raise SelectionError(f"{model_id}: no layer {layer!r}; its layers are 0 to {found[-1]['layer']}")
        if not row["stored"]:
            raise SelectionError(f"{model_id}: layer {layer} has {row['kernel']} kernels, which are not stored")
        kernel = row["kernel"]
        parts = [
            np.column_stack([table[name].to_numpy() for name in weight_columns(kernel)])
            for table in filters_of(self.storage, kernel, {model_id: [layer]})
        ]
        weights: npt.NDArray[np.float32] = np.concatenate(parts)
        return weights.reshape(row["out_channels"] or 1, -1, *kernel_shape(kernel))

    @undisturbed
    def nearest(
        self,
        pattern: npt.ArrayLike,
        *,
        top: int = 10,
        where: str | None = None,
        sign: bool = False,
        centred: bool = False,
        rotation: bool = False,
    ) -> pd.DataFrame:
        """The stored filters most similar to a pattern, regardless of scale.

        One scan over the filters of that size, with a few row groups in memory.

        Args:
            pattern: Kernel to look for, (height, width); only filters of that size are searched.
            top: How many to return.
            where: Condition over the columns of models and layers.
            sign: Negative multiples count as similar too.
            centred: Subtract the mean of each kernel first, so that a constant added to all weights does not matter.
            rotation: Rotations by right angles and reflections count as similar too.

        Returns:
            By descending similarity (the cosine of the angle between both, 1 for a positive multiple; a correlation
            with ``centred``): ``similarity``, ``variant`` (what was done to the pattern), the keys and the weights.

        Raises:
            SelectionError: A pattern without direction, or of a size of which no filters are stored.

        >>> edge = [[1, 0, -1], [1, 0, -1], [1, 0, -1]]
        >>> db.nearest(edge, top=3, rotation=True)[["similarity", "variant", "model_id", "layer"]].round(3)
           similarity      variant             model_id  layer
        0       0.990     identity  custom/photos-large      1
        1       0.988     identity  custom/photos-large      2
        2       0.988  rotated 180  custom/photos-small      1
        """
        wanted = stats.Pattern.of(pattern, sign=sign, centred=centred, rotation=rotation)
        size = kernel_name(*np.shape(pattern))
        whole_number(1, "top", top)
        self._check_stored(size)
        layers = None
        if (narrowed := condition(where)) != "true":
            rows = run(
                self._connect("facts"),
                f"SELECT model_id, layer FROM facts WHERE stored AND kernel = {sqltext.literal(size)} AND {narrowed}",
            )
            layers = set(zip(rows["model_id"].to_pylist(), rows["layer"].to_pylist(), strict=True))
        table: pd.DataFrame = nearest.nearest_filters(
            self.storage, size, wanted, layers, top, self._scanned
        ).to_pandas()
        return table

    @undisturbed
    def shared_models(self) -> pd.DataFrame:
        """Pairs of models that contain the same layers, bit for bit: shared ancestry, such as a common pretraining.

        Returns:
            ``model_a``, ``model_b``, ``shared_layers``, ``shared_filters``, and ``share``, of the stored layers of the
            model with fewer of them. Layers of zeros do not count.

        >>> db.shared_models()   # the three models share no layer
        Empty DataFrame
        Columns: [model_a, model_b, shared_layers, shared_filters, share]
        Index: []
        """
        return self._frame("FROM shared_models")

    def sql(self, query: str, parameters: Mapping[str, Any] | Sequence[Any] | None = None) -> QueryResult:
        """Run SQL over the views and macros.

        Args:
            query: One statement; ``$name`` or ``?`` marks a parameter.
            parameters: Their values, by name or in order.

        Returns:
            The rows, read on demand: ``.df()``, ``.to_arrow_table()``, ``.fetchall()``, ``.show()``, and
            every other method of a DuckDB relation. Those that return all rows repeat the query if another process
            replaced or removed models meanwhile.

        Raises:
            QueryError: DuckDB refuses the query, or it fails later, while rows are read.

        >>> db.sql("SELECT domain, sum(stored_filters) AS filters FROM models GROUP BY ALL ORDER BY ALL").df()
               domain  filters
        0  medical ct    592.0
        1     natural   1160.0
        >>> db.sql("FROM kl_shift(domain) WHERE group_a < $last", {"last": "n"}).fetchall()[1][:2]
        ('medical ct', 'natural')
        >>> db.sql("SELECT count(*) FROM models WHERE domain = ?", ["natural"]).fetchall()
        [(2,)]
        """
        if sql.needs_index(query):
            self._ensure_index(fingerprints=sql.needs_fingerprints(query))

        def relation() -> duckdb.DuckDBPyRelation:
            connection = self._connect(query)
            try:
                found = connection.sql(query, params=parameters or None)
            except duckdb.CatalogException:  # with all views and macros, DuckDB suggests the nearest of them
                self._connect("SHOW TABLES")
                found = connection.sql(query, params=parameters or None)
            if found is None:
                raise QueryError("the query is empty; give one SQL statement, such as FROM models")
            return found

        try:
            if self.storage.published or not only_reads(query):
                self.storage.snapshot()  # refuses files that are not regular
                return QueryResult(relation(), explained=self._explained)
            since: Snapshot | None = self.storage.snapshot()
            try:
                found = relation()
            except (duckdb.Error, DatabaseError):  # files may have vanished
                since, found = None, steady(self.storage.snapshot, relation)
            return QueryResult(found, relation, self.storage.snapshot, self._explained, since)
        except FAILURES as error:
            raise self._explained(translated(error, QueryError)) from error
        except DatabaseError as error:
            raise self._explained(error) from error

    def verify(self, *, progress: Progress | None = None) -> list[Problem]:
        """Check every count and every hash, and the annotations; an empty list means that no problem was found.

        >>> db.verify()
        []
        """
        return self.storage.verify(progress=progress)

    # ---------------------------------------------------------------------------------------------- private

    def _connect(self, query: str) -> duckdb.DuckDBPyConnection:
        return self._views.connect(query)

    def _scanned(self, filters: int) -> None:
        """Called during a scan with the number of filters done since the last call; an error from it ends the scan."""

    def _undisturbed(self, ask: Callable[[], T]) -> T:
        """Repeat a query until no file was replaced while it ran; queries inside another one are not repeated."""
        if self.storage.published or getattr(self._asking, "now", False):
            return ask()
        self._asking.now = True
        repaired: list[Exception] = []

        def repair(error: Exception) -> bool:
            if repaired or not self._repair(error):
                return False
            repaired.append(error)
            return True

        try:
            return steady(self.storage.snapshot, ask, repair)
        except (DatabaseError, SelectionError) as error:
            if isinstance(error, DatabaseError) or isinstance(error.__cause__, duckdb.Error):
                raise self._explained(error) from error
            raise
        finally:
            self._asking.now = False

    @property
    def _indexed_elsewhere(self) -> bool:
        """Whether another process held the locks of the index when this thread last wanted to bring it up to date."""
        return getattr(self._asking, "indexed_elsewhere", False)

    def _explained(self, error: CnnFilterDbError) -> CnnFilterDbError:
        """The error to raise for one that names no file: that of the damaged file, or one that names the database."""
        if self._indexed_elsewhere and isinstance(error, DamagedIndexError):
            return DatabaseError(
                f"{self.location}: another process is writing the index, which is not complete yet; wait for it and "
                "repeat the question"
            )
        if any(place in str(error) for place in (self.location, *self.storage.places())):
            return error
        if found := self.storage.damage():
            return CorruptError(found)
        about_files = isinstance(error, DatabaseError) or "`cnnfilterdb index`" in str(error)
        return type(error)(f"{self.location}: {error}") if about_files else error

    def _repair(self, error: Exception) -> bool:
        """Remove the cause of an error, if possible; True if repeating the query may help."""
        if not self.storage.doubt(error):
            return False
        self._views.renew()
        return True

    def _frame(self, query: str) -> pd.DataFrame:
        frame: pd.DataFrame = self._table(query).to_pandas()
        return frame

    def _table(self, query: str) -> pa.Table:
        return run(self._connect(query), query)

    def _require_filters(self) -> None:
        """Refuse what needs the filters themselves in a release that has their statistics only."""
        self.storage.require_filters()

    def _require_moments(self, layers: pa.Table) -> None:
        """Refuse layers whose moments are not in a release that has the statistics of other kernel sizes only."""
        without = layers.filter(layers["scaled_mean"].is_null())
        if without.num_rows:
            self.storage.require_filters(without["model_id"].unique().to_pylist())

    def _check_stored(self, kernel: str) -> None:
        self._require_filters()
        there = self.storage.kernels()
        if kernel not in there:
            raise SelectionError(f"no {kernel} filters in {self.location}; there are: {', '.join(there) or 'none'}")

    def _fingerprinted(self, query: str) -> pa.Table:
        """The answer to a query over the fingerprints, after they were updated where possible."""
        self._ensure_index(fingerprints=True)
        return self._table(query)

    def _ensure_index(self, *, fingerprints: bool = False) -> None:
        """Update the index where possible.

        Args:
            fingerprints: Also the fingerprints, which take longer than all the rest.

        Raises:
            DamagedIndexError: It is damaged, and cannot be rebuilt here.
            DatabaseError: Fingerprints are missing, and cannot be computed here.
        """
        self._bases.prepare(self.progress, fingerprints=fingerprints)
        if fingerprints and (missing := self._bases.without_fingerprints()):
            raise DatabaseError(
                f"{self.location}: {len(missing)} models without fingerprints, such as {missing[0]}; "
                "`cnnfilterdb index` computes them"
            )
        if wrong := self._bases.unsound():
            path, reason = next(iter(wrong.items()))
            more = f" and {len(wrong) - 1} more" if len(wrong) > 1 else ""
            raise DamagedIndexError(
                f"{self.location}: the index is damaged ({printable(path)}: {reason}{more}); `cnnfilterdb index` "
                "rebuilds it"
            )
