"""CNI results between versions, as plugins write and read them.

Pure. The daemon holds the newest version only and speaks to every plugin in the version of its configuration.
The conversion itself is :mod:`schemas.cni`'s; here stands what is due to plugins that answer less than they should.
"""

from typing import Any

import msgspec

from schemas import cni
from services.common.domain.pod_nic import sandbox_interface
from services.multus.errors import CniError


def decode(raw: bytes, plugin: str) -> cni.CniResult:
    """The result that a plugin printed; nothing at all or ``null`` is an empty one.

    :raises CniError: code 6, it is not a result.
    """
    try:
        return cni.up_convert(raw.strip())
    except ValueError as error:
        text = raw[:200].decode(errors="replace")
        raise CniError(
            cni.Code.DECODE_FAILURE, f'plugin type="{plugin}" printed something that is not a result: {error}', text
        ) from error


def down_convert(result: cni.CniResult, version: str) -> dict[str, Any]:
    """The result as a document of that version; 0.3.0 and 0.3.1 have the same shape."""
    document = cni.down_convert(result, "0.3.1" if version == "0.3.0" else version)
    document["cniVersion"] = version
    return document


def completed(result: cni.CniResult, interface: str, *, mac: str | None, mtu: int | None) -> cni.CniResult:
    """The result with MAC and MTU of the sandbox link filled in where the plugin (before 1.1.0) named none."""
    found = sandbox_interface(result, interface)
    if found is None or found[1].name != interface:
        return result
    index, link = found
    interfaces = list(result.interfaces)
    interfaces[index] = msgspec.structs.replace(link, mac=link.mac or mac, mtu=link.mtu or mtu)
    return msgspec.structs.replace(result, interfaces=interfaces)
