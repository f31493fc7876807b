"""Pods and annotations for tests of the networks role's plan, and a short form of its actions."""

import json
from collections.abc import Sequence
from typing import Any

import msgspec

from schemas.kubernetes.networks import NETWORK_STATUS, NETWORKS
from schemas.kubernetes.objects import Pod
from schemas.kubernetes.operations import HotplugMark, PodNic, encode_annotation, hotplug_mark_key, pod_nic_key
from schemas.multus import RecordedAttachment, SandboxRecord
from schemas.names import pod_interface
from services.networks.plan import plan
from services.networks.plan.actions import Attach, Detach, NamespaceIsolation, Observed, RecordEvent
from services.networks.plan.attachments import parse_attachments
from tests.support.kube.node_kube import PODS, FakeKube

NODE, UID = "node1", "22222222-2222-4222-8222-222222222222"
BLUE = pod_interface("blue")
ETH0 = {"name": "cluster", "interface": "eth0", "default": True, "dns": {}}
NO_ISOLATION = NamespaceIsolation(enabled=False, global_namespaces=frozenset())


def element(name: str, interface: str | None = None, **fields: Any) -> dict[str, Any]:
    """Return an element of the networks annotation."""
    return {"name": name, "namespace": "default"} | ({"interface": interface} if interface else {}) | fields


def entry(name: str, interface: str, **fields: Any) -> dict[str, Any]:
    """Return an entry of network-status."""
    return {"name": f"default/{name}", "interface": interface, "dns": {}} | fields


def mark(link: str, uid: str = UID) -> dict[str, str]:
    """Return the annotation with the hot-plug mark of a link."""
    return {hotplug_mark_key(link): encode_annotation(HotplugMark(pod_uid=uid, interface=link))}


def nic_record(vmi_interface: str, uid: str = UID) -> dict[str, str]:
    """Return the annotation with the pod NIC record of a VM interface."""
    nic = PodNic(
        pod_uid=uid, sandbox_id="s1", interface=pod_interface(vmi_interface), mac="02:00:00:00:00:01", mtu=1500
    )
    return {pod_nic_key(vmi_interface): encode_annotation(nic)}


def put_running_pod(kube: FakeKube) -> None:
    """Put a pod ``default/p1`` that runs on the node, with its primary network alone, into a cluster."""
    kube.put(
        PODS,
        "default",
        "p1",
        metadata={"annotations": {NETWORK_STATUS: json.dumps([ETH0])}},
        spec={"nodeName": NODE},
        status={"phase": "Running"},
    )


def pod(
    desired: list[dict[str, Any]] | str | None = None,
    present: list[dict[str, Any]] | str | None = None,
    *,
    annotations: dict[str, str] | None = None,
    phase: str = "Running",
    host_network: bool = False,
    node: str = NODE,
    **metadata: Any,
) -> Pod:
    """Return a running pod.

    :param desired: its networks annotation.
    :param present: its network-status.
    """
    merged = dict(annotations or {})
    for key, value in ((NETWORKS, desired), (NETWORK_STATUS, present)):
        if value is not None:
            merged[key] = value if isinstance(value, str) else json.dumps(value)
    document = {
        "metadata": {"name": "p1", "namespace": "default", "uid": UID, "annotations": merged, **metadata},
        "spec": {"nodeName": node, "hostNetwork": host_network},
        "status": {"phase": phase},
    }
    return msgspec.convert(document, Pod)


def short(action: object) -> str:
    """Return the short form of an action: ``+`` attach, ``~`` replace, ``-`` detach, ``!`` Event."""
    match action:
        case Attach():
            return f"{'~' if action.replace else '+'}{action.network}@{action.link}"
        case Detach():
            return f"-{action.network}@{action.link}"
        case RecordEvent():
            return f"!{action.reason}"
    raise AssertionError(action)


def observed(
    of: Pod,
    *,
    record: list[RecordedAttachment] | None = None,
    unwritten: Sequence[tuple[str, str]] = (),
    detached_links: Sequence[str] = (),
    isolation: NamespaceIsolation = NO_ISOLATION,
) -> Observed:
    """Return what the role observes of a pod.

    :param record: the attachments in the daemon's record of the sandbox; ``None`` for no record.
    """
    found = None if record is None else SandboxRecord(sandbox_id="s1", pod_uid=UID, attachments=record)
    attachments = parse_attachments(of, record=found, unwritten=unwritten, detached_links=detached_links)
    return Observed(of, NODE, attachments, isolation)


def planned(of: Pod, **known: Any) -> list[str]:
    """Return the short form of the plan for a pod.

    :param known: what is known besides the pod's annotations, as for :func:`observed`.
    """
    return [short(action) for action in plan(observed(of, **known))]
