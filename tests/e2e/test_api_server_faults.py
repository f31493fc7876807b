"""A plug completes, and every role is ready again, when the API server dies or does not answer in the middle of it."""

import asyncio

import pytest

from tests.support.lab.plug_check import plugging_around
from tests.support.lab.rig import Rig

# Longer than the rig's timeout, so that the rig reports what it was waiting for.
pytestmark = pytest.mark.timeout(150)

SILENCE = 15.0
"""Seconds: longer than a request waits for its answer, and than a leader continues without renewing its lease."""


async def test_plug_completes_when_the_api_server_is_killed(rig: Rig) -> None:
    async with plugging_around(rig, "apiserver", "SIGKILL"):
        await rig.wait_killed("apiserver")
        await rig.start("apiserver")


async def test_plug_completes_when_the_api_server_does_not_answer_for_a_while(rig: Rig) -> None:
    async with plugging_around(rig, "apiserver", "SIGSTOP"):
        try:
            await asyncio.sleep(SILENCE)
        finally:
            await rig.send_signal("apiserver", "SIGCONT")
