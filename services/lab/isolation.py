"""The inside of the lab: private mounts over the machine's paths, and a loopback that is up.

Runs as the first process of fresh mount, PID and network namespaces (`unshare -m -n -p -f --mount-proc`, see
`services.lab.holder`) and touches nothing outside of them. The folders that hold the lab's fixed paths are covered
by overlays whose upper layer is a tmpfs of this mount namespace: a mount point that the machine lacks is made there
and not on the machine, and one that the machine has may be removed by others, which would detach what is mounted on
the machine's own directory. Next: `services.lab.supervisor`, which starts processes in what this module has laid.
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

from services.lab.layout import SCRATCH, Layout

# <linux/mount.h>
MS_BIND: Final = 4096
MS_REC: Final = 16384
MS_SHARED: Final = 1 << 20
# <linux/sockios.h>, <linux/if.h>
SIOCGIFFLAGS: Final = 0x8913
SIOCSIFFLAGS: Final = 0x8914
IFF_UP: Final = 1
COVERED: Final = (Path("/run"), Path("/var/lib"), Path("/etc"), Path("/opt"))
"""The machine's folders that hold the fixed paths of `services.lab.layout`."""

IFREQ: Final = struct.Struct("16sh22x")


def mount(source: str, target: str, kind: str | None = None, flags: int = 0, data: str | None = None) -> None:
    """Call mount(2); raises OSError that names the target."""
    libc = ctypes.CDLL(None, use_errno=True)
    encoded = (None if kind is None else kind.encode(), None if data is None else data.encode())
    if libc.mount(source.encode(), target.encode(), encoded[0], ctypes.c_ulong(flags), encoded[1]) != 0:
        number = ctypes.get_errno()
        raise OSError(number, f"{os.strerror(number)} (mount {kind or 'bind'})", target)


def submounts(of: Path, mountinfo: str) -> list[Path]:
    """Return the topmost mount points strictly below `of`, from the text of /proc/self/mountinfo."""
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


def cover(ancestor: Path, scratch: Path, keep: Iterable[Path]) -> None:
    """Lay an overlay over `ancestor` with its upper layer below `scratch`; what is mounted below stays seen.

    Directories in `keep` that lie below `ancestor` go on being the machine's own (the lab's directory has to).
    """
    name = str(ancestor).strip("/").replace("/", "-")
    upper, work = scratch / f"{name}.upper", scratch / f"{name}.work"
    upper.mkdir()
    work.mkdir()
    with kept_below(ancestor, keep):
        mount("overlay", str(ancestor), "overlay", 0, f"lowerdir={ancestor},upperdir={upper},workdir={work}")


@contextlib.contextmanager
def kept_below(top: Path, keep: Iterable[Path] = ()) -> Iterator[None]:
    """Put back what is mounted below `top`, and the directories in `keep`, after `top` was mounted over."""
    below = submounts(top, Path("/proc/self/mountinfo").read_text())
    below += [k for k in keep if k.is_relative_to(top) and not any(k.is_relative_to(b) for b in below)]
    held = [(path, os.open(path, os.O_PATH | os.O_CLOEXEC)) for path in below]
    try:
        yield
        for path, fd in held:
            if not path.exists():
                # A fresh file system may lack the mount point; nothing of the lab needs what stood there.
                continue
            mount(f"/proc/self/fd/{fd}", str(path), None, MS_BIND | MS_REC)
    finally:
        for _, fd in held:
            os.close(fd)


def loopback_up() -> None:
    """Bring `lo` up in the current network namespace."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        answer = fcntl.ioctl(sock, SIOCGIFFLAGS, IFREQ.pack(b"lo", 0))
        flags: int = IFREQ.unpack(answer)[1]
        fcntl.ioctl(sock, SIOCSIFFLAGS, IFREQ.pack(b"lo", flags | IFF_UP))


def isolate(layout: Layout) -> None:
    """Lay the lab's private paths; raises OSError when the kernel refuses a mount.

    Must be called in namespaces of its own, with `/` a slave of the machine's mounts.
    """
    # containerd hands the sandboxes' netns mounts on to its shims by propagation.
    mount("none", "/", None, MS_REC | MS_SHARED)
    loopback_up()
    with kept_below(Path("/sys")):
        # The machine's /sys shows the machine's links; a fresh one those of this network namespace.
        mount("sysfs", "/sys", "sysfs")
    mount("tmpfs", str(layout.overlay), "tmpfs", 0, "mode=0700")
    for top in COVERED:
        cover(top, layout.overlay, keep=[layout.dir])
    for path in (*SCRATCH, *layout.binds()):
        path.mkdir(parents=True, exist_ok=True)
    for inside, outside in layout.binds().items():
        mount(str(outside), str(inside), None, MS_BIND)
    for inside in SCRATCH:
        mount("tmpfs", str(inside), "tmpfs", 0, "mode=0755")


def overlays_work_on(path: Path) -> bool:
    """Return whether overlayfs takes an upper layer on the file system of `path` (it refuses another overlay)."""
    return filesystem_of(path, Path("/proc/self/mountinfo").read_text()) != "overlay"


def filesystem_of(path: Path, mountinfo: str) -> str:
    """Return the type of the file system that holds `path`, from the text of /proc/self/mountinfo."""
    best, kind = Path("/"), ""
    for line in mountinfo.splitlines():
        left, _, right = line.partition(" - ")
        point = Path(unescape(left.split(" ")[4]))
        # A later line is mounted on top of an earlier one at the same point.
        if path.is_relative_to(point) and len(point.parts) >= len(best.parts):
            best, kind = point, right.split(" ", 1)[0]
    return kind
