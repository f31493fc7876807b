"""The CNI configuration that is sent for an attachment: that of its network, with the settings of its element. Pure.

Source: the multi-network specification 1.x as multus applies it: a configuration without a ``name`` gets the NAD's.
``/delegate`` carries an element's MAC, addresses and ``cni-args`` beside the configuration
(:func:`services.networks.multus_client.interface_attributes`). The other settings go into the configuration as
``runtimeConfig`` of the plugins that declare the capability. Upstream's daemon passes this on too, except to a plugin
for which it writes ``runtimeConfig`` itself, because it has a MAC or addresses for it.
Next: :mod:`services.networks.status`, what is written to the pod.
"""

from typing import Any, Final

import msgspec

from schemas import cni
from schemas.inputs import REJECTED, Edge, InputDecoder, RejectedInput, RejectReason, check_count, printable
from schemas.kubernetes.networks import MAX_QUOTE, NetworkSelectionElement
from schemas.kubernetes.objects import NetworkAttachmentDefinition
from services.common.domain.plugin_types import AllowedPlugins
from services.networks.multus_client import AttachmentFailure

INVALID: Final = "InvalidNetwork"

_AT_CREATION: Final = "takes effect only at pod creation"
_IN_A_FILE: Final = "the configuration of the network is a file of the node"
_UNDECLARED: Final = "no plugin of the network declares the capability"

_document = InputDecoder(Edge.NETWORK, dict[str, Any], max_bytes=cni.MAX_CONFIG_BYTES)
_checked = InputDecoder(Edge.NETWORK, dict[str, Any])
"""For a configuration that :func:`cni_config` has accepted, perhaps with a name in addition."""


def cni_config(nad: NetworkAttachmentDefinition, allowed: AllowedPlugins, *, by_name: bool) -> bytes:
    """Return the CNI configuration of a NAD; one that has a name is returned byte for byte.

    :param allowed: the plugins that it may name.
    :param by_name: whether the daemon finds a network by its name. The result for a NAD without a configuration, which
        is a file of the node, is then empty.
    :raises AttachmentFailure: the NAD has no valid CNI configuration; the reason is ``InvalidNetwork``.
    """
    where = f"network {nad.metadata.namespace}/{nad.metadata.name}"
    text = nad.spec.config
    if not text.strip():
        if by_name:
            return b""
        raise _invalid(f"{where} has no spec.config, and this multus daemon attaches none of the node's files")
    try:
        document = _document.decode(text)
    except RejectedInput as error:
        raise _invalid(f"spec.config of {where} is not a JSON object: {error}") from error
    plugins = [document] if isinstance(document.get("type"), str) else document.get("plugins")
    if not isinstance(plugins, list):
        REJECTED.count(Edge.NETWORK, RejectReason.INVALID)
        raise _invalid(f'spec.config of {where} names no plugin: it has neither "type" nor "plugins"')
    try:
        check_count(Edge.NETWORK, len(plugins), cni.MAX_PLUGINS, f"spec.config of {where} has {len(plugins)} plugins")
    except RejectedInput as error:
        raise _invalid(str(error)) from error
    # The document itself, too: upstream's daemon takes a list with a "Type" for a single plugin.
    if refused := allowed.find_refused(one for one in (document, *plugins) if isinstance(one, dict)):
        raise _invalid(f"spec.config of {where}: plugin type {printable(refused, MAX_QUOTE)} {cni.NOT_ALLOWED}")
    if document.get("name"):
        return text.encode()
    return msgspec.json.encode({**document, "name": nad.metadata.name})


def _invalid(message: str) -> AttachmentFailure:
    return AttachmentFailure(INVALID, message, final=True)


def with_runtime_config(config: bytes, element: NetworkSelectionElement) -> tuple[bytes, dict[str, str]]:
    """Add the settings of an element to a configuration as ``runtimeConfig`` of the plugins that declare them.

    Without such settings the configuration stays the same, byte for byte.

    :param config: a valid CNI configuration or configuration list; empty if it stands in a file of the node.
    :return: the configuration, and the ignored settings: by key of the element, the reason.
    :raises AttachmentFailure: ``InvalidNetwork``: a plugin that declares one of them has a malformed ``runtimeConfig``.
    """
    ignored = {} if element.default_route is None else {"default-route": _AT_CREATION}
    requested = {key: value for key, value in _capabilities(element).items() if value[1]}
    if not config:
        return config, ignored | dict.fromkeys(requested, _IN_A_FILE)
    if not requested:
        return config, ignored
    document = _checked.decode(config)
    plugins = [document] if "type" in document else document["plugins"]
    for key, (capability, value) in requested.items():
        declaring = [plugin for plugin in plugins if _declares(plugin, capability)]
        for plugin in declaring:
            given = plugin.get("runtimeConfig") or {}
            if not isinstance(given, dict):
                REJECTED.count(Edge.NETWORK, RejectReason.INVALID)
                kind = printable(str(plugin.get("type")), MAX_QUOTE)
                raise _invalid(f"runtimeConfig of plugin {kind} is not an object")
            plugin["runtimeConfig"] = {**given, capability: value}
        if not declaring:
            ignored[key] = _UNDECLARED
    return msgspec.json.encode(document), ignored


def _capabilities(element: NetworkSelectionElement) -> dict[str, tuple[str, Any]]:
    """Return capability (as the CNI conventions name it) and value, by key of the element."""
    return {
        "bandwidth": ("bandwidth", msgspec.to_builtins(element.bandwidth)),
        "portMappings": ("portMappings", msgspec.to_builtins(element.port_mappings)),
        "infiniband-guid": ("infinibandGUID", element.infiniband_guid),
        "deviceID": ("deviceID", element.device_id),
    }


def _declares(plugin: Any, capability: str) -> bool:
    declared = plugin.get("capabilities") if isinstance(plugin, dict) else None
    return isinstance(declared, dict) and declared.get(capability) is True
