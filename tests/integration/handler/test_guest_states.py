"""Guests in every state, reached by QMP: booting, paused, rebooting, without an agent, gone, with another client."""

import os
import signal
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
from qemu.qmp import QMPClient

from lab.guest.console import Ready
from lab.guest.qemu import AGENT_SOCKET, BOOT_DEADLINE, LAB_QMP_SOCKET, BootNic, GuestSpec, QemuGuest
from lab.tools import LabTools
from schemas.bus.events import ConfirmedBy, Event, Failed, GuestAttached
from schemas.names import pod_interface
from schemas.stages import OperationKind
from services.common.domain.nic import link_names
from tests.support.guest.qemu import PRIMARY_MAC, paused_qemu
from tests.support.node.handler_node import IP, Node, handler_node, operation
from tests.support.observed.objects import VMI_UID

NAMES = link_names(pod_interface("iface1"))


class RealGuest:
    """The lab's guest in the pod's network namespace. Starting it does not wait until it has booted."""

    guest: QemuGuest
    folder: Path

    @asynccontextmanager
    async def machine(self, folder: Path) -> AsyncIterator[None]:
        self.folder = folder / VMI_UID
        spec = GuestSpec.with_tools(
            LabTools.find(),
            name="vm1",
            uid=VMI_UID,
            folder=self.folder,
            nics=[BootNic("default", PRIMARY_MAC)],
            ports=2,
        )
        self.guest = await QemuGuest.start(spec, launch=["nsenter", f"--net={folder / 'pod'}", "--"])
        try:
            yield
        finally:
            await self.guest.stop()

    async def execute_qmp(self, command: str, **arguments: Any) -> None:
        """Execute a QMP command on the lab's own monitor."""
        client = QMPClient("test")
        await client.connect(str(self.folder / LAB_QMP_SOCKET))
        try:
            await client.execute(command, arguments)
        finally:
            await client.disconnect()


def confirmations(events: list[Event]) -> list[ConfirmedBy]:
    return [event.confirmed_by for event in events if isinstance(event, GuestAttached)]


def failures(events: list[Event]) -> list[Failed]:
    return [event for event in events if isinstance(event, Failed)]


def plug(node: Node) -> None:
    """Attach a pod interface, and plug it."""
    node.attach_pod_nic("iface1", IP)
    node.put_vmi("iface1", operations=(operation("iface1"),))
    node.put_network_status("iface1")


def unplug(node: Node) -> None:
    """Unplug the interface."""
    node.put_vmi(absent=("iface1",), operations=(operation("iface1", kind=OperationKind.UNPLUG),))


@pytest.mark.guest
async def test_a_booting_guest_is_no_failure_and_a_paused_one_completes_an_unplug_when_it_continues() -> None:
    real = RealGuest()
    async with handler_node(real.machine, scripted_agent=False) as node:
        plug(node)
        events = await node.until_published(lambda found: bool(confirmations(found)))
        assert confirmations(events) == [ConfirmedBy.DEVICE]
        assert not real.guest.console.events
        await real.guest.wait_ready()
        events = await node.until_published(lambda found: ConfirmedBy.GUEST_AGENT in confirmations(found))
        assert failures(events) == []

        await real.execute_qmp("stop")
        unplug(node)
        events = await node.until_published(lambda found: bool(failures(found)))
        late = failures(events)[0]
        assert (late.reason, late.operation.kind) == ("UnplugTimeout", OperationKind.UNPLUG)
        assert late.retry_after is not None
        assert {NAMES.bridged, NAMES.bridge, NAMES.tap} <= node.links()
        await real.execute_qmp("cont")
        await node.until_released("iface1")
        assert node.links() == {"lo", NAMES.pod_interface}


@pytest.mark.guest
async def test_a_guest_without_an_agent_is_confirmed_by_its_driver_and_completes_an_unplug_after_a_reboot() -> None:
    real = RealGuest()
    async with handler_node(real.machine, scripted_agent=False) as node:
        await real.guest.wait_ready()
        (real.folder / AGENT_SOCKET).unlink()
        plug(node)
        events = await node.until_published(lambda found: len(confirmations(found)) == 2)
        assert confirmations(events) == [ConfirmedBy.DEVICE, ConfirmedBy.DRIVER]
        assert node.status("iface1")["infoSource"] == "domain"

        # A request during the boot is lost. The request is repeated when the driver shows activity.
        console = real.guest.console
        seen = len(console.events)
        await real.execute_qmp("set-action", reboot="reset")
        await real.execute_qmp("system_reset")
        unplug(node)
        await console.wait_for(lambda event: isinstance(event, Ready), BOOT_DEADLINE, since=seen)
        await node.until_released("iface1")
        assert node.links() == {"lo", NAMES.pod_interface}
        assert {failed.reason for failed in failures(node.bus.published)} <= {"UnplugTimeout"}


async def test_a_machine_that_is_gone_is_reported_and_its_pod_network_remains() -> None:
    pids = []

    @asynccontextmanager
    async def machine(folder: Path) -> AsyncIterator[None]:
        async with paused_qemu(folder / VMI_UID / "qmp.sock", folder / "pod", ports=2) as pid:
            pids.append(pid)
            yield

    async with handler_node(machine) as node:
        plug(node)
        await node.until_status("iface1", "domain")
        os.kill(pids[0], signal.SIGKILL)
        unplug(node)
        events = await node.until_published(lambda found: len(failures(found)) > 1)
        assert {failed.reason for failed in failures(events)} == {"GuestNotReachable"}
        assert [failed.attempt for failed in failures(events)] == [1, 2]
        await node.kube.until(lambda: node.warnings() == ["GuestNotReachable"])
        found = node.operation("iface1")
        assert found is not None
        assert found.released is None
        assert {NAMES.bridged, NAMES.bridge, NAMES.tap} <= node.links()


async def test_a_plug_waits_for_a_monitor_with_another_client() -> None:
    other = QMPClient("other")

    @asynccontextmanager
    async def machine(folder: Path) -> AsyncIterator[None]:
        async with paused_qemu(folder / VMI_UID / "qmp.sock", folder / "pod", ports=2):
            await other.connect(str(folder / VMI_UID / "qmp.sock"))
            yield

    async with handler_node(machine, monitor_deadline=0.5) as node:
        plug(node)
        events = await node.until_published(lambda found: bool(failures(found)))
        failed = failures(events)[0]
        assert (failed.reason, failed.retry_after is not None) == ("GuestNotReachable", True)
        assert "is another client connected?" in failed.message
        await other.disconnect()
        await node.until_status("iface1", "domain")
