"""The processes of a lab: killed, stopped and started by a test, or at failpoints (:mod:`lab.failpoints`).

Nothing here knows what they do. Next: :mod:`tests.support.lab.rig`, which adds requests and the state of the cluster.
"""

import asyncio
import time
from collections.abc import Callable
from typing import Any

from lab.failpoints import points
from lab.namespaces import control
from tests.support.lab.inspector import Inspector
from tests.support.lab.running import Lab

TIMEOUT = 40.0
"""Seconds within which the lab has to be consistent again. Less than the resync period of a minute: the roles must not
depend on the resync."""


class LabProcesses:
    """The processes of a lab.

    :ivar failpoints: the directory in which failpoints are armed.
    """

    def __init__(self, lab: Lab, inspector: Inspector) -> None:
        self.lab = lab
        self.failpoints = lab.failpoints
        self._inspector = inspector

    def arm(self, point: str, victim: int | None = None, signal: str = "SIGKILL") -> None:
        """Arm a failpoint: the role that reaches it kills itself, or sends a signal to the process ``victim``."""
        (self.failpoints / point).write_text("" if victim is None else f"{victim} {signal}")

    def disarm(self) -> None:
        """Disarm all failpoints."""
        for file in self.failpoints.iterdir():
            if file.name != points.PASSED:
                file.unlink()

    def passed(self) -> list[str]:
        """Return the failpoints that were passed since :meth:`reset_passed`, in order."""
        return (self.failpoints / points.PASSED).read_text().split()

    async def wait_passed(self, names: set[str], timeout: float = 40.0) -> None:
        """Wait until each of these failpoints was passed."""
        await wait_until(
            lambda: names <= set(self.passed()), timeout, lambda: f"not passed: {names - set(self.passed())}"
        )

    def reset_passed(self) -> None:
        """Clear the list of passed failpoints."""
        (self.failpoints / points.PASSED).write_text("")

    async def wait_fired(self, point: str, timeout: float = TIMEOUT) -> None:
        """Wait until an armed failpoint was reached."""
        await wait_until(lambda: not (self.failpoints / point).exists(), timeout, lambda: f"{point} is not reached")

    async def wait_killed(self, component: str, timeout: float = 40.0) -> None:
        """Wait until a process was killed by SIGKILL."""
        deadline = time.monotonic() + timeout
        while True:
            one = await self.component(component)
            if one["state"] == "exited":
                assert one["code"] == -9, one
                return
            assert time.monotonic() < deadline, one
            await asyncio.sleep(0.01)

    async def kill(self, component: str) -> None:
        """Kill a process with SIGKILL and wait for its end."""
        await self.send_signal(component, "SIGKILL")
        await self.wait_killed(component)

    async def send_signal(self, component: str, name: str) -> None:
        """Send a signal to a process."""
        pid = (await self.component(component))["pid"]
        await self.ask_inspector(kill=pid, signal=name)

    async def start(self, component: str) -> None:
        """Start a stopped process and wait until it is ready."""
        answer = await self.control(verb="start", component=component)
        assert answer["ok"], answer

    async def start_without_waiting(self, component: str) -> None:
        """Start a process that may die before it is ready."""
        await self.control(verb="start", component=component)

    async def stop(self, component: str) -> None:
        """Stop a process gracefully."""
        answer = await self.control(verb="stop", component=component)
        assert answer["ok"], answer

    async def wait_ready(self, timeout: float = TIMEOUT) -> None:
        """Wait until every role and the node are ready."""
        deadline = time.monotonic() + timeout
        while True:
            status = await self.control(verb="status")
            unready = [one for one in status["components"] if not one.get("ready", one["state"] == "running")]
            if not unready:
                return
            assert time.monotonic() < deadline, unready
            await asyncio.sleep(0.05)

    async def ask_inspector(self, **request: Any) -> dict[str, Any]:
        """Send a request to the process inside the lab and return its reply."""
        return await asyncio.to_thread(self._inspector.request, **request)

    async def component(self, name: str) -> dict[str, Any]:
        """Return the lab's status of a process."""
        status = await self.control(verb="status")
        return next(dict(one) for one in status["components"] if one["name"] == name)

    async def control(self, **message: Any) -> dict[str, Any]:
        """Send a request to the lab's supervisor and return its last answer."""
        socket = self.lab.layout.control_socket
        return (await asyncio.to_thread(lambda: list(control.request(socket, message, 90.0))))[-1]


async def wait_until(true: Callable[[], bool], timeout: float, otherwise: Callable[[], str]) -> None:
    """Poll a condition until it is true.

    :param otherwise: returns the message of the assertion when it is not true in time.
    """
    deadline = time.monotonic() + timeout
    while not true():
        assert time.monotonic() < deadline, otherwise()
        await asyncio.sleep(0.005)
