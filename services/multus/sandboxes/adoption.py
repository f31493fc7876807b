"""Adoption of sandboxes that multus-cni created: find their links and write records for them.

All sandboxes are adopted when the daemon starts. A single one is adopted when a call names a sandbox without a record,
because upstream's files do not always hold everything that a record needs. Reading those files is the work of
:mod:`services.multus.records.upstream`. Next: :mod:`services.multus.call_handler`.
"""

import msgspec

from services.common.telemetry.logs import Log
from services.multus.apply import Applier
from services.multus.cni.call import CniCall
from services.multus.cni.errors import CniError
from services.multus.records.attachment_link import find_original_link
from services.multus.records.sandbox import SandboxState
from services.multus.records.store import Records
from services.multus.records.upstream import UpstreamCache


class Adoption:
    """Creates records from the files that multus-cni left on the node."""

    def __init__(self, cache: UpstreamCache, records: Records, applier: Applier, log: Log) -> None:
        self._cache = cache
        self._records = records
        self._applier = applier
        self._log = log

    async def read_or_adopt(self, call: CniCall) -> SandboxState | None:
        """Return the record of a call's sandbox, created from upstream's files if there is none yet.

        The caller holds the sandbox's lock.

        :param call: the call; it supplies the network namespace and the pod where the files do not name them.
        :returns: the record; ``None`` when neither a record nor a file knows the sandbox.
        :raises CniError: the record cannot be read or written.
        """
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
        return await self._adopt(found)

    async def adopt_all(self) -> None:
        """Adopt every sandbox whose files name its network namespace and its pod."""
        for sandbox_id in self._cache.sandbox_ids():
            try:
                async with self._records.lock(sandbox_id):
                    if self._records.read(sandbox_id) is None:
                        found = self._cache.read(sandbox_id)
                        if found is not None and found.netns and found.pod:
                            await self._adopt(found)
            except CniError as error:
                self._log.error("adoption from multus-cni failed", sandbox=sandbox_id, error=error.msg)
            except Exception as error:
                self._log.error("unexpected adoption error", sandbox=sandbox_id, exc_info=error)

    async def _adopt(self, sandbox: SandboxState) -> SandboxState:
        try:
            links = await self._applier.list_links(sandbox.netns) or []
        except CniError as error:
            self._log.warning("link list of an adopted sandbox failed", sandbox=sandbox.sandbox_id, error=error.msg)
            # Without an index, DEL finds the link by its name, as upstream does.
            links = []
        attachments = []
        for attachment in sandbox.attachments:
            link = find_original_link(attachment.ifname, links)
            if link is not None:
                attachment = msgspec.structs.replace(
                    attachment, ifindex=link.index, kind=link.kind, mac=link.mac or None, mtu=link.mtu or None
                )
            attachments.append(attachment)
        sandbox = msgspec.structs.replace(sandbox, attachments=tuple(attachments))
        self._records.write(sandbox)
        self._log.info(
            "sandbox adopted from multus-cni",
            sandbox=sandbox.sandbox_id,
            pod=str(sandbox.pod_id),
            interfaces=[attachment.ifname for attachment in attachments],
        )
        return sandbox
