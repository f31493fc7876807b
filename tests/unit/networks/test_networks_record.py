"""The plan with knowledge besides the annotations, as tables: the sandbox's record, marks, unwritten attachments."""

import json
from typing import Any

import pytest

from schemas.kubernetes.networks import NetworkSelectionElement
from schemas.kubernetes.objects import Pod
from schemas.kubernetes.operations import HotplugMark, encode_annotation, hotplug_mark_key
from schemas.multus import RecordedAttachment
from services.networks.plan import needs_sandbox_record, plan
from services.networks.plan.actions import NamespaceIsolation, RecordEvent
from services.networks.plan.attachments import element_digest
from tests.support.node.fake_multus import recorded
from tests.support.observed.networks_pods import BLUE, ETH0, UID, element, entry, mark, observed, planned, pod

CLUSTER = recorded("eth0", "cluster", "cluster")
MAC, OTHER_MAC = "02:00:00:00:00:01", "02:00:00:00:00:02"


def marked(link: str, **settings: Any) -> dict[str, str]:
    """Return a mark with the digest of these settings."""
    digest = element_digest(NetworkSelectionElement("net", **settings))
    return {hotplug_mark_key(link): encode_annotation(HotplugMark(pod_uid=UID, interface=link, settings_digest=digest))}


@pytest.mark.parametrize(
    ("of", "attachments", "expected"),
    [
        pytest.param(
            pod("[]", [ETH0, entry("net", "net1")]),
            [CLUSTER, recorded("net1", "default/net", "networks")],
            ["-default/net@net1"],
            id="made at pod creation for an element that was removed",
        ),
        pytest.param(
            pod("[]", [ETH0, entry("net", "net1"), entry("net", "ens58")]),
            [CLUSTER, recorded("net1", "default/net", "default"), recorded("ens58", "net", "delegate")],
            ["-default/net@ens58"],
            id="a default network of the node stays, a hot-plugged one is detached",
        ),
        pytest.param(
            pod("[]", [entry("net", "eth0")], annotations=mark("eth0")),
            [recorded("eth0", "default/net", "cluster")],
            [],
            id="the cluster network stays despite a mark",
        ),
        pytest.param(
            pod([element("net", "net1")], [ETH0, entry("node-wide", "net1")]),
            [CLUSTER, recorded("net1", "default/node-wide", "default")],
            ["!InterfaceAddRejected"],
            id="a link of a default network",
        ),
        pytest.param(
            pod([element("net", "net1")], [ETH0]),
            [CLUSTER, recorded("net1", "default/node-wide", "default")],
            ["!InterfaceAddRejected"],
            id="a link of a default network that the status does not list",
        ),
        pytest.param(
            pod("[]", [ETH0]),
            [CLUSTER, recorded("ens58", "blue-net", "delegate")],
            ["-blue-net@ens58"],
            id="hot-plugged, unwritten, without an element",
        ),
        pytest.param(
            pod([element("net", "ens58")], [ETH0]),
            [CLUSTER, recorded("ens58", "blue-net", "delegate")],
            ["+default/net@ens58"],
            id="hot-plugged and unwritten: ADD returns its result again",
        ),
        pytest.param(
            pod([element("net", "ens58", mac=MAC)], [ETH0]),
            [CLUSTER, recorded("ens58", "blue-net", "delegate", mac=OTHER_MAC)],
            ["~default/net@ens58"],
            id="hot-plugged and unwritten with other settings: replaced",
        ),
        pytest.param(
            pod("[]", [ETH0]),
            [CLUSTER, recorded("net1", "default/net", "networks")],
            [],
            id="made at pod creation and not in the status: the runtime may not have finished",
        ),
        pytest.param(
            pod([element("net", "net1", mac=MAC)], [ETH0, entry("net", "net1")]),
            [CLUSTER, recorded("net1", "default/net", "networks", mac=MAC.upper())],
            [],
            id="made at pod creation with the same settings in another spelling",
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
            pod(
                [element("ib", BLUE, **{"cni-args": {"guid": "02:00:00:00:00:00:00:11", "ib": True}})],
                [ETH0, entry("ib", BLUE)],
            ),
            [CLUSTER, recorded(BLUE, "default/ib", "networks", ifindex=0)],
            [],
            id="another controller has added cni-args to an attachment in use (kubevirt#15480)",
        ),
        pytest.param(
            pod([element("ib", BLUE, mac=MAC)], [ETH0, entry("ib", BLUE)]),
            [CLUSTER, recorded(BLUE, "default/ib", "networks", ifindex=0)],
            ["!InterfaceChangeRejected"],
            id="a changed device without a link: nothing shows whether a guest uses it",
        ),
        pytest.param(
            pod([element("net", "net1", mac=MAC, ips=["FD00:0::1/64"])], [ETH0, entry("net", "net1")]),
            [CLUSTER, recorded("net1", "default/net", "networks", mac=MAC.replace(":", "-"), ips=["fd00::1/64"])],
            [],
            id="another notation",
        ),
        pytest.param(
            pod([element("net", "net1")], [ETH0, entry("net", "net1")]),
            [CLUSTER, recorded("net1", "default/net", "networks", mac=MAC)],
            ["~default/net@net1"],
            id="a setting was removed",
        ),
        pytest.param(
            pod([element("net", BLUE, mac=MAC)], [ETH0, entry("net", BLUE)]),
            [CLUSTER, recorded(BLUE, "net", "delegate")],
            [f"~default/net@{BLUE}"],
            id="a NIC of a guest: multus knows whether it is bridged",
        ),
        pytest.param(
            pod([element("net"), element("net")], [ETH0, entry("node-wide", "net1"), entry("net", "net2")]),
            [CLUSTER, recorded("net1", "default/node-wide", "default"), recorded("net2", "default/net", "networks")],
            ["+default/net@net3"],
            id="positions start after the default networks",
        ),
    ],
)
def test_plan_with_a_sandbox_record(of: Pod, attachments: list[RecordedAttachment], expected: list[str]) -> None:
    assert planned(of, record=attachments) == expected


@pytest.mark.parametrize(
    ("of", "expected"),
    [
        pytest.param(
            pod([element("net", "x", mac=MAC)], [entry("net", "x")], annotations=marked("x", mac=OTHER_MAC)),
            ["~default/net@x"],
            id="another MAC than in the mark",
        ),
        pytest.param(
            pod(
                [element("net", "x", mac=MAC.replace(":", "-"), **{"cni-args": {"guid": "1"}})],
                [entry("net", "x")],
                annotations=marked("x", mac=MAC),
            ),
            [],
            id="another notation and more cni-args than in the mark",
        ),
        pytest.param(
            pod([element("net", "x", mac=MAC)], [entry("net", "x")], annotations=marked("x", mac=MAC)),
            [],
            id="the MAC of the mark",
        ),
        pytest.param(
            pod([element("net", "x", mac=MAC)], [entry("net", "x")], annotations=mark("x")), [], id="settings unknown"
        ),
        pytest.param(
            pod([element("net", BLUE, mac=MAC)], [entry("net", BLUE)], annotations=marked(BLUE)),
            ["!InterfaceChangeRejected"],
            id="a NIC of a guest without a record: it may be bridged",
        ),
    ],
)
def test_without_a_record_marks_say_what_was_asked(of: Pod, expected: list[str]) -> None:
    assert planned(of) == expected


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
    isolation = NamespaceIsolation(enabled=True, global_namespaces=frozenset(shared))
    assert planned(of, isolation=isolation) == expected
    assert planned(of) == [f"+{namespace}/net@x"]


def test_isolation_detaches_nothing() -> None:
    of = pod([element("net", "x") | {"namespace": "other"}], [{"name": "other/net", "interface": "x", "dns": {}}])
    isolation = NamespaceIsolation(enabled=True, global_namespaces=frozenset({"default"}))
    assert planned(of, isolation=isolation) == []


@pytest.mark.parametrize(
    ("desired", "present", "expected"),
    [
        ([element("net"), element("net")], [ETH0, entry("net", "net1")], ["+default/net@net2"]),
        ([element("a"), element("b")], [ETH0, entry("b", "net2")], ["+default/a@net1"]),
        ([element("b")], [ETH0, entry("b", "net2")], []),
        ([element("b"), element("c")], [ETH0, entry("b", "net2")], ["!InterfaceAddRejected"]),
        ([element("a", "net2"), element("b")], [ETH0], ["!InterfaceAddRejected", "+default/a@net2"]),
    ],
)
def test_unnamed_elements_get_the_name_that_multus_would_give(
    desired: list[dict[str, Any]], present: list[dict[str, Any]], expected: list[str]
) -> None:
    assert planned(pod(desired, present)) == expected


def test_message_for_a_taken_name_contains_a_hint() -> None:
    (event,) = plan(observed(pod([element("b"), element("c")], [ETH0, entry("b", "net2")])))
    assert isinstance(event, RecordEvent)
    assert event.message.endswith('another network; set "interface" in the element')


@pytest.mark.parametrize(
    ("of", "compared", "needed"),
    [
        pytest.param(pod(None, [ETH0]), None, False, id="no networks at all"),
        pytest.param(pod("[]", [ETH0]), None, True, id="first run for a pod"),
        pytest.param(pod(None, [ETH0, entry("net", "net1")]), None, True, id="first run for a pod with networks"),
        pytest.param(pod([element("net", "x")], [ETH0]), "", False, id="a new element"),
        pytest.param(
            pod([element("net", "x")], [ETH0, entry("net", "x")], annotations=marked("x")), "", False, id="marked"
        ),
        pytest.param(pod([element("net", "x")], [ETH0, entry("net", "x")]), "", True, id="made at pod creation"),
        pytest.param(pod("[]", [ETH0, entry("net", "x")]), "", True, id="to be detached, made at pod creation"),
        pytest.param(pod("[]", [ETH0, entry("net", "x")]), "[]", False, id="compared before"),
        pytest.param(
            pod("[]", [ETH0, entry("net", "x")], annotations=mark("x")), "", False, id="to be detached, marked"
        ),
        pytest.param(pod([element("net")], [ETH0]), json.dumps([element("net")]), True, id="an unnamed element"),
        pytest.param(pod("net", phase="Pending"), None, False, id="not running"),
        pytest.param(pod("net", host_network=True), None, False, id="host network"),
        pytest.param(pod("{", [ETH0]), None, False, id="malformed annotation"),
    ],
)
def test_record_is_needed_only_if_it_can_change_the_plan(of: Pod, compared: str | None, needed: bool) -> None:
    assert needs_sandbox_record(observed(of), compared) is needed


def test_unwritten_attachment_without_an_element_is_detached() -> None:
    assert planned(pod("[]", [ETH0]), unwritten=[("default/net", "ens58")]) == ["-default/net@ens58"]


def test_detached_link_that_is_still_listed_is_attached_again() -> None:
    of = pod([element("net", "ens58")], [ETH0, entry("net", "ens58")], annotations=mark("ens58"))
    assert planned(of, detached_links=["ens58"]) == ["-default/net@ens58", "+default/net@ens58"]
