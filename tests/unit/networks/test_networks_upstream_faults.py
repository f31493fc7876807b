"""Defects of upstream's controller (multus-dynamic-networks-controller v0.3.7) that hotnic must not have.

The docstrings describe upstream's behaviour, and name its issue if there is one (DNC: its own, else multus-cni's).
"""

import asyncio
import json
from pathlib import Path
from typing import Any

import pytest

from schemas.bus.events import Failed, MultusAttached, MultusDetached
from schemas.kubernetes.networks import NETWORK_STATUS, NETWORKS
from schemas.names import pod_interface
from services.networks.plan.actions import NamespaceIsolation
from tests.support.kube.node_kube import PODS, Refused
from tests.support.node.fake_cri import FakeSandbox
from tests.support.node.fake_multus import Call, FakeMultus, cni_error, recorded, serving_multus
from tests.support.node.networks_node import ETH0, NODE, Node, running_node
from tests.support.observed.objects import mirror_metadata

BLUE = pod_interface("blue")
CLUSTER = recorded("eth0", "cluster", "cluster")


def element(interface: str | None, name: str = "blue", **fields: Any) -> dict[str, Any]:
    return {"name": name, **({"interface": interface} if interface else {}), **fields}


def entry(interface: str, name: str = "blue") -> dict[str, Any]:
    return {"name": f"default/{name}", "interface": interface, "dns": {}}


async def test_pod_annotated_before_it_runs_is_reconciled(node: Node) -> None:
    """An edit between sandbox creation and phase Running arrives as an add event of the watch, which had no handler."""
    node.nad()
    node.pod(networks=[element("net1"), element("ens58")], status=[ETH0, entry("net1")])
    await node.until_links("eth0", "net1", "ens58")


async def test_pending_pod_is_reconciled_when_it_runs(node: Node) -> None:
    """The same edit on a pod that the watch delivered before: the change to phase Running triggers a run too."""
    node.nad()
    node.pod(networks=[element("ens58")])
    pod = node.kube.objects[PODS, "default", "p1"]
    node.kube.put(PODS, "default", "p2", **(pod | {"metadata": pod["metadata"] | {"uid": "uid-p2"}, "status": {}}))
    node.cri.sandboxes.append(FakeSandbox("sandbox-p2", "uid-p2", "default", "p2"))
    await node.until_links("eth0", "ens58")
    await node.idle()
    assert node.links("p2") == ["eth0"]
    node.kube.put(
        PODS, "default", "p2", **(node.kube.objects[PODS, "default", "p2"] | {"status": {"phase": "Running"}})
    )
    await node.until_links("eth0", "ens58", name="p2")


async def test_hanging_add_does_not_block_other_pods(node: Node) -> None:
    """There was one worker, and no deadline for CRI or HTTP calls."""
    node.nad()
    released = asyncio.Event()

    async def hang(call: Call) -> None:
        if call.env["CNI_CONTAINERID"] == "sandbox-p1":
            await released.wait()

    node.multus.during = hang
    node.pod("p1", networks=[element("ens58")])
    node.pod("p2", networks=[element("ens58")])
    await node.until_links("eth0", "ens58", name="p2")
    assert node.links("p1") == ["eth0"]
    released.set()
    await node.until_links("eth0", "ens58", name="p1")


async def test_call_without_a_response_times_out_and_is_retried(tmp_path: Path) -> None:
    """Without an HTTP deadline such a call blocked the only worker forever."""
    async with running_node(tmp_path, deadline=0.1) as node:
        node.nad()
        hanging = iter([True])

        async def hang(_call: Call) -> None:
            if next(hanging, False):
                await asyncio.Event().wait()

        node.multus.during = hang
        node.pod(networks=[element("ens58")])
        await node.until_links("eth0", "ens58")
        failed = node.bus.published[0]
        assert isinstance(failed, Failed)
        assert failed.reason == "MultusUnavailable"
        assert "no response within 0.1 s" in failed.message


async def test_retries_have_no_limit(node: Node) -> None:
    """There were three retries within 35 ms, and none after that until the annotation changed."""
    node.nad()
    node.multus.script = [cni_error(11, "later")] * 5
    node.pod(networks=[element("ens58")])
    await node.until_links("eth0", "ens58")
    waits = [event.retry_after for event in node.bus.published if isinstance(event, Failed)]
    assert len(waits) == 5
    assert all(wait is not None and wait >= 0.1 for wait in waits)
    assert waits[-1] is not None
    assert waits[-1] > 0.35


async def test_burst_of_edits_is_coalesced(node: Node) -> None:
    """Queue items were pointers, so no two of them were equal."""
    node.nad()
    node.pod()
    await node.idle()
    for count in range(20):
        node.set_networks([element(f"ens{i}") for i in range(count + 1)])
    await node.until_links("eth0", *(f"ens{i}" for i in range(20)))
    assert sorted(node.multus.verbs) == sorted(f"ADD ens{i}" for i in range(20))


async def test_failed_add_of_a_taken_name_sends_no_del(node: Node) -> None:
    """Rollback sent DEL for the failed element: a request for eth0 deleted eth0 (since v0.3.5)."""
    node.nad()
    node.pod(status=[])
    node.multus.script = [cni_error(7, "interface name eth0 already exists")]
    node.set_networks([element("eth0")])
    await node.until_published(lambda events: len(events) == 1)
    await node.until_event()
    assert node.multus.verbs[0] == "ADD eth0"
    assert not any(verb.startswith("DEL") for verb in node.multus.verbs)


async def test_add_whose_plugin_failed_is_rolled_back(node: Node) -> None:
    """A chain's earlier plugins stayed in upstream's daemon, and every further ADD found the name taken (DNC #235)."""
    node.nad()
    node.pod()
    text = (
        "error configuring pod [default/p1] networking: [default/p1/uid-p1:blue-net]: error adding container to "
        'network "blue-net": plugin type="tuning" failed (add): failed to set mac\n'
    )
    node.multus.script = [(400, text), (200, None), cni_error(7, 'plugin type="tuning" failed (add): no'), (400, "no")]
    node.set_networks([element("ens58")])
    await node.until_links("eth0", "ens58")
    assert node.multus.verbs == ["ADD ens58", "DEL ens58", "ADD ens58", "DEL ens58", "ADD ens58"]
    assert node.multus.calls[1].config == node.multus.calls[0].config


async def test_same_failure_after_another_edit_records_a_new_event(node: Node) -> None:
    """An ordinary pod has no operation that distinguishes two edits."""
    node.nad()
    node.pod()
    for mac in ("02:00:00:00:00:01", "02:00:00:00:00:02"):
        node.multus.script = [cni_error(100, "no")]
        node.set_networks([element("ens58", mac=mac)])
        await node.until_links("eth0", "ens58")
        node.set_networks([])
        await node.until_links("eth0")
    events = await node.until_event(4)
    assert len([event for event in events if event["reason"] == "FailedAddingInterface"]) == 2


async def test_attachments_before_a_failure_stay(node: Node) -> None:
    """The rollback removed the first element, and the status still listed it (since v0.3.5)."""
    node.nad()
    node.nad("broken", "{")
    node.pod()
    node.set_networks([element("ens58"), element("x1", "broken"), element("ens59")])
    await node.until_links("eth0", "ens58", "ens59")
    assert node.multus.verbs == ["ADD ens58", "ADD ens59"]


async def test_failed_detach_does_not_undo_an_attach(node: Node) -> None:
    """The attachments of the same run were rolled back, and the status still listed them."""
    node.nad()
    node.pod()
    node.set_networks([element("ens58")])
    await node.until_links("eth0", "ens58")
    node.multus.script = [node.multus.succeed(node.multus.calls[-1]), cni_error(100, "no")]
    node.set_networks([element("ens59")])
    await node.until_links("eth0", "ens59")
    assert node.multus.verbs[1:] == ["ADD ens59", "DEL ens58", "DEL ens58"]


async def test_one_edit_that_attaches_and_detaches_preserves_the_new_entry(node: Node) -> None:
    """DNC #157: the new entry was lost, because the removal started from a stale pod."""
    node.nad()
    node.pod()
    node.set_networks([element("ens58")])
    await node.until_links("eth0", "ens58")
    node.set_networks([element("eth321"), element("eth322")])
    await node.until_links("eth0", "eth321", "eth322")


async def test_two_quick_edits_do_not_attach_twice(node: Node) -> None:
    """The second edit was compared with the old status; its ADD collided, and the rollback deleted the interface."""
    node.nad()
    node.pod()
    await node.idle()

    async def edit(call: Call) -> None:
        if call.verb == "ADD ens58":
            node.set_networks([element("ens58"), element("ens59")])

    node.multus.during = edit
    node.set_networks([element("ens58")])
    await node.until_links("eth0", "ens58", "ens59")
    assert node.multus.verbs == ["ADD ens58", "ADD ens59"]


async def test_unwritten_status_is_written_without_a_second_add(node: Node) -> None:
    """DNC #235: the write failed and every further ADD collided; later versions lost the attachment."""
    node.nad()
    node.pod()
    refuse(node, times=3)
    node.set_networks([element("ens58")])
    await node.until_links("eth0", "ens58")
    assert node.multus.verbs == ["ADD ens58"]
    last_event = (await node.until_published(lambda events: len(events) == 4))[-1]
    assert last_event.attempt == 4


async def test_failed_status_write_after_detach_is_retried(node: Node) -> None:
    """A failed write after DEL left the entry until the next edit or restart."""
    node.nad()
    node.pod()
    node.set_networks([element("ens58")])
    await node.until_links("eth0", "ens58")
    refuse(node, times=2)
    node.set_networks([])
    await node.until_links("eth0")
    published = await node.until_published(lambda events: len(events) == 4)
    assert isinstance(published[-1], MultusDetached)
    assert [getattr(event, "reason", "") for event in published[1:]] == ["KubeUnavailable", "KubeUnavailable", ""]


async def test_element_added_again_before_its_removal_is_written_is_attached(node: Node) -> None:
    """Its entry is still listed, so it looks attached."""
    node.nad()
    node.pod()
    node.set_networks([element("ens58")])
    await node.until_links("eth0", "ens58")
    refuse(node, times=1)
    node.set_networks([])
    await node.until_published(lambda events: any(isinstance(event, Failed) for event in events))
    node.set_networks([element("ens58")])
    await node.until_published(lambda events: sum(isinstance(event, MultusAttached) for event in events) == 2)
    assert node.multus.verbs == ["ADD ens58", "DEL ens58", "DEL ens58", "ADD ens58"]
    assert node.links() == ["eth0", "ens58"]


def refuse(node: Node, *, times: int) -> None:
    """Make the API server refuse a number of patches of pods."""
    refusals = iter(range(times))

    def busy(method: str, plural: str, _name: str) -> None:
        if (method, plural) == ("PATCH", PODS) and next(refusals, None) is not None:
            raise Refused(503, "ServiceUnavailable", "try later")

    node.kube.before = busy


async def test_unnamed_element_does_not_block_the_others(node: Node) -> None:
    """DNC #63, #48, #66: it matched no entry, its ADD failed, and it blocked the pod's other elements."""
    node.nad()
    node.pod(networks=[element(None)], status=[ETH0, entry("net1")])
    await node.idle()
    node.set_networks([element(None), element("ens58")])
    await node.until_links("eth0", "net1", "ens58")
    node.set_networks([element("net1"), element("ens58")])
    await node.idle()
    assert node.multus.verbs == ["ADD ens58"]
    node.set_networks([element("net1"), element("ens58"), element(None)])
    await node.until_links("eth0", "net1", "ens58", "net3")


async def test_pod_without_the_annotation_gets_its_first_network(node: Node) -> None:
    """DNC #43."""
    node.nad()
    node.pod()
    assert NETWORKS not in node.kube.annotations(PODS, "default", "p1")
    await node.idle()
    node.set_networks([element("ens58", mac="02:03:04:05:06:07")])
    await node.until_links("eth0", "ens58")


async def test_del_uses_the_sandbox_of_the_add(node: Node) -> None:
    """DNC #209: DEL had another container id, so IPAM leases by container id and interface leaked."""
    node.nad()
    node.pod()
    node.set_networks([element("ens58")])
    await node.until_links("eth0", "ens58")
    node.set_networks([])
    await node.until_links("eth0")
    added, deleted = node.multus.calls
    assert added.env["CNI_CONTAINERID"] == deleted.env["CNI_CONTAINERID"] == "sandbox-p1"
    assert added.config == deleted.config


async def test_leftover_sandbox_does_not_block_the_pod(node: Node) -> None:
    """More than one sandbox was an error, even if the other one was left over from an earlier sandbox."""
    node.nad()
    node.cri.sandboxes.append(FakeSandbox("leftover", "uid-p1", "default", "p1", ready=False, created_at=9))
    node.pod(networks=[element("ens58")])
    await node.until_links("eth0", "ens58")
    assert node.multus.calls[0].env["CNI_CONTAINERID"] == "sandbox-p1"


async def test_sandbox_of_a_static_pod_is_found(node: Node) -> None:
    """The API server has the mirror pod, whose UID the container runtime does not know."""
    node.nad()
    mirror = mirror_metadata(NODE)
    node.pod(annotations=mirror.pop("annotations"), metadata=mirror, networks=[element("ens58")])
    node.cri.sandboxes[0].uid = "static-uid"
    await node.until_links("eth0", "ens58")


async def test_ordinary_pod_that_says_it_is_static_gets_no_sandbox_of_its_name(node: Node) -> None:
    """Whoever creates a pod may set the annotation, and the sandbox of that name may be that of an earlier pod."""
    node.nad()
    node.pod(annotations={"kubernetes.io/config.source": "file"}, networks=[element("ens58")])
    node.cri.sandboxes[0].uid = "earlier-uid"
    await node.idle()
    assert node.multus.calls == []


async def test_terminating_pod_is_left_alone(node: Node) -> None:
    """deletionTimestamp was ignored; cluster-network-addons-operator #1543 reports pods stuck in Terminating."""
    node.nad()
    node.pod(metadata={"deletionTimestamp": "2026-01-01T00:00:00Z"}, networks=[element("ens58")])
    await node.idle()
    assert node.multus.calls == []
    assert not node.cri.calls


async def test_default_networks_of_the_node_are_not_detached_at_start(node: Node) -> None:
    """Every entry that is not default and not in the annotation was removed."""
    node.nad()
    attachments = [
        CLUSTER,
        recorded("net1", "kube-system/wide", "default"),
        recorded("net2", "default/blue", "networks"),
    ]
    node.multus.record("sandbox-p1", "uid-p1", *attachments)
    wide = {"name": "kube-system/wide", "interface": "net1", "dns": {}}
    node.pod(networks=[], status=[ETH0, wide, entry("net2")])
    await node.until_links("eth0", "net1")
    assert node.multus.verbs == ["DEL net2"]


async def test_changed_addresses_replace_the_attachment(node: Node) -> None:
    """IPs, MAC and cni-args were never compared: an edit of them had no effect and no Event."""
    node.nad()
    node.pod()
    node.set_networks([element("ens58", ips=["10.1.1.1/24"])])
    await node.until_links("eth0", "ens58")
    node.set_networks([element("ens58", ips=["10.1.1.2/24"])])
    await node.kube.until(lambda: node.multus.verbs == ["ADD ens58", "DEL ens58", "ADD ens58"])
    await node.until_links("eth0", "ens58")
    assert node.multus.calls[-1].attributes == {"cni-args": None, "ips": ["10.1.1.2/24"]}
    await node.idle()
    assert len(node.multus.calls) == 3


async def test_change_of_an_attachment_in_use_waits_and_records_one_event(node: Node) -> None:
    """The change is applied after the handler has released the NIC."""
    node.nad()
    node.multus.record("sandbox-p1", "uid-p1", CLUSTER, recorded(BLUE, "blue-net", "delegate"))
    node.pod(networks=[element(BLUE)], status=[ETH0, entry(BLUE)])
    await node.idle()
    node.multus.script = [cni_error(11, f"{BLUE} of blue-net is still in use by a guest (bridge k6t-x exists)")] * 2
    node.set_networks([element(BLUE, mac="02:03:04:05:06:07")])
    (event,) = await node.until_event()
    assert event["reason"] == "InterfaceChangeRejected"
    assert f"will not change interface {BLUE} of network: blue(ips: [], mac: 02:03:04:05:06:07" in event["message"]
    assert "still in use by a guest" in event["message"]
    await node.idle()
    assert node.multus.verbs == [f"DEL {BLUE}"] * 2
    await node.idle()
    await node.kube.until(lambda: node.multus.verbs == [f"DEL {BLUE}"] * 3 + [f"ADD {BLUE}"])
    reasons = [event["reason"] for event in await node.until_event(2)]
    assert reasons == ["InterfaceChangeRejected", "AddedInterface"]


async def test_namespace_isolation_holds_on_hot_plug(tmp_path: Path) -> None:
    """multus checks it at pod creation; a later edit of the annotation bypassed it."""
    isolation = NamespaceIsolation(enabled=True, global_namespaces=frozenset({"default"}))
    async with running_node(tmp_path, isolation=isolation) as node:
        node.nad()
        node.pod()
        node.set_networks([element("x1") | {"namespace": "other"}, element("ens58")])
        await node.until_links("eth0", "ens58")
        rejected = [e for e in await node.until_event(2) if e["reason"] == "InterfaceAddRejected"]
        assert [e["message"] for e in rejected] == [
            "pod [default/p1]: will not add interface x1 to network: blue: "
            "namespace isolation does not allow networks of namespace other"
        ]


async def test_bandwidth_reaches_the_plugins_that_declare_it(node: Node) -> None:
    """Only ips, mac and cni-args were passed on; other settings were dropped without an Event."""
    shaping = {"type": "bandwidth", "capabilities": {"bandwidth": True}}
    node.nad(config=json.dumps({"cniVersion": "1.0.0", "name": "b", "plugins": [{"type": "bridge"}, shaping]}))
    node.pod()
    settings = {"bandwidth": {"ingressRate": 8}, "portMappings": [{"hostPort": 80, "containerPort": 8080}]}
    node.set_networks([element("ens58", **settings, **{"default-route": ["10.1.0.1"]})])
    await node.until_links("eth0", "ens58")
    plugins = json.loads(node.multus.calls[0].config)["plugins"]
    assert plugins == [{"type": "bridge"}, shaping | {"runtimeConfig": {"bandwidth": {"ingressRate": 8}}}]
    ignored = [e for e in await node.until_event(2) if e["reason"] == "InterfaceSettingIgnored"]
    assert [e["message"] for e in ignored] == [
        "pod [default/p1]: interface ens58 of network: blue ignores settings: default-route (takes effect only at "
        "pod creation), portMappings (no plugin of the network declares the capability)"
    ]


async def test_malformed_annotations_record_an_event(node: Node) -> None:
    """There was an error in the log and three retries, but no Event for the author of the annotation."""
    node.pod(annotations={NETWORKS: '[{"name":'})
    (event,) = await node.until_event()
    assert event["reason"] == "UnreadableNetworks"
    assert NETWORKS in event["message"]
    node.kube.annotate(PODS, "default", "p1", {NETWORKS: None, NETWORK_STATUS: "{"})
    assert NETWORK_STATUS in (await node.until_event(2))[1]["message"]


async def test_restarted_daemon_is_reconnected(node: Node, tmp_path: Path) -> None:
    """DNC #96, #292: the new socket has another inode, so the mounted socket file was stale."""
    node.nad()
    node.pod()
    (tmp_path / "multus.sock").unlink()
    node.set_networks([element("ens58")])
    await node.until_published(lambda events: any(isinstance(event, Failed) for event in events))
    async with serving_multus(str(tmp_path / "multus.sock"), FakeMultus()) as restarted:
        await node.until_links("eth0", "ens58")
        assert restarted.verbs == ["ADD ens58"]


async def test_new_sandbox_gets_its_own_add(node: Node) -> None:
    """The attachments of a sandbox end with it."""
    node.nad()
    node.pod()
    refuse(node, times=1)
    node.set_networks([element("ens58")])
    await node.until_published(lambda events: len(events) == 1)
    node.cri.sandboxes[0] = FakeSandbox("sandbox-2", "uid-p1", "default", "p1")
    node.role.pod_cache.of("uid-p1").sandbox = None
    await node.until_links("eth0", "ens58")
    assert [call.env["CNI_CONTAINERID"] for call in node.multus.calls][-1] == "sandbox-2"


async def test_failure_events_contain_the_cause(node: Node) -> None:
    """No Event contained the cause, and there was none after the last attempt."""
    node.nad()
    node.pod()
    node.multus.script = [(400, "no such bridge\n")]
    node.set_networks([element("ens58")])
    await node.until_links("eth0", "ens58")
    failed, added = await node.until_event(2)
    assert failed["message"].endswith(
        "failed adding interface ens58 to network: blue: CNI ADD (status 400): no such bridge"
    )
    assert added["source"] == {"component": "hotnic-networks", "host": NODE}


@pytest.mark.parametrize("order", [["b", "a", "c"], ["c", "b", "a"]])
async def test_order_of_network_status_is_preserved(node: Node, order: list[str]) -> None:
    """Entries were written in the random order of a Go map."""
    node.nad()
    node.pod(status=[ETH0, *(entry(link) for link in order)], networks=[element(link) for link in order])
    await node.idle()
    node.set_networks([*(element(link) for link in order), element("d")])
    await node.until_links("eth0", *order, "d")
