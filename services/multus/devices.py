"""Devices of device plugins: which one an attachment gets, and the files by which its description travels.

A NAD names a resource; the kubelet says which devices of it the pod was given; they are handed out in order, one for
each attachment. A device plugin leaves a description of the device in a file; a CNI plugin that declares the capability
``CNIDeviceInfoFile`` reads and completes a copy of it, and that becomes ``device-info`` in network-status.
Source: device-information specification of the network plumbing working group. Next: :mod:`services.multus.observe`.
"""

from pathlib import Path
from typing import Any, Final

import msgspec

from schemas import cni
from services.multus.call import PodId
from services.multus.errors import CniError

CAPABILITY: Final = "CNIDeviceInfoFile"


class Devices:
    """The devices of one pod, handed out during one call.

    :param socket_path: the kubelet's.
    """

    def __init__(self, socket_path: str, pod: PodId) -> None:
        self._socket_path = socket_path
        self._pod = pod
        self._left: dict[str, list[str]] | None = None

    async def take(self, resource: str) -> str | None:
        """The next device of a resource; ``None`` when the pod has no more of it.

        :raises CniError: code 11, the kubelet did not answer.
        """
        if self._left is None:
            # gRPC is 10 MiB that most nodes' daemons never need.
            from services.common.cri.errors import CriUnavailable
            from services.common.cri.pod_resources import devices_of

            try:
                self._left = await devices_of(self._socket_path, self._pod.namespace, self._pod.name)
            except CriUnavailable as error:
                message = f"cannot learn which devices of {resource} pod {self._pod} has: {error}"
                raise CniError(cni.Code.TRY_AGAIN_LATER, message) from error
        ids = self._left.get(resource)
        return ids.pop(0) if ids else None


class DeviceInfo:
    """The files below one directory: ``dp`` from device plugins, ``cni`` for CNI plugins."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def prepare(self, network: str, sandbox_id: str, ifname: str, resource: str, device: str) -> Path:
        """Put the device plugin's description, if there is one, where the CNI plugin finds it; gives that path.

        :raises CniError: code 5, it cannot be written.
        """
        path = self.path(network, sandbox_id, ifname)
        source = self._folder / "dp" / f"{resource}-{device}-device.json".replace("/", "-")
        try:
            path.parent.mkdir(mode=0o755, parents=True, exist_ok=True)
            path.write_bytes(source.read_bytes())
        except FileNotFoundError:
            return path
        except OSError as error:
            raise CniError(cni.Code.IO_FAILURE, f"device information of {device}: {error}") from error
        return path

    def read(self, network: str, sandbox_id: str, ifname: str) -> dict[str, Any] | None:
        """The description after the CNI plugin has run; ``None`` when there is none that can be read."""
        try:
            text = self.path(network, sandbox_id, ifname).read_bytes()
            return msgspec.json.decode(text, type=dict[str, Any])
        except (OSError, msgspec.DecodeError):
            return None

    def remove(self, network: str, sandbox_id: str, ifname: str) -> None:
        """Take the CNI plugin's copy away."""
        self.path(network, sandbox_id, ifname).unlink(missing_ok=True)

    def path(self, network: str, sandbox_id: str, ifname: str) -> Path:
        """The CNI plugin's copy; named as multus names it."""
        return self._folder / "cni" / f"{network}-{sandbox_id}_{ifname}".replace("/", "-")
