"""Builder of the observed state that the tests of the handler's plan start from."""

from typing import Any

from schemas.kubernetes.objects import Pod, VirtualMachineInstance
from services.common.domain.nic import parse_nics
from services.common.guest.port import GuestView
from services.handler.addresses.offer import NO_RESOLVER
from services.handler.plan.actions import Observed
from services.handler.plan.nics import absent_nics, in_domain
from services.handler.unplug import Unplug, initial_state


def observed_state(machine: VirtualMachineInstance, launcher: Pod, **fields: Any) -> Observed:
    """Return an observed state: fields that are not given are as in a handler that has just started.

    :param machine: the VMI.
    :param launcher: its acting pod.
    """
    nics = parse_nics(machine, launcher)
    guest = fields.pop("guest", GuestView({}, ()))
    unplugs = {
        nic.name: Unplug(initial_state(in_domain=in_domain(nic, guest), released=nics.released(nic)), None)
        for nic in absent_nics(nics)
    }
    values: dict[str, Any] = {
        "pod_links": None,
        "sandbox_id": "",
        "sandbox_error": "",
        "sandbox_gone": False,
        "tap_owner": 0,
        "tap_label": None,
        "resolver": NO_RESOLVER,
        "serving": {},
        "declined": frozenset(),
        "agent": None,
        "unconfirmed": frozenset(),
        "lost": frozenset(),
        "unplugs": unplugs,
        "now": 0.0,
    }
    return Observed(nics=nics, guest=guest, **(values | fields))
