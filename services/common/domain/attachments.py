"""Which attachments the pod of a VMI should have: the VMI's spec against the pod's networks annotation.

Names follow the pod: hashed, unless the pod was made with ordinal names, which it keeps.
Not here: what the pod really has (its network status), and who attaches. Next:
:mod:`services.common.domain.hotplug_status`.
"""

from schemas.kube import Interface, Network, VmiSpec
from schemas.names import is_ordinal, pod_interface
from schemas.networks import NetworkSelectionElement, NetworkStatus
from services.common.domain.operations import ABSENT


def secondary(spec: VmiSpec) -> list[tuple[Interface, Network]]:
    """The interfaces on a NAD that is not the pod's default network, with their networks, in the interfaces' order.

    Of two whose links would be called alike the first one counts.

    :raises msgspec.ValidationError: an item of the spec is malformed.
    """
    networks = {network.name: network for network in spec.network_items()}
    pairs = []
    taken: set[str] = set()
    for interface in spec.interface_items():
        network = networks.get(interface.name)
        link = pod_interface(interface.name)
        if network is not None and network.multus is not None and not network.multus.default and link not in taken:
            taken.add(link)
            pairs.append((interface, network))
    return pairs


def pod_interface_names(
    spec: VmiSpec, elements: list[NetworkSelectionElement], statuses: list[NetworkStatus]
) -> dict[str, str]:
    """The pod interface name of each secondary interface.

    One ordinal name in the pod makes all of them ordinal, in the order of the spec (KubeVirt's rule).
    """
    present = [e.requested_interface for e in elements] + [s.interface for s in statuses]
    pairs = secondary(spec)
    if any(name is not None and is_ordinal(name) for name in present):
        return {interface.name: f"net{i}" for i, (interface, _) in enumerate(pairs, start=1)}
    return {interface.name: pod_interface(interface.name) for interface, _ in pairs}


def nad_reference(network_name: str, namespace: str) -> tuple[str, str]:
    """``(namespace, name)`` of a NAD reference ``name`` or ``namespace/name``; without one, the VMI's namespace."""
    left, slash, right = network_name.partition("/")
    return (left, right) if slash else (namespace, left)


def element_of(interface: Interface, network: Network, pod_link: str, namespace: str) -> NetworkSelectionElement:
    """The annotation element of one interface, with the keys that KubeVirt writes and no others."""
    assert network.multus is not None
    nad_namespace, nad = nad_reference(network.multus.network_name, namespace)
    return NetworkSelectionElement(
        name=nad, namespace=nad_namespace, mac=interface.mac_address or None, interface=pod_link
    )


def desired(
    spec: VmiSpec,
    namespace: str,
    elements: list[NetworkSelectionElement],
    statuses: list[NetworkStatus],
    released: frozenset[str],
) -> list[NetworkSelectionElement]:
    """The elements the annotation should hold: the VMI's own, then whatever others have put there, untouched.

    An absent interface keeps the element it has until its name is in ``released``: nothing is removed under a card
    that the guest still uses. An interface whose binding is not ``bridge`` keeps what it has and gets nothing new.
    """
    names = pod_interface_names(spec, elements, statuses)
    present = {element.requested_interface: element for element in elements}
    result: list[NetworkSelectionElement] = []
    for interface, network in secondary(spec):
        link = names[interface.name]
        here = present.get(link)
        if interface.state == ABSENT:
            if here is not None and interface.name not in released:
                result.append(here)
        elif interface.bridge is not None:
            result.append(here if here is not None else element_of(interface, network, link, namespace))
        elif here is not None:
            result.append(here)
    own = set(names.values())
    return result + [element for element in elements if element.requested_interface not in own]
