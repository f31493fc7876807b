"""A VMI's ``status.interfaces`` and its ``infoSource`` tokens, which several writers share.

Each writer adds or removes only its own token (``domain``, ``guest-agent``, ``multus-status``) and leaves every
other field of an entry as it finds it; an entry goes when neither the domain nor Multus knows the NIC any more.
"""

from typing import Any

DOMAIN = "domain"
GUEST_AGENT = "guest-agent"
MULTUS_STATUS = "multus-status"
_ORDER = (DOMAIN, GUEST_AGENT, MULTUS_STATUS)

Entry = dict[str, Any]
"""One entry as decoded JSON."""


def tokens(entry: Entry) -> frozenset[str]:
    """The tokens of an entry's ``infoSource``."""
    return frozenset(part.strip() for part in str(entry.get("infoSource") or "").split(",") if part.strip())


def join(found: frozenset[str]) -> str:
    """The text of ``infoSource``: known tokens in KubeVirt's order, then any others."""
    return ", ".join([t for t in _ORDER if t in found] + sorted(found - set(_ORDER)))


def entry_of(entries: list[Entry] | None, name: str) -> Entry | None:
    """The entry of an interface."""
    return next((entry for entry in entries or () if entry.get("name") == name), None)


def with_token(entries: list[Entry] | None, name: str, token: str, **fields: Any) -> list[Entry]:
    """The list with a token (and fields) added to an interface's entry, which is appended when missing."""
    result, done = [], False
    for entry in entries or ():
        if entry.get("name") == name and not done:
            done = True
            result.append({**entry, **fields, "infoSource": join(tokens(entry) | {token})})
        else:
            result.append(entry)
    if not done:
        result.append({"name": name, **fields, "infoSource": token})
    return result


def without_token(entries: list[Entry] | None, name: str, token: str) -> list[Entry]:
    """The list with a token taken from an interface's entry.

    The entry goes with its last token, and ``guest-agent`` alone does not keep it: an agent's word about a card
    that neither the domain nor Multus knows is out of date.
    """
    result = []
    for entry in entries or ():
        if entry.get("name") != name or token not in tokens(entry):
            result.append(entry)
            continue
        left = tokens(entry) - {token}
        if left - {GUEST_AGENT}:
            result.append({**entry, "infoSource": join(left)})
    return result
