"""What KubeVirt does with a running VM that has an interface which cannot be attached in place. Pure.

It migrates the VM, waits for ever, or shuts it down: this depends on its ``workloadUpdateMethods``, and on whether the
VM can be migrated and evicted. Not here: whether an interface needs it.
Next: :mod:`services.common.domain.kubevirt.reasons`, how a user is told.
"""

from enum import Enum, auto

from schemas.kubernetes.objects import Condition, Pod, VirtualMachine, VirtualMachineInstance
from schemas.kubernetes.pod_volumes import PodWithVolumes
from services.common.domain.kubevirt.capabilities import EVICT, LIVE_MIGRATE, Capabilities
from services.common.domain.kubevirt.times import seconds_between

MIGRATION_REQUIRED, LIVE_MIGRATABLE = "MigrationRequired", "LiveMigratable"
GRACE = 20.0
"""Seconds after which ``MigrationRequired`` turns ``True`` if Multus does not serve the pod.

KubeVirt asks for more than 15 s, and looks at a quiet VMI every 10 s.
"""
MIGRATING_STRATEGIES = frozenset({"LiveMigrate", "LiveMigrateIfPossible"})
"""Eviction strategies that turn the eviction of a VM that can be migrated into a migration."""
KEEPING_STRATEGIES = frozenset({"LiveMigrate", "External"})
"""Eviction strategies that refuse the eviction of a VM that cannot be migrated."""


class MigrationOutcome(Enum):
    """What KubeVirt does with a VM that has to be migrated."""

    MIGRATES = auto()
    BY_HAND = auto()
    """This KubeVirt does not migrate by itself; a user can migrate the VM."""
    NO_METHOD = auto()
    """KubeVirt may neither migrate nor evict: it waits for ever."""
    NOT_MIGRATABLE = auto()
    """The VM cannot be migrated and is not evicted: KubeVirt waits for ever."""
    SHUTS_DOWN = auto()
    """KubeVirt evicts the VM, which shuts it down."""


def find_migration_outcome(vmi: VirtualMachineInstance, beside: Capabilities) -> MigrationOutcome:
    """Return what KubeVirt does with this VM when it has to be migrated."""
    migratable = is_migratable(vmi)
    if not beside.automatic_migration:
        return MigrationOutcome.BY_HAND if migratable else MigrationOutcome.NOT_MIGRATABLE
    if migratable and LIVE_MIGRATE in beside.update_methods:
        return MigrationOutcome.MIGRATES
    if EVICT in beside.update_methods:
        return _find_eviction_outcome(vmi.spec.eviction_strategy or beside.eviction_strategy, migratable)
    return MigrationOutcome.NO_METHOD if migratable else MigrationOutcome.NOT_MIGRATABLE


def is_migratable(vmi: VirtualMachineInstance) -> bool:
    """Return whether KubeVirt can migrate a VM."""
    condition = find_condition(vmi, LIVE_MIGRATABLE)
    return condition is not None and condition.status == "True"


def is_migration_required(vmi: VirtualMachineInstance) -> bool:
    """Return whether KubeVirt has found that a VM has to be migrated, and waits no longer for Multus."""
    condition = find_condition(vmi, MIGRATION_REQUIRED)
    return condition is not None and condition.status == "True"


def explain_not_migratable(vmi: VirtualMachineInstance) -> str:
    """Return KubeVirt's words on why a VM cannot be migrated."""
    condition = find_condition(vmi, LIVE_MIGRATABLE)
    if condition is None:
        return "the VM has no condition LiveMigratable"
    return condition.message or condition.reason or "KubeVirt gives no reason"


def find_condition(
    holder: VirtualMachineInstance | VirtualMachine | Pod | PodWithVolumes, kind: str
) -> Condition | None:
    """Return the condition of this type of an object; ``None`` when there is none."""
    return next((condition for condition in holder.status.conditions if condition.type == kind), None)


def seconds_of_grace(condition: Condition, now: str | None) -> int | None:
    """Return the seconds until ``MigrationRequired`` turns ``True``, at least 0; ``None`` when a time is unknown.

    :param condition: ``MigrationRequired``, with status ``False``.
    :param now: RFC 3339.
    """
    passed = seconds_between(condition.last_transition_time, now)
    return max(0, round(GRACE - passed)) if passed is not None else None


def is_earlier(one: str | None, other: str | None) -> bool:
    """Return whether a time, RFC 3339, is before another one; ``False`` when one is unknown."""
    passed = seconds_between(one, other)
    return passed is not None and passed > 0


def _find_eviction_outcome(strategy: str, migratable: bool) -> MigrationOutcome:
    if migratable and strategy in MIGRATING_STRATEGIES:
        return MigrationOutcome.MIGRATES
    return MigrationOutcome.NOT_MIGRATABLE if strategy in KEEPING_STRATEGIES else MigrationOutcome.SHUTS_DOWN
