"""Set up the inside of the lab: private mounts over the machine's paths, and the loopback interface.

This runs in the first process of new mount, PID and network namespaces (`unshare -m -n -p -f --mount-proc`, see
`lab.namespaces.holder`) and changes nothing outside of them. Overlays cover the folders that contain the lab's fixed
paths; their upper layer is a tmpfs of this mount namespace. A mount point that the machine lacks is thus created in
the overlay only. A mount point that the machine has can be removed there by other processes, and the kernel would
then detach what is mounted on it here; on an overlay this does not happen. Next: `lab.supervisor`, which
starts processes in these namespaces.
"""

from __future__ import annotations

import contextlib
import ctypes
import fcntl
import os
import socket
import struct
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Final

from lab.layout import SCRATCH, Layout

# <linux/mount.h>
MS_BIND: Final = 4096
MS_REC: Final = 16384
MS_SHARED: Final = 1 << 20
# <linux/sockios.h>, <linux/if.h>
SIOCGIFFLAGS: Final = 0x8913
SIOCSIFFLAGS: Final = 0x8914
IFF_UP: Final = 1
OVERLAID: Final = (Path("/run"), Path("/var/lib"), Path("/etc"), Path("/opt"), Path("/var/log"))
"""The machine's folders that contain the fixed paths of `lab.layout`, or that a kubelet writes to."""

IFREQ: Final = struct.Struct("16sh22x")
"""`struct ifreq` of netdevice(7) with the flags of a link: 40 bytes."""


def mount(source: str, target: str, kind: str | None = None, flags: int = 0, data: str | None = None) -> None:
    """Call mount(2).

    :raises OSError: the kernel rejected the mount; `filename` is the target.
    """
    libc = ctypes.CDLL(None, use_errno=True)
    encoded = (None if kind is None else kind.encode(), None if data is None else data.encode())
    if libc.mount(source.encode(), target.encode(), encoded[0], ctypes.c_ulong(flags), encoded[1]) != 0:
        number = ctypes.get_errno()
        raise OSError(number, f"{os.strerror(number)} (mount {kind or 'bind'})", target)


def submounts(of: Path, mountinfo: str) -> list[Path]:
    """Return the topmost mount points strictly below `of`.

    :param mountinfo: the text of /proc/self/mountinfo.
    """
    points = sorted({Path(unescape(line.split(" ", 5)[4])) for line in mountinfo.splitlines() if line})
    top: list[Path] = []
    for point in points:
        if point != of and point.is_relative_to(of) and not any(point.is_relative_to(t) for t in top):
            top.append(point)
    return top


def unescape(field: str) -> str:
    """Undo mountinfo's octal escapes (space, tab, newline, backslash)."""
    for code, char in (("\\040", " "), ("\\011", "\t"), ("\\012", "\n"), ("\\134", "\\")):
        field = field.replace(code, char)
    return field


def mount_overlay(ancestor: Path, scratch: Path, keep: Iterable[Path]) -> None:
    """Mount an overlay over `ancestor`; submounts of `ancestor` stay visible.

    :param scratch: the folder of the overlay's upper layer.
    :param keep: directories below `ancestor` that stay the machine's own; the lab's directory must be one.
    """
    name = str(ancestor).strip("/").replace("/", "-")
    upper, work = scratch / f"{name}.upper", scratch / f"{name}.work"
    upper.mkdir()
    work.mkdir()
    with preserve_submounts(ancestor, keep):
        mount("overlay", str(ancestor), "overlay", 0, f"lowerdir={ancestor},upperdir={upper},workdir={work}")


@contextlib.contextmanager
def preserve_submounts(top: Path, keep: Iterable[Path] = ()) -> Iterator[None]:
    """Bind the submounts of `top`, and the directories in `keep`, back into place after `top` was mounted over."""
    below = submounts(top, Path("/proc/self/mountinfo").read_text())
    below += [k for k in keep if k.is_relative_to(top) and not any(k.is_relative_to(b) for b in below)]
    descriptors = [(path, os.open(path, os.O_PATH | os.O_CLOEXEC)) for path in below]
    try:
        yield
        for path, fd in descriptors:
            if not path.exists():
                # The new file system may lack the mount point; the lab needs none of these.
                continue
            mount(f"/proc/self/fd/{fd}", str(path), None, MS_BIND | MS_REC)
    finally:
        for _, fd in descriptors:
            os.close(fd)


def set_loopback_up() -> None:
    """Set the link `lo` up in the current network namespace."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        answer = fcntl.ioctl(sock, SIOCGIFFLAGS, IFREQ.pack(b"lo", 0))
        flags: int = IFREQ.unpack(answer)[1]
        fcntl.ioctl(sock, SIOCSIFFLAGS, IFREQ.pack(b"lo", flags | IFF_UP))


def isolate(layout: Layout) -> None:
    """Set up the lab's private paths.

    Call it in namespaces of the lab's own, with `/` a slave of the machine's mounts.

    :raises OSError: the kernel rejected a mount.
    """
    # containerd's shims see the sandboxes' netns mounts by mount propagation, so the tree must be shared.
    mount("none", "/", None, MS_REC | MS_SHARED)
    set_loopback_up()
    mount_sysfs()
    # In memory: the lab's directory may be on an overlay, which cannot hold another overlay's upper layer (ADR 19).
    mount("tmpfs", str(layout.overlay), "tmpfs", 0, "mode=0700")
    for top in OVERLAID:
        mount_overlay(top, layout.overlay, keep=[layout.dir])
    mount_fixed_paths(layout)


def mount_sysfs() -> None:
    """Mount a `/sys` that shows the links of the current network namespace, as each one shows those of its own."""
    with preserve_submounts(Path("/sys")):
        mount("sysfs", "/sys", "sysfs")


def mount_fixed_paths(layout: Layout) -> None:
    """Mount the folders of a node at its fixed paths.

    :raises OSError: the kernel rejected a mount.
    """
    for path in (*SCRATCH, *layout.binds()):
        path.mkdir(parents=True, exist_ok=True)
    for inside, outside in layout.binds().items():
        mount(str(outside), str(inside), None, MS_BIND)
    for inside in SCRATCH:
        mount("tmpfs", str(inside), "tmpfs", 0, "mode=0755")


def supports_overlay(path: Path) -> bool:
    """Return whether the file system of `path` can hold the upper layer of an overlay; an overlay cannot."""
    return filesystem_type(path, Path("/proc/self/mountinfo").read_text()) != "overlay"


def filesystem_type(path: Path, mountinfo: str) -> str:
    """Return the type of the file system that holds `path`, from the text of /proc/self/mountinfo."""
    best, kind = Path("/"), ""
    for line in mountinfo.splitlines():
        left, _, right = line.partition(" - ")
        point = Path(unescape(left.split(" ")[4]))
        # Of two mounts at the same point, the later line is on top.
        if path.is_relative_to(point) and len(point.parts) >= len(best.parts):
            best, kind = point, right.split(" ", 1)[0]
    return kind
