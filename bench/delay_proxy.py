"""A TCP proxy that takes a round trip's time, and limits no rate.

    python delay_proxy.py LISTEN_ADDRESS PORT TARGET_PORT RTT_MS

Each chunk waits half a round trip in its direction; what a client sends first waits one more, which
is what opening the connection takes. TCP's own slow start is not in it: both ends are close to the
proxy. One thread; prints ``ready`` once it listens.
"""

from __future__ import annotations

import contextlib
import selectors
import socket
import sys
import time
from collections import deque
from dataclasses import dataclass, field

PIECE = 256 << 10
MOST_HELD = 64 << 20
"""Bytes under way in one direction: at 200 ms, 5 Gbit/s."""


@dataclass(eq=False)
class Stream:
    """One direction of one connection: what was read from ``source``, and when it is due."""

    source: socket.socket
    target: socket.socket
    opened: float
    held: deque[tuple[float, memoryview]] = field(default_factory=deque)
    size: int = 0
    ended: bool = False
    blocked: bool = False
    shut: bool = False


class DelayProxy:
    """Carries the bytes of all connections."""

    def __init__(self, listener: socket.socket, target: tuple[str, int], rtt_s: float) -> None:
        self._listener = listener
        self._target = target
        self._rtt_s = rtt_s
        self._selector = selectors.SelectSelector()  # the others wait for whole milliseconds
        self._selector.register(listener, selectors.EVENT_READ)
        self._streams: dict[socket.socket, tuple[Stream, Stream]] = {}
        """By socket: the stream that is read from it, and the one that is written to it."""

    def serve(self) -> None:
        """Run until the process is ended."""
        while True:
            for key, events in self._selector.select(self._pause()):
                if key.fileobj is self._listener:
                    self._accept()
                    continue
                assert isinstance(key.fileobj, socket.socket)
                pair = self._streams.get(key.fileobj)
                if pair and events & selectors.EVENT_READ:
                    self._read(pair[0])
                if pair and events & selectors.EVENT_WRITE:
                    pair[1].blocked = False
            self._send_due()

    def _pause(self) -> float | None:
        due = [
            stream.held[0][0]
            for stream, _ in self._streams.values()
            if stream.held and not stream.blocked
        ]
        return max(0.0, min(due) - time.monotonic()) if due else None

    def _accept(self) -> None:
        client, _ = self._listener.accept()
        server = socket.create_connection(self._target)
        now = time.monotonic()
        up = Stream(client, server, now + self._rtt_s)
        down = Stream(server, client, now)
        for one in (client, server):
            one.setblocking(False)
            one.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._streams |= {client: (up, down), server: (down, up)}
        self._watch(client)
        self._watch(server)

    def _read(self, stream: Stream) -> None:
        try:
            data = stream.source.recv(PIECE)
        except BlockingIOError:
            return
        except OSError:
            data = b""
        due = max(time.monotonic(), stream.opened) + self._rtt_s / 2
        stream.held.append((due, memoryview(data)))
        stream.size += len(data)
        stream.ended = not data
        self._watch(stream.source)

    def _send_due(self) -> None:
        now = time.monotonic()
        for stream in {id(one): one for one, _ in self._streams.values()}.values():
            was = (stream.blocked, stream.size > MOST_HELD)
            while stream.held and not stream.blocked and stream.held[0][0] <= now:
                self._send(stream)
            if (stream.blocked, stream.size > MOST_HELD) != was or stream.blocked:
                self._watch(stream.source)
                self._watch(stream.target)
        for stream, back in list(self._streams.values()):
            if stream.shut and back.shut:
                self._close(stream)

    def _send(self, stream: Stream) -> None:
        due, data = stream.held[0]
        if not data:  # the end of what the source says
            stream.held.popleft()
            stream.shut = True
            with contextlib.suppress(OSError):
                stream.target.shutdown(socket.SHUT_WR)
            return
        try:
            sent = stream.target.send(data)
        except BlockingIOError:
            stream.blocked = True
            return
        except OSError:
            sent = len(data)
            stream.shut = True
        stream.size -= sent
        if sent == len(data):
            stream.held.popleft()
        else:
            stream.held[0] = (due, data[sent:])

    def _watch(self, one: socket.socket) -> None:
        """Wait for what can be done with a socket now."""
        pair = self._streams.get(one)
        if pair is None:
            return
        reading, writing = pair
        wanted = 0
        if not reading.ended and reading.size <= MOST_HELD:
            wanted |= selectors.EVENT_READ
        if writing.blocked:
            wanted |= selectors.EVENT_WRITE
        known = self._selector.get_map().get(one)
        if known is None:
            if wanted:
                self._selector.register(one, wanted)
        elif wanted == 0:
            self._selector.unregister(one)
        elif known.events != wanted:
            self._selector.modify(one, wanted)

    def _close(self, stream: Stream) -> None:
        for one in (stream.source, stream.target):
            if self._streams.pop(one, None):
                with contextlib.suppress(KeyError):
                    self._selector.unregister(one)
                one.close()


def main() -> None:
    """Read the command line and serve."""
    address, port, target, rtt_ms = sys.argv[1:]
    with socket.create_server((address, int(port)), backlog=128) as listener:
        print("ready", flush=True)
        DelayProxy(listener, (address, int(target)), float(rtt_ms) / 1000).serve()


if __name__ == "__main__":
    main()
