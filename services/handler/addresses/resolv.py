"""Whom a pod asks for names: its ``/etc/resolv.conf``, as kubelet had the container runtime write it.

Read once for each sandbox, whose file never changes. Told to guests where the network's IPAM names no servers
(:func:`services.handler.addresses.offer.offer_of`), as KubeVirt does.
"""

import os
import stat
from ipaddress import ip_address
from pathlib import Path

from services.common.netlink.access import under
from services.common.netlink.errors import NetnsGone
from services.handler.addresses.offer import NO_RESOLVER, Resolver

MAX_BYTES = 16 * 1024
MAX_ENTRIES = 32


def read(root: Path) -> Resolver:
    """What the file below a container's root says; nothing where there is no such file.

    :param root: such as ``/proc/PID/root``. Symbolic links stay below it.
    """
    try:
        fd = os.open(under(root, "/etc/resolv.conf"), os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK | os.O_NOFOLLOW)
    except (OSError, NetnsGone):
        return NO_RESOLVER
    try:
        if not stat.S_ISREG(os.fstat(fd).st_mode):
            return NO_RESOLVER
        return parse(os.read(fd, MAX_BYTES).decode(errors="replace"))
    except OSError:
        return NO_RESOLVER
    finally:
        os.close(fd)


def parse(text: str) -> Resolver:
    """Read a resolv.conf (resolv.conf(5)): of several search lists the last one counts.

    Servers that only the pod itself reaches, on its loopback or by a link-local address, are left out.
    """
    servers: list[str] = []
    search: list[str] = []
    for line in text.splitlines():
        match line.split():
            case ["nameserver", server, *_] if _is_for_others(server):
                servers.append(server)
            case ["search" | "domain", *domains]:
                search = [domain for domain in domains if domain != "."]
    return Resolver(tuple(servers[:MAX_ENTRIES]), tuple(search[:MAX_ENTRIES]))


def _is_for_others(text: str) -> bool:
    try:
        address = ip_address(text)
    except ValueError:
        return False
    return not (address.is_loopback or address.is_link_local or address.is_unspecified or address.is_multicast)
