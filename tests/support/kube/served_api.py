"""The api served on a loopback port, over a scripted Kubernetes API and a bus in memory."""

import contextlib
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import aiohttp
import msgspec
import structlog
from multidict import MultiMapping
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

from schemas.kubernetes.options import OPERATION_HEADER
from services.api.front_proxy import FrontProxy, UserIdentity
from services.api.hotplug_status.watch import MAX_WATCHERS
from services.api.observe import ClusterSettings
from services.api.server import Api
from services.common.http.server import serve
from services.common.http.tls import ServerTls
from services.common.kube.client import Kube
from tests.support.bus.memory import Broker, MemoryBus
from tests.support.contexts import role_context
from tests.support.kube.node_kube import NADS, PODS, FakeKube, serving_kube, write_kubeconfig
from tests.support.observed import objects
from tests.support.telemetry.spans import recording_telemetry

HOTNIC = "subresources.hotnic.io/v1"


class AcceptAnyCaller(FrontProxy, frozen=True):
    """Accept every caller as the aggregation layer; certificates are tested elsewhere."""

    def identify(self, peer_name: str | None, headers: MultiMapping[str], groups: Sequence[str]) -> UserIdentity:
        """Return the user that the request names, or else the same one for every request."""
        user = headers.get("X-Remote-User", "someone")
        return UserIdentity(user, ("system:authenticated",), {"scopes": ("a",)}, "u-1")


ANY_CALLER = AcceptAnyCaller(ca="", names=(), user_headers=(), group_headers=())


class ServedApi:
    """The server, its client, the Kubernetes API and the bus.

    :ivar warnings: the ``Warning`` headers of the last response.
    :ivar cache: directory for what a client keeps.
    """

    def __init__(
        self,
        kube: FakeKube,
        bus: MemoryBus,
        session: aiohttp.ClientSession,
        address: str,
        spans: InMemorySpanExporter,
        cache: Path,
    ) -> None:
        self.kube, self.bus, self.session, self.address, self.spans = kube, bus, session, address, spans
        self.cache = cache
        self.warnings: list[str] = []
        self.enabled, self.cluster = True, ClusterSettings(owned_by_hotnic=True, default_binding="masquerade")

    def put(self, plural: str, found: Any) -> None:
        """Create or replace an object."""
        document = msgspec.to_builtins(found)
        meta = document["metadata"]
        self.kube.put(plural, meta["namespace"], meta["name"], **document)

    async def request(
        self,
        resource: str,
        verb: str,
        body: Any,
        *,
        name: str = "vm1",
        version: str = HOTNIC,
        headers: Mapping[str, str] | None = None,
        query: Mapping[str, str] | None = None,
    ) -> tuple[int, dict[str, Any], str]:
        """Send a request that changes an object.

        :return: the HTTP code, the ``Status`` of a refusal, and the id of the operation.
        """
        path = f"/apis/{version}/namespaces/default/{resource}/{name}/{verb}"
        async with self.session.put(path, json=body, headers=headers, params=query) as answer:
            status = await answer.json() if answer.status >= 400 else {}
            self.warnings = answer.headers.getall("Warning", [])
            return answer.status, status, answer.headers.get(OPERATION_HEADER, "")


@contextlib.asynccontextmanager
async def serve_api(
    tmp_path: Path,
    *,
    watchers: int = MAX_WATCHERS,
    proxy: Callable[[], FrontProxy] = lambda: ANY_CALLER,
    tls: ServerTls | None = None,
    kube: FakeKube | None = None,
    broker: Broker | None = None,
) -> AsyncIterator[ServedApi]:
    """Serve the api with the NAD and the launcher pod of :mod:`tests.support.observed.objects`.

    :param proxy: as for :class:`services.api.server.Api`; by default every caller is the aggregation layer.
    :param tls: serve with TLS; the session of the result has no certificate.
    :param kube: an API that is served already, as for a second replica.
    :param broker: what the replicas' buses share.
    """
    telemetry, spans = recording_telemetry("api")
    log = structlog.get_logger()
    async with contextlib.AsyncExitStack() as stack:
        if kube is None:
            kube = await stack.enter_async_context(serving_kube(FakeKube()))
        config = write_kubeconfig(tmp_path / "kubeconfig", kube.url)
        async with await Kube.connect(kubeconfig=config, telemetry=telemetry, user_agent="test") as client:
            bus = MemoryBus(broker, role="api", telemetry=telemetry, log=log)
            server = Api(
                role_context("api", client, bus, telemetry),
                proxy,
                cluster=lambda: served.cluster,
                enabled=lambda: served.enabled,
                watchers=watchers,
            )
            async with (
                serve(server.app, "127.0.0.1:0", ssl=tls.context if tls else None) as address,
                aiohttp.ClientSession(f"{'https' if tls else 'http'}://{address}") as session,
            ):
                served = ServedApi(kube, bus, session, address, spans, tmp_path / "cache")
                served.put(NADS, objects.nad())
                served.put(PODS, objects.pod())
                yield served
