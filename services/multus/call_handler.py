"""Every command of ``/cni`` and ``/delegate``: observe, plan and apply, under the sandbox's lock.

HTTP is the subject of :mod:`services.multus.server`. What is deleted without a call is the subject of
:mod:`services.multus.sandboxes.sweep`. Next: :mod:`services.multus.observe`.
"""

from dataclasses import replace

import msgspec

from schemas import cni, multus
from schemas.inputs import Edge
from services.common.netlink.links import Link
from services.common.telemetry.logs import Log
from services.multus import plan
from services.multus.apply import Applier
from services.multus.cni import conflist, network
from services.multus.cni.call import CniCall, PodId
from services.multus.cni.default_routes import plan_default_routes
from services.multus.cni.errors import CniError
from services.multus.cni.executor import Executor
from services.multus.config.settings import Config
from services.multus.observe import CallObserver, find_nad_name
from services.multus.plan import DesiredAttachment
from services.multus.pod.events import PodEvents
from services.multus.pod.network_lookup import NoNetworkError
from services.multus.pod.reader import PodReader
from services.multus.pod.status import StatusWriter
from services.multus.records.attachment_link import with_unrecorded_link
from services.multus.records.sandbox import AttachmentOrigin, SandboxState, sandbox_view
from services.multus.records.store import Records
from services.multus.sandboxes.adoption import Adoption
from services.multus.sandboxes.default_routes import DefaultRoutes
from services.multus.sandboxes.deletion import UnrecordedSandboxes, delete_sandbox
from services.multus.sandboxes.node_gc import NodeGc


class CallHandler:
    """Carries out CNI calls.

    :param config: the daemon's configuration.
    :param records: the sandboxes' records.
    :param executor: runs plugins.
    :param pods: reads pods.
    :param observer: reads what a call depends on.
    :param applier: applies plans.
    :param default_routes: changes the default routes of a sandbox.
    :param adoption: adopts multus-cni's sandboxes.
    :param status_writer: writes network-status to pods.
    :param pod_events: records Events on pods.
    :param node_gc: carries out GC.
    :param log: the daemon's log.
    """

    def __init__(
        self,
        *,
        config: Config,
        records: Records,
        executor: Executor,
        pods: PodReader,
        observer: CallObserver,
        applier: Applier,
        default_routes: DefaultRoutes,
        adoption: Adoption,
        status_writer: StatusWriter,
        pod_events: PodEvents,
        node_gc: NodeGc,
        log: Log,
    ) -> None:
        self._config = config
        self._gc = node_gc
        self._records = records
        self._executor = executor
        self._pods = pods
        self._observer = observer
        self._applier = applier
        self._default_routes = default_routes
        self._adoption = adoption
        self._pod_events = pod_events
        self._status_writer = status_writer
        self._unrecorded = UnrecordedSandboxes(observer, applier, pod_events, log)
        self._log = log

    async def handle_cni(self, call: CniCall) -> cni.CniResult | None:
        """Carry out a call of the container runtime, sent by the shim.

        :param call: the call.
        :returns: the result of ADD; ``None`` for any other command.
        :raises CniError: the call failed.
        """
        match call.command:
            case cni.CniCommand.ADD:
                return await self._cni_add(call)
            case cni.CniCommand.DEL:
                await self._cni_del(call)
            case cni.CniCommand.CHECK:
                await self._check(call, None)
            case cni.CniCommand.STATUS:
                await self._observer.wait_for_readiness_file()
                await network.status(self._executor, await self._observer.cluster_network(call))
            case _:
                await self._gc.run(call)
        return None

    async def handle_delegate(self, call: CniCall) -> cni.CniResult | None:
        """Carry out a call for one attachment of a running pod.

        :param call: the call.
        :returns: the result of ADD; ``None`` for any other command.
        :raises CniError: the call failed.
        """
        match call.command:
            case cni.CniCommand.ADD:
                return await self._delegate_add(call)
            case cni.CniCommand.DEL:
                await self._delegate_del(call)
            case cni.CniCommand.CHECK:
                await self._check(call, [call.ifname])
            case cni.CniCommand.STATUS:
                await network.status(self._executor, conflist.parse(call.config, edge=Edge.MULTUS))
            case _:
                # GC concerns no single attachment; the text is upstream's.
                raise CniError(cni.CniErrorCode.INVALID_ENVIRONMENT, f"unknown cmd type: {call.command}")
        return None

    def sandbox_record(self, sandbox_id: str) -> multus.SandboxRecord:
        """Return the record of a sandbox. It is read without the lock, so a running call may change it.

        :param sandbox_id: the container id.
        :raises CniError: code 3, the sandbox has no record; code 4, it is not a container id; code 5, the record cannot
            be read, or is damaged and not renamed yet.
        """
        # A request to read changes nothing. The next call or sweep renames a damaged record.
        sandbox = self._records.read(sandbox_id, rename_damaged=False)
        if sandbox is None:
            raise CniError(cni.CniErrorCode.UNKNOWN_CONTAINER, f"sandbox {sandbox_id} has no record")
        return sandbox_view(sandbox)

    async def _cni_add(self, call: CniCall) -> cni.CniResult:
        pod_id = _require_pod(call)
        await self._observer.wait_for_readiness_file()
        # Upstream reports success with a made-up result for a pod that the API server does not know (ADR 25).
        pod = await self._pods.get(pod_id)
        try:
            desired = await self._observer.list_desired(call, pod)
        except NoNetworkError as error:
            self._pod_events.record_no_network(pod, call.sandbox_id, error.msg)
            raise
        # Planned before anything is attached: an impossible `default-route` then creates nothing.
        changes = plan_default_routes([(one.ifname, one.gateways) for one in desired])
        # A static pod has another UID in the API: the runtime's own one, if it passed one, stays in the record.
        uid = pod_id.uid or pod.metadata.uid
        async with self._records.lock(call.sandbox_id):
            sandbox = await self._sandbox(call, replace(pod_id, uid=uid), creating=True)
            links = await self._links(call)
            # A repeated ADD returns these again: they get no second Event, and a failure below does not delete them.
            before = {attachment.ifname for attachment in sandbox.attachments}
            sandbox, attachments = await self._applier.add(sandbox, plan.plan_add(sandbox, desired, links))
            made = [attachment for attachment in attachments if attachment.ifname not in before]
            try:
                sandbox = await self._default_routes.change(sandbox, changes)
                attachments = [sandbox.find(one.ifname) or one for one in attachments]
                await self._status_writer.write(pod_id, pod, sandbox, attachments)
            except Exception:
                # The runtime sees a failed ADD; attachments of an earlier, successful ADD stay.
                await self._applier.undo(sandbox, made)
                raise
        self._pod_events.record_added(pod, call.sandbox_id, [one for one in attachments if one.ifname not in before])
        # As upstream: the runtime gets the result of the cluster network, which is always the first.
        return attachments[0].result or cni.CniResult(cni_version=cni.NEWEST_VERSION)

    async def _delegate_add(self, call: CniCall) -> cni.CniResult:
        pod_id = _require_pod(call)
        # Upstream merges its whole daemon-config.json into the call's configuration; here only a missing version is
        # filled in (ADR 25).
        parsed = None
        if call.config or call.network is None:
            parsed = conflist.parse(call.config, version=self._config.default_version, edge=Edge.MULTUS)
        # As upstream: the pod must exist, and it must have the UID of CNI_ARGS unless CNI_ARGS has none.
        pod = await self._pods.get(pod_id)
        self._observer.check_isolation(call, pod)
        network_config = parsed or await self._observer.find_delegated(call)
        nad = "/".join(call.network) if call.network else find_nad_name(pod, call.ifname)
        self._observer.check_plugins(network_config, nad or network_config.name)
        desired = DesiredAttachment(
            call.ifname,
            network_config,
            network_config.name,
            AttachmentOrigin.DELEGATE,
            call.attributes,
            nad=nad,
        )
        pod_id = replace(pod_id, uid=pod_id.uid or pod.metadata.uid)
        async with self._records.lock(call.sandbox_id):
            sandbox = await self._sandbox(call, pod_id, creating=False)
            links = await self._links(call)
            _, attachments = await self._applier.add(sandbox, plan.plan_add(sandbox, [desired], links))
        return attachments[0].result or cni.CniResult(cni_version=cni.NEWEST_VERSION)

    async def _cni_del(self, call: CniCall) -> None:
        async with self._records.lock(call.sandbox_id):
            await self._delete_sandbox(call)
            self._records.forget_damaged(call.sandbox_id)

    async def _delete_sandbox(self, call: CniCall) -> None:
        sandbox = await self._adoption.read_or_adopt(call)
        if sandbox is None:
            await self._unrecorded.delete(call)
            return
        # Recorded before anything is deleted: a DEL that fails here is finished by the sweep.
        if not sandbox.deletion_requested:
            sandbox = msgspec.structs.replace(sandbox, deletion_requested=True)
            self._records.write(sandbox)
        await delete_sandbox(self._applier, sandbox, call.netns)
        if any(attachment.origin is not AttachmentOrigin.DELEGATE for attachment in sandbox.attachments):
            self._unrecorded.mark_deleted(call.sandbox_id)
        else:
            # The record holds hot-plugged attachments only, so the sandbox's own networks are unrecorded.
            await self._unrecorded.delete(call)

    async def _delegate_del(self, call: CniCall) -> None:
        async with self._records.lock(call.sandbox_id):
            sandbox = await self._adoption.read_or_adopt(call)
            links = await self._applier.list_links(call.netns or (sandbox.netns if sandbox else ""))
            if sandbox is not None and sandbox.find(call.ifname) is not None:
                await self._delete_one(sandbox, call.ifname, links)
                return
            try:
                config = conflist.parse(call.config, version=self._config.default_version, edge=Edge.MULTUS)
            except CniError as error:
                # Such a configuration never created anything, and an error would only make the caller retry.
                self._log.info("DEL of an unknown attachment ignored", **_log_fields(call), error=error.msg)
                return
            desired = DesiredAttachment(
                call.ifname, config, config.name, AttachmentOrigin.NETWORKS, call.attributes
            ).attachment()
            adopted = with_unrecorded_link(desired, links or (), call.attributes.mac)
            if adopted is not None:
                pod = _require_pod(call)
                known = sandbox or SandboxState(call.sandbox_id, call.netns, pod.namespace, pod.name, pod.uid)
                await self._delete_one(known.with_attachment(adopted), call.ifname, links)
                return
            deletions = plan.plan_delete_unrecorded(config, call.ifname, call.attributes, links)
            for deletion in deletions:
                await self._applier.delete_unrecorded(deletion, call.sandbox_id, call.netns, call.pod)
            if not deletions:
                self._log.warning("DEL of a foreign link ignored", **_log_fields(call))

    async def _delete_one(self, sandbox: SandboxState, ifname: str, links: list[Link] | None) -> None:
        # Without a network namespace no guest can use the link any more.
        actions = plan.plan_delete(sandbox, [ifname], links, deleting_sandbox=links is None)
        failures = await self._applier.delete_attachments(sandbox, actions)
        if failures:
            raise failures[0]

    async def _check(self, call: CniCall, ifnames: list[str] | None) -> None:
        async with self._records.lock(call.sandbox_id):
            sandbox = await self._adoption.read_or_adopt(call)
            if sandbox is None or (ifnames and sandbox.find(ifnames[0]) is None):
                # As upstream, where CHECK of a sandbox always succeeds in auto mode (ADR 25).
                if ifnames is None:
                    return
                raise CniError(
                    cni.CniErrorCode.UNKNOWN_CONTAINER,
                    f"sandbox {call.sandbox_id} has no attachment {ifnames[0]} made by multus",
                )
            for attachment in plan.plan_check(sandbox, ifnames, await self._links(call)):
                try:
                    await self._applier.check(sandbox, attachment)
                except CniError as error:
                    raise error.with_prefix(str(attachment)) from error

    async def _sandbox(self, call: CniCall, pod: PodId, *, creating: bool) -> SandboxState:
        """Return the record with which an ADD starts: that of the sandbox, or a new one.

        :param call: the call.
        :param pod: the call's pod.
        :param creating: whether the runtime is creating the sandbox.
        :raises CniError: code 3, the sandbox is being deleted; code 4, it belongs to another pod.
        """
        known = await self._adoption.read_or_adopt(call)
        if creating:
            self._unrecorded.mark_created(call.sandbox_id)
        # A late ADD on `/delegate` would attach to a sandbox for which no DEL comes any more.
        if call.sandbox_id in self._unrecorded or (known is not None and known.deletion_requested and not creating):
            raise CniError(cni.CniErrorCode.UNKNOWN_CONTAINER, f"sandbox {call.sandbox_id} is being deleted")
        if known is None:
            return SandboxState(call.sandbox_id, call.netns, pod.namespace, pod.name, pod.uid)
        if (known.namespace, known.pod) != (pod.namespace, pod.name):
            message = f"sandbox {call.sandbox_id} belongs to pod {known.pod_id}, not to {pod}"
            raise CniError(cni.CniErrorCode.INVALID_ENVIRONMENT, message)
        # The sandbox is created again after a failed DEL; with the mark, the sweep would delete it.
        return msgspec.structs.replace(known, netns=call.netns, deletion_requested=False)

    async def _links(self, call: CniCall) -> list[Link]:
        links = await self._applier.list_links(call.netns)
        if links is None:
            raise CniError(cni.CniErrorCode.UNKNOWN_CONTAINER, f"no network namespace at {call.netns}")
        return links


def _require_pod(call: CniCall) -> PodId:
    if call.pod is None:
        raise CniError(cni.CniErrorCode.INVALID_ENVIRONMENT, f"{call.command} names no pod")
    return call.pod


def _log_fields(call: CniCall) -> dict[str, str]:
    """Return the fields of a log line about a call."""
    return {"sandbox": call.sandbox_id, "ifname": call.ifname, "pod": str(call.pod or "")}
