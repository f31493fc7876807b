"""The api's own serving certificate with real keys: replicas share a Secret, and a client verifies the handshake."""

import asyncio
import base64
import ssl
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
import structlog

from schemas.kubernetes.api_registration import SECRETS
from services.api.serving_certificate.reconcile import CertificateNames, ServingCertificate, read_secret
from services.common.http.server import make_app, serve
from services.common.http.tls import ServerTls
from services.common.kube.client import Kube
from services.common.telemetry import Telemetry
from tests.support.kube.certs import tls_get
from tests.support.kube.node_kube import FakeKube, Refused, serving_kube, write_kubeconfig
from tests.support.telemetry.spans import recording_telemetry

NAMES = CertificateNames("hotnic", "hotnic-api-tls", "hotnic-api", ("v1.a", "v1.b"))
HOST = "hotnic-api.hotnic.svc"
SECRET = ("secrets", "hotnic", "hotnic-api-tls")


@dataclass
class Cluster:
    """A fake API server with APIServices, and the clock of all replicas."""

    kube: FakeKube
    client: Kube
    telemetry: Telemetry
    now: datetime = field(default_factory=lambda: datetime.now(UTC))

    def register(self, name: str, service: str = "hotnic-api", **spec: Any) -> None:
        """Create an APIService."""
        self.kube.put("apiservices", "", name, spec={"service": {"namespace": "hotnic", "name": service}, **spec})

    def bundle(self, name: str) -> str:
        """Return the PEM text that an APIService trusts."""
        spec = self.kube.objects["apiservices", "", name]["spec"]
        return base64.b64decode(spec.get("caBundle", "")).decode()

    def replica(self) -> tuple[ServingCertificate, ServerTls]:
        """Return a replica that serves nothing yet."""
        tls = ServerTls()
        log, meter = structlog.get_logger(), self.telemetry.meter
        return ServingCertificate(self.client, tls, NAMES, log=log, meter=meter, clock=lambda: self.now), tls

    def metric(self, name: str) -> float:
        """Return the value of a metric without labels."""
        lines = self.telemetry.metrics_text().decode().splitlines()
        return next(float(line.split()[-1]) for line in lines if line.startswith(name))


@pytest.fixture
async def cluster(tmp_path: Path) -> AsyncIterator[Cluster]:
    async with serving_kube(FakeKube()) as kube:
        config = write_kubeconfig(tmp_path / "kubeconfig", kube.url)
        telemetry, _ = recording_telemetry("api")
        async with await Kube.connect(kubeconfig=config, telemetry=telemetry, user_agent="test") as client:
            found = Cluster(kube, client, telemetry)
            found.register("v1.a")
            found.register("v1.b")
            yield found


@asynccontextmanager
async def served(tls: ServerTls) -> AsyncIterator[Callable[[str], Awaitable[str]]]:
    """Serve, and yield a function that connects as kube-apiserver does and returns the certificate's serial number."""
    app = make_app(telemetry=recording_telemetry()[0], max_body=10)
    async with serve(app, "127.0.0.1:0", ssl=tls.context) as address:

        async def connect(bundle: str) -> str:
            certificate, _ = await tls_get(address, ssl.create_default_context(cadata=bundle), name=HOST)
            return str(certificate["serialNumber"])

        yield connect


async def test_the_first_replica_makes_the_certificate_and_the_second_uses_it(cluster: Cluster) -> None:
    (first, first_tls), (second, second_tls) = cluster.replica(), cluster.replica()
    assert await first.reconcile() == ""
    assert await second.reconcile() == ""
    secret = cluster.kube.objects[SECRET]
    assert secret["type"] == "Opaque"
    assert set(secret["data"]) == {"ca.crt", "ca.key", "tls.crt", "tls.key"}
    async with served(first_tls) as one, served(second_tls) as other:
        assert await one(cluster.bundle("v1.a")) == await other(cluster.bundle("v1.b"))
    # Nothing is written while nothing is due.
    before = list(cluster.kube.requests)
    assert await first.reconcile() == ""
    assert {method for method, *_ in cluster.kube.requests[len(before) :]} == {"GET"}


async def test_many_replicas_that_start_at_once_end_with_one_certificate(cluster: Cluster) -> None:
    replicas = [cluster.replica() for _ in range(5)]
    assert await asyncio.gather(*(replica.reconcile() for replica, _ in replicas)) == [""] * 5
    serials = set()
    for _, tls in replicas:
        async with served(tls) as connect:
            serials.add(await connect(cluster.bundle("v1.a")))
    assert len(serials) == 1
    assert cluster.bundle("v1.a").count("BEGIN CERTIFICATE") == 1


async def test_a_renewal_replaces_the_certificate_while_it_serves(cluster: Cluster) -> None:
    replica, tls = cluster.replica()
    expires = "hotnic_tls_certificate_expires_seconds"
    # Clients verify by the real time, so the first certificate is made in the past.
    cluster.now -= timedelta(days=244)
    await replica.reconcile()
    ca = cluster.bundle("v1.a")
    async with served(tls) as connect:
        before, until = await connect(ca), cluster.metric(expires)
        assert until == int((cluster.now + timedelta(days=365)).timestamp())
        cluster.now += timedelta(days=244)
        await replica.reconcile()
        assert await connect(ca) != before
        assert cluster.metric(expires) - until == 244 * 86400
    assert cluster.bundle("v1.a") == ca


async def test_a_new_ca_is_trusted_beside_the_old_one_before_it_signs_what_is_served(cluster: Cluster) -> None:
    (first, first_tls), (second, second_tls) = cluster.replica(), cluster.replica()
    await first.reconcile()
    await second.reconcile()
    old = cluster.bundle("v1.a")
    cluster.kube.delete(*SECRET)
    async with served(first_tls) as one, served(second_tls) as other:
        serial = await other(old)
        await first.reconcile()
        both = cluster.bundle("v1.b")
        assert both == cluster.bundle("v1.a")
        assert old in both
        assert both.count("BEGIN CERTIFICATE") == 2
        # The second replica has not looked yet: it serves the old pair, which is still trusted.
        assert await other(both) == serial
        assert await one(both) != serial
        await second.reconcile()
        assert await other(both) == await one(both)


async def test_a_bundle_that_was_reset_is_set_again(cluster: Cluster) -> None:
    replica, _ = cluster.replica()
    await replica.reconcile()
    ca = cluster.bundle("v1.a")
    cluster.register("v1.a")
    cluster.register("v1.b", caBundle="bm9uc2Vuc2U=")
    await replica.reconcile()
    assert cluster.bundle("v1.a") == cluster.bundle("v1.b") == ca


async def test_apiservices_of_others_are_left_alone(cluster: Cluster) -> None:
    cluster.register("v1.b", service="virt-api", caBundle="S3ViZVZpcnQ=")
    cluster.register("v1.a", insecureSkipTLSVerify=True)
    replica, _ = cluster.replica()
    assert await replica.reconcile() == ""
    assert replica.served.is_set()
    assert cluster.kube.counted("PATCH", "apiservices") == 0


async def test_an_apiservice_that_is_created_later_gets_the_bundle(cluster: Cluster) -> None:
    cluster.kube.delete("apiservices", "", "v1.a")
    cluster.kube.delete("apiservices", "", "v1.b")
    replica, _ = cluster.replica()
    assert await replica.reconcile() == ""
    assert replica.served.is_set()
    cluster.register("v1.a")
    assert await replica.reconcile() == ""
    assert "BEGIN CERTIFICATE" in cluster.bundle("v1.a")


async def test_an_empty_secret_is_filled_and_keeps_its_owner(cluster: Cluster) -> None:
    cluster.kube.put(*SECRET, metadata={"labels": {"app.kubernetes.io/managed-by": "Helm"}}, type="Opaque")
    replica, _ = cluster.replica()
    assert await replica.reconcile() == ""
    found = cluster.kube.objects[SECRET]
    assert found["metadata"]["labels"] == {"app.kubernetes.io/managed-by": "Helm"}
    assert found["data"]["tls.key"]
    assert cluster.kube.counted("POST", "secrets") == 0


async def test_a_foreign_secret_is_refused_and_not_changed(cluster: Cluster) -> None:
    data = {"tls.crt": "eA==", "tls.key": "eA=="}
    cluster.kube.put(*SECRET, data=data)
    replica, _ = cluster.replica()
    problem = await replica.reconcile()
    assert problem.startswith("Secret hotnic/hotnic-api-tls was not written by hotnic: it has data, but no ca.key; ")
    assert cluster.kube.objects[SECRET]["data"] == data
    assert not replica.served.is_set()


@pytest.mark.parametrize(("key", "value"), [("ca.crt", ""), ("ca.key", "eA=="), ("tls.key", "%"), ("tls.crt", "eA==")])
async def test_a_damaged_secret_is_mended(cluster: Cluster, key: str, value: str) -> None:
    replica, tls = cluster.replica()
    await replica.reconcile()
    cluster.kube.objects[SECRET]["data"][key] = value
    assert await replica.reconcile() == ""
    stored = read_secret(await cluster.client.get(SECRETS, "hotnic", "hotnic-api-tls")).stored
    assert stored is not None
    assert stored.pair is not None
    assert stored.pair.issuer == stored.signer.fingerprint
    async with served(tls) as connect:
        await connect(cluster.bundle("v1.a"))


async def test_a_refused_write_is_reported_and_tried_again(cluster: Cluster) -> None:
    def refuse(method: str, plural: str, _name: str) -> None:
        if (method, plural) == ("PATCH", "apiservices"):
            raise Refused(403, "Forbidden", "no patch for you")

    states: list[tuple[bool, str]] = []
    told = asyncio.Event()

    def on_state(ok: bool, why: str) -> None:
        states.append((ok, why))
        told.set()

    replica = ServingCertificate(
        cluster.client,
        ServerTls(),
        NAMES,
        log=structlog.get_logger(),
        meter=recording_telemetry("api")[0].meter,
        on_state=on_state,
    )
    cluster.kube.before = refuse
    running = asyncio.create_task(replica.run())
    await asyncio.wait_for(told.wait(), 20)
    assert states[0] == (False, "cannot keep the certificate in Secret hotnic/hotnic-api-tls: no patch for you")
    assert not replica.served.is_set()
    cluster.kube.before = lambda _method, _plural, _name: None
    await asyncio.wait_for(replica.served.wait(), 20)
    running.cancel()
    await asyncio.wait([running])


async def test_a_namespace_that_does_not_exist_is_reported(cluster: Cluster) -> None:
    def refuse(method: str, plural: str, _name: str) -> None:
        if (method, plural) == ("POST", "secrets"):
            raise Refused(404, "NotFound", 'namespaces "hotnic" not found')

    cluster.kube.before = refuse
    replica, _ = cluster.replica()
    with pytest.raises(Exception, match='namespaces "hotnic" not found'):
        await replica.reconcile()
