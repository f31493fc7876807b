"""What happens at each limit of a real nats-server, and what logs and doctor say: store, stream and bucket."""

import asyncio
import socket
from collections.abc import AsyncIterator, Mapping, MutableMapping
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import msgspec
import pytest
import structlog
from nats.js.errors import BadRequestError, ServerError

from schemas.bus.hotplug_status import BUCKET
from services.cli.doctor.checks.bus import check_stores, check_streams
from services.cli.doctor.collect.bus import read_bus, read_server_store
from services.cli.doctor.snapshot import Finding, NotVisible
from services.common.bus.nats.connection import BusConnection
from services.common.bus.nats.credentials import Endpoint
from services.common.bus.nats.jetstream import JetStreamBus, connect
from services.common.bus.nats.stored.keyvalue import JetStreamKeyValue
from services.common.bus.nats.streams import StreamNotCreated, ensure_streams, stream_configs
from services.common.bus.protocol import BusUnavailable
from services.common.bus.settings import MIB, BusSettings, StoreUsage
from services.common.telemetry.logs import Log
from tests.support.bus.conformance import Inbox, annotated, consuming
from tests.support.bus.jetstream import QUICK, Buses, jetstream
from tests.support.bus.nats import NatsServer, nats_server
from tests.support.telemetry.spans import recording_telemetry

LOG = structlog.get_logger()
VALUE = b"x" * 1024


@asynccontextmanager
async def connected(server: NatsServer) -> AsyncIterator[BusConnection]:
    connection = await BusConnection.open(Endpoint((server.url,)), name="test", settings=QUICK, log=LOG)
    try:
        yield connection
    finally:
        await connection.close()


class LogEntries:
    """The log of a bus, entry by entry, each with its level."""

    def __init__(self) -> None:
        self._entries = asyncio.Queue[Mapping[str, Any]]()
        self.log: Log = structlog.wrap_logger(None, processors=[self._keep])

    def _keep(self, _logger: object, level: str, entry: MutableMapping[str, Any]) -> Mapping[str, Any]:
        self._entries.put_nowait({**entry, "level": level})
        raise structlog.DropEvent

    async def next(self, event: str) -> Mapping[str, Any]:
        """Return the next entry of an event."""
        async with asyncio.timeout(60):
            while (entry := await self._entries.get())["event"] != event:
                pass
        return entry


async def start(server: NatsServer, entries: LogEntries, settings: BusSettings) -> JetStreamBus:
    telemetry = recording_telemetry()[0]
    log = entries.log
    return await connect(
        server.url, role="controller", node="_", telemetry=telemetry, log=log, settings=settings, environ={}
    )


def bucket(connection: BusConnection, settings: BusSettings) -> JetStreamKeyValue:
    return JetStreamKeyValue(BUCKET, lambda: connection, settings)


async def test_a_store_without_room_says_what_is_reserved_and_what_to_do(tmp_path: Path) -> None:
    config = tmp_path / "nats.conf"
    config.write_text(f"jetstream {{ max_file_store: {22 * MIB} }}\n")
    async with nats_server(tmp_path / "nats", "-c", str(config)) as server, connected(server) as connection:
        await connection.js.add_stream(name="OTHER", subjects=["other"], max_bytes=4 * MIB)
        with pytest.raises(StreamNotCreated, match=r"room to reserve stream HOTPLUG_DEAD: .* 21 MiB.*max_file_store"):
            await ensure_streams(connection.js, QUICK, LOG)
        assert (await connection.js.stream_info(QUICK.stream)).config.max_bytes == QUICK.max_bytes
        large = msgspec.structs.replace(QUICK, bucket_max_bytes=4 * MIB)
        with pytest.raises(BusUnavailable, match=r"room to reserve stream KV_hotplug-status: .* 24 MiB"):
            await bucket(connection, large).put("a", VALUE)
        assert await findings(server) == {
            "NATS stream HOTPLUG_DEAD": "BusStreamMissing",
            "NATS stream KV_hotplug-status": "BusStreamMissing",
        }
        entries = LogEntries()
        bus = await start(server, entries, QUICK)
        failed, again = [await entries.next("JetStream not ready") for _ in range(2)]
        await connection.js.delete_stream("OTHER")
        async with asyncio.timeout(60):
            await bus.wait_connected()
        await bus.close()
    assert "no room to reserve stream HOTPLUG_DEAD" in failed["error"]
    assert (failed["level"], again["level"]) == ("warning", "debug")


async def test_a_full_stream_drops_its_oldest_events_and_accepts_new_ones(server: NatsServer) -> None:
    small = msgspec.structs.replace(QUICK, max_bytes=16 * 1024)
    buses = Buses(server)
    bus = await buses.start("controller", "_", settings=small)
    await bus.wait_connected()
    for number in range(100):
        await bus.publish(annotated(number))
    async with jetstream(server) as harness:
        state = (await harness.js.stream_info(QUICK.stream)).state
    await buses.close()
    assert (state.last_seq, state.bytes <= small.max_bytes) == (100, True)
    assert state.first_seq > 1


async def findings(server: NatsServer, monitoring: str | None = None) -> dict[str, str]:
    """Return the codes of the doctor's findings by their subjects."""
    found = await read_bus(server.url, monitoring)
    assert not isinstance(found, NotVisible)
    results = (*check_streams(found.streams), *check_stores(found))
    return {one.subject: one.code if isinstance(one, Finding) else one.message for one in results}


async def test_the_doctor_sees_the_size_of_the_server_s_store(tmp_path: Path) -> None:
    config = tmp_path / "nats.conf"
    config.write_text(f"jetstream {{ max_file_store: {512 * MIB} }}\n")
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    monitoring = f"http://127.0.0.1:{port}"
    async with nats_server(tmp_path / "nats", "-c", str(config), "-m", str(port)) as server:
        found = await read_server_store(monitoring)
        assert found == StoreUsage(f"NATS server {monitoring}", 512 * MIB, 0, 0)
        async with connected(server) as connection:
            await connection.js.add_stream(name="OTHER", subjects=["other"], max_bytes=200 * MIB)
        missing = dict.fromkeys(
            ("NATS stream HOTPLUG", "NATS stream HOTPLUG_DEAD", "NATS stream KV_hotplug-status"), "BusStreamMissing"
        )
        # hotnic's streams reserve 384 MiB.
        assert await findings(server, monitoring) == {**missing, f"NATS server {monitoring}": "BusStoreTooSmall"}
        assert await findings(server) == missing
    gone = await read_server_store(monitoring)
    assert isinstance(gone, NotVisible)


async def test_the_doctor_sees_the_size_of_the_account_s_store(tmp_path: Path) -> None:
    config = tmp_path / "nats.conf"
    account = f"jetstream: {{max_file: {100 * MIB}, max_mem: 1024}}, users: [{{user: hotnic, password: secret}}]"
    config.write_text(f"jetstream {{}}\naccounts {{ HOTNIC: {{ {account} }} }}\n")
    async with nats_server(tmp_path / "nats", "-c", str(config)) as server:
        url = server.url.replace("nats://", "nats://hotnic:secret@")
        found = await read_bus(url)
    assert not isinstance(found, NotVisible)
    assert found.stores == (StoreUsage("NATS account", 100 * MIB, 0, 0),)
    assert {one.code for one in check_stores(found) if isinstance(one, Finding)} == {"BusStoreTooSmall"}


async def fill(store: JetStreamKeyValue) -> None:
    for number in range(100):
        await store.create(str(number), VALUE)


async def test_a_full_bucket_refuses_new_keys_until_one_is_deleted(server: NatsServer) -> None:
    async with connected(server) as connection:
        store = bucket(connection, msgspec.structs.replace(QUICK, bucket_max_bytes=16 * 1024))
        with pytest.raises(BusUnavailable, match=r"stream KV_hotplug-status is full.*nats stream edit"):
            await fill(store)
        assert (await findings(server))["NATS stream KV_hotplug-status"] == "BusBucketFull"
        assert await store.put("0", VALUE[1:]) > 0
        await store.delete("1")
        await store.delete("2")
        await store.create("new", VALUE)


async def test_a_consumer_beyond_the_limit_is_refused_and_the_others_receive(server: NatsServer) -> None:
    entries = LogEntries()
    one = msgspec.structs.replace(QUICK, max_consumers=1)
    bus = await start(server, entries, one)
    inbox = Inbox()
    async with jetstream(server, one) as harness, consuming(harness, bus, inbox), asyncio.timeout(60):
        refused = asyncio.create_task(bus.consume(consumer="second", filters=["hotplug.>"], handler=Inbox()))
        entry = await entries.next("consumer interrupted")
        refused.cancel()
        await asyncio.gather(refused, return_exceptions=True)
        await bus.publish(annotated())
        assert await inbox.wait(1) == [annotated()]
    await bus.close()
    assert entry["consumer"] == "second"
    assert "stream HOTPLUG has as many consumers as it may have: 1" in entry["error"]


@pytest.mark.parametrize("existing", [False, True], ids=["new", "existing"])
async def test_no_stream_takes_messages_larger_than_hotnic_s(server: NatsServer, existing: bool) -> None:
    entries = LogEntries()
    subjects = {
        "HOTPLUG": "hotplug.x.y.z.v",
        "HOTPLUG_DEAD": "hotplug-dead.x.y",
        "KV_hotplug-status": "$KV.hotplug-status.a",
    }
    async with connected(server) as connection:
        js = connection.js
        if existing:
            # As an earlier version of hotnic has made them.
            for settings in stream_configs(QUICK):
                await js.add_stream(settings.evolve(max_msg_size=-1))
            await js.create_key_value(bucket=BUCKET, max_bytes=QUICK.bucket_max_bytes)
            assert set((await findings(server)).values()) == {"BusMessagesTooLarge"}
        bus = await start(server, entries, QUICK)
        async with asyncio.timeout(60):
            await bus.wait_connected()
        await bus.kv(BUCKET).put("a", VALUE)
        assert await findings(server) == {}
        for stream, subject in subjects.items():
            limit = QUICK.message_limit(stream)
            # The least that headers take.
            await js.publish(subject, bytes(limit - 20), headers={"a": "b"})
            with pytest.raises(BadRequestError, match="message size exceeds maximum allowed"):
                await js.publish(subject, bytes(limit + 1))
        await bus.close()


async def test_a_sealed_stream_is_found_logged_and_made_again_once_it_is_deleted(server: NatsServer) -> None:
    entries = LogEntries()
    async with connected(server) as connection:
        js = connection.js
        await ensure_streams(js, QUICK, LOG)
        await bucket(connection, QUICK).put("a", VALUE)
        config = (await js.stream_info("HOTPLUG")).config
        await js.update_stream(config.evolve(sealed=True))
        assert await findings(server) == {"NATS stream HOTPLUG": "BusStreamSealed"}
        # Nobody can unset it.
        with pytest.raises(ServerError, match="can not unseal"):
            await js.update_stream(config.evolve(sealed=False))
        await ensure_streams(js, QUICK, entries.log)
        entry = await entries.next("stream sealed")
        assert (entry["stream"], entry["level"]) == ("HOTPLUG", "error")
        # The remedy.
        await js.delete_stream("HOTPLUG")
        await ensure_streams(js, QUICK, LOG)
        assert await findings(server) == {}
        await js.publish("hotplug.x.y.z.v", b"1")


async def test_a_value_that_is_too_large_says_so(server: NatsServer) -> None:
    async with connected(server) as connection:
        with pytest.raises(BusUnavailable, match="message size exceeds maximum allowed"):
            await bucket(connection, QUICK).put("a", bytes(QUICK.message_limit(f"KV_{BUCKET}") + 1))
