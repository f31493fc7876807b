"""Pods for the planning of the networks role, written as their annotations say, and a plan's actions in short."""

import json
from typing import Any

import msgspec

from schemas.kube import Pod
from schemas.names import pod_interface
from schemas.networks import NETWORK_STATUS, NETWORKS
from schemas.operations import HotplugMark, PodNic, encode, hotplug_mark_key, pod_nic_key
from services.networks.plan import Attach, Detach, Observed, Report, plan

NODE, UID = "node1", "22222222-2222-4222-8222-222222222222"
BLUE = pod_interface("blue")
ETH0 = {"name": "cluster", "interface": "eth0", "default": True, "dns": {}}


def element(name: str, interface: str | None = None, **fields: Any) -> dict[str, Any]:
    """An element of the networks annotation."""
    return {"name": name, "namespace": "default"} | ({"interface": interface} if interface else {}) | fields


def entry(name: str, interface: str, **fields: Any) -> dict[str, Any]:
    """An entry of network-status."""
    return {"name": f"default/{name}", "interface": interface, "dns": {}} | fields


def mark(link: str, uid: str = UID) -> dict[str, str]:
    """The mark of a link attached at run time."""
    return {hotplug_mark_key(link): encode(HotplugMark(pod_uid=uid, interface=link))}


def nic_record(vmi_interface: str, uid: str = UID) -> dict[str, str]:
    """The record of a guest's NIC."""
    nic = PodNic(
        pod_uid=uid, sandbox_id="s1", interface=pod_interface(vmi_interface), mac="02:00:00:00:00:01", mtu=1500
    )
    return {pod_nic_key(vmi_interface): encode(nic)}


def pod(
    wanted: list[dict[str, Any]] | str | None = None,
    present: list[dict[str, Any]] | str | None = None,
    *,
    annotations: dict[str, str] | None = None,
    phase: str = "Running",
    host_network: bool = False,
    node: str = NODE,
    **metadata: Any,
) -> Pod:
    """A running pod that wants and has this."""
    held = dict(annotations or {})
    for key, value in ((NETWORKS, wanted), (NETWORK_STATUS, present)):
        if value is not None:
            held[key] = value if isinstance(value, str) else json.dumps(value)
    document = {
        "metadata": {"name": "p1", "namespace": "default", "uid": UID, "annotations": held, **metadata},
        "spec": {"nodeName": node, "hostNetwork": host_network},
        "status": {"phase": phase},
    }
    return msgspec.convert(document, Pod)


def short(action: object) -> str:
    """``+`` attach, ``~`` attach anew, ``-`` detach, ``!`` report."""
    match action:
        case Attach():
            return f"{'~' if action.anew else '+'}{action.network}@{action.link}"
        case Detach():
            return f"-{action.network}@{action.link}"
        case Report():
            return f"!{action.reason}"
    raise AssertionError(action)


def decided(of: Pod) -> list[str]:
    """The plan by the pod alone."""
    return [short(action) for action in plan(Observed(pod=of, node=NODE))]
