"""The NICs of a VMI: names of their links, their attachments in the pod, and their operations."""

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from schemas.kubernetes.networks import (
    NETWORK_STATUS,
    NETWORKS,
    NetworkSelectionElement,
    NetworkStatus,
    encode_network_status,
    encode_networks,
)
from schemas.kubernetes.objects import Pod, VirtualMachineInstance
from schemas.kubernetes.operations import (
    Operation,
    PodNic,
    derive_operation_id,
    encode_annotation,
    operation_key,
    pod_nic_key,
)
from schemas.names import bridge, bridged_nic, interface_hash, pod_interface, tap
from schemas.stages import OperationKind
from services.common.domain.attachments import desired_elements
from services.common.domain.nic import LinkNames, link_names, parse_nics, qualified_nad
from tests.support.observed import objects

LINK = pod_interface("iface1")
ELEMENT = NetworkSelectionElement("net1", "default", interface=LINK)
STATUS = NetworkStatus("default/net1", LINK, mac="02:00:00:00:00:01")
RECORD = PodNic(objects.POD_UID, "sandbox", LINK, "02:00:00:00:00:01", 1500)
FOREIGN = NetworkSelectionElement("other", interface="net7x")
MULTUS_DEFAULT = ({"name": "m", "bridge": {}}, {"name": "m", "multus": {"networkName": "net1", "default": True}})


def annotations_of(*operations: Operation) -> dict[str, str]:
    return {operation_key(operation.interface): encode_annotation(operation) for operation in operations}


def pod_with(elements: list[NetworkSelectionElement], statuses: list[NetworkStatus], **more: str) -> Pod:
    networks = {NETWORKS: encode_networks(elements), NETWORK_STATUS: encode_network_status(statuses)}
    return objects.pod(networks | more)


@pytest.mark.parametrize(
    ("interface", "expected"),
    [
        ("pod7e0055a6880", LinkNames("pod7e0055a6880", "7e0055a6880-nic", "k6t-7e0055a6880", "tap7e0055a6880")),
        ("net1", LinkNames("net1", "net1-nic", "k6t-net1", "tap1")),
        ("net12", LinkNames("net12", "net12-nic", "k6t-net12", "tap12")),
    ],
)
def test_link_names_follow_the_pod_interface(interface: str, expected: LinkNames) -> None:
    assert link_names(interface) == expected


@given(st.text(min_size=1))
def test_link_names_of_a_hashed_interface_are_those_of_its_name(name: str) -> None:
    expected = LinkNames(pod_interface(name), bridged_nic(name), bridge(name), tap(name))
    assert link_names(pod_interface(name)) == expected


@pytest.mark.parametrize(
    ("reference", "expected"),
    [("net1", "default/net1"), ("other/net1", "other/net1"), ("default/net1", "default/net1")],
)
def test_nad_reference_gets_the_namespace_of_the_vmi(reference: str, expected: str) -> None:
    assert qualified_nad(reference, "default") == expected


def test_nic_joins_spec_pod_and_status() -> None:
    plug = Operation("plug", OperationKind.PLUG, "iface1")
    entry = {"name": "iface1", "infoSource": "domain, multus-status", "mac": "02:00:00:00:00:01"}
    vmi = objects.vmi(objects.nic("iface1"), status=[entry], annotations=annotations_of(plug))
    pod = pod_with([FOREIGN, ELEMENT], [STATUS], **{pod_nic_key("iface1"): encode_annotation(RECORD)})
    nics = parse_nics(vmi, pod)
    (nic,) = nics
    assert (nic.name, nic.link, nic.position, nic.nad) == ("iface1", LINK, 1, "default/net1")
    assert (nic.operation, nic.written, nic.has_operation, nic.absent) == (plug, plug, True, False)
    assert (nic.element, nic.status, nic.record, nic.entry) == (ELEMENT, STATUS, RECORD, entry)
    assert (nic.in_pod, nic.tokens) == (True, {"domain", "multus-status"})
    assert (nics.vmi, nics.pod, nics.ordinal) == (vmi, pod, False)
    assert (nics.elements, nics.statuses, nics.operations) == ((FOREIGN, ELEMENT), (STATUS,), {"iface1": plug})
    assert (list(nics.interfaces), list(nics.networks)) == (["default", "iface1"], ["default", "iface1"])


def test_nic_without_pod_status_and_annotations_is_empty() -> None:
    (nic,) = parse_nics(objects.vmi(objects.nic("iface1", "other/net2")), None)
    assert (nic.element, nic.status, nic.record, nic.entry, nic.written) == (None, None, None, {}, None)
    assert (nic.in_pod, nic.has_operation, nic.nad, nic.tokens) == (False, False, "other/net2", frozenset())
    assert nic.operation.id == derive_operation_id(objects.VMI_UID, "iface1", OperationKind.PLUG, 1)


@pytest.mark.parametrize(
    ("nics", "expected"),
    [
        ((), []),
        ((objects.nic("a"), objects.nic("b")), ["a", "b"]),
        ((({"name": "x", "sriov": {}}, objects.nic("x")[1]),), ["x"]),
        ((MULTUS_DEFAULT,), []),
        ((({"name": "x", "bridge": {}}, {"name": "y", "multus": {"networkName": "net1"}}),), []),
        (tuple(objects.nic(name) for name in objects.COLLIDING), [objects.COLLIDING[0]]),
    ],
    ids=["primary only", "two", "another binding", "default network of Multus", "no network", "hash collision"],
)
def test_secondary_interfaces_are_nics(nics: Any, expected: list[str]) -> None:
    assert list(parse_nics(objects.vmi(*nics), None).nics) == expected


@pytest.mark.parametrize(
    ("elements", "statuses", "links"),
    [
        ([], [], [pod_interface("a"), pod_interface("b")]),
        ([NetworkSelectionElement("x")], [], [pod_interface("a"), pod_interface("b")]),
        ([NetworkSelectionElement("x", interface="net1")], [], ["net1", "net2"]),
        ([], [NetworkStatus("default/x", "net3")], ["net1", "net2"]),
        ([FOREIGN], [NetworkStatus("default/x", "eth0")], [pod_interface("a"), pod_interface("b")]),
    ],
    ids=["none", "element without a name", "ordinal element", "ordinal status", "foreign names"],
)
def test_one_ordinal_name_makes_all_names_ordinal(
    elements: list[NetworkSelectionElement], statuses: list[NetworkStatus], links: list[str]
) -> None:
    nics = parse_nics(objects.vmi(objects.nic("a"), objects.nic("b")), pod_with(elements, statuses))
    assert [nic.link for nic in nics] == links
    assert nics.ordinal == (links[0] == "net1")


@pytest.mark.parametrize(
    ("state", "kind", "released", "pod", "expected"),
    [
        ("absent", OperationKind.UNPLUG, objects.POD_UID, objects.pod(), True),
        ("absent", OperationKind.UNPLUG, "an earlier pod", objects.pod(), False),
        ("absent", OperationKind.UNPLUG, None, objects.pod(), False),
        ("absent", OperationKind.UNPLUG, objects.POD_UID, None, False),
        ("absent", OperationKind.PLUG, objects.POD_UID, objects.pod(), False),
        ("", OperationKind.PLUG, objects.POD_UID, objects.pod(), False),
    ],
    ids=["this pod", "an earlier pod", "no teardown", "no pod", "operation of the plug", "plug"],
)
def test_released_means_this_pod_and_this_unplug(
    state: str, kind: OperationKind, released: str | None, pod: Pod | None, expected: bool
) -> None:
    written = Operation("op", kind, "iface1", released=released)
    nics = parse_nics(objects.vmi(objects.nic("iface1", state=state), annotations=annotations_of(written)), pod)
    (nic,) = nics
    assert nics.released(nic) is expected
    assert nic.has_operation is (nic.absent == (kind is OperationKind.UNPLUG))


@pytest.mark.parametrize(
    ("vmi", "pod"),
    [
        (objects.vmi(({"bridge": {}}, {"name": "x"})), None),
        (objects.vmi(({"name": "x", "bridge": {}}, {"multus": {}})), None),
        (objects.vmi(), objects.pod({NETWORKS: "[{"})),
        (objects.vmi(), objects.pod({NETWORK_STATUS: "{}"})),
    ],
    ids=["interface", "network", "networks annotation", "network-status annotation"],
)
def test_malformed_object_is_an_error(vmi: VirtualMachineInstance, pod: Pod | None) -> None:
    with pytest.raises(ValueError, match=r"."):
        parse_nics(vmi, pod)


NAMES = st.sampled_from(["a", "b", "c", *objects.COLLIDING])
LINKS = st.one_of(NAMES.map(pod_interface), st.sampled_from(["net1", "net2", "eth0", None]))
NICS = st.builds(
    lambda name, state, bridged: (
        {"name": name, **({"bridge": {}} if bridged else {"sriov": {}}), **({"state": "absent"} if state else {})},
        objects.nic(name)[1],
    ),
    NAMES,
    st.booleans(),
    st.booleans(),
)


@given(
    st.lists(NICS, unique_by=lambda pair: str(pair[0]["name"])),
    st.lists(LINKS, unique=True),
    st.lists(LINKS, unique=True),
    st.sets(NAMES),
    st.booleans(),
)
def test_every_attachment_belongs_to_one_nic_or_is_foreign(
    pairs: list[Any], listed: list[str | None], attached: list[str | None], released: set[str], running: bool
) -> None:
    elements = [NetworkSelectionElement("net1", "default", interface=link) for link in listed]
    statuses = [NetworkStatus("default/net1", link) for link in attached]
    unplugs = [
        Operation(name, OperationKind.UNPLUG, name, released=objects.POD_UID)
        for name in sorted({interface_hash(name): name for name in released}.values())
    ]
    vmi = objects.vmi(*pairs, annotations=annotations_of(*unplugs))
    nics = parse_nics(vmi, pod_with(elements, statuses) if running else None)
    spec_order = [interface.name for interface in vmi.spec.interface_items()]
    assert list(nics.nics) == [name for name in spec_order if name in nics.nics]
    assert len({nic.link for nic in nics}) == len(nics.nics)
    assert {interface_hash(name) for name in nics.nics} == {interface_hash(pair[0]["name"]) for pair in pairs}
    for nic in nics:
        assert spec_order[nic.position] == nic.name
        assert nic.names == link_names(nic.link)
        assert nic.in_pod is (running and nic.link in {*listed, *attached})
        assert nics.released(nic) is (running and nic.absent and nic.operation in unplugs)
    desired = desired_elements(nics)
    own = {nic.link for nic in nics}
    foreign = [element for element in nics.elements if element.requested_interface not in own]
    assert desired[len(desired) - len(foreign) :] == foreign
    for nic in nics:
        found = [element for element in desired if element.requested_interface == nic.link]
        expected = not nics.released(nic) if nic.element else nic.interface.bridge is not None and not nic.absent
        assert len(found) == expected
        assert nic.element is None or found in ([nic.element], [])
