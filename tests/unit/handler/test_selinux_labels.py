"""Which label the guest's taps bear: the guest's own, and none where SELinux does not enforce."""

from pathlib import Path

import pytest

from services.common.netlink.taps import Labels

LABEL = "system_u:system_r:container_t:s0:c123,c456"


def node(root: Path, enforce: str | None) -> Labels:
    """A node's file system, with the launcher's process 4242."""
    if enforce is not None:
        (root / "sys/fs/selinux").mkdir(parents=True)
        (root / "sys/fs/selinux/enforce").write_text(enforce)
    (root / "proc/4242/attr").mkdir(parents=True)
    (root / "proc/4242/attr/current").write_text(f"{LABEL}\0\n")
    return Labels(root)


@pytest.mark.parametrize(("enforce", "expected"), [("1", LABEL), ("0", None), (None, None)])
def test_only_where_selinux_enforces_a_tap_needs_a_label(tmp_path: Path, enforce: str, expected: str | None) -> None:
    assert node(tmp_path, enforce).of(4242) == expected


def test_a_process_that_is_gone_has_no_label_to_tell(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        node(tmp_path, "1").of(4243)
