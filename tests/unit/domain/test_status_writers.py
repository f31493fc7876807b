"""Handler and controller write the same ``status.interfaces`` by guarded patches and preserve each other's tokens.

Each plans from the state it has read and writes later, in any order. If the guard of a patch fails, the writer plans
again.
"""

import copy
from collections.abc import Callable
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from schemas.kubernetes.networks import NETWORK_STATUS, NetworkStatus, encode_network_status
from schemas.kubernetes.objects import VirtualMachineInstance
from schemas.names import device_alias, pod_interface
from services.common.domain.nic import parse_nics
from services.common.domain.status_interfaces import DOMAIN, GUEST_AGENT, MULTUS_STATUS, Entry, find_entry, parse_tokens
from services.common.guest.agent import GuestNic
from services.common.guest.port import GuestView, NetDevice
from services.controller.plan.attachments import write_status
from services.handler.plan.report import status_entries
from tests.support.observed import objects

NAMES = ("a", "b")
LINKS = {name: pod_interface(name) for name in NAMES}
OWNED = {"handler": {DOMAIN, GUEST_AGENT}, "controller": {MULTUS_STATUS}}
PRIMARY: Entry = {"name": "default", "infoSource": "domain", "mac": "02:00:00:00:00:00"}


class SharedStatus:
    """The actual state, the written status, and the planned patch of each writer with its guard."""

    def __init__(self) -> None:
        self.devices: set[str] = {"default"}
        self.attached: set[str] = set()
        self.agent: set[str] | None = None
        self.status: list[Entry] | None = None
        self.planned: dict[str, tuple[list[Entry] | None, list[Entry]]] = {}

    def _vmi(self) -> VirtualMachineInstance:
        return objects.vmi(*(objects.nic(name) for name in NAMES), status=self.status)

    def handler(self) -> list[Entry] | None:
        """Return the list that the handler wants to write; ``None`` when it is up to date."""
        devices = {device_alias(name): NetDevice(device_alias(name), mac(name)) for name in self.devices}
        agent = None if self.agent is None else [GuestNic(f"eth-{name}", mac(name)) for name in sorted(self.agent)]
        view = GuestView(devices, ())
        interfaces = self._vmi().spec.interface_items()
        after = status_entries(self.status, interfaces, LINKS, view, agent, primary="default")
        return after if after != (self.status or []) else None

    def controller(self) -> list[Entry] | None:
        """Return the list that the controller wants to write; ``None`` when it is up to date."""
        statuses = [NetworkStatus("default/net1", LINKS[name]) for name in sorted(self.attached)]
        pod = objects.pod({NETWORK_STATUS: encode_network_status(statuses)})
        patch = next(write_status(parse_nics(self._vmi(), pod)), None)
        if patch is None:
            return None
        guard, write = patch.ops
        assert (guard["op"], guard["value"]) == ("test", self.status)
        value: list[Entry] = write["value"]
        return value

    def plan(self, writer: str) -> None:
        """Plan a writer's patch from the current status."""
        wanted = {"handler": self.handler, "controller": self.controller}[writer]()
        if wanted is None:
            self.planned.pop(writer, None)
        else:
            self.planned[writer] = (copy.deepcopy(self.status), wanted)

    def write(self, writer: str) -> None:
        """Apply a writer's patch if the status is still the one it was planned from; otherwise plan again."""
        guard, wanted = self.planned.pop(writer, (None, []))
        if not wanted and guard is None:
            return
        if guard != self.status:
            self.plan(writer)
            return
        foreign = tokens_of(self.status, other(writer))
        self.status = wanted
        remaining = tokens_of(self.status, other(writer))
        # Either writer removes the token of the agent for a NIC that neither the domain nor Multus has.
        removed = {(name, GUEST_AGENT) for name in NAMES if find_entry(self.status, name) is None}
        assert remaining == foreign - removed

    def converge(self) -> None:
        """Let both writers plan and write until the status is up to date."""
        for _ in range(8):
            for writer in OWNED:
                self.plan(writer)
                self.write(writer)
        assert self.handler() is None
        assert self.controller() is None


def mac(name: str) -> str:
    return f"02:00:00:00:00:{len(name) * 16 + ord(name[0]) % 16:02x}"


def other(writer: str) -> str:
    return "controller" if writer == "handler" else "handler"


def tokens_of(status: list[Entry] | None, writer: str) -> set[tuple[str, str]]:
    """Return the tokens of a writer, by interface."""
    return {(entry["name"], token) for entry in status or () for token in parse_tokens(entry) & OWNED[writer]}


def change(shared: SharedStatus, part: str, name: str) -> None:
    if part == "agent":
        shared.agent = (shared.agent or set()) ^ {name}
    else:
        found: set[str] = getattr(shared, part)
        found ^= {name}


STEPS = st.one_of(
    st.tuples(st.just(change), st.sampled_from(["devices", "attached", "agent"]), st.sampled_from(NAMES)),
    st.tuples(st.just(SharedStatus.plan), st.sampled_from(list(OWNED))),
    st.tuples(st.just(SharedStatus.write), st.sampled_from(list(OWNED))),
)


@given(st.lists(STEPS, max_size=40))
def test_writers_preserve_each_others_tokens_and_converge(
    steps: list[tuple[Callable[..., None], Any]],
) -> None:
    shared = SharedStatus()
    for step, *arguments in steps:
        step(shared, *arguments)
    shared.converge()
    for name in NAMES:
        wanted = {DOMAIN} if name in shared.devices else set()
        wanted |= {MULTUS_STATUS} if name in shared.attached else set()
        if shared.agent is not None and name in shared.agent & shared.devices:
            wanted |= {GUEST_AGENT}
        entry = find_entry(shared.status, name) or {}
        assert parse_tokens(entry) == wanted
        assert len([one for one in shared.status or () if one["name"] == name]) == (1 if wanted else 0)
        assert entry.get("podInterfaceName") == (LINKS[name] if wanted else None)
        assert ("interfaceName" in entry) is (GUEST_AGENT in wanted)


@pytest.mark.parametrize("first", ["handler", "controller"])
def test_second_writer_of_the_same_state_plans_again(first: str) -> None:
    shared = SharedStatus()
    shared.devices.add("a")
    shared.attached.add("a")
    for writer in OWNED:
        shared.plan(writer)
    shared.write(first)
    before = copy.deepcopy(shared.status)
    shared.write(other(first))
    assert shared.status == before
    shared.write(other(first))
    assert parse_tokens(find_entry(shared.status, "a") or {}) == {DOMAIN, MULTUS_STATUS}


def test_fields_of_a_third_writer_are_preserved() -> None:
    shared = SharedStatus()
    shared.status = [msgspec.json.decode(msgspec.json.encode(PRIMARY | {"foreign": "field"}))]
    shared.devices.add("a")
    shared.attached.add("a")
    shared.converge()
    assert (find_entry(shared.status, "default") or {})["foreign"] == "field"
