"""The reflector against scripted watches and their failures."""

import asyncio
import random
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

import msgspec
import pytest
import structlog
from structlog.testing import LogCapture

from schemas.inputs import REJECTED, Edge, RejectReason
from schemas.kubernetes.decoding import rejection_of
from schemas.kubernetes.objects import PODS, VMS, Pod, VirtualMachine
from services.common.kube.cache.reflector import Reflector
from services.common.kube.client import Kube
from services.common.kube.denials import Denials
from services.common.kube.listing import RawPage
from services.common.telemetry.logs import logger

NS = "ns"


class Recorder:
    """Recorder of the reported changes and states."""

    def __init__(self) -> None:
        self.changes: list[tuple[str, str | None]] = []
        self.states: list[bool] = []
        self._changed = asyncio.Event()

    def change(self, key: tuple[str, str], value: Pod | VirtualMachine | None) -> None:
        self.changes.append((key[1], value.metadata.resource_version if value else None))
        self._changed.set()

    def state(self, ok: bool, _why: str) -> None:
        self.states.append(ok)
        self._changed.set()

    async def until(self, condition: Callable[[], bool]) -> None:
        async with asyncio.timeout(5):
            while not condition():
                self._changed.clear()
                await self._changed.wait()


class ShortBackoff(random.Random):
    """A random source that makes backoff short."""

    def uniform(self, a: float, b: float) -> float:
        return 0.01


@asynccontextmanager
async def reflecting(kube: Kube, seen: Recorder, **options: Any) -> AsyncIterator[Reflector[Pod]]:
    fixed = {"log": logger("test"), "rng": ShortBackoff()}
    reflector = Reflector(kube, PODS, on_change=seen.change, on_state=seen.state, **(fixed | options))
    task = asyncio.create_task(reflector.run())
    try:
        yield reflector
        assert not task.done(), "the reflector ended by itself"
    finally:
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task


async def test_watch_continues_from_the_version_of_the_list(kube: Kube, script: Any, make_pod: Any) -> None:
    seen = Recorder()
    script.listing(make_pod("a", "3"), make_pod("b", "4"))
    stream = script.watch()
    async with reflecting(kube, seen, labels="app=x", fields="spec.nodeName=n1", namespace=NS) as reflector:
        await asyncio.wait_for(reflector.synced.wait(), 5)
        assert seen.changes == [("a", "3"), ("b", "4")]
        stream.send("ADDED", make_pod("c", "11"))
        stream.send("MODIFIED", make_pod("a", "12"))
        stream.send("DELETED", make_pod("b", "13"))
        await seen.until(lambda: len(seen.changes) == 5)
        assert seen.changes[2:] == [("c", "11"), ("a", "12"), ("b", None)]
        assert sorted(pod.metadata.name for pod in reflector.items()) == ["a", "c"]
        assert reflector.get(NS, "b") is None
        assert reflector.version(NS, "a") == "12"
    watch = script.requests[1]
    assert watch.path == "/api/v1/namespaces/ns/pods"
    assert dict(watch.query) | {"timeoutSeconds": ""} == {
        "watch": "true",
        "allowWatchBookmarks": "true",
        "resourceVersion": "10",
        "labelSelector": "app=x",
        "fieldSelector": "spec.nodeName=n1",
        "timeoutSeconds": "",
    }


async def test_objects_are_found_by_their_index(kube: Kube, script: Any, make_pod: Any) -> None:
    seen = Recorder()
    script.listing(make_pod("a", "1", node="n1"), make_pod("b", "2", node="n1"), make_pod("c", "3", node=""))
    stream = script.watch()

    def names(node: str) -> list[str]:
        return sorted(pod.metadata.name for pod in reflector.indexed(node))

    async with reflecting(
        kube, seen, index=lambda pod: [pod.spec.node_name] if pod.spec.node_name else []
    ) as reflector:
        await asyncio.wait_for(stream.opened.wait(), 5)
        assert (names("n1"), names("n2"), names("")) == (["a", "b"], [], [])
        stream.send("MODIFIED", make_pod("a", "11", node="n2"))
        stream.send("MODIFIED", make_pod("c", "12", node="n2"))
        stream.send("DELETED", make_pod("b", "13", node="n1"))
        await seen.until(lambda: len(seen.changes) == 6)
        assert (names("n1"), names("n2")) == ([], ["a", "c"])
        assert {pod.metadata.resource_version for pod in reflector.indexed("n2")} == {"11", "12"}
        # Deleted and created again under its name between two events.
        stream.send("MODIFIED", make_pod("a", "14", uid="second", node="n1"))
        await seen.until(lambda: len(seen.changes) == 8)
        assert (names("n1"), names("n2")) == (["a"], ["c"])


async def test_a_watch_continues_from_the_last_bookmark(kube: Kube, script: Any, make_pod: Any) -> None:
    seen = Recorder()
    script.listing()
    first, second = script.watch(), script.watch()
    async with reflecting(kube, seen):
        first.send("ADDED", make_pod("a", "11"))
        first.send("BOOKMARK", {"kind": "Pod", "metadata": {"resourceVersion": "50"}})
        first.end()
        await asyncio.wait_for(second.opened.wait(), 5)
        assert script.requests[-1].query["resourceVersion"] == "50"
        assert seen.changes == [("a", "11")]


@pytest.mark.parametrize("how", ["status", "event"])
async def test_an_expired_version_lists_again_and_finds_deleted_objects(
    kube: Kube, script: Any, make_pod: Any, make_failure: Any, how: str
) -> None:
    seen = Recorder()
    script.listing(make_pod("gone", "1"), make_pod("same", "2"), make_pod("other", "3"), make_pod("reborn", "4"))
    if how == "status":
        script.refuse_watch(410, "Expired")
    else:
        script.watch().send("ERROR", make_failure(410, "Expired"))
    script.listing(
        make_pod("same", "2"), make_pod("other", "30"), make_pod("reborn", "40", uid="second"), version="100"
    )
    stream = script.watch()
    async with reflecting(kube, seen):
        await asyncio.wait_for(stream.opened.wait(), 5)
        assert seen.changes[4:] == [("other", "30"), ("reborn", None), ("reborn", "40"), ("gone", None)]
        assert script.requests[-1].query["resourceVersion"] == "100"


class ShortBackoffs(random.Random):
    """A random source that makes the first backoffs short and the next ones endless."""

    def __init__(self, count: int) -> None:
        super().__init__()
        self._waits = [0.001] * count

    def uniform(self, a: float, b: float) -> float:
        if (a, b) != (0.5, 1.0):
            return super().uniform(a, b)
        return self._waits.pop() if self._waits else 1e9


async def test_an_expired_version_after_an_outage_lists_again_at_once(kube: Kube, script: Any, make_pod: Any) -> None:
    seen = Recorder()
    script.listing(make_pod("a", "1"))
    first = script.watch()
    script.refuse_watch(410, "Expired")
    script.listing(make_pod("a", "2"), version="100")
    stream = script.watch()
    async with reflecting(kube, seen, rng=ShortBackoffs(1)):
        await asyncio.wait_for(first.opened.wait(), 5)
        first.drop()
        await asyncio.wait_for(stream.opened.wait(), 5)
        assert seen.changes == [("a", "1"), ("a", "2")]


async def test_every_outage_lists_again_at_once_although_the_watch_between_them_was_quiet(
    kube: Kube, script: Any, make_pod: Any
) -> None:
    seen = Recorder()
    script.listing(make_pod("a", "1"))
    streams = [script.watch()]
    for version in ("2", "3"):
        script.refuse_watch(410, "Expired")
        script.listing(make_pod("a", version), version=f"{version}00")
        streams.append(script.watch())
    async with reflecting(kube, seen, rng=ShortBackoffs(2), min_watch=0.05):
        for stream in streams[:2]:
            await asyncio.wait_for(stream.opened.wait(), 5)
            # Real time must pass: a watch that was open this long counts as a success.
            await asyncio.sleep(0.06)
            stream.drop()
        await asyncio.wait_for(streams[2].opened.wait(), 5)
        assert seen.changes == [("a", "1"), ("a", "2"), ("a", "3")]


class NoJitter(random.Random):
    """A random source without jitter."""

    def uniform(self, a: float, b: float) -> float:
        return b


async def test_a_long_watch_resets_the_failure_count(kube: Kube, script: Any) -> None:
    seen, logs = Recorder(), LogCapture()
    script.listing()
    streams = [script.watch() for _ in range(4)]
    log = structlog.wrap_logger(None, processors=[logs])
    async with reflecting(kube, seen, rng=NoJitter(), min_watch=0.05, log=log):
        for number, stream in enumerate(streams[:3]):
            await asyncio.wait_for(stream.opened.wait(), 5)
            if number == 2:
                # Real time must pass: a watch that was open this long counts as a success.
                await asyncio.sleep(0.06)
            stream.drop()
        await asyncio.wait_for(streams[3].opened.wait(), 5)
    assert [entry["again_in"] for entry in logs.entries] == [0.1, 0.2, 0.1]


async def test_a_dropped_connection_is_watched_again(kube: Kube, script: Any, make_pod: Any) -> None:
    seen = Recorder()
    script.listing()
    first, second = script.watch(), script.watch()
    async with reflecting(kube, seen):
        first.send("ADDED", make_pod("a", "11"))
        await seen.until(lambda: bool(seen.changes))
        first.raw(b'{"type":"MODIFIED","object":{"metadata":{"na')
        first.drop()
        await asyncio.wait_for(second.opened.wait(), 5)
        assert script.requests[-1].query["resourceVersion"] == "11"
        second.send("MODIFIED", make_pod("a", "12"))
        await seen.until(lambda: len(seen.changes) == 2)
        await seen.until(lambda: seen.states == [True, False, True])


async def test_garbage_in_the_stream_lists_again(kube: Kube, script: Any, make_pod: Any) -> None:
    seen = Recorder()
    script.listing(make_pod("a", "1"))
    script.watch().raw(b"<html>502 Bad Gateway</html>\n")
    script.listing(make_pod("a", "2"))
    stream = script.watch()
    async with reflecting(kube, seen):
        await asyncio.wait_for(stream.opened.wait(), 5)
        assert seen.changes == [("a", "1"), ("a", "2")]


async def test_events_are_found_however_the_stream_is_split(kube: Kube, script: Any, make_pod: Any) -> None:
    seen = Recorder()
    script.listing()
    stream = script.watch()
    async with reflecting(kube, seen):
        await asyncio.wait_for(stream.opened.wait(), 5)
        whole = b"".join(
            b'{"type":"ADDED","object":%s}\n' % msgspec.json.encode(make_pod(f"p{n}", str(20 + n))) for n in range(4)
        )
        for start in range(0, len(whole), 37):
            stream.raw(whole[start : start + 37])
        await seen.until(lambda: len(seen.changes) == 4)
        assert seen.changes == [(f"p{n}", str(20 + n)) for n in range(4)]


async def test_an_object_that_cannot_be_decoded_is_skipped(
    kube: Kube, script: Any, make_pod: Any, caplog: pytest.LogCaptureFixture
) -> None:
    seen = Recorder()
    bad = make_pod("bad", "2") | {"spec": "not an object"}
    script.listing(make_pod("a", "1"), bad)
    stream = script.watch()
    async with reflecting(kube, seen) as reflector:
        stream.send("MODIFIED", make_pod("bad", "11") | {"metadata": {"name": 7}})
        stream.send("MODIFIED", make_pod("a", "12") | {"status": []})
        stream.send("ADDED", make_pod("b", "13"))
        await seen.until(lambda: ("b", "13") in seen.changes)
        assert seen.changes == [("a", "1"), ("b", "13")]
        assert reflector.version(NS, "a") == "1"
    assert caplog.text.count("undecodable object skipped") == 2
    assert "object without metadata skipped" in caplog.text


async def test_one_deeply_nested_object_hides_no_other(
    kube: Kube, script: Any, make_pod: Any, caplog: pytest.LogCaptureFixture
) -> None:
    """A decoder fails on the whole list, or on the whole event, even where it would skip what is nested."""
    before = REJECTED.counts().get((Edge.KUBE, RejectReason.TOO_DEEP), 0)
    seen = Recorder()
    script.respond(deep({"metadata": {"resourceVersion": "10"}, "items": [make_pod("a", "1"), make_pod("c", "2")]}))
    first, second = script.watch(), script.watch()
    async with reflecting(kube, seen) as reflector:
        first.raw(deep({"type": "ADDED", "object": make_pod("bad", "11")}) + b"\n")
        first.send("ADDED", make_pod("b", "12"))
        first.raw(deep({"type": "MODIFIED", "object": make_pod("b", "13")}) + b"\n")
        # Cut off in the middle of the object, before its type.
        first.raw(b'{"object":{"metadata":{"name":"b","namespace":"%s"},"x":' % NS.encode() + b"[" * 5000 + b"\n")
        first.raw(deep({"type": "DELETED", "object": make_pod("a", "14")}) + b"\n")
        await seen.until(lambda: ("a", None) in seen.changes)
        assert seen.changes == [("a", "1"), ("b", "12"), ("a", None)]
        assert reflector.version(NS, "b") == "12"
        first.end()
        await asyncio.wait_for(second.opened.wait(), 5)
        assert script.requests[-1].query["resourceVersion"] == "14"
    # The last of the list, and two events. A deleted object is not decoded.
    assert caplog.text.count("undecodable object skipped") == 3
    assert REJECTED.counts()[Edge.KUBE, RejectReason.TOO_DEEP] == before + 3


async def test_an_object_that_becomes_deeply_nested_does_not_count_as_deleted(
    kube: Kube, script: Any, make_pod: Any
) -> None:
    seen = Recorder()
    script.listing(make_pod("a", "1"))
    script.refuse_watch(410, "Expired")
    script.respond(deep({"metadata": {"resourceVersion": "20"}, "items": [make_pod("a", "15")]}))
    stream = script.watch()
    async with reflecting(kube, seen) as reflector:
        await asyncio.wait_for(stream.opened.wait(), 5)
        assert seen.changes == [("a", "1")]
        assert reflector.version(NS, "a") == "1"


async def test_a_vm_that_cannot_be_decoded_replaces_the_one_before_as_rejected(
    kube: Kube, script: Any, caplog: pytest.LogCaptureFixture
) -> None:
    def vm(version: str, **status: Any) -> dict[str, Any]:
        return {"metadata": {"name": "a", "namespace": NS, "uid": "u", "resourceVersion": version}, "status": status}

    seen = Recorder()
    script.listing(vm("1"))
    stream = script.watch()
    reflector = Reflector(kube, VMS, on_change=seen.change, log=logger("test"), rng=ShortBackoff())
    task = asyncio.create_task(reflector.run())
    stream.send("MODIFIED", vm("11", ready="yes"))
    await seen.until(lambda: ("a", "11") in seen.changes)
    found = reflector.get(NS, "a")
    assert "status.ready" in rejection_of(found)
    stream.send("MODIFIED", vm("12", ready=True))
    await seen.until(lambda: ("a", "12") in seen.changes)
    assert rejection_of(reflector.get(NS, "a")) == ""
    stream.raw(deep({"type": "MODIFIED", "object": vm("13", ready=True)}) + b"\n")
    await seen.until(lambda: ("a", "13") in seen.changes)
    assert "nested" in rejection_of(reflector.get(NS, "a"))
    stream.send("DELETED", vm("14", ready="yes"))
    await seen.until(lambda: ("a", None) in seen.changes)
    assert caplog.text.count("object rejected") == 2
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task


def deep(document: dict[str, Any]) -> bytes:
    """Return JSON in which the last object has an unknown field of 5,000 levels, as a Kubernetes API server allows."""
    text = msgspec.json.encode(document)
    marker = b'"status":{'
    head, _, tail = text.rpartition(marker)
    return head + marker + b'"x":' + b"[" * 5000 + b"]" * 5000 + b"," + tail


async def test_a_failing_on_change_does_not_end_the_watch(kube: Kube, script: Any, make_pod: Any) -> None:
    seen = Recorder()
    script.listing()
    stream = script.watch()

    def broken(key: tuple[str, str], value: Pod | None) -> None:
        seen.change(key, value)
        raise RuntimeError("broken")

    reflector = Reflector(kube, PODS, on_change=broken, log=logger("test"))
    task = asyncio.create_task(reflector.run())
    stream.send("ADDED", make_pod("a", "11"))
    stream.send("ADDED", make_pod("b", "12"))
    await seen.until(lambda: len(seen.changes) == 2)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task


async def test_refused_lists_are_retried(kube: Kube, script: Any, make_pod: Any, make_failure: Any) -> None:
    seen = Recorder()
    script.respond(make_failure(403, "Forbidden"), 403)
    script.respond(b"not json at all", 200)
    script.respond(make_failure(503, "ServiceUnavailable"), 503)
    script.listing(make_pod("a", "1"))
    script.watch()
    async with reflecting(kube, seen) as reflector:
        await asyncio.wait_for(reflector.synced.wait(), 5)
        await seen.until(lambda: seen.states[-1:] == [True])
        assert seen.states == [False, True]
        assert seen.changes == [("a", "1")]


@pytest.mark.parametrize("verb", ["list", "watch"])
async def test_a_forbidden_list_or_watch_is_reported_until_it_is_allowed(
    kube: Kube, script: Any, make_pod: Any, make_failure: Any, verb: str
) -> None:
    seen, denied = Recorder(), Recorder()
    account = "system:serviceaccount:hotnic:hotnic-networks"
    message = f'pods is forbidden: User "{account}" cannot {verb} resource "pods" in API group "" at the cluster scope'
    if verb == "list":
        script.respond(make_failure(403, "Forbidden", message), 403)
        script.respond(make_failure(503, "ServiceUnavailable"), 503)
    else:
        script.refuse_watch(403, "Forbidden", message)
        script.refuse_watch(503, "ServiceUnavailable")
    script.listing(make_pod("a", "1"))
    script.watch()
    reasons: list[str] = []

    def on_change(ok: bool, why: str) -> None:
        reasons.append(why)
        denied.state(ok, why)

    async with reflecting(kube, seen, denials=Denials(on_change)):
        await denied.until(lambda: denied.states[-1:] == [True])
        assert denied.states == [False, True]
        assert f"ServiceAccount hotnic/hotnic-networks may not {verb} pods in all namespaces" in reasons[0]


def page(token: str, *objects: dict[str, Any]) -> dict[str, Any]:
    return {"metadata": {"resourceVersion": "9", "continue": token}, "items": list(objects)}


async def test_all_pages_of_a_list_are_read_and_the_watch_starts_at_the_first(
    kube: Kube, script: Any, make_pod: Any
) -> None:
    seen = Recorder()
    script.respond(page("more/1", make_pod("a", "1")))
    script.listing(make_pod("b", "2"), version="12")
    stream = script.watch()
    async with reflecting(kube, seen) as reflector:
        await asyncio.wait_for(reflector.synced.wait(), 5)
        assert seen.changes == [("a", "1"), ("b", "2")]
        await asyncio.wait_for(stream.opened.wait(), 5)
        # Changed after its page was read.
        stream.send("MODIFIED", make_pod("a", "11"))
        await seen.until(lambda: ("a", "11") in seen.changes)
    assert [dict(request.query) for request in script.requests[:2]] == [
        {"limit": "500"},
        {"limit": "500", "continue": "more/1"},
    ]
    assert script.requests[2].query["resourceVersion"] == "9"


async def test_a_list_that_expires_between_two_pages_starts_again_and_removes_only_what_is_in_no_page(
    kube: Kube, script: Any, make_pod: Any, make_failure: Any
) -> None:
    seen = Recorder()
    script.listing(make_pod("a", "1"), make_pod("b", "2"), make_pod("gone", "3"))
    script.refuse_watch(410, "Expired")
    script.respond(page("more/1", make_pod("a", "11")))
    script.respond(make_failure(410, "Expired"), 410)
    script.respond(page("more/2", make_pod("a", "11")))
    script.listing(make_pod("b", "20"))
    stream = script.watch()
    async with reflecting(kube, seen) as reflector:
        await asyncio.wait_for(stream.opened.wait(), 5)
        assert seen.changes[3:] == [("a", "11"), ("b", "20"), ("gone", None)]
        assert sorted(reflector.keys()) == [(NS, "a"), (NS, "b")]
    assert [request.query.get("continue") for request in script.requests[2:6]] == [None, "more/1", None, "more/2"]


@pytest.mark.looptime
async def test_watches_that_end_at_once_are_backed_off() -> None:
    reflector = Reflector(
        ShortWatches(),  # type: ignore[arg-type]
        PODS,
        on_change=lambda _key, _value: None,
        log=logger("test"),
    )
    task = asyncio.create_task(reflector.run())
    await asyncio.sleep(120)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert 14 <= ShortWatches.opened <= 28


class ShortWatches:
    """A client whose watches end at once."""

    opened = 0

    async def list_pages(self, *_: Any, **__: Any) -> AsyncIterator[RawPage]:
        yield RawPage([], "10")

    @asynccontextmanager
    async def watch(self, *_: Any, **__: Any) -> AsyncIterator[AsyncIterator[bytes]]:
        ShortWatches.opened += 1
        yield self.nothing()

    async def nothing(self) -> AsyncIterator[bytes]:
        chunks: list[bytes] = []
        for chunk in chunks:
            yield chunk
