"""What the handler keeps of each guest between two looks: the monitor's connection, the agent's watch, running traces.

All of it can be lost: a restarted handler finds the same by looking again.
Next: :mod:`services.handler.observe`, which uses a session to look.
"""

import asyncio
import time
from collections.abc import Callable, Iterable

import msgspec
from opentelemetry.context import Context

from schemas.names import interface_of_alias
from services.common.logs import Log
from services.handler.addresses.service import Addresses
from services.handler.guest.agent import GuestAgent
from services.handler.guest.drivers import Drive
from services.handler.guest.port import Change, Guest, GuestEvent, GuestNotReachable
from services.handler.guest.watch import AFTER_LEASE, SERIES, AgentWatch
from services.handler.pending_unplug import Asked, stirred

Key = tuple[str, str]
Look = Callable[[Key, Context | None], None]


class Plugged:
    """A card this process attached: when (nanoseconds, wall clock), and the span it did it in.

    :ivar driven: whether it has been told that the guest's driver uses it.
    """

    def __init__(self, context: Context) -> None:
        self.at = time.time_ns()
        self.context = context
        self.driven = False


class Leaving:
    """A card that the guest was asked to let go of: the state of asking, and the span it was asked in.

    :ivar at: wall clock of the first request, in nanoseconds; ``gone`` of the guest's answer, 0 before it.
    :ivar told: the number of requests when people were told last.
    """

    def __init__(self, asked: Asked, context: Context) -> None:
        self.at = time.time_ns()
        self.asked = asked
        self.context = context
        self.gone = 0
        self.told = 0


class Session:
    """One guest that runs here. Made by :class:`Sessions`."""

    def __init__(self, key: Key, guest: Guest, agent: GuestAgent, look: Look, log: Log) -> None:
        self.key = key
        self.guest = guest
        self.agent = AgentWatch(agent, self._look_again, log, silent=self._look_for_drivers)
        self.addresses = Addresses(self._look_again, self._given, log)
        self.plugged: dict[str, Plugged] = {}
        self.leaving: dict[str, Leaving] = {}
        self._look = look
        self._timer: asyncio.TimerHandle | None = None
        self._log = log
        self._listening: asyncio.Task[None] | None = None

    def listen(self) -> None:
        """Follow the guest's events, unless that is being done already."""
        if self._listening is None or self._listening.done():
            self._listening = asyncio.create_task(self._listen(), name=f"guest-events {self.key}")

    def attached(self, interface: str, mac: str, context: Context) -> None:
        """Note a card that was attached just now, and begin to ask the guest for it."""
        self.plugged[interface] = Plugged(context)
        self.leaving.pop(interface, None)
        # What the agent said of an earlier card of this MAC is no word about this one.
        self.agent.forget(mac)
        self.agent.ask(SERIES)

    def _given(self) -> None:
        self.agent.ask(AFTER_LEASE)

    def look_in(self, seconds: float | None) -> None:
        """Have the key looked at after that time; ``None`` takes the last wish back."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        if seconds is not None:
            self._timer = asyncio.get_running_loop().call_later(seconds, self._look, self.key, None)

    async def close(self) -> None:
        """Leave the guest alone."""
        self.look_in(None)
        self.addresses.close()
        if self._listening is not None:
            self._listening.cancel()
            await asyncio.wait({self._listening})
        await self.agent.close()
        await self.guest.close()

    async def _listen(self) -> None:
        try:
            async for event in self.guest.events():
                self._heard(event)
        except GuestNotReachable as exc:
            self._log.debug("guest events ended", why=str(exc))
        # What was not heard meanwhile is seen; and a guest that is gone is told of.
        self._look(self.key, None)

    def _heard(self, event: GuestEvent) -> None:
        if event.change in (Change.CARD_IN_USE, Change.AGENT_CAME):
            if event.change is Change.AGENT_CAME:
                self.agent.came()
            else:
                self.agent.ask()
            self._stirred()
        # One without an alias is about a part of a card that goes, a moment before the card itself.
        elif event.change is not Change.OTHER and event.alias is not None:
            leaving = self.leaving.get(interface_of_alias(event.alias) or "")
            if leaving is not None and event.change is Change.CARD_GONE:
                leaving.gone = time.time_ns()
            elif leaving is not None:
                leaving.asked = msgspec.structs.replace(leaving.asked, refused=True)
            self._look(self.key, leaving.context if leaving is not None else None)

    def _stirred(self) -> None:
        now = asyncio.get_running_loop().time()
        for leaving in self.leaving.values():
            before, leaving.asked = leaving.asked, stirred(leaving.asked, now)
            if leaving.asked != before:
                self._look(self.key, leaving.context)

    def look_again(self, context: Context | None) -> None:
        """Have the key looked at once more."""
        self._look(self.key, context)

    def unconfirmed(self) -> frozenset[str]:
        """The interfaces whose card was attached here, and is not known to be used by a driver."""
        return frozenset(name for name, plugged in self.plugged.items() if not plugged.driven)

    def _look_for_drivers(self) -> None:
        # With an agent that answers there is no need: it says more.
        if self.unconfirmed():
            self._look_again()

    def _look_again(self) -> None:
        latest = max(self.plugged.values(), key=lambda plugged: plugged.at, default=None)
        self._look(self.key, latest.context if latest is not None else None)


class Sessions:
    """The sessions of a node, by VMI UID.

    :param drive: how a guest is reached. :param look: has a key looked at again.
    """

    def __init__(self, drive: Drive, log: Log, look: Look) -> None:
        self._drive = drive
        self._log = log
        self._look = look
        self._open: dict[str, Session] = {}

    def of(self, uid: str, key: Key, pod_uid: str) -> Session:
        """The session of a VMI that a pod runs; a new one begins by asking the guest's agent."""
        session = self._open.get(uid)
        if session is None:
            guest, agent = self._drive(uid, key, pod_uid)
            session = self._open[uid] = Session(key, guest, agent, self._look, self._log.bind(vmi="/".join(key)))
            session.agent.ask(SERIES)
        return session

    def has(self, key: Key) -> bool:
        """Whether a VMI of this name has a session."""
        return any(session.key == key for session in self._open.values())

    async def retain(self, uids: Iterable[str]) -> None:
        """End every session but these VMIs'."""
        gone = self._open.keys() - set(uids)
        # All at once: each may take as long as a monitor that no longer answers.
        await asyncio.gather(*(self._open.pop(uid).close() for uid in gone))

    async def close(self) -> None:
        """End all."""
        await self.retain(())
