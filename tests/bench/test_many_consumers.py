"""The consumers of 400 nodes on one stream: time from publish to receipt, and what the NATS server takes.

All connections are in this process, each with its consumer as a node role has it. Its own CPU is part of every time.
"""

import asyncio
import logging
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import structlog

from schemas.bus.encoding import SUBJECT_ROOT, node_consumer, node_filter
from schemas.bus.hotplug_status import BUCKET
from services.common.bus.nats.jetstream import JetStreamBus, connect
from services.common.bus.protocol import ReceivedEvent
from services.common.bus.settings import MIB, BusSettings
from services.common.telemetry import configure
from tests.bench.measure import CpuIdle, cpu_time, percentile, rss
from tests.support.bus.conformance import annotated
from tests.support.bus.jetstream import jetstream
from tests.support.bus.nats import NatsServer, nats_server

NODES = 400
ROLES = ("networks", "handler")
RATE = 100
"""Events a second: one plug on each node within 4 s."""
REST = 60.0
ENTRIES = 10_000
VALUE = b"x" * 700
"""About the size of an entry of the hot-plug status bucket."""
SETTINGS = BusSettings(publish_budget=5.0)


class Receipts:
    """Counts what arrives, and how long after it was published."""

    def __init__(self) -> None:
        self.sent: dict[str, float] = {}
        self.delays: list[float] = []
        self._arrived = asyncio.Event()

    def __call__(self, received: ReceivedEvent) -> None:
        self.delays.append(time.monotonic() - self.sent[received.event.operation.id])
        self._arrived.set()

    async def wait(self, count: int) -> None:
        """Wait until as many events have arrived."""
        async with asyncio.timeout(120):
            while len(self.delays) < count:
                self._arrived.clear()
                await self._arrived.wait()


async def test_many_consumers(record: Callable[[str, dict[str, Any]], None]) -> None:
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(logging.WARNING))
    telemetry, log = configure("bench", environ={}), structlog.get_logger()
    with tempfile.TemporaryDirectory(prefix="hotnic-bench-") as directory:
        async with (
            nats_server(Path(directory)) as server,
            jetstream(server) as harness,
            asyncio.TaskGroup() as group,
        ):

            async def start(role: str, node: str) -> JetStreamBus:
                bus = await connect(
                    server.url, role=role, node=node, telemetry=telemetry, log=log, settings=SETTINGS, environ={}
                )
                await bus.wait_connected()
                return bus

            controller = await start("controller", "_")
            receipts, began = Receipts(), time.monotonic()
            buses, tasks, consumers = [controller], [], ["projector"]
            for node in (f"node{number}" for number in range(NODES)):
                for role in ROLES:
                    buses.append(bus := await start(role, node))
                    consumers.append(consumer := node_consumer(role, node))
                    tasks.append(group.create_task(consume(bus, consumer, node_filter(node), receipts)))
            tasks.append(group.create_task(consume(controller, "projector", f"{SUBJECT_ROOT}.>", receipts)))
            for consumer in consumers:
                await harness.wait_consumer(consumer)
            result = {"consumers": len(tasks), "start_s": round(time.monotonic() - began, 1)}
            result |= await at_rest(server)
            result |= await publish_to_each_node(controller, receipts, server)
            result |= await fill_bucket(controller, server)
            state = (await harness.js.stream_info(f"KV_{BUCKET}")).state
            result["bucket_mib"] = round(state.bytes / MIB, 1)
            for task in tasks:
                task.cancel()
            await asyncio.gather(*(bus.close() for bus in buses))
    for name, value in result.items():
        print(f"  {name:<28}{value:>10}")
    record("many-consumers", result)


async def consume(bus: JetStreamBus, consumer: str, subjects: str, handler: Receipts) -> None:
    await bus.consume(consumer=consumer, filters=[subjects], handler=handler)


async def at_rest(server: NatsServer) -> dict[str, Any]:
    idle, before = CpuIdle(), cpu_time(server.pid)
    # That nothing happens has no event to wait for.
    await asyncio.sleep(REST)
    spent = cpu_time(server.pid) - before
    return {
        "rest_core_percent": round(spent / REST / 10, 2),
        "rest_cpu_idle": round(idle.share(), 2),
        "server_mib": round(rss(server.pid), 1),
    }


async def publish_to_each_node(bus: JetStreamBus, receipts: Receipts, server: NatsServer) -> dict[str, Any]:
    before, began = cpu_time(server.pid), time.monotonic()
    for number in range(NODES):
        event = annotated(number, node=f"node{number}")
        await asyncio.sleep(began + number / RATE - time.monotonic())
        receipts.sent[event.operation.id] = time.monotonic()
        await bus.publish(event)
    await receipts.wait(NODES * (len(ROLES) + 1))
    delays = [1000 * delay for delay in receipts.delays]
    return {
        "events": NODES,
        "received": len(delays),
        "p50_ms": round(statistics.median(delays), 2),
        "p99_ms": round(percentile(delays, 99), 2),
        "max_ms": round(max(delays), 2),
        "server_ms_per_event": round((cpu_time(server.pid) - before) / NODES, 2),
    }


async def fill_bucket(bus: JetStreamBus, server: NatsServer) -> dict[str, Any]:
    """Write as many entries as the projector does at its start, 16 at once, as it does for one namespace."""
    store, limit = bus.kv(BUCKET), asyncio.Semaphore(16)

    async def write(number: int) -> None:
        async with limit:
            await store.create(f"default.vm{number}.0011223344", VALUE)

    before, began = cpu_time(server.pid), time.monotonic()
    await asyncio.gather(*map(write, range(ENTRIES)))
    seconds = time.monotonic() - began
    return {
        "bucket_entries": ENTRIES,
        "bucket_writes_per_s": round(ENTRIES / seconds),
        "server_ms_per_write": round((cpu_time(server.pid) - before) / ENTRIES, 3),
        "server_mib_after": round(rss(server.pid), 1),
    }
