"""Holds the daemon's descriptors, and starts it again when it dies: for machines without systemd.

Run as a program of its own, on the standard library alone and without site-packages, so that it is
small (10 MB) and has no reason to die. It does for one service what systemd does:
``READY=1``, ``STOPPING=1``, ``FDSTORE=1``, ``FDSTOREREMOVE=1``, ``FDNAME=`` and ``BARRIER=1`` are
sd_notify(3); ``LISTEN_FDS``, ``LISTEN_FDNAMES`` and ``LISTEN_PID`` are sd_listen_fds(3).
``HANDOVER=1`` is our own: with one end of a socket pair, on which the descriptors go to the holder
that sends it, and this one ends.

Rule 1. A descriptor is held until it is removed, or its file system is gone (POLLERR), or another
holder has it.
Rule 2. The daemon is started again as long as descriptors are held, however often it fails.
Rule 3. Told to end (SIGTERM), it ends the daemon; if descriptors are left, a process in the
background goes on holding them until the next ``pagein daemon`` comes for them.
"""

# Without pathlib, which would add a fifth to what this process takes.
# ruff: noqa: PTH101, PTH108

import contextlib
import errno
import fcntl
import os
import select
import signal
import socket
import sys
import time

_MOST = 4096
_FIRST_WAIT_S = 0.05
_LONGEST_WAIT_S = 5.0
_STEADY_S = 10.0
_HANDOVER_S = 5.0


class Store:
    """Descriptors by name, in the order in which they came."""

    def __init__(self) -> None:
        self.held: list[tuple[str, int]] = []

    def add(self, name: str, descriptors: list[int]) -> None:
        """Keep descriptors; what there is no room for is closed."""
        for descriptor in descriptors:
            if len(self.held) >= _MOST:
                os.close(descriptor)
            else:
                os.set_inheritable(descriptor, False)
                self.held.append((name, descriptor))

    def remove(self, name: str) -> None:
        """Close every descriptor of a name."""
        self._drop([entry for entry in self.held if entry[0] == name])

    def remove_dead(self, dead: set[int]) -> None:
        """Close descriptors that poll(2) has found to be dead."""
        self._drop([entry for entry in self.held if entry[1] in dead])

    def _drop(self, entries: list[tuple[str, int]]) -> None:
        for entry in entries:
            self.held.remove(entry)
            os.close(entry[1])


class Holder:
    """The loop: one socket, one child, and the descriptors."""

    def __init__(self, address: str, command: list[str]) -> None:
        self.address = address
        self.command = command
        self.store = Store()
        self.child = 0
        self.exit_code = 0
        self._was_ready = False
        self._ending = False
        self._started = 0.0
        self._wait_s = 0.0
        self._signals: set[int] = set()
        self._wake, writer = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
        os.set_blocking(writer, False)
        signal.set_wakeup_fd(writer, warn_on_full_buffer=False)
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGCHLD):
            signal.signal(number, lambda got, _: self._signals.add(got))
        self._take_over()
        self._socket = self._listen()

    def _take_over(self) -> None:
        """Ask the holder that is there, if any, for its descriptors."""
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        with ours, socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as asking:
            ours.settimeout(_HANDOVER_S)
            try:
                asking.connect(self.address)
                socket.send_fds(asking, [b"HANDOVER=1"], [theirs.fileno()])
            except OSError:
                return  # nobody there
            finally:
                theirs.close()
            try:
                self._receive_all(ours)
            except OSError:
                fail("the holder of the daemon's descriptors does not answer")

    def _receive_all(self, ours: socket.socket) -> None:
        while True:
            text, descriptors, _, _ = socket.recv_fds(ours, 4096, 8)
            name = text.decode()
            if name.startswith("FDNAME="):
                self.store.add(name.removeprefix("FDNAME="), descriptors)
                continue
            if name.startswith("BUSY="):
                fail(f"pagein daemon runs already, as process {name.removeprefix('BUSY=')}")
            if name != "END=1":
                fail("the holder of the daemon's descriptors does not answer")
            ours.send(b"OK=1")
            ours.recv(16)  # it has let go of the socket
            return

    def _listen(self) -> socket.socket:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(self.address)
        listening = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC)
        listening.bind(self.address)
        os.chmod(self.address, 0o600)
        listening.setblocking(False)
        return listening

    def run(self) -> int:
        """Keep the daemon running; return an exit code when there is nothing left to hold."""
        while True:
            if not self.child and not self._ending and self._due():
                self._start()
            self._poll()
            self._handle_signals()
            if self._ending and not self.child:
                if not self.store.held:
                    os.unlink(self.address)
                    return self.exit_code
                self._to_background()

    def _due(self) -> bool:
        return time.monotonic() >= self._started + self._wait_s

    def _start(self) -> None:
        self._started = time.monotonic()
        names = ":".join(name for name, _ in self.store.held)
        sys.stderr.flush()
        self.child = os.fork()
        if self.child:
            return
        try:
            signal.set_wakeup_fd(-1)
            # In two steps, as a number may be taken by what has yet to be moved.
            first = 3 + len(self.store.held)
            high = [_copy_above(descriptor, first) for _, descriptor in self.store.held]
            for number, descriptor in enumerate(high, 3):
                os.dup2(descriptor, number, inheritable=True)
            os.environ.update(NOTIFY_SOCKET=self.address, LISTEN_PID=str(os.getpid()))
            os.environ.update(LISTEN_FDS=str(len(high)), LISTEN_FDNAMES=names)
            os.execvp(self.command[0], self.command)  # noqa: S606 - a shell is of no use here
        except OSError as error:
            os.write(2, f"pagein: cannot start the daemon: {error.strerror}\n".encode())
        finally:
            os._exit(127)

    def _poll(self) -> None:
        poll = select.poll()
        poll.register(self._socket, select.POLLIN)
        poll.register(self._wake, select.POLLIN)
        for _, descriptor in self.store.held:
            poll.register(descriptor, 0)  # POLLERR is always told
        left = None
        if not self.child and not self._ending:
            left = max(0.0, self._started + self._wait_s - time.monotonic()) * 1000
        ready = poll.poll(left)
        own = {self._socket.fileno(), self._wake}
        self.store.remove_dead({descriptor for descriptor, _ in ready} - own)
        with contextlib.suppress(BlockingIOError):
            while os.read(self._wake, 512):
                pass
        self._receive()

    def _receive(self) -> None:
        while True:
            try:
                text, descriptors, _, _ = socket.recv_fds(self._socket, 8192, 64)
            except OSError as error:
                if error.errno in (errno.EAGAIN, errno.EINTR):
                    return
                raise
            try:
                self._obey(text.decode(errors="replace").split("\n"), descriptors)
            except OSError as error:
                os.write(2, f"pagein holder: {error}\n".encode())

    def _obey(self, lines: list[str], descriptors: list[int]) -> None:
        name = next((line[7:] for line in lines if line.startswith("FDNAME=")), "stored")
        if "FDSTORE=1" in lines:
            self.store.add(name, descriptors)
            return
        if "HANDOVER=1" in lines and descriptors:
            self._hand_over(socket.socket(fileno=descriptors.pop()))
        for descriptor in descriptors:  # BARRIER=1 waits for this
            os.close(descriptor)
        if "FDSTOREREMOVE=1" in lines:
            self.store.remove(name)
        if "READY=1" in lines:
            self._was_ready = True
        if "STOPPING=1" in lines:
            self._ending = True

    def _hand_over(self, peer: socket.socket) -> None:
        """Give everything to another holder and end, unless the daemon runs."""
        with peer:
            peer.settimeout(_HANDOVER_S)
            if self.child:
                peer.send(f"BUSY={self.child}".encode())
                return
            for name, descriptor in self.store.held:
                socket.send_fds(peer, [f"FDNAME={name}".encode()], [descriptor])
            peer.send(b"END=1")
            if peer.recv(16) != b"OK=1":
                return
            self._socket.close()
            os.unlink(self.address)
        os._exit(0)

    def _handle_signals(self) -> None:
        while self._signals:
            number = self._signals.pop()
            if number == signal.SIGCHLD:
                self._reap()
                continue
            self._ending = True
            if self.child:
                os.kill(self.child, signal.SIGTERM)

    def _reap(self) -> None:
        while True:
            try:
                pid, status = os.waitpid(-1, os.WNOHANG)
            except ChildProcessError:
                return
            if not pid:
                return
            if pid == self.child:
                self.child = 0
                self._ended(os.waitstatus_to_exitcode(status))

    def _ended(self, code: int) -> None:
        # One that never worked and leaves nothing to hold says why itself: not a case for retries.
        hopeless = not self._was_ready and not self.store.held
        if code == 0 or hopeless:
            self._ending = True
        if self._ending:
            self.exit_code = max(code, 0)
            return
        lived = time.monotonic() - self._started
        steady = lived > _STEADY_S
        self._wait_s = 0.0 if steady else min(max(_FIRST_WAIT_S, self._wait_s * 2), _LONGEST_WAIT_S)
        # Back-off counts from the end of the last one, not from its start.
        self._started = time.monotonic()
        os.write(2, f"pagein: the daemon ended with {code}; starting it again\n".encode())

    def _to_background(self) -> None:
        """Let whoever waits for this process go on, and hold the descriptors from another."""
        if os.fork():
            os._exit(self.exit_code)
        os.setsid()
        null = os.open(os.devnull, os.O_RDWR)
        for number in (0, 1, 2):
            os.dup2(null, number)
        os.close(null)
        while self.store.held:
            self._poll()
            self._signals.clear()  # SIGKILL alone ends it: reads of what it holds then fail
        os.unlink(self.address)
        os._exit(0)


def _copy_above(descriptor: int, first: int) -> int:
    """Return a copy with a number of at least ``first``."""
    return fcntl.fcntl(descriptor, fcntl.F_DUPFD_CLOEXEC, first)


def fail(message: str) -> None:
    """Write one line, and end with 1."""
    os.write(2, f"pagein: {message}\n".encode())
    os._exit(1)


def main() -> None:
    """``holder.py SOCKET COMMAND...``."""
    sys.exit(Holder(sys.argv[1], sys.argv[2:]).run())


if __name__ == "__main__":
    main()
