"""Carries out what was planned: plugins, links of the sandbox, and the record, in the order that survives a crash.

ADD: record (``adding``), plugins, record (``added``). DEL: links, plugins, record. Each can be repeated from wherever
it stopped. Which of them are done is decided in :mod:`services.multus.plan`.
"""

import errno
from collections.abc import Sequence
from typing import Any

import msgspec
from structlog.typing import FilteringBoundLogger

from schemas import cni
from services.common import faults
from services.common.netlink.errors import LinkMissing, NetlinkFailure, NetnsGone
from services.common.netlink.links import Link
from services.common.netlink.pool import NetnsPool
from services.multus import network, results
from services.multus.call import PodId
from services.multus.devices import CAPABILITY, DeviceInfo
from services.multus.errors import CniError, NotStartedError
from services.multus.executor import Executor
from services.multus.gateways import DEFAULTS, Steer, steered
from services.multus.network import Place
from services.multus.plan import Attach, Detach, Keep, Release, RemoveLink, RenameLink, Wanted
from services.multus.records import Attachment, Records, Sandbox, State
from services.multus.upstream import UpstreamCache


class Apply:
    """The effects of multus on one node."""

    def __init__(
        self,
        *,
        run: Executor,
        records: Records,
        netns: NetnsPool,
        devices: DeviceInfo,
        upstream: UpstreamCache,
        log: FilteringBoundLogger,
    ) -> None:
        self._run = run
        self._devices = devices
        self._upstream = upstream
        self._records = records
        self._netns = netns
        self._log = log

    async def links(self, path: str) -> list[Link] | None:
        """The links of a sandbox; ``None`` when its network namespace is gone.

        :raises CniError: it could not be asked.
        """
        if not path:
            return None
        try:
            return await (await self._netns.open(path)).links()
        except NetnsGone:
            return None
        except NetlinkFailure as error:
            if error.code == errno.EINVAL:  # the file is still there, the namespace behind it is not
                return None
            raise CniError(cni.Code.TRY_AGAIN_LATER, f"cannot list the links of {path}: {error.message}") from error

    async def add(
        self, sandbox: Sandbox, actions: Sequence[Keep | Attach | Detach]
    ) -> tuple[Sandbox, list[Attachment]]:
        """Make what is to be made; on a failure, what this call has made is undone, the last first.

        Returns the record and the attachments asked for, in their order.

        :raises CniError: of the first plugin that failed.
        """
        asked: list[Attachment] = []
        made: list[Attachment] = []
        for action in actions:
            match action:
                case Keep(attachment):
                    asked.append(attachment)
                case Detach():
                    sandbox = await self.detach(sandbox, action)
                case Attach(wanted):
                    attachment = wanted.attachment()
                    try:
                        network.look_up(self._run, wanted.network)
                        made.append(attachment)
                        attachment = self._with_device_file(sandbox, attachment, wanted)
                        sandbox, attachment = await self._attach(sandbox, attachment)
                    except CniError as error:
                        if isinstance(error, NotStartedError):
                            sandbox = self._forgotten(sandbox, wanted.ifname)
                            made = [one for one in made if one.ifname != wanted.ifname]
                        await self.undo(sandbox, made)
                        raise error.prefixed(
                            f"[{sandbox.pod_id}/{sandbox.pod_uid}:{wanted.network.name}]: "
                            f'error adding container to network "{wanted.network.name}"'
                        ) from error
                    made[-1] = attachment
                    asked.append(attachment)
        return sandbox, asked

    def _forgotten(self, sandbox: Sandbox, ifname: str) -> Sandbox:
        """Strike an attachment of which nothing was made; a DEL by a plugin that cannot run would never succeed."""
        sandbox = (self._records.read(sandbox.sandbox_id) or sandbox).without(ifname)
        self._records.write(sandbox)
        return sandbox

    async def undo(self, sandbox: Sandbox, made: Sequence[Attachment]) -> None:
        """DEL what a failed call has made. A failure here is logged; the record keeps what is left."""
        sandbox = self._records.read(sandbox.sandbox_id) or sandbox
        for attachment in reversed(made):
            try:
                sandbox = await self.detach(sandbox, Detach(sandbox.find(attachment.ifname) or attachment))
            except CniError as error:
                self._log.error(
                    "undoing a failed ADD failed; the record keeps it",
                    sandbox=sandbox.sandbox_id,
                    ifname=attachment.ifname,
                    error=error.msg,
                )

    async def steer(self, sandbox: Sandbox, steps: Sequence[Steer]) -> Sandbox:
        """Change who carries the default routes; the record tells what became of each attachment's result.

        :raises CniError: a route could not be changed.
        """
        for step in steps:
            await self._steer(sandbox, step, drop=True)
        for step in steps:
            await self._steer(sandbox, step, drop=False)
            attachment = sandbox.find(step.ifname)
            if attachment is not None and attachment.result is not None:
                changed = msgspec.structs.replace(attachment, result=steered(attachment.result, step))
                sandbox = sandbox.with_(changed)
        if steps:
            self._records.write(sandbox)
        return sandbox

    async def _steer(self, sandbox: Sandbox, step: Steer, *, drop: bool) -> None:
        attachment = sandbox.find(step.ifname)
        try:
            netns = await self._netns.open(sandbox.netns)
            index = attachment.ifindex if attachment else 0
            if not index:
                return  # a network without a link has no routes
            if drop:
                gone = {DEFAULTS[family] for family in step.drop}
                for route in [route for route in await netns.routes(index) if route.dst in gone]:
                    await netns.delete_route(route)
                return
            for family, gateway in step.gateways:
                await netns.add_route(index, DEFAULTS[family], gw=gateway)
            # The kernel says "exists" also where another link holds the route: looked at, not believed.
            standing = {(route.dst, route.gw) for route in await netns.routes(index)}
        except NetlinkFailure as error:
            message = f"default-route of {step.ifname}: {error.message}"
            raise CniError(cni.Code.INVALID_CONFIG, message) from error
        for family, gateway in step.gateways:
            if (DEFAULTS[family], gateway) not in standing:
                message = f"default-route of {step.ifname}: another network keeps its default route"
                raise CniError(cni.Code.INVALID_CONFIG, message)

    def _with_device_file(self, sandbox: Sandbox, attachment: Attachment, wanted: Wanted) -> Attachment:
        """Hand the plugin the file that describes its device, where it has one or can write one."""
        if wanted.device is None and CAPABILITY not in wanted.network.capabilities():
            return attachment
        resource, device = wanted.device or ("", "")
        path = self._devices.prepare(wanted.display, sandbox.sandbox_id, wanted.ifname, resource, device)
        return msgspec.structs.replace(attachment, runtime={**attachment.runtime, CAPABILITY: str(path)})

    async def _attach(self, sandbox: Sandbox, attachment: Attachment) -> tuple[Sandbox, Attachment]:
        sandbox = sandbox.with_(attachment)
        with faults.step("multus.record-adding"):
            self._records.write(sandbox)
        place = _place(sandbox, attachment.ifname)
        with faults.step("multus.plugins-add"):
            result = await network.add(self._run, attachment.parsed(), place, attachment.attributes())
        link = await self._link(sandbox.netns, attachment.ifname)
        mac, mtu = (link.mac or None, link.mtu or None) if link else (None, None)
        attachment = msgspec.structs.replace(
            attachment,
            state=State.ADDED,
            result=results.completed(result, attachment.ifname, mac=mac, mtu=mtu),
            ifindex=link.index if link else 0,
            kind=link.kind if link else None,
            mac=mac,
            mtu=mtu,
            device_info=self._device_info(sandbox, attachment),
        )
        sandbox = sandbox.with_(attachment)
        with faults.step("multus.record-added"):
            self._records.write(sandbox)
        return sandbox, attachment

    def _device_info(self, sandbox: Sandbox, attachment: Attachment) -> dict[str, Any] | None:
        if CAPABILITY not in attachment.runtime:
            return None
        return self._devices.read(attachment.network, sandbox.sandbox_id, attachment.ifname)

    async def _link(self, path: str, ifname: str) -> Link | None:
        try:
            return await (await self._netns.open(path)).link(ifname)
        except NetlinkFailure as error:
            raise CniError(cni.Code.TRY_AGAIN_LATER, f"cannot look at {ifname} in {path}: {error.message}") from error

    async def detach(self, sandbox: Sandbox, action: Detach) -> Sandbox:
        """Undo one attachment and strike it from the record.

        :raises CniError: it, or its links, could not be undone; the record keeps it.
        """
        attachment = action.attachment
        for step in action.links:
            await self._put_right(sandbox.netns, step)
        place = _place(sandbox, attachment.ifname)
        if not action.with_netns:
            place = place.without_netns()
        with faults.step("multus.plugins-del"):
            await network.delete(self._run, attachment.parsed(), place, attachment.attributes(), attachment.result)
        if CAPABILITY in attachment.runtime:
            self._devices.remove(attachment.network, sandbox.sandbox_id, attachment.ifname)
        sandbox = sandbox.without(attachment.ifname)
        if sandbox.adopted:
            self._upstream.forget(sandbox.sandbox_id, attachment.ifname, last=not sandbox.attachments)
        with faults.step("multus.record-removed"):
            self._records.write(sandbox)
        return sandbox

    async def release(self, action: Release, sandbox_id: str, netns: str, pod: PodId | None) -> None:
        """DEL for something that no record knows.

        :raises CniError: a plugin failed.
        """
        place = Place(sandbox_id, netns if action.with_netns else "", action.ifname, pod)
        await network.delete(self._run, action.network, place, action.attributes, None)

    async def check(self, sandbox: Sandbox, attachment: Attachment) -> None:
        """CHECK one attachment.

        :raises CniError: it is not as ADD left it.
        """
        place = _place(sandbox, attachment.ifname)
        await network.check(self._run, attachment.parsed(), place, attachment.attributes(), attachment.result)

    def forget(self, path: str) -> None:
        """Let go of a network namespace: an open conversation would keep it alive."""
        if path:
            self._netns.drop(path)

    async def _put_right(self, path: str, step: RemoveLink | RenameLink) -> None:
        try:
            netns = await self._netns.open(path)
            if isinstance(step, RemoveLink):
                await netns.delete(step.index)
            else:
                # Down first: kernels before 6.2 rename no link that is up.
                await netns.set(step.index, master=0, up=False)
                await netns.set(step.index, name=step.name)
        except LinkMissing:
            return
        except NetlinkFailure as error:
            message = f"cannot put link {step.name} right in {path}: {error.message}"
            raise CniError(cni.Code.TRY_AGAIN_LATER, message) from error


def _place(sandbox: Sandbox, ifname: str) -> Place:
    return Place(sandbox.sandbox_id, sandbox.netns, ifname, sandbox.pod_id)
