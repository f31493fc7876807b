"""Decide who a connection to NATS is: token claims, a token review and a pod → an identity, or a denial. No I/O.

An identity needs a token for NATS' audience, of a ServiceAccount that the release gives a role, bound to a pod. A role
of a node gets the node of that pod. Next: :mod:`schemas.bus.permissions`, what an identity may do.
"""

from collections.abc import Mapping
from enum import StrEnum
from typing import Final

import msgspec

from schemas.bus.permissions import NODE_ROLES, PEOPLE, BusRole, identity_name
from schemas.inputs import printable
from schemas.kubernetes.objects import Pod
from services.api.bus_auth.tokens import TokenClaims

POD_NAME: Final = "authentication.kubernetes.io/pod-name"
POD_UID: Final = "authentication.kubernetes.io/pod-uid"
NODE_NAME: Final = "authentication.kubernetes.io/node-name"
MAX_SESSION: Final = 3600
"""Seconds after which a connection ends at the latest, whatever the token says."""


class DenialReason(StrEnum):
    """Why a connection is refused; a label of the metric."""

    MALFORMED_REQUEST = "MalformedRequest"
    """Not a request that a NATS server has signed. There is no response."""
    UNKNOWN_ISSUER = "UnknownIssuer"
    """The server expects the signature of a key that the api does not have. There is no response."""
    NO_TOKEN = "NoToken"
    MALFORMED_TOKEN = "MalformedToken"
    WRONG_AUDIENCE = "WrongAudience"
    TOKEN_EXPIRED = "TokenExpired"
    FOREIGN_ACCOUNT = "ForeignAccount"
    """The ServiceAccount is of another namespace, or the release gives it no role."""
    NOT_AUTHENTICATED = "NotAuthenticated"
    NOT_BOUND_TO_POD = "NotBoundToPod"
    POD_GONE = "PodGone"
    UNKNOWN_NODE = "UnknownNode"
    OVERLOADED = "Overloaded"
    REVIEW_FAILED = "ReviewFailed"
    REVIEW_TIMEOUT = "ReviewTimeout"
    INTERNAL_ERROR = "InternalError"


class Denied(Exception):
    """A refused connection.

    :ivar reason: for the metric and the log.
    """

    def __init__(self, reason: DenialReason, text: str) -> None:
        super().__init__(text)
        self.reason = reason


class BusAccounts(msgspec.Struct, frozen=True):
    """The ServiceAccounts that have an identity on the bus.

    :ivar audience: the audience of their tokens.
    :ivar roles: the role by the user name, ``system:serviceaccount:NAMESPACE:NAME``.
    """

    audience: str
    roles: Mapping[str, BusRole]


class ReviewedToken(msgspec.Struct, frozen=True):
    """What the API server says of a token.

    :ivar authenticated: whether it is valid for one of ``audiences`` at least.
    :ivar user: the user's name.
    :ivar audiences: those of the review for which the token is valid; empty from an authenticator that knows none.
    :ivar extra: further fields of the user.
    :ivar error: why it is not valid.
    """

    authenticated: bool
    user: str
    audiences: tuple[str, ...]
    extra: Mapping[str, tuple[str, ...]]
    error: str = ""


class TokenHolder(msgspec.Struct, frozen=True):
    """The pod that holds a token.

    :ivar node: its node, if the token says so.
    """

    role: BusRole
    pod: str
    pod_uid: str
    node: str | None

    @property
    def needs_pod(self) -> bool:
        """Whether the node has to be read from the pod: before Kubernetes 1.30, or with its feature gate off."""
        return self.role in NODE_ROLES and self.node is None


class NatsIdentity(msgspec.Struct, frozen=True):
    """Who a connection is.

    :ivar node: the node of a role of a node; else ``None``.
    """

    role: BusRole
    node: str | None
    pod: str

    def __str__(self) -> str:
        return identity_name(self.role, self.node)


def name_account(namespace: str, name: str) -> str:
    """Return the user name of a ServiceAccount."""
    return f"system:serviceaccount:{namespace}:{name}"


def parse_accounts(audience: str, namespace: str, entries: tuple[str, ...]) -> BusAccounts:
    """Return the accounts of the setting: entries ``NAME=ROLE`` in one namespace.

    :raises ValueError: an entry has another form, or names no role of hotnic.
    """
    roles = {}
    for entry in entries:
        name, sign, role = entry.partition("=")
        if not name or not sign or role not in _ROLES:
            raise ValueError(f"{entry!r} is not SERVICEACCOUNT=ROLE with a role of {', '.join(_ROLES)}")
        roles[name_account(namespace, name)] = BusRole(role)
    if not roles:
        raise ValueError("names no ServiceAccount")
    return BusAccounts(audience, roles)


_ROLES = tuple(role for role in BusRole if role not in PEOPLE)
"""People have no ServiceAccount of the release."""


def check_claims(claims: TokenClaims, accounts: BusAccounts, now: int) -> None:
    """Refuse a token that its own claims rule out, without a request to the API server.

    :raises Denied: it cannot be of a role.
    """
    if claims.expires <= now:
        raise Denied(DenialReason.TOKEN_EXPIRED, f"the token has expired {now - claims.expires} s ago")
    if accounts.audience not in claims.audiences:
        text = f"the token is for {', '.join(claims.audiences) or 'nobody'}, not for {accounts.audience}"
        raise Denied(DenialReason.WRONG_AUDIENCE, printable(text))
    _role_of(claims.subject, accounts)


def find_holder(review: ReviewedToken, accounts: BusAccounts) -> TokenHolder:
    """Return the pod that holds a token.

    :raises Denied: the API server does not authenticate it, or it is not one of a role's pod.
    """
    if not review.authenticated:
        text = printable(review.error) or "the API server does not know the token"
        raise Denied(DenialReason.NOT_AUTHENTICATED, text)
    # An authenticator that knows no audiences accepts tokens for any of them, and returns none.
    if accounts.audience not in review.audiences:
        raise Denied(DenialReason.WRONG_AUDIENCE, f"the API server says of no token that it is for {accounts.audience}")
    role = _role_of(review.user, accounts)
    pod, uid = _single(review, POD_NAME), _single(review, POD_UID)
    if pod is None or uid is None:
        raise Denied(DenialReason.NOT_BOUND_TO_POD, f"the token of {review.user} is not bound to a pod")
    return TokenHolder(role, pod, uid, _single(review, NODE_NAME))


def identify(holder: TokenHolder, pod: Pod | None) -> NatsIdentity:
    """Return the identity of a token's holder.

    :param pod: the pod with the holder's name, if :attr:`TokenHolder.needs_pod`.
    :raises Denied: its node is unknown.
    """
    if holder.role not in NODE_ROLES:
        return NatsIdentity(holder.role, None, holder.pod)
    node = holder.node
    if node is None:
        if pod is None or pod.metadata.uid != holder.pod_uid:
            raise Denied(DenialReason.POD_GONE, f"the pod {holder.pod} of the token does not exist any more")
        node = pod.spec.node_name
    if not node:
        raise Denied(DenialReason.UNKNOWN_NODE, f"neither the token nor the pod {holder.pod} names its node")
    return NatsIdentity(holder.role, node, holder.pod)


def expiry(claims: TokenClaims, now: int) -> int:
    """Return when the connection ends: with its token, and never later than :data:`MAX_SESSION`."""
    return min(claims.expires, now + MAX_SESSION)


def _role_of(user: str, accounts: BusAccounts) -> BusRole:
    role = accounts.roles.get(user)
    if role is None:
        raise Denied(DenialReason.FOREIGN_ACCOUNT, printable(f"{user} has no role on the bus"))
    return role


def _single(review: ReviewedToken, key: str) -> str | None:
    values = review.extra.get(key, ())
    return values[0] if len(values) == 1 and values[0] else None
