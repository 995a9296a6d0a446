"""Questions about descent: how do two models differ, layer by layer?"""

from __future__ import annotations

from typing import TYPE_CHECKING

from cnnfilterdb.analysis import lineage
from cnnfilterdb.analysis.queries import run
from cnnfilterdb.errors import SelectionError, unknown_model
from cnnfilterdb.questions.structure import Structure
from cnnfilterdb.questions.tables import undisturbed
from cnnfilterdb.sql import literal

if TYPE_CHECKING:
    import pandas as pd

__all__ = ["Lineage"]


class Lineage(Structure):
    """Comparison of the weights of models. Part of :class:`~cnnfilterdb.Reader`."""

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
