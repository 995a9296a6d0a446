"""What is wrong with a file, in one line that can be printed."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from cnnfilterdb.errors import CnnFilterDbError, WeightFileError

__all__ = ["one_line", "printable", "undamaged"]


def one_line(error: BaseException) -> str:
    """The message of an error, on one line and of bounded length.

    >>> one_line(ValueError("no  such thing"))
    'no such thing'
    """
    return " ".join(str(error).split())[:200] or type(error).__name__


def printable(text: str) -> str:
    r"""A text with its control characters, and what cannot be encoded, as escapes.

    >>> printable("conv\x1b[31m")
    'conv\\x1b[31m'
    """
    if text.isprintable():
        return text
    return "".join(
        char if char.isprintable() else char.encode("unicode_escape", "surrogatepass").decode("ascii") for char in text
    )


@contextmanager
def undamaged(name: str, what: str) -> Iterator[None]:
    """Convert any exception that a damaged or hostile file causes to an error of this package.

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
        raise WeightFileError(f"{name}: a damaged {what} ({one_line(error)}); download it again") from error
