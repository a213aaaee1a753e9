"""The ``User`` of an image, resolved with the image's own account files, as Docker resolves it.

Rule 1. A name must be in the file; a number need not be.
Rule 2. An explicit group switches the supplementary groups off.
Rule 3. A line that cannot be read names nobody. It must never read as uid 0.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from pagein.errors import RuntimeFailedError

_MAX_ID = (1 << 31) - 1
"""Docker refuses ids above this one; 2^32 - 1 means "leave as it is" to chown(2)."""


@dataclass(frozen=True, slots=True)
class Identity:
    """Who a process runs as. ``groups`` are the supplementary groups, without ``gid``."""

    uid: int
    gid: int
    groups: tuple[int, ...]
    home: str


@dataclass(frozen=True, slots=True)
class _Account:
    name: str
    uid: int
    gid: int
    home: str


@dataclass(frozen=True, slots=True)
class _Group:
    name: str
    gid: int
    members: tuple[str, ...]


def resolve_user(user: str, passwd: bytes | None, group: bytes | None) -> Identity:
    """Resolve ``""``, ``NAME``, ``UID``, ``NAME:GROUP``, ``UID:GID`` and their mixtures.

    ``passwd`` and ``group`` are the contents of the image's files, None where it has none.
    Raises RuntimeFailedError for a name that is in neither, and for a number out of range.
    """
    user_part, _, group_part = user.partition(":")
    account = _find_account(user_part, passwd)
    uid = account.uid if account else _number(user_part or "0", "user", user)
    home = account.home if account and account.home else "/"
    if group_part:
        return Identity(uid, _find_gid(group_part, group, user), (), home)
    gid = account.gid if account else 0
    return Identity(uid, gid, _memberships(account, group, gid), home)


def _find_account(wanted: str, passwd: bytes | None) -> _Account | None:
    number = _as_id(wanted) if wanted else 0
    for account in _accounts(passwd):
        if account.name == wanted or account.uid == number:
            return account
    return None


def _find_gid(wanted: str, group: bytes | None, user: str) -> int:
    number = _as_id(wanted)
    for entry in _groups(group):
        if entry.name == wanted or entry.gid == number:
            return entry.gid
    return _number(wanted, "group", user)


def _memberships(account: _Account | None, group: bytes | None, gid: int) -> tuple[int, ...]:
    if account is None:
        return ()
    found = [g.gid for g in _groups(group) if account.name in g.members and g.gid != gid]
    return tuple(dict.fromkeys(found))


def _number(text: str, what: str, user: str) -> int:
    number = _as_id(text)
    if number is not None:
        return number
    file = "/etc/passwd" if what == "user" else "/etc/group"
    raise RuntimeFailedError(
        f"cannot run as {user[:80]!r}: no {what} {text[:80]!r} in the image's {file}",
        hint="give a number, as in --user 1000:1000",
    )


def _as_id(text: str) -> int | None:
    """Read a decimal id; None for anything else (``int`` would take ``+1``, ``1_0`` and spaces)."""
    if not (text.isascii() and text.isdigit() and len(text) <= 10):
        return None
    value = int(text)
    return value if value <= _MAX_ID else None


def _rows(data: bytes | None, fields: int) -> Iterator[list[str]]:
    for line in (data or b"").decode("utf-8", "replace").split("\n"):
        row = line.strip().split(":")
        if len(row) >= fields and row[0]:
            yield row


def _accounts(passwd: bytes | None) -> Iterator[_Account]:
    for row in _rows(passwd, 4):
        uid, gid = _as_id(row[2]), _as_id(row[3])
        if uid is not None and gid is not None:
            yield _Account(row[0], uid, gid, row[5] if len(row) > 5 else "")


def _groups(group: bytes | None) -> Iterator[_Group]:
    for row in _rows(group, 3):
        gid = _as_id(row[2])
        if gid is not None:
            members = row[3].split(",") if len(row) > 3 else []
            yield _Group(row[0], gid, tuple(m.strip() for m in members if m.strip()))
