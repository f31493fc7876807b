"""``hotnic run api`` as a process, over a fake Kubernetes API on a loopback port."""

import asyncio
import contextlib
import os
import socket
import ssl
import sys
from collections.abc import AsyncIterator
from pathlib import Path

import aiohttp
from aiohttp.abc import AbstractResolver, ResolveResult

from services.common.http.client import ConnectFailed, UnixHttpClient
from tests.support.kube.certs import Authority, Pair
from tests.support.kube.node_kube import FakeKube, serving_kube, write_kubeconfig
from tests.support.telemetry.spans import recording_telemetry

HOST = "hotnic-api.hotnic.svc"
FRONT_PROXY = ("configmaps", "kube-system", "extension-apiserver-authentication")
CALLER_HEADERS = {"X-Remote-User": "jane", "X-Remote-Group": "system:authenticated"}
SERVICES = ("v1.subresources.hotnic.io", "v1.subresources.kubevirt.io", "v1alpha3.subresources.kubevirt.io")


class Loopback(AbstractResolver):
    """Resolve every name to the loopback address."""

    async def resolve(
        self, host: str, port: int = 0, family: socket.AddressFamily = socket.AF_INET
    ) -> list[ResolveResult]:
        """Return the address."""
        return [ResolveResult(hostname=host, host="127.0.0.1", port=port, family=family, proto=0, flags=0)]

    async def close(self) -> None:
        """Release nothing."""


class ApiProcess:
    """The cluster and the environment of an api.

    :ivar port: port of the aggregated API.
    :ivar front: the front-proxy CA.
    """

    def __init__(self, folder: Path, kube: FakeKube, port: int, front: Authority) -> None:
        self.front = front
        self._callers: dict[Authority, Pair] = {}
        self.folder, self.kube, self.port = folder, kube, port
        self.health = UnixHttpClient(str(folder / "health.sock"), recording_telemetry("client")[0])
        self.environ = {
            "PATH": os.environ["PATH"],
            "KUBECONFIG": write_kubeconfig(folder / "kubeconfig", kube.url),
            "NATS_URL": "nats://127.0.0.1:1",
            "HOTNIC_HEALTH_LISTEN": f"unix:{folder}/health.sock",
            "HOTNIC_LISTEN": f"127.0.0.1:{port}",
            "HOTNIC_VM_OWNER": "hotnic",
            "HOTNIC_NAMESPACE": "hotnic",
        }

    async def start(self, **settings: str) -> asyncio.subprocess.Process:
        """Start the process."""
        return await asyncio.create_subprocess_exec(
            sys.executable, "-m", "services.api", env=self.environ | settings, stderr=asyncio.subprocess.PIPE
        )

    @contextlib.asynccontextmanager
    async def running(self, **settings: str) -> AsyncIterator[None]:
        """Run the process while the context is open."""
        process = await self.start(**settings)
        reading = asyncio.create_task(process.communicate())
        try:
            yield
        finally:
            process.terminate()
            await asyncio.wait_for(reading, 50)
        assert process.returncode == 0

    def caller(self, ca: str, *, front: Authority | None = None, server_name: str = HOST) -> aiohttp.ClientSession:
        """Return a session of the aggregation layer; each request has a connection of its own.

        :param ca: PEM text of the CAs of the serving certificate.
        :param front: the front-proxy CA of its certificate, if not the first one.
        :param server_name: the name that the certificate must have.
        """
        context = self.caller_context(ca, front or self.front)
        connector = aiohttp.TCPConnector(ssl=context, force_close=True, resolver=Loopback())
        url = f"https://{server_name}:{self.port}"
        return aiohttp.ClientSession(url, connector=connector, headers=CALLER_HEADERS)

    def caller_context(self, ca: str, front: Authority) -> ssl.SSLContext:
        """Return the TLS settings of the aggregation layer, with a certificate of this front-proxy CA."""
        pair = self._callers.get(front)
        if pair is None:
            pair = self._callers[front] = front.client("front-proxy-client", file=f"{front.ca.stem}-client")
        context = ssl.create_default_context(cadata=ca)
        context.load_cert_chain(pair.cert, pair.key)
        return context

    async def until_ready(self, status: int, part: str) -> None:
        """Wait until ``/readyz`` has this status and this text."""
        async with asyncio.timeout(50):
            while True:
                with contextlib.suppress(ConnectFailed):
                    code, body = await self.health.request("GET", "/readyz")
                    if (code, part in body.decode()) == (status, True):
                        return
                await asyncio.sleep(0.02)


@contextlib.asynccontextmanager
async def api_process(folder: Path, port: int) -> AsyncIterator[ApiProcess]:
    """Provide a cluster in which an api can start: it publishes a front-proxy CA and has the APIServices."""
    authority = Authority(folder, "front-proxy-ca")
    async with serving_kube(FakeKube()) as kube:
        kube.put(*FRONT_PROXY, data={"requestheader-client-ca-file": authority.ca.read_text()})
        for name in SERVICES:
            kube.put("apiservices", "", name, spec={"service": {"namespace": "hotnic", "name": "hotnic-api"}})
        found = ApiProcess(folder, kube, port, authority)
        try:
            yield found
        finally:
            await found.health.close()
