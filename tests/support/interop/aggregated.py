"""Two replicas of the api as host processes behind the aggregation layer of a real Kubernetes API server.

They have an administrator's credentials: the rights of the api are tested with the chart. Their addresses are on a
bridge, because Kubernetes refuses loopback addresses of a Service.
"""

import base64
import contextlib
import json
import os
import ssl
import subprocess
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from lab.apiserver.identity import pki
from services.api.discovery import GROUPS
from tests.support.interop.releases import KUBEVIRT_CRDS, NAD_CRD, NAMESPACE, NODE, installed_crds, write
from tests.support.kube.control_plane import STOP_DEADLINE, ControlPlane, Object, until
from tests.support.node.host_pods import BRIDGE, HOTNIC, pod_network

ADDRESSES = ("198.18.0.21", "198.18.0.22")
PORT = 8443
SERVICE = "hotnic-api"
SECRET = "hotnic-api-tls"
HOST = f"{SERVICE}.{NAMESPACE}.svc"
VMS = "default"
STATUS = f"/apis/subresources.hotnic.io/v1/namespaces/{VMS}/virtualmachineinstances/vm1/interfaces"
PLUG = f"/apis/subresources.hotnic.io/v1/namespaces/{VMS}/virtualmachineinstances/vm1/addinterface"
INTERVAL = 0.2
"""Seconds between two requests of the load: five in a second."""


@dataclass
class Replicas:
    """The replicas, and what registers them.

    :ivar provider: ``self`` or ``files``: where the serving certificate comes from.
    :ivar folder: for logs and the files of the serving certificate.
    """

    cluster: ControlPlane
    provider: str
    folder: Path
    processes: dict[str, subprocess.Popen[bytes]] = field(default_factory=dict)

    @property
    def logs(self) -> dict[str, str]:
        """What the replicas have logged."""
        return {address: (self.folder / f"{address}.log").read_text() for address in self.processes}

    def until_logged(self, text: str, times: int) -> None:
        """Wait until every replica has logged a text this many times."""
        until(
            lambda: all(log.count(text) >= times for log in self.logs.values()),
            lambda: f"{times} times {text!r}:\n{ {address: log[-2000:] for address, log in self.logs.items()} }",
        )

    def start(self, address: str) -> None:
        """Start the replica of an address and wait until it is ready."""
        health = self.folder / f"{address}.sock"
        certificate = {"HOTNIC_TLS_SECRET": SECRET}
        if self.provider == "files":
            certificate = {"HOTNIC_TLS_CERT": f"{self.folder}/tls.crt", "HOTNIC_TLS_KEY": f"{self.folder}/tls.key"}
        environment = {
            "PATH": os.environ["PATH"],
            "HOME": os.devnull,
            "KUBECONFIG": str(self.cluster.kubeconfig),
            "NATS_URL": "nats://127.0.0.1:1",
            "HOTNIC_VM_OWNER": "hotnic",
            "HOTNIC_NAMESPACE": NAMESPACE,
            "HOTNIC_SERVICE_NAME": SERVICE,
            "HOTNIC_LISTEN": f"{address}:{PORT}",
            "HOTNIC_HEALTH_LISTEN": f"unix:{health}",
        }
        log = self.folder / f"{address}.log"
        with log.open("ab") as output:
            process = subprocess.Popen(
                [str(HOTNIC), "run", "api"], stdout=output, stderr=output, env=environment | certificate
            )
        self.processes[address] = process
        until(lambda: self.serves(address), lambda: f"{address} serves:\n{log.read_text()[-4000:]}")

    def serves(self, address: str) -> bool:
        """Return whether a replica answers."""
        process = self.processes[address]
        assert process.poll() is None, (self.folder / f"{address}.log").read_text()[-4000:]
        context = ssl.create_default_context()
        context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
        try:
            with urllib.request.urlopen(f"https://{address}:{PORT}/readyz", context=context, timeout=30):
                return True
        except OSError:
            return False

    def stop(self) -> None:
        """Stop every replica."""
        for process in self.processes.values():
            process.terminate()
        for process in self.processes.values():
            process.wait(STOP_DEADLINE)

    def trust(self, *cas: str) -> None:
        """Write the CAs into the APIServices, as cert-manager's injector does.

        :param cas: file names of CAs, see :meth:`issue`.
        """
        folder = self.cluster.kubeconfig.parent
        bundle = b"".join(pki.ca_file(folder, ca).read_bytes() for ca in cas)
        patch = json.dumps({"spec": {"caBundle": base64.b64encode(bundle).decode()}})
        for name in api_services():
            self.cluster.kubectl("patch", "apiservice", name, "--type=merge", "--patch", patch)

    def issue(self, ca: str) -> None:
        """Write a new serving certificate of a CA into the replicas' files; the CA is made if it is missing."""
        folder = self.cluster.kubeconfig.parent
        pki.ensure_ca(folder, ca, ca)
        pair = pki.issue_server(folder, "hotnic-api", [HOST], [], ca=ca, file_name=f"{ca}-serving")
        for source, name in ((pair.key, "tls.key"), (pair.cert, "tls.crt")):
            new = self.folder / f"{name}.new"
            new.write_bytes(source.read_bytes())
            new.replace(self.folder / name)

    def bundles(self) -> list[str]:
        """Return the ``caBundle`` of every APIService."""
        return [self.cluster.get("apiservice", name)["spec"].get("caBundle", "") for name in api_services()]


def api_services() -> list[str]:
    """Return the names of the APIServices."""
    return [f"{version}.{group}" for group, versions in GROUPS.items() for version in versions]


@contextlib.contextmanager
def replicas(cluster: ControlPlane, folder: Path, provider: str) -> Iterator[Replicas]:
    """Run two replicas, registered and available, with one VM; remove everything at the end."""
    found = Replicas(cluster, provider, folder)
    with contextlib.ExitStack() as stack:
        stack.enter_context(pod_network())
        for address in ADDRESSES:
            subprocess.run(["ip", "address", "add", f"{address}/32", "dev", BRIDGE], check=True)
        stack.enter_context(installed_crds(cluster, (NAD_CRD, *KUBEVIRT_CRDS)))
        cluster.kubectl("create", "namespace", NAMESPACE)
        stack.callback(cluster.kubectl, "delete", "namespace", NAMESPACE, "--timeout=100s")
        cluster.kubectl("create", "--filename", write(cluster, "aggregated", [*_registration(), *_vm()]))
        stack.callback(cluster.kubectl, "delete", "apiservice", *api_services())
        if provider == "files":
            found.issue("serving-1")
            found.trust("serving-1")
        stack.callback(found.stop)
        for address in ADDRESSES:
            found.start(address)
        for name in api_services():
            cluster.kubectl("wait", "--for=condition=Available", f"apiservice/{name}", "--timeout=100s")
        yield found


def _registration() -> list[Object]:
    meta: Object = {"name": SERVICE, "namespace": NAMESPACE}
    ports = [{"name": "https", "port": PORT}]
    subsets = [{"addresses": [{"ip": address} for address in ADDRESSES], "ports": ports}]
    found: list[Object] = [
        {"apiVersion": "v1", "kind": "Service", "metadata": meta},
        # Kubernetes 1.30 reads these, and later versions the EndpointSlices that a controller makes of them.
        {"apiVersion": "v1", "kind": "Endpoints", "metadata": meta, "subsets": subsets},
    ]
    found[0]["spec"] = {"ports": [{"name": "https", "port": 443, "targetPort": PORT}]}
    for group, versions in GROUPS.items():
        for version in versions:
            spec: Object = {"group": group, "version": version, "groupPriorityMinimum": 1000, "versionPriority": 15}
            spec["service"] = {"name": SERVICE, "namespace": NAMESPACE}
            metadata = {"name": f"{version}.{group}"}
            service = {"apiVersion": "apiregistration.k8s.io/v1", "kind": "APIService", "metadata": metadata}
            found.append(service | {"spec": spec})
    return found


def _vm() -> list[Object]:
    metadata = {"name": "vm1", "namespace": VMS}
    spec = {
        "domain": {"devices": {"interfaces": [{"name": "default", "masquerade": {}}]}},
        "networks": [{"name": "default", "pod": {}}],
    }
    config = json.dumps({"cniVersion": "1.0.0", "name": "blue", "type": "bridge"})
    vmi: Object = {"apiVersion": "kubevirt.io/v1", "kind": "VirtualMachineInstance", "metadata": metadata, "spec": spec}
    return [
        vmi | {"status": {"phase": "Running", "nodeName": NODE}},
        {
            "apiVersion": "k8s.cni.cncf.io/v1",
            "kind": "NetworkAttachmentDefinition",
            "metadata": {"name": "blue", "namespace": VMS},
            "spec": {"config": config},
        },
    ]


class Load:
    """Five requests a second to the aggregated API, each on a connection of its own: reads and dry runs in turns.

    :ivar failures: the answers that were no success.
    :ivar answered: the number of answers.
    """

    def __init__(self, cluster: ControlPlane) -> None:
        self._server = cluster.server
        self._context = ssl.create_default_context(cafile=str(cluster.ca))
        admin = pki.pair(cluster.kubeconfig.parent, "admin")
        self._context.load_cert_chain(admin.cert, admin.key)
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run)
        self.failures: list[str] = []
        self.answered = 0

    def __enter__(self) -> "Load":
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join(STOP_DEADLINE)

    def more(self, count: int) -> None:
        """Wait for this many further answers."""
        wanted = self.answered + count
        until(lambda: self.answered >= wanted, lambda: f"{wanted} answers")

    def _run(self) -> None:
        began, sent = time.monotonic(), 0
        while not self._stop.wait(max(0.0, began + sent * INTERVAL - time.monotonic())):
            sent += 1
            try:
                self._read() if sent % 2 else self._dry_run()
            except urllib.error.HTTPError as error:
                self.failures.append(f"request {sent}: {error.code} {error.read(500)!r}")
                error.close()
            except OSError as error:
                self.failures.append(f"request {sent}: {error}")
            self.answered += 1

    def _read(self) -> None:
        with urllib.request.urlopen(self._server + STATUS, context=self._context, timeout=50) as answer:
            assert json.load(answer)["kind"] == "HotplugStatus"

    def _dry_run(self) -> None:
        body = json.dumps({"name": "blue", "networkAttachmentDefinitionName": "blue"}).encode()
        url = f"{self._server}{PLUG}?dryRun=All"
        headers = {"Content-Type": "application/json"}
        request = urllib.request.Request(url, body, headers, method="PUT")
        with urllib.request.urlopen(request, context=self._context, timeout=50) as answer:
            assert answer.status == 202
