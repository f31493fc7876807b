"""What the KubeVirt installation of a cluster can do with network interfaces, by version and configuration. Pure.

Every check and every message beside KubeVirt reads :class:`Capabilities`. Not here: who owns the VMs
(:mod:`services.common.domain.kubevirt.owner`), and what a single edit will cause.
Next: :mod:`services.common.runtime.installations`, which watches the objects.
"""

import re
from collections.abc import Iterable

import msgspec

from schemas.kubernetes.kubevirt import KubeVirt

HOTPLUG_GATE = "HotplugNICs"
NAD_GATE = "LiveUpdateNADRef"

LIVE_MIGRATE, EVICT = "LiveMigrate", "Evict"
"""The values of ``workloadUpdateMethods``."""

Version = tuple[int, int, int]
NEWEST: Version = (1, 9, 0)
"""The newest KubeVirt that was examined; a later one is taken to behave like it."""

_VERSION = re.compile(r"v?(\d+)\.(\d+)(?:\.(\d+))?")


class Capabilities(msgspec.Struct, frozen=True, kw_only=True):
    """What one KubeVirt installation can do.

    :ivar namespace: where KubeVirt runs; empty if unknown.
    :ivar version: the version that runs, or that is being installed; :data:`NEWEST` if the object names none.
    :ivar installing: whether KubeVirt is being installed: its controllers do not act yet.
    :ivar gate: the feature gate that hot-plug needs and that is not enabled; empty when hot-plug is enabled.
    :ivar request_queue: whether requests go to the VM's ``status.interfaceRequests`` (1.0); an edit of the template
        is not followed there.
    :ivar automatic_migration: whether an interface that cannot be attached in place gets the condition
        ``MigrationRequired`` and then a migration (1.6).
    :ivar nad_change: whether a changed NAD of an interface is followed, by a migration (1.8 with its gate, 1.9).
    :ivar removes_last_interface: whether the last secondary interface can be unplugged (not in 1.0 and 1.1).
    :ivar always_restart_required: whether every edit of networks sets ``RestartRequired`` (1.2 to 1.5.0), although the
        interface is plugged.
    :ivar needs_pod_names: whether nothing is unplugged until an interface has its name in the pod in the VMI's status
        (1.4): the pod may have ordinal names.
    :ivar update_methods: ``workloadUpdateStrategy.workloadUpdateMethods``: ``LiveMigrate``, ``Evict``.
    :ivar eviction_strategy: ``evictionStrategy`` of VMs that have none of their own; empty if there is none either.
    """

    version: Version
    installing: bool
    gate: str
    request_queue: bool
    automatic_migration: bool
    nad_change: bool
    removes_last_interface: bool
    always_restart_required: bool
    needs_pod_names: bool
    update_methods: frozenset[str]
    eviction_strategy: str = ""
    namespace: str = ""


def read_capabilities(installations: Iterable[KubeVirt]) -> Capabilities | None:
    """Return what the cluster's KubeVirt can do; ``None`` when there is no KubeVirt object.

    Of several objects, which KubeVirt refuses, the first one by namespace and name counts.
    """
    found = sorted(installations, key=lambda one: (one.metadata.namespace, one.metadata.name))
    return _capabilities(found[0]) if found else None


def parse_version(text: str) -> Version | None:
    """Return a version such as ``v1.9.0`` or ``1.9`` as numbers; ``None`` when it is not one."""
    match = _VERSION.match(text)
    return (int(match[1]), int(match[2]), int(match[3] or 0)) if match else None


def _capabilities(installation: KubeVirt) -> Capabilities:
    status = installation.status
    observed = parse_version(status.observed_kube_virt_version)
    named = observed or parse_version(status.target_kube_virt_version)
    version = named or NEWEST
    configuration = installation.spec.configuration
    developer = configuration.developer_configuration if configuration else None
    gates = frozenset((developer.feature_gates if developer else None) or ())
    strategy = installation.spec.workload_update_strategy
    return Capabilities(
        version=version,
        installing=observed is None,
        # An object without a version may belong to one that needs the gate.
        gate=HOTPLUG_GATE if (named is None or version < (1, 4, 0)) and HOTPLUG_GATE not in gates else "",
        request_queue=version < (1, 1, 0),
        automatic_migration=version >= (1, 6, 0),
        nad_change=version >= (1, 9, 0) or (version >= (1, 8, 0) and NAD_GATE in gates),
        removes_last_interface=version >= (1, 2, 0),
        always_restart_required=(1, 2, 0) <= version <= (1, 5, 0),
        needs_pod_names=version >= (1, 4, 0),
        update_methods=frozenset((strategy.workload_update_methods if strategy else None) or ()),
        eviction_strategy=(configuration.eviction_strategy if configuration else "") or "",
        namespace=installation.metadata.namespace,
    )
