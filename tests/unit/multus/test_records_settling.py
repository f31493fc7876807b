"""When the record of a sandbox is synced to disk."""

import asyncio
from pathlib import Path
from typing import Any

import pytest
import structlog
from opentelemetry.trace import NoOpTracer

from services.multus.records.sandbox import Attachment, AttachmentOrigin, AttachmentState, SandboxState
from services.multus.records.store import SETTLE_ADDING, SETTLE_AFTER, Records

LOG = structlog.get_logger()


class StartedSpans(NoOpTracer):
    """A tracer that counts the syncs that have begun."""

    syncs = 0

    def start_as_current_span(self, name: str, *args: Any, **options: Any) -> Any:
        self.syncs += name == "record sync"
        return super().start_as_current_span(name, *args, **options)


def sandbox(state: AttachmentState) -> SandboxState:
    attachment = Attachment(
        "net1", "ns/blue", AttachmentOrigin.DELEGATE, '{"type":"b"}', "blue", "1.0.0", "f", state, {}
    )
    return SandboxState("abc", "/ns", "default", "pod", "uid", (attachment,))


@pytest.mark.looptime
async def test_no_sync_runs_beside_a_plugin_that_ends_soon(tmp_path: Path) -> None:
    tracer = StartedSpans()
    records = Records(tmp_path, tracer=tracer, log=LOG)
    for earlier in (0, 1):
        records.write(sandbox(AttachmentState.ADDING), change="adding")
        await asyncio.sleep(0.9 * SETTLE_ADDING)
        assert tracer.syncs == earlier
        records.write(sandbox(AttachmentState.ADDED), change="added")
        await asyncio.sleep(2 * SETTLE_AFTER)
        assert tracer.syncs == earlier + 1
        await records.flush()
    assert (tracer.syncs, records.read("abc")) == (2, sandbox(AttachmentState.ADDED))


@pytest.mark.looptime
async def test_a_daemon_that_stops_waits_for_no_plugin(tmp_path: Path) -> None:
    tracer = StartedSpans()
    records = Records(tmp_path, tracer=tracer, log=LOG)
    records.write(sandbox(AttachmentState.ADDING), change="adding")
    flushing = asyncio.create_task(records.flush())
    await asyncio.sleep(2 * SETTLE_AFTER)
    assert tracer.syncs == 1
    await flushing


async def test_the_record_of_a_plugin_that_takes_long_is_synced_meanwhile(tmp_path: Path) -> None:
    records = Records(tmp_path, tracer=NoOpTracer(), log=LOG)
    records.write(sandbox(AttachmentState.ADDING), change="adding")
    async with asyncio.timeout(45):
        while not (tmp_path / "sandboxes" / "abc.json").exists():  # noqa: ASYNC110 (a thread writes it)
            await asyncio.sleep(0.01)
    await records.flush()
