"""What is wrong with a file, in one line that can be printed."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from cnnfilterdb.core.errors import CnnFilterDbError, WeightFileError

__all__ = ["reason_of", "undamaged"]


def reason_of(error: BaseException) -> str:
    """The message of an error, on one line and of bounded length.

    >>> reason_of(ValueError("no  such thing"))
    'no such thing'
    """
    return " ".join(str(error).split())[:200] or type(error).__name__


@contextmanager
def undamaged(name: str, what: str) -> Iterator[None]:
    """Convert any exception that a damaged or hostile file causes to an error of this package.

    Args:
        name: The file, or the part of it that is read.
        what: What it should be, such as ``ONNX file``.

    Raises:
        WeightFileError: Any error other than one of this package was raised.
    """
    try:
        yield
    except CnnFilterDbError:
        raise
    except MemoryError as error:
        why = f"takes more memory than there is ({reason_of(error)})"
        raise WeightFileError(f"{name}: reading this {what} {why}; it may be damaged or malicious") from error
    except Exception as error:
        raise WeightFileError(f"{name}: a damaged {what} ({reason_of(error)}); download it again") from error
