"""The used parts of a KubeVirt installation's own object: whether hot-plug is on, and that KubeVirt is there at all.

Its presence, not its content, says who owns the VMs. Next: :mod:`schemas.kube`, the objects of VMs themselves.
"""

import msgspec

from schemas.kube import ObjectMeta, Resource


class _Part(msgspec.Struct, frozen=True, rename="camel", omit_defaults=True):
    pass


class DeveloperConfiguration(_Part, frozen=True):
    """KubeVirt's switches."""

    feature_gates: list[str] | None = None


class NetworkConfiguration(_Part, frozen=True):
    """KubeVirt's defaults for networks."""

    default_network_interface: str = ""


class KubeVirtConfiguration(_Part, frozen=True):
    """KubeVirt's configuration."""

    developer_configuration: DeveloperConfiguration | None = None
    network: NetworkConfiguration | None = None


class KubeVirtSpec(_Part, frozen=True):
    """Spec of a KubeVirt installation."""

    configuration: KubeVirtConfiguration | None = None


class KubeVirtStatus(_Part, frozen=True):
    """Status of a KubeVirt installation; ``observed_kube_virt_version`` as ``v1.3.0``."""

    observed_kube_virt_version: str = msgspec.field(default="", name="observedKubeVirtVersion")


class KubeVirt(_Part, frozen=True):
    """A KubeVirt installation: where there is one, KubeVirt owns the VMs unless it is said otherwise."""

    metadata: ObjectMeta = ObjectMeta()
    spec: KubeVirtSpec = KubeVirtSpec()
    status: KubeVirtStatus = KubeVirtStatus()


KUBEVIRTS = Resource("kubevirt.io", "v1", "kubevirts", "KubeVirt", KubeVirt)
