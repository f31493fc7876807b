"""Operations, acting pods and status tokens."""

import msgspec
from hypothesis import given
from hypothesis import strategies as st

from schemas.kube import Interface
from schemas.operations import Operation, derived_id, encode, operation_key
from schemas.stages import OperationKind
from services.common.domain.operations import acting_pod, operation_for
from services.common.domain.status_interfaces import DOMAIN, MULTUS_STATUS, tokens, with_token, without_token
from tests.support import objects


def test_an_operation_written_for_the_same_wish_is_kept_and_another_is_derived() -> None:
    written = Operation("op", OperationKind.PLUG, "iface1")
    vmi = objects.vmi(objects.nic("iface1"), annotations={operation_key("iface1"): encode(written)})
    assert operation_for(vmi, Interface("iface1")) == written
    derived = operation_for(vmi, Interface("iface1", state="absent"))
    assert derived.id == derived_id(objects.VMI_UID, "iface1", OperationKind.UNPLUG, 1)
    assert operation_for(objects.vmi(annotations={operation_key("x"): "{"}), Interface("x")).kind is OperationKind.PLUG


def test_the_acting_pod_is_the_active_one_on_the_vmis_node() -> None:
    pod = objects.pod()
    moved = msgspec.structs.replace(
        pod,
        metadata=msgspec.structs.replace(pod.metadata, uid="target"),
        spec=msgspec.structs.replace(pod.spec, node_name="node2"),
    )
    vmi = objects.vmi(activePods={objects.POD_UID: "node1", "target": "node2"})
    assert acting_pod(vmi, [moved, pod]) is pod
    there = objects.vmi(activePods={objects.POD_UID: "node1", "target": "node2"}, nodeName="node2")
    assert acting_pod(there, [moved, pod]) is moved
    assert acting_pod(objects.vmi(activePods={}), [pod]) is pod
    assert acting_pod(objects.vmi(activePods={"gone": "node1"}), [pod]) is None


names = st.sampled_from(["a", "b", "c"])
tokens_ = st.sampled_from([DOMAIN, MULTUS_STATUS])


@given(st.lists(st.tuples(st.booleans(), names, tokens_), max_size=20))
def test_writers_of_different_tokens_never_disturb_each_other(steps: list[tuple[bool, str, str]]) -> None:
    entries: list[dict[str, object]] = []
    expected: dict[str, set[str]] = {}
    for add, name, token in steps:
        if add:
            entries = with_token(entries, name, token)
            expected.setdefault(name, set()).add(token)
        else:
            entries = without_token(entries, name, token)
            expected.get(name, set()).discard(token)
    assert {e["name"]: set(tokens(e)) for e in entries} == {n: t for n, t in expected.items() if t}


def test_an_agents_word_alone_keeps_no_entry() -> None:
    assert without_token([{"name": "a", "infoSource": "domain, guest-agent"}], "a", DOMAIN) == []
