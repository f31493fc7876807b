"""Encode domain names for DHCP options and router advertisements. Pure.

Next: :mod:`services.handler.addresses.dhcp.dhcp4_replies`.
"""

from collections.abc import Iterable


def encode_domains(domains: Iterable[str]) -> bytes:
    """Return domain names in DNS wire format (RFC 1035), uncompressed; names that it cannot carry are left out."""
    result = b""
    for domain in domains:
        labels = [label.encode() for label in domain.strip(".").split(".")]
        # RFC 1035 section 2.3.4: a label has at most 63 octets, a name at most 255 with its length octets.
        if all(0 < len(label) < 64 for label in labels) and sum(len(label) + 1 for label in labels) < 255:
            result += b"".join(bytes([len(label)]) + label for label in labels) + b"\0"
    return result
