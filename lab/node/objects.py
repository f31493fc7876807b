"""Build the objects that the lab's node writes, with pure functions: VMI from VM, launcher pod from VMI, statuses.

Objects are decoded JSON here, because a template must be copied completely, including unknown fields. Their content
follows KubeVirt's virt-controller and the kubelet; docs/lab.md lists the gaps. Next: `virt.py`, `kubelet.py`.
"""

from __future__ import annotations

import copy
import datetime as dt
import re
from collections.abc import Mapping, Sequence
from typing import Any, Final

import msgspec

from lab.tools import PAUSE_IMAGE
from schemas.kubernetes.networks import NETWORKS, encode_networks
from schemas.kubernetes.objects import CREATED_BY_LABEL, VirtualMachineInstance
from services.common.domain.attachments import desired_elements
from services.common.domain.nic import parse_nics

Object = dict[str, Any]

FINALIZER: Final = "foregroundDeleteVirtualMachine"
"""KubeVirt's finalizer on VMIs, which keeps the object until its launcher pod is gone."""

RUNNING_STRATEGIES: Final = frozenset({"Always", "RerunOnFailure", "Once"})
FINAL_PHASES: Final = frozenset({"Succeeded", "Failed"})
DEFAULT_MEMORY_MIB: Final = 192


def now() -> str:
    """Return the current time in Kubernetes' format."""
    return dt.datetime.now(dt.UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


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


def needs_vmi(vm: Object, vmi: Object | None) -> bool:
    """Return whether `vm` should have a VMI now.

    `runStrategy` takes precedence over `running`. `Manual` changes nothing. A guest that ended by itself is started
    again by `Always`, only after a failure by `RerunOnFailure`, and never by `Once`.
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


def needs_restart(vm: Object, vmi: Object) -> bool:
    """Return whether an ended `vmi` must be deleted, so that `vm` gets a new one."""
    spec, phase = vm.get("spec", {}), vmi.get("status", {}).get("phase")
    strategy = spec.get("runStrategy") or ("Always" if spec.get("running") else "Halted")
    return (strategy == "Always" and phase in FINAL_PHASES) or (strategy == "RerunOnFailure" and phase == "Failed")


def vmi_of(vm: Object) -> Object:
    """Return the VMI of `vm`: the template's spec, labels and annotations, owned by the VM."""
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
    """Return the VM's status fields that depend on its VMI."""
    desired = needs_vmi(vm, vmi)
    if vmi is None:
        return {"created": False, "ready": False, "printableStatus": "Starting" if desired else "Stopped"}
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
    """Return the launcher pod of `vmi`, with a networks element for every secondary network.

    :raises msgspec.ValidationError: the VMI's networks or interfaces are malformed.
    """
    meta = vmi["metadata"]
    annotations = {"kubevirt.io/domain": meta["name"], "kubectl.kubernetes.io/default-container": "compute"}
    elements = desired_elements(parse_nics(msgspec.convert(vmi, VirtualMachineInstance), None))
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
            **({"nodeSelector": selector} if (selector := vmi.get("spec", {}).get("nodeSelector")) else {}),
            "restartPolicy": "Never",
            # A DNS label has at most 63 characters.
            "hostname": meta["name"][:63],
            "automountServiceAccountToken": False,
            "terminationGracePeriodSeconds": vmi.get("spec", {}).get("terminationGracePeriodSeconds", 10),
            "containers": [{"name": "compute", "image": PAUSE_IMAGE}],
        },
    }


def with_conditions(present: Sequence[Object], desired: Mapping[str, tuple[bool, str]], now: str) -> list[Object]:
    """Return `present` with the conditions in `desired` set; conditions of other types stay as they are.

    The transition time changes only when the value does.

    :param desired: value and reason by condition type.
    """
    result = [dict(c) for c in present if c.get("type") not in desired]
    before = {c.get("type"): c for c in present}
    for kind, (value, reason) in desired.items():
        status = "True" if value else "False"
        old = before.get(kind, {})
        since = old.get("lastTransitionTime") if old.get("status") == status else None
        entry = {"type": kind, "status": status, "lastTransitionTime": since or now}
        result.append(entry | ({"reason": reason} if reason else {}))
    return result


_UNITS: Final = {"": 1, "k": 1000, "M": 1000**2, "G": 1000**3, "Ki": 1 << 10, "Mi": 1 << 20, "Gi": 1 << 30}


def memory_mib(vmi: Object) -> int:
    """Return the guest's memory in MiB: `domain.memory.guest`, else the memory request, else 192.

    :raises ValueError: it is not a quantity.
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
    """Return the guest's number of cores; 1 by default."""
    return int(vmi.get("spec", {}).get("domain", {}).get("cpu", {}).get("cores") or 1)
