"""What upstream's controller gets wrong (multus-dynamic-networks-controller v0.3.7), one test each; it must not here.

The docstrings name upstream's issue (DNC: its own, otherwise multus-cni's) or the behaviour of its code.
"""

import asyncio
import json
from pathlib import Path
from typing import Any

import pytest

from schemas.events import Failed, MultusAttached, MultusDetached
from schemas.names import pod_interface
from schemas.networks import NETWORK_STATUS, NETWORKS
from services.networks.plan import Isolation
from tests.support.fake_cri import FakeSandbox
from tests.support.fake_multus import Call, FakeMultus, cni_error, recorded, serving_multus
from tests.support.networks_node import ETH0, NODE, Node, running_node
from tests.support.node_kube import PODS, Refused

BLUE = pod_interface("blue")
CLUSTER = recorded("eth0", "cluster", "cluster")


def element(interface: str | None, name: str = "blue", **fields: Any) -> dict[str, Any]:
    return {"name": name, **({"interface": interface} if interface else {}), **fields}


def entry(interface: str, name: str = "blue") -> dict[str, Any]:
    return {"name": f"default/{name}", "interface": interface, "dns": {}}


async def test_a_pod_annotated_before_it_ran_is_caught(node: Node) -> None:
    """An edit between sandbox creation and phase Running arrives as an add of the watch, which nobody handled."""
    node.nad()
    node.pod(networks=[element("net1"), element("ens58")], status=[ETH0, entry("net1")])
    await node.until_links("eth0", "net1", "ens58")


async def test_a_pending_pod_is_left_to_multus_and_looked_at_when_it_runs(node: Node) -> None:
    """The same edit, on a pod that the watch has brought before: phase Running is a change, too."""
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


async def test_a_pod_that_hangs_does_not_hold_up_another(node: Node) -> None:
    """One worker, and no deadline on CRI or HTTP."""
    node.nad()
    let_go = asyncio.Event()

    async def hang(call: Call) -> None:
        if call.env["CNI_CONTAINERID"] == "sandbox-p1":
            await let_go.wait()

    node.multus.during = hang
    node.pod("p1", networks=[element("ens58")])
    node.pod("p2", networks=[element("ens58")])
    await node.until_links("eth0", "ens58", name="p2")
    assert node.links("p1") == ["eth0"]
    let_go.set()
    await node.until_links("eth0", "ens58", name="p1")


async def test_a_daemon_that_never_answers_is_given_up_and_asked_again(tmp_path: Path) -> None:
    """No HTTP deadline: such a call held the only worker for good."""
    async with running_node(tmp_path, deadline=0.1) as node:
        node.nad()
        silent = iter([True])

        async def hang(_call: Call) -> None:
            if next(silent, False):
                await asyncio.Event().wait()

        node.multus.during = hang
        node.pod(networks=[element("ens58")])
        await node.until_links("eth0", "ens58")
        failed = node.bus.published[0]
        assert isinstance(failed, Failed)
        assert failed.reason == "MultusUnavailable"
        assert "no answer within 0.1 s" in failed.message


async def test_attempts_do_not_end_after_three(node: Node) -> None:
    """Three retries within 35 ms, then silence until the annotation changes."""
    node.nad()
    node.role.tools.rng.seed(1)
    node.multus.script = [cni_error(11, "later")] * 5
    node.pod(networks=[element("ens58")])
    await node.until_links("eth0", "ens58")
    waits = [event.retry_after for event in node.bus.published if isinstance(event, Failed)]
    assert len(waits) == 5
    assert all(wait is not None and wait >= 0.1 for wait in waits)
    assert waits[-1] is not None
    assert waits[-1] > 0.35


async def test_a_burst_of_edits_is_not_one_run_each(node: Node) -> None:
    """Queue items were pointers, so that no two were ever equal."""
    node.nad()
    node.pod()
    await node.idle()
    for count in range(20):
        node.want([element(f"ens{i}") for i in range(count + 1)])
    await node.until_links("eth0", *(f"ens{i}" for i in range(20)))
    assert sorted(node.multus.verbs) == sorted(f"ADD ens{i}" for i in range(20))


async def test_a_failed_add_of_a_name_that_is_taken_takes_nothing_away(node: Node) -> None:
    """Rollback sent DEL for the element that had failed: asking for eth0 deleted eth0 (since v0.3.5)."""
    node.nad()
    node.pod(status=[])
    node.multus.script = [cni_error(7, "interface name eth0 already exists")]
    node.want([element("eth0")])
    await node.until_published(lambda events: len(events) == 1)
    await node.until_event()
    assert node.multus.verbs[0] == "ADD eth0"
    assert not any(verb.startswith("DEL") for verb in node.multus.verbs)


async def test_an_add_that_failed_half_way_is_undone(node: Node) -> None:
    """A chain's earlier plugins stayed in upstream's daemon, and every further ADD found the name taken (DNC #235)."""
    node.nad()
    node.pod()
    text = (
        "error configuring pod [default/p1] networking: [default/p1/uid-p1:blue-net]: error adding container to "
        'network "blue-net": plugin type="tuning" failed (add): failed to set mac\n'
    )
    node.multus.script = [(400, text), (200, None), cni_error(7, 'plugin type="tuning" failed (add): no'), (400, "no")]
    node.want([element("ens58")])
    await node.until_links("eth0", "ens58")
    assert node.multus.verbs == ["ADD ens58", "DEL ens58", "ADD ens58", "DEL ens58", "ADD ens58"]
    assert node.multus.calls[1].config == node.multus.calls[0].config


async def test_the_same_cause_after_another_edit_is_told_again(node: Node) -> None:
    """An ordinary pod has no operation that would tell two edits apart."""
    node.nad()
    node.pod()
    for mac in ("02:00:00:00:00:01", "02:00:00:00:00:02"):
        node.multus.script = [cni_error(100, "no")]
        node.want([element("ens58", mac=mac)])
        await node.until_links("eth0", "ens58")
        node.want([])
        await node.until_links("eth0")
    events = await node.until_event(4)
    assert len([event for event in events if event["reason"] == "FailedAddingInterface"]) == 2


async def test_what_was_attached_before_a_failure_stays_and_is_told(node: Node) -> None:
    """The status listed the first element, the rollback removed it, and nothing corrected the status (since v0.3.5)."""
    node.nad()
    node.nad("broken", "{")
    node.pod()
    node.want([element("ens58"), element("x1", "broken"), element("ens59")])
    await node.until_links("eth0", "ens58", "ens59")
    assert node.multus.verbs == ["ADD ens58", "ADD ens59"]


async def test_a_removal_that_fails_does_not_undo_an_addition(node: Node) -> None:
    """Additions of the round were rolled back while the status kept them."""
    node.nad()
    node.pod()
    node.want([element("ens58")])
    await node.until_links("eth0", "ens58")
    node.multus.script = [node.multus.succeed(node.multus.calls[-1]), cni_error(100, "no")]
    node.want([element("ens59")])
    await node.until_links("eth0", "ens59")
    assert node.multus.verbs[1:] == ["ADD ens59", "DEL ens58", "DEL ens58"]


async def test_one_edit_that_adds_and_removes_keeps_the_new_entry(node: Node) -> None:
    """DNC #157: the entry was lost, for the removal started from a stale pod."""
    node.nad()
    node.pod()
    node.want([element("ens58")])
    await node.until_links("eth0", "ens58")
    node.want([element("eth321"), element("eth322")])
    await node.until_links("eth0", "eth321", "eth322")


async def test_two_quick_edits_do_not_attach_twice(node: Node) -> None:
    """The second edit was worked on with the old status, collided, and the rollback deleted the healthy interface."""
    node.nad()
    node.pod()
    await node.idle()

    async def edit(call: Call) -> None:
        if call.verb == "ADD ens58":
            node.want([element("ens58"), element("ens59")])

    node.multus.during = edit
    node.want([element("ens58")])
    await node.until_links("eth0", "ens58", "ens59")
    assert node.multus.verbs == ["ADD ens58", "ADD ens59"]


async def test_a_status_that_could_not_be_written_is_written_without_a_second_add(node: Node) -> None:
    """DNC #235: the write failed, every further ADD collided, and the pod was stuck; later the round was just lost."""
    node.nad()
    node.pod()
    refuse(node, times=3)
    node.want([element("ens58")])
    await node.until_links("eth0", "ens58")
    assert node.multus.verbs == ["ADD ens58"]
    last_event = (await node.until_published(lambda events: len(events) == 4))[-1]
    assert last_event.attempt == 4


async def test_after_a_removal_too_the_status_is_written_in_the_end(node: Node) -> None:
    """A failed write after DEL left the entry until the next edit or restart."""
    node.nad()
    node.pod()
    node.want([element("ens58")])
    await node.until_links("eth0", "ens58")
    refuse(node, times=2)
    node.want([])
    await node.until_links("eth0")
    published = await node.until_published(lambda events: len(events) == 4)
    assert isinstance(published[-1], MultusDetached)
    assert [getattr(event, "reason", "") for event in published[1:]] == ["KubeUnavailable", "KubeUnavailable", ""]


async def test_an_element_that_comes_back_while_its_removal_is_not_written_is_attached_again(node: Node) -> None:
    """Its entry still stands, so that it would seem to be there."""
    node.nad()
    node.pod()
    node.want([element("ens58")])
    await node.until_links("eth0", "ens58")
    refuse(node, times=1)
    node.want([])
    await node.until_published(lambda events: any(isinstance(event, Failed) for event in events))
    node.want([element("ens58")])
    await node.until_published(lambda events: sum(isinstance(event, MultusAttached) for event in events) == 2)
    assert node.multus.verbs == ["ADD ens58", "DEL ens58", "DEL ens58", "ADD ens58"]
    assert node.links() == ["eth0", "ens58"]


def refuse(node: Node, *, times: int) -> None:
    """Let the API server refuse so many patches of pods."""
    left = iter(range(times))

    def busy(method: str, plural: str, _name: str) -> None:
        if (method, plural) == ("PATCH", PODS) and next(left, None) is not None:
            raise Refused(503, "ServiceUnavailable", "try later")

    node.kube.before = busy


async def test_an_element_without_a_name_holds_nobody_up(node: Node) -> None:
    """DNC #63, #48, #66: it matched no entry, failed without a name, and blocked all others of the pod."""
    node.nad()
    node.pod(networks=[element(None)], status=[ETH0, entry("net1")])
    await node.idle()
    node.want([element(None), element("ens58")])
    await node.until_links("eth0", "net1", "ens58")
    node.want([element("net1"), element("ens58")])
    await node.idle()
    assert node.multus.verbs == ["ADD ens58"]
    node.want([element("net1"), element("ens58"), element(None)])
    await node.until_links("eth0", "net1", "ens58", "net3")


async def test_a_pod_without_the_annotation_gets_its_first_network(node: Node) -> None:
    """DNC #43."""
    node.nad()
    node.pod()
    assert NETWORKS not in node.kube.annotations(PODS, "default", "p1")
    await node.idle()
    node.want([element("ens58", mac="02:03:04:05:06:07")])
    await node.until_links("eth0", "ens58")


async def test_del_names_the_sandbox_of_the_add(node: Node) -> None:
    """DNC #209: DEL carried a container's id, so that leases by (container id, interface) leaked."""
    node.nad()
    node.pod()
    node.want([element("ens58")])
    await node.until_links("eth0", "ens58")
    node.want([])
    await node.until_links("eth0")
    added, deleted = node.multus.calls
    assert added.env["CNI_CONTAINERID"] == deleted.env["CNI_CONTAINERID"] == "sandbox-p1"
    assert added.config == deleted.config


async def test_a_leftover_sandbox_does_not_block_the_pod(node: Node) -> None:
    """More than one sandbox was an error, even where the other was a leftover of an earlier one."""
    node.nad()
    node.cri.sandboxes.append(FakeSandbox("leftover", "uid-p1", "default", "p1", ready=False, created_at=9))
    node.pod(networks=[element("ens58")])
    await node.until_links("eth0", "ens58")
    assert node.multus.calls[0].env["CNI_CONTAINERID"] == "sandbox-p1"


async def test_a_static_pod_is_found(node: Node) -> None:
    """The API knows its mirror, whose UID the runtime has never heard of."""
    node.nad()
    node.pod(annotations={"kubernetes.io/config.source": "file"}, networks=[element("ens58")])
    node.cri.sandboxes[0].uid = "static-uid"
    await node.until_links("eth0", "ens58")


async def test_a_terminating_pod_is_left_alone(node: Node) -> None:
    """deletionTimestamp was ignored; cluster-network-addons-operator #1543 tells of pods stuck Terminating."""
    node.nad()
    node.pod(metadata={"deletionTimestamp": "2026-01-01T00:00:00Z"}, networks=[element("ens58")])
    await node.idle()
    assert node.multus.calls == []
    assert not node.cri.asked


async def test_default_networks_of_the_node_are_not_taken_away_at_the_start(node: Node) -> None:
    """Every entry that is not default and not in the annotation was a candidate for DEL."""
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


async def test_changed_addresses_are_followed(node: Node) -> None:
    """IPs, MAC and cni-args were never compared: an edit of them did nothing, in silence."""
    node.nad()
    node.pod()
    node.want([element("ens58", ips=["10.1.1.1/24"])])
    await node.until_links("eth0", "ens58")
    node.want([element("ens58", ips=["10.1.1.2/24"])])
    await node.kube.until(lambda: node.multus.verbs == ["ADD ens58", "DEL ens58", "ADD ens58"])
    await node.until_links("eth0", "ens58")
    assert node.multus.calls[-1].attributes == {"cni-args": None, "ips": ["10.1.1.2/24"]}
    await node.idle()
    assert len(node.multus.calls) == 3


async def test_a_change_under_a_guest_waits_and_says_so_once(node: Node) -> None:
    """And is made once the guest has let go."""
    node.nad()
    node.multus.record("sandbox-p1", "uid-p1", CLUSTER, recorded(BLUE, "blue-net", "delegate"))
    node.pod(networks=[element(BLUE)], status=[ETH0, entry(BLUE)])
    await node.idle()
    node.multus.script = [cni_error(11, f"{BLUE} of blue-net is still in use by a guest (bridge k6t-x stands)")] * 2
    node.want([element(BLUE, mac="02:03:04:05:06:07")])
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
    """multus checks it when a pod is made; an annotation edited later went round it."""
    async with running_node(tmp_path, isolation=Isolation(on=True)) as node:
        node.nad()
        node.pod()
        node.want([element("x1") | {"namespace": "other"}, element("ens58")])
        await node.until_links("eth0", "ens58")
        rejected = [e for e in await node.until_event(2) if e["reason"] == "InterfaceAddRejected"]
        assert [e["message"] for e in rejected] == [
            "pod [default/p1]: will not add interface x1 to network: blue: "
            "namespace isolation keeps the pod from networks of namespace other"
        ]


async def test_bandwidth_and_ports_reach_the_plugins_that_declare_them(node: Node) -> None:
    """Only ips, mac and cni-args were carried; the rest was dropped in silence."""
    shaping = {"type": "bandwidth", "capabilities": {"bandwidth": True}}
    node.nad(config=json.dumps({"cniVersion": "1.0.0", "name": "b", "plugins": [{"type": "bridge"}, shaping]}))
    node.pod()
    wish = {"bandwidth": {"ingressRate": 8}, "portMappings": [{"hostPort": 80, "containerPort": 8080}]}
    node.want([element("ens58", **wish, **{"default-route": ["10.1.0.1"]})])
    await node.until_links("eth0", "ens58")
    plugins = json.loads(node.multus.calls[0].config)["plugins"]
    assert plugins == [{"type": "bridge"}, shaping | {"runtimeConfig": {"bandwidth": {"ingressRate": 8}}}]
    ignored = [e for e in await node.until_event(2) if e["reason"] == "InterfaceSettingIgnored"]
    assert [e["message"] for e in ignored] == [
        "pod [default/p1]: interface ens58 of network: blue is without: default-route (followed only when the pod is "
        "made), portMappings (no plugin of the network declares the capability)"
    ]


async def test_malformed_annotations_are_told_of(node: Node) -> None:
    """An error in the log, three retries, and nothing the author of the annotation could see."""
    node.pod(annotations={NETWORKS: '[{"name":'})
    (event,) = await node.until_event()
    assert event["reason"] == "UnreadableNetworks"
    assert NETWORKS in event["message"]
    node.kube.annotate(PODS, "default", "p1", {NETWORKS: None, NETWORK_STATUS: "{"})
    assert NETWORK_STATUS in (await node.until_event(2))[1]["message"]


async def test_a_restarted_daemon_is_found_again(node: Node, tmp_path: Path) -> None:
    """DNC #96, #292: its new socket has another inode, and the mounted file went stale."""
    node.nad()
    node.pod()
    (tmp_path / "multus.sock").unlink()
    node.want([element("ens58")])
    await node.until_published(lambda events: any(isinstance(event, Failed) for event in events))
    async with serving_multus(str(tmp_path / "multus.sock"), FakeMultus()) as anew:
        await node.until_links("eth0", "ens58")
        assert anew.verbs == ["ADD ens58"]


async def test_a_pod_in_a_new_sandbox_is_not_taken_for_the_old_one(node: Node) -> None:
    """What was made in a sandbox goes with it."""
    node.nad()
    node.pod()
    refuse(node, times=1)
    node.want([element("ens58")])
    await node.until_published(lambda events: len(events) == 1)
    node.cri.sandboxes[0] = FakeSandbox("sandbox-2", "uid-p1", "default", "p1")
    node.role.tools.memory.of("uid-p1").sandbox = None
    await node.until_links("eth0", "ens58")
    assert [call.env["CNI_CONTAINERID"] for call in node.multus.calls][-1] == "sandbox-2"


async def test_events_of_success_and_failure_carry_their_cause(node: Node) -> None:
    """No Event told why, and none came when attempts ended."""
    node.nad()
    node.pod()
    node.multus.script = [(400, "no such bridge\n")]
    node.want([element("ens58")])
    await node.until_links("eth0", "ens58")
    failed, added = await node.until_event(2)
    assert failed["message"].endswith(
        "failed adding interface ens58 to network: blue: CNI ADD (status 400): no such bridge"
    )
    assert added["source"] == {"component": "hotnic-networks", "host": NODE}


@pytest.mark.parametrize("order", [["b", "a", "c"], ["c", "b", "a"]])
async def test_the_order_of_the_status_is_kept(node: Node, order: list[str]) -> None:
    """Entries were written in the random order of a Go map."""
    node.nad()
    node.pod(status=[ETH0, *(entry(link) for link in order)], networks=[element(link) for link in order])
    await node.idle()
    node.want([*(element(link) for link in order), element("d")])
    await node.until_links("eth0", *order, "d")
