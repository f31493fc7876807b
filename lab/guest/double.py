"""A double of QEMU with a guest: monitors, guest agent and console output in one small process, without a machine.

`python -S -m lab.guest.double` runs in the pod's network namespace in place of QEMU (`hotnic lab up --guests
double`). It answers the QMP commands that the handler and the doctor use, with QEMU's texts, and serves one client at
a time on each monitor. Like QEMU, it opens the tap behind a NIC; it completes an unplug shortly after the request. It
reads and answers no packets. Only the standard library is imported, because two dozen of them must start within 0.3 s.
docs/lab.md lists the differences from QEMU; `tests/integration/handler/test_qmp_guest.py` runs one suite against both.
Next: :mod:`lab.guest.double_machine`, whose state this module serves.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import os
import signal
import socket
import sys
import time
from collections.abc import AsyncIterator, Callable
from typing import Any, Final

from lab.guest.double_machine import Arguments, CommandError, DoubleMachine, Reply, execute

GREETING: Final = {
    "QMP": {"version": {"qemu": {"major": 7, "minor": 2, "micro": 0}, "package": "hotnic-double"}, "capabilities": []}
}
MAX_REQUEST: Final = 1 << 20
"""Most characters of one request."""


class Monitors:
    """The QMP monitors of a double: each socket serves one client at a time, the next one waits."""

    def __init__(self) -> None:
        self.machine: DoubleMachine
        self._negotiated: set[asyncio.StreamWriter] = set()

    def emit_event(self, event: str, data: Arguments) -> None:
        """Send an event to every client that has negotiated capabilities."""
        seconds, micro = divmod(time.time_ns() // 1000, 1_000_000)
        stamp = {"seconds": seconds, "microseconds": micro}
        for writer in self._negotiated:
            _send(writer, {"event": event, "data": data, "timestamp": stamp})

    async def serve_client(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Serve one client until it disconnects."""
        _send(writer, GREETING)
        try:
            async for request in read_requests(reader):
                answer = self._answer(request, writer)
                _send(writer, answer | ({"id": request["id"]} if "id" in request else {}))
                if request.get("execute") == "quit":
                    await writer.drain()
                    os.kill(os.getpid(), signal.SIGTERM)
        finally:
            self._negotiated.discard(writer)

    def _answer(self, request: Reply, writer: asyncio.StreamWriter) -> Reply:
        command, arguments = str(request.get("execute")), request.get("arguments") or {}
        try:
            if command == "qmp_capabilities":
                self._negotiated.add(writer)
                return {"return": {}}
            # QEMU accepts no other command before capabilities are negotiated.
            if writer not in self._negotiated:
                raise CommandError("Expecting capabilities negotiation with 'qmp_capabilities'", "CommandNotFound")
            found = execute(self.machine, command, arguments)
        except KeyError as error:
            return _error(CommandError(f"Parameter {error} is missing"))
        except CommandError as error:
            return _error(error)
        return {"return": {} if found is None else found}


async def serve_agent(machine: DoubleMachine, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """Serve one client of the guest agent until it disconnects."""
    async for request in read_requests(reader):
        match request.get("execute"):
            case "guest-sync-delimited":
                # guest-sync-delimited: the agent sends 0xFF before its response, so that a client can discard what came
                # before.
                writer.write(b"\xff")
                _send(writer, {"return": request["arguments"]["id"]})
            case "guest-ping":
                _send(writer, {"return": {}})
            case "guest-network-get-interfaces":
                _send(writer, {"return": machine.interfaces()})
            case other:
                _send(writer, _error(CommandError(f"The command {other} has not been found", "CommandNotFound")))


async def read_requests(reader: asyncio.StreamReader) -> AsyncIterator[Reply]:
    """Yield the JSON documents that a client sends; no separator is needed, and a leading sentinel byte is skipped.

    :raises ValueError: the input is not a JSON object, or is too long.
    """
    decoder, text = json.JSONDecoder(), ""
    while piece := await reader.read(1 << 16):
        text += piece.decode(errors="ignore")
        while text := text.lstrip():
            try:
                document, end = decoder.raw_decode(text)
            except json.JSONDecodeError:
                if not text.startswith("{") or len(text) > MAX_REQUEST:
                    raise
                break
            text = text[end:]
            if not isinstance(document, dict):
                raise ValueError(f"{document!r} is not a request: a JSON object is expected")
            yield document


def _send(writer: asyncio.StreamWriter, document: Reply) -> None:
    writer.write(json.dumps(document).encode() + b"\n")


def _error(error: CommandError) -> Reply:
    return {"error": {"class": error.kind, "desc": str(error)}}


def listener(path: str) -> socket.socket:
    """Return a unix socket that listens at `path` with a backlog of one client."""
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    with contextlib.suppress(FileNotFoundError):
        os.unlink(path)
    sock.bind(path)
    # QEMU's sockets serve one client and leave the next one in the backlog.
    sock.listen(1)
    sock.setblocking(False)
    return sock


async def serve_sequentially(sock: socket.socket, serve: Callable[..., Any]) -> None:
    """Serve the clients of a socket one after another, as QEMU does; disconnect a client that sends invalid input."""
    while True:
        connection, _ = await asyncio.get_running_loop().sock_accept(sock)
        reader, writer = await asyncio.open_unix_connection(sock=connection)
        try:
            await serve(reader, writer)
        except (OSError, ValueError, KeyError) as error:
            sys.stderr.write(f"client disconnected: {error!r}\n")
        finally:
            writer.close()


async def run(options: argparse.Namespace) -> None:
    """Run the double until SIGTERM, or until a client sends `quit`."""
    loop = asyncio.get_running_loop()
    ended = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, ended.set)
    monitors = Monitors()
    with open(options.console, "ab", buffering=0) as console:  # noqa: ASYNC230 (a local file, before anyone is served)

        def print_line(text: str) -> None:
            # The format of the guest kernel's console lines: seconds since boot, then the text.
            console.write(f"[{time.monotonic() - booted_at:12.6f}] hotnic-guest: {text}\r\n".encode())

        booted_at = time.monotonic()
        machine = monitors.machine = DoubleMachine(
            ports=options.ports,
            cpus=options.cpus,
            unplug_delay=options.release,
            bind_delay=options.notice,
            emit_event=monitors.emit_event,
            print_line=print_line,
        )
        serving = [
            loop.create_task(serve_sequentially(listener(path), monitors.serve_client)) for path in options.monitor
        ]
        if options.agent:
            serve_client = lambda reader, writer: serve_agent(machine, reader, writer)  # noqa: E731
            serving.append(loop.create_task(serve_sequentially(listener(options.agent), serve_client)))
        machine.boot([tuple(nic.rsplit("=", 1)) for nic in options.nic])
        waiting = loop.create_task(ended.wait())
        done, _ = await asyncio.wait({waiting, *serving}, return_when=asyncio.FIRST_COMPLETED)
        for task in (waiting, *serving):
            task.cancel()
        for task in done - {waiting}:
            task.result()


def argument_parser() -> argparse.ArgumentParser:
    """Return the parser of the command line."""
    parser = argparse.ArgumentParser(description="A double of QEMU and its guest, for labs.")
    parser.add_argument("--monitor", action="append", required=True, help="socket of a QMP monitor (repeatable)")
    parser.add_argument("--agent", help="socket of the guest agent")
    parser.add_argument("--console", default=os.devnull, help="file for what the guest prints")
    parser.add_argument("--nic", action="append", default=[], help="INTERFACE=MAC of a NIC that is present at boot")
    parser.add_argument("--ports", type=int, default=8, help="free root ports")
    parser.add_argument("--cpus", type=int, default=1)
    parser.add_argument("--release", type=float, default=0.02, help="seconds from an unplug request until it completes")
    parser.add_argument("--notice", type=float, default=0.01, help="seconds from a plug until the guest's driver binds")
    return parser


def main(argv: list[str] | None = None) -> int:
    """Run the double; return the exit code."""
    asyncio.run(run(argument_parser().parse_args(argv)))
    return 0


if __name__ == "__main__":
    sys.exit(main())
