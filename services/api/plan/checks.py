"""Checks that requests about a VM and about a VMI share: pure, each answers with a refusal or ``None``.

Nothing is accepted that cannot be done: whatever objects can tell is asked here, before the patch.
Next: :mod:`services.api.plan.vmi`.
"""

import json
from typing import Any

from schemas.kube import Interface, Network, VirtualMachineInstance, VmiSpec
from schemas.operations import nic_slots_of, operation_of
from schemas.options import AddInterfaceOptions, RemoveInterfaceOptions
from services.api.plan.answers import Observed, Refuse, conflict, invalid
from services.common.domain.attachments import nad_reference, secondary
from services.common.domain.eligibility import ORDINAL, hash_collision, ordinal, why_fixed
from services.common.domain.kubevirt import GATE
from services.common.domain.operations import ABSENT
from services.common.domain.status_interfaces import DOMAIN, entry_of, tokens

GATE_CLOSED = f'Unable to Add Interface because the "{GATE}" feature gate is not enabled.'
"""KubeVirt's words, for ``removeinterface`` as well."""

UNBRIDGEABLE = frozenset({"ipvlan"})
"""CNI plugins whose links cannot pass a second MAC address, whatever their mode."""


def reference(seen: Observed) -> str:
    """The NAD of an ``addinterface`` request as ``namespace/name``."""
    assert isinstance(seen.options, AddInterfaceOptions)
    return "/".join(nad_reference(seen.options.network_attachment_definition_name, seen.namespace))


def same_network(seen: Observed, network: Network | None) -> bool:
    """Whether a network of a spec is the one the request names."""
    if network is None or network.multus is None or not network.multus.network_name:
        return False
    return "/".join(nad_reference(network.multus.network_name, seen.namespace)) == reference(seen)


def taken(seen: Observed, interface: Interface, network: Network | None, state: str) -> Refuse:
    """409: the name belongs to something else, which is named."""
    multus = network.multus.network_name if network is not None and network.multus is not None else ""
    owner = f"network attachment {multus!r}" if multus else "the pod network"
    why = f"interface name {interface.name!r} is taken by {owner}{state}; choose another name"
    return conflict(seen, why, "AlreadyExists")


def collision(seen: Observed, spec: VmiSpec) -> Refuse | None:
    """The name is free, but something else stands in its way."""
    name = seen.options.name
    if (other := hash_collision(spec, name)) is not None:
        return conflict(seen, f"interface name {name!r} has the same link names as {other!r}; choose another")
    interfaces = {interface.name for interface in spec.interface_items()}
    if name not in interfaces and any(network.name == name for network in spec.network_items()):
        return conflict(seen, f"network name {name!r} is taken; choose another name", "AlreadyExists")
    return None


def unfit_network(seen: Observed) -> Refuse | None:
    """The NAD is not for this user, does not exist, or its links cannot serve a guest."""
    namespace, _, name = reference(seen).partition("/")
    kind = "network-attachment-definitions"
    if not seen.usable:
        # First, and in the API server's words: it also must not tell whether there is one.
        message = (
            f'{kind}.k8s.cni.cncf.io "{name}" is forbidden: User "{seen.user}" cannot get resource "{kind}" '
            f'in API group "k8s.cni.cncf.io" in the namespace "{namespace}"'
        )
        return Refuse(403, "Forbidden", message, kind, name)
    if seen.nad is None:
        message = f'{kind}.k8s.cni.cncf.io "{name}" not found in namespace "{namespace}"'
        return Refuse(404, "NotFound", message, kind, name)
    plugin = unbridgeable(seen.nad.spec.config)
    if plugin is None:
        return None
    return Refuse(
        422,
        "Invalid",
        f"network attachment {namespace}/{name} makes {plugin} links, which pass no traffic of a bridged guest; "
        "use a bridge network",
        kind,
        name,
    )


def no_slot(seen: Observed, vmi: VirtualMachineInstance, coming: int = 0) -> Refuse | None:
    """The domain has no room for another card beside those on their way; a count of another pod says nothing.

    :param coming: NICs that the VMI's spec does not have yet.
    """
    slots = nic_slots_of(vmi.metadata.annotations)
    if slots is None or slots.pod_uid not in vmi.status.active_pods:
        return None
    coming += sum(_on_its_way(vmi, interface) for interface, _ in secondary(vmi.spec))
    if slots.free > coming:
        return None
    others = f" and {coming} on their way to the last free ones" if slots.free else ""
    return conflict(
        seen,
        f"no free slot for another NIC: the domain has {slots.nics}{others}; "
        "unplug one or restart the VM with more slots",
    )


def _on_its_way(vmi: VirtualMachineInstance, interface: Interface) -> bool:
    """Whether an interface will take a slot that is counted as free yet."""
    if interface.state == ABSENT or interface.bridge is None:
        return False
    operation = operation_of(vmi.metadata.annotations, interface.name)
    if operation is not None and operation.failed is not None:
        return False
    return DOMAIN not in tokens(entry_of(vmi.status.interfaces, interface.name) or {})


def unknown(seen: Observed, hint: str = "") -> Refuse:
    """404: there is no such interface to remove."""
    assert isinstance(seen.options, RemoveInterfaceOptions)
    message = f'interface "{seen.options.name}" not found in {seen.target}.kubevirt.io "{seen.name}"{hint}'
    # Not about the VM: who reads the details must not take that for missing.
    return Refuse(404, "NotFound", message, "interface", seen.options.name)


def not_removable(seen: Observed, interface: Interface, network: Network | None) -> Refuse | None:
    """The interface cannot be unplugged: what it is, or how the running pod calls it."""
    if (why := why_fixed(interface, network)) is not None:
        return invalid(seen, f"{_state_refused(interface, network)}{why}; it cannot be removed")
    if seen.pod is not None and ordinal(seen.pod):
        return conflict(seen, f"interface {interface.name!r} cannot be unplugged: {ORDINAL}")
    return None


def _state_refused(interface: Interface, network: Network | None) -> str:
    """How KubeVirt's webhook begins its refusal; empty where it has no words for it."""
    if network is None:
        return ""
    default = network.multus is None or network.multus.default
    words = "not supported on default networks" if default else "supported only for bridge binding"
    return f'"{interface.name}" interface\'s state "{ABSENT}" is {words}: '


def unbridgeable(config: str) -> str | None:
    """The plugin of a NAD's config whose links cannot be bridged to a guest, or ``None``.

    macvlan passes frames of its own MAC only, except in mode ``passthru``; ipvlan never. A config that cannot be
    read is not judged here: the attachment's own error will be clearer.
    """
    try:
        document: Any = json.loads(config)
    except (ValueError, RecursionError):
        return None
    if not isinstance(document, dict):
        return None
    plugins = document.get("plugins")
    first = plugins[0] if isinstance(plugins, list) and plugins else document
    if not isinstance(first, dict):
        return None
    plugin = first.get("type")
    if plugin == "macvlan" and first.get("mode", "bridge") != "passthru":
        return "macvlan"
    return plugin if plugin in UNBRIDGEABLE else None
