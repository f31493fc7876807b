"""The NICs of a VMI: names of their links, their attachments in the pod, and their operations."""

from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from schemas.kubernetes.limits import MAX_INTERFACES, MAX_STATUS_INTERFACES
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
from services.common.domain.eligibility import find_mac_holder
from services.common.domain.nic import LinkNames, link_names, parse_nics, qualified_nad
from services.common.domain.status_interfaces import MULTUS_STATUS, with_token
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


HASHED = [pod_interface("a"), pod_interface("b")]
OWN = NetworkSelectionElement("net1", "default", interface="net1")
PLUG_OF_A = Operation("plug", OperationKind.PLUG, "a")
RELEASED_A = Operation("unplug", OperationKind.UNPLUG, "a", released=objects.POD_UID)
IN_GUEST = {"name": "a", "infoSource": "domain"}


@pytest.mark.parametrize(
    ("elements", "statuses", "vmi", "links"),
    [
        ([], [], {}, HASHED),
        ([OWN], [], {}, ["net1", "net2"]),
        ([OWN], [], {"annotations": annotations_of(PLUG_OF_A), "status": [IN_GUEST]}, ["net1", "net2"]),
        ([], [NetworkStatus("storage-net", "net1")], {}, HASHED),
        ([NetworkSelectionElement("net1", "default")], [NetworkStatus("default/net1", "net1")], {}, HASHED),
        ([NetworkSelectionElement("backup", "default", interface="net1")], [], {}, HASHED),
        ([NetworkSelectionElement("net1", "other", interface="net1")], [], {}, HASHED),
        ([OWN], [], {"annotations": annotations_of(PLUG_OF_A)}, HASHED),
        ([OWN], [], {"annotations": annotations_of(RELEASED_A), "status": [IN_GUEST]}, HASHED),
        ([OWN], [], {"status": [{**IN_GUEST, "podInterfaceName": HASHED[0]}]}, HASHED),
        ([OWN, msgspec.structs.replace(OWN, interface=HASHED[0])], [], {}, HASHED),
        ([FOREIGN], [NetworkStatus("default/x", "eth0")], {}, HASHED),
    ],
    ids=[
        "none",
        "own element",
        "own element of a NIC in the guest",
        "default network of the node",
        "element of the template without a name",
        "element of the template on another network",
        "element of the template in another namespace",
        "element of the template before the first plug",
        "element of the template at the end of an unplug",
        "element of the template beside a NIC that has lost its own",
        "element of the template beside a hashed one",
        "foreign names",
    ],
)
def test_only_an_ordinal_name_of_the_vm_itself_makes_its_names_ordinal(
    elements: list[NetworkSelectionElement], statuses: list[NetworkStatus], vmi: dict[str, Any], links: list[str]
) -> None:
    nics = parse_nics(objects.vmi(objects.nic("a"), objects.nic("b"), **vmi), pod_with(elements, statuses))
    assert [nic.link for nic in nics] == links
    assert nics.ordinal == (links[0] == "net1")


def test_ordinal_names_follow_the_order_of_the_networks() -> None:
    vmi = objects.vmi(objects.nic("a", "net2"), objects.nic("b", "net1"))
    spec = msgspec.structs.replace(vmi.spec, networks=list(reversed(vmi.spec.networks or ())))
    nics = parse_nics(msgspec.structs.replace(vmi, spec=spec), pod_with([OWN], []))
    assert [(nic.name, nic.link) for nic in nics] == [("a", "net2"), ("b", "net1")]


def test_in_a_pod_with_ordinal_names_a_foreign_attachment_is_not_a_nic() -> None:
    foreign = NetworkSelectionElement("backup", "tenant", interface="net2")
    pod = pod_with([OWN, foreign], [NetworkStatus("tenant/backup", "net2")])
    nics = parse_nics(objects.vmi(objects.nic("a"), objects.nic("b")), pod)
    assert [(nic.link, nic.in_pod) for nic in nics] == [("net1", True), ("net2", False)]
    assert foreign in desired_elements(nics)


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
        # Each is compared with all others: thousands would keep the role from every other VM for seconds.
        (objects.vmi(*(objects.nic(f"n{n}") for n in range(MAX_INTERFACES))), None),
        (objects.vmi(objects.nic("a"), status=[{"name": f"n{n}"} for n in range(MAX_STATUS_INTERFACES + 1)]), None),
        # Statuses, events and spans repeat these names.
        (objects.vmi(objects.nic("a" * 254)), None),
        (objects.vmi(({"name": "x", "bridge": {}}, {"name": "x", "multus": {"networkName": "n" * 508}})), None),
        (objects.vmi(objects.nic("a"), nodeName="n" * 254), None),
    ],
    ids=[
        *("interface", "network", "networks annotation", "network-status annotation", "interfaces", "status"),
        *("interface name", "network name", "node name"),
    ],
)
def test_malformed_object_is_an_error(vmi: VirtualMachineInstance, pod: Pod | None) -> None:
    with pytest.raises(ValueError, match=r"."):
        parse_nics(vmi, pod)


class CountedEntry(dict[str, object]):
    """An entry that counts how often it is looked at."""

    looks = 0

    def get(self, key: str, default: object = None) -> object:
        CountedEntry.looks += 1
        return super().get(key, default)


def test_each_entry_of_the_status_is_looked_at_once() -> None:
    entries = [CountedEntry(name=f"n{n}", mac=n) for n in range(MAX_STATUS_INTERFACES)]
    strange: list[dict[str, object]] = [{"name": []}, {"name": {}}, {}]
    vmi = objects.vmi(*(objects.nic(f"n{n}") for n in range(100)))
    status = msgspec.structs.replace(vmi.status, interfaces=[*strange, *entries[len(strange) :]])
    CountedEntry.looks = 0
    nics = parse_nics(msgspec.structs.replace(vmi, status=status), None)
    # The hundred interfaces have an entry of seven fields each.
    assert CountedEntry.looks <= MAX_STATUS_INTERFACES + 100 * 7
    assert nics.nics["n99"].entry == {"name": "n99"}
    assert find_mac_holder(nics, nics.interfaces["n99"]) is None


def test_what_is_unreadable_of_an_entry_is_left_out() -> None:
    entry = {"name": "a", "mac": 7, "interfaceName": "x" * 300, "linkState": "up", "ipAddresses": ["::1", 5, "y" * 99]}
    nics = parse_nics(objects.vmi(objects.nic("a"), status=[entry]), None)
    assert nics.nics["a"].entry == {"name": "a", "linkState": "up", "ipAddresses": ["::1"]}


def test_a_token_that_was_written_is_read_whatever_the_entry_had() -> None:
    entries: list[dict[str, object]] | None = [{"name": "a", "infoSource": ",".join(map(str, range(500)))}]
    for _ in range(3):
        before, entries = entries, with_token(entries, "a", MULTUS_STATUS)
    assert entries == before
    nics = parse_nics(objects.vmi(objects.nic("a"), status=entries), None)
    assert MULTUS_STATUS in nics.nics["a"].tokens


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


def test_a_guest_with_very_many_links_has_its_nics() -> None:
    entries = [{"interfaceName": f"veth{number}"} for number in range(1000)]
    nics = parse_nics(objects.vmi(objects.nic("blue"), status=[*entries, {"name": "blue"}]), None)
    assert [nic.name for nic in nics] == ["blue"]
