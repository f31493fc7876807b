"""The outbox, the endpoint of NATS, and the configuration of the streams."""

import asyncio
from pathlib import Path

import pytest
import structlog
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from schemas.bus.encoding import DEAD_ROOT
from schemas.bus.events import MAX_EVENT_BYTES, MultusAttached, ObjectRef
from schemas.kubernetes.operations import Operation
from schemas.stages import OperationKind
from services.common.bus.envelope import BusMessage
from services.common.bus.nats.credentials import FILE_VARIABLES, Endpoint
from services.common.bus.nats.jetstream import connect
from services.common.bus.nats.outbox import Outbox
from services.common.bus.nats.streams import stream_configs
from services.common.bus.settings import BusSettings
from services.common.telemetry.logs import logger
from tests.support.telemetry.spans import recording_telemetry

LIMIT, DEAD_LIMIT = 4, 2


class OutboxMachine(RuleBasedStateMachine):
    """Compares an outbox with a plain list."""

    def __init__(self) -> None:
        super().__init__()
        self.outbox = Outbox(LIMIT, DEAD_LIMIT)
        self.model: list[BusMessage] = []
        self.count = 0
        self.dropped_message: BusMessage | None = None

    @rule()
    def put(self) -> None:
        self.count += 1
        message = BusMessage(f"s.{self.count}", b"", {})
        dropped = self.outbox.put(message)
        assert dropped is (self.model.pop(0) if len(self.model) == LIMIT else None)
        self.dropped_message = dropped or self.dropped_message
        self.model.append(message)

    @rule()
    def put_dead_letter(self) -> None:
        self.count += 1
        message = BusMessage(f"{DEAD_ROOT}.{self.count}", b"", {})
        dead = [one for one in self.model if one.subject.startswith(f"{DEAD_ROOT}.")]
        refused = len(self.model) == LIMIT or len(dead) == DEAD_LIMIT
        assert self.outbox.put(message) is (message if refused else None)
        if not refused:
            self.model.append(message)

    @rule(old=st.booleans())
    def remove(self, old: bool) -> None:
        if old and self.dropped_message is not None:
            self.outbox.remove(self.dropped_message)
        elif self.model:
            self.outbox.remove(self.model[0])
            self.dropped_message = self.model.pop(0)

    @invariant()
    def lengths_are_equal(self) -> None:
        assert len(self.outbox) == len(self.model)


TestOutbox = OutboxMachine.TestCase


async def test_wait_head_waits_and_does_not_remove() -> None:
    outbox, message = Outbox(LIMIT), BusMessage("s", b"", {})
    waiting = asyncio.create_task(outbox.wait_head())
    await asyncio.sleep(0)
    assert not waiting.done()
    outbox.put(message)
    assert await waiting is message
    assert await outbox.wait_head() is message
    empty = asyncio.create_task(outbox.wait_empty())
    await asyncio.sleep(0)
    assert not empty.done()
    outbox.remove(message)
    await empty
    assert not outbox


def test_endpoint_reads_the_variables_of_the_nats_tools() -> None:
    environ = {"NATS_CREDS": "/c", "NATS_NKEY": "/n", "NATS_TOKEN_FILE": "/t"}
    environ |= {"NATS_CA": "/ca", "NATS_CERT": "/crt", "NATS_KEY": "/key"}
    assert Endpoint.from_url("tls://a:4222, tls://b:4222,", environ) == Endpoint(
        ("tls://a:4222", "tls://b:4222"), "/c", "/n", "/t", "/ca", "/crt", "/key"
    )
    assert Endpoint.from_url("nats://a", {}).tls() is None


@pytest.mark.parametrize(("url", "gauge"), [(None, []), ("nats://127.0.0.1:1", ["hotnic_bus_up 0.0"])])
async def test_only_a_process_with_a_bus_reports_whether_it_is_up(url: str | None, gauge: list[str]) -> None:
    telemetry, _ = recording_telemetry()
    bus = await connect(url, role="networks", node="a", telemetry=telemetry, log=structlog.get_logger(), environ={})
    lines = telemetry.metrics_text().decode().splitlines()
    assert [line for line in lines if line.startswith("hotnic_bus_up")] == gauge
    await bus.close()


def test_digest_changes_with_each_file(tmp_path: Path) -> None:
    files = {name: tmp_path / name for name in FILE_VARIABLES}
    endpoint = Endpoint(("tls://a",), **{name: str(path) for name, path in files.items()})
    seen = {endpoint.digest()}
    for path in files.values():
        path.write_text("one")
        seen.add(endpoint.digest())
        path.write_text("two")
        seen.add(endpoint.digest())
    assert len(seen) == 1 + 2 * len(files)
    assert endpoint.digest() in seen
    # The same content in another file is another credential.
    files["cert"].write_text("one")
    other = Endpoint(("nats://a",), cert=str(files["cert"]))
    assert other.digest() != Endpoint(("nats://a",), key=str(files["cert"])).digest()


def test_token_is_read_anew(tmp_path: Path) -> None:
    token = tmp_path / "token"
    endpoint = Endpoint(("tls://a",), token=str(token))
    for content in ("first", "second"):
        token.write_text(f"{content}\n")
        assert endpoint.read_token() == content
    assert Endpoint(("nats://a",)).read_token() is None


def test_missing_certificate_raises_os_error(tmp_path: Path) -> None:
    with pytest.raises(OSError, match=r".+"):
        Endpoint(("tls://a",), ca=str(tmp_path / "none")).tls()


def test_stream_configs_set_every_limit() -> None:
    events, dead = stream_configs(BusSettings())
    assert (events.name, events.subjects) == ("HOTPLUG", ["hotplug.>"])
    assert (events.max_age, events.duplicate_window) == (86_400, 5)
    assert events.max_consumers is not None
    assert events.max_consumers > 1000
    assert (dead.name, dead.subjects) == ("HOTPLUG_DEAD", ["hotplug-dead.>"])
    for stream in (events, dead):
        assert stream.max_bytes
        assert stream.max_age
        assert stream.max_msg_size is not None
        assert MAX_EVENT_BYTES < stream.max_msg_size < 2 * MAX_EVENT_BYTES


async def test_an_event_that_is_too_large_is_logged_once_and_is_no_failure(caplog: pytest.LogCaptureFixture) -> None:
    """Its texts are those of an object that others write: the reconcile of that object has to go on."""
    bus = await connect(None, role="networks", node="n1", telemetry=recording_telemetry()[0], log=logger("test"))
    operation = Operation("1", OperationKind.PLUG, "a")
    ref = ObjectRef("default", "vm1", "uid")
    await bus.publish(MultusAttached(operation=operation, vmi=ref, node="n1", ips=("x" * MAX_EVENT_BYTES,)))
    [line] = [record.getMessage() for record in caplog.records if "event not published" in record.getMessage()]
    assert "default/vm1" in line
    assert len(bus._outbox) == 0
    await bus.publish(MultusAttached(operation=operation, vmi=ref, node="n1"))
    assert len(bus._outbox) == 1
    await bus.close()
