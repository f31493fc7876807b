"""Whether later mounts of network namespaces reach this process is read from its mounts."""

import pytest

from services.common.node.mounts import find_netns_problem

ROOT = "22 1 0:20 / / rw,relatime - overlay overlay rw\n"
HOST = "30 22 8:1 / /host rw,relatime{} - ext4 /dev/sda1 rw\n"
HOST_RUN = "31 30 0:25 / /host/run rw,nosuid{} - tmpfs tmpfs rw\n"
NETNS = "32 31 0:25 /netns /host/run/netns rw,nosuid{} - tmpfs tmpfs rw\n"
OWN_NETNS = "33 22 0:25 /netns /run/netns rw,nosuid{} - tmpfs tmpfs rw\n"
PLAIN, SLAVE, SHARED = "", " master:14", " shared:14"


@pytest.mark.parametrize(
    ("root", "mounts", "visible"),
    [
        ("/host", HOST.format(SLAVE) + HOST_RUN.format(SLAVE), True),
        ("/host/", HOST.format(SHARED) + HOST_RUN.format(SHARED), True),
        ("/host", HOST.format(PLAIN) + HOST_RUN.format(PLAIN), False),
        ("/host", HOST.format(PLAIN) + HOST_RUN.format(PLAIN) + NETNS.format(SLAVE), True),
        ("/host", HOST.format(SLAVE) + HOST_RUN.format(SLAVE) + NETNS.format(PLAIN), False),
        ("/", OWN_NETNS.format(SLAVE), True),
        ("/", OWN_NETNS.format(PLAIN), False),
        ("/", "", True),
        ("/proc/1/root", HOST.format(PLAIN), True),
    ],
    ids=[
        "the node's root, propagated",
        "shared",
        "the node's root, not propagated",
        "the directory alone, propagated",
        "the directory alone, not propagated",
        "at the node's own path, propagated",
        "at the node's own path, not propagated",
        "in the node's mount namespace",
        "through another process",
    ],
)
def test_visibility(root: str, mounts: str, visible: bool) -> None:
    problem = find_netns_problem(root, ROOT + mounts)
    assert (problem == "") is visible
    if problem:
        assert "HostToContainer" in problem
        assert f"{root.rstrip('/')}/run/netns" in problem


def test_the_mounts_of_this_process_can_be_read() -> None:
    assert find_netns_problem("/proc/1/root") == ""
    assert isinstance(find_netns_problem("/"), str)
