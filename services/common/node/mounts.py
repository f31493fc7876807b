"""Check whether network namespaces that the node makes later will appear to this process.

A runtime makes each pod's network namespace as a mount below ``/run/netns``. A container sees mounts of the node that
are made after its start only if its own mount is propagated (``mountPropagation: HostToContainer``); otherwise it finds
empty files there ("unknown FS magic"). Next: :mod:`services.common.netlink.netns`, which opens namespaces.
"""

from pathlib import Path
from typing import Final

NETNS_DIRS: Final = ("/run/netns", "/var/run/netns")
MOUNTINFO: Final = Path("/proc/self/mountinfo")


def find_netns_problem(host_root: str, mountinfo: str | None = None) -> str:
    """Return why later network namespaces stay invisible to this process; empty if they do not.

    :param host_root: where the node's file system is mounted.
    :param mountinfo: content of ``/proc/self/mountinfo``; read by default.
    """
    root = host_root.rstrip("/")
    # Below another process' root, the kernel shows that process' mounts.
    if root.startswith("/proc/"):
        return ""
    text = MOUNTINFO.read_text() if mountinfo is None else mountinfo
    where, propagated = max((_propagation(f"{root}{folder}", text) for folder in NETNS_DIRS), key=lambda it: len(it[0]))
    # Without a mount of its own, the directory is the node's, and this process is in the node's mount namespace.
    if propagated or (not root and where not in NETNS_DIRS):
        return ""
    return (
        f"mounts that the node makes later do not appear below {where or '/'}, so the network namespaces of new pods "
        f"are not visible; mount {root}{NETNS_DIRS[0]} with mountPropagation HostToContainer (docker: rslave)"
    )


def _propagation(path: str, mountinfo: str) -> tuple[str, bool]:
    """Return the mount that contains a path, and whether it receives mounts from another peer group."""
    found, propagated = "", False
    for line in mountinfo.splitlines():
        fields = line.split(" ")
        # proc(5): id, parent, device, root, mount point, options, then optional fields up to a hyphen.
        point = fields[4].replace("\\040", " ").rstrip("/")
        if (path == point or path.startswith(f"{point}/")) and len(point) >= len(found):
            optional = fields[6 : fields.index("-", 6)]
            found, propagated = point, any(field.startswith(("master:", "shared:")) for field in optional)
    return found, propagated
