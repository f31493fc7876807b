"""Time from a pod's networks annotation to its network-status, attachments per second, and memory of the node roles.

The pods are ordinary ones, the plugin is bridge with host-local. Measured is the whole way: annotation patched, seen by
the watch, CRI, ``/delegate``, plugin, network-status patched, seen by the watch. Beside it stands the floor: the plugin
alone, a patch of a pod alone, and the CPU time of a pair by process, which is what bounds the pairs per second.
`make bench-interop` runs it on Kubernetes itself, with kubelet and containerd 2.
"""

import asyncio
import json
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from schemas.kubernetes.objects import PODS
from tests.bench.cpu import CpuTimes, rate_without
from tests.bench.measure import CpuIdle, percentile, pids, rss
from tests.support.lab.ordinary_pods import NAMESPACE, OrdinaryPods, ordinary_pods
from tests.support.lab.running import SAMPLE_NAD, Lab, on_kubernetes, running_lab

ONE_BY_ONE = 30
WARM_UP = 5
SETTLE = 0.2
"""Seconds between two attachments that are measured one by one."""
PODS_AT_ONCE = 12
ROUNDS = 25
ROLES = ("networks", "multus")
PLUGIN_FLOOR = Path(__file__).with_name("plugin_floor.py")


async def test_annotation_to_status(record: Callable[[str, dict[str, Any]], None]) -> None:
    directory = Path(tempfile.mkdtemp(prefix="hotnic-bench-"))
    with running_lab(directory, bare=True, kubelet=on_kubernetes() is not None) as lab:
        lab.kubectl("apply", "-f", "k8s/examples/nad-bridge.yaml")
        async with ordinary_pods(lab.layout.kubeconfig) as pods:
            names = [f"bench{i}" for i in range(PODS_AT_ONCE)]
            await pods.create(*names)
            await asyncio.sleep(1)
            for _ in range(WARM_UP):
                await attach(pods, names[0], "warm0")
                await detach(pods, names[0])
            idle = CpuIdle()
            attaching, detaching = [], []
            for i in range(ONE_BY_ONE):
                await asyncio.sleep(SETTLE)
                attaching.append(await attach(pods, names[0], f"net{i}"))
                await asyncio.sleep(SETTLE)
                detaching.append(await detach(pods, names[0]))
            idle_share = idle.share()
            running = {role: pid for role, pid in pids(str(lab.layout.dir)).items() if role in ROLES}
            floor = {**await asyncio.to_thread(plugin_floor, lab), "PATCH": await patch_floor(pods, names[0])}
            await rounds(pods, names, 2)
            before, used = {role: rss(pid) for role, pid in running.items()}, CpuTimes.read(lab.layout.dir)
            took, at_once = await rounds(pods, names, ROUNDS)
            cpu = CpuTimes.read(lab.layout.dir).since(used, PODS_AT_ONCE * ROUNDS)
            after = {role: rss(pid) for role, pid in running.items()}
    attached = PODS_AT_ONCE * ROUNDS
    result = {
        "attach_p50_ms": round(percentile(attaching, 50), 1),
        "attach_p95_ms": round(percentile(attaching, 95), 1),
        "detach_p50_ms": round(percentile(detaching, 50), 1),
        "detach_p95_ms": round(percentile(detaching, 95), 1),
        "floor_p50_ms": {name: round(percentile(found, 50), 1) for name, found in floor.items()},
        "kubernetes": on_kubernetes(),
        "cpu_idle": round(idle_share, 2),
        "pods_at_once": PODS_AT_ONCE,
        "attach_at_once_p50_ms": round(percentile(at_once[0], 50), 1),
        "detach_at_once_p50_ms": round(percentile(at_once[1], 50), 1),
        "pairs_per_second": round(attached / took, 1),
        "cpu_ms_per_pair": cpu,
        "pairs_per_second_without_roles": round(rate_without(cpu, ROLES), 1),
        "rss_mib": {role: round(value, 1) for role, value in after.items()},
        "growth_mib_per_1000": {role: round((after[role] - before[role]) / attached * 1000, 1) for role in after},
    }
    show(result)
    record("annotation-to-status", result)


async def attach(pods: OrdinaryPods, name: str, link: str) -> float:
    """Request an attachment; return the milliseconds from the patch until the watch shows it in network-status."""
    began = time.monotonic()
    await pods.set_networks(name, [{"name": SAMPLE_NAD, "interface": link}])
    await pods.until_links(name, link)
    return (pods.changed[name] - began) * 1000


async def detach(pods: OrdinaryPods, name: str) -> float:
    """Request no attachments; return milliseconds as :func:`attach` does."""
    began = time.monotonic()
    await pods.set_networks(name, [])
    await pods.until_links(name)
    return (pods.changed[name] - began) * 1000


async def rounds(pods: OrdinaryPods, names: list[str], count: int) -> tuple[float, tuple[list[float], list[float]]]:
    """Attach and detach on all pods at once, ``count`` times; return the seconds it took, and each pod's times."""
    began = time.monotonic()
    attaching: list[float] = []
    detaching: list[float] = []
    for i in range(count):
        attaching += await asyncio.gather(*(attach(pods, name, f"net{i}") for name in names))
        detaching += await asyncio.gather(*(detach(pods, name) for name in names))
    return time.monotonic() - began, (attaching, detaching)


def plugin_floor(lab: Lab) -> dict[str, list[float]]:
    """Return the milliseconds of the plugin's calls alone, by command."""
    counts = (str(ONE_BY_ONE), str(PODS_AT_ONCE))
    done = lab.hotnic("lab", "exec", "--", sys.executable, str(PLUGIN_FLOOR), *counts)
    assert done.returncode == 0, done.stderr
    found: dict[str, list[float]] = json.loads(done.stdout)
    return found


async def patch_floor(pods: OrdinaryPods, name: str) -> list[float]:
    """Return the milliseconds of patches of an annotation that nobody reads."""
    took = []
    for number in range(ONE_BY_ONE):
        began = time.monotonic()
        await pods.kube.merge_patch(PODS, NAMESPACE, name, {"metadata": {"annotations": {"bench": str(number)}}})
        took.append((time.monotonic() - began) * 1000)
    return took


def show(result: dict[str, Any]) -> None:
    """Print the result."""
    print(
        f"\nannotation patched -> network-status, one at a time: attach p50 {result['attach_p50_ms']} ms, "
        f"p95 {result['attach_p95_ms']} ms; detach p50 {result['detach_p50_ms']} ms, p95 {result['detach_p95_ms']} ms "
        f"(CPU idle {result['cpu_idle']:.0%})\n"
        f"floor: {', '.join(f'{name} {value} ms' for name, value in result['floor_p50_ms'].items())}\n"
        f"{result['pods_at_once']} pods at once: attach p50 {result['attach_at_once_p50_ms']} ms, detach p50 "
        f"{result['detach_at_once_p50_ms']} ms, {result['pairs_per_second']} attach+detach pairs per second"
    )
    cpu = result["cpu_ms_per_pair"]
    print(
        f"CPU time of a pair: {sum(cpu.values()):.0f} ms: {', '.join(f'{name} {value}' for name, value in cpu.items())}"
    )
    print(
        f"if {' and '.join(ROLES)} took none, the others would leave room for "
        f"{result['pairs_per_second_without_roles']} pairs per second"
    )
    for role, value in result["rss_mib"].items():
        print(f"  {role:<10} RSS {value:6.1f} MiB, growth {result['growth_mib_per_1000'][role]:5.1f} MiB per 1,000")
