"""CNI documents: results, errors and the commands of a plugin.

Source: CNI specification 0.1.0 to 1.1.0; results of all versions are read and written, as libcni converts them.
Next: :mod:`schemas.multus`, which carries these documents over a unix socket.
"""

import ipaddress
from enum import StrEnum
from typing import Any, Final, cast

import msgspec

from schemas.inputs import Edge, InputDecoder, check_count, rejecting
from schemas.kubernetes.networks import Dns, without_nulls, without_zone

EARLY_VERSIONS = ("0.1.0", "0.2.0")
"""Versions whose results have no interfaces, and at most one address of each family."""
SUPPORTED_VERSIONS = ("0.3.1", "0.4.0", "1.0.0", "1.1.0")
NEWEST_VERSION = SUPPORTED_VERSIONS[-1]

MAX_CONFIG_BYTES: Final = 64 * 1024
"""Limit of a NAD's configuration. multus keeps its text until DEL, once for each attachment."""
MAX_PLUGINS: Final = 32
"""Limit of a network's plugins. Each is a process in every call, one after the other."""


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


MAX_LINKS = 256
"""Links of a result."""
MAX_ADDRESSES = 1024
"""Addresses of a result; its routes, and each list of its DNS settings, have the same limit."""


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


class EarlyIp(msgspec.Struct, frozen=True):
    """The address of one family in a result of CNI 0.1.0 and 0.2.0."""

    ip: str
    gateway: str | None = None
    routes: list[CniRoute] = []


class EarlyResult(msgspec.Struct, frozen=True):
    """A result of CNI 0.1.0 and 0.2.0."""

    ip4: EarlyIp | None = None
    ip6: EarlyIp | None = None
    dns: Dns = NO_DNS


class CniErrorDocument(msgspec.Struct, frozen=True, omit_defaults=True):
    """The output of a failed plugin."""

    code: int
    msg: str
    details: str | None = None
    cni_version: str | None = msgspec.field(default=None, name="cniVersion")


_result_decoder = InputDecoder(Edge.CNI, cast("type[dict[str, Any] | None]", dict[str, Any] | None))
_error_decoder = msgspec.json.Decoder(CniErrorDocument)


def decode_error(raw: bytes) -> CniErrorDocument | None:
    """Return the error document that an output or a response is; ``None`` if it is anything else.

    That counts as no rejected input: a result is none, and neither is the text of a plugin or a daemon that failed.
    """
    try:
        return _error_decoder.decode(raw)
    except (ValueError, RecursionError):
        return None


def up_convert(raw: bytes, *, version: str = NEWEST_VERSION) -> CniResult:
    """Decode a result of any CNI version into the newest one; ``null`` counts as absent everywhere.

    :param version: the version of a result that names none: that of the plugin's configuration, as in libcni.
    :raises RejectedInput: the document is not a result, its version is unknown, or an address in it is malformed.
    """
    document = without_nulls(_result_decoder.decode(raw or b"null") or {})
    with rejecting(Edge.CNI):
        return _up_convert(document, version)


def _up_convert(document: dict[str, Any], version: str) -> CniResult:
    if document.get("code"):
        raise ValueError(f"it is an error document with code {document['code']}")
    found = document.get("cniVersion") or version
    if found in EARLY_VERSIONS:
        result = _from_early(msgspec.convert(document, EarlyResult))
    elif found not in ("0.3.0", *SUPPORTED_VERSIONS):
        raise ValueError(f"CNI version {found!r} is not supported")
    # libcni reads such a document as a result without addresses.
    elif document.keys() & {"ip4", "ip6"}:
        raise ValueError(f"it has the addresses of CNI 0.2.0, and the version {found}")
    else:
        result = msgspec.convert(document, CniResult)
    _check_counts(result)
    validate_addresses(result)
    ips = [msgspec.structs.replace(ip, version=None) for ip in result.ips]
    dns = NO_DNS if result.dns == NO_DNS else result.dns
    return msgspec.structs.replace(result, cni_version=NEWEST_VERSION, ips=ips, dns=dns)


def _check_counts(result: CniResult) -> None:
    """Refuse a result with more than anything needs: links are compared with addresses, and addresses with routes."""
    check_count(Edge.CNI, len(result.interfaces), MAX_LINKS, f"it has {len(result.interfaces)} links")
    dns = result.dns
    counts = {"addresses": len(result.ips), "routes": len(result.routes), "name servers": len(dns.nameservers or ())}
    counts |= {"search domains": len(dns.search or ()), "resolver options": len(dns.options or ())}
    for name, count in counts.items():
        check_count(Edge.CNI, count, MAX_ADDRESSES, f"it has {count} {name}")


def _from_early(result: EarlyResult) -> CniResult:
    families = [one for one in (result.ip4, result.ip6) if one is not None]
    return CniResult(
        ips=[CniIp(one.ip, gateway=one.gateway) for one in families],
        routes=[CniRoute(route.dst, gw=route.gw) for one in families for route in one.routes],
        dns=result.dns,
    )


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


def down_convert(result: CniResult, version: str) -> dict[str, Any]:
    """Return the result as a document of an older CNI version.

    :raises ValueError: the version is not supported.
    """
    if version in EARLY_VERSIONS:
        return _to_early(result, version)
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


def _to_early(result: CniResult, version: str) -> dict[str, Any]:
    """Return the result as a document of CNI 0.1.0 or 0.2.0: the first address of each family, with its routes."""
    document: dict[str, Any] = {"cniVersion": version}
    for key, is_six in (("ip4", False), ("ip6", True)):
        ip = next((one for one in result.ips if (":" in one.address) is is_six), None)
        if ip is None:
            continue
        routes = [CniRoute(one.dst, gw=one.gw) for one in result.routes if (":" in one.dst) is is_six]
        document[key] = {
            "ip": ip.address,
            **({"gateway": ip.gateway} if ip.gateway else {}),
            **({"routes": msgspec.to_builtins(routes)} if routes else {}),
        }
    if result.dns != NO_DNS:
        document["dns"] = msgspec.to_builtins(result.dns)
    return document
