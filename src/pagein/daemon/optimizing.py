"""Optimize the artifact of an image: in the image's own place, or what was converted here."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

from pagein.build.optimize import optimize
from pagein.build.publish import bind_optimized
from pagein.build.report import ConvertOptions, ConvertProgress, Optimized
from pagein.daemon.images import absolute_name
from pagein.daemon.wiring import Node
from pagein.errors import NotFoundError, UsageError
from pagein.format.profile import Profile
from pagein.format.profile_merge import merge_profiles
from pagein.store.layout import LayoutRepository
from pagein.store.profiles import load_profile
from pagein.store.repository import WritableRepository
from pagein.store.resolve import FoundArtifact, SourceImage, find_artifact, resolve
from pagein.types import Digest, ImageName


@dataclass(frozen=True, slots=True)
class OptimizedImage:
    """What came of it. ``bound``: the image index that the tag now names, if that was asked for.

    ``hidden_by``: another artifact that is still found: the tag's image index lists it, or the
    place takes it for newer (an earlier run had made this one).
    """

    optimized: Optimized
    bound: Digest | None
    hidden_by: Digest | None


def read_profiles(paths: tuple[Path, ...]) -> Profile:
    """Read profiles and merge them. Raises FormatError, and UsageError for no such file."""
    profiles = [load_profile(path) for path in paths]
    return profiles[0] if len(profiles) == 1 else merge_profiles(profiles)


def optimize_image(
    node: Node,
    reference: str,
    profile: Profile,
    options: ConvertOptions,
    *,
    platform: str | None,
    tag: str | None,
    bind: bool,
    progress: ConvertProgress,
) -> OptimizedImage:
    """Publish a hot region for the image that ``reference`` names, where its artifact lies.

    A tag that names an artifact itself, and no image, moves on to the optimized one. Raises
    NotFoundError where nobody has converted the image, UsageError, and what `optimize` raises.
    """
    name = absolute_name(reference)
    if bind and name.tag is None:
        raise UsageError("--bind rewrites the tag of REF: name REF by tag")
    own = node.writable(name)
    top = own.manifest(name.tag) if bind and name.tag else None
    resolved = resolve(own, node.reference(name, own), node.platform(platform))
    place, source, found = own, resolved.source, resolved.artifact
    if source is None:
        tag = tag or name.tag
        if bind:
            raise UsageError(f"{name} names an artifact", hint="--bind needs the image's own tag")
    if found is None and source is not None:
        place, found = _converted_here(node, name, source, wants_name=bool(tag or bind))
    assert found is not None
    optimized = optimize(
        place, found, profile, options, tag=tag, progress=progress, cache=node.cache()
    )
    bound = None
    if top is not None and name.tag is not None and source is not None:
        bound = bind_optimized(place, name.tag, top, source.blob.digest, optimized)
    hidden_by = None
    if source is not None and bound is None and not optimized.was_there:
        now = find_artifact(place, source if place is own else replace(source, listed_in=None))
        hidden_by = now.digest if now is not None and now.digest != optimized.artifact else None
    return OptimizedImage(optimized, bound, hidden_by)


def _converted_here(
    node: Node, name: ImageName, source: SourceImage, *, wants_name: bool
) -> tuple[WritableRepository, FoundArtifact]:
    """Return this machine's own layout and the artifact that it made of an image."""
    local = LayoutRepository(node.paths.converted)
    found = find_artifact(local, replace(source, listed_in=None))
    if found is None:
        raise NotFoundError(
            f"{name} has not been converted", hint=f"pagein convert {name} --profile FILE"
        )
    if wants_name:
        raise UsageError(
            f"{name} was converted on this machine only, and cannot be named elsewhere",
            hint=f"pagein convert {name} --profile FILE",
        )
    return local, found
