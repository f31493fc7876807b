"""Applies a plan: CNI plugins, links of the sandbox, and the record, in an order that survives a crash.

ADD writes the record (``adding``), runs the plugins and writes the record again (``added``). DEL restores the links,
runs the plugins and then changes the record. Each sequence can be repeated from any point where it stopped. This module
decides nothing; see :mod:`services.multus.plan`. Next: :mod:`services.multus.cni.network`.
"""

import contextlib
import errno
from collections.abc import Iterable, Sequence
from typing import Any, Final

import msgspec

from schemas import cni
from services.common.netlink.errors import LinkMissing, NetlinkFailure, NetnsGone
from services.common.netlink.links import Link
from services.common.netlink.pool import NetnsPool
from services.common.telemetry.logs import Log
from services.multus.cni import network, results
from services.multus.cni.call import PodId
from services.multus.cni.device_info import DEVICE_INFO_CAPABILITY, DeviceInfoFiles
from services.multus.cni.errors import CniError, DeadlineError, NotStartedError, as_cni_error
from services.multus.cni.executor import Executor, time_limit
from services.multus.cni.network import AttachmentTarget
from services.multus.plan import (
    AddAttachment,
    DeleteAttachment,
    DeleteUnrecorded,
    DesiredAttachment,
    KeepAttachment,
    RemoveLink,
    RenameLink,
)
from services.multus.pod.events import PodEvents
from services.multus.records.sandbox import Attachment, AttachmentState, SandboxState
from services.multus.records.store import Records
from services.multus.records.upstream import UpstreamCache

UNDO_TIME: Final = 20.0
"""Seconds for what undoes a failed call, which may have used up its own time."""


class Applier:
    """Runs plugins, changes links and writes records on one node."""

    def __init__(
        self,
        *,
        executor: Executor,
        records: Records,
        netns: NetnsPool,
        devices: DeviceInfoFiles,
        upstream: UpstreamCache,
        pod_events: PodEvents,
        log: Log,
    ) -> None:
        self._executor = executor
        self._devices = devices
        self._upstream = upstream
        self._pod_events = pod_events
        self._records = records
        self._netns = netns
        self._log = log

    async def list_links(self, path: str) -> list[Link] | None:
        """Return the links of a sandbox.

        :param path: path of the network namespace as the runtime sees it.
        :returns: the links; ``None`` when the network namespace is gone.
        :raises CniError: code 11, the links cannot be listed.
        """
        # The CNI specification allows DEL without a namespace; containerd sends it so once the namespace is closed.
        if not path:
            return None
        try:
            return await (await self._netns.open(path)).links()
        except NetnsGone:
            return None
        except NetlinkFailure as error:
            # EINVAL: the mount point still exists, but no network namespace is mounted on it any more.
            if error.code == errno.EINVAL:
                return None
            raise CniError(
                cni.CniErrorCode.TRY_AGAIN_LATER, f"cannot list the links of {path}: {error.message}"
            ) from error

    async def add(
        self, sandbox: SandboxState, actions: Sequence[KeepAttachment | AddAttachment | DeleteAttachment]
    ) -> tuple[SandboxState, list[Attachment]]:
        """Carry out the actions of an ADD; if one fails, delete what this call has added, the last first.

        :param sandbox: the sandbox's record.
        :param actions: the actions of :func:`services.multus.plan.plan_add`.
        :returns: the new record, and the requested attachments in their order.
        :raises CniError: the error of the first attachment that failed, whatever failed.
        """
        requested: list[Attachment] = []
        made: list[Attachment] = []
        for action in actions:
            try:
                match action:
                    case KeepAttachment(attachment):
                        requested.append(attachment)
                    case DeleteAttachment():
                        sandbox = await self.delete_attachment(sandbox, action)
                    case AddAttachment(desired):
                        network.require_plugins(self._executor, desired.network)
                        # Counted as made before it is: plugins of a failing ADD may have created something.
                        made.append(desired.attachment())
                        attachment = self._with_device_file(sandbox, made[-1], desired)
                        sandbox, made[-1] = await self._add_attachment(sandbox, attachment)
                        requested.append(made[-1])
            except Exception as failure:
                if isinstance(action, AddAttachment):
                    error = self._as_cni_error(failure, sandbox, action.desired.ifname)
                    if isinstance(error, NotStartedError):
                        sandbox = self._drop_record(sandbox, action.desired.ifname)
                        made = [one for one in made if one.ifname != action.desired.ifname]
                    error = error.with_prefix(
                        f"[{sandbox.pod_id}/{sandbox.pod_uid}:{action.desired.network.name}]: "
                        f'error adding container to network "{action.desired.network.name}"'
                    )
                else:
                    error = self._as_cni_error(failure, sandbox, action.attachment.ifname)
                await self.undo(sandbox, made)
                raise error from failure
        return sandbox, requested

    def _drop_record(self, sandbox: SandboxState, ifname: str) -> SandboxState:
        """Remove an attachment from the record because none of its plugins ran.

        A DEL would run the same plugin, which cannot start, and so would never succeed.
        """
        sandbox = (self._records.read(sandbox.sandbox_id) or sandbox).without_attachment(ifname)
        # If the record keeps it, its DEL is tried a few times; the call's other attachments are undone in any case.
        with contextlib.suppress(CniError):
            self._records.write(sandbox)
        return sandbox

    def _as_cni_error(self, error: Exception, sandbox: SandboxState, ifname: str) -> CniError:
        """Return the failure of one attachment; log the traceback of one that is a defect of this daemon."""
        if not isinstance(error, CniError):
            self._log.error("unexpected attachment error", sandbox=sandbox.sandbox_id, ifname=ifname, exc_info=error)
        return as_cni_error(error)

    async def undo(self, sandbox: SandboxState, made: Sequence[Attachment]) -> None:
        """Delete the attachments that a failed call has added.

        A failure here is logged, not raised: the record keeps the attachment, and the sweep deletes it later.

        :param sandbox: the sandbox's record.
        :param made: the attachments to delete, in the order in which they were added.
        """
        # The ADD that failed has written the record since; the caller's copy is older.
        sandbox = self._records.read(sandbox.sandbox_id) or sandbox
        actions = [DeleteAttachment(sandbox.find(one.ifname) or one) for one in reversed(made)]
        with time_limit(UNDO_TIME, anew=True):
            await self.delete_attachments(sandbox, actions)

    def _with_device_file(
        self, sandbox: SandboxState, attachment: Attachment, desired: DesiredAttachment
    ) -> Attachment:
        """Set the path of the device information file if the attachment has a device or a plugin can describe one."""
        if desired.device is None and DEVICE_INFO_CAPABILITY not in desired.network.capabilities():
            return attachment
        resource, device = desired.device or ("", "")
        path = self._devices.prepare(desired.display, sandbox.sandbox_id, desired.ifname, resource, device)
        return msgspec.structs.replace(attachment, runtime={**attachment.runtime, DEVICE_INFO_CAPABILITY: str(path)})

    async def _add_attachment(self, sandbox: SandboxState, attachment: Attachment) -> tuple[SandboxState, Attachment]:
        # The record comes first: if the daemon dies while a plugin runs, the sweep knows what may exist.
        sandbox = sandbox.with_attachment(attachment)
        self._records.write(sandbox, change="adding")
        target = _target(sandbox, attachment.ifname)
        config = attachment.network_config()
        result = await network.add(self._executor, config, target, attachment.attributes())
        # A result names its link only. DEL needs the index, because a bridged link has another name (kubevirt#14074).
        link = await self._link(sandbox.netns, attachment.ifname)
        mac, mtu = (link.mac or None, link.mtu or None) if link else (None, None)
        early_in = sandbox.netns if link and config.version in cni.EARLY_VERSIONS else ""
        attachment = msgspec.structs.replace(
            attachment,
            state=AttachmentState.ADDED,
            result=results.fill_in_link(result, attachment.ifname, mac=mac, mtu=mtu, early_in=early_in),
            ifindex=link.index if link else 0,
            kind=link.kind if link else None,
            mac=mac,
            mtu=mtu,
            device_info=self._device_info(sandbox, attachment),
        )
        sandbox = sandbox.with_attachment(attachment)
        self._records.write(sandbox, change="added")
        return sandbox, attachment

    def _device_info(self, sandbox: SandboxState, attachment: Attachment) -> dict[str, Any] | None:
        if DEVICE_INFO_CAPABILITY not in attachment.runtime:
            return None
        return self._devices.read(attachment.network, sandbox.sandbox_id, attachment.ifname)

    async def _link(self, path: str, ifname: str) -> Link | None:
        try:
            return await (await self._netns.open(path)).link(ifname)
        except NetlinkFailure as error:
            message = f"cannot read link {ifname} in {path}: {error.message}"
            raise CniError(cni.CniErrorCode.TRY_AGAIN_LATER, message) from error

    async def delete_attachment(self, sandbox: SandboxState, action: DeleteAttachment) -> SandboxState:
        """Delete one attachment: restore its links, run DEL and remove it from the record.

        :param sandbox: the sandbox's record.
        :param action: the attachment and the changes to its links.
        :returns: the new record.
        :raises CniError: a link could not be restored, or a plugin failed; the attachment stays in the record.
        """
        attachment = action.attachment
        # Links first: a plugin's DEL finds its link by name.
        for operation in action.links:
            await self._restore_link(sandbox.netns, operation)
        target = _target(sandbox, attachment.ifname, with_netns=action.with_netns, gone=action.link_gone)
        try:
            config, asked, last = attachment.network_config(), attachment.attributes(), action.last_try
            kept = await network.delete(self._executor, config, target, asked, attachment.result, last_try=last)
            # An ADD that failed has got no lease.
            failure = kept if attachment.state is AttachmentState.ADDED else None
        except Exception as error:
            if not last or isinstance(error, DeadlineError):
                raise
            if action.leftover is not None:
                await self._restore_link(sandbox.netns, action.leftover)
            failure = self._as_cni_error(error, sandbox, target.ifname)
        if failure is not None:
            self._log.error("failed DEL given up", sandbox=sandbox.sandbox_id, ifname=target.ifname, error=failure.msg)
            self._pod_events.record_cleanup_failed(sandbox.pod_id, sandbox.sandbox_id, attachment, failure.msg)
        if DEVICE_INFO_CAPABILITY in attachment.runtime:
            self._devices.remove(attachment.network, sandbox.sandbox_id, attachment.ifname)
        sandbox = sandbox.without_attachment(attachment.ifname)
        if sandbox.adopted:
            # Upstream's files of an attachment stay until here, so that the node can be given back to multus-cni.
            self._upstream.remove(sandbox.sandbox_id, attachment.ifname, last=not sandbox.attachments)
        # The record changes last, so a DEL that was interrupted above is repeated from it (ADR 11).
        self._records.write(sandbox, change="removed")
        return sandbox

    async def delete_attachments(self, sandbox: SandboxState, actions: Iterable[DeleteAttachment]) -> list[CniError]:
        """Delete attachments; those whose DEL fails stay in the record, with the number of failures.

        Those for which the call has no time left stay as they are.

        :param sandbox: the sandbox's record.
        :param actions: the attachments and the changes to their links.
        :returns: the failures.
        """
        failures: list[CniError] = []
        left = list(actions)
        while left:
            action, attachment = left[0], left[0].attachment
            try:
                sandbox = await self.delete_attachment(sandbox, action)
                left.pop(0)
            except DeadlineError as late:
                names = [one.attachment.ifname for one in left]
                self._log.error("DEL out of time", sandbox=sandbox.sandbox_id, ifnames=names, error=late.msg)
                failures.append(late)
                break
            except Exception as failure:
                left.pop(0)
                error = self._as_cni_error(failure, sandbox, attachment.ifname)
                self._log.error("DEL failed", sandbox=sandbox.sandbox_id, ifname=attachment.ifname, error=error.msg)
                failures.append(error)
                if action.tries is not None or attachment.state is AttachmentState.ADDING:
                    sandbox = sandbox.with_attachment(attachment.with_failed_delete())
                    # Without the number in the record, DEL is tried once more.
                    with contextlib.suppress(CniError):
                        self._records.write(sandbox)
        return failures

    async def delete_unrecorded(self, action: DeleteUnrecorded, sandbox_id: str, netns: str, pod: PodId | None) -> None:
        """Run DEL for an attachment that is in no record.

        :param action: the attachment.
        :param sandbox_id: the sandbox's container id.
        :param netns: path of the network namespace; empty when it is gone.
        :param pod: the sandbox's pod; ``None`` when the call names none.
        :raises CniError: a plugin failed.
        """
        target = AttachmentTarget(sandbox_id, netns if action.with_netns else "", action.ifname, pod)
        await network.delete(self._executor, action.network, target, action.attributes, None)

    async def check(self, sandbox: SandboxState, attachment: Attachment) -> None:
        """Run CHECK for one attachment.

        :param sandbox: the sandbox's record.
        :param attachment: the attachment.
        :raises CniError: the attachment is not as ADD left it.
        """
        target = _target(sandbox, attachment.ifname)
        await network.check(
            self._executor, attachment.network_config(), target, attachment.attributes(), attachment.result
        )

    def close_netns(self, path: str) -> None:
        """Close the connection to a network namespace; an open one keeps the namespace alive.

        :param path: path of the network namespace; may be empty.
        """
        if path:
            self._netns.drop(path)

    async def _restore_link(self, path: str, operation: RemoveLink | RenameLink) -> None:
        try:
            netns = await self._netns.open(path)
            if isinstance(operation, RemoveLink):
                await netns.delete(operation.index)
            else:
                # The link is set down first because kernels before 6.2 do not rename a link that is up.
                await netns.set(operation.index, master=0, up=False)
                await netns.set(operation.index, name=operation.name)
        # DEL must succeed for what no longer exists (CNI specification, section 2).
        except LinkMissing:
            return
        except NetlinkFailure as error:
            message = f"cannot restore link {operation.name} in {path}: {error.message}"
            raise CniError(cni.CniErrorCode.TRY_AGAIN_LATER, message) from error


def _target(sandbox: SandboxState, ifname: str, *, with_netns: bool = True, gone: bool = False) -> AttachmentTarget:
    return AttachmentTarget(sandbox.sandbox_id, sandbox.netns if with_netns else "", ifname, sandbox.pod_id, gone)
