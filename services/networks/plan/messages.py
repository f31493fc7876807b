"""Reasons and messages of the Events on a pod, in the form of the multus dynamic networks controller.

Scripts that match its messages keep working. The cause of a failure, which it omits, follows after a colon.
Next: :mod:`services.networks.reporter`, which records the Events.
"""

from collections.abc import Mapping
from typing import Any

from schemas.kubernetes.networks import NetworkSelectionElement
from schemas.kubernetes.objects import Pod

ADDED = "AddedInterface"
ADD_FAILED = "FailedAddingInterface"
REMOVED = "RemovedInterface"
REMOVE_FAILED = "FailedRemovingInterface"
REJECTED = "InterfaceAddRejected"
CHANGE_REJECTED = "InterfaceChangeRejected"
SETTING_IGNORED = "InterfaceSettingIgnored"
UNREADABLE = "UnreadableNetworks"

USE_UNKNOWN = "the multus daemon has no record of a link that shows whether a guest uses the interface"


def _pod(pod: Pod) -> str:
    return f"pod [{pod.metadata.namespace}/{pod.metadata.name}]"


def added(pod: Pod, element: NetworkSelectionElement, link: str) -> str:
    """Return the message for a network that was attached."""
    return f"{_pod(pod)}: added interface {link} to network: {element.name}{_attributes(element)}"


def add_failed(pod: Pod, element: NetworkSelectionElement, link: str, cause: str) -> str:
    """Return the message for a network that could not be attached."""
    text = f"{_pod(pod)}: failed adding interface {link} to network: {element.name}{_attributes(element)}"
    return f"{text}: {cause}"


def removed(pod: Pod, name: str, link: str) -> str:
    """Return the message for a network that was detached."""
    return f"{_pod(pod)}: removed interface {link} from network: {name}"


def remove_failed(pod: Pod, name: str, link: str, cause: str) -> str:
    """Return the message for a network that could not be detached."""
    return f"{_pod(pod)}: failed removing interface {link} from network: {name}: {cause}"


def left_behind(pod: Pod, network: str, link: str) -> str:
    """Return the message for a network that cannot be removed: nothing tells how it was attached."""
    return (
        f"{_pod(pod)}: failed removing interface {link} from network: {network}: multus has no record of it, and "
        f"NetworkAttachmentDefinition {network} does not exist or has no valid spec.config; the interface and its "
        "addresses stay until the pod is deleted, or the NetworkAttachmentDefinition is there again"
    )


def host_network(pod: Pod) -> str:
    """Return the message for a pod that uses the node's network namespace."""
    return f"{_pod(pod)}: will not add interface to host networked pod"


def link_requested_twice(pod: Pod, element: NetworkSelectionElement, link: str) -> str:
    """Return the message for an element whose link name an earlier element requests."""
    return (
        f"{_pod(pod)}: will not add interface {link} to network: {element.name}: "
        f"an earlier element of the annotation has the same interface{_hint(element)}"
    )


def link_taken(pod: Pod, element: NetworkSelectionElement, link: str) -> str:
    """Return the message for an element whose link name belongs to an attachment that must not be detached."""
    return (
        f"{_pod(pod)}: will not add interface {link} to network: {element.name}: "
        f"the pod has an interface of that name on another network{_hint(element)}"
    )


def isolated(pod: Pod, element: NetworkSelectionElement, namespace: str, link: str) -> str:
    """Return the message for a network in a namespace that namespace isolation does not allow."""
    return (
        f"{_pod(pod)}: will not add interface {link} to network: {element.name}: "
        f"namespace isolation does not allow networks of namespace {namespace}"
    )


def change_rejected(pod: Pod, element: NetworkSelectionElement, link: str, cause: str) -> str:
    """Return the message for an attachment that is not replaced although the settings of its element changed."""
    return f"{_pod(pod)}: will not change interface {link} of network: {element.name}{_attributes(element)}: {cause}"


def setting_ignored(pod: Pod, element: NetworkSelectionElement, link: str, why: Mapping[str, str]) -> str:
    """Return the message for an attachment that ignores some settings of its element.

    :param why: the reason, by key of the element.
    """
    text = ", ".join(f"{key} ({reason})" for key, reason in why.items())
    return f"{_pod(pod)}: interface {link} of network: {element.name} ignores settings: {text}"


def unreadable(pod: Pod, key: str, error: str) -> str:
    """Return the message for an annotation that cannot be parsed; the pod is left unchanged until it is corrected."""
    return f"{_pod(pod)}: cannot parse annotation {key}: {error}"


def _hint(element: NetworkSelectionElement) -> str:
    return "" if element.requested_interface else '; set "interface" in the element'


def _attributes(element: NetworkSelectionElement) -> str:
    if not (element.ips or element.mac or element.cni_args is not None):
        return ""
    ips = " ".join(element.ips or ())
    return f"(ips: [{ips}], mac: {element.mac or ''}, cni-args: {_go_map(element.cni_args)})"


def _go_map(value: dict[str, Any] | None) -> str:
    """Return a map in the format of Go's ``fmt`` package, which upstream's messages use; keys are sorted."""
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
