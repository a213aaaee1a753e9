"""Looks whether an image has been converted already: then there is nothing to do."""

from __future__ import annotations

from contextlib import suppress
from dataclasses import replace

from pagein.build.report import PackReport, Reused
from pagein.errors import FormatError, NotFoundError, RemoteError
from pagein.store.repository import Repository
from pagein.store.resolve import SourceImage, find_artifact, load_index, plain_artifact


def find_converted(place: Repository, image: SourceImage, *, sector_size: int) -> Reused | None:
    """Return the artifact at ``place`` that nodes would find for ``image``, if it will do.

    It must have sectors of ``sector_size`` bytes. One that was optimized counts while the artifact
    that it was made from is there, too. What cannot be found or read is None: convert then.
    """
    with suppress(NotFoundError, FormatError, RemoteError):
        found = find_artifact(place, image)
        if found is None and image.listed_in is not None:
            # What the image's index lists need not be where the artifact goes.
            found = find_artifact(place, replace(image, listed_in=None))
        if found is None:
            return None
        plain_artifact(place, found)  # raises where it is gone
        index = load_index(place, found)
        if index.sector_size == sector_size:
            packs = found.artifact.packs
            return Reused(
                artifact=found.digest,
                artifact_size=len(found.data),
                optimized_from=found.artifact.optimized_from,
                index=found.artifact.index.digest,
                packs=tuple(PackReport(p.digest, p.size, None, sent=False) for p in packs),
                index_size=found.artifact.index.size,
                sectors=len(index.sectors),
            )
    return None
