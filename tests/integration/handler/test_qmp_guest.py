"""What is specific to the QMP driver, with a QEMU that has no guest in it and with the lab's double of one.

What every driver must do is in ``tests/support/guest/conformance.py``.
"""

import asyncio
import tempfile
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import AbstractAsyncContextManager
from pathlib import Path

import pytest

from services.cli.doctor.collect.guest import guest_devices
from services.cli.doctor.collect.node_files import NodeSettings
from services.cli.doctor.snapshot import GuestDevice, NotVisible, VmSnapshot
from services.cli.tracing.tracer import NoTraces
from services.common.cri.client import CriClient
from services.common.guest.port import GuestNotReachable, GuestRefused, NetDeviceSpec
from services.common.guest.qmp import QmpGuest
from services.common.netlink.pool import NetnsPool
from tests.support.guest.qemu import PRIMARY_MAC, double, paused_qemu
from tests.support.node import netns as testbed
from tests.support.telemetry.spans import named, recording_telemetry

MAC = "02:00:00:00:00:09"
Machine = Callable[..., AbstractAsyncContextManager[None]]


@pytest.fixture(params=[paused_qemu, double], ids=["QEMU", "double"])
def machine(request: pytest.FixtureRequest) -> Machine:
    """Return what runs the machine."""
    made: Machine = request.param
    return made


@pytest.fixture
def folder() -> Iterator[Path]:
    """Yield a directory whose path is short enough for unix sockets."""
    with tempfile.TemporaryDirectory(prefix="hn-") as path:
        yield Path(path)


@pytest.fixture
def netns(folder: Path) -> Iterator[Path]:
    with testbed.namespace(folder) as path:
        yield path


@pytest.fixture
async def taps(netns: Path) -> AsyncIterator[None]:
    pool = NetnsPool()
    namespace = await pool.open(str(netns))
    await namespace.add_tap("tap1", owner=0)
    yield
    pool.close()


@pytest.fixture
async def guest(machine: Machine, folder: Path, netns: Path, taps: None) -> AsyncIterator[QmpGuest]:
    async with machine(folder / "qmp.sock", netns, ports=3, cpus=2):
        found = QmpGuest(str(folder / "qmp.sock"), recording_telemetry()[0].tracer)
        yield found
        await found.close()


async def test_the_link_state_is_known_only_to_the_connection_that_set_it(guest: QmpGuest) -> None:
    await guest.attach(NetDeviceSpec("net1", MAC, "tap1", 1500, up=False), "rp1")
    assert (await guest.list()).devices["ua-net1"].up is False
    await guest.close()
    assert (await guest.list()).devices["ua-net1"].up is None


async def test_a_leftover_backend_is_replaced(guest: QmpGuest) -> None:
    backend = {"type": "tap", "id": "host-ua-net1", "ifname": "tap1", "script": "no", "downscript": "no"}
    await guest.client.execute("netdev_add", backend)
    await guest.attach(NetDeviceSpec("net1", MAC, "tap1", 1500), "rp1")
    assert "ua-net1" in (await guest.list()).devices


async def test_a_second_attach_does_not_change_the_device(guest: QmpGuest) -> None:
    await guest.attach(NetDeviceSpec("net1", MAC, "tap1", 1500), "rp1")
    with pytest.raises(GuestRefused, match="Duplicate"):
        await guest.attach(NetDeviceSpec("net1", MAC, "tap1", 1500), "rp2")
    assert (await guest.list()).free_slots == ("rp2", "rp3")


async def test_a_refused_device_leaves_no_backend(guest: QmpGuest) -> None:
    with pytest.raises(GuestRefused, match="device_add"):
        await guest.attach(NetDeviceSpec("net1", MAC, "tap1", 1500), "nosuchport")
    await guest.attach(NetDeviceSpec("net1", MAC, "tap1", 1500), "rp1")


async def test_a_backend_without_a_device_is_removed_and_a_missing_one_is_no_error(guest: QmpGuest) -> None:
    backend = {"type": "tap", "id": "host-ua-net1", "ifname": "tap1", "script": "no", "downscript": "no"}
    await guest.client.execute("netdev_add", backend)
    await guest.remove_backend("net1")
    await guest.remove_backend("net1")
    await guest.client.execute("netdev_add", backend)


async def test_a_slot_with_another_device_is_not_free(folder: Path, netns: Path) -> None:
    """Disks use the ports too (kubevirt#14180), and so can devices that hotnic did not plug."""
    async with paused_qemu(folder / "qmp.sock", netns, ports=3):
        guest = QmpGuest(str(folder / "qmp.sock"), recording_telemetry()[0].tracer)
        await guest.client.execute("blockdev-add", {"driver": "null-co", "node-name": "disk", "size": 1 << 20})
        await guest.client.execute("device_add", {"driver": "virtio-blk-pci", "id": "d", "drive": "disk", "bus": "rp2"})
        assert (await guest.list()).free_slots == ("rp1", "rp3")
        await guest.close()


async def test_each_command_that_changes_something_has_a_span(
    machine: Machine, folder: Path, netns: Path, taps: None
) -> None:
    telemetry, spans = recording_telemetry()
    async with machine(folder / "qmp.sock", netns):
        guest = QmpGuest(str(folder / "qmp.sock"), telemetry.tracer)
        await guest.attach(NetDeviceSpec("net1", MAC, "tap1", 1500), "rp1")
        await guest.close()
    finished = spans.get_finished_spans()
    assert [span.name for span in finished] == ["qmp netdev_add", "qmp device_add"]
    assert (named(finished, "qmp device_add").attributes or {})["hotnic.slot"] == "rp1"


async def test_a_second_client_waits_only_until_its_deadline(folder: Path, guest: QmpGuest) -> None:
    await guest.list()
    second = QmpGuest(str(folder / "qmp.sock"), recording_telemetry()[0].tracer, deadline=0.1)
    with pytest.raises(GuestNotReachable, match="another client"):
        await second.list()
    await second.close()
    assert "ua-default" in (await guest.list()).devices


async def test_the_doctor_lists_the_devices_unless_another_client_is_connected(folder: Path, guest: QmpGuest) -> None:
    await guest.attach(NetDeviceSpec("net1", MAC, "tap1", 1500), "rp1")
    paths = NodeSettings(qmp_socket=str(folder / "qmp.sock"), guest_driver="qmp")

    async def doctor_devices() -> tuple[GuestDevice, ...] | NotVisible:
        cri = CriClient(str(folder / "cri.sock"), NoTraces())
        return await guest_devices(paths, cri, VmSnapshot("default", "vm1", None, None), "pod-1")

    found = await doctor_devices()
    assert isinstance(found, NotVisible)
    assert "serves one client at a time" in found.message
    await guest.close()
    # QEMU may close its end of the connection a moment later.
    for _ in range(500):
        found = await doctor_devices()
        if not isinstance(found, NotVisible):
            break
        await asyncio.sleep(0.01)
    assert found == (GuestDevice("default", PRIMARY_MAC), GuestDevice("net1", MAC))
