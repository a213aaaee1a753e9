"""The environment of a container's process, put together as Docker does."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from pagein.errors import UsageError
from pagein.runtime.defaults import PATH


def build_environment(
    image: Iterable[str],
    asked: Iterable[str],
    host: Mapping[str, str],
    *,
    hostname: str,
    home: str,
    tty: bool,
) -> list[str]:
    """Return ``K=V`` entries, each K once: defaults, then the image's, then what was asked for.

    An ``asked`` entry without ``=`` takes the host's value; where the host has none the variable
    is unset. Image entries that are no assignment are dropped. Raises UsageError for an asked
    entry without a name.
    """
    values = {"PATH": PATH, "HOSTNAME": hostname}
    if tty:
        values["TERM"] = "xterm"  # what the host has, the image's terminfo may not know
    for entry in image:
        name, equals, value = entry.partition("=")
        if name and equals and "\0" not in entry:
            values[name] = value
    for entry in asked:
        name, equals, value = entry.partition("=")
        if not name or "\0" in entry:
            raise UsageError(f"not a variable: {entry[:80]!r}", hint="--env NAME=VALUE")
        if equals:
            values[name] = value
        elif name in host:
            values[name] = host[name]
        else:
            values.pop(name, None)
    values.setdefault("HOME", home)
    return [f"{name}={value}" for name, value in values.items()]
