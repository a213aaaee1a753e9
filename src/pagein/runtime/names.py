"""Container names: they become file names, cgroup names and host names."""

from __future__ import annotations

import re
import secrets

from pagein.errors import UsageError

_NAME = re.compile(r"[a-zA-Z0-9][a-zA-Z0-9_.-]*")
_MAX_LENGTH = 128
"""Well below NAME_MAX (255), which a cgroup name ``pagein-NAME`` and a lock file must keep."""


def check_name(name: str) -> str:
    """Return ``name`` if a container may be called so, as Docker spells names; else UsageError."""
    if len(name) > _MAX_LENGTH or not _NAME.fullmatch(name):
        raise UsageError(
            f"not a container name: {name[:80]!r}",
            hint="letters, digits, '_', '.' and '-', the first a letter or digit, at most "
            f"{_MAX_LENGTH}",
        )
    return name


def new_name() -> str:
    """Make a name that nobody has: 12 hex digits, like a short Docker id."""
    return secrets.token_hex(6)
