"""Choose the reason of an interface beside KubeVirt: why its operation does not go on, or what stands against it. Pure.

One reason per interface, the one that decides what a user does next. A state of the whole VM comes first, then what
ends by itself badly or never, then what is waited for.
Not here: the stage (:mod:`services.common.domain.kubevirt.stages`), the words
(:mod:`services.common.domain.kubevirt.reasons`), and what only other objects than VM, VMI and pod tell.
Next: :mod:`services.common.domain.kubevirt.surroundings`, which reads those and replaces some reasons.
"""

import msgspec

from schemas.kubernetes.objects import VirtualMachine
from schemas.stages import OperationKind, Stage
from services.common.domain.kubevirt.capabilities import Capabilities
from services.common.domain.kubevirt.migration import (
    LIVE_MIGRATABLE,
    MIGRATION_REQUIRED,
    MigrationOutcome,
    explain_not_migratable,
    find_condition,
    find_migration_outcome,
    is_earlier,
    is_migration_required,
    seconds_of_grace,
)
from services.common.domain.kubevirt.reasons import STRAY_ELEMENT, Explanation, explain
from services.common.domain.kubevirt.request_queue import read_queue
from services.common.domain.kubevirt.stages import has_lost_its_element, is_on_another_network
from services.common.domain.kubevirt.surroundings.observed import NOTHING_READ, Surroundings
from services.common.domain.nic import Nic, VmiNics
from services.common.domain.operations import is_migrating
from services.common.domain.template import TemplateInterfaces, find_changed_fields

FAILURE, RESTART_REQUIRED = "Failure", "RestartRequired"
"""Conditions of a VM."""
HOTPLUG_ERROR = "HotPlugNetworkInterfaceError"
"""Reason of a ``Failure`` that is about interfaces."""

_OUTCOMES = {
    MigrationOutcome.MIGRATES: "WillMigrate",
    MigrationOutcome.BY_HAND: "MigrationByHand",
    MigrationOutcome.NO_METHOD: "MigrationNotConfigured",
    MigrationOutcome.NOT_MIGRATABLE: "NotMigratable",
    MigrationOutcome.SHUTS_DOWN: "WillBeShutDown",
}


class Situation(msgspec.Struct, frozen=True):
    """What is known when a reason is chosen.

    :ivar template: of the VM that owns the VMI; ``None`` when it is unknown.
    :ivar now: RFC 3339; ``None`` leaves remaining seconds out.
    :ivar around: what stands around the VM; empty where it was not read.
    """

    nics: VmiNics
    template: TemplateInterfaces | None
    beside: Capabilities
    now: str | None = None
    around: Surroundings = NOTHING_READ

    @property
    def vm(self) -> VirtualMachine | None:
        """The VM that owns the VMI."""
        return self.template.vm if self.template is not None else None

    def explain(self, code: str, **values: str) -> Explanation:
        """Return a reason as text, with the names of this VM.

        :param values: further named values of its sentence and remedy.
        """
        vmi, pod = self.nics.vmi, self.nics.pod
        names = {
            "vm": vmi.metadata.name,
            "namespace": vmi.metadata.namespace,
            "uid": vmi.metadata.uid,
            "phase": vmi.status.phase or "unknown",
            "node": vmi.status.node_name or "of the VM",
            "pod": pod.metadata.name if pod is not None else "of the VM",
            "gate": self.beside.gate,
            "kubevirt": self.beside.namespace or "kubevirt",
        }
        return explain(code, **names | values)


def explain_nic(situation: Situation, nic: Nic, stage: Stage) -> Explanation | None:
    """Return the reason of an interface that the VMI has; ``None`` when there is nothing to say.

    :param stage: the stage that it has reached.
    """
    if not nic.absent and stage is Stage.GUEST_ATTACHED:
        return _explain_attached(situation, nic)
    whole = _explain_vmi(situation)
    if whole is not None:
        return whole
    return _explain_unplug(situation, nic, stage) if nic.absent else _explain_plug(situation, nic, stage)


def explain_pending(situation: Situation, name: str, kind: OperationKind) -> Explanation:
    """Return the reason of a change that is in the VM's template or queue, and that the VMI does not have yet."""
    vmi, beside, vm = situation.nics.vmi, situation.beside, situation.vm
    desired = situation.template.interfaces.get(name) if situation.template is not None else None
    queue = [change.name for change in read_queue(vm)] if vm is not None else []
    binding = desired is None or desired.interface.bridge is not None or desired.interface.sriov is not None
    failure = _failure(situation)
    codes = {
        "VmiDeleting": vmi.metadata.deletion_timestamp is not None,
        "KubeVirtInstalling": beside.installing,
        "HotplugGateOff": bool(beside.gate),
        "RequestQueueBlocked": name in queue[1:] and name != queue[0] and failure is not None,
        HOTPLUG_ERROR: failure is not None,
        "RequestQueued": name in queue,
        "TemplateNotFollowed": beside.request_queue,
        "BindingNeedsRestart": kind is OperationKind.PLUG and not binding,
        "OrdinalInterfaceNames": kind is OperationKind.UNPLUG and situation.nics.ordinal,
        "PodNamesUnknown": kind is OperationKind.UNPLUG and beside.needs_pod_names and not _has_pod_name(situation),
    }
    code = next((code for code, holds in codes.items() if holds), "WaitingForKubeVirt")
    more = {"first": queue[0] if queue else "", "task": "copy the change from the VM's template to the running VM"}
    return situation.explain(code, interface=name, text=failure or "", **more)


def explain_stray(situation: Situation, link: str, network: str) -> Explanation:
    """Return the reason of a stray element."""
    return situation.explain(STRAY_ELEMENT, link=link, network=network)


def _explain_vmi(situation: Situation) -> Explanation | None:
    """Return a state of the whole VMI, which hides the reason of one interface."""
    vmi = situation.nics.vmi
    codes = {
        "VmiDeleting": vmi.metadata.deletion_timestamp is not None,
        "VmiNotRunning": vmi.status.phase != "Running",
        "KubeVirtInstalling": situation.beside.installing,
        "Migrating": is_migrating(vmi),
        "NoActingPod": situation.nics.pod is None,
    }
    code = next((code for code, holds in codes.items() if holds), None)
    return situation.explain(code) if code is not None else None


def _explain_plug(situation: Situation, nic: Nic, stage: Stage) -> Explanation:
    if stage is Stage.MULTUS_ATTACHED:
        return situation.explain("WaitingForGuestAttached")
    if nic.status is not None and is_on_another_network(situation.nics, nic):
        cause = f"the network was changed from {nic.status.name} to {nic.nad}, which a running pod cannot follow"
        return _explain_migration(situation, cause)
    if stage is Stage.POD_ANNOTATED:
        cause = "Multus has not attached the interface to the running pod"
        return _explain_multus(situation, "WaitingForMultusAttached", "attached", cause)
    if nic.interface.sriov is not None:
        return _explain_migration(situation, "an SR-IOV device cannot be added to a running pod")
    if _was_migrated_meanwhile(situation, nic):
        return situation.explain("Migrated")
    if has_lost_its_element(situation.nics, nic):
        return situation.explain("ElementMissing")
    return _explain_kubevirt(situation, "list the interface in the pod's networks annotation")


def _explain_unplug(situation: Situation, nic: Nic, stage: Stage) -> Explanation:
    if situation.nics.ordinal:
        return situation.explain("OrdinalInterfaceNames")
    last = all(other.absent for other in situation.nics)
    if nic.element is not None and last and not situation.beside.removes_last_interface:
        return situation.explain("LastInterfaceStays")
    if stage is Stage.GUEST_DETACHED and is_migration_required(situation.nics.vmi):
        return _explain_migration(situation, "Multus has not detached the interface from the running pod")
    if _comes_back(situation, nic):
        return situation.explain("ComesBack", interface=nic.name)
    if stage is Stage.REQUESTED:
        still = "Multus still has to detach the interface from the pod, too"
        pod_side = still if nic.in_pod else "the pod does not have the interface any more"
        return situation.explain("WaitingForGuestDetached", pod_side=pod_side)
    if stage is Stage.GUEST_DETACHED:
        return _explain_multus(situation, "WaitingForMultusDetached", "detached", "")
    return _explain_kubevirt(situation, "remove the interface from the specs of VM and VMI")


def _explain_attached(situation: Situation, nic: Nic) -> Explanation | None:
    """Return what stands against an interface that is attached: nothing, in most cases."""
    template, vmi, vm = situation.template, situation.nics.vmi, situation.vm
    if template is None or vm is None:
        return None
    if nic.name not in template.interfaces:
        return situation.explain("DroppedFromTemplate", interface=nic.name, network=nic.nad)
    condition = find_condition(vm, RESTART_REQUIRED)
    if condition is None or condition.status != "True":
        return None
    fields = find_changed_fields(vm, vmi, nic.name)
    if fields:
        return situation.explain("RestartRequired", fields=", ".join(fields))
    if situation.beside.always_restart_required and nic.has_operation:
        return situation.explain("RestartRequiredAlways")
    if vm.spec.preference is not None and not nic.interface.model:
        return situation.explain("RestartRequiredByPreference")
    return None


def _explain_multus(situation: Situation, code: str, attached: str, cause: str) -> Explanation:
    """Explain an interface that Multus has to attach or detach; after a while KubeVirt migrates the VM instead."""
    condition = find_condition(situation.nics.vmi, MIGRATION_REQUIRED)
    if condition is None:
        return situation.explain(code)
    if is_migration_required(situation.nics.vmi):
        return _explain_migration(situation, cause)
    left = seconds_of_grace(condition, situation.now)
    when = "20 s after the change" if left is None else f"in {left} s" if left else "within seconds"
    return situation.explain("WaitingForMultusOrMigration", attached=attached, when=when)


def _explain_kubevirt(situation: Situation, task: str) -> Explanation:
    """Explain an interface that virt-controller has to change."""
    failure = _failure(situation)
    if situation.beside.gate:
        return situation.explain("HotplugGateOff")
    if failure is not None:
        return situation.explain(HOTPLUG_ERROR, text=failure)
    if is_migration_required(situation.nics.vmi):
        return _explain_migration(situation, "the running pod does not have the interface")
    return situation.explain("WaitingForKubeVirt", task=task)


def _explain_migration(situation: Situation, cause: str) -> Explanation:
    vmi, beside = situation.nics.vmi, situation.beside
    migratable = find_condition(vmi, LIVE_MIGRATABLE)
    return situation.explain(
        _OUTCOMES[find_migration_outcome(vmi, beside)],
        cause=cause,
        why=explain_not_migratable(vmi),
        migratable=migratable.status if migratable is not None else "not set",
        strategy=vmi.spec.eviction_strategy or beside.eviction_strategy or "not set",
    )


def _has_pod_name(situation: Situation) -> bool:
    """Return whether the VMI's status has the name of a secondary interface in the pod."""
    return any(nic.entry.get("podInterfaceName") for nic in situation.nics)


def _comes_back(situation: Situation, nic: Nic) -> bool:
    """Return whether the template has an interface that is being unplugged, not only until KubeVirt 1.0 follows."""
    template, vm = situation.template, situation.vm
    desired = template.interfaces.get(nic.name) if template is not None else None
    queued = [change.name for change in read_queue(vm)] if vm is not None else []
    return desired is not None and desired.kind is OperationKind.PLUG and nic.name not in queued


def _was_migrated_meanwhile(situation: Situation, nic: Nic) -> bool:
    """Return whether the VM moved to its pod after the plug was requested; that pod was made without the interface."""
    state, pod, requested = situation.nics.vmi.status.migration_state, situation.nics.pod, nic.operation.requested_at
    if state is None or pod is None or state.target_pod != pod.metadata.name:
        return False
    return is_earlier(requested, state.end_timestamp)


def _failure(situation: Situation) -> str | None:
    """Return KubeVirt's words about an error with interfaces; ``None`` when it reports none."""
    condition = find_condition(situation.vm, FAILURE) if situation.vm is not None else None
    if condition is None or condition.status != "True" or condition.reason != HOTPLUG_ERROR:
        return None
    return condition.message or "without a text"
