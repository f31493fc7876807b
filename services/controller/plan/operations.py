"""Which wishes get going: those of the VM's template, those nobody wrote an operation for, and the undoing of failures.

Pure. What cannot be granted changes nothing and is complained of, once. Next: :mod:`services.controller.plan.removal`.
"""

from schemas.kube import Interface, Network, Pod, VirtualMachine, VirtualMachineInstance
from schemas.names import interface_hash
from schemas.networks import NETWORK_STATUS, NETWORKS, parse_network_status, parse_networks
from schemas.operations import Operation, derived_id, operation_of
from schemas.stages import OperationKind
from services.common.domain.attachments import nad_reference, pod_interface_names, secondary
from services.common.domain.eligibility import ORDINAL, hash_collision, ordinal, why_fixed, why_not_pluggable
from services.common.domain.operations import ABSENT, kind_of
from services.common.domain.spec_patch import change, of_vm, of_vmi
from services.common.domain.status_interfaces import DOMAIN, entry_of, tokens
from services.common.domain.template import (
    DesiredInterface,
    desired_interfaces,
    edit_id,
    link_states,
    revived,
    wished_operation,
)
from services.controller.plan.actions import Complain, Observed, Patch, Start, Started, Target

REJECTED = "InterfaceChangeRejected"
"""Reason of the Event about an edit that cannot be done."""


def undo_failed(seen: Observed, vmi: VirtualMachineInstance) -> tuple[Start | None, list[Complain]]:
    """Take plugs that ended for good out of the spec again, by an unplug in the trace of the plug.

    Where the template asked for the NIC, it is asked to be absent there, too: that request has failed. A NIC that the
    template merely had at the start stays in it, for the next start may have room for it.
    """
    wish_of: list[Started] = []
    complaints: list[Complain] = []
    on_vm: list[str] = []
    for interface in vmi.spec.interface_items():
        plug = operation_of(vmi.metadata.annotations, interface.name)
        if interface.state == ABSENT or plug is None or plug.kind is not OperationKind.PLUG or plug.failed is None:
            continue
        if interface.name in seen.refused:
            continue
        undo = Operation(
            id=derived_id(vmi.metadata.uid, interface.name, OperationKind.UNPLUG, vmi.metadata.generation),
            kind=OperationKind.UNPLUG,
            interface=interface.name,
            traceparent=plug.traceparent,
            requested_at=seen.now,
            failed=plug.failed,
        )
        asked = seen.vm is not None and _same(operation_of(seen.vm.metadata.annotations, interface.name), plug)
        if asked:
            on_vm.append(interface.name)
        wish_of.append(Started(undo, on_vm=asked))
        complaints.append(
            Complain(
                Target.VM if asked else Target.VMI,
                plug.failed,
                f"interface {interface.name} could not be plugged ({plug.failed}); it is taken out of the spec again",
                (plug.id, "undone", plug.failed),
            )
        )
    if not wish_of:
        return None, []
    names = [wish.operation.interface for wish in wish_of]
    template = of_vm(seen.vm).lists.absent(on_vm) if seen.vm is not None and on_vm else None
    return Start(tuple(wish_of), vm=template, vmi=of_vmi(vmi).lists.absent(names)), complaints


def copy_template(
    seen: Observed, vm: VirtualMachine, vmi: VirtualMachineInstance
) -> tuple[Start | None, list[Complain]]:
    """Have the VMI follow its VM's template.

    :raises ValueError: an object is malformed.
    """
    complaints = [
        _complain(wish, f"interface {wish.name!r} is being unplugged, which is final; it is plugged anew afterwards")
        for wish in revived(vm, vmi)
    ]
    granted: list[DesiredInterface] = []
    lists = of_vmi(vmi).lists
    for wish in desired_interfaces(vm, vmi):
        if wish.name in seen.refused or (wish.kind is OperationKind.UNPLUG and not _naming_known(vmi, seen.pod)):
            continue
        why = _why_not(seen, vm, vmi, wish, granted)
        if why is None:
            granted.append(wish)
            lists = (
                lists.absent([wish.name])
                if wish.kind is OperationKind.UNPLUG
                else lists.plus(wish.item, None if _has_network(vmi, wish.name) else wish.network_item)
            )
            if seen.singly:
                break
        elif not _implicit_primary(vmi, wish):
            complaints.append(_complain(wish, why))
    if not granted:
        return None, complaints
    return Start(tuple(_started(seen, vm, vmi, wish) for wish in granted), vmi=lists), complaints


def copy_link_states(vm: VirtualMachine, vmi: VirtualMachineInstance) -> Patch | None:
    """The patch that has the VMI's cables plugged and pulled as the template says; ``None`` when they are.

    :raises ValueError: an object is malformed.
    """
    states = link_states(vm, vmi)
    if not states:
        return None
    holder = of_vmi(vmi)
    return Patch(Target.VMI, "link", change(holder, holder.lists.linked(states), {}))


def adopt(seen: Observed, vmi: VirtualMachineInstance, pod: Pod) -> tuple[Start | None, list[Complain]]:
    """Give an operation to wishes of the VMI that nobody wrote one for (an edit with kubectl, a NIC since the start).

    Written down, its id no longer hangs on the generation, which on an object without a status subresource moves with
    every report. An unplug that an edit takes back half-way is put in force again.

    :raises ValueError: an object is malformed.
    """
    annotations = pod.metadata.annotations
    elements = parse_networks(annotations.get(NETWORKS))
    statuses = parse_network_status(annotations.get(NETWORK_STATUS))
    names = pod_interface_names(vmi.spec, elements, statuses)
    present = {e.requested_interface for e in elements} | {s.interface for s in statuses}
    started: list[Started] = []
    complaints: list[Complain] = []
    again: list[str] = []
    pairs = secondary(vmi.spec)
    for interface, network in pairs:
        name, kind = interface.name, kind_of(interface)
        written = operation_of(vmi.metadata.annotations, name)
        if name in seen.refused or (written is not None and written.kind is kind):
            continue
        if kind is OperationKind.UNPLUG and (why := _why_not_unplugged(interface, network, pod)) is not None:
            complaints.append(_about_vmi(vmi, name, why))
        elif kind is OperationKind.PLUG and written is not None and names[name] in present:
            again.append(name)
            complaints.append(_about_vmi(vmi, name, f"interface {name!r} is being unplugged, which is final"))
            started.append(Started(written))
        elif kind is OperationKind.UNPLUG or (interface.bridge is not None and not _in_domain(vmi, name)):
            operation = _derived(vmi.metadata.uid, name, kind, vmi.metadata.generation, seen.now)
            started.append(Started(operation, _nad(vmi, network, kind)))
    taken = {interface.name for interface, _ in pairs}
    for interface in vmi.spec.interface_items():
        other = hash_collision(vmi.spec, interface.name)
        if interface.name not in taken and other in taken:
            complaints.append(_about_vmi(vmi, interface.name, _alike(interface.name, other)))
    if not started:
        return None, complaints
    return Start(tuple(started), vmi=of_vmi(vmi).lists.absent(again) if again else None), complaints


def adopt_at_start(seen: Observed, vmi: VirtualMachineInstance) -> Start | None:
    """Give NICs that a VMI has from its start an operation before it runs, so that whoever plugs them has it at once.

    :raises ValueError: an object is malformed.
    """
    started = [
        Started(
            _derived(vmi.metadata.uid, interface.name, OperationKind.PLUG, vmi.metadata.generation, seen.now),
            _nad(vmi, network, OperationKind.PLUG),
        )
        for interface, network in secondary(vmi.spec)
        if interface.name not in seen.refused
        and interface.bridge is not None
        and kind_of(interface) is OperationKind.PLUG
        and operation_of(vmi.metadata.annotations, interface.name) is None
    ]
    return Start(tuple(started)) if started else None


def _started(seen: Observed, vm: VirtualMachine, vmi: VirtualMachineInstance, wish: DesiredInterface) -> Started:
    written = wished_operation(vm, wish.name, wish.kind)
    derived = edit_id(vm, vmi, wish.name, wish.kind)
    operation = written or Operation(derived, wish.kind, wish.name, requested_at=seen.now or None)
    return Started(operation, _nad(vmi, wish.network, wish.kind), on_vm=written is None)


def _why_not(
    seen: Observed,
    vm: VirtualMachine,
    vmi: VirtualMachineInstance,
    wish: DesiredInterface,
    granted: list[DesiredInterface],
) -> str | None:
    if not seen.enabled:
        return f"the feature gate HotplugNICs is off: the change of interface {wish.name!r} waits for a restart"
    if wish.kind is OperationKind.UNPLUG:
        # Judged by what runs: the template may have been changed in the same edit.
        running = {interface.name: interface for interface in vmi.spec.interface_items()}
        networks = {network.name: network for network in vmi.spec.network_items()}
        pod = seen.pod
        assert pod is not None
        return _why_not_unplugged(running[wish.name], networks.get(wish.name), pod)
    if (why := why_not_pluggable(wish.interface, wish.network)) is not None:
        return why
    other = hash_collision(vmi.spec, wish.name) or next(
        (g.name for g in granted if g.name != wish.name and interface_hash(g.name) == interface_hash(wish.name)), None
    )
    if other is not None:
        return _alike(wish.name, other)
    if _has_network(vmi, wish.name) and wish.network_item not in (vmi.spec.networks or ()):
        return f"the running VM has another network by the name of {wish.name!r}"
    return None


def _why_not_unplugged(interface: Interface, network: Network | None, pod: Pod) -> str | None:
    if (why := why_fixed(interface, network)) is not None:
        return why
    return f"interface {interface.name!r} cannot be unplugged: {ORDINAL}" if ordinal(pod) else None


def _naming_known(vmi: VirtualMachineInstance, pod: Pod | None) -> bool:
    """Before there is an acting pod nobody can tell how its interfaces are called."""
    return pod is not None and vmi.status.phase == "Running"


def _implicit_primary(vmi: VirtualMachineInstance, wish: DesiredInterface) -> bool:
    """The pod network written out in the template of a VM that runs with the same one unsaid: no difference."""
    return (
        wish.network is not None
        and wish.network.pod is not None
        and not any(network.pod is not None for network in vmi.spec.network_items())
    )


def _has_network(vmi: VirtualMachineInstance, name: str) -> bool:
    return any(item.get("name") == name for item in vmi.spec.networks or ())


def _in_domain(vmi: VirtualMachineInstance, name: str) -> bool:
    return DOMAIN in tokens(entry_of(vmi.status.interfaces, name) or {})


def _nad(vmi: VirtualMachineInstance, network: Network | None, kind: OperationKind) -> str:
    if kind is OperationKind.UNPLUG or network is None or network.multus is None:
        return ""
    return "/".join(nad_reference(network.multus.network_name, vmi.metadata.namespace))


def _derived(uid: str, name: str, kind: OperationKind, generation: int, now: str) -> Operation:
    return Operation(id=derived_id(uid, name, kind, generation), kind=kind, interface=name, requested_at=now or None)


def _same(one: Operation | None, other: Operation) -> bool:
    return one is not None and one.id == other.id


def _alike(name: str, other: str | None) -> str:
    return f"interface {name!r} would have the same link names as {other!r}; choose another name"


def _complain(wish: DesiredInterface, why: str) -> Complain:
    return Complain(Target.VM, REJECTED, why, (wish.name, REJECTED, why))


def _about_vmi(vmi: VirtualMachineInstance, name: str, why: str) -> Complain:
    return Complain(Target.VMI, REJECTED, why, (vmi.metadata.uid, name, REJECTED, why))
