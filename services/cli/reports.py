"""What the services reported about an interface as Kubernetes Events: why it does not go on.

Best effort: Events are kept for an hour, and may be forbidden to the user. What objects say is
:mod:`services.cli.status`.
"""

from typing import Any

from schemas.kube import EVENTS, PODS, VirtualMachineInstance
from schemas.names import pod_interface
from services.cli.cluster import pod_selector
from services.common.kube.client import Kube
from services.common.kube.errors import KubeError

SHOWN = 3


async def warnings(kube: Kube, vmi: VirtualMachineInstance, interface: str, *others: str) -> list[str]:
    """The latest warnings about an interface, the last one last; empty where they cannot be read.

    :param others: UIDs of further objects that the warnings may stand at.
    """
    found: list[dict[str, Any]] = []
    try:
        pods = await kube.list(PODS, vmi.metadata.namespace, labels=pod_selector(vmi))
        for uid in (vmi.metadata.uid, *(pod.metadata.uid for pod in pods.items), *others):
            fields = f"involvedObject.uid={uid},type=Warning"
            found += (await kube.list(EVENTS, vmi.metadata.namespace, fields=fields)).items
    except KubeError:
        return []
    return told(found, interface)


def told(events: list[dict[str, Any]], interface: str) -> list[str]:
    """The latest of the events that speak of an interface, by its name or by that of its pod link."""
    names = (f"interface {interface}:", f"interface {interface} ", f"interface {interface!r}", pod_interface(interface))
    mine = [event for event in events if any(name in str(event.get("message")) for name in names)]
    mine.sort(key=lambda event: str(event.get("lastTimestamp")))
    return [f"{event.get('reason')}: {event.get('message')}" for event in mine[-SHOWN:]]
