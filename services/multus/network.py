"""One CNI network on one link: the chain of its plugins, in the order of the verb.

ADD in order with ``prevResult`` handed on; DEL in reverse; CHECK, STATUS and GC in order.
Source: CNI specification 1.1.0, section 3. No record is kept here, see :mod:`services.multus.apply`.
"""

from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import Any, Final

from schemas import cni
from services.multus import results
from services.multus.call import PodId, plugin_args
from services.multus.conflist import Attributes, Network, stdin
from services.multus.errors import CniError, NotStartedError
from services.multus.executor import Executor, Invocation

PASSTHRU: Final = "passthru"
"""The plugin that does nothing and answers an empty result: upstream ships it as a program, here it needs none."""


@dataclass(frozen=True)
class Place:
    """Where a network is to be attached: a link name in a sandbox's network namespace."""

    sandbox_id: str
    netns: str
    ifname: str
    pod: PodId | None

    def invocation(self, command: cni.Command, attributes: Attributes) -> Invocation:
        """The environment of a plugin for it."""
        args = plugin_args(self.pod, self.sandbox_id, attributes)
        return Invocation(command, self.sandbox_id, self.netns, self.ifname, args)

    def without_netns(self) -> "Place":
        """The same, for a DEL that must not, or cannot, touch a link."""
        return replace(self, netns="")


def look_up(run: Executor, network: Network) -> None:
    """Make sure that every plugin is there, before the first one makes anything.

    :raises CniError: one is missing.
    """
    for _, plugin in _steps(network):
        run.find(plugin)


async def add(run: Executor, network: Network, place: Place, attributes: Attributes) -> cni.CniResult:
    """ADD. What a failed chain has made stays; the caller sends DEL.

    :raises NotStartedError: the first plugin could not be started. :raises CniError: a plugin failed.
    """
    call = place.invocation(cni.Command.ADD, attributes)
    # Passthru's answer is what the next plugin finds as the one before it; without passthru there is none.
    empty = cni.CniResult(cni_version=cni.NEWEST_VERSION)
    result = empty if network.types[0] == PASSTHRU else None
    for number, (index, plugin) in enumerate(_steps(network)):
        try:
            printed = await run.run(plugin, call, stdin(network, index, attributes, previous=result))
        except NotStartedError as error:
            if number:
                raise CniError(error.code, error.msg, error.details) from error
            raise
        result = results.decode(printed, plugin)
    return result if result is not None else empty


async def delete(
    run: Executor, network: Network, place: Place, attributes: Attributes, previous: cni.CniResult | None
) -> None:
    """DEL, in reverse; the first failure ends it, and a later DEL begins again.

    :raises CniError: a plugin failed.
    """
    call = place.invocation(cni.Command.DEL, attributes)
    shown = previous if network.at_least("0.4.0") else None
    for index, plugin in reversed(_steps(network)):
        await run.run(plugin, call, stdin(network, index, attributes, previous=shown))


async def check(
    run: Executor, network: Network, place: Place, attributes: Attributes, previous: cni.CniResult | None
) -> None:
    """CHECK; does nothing for a configuration older than 0.4.0 or with ``disableCheck``.

    :raises CniError: something is not as ADD left it.
    """
    if network.disable_check or not network.at_least("0.4.0"):
        return
    call = place.invocation(cni.Command.CHECK, attributes)
    for index, plugin in _steps(network):
        await run.run(plugin, call, stdin(network, index, attributes, previous=previous))


async def status(run: Executor, network: Network) -> None:
    """STATUS; does nothing for a configuration older than 1.1.0.

    :raises CniError: code 50 or 51 when a plugin is not ready.
    """
    if not network.at_least("1.1.0"):
        return
    for index, plugin in _steps(network):
        await run.run(plugin, Invocation(cni.Command.STATUS), stdin(network, index, Attributes()))


async def collect(run: Executor, network: Network, valid: Iterable[tuple[str, str]]) -> None:
    """GC: every plugin frees what belongs to none of the valid attachments (container id and interface name).

    :raises CniError: the first failure, after all plugins had their turn.
    """
    if network.disable_gc or not network.at_least("1.1.0"):
        return
    attachments: list[dict[str, Any]] = [{"containerID": sandbox, "ifname": ifname} for sandbox, ifname in valid]
    extra = {"cni.dev/valid-attachments": attachments, "cni.dev/attachments": attachments}
    failure: CniError | None = None
    for index, plugin in _steps(network):
        try:
            document = stdin(network, index, Attributes(), extra=extra)
            await run.run(plugin, Invocation(cni.Command.GC), document)
        except CniError as error:
            failure = failure or error
    if failure is not None:
        raise failure


def _steps(network: Network) -> list[tuple[int, str]]:
    """The plugins to execute, each with its place in the list."""
    return [(index, plugin) for index, plugin in enumerate(network.types) if plugin != PASSTHRU]
