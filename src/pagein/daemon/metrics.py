"""Figures of the daemon in Prometheus' text format, over HTTP on a loopback or unix address.

https://prometheus.io/docs/instrumenting/exposition_formats/ ("Text-based format"), version 0.0.4.
"""

from __future__ import annotations

import contextlib
import http.server
import socket
import socketserver
import threading
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any, Final

from pagein.errors import UsageError
from pagein.events import (
    Event,
    LayerMaterialised,
    PulledClassically,
    PulledLazily,
    SnapshotterProblem,
)

_HELP: Final[Mapping[str, tuple[str, str]]] = {
    "reads": ("counter", "Reads of devices by the kernel."),
    "read_bytes": ("counter", "Bytes that the kernel read from devices."),
    "hits": ("counter", "Reads that waited for no source."),
    "read_errors": ("counter", "Reads that were answered with an error."),
    "sectors_fetched": ("counter", "Sectors that came from a registry."),
    "bytes_fetched": ("counter", "Bytes that came from registries."),
    "bytes_uncompressed": ("counter", "What the fetched bytes became."),
    "fetch_errors": ("counter", "Tries at a source that failed."),
    "corrupt_sectors": ("counter", "Sectors that were dropped for a wrong digest."),
    "cache_errors": ("counter", "Sectors that the cache could not keep."),
    "evictions": ("counter", "Sectors that the cache gave up."),
    "pulls_lazy": ("counter", "Images of which no layer was downloaded."),
    "pulls_classical": ("counter", "Images that were downloaded layer by layer."),
    "layers_materialised": ("counter", "Layers unpacked because something stands on them."),
    "problems": ("counter", "Things that went wrong and are tried again."),
    "images_lost": ("counter", "Images that lost their server while something used them."),
    "images_attached": ("gauge", "Devices that are served."),
    "mounts": ("gauge", "Mounts of users and containers."),
    "resident_bytes": ("gauge", "Memory of the daemon (VmRSS)."),
    "up": ("gauge", "1, with the version."),
}


class SnapshotCounts:
    """Counts what the snapshotter says. Observing is thread-safe."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._counts: Counter[str] = Counter()

    def observe(self, event: Event) -> None:
        """Count one event."""
        match event:
            case PulledLazily():
                name = "pulls_lazy"
            case PulledClassically():
                name = "pulls_classical"
            case LayerMaterialised():
                name = "layers_materialised"
            case SnapshotterProblem():
                name = "problems"
            case _:
                return
        with self._lock:
            self._counts[name] += 1

    def snapshot(self) -> dict[str, int]:
        """Return all counts."""
        names = ("pulls_lazy", "pulls_classical", "layers_materialised", "problems")
        with self._lock:
            return {name: self._counts[name] for name in names}


def write_metrics(
    totals: Mapping[str, Any], images: Iterable[tuple[Mapping[str, str], Mapping[str, Any]]]
) -> str:
    """Write figures: of the daemon, and of each image with its labels."""
    lines: list[str] = []
    per_image = list(images)
    for name, (kind, text) in _HELP.items():
        full = f"pagein_{name}" + ("_total" if kind == "counter" else "")
        samples = [] if name not in totals else [f"{full} {totals[name]}"]
        if samples:
            lines += [f"# HELP {full} {text}", f"# TYPE {full} {kind}", *samples]
        shown = [
            f"{full.replace('pagein_', 'pagein_image_', 1)}{_labels(labels)} {figures[name]}"
            for labels, figures in per_image
            if name in figures
        ]
        if shown:
            each = full.replace("pagein_", "pagein_image_", 1)
            lines += [f"# HELP {each} {text}", f"# TYPE {each} {kind}", *shown]
    return "\n".join(lines) + "\n"


def _labels(labels: Mapping[str, str]) -> str:
    def escaped(value: str) -> str:
        return value.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n")

    return "{" + ",".join(f'{name}="{escaped(value)}"' for name, value in labels.items()) + "}"


class MetricsServer:
    """Serves ``GET /metrics`` until closed."""

    def __init__(self, address: str, text: Callable[[], str]) -> None:
        self._path = Path(address.removeprefix("unix:")) if address.startswith("unix:") else None
        try:
            self._server = _listen(address, self._path, text)
        except (OSError, OverflowError) as error:
            raise UsageError(f"cannot serve metrics on {address}: {error}") from None
        self._thread = threading.Thread(
            target=self._server.serve_forever, name="metrics", daemon=True
        )
        self._thread.start()

    @property
    def port(self) -> int:
        """The port that it listens on; 0 for a unix address."""
        address = self._server.server_address
        return int(address[1]) if isinstance(address, tuple) else 0

    def close(self) -> None:
        """Stop listening."""
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()
        if self._path is not None:
            self._path.unlink(missing_ok=True)


def _listen(address: str, path: Path | None, text: Callable[[], str]) -> socketserver.BaseServer:
    class Handler(http.server.BaseHTTPRequestHandler):
        timeout = 10

        def do_GET(self) -> None:
            if self.path != "/metrics":
                self.send_error(404)
                return
            body = text().encode()
            self.send_response(200)
            self.send_header("Content-Type", "text/plain; version=0.0.4; charset=utf-8")
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, format: str, *args: Any) -> None:  # noqa: A002
            """Log nothing."""

        def address_string(self) -> str:
            return "local"

    if path is not None:
        with contextlib.suppress(FileNotFoundError):
            path.unlink()
        server = _UnixServer(str(path), Handler)
        path.chmod(0o600)
        return server
    host, colon, port = address.rpartition(":")
    if not colon or not port.isdigit():
        raise UsageError(f"not an address for metrics: {address!r}", hint="HOST:PORT, or unix:PATH")
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    kind = type("_Server", (http.server.ThreadingHTTPServer,), {"address_family": family})
    made: socketserver.BaseServer = kind((host.strip("[]"), int(port)), Handler)
    return made


class _UnixServer(socketserver.ThreadingMixIn, socketserver.UnixStreamServer):
    daemon_threads = True
