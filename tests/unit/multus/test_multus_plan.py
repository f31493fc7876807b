"""What multus decides: what is made, kept, refused and undone, from a record and the links of a sandbox."""

import json
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from schemas import cni
from schemas.kube import ObjectMeta, Pod
from services.common.netlink.links import Link
from services.multus import plan
from services.multus.call import PodId
from services.multus.conflist import Attributes, parse
from services.multus.errors import CniError
from services.multus.plan import Attach, Detach, Keep, RemoveLink, RenameLink, Wanted
from services.multus.pod import check_pod, pod_patch
from services.multus.records import Attachment, Owner, Sandbox, State

POD_LINK, NIC, BRIDGE = "pod7e0055a6880", "7e0055a6880-nic", "k6t-7e0055a6880"
POD = Pod(metadata=ObjectMeta(name="pod", namespace="default", uid="uid", resource_version="7"))
LO = Link(1, "lo")


def wanted(ifname: str = POD_LINK, bridge: str = "b", owner: Owner = Owner.DELEGATE, **runtime: Any) -> Wanted:
    network = parse(json.dumps({"cniVersion": "1.0.0", "name": "blue", "type": "bridge", "bridge": bridge}))
    return Wanted(ifname, network, "default/blue", owner, Attributes(runtime))


def added(ifname: str = POD_LINK, index: int = 5, kind: str = "veth", **fields: Any) -> Attachment:
    made = wanted(ifname).attachment()
    return msgspec.structs.replace(made, state=State.ADDED, ifindex=index, kind=kind, **fields)


def sandbox(*attachments: Attachment) -> Sandbox:
    return Sandbox("abc", "/ns", "default", "pod", "uid", attachments)


def veth(name: str, index: int = 5, master: int | None = None) -> Link:
    return Link(index, name, "veth", master=master)


# ---- ADD ---------------------------------------------------------------------------------------------------------


def test_a_free_name_is_attached() -> None:
    assert plan.adding(None, [wanted()], [LO]) == [Attach(wanted())]
    assert plan.adding(sandbox(added("net1")), [wanted()], [LO, veth("net1")]) == [Attach(wanted())]


def test_the_same_attachment_is_kept_also_when_it_is_wired() -> None:
    kept = [Keep(added())]
    assert plan.adding(sandbox(added()), [wanted()], [LO, veth(POD_LINK)]) == kept
    wired = [LO, veth(NIC, master=9), Link(9, BRIDGE, "bridge"), Link(10, POD_LINK, "dummy")]
    assert plan.adding(sandbox(added()), [wanted()], wired) == kept


@pytest.mark.parametrize("other", [wanted(bridge="other"), wanted(mac="02:00:00:00:00:01")])
def test_other_settings_for_a_standing_attachment_are_refused(other: Wanted) -> None:
    with pytest.raises(CniError, match=f"validateIfName: interface name {POD_LINK} already exists") as caught:
        plan.adding(sandbox(added()), [other], [LO, veth(POD_LINK)])
    assert caught.value.code == cni.Code.INVALID_CONFIG


def test_a_link_of_somebody_else_and_a_name_asked_for_twice_are_refused() -> None:
    with pytest.raises(CniError, match="already exists"):
        plan.adding(None, [wanted()], [LO, veth(POD_LINK)])
    with pytest.raises(CniError, match="already exists"):
        plan.adding(None, [wanted(), wanted()], [LO])


def test_a_lost_link_and_an_add_that_was_cut_off_are_undone_and_made_anew() -> None:
    lost = added()
    assert plan.adding(sandbox(lost), [wanted()], [LO]) == [Detach(lost), Attach(wanted())]
    begun = wanted().attachment()
    assert plan.adding(sandbox(begun), [wanted()], [LO, veth(POD_LINK)]) == [Detach(begun), Attach(wanted())]
    changed = wanted(bridge="other")
    assert plan.adding(sandbox(lost), [changed], [LO]) == [Detach(lost), Attach(changed)]


# ---- DEL ---------------------------------------------------------------------------------------------------------


def test_all_are_undone_the_last_first() -> None:
    known = sandbox(added("eth0", 2), added("net1", 3), added("net2", 4))
    links = [LO, veth("eth0", 2), veth("net1", 3), veth("net2", 4)]
    actions = plan.deleting(known, None, links, going=True)
    assert [(a.attachment.ifname, a.links, a.with_netns) for a in actions] == [
        ("net2", (), True),
        ("net1", (), True),
        ("eth0", (), True),
    ]
    assert plan.deleting(known, ["net1"], links, going=False) == [Detach(added("net1", 3))]


def test_without_a_namespace_only_what_is_held_elsewhere_is_freed() -> None:
    assert plan.deleting(sandbox(added()), None, None, going=True) == [Detach(added(), with_netns=False)]


WIRED = {
    "port of the bridge": [veth(NIC, master=9), Link(9, BRIDGE, "bridge"), Link(10, POD_LINK, "dummy")],
    "freed, bridge stands": [veth(NIC), Link(9, BRIDGE, "bridge"), Link(10, POD_LINK, "dummy")],
    "wiring has just begun": [veth(POD_LINK), Link(9, BRIDGE, "bridge")],
    "enslaved elsewhere": [veth(POD_LINK, master=9), Link(9, "other", "bridge")],
    "link lost under the guest": [Link(9, BRIDGE, "bridge"), Link(10, POD_LINK, "dummy")],
}


@pytest.mark.parametrize("links", WIRED.values(), ids=WIRED.keys())
def test_a_link_that_a_guest_uses_is_not_undone(links: list[Link]) -> None:
    with pytest.raises(CniError, match="still in use by a guest") as caught:
        plan.deleting(sandbox(added()), [POD_LINK], [LO, *links], going=False)
    assert caught.value.code == cni.Code.TRY_AGAIN_LATER


@pytest.mark.parametrize("stand_in", [Link(10, POD_LINK, "dummy"), Link(10, POD_LINK, "bridge")])
def test_a_link_that_is_only_renamed_gets_its_name_back(stand_in: Link) -> None:
    expected = Detach(added(), (RemoveLink(10, POD_LINK), RenameLink(5, POD_LINK)))
    assert plan.deleting(sandbox(added()), [POD_LINK], [LO, veth(NIC), stand_in], going=False) == [expected]
    bare = Detach(added(), (RenameLink(5, POD_LINK),))
    assert plan.deleting(sandbox(added()), [POD_LINK], [LO, veth(NIC)], going=False) == [bare]


def test_the_end_of_the_sandbox_overrides_the_guest() -> None:
    expected = Detach(added(), (RemoveLink(10, POD_LINK), RenameLink(5, POD_LINK)))
    assert plan.deleting(sandbox(added()), None, [LO, *WIRED["port of the bridge"]], going=True) == [expected]


def test_a_stranger_under_the_name_is_not_undone() -> None:
    stranger = veth(POD_LINK, index=77)
    assert plan.deleting(sandbox(added()), [POD_LINK], [LO, stranger], going=False) == [
        Detach(added(), with_netns=False)
    ]
    with pytest.raises(CniError, match="did not make"):
        plan.deleting(sandbox(added()), [POD_LINK], [LO, stranger, veth("mine")], going=False)


def test_a_link_used_by_the_workload_itself_is_undone() -> None:
    bonded = [veth("net1", master=9), Link(9, "bond0", "bond")]
    expected = Detach(added("net1"), (RenameLink(5, "net1"),))
    assert plan.deleting(sandbox(added("net1")), ["net1"], [LO, *bonded], going=False) == [expected]


def test_ordinal_names_are_guarded_too() -> None:
    links = [veth("net1-nic", master=9), Link(9, "k6t-net1", "bridge"), Link(10, "net1", "dummy")]
    with pytest.raises(CniError, match="still in use"):
        plan.deleting(sandbox(added("net1")), ["net1"], [LO, *links], going=False)


def test_an_unrecorded_name_frees_at_most_a_lease() -> None:
    network = wanted().network
    assert plan.releasing(network, POD_LINK, Attributes(), [LO, veth(POD_LINK)]) == []
    for links in ([LO], None):
        [release] = plan.releasing(network, POD_LINK, Attributes(), links)
        assert not release.with_netns


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
def test_no_link_but_ours_and_its_stand_in_is_ever_touched(links: list[Link]) -> None:
    for going in (False, True):
        try:
            [action] = plan.deleting(sandbox(added()), [POD_LINK], links, going=going)
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
        if not going:
            assert BRIDGE not in {link.name for link in links}
        after = {link.name: link for link in links if RemoveLink(link.index, link.name) not in action.links}
        if action.with_netns and POD_LINK in after:
            assert after[POD_LINK].index == 5


# ---- the rest ----------------------------------------------------------------------------------------------------


def test_check_asks_the_plugin_only_about_links_that_stand_as_it_left_them() -> None:
    assert plan.checking(sandbox(added()), None, [LO, veth(POD_LINK)]) == [added()]
    assert plan.checking(sandbox(added()), None, [LO, *WIRED["port of the bridge"]]) == []
    with pytest.raises(CniError, match="is gone"):
        plan.checking(sandbox(added()), None, [LO, Link(10, POD_LINK, "dummy")])


def test_the_pod_is_told_everything_in_order() -> None:
    result = cni.CniResult(
        "1.1.0",
        [cni.CniInterface(POD_LINK, "0A:00:00:00:00:01", 1400, "/ns")],
        [cni.Ip("10.0.0.5/24", "10.0.0.1", 0)],
        [cni.CniRoute("0.0.0.0/0")],
    )
    attachments = [added("eth0", owner=Owner.CLUSTER, network="pods"), added(result=result)]
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


def test_a_record_that_nobody_would_read_is_not_written() -> None:
    routes = [cni.CniRoute(f"172.16.{i}.0/24", "10.0.0.1") for i in range(250)]
    result = cni.CniResult(
        "1.1.0", [cni.CniInterface(POD_LINK, "0A:00:00:00:00:01", 1400, "/ns")], [cni.Ip("10.0.0.5/24")], routes
    )
    annotations = pod_patch(sandbox(), POD, [added(result=result)])["metadata"]["annotations"]
    assert list(annotations) == ["k8s.v1.cni.cncf.io/network-status"]


@pytest.mark.parametrize(
    ("uid", "annotations", "fits"),
    [
        ("uid", {}, True),
        ("other", {}, False),
        ("other", {"kubernetes.io/config.source": "api"}, False),
        ("other", {"kubernetes.io/config.source": "file"}, True),
    ],
)
def test_the_pod_must_be_the_one_the_runtime_means(uid: str, annotations: dict[str, str], fits: bool) -> None:
    pod = msgspec.convert({"metadata": {"name": "pod", "uid": uid, "annotations": annotations}}, Pod)
    if fits:
        check_pod(pod, PodId("default", "pod", "uid"))
    else:
        with pytest.raises(CniError, match="expected pod UID"):
            check_pod(pod, PodId("default", "pod", "uid"))
    check_pod(pod, PodId("default", "pod"))


def test_gc_without_a_list_is_refused() -> None:
    assert plan.valid_attachments({"cni.dev/attachments": [{"containerID": "a", "ifname": "eth0"}]}) == [("a", "eth0")]
    bad: list[Any] = [{}, {"cni.dev/valid-attachments": None}, {"cni.dev/valid-attachments": [{"ifname": "x"}]}]
    for document in bad:
        with pytest.raises(CniError):
            plan.valid_attachments(document)
