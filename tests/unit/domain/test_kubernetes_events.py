"""Kubernetes Events of each transition: reason, message with the cause, and one key per transition."""

import itertools

import msgspec
import pytest

from schemas.bus.events import (
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
from schemas.kubernetes.operations import Operation
from schemas.stages import OperationKind, Stage, stage_path
from services.common.domain.status.kubernetes_events import (
    OPERATION,
    STAGE,
    TRACE,
    build_kubernetes_event,
    event_reason,
)

VMI = ObjectRef("default", "vm1", "uid")
PLUG = Operation("op", OperationKind.PLUG, "blue", traceparent="00-" + "a" * 32 + "-" + "b" * 16 + "-01")
UNPLUG = msgspec.structs.replace(PLUG, kind=OperationKind.UNPLUG)
UNDOING_UNPLUG = msgspec.structs.replace(UNPLUG, failed="NoFreeSlot")


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
            Requested(UNDOING_UNPLUG, VMI),
            "Normal",
            "InterfaceUnplugRequested",
            "interface blue: unplug requested because the plug failed: NoFreeSlot",
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
            "interface blue: the pod's network-status annotation lists the attachment (podx, 02:00, 10.0.0.2)",
        ),
        (
            GuestAttached(PLUG, VMI, mac="02:00"),
            "Normal",
            "InterfaceGuestAttached",
            "interface blue: the device is in the guest's domain (02:00)",
        ),
        (
            GuestDetached(UNPLUG, VMI),
            "Normal",
            "InterfaceGuestDetached",
            "interface blue: the device is gone from the guest's domain and the pod network is torn down",
        ),
        (
            MultusDetached(UNPLUG, VMI),
            "Normal",
            "InterfaceMultusDetached",
            "interface blue: CNI DEL succeeded and the pod's network-status annotation is updated",
        ),
        (
            Failed(PLUG, VMI, at=Stage.MULTUS_ATTACHED, reason="CniFailed", message="no lease left"),
            "Warning",
            "CniFailed",
            "interface blue: no lease left",
        ),
    ],
)
def test_event_of_each_transition(event: Event, type_: str, reason: str, message: str) -> None:
    recorded = build_kubernetes_event(event)
    assert recorded is not None
    assert (recorded.type, recorded.reason, recorded.message) == (type_, reason, message)
    assert recorded.annotations[OPERATION] == "op"
    assert recorded.annotations[STAGE] == event.stage
    assert recorded.annotations[TRACE] == "a" * 32


def test_key_ignores_attempt_and_confirmation_but_not_reason() -> None:
    def key(event: Event) -> tuple[str, ...]:
        recorded = build_kubernetes_event(event)
        assert recorded is not None
        return recorded.key

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


def test_every_stage_has_a_distinct_reason() -> None:
    stages = [(stage, kind) for kind in OperationKind for stage in stage_path(kind)]
    assert len({event_reason(*stage_and_kind) for stage_and_kind in stages}) == len(stages)
    assert all(event_reason(*one) != event_reason(*two) for one, two in itertools.combinations(stages, 2))


def test_ordinary_pod_has_no_event() -> None:
    assert build_kubernetes_event(MultusAttached(PLUG)) is None
