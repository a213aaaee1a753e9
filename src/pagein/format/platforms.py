"""Platforms of images, normalised as containerd does (github.com/containerd/platforms)."""

from __future__ import annotations

from typing import Final

import msgspec

from pagein.errors import UsageError

_MACHINES: Final = {
    "x86_64": ("amd64", None),
    "amd64": ("amd64", None),
    "aarch64": ("arm64", None),
    "arm64": ("arm64", None),
    "armv7l": ("arm", "v7"),
    "armhf": ("arm", "v7"),
    "armv6l": ("arm", "v6"),
    "armel": ("arm", "v6"),
    "i386": ("386", None),
    "i686": ("386", None),
}
_ARM_ORDER: Final = ("v8", "v7", "v6", "v5")


class Platform(msgspec.Struct, frozen=True, omit_defaults=True):
    """An entry's platform in an image index."""

    os: str
    architecture: str
    variant: str | None = None

    @classmethod
    def parse(cls, text: str) -> Platform:
        """Read ``OS/ARCH[/VARIANT]``, or an architecture alone. Raises UsageError."""
        parts = text.lower().split("/")
        if not all(parts) or len(parts) > 3:
            raise UsageError(f"not a platform: {text!r}", hint="write for example linux/arm64")
        if len(parts) == 1:
            parts = ["linux", *parts]
        architecture, variant = _MACHINES.get(parts[1], (parts[1], None))
        return cls(parts[0], architecture, parts[2] if len(parts) == 3 else variant).normal()

    @classmethod
    def local(cls, machine: str) -> Platform:
        """Return the platform of a Linux machine, from ``uname -m``."""
        architecture, variant = _MACHINES.get(machine.lower(), (machine.lower(), None))
        return cls("linux", architecture, variant).normal()

    def normal(self) -> Platform:
        """Drop variants that say nothing: arm64/v8 is arm64, amd64/v1 is amd64; arm is arm/v7.

        An arm variant may be written without its v.
        """
        variant = self.variant
        if self.architecture in ("arm", "arm64") and variant in ("5", "6", "7", "8"):
            variant = f"v{variant}"
        if (self.architecture, variant) in (("arm64", "v8"), ("amd64", "v1")):
            variant = None
        if self.architecture == "arm" and variant is None:
            variant = "v7"
        return Platform(self.os, self.architecture, variant)

    def rank(self, wanted: Platform) -> int | None:
        """Say how well this entry serves ``wanted``: 0 exactly, more is worse, None not at all."""
        accepted = wanted.normal().accepted()
        have = self.normal()
        return accepted.index(have) if have in accepted else None

    def accepted(self) -> list[Platform]:
        """Return what a machine of this platform runs, best first, as containerd's `Only` does.

        Older variants of its architecture, then what its processor runs besides: 386 on amd64, and
        arm on arm64. A kernel or processor without the latter says so when it is run.
        """
        found = [self]
        if self.variant is not None:
            older = _older(self.architecture, self.variant)
            found += [Platform(self.os, self.architecture, variant) for variant in older]
        match self.architecture:
            case "amd64":
                found.append(Platform(self.os, "386"))
            case "arm64":
                found += [Platform(self.os, "arm", variant) for variant in _ARM_ORDER]
        return list(dict.fromkeys(one.normal() for one in found))

    def __str__(self) -> str:
        return "/".join(part for part in (self.os, self.architecture, self.variant) if part)


def _older(architecture: str, variant: str) -> list[str | None]:
    """Return the variants before ``variant``, newest first; None is the architecture by itself."""
    if architecture == "arm":
        place = _ARM_ORDER.index(variant) if variant in _ARM_ORDER else len(_ARM_ORDER)
        return list(_ARM_ORDER[place + 1 :])
    number = variant.removeprefix("v")
    if architecture == "amd64" and number.isdecimal() and len(number) == 1:
        return [*(f"v{older}" for older in range(int(number) - 1, 1, -1)), None]
    return [None]
