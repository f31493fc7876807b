"""The tokens of the auth callout: which requests are a server's, and what the responses say."""

import base64
import time
from collections.abc import Callable
from typing import Any

import pytest

from schemas.bus.permissions import Permissions
from schemas.inputs import RejectedInput
from services.api.bus_auth.tokens import MAX_REQUEST, MAX_TOKEN, decode_request, grant, read_token, refuse
from services.common.bus.nkeys import KeyKind, SigningKey, decode_public, is_signed_by, make_seed
from tests.support.bus.auth_tokens import AUDIENCE, Object, RequestingServer, claims_of, make_token

SERVER = RequestingServer()
OTHER = SigningKey(make_seed(KeyKind.SERVER))


def test_a_request_of_a_server_is_read() -> None:
    found = decode_request(SERVER.request("the-token", host="10.1.2.3"))
    assert (found.server, found.user, found.host, found.token) == (
        SERVER.key.public,
        SERVER.user,
        "10.1.2.3",
        "the-token",
    )
    assert (found.issuer, found.patience) == (SigningKey(SERVER.issuer).public, 2)


def change(*path: str, to: Any) -> Callable[[Object], None]:
    def apply(claims: Object) -> None:
        for name in path[:-1]:
            claims = claims[name]
        claims[path[-1]] = to

    return apply


@pytest.mark.parametrize(
    "spoil",
    [
        change("iss", to=OTHER.public),
        change("iss", to=SigningKey(make_seed(KeyKind.USER)).public),
        change("iss", to="N" * 56),
        change("sub", to="nobody"),
        change("aud", to="another"),
        change("exp", to="soon"),
        change("nats", "server_id", "id", to=OTHER.public),
        change("nats", "user_nkey", to=OTHER.public),
        change("nats", "user_nkey", to=""),
        change("nats", "type", to="user"),
        change("nats", "connect_opts", to=[]),
        change("nats", to={}),
    ],
    ids=range(12),
)
def test_a_request_with_other_claims_is_refused(spoil: Callable[[Object], None]) -> None:
    claims = SERVER.claims("t")
    spoil(claims)
    with pytest.raises(RejectedInput):
        decode_request(SERVER.sign(claims))


def test_a_request_that_its_server_has_not_signed_is_refused() -> None:
    whole = SERVER.request("t")
    assert decode_request(whole)
    forged = SERVER.sign(SERVER.claims("t"), key=OTHER)
    head, _, signature = whole.rpartition(b".")
    other_claims = SERVER.request("another").rpartition(b".")[0]
    for data in (forged, other_claims + b"." + signature, head + b".", head, b"", b"..", whole + b".x", b"\xff" * 9):
        with pytest.raises(RejectedInput):
            decode_request(data)
    with pytest.raises(RejectedInput, match="not signed by"):
        decode_request(SERVER.sign(SERVER.claims("t"), alg="none"))


def test_huge_requests_and_tokens_are_refused() -> None:
    with pytest.raises(RejectedInput, match=f"limit is {MAX_REQUEST}"):
        decode_request(SERVER.request("t" * MAX_REQUEST))
    with pytest.raises(RejectedInput, match=f"limit is {MAX_TOKEN}"):
        read_token(make_token() + "x" * MAX_TOKEN)


def test_the_claims_of_a_service_account_token_are_read() -> None:
    found = read_token(make_token("hotnic-api", lifetime=60))
    assert (found.subject, found.audiences) == ("system:serviceaccount:hotnic:hotnic-api", (AUDIENCE,))
    assert 0 <= found.expires - time.time() + 1 <= 61


@pytest.mark.parametrize("token", ["", "password", "a.b", "a.b.c.d", "é.é.é", f"a.{'[' * 900}.c", "a.e30.c"])
def test_what_is_no_service_account_token_is_refused(token: str) -> None:
    with pytest.raises(RejectedInput):
        read_token(token)


def signed_claims(token: str, issuer: SigningKey) -> Object:
    head, _, signature = token.encode().rpartition(b".")
    raw = base64.urlsafe_b64decode(signature + b"=" * (-len(signature) % 4))
    assert is_signed_by(decode_public(issuer.public, KeyKind.ACCOUNT), head, raw)
    claims = claims_of(token)
    assert claims["iss"] == issuer.public
    return claims


@pytest.mark.parametrize("answers", [False, True])
def test_a_response_lets_the_connection_of_the_request_in(answers: bool) -> None:
    issuer = SigningKey(SERVER.issuer)
    permissions = Permissions(("a", "b.>"), ("c",), answers)
    response = grant(
        decode_request(SERVER.request("t")),
        issuer,
        name="handler@node1",
        account="HOTNIC",
        permissions=permissions,
        expires=50,
        now=20,
    )
    claims = signed_claims(response.decode(), issuer)
    assert (claims["sub"], claims["aud"], "error" in claims["nats"]) == (SERVER.user, SERVER.key.public, False)
    user = signed_claims(claims["nats"]["jwt"], issuer)
    assert (user["sub"], user["aud"], user["name"], user["iat"], user["exp"]) == (
        SERVER.user,
        "HOTNIC",
        "handler@node1",
        20,
        50,
    )
    assert (user["nats"]["pub"], user["nats"]["sub"]) == ({"allow": ["a", "b.>"]}, {"allow": ["c"]})
    assert user["nats"].get("resp") == ({"max": 1, "ttl": 10_000_000_000} if answers else None)


def test_a_refusal_names_the_reason_and_has_no_user() -> None:
    issuer = SigningKey(SERVER.issuer)
    response = refuse(decode_request(SERVER.request("t")), issuer, why="NoToken: none", now=20)
    claims = signed_claims(response.decode(), issuer)
    assert claims["nats"] == {"error": "NoToken: none", "type": "authorization_response", "version": 2}


def test_keys_of_another_kind_or_with_another_checksum_are_refused() -> None:
    account = SigningKey(make_seed(KeyKind.ACCOUNT))
    assert len(decode_public(account.public, KeyKind.ACCOUNT)) == 32
    last = "A" if account.public[-1] != "A" else "B"
    for text in ("", "A", account.public[:-1], account.public[:-1] + last, account.public + "A" * 8, "é" * 56):
        with pytest.raises(ValueError, match="not a public"):
            decode_public(text, KeyKind.ACCOUNT)
    with pytest.raises(ValueError, match="not a public user key"):
        decode_public(account.public, KeyKind.USER)


def test_what_is_no_seed_is_refused_without_quoting_it() -> None:
    seed = make_seed(KeyKind.USER)
    for text in ("", "x", seed[:-1], seed.lower(), f"{seed}\x00", "é"):
        with pytest.raises(ValueError, match=r"^not a seed of NATS$"):
            SigningKey(text)
