"""DEL of a sandbox that no record knows: made before this daemon came to the node, its record lost, or undone already.

What it may have got is told by the configuration and the pod, while that is there; its links may go, for so does the
sandbox. Next: :mod:`services.multus.calls`.
"""

from typing import Final

from structlog.typing import FilteringBoundLogger

from services.multus.apply import Apply
from services.multus.call import Call
from services.multus.errors import CniError, together
from services.multus.observe import Observe
from services.multus.plan import Release

REMEMBERED: Final = 1024
"""Sandboxes of which it is remembered that nothing is left: a runtime asks for DEL more than once, and a networks
controller may come late with an ADD."""


class Unrecorded:
    """The way without a record."""

    def __init__(self, observe: Observe, apply: Apply, log: FilteringBoundLogger) -> None:
        self._observe = observe
        self._apply = apply
        self._log = log
        self._done: dict[str, None] = {}

    def __contains__(self, sandbox_id: str) -> bool:
        """Whether the sandbox has gone, and nothing is left of it."""
        return sandbox_id in self._done

    def made(self, sandbox_id: str) -> None:
        """The runtime makes a sandbox."""
        self._done.pop(sandbox_id, None)

    def done(self, sandbox_id: str) -> None:
        """Nothing is left of a sandbox."""
        self._done[sandbox_id] = None
        while len(self._done) > REMEMBERED:
            del self._done[next(iter(self._done))]

    async def undo(self, call: Call) -> None:
        """Run DEL for whatever the sandbox may have, the last first. The caller holds its lock.

        :raises CniError: of all the networks whose plugins failed.
        """
        if call.sandbox_id in self:
            return
        try:
            wanted = await self._observe.traces(call)
        except CniError as error:
            self._log.warning("nothing is known of the sandbox", sandbox=call.sandbox_id, error=error.msg)
            return
        netns = call.netns if await self._apply.links(call.netns) is not None else ""
        failures: list[CniError] = []
        for one in reversed(wanted):
            action = Release(one.network, one.ifname, one.attributes, with_netns=bool(netns))
            try:
                await self._apply.release(action, call.sandbox_id, netns, call.pod)
            except CniError as error:
                failures.append(error)
        self._apply.forget(call.netns)
        if failures:
            raise together(failures)
        self.done(call.sandbox_id)
