"""CNI results: decoding, conversion between versions, and completion of what a plugin left out.

Pure. The daemon holds results of the newest version only and passes each plugin the version of its configuration.
The conversion itself is in :mod:`schemas.cni`.
"""

from typing import Any

import msgspec

from schemas import cni
from schemas.inputs import RejectedInput
from services.common.domain.pod_nic import find_sandbox_interface
from services.common.telemetry.redact import redact_configuration
from services.multus.cni.errors import CniError, decode_error


def decode(raw: bytes, plugin: str, version: str, configuration: bytes) -> cni.CniResult:
    """Decode the result that a plugin printed; empty output or ``null`` is an empty result.

    :param raw: the output.
    :param plugin: the plugin's type, for the message.
    :param version: the CNI version of its configuration.
    :param configuration: what the plugin got on standard input; its secrets are not quoted.
    :raises CniError: code 6, the output is not a result that can be read; the plugin's own, it is an error document.
    """
    failure = decode_error(raw, configuration)
    if failure is not None and failure.code:
        # Some plugins exit with 0 all the same.
        raise failure.with_prefix(f'plugin type="{plugin}" failed (add)')
    try:
        return cni.up_convert(raw.strip(), version=version)
    except RejectedInput as error:
        text = redact_configuration(raw.decode(errors="replace"), configuration)[:200]
        raise CniError(
            cni.CniErrorCode.DECODE_FAILURE,
            f'plugin type="{plugin}" printed something that is not a result: {error}',
            text,
        ) from error


def down_convert(result: cni.CniResult, version: str) -> dict[str, Any]:
    """Return the result as a document of that version."""
    # schemas.cni does not write 0.3.0, which has the same form as 0.3.1.
    document = cni.down_convert(result, "0.3.1" if version == "0.3.0" else version)
    document["cniVersion"] = version
    return document


def fill_in_link(
    result: cni.CniResult, interface: str, *, mac: str | None, mtu: int | None, early_in: str = ""
) -> cni.CniResult:
    """Return the result with the sandbox link's MAC and MTU where the plugin (before 1.1.0) set none.

    :param result: the result.
    :param interface: the link's name.
    :param mac: the link's MAC; ``None`` when it has none.
    :param mtu: the link's MTU; ``None`` when it has none.
    :param early_in: the sandbox's network namespace if the result was one of CNI 0.1.0 or 0.2.0. Its addresses are
        those of the link, which it cannot name.
    """
    if early_in and not result.interfaces:
        ips = [msgspec.structs.replace(ip, interface=0) for ip in result.ips]
        result = msgspec.structs.replace(result, interfaces=[cni.CniInterface(interface, sandbox=early_in)], ips=ips)
    found = find_sandbox_interface(result, interface)
    if found is None or found[1].name != interface:
        return result
    index, link = found
    interfaces = list(result.interfaces)
    interfaces[index] = msgspec.structs.replace(link, mac=link.mac or mac, mtu=link.mtu or mtu)
    return msgspec.structs.replace(result, interfaces=interfaces)
