"""The progress of one operation: which stages are newly reached, and how the operation ended.

Pure: derived from objects that :mod:`services.cli.operations.follow` reads.
"""

from collections.abc import Sequence
from enum import StrEnum

import msgspec

from schemas.bus.hotplug_status import InterfaceHotplugStatus
from schemas.kubernetes.objects import Pod, VirtualMachine, VirtualMachineInstance
from schemas.stages import ROWS, OperationKind, Stage, stage_path
from services.cli.operations.beside import BesideKubeVirt, state_in
from services.common.domain.kubevirt.request_queue import read_queue
from services.common.domain.nic import parse_nics
from services.common.domain.operations import ABSENT, find_acting_pod, read_operations
from services.common.domain.status.hotplug_status import derive_statuses
from services.common.domain.status_interfaces import MULTUS_STATUS, parse_tokens
from services.common.domain.template import FINAL_PHASES, is_active, owns


class OperationResult(StrEnum):
    """The result of an operation, as ``-o json`` prints it.

    ``template`` means that the VM's template is changed and the VM is not running.
    """

    ATTACHED = "attached"
    DETACHED = "detached"
    TEMPLATE = "template"
    FAILED = "failed"
    IN_PROGRESS = "in-progress"


class OperationOutcome(msgspec.Struct, frozen=True):
    """How an operation ended.

    :ivar result: the result.
    :ivar message: why it failed; empty when it succeeded.
    """

    result: OperationResult
    message: str = ""


def can_follow_template(vm: VirtualMachine, vmi: VirtualMachineInstance | None) -> bool:
    """Return whether the VMI was created from this VM and has not ended, so that template changes apply to it."""
    return vmi is not None and owns(vm, vmi) and is_active(vmi)


KUBEVIRT_COMPONENTS = {"controller": "KubeVirt's virt-controller", "handler": "KubeVirt's virt-handler"}
"""The components that do a role's work beside KubeVirt."""


def progress_message(nic_status: InterfaceHotplugStatus, *, beside: bool = False) -> str:
    """Return the stage that an operation has reached, and the role that it is waiting for.

    :param beside: whether KubeVirt follows the operation.
    """
    if nic_status.waiting_for is None:
        missing = (
            "the VMI's status is not complete yet"
            if nic_status.kind is OperationKind.PLUG
            else "the VMI's spec still lists the interface"
        )
        return f"reached stage {nic_status.stage}, {missing}"
    publishers = ROWS[nic_status.waiting_for].publishers
    roles = " or ".join(KUBEVIRT_COMPONENTS.get(role, role) if beside else role for role in publishers)
    return f"reached stage {nic_status.stage}, waiting for {roles} ({nic_status.reason})"


class OperationProgress:
    """The progress of one plug or unplug operation.

    A plug completes when the VMI's status lists both the guest NIC and the attachment. An unplug completes when the
    interface is removed from the VMI's spec, and with ``persist`` from the VM's template, too.

    :param persist: whether the request changed the VM's template.
    :ivar was_running: whether the VM was running at an observation.
    :ivar nic_status: the interface's status at the last observation.
    :ivar outcome: ``None`` while the operation is in progress.
    """

    def __init__(
        self, interface: str, operation: str, kind: OperationKind = OperationKind.PLUG, *, persist: bool = False
    ) -> None:
        self._interface = interface
        self._operation = operation
        self._kind = kind
        self._persist = persist
        self._reported = 0
        self._beside = BesideKubeVirt(interface, operation, kind)
        self.was_running = False
        self.nic_status: InterfaceHotplugStatus | None = None
        self.outcome: OperationOutcome | None = None

    @property
    def beside(self) -> bool:
        """Whether KubeVirt follows the operation."""
        return self._beside.entered

    def observe(
        self, vmi: VirtualMachineInstance | None, pods: Sequence[Pod], vm: VirtualMachine | None = None
    ) -> list[Stage]:
        """Update the progress and return the stages that were reached since the last observation, in order.

        :param vmi: ``None`` when it does not exist.
        :param vm: used with ``persist`` only; ``None`` when it does not exist.
        """
        if self._persist and (vm is None or vm.metadata.deletion_timestamp is not None):
            return self._fail("the VM was deleted")
        if vm is not None and self._persist and not can_follow_template(vm, vmi):
            return self._observe_template(vm)
        if vmi is None or vmi.metadata.deletion_timestamp is not None:
            return self._fail("the VM was deleted or stopped")
        if vmi.status.phase in FINAL_PHASES:
            return self._fail(f"the VM has stopped (phase {vmi.status.phase})")
        template = vm if self._persist else None
        self.was_running = True
        try:
            nic_statuses = derive_statuses(parse_nics(vmi, find_acting_pod(vmi, pods)), template)
            nic_status = next(
                (nic_status for nic_status in nic_statuses if nic_status.interface == self._interface), None
            )
            if template is not None and self._beside.follows(vmi):
                return self._observe_beside(vmi, template, nic_status)
            if self._kind is OperationKind.PLUG:
                return self._observe_plug(vmi, nic_status)
            return self._observe_unplug(template, nic_status)
        except ValueError as error:
            return self._fail(f"cannot parse the VM's objects: {error}")

    def _observe_plug(self, vmi: VirtualMachineInstance, nic_status: InterfaceHotplugStatus | None) -> list[Stage]:
        # A failed plug is undone by an unplug, whose operation also has the plug's `failed`.
        written = read_operations(vmi.metadata).get(self._interface)
        if written is not None and written.failed is not None:
            return self._fail(f"{written.failed}; the interface is removed from the VM's spec again")
        if nic_status is None:
            return self._fail(f'interface "{self._interface}" was removed from the VM\'s spec')
        if nic_status.operation and nic_status.operation != self._operation:
            return self._fail(f"operation {nic_status.operation} replaced it")
        self.nic_status = nic_status
        # Handler and controller both write the VMI's status. Wait for both, so that the commands that the user runs
        # next show a complete status.
        if _is_attached(nic_status):
            self.outcome = OperationOutcome(OperationResult.ATTACHED)
        return self._new_stages(nic_status.stage)

    def _observe_unplug(self, vm: VirtualMachine | None, nic_status: InterfaceHotplugStatus | None) -> list[Stage]:
        # An unplug is final: an interface with a plug operation is a new one with the same name.
        if nic_status is None or nic_status.kind is OperationKind.PLUG:
            if vm is None or state_in(vm.spec.template.spec, self._interface) != ABSENT:
                self.outcome = OperationOutcome(OperationResult.DETACHED)
            return self._new_stages(stage_path(OperationKind.UNPLUG)[-1])
        self.nic_status = nic_status
        return self._new_stages(nic_status.stage)

    def _observe_beside(
        self, vmi: VirtualMachineInstance, vm: VirtualMachine, nic_status: InterfaceHotplugStatus | None
    ) -> list[Stage]:
        lists = nic_status is not None and nic_status.kind is self._kind
        if nic_status is not None and lists:
            self.nic_status = nic_status = msgspec.structs.replace(nic_status, operation=self._operation)
        attached = nic_status is not None and lists and nic_status.complete
        end = self._beside.find_end(vmi, vm, attached=attached)
        if isinstance(end, str):
            return self._fail(end)
        if end:
            plug = self._kind is OperationKind.PLUG
            self.outcome = OperationOutcome(OperationResult.ATTACHED if plug else OperationResult.DETACHED)
        if self._kind is OperationKind.UNPLUG and self._beside.left_vmi:
            return self._new_stages(stage_path(OperationKind.UNPLUG)[-1])
        return self._new_stages(nic_status.stage if nic_status is not None and lists else Stage.REQUESTED)

    def _observe_template(self, vm: VirtualMachine) -> list[Stage]:
        try:
            state = state_in(vm.spec.template.spec, self._interface)
        except ValueError as error:
            return self._fail(f"cannot parse the VM's template: {error}")
        listed = state not in (None, ABSENT)
        if listed is not (self._kind is OperationKind.PLUG):
            if any((one.name, one.kind) == (self._interface, self._kind) for one in read_queue(vm)):
                return []  # KubeVirt 1.0 changes the template last
            return self._fail(
                f'the VM\'s template was changed meanwhile: interface "{self._interface}" is {state or "removed"}'
            )
        self.outcome = OperationOutcome(OperationResult.TEMPLATE)
        return []

    def _new_stages(self, stage: Stage) -> list[Stage]:
        stages = stage_path(self._kind)
        reached = stages.index(stage) + 1
        new = list(stages[self._reported : reached])
        self._reported = max(self._reported, reached)
        return new

    def _fail(self, message: str) -> list[Stage]:
        self.outcome = self.outcome or OperationOutcome(OperationResult.FAILED, message)
        return []


def _is_attached(nic_status: InterfaceHotplugStatus) -> bool:
    return nic_status.complete and MULTUS_STATUS in parse_tokens({"infoSource": nic_status.info_source})
