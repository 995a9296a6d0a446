"""Structure of kernels: symmetry, position, distance, subspaces and spectra, and new kernels like the stored ones."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from cnnfilterdb import stats
from cnnfilterdb.analysis import groups as groupings
from cnnfilterdb.analysis import structure
from cnnfilterdb.analysis.grouping import Grouping
from cnnfilterdb.analysis.queries import condition
from cnnfilterdb.core import sqltext
from cnnfilterdb.core.errors import SelectionError
from cnnfilterdb.core.schema import kernel_shape
from cnnfilterdb.questions.conclusions import Conclusions
from cnnfilterdb.questions.tables import undisturbed
from cnnfilterdb.stats.arguments import whole_number

if TYPE_CHECKING:
    import pandas as pd

__all__ = ["Structure"]


class Structure(Conclusions):
    """Structure of the kernels of layers and groups. Part of :class:`~cnnfilterdb.Reader`.

    All but :meth:`shapes` and :meth:`first_layer_profile` are answered from what is stored about layers.
    """

    @undisturbed
    def mean_symmetries(
        self, by: str, *, where: str | None = None, kernel: str = "3x3", all_layers: bool = False
    ) -> pd.DataFrame:
        """Symmetry of the mean kernels of layers, averaged over the layers of each group.

        :func:`cnnfilterdb.stats.mean_symmetry` has the formula; the same as the SQL macro ``mean_symmetries``.

        Args:
            by: Grouping expression, such as ``"stride_h"``: uneven padding makes mean kernels asymmetric.
            where: Condition that narrows the rows.
            kernel: Kernel size.
            all_layers: Include transposed and dead layers, which the papers leave out.

        Returns:
            ``models``, ``layers``, ``filters`` and ``mean_symmetry`` of each group: 1 for symmetric mean kernels, about
            0.4 for random ones.

        Raises:
            SelectionError: An expression that cannot be answered, or nothing selected.

        >>> db.mean_symmetries("domain").round(3)
                    models  layers  filters  mean_symmetry
        domain
        medical ct       1       2      400          0.615
        natural          2       3     1088          0.308
        """
        return self._by_group("mean_symmetries", by, where, kernel, all_layers).set_index("group").rename_axis(by)

    @undisturbed
    def position_profile(
        self, by: str, *, where: str | None = None, kernel: str = "3x3", all_layers: bool = False
    ) -> pd.DataFrame:
        """How the energy of kernels is distributed over positions: the same as the SQL macro ``position_profile``.

        Args:
            by: Grouping expression.
            where: Condition that narrows the rows.
            kernel: Kernel size.
            all_layers: Include transposed and dead layers, which the papers leave out.

        Returns:
            One row per group and position ``y``, ``x``: the number of ``layers``, ``energy`` (the mean over layers of
            the position's share of their sum of squared weights), and ``relative``, its root relative to the position
            with the most (Ding et al., arXiv 1908.03930, take absolute weights instead).

        Raises:
            SelectionError: An expression that cannot be answered, or nothing selected.

        >>> found = db.position_profile("domain")
        >>> found[(found["y"] == 1) & (found["x"] == 1)].round(3)
                group  y  x  layers  energy  relative
        4  medical ct  1  1       2   0.248     1.000
        13    natural  1  1       3   0.024     0.364
        """
        return self._by_group("position_profile", by, where, kernel, all_layers)

    @undisturbed
    def spatial_correlation(
        self, by: str, *, where: str | None = None, kernel: str = "3x3", all_layers: bool = False
    ) -> pd.DataFrame:
        """Correlation of the weights of scaled kernels by their distance.

        :func:`cnnfilterdb.stats.spatial_correlation` has the formula, the SQL macro ``spatial_correlation`` the same.

        Args:
            by: Grouping expression.
            where: Condition that narrows the rows.
            kernel: Kernel size.
            all_layers: Include transposed and dead layers, which the papers leave out.

        Returns:
            One row per group and distance: ``dy`` rows and ``dx`` columns apart, and the mean ``correlation``.

        Raises:
            SelectionError: An expression that cannot be answered, or nothing selected.

        >>> db.spatial_correlation("domain").query("dy + dx == 1").round(3)
                 group  dy  dx  correlation
        1   medical ct   0   1        0.518
        3   medical ct   1   0        0.514
        10     natural   0   1        0.321
        12     natural   1   0        0.509
        """
        return self._by_group("spatial_correlation", by, where, kernel, all_layers)

    @undisturbed
    def subspace_overlap(
        self, by: str, *, dimensions: int = 3, where: str | None = None, kernel: str = "3x3", all_layers: bool = False
    ) -> pd.DataFrame:
        """How well the first principal components of the kernels of one group serve another one.

        :func:`cnnfilterdb.stats.subspace_overlap` has the formula.

        Args:
            by: Grouping expression.
            dimensions: Number of components.
            where: Condition that narrows the rows.
            kernel: Kernel size.
            all_layers: Include transposed and dead layers, which the papers leave out.

        Returns:
            Square DataFrame: in row a and column b, the variance of b within the components of a, as a share of that
            within its own. ``attrs["own"]`` is the share of the variance of each group within its own components.

        Raises:
            SelectionError: An argument that cannot be answered, nothing selected, or a group without variance.

        >>> db.subspace_overlap("domain", dimensions=2).round(2)
        domain      medical ct  natural
        domain
        medical ct        1.00     0.15
        natural           0.08     1.00
        """
        whole_number(1, "dimensions", dimensions)
        question = Grouping(by, where, kernel, all_layers=all_layers)
        kernel_shape(kernel)
        rows = groupings.selection(self._connect("facts"), question)
        return structure.overlap(rows, by, kernel, dimensions)

    @undisturbed
    def shapes(
        self, by: str, *, where: str | None = None, kernel: str = "3x3", all_kinds: bool = False
    ) -> pd.DataFrame:
        """What share of depthwise kernels look like a blob, a difference of Gaussians, an edge, a bar or a cross.

        :func:`cnnfilterdb.stats.named_shapes` has the shapes. They are those of depthwise kernels of trained networks;
        the kernels themselves are read.

        Args:
            by: Grouping expression.
            where: Condition that narrows the rows.
            kernel: Kernel size, from 3x3 on.
            all_kinds: Include the kernels of ordinary and grouped convolutions, which are sums over channels.

        Returns:
            ``filters`` of each group and the share of each shape: ``on`` and ``off`` (blobs with a positive or negative
            centre), ``on_surround`` and ``off_surround`` (differences of Gaussians), ``edge_x``, ``edge_y``, ``bar_x``,
            ``bar_y``, ``cross``, and ``other``. ``attrs["by_chance"]`` has the shares of random kernels: 7 % of 3x3
            kernels get a name by chance, of larger ones none.

        Raises:
            SelectionError: An expression that cannot be answered, nothing selected, or kernels smaller than 3x3.

        >>> db.shapes("domain", all_kinds=True)[["filters", "edge_x", "other"]].round(2)
                    filters  edge_x  other
        domain
        medical ct      400    0.00   0.76
        natural        1088    0.31   0.58
        """
        stats.shape_bank(*kernel_shape(kernel))  # refuses other sizes
        if not all_kinds:
            where = "kind = 'depthwise'" + (f" AND {condition(where)}" if where else "")
        question = Grouping(by, where, kernel)
        self._require_filters()
        rows = groupings.selection(self._connect("facts"), question, moments=False)
        return structure.shapes(self.storage, rows, by, kernel)

    @undisturbed
    def spectra(self, *, where: str | None = None, kernel: str = "3x3") -> pd.DataFrame:
        """Power-law tail, norm and rank of the matrices of layers, and how heavy the tails of their weights are.

        :func:`cnnfilterdb.stats.layer_spectrum` explains the numbers, which `cnnfilterdb index` has computed; the SQL
        view ``spectra`` has those of all kernel sizes.

        Args:
            where: Condition over the columns of models and layers.
            kernel: Kernel size.

        Returns:
            ``model_id``, ``layer``, ``filters``, ``alpha``, ``alpha_ks``, ``alpha_hat``, ``lambda_max``,
            ``spectral_norm`` (the largest singular value), ``stable_rank``, ``kurtosis`` and ``peak_ratio``; missing
            where one is not defined.

        Raises:
            SelectionError: A condition that cannot be answered.
            DatabaseError: A read-only database whose fingerprints were not computed.

        >>> db.spectra(where="name = 'scans'")[["layer", "alpha", "lambda_max", "stable_rank"]].round(2)
           layer  alpha  lambda_max  stable_rank
        0      0   3.76        0.02         4.52
        1      1   3.12        0.18        18.16
        """
        kernel_shape(kernel)
        chosen = f"SELECT model_id, layer FROM facts WHERE kernel = {sqltext.literal(kernel)} AND {condition(where)}"
        frame: pd.DataFrame = self._fingerprinted(
            f"SELECT * EXCLUDE (layer_name, kernel) FROM spectra SEMI JOIN ({chosen}) USING (model_id, layer) "
            "ORDER BY model_id, layer"
        ).to_pandas()
        numbers = [name for name in frame.columns if name not in ("model_id", "layer", "filters")]
        return frame.astype(dict.fromkeys(numbers, "Float64"))

    @undisturbed
    def first_layer_profile(self, *, where: str | None = None, kernel: str = "3x3") -> pd.DataFrame:
        """Energy of the first layers of models along frequencies and opponent colours.

        :func:`cnnfilterdb.stats.first_layer_profile` has the formula. ``.T.corr()`` of the answer compares models.

        Args:
            where: Condition over the columns of models and layers.
            kernel: Kernel size.

        Returns:
            One row per model whose first ordinary convolution of that size with three input channels is stored, by
            ``model_id``; columns ``luminance_0_0``, ... by colour, vertical and horizontal frequency; they add up
            to 1.

        Raises:
            SelectionError: A condition that cannot be answered, or no such layer.

        >>> db.first_layer_profile(kernel="5x5").shape
        (2, 75)
        """
        return structure.first_layers(self.storage, self._connect("facts"), where, kernel)

    @undisturbed
    def initializer(
        self, *, where: str | None = None, kernel: str = "3x3", coefficients: str = "gaussian"
    ) -> stats.Initializer:
        """Draws new kernels from the distribution of the selected ones, to initialise a network with.

        Args:
            where: Condition over the columns of models and layers.
            kernel: Kernel size.
            coefficients: ``gaussian`` draws them with the mean and covariance of the selection, ``histogram`` from
                the histograms of its coefficients in the stored basis.

        Raises:
            SelectionError: A condition that cannot be answered, nothing selected, or other ``coefficients``.

        >>> db.initializer(where="domain = 'natural'", coefficients="histogram").sample((8, 4, 3, 3)).shape
        (8, 4, 3, 3)
        """
        if coefficients == "gaussian":
            moments = self.moments(where=where, kernel=kernel)
            return stats.Initializer(stats.Basis.fit(moments, kernel))
        if coefficients != "histogram":
            raise SelectionError(f"coefficients: {coefficients!r} given; expected gaussian or histogram")
        found = self.groups("true", where=where, kernel=kernel)
        edges = np.linspace(found.low, found.high, found.counts.shape[2] + 1)
        return stats.Initializer(found.basis, edges, stats.shares(found.counts[0]))

    def _by_group(self, macro: str, by: str, where: str | None, kernel: str, all_layers: bool) -> pd.DataFrame:
        """The rows of a table macro about groups."""
        kernel_shape(kernel)
        question = Grouping(by, where, kernel, all_layers=all_layers)
        frame = self._frame(
            f'FROM {macro}({sqltext.expression(by, "by")}, "where" := {condition(where)}, '
            f"kernel := {sqltext.literal(kernel)}, all_layers := {bool(all_layers)})"
        )
        if frame.empty:
            raise question.empty()
        return frame
