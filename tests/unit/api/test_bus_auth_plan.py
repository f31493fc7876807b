"""Who a connection to NATS is, as tables: the claims of a token, its review, and the pod of a role of a node."""

from typing import Any

import msgspec
import pytest

from schemas.bus.permissions import BusRole
from schemas.kubernetes.objects import ObjectMeta, Pod, PodSpec
from services.api.bus_auth.plan import (
    NODE_NAME,
    POD_NAME,
    POD_UID,
    DenialReason,
    Denied,
    NatsIdentity,
    ReviewedToken,
    TokenHolder,
    check_claims,
    expiry,
    find_holder,
    identify,
    parse_accounts,
)
from services.api.bus_auth.tokens import TokenClaims
from tests.support.bus.auth_tokens import ACCOUNTS, AUDIENCE

NOW = 1_000_000
USER = "system:serviceaccount:hotnic:hotnic-networks"
CLAIMS = TokenClaims(USER, (AUDIENCE,), NOW + 600)
EXTRA = {POD_NAME: ("networks-1",), POD_UID: ("u1",), NODE_NAME: ("node1",)}
REVIEW = ReviewedToken(True, USER, (AUDIENCE,), EXTRA)
HOLDER = TokenHolder(BusRole.NETWORKS, "networks-1", "u1", "node1")
POD = Pod(metadata=ObjectMeta(name="networks-1", uid="u1"), spec=PodSpec(node_name="node2"))


def changed(struct: Any, **fields: Any) -> Any:
    return msgspec.structs.replace(struct, **fields)


def reason_of(call: Any, *arguments: Any) -> DenialReason:
    with pytest.raises(Denied) as denied:
        call(*arguments)
    assert str(denied.value).isprintable()
    return denied.value.reason


def test_a_token_of_a_role_passes_the_check_of_its_claims() -> None:
    check_claims(CLAIMS, ACCOUNTS, NOW)
    check_claims(changed(CLAIMS, audiences=("other", AUDIENCE)), ACCOUNTS, NOW)


@pytest.mark.parametrize(
    ("fields", "reason"),
    [
        ({"expires": NOW}, DenialReason.TOKEN_EXPIRED),
        ({"expires": -(10**30)}, DenialReason.TOKEN_EXPIRED),
        ({"audiences": ()}, DenialReason.WRONG_AUDIENCE),
        ({"audiences": ("https://kubernetes.default.svc",)}, DenialReason.WRONG_AUDIENCE),
        ({"audiences": (f"{AUDIENCE}\n",)}, DenialReason.WRONG_AUDIENCE),
        ({"subject": "system:serviceaccount:other:hotnic-networks"}, DenialReason.FOREIGN_ACCOUNT),
        ({"subject": "system:serviceaccount:hotnic:default"}, DenialReason.FOREIGN_ACCOUNT),
        ({"subject": "system:serviceaccount:hotnic:hotnic-networks:x"}, DenialReason.FOREIGN_ACCOUNT),
        ({"subject": "hotnic-networks"}, DenialReason.FOREIGN_ACCOUNT),
        ({"subject": "system:admin\x1b[2J"}, DenialReason.FOREIGN_ACCOUNT),
    ],
)
def test_claims_that_no_role_has_are_refused_without_a_review(fields: dict[str, Any], reason: DenialReason) -> None:
    assert reason_of(check_claims, changed(CLAIMS, **fields), ACCOUNTS, NOW) is reason


def test_a_reviewed_token_is_that_of_its_pod() -> None:
    assert find_holder(REVIEW, ACCOUNTS) == HOLDER
    assert not HOLDER.needs_pod


def without(*keys: str) -> dict[str, tuple[str, ...]]:
    return {key: value for key, value in EXTRA.items() if key not in keys}


@pytest.mark.parametrize(
    ("fields", "reason"),
    [
        ({"authenticated": False, "error": "expired"}, DenialReason.NOT_AUTHENTICATED),
        ({"authenticated": False}, DenialReason.NOT_AUTHENTICATED),
        ({"audiences": ()}, DenialReason.WRONG_AUDIENCE),
        ({"audiences": ("https://kubernetes.default.svc",)}, DenialReason.WRONG_AUDIENCE),
        # The review decides, not what the token claims.
        ({"user": "system:serviceaccount:other:hotnic-networks"}, DenialReason.FOREIGN_ACCOUNT),
        ({"user": "system:admin"}, DenialReason.FOREIGN_ACCOUNT),
        ({"user": ""}, DenialReason.FOREIGN_ACCOUNT),
        ({"extra": {}}, DenialReason.NOT_BOUND_TO_POD),
        ({"extra": without(POD_NAME)}, DenialReason.NOT_BOUND_TO_POD),
        ({"extra": without(POD_UID)}, DenialReason.NOT_BOUND_TO_POD),
        ({"extra": {**EXTRA, POD_UID: ()}}, DenialReason.NOT_BOUND_TO_POD),
        ({"extra": {**EXTRA, POD_NAME: ("a", "b")}}, DenialReason.NOT_BOUND_TO_POD),
        # Bound to a node alone.
        ({"extra": without(POD_NAME, POD_UID)}, DenialReason.NOT_BOUND_TO_POD),
    ],
)
def test_a_review_that_is_not_that_of_a_roles_pod_is_refused(fields: dict[str, Any], reason: DenialReason) -> None:
    assert reason_of(find_holder, changed(REVIEW, **fields), ACCOUNTS) is reason


def test_the_node_is_that_of_the_token() -> None:
    assert identify(HOLDER, None) == NatsIdentity(BusRole.NETWORKS, "node1", "networks-1")


def test_without_a_node_in_the_token_it_is_that_of_the_pod() -> None:
    holder = find_holder(changed(REVIEW, extra=without(NODE_NAME)), ACCOUNTS)
    assert holder.needs_pod
    assert identify(holder, POD) == NatsIdentity(BusRole.NETWORKS, "node2", "networks-1")


@pytest.mark.parametrize(
    ("pod", "reason"),
    [
        (None, DenialReason.POD_GONE),
        (changed(POD, metadata=ObjectMeta(name="networks-1", uid="u2")), DenialReason.POD_GONE),
        (changed(POD, spec=PodSpec()), DenialReason.UNKNOWN_NODE),
    ],
)
def test_a_role_of_a_node_without_a_node_is_refused(pod: Pod | None, reason: DenialReason) -> None:
    assert reason_of(identify, changed(HOLDER, node=None), pod) is reason


def test_a_role_of_the_cluster_has_no_node() -> None:
    holder = changed(HOLDER, role=BusRole.CONTROLLER)
    assert identify(holder, None) == NatsIdentity(BusRole.CONTROLLER, None, "networks-1")
    assert not changed(holder, node=None).needs_pod


def test_a_connection_ends_with_its_token_and_within_an_hour() -> None:
    assert expiry(CLAIMS, NOW) == NOW + 600
    assert expiry(changed(CLAIMS, expires=10**30), NOW) == NOW + 3600


@pytest.mark.parametrize("entries", [(), ("a",), ("=api",), ("a=",), ("a=root",), ("a=reader",), ("a=administrator",)])
def test_a_setting_that_names_no_account_and_role_is_refused(entries: tuple[str, ...]) -> None:
    with pytest.raises(ValueError, match=r"names no ServiceAccount|is not SERVICEACCOUNT=ROLE"):
        parse_accounts(AUDIENCE, "hotnic", entries)
