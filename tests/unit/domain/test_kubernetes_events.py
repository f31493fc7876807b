"""What Kubernetes Events say of each transition: cause in the message, one name per transition."""

import itertools

import msgspec
import pytest

from schemas.events import (
    Event,
    Failed,
    GuestAttached,
    GuestDetached,
    MultusAttached,
    MultusDetached,
    ObjectRef,
    PodAnnotated,
    Requested,
)
from schemas.operations import Operation
from schemas.stages import OperationKind, Stage, stage_path
from services.common.domain.kubernetes_events import OPERATION, STAGE, TRACE, kubernetes_event, reason_of

VMI = ObjectRef("default", "vm1", "uid")
PLUG = Operation("op", OperationKind.PLUG, "blue", traceparent="00-" + "a" * 32 + "-" + "b" * 16 + "-01")
UNPLUG = msgspec.structs.replace(PLUG, kind=OperationKind.UNPLUG)
UNDO = msgspec.structs.replace(UNPLUG, failed="NoFreeSlot")


@pytest.mark.parametrize(
    ("event", "type_", "reason", "message"),
    [
        (
            Requested(PLUG, VMI, network="default/net"),
            "Normal",
            "InterfacePlugRequested",
            "interface blue: plug requested (network default/net)",
        ),
        (Requested(UNPLUG, VMI), "Normal", "InterfaceUnplugRequested", "interface blue: unplug requested"),
        (
            Requested(UNDO, VMI),
            "Normal",
            "InterfaceUnplugRequested",
            "interface blue: unplug requested, for its plug has failed: NoFreeSlot",
        ),
        (
            PodAnnotated(PLUG, VMI),
            "Normal",
            "InterfacePodAnnotated",
            "interface blue: the pod's networks annotation lists the attachment",
        ),
        (
            MultusAttached(PLUG, VMI, pod_interface="podx", mac="02:00", ips=("10.0.0.2",)),
            "Normal",
            "InterfaceMultusAttached",
            "interface blue: the CNI result stands in the pod's network status (podx, 02:00, 10.0.0.2)",
        ),
        (
            GuestAttached(PLUG, VMI, mac="02:00"),
            "Normal",
            "InterfaceGuestAttached",
            "interface blue: the card is in the guest's domain (02:00)",
        ),
        (
            GuestDetached(UNPLUG, VMI),
            "Normal",
            "InterfaceGuestDetached",
            "interface blue: the card is gone from the domain and the wiring in the pod is undone",
        ),
        (
            MultusDetached(UNPLUG, VMI),
            "Normal",
            "InterfaceMultusDetached",
            "interface blue: CNI DEL is done and the network status rewritten",
        ),
        (
            Failed(PLUG, VMI, at=Stage.MULTUS_ATTACHED, reason="CniFailed", message="no lease left"),
            "Warning",
            "CniFailed",
            "interface blue: no lease left",
        ),
    ],
)
def test_each_transition_is_said_with_its_cause(event: Event, type_: str, reason: str, message: str) -> None:
    said = kubernetes_event(event)
    assert said is not None
    assert (said.type, said.reason, said.message) == (type_, reason, message)
    assert said.annotations[OPERATION] == "op"
    assert said.annotations[STAGE] == event.stage
    assert said.annotations[TRACE] == "a" * 32


def test_attempts_and_confirmations_are_one_event_and_reasons_are_several() -> None:
    def key(event: Event) -> tuple[str, ...]:
        said = kubernetes_event(event)
        assert said is not None
        return said.key

    assert key(GuestAttached(PLUG, VMI)) == key(GuestAttached(PLUG, VMI, attempt=3, mac="02:00"))
    first, second, third = (
        key(Failed(PLUG, VMI, at=at, reason=reason, attempt=attempt))
        for at, reason, attempt in (
            (Stage.MULTUS_ATTACHED, "A", 1),
            (Stage.MULTUS_ATTACHED, "A", 2),
            (Stage.MULTUS_ATTACHED, "B", 3),
        )
    )
    assert first == second != third
    assert key(Requested(PLUG, VMI)) != key(Requested(PLUG, msgspec.structs.replace(VMI, uid="another")))


def test_every_stage_has_a_reason_of_its_own() -> None:
    steps = [(stage, kind) for kind in OperationKind for stage in stage_path(kind)]
    assert len({reason_of(*step) for step in steps}) == len(steps)
    assert all(reason_of(*one) != reason_of(*two) for one, two in itertools.combinations(steps, 2))


def test_an_ordinary_pod_has_no_vmi_to_tell_of() -> None:
    assert kubernetes_event(MultusAttached(PLUG)) is None
