"""Domain names as they are carried in DHCP and router advertisements. Pure."""

from collections.abc import Iterable


def dns_names(domains: Iterable[str]) -> bytes:
    """Domain names as DNS encodes them (RFC 1035), without compression; names that cannot be encoded are left out."""
    result = b""
    for domain in domains:
        labels = [label.encode() for label in domain.strip(".").split(".")]
        if all(0 < len(label) < 64 for label in labels) and sum(len(label) + 1 for label in labels) < 255:
            result += b"".join(bytes([len(label)]) + label for label in labels) + b"\0"
    return result
