"""A grouping of filters, as the user asks for it."""

from __future__ import annotations

from dataclasses import dataclass

import pyarrow as pa

from cnnfilterdb.analysis.queries import condition
from cnnfilterdb.core.errors import SelectionError
from cnnfilterdb.core.recipes import RECIPES
from cnnfilterdb.core.schema import MODELS
from cnnfilterdb.core.sqltext import check_repeatable, expression, literal, uses_only

__all__ = ["BALANCES", "Grouping"]

#: What may have the same weight within a group.
BALANCES = ("filters", "layers", "models", "families")

# The columns that all layers of a model share
_OF_MODELS = frozenset(MODELS.names) - {"files"}


@dataclass(frozen=True, slots=True)
class Grouping:
    """Which filters are grouped, and how.

    Attributes:
        by: SQL expression over the columns of the view ``facts``.
        where: SQL condition over the same columns; None keeps all rows.
        kernel: Kernel size.
        recipe: Name of the recipe.
        balance: What has the same weight within a group; one of :data:`BALANCES`.
        all_layers: Include transposed and dead layers, which the papers leave out.

    Raises:
        SelectionError: ``by`` or ``where`` is not a SQL expression, or random; an unknown recipe or balance.
    """

    by: str
    where: str | None = None
    kernel: str = "3x3"
    recipe: str = "cvpr2022"
    balance: str = "filters"
    all_layers: bool = False

    def __post_init__(self) -> None:
        expression(self.by, "by")
        condition(self.where)
        check_repeatable(self.by, "by")
        check_repeatable(self.where or "", "where")
        if self.recipe not in RECIPES:
            raise SelectionError(f"recipe: {self.recipe!r} is not one of {', '.join(RECIPES)}")
        if self.balance not in BALANCES:
            raise SelectionError(f"balance: {self.balance!r} is not one of {', '.join(BALANCES)}")

    @property
    def of_models(self) -> bool:
        """Whether all layers of a model are in the same group, with the same weight.

        >>> Grouping("domain").of_models, Grouping("floor(10 * conv_depth_norm)").of_models
        (True, False)
        """
        return self.balance != "layers" and all(uses_only(text, _OF_MODELS) for text in (self.by, self.where or "true"))

    def arguments(self, basis_id: str | None) -> str:
        """The arguments of the table macros that ask for it, as SQL."""
        return (
            f'{expression(self.by, "by")}, "where" := {condition(self.where)}, '
            f"recipe := {literal(self.recipe)}, "
            f"balance := {literal(self.balance)}, kernel := {literal(self.kernel)}, "
            f"basis := {literal(basis_id) if basis_id else 'NULL'}, all_layers := {self.all_layers}"
        )

    def check_kind(self, rows: pa.Table | pa.RecordBatch) -> None:
        """Refuse groups that are lists or structs, which have no order and no name.

        Args:
            rows: They have a column ``group``.

        Raises:
            SelectionError: The groups are such values.
        """
        kind = rows.schema.field("group").type
        if pa.types.is_nested(kind):
            raise SelectionError(
                f"by: each value of {self.by!r} is a {kind}; group by a text, number or date, such as domain"
            )

    def empty(self) -> SelectionError:
        """The error if it has no filters."""
        by = "" if self.by == "true" else f" by {self.by}"
        where = f" where {self.where}" if self.where else ""
        return SelectionError(f"no {self.kernel} filters{by}{where}; `cnnfilterdb layers` lists what is stored")
