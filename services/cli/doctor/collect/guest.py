"""Reads the devices of a guest's domain with the same driver as the handler: QMP or libvirt. Changes nothing.

QEMU serves one QMP client at a time, and the handler stays connected. A second client would wait in the socket's
backlog and be served instead of the handler when that reconnects. Therefore the kernel's list of unix sockets is read
first. libvirt serves many clients; the connection is read-only.
Next: :mod:`services.common.guest.drivers`, the choice of the driver.
"""

from schemas.names import interface_of_alias
from services.cli.doctor.collect.node_files import NodeSettings
from services.cli.doctor.snapshot import GuestDevice, NotVisible, VmSnapshot
from services.cli.tracing.tracer import NoTraces
from services.common.cri.client import CriClient
from services.common.guest.drivers import domain_name, libvirt_installed, trusted_folder, uses_qmp
from services.common.guest.port import GuestNotReachable, GuestRefused, GuestView
from services.common.guest.qmp import QmpGuest

DEADLINE = 3.0
"""Seconds for one request to QEMU, or for everything that is requested from libvirt."""

_CONNECTED = "03"
"""SS_CONNECTED of <linux/net.h>."""


async def guest_devices(
    paths: NodeSettings, cri: CriClient, vm_snapshot: VmSnapshot, pod_uid: str, *, has_binding: bool | None = None
) -> tuple[GuestDevice, ...] | NotVisible:
    """Return the devices of a domain that are named after interfaces of the spec.

    :param has_binding: whether libvirt's Python binding is installed; determined when ``None``.
    """
    socket = paths.qmp_socket.replace("{uid}", vm_snapshot.vmi.metadata.uid if vm_snapshot.vmi else "")
    try:
        if uses_qmp(paths.guest_driver, str(paths.host(socket)), has_binding=True):
            view = await _list_by_qmp(paths, socket)
        elif libvirt_installed() if has_binding is None else has_binding:
            view = await _list_by_libvirt(paths, cri, vm_snapshot, pod_uid)
        else:
            missing = "libvirt's Python binding is not installed here; install hotnic[libvirt]"
            return NotVisible(
                missing if paths.guest_driver == "libvirt" else f"there is no QMP socket at {socket}, and {missing}"
            )
    except (GuestNotReachable, GuestRefused) as error:
        return NotVisible(str(error))
    named = ((interface_of_alias(device.alias), device.mac) for device in view.devices.values())
    return tuple(GuestDevice(interface, mac) for interface, mac in named if interface is not None)


async def _list_by_qmp(paths: NodeSettings, socket: str) -> GuestView:
    """List a domain by QMP, if no other client is connected.

    :param socket: path of the QMP socket on the node.
    """
    try:
        if not paths.host(socket).exists():
            raise GuestNotReachable(
                f"there is no QMP socket at {socket}; set its path with --node-paths qmp-socket=PATH"
            )
        connected = has_client(paths.host(f"{paths.host_process}/net/unix").read_text(), socket)
    except OSError as error:
        raise GuestNotReachable(f"cannot check whether the QMP socket {socket} has a client: {error}") from error
    if connected:
        raise GuestNotReachable(
            f"the QMP socket {socket} serves one client at a time, and a client is connected, normally the handler;"
            " set the path of another QMP socket of the guest with --node-paths qmp-socket=PATH, or stop that client"
        )
    trusted = str(paths.host(trusted_folder(paths.qmp_socket)))
    guest = QmpGuest(str(paths.host(socket)), NoTraces().tracer, trusted=trusted, deadline=DEADLINE)
    try:
        return await guest.list()
    finally:
        await guest.close()


async def _list_by_libvirt(paths: NodeSettings, cri: CriClient, vm_snapshot: VmSnapshot, pod_uid: str) -> GuestView:
    """List a domain by libvirt.

    :param pod_uid: UID of the pod that the guest runs in.
    """
    try:
        # Imported late, because the binding is an optional extra.
        from services.common.guest.domain_xml import parse_domain
        from services.common.guest.launcher import libvirt_socket_finder
        from services.common.guest.libvirt_domain import read_description
    except ImportError as error:
        raise GuestNotReachable(f"cannot import libvirt's Python binding: {error}") from error
    socket = libvirt_socket_finder(cri, pod_uid, paths.host("/"))
    name = domain_name(vm_snapshot.namespace, vm_snapshot.name)
    return parse_domain(await read_description(name, socket, deadline=DEADLINE), None)


def has_client(table: str, path: str) -> bool:
    """Return whether a client is connected to a unix socket.

    :param table: text of ``/proc/net/unix``; it lists a connection with the listener's path.
    """
    # The columns are Num, RefCount, Protocol, Flags, Type, St, Inode and Path.
    return any(line.split()[5] == _CONNECTED for line in table.splitlines() if line.endswith(f" {path}"))
