"""Issue the certificates and kubeconfigs of a lab: administrator, roles, node, and the api role's server.

Only files are written; `lab.apiserver.identity.pki` is the certificate authority. Every role has an identity of its
own, with the name of its service account on a real cluster. Next: `bootstrap.py`.
"""

from __future__ import annotations

from typing import Final

from lab.apiserver.identity import pki
from lab.layout import ROLES, Layout

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


def issue(layout: Layout, server: str) -> None:
    """Issue all certificates and write the kubeconfigs of the administrator, the roles and the node.

    :param server: URL of the API server.
    """
    folder = layout.apiserver
    pki.ensure_pki(folder)
    pki.write_kubeconfig(layout.kubeconfig, server, folder, pki.pair(folder, "admin"))
    for role in ROLES:
        user = f"system:serviceaccount:{NAMESPACE}:hotnic-{role}"
        groups = ("system:serviceaccounts", f"system:serviceaccounts:{NAMESPACE}")
        pair = pki.issue_client(folder, user, groups, file_name=f"role-{role}")
        target, name = layout.role_kubeconfig(role), f"hotnic-{role}"
        pki.write_kubeconfig(target, server, folder, pair, user_name=name, namespace=NAMESPACE)
    # The node process is kubelet, scheduler and virt-controller in one, and the latter two do what Kubernetes forbids a
    # member of system:nodes.
    pair = pki.issue_client(folder, "hotnic-lab-node", ("system:masters",), file_name="node")
    pki.write_kubeconfig(layout.role_kubeconfig("node"), server, folder, pair, user_name="node")
    names = [f"hotnic-api.{NAMESPACE}.svc", f"hotnic-api.{NAMESPACE}.svc.cluster.local", "localhost"]
    pki.issue_server(folder, "hotnic-api", names, ["127.0.0.1"], file_name=layout.serving_certificate.name)
