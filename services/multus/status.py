"""Writes network-status on the pod of a new sandbox, on exactly the pod that was read.

What it says is :mod:`services.multus.pod`'s.
"""

from collections.abc import Sequence
from typing import Final

from structlog.typing import FilteringBoundLogger

from schemas import cni
from schemas.kube import PODS, Pod
from services.common.kube.client import Kube
from services.common.kube.errors import Conflict, KubeError, NotFound
from services.multus.call import PodId
from services.multus.errors import CniError
from services.multus.observe import Observe
from services.multus.pod import pod_patch
from services.multus.records import Attachment, Sandbox

WRITES: Final = 5
"""Attempts at writing on a pod that others change at the same time."""


class StatusWriter:
    """The writer of one daemon."""

    def __init__(self, kube: Kube, observe: Observe, log: FilteringBoundLogger) -> None:
        self._kube = kube
        self._observe = observe
        self._log = log

    async def tell(self, asked: PodId, pod: Pod, sandbox: Sandbox, attachments: Sequence[Attachment]) -> None:
        """Write on the pod what it has; on this pod and at the version that was read, or at the next ones.

        :raises CniError: it cannot be written, or the pod has been replaced by another one of its name.
        """
        for _ in range(WRITES):
            try:
                patch = pod_patch(sandbox, pod, attachments)
                await self._kube.merge_patch(PODS, asked.namespace, asked.name, patch)
            except NotFound:
                self._log.info("pod is gone, its network status is not written", pod=str(asked))
            except Conflict:
                uid, pod = pod.metadata.uid, await self._observe.pod(asked)
                if pod.metadata.uid != uid:
                    message = f"pod {asked} has been replaced by another one of its name"
                    raise CniError(cni.Code.UNKNOWN_CONTAINER, message) from None
                continue
            except KubeError as error:
                message = f"cannot write the network status of pod {asked}: {error.message}"
                raise CniError(cni.Code.TRY_AGAIN_LATER, message) from error
            return
        message = f"cannot write the network status of pod {asked}: it changes too fast"
        raise CniError(cni.Code.TRY_AGAIN_LATER, message)
