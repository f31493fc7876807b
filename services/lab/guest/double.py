"""A guest without a machine: QEMU's monitor, the guest agent and the console's lines, in one small process.

`python -S -m services.lab.guest.double` in the pod's network namespace, where there would be QEMU otherwise
(`hotnic lab up --guests double`). It speaks as much QMP as the handler and the doctor use, in QEMU's own words, one
client at a time for each monitor; it opens the tap that a card is backed by, as QEMU does, and lets go of a card a
moment after it is asked to. No packet is ever read or answered. Standard library only: it has to be there within
0.3 s, two dozen of them at once. What QEMU does differently is listed in docs/lab.md;
`tests/integration/handler/test_qmp_guest.py` holds both to the same suite.
Next: :mod:`services.lab.guest.double_machine`, which it serves.
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

from services.lab.guest.double_machine import Answer, Arguments, Machine, Refused, execute

GREETING: Final = {
    "QMP": {"version": {"qemu": {"major": 7, "minor": 2, "micro": 0}, "package": "hotnic-double"}, "capabilities": []}
}
MAX_REQUEST: Final = 1 << 20
"""Characters of one request."""


class Monitors:
    """The monitors' clients: each socket serves one at a time, the next one waits until it has gone."""

    def __init__(self) -> None:
        self.machine: Machine
        self._listening: set[asyncio.StreamWriter] = set()

    def say(self, event: str, data: Arguments) -> None:
        """Tell every client of an event."""
        seconds, micro = divmod(time.time_ns() // 1000, 1_000_000)
        stamp = {"seconds": seconds, "microseconds": micro}
        for writer in self._listening:
            _send(writer, {"event": event, "data": data, "timestamp": stamp})

    async def talk(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Serve one client until it leaves."""
        _send(writer, GREETING)
        try:
            async for request in requests(reader):
                answer = self._answer(request, writer)
                _send(writer, answer | ({"id": request["id"]} if "id" in request else {}))
                if request.get("execute") == "quit":
                    await writer.drain()
                    os.kill(os.getpid(), signal.SIGTERM)
        finally:
            self._listening.discard(writer)

    def _answer(self, request: Answer, writer: asyncio.StreamWriter) -> Answer:
        command, arguments = str(request.get("execute")), request.get("arguments") or {}
        try:
            if command == "qmp_capabilities":
                self._listening.add(writer)
                return {"return": {}}
            if writer not in self._listening:
                raise Refused("Expecting capabilities negotiation with 'qmp_capabilities'", "CommandNotFound")
            found = execute(self.machine, command, arguments)
        except KeyError as error:
            return _error(Refused(f"Parameter {error} is missing"))
        except Refused as refused:
            return _error(refused)
        return {"return": {} if found is None else found}


async def agent(machine: Machine, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """Serve one client of the guest agent until it leaves."""
    async for request in requests(reader):
        match request.get("execute"):
            case "guest-sync-delimited":
                writer.write(b"\xff")
                _send(writer, {"return": request["arguments"]["id"]})
            case "guest-ping":
                _send(writer, {"return": {}})
            case "guest-network-get-interfaces":
                _send(writer, {"return": machine.interfaces()})
            case other:
                _send(writer, _error(Refused(f"The command {other} has not been found", "CommandNotFound")))


async def requests(reader: asyncio.StreamReader) -> AsyncIterator[Answer]:
    """The JSON documents of a client, which need nothing between them; a sentinel byte before one is passed over.

    :raises ValueError: what comes is no JSON object, or too long.
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
                raise ValueError(f"{document!r} is no request")
            yield document


def _send(writer: asyncio.StreamWriter, document: Answer) -> None:
    writer.write(json.dumps(document).encode() + b"\n")


def _error(refused: Refused) -> Answer:
    return {"error": {"class": refused.kind, "desc": str(refused)}}


def listener(path: str) -> socket.socket:
    """A unix socket that listens for one client and a waiting one."""
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    with contextlib.suppress(FileNotFoundError):
        os.unlink(path)
    sock.bind(path)
    sock.listen(1)
    sock.setblocking(False)
    return sock


async def one_by_one(sock: socket.socket, serve: Callable[..., Any]) -> None:
    """Serve the clients of a socket one after another, as QEMU's sockets do. A client that talks nonsense is left."""
    while True:
        connection, _ = await asyncio.get_running_loop().sock_accept(sock)
        reader, writer = await asyncio.open_unix_connection(sock=connection)
        try:
            await serve(reader, writer)
        except (OSError, ValueError, KeyError) as error:
            sys.stderr.write(f"a client is left: {error!r}\n")
        finally:
            writer.close()


async def run(options: argparse.Namespace) -> None:
    """Be a guest until SIGTERM, or until a monitor says quit."""
    loop = asyncio.get_running_loop()
    ended = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, ended.set)
    monitors = Monitors()
    with open(options.console, "ab", buffering=0) as console:  # noqa: ASYNC230 (a local file, before anyone is served)

        def report(text: str) -> None:
            # As the guest's kernel prints it, after the time since it booted.
            console.write(f"[{time.monotonic() - began:12.6f}] hotnic-guest: {text}\r\n".encode())

        began = time.monotonic()
        machine = monitors.machine = Machine(
            ports=options.ports,
            cpus=options.cpus,
            release=options.release,
            notice=options.notice,
            say=monitors.say,
            report=report,
        )
        serving = [loop.create_task(one_by_one(listener(path), monitors.talk)) for path in options.monitor]
        if options.agent:
            talk = lambda reader, writer: agent(machine, reader, writer)  # noqa: E731
            serving.append(loop.create_task(one_by_one(listener(options.agent), talk)))
        machine.boot([tuple(nic.rsplit("=", 1)) for nic in options.nic])
        waiting = loop.create_task(ended.wait())
        done, _ = await asyncio.wait({waiting, *serving}, return_when=asyncio.FIRST_COMPLETED)
        for task in (waiting, *serving):
            task.cancel()
        for task in done - {waiting}:
            task.result()


def parser() -> argparse.ArgumentParser:
    """The command line."""
    said = argparse.ArgumentParser(description="A guest without a machine, for labs.")
    said.add_argument("--monitor", action="append", required=True, help="socket of a QMP monitor (repeatable)")
    said.add_argument("--agent", help="socket of the guest agent")
    said.add_argument("--console", default=os.devnull, help="file for what the guest prints")
    said.add_argument("--nic", action="append", default=[], help="INTERFACE=MAC of a card that is there from the start")
    said.add_argument("--ports", type=int, default=8, help="free root ports")
    said.add_argument("--cpus", type=int, default=1)
    said.add_argument("--release", type=float, default=0.02, help="seconds until the guest lets go of a card")
    said.add_argument("--notice", type=float, default=0.01, help="seconds until the guest has found a new card")
    return said


def main(argv: list[str] | None = None) -> int:
    """Run until told to stop."""
    asyncio.run(run(parser().parse_args(argv)))
    return 0


if __name__ == "__main__":
    sys.exit(main())
