"""What is QMP's own among the guest drivers, against a QEMU that has no guest in it and the lab's double of one.

What every driver must do stands in ``tests/support/guest_conformance.py``.
"""

import tempfile
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import AbstractAsyncContextManager
from pathlib import Path

import pytest

from services.common.netlink.pool import NetnsPool
from services.handler.guest.port import GuestNotReachable, GuestRefused, NewCard
from services.handler.guest.qmp import QmpGuest
from tests.support import netns as testbed
from tests.support.qemu import double, paused_qemu
from tests.support.spans import named, recording_telemetry

MAC = "02:00:00:00:00:09"
Machine = Callable[..., AbstractAsyncContextManager[None]]


@pytest.fixture(params=[paused_qemu, double], ids=["QEMU", "double"])
def machine(request: pytest.FixtureRequest) -> Machine:
    """What the port is held against."""
    made: Machine = request.param
    return made


@pytest.fixture
def folder() -> Iterator[Path]:
    """A path short enough for unix sockets."""
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


async def test_whether_a_cable_is_plugged_is_known_only_to_who_did_it(guest: QmpGuest) -> None:
    await guest.attach(NewCard("net1", MAC, "tap1", 1500, up=False), "rp1")
    assert (await guest.list()).cards["ua-net1"].up is False
    await guest.close()
    assert (await guest.list()).cards["ua-net1"].up is None


async def test_what_an_interrupted_attempt_left_is_replaced(guest: QmpGuest) -> None:
    backend = {"type": "tap", "id": "host-ua-net1", "ifname": "tap1", "script": "no", "downscript": "no"}
    await guest._execute("netdev_add", backend)
    await guest.attach(NewCard("net1", MAC, "tap1", 1500), "rp1")
    assert "ua-net1" in (await guest.list()).cards


async def test_a_card_that_is_there_is_not_touched_by_a_second_attach(guest: QmpGuest) -> None:
    await guest.attach(NewCard("net1", MAC, "tap1", 1500), "rp1")
    with pytest.raises(GuestRefused, match="Duplicate"):
        await guest.attach(NewCard("net1", MAC, "tap1", 1500), "rp2")
    assert (await guest.list()).free_slots == ("rp2", "rp3")


async def test_a_refused_card_leaves_no_backend(guest: QmpGuest) -> None:
    with pytest.raises(GuestRefused, match="device_add"):
        await guest.attach(NewCard("net1", MAC, "tap1", 1500), "nosuchport")
    await guest.attach(NewCard("net1", MAC, "tap1", 1500), "rp1")


async def test_a_backend_without_a_card_is_removed_and_one_that_is_gone_is_no_failure(guest: QmpGuest) -> None:
    backend = {"type": "tap", "id": "host-ua-net1", "ifname": "tap1", "script": "no", "downscript": "no"}
    await guest._execute("netdev_add", backend)
    await guest.remove_backend("net1")
    await guest.remove_backend("net1")
    await guest._execute("netdev_add", backend)


async def test_a_slot_that_another_device_has_is_not_free(folder: Path, netns: Path) -> None:
    """Disks share the ports (kubevirt#14180); so may anything that was plugged past hotnic."""
    async with paused_qemu(folder / "qmp.sock", netns, ports=3):
        guest = QmpGuest(str(folder / "qmp.sock"), recording_telemetry()[0].tracer)
        await guest._execute("blockdev-add", {"driver": "null-co", "node-name": "disk", "size": 1 << 20})
        await guest._execute("device_add", {"driver": "virtio-blk-pci", "id": "d", "drive": "disk", "bus": "rp2"})
        assert (await guest.list()).free_slots == ("rp1", "rp3")
        await guest.close()


async def test_each_command_that_changes_something_is_a_span(
    machine: Machine, folder: Path, netns: Path, taps: None
) -> None:
    telemetry, spans = recording_telemetry()
    async with machine(folder / "qmp.sock", netns):
        guest = QmpGuest(str(folder / "qmp.sock"), telemetry.tracer)
        await guest.attach(NewCard("net1", MAC, "tap1", 1500), "rp1")
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
    assert "ua-default" in (await guest.list()).cards
