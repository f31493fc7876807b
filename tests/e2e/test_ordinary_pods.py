"""Pods without a VM: networks are attached and detached by the pod's annotation alone, with the same events in NATS.

The end-to-end tests of the upstream controller, and more: a link that was created with the pod can be detached, a
changed element is applied, and nothing is left of many sandboxes.
"""

import asyncio
import json
from collections.abc import AsyncIterator

import pytest

from schemas.kubernetes.networks import NetworkStatus
from schemas.kubernetes.objects import NADS
from tests.support.lab.node_state import attachments
from tests.support.lab.ordinary_pods import NAMESPACE, OrdinaryPods, ordinary_pods
from tests.support.lab.running import SAMPLE_NAD, Lab, Span

STATIC = "static-net"
MAC, OTHER_MAC = "02:03:04:05:06:07", "02:03:04:05:06:08"
AT_ONCE = 12
SANDBOXES = 50


@pytest.fixture
async def pods(lab: Lab) -> AsyncIterator[OrdinaryPods]:
    async with ordinary_pods(lab.layout.kubeconfig) as made:
        yield made


@pytest.fixture
async def static_nad(pods: OrdinaryPods) -> AsyncIterator[str]:
    """A chain of plugins with a requested static address, as in the upstream test."""
    plugin = {"type": "bridge", "bridge": "hotnic-br2", "capabilities": {"ips": True, "mac": True}}
    config = {"cniVersion": "0.3.1", "plugins": [{**plugin, "ipam": {"type": "static"}}, {"type": "tuning"}]}
    nad = {"apiVersion": "k8s.cni.cncf.io/v1", "kind": "NetworkAttachmentDefinition"}
    body = {**nad, "metadata": {"name": STATIC, "namespace": NAMESPACE}, "spec": {"config": json.dumps(config)}}
    await pods.kube.create(NADS, NAMESPACE, body)
    yield STATIC
    await pods.delete_all()
    await pods.kube.delete(NADS, NAMESPACE, STATIC)


def kernel_links(lab: Lab, entry: NetworkStatus) -> dict[str, str]:
    """Return the links with their MACs of the network namespace that has the link of a network status entry."""
    names = lab.hotnic("lab", "exec", "--", "sh", "-c", "ls /run/netns").stdout.split()
    for name in names:
        done = lab.hotnic("lab", "exec", "--", "ip", "-n", name, "-j", "link")
        if done.returncode == 0:
            links = {link["ifname"]: link["address"] for link in json.loads(done.stdout)}
            if entry.mac is not None and links.get(entry.interface or "") == entry.mac.lower():
                return links
    raise AssertionError(f"no network namespace has {entry}")


def element(name: str, interface: str, **fields: object) -> dict[str, object]:
    return {"name": name, "interface": interface, **fields}


async def test_add_remove_and_replace(lab: Lab, pods: OrdinaryPods) -> None:
    await pods.create("ordinary1", networks=SAMPLE_NAD)
    await pods.until_links("ordinary1", "net1")

    await pods.set_networks("ordinary1", [element(SAMPLE_NAD, "net1"), element(SAMPLE_NAD, "ens58")])
    await pods.until_links("ordinary1", "net1", "ens58")
    assert {"eth0", "net1", "ens58"} <= kernel_links(lab, pods.attached("ordinary1")[1]).keys()

    # Multus created net1 with the pod; it can be detached all the same.
    await pods.set_networks("ordinary1", [element(SAMPLE_NAD, "ens58")])
    await pods.until_links("ordinary1", "ens58")
    assert kernel_links(lab, pods.attached("ordinary1")[0]).keys() == {"lo", "eth0", "ens58"}

    await pods.set_networks("ordinary1", [element(SAMPLE_NAD, "eth321")])
    await pods.until_links("ordinary1", "eth321")
    assert kernel_links(lab, pods.attached("ordinary1")[0]).keys() == {"lo", "eth0", "eth321"}

    spans = await asyncio.to_thread(events_of, lab, "ordinary1/ens58", {"multus-attached", "multus-detached"})
    for span in spans:
        attributes = {a["key"]: a["value"].get("stringValue") for a in span["attributes"]}
        subject = attributes["messaging.destination.name"]
        assert subject is not None
        assert subject.endswith(".lab.default._")


def events_of(lab: Lab, attachment: str, stages: set[str]) -> list[Span]:
    """Return the spans of the messages that were published about an attachment, from the traces of its changes."""
    found: list[Span] = []
    for verb, stage in (("attach", "multus-attached"), ("detach", "multus-detached")):
        if stage in stages:
            (change,) = [s for s in lab.all_spans() if s["name"] == f"networks {verb} {attachment}"]
            sent = lab.wait_for_spans(change["traceId"].lower(), {f"send hotplug.{stage}"})
            found += [s for s in sent if s["name"] == f"send hotplug.{stage}"]
    return found


async def test_requested_address_and_mac_are_applied_and_updated(lab: Lab, pods: OrdinaryPods, static_nad: str) -> None:
    await pods.create("ordinary2")
    await pods.set_networks("ordinary2", [element(static_nad, "ens202", ips=["10.10.10.111/24"], mac=MAC)])
    await pods.until_links("ordinary2", "ens202")
    (entry,) = pods.attached("ordinary2")
    assert (entry.ips, entry.mac) == (["10.10.10.111"], MAC)

    await pods.set_networks("ordinary2", [element(static_nad, "ens202", ips=["10.10.10.112/24"], mac=OTHER_MAC)])
    await pods.until(lambda: [e.mac for e in pods.attached("ordinary2")] == [OTHER_MAC])
    (entry,) = pods.attached("ordinary2")
    assert entry.ips == ["10.10.10.112"]
    assert kernel_links(lab, entry)["ens202"] == OTHER_MAC

    await pods.set_networks("ordinary2", [])
    await pods.until_links("ordinary2")


async def test_twelve_pods_at_once(lab: Lab, pods: OrdinaryPods) -> None:
    names = [f"crowd{i}" for i in range(AT_ONCE)]
    await pods.create(*names)
    await asyncio.gather(*(pods.set_networks(name, [element(SAMPLE_NAD, "ens58")]) for name in names))
    await asyncio.gather(*(pods.until_links(name, "ens58") for name in names))
    addresses = [ip for name in names for entry in pods.attached(name) for ip in entry.ips or ()]
    assert len(set(addresses)) == AT_ONCE
    assert set(addresses) <= attachments(lab)["lease"]
    await asyncio.gather(*(pods.set_networks(name, []) for name in names))
    await asyncio.gather(*(pods.until_links(name) for name in names))
    assert not set(addresses) & attachments(lab)["lease"]


async def test_nothing_is_left_of_many_sandboxes(lab: Lab, pods: OrdinaryPods) -> None:
    """Containerd creates and removes sandboxes with the shim; each has a network, and some get another one later."""
    before = attachments(lab)
    names = [f"passing{i}" for i in range(SANDBOXES)]
    await pods.create(*names, networks=SAMPLE_NAD, timeout=60)
    plugged = names[::5]
    for name in plugged:
        await pods.set_networks(name, [element(SAMPLE_NAD, "net1"), element(SAMPLE_NAD, "ens58")])
    await asyncio.gather(*(pods.until_links(name, "net1", "ens58") for name in plugged))
    during = attachments(lab)
    assert len(during["veth"] - before["veth"]) == 2 * SANDBOXES + len(plugged)
    assert len(during["record"] - before["record"]) == SANDBOXES
    assert len(during["lease"] - before["lease"]) == 2 * SANDBOXES + len(plugged)
    await pods.delete(*names)
    assert {kind: found - before[kind] for kind, found in attachments(lab).items()} == {kind: set() for kind in before}
