"""Questions about descent: how do two models differ, layer by layer?"""

from __future__ import annotations

from typing import TYPE_CHECKING

from cnnfilterdb.analysis import descent, lineage
from cnnfilterdb.analysis.queries import run
from cnnfilterdb.core.errors import SelectionError, unknown_model
from cnnfilterdb.core.sqltext import literal
from cnnfilterdb.questions.structure import Structure
from cnnfilterdb.questions.tables import undisturbed

if TYPE_CHECKING:
    import pandas as pd

__all__ = ["Lineage"]


class Lineage(Structure):
    """Comparison of the weights of models. Part of :class:`~cnnfilterdb.Reader`."""

    @undisturbed
    def related_models(self) -> pd.DataFrame:
        """Pairs of models whose weights point in nearly the same direction: fine-tuned, or from a common ancestor.

        Layers are paired by shape, in order, and compared by sketches of 64 numbers
        (:func:`cnnfilterdb.stats.weight_sketch`), which `cnnfilterdb index` has computed; :meth:`diff` compares the
        weights of a pair themselves. A model whose channels are permuted computes the same and is not found.

        Returns:
            ``model_a``, ``model_b``, ``cosine``: that of all paired layers together, each less its mean kernel,
            estimated with a standard error of 0.125 for one layer and less for several; and ``layers``, the number of
            pairs. Pairs are listed from 0.15 and five standard errors of chance on.

        Raises:
            DatabaseError: A read-only database whose fingerprints were not computed.

        >>> import numpy as np
        >>> parent = {"conv.weight": db.layer_weights("custom/scans", 1)}
        >>> noise = np.random.default_rng(0).normal(0, 0.02, parent["conv.weight"].shape)
        >>> tuned = {"conv.weight": (parent["conv.weight"] + noise).astype(np.float32)}
        >>> families = cnnfilterdb.create("families.db")
        >>> keys = families.add(parent, "parent"), families.add(tuned, "tuned")
        >>> families.related_models().round(2)
                 model_a       model_b  cosine  layers
        0  custom/parent  custom/tuned     0.9       1
        """
        frame: pd.DataFrame = self._fingerprinted("FROM related_models").to_pandas()
        return frame

    @undisturbed
    def lineage(self, *, kurtosis: str | None = None) -> pd.DataFrame:
        """Which models descend from which: the trees of related models, with directions where the evidence allows.

        Related models (:meth:`related_models`) are joined by the shortest trees through their distances
        (:func:`cnnfilterdb.stats.forest`), and each tree is rooted where most of the evidence is met: a model was
        pretrained on what another was trained on, or is flagged untrained. Without evidence the model in the middle is
        the root, and the directions are unknown. Missing ancestors are not invented: siblings are then joined with each
        other. Models whose channels were permuted are not found.

        Args:
            kurtosis: How the kurtosis of the weights moves from a parent to its children, where you know it: it
                ``rises`` while a network learns and ``falls`` where a large one is specialised (Horwitz, Shul and
                Hoshen, arXiv 2405.18432). Directions by kurtosis are likely, not known.

        Returns:
            One row per model, trees by size, parents before children: ``tree`` (from 0), ``model``, ``parent`` (missing
            for roots), ``distance`` from the parent, |a - b| / sqrt(|a| |b|) of the layers that both have, less their
            mean kernels, with a relative error of 9 % for one layer and less for several; ``cosine`` and ``layers`` of
            the pair, ``direction`` (``known``, ``likely`` or ``unknown``) and ``evidence`` (``pretraining``,
            ``untrained`` or ``kurtosis``).

        Raises:
            SelectionError: Another ``kurtosis``.
            DatabaseError: A read-only database whose fingerprints were not computed.

        >>> db.lineage().empty   # the three models are not related
        True
        """
        related = self._fingerprinted("FROM related_models")
        listed = ", ".join(map(literal, {*related["model_a"].to_pylist(), *related["model_b"].to_pylist()})) or "NULL"
        sketches = self._table(f"FROM layer_sketches WHERE model_id IN ({listed})")
        models = self._table(
            "SELECT model_id, training_dataset, pretraining_dataset, untrained FROM models "
            f"WHERE model_id IN ({listed})"
        )
        return descent.lineage_frame(related, sketches, models, kurtosis)

    @undisturbed
    def diff(self, model_a: str, model_b: str) -> pd.DataFrame:
        """Compare the weights of two models, layer by layer.

        Layers are paired by name and shape, and otherwise by order and shape: names may differ. 1x1 kernels are not
        stored, so their layers are not compared. A network whose channels are permuted computes the same as before, but
        it appears unrelated.

        Args:
            model_a: Key of a model, such as the parent.
            model_b: Key of another, such as one that was fine-tuned.

        Returns:
            One row per pair of layers: ``layer_a``, ``layer_b``, ``name_a``, ``name_b``, ``kernel``, ``depth`` (of the
            first, 0 to 1), ``weights``, ``cosine``, ``distance`` (|a - b| / sqrt(|a| |b|)), ``changed_kernels`` (share
            with any changed weight), ``equal_weights`` (share equal bit for bit), ``scaled_cosine`` (the cosine after
            each output channel is scaled as it fits best), ``shift`` of the coefficients (nats), and ``relation``:
            ``identical``, ``scaled`` (as folding a batch normalisation does), ``related`` (cosine of at least 0.15) or
            ``unrelated``. ``attrs["total"]`` has the same of all pairs together (the shift of the 3x3 ones), and
            ``attrs["unpaired_a"]`` and ``attrs["unpaired_b"]`` the names of the layers without a counterpart.

        Raises:
            UnknownModelError: No such model exists.
            SelectionError: No layer of one has the shape of one of the other.

        >>> same = db.diff("custom/scans", "custom/scans")
        >>> same[["name_a", "cosine", "distance", "changed_kernels", "shift", "relation"]].round(6)
           name_a  cosine  distance  changed_kernels  shift   relation
        0    down     1.0       0.0              0.0    0.0  identical
        1  middle     1.0       0.0              0.0    0.0  identical
        2      up     1.0       0.0              0.0    0.0  identical
        """
        there = self.storage.model_ids()
        for model_id in (model_a, model_b):
            if model_id not in there:
                raise unknown_model(model_id, there, self.location)
        first, second = (
            run(
                self._connect("layers"),
                "SELECT model_id, layer, layer_name, kernel, out_channels, filters, conv_depth_norm "
                f"FROM layers WHERE stored AND model_id = {literal(model_id)} ORDER BY layer",
            )
            for model_id in (model_a, model_b)
        )
        bases = {}
        for kernel in set(first["kernel"].to_pylist()) & set(second["kernel"].to_pylist()):
            try:
                bases[kernel] = self._fitted(None, kernel).basis
            except SelectionError:
                continue  # a size without a basis
        weights = {kernel: basis.explained_variance_ratio for kernel, basis in bases.items()}
        frame = lineage.diff_frame(self.storage, first, second, bases, weights)
        if frame.empty:
            raise SelectionError(
                f"{model_a} and {model_b} have no stored layers of the same shape; `cnnfilterdb layers` lists them"
            )
        return frame
