"""The configuration of a NATS server for hotnic's identities, as text. Pure.

It has the accounts of :mod:`schemas.bus.permissions` and a user for each public key. A server includes it, or has
all of it from here. Next: :mod:`services.common.bus.nkeys`, which makes and reads the keys.
"""

import json
from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple

from schemas.bus.permissions import (
    ANSWER_SECONDS,
    CONNECTION_TYPES,
    IMPORTING_ACCOUNTS,
    MAX_PAYLOAD,
    MAX_SUBSCRIPTIONS,
    STREAM_ACCOUNT,
    Import,
    account_of,
    identity_name,
    imports_of,
    role_permissions,
)
from services.common.bus.settings import CALLOUT_TIMEOUT

CALLOUT_ACCOUNT = "HOTNIC_AUTH"
"""The account in which the auth callout is answered."""
CALLOUT_SUBJECT = "$SYS.REQ.USER.AUTH"
CALLOUT_QUEUE = "hotnic"
"""The queue group of what answers: one of the replicas answers each request."""
_TYPES = f"allowed_connection_types: [{', '.join(CONNECTION_TYPES)}]"


class NatsUser(NamedTuple):
    """A user of the server.

    :ivar role: one of :class:`schemas.bus.permissions.BusRole`.
    :ivar node: the node of a role of a node.
    :ivar key: public nkey, ``U…``. An identity may have several users, for example while its key is replaced.
    """

    role: str
    node: str | None
    key: str


class NatsCallout(NamedTuple):
    """The auth callout of a server: a service decides about every connection to hotnic's accounts but those of users.

    :ivar issuer: public nkey of the account that signs the decisions, ``A…``.
    :ivar users: public nkeys of the user as which the service connects; several while its key is replaced.
    """

    issuer: str
    users: Sequence[str]


class NatsTls(NamedTuple):
    """The TLS files of a server, by their paths on it."""

    cert: str
    key: str


def render_accounts(
    users: Sequence[NatsUser], callout: NatsCallout | None = None, *, unrestricted: Sequence[str] = ()
) -> str:
    """Return the accounts with their users.

    :param callout: an auth callout beside the users, who do not pass it.
    :param unrestricted: public nkeys of users in the account of the streams who may use every subject.
    :raises ValueError: a user has no identity on the bus.
    """
    exports: dict[Import, list[str]] = {}
    for account in IMPORTING_ACCOUNTS:
        for one in imports_of(account):
            exports.setdefault(one, []).append(account)
    stream_users = [*_users(STREAM_ACCOUNT, users), *(f"{{ nkey: {_quote(key)}, {_TYPES} }}" for key in unrestricted)]
    lines = [
        "accounts {",
        "  # The streams, and the controller, which creates them and their consumers. Everybody else is in another",
        "  # account: the server checks neither where a client has an answer sent, nor the body of a request.",
        f"  {STREAM_ACCOUNT} {{",
        "    jetstream: enabled",
        *_block("exports", [_export(one, accounts) for one, accounts in exports.items()]),
        *_block("users", stream_users),
        "  }",
        *(line for account in IMPORTING_ACCOUNTS for line in _importing_account(account, users)),
        *(_callout_account(callout) if callout is not None else ()),
        "}",
        *(_authorization(users, callout) if callout is not None else ()),
    ]
    return "\n".join(lines) + "\n"


def render_server(
    *,
    listen: str,
    store_dir: str,
    tls: NatsTls | None,
    name: str = "hotnic",
    monitoring: str = "",
    store_limits: Mapping[str, str] | None = None,
) -> str:
    """Return the first part of the configuration of one server with JetStream; the accounts are the other part.

    :param listen: ``HOST:PORT``.
    :param monitoring: ``HOST:PORT``; empty for no monitoring.
    :param store_limits: further settings of JetStream.
    """
    store = {"store_dir": _quote(store_dir), **(store_limits or {})}
    lines = [f"server_name: {_quote(name)}", f"listen: {_quote(listen)}"]
    if monitoring:
        lines += [f"http: {_quote(monitoring)}"]
    if tls is not None:
        lines += [f"tls {{ cert_file: {_quote(tls.cert)}, key_file: {_quote(tls.key)} }}"]
    lines += [f"jetstream {{ {', '.join(f'{key}: {value}' for key, value in store.items())} }}"]
    return "\n".join(lines) + "\n"


def _importing_account(account: str, users: Sequence[NatsUser]) -> Iterable[str]:
    yield f"  {account} {{"
    yield "    # Of each connection."
    yield f"    limits {{ max_subscriptions: {MAX_SUBSCRIPTIONS}, max_payload: {MAX_PAYLOAD} }}"
    yield from _block("imports", [_import(one) for one in imports_of(account)])
    yield from _block("users", _users(account, users))
    yield "  }"


def _callout_account(callout: NatsCallout) -> Iterable[str]:
    yield "  # Nobody but what answers the callout: a request has the token of the client."
    yield f"  {CALLOUT_ACCOUNT} {{"
    permissions = f'subscribe: {_quote(f"{CALLOUT_SUBJECT} {CALLOUT_QUEUE}")}, publish: {{ deny: ">" }}'
    # One answer to each request, within the time that the server waits.
    answers = f'allow_responses: {{ max: 1, expires: "{CALLOUT_TIMEOUT}s" }}'
    yield from _block(
        "users",
        [f"{{ nkey: {_quote(key)}, {_TYPES}, permissions: {{ {permissions}, {answers} }} }}" for key in callout.users],
    )
    yield "  }"


def _authorization(users: Sequence[NatsUser], callout: NatsCallout) -> Iterable[str]:
    yield "authorization {"
    yield "  # Seconds for a connection to be let in; by default 2, which a review may take on a busy cluster."
    yield f"  timeout: {CALLOUT_TIMEOUT}"
    yield "  auth_callout {"
    yield f"    issuer: {_quote(callout.issuer)}"
    yield f"    account: {CALLOUT_ACCOUNT}"
    yield "    # Users of other accounts log in without it."
    yield f"    allowed_accounts: [{', '.join((STREAM_ACCOUNT, *IMPORTING_ACCOUNTS))}]"
    yield f"    auth_users: [{', '.join(_quote(key) for key in (*callout.users, *(user.key for user in users)))}]"
    yield "  }"
    yield "}"


def _users(account: str, users: Sequence[NatsUser]) -> list[str]:
    """Return those of the users that are in an account."""
    return [line for user in users if account_of(user.role) == account for line in _user(user)]


def _user(user: NatsUser) -> Iterable[str]:
    permissions = role_permissions(user.role, user.node)
    yield f"# {_one_line(identity_name(user.role, user.node))}"
    yield f"{{ nkey: {_quote(user.key)}, {_TYPES}, permissions: {{"
    for name, subjects in (("publish", permissions.publish), ("subscribe", permissions.subscribe)):
        yield f"  {name}: {{ allow: ["
        yield from (f"    {_quote(subject)}" for subject in subjects)
        yield "  ] }"
    if permissions.answers:
        yield f'  allow_responses: {{ max: 1, expires: "{ANSWER_SECONDS}s" }}'
    yield "} }"


def _export(one: Import, accounts: Sequence[str]) -> str:
    head = f"{_quote(one.subject)}, accounts: [{', '.join(accounts)}]"
    if one.delivery:
        return f"{{ stream: {head} }}"
    answers = ", response_type: Stream" if one.answers else ""
    # So long the server remembers a request without an answer; of several answers, without a further one.
    return f'{{ service: {head}{answers}, response_threshold: "{ANSWER_SECONDS}s" }}'


def _import(one: Import) -> str:
    kind = "stream" if one.delivery else "service"
    local = f", to: {_quote(one.local)}" if one.local != one.subject else ""
    return f"{{ {kind}: {{ account: {STREAM_ACCOUNT}, subject: {_quote(one.subject)} }}{local} }}"


def _block(name: str, lines: Iterable[str]) -> list[str]:
    return [f"    {name}: [", *(f"      {line}" for line in lines), "    ]"]


def _quote(text: str) -> str:
    # NATS knows no \u; in quotes it replaces no variable, so `$JS` is what it is.
    return json.dumps(text, ensure_ascii=False)


def _one_line(text: str) -> str:
    return "".join(c if c.isprintable() else "?" for c in text)
