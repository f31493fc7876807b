"""What each identity may publish and subscribe to on NATS: one pure table, from which every configuration is made.

A role publishes the stages that it may publish, a role of a node only those of its own node. It reads by its own
consumer. The controller alone creates streams and consumers, and writes the hot-plug status bucket: the server does not
check the body of a request for a consumer, which may have it deliver to any subject (docs/adr/0043). The static
configuration of a server, the auth callout and the documentation are made of this table. multus never uses the bus.

There are three accounts (docs/adr/0037). The server checks the subject of a request, and not that of its answer: with
one account, a node could have the answer to its own pull delete a stream, write to the bucket, or tell the api that the
bucket has changed. So the streams and the controller are in one account, the api in another one, and everybody else in
the third. The last two import exactly :func:`imports_of`. The answer to an imported request stays in the account of the
client: in that of the api nobody else asks, and in the third nobody subscribes to anything but inboxes.
Next: :mod:`schemas.stages`, who publishes which stage.
"""

from collections.abc import Iterable
from enum import StrEnum
from typing import NamedTuple

from schemas.bus.encoding import (
    BUCKET_STREAM_PREFIX,
    CONSUMER_ROOT,
    CONTROLLER_CONSUMER,
    DEAD_ROOT,
    DEAD_STREAM,
    NO_NODE,
    PROJECTOR_CONSUMER,
    STREAM,
    SUBJECT_ROOT,
    consumer_request,
    node_consumer,
    node_token,
    stage_filter,
    stored_notice,
)
from schemas.bus.hotplug_status import BUCKET
from schemas.stages import TABLE, Stage

BUCKET_STREAM = f"{BUCKET_STREAM_PREFIX}{BUCKET}"
"""The stream of the bucket."""
BUCKET_KEYS = f"$KV.{BUCKET}.>"
"""The subjects of the bucket."""
EVENTS = f"{SUBJECT_ROOT}.>"
"""The subjects of the events."""
STREAMS = (STREAM, DEAD_STREAM, BUCKET_STREAM)
STREAM_ACCOUNT = "HOTNIC"
"""The account of the streams and of the controller."""
API_ACCOUNT = "HOTNIC_API"
"""The account of the api alone, which is given notice of what the bucket stores."""
CLIENT_ACCOUNT = "HOTNIC_CLIENTS"
"""The account of every other identity."""
IMPORTING_ACCOUNTS = (API_ACCOUNT, CLIENT_ACCOUNT)
"""The accounts that have what they import from the account of the streams, and nothing else."""
API = "$JS.API"
"""Prefix of JetStream's requests in the account of the streams."""
CLIENT_API = "$JS.hotnic.API"
"""Their prefix in the other accounts. There ``$JS.API`` is that account's own JetStream, which is off."""
UNDELIVERED = f"$JS.EVENT.ADVISORY.CONSUMER.MAX_DELIVERIES.{STREAM}"
"""Prefix of the server's advisories about messages that a consumer did not ack however often it got them."""
CONNECTION_TYPES = ("STANDARD", "WEBSOCKET")
"""As what an identity may connect: by the schemes of NATS_URL. Not as a leaf node, a server that passes on what others
publish, and not by MQTT."""
INBOX_ROOT = "_INBOX_hotnic"
"""First token of every inbox. Not ``_INBOX``, which other users of the account may subscribe to."""
CONSUMER_REQUESTS = f"{CONSUMER_ROOT}.*.*"
"""The subjects on which the roles of the nodes request their consumers."""
MAX_SUBSCRIPTIONS = 1024
"""Of one connection: the server keeps them in memory. The api has the most: one for each read of the bucket."""
MAX_PAYLOAD = 96 * 1024
"""Bytes of one message that an identity publishes, with its headers. The largest of hotnic's is a dead letter."""
ANSWER_SECONDS = 10
"""Seconds within which an identity that answers requests may answer one, and for which the server remembers a request
that crosses accounts: a heartbeat of a pull request comes sooner."""


class BusRole(StrEnum):
    """The roles of identities. ``node`` is the process that runs networks and handler of a node.

    ``reader`` reads events and dead letters; ``administrator`` also replays dead letters. Both are for people.
    """

    API = "api"
    CONTROLLER = "controller"
    NETWORKS = "networks"
    HANDLER = "handler"
    NODE = "node"
    READER = "reader"
    ADMINISTRATOR = "administrator"


PEOPLE = frozenset({BusRole.READER, BusRole.ADMINISTRATOR})
"""The identities that are no process of hotnic."""
NODE_ROLES = frozenset({BusRole.NETWORKS, BusRole.HANDLER, BusRole.NODE})
"""The roles whose identities are bound to a node."""
CONSUMER_ROLES = frozenset({BusRole.NETWORKS, BusRole.HANDLER})
"""The roles that have a consumer on each node."""


class Permissions(NamedTuple):
    """The subjects that an identity may use, with NATS' wildcards. Everything else is denied.

    :ivar publish: subjects that it may publish to, requests included.
    :ivar subscribe: subjects that it may subscribe to.
    :ivar answers: whether it may answer each request that it receives, once.
    """

    publish: tuple[str, ...]
    subscribe: tuple[str, ...]
    answers: bool = False


class Import(NamedTuple):
    """A subject of the streams' account that another account imports.

    :ivar subject: the subject in the streams' account.
    :ivar local: the same in the other account.
    :ivar answers: whether a request has several answers.
    :ivar delivery: whether messages flow from the streams' account to the other one, which may only subscribe to them.
    """

    subject: str
    local: str
    answers: bool = False
    delivery: bool = False


def account_of(role: str) -> str:
    """Return the account of a role's identities."""
    if role == BusRole.CONTROLLER:
        return STREAM_ACCOUNT
    return API_ACCOUNT if role == BusRole.API else CLIENT_ACCOUNT


def role_permissions(role: str, node: str | None = None) -> Permissions:
    """Return the permissions of an identity.

    :param role: one of :class:`BusRole`.
    :param node: the Kubernetes node of a role of a node; ``None`` for every other role.
    :raises ValueError: the role is unknown, or has a node although it is none of a node, or the other way round.
    """
    found = check_identity(role, node)
    subscribe: tuple[str, ...] = (f"{inbox_prefix(found, node)}.>",)
    match found:
        case BusRole.API:
            publish = (*_publish_stages(found), *_look(CLIENT_API, STREAM), *_read_bucket(CLIENT_API))
            subscribe += (stored_notice(BUCKET_KEYS),)
        case BusRole.CONTROLLER:
            publish = tuple(_controller())
            subscribe += (CONSUMER_REQUESTS, stored_notice(BUCKET_KEYS), f"{UNDELIVERED}.>")
        case BusRole.NETWORKS | BusRole.HANDLER:
            assert node is not None
            publish = tuple(_node_role(found, node))
        case BusRole.NODE:
            parts = [role_permissions(part, node) for part in (BusRole.NETWORKS, BusRole.HANDLER)]
            publish = tuple(subject for part in parts for subject in part.publish)
            subscribe = tuple(subject for part in parts for subject in part.subscribe)
        case BusRole.READER:
            publish = tuple(_reader())
        case BusRole.ADMINISTRATOR:
            # A replayed message is that of any role, and its dead letter is deleted.
            replay = (EVENTS, f"{CLIENT_API}.STREAM.MSG.DELETE.{DEAD_STREAM}")
            publish = (*replay, *_reader())
    return Permissions(tuple(dict.fromkeys(publish)), subscribe, answers=found is BusRole.CONTROLLER)


def check_identity(role: str, node: str | None) -> BusRole:
    """Return the role of an identity.

    :raises ValueError: as :func:`role_permissions`.
    """
    try:
        found = BusRole(role)
    except ValueError:
        known = ", ".join(BusRole)
        raise ValueError(f"role {role!r} has no identity on the bus; these have one: {known}") from None
    if found in NODE_ROLES and (not node or node == NO_NODE):
        raise ValueError(f"an identity of role {role} needs the name of a node")
    if found not in NODE_ROLES and node is not None:
        raise ValueError(f"an identity of role {role} is bound to no node, not to {node!r}")
    return found


def inbox_prefix(role: str, node: str | None = None) -> str:
    """Return the prefix of the inboxes of an identity, which nobody else may subscribe to.

    Both identities of people have one, because the command line cannot see which of them it has.

    :raises ValueError: as :func:`role_permissions`.
    """
    found = check_identity(role, node)
    if found in PEOPLE:
        return f"{INBOX_ROOT}.cli"
    return f"{INBOX_ROOT}.{found}" if node is None else f"{INBOX_ROOT}.{found}.{node_token(node)}"


def identity_name(role: str, node: str | None = None) -> str:
    """Return the name of an identity for users: ``controller``, or ``handler@node1``."""
    return str(role) if node is None else f"{role}@{node}"


def published_stages(role: str) -> tuple[Stage, ...]:
    """Return the stages that a role may publish, for whichever reason."""
    return tuple(row.stage for row in TABLE if role in row.sources)


def _publish_stages(role: BusRole) -> tuple[str, ...]:
    return tuple(stage_filter(stage) for stage in published_stages(role))


def _look(api: str, *streams: str) -> tuple[str, ...]:
    return tuple(f"{api}.STREAM.INFO.{stream}" for stream in streams)


def _receive(api: str, name: str) -> Iterable[str]:
    """Yield the requests that receive by one consumer of the events."""
    yield f"{api}.CONSUMER.MSG.NEXT.{STREAM}.{name}"
    yield f"$JS.ACK.{STREAM}.{name}.>"


def _read_bucket(api: str) -> Iterable[str]:
    yield from _look(api, BUCKET_STREAM)
    # The last message of a key, and all messages after one.
    yield f"{api}.DIRECT.GET.{BUCKET_STREAM}.{BUCKET_KEYS}"
    yield f"{api}.DIRECT.GET.{BUCKET_STREAM}"


def _controller() -> Iterable[str]:
    yield from _publish_stages(BusRole.CONTROLLER)
    yield f"{DEAD_ROOT}.>"
    for stream in STREAMS:
        yield from (f"{API}.STREAM.{verb}.{stream}" for verb in ("INFO", "CREATE", "UPDATE"))
    # All of its stream's: its own, and those of the nodes, whose names have no common token.
    yield f"{API}.CONSUMER.CREATE.{STREAM}.>"
    yield from (f"{API}.CONSUMER.{request}.{STREAM}.*" for request in ("INFO", "DELETE"))
    for name in (CONTROLLER_CONSUMER, PROJECTOR_CONSUMER):
        yield from _receive(API, name)
    yield from _read_bucket(API)
    yield BUCKET_KEYS
    yield f"{API}.STREAM.PURGE.{BUCKET_STREAM}"


def _node_role(role: BusRole, node: str) -> Iterable[str]:
    token = node_token(node)
    for stage in published_stages(role):
        yield f"{SUBJECT_ROOT}.{stage}.{token}.>"
    # Nothing but what its own consumer delivers.
    yield f"{DEAD_ROOT}.*.{token}.>"
    yield consumer_request(role, node)
    # No STREAM.INFO, which lists the subjects, and with them the VMs, of all nodes.
    yield f"{CLIENT_API}.CONSUMER.INFO.{STREAM}.{node_consumer(role, node)}"
    yield from _receive(CLIENT_API, node_consumer(role, node))


def _reader() -> Iterable[str]:
    yield from _look(CLIENT_API, *STREAMS)
    yield from (f"{CLIENT_API}.DIRECT.GET.{stream}" for stream in (STREAM, DEAD_STREAM))
    yield f"{CLIENT_API}.STREAM.MSG.GET.{DEAD_STREAM}"


def imports_of(account: str) -> tuple[Import, ...]:
    """Return what an account imports: the requests of its identities, and nothing that administers.

    No request has a body that names a subject: the server would use it in the account of the streams.

    :param account: one of :data:`IMPORTING_ACCOUNTS`.
    """
    if account == API_ACCOUNT:
        return (
            Import(EVENTS, EVENTS),
            *(_request(f"STREAM.INFO.{stream}") for stream in (STREAM, BUCKET_STREAM)),
            _request(f"DIRECT.GET.{BUCKET_STREAM}.{BUCKET_KEYS}"),
            _request(f"DIRECT.GET.{BUCKET_STREAM}", answers=True),
            # For nobody else: whoever shares an account with their subscriber can forge them.
            Import(stored_notice(BUCKET_KEYS), stored_notice(BUCKET_KEYS), delivery=True),
        )
    same = (EVENTS, f"{DEAD_ROOT}.>", f"$JS.ACK.{STREAM}.>", CONSUMER_REQUESTS)
    return (
        *(Import(subject, subject) for subject in same),
        *(_request(f"STREAM.INFO.{stream}") for stream in STREAMS),
        _request(f"CONSUMER.INFO.{STREAM}.*"),
        _request(f"STREAM.MSG.GET.{DEAD_STREAM}"),
        _request(f"STREAM.MSG.DELETE.{DEAD_STREAM}"),
        _request(f"CONSUMER.MSG.NEXT.{STREAM}.*", answers=True),
        *(_request(f"DIRECT.GET.{stream}", answers=True) for stream in (STREAM, DEAD_STREAM)),
    )


def _request(request: str, *, answers: bool = False) -> Import:
    return Import(f"{API}.{request}", f"{CLIENT_API}.{request}", answers=answers)
