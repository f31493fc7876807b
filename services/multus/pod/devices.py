"""The devices of a pod: which device of a resource each attachment gets.

A NAD names a resource of a device plugin. The kubelet reports which devices of the resource the pod has; each
attachment gets the next one. The files that describe a device are the subject of
:mod:`services.multus.cni.device_info`.
"""

from schemas import cni
from services.multus.cni.call import PodId
from services.multus.cni.errors import CniError


class PodDevices:
    """Assigns the devices of one pod to its attachments, during one call.

    :param socket_path: path of the kubelet's pod-resources socket.
    :param pod: the pod.
    """

    def __init__(self, socket_path: str, pod: PodId) -> None:
        self._socket_path = socket_path
        self._pod = pod
        self._unused: dict[str, list[str]] | None = None

    async def take(self, resource: str) -> str | None:
        """Return the next unused device of a resource.

        :param resource: the resource's name.
        :returns: the device's id; ``None`` when the pod has no more devices of it.
        :raises CniError: code 11, the kubelet did not answer.
        """
        if self._unused is None:
            # Imported here because gRPC takes 10 MiB, which most nodes' daemons never need.
            from services.common.cri.errors import CriUnavailable
            from services.common.cri.pod_resources import devices_of

            try:
                self._unused = await devices_of(self._socket_path, self._pod.namespace, self._pod.name)
            except CriUnavailable as error:
                message = f"cannot get the devices of {resource} that pod {self._pod} has: {error}"
                raise CniError(cni.CniErrorCode.TRY_AGAIN_LATER, message) from error
        ids = self._unused.get(resource)
        return ids.pop(0) if ids else None
