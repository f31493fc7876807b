"""How an absent NIC leaves a running guest: pure, and strictly in this order.

The guest is asked to let go (:class:`LetGo`), again and again at growing intervals until the domain is seen without the
card; only then backend and wiring are undone (:class:`Release`), and only then the VMI says ``released``. A NIC that
has no card and no wiring is released at once: looking is all there is to do.
Next: :mod:`services.handler.teardown`, the links; :mod:`services.handler.report`, what the VMI says afterwards.
"""

import contextlib

import msgspec

from schemas.operations import AnnotationTooLarge
from services.common.domain.spec_patch import Op
from services.handler.netlink_operations import Seen, Step
from services.handler.nics import cannot_leave, in_domain, leaving_nics
from services.handler.plan import Observed, Refuse
from services.handler.pod_network import PodNetworkConflict, pod_nic_link
from services.handler.records import Nic, record_from_links, record_of, write_record
from services.handler.teardown import is_wired, release_steps


class LetGo(msgspec.Struct, frozen=True):
    """Ask the guest to let go of a card."""

    nic: Nic


class Wait(msgspec.Struct, frozen=True):
    """The guest was asked not long ago."""

    nic: Nic


class Release(msgspec.Struct, frozen=True):
    """The domain is without the card: remove the backend, undo the wiring.

    :ivar record: to be written on the pod before the first step; ``None`` when it is there, not needed, or too much.
    """

    nic: Nic
    record: list[Op] | None
    steps: list[Step]


def unplug(observed: Observed) -> list[LetGo | Wait | Release | Refuse]:
    """What to do for each absent NIC that is not released yet, in the spec's order.

    :raises Reject: spec or annotations cannot be understood.
    """
    actions: list[LetGo | Wait | Release | Refuse] = []
    for nic in leaving_nics(observed.vmi, observed.pod):
        obstacle = cannot_leave(nic)
        if obstacle is not None:
            actions.append(Refuse(nic, *obstacle))
        elif in_domain(nic, observed.guest):
            asked = observed.asked.get(nic.name)
            actions.append(LetGo(nic) if asked is None or observed.now >= asked.due else Wait(nic))
        elif nic.operation.released != observed.pod.metadata.uid and observed.seen is not None:
            actions.append(_release(observed, observed.seen, nic))
    return actions


def _release(observed: Observed, seen: Seen, nic: Nic) -> Release | Refuse:
    try:
        record, ops = record_of(observed.pod, nic, observed.sandbox_id), None
        if record is None and not is_wired(seen, nic.names):
            return Release(nic, None, [])
        if record is None:
            link = pod_nic_link(seen, nic.names)
            record = record_from_links(observed.pod, observed.sandbox_id, seen, nic, link) if link else None
            # What is too much to be noted must not hold up an unplug: it is put back from what was seen now.
            with contextlib.suppress(AnnotationTooLarge):
                ops = write_record(observed.pod, nic, record) if record else None
        return Release(nic, ops, release_steps(seen, nic.names, record, nic.status.mac))
    except PodNetworkConflict as conflict:
        return Refuse(nic, "PodNetworkConflict", str(conflict), final=False)
