"""A request on the socket, decoded and checked: which command, for which sandbox, link and pod, with what asked.

Pure, and total: any bytes give a :class:`Call` or an exception that says what is wrong with them.
Source: multus-cni v4 ``pkg/server`` (which keys must exist, which may be empty). Next: :mod:`services.multus.server`.
"""

import ipaddress
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Final

import msgspec

from schemas import cni, multus
from schemas.networks import NetworkSelectionElement, valid_link_name
from services.multus.conflist import Attributes, top_level
from services.multus.errors import CniError

_decoder = msgspec.json.Decoder(multus.CniRequest | None)
_WITHOUT_POD: Final = frozenset({cni.Command.STATUS, cni.Command.GC})
_SANDBOX_ID: Final = frozenset("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789_.-")
_MAX_SANDBOX_ID: Final = 128
_OF_ONE_ATTACHMENT: Final = frozenset({"mac", "ips", "infinibandGUID", "deviceID"})
_HEX: Final = "[0-9A-Fa-f]"
_MAC: Final = re.compile(
    # 6, 8 or 20 bytes (Ethernet, EUI-64, InfiniBand), in one of the three spellings that Go's net.ParseMAC reads.
    rf"{_HEX}{{2}}([:-])(?:{_HEX}{{2}}\1){{4}}(?:(?:{_HEX}{{2}}\1){{2}}|(?:{_HEX}{{2}}\1){{14}})?{_HEX}{{2}}"
    rf"|{_HEX}{{4}}(?:\.{_HEX}{{4}}){{2}}(?:\.{_HEX}{{4}}|(?:\.{_HEX}{{4}}){{7}})?"
)


class MalformedError(ValueError):
    """The body is not a request at all."""


@dataclass(frozen=True)
class PodId:
    """The pod that a call is about; ``uid`` is empty when the runtime did not say."""

    namespace: str
    name: str
    uid: str = ""

    def __str__(self) -> str:
        return f"{self.namespace}/{self.name}"


@dataclass(frozen=True)
class Call:
    """A CNI call.

    :ivar netns: path of the network namespace as the runtime sees it; empty when it is gone (DEL).
    :ivar pod: ``None`` for GC and for STATUS without one.
    """

    command: cni.Command
    config: bytes
    sandbox_id: str = ""
    netns: str = ""
    ifname: str = "eth0"
    pod: PodId | None = None
    attributes: Attributes = field(default_factory=Attributes)

    @property
    def document(self) -> dict[str, Any]:
        """The keys of the configuration.

        :raises CniError: it is not a JSON object.
        """
        return top_level(self.config)


def decode(body: bytes) -> Call:
    """Read a request body.

    :raises MalformedError: it is no request. :raises CniError: it is one, with something missing or wrong in it.
    """
    try:
        request = _decoder.decode(body)
    except msgspec.DecodeError as error:
        raise MalformedError(f"request body: {error}") from error
    if request is None:
        raise MalformedError("request body: null")
    try:
        config = request.config_bytes()
    except ValueError as error:
        raise MalformedError(f"request body: config is not base64: {error}") from error
    command = _command(request.env)
    if command in _WITHOUT_POD:
        return Call(command, config)
    for key in ("CNI_CONTAINERID", "CNI_NETNS", "CNI_ARGS"):
        if key not in request.env:
            raise CniError(cni.Code.INVALID_ENVIRONMENT, f"{key} is missing in the request's environment")
    sandbox_id = request.env["CNI_CONTAINERID"]
    if not valid_sandbox_id(sandbox_id):
        raise CniError(cni.Code.INVALID_ENVIRONMENT, f"CNI_CONTAINERID {sandbox_id!r} is not a container id")
    ifname = request.env.get("CNI_IFNAME", "eth0")
    if not valid_link_name(ifname):
        raise CniError(cni.Code.INVALID_ENVIRONMENT, f"CNI_IFNAME {ifname!r} is not a link name of 1 to 15 bytes")
    netns = request.env["CNI_NETNS"]
    if command != cni.Command.DEL and not netns:
        raise CniError(cni.Code.INVALID_ENVIRONMENT, f"CNI_NETNS is empty; {command} needs a network namespace")
    return Call(
        command=command,
        config=config,
        sandbox_id=sandbox_id,
        netns=netns,
        ifname=ifname,
        pod=_pod(request.env["CNI_ARGS"]),
        attributes=_attributes(request.interface_attributes),
    )


def valid_sandbox_id(text: str) -> bool:
    """Whether this is a container id (CNI specification); one that is also names a file safely."""
    return 0 < len(text) <= _MAX_SANDBOX_ID and text[0].isascii() and text[0].isalnum() and set(text) <= _SANDBOX_ID


def attributes_of(element: NetworkSelectionElement) -> Attributes:
    """What an element of the networks annotation asks of its plugins.

    :raises CniError: its MAC or one of its addresses is none.
    """
    runtime = {
        "mac": element.mac,
        "ips": element.ips,
        "infinibandGUID": element.infiniband_guid,
        "bandwidth": msgspec.to_builtins(element.bandwidth) if element.bandwidth else None,
        "portMappings": msgspec.to_builtins(element.port_mappings) if element.port_mappings else None,
        "deviceID": element.device_id,
    }
    return _checked(Attributes({key: value for key, value in runtime.items() if value}, dict(element.cni_args or {})))


def runtime_base(config: Mapping[str, Any]) -> dict[str, Any]:
    """What the runtime itself hands to every plugin that declares it (``portMappings``, ``dns``, …).

    What belongs to one attachment alone is not among it.
    """
    return {key: value for key, value in runtime_of(config).items() if key not in _OF_ONE_ATTACHMENT}


def runtime_of(config: Mapping[str, Any]) -> dict[str, Any]:
    """All that the runtime hands along with a configuration."""
    given = config.get("runtimeConfig")
    return given if isinstance(given, dict) else {}


def plugin_args(pod: PodId | None, sandbox_id: str, attributes: Attributes) -> str:
    """``CNI_ARGS`` for a plugin, in multus' order; ``MAC`` and ``IP`` serve plugins without the capability."""
    args = [("IgnoreUnknown", "true")]
    if pod is not None:
        args += [("K8S_POD_NAMESPACE", pod.namespace), ("K8S_POD_NAME", pod.name)]
        args += [("K8S_POD_INFRA_CONTAINER_ID", sandbox_id), ("K8S_POD_UID", pod.uid)]
    if attributes.mac:
        args.append(("MAC", attributes.mac))
    if attributes.ips:
        args.append(("IP", ",".join(attributes.ips)))
    return ";".join(f"{key}={value}" for key, value in args)


def _command(env: Mapping[str, str]) -> cni.Command:
    text = env.get("CNI_COMMAND", "")
    if not text:
        raise CniError(cni.Code.INVALID_ENVIRONMENT, "CNI_COMMAND is missing in the request's environment")
    try:
        command = cni.Command(text)
    except ValueError:
        raise CniError(cni.Code.INVALID_ENVIRONMENT, f"unknown cmd type: {text}") from None
    if command == cni.Command.VERSION:
        raise CniError(cni.Code.INVALID_ENVIRONMENT, "unknown cmd type: VERSION")
    return command


def _pod(args: str) -> PodId:
    values: dict[str, str] = {}
    for item in args.split(";"):
        if not item.strip():
            continue
        key, equals, value = item.partition("=")
        if not equals or "=" in value:
            raise CniError(cni.Code.INVALID_ENVIRONMENT, f"CNI_ARGS: {item!r} is not of the form key=value")
        values[key.strip()] = value.strip()
    namespace, name = values.get("K8S_POD_NAMESPACE", ""), values.get("K8S_POD_NAME", "")
    if not namespace or not name:
        raise CniError(cni.Code.INVALID_ENVIRONMENT, "CNI_ARGS names no pod (K8S_POD_NAMESPACE, K8S_POD_NAME)")
    return PodId(namespace, name, values.get("K8S_POD_UID", ""))


def _attributes(sent: multus.InterfaceAttributes | msgspec.UnsetType | None) -> Attributes:
    if not isinstance(sent, multus.InterfaceAttributes):
        return Attributes()
    runtime: dict[str, Any] = {}
    if isinstance(sent.mac, str) and sent.mac:
        runtime["mac"] = sent.mac
    if isinstance(sent.ips, list) and sent.ips:
        runtime["ips"] = list(sent.ips)
    return _checked(Attributes(runtime, dict(sent.cni_args or {})))


def _checked(attributes: Attributes) -> Attributes:
    """MAC and addresses must be that: they go into ``CNI_ARGS``, where anything else could stand for another key."""
    for key, value in (("mac", attributes.mac), ("infiniband-guid", attributes.runtime.get("infinibandGUID"))):
        if value is not None and not _MAC.fullmatch(value):
            raise CniError(cni.Code.INVALID_CONFIG, f"{key} {value!r} is not a MAC address")
    for ip in attributes.ips:
        try:
            ipaddress.ip_interface(ip)
        except ValueError as error:
            raise CniError(cni.Code.INVALID_CONFIG, f"ips: {error}") from error
    return attributes
