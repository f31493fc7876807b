"""Writes an outcome on the pod: one merge patch, valid only for the version it was made from.

Where the pod has changed meanwhile it is read again and the patch made anew; CNI is not called again for it.
Next: :mod:`services.networks.apply`.
"""

from collections.abc import Callable

from schemas.kube import PODS, Pod
from services.common import faults
from services.common.kube.errors import Conflict, KubeError, NotFound
from services.networks.failure import Failure
from services.networks.status import Annotations
from services.networks.tools import Tools

MAX_CONFLICTS = 10
"""Times the patch is made again from a fresh read within one attempt."""


class PodGone(Exception):
    """The pod was deleted meanwhile, or another took its name: nobody is left to tell."""


async def write(tools: Tools, pod: Pod, change: Callable[[dict[str, str]], Annotations]) -> Pod:
    """Apply a change of annotations; gives the pod as it is then.

    :param change: from the annotations as they stand to those to set; may be called several times.
    :raises PodGone: it is not there any more. :raises Failure: it could not be written.
    """
    uid = pod.metadata.uid
    for _ in range(MAX_CONFLICTS):
        meta = pod.metadata
        try:
            annotations = change(meta.annotations)
        except ValueError as error:
            raise Failure("UnreadableNetworks", f"network-status cannot be read: {error}") from error
        if all(meta.annotations.get(key) == value for key, value in annotations.items()):
            return pod
        body = {"metadata": {"resourceVersion": meta.resource_version, "annotations": annotations}}
        try:
            with faults.step("networks.patch-pod"):
                pod = await tools.kube.merge_patch(PODS, meta.namespace, meta.name, body)
        except NotFound as error:
            raise PodGone from error
        except Conflict:
            pod = await _read_again(tools, pod)
        except KubeError as error:
            raise Failure("KubeUnavailable", f"network-status cannot be written: {error.message}") from error
        else:
            tools.pods.wrote(pod)
            return pod
        if pod.metadata.uid != uid:
            raise PodGone
    raise Failure("PodBusy", f"network-status cannot be written: the pod changed {MAX_CONFLICTS} times meanwhile")


async def _read_again(tools: Tools, pod: Pod) -> Pod:
    try:
        return await tools.kube.get(PODS, pod.metadata.namespace, pod.metadata.name)
    except NotFound as error:
        raise PodGone from error
    except KubeError as error:
        raise Failure("KubeUnavailable", f"the pod cannot be read: {error.message}") from error
