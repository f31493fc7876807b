"""Types of the plan: the observed state of one pod, and the actions that change its attachments.

No decisions: these are in :mod:`services.networks.plan`. Next: :mod:`services.networks.plan.matching`.
"""

import msgspec

from schemas.kubernetes.networks import NetworkSelectionElement
from schemas.kubernetes.objects import Pod
from schemas.kubernetes.operations import Operation
from services.networks.plan.attachments import MalformedAnnotation, PodAttachments


class NamespaceIsolation(msgspec.Struct, frozen=True):
    """Namespace isolation as multus enforces it at pod creation, applied to hot-plugged networks too.

    :ivar enabled: whether it is enforced.
    :ivar global_namespaces: the namespaces whose networks every pod may use.
    """

    enabled: bool
    global_namespaces: frozenset[str]

    def allows(self, pod_namespace: str, network_namespace: str) -> bool:
        """Return whether a pod of one namespace may use a network of another."""
        return not self.enabled or pod_namespace == network_namespace or network_namespace in self.global_namespaces


class Observed(msgspec.Struct, frozen=True):
    """The observed state of one pod.

    :ivar pod: the pod.
    :ivar node: the Kubernetes node whose pods this process serves.
    :ivar attachments: the attachments of the pod, or the annotation that cannot be parsed.
    :ivar isolation: the setting of namespace isolation.
    """

    pod: Pod
    node: str
    attachments: PodAttachments | MalformedAnnotation
    isolation: NamespaceIsolation


class Attach(msgspec.Struct, frozen=True):
    """Attach a network: CNI ADD, then an entry in network-status.

    :ivar element: the element of the networks annotation.
    :ivar namespace: namespace of the NAD.
    :ivar link: name of the pod interface.
    :ivar operation: the operation that the attach belongs to.
    :ivar replace: whether the attachment exists with other settings, so that a CNI DEL goes first.
    """

    element: NetworkSelectionElement
    namespace: str
    link: str
    operation: Operation
    replace: bool

    @property
    def network(self) -> str:
        """The name of the network in network-status."""
        return f"{self.namespace}/{self.element.name}"


class Detach(msgspec.Struct, frozen=True):
    """Detach a network: CNI DEL, then removal of the entry from network-status.

    :ivar namespace: namespace of the NAD; empty if only the multus daemon's record names the network.
    :ivar name: name of the NAD, or of the CNI network.
    :ivar link: name of the pod interface.
    :ivar operation: the operation that the detach belongs to.
    :ivar unrecorded: whether hotnic has neither a record nor a mark of the attachment: multus-cni made it, and its
        files are gone. The NAD is then needed for the CNI DEL.
    :ivar mac: MAC of the link in network-status; it shows the daemon that an unrecorded link is no foreign one.
    """

    namespace: str
    name: str
    link: str
    operation: Operation
    unrecorded: bool = False
    mac: str | None = None

    @property
    def network(self) -> str:
        """The name of the network in network-status."""
        return f"{self.namespace}/{self.name}" if self.namespace else self.name


class RecordEvent(msgspec.Struct, frozen=True):
    """Record an Event, once, about a mistake in the annotations that only their author can correct.

    :ivar reason: CamelCase, the reason of the Event.
    :ivar message: the text of the Event.
    :ivar subject: distinguishes Events of the same reason.
    """

    reason: str
    message: str
    subject: str


Action = Attach | Detach | RecordEvent
