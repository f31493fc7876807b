"""Mirror pods: the objects by which a kubelet shows its static pods.

The container runtime knows a static pod by the UID that its kubelet made of the manifest, and the API server the mirror
pod by another one. Next: :mod:`schemas.kubernetes.networks`.
"""

from typing import Final

from schemas.kubernetes.objects import Pod

SOURCE: Final = "kubernetes.io/config.source"
"""Annotation of a mirror pod: from where its kubelet has the manifest (``file`` or ``http``). Users may set it."""
MIRROR: Final = "kubernetes.io/config.mirror"
"""Annotation of a mirror pod. No kubelet runs a pod that has it, and the API server lets nobody add it later."""


def is_mirror_pod(pod: Pod) -> bool:
    """Return whether a pod is the mirror of a static pod, so that its UID is not the one that the runtime knows.

    An ordinary pod never is, whatever its owner writes into it: it has to be created as a mirror pod, with its node as
    its controller (Kubernetes 1.17 and later), and then it does not run.
    """
    meta = pod.metadata
    return (
        MIRROR in meta.annotations
        and meta.annotations.get(SOURCE, "api") != "api"
        and bool(pod.spec.node_name)
        and any(
            owner.controller and (owner.api_version, owner.kind, owner.name) == ("v1", "Node", pod.spec.node_name)
            for owner in meta.owner_references
        )
    )
