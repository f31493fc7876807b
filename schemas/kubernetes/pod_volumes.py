"""Pods with their volumes, for the few that are judged by what they mount of the node. Types only.

Any user may set a label on a pod. Where Pod Security is enforced, only a privileged one mounts paths of the node.
Next: :mod:`schemas.kubernetes.objects`, pods as everybody else reads them.
"""

import msgspec

from schemas.kubernetes.objects import ObjectMeta, PodStatus, Resource


class HostPath(msgspec.Struct, frozen=True):
    """A directory or file of the node."""

    path: str = ""


class PodVolume(msgspec.Struct, frozen=True, rename="camel"):
    """A volume of a pod."""

    host_path: HostPath | None = None


class VolumesSpec(msgspec.Struct, frozen=True):
    """The part of a pod's spec that shows what it mounts."""

    volumes: tuple[PodVolume, ...] | None = None


class PodWithVolumes(msgspec.Struct, frozen=True):
    """A pod with its volumes."""

    metadata: ObjectMeta = ObjectMeta()
    spec: VolumesSpec = VolumesSpec()
    status: PodStatus = PodStatus()

    def host_paths(self) -> list[str]:
        """Return the paths of the node that it mounts."""
        return [volume.host_path.path for volume in self.spec.volumes or () if volume.host_path is not None]


PODS_WITH_VOLUMES = Resource("", "v1", "pods", "Pod", PodWithVolumes)
