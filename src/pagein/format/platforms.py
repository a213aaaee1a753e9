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
        """Drop variants that say nothing: arm64/v8 is arm64, amd64/v1 is amd64; arm is arm/v7."""
        variant = self.variant
        if (self.architecture, variant) in (("arm64", "v8"), ("amd64", "v1")):
            variant = None
        if self.architecture == "arm" and variant is None:
            variant = "v7"
        return Platform(self.os, self.architecture, variant)

    def rank(self, wanted: Platform) -> int | None:
        """Say how well this entry serves ``wanted``: 0 exactly, more is worse, None not at all."""
        have, want = self.normal(), wanted.normal()
        if (have.os, have.architecture) != (want.os, want.architecture):
            return None
        if have.variant == want.variant:
            return 0
        if have.architecture == "arm" and {have.variant, want.variant} <= set(_ARM_ORDER):
            step = _ARM_ORDER.index(str(have.variant)) - _ARM_ORDER.index(str(want.variant))
            return step if step > 0 else None
        return 1 if have.variant is None else None

    def __str__(self) -> str:
        return "/".join(part for part in (self.os, self.architecture, self.variant) if part)
