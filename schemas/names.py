"""Names derived from the name of a VM's interface, and the rules for interface names.

Upstream: KubeVirt's hashed pod interface names (SHA-256, first 11 hex digits). With them an interface can be unplugged
without renaming the others. The names that a pod really has are in its network status.
Next: :mod:`schemas.bus.encoding`, which encodes names into subjects and keys.
"""

import hashlib
import re
from collections.abc import Iterable

HASH_DIGITS = 11
"""Number of hex digits of the hash: the kernel's limit of 15 for a link name, minus 4 for ``-nic``."""

_OBJECT_NAME = re.compile(r"[a-z0-9](?:[-a-z0-9.]{0,251}[a-z0-9])?")

NEW_INTERFACE_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]{0,62}")
"""Pattern for the name of a newly plugged interface (``fullmatch``)."""

KNOWN_INTERFACE_NAME = re.compile(r"[A-Za-z0-9-_]+")
"""KubeVirt's own pattern, for names that are in a spec already (``fullmatch``)."""

ORDINAL_POD_INTERFACE = re.compile(r"net\d+")
"""Pattern of pod interface names in pods created by KubeVirt before 1.0 (``fullmatch``)."""


def interface_hash(interface: str) -> str:
    """Return ``<h>`` of an interface: the first 11 hex digits of the SHA-256 of its name.

    >>> interface_hash("iface1")
    '7e0055a6880'
    """
    return hashlib.sha256(interface.encode()).hexdigest()[:HASH_DIGITS]


def pod_interface(interface: str) -> str:
    """Return the name of the link that CNI creates in the pod for an interface (``pod<h>``)."""
    return f"pod{interface_hash(interface)}"


def bridge(interface: str) -> str:
    """Return the name of the in-pod bridge between the pod interface and the guest's tap (``k6t-<h>``)."""
    return f"k6t-{interface_hash(interface)}"


def tap(interface: str) -> str:
    """Return the name of the tap behind the guest NIC (``tap<h>``)."""
    return f"tap{interface_hash(interface)}"


def bridged_nic(interface: str) -> str:
    """Return the name of the real pod interface while it is a port of the in-pod bridge (``<h>-nic``)."""
    return f"{interface_hash(interface)}-nic"


def device_alias(interface: str) -> str:
    """Return the alias (QEMU device id) of the guest NIC in the domain; the name keeps its case."""
    # In lower case, as KubeVirt writes it, the alias of a name with capitals would not be found again.
    return f"ua-{interface}"


def interface_of_alias(alias: str) -> str | None:
    """Return the interface of a device alias; ``None`` for a device that is not a NIC of the VMI's spec."""
    return alias[3:] if alias.startswith("ua-") and len(alias) > 3 else None


def find_colliding_names(interfaces: Iterable[str]) -> tuple[str, str] | None:
    """Return the first two different names with the same ``<h>``, or ``None``."""
    # With 44 bits a collision is rare, but a user can construct one. KubeVirt does not check.
    seen: dict[str, str] = {}
    for name in interfaces:
        other = seen.setdefault(interface_hash(name), name)
        if other != name:
            return other, name
    return None


def is_object_name(text: str) -> bool:
    """Return whether an object can have a name: a DNS subdomain of 253 characters at most, as most of them have.

    Any other text could change the meaning of a path or a subject that it is put in.
    """
    return _OBJECT_NAME.fullmatch(text) is not None


def is_ordinal(pod_interface_name: str) -> bool:
    """Return whether a pod interface has an ordinal name (``net1``, ``net2``, …)."""
    return ORDINAL_POD_INTERFACE.fullmatch(pod_interface_name) is not None
