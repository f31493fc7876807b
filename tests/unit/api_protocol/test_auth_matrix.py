"""Who gets through: one table of callers and one of authorizations, against the real server over TLS.

A caller without a certificate of the front-proxy CA is refused by the server, a certificate of another CA in the
handshake already. What is refused costs no request to Kubernetes.
"""

import asyncio
import contextlib
import ssl
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path

import aiohttp
import pytest
from aiohttp import web
from multidict import CIMultiDict

from services.api import front_proxy
from services.common.http.tls import ServerTls
from tests.support.kube.certs import Authority, Pair
from tests.support.kube.node_kube import NADS, Object, Refused
from tests.support.kube.served_api import HOTNIC, ServedApi, serve_api
from tests.support.observed import objects

VMS, VMIS = "virtualmachines", "virtualmachineinstances"
BASE = f"/apis/{HOTNIC}/namespaces/default"
PLUG = {"networkAttachmentDefinitionName": "net1", "name": "iface1"}
OPERATIONS = (
    ("PUT", f"{BASE}/{VMIS}/vm1/addinterface"),
    ("PUT", f"{BASE}/{VMIS}/vm1/removeinterface"),
    ("PUT", f"{BASE}/{VMS}/vm1/addinterface"),
    ("PUT", f"/apis/subresources.kubevirt.io/v1/namespaces/default/{VMS}/vm1/removeinterface"),
    ("GET", f"{BASE}/{VMIS}/vm1/interfaces"),
    ("GET", f"{BASE}/{VMIS}/vm1/interfaces?watch=true"),
    ("GET", f"{BASE}/hotplugstatuses"),
)
USER, GROUP = ("X-Remote-User", "jane"), ("X-Remote-Group", "system:authenticated")
ADMIN = (("X-Remote-User", "admin"), ("X-Remote-Group", "system:masters"), ("X-Remote-Uid", "0"))
PROXY_NAME = "front-proxy-client"
HANDSHAKE = "handshake"


@dataclass
class Certificates:
    """The CAs of the test: the cluster's front-proxy CA, and others.

    :ivar front: signs the aggregation layer's certificate.
    :ivar other: another CA, such as the one of the users' certificates.
    """

    front: Authority
    other: Authority
    server: Authority


@dataclass(frozen=True)
class Caller:
    """A row: who calls, and what they get.

    :ivar certificate: makes the certificate; ``None`` for none.
    :ivar expected: the text of the 401, or :data:`HANDSHAKE`.
    """

    name: str
    certificate: Callable[[Certificates], Pair] | None
    headers: tuple[tuple[str, str], ...]
    expected: str


def proxy(certificates: Certificates) -> Pair:
    return certificates.front.client(PROXY_NAME)


NO_CERTIFICATE, NOT_THE_PROXY = "no verified client certificate", "is not the aggregation layer's"
NO_USER, USERS = "the aggregation layer named no user or no group", "the aggregation layer named several users"
CALLERS = (
    Caller("no certificate", None, (USER, GROUP), NO_CERTIFICATE),
    Caller("nothing at all", None, (), NO_CERTIFICATE),
    Caller("spoofed headers", None, ADMIN, NO_CERTIFICATE),
    Caller("spoofed headers and a token", None, (*ADMIN, ("Authorization", "Bearer x")), NO_CERTIFICATE),
    Caller("wrong CA", lambda of: of.other.client("jane"), (USER, GROUP), HANDSHAKE),
    Caller("right name by another CA", lambda of: of.other.client(PROXY_NAME), (USER, GROUP), HANDSHAKE),
    Caller("expired", lambda of: of.front.client(PROXY_NAME, end=-timedelta(minutes=1)), (USER, GROUP), HANDSHAKE),
    Caller("a server's certificate", lambda of: of.front.server(PROXY_NAME), (USER, GROUP), HANDSHAKE),
    Caller("wrong name", lambda of: of.front.client("jane"), (USER, GROUP), NOT_THE_PROXY),
    Caller("name with another case", lambda of: of.front.client("Front-Proxy-Client"), (USER, GROUP), NOT_THE_PROXY),
    Caller("name with a suffix", lambda of: of.front.client(f"{PROXY_NAME}.x", file="x"), (USER, GROUP), NOT_THE_PROXY),
    Caller("wrong name, spoofed headers", lambda of: of.front.client("jane"), ADMIN, NOT_THE_PROXY),
    Caller("no headers", proxy, (), NO_USER),
    Caller("no user header", proxy, (GROUP,), NO_USER),
    Caller("empty user header", proxy, (("X-Remote-User", ""), GROUP), NO_USER),
    Caller("no group header", proxy, (USER,), NO_USER),
    Caller("empty group header", proxy, (USER, ("X-Remote-Group", "")), NO_USER),
    Caller("headers of another proxy", proxy, (("X-Forwarded-User", "jane"), ("X-Forwarded-Group", "g")), NO_USER),
    Caller("impersonation", proxy, (("Impersonate-User", "admin"), ("Impersonate-Group", "system:masters")), NO_USER),
    Caller("two users", proxy, (USER, ("X-Remote-User", "admin"), GROUP), USERS),
    Caller("two users, one empty", proxy, (("X-Remote-User", ""), USER, ("X-Remote-User", "admin"), GROUP), USERS),
    Caller("two users in two headers", proxy, (("X-Other-User", "admin"), USER, GROUP), USERS),
)


@dataclass
class Secured:
    """The api over TLS.

    :ivar served: the server.
    :ivar certificates: what callers may have.
    """

    served: ServedApi
    certificates: Certificates

    @contextlib.asynccontextmanager
    async def caller(self, pair: Pair | None) -> AsyncIterator[aiohttp.ClientSession]:
        """Yield a session of a caller with this certificate."""
        context = ssl.create_default_context(cafile=str(self.certificates.server.ca))
        if pair is not None:
            context.load_cert_chain(pair.cert, pair.key)
        connector = aiohttp.TCPConnector(ssl=context)
        async with aiohttp.ClientSession(f"https://{self.served.address}", connector=connector) as session:
            yield session


@pytest.fixture
async def api(tmp_path: Path) -> AsyncIterator[Secured]:
    certificates = Certificates(*(Authority(tmp_path, name) for name in ("front-proxy-ca", "other-ca", "server-ca")))
    settings = front_proxy.parse(
        {
            "requestheader-client-ca-file": certificates.front.ca.read_text(),
            "requestheader-allowed-names": f'["{PROXY_NAME}"]',
            "requestheader-username-headers": '["X-Other-User","X-Remote-User"]',
            "requestheader-uid-headers": '["X-Remote-Uid"]',
        }
    )
    tls = ServerTls(client_ca=settings.ca)
    pair = certificates.server.server()
    tls.use(pair.cert.read_bytes(), pair.key.read_bytes())
    async with serve_api(tmp_path, proxy=lambda: settings, tls=tls) as served:
        served.put(VMS, objects.vm())
        served.put(VMIS, objects.vmi(owned=True))
        yield Secured(served, certificates)


@pytest.mark.parametrize("row", CALLERS, ids=lambda row: row.name)
async def test_nobody_but_the_aggregation_layer_gets_through(api: Secured, row: Caller) -> None:
    before = {key: dict(found) for key, found in api.served.kube.objects.items()}
    pair = row.certificate(api.certificates) if row.certificate is not None else None
    headers = CIMultiDict(row.headers)
    async with api.caller(pair) as session:
        for method, path in OPERATIONS:
            if row.expected == HANDSHAKE:
                with pytest.raises(aiohttp.ClientError):
                    await session.request(method, path, json=PLUG, headers=headers)
                continue
            async with session.request(method, path, json=PLUG, headers=headers) as answer:
                status = await answer.json()
            assert (answer.status, answer.content_type) == (401, "application/json")
            assert (status["kind"], status["apiVersion"], status["status"]) == ("Status", "v1", "Failure")
            assert (status["code"], status["reason"]) == (401, "Unauthorized")
            assert row.expected in status["message"]
            assert "admin" not in status["message"]
    assert api.served.kube.requests == []
    assert api.served.kube.reviewed == []
    assert api.served.bus.published == []
    assert api.served.kube.objects == before


async def test_the_aggregation_layer_gets_through_with_the_user_that_it_names(api: Secured) -> None:
    """Without this the table would pass with a server that refuses everybody."""
    more = (("X-Remote-Group", "admins"), ("X-Remote-Uid", "u-7"), ("X-Remote-Extra-Scopes", "a"))
    foreign = PLUG | {"networkAttachmentDefinitionName": "secret/net1"}
    api.served.kube.put(NADS, "secret", "net1", spec={"config": '{"type":"bridge"}'})
    async with api.caller(proxy(api.certificates)) as session:
        # The interface that is being unplugged cannot be plugged again meanwhile, and the template never had it.
        for (method, path), code in zip(OPERATIONS, (202, 202, 409, 404, 200, 200, 405), strict=True):
            body = foreign if path.endswith("addinterface") else {"name": "iface1"}
            headers = CIMultiDict((USER, GROUP, *more))
            async with session.request(method, path, json=body, headers=headers) as answer:
                assert answer.status == code, await answer.text()
    review = {name: value for name, value in api.served.kube.reviewed[0].items() if name != "resourceAttributes"}
    groups = ["system:authenticated", "admins"]
    assert review == {"user": "jane", "uid": "u-7", "groups": groups, "extra": {"scopes": ["a"]}}


@dataclass(frozen=True)
class Authorization:
    """A row: what the SubjectAccessReview about a network of another namespace says, and what the user gets."""

    name: str
    review: Callable[[Object], Awaitable[web.Response]]
    code: int
    reason: str
    message: str


def says(status: object) -> Callable[[Object], Awaitable[web.Response]]:
    async def answer(body: Object) -> web.Response:
        return web.json_response({**body, "status": status}, status=201)

    return answer


def sends(text: str, code: int = 201, content_type: str = "application/json") -> Callable[..., Awaitable[web.Response]]:
    async def answer(_body: Object) -> web.Response:
        return web.Response(text=text, status=code, content_type=content_type)

    return answer


def refuses(code: int, reason: str, message: str) -> Callable[[Object], Awaitable[web.Response]]:
    async def answer(_body: Object) -> web.Response:
        raise Refused(code, reason, message)

    return answer


async def never(_body: Object) -> web.Response:
    await asyncio.Event().wait()
    raise AssertionError


async def hang_up(_body: Object) -> web.Response:
    raise asyncio.CancelledError


DENIED = 'User "jane" cannot get resource "network-attachment-definitions"'
MALFORMED = "cannot decode SubjectAccessReview"
AUTHORIZATIONS = (
    Authorization("denied", says({"allowed": False}), 403, "Forbidden", DENIED),
    Authorization("allowed and denied", says({"allowed": True, "denied": True}), 403, "Forbidden", DENIED),
    Authorization("no opinion", says({}), 403, "Forbidden", DENIED),
    Authorization("no opinion, for an error", says({"evaluationError": "x"}), 403, "Forbidden", DENIED),
    Authorization("allowed is a text", says({"allowed": "true"}), 500, "InternalError", MALFORMED),
    Authorization("allowed is null", says({"allowed": None}), 500, "InternalError", MALFORMED),
    Authorization("status is a list", says([]), 500, "InternalError", MALFORMED),
    Authorization("no JSON", sends("{"), 500, "InternalError", MALFORMED),
    Authorization("empty", sends(""), 500, "InternalError", MALFORMED),
    Authorization("a page of a proxy", sends("<html>", 502, "text/html"), 502, "BadGateway", "<html>"),
    Authorization("failing", refuses(500, "InternalError", "etcd"), 500, "InternalError", "etcd"),
    Authorization("overloaded", refuses(429, "TooManyRequests", "later"), 429, "TooManyRequests", "later"),
    Authorization("unavailable", refuses(503, "ServiceUnavailable", "soon"), 503, "ServiceUnavailable", "soon"),
    Authorization("unauthenticated", refuses(401, "Unauthorized", "token"), 500, "InternalError", "hotnic's api"),
    Authorization("gone", hang_up, 503, "ServiceUnavailable", "subjectaccessreviews"),
    Authorization("slow", never, 503, "ServiceUnavailable", "subjectaccessreviews"),
)


@pytest.mark.timeout(200)
@pytest.mark.parametrize("row", AUTHORIZATIONS, ids=lambda row: row.name)
@pytest.mark.parametrize("resource", [VMS, VMIS])
async def test_nobody_gets_a_network_without_a_review_that_allows_it(
    api: Secured, row: Authorization, resource: str
) -> None:
    api.served.kube.put(NADS, "secret", "net1", spec={"config": '{"type":"bridge"}'})
    before = {key: dict(found) for key, found in api.served.kube.objects.items()}
    api.served.kube.review = row.review
    body = PLUG | {"networkAttachmentDefinitionName": "secret/net1"}
    headers = CIMultiDict((USER, GROUP))
    async with (
        api.caller(proxy(api.certificates)) as session,
        session.put(f"{BASE}/{resource}/vm1/addinterface", json=body, headers=headers) as answer,
    ):
        status = await answer.json()
    assert (answer.status, status["code"], status["reason"]) == (row.code, row.code, row.reason)
    assert (status["kind"], status["status"]) == ("Status", "Failure")
    assert row.message in status["message"]
    assert api.served.kube.objects == before
    assert api.served.bus.published == []
    assert api.served.kube.counted("PATCH", resource) == 0
