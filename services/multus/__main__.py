"""Entry point of the multus daemon: ``hotnic run multus``, the same as ``python -m services.multus``.

The daemon starts in this order: records, shim, socket, sweep, and last the configuration that makes the runtime call
the shim. At shutdown the socket closes first and running calls are drained. The shim and the configuration stay, so
that pods created meanwhile wait for the daemon instead of losing their networks.
Next: :mod:`services.multus.server`.
"""

import functools
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from schemas.multus import SHIM_NAME, SOCKET_NAME
from services.common.http.peers import AllowedPeers
from services.common.http.server import serve
from services.common.kube.client import Kube
from services.common.netlink.pool import NetnsPool
from services.common.node.capabilities import lacked_by
from services.common.node.files import install_executable
from services.common.node.mounts import find_netns_problem
from services.common.runtime import process as role
from services.common.runtime.health import serve_when_free
from services.common.runtime.process import Instrument, RoleRuntime
from services.common.telemetry.logs import Log
from services.multus.assembly import assemble
from services.multus.cni.plugin_cgroups import CgroupLimits, open_cgroups
from services.multus.config import logs
from services.multus.config.settings import Settings, read_config
from services.multus.container_runtime import shim
from services.multus.container_runtime.autoconfig import Autoconfig
from services.multus.container_runtime.conflicts import refuse_conflicts
from services.multus.server import DRAIN, metrics_app

if TYPE_CHECKING:
    from services.multus.container_runtime.sandbox_list import CriRuntime

CONDITION = "runtime-configuration"
"""Name of the readiness condition."""
NETLINK_TIMEOUT = 15.0
"""Seconds for a reply of the kernel. While the plugins of many pods run, as after a reboot, this process may read a
reply seconds after it came, and that must not fail the call."""


async def start(runtime: RoleRuntime[Settings]) -> None:
    """Open all connections and serve; return when the socket accepts requests."""
    settings, log, telemetry = runtime.settings, runtime.log, runtime.telemetry
    config, warnings = read_config(settings)
    log = logs.configure_logs(config, log)
    for warning in warnings:
        log.warning("daemon-config.json key without effect", warning=warning)
    # Before anything is written: the other multus would write it again, or call this daemon for its own pods.
    await refuse_conflicts(config)
    for capability, reason in lacked_by("multus").items():
        log.warning("capability missing", capability=capability, used_for=reason)
    if problem := find_netns_problem(config.host_root):
        log.warning("network namespaces not visible", error=problem)
    kube = await Kube.connect(kubeconfig=config.kubeconfig, telemetry=telemetry, user_agent="hotnic-multus")
    runtime.stack.push_async_callback(kube.close)
    netns = NetnsPool(config.host_root, timeout=NETLINK_TIMEOUT)
    runtime.stack.callback(netns.close)

    limits = CgroupLimits(settings.plugin_memory << 20, settings.plugin_pids)
    cgroups = open_cgroups(settings.plugin_cgroup, limits, config.host_root, log)
    if cgroups is not None:
        runtime.stack.callback(cgroups.close)
    parts = assemble(
        settings,
        config,
        kube=kube,
        netns=netns,
        telemetry=telemetry,
        log=log,
        stopping=runtime.stopping.is_set,
        runtime=_container_runtime(runtime, log),
        cgroups=cgroups,
    )
    # Pushed before the socket, so these run after it has closed: calls that are drained still write records and Events.
    runtime.stack.push_async_callback(parts.records.flush)
    runtime.stack.push_async_callback(parts.pod_events.flush)

    target = config.installed_plugins / SHIM_NAME
    written = install_executable(Path(settings.shim or shim.__file__), target)
    log.info("shim installed", path=str(target), changed=written)
    # Not deleted and created again, as upstream does: the directory may be mounted into a networks controller
    # (multus-dynamic-networks-controller#96).
    config.socket_dir.mkdir(mode=0o700, parents=True, exist_ok=True)
    # `mkdir` does not change the mode of an existing directory, and only root may use the socket (as upstream).
    config.socket_dir.chmod(0o700)
    # The stack closes the socket, which waits for running calls; the margin covers the rest of the stack.
    runtime.stack_timeout = DRAIN + 0.5
    listen = f"unix:{config.socket_dir / SOCKET_NAME}"
    await runtime.stack.enter_async_context(
        serve(parts.app, listen, shutdown=DRAIN, peers=AllowedPeers(settings.socket_users))
    )
    log.info("serving", socket=str(config.socket_dir / SOCKET_NAME))

    runtime.spawn("sweep", parts.sweep.run)
    # The configuration comes last: as soon as it names the shim, the runtime sends its calls to this socket.
    autoconfig = Autoconfig(config, log, lambda ok, why: runtime.readiness.set(CONDITION, ok, why))
    runtime.readiness.set(CONDITION, False, "not checked yet")
    runtime.spawn("autoconfig", autoconfig.run)
    if config.metrics_port is not None:
        make = functools.partial(metrics_app, telemetry)
        # As upstream: on every address, without TLS.
        listen = f"0.0.0.0:{config.metrics_port}"
        await runtime.stack.enter_async_context(serve_when_free("metrics-port", make, listen, runtime.readiness, log))


def _container_runtime(runtime: RoleRuntime[Settings], log: Log) -> "CriRuntime | None":
    if not runtime.settings.cri_socket:
        return None
    # Imported here because protobuf takes memory that daemons without a CRI socket do not need.
    from services.multus.container_runtime.sandbox_list import CriRuntime

    client = CriRuntime(runtime.settings.cri_socket, runtime.telemetry, log)
    runtime.stack.push_async_callback(client.close)
    return client


def main(argv: list[str] | None = None, *, instrument: Instrument | None = None) -> int:
    """Run the daemon until SIGTERM and return the exit code."""
    return role.main("multus", Settings, start, argv, instrument=instrument)


if __name__ == "__main__":
    sys.exit(main())
