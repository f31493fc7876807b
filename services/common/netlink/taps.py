"""Creation of taps, with the SELinux label of the process that will open them.

A tap has the label of the process that created it, and the guest's process may open only taps of its own label. A
thread cannot change its label, only the label of the program it executes next (``attr/exec``). Where SELinux enforces,
this file is therefore executed as a program that creates one tap. It uses the standard library only.
Next: :mod:`services.common.netlink.netns`, which runs it inside a namespace.
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
"""Seconds for the program that creates a labelled tap; it usually needs 20 ms."""


def make_tap(name: str, *, owner: int, multi_queue: bool) -> None:
    """Create a persistent tap in the calling thread's network namespace.

    :param owner: user id whose processes may attach to the tap.
    :raises OSError: ``EEXIST`` if a link of that name exists.
    """
    flags = _IFF_TAP | _IFF_NO_PI | _IFF_VNET_HDR | _IFF_TUN_EXCL | (_IFF_MULTI_QUEUE if multi_queue else 0)
    fd = os.open("/dev/net/tun", os.O_RDWR | os.O_CLOEXEC)
    try:
        try:
            fcntl.ioctl(fd, _TUNSETIFF, struct.pack("16sH22x", name.encode(), flags))
        except OSError as exc:
            # The driver reports a taken name as EBUSY, because of IFF_TUN_EXCL.
            if exc.errno == errno.EBUSY:
                raise OSError(errno.EEXIST, f"link {name} exists already") from exc
            raise
        fcntl.ioctl(fd, _TUNSETOWNER, owner)
        # A tap that is not persistent would vanish with this descriptor; QEMU opens it by name later.
        fcntl.ioctl(fd, _TUNSETPERSIST, 1)
    finally:
        os.close(fd)


class SelinuxLabels:
    """SELinux labels of the node's processes.

    :param root: where this process sees the node's file system.
    :param own: file for the label of the program that the calling thread executes next.
    """

    def __init__(self, root: Path = Path("/"), own: Path = Path("/proc/thread-self/attr/exec")) -> None:
        self._root = root
        self._own = own

    def label_of(self, pid: int) -> str | None:
        """Return the label of a process of the node; ``None`` if SELinux does not enforce.

        :raises OSError: the process is gone.
        """
        try:
            if (self._root / "sys/fs/selinux/enforce").read_text().strip() != "1":
                return None
        except FileNotFoundError:
            return None
        return (self._root / f"proc/{pid}/attr/current").read_text().rstrip("\0\n") or None

    def make_tap(self, label: str, name: str, *, owner: int, multi_queue: bool) -> None:
        """Create a tap as :func:`make_tap` does, by a program with this label.

        Call it in a thread that ends afterwards: the label applies to everything the thread executes later.

        :raises OSError: as :func:`make_tap`; ``EACCES`` if the policy forbids a program with that label.
        """
        self._own.write_text(label)
        # -I and -S: a quick start, independent of environment and site-packages. The standard library is enough.
        command = [sys.executable, "-I", "-S", __file__, name, str(owner), str(int(multi_queue))]
        try:
            done = subprocess.run(
                command, capture_output=True, text=True, timeout=_LABELLED_TIMEOUT, check=False, env={}
            )
        except subprocess.TimeoutExpired as exc:
            raise OSError(
                errno.ETIMEDOUT, f"the program that creates tap {name} with label {label} did not end in time"
            ) from exc
        if done.returncode:
            code = done.returncode if done.returncode in errno.errorcode else errno.EIO
            raise OSError(code, done.stderr.strip())


def main(name: str, owner: str, multi_queue: str) -> int:
    """Create one tap; return the errno as exit code, 0 for success."""
    try:
        make_tap(name, owner=int(owner), multi_queue=multi_queue == "1")
    except OSError as exc:
        sys.stderr.write(f"{exc.strerror}\n")
        return exc.errno or errno.EIO
    return 0


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
