"""Reader: queries on a local or published database, or on several as one."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Unpack

from cnnfilterdb.analysis.options import ShiftOptions, check_options, names_of
from cnnfilterdb.core.errors import PublishError, SelectionError
from cnnfilterdb.core.reports import Exported, Progress
from cnnfilterdb.questions.lineage import Lineage

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from cnnfilterdb.explore.server import ExplorerServer
    from cnnfilterdb.plots.figures import Figures
    from cnnfilterdb.publish.hub import Published
    from cnnfilterdb.publish.sources import ReleaseSource
    from cnnfilterdb.release.manifest import Manifest
    from cnnfilterdb.study.document import Study

__all__ = ["Reader"]


class Reader(Lineage):
    """A database of convolution kernels, opened for reading.

    :func:`cnnfilterdb.open` returns one for a release, for several parts, and with ``read_only=True`` for a folder.

    Args:
        storage: Where the database is located.
        bases: Its bases.
        confined: Let SQL read the files of the database only, and write nothing.

    Attributes:
        storage: Where the database is located.

    Wherever a method takes ``where`` or ``by``, it is a SQL expression over the columns of the view ``facts``: every
    column of the models and the layers table.

    One object can be used by several threads. It can be pickled; the copy opens its own connection. In the
    examples, ``db`` is :func:`cnnfilterdb.example`.
    """

    @property
    def plot(self) -> Figures:
        """The papers' figures.

        >>> figure = db.plot.kl_shift("name")
        >>> figure.savefig("shift.png")
        """
        from cnnfilterdb.plots.figures import Figures

        return Figures(self)

    def report(
        self,
        path: str | Path,
        *,
        by: str = "domain",
        title: str | None = None,
        command: str | None = None,
        **options: Unpack[ShiftOptions],
    ) -> Path:
        """Write one self-contained HTML page: what the database contains, how its groups differ, how it was computed.

        Its reader can switch between groupings, sort and filter the tables, and read values off the heat maps. The
        page needs no network and no server, and is complete without its script.

        Args:
            path: The page.
            by: Grouping expression of the grouping shown first. Domain, task, family and depth follow.
            title: Heading of the page; by default the name of the database.
            command: The command that writes the page again, to be printed on it.
            **options: Those of :meth:`kl_shift` except ``weights``.

        Returns:
            The path of the page.

        Raises:
            SelectionError: An expression or argument that cannot be answered, or nothing selected.
            DatabaseError: The page cannot be written.

        >>> db.report("report.html", by="name").stat().st_size > 100_000
        True
        """
        from cnnfilterdb.plots.reporting import write_report

        check_options("report", options, ShiftOptions)
        return write_report(self, Path(path), by, title, command, options)

    def explore(
        self, *, port: int | None = None, browser: bool = False, seconds: float = 60, memory: str = "512MB"
    ) -> ExplorerServer:
        """Serve the explorer on loopback, from a thread of this process; a notebook shows a link.

        Args:
            port: Port, 0 for any free one; by default 8737, or a free one if that is in use.
            browser: Open the browser.
            seconds: Time limit of a question.
            memory: Memory limit of DuckDB.

        Returns:
            ``url`` is what to open in a browser; it contains a token, without which nothing is answered. ``close()``,
            or leaving a ``with`` block, ends the explorer.

        Raises:
            MissingExtraError: Without the extra ``explore``.
            DatabaseError: The port is in use.

        >>> with db.explore() as explorer:
        ...     print(explorer.url.partition("#")[0])
        http://127.0.0.1:...
        """
        from cnnfilterdb.explore.server import ExplorerServer

        self._ensure_index()
        server = ExplorerServer(self, shown=self.storage.shown(), port=port, seconds=seconds, memory=memory).start()
        if browser:
            server.show()
        return server

    def study(
        self, name: str = "medical", *, permutations: int = 999, scan: bool = True, progress: Progress | None = None
    ) -> Study:
        """Answer a question of the papers with the models of this database, as a written study.

        Each conclusion has its test, effect size and interval, or says that these models cannot decide it. Models of
        one package or repository count as one unit, because they are not independent of each other.

        Args:
            name: ``medical``: does medical imaging learn different filters? (arXiv 2210.13799)
            permutations: Random permutations of each test.
            scan: Also try other bases, each of which needs a scan of all 3x3 filters.
            progress: Called with the current step, the amount done and the total.

        Returns:
            ``title``, ``answer``, ``claims`` and ``sections``; ``to_html()``, ``to_markdown()`` and ``to_json()`` write
            them out, ``pictures()`` are the figures.

        Raises:
            SelectionError: No such study, or no model on one side of its question.

        >>> study = db.study(permutations=99, scan=False)
        >>> study.answer[0].split(".")[0]
        'The models of this database cannot decide whether medical imaging learns different filters'
        >>> study.claims[0].verdict, study.claims[0].effect
        ('cannot be decided', 'shift 5.845 nats, by chance 3.371')
        """
        if name != "medical":
            raise SelectionError(f"study: {name!r} given; there is medical")
        from cnnfilterdb.study.medical import medical_study

        return medical_study(self, permutations=permutations, scan=scan, progress=progress)

    def export(
        self,
        path: str | Path,
        *,
        to: str | None = None,
        where: str | None = None,
        kernel: str = "3x3",
        progress: Progress | None = None,
    ) -> Exported:
        """Write filters to a file for other tools; see :mod:`cnnfilterdb.exchange.export` for its contents.

        Args:
            path: The file.
            to: ``parquet``, ``arrow``, ``csv``, ``npz`` or ``h5``; by default chosen by the suffix of the path.
            where: Condition over the columns of models and layers.
            kernel: Kernel size.
            progress: Called with the current step, the amount done and the total.

        Raises:
            SelectionError: An unknown format, or nothing selected.
            DatabaseError: The file cannot be written.
            MissingExtraError: ``h5`` without the extra ``hdf5``.

        >>> done = db.export("edges.npz", where="domain = 'natural'")
        >>> done.filters, done.models
        (1088, 2)
        """
        from cnnfilterdb.exchange.export import export

        return export(self, Path(path), to=to, where=where, kernel=kernel, progress=progress)

    def publish(
        self,
        repo: str,
        *,
        version: str | None = None,
        include_license: str | Sequence[str] = (),
        private: bool = False,
        token: str | None = None,
        folder: str | Path | None = None,
        verify: bool = True,
        progress: Progress | None = None,
    ) -> Published | Manifest:
        """Publish a release on the Hugging Face Hub.

        The database is verified and its index is updated; several parts become one release, in which shards of releases
        are copied as they are where possible. The release is built, uploaded so that readers see it completely or not
        at all, and tagged. Files that are already on the Hub are not sent again, so repeating the call resumes an
        interrupted upload. Large files of filters are built again when they are sent, so that an upload needs space on
        the disk for about 2 GB of them at a time. Models whose licence does not permit redistribution, or that state
        none, are left out and listed in the release.

        Args:
            repo: Data set to publish to, ``owner/name``; it is created if it does not exist.
            version: ``X.Y.Z``; by default the next minor version.
            include_license: Licences whose models are published anyway; ``unknown`` for those that state none.
            private: Create a new data set as private.
            token: Token of the user; by default the one that huggingface_hub uses.
            folder: Write the release to this folder, and upload nothing.
            verify: Check every count and every hash first.
            progress: Called with the current step, the amount done and the total.

        Returns:
            What was published; with ``folder`` the manifest of the release.

        Raises:
            PublishError: It was not published, such as a release, which is published already.
            SelectionError: A part has the statistics of its models only.
            CorruptError: The database is damaged.

        >>> manifest = db.publish("owner/name", folder="release")   # without folder it is uploaded
        >>> manifest.models, manifest.filters
        (3, 1752)
        """
        from cnnfilterdb.publish.build import DataSet
        from cnnfilterdb.publish.publish import publish

        def draw(where: str) -> Figure:
            return self.plot.kl_shift(by="domain", where=where)

        return publish(
            self._release_source(),
            DataSet(repo, draw, names_of("include_license", include_license)),
            query=self._table,
            version=version,
            private=private,
            token=token,
            folder=None if folder is None else Path(folder),
            verify=verify,
            progress=progress,
        )

    def push(
        self,
        address: str,
        *,
        storage_options: Mapping[str, Any] | None = None,
        verify: bool = True,
        progress: Progress | None = None,
    ) -> Manifest:
        """Write the database, or several parts, to object storage, where others open it as a part or pull it.

        All models are written, whatever their licences. No object is replaced, and the manifest is written last, if
        there is none: readers see the part whole or not at all, and it does not change. Repeat the call to finish one
        that was interrupted; models that are added later go to another address.

        Args:
            address: Where to write, such as ``s3://bucket/part-1``.
            storage_options: Options of the file system, such as ``{"profile": "lab"}``.
            verify: Check every count and every hash first.
            progress: Called with the current step, the amount done and the total.

        Returns:
            The manifest of what is there.

        Raises:
            PublishError: There is something else at the address, or it cannot be written.
            CorruptError: The database is damaged.

        >>> db.push("lab/part-1")
        Traceback (most recent call last):
        cnnfilterdb.PublishError: lab/part-1: not an address in object storage; expected one such as ...
        """
        from cnnfilterdb.publish.publish import push

        return push(
            self._release_source(),
            address,
            query=self._table,
            storage_options=storage_options,
            verify=verify,
            progress=progress,
        )

    def _release_source(self) -> ReleaseSource:
        from cnnfilterdb.publish.sources import source_of

        if self._views.confined:
            raise PublishError(f"{self.location}: open for reading only; open it without read_only=True")
        return source_of(self.storage, self._bases, self._table)
