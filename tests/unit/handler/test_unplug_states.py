"""The table of an unplug: every state with every event, and a guest, a handler and a VMI that use it in any order."""

from collections.abc import Mapping

import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from services.handler.sessions import UnplugRecord
from services.handler.unplug import (
    TABLE,
    UNPLUG_TIMEOUT,
    IllegalTransition,
    Unplug,
    UnplugCommand,
    UnplugEvent,
    UnplugRequests,
    UnplugState,
    initial_state,
    observed_event,
    transition,
)

S, E, C = UnplugState, UnplugEvent, UnplugCommand
GONE = (S.DEVICE_GONE, S.TORN_DOWN, S.RELEASED)
REQUEST, WARN, TEAR_DOWN, REPORT = (C.REQUEST_UNPLUG,), (C.WARN_OVERDUE,), (C.TEAR_DOWN,), (C.REPORT_RELEASED,)

EXPECTED: Mapping[UnplugState, dict[UnplugEvent, tuple[UnplugState, tuple[UnplugCommand, ...]]]] = {
    S.REQUESTED: {
        E.REQUEST_DUE: (S.PENDING, REQUEST),
        E.DEVICE_ABSENT: (S.DEVICE_GONE, TEAR_DOWN),
        E.RELEASE_RECORDED: (S.RELEASED, ()),
    },
    S.PENDING: {
        E.DEVICE_PRESENT: (S.PENDING, ()),
        E.REQUEST_DUE: (S.PENDING, REQUEST),
        E.GUEST_REFUSED: (S.OVERDUE, WARN),
        E.TIMED_OUT: (S.OVERDUE, WARN),
        E.DEVICE_ABSENT: (S.DEVICE_GONE, TEAR_DOWN),
        E.RELEASE_RECORDED: (S.RELEASED, ()),
    },
    S.OVERDUE: {
        E.DEVICE_PRESENT: (S.OVERDUE, ()),
        E.REQUEST_DUE: (S.OVERDUE, REQUEST),
        E.GUEST_REFUSED: (S.OVERDUE, WARN),
        E.TIMED_OUT: (S.OVERDUE, WARN),
        E.DEVICE_ABSENT: (S.DEVICE_GONE, TEAR_DOWN),
        E.RELEASE_RECORDED: (S.RELEASED, ()),
    },
    S.DEVICE_GONE: {
        E.DEVICE_ABSENT: (S.DEVICE_GONE, TEAR_DOWN),
        E.POD_NETWORK_ABSENT: (S.TORN_DOWN, ()),
        E.RELEASE_RECORDED: (S.RELEASED, ()),
        E.DEVICE_BACK: (S.PENDING, REQUEST),
    },
    S.TORN_DOWN: {
        E.DEVICE_ABSENT: (S.TORN_DOWN, REPORT),
        E.RELEASE_RECORDED: (S.RELEASED, ()),
        E.DEVICE_BACK: (S.PENDING, REQUEST),
    },
    S.RELEASED: {
        E.RELEASE_RECORDED: (S.RELEASED, ()),
        E.DEVICE_BACK: (S.PENDING, REQUEST),
    },
}


@pytest.mark.parametrize("event", E)
@pytest.mark.parametrize("state", S)
def test_every_state_with_every_event(state: UnplugState, event: UnplugEvent) -> None:
    record = UnplugRecord(state)
    expected = EXPECTED[state].get(event)
    if expected is None:
        with pytest.raises(IllegalTransition, match=f"event {event} in state {state}"):
            record.advance(event)
        assert record.unplug.state is state
        return
    assert transition(state, event) == expected
    record.advance(event)
    assert record.unplug.state is expected[0]


def test_the_table_has_no_other_transition() -> None:
    assert set(TABLE) == {(state, event) for state, row in EXPECTED.items() for event in row}


def test_only_a_torn_down_unplug_is_reported_and_only_an_absent_device_is_torn_down() -> None:
    for (state, event), (_, commands) in TABLE.items():
        if C.REPORT_RELEASED in commands:
            assert (state, event) == (S.TORN_DOWN, E.DEVICE_ABSENT)
        if C.TEAR_DOWN in commands:
            assert event is E.DEVICE_ABSENT


@pytest.mark.parametrize(
    ("in_domain", "released", "expected"),
    [
        (True, False, S.REQUESTED),
        (True, True, S.REQUESTED),
        (False, False, S.DEVICE_GONE),
        (False, True, S.RELEASED),
    ],
)
def test_the_initial_state_follows_from_observation(in_domain: bool, released: bool, expected: UnplugState) -> None:
    assert initial_state(in_domain=in_domain, released=released) is expected


requests = st.none() | st.builds(
    UnplugRequests,
    count=st.integers(1, 3),
    first_at=st.just(10.0),
    next_at=st.floats(10.0, 60.0),
    refused=st.booleans(),
    warned_count=st.integers(0, 3),
)


@given(state=st.sampled_from(S), requests=requests, in_domain=st.booleans(), released=st.booleans())
def test_every_observation_is_a_legal_event(
    state: UnplugState, requests: UnplugRequests | None, in_domain: bool, released: bool
) -> None:
    unrequested = (S.REQUESTED, *GONE)
    if (requests is None) is not (state in unrequested) and state not in GONE:
        return
    if state is S.RELEASED and not in_domain and not released:
        # A session derives the state again then: the release is another operation's.
        return
    for now in (10.0, 14.9, 15.0, 70.0):
        event = observed_event(Unplug(state, requests), in_domain=in_domain, released=released, now=now)
        transition(state, event)
        if in_domain and requests is not None and now >= requests.next_at and state not in GONE:
            assert event is E.REQUEST_DUE


class UnplugMachine(RuleBasedStateMachine):
    """A guest, a handler that may restart at any time, and a VMI. Each run of the handler does what the table says."""

    def __init__(self) -> None:
        super().__init__()
        self.now = 0.0
        self.device = self.backend = self.pod_network = True
        self.released = False
        self.requested = False
        self.releases: list[int] = []
        self.appearances = 0
        self.record: UnplugRecord | None = None

    @initialize(device=st.booleans(), pod_network=st.booleans())
    def start(self, device: bool, pod_network: bool) -> None:
        self.device, self.backend, self.pod_network = device, device or pod_network, device or pod_network

    @rule(seconds=st.sampled_from([0.1, 1.0, UNPLUG_TIMEOUT, 30.0]))
    def wait(self, seconds: float) -> None:
        self.now += seconds

    @precondition(lambda self: self.requested and self.device)
    @rule()
    def guest_gives_up_the_device(self) -> None:
        self.device = self.requested = False

    @precondition(lambda self: self.record is not None and self.record.unplug.requests is not None)
    @rule()
    def guest_refuses(self) -> None:
        assert self.record is not None
        self.record.record_refused()

    @precondition(lambda self: not self.device)
    @rule()
    def device_is_back(self) -> None:
        self.device = self.backend = self.pod_network = True
        self.appearances += 1

    @rule()
    def handler_restarts(self) -> None:
        self.record = None

    @rule(works=st.booleans(), recorded=st.booleans())
    def handler_runs(self, works: bool, recorded: bool) -> None:
        """Run once.

        :param works: whether the action succeeds.
        :param recorded: whether the handler survives the action.
        """
        if self.record is None or self.record.unplug.state is S.RELEASED:
            self.record = UnplugRecord(initial_state(in_domain=self.device, released=self.released))
        unplug = self.record.unplug
        event = observed_event(unplug, in_domain=self.device, released=self.released, now=self.now)
        before = unplug.state
        _, commands = transition(before, event)
        for command in commands:
            self.apply(command, event, works=works)
        if not recorded:
            self.record = None

    def apply(self, command: UnplugCommand, event: UnplugEvent, *, works: bool) -> None:
        record = self.record
        assert record is not None
        if command is C.REQUEST_UNPLUG:
            assert self.device
            record.advance(event)
            record.record_request(self.now, restart=event is E.DEVICE_BACK)
            self.requested = self.requested or works
        elif command is C.WARN_OVERDUE:
            assert self.device
            unplug_requests = record.unplug.requests
            assert unplug_requests is not None
            assert unplug_requests.warned_count < unplug_requests.count, "warned once for each request"
            assert unplug_requests.overdue(self.now)
            record.advance(event)
            record.record_warning()
        elif command is C.TEAR_DOWN:
            assert not self.device, "nothing is torn down under a device"
            record.advance(event)
            self.backend = False
            if works:
                self.pod_network = False
                record.advance(E.POD_NETWORK_ABSENT)
        else:
            assert command is C.REPORT_RELEASED
            assert not any((self.device, self.backend, self.pod_network)), "released only when torn down"
            assert not self.released, "a NIC is not released twice"
            if works:
                self.released = True
                record.advance(E.RELEASE_RECORDED)

    @invariant()
    def released_once_and_never_under_a_first_device(self) -> None:
        if self.released and self.appearances == 0:
            assert not any((self.device, self.backend, self.pod_network))


TestUnplugMachine = UnplugMachine.TestCase
