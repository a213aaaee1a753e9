"""What containerd's configuration must say for pagein: merged into what is there, taken out again.

Rule 1. Text in, text out: no file is touched here.
Rule 2. Comments, order and other people's settings stay as they are.
Sources: containerd docs/cri/config.md (plugin names by version of the file), docs/PLUGINS.md
(``proxy_plugins``), docs/transfer.md (``unpack_config``).
"""

from __future__ import annotations

import platform
import re
import tomllib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import tomlkit
from tomlkit.exceptions import TOMLKitError
from tomlkit.items import InlineTable

from pagein.errors import UsageError

NAME: Final = "pagein"
"""What the plugin is called in containerd, and so ``ctr --snapshotter`` too."""

_CRI: Final[Mapping[int, tuple[str, ...]]] = {
    1: ("plugins", "cri", "containerd"),
    2: ("plugins", "io.containerd.grpc.v1.cri", "containerd"),
    3: ("plugins", "io.containerd.cri.v1.images"),
}
"""Where CRI's snapshotter is chosen, by the version of the file; 3 needs containerd 2.0."""

_TRANSFER: Final = ("plugins", "io.containerd.transfer.v1.local")
_UNPACK: Final = "unpack_config"
_CRI_NAMES: Final = frozenset({"cri", "io.containerd.grpc.v1.cri", "io.containerd.cri.v1.images"})

Version = tuple[int, int, int]


@dataclass(frozen=True, slots=True)
class Target:
    """Which containerd the text is for, and where our socket and state are.

    ``cri`` chooses pagein for Kubernetes' pods; without, it is only offered to those who name it.
    """

    version: Version
    socket: Path
    state: Path
    cri: bool = True

    @property
    def exports_root(self) -> bool:
        """Whether kubelet's image file-system figures can follow a proxy plugin."""
        return self.version >= (1, 7, 16) or (1, 6, 32) <= self.version < (1, 7, 0)

    @property
    def transfers(self) -> bool:
        """Whether clients pull through the transfer service, which has a list of its own."""
        return self.version >= (2, 1, 0)


def parse_version(text: str) -> Version:
    """Read what ``containerd --version`` prints. Raises UsageError."""
    match = re.search(r"\bv?(\d+)\.(\d+)\.(\d+)", text)
    if match is None:
        raise UsageError(f"cannot tell which version this containerd is: {text.strip()[:200]!r}")
    version = int(match[1]), int(match[2]), int(match[3])
    if version < (1, 6, 0):
        raise UsageError("containerd is older than 1.6", hint="pagein needs 1.6 or newer")
    return version


def merge(text: str, target: Target) -> str:
    """Return the configuration with pagein in it; the same text where it is in already.

    Raises UsageError for text that is not a configuration of containerd's.
    """
    return _edited(text, lambda document: _merge_into(document, target))


def _merge_into(document: Any, target: Target) -> None:
    if not document:
        document["version"] = 3 if target.version >= (2, 0, 0) else 2
    plugin: dict[str, Any] = {"type": "snapshot", "address": str(target.socket)}
    exports: dict[str, Any] = {}
    if target.exports_root:
        exports["root"] = str(target.state)
    if target.transfers:
        exports["enable_remote_snapshot_annotations"] = "true"
    _set(_table(document, ("proxy_plugins", NAME)), plugin)
    if exports:
        _set(_table(document, ("proxy_plugins", NAME, "exports")), exports)
    if target.cri and not _cri_is_off(document):
        cri = _table(document, _CRI[_version(document)])
        _set(cri, {"snapshotter": NAME, "disable_snapshot_annotations": False})
    if target.transfers and _version(document) >= 3:
        _unpack_with_us(document)


def remove(text: str, before: str) -> str:
    """Take pagein out again; what is chosen in its place is what was chosen ``before``.

    For a file that somebody has edited since. Raises UsageError.
    """
    old = tomllib.loads(before)
    return _edited(text, lambda document: _remove_from(document, old))


def _remove_from(document: Any, old: Mapping[str, Any]) -> None:
    proxies = _find(document, ("proxy_plugins",))
    if proxies is not None and NAME in proxies:
        del proxies[NAME]
        was = _find(old, ("proxy_plugins",))
        if not proxies and (was is None or NAME in was):
            del document["proxy_plugins"]
    for path in _CRI.values():
        table, was = _find(document, path), _find(old, path) or {}
        if table is None or table.get("snapshotter") != NAME:
            continue
        for key in ("snapshotter", "disable_snapshot_annotations"):
            if key in was:
                table[key] = was[key]
            elif key in table:
                del table[key]
    transfer = _find(document, _TRANSFER)
    if transfer is not None and _UNPACK in transfer:
        entries = transfer[_UNPACK]
        for entry in [one for one in entries if one.get("snapshotter") == NAME]:
            entries.remove(entry)
        if _UNPACK not in (_find(old, _TRANSFER) or {}):
            del transfer[_UNPACK]
    for path in (*_CRI.values(), _TRANSFER):
        _prune(document, old, path)


def _edited(text: str, edit: Callable[[Any], None]) -> str:
    """Edit a text, and see to it that nothing else changed: what it means is edited, too.

    tomlkit 0.15 stumbles over some shapes of dotted keys.
    """
    document, wanted = _parse(text), tomllib.loads(text)
    edit(wanted)
    try:
        edit(document)
        result = tomlkit.dumps(document)
        same = tomllib.loads(result) == wanted
    except (TOMLKitError, LookupError, AttributeError, TypeError, ValueError):
        same = False
    if not same:
        raise UsageError(
            "the file is written in a way that cannot be edited by program",
            hint="edit it by hand: docs/how-to/containerd.md has the settings",
        )
    return result


def check(dumped: str, target: Target) -> None:
    """Hold what ``containerd config dump`` made of the file, imports and all, against our wish.

    Raises UsageError where something else has the last word.
    """
    document = _parse(dumped)
    proxy = _find(document, ("proxy_plugins", NAME)) or {}
    wanted = {"type": "snapshot", "address": str(target.socket)}
    for key, value in wanted.items():
        if proxy.get(key) != value:
            raise UsageError(
                f"containerd reads proxy_plugins.{NAME}.{key} as {proxy.get(key)!r}",
                hint="a file that it imports may say so",
            )
    if not target.cri or _cri_is_off(document):
        return
    path = _CRI[_version(document)]
    cri = _find(document, path) or {}
    for key, found in {"snapshotter": NAME, "disable_snapshot_annotations": False}.items():
        if cri.get(key) != found:
            raise UsageError(
                f"containerd reads {key} of {path[1]} as {cri.get(key)!r}",
                hint="a file that it imports may say so",
            )


def remarks(text: str, target: Target) -> list[str]:
    """Return what an operator should know about other settings, a line each."""
    document = _parse(text)
    found = []
    if target.cri and _cri_is_off(document):
        found.append("disabled_plugins turns CRI off: Kubernetes cannot use this containerd")
    cri = _find(document, _CRI[_version(document)]) or {}
    if cri.get("discard_unpacked_layers"):
        found.append(
            "discard_unpacked_layers = true: images that pagein pulls classically cannot be used "
            "with another snapshotter afterwards"
        )
    if not target.exports_root:
        found.append(
            "this containerd cannot tell kubelet how much disk a proxy snapshotter uses: image "
            "garbage collection works by number and age; 1.6.32, 1.7.16 and 2.0 can"
        )
    return found


def _cri_is_off(document: Mapping[str, Any]) -> bool:
    listed = document.get("disabled_plugins", [])
    return isinstance(listed, list) and not _CRI_NAMES.isdisjoint(map(str, listed))


def _prune(document: Any, old: Any, path: tuple[str, ...]) -> None:
    """Remove tables at the end of a path that are empty now and were not there before."""
    for depth in range(len(path), 0, -1):
        table = _find(document, path[:depth])
        if table or _find(old, path[:depth]) is not None:
            return
        if table is not None:
            above = _find(document, path[: depth - 1])
            del above[path[depth - 1]]


def _unpack_with_us(document: Any) -> None:
    """Let the transfer service unpack for us; a list that is written replaces the default one."""
    transfer = _table(document, _TRANSFER)
    entries = transfer.get(_UNPACK)
    if entries is not None and any(one.get("snapshotter") == NAME for one in entries):
        return
    names = ["overlayfs", NAME] if entries is None else [NAME]
    new = [{"platform": _platform(), "snapshotter": name} for name in names]
    if entries is not None:
        for entry in new:
            entries.append(entry)
    elif isinstance(document, tomlkit.TOMLDocument):
        tables = tomlkit.aot()
        for entry in new:
            tables.append(tomlkit.item(entry))
        transfer[_UNPACK] = tables
    else:
        transfer[_UNPACK] = new


def _platform() -> str:
    names = {"x86_64": "amd64", "aarch64": "arm64"}
    return f"linux/{names.get(platform.machine(), platform.machine())}"


def _parse(text: str) -> tomlkit.TOMLDocument:
    try:
        return tomlkit.parse(text)
    except TOMLKitError as error:
        raise UsageError(f"not TOML: {error}") from None


def _version(document: Mapping[str, Any]) -> int:
    version = document.get("version", 1)
    if not isinstance(version, int) or version not in _CRI:
        raise UsageError(f"version {version} of the file is none of {sorted(_CRI)}")
    return int(version)


def _find(document: Any, path: tuple[str, ...]) -> Any:
    """Return a table, or None where there is none. Raises UsageError where it is no table."""
    for name in path:
        if document is None:
            return None
        if not isinstance(document, Mapping):
            raise UsageError(f"{'.'.join(path)} is not a table")
        document = document.get(name)
    if document is not None and not isinstance(document, Mapping):
        raise UsageError(f"{'.'.join(path)} is not a table")
    return document


def _table(document: Any, path: tuple[str, ...]) -> Any:
    """Return a table, made where there is none; tables above it get no heading of their own."""
    table: Any = document
    for depth, name in enumerate(path, 1):
        if name not in table:
            table[name] = _new_table(document, table, above=depth < len(path))
        table = table[name]
        if not isinstance(table, Mapping):
            raise UsageError(f"{'.'.join(path[:depth])} is not a table")
    return table


def _new_table(document: Any, parent: Any, *, above: bool) -> Any:
    if not isinstance(document, tomlkit.TOMLDocument):
        return {}
    if isinstance(parent, InlineTable):  # may hold none but its own kind
        return tomlkit.inline_table()
    return tomlkit.table(above)


def _set(table: Any, values: Mapping[str, Any]) -> None:
    for key, value in values.items():
        if table.get(key) != value:
            table[key] = value
