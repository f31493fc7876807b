"""CNI configurations: from text to a list of plugins, and from there to what one plugin reads on standard input.

Pure. A configuration is kept to the letter, unknown keys included: DEL has to show a plugin what ADD showed it.
Source: CNI specification 1.1.0, sections 1 and 3, with libcni's reading (a lone plugin is a list of one).
Not here: running a plugin, see :mod:`services.multus.executor`.
"""

import hashlib
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Final

import msgspec

from schemas import cni
from services.multus import results
from services.multus.errors import CniError

_NAME: Final = re.compile(r"[a-zA-Z0-9][a-zA-Z0-9_.\-]*")
_VERSIONS: Final = ("0.3.0", *cni.SUPPORTED_VERSIONS)


@dataclass(frozen=True)
class Network:
    """A CNI configuration list, ready to be run.

    :ivar text: the configuration as it came. :ivar version: the CNI version its plugins are spoken to in.
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
        """Whether the list is spoken to in that CNI version or a newer one."""
        return _number(self.version) >= _number(version)

    def capabilities(self) -> set[str]:
        """What any of its plugins declares to understand as ``runtimeConfig``."""
        return {name for plugin in self.plugins for name, on in _declared(plugin).items() if on is True}


@dataclass(frozen=True)
class Attributes:
    """What one attachment asks of its plugins beside the configuration.

    :ivar runtime: ``runtimeConfig`` by capability (``mac``, ``ips``, ``bandwidth``, ``portMappings``, …).
    :ivar cni_args: merged into ``args.cni`` of every plugin; these win.
    """

    runtime: Mapping[str, Any] = field(default_factory=dict)
    cni_args: Mapping[str, Any] = field(default_factory=dict)

    @property
    def mac(self) -> str | None:
        """The MAC address asked for."""
        return self.runtime.get("mac")

    @property
    def ips(self) -> list[str]:
        """The addresses asked for."""
        return list(self.runtime.get("ips") or ())


def parse(text: str | bytes, *, name: str | None = None, version: str = "1.0.0") -> Network:
    """Read a CNI configuration, a lone plugin's or a list.

    :param name: stands in for a missing name (a NAD's own). :param version: stands in for a missing ``cniVersion``.
    :raises CniError: it is not one; the message says where.
    """
    try:
        text = text.decode() if isinstance(text, bytes) else text
        document = msgspec.json.decode(text, type=dict[str, Any])
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise CniError(cni.Code.DECODE_FAILURE, f"CNI configuration is not a JSON object: {error}") from error
    found = document.get("name") or name
    if not isinstance(found, str) or not _NAME.fullmatch(found):
        raise CniError(cni.Code.INVALID_CONFIG, f"CNI configuration has no usable network name: {found!r}")
    chosen = _version(document, version)
    plugins = document.get("plugins")
    if "type" in document:
        plugins = [document]
    if not isinstance(plugins, list) or not plugins:
        raise CniError(cni.Code.INVALID_CONFIG, f"CNI configuration {found!r} has neither a type nor plugins")
    for index, plugin in enumerate(plugins):
        _check_plugin(found, index, plugin)
    return Network(
        name=found,
        version=chosen,
        plugins=tuple(plugins),
        text=text,
        disable_check=_flag(document, "disableCheck"),
        disable_gc=_flag(document, "disableGC"),
    )


def with_plugins(network: Network, plugins: Sequence[Mapping[str, Any]]) -> Network:
    """The network with other plugins, its text rewritten to match: that is what the record keeps for DEL.

    :raises CniError: one is none.
    """
    for index, plugin in enumerate(plugins):
        _check_plugin(network.name, index, plugin)
    document = {
        "cniVersion": network.version,
        "name": network.name,
        "disableCheck": network.disable_check,
        "disableGC": network.disable_gc,
        "plugins": list(plugins),
    }
    return replace(network, plugins=tuple(plugins), text=msgspec.json.encode(document).decode())


def with_device(network: Network, device: str) -> Network:
    """The network with a device of a device plugin in every plugin's configuration."""
    return with_plugins(network, [{**plugin, "deviceID": device, "pciBusID": device} for plugin in network.plugins])


def top_level(text: bytes) -> dict[str, Any]:
    """The keys of a configuration, of multus' own among them.

    :raises CniError: it is not a JSON object.
    """
    try:
        return msgspec.json.decode(text or b"{}", type=dict[str, Any])
    except msgspec.DecodeError as error:
        raise CniError(cni.Code.DECODE_FAILURE, f"CNI configuration is not a JSON object: {error}") from error


def stdin(
    network: Network,
    index: int,
    attributes: Attributes,
    *,
    previous: cni.CniResult | None = None,
    extra: Mapping[str, Any] | None = None,
) -> bytes:
    """What the plugin at ``index`` reads: its own object, name and version, ``prevResult`` and ``runtimeConfig``.

    A ``runtimeConfig`` that the object brings along is kept as far as the plugin declares it; what is asked beside the
    configuration wins.

    :param extra: further top-level keys (GC's list of valid attachments).
    """
    document = dict(network.plugins[index])
    document["name"] = network.name
    document["cniVersion"] = network.version
    declared = _declared(document)
    asked = {**(document.pop("runtimeConfig", None) or {}), **attributes.runtime}
    runtime = {key: value for key, value in asked.items() if declared.get(key) is True and value}
    if runtime:
        document["runtimeConfig"] = runtime
    if attributes.cni_args:
        args = dict(document.get("args") or {})
        args["cni"] = {**(args.get("cni") or {}), **attributes.cni_args}
        document["args"] = args
    document.pop("prevResult", None)
    if previous is not None:
        document["prevResult"] = results.down_convert(previous, network.version)
    document.update(extra or {})
    return msgspec.json.encode(document)


def fingerprint(network: Network, attributes: Attributes) -> str:
    """Equal for two requests for the same attachment: configuration, addresses, MAC and ``cni-args``.

    Spelling does not count (spaces, order of keys, a name that was filled in), and neither does what only one of
    ``/cni`` and ``/delegate`` can carry: an attachment made by one is recognised by the other.
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


def _version(document: Mapping[str, Any], fallback: str) -> str:
    offered: list[str] = [document.get("cniVersion") or fallback, *(document.get("cniVersions") or ())]
    known = [version for version in offered if version in _VERSIONS]
    if not known:
        raise CniError(
            cni.Code.INCOMPATIBLE_VERSION,
            f"CNI version {offered[0]!r} is not supported; {', '.join(_VERSIONS)} are",
        )
    return max(known, key=_number)


def _check_plugin(network: str, index: int, plugin: object) -> None:
    kind = plugin.get("type") if isinstance(plugin, dict) else None
    if not isinstance(kind, str) or not kind or "/" in kind:
        raise CniError(cni.Code.INVALID_CONFIG, f"plugin {index} of {network!r} has no usable type: {kind!r}")
    assert isinstance(plugin, dict)
    for key in ("capabilities", "args", "runtimeConfig"):
        if not isinstance(plugin.get(key) or {}, dict):
            raise CniError(cni.Code.INVALID_CONFIG, f"{key} of plugin {kind!r} in {network!r} is not an object")
    if not isinstance((plugin.get("args") or {}).get("cni") or {}, dict):
        raise CniError(cni.Code.INVALID_CONFIG, f"args.cni of plugin {kind!r} in {network!r} is not an object")


def _declared(plugin: Mapping[str, Any]) -> Mapping[str, Any]:
    return plugin.get("capabilities") or {}


def _flag(document: Mapping[str, Any], key: str) -> bool:
    value = document.get(key)
    return value is True or (isinstance(value, str) and value.lower() == "true")


def _number(version: str) -> tuple[int, ...]:
    return tuple(int(part) for part in version.split("."))
