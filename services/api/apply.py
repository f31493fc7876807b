"""Carrying out the api's plan: the guarded patch of the VM or VMI, then, for a VMI, the event.

A patch whose guard fails (someone changed the object in between) is decided anew; the event never holds the answer up.
"""

from collections.abc import Awaitable, Callable

from schemas.kube import VMIS, VMS, StatusCause, StatusDetails
from schemas.operations import Operation
from services.api.plan import Change, Joined, Observed, Refuse, Target, plan
from services.api.plan.answers import conflict
from services.common import faults
from services.common.bus.protocol import Bus
from services.common.http.server import StatusError
from services.common.kube.client import Kube
from services.common.kube.errors import Conflict, PatchTestFailed

ATTEMPTS = 5
"""How often a request is decided anew before its caller is told to come again (HTTP 409)."""


async def carry_out(look: Callable[[], Awaitable[Observed]], kube: Kube, bus: Bus) -> Operation:
    """Observe, plan and apply one request; returns the operation it started or joined.

    :raises StatusError: the request is refused.
    :raises KubeError: the API server does not answer, or refuses.
    """
    for _ in range(ATTEMPTS):
        seen = await look()
        answer = plan(seen)
        if isinstance(answer, Refuse):
            raise refused(answer)
        if isinstance(answer, Joined):
            return answer.operation
        if await _changed(seen, answer, kube, bus):
            return answer.operation
    raise refused(conflict(seen, "the object keeps changing; please try again"))


def refused(answer: Refuse) -> StatusError:
    """A refusal as the ``Status`` that the caller gets."""
    # Of an invalid object kubectl prints the causes and nothing else.
    causes = [StatusCause("FieldValueInvalid", answer.message, "name")] if answer.code == 422 else None
    details = StatusDetails(name=answer.name, kind=answer.kind, causes=causes)
    return StatusError(answer.code, answer.reason, answer.message, details=details)


async def _changed(seen: Observed, answer: Change, kube: Kube, bus: Bus) -> bool:
    """Patch and publish; ``False`` when the object is no longer what was decided upon."""
    try:
        if answer.target is Target.VM:
            with faults.step("api.patch-vm"):
                await kube.json_patch(VMS, seen.namespace, seen.name, answer.ops)
            return True
        with faults.step("api.patch-vmi"):
            vmi = await kube.json_patch(VMIS, seen.namespace, seen.name, answer.ops)
    except (PatchTestFailed, Conflict):
        return False
    await bus.publish(answer.event(vmi))
    return True
