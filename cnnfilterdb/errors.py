"""The errors of cnnfilterdb, as a module to import: ``from cnnfilterdb.errors import QueryError``.

They are the ones at the root of the package, all below :class:`CnnFilterDbError`.
"""

from cnnfilterdb.core.errors import *  # noqa: F403
from cnnfilterdb.core.errors import __all__ as __all__
