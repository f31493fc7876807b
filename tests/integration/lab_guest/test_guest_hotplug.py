"""A real guest boots, its agent responds, and it reports a NIC that is plugged or unplugged."""

from __future__ import annotations

import asyncio
import json
import os
import uuid
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio
from qemu.qmp import EventListener, QMPClient

from lab.guest.qemu import AGENT_SOCKET, QMP_SOCKET, BootNic, GuestError, GuestSpec, QemuGuest
from lab.tools import LabTools

PRIMARY_MAC = "02:00:00:00:00:01"

pytestmark = pytest.mark.guest


def spec(folder: Path, **changes: Any) -> GuestSpec:
    return GuestSpec.with_tools(
        LabTools.find(),
        name="vm",
        uid=str(uuid.uuid4()),
        folder=folder,
        nics=[BootNic("default", PRIMARY_MAC)],
        **changes,
    )


@pytest_asyncio.fixture
async def guest(tmp_path: Path) -> AsyncIterator[QemuGuest]:
    started = await QemuGuest.start(spec(tmp_path))
    try:
        await started.wait_ready()
        yield started
    finally:
        await started.stop()


async def request_agent(folder: Path, command: str) -> Any:
    """Return the agent's response; the agent starts about when the guest reports that it is ready."""
    async with asyncio.timeout(60):
        reader, writer = await asyncio.open_unix_connection(str(folder / AGENT_SOCKET))
        try:
            sync = {"execute": "guest-sync-delimited", "arguments": {"id": 7}}
            writer.write(b"\xff" + json.dumps(sync).encode() + b"\n")
            await reader.readuntil(b"\xff")
            assert json.loads(await reader.readline()) == {"return": 7}
            writer.write(json.dumps({"execute": command}).encode() + b"\n")
            return json.loads(await reader.readline())["return"]
        finally:
            writer.close()
            await writer.wait_closed()


async def test_running_guest_reports_plugged_and_unplugged_nic(guest: QemuGuest) -> None:
    mac = "02:00:00:00:01:01"
    qmp = QMPClient("test")
    await qmp.connect(str(guest.spec.folder / QMP_SOCKET))
    try:
        await qmp.execute("netdev_add", {"type": "hubport", "id": "host-ua-blue", "hubid": 1})
        nic = {"driver": "virtio-net-pci", "id": "ua-blue", "netdev": "host-ua-blue", "bus": "rp1"}
        await qmp.execute("device_add", {**nic, "mac": mac, "host_mtu": 1450, "romfile": ""})
        added = await guest.wait_for_link(mac)
        assert (added.name, added.mtu) == ("eth1", 1450)
        assert (await guest.wait_for_link(mac, action="change")).up

        interfaces = {
            nic["name"]: nic for nic in await request_agent(guest.spec.folder, "guest-network-get-interfaces")
        }
        assert interfaces["eth1"]["hardware-address"] == mac
        assert interfaces["eth0"]["hardware-address"] == PRIMARY_MAC

        deleted = EventListener(("DEVICE_DELETED",))
        with qmp.listen(deleted):
            await qmp.execute("device_del", {"id": "ua-blue"})
            async with asyncio.timeout(60):
                while (await deleted.get())["data"].get("device") != "ua-blue":
                    continue
        await guest.console.wait_for(lambda event: "eth1" not in guest.links_seen(), timeout=60)
        assert list(guest.links_seen()) == ["eth0"]
    finally:
        await qmp.disconnect()


async def test_stopped_guest_leaves_no_process(tmp_path: Path) -> None:
    guest = await QemuGuest.start(spec(tmp_path, ports=1))
    waiting = asyncio.create_task(guest.wait_ready())
    await asyncio.sleep(0)
    await guest.stop()
    assert not guest.running
    with pytest.raises(GuestError, match="ended"):
        await waiting
    assert await guest.stop() == await guest.wait()


async def test_error_contains_qemus_message(tmp_path: Path) -> None:
    guest = await QemuGuest.start(replace(spec(tmp_path), kernel=tmp_path / "no-kernel"))
    with pytest.raises(GuestError, match="no-kernel"):
        await guest.wait_ready()
    await guest.stop()


async def test_missing_program_raises(tmp_path: Path) -> None:
    with pytest.raises(GuestError, match="cannot start"):
        await QemuGuest.start(spec(tmp_path), launch=["/nonexistent/nsenter"])


async def test_guest_runs_in_another_network_namespace(tmp_path: Path) -> None:
    guest = await QemuGuest.start(spec(tmp_path, ports=0), launch=["unshare", "--net", "--"])
    try:
        await guest.wait_ready()
        assert os.readlink(f"/proc/{guest.pid}/ns/net") != os.readlink("/proc/self/ns/net")
    finally:
        await guest.stop()
