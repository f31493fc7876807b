"""Issue the certificates and kubeconfigs of a lab: administrator, roles, node, and the api role's server.

Only files are written; `lab.apiserver.identity.pki` is the certificate authority. Every role has an identity of its
own, with the name of its service account on a real cluster. Next: `bootstrap.py`.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final

from lab.apiserver.identity import pki
from lab.layout import ROLES, Layout, credentials_of, split_name

NAMESPACE: Final = "hotnic"
"""The namespace in which hotnic is installed."""


def issue_for_kubevirt(layout: Layout, server: str) -> None:
    """Write the kubeconfig of the played KubeVirt, with the account that its admission lets write everything, and
    issue the certificate of its webhooks.

    :param server: URL of the API server.
    """
    # Imported here because other labs need no admission.
    from lab.kubevirt.admission import ACCOUNT

    folder = layout.apiserver
    pair = pki.issue_client(folder, ACCOUNT, ("system:masters",), file_name="kubevirt")
    pki.write_kubeconfig(layout.role_kubeconfig("kubevirt"), server, folder, pair, user_name="kubevirt")
    pki.issue_server(folder, "virt-api", ["localhost"], ["127.0.0.1"], file_name=layout.webhook_certificate.name)


def issue(layout: Layout, server: str, processes: Iterable[str] = ROLES) -> None:
    """Issue all certificates and write the kubeconfigs of the administrator, the roles and the node.

    The user of a role is its service account, on every node: a certificate cannot name the node as a token does.

    :param server: URL of the API server.
    :param processes: names of the processes of roles.
    """
    folder = layout.apiserver
    pki.ensure_pki(folder)
    pki.write_kubeconfig(layout.kubeconfig, server, folder, pki.pair(folder, "admin"))
    for process in dict.fromkeys(map(credentials_of, processes)):
        name = f"hotnic-{split_name(process)[0]}"
        user = f"system:serviceaccount:{NAMESPACE}:{name}"
        groups = ("system:serviceaccounts", f"system:serviceaccounts:{NAMESPACE}")
        pair = pki.issue_client(folder, user, groups, file_name=f"role-{process}")
        target = layout.role_kubeconfig(process)
        pki.write_kubeconfig(target, server, folder, pair, user_name=name, namespace=NAMESPACE)
    # The node process is kubelet, scheduler and virt-controller in one, and the latter two do what Kubernetes forbids a
    # member of system:nodes.
    pair = pki.issue_client(folder, "hotnic-lab-node", ("system:masters",), file_name="node")
    pki.write_kubeconfig(layout.role_kubeconfig("node"), server, folder, pair, user_name="node")
    names = [f"hotnic-api.{NAMESPACE}.svc", f"hotnic-api.{NAMESPACE}.svc.cluster.local", "localhost"]
    pki.issue_server(folder, "hotnic-api", names, ["127.0.0.1"], file_name=layout.serving_certificate.name)
