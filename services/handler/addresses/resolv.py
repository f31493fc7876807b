"""Read a pod's ``/etc/resolv.conf``, as the kubelet had the container runtime write it.

The handler reads the file once per sandbox, because it never changes. Guests get these name servers if the network's
IPAM has none (:func:`services.handler.addresses.offer.build_offer`), as with KubeVirt.
Next: :mod:`services.handler.addresses.offer`.
"""

import os
import stat
from ipaddress import ip_address
from pathlib import Path

from services.common.node.paths import open_under
from services.handler.addresses.offer import MAX_ENTRIES, NO_RESOLVER, Resolver

MAX_BYTES = 16 * 1024
"""Limit of the file, because the container controls it."""


def read_resolver(root: Path) -> Resolver:
    """Return the resolver configuration below a container's root; an empty one if the file cannot be read.

    :param root: such as ``/proc/PID/root``; symbolic links are resolved below it, also those that change meanwhile.
    """
    try:
        found = open_under(root, "/etc/resolv.conf")
    except OSError:
        return NO_RESOLVER
    try:
        # Checked before it is opened to be read: the container may have a named pipe or a device there.
        if not stat.S_ISREG(os.fstat(found).st_mode):
            return NO_RESOLVER
        with open(f"/proc/self/fd/{found}", "rb", buffering=0) as file:
            return parse_resolv_conf((file.read(MAX_BYTES) or b"").decode(errors="replace"))
    except OSError:
        return NO_RESOLVER
    finally:
        os.close(found)


def parse_resolv_conf(text: str) -> Resolver:
    """Parse a resolv.conf (resolv.conf(5)); the last of several search lists counts.

    Name servers that only the pod can reach, on its loopback or by a link-local address, are left out.
    """
    servers: list[str] = []
    search: list[str] = []
    for line in text.splitlines():
        match line.split():
            case ["nameserver", server, *_] if _is_reachable_by_guests(server):
                servers.append(server)
            case ["search" | "domain", *domains]:
                search = [domain for domain in domains if domain != "."]
    return Resolver(tuple(servers[:MAX_ENTRIES]), tuple(search[:MAX_ENTRIES]))


def _is_reachable_by_guests(text: str) -> bool:
    try:
        address = ip_address(text)
    except ValueError:
        return False
    return not (address.is_loopback or address.is_link_local or address.is_unspecified or address.is_multicast)
