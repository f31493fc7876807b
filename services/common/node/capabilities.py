"""The capabilities of the node roles: what each is for, and which one a refused operation lacks.

The table is that of docs/install.md and of the chart; unit tests compare the three. An error names what is missing only
after the kernel has refused something: a capability may be needless on a node where root owns what the role uses.
"""

import errno
from collections.abc import Mapping
from pathlib import Path
from typing import Final

REASONS: Final[Mapping[str, Mapping[str, str]]] = {
    "networks": {},
    "multus": {
        "NET_ADMIN": "plugins create links and addresses",
        "NET_RAW": "plugins use raw sockets: iptables, announcements of addresses",
        "SYS_ADMIN": "the role and plugins enter network namespaces of pods",
        "SYS_CHROOT": "plugins run in the root of the node",
        "DAC_OVERRIDE": "plugins use files and sockets of other users, such as those of Open vSwitch",
    },
    "handler": {
        "NET_ADMIN": "bridges, taps and addresses in pods",
        "NET_RAW": "packet sockets of the DHCP and router advertisement servers",
        "SYS_ADMIN": "the role enters network namespaces of pods",
        "SYS_PTRACE": "`/proc/PID/root` of launchers, for the name servers and the socket of libvirt",
        "DAC_OVERRIDE": "the sockets of QEMU and libvirt belong to the user of QEMU",
    },
    "install-shim": {"DAC_OVERRIDE": "the directory of CNI plugins may belong to another user"},
}
"""By role, and of the container that installs the shim: each capability and what it is for."""

_NUMBERS: Final = {
    "DAC_OVERRIDE": 1,
    "NET_ADMIN": 12,
    "NET_RAW": 13,
    "SYS_CHROOT": 18,
    "SYS_PTRACE": 19,
    "SYS_ADMIN": 21,
}
"""linux/capability.h"""


def missing(*names: str, status: Path = Path("/proc/self/status")) -> list[str]:
    """Return which of these capabilities the calling process lacks, as ``CAP_NAME``.

    :param names: the capabilities; without any, all that a node role may need.
    """
    line = next(line for line in status.read_text().splitlines() if line.startswith("CapEff:"))
    held = int(line.split()[1], 16)
    return [f"CAP_{name}" for name in names or _NUMBERS if not held >> _NUMBERS[name] & 1]


def name_missing(code: int | None, *names: str) -> str:
    """Return what to append to the text of a refused operation: the capabilities that the process lacks, if any.

    :param code: errno of the operation.
    :param names: the capabilities that it may need.
    """
    lacking = missing(*names) if code in (errno.EPERM, errno.EACCES) else []
    return f" (the process lacks {', '.join(lacking)})" if lacking else ""


def lacked_by(role: str) -> dict[str, str]:
    """Return what this process lacks as a role, each capability with what it is for."""
    return {lacking: reason for name, reason in REASONS[role].items() for lacking in missing(name)}
