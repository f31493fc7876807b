"""Attachments that multus-cni made, of which neither a record nor an annotation of hotnic's tells."""

import json
from typing import Any

import pytest

from schemas.kubernetes.networks import NETWORK_STATUS
from schemas.names import pod_interface
from tests.support.kube.node_kube import NADS
from tests.support.node.networks_node import CONFIG, ETH0, Node

BLUE = pod_interface("blue")


def element(interface: str) -> dict[str, Any]:
    """Return an element of the networks annotation."""
    return {"name": "blue", "namespace": "default", "interface": interface}


def entry(interface: str) -> dict[str, Any]:
    """Return an entry of network-status."""
    return {"name": "default/blue", "interface": interface, "mac": "02:00:00:00:00:0a", "dns": {}}


@pytest.mark.parametrize("link", [BLUE, "net1"])
@pytest.mark.parametrize("serves_records", [True, False], ids=["hotnic", "upstream"])
async def test_what_the_annotation_drops_is_removed_by_its_nad(node: Node, link: str, serves_records: bool) -> None:
    node.multus.serves_records = serves_records
    node.nad()
    node.pod(networks=[element(link)], status=[ETH0, entry(link)])
    await node.idle()
    node.set_networks([])
    await node.until_links("eth0")
    (call,) = node.multus.calls
    assert (call.verb, call.config) == (f"DEL {link}", CONFIG.encode())
    # The MAC tells hotnic's daemon that the link is the one of network-status.
    assert (call.attributes or {}).get("mac") == ("02:00:00:00:00:0a" if serves_records else None)


async def test_what_kubevirt_dropped_before_the_role_started_is_removed(node: Node) -> None:
    node.nad()
    node.pod(networks=[], status=[ETH0, entry(BLUE)])
    await node.until_links("eth0")
    assert node.multus.verbs == [f"DEL {BLUE}"]


async def test_what_nobody_requested_in_the_annotation_is_left_alone(node: Node) -> None:
    """Such as a default network of the node."""
    node.nad()
    node.pod(networks=[element(BLUE)], status=[ETH0, entry("net1"), entry(BLUE)])
    await node.idle()
    node.set_networks([])
    await node.until_links("eth0", "net1")
    await node.idle()
    assert node.multus.verbs == [f"DEL {BLUE}"]


async def test_an_event_says_what_is_left_when_the_nad_is_gone_too(node: Node) -> None:
    node.pod(networks=[element(BLUE)], status=[ETH0, entry(BLUE)])
    await node.idle()
    node.set_networks([])
    (event,) = await node.until_event()
    assert (event["type"], event["reason"]) == ("Warning", "FailedRemovingInterface")
    assert f"failed removing interface {BLUE} from network: default/blue" in event["message"]
    assert "NetworkAttachmentDefinition default/blue does not exist" in event["message"]
    await node.idle()
    assert node.multus.calls == []
    assert node.links() == ["eth0", BLUE]
    assert len(await node.until_event()) == 1
    # The network is there again; the next resync removes the interface.
    node.nad()
    await node.idle()
    await node.until_links("eth0")
    assert json.loads(node.kube.annotations("pods", "default", "p1")[NETWORK_STATUS]) == [ETH0]
    assert node.kube.counted("GET", NADS) >= 2
