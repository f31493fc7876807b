"""Why an operation beside KubeVirt does not go on, or what stands against an interface: the table of reasons. Data.

Each has a code, a sentence, what a user can do, and a section of ``docs/beside-kubevirt.md``.
Not here: which one applies, and the rows about what stands around a VM
(:mod:`services.common.domain.kubevirt.surroundings.reasons`).
Next: :mod:`services.common.domain.kubevirt.explain`, which chooses one.
"""

import msgspec

from schemas.inputs import one_line
from services.common.domain.kubevirt.surroundings.reasons import ATTACH_IN_PLACE, MIGRATE, ROWS

PAGE = "docs/beside-kubevirt.md"
"""The page with a section for each reason."""
STRAY_ELEMENT = "StrayElement"
"""The reason of an element in the pod that belongs to no interface."""
MAX_VALUE = 512
"""Characters of a text from an object that are put into a sentence."""


class Reason(msgspec.Struct, frozen=True):
    """One row of the table.

    :ivar code: CamelCase.
    :ivar sentence: what happens, with named values in braces.
    :ivar remedy: what a user can do; empty when there is nothing to do but wait.
    """

    code: str
    sentence: str
    remedy: str = ""

    @property
    def anchor(self) -> str:
        """The section of the page, whose heading is the code."""
        return self.code.lower()


class Explanation(msgspec.Struct, frozen=True):
    """A reason as a user reads it.

    :ivar remedy: ``None`` when there is nothing to do but wait.
    :ivar docs: page and section.
    """

    reason: str
    message: str
    remedy: str | None
    docs: str


_METHODS = "spec.workloadUpdateStrategy.workloadUpdateMethods of the KubeVirt object"

TABLE: tuple[Reason, ...] = (
    Reason("VmiDeleting", "the VM is being stopped or deleted"),
    Reason(
        "VmiNotRunning",
        "the VM is in phase {phase}; KubeVirt plugs and unplugs interfaces of a running VM",
        "wait until it runs; if it does not: kubectl describe vmi {vm} -n {namespace}",
    ),
    Reason(
        "KubeVirtInstalling",
        "KubeVirt is being installed and does not act yet",
        "wait until its phase is Deployed: kubectl get kubevirt -A",
    ),
    Reason(
        "HotplugGateOff",
        "the feature gate {gate} of KubeVirt is not enabled, so it plugs and unplugs nothing",
        "add {gate} to spec.configuration.developerConfiguration.featureGates of the KubeVirt object, "
        "or restart the VM",
    ),
    Reason(
        "Migrating",
        "the VM is being migrated; until the migration ends, stages may go back and come again",
    ),
    Reason(
        "Migrated",
        "the VM was migrated while the interface was being plugged; its new pod does not have the interface yet, and "
        "KubeVirt lists it there next",
    ),
    Reason(
        "NoActingPod",
        "no running launcher pod of the VM was found on its node",
        "kubectl get pods -n {namespace} -l kubevirt.io/created-by={uid}",
    ),
    Reason(
        "OrdinalInterfaceNames",
        "the pod has ordinal interface names (net1, …), with which KubeVirt unplugs nothing",
        "restart the VM; its new pod has other names",
    ),
    Reason(
        "PodNamesUnknown",
        "no interface of the VM has reported its name in the pod yet, and KubeVirt unplugs nothing until one has",
        ATTACH_IN_PLACE + "; without them, migrate the VM: " + MIGRATE,
    ),
    Reason(
        "HotPlugNetworkInterfaceError",
        "KubeVirt reports an error: {text}",
        "remove the cause that it names; KubeVirt tries again by itself",
    ),
    Reason(
        "WaitingForKubeVirt",
        "virt-controller still has to {task}",
        "if this lasts, virt-controller does not run or its changes are refused; see its log: "
        "kubectl logs -A -l kubevirt.io=virt-controller",
    ),
    Reason(
        "WaitingForMultusAttached",
        "the pod's annotation lists the interface, and Multus has not attached it yet",
        ATTACH_IN_PLACE + "; the Events of the pod have the cause of a failure: kubectl describe pod {pod} "
        "-n {namespace}. Without them, migrate the VM: " + MIGRATE,
    ),
    Reason(
        "WaitingForMultusOrMigration",
        "Multus has not {attached} the interface yet; if it does not, KubeVirt requires a migration of the VM {when}",
        "nothing, if a networks controller runs on node {node}; otherwise " + ATTACH_IN_PLACE,
    ),
    Reason(
        "WaitingForMultusDetached",
        "the guest has released the device, and Multus has not detached the interface from the pod yet",
        ATTACH_IN_PLACE + "; the Events of the pod have the cause of a failure: kubectl describe pod {pod} "
        "-n {namespace}. Without them, migrate the VM: " + MIGRATE,
    ),
    Reason(
        "WaitingForGuestAttached",
        "the pod has the interface, and virt-handler has not added the device to the guest yet",
        "if this lasts, see the Events NicHotplug and SyncFailed of the VMI (kubectl describe vmi {vm} -n {namespace}) "
        "and whether the guest has a free PCI slot",
    ),
    Reason(
        "WaitingForGuestDetached",
        "the guest has not released the device; {pod_side}",
        "let the operating system of the guest run and release it (its driver has to support hot-unplug), "
        "or restart the VM",
    ),
    Reason(
        "WillMigrate",
        "{cause}, so KubeVirt migrates the VM within seconds",
    ),
    Reason(
        "MigrationByHand",
        "{cause}, and this version of KubeVirt migrates no VM by itself",
        "migrate the VM: " + MIGRATE,
    ),
    Reason(
        "MigrationNotConfigured",
        "{cause}, and KubeVirt waits for ever, because its workloadUpdateMethods are empty",
        "migrate the VM: " + MIGRATE + "; for all VMs, add LiveMigrate to " + _METHODS + ", or "
        "(not for SR-IOV and changed networks) " + ATTACH_IN_PLACE,
    ),
    Reason(
        "NotMigratable",
        "{cause}, and KubeVirt waits for ever, because the VM cannot be migrated: {why}",
        "restart the VM, or remove what keeps it from being migrated",
    ),
    Reason(
        "WillBeShutDown",
        "{cause}, and KubeVirt SHUTS THE VM DOWN within seconds: its workloadUpdateMethods have Evict, and an eviction "
        "does not migrate this VM (LiveMigratable: {migratable}; evictionStrategy: {strategy})",
        "take the change back at once, or remove Evict from " + _METHODS + "; evictionStrategy LiveMigrate keeps a VM "
        "from being shut down",
    ),
    Reason(
        "ElementMissing",
        "the guest has the device, but the pod's networks annotation does not list the interface; KubeVirt repairs an "
        "annotation only when it plugs or unplugs something",
        "plug another interface, or migrate the VM: " + MIGRATE,
    ),
    Reason(
        "LastInterfaceStays",
        "this version of KubeVirt does not take the last secondary interface out of the pod",
        "restart the VM; or plug another interface, and this one goes",
    ),
    Reason(
        "ComesBack",
        "the interface is being unplugged, which is final, but the VM's template has it again; KubeVirt plugs it anew "
        "as soon as it is gone",
        "to keep it out, remove it again after that: hotnic removeinterface {vm} -n {namespace} --name {interface}",
    ),
    Reason(
        "DroppedFromTemplate",
        "the VM's template does not have the interface any more, but it was not unplugged: KubeVirt unplugs only what "
        "the template has as absent",
        "add it again with the same network {network}, and remove it then: hotnic removeinterface {vm} -n {namespace} "
        "--name {interface}; or restart the VM",
    ),
    Reason(
        "RestartRequired",
        "KubeVirt applies a change of {fields} only at a restart",
        "restart the VM, or take the change back: the condition RestartRequired goes with it",
    ),
    Reason(
        "RestartRequiredByPreference",
        "the VM has the condition RestartRequired, because its preference sets an interface model that the interface "
        "does not have; the interface works",
        "name the preference's model in the VM's template (addinterface of hotnic does so), or restart the VM",
    ),
    Reason(
        "RestartRequiredAlways",
        "KubeVirt before 1.5.1 sets RestartRequired at every change of interfaces; the interface is plugged",
        "nothing; the condition goes at the next restart",
    ),
    Reason(
        "RequestQueued",
        "the request is in the VM's status.interfaceRequests; virt-controller still has to follow it",
        "if this lasts, virt-controller does not run; see its log: kubectl logs -A -l kubevirt.io=virt-controller",
    ),
    Reason(
        "RequestQueueBlocked",
        "an earlier request, about interface {first}, fails, and KubeVirt follows no later one until it succeeds: "
        "{text}",
        "remove the cause; if there is none to remove, take {first} out of status.interfaceRequests of the VM "
        "(kubectl edit vm {vm} -n {namespace} --subresource=status)",
    ),
    Reason(
        "TemplateNotFollowed",
        "KubeVirt 1.0 follows requests, not edits of a VM's template, so the change waits for a restart",
        "take the edit back and use hotnic addinterface or removeinterface, or restart the VM",
    ),
    Reason(
        "BindingNeedsRestart",
        "KubeVirt plugs only interfaces with bridge binding or SR-IOV into a running VM",
        "restart the VM, or use bridge binding",
    ),
    Reason(
        STRAY_ELEMENT,
        "the pod's networks annotation lists {link} on network {network}, which no interface of the VM has; KubeVirt "
        "leaves such an element when a plug is taken back early",
        "remove it: hotnic doctor --fix",
    ),
    *(Reason(*row) for row in ROWS),
)

WARNED = frozenset(
    {
        "HotplugGateOff",
        "OrdinalInterfaceNames",
        "HotPlugNetworkInterfaceError",
        "MigrationByHand",
        "MigrationNotConfigured",
        "NotMigratable",
        "WillBeShutDown",
        "ElementMissing",
        "LastInterfaceStays",
        "ComesBack",
        "DroppedFromTemplate",
        "RestartRequired",
        "RestartRequiredByPreference",
        "RequestQueueBlocked",
        "TemplateNotFollowed",
        "BindingNeedsRestart",
        "NoNetworksController",
        "AttachFailed",
        "DetachFailed",
        "NoFreeSlot",
        "GuestAttachFailed",
        "GuestDetachFailed",
        "MigrationTargetUnschedulable",
        "MigrationFailed",
        STRAY_ELEMENT,
    }
)
"""Codes of what ends badly, or never by itself: the controller warns of it with an Event on the VM."""

REASONS: dict[str, Reason] = {row.code: row for row in TABLE}


def explain(code: str, **values: str) -> Explanation:
    """Return a reason as text.

    :param values: the named values of its sentence and remedy.
    """
    row, short = REASONS[code], {name: one_line(value)[:MAX_VALUE] for name, value in values.items()}
    remedy = row.remedy.format(**short) or None
    return Explanation(code, row.sentence.format(**short), remedy, f"{PAGE}#{row.anchor}")
