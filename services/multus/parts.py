"""The daemon's parts put together, without the process around them: a test makes the same daemon as ``__main__``.

Next: :mod:`services.multus.server`.
"""

from collections.abc import Callable
from dataclasses import dataclass

from aiohttp import web
from structlog.typing import FilteringBoundLogger

from services.common.kube.client import Kube
from services.common.kube.event_recorder import EventRecorder
from services.common.netlink.pool import NetnsPool
from services.common.telemetry import Telemetry
from services.multus.adoption import Adoption
from services.multus.apply import Apply
from services.multus.calls import Calls
from services.multus.devices import DeviceInfo
from services.multus.executor import Executor
from services.multus.observe import POD_PATIENCE, READINESS_PATIENCE, Observe
from services.multus.records import Records
from services.multus.reports import Reports
from services.multus.server import application
from services.multus.settings import Config, Settings
from services.multus.sweep import Runtime, Sweep
from services.multus.upstream import UpstreamCache


@dataclass(frozen=True)
class Parts:
    """What a running daemon consists of. At the end, wait for ``reports.written()`` and ``records.settled()``."""

    records: Records
    reports: Reports
    calls: Calls
    adoption: Adoption
    sweep: Sweep
    app: web.Application


def assembled(
    settings: Settings,
    config: Config,
    *,
    kube: Kube,
    netns: NetnsPool,
    telemetry: Telemetry,
    log: FilteringBoundLogger,
    stopping: Callable[[], bool],
    runtime: Runtime | None = None,
    pod_patience: float = POD_PATIENCE,
    readiness_patience: float = READINESS_PATIENCE,
    lock_timeout: float = 90.0,
) -> Parts:
    """Make them; nothing is opened or served yet.

    :param runtime: the container runtime, where it may be asked for its sandboxes.
    :param pod_patience: seconds in which an unknown pod is asked for again. :param readiness_patience: seconds in
        which the readiness indicator file is waited for. :param lock_timeout: seconds that a call waits for another one
        on its sandbox.
    """
    run = Executor(
        [str(config.bin_dir)],
        tracer=telemetry.tracer,
        log=log,
        timeout=settings.plugin_timeout,
        chroot=config.chroot_dir,
    )
    records = Records(config.cni_dir, log=log, unsettled=config.socket_dir / "records", lock_timeout=lock_timeout)
    upstream = UpstreamCache(config.cni_dir)
    devices = DeviceInfo(config.device_info_dir)
    apply = Apply(run=run, records=records, netns=netns, devices=devices, upstream=upstream, log=log)
    adoption = Adoption(upstream, records, apply, log)
    reports = Reports(EventRecorder(kube, "multus", log=log, node=settings.node_name))
    calls = Calls(
        config=config,
        kube=kube,
        records=records,
        run=run,
        observe=Observe(kube, config, pod_patience=pod_patience, readiness_patience=readiness_patience),
        apply=apply,
        adoption=adoption,
        reports=reports,
        log=log,
    )
    app = application(calls, telemetry=telemetry, log=log, stopping=stopping, limit=config.connection_limit)
    sweep = Sweep(records, apply, calls, adoption, log, runtime=runtime)
    return Parts(records, reports, calls, adoption, sweep, app)
