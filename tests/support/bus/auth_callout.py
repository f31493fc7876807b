"""A NATS server with an auth callout, the callout itself over a scripted API server, and tokens of ServiceAccounts."""

import asyncio
import contextlib
import ssl
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import structlog
from aiohttp import web
from nats.aio.client import Client
from nats.errors import Error as NatsError

from services.api.bus_auth.plan import NODE_NAME, POD_NAME, POD_UID
from services.api.bus_auth.serving import serve_callout
from services.common.bus.nats.credentials import Endpoint
from services.common.bus.nats_config import NatsCallout, render_accounts
from services.common.bus.nkeys import KeyKind, SigningKey, make_seed
from services.common.kube.client import Kube
from tests.support.bus.auth_tokens import ACCOUNTS, AUDIENCE, NAMESPACE, Object, claims_of
from tests.support.bus.jetstream import QUICK
from tests.support.bus.nats import NatsServer, nats_server, tls_options
from tests.support.kube.certs import Authority
from tests.support.kube.node_kube import PODS, FakeKube, serving_kube, write_kubeconfig
from tests.support.telemetry.spans import recording_telemetry


@dataclass
class Reviews:
    """The API server's part: token reviews, and pods.

    :ivar kube: its other objects.
    :ivar valid: the ``status`` of a review by token; other tokens are not authenticated.
    :ivar received: the specs of the reviews.
    :ivar hold: reviews wait for it.
    :ivar status: HTTP status of a review; at 300 or more it fails.
    """

    kube: FakeKube
    valid: dict[str, Object] = field(default_factory=dict)
    received: list[Object] = field(default_factory=list)
    hold: asyncio.Event = field(default_factory=asyncio.Event)
    status: int = 201

    def accept(
        self,
        token: str,
        *,
        pod: str = "networks-1",
        node: str | None = "node1",
        audiences: tuple[str, ...] = (AUDIENCE,),
    ) -> str:
        """Authenticate a token from now on, and return it.

        :param pod: the pod to which it is bound; empty for none.
        :param node: what the token says of the pod's node.
        """
        extra = {POD_NAME: [pod], POD_UID: [f"uid-{pod}"]} if pod else {}
        if node is not None:
            extra[NODE_NAME] = [node]
        user = {"username": claims_of(token)["sub"], "groups": ["system:serviceaccounts"], "extra": extra}
        self.valid[token] = {"authenticated": True, "user": user, "audiences": list(audiences)}
        return token

    async def review(self, request: web.Request) -> web.Response:
        """Answer a review."""
        body = await request.json()
        self.received.append(body["spec"])
        await self.hold.wait()
        if self.status >= 300:
            return web.json_response({"kind": "Status", "message": "no", "code": self.status}, status=self.status)
        invalid = {"user": {}, "error": "invalid bearer token"}
        return web.json_response({**body, "status": self.valid.get(body["spec"]["token"], invalid)}, status=201)


@contextlib.asynccontextmanager
async def reviewing_kube(directory: Path) -> AsyncIterator[tuple[Kube, Reviews]]:
    """Provide a client of a scripted API server, and its script."""
    fake = FakeKube()
    reviews = Reviews(fake)
    reviews.hold.set()
    fake.reviewer = reviews.review
    async with serving_kube(fake) as served:
        config = write_kubeconfig(directory / "kubeconfig", served.url)
        async with await Kube.connect(kubeconfig=config, telemetry=recording_telemetry()[0], user_agent="test") as kube:
            try:
                yield kube, reviews
            finally:
                reviews.hold.set()


def write_keys(directory: Path) -> Path:
    """Write the keys of a callout into a directory, and return it."""
    directory.mkdir(exist_ok=True)
    for name, kind in (("issuer.nk", KeyKind.ACCOUNT), ("user.nk", KeyKind.USER)):
        (directory / name).write_text(make_seed(kind))
    return directory


def server_config(keys: Path) -> str:
    """Return the accounts of a server whose callout has these keys."""
    issuer, user = (SigningKey((keys / name).read_text()).public for name in ("issuer.nk", "user.nk"))
    return render_accounts([], NatsCallout(issuer, [user]))


class Denials(list[str]):
    """What a server has denied a client."""

    def __init__(self) -> None:
        super().__init__()
        self._more = asyncio.Condition()

    async def add(self, error: Exception) -> None:
        """Remember an error of the client."""
        async with self._more:
            self.append(str(error).lower())
            self._more.notify_all()

    async def wait(self, *, publish: int, subscription: int) -> None:
        """Wait for these numbers of denials; there may be no others."""
        async with asyncio.timeout(60), self._more:
            await self._more.wait_for(lambda: len(self) >= publish + subscription)
        counts = [sum(f"permissions violation for {what}" in item for item in self) for what in ("pub", "sub")]
        assert counts == [publish, subscription], self


@dataclass
class Callout:
    """A running server with TLS whose connections the callout decides.

    :ivar replicas: the tasks that answer.
    :ivar ca: file of the CA of the server's certificate.
    """

    server: NatsServer
    reviews: Reviews
    keys: Path
    replicas: list[asyncio.Task[None]]
    ca: Path

    @property
    def url(self) -> str:
        """The server's URL."""
        return self.server.url.replace("nats://", "tls://")

    @property
    def tls(self) -> ssl.SSLContext:
        """What a client needs to trust the server."""
        return ssl.create_default_context(cafile=self.ca)

    async def connect(self, token: str, **options: Any) -> Client:
        """Connect as a role; a refused connection raises."""
        client = Client()
        try:
            await client.connect(
                self.url, tls=self.tls, token=token, allow_reconnect=False, connect_timeout=30, **options
            )
        except BaseException:
            # A refused connection leaves its socket open.
            await client.close()
            raise
        return client

    async def refusal(self, token: str) -> str:
        """Connect as somebody who is refused; return the reason that the server's log has."""
        before = len(self.server.log)
        with pytest.raises(NatsError, match="Authorization Violation"):
            await self.connect(token)
        mark = "returned an error: "
        async with asyncio.timeout(60):
            # The server writes its log beside its response.
            while not (found := [line for line in self.server.log[before:] if mark in line]):  # noqa: ASYNC110
                await asyncio.sleep(0.01)
        return found[0].partition(mark)[2].partition(":")[0]


@contextlib.asynccontextmanager
async def running_callout(directory: Path, *, replicas: int = 1, kube: Kube | None = None) -> AsyncIterator[Callout]:
    """Provide a server with the callout of some replicas.

    :param kube: a real API server in place of the scripted one.
    """
    keys = write_keys(directory / "keys")
    config = directory / "nats.conf"
    config.write_text(server_config(keys))
    authority = Authority(directory, "nats-ca")
    async with (
        nats_server(directory / "nats", "-c", str(config), *tls_options(authority.server("nats"))) as server,
        reviewing_kube(directory) as (scripted, reviews),
        asyncio.TaskGroup() as group,
    ):
        up = [asyncio.Event() for _ in range(replicas)]
        tasks = []
        for event in up:
            serving = serve_callout(
                kube or scripted,
                Endpoint((server.url,), ca=str(authority.ca)),
                ACCOUNTS,
                keys=keys,
                namespace=NAMESPACE,
                log=structlog.get_logger(),
                meter=recording_telemetry()[0].meter,
                settings=QUICK,
                on_state=lambda serving, event=event: event.set() if serving else event.clear(),
            )
            tasks.append(group.create_task(serving.run()))
        async with asyncio.timeout(60):
            for event in up:
                await event.wait()
        try:
            yield Callout(server, reviews, keys, tasks, authority.ca)
        finally:
            for task in tasks:
                task.cancel()


def put_pod(reviews: Reviews, name: str, node: str) -> None:
    """Create a pod on a node."""
    reviews.kube.put(PODS, NAMESPACE, name, spec={"nodeName": node})
