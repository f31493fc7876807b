"""Paths of the node below another root: links are resolved there and never lead out of it."""

import errno
from pathlib import Path

import pytest

from services.common.node.paths import resolve_under


@pytest.mark.parametrize(
    ("path", "expected"),
    [
        ("/run/netns", "run/netns"),
        ("/var/run/netns", "run/netns"),
        ("/etc/relative", "etc/here"),
        ("/etc/../../run", "run"),
        ("/etc/out", "run"),
    ],
    ids=["no link", "absolute link", "relative link", "above the root", "link above the root"],
)
def test_a_path_is_resolved_below_the_root(tmp_path: Path, path: str, expected: str) -> None:
    for folder in ("run/netns", "var", "etc"):
        (tmp_path / folder).mkdir(parents=True)
    (tmp_path / "var" / "run").symlink_to("/run")
    (tmp_path / "etc" / "relative").symlink_to("here")
    (tmp_path / "etc" / "out").symlink_to("../../../run")
    assert resolve_under(tmp_path, path) == tmp_path / expected


def test_a_loop_of_links_is_an_error_of_the_file_system(tmp_path: Path) -> None:
    (tmp_path / "loop").symlink_to("/loop")
    with pytest.raises(OSError, match="symbolic links") as error:
        resolve_under(tmp_path, "/loop")
    assert error.value.errno == errno.ELOOP
