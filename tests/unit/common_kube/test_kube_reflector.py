"""The reflector against scripted watches: what may break, breaks."""

import asyncio
import random
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

import msgspec
import pytest
import structlog
from structlog.testing import LogCapture

from schemas.kube import PODS, Pod
from services.common.kube.client import Kube, RawListing
from services.common.kube.reflector import Reflector
from services.common.logs import logger

NS = "ns"


class Seen:
    """Changes as they are announced."""

    def __init__(self) -> None:
        self.changes: list[tuple[str, str | None]] = []
        self.states: list[bool] = []
        self._news = asyncio.Event()

    def change(self, key: tuple[str, str], value: Pod | None) -> None:
        self.changes.append((key[1], value.metadata.resource_version if value else None))
        self._news.set()

    def state(self, ok: bool, _why: str) -> None:
        self.states.append(ok)
        self._news.set()

    async def until(self, condition: Callable[[], bool]) -> None:
        async with asyncio.timeout(5):
            while not condition():
                self._news.clear()
                await self._news.wait()


class Fast(random.Random):
    """Backoff without waiting."""

    def uniform(self, a: float, b: float) -> float:
        return 0.01


@asynccontextmanager
async def reflecting(kube: Kube, seen: Seen, **options: Any) -> AsyncIterator[Reflector[Pod]]:
    fixed = {"log": logger("test"), "rng": Fast()}
    reflector = Reflector(kube, PODS, on_change=seen.change, on_state=seen.state, **(fixed | options))
    task = asyncio.create_task(reflector.run())
    try:
        yield reflector
        assert not task.done(), "the reflector ended by itself"
    finally:
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task


async def test_list_then_watch_from_its_version(kube: Kube, script: Any, make_pod: Any) -> None:
    seen = Seen()
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


async def test_a_watch_that_ends_goes_on_from_the_last_bookmark(kube: Kube, script: Any, make_pod: Any) -> None:
    seen = Seen()
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
async def test_a_version_too_old_lists_again_and_finds_what_was_deleted(
    kube: Kube, script: Any, make_pod: Any, make_failure: Any, how: str
) -> None:
    seen = Seen()
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


class Once(random.Random):
    """One backoff without waiting, every further one for ever."""

    def __init__(self) -> None:
        super().__init__()
        self._waits = [0.001]

    def uniform(self, a: float, b: float) -> float:
        if (a, b) != (0.5, 1.0):
            return super().uniform(a, b)
        return self._waits.pop() if self._waits else 1e9


async def test_after_an_outage_a_version_too_old_lists_again_without_a_further_wait(
    kube: Kube, script: Any, make_pod: Any
) -> None:
    seen = Seen()
    script.listing(make_pod("a", "1"))
    first = script.watch()
    script.refuse_watch(410, "Expired")
    script.listing(make_pod("a", "2"), version="100")
    stream = script.watch()
    async with reflecting(kube, seen, rng=Once()):
        await asyncio.wait_for(first.opened.wait(), 5)
        first.drop()
        await asyncio.wait_for(stream.opened.wait(), 5)
        assert seen.changes == [("a", "1"), ("a", "2")]


class Longest(random.Random):
    """Backoff without jitter."""

    def uniform(self, a: float, b: float) -> float:
        return b


async def test_a_watch_that_was_open_for_a_while_begins_a_new_count_of_failures(kube: Kube, script: Any) -> None:
    seen, said = Seen(), LogCapture()
    script.listing()
    streams = [script.watch() for _ in range(4)]
    log = structlog.wrap_logger(None, processors=[said])
    async with reflecting(kube, seen, rng=Longest(), steady=0.05, log=log):
        for number, stream in enumerate(streams[:3]):
            await asyncio.wait_for(stream.opened.wait(), 5)
            if number == 2:
                # What is tested is that time passes.
                await asyncio.sleep(0.06)
            stream.drop()
        await asyncio.wait_for(streams[3].opened.wait(), 5)
    assert [entry["again_in"] for entry in said.entries] == [0.1, 0.2, 0.1]


async def test_a_dropped_connection_is_taken_up_again(kube: Kube, script: Any, make_pod: Any) -> None:
    seen = Seen()
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


async def test_a_silent_connection_counts_as_dead(kube: Kube, script: Any) -> None:
    seen = Seen()
    script.listing()
    first, second = script.watch(), script.watch()
    async with reflecting(kube, seen, idle=0.2):
        await asyncio.wait_for(first.opened.wait(), 5)
        await asyncio.wait_for(second.opened.wait(), 5)
        assert script.requests[-1].query["resourceVersion"] == "10"


async def test_garbage_in_the_stream_lists_again(kube: Kube, script: Any, make_pod: Any) -> None:
    seen = Seen()
    script.listing(make_pod("a", "1"))
    script.watch().raw(b"<html>502 Bad Gateway</html>\n")
    script.listing(make_pod("a", "2"))
    stream = script.watch()
    async with reflecting(kube, seen):
        await asyncio.wait_for(stream.opened.wait(), 5)
        assert seen.changes == [("a", "1"), ("a", "2")]


async def test_events_are_found_whatever_way_the_stream_is_cut(kube: Kube, script: Any, make_pod: Any) -> None:
    seen = Seen()
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
    seen = Seen()
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
    assert caplog.text.count("object cannot be decoded") == 2
    assert "object without readable metadata" in caplog.text


async def test_an_on_change_that_fails_does_not_end_the_watch(kube: Kube, script: Any, make_pod: Any) -> None:
    seen = Seen()
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


async def test_refusals_are_waited_out(kube: Kube, script: Any, make_pod: Any, make_failure: Any) -> None:
    seen = Seen()
    script.answer(make_failure(403, "Forbidden"), 403)
    script.answer(b"not json at all", 200)
    script.answer(make_failure(503, "ServiceUnavailable"), 503)
    script.listing(make_pod("a", "1"))
    script.watch()
    async with reflecting(kube, seen) as reflector:
        await asyncio.wait_for(reflector.synced.wait(), 5)
        await seen.until(lambda: seen.states[-1:] == [True])
        assert seen.states == [False, True]
        assert seen.changes == [("a", "1")]


async def test_a_list_in_pages_is_followed(kube: Kube, script: Any, make_pod: Any) -> None:
    seen = Seen()
    script.answer({"metadata": {"resourceVersion": "9", "continue": "more/1"}, "items": [make_pod("a", "1")]})
    script.listing(make_pod("b", "2"))
    script.watch()
    async with reflecting(kube, seen) as reflector:
        await asyncio.wait_for(reflector.synced.wait(), 5)
        assert seen.changes == [("a", "1"), ("b", "2")]
    assert script.requests[1].query["continue"] == "more/1"


@pytest.mark.looptime
async def test_a_server_that_ends_every_watch_at_once_is_not_hammered() -> None:
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
    """A client whose watches end as they begin."""

    opened = 0

    async def list_raw(self, *_: Any, **__: Any) -> Any:
        return RawListing([], "10")

    @asynccontextmanager
    async def watch(self, *_: Any, **__: Any) -> AsyncIterator[AsyncIterator[bytes]]:
        ShortWatches.opened += 1
        yield self.nothing()

    async def nothing(self) -> AsyncIterator[bytes]:
        chunks: list[bytes] = []
        for chunk in chunks:
            yield chunk
