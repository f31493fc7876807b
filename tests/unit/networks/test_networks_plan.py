"""What is attached and detached, as tables: desired (annotation) against present (network-status)."""

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from schemas.kube import Pod
from schemas.operations import (
    Operation,
    derived_id,
    encode,
    operation_key,
)
from schemas.stages import OperationKind
from services.networks.plan import Attach, Detach, Observed, plan
from tests.support.networks_pods import BLUE, ETH0, NODE, UID, decided, element, entry, mark, nic_record, pod


@pytest.mark.parametrize(
    ("of", "expected"),
    [
        pytest.param(pod(), [], id="no annotations at all"),
        pytest.param(pod(""), [], id="an empty networks annotation"),
        pytest.param(pod("[]", [ETH0]), [], id="an empty list"),
        pytest.param(
            pod([element("net", "net1"), element("net", "ens58")], [ETH0, entry("net", "net1")]),
            ["+default/net@ens58"],
            id="a named element is added beside one that is there",
        ),
        pytest.param(pod("net@ens58", [ETH0]), ["+default/net@ens58"], id="the short form, its namespace the pod's"),
        pytest.param(pod("other/net@ens58", [ETH0]), ["+other/net@ens58"], id="a namespace of its own"),
        pytest.param(
            pod([element("net", "ens58", mac="02:03:04:05:06:07")], None),
            ["+default/net@ens58"],
            id="a pod that has no status at all",
        ),
        pytest.param(
            pod([element("b", "b1"), element("a", "a1")], [ETH0]),
            ["+default/b@b1", "+default/a@a1"],
            id="added in the annotation's order",
        ),
        pytest.param(
            pod([element("net", "ens58")], [ETH0, entry("net", "ens58", ips=["10.1.1.9"])]), [], id="as desired"
        ),
        pytest.param(
            pod(
                [element("net", "x", ips=["10.1.1.1/24"])],
                [entry("net", "x", ips=["10.9.9.9"], mac="02:00:00:00:00:09")],
            ),
            [],
            id="addresses and MACs are not compared",
        ),
        pytest.param(
            pod("[]", [ETH0, entry("net", "ens58"), entry("net", "ens59")], annotations=mark("ens59") | mark("ens58")),
            ["-default/net@ens58", "-default/net@ens59"],
            id="what was attached at run time is removed, in the status' order",
        ),
        pytest.param(
            pod(None, [ETH0, entry("net", "ens58")], annotations=mark("ens58")),
            ["-default/net@ens58"],
            id="the whole annotation is gone",
        ),
        pytest.param(
            pod([element("net", "eth321")], [ETH0, entry("net", "ens58")], annotations=mark("ens58")),
            ["+default/net@eth321", "-default/net@ens58"],
            id="one edit adds and removes: the new one first",
        ),
        pytest.param(
            pod([element("other", "ens58")], [ETH0, entry("net", "ens58")], annotations=mark("ens58")),
            ["-default/net@ens58", "+default/other@ens58"],
            id="a link changes its network: the old one first",
        ),
        pytest.param(
            pod("[]", [ETH0, entry("node-wide", "net1")]), [], id="a default network of the node is not ours to remove"
        ),
        pytest.param(
            pod("[]", [ETH0, entry("net", "ens58")], annotations=mark("ens58", "another pod")),
            [],
            id="a mark of another pod says nothing",
        ),
        pytest.param(
            pod("[]", [entry("net", "eth0", default=True)], annotations=mark("eth0")),
            [],
            id="the default network is never removed",
        ),
        pytest.param(
            pod("[]", [{"name": "from-a-file", "interface": "ens58", "dns": {}}], annotations=mark("ens58")),
            [],
            id="a network that is no NAD is never removed",
        ),
        pytest.param(
            pod("[]", [ETH0, entry("net", BLUE)], annotations=nic_record("blue")),
            [f"-default/net@{BLUE}"],
            id="a guest's NIC by its record",
        ),
        pytest.param(
            pod("[]", [ETH0, entry("net", BLUE)], annotations=nic_record("blue", "another pod")),
            [],
            id="a stale record",
        ),
        pytest.param(pod("[]", [ETH0, entry("net", BLUE)]), [], id="a hashed name alone proves nothing"),
        pytest.param(
            pod([element("net", BLUE)], [ETH0, entry("net", BLUE)], annotations=nic_record("blue")),
            [],
            id="never removed while its element stands",
        ),
        pytest.param(
            pod([element("net", "ens58")], [entry("net", "ens58")], deletionTimestamp="2026-01-01T00:00:00Z"),
            [],
            id="terminating, as desired",
        ),
        pytest.param(
            pod("net@a", [], deletionTimestamp="2026-01-01T00:00:00Z"), [], id="terminating pods are left alone"
        ),
        pytest.param(pod("net@a", [], phase="Pending"), [], id="not running yet: multus reads the annotation itself"),
        pytest.param(pod("net@a", [], phase="Succeeded"), [], id="ended"),
        pytest.param(pod("net@a", [], node="node2"), [], id="of another node"),
        pytest.param(pod("net@a", host_network=True), ["!InterfaceAddRejected"], id="host network"),
        pytest.param(pod(None, host_network=True), [], id="host network that asks for nothing"),
        pytest.param(
            pod([element("net"), element("net", "ens58")], [ETH0, entry("net", "net1")]),
            ["+default/net@ens58"],
            id="an unnamed element that multus attached holds nothing up",
        ),
        pytest.param(
            pod([element("net"), element("net", "ens58")], [ETH0]),
            ["+default/net@ens58", "+default/net@net1"],
            id="an unnamed element that came later gets the name of its position",
        ),
        pytest.param(
            pod([element("net")], [ETH0, entry("net", "ens58")], annotations=mark("ens58")),
            ["+default/net@net1", "-default/net@ens58"],
            id="an unnamed element does not keep a named attachment",
        ),
        pytest.param(
            pod([element("net", "net1")], [ETH0, entry("net", "net1")]),
            [],
            id="naming an element later changes nothing",
        ),
        pytest.param(
            pod([element("a", "x"), element("b", "x")], []),
            ["!InterfaceAddRejected", "+default/a@x"],
            id="one link asked for twice: the first has it",
        ),
        pytest.param(
            pod([element("net", "eth0")], [ETH0]), ["!InterfaceAddRejected"], id="a link that the cluster network has"
        ),
        pytest.param(
            pod([element("net", "net1")], [ETH0, entry("node-wide", "net1")]),
            ["!InterfaceAddRejected"],
            id="a link that an attachment has which is not ours",
        ),
        pytest.param(pod("net@a@b", [ETH0]), ["!UnreadableNetworks"], id="a malformed networks annotation"),
        pytest.param(pod('[{"name":', [ETH0]), ["!UnreadableNetworks"], id="broken JSON"),
        pytest.param(pod([element("net", "x" * 16)], []), ["!UnreadableNetworks"], id="a link name too long"),
        pytest.param(pod("net@a", "{}"), ["!UnreadableNetworks"], id="a malformed network-status"),
    ],
)
def test_decisions(of: Pod, expected: list[str]) -> None:
    assert decided(of) == expected


def test_operation_of_a_guests_nic_is_the_annotated_one() -> None:
    written = Operation(
        id="op1", kind=OperationKind.PLUG, interface="blue", traceparent="00-" + "1" * 32 + "-" + "2" * 16 + "-01"
    )
    (action,) = plan(
        Observed(pod=pod([element("net", BLUE)], [], annotations={operation_key("blue"): encode(written)}), node=NODE)
    )
    assert isinstance(action, Attach)
    assert action.operation == written


@pytest.mark.parametrize(
    "annotation",
    [
        pytest.param({}, id="absent"),
        pytest.param({operation_key("blue"): "{"}, id="unreadable"),
        pytest.param(
            {operation_key("blue"): encode(Operation(id="x", kind=OperationKind.UNPLUG, interface="blue"))},
            id="other kind",
        ),
        pytest.param(
            {operation_key("blue"): encode(Operation(id="x", kind=OperationKind.PLUG, interface="red"))}, id="other NIC"
        ),
    ],
)
def test_without_an_operation_everyone_derives_the_same(annotation: dict[str, str]) -> None:
    (action,) = plan(Observed(pod=pod([element("net", BLUE)], [], annotations=annotation), node=NODE))
    assert isinstance(action, Attach)
    assert action.operation == Operation(
        id=derived_id(UID, BLUE, OperationKind.PLUG, 0), kind=OperationKind.PLUG, interface=BLUE
    )


def test_released_unplug_is_carried_out_as_its_operation() -> None:
    written = Operation(id="op2", kind=OperationKind.UNPLUG, interface="blue", released=UID)
    of = pod("[]", [entry("net", BLUE)], annotations={operation_key("blue"): encode(written)})
    (action,) = plan(Observed(pod=of, node=NODE))
    assert isinstance(action, Detach)
    assert action.operation == written


NAMES = st.sampled_from(["a", "b"])
LINKS = st.sampled_from([None, "eth0", "net1", "net2", "ens1", "ens2", BLUE])
WANTED = st.lists(st.builds(element, NAMES, LINKS), max_size=5)
PRESENT = st.lists(
    st.builds(entry, NAMES, LINKS.filter(bool), default=st.booleans()), max_size=5, unique_by=lambda e: e["interface"]
)
OURS = st.sets(st.sampled_from(["eth0", "net1", "ens1", "ens2", BLUE]))


@given(WANTED, PRESENT, OURS)
def test_following_the_plan_ends(wanted: list[dict[str, Any]], present: list[dict[str, Any]], ours: set[str]) -> None:
    """Carried out, the plan leaves nothing to do, touched no default entry, and held every link name only once."""
    marks = {key: value for link in ours for key, value in mark(link).items()}
    now = list(present)
    for action in plan(Observed(pod=pod(wanted, present, annotations=marks), node=NODE)):
        if isinstance(action, Attach):
            assert action.link not in {e["interface"] for e in now}
            now.append({"name": action.network, "interface": action.link, "dns": {}})
        elif isinstance(action, Detach):
            gone = [e for e in now if e["interface"] == action.link and not e["default"]]
            assert len(gone) == 1
            assert action.link in ours
            now.remove(gone[0])
    assert [e for e in now if e.get("default")] == [e for e in present if e["default"]]
    again = decided(pod(wanted, now, annotations=marks))
    assert [step for step in again if not step.startswith("!")] == []
