"""Certificates change while requests come in: none fails that has the certificates of the moment.

The aggregation layer is played: it trusts the ``caBundle`` of the APIService, and its certificate is of the front-proxy
CA. Every request has a connection of its own, so each meets the certificates that are served then. The real aggregation
layer is in ``tests/interop/cluster/test_aggregated_api.py``.
"""

import asyncio
import base64
import contextlib
import os
from collections.abc import AsyncIterator, Callable
from pathlib import Path

import aiohttp
import msgspec
import pytest

from tests.support.kube.api_process import CALLER_HEADERS, FRONT_PROXY, HOST, SERVICES, ApiProcess, api_process
from tests.support.kube.certs import Authority, Pair
from tests.support.kube.served_api import HOTNIC
from tests.support.observed import objects

STATUS = f"/apis/{HOTNIC}/namespaces/default/virtualmachineinstances/vm1/interfaces"
INTERVAL = 0.2
"""Seconds between two requests: five in a second."""
STEP = 5
"""Requests between two steps of a rotation."""
DEADLINE = 100.0
"""Seconds for a replica to follow a change; it looks every 10 s at most."""


class PlayedProxy:
    """Requests of the aggregation layer.

    :ivar ca: returns what it trusts now.
    :ivar front: the CA of its certificate.
    :ivar serials: serial numbers of the serving certificates that it has met, in order.
    """

    def __init__(self, api: ApiProcess, name: str, ca: Callable[[], str]) -> None:
        self._api = api
        self._name = name
        self.ca = ca
        self.front = api.front
        self.failures: list[str] = []
        self.serials: list[str] = []
        self._answered = asyncio.Condition()
        self._count = 0

    async def run(self) -> None:
        """Send requests until cancelled, none later than the one before allows."""
        loop = asyncio.get_running_loop()
        began, sent = loop.time(), 0
        async with asyncio.TaskGroup() as group:
            while True:
                group.create_task(self._request())
                sent += 1
                await asyncio.sleep(max(0.0, began + sent * INTERVAL - loop.time()))

    async def _request(self) -> None:
        try:
            serial, answer = await self._exchange()
        except (OSError, TimeoutError) as error:
            self.failures.append(repr(error))
        else:
            if not self.serials or self.serials[-1] != serial:
                self.serials.append(serial)
            if not answer.startswith("HTTP/1.1 200 "):
                self.failures.append(answer)
        async with self._answered:
            self._count += 1
            self._answered.notify_all()

    async def _exchange(self) -> tuple[str, str]:
        """Send a request on a connection of its own; return the serial number of the certificate, and the answer."""
        context = self._api.caller_context(self.ca(), self.front)
        async with asyncio.timeout(DEADLINE):
            reader, writer = await asyncio.open_connection(
                "127.0.0.1", self._api.port, ssl=context, server_hostname=self._name
            )
            try:
                head = {"Host": self._name, **CALLER_HEADERS, "Connection": "close"}
                lines = [f"GET {STATUS} HTTP/1.1", *(f"{name}: {value}" for name, value in head.items()), "", ""]
                writer.write("\r\n".join(lines).encode())
                answer = (await reader.read()).decode()
                serial = writer.get_extra_info("peercert")["serialNumber"]
            finally:
                writer.close()
        return serial, answer

    async def more(self, requests: int = STEP) -> None:
        """Wait for further answers."""
        wanted = self._count + requests
        await self._until(lambda: self._count >= wanted)

    async def other_certificate(self) -> None:
        """Wait until another serving certificate is met."""
        met = len(self.serials)
        await self._until(lambda: len(self.serials) > met)

    async def _until(self, condition: Callable[[], bool]) -> None:
        async with asyncio.timeout(DEADLINE), self._answered:
            await self._answered.wait_for(condition)


@contextlib.asynccontextmanager
async def load(api: ApiProcess, name: str, ca: Callable[[], str]) -> AsyncIterator[PlayedProxy]:
    """Send requests while the context is open; none may fail."""
    proxy = PlayedProxy(api, name, ca)
    task = asyncio.create_task(proxy.run())
    try:
        await proxy.more()
        yield proxy
        await proxy.more()
    finally:
        task.cancel()
        await asyncio.wait([task])
    assert proxy.failures == []


@pytest.fixture
async def api(tmp_path: Path, unused_tcp_port: int) -> AsyncIterator[ApiProcess]:
    async with api_process(tmp_path, unused_tcp_port) as found:
        found.kube.put("virtualmachineinstances", "default", "vm1", **msgspec.to_builtins(objects.vmi()))
        yield found


def write(folder: Path, pair: Pair) -> None:
    """Replace the served files as the kubelet does: both at once, by a link."""
    new = folder / pair.cert.stem
    new.mkdir(exist_ok=True)
    for source, name in ((pair.cert, "tls.crt"), (pair.key, "tls.key")):
        (new / name).write_bytes(source.read_bytes())
    link = folder / "data.new"
    link.symlink_to(new)
    os.replace(link, folder / "data")


@pytest.mark.timeout(400)
async def test_a_certificate_of_files_and_its_ca_change_under_load(api: ApiProcess) -> None:
    first, second = Authority(api.folder, "serving-1"), Authority(api.folder, "serving-2")
    trusted = first.ca.read_text()
    write(api.folder, first.server("server-1"))
    files = {"HOTNIC_TLS_CERT": f"{api.folder}/data/tls.crt", "HOTNIC_TLS_KEY": f"{api.folder}/data/tls.key"}
    async with api.running(**files):
        await api.until_ready(200, "[+]serving ok")
        async with load(api, "127.0.0.1", lambda: trusted) as proxy:
            write(api.folder, first.server("server-2"))
            await proxy.other_certificate()
            trusted += second.ca.read_text()
            await proxy.more()
            write(api.folder, second.server("server-3"))
            await proxy.other_certificate()
            trusted = second.ca.read_text()
            await proxy.more()
        assert len(proxy.serials) == 3


@pytest.mark.timeout(400)
async def test_a_certificate_of_the_apis_own_and_its_ca_change_under_load(api: ApiProcess) -> None:
    def bundle() -> str:
        spec = api.kube.objects["apiservices", "", SERVICES[0]]["spec"]
        return base64.b64decode(spec["caBundle"]).decode()

    async with api.running(HOTNIC_TLS_SECRET="hotnic-api-tls"):
        await api.until_ready(200, "[+]serving ok")
        async with load(api, HOST, bundle) as proxy:
            before = bundle()
            # A Secret that is gone is made again, with a new CA beside the earlier one.
            api.kube.delete("secrets", "hotnic", "hotnic-api-tls")
            await proxy.other_certificate()
        assert before.strip() in bundle()
        assert bundle().count("BEGIN CERTIFICATE") == 2


@pytest.mark.timeout(400)
async def test_the_front_proxy_ca_changes_under_load(api: ApiProcess) -> None:
    """In the order of Kubernetes' documentation: both CAs, then the client's certificate, then the new CA alone."""
    new = Authority(api.folder, "rotated-ca")
    pair = api.front.server()

    async def accepted(front: Authority) -> bool:
        async with api.caller(api.front.ca.read_text(), front=front, server_name="127.0.0.1") as session:
            try:
                async with session.get(STATUS) as answer:
                    return answer.status == 200
            except aiohttp.ClientError:
                return False

    async def until(front: Authority, wanted: bool) -> None:
        async with asyncio.timeout(DEADLINE):
            while True:
                if await accepted(front) is wanted:
                    return
                await asyncio.sleep(0.02)

    async with api.running(HOTNIC_TLS_CERT=str(pair.cert), HOTNIC_TLS_KEY=str(pair.key)):
        await api.until_ready(200, "[+]serving ok")
        async with load(api, "127.0.0.1", api.front.ca.read_text) as proxy:
            both = api.front.ca.read_text() + new.ca.read_text()
            api.kube.put(*FRONT_PROXY, data={"requestheader-client-ca-file": both})
            await until(new, True)
            proxy.front = new
            await proxy.more()
            api.kube.put(*FRONT_PROXY, data={"requestheader-client-ca-file": new.ca.read_text()})
            await until(api.front, False)
        assert await accepted(new)
