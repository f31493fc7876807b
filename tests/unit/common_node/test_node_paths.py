"""Paths of the node below another root: links are resolved there and never lead out of it."""

import errno
import os
from collections.abc import Callable
from pathlib import Path

import pytest

from services.common.node.paths import open_under, resolve_under


def opened(root: Path, path: str) -> Path:
    """Return where the file is that is opened under a root."""
    descriptor = open_under(root, path)
    try:
        return Path(os.readlink(f"/proc/self/fd/{descriptor}"))
    finally:
        os.close(descriptor)


@pytest.fixture(params=[resolve_under, opened], ids=["resolved", "opened"])
def resolve(request: pytest.FixtureRequest) -> Callable[[Path, str], Path]:
    """Each function that resolves a path."""
    function: Callable[[Path, str], Path] = request.param
    return function


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
def test_a_path_is_resolved_below_the_root(
    resolve: Callable[[Path, str], Path], tmp_path: Path, path: str, expected: str
) -> None:
    for folder in ("run/netns", "var", "etc/here"):
        (tmp_path / folder).mkdir(parents=True)
    (tmp_path / "var" / "run").symlink_to("/run")
    (tmp_path / "etc" / "relative").symlink_to("here")
    (tmp_path / "etc" / "out").symlink_to("../../../run")
    assert resolve(tmp_path, path) == tmp_path / expected


def test_a_loop_of_links_is_an_error_of_the_file_system(resolve: Callable[[Path, str], Path], tmp_path: Path) -> None:
    (tmp_path / "loop").symlink_to("/loop")
    with pytest.raises(OSError, match="symbolic links") as error:
        resolve(tmp_path, "/loop")
    assert error.value.errno == errno.ELOOP


def test_no_descriptor_stays_open_but_the_one_that_is_returned(tmp_path: Path) -> None:
    (tmp_path / "etc").mkdir()
    (tmp_path / "etc" / "link").symlink_to("/etc")
    before = len(os.listdir("/proc/self/fd"))
    os.close(open_under(tmp_path, "/etc/link/link/.."))
    with pytest.raises(FileNotFoundError):
        open_under(tmp_path, "/etc/none")
    assert len(os.listdir("/proc/self/fd")) == before
