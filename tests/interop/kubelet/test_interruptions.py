"""Processes of the node and the control plane that are killed while pods start and networks change; a reboot."""

import asyncio
import json

import pytest

from lab.cli import commands
from tests.interop.kubelet.conftest import element, links_in
from tests.support.lab.ordinary_pods import OrdinaryPods
from tests.support.lab.running import Lab, wait_until

pytestmark = pytest.mark.usefixtures("nothing_left")

ON_THE_NODE = ("networks", "multus", "kubelet", "containerd")
DEADLINE = 300.0
"""Seconds until pods run or networks are attached after an interruption; it takes less than 10 s."""


def kill_and_start(lab: Lab, component: str) -> None:
    """Kill a process of the lab, and start it again once it has ended."""
    processes = json.loads(lab.hotnic("lab", "status", "-o", "json").stdout)["components"]
    (pid,) = [process["pid"] for process in processes if process["name"] == component]
    lab.run_inside("kill", "-KILL", str(pid))
    # `stop` waits until it has ended.
    for verb in ("stop", "start"):
        assert commands.change(lab.layout.dir, verb, component, lambda _line: None) == 0


@pytest.mark.parametrize("component", ["multus", "networks", "kubelet", "containerd", "apiserver"])
async def test_killed_and_started_again_in_the_middle(lab: Lab, pods: OrdinaryPods, component: str) -> None:
    await pods.create("before", networks=json.dumps([element("net1")]), timeout=DEADLINE)
    change = asyncio.create_task(pods.set_networks("before", [element("net1"), element("eth7")]))
    during = asyncio.create_task(pods.create("during", networks=json.dumps([element("net1")]), timeout=DEADLINE))
    await asyncio.to_thread(kill_and_start, lab, component)
    await asyncio.gather(change, during)
    await pods.until_links("before", "net1", "eth7", timeout=DEADLINE)
    await pods.until_links("during", "net1", timeout=DEADLINE)
    await pods.set_networks("before", [element("eth7")])
    await pods.until_links("before", "eth7", timeout=DEADLINE)
    await pods.delete("before", "during")


async def test_node_reboots(lab: Lab, pods: OrdinaryPods) -> None:
    """State below /run is gone, /var/lib is kept: the kubelet makes new sandboxes, which get all networks."""
    await pods.create("rebooted", networks=json.dumps([element("net1")]), timeout=DEADLINE)
    await pods.set_networks("rebooted", [element("net1"), element("eth7")])
    await pods.until_links("rebooted", "net1", "eth7", timeout=DEADLINE)
    before = {entry.interface: entry.mac for entry in pods.attached("rebooted")}
    for component in ON_THE_NODE:
        assert commands.change(lab.layout.dir, "stop", component, lambda _line: None) == 0
    lab.run_inside("sh", "-c", REBOOT)
    for component in reversed(ON_THE_NODE):
        assert commands.change(lab.layout.dir, "start", component, lambda _line: None) == 0
    macs = lambda: {entry.interface: entry.mac for entry in pods.attached("rebooted")}  # noqa: E731
    await pods.until(lambda: macs().keys() == before.keys() and macs() != before, timeout=DEADLINE)
    # The sandbox is there before its container.
    wait_until(lambda: has_restarted(lab, "rebooted"), timeout=DEADLINE)
    assert links_in(lab, "rebooted") == {"lo", "eth0", "net1", "eth7"}
    await pods.delete("rebooted")


def has_restarted(lab: Lab, pod: str) -> bool:
    """Return whether the pod's container runs for the second time, or a later one."""
    (status,) = json.loads(lab.kubectl("get", "pod", pod, "-o", "json"))["status"]["containerStatuses"]
    return status["restartCount"] > 0 and "running" in status["state"]


REBOOT = """
set -e
for shim in $(pgrep -f '[c]ontainerd-shim-runc-v2'); do
    children=$(pgrep -P $shim || true)
    kill -9 $shim $children
done
for name in /run/netns/*; do umount -l $name 2>/dev/null || true; rm -f $name; done
grep -o ' /run/containerd/[^ ]*' /proc/self/mountinfo | sort -ru | xargs -r umount -l
rm -rf /run/containerd/* /run/multus/*
for bridge in cni0 hotnic-br1; do ip link del $bridge; done
"""
"""Ends what a reboot ends: all containers, network namespaces and links, and the files below /run."""
