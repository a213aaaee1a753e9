"""OCI and Docker manifests, image indexes, configurations, our artifact: JSON to values and back.

Whatever is read here came from a registry: sizes, types and digests are checked, a duplicate key is
refused (two parsers might see two different images), and what is not an image gets one clear line.
"""

from __future__ import annotations

import json
import re
from typing import Annotated, Any, Final, TypeVar

import msgspec

from pagein.errors import FormatError
from pagein.format.media import (
    ARTIFACT_TYPE,
    CONFIGS,
    DOCKER_SCHEMA1,
    FOREIGN_LAYERS,
    INDEXES,
    LAYERS,
    MANIFESTS,
    MEDIA_INDEX,
    MEDIA_PACK,
    MEDIA_PROFILE,
    OCI_EMPTY,
    OCI_INDEX,
    OCI_MANIFEST,
    OPTIMIZED_FROM,
    PROFILE_TYPE,
    SERVES,
)
from pagein.format.platforms import Platform
from pagein.types import Digest

MAX_MANIFEST: Final = 4 << 20
"""Bytes that every registry accepts for a manifest (OCI distribution-spec, "Pushing Manifests")."""

MAX_BLOB: Final = (1 << 63) - 1
"""Bytes of a blob: what the signed 64 bits hold that other clients keep a size in."""

MAX_LAYERS: Final = 1024
EMPTY_DIGEST: Final = Digest.of(b"{}")
_UNKNOWN: Final = Platform("unknown", "unknown")
_CREATED: Final = "org.opencontainers.image.created"
_MAX_DEPTH: Final = 64
_STRING: Final = re.compile(rb'"(?:[^"\\]|\\.)*+"?', re.DOTALL)
_BRACKET: Final = re.compile(rb"[\[\]{}]")

T = TypeVar("T")


class Descriptor(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True, rename="camel"):
    """What points to a blob or manifest (image-spec descriptor.md)."""

    media_type: str
    digest: Digest
    size: Annotated[int, msgspec.Meta(ge=0, le=MAX_BLOB)]
    annotations: dict[str, str] = {}
    platform: Platform | None = None
    artifact_type: str | None = None


class ImageManifest(msgspec.Struct, frozen=True, kw_only=True, rename="camel"):
    """One image: its configuration and its layers, lowest first."""

    config: Descriptor
    layers: tuple[Descriptor, ...]
    media_type: str = OCI_MANIFEST
    artifact_type: str | None = None
    subject: Descriptor | None = None
    annotations: dict[str, str] = {}


class ImageIndex(msgspec.Struct, frozen=True, kw_only=True, rename="camel"):
    """Several images under one name, one a platform, and what was bound to them."""

    manifests: tuple[Descriptor, ...]
    media_type: str = OCI_INDEX
    annotations: dict[str, str] = {}


class Artifact(msgspec.Struct, frozen=True, kw_only=True):
    """What pagein publishes: the index blob, the packs, and the source image it stands for."""

    index: Descriptor
    packs: tuple[Descriptor, ...]
    subject: Descriptor | None
    annotations: dict[str, str] = {}

    @property
    def is_optimized(self) -> bool:
        """Whether it was made from another artifact, for a profile."""
        return OPTIMIZED_FROM in self.annotations

    @property
    def optimized_from(self) -> Digest | None:
        """The artifact that it was made from, if it was. Raises FormatError for a bad digest."""
        found = self.annotations.get(OPTIMIZED_FROM)
        return None if found is None else Digest.parse(found)


class _Process(msgspec.Struct, frozen=True, rename="pascal"):
    entrypoint: tuple[str, ...] | None = None
    cmd: tuple[str, ...] | None = None
    env: tuple[str, ...] | None = None
    working_dir: str = ""
    user: str = ""
    labels: dict[str, str] | None = None
    stop_signal: str = ""
    exposed_ports: dict[str, Any] | None = None
    volumes: dict[str, Any] | None = None
    shell: tuple[str, ...] | None = None


class _Rootfs(msgspec.Struct, frozen=True):
    diff_ids: tuple[Digest, ...] | None = None


class _Config(msgspec.Struct, frozen=True):
    architecture: str = ""
    os: str = ""
    variant: str | None = None
    config: _Process | None = None
    rootfs: _Rootfs = _Rootfs()


class ImageConfig(msgspec.Struct, frozen=True, kw_only=True):
    """What an image says of the process to run (image-spec config.md)."""

    platform: Platform
    diff_ids: tuple[Digest, ...] = ()
    entrypoint: tuple[str, ...] = ()
    cmd: tuple[str, ...] = ()
    env: tuple[str, ...] = ()
    working_dir: str = ""
    user: str = ""
    labels: dict[str, str] = {}
    stop_signal: str = ""
    exposed_ports: tuple[str, ...] = ()
    volumes: tuple[str, ...] = ()
    shell: tuple[str, ...] = ()


def _no_duplicates(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        raise FormatError("a key appears twice in one JSON object", field="json")
    return found


def _digest_hook(kind: type, value: Any) -> Any:
    if kind is Digest and isinstance(value, str):
        return Digest.parse(value)
    raise NotImplementedError(kind)


def _read(data: bytes, kind: type[T], what: str) -> T:
    if len(data) > MAX_MANIFEST:
        raise FormatError(f"{what} has {len(data)} bytes; at most 4 MiB are allowed", field="size")
    if max(data.count(b"{"), data.count(b"[")) > _MAX_DEPTH and _depth(data) > _MAX_DEPTH:
        raise FormatError(f"{what} is nested too deeply", field="json")
    try:
        # Text first: from bytes, json would also take UTF-16, which no other client does.
        value = json.loads(data.decode(), object_pairs_hook=_no_duplicates)
        return msgspec.convert(value, kind, dec_hook=_digest_hook)
    except (ValueError, RecursionError) as error:  # msgspec.ValidationError is a ValueError
        raise FormatError(f"{what} is not what it should be: {error}", field="json") from None


def _depth(data: bytes) -> int:
    """Return the nesting, as far as it matters.

    Brackets in strings (shell, ANSI colours in a history) are none.
    """
    depth = deepest = 0
    for bracket in _BRACKET.finditer(_STRING.sub(b"", data)):
        depth += 1 if bracket[0] in b"{[" else -1
        deepest = max(deepest, depth)
        if deepest > _MAX_DEPTH:
            break
    return deepest


class _Kind(msgspec.Struct, rename="camel"):
    schema_version: int = 0
    media_type: str | None = None
    artifact_type: str | None = None
    manifests: Any = None
    layers: Any = None
    config: Any = None


def parse_manifest(data: bytes, media_type: str = "") -> ImageManifest | ImageIndex | Artifact:
    """Read whatever a reference led to. Raises FormatError with one line for what is no image.

    ``media_type`` is what the place said; where the document names its own type, that one counts.
    """
    kind = _read(data, _Kind, "the manifest")
    said = kind.media_type or media_type
    if kind.schema_version == 1 or said in DOCKER_SCHEMA1:
        raise FormatError(
            "a Docker schema 1 manifest, which is no longer supported",
            field="schemaVersion",
            hint="push the image again with a current client",
        )
    if kind.schema_version != 2:
        raise FormatError("not an image manifest: schemaVersion is not 2", field="schemaVersion")
    if (kind.manifests is not None) == (kind.layers is not None):
        raise FormatError("neither an image manifest nor an image index", field="manifests")
    if kind.manifests is not None:
        if said and said not in INDEXES:
            raise FormatError(f"an image index of unknown type {said!r}", field="mediaType")
        return _read(data, ImageIndex, "the image index")
    if said and said not in MANIFESTS:
        raise FormatError(f"a manifest of unknown type {said!r}", field="mediaType")
    manifest = _read(data, ImageManifest, "the manifest")
    if len(manifest.layers) > MAX_LAYERS:
        raise FormatError(f"an image with {len(manifest.layers)} layers", field="layers")
    if manifest.artifact_type == ARTIFACT_TYPE:
        return _artifact(manifest)
    _check_image(manifest)
    return manifest


def _check_image(manifest: ImageManifest) -> None:
    if manifest.config.media_type not in CONFIGS:
        what = manifest.artifact_type or manifest.config.media_type
        raise FormatError(f"not an image but an artifact of type {what!r}", field="config")
    for layer in manifest.layers:
        if layer.media_type in FOREIGN_LAYERS:
            raise FormatError(
                f"layer {layer.digest} is foreign ({layer.media_type}): its bytes are not in the "
                "registry",
                field="layers",
            )
        if layer.media_type not in LAYERS:
            raise FormatError(
                f"layer {layer.digest} has the unknown type {layer.media_type!r}", field="layers"
            )


def _artifact(manifest: ImageManifest) -> Artifact:
    types = [layer.media_type for layer in manifest.layers]
    if types[:1] != [MEDIA_INDEX] or any(one != MEDIA_PACK for one in types[1:]):
        raise FormatError(
            "a pagein artifact must hold one index and then packs", field="layers",
            hint="it may be of a later format; use a newer pagein",
        )  # fmt: skip
    return Artifact(
        index=manifest.layers[0],
        packs=manifest.layers[1:],
        subject=manifest.subject,
        annotations=manifest.annotations,
    )


def parse_artifact(data: bytes) -> Artifact:
    """Read a manifest that must be a pagein artifact. Raises FormatError."""
    found = parse_manifest(data)
    if not isinstance(found, Artifact):
        raise FormatError("not a pagein artifact", field="artifactType")
    return found


def parse_profile_manifest(data: bytes) -> tuple[Descriptor, Digest]:
    """Read the manifest of a pushed profile: its one layer, and the image that was recorded.

    Raises FormatError.
    """
    manifest = _read(data, ImageManifest, "the manifest of a profile")
    types = [layer.media_type for layer in manifest.layers]
    if manifest.artifact_type != PROFILE_TYPE or types != [MEDIA_PROFILE]:
        raise FormatError("not the manifest of a profile", field="artifactType")
    if manifest.subject is None:
        raise FormatError("a profile that refers to no image", field="subject")
    return manifest.layers[0], manifest.subject.digest


def parse_config(data: bytes) -> ImageConfig:
    """Read an image configuration. Raises FormatError."""
    config = _read(data, _Config, "the image configuration")
    process = config.config or _Process()
    return ImageConfig(
        platform=Platform(config.os or "linux", config.architecture or "amd64", config.variant),
        diff_ids=config.rootfs.diff_ids or (),
        entrypoint=process.entrypoint or (),
        cmd=process.cmd or (),
        env=process.env or (),
        working_dir=process.working_dir,
        user=process.user,
        labels=process.labels or {},
        stop_signal=process.stop_signal,
        exposed_ports=tuple(sorted(process.exposed_ports or ())),
        volumes=tuple(sorted(process.volumes or ())),
        shell=process.shell or (),
    )


def _document(value: dict[str, Any]) -> bytes:
    """Write canonical JSON: sorted keys, no spaces, so that equal values have equal digests."""
    return json.dumps(
        msgspec.to_builtins(value, enc_hook=str), sort_keys=True, separators=(",", ":")
    ).encode()


def build_artifact(
    *,
    subject: Descriptor,
    index: Descriptor,
    packs: list[Descriptor],
    annotations: dict[str, str] | None = None,
) -> bytes:
    """Write the artifact manifest: OCI 1.1, empty config, layers = index and then packs."""
    return _referrer(ARTIFACT_TYPE, subject, [index, *packs], annotations)


def build_profile_manifest(*, subject: Descriptor, profile: Descriptor, recorded: str) -> bytes:
    """Write the manifest of a profile; ``recorded`` is when, as in the profile."""
    return _referrer(PROFILE_TYPE, subject, [profile], {_CREATED: recorded})


def _referrer(
    artifact_type: str,
    subject: Descriptor,
    layers: list[Descriptor],
    annotations: dict[str, str] | None,
) -> bytes:
    document: dict[str, Any] = {
        "schemaVersion": 2,
        "mediaType": OCI_MANIFEST,
        "artifactType": artifact_type,
        "config": Descriptor(media_type=OCI_EMPTY, digest=EMPTY_DIGEST, size=2),
        "layers": layers,
        "subject": subject,
    }
    if annotations:
        document["annotations"] = annotations
    return _document(document)


def serves(entry: Descriptor) -> Digest | None:
    """Return the digest that an index entry serves, where it is an artifact bound to one."""
    value = entry.annotations.get(SERVES)
    return Digest.parse(value) if value else None


def bind_index(
    existing: ImageIndex | None, sources: list[Descriptor], artifact: Descriptor
) -> bytes:
    """Write the image index for ``convert --bind``.

    Entries of ``existing`` (or else ``sources``) stay, in order; artifacts come last. What served
    the same image before is replaced. ``artifact`` carries the SERVES annotation.
    """
    entries = list(existing.manifests) if existing else list(sources)
    served = serves(artifact)
    kept = [one for one in entries if served is None or serves(one) != served]
    images = [one for one in kept if serves(one) is None]
    artifacts = [one for one in kept if serves(one) is not None]
    document: dict[str, Any] = {
        "schemaVersion": 2,
        "mediaType": OCI_INDEX,
        "manifests": [*images, *artifacts, artifact],
    }
    if existing and existing.annotations:
        document["annotations"] = existing.annotations
    return _document(document)


def bound_descriptor(digest: Digest, size: int, *, served: Digest) -> Descriptor:
    """Return the entry of an artifact in an image index: a platform that no client asks for."""
    return Descriptor(
        media_type=OCI_MANIFEST,
        digest=digest,
        size=size,
        annotations={SERVES: str(served)},
        platform=_UNKNOWN,
        artifact_type=ARTIFACT_TYPE,
    )
