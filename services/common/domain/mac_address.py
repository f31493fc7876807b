"""MAC addresses as people and programs write them. Pure.

Next: :mod:`services.common.domain.eligibility`, which refuses interfaces whose MAC no NIC can have.
"""

import re

from schemas.kubernetes.networks import canonical_mac

_FORMS = re.compile(r"[0-9a-f]{2}(?::[0-9a-f]{2}){5}|[0-9a-f]{2}(?:-[0-9a-f]{2}){5}|[0-9a-f]{4}(?:\.[0-9a-f]{4}){2}")
"""The forms that Go's ``net.ParseMAC`` reads, as far as they have the 6 bytes of an Ethernet address."""


def normalize_mac(text: str) -> str:
    """Return the MAC of a NIC as the kernel writes it: lower case, bytes separated by colons.

    >>> normalize_mac("0200.0000.00AB")
    '02:00:00:00:00:ab'

    :raises ValueError: no NIC can have this MAC; the message says why.
    """
    shown = f"MAC address {text[:40]!r}"
    if not _FORMS.fullmatch(text.lower()):
        raise ValueError(f"{shown} is not one of six bytes, such as 02:00:00:00:00:01")
    mac = canonical_mac(text)
    octets = bytes.fromhex(mac.replace(":", ""))
    if octets == b"\xff" * 6:
        raise ValueError(f"{shown} is the broadcast address")
    if octets[0] & 1:
        raise ValueError(f"{shown} is a multicast address: its first byte is odd")
    if not any(octets):
        raise ValueError(f"{shown} is zero")
    return mac


def find_mac(value: object) -> str | None:
    """Return the MAC of a NIC as :func:`normalize_mac` does; ``None`` if there is none, or an impossible one."""
    try:
        return normalize_mac(value) if isinstance(value, str) else None
    except ValueError:
        return None
