"""Live reads of a sandbox's pod, with the check that it is the pod that the runtime means.

What the daemon writes to a pod is the subject of :mod:`services.multus.pod.status` and
:mod:`services.multus.pod.events`. Next: :mod:`services.multus.pod.network_lookup`.
"""

import asyncio
import time
from typing import Final

from schemas import cni
from schemas.kubernetes.mirror_pods import is_mirror_pod
from schemas.kubernetes.objects import PODS, Pod
from services.common.kube.client import Kube
from services.common.kube.errors import KubeError, NotFound, Unavailable
from services.multus.cni.call import PodId
from services.multus.cni.errors import CniError

POD_TIMEOUT: Final = 2.5
"""Seconds to wait for a pod that the API server does not know (yet), as upstream waits."""
API_TIMEOUT: Final = 15.0
"""Seconds to wait for an API server that does not answer."""
POLL_INTERVAL: Final = 0.25
"""Seconds between two requests for the same pod."""


class PodReader:
    """Reads pods from the API server.

    :param kube: the Kubernetes client.
    :param timeout: seconds to wait for a pod that the API server does not know.
    """

    def __init__(self, kube: Kube, *, timeout: float = POD_TIMEOUT) -> None:
        self._kube = kube
        self._timeout = timeout

    async def get(self, pod: PodId) -> Pod:
        """Return a pod. The kubelet may be ahead of the API server, so an unknown pod is waited for.

        :param pod: the pod's identity.
        :raises CniError: the pod does not exist or is another pod of that name, or the API server did not answer.
        """
        started = time.monotonic()
        while True:
            try:
                # Live: a cache that was never filled made upstream's daemon attach no networks (multus-cni#1361).
                found = await self._kube.get(PODS, pod.namespace, pod.name)
            except (NotFound, Unavailable) as error:
                timeout = self._timeout if isinstance(error, NotFound) else API_TIMEOUT
                if time.monotonic() - started > timeout:
                    code = (
                        cni.CniErrorCode.UNKNOWN_CONTAINER
                        if isinstance(error, NotFound)
                        else cni.CniErrorCode.TRY_AGAIN_LATER
                    )
                    uid = f" with UID {pod.uid}" if pod.uid else ""
                    raise CniError(code, f"cannot get pod {pod}{uid}: {error.message}") from error
                await asyncio.sleep(POLL_INTERVAL)
            except KubeError as error:
                raise CniError(cni.CniErrorCode.TRY_AGAIN_LATER, f"cannot get pod {pod}: {error.message}") from error
            else:
                check_pod(found, pod)
                return found

    async def find(self, pod: PodId) -> Pod | None:
        """Return a pod without waiting for it; ``None`` when it cannot be read or is another pod of that name.

        :param pod: the pod's identity.
        """
        try:
            found = await self._kube.get(PODS, pod.namespace, pod.name)
            check_pod(found, pod)
        except (KubeError, CniError):
            return None
        return found


def check_pod(pod: Pod, expected: PodId) -> None:
    """Check that the pod is the one that the runtime means.

    :param pod: the pod as the API server has it.
    :param expected: the pod that the runtime passed.
    :raises CniError: code 3, it is another pod of the same name.
    """
    if expected.uid and pod.metadata.uid != expected.uid and not is_mirror_pod(pod):
        raise CniError(
            cni.CniErrorCode.UNKNOWN_CONTAINER,
            # The second half is upstream's text.
            f'pod {expected}: expected pod UID "{expected.uid}" but got "{pod.metadata.uid}" from Kube API',
        )


def pod_id(pod: Pod) -> PodId:
    """Return a pod's identity as the API server has it."""
    return PodId(pod.metadata.namespace, pod.metadata.name, pod.metadata.uid)
