"""Starts the multus daemon of a node: ``hotnic run multus``, the same as ``python -m services.multus``.

Order of start: records, shim, socket, sweep, and last the configuration that makes the runtime call the shim. At the
end the socket goes first and calls under way are drained; shim and configuration stay, so that pods made meanwhile
wait for the daemon instead of losing their networks. Next: :mod:`services.multus.server`.
"""

import sys
from pathlib import Path
from typing import TYPE_CHECKING

from schemas.multus import SOCKET_NAME
from services.common import runtime as role
from services.common.http.server import serve
from services.common.kube.client import Kube
from services.common.logs import Log
from services.common.netlink.pool import NetnsPool
from services.common.runtime import RoleRuntime
from services.multus import logs, shim
from services.multus.autoconfig import Autoconfig, install_shim
from services.multus.parts import assembled
from services.multus.server import DRAIN, metrics_app
from services.multus.settings import Settings, read

if TYPE_CHECKING:
    from services.multus.runtime import CriRuntime

CONDITION = "runtime-configuration"


async def start(runtime: RoleRuntime[Settings]) -> None:
    """Open everything and serve; returns when the socket answers."""
    settings, log, telemetry = runtime.settings, runtime.log, runtime.telemetry
    config, said = read(settings)
    log = logs.applied(config, settings, log)
    for sentence in said:
        log.warning("daemon-config.json", what=sentence)
    kube = await Kube.connect(kubeconfig=config.kubeconfig, telemetry=telemetry, user_agent="hotnic-multus")
    runtime.stack.push_async_callback(kube.close)
    netns = NetnsPool(config.host_root)
    runtime.stack.callback(netns.close)

    parts = assembled(
        settings,
        config,
        kube=kube,
        netns=netns,
        telemetry=telemetry,
        log=log,
        stopping=runtime.stopping.is_set,
        runtime=_container_runtime(runtime, log),
    )
    runtime.stack.push_async_callback(parts.records.settled)
    runtime.stack.push_async_callback(parts.reports.written)

    path = install_shim(Path(settings.shim or shim.__file__), config.bin_dir)
    log.info("shim installed", path=str(path))
    config.socket_dir.mkdir(mode=0o700, parents=True, exist_ok=True)
    config.socket_dir.chmod(0o700)
    runtime.stack_share = DRAIN + 0.5
    listen = f"unix:{config.socket_dir / SOCKET_NAME}"
    await runtime.stack.enter_async_context(serve(parts.app, listen, shutdown=DRAIN))
    log.info("serving", socket=str(config.socket_dir / SOCKET_NAME))

    runtime.spawn("sweep", parts.sweep.run)
    autoconfig = Autoconfig(config, log, lambda ok, why: runtime.readiness.set(CONDITION, ok, why))
    runtime.readiness.set(CONDITION, False, "not looked yet")
    runtime.spawn("autoconfig", autoconfig.run)
    if config.metrics_port is not None:
        app = metrics_app(telemetry)
        await runtime.stack.enter_async_context(serve(app, f"0.0.0.0:{config.metrics_port}", shutdown=1.0))


def _container_runtime(runtime: RoleRuntime[Settings], log: Log) -> "CriRuntime | None":
    if not runtime.settings.cri_socket:
        return None
    from services.multus.runtime import CriRuntime

    asked = CriRuntime(runtime.settings.cri_socket, runtime.telemetry, log)
    runtime.stack.push_async_callback(asked.close)
    return asked


def main(argv: list[str] | None = None) -> int:
    """Run the daemon until SIGTERM; gives the exit code."""
    return role.main("multus", Settings, start, argv)


if __name__ == "__main__":
    sys.exit(main())
