"""Taking over a ``/dev/fuse`` descriptor that another process served until it died.

The connection lives as long as any process has the descriptor open. What the kernel had queued
waits there; what the dead server had read and not answered is sent again when asked for, with the
same unique number and its top bit set (kernel 6.9, FUSE_HAS_RESEND).
"""

from __future__ import annotations

import os
import select

from pagein.errors import DeviceError
from pagein.wire import fuse


def is_connected(descriptor: int) -> bool:
    """Whether the descriptor's file system is still there. fuse_dev_poll: POLLERR if it is not."""
    return not _state(descriptor) & (select.POLLERR | select.POLLNVAL)


def has_request(descriptor: int) -> bool:
    """Whether somebody waits for a server."""
    return bool(_state(descriptor) & select.POLLIN)


def _state(descriptor: int) -> int:
    poll = select.poll()
    poll.register(descriptor, select.POLLIN)
    ready = poll.poll(0)
    return ready[0][1] if ready else 0


def ask_again(descriptor: int, agreed: fuse.InitFlag) -> bool:
    """Have the kernel send again what the dead server left unanswered.

    False where the kernel cannot: such reads wait until they are interrupted. ``agreed`` is what
    was negotiated with the first server. Raises DeviceError.
    """
    if fuse.InitFlag.HAS_RESEND not in agreed:
        return False
    try:
        os.write(descriptor, fuse.notify_resend())
    except OSError as error:
        raise DeviceError(
            f"cannot take over a device: {error.strerror}", errno=error.errno or 5
        ) from None
    return True
