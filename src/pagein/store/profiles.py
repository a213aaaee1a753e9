"""Profiles in files, and beside an image: an OCI artifact whose subject is the image."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Final

from pagein.errors import FormatError, NotFoundError, PageinError, UsageError
from pagein.format.manifest import (
    EMPTY_DIGEST,
    Descriptor,
    build_profile_manifest,
    parse_profile_manifest,
)
from pagein.format.media import MEDIA_PROFILE, OCI_MANIFEST, PROFILE_TYPE
from pagein.format.profile import MAX_PROFILE, Profile, decode_profile, encode_profile
from pagein.store.atomic import write_durably
from pagein.store.repository import ManifestBlob, Repository, WritableRepository
from pagein.types import Digest

MAX_PULLED: Final = 64
"""Profiles that are pulled of one image, the newest first; all together have `MAX_PROFILE` bytes
at most. Whoever may push there could fill our memory otherwise."""


def load_profile(path: Path) -> Profile:
    """Read a profile from a file. Raises UsageError where there is none, else FormatError."""
    try:
        with path.open("rb") as stream:
            data = stream.read(MAX_PROFILE + 1)
    except OSError as error:
        raise UsageError(f"cannot read {path}: {error.strerror}") from None
    try:
        return decode_profile(data)
    except FormatError as error:
        raise FormatError(
            f"{path}: {error}", field=error.field, hint="pagein record REF -o FILE writes one"
        ) from None


def save_profile(path: Path, profile: Profile) -> None:
    """Write a profile to a file, durably: whole or not at all. Raises PageinError."""
    try:
        write_durably(path, _encoded(profile), mode=0o644)
    except OSError as error:
        raise PageinError(f"cannot write {path}: {error.strerror}") from None


def push_profile(repository: WritableRepository, subject: Descriptor, profile: Profile) -> Digest:
    """Put a profile beside an image; return the digest of its manifest. Raises PageinError."""
    data = _encoded(profile)
    layer = Descriptor(media_type=MEDIA_PROFILE, digest=Digest.of(data), size=len(data))
    manifest = build_profile_manifest(subject=subject, profile=layer, recorded=profile.recorded)
    repository.put_blob(layer.digest, data)
    repository.put_blob(EMPTY_DIGEST, b"{}")
    blob = ManifestBlob(OCI_MANIFEST, Digest.of(manifest), manifest)
    repository.put_manifest(blob)
    return blob.digest


def pull_profiles(
    repository: Repository, subject: Digest, leave_out: Callable[[str], None]
) -> list[Profile]:
    """Return the profiles beside an image, newest first.

    ``leave_out`` is told in a line of each that is not sound, or is one too many.
    """
    found: list[Profile] = []
    left = MAX_PROFILE
    newest_first = repository.referrers(subject, artifact_type=PROFILE_TYPE)[::-1]
    for number, digest in enumerate(newest_first):
        if number == MAX_PULLED:
            leave_out(f"{len(newest_first) - number} profiles older than the newest {MAX_PULLED}")
            break
        try:
            profile, size = _pull(repository, digest, subject, left)
        except (FormatError, NotFoundError) as error:
            leave_out(f"profile {digest}: {error}")
        else:
            found.append(profile)
            left -= size
    return found


def _pull(
    repository: Repository, digest: Digest, subject: Digest, limit: int
) -> tuple[Profile, int]:
    """Return one profile, and the bytes it had."""
    layer, of_image = parse_profile_manifest(repository.manifest(digest).data)
    if of_image != subject:
        raise FormatError(f"a profile of another image, {of_image}", field="subject")
    if layer.size > limit:
        raise FormatError(f"{layer.size} bytes are too many after those before it", field="size")
    return decode_profile(repository.read_blob(layer.digest, limit=layer.size)), layer.size


def _encoded(profile: Profile) -> bytes:
    data = encode_profile(profile)
    if len(data) > MAX_PROFILE:
        raise UsageError(
            f"a profile of {len(data)} bytes: more than {MAX_PROFILE} cannot be read back",
            hint="record for a shorter time, or merge fewer",
        )
    return data
