"""The fields of Kubernetes objects that hotnic reads, as partial structs, and the resources that serve them.

Decoding drops unknown fields, so roles never write a struct back: they change objects by JSON patch or merge patch.
Interfaces and networks of a spec stay decoded JSON, because a guarded patch must repeat them exactly.
Next: :mod:`schemas.kubernetes.operations`, hotnic's own annotations on these objects.
"""

from typing import Any, Generic, TypeVar
from urllib.parse import quote

import msgspec

from schemas.kubernetes.limits import check_items

T = TypeVar("T")


class _KubePart(msgspec.Struct, frozen=True, gc=False, rename="camel", omit_defaults=True):
    """A part of decoded JSON, which has no cycles: garbage collection looks at no struct of it (ADR 41)."""


class OwnerReference(_KubePart, frozen=True):
    """An owner reference in an object's metadata."""

    api_version: str
    kind: str
    name: str
    uid: str
    controller: bool = False


class ObjectMeta(_KubePart, frozen=True):
    """Metadata of an object."""

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


class Condition(_KubePart, frozen=True):
    """A status condition."""

    type: str
    status: str
    reason: str | None = None
    message: str | None = None
    last_transition_time: str | None = None


class MultusNetwork(_KubePart, frozen=True):
    """The NAD of a network: ``name`` or ``namespace/name``; ``default`` makes it the pod's primary network."""

    network_name: str = ""
    default: bool = False


class Network(_KubePart, frozen=True):
    """A network of a VM's spec; the interface of the same name uses it."""

    name: str
    multus: MultusNetwork | None = None
    pod: dict[str, Any] | None = None


class Interface(_KubePart, frozen=True):
    """An interface of a VM's spec. One binding should be set; ``state`` is ``""``, ``absent``, ``up`` or ``down``."""

    name: str
    mac_address: str | None = None
    model: str | None = None
    # KubeVirt has `up` and `down` since 1.5.
    state: str = ""
    bridge: dict[str, Any] | None = None
    masquerade: dict[str, Any] | None = None
    sriov: dict[str, Any] | None = None
    slirp: Any = None
    macvtap: Any = None
    passt: Any = None
    passt_binding: Any = None
    binding: Any = None
    tag: Any = None
    boot_order: Any = None
    dhcp_options: Any = None
    acpi_index: Any = None
    pci_address: Any = None


class Devices(_KubePart, frozen=True):
    """Devices of a domain. ``interfaces`` is decoded JSON, so that no field of an item is lost."""

    interfaces: list[dict[str, Any]] | None = None
    network_interface_multiqueue: bool = False
    autoattach_pod_interface: bool | None = None


class Domain(_KubePart, frozen=True):
    """The domain of a VM's spec."""

    devices: Devices = Devices()


class VmiSpec(_KubePart, frozen=True):
    """Spec of a VMI or of a VM's template. ``networks`` is decoded JSON, so that no field of an item is lost."""

    domain: Domain = Domain()
    eviction_strategy: str | None = None
    hostname: str | None = None
    networks: list[dict[str, Any]] | None = None

    def interface_items(self) -> list[Interface]:
        """Return the interfaces as structs.

        :raises ValueError: an item is malformed, a name is too long, or there are too many.
        """
        return msgspec.convert(check_items("interfaces", self.domain.devices.interfaces), list[Interface])

    def network_items(self) -> list[Network]:
        """Return the networks as structs; the errors are those of :meth:`interface_items`."""
        return msgspec.convert(check_items("networks", self.networks), list[Network])


class MigrationState(_KubePart, frozen=True):
    """The current or last live migration."""

    completed: bool = False
    failed: bool = False
    target_node: str | None = None
    target_pod: str | None = None
    end_timestamp: str | None = None
    failure_reason: str | None = None
    migration_uid: str | None = msgspec.field(default=None, name="migrationUid")


class VmiStatus(_KubePart, frozen=True):
    """Status of a VMI. ``interfaces`` is decoded JSON for guarded patches.

    :ivar runtime_user: user id of the QEMU process; 0 is root, ``None`` if the status has none.
    """

    phase: str = ""
    node_name: str = ""
    # KubeVirt does not remove finished pods, such as the source of a migration.
    active_pods: dict[str, str] = {}
    interfaces: list[dict[str, Any]] | None = None
    conditions: list[Condition] = []
    migration_state: MigrationState | None = None
    runtime_user: int | None = None


class VirtualMachineInstance(_KubePart, frozen=True):
    """A running VM."""

    metadata: ObjectMeta = ObjectMeta()
    spec: VmiSpec = VmiSpec()
    status: VmiStatus = VmiStatus()


class VmTemplate(_KubePart, frozen=True):
    """The template from which a VM creates its VMI."""

    spec: VmiSpec = VmiSpec()


class PreferenceMatcher(_KubePart, frozen=True):
    """The preference of a VM; without a kind it is one of the whole cluster."""

    name: str = ""
    kind: str = ""


class VmSpec(_KubePart, frozen=True):
    """Spec of a VM."""

    running: bool | None = None
    run_strategy: str | None = None
    preference: PreferenceMatcher | None = None
    template: VmTemplate = VmTemplate()


class VmStatus(_KubePart, frozen=True):
    """Status of a VM.

    :ivar interface_requests: the queue of KubeVirt 1.0, as decoded JSON for guarded patches.
    """

    ready: bool = False
    created: bool = False
    printable_status: str = ""
    conditions: list[Condition] = []
    interface_requests: list[dict[str, Any]] | None = None


class VirtualMachine(_KubePart, frozen=True):
    """A VM, running or not."""

    metadata: ObjectMeta = ObjectMeta()
    spec: VmSpec = VmSpec()
    status: VmStatus = VmStatus()


class ContainerStatus(_KubePart, frozen=True):
    """Status of a container; ``container_id`` has the form ``<runtime>://<id>``."""

    name: str = ""
    container_id: str | None = msgspec.field(default=None, name="containerID")
    ready: bool = False


class PodSpec(_KubePart, frozen=True):
    """Spec of a pod."""

    node_name: str = ""
    host_network: bool = False


class PodStatus(_KubePart, frozen=True):
    """Status of a pod."""

    phase: str = ""
    conditions: list[Condition] = []
    container_statuses: list[ContainerStatus] = []
    pod_ips: list[dict[str, str]] = msgspec.field(default_factory=list, name="podIPs")


class Pod(_KubePart, frozen=True):
    """A pod."""

    metadata: ObjectMeta = ObjectMeta()
    spec: PodSpec = PodSpec()
    status: PodStatus = PodStatus()


class NadSpec(_KubePart, frozen=True):
    """Spec of a NetworkAttachmentDefinition: a CNI configuration as JSON text."""

    config: str = ""


class NetworkAttachmentDefinition(_KubePart, frozen=True):
    """A NetworkAttachmentDefinition (NAD)."""

    metadata: ObjectMeta = ObjectMeta()
    spec: NadSpec = NadSpec()


class ConfigMap(_KubePart, frozen=True):
    """A ConfigMap."""

    metadata: ObjectMeta = ObjectMeta()
    data: dict[str, str] = {}


class LeaseSpec(_KubePart, frozen=True):
    """Holder and times of a Lease; times are RFC 3339 with microseconds."""

    holder_identity: str | None = None
    lease_duration_seconds: int | None = None
    acquire_time: str | None = None
    renew_time: str | None = None
    lease_transitions: int | None = None


class Lease(_KubePart, frozen=True):
    """A Lease."""

    metadata: ObjectMeta = ObjectMeta()
    spec: LeaseSpec = LeaseSpec()


class StatusCause(_KubePart, frozen=True):
    """One cause of an error."""

    reason: str | None = None
    message: str | None = None
    field: str | None = None


class StatusDetails(_KubePart, frozen=True):
    """The object and the causes of an error."""

    name: str | None = None
    group: str | None = None
    kind: str | None = None
    uid: str | None = None
    causes: list[StatusCause] | None = None
    retry_after_seconds: int | None = None


class Status(_KubePart, frozen=True):
    """The API server's response when it returns no object (Kubernetes ``meta/v1`` Status)."""

    kind: str = "Status"
    api_version: str = "v1"
    metadata: dict[str, Any] = {}
    status: str | None = None
    message: str | None = None
    reason: str | None = None
    details: StatusDetails | None = None
    code: int | None = None


class Resource(msgspec.Struct, Generic[T], frozen=True):
    """An API resource and the struct into which its objects are decoded."""

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
        """Return the URL path of the collection, of an object, or of a subresource of an object."""
        parts = ["/apis", self.group, self.version] if self.group else ["/api", self.version]
        if self.namespaced and namespace:
            parts += ["namespaces", quote(namespace, safe="")]
        parts.append(self.plural)
        # A name may come from outside, such as in an event, and must stay one part of the path.
        parts += [quote(part, safe="") for part in (name, subresource) if part]
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
"""Label of a launcher pod: the UID of its VMI."""
