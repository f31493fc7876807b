"""Takes over sandboxes that multus-cni has made: their links are looked up, and their records become ours.

At the daemon's start for all, and when a call names a sandbox that no record knows, because not everything that a
record needs stands in upstream's files. Next: :mod:`services.multus.calls`.
"""

import msgspec
from structlog.typing import FilteringBoundLogger

from services.multus.apply import Apply
from services.multus.attachment_link import original
from services.multus.call import Call
from services.multus.errors import CniError
from services.multus.records import Records, Sandbox
from services.multus.upstream import UpstreamCache


class Adoption:
    """The way from upstream's files to our records."""

    def __init__(self, cache: UpstreamCache, records: Records, apply: Apply, log: FilteringBoundLogger) -> None:
        self._cache = cache
        self._records = records
        self._apply = apply
        self._log = log

    async def of(self, call: Call) -> Sandbox | None:
        """The record of a call's sandbox: ours, else one made now from upstream's files. The sandbox is held."""
        known = self._records.read(call.sandbox_id)
        if known is not None:
            return known
        found = self._cache.read(call.sandbox_id)
        if found is None:
            return None
        pod = call.pod
        found = msgspec.structs.replace(
            found,
            netns=call.netns or found.netns,
            namespace=found.namespace or (pod.namespace if pod else ""),
            pod=found.pod or (pod.name if pod else ""),
            pod_uid=found.pod_uid or (pod.uid if pod else ""),
        )
        return await self._adopted(found)

    async def all(self) -> None:
        """Take over every sandbox of which enough is known: where its network namespace was, and whose it is."""
        for sandbox_id in self._cache.ids():
            try:
                async with self._records.locked(sandbox_id):
                    if self._records.read(sandbox_id) is None:
                        found = self._cache.read(sandbox_id)
                        if found is not None and found.netns and found.pod:
                            await self._adopted(found)
            except CniError as error:
                self._log.error("sandbox is not taken over from multus-cni", sandbox=sandbox_id, error=error.msg)

    async def _adopted(self, sandbox: Sandbox) -> Sandbox:
        try:
            links = await self._apply.links(sandbox.netns) or []
        except CniError as error:
            self._log.warning("links of an adopted sandbox are unknown", sandbox=sandbox.sandbox_id, error=error.msg)
            links = []
        attachments = []
        for attachment in sandbox.attachments:
            link = original(attachment.ifname, links)
            if link is not None:
                attachment = msgspec.structs.replace(
                    attachment, ifindex=link.index, kind=link.kind, mac=link.mac or None, mtu=link.mtu or None
                )
            attachments.append(attachment)
        sandbox = msgspec.structs.replace(sandbox, attachments=tuple(attachments))
        self._records.write(sandbox)
        self._log.info(
            "sandbox taken over from multus-cni",
            sandbox=sandbox.sandbox_id,
            pod=str(sandbox.pod_id),
            interfaces=[attachment.ifname for attachment in attachments],
        )
        return sandbox
