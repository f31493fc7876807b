"""Guests in every state, reached by QMP: booting, paused, rebooting, without an agent, gone, held by somebody else."""

import os
import signal
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
from qemu.qmp import QMPClient

from schemas.events import ConfirmedBy, Event, Failed, GuestAttached
from schemas.names import pod_interface
from schemas.stages import OperationKind
from services.handler.pod_network import link_names
from services.lab.guest.qemu import AGENT_SOCKET, LAB_QMP_SOCKET, BootNic, Guest, GuestSpec
from services.lab.tools import Tools
from tests.support.handler_node import IP, Node, handler_node, operation
from tests.support.objects import VMI_UID
from tests.support.qemu import PRIMARY_MAC, paused_qemu

NAMES = link_names(pod_interface("iface1"))


class RealGuest:
    """The lab's guest, in the pod's network namespace. Whether it has booted is not waited for."""

    guest: Guest
    folder: Path

    @asynccontextmanager
    async def machine(self, folder: Path) -> AsyncIterator[None]:
        self.folder = folder / VMI_UID
        spec = GuestSpec.with_tools(
            Tools.find(), name="vm1", uid=VMI_UID, folder=self.folder, nics=[BootNic("default", PRIMARY_MAC)], ports=2
        )
        self.guest = await Guest.start(spec, launch=["nsenter", f"--net={folder / 'pod'}", "--"])
        try:
            yield
        finally:
            await self.guest.stop()

    async def do(self, command: str, **arguments: Any) -> None:
        """Have QEMU do something, by the lab's own monitor."""
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
    """Multus has attached the NIC, and the user wants it."""
    node.attach_pod_nic("iface1", IP)
    node.wish("iface1", operations=(operation("iface1"),))
    node.show_network_status("iface1")


def unplug(node: Node) -> None:
    """The user does not want it any more."""
    node.wish(absent=("iface1",), operations=(operation("iface1", kind=OperationKind.UNPLUG),))


@pytest.mark.guest
async def test_a_guest_that_boots_is_no_failure_and_one_that_is_paused_lets_go_when_it_runs_on() -> None:
    real = RealGuest()
    async with handler_node(real.machine, scripted_agent=False) as node:
        plug(node)
        events = await node.until_published(lambda found: bool(confirmations(found)))
        assert confirmations(events) == [ConfirmedBy.DEVICE]
        assert not real.guest.console.events
        events = await node.until_published(lambda found: ConfirmedBy.GUEST_AGENT in confirmations(found))
        assert failures(events) == []

        await real.do("stop")
        unplug(node)
        events = await node.until_published(lambda found: bool(failures(found)))
        late = failures(events)[0]
        assert (late.reason, late.operation.kind) == ("UnplugTimeout", OperationKind.UNPLUG)
        assert late.retry_after is not None
        assert {NAMES.bridged, NAMES.bridge, NAMES.tap} <= node.links()
        await real.do("cont")
        await node.until_released("iface1")
        assert node.links() == {"lo", NAMES.nic}


@pytest.mark.guest
async def test_a_guest_without_an_agent_is_confirmed_by_its_driver_and_lets_go_over_a_reboot() -> None:
    real = RealGuest()
    async with handler_node(real.machine, scripted_agent=False) as node:
        await real.guest.wait_ready()
        (real.folder / AGENT_SOCKET).unlink()
        plug(node)
        events = await node.until_published(lambda found: len(confirmations(found)) == 2)
        assert confirmations(events) == [ConfirmedBy.DEVICE, ConfirmedBy.DRIVER]
        assert node.status("iface1")["infoSource"] == "domain"

        # What it is asked while it boots gets lost. It is asked again when its driver shows that it is up.
        await real.do("set-action", reboot="reset")
        await real.do("system_reset")
        unplug(node)
        await node.until_released("iface1", timeout=40)
        assert node.links() == {"lo", NAMES.nic}
        assert {failed.reason for failed in failures(node.bus.published)} <= {"UnplugTimeout"}


async def test_a_machine_that_is_gone_is_told_of_and_its_wiring_stays() -> None:
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


async def test_a_monitor_that_somebody_else_holds_is_waited_for() -> None:
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
