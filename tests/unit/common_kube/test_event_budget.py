"""The rate of Kubernetes Events, as a table over a clock of the test, and what the recorder does with it."""

from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from services.common.kube.client import Kube
from services.common.kube.event_budget import (
    NAMESPACE_BURST,
    NAMESPACE_INTERVAL,
    OBJECT_BURST,
    OBJECT_INTERVAL,
    EventBudget,
    EventLimit,
)
from services.common.kube.event_recorder import EventRecorder
from services.common.telemetry import configure
from services.common.telemetry.logs import logger


class Clock:
    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


def about(uid: str = "u") -> dict[str, str]:
    return {"kind": "Pod", "name": "p", "namespace": "ns", "uid": uid}


def test_an_object_has_a_burst_and_then_one_event_per_interval() -> None:
    clock = Clock()
    budget = EventBudget(clock)
    assert [budget.exceeded(about(), "ns", "R") for _ in range(OBJECT_BURST)] == [None] * OBJECT_BURST
    assert budget.exceeded(about(), "ns", "R") is EventLimit.OBJECT
    assert budget.exceeded(about("another"), "ns", "R") is None
    clock.now += OBJECT_INTERVAL
    assert budget.exceeded(about(), "ns", "R") is None
    assert budget.exceeded(about(), "ns", "R") is EventLimit.OBJECT
    clock.now += OBJECT_BURST * OBJECT_INTERVAL
    assert [budget.exceeded(about(), "ns", "R") for _ in range(OBJECT_BURST)] == [None] * OBJECT_BURST


def test_a_namespace_has_a_burst_and_then_one_event_per_interval() -> None:
    clock = Clock()
    budget = EventBudget(clock)
    for number in range(NAMESPACE_BURST):
        assert budget.exceeded(about(str(number)), "ns", "R") is None
    assert budget.exceeded(about("0"), "ns", "R") is EventLimit.NAMESPACE
    assert budget.exceeded(about("0"), "another", "R") is None
    clock.now += NAMESPACE_INTERVAL
    assert budget.exceeded(about("0"), "ns", "R") is None


def test_the_first_event_of_a_reason_about_an_object_is_never_dropped() -> None:
    budget = EventBudget(Clock())
    for number in range(NAMESPACE_BURST + OBJECT_BURST):
        assert budget.exceeded(about(), "ns", f"R{number}") is None
    assert budget.exceeded(about(), "ns", "R0") is EventLimit.OBJECT
    assert budget.exceeded(about("new"), "ns", "R0") is None
    assert budget.exceeded(about("new"), "ns", "R0") is EventLimit.NAMESPACE


@given(st.lists(st.tuples(st.floats(0, 30), st.integers(0, 2)), max_size=200))
def test_no_interval_has_more_events_than_burst_and_rate(steps: list[tuple[float, int]]) -> None:
    clock = Clock()
    budget = EventBudget(clock)
    created = 0
    begin = clock.now
    for pause, reason in steps:
        clock.now += pause
        created += budget.exceeded(about(), "ns", str(reason)) is None
    # The three reasons' first Events may exceed it.
    assert created <= OBJECT_BURST + (clock.now - begin) / OBJECT_INTERVAL + 3


async def test_a_dropped_event_is_counted_and_not_sent(kube: Kube, script: Any) -> None:
    clock = Clock()
    telemetry = configure("multus", "n1", environ={})
    recorder = EventRecorder(kube, "multus", log=logger("test"), meter=telemetry.meter, budget=EventBudget(clock))
    for _ in range(OBJECT_BURST + 1):
        script.respond({}, 201)

    async def record(number: int) -> bool:
        fields = {"about": about(), "type": "Warning", "reason": "R", "message": "m"}
        return await recorder.record(**fields, key=(str(number),))

    assert [await record(number) for number in range(OBJECT_BURST + 2)] == [True] * OBJECT_BURST + [False] * 2
    # What exists already needs no token.
    assert await record(0)
    assert len(script.requests) == OBJECT_BURST
    assert b'hotnic_kubernetes_events_dropped_total{limit="object"} 2.0' in telemetry.metrics_text()
    clock.now += OBJECT_INTERVAL
    assert await record(OBJECT_BURST)
    telemetry.shutdown()
