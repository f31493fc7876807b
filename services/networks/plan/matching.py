"""Match the elements of the networks annotation with the entries of network-status, by network and link name. Pure.

Next: :mod:`services.networks.plan`, which decides from the matches.
"""

from collections.abc import Iterable

import msgspec

from schemas.kubernetes.networks import NetworkSelectionElement, NetworkStatus
from schemas.names import is_ordinal
from services.networks.plan.attachments import DEFAULT_NETWORK_OWNER, PodAttachments


class PlacedElement(msgspec.Struct, frozen=True):
    """An element of the annotation with the defaults that apply to it.

    :ivar element: the element.
    :ivar namespace: namespace of its NAD.
    :ivar link: name of its pod interface: the requested one, or the one that multus would give it.
    """

    element: NetworkSelectionElement
    namespace: str
    link: str

    @property
    def network(self) -> str:
        """The name of the network in network-status."""
        return f"{self.namespace}/{self.element.name}"


class ElementMatch(msgspec.Struct, frozen=True):
    """The elements of the annotation, matched with the entries of network-status.

    :ivar listed: elements with an entry.
    :ivar missing: elements with a link name and without an entry.
    :ivar unnamed: elements without a link name and without an entry; they get the name that multus would give them.
    :ivar repeated: elements whose link name an earlier element has.
    :ivar unmatched: entries without an element.
    """

    listed: list[PlacedElement]
    missing: list[PlacedElement]
    unnamed: list[PlacedElement]
    repeated: list[PlacedElement]
    unmatched: list[NetworkStatus]

    @property
    def desired_links(self) -> set[str]:
        """The link names that the annotation requests."""
        return {placed.link for placed in (*self.listed, *self.missing, *self.unnamed)}


def match_elements(pod_namespace: str, attachments: PodAttachments) -> ElementMatch:
    """Match the elements of a pod's annotation with the entries of its network-status."""
    found = ElementMatch(listed=[], missing=[], unnamed=[], repeated=[], unmatched=list(attachments.statuses))
    links: set[str] = set()
    without_name: list[PlacedElement] = []
    # multus counts the cluster network and the node's default networks before the annotation's elements.
    # Upstream's controller gives such elements no name at all (multus-dynamic-networks-controller#63).
    first = 1 + sum(one.owner == DEFAULT_NETWORK_OWNER for one in attachments.recorded)
    for position, element in enumerate(attachments.elements, first):
        link = element.requested_interface
        placed = PlacedElement(element, element.namespace or pod_namespace, link or f"net{position}")
        if link is None:
            without_name.append(placed)
        elif link in links:
            found.repeated.append(placed)
        else:
            links.add(link)
            (found.listed if _take_entry(found, placed, attachments) else found.missing).append(placed)
    # Elements without a name come second, so that none of them takes an entry that a named element requests.
    _match_without_name(found, without_name, links, attachments)
    return found


def _match_without_name(
    found: ElementMatch, elements: Iterable[PlacedElement], links: set[str], attachments: PodAttachments
) -> None:
    """Match elements without a link name: with the entry of their position, else with any ``net<i>`` of their network.

    The second rule preserves an attachment whose element moved in the list.
    """
    left: list[PlacedElement] = []
    for placed in elements:
        (found.listed if _take_entry(found, placed, attachments) else left).append(placed)
    for placed in left:
        status = next((one for one in found.unmatched if _may_be_named_by_multus(one, placed, attachments)), None)
        if status is not None:
            found.unmatched.remove(status)
            found.listed.append(PlacedElement(placed.element, placed.namespace, status.interface or placed.link))
        elif placed.link in links:
            found.repeated.append(placed)
        else:
            found.unnamed.append(placed)


def _take_entry(found: ElementMatch, placed: PlacedElement, attachments: PodAttachments) -> bool:
    """Take the entry of an element out of the unmatched ones; return whether there is one."""
    if placed.link in attachments.detached_links:
        return False
    for status in found.unmatched:
        if status.name == placed.network and status.interface == placed.link:
            found.unmatched.remove(status)
            return True
    return False


def _may_be_named_by_multus(status: NetworkStatus, placed: PlacedElement, attachments: PodAttachments) -> bool:
    link = status.interface
    named_by_multus = link is not None and is_ordinal(link) and link not in attachments.detached_links
    return named_by_multus and status.name == placed.network and not status.default


def unlisted_attachments(found: ElementMatch, attachments: PodAttachments) -> list[tuple[str, str]]:
    """Return network and link of the hot-plugged attachments that have neither an element nor an entry.

    They remain if the role stopped between a CNI ADD and the patch of the pod, and the element was removed since.
    """
    listed = {status.interface for status in attachments.statuses} | found.desired_links
    made = (*attachments.hot_plugged_in_record, *attachments.unwritten)
    networks = {link: network for network, link in made if link not in listed}
    return [(network, link) for link, network in networks.items()]
