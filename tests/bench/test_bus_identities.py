"""What identities cost an event: a server with them and one without, in turns, from publish to ack and to receipt.

Both servers run all the time; the pairs of roles on them take turns, event by event.
"""

import asyncio
import contextlib
import logging
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import structlog

from schemas.bus.encoding import node_consumer, node_filter
from schemas.bus.events import MultusAttached, ObjectRef
from schemas.kubernetes.operations import Operation
from schemas.stages import OperationKind
from services.common.bus.nats.jetstream import JetStreamBus
from services.common.bus.protocol import ReceivedEvent
from services.common.bus.settings import BusSettings
from tests.bench.measure import percentile
from tests.support.bus.identities import identity_server
from tests.support.bus.jetstream import Buses
from tests.support.bus.nats import nats_server

TURNS = 3000
WARM_UP = 200
NODE = "node1"
SETTINGS = BusSettings(publish_budget=5.0, max_bytes=64 * 1024 * 1024)
EVENT = MultusAttached(
    operation=Operation("1", OperationKind.PLUG, "blue"),
    vmi=ObjectRef("default", "vm1", "u1"),
    pod=ObjectRef("default", "launcher", "u2"),
    node=NODE,
)


class Pair:
    """networks and handler of a node on one server."""

    def __init__(self, networks: JetStreamBus, handler: JetStreamBus) -> None:
        self.networks, self.handler = networks, handler
        self.acked: list[float] = []
        self.received: list[float] = []
        self._arrived = asyncio.Event()

    def on_event(self, _received: ReceivedEvent) -> None:
        self._arrived.set()

    async def turn(self, number: int) -> None:
        """Publish an event and wait for its ack and its receipt."""
        self._arrived.clear()
        began = time.perf_counter()
        await self.networks.publish(msgspec.structs.replace(EVENT, attempt=number))
        self.acked.append(time.perf_counter() - began)
        await self._arrived.wait()
        self.received.append(time.perf_counter() - began)

    def figures(self) -> dict[str, float]:
        acked, received = self.acked[WARM_UP:], self.received[WARM_UP:]
        return {
            f"{what} p{share}": round(1e6 * percentile(times, share))
            for what, times in (("ack", acked), ("receipt", received))
            for share in (50, 99)
        }


async def test_bus_identities(record: Callable[[str, dict[str, Any]], None]) -> None:
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(logging.WARNING))
    async with contextlib.AsyncExitStack() as stack:
        directory = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        plain = await stack.enter_async_context(nats_server(directory / "plain"))
        secured = await stack.enter_async_context(identity_server(directory / "secured"))
        buses = Buses(plain)
        stack.push_async_callback(buses.close)
        pairs = {}
        for name in ("without", "with"):
            found = []
            for role, node in (("controller", None), ("networks", NODE), ("handler", NODE)):
                if name == "with":
                    bus = await secured.bus(role, node, settings=SETTINGS)
                    stack.push_async_callback(bus.close)
                else:
                    bus = await buses.start(role, node or "_", settings=SETTINGS)
                await bus.wait_connected()
                found.append(bus)
            pairs[name] = pair = Pair(*found[1:])
            consuming = asyncio.create_task(
                pair.handler.consume(
                    consumer=node_consumer("handler", NODE), filters=[node_filter(NODE)], handler=pair.on_event
                )
            )
            stack.callback(consuming.cancel)
        await asyncio.sleep(1)  # until both consumers have a pull request
        for number in range(TURNS):
            for pair in pairs.values():
                await pair.turn(number)
        record("bus-identities", {f"{name} identities, us": pair.figures() for name, pair in pairs.items()})
