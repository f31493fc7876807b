"""Types of the plan: the observed state of one VMI, and the actions that the handler takes. Values only, no decisions.

Next: :mod:`services.handler.plan`, which makes actions of the observed state.
"""

import msgspec

from schemas.bus.events import ConfirmedBy
from schemas.kubernetes.objects import Pod, VirtualMachineInstance
from services.common.domain.nic import Nic, VmiNics
from services.common.domain.spec_patch import PatchOp
from services.common.guest.agent import GuestNic
from services.common.guest.port import GuestView, NetDeviceSpec
from services.handler.addresses.offer import Resolver
from services.handler.addresses.served import ServedAddresses
from services.handler.pod_network.operations import NetlinkOperation, ObservedLinks
from services.handler.unplug import Unplug, UnplugEvent


class ObservedNics(msgspec.Struct, frozen=True):
    """The NICs of a VMI that runs on this node.

    :ivar nics: the NICs of the VMI, with its acting pod.
    """

    nics: VmiNics

    @property
    def vmi(self) -> VirtualMachineInstance:
        """The VMI."""
        return self.nics.vmi

    @property
    def pod(self) -> Pod:
        """The VMI's acting pod."""
        assert self.nics.pod is not None, "the handler observes no VMI without an acting pod"
        return self.nics.pod


class Unobserved(ObservedNics, frozen=True):
    """A VMI whose domain or pod could not be observed.

    :ivar reason: CamelCase.
    :ivar message: the error.
    """

    reason: str
    message: str


class Observed(ObservedNics, frozen=True):
    """The observed state of one VMI.

    :ivar guest: its domain.
    :ivar pod_links: the links in the pod; ``None`` when no NIC needs them.
    :ivar sandbox_id: the pod's sandbox; empty when it is not known.
    :ivar sandbox_error: why no addresses can be served in the pod; empty when they can be, or there are none.
    :ivar sandbox_gone: whether the reason is that the network namespace does not exist any more.
    :ivar tap_owner: the user id of the guest's process, where the VMI's status has none.
    :ivar tap_label: the SELinux label of the guest's process; ``None`` where SELinux does not enforce.
    :ivar resolver: the pod's DNS resolver.
    :ivar serving: what each address server of the guest serves, by interface; ``None`` for a server that does not work,
        or not in this network namespace.
    :ivar declined: the interfaces whose guest declined its address.
    :ivar agent: the NICs of the guest agent's last response; ``None`` before the first response.
    :ivar unconfirmed: the interfaces that this process attached and that no driver in the guest uses yet.
    :ivar lost: the interfaces that this process attached and whose device the domain has never listed.
    :ivar unplugs: the unplug of each absent interface.
    :ivar now: seconds of a monotonic clock.
    """

    guest: GuestView
    pod_links: ObservedLinks | None
    sandbox_id: str
    sandbox_error: str
    sandbox_gone: bool
    tap_owner: int
    tap_label: str | None
    resolver: Resolver
    serving: dict[str, ServedAddresses | None]
    declined: frozenset[str]
    agent: tuple[GuestNic, ...] | None
    unconfirmed: frozenset[str]
    lost: frozenset[str]
    unplugs: dict[str, Unplug]
    now: float


class RequestUnplug(msgspec.Struct, frozen=True):
    """Request that the guest give up a device.

    :ivar event: the event of the unplug that makes the request due.
    :ivar now: the time of the observation.
    """

    nic: Nic
    event: UnplugEvent
    now: float


class TearDown(msgspec.Struct, frozen=True):
    """Remove the backend of a device that the domain no longer has, and tear down the pod network.

    :ivar record: the patch that writes the pod NIC record before the first operation; ``None`` when the record exists,
        is not needed, or is too large.
    :ivar operations: the netlink operations of the teardown.
    """

    nic: Nic
    record: list[PatchOp] | None
    operations: list[NetlinkOperation]


class SetUpAndAttach(msgspec.Struct, frozen=True):
    """Set up the pod network of a NIC and attach its device.

    :ivar record: the patch that writes the pod NIC record before the first operation; ``None`` when the record exists.
    :ivar operations: the netlink operations of the set-up.
    :ivar device: the device to attach.
    :ivar slot: the slot of the device.
    :ivar addresses: the addresses to serve to the guest; ``None`` where there was no IPAM.
    """

    nic: Nic
    record: list[PatchOp] | None
    operations: list[NetlinkOperation]
    device: NetDeviceSpec
    slot: str
    addresses: ServedAddresses | None


class SetLinkState(msgspec.Struct, frozen=True):
    """Set the link state of a device.

    :ivar interface: the interface's name.
    :ivar up: the desired link state.
    :ivar changes: whether the link is known to have the other state now.
    """

    interface: str
    up: bool
    changes: bool


class ServeAddresses(msgspec.Struct, frozen=True):
    """Start the address server of a NIC, in place of the one it has."""

    nic: Nic
    served: ServedAddresses


class StopAddresses(msgspec.Struct, frozen=True):
    """Stop the address server of an interface."""

    interface: str


class RecordDeclined(msgspec.Struct, frozen=True):
    """Record a Warning Event: the guest declined its address. Once for each operation."""

    nic: Nic


class ReportStatus(msgspec.Struct, frozen=True):
    """Patch the VMI, then publish ``guest-attached`` and ``guest-detached`` for the NICs listed.

    :ivar ops: the patch; empty when only a driver was observed, which the VMI's status has no field for.
    :ivar confirmed: the NICs that are confirmed now, and by what.
    :ivar released: the NICs that are released now, with their operations as written.
    :ivar outcome: what the patch reports of operations, for the next plan when others change the VMI meanwhile.
    """

    ops: list[PatchOp]
    confirmed: list[tuple[Nic, ConfirmedBy]]
    released: list[Nic]
    outcome: "Outcome"


class Outcome(msgspec.Struct, frozen=True):
    """The operations that have ended.

    :ivar released: the interfaces whose pod network is torn down.
    :ivar failed: the interfaces whose plug has a final failure, with the reason.
    """

    released: frozenset[str]
    failed: dict[str, str]


class PublishFailure(msgspec.Struct, frozen=True):
    """Publish that a NIC is not plugged or unplugged.

    :ivar reason: CamelCase.
    :ivar message: the cause, and what to do about it.
    :ivar final: whether a retry cannot help.
    """

    nic: Nic
    reason: str
    message: str
    final: bool


class WarnOverdue(msgspec.Struct, frozen=True):
    """Publish that a pending unplug is overdue. The unplug goes on.

    :ivar event: the event of the unplug.
    :ivar message: what the guest does not do.
    :ivar count: the number of requests.
    :ivar retry_after: seconds until the next request.
    """

    nic: Nic
    event: UnplugEvent
    message: str
    count: int
    retry_after: float


class ExpectMacs(msgspec.Struct, frozen=True):
    """Query the guest agent until it lists these MACs."""

    macs: frozenset[str]


class RequeueAfter(msgspec.Struct, frozen=True):
    """Requeue the key after a time, instead of the time set before.

    :ivar seconds: ``None`` when nothing is due.
    """

    seconds: float | None


class RetryLater(msgspec.Struct, frozen=True):
    """End the run with a retry: nothing can be planned.

    :ivar reason: CamelCase.
    :ivar message: the error.
    """

    reason: str
    message: str


Action = (
    RequestUnplug
    | TearDown
    | SetUpAndAttach
    | SetLinkState
    | ServeAddresses
    | StopAddresses
    | RecordDeclined
    | ReportStatus
    | PublishFailure
    | WarnOverdue
    | ExpectMacs
    | RequeueAfter
    | RetryLater
)
