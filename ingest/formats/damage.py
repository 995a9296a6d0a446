"""What is wrong with a file, told as one line."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from cnnfilterdb.errors import CnnFilterDbError, WeightFileError

__all__ = ["one_line", "undamaged"]


def one_line(error: BaseException) -> str:
    """The message of an error, on one line and of bounded length.

    >>> one_line(ValueError("no  such thing"))
    'no such thing'
    """
    return " ".join(str(error).split())[:200] or type(error).__name__


@contextmanager
def undamaged(name: str, what: str) -> Iterator[None]:
    """Turn whatever a damaged or hostile file makes fail into an error of this package.

    Args:
        name: The file, or what of it is read.
        what: What it should be, such as ``ONNX file``.

    Raises:
        WeightFileError: Anything else than an error of this package was raised.
    """
    try:
        yield
    except CnnFilterDbError:
        raise
    except Exception as error:
        raise WeightFileError(f"{name}: a damaged {what} ({one_line(error)}); bring it again") from error
