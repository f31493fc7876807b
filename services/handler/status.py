"""What the handler says in a VMI's ``status.interfaces``: the domain's cards, and what the guest itself calls them.

Pure. The handler's tokens are ``domain`` and ``guest-agent``; everything of others in an entry stays as it is.
The MAC joins the domain's cards with the agent's NICs, as KubeVirt does it (virt-handler's netstat).
Next: :mod:`services.handler.plan`, which makes a patch of it.
"""

from collections.abc import Mapping, Sequence
from typing import Any

from schemas.names import device_alias
from services.common.domain.status_interfaces import (
    DOMAIN,
    GUEST_AGENT,
    Entry,
    entry_of,
    tokens,
    with_token,
    without_token,
)
from services.handler.guest.agent import GuestNic
from services.handler.guest.port import Card, GuestView

_AGENT_FIELDS = ("interfaceName", "ipAddress", "ipAddresses")


def entries(
    before: list[Entry] | None,
    interfaces: Sequence[str],
    pod_interfaces: Mapping[str, str],
    guest: GuestView,
    agent: Sequence[GuestNic] | None,
    *,
    queues: int = 1,
    primary: str | None = None,
) -> list[Entry]:
    """The list as it should be.

    :param before: as it stands. :param interfaces: names in the spec's order. :param pod_interfaces: of secondary ones.
    :param agent: what the agent answered; ``None`` (it never did) leaves what it said earlier.
    :param queues: of a card. :param primary: the interface that is listed first.
    """
    after = list(before or ())
    for name in interfaces:
        card = guest.cards.get(device_alias(name))
        after = _without_card(after, name) if card is None else _with_card(after, name, card, pod_interfaces, queues)
        if card is not None and agent is not None:
            after = _with_agent(after, name, card, agent)
    if primary is not None:
        after.sort(key=lambda entry: entry.get("name") != primary)
    return after


def gained(before: list[Entry] | None, after: list[Entry] | None, token: str) -> list[str]:
    """The interfaces that got a token."""
    return [
        entry["name"]
        for entry in after or ()
        if entry.get("name") and token in tokens(entry) and token not in tokens(entry_of(before, entry["name"]) or {})
    ]


def _with_card(
    entries: list[Entry], name: str, card: Card, pod_interfaces: Mapping[str, str], queues: int
) -> list[Entry]:
    fields: dict[str, Any] = {"mac": card.mac, "queueCount": queues}
    if card.up is not None:
        fields["linkState"] = "up" if card.up else "down"
    if name in pod_interfaces:
        fields["podInterfaceName"] = pod_interfaces[name]
    return with_token(entries, name, DOMAIN, **fields)


def _without_card(entries: list[Entry], name: str) -> list[Entry]:
    return _forget(without_token(without_token(entries, name, DOMAIN), name, GUEST_AGENT), name)


def _with_agent(entries: list[Entry], name: str, card: Card, agent: Sequence[GuestNic]) -> list[Entry]:
    # A bond or VLAN in the guest repeats the MAC of the card below it, which the agent lists first.
    nic = next((nic for nic in agent if nic.mac == card.mac), None)
    if nic is None:
        return _forget(without_token(entries, name, GUEST_AGENT), name)
    fields: dict[str, Any] = {"interfaceName": nic.name}
    if nic.ips:
        fields |= {"ipAddress": nic.ips[0], "ipAddresses": list(nic.ips)}
    entries = entries if nic.ips else _drop(entries, name, _AGENT_FIELDS[1:])
    return with_token(entries, name, GUEST_AGENT, **fields)


def _forget(entries: list[Entry], name: str) -> list[Entry]:
    """Take the agent's words back, unless it still stands for them."""
    entry = entry_of(entries, name)
    if entry is None or GUEST_AGENT in tokens(entry):
        return entries
    return _drop(entries, name, _AGENT_FIELDS)


def _drop(entries: list[Entry], name: str, fields: Sequence[str]) -> list[Entry]:
    return [
        {key: value for key, value in entry.items() if key not in fields} if entry.get("name") == name else entry
        for entry in entries
    ]
