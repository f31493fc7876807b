"""Replays a recording against hotnic's multus daemon, on real network namespaces and with real CNI plugins.

The recorded bytes are sent as they are, apart from paths of the node: those are directories of the test.
:mod:`tests.support.multus_wire.comparison` compares the responses.
"""

import asyncio
import base64
import binascii
import contextlib
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

from schemas.kubernetes.networks import NETWORK_STATUS, NETWORKS
from tests.support.kube.node_kube import EVENTS, PODS
from tests.support.multus_wire.comparison import (
    DrawnNames,
    Fields,
    differences,
    event_differences,
    response_fields,
)
from tests.support.multus_wire.recording import HttpMessage, Json, WireExchange, WireRecording, WireStep
from tests.support.node import netns as namespaces
from tests.support.node.multus_daemon import Daemon

HOST = Path("/proc/self/ns/net")
BRIDGES = ("peer0", "br-a", "br-b", "br-c", "br-f")
RESPONSE_DEADLINE = 60.0


@dataclass
class NodePaths:
    """The directories of the test that stand for those of the recorded node.

    :ivar folder: the directory of everything.
    """

    folder: Path
    _real: Mapping[str, str] = field(init=False)

    def __post_init__(self) -> None:
        self._real = {
            "/host/etc/cni/net.d": str(self.folder / "conf"),
            "/var/run/netns": str(self.folder / "netns"),
            "/opt/cni/bin": str(self.folder / "bin"),
            # The plugin's own default is a directory of the node.
            '"host-local"': f'"host-local", "dataDir": "{self.folder / "leases"}"',
        }

    def here(self, text: str) -> str:
        """Return a recorded text with the paths of the test."""
        for recorded, real in self._real.items():
            text = text.replace(recorded, real)
        return text

    def recorded(self, text: str) -> str:
        """Return a text of the test with the recorded paths."""
        for recorded, real in self._real.items():
            text = text.replace(real, recorded)
        return text

    def request(self, request: HttpMessage) -> HttpMessage:
        """Return a recorded request with the paths of the test; anything but a CNI call stays as it is."""
        try:
            document = json.loads(request.body)
            env = {key: self.here(value) for key, value in document["env"].items()}
        except (ValueError, TypeError, KeyError):
            return request
        document = {**document, "env": env}
        with contextlib.suppress(KeyError, binascii.Error):
            config = base64.b64decode(document["config"], validate=True).decode()
            document["config"] = base64.b64encode(self.here(config).encode()).decode()
        return replace(request, body=json.dumps(document).encode())

    def response(self, response: HttpMessage | None) -> HttpMessage | None:
        """Return a response with the recorded paths."""
        return response and replace(response, body=self.recorded(response.body.decode()).encode())


@contextlib.contextmanager
def recorded_node(recording: WireRecording, paths: NodePaths) -> Iterator[None]:
    """Create the pods' network namespaces and the bridges while the context is open."""
    (paths.folder / "netns").mkdir()
    netns = [Path(paths.here(pod["netns"])) for pod in recording.pods.values()]
    with contextlib.ExitStack() as stack:
        for number, bridge in enumerate(BRIDGES):
            # With a MAC of its own: the plugin's CHECK fails as soon as a bridge takes over the MAC of another port.
            namespaces.ip(HOST, "link", "add", bridge, "address", f"02:00:00:00:01:{number:02}", "type", "bridge")
            stack.callback(namespaces.ip, HOST, "link", "del", bridge)
        for path in netns:
            stack.enter_context(namespaces.namespace(path.parent, path.name))
            stack.callback(_delete_links, path)
        yield


def _delete_links(netns: Path) -> None:
    """Delete the links that the replay has left: their host ends would outlive the namespace for a moment."""
    for link in json.loads(namespaces.ip(netns, "-j", "link")):
        if link["ifname"] != "lo":
            namespaces.ip(netns, "link", "del", link["ifname"])


@dataclass
class Replay:
    """A replay of one recording.

    :ivar daemon: hotnic's daemon.
    :ivar found: hotnic's values where they differ, by exchange (or step) and field.
    """

    recording: WireRecording
    daemon: Daemon
    paths: NodePaths
    found: dict[tuple[str, str], object] = field(default_factory=dict)
    _upstream: DrawnNames = field(default_factory=DrawnNames)
    _hotnic: DrawnNames = field(default_factory=DrawnNames)
    _events: dict[str, tuple[set[str], set[str]]] = field(default_factory=dict)

    def prepare(self) -> None:
        """Create the primary network, the NADs and the pods."""
        (self.daemon.config.conf_dir / "10-peer.conflist").write_text(self.paths.here(self.recording.primary))
        for name, config in self.recording.nads.items():
            self.daemon.nad(name, self.paths.here(config))
        for name, pod in self.recording.pods.items():
            meta = {"uid": pod["uid"], "annotations": {NETWORKS: pod["networks"]}}
            self.daemon.kube.put(PODS, pod["namespace"], name, metadata=meta, spec={"nodeName": "lab"})

    async def run(self) -> None:
        """Send every request in the recorded order, and compare."""
        for step in self.recording.steps:
            if step.name == "runtime-del-e":
                self.daemon.kube.delete(PODS, "default", "pod-e")
            if step.pod is not None and step.networks is not None:
                self.daemon.kube.annotate(PODS, "default", step.pod, {NETWORKS: step.networks})
            for exchange in step.exchanges:
                await self.send(exchange)
            await self._compare_pod(step)

    async def send(self, exchange: WireExchange) -> None:
        """Send one request, and compare the response."""
        response = self.paths.response(await send(self.daemon.socket, self.paths.request(exchange.request)))
        upstream = response_fields(exchange.response, self._upstream)
        self._note(exchange.label, differences(upstream, response_fields(response, self._hotnic)))

    async def _compare_pod(self, step: WireStep) -> None:
        if step.pod is None or not step.events:
            return
        await self.daemon.parts.pod_events.flush()
        before = self._events.get(step.pod, (set(), set()))
        after = ({text for text in step.events if text.startswith("multus ")}, set(self._recorded_events(step.pod)))
        self._events[step.pod] = after
        new = (sorted(now - then) for now, then in zip(after, before, strict=True))
        self._note(f"{step.name}: Events", event_differences(*new))
        # Later steps have the entries that the networks controller has written.
        if any(exchange.client == "multus-shim" for exchange in step.exchanges):
            status: list[Json] = json.loads(self.daemon.kube.annotations(PODS, "default", step.pod)[NETWORK_STATUS])
            upstream = self._upstream.network_status(step.status_entries)
            self._note(f"{step.name}: network-status", differences(upstream, self._hotnic.network_status(status)))

    def _recorded_events(self, pod: str) -> Iterator[str]:
        for event in self.daemon.kube.of(EVENTS):
            if event["involvedObject"]["name"] == pod:
                # The component's name is hotnic's own.
                source = event["source"]["component"].removeprefix("hotnic-")
                yield f"{source} {event['type']} {event['reason']}: {event['message']}"

    def _note(self, label: str, fields: Fields) -> None:
        self.found |= {(label, key): value for key, value in fields.items()}


async def send(socket: Path, request: HttpMessage) -> HttpMessage | None:
    """Send a request on a connection of its own; return ``None`` if it is closed without a response."""
    async with asyncio.timeout(RESPONSE_DEADLINE):
        reader, writer = await asyncio.open_unix_connection(socket)
        try:
            writer.write(request.encode())
            # Every response ends its connection.
            raw = await reader.read()
        finally:
            writer.close()
            await writer.wait_closed()
    return HttpMessage.parse(raw) if raw else None
