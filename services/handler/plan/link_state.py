"""Plan the link states of a domain's NICs. Pure.

``state: down`` in the spec means down; anything else means up. This applies to every NIC, the primary one included. A
NIC that is being unplugged is not changed. A link state that the domain does not report is set again, which the guest
does not notice. Next: :mod:`services.handler.plan.report`, which reports the link states.
"""

from schemas.kubernetes.objects import Interface
from schemas.names import device_alias
from services.common.domain.nic import VmiNics
from services.common.domain.operations import ABSENT
from services.common.guest.port import GuestView
from services.handler.plan.actions import SetLinkState

DOWN = "down"


def wants_link_up(interface: Interface) -> bool:
    """Return whether the spec wants the link up."""
    return interface.state != DOWN


def plan_link_states(nics: VmiNics, guest: GuestView) -> list[SetLinkState]:
    """Return an action for each NIC whose link state differs from the spec, or is not known, in the spec's order."""
    found = []
    for name, interface in nics.interfaces.items():
        device = guest.devices.get(device_alias(name))
        if device is not None and interface.state != ABSENT and device.up is not wants_link_up(interface):
            found.append(SetLinkState(name, wants_link_up(interface), changes=device.up is not None))
    return found
