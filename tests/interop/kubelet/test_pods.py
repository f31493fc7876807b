"""Pods that a real kubelet runs: networks at creation, hot-plugged and removed, for every kind of pod."""

import asyncio
import json
from typing import Any

import pytest

from lab.tools import PAUSE_IMAGE
from tests.interop.kubelet.conftest import element, link_names, links_in
from tests.support.lab.ordinary_pods import OrdinaryPods
from tests.support.lab.running import Lab

pytestmark = pytest.mark.usefixtures("nothing_left")

PODS, AT_ONCE = 40, 5
Object = dict[str, Any]


async def test_two_networks_at_creation_two_plugged_one_removed(lab: Lab, pods: OrdinaryPods) -> None:
    await pods.create("whole", networks=json.dumps([element("net1"), element("net2")]))
    await pods.until_links("whole", "net1", "net2")
    await pods.set_networks("whole", [element(name) for name in ("net1", "net2", "eth7", "eth8")])
    await pods.until_links("whole", "net1", "net2", "eth7", "eth8")
    assert links_in(lab, "whole") == {"lo", "eth0", "net1", "net2", "eth7", "eth8"}
    await pods.set_networks("whole", [element(name) for name in ("net1", "eth7", "eth8")])
    await pods.until_links("whole", "net1", "eth7", "eth8")
    assert links_in(lab, "whole") == {"lo", "eth0", "net1", "eth7", "eth8"}
    await pods.delete("whole")


async def test_forty_pods_five_at_a_time(pods: OrdinaryPods) -> None:
    places = asyncio.Semaphore(AT_ONCE)

    async def one(name: str) -> set[str]:
        async with places:
            await pods.create(name, networks=json.dumps([element("net1")]), timeout=300)
            await pods.set_networks(name, [element("net1"), element("eth7")])
            await pods.until_links(name, "net1", "eth7", timeout=300)
            addresses = {ip for entry in pods.attached(name) for ip in entry.ips or ()}
            await pods.delete(name)
            return addresses

    addresses = await asyncio.gather(*(one(f"wave{i}") for i in range(PODS)))
    assert all(len(found) == 2 for found in addresses)


async def test_init_container_and_sidecar_share_the_networks(lab: Lab, pods: OrdinaryPods) -> None:
    container = {"image": PAUSE_IMAGE, "imagePullPolicy": "Never"}
    # The init container fails, and the kubelet starts it again, unless it finds the link of the pod's creation.
    check = {**container, "name": "check", "command": ["ip", "link", "show", "net1"]}
    spec = {"initContainers": [check], "containers": [{**container, "name": n} for n in ("main", "sidecar")]}
    await pods.create("several", networks=json.dumps([element("net1")]), spec=spec, timeout=300)
    await pods.set_networks("several", [element("net1"), element("eth7")])
    await pods.until_links("several", "net1", "eth7")
    for name in ("main", "sidecar"):
        assert links_in(lab, "several", name) == {"lo", "eth0", "net1", "eth7"}
    await pods.delete("several")


async def test_pod_on_the_host_network_is_left_alone(lab: Lab, pods: OrdinaryPods) -> None:
    before = link_names(lab.run_inside("ip", "-o", "link"))
    spec = {"hostNetwork": True, "containers": [{"name": "main", "image": PAUSE_IMAGE}]}
    await pods.create("host", spec=spec, timeout=300)
    await pods.create("beside", timeout=300)
    await pods.set_networks("host", [element("eth7")])
    # The same change of another pod, made later, is done: networks has seen the first one.
    await pods.set_networks("beside", [element("eth7")])
    await pods.until_links("beside", "eth7")
    assert pods.links("host") == []
    # By name: that of a veth may contain it (veth70dc4689).
    assert "eth7" not in link_names(lab.run_inside("ip", "-o", "link"))
    await pods.delete("host", "beside")
    assert len(link_names(lab.run_inside("ip", "-o", "link"))) == len(before)


async def test_static_pod(lab: Lab, pods: OrdinaryPods) -> None:
    annotations = {"k8s.v1.cni.cncf.io/networks": json.dumps([element("net1")])}
    manifest = {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {"name": "static", "namespace": "default", "annotations": annotations},
        "spec": {"containers": [{"name": "main", "image": PAUSE_IMAGE}]},
    }
    path = "/etc/kubernetes/manifests/static.json"
    lab.run_inside("sh", "-c", f"printf %s '{json.dumps(manifest)}' > {path}")
    mirror = "static-lab"
    await pods.until(lambda: pods.phase(mirror) == "Running", timeout=300)
    await pods.until_links(mirror, "net1", timeout=100)
    assert links_in(lab, mirror) == {"lo", "eth0", "net1"}
    lab.run_inside("rm", path)
    await pods.until(lambda: pods.phase(mirror) is None, timeout=300)


@pytest.mark.parametrize("how", ["evicted", "deleted by force"])
async def test_pod_that_goes_at_once_leaves_nothing(lab: Lab, pods: OrdinaryPods, how: str) -> None:
    await pods.create("short", networks=json.dumps([element("net1")]), timeout=300)
    await pods.set_networks("short", [element("net1"), element("eth7")])
    await pods.until_links("short", "net1", "eth7")
    if how == "evicted":
        eviction = {"apiVersion": "policy/v1", "kind": "Eviction", "metadata": {"name": "short"}}
        lab.raw("/api/v1/namespaces/default/pods/short/eviction", json.dumps(eviction), method="create")
    else:
        lab.kubectl("delete", "pod", "short", "--force", "--grace-period=0")
    await pods.until(lambda: pods.phase("short") is None, timeout=300)


@pytest.mark.parametrize("kind", ["Deployment", "StatefulSet"])
async def test_rollout_gives_new_pods_the_networks_of_the_template(lab: Lab, pods: OrdinaryPods, kind: str) -> None:
    name = kind.lower()
    template = {
        "metadata": {
            "labels": {"app": name},
            "annotations": {"k8s.v1.cni.cncf.io/networks": json.dumps([element("net1")])},
        },
        "spec": {"terminationGracePeriodSeconds": 1, "containers": [{"name": "main", "image": PAUSE_IMAGE}]},
    }
    manifest: Object = {
        "apiVersion": "apps/v1",
        "kind": kind,
        "metadata": {"name": name, "namespace": "default"},
        "spec": {"replicas": 2, "selector": {"matchLabels": {"app": name}}, "template": template},
    }
    if kind == "StatefulSet":
        manifest["spec"]["serviceName"] = name
    lab.kubectl("apply", "-f", "-", stdin=json.dumps(manifest))
    rollout = ("rollout", "status", f"{name}/{name}", "--timeout=200s")
    await asyncio.to_thread(lab.kubectl, *rollout, timeout=250)
    first = pods.running(f"{name}-")
    # A hot-plugged network belongs to one pod, not to the template.
    await pods.set_networks(first[0], [element("net1"), element("eth7")])
    await pods.until_links(first[0], "net1", "eth7")
    await asyncio.to_thread(lab.kubectl, "rollout", "restart", f"{name}/{name}")
    await asyncio.to_thread(lab.kubectl, *rollout, timeout=250)
    # The last pod of the old template may still be ending.
    await pods.until(lambda: len(pods.running(f"{name}-")) == 2, timeout=200)
    for pod in pods.running(f"{name}-"):
        await pods.until_links(pod, "net1")
    await asyncio.to_thread(lab.kubectl, "delete", f"{name}/{name}", "--timeout=100s", timeout=150)
