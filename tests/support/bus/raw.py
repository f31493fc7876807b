"""A client of NATS' protocol by hand, which sends what a well-kept client library refuses to send."""

import asyncio
import contextlib
from collections.abc import AsyncIterator


class RawClient:
    """One connection; :func:`raw_client` makes it."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader = reader
        self._writer = writer

    async def publish(self, subject: bytes, payload: bytes = b"", headers: bytes | None = None) -> None:
        """Publish a message as it is, and wait until the server has handled it.

        :param headers: the whole block of headers, with its first line and the empty one at its end.
        """
        if headers is None:
            command = b"PUB %s %d\r\n%s\r\n" % (subject, len(payload), payload)
        else:
            size = len(headers)
            command = b"HPUB %s %d %d\r\n%s%s\r\n" % (subject, size, size + len(payload), headers, payload)
        self._writer.write(command + b"PING\r\n")
        await self._wait_pong()

    async def connect(self) -> None:
        """Log in without credentials."""
        self._writer.write(b'CONNECT {"verbose":false,"pedantic":false,"headers":true}\r\nPING\r\n')
        await self._wait_pong()

    async def _wait_pong(self) -> None:
        async with asyncio.timeout(60):
            while (line := await self._reader.readline()) != b"PONG\r\n":
                assert line, "the server has closed the connection"
                assert not line.startswith(b"-ERR"), line

    async def close(self) -> None:
        """Close the connection."""
        self._writer.close()
        await self._writer.wait_closed()


@contextlib.asynccontextmanager
async def raw_client(port: int) -> AsyncIterator[RawClient]:
    """Connect to a server on loopback that needs no credentials, and close the connection at the end of the block."""
    client = RawClient(*await asyncio.open_connection("127.0.0.1", port))
    await client.connect()
    try:
        yield client
    finally:
        await client.close()
