"""How a sector is stored in its pack: one zstd frame, raw where that gains nothing, or not at all.

Compressing is deterministic: one frame, one thread, content size in the header, no checksum (the
sector's digest is a better one).
"""

from __future__ import annotations

from typing import Final

import zstandard

from pagein.errors import FormatError
from pagein.types import Buffer, Encoding, SectorRef

RAW_ABOVE: Final = 0.97
"""A frame larger than this share of the sector is not worth its decompression."""

_ZEROS: Final = bytes(1 << 16)


def is_zero(data: Buffer) -> bool:
    """Whether all bytes are zero; stops at the first 64 KiB that are not."""
    view = memoryview(data)
    return all(
        view[start : start + len(_ZEROS)] == _ZEROS[: min(len(_ZEROS), len(view) - start)]
        for start in range(0, len(view), len(_ZEROS))
    )


def encode_sector(data: Buffer, *, level: int) -> tuple[Encoding, Buffer]:
    """Return the encoding and the stored bytes of one sector. Safe to call from any thread."""
    if is_zero(data):
        return Encoding.ZERO, b""
    # A context of its own for each call is thread-safe; making one is little beside 4 MiB of work.
    compressor = zstandard.ZstdCompressor(
        level=level, write_checksum=False, write_content_size=True, write_dict_id=False
    )
    stored = compressor.compress(data)
    if len(stored) > len(data) * RAW_ABOVE:
        return Encoding.RAW, data
    return Encoding.ZSTD, stored


def decode_sector(ref: SectorRef, stored: Buffer) -> Buffer:
    """Return the ``ref.size`` bytes of a sector from its stored form.

    Never allocates more than ``ref.size``. Raises FormatError when the form is not what ``ref``
    says; the digest is checked by ``Sector.verify``, not here.
    """
    if ref.encoding is Encoding.ZERO:
        return bytes(ref.size)
    if len(stored) != ref.stored:
        raise FormatError(
            f"sector {ref.digest} is stored in {ref.stored} bytes, not {len(stored)}",
            field="stored",
        )
    if ref.encoding is Encoding.RAW:
        return stored
    try:
        declared = zstandard.frame_content_size(stored)
        if declared != ref.size:
            raise FormatError(
                f"sector {ref.digest} unpacks to {declared} bytes instead of {ref.size}",
                field="size",
            )
        data = zstandard.ZstdDecompressor().decompress(stored, allow_extra_data=False)
    except zstandard.ZstdError as error:
        raise FormatError(f"sector {ref.digest} does not unpack: {error}", field="data") from None
    return data
