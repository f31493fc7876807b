"""Changes of a sandbox's default routes by netlink, as an element's ``default-route`` requests them.

Which routes change is decided in :mod:`services.multus.cni.default_routes`.
Next: :mod:`services.multus.sandboxes.deletion`.
"""

from collections.abc import Sequence

import msgspec

from schemas import cni
from services.common.netlink.errors import NetlinkFailure
from services.common.netlink.pool import NetnsPool
from services.multus.cni.default_routes import DEFAULT_DESTINATIONS, DefaultRouteChange, result_with_default_routes
from services.multus.cni.errors import CniError
from services.multus.records.sandbox import SandboxState
from services.multus.records.store import Records


class DefaultRoutes:
    """Changes default routes and the recorded results that name them.

    :param netns: the connections to network namespaces.
    :param records: the sandboxes' records.
    """

    def __init__(self, netns: NetnsPool, records: Records) -> None:
        self._netns = netns
        self._records = records

    async def change(self, sandbox: SandboxState, changes: Sequence[DefaultRouteChange]) -> SandboxState:
        """Change which attachments carry the default routes, and update their recorded results.

        :param sandbox: the sandbox's record.
        :param changes: the changes of :func:`services.multus.cni.default_routes.plan_default_routes`.
        :returns: the new record.
        :raises CniError: code 7, a route could not be changed.
        """
        # All old routes go first: the kernel refuses a second default route of a family with the same metric.
        for change in changes:
            await self._change_one(sandbox, change, drop=True)
        for change in changes:
            await self._change_one(sandbox, change, drop=False)
            attachment = sandbox.find(change.ifname)
            if attachment is not None and attachment.result is not None:
                result = result_with_default_routes(attachment.result, change)
                changed = msgspec.structs.replace(attachment, result=result)
                sandbox = sandbox.with_attachment(changed)
        if changes:
            self._records.write(sandbox)
        return sandbox

    async def _change_one(self, sandbox: SandboxState, change: DefaultRouteChange, *, drop: bool) -> None:
        attachment = sandbox.find(change.ifname)
        try:
            netns = await self._netns.open(sandbox.netns)
            index = attachment.ifindex if attachment else 0
            if not index:
                return  # a network without a link has no routes
            if drop:
                # Upstream does not recognize such a route any more, and leaves the old one in place (multus-cni#1552).
                dropped = {DEFAULT_DESTINATIONS[family] for family in change.drop}
                for route in [route for route in await netns.routes(index) if route.dst in dropped]:
                    await netns.delete_route(route)
                return
            for family, gateway in change.gateways:
                await netns.add_route(index, DEFAULT_DESTINATIONS[family], gw=gateway)
            # The kernel answers EEXIST also when another link holds the route, so the result is read back.
            present = {(route.dst, route.gw) for route in await netns.routes(index)}
        except NetlinkFailure as error:
            message = f"default-route of {change.ifname}: {error.message}"
            raise CniError(cni.CniErrorCode.INVALID_CONFIG, message) from error
        for family, gateway in change.gateways:
            if (DEFAULT_DESTINATIONS[family], gateway) not in present:
                message = f"default-route of {change.ifname}: another network keeps its default route"
                raise CniError(cni.CniErrorCode.INVALID_CONFIG, message)
