"""What the controller does for one VM and its VMI: pure, from both and the acting pod.

Three subjects, each a module: :mod:`~services.controller.plan.operations` (operations get going),
:mod:`~services.controller.plan.attachments` (the pod and what it tells), :mod:`~services.controller.plan.removal`
(what is gone leaves the specs). Next: :mod:`services.controller.apply`.
"""

import msgspec

from schemas.kube import Pod, VirtualMachine, VirtualMachineInstance
from services.common.domain.template import lives, owns
from services.common.reconcile import Reject
from services.controller.plan.actions import Action, Complain, Observed, Patch, Start, Target
from services.controller.plan.attachments import acts, annotate_pod, write_status
from services.controller.plan.operations import adopt, adopt_at_start, copy_link_states, copy_template, undo_failed
from services.controller.plan.removal import clear_vm, clear_vmi

__all__ = ["Action", "Complain", "Observed", "Patch", "Start", "Target", "plan"]


def plan(seen: Observed) -> list[Action]:
    """Decide what to do; nothing to do is ``[]``.

    A plan that holds a :class:`Start` holds no patch: what follows from it is decided on what it left.

    :raises Reject: a spec or an annotation of the VMI or its pod cannot be understood; someone has to change it first.
    """
    vmi, vm = seen.vmi, seen.vm
    if vmi is not None and not lives(vmi):
        vmi = None
    if vm is not None and (vm.metadata.deletion_timestamp is not None or not _readable(vm)):
        complaints = [] if _readable(vm) else [_malformed(vm)]
        return [*complaints, *_guarded(vmi, seen, None)]
    if vm is not None and vmi is not None and not owns(vm, vmi):
        # Another's VMI stands in the way of this VM's own; each goes its way.
        return [*_guarded(vmi, seen, None), *_template_alone(vm)]
    return _guarded(vmi, seen, vm)


def _guarded(vmi: VirtualMachineInstance | None, seen: Observed, vm: VirtualMachine | None) -> list[Action]:
    if vmi is None:
        return _template_alone(vm)
    try:
        return _decide(vmi, msgspec.structs.replace(seen, vm=vm))
    except ValueError as error:
        raise Reject("MalformedObject", f"{vmi.metadata.namespace}/{vmi.metadata.name}: {error}") from error


def _decide(vmi: VirtualMachineInstance, seen: Observed) -> list[Action]:
    vm = seen.vm
    pod = seen.pod if seen.pod is not None and acts(vmi, seen.pod) else None
    actions: list[Action] = []
    for start, complaints in _starts(seen, vmi, pod):
        actions += complaints
        if start is not None:
            return [*actions, start]
    patches = [annotate_pod(vmi, pod), write_status(vmi, pod)] if pod is not None else []
    linked = copy_link_states(vm, vmi) if vm is not None else None
    # Both patch the VMI's lists: one after the other.
    patches.append(linked or clear_vmi(vm, vmi, pod))
    if vm is not None:
        patches.append(clear_vm(vm, vmi))
    return [*actions, *(patch for patch in patches if patch is not None)]


def _starts(seen: Observed, vmi: VirtualMachineInstance, pod: Pod | None) -> list[tuple[Start | None, list[Complain]]]:
    found = [undo_failed(seen, vmi)]
    if seen.vm is not None:
        found.append(copy_template(seen, seen.vm, vmi))
    if pod is not None:
        found.append(adopt(seen, vmi, pod))
    elif vmi.status.phase != "Running":
        found.append((adopt_at_start(seen, vmi), []))
    return found


def _template_alone(vm: VirtualMachine | None) -> list[Action]:
    patch = clear_vm(vm, None) if vm is not None else None
    return [patch] if patch is not None else []


def _readable(vm: VirtualMachine) -> bool:
    try:
        vm.spec.template.spec.interface_items()
        vm.spec.template.spec.network_items()
    except ValueError:
        return False
    return True


def _malformed(vm: VirtualMachine) -> Complain:
    message = "networks or interfaces of the template cannot be read; the running VM is left as it is"
    return Complain(Target.VM, "MalformedTemplate", message, (vm.metadata.uid, "MalformedTemplate"))
