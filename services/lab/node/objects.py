"""The objects that the lab's node writes, as pure functions: VMI from VM, launcher pod from VMI, statuses.

Objects are decoded JSON here, because a template has to be copied whole, unknown fields included. The shapes follow
KubeVirt's virt-controller and the kubelet; what they leave out is listed in docs/lab.md. Next: `virt.py`, `kubelet.py`.
"""

from __future__ import annotations

import copy
import re
from collections.abc import Mapping, Sequence
from typing import Any, Final

import msgspec

from schemas.kube import CREATED_BY_LABEL, VmiSpec
from schemas.networks import NETWORKS, encode_networks
from services.common.domain.attachments import desired
from services.lab.tools import PAUSE_IMAGE

Object = dict[str, Any]

FINALIZER: Final = "foregroundDeleteVirtualMachine"
"""KubeVirt's finalizer on VMIs: the object stays until its launcher pod is gone."""

RUNNING_STRATEGIES: Final = frozenset({"Always", "RerunOnFailure", "Once"})
FINAL_PHASES: Final = frozenset({"Succeeded", "Failed"})
DEFAULT_MEMORY_MIB: Final = 192


def owner_reference(owner: Object, api_version: str, kind: str) -> Object:
    """Return the controller reference to `owner`."""
    return {
        "apiVersion": api_version,
        "kind": kind,
        "name": owner["metadata"]["name"],
        "uid": owner["metadata"]["uid"],
        "controller": True,
        "blockOwnerDeletion": True,
    }


def wants_vmi(vm: Object, vmi: Object | None) -> bool:
    """Return whether `vm` should have a VMI now.

    `runStrategy` wins over `running`; `Manual` keeps what is there; a guest that ended by itself is started again
    by `Always`, by `RerunOnFailure` only after a failure, by `Once` never.
    """
    spec = vm.get("spec", {})
    strategy = spec.get("runStrategy") or ("Always" if spec.get("running") else "Halted")
    phase = (vmi or {}).get("status", {}).get("phase")
    if strategy == "Manual":
        return vmi is not None
    if strategy not in RUNNING_STRATEGIES:
        return False
    if phase in FINAL_PHASES and strategy != "Always":
        return vmi is not None
    return True


def restarts(vm: Object, vmi: Object) -> bool:
    """Return whether an ended `vmi` is to be deleted so that `vm` gets a fresh one."""
    spec, phase = vm.get("spec", {}), vmi.get("status", {}).get("phase")
    strategy = spec.get("runStrategy") or ("Always" if spec.get("running") else "Halted")
    return (strategy == "Always" and phase in FINAL_PHASES) or (strategy == "RerunOnFailure" and phase == "Failed")


def vmi_of(vm: Object) -> Object:
    """Return the VMI that `vm` starts: the template's spec, labels and annotations, owned by the VM."""
    template = vm["spec"].get("template", {})
    meta = template.get("metadata", {})
    return {
        "apiVersion": "kubevirt.io/v1",
        "kind": "VirtualMachineInstance",
        "metadata": {
            "name": vm["metadata"]["name"],
            "namespace": vm["metadata"]["namespace"],
            "labels": {**meta.get("labels", {}), "kubevirt.io/vm": vm["metadata"]["name"]},
            "annotations": dict(meta.get("annotations", {})),
            "finalizers": [FINALIZER],
            "ownerReferences": [owner_reference(vm, "kubevirt.io/v1", "VirtualMachine")],
        },
        "spec": copy.deepcopy(template.get("spec", {})),
    }


def vm_status(vm: Object, vmi: Object | None) -> Object:
    """Return what `vm.status` should show of its VMI (`kubectl get vm` prints it)."""
    wanted = wants_vmi(vm, vmi)
    if vmi is None:
        return {"created": False, "ready": False, "printableStatus": "Starting" if wanted else "Stopped"}
    phase = vmi.get("status", {}).get("phase", "")
    if vmi["metadata"].get("deletionTimestamp"):
        printable = "Stopping"
    elif phase in FINAL_PHASES:
        printable = "Stopped"
    else:
        printable = "Running" if phase == "Running" else "Starting"
    return {"created": True, "ready": is_true(vmi, "Ready"), "printableStatus": printable}


def is_true(obj: Object, condition: str) -> bool:
    """Return whether the status condition of that type is `True`."""
    conditions = obj.get("status", {}).get("conditions") or []
    return any(c.get("type") == condition and c.get("status") == "True" for c in conditions)


def launcher_pod(vmi: Object) -> Object:
    """Return the pod that holds the guest of `vmi`, with an attachment for every secondary network it has.

    :raises msgspec.ValidationError: the VMI's networks or interfaces are malformed.
    """
    meta = vmi["metadata"]
    annotations = {"kubevirt.io/domain": meta["name"], "kubectl.kubernetes.io/default-container": "compute"}
    spec = msgspec.convert(vmi.get("spec", {}), VmiSpec)
    elements = desired(spec, meta["namespace"], [], [], frozenset())
    if elements:
        annotations[NETWORKS] = encode_networks(elements)
    own = {
        "kubevirt.io": "virt-launcher",
        CREATED_BY_LABEL: meta["uid"],
        "vm.kubevirt.io/name": meta["name"],
    }
    return {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {
            "generateName": f"virt-launcher-{meta['name']}-",
            "namespace": meta["namespace"],
            "labels": {**meta.get("labels", {}), **own},
            "annotations": annotations,
            "ownerReferences": [owner_reference(vmi, "kubevirt.io/v1", "VirtualMachineInstance")],
        },
        "spec": {
            "restartPolicy": "Never",
            "hostname": meta["name"][:63],
            "automountServiceAccountToken": False,
            "terminationGracePeriodSeconds": vmi.get("spec", {}).get("terminationGracePeriodSeconds", 10),
            "containers": [{"name": "compute", "image": PAUSE_IMAGE, "command": ["/usr/bin/virt-launcher"]}],
        },
    }


def with_conditions(present: Sequence[Object], wanted: Mapping[str, tuple[bool, str]], now: str) -> list[Object]:
    """Return `present` with the conditions of `wanted` (type -> value, reason) set; others stay as they are.

    The transition time moves only when the value does.
    """
    result = [dict(c) for c in present if c.get("type") not in wanted]
    before = {c.get("type"): c for c in present}
    for kind, (value, reason) in wanted.items():
        status = "True" if value else "False"
        old = before.get(kind, {})
        since = old.get("lastTransitionTime") if old.get("status") == status else None
        entry = {"type": kind, "status": status, "lastTransitionTime": since or now}
        result.append(entry | ({"reason": reason} if reason else {}))
    return result


_UNITS: Final = {"": 1, "k": 1000, "M": 1000**2, "G": 1000**3, "Ki": 1 << 10, "Mi": 1 << 20, "Gi": 1 << 30}


def memory_mib(vmi: Object) -> int:
    """Return the guest's memory in MiB: `domain.memory.guest`, else the memory request, else 192.

    :raises ValueError: the quantity cannot be read.
    """
    domain = vmi.get("spec", {}).get("domain", {})
    requests = domain.get("resources", {}).get("requests", {})
    text = domain.get("memory", {}).get("guest") or requests.get("memory")
    if text is None:
        return DEFAULT_MEMORY_MIB
    match = re.fullmatch(r"(\d+)([kMG]|[KMG]i|)", str(text))
    if match is None:
        raise ValueError(f"memory {text!r} is not a quantity like 192Mi")
    return max(1, int(match[1]) * _UNITS[match[2]] >> 20)


def cores(vmi: Object) -> int:
    """Return the guest's number of cores (default 1)."""
    return int(vmi.get("spec", {}).get("domain", {}).get("cpu", {}).get("cores") or 1)


def primary_mac(vmi: Object) -> str | None:
    """Return the MAC that the spec gives the NIC on the pod network, if any."""
    spec = msgspec.convert(vmi.get("spec", {}), VmiSpec)
    primary = {n.name for n in spec.network_items() if n.pod is not None}
    for interface in spec.interface_items():
        if interface.name in primary:
            return interface.mac_address
    return None
