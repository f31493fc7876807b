"""CNI configurations: parsed from text into a list of plugins, and encoded as one plugin's standard input.

Pure. A configuration keeps its exact text, unknown keys included, because DEL must pass a plugin what ADD passed it.
Source: CNI specification 1.1.0, sections 1 and 3, as libcni reads it (a single plugin is a list of one).
Plugins are run by :mod:`services.multus.cni.executor`. Next: :mod:`services.multus.cni.results`.
"""

import hashlib
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Final

import msgspec

from schemas import cni
from schemas.inputs import Edge, InputDecoder, RejectedInput, RejectReason, check_count, reject, rejecting
from schemas.kubernetes.networks import canonical_address, canonical_mac, keeps_args
from services.multus.cni import results
from services.multus.cni.errors import CniError

_TYPE: Final = re.compile(r"[!-.0-~]{1,255}")
"""A plugin's type: a file name. With a slash it would be a path out of the plugin directories."""
_NAME: Final = re.compile(r"[a-zA-Z0-9][a-zA-Z0-9_.\-]*")
# A plugin's configuration may still name 0.3.0, whose results have the form of 0.3.1.
_VERSIONS: Final = (*cni.EARLY_VERSIONS, "0.3.0", *cni.SUPPORTED_VERSIONS)
_documents: Final = {edge: InputDecoder(edge, dict[str, Any]) for edge in (Edge.MULTUS, Edge.NETWORK, Edge.FILE)}
# A caller of /delegate adds an attachment's settings to the configuration of its network.
_networks: Final = _documents | {
    edge: InputDecoder(edge, dict[str, Any], max_bytes=size)
    for edge, size in ((Edge.MULTUS, 2 * cni.MAX_CONFIG_BYTES), (Edge.NETWORK, cni.MAX_CONFIG_BYTES))
}
_recorded: Final = msgspec.json.Decoder(dict[str, Any])


@dataclass(frozen=True)
class NetworkConfig:
    """A CNI configuration list.

    :ivar name: the network's name.
    :ivar version: the CNI version of its plugins' input and output.
    :ivar plugins: the plugins' own configurations.
    :ivar text: the configuration as it was received.
    :ivar disable_check: whether CHECK does nothing.
    :ivar disable_gc: whether GC does nothing.
    """

    name: str
    version: str
    plugins: tuple[Mapping[str, Any], ...]
    text: str
    disable_check: bool = False
    disable_gc: bool = False

    @property
    def types(self) -> list[str]:
        """The plugins' types, in order."""
        return [str(plugin["type"]) for plugin in self.plugins]

    def at_least(self, version: str) -> bool:
        """Return whether the list's CNI version is this one or a newer one."""
        return _number(self.version) >= _number(version)

    def capabilities(self) -> set[str]:
        """Return the capabilities that any of the plugins declares."""
        return {name for plugin in self.plugins for name, on in _declared(plugin).items() if on is True}


@dataclass(frozen=True)
class AttachmentAttributes:
    """What one attachment requests of its plugins in addition to the configuration.

    :ivar runtime: ``runtimeConfig`` by capability (``mac``, ``ips``, ``bandwidth``, ``portMappings``, …).
    :ivar cni_args: merged into ``args.cni`` of every plugin; overrides the configuration's own keys.
    """

    runtime: Mapping[str, Any] = field(default_factory=dict)
    cni_args: Mapping[str, Any] = field(default_factory=dict)

    @property
    def mac(self) -> str | None:
        """The requested MAC address."""
        return self.runtime.get("mac")

    @property
    def ips(self) -> list[str]:
        """The requested addresses."""
        return list(self.runtime.get("ips") or ())


def parse(
    text: str | bytes, *, name: str | None = None, version: str = "1.0.0", edge: Edge = Edge.NETWORK
) -> NetworkConfig:
    """Parse a CNI configuration: a list, or a single plugin. Size and number of plugins are bounded but for files.

    :param text: the configuration.
    :param name: the network's name where the configuration has none (the NAD's name).
    :param version: the CNI version where the configuration has none.
    :param edge: where the configuration comes from.
    :raises CniError: the text is not a CNI configuration.
    """
    try:
        with rejecting(edge):
            text = text.decode() if isinstance(text, bytes) else text
        document = _networks[edge].decode(text)
    except RejectedInput as error:
        raise _not_an_object(error) from error
    network = _network(document, text, name, version, edge)
    if edge is not Edge.FILE:
        count = len(network.plugins)
        try:
            check_count(edge, count, cni.MAX_PLUGINS, f"CNI configuration has {count} plugins")
        except RejectedInput as error:
            raise CniError(cni.CniErrorCode.INVALID_CONFIG, str(error)) from error
    return network


def parse_recorded(text: str, *, name: str | None = None, version: str = "1.0.0") -> NetworkConfig:
    """Parse the CNI configuration of an attachment that exists.

    It may be larger and deeper than what is attached today: only its DEL releases what ADD has acquired.

    :raises CniError: the text is not a CNI configuration.
    """
    try:
        with rejecting(Edge.FILE):
            document = _recorded.decode(text)
    except RejectedInput as error:
        raise _not_an_object(error) from error
    return _network(document, text, name, version, Edge.FILE)


def _network(document: dict[str, Any], text: str, name: str | None, version: str, edge: Edge) -> NetworkConfig:
    found = document.get("name") or name
    if not isinstance(found, str) or not _NAME.fullmatch(found):
        raise _invalid(edge, f"CNI configuration has no usable network name: {found!r}")
    chosen = _version(document, version, edge)
    plugins = document.get("plugins")
    # As upstream: a `type` at the top makes it a single plugin.
    if "type" in document:
        plugins = [document]
    if not isinstance(plugins, list) or not plugins:
        raise _invalid(edge, f"CNI configuration {found!r} has neither a type nor plugins")
    for index, plugin in enumerate(plugins):
        _check_plugin(found, index, plugin, edge)
    return NetworkConfig(
        name=found,
        version=chosen,
        plugins=tuple(plugins),
        text=text,
        disable_check=_flag(document, "disableCheck"),
        disable_gc=_flag(document, "disableGC"),
    )


def with_plugins(network: NetworkConfig, plugins: Sequence[Mapping[str, Any]]) -> NetworkConfig:
    """Return the network with other plugins. Its text is rewritten to match, because the record keeps it for DEL.

    :param network: the network.
    :param plugins: the plugins' configurations.
    :raises CniError: code 7, one of them is invalid.
    """
    for index, plugin in enumerate(plugins):
        _check_plugin(network.name, index, plugin, Edge.FILE)
    document = {
        "cniVersion": network.version,
        "name": network.name,
        "disableCheck": network.disable_check,
        "disableGC": network.disable_gc,
        "plugins": list(plugins),
    }
    return replace(network, plugins=tuple(plugins), text=msgspec.json.encode(document).decode())


def with_device(network: NetworkConfig, device: str) -> NetworkConfig:
    """Return the network with a device plugin's device in the configuration of every plugin."""
    # Plugins read one key or the other; upstream sets both.
    return with_plugins(network, [{**plugin, "deviceID": device, "pciBusID": device} for plugin in network.plugins])


def decode_object(text: bytes, edge: Edge) -> dict[str, Any]:
    """Decode a configuration's JSON object, multus' own keys included.

    :param text: the configuration; empty counts as an empty object.
    :param edge: where the configuration comes from.
    :raises CniError: code 6, it is not a JSON object.
    """
    try:
        return _documents[edge].decode(text or b"{}")
    except RejectedInput as error:
        raise _not_an_object(error) from error


def plugin_stdin(
    network: NetworkConfig,
    index: int,
    attributes: AttachmentAttributes,
    *,
    previous: cni.CniResult | None = None,
    extra: Mapping[str, Any] | None = None,
) -> bytes:
    """Return what the plugin at ``index`` reads on standard input.

    That is the plugin's own configuration with the network's name and version, ``prevResult`` and ``runtimeConfig``.
    Keys of the configuration's own ``runtimeConfig`` stay if the plugin declares them; the attachment's values override
    them.

    :param network: the network.
    :param index: the plugin's position in the list.
    :param attributes: the attachment's attributes.
    :param previous: the result of the plugin before it; ``None`` when there is none.
    :param extra: further top-level keys (GC's list of valid attachments).
    """
    document = dict(network.plugins[index])
    document["name"] = network.name
    document["cniVersion"] = network.version
    declared = _declared(document)
    requested = {**(document.pop("runtimeConfig", None) or {}), **attributes.runtime}
    runtime = {key: value for key, value in requested.items() if declared.get(key) is True and value}
    if runtime:
        document["runtimeConfig"] = runtime
    if attributes.cni_args:
        args = dict(document.get("args") or {})
        args["cni"] = {**(args.get("cni") or {}), **attributes.cni_args}
        document["args"] = args
    # A stale result in the configuration must not reach the plugin.
    document.pop("prevResult", None)
    if previous is not None:
        document["prevResult"] = results.down_convert(previous, network.version)
    document.update(extra or {})
    return msgspec.json.encode(document)


def fingerprint(network: NetworkConfig, attributes: AttachmentAttributes) -> str:
    """Return a digest that is equal for two requests for the same attachment.

    The digest covers configuration, addresses, MAC and ``cni-args``. Notation does not count (spaces, key order, a name
    that was filled in). What only one of ``/cni`` and ``/delegate`` can pass does not count either, so that each
    recognizes an attachment that the other added.

    :param network: the network, without a device.
    :param attributes: the attachment's attributes.
    """
    document = {
        "name": network.name,
        "version": network.version,
        "plugins": [
            {key: value for key, value in plugin.items() if key not in ("name", "cniVersion", "runtimeConfig")}
            for plugin in network.plugins
        ],
        "mac": (attributes.mac or "").lower(),
        "ips": attributes.ips,
        "cni-args": dict(attributes.cni_args),
    }
    return hashlib.sha256(json.dumps(document, sort_keys=True, default=str).encode()).hexdigest()[:32]


def is_same_request(
    network: NetworkConfig, attributes: AttachmentAttributes, before: str, earlier: AttachmentAttributes
) -> bool:
    """Return whether a request is for the attachment that an earlier one has made.

    Another notation is no difference, and neither are keys that were added to ``cni-args``.

    :param network: the network, without a device.
    :param attributes: the request's attributes.
    :param before: the fingerprint of the earlier request.
    :param earlier: its attributes.
    """
    runtime = dict(attributes.runtime)
    if earlier.mac and canonical_mac(earlier.mac) == canonical_mac(attributes.mac):
        runtime["mac"] = earlier.mac
    if [canonical_address(ip) for ip in earlier.ips] == [canonical_address(ip) for ip in attributes.ips]:
        runtime["ips"] = earlier.ips
    args = earlier.cni_args if keeps_args(earlier.cni_args, attributes.cni_args) else attributes.cni_args
    return fingerprint(network, AttachmentAttributes(runtime, args)) == before


def _version(document: Mapping[str, Any], fallback: str, edge: Edge) -> str:
    listed = document.get("cniVersions")
    offered: list[Any] = [document.get("cniVersion") or fallback, *(listed if isinstance(listed, list) else ())]
    known: list[str] = [version for version in offered if version in _VERSIONS]
    if not known:
        text = f"CNI version {offered[0]!r} is not supported; {', '.join(_VERSIONS)} are"
        raise _invalid(edge, text, cni.CniErrorCode.INCOMPATIBLE_VERSION)
    # CNI 1.1.0: the highest supported one of `cniVersion` and `cniVersions`.
    return max(known, key=_number)


def _check_plugin(network: str, index: int, plugin: object, edge: Edge) -> None:
    kind = plugin.get("type") if isinstance(plugin, dict) else None
    if not isinstance(kind, str) or not _TYPE.fullmatch(kind):
        raise _invalid(edge, f"plugin {index} of {network!r} has no usable type: {kind!r}")
    assert isinstance(plugin, dict)  # for mypy; `kind` is a string only then
    for key in ("capabilities", "args", "runtimeConfig"):
        if not isinstance(plugin.get(key) or {}, dict):
            raise _invalid(edge, f"{key} of plugin {kind!r} in {network!r} is not an object")
    if not isinstance((plugin.get("args") or {}).get("cni") or {}, dict):
        raise _invalid(edge, f"args.cni of plugin {kind!r} in {network!r} is not an object")


def _invalid(edge: Edge, text: str, code: int = cni.CniErrorCode.INVALID_CONFIG) -> CniError:
    return CniError(code, str(reject(edge, RejectReason.INVALID, text)))


def _not_an_object(error: RejectedInput) -> CniError:
    return CniError(cni.CniErrorCode.DECODE_FAILURE, f"CNI configuration is not a JSON object: {error}")


def _declared(plugin: Mapping[str, Any]) -> Mapping[str, Any]:
    return plugin.get("capabilities") or {}


def _flag(document: Mapping[str, Any], key: str) -> bool:
    value = document.get(key)
    # libcni accepts the text "true" as well.
    return value is True or (isinstance(value, str) and value.lower() == "true")


def _number(version: str) -> tuple[int, ...]:
    return tuple(int(part) for part in version.split("."))
