"""The certificates and kubeconfigs of a lab: administrator, roles, node, and the api role's serving certificate.

Files only; the certificate authority is the apiserver's (`services.lab.apiserver.pki`). Every role has an identity
of its own, named like the service account it has on a real cluster. Next: `bootstrap.py`.
"""

from __future__ import annotations

from typing import Final

from services.lab.apiserver import pki
from services.lab.layout import ROLES, Identity, Layout

NAMESPACE: Final = "hotnic"
"""Where the product is installed."""


def issue(layout: Layout, identity: Identity) -> None:
    """Issue all certificates and write the kubeconfigs of the administrator, the roles and the node."""
    folder = layout.apiserver
    pki.ensure_pki(folder)
    server = f"https://127.0.0.1:{identity.apiserver_port}"
    pki.write_kubeconfig(layout.kubeconfig, server, folder, pki.pair(folder, "admin"))
    for role in ROLES:
        user = f"system:serviceaccount:{NAMESPACE}:hotnic-{role}"
        groups = ("system:serviceaccounts", f"system:serviceaccounts:{NAMESPACE}")
        pair = pki.issue_client(folder, user, groups, file_name=f"role-{role}")
        pki.write_kubeconfig(layout.role_kubeconfig(role), server, folder, pair, user_name=f"hotnic-{role}")
    # The node's process is kubelet, scheduler and virt-controller at once, so it may do everything.
    pair = pki.issue_client(folder, "system:node:lab", ("system:nodes", "system:masters"), file_name="node")
    pki.write_kubeconfig(layout.role_kubeconfig("node"), server, folder, pair, user_name="node")
    names = [f"hotnic-api.{NAMESPACE}.svc", f"hotnic-api.{NAMESPACE}.svc.cluster.local", "localhost"]
    pki.issue_server(folder, "hotnic-api", names, ["127.0.0.1"], file_name=layout.serving_certificate.name)
