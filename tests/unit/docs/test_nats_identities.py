"""The table of NATS identities in docs/install.md is the table of the code."""

import re
from pathlib import Path

from schemas.bus.encoding import node_consumer
from schemas.bus.permissions import INBOX_ROOT, NODE_ROLES, BusRole, account_of, role_permissions

INSTALL = Path(__file__).resolve().parents[3] / "docs" / "install.md"
HEADER = "| identity | account | may publish | may request of JetStream | may subscribe to |"


def row(role: BusRole) -> str:
    """Return the row of a role in the documentation."""
    name = f"`{role}` of a node" if role in NODE_ROLES else f"`{role}`"
    if role is BusRole.NODE:
        return f"| {name} | `{account_of(role)}` | what networks and handler of the node may | the same | nothing |"
    named = []
    permissions = role_permissions(role, "NODE" if role in NODE_ROLES else None)
    for subject in permissions.publish:
        for part in ("networks", "handler"):
            subject = subject.replace(node_consumer(part, "NODE"), f"{part}_HASH")
        named.append(subject)
    events = [subject for subject in named if not subject.startswith("$JS.")]
    # Acks belong to the consumers.
    requests = [found[1] for subject in named if (found := re.match(r"\$JS\.(?:hotnic\.)?API\.(.+)", subject))]
    received = [subject for subject in permissions.subscribe if not subject.startswith(INBOX_ROOT)]
    columns = (events, grouped(requests), received)
    cells = (", ".join(f"`{subject}`" for subject in subjects) or "nothing" for subjects in columns)
    return f"| {name} | `{account_of(role)}` | {' | '.join(cells)} |"


def grouped(requests: list[str]) -> list[str]:
    """Return the requests, those of one object and of one kind in braces: ``STREAM.{INFO,CREATE}.{A,B}``."""
    verbs: dict[tuple[str, str], list[str]] = {}
    for request in requests:
        found = re.fullmatch(r"(STREAM|CONSUMER|DIRECT)\.((?:MSG\.)?[A-Z]+)\.(.+)", request)
        assert found is not None
        verbs.setdefault((found[1], found[3]), []).append(found[2])
    objects: dict[tuple[str, str], list[str]] = {}
    for (kind, name), of_object in verbs.items():
        objects.setdefault((kind, braces(of_object)), []).append(name)
    return [f"{kind}.{verb}.{braces(names)}" for (kind, verb), names in objects.items()]


def braces(words: list[str]) -> str:
    return words[0] if len(words) == 1 else f"{{{','.join(words)}}}"


def test_documented_identities_are_those_of_the_code() -> None:
    expected = [HEADER, "|---|---|---|---|---|", *map(row, BusRole)]
    text = INSTALL.read_text()
    assert "\n".join(expected) in text, "the table of docs/install.md must be:\n" + "\n".join(expected)
