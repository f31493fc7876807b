"""Operations, acting pods and status tokens."""

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from schemas.kubernetes.objects import Interface, ObjectMeta
from schemas.kubernetes.operations import Operation, derive_operation_id, encode_annotation, operation_key
from schemas.stages import OperationKind
from services.common.domain.operations import find_acting_pod, read_operations, resolve_operation
from services.common.domain.status_interfaces import DOMAIN, MULTUS_STATUS, parse_tokens, with_token, without_token
from tests.support.observed import objects
from tests.support.recorded_kubevirt import recorded_pods, recorded_vmi


@pytest.mark.parametrize(
    ("holder", "found"), [(objects.VMI_UID, True), (None, True), ("of another object", False), ("", False)]
)
def test_an_operation_that_names_another_object_is_a_copy(holder: str | None, found: bool) -> None:
    """A restore, a clone and the metadata of a template bring operations of other objects along."""
    written = Operation("id", OperationKind.UNPLUG, "iface1")
    annotations = {operation_key("iface1"): encode_annotation(msgspec.structs.replace(written, holder=holder))}
    read = read_operations(ObjectMeta(uid=objects.VMI_UID, annotations=annotations))
    assert read == ({"iface1": written} if found else {})


@pytest.mark.parametrize(
    ("requested_at", "found"),
    [
        ("2026-11-23T10:00:01Z", True),
        # The API server writes whole seconds.
        ("2026-11-23T10:00:00.001Z", True),
        ("2026-11-23T10:00:00.123456+00:00", True),
        ("2026-11-23T09:59:59.999Z", False),
        (None, False),
        ("tomorrow", False),
        ("9999", False),
        ("2026-11-23T10:00:01+14:00", False),
    ],
)
def test_an_operation_that_names_no_object_counts_if_it_was_requested_after_its_object_was_created(
    requested_at: str | None, found: bool
) -> None:
    """An earlier version names no object. What a restore or a clone brings is older than the object."""
    written = Operation("id", OperationKind.UNPLUG, "iface1", requested_at=requested_at)
    annotations = {operation_key("iface1"): encode_annotation(written)}
    meta = ObjectMeta(uid=objects.VMI_UID, creation_timestamp="2026-11-23T10:00:00Z", annotations=annotations)
    assert read_operations(meta) == ({"iface1": written} if found else {})


def test_annotated_operation_of_the_same_kind_is_used_and_otherwise_derived() -> None:
    written = Operation("op", OperationKind.PLUG, "iface1")
    annotations = {operation_key("iface1"): encode_annotation(written), operation_key("x"): "{", "some": "thing"}
    assert read_operations(ObjectMeta(annotations=annotations)) == {"iface1": written}
    vmi = objects.vmi(objects.nic("iface1"))
    assert resolve_operation(vmi, Interface("iface1"), written) is written
    derived = resolve_operation(vmi, Interface("iface1", state="absent"), written)
    assert derived.id == derive_operation_id(objects.VMI_UID, "iface1", OperationKind.UNPLUG, 1)
    assert resolve_operation(vmi, Interface("x"), None).kind is OperationKind.PLUG


def test_acting_pod_is_the_active_pod_on_the_node_of_the_vmi() -> None:
    pod = objects.pod()
    moved = msgspec.structs.replace(
        pod,
        metadata=msgspec.structs.replace(pod.metadata, uid="target"),
        spec=msgspec.structs.replace(pod.spec, node_name="node2"),
    )
    vmi = objects.vmi(activePods={objects.POD_UID: "node1", "target": "node2"})
    assert find_acting_pod(vmi, [moved, pod]) is pod
    on_node2 = objects.vmi(activePods={objects.POD_UID: "node1", "target": "node2"}, nodeName="node2")
    assert find_acting_pod(on_node2, [moved, pod]) is moved
    assert find_acting_pod(objects.vmi(activePods={}), [pod]) is pod
    assert find_acting_pod(objects.vmi(activePods={"gone": "node1"}), [pod]) is None


def test_acting_pod_is_not_a_finished_one_of_the_same_node() -> None:
    vmi, pods = recorded_vmi("v1.9.0-k-back-on-first-node"), recorded_pods("v1.9.0-k-back-on-first-node")
    assert [pod.status.phase for pod in pods] == ["Succeeded", "Succeeded", "Running"]
    assert len({pod.metadata.uid for pod in pods} & set(vmi.status.active_pods)) == 3
    assert all(find_acting_pod(vmi, order) is pods[2] for order in (pods, pods[::-1]))


def test_acting_pod_is_the_newest_of_a_node() -> None:
    pod = objects.pod()
    older, newer = (
        msgspec.structs.replace(
            pod, metadata=msgspec.structs.replace(pod.metadata, uid=uid, creation_timestamp=f"2026-01-01T00:00:0{uid}Z")
        )
        for uid in ("1", "2")
    )
    vmi = objects.vmi(activePods={"1": objects.NODE, "2": objects.NODE})
    assert all(find_acting_pod(vmi, order) is newer for order in ([older, newer], [newer, older]))


NAMES = st.sampled_from(["a", "b", "c"])
TOKENS = st.sampled_from([DOMAIN, MULTUS_STATUS])


@given(st.lists(st.tuples(st.booleans(), NAMES, TOKENS), max_size=20))
def test_writers_of_different_tokens_do_not_interfere(steps: list[tuple[bool, str, str]]) -> None:
    entries: list[dict[str, object]] = []
    expected: dict[str, set[str]] = {}
    for add, name, token in steps:
        if add:
            entries = with_token(entries, name, token)
            expected.setdefault(name, set()).add(token)
        else:
            entries = without_token(entries, name, token)
            expected.get(name, set()).discard(token)
    assert {e["name"]: set(parse_tokens(e)) for e in entries} == {n: t for n, t in expected.items() if t}


def test_entry_with_only_the_guest_agent_token_is_removed() -> None:
    assert without_token([{"name": "a", "infoSource": "domain, guest-agent"}], "a", DOMAIN) == []
