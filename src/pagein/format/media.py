"""Media types: OCI image-spec 1.1 (media-types.md), Docker schema 2, and our own."""

from __future__ import annotations

from typing import Final

MEDIA_INDEX: Final = "application/vnd.pagein.index.v1"
MEDIA_PACK: Final = "application/vnd.pagein.pack.v1"
ARTIFACT_TYPE: Final = "application/vnd.pagein.image.v1"
PROFILE_TYPE: Final = "application/vnd.pagein.profile.v1"
MEDIA_PROFILE: Final = "application/vnd.pagein.profile.v1+json"
SERVES: Final = "vnd.pagein.serves"
"""Annotation of an artifact's entry in an image index: the digest of the manifest it serves."""

OPTIMIZED_FROM: Final = "vnd.pagein.optimized-from"
"""Annotation of an artifact with a hot region: the digest of the artifact that it was made from."""

PROFILE: Final = "vnd.pagein.profile"
"""Beside it: the digest of the profile, several ones merged, in the form that pagein writes."""

HOT_LEVEL: Final = "vnd.pagein.hot-level"
"""Beside it: the zstd level of the hot region's copies, in decimal."""

OCI_MANIFEST: Final = "application/vnd.oci.image.manifest.v1+json"
OCI_INDEX: Final = "application/vnd.oci.image.index.v1+json"
OCI_CONFIG: Final = "application/vnd.oci.image.config.v1+json"
OCI_EMPTY: Final = "application/vnd.oci.empty.v1+json"
OCI_LAYER: Final = "application/vnd.oci.image.layer.v1.tar"
DOCKER_MANIFEST: Final = "application/vnd.docker.distribution.manifest.v2+json"
DOCKER_LIST: Final = "application/vnd.docker.distribution.manifest.list.v2+json"
DOCKER_CONFIG: Final = "application/vnd.docker.container.image.v1+json"
DOCKER_LAYER_GZIP: Final = "application/vnd.docker.image.rootfs.diff.tar.gzip"
DOCKER_SCHEMA1: Final = (
    "application/vnd.docker.distribution.manifest.v1+json",
    "application/vnd.docker.distribution.manifest.v1+prettyjws",
)

MANIFESTS: Final = frozenset({OCI_MANIFEST, DOCKER_MANIFEST})
INDEXES: Final = frozenset({OCI_INDEX, DOCKER_LIST})
CONFIGS: Final = frozenset({OCI_CONFIG, DOCKER_CONFIG})
LAYERS: Final = frozenset(
    {
        OCI_LAYER,
        f"{OCI_LAYER}+gzip",
        f"{OCI_LAYER}+zstd",
        "application/vnd.docker.image.rootfs.diff.tar",
        DOCKER_LAYER_GZIP,
        "application/vnd.docker.image.rootfs.diff.tar.zstd",
    }
)
FOREIGN_LAYERS: Final = frozenset(
    {
        "application/vnd.oci.image.layer.nondistributable.v1.tar",
        "application/vnd.oci.image.layer.nondistributable.v1.tar+gzip",
        "application/vnd.oci.image.layer.nondistributable.v1.tar+zstd",
        "application/vnd.docker.image.rootfs.foreign.diff.tar",
        "application/vnd.docker.image.rootfs.foreign.diff.tar.gzip",
    }
)
