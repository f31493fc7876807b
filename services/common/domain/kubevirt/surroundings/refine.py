"""Replace the reason of an interface by one that the objects around its VM give. Pure.

:data:`STEPS` says for each reason what else may be the cause, in order; only the sources that these need are read.
Next: :mod:`services.common.kube.surroundings`, which reads them.
"""

from collections.abc import Callable, Iterable

import msgspec

from schemas.bus.hotplug_status import InterfaceHotplugStatus
from schemas.stages import OperationKind
from services.common.domain.kubevirt.explain import Situation
from services.common.domain.kubevirt.migration import MIGRATION_REQUIRED, find_condition
from services.common.domain.kubevirt.reasons import Explanation
from services.common.domain.kubevirt.surroundings.judge import (
    MIGRATES,
    explain_absence,
    find_attacher_problem,
    find_event,
    find_failed_migration,
    find_target,
    find_unfinished_migration,
    is_ready,
    why_unschedulable,
)
from services.common.domain.kubevirt.surroundings.observed import Source

WAITS_FOR_MULTUS = ("WaitingForMultusAttached", "WaitingForMultusDetached")
"""Reasons that say no more than that Multus has not acted."""
NO_SLOT = "no more available pci slots"
"""libvirt's words, in lower case, when a guest has no free slot for a device."""


class Step(msgspec.Struct, frozen=True):
    """A possible cause.

    :ivar explain: returns the reason if it is the cause.
    :ivar source: what it needs.
    :ivar adds: whether its sentence is added to the first reason, which stays.
    """

    explain: Callable[[Situation, InterfaceHotplugStatus, Explanation], Explanation | None]
    source: Source
    adds: bool = False


def refine(situation: Situation, nic_status: InterfaceHotplugStatus, found: Explanation) -> Explanation:
    """Return the reason that the surroundings give instead of one that the objects of the VM gave."""
    for step in STEPS.get(found.reason, ()):
        better = step.explain(situation, nic_status, found)
        if better is not None:
            return msgspec.structs.replace(found, message=f"{found.message}; {better.message}") if step.adds else better
    return found


def find_sources(nic_statuses: Iterable[InterfaceHotplugStatus]) -> frozenset[Source]:
    """Return what has to be read to refine these statuses; empty when nothing has.

    :param nic_statuses: derived without surroundings.
    """
    return frozenset(step.source for one in nic_statuses for step in STEPS.get(one.reason or "", ()))


def _explain_migration(
    situation: Situation, _nic_status: InterfaceHotplugStatus, _found: Explanation
) -> Explanation | None:
    migration = find_unfinished_migration(situation.around)
    if migration is None:
        return None
    if migration.status.phase in MIGRATES:
        return situation.explain("Migrating")
    target, name = find_target(situation.around, migration), migration.metadata.name
    unschedulable = why_unschedulable(target) if target is not None else ""
    if target is not None and unschedulable:
        return situation.explain(
            "MigrationTargetUnschedulable", migration=name, target=target.metadata.name, text=unschedulable
        )
    event = find_event(situation.around.events, target.metadata.uid, None) if target is not None else ""
    refused = next(
        (one for one in migration.status.conditions if one.status == "True" and "Rejected" in one.type), None
    )
    why = event or (f"{refused.type} {refused.message or ''}".rstrip() if refused is not None else "")
    phase = migration.status.phase or "unset"
    return situation.explain("MigrationPending", migration=name, state=f"{phase}: {why}" if why else phase)


def _explain_failed_migration(
    situation: Situation, nic_status: InterfaceHotplugStatus, found: Explanation
) -> Explanation | None:
    required = find_condition(situation.nics.vmi, MIGRATION_REQUIRED)
    since = required.last_transition_time if required is not None else nic_status.requested_at
    migration = find_failed_migration(situation.around, since)
    if migration is None:
        return None
    states = (migration.status.migration_state, situation.nics.vmi.status.migration_state)
    text = next((one.failure_reason for one in states if one is not None and one.failure_reason), None)
    name, text = migration.metadata.name, text or "KubeVirt gives no reason"
    return situation.explain("MigrationFailed", migration=name, text=text, before=found.message)


def _explain_pod_failure(
    situation: Situation, nic_status: InterfaceHotplugStatus, found: Explanation
) -> Explanation | None:
    pod = situation.nics.pod
    uid = pod.metadata.uid if pod is not None else ""
    event = find_event(situation.around.events, uid, nic_status.requested_at, nic_status.interface)
    if not event:
        return None
    better = situation.explain("AttachFailed" if nic_status.kind is OperationKind.PLUG else "DetachFailed", event=event)
    if found.reason in WAITS_FOR_MULTUS:
        return better
    # What KubeVirt does about it stays worth knowing.
    return msgspec.structs.replace(better, message=f"{better.message}; {found.message}")


def _explain_guest_failure(
    situation: Situation, nic_status: InterfaceHotplugStatus, _found: Explanation
) -> Explanation | None:
    uid, name = situation.nics.vmi.metadata.uid, nic_status.interface
    others = [nic.name for nic in situation.nics if nic.name != name]
    event = find_event(situation.around.events, uid, nic_status.requested_at, name, others)
    if not event:
        return None
    plug = nic_status.kind is OperationKind.PLUG
    if plug and NO_SLOT in event.lower():
        return situation.explain("NoFreeSlot", event=event)
    return situation.explain("GuestAttachFailed" if plug else "GuestDetachFailed", event=event)


def _explain_attachers(
    situation: Situation, _nic_status: InterfaceHotplugStatus, _found: Explanation
) -> Explanation | None:
    pods = situation.around.attachers
    problem = find_attacher_problem(pods) if pods is not None else None
    if problem is None:
        return None
    code, pod = problem
    namespace, _, name = pod.partition("/")
    return situation.explain(code, attacher=name, attacher_namespace=namespace)


def _explain_controller(
    situation: Situation, _nic_status: InterfaceHotplugStatus, _found: Explanation
) -> Explanation | None:
    why = explain_absence(situation.around)
    return situation.explain("VirtControllerAway", why=why) if why else None


def _explain_handler(
    situation: Situation, _nic_status: InterfaceHotplugStatus, _found: Explanation
) -> Explanation | None:
    handlers = situation.around.handlers
    away = handlers is not None and not any(map(is_ready, handlers))
    return situation.explain("VirtHandlerAway") if away else None


_MIGRATION = Step(_explain_migration, Source.MIGRATIONS)
_FAILED_MIGRATION = Step(_explain_failed_migration, Source.MIGRATIONS)
_POD_FAILURE = Step(_explain_pod_failure, Source.EVENTS)
_GUEST_FAILURE = Step(_explain_guest_failure, Source.EVENTS)
_ATTACHERS = Step(_explain_attachers, Source.ATTACHERS)
_CONTROLLER = Step(_explain_controller, Source.VIRT_CONTROLLER)
_HANDLER = Step(_explain_handler, Source.VIRT_HANDLER)
# Where KubeVirt migrates the VM instead, nobody on the node may be as it should be.
_ADD_ATTACHERS = Step(_explain_attachers, Source.ATTACHERS, adds=True)

STEPS: dict[str, tuple[Step, ...]] = {
    "Migrated": (_CONTROLLER,),
    "WaitingForKubeVirt": (_CONTROLLER,),
    "RequestQueued": (_CONTROLLER,),
    "WaitingForMultusAttached": (_MIGRATION, _POD_FAILURE, _ATTACHERS),
    "WaitingForMultusDetached": (_MIGRATION, _POD_FAILURE, _ATTACHERS),
    "WaitingForMultusOrMigration": (_MIGRATION, _POD_FAILURE, _ADD_ATTACHERS),
    "WaitingForGuestAttached": (_GUEST_FAILURE, _HANDLER),
    "WaitingForGuestDetached": (_GUEST_FAILURE, _HANDLER),
    "WillMigrate": (_MIGRATION, _FAILED_MIGRATION, _CONTROLLER),
    "MigrationByHand": (_MIGRATION, _FAILED_MIGRATION, _POD_FAILURE),
    "MigrationNotConfigured": (_MIGRATION, _FAILED_MIGRATION, _POD_FAILURE),
    "NotMigratable": (_POD_FAILURE,),
}
"""By reason: what may be the cause, in order."""
