"""The handler's two halves of a plug by themselves: the links in the pod, and the card into a QEMU without a guest.

Plumbing is netlink only, from the look at the pod to the last step, on a NIC with IPv4, IPv6 and routes; so is the way
back. Attaching is `netdev_add` and `device_add` on a paused machine, so that nothing of a
guest's time is in it.
"""

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from opentelemetry.trace import INVALID_SPAN

from schemas.operations import PodNic, RecordedRoute
from services.common.netlink.netns import Netns
from services.common.netlink.pool import NetnsPool
from services.handler.apply_netlink import walk
from services.handler.guest.port import NewCard
from services.handler.guest.qmp import QmpGuest
from services.handler.netlink_operations import Seen
from services.handler.pod_network import bridge_binding, link_names, pod_nic_link, steps
from services.handler.teardown import release_steps
from tests.bench.measure import CpuIdle, percentile
from tests.support import netns as testbed
from tests.support.qemu import paused_qemu
from tests.support.spans import recording_telemetry

NAMES = link_names("pod7e0055a6880")
RECORD = PodNic(
    pod_uid="22222222-2222-4222-8222-222222222222",
    sandbox_id="s",
    interface=NAMES.nic,
    mac="3e:89:92:5a:b5:a7",
    mtu=1450,
    ips=("10.0.0.2/24", "fd00::2/64"),
    routes=(
        RecordedRoute("0.0.0.0/0", "10.0.0.1"),
        RecordedRoute("10.8.0.0/16", "10.0.0.9"),
        RecordedRoute("::/0", "fd00::1"),
    ),
)
WARM_UP, TIMED = 5, 60
CARDS = 24
"""Root ports of one machine; a paused guest never lets go of a card, so several machines are filled."""
MACHINES = 3


def figures(times: list[float]) -> dict[str, float]:
    return {"p50_ms": round(percentile(times, 50), 2), "p90_ms": round(percentile(times, 90), 2)}


async def look(netns: Netns) -> Seen:
    return Seen(tuple(await netns.links()), tuple(await netns.addresses()), tuple(await netns.routes()))


async def timed(work: Any) -> float:
    began = time.perf_counter()
    await work
    return (time.perf_counter() - began) * 1000


async def wire(netns: Netns) -> None:
    # As the handler looks: with a record nobody needs the routes.
    seen = Seen(tuple(await netns.links()), tuple(await netns.addresses()))
    link = pod_nic_link(seen, NAMES)
    assert link is not None
    await walk(netns, steps(seen, bridge_binding(RECORD, NAMES, link, position=1, owner=0)), INVALID_SPAN)


async def release(netns: Netns) -> None:
    await walk(netns, release_steps(await look(netns), NAMES, RECORD), INVALID_SPAN, restoring=True)


async def test_plumbing(record: Callable[[str, dict[str, Any]], None], tmp_path: Path) -> None:
    with testbed.namespace(tmp_path, "node") as node, testbed.namespace(tmp_path, "pod") as path:
        testbed.veth(path, NAMES.nic, node, "veth0")
        pool = NetnsPool()
        netns = await pool.open(str(path))
        # What CNI leaves is what a release leaves.
        await release(netns)
        idle = CpuIdle()
        wired, released = [], []
        for _ in range(WARM_UP + TIMED):
            wired.append(await timed(wire(netns)))
            released.append(await timed(release(netns)))
        result = {
            "nics": TIMED,
            "cpu_idle": round(idle.share(), 2),
            "wire": figures(wired[WARM_UP:]),
            "release": figures(released[WARM_UP:]),
        }
        pool.close()
    print(f"\nplumbing one NIC: p50 {result['wire']['p50_ms']} ms, back: p50 {result['release']['p50_ms']} ms")
    record("plumbing", result)


async def test_attaching(record: Callable[[str, dict[str, Any]], None], tmp_path: Path) -> None:
    times: list[float] = []
    telemetry, spans = recording_telemetry()
    idle = CpuIdle()
    for machine in range(MACHINES):
        with testbed.namespace(tmp_path, f"pod{machine}") as path:
            pool = NetnsPool()
            netns = await pool.open(str(path))
            for number in range(CARDS):
                await netns.add_tap(f"tap{number}", owner=0)
            async with paused_qemu(tmp_path / "qmp.sock", path, ports=CARDS):
                guest = QmpGuest(str(tmp_path / "qmp.sock"), telemetry.tracer)
                slots = (await guest.list()).free_slots
                for number, slot in enumerate(slots):
                    card = NewCard(f"nic{number}", f"02:00:00:00:00:{number:02x}", f"tap{number}", 1450)
                    times.append(await timed(guest.attach(card, slot)))
                await guest.close()
            pool.close()
    parts = {
        command: figures([(s.end_time - s.start_time) / 1e6 for s in spans.get_finished_spans() if s.name == name])
        for command, name in (("netdev_add", "qmp netdev_add"), ("device_add", "qmp device_add"))
    }
    result = {"cards": len(times), "cpu_idle": round(idle.share(), 2), "attach": figures(times), **parts}
    print(
        f"\nattaching one card: p50 {result['attach']['p50_ms']} ms "
        f"(netdev_add {parts['netdev_add']['p50_ms']}, device_add {parts['device_add']['p50_ms']})"
    )
    record("attaching", result)
