"""What an element asks for beside its network: compared with what was asked when the attachment was made, and carried
to plugins that ``/delegate`` has no field for. Pure.

``interfaceAttributes`` holds MAC, addresses and ``cni-args``; the rest goes into the posted configuration as
``runtimeConfig``, where a plugin declares the capability. Upstream's daemon passes that on, too, but not to a plugin
that it gives MAC or addresses as ``runtimeConfig`` itself: there those take its place.
Next: :mod:`services.networks.delegate`.
"""

import hashlib
from collections.abc import Mapping, Sequence
from typing import Any, Final

import msgspec

from schemas.multus import InterfaceAttributes
from schemas.networks import NetworkSelectionElement

_AT_CREATION: Final = "followed only when the pod is made"
_UNDECLARED: Final = "no plugin of the network declares the capability"

_document = msgspec.json.Decoder(dict[str, Any])


def digest(mac: str | None, ips: Sequence[str] | None, cni_args: Mapping[str, Any] | None) -> str:
    """Equal for two equal wishes, however they are spelled; 16 hex digits."""
    wish = msgspec.json.encode([(mac or "").lower(), list(ips or ()), dict(cni_args or {})], order="deterministic")
    return hashlib.sha256(wish).hexdigest()[:16]


def of_element(element: NetworkSelectionElement) -> str:
    """The digest of what an element of the networks annotation asks."""
    return digest(element.mac, element.ips, element.cni_args)


def of_record(requested: InterfaceAttributes) -> str:
    """The digest of what the daemon's record says was asked."""
    mac = requested.mac if isinstance(requested.mac, str) else None
    ips = requested.ips if isinstance(requested.ips, list) else None
    return digest(mac, ips, requested.cni_args)


def with_runtime(config: bytes, element: NetworkSelectionElement) -> tuple[bytes, dict[str, str]]:
    """The configuration with what the element asks of its plugins' capabilities, and what of it goes unheard.

    A configuration that nothing is asked of stays as it is, byte for byte.

    :param config: a CNI configuration or list, already checked.
    :return: also, by key of the element, why it has no effect.
    """
    unheard = {} if element.default_route is None else {"default-route": _AT_CREATION}
    asked = {key: value for key, value in _capabilities(element).items() if value[1]}
    if not asked:
        return config, unheard
    document = _document.decode(config)
    plugins = [document] if "type" in document else document["plugins"]
    for key, (capability, value) in asked.items():
        declaring = [plugin for plugin in plugins if _declares(plugin, capability)]
        for plugin in declaring:
            plugin["runtimeConfig"] = {**(plugin.get("runtimeConfig") or {}), capability: value}
        if not declaring:
            unheard[key] = _UNDECLARED
    return msgspec.json.encode(document), unheard


def _capabilities(element: NetworkSelectionElement) -> dict[str, tuple[str, Any]]:
    """By key of the element: the capability (CNI conventions) and its value."""
    return {
        "bandwidth": ("bandwidth", msgspec.to_builtins(element.bandwidth)),
        "portMappings": ("portMappings", msgspec.to_builtins(element.port_mappings)),
        "infiniband-guid": ("infinibandGUID", element.infiniband_guid),
        "deviceID": ("deviceID", element.device_id),
    }


def _declares(plugin: Any, capability: str) -> bool:
    declared = plugin.get("capabilities") if isinstance(plugin, dict) else None
    return isinstance(declared, dict) and declared.get(capability) is True
