"""What KubeVirt does to a running VM whose change it cannot apply in place, told before the change is made. Pure.

The decision is that of the hot-plug status (:mod:`services.common.domain.kubevirt.migration`); the sentences are here.
Next: :mod:`services.api.plan.beside`.
"""

import msgspec

from schemas.kubernetes.objects import VirtualMachineInstance
from services.common.domain.kubevirt.capabilities import LIVE_MIGRATE, Capabilities
from services.common.domain.kubevirt.migration import (
    MigrationOutcome,
    explain_not_migratable,
    find_migration_outcome,
    is_migratable,
)


class Consequence(msgspec.Struct, frozen=True):
    """What a change will cause, and the sentence about it for the user."""

    outcome: MigrationOutcome
    sentence: str


def find_consequence(
    capabilities: Capabilities, vmi: VirtualMachineInstance, *, served: bool, device: str = ""
) -> Consequence | None:
    """Return what a plug or an unplug causes; ``None`` if KubeVirt applies it in place.

    :param served: whether a pod that attaches networks at run time was found on the VMI's node.
    :param device: what the network to plug needs of a device plugin; empty for none.
    """
    if served and not device:
        return None
    cause = (
        f"the network needs the device {device!r}, which only a new pod gets; "
        if device
        else f"no ready pod was found on node {vmi.status.node_name} that attaches networks to running pods (hotnic's "
        "networks, or the dynamic networks controller); without one, "
    )
    outcome = find_migration_outcome(vmi, capabilities)
    return Consequence(outcome, cause + _effect(outcome, capabilities, vmi))


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


def _effect(outcome: MigrationOutcome, capabilities: Capabilities, vmi: VirtualMachineInstance) -> str:
    # KubeVirt gives Multus 15 s, looks at a quiet VMI every 10 s, and acts 5 s later.
    after = "about 25 s after the change"
    strategy = vmi.spec.eviction_strategy or capabilities.eviction_strategy
    obstacle = "" if is_migratable(vmi) else f"it cannot be migrated: {explain_not_migratable(vmi)}"
    version = version_text(capabilities)
    match outcome:
        case MigrationOutcome.MIGRATES if LIVE_MIGRATE in capabilities.update_methods:
            effect = f"KubeVirt migrates the VM {after}"
        case MigrationOutcome.MIGRATES:
            effect = f"KubeVirt evicts the VM {after}, which migrates it"
        case MigrationOutcome.BY_HAND:
            effect = f"the change waits until the VM is migrated, which KubeVirt {version} does not do by itself"
        case MigrationOutcome.NO_METHOD:
            effect = (
                "the change waits for ever: workloadUpdateMethods in the KubeVirt object is empty; add LiveMigrate "
                "there, or migrate the VM"
            )
        case MigrationOutcome.NOT_MIGRATABLE:
            effect = f"the change waits for ever: the VM has to be migrated for it, and {obstacle}"
        case MigrationOutcome.SHUTS_DOWN:
            effect = (
                f"KubeVirt SHUTS THE VM DOWN {after} (workloadUpdateMethods allows Evict, its evictionStrategy is "
                f"{strategy or 'not set'}, and {obstacle or 'LiveMigrate is not allowed'})"
            )
    return effect
