"""Making a tap in the calling thread's network namespace; with the SELinux label of the process that will open it.

A tap bears the label of the process that made it, and a guest's process may open none of another label. No thread can
take a label on, only a program that it executes (``attr/exec``): so where SELinux enforces, this very file is run as a
program of its own, for one tap. Standard library only, which is all that such a program needs.
Next: :mod:`services.common.netlink.netns`, which calls it inside a namespace.
"""

import errno
import fcntl
import os
import struct
import subprocess
import sys
from pathlib import Path

# linux/if_tun.h
_TUNSETIFF = 0x400454CA
_TUNSETPERSIST = 0x400454CB
_TUNSETOWNER = 0x400454CC
_IFF_TAP = 0x0002
_IFF_NO_PI = 0x1000
_IFF_VNET_HDR = 0x4000
_IFF_MULTI_QUEUE = 0x0100
_IFF_TUN_EXCL = 0x8000

_LABELLED_TIMEOUT = 1.5
"""Seconds that the program may take; it needs some 20 ms."""


def make_tap(name: str, *, owner: int, multi_queue: bool) -> None:
    """Make a persistent tap that processes of user ``owner`` may attach to.

    :raises OSError: ``EEXIST`` when a link of that name exists.
    """
    flags = _IFF_TAP | _IFF_NO_PI | _IFF_VNET_HDR | _IFF_TUN_EXCL | (_IFF_MULTI_QUEUE if multi_queue else 0)
    fd = os.open("/dev/net/tun", os.O_RDWR | os.O_CLOEXEC)
    try:
        try:
            fcntl.ioctl(fd, _TUNSETIFF, struct.pack("16sH22x", name.encode(), flags))
        except OSError as exc:
            # EBUSY is how the driver says that the name is taken.
            if exc.errno == errno.EBUSY:
                raise OSError(errno.EEXIST, f"a link named {name} exists") from exc
            raise
        fcntl.ioctl(fd, _TUNSETOWNER, owner)
        fcntl.ioctl(fd, _TUNSETPERSIST, 1)
    finally:
        os.close(fd)


class Labels:
    """SELinux' labels of processes.

    :param root: where the node's file system is seen from here. :param own: what the calling thread executes next
        bears the label written here.
    """

    def __init__(self, root: Path = Path("/"), own: Path = Path("/proc/thread-self/attr/exec")) -> None:
        self._root = root
        self._own = own

    def of(self, pid: int) -> str | None:
        """The label of a process of the node; ``None`` where SELinux does not enforce anything.

        :raises OSError: the process is gone.
        """
        try:
            if (self._root / "sys/fs/selinux/enforce").read_text().strip() != "1":
                return None
        except FileNotFoundError:
            return None
        return (self._root / f"proc/{pid}/attr/current").read_text().rstrip("\0\n") or None

    def make_tap(self, label: str, name: str, *, owner: int, multi_queue: bool) -> None:
        """As :func:`make_tap`, by a program that bears this label. For a thread that ends afterwards.

        :raises OSError: as there; ``EACCES`` when no program may take the label on.
        """
        self._own.write_text(label)
        command = [sys.executable, "-I", "-S", __file__, name, str(owner), str(int(multi_queue))]
        try:
            done = subprocess.run(command, capture_output=True, text=True, timeout=_LABELLED_TIMEOUT, check=False)
        except subprocess.TimeoutExpired as exc:
            raise OSError(errno.ETIMEDOUT, f"the program that makes {name} as {label} does not end") from exc
        if done.returncode:
            code = done.returncode if done.returncode in errno.errorcode else errno.EIO
            raise OSError(code, done.stderr.strip())


def main(name: str, owner: str, multi_queue: str) -> int:
    """Make one tap; the exit code is the error's number."""
    try:
        make_tap(name, owner=int(owner), multi_queue=multi_queue == "1")
    except OSError as exc:
        sys.stderr.write(f"{exc.strerror}\n")
        return exc.errno or errno.EIO
    return 0


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
