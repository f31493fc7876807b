"""A real Kubernetes control plane on loopback: etcd, kube-apiserver and kube-controller-manager, without a node.

Nothing schedules or runs pods. A test that needs a running pod plays the kubelet: `tests/support/node/host_pods.py`.
Pod Security refuses, by default, what the level ``baseline`` refuses, as clusters do that enforce it. Every request is
in the audit log before it is answered.
"""

import contextlib
import json
import os
import ssl
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, TypeVar

import pytest

from lab.apiserver.identity import pki
from lab.supervisor.kubernetes.control_plane import (
    apiserver_arguments,
    audit_log,
    controller_manager_arguments,
    etcd_arguments,
    prepare,
)
from tests.support.interop.jaeger import free_ports
from tests.support.interop.tools import tool
from tests.support.kube.audit_log import AuditedRequest, read_audit_log

START_DEADLINE = 180.0
"""Seconds until the control plane is ready; it takes 10 s."""
COMMAND_DEADLINE = 120.0
"""Seconds for one command of kubectl or helm; each takes less than 3 s."""
DEADLINE = 120.0
"""Seconds for a controller to do its work; it takes less than 5 s."""
STOP_DEADLINE = 120.0
KUBECTL = Path(sys.executable).parent / "kubectl"
"""The client of the lock file: the machine's may be of another version."""
VERSION = "1.36"

Object = dict[str, Any]
T = TypeVar("T")

ADMISSION: Object = {
    "apiVersion": "apiserver.config.k8s.io/v1",
    "kind": "AdmissionConfiguration",
    "plugins": [
        {
            "name": "PodSecurity",
            "configuration": {
                "apiVersion": "pod-security.admission.config.k8s.io/v1",
                "kind": "PodSecurityConfiguration",
                "defaults": {"enforce": "baseline"},
            },
        }
    ],
}


class ControlPlane:
    """A running control plane.

    :ivar server: URL of the API server.
    :ivar kubeconfig: file with the credentials of an administrator.
    :ivar ca: file of the CA that signed the API server's certificate.
    """

    def __init__(self, directory: Path, server: str) -> None:
        self.server = server
        self.kubeconfig = directory / "admin.kubeconfig"
        self.ca = pki.ca_file(directory)
        self._directory = directory

    @property
    def audit_log(self) -> Path:
        """The file with every request."""
        return audit_log(self._directory)

    def environment(self, kubeconfig: Path | None = None) -> dict[str, str]:
        """Return the environment of a client, with caches of its own.

        :param kubeconfig: credentials other than the administrator's.
        """
        return {
            "PATH": os.environ["PATH"],
            "HOME": str(self._directory / "home"),
            "KUBECONFIG": str(kubeconfig or self.kubeconfig),
        }

    def run(
        self,
        program: Path,
        *arguments: str,
        stdin: str | None = None,
        kubeconfig: Path | None = None,
        check: bool = True,
    ) -> subprocess.CompletedProcess[str]:
        """Run a client; a failure fails the test with the client's message."""
        done = subprocess.run(
            [str(program), *arguments],
            input=stdin or "",
            capture_output=True,
            text=True,
            timeout=COMMAND_DEADLINE,
            check=False,
            env=self.environment(kubeconfig),
        )
        if check:
            assert done.returncode == 0, f"{program.name} {' '.join(arguments)}: {done.stderr or done.stdout}"
        return done

    def kubectl(self, *arguments: str, stdin: str | None = None, kubeconfig: Path | None = None) -> str:
        """Run kubectl, which must succeed, and return its standard output."""
        return self.run(KUBECTL, *arguments, stdin=stdin, kubeconfig=kubeconfig).stdout

    def helm(self, *arguments: str) -> str:
        """Run helm, which must succeed, and return its standard output."""
        return self.run(tool("helm"), *arguments).stdout

    def get(self, *arguments: str) -> Object:
        """Return the object, or the list of objects, that ``kubectl get`` finds."""
        found: Object = json.loads(self.kubectl("get", *arguments, "-o", "json"))
        return found

    def items(self, *arguments: str) -> list[Object]:
        """Return the objects of a kind."""
        found: list[Object] = self.get(*arguments)["items"]
        return found

    def audited(self) -> list[AuditedRequest]:
        """Return all requests that were answered until now."""
        return read_audit_log(self.audit_log)


def until(condition: Callable[[], T], what: Callable[[], str], timeout: float = DEADLINE) -> T:
    """Return what a condition returns as soon as that is true.

    :param what: describes the state if it never is.
    """
    deadline = time.monotonic() + timeout
    while True:
        if found := condition():
            return found
        if time.monotonic() > deadline:
            pytest.fail(f"not within {timeout:g} s: {what()}")
        time.sleep(0.1)


@contextlib.contextmanager
def control_plane(directory: Path, version: str = VERSION) -> Iterator[ControlPlane]:
    """Provide a running control plane and stop it at the end.

    :param directory: for data, certificates and logs.
    :param version: of Kubernetes.
    """
    (directory / "home").mkdir()
    (directory / "admission.yaml").write_text(json.dumps(ADMISSION))
    etcd, etcd_peers, api, controllers = free_ports(4)
    found = ControlPlane(directory, f"https://127.0.0.1:{api}")
    prepare(directory, found.server)
    pki.write_kubeconfig(found.kubeconfig, found.server, directory, pki.pair(directory, "admin"))
    with contextlib.ExitStack() as stack:
        _start(stack, directory, "etcd", tool("etcd"), etcd_arguments(directory, etcd, etcd_peers))
        module = f"kubernetes-{version}"
        _start(stack, directory, "apiserver", tool(f"{module}/kube-apiserver"), _api_server(directory, api, etcd))
        _wait_until_ready(found, directory)
        _start(
            stack,
            directory,
            "controller-manager",
            tool(f"{module}/kube-controller-manager"),
            controller_manager_arguments(directory, controllers),
        )
        _wait_for_controllers(found)
        yield found


def _api_server(directory: Path, port: int, etcd: int) -> list[str]:
    return [
        *apiserver_arguments(directory, port, etcd),
        f"--admission-control-config-file={directory / 'admission.yaml'}",
        # There is no kube-proxy: aggregated APIs are called at the addresses of EndpointSlices.
        "--enable-aggregator-routing=true",
        # By default every 5 minutes: no test would see that a version is forgotten.
        "--etcd-compaction-interval=5s",
        # It logs when it has loaded a certificate again.
        "--vmodule=dynamic_serving_content=2",
    ]


def _start(
    stack: contextlib.ExitStack, directory: Path, name: str, program: Path, arguments: Sequence[str]
) -> subprocess.Popen[bytes]:
    log = stack.enter_context((directory / f"{name}.log").open("wb"))
    process = subprocess.Popen([str(program), *arguments], stdout=log, stderr=log, env={"HOME": os.devnull})
    stack.callback(_stop, process)
    return process


def _stop(process: subprocess.Popen[bytes]) -> None:
    # Nothing is to be saved, and an orderly stop waits for open watches.
    process.kill()
    process.wait(STOP_DEADLINE)


def _wait_until_ready(found: ControlPlane, directory: Path) -> None:
    context = ssl.create_default_context(cafile=str(found.ca))
    admin = pki.pair(directory, "admin")
    context.load_cert_chain(admin.cert, admin.key)

    def ready() -> bool:
        try:
            with urllib.request.urlopen(f"{found.server}/readyz", context=context, timeout=30) as response:
                return bool(response.status == 200)
        except urllib.error.HTTPError as error:
            error.close()
            return False
        except OSError:
            return False

    until(
        ready,
        lambda: f"kube-apiserver is ready\n{_tail(directory, 'etcd')}{_tail(directory, 'apiserver')}",
        START_DEADLINE,
    )


def _wait_for_controllers(found: ControlPlane) -> None:
    """Wait until the controllers have made what they make in an empty cluster."""
    # ServiceCIDRs exist since 1.31.
    cidrs = "servicecidrs.networking.k8s.io" in found.kubectl("api-resources", "-o", "name").split()

    def settled() -> bool:
        roles = {role["metadata"]["name"]: role.get("rules") or [] for role in found.items("clusterroles")}
        parts = [("view", "system:aggregate-to-view"), ("edit", "view"), ("edit", "system:aggregate-to-edit")]
        parts += [("admin", "edit"), ("admin", "system:aggregate-to-admin")]
        if not all(rule in roles[whole] for whole, part in parts for rule in roles[part]):
            return False
        namespaces = {item["metadata"]["name"] for item in found.items("namespaces")}
        made = {
            (item["kind"], item["metadata"]["namespace"], item["metadata"]["name"])
            for item in found.items("serviceaccounts,configmaps", "--all-namespaces")
        }
        wanted = {("ServiceAccount", namespace, "default") for namespace in namespaces}
        wanted |= {("ConfigMap", namespace, "kube-root-ca.crt") for namespace in namespaces}
        wanted |= {("ConfigMap", "kube-system", "extension-apiserver-authentication")}
        if not (len(namespaces) == 4 and wanted <= made):
            return False
        return not cidrs or all(map(is_ready, found.items("servicecidrs")))

    def is_ready(item: Object) -> bool:
        conditions = item.get("status", {}).get("conditions", [])
        return any(one["type"] == "Ready" and one["status"] == "True" for one in conditions)

    until(settled, lambda: "the controllers have started", START_DEADLINE)


def _tail(directory: Path, name: str) -> str:
    return f"--- {name}:\n" + (directory / f"{name}.log").read_text(errors="replace")[-3000:]
