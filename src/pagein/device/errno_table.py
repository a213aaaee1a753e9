"""What the kernel is told when a read fails: one table.

Whatever went wrong with a source or a sector, a container sees ``EIO``, and its next read tries
again. Nothing else is worth telling apart to a program that only reads a file.
"""

from __future__ import annotations

import errno
from typing import Final

from pagein.errors import PageinError, UsageError

_TABLE: Final[tuple[tuple[type[BaseException], int], ...]] = (
    (UsageError, errno.EINVAL),
    (PageinError, errno.EIO),
    (MemoryError, errno.ENOMEM),
)


def errno_of(error: BaseException) -> int:
    """Return the error number for an exception; EIO for whatever is not in the table."""
    return next((number for kind, number in _TABLE if isinstance(error, kind)), errno.EIO)
