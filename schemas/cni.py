"""CNI documents: results, errors and the commands of a plugin.

Source: CNI specification 1.1.0. Results since 0.3.0 are read; versions 0.3.1 to 1.1.0 are written.
Next: :mod:`schemas.multus`, which carries these documents over a unix socket.
"""

import ipaddress
from enum import StrEnum
from typing import Any, Final

import msgspec

from schemas.kubernetes.networks import Dns, without_zone

SUPPORTED_VERSIONS = ("0.3.1", "0.4.0", "1.0.0", "1.1.0")
NEWEST_VERSION = SUPPORTED_VERSIONS[-1]


class CniCommand(StrEnum):
    """The value of ``CNI_COMMAND``."""

    ADD = "ADD"
    DEL = "DEL"
    CHECK = "CHECK"
    STATUS = "STATUS"
    GC = "GC"
    VERSION = "VERSION"


class CniErrorCode:
    """Error codes that the CNI specification reserves, and 999, which libcni uses for internal errors."""

    INCOMPATIBLE_VERSION = 1
    UNSUPPORTED_FIELD = 2
    UNKNOWN_CONTAINER = 3
    INVALID_ENVIRONMENT = 4
    IO_FAILURE = 5
    DECODE_FAILURE = 6
    INVALID_CONFIG = 7
    TRY_AGAIN_LATER = 11
    PLUGIN_NOT_AVAILABLE = 50
    LIMITED_CONNECTIVITY = 51
    INTERNAL = 999


STILL_IN_USE = "is still in use by a guest"
"""Text in the message of error 11, with which hotnic's multus refuses the DEL of a link that a guest still uses."""

NOT_ALLOWED = "is not allowed in a network"
"""Text in the message of error 7, with which hotnic's multus refuses what a network's author may not choose."""
ISOLATED = "namespace isolation"
"""Text in the message of error 7, with which multus refuses a network of another namespace."""
NO_CONFIGURATION = "is empty and no file configures"
"""Text in the message of error 7, with which multus refuses a network without a configuration."""


class CniInterface(msgspec.Struct, frozen=True, omit_defaults=True):
    """A link that a plugin created; a link with ``sandbox`` is in the container's network namespace."""

    name: str
    mac: str | None = None
    mtu: int | None = None
    sandbox: str | None = None
    socket_path: str | None = msgspec.field(default=None, name="socketPath")
    pci_id: str | None = msgspec.field(default=None, name="pciID")


class CniIp(msgspec.Struct, frozen=True, omit_defaults=True):
    """An address in CIDR form; ``interface`` is an index into the interfaces of the result."""

    address: str
    gateway: str | None = None
    interface: int | None = None
    version: str | None = None
    """``"4"`` or ``"6"``; only CNI 0.3.x and 0.4.0 have this field."""


class CniRoute(msgspec.Struct, frozen=True, omit_defaults=True):
    """A route: destination in CIDR form, next hop, and the fields added by CNI 1.1.0."""

    dst: str
    gw: str | None = None
    mtu: int | None = None
    advmss: int | None = None
    priority: int | None = None
    table: int | None = None
    scope: int | None = None


NO_DNS: Final = Dns()
"""The one ``Dns`` that is left out of the JSON: msgspec omits a mutable default by identity, not by equality."""


class CniResult(msgspec.Struct, frozen=True, omit_defaults=True):
    """The output of a successful ADD."""

    cni_version: str = msgspec.field(default="", name="cniVersion")
    interfaces: list[CniInterface] = []
    ips: list[CniIp] = []
    routes: list[CniRoute] = []
    dns: Dns = NO_DNS


class CniErrorDocument(msgspec.Struct, frozen=True, omit_defaults=True):
    """The output of a failed plugin."""

    code: int
    msg: str
    details: str | None = None
    cni_version: str | None = msgspec.field(default=None, name="cniVersion")


def up_convert(raw: bytes) -> CniResult:
    """Decode a result of CNI 0.3.0 or later into the newest version; ``null`` counts as absent everywhere.

    :raises ValueError: the document is not a result, or an address in it is malformed.
    """
    document = msgspec.json.decode(raw or b"null")
    result = validate_addresses(msgspec.convert(_without_nulls(document if document is not None else {}), CniResult))
    ips = [msgspec.structs.replace(ip, version=None) for ip in result.ips]
    dns = NO_DNS if result.dns == NO_DNS else result.dns
    return msgspec.structs.replace(result, cni_version=NEWEST_VERSION, ips=ips, dns=dns)


def validate_addresses(result: CniResult) -> CniResult:
    """Return the result unchanged if all its addresses, routes and gateways are well-formed.

    :raises ValueError: one of them is malformed.
    """
    for ip in result.ips:
        ipaddress.ip_interface(without_zone(ip.address))
    for route in result.routes:
        # Plugins may write a destination with host bits, which Go's net.ParseCIDR accepts.
        ipaddress.ip_network(without_zone(route.dst), strict=False)
    for gateway in (*(ip.gateway for ip in result.ips), *(route.gw for route in result.routes)):
        if gateway:
            ipaddress.ip_address(without_zone(gateway))
    return result


def _without_nulls(value: Any) -> Any:
    # Plugins in Go write `null` for an empty slice or map.
    if isinstance(value, dict):
        return {key: _without_nulls(item) for key, item in value.items() if item is not None}
    return [_without_nulls(item) for item in value] if isinstance(value, list) else value


def down_convert(result: CniResult, version: str) -> dict[str, Any]:
    """Return the result as a document of an older CNI version.

    :raises ValueError: the version is not supported.
    """
    if version not in SUPPORTED_VERSIONS:
        raise ValueError(f"CNI version {version!r} is not supported; use one of {', '.join(SUPPORTED_VERSIONS)}")
    document: dict[str, Any] = msgspec.to_builtins(result)
    document["cniVersion"] = version
    if not document.get("dns"):
        document.pop("dns", None)
    # Fields that CNI 1.1.0 added; older runtimes do not know them.
    if version != "1.1.0":
        for interface in document.get("interfaces", ()):
            for key in ("mtu", "socketPath", "pciID"):
                interface.pop(key, None)
        for route in document.get("routes", ()):
            for key in ("mtu", "advmss", "priority", "table", "scope"):
                route.pop(key, None)
    # CNI 1.0.0 removed `version`.
    if version.startswith("0."):
        for ip in document.get("ips", ()):
            ip["version"] = "6" if ":" in ip["address"] else "4"
    return document
