"""The container runtime's list of sandboxes, read over CRI for the sweep.

Imported only where ``HOTNIC_CRI_SOCKET`` is set, because it imports protobuf.
Next: :mod:`services.multus.sandboxes.sweep`.
"""

from services.common.cri.client import CriClient
from services.common.cri.errors import CriError
from services.common.telemetry import Telemetry
from services.common.telemetry.logs import Log


class CriRuntime:
    """Lists the sandboxes of a container runtime.

    :param socket_path: path of its CRI socket.
    :param telemetry: the tracer.
    :param log: the daemon's log.
    """

    def __init__(self, socket_path: str, telemetry: Telemetry, log: Log) -> None:
        self._cri = CriClient(socket_path, telemetry)
        self._log = log

    async def list_sandboxes(self) -> dict[str, bool] | None:
        """Return whether each sandbox is ready, by container id; ``None`` when the runtime does not answer."""
        try:
            return {sandbox.id: sandbox.ready for sandbox in await self._cri.list_sandboxes()}
        except CriError as error:
            self._log.warning("sandbox list of the container runtime failed", error=str(error))
            return None

    async def close(self) -> None:
        """Close the connection."""
        await self._cri.close()
