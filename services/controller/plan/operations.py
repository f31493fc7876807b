"""Decide which operations start: those of the VM's template, adopted ones, and the unplugs that undo failed plugs.

An adopted operation belongs to an interface that has none yet, such as one added with ``kubectl edit``. A change that
cannot be made leaves the objects as they are and is reported once, in a Warning Event. Pure: no I/O.
Next: :mod:`services.controller.plan.removal`.
"""

from collections.abc import Iterator

import msgspec

from schemas.kubernetes.operations import Operation, derive_operation_id
from schemas.names import interface_hash
from schemas.stages import OperationKind
from services.common.domain.eligibility import (
    PLUG_FAILURES,
    STATES,
    explain_duplicate_mac,
    find_hash_collision,
    find_mac_holder,
    find_plug_obstacle,
    find_unplug_obstacle,
)
from services.common.domain.nic import Nic, VmiNics, qualified_nad
from services.common.domain.operations import ABSENT
from services.common.domain.spec_patch import InterfaceLists, build_patch, template_spec_holder, vmi_spec_holder
from services.common.domain.status_interfaces import DOMAIN, parse_tokens
from services.common.domain.template import (
    DesiredInterface,
    TemplateInterfaces,
    changed_link_states,
    derive_edit_id,
    find_pending_changes,
    find_reverted_unplugs,
)
from services.controller.plan.actions import (
    Observed,
    PatchObject,
    PatchTarget,
    StartedOperation,
    StartOperations,
    WarnUser,
)

OTHER_FAILURE = "PlugFailed"
"""Reason of the Event about a plug that failed for a reason which this version does not know. Each reason of an object
has an Event of its own, so what an annotation says is none."""
CHANGE_REJECTED = "InterfaceChangeRejected"
"""Reason of the Event about an edit that cannot be applied."""


def undo_failed(
    observed: Observed, template: TemplateInterfaces | None, nics: VmiNics
) -> Iterator[WarnUser | StartOperations]:
    """Start the unplug of interfaces whose plug has failed permanently; it continues the trace of the plug.

    An interface that was plugged through the template becomes ``absent`` in the template as well. An interface that the
    template had when the VM started stays in the template: the next start may have room for it. A plug whose device is
    in the domain has not failed: the handler gives a plug up before it attaches anything.
    """
    meta = nics.vmi.metadata
    started: list[StartedOperation] = []
    for name, interface in nics.interfaces.items():
        plug = nics.operations.get(name)
        if plug is None or plug.kind is not OperationKind.PLUG or plug.failed is None:
            continue
        if interface.state == ABSENT or name in observed.refused_interfaces:
            continue
        if DOMAIN in parse_tokens(nics.status_entries.get(name, {})):
            continue
        # `failed` is copied, so that the reason stays readable after the plug's operation is overwritten.
        undo = Operation(
            id=derive_operation_id(meta.uid, name, OperationKind.UNPLUG, meta.generation),
            kind=OperationKind.UNPLUG,
            interface=name,
            traceparent=plug.traceparent,
            requested_at=observed.now,
            failed=plug.failed,
        )
        requested = template.operations.get(name) if template is not None else None
        from_template = requested is not None and requested.id == plug.id
        started.append(StartedOperation(undo, on_vm=from_template))
        yield WarnUser(
            PatchTarget.VM if from_template else PatchTarget.VMI,
            plug.failed if plug.failed in PLUG_FAILURES else OTHER_FAILURE,
            f"cannot plug interface {name!r}: {plug.failed}; the interface is removed from the spec",
            (plug.id, "undone", plug.failed),
        )
    if started:
        names = [one.operation.interface for one in started]
        on_vm = [one.operation.interface for one in started if one.on_vm]
        lists = template_spec_holder(template.vm).lists.with_absent(on_vm) if template is not None and on_vm else None
        yield StartOperations(tuple(started), vm=lists, vmi=vmi_spec_holder(nics.vmi).lists.with_absent(names))


def copy_template(
    observed: Observed, template: TemplateInterfaces, nics: VmiNics
) -> Iterator[WarnUser | StartOperations]:
    """Start the plugs and unplugs that the VM's template requests and the VMI does not have yet."""
    for desired in find_reverted_unplugs(template, nics):
        final = f"interface {desired.name!r} is being unplugged, which is final; it is plugged again after the unplug"
        yield _warn_vm(desired, final)
    for desired in template.interfaces.values():
        if desired.name in nics.interfaces and desired.interface.state not in STATES:
            state = desired.interface.state[:40]
            yield _warn_vm(
                desired, f"interface {desired.name!r} has the unknown state {state!r}; use up, down or absent"
            )
    # An unplug depends on the pod's interface names, which are known once the acting pod runs.
    names_known = nics.pod is not None and nics.vmi.status.phase == "Running"
    accepted: list[DesiredInterface] = []
    for desired in find_pending_changes(template, nics):
        must_wait = desired.kind is OperationKind.UNPLUG and not names_known
        if must_wait or desired.name in observed.refused_interfaces:
            continue
        why = next(_rejections(observed, nics, desired, accepted), None)
        if why is None:
            accepted.append(desired)
            if observed.one_at_a_time:
                break
        # The implicit primary network of a running VM needs no plug, so its rejection is not worth a warning.
        elif not _is_implicit_primary(nics, desired):
            yield _warn_vm(desired, why)
    if accepted:
        started = tuple(_template_operation(observed, template, nics, desired) for desired in accepted)
        yield StartOperations(started, vmi=_with_changes(nics, accepted))


def copy_link_states(template: TemplateInterfaces, nics: VmiNics) -> Iterator[PatchObject]:
    """Plan the patch that copies the template's link states to the VMI."""
    states = changed_link_states(template, nics)
    if states:
        holder = vmi_spec_holder(nics.vmi)
        yield PatchObject(PatchTarget.VMI, "link", build_patch(holder, holder.lists.with_link_states(states), {}))


def adopt(observed: Observed, nics: VmiNics) -> Iterator[WarnUser | StartOperations]:
    """Create operations for interfaces of the VMI that have none, and restore unplugs that an edit reverts half-way.

    An interface has no operation after an edit with kubectl, or when the VMI has had it since its start.
    """
    # A derived id depends on the generation, and the generation of an object without the status subresource grows with
    # every status report. Once the operation is in the annotation, its id is stable.
    started: list[StartedOperation] = []
    restored: list[str] = []
    for nic in nics:
        if nic.has_operation or nic.name in observed.refused_interfaces:
            continue
        why = find_unplug_obstacle(nics, nic.name) if nic.absent else None
        if why is not None:
            yield _warn_vmi(nics, nic.name, why)
        elif nic.absent:
            started.append(_adopted(observed, nic))
        elif nic.written is not None and nic.in_pod:
            # The annotation has an unplug, and an edit has removed `state: absent`. That is restored, because parts of
            # the unplug may be done already.
            restored.append(nic.name)
            started.append(StartedOperation(nic.written))
            yield _warn_vmi(nics, nic.name, f"interface {nic.name!r} is being unplugged, which is final")
        # Only the bridge binding can be plugged into a running VM. With `domain`, the guest has the device already.
        elif nic.interface.bridge is not None and DOMAIN not in nic.tokens:
            started.append(_adopted(observed, nic))
    for name in nics.interfaces:
        # Of two interfaces with a hash collision, `nics` has only the first; a warning is recorded for the other.
        other = find_hash_collision(nics.vmi.spec, name) if name not in nics.nics else None
        if other in nics.nics:
            yield _warn_vmi(nics, name, _collision_message(name, other))
    if started:
        lists = vmi_spec_holder(nics.vmi).lists.with_absent(restored) if restored else None
        yield StartOperations(tuple(started), vmi=lists)


def adopt_at_start(observed: Observed, nics: VmiNics) -> Iterator[StartOperations]:
    """Create operations for the interfaces that a VMI has from its start, before it runs.

    The handler then finds the operation, and with it the trace, when it plugs the interface.
    """
    started = tuple(
        _adopted(observed, nic)
        for nic in nics
        if nic.written is None
        and not nic.absent
        and nic.interface.bridge is not None
        and nic.name not in observed.refused_interfaces
    )
    if started:
        yield StartOperations(started)


def _adopted(observed: Observed, nic: Nic) -> StartedOperation:
    operation = msgspec.structs.replace(nic.operation, requested_at=observed.now)
    return StartedOperation(operation, "" if nic.absent else nic.nad)


def _template_operation(
    observed: Observed, template: TemplateInterfaces, nics: VmiNics, desired: DesiredInterface
) -> StartedOperation:
    written = template.operation(desired.name, desired.kind)
    edit_id = derive_edit_id(template.vm, nics.vmi, desired.name, desired.kind)
    operation = written or Operation(edit_id, desired.kind, desired.name, requested_at=observed.now)
    nad = ""
    if desired.kind is OperationKind.PLUG and desired.network is not None and desired.network.multus is not None:
        nad = qualified_nad(desired.network.multus.network_name, nics.vmi.metadata.namespace)
    # An edit's operation is written to the VM first, so that VM and VMI have the same id (ADR 21).
    return StartedOperation(operation, nad, on_vm=written is None)


def _with_changes(nics: VmiNics, accepted: list[DesiredInterface]) -> InterfaceLists:
    """Return the VMI's lists with the accepted changes of the template."""
    lists = vmi_spec_holder(nics.vmi).lists
    for desired in accepted:
        if desired.kind is OperationKind.UNPLUG:
            lists = lists.with_absent([desired.name])
        else:
            # `_rejections` has refused a different network of that name; an equal one is not listed twice.
            network = None if desired.name in nics.networks else desired.network_item
            # The item as written, with a MAC that a webhook has set (kubevirt#9896).
            lists = lists.with_interface(desired.item, network)
    return lists


def _rejections(
    observed: Observed, nics: VmiNics, desired: DesiredInterface, accepted: list[DesiredInterface]
) -> Iterator[str]:
    """Yield the reasons why a change of the template cannot be made while the VM runs, the most important one first.

    :param accepted: the changes that are made together with this one.
    """
    name = desired.name
    if not observed.enabled:
        yield f"the feature gate HotplugNICs is off: interface {name!r} changes only when the VM restarts; restart it"
    if desired.kind is OperationKind.UNPLUG:
        # The VMI's interface decides, not the template's: the same edit may have changed more than the state.
        reasons = [find_unplug_obstacle(nics, name)]
    else:
        names = [one.name for one in accepted if interface_hash(one.name) == interface_hash(name)]
        other = find_hash_collision(nics.vmi.spec, name) or next(iter(names), None)
        holder = find_mac_holder(nics, desired.interface, [one.interface for one in accepted])
        foreign = name in nics.networks and desired.network_item not in (nics.vmi.spec.networks or ())
        reasons = [
            find_plug_obstacle(desired.interface, desired.network),
            explain_duplicate_mac(desired.interface, holder) if holder is not None else None,
            _collision_message(name, other) if other is not None else None,
            f"interface {name!r}: the running VM has another network by the name of {name!r}; choose another name"
            if foreign
            else None,
        ]
    yield from (reason for reason in reasons if reason is not None)


def _is_implicit_primary(nics: VmiNics, desired: DesiredInterface) -> bool:
    """Return whether the template lists the primary network that the running VMI has without listing it."""
    in_vmi = any(network.pod is not None for network in nics.networks.values())
    return desired.network is not None and desired.network.pod is not None and not in_vmi


def _collision_message(name: str, other: str | None) -> str:
    return f"interface {name!r} would have the same link names as {other!r}; choose another name"


def _warn_vm(desired: DesiredInterface, why: str) -> WarnUser:
    return WarnUser(PatchTarget.VM, CHANGE_REJECTED, why, (desired.name, CHANGE_REJECTED, why))


def _warn_vmi(nics: VmiNics, name: str, why: str) -> WarnUser:
    return WarnUser(PatchTarget.VMI, CHANGE_REJECTED, why, (nics.vmi.metadata.uid, name, CHANGE_REJECTED, why))
