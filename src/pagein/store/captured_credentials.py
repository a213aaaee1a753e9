"""Credentials that kubelet sent with a pull, by image reference; kept through a restart.

Rule 1. What a pull brings is tried at once, and kept only when that pull went well: a pod with a
wrong secret must not take the right one from containers that run.
Rule 2. On disk they are in one file of root's, mode 0600; or nowhere, if there is no file.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

import msgspec

from pagein.errors import PageinError
from pagein.events import Observer, SnapshotterProblem, ignore
from pagein.store.atomic import write_durably
from pagein.store.credentials import Credentials
from pagein.types import ImageName
from pagein.wire.auth import Credential
from pagein.wire.registry import api_host

MAX_IMAGES: Final = 4096
"""A node has hundreds of images; more would be a caller that makes names up."""

_MAX_FILE: Final = 64 << 20
_MAX_SECRET: Final = 64 << 10
_VERSION: Final = 1


@dataclass(frozen=True, slots=True)
class Login:
    """A credential that came with a pull. ``server`` is the registry it is for; empty: any."""

    credential: Credential
    server: str = ""


@dataclass(slots=True)
class PullAttempt:
    """A pull that is under way. Say `succeeded` with the image's id when it went well."""

    login: Login | None
    image_id: str | None = field(default=None)

    def succeeded(self, image_id: str) -> None:
        """Keep the login when the pull ends."""
        self.image_id = image_id


@dataclass(frozen=True, slots=True)
class _OfImage:
    captured: CapturedCredentials
    image: ImageName

    def for_repository(self, host: str, repository: str, /) -> Credential | None:
        del repository  # the image's, however a mirror spells it
        return self.captured.credential(self.image, host)


class _Entry(msgspec.Struct, frozen=True, omit_defaults=True):
    """One line of the file. It has secrets, and no repr."""

    username: str = ""
    password: str = ""
    identity_token: str = ""
    registry_token: str = ""
    server: str = ""
    image_id: str = ""

    def __repr__(self) -> str:
        return "_Entry(...)"

    def login(self) -> Login:
        credential = Credential(
            self.username, self.password, self.identity_token, self.registry_token
        )
        return Login(credential, self.server)


class _File(msgspec.Struct, frozen=True):
    version: int
    images: dict[str, _Entry]

    def __repr__(self) -> str:
        return "_File(...)"


class CapturedCredentials:
    """Keeps the credentials of pulls. Safe to call from any thread.

    ``file`` None keeps them in memory alone. What cannot be written is told to ``observer``, and
    fails no pull.
    """

    def __init__(self, file: Path | None, *, observer: Observer = ignore) -> None:
        self._file = file
        self._observer = observer
        self._lock = threading.Lock()
        self._writing = threading.Lock()
        self._kept: dict[str, _Entry] = {}  # oldest first
        self._under_way: list[tuple[str, Login]] = []
        if file is not None:
            self._kept = self._load(file)

    @contextmanager
    def pulling(self, reference: str, login: Login | None) -> Iterator[PullAttempt]:
        """Offer a login while its pull is under way; keep it afterwards if the pull succeeded.

        A pull without one that succeeds forgets what was kept: the image is open to all now.
        """
        key = _key(reference)
        attempt = PullAttempt(login)
        offer = (key, login) if key and login else None
        if offer is not None and _size(offer[1]) > _MAX_SECRET:
            offer = None
        if offer is not None:
            with self._lock:
                self._under_way.append(offer)
        try:
            yield attempt
        finally:
            if offer is not None:
                with self._lock:
                    self._under_way.remove(offer)
            if key and attempt.image_id is not None:
                self._settle(key, offer[1] if offer else None, attempt.image_id)

    def _settle(self, key: str, login: Login | None, image_id: str) -> None:
        with self._lock:
            before = self._kept.pop(key, None)
            if login is not None:
                self._kept[key] = _entry(login, image_id)
            after = self._kept.get(key)
            while len(self._kept) > MAX_IMAGES:
                del self._kept[next(iter(self._kept))]
        if before != after:
            self._save()

    def forget(self, image: str) -> None:
        """Drop what was kept for a removed image, named by a reference or by its id.

        All names of the same image go: that is what removing it means to CRI.
        """
        key = _key(image)
        with self._lock:
            known = self._kept.get(key)
            image_id = known.image_id if known else _image_id(image)
            gone = [
                name
                for name, entry in self._kept.items()
                if name == key or (image_id and entry.image_id == image_id)
            ]
            for name in gone:
                del self._kept[name]
        if gone:
            self._save()

    def for_image(self, image: ImageName) -> Credentials:
        """Return what is known for one image, as something that a registry's client can ask."""
        return _OfImage(self, image)

    def credential(self, image: ImageName, host: str, /) -> Credential | None:
        """Return the login of this reference; else the newest of another tag of its repository."""
        key = _name_key(image)
        repository = f"{image.host}/{image.repository}"
        with self._lock:
            found = [*self._under_way]
            kept = {name: e.login() for name, e in self._kept.items() if _is_in(name, repository)}
        exact = [login for name, login in reversed(found) if name == key]
        exact += [kept[key]] if key in kept else []
        others = [login for name, login in reversed(found) if _is_in(name, repository)]
        others += reversed(kept.values())
        for login in [*exact, *others]:
            if not login.server or api_host(login.server) == api_host(host):
                return login.credential
        return None

    def _load(self, file: Path) -> dict[str, _Entry]:
        """Read what an earlier process kept; a file that others could write is not believed."""
        try:
            descriptor = os.open(file, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW)
            with open(descriptor, "rb") as opened:
                status = os.fstat(descriptor)
                if status.st_uid != os.geteuid() or status.st_mode & 0o077:
                    self._observer(
                        SnapshotterProblem(f"read {file}", "others than its owner may read it")
                    )
                    return {}
                data = opened.read(_MAX_FILE + 1)
        except FileNotFoundError:
            return {}
        except OSError as error:
            self._observer(SnapshotterProblem(f"read {file}", error.strerror or "no reason"))
            return {}
        try:
            found = msgspec.json.decode(data, type=_File)
        except msgspec.MsgspecError:  # its text may quote the file
            self._observer(SnapshotterProblem(f"read {file}", "not the JSON expected"))
            return {}
        return found.images if found.version == _VERSION else {}

    def _save(self) -> None:
        if self._file is None:
            return
        with self._writing:
            with self._lock:
                images = dict(self._kept)
            try:
                self._file.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
                write_durably(self._file, msgspec.json.encode(_File(_VERSION, images)))
            except OSError as error:
                self._observer(
                    SnapshotterProblem(f"write {self._file}", error.strerror or "no reason")
                )


def _entry(login: Login, image_id: str) -> _Entry:
    given = login.credential
    return _Entry(
        given.username,
        given.password,
        given.identity_token,
        given.registry_token,
        login.server,
        _image_id(image_id),
    )


def _size(login: Login) -> int:
    given = login.credential
    texts = (given.username, given.password, given.identity_token, given.registry_token)
    return sum(map(len, texts)) + len(login.server)


def _image_id(text: str) -> str:
    """Return the hex digits of an image's id, which CRI writes with and without its algorithm."""
    digits = text.removeprefix("sha256:")
    return digits if len(digits) == 64 else ""


def _key(reference: str) -> str:
    """Return the name that a reference is kept under; empty for what is no reference."""
    if "://" in reference:
        return ""
    try:
        return _name_key(ImageName.parse(reference))
    except PageinError:
        return ""


def _name_key(image: ImageName) -> str:
    """Spell a reference as containerd does: of a tag and a digest, the digest."""
    suffix = f"@{image.digest}" if image.digest else f":{image.tag or 'latest'}"
    return f"{image.host}/{image.repository}{suffix}"


def _is_in(key: str, repository: str) -> bool:
    return key.startswith((f"{repository}:", f"{repository}@"))
