"""The objects that the player creates: the VMI of a VM, its launcher pods, statuses, and migrations.

All functions are pure. Unlike KubeVirt's, a launcher pod has one container that only pauses. Next: `pace.py`.
"""

from __future__ import annotations

import copy
import hashlib
import json
import uuid
from typing import Any, Final

from lab.kubevirt.annotations import initial_networks, read_elements, read_network_status
from lab.kubevirt.specs import lists_of, with_model
from lab.kubevirt.versions import Behaviour
from lab.node.objects import now, owner_reference
from lab.tools import PAUSE_IMAGE
from schemas.kubernetes.networks import NETWORK_STATUS, NETWORKS
from schemas.kubernetes.objects import CREATED_BY_LABEL

Object = dict[str, Any]

CONTROLLER_FINALIZER: Final = "kubevirt.io/virtualMachineControllerFinalize"
OBSERVED_VERSIONS: Final = {
    "kubevirt.io/latest-observed-api-version": "v1",
    "kubevirt.io/storage-observed-api-version": "v1",
}
VM_GENERATION: Final = "kubevirt.io/vm-generation"
NODE_LABEL: Final = "kubevirt.io/nodeName"
TARGET_NODE_LABEL: Final = "kubevirt.io/migrationTargetNodeName"
JOB_LABEL: Final = "kubevirt.io/migrationJobUID"
JOB_ANNOTATION: Final = "kubevirt.io/migrationJobName"
PRIMARY_MAC: Final = "0a:00:00:00:00:01"
_STARTING: Final = ("Pending", "Scheduling", "Scheduled")


def launcher_finalizer(behaviour: Behaviour) -> str:
    """Return the finalizer that keeps a VMI until its launcher pods are gone."""
    prefix = "kubevirt.io/" if behaviour.minor >= 4 else ""
    return f"{prefix}foregroundDeleteVirtualMachine"


def vmi_of(vm: Object, behaviour: Behaviour, default_binding: str = "bridge", model: str = "") -> Object:
    """Return the VMI of a VM: its template with the defaults that KubeVirt's webhooks set.

    :param default_binding: binding of the default interface, which a VM without interfaces gets.
    :param model: the interface model that the VM's preference names.
    """
    template, generation = vm["spec"]["template"], str(vm["metadata"]["generation"])
    meta, spec = template.get("metadata") or {}, copy.deepcopy(template["spec"])
    domain = spec.setdefault("domain", {})
    devices = domain.setdefault("devices", {})
    if not devices.get("interfaces") and not spec.get("networks"):
        devices["interfaces"] = [{"name": "default", default_binding: {}}]
        spec["networks"] = [{"name": "default", "pod": {}}]
    if model:
        devices["interfaces"] = with_model(lists_of(spec), model).interfaces
    named = {f"kubevirt.io/{kind}-name": vm["spec"].get(kind) for kind in ("instancetype", "preference")}
    chosen = {key: str(reference["name"]) for key, reference in named.items() if reference}
    domain["cpu"] = {"cores": 1, "model": "host-model", "sockets": 1, "threads": 1} | domain.get("cpu", {})
    domain.setdefault("firmware", {}).setdefault("uuid", str(uuid.uuid5(uuid.NAMESPACE_DNS, vm["metadata"]["name"])))
    domain.setdefault("features", {}).setdefault("acpi", {"enabled": True})
    if behaviour.minor >= 1:
        domain["cpu"].setdefault("maxSockets", 4 * domain["cpu"]["sockets"])
        memory = domain.get("resources", {}).get("requests", {}).get("memory")
        if memory:
            domain.setdefault("memory", {}).setdefault("guest", memory)
    spec.setdefault("evictionStrategy", "None")
    return {
        "apiVersion": "kubevirt.io/v1",
        "kind": "VirtualMachineInstance",
        "metadata": {
            "name": vm["metadata"]["name"],
            "namespace": vm["metadata"]["namespace"],
            "labels": dict(meta.get("labels") or {}),
            "annotations": {
                **(meta.get("annotations") or {}),
                **OBSERVED_VERSIONS,
                **chosen,
                VM_GENERATION: generation,
            },
            "finalizers": [CONTROLLER_FINALIZER, launcher_finalizer(behaviour)],
            "ownerReferences": [owner_reference(vm, "kubevirt.io/v1", "VirtualMachine")],
        },
        "spec": spec,
        "status": {
            "phase": "Pending",
            "guestOSInfo": {},
            "migrationTransport": "Unix",
            "phaseTransitionTimestamps": [_transition("Pending")],
            "qosClass": "Burstable",
            "runtimeUser": 107,
            "virtualMachineRevisionName": f"revision-start-vm-{vm['metadata']['uid']}-{generation}",
        },
    }


def in_phase(status: Object, phase: str) -> Object:
    """Return the status in another phase; times are kept of the phases before Running only, as in KubeVirt."""
    if status.get("phase") == phase:
        return status
    times = [*(status.get("phaseTransitionTimestamps") or []), *([_transition(phase)] if phase in _STARTING else [])]
    return {**status, "phase": phase, "phaseTransitionTimestamps": times}


def _transition(phase: str) -> Object:
    return {"phase": phase, "phaseTransitionTimestamp": now()}


def launcher_pod(vmi: Object, behaviour: Behaviour, *, node: str = "", migration: Object | None = None) -> Object:
    """Return a launcher pod of a VMI. Annotations and labels of the VMI are copied to it.

    :param node: the node to run on; empty if a scheduler chooses it.
    :param migration: the migration whose target pod it is.
    """
    meta = vmi["metadata"]
    annotations = {key: text for key, text in (meta.get("annotations") or {}).items() if key not in OBSERVED_VERSIONS}
    annotations |= {"kubevirt.io/domain": meta["name"], "kubectl.kubernetes.io/default-container": "compute"}
    annotations["kubevirt.io/migrationTransportUnix"] = "true"
    if networks := initial_networks(vmi, behaviour):
        annotations[NETWORKS] = networks
    labels = {**(meta.get("labels") or {}), "kubevirt.io": "virt-launcher", CREATED_BY_LABEL: meta["uid"]}
    labels["vm.kubevirt.io/name"] = meta["name"]
    if behaviour.minor >= 9:
        labels["vmi.kubevirt.io/id"] = meta["name"]
    if migration is not None:
        annotations[JOB_ANNOTATION] = migration["metadata"]["name"]
        labels[JOB_LABEL] = migration["metadata"]["uid"]
    return {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {
            "generateName": f"virt-launcher-{meta['name']}-",
            "namespace": meta["namespace"],
            "labels": labels,
            "annotations": annotations,
            "ownerReferences": [owner_reference(vmi, "kubevirt.io/v1", "VirtualMachineInstance")],
        },
        "spec": {
            **({"nodeName": node} if node else {}),
            **({"affinity": _apart_from_pods_of(meta["uid"])} if migration is not None else {}),
            "restartPolicy": "Never",
            "hostname": meta["name"][:63],
            "automountServiceAccountToken": False,
            "terminationGracePeriodSeconds": 1,
            "containers": [{"name": "compute", "image": PAUSE_IMAGE}],
        },
    }


def _apart_from_pods_of(vmi_uid: str) -> Object:
    """Return the affinity of a target pod, which keeps it off the node of the source pod."""
    selector = {"matchLabels": {CREATED_BY_LABEL: vmi_uid}}
    term = {"labelSelector": selector, "topologyKey": "kubernetes.io/hostname"}
    return {"podAntiAffinity": {"requiredDuringSchedulingIgnoredDuringExecution": [term]}}


def running_pod_status(address: str, time: str) -> Object:
    """Return the status that a played kubelet gives a launcher pod."""
    kinds = ("Initialized", "PodScheduled", "ContainersReady", "Ready")
    return {
        "phase": "Running",
        "podIP": address,
        "podIPs": [{"ip": address}],
        "startTime": time,
        "conditions": [
            {"type": kind, "status": "True", "lastProbeTime": None, "lastTransitionTime": time} for kind in kinds
        ],
    }


def pod_address(pod: Object) -> str:
    """Return the address that a played pod gets."""
    digits = hashlib.sha256(str(pod["metadata"]["uid"]).encode()).digest()
    return f"10.244.{digits[0]}.{digits[1] % 253 + 2}"


def network_status(pod: Object, held: frozenset[str] = frozenset()) -> str | None:
    """Return the network-status annotation that a played Multus writes for a pod; `None` if it has that already.

    :param held: links whose attachment or detachment is held back.
    """
    primary = {"name": "cbr0", "interface": "eth0", "ips": [pod_address(pod)], "mac": PRIMARY_MAC, "default": True}
    before = read_network_status(pod)
    present = {str(item.get("interface")): item for item in before}
    items = [present.get("eth0", {**primary, "dns": {}})]
    elements = read_elements(pod)
    wanted = {str(element.get("interface")) for element in elements}
    items += [item for link, item in present.items() if link != "eth0" and (link in wanted or link in held)]
    for element in elements:
        link = str(element.get("interface"))
        if link not in present and link not in held:
            name = f"{element.get('namespace') or pod['metadata']['namespace']}/{element['name']}"
            digits = hashlib.sha256(f"pod{name}{link}".encode()).hexdigest()
            mac = ":".join(["02", *(digits[index : index + 2] for index in range(0, 10, 2))])
            items.append({"name": name, "interface": link, "mac": element.get("mac") or mac, "dns": {}})
    if items == before and NETWORK_STATUS in pod["metadata"].get("annotations", {}):
        return None
    return json.dumps(items)


def migration_of(vmi: Object, kind: str) -> Object:
    """Return a migration of a VMI that KubeVirt itself requests.

    :param kind: `workload-update` or `evacuation`.
    """
    mark = {"kubevirt.io/workloadUpdateMigration": ""} if kind == "workload-update" else {}
    if kind == "evacuation":
        mark = {"kubevirt.io/evacuationMigration": vmi["status"].get("nodeName", "")}
    return {
        "apiVersion": "kubevirt.io/v1",
        "kind": "VirtualMachineInstanceMigration",
        "metadata": {
            "generateName": f"kubevirt-{kind}-",
            "namespace": vmi["metadata"]["namespace"],
            "annotations": {**OBSERVED_VERSIONS, **mark},
            "labels": {"kubevirt.io/vmi-name": vmi["metadata"]["name"]},
        },
        "spec": {"vmiName": vmi["metadata"]["name"], "priority": "user-triggered"},
    }


def event_of(obj: Object, kind: str, reason: str, message: str, component: str, *, warning: bool = False) -> Object:
    """Return a Kubernetes Event on an object."""
    meta, time = obj["metadata"], now()
    involved = {"apiVersion": "kubevirt.io/v1", "kind": kind, "name": meta["name"], "namespace": meta["namespace"]}
    return {
        "apiVersion": "v1",
        "kind": "Event",
        "metadata": {"generateName": f"{meta['name']}.", "namespace": meta["namespace"]},
        "involvedObject": {**involved, "uid": meta["uid"], "resourceVersion": meta["resourceVersion"]},
        "reason": reason,
        "message": message,
        "type": "Warning" if warning else "Normal",
        "source": {"component": component},
        "reportingComponent": component,
        "reportingInstance": "",
        "firstTimestamp": time,
        "lastTimestamp": time,
        "count": 1,
    }
