"""The multus daemon inside the test's own process, on a real unix socket and with directories of its own.

Kubernetes is scripted and telemetry is recorded. Plugins, network namespaces and records are real.
"""

import base64
import contextlib
import json
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import msgspec
import structlog
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

from schemas.multus import SOCKET_NAME, InterfaceAttributes, build_delegate_request
from services.common.http.client import UnixHttpClient
from services.common.http.server import serve
from services.common.kube.client import Kube
from services.common.netlink.pool import NetnsPool
from services.common.telemetry import Telemetry
from services.multus.assembly import DaemonParts, assemble
from services.multus.config.settings import Config, Settings, read_config
from services.multus.records.sandbox import SandboxState
from services.multus.records.store import Records
from services.multus.sandboxes.adoption import Adoption
from services.multus.sandboxes.sweep import SandboxLister, Sweep
from tests.support.kube.node_kube import NADS, PODS, FakeKube, serving_kube, write_kubeconfig
from tests.support.telemetry.spans import recording_telemetry

POD = "virt-launcher-vm1-abcde"
POD_UID = "22222222-2222-4222-8222-222222222222"
SANDBOX = "0123456789abcdef"
Answer = tuple[int, Any]


@dataclass
class Daemon:
    """A running daemon and its environment.

    :ivar make_parts: builds the parts of a successor with the same directories.
    :ivar stopping: whether the daemon is shutting down, as ``/readyz`` reports.
    """

    folder: Path
    config: Config
    kube: FakeKube
    parts: DaemonParts
    http: UnixHttpClient
    spans: InMemorySpanExporter
    make_parts: Callable[[], DaemonParts]
    stopping: bool = False

    @property
    def socket(self) -> Path:
        """Path of the daemon's socket."""
        return self.config.socket_dir / SOCKET_NAME

    @property
    def records(self) -> Records:
        """The daemon's records."""
        return self.parts.records

    @property
    def sweep(self) -> Sweep:
        """The daemon's sweep."""
        return self.parts.sweep

    @property
    def adoption(self) -> Adoption:
        """The daemon's adoption of multus-cni's sandboxes."""
        return self.parts.adoption

    def record(self, sandbox: str = SANDBOX) -> SandboxState | None:
        """Return the record of a sandbox."""
        return self.records.read(sandbox)

    def pod(self, annotations: dict[str, str] | None = None, **metadata: Any) -> None:
        """Create or replace the pod."""
        meta = {"uid": POD_UID, "annotations": annotations or {}, **metadata}
        self.kube.put(PODS, "default", POD, metadata=meta, spec={"nodeName": "lab"}, status={"phase": "Pending"})

    def nad(self, name: str, config: dict[str, Any] | str, namespace: str = "default", **metadata: Any) -> None:
        """Create or replace a NAD."""
        text = config if isinstance(config, str) else json.dumps(config)
        self.kube.put(NADS, namespace, name, metadata=metadata, spec={"config": text})

    def annotations(self) -> dict[str, str]:
        """Return the pod's current annotations."""
        return self.kube.annotations(PODS, "default", POD)

    async def delegate(
        self,
        command: str,
        netns: Path | str,
        ifname: str,
        config: dict[str, Any] | None,
        attributes: InterfaceAttributes | None = None,
        *,
        network: str = "",
    ) -> Answer:
        """Call ``/delegate`` as the networks controller does; without a configuration as hotnic's does by name."""
        request = build_delegate_request(
            command=command,
            sandbox_id=SANDBOX,
            netns=str(netns),
            interface=ifname,
            pod_namespace="default",
            pod_name=POD,
            pod_uid=POD_UID,
            config=json.dumps(config).encode() if config is not None else b"",
            attributes=attributes,
            network=network,
        )
        return await self.post("/delegate", msgspec.to_builtins(request))

    async def cni(self, command: str, netns: Path | str, config: dict[str, Any] | None = None) -> Answer:
        """Call ``/cni`` as the shim does."""
        return await self.post(
            "/cni",
            {
                "env": cni_environment(command, netns),
                "config": base64.b64encode(json.dumps(config or self.conf).encode()).decode(),
            },
        )

    @property
    def conf(self) -> dict[str, Any]:
        """The runtime's configuration."""
        return {
            "cniVersion": "1.0.0",
            "name": "multus-cni-network",
            "type": "hotnic-multus",
            "clusterNetwork": str(self.config.conf_dir / "10-primary.conflist"),
            "daemonSocketDir": str(self.config.socket_dir),
        }

    async def post(self, path: str, document: Any) -> Answer:
        """Send a request; return status and body, decoded if it is JSON."""
        status, body = await self.http.request("POST", path, json=document)
        try:
            return status, json.loads(body) if body else None
        except ValueError:
            return status, body.decode()


def cni_environment(command: str, netns: Path | str, sandbox: str = SANDBOX) -> dict[str, str]:
    """Return the environment that containerd sets for a plugin."""
    return {
        "CNI_COMMAND": command,
        "CNI_CONTAINERID": sandbox,
        "CNI_NETNS": str(netns),
        "CNI_IFNAME": "eth0",
        "CNI_ARGS": f"K8S_POD_UID={POD_UID};K8S_POD_NAMESPACE=default;K8S_POD_NAME={POD};"
        f"K8S_POD_INFRA_CONTAINER_ID={sandbox};IgnoreUnknown=1",
        "CNI_PATH": "/opt/cni/bin",
    }


@contextlib.asynccontextmanager
async def running_daemon(
    folder: Path,
    plugins: Path,
    *,
    timeout: float = 10.0,
    call_timeout: float = 90.0,
    runtime: SandboxLister | None = None,
    telemetry: Telemetry | None = None,
    host_root: str = "/",
    **keys: Any,
) -> AsyncIterator[Daemon]:
    """Run a daemon while the context is open. Its pod exists and requests no networks.

    :param folder: the directory of everything that the daemon writes.
    :param plugins: the plugin directory.
    :param timeout: seconds that one plugin may take.
    :param call_timeout: seconds that one call may take.
    :param runtime: lists the container runtime's sandboxes.
    :param telemetry: replaces the telemetry that records spans.
    :param host_root: where the node's file system is mounted.
    :param keys: further keys of ``daemon-config.json``.
    """
    for name in ("conf", "state", "named"):
        (folder / name).mkdir(exist_ok=True)
    file = folder / "daemon-config.json"
    file.write_text(json.dumps({"confDir": str(folder / "named"), **keys}))
    settings = Settings(
        socket_dir=str(folder / "run"),
        cni_conf_dir=str(folder / "conf"),
        cni_bin_dir=str(plugins),
        cni_state_dir=str(folder / "state"),
        multus_config=str(file),
        plugin_timeout=timeout,
        call_timeout=call_timeout,
        host_root=host_root,
        pod_resources_socket=str(folder / "kubelet.sock"),
        device_info_dir=str(folder / "devinfo"),
    )
    config, _ = read_config(settings)
    log = structlog.get_logger()
    recorded, spans = recording_telemetry("multus")
    telemetry = telemetry or recorded
    async with contextlib.AsyncExitStack() as stack:
        scripted = await stack.enter_async_context(serving_kube(FakeKube()))
        kubeconfig = write_kubeconfig(folder / "kubeconfig", scripted.url)
        kube = await Kube.connect(kubeconfig=kubeconfig, telemetry=telemetry, user_agent="test")
        stack.push_async_callback(kube.close)
        netns = NetnsPool(config.host_root)
        stack.callback(netns.close)
        make_parts = partial(
            assemble,
            settings,
            config,
            kube=kube,
            netns=netns,
            telemetry=telemetry,
            log=log,
            stopping=lambda: daemon.stopping,
            runtime=runtime,
            pod_timeout=0.3,
            readiness_timeout=0.6,
            lock_timeout=5.0,
        )
        parts = make_parts()
        stack.push_async_callback(parts.records.flush)
        stack.push_async_callback(parts.pod_events.flush)
        http = UnixHttpClient(str(config.socket_dir / SOCKET_NAME), recording_telemetry("client")[0])
        stack.push_async_callback(http.close)
        daemon = Daemon(folder, config, scripted, parts, http, spans, make_parts)
        daemon.pod()
        await stack.enter_async_context(serve(parts.app, f"unix:{daemon.socket}"))
        yield daemon
