"""The fields of a KubeVirt installation's ``KubeVirt`` object that hotnic reads.

The presence of the object, not its spec, decides which controller owns the VMs. Preferences of VMs and migrations
are here, too.
Next: :mod:`schemas.kubernetes.objects`, the VM objects.
"""

import msgspec

from schemas.kubernetes.objects import Condition, MigrationState, ObjectMeta, Resource

NODE_LABEL = "kubevirt.io/nodeName"
"""Label of a VMI: the node that it runs on. virt-controller sets it together with ``status.nodeName``."""

TARGET_NODE_LABEL = "kubevirt.io/migrationTargetNodeName"
"""Label of a VMI: the node that it migrates to, or has last migrated to."""


class _KubeVirtPart(msgspec.Struct, frozen=True, rename="camel", omit_defaults=True):
    pass


class DeveloperConfiguration(_KubeVirtPart, frozen=True):
    """Developer settings: the feature gates."""

    feature_gates: list[str] | None = None


class NetworkConfiguration(_KubeVirtPart, frozen=True):
    """Network defaults."""

    default_network_interface: str = ""


class KubeVirtConfiguration(_KubeVirtPart, frozen=True):
    """Configuration of a KubeVirt installation."""

    developer_configuration: DeveloperConfiguration | None = None
    eviction_strategy: str | None = None
    network: NetworkConfiguration | None = None


class WorkloadUpdateStrategy(_KubeVirtPart, frozen=True):
    """How KubeVirt updates running VMs, also those with an interface that it cannot attach in place."""

    workload_update_methods: list[str] | None = None


class KubeVirtSpec(_KubeVirtPart, frozen=True):
    """Spec of a KubeVirt installation."""

    configuration: KubeVirtConfiguration | None = None
    workload_update_strategy: WorkloadUpdateStrategy | None = None


class KubeVirtStatus(_KubeVirtPart, frozen=True):
    """Status of a KubeVirt installation. Versions have the form ``v1.3.0``.

    :ivar phase: ``Deploying``, ``Deployed``, … ``Deleted``; empty until virt-operator has seen the object.
    :ivar observed_kube_virt_version: the version that runs; empty while the first one is being installed.
    :ivar target_kube_virt_version: the version that is being installed, or that runs.
    """

    phase: str = ""
    observed_kube_virt_version: str = msgspec.field(default="", name="observedKubeVirtVersion")
    target_kube_virt_version: str = msgspec.field(default="", name="targetKubeVirtVersion")


class KubeVirt(_KubeVirtPart, frozen=True):
    """A KubeVirt installation; by default it owns the VMs of its cluster."""

    metadata: ObjectMeta = ObjectMeta()
    spec: KubeVirtSpec = KubeVirtSpec()
    status: KubeVirtStatus = KubeVirtStatus()


class PreferredDevices(_KubeVirtPart, frozen=True):
    """The devices that a preference prefers."""

    preferred_interface_model: str = ""


class PreferenceSpec(_KubeVirtPart, frozen=True):
    """Spec of a preference."""

    devices: PreferredDevices = PreferredDevices()


class VirtualMachinePreference(_KubeVirtPart, frozen=True):
    """A preference, of a namespace or of the cluster; KubeVirt applies it to the VMs that name it."""

    metadata: ObjectMeta = ObjectMeta()
    spec: PreferenceSpec = PreferenceSpec()


class MigrationSpec(_KubeVirtPart, frozen=True):
    """Spec of a migration: the VMI to migrate."""

    vmi_name: str = ""


class MigrationStatus(_KubeVirtPart, frozen=True):
    """Status of a migration.

    :ivar phase: empty, ``Pending``, ``Scheduling``, … ``Running``, and at the end ``Succeeded`` or ``Failed``.
    """

    phase: str = ""
    conditions: list[Condition] = []
    migration_state: MigrationState | None = None


class VirtualMachineInstanceMigration(_KubeVirtPart, frozen=True):
    """A live migration of a VM, requested by a user or by KubeVirt."""

    metadata: ObjectMeta = ObjectMeta()
    spec: MigrationSpec = MigrationSpec()
    status: MigrationStatus = MigrationStatus()


class CustomResourceDefinition(_KubeVirtPart, frozen=True):
    """The definition of an API resource, such as that of the ``KubeVirt`` objects."""

    metadata: ObjectMeta = ObjectMeta()


KUBEVIRTS = Resource("kubevirt.io", "v1", "kubevirts", "KubeVirt", KubeVirt)
MIGRATIONS = Resource(
    "kubevirt.io",
    "v1",
    "virtualmachineinstancemigrations",
    "VirtualMachineInstanceMigration",
    VirtualMachineInstanceMigration,
)
PREFERENCES = Resource(
    "instancetype.kubevirt.io",
    "v1beta1",
    "virtualmachinepreferences",
    "VirtualMachinePreference",
    VirtualMachinePreference,
)
CLUSTER_PREFERENCES = Resource(
    "instancetype.kubevirt.io",
    "v1beta1",
    "virtualmachineclusterpreferences",
    "VirtualMachineClusterPreference",
    VirtualMachinePreference,
    namespaced=False,
)
CRDS = Resource(
    "apiextensions.k8s.io",
    "v1",
    "customresourcedefinitions",
    "CustomResourceDefinition",
    CustomResourceDefinition,
    namespaced=False,
)
