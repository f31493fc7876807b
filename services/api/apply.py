"""Apply a request: observe, plan, and patch the VM or VMI under guard; publish ``requested`` where the api has to.

When the guard fails, because the object has changed since it was observed, the request is planned again. Beside
KubeVirt the operation's entry is written to the VMI first. It is taken back when the VM's change is refused; when it is
unknown whether the VM was changed, or the api dies in between, the controller removes an entry that nothing follows.
The answer never waits for the bus. Next: :mod:`services.api.hotplug_status`.
"""

import asyncio
from collections import defaultdict
from collections.abc import Awaitable, Callable
from contextlib import aclosing, suppress

import msgspec

from schemas.kubernetes.objects import VMIS, VMS, StatusCause, StatusDetails, VirtualMachine, VirtualMachineInstance
from services.api.permissions import ApiPermissionMissing, own_reads, own_write
from services.api.plan import ChangeObject, JoinOperation, Observed, RefuseRequest, RequestTarget, plan
from services.api.plan.answers import conflict
from services.common.bus.protocol import Bus
from services.common.domain.mac_address import explain_shared_mac, find_mac_uses, find_shared_macs, mac_index
from services.common.http.server import StatusError
from services.common.kube.client import Kube
from services.common.kube.errors import Conflict, KubeError, NotFound, PatchTestFailed

ATTEMPTS = 5
"""How many times a request is planned before it is answered with 409, and the user has to repeat it."""
MAC_DEADLINE = 1.0
"""Seconds for the search for other VMs with the MAC of a new interface: the answer does not wait longer for it."""


async def apply_request(
    observe_request: Callable[[], Awaitable[Observed]], kube: Kube, bus: Bus, *, dry_run: bool = False
) -> JoinOperation | ChangeObject:
    """Observe, plan and apply one request; return the answer with the operation that it started or joined.

    :param observe_request: observes the objects of the request; called once for each attempt.
    :param dry_run: change nothing, but ask the API server whether it would accept the change.
    :raises StatusError: the request is refused.
    :raises KubeError: the API server does not answer, or it refuses the change.
    :raises ApiPermissionMissing: the api may not make a call.
    """
    entered: ChangeObject | None = None
    try:
        for _ in range(ATTEMPTS):
            with own_reads():
                observed = _with_operation(await observe_request(), entered)
            answer = plan(observed)
            if isinstance(answer, RefuseRequest):
                raise status_error(answer)
            if isinstance(answer, JoinOperation):
                if entered is not None and entered.operation.id != answer.operation.id:
                    await _withdraw_entry(kube, observed, entered)
                return answer
            if answer.entry is not None and answer.entry.ops and not dry_run:
                vmi = await _write_entry(kube, observed, answer)
                if vmi is None:
                    continue
                observed, entered = msgspec.structs.replace(observed, vmi=vmi), answer
            patched = await _apply_change(kube, bus, observed, answer, dry_run=dry_run)
            if patched is not None:
                warnings = await _find_mac_warnings(kube, observed, patched)
                return msgspec.structs.replace(answer, warnings=answer.warnings + warnings)
        raise status_error(conflict(observed, "the object keeps changing; please try again").answer)
    except (StatusError, KubeError, ApiPermissionMissing) as error:
        # Without a response the VM may have been changed.
        if entered is not None and not (isinstance(error, KubeError) and error.status == 0):
            await _withdraw_entry(kube, observed, entered)
        raise


def status_error(answer: RefuseRequest) -> StatusError:
    """Return a refusal as the ``Status`` error of the HTTP response."""
    causes = None
    if answer.code == 422:
        # For the reason `Invalid` kubectl prints only the causes, not the message.
        causes = [StatusCause("FieldValueInvalid", answer.message, "name")]
    elif answer.cause:
        causes = [StatusCause(answer.cause, answer.message)]
    details = StatusDetails(name=answer.name, kind=answer.kind, causes=causes)
    return StatusError(answer.code, answer.reason, answer.message, details=details)


def _with_operation(observed: Observed, entered: ChangeObject | None) -> Observed:
    """Let another attempt continue the operation whose entry an earlier one has written."""
    if entered is None:
        return observed
    operation = entered.operation
    return msgspec.structs.replace(
        observed,
        new_id=operation.id,
        now=operation.requested_at or observed.now,
        traceparent=operation.traceparent,
    )


async def _apply_change(
    kube: Kube, bus: Bus, observed: Observed, answer: ChangeObject, *, dry_run: bool
) -> VirtualMachine | VirtualMachineInstance | None:
    """Patch the object and publish the event; return ``None`` when the object has changed since it was observed."""
    namespace, name, ops = observed.namespace, observed.name, answer.ops
    patched: VirtualMachine | VirtualMachineInstance | None = observed.vm
    try:
        with own_write():
            if answer.target is RequestTarget.VMI:
                vmi: VirtualMachineInstance | None = await kube.json_patch(VMIS, namespace, name, ops, dry_run=dry_run)
                patched = vmi
            else:
                if ops:
                    patched = await kube.json_patch(
                        VMS, namespace, name, ops, subresource=answer.subresource, dry_run=dry_run
                    )
                # Otherwise the controller publishes `requested` when it copies the change to the VMI.
                vmi = observed.vmi if answer.entry is not None and answer.entry.withdrawal else None
    except (PatchTestFailed, Conflict):
        return None
    if vmi is not None and not dry_run:
        await bus.publish(answer.requested_event(vmi))
    return patched


async def _find_mac_warnings(
    kube: Kube, observed: Observed, patched: VirtualMachine | VirtualMachineInstance
) -> tuple[str, ...]:
    """Return that other VMs have the MAC of the new interface on the same network, if that is found soon.

    A request names no MAC. Only where a webhook has set one, or the running VM has it, the VMs of the namespace are
    read, the first page of them. The controller, which has an index of all, records the Event.
    """
    own = [use for use in find_mac_uses(patched) if use.interface == observed.options.name]
    if not own:
        return ()
    try:
        async with asyncio.timeout(MAC_DEADLINE), aclosing(kube.list_pages(VMS, observed.namespace)) as pages:
            # One page, so that a request costs no more in a large namespace.
            page = await anext(pages)
    except (KubeError, TimeoutError):
        return ()
    index: defaultdict[str, list[VirtualMachine]] = defaultdict(list)
    for vm in kube.decode_page(VMS, page):
        for value in mac_index(vm):
            index[value].append(vm)
    return tuple(
        explain_shared_mac(one) for one in find_shared_macs([patched], lambda value: index[value]) if one.use in own
    )


async def _write_entry(kube: Kube, observed: Observed, answer: ChangeObject) -> VirtualMachineInstance | None:
    """Write the operation to the VMI; return ``None`` when the VMI has changed since it was observed."""
    assert answer.entry is not None
    try:
        with own_write():
            return await kube.json_patch(VMIS, observed.namespace, observed.name, answer.entry.ops)
    except (PatchTestFailed, Conflict, NotFound):
        return None


async def _withdraw_entry(kube: Kube, observed: Observed, entered: ChangeObject) -> None:
    """Take the entry back, unless somebody else has replaced or removed it; the controller removes one that is left."""
    assert entered.entry is not None
    with suppress(KubeError):
        await kube.json_patch(VMIS, observed.namespace, observed.name, entered.entry.withdrawal)
