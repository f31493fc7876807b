"""The two parts of the handler's plug: the pod network, and the device in a QEMU without a guest.

The pod network is netlink only, from reading the links to the last operation, on an interface with IPv4, IPv6 and
routes; its teardown is measured, too. Attaching is `netdev_add` and `device_add` on a paused machine, without any time
of a guest.
"""

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from opentelemetry.trace import INVALID_SPAN

from schemas.kubernetes.operations import PodNic, RecordedRoute
from services.common.domain.nic import link_names
from services.common.guest.port import NetDeviceSpec
from services.common.guest.qmp import QmpGuest
from services.common.netlink.netns import Netns
from services.common.netlink.pool import NetnsPool
from services.handler.pod_network.apply import apply_operations
from services.handler.pod_network.operations import ObservedLinks
from services.handler.pod_network.setup import bridge_binding, pod_nic_link, setup_operations
from services.handler.pod_network.teardown import teardown_operations
from tests.bench.measure import CpuIdle, percentile
from tests.support.guest.qemu import paused_qemu
from tests.support.node import netns as testbed
from tests.support.telemetry.spans import recording_telemetry

NAMES = link_names("pod7e0055a6880")
RECORD = PodNic(
    pod_uid="22222222-2222-4222-8222-222222222222",
    sandbox_id="s",
    interface=NAMES.pod_interface,
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
DEVICES = 24
"""Root ports of one machine. A paused guest never gives up a device, so several machines are filled."""
MACHINES = 3


def percentiles(times: list[float]) -> dict[str, float]:
    return {"p50_ms": round(percentile(times, 50), 2), "p90_ms": round(percentile(times, 90), 2)}


async def read_links(netns: Netns) -> ObservedLinks:
    return ObservedLinks(tuple(await netns.links()), tuple(await netns.addresses()), tuple(await netns.routes()))


async def timed(work: Any) -> float:
    began = time.perf_counter()
    await work
    return (time.perf_counter() - began) * 1000


async def set_up(netns: Netns) -> None:
    # As the handler does: with a record it needs no routes.
    observed = ObservedLinks(tuple(await netns.links()), tuple(await netns.addresses()))
    link = pod_nic_link(observed, NAMES)
    assert link is not None
    await apply_operations(
        netns, setup_operations(observed, bridge_binding(RECORD, NAMES, link, position=1, owner=0)), INVALID_SPAN
    )


async def tear_down(netns: Netns) -> None:
    await apply_operations(
        netns, teardown_operations(await read_links(netns), NAMES, RECORD), INVALID_SPAN, restoring=True
    )


async def test_pod_network(record: Callable[[str, dict[str, Any]], None], tmp_path: Path) -> None:
    with testbed.namespace(tmp_path, "node") as node, testbed.namespace(tmp_path, "pod") as path:
        testbed.veth(path, NAMES.pod_interface, node, "veth0")
        pool = NetnsPool()
        netns = await pool.open(str(path))
        # Tear down first, so that every setup starts from the same links.
        await tear_down(netns)
        idle = CpuIdle()
        setups, teardowns = [], []
        for _ in range(WARM_UP + TIMED):
            setups.append(await timed(set_up(netns)))
            teardowns.append(await timed(tear_down(netns)))
        result = {
            "nics": TIMED,
            "cpu_idle": round(idle.share(), 2),
            "set_up": percentiles(setups[WARM_UP:]),
            "tear_down": percentiles(teardowns[WARM_UP:]),
        }
        pool.close()
    print(
        f"\npod network of one interface: setup p50 {result['set_up']['p50_ms']} ms, "
        f"teardown p50 {result['tear_down']['p50_ms']} ms"
    )
    record("pod-network", result)


async def test_attach_device(record: Callable[[str, dict[str, Any]], None], tmp_path: Path) -> None:
    times: list[float] = []
    telemetry, spans = recording_telemetry()
    idle = CpuIdle()
    for machine in range(MACHINES):
        with testbed.namespace(tmp_path, f"pod{machine}") as path:
            pool = NetnsPool()
            netns = await pool.open(str(path))
            for number in range(DEVICES):
                await netns.add_tap(f"tap{number}", owner=0)
            async with paused_qemu(tmp_path / "qmp.sock", path, ports=DEVICES):
                guest = QmpGuest(str(tmp_path / "qmp.sock"), telemetry.tracer)
                slots = (await guest.list()).free_slots
                for number, slot in enumerate(slots):
                    device = NetDeviceSpec(f"nic{number}", f"02:00:00:00:00:{number:02x}", f"tap{number}", 1450)
                    times.append(await timed(guest.attach(device, slot)))
                await guest.close()
            pool.close()
    parts = {
        command: percentiles([(s.end_time - s.start_time) / 1e6 for s in spans.get_finished_spans() if s.name == name])
        for command, name in (("netdev_add", "qmp netdev_add"), ("device_add", "qmp device_add"))
    }
    result = {"devices": len(times), "cpu_idle": round(idle.share(), 2), "attach": percentiles(times), **parts}
    print(
        f"\nattaching one device: p50 {result['attach']['p50_ms']} ms "
        f"(netdev_add {parts['netdev_add']['p50_ms']}, device_add {parts['device_add']['p50_ms']})"
    )
    record("attach-device", result)
