"""Plan the Warning Events on a VM beside KubeVirt: what ends badly, or never by itself. Pure.

KubeVirt records no Event for a plug, an unplug or their failure. The reasons are those of the hot-plug status; each is
recorded once for an operation, however often the objects change.
Next: :mod:`services.controller.apply`, which records them.
"""

from collections.abc import Iterator

from services.common.domain.kubevirt.capabilities import Capabilities
from services.common.domain.kubevirt.reasons import WARNED
from services.common.domain.status.hotplug_status import derive_statuses
from services.controller.plan.actions import Observed, PatchTarget, WarnUser


def plan_warnings(observed: Observed, beside: Capabilities) -> Iterator[WarnUser]:
    """Yield a warning for each interface whose operation does not go on by itself."""
    if observed.nics is None:
        return
    for status in derive_statuses(observed.nics, observed.vm, beside):
        if status.reason in WARNED:
            remedy = f"; {status.remedy}" if status.remedy else ""
            message = f"interface {status.interface}: {status.message}{remedy} ({status.docs})"
            key = (status.operation or status.interface, status.reason)
            yield WarnUser(PatchTarget.VM, status.reason, message, key)
