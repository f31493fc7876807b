"""The auth callout without NATS: whom it lets in, what it refuses, and that load, slowness and failures have limits."""

import asyncio
import time
from collections.abc import AsyncIterator, MutableMapping
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
import structlog
from structlog.testing import capture_logs

from schemas.bus.permissions import role_permissions
from services.api.bus_auth.callout import MAX_LOGGED, MAX_WAITING_OF_HOST, AuthCallout, IssuerKeys
from services.api.bus_auth.plan import NODE_NAME, DenialReason
from services.api.bus_auth.review import MAX_REVIEWS, REMEMBERED, TokenReviewer
from tests.support.bus.auth_callout import Reviews, put_pod, reviewing_kube
from tests.support.bus.auth_tokens import ACCOUNTS, NAMESPACE, Object, RequestingServer, claims_of, make_token
from tests.support.telemetry.spans import recording_telemetry


class Asked:
    """A callout, and the server that asks it.

    :ivar now: the reviewer's clock.
    """

    def __init__(self, callout: AuthCallout, server: RequestingServer, reviews: Reviews, metrics: Any) -> None:
        self.callout, self.server, self.reviews, self.metrics = callout, server, reviews, metrics
        self.now = 0.0

    async def ask(self, token: str, **options: Any) -> Object:
        """Return the claims of the user that a token gets, or ``error`` with the refusal."""
        response = await self.callout.answer(self.server.request(token, **options))
        assert response is not None
        content = claims_of(response.decode())["nats"]
        return content if "error" in content else claims_of(content["jwt"])

    async def reason(self, token: str, **options: Any) -> str:
        """Return the reason of a refusal."""
        return str((await self.ask(token, **options))["error"]).partition(":")[0]


@asynccontextmanager
async def asked(directory: Path) -> AsyncIterator[Asked]:
    telemetry, _ = recording_telemetry()
    server = RequestingServer()
    (directory / "issuer.nk").write_text(f"{server.issuer}\n")
    async with reviewing_kube(directory) as (kube, reviews):
        callout = AuthCallout(
            TokenReviewer(kube, ACCOUNTS, NAMESPACE, clock=lambda: found.now),
            ACCOUNTS,
            IssuerKeys(directory),
            log=structlog.get_logger(),
            meter=telemetry.meter,
        )
        found = Asked(callout, server, reviews, telemetry.metrics_text)
        yield found


@pytest.fixture
async def api(tmp_path: Path) -> AsyncIterator[Asked]:
    async with asked(tmp_path) as found:
        yield found


async def test_a_role_of_a_node_gets_its_node_and_a_role_of_the_cluster_none(api: Asked) -> None:
    token = api.reviews.accept(make_token("hotnic-handler", lifetime=600), node="node-a")
    user = await api.ask(token)
    expected = role_permissions("handler", "node-a")
    assert (user["name"], user["aud"], user["exp"]) == ("handler@node-a", "HOTNIC_CLIENTS", claims_of(token)["exp"])
    assert user["nats"]["pub"] == {"allow": list(expected.publish)}
    assert user["nats"]["sub"] == {"allow": list(expected.subscribe)}
    [spec] = api.reviews.received
    assert spec == {"token": token, "audiences": ["hotnic-nats"]}
    user = await api.ask(api.reviews.accept(make_token("hotnic-controller"), pod="controller-1", node="node-a"))
    assert (user["name"], user["aud"]) == ("controller", "HOTNIC")
    user = await api.ask(api.reviews.accept(make_token("hotnic-api"), pod="api-1", node="node-a"))
    assert (user["name"], user["aud"]) == ("api", "HOTNIC_API")


async def test_without_a_node_in_the_token_the_pod_is_read(api: Asked) -> None:
    put_pod(api.reviews, "networks-1", "node-b")
    token = api.reviews.accept(make_token(), node=None)
    assert NODE_NAME not in api.reviews.valid[token]["user"]["extra"]
    assert (await api.ask(token))["name"] == "networks@node-b"
    gone = api.reviews.accept(make_token(lifetime=700), pod="networks-2", node=None)
    assert await api.reason(gone) == DenialReason.POD_GONE


@pytest.mark.parametrize(
    ("token", "reason"),
    [
        ("", DenialReason.NO_TOKEN),
        ("password", DenialReason.MALFORMED_TOKEN),
        (make_token(lifetime=-5), DenialReason.TOKEN_EXPIRED),
        (make_token(audience="other"), DenialReason.WRONG_AUDIENCE),
        (make_token(namespace="other"), DenialReason.FOREIGN_ACCOUNT),
        (make_token("default"), DenialReason.FOREIGN_ACCOUNT),
    ],
    ids=["none", "password", "expired", "audience", "namespace", "account"],
)
async def test_a_token_that_no_role_has_costs_no_review(api: Asked, token: str, reason: DenialReason) -> None:
    assert await api.reason(token) == reason
    assert api.reviews.received == []


async def test_a_token_that_the_review_refuses_is_refused(api: Asked) -> None:
    assert await api.reason(make_token()) == DenialReason.NOT_AUTHENTICATED
    # A token of the same name in another cluster, or for the API server itself.
    assert await api.reason(api.reviews.accept(make_token(lifetime=1), audiences=())) == DenialReason.WRONG_AUDIENCE
    assert await api.reason(api.reviews.accept(make_token(lifetime=700), pod="")) == DenialReason.NOT_BOUND_TO_POD


async def test_what_no_server_has_signed_gets_no_response(api: Asked) -> None:
    token = api.reviews.accept(make_token())
    forged = api.server.sign(api.server.claims(token), key=RequestingServer().key)
    other_issuer = RequestingServer().request(token)
    for data in (forged, other_issuer, b"", b"x" * 100_000):
        assert await api.callout.answer(data) is None
    assert api.reviews.received == []
    assert counted(api)["MalformedRequest"] == 3
    assert counted(api)["UnknownIssuer"] == 1


async def test_two_issuers_are_known_while_one_replaces_the_other(api: Asked, tmp_path: Path) -> None:
    token = api.reviews.accept(make_token())
    following = RequestingServer()
    (tmp_path / "issuer-next.nk").write_text(following.issuer)
    (tmp_path / "issuer-broken.nk").write_text("not a seed")
    for server in (api.server, following):
        response = await api.callout.answer(server.request(token))
        assert response is not None
        assert claims_of(response.decode())["iss"] == server.claims(token)["sub"]


async def test_a_review_is_remembered_for_a_short_time(api: Asked) -> None:
    good, bad = api.reviews.accept(make_token()), make_token("hotnic-api")
    for _ in range(3):
        assert (await api.ask(good))["name"] == "networks@node1"
        assert await api.reason(bad) == DenialReason.NOT_AUTHENTICATED
    assert len(api.reviews.received) == 2
    # The pod is deleted: its token is not valid any more.
    del api.reviews.valid[good]
    api.now += REMEMBERED
    assert await api.reason(good) == DenialReason.NOT_AUTHENTICATED


@pytest.mark.parametrize("status", [403, 429, 500])
async def test_a_review_that_fails_is_refused_and_tried_again(api: Asked, status: int) -> None:
    token = api.reviews.accept(make_token())
    api.reviews.status = status
    assert await api.reason(token) == DenialReason.REVIEW_FAILED
    api.reviews.status = 201
    assert (await api.ask(token))["name"] == "networks@node1"


async def test_a_slow_review_is_refused_before_the_server_gives_up(api: Asked) -> None:
    token = api.reviews.accept(make_token())
    api.reviews.hold.clear()
    began = time.monotonic()
    assert await api.reason(token) in (DenialReason.REVIEW_TIMEOUT, DenialReason.REVIEW_FAILED)
    # The server of the request waits for 2 s.
    assert time.monotonic() - began >= 1.4
    api.reviews.hold.set()
    assert (await api.ask(token))["name"] == "networks@node1"


async def test_one_client_address_cannot_take_every_place(api: Asked) -> None:
    api.reviews.hold.clear()
    tokens = [api.reviews.accept(make_token(lifetime=1000 + n)) for n in range(MAX_WAITING_OF_HOST + 5)]
    flood = [asyncio.ensure_future(api.ask(token, host="10.6.6.6")) for token in tokens[:-1]]
    done, waiting = await asyncio.wait(flood, return_when=asyncio.FIRST_COMPLETED)
    while len(done) < 4:
        more, waiting = await asyncio.wait(waiting, return_when=asyncio.FIRST_COMPLETED)
        done |= more
    assert {str(task.result()["error"]).partition(":")[0] for task in done} == {DenialReason.OVERLOADED}
    other = asyncio.ensure_future(api.ask(tokens[-1], host="10.0.0.1"))
    await asyncio.sleep(0)
    assert len(api.reviews.received) <= MAX_REVIEWS
    api.reviews.hold.set()
    assert (await other)["name"] == "networks@node1"
    assert {(await task)["name"] for task in waiting} == {"networks@node1"}


async def test_a_token_of_one_client_address_is_reviewed_while_those_of_another_are_slow(api: Asked) -> None:
    api.reviews.hold.clear()
    tokens = [api.reviews.accept(make_token(lifetime=1000 + n)) for n in range(MAX_REVIEWS + 5)]
    flood = [asyncio.ensure_future(api.ask(token, host="10.6.6.6", patience=60)) for token in tokens[:-1]]
    other = asyncio.ensure_future(api.ask(tokens[-1], host="10.0.0.1", patience=60))
    async with asyncio.timeout(60):
        while tokens[-1] not in (spec["token"] for spec in api.reviews.received):
            await asyncio.sleep(0.01)
            assert not other.done(), other.result()
    api.reviews.hold.set()
    assert {(await task)["name"] for task in (*flood, other)} == {"networks@node1"}


async def test_refusals_are_logged_with_identity_and_reason_and_without_the_token(api: Asked) -> None:
    bad = make_token("hotnic-api")
    with capture_logs() as lines:
        await api.reason(bad, host="10.0.0.9")
    [line] = [line for line in lines if line["event"] == "bus identity refused"]
    assert (line["claimed"], line["reason"], line["client"]) == (
        "system:serviceaccount:hotnic:hotnic-api",
        "NotAuthenticated",
        "10.0.0.9",
    )
    assert not any(part in repr(lines) for part in bad.split("."))


async def test_a_flood_of_refusals_does_not_fill_the_log(api: Asked) -> None:
    logged: list[MutableMapping[str, Any]]
    with capture_logs() as logged:
        for _ in range(MAX_LOGGED + 50):
            assert await api.reason("") == DenialReason.NO_TOKEN
    assert len(logged) == MAX_LOGGED
    assert counted(api)["NoToken"] == MAX_LOGGED + 50


def counted(api: Asked) -> dict[str, int]:
    """Return the number of refusals by reason."""
    found = {}
    for line in api.metrics().decode().splitlines():
        if line.startswith("hotnic_bus_auth_answers_total{"):
            labels, _, value = line.rpartition(" ")
            found[labels.split('result="')[1].split('"')[0]] = int(float(value))
    return found
