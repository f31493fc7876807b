"""Serve the control socket of a running lab: status, stop, and starting or stopping one process.

A request is one JSON object with the key `verb`; the last answer has the key `ok`. `lab.namespaces.control` is the
client, which `lab.cli.commands` calls.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import time
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import TYPE_CHECKING

from lab.layout import HEALTH_PORTS, ON_EVERY_NODE, Layout, node_name, split_name
from lab.namespaces.control import Message
from lab.supervisor import readiness
from lab.supervisor.processes import EarlyExitError, last_lines

if TYPE_CHECKING:
    from lab.supervisor.lifecycle import Supervisor

Handler = Callable[[Message], AsyncIterator[Message]]
"""Answers one request with one or more messages."""

READY_WITHIN = 60.0
"""Seconds until a process must be ready after a start or restart; kube-apiserver takes 5."""


class Requests:
    """Handles the requests to one supervisor."""

    def __init__(self, supervisor: Supervisor) -> None:
        self._lab = supervisor

    async def answer(self, request: Message) -> AsyncIterator[Message]:
        """Yield the answers to one request."""
        verb, name = request.get("verb"), str(request.get("component", ""))
        if verb == "status":
            yield {"ok": True, **await self.status()}
        elif verb == "down":
            async for message in self._down():
                yield message
        elif verb in ("start", "stop", "restart") and name in self._lab.parameters.components:
            async for message in self._change(str(verb), name):
                yield message
        else:
            yield {"ok": False, "error": f"unknown request {json.dumps(request)}"}

    async def status(self) -> Message:
        """Return the state of the lab, its processes and its guests."""
        lab = self._lab
        identity = lab.parameters.identity
        return {
            "up": lab.up,
            "dir": str(lab.layout.dir),
            "since": identity.started,
            "apiserver": lab.parameters.cluster.endpoint,
            "nats": lab.layout.nats_environment(identity.nats_port),
            "kubeconfig": str(lab.layout.kubeconfig),
            "nodes": self._nodes(),
            "components": [await self._component(name) for name in lab.parameters.components],
            "guests": self._guests(),
        }

    def _nodes(self) -> list[Message]:
        """Return each node with the command prefix that runs a program there, from the lab's own namespaces."""
        nodes = self._lab.nodes
        names = [{"name": node_name(1), "enter": []}]
        return names + [{"name": node_name(number), "enter": list(node.enter)} for number, node in nodes.items()]

    async def _component(self, name: str) -> Message:
        process, node = split_name(name)
        placed = {"node": node_name(node)} if process in ON_EVERY_NODE or node > 1 else {}
        return {**await self._state(name), **placed}

    async def _state(self, name: str) -> Message:
        lab = self._lab
        child = lab.processes.children.get(name)
        log = lab.layout.log(name)
        if child is None:
            if name not in lab.options.without:
                return {"name": name, "state": "not-started", "log": str(log)}
            code, text = await readiness.http_get(lab.health(name), "/readyz")
            return {"name": name, "state": "by-hand", "ready": code == 200, "reason": text if code != 200 else ""}
        entry: Message = {"name": name, "state": child.state, "pid": child.pid, "log": str(log)}
        entry["seconds"] = round(time.time() - child.started, 1)
        if child.state == "running":
            if split_name(name)[0] in HEALTH_PORTS:
                code, text = await readiness.http_get(lab.health(name), "/readyz")
                entry |= {"ready": code == 200} | ({} if code == 200 else {"reason": text})
        else:
            entry["code"] = child.code
            if child.state == "exited":
                entry["lastLines"] = last_lines(log, 5)
        return entry

    def _guests(self) -> list[Message]:
        found = []
        for node in range(1, self._lab.parameters.nodes + 1):
            layout = Layout(self._lab.layout.dir, node)
            for file in sorted(layout.guests.glob("*/guest.json")):
                try:
                    record = json.loads(file.read_text())
                except (OSError, ValueError):
                    # The node process is writing or removing this file.
                    continue
                found.append({**record, "node": node_name(node), "folder": str(file.parent)})
        return found

    async def _down(self) -> AsyncIterator[Message]:
        stopped: list[tuple[str, float]] = []
        await self._lab.stop_all(lambda name, seconds: stopped.append((name, seconds)))
        for name, seconds in stopped:
            yield {"stopped": name, "ms": round(seconds * 1000)}
        self._lab.stopping.set()
        yield {"ok": True}

    async def _change(self, verb: str, name: str) -> AsyncIterator[Message]:
        lab, before = self._lab, time.monotonic()
        if verb in ("stop", "restart"):
            await lab.processes.stop(name)
        if verb in ("start", "restart"):
            child = lab.processes.children.get(name)
            if child is not None and child.state == "running":
                yield {"ok": False, "error": f"{name} runs already (pid {child.pid})"}
                return
            try:
                lab.launch(name)
                await lab.wait_ready_within(name, READY_WITHIN)
            except (EarlyExitError, OSError, TimeoutError) as error:
                yield {"ok": False, "error": str(error) or f"{name} is not ready after {READY_WITHIN:g} s"}
                return
        yield {"ok": True, "component": name, "ms": round((time.monotonic() - before) * 1000)}


async def serve(path: Path, handler: Handler) -> asyncio.Server:
    """Listen on the unix socket `path` and answer every request with the messages of `handler`."""

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            async with asyncio.timeout(10):
                line = await reader.readline()
            if line:
                async for message in handler(json.loads(line)):
                    writer.write(json.dumps(message).encode() + b"\n")
                    await writer.drain()
        except (TimeoutError, ValueError) as error:
            writer.write(json.dumps({"ok": False, "error": f"bad request: {error}"}).encode() + b"\n")
        except ConnectionError:
            return
        finally:
            writer.close()

    with contextlib.suppress(FileNotFoundError):
        os.unlink(path)
    server = await asyncio.start_unix_server(answer, path=str(path))
    # Whoever may connect can stop the lab, so only the owner may.
    os.chmod(path, 0o600)
    return server
