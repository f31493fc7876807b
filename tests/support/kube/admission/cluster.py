"""A real control plane with the admission policies of the chart, to which requests are sent as any identity.

Every identity has all rights, so nothing but a policy refuses a request. Requests are dry runs: nothing changes.
"""

import contextlib
import http.client
import json
import ssl
import urllib.parse
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from lab.apiserver.identity import pki
from tests.support.interop.chart import VALUE_SETS, find, objects, render
from tests.support.interop.releases import CRDS, KUBEVIRT_CRDS, NAD_CRD, write
from tests.support.kube.admission.objects import (
    NAMESPACE,
    NODE,
    NODE_NAME,
    OTHER_NODE,
    PLUGIN_TYPES,
    RELEASE,
    TRUSTED_GROUP,
    TRUSTED_USER,
    Identity,
    Object,
    present,
)
from tests.support.kube.admission.table import API_SERVICE, Row
from tests.support.kube.control_plane import ControlPlane, control_plane, until

POLICY, BINDING = "ValidatingAdmissionPolicy", "ValidatingAdmissionPolicyBinding"
VALUES = (
    f"admission.trusted.users={{{TRUSTED_USER}}}",
    f"admission.trusted.groups={{{TRUSTED_GROUP}}}",
    "admission.kubevirtNamespace=kubevirt",
    f"networkPluginTypes={{{','.join(PLUGIN_TYPES)}}}",
)
REQUEST_DEADLINE = 60.0
"""Seconds for one request; each takes milliseconds."""


class GuardedCluster:
    """A control plane with the policies.

    :ivar plane: the control plane.
    """

    def __init__(self, plane: ControlPlane, directory: Path) -> None:
        self.plane = plane
        address = urllib.parse.urlsplit(plane.server)
        self._certified, self._plain = (ssl.create_default_context(cafile=str(plane.ca)) for _ in range(2))
        admin = pki.pair(directory, "admin")
        self._certified.load_cert_chain(admin.cert, admin.key)
        self._address = (address.hostname or "", address.port)
        self._connection = self._connect(self._certified)

    def _connect(self, context: ssl.SSLContext) -> http.client.HTTPSConnection:
        return http.client.HTTPSConnection(*self._address, context=context, timeout=REQUEST_DEADLINE)

    def close(self) -> None:
        """Close the connection."""
        self._connection.close()

    def send(self, identity: Identity, method: str, path: str, body: Any) -> tuple[int, str]:
        """Send a dry run as an identity; return the status and the message."""
        headers = [("Impersonate-User", identity.user)]
        headers += [("Impersonate-Group", group) for group in identity.groups]
        if identity.node:
            headers.append((f"Impersonate-Extra-{urllib.parse.quote(NODE_NAME, safe='')}", identity.node))
        return _exchange(self._connection, method, path, body, headers)

    def send_with_token(self, token: str, method: str, path: str, body: Any) -> tuple[int, str]:
        """Send a dry run with a token; return the status and the message."""
        connection = self._connect(self._plain)
        with contextlib.closing(connection):
            return _exchange(connection, method, path, body, [("Authorization", f"Bearer {token}")])

    def wrong_cells(self, row: Row, identities: list[Identity]) -> list[str]:
        """Return the cells of a row that the API server does not answer as the table says."""
        found = []
        for identity in identities:
            status, message = self.send(identity, row.method, row.path, row.body_of(identity))
            if row.allows(identity):
                # A name that is taken is found after the policies.
                right = status in (200, 201, 409)
            else:
                # The message names the object: it is that of the expression, not the fallback.
                names = (f" {NAMESPACE}/", f" {RELEASE}/", API_SERVICE)
                right = status == 403 and POLICY in message and any(name in message for name in names)
            if not right:
                found.append(f"{identity.name}: {status} {message[:400]}")
        return found

    def policies(self) -> list[Object]:
        """Return the policies as the API server has them."""
        return self.plane.items(POLICY)

    def apply(self, *values: str, choice: str = "everything") -> None:
        """Create or replace the policies, and return once their types are checked.

        :param choice: the set of values with which the chart is rendered.
        """
        wanted = policies(*values, choice=choice)
        self.plane.kubectl("apply", "--server-side", "--filename", write(self.plane, "policies", wanted))

        def checked() -> bool:
            return all(
                "typeChecking" in one.get("status", {})
                and one["status"]["observedGeneration"] == one["metadata"]["generation"]
                for one in self.policies()
            )

        until(checked, lambda: f"the policies are checked: {[one.get('status') for one in self.policies()]}")


def policies(*values: str, choice: str = "everything") -> list[Object]:
    """Return the policies of the chart and their bindings.

    :param values: further values, as helm's ``--set`` takes them.
    :param choice: the set of values with which the chart is rendered.
    """
    sets = [part for value in (*VALUES, *values) for part in ("--set", value)]
    rendered = objects(render(*VALUE_SETS[choice], *sets))
    return [item for item in rendered if item["kind"] in (POLICY, BINDING)]


def _exchange(
    connection: http.client.HTTPSConnection, method: str, path: str, body: Any, headers: list[tuple[str, str]]
) -> tuple[int, str]:
    kind = "json" if method == "POST" else "json-patch+json" if isinstance(body, list) else "merge-patch+json"
    content = json.dumps(body).encode()
    connection.putrequest(method, f"{path}?dryRun=All")
    for name, value in (*headers, ("Content-Type", f"application/{kind}"), ("Content-Length", str(len(content)))):
        connection.putheader(name, value)
    connection.endheaders(content)
    response = connection.getresponse()
    answer = json.loads(response.read())
    return response.status, str(answer.get("message", ""))


@contextlib.contextmanager
def guarded_cluster(directory: Path, version: str) -> Iterator[GuardedCluster]:
    """Provide a control plane with the policies and what is there to change.

    :param version: of Kubernetes.
    """
    with control_plane(directory, version) as plane:
        names = (NAD_CRD, *KUBEVIRT_CRDS)
        for name in names:
            plane.kubectl("create", "--filename", str(CRDS / f"{name.partition('.')[2]}_{name.partition('.')[0]}.yaml"))
        plane.kubectl("wait", "--for=condition=Established", "crd", *names, "--timeout=100s")
        nodes = [{"apiVersion": "v1", "kind": "Node", "metadata": {"name": name}} for name in (NODE, OTHER_NODE)]
        plane.kubectl("create", "--filename", write(plane, "nodes", nodes))
        for namespace in (NAMESPACE, RELEASE):
            plane.kubectl("create", "namespace", namespace)
            plane.kubectl(
                "wait", "--for=create", "serviceaccount/default", f"--namespace={namespace}", "--timeout=100s"
            )
        plane.kubectl(
            "create", "clusterrolebinding", "everybody", "--clusterrole=cluster-admin", "--group=system:authenticated"
        )
        plane.kubectl("create", "--filename", write(plane, "present", present()))
        rendered = objects(render(*VALUE_SETS["everything"]))
        own = [find(rendered, "APIService", API_SERVICE), find(rendered, "Secret", f"{RELEASE}-api-tls")]
        plane.kubectl("create", "--filename", write(plane, "own", own))
        cluster = GuardedCluster(plane, directory)
        with contextlib.closing(cluster):
            cluster.apply()
            yield cluster
