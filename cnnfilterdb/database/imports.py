"""Importing models into a database folder: from a source, from weights of one's own, from the papers' dataset."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Unpack

from cnnfilterdb import catalog
from cnnfilterdb.analysis.options import names_of
from cnnfilterdb.core.errors import SelectionError
from cnnfilterdb.core.reports import IngestReport, Observer
from cnnfilterdb.core.schema import GivenFacts, check_fact_types
from cnnfilterdb.database.reader import Reader
from cnnfilterdb.store import annotations as notes
from cnnfilterdb.store.folder import Store
from cnnfilterdb.store.index import Index, Projection

__all__ = ["Imports"]


class Imports(Reader):
    """How models come into a database folder. Part of :class:`~cnnfilterdb.FilterDB`."""

    path: Path
    _store: Store
    _index: Index

    def ingest(
        self,
        source: str,
        names: str | Sequence[str] = (),
        *,
        folder: str | Path | None = None,
        offline: bool = False,
        partial: bool = False,
        overwrite: bool = False,
        fold_bn: bool = False,
        allow_untrained: bool = False,
        shard: str | None = None,
        observer: Observer | None = None,
    ) -> IngestReport:
        """Import models from a source. Models already present are skipped; one that fails does not stop the others.

        A model whose weights look like random initialisation fails, unless the catalog states the hash of its file;
        then it is only flagged.

        Args:
            source: Name of the source, such as ``pypi`` or ``files``.
            names: Names or wildcards, such as ``"deepcr/*"``; none means all.
            folder: Folder that is searched for files before anything is downloaded.
            offline: Do not access the network.
            partial: Download only the convolutions of a file.
            overwrite: Import models again that are already present.
            fold_bn: Fold the batch normalisations that are known to follow convolutions into the kernels, as exports to
                ONNX do; ``bn_folded`` says for which layers that was done. The models are stored under their names with
                ``+bn``, so that both variants can be present.
            allow_untrained: Import models whose weights look like random initialisation, and flag them.
            shard: ``"I/N"``: only the I-th of N shares of the models, which share a model is in depends on its key.
            observer: Receives progress events.

        Returns:
            The outcome for each model.

        Raises:
            UnknownModelError: An unknown source, or a name that matches nothing.
            SelectionError: An option that the source does not have, or no such shard.

        >>> from safetensors.numpy import save_file
        >>> import numpy as np
        >>> tensors = {"conv.weight": db.layer_weights("custom/scans", 0)}
        >>> save_file(tensors, "mine.safetensors")
        >>> mine = cnnfilterdb.create("mine.db")
        >>> print(mine.ingest("files", "mine.safetensors"))
        1 done, 0 skipped, 0 failed
        """
        from cnnfilterdb.ingest import pipeline, sources

        given = {"folder": folder, "offline": offline or None, "partial": partial or None}
        origin = sources.get(source, **given)
        patterns = names_of("names", names)
        chosen = pipeline.in_share(source, list(origin.list(patterns)), shard, fold_bn=fold_bn)
        options: dict[str, Any] = {
            "overwrite": overwrite,
            "observer": observer,
            "fold_bn": fold_bn,
            "allow_untrained": allow_untrained,
        }
        if self._store.resources.runner.remote:
            from cnnfilterdb.ingest.elsewhere import ingest_elsewhere

            report = ingest_elsewhere(self._store, source, given, patterns, chosen, **options)
        else:
            report = pipeline.ingest(self._store, origin, chosen, projector=lambda: Projection(self._index), **options)
        self._write_init()
        return report

    def add(
        self, weights: Any, name: str, *, overwrite: bool = False, fold_bn: bool = False, network: str | None = None,
        merge_adapters: bool | float = False, new_words: bool = False, **facts: Unpack[GivenFacts],
    ) -> str:  # fmt: skip
        """Add your own model under the source ``custom``.

        Args:
            weights: A file, the folder of one model, a mapping of names to tensors or arrays, a ``torch.nn.Module`` or
                a ``keras.Model``.
                Arrays that are named as in PyTorch are (out, in, h, w).
            name: Its name.
            overwrite: Replace a model of that name.
            fold_bn: Fold batch normalisations into the kernels, and add ``+bn`` to the name; see :meth:`ingest`.
            network: Which network of a file with several, by its name; by default all, but one of two copies.
            merge_adapters: Merge LoRA adapters into their layers: True, or their scale if the file does not state it.
            new_words: Accept a domain, task, framework or family that the catalog does not know.
            **facts: Known facts about it: ``domain``, ``task``, ``architecture``, ... (:class:`ModelFacts`).

        Returns:
            The model id.

        Raises:
            SelectionError: The name is taken, or the name of a fact or a word of the catalog is unknown.
            IngestError: It cannot be read.

        >>> db = cnnfilterdb.example()
        >>> weights = {"conv.weight": 2 * db.layer_weights("custom/scans", 1)}
        >>> db.add(weights, "louder", domain="medical ct")
        'custom/louder'
        >>> round(float(db.kl_shift("name").loc["scans", "louder"]), 2)
        0.03
        """
        from cnnfilterdb.ingest import pipeline

        notes.check_fact_names(facts, list(GivenFacts.__annotations__), options=("overwrite", "fold_bn", "new_words"))
        check_fact_types(facts)
        catalog.check_facts(facts, new_words=new_words)
        name = pipeline.stored_name(name, fold_bn=fold_bn)
        model_id = f"custom/{name}"
        if self._store.has(model_id) and not overwrite:
            raise SelectionError(f"{model_id} is in {self.path} already; choose another name or overwrite it")
        with pipeline.weights_given(weights, network=network, merge_adapters=merge_adapters) as (read, origin, own):
            pipeline.take_in(
                self._store,
                read,
                source="custom",
                name=name,
                facts=lambda: own().updated(**facts),
                projector=Projection(self._index),
                overwrite=overwrite,
                origin=origin,
                fold_bn=fold_bn,
            )
        self._write_init()
        return model_id

    def import_released(
        self, path: str | Path, *, trust: bool = False, overwrite: bool = False, observer: Observer | None = None
    ) -> IngestReport:
        """Import the models of the papers' released dataset, in any of its three layouts.

        Models already present are skipped; repeat the call to resume an interrupted import.

        Args:
            path: The unpacked file, ``dataset.h5``.
            trust: Let pandas unpickle its table if it cannot be read safely, which can run code in the file; needs
                the extra ``hdf5``.
            overwrite: Import models again that are already present.
            observer: Receives progress events.

        Raises:
            WeightFileError: Not such a file, or a damaged one; nothing is written then.
            UnsafeFileError: It asks for code to be executed.
            MissingExtraError: ``trust`` without the extra.

        >>> done = db.export("dataset.h5")
        >>> papers = cnnfilterdb.create("papers.db")
        >>> print(papers.import_released("dataset.h5"))
        3 done, 0 skipped, 0 failed
        """
        from cnnfilterdb.ingest import papers_dataset

        with papers_dataset.ReleasedDataset(path, trust=trust) as dataset:
            report = papers_dataset.import_models(
                self._store, dataset, projector=lambda: Projection(self._index), overwrite=overwrite, observer=observer
            )
        self._write_init()
        return report

    @abstractmethod
    def _write_init(self) -> None:
        """Update ``init.sql`` after a change."""
