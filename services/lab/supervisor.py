"""Process 1 of a lab: lays its inside, starts everything in order, answers requests, stops everything in order.

Started by `services.lab.holder` in fresh namespaces with `Orders` as its only argument. What does not depend on
each other starts at the same time: apiserver, nats-server and containerd first, the roles and the node once the
cluster's objects stand (`services.lab.bootstrap`). Every step is reported on the progress pipe; then the control
socket is served (`services.lab.requests`) until someone says stop. When a step fails it says which, with the end of
that log, and stops what runs; when it is killed, its namespaces end and take everything along.
"""

from __future__ import annotations

import asyncio
import json
import os
import signal
import socket
import sys
import time
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

from services.lab import components, isolation, readiness, relay, requests
from services.lab.holder import Orders
from services.lab.layout import CONTAINERD_SOCKET, INSIDE_RUN, NATS_PORT, ROLES, Layout
from services.lab.processes import Processes
from services.lab.tools import Tools, ToolsMissingError


class StartError(Exception):
    """The lab could not be started; the message says what failed."""


class Progress:
    """Reports steps to whoever called `lab up`; silent once that process is gone."""

    def __init__(self, fd: int, began: float) -> None:
        self._fd = fd
        self._began = began

    @property
    def since(self) -> float:
        """Return the seconds since the `up`."""
        return time.monotonic() - self._began

    def say(self, **message: object) -> None:
        """Write one message."""
        if self._fd < 0:
            return
        try:
            os.write(self._fd, json.dumps({"at": round(self.since, 3), **message}).encode() + b"\n")
        except OSError:
            self.close()

    def close(self) -> None:
        """End the report: the caller sees the end of the pipe."""
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1

    async def step(self, name: str, work: Awaitable[object]) -> None:
        """Await `work` and report how long it took."""
        before = time.monotonic()
        await work
        self.say(step=name, ms=round((time.monotonic() - before) * 1000))


class Supervisor:
    """One lab from start to stop."""

    def __init__(self, orders: Orders, progress: Progress) -> None:
        self.orders = orders
        self.layout = Layout(Path(orders.dir))
        identity = self.layout.identity()
        if identity is None:
            raise StartError(f"{self.layout.identity_file} is missing")
        self.plan = components.Plan(self.layout, identity, Tools.find(), orders.apiserver_fd, orders.guests)
        self.processes = Processes()
        self.stopping = asyncio.Event()
        self.up = False
        self._progress = progress

    async def run(self) -> int:
        """Start, serve until told to stop, stop; return the exit code."""
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, self.stopping.set)
        server = await requests.serve(INSIDE_RUN / "control.sock", requests.Requests(self).answer)
        outward = await relay.serve(socket.socket(fileno=self.orders.nats_fd), NATS_PORT)
        try:
            if await self._started_before_stop():
                self.up = True
                self._progress.say(done=True, ok=True)
                self._progress.close()
                await self.stopping.wait()
            return 0
        except StartError as error:
            self._progress.say(done=True, ok=False, error=str(error))
            return 1
        finally:
            outward.close()
            await self.stop_all()
            server.close()
            self.processes.close()

    async def _started_before_stop(self) -> bool:
        starting = asyncio.ensure_future(self._start())
        stopping = asyncio.ensure_future(self.stopping.wait())
        racing: set[asyncio.Future[Any]] = {starting, stopping}
        try:
            await asyncio.wait(racing, return_when=asyncio.FIRST_COMPLETED)
            if starting.done():
                await starting
            return starting.done()
        finally:
            for future in racing:
                future.cancel()
            await asyncio.gather(*racing, return_exceptions=True)

    async def _start(self) -> None:
        """Bring everything up; raises StartError."""
        try:
            async with asyncio.timeout(self.orders.deadline - self._progress.since):
                await self._start_in_order()
        except TimeoutError as error:
            waiting = ", ".join(await self._not_ready())
            raise StartError(
                f"not everything was ready after {self.orders.deadline:g} s: {waiting or 'the sample VM'}"
            ) from error
        except Exception as error:
            # Whatever it was, the answer is the same: say it, stop what runs, end.
            cause = first(error)
            raise StartError(str(cause) or type(cause).__name__) from error

    async def _start_in_order(self) -> None:
        say = self._progress
        components.write_configuration(self.plan)
        for component in ("nats", "containerd"):
            self.launch(component)
        async with asyncio.TaskGroup() as group:
            group.create_task(say.step("nats-server", self.ready("nats")))
            group.create_task(say.step("containerd and pause image", self._containerd()))
            group.create_task(self._cluster())
        if not self.orders.bare:
            # Imported where used: it takes longer than containerd takes to start, and may go on beside it.
            from services.lab import bootstrap

            await say.step("sample network and VM", bootstrap.run_samples(self.layout))

    async def _containerd(self) -> None:
        await self.ready("containerd")
        await self.processes.run(components.import_pause_image(self.plan, os.environ), timeout=20)

    async def _cluster(self) -> None:
        from services.lab import credentials

        say = self._progress
        before = say.since
        credentials.issue(self.layout, self.plan.identity)
        say.say(step="certificates", ms=round((say.since - before) * 1000))
        self.launch("apiserver")

        from services.lab import bootstrap

        await say.step("apiserver", self.ready("apiserver"))
        await say.step("namespaces, CRDs, API registration", bootstrap.run(self.layout))
        wanted = [c for c in (*ROLES, "node") if c not in self.orders.without]
        for component in wanted:
            self.launch(component)
        async with asyncio.TaskGroup() as group:
            for component in wanted:
                group.create_task(say.step(component, self.ready(component)))
        for role in self.orders.without:
            say.say(by_hand=role, command=components.by_hand(self.plan, role))

    def launch(self, component: str) -> None:
        """Start the process of `component`."""
        self.processes.start(components.spec(self.plan, component, os.environ))

    async def ready(self, component: str) -> None:
        """Return once `component` is ready; raises EarlyExitError when it ends before."""
        match component:
            case "apiserver":
                probe = readiness.port(self.plan.identity.apiserver_port)
            case "nats":
                probe = readiness.port(NATS_PORT)
            case "containerd":
                probe = readiness.unix(CONTAINERD_SOCKET)
            case _:
                probe = readiness.readyz(components.health_socket(component))
        await readiness.before_exit(self.processes.children[component], probe)

    async def ready_within(self, component: str, seconds: float) -> None:
        """Like `ready`; raises TimeoutError after `seconds`."""
        async with asyncio.timeout(seconds):
            await self.ready(component)

    async def _not_ready(self) -> list[str]:
        answers = []
        for component in (*ROLES, "node"):
            if component in self.processes.children:
                status, why = await readiness.ask(components.health_socket(component), "/readyz")
                if status != 200:
                    answers.append(f"{component} ({why or status})")
        return answers

    async def stop_all(self, said: Callable[[str, float], None] = lambda _name, _seconds: None) -> None:
        """Stop every process: roles and node first, what they depend on after; `said` is told of each."""

        async def stop(component: str) -> None:
            if component in self.processes.children:
                said(component, await self.processes.stop(component))

        for together in reversed(components.STARTED_TOGETHER):
            await asyncio.gather(*(stop(component) for component in together))


def first(group: BaseException) -> BaseException:
    """Return the first leaf of an exception group."""
    while isinstance(group, BaseExceptionGroup):
        group = group.exceptions[0]
    return group


async def supervise(orders: Orders, progress: Progress) -> int:
    """Run one lab."""
    return await Supervisor(orders, progress).run()


def main(argv: list[str] | None = None) -> int:
    """Run the supervisor with the orders in `argv`."""
    body = json.loads((argv or sys.argv[1:])[0])
    orders = Orders(**{**body, "without": tuple(body["without"])})
    progress = Progress(orders.progress_fd, orders.began)
    layout = Layout(Path(orders.dir))
    try:
        before = progress.since
        isolation.isolate(layout)
        progress.say(step="namespaces and mounts", ms=round((progress.since - before) * 1000))
        return asyncio.run(supervise(orders, progress))
    except (OSError, StartError, ToolsMissingError) as error:
        progress.say(done=True, ok=False, error=str(error))
        return 1


if __name__ == "__main__":
    sys.exit(main())
