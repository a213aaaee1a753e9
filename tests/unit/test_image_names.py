"""References as people write them: Docker's short forms, and skopeo's transports."""

from __future__ import annotations

import pytest

from pagein.errors import UsageError
from pagein.types import ImageName

DIGEST = "sha256:" + "ab" * 32


@pytest.mark.parametrize(
    ("text", "full"),
    [
        ("python", "docker://docker.io/library/python:latest"),
        ("team/app:v1", "docker://docker.io/team/app:v1"),
        ("localhost/app", "docker://localhost/app:latest"),
        ("registry:5000/team/app:v1", "docker://registry:5000/team/app:v1"),
        ("[::1]:5000/app", "docker://[::1]:5000/app:latest"),
        (f"docker://r.example/app@{DIGEST}", f"docker://r.example/app@{DIGEST}"),
        (f"r.example/app:v1@{DIGEST}", f"docker://r.example/app:v1@{DIGEST}"),
        ("oci:a/layout", "oci:a/layout"),
        ("oci:a/layout:v1", "oci:a/layout:v1"),
        ("oci:a:b/layout", "oci:a:b/layout"),
        (f"oci:layout@{DIGEST}", f"oci:layout@{DIGEST}"),
        ("oci-archive:app.tar:v1", "oci-archive:app.tar:v1"),
        ("docker-archive:app.tar", "docker-archive:app.tar"),
        ("docker-archive:app.tar:v1", "docker-archive:app.tar:v1"),
        ("docker-archive:app.tar:app:v1", "docker-archive:app.tar:app:v1"),
        ("docker-archive:a/b.tar:host:5000/a/b:v1", "docker-archive:a/b.tar:host:5000/a/b:v1"),
        ("dir:some/tree:odd", "dir:some/tree:odd"),
    ],
)
def test_a_reference_is_read_and_written(text: str, full: str) -> None:
    assert str(ImageName.parse(text)) == full
    assert ImageName.parse(full) == ImageName.parse(text)


@pytest.mark.parametrize(
    ("text", "path", "tag"),
    [
        ("docker-archive:/x/app.tar", "/x/app.tar", None),
        ("docker-archive:/x/app.tar:v1", "/x/app.tar", "v1"),
        ("docker-archive:/x/app.tar:some/app:v1", "/x/app.tar", "some/app:v1"),
        ("docker-archive:/x/app.tar:host:5000/app:v1", "/x/app.tar", "host:5000/app:v1"),
        ("oci:/x/layout:v1", "/x/layout", "v1"),
    ],
)
def test_a_path_ends_where_the_name_of_the_image_begins(
    text: str, path: str, tag: str | None
) -> None:
    name = ImageName.parse(text)
    assert (name.path, name.tag) == (path, tag)


@pytest.mark.parametrize(
    "text",
    ["", "oci:", "UPPER/case", "host/a b", "host/app:", "host/app:bad tag", "host/app@md5:1"],
)
def test_what_is_no_reference_is_wrong_usage(text: str) -> None:
    with pytest.raises(UsageError, match="not an image reference"):
        ImageName.parse(text)
