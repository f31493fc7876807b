"""Which driver reaches a guest: QMP with the agent's own socket, or libvirt for both.

Next: :mod:`services.common.guest.qmp` and :mod:`services.common.guest.libvirt`, the drivers.
"""

import importlib.util
import os
from collections.abc import Callable
from pathlib import Path
from typing import Literal

from opentelemetry.trace import Tracer

from services.common.cri.client import CriClient
from services.common.guest.agent import GuestAgent, QemuGuestAgent
from services.common.guest.port import GuestDriver
from services.common.guest.qmp import QmpGuest
from services.common.guest.qmp_client import DEADLINE
from services.common.runtime.settings import SettingsError

DriverSetting = Literal["auto", "qmp", "libvirt"]

DriverFactory = Callable[[str, tuple[str, str], str], tuple[GuestDriver, GuestAgent]]
"""Returns the driver and the agent client of a VMI, from its UID, its namespace and name, and its pod's UID."""


def libvirt_installed() -> bool:
    """Return whether libvirt's Python binding is installed, without importing it."""
    return importlib.util.find_spec("libvirt") is not None


def driver_factory(
    choice: DriverSetting,
    *,
    qmp_socket: str,
    agent_socket: str,
    cri: CriClient,
    host_root: str,
    tracer: Tracer,
    has_binding: bool | None = None,
    deadline: float = DEADLINE,
) -> DriverFactory:
    """Return the function that makes the driver of each guest.

    :param choice: ``auto`` selects QMP where the directory of the guest's QMP socket exists, else libvirt where its
        binding is installed. The directory exists before the socket does.
    :param qmp_socket: path of a guest's QMP socket, with ``{uid}`` for the VMI's UID.
    :param agent_socket: path of a guest's agent socket, with ``{uid}`` for the VMI's UID.
    :param host_root: where the node's file system, ``/proc`` included, is mounted.
    :param has_binding: whether libvirt's Python binding is installed; determined by default.
    :param deadline: seconds for a QMP response, and for the greeting.
    :raises SettingsError: libvirt is chosen and its binding is not installed.
    """
    has_binding = libvirt_installed() if has_binding is None else has_binding
    if choice == "libvirt" and not has_binding:
        raise SettingsError("HOTNIC_GUEST_DRIVER", "libvirt needs its Python binding: install hotnic[libvirt]")

    def make_driver(uid: str, key: tuple[str, str], pod_uid: str) -> tuple[GuestDriver, GuestAgent]:
        monitor = qmp_socket.replace("{uid}", uid)
        if uses_qmp(choice, monitor, has_binding=has_binding):
            guest = QmpGuest(monitor, tracer, trusted=trusted_folder(qmp_socket), deadline=deadline)
            agent = QemuGuestAgent(agent_socket.replace("{uid}", uid), trusted=trusted_folder(agent_socket))
            return guest, agent
        # Imported only where it is used: the binding is an optional extra.
        from services.common.guest.launcher import libvirt_socket_finder
        from services.common.guest.libvirt import LibvirtAgent, LibvirtGuest

        domain = LibvirtGuest(domain_name(*key), libvirt_socket_finder(cri, pod_uid, Path(host_root)), tracer)
        return domain, LibvirtAgent(domain)

    return make_driver


def trusted_folder(template: str) -> str:
    """Return the folder of the node that holds the guests' folders; what is below it may be written by users' pods.

    :param template: path of a guest's socket, with ``{uid}`` for the VMI's UID.
    """
    above, uid, _ = template.partition("{uid}")
    # Without the UID all guests have one socket, and only its own folder is known.
    return os.path.dirname(above if uid else template) or "/"


def uses_qmp(choice: DriverSetting, monitor: str, *, has_binding: bool) -> bool:
    """Return whether a guest is reached by QMP, not by libvirt; see :func:`driver_factory`.

    :param monitor: path of the guest's QMP socket.
    """
    return choice == "qmp" or not has_binding or (choice == "auto" and os.path.isdir(os.path.dirname(monitor)))


def domain_name(namespace: str, name: str) -> str:
    """Return the name that KubeVirt gives the domain of a VMI."""
    return f"{namespace}_{name}"
