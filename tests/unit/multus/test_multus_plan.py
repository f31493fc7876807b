"""Decisions of multus from a record and the links of a sandbox: what is added, kept, refused and deleted."""

import json
from dataclasses import replace
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from schemas import cni
from schemas.kubernetes.objects import ObjectMeta, Pod
from services.common.netlink.links import Link
from services.multus import plan
from services.multus.cni.call import PodId
from services.multus.cni.conflist import AttachmentAttributes, parse
from services.multus.cni.errors import CniError
from services.multus.plan import (
    AddAttachment,
    DeleteAttachment,
    DesiredAttachment,
    KeepAttachment,
    RemoveLink,
    RenameLink,
)
from services.multus.pod.reader import check_pod
from services.multus.pod.status import pod_patch
from services.multus.records.attachment_link import with_unrecorded_link
from services.multus.records.sandbox import Attachment, AttachmentOrigin, AttachmentState, SandboxState

POD_LINK, NIC, BRIDGE = "pod7e0055a6880", "7e0055a6880-nic", "k6t-7e0055a6880"
POD = Pod(metadata=ObjectMeta(name="pod", namespace="default", uid="uid", resource_version="7"))
LO = Link(1, "lo")


def desired(
    ifname: str = POD_LINK, bridge: str = "b", origin: AttachmentOrigin = AttachmentOrigin.DELEGATE, **runtime: Any
) -> DesiredAttachment:
    network = parse(json.dumps({"cniVersion": "1.0.0", "name": "blue", "type": "bridge", "bridge": bridge}))
    return DesiredAttachment(ifname, network, "default/blue", origin, AttachmentAttributes(runtime))


def added(ifname: str = POD_LINK, index: int = 5, kind: str = "veth", **fields: Any) -> Attachment:
    made = desired(ifname).attachment()
    return msgspec.structs.replace(made, state=AttachmentState.ADDED, ifindex=index, kind=kind, **fields)


def sandbox(*attachments: Attachment) -> SandboxState:
    return SandboxState("abc", "/ns", "default", "pod", "uid", attachments)


def veth(name: str, index: int = 5, master: int | None = None) -> Link:
    return Link(index, name, "veth", master=master)


# ---- ADD ---------------------------------------------------------------------------------------------------------


def test_add_uses_a_free_name() -> None:
    assert plan.plan_add(None, [desired()], [LO]) == [AddAttachment(desired())]
    assert plan.plan_add(sandbox(added("net1")), [desired()], [LO, veth("net1")]) == [AddAttachment(desired())]


def test_add_keeps_an_equal_attachment_even_in_use() -> None:
    kept = [KeepAttachment(added())]
    assert plan.plan_add(sandbox(added()), [desired()], [LO, veth(POD_LINK)]) == kept
    in_use = [LO, veth(NIC, master=9), Link(9, BRIDGE, "bridge"), Link(10, POD_LINK, "dummy")]
    assert plan.plan_add(sandbox(added()), [desired()], in_use) == kept


def test_add_keeps_an_attachment_in_another_notation_and_with_more_args() -> None:
    """Another controller adds ``cni-args`` (kubevirt#15480), and networks asks again after its own restart."""
    made = desired(mac="02-00-00-00-00-0A", ips=["fd00::1/64"]).attachment()
    made = msgspec.structs.replace(made, state=AttachmentState.ADDED, ifindex=5, kind="veth")
    asked = desired(mac="02:00:00:00:00:0a", ips=["FD00::1/64"])
    asked = replace(asked, attributes=replace(asked.attributes, cni_args={"guid": "1"}))
    assert plan.plan_add(sandbox(made), [asked], [LO, veth(POD_LINK)]) == [KeepAttachment(made)]
    made = msgspec.structs.replace(made, cni_args={"guid": True})
    with pytest.raises(CniError, match="already exists"):
        plan.plan_add(sandbox(made), [asked], [LO, veth(POD_LINK)])


@pytest.mark.parametrize("other", [desired(bridge="other"), desired(mac="02:00:00:00:00:01")])
def test_add_refuses_other_settings_for_an_existing_attachment(other: DesiredAttachment) -> None:
    with pytest.raises(CniError, match=f"validateIfName: interface name {POD_LINK} already exists") as caught:
        plan.plan_add(sandbox(added()), [other], [LO, veth(POD_LINK)])
    assert caught.value.code == cni.CniErrorCode.INVALID_CONFIG


def test_add_refuses_a_foreign_link_and_a_duplicate_name() -> None:
    with pytest.raises(CniError, match="already exists"):
        plan.plan_add(None, [desired()], [LO, veth(POD_LINK)])
    with pytest.raises(CniError, match="already exists"):
        plan.plan_add(None, [desired(), desired()], [LO])


def test_add_recreates_a_lost_link_and_an_interrupted_attachment() -> None:
    lost = added()
    assert plan.plan_add(sandbox(lost), [desired()], [LO]) == [
        DeleteAttachment(lost, link_gone=True),
        AddAttachment(desired()),
    ]
    interrupted = desired().attachment()
    assert plan.plan_add(sandbox(interrupted), [desired()], [LO, veth(POD_LINK, 7)]) == [
        DeleteAttachment(interrupted, tries=1, leftover=RemoveLink(7, POD_LINK)),
        AddAttachment(desired()),
    ]
    changed = desired(bridge="other")
    assert plan.plan_add(sandbox(lost), [changed], [LO]) == [
        DeleteAttachment(lost, link_gone=True),
        AddAttachment(changed),
    ]


def test_add_replaces_an_interrupted_attachment_without_a_link_even_if_its_del_fails() -> None:
    interrupted = desired().attachment()
    assert plan.plan_add(sandbox(interrupted), [desired()], [LO]) == [
        DeleteAttachment(interrupted, tries=1),
        AddAttachment(desired()),
    ]


# ---- DEL ---------------------------------------------------------------------------------------------------------


def test_delete_runs_in_reverse_order() -> None:
    known = sandbox(added("eth0", 2), added("net1", 3), added("net2", 4))
    links = [LO, veth("eth0", 2), veth("net1", 3), veth("net2", 4)]
    actions = plan.plan_delete(known, None, links, deleting_sandbox=True)
    assert [(a.attachment.ifname, a.links, a.with_netns) for a in actions] == [
        ("net2", (), True),
        ("net1", (), True),
        ("eth0", (), True),
    ]
    assert plan.plan_delete(known, ["net1"], links, deleting_sandbox=False) == [DeleteAttachment(added("net1", 3))]


def test_delete_without_a_namespace_passes_no_netns() -> None:
    assert plan.plan_delete(sandbox(added()), None, None, deleting_sandbox=True) == [
        DeleteAttachment(added(), with_netns=False, tries=plan.DELETE_TRIES_OF_ADDED)
    ]


@pytest.mark.parametrize(
    ("failed", "links", "deleting_sandbox", "last"),
    [
        (0, [LO], False, False),
        (plan.DELETE_TRIES - 2, [LO], False, False),
        (plan.DELETE_TRIES - 1, [LO], False, True),
        # The daemon was killed during ADD: a plugin that cannot DEL now may hold a lease.
        (0, [LO], True, False),
        (1, [LO], True, True),
        (0, None, True, False),
        (1, None, True, True),
        (0, [LO, veth(POD_LINK)], True, False),
        (1, [LO, veth(POD_LINK)], True, True),
    ],
)
def test_tries_to_delete_an_interrupted_attachment_end(
    failed: int, links: list[Link] | None, deleting_sandbox: bool, last: bool
) -> None:
    interrupted = msgspec.structs.replace(desired().attachment(), failed_deletes=failed)
    [action] = plan.plan_delete(sandbox(interrupted), None, links, deleting_sandbox=deleting_sandbox)
    assert action.last_try is last
    # A plugin before the refusing one may have made a link.
    assert (action.leftover is not None) is (len(links or ()) == 2)


@pytest.mark.parametrize("links", [[LO], [LO, veth(POD_LINK)], None])
def test_tries_to_delete_an_attachment_that_was_added_end_with_its_sandbox_only(links: list[Link] | None) -> None:
    for failed, deleting_sandbox in ((99, False), (plan.DELETE_TRIES_OF_ADDED - 2, True)):
        attached = added(failed_deletes=failed)
        [action] = plan.plan_delete(sandbox(attached), None, links, deleting_sandbox=deleting_sandbox)
        assert not action.last_try
    attached = added(failed_deletes=plan.DELETE_TRIES_OF_ADDED - 1)
    [action] = plan.plan_delete(sandbox(attached), None, links, deleting_sandbox=True)
    assert action.last_try


IN_USE = {
    "port of the bridge": [veth(NIC, master=9), Link(9, BRIDGE, "bridge"), Link(10, POD_LINK, "dummy")],
    "detached, bridge exists": [veth(NIC), Link(9, BRIDGE, "bridge"), Link(10, POD_LINK, "dummy")],
    "set-up has just started": [veth(POD_LINK), Link(9, BRIDGE, "bridge")],
    "port of another bridge": [veth(POD_LINK, master=9), Link(9, "other", "bridge")],
    "link lost under the guest": [Link(9, BRIDGE, "bridge"), Link(10, POD_LINK, "dummy")],
}


@pytest.mark.parametrize("links", IN_USE.values(), ids=IN_USE.keys())
def test_delete_refuses_a_link_in_use_by_a_guest(links: list[Link]) -> None:
    with pytest.raises(CniError, match="still in use by a guest") as caught:
        plan.plan_delete(sandbox(added()), [POD_LINK], [LO, *links], deleting_sandbox=False)
    assert caught.value.code == cni.CniErrorCode.TRY_AGAIN_LATER


@pytest.mark.parametrize("dummy", [Link(10, POD_LINK, "dummy"), Link(10, POD_LINK, "bridge")])
def test_delete_restores_the_name_of_a_renamed_link(dummy: Link) -> None:
    expected = DeleteAttachment(added(), (RemoveLink(10, POD_LINK), RenameLink(5, POD_LINK)))
    assert plan.plan_delete(sandbox(added()), [POD_LINK], [LO, veth(NIC), dummy], deleting_sandbox=False) == [expected]
    bare = DeleteAttachment(added(), (RenameLink(5, POD_LINK),))
    assert plan.plan_delete(sandbox(added()), [POD_LINK], [LO, veth(NIC)], deleting_sandbox=False) == [bare]


def test_delete_of_the_sandbox_ignores_use_by_a_guest() -> None:
    links = (RemoveLink(10, POD_LINK), RenameLink(5, POD_LINK))
    expected = DeleteAttachment(added(), links, tries=plan.DELETE_TRIES_OF_ADDED)
    assert plan.plan_delete(sandbox(added()), None, [LO, *IN_USE["port of the bridge"]], deleting_sandbox=True) == [
        expected
    ]


def test_delete_does_not_touch_a_foreign_link() -> None:
    foreign = veth(POD_LINK, index=77)
    assert plan.plan_delete(sandbox(added()), [POD_LINK], [LO, foreign], deleting_sandbox=False) == [
        DeleteAttachment(added(), with_netns=False, link_gone=True)
    ]
    with pytest.raises(CniError, match="did not make"):
        plan.plan_delete(sandbox(added()), [POD_LINK], [LO, foreign, veth("mine")], deleting_sandbox=False)


def test_delete_detaches_a_link_used_by_the_workload() -> None:
    bonded = [veth("net1", master=9), Link(9, "bond0", "bond")]
    expected = DeleteAttachment(added("net1"), (RenameLink(5, "net1"),))
    assert plan.plan_delete(sandbox(added("net1")), ["net1"], [LO, *bonded], deleting_sandbox=False) == [expected]


def test_delete_refuses_an_ordinal_link_in_use_by_a_guest() -> None:
    links = [veth("net1-nic", master=9), Link(9, "k6t-net1", "bridge"), Link(10, "net1", "dummy")]
    with pytest.raises(CniError, match="still in use"):
        plan.plan_delete(sandbox(added("net1")), ["net1"], [LO, *links], deleting_sandbox=False)


def test_delete_of_an_unrecorded_name_touches_no_link() -> None:
    network = desired().network
    assert plan.plan_delete_unrecorded(network, POD_LINK, AttachmentAttributes(), [LO, veth(POD_LINK)]) == []
    for links in ([LO], None):
        [release] = plan.plan_delete_unrecorded(network, POD_LINK, AttachmentAttributes(), links)
        assert not release.with_netns


UNRECORDED = desired().attachment()
MAC = "02:00:00:00:00:0A"


@pytest.mark.parametrize(
    ("links", "mac", "found"),
    [
        pytest.param([Link(5, POD_LINK, "veth", mac=MAC.lower())], MAC, 5, id="as attached"),
        pytest.param([veth(NIC), Link(10, POD_LINK, "dummy", mac=MAC.lower())], MAC, 5, id="released, with a dummy"),
        pytest.param([veth(NIC)], MAC, 5, id="released"),
        pytest.param([Link(5, POD_LINK, "veth", mac="02:00:00:00:00:0b")], MAC, None, id="another program's"),
        pytest.param([Link(5, POD_LINK, "veth", mac=MAC.lower())], None, None, id="MAC unknown"),
        pytest.param([LO], MAC, None, id="gone"),
    ],
)
def test_the_link_of_an_attachment_without_a_record_is_known_by_its_mac(
    links: list[Link], mac: str | None, found: int | None
) -> None:
    adopted = with_unrecorded_link(UNRECORDED, links, mac)
    assert (adopted.ifindex if adopted is not None else None) == found


def test_an_attachment_without_a_record_is_not_deleted_while_a_guest_uses_it() -> None:
    dummy = Link(10, POD_LINK, "dummy", mac=MAC.lower())
    links = [veth(NIC, master=9), Link(9, BRIDGE, "bridge"), dummy]
    adopted = with_unrecorded_link(UNRECORDED, links, MAC)
    assert adopted is not None
    with pytest.raises(CniError, match="still in use by a guest"):
        plan.plan_delete(sandbox(adopted), [POD_LINK], links, deleting_sandbox=False)
    released = [veth(NIC), dummy]
    expected = DeleteAttachment(adopted, (RemoveLink(10, POD_LINK), RenameLink(5, POD_LINK)))
    assert plan.plan_delete(sandbox(adopted), [POD_LINK], released, deleting_sandbox=False) == [expected]


names = st.sampled_from([POD_LINK, NIC, BRIDGE, "eth0", "other"])
some_links = st.lists(
    st.builds(
        Link,
        st.integers(2, 12),
        names,
        st.sampled_from(["veth", "dummy", "bridge"]),
        master=st.none() | st.integers(2, 12),
    ),
    max_size=5,
    unique_by=(lambda link: link.index, lambda link: link.name),
)


@given(some_links)
def test_delete_touches_only_the_recorded_link_and_its_dummy(links: list[Link]) -> None:
    for deleting_sandbox in (False, True):
        try:
            [action] = plan.plan_delete(sandbox(added()), [POD_LINK], links, deleting_sandbox=deleting_sandbox)
        except CniError:
            continue
        by_index = {link.index: link for link in links}
        for step in action.links:
            link = by_index[step.index]
            if isinstance(step, RenameLink):
                assert (link.index, link.kind) == (5, "veth")
            else:
                assert link.name == POD_LINK
                assert link.index != 5 or link.kind != "veth"
        if not deleting_sandbox:
            assert BRIDGE not in {link.name for link in links}
        after = {link.name: link for link in links if RemoveLink(link.index, link.name) not in action.links}
        if action.with_netns and POD_LINK in after:
            assert after[POD_LINK].index == 5


# ---- CHECK, GC and the pod ---------------------------------------------------------------------------------------


def test_check_runs_plugins_only_for_unchanged_links() -> None:
    assert plan.plan_check(sandbox(added()), None, [LO, veth(POD_LINK)]) == [added()]
    assert plan.plan_check(sandbox(added()), None, [LO, *IN_USE["port of the bridge"]]) == []
    with pytest.raises(CniError, match="is gone"):
        plan.plan_check(sandbox(added()), None, [LO, Link(10, POD_LINK, "dummy")])


def test_check_of_the_sandbox_leaves_out_an_attachment_that_was_not_added() -> None:
    known = sandbox(desired("net1").attachment(), added())
    assert plan.plan_check(known, None, [LO, veth(POD_LINK)]) == [added()]
    assert plan.plan_check(known, ["net1"], [LO, veth(POD_LINK)]) == [desired("net1").attachment()]


def test_the_pod_patch_lists_all_networks_in_order() -> None:
    result = cni.CniResult(
        "1.1.0",
        [cni.CniInterface(POD_LINK, "0A:00:00:00:00:01", 1400, "/ns")],
        [cni.CniIp("10.0.0.5/24", "10.0.0.1", 0)],
        [cni.CniRoute("0.0.0.0/0")],
    )
    attachments = [added("eth0", origin=AttachmentOrigin.CLUSTER, network="pods"), added(result=result)]
    annotations = pod_patch(sandbox(), POD, attachments)["metadata"]["annotations"]
    assert json.loads(annotations["k8s.v1.cni.cncf.io/network-status"]) == [
        {"name": "pods", "interface": "eth0", "default": True, "dns": {}},
        {
            "name": "default/blue",
            "interface": POD_LINK,
            "ips": ["10.0.0.5"],
            "mac": "0A:00:00:00:00:01",
            "mtu": 1400,
            "dns": {},
            "gateway": ["10.0.0.1"],
        },
    ]
    assert json.loads(annotations["hotnic.io/pod-nic.7e0055a6880"]) == {
        "podUID": "uid",
        "sandboxID": "abc",
        "interface": POD_LINK,
        "mac": "0a:00:00:00:00:01",
        "mtu": 1400,
        "ips": ["10.0.0.5/24"],
        "routes": [{"dst": "0.0.0.0/0", "gw": "10.0.0.1"}],
    }


def test_a_pod_nic_record_that_is_too_large_is_left_out() -> None:
    routes = [cni.CniRoute(f"172.16.{i}.0/24", "10.0.0.1") for i in range(250)]
    result = cni.CniResult(
        "1.1.0", [cni.CniInterface(POD_LINK, "0A:00:00:00:00:01", 1400, "/ns")], [cni.CniIp("10.0.0.5/24")], routes
    )
    annotations = pod_patch(sandbox(), POD, [added(result=result)])["metadata"]["annotations"]
    assert list(annotations) == ["k8s.v1.cni.cncf.io/network-status"]


@pytest.mark.parametrize(
    ("uid", "annotations", "fits"),
    [
        ("uid", {}, True),
        ("other", {}, False),
        ("other", {"kubernetes.io/config.source": "api"}, False),
        ("other", {"kubernetes.io/config.source": "file"}, False),
    ],
)
def test_check_pod_refuses_another_pod_of_that_name(uid: str, annotations: dict[str, str], fits: bool) -> None:
    pod = msgspec.convert({"metadata": {"name": "pod", "uid": uid, "annotations": annotations}}, Pod)
    if fits:
        check_pod(pod, PodId("default", "pod", "uid"))
    else:
        with pytest.raises(CniError, match="expected pod UID"):
            check_pod(pod, PodId("default", "pod", "uid"))
    check_pod(pod, PodId("default", "pod"))


def test_gc_refuses_a_missing_list_of_valid_attachments() -> None:
    assert plan.parse_valid_attachments({"cni.dev/attachments": [{"containerID": "a", "ifname": "eth0"}]}) == [
        ("a", "eth0")
    ]
    bad: list[Any] = [{}, {"cni.dev/valid-attachments": None}, {"cni.dev/valid-attachments": [{"ifname": "x"}]}]
    for document in bad:
        with pytest.raises(CniError):
            plan.parse_valid_attachments(document)
