"""Decoding of a request on the socket into a checked CNI call.

Pure. Any bytes result in a :class:`CniCall` or in an exception that names the error.
Source: multus-cni v4 ``pkg/server`` (which keys must exist, which may be empty).
Next: :mod:`services.multus.cni.conflist`.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Final, cast

import msgspec

from schemas import cni, multus
from schemas.inputs import Edge, InputDecoder, RejectedInput, RejectReason, printable, reject, rejecting
from schemas.kubernetes.networks import (
    NetworkSelectionElement,
    check_settings,
    is_valid_link_name,
    parse_networks,
)
from services.multus.cni.conflist import AttachmentAttributes, decode_object
from services.multus.cni.errors import CniError

_decoder = InputDecoder(
    Edge.MULTUS,
    cast("type[multus.CniRequest | None]", multus.CniRequest | None),
    max_bytes=multus.MAX_BODY_BYTES,
)
# As upstream since v4.3.0: these commands concern no sandbox.
_WITHOUT_POD: Final = frozenset({cni.CniCommand.STATUS, cni.CniCommand.GC})
_SANDBOX_ID: Final = frozenset("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789_.-")
_MAX_SANDBOX_ID: Final = 128
"""A container id is a part of file names, which Linux limits to 255 bytes."""
_OF_ONE_ATTACHMENT: Final = frozenset({"mac", "ips", "infinibandGUID", "deviceID"})
"""Keys of ``runtimeConfig`` that must not be passed on to other attachments."""
_ARG_VALUE: Final = re.compile("[ -:<>-~]*")
"""A value in ``CNI_ARGS``: printable ASCII without the separators ``;`` and ``=``."""


class MalformedError(ValueError):
    """The body is not a request."""


@dataclass(frozen=True)
class PodId:
    """The pod of a call. As text it is ``namespace/name``, without the UID.

    :ivar namespace: namespace of the pod.
    :ivar name: name of the pod.
    :ivar uid: UID of the pod; empty when the runtime did not pass it.
    """

    namespace: str
    name: str
    uid: str = ""

    def __str__(self) -> str:
        return f"{self.namespace}/{self.name}"


@dataclass(frozen=True)
class CniCall:
    """A checked CNI call.

    :ivar command: the CNI command.
    :ivar config: the CNI configuration, as bytes.
    :ivar sandbox_id: the sandbox's container id.
    :ivar netns: path of the network namespace as the runtime sees it; empty when it is gone (DEL).
    :ivar ifname: name of the link in the sandbox.
    :ivar pod: the sandbox's pod; ``None`` for GC and STATUS.
    :ivar attributes: the attributes of a ``/delegate`` call.
    :ivar network: namespace and name of the network of a ``/delegate`` call; ``None`` where the caller did not say.
    """

    command: cni.CniCommand
    config: bytes
    sandbox_id: str = ""
    netns: str = ""
    ifname: str = "eth0"
    pod: PodId | None = None
    attributes: AttachmentAttributes = field(default_factory=AttachmentAttributes)
    network: tuple[str, str] | None = None

    @property
    def config_object(self) -> dict[str, Any]:
        """The configuration as a dictionary.

        :raises CniError: code 6, the configuration is not a JSON object.
        """
        return decode_object(self.config, Edge.MULTUS)


def decode(body: bytes) -> CniCall:
    """Decode and check a request body.

    :param body: the body.
    :returns: the call.
    :raises MalformedError: the body is not a request.
    :raises CniError: the body is a request in which something is missing or invalid.
    """
    try:
        request = _decoder.decode(body)
    except RejectedInput as error:
        raise MalformedError(f"request body: {error}") from error
    # As upstream: `null` is a request without any field.
    request = request or multus.CniRequest()
    try:
        with rejecting(Edge.MULTUS):
            config = request.config_bytes()
    except RejectedInput as error:
        raise MalformedError(f"request body: config is not base64: {error}") from error
    command = _command(request.env)
    if multus.PLUGIN_MARK in request.env:
        # Upstream's shim sends its whole environment. The call would wait for the one whose plugin the shim is.
        message = f"the shim of a multus {cni.NOT_ALLOWED}: only the container runtime calls it"
        raise _invalid(message, cni.CniErrorCode.INVALID_CONFIG)
    if command in _WITHOUT_POD:
        return CniCall(command, config)
    for key in ("CNI_CONTAINERID", "CNI_NETNS", "CNI_ARGS"):
        if key not in request.env:
            raise _invalid(f"missing {key} in the request's environment")
    sandbox_id = request.env["CNI_CONTAINERID"]
    if not is_valid_sandbox_id(sandbox_id):
        raise _invalid(f"CNI_CONTAINERID {sandbox_id!r} is not a container id")
    # As upstream: a missing name means `eth0`.
    ifname = request.env.get("CNI_IFNAME", "eth0")
    if not is_valid_link_name(ifname):
        raise _invalid(f"CNI_IFNAME {ifname!r} is not a link name of 1 to 15 characters")
    netns = request.env["CNI_NETNS"]
    if netns and not netns.isprintable():
        raise _invalid(f"CNI_NETNS {netns!r} is not the path of a namespace")
    if command != cni.CniCommand.DEL and not netns:
        raise _invalid(f"CNI_NETNS is empty; {command} needs a network namespace")
    return CniCall(
        command=command,
        config=config,
        sandbox_id=sandbox_id,
        netns=netns,
        ifname=ifname,
        pod=_pod(request.env["CNI_ARGS"]),
        attributes=_attributes(request.interface_attributes),
        network=_network(request.network),
    )


def is_valid_sandbox_id(text: str) -> bool:
    """Return whether this is a container id of the CNI specification; such an id is also a safe file name."""
    return 0 < len(text) <= _MAX_SANDBOX_ID and text[0].isascii() and text[0].isalnum() and set(text) <= _SANDBOX_ID


def attributes_of(element: NetworkSelectionElement) -> AttachmentAttributes:
    """Return the attributes that an element of the networks annotation requests.

    :param element: the element.
    :raises CniError: code 7, its MAC or one of its addresses is invalid.
    """
    runtime = {
        "mac": element.mac,
        "ips": element.ips,
        "infinibandGUID": element.infiniband_guid,
        "bandwidth": msgspec.to_builtins(element.bandwidth) if element.bandwidth else None,
        "portMappings": msgspec.to_builtins(element.port_mappings) if element.port_mappings else None,
        "deviceID": element.device_id,
    }
    return _checked(
        AttachmentAttributes({key: value for key, value in runtime.items() if value}, dict(element.cni_args or {}))
    )


def shared_runtime_config(config: Mapping[str, Any]) -> dict[str, Any]:
    """Return what the runtime passes to every plugin that declares it (``portMappings``, ``dns``, …).

    :param config: the runtime's CNI configuration.
    :returns: its ``runtimeConfig`` without the keys that belong to a single attachment.
    """
    return {key: value for key, value in runtime_config_of(config).items() if key not in _OF_ONE_ATTACHMENT}


def runtime_config_of(config: Mapping[str, Any]) -> dict[str, Any]:
    """Return the ``runtimeConfig`` of the runtime's CNI configuration; empty when there is none."""
    given = config.get("runtimeConfig")
    return given if isinstance(given, dict) else {}


def plugin_args(pod: PodId | None, sandbox_id: str, attributes: AttachmentAttributes) -> str:
    """Return ``CNI_ARGS`` for a plugin, in multus' order.

    :param pod: the sandbox's pod; ``None`` when it is unknown.
    :param sandbox_id: the sandbox's container id.
    :param attributes: the attachment's attributes. ``MAC`` and ``IP`` serve plugins without the capability.
    :raises CniError: code 4, a value would introduce further keys or cannot be in an environment.
    """
    # Without `IgnoreUnknown` a plugin refuses the keys that it does not know (CNI conventions).
    args = [("IgnoreUnknown", "true")]
    if pod is not None:
        args += [("K8S_POD_NAMESPACE", pod.namespace), ("K8S_POD_NAME", pod.name)]
        args += [("K8S_POD_INFRA_CONTAINER_ID", sandbox_id), ("K8S_POD_UID", pod.uid)]
    if attributes.mac:
        args.append(("MAC", attributes.mac))
    if attributes.ips:
        args.append(("IP", ",".join(attributes.ips)))
    for key, value in args:
        if not _ARG_VALUE.fullmatch(value):
            raise CniError(cni.CniErrorCode.INVALID_ENVIRONMENT, f"{key} {value!r} cannot be a value in CNI_ARGS")
    return ";".join(f"{key}={value}" for key, value in args)


def _invalid(text: str, code: int = cni.CniErrorCode.INVALID_ENVIRONMENT) -> CniError:
    return CniError(code, str(reject(Edge.MULTUS, RejectReason.INVALID, text)))


def _command(env: Mapping[str, str]) -> cni.CniCommand:
    text = env.get("CNI_COMMAND", "")
    if not text:
        raise _invalid("unexpected or missing CNI_COMMAND")
    try:
        command = cni.CniCommand(text)
    except ValueError:
        raise _invalid(f"unknown cmd type: {text}") from None
    # The shim answers VERSION itself.
    if command == cni.CniCommand.VERSION:
        raise _invalid("unknown cmd type: VERSION")
    return command


def _pod(args: str) -> PodId:
    values: dict[str, str] = {}
    for item in args.split(";"):
        if not item.strip():
            continue
        key, equals, value = item.partition("=")
        # As upstream: exactly one `=` in each item.
        if not equals or "=" in value:
            raise _invalid(f"invalid CNI_ARG '{item}': it is not key=value")
        values[key.strip()] = value.strip()
    for key in ("K8S_POD_NAMESPACE", "K8S_POD_NAME"):
        if not values.get(key):
            raise _invalid(f"missing {key} in CNI_ARGS")
    return PodId(values["K8S_POD_NAMESPACE"], values["K8S_POD_NAME"], values.get("K8S_POD_UID", ""))


def _network(sent: str | msgspec.UnsetType | None) -> tuple[str, str] | None:
    if not isinstance(sent, str):
        return None
    try:
        [element] = parse_networks(sent)
    except ValueError as error:
        text = printable(f"network {sent!r}: {error}")
        raise CniError(cni.CniErrorCode.INVALID_ENVIRONMENT, text) from error
    if element.namespace is None or element.requested_interface is not None:
        raise _invalid(f"network {sent!r} is not of the form namespace/name")
    return element.namespace, element.name


def _attributes(sent: multus.InterfaceAttributes | msgspec.UnsetType | None) -> AttachmentAttributes:
    if not isinstance(sent, multus.InterfaceAttributes):
        return AttachmentAttributes()
    runtime: dict[str, Any] = {}
    if isinstance(sent.mac, str) and sent.mac:
        runtime["mac"] = sent.mac
    if isinstance(sent.ips, list) and sent.ips:
        runtime["ips"] = list(sent.ips)
    return _checked(AttachmentAttributes(runtime, dict(sent.cni_args or {})))


def _checked(attributes: AttachmentAttributes) -> AttachmentAttributes:
    try:
        check_settings(mac=attributes.mac, infiniband_guid=attributes.runtime.get("infinibandGUID"), ips=attributes.ips)
    except ValueError as error:
        raise CniError(cni.CniErrorCode.INVALID_CONFIG, str(error)) from error
    return attributes
