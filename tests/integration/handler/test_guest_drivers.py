"""Every guest driver with the real thing: QMP with QEMU and with the lab's double, libvirt with libvirtd."""

import contextlib
import os
import signal
import tempfile
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import AbstractAsyncContextManager, AsyncExitStack
from functools import partial
from pathlib import Path

import pytest

from services.common.guest.libvirt import LibvirtGuest
from services.common.guest.port import GuestDriver
from services.common.guest.qmp import QmpGuest
from services.common.telemetry import Telemetry
from tests.support.guest.conformance import CPUS, PORTS, GuestConformance, taps
from tests.support.guest.libvirtd import NAME, Libvirtd, domain_xml, running_libvirtd
from tests.support.guest.qemu import double, paused_qemu
from tests.support.node import netns as testbed
from tests.support.telemetry.spans import recording_telemetry


@pytest.fixture(scope="module")
def folder() -> Iterator[Path]:
    """Yield a directory whose path is short enough for unix sockets."""
    with tempfile.TemporaryDirectory(prefix="hn-") as path:
        yield Path(path)


@pytest.fixture(scope="module")
def netns(folder: Path) -> Iterator[Path]:
    with testbed.namespace(folder) as path:
        yield path


@pytest.fixture(scope="module")
def daemon(folder: Path, netns: Path) -> Iterator[Libvirtd]:
    folder.chmod(0o711)
    with running_libvirtd(folder, netns, user=USER) as daemon:
        yield daemon


USER = 64055
"""The user id of libvirtd and its guests: not root, as KubeVirt's by default."""


class QmpMachine:
    """A QEMU or its double."""

    def __init__(self, start: Callable[[], AbstractAsyncContextManager[int]], socket: Path) -> None:
        self._start = start
        self._socket = socket
        self._stack = AsyncExitStack()
        self._pid = 0

    def guest(self, telemetry: Telemetry | None = None, *, deadline: float = 5.0) -> GuestDriver:
        return QmpGuest(str(self._socket), (telemetry or recording_telemetry()[0]).tracer, deadline=deadline)

    @contextlib.contextmanager
    def hanging(self) -> Iterator[None]:
        os.kill(self._pid, signal.SIGSTOP)
        try:
            yield
        finally:
            os.kill(self._pid, signal.SIGCONT)

    def end(self) -> None:
        os.kill(self._pid, signal.SIGKILL)

    async def restart(self) -> None:
        await self.close()
        self._pid = await self._stack.enter_async_context(self._start())

    async def close(self) -> None:
        await self._stack.aclose()


class LibvirtMachine:
    """A domain of a libvirtd."""

    def __init__(self, daemon: Libvirtd) -> None:
        self._daemon = daemon
        self.hanging = daemon.hanging
        self.end = daemon.kill_domain

    def guest(self, telemetry: Telemetry | None = None, *, deadline: float = 5.0) -> GuestDriver:
        tracer = (telemetry or recording_telemetry()[0]).tracer
        return LibvirtGuest(NAME, self._daemon.socket, tracer, deadline=deadline)

    async def restart(self) -> None:
        self._daemon.remove()
        # One more root port, because libvirt puts the primary NIC on one.
        self._daemon.define(domain_xml(ports=PORTS + 1, cpus=CPUS))


class TestQmp(GuestConformance):
    @pytest.fixture(params=[paused_qemu, partial(double, notice=3600.0)], ids=["QEMU", "double"])
    async def machine(self, request: pytest.FixtureRequest, folder: Path, netns: Path) -> AsyncIterator[QmpMachine]:
        socket = folder / "qmp.sock"
        machine = QmpMachine(lambda: request.param(socket, netns, ports=PORTS, cpus=CPUS), socket)
        async with taps(netns):
            await machine.restart()
            yield machine
            await machine.close()


class TestLibvirt(GuestConformance):
    @pytest.fixture
    async def machine(self, daemon: Libvirtd, netns: Path) -> AsyncIterator[LibvirtMachine]:
        machine = LibvirtMachine(daemon)
        async with taps(netns, owner=USER):
            await machine.restart()
            yield machine
            daemon.remove()
