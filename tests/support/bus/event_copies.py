"""A NATS client that publishes every event a second time, as if its publisher had sent it twice.

Next: :mod:`tests.support.lab.rig`, which uses it.
"""

import contextlib
from collections.abc import AsyncIterator, Mapping

from nats.aio.msg import Msg

from schemas.bus.encoding import SUBJECT_ROOT
from services.common.bus.envelope import MSG_ID
from tests.support.bus.client import nats_client

COPY = "Hotnic-Test-Copy"
"""Header of a copy, which is not copied again."""


@contextlib.asynccontextmanager
async def copied_events(environment: Mapping[str, str]) -> AsyncIterator[list[str]]:
    """Publish a copy of each event for the duration of the block; yield the growing list of the copies' message ids.

    :param environment: the variables with which to connect.
    """
    copies: list[str] = []

    async def publish_copy(message: Msg) -> None:
        headers = dict(message.headers or {})
        if COPY in headers:
            return
        # The stream drops a message whose id it has already stored.
        headers |= {MSG_ID: f"{headers.get(MSG_ID, '')}-copy", COPY: "1"}
        await client.publish(message.subject, message.data, headers=headers)
        copies.append(headers[MSG_ID])

    async with nats_client(environment) as client:
        await client.subscribe(f"{SUBJECT_ROOT}.>", cb=publish_copy)
        await client.flush()
        yield copies
