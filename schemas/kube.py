"""The used parts of Kubernetes objects, as partial structs, and the resources they come from.

Unknown fields are dropped at decoding, so none of these structs may be written back whole: roles change objects by
JSON or merge patch. Interfaces and networks of a spec stay decoded JSON, because a
guarded patch has to repeat them to the letter.
"""

from typing import Any, Generic, TypeVar

import msgspec

T = TypeVar("T")


class _Kube(msgspec.Struct, frozen=True, rename="camel", omit_defaults=True):
    pass


class OwnerReference(_Kube, frozen=True):
    """An owner of an object."""

    api_version: str
    kind: str
    name: str
    uid: str
    controller: bool = False


class ObjectMeta(_Kube, frozen=True):
    """The used metadata of every object."""

    name: str = ""
    namespace: str = ""
    uid: str = ""
    resource_version: str = ""
    generation: int = 0
    annotations: dict[str, str] = {}
    labels: dict[str, str] = {}
    owner_references: list[OwnerReference] = []
    creation_timestamp: str | None = None
    deletion_timestamp: str | None = None


class Condition(_Kube, frozen=True):
    """A status condition."""

    type: str
    status: str
    reason: str | None = None
    message: str | None = None
    last_transition_time: str | None = None


class MultusNetwork(_Kube, frozen=True):
    """The NAD behind a network: ``name`` or ``namespace/name``; ``default`` makes it the pod's primary one."""

    network_name: str = ""
    default: bool = False


class Network(_Kube, frozen=True):
    """A network of a VM's spec, paired by name with an interface."""

    name: str
    multus: MultusNetwork | None = None
    pod: dict[str, Any] | None = None


class Interface(_Kube, frozen=True):
    """A NIC of a VM's spec. Exactly one binding is set; ``state`` is ``""``, ``absent``, ``up`` or ``down``."""

    name: str
    mac_address: str | None = None
    model: str | None = None
    state: str = ""
    bridge: dict[str, Any] | None = None
    masquerade: dict[str, Any] | None = None
    sriov: dict[str, Any] | None = None


class InterfaceStatus(_Kube, frozen=True):
    """A NIC as the VMI's status shows it (KubeVirt's fields only: its CRD prunes any other)."""

    name: str | None = None
    mac: str | None = None
    ip_address: str | None = None
    ip_addresses: list[str] | None = msgspec.field(default=None, name="ipAddresses")
    interface_name: str | None = None
    info_source: str | None = None
    queue_count: int | None = None
    pod_interface_name: str | None = None
    link_state: str | None = None


class Devices(_Kube, frozen=True):
    """Devices of a domain. ``interfaces`` as decoded JSON, so that nothing of an item is lost."""

    interfaces: list[dict[str, Any]] | None = None
    network_interface_multiqueue: bool = False
    autoattach_pod_interface: bool | None = None


class Domain(_Kube, frozen=True):
    """The domain of a VM's spec."""

    devices: Devices = Devices()


class VmiSpec(_Kube, frozen=True):
    """Spec of a VMI, and of a VM's template. ``networks`` as decoded JSON, so that nothing of an item is lost."""

    domain: Domain = Domain()
    hostname: str | None = None
    networks: list[dict[str, Any]] | None = None

    def interface_items(self) -> list[Interface]:
        """The interfaces, typed.

        :raises msgspec.ValidationError: an item is malformed.
        """
        return msgspec.convert(self.domain.devices.interfaces or [], list[Interface])

    def network_items(self) -> list[Network]:
        """The networks, typed.

        :raises msgspec.ValidationError: an item is malformed.
        """
        return msgspec.convert(self.networks or [], list[Network])


class MigrationState(_Kube, frozen=True):
    """The last or current live migration."""

    completed: bool = False
    failed: bool = False
    target_node: str | None = None
    target_pod: str | None = None
    migration_uid: str | None = msgspec.field(default=None, name="migrationUid")


class VmiStatus(_Kube, frozen=True):
    """Status of a VMI. ``interfaces`` as decoded JSON for guarded patches; see :meth:`interface_items`.

    :ivar runtime_user: user id of the guest's process; 0 is root, ``None`` where nobody says.
    """

    phase: str = ""
    node_name: str = ""
    active_pods: dict[str, str] = {}
    interfaces: list[dict[str, Any]] | None = None
    conditions: list[Condition] = []
    migration_state: MigrationState | None = None
    runtime_user: int | None = None

    def interface_items(self) -> list[InterfaceStatus]:
        """The interfaces, typed.

        :raises msgspec.ValidationError: an item is malformed.
        """
        return msgspec.convert(self.interfaces or [], list[InterfaceStatus])


class VirtualMachineInstance(_Kube, frozen=True):
    """A running VM."""

    metadata: ObjectMeta = ObjectMeta()
    spec: VmiSpec = VmiSpec()
    status: VmiStatus = VmiStatus()


class VmTemplate(_Kube, frozen=True):
    """The template a VM makes its VMI from."""

    spec: VmiSpec = VmiSpec()


class VmSpec(_Kube, frozen=True):
    """Spec of a VM."""

    running: bool | None = None
    run_strategy: str | None = None
    template: VmTemplate = VmTemplate()


class VmStatus(_Kube, frozen=True):
    """Status of a VM."""

    ready: bool = False
    created: bool = False
    printable_status: str = ""


class VirtualMachine(_Kube, frozen=True):
    """A VM, running or not."""

    metadata: ObjectMeta = ObjectMeta()
    spec: VmSpec = VmSpec()
    status: VmStatus = VmStatus()


class ContainerStatus(_Kube, frozen=True):
    """A container of a pod; ``container_id`` as ``<runtime>://<id>``."""

    name: str = ""
    container_id: str | None = msgspec.field(default=None, name="containerID")
    ready: bool = False


class PodSpec(_Kube, frozen=True):
    """Spec of a pod."""

    node_name: str = ""
    host_network: bool = False


class PodStatus(_Kube, frozen=True):
    """Status of a pod."""

    phase: str = ""
    conditions: list[Condition] = []
    container_statuses: list[ContainerStatus] = []


class Pod(_Kube, frozen=True):
    """A pod."""

    metadata: ObjectMeta = ObjectMeta()
    spec: PodSpec = PodSpec()
    status: PodStatus = PodStatus()


class NadSpec(_Kube, frozen=True):
    """Spec of a NetworkAttachmentDefinition: a CNI configuration as text."""

    config: str = ""


class NetworkAttachmentDefinition(_Kube, frozen=True):
    """A NAD."""

    metadata: ObjectMeta = ObjectMeta()
    spec: NadSpec = NadSpec()


class ConfigMap(_Kube, frozen=True):
    """A config map."""

    metadata: ObjectMeta = ObjectMeta()
    data: dict[str, str] = {}


class LeaseSpec(_Kube, frozen=True):
    """Who holds a lease and since when; times are RFC 3339 with microseconds."""

    holder_identity: str | None = None
    lease_duration_seconds: int | None = None
    acquire_time: str | None = None
    renew_time: str | None = None
    lease_transitions: int | None = None


class Lease(_Kube, frozen=True):
    """A lease."""

    metadata: ObjectMeta = ObjectMeta()
    spec: LeaseSpec = LeaseSpec()


class StatusCause(_Kube, frozen=True):
    """One cause of an error."""

    reason: str | None = None
    message: str | None = None
    field: str | None = None


class StatusDetails(_Kube, frozen=True):
    """What an error is about."""

    name: str | None = None
    group: str | None = None
    kind: str | None = None
    uid: str | None = None
    causes: list[StatusCause] | None = None
    retry_after_seconds: int | None = None


class Status(_Kube, frozen=True):
    """The answer of an API server that is not an object (Kubernetes ``meta/v1`` Status)."""

    kind: str = "Status"
    api_version: str = "v1"
    metadata: dict[str, Any] = {}
    status: str | None = None
    message: str | None = None
    reason: str | None = None
    details: StatusDetails | None = None
    code: int | None = None


class Resource(msgspec.Struct, Generic[T], frozen=True):
    """Where objects of one kind are served, and the struct to decode them into."""

    group: str
    version: str
    plural: str
    kind: str
    type: type[T]
    namespaced: bool = True

    @property
    def api_version(self) -> str:
        """``v1`` or ``group/version``."""
        return f"{self.group}/{self.version}" if self.group else self.version

    def path(self, namespace: str | None = None, name: str | None = None, subresource: str | None = None) -> str:
        """The URL path of the collection, an object, or a subresource of it."""
        parts = ["/apis", self.group, self.version] if self.group else ["/api", self.version]
        if self.namespaced and namespace:
            parts += ["namespaces", namespace]
        parts.append(self.plural)
        parts += [part for part in (name, subresource) if part]
        return "/".join(parts)


PODS = Resource("", "v1", "pods", "Pod", Pod)
CONFIG_MAPS = Resource("", "v1", "configmaps", "ConfigMap", ConfigMap)
EVENTS: Resource[dict[str, Any]] = Resource("", "v1", "events", "Event", dict[str, Any])
VMS = Resource("kubevirt.io", "v1", "virtualmachines", "VirtualMachine", VirtualMachine)
VMIS = Resource("kubevirt.io", "v1", "virtualmachineinstances", "VirtualMachineInstance", VirtualMachineInstance)
LEASES = Resource("coordination.k8s.io", "v1", "leases", "Lease", Lease)
NADS = Resource(
    "k8s.cni.cncf.io",
    "v1",
    "network-attachment-definitions",
    "NetworkAttachmentDefinition",
    NetworkAttachmentDefinition,
)

CREATED_BY_LABEL = "kubevirt.io/created-by"
"""On a launcher pod: the UID of its VMI."""
