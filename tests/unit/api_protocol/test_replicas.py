"""Two replicas of the api behave as one: neither has state, so what one began the other continues."""

import asyncio
import contextlib
import os
import signal
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import aiohttp
import msgspec
import pytest

from schemas.bus.hotplug_status import HotplugStatusEvent
from schemas.kubernetes.operations import read_operation
from tests.support.bus.memory import Broker
from tests.support.kube.api_process import ApiProcess, api_process
from tests.support.kube.served_api import HOTNIC, ServedApi, serve_api
from tests.support.observed import objects

VMS, VMIS = "virtualmachines", "virtualmachineinstances"
BASE = f"/apis/{HOTNIC}/namespaces/default/{VMIS}/vm1"
PLUG = {"networkAttachmentDefinitionName": "net1", "name": "iface1"}
Replicas = tuple[ServedApi, ServedApi]


@pytest.fixture
async def replicas(tmp_path: Path) -> AsyncIterator[Replicas]:
    broker = Broker()
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
    async with (
        serve_api(tmp_path / "a", broker=broker) as first,
        serve_api(tmp_path / "b", broker=broker, kube=first.kube) as second,
    ):
        first.put(VMS, objects.vm())
        first.put(VMIS, objects.vmi(owned=True))
        yield first, second


def interfaces(api: ServedApi, plural: str) -> list[dict[str, Any]]:
    spec = api.kube.objects[plural, "default", "vm1"]["spec"]
    spec = spec["template"]["spec"] if plural == VMS else spec
    found: list[dict[str, Any]] = spec["domain"]["devices"]["interfaces"]
    return found


@pytest.mark.parametrize("plural", [VMIS, VMS])
@pytest.mark.parametrize("copies", [1, 8])
async def test_the_same_request_to_both_at_once_is_one_operation(replicas: Replicas, plural: str, copies: int) -> None:
    for verb, body in (("addinterface", PLUG), ("removeinterface", {"name": "iface1"})):
        answers = await asyncio.gather(*(api.request(plural, verb, body) for api in replicas * copies))
        assert {code for code, _, _ in answers} == {202}
        [operation] = {operation for _, _, operation in answers}
        written = read_operation(replicas[0].kube.annotations(plural, "default", "vm1"), "iface1")
        assert written is not None
        assert written.id == operation
    assert [found["name"] for found in interfaces(replicas[0], plural)].count("iface1") == 1
    published = [event for api in replicas for event in api.bus.published]
    # A request that joins an operation publishes nothing.
    assert len(published) == (2 if plural == VMIS else 0)
    assert len({event.operation.id for event in published}) == len(published)


async def test_different_requests_for_one_name_are_not_both_accepted(replicas: Replicas) -> None:
    replicas[0].put("network-attachment-definitions", objects.nad(name="net2"))
    bodies = [PLUG, PLUG | {"networkAttachmentDefinitionName": "net2"}]
    answers = await asyncio.gather(
        *(api.request(VMIS, "addinterface", body) for api, body in zip(replicas, bodies, strict=True))
    )
    assert sorted(code for code, _, _ in answers) == [202, 409]
    assert [found["name"] for found in interfaces(replicas[0], VMIS)].count("iface1") == 1


async def test_many_requests_to_both_are_all_done(replicas: Replicas) -> None:
    bodies = [PLUG | {"name": f"iface{number}"} for number in range(8)]
    answers = await asyncio.gather(
        *(replicas[number % 2].request(VMIS, "addinterface", body) for number, body in enumerate(bodies))
    )
    assert [code for code, _, _ in answers] == [202] * len(bodies)
    assert {body["name"] for body in bodies} <= {found["name"] for found in interfaces(replicas[0], VMIS)}


@contextlib.asynccontextmanager
async def watching(session: aiohttp.ClientSession, **query: str) -> AsyncIterator[aiohttp.StreamReader]:
    async with session.get(f"{BASE}/interfaces", params={"watch": "true", **query}) as answer:
        assert answer.status == 200, await answer.text()
        yield answer.content


async def line(stream: aiohttp.StreamReader) -> HotplugStatusEvent:
    async with asyncio.timeout(50):
        return msgspec.json.decode(await stream.readline(), type=HotplugStatusEvent)


async def test_a_watch_resumes_at_the_other_replica(replicas: Replicas) -> None:
    first, second = replicas
    async with watching(first.session) as stream:
        begun = await line(stream)
    version = begun.object.metadata["resourceVersion"]
    assert begun.type == "ADDED"
    # Nothing has changed: the other one sends the end of the stream alone, with the same token.
    async with watching(second.session, resourceVersion=version, timeoutSeconds="1") as stream:
        end = await line(stream)
    assert (end.type, end.object.metadata["resourceVersion"]) == ("BOOKMARK", version)
    # What changes between two streams is the first line of the next one, wherever it was requested.
    await first.request(VMIS, "addinterface", PLUG)
    async with watching(second.session, resourceVersion=version) as stream:
        changed = await line(stream)
        assert changed.type == "MODIFIED"
        assert [item.interface for item in changed.object.items][-1] == "iface1"
        # And what changes during it, whoever was asked.
        await first.request(VMIS, "removeinterface", {"name": "iface1"})
        again = await line(stream)
    assert again.object.items[-1].kind == "unplug"
    async with watching(
        first.session, resourceVersion=again.object.metadata["resourceVersion"], timeoutSeconds="1"
    ) as stream:
        assert (await line(stream)).type == "BOOKMARK"


@contextlib.asynccontextmanager
async def dying(tmp_path: Path, port: int) -> AsyncIterator[tuple[ApiProcess, asyncio.subprocess.Process, str]]:
    """Run a replica as a process; yield it with the CA of its certificate."""
    async with api_process(tmp_path, port) as api:
        pair = api.front.server()
        process = await api.start(HOTNIC_TLS_CERT=str(pair.cert), HOTNIC_TLS_KEY=str(pair.key))
        try:
            await api.until_ready(200, "[+]serving ok")
            yield api, process, api.front.ca.read_text()
        finally:
            with contextlib.suppress(ProcessLookupError):
                process.kill()
            await process.communicate()


@pytest.mark.parametrize(("method", "done"), [("GET", False), ("PATCH", True)], ids=["before the patch", "within it"])
async def test_a_replica_that_dies_in_the_middle_leaves_one_operation_for_the_other(
    tmp_path: Path, unused_tcp_port: int, method: str, done: bool
) -> None:
    async with dying(tmp_path, unused_tcp_port) as (api, process, ca):
        kube = api.kube

        def kill(sent: str, plural: str, _name: str) -> None:
            if (sent, plural) == (method, VMIS):
                os.kill(process.pid, signal.SIGKILL)
                kube.before = lambda _method, _plural, _name: None

        (tmp_path / "b").mkdir()
        async with serve_api(tmp_path / "b", kube=kube) as other:
            other.put(VMS, objects.vm())
            other.put(VMIS, objects.vmi(owned=True))
            kube.before = kill
            async with api.caller(ca, server_name="127.0.0.1") as session:
                with pytest.raises(aiohttp.ClientError):
                    await session.put(f"{BASE}/addinterface", json=PLUG)
            await process.wait()
            before = read_operation(kube.annotations(VMIS, "default", "vm1"), "iface1")
            assert (before is not None) is done
            # The client, or the user, tries again.
            code, _, operation = await other.request(VMIS, "addinterface", PLUG)
            written = read_operation(kube.annotations(VMIS, "default", "vm1"), "iface1")
            assert written is not None
            assert (code, written.id) == (202, operation)
            assert before is None or before.id == operation
            assert [found["name"] for found in interfaces(other, VMIS)].count("iface1") == 1


async def test_the_stream_of_a_replica_that_dies_resumes_at_the_other(tmp_path: Path, unused_tcp_port: int) -> None:
    async with dying(tmp_path, unused_tcp_port) as (api, process, ca):
        (tmp_path / "b").mkdir()
        async with serve_api(tmp_path / "b", kube=api.kube) as other:
            other.bus.broker.stop()
            other.put(VMS, objects.vm())
            other.put(VMIS, objects.vmi(owned=True))
            async with api.caller(ca, server_name="127.0.0.1") as session, watching(session) as stream:
                version = (await line(stream)).object.metadata["resourceVersion"]
                process.kill()
                with pytest.raises(aiohttp.ClientError):
                    await stream.readline()
            async with watching(other.session, resourceVersion=version, timeoutSeconds="1") as stream:
                end = await line(stream)
            assert (end.type, end.object.metadata["resourceVersion"]) == ("BOOKMARK", version)
