"""What KubeVirt does to a running VM whose change it cannot apply in place: migrate it, shut it down, or nothing. Pure.

Told before the change is made. Not here: what KubeVirt is doing about a change that was made
(:mod:`services.common.domain.kubevirt`).
Next: :mod:`services.api.plan.beside`.
"""

from enum import Enum, StrEnum, auto

import msgspec

from schemas.kubernetes.objects import VirtualMachineInstance
from services.common.domain.kubevirt.capabilities import EVICT, LIVE_MIGRATE, Capabilities

EVICTION_MIGRATES = "LiveMigrate"
"""The ``evictionStrategy`` that turns an eviction into a migration, and refuses it where the VM cannot migrate."""
EVICTION_MAY_MIGRATE = "LiveMigrateIfPossible"


class ChangeKind(Enum):
    """The kind of a change of a running VM's interfaces."""

    BRIDGE = auto()
    SRIOV = auto()
    NAD = auto()


class ConsequenceKind(StrEnum):
    """What happens to the VM."""

    MIGRATES = "migrates"
    WAITS = "waits"
    SHUTS_DOWN = "shuts-down"


class Consequence(msgspec.Struct, frozen=True):
    """What a change will cause, and the sentence about it for the user."""

    kind: ConsequenceKind
    sentence: str


def find_consequence(
    capabilities: Capabilities, vmi: VirtualMachineInstance, change: ChangeKind, *, served: bool
) -> Consequence | None:
    """Return what a plug, an unplug or a change of the NAD causes; ``None`` if KubeVirt applies it in place.

    :param served: whether a pod that attaches networks at run time was found on the VMI's node.
    """
    if change is ChangeKind.NAD and not capabilities.nad_change:
        why = f"KubeVirt {version_text(capabilities)} does not follow a changed network of a running VM"
        return Consequence(ConsequenceKind.WAITS, f"{why}; it applies after a restart")
    if change is ChangeKind.BRIDGE and served:
        return None
    # KubeVirt gives Multus 15 s, looks at a quiet VMI every 10 s, and acts 5 s later.
    cause, delay = {
        ChangeKind.BRIDGE: (
            f"no pod was found on node {vmi.status.node_name} that attaches networks to running pods (hotnic's "
            "networks, or the dynamic networks controller); without one, ",
            "about 25 s",
        ),
        ChangeKind.SRIOV: ("an SR-IOV device cannot be added to a running pod: ", "about 5 s"),
        ChangeKind.NAD: ("the network of an interface cannot change in a running pod: ", "about 5 s"),
    }[change]
    kind, effect = _effect(capabilities, vmi, delay)
    return Consequence(kind, cause + effect)


def restart_warning(capabilities: Capabilities) -> str:
    """Return the warning that every change of interfaces sets ``RestartRequired``; empty where it does not."""
    if not capabilities.always_restart_required:
        return ""
    return (
        f"KubeVirt {version_text(capabilities)} sets the condition RestartRequired at every change of a VM's "
        "interfaces, although it applies the change to the running VM"
    )


def version_text(capabilities: Capabilities) -> str:
    """Return the version of KubeVirt, such as ``1.9``."""
    return f"{capabilities.version[0]}.{capabilities.version[1]}"


def _effect(capabilities: Capabilities, vmi: VirtualMachineInstance, delay: str) -> tuple[ConsequenceKind, str]:
    methods, strategy, obstacle = capabilities.update_methods, vmi.spec.eviction_strategy, _migration_obstacle(vmi)
    if not capabilities.automatic_migration:
        able = f", which it cannot be: {obstacle}" if obstacle else ""
        why = f"KubeVirt {version_text(capabilities)} migrates no VM for it"
        return ConsequenceKind.WAITS, f"{why}, and the change waits until the VM is migrated{able}"
    if LIVE_MIGRATE in methods and not obstacle:
        return ConsequenceKind.MIGRATES, f"KubeVirt migrates the VM {delay} after the change"
    if EVICT in methods:
        if not obstacle and strategy in (EVICTION_MIGRATES, EVICTION_MAY_MIGRATE):
            return ConsequenceKind.MIGRATES, f"KubeVirt evicts the VM {delay} after the change, which migrates it"
        if strategy != EVICTION_MIGRATES:
            why = f"it cannot be migrated: {obstacle}" if obstacle else "workloadUpdateMethods has Evict only"
            return ConsequenceKind.SHUTS_DOWN, (
                f"KubeVirt SHUTS THE VM DOWN {delay} after the change (workloadUpdateMethods allows Evict, its "
                f"evictionStrategy is {strategy or 'not set'}, and {why})"
            )
    if not methods:
        return ConsequenceKind.WAITS, (
            "the change waits for ever: workloadUpdateMethods in the KubeVirt object is empty; add LiveMigrate there, "
            "or migrate the VM"
        )
    return ConsequenceKind.WAITS, f"the change waits for ever: the VM cannot be migrated: {obstacle}"


def _migration_obstacle(vmi: VirtualMachineInstance) -> str:
    """Return why the VM cannot be migrated; empty when it can."""
    condition = next((one for one in vmi.status.conditions if one.type == "LiveMigratable"), None)
    if condition is None:
        return "its VMI has no condition LiveMigratable yet"
    if condition.status == "True":
        return ""
    text = ": ".join(part for part in (condition.reason, condition.message) if part)
    return text or f"its condition LiveMigratable is {condition.status}"
