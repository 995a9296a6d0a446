"""Locks between processes: files that are locked by ``flock``, which the system releases when a process ends.

A file system without such locks is refused. Locks that consist of the existence of a file, which ``filelock`` would use
instead, are never released by a process that is killed, and take the files of others for their own.
"""

from __future__ import annotations

import errno
import inspect
import os
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

__all__ = ["acquire"]

_WITHOUT = (errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP, errno.ENOTSUP)


def acquire(path: Path | str, seconds: float) -> AbstractContextManager[Any]:
    """Lock a file, which is made if it does not exist.

    Args:
        path: The file.
        seconds: How long to wait; -1 waits for as long as it takes.

    Returns:
        A context manager, whose block is left with the lock released.

    Raises:
        filelock.Timeout: Another process holds it.
        OSError: The file cannot be made, or the file system has no locks.
    """
    from filelock import FileLock, Timeout

    options: dict[str, Any] = {}
    if "fallback_to_soft" in inspect.signature(FileLock.__init__).parameters:  # earlier versions fail by themselves
        options["fallback_to_soft"] = False
    lock = FileLock(path, **options)
    try:
        return lock.acquire(timeout=seconds)
    except Timeout:
        raise
    except (OSError, NotImplementedError) as error:
        code = getattr(error, "errno", None) or errno.ENOSYS
        if code not in _WITHOUT:
            raise
        raise OSError(f"the file system cannot lock files ({os.strerror(code)}), see `cnnfilterdb doctor`") from error
