"""When the registry had answered what a start asks for first, from the registry's own log.

The clock of the registry is the client's: both run on one machine.
"""

from __future__ import annotations

import re
from datetime import datetime

_ANSWERED = re.compile(
    r'^time="(?P<day>[^."]+)\.(?P<fraction>\d+)Z?[^"]*".*msg="response completed".*'
    r'http\.request\.method=GET .*http\.request\.uri="?(?P<uri>[^ "]+)'
)


def image_times(log: str, began: float) -> dict[str, float | None]:
    """Return when the image was resolved (its last manifest sent) and when the first blob was.

    In seconds after ``began``. The first blob is pagein's index, with the metadata of the image,
    and containerd's configuration of it.
    """
    resolved = metadata = None
    for line in log.splitlines():
        if found := _ANSWERED.match(line):
            seconds = _seconds(found["day"], found["fraction"]) - began
            if "/blobs/" in found["uri"]:
                metadata = seconds
                break
            if "/manifests/" in found["uri"]:
                resolved = seconds
    return {"resolve": resolved, "metadata": metadata}


def _seconds(day: str, fraction: str) -> float:
    return datetime.fromisoformat(f"{day}+00:00").timestamp() + float(f"0.{fraction}")
