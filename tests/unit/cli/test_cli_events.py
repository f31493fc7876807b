"""``hotnic events``: the same line from a NATS message and from a Kubernetes Event, and ``--follow`` from both."""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable
from datetime import UTC, datetime
from itertools import pairwise
from pathlib import Path

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from schemas.bus.events import Event, Failed, GuestAttached, ObjectRef, Requested
from schemas.kubernetes.operations import Operation
from schemas.stages import OperationKind, Stage
from services.cli.bus import NATS_HINT, required_url
from services.cli.commands.events import _from_cluster, _from_nats, _Printer
from services.cli.commands.timeline import (
    COLUMNS,
    TimelineEntry,
    cells,
    entry_of_event,
    entry_of_message,
    sort_by_time,
)
from services.cli.errors import Unreachable
from services.cli.output import NONE
from services.cli.tracing.tracer import NoTraces
from services.common.bus.envelope import BusMessage, encode_message
from services.common.bus.nats.stored.reader import StoredMessage
from services.common.domain.status.kubernetes_events import build_kubernetes_event
from services.common.kube.client import Kube
from tests.support.bus.projecting import at_stage
from tests.support.kube.node_kube import EVENTS, FakeKube, serving_kube, write_kubeconfig

TRACE = "a" * 32
VMI = ObjectRef("default", "vm1", "uid")
PLUG = Operation("op", OperationKind.PLUG, "blue", traceparent=f"00-{TRACE}-{'b' * 16}-01")
ENTRY = TimelineEntry("", "requested", "blue", "plug", "op", "api")
LOST = Failed(
    PLUG,
    VMI,
    node="n1",
    at=Stage.MULTUS_ATTACHED,
    reason="CniFailed",
    message="no\nlease",
    attempt=3,
    retry_after=0.4,
)
ATTACHED = GuestAttached(PLUG, VMI, node="n1")


def from_bus(event: Event, role: str, node: str, second: int = 0) -> BusMessage:
    now = datetime(2026, 1, 1, second=second, tzinfo=UTC)
    return encode_message(event, role=role, node=node, start_id="s", now=now)


def from_cluster(event: Event, role: str, host: str | None) -> dict[str, object]:
    event_body = build_kubernetes_event(event)
    assert event_body is not None
    return {
        "metadata": {"annotations": event_body.annotations},
        "lastTimestamp": "2026-01-01T00:00:00Z",
        "reason": event_body.reason,
        "message": event_body.message,
        "involvedObject": {"uid": at_stage(Stage.REQUESTED)[0].metadata.uid},
        "source": {"component": f"hotnic-{role}"} | ({"host": host} if host else {}),
    }


@pytest.mark.parametrize(
    ("event", "role", "node"),
    [
        (Requested(PLUG, VMI), "api", "_"),
        (GuestAttached(PLUG, VMI, node="n1"), "handler", "n1"),
        (LOST, "networks", "n1"),
    ],
)
def test_message_and_kubernetes_event_give_the_same_entry(event: Event, role: str, node: str) -> None:
    host = None if node == "_" else node
    bus, cluster = entry_of_message(from_bus(event, role, node)), entry_of_event(from_cluster(event, role, host))
    assert bus is not None
    assert cluster is not None
    for name in ("stage", "interface", "kind", "operation", "by", "trace_id"):
        assert getattr(bus, name) == getattr(cluster, name)
    assert bus.by == (role if host is None else f"{role}/n1")
    assert len(cells(bus)) == len(cells(cluster)) == len(COLUMNS)
    assert all(cells(bus))


def test_failed_attempt_has_stage_reason_and_retry_delay() -> None:
    line = entry_of_message(from_bus(LOST, "networks", "n1"))
    assert line is not None
    assert (line.at, line.reason, line.attempt, line.retry_after) == ("multus-attached", "CniFailed", 3, 0.4)
    row = cells(line)
    assert "failed (multus-attached)" in row
    assert row[-1] == "CniFailed: no lease"


@given(
    st.lists(
        st.sampled_from(["", "now", "2026-01-01T00:00:00Z", "2026-01-01T00:00:00.5Z", "2026-01-01T02:00:00+02:00"])
    )
)
def test_entries_are_sorted_by_time_and_one_without_stays_behind_the_one_before_it(times: list[str]) -> None:
    entries = [msgspec.structs.replace(ENTRY, time=time, message=str(place)) for place, time in enumerate(times)]
    found = sort_by_time([None, *entries])
    assert sorted(found, key=lambda entry: int(entry.message)) == entries
    late = [entry.time.endswith(".5Z") for entry in found if entry.time.startswith("2026")]
    assert late == sorted(late)
    for before, entry in pairwise(found):
        if not entry.time.startswith("2026") and int(entry.message) > 0:
            assert before.message == str(int(entry.message) - 1)


def test_an_event_in_another_s_name_gives_no_entry() -> None:
    """A role dead-letters it; nobody else looks at the subject, which is all that NATS has permitted."""
    sent = from_bus(LOST, "networks", "n1")
    headers = sent.headers | {"ce-source": "/hotnic/networks/n2"}
    assert entry_of_message(sent) is not None
    assert entry_of_message(msgspec.structs.replace(sent, headers=headers)) is None
    assert entry_of_message(msgspec.structs.replace(sent, subject="hotplug.failed.n2.default.vm1")) is None


def test_malformed_message_and_foreign_event_give_no_entry() -> None:
    assert entry_of_message(BusMessage("hotplug.requested._.default.vm1", b"{", {})) is None
    assert entry_of_event({"source": {"component": "kubelet"}, "metadata": {}}) is None
    assert entry_of_event({"metadata": {}}) is None


def test_hotnic_event_without_a_stage_gives_an_entry() -> None:
    line = entry_of_event({"source": {"component": "hotnic-controller"}, "metadata": {}, "reason": "X", "message": "y"})
    assert line is not None
    assert cells(line)[1:4] == [NONE] * 3
    assert cells(line)[-1] == "X: y"


@pytest.mark.parametrize("url", [None, ""])
def test_missing_address_of_nats_is_reported_with_a_hint(url: str | None) -> None:
    with pytest.raises(Unreachable) as caught:
        required_url(url)
    assert caught.value.message == f"no NATS address is set\n{NATS_HINT}"


NATS_URL = "nats://me:secret@127.0.0.1:4222"


class FakeReader:
    """A reader of NATS with two stored messages, the later event first, and one that arrives after the subscription."""

    def __init__(self, capsys: pytest.CaptureFixture[str]) -> None:
        self._capsys = capsys
        self.output = self.error_output = ""

    async def list_messages(self, _subjects: str) -> AsyncIterator[StoredMessage]:
        """Yield the stored messages."""
        yield StoredMessage(1, from_bus(LOST, "networks", "n1", 2))
        yield StoredMessage(2, from_bus(Requested(PLUG, VMI), "api", "_", 1))

    async def follow_messages(
        self, _subjects: str, after: int, on_subscribed: Callable[[], None]
    ) -> AsyncIterator[StoredMessage]:
        """Subscribe, yield the new message and end."""
        assert after == 2
        self.output, errors = self._capsys.readouterr()
        assert errors == ""
        on_subscribed()
        self.error_output = self._capsys.readouterr().err
        yield StoredMessage(3, from_bus(ATTACHED, "handler", "n1", 0))


@pytest.mark.parametrize("follow", [True, False])
async def test_follow_prints_a_line_when_nats_has_accepted_the_subscription(
    follow: bool, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    reader = FakeReader(capsys)

    @contextlib.asynccontextmanager
    async def open_reader(*_args: object, **_fields: object) -> AsyncIterator[FakeReader]:
        yield reader

    monkeypatch.setattr("services.common.bus.nats.stored.reader.open_reader", open_reader)
    printer = _Printer(None, follow=follow, json=True)
    assert await _from_nats(NATS_URL, "default", "vm1", printer, follow)
    line = "following events of default/vm1 from NATS at nats://***@127.0.0.1:4222; press Ctrl-C to stop\n"
    assert reader.error_output == (line if follow else "")
    output, errors = capsys.readouterr()
    printed = map(msgspec.json.decode, (reader.output + output).splitlines()) if follow else msgspec.json.decode(output)
    # Stored events are in the order of time, new ones in that of their arrival.
    assert [entry["stage"] for entry in printed] == ["requested", "failed"] + ["guest-attached"] * follow
    assert (printer.count, errors) == (3 if follow else 2, "")


async def test_follow_prints_a_line_when_the_kubernetes_events_are_listed(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def put(name: str, event: Event, role: str) -> None:
        server.put(EVENTS, "default", name, **from_cluster(event, role, None))

    server = FakeKube()
    vmi, _ = at_stage(Stage.REQUESTED)
    document = msgspec.to_builtins(vmi)
    server.put("virtualmachineinstances", "default", "vm1", **document)
    put("one", Requested(PLUG, VMI), "api")
    printer = _Printer(None, follow=True, json=True)
    output, errors = "", ""
    async with serving_kube(server), asyncio.timeout(10):
        config = write_kubeconfig(tmp_path / "kubeconfig", server.url)
        async with await Kube.connect(kubeconfig=config, telemetry=NoTraces(), user_agent="test") as kube:
            following = asyncio.create_task(_from_cluster(kube, "default", "vm1", printer, follow=True))
            while "following" not in errors:
                assert not following.done()
                await asyncio.sleep(0.01)
                captured = capsys.readouterr()
                output, errors = output + captured.out, errors + captured.err
            assert (printer.count, '"stage":"requested"' in output) == (1, True)
            put("two", GuestAttached(PLUG, VMI), "handler")
            while printer.count < 2:
                assert not following.done()
                await asyncio.sleep(0.01)
            following.cancel()
            await asyncio.wait({following})
    errors += capsys.readouterr().err
    assert errors == "following events of default/vm1 from the Kubernetes API; press Ctrl-C to stop\n"
