"""The tokens of the auth callout: NATS' requests and responses, and the claims of a ServiceAccount token.

NATS' tokens are JWTs with the algorithm ``ed25519-nkey`` (nats-io/jwt, version 2). This module decodes, verifies and
signs; what a token means is decided in :mod:`services.api.bus_auth.plan`.
"""

import base64
import hashlib
from collections.abc import Mapping
from typing import Any

import msgspec

from schemas.bus.permissions import ANSWER_SECONDS, CONNECTION_TYPES, MAX_PAYLOAD, MAX_SUBSCRIPTIONS, Permissions
from schemas.inputs import Edge, InputDecoder, RejectReason, reject
from services.common.bus.nkeys import KeyKind, SigningKey, decode_public, is_signed_by

MAX_REQUEST = 64 * 1024
"""Bytes of a request. NATS limits what a client sends to 4 KiB, and adds the client's certificates."""
MAX_TOKEN = 4096
"""Bytes of a ServiceAccount token: NATS' limit of the line that has it. Kubernetes' have about 1 KiB."""
REQUEST_AUDIENCE, REQUEST_TYPE = "nats-authorization-request", "authorization_request"

_HEADER = {"typ": "JWT", "alg": "ed25519-nkey"}


class _Header(msgspec.Struct, frozen=True):
    typ: str
    alg: str


class _Server(msgspec.Struct, frozen=True):
    id: str


class _Client(msgspec.Struct, frozen=True):
    host: str = ""


class _Options(msgspec.Struct, frozen=True):
    auth_token: str = ""


class _Request(msgspec.Struct, frozen=True):
    server_id: _Server
    user_nkey: str
    type: str
    client_info: _Client = _Client()
    connect_opts: _Options = _Options()


class _RequestClaims(msgspec.Struct, frozen=True):
    iss: str
    sub: str
    aud: str
    iat: int
    exp: int
    nats: _Request


class _TokenClaims(msgspec.Struct, frozen=True):
    sub: str
    exp: int
    aud: list[str]


class CalloutRequest(msgspec.Struct, frozen=True):
    """A verified request of a server.

    :ivar issuer: public key by which the server expects the response to be signed.
    :ivar server: public key of the server.
    :ivar user: public key that the server has made for the connection; the response must name it.
    :ivar patience: seconds after which the server refuses the connection by itself.
    :ivar host: address of the client.
    :ivar token: what the client has presented; empty for nothing.
    """

    issuer: str
    server: str
    user: str
    patience: int
    host: str
    token: str


class TokenClaims(msgspec.Struct, frozen=True):
    """What a ServiceAccount token claims. Nothing is verified: the API server does that.

    :ivar subject: the name of the user.
    :ivar audiences: for whom the token is.
    :ivar expires: seconds since the epoch.
    """

    subject: str
    audiences: tuple[str, ...]
    expires: int


_header = InputDecoder(Edge.BUS, _Header)
_request = InputDecoder(Edge.BUS, _RequestClaims)
_token = InputDecoder(Edge.BUS, _TokenClaims)


def decode_request(data: bytes) -> CalloutRequest:
    """Decode and verify a request.

    A server makes its key when it starts, so no key is known before. NATS lets nobody but itself publish requests; the
    signature shows that this one is whole, and that the server which it names has made it.

    :raises RejectedInput: the data is no request that a server has signed.
    """
    if len(data) > MAX_REQUEST:
        raise reject(Edge.BUS, RejectReason.TOO_LARGE, f"{len(data)} bytes; the limit is {MAX_REQUEST}")
    header, payload, signature = _split(data)
    if _header.decode(_unpack(header)).alg != _HEADER["alg"]:
        raise reject(Edge.BUS, RejectReason.INVALID, f"not signed by {_HEADER['alg']}")
    found = _request.decode(_unpack(payload))
    request = found.nats
    try:
        server = decode_public(found.iss, KeyKind.SERVER)
        decode_public(request.user_nkey, KeyKind.USER)
        decode_public(found.sub, KeyKind.ACCOUNT)
    except ValueError as error:
        raise reject(Edge.BUS, RejectReason.INVALID, str(error)) from error
    if found.aud != REQUEST_AUDIENCE or request.type != REQUEST_TYPE or request.server_id.id != found.iss:
        raise reject(Edge.BUS, RejectReason.INVALID, "not an authorization request of the server that signed it")
    if not is_signed_by(server, header + b"." + payload, _unpack(signature)):
        raise reject(Edge.BUS, RejectReason.INVALID, "the signature is not the server's")
    return CalloutRequest(
        found.sub,
        found.iss,
        request.user_nkey,
        max(0, found.exp - found.iat),
        request.client_info.host,
        request.connect_opts.auth_token,
    )


def read_token(token: str) -> TokenClaims:
    """Return what a ServiceAccount token claims, unverified.

    :raises RejectedInput: it is no such token.
    """
    if len(token) > MAX_TOKEN:
        raise reject(Edge.BUS, RejectReason.TOO_LARGE, f"a token of {len(token)} characters; the limit is {MAX_TOKEN}")
    _, payload, _ = _split(token.encode(errors="replace"))
    found = _token.decode(_unpack(payload))
    return TokenClaims(found.sub, tuple(found.aud), found.exp)


def grant(
    request: CalloutRequest,
    key: SigningKey,
    *,
    name: str,
    account: str,
    permissions: Permissions,
    expires: int,
    now: int,
) -> bytes:
    """Return the response that lets a connection in.

    :param name: name of the user, for the server's log and monitoring.
    :param account: NATS account of the connection.
    :param expires: when the server ends the connection, in seconds since the epoch.
    """
    answers = {"resp": {"max": 1, "ttl": ANSWER_SECONDS * 1_000_000_000}} if permissions.answers else {}
    user = {
        "sub": request.user,
        "aud": account,
        "name": name,
        "exp": expires,
        "nats": {
            "type": "user",
            "version": 2,
            "pub": {"allow": list(permissions.publish)},
            "sub": {"allow": list(permissions.subscribe)},
            **answers,
            "allowed_connection_types": list(CONNECTION_TYPES),
            "subs": MAX_SUBSCRIPTIONS,
            "payload": MAX_PAYLOAD,
            # No limit but the server's; 0 would forbid all.
            "data": -1,
        },
    }
    return _respond(request, key, {"jwt": _sign(user, key, now)}, now)


def refuse(request: CalloutRequest, key: SigningKey, *, why: str, now: int) -> bytes:
    """Return the response that refuses a connection; the text is for the server's log, clients do not get it."""
    return _respond(request, key, {"error": why}, now)


def _respond(request: CalloutRequest, key: SigningKey, content: Mapping[str, str], now: int) -> bytes:
    nats = {**content, "type": "authorization_response", "version": 2}
    return _sign({"sub": request.user, "aud": request.server, "nats": nats}, key, now).encode()


def _sign(claims: Mapping[str, Any], key: SigningKey, now: int) -> str:
    whole = {**claims, "iss": key.public, "iat": now}
    whole["jti"] = base64.b32encode(hashlib.sha256(msgspec.json.encode(whole)).digest()).decode().rstrip("=")
    signed = ".".join(_pack(msgspec.json.encode(part)) for part in (_HEADER, whole))
    return f"{signed}.{_pack(key.sign(signed.encode()))}"


def _split(data: bytes) -> tuple[bytes, bytes, bytes]:
    parts = data.split(b".", 3)
    if len(parts) != 3:
        raise reject(Edge.BUS, RejectReason.MALFORMED, "not a JWT")
    return parts[0], parts[1], parts[2]


def _pack(data: bytes) -> str:
    return base64.urlsafe_b64encode(data).decode().rstrip("=")


def _unpack(text: bytes) -> bytes:
    try:
        return base64.b64decode(text + b"=" * (-len(text) % 4), altchars=b"-_", validate=True)
    except ValueError as error:
        raise reject(Edge.BUS, RejectReason.MALFORMED, "not base64 as in a JWT") from error
