"""What the Events on a pod say: reasons and texts, in the form of the dynamic networks controller.

Scripts that match its texts go on matching; the cause of a failure, which it never told, follows after a colon.
Next: :mod:`services.networks.nad`.
"""

from collections.abc import Mapping
from typing import Any

from schemas.kube import Pod
from schemas.networks import NetworkSelectionElement

ADDED = "AddedInterface"
ADD_FAILED = "FailedAddingInterface"
REMOVED = "RemovedInterface"
REMOVE_FAILED = "FailedRemovingInterface"
REJECTED = "InterfaceAddRejected"
CHANGE_REJECTED = "InterfaceChangeRejected"
UNHEARD = "InterfaceSettingIgnored"
UNREADABLE = "UnreadableNetworks"

NO_RECORD = "the multus daemon keeps no record that would tell whether a guest is using it"


def _pod(pod: Pod) -> str:
    return f"pod [{pod.metadata.namespace}/{pod.metadata.name}]"


def added(pod: Pod, element: NetworkSelectionElement, link: str) -> str:
    """An attachment was made."""
    return f"{_pod(pod)}: added interface {link} to network: {element.name}{_attributes(element)}"


def add_failed(pod: Pod, element: NetworkSelectionElement, link: str, cause: str) -> str:
    """An attachment was not made."""
    text = f"{_pod(pod)}: failed adding interface {link} to network: {element.name}{_attributes(element)}"
    return f"{text}: {cause}"


def removed(pod: Pod, name: str, link: str) -> str:
    """An attachment was undone."""
    return f"{_pod(pod)}: removed interface {link} from network: {name}"


def remove_failed(pod: Pod, name: str, link: str, cause: str) -> str:
    """An attachment was not undone."""
    return f"{_pod(pod)}: failed removing interface {link} from network: {name}: {cause}"


def host_network(pod: Pod) -> str:
    """The pod has no network namespace of its own."""
    return f"{_pod(pod)}: will not add interface to host networked pod"


def named_twice(pod: Pod, element: NetworkSelectionElement, link: str) -> str:
    """Two elements ask for the same link."""
    return (
        f"{_pod(pod)}: will not add interface {link} to network: {element.name}: "
        f"an earlier element of the annotation has the same interface{_way_out(element)}"
    )


def link_taken(pod: Pod, element: NetworkSelectionElement, link: str) -> str:
    """The link belongs to an attachment that is not this element's and may not go."""
    return (
        f"{_pod(pod)}: will not add interface {link} to network: {element.name}: "
        f"the pod has an interface of that name on another network{_way_out(element)}"
    )


def isolated(pod: Pod, element: NetworkSelectionElement, namespace: str, link: str) -> str:
    """The network's namespace is closed to the pod's."""
    return (
        f"{_pod(pod)}: will not add interface {link} to network: {element.name}: "
        f"namespace isolation keeps the pod from networks of namespace {namespace}"
    )


def change_rejected(pod: Pod, element: NetworkSelectionElement, link: str, cause: str) -> str:
    """An attachment is not made anew from what its element asks now."""
    return f"{_pod(pod)}: will not change interface {link} of network: {element.name}{_attributes(element)}: {cause}"


def unheard(pod: Pod, element: NetworkSelectionElement, link: str, why: Mapping[str, str]) -> str:
    """An attachment was made, but not all of what its element asks was followed."""
    text = ", ".join(f"{key} ({reason})" for key, reason in why.items())
    return f"{_pod(pod)}: interface {link} of network: {element.name} is without: {text}"


def unreadable(pod: Pod, key: str, error: Exception) -> str:
    """An annotation cannot be understood; nothing of the pod is changed until it can."""
    return f"{_pod(pod)}: annotation {key} cannot be read: {error}"


def _way_out(element: NetworkSelectionElement) -> str:
    return "" if element.requested_interface else '; give the element an "interface" of its own'


def _attributes(element: NetworkSelectionElement) -> str:
    if not (element.ips or element.mac or element.cni_args is not None):
        return ""
    ips = " ".join(element.ips or ())
    return f"(ips: [{ips}], mac: {element.mac or ''}, cni-args: {_go_map(element.cni_args)})"


def _go_map(value: dict[str, Any] | None) -> str:
    """A map as upstream's language prints it, keys sorted."""
    if value is None:
        return "<nil>"
    return "&map[" + " ".join(f"{key}:{_go(value[key])}" for key in sorted(value)) + "]"


def _go(value: Any) -> str:
    if isinstance(value, dict):
        return _go_map(value)[1:]
    if isinstance(value, list):
        return "[" + " ".join(map(_go, value)) + "]"
    if isinstance(value, bool):
        return str(value).lower()
    return "<nil>" if value is None else str(value)
