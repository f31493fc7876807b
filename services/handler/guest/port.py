"""What the handler asks of a guest's domain, whichever way the domain is run. Types only.

Next: :mod:`services.handler.guest.qmp`, the implementation for QEMU without libvirt.
"""

from collections.abc import AsyncIterator
from enum import StrEnum
from typing import Protocol

import msgspec


class GuestNotReachable(Exception):
    """The domain does not answer (yet), or stopped answering: whether the last request took effect is unknown."""


class GuestRefused(Exception):
    """The domain answered no; ``str()`` is its own message."""


class NoFreeSlot(GuestRefused):
    """Every slot for hot-plugged cards is taken."""


class CardMissing(GuestRefused):
    """The domain has no such card (any more)."""


class Card(msgspec.Struct, frozen=True):
    """A NIC in the domain.

    :ivar alias: ``ua-<interface>``. :ivar mac: lower case.
    :ivar up: whether its cable is plugged; ``None`` when the domain does not tell.
    :ivar driven: whether a driver in the guest has been seen to use it; a guest that only boots does not yet.
    """

    alias: str
    mac: str
    up: bool | None = None
    driven: bool = False


class GuestView(msgspec.Struct, frozen=True):
    """One look at the domain.

    :ivar cards: by alias. :ivar free_slots: ids of empty slots for cards. :ivar cpus: virtual CPUs.
    """

    cards: dict[str, Card]
    free_slots: tuple[str, ...]
    cpus: int = 1


class NewCard(msgspec.Struct, frozen=True):
    """A virtio NIC to be attached.

    :ivar tap: the link it is backed by, in the namespace the guest's process runs in. :ivar mtu: bytes.
    :ivar queues: of the tap; more than one for multi-queue. :ivar up: whether its cable is plugged from the start.
    """

    interface: str
    mac: str
    tap: str
    mtu: int
    queues: int = 1
    up: bool = True


class Change(StrEnum):
    """What a domain says of itself."""

    CARD_GONE = "card-gone"
    CARD_IN_USE = "card-in-use"
    CARD_STAYS = "card-stays"
    AGENT_CAME = "agent-came"
    OTHER = "other"


class GuestEvent(msgspec.Struct, frozen=True):
    """A change. ``alias`` of the card, where it is about one."""

    change: Change
    alias: str | None = None


class Guest(Protocol):
    """A running domain.

    Every call has a deadline. Raises :class:`GuestNotReachable` or :class:`GuestRefused`.
    """

    async def list(self) -> GuestView:
        """Look at the domain."""
        ...

    async def attach(self, card: NewCard, slot: str) -> None:
        """Plug a card into a free slot. A left-over backend of an interrupted attempt is replaced."""
        ...

    async def detach(self, interface: str) -> None:
        """Ask the guest to let go of a card. It is gone only when :meth:`events` says so, or :meth:`list` does.

        :raises CardMissing: it is gone. :raises GuestRefused: also while an earlier request is still pending.
        """
        ...

    async def remove_backend(self, interface: str) -> None:
        """Remove what stood behind a card that is gone; nothing there is no failure."""
        ...

    async def set_link(self, interface: str, up: bool) -> None:
        """Plug or pull the card's cable; harmless where it is so already.

        :raises CardMissing: it is gone.
        """
        ...

    def events(self) -> AsyncIterator[GuestEvent]:
        """What the domain says of itself from now on; ends when the connection does."""
        ...

    async def close(self) -> None:
        """Leave the domain alone; harmless when repeated."""
        ...
