"""Tokens as a ServiceAccount has them, and the requests of a NATS server with them."""

import base64
import json
import time
from typing import Any

from services.api.bus_auth.plan import parse_accounts
from services.common.bus.nkeys import KeyKind, SigningKey, make_seed

NAMESPACE, AUDIENCE = "hotnic", "hotnic-nats"
ACCOUNTS = parse_accounts(
    AUDIENCE,
    NAMESPACE,
    ("hotnic-api=api", "hotnic-controller=controller", "hotnic-networks=networks", "hotnic-handler=handler"),
)
Object = dict[str, Any]


def make_token(
    account: str = "hotnic-networks",
    *,
    namespace: str = NAMESPACE,
    audience: str = AUDIENCE,
    lifetime: float = 3600,
    **more: Any,
) -> str:
    """Return a token that looks like one of a ServiceAccount; :class:`Reviews` knows whether it is valid."""
    claims = {
        "aud": [audience],
        "exp": int(time.time() + lifetime),
        "sub": f"system:serviceaccount:{namespace}:{account}",
        **more,
    }
    parts = ({"alg": "RS256", "kid": "k"}, claims, f"signature of {account}")
    return ".".join(pack(json.dumps(part).encode()) for part in parts)


def claims_of(token: str) -> Object:
    """Return the claims of a token."""
    payload = token.split(".")[1]
    claims: Object = json.loads(base64.urlsafe_b64decode(payload + "=" * (-len(payload) % 4)))
    return claims


def pack(data: bytes) -> str:
    """Return data as a part of a token."""
    return base64.urlsafe_b64encode(data).decode().rstrip("=")


class RequestingServer:
    """A NATS server that asks a callout.

    :ivar issuer: the seed that it expects to sign its responses.
    :ivar key: its own key.
    :ivar user: the key that it has made for a connection.
    """

    def __init__(self, issuer: str | None = None) -> None:
        self.issuer = issuer or make_seed(KeyKind.ACCOUNT)
        self.key = SigningKey(make_seed(KeyKind.SERVER))
        self.user = SigningKey(make_seed(KeyKind.USER)).public

    def claims(self, token: str, *, host: str = "10.0.0.1", patience: int = 2) -> Object:
        """Return the claims of a request.

        :param patience: seconds until the server gives up.
        """
        now = int(time.time())
        return {
            "iss": self.key.public,
            "sub": SigningKey(self.issuer).public,
            "aud": "nats-authorization-request",
            "iat": now,
            "exp": now + patience,
            "nats": {
                "server_id": {"name": "n", "id": self.key.public},
                "user_nkey": self.user,
                "client_info": {"host": host, "kind": "Client"},
                "connect_opts": {"auth_token": token, "protocol": 1},
                "type": "authorization_request",
                "version": 2,
            },
        }

    def request(self, token: str, **options: Any) -> bytes:
        """Return a request."""
        return self.sign(self.claims(token, **options))

    def sign(self, claims: Object, *, key: SigningKey | None = None, alg: str = "ed25519-nkey") -> bytes:
        """Return claims as a signed request.

        :param key: another key than the server's.
        """
        head = f"{pack(json.dumps({'typ': 'JWT', 'alg': alg}).encode())}.{pack(json.dumps(claims).encode())}"
        return f"{head}.{pack((key or self.key).sign(head.encode()))}".encode()
