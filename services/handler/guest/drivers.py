"""Which driver reaches a guest, and how its agent is asked: by QMP and the agent's own channel, or both by libvirt.

Next: :mod:`services.handler.guest.qmp` and :mod:`services.handler.guest.libvirt`, the drivers.
"""

import importlib.util
import os
from collections.abc import Awaitable, Callable
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Literal

from opentelemetry.trace import Tracer

from services.common.cri.client import Cri
from services.common.cri.errors import CriError
from services.common.settings import SettingsError
from services.handler.guest.agent import Agent, GuestAgent
from services.handler.guest.launcher import CONTAINER, libvirt_socket
from services.handler.guest.port import Guest, GuestNotReachable
from services.handler.guest.qmp import DEADLINE, QmpGuest

DriverSetting = Literal["auto", "qmp", "libvirt"]

Drive = Callable[[str, tuple[str, str], str], tuple[Guest, GuestAgent]]
"""Guest and agent of a VMI: by its UID, its namespace and name, and its pod's UID."""


def binding_installed() -> bool:
    """Whether libvirt's Python binding is there; it is not imported for that."""
    return importlib.util.find_spec("libvirt") is not None


def drivers(
    choice: DriverSetting,
    *,
    qmp_socket: str,
    agent_socket: str,
    cri: Cri,
    host_root: str,
    tracer: Tracer,
    bound: bool | None = None,
    deadline: float = DEADLINE,
) -> Drive:
    """How guests are reached.

    :param choice: ``auto``: QMP where the folder of the guest's monitor stands, which is there before the monitor is;
        else libvirt where its binding is installed.
    :param qmp_socket: path of a guest's monitor, ``{uid}`` for the VMI's UID. :param agent_socket: of its agent.
    :param host_root: where the node's file system, ``/proc`` included, is seen from here.
    :param bound: whether libvirt's binding is installed; looked for by default.
    :param deadline: seconds for an answer of a guest's monitor, and for its greeting.
    :raises SettingsError: libvirt is chosen, and its binding is not installed.
    """
    bound = binding_installed() if bound is None else bound
    if choice == "libvirt" and not bound:
        raise SettingsError("HOTNIC_GUEST_DRIVER", "libvirt needs its Python binding: install hotnic[libvirt]")

    def drive(uid: str, key: tuple[str, str], pod_uid: str) -> tuple[Guest, GuestAgent]:
        monitor = qmp_socket.replace("{uid}", uid)
        if asks_monitor(choice, monitor, bound=bound):
            return QmpGuest(monitor, tracer, deadline=deadline), Agent(agent_socket.replace("{uid}", uid))
        # Only where it is used: the binding is an extra.
        from services.handler.guest.libvirt import LibvirtAgent, LibvirtGuest

        guest = LibvirtGuest(domain_name(*key), finder(cri, pod_uid, Path(host_root)), tracer)
        return guest, LibvirtAgent(guest)

    return drive


def asks_monitor(choice: DriverSetting, monitor: str, *, bound: bool) -> bool:
    """Whether a guest is reached by its monitor, and not by libvirt; see :func:`drivers`."""
    return choice == "qmp" or not bound or (choice == "auto" and os.path.isdir(os.path.dirname(monitor)))


def domain_name(namespace: str, name: str) -> str:
    """What KubeVirt calls the domain of a VMI."""
    return f"{namespace}_{name}"


def finder(cri: Cri, pod_uid: str, host_root: Path) -> Callable[[], Awaitable[AbstractContextManager[str]]]:
    """What finds the socket of libvirt in a pod's launcher; its path is good inside the context.

    Raises :class:`GuestNotReachable` when called: there is no such container, or no socket in it.
    """

    async def find() -> AbstractContextManager[str]:
        try:
            pid = await cri.container_pid(pod_uid, CONTAINER)
        except CriError as error:
            raise GuestNotReachable(f"libvirt of pod {pod_uid}: {error}") from error
        return libvirt_socket(host_root / "proc" / str(pid) / "root")

    return find
