"""CNI documents: results, errors and the environment of a plugin.

Source: CNI specification 1.1.0 (results since 0.3.0 are read; 0.3.1-1.1.0 are written).
Next: :mod:`schemas.multus`, which carries them over a unix socket.
"""

import ipaddress
from enum import StrEnum
from typing import Any, Final

import msgspec

from schemas.networks import Dns

SUPPORTED_VERSIONS = ("0.3.1", "0.4.0", "1.0.0", "1.1.0")
NEWEST_VERSION = SUPPORTED_VERSIONS[-1]


class Command(StrEnum):
    """``CNI_COMMAND``."""

    ADD = "ADD"
    DEL = "DEL"
    CHECK = "CHECK"
    STATUS = "STATUS"
    GC = "GC"
    VERSION = "VERSION"


class Code:
    """Error codes that the specification reserves (and libcni's 999)."""

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
"""Part of the message of an error 11 by which our multus refuses a DEL under a guest's card."""


class CniInterface(msgspec.Struct, frozen=True, omit_defaults=True):
    """A link that a plugin made; one with ``sandbox`` stands in the container's network namespace."""

    name: str
    mac: str | None = None
    mtu: int | None = None
    sandbox: str | None = None
    socket_path: str | None = msgspec.field(default=None, name="socketPath")
    pci_id: str | None = msgspec.field(default=None, name="pciID")


class Ip(msgspec.Struct, frozen=True, omit_defaults=True):
    """An address in CIDR form; ``interface`` is an index into the result's interfaces."""

    address: str
    gateway: str | None = None
    interface: int | None = None
    version: str | None = None
    """``"4"`` or ``"6"``: 0.3.x and 0.4.0 only."""


class CniRoute(msgspec.Struct, frozen=True, omit_defaults=True):
    """A route: destination in CIDR form, next hop, and what 1.1.0 added."""

    dst: str
    gw: str | None = None
    mtu: int | None = None
    advmss: int | None = None
    priority: int | None = None
    table: int | None = None
    scope: int | None = None


NO_DNS: Final = Dns()
"""The one that is not written: an encoder leaves a default out by identity."""


class CniResult(msgspec.Struct, frozen=True, omit_defaults=True):
    """What a successful ADD prints."""

    cni_version: str = msgspec.field(default="", name="cniVersion")
    interfaces: list[CniInterface] = []
    ips: list[Ip] = []
    routes: list[CniRoute] = []
    dns: Dns = NO_DNS


class CniErrorDocument(msgspec.Struct, frozen=True, omit_defaults=True):
    """What a failed plugin prints."""

    code: int
    msg: str
    details: str | None = None
    cni_version: str | None = msgspec.field(default=None, name="cniVersion")


def up_convert(raw: bytes) -> CniResult:
    """Read a result of any version from 0.3.0 on as one of the newest version; ``null`` counts as absent anywhere.

    :raises ValueError: it is not a result, or one of its addresses is none.
    """
    document = msgspec.json.decode(raw or b"null")
    result = checked(msgspec.convert(_without_nulls(document if document is not None else {}), CniResult))
    ips = [msgspec.structs.replace(ip, version=None) for ip in result.ips]
    dns = NO_DNS if result.dns == NO_DNS else result.dns
    return msgspec.structs.replace(result, cni_version=NEWEST_VERSION, ips=ips, dns=dns)


def checked(result: CniResult) -> CniResult:
    """The same result, if every address of it is one: what follows relies on that.

    :raises ValueError: one is not.
    """
    for ip in result.ips:
        ipaddress.ip_interface(ip.address)
    for route in result.routes:
        ipaddress.ip_network(route.dst, strict=False)
    for gateway in (*(ip.gateway for ip in result.ips), *(route.gw for route in result.routes)):
        if gateway:
            ipaddress.ip_address(gateway)
    return result


def _without_nulls(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _without_nulls(item) for key, item in value.items() if item is not None}
    return [_without_nulls(item) for item in value] if isinstance(value, list) else value


def down_convert(result: CniResult, version: str) -> dict[str, Any]:
    """The result as a document of an older version.

    :raises ValueError: a version that is not supported.
    """
    if version not in SUPPORTED_VERSIONS:
        raise ValueError(f"CNI version {version!r} is not supported; {', '.join(SUPPORTED_VERSIONS)} are")
    document: dict[str, Any] = msgspec.to_builtins(result)
    document["cniVersion"] = version
    if not document.get("dns"):
        document.pop("dns", None)
    if version != "1.1.0":
        for interface in document.get("interfaces", ()):
            for key in ("mtu", "socketPath", "pciID"):
                interface.pop(key, None)
        for route in document.get("routes", ()):
            for key in ("mtu", "advmss", "priority", "table", "scope"):
                route.pop(key, None)
    if version.startswith("0."):
        for ip in document.get("ips", ()):
            ip["version"] = "6" if ":" in ip["address"] else "4"
    return document
