"""Handler and controller write one ``status.interfaces``, each by guarded patch: neither erases the other's words.

Both look, and both write what they saw then, in any order; a guard that fails makes the writer look again.
"""

import copy
from collections.abc import Callable
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from schemas.kube import VirtualMachineInstance
from schemas.names import device_alias, pod_interface
from schemas.networks import NETWORK_STATUS, NetworkStatus, encode_network_status
from services.common.domain.status_interfaces import DOMAIN, GUEST_AGENT, MULTUS_STATUS, Entry, entry_of, tokens
from services.controller.plan.attachments import write_status
from services.handler.guest.agent import GuestNic
from services.handler.guest.port import Card, GuestView
from services.handler.status import entries
from tests.support import objects

NAMES = ("a", "b")
LINKS = {name: pod_interface(name) for name in NAMES}
OWNED = {"handler": {DOMAIN, GUEST_AGENT}, "controller": {MULTUS_STATUS}}
PRIMARY: Entry = {"name": "default", "infoSource": "domain", "mac": "02:00:00:00:00:00"}


class World:
    """What is so, what the status says, and what each writer is about to write over which state."""

    def __init__(self) -> None:
        self.cards: set[str] = {"default"}
        self.attached: set[str] = set()
        self.agent: set[str] | None = None
        self.status: list[Entry] | None = None
        self.held: dict[str, tuple[list[Entry] | None, list[Entry]]] = {}

    def _vmi(self) -> VirtualMachineInstance:
        return objects.vmi(*(objects.nic(name) for name in NAMES), status=self.status)

    def handler(self) -> list[Entry] | None:
        """The list as the handler wants it; ``None``: as it is."""
        cards = {device_alias(name): Card(device_alias(name), mac(name)) for name in self.cards}
        agent = None if self.agent is None else [GuestNic(f"eth-{name}", mac(name)) for name in sorted(self.agent)]
        view = GuestView(cards, ())
        after = entries(self.status, ["default", *NAMES], LINKS, view, agent, primary="default")
        return after if after != (self.status or []) else None

    def controller(self) -> list[Entry] | None:
        """The same of the controller."""
        statuses = [NetworkStatus("default/net1", LINKS[name]) for name in sorted(self.attached)]
        patch = write_status(self._vmi(), objects.pod({NETWORK_STATUS: encode_network_status(statuses)}))
        if patch is None:
            return None
        guard, write = patch.ops
        assert (guard["op"], guard["value"]) == ("test", self.status)
        value: list[Entry] = write["value"]
        return value

    def look(self, who: str) -> None:
        """A writer looks and makes up its mind."""
        wanted = {"handler": self.handler, "controller": self.controller}[who]()
        if wanted is None:
            self.held.pop(who, None)
        else:
            self.held[who] = (copy.deepcopy(self.status), wanted)

    def write(self, who: str) -> None:
        """A writer's patch arrives: it applies to the very state that was looked at, or not at all."""
        guard, wanted = self.held.pop(who, (None, []))
        if not wanted and guard is None:
            return
        if guard != self.status:
            self.look(who)
            return
        foreign = said(self.status, other(who))
        self.status = wanted
        kept = said(self.status, other(who))
        # An agent's word about a NIC that neither domain nor Multus knows is out of date, whoever finds that out.
        gone = {(name, GUEST_AGENT) for name in NAMES if entry_of(self.status, name) is None}
        assert kept == foreign - gone

    def settle(self) -> None:
        """Both go on until neither has anything to say."""
        for _ in range(8):
            for who in OWNED:
                self.look(who)
                self.write(who)
        assert self.handler() is None
        assert self.controller() is None


def mac(name: str) -> str:
    return f"02:00:00:00:00:{len(name) * 16 + ord(name[0]) % 16:02x}"


def other(who: str) -> str:
    return "controller" if who == "handler" else "handler"


def said(status: list[Entry] | None, who: str) -> set[tuple[str, str]]:
    """What a writer says in a list."""
    return {(entry["name"], token) for entry in status or () for token in tokens(entry) & OWNED[who]}


def change(world: World, part: str, name: str) -> None:
    if part == "agent":
        world.agent = (world.agent or set()) ^ {name}
    else:
        found: set[str] = getattr(world, part)
        found ^= {name}


steps = st.one_of(
    st.tuples(st.just(change), st.sampled_from(["cards", "attached", "agent"]), st.sampled_from(NAMES)),
    st.tuples(st.just(World.look), st.sampled_from(list(OWNED))),
    st.tuples(st.just(World.write), st.sampled_from(list(OWNED))),
)


@given(st.lists(steps, max_size=40))
def test_neither_writer_erases_the_others_words_and_both_come_to_rest(
    taken: list[tuple[Callable[..., None], Any]],
) -> None:
    world = World()
    for step, *arguments in taken:
        step(world, *arguments)
    world.settle()
    for name in NAMES:
        wanted = {DOMAIN} if name in world.cards else set()
        wanted |= {MULTUS_STATUS} if name in world.attached else set()
        if world.agent is not None and name in world.agent & world.cards:
            wanted |= {GUEST_AGENT}
        entry = entry_of(world.status, name) or {}
        assert tokens(entry) == wanted
        assert len([one for one in world.status or () if one["name"] == name]) == (1 if wanted else 0)
        assert entry.get("podInterfaceName") == (LINKS[name] if wanted else None)
        assert ("interfaceName" in entry) is (GUEST_AGENT in wanted)


@pytest.mark.parametrize("first", ["handler", "controller"])
def test_of_two_that_looked_at_the_same_state_the_later_one_looks_again(first: str) -> None:
    world = World()
    world.cards.add("a")
    world.attached.add("a")
    for who in OWNED:
        world.look(who)
    world.write(first)
    before = copy.deepcopy(world.status)
    world.write(other(first))
    assert world.status == before
    world.write(other(first))
    assert tokens(entry_of(world.status, "a") or {}) == {DOMAIN, MULTUS_STATUS}


def test_words_of_a_third_writer_stay() -> None:
    world = World()
    world.status = [msgspec.json.decode(msgspec.json.encode(PRIMARY | {"somebody": "else"}))]
    world.cards.add("a")
    world.attached.add("a")
    world.settle()
    assert (entry_of(world.status, "default") or {})["somebody"] == "else"
