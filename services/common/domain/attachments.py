"""The attachments that a VMI's pod should have, from the VMI's NICs and the pod's networks annotation.

The attachments that a pod really has are in its network status. Pure.
Next: :mod:`services.common.domain.status.hotplug_status`.
"""

from schemas.kubernetes.networks import NetworkSelectionElement
from services.common.domain.mac_address import find_mac
from services.common.domain.nic import Nic, VmiNics


def desired_elements(nics: VmiNics) -> list[NetworkSelectionElement]:
    """Return the desired elements of the networks annotation: those of the VMI, then all foreign elements unchanged.

    An absent interface keeps its element until its pod network is torn down: no attachment is removed while the guest
    still uses its device. An interface without bridge binding keeps its element, but gets no new one.
    """
    result = []
    for nic in nics:
        if nic.element is not None and not nics.released(nic):
            result.append(nic.element)
        elif nic.interface.bridge is not None and not nic.absent:
            result.append(build_element(nic))
    own = [nic.element for nic in nics if nic.element is not None]
    links = set() if nics.ordinal else {nic.link for nic in nics}
    return result + [
        element
        for element in nics.elements
        if element.requested_interface not in links and not any(element is one for one in own)
    ]


def build_element(nic: Nic) -> NetworkSelectionElement:
    """Return the network selection element of a NIC, with exactly the keys that KubeVirt writes.

    A MAC that no NIC can have is left out: the handler refuses the NIC, and its attachment is undone.
    """
    namespace, _, name = nic.nad.partition("/")
    mac = find_mac(nic.interface.mac_address)
    return NetworkSelectionElement(name=name, namespace=namespace, mac=mac, interface=nic.link)
