"""Every verb of ``/cni`` and ``/delegate``: observe, plan, apply, under the sandbox's lock.

Nothing of HTTP here, see :mod:`services.multus.server`; what is undone without being asked for is
:mod:`services.multus.sweep`'s.
"""

from collections.abc import Awaitable
from dataclasses import replace

import msgspec
from structlog.typing import FilteringBoundLogger

from schemas import cni, multus
from services.common.kube.client import Kube
from services.common.netlink.links import Link
from services.multus import conflist, network, plan
from services.multus.adoption import Adoption
from services.multus.apply import Apply
from services.multus.call import Call, PodId
from services.multus.catalogue import NoNetworkError
from services.multus.errors import CniError, together
from services.multus.executor import Executor
from services.multus.gateways import steering
from services.multus.observe import Observe
from services.multus.plan import Wanted
from services.multus.published import published
from services.multus.records import Owner, Records, Sandbox
from services.multus.reports import Reports
from services.multus.settings import Config
from services.multus.status import StatusWriter
from services.multus.unrecorded import Unrecorded


class Calls:
    """The work of the daemon."""

    def __init__(
        self,
        *,
        config: Config,
        kube: Kube,
        records: Records,
        run: Executor,
        observe: Observe,
        apply: Apply,
        adoption: Adoption,
        reports: Reports,
        log: FilteringBoundLogger,
    ) -> None:
        self._config = config
        self._records = records
        self._run = run
        self._observe = observe
        self._apply = apply
        self._adoption = adoption
        self._reports = reports
        self._status = StatusWriter(kube, observe, log)
        self._unrecorded = Unrecorded(observe, apply, log)
        self._log = log

    async def on_cni(self, call: Call) -> cni.CniResult | None:
        """A call of the container runtime, by the shim.

        :raises CniError: it failed.
        """
        match call.command:
            case cni.Command.ADD:
                return await self._cni_add(call)
            case cni.Command.DEL:
                await self._cni_del(call)
            case cni.Command.CHECK:
                await self._check(call, None)
            case cni.Command.STATUS:
                await self._observe.readiness_file()
                await network.status(self._run, await self._observe.cluster(call))
            case _:
                await self._cni_gc(call)
        return None

    async def on_delegate(self, call: Call) -> cni.CniResult | None:
        """A call for one attachment of a running pod.

        :raises CniError: it failed.
        """
        match call.command:
            case cni.Command.ADD:
                return await self._delegate_add(call)
            case cni.Command.DEL:
                await self._delegate_del(call)
            case cni.Command.CHECK:
                await self._check(call, [call.ifname])
            case cni.Command.STATUS:
                await network.status(self._run, conflist.parse(call.config))
            case _:
                raise CniError(cni.Code.INVALID_ENVIRONMENT, f"unknown cmd type: {call.command}")
        return None

    def record(self, sandbox_id: str) -> multus.SandboxRecord:
        """What is attached to a sandbox, as the record has it now; a call that is running may change it.

        :raises CniError: code 3, nothing is recorded of it.
        """
        sandbox = self._records.read(sandbox_id)
        if sandbox is None:
            raise CniError(cni.Code.UNKNOWN_CONTAINER, f"nothing is recorded of sandbox {sandbox_id}")
        return published(sandbox)

    async def _cni_add(self, call: Call) -> cni.CniResult:
        asked = _pod_of(call)
        await self._observe.readiness_file()
        pod = await self._observe.pod(asked)
        try:
            wanted = await self._observe.wanted(call, pod)
        except NoNetworkError as error:
            self._reports.no_network(pod, call.sandbox_id, error.msg)
            raise
        steps = steering([(one.ifname, one.gateways) for one in wanted])
        uid = asked.uid or pod.metadata.uid
        async with self._records.locked(call.sandbox_id):
            sandbox = await self._sandbox(call, replace(asked, uid=uid), created=True)
            links = await self._links(call)
            before = {attachment.ifname for attachment in sandbox.attachments}
            sandbox, attachments = await self._apply.add(sandbox, plan.adding(sandbox, wanted, links))
            made = [attachment for attachment in attachments if attachment.ifname not in before]
            try:
                sandbox = await self._apply.steer(sandbox, steps)
                attachments = [sandbox.find(one.ifname) or one for one in attachments]
                await self._status.tell(asked, pod, sandbox, attachments)
            except CniError:
                await self._apply.undo(sandbox, made)
                raise
        self._reports.added(pod, call.sandbox_id, [one for one in attachments if one.ifname not in before])
        return attachments[0].result or cni.CniResult(cni_version=cni.NEWEST_VERSION)

    async def _delegate_add(self, call: Call) -> cni.CniResult:
        asked = _pod_of(call)
        wanted_network = conflist.parse(call.config, version=self._config.default_version)
        wanted = Wanted(call.ifname, wanted_network, wanted_network.name, Owner.DELEGATE, call.attributes)
        await self._observe.allowed(call)
        if not asked.uid:
            asked = replace(asked, uid=(await self._observe.pod(asked)).metadata.uid)
        async with self._records.locked(call.sandbox_id):
            sandbox = await self._sandbox(call, asked, created=False)
            links = await self._links(call)
            _, attachments = await self._apply.add(sandbox, plan.adding(sandbox, [wanted], links))
        return attachments[0].result or cni.CniResult(cni_version=cni.NEWEST_VERSION)

    async def _cni_del(self, call: Call) -> None:
        async with self._records.locked(call.sandbox_id):
            sandbox = await self._adoption.of(call)
            if sandbox is None:
                await self._unrecorded.undo(call)
                return
            if not sandbox.released:
                sandbox = msgspec.structs.replace(sandbox, released=True)
                self._records.write(sandbox)
            await self.remove(sandbox, call.netns)
            if any(attachment.owner is Owner.CLUSTER for attachment in sandbox.attachments):
                self._unrecorded.done(call.sandbox_id)
            else:
                await self._unrecorded.undo(call)

    async def remove(self, sandbox: Sandbox, netns: str) -> None:
        """Undo everything of a sandbox that is going away. The caller holds its lock.

        :param netns: empty when the runtime has closed the network namespace.
        :raises CniError: of all attachments that could not be undone; the record keeps those.
        """
        links = await self._apply.links(netns)
        failures: list[CniError] = []
        for action in plan.deleting(sandbox, None, links, going=True):
            try:
                sandbox = await self._apply.detach(sandbox, action)
            except CniError as error:
                self._log.error(
                    "DEL failed", sandbox=sandbox.sandbox_id, ifname=action.attachment.ifname, error=error.msg
                )
                failures.append(error)
        self._apply.forget(sandbox.netns)
        if failures:
            raise together(failures)

    async def _delegate_del(self, call: Call) -> None:
        async with self._records.locked(call.sandbox_id):
            sandbox = await self._adoption.of(call)
            links = await self._apply.links(call.netns or (sandbox.netns if sandbox else ""))
            if sandbox is not None and sandbox.find(call.ifname) is not None:
                for detach in plan.deleting(sandbox, [call.ifname], links, going=links is None):
                    sandbox = await self._apply.detach(sandbox, detach)
                return
            try:
                posted = conflist.parse(call.config, version=self._config.default_version)
            except CniError as error:
                # Nothing was ever made by it, and a caller that asks again would get no further.
                self._log.info("nothing is known of the attachment", **_named(call), error=error.msg)
                return
            releases = plan.releasing(posted, call.ifname, call.attributes, links)
            for release in releases:
                await self._apply.release(release, call.sandbox_id, call.netns, call.pod)
            if not releases:
                self._log.warning("DEL leaves a link alone that multus did not make", **_named(call))

    async def _check(self, call: Call, ifnames: list[str] | None) -> None:
        async with self._records.locked(call.sandbox_id):
            sandbox = await self._adoption.of(call)
            if sandbox is None or (ifnames and sandbox.find(ifnames[0]) is None):
                if ifnames is None:
                    return
                raise CniError(cni.Code.UNKNOWN_CONTAINER, f"multus made no {ifnames[0]} in sandbox {call.sandbox_id}")
            for attachment in plan.checking(sandbox, ifnames, await self._links(call)):
                await self._apply.check(sandbox, attachment)

    async def _cni_gc(self, call: Call) -> None:
        """Undo the sandboxes that the runtime does not know, then let the plugins of every network tidy up."""
        valid = plan.valid_attachments(conflist.top_level(call.config))
        sandboxes = {sandbox_id for sandbox_id, _ in valid}
        failures: list[CniError] = []
        async with self._records.all_locked():
            left: list[Sandbox] = []
            for sandbox_id in self._records.ids():
                sandbox = self._records.read(sandbox_id)
                if sandbox is not None and sandbox_id in sandboxes:
                    left.append(sandbox)
                elif sandbox is not None:
                    await _collecting(failures, self.remove(sandbox, sandbox.netns))
            cluster = await self._observe.cluster(call)
            for one, attachments in plan.collections(cluster, valid, left):
                await _collecting(failures, network.collect(self._run, one, attachments))
        if failures:
            raise failures[0]

    async def _sandbox(self, call: Call, pod: PodId, *, created: bool) -> Sandbox:
        """The sandbox's record, or a new one. ``created``: the runtime is just making the sandbox."""
        known = await self._adoption.of(call)
        if created:
            self._unrecorded.made(call.sandbox_id)
        if call.sandbox_id in self._unrecorded or (known is not None and known.released and not created):
            raise CniError(cni.Code.UNKNOWN_CONTAINER, f"sandbox {call.sandbox_id} is going away")
        if known is None:
            return Sandbox(call.sandbox_id, call.netns, pod.namespace, pod.name, pod.uid)
        if (known.namespace, known.pod) != (pod.namespace, pod.name):
            message = f"sandbox {call.sandbox_id} belongs to pod {known.pod_id}, not to {pod}"
            raise CniError(cni.Code.INVALID_ENVIRONMENT, message)
        return msgspec.structs.replace(known, netns=call.netns, released=False)

    async def _links(self, call: Call) -> list[Link]:
        links = await self._apply.links(call.netns)
        if links is None:
            raise CniError(cni.Code.UNKNOWN_CONTAINER, f"no network namespace at {call.netns}")
        return links


async def _collecting(failures: list[CniError], work: Awaitable[None]) -> None:
    try:
        await work
    except CniError as error:
        failures.append(error)


def _pod_of(call: Call) -> PodId:
    if call.pod is None:
        raise CniError(cni.Code.INVALID_ENVIRONMENT, f"{call.command} names no pod")
    return call.pod


def _named(call: Call) -> dict[str, str]:
    """What a log line says of a call."""
    return {"sandbox": call.sandbox_id, "ifname": call.ifname, "pod": str(call.pod or "")}
