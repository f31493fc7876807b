"""Kubernetes itself as a lab's cluster: etcd, kube-apiserver, its controllers and its scheduler, with RBAC.

`scripts/tools/interop-tools` builds the programs. The command lines are also those of the tests that run a control
plane without a lab. `access.py` gives the roles their rights and tokens; `kubelet.py` is the node.
"""

from __future__ import annotations

import json
import os
import re
import ssl
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from lab.apiserver.identity import pki
from lab.layout import LabIdentity, Layout
from lab.supervisor import readiness
from lab.tools import ToolsMissingError

ETCD_PORT: Final = 2379
ETCD_PEER_PORT: Final = 2380
CONTROLLER_MANAGER_PORT: Final = 10257
SCHEDULER_PORT: Final = 10259
"""Ports in the lab's network namespace; the API server has the one of `LabIdentity`."""

NODE_ADDRESS: Final = "198.18.0.1"
"""Address of a node with a kubelet, which refuses loopback addresses, in the lab's network namespace."""

SERVICE_ACCOUNTS: Final = "service-accounts"
"""The pair of files with the key that signs the tokens of service accounts."""

AUDIT_POLICY: Final[dict[str, Any]] = {
    "apiVersion": "audit.k8s.io/v1",
    "kind": "Policy",
    "omitStages": ["RequestReceived"],
    "rules": [{"level": "Metadata"}],
}


@dataclass(frozen=True, slots=True)
class ControlPlanePrograms:
    """Paths of the programs of one Kubernetes version."""

    etcd: Path
    apiserver: Path
    controller_manager: Path
    helm: Path
    """Renders the roles' RBAC from the chart."""

    @property
    def gates(self) -> tuple[str, ...]:
        """Return the option for what later versions do without it: tokens that are bound to a Node (on since 1.31)."""
        version = [int(number) for number in re.findall(r"\d+", self.apiserver.parent.name)]
        return ("--feature-gates=ServiceAccountTokenNodeBinding=true",) if version < [1, 31] else ()

    @classmethod
    def find(cls, version: str) -> ControlPlanePrograms:
        """Return the programs that `scripts/tools/interop-tools` has built.

        :param version: such as ``1.36``.
        :raises ToolsMissingError: one of them is not built.
        """
        module = f"kubernetes-{version}"
        return cls(
            etcd=newest_built("etcd", "etcd"),
            apiserver=newest_built(module, "kube-apiserver"),
            controller_manager=newest_built(module, "kube-controller-manager"),
            helm=newest_built("helm", "helm"),
        )


def newest_built(module: str, program: str) -> Path:
    """Return the newest version of a program that `scripts/tools/interop-tools` has built.

    :param module: folder of the Go module in `tests/interop/tools`.
    :raises ToolsMissingError: it is not built.
    """
    cache = os.environ.get("XDG_CACHE_HOME") or str(Path.home() / ".cache")
    found = list((Path(cache) / "hotnic" / "interop" / module).glob(f"v*/{program}"))
    if not found:
        raise ToolsMissingError(f"{program} is not built: run `make interop-tools TOOLS={module}`, which needs Go")
    return max(found, key=lambda path: [int(number) for number in re.findall(r"\d+", path.parent.name)])


def provide(version: str, more: Sequence[str] = ()) -> None:
    """Build the programs of a Kubernetes version that are missing, where the sources of hotnic are.

    :param more: further modules in `tests/interop/tools`.
    :raises ToolsMissingError: one of them is missing, and cannot be built.
    """
    script = Path(__file__).resolve().parents[3] / "scripts" / "tools" / "interop-tools"
    modules = ("etcd", "helm", f"kubernetes-{version}", *more)
    if script.is_file() and subprocess.run([script, *modules], check=False).returncode:
        raise ToolsMissingError(f"Kubernetes {version} cannot be built")
    ControlPlanePrograms.find(version)


@dataclass(frozen=True, slots=True)
class KubernetesCluster:
    """A control plane in the lab's namespaces."""

    layout: Layout
    identity: LabIdentity
    programs: ControlPlanePrograms
    scheduler: Path | None = None
    """kube-scheduler, for a node with a kubelet (`kubelet.py`); None if `lab/node` is both."""

    @property
    def endpoint(self) -> str:
        """Return the URL."""
        return f"https://127.0.0.1:{self.identity.apiserver_port}"

    @property
    def api_host(self) -> str:
        """Return the node's address, or a name: Kubernetes refuses loopback addresses in Endpoints, but no names."""
        return NODE_ADDRESS if self.scheduler else "localhost"

    @property
    def components(self) -> tuple[str, ...]:
        """Return the processes in the order of their start."""
        return ("etcd", "apiserver", "controller-manager", *(["scheduler"] if self.scheduler else []))

    @property
    def relayed_port(self) -> int | None:
        """Return the API server's port, which is free inside although it is in use outside."""
        return self.identity.apiserver_port

    def command(self, component: str) -> tuple[str, ...]:
        """Return the command line of a process."""
        folder = self.layout.apiserver
        match component:
            case "etcd":
                return (str(self.programs.etcd), *etcd_arguments(folder, ETCD_PORT, ETCD_PEER_PORT))
            case "apiserver":
                arguments = apiserver_arguments(folder, self.identity.apiserver_port, ETCD_PORT)
                # Without a kube-proxy, only Endpoints lead to the pods of a Service.
                routing = ("--enable-aggregator-routing",) if self.scheduler else ()
                return (str(self.programs.apiserver), *arguments, *routing, *self.programs.gates)
            case "scheduler":
                return (str(self.scheduler), *scheduler_arguments(folder, SCHEDULER_PORT))
            case _:
                arguments = controller_manager_arguments(folder, CONTROLLER_MANAGER_PORT, node=bool(self.scheduler))
                return (str(self.programs.controller_manager), *arguments)

    def inherited_fds(self, component: str) -> tuple[int, ...]:
        """Return none: the programs create their sockets themselves."""
        return ()

    async def wait_ready(self, component: str) -> None:
        """Return once etcd and the controllers accept connections, and /readyz of the API server returns 200."""
        match component:
            case "etcd":
                await readiness.wait_for_port(ETCD_PORT)
            case "apiserver":
                await wait_for_api(self.layout.apiserver, self.identity.apiserver_port)
            case "scheduler":
                await readiness.wait_for_port(SCHEDULER_PORT)
            case _:
                await readiness.wait_for_port(CONTROLLER_MANAGER_PORT)


def audit_log(directory: Path) -> Path:
    """Return the file with every request and its answer, without the objects."""
    return directory / "audit.log"


def prepare(directory: Path, server: str) -> None:
    """Write the files that the control plane needs besides those of `pki.ensure_pki`.

    :param directory: the folder of the control plane.
    :param server: URL of the API server.
    """
    pki.ensure_pki(directory)
    pki.issue_client(directory, SERVICE_ACCOUNTS, [])
    for name in ("controller-manager", "scheduler"):
        pair = pki.issue_client(directory, f"system:kube-{name}", [], file_name=name)
        pki.write_kubeconfig(directory / f"{name}.kubeconfig", server, directory, pair)
    (directory / "audit-policy.yaml").write_text(json.dumps(AUDIT_POLICY))


def etcd_arguments(directory: Path, port: int, peer_port: int) -> tuple[str, ...]:
    """Return the options of an etcd whose data is worth nothing after a crash."""
    client, peer = f"http://127.0.0.1:{port}", f"http://127.0.0.1:{peer_port}"
    return (
        f"--data-dir={directory / 'etcd'}",
        f"--listen-client-urls={client}",
        f"--advertise-client-urls={client}",
        f"--listen-peer-urls={peer}",
        f"--initial-advertise-peer-urls={peer}",
        f"--initial-cluster=default={peer}",
        "--unsafe-no-fsync",
        "--log-level=warn",
    )


def apiserver_arguments(directory: Path, port: int, etcd_port: int) -> tuple[str, ...]:
    """Return the options of a kube-apiserver with RBAC and the aggregation layer."""
    serving, proxy = pki.pair(directory, "apiserver"), pki.pair(directory, "front-proxy-client")
    accounts, admin = pki.pair(directory, SERVICE_ACCOUNTS), pki.pair(directory, "admin")
    return (
        f"--etcd-servers=http://127.0.0.1:{etcd_port}",
        "--bind-address=127.0.0.1",
        "--advertise-address=127.0.0.1",
        f"--secure-port={port}",
        # The endpoint of the Service `kubernetes` may not be on loopback, and no pod needs it.
        "--endpoint-reconciler-type=none",
        "--service-cluster-ip-range=10.96.0.0/16",
        f"--tls-cert-file={serving.cert}",
        f"--tls-private-key-file={serving.key}",
        f"--client-ca-file={pki.ca_file(directory)}",
        # For `kubectl logs` and `kubectl exec`; nothing resolves the names of nodes.
        "--kubelet-preferred-address-types=InternalIP",
        f"--kubelet-client-certificate={admin.cert}",
        f"--kubelet-client-key={admin.key}",
        "--authorization-mode=Node,RBAC",
        "--enable-admission-plugins=NodeRestriction",
        "--service-account-issuer=https://kubernetes.default.svc",
        f"--service-account-key-file={accounts.cert}",
        f"--service-account-signing-key-file={accounts.key}",
        f"--requestheader-client-ca-file={pki.ca_file(directory, 'front-proxy-ca')}",
        "--requestheader-allowed-names=front-proxy-client",
        "--requestheader-username-headers=X-Remote-User",
        "--requestheader-group-headers=X-Remote-Group",
        "--requestheader-extra-headers-prefix=X-Remote-Extra-",
        f"--proxy-client-cert-file={proxy.cert}",
        f"--proxy-client-key-file={proxy.key}",
        f"--audit-policy-file={directory / 'audit-policy.yaml'}",
        f"--audit-log-path={audit_log(directory)}",
        # A request is in the log before it is answered.
        "--audit-log-mode=blocking",
        "--profiling=false",
    )


def controller_manager_arguments(directory: Path, port: int, *, node: bool = False) -> tuple[str, ...]:
    """Return the options of a kube-controller-manager.

    :param node: whether the controllers run that need a kubelet's heartbeats.
    """
    controllers = "*" if node else "*,-node-lifecycle-controller,-taint-eviction-controller"
    return (
        f"--kubeconfig={directory / 'controller-manager.kubeconfig'}",
        "--bind-address=127.0.0.1",
        f"--secure-port={port}",
        f"--cert-dir={directory / 'controller-manager'}",
        "--leader-elect=false",
        "--use-service-account-credentials=true",
        f"--service-account-private-key-file={pki.pair(directory, SERVICE_ACCOUNTS).key}",
        f"--root-ca-file={pki.ca_file(directory)}",
        f"--controllers={controllers}",
        "--profiling=false",
    )


def scheduler_arguments(directory: Path, port: int) -> tuple[str, ...]:
    """Return the options of a kube-scheduler."""
    kubeconfig = directory / "scheduler.kubeconfig"
    return (
        f"--kubeconfig={kubeconfig}",
        f"--authentication-kubeconfig={kubeconfig}",
        f"--authorization-kubeconfig={kubeconfig}",
        "--bind-address=127.0.0.1",
        f"--secure-port={port}",
        "--leader-elect=false",
        "--profiling=false",
    )


async def wait_for_api(directory: Path, port: int) -> None:
    """Return once GET /readyz of the API server returns 200 to the administrator."""
    await readiness.wait_for_readyz(administrator(directory, port))


async def wait_for_aggregated_api(directory: Path, port: int) -> None:
    """Return once the API server reaches the api role.

    :param directory: the folder of the control plane.
    :param port: the API server's port.
    """
    path = "/apis/subresources.hotnic.io/v1"
    await readiness.wait_for_answer(administrator(directory, port), path, lambda status, _body: status == 200)


def administrator(directory: Path, port: int) -> readiness.TlsServer:
    """Return how to connect to the API server as the administrator."""
    admin = pki.pair(directory, "admin")
    context = ssl.create_default_context(cafile=str(pki.ca_file(directory)))
    context.load_cert_chain(admin.cert, admin.key)
    return readiness.TlsServer(port, context)
