"""How an operation beside KubeVirt ends, from the VM's template, the VMI's spec and the operation's entry on the VMI.

KubeVirt follows the template, and takes an unplugged interface out of the VMI first, then out of the template. Pure.
Next: :mod:`services.cli.operations.progress`, which adds the stages.
"""

from schemas.kubernetes.objects import VirtualMachine, VirtualMachineInstance, VmiSpec
from schemas.stages import OperationKind
from services.common.domain.kubevirt.entries import find_entry
from services.common.domain.operations import ABSENT

PRESENT = "present"

TAKEN_BACK = "the VM's template was changed back meanwhile"
LISTED_AGAIN = "the VM's template lists the interface again, so KubeVirt plugs it again by itself"
DROPPED = (
    "the VM's template lists the interface no more, and not as `state: absent`, so KubeVirt leaves it in the running "
    "VM until the VM restarts"
)


class BesideKubeVirt:
    """What was seen of one operation beside KubeVirt.

    :ivar entered: whether the operation's entry was seen on the VMI.
    :ivar left_vmi: whether the VMI's spec has no interface of that name any more.
    """

    def __init__(self, interface: str, operation: str, kind: OperationKind) -> None:
        self._interface = interface
        self._operation = operation
        self._kind = kind
        self.entered = False
        self._edited = False
        self._followed = False
        self.left_vmi = False

    def follows(self, vmi: VirtualMachineInstance) -> bool:
        """Return whether KubeVirt follows this operation: its entry is on the VMI, or was."""
        entry = find_entry(vmi, self._interface, self._kind)
        self.entered = self.entered or (entry is not None and entry.id == self._operation)
        return self.entered

    def find_end(self, vmi: VirtualMachineInstance, vm: VirtualMachine, *, attached: bool) -> bool | str:
        """Return whether the operation is complete, or as text why it failed.

        :param attached: whether pod and guest have the interface.
        :raises ValueError: a spec is malformed.
        """
        entry = find_entry(vmi, self._interface, self._kind)
        template, running = (state_in(spec, self._interface) for spec in (vm.spec.template.spec, vmi.spec))
        self.left_vmi = running is None
        if entry is not None and entry.id != self._operation:
            return f"operation {entry.id} replaced it"
        if self._kind is OperationKind.PLUG:
            return self._end_of_plug(template, running, attached=attached, entered=entry is not None)
        return self._end_of_unplug(template, running, entered=entry is not None)

    def _end_of_plug(self, template: str | None, running: str | None, *, attached: bool, entered: bool) -> bool | str:
        # Between the two writes neither has the interface. KubeVirt 1.0 changes the template last.
        taken_back = template is None and (self._edited or not entered)
        self._edited = self._edited or template is not None
        if ABSENT in (template, running):
            return "the interface is being unplugged again"
        if running is None:
            return TAKEN_BACK if taken_back else False
        if taken_back:
            return DROPPED
        return attached

    def _end_of_unplug(self, template: str | None, running: str | None, *, entered: bool) -> bool | str:
        self._edited = self._edited or template == ABSENT
        before, self._followed = self._followed, self._followed or running in (None, ABSENT)
        listed = template not in (None, ABSENT)
        if running is None:
            return LISTED_AGAIN if listed and self._edited else template is None
        if running == ABSENT or template == ABSENT:
            return False
        if before:
            # The state `absent` of a running VM is final, so this is a new interface.
            return LISTED_AGAIN
        if listed and self._edited:
            return TAKEN_BACK
        if entered:
            # VM and VMI are watched separately: what is seen of the VMI may be older.
            return False
        return TAKEN_BACK if listed else DROPPED


def state_in(spec: VmiSpec, name: str) -> str | None:
    """Return the state of an interface in a VM's template or a VMI.

    :returns: ``present`` when the interface has no state; ``None`` when the spec does not list it.
    :raises ValueError: the spec is malformed.
    """
    return next((item.state or PRESENT for item in spec.interface_items() if item.name == name), None)
