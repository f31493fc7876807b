"""Reasons beside KubeVirt that other objects than VM, VMI and launcher pod give."""

from typing import Any

import msgspec
import pytest

from schemas.bus.hotplug_status import InterfaceHotplugStatus
from schemas.kubernetes.kubevirt import VirtualMachineInstanceMigration
from schemas.kubernetes.networks import NETWORK_STATUS, NETWORKS, NetworkStatus, encode_network_status
from schemas.kubernetes.objects import Condition, Lease, Pod, VirtualMachineInstance
from schemas.kubernetes.operations import Operation, encode_annotation, operation_key, unplug_key
from schemas.kubernetes.pod_volumes import PodWithVolumes
from schemas.names import pod_interface
from schemas.stages import OperationKind
from services.common.domain.kubevirt.surroundings.judge import (
    MAX_EVENT,
    find_event,
    find_target,
    parse_event,
    why_unschedulable,
)
from services.common.domain.kubevirt.surroundings.observed import NOTHING_READ, ReportedEvent, Source, Surroundings
from services.common.domain.kubevirt.surroundings.refine import find_sources
from services.common.domain.nic import parse_nics
from services.common.domain.status.hotplug_status import derive_statuses
from services.common.kube.surroundings import VMI_LABEL
from tests.support.observed import objects
from tests.support.observed.kubevirt import capabilities
from tests.support.recorded_kubevirt import recorded, recorded_pods

NIC, ABSENT, LINK = objects.nic("blue"), objects.nic("blue", state="absent"), pod_interface("blue")
BEFORE, AT, AFTER, LATE = (f"2026-11-28T12:0{minute}:00Z" for minute in range(4))
LISTED = {NETWORKS: f'[{{"name":"net1","namespace":"default","interface":"{LINK}"}}]'}
ATTACHED = {NETWORK_STATUS: encode_network_status([NetworkStatus("default/net1", LINK)])}
IN_GUEST = [{"name": "blue", "infoSource": "domain, multus-status", "mac": "02:00:00:00:00:02"}]
REQUIRED, GRACE = Condition("MigrationRequired", "True"), Condition("MigrationRequired", "False")
MIGRATABLE = Condition("LiveMigratable", "True")


def vmi(kind: OperationKind, *conditions: Condition, status: Any = None) -> VirtualMachineInstance:
    """Return a running VMI that plugs or unplugs ``blue``, requested at :data:`AT`."""
    plug = kind is OperationKind.PLUG
    key = operation_key("blue") if plug else unplug_key("blue")
    entry = encode_annotation(Operation("op", kind, "blue", requested_at=AT, vm=objects.VM_UID))
    held = [msgspec.structs.replace(one, last_transition_time=AT) for one in conditions]
    return objects.vmi(
        NIC if plug else ABSENT,
        owned=True,
        annotations={key: entry},
        status=status,
        conditions=msgspec.to_builtins(held),
    )


ObjectsOfVm = tuple[VirtualMachineInstance, dict[str, str]]
"""The VMI and the annotations of its acting pod."""

WAITS_FOR_KUBEVIRT: ObjectsOfVm = vmi(OperationKind.PLUG), {}
WAITS_FOR_MULTUS = vmi(OperationKind.PLUG), LISTED
IN_GRACE = vmi(OperationKind.PLUG, GRACE), LISTED
HAS_TO_MIGRATE = vmi(OperationKind.PLUG, REQUIRED, MIGRATABLE), LISTED
WAITS_FOR_GUEST = vmi(OperationKind.PLUG), LISTED | ATTACHED
UNPLUGS_FROM_GUEST: ObjectsOfVm = vmi(OperationKind.UNPLUG, status=IN_GUEST), {}
UNPLUGS_FROM_POD = vmi(OperationKind.UNPLUG), ATTACHED


def pod(name: str, *conditions: Condition, uid: str = "", **labels: str) -> Pod:
    """Return a pod with labels, whose ``_`` stand for the characters that a Python name cannot have."""
    named = {key.replace("__", "/").replace("_", "."): value for key, value in labels.items()}
    document = {
        "metadata": {"name": name, "namespace": "system", "uid": uid, "labels": named},
        "status": {"phase": "Running", "conditions": msgspec.to_builtins(conditions)},
    }
    return msgspec.convert(document, Pod)


def attacher(name: str, *conditions: Condition, **labels: str) -> PodWithVolumes:
    """Return a pod that mounts something of the node."""
    document = msgspec.to_builtins(pod(name, *conditions, **labels))
    return msgspec.convert({**document, "spec": {"volumes": [{"hostPath": {"path": "/run"}}]}}, PodWithVolumes)


READY, NOT_READY = Condition("Ready", "True"), Condition("Ready", "False")
NETWORKS_READY = attacher("networks-1", READY, app_kubernetes_io__component="networks")
NETWORKS_DOWN = attacher("networks-1", NOT_READY, app_kubernetes_io__component="networks")
ONE_PROCESS_READY, ONE_PROCESS_DOWN = (
    attacher("multus-1", one, app_kubernetes_io__component="multus", hotnic_io__networks="true")
    for one in (READY, NOT_READY)
)
UPSTREAM_READY = attacher("dnc-1", READY, app="dynamic-networks-controller")
OF_A_TENANT = msgspec.convert(
    msgspec.to_builtins(pod("mine", READY, app="dynamic-networks-controller")), PodWithVolumes
)
MULTUS_READY, MULTUS_DOWN = (attacher("multus-1", one, app="multus") for one in (READY, NOT_READY))
CONTROLLER, HANDLER = pod("virt-controller-1", READY), pod("virt-handler-1", NOT_READY)
UNSCHEDULABLE = Condition("PodScheduled", "False", "Unschedulable", "0/1 nodes are available")
TARGET = {"kubevirt_io__migrationJobUID": "m1"}


def lease(renewed: str) -> Lease:
    return msgspec.convert({"spec": {"holderIdentity": "virt-controller-1", "renewTime": renewed}}, Lease)


def migration(phase: str, at: str = AFTER, **status: Any) -> VirtualMachineInstanceMigration:
    document = {
        "metadata": {"name": "update-1", "uid": "m1", "creationTimestamp": at},
        "status": {"phase": phase, **status},
    }
    return msgspec.convert(document, VirtualMachineInstanceMigration)


def event(reason: str, message: str, about: str = objects.POD_UID, at: str | None = AFTER) -> ReportedEvent:
    return ReportedEvent(about, reason, message, at)


def around(**fields: Any) -> Surroundings:
    return Surroundings(read_at=LATE, **fields)


ADD_FAILED = event("FailedAddingInterface", f"pod [default/launcher]: failed adding interface {LINK} to network: net1")
REMOVE_FAILED = event("FailedRemovingInterface", f"pod [default/launcher]: failed removing interface {LINK}")
OF_ANOTHER = event("FailedAddingInterface", f"failed adding interface {pod_interface('red')} to network: net1")
EARLIER = event("FailedAddingInterface", f"failed adding interface {LINK} to network: net1", at=BEFORE)
HOTPLUG = event("NicHotplug", "failed to plug network blue", objects.VMI_UID)
NO_SLOT = event(
    "SyncFailed", "LibvirtError(Message='internal error: No more available PCI slots')", objects.VMI_UID, LATE
)
NO_SANDBOX = event("FailedCreatePodSandBox", 'plugin type="multus" failed (add): no lease', "t1")
FAILED: dict[str, Any] = {"migrationState": {"failed": True, "failureReason": "qemu: out of memory"}}

TABLE = [
    (WAITS_FOR_KUBEVIRT, around(), "WaitingForKubeVirt", ""),
    (WAITS_FOR_KUBEVIRT, around(controllers=(CONTROLLER,)), "WaitingForKubeVirt", ""),
    (WAITS_FOR_KUBEVIRT, around(controllers=()), "VirtControllerAway", "none of its pods is ready"),
    (WAITS_FOR_KUBEVIRT, around(controllers=(HANDLER,)), "VirtControllerAway", "none of its pods is ready"),
    (WAITS_FOR_KUBEVIRT, around(controllers=(CONTROLLER,), controller_lease=lease(LATE)), "WaitingForKubeVirt", ""),
    (WAITS_FOR_KUBEVIRT, around(controllers=(CONTROLLER,), controller_lease=lease(AT)), "VirtControllerAway", AT),
    (WAITS_FOR_MULTUS, around(), "WaitingForMultusAttached", ""),
    (WAITS_FOR_MULTUS, around(attachers=()), "NoNetworksController", "when a pod starts"),
    (WAITS_FOR_MULTUS, around(attachers=(OF_A_TENANT,)), "NoNetworksController", "when a pod starts"),
    (WAITS_FOR_MULTUS, around(attachers=(MULTUS_READY,)), "NoNetworksController", "when a pod starts"),
    (WAITS_FOR_MULTUS, around(attachers=(NETWORKS_DOWN,)), "NetworksControllerNotReady", "networks-1"),
    (WAITS_FOR_MULTUS, around(attachers=(UPSTREAM_READY, MULTUS_DOWN)), "MultusNotReady", "multus-1"),
    (WAITS_FOR_MULTUS, around(attachers=(NETWORKS_READY,)), "WaitingForMultusAttached", ""),
    (WAITS_FOR_MULTUS, around(attachers=(ONE_PROCESS_READY,)), "WaitingForMultusAttached", ""),
    (WAITS_FOR_MULTUS, around(attachers=(ONE_PROCESS_DOWN,)), "NetworksControllerNotReady", "multus-1"),
    (WAITS_FOR_MULTUS, around(events=(OF_ANOTHER, EARLIER)), "WaitingForMultusAttached", ""),
    (WAITS_FOR_MULTUS, around(events=(ADD_FAILED, OF_ANOTHER)), "AttachFailed", "FailedAddingInterface: pod [default"),
    (WAITS_FOR_MULTUS, around(migrations=(migration("Scheduling"),)), "MigrationPending", "Scheduling"),
    (IN_GRACE, around(attachers=()), "WaitingForMultusOrMigration", "nobody attaches networks"),
    (IN_GRACE, around(events=(ADD_FAILED,)), "AttachFailed", "failed adding"),
    (UNPLUGS_FROM_POD, around(events=(REMOVE_FAILED,)), "DetachFailed", "failed removing"),
    (HAS_TO_MIGRATE, around(), "MigrationNotConfigured", ""),
    (HAS_TO_MIGRATE, around(events=(ADD_FAILED,)), "AttachFailed", "and KubeVirt waits for ever"),
    (HAS_TO_MIGRATE, around(migrations=(migration("Succeeded"),)), "MigrationNotConfigured", ""),
    (HAS_TO_MIGRATE, around(migrations=(migration("Running"),)), "Migrating", "being migrated"),
    (HAS_TO_MIGRATE, around(migrations=(migration("Failed", BEFORE),)), "MigrationNotConfigured", ""),
    (
        HAS_TO_MIGRATE,
        around(migrations=(migration("Failed", AFTER, **FAILED),)),
        "MigrationFailed",
        "out of memory. Multus has",
    ),
    (
        HAS_TO_MIGRATE,
        around(migrations=(migration("Failed", AT), migration("Pending")), launchers=(pod("t", uid="t1", **TARGET),)),
        "MigrationPending",
        "Pending",
    ),
    (
        HAS_TO_MIGRATE,
        around(migrations=(migration("Scheduling"),), launchers=(pod("t", uid="t1", **TARGET),), events=(NO_SANDBOX,)),
        "MigrationPending",
        "no lease",
    ),
    (
        HAS_TO_MIGRATE,
        around(migrations=(migration("Scheduling"),), launchers=(pod("t", UNSCHEDULABLE, **TARGET),)),
        "MigrationTargetUnschedulable",
        "0/1 nodes",
    ),
    (WAITS_FOR_GUEST, around(), "WaitingForGuestAttached", ""),
    (WAITS_FOR_GUEST, around(handlers=(HANDLER,)), "VirtHandlerAway", "virt-handler"),
    (WAITS_FOR_GUEST, around(events=(HOTPLUG,)), "GuestAttachFailed", "NicHotplug: failed to plug"),
    (WAITS_FOR_GUEST, around(events=(HOTPLUG, NO_SLOT)), "NoFreeSlot", "No more available PCI slots"),
    (UNPLUGS_FROM_GUEST, around(), "WaitingForGuestDetached", ""),
    (UNPLUGS_FROM_GUEST, around(events=(NO_SLOT,)), "GuestDetachFailed", "SyncFailed"),
]


def derive(found: ObjectsOfVm, surroundings: Surroundings = NOTHING_READ) -> InterfaceHotplugStatus:
    running, annotations = found
    template = NIC if running.spec.interface_items()[-1].state != "absent" else ABSENT
    nics = parse_nics(running, objects.pod(annotations))
    (status,) = derive_statuses(nics, objects.vm(template), capabilities(), around=surroundings)
    return status


@pytest.mark.parametrize(
    ("objects_of_vm", "surroundings", "reason", "words"),
    TABLE,
    ids=[f"{row[2]}-{number}" for number, row in enumerate(TABLE)],
)
def test_surroundings_give_the_reason(
    objects_of_vm: ObjectsOfVm, surroundings: Surroundings, reason: str, words: str
) -> None:
    found = derive(objects_of_vm, surroundings)
    assert found.reason == reason
    assert words in str(found.message)
    assert bool(words) is (found.message != derive(objects_of_vm).message)
    assert bool(found.remedy) is (reason != "Migrating")


def test_a_recorded_migration_has_its_target_pod() -> None:
    objects_of_moment = recorded("v1.9.0-b6-migrating")
    found = msgspec.convert(objects_of_moment["migration"], VirtualMachineInstanceMigration)
    assert (found.spec.vmi_name, found.metadata.labels[VMI_LABEL], found.status.phase) == ("hr", "hr", "Running")
    launchers = tuple(recorded_pods("v1.9.0-b6-migrating"))
    target = find_target(around(migrations=(found,), launchers=launchers), found)
    assert target is not None
    assert target.metadata.name == objects_of_moment["vmi"]["status"]["migrationState"]["targetPod"]
    assert why_unschedulable(target) == ""


def test_failure_that_names_another_interface_is_not_about_this_one() -> None:
    red = event("NicHotplug", f"pod link ({pod_interface('red')}) is missing", objects.VMI_UID)
    assert find_event([red], objects.VMI_UID, AT, "blue", ["red"]) == ""
    assert find_event([red], objects.VMI_UID, AT, "red", ["blue"]) == find_event([red], objects.VMI_UID, AT) != ""


def test_only_what_may_be_the_cause_is_read() -> None:
    assert find_sources([derive(WAITS_FOR_KUBEVIRT)]) == {Source.VIRT_CONTROLLER}
    assert find_sources([derive(WAITS_FOR_GUEST)]) == {Source.EVENTS, Source.VIRT_HANDLER}
    assert find_sources([derive((vmi(OperationKind.PLUG, status=IN_GUEST), LISTED | ATTACHED))]) == set()


def test_text_of_an_event_is_one_line_of_limited_length() -> None:
    long = event("NicHotplug", "\x1b[31mred\nblue " + "x" * 2000 + " the cause", objects.VMI_UID)
    message = str(derive(WAITS_FOR_GUEST, around(events=(long,))).message)
    assert message.isprintable()
    assert message.endswith("x the cause")
    assert "NicHotplug:  [31mred blue xx" in message
    assert len(message) < MAX_EVENT + 80
    parsed = parse_event({"involvedObject": {"uid": "u"}, "reason": "R", "message": None, "series": None})
    assert parsed == ReportedEvent("u", "R", "", None)
