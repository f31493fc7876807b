"""Gives the roles in a lab on Kubernetes the rights that the chart gives them, and a token of their service account.

Rights and admission policies are rendered from the chart with helm, so that a right that is missing in the chart is
missing in the lab. The token of a role of a node is bound to the Node, so that its user has the node's name, as in a
pod of the chart. The lab's administrator and its node, which is the VM runner, are trusted: they may change everything.
`lab.supervisor.credentials` gives the roles of other labs client certificates instead.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Final

from lab.apiserver.identity import pki
from lab.layout import NATS_PORT, NODE_ROLES, Layout, credentials_of, node_name, split_name
from lab.node.registration import node_object
from lab.node.resources import NODES
from lab.supervisor import bootstrap
from lab.supervisor.credentials.certificates import NAMESPACE
from lab.supervisor.processes import ProcessSpec
from services.common.kube.client import Kube

CHART: Final = Path(__file__).resolve().parents[3] / "k8s"
RIGHTS: Final = (
    *("ClusterRole", "ClusterRoleBinding", "Role", "RoleBinding"),
    *("ValidatingAdmissionPolicy", "ValidatingAdmissionPolicyBinding"),
    *("PriorityLevelConfiguration", "FlowSchema"),
)
"""The kinds of the chart's objects that give or restrict rights, and those that give the roles' requests priority."""

TRUSTED: Final = ("kubernetes-admin", "hotnic-lab-node")
"""The users that the admission policies do not restrict."""

TOKEN_SECONDS: Final = 7 * 24 * 3600
"""Validity of a role's token; a lab lives shorter."""


def rendering(
    helm: Path, chart: Path, log: Path, environ: Mapping[str, str], *, choice: str = "everything"
) -> ProcessSpec:
    """Return how to render a release; `log` gets the objects, or why it failed.

    :param choice: name of the values: `everything` that hotnic has, or `beside-kubevirt`.
    """
    command = (str(helm), "template", "hotnic", str(chart), "--namespace", NAMESPACE)
    values = ("--values", str(chart / "choices" / f"{choice}.yaml"), "--set", f"nats.url=tls://127.0.0.1:{NATS_PORT}")
    trusted = ("--set", f"admission.trusted.users={{{','.join(TRUSTED)}}}")
    return ProcessSpec("chart", (*command, *values, *trusted), log, environ)


async def grant(layout: Layout, rendered: Path, server: str, processes: Iterable[str]) -> None:
    """Create the roles' rights, and replace the credentials in their kubeconfigs with tokens.

    :param rendered: file with the chart's objects.
    :param server: URL of the API server.
    :param processes: names of the processes of roles.
    :raises KubeError: the API server rejected a request.
    """
    rights = [obj for obj in bootstrap.load([rendered]) if obj["kind"] in RIGHTS]
    async with bootstrap.admin_client(layout.kubeconfig) as kube:
        for obj in rights:
            await bootstrap.create_unless_exists(kube, obj)
        for process in dict.fromkeys(map(credentials_of, processes)):
            role, number = split_name(process)
            node = await registered_node(kube, node_name(number)) if role in NODE_ROLES else None
            user = f"hotnic-{role}"
            token = await service_account_token(kube, user, node)
            target = layout.role_kubeconfig(process)
            pki.write_kubeconfig(target, server, layout.apiserver, token, user_name=user, namespace=NAMESPACE)


async def registered_node(kube: Kube, name: str) -> dict[str, str]:
    """Return a reference to a Node, which is created unless it exists: a token needs its UID.

    :raises KubeError: the API server rejected a request.
    """
    await bootstrap.create_unless_exists(kube, node_object(name))
    node = await kube.get(NODES, None, name)
    return {"apiVersion": "v1", "kind": "Node", "name": name, "uid": node["metadata"]["uid"]}


async def service_account_token(kube: Kube, name: str, node: Mapping[str, str] | None = None) -> str:
    """Return a token of a service account in hotnic's namespace.

    :param node: reference to the Node to which the token is bound.
    :raises KubeError: the API server rejected the request.
    """
    path = f"/api/v1/namespaces/{NAMESPACE}/serviceaccounts/{name}/token"
    body = {"apiVersion": "authentication.k8s.io/v1", "kind": "TokenRequest"}
    spec: dict[str, object] = {"expirationSeconds": TOKEN_SECONDS} | ({"boundObjectRef": node} if node else {})
    request = json.dumps({**body, "spec": spec}).encode()
    answer = await kube.request("POST", path, body=request, content_type="application/json")
    token: str = json.loads(answer.body)["status"]["token"]
    return token
