"""What a pod has beside its annotations, as tables: the sandbox's record, marks, and what is not written down yet."""

import json
from typing import Any

import pytest

from schemas.kube import Pod
from schemas.multus import RecordedAttachment, SandboxRecord
from schemas.networks import NetworkSelectionElement
from schemas.operations import HotplugMark, encode, hotplug_mark_key
from services.networks.attachment_settings import of_element
from services.networks.current import Known
from services.networks.plan import Isolation, Observed, Report, asks_for_record, plan
from tests.support.fake_multus import recorded
from tests.support.networks_pods import BLUE, ETH0, NODE, UID, decided, element, entry, mark, pod, short

CLUSTER = recorded("eth0", "cluster", "cluster")
MAC, OTHER_MAC = "02:00:00:00:00:01", "02:00:00:00:00:02"


def asked(link: str, **wish: Any) -> dict[str, str]:
    """A mark that says what was asked."""
    digest = of_element(NetworkSelectionElement("net", **wish))
    return {hotplug_mark_key(link): encode(HotplugMark(pod_uid=UID, interface=link, asked=digest))}


@pytest.mark.parametrize(
    ("of", "attachments", "expected"),
    [
        pytest.param(
            pod("[]", [ETH0, entry("net", "net1")]),
            [CLUSTER, recorded("net1", "default/net", "networks")],
            ["-default/net@net1"],
            id="made with the pod for an element that is gone",
        ),
        pytest.param(
            pod("[]", [ETH0, entry("net", "net1"), entry("net", "ens58")]),
            [CLUSTER, recorded("net1", "default/net", "default"), recorded("ens58", "net", "delegate")],
            ["-default/net@ens58"],
            id="a default network of the node stays, what was hot-plugged goes",
        ),
        pytest.param(
            pod("[]", [entry("net", "eth0")], annotations=mark("eth0")),
            [recorded("eth0", "default/net", "cluster")],
            [],
            id="the cluster network stays, whatever the annotations say",
        ),
        pytest.param(
            pod([element("net", "net1")], [ETH0, entry("node-wide", "net1")]),
            [CLUSTER, recorded("net1", "default/node-wide", "default")],
            ["!InterfaceAddRejected"],
            id="a link that a default network has",
        ),
        pytest.param(
            pod([element("net", "net1")], [ETH0]),
            [CLUSTER, recorded("net1", "default/node-wide", "default")],
            ["!InterfaceAddRejected"],
            id="the same, where the status does not even list it",
        ),
        pytest.param(
            pod("[]", [ETH0]),
            [CLUSTER, recorded("ens58", "blue-net", "delegate")],
            ["-blue-net@ens58"],
            id="hot-plugged, never written down, and wanted no longer",
        ),
        pytest.param(
            pod([element("net", "ens58")], [ETH0]),
            [CLUSTER, recorded("ens58", "blue-net", "delegate")],
            ["+default/net@ens58"],
            id="hot-plugged and never written down: ADD gives its result again",
        ),
        pytest.param(
            pod([element("net", "ens58", mac=MAC)], [ETH0]),
            [CLUSTER, recorded("ens58", "blue-net", "delegate", mac=OTHER_MAC)],
            ["~default/net@ens58"],
            id="the same, from another wish: made anew",
        ),
        pytest.param(
            pod("[]", [ETH0]),
            [CLUSTER, recorded("net1", "default/net", "networks")],
            [],
            id="made with the pod and not in its status: the runtime may be at it",
        ),
        pytest.param(
            pod([element("net", "net1", mac=MAC)], [ETH0, entry("net", "net1")]),
            [CLUSTER, recorded("net1", "default/net", "networks", mac=MAC.upper())],
            [],
            id="made with the pod from the same wish, spelled otherwise",
        ),
        pytest.param(
            pod([element("net", "net1", mac=MAC)], [ETH0, entry("net", "net1")]),
            [CLUSTER, recorded("net1", "default/net", "networks", mac=OTHER_MAC)],
            ["~default/net@net1"],
            id="another mac",
        ),
        pytest.param(
            pod([element("net", "net1", ips=["10.1.1.2/24"])], [ETH0, entry("net", "net1")]),
            [CLUSTER, recorded("net1", "default/net", "networks", ips=["10.1.1.1/24"])],
            ["~default/net@net1"],
            id="another address",
        ),
        pytest.param(
            pod([element("net", "net1", **{"cni-args": {"a": 2}})], [ETH0, entry("net", "net1")]),
            [CLUSTER, recorded("net1", "default/net", "networks", cni_args={"a": 1})],
            ["~default/net@net1"],
            id="other cni-args",
        ),
        pytest.param(
            pod([element("net", "net1")], [ETH0, entry("net", "net1")]),
            [CLUSTER, recorded("net1", "default/net", "networks", mac=MAC)],
            ["~default/net@net1"],
            id="a wish that is taken back",
        ),
        pytest.param(
            pod([element("net", BLUE, mac=MAC)], [ETH0, entry("net", BLUE)]),
            [CLUSTER, recorded(BLUE, "net", "delegate")],
            [f"~default/net@{BLUE}"],
            id="a guest's NIC: multus knows whether it is wired",
        ),
        pytest.param(
            pod([element("net"), element("net")], [ETH0, entry("node-wide", "net1"), entry("net", "net2")]),
            [CLUSTER, recorded("net1", "default/node-wide", "default"), recorded("net2", "default/net", "networks")],
            ["+default/net@net3"],
            id="positions count from behind the default networks",
        ),
    ],
)
def test_the_record_of_the_sandbox_decides(of: Pod, attachments: list[RecordedAttachment], expected: list[str]) -> None:
    known = Known(SandboxRecord(sandbox_id="s1", pod_uid=UID, attachments=attachments))
    assert [short(action) for action in plan(Observed(pod=of, node=NODE, known=known))] == expected


@pytest.mark.parametrize(
    ("of", "expected"),
    [
        pytest.param(
            pod([element("net", "x", mac=MAC)], [entry("net", "x")], annotations=asked("x", mac=OTHER_MAC)),
            ["~default/net@x"],
            id="another mac than the mark says",
        ),
        pytest.param(
            pod([element("net", "x", mac=MAC)], [entry("net", "x")], annotations=asked("x", mac=MAC)),
            [],
            id="the one that the mark says",
        ),
        pytest.param(
            pod([element("net", "x", mac=MAC)], [entry("net", "x")], annotations=mark("x")), [], id="nobody knows"
        ),
        pytest.param(
            pod([element("net", BLUE, mac=MAC)], [entry("net", BLUE)], annotations=asked(BLUE)),
            ["!InterfaceChangeRejected"],
            id="a guest's NIC, and nobody who could tell whether it is wired",
        ),
    ],
)
def test_without_a_record_marks_say_what_was_asked(of: Pod, expected: list[str]) -> None:
    assert decided(of) == expected


@pytest.mark.parametrize(
    ("namespace", "shared", "expected"),
    [
        ("other", {"default"}, ["!InterfaceAddRejected"]),
        ("other", {"default", "other"}, ["+other/net@x"]),
        ("default", set(), ["+default/net@x"]),
    ],
)
def test_namespace_isolation_holds_on_hot_plug(namespace: str, shared: set[str], expected: list[str]) -> None:
    of = pod([element("net", "x") | {"namespace": namespace}], [ETH0])
    isolation = Isolation(on=True, shared=frozenset(shared))
    actions = plan(Observed(pod=of, node=NODE, isolation=isolation))
    assert [short(action) for action in actions] == expected
    assert decided(of) == [f"+{namespace}/net@x"]


def test_isolation_takes_nothing_away() -> None:
    of = pod([element("net", "x") | {"namespace": "other"}], [{"name": "other/net", "interface": "x", "dns": {}}])
    assert plan(Observed(pod=of, node=NODE, isolation=Isolation(on=True))) == []


@pytest.mark.parametrize(
    ("wanted", "present", "expected"),
    [
        ([element("net"), element("net")], [ETH0, entry("net", "net1")], ["+default/net@net2"]),
        ([element("a"), element("b")], [ETH0, entry("b", "net2")], ["+default/a@net1"]),
        ([element("b")], [ETH0, entry("b", "net2")], []),
        ([element("b"), element("c")], [ETH0, entry("b", "net2")], ["!InterfaceAddRejected"]),
        ([element("a", "net2"), element("b")], [ETH0], ["!InterfaceAddRejected", "+default/a@net2"]),
    ],
)
def test_unnamed_elements_get_the_name_that_multus_would_give(
    wanted: list[dict[str, Any]], present: list[dict[str, Any]], expected: list[str]
) -> None:
    assert decided(pod(wanted, present)) == expected


def test_a_name_that_is_taken_comes_with_the_way_out() -> None:
    (report,) = plan(Observed(pod=pod([element("b"), element("c")], [ETH0, entry("b", "net2")]), node=NODE))
    assert isinstance(report, Report)
    assert report.message.endswith('another network; give the element an "interface" of its own')


@pytest.mark.parametrize(
    ("of", "compared", "asks"),
    [
        pytest.param(pod(None, [ETH0]), None, False, id="nothing was ever asked for"),
        pytest.param(pod("[]", [ETH0]), None, True, id="the first look at a pod"),
        pytest.param(pod(None, [ETH0, entry("net", "net1")]), None, True, id="the first look at one with networks"),
        pytest.param(pod([element("net", "x")], [ETH0]), "", False, id="something new"),
        pytest.param(
            pod([element("net", "x")], [ETH0, entry("net", "x")], annotations=asked("x")), "", False, id="marked"
        ),
        pytest.param(pod([element("net", "x")], [ETH0, entry("net", "x")]), "", True, id="made with the pod"),
        pytest.param(pod("[]", [ETH0, entry("net", "x")]), "", True, id="to go, made with the pod"),
        pytest.param(pod("[]", [ETH0, entry("net", "x")]), "[]", False, id="compared before"),
        pytest.param(pod("[]", [ETH0, entry("net", "x")], annotations=mark("x")), "", False, id="to go, marked"),
        pytest.param(pod([element("net")], [ETH0]), json.dumps([element("net")]), True, id="a name to be given"),
        pytest.param(pod("net", phase="Pending"), None, False, id="not running"),
        pytest.param(pod("net", host_network=True), None, False, id="host network"),
        pytest.param(pod("{", [ETH0]), None, False, id="unreadable"),
    ],
)
def test_the_record_is_asked_only_where_it_can_change_the_plan(of: Pod, compared: str | None, asks: bool) -> None:
    assert asks_for_record(Observed(pod=of, node=NODE), compared) is asks


def test_what_was_made_and_not_written_goes_when_it_is_wanted_no_longer() -> None:
    known = Known(unwritten=(("default/net", "ens58"),))
    assert [short(a) for a in plan(Observed(pod=pod("[]", [ETH0]), node=NODE, known=known))] == ["-default/net@ens58"]


def test_what_was_undone_and_is_still_listed_is_made_again_when_it_is_wanted_again() -> None:
    of = pod([element("net", "ens58")], [ETH0, entry("net", "ens58")], annotations=mark("ens58"))
    known = Known(undone=frozenset({"ens58"}))
    actions = plan(Observed(pod=of, node=NODE, known=known))
    assert [short(action) for action in actions] == ["-default/net@ens58", "+default/net@ens58"]
