"""Asks a guest's own monitor (QMP) for the cards of its domain, when nobody else is connected to it.

QEMU serves one client at a time, and the handler keeps its connection; a second one would be kept waiting and take
the handler's place when that restarts. So the kernel's list of unix sockets is read first.
Source: QEMU's QMP specification; one JSON document a line.
"""

import asyncio
import contextlib
import itertools
from typing import Any

import msgspec

from schemas.names import interface_of_alias
from services.cli.node_files import Paths
from services.common.domain.invariants.world import GuestDevice, NotVisible

DEADLINE = 2.0
"""Seconds for the whole conversation."""

_DEVICES = "/machine/peripheral"
_CONNECTED = "03"


class Refused(Exception):
    """The monitor answered with an error."""


async def cards(paths: Paths, vmi_uid: str) -> tuple[GuestDevice, ...] | NotVisible:
    """The cards of a domain that are named after interfaces of its spec."""
    socket = paths.qmp_socket.replace("{uid}", vmi_uid)
    try:
        if not paths.host(socket).exists():
            return NotVisible(f"there is no monitor at {socket}")
        if in_use(paths.host("/proc/1/net/unix").read_text(), socket):
            return NotVisible("the guest's monitor serves one client, and has one: the handler")
        async with asyncio.timeout(DEADLINE):
            return await _ask(str(paths.host(socket)))
    except (OSError, TimeoutError, EOFError, ValueError, Refused) as error:
        return NotVisible(f"the monitor at {socket} does not tell: {error or 'no answer in time'}")


def in_use(table: str, path: str) -> bool:
    """Whether a client is connected to a unix socket, from the text of ``/proc/net/unix``.

    A connection stands in the table of its client's network namespace, under the listener's path.
    """
    return any(line.split()[5] == _CONNECTED for line in table.splitlines() if line.endswith(f" {path}"))


async def _ask(path: str) -> tuple[GuestDevice, ...]:
    reader, writer = await asyncio.open_unix_connection(path, limit=1 << 20)
    ids = itertools.count()

    async def execute(command: str, **arguments: Any) -> Any:
        number = next(ids)
        document = {"execute": command, "arguments": arguments, "id": number}
        writer.write(msgspec.json.encode(document) + b"\n")
        while True:
            line = await reader.readline()
            if not line:
                raise EOFError("it hung up")
            answer = msgspec.json.decode(line, type=dict[str, Any])
            if answer.get("id") == number:
                if "error" in answer:
                    raise Refused(f"{command}: {answer['error'].get('desc')}")
                return answer["return"]

    try:
        await reader.readline()  # the greeting
        await execute("qmp_capabilities")
        found = []
        for item in await execute("qom-list", path=_DEVICES):
            interface = interface_of_alias(str(item["name"]))
            if interface is not None and "-net" in str(item["type"]):
                mac = await execute("qom-get", path=f"{_DEVICES}/{item['name']}", property="mac")
                found.append(GuestDevice(interface, str(mac).lower()))
        return tuple(found)
    finally:
        writer.close()
        with contextlib.suppress(OSError):
            await writer.wait_closed()
