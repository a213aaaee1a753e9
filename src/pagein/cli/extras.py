"""What is installed only on machines that need it: said in one line where it is absent."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator


@contextlib.contextmanager
def needing_containerd() -> Iterator[None]:
    """Raise UsageError where an import fails that ``pagein[containerd]`` brings."""
    from pagein.errors import UsageError

    try:
        yield
    except ModuleNotFoundError as error:
        if (error.name or "").startswith("pagein"):
            raise
        raise UsageError(
            f"this needs the Python package of {error.name}",
            hint="install pagein with its containerd extra: pip install 'pagein[containerd]'",
        ) from None
