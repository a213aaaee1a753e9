"""``pagein profile``: show, merge, diff, and profiles beside an image in a real registry."""

from __future__ import annotations

import json
import shutil
import subprocess
from pathlib import Path

import pytest
from node_under_test import NodeUnderTest
from recorded_image import Place, dd, read_json, repository, touched_blocks

from pagein.format.manifest import Descriptor
from pagein.format.media import OCI_MANIFEST
from pagein.format.profile import Profile, ProfiledFile, Touch
from pagein.store.layout import LayoutRepository
from pagein.store.profiles import MAX_PULLED, push_profile
from pagein.types import Digest

# Of the session, so it must be there before the suite looks at what there was before this module.
pytestmark = [pytest.mark.root, pytest.mark.usefixtures("place")]


def write(path: Path, touches: list[list[int]], **more: object) -> Path:
    document = {
        "version": 1,
        "recorded": "2026-01-31T12:00:00Z",
        "reference": "docker://registry:5000/app:v1",
        "source": f"sha256:{'0' * 64}",
        "command": ["python3", "a b"],
        "read_ahead_kb": 0,
        "seconds": 2.5,
        "files": [{"name": "bin/one", "size": 1 << 20}, {"name": "lib/two%0A", "size": 8192}],
        "touches": touches,
    }
    path.write_text(json.dumps(document | more))
    return path


def test_show_says_what_a_profile_has(node: NodeUnderTest):
    one = write(node.folder / "one", [[0, 8192, 8192, 0], [1, 0, 8192, 900], [0, 0, 4096, 1000]])
    facts = json.loads(node("profile", "show", one, "--json").stdout)
    assert facts["bytes"] == 20480
    assert (facts["files"], facts["touches"], facts["seconds"]) == (2, 3, 2.5)
    assert facts["biggest"] == [
        {"name": "bin/one", "size": 1 << 20, "touched": 12288},
        {"name": "lib/two%0A", "size": 8192, "touched": 8192},
    ]
    assert [(slice_["ms"], slice_["bytes"]) for slice_ in facts["timeline"]] == [
        *((100 * number, 8192) for number in range(1, 9)), (900, 16384), (1000, 20480),
    ]  # fmt: skip
    text = node("profile", "show", one, "--top", "1").stdout
    assert "20.0 KiB of 2 files, in 3 ranges" in text
    assert "python3 a b" in text
    assert "bin/one" in text
    assert "lib/two" not in text


def test_what_somebody_else_wrote_does_not_reach_the_terminal(node: NodeUnderTest):
    one = write(node.folder / "one", [], command=["\x1b[2J\n"], reference="\u202eoops\r")
    text = node("profile", "show", one).stdout
    assert "\\x1b[2J\\n" in text
    assert "\\u202eoops\\r" in text
    assert all(line.isprintable() for line in text.splitlines())


def test_merge_and_diff(node: NodeUnderTest):
    one = write(node.folder / "one", [[0, 0, 8192, 0]])
    two = write(node.folder / "two", [[1, 0, 8192, 0], [0, 4096, 8192, 1]])
    merged = node.folder / "merged"
    done = node("profile", "merge", one, two, "-o", merged)
    assert "2 profiles, 20.0 KiB of 2 files" in done.stderr
    assert read_json(merged)["touches"] == [[0, 0, 8192, 0], [1, 0, 8192, 0], [0, 8192, 4096, 1]]
    found = json.loads(node("profile", "diff", one, two, "--json").stdout)
    assert (found["only_a"], found["only_b"], found["both"]) == (4096, 12288, 4096)
    assert [file["name"] for file in found["files"]] == ["bin/one", "lib/two%0A"]
    text = node("profile", "diff", one, two).stdout
    assert "only in A      4.0 KiB" in text
    same = json.loads(node("profile", "diff", one, one, "--json").stdout)
    assert (same["only_a"], same["only_b"], same["files"]) == (0, 0, [])


def test_profiles_of_two_read_aheads_are_one_line_and_no_file(node: NodeUnderTest):
    one = write(node.folder / "one", [[0, 0, 8192, 0]])
    two = write(node.folder / "two", [[0, 0, 8192, 0]], read_ahead_kb=128)
    out = node.folder / "out"
    line, hint = node.complaint("profile", "merge", one, two, "-o", out, code=2)
    assert line == "the profiles were recorded with read-aheads of 0 and 128 KiB"
    assert "--read-ahead" in hint
    assert not out.exists()


@pytest.mark.parametrize("text", ["", "{}", "[" * 100_000, '{"version": 1, "touches": 3}'])
def test_what_is_no_profile_is_one_line(text: str, node: NodeUnderTest):
    bad = node.folder / "bad"
    bad.write_text(text)
    for words in (
        ("show", bad),
        ("merge", bad, "-o", "x"),
        ("diff", bad, bad),
        ("push", bad, "r:5/a"),
    ):
        line, _ = node.complaint("profile", *words)
        assert line.startswith(f"{bad}: not a profile")
    line, _ = node.complaint("profile", "show", node.folder / "absent", code=2)
    assert line.endswith("absent: No such file or directory")


def test_recorded_profiles_are_pushed_pulled_and_merged(place: Place, node: NodeUnderTest):
    app = repository(place, "pushed")
    node("convert", app)
    line, _ = node.complaint("profile", "pull", app, "-o", node.folder / "none")
    assert line == f"no profile beside docker://{app}"
    for block in (5, 9):
        script = dd("data/big", block, 1)
        done = node("record", "--push", app, "--", "sh", "-c", script)
        assert "pushed beside the image as sha256:" in done.stderr
    one = node.folder / "one"
    script = dd("data/big", 1, 1)
    node("record", "-o", one, app, "--", "sh", "-c", script)
    assert node("profile", "push", one, app).stdout.startswith("sha256:")
    node("profile", "push", one, app)  # again: it is there
    out = node.folder / "pulled"
    done = node("profile", "pull", app, "-o", out)
    assert "3 profiles" in done.stderr
    assert sorted(touched_blocks(read_json(out))) == [("data/big", n) for n in (1, 5, 9)]
    line, _ = node.complaint("profile", "pull", app, "-o", out, "--read-ahead", 64)
    assert line == "no profile was recorded with a read-ahead of 64 KiB"
    # The image starts as before, and its artifact is found beside the profiles.
    assert node("inspect", app).returncode == 0


def test_another_registry_client_sees_a_profile_as_what_it_is(place: Place, node: NodeUnderTest):
    if shutil.which("skopeo") is None:
        pytest.skip("needs skopeo")
    app = repository(place, "seen")
    one = write(node.folder / "one", [[0, 0, 8192, 0]])
    digest = node("profile", "push", one, app).stdout.strip()
    name = app.removesuffix(":v1")
    words = ("skopeo", "inspect", "--raw", "--tls-verify=false", f"docker://{name}@{digest}")
    manifest = json.loads(subprocess.run(words, check=True, capture_output=True).stdout)
    assert manifest["artifactType"] == "application/vnd.pagein.profile.v1"
    assert manifest["subject"]["digest"] == place.image.digests["app"]
    assert [layer["mediaType"] for layer in manifest["layers"]] == [
        "application/vnd.pagein.profile.v1+json"
    ]
    line, _ = node.complaint("run", f"{name}@{digest}", "--", "sh")
    assert "not an image" in line


def test_profiles_lie_in_a_layout_too(place: Place, node: NodeUnderTest):
    layout = node.folder / "layout"
    shutil.copytree(place.image.layouts / "app", layout)
    one = write(node.folder / "one", [[0, 0, 8192, 0]])
    node("profile", "push", one, f"oci:{layout}:v1")
    node("profile", "pull", f"oci:{layout}:v1", "-o", node.folder / "two")
    assert read_json(node.folder / "two")["touches"] == [[0, 0, 8192, 0]]


def test_broken_and_surplus_profiles_are_left_out(place: Place, node: NodeUnderTest):
    layout = node.folder / "layout"
    shutil.copytree(place.image.layouts / "app", layout)
    target = LayoutRepository(layout)
    subject = Descriptor(
        media_type=OCI_MANIFEST, digest=Digest.parse(place.image.digests["app"]), size=1
    )
    pushed = [
        push_profile(
            target,
            subject,
            Profile(
                recorded=f"2026-01-01T{number // 60:02}:{number % 60:02}:00Z",
                reference="r",
                source=subject.digest,
                read_ahead_kb=0,
                seconds=1,
                files=(ProfiledFile("f", 1 << 20),),
                touches=(Touch(0, number * 4096, 4096, 0),),
            ),
        )
        for number in range(MAX_PULLED + 3)
    ]
    manifest = json.loads((layout / "blobs/sha256" / pushed[7].hex).read_bytes())
    blob = layout / "blobs/sha256" / manifest["layers"][0]["digest"].removeprefix("sha256:")
    blob.write_bytes(b"{}")
    out = node.folder / "out"
    done = node("profile", "pull", f"oci:{layout}:v1", "-o", out)
    assert f"left out: profile {pushed[7]}" in done.stderr
    assert f"left out: 3 profiles older than the newest {MAX_PULLED}" in done.stderr
    kept = [[0, 3 * 4096, 4 * 4096, 0], [0, 8 * 4096, 59 * 4096, 0]]
    assert read_json(out)["touches"] == kept
