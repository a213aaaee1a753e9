"""Profiles beside images: where they are pushed to, and which image they refer to."""

from __future__ import annotations

from collections.abc import Callable

from pagein.daemon.images import FoundImage, Images, absolute_name
from pagein.errors import NotFoundError, UsageError
from pagein.format.manifest import Descriptor
from pagein.format.profile import Profile
from pagein.store.profiles import pull_profiles, push_profile
from pagein.types import Digest, ImageName


class Profiles:
    """Pushes and pulls profiles. They refer to the source image, as artifacts do."""

    def __init__(self, images: Images) -> None:
        self._images = images

    def check_writable(self, reference: str) -> None:
        """Raise UsageError for a reference beside which nothing can be put."""
        self._images.node.writable(absolute_name(reference))

    def push(self, found: FoundImage, profile: Profile) -> Digest:
        """Put a profile beside an image; return the digest of its manifest. Raises PageinError."""
        return self._push(found.name, found.artifact.artifact.subject, profile)

    def push_to(self, reference: str, platform: str | None, profile: Profile) -> Digest:
        """Put a profile beside the image that a reference names, converted or not."""
        name = absolute_name(reference)
        self._images.node.writable(name)  # may it be written to at all?
        return self._push(name, self._subject(name, platform), profile)

    def pull(
        self, reference: str, platform: str | None, leave_out: Callable[[str], None]
    ) -> list[Profile]:
        """Return the profiles beside an image, newest first; see `pull_profiles`.

        The image's own place is asked, and no mirror: a mirror may lack what refers to an image.
        Raises NotFoundError where there are none.
        """
        name = absolute_name(reference)
        subject = _required(self._subject(name, platform), name)
        found = pull_profiles(self._images.node.repository(name), subject.digest, leave_out)
        if not found:
            raise NotFoundError(
                f"no profile beside {name}", hint=f"pagein record {reference} --push -- CMD"
            )
        return found

    def _push(self, name: ImageName, subject: Descriptor | None, profile: Profile) -> Digest:
        return push_profile(self._images.node.writable(name), _required(subject, name), profile)

    def _subject(self, name: ImageName, platform: str | None) -> Descriptor | None:
        _, resolved = self._images.resolve(name, platform, want_artifact=False)
        if resolved.source is not None:
            blob = resolved.source.blob
            return Descriptor(media_type=blob.media_type, digest=blob.digest, size=len(blob.data))
        return resolved.artifact.artifact.subject if resolved.artifact else None


def _required(subject: Descriptor | None, name: ImageName) -> Descriptor:
    if subject is None:
        raise UsageError(f"{name} does not say which image it was made from")
    return subject
