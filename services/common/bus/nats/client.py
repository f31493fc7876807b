"""nats-py's client, for messages that it does not expect: none of them ends the connection, or stops its reader.

Whoever may publish chooses the bytes of a message. nats-py (2.16) expects those of a well-kept client: its reader ends
without a word when it cannot decode them, and would end again whenever the message is delivered again. Here such a
message arrives like any other, and is dead-lettered like any other that is no event.
Next: :mod:`services.common.bus.nats.connection`, which opens a connection with it.
"""

from nats.aio.client import Client
from nats.aio.msg import Msg
from nats.errors import ProtocolError
from nats.protocol.parser import AWAITING_MSG_PAYLOAD, CRLF_SIZE, Parser

from services.common.bus.nats.credentials import Endpoint

MAX_LINE_BYTES = 1024 * 1024
"""No line of the server's is longer; the longest one lists the servers of a cluster."""
_DELIVERED = b"$JS.ACK."
"""Prefix of the reply of what a consumer delivers. A message of the server's own has another one, or none."""
_READ = b"\r\nNats-Sequence: "
"""Header of what is read from a stream; the server puts it behind those of the publisher."""
_STATUS = ("Status", "Description")
"""Headers by which a message of the server's own is known."""
_BLANKS = bytes.maketrans(b"\r\v\f", b"\xff\xff\xff")
"""What NATS permits in a subject and nats-py takes for the end of one, as bytes that are no text."""


class _WholeLines(Parser):
    """A parser that gets one line or payload at a time, so that each line can be examined before."""

    def reset(self) -> None:
        super().reset()
        self._unread = bytearray()

    async def parse(self, data: bytes = b"") -> None:
        self._unread.extend(data)
        while self._unread:
            if self.state == AWAITING_MSG_PAYLOAD:
                part = bytes(self._unread[: self.needed + CRLF_SIZE - len(self.buf)])
                taken = len(part)
            else:
                end = self._unread.find(b"\r\n")
                if end < 0:
                    if len(self._unread) > MAX_LINE_BYTES:
                        raise ProtocolError("nats: line without an end")
                    return
                taken = end + CRLF_SIZE
                part = bytes(self._unread[:end]).translate(_BLANKS) + b"\r\n"
            del self._unread[:taken]
            await super().parse(part)


class BusClient(Client):
    """A client that sends nothing before TLS is up, where the endpoint needs TLS, and that any message may reach.

    nats-py (2.16) begins TLS only if the server's first line, which is plain text, says so: whoever is in the middle
    could leave that out, and would get the credentials. What that line says of the server is kept as long as the
    connection lasts, so a limit that loses events is an error at once.

    :param max_message: bytes of the largest message that is published, with its headers.
    """

    def __init__(self, endpoint: Endpoint, max_message: int) -> None:
        super().__init__()
        self._endpoint = endpoint
        self._max_message = max_message
        self._ps = _WholeLines(self)
        self._is_stored = False

    def _connect_command(self) -> bytes:
        assert self._current_server is not None
        uri = self._current_server.uri
        if self._endpoint.needs_tls(uri.scheme) and not _is_encrypted(self._transport):
            raise ConnectionError(
                f"the server at {uri.hostname}:{uri.port} offers no TLS, which NATS_URL, NATS_CA or NATS_CERT demands; "
                "no credentials were sent"
            )
        if _is_encrypted(self._transport) and (problem := self._find_problem()):
            raise ConnectionError(
                f"the server at {uri.hostname}:{uri.port} says {problem}; no credentials were sent. Unless it is "
                "configured so, somebody changes its first line, which is plain text"
            )
        return super()._connect_command()

    def _find_problem(self) -> str:
        """Return what in the server's first line lets no message, or not every one, be published; empty if nothing."""
        if self._server_info.get("headers") is not True:
            return "that it takes no headers"
        largest = self._server_info.get("max_payload", self._max_message)
        if not isinstance(largest, int) or largest < self._max_message:
            return f"max_payload: {largest!r}, which must be {self._max_message} or more"
        return ""

    async def _read_loop(self) -> None:
        await super()._read_loop()
        if not self.is_closed:
            # It has logged an error that it did not expect, and nothing is read any more.
            await self._process_op_err(ConnectionError("the client has stopped reading"))

    async def _process_msg(self, sid: int, subject: bytes, reply: bytes, data: bytes, headers: bytes) -> None:
        self._is_stored = reply.startswith(_DELIVERED) or _READ in (headers or b"")
        try:
            await super()._process_msg(sid, subject, reply, data, headers)
        except Exception as error:
            # One message is lost; JetStream delivers it again, for a limited number of times.
            await self._error_cb(error)

    async def _process_headers(self, headers: bytes) -> dict[str, str] | None:
        try:
            found = await super()._process_headers(headers)
        except (UnicodeDecodeError, IndexError):
            found = self._parse_header_lines(headers.partition(b"\r\n")[2])
        if self._is_stored and found is not None:
            # Its publisher has chosen them, so they say nothing about the stream or the consumer.
            for name in _STATUS:
                found.pop(name, None)
        return found or None

    def _build_message(
        self, sid: int, subject: bytes, reply: bytes, data: bytes, headers: dict[str, str] | None
    ) -> Msg:
        # A replaced character is in no subject of hotnic's.
        readable = subject.decode(errors="replace").encode()
        message: Msg = super()._build_message(sid, readable, reply, data, headers)
        return message


def _is_encrypted(transport: object) -> bool:
    """Return whether the stream below a transport of nats-py, which does not show it, has TLS."""
    stream = getattr(transport, "_io_writer", None) or getattr(transport, "_ws", None)
    return stream is not None and stream.get_extra_info("ssl_object") is not None
