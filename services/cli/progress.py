"""The way of one operation as its user sees it: which stages are new, and whether it is over.

Pure: fed with objects, gives lines and an outcome. Who feeds it is :mod:`services.cli.follow`.
"""

from collections.abc import Sequence
from enum import StrEnum

import msgspec

from schemas.hotplug_status import InterfaceHotplugStatus
from schemas.kube import Pod, VirtualMachine, VirtualMachineInstance
from schemas.operations import operation_of
from schemas.stages import ROWS, OperationKind, Stage, stage_path
from services.common.domain.hotplug_status import fold
from services.common.domain.operations import ABSENT, acting_pod
from services.common.domain.status_interfaces import MULTUS_STATUS, tokens
from services.common.domain.template import lives, owns

OVER = frozenset({"Succeeded", "Failed"})
"""Phases of a VMI that runs no more."""


class Result(StrEnum):
    """How an operation stands; ``template``: done for the VM's next start, and nothing runs that could follow."""

    ATTACHED = "attached"
    DETACHED = "detached"
    TEMPLATE = "template"
    FAILED = "failed"
    IN_PROGRESS = "in-progress"


class Outcome(msgspec.Struct, frozen=True):
    """The end of an operation.

    :ivar message: for people; why it failed.
    """

    result: Result
    message: str = ""


def runs(vm: VirtualMachine, vmi: VirtualMachineInstance | None) -> bool:
    """Whether a VMI is there that was made from the VM and can follow its template."""
    return vmi is not None and owns(vm, vmi) and lives(vmi)


def standing(nic_status: InterfaceHotplugStatus) -> str:
    """Where a NIC stands, and whose turn it is."""
    if nic_status.waiting_for is None:
        lacks = (
            "the VM's status does not say all of it yet"
            if nic_status.kind is OperationKind.PLUG
            else "the VM's spec lists it yet"
        )
        return f"reached {nic_status.stage}, {lacks}"
    turn = " or ".join(ROWS[nic_status.waiting_for].publishers)
    return f"reached {nic_status.stage}, {nic_status.reason}: it is the turn of {turn}"


class Progress:
    """What is known of one plug or unplug.

    A plug is over when card and attachment stand in the VMI's status; an unplug when the interface has left the VMI's
    spec, and with ``persist`` the VM's template, too.

    :param persist: the VM's template was changed, which its VMI follows.
    :ivar nic_status: as last seen. :ivar outcome: ``None`` while it goes on.
    """

    def __init__(
        self, interface: str, operation: str, kind: OperationKind = OperationKind.PLUG, *, persist: bool = False
    ) -> None:
        self._interface = interface
        self._operation = operation
        self._kind = kind
        self._persist = persist
        self._shown = 0
        self.nic_status: InterfaceHotplugStatus | None = None
        self.outcome: Outcome | None = None

    def see(
        self, vmi: VirtualMachineInstance | None, pods: Sequence[Pod], vm: VirtualMachine | None = None
    ) -> list[Stage]:
        """Take a look at the objects; returns the stages that were reached since the last look, in order.

        :param vmi: ``None`` when it is gone. :param vm: looked at with ``persist``; ``None`` when it is gone.
        """
        if self._persist and (vm is None or vm.metadata.deletion_timestamp is not None):
            return self._end("the VM was deleted")
        if vm is not None and self._persist and not runs(vm, vmi):
            return self._stopped(vm)
        if vmi is None or vmi.metadata.deletion_timestamp is not None:
            return self._end("the VM was deleted or stopped")
        if vmi.status.phase in OVER:
            return self._end(f"the VM has stopped (phase {vmi.status.phase})")
        template = vm if self._persist else None
        try:
            nic_statuses = fold(vmi, acting_pod(vmi, pods), template)
            nic_status = next(
                (nic_status for nic_status in nic_statuses if nic_status.interface == self._interface), None
            )
            if self._kind is OperationKind.PLUG:
                return self._plugging(vmi, nic_status)
            return self._unplugging(template, nic_status)
        except ValueError as error:
            return self._end(f"the VM's objects cannot be read: {error}")

    def _plugging(self, vmi: VirtualMachineInstance, nic_status: InterfaceHotplugStatus | None) -> list[Stage]:
        # An unplug that undoes a plug carries on why that failed.
        written = operation_of(vmi.metadata.annotations, self._interface)
        if written is not None and written.failed is not None:
            return self._end(f"{written.failed}; the interface is taken out of the VM's spec again")
        if nic_status is None:
            return self._end(f"interface {self._interface} was taken out of the VM's spec")
        if nic_status.operation != self._operation:
            return self._end(f"operation {nic_status.operation} took its place")
        self.nic_status = nic_status
        # Both writers of the status have spoken, so that whatever the user asks next tells the same story.
        if nic_status.complete and MULTUS_STATUS in tokens({"infoSource": nic_status.info_source}):
            self.outcome = Outcome(Result.ATTACHED)
        return self._fresh(nic_status.stage)

    def _unplugging(self, vm: VirtualMachine | None, nic_status: InterfaceHotplugStatus | None) -> list[Stage]:
        # An unplug is final: an interface that is being plugged is another one by the same name.
        if nic_status is None or nic_status.kind is OperationKind.PLUG:
            if vm is None or _state_in(vm, self._interface) != ABSENT:
                self.outcome = Outcome(Result.DETACHED)
            return self._fresh(stage_path(OperationKind.UNPLUG)[-1])
        self.nic_status = nic_status
        return self._fresh(nic_status.stage)

    def _stopped(self, vm: VirtualMachine) -> list[Stage]:
        try:
            state = _state_in(vm, self._interface)
        except ValueError as error:
            return self._end(f"the VM's template cannot be read: {error}")
        wanted = state not in (None, ABSENT)
        if wanted is not (self._kind is OperationKind.PLUG):
            return self._end(f"the VM's template was changed again: interface {self._interface} is {state or 'gone'}")
        self.outcome = Outcome(Result.TEMPLATE)
        return []

    def _fresh(self, stage: Stage) -> list[Stage]:
        stages = stage_path(self._kind)
        reached = stages.index(stage) + 1
        fresh = list(stages[self._shown : reached])
        self._shown = max(self._shown, reached)
        return fresh

    def _end(self, message: str) -> list[Stage]:
        self.outcome = self.outcome or Outcome(Result.FAILED, message)
        return []


def _state_in(vm: VirtualMachine, name: str) -> str | None:
    """What the template wants of an interface: its state, ``wanted`` where it names none; ``None`` has no such one.

    :raises ValueError: the template cannot be read.
    """
    items = vm.spec.template.spec.interface_items()
    return next((item.state or "wanted" for item in items if item.name == name), None)
