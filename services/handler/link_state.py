"""Which cards' cables are to be plugged or pulled, in a domain that has the cards: pure.

``state: down`` in the spec pulls the cable, anything else plugs it, for every card, the primary one's too. A card that
is being unplugged is left as it is. What the domain does not tell is set once more, which the guest does not notice.
Next: :mod:`services.handler.work`, which has it done.
"""

import msgspec

from schemas.kube import Interface, VirtualMachineInstance
from schemas.names import device_alias
from services.common.domain.operations import ABSENT
from services.handler.guest.port import GuestView

DOWN = "down"


class SetLink(msgspec.Struct, frozen=True):
    """Plug or pull the cable of a card.

    :ivar changes: whether it is known to be the other way now.
    """

    interface: str
    up: bool
    changes: bool


def wants_link(interface: Interface) -> bool:
    """Whether the spec wants the cable plugged."""
    return interface.state != DOWN


def link_changes(vmi: VirtualMachineInstance, guest: GuestView) -> list[SetLink]:
    """What is not as the spec wants it, or not known to be, in the spec's order.

    :raises msgspec.ValidationError: the spec is malformed.
    """
    found = []
    for interface in vmi.spec.interface_items():
        card = guest.cards.get(device_alias(interface.name))
        if card is not None and interface.state != ABSENT and card.up is not wants_link(interface):
            found.append(SetLink(interface.name, wants_link(interface), changes=card.up is not None))
    return found
