"""``hotnic dead-letter`` on a real server: list, show, replay, and its errors."""

import asyncio
import json
import re
from typing import Any

import msgspec
import pytest

from schemas.bus.events import Event
from services.cli.__main__ import main
from services.common.bus.envelope import MSG_ID, BusMessage, encode_message
from tests.support.bus.conformance import CONSUMER, Inbox, annotated, consuming
from tests.support.bus.jetstream import jetstream
from tests.support.bus.nats import NatsServer

GOOD = encode_message(annotated(), role="controller", node="_", start_id="start")
BROKEN = BusMessage(GOOD.subject, b"{", {MSG_ID: "broken"})
DOCUMENT = re.compile(r"^[\[{].*", re.MULTILINE | re.DOTALL)


class Terminal:
    """Runs the command line in a thread of this process."""

    def __init__(self, capsys: pytest.CaptureFixture[str], url: str) -> None:
        self._capsys = capsys
        self._url = url

    async def run(self, *arguments: str, code: int = 0) -> tuple[str, str]:
        """Return standard output and error of a command; check its exit code."""
        found = await asyncio.to_thread(main, ["dead-letter", *arguments, "--nats-url", self._url])
        output = self._capsys.readouterr()
        assert found == code, output.err
        return output.out, output.err

    async def json(self, *arguments: str, code: int = 0) -> Any:
        """Return the JSON that a command prints."""
        # The buses of this process log to standard output, too, so search for the JSON.
        found = DOCUMENT.search((await self.run(*arguments, "-o", "json", code=code))[0])
        assert found is not None
        return json.loads(found[0])


async def test_dead_letters_are_listed_shown_and_replayed(
    server: NatsServer, capsys: pytest.CaptureFixture[str]
) -> None:
    terminal = Terminal(capsys, server.url)
    async with jetstream(server) as harness:
        assert (await terminal.run("list"))[1] == "no dead letters found\n"
        bus, inbox = await harness.bus("controller", "_"), Inbox()
        failing = True

        def handler(received: Any) -> None:
            if failing:
                raise ValueError("a bug")
            inbox(received)

        async with consuming(harness, bus, handler):  # type: ignore[arg-type]
            await harness.publish_raw(GOOD)
            await harness.publish_raw(BROKEN)
            await harness.dead_letters(2)
            first, second = await terminal.json("list")
            assert (first["reason"], second["reason"]) == ("HandlerFailed", "Undecodable")
            assert (first["subject"], first["consumer"]) == (GOOD.subject, CONSUMER)
            assert "HandlerFailed" in (await terminal.run("list"))[0]
            shown = await terminal.json("show", str(first["sequence"]))
            assert shown["payload"]["operation"] == msgspec.to_builtins(annotated().operation)
            assert shown["headers"]["ce-type"] == "io.hotnic.hotplug.pod-annotated.v1"
            assert '"stage": "pod-annotated"' in (await terminal.run("show", str(first["sequence"])))[0]

            failing = False
            out, err = await terminal.run("replay", "--all", code=3)
            assert f"{first['sequence']}: published again on {GOOD.subject} as " in out
            assert f"{second['sequence']}: refused: Undecodable: " in err
            events: list[Event] = await inbox.wait(1)
            assert events == [annotated()]
            assert [one["sequence"] for one in await terminal.json("list")] == [second["sequence"]]
            (refused,) = await terminal.json("replay", str(second["sequence"]), code=3)
            assert (refused["replayed"], refused["reason"]) == (False, "Undecodable")


async def test_replay_with_keep_and_with_an_unknown_sequence(
    server: NatsServer, capsys: pytest.CaptureFixture[str]
) -> None:
    terminal = Terminal(capsys, server.url)
    async with jetstream(server) as harness:
        await harness.bus("controller", "_")
        headers = GOOD.headers | {"Hotnic-Dead-Subject": GOOD.subject, "Hotnic-Dead-Reason": "HandlerFailed"}
        subject = GOOD.subject.replace("hotplug.", "hotplug-dead.", 1)
        await harness.publish_raw(msgspec.structs.replace(GOOD, subject=subject, headers=headers))
        assert "dead letter 9 not found" in (await terminal.run("replay", "1", "9", code=3))[1]
        assert (await harness.js.stream_info("HOTPLUG")).state.messages == 0
        (first,) = await terminal.json("replay", "1", "--keep")
        (second_replay,) = await terminal.json("replay", "1")
        assert first["id"] != second_replay["id"]
        assert (await harness.js.stream_info("HOTPLUG")).state.messages == 2
        assert await terminal.json("list") == []
        assert await terminal.json("replay", "--all") == []


async def test_unavailable_or_unconfigured_bus_is_reported_with_a_hint(
    server: NatsServer, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    await server.stop()
    _, err = await Terminal(capsys, server.url.replace("nats://", "nats://me:secret@")).run("list", code=5)
    assert "does not answer" in err
    assert "hotnic lab status" in err
    assert "secret" not in err
    monkeypatch.delenv("NATS_URL", raising=False)
    assert await asyncio.to_thread(main, ["dead-letter", "list"]) == 5
    err = capsys.readouterr().err
    assert "no NATS address is set" in err
    assert "--nats-url" in err
    assert await asyncio.to_thread(main, ["dead-letter", "replay"]) == 2
