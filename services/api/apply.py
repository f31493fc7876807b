"""Apply a request: observe, plan, and patch the VM or VMI under guard; for a VMI, publish ``requested``.

When the guard fails, because the object has changed since it was observed, the request is planned again. The answer
never waits for the bus. Next: :mod:`services.api.hotplug_status`.
"""

from collections.abc import Awaitable, Callable

from schemas.kubernetes.objects import VMIS, VMS, StatusCause, StatusDetails
from schemas.kubernetes.operations import Operation
from services.api.permissions import own_reads, own_write
from services.api.plan import ChangeObject, JoinOperation, Observed, RefuseRequest, RequestTarget, plan
from services.api.plan.answers import conflict
from services.common.bus.protocol import Bus
from services.common.http.server import StatusError
from services.common.kube.client import Kube
from services.common.kube.errors import Conflict, PatchTestFailed

ATTEMPTS = 5
"""How many times a request is planned before it is answered with 409, and the user has to repeat it."""


async def apply_request(observe_request: Callable[[], Awaitable[Observed]], kube: Kube, bus: Bus) -> Operation:
    """Observe, plan and apply one request; return the operation that it started or joined.

    :param observe_request: observes the objects of the request; called once for each attempt.
    :raises StatusError: the request is refused.
    :raises KubeError: the API server does not answer, or it refuses the change.
    :raises ApiPermissionMissing: the api may not make a call.
    """
    for _ in range(ATTEMPTS):
        with own_reads():
            observed = await observe_request()
        answer = plan(observed)
        if isinstance(answer, RefuseRequest):
            raise status_error(answer)
        if isinstance(answer, JoinOperation):
            return answer.operation
        if await _apply_change(observed, answer, kube, bus):
            return answer.operation
    raise status_error(conflict(observed, "the object keeps changing; please try again").answer)


def status_error(answer: RefuseRequest) -> StatusError:
    """Return a refusal as the ``Status`` error of the HTTP response."""
    # For the reason `Invalid` kubectl prints only the causes, not the message.
    causes = [StatusCause("FieldValueInvalid", answer.message, "name")] if answer.code == 422 else None
    details = StatusDetails(name=answer.name, kind=answer.kind, causes=causes)
    return StatusError(answer.code, answer.reason, answer.message, details=details)


async def _apply_change(observed: Observed, answer: ChangeObject, kube: Kube, bus: Bus) -> bool:
    """Patch the object and publish the event; return ``False`` when the object has changed since it was observed."""
    try:
        with own_write():
            if answer.target is RequestTarget.VM:
                # The controller publishes `requested` when it copies the change to the VMI.
                await kube.json_patch(VMS, observed.namespace, observed.name, answer.ops)
                return True
            vmi = await kube.json_patch(VMIS, observed.namespace, observed.name, answer.ops)
    except (PatchTestFailed, Conflict):
        return False
    await bus.publish(answer.requested_event(vmi))
    return True
