"""Who sends requests to a cluster with the admission policies, and what is there for them to change.

Next: :mod:`.table`, who may make which change.
"""

import json
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Final

from schemas.kubernetes.networks import NETWORK_STATUS, NETWORKS
from schemas.names import interface_hash

Object = dict[str, Any]

RELEASE: Final = "hotnic"
NAMESPACE: Final = "vms"
NODE, OTHER_NODE = "node-1", "node-2"
NODE_NAME: Final = "authentication.kubernetes.io/node-name"
TRUSTED_USER, TRUSTED_GROUP = "system:serviceaccount:vm-runner:controller", "example.com:network-admins"
PLUGIN_TYPES: Final = ("bridge", "host-local")

CLUSTER_ROLES: Final = ("api", "controller")
NODE_ROLES: Final = ("networks", "multus", "handler")
ROLES: Final = (*CLUSTER_ROLES, *NODE_ROLES)
COLUMNS: Final = ("users", "trusted", *ROLES)

HASH: Final = interface_hash("blue")
OPERATION, POD_NIC, MARK = (f"hotnic.io/{name}.{HASH}" for name in ("operation", "pod-nic", "attached"))
SLOTS: Final = "hotnic.io/nic-slots"
NOTE: Final = "example.com/note"
LABEL: Final = "kubevirt.io/created-by"


@dataclass(frozen=True)
class Identity:
    """Who sends a request.

    :ivar column: the column of the table.
    :ivar role: the role of hotnic, if it is one.
    :ivar node: the node that the token names; empty: none.
    """

    name: str
    column: str
    user: str
    groups: tuple[str, ...] = ()
    role: str = ""
    node: str = ""


def identities() -> Iterator[Identity]:
    """Yield all identities: each column has one or more."""
    yield Identity("tenant", "users", "tenant")
    yield Identity("administrator", "users", "admin", ("system:masters",))
    yield Identity("an account of another namespace", "users", f"system:serviceaccount:other:{RELEASE}-networks")
    yield Identity("trusted user", "trusted", TRUSTED_USER)
    yield Identity("member of a trusted group", "trusted", "someone", (TRUSTED_GROUP,))
    yield Identity("KubeVirt", "trusted", "system:serviceaccount:kubevirt:kubevirt-controller")
    for role in ROLES:
        account = f"system:serviceaccount:{RELEASE}:{RELEASE}-{role}"
        groups = ("system:serviceaccounts", f"system:serviceaccounts:{RELEASE}")
        nodes = (NODE, OTHER_NODE, "") if role in NODE_ROLES else ("",)
        for node in nodes:
            name = f"{role} of {node or 'no node'}" if role in NODE_ROLES else role
            yield Identity(name, role, account, groups, role, node)


def vmi_spec(*names: str) -> Object:
    """Return the spec of a VMI with these interfaces."""
    interfaces = [{"name": name, "bridge": {}} for name in names]
    networks = [{"name": name, "multus": {"networkName": "bridge-net"}} for name in names]
    return {"domain": {"devices": {"interfaces": interfaces, "disks": [{"name": "root"}]}}, "networks": networks}


def vmi_object(name: str) -> Object:
    """Return a VMI of the node that has everything that hotnic writes."""
    return {
        "apiVersion": "kubevirt.io/v1",
        "kind": "VirtualMachineInstance",
        "metadata": {"name": name, "namespace": NAMESPACE, "annotations": {OPERATION: "1", SLOTS: "1"}},
        "spec": vmi_spec("blue"),
        "status": {"phase": "Running", "nodeName": NODE, "interfaces": [{"name": "blue"}]},
    }


def vm_object(name: str) -> Object:
    """Return a VM that has an operation."""
    return {
        "apiVersion": "kubevirt.io/v1",
        "kind": "VirtualMachine",
        "metadata": {"name": name, "namespace": NAMESPACE, "annotations": {OPERATION: "1"}},
        "spec": {"running": True, "template": {"metadata": {}, "spec": vmi_spec("blue")}},
    }


def pod_spec(node: str) -> Object:
    """Return the spec of a pod that nothing runs."""
    spec: Object = {"containers": [{"name": "one", "image": "image"}], "terminationGracePeriodSeconds": 0}
    return spec | ({"nodeName": node} if node else {"schedulerName": "none"})


def nad(name: str, config: str) -> Object:
    """Return a NetworkAttachmentDefinition."""
    spec = {"config": config} if config else {}
    return {
        "apiVersion": "k8s.cni.cncf.io/v1",
        "kind": "NetworkAttachmentDefinition",
        "metadata": {"name": name, "namespace": NAMESPACE},
        "spec": spec,
    }


def pod(name: str, node: str, **annotations: str) -> Object:
    """Return a pod that nothing runs."""
    metadata = {"name": name, "namespace": NAMESPACE, "annotations": annotations}
    return {"apiVersion": "v1", "kind": "Pod", "metadata": metadata, "spec": pod_spec(node)}


def launcher(name: str, node: str) -> Object:
    """Return a launcher pod that has everything that hotnic writes."""
    written = {NETWORKS: "[]", NETWORK_STATUS: "[]", OPERATION: "1", POD_NIC: "1"}
    made = pod(name, node, **written)
    made["metadata"]["labels"] = {LABEL: "vm1"}
    return made


def config(**content: Any) -> str:
    """Return a CNI configuration."""
    return json.dumps({"cniVersion": "1.0.0", "name": "one", **content})


def crowded(made: Object) -> Object:
    """Return an object with as many annotations of others as fit."""
    made["metadata"]["annotations"] |= {f"example.com/{number:05d}": "x" for number in range(9000)}
    return made


def present() -> list[Object]:
    """Return what was there before the policies."""
    return [
        launcher("launcher", NODE),
        launcher("launcher-elsewhere", OTHER_NODE),
        crowded(launcher("launcher-crowded", NODE)),
        pod("ordinary", NODE),
        pod("unbound", ""),
        vmi_object("vm1"),
        crowded(vmi_object("crowded")),
        vm_object("vm1"),
        nad("bridge-net", config(type="bridge")),
        nad("earlier", config(type="macvlan")),
    ]
