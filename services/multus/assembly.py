"""Assembly of the daemon's parts, without the process around them, so that a test runs the same daemon.

The process is :mod:`services.multus.__main__`. Next: :mod:`services.multus.server`.
"""

from collections.abc import Callable
from dataclasses import dataclass

from aiohttp import web

from services.common.kube.client import Kube
from services.common.kube.event_recorder import EventRecorder
from services.common.netlink.pool import NetnsPool
from services.common.telemetry import Telemetry
from services.common.telemetry.logs import Log
from services.multus.apply import Applier
from services.multus.call_handler import CallHandler
from services.multus.cni.device_info import DeviceInfoFiles
from services.multus.cni.executor import Executor
from services.multus.cni.plugin_cgroups import PluginCgroups
from services.multus.config.settings import Config, Settings
from services.multus.observe import READINESS_TIMEOUT, CallObserver
from services.multus.pod.events import PodEvents
from services.multus.pod.reader import POD_TIMEOUT, PodReader
from services.multus.pod.status import StatusWriter
from services.multus.records.store import Records
from services.multus.records.upstream import UpstreamCache
from services.multus.sandboxes.adoption import Adoption
from services.multus.sandboxes.default_routes import DefaultRoutes
from services.multus.sandboxes.node_gc import NodeGc
from services.multus.sandboxes.sweep import SandboxLister, Sweep
from services.multus.server import make_application


@dataclass(frozen=True)
class DaemonParts:
    """The parts of a running daemon. At shutdown, await ``pod_events.flush()`` and ``records.flush()``.

    :ivar records: the sandboxes' records.
    :ivar pod_events: the recorder of Kubernetes Events.
    :ivar call_handler: the handler of CNI calls.
    :ivar adoption: the adoption of multus-cni's sandboxes.
    :ivar sweep: the periodic cleanup.
    :ivar app: the HTTP application.
    """

    records: Records
    pod_events: PodEvents
    call_handler: CallHandler
    adoption: Adoption
    sweep: Sweep
    app: web.Application


def assemble(
    settings: Settings,
    config: Config,
    *,
    kube: Kube,
    netns: NetnsPool,
    telemetry: Telemetry,
    log: Log,
    stopping: Callable[[], bool],
    runtime: SandboxLister | None = None,
    cgroups: PluginCgroups | None = None,
    pod_timeout: float = POD_TIMEOUT,
    readiness_timeout: float = READINESS_TIMEOUT,
    lock_timeout: float = 90.0,
) -> DaemonParts:
    """Build the daemon's parts. Nothing is opened or served yet.

    :param settings: the role's environment variables.
    :param config: the merged configuration.
    :param kube: the Kubernetes client.
    :param netns: the connections to network namespaces.
    :param telemetry: the tracer and the meter.
    :param log: the daemon's log.
    :param stopping: returns whether the daemon is shutting down.
    :param runtime: lists the container runtime's sandboxes; ``None`` where no CRI socket is set.
    :param cgroups: makes the cgroups of plugins; ``None``: they stay in the daemon's own.
    :param pod_timeout: seconds to wait for a pod that the API server does not know yet.
    :param readiness_timeout: seconds to wait for the readiness indicator file.
    :param lock_timeout: seconds that a call waits for another call on its sandbox.
    :returns: the parts.
    """
    executor = Executor(
        # As upstream, the call's own CNI_PATH is ignored.
        [str(config.bin_dir)],
        tracer=telemetry.tracer,
        log=log,
        timeout=settings.plugin_timeout,
        chroot=config.chroot_dir,
        cgroups=cgroups,
    )
    records = Records(
        config.cni_dir,
        tracer=telemetry.tracer,
        log=log,
        # Below /run, which is a memory file system: a call does not wait for the disk (ADR 11).
        unsettled=config.socket_dir / "records",
        lock_timeout=lock_timeout,
    )
    upstream = UpstreamCache(config.cni_dir)
    devices = DeviceInfoFiles(config.device_info_dir)
    pod_events = PodEvents(EventRecorder(kube, "multus", log=log, node=settings.node_name, meter=telemetry.meter))
    applier = Applier(
        executor=executor,
        records=records,
        netns=netns,
        devices=devices,
        upstream=upstream,
        pod_events=pod_events,
        log=log,
    )
    adoption = Adoption(upstream, records, applier, log)
    pods = PodReader(kube, timeout=pod_timeout)
    observer = CallObserver(kube, config, pods, readiness_timeout=readiness_timeout)
    call_handler = CallHandler(
        config=config,
        records=records,
        executor=executor,
        pods=pods,
        observer=observer,
        applier=applier,
        default_routes=DefaultRoutes(netns, records),
        adoption=adoption,
        status_writer=StatusWriter(kube, pods, log),
        pod_events=pod_events,
        node_gc=NodeGc(records=records, applier=applier, executor=executor, observer=observer, log=log),
        log=log,
    )
    app = make_application(
        call_handler,
        telemetry=telemetry,
        log=log,
        stopping=stopping,
        limit=config.connection_limit,
        call_timeout=settings.call_seconds,
    )
    sweep = Sweep(records, applier, adoption, log, runtime=runtime)
    return DaemonParts(records, pod_events, call_handler, adoption, sweep, app)
