"""Reads what the roles of a running lab exchange and store, for ``scripts/generate/skew-recording``, which drives them.

Only contracts are used (Kubernetes objects, subjects, sockets, files), and no internals of a role, so the same code
records every later version. Next: :mod:`tests.support.skew.recording`, which reads a recording.
"""

from __future__ import annotations

import asyncio
import base64
import contextlib
import json
import ssl
import tempfile
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import Any

import aiohttp
from aiohttp import web
from nats.js import JetStreamContext
from nats.js.errors import NoKeysError

from lab.cli import commands
from lab.layout import Layout

VM = "centos-stream9-1"
NAMESPACE = "default"
DEADLINE = 120.0
SETTLE = 1.0
"""Seconds without a change after which a snapshot is taken."""
NETWORKS = "k8s.v1.cni.cncf.io/networks"
NETWORK_STATUS = "k8s.v1.cni.cncf.io/network-status"
OBJECTS = {
    "VirtualMachine": f"/apis/kubevirt.io/v1/namespaces/{NAMESPACE}/virtualmachines",
    "VirtualMachineInstance": f"/apis/kubevirt.io/v1/namespaces/{NAMESPACE}/virtualmachineinstances",
    "Pod": f"/api/v1/namespaces/{NAMESPACE}/pods",
    "NetworkAttachmentDefinition": f"/apis/k8s.cni.cncf.io/v1/namespaces/{NAMESPACE}/network-attachment-definitions",
    "Event": f"/api/v1/namespaces/{NAMESPACE}/events",
}
SNAPSHOT_KINDS = ("VirtualMachine", "VirtualMachineInstance", "Pod")
SUBRESOURCES = f"/apis/subresources.hotnic.io/v1/namespaces/{NAMESPACE}"

Json = dict[str, Any]


class Cluster:
    """The lab's API server, as its administrator uses it."""

    def __init__(self, session: aiohttp.ClientSession, server: str) -> None:
        self._session = session
        self._server = server
        self.exchanges: list[Json] = []

    async def call(self, method: str, path: str, body: Any = None, *, content_type: str = "application/json") -> Any:
        """Send a request, which must succeed, and return its body."""
        exchange = await self._request(method, path, body, content_type)
        assert exchange["status"] < 300, exchange
        return json.loads(exchange["response"])

    async def record(self, method: str, path: str, body: Any = None) -> Json:
        """Send a request to the api role, record it with its response, and return both."""
        exchange = await self._request(method, SUBRESOURCES + path, body, "application/json")
        self.exchanges.append(exchange)
        return exchange

    async def _request(self, method: str, path: str, body: Any, content_type: str) -> Json:
        data = None if body is None else json.dumps(body)
        headers = {} if data is None else {"Content-Type": content_type}
        async with self._session.request(method, self._server + path, data=data, headers=headers) as response:
            return {
                "method": method,
                "path": path,
                "request": data,
                "status": response.status,
                "headers": {
                    name: response.headers[name]
                    for name in ("Content-Type", "Hotnic-Operation")
                    if name in response.headers
                },
                "response": await response.text(),
            }


@contextlib.asynccontextmanager
async def connect_cluster(layout: Layout) -> AsyncIterator[Cluster]:
    """Connect with the lab's kubeconfig."""
    config = json.loads(layout.kubeconfig.read_text())
    cluster, user = config["clusters"][0]["cluster"], config["users"][0]["user"]
    authority = base64.b64decode(cluster["certificate-authority-data"]).decode()
    context = ssl.create_default_context(cadata=authority)
    with tempfile.TemporaryDirectory() as scratch:
        for name in ("certificate", "key"):
            (Path(scratch) / name).write_bytes(base64.b64decode(user[f"client-{name}-data"]))
        context.load_cert_chain(Path(scratch) / "certificate", Path(scratch) / "key")
    async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(ssl=context)) as session:
        yield Cluster(session, cluster["server"])


class MultusRelay:
    """Stands at the multus daemon's socket, passes each call on, and records it.

    :ivar exchanges: the calls with their responses.
    :ivar unsettled: the records that were not on disk yet while a call ran, each text once.
    """

    def __init__(self, root: Path) -> None:
        self._folder = root / "run" / "multus"
        self._daemon = self._folder / "daemon.sock"
        self.exchanges: list[Json] = []
        self.unsettled: dict[str, str] = {}

    @contextlib.asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        """Take the daemon's socket, and give it back at the end."""
        socket = self._folder / "multus.sock"
        socket.rename(self._daemon)
        app = web.Application(client_max_size=2**22)
        app.router.add_route("*", "/{path:.*}", self._pass_on)
        runner = web.AppRunner(app)
        await runner.setup()
        await web.UnixSite(runner, str(socket)).start()
        socket.chmod(0o600)
        try:
            yield
        finally:
            await runner.cleanup()
            socket.unlink(missing_ok=True)
            self._daemon.rename(socket)

    async def _pass_on(self, request: web.Request) -> web.Response:
        body = await request.read()
        names = ("Content-Type", "traceparent")
        headers = {name: request.headers[name] for name in names if name in request.headers}
        async with aiohttp.ClientSession(connector=aiohttp.UnixConnector(str(self._daemon))) as session:
            call = session.request(request.method, f"http://multus{request.raw_path}", data=body, headers=headers)
            task = asyncio.create_task(_complete(call))
            while not task.done():
                self._read_unsettled()
                await asyncio.wait((task,), timeout=0.001)
            self._read_unsettled()
            status, content_type, answer = task.result()
        if request.path != "/healthz":
            self.exchanges.append(
                {
                    "method": request.method,
                    "path": request.raw_path,
                    "headers": headers,
                    "request": body.decode(),
                    "status": status,
                    "contentType": content_type,
                    "response": answer.decode(),
                }
            )
        return web.Response(status=status, body=answer, headers={"Content-Type": content_type})

    def _read_unsettled(self) -> None:
        for file in (self._folder / "records").glob("*.unsettled"):
            with contextlib.suppress(FileNotFoundError):
                self.unsettled[file.read_text()] = file.name


async def _complete(call: Any) -> tuple[int, str, bytes]:
    async with call as response:
        content = await response.read()
        return response.status, response.headers.get("Content-Type", "application/octet-stream"), content


class Recorder:
    """Drives the lab and writes the recording."""

    def __init__(self, layout: Layout, out: Path, cluster: Cluster, js: JetStreamContext) -> None:
        self._layout = layout
        self._out = out
        self._cluster = cluster
        self._js = js
        self._count = 0

    def change(self, verb: str, *components: str) -> None:
        """Stop or start processes of the lab."""
        for component in components:
            assert commands.change(self._layout.dir, verb, component, print) == 0

    async def until(self, what: str, true: Callable[[], Awaitable[bool]]) -> None:
        """Wait until a condition is true."""
        try:
            async with asyncio.timeout(DEADLINE):
                while not await true():  # noqa: ASYNC110 the roles are other processes
                    await asyncio.sleep(0.1)
        except TimeoutError:
            raise SystemExit(f"skew-recording: {what}: not within {DEADLINE:.0f} s") from None

    async def messages(self, stream: str) -> list[Json]:
        """Return all messages of a stream."""
        state = (await self._js.stream_info(stream)).state
        found = []
        for sequence in range(max(state.first_seq, 1), state.last_seq + 1):
            message = await self._js.get_msg(stream, sequence)
            data, headers = message.data or b"", message.headers or {}
            found.append({"subject": message.subject, "headers": headers, "payload": data.decode()})
        return found

    async def stage(self, stage: str, interface: str) -> None:
        """Wait for the event of a stage of an interface."""

        async def published() -> bool:
            return any(
                message["subject"].split(".")[1] == stage
                and json.loads(message["payload"])["operation"]["interface"] == interface
                for message in await self.messages("HOTPLUG")
            )

        await self.until(f"event {stage} of {interface}", published)

    async def status_of(self, interface: str) -> Json | None:
        """Return the hot-plug status of an interface."""
        body = await self._cluster.call("GET", f"{SUBRESOURCES}/virtualmachineinstances/{VM}/interfaces")
        return next((item for item in body.get("items", ()) if item["interface"] == interface), None)

    async def complete(self, interface: str, *, link_state: str | None = None) -> None:
        """Wait until the guest agent lists an interface (with a link state)."""

        async def listed() -> bool:
            item = await self.status_of(interface) or {}
            agent = "guest-agent" in item.get("infoSource", "")
            return agent and "waitingFor" not in item and link_state in (None, item.get("linkState"))

        await self.until(f"{interface} complete", listed)

    async def gone(self, interface: str) -> None:
        """Wait until an interface is gone from the VMI's spec."""

        async def absent() -> bool:
            vmi = await self._cluster.call("GET", f"{OBJECTS['VirtualMachineInstance']}/{VM}")
            nics = vmi["spec"]["domain"]["devices"]["interfaces"]
            return interface not in {nic["name"] for nic in nics} and await self.status_of(interface) is None

        await self.until(f"{interface} gone", absent)

    async def launcher_annotations(self) -> dict[str, str]:
        """Return the annotations of the VM's launcher pod."""
        pods = await self.list_objects("Pod")
        (pod,) = (pod for pod in pods if pod["metadata"]["name"].startswith(f"virt-launcher-{VM}-"))
        annotations: dict[str, str] = pod["metadata"].get("annotations", {})
        return annotations

    async def snapshot(self, label: str) -> None:
        """Write the objects, the hot-plug status, the bucket and the multus daemon's records, once they do not change.

        A stage is published before the roles have written all that follows from it.
        """
        self._count += 1
        document = await self._read_state()

        async def unchanged() -> bool:
            nonlocal document
            await asyncio.sleep(SETTLE)
            before, document = document, await self._read_state()
            return before == document

        await self.until(f"unchanged objects ({label})", unchanged)
        self.write(f"snapshots/{self._count:02}-{label}.json", document)

    async def _read_state(self) -> Json:
        path = f"/virtualmachineinstances/{VM}/interfaces?stored=true"
        sandboxes = self._layout.state / "cni" / "multus" / "sandboxes"
        return {
            "objects": {kind: await self.list_objects(kind) for kind in SNAPSHOT_KINDS},
            "interfaces": await self._cluster.call("GET", SUBRESOURCES + path),
            "bucket": await self._bucket(),
            "records": {file.name: file.read_text() for file in sorted(sandboxes.glob("*.json"))},
        }

    async def list_objects(self, kind: str) -> list[Json]:
        """Return all objects of a kind, without what the server alone reads."""
        body = await self._cluster.call("GET", OBJECTS[kind])
        items: list[Json] = body["items"]
        for item in items:
            item["metadata"].pop("managedFields", None)
        return items

    async def _bucket(self) -> dict[str, str]:
        bucket = await self._js.key_value("hotplug-status")
        try:
            keys = await bucket.keys()
        except NoKeysError:
            return {}
        return {key: ((await bucket.get(key)).value or b"").decode() for key in keys}

    async def request(self, resource: str, verb: str, interface: str, network: str = "", status: int = 202) -> None:
        """Send a request to plug or unplug an interface; it must have this status."""
        body = {"name": interface} | ({"networkAttachmentDefinitionName": network} if network else {})
        exchange = await self._cluster.record("PUT", f"/{resource}/{VM}/{verb}", body)
        assert exchange["status"] == status, exchange

    def write(self, name: str, document: Any) -> None:
        """Write one file of the recording."""
        file = self._out / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(json.dumps(document, indent=1, ensure_ascii=False) + "\n")
