"""The two pod annotations of Multus: ``networks`` (desired attachments) and ``network-status`` (actual attachments).

Source: the Network Plumbing Working Group's multi-network specification 1.x and multus' parser of it.
The keys and their order are those of KubeVirt and of the dynamic networks controller.
Next: :mod:`schemas.cni`, the results of plugins.
"""

import ipaddress
import re
from collections.abc import Iterable, Mapping
from typing import Any, TypeVar

import msgspec

from schemas.inputs import (
    MAX_DEPTH,
    Edge,
    InputDecoder,
    RejectedInput,
    RejectReason,
    check_count,
    is_deep,
    reject,
    rejecting,
)

T = TypeVar("T")

NETWORKS = "k8s.v1.cni.cncf.io/networks"
NETWORK_STATUS = "k8s.v1.cni.cncf.io/network-status"
DEFAULT_NETWORK = "v1.multus-cni.io/default-network"
RESOURCE_NAME = "k8s.v1.cni.cncf.io/resourceName"

MAX_ANNOTATION_BYTES = 256 * 1024
"""Kubernetes' limit for all annotations of an object together."""
MAX_ELEMENTS = 256
"""Limit of the networks that a pod may request: each is a call of multus."""
MAX_QUOTE = 100
"""Characters of a name that an error message quotes; a proper one has up to 253."""

# A namespace is an RFC 1123 label; a NAD's name is a subdomain and may have dots.
_LABEL = re.compile(r"[a-z0-9](?:[-a-z0-9]*[a-z0-9])?")
_NAME = re.compile(r"[a-z0-9](?:[-a-z0-9.]*[a-z0-9])?")
_HEX = "[0-9A-Fa-f]"
_MAC = re.compile(
    # 6, 8 or 20 bytes (Ethernet, EUI-64, InfiniBand), in one of the three notations that Go's net.ParseMAC reads.
    rf"{_HEX}{{2}}([:-])(?:{_HEX}{{2}}\1){{4}}(?:(?:{_HEX}{{2}}\1){{2}}|(?:{_HEX}{{2}}\1){{14}})?{_HEX}{{2}}"
    rf"|{_HEX}{{4}}(?:\.{_HEX}{{4}}){{2}}(?:\.{_HEX}{{4}}|(?:\.{_HEX}{{4}}){{7}})?"
)
_LINK_NAME = re.compile(r"[!-$&-.0-9;-~]{1,15}")


class Bandwidth(msgspec.Struct, frozen=True, omit_defaults=True):
    """Traffic shaping of one attachment: rates in bits per second, bursts in bits."""

    ingress_rate: int | None = msgspec.field(default=None, name="ingressRate")
    ingress_burst: int | None = msgspec.field(default=None, name="ingressBurst")
    egress_rate: int | None = msgspec.field(default=None, name="egressRate")
    egress_burst: int | None = msgspec.field(default=None, name="egressBurst")


class PortMapping(msgspec.Struct, frozen=True, omit_defaults=True):
    """A host port that is forwarded to the attachment."""

    host_port: int = msgspec.field(name="hostPort")
    container_port: int = msgspec.field(name="containerPort")
    protocol: str | None = None
    host_ip: str | None = msgspec.field(default=None, name="hostIP")


class NetworkSelectionElement(msgspec.Struct, frozen=True, omit_defaults=True):
    """One attachment that a pod requests.

    :ivar namespace: namespace of the NAD; ``None`` means the pod's namespace.
    :ivar interface: name of the link; ``None`` lets multus choose it (``net<i>``).
    """

    name: str
    namespace: str | None = None
    ips: list[str] | None = None
    mac: str | None = None
    infiniband_guid: str | None = msgspec.field(default=None, name="infiniband-guid")
    interface: str | None = None
    deprecated_interface_request: str | None = msgspec.field(default=None, name="interfaceRequest")
    port_mappings: list[PortMapping] | None = msgspec.field(default=None, name="portMappings")
    bandwidth: Bandwidth | None = None
    cni_args: dict[str, Any] | None = msgspec.field(default=None, name="cni-args")
    default_route: list[str] | None = msgspec.field(default=None, name="default-route")
    device_id: str | None = msgspec.field(default=None, name="deviceID")
    ipam_claim_reference: str | None = msgspec.field(default=None, name="ipam-claim-reference")

    @property
    def requested_interface(self) -> str | None:
        """The requested interface name, from the current or the deprecated key."""
        return self.interface or self.deprecated_interface_request or None


class Dns(msgspec.Struct, frozen=True, omit_defaults=True):
    """DNS settings of an attachment."""

    nameservers: list[str] | None = None
    domain: str | None = None
    search: list[str] | None = None
    options: list[str] | None = None


class NetworkStatus(msgspec.Struct, frozen=True, omit_defaults=True):
    """One attachment that a pod has. ``ips`` have no prefix length, as multus writes them."""

    name: str
    interface: str | None = None
    ips: list[str] | None = None
    mac: str | None = None
    mtu: int | None = None
    default: bool = False
    dns: Dns = msgspec.field(default_factory=Dns)
    device_info: dict[str, Any] | None = msgspec.field(default=None, name="device-info")
    gateway: list[str] | None = None


_elements_decoder = InputDecoder(Edge.ANNOTATION, list[NetworkSelectionElement])
_statuses_decoder = InputDecoder(Edge.ANNOTATION, list[NetworkStatus])
_encoder = msgspec.json.Encoder()
_ordered = msgspec.json.Encoder(order="deterministic")


def parse_networks(text: str | None) -> list[NetworkSelectionElement]:
    """Parse the networks annotation in its short form (``ns/name@if,…``) or as JSON; return ``[]`` if it is absent.

    :raises ValueError: the annotation is malformed; the message names the element.
    """
    if text is None or not text.strip():
        return []
    if len(text) > MAX_ANNOTATION_BYTES:
        text = f"networks annotation has {len(text)} bytes; the limit is {MAX_ANNOTATION_BYTES}"
        raise reject(Edge.ANNOTATION, RejectReason.TOO_LARGE, text)
    # Multus' own rule: any of these characters makes it JSON.
    if any(mark in text for mark in '[{"'):
        elements = _decode(_elements_decoder, NetworkSelectionElement, text)
        _check_elements(len(elements))
        for element in elements:
            _check_element(element)
        return elements
    _check_elements(text.count(",") + 1)
    return [_parse_short_form(item.strip()) for item in text.split(",")]


def _check_elements(count: int) -> None:
    check_count(Edge.ANNOTATION, count, MAX_ELEMENTS, f"networks annotation has {count} elements")


def _parse_short_form(item: str) -> NetworkSelectionElement:
    network, at, interface = item.partition("@")
    namespace, slash, name = network.partition("/")
    if not slash:
        namespace, name = "", network
    if "@" in interface or "/" in name or (slash and not namespace) or (at and not interface):
        raise _invalid(f"network {_quote(item)} is not of the form [namespace/]name[@interface]")
    element = NetworkSelectionElement(name=name, namespace=namespace or None, interface=interface or None)
    _check_element(element)
    return element


def _check_element(element: NetworkSelectionElement) -> None:
    name = _quote(element.name)
    if not _NAME.fullmatch(element.name):
        raise _invalid(f"network name {name} is not a Kubernetes object name")
    if element.namespace and not _LABEL.fullmatch(element.namespace):
        raise _invalid(f"namespace {_quote(element.namespace)} of network {name} is not a Kubernetes namespace name")
    interface = element.requested_interface
    if interface is not None and not is_valid_link_name(interface):
        raise _invalid(f"interface {_quote(interface)} of network {name} is not a link name of 1 to 15 characters")


def _quote(text: str) -> str:
    """Return a part of an annotation for an error message, short enough that what is wrong with it still follows."""
    return repr(text if len(text) <= MAX_QUOTE else f"{text[: MAX_QUOTE - 1]}…")


def _invalid(text: str) -> RejectedInput:
    return reject(Edge.ANNOTATION, RejectReason.INVALID, text)


def is_valid_link_name(name: str) -> bool:
    """Return whether a link can have this name: 1 to 15 printable ASCII characters, none of them ``/``, ``:`` or ``%``.

    The kernel takes ``%`` for a pattern and chooses another name. It also accepts control characters and any byte above
    127, which no plugin expects and which spoil a log.
    """
    # The kernel's IFNAMSIZ is 16, with the terminating zero.
    return _LINK_NAME.fullmatch(name) is not None and name not in {".", ".."}


def check_settings(*, mac: str | None, infiniband_guid: str | None, ips: Iterable[str]) -> None:
    """Check the MAC and the addresses of an attachment: other text could add keys to ``CNI_ARGS``.

    :raises ValueError: one of them is invalid; the message names it.
    """
    for key, value in (("mac", mac), ("infiniband-guid", infiniband_guid)):
        # Empty is Go's missing value.
        if value and not _MAC.fullmatch(value):
            raise _invalid(f"{key} {value!r} is not a MAC address")
    for ip in ips:
        try:
            ipaddress.ip_interface(without_zone(ip))
        except ValueError as error:
            raise _invalid(f"ips: {error}") from error


def canonical_mac(mac: str | None) -> str:
    """Return a MAC in lower case with colons, whichever notation it has; empty if there is none."""
    digits = re.sub(r"[-:.]", "", mac or "").lower()
    return ":".join(digits[at : at + 2] for at in range(0, len(digits), 2))


def canonical_address(address: str) -> str:
    """Return an address in its shortest notation, with the prefix length as it is; any other text unchanged."""
    ip, slash, prefix = address.partition("/")
    try:
        return f"{ipaddress.ip_address(ip)}{slash}{prefix}"
    except ValueError:
        return address


def keeps_args(before: Mapping[str, Any] | None, now: Mapping[str, Any] | None) -> bool:
    """Return whether ``cni-args`` have all earlier keys with their values.

    Another controller may add keys to an attachment in use, such as what it has set in the fabric (kubevirt#15480).
    """
    now = now or {}
    # As JSON, because 1 equals True in Python.
    return all(
        key in now and _ordered.encode(now[key]) == _ordered.encode(value) for key, value in (before or {}).items()
    )


def without_zone(address: str) -> str:
    """Return the text of an address unchanged if it has no zone (``fe80::1%eth0``), which may hold any characters.

    Go's ``net.ParseIP``, with which plugins read addresses, does not know zones either.

    :raises ValueError: it has a zone.
    """
    if "%" in address:
        raise ValueError(f"address {address!r} has a zone")
    return address


def encode_networks(elements: list[NetworkSelectionElement], present: str | None = None) -> str:
    """Return the networks annotation as KubeVirt writes it.

    It is compact JSON, or ``""`` for no attachment, because the key remains.

    :param present: the annotation that this one replaces; its elements keep their bytes, with keys that are not known
        here.
    """
    found = _Written(present, NetworkSelectionElement)
    items = [found.take(element) or _encoder.encode(element).decode() for element in elements]
    return f"[{','.join(items)}]" if items else ""


def parse_network_status(text: str | None) -> list[NetworkStatus]:
    """Parse the network-status annotation; return ``[]`` if it is absent.

    :raises ValueError: the annotation is malformed.
    """
    if text is None or not text.strip():
        return []
    if len(text) > MAX_ANNOTATION_BYTES:
        text = f"network-status annotation has {len(text)} bytes; the limit is {MAX_ANNOTATION_BYTES}"
        raise reject(Edge.ANNOTATION, RejectReason.TOO_LARGE, text)
    return _decode(_statuses_decoder, NetworkStatus, text)


def _decode(decoder: InputDecoder[list[T]], kind: type[T], text: str) -> list[T]:
    if "null" not in text:
        return decoder.decode(text)
    with rejecting(Edge.ANNOTATION):
        if is_deep(text.encode()):
            raise reject(Edge.ANNOTATION, RejectReason.TOO_DEEP, f"nested more than {MAX_DEPTH} levels")
        return [_decode_item(item, kind) for item in msgspec.json.decode(text, type=list[msgspec.Raw])]


def _decode_item(item: msgspec.Raw, kind: type[T]) -> T:
    try:
        return msgspec.json.decode(item, type=kind)
    except msgspec.ValidationError:
        return msgspec.convert(without_nulls(msgspec.json.decode(item)), kind)


def without_nulls(value: Any) -> Any:
    """Return a decoded JSON value without the members that are ``null``.

    Go, in which Multus and most plugins are written, writes an empty slice or map so, and reads it as a missing field.
    """
    if isinstance(value, dict):
        return {key: without_nulls(item) for key, item in value.items() if item is not None}
    return [without_nulls(item) for item in value] if isinstance(value, list) else value


def encode_network_status(statuses: list[NetworkStatus], present: str | None = None) -> str:
    """Return the network-status annotation as multus writes it.

    It is a JSON array whose entries are indented by 4 spaces and always contain ``dns``.

    :param present: the annotation that this one replaces; its entries keep their bytes, with keys that are not known
        here.
    """
    found = _Written(present, NetworkStatus)
    return f"[{','.join(found.take(status) or _encode_status(status) for status in statuses)}]"


def _encode_status(status: NetworkStatus) -> str:
    fields: dict[str, Any] = msgspec.to_builtins(status)
    fields["dns"] = msgspec.to_builtins(status.dns)
    ordered = {key: fields[key] for key in _STATUS_KEYS if key in fields}
    return msgspec.json.format(_encoder.encode(ordered), indent=4).decode()


class _Written:
    """The items of an annotation, each with its bytes.

    :param text: the annotation. The short form of the networks annotation has no items to keep.
    """

    def __init__(self, text: str | None, kind: type[Any]) -> None:
        raw = msgspec.json.decode(text, type=list[msgspec.Raw]) if text and text.lstrip().startswith("[") else []
        self._items = [(_decode_item(item, kind), bytes(item).decode()) for item in raw]

    def take(self, item: Any) -> str | None:
        """Return the text of an item, once; ``None`` when the annotation does not have it."""
        index = next((i for i, (one, _) in enumerate(self._items) if one == item), None)
        return self._items.pop(index)[1] if index is not None else None


_STATUS_KEYS = ("name", "interface", "ips", "mac", "mtu", "default", "dns", "device-info", "gateway")
"""The keys of an entry in the order in which multus writes them."""
