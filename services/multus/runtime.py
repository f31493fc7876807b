"""The container runtime as the sweep asks it: which sandboxes are there at all.

Imported only where ``HOTNIC_CRI_SOCKET`` is set: it brings gRPC. Next: :mod:`services.multus.sweep`.
"""

from structlog.typing import FilteringBoundLogger

from services.common.cri.client import Cri
from services.common.cri.errors import CriError
from services.common.telemetry import Telemetry


class CriRuntime:
    """A runtime behind its CRI socket."""

    def __init__(self, socket_path: str, telemetry: Telemetry, log: FilteringBoundLogger) -> None:
        self._cri = Cri(socket_path, telemetry)
        self._log = log

    async def sandboxes(self) -> dict[str, bool] | None:
        """All sandboxes, each with whether it is ready; ``None`` when the runtime does not answer."""
        try:
            return {sandbox.id: sandbox.ready for sandbox in await self._cri.known()}
        except CriError as error:
            self._log.warning("the container runtime does not tell its sandboxes", error=str(error))
            return None

    async def close(self) -> None:
        """Close the connection."""
        await self._cri.close()
