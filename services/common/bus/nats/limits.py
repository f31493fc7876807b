"""What a NATS server refuses, as text for users: what is full or not permitted, and what to do.

It knows the server's error codes; it does not know what a caller does after an error.
Next: :mod:`services.common.bus.nats.streams`, which reserves the sizes.
"""

from nats.js.errors import APIError

from schemas.bus.permissions import identity_name
from services.common.bus.settings import MIB, BusSettings

_NO_ROOM = frozenset({10023, 10047})
"""Error codes of a stream that is not created, because its size cannot be reserved: in a cluster, and on one server."""
_NOT_STORED = 10077
"""Error code of a message that a stream does not store; the description has the cause."""
_TOO_MANY_BYTES = "maximum bytes exceeded"
_TOO_MANY_CONSUMERS = 10026


def describe_bus_error(error: BaseException, stream: str, settings: BusSettings) -> str:
    """Return the text of an error for logs and users.

    :param stream: the stream of the request; a bucket is the stream ``KV_<bucket>``.
    """
    if isinstance(error, APIError):
        if error.err_code in _NO_ROOM:
            return (
                f"the JetStream store has no room to reserve stream {stream}: all streams of hotnic reserve "
                f"{settings.reserved_bytes // MIB} MiB; enlarge the store of the NATS server (max_file_store), or the "
                f"account's share of it ({error.description})"
            )
        if error.err_code == _NOT_STORED and _TOO_MANY_BYTES in (error.description or ""):
            return f"stream {stream} is full; enlarge it: nats stream edit {stream} --max-bytes SIZE"
        if error.err_code == _TOO_MANY_CONSUMERS:
            return (
                f"stream {stream} has as many consumers as it may have: {settings.max_consumers}, or fewer if the NATS "
                f"account has a limit ({error.description})"
            )
    return str(error) or repr(error)


def describe_command_denial(subject: str) -> str:
    """Return the text of a missing permission of a command.

    :param subject: in lower case, as the client has it.
    """
    return (
        f"NATS denies the identity of this command to use {subject}; set NATS_NKEY or NATS_CREDS to the file of "
        "identity reader, or administrator to replay dead letters (hotnic nats keys makes them)"
    )


def describe_denial(role: str, node: str | None, operation: str, subject: str) -> str:
    """Return the text of a missing permission.

    :param role: the role of the process, and its node.
    :param operation: ``publish`` or ``subscribe``.
    :param subject: in lower case, as the client has it.
    """
    return (
        f"NATS denies identity {identity_name(role, node)} to {operation} to {subject}; check that its credentials "
        "are those of this role and node, and make the configuration of the server again: hotnic nats config"
    )
