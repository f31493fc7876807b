"""The handler with guests that libvirt runs: found in the launcher's container, plugged, unplugged, lost and found."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import msgspec
import pytest

from schemas.events import Event, Failed, GuestDetached
from schemas.names import pod_interface
from schemas.operations import nic_slots_of
from schemas.stages import OperationKind
from services.cli import guest
from services.cli.node_files import Paths
from services.common.cri.client import Cri
from services.common.domain.invariants.world import GuestDevice as SeenCard
from services.common.domain.invariants.world import NotVisible
from services.common.domain.invariants.world import VmSnapshot as SeenMachine
from services.handler.guest.libvirt import LibvirtGuest
from services.handler.guest.port import GuestView
from services.handler.pod_network import link_names
from services.lab.guest.console import ConsoleFollower
from tests.support.handler_node import IP, MAC, VMIS, Machine, Node, handler_node, operation
from tests.support.libvirtd import NAME, PRIMARY_MAC, Libvirtd, domain_xml, running_libvirtd
from tests.support.objects import vmi
from tests.support.spans import recording_telemetry

NAMES = link_names(pod_interface("iface1"))


class Launcher:
    """A launcher whose container ``compute`` is libvirtd with one domain."""

    daemon: Libvirtd

    async def look(self) -> GuestView:
        """What a driver of its own sees."""
        guest = LibvirtGuest(NAME, self.daemon.socket, recording_telemetry()[0].tracer)
        try:
            return await guest.list()
        finally:
            await guest.close()

    def paused(self) -> Machine:
        @asynccontextmanager
        async def machine(folder: Path) -> AsyncIterator[int]:
            with running_libvirtd(folder, folder / "pod") as self.daemon:
                self.daemon.define(domain_xml(ports=3, cpus=2))
                yield self.daemon.pid

        return machine

    def booted(self) -> Machine:
        @asynccontextmanager
        async def machine(folder: Path) -> AsyncIterator[int]:
            with running_libvirtd(folder, folder / "pod") as self.daemon:
                async with ConsoleFollower(folder / "console.log") as console:
                    self.daemon.define(domain_xml(ports=4, boot=folder), paused=False)
                    await console.wait_ready(30)
                    yield self.daemon.pid

        return machine


async def looked(node: Node, *, bound: bool | None = None, **paths: Any) -> tuple[SeenCard, ...] | NotVisible:
    """The cards that the doctor sees on this node."""
    cri = Cri(str(node.folder / "cri.sock"), recording_telemetry()[0])
    try:
        found = msgspec.convert({"guest_driver": "libvirt"} | paths, Paths)
        machine = SeenMachine("default", "vm1", None, vmi())
        return await guest.cards(found, cri, machine, node.pod_uid, bound=bound)
    finally:
        await cri.close()


async def test_the_doctor_sees_libvirts_cards_and_says_why_when_it_cannot() -> None:
    launcher = Launcher()
    async with handler_node(launcher.paused(), driver="libvirt") as node:
        node.attach_pod_nic("iface1", IP)
        node.wish("iface1", operations=(operation("iface1"),))
        node.show_network_status("iface1")
        await node.until_status("iface1", "domain")
        cards = (SeenCard("default", PRIMARY_MAC), SeenCard("iface1", MAC))
        assert await looked(node) == cards
        # A guest without the folder of a monitor is asked so by itself; one that has it, by its monitor.
        nowhere = {"guest_driver": "auto", "qmp_socket": str(node.folder / "nowhere/{uid}/qmp.sock")}
        assert await looked(node, **nowhere) == cards
        for reason, found in (
            ("there is no monitor", await looked(node, guest_driver="qmp")),
            ("hotnic[libvirt]", await looked(node, bound=False)),
            ("hotnic[libvirt]", await looked(node, bound=False, **nowhere)),
        ):
            assert isinstance(found, NotVisible)
            assert reason in found.why
        with launcher.daemon.hanging():
            found = await looked(node)
            assert isinstance(found, NotVisible)
            assert "not answered within" in found.why
        with launcher.daemon.away():
            assert isinstance(await looked(node), NotVisible)
        node.cri.sandboxes[0].containers.clear()
        found = await looked(node)
        assert isinstance(found, NotVisible)
        assert "no running container compute" in found.why


def failures(events: list[Event], reason: str) -> list[Failed]:
    return [event for event in events if isinstance(event, Failed) and event.reason == reason]


@pytest.mark.guest
async def test_a_guest_of_libvirts_takes_a_card_and_lets_it_go() -> None:
    launcher = Launcher()
    async with handler_node(launcher.booted(), scripted_agent=False, driver="libvirt") as node:
        node.attach_pod_nic("iface1", IP)
        node.wish("iface1", operations=(operation("iface1"),))
        node.show_network_status("iface1")
        await node.until_status("iface1", "domain", "guest-agent")
        entry = node.status("iface1")
        assert (entry["mac"], entry["linkState"], entry["podInterfaceName"]) == (MAC, "up", NAMES.nic)
        assert entry["interfaceName"].startswith("e")
        async with asyncio.timeout(10):
            # The guest brings up every link it finds, and a link that comes up says so to its neighbours.
            while not (await launcher.look()).cards["ua-iface1"].driven:
                continue
        slots = nic_slots_of(node.kube.annotations(VMIS, "default", "vm1"))
        assert slots is not None
        taken = slots.free

        # Its libvirtd is replaced in between: the next look finds the new one, and the guest runs on.
        launcher.daemon.restart()
        node.wish(absent=("iface1",), operations=(operation("iface1", kind=OperationKind.UNPLUG),))
        await node.until_released("iface1")
        assert node.links() == {"lo", NAMES.nic}
        events = await node.until_published(lambda found: isinstance(found[-1], GuestDetached))
        assert events[-1].attempt == 1
        slots = nic_slots_of(node.kube.annotations(VMIS, "default", "vm1"))
        assert slots is not None
        assert slots.free == taken + 1


async def test_while_libvirtd_is_away_a_plug_waits_and_people_hear_why() -> None:
    launcher = Launcher()
    async with handler_node(launcher.paused(), driver="libvirt") as node:
        node.attach_pod_nic("iface1", IP)
        await node.settled()
        with launcher.daemon.away():
            node.wish("iface1", operations=(operation("iface1"),))
            node.show_network_status("iface1")
            events = await node.until_published(lambda found: bool(failures(found, "GuestNotReachable")))
            failed = failures(events, "GuestNotReachable")[0]
            assert failed.retry_after is not None
            assert "libvirt" in failed.message
            await node.kube.until(lambda: len(node.warnings()) == 1)
        await node.until_status("iface1", "domain")
        assert len(node.warnings()) == 1


async def test_a_container_that_is_not_there_is_a_guest_that_cannot_be_reached() -> None:
    launcher = Launcher()
    async with handler_node(launcher.paused(), driver="libvirt") as node:
        box = node.cri.sandboxes[0]
        compute = box.containers.pop("compute")
        node.attach_pod_nic("iface1", IP)
        node.wish("iface1", operations=(operation("iface1"),))
        node.show_network_status("iface1")
        events = await node.until_published(lambda found: bool(failures(found, "GuestNotReachable")))
        assert "no running container compute" in failures(events, "GuestNotReachable")[0].message
        box.containers["compute"] = compute
        await node.until_status("iface1", "domain")


async def test_a_machine_that_ends_while_it_is_asked_is_told_of_and_keeps_its_wiring() -> None:
    launcher = Launcher()
    async with handler_node(launcher.paused(), driver="libvirt") as node:
        node.attach_pod_nic("iface1", IP)
        node.wish("iface1", operations=(operation("iface1"),))
        node.show_network_status("iface1")
        await node.until_status("iface1", "domain")
        node.wish(absent=("iface1",), operations=(operation("iface1", kind=OperationKind.UNPLUG),))
        async with asyncio.timeout(10):
            # The guest is paused: it was asked and does not answer.
            await node.until(lambda: any(s.name == "handler unplug iface1" for s in node.spans.get_finished_spans()))
        launcher.daemon.kill_domain()
        events = await node.until_published(lambda found: bool(failures(found, "GuestNotReachable")))
        assert failures(events, "GuestNotReachable")[0].operation.kind is OperationKind.UNPLUG
        found = node.operation("iface1")
        assert found is not None
        assert found.released is None
        assert {NAMES.bridged, NAMES.bridge, NAMES.tap} <= node.links()
