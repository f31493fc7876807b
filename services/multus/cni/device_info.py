"""The files that describe the devices of device plugins to CNI plugins.

A device plugin writes the description of its device to a file. A CNI plugin that declares the capability
``CNIDeviceInfoFile`` reads and completes a copy of it, which becomes ``device-info`` in network-status.
Source: device-information specification of the network plumbing working group. Which device an attachment gets is the
subject of :mod:`services.multus.pod.devices`.
"""

from pathlib import Path
from typing import Any, Final

from schemas import cni
from schemas.inputs import Edge, InputDecoder, RejectedInput, RejectReason, is_deep, reject
from services.common.node.files import read_bounded
from services.multus.cni.errors import CniError

DEVICE_INFO_CAPABILITY: Final = "CNIDeviceInfoFile"
"""The capability of plugins that read or write a device information file."""
MAX_DESCRIPTION_BYTES: Final = 64 * 1024
"""A quarter of what a pod may have in all of its annotations."""

_description: Final = InputDecoder(Edge.FILE, dict[str, Any], max_bytes=MAX_DESCRIPTION_BYTES)


class DeviceInfoFiles:
    """The files below one directory: ``dp`` holds those of device plugins, ``cni`` those for CNI plugins.

    :param folder: the directory.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def prepare(self, network: str, sandbox_id: str, ifname: str, resource: str, device: str) -> Path:
        """Copy the device plugin's file, if there is one, to the CNI plugin's path.

        :param network: the network's name in network-status.
        :param sandbox_id: the sandbox's container id.
        :param ifname: the attachment's link name.
        :param resource: the resource's name.
        :param device: the device's id.
        :returns: the CNI plugin's path.
        :raises CniError: code 5, the file cannot be written.
        """
        path = self.path(network, sandbox_id, ifname)
        # As upstream: a slash of a resource's name becomes a dash.
        source = self._folder / "dp" / f"{resource}-{device}-device.json".replace("/", "-")
        try:
            path.parent.mkdir(mode=0o755, parents=True, exist_ok=True)
            path.write_bytes(read_bounded(source, MAX_DESCRIPTION_BYTES))
        except FileNotFoundError:
            # The device plugin wrote no description; the CNI plugin may write one.
            return path
        except OSError as error:
            raise CniError(cni.CniErrorCode.IO_FAILURE, f"device information of {device}: {error}") from error
        return path

    def read(self, network: str, sandbox_id: str, ifname: str) -> dict[str, Any] | None:
        """Return the description after the CNI plugin has run; ``None`` when there is none or it cannot be read."""
        try:
            return decode_description(read_bounded(self.path(network, sandbox_id, ifname), MAX_DESCRIPTION_BYTES))
        except (OSError, RejectedInput):
            return None

    def remove(self, network: str, sandbox_id: str, ifname: str) -> None:
        """Remove the CNI plugin's file."""
        self.path(network, sandbox_id, ifname).unlink(missing_ok=True)

    def path(self, network: str, sandbox_id: str, ifname: str) -> Path:
        """Return the path of the CNI plugin's file; the name is the one that multus uses."""
        return self._folder / "cni" / f"{network}-{sandbox_id}_{ifname}".replace("/", "-")


def decode_description(text: bytes) -> dict[str, Any]:
    """Decode the description of a device.

    :raises RejectedInput: it is none, or none that network-status can hold.
    """
    description = _description.decode(text)
    # In the annotation it is a member of an entry of a list.
    if is_deep(b"[[%b]]" % text):
        raise reject(Edge.FILE, RejectReason.TOO_DEEP, "nested too deeply for network-status")
    return description
