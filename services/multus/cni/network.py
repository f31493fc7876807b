"""One CNI network on one link: its chain of plugins, run in the order of the command.

ADD runs the plugins in order and passes ``prevResult`` on. DEL runs them in reverse. CHECK, STATUS and GC run them in
order. Source: CNI specification 1.1.0, section 3. Records are written by :mod:`services.multus.apply`.
Next: :mod:`services.multus.cni.executor`.
"""

from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import Any, Final

import msgspec

from schemas import cni
from services.common.domain.plugin_types import SHIMS, AllowedPlugins
from services.multus.cni import dhcp, results
from services.multus.cni.call import PodId, plugin_args
from services.multus.cni.conflist import AttachmentAttributes, NetworkConfig, plugin_stdin
from services.multus.cni.errors import CniError, DeadlineError, NotStartedError
from services.multus.cni.executor import Executor, Invocation

PASSTHRU: Final = "passthru"
"""The plugin that does nothing and returns an empty result. Upstream ships it as a program; hotnic does not run one."""
TUNING: Final = "tuning"
"""The reference plugin that sets sysctls."""
_IFNAME: Final = "IFNAME"
"""Stands for the link's name in a sysctl of tuning."""


@dataclass(frozen=True)
class AttachmentTarget:
    """The link that a network is attached to.

    :ivar sandbox_id: the sandbox's container id.
    :ivar netns: path of its network namespace; empty when it is gone or must not be touched.
    :ivar ifname: the link's name.
    :ivar pod: the sandbox's pod; ``None`` when it is unknown.
    :ivar link_gone: whether the sandbox has lost the link that ADD created.
    """

    sandbox_id: str
    netns: str
    ifname: str
    pod: PodId | None
    link_gone: bool = False

    def invocation(self, command: cni.CniCommand, attributes: AttachmentAttributes) -> Invocation:
        """Return a plugin's environment for this target."""
        args = plugin_args(self.pod, self.sandbox_id, attributes)
        return Invocation(command, self.sandbox_id, self.netns, self.ifname, args)

    def without_netns(self) -> "AttachmentTarget":
        """Return the same target for a DEL that must not touch a link, or cannot."""
        return replace(self, netns="")


def require_plugins(executor: Executor, network: NetworkConfig) -> None:
    """Check that every plugin of a network exists and may run, before the first one changes anything.

    :param executor: runs the plugins.
    :param network: the network.
    :raises CniError: code 999, a plugin is missing; code 7, it is the shim of a multus.
    """
    # Also the plugins that these run for addresses: the executor does not see those.
    refuse_plugins(network, AllowedPlugins())
    for _, plugin in _plugins_to_run(network):
        executor.find(plugin)


def refuse_plugins(network: NetworkConfig, allowed: AllowedPlugins) -> None:
    """Check that a network names only plugins that it may.

    :param network: the network.
    :param allowed: the plugins that it may name.
    :raises NotStartedError: code 7, one of them is not allowed.
    """
    if refused := allowed.find_refused(network.plugins):
        message = f"plugin type {refused} {cni.NOT_ALLOWED}"
        raise NotStartedError(cni.CniErrorCode.INVALID_CONFIG, message)


async def add(
    executor: Executor, network: NetworkConfig, target: AttachmentTarget, attributes: AttachmentAttributes
) -> cni.CniResult:
    """Run ADD. After a failure the caller sends DEL for what the earlier plugins created.

    :param executor: runs the plugins.
    :param network: the network.
    :param target: the link.
    :param attributes: the attachment's attributes.
    :returns: the result of the last plugin.
    :raises NotStartedError: the first plugin could not be started.
    :raises CniError: a plugin failed.
    """
    invocation = target.invocation(cni.CniCommand.ADD, attributes)
    # A chain that starts with passthru passes an empty prevResult to its next plugin; other chains pass none.
    empty = cni.CniResult(cni_version=cni.NEWEST_VERSION)
    result = empty if network.types[0] == PASSTHRU else None
    for number, (index, plugin) in enumerate(_plugins_to_run(network)):
        document = plugin_stdin(network, index, attributes, previous=result)
        try:
            printed = await _run(executor, plugin, invocation, document)
        except NotStartedError as error:
            # NotStartedError means that nothing was created, which is true of the first plugin only.
            if number:
                raise CniError(error.code, error.msg, error.details) from error
            raise
        result = results.decode(printed, plugin, network.version, document)
    return result if result is not None else empty


async def delete(
    executor: Executor,
    network: NetworkConfig,
    target: AttachmentTarget,
    attributes: AttachmentAttributes,
    previous: cni.CniResult | None,
    *,
    last_try: bool = False,
) -> CniError | None:
    """Run DEL in reverse order. The first failure ends it; a later DEL starts from the last plugin again.

    :param executor: runs the plugins.
    :param network: the network.
    :param target: the link.
    :param attributes: the attachment's attributes.
    :param previous: the result of ADD; ``None`` when it is unknown.
    :param last_try: whether there is no later DEL. The other plugins then run after a failure, too.
    :returns: why an address was not released, although DEL succeeded; normally ``None``.
    :raises DeadlineError: the call has no time left. Then the try does not count.
    :raises CniError: a plugin failed; with several failures that of the first one.
    """
    # DEL has `prevResult` since CNI 0.4.0.
    passed = previous if network.at_least("0.4.0") else None
    kept, failure = None, None
    for index, plugin in reversed(_plugins_to_run(network)):
        if plugin in SHIMS:
            continue  # it is never run, so it has made nothing
        document = plugin_stdin(network, index, attributes, previous=passed)
        try:
            kept = await _delete_one(executor, plugin, target, attributes, document) or kept
        except DeadlineError:
            raise
        except CniError as error:
            if not last_try:
                raise
            failure = failure or error
    if failure is not None:
        raise failure
    return kept


async def _delete_one(
    executor: Executor, plugin: str, target: AttachmentTarget, attributes: AttachmentAttributes, document: bytes
) -> CniError | None:
    """Run DEL of one plugin, and once more where its failure says that what it deletes is already gone.

    :returns: why an address was not released, although DEL succeeded; normally ``None``.
    """
    invocation = target.invocation(cni.CniCommand.DEL, attributes)
    try:
        await _run(executor, plugin, invocation, document)
    except CniError as error:
        if dhcp.is_daemon_missing(error):
            # Its leases went with its memory. Most plugins have not removed their link yet.
            await _run(executor, plugin, invocation, dhcp.without_leases(document))
            return error
        if not target.link_gone or not target.netns or error.code == cni.CniErrorCode.TRY_AGAIN_LATER:
            raise
        # DEL must succeed for what no longer exists (CNI specification, section 2); host-device's does not.
        elsewhere = target.without_netns().invocation(cni.CniCommand.DEL, attributes)
        await _run(executor, plugin, elsewhere, document)
    return None


async def check(
    executor: Executor,
    network: NetworkConfig,
    target: AttachmentTarget,
    attributes: AttachmentAttributes,
    previous: cni.CniResult | None,
) -> None:
    """Run CHECK. Nothing runs for a configuration older than 0.4.0 or with ``disableCheck``.

    A plugin that does not support CHECK is passed over: its refusal shows nothing about the attachment.

    :param executor: runs the plugins.
    :param network: the network.
    :param target: the link.
    :param attributes: the attachment's attributes.
    :param previous: the result of ADD.
    :raises CniError: the attachment is not as ADD left it.
    """
    if network.disable_check or not network.at_least("0.4.0"):
        return
    invocation = target.invocation(cni.CniCommand.CHECK, attributes)
    for index, plugin in _plugins_to_run(network):
        document = plugin_stdin(network, index, attributes, previous=previous)
        if plugin == TUNING:
            document = _tuning_check_stdin(document, target.ifname)
        try:
            await _run(executor, plugin, invocation, document)
        except CniError as error:
            if not _refuses_check(error):
                raise


async def status(executor: Executor, network: NetworkConfig) -> None:
    """Run STATUS. Nothing runs for a configuration older than 1.1.0.

    :param executor: runs the plugins.
    :param network: the network.
    :raises CniError: code 50 or 51, a plugin is not ready; code 1, it is older than STATUS.
    """
    if not network.at_least("1.1.0"):
        return
    for index, plugin in _plugins_to_run(network):
        document = plugin_stdin(network, index, AttachmentAttributes())
        try:
            await _run(executor, plugin, Invocation(cni.CniCommand.STATUS), document)
        except CniError as error:
            # A plugin that does not know STATUS expects a sandbox, and says that it is missing.
            if error.code not in (cni.CniErrorCode.UNKNOWN_CONTAINER, cni.CniErrorCode.INVALID_ENVIRONMENT):
                raise
            message = f"{error.msg}; the plugin does not support CNI {network.version} of network {network.name}"
            raise CniError(cni.CniErrorCode.INCOMPATIBLE_VERSION, message, error.details) from error


def has_gc(network: NetworkConfig) -> bool:
    """Return whether GC runs any plugin of a network."""
    return not network.disable_gc and network.at_least("1.1.0")


async def collect_garbage(executor: Executor, network: NetworkConfig, valid: Iterable[tuple[str, str]]) -> None:
    """Run GC: every plugin frees what belongs to none of the valid attachments.

    :param executor: runs the plugins.
    :param network: the network.
    :param valid: the valid attachments (container id and interface name).
    :raises DeadlineError: the call has no time left.
    :raises CniError: the first failure, after all plugins have run.
    """
    if not has_gc(network):
        return
    attachments: list[dict[str, Any]] = [{"containerID": sandbox, "ifname": ifname} for sandbox, ifname in valid]
    # libcni also writes the legacy key without `valid-`.
    extra = {"cni.dev/valid-attachments": attachments, "cni.dev/attachments": attachments}
    failure: CniError | None = None
    for index, plugin in _plugins_to_run(network):
        try:
            document = plugin_stdin(network, index, AttachmentAttributes(), extra=extra)
            await _run(executor, plugin, Invocation(cni.CniCommand.GC), document)
        except DeadlineError:
            raise
        except CniError as error:
            failure = failure or error
    if failure is not None:
        raise failure


async def _run(executor: Executor, plugin: str, invocation: Invocation, document: bytes) -> bytes:
    """Execute a plugin; if it fails because a daemon of the node does not run, the error says what to do."""
    try:
        return await executor.run(plugin, invocation, document)
    except CniError as error:
        if not dhcp.is_daemon_missing(error):
            raise
        raise dhcp.with_remedy(error) from error


def _refuses_check(error: CniError) -> bool:
    """Return whether a plugin does not support CHECK, in general or with this CNI version (codes of libcni's skel)."""
    unknown = error.code == cni.CniErrorCode.INVALID_ENVIRONMENT and "CNI_COMMAND" in error.msg
    # whereabouts: "CNI CHECK method is not implemented"
    return unknown or error.code == cni.CniErrorCode.INCOMPATIBLE_VERSION or error.msg.endswith("not implemented")


def _tuning_check_stdin(document: bytes, ifname: str) -> bytes:
    """Return the standard input with which tuning can CHECK sysctls of ``IFNAME``.

    Its ADD puts the link's name there. Its CHECK does not (seen in 1.1.1), and fails because there is no such file.
    """
    config = msgspec.json.decode(document)
    args = config.get("args")
    for holder in (config, args.get("cni") if isinstance(args, dict) else None):
        if isinstance(holder, dict) and isinstance(holder.get("sysctl"), dict):
            holder["sysctl"] = {
                key.replace(_IFNAME, ifname, 1): value
                for key, value in holder["sysctl"].items()
                # tuning takes a dot in a link's name for a separator.
                if _IFNAME not in key or "." not in ifname
            }
    return msgspec.json.encode(config)


def _plugins_to_run(network: NetworkConfig) -> list[tuple[int, str]]:
    """Return the plugins to execute, each with its position in the list."""
    return [(index, plugin) for index, plugin in enumerate(network.types) if plugin != PASSTHRU]
