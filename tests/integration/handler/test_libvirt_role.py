"""The handler with guests that libvirt runs: plug, unplug, and a libvirtd that is absent, restarted or hanging."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import msgspec
import pytest

from lab.guest.console import ConsoleFollower
from lab.guest.qemu import BOOT_DEADLINE
from schemas.bus.events import Event, Failed, GuestDetached
from schemas.kubernetes.operations import read_nic_slots
from schemas.names import pod_interface
from schemas.stages import OperationKind
from services.cli.doctor.collect import guest
from services.cli.doctor.collect.node_files import NodeSettings
from services.cli.doctor.snapshot import GuestDevice, NotVisible, VmSnapshot
from services.common.cri.client import CriClient
from services.common.domain.nic import link_names
from services.common.guest.libvirt import LibvirtGuest
from services.common.guest.port import GuestView
from tests.support.guest.libvirtd import NAME, PRIMARY_MAC, Libvirtd, domain_xml, running_libvirtd
from tests.support.node.handler_node import IP, MAC, VMIS, Machine, Node, handler_node, operation
from tests.support.observed.objects import vmi
from tests.support.telemetry.spans import recording_telemetry

NAMES = link_names(pod_interface("iface1"))


class Launcher:
    """A launcher whose container ``compute`` is a libvirtd with one domain."""

    daemon: Libvirtd

    async def observe(self) -> GuestView:
        """Return the observed state, from a driver of its own."""
        guest = LibvirtGuest(NAME, self.daemon.socket, recording_telemetry()[0].tracer)
        try:
            return await guest.list()
        finally:
            await guest.close()

    def paused(self) -> Machine:
        """Return a machine without a guest in it."""

        @asynccontextmanager
        async def machine(folder: Path) -> AsyncIterator[int]:
            with running_libvirtd(folder, folder / "pod") as self.daemon:
                self.daemon.define(domain_xml(ports=3, cpus=2))
                yield self.daemon.pid

        return machine

    def booted(self) -> Machine:
        """Return a machine that has booted the lab's guest."""

        @asynccontextmanager
        async def machine(folder: Path) -> AsyncIterator[int]:
            with running_libvirtd(folder, folder / "pod") as self.daemon:
                async with ConsoleFollower(folder / "console.log") as console:
                    self.daemon.define(domain_xml(ports=4, boot=folder), paused=False)
                    await console.wait_ready(BOOT_DEADLINE)
                    yield self.daemon.pid

        return machine


async def doctor_devices(
    node: Node, *, has_binding: bool | None = None, **paths: Any
) -> tuple[GuestDevice, ...] | NotVisible:
    """Return the NICs that ``hotnic doctor`` finds on this node."""
    cri = CriClient(str(node.folder / "cri.sock"), recording_telemetry()[0])
    try:
        found = msgspec.convert({"guest_driver": "libvirt"} | paths, NodeSettings)
        machine = VmSnapshot("default", "vm1", None, vmi())
        return await guest.guest_devices(found, cri, machine, node.pod_uid, has_binding=has_binding)
    finally:
        await cri.close()


async def test_the_doctor_lists_the_devices_of_libvirt_or_why_it_cannot() -> None:
    launcher = Launcher()
    async with handler_node(launcher.paused(), driver="libvirt") as node:
        node.attach_pod_nic("iface1", IP)
        node.put_vmi("iface1", operations=(operation("iface1"),))
        node.put_network_status("iface1")
        await node.until_status("iface1", "domain")
        devices = (GuestDevice("default", PRIMARY_MAC), GuestDevice("iface1", MAC))
        assert await doctor_devices(node) == devices
        # With "auto" the driver is libvirt, because the directory of a QMP socket does not exist.
        nowhere = {"guest_driver": "auto", "qmp_socket": str(node.folder / "nowhere/{uid}/qmp.sock")}
        assert await doctor_devices(node, **nowhere) == devices
        for reason, found in (
            ("there is no QMP socket at", await doctor_devices(node, guest_driver="qmp")),
            ("hotnic[libvirt]", await doctor_devices(node, has_binding=False)),
            ("hotnic[libvirt]", await doctor_devices(node, has_binding=False, **nowhere)),
        ):
            assert isinstance(found, NotVisible)
            assert reason in found.message
        with launcher.daemon.hanging():
            found = await doctor_devices(node)
            assert isinstance(found, NotVisible)
            assert "not answered within" in found.message
        with launcher.daemon.away():
            assert isinstance(await doctor_devices(node), NotVisible)
        node.cri.sandboxes[0].containers.clear()
        found = await doctor_devices(node)
        assert isinstance(found, NotVisible)
        assert "no running container compute" in found.message


def failures(events: list[Event], reason: str) -> list[Failed]:
    return [event for event in events if isinstance(event, Failed) and event.reason == reason]


@pytest.mark.guest
async def test_a_nic_is_plugged_into_and_unplugged_from_a_guest_of_libvirt() -> None:
    launcher = Launcher()
    async with handler_node(launcher.booted(), scripted_agent=False, driver="libvirt") as node:
        node.attach_pod_nic("iface1", IP)
        node.put_vmi("iface1", operations=(operation("iface1"),))
        node.put_network_status("iface1")
        await node.until_status("iface1", "domain", "guest-agent")
        entry = node.status("iface1")
        assert (entry["mac"], entry["linkState"], entry["podInterfaceName"]) == (MAC, "up", NAMES.pod_interface)
        assert entry["interfaceName"].startswith("e")
        async with asyncio.timeout(45):
            # The guest sets every link up that it finds, and then sends packets for neighbour discovery.
            while not (await launcher.observe()).devices["ua-iface1"].driver_active:
                continue
        slots = read_nic_slots(node.kube.annotations(VMIS, "default", "vm1"))
        assert slots is not None
        taken = slots.free

        # libvirtd is restarted in between. The next run connects to the new one; the guest continues to run.
        launcher.daemon.restart()
        node.put_vmi(absent=("iface1",), operations=(operation("iface1", kind=OperationKind.UNPLUG),))
        await node.until_released("iface1")
        assert node.links() == {"lo", NAMES.pod_interface}
        events = await node.until_published(lambda found: isinstance(found[-1], GuestDetached))
        assert events[-1].attempt == 1
        slots = read_nic_slots(node.kube.annotations(VMIS, "default", "vm1"))
        assert slots is not None
        assert slots.free == taken + 1


async def test_a_plug_waits_while_libvirtd_is_absent_and_the_reason_is_published() -> None:
    launcher = Launcher()
    async with handler_node(launcher.paused(), driver="libvirt") as node:
        node.attach_pod_nic("iface1", IP)
        await node.settled()
        with launcher.daemon.away():
            node.put_vmi("iface1", operations=(operation("iface1"),))
            node.put_network_status("iface1")
            events = await node.until_published(lambda found: bool(failures(found, "GuestNotReachable")))
            failed = failures(events, "GuestNotReachable")[0]
            assert failed.retry_after is not None
            assert "libvirt" in failed.message
            await node.kube.until(lambda: len(node.warnings()) == 1)
        await node.until_status("iface1", "domain")
        assert len(node.warnings()) == 1


async def test_a_guest_without_its_container_is_not_reachable() -> None:
    launcher = Launcher()
    async with handler_node(launcher.paused(), driver="libvirt") as node:
        box = node.cri.sandboxes[0]
        compute = box.containers.pop("compute")
        node.attach_pod_nic("iface1", IP)
        node.put_vmi("iface1", operations=(operation("iface1"),))
        node.put_network_status("iface1")
        events = await node.until_published(lambda found: bool(failures(found, "GuestNotReachable")))
        assert "no running container compute" in failures(events, "GuestNotReachable")[0].message
        box.containers["compute"] = compute
        await node.until_status("iface1", "domain")


async def test_a_machine_that_ends_during_an_unplug_is_reported_and_its_pod_network_remains() -> None:
    launcher = Launcher()
    async with handler_node(launcher.paused(), driver="libvirt") as node:
        node.attach_pod_nic("iface1", IP)
        node.put_vmi("iface1", operations=(operation("iface1"),))
        node.put_network_status("iface1")
        await node.until_status("iface1", "domain")
        node.put_vmi(absent=("iface1",), operations=(operation("iface1", kind=OperationKind.UNPLUG),))
        async with asyncio.timeout(45):
            # The guest is paused, so it does not respond to the request.
            await node.until(lambda: any(s.name == "handler unplug iface1" for s in node.spans.get_finished_spans()))
        launcher.daemon.kill_domain()
        events = await node.until_published(lambda found: bool(failures(found, "GuestNotReachable")))
        assert failures(events, "GuestNotReachable")[0].operation.kind is OperationKind.UNPLUG
        found = node.operation("iface1")
        assert found is not None
        assert found.released is None
        assert {NAMES.bridged, NAMES.bridge, NAMES.tap} <= node.links()
