"""The queue of requests in a VM's status, which KubeVirt 1.0 follows instead of the template. Pure.

Next: :mod:`services.common.domain.kubevirt.explain`, what is said about a request in it.
"""

import msgspec

from schemas.kubernetes.objects import VirtualMachine
from schemas.stages import OperationKind


class QueuedChange(msgspec.Struct, frozen=True):
    """A request in the queue of KubeVirt 1.0.

    :ivar network: the NAD of a plug; empty for an unplug.
    """

    name: str
    kind: OperationKind
    network: str


def read_queue(vm: VirtualMachine) -> list[QueuedChange]:
    """Return the requests that KubeVirt 1.0 has not followed yet, oldest first, without malformed ones."""
    found = []
    for item in vm.status.interface_requests or ():
        for key, kind in (("add", OperationKind.PLUG), ("remove", OperationKind.UNPLUG)):
            options = item.get(f"{key}InterfaceOptions")
            if isinstance(options, dict):
                network = str(options.get("networkAttachmentDefinitionName", ""))
                found.append(QueuedChange(str(options.get("name", "")), kind, network))
    return found
