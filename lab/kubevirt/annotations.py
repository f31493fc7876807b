"""The attachments of a launcher pod: its networks annotation, and which pod acts for a VMI.

All functions are pure. KubeVirt drops an attachment as soon as its interface is absent, whether or not the guest has
released the device. Next: `interfaces.py`, the VMI's `status.interfaces`.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from typing import Any

from lab.kubevirt.specs import ABSENT, SpecLists, is_secondary, lists_of
from lab.kubevirt.versions import Behaviour
from lab.node.objects import FINAL_PHASES
from schemas.kubernetes.networks import NETWORK_STATUS, NETWORKS
from schemas.names import pod_interface

Object = dict[str, Any]


def acting_pod(vmi: Object, pods: Iterable[Object]) -> Object | None:
    """Return the newest pod on the VMI's node that has not ended; `None` if there is none."""
    node = vmi.get("status", {}).get("nodeName")
    found = [
        pod
        for pod in pods
        if pod.get("status", {}).get("phase") not in FINAL_PHASES
        and (not node or pod.get("spec", {}).get("nodeName") == node)
    ]
    return max(found, key=lambda pod: str(pod["metadata"]["creationTimestamp"]), default=None)


def element(interface: Object, network: Object, namespace: str, behaviour: Behaviour) -> Object:
    """Return the network selection element of an interface, with the keys in KubeVirt's order."""
    reference = str(network["multus"]["networkName"])
    in_namespace, name = reference.split("/", 1) if "/" in reference else (namespace, reference)
    link, mac = pod_interface(interface["name"]), interface.get("macAddress")
    fields: Object = {"name": name, "namespace": in_namespace, "mac": mac, "interface": link}
    keys = ("name", "namespace", "mac", "interface") if behaviour.upstream_elements else sorted(fields)
    return {key: fields[key] for key in keys if fields[key]}


def encode_elements(elements: list[Object]) -> str:
    """Return the text of the annotation; it is empty without elements."""
    return json.dumps(elements, separators=(",", ":")) if elements else ""


def initial_networks(vmi: Object, behaviour: Behaviour) -> str:
    """Return the networks annotation of a new launcher pod: all secondary interfaces that are not absent."""
    return encode_elements(_elements(lists_of(vmi["spec"]), vmi, behaviour, skip=frozenset()))


def updated_networks(vmi: Object, pod: Object, behaviour: Behaviour) -> str | None:
    """Return the new networks annotation of the acting pod; `None` if it is left as it is.

    It is looked at only while an interface is absent or has no entry in the status, other than one of SR-IOV, which
    waits for a migration. So an element that somebody else added, or that a plug taken back leaves, stays until another
    interface changes.
    """
    lists = lists_of(vmi["spec"])
    listed = {entry.get("name") for entry in vmi.get("status", {}).get("interfaces") or []}
    secondary = [i for i in lists.interfaces if is_secondary(lists.network(i["name"]))]
    if all(i.get("state") != ABSENT and (i["name"] in listed or "sriov" in i) for i in secondary):
        return None
    waiting = frozenset(i["name"] for i in secondary if "sriov" in i and i["name"] not in listed)
    elements = _elements(lists, vmi, behaviour, skip=waiting if behaviour.upstream_elements else frozenset())
    if not elements and not behaviour.empties_annotation:
        return None
    text = encode_elements(elements)
    return text if text != pod["metadata"].get("annotations", {}).get(NETWORKS, "") else None


def _elements(lists: SpecLists, vmi: Object, behaviour: Behaviour, *, skip: frozenset[str]) -> list[Object]:
    namespace = vmi["metadata"]["namespace"]
    pairs = [(interface, lists.network(interface["name"])) for interface in lists.interfaces]
    return [
        element(interface, network, namespace, behaviour)
        for interface, network in pairs
        if network is not None
        and is_secondary(network)
        and interface.get("state") != ABSENT
        and interface["name"] not in skip
    ]


def read_elements(pod: Object) -> list[Object]:
    """Return the elements of a pod's networks annotation."""
    found: list[Object] = json.loads(pod["metadata"].get("annotations", {}).get(NETWORKS) or "[]")
    return found


def read_network_status(pod: Object) -> list[Object]:
    """Return the items of a pod's network-status annotation."""
    found: list[Object] = json.loads(pod["metadata"].get("annotations", {}).get(NETWORK_STATUS) or "[]")
    return found
