"""Plan the answers to requests about a VM that KubeVirt owns. Pure: no I/O.

For a running VM the operation is written to the VMI first (:class:`~services.api.plan.answers.EntryWrite`), so that
every reader finds it from the first moment on. Then the VM's template changes, and KubeVirt follows it. The VM gets no
annotation. KubeVirt 1.0 follows the requests in the VM's status instead of the template.
Next: :mod:`services.api.apply`.
"""

from typing import Any

import msgspec

from schemas.kubernetes.objects import VMS, VirtualMachine
from schemas.kubernetes.operations import Operation, derive_operation_id, encode_annotation, unplug_key
from schemas.kubernetes.options import AddInterfaceOptions
from schemas.stages import OperationKind
from services.api.plan.answers import (
    Answer,
    ChangeObject,
    EntryWrite,
    JoinOperation,
    Observed,
    Refused,
    RefuseRequest,
    RequestTarget,
    conflict,
)
from services.api.plan.checks import (
    NO_OWNER,
    check_free_slot,
    check_nad,
    check_name,
    check_removable,
    find_device,
    is_requested_network,
    nad_warnings,
    name_taken,
    requested_nad,
    unknown_interface,
)
from services.api.plan.consequences import (
    find_consequence,
    restart_warning,
    version_text,
)
from services.api.plan.vm import find_running_interface, parse_vm, with_primary_network
from services.common.domain.kubevirt.capabilities import Capabilities
from services.common.domain.kubevirt.entries import (
    ORPHAN_AGE,
    InterfaceEntries,
    entry_age,
    entry_key,
    entry_ops,
    find_entries,
    withdrawal_ops,
)
from services.common.domain.kubevirt.migration import MigrationOutcome
from services.common.domain.kubevirt.request_queue import QueuedChange, read_queue
from services.common.domain.nic import VmiNics
from services.common.domain.operations import ABSENT
from services.common.domain.spec_patch import (
    InterfaceLists,
    PatchOp,
    build_patch,
    template_spec_holder,
)
from services.common.domain.status_interfaces import DOMAIN
from services.common.domain.template import TemplateInterfaces, find_pending_changes

REQUEST_QUEUE = "/status/interfaceRequests"


def add(observed: Observed) -> Answer:
    """Return the answer to ``addinterface``.

    :raises Refused: the request is refused.
    :raises ValueError: an object cannot be parsed.
    """
    options = observed.options
    assert isinstance(options, AddInterfaceOptions)
    capabilities = _check_allowed(observed)
    vm, template, nics = parse_vm(observed)
    entries = find_entries(nics.vmi if nics is not None else None, observed.options.name)
    if options.name in template.interfaces:
        return _join_plug(observed, template, nics, entries)
    queued = _find_queued(vm, options.name) if capabilities.request_queue else None
    if queued is not None:
        return _join_queued(observed, queued, entries.plug)
    check_name(observed, vm.spec.template.spec)
    dropped = _dropped_items(observed, nics)
    check_nad(observed, may_migrate=True)
    # KubeVirt sets RestartRequired where the template leaves the preference's model out (kubevirt#18955).
    model = {"model": observed.preferred_model} if observed.preferred_model else {}
    multus = {"networkName": options.network_attachment_definition_name}
    item, network = dropped or ({"name": options.name, "bridge": {}, **model}, {"name": options.name, "multus": multus})
    warnings = nad_warnings(observed)
    if nics is not None and dropped is None:
        check_free_slot(
            observed, nics, sum(one.kind is OperationKind.PLUG for one in find_pending_changes(template, nics))
        )
        device = find_device(observed.nad) if observed.nad is not None else ""
        warnings += _warnings(observed, capabilities, nics, device)
    operation, entry = _enter(observed, vm, nics, entries, OperationKind.PLUG, joined=entries.plug if dropped else None)
    lists = with_primary_network(observed, vm, nics, template_spec_holder(vm).lists).with_interface(item, network)
    queue_item = {"addInterfaceOptions": msgspec.to_builtins(options)}
    ops, subresource = _edit(capabilities, vm, nics, lists, queue_item)
    return ChangeObject(RequestTarget.VM, operation, ops, requested_nad(observed), subresource, entry, warnings)


def remove(observed: Observed) -> Answer:
    """Return the answer to ``removeinterface``; a repeated request joins the unplug in progress.

    :raises Refused: the request is refused.
    :raises ValueError: an object cannot be parsed.
    """
    capabilities = _check_allowed(observed)
    vm, template, nics = parse_vm(observed)
    name, entries = observed.options.name, find_entries(nics.vmi if nics is not None else None, observed.options.name)
    desired, present = template.interfaces.get(name), nics.interfaces.get(name) if nics is not None else None
    unplugging = present is not None and present.state == ABSENT
    if desired is None:
        if unplugging and entries.unplug is not None:
            return JoinOperation(entries.unplug)
        raise _not_in_template(observed, nics, unplugging=unplugging)
    # The interface names of a pod matter only while it runs for this VM.
    check_removable(observed, desired.interface, desired.network, ordinal=nics is not None and nics.ordinal)
    queued = _find_queued(vm, name) if capabilities.request_queue else None
    if queued is not None:
        return _join_queued(observed, queued, entries.unplug)
    if desired.kind is OperationKind.UNPLUG and (nics is None or entries.unplug is not None):
        return JoinOperation(entries.unplug or _derived_unplug(vm, name))
    if present is not None and not unplugging:
        _check_not_last(observed, capabilities, nics)
    warnings = _warnings(observed, capabilities, nics) if nics is not None and present is not None else ()
    joined = entries.unplug if unplugging else None
    operation, entry = _enter(observed, vm, nics, entries, OperationKind.UNPLUG, joined=joined)
    if desired.kind is OperationKind.UNPLUG:
        # An edit with kubectl that has no operation yet: this request names it.
        return ChangeObject(RequestTarget.VM, operation, [], entry=entry)
    lists = template_spec_holder(vm).lists.with_absent([name])
    ops, subresource = _edit(capabilities, vm, nics, lists, {"removeInterfaceOptions": {"name": name}})
    return ChangeObject(RequestTarget.VM, operation, ops, "", subresource, entry, warnings)


def _check_allowed(observed: Observed) -> Capabilities:
    """Refuse a user who may not update the VM, which is what the request does beside KubeVirt."""
    if observed.beside is None:
        raise conflict(observed, NO_OWNER)
    if not observed.vm_allowed:
        message = (
            f'{VMS.plural}.{VMS.group} "{observed.name}" is forbidden: User "{observed.user}" cannot update resource '
            f'"{VMS.plural}" in API group "{VMS.group}" in the namespace "{observed.namespace}"; beside KubeVirt the '
            "request changes the VM's template, so it needs this permission"
        )
        raise Refused(RefuseRequest(403, "Forbidden", message, VMS.plural, observed.name))
    return observed.beside


def _join_plug(
    observed: Observed, template: TemplateInterfaces, nics: VmiNics | None, entries: InterfaceEntries
) -> JoinOperation:
    """Join the plug in progress when the request is identical; otherwise refuse the name."""
    name = observed.options.name
    desired = template.interfaces[name]
    present, nic = (nics.interfaces.get(name), nics.nics.get(name)) if nics is not None else (None, None)
    if desired.kind is OperationKind.UNPLUG:
        raise name_taken(observed, desired.interface, desired.network, " and is being unplugged")
    if present is not None and present.state == ABSENT:
        raise conflict(
            observed,
            f"interface {name!r} is being unplugged from the running VM, and KubeVirt plugs it again by itself when "
            "the guest has released it, because the VM's template lists it; wait, or remove it",
        )
    attached = nic is not None and DOMAIN in nic.tokens
    if nics is None or entries.plug is None or attached or not is_requested_network(observed, desired.network):
        raise name_taken(observed, desired.interface, desired.network, "")
    return JoinOperation(entries.plug)


def _dropped_items(observed: Observed, nics: VmiNics | None) -> tuple[dict[str, Any], dict[str, Any]] | None:
    """Return interface and network of the running VM that its template lists no more; the request puts them back.

    :return: ``None`` when the running VM has no interface of the requested name.
    :raises Refused: the running VM has another interface of that name.
    """
    name = observed.options.name
    if find_running_interface(observed, nics) is None or nics is None:
        return None
    spec = nics.vmi.spec
    # As they are in the running VM: KubeVirt sets RestartRequired for another value.
    item = next(one for one in spec.domain.devices.interfaces or () if one.get("name") == name)
    return (
        {key: value for key, value in item.items() if key != "state"},
        next(one for one in spec.networks or () if one.get("name") == name),
    )


def _not_in_template(observed: Observed, nics: VmiNics | None, *, unplugging: bool) -> Refused:
    name = observed.options.name
    if nics is None or name not in nics.interfaces:
        return unknown_interface(observed)
    if unplugging:
        return conflict(observed, f"interface {name!r} is being unplugged from the running VM")
    network = nics.networks.get(name)
    nad = network.multus.network_name if network is not None and network.multus is not None else "NAD"
    return conflict(
        observed,
        f"the VM's template lists interface {name!r} no more, and not as `state: absent`, so KubeVirt leaves it in "
        "the running VM until the VM restarts; to unplug it now, first add it again (hotnic addinterface "
        f"{observed.name} --name {name} --network-attachment-definition-name {nad}), then remove it",
    )


def _check_not_last(observed: Observed, capabilities: Capabilities, nics: VmiNics | None) -> None:
    secondary = [nic.name for nic in nics or () if nic.interface.state != ABSENT]
    if not capabilities.removes_last_interface and secondary == [observed.options.name]:
        raise conflict(
            observed,
            f"KubeVirt {version_text(capabilities)} never takes the last secondary interface out of a running VM; add "
            "another one first, or stop the VM",
        )


def _warnings(observed: Observed, capabilities: Capabilities, nics: VmiNics, device: str = "") -> tuple[str, ...]:
    """Return what the change of a running VM will cause; refuse it if the VM goes down and the user did not agree."""
    found = find_consequence(capabilities, nics.vmi, served=observed.served, device=device)
    if found is not None and found.outcome is MigrationOutcome.SHUTS_DOWN and not observed.allow_eviction:
        raise conflict(observed, f"{found.sentence}; to accept that, add --allow-eviction (query allowEviction=true)")
    sentences = (found.sentence if found is not None else "", restart_warning(capabilities))
    return tuple(sentence for sentence in sentences if sentence)


def _enter(
    observed: Observed,
    vm: VirtualMachine,
    nics: VmiNics | None,
    entries: InterfaceEntries,
    kind: OperationKind,
    *,
    joined: Operation | None,
) -> tuple[Operation, EntryWrite | None]:
    """Return the operation of the request, and the write of its entry; ``None`` for a VM that does not run.

    :param joined: an operation of the running VM that the request continues.
    """
    if nics is None:
        return observed.new_operation(kind), None
    nad = requested_nad(observed) if kind is OperationKind.PLUG else None
    new, found = observed.new_operation(kind), entries.of(kind)
    new = msgspec.structs.replace(new, vm=vm.metadata.uid, network=nad)
    if joined is not None:
        return joined, EntryWrite([], [])
    if found is not None and found.id == new.id:
        # Written by an earlier attempt of this request.
        return found, EntryWrite([], withdrawal_ops(nics.vmi, found))
    # A plug's entry beside one of an unplug, or of another network, is a leftover.
    leftover_plug = kind is OperationKind.PLUG and (
        entries.unplug is not None or (found is not None and found.network not in (None, nad))
    )
    # A request to another api may be between its two writes.
    if found is not None and not leftover_plug and entry_age(found, observed.now) < ORPHAN_AGE:
        return found, EntryWrite([], [])
    changes: dict[str, str | None] = {entry_key(new.interface, kind): encode_annotation(new)}
    leftover = unplug_key(new.interface)
    if kind is OperationKind.PLUG and leftover in nics.vmi.metadata.annotations:
        changes[leftover] = None
    return new, EntryWrite(entry_ops(nics.vmi, changes), withdrawal_ops(nics.vmi, new))


def _edit(
    capabilities: Capabilities, vm: VirtualMachine, nics: VmiNics | None, lists: InterfaceLists, request: dict[str, Any]
) -> tuple[list[PatchOp], str | None]:
    """Return the patch of the VM, and the subresource to patch."""
    if capabilities.request_queue and nics is not None:
        queue = vm.status.interface_requests
        return [
            {"op": "test", "path": REQUEST_QUEUE, "value": queue},
            {"op": "add", "path": REQUEST_QUEUE, "value": [*(queue or ()), request]},
        ], "status"
    return build_patch(template_spec_holder(vm), lists, {}), None


def _find_queued(vm: VirtualMachine, name: str) -> QueuedChange | None:
    """Return the request about an interface that KubeVirt 1.0 has not followed yet."""
    return next((queued for queued in read_queue(vm) if queued.name == name), None)


def _join_queued(observed: Observed, queued: QueuedChange, entry: Operation | None) -> JoinOperation:
    """Join the operation of an identical request in the queue; otherwise refuse the name."""
    options = observed.options
    if isinstance(options, AddInterfaceOptions):
        same = QueuedChange(options.name, OperationKind.PLUG, options.network_attachment_definition_name)
    else:
        same = QueuedChange(options.name, OperationKind.UNPLUG, "")
    if entry is None or queued != same:
        why = f"a request about interface {options.name!r} waits in the VM's status.interfaceRequests; try again later"
        raise conflict(observed, why)
    return JoinOperation(entry)


def _derived_unplug(vm: VirtualMachine, name: str) -> Operation:
    meta, kind = vm.metadata, OperationKind.UNPLUG
    return Operation(derive_operation_id(meta.uid, name, kind, meta.generation), kind, name)
