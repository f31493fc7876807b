"""Many clients that request plugs at once, and others beside them whose requests are slow or oversized.

Next: :mod:`tests.support.lab.played_nodes`, which completes the plugs.
"""

import asyncio
import contextlib
import itertools
import random
import ssl
import time
from collections import Counter
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from urllib.parse import urlsplit

import msgspec

from schemas.kubernetes.objects import VMIS
from schemas.kubernetes.options import MAX_BODY_BYTES
from services.common.domain.status_interfaces import DOMAIN, MULTUS_STATUS, find_entry, parse_tokens
from services.common.kube.client import Kube
from services.common.kube.errors import KubeError
from services.common.telemetry import configure

SUBRESOURCES = "/apis/subresources.hotnic.io/v1/namespaces/default/virtualmachineinstances"
COMPLETE = 120.0
"""Seconds until every plug is complete; a plug takes less than one alone."""
ENDED = 120.0
"""Seconds until the api has ended a slow request; it waits 10 for a head and 20 for a body."""


class Load(msgspec.Struct, frozen=True):
    """The requests of a run.

    :ivar requests: their number.
    :ivar clients: among which they are divided.
    :ivar vms: the number of VMs, to which they go in turn.
    :ivar pause: seconds between two requests of a client, on average.
    :ivar bad: the number of slow and oversized requests, spread over the time of the others.
    :ivar first: number of the first interface, so that two runs do not request the same one.
    """

    requests: int
    clients: int
    vms: int
    pause: float
    bad: int = 0
    first: int = 0


class Outcome(msgspec.Struct):
    """What became of the requests.

    :ivar seconds: until each answer.
    :ivar answers: number of answers by HTTP status; 0 counts requests without an answer.
    :ivar bad_answers: those of the slow and oversized requests; 0 counts connections that were closed without one.
    :ivar lost: interfaces whose request was accepted and that were not plugged.
    """

    seconds: list[float] = msgspec.field(default_factory=list)
    answers: Counter[int] = msgspec.field(default_factory=Counter)
    bad_answers: Counter[int] = msgspec.field(default_factory=Counter)
    lost: set[tuple[str, str]] = msgspec.field(default_factory=set)


async def send_requests(
    kubeconfig: Path, api: tuple[str, int], load: Load, on_answer: Callable[[int], None] = lambda _count: None
) -> Outcome:
    """Send the requests, and wait until all plugs are complete.

    :param api: where the api role listens.
    :param on_answer: called after each answer, with the number of answers so far.
    """
    outcome, accepted = Outcome(), set[tuple[str, str]]()
    numbers = iter(range(load.requests))

    async def run_client(kube: Kube) -> None:
        rng = random.Random()
        await asyncio.sleep(rng.uniform(0, load.pause))
        for number in numbers:
            vm, name = f"vm{number % load.vms}", f"r{load.first + number}"
            began = time.monotonic()
            status = await _put(kube, vm, {"name": name, "networkAttachmentDefinitionName": "net1"})
            outcome.seconds.append(time.monotonic() - began)
            outcome.answers[status] += 1
            if status == 202:
                accepted.add((vm, name))
            on_answer(len(outcome.seconds))
            await asyncio.sleep(rng.expovariate(1 / load.pause) if load.pause else 0)

    async with contextlib.AsyncExitStack() as stack:
        clients = [await stack.enter_async_context(_client(kubeconfig)) for _ in range(load.clients)]
        bad = asyncio.create_task(_send_bad_requests(clients[0], api, load, outcome.bad_answers))
        await asyncio.gather(*(run_client(kube) for kube in clients))
        await bad
        outcome.lost = await _wait_complete(clients[0], accepted)
    return outcome


async def _wait_complete(kube: Kube, accepted: set[tuple[str, str]]) -> set[tuple[str, str]]:
    lost = accepted
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(COMPLETE):
            while lost:
                vmis = {vmi.metadata.name: vmi for vmi in (await kube.list(VMIS, "default")).items}
                lost = {
                    (vm, name)
                    for vm, name in lost
                    if not {DOMAIN, MULTUS_STATUS} <= parse_tokens(find_entry(vmis[vm].status.interfaces, name) or {})
                }
                await asyncio.sleep(0.2)
    return lost


@contextlib.asynccontextmanager
async def _client(kubeconfig: Path) -> AsyncIterator[Kube]:
    telemetry = configure("client", environ={})
    async with await Kube.connect(kubeconfig=str(kubeconfig), telemetry=telemetry, user_agent="client") as kube:
        yield kube


async def _put(kube: Kube, vm: str, body: object) -> int:
    try:
        return (await kube.request("PUT", f"{SUBRESOURCES}/{vm}/addinterface", body=body)).status
    except KubeError as error:
        return error.status or 0


async def _send_bad_requests(kube: Kube, api: tuple[str, int], load: Load, answers: Counter[int]) -> None:
    """Send the slow and oversized requests, spread over the time that the others take; wait until each has ended."""
    every = load.requests * load.pause / load.clients / max(1, load.bad)
    server = urlsplit(kube.access.server)
    assert server.hostname is not None
    assert server.port is not None
    head = f"PUT {SUBRESOURCES}/vm0/addinterface HTTP/1.1\r\nHost: api\r\nContent-Type: application/json\r\n"
    # A client without a certificate, which reaches the api itself.
    unknown = ssl.create_default_context()
    unknown.check_hostname, unknown.verify_mode = False, ssl.CERT_NONE
    through = (server.hostname, server.port), kube.access.ssl
    chunk = b"10000\r\n" + b"a" * 0x10000 + b"\r\n"
    kinds = (
        (api, unknown, head.encode()),
        (*through, f"{head}Content-Length: {MAX_BODY_BYTES - 1}\r\n\r\n{{".encode()),
        (*through, f"{head}Content-Length: {2 * MAX_BODY_BYTES}\r\n\r\n".encode() + b"a" * 2 * MAX_BODY_BYTES),
        (*through, f"{head}Transfer-Encoding: chunked\r\n\r\n".encode() + 4 * chunk + b"0\r\n\r\n"),
    )
    async with asyncio.TaskGroup() as group:
        for number, (address, context, data) in zip(range(load.bad), itertools.cycle(kinds), strict=False):
            group.create_task(_send_bytes(address, context, data, answers), name=f"bad request {number}")
            await asyncio.sleep(every)


async def _send_bytes(
    address: tuple[str, int], context: ssl.SSLContext | None, data: bytes, answers: Counter[int]
) -> None:
    status, writer = 0, None
    # A server that ends the connection before it has read everything resets it.
    with contextlib.suppress(OSError, asyncio.IncompleteReadError):
        async with asyncio.timeout(ENDED):
            reader, writer = await asyncio.open_connection(*address, ssl=context)
            writer.write(data)
            line = await reader.readline()
            status = int(line.split()[1]) if line else 0
    if writer is not None:
        writer.close()
    answers[status] += 1
