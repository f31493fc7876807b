"""Asks a guest for the cards of its domain the way its handler does: by its monitor, or by libvirt. Only reads.

A monitor serves one client and has the handler (:mod:`services.cli.monitor`); libvirt serves many, and is asked over a
connection that may change nothing (:func:`services.handler.guest.libvirt_domain.description`).
"""

from schemas.names import interface_of_alias
from services.cli import monitor
from services.cli.node_files import Paths
from services.common.cri.client import Cri
from services.common.domain.invariants.world import GuestDevice, NotVisible, VmSnapshot
from services.handler.guest.domain_xml import describe
from services.handler.guest.drivers import asks_monitor, binding_installed, domain_name, finder
from services.handler.guest.port import GuestNotReachable

DEADLINE = 3.0
"""Seconds for libvirt's answer."""


async def cards(
    paths: Paths, cri: Cri, machine: VmSnapshot, pod_uid: str, *, bound: bool | None = None
) -> tuple[GuestDevice, ...] | NotVisible:
    """The cards of a domain that are named after interfaces of its spec.

    :param bound: whether libvirt's binding is installed; looked for by default.
    """
    uid = machine.vmi.metadata.uid if machine.vmi else ""
    socket = paths.qmp_socket.replace("{uid}", uid)
    if asks_monitor(paths.guest_driver, str(paths.host(socket)), bound=True):
        return await monitor.cards(paths, uid)
    if not (binding_installed() if bound is None else bound):
        why = "to ask libvirt for them, its Python binding has to be installed here: hotnic[libvirt]"
        return NotVisible(why if paths.guest_driver == "libvirt" else f"there is no monitor at {socket}, and {why}")
    try:
        # Only where it is used: the binding is an extra.
        from services.handler.guest.libvirt_domain import description

        name = domain_name(machine.namespace, machine.name)
        found = describe(await description(name, finder(cri, pod_uid, paths.host("/")), deadline=DEADLINE), None)
    except ImportError as error:
        return NotVisible(f"libvirt's Python binding does not load here: {error}")
    except GuestNotReachable as error:
        return NotVisible(str(error))
    named = ((interface_of_alias(card.alias), card.mac) for card in found.cards.values())
    return tuple(GuestDevice(interface, mac) for interface, mac in named if interface is not None)
