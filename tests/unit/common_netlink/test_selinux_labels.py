"""The SELinux label of the guests' taps: the guest's own, and none where SELinux does not enforce."""

from pathlib import Path

import pytest

from services.common.netlink.taps import SelinuxLabels

LABEL = "system_u:system_r:container_t:s0:c123,c456"


def node(root: Path, enforce: str | None) -> SelinuxLabels:
    """Create a node's file system with the launcher's process 4242."""
    if enforce is not None:
        (root / "sys/fs/selinux").mkdir(parents=True)
        (root / "sys/fs/selinux/enforce").write_text(enforce)
    (root / "proc/4242/attr").mkdir(parents=True)
    (root / "proc/4242/attr/current").write_text(f"{LABEL}\0\n")
    return SelinuxLabels(root)


@pytest.mark.parametrize(("enforce", "expected"), [("1", LABEL), ("0", None), (None, None)])
def test_a_tap_has_a_label_only_where_selinux_enforces(tmp_path: Path, enforce: str, expected: str | None) -> None:
    assert node(tmp_path, enforce).label_of(4242) == expected


def test_the_label_of_a_process_that_is_gone_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        node(tmp_path, "1").label_of(4243)
