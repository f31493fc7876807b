"""The objects around a VM, as far as they were read. Data.

Next: :mod:`services.common.domain.kubevirt.surroundings.judge`, what they mean.
"""

from enum import Enum, auto

import msgspec

from schemas.kubernetes.kubevirt import VirtualMachineInstanceMigration
from schemas.kubernetes.objects import Lease, Pod
from schemas.kubernetes.pod_volumes import PodWithVolumes


class Source(Enum):
    """A part of the surroundings that is read by itself."""

    MIGRATIONS = auto()
    """The migrations of the VM, and the Events of their target pods."""
    EVENTS = auto()
    """The Warning Events of the VMI and its acting pod."""
    ATTACHERS = auto()
    """The pods on the VM's node that attach networks to running pods, and the Multus daemon there."""
    VIRT_CONTROLLER = auto()
    """The pods of virt-controller and the Lease of its leader."""
    VIRT_HANDLER = auto()
    """The pods of virt-handler on the VM's node."""


class ReportedEvent(msgspec.Struct, frozen=True):
    """A Warning Event of Kubernetes.

    :ivar about: UID of the object.
    :ivar time: when it happened last, RFC 3339; ``None`` if it does not say.
    """

    about: str
    reason: str
    message: str
    time: str | None = None


class Surroundings(msgspec.Struct, frozen=True):
    """The objects around one VM. What was not read is empty or ``None``, and leads to no reason.

    :ivar migrations: of the VM.
    :ivar launchers: the launcher pods of the VMI, the target of a migration included.
    :ivar events: of the VMI and its launcher pods.
    :ivar attachers: the pods on the node that belong to a networks controller or a Multus daemon.
    :ivar controllers: the pods of virt-controller.
    :ivar controller_lease: the Lease of its leader.
    :ivar handlers: the pods of virt-handler on the node.
    :ivar read_at: when they were read, RFC 3339.
    """

    migrations: tuple[VirtualMachineInstanceMigration, ...] = ()
    launchers: tuple[Pod, ...] = ()
    events: tuple[ReportedEvent, ...] = ()
    attachers: tuple[PodWithVolumes, ...] | None = None
    controllers: tuple[Pod, ...] | None = None
    controller_lease: Lease | None = None
    handlers: tuple[Pod, ...] | None = None
    read_at: str | None = None


NOTHING_READ = Surroundings()
