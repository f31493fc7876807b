"""Plan the Warning Events on a VM beside KubeVirt: what ends badly, or never by itself. Pure.

KubeVirt records no Event for a plug or an unplug, and few for their failures. The reasons are those of the hot-plug
status; each is recorded once for an operation, however often the objects change.
Next: :mod:`services.controller.projector`, which derives the status and records them.
"""

from collections.abc import Iterable, Iterator

from schemas.bus.hotplug_status import InterfaceHotplugStatus
from services.common.domain.kubevirt.reasons import WARNED
from services.controller.plan.actions import PatchTarget, WarnUser


def plan_warnings(nic_statuses: Iterable[InterfaceHotplugStatus]) -> Iterator[WarnUser]:
    """Yield a warning for each interface whose operation does not go on by itself."""
    for status in nic_statuses:
        if status.reason in WARNED:
            remedy = f"; {status.remedy}" if status.remedy else ""
            message = f"interface {status.interface}: {status.message}{remedy} ({status.docs})"
            key = (status.operation or status.interface, status.reason)
            yield WarnUser(PatchTarget.VM, status.reason, message, key)
