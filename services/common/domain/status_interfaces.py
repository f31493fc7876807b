"""A VMI's ``status.interfaces`` and its ``infoSource`` tokens, which several roles write.

Each writer adds and removes only its own token (``domain``, ``guest-agent``, ``multus-status``) and preserves all
other fields of an entry. An entry is removed when neither the domain nor Multus has the NIC any more.
"""

from typing import Any

from schemas.kubernetes.limits import MAX_NAME

DOMAIN = "domain"
GUEST_AGENT = "guest-agent"
MULTUS_STATUS = "multus-status"
_ORDER = (DOMAIN, GUEST_AGENT, MULTUS_STATUS)
"""KubeVirt's order, in which its own tests expect the text of ``infoSource``."""

MAX_INFO_SOURCE = MAX_NAME
"""Characters of an ``infoSource``, of which hotnic and KubeVirt together write 50. What follows is ignored."""

MAX_IPS, MAX_IP = 64, 64
"""Addresses of an entry that are read, and characters of one."""
_TEXTS = ("name", "mac", "podInterfaceName", "interfaceName", "linkState")

Entry = dict[str, Any]
"""One entry as decoded JSON."""


def parse_tokens(entry: Entry) -> frozenset[str]:
    """Return the tokens of an entry's ``infoSource``."""
    text = str(entry.get("infoSource") or "")[:MAX_INFO_SOURCE]
    return frozenset(part.strip() for part in text.split(",") if part.strip())


def join_tokens(found: frozenset[str]) -> str:
    """Return the text of ``infoSource``: known tokens in KubeVirt's order, then all others."""
    return ", ".join([t for t in _ORDER if t in found] + sorted(found - set(_ORDER)))


def find_entry(entries: list[Entry] | None, name: str) -> Entry | None:
    """Return the entry of an interface, ``None`` if there is none."""
    return next((entry for entry in entries or () if entry.get("name") == name), None)


def entries_by_name(entries: list[Entry] | None) -> dict[str, Entry]:
    """Return the entries by interface, for more than one look-up; of two for one interface the first."""
    found: dict[str, Entry] = {}
    for entry in entries or ():
        name = entry.get("name")
        if isinstance(name, str):
            found.setdefault(name, entry)
    return found


def readable(entry: Entry) -> Entry:
    """Return the fields of an entry that roles read, without those of the wrong type or of a length that none has."""
    found: Entry = {}
    for field in _TEXTS:
        text = entry.get(field)
        if isinstance(text, str) and len(text) <= MAX_NAME:
            found[field] = text
    # Cut as its tokens are: without it, a writer whose token is in it would write it again and again.
    if isinstance(source := entry.get("infoSource"), str):
        found["infoSource"] = source[:MAX_INFO_SOURCE]
    ips = entry.get("ipAddresses")
    if isinstance(ips, list):
        found["ipAddresses"] = [ip for ip in ips[:MAX_IPS] if isinstance(ip, str) and len(ip) <= MAX_IP]
    return found


def with_token(entries: list[Entry] | None, name: str, token: str, **fields: Any) -> list[Entry]:
    """Return the entries with a token and fields set for an interface; a missing entry is appended."""
    result, done = [], False
    for entry in entries or ():
        if entry.get("name") == name and not done:
            done = True
            result.append({**entry, **fields, "infoSource": join_tokens(parse_tokens(entry) | {token})})
        else:
            result.append(entry)
    if not done:
        result.append({"name": name, **fields, "infoSource": token})
    return result


def without_token(entries: list[Entry] | None, name: str, token: str) -> list[Entry]:
    """Return the entries with a token removed for an interface.

    The entry is removed with its last token. ``guest-agent`` alone does not preserve it: the agent's report is
    outdated if neither the domain nor Multus has the NIC.
    """
    result = []
    for entry in entries or ():
        if entry.get("name") != name or token not in parse_tokens(entry):
            result.append(entry)
            continue
        left = parse_tokens(entry) - {token}
        if left - {GUEST_AGENT}:
            result.append({**entry, "infoSource": join_tokens(left)})
    return result
