"""The plan as a table: the desired networks annotation against the present network-status."""

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from schemas.kubernetes.objects import Pod
from schemas.kubernetes.operations import (
    Operation,
    derive_operation_id,
    encode_annotation,
    is_hashed,
    operation_key,
)
from schemas.stages import OperationKind
from services.networks.plan import plan
from services.networks.plan.actions import Attach, Detach
from tests.support.observed.networks_pods import (
    BLUE,
    ETH0,
    UID,
    element,
    entry,
    mark,
    nic_record,
    observed,
    planned,
    pod,
)


@pytest.mark.parametrize(
    ("of", "expected"),
    [
        pytest.param(pod(), [], id="no annotations at all"),
        pytest.param(pod(""), [], id="an empty networks annotation"),
        pytest.param(pod("[]", [ETH0]), [], id="an empty list"),
        pytest.param(
            pod([element("net", "net1"), element("net", "ens58")], [ETH0, entry("net", "net1")]),
            ["+default/net@ens58"],
            id="a named element is added beside an attached one",
        ),
        pytest.param(pod("net@ens58", [ETH0]), ["+default/net@ens58"], id="the short form uses the pod's namespace"),
        pytest.param(pod("other/net@ens58", [ETH0]), ["+other/net@ens58"], id="explicit namespace"),
        pytest.param(
            pod([element("net", "ens58", mac="02:03:04:05:06:07")], None),
            ["+default/net@ens58"],
            id="a pod without network-status",
        ),
        pytest.param(
            pod([element("b", "b1"), element("a", "a1")], [ETH0]),
            ["+default/b@b1", "+default/a@a1"],
            id="added in the annotation's order",
        ),
        pytest.param(
            pod([element("net", "ens58")], [ETH0, entry("net", "ens58", ips=["10.1.1.9"])]),
            [],
            id="desired state reached",
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
            id="hot-plugged networks are removed in the order of the status",
        ),
        pytest.param(
            pod(None, [ETH0, entry("net", "ens58")], annotations=mark("ens58")),
            ["-default/net@ens58"],
            id="the annotation was removed",
        ),
        pytest.param(
            pod([element("net", "eth321")], [ETH0, entry("net", "ens58")], annotations=mark("ens58")),
            ["+default/net@eth321", "-default/net@ens58"],
            id="one edit adds and removes: attach first",
        ),
        pytest.param(
            pod([element("other", "ens58")], [ETH0, entry("net", "ens58")], annotations=mark("ens58")),
            ["-default/net@ens58", "+default/other@ens58"],
            id="a link changes its network: detach first",
        ),
        pytest.param(
            pod("[]", [ETH0, entry("node-wide", "net1")]),
            [],
            id="a default network of the node is not removed",
        ),
        pytest.param(
            pod("[]", [entry("net", "eth0", default=True)], annotations=mark("eth0")),
            [],
            id="the default network is never removed",
        ),
        pytest.param(
            pod("[]", [{"name": "from-a-file", "interface": "ens58", "dns": {}}], annotations=mark("ens58")),
            [],
            id="a network without a NAD is never removed",
        ),
        pytest.param(
            pod("[]", [ETH0, entry("net", BLUE)], annotations=nic_record("blue")),
            [f"-default/net@{BLUE}"],
            id="a NIC with a pod NIC record is removed",
        ),
        pytest.param(
            pod("[]", [ETH0, entry("net", "ens58")], annotations=mark("ens58", "another pod")),
            [],
            id="a mark of another pod does not count",
        ),
        pytest.param(
            pod("[]", [ETH0, entry("net", BLUE)]),
            [f"-default/net@{BLUE}"],
            id="a hashed name shows that the annotation requested it",
        ),
        pytest.param(
            pod([element("net", BLUE)], [ETH0, entry("net", BLUE)], annotations=nic_record("blue")),
            [],
            id="not removed while its element exists",
        ),
        pytest.param(
            pod([element("net", "ens58")], [entry("net", "ens58")], deletionTimestamp="2026-01-01T00:00:00Z"),
            [],
            id="terminating, desired state reached",
        ),
        pytest.param(
            pod("net@a", [], deletionTimestamp="2026-01-01T00:00:00Z"), [], id="terminating pods are left alone"
        ),
        pytest.param(pod("net@a", [], phase="Pending"), [], id="pending: multus reads the annotation itself"),
        pytest.param(pod("net@a", [], phase="Succeeded"), [], id="finished"),
        pytest.param(pod("net@a", [], node="node2"), [], id="on another node"),
        pytest.param(pod("net@a", host_network=True), ["!InterfaceAddRejected"], id="host network"),
        pytest.param(pod(None, host_network=True), [], id="host network without an annotation"),
        pytest.param(
            pod([element("net"), element("net", "ens58")], [ETH0, entry("net", "net1")]),
            ["+default/net@ens58"],
            id="an unnamed element that multus attached does not block others",
        ),
        pytest.param(
            pod([element("net"), element("net", "ens58")], [ETH0]),
            ["+default/net@ens58", "+default/net@net1"],
            id="an unnamed element that was added later gets the name of its position",
        ),
        pytest.param(
            pod([element("net")], [ETH0, entry("net", "ens58")], annotations=mark("ens58")),
            ["+default/net@net1", "-default/net@ens58"],
            id="an unnamed element does not match a named attachment",
        ),
        pytest.param(
            pod([element("net", "net1")], [ETH0, entry("net", "net1")]),
            [],
            id="adding the name to an element changes nothing",
        ),
        pytest.param(
            pod([element("a", "x"), element("b", "x")], []),
            ["!InterfaceAddRejected", "+default/a@x"],
            id="a link requested twice: the first element gets it",
        ),
        pytest.param(
            pod([element("net", "eth0")], [ETH0]), ["!InterfaceAddRejected"], id="a link of the cluster network"
        ),
        pytest.param(
            pod([element("net", "net1")], [ETH0, entry("node-wide", "net1")]),
            ["!InterfaceAddRejected"],
            id="a link of a foreign attachment",
        ),
        pytest.param(pod("net@a@b", [ETH0]), ["!UnreadableNetworks"], id="a malformed networks annotation"),
        pytest.param(pod('[{"name":', [ETH0]), ["!UnreadableNetworks"], id="broken JSON"),
        pytest.param(pod([element("net", "x" * 16)], []), ["!UnreadableNetworks"], id="a link name too long"),
        pytest.param(pod("net@a", "{}"), ["!UnreadableNetworks"], id="a malformed network-status"),
    ],
)
def test_plan_for_annotation_and_status(of: Pod, expected: list[str]) -> None:
    assert planned(of) == expected


def test_action_uses_the_annotated_operation() -> None:
    written = Operation(
        id="op1", kind=OperationKind.PLUG, interface="blue", traceparent="00-" + "1" * 32 + "-" + "2" * 16 + "-01"
    )
    of = pod([element("net", BLUE)], [], annotations={operation_key("blue"): encode_annotation(written)})
    (action,) = plan(observed(of))
    assert isinstance(action, Attach)
    assert action.operation == written


@pytest.mark.parametrize(
    "annotation",
    [
        pytest.param({}, id="absent"),
        pytest.param({operation_key("blue"): "{"}, id="malformed"),
        pytest.param(
            {operation_key("blue"): encode_annotation(Operation(id="x", kind=OperationKind.UNPLUG, interface="blue"))},
            id="other kind",
        ),
        pytest.param(
            {operation_key("blue"): encode_annotation(Operation(id="x", kind=OperationKind.PLUG, interface="red"))},
            id="other NIC",
        ),
    ],
)
def test_action_without_a_matching_operation_derives_one(annotation: dict[str, str]) -> None:
    (action,) = plan(observed(pod([element("net", BLUE)], [], annotations=annotation)))
    assert isinstance(action, Attach)
    assert action.operation == Operation(
        id=derive_operation_id(UID, BLUE, OperationKind.PLUG, 0), kind=OperationKind.PLUG, interface=BLUE
    )


def test_released_unplug_uses_its_operation() -> None:
    written = Operation(id="op2", kind=OperationKind.UNPLUG, interface="blue", released=UID)
    of = pod("[]", [entry("net", BLUE)], annotations={operation_key("blue"): encode_annotation(written)})
    (action,) = plan(observed(of))
    assert isinstance(action, Detach)
    assert action.operation == written


NAMES = st.sampled_from(["a", "b"])
LINKS = st.sampled_from([None, "eth0", "net1", "net2", "ens1", "ens2", BLUE])
DESIRED = st.lists(st.builds(element, NAMES, LINKS), max_size=5)
PRESENT = st.lists(
    st.builds(entry, NAMES, LINKS.filter(bool), default=st.booleans()), max_size=5, unique_by=lambda e: e["interface"]
)
HOT_PLUGGED = st.sets(st.sampled_from(["eth0", "net1", "ens1", "ens2", BLUE]))


@given(DESIRED, PRESENT, HOT_PLUGGED)
def test_applied_plan_leaves_nothing_to_do(
    desired: list[dict[str, Any]], present: list[dict[str, Any]], hot_plugged: set[str]
) -> None:
    """The applied plan leaves nothing to do, changes no default entry, and uses every link name only once."""
    marks = {key: value for link in hot_plugged for key, value in mark(link).items()}
    now = list(present)
    for action in plan(observed(pod(desired, present, annotations=marks))):
        if isinstance(action, Attach):
            assert action.link not in {e["interface"] for e in now}
            now.append({"name": action.network, "interface": action.link, "dns": {}})
        elif isinstance(action, Detach):
            removed = [e for e in now if e["interface"] == action.link and not e["default"]]
            assert len(removed) == 1
            assert action.link in hot_plugged or is_hashed(action.link)
            now.remove(removed[0])
    assert [e for e in now if e.get("default")] == [e for e in present if e["default"]]
    again = planned(pod(desired, now, annotations=marks))
    assert [action for action in again if not action.startswith("!")] == []
