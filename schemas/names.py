"""Names derived from the name of a VM's interface, and the rules that names must obey.

Upstream: KubeVirt's hashed pod interface names (SHA-256, first 11 hex digits), which let a NIC be unplugged
without renaming its neighbours. Which names a *pod* really has is read from its network status, not from here.
Next: :mod:`schemas.encoding`, which puts names into subjects and keys.
"""

import hashlib
import re
from collections.abc import Iterable

HASH_DIGITS = 11
"""Hex digits kept of the hash: 15 (the kernel's limit on a link name) less the four of ``-nic``."""

NEW_INTERFACE_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]{0,62}")
"""What a newly plugged interface may be called (``fullmatch``)."""

KNOWN_INTERFACE_NAME = re.compile(r"[A-Za-z0-9-_]+")
"""KubeVirt's own rule, for names that stand in a spec already (``fullmatch``)."""

ORDINAL_POD_INTERFACE = re.compile(r"net\d+")
"""The names of pods made by KubeVirt before 1.0 (``fullmatch``)."""


def interface_hash(interface: str) -> str:
    """The ``<h>`` of an interface: the first 11 hex digits of the SHA-256 of its name.

    >>> interface_hash("iface1")
    '7e0055a6880'
    """
    return hashlib.sha256(interface.encode()).hexdigest()[:HASH_DIGITS]


def pod_interface(interface: str) -> str:
    """The link in the pod's network namespace that CNI makes for this interface (``pod<h>``)."""
    return f"pod{interface_hash(interface)}"


def bridge(interface: str) -> str:
    """The in-pod bridge between the pod NIC and the guest's tap (``k6t-<h>``)."""
    return f"k6t-{interface_hash(interface)}"


def tap(interface: str) -> str:
    """The tap that the guest's card is backed by (``tap<h>``)."""
    return f"tap{interface_hash(interface)}"


def bridged_nic(interface: str) -> str:
    """The name the real pod NIC carries while it is a port of the in-pod bridge (``<h>-nic``)."""
    return f"{interface_hash(interface)}-nic"


def device_alias(interface: str) -> str:
    """The alias (QEMU device id) of the card in the guest's domain. The case of the name is kept."""
    return f"ua-{interface}"


def interface_of_alias(alias: str) -> str | None:
    """The interface behind a device alias, or ``None`` for a device that is not a NIC of the VMI's spec."""
    return alias[3:] if alias.startswith("ua-") and len(alias) > 3 else None


def colliding(interfaces: Iterable[str]) -> tuple[str, str] | None:
    """The first two different names that share one ``<h>``, or ``None``."""
    seen: dict[str, str] = {}
    for name in interfaces:
        other = seen.setdefault(interface_hash(name), name)
        if other != name:
            return other, name
    return None


def is_ordinal(pod_interface_name: str) -> bool:
    """Whether a pod interface has a name of KubeVirt's old, ordinal scheme (``net1``, ``net2``, …)."""
    return ORDINAL_POD_INTERFACE.fullmatch(pod_interface_name) is not None
