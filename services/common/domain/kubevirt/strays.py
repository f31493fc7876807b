"""Stray elements: attachments in a pod's networks annotation that belong to no interface of the VMI. Pure.

KubeVirt leaves one when an interface is plugged and set to ``absent`` before Multus has attached it, and repairs none:
the networks role attaches it later, and no object of KubeVirt names it. An element whose name is not hashed is not
KubeVirt's, and not stray. Next: :mod:`services.common.domain.kubevirt.reasons`.
"""

from collections.abc import Set

import msgspec

from schemas.kubernetes.networks import NetworkSelectionElement
from schemas.kubernetes.operations import is_hashed
from schemas.names import interface_hash
from services.common.domain.kubevirt.stages import nad_of
from services.common.domain.nic import VmiNics


class StrayElement(msgspec.Struct, frozen=True):
    """An element of the pod's networks annotation that no interface of the VMI has.

    :ivar link: name of the pod interface.
    :ivar nad: the NAD as ``namespace/name``.
    :ivar attached: whether the pod's network status lists it.
    :ivar element: the element.
    """

    link: str
    nad: str
    attached: bool
    element: NetworkSelectionElement


def find_stray_elements(nics: VmiNics) -> list[StrayElement]:
    """Return the stray elements of the acting pod, in the order of its annotation."""
    hashes, attached = {interface_hash(name) for name in nics.interfaces}, {one.interface for one in nics.statuses}
    return [
        StrayElement(link, nad_of(element, nics.vmi.metadata.namespace), link in attached, element)
        for element in nics.elements
        if (link := element.requested_interface) is not None and is_stray_link(link, hashes)
    ]


def is_stray_link(link: str, spec_hashes: Set[str]) -> bool:
    """Return whether a pod interface has the name of an interface that the spec does not have.

    A pod with ordinal names attaches an interface of the spec under another name. A hashed name of that interface is
    no stray either: nobody knows who added it.

    :param spec_hashes: hashes of all interfaces of the spec.
    """
    return is_hashed(link) and link[3:] not in spec_hashes
