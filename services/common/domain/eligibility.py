"""Whether an interface can be plugged or unplugged at run time at all, and if not, why: words for api and controller.

Only what specs and the pod's annotations tell; whether a slot is free or a network exists is asked elsewhere.
Next: :mod:`services.common.domain.attachments`, what the pod then has to be given.
"""

from schemas.kube import Interface, Network, Pod, VmiSpec
from schemas.names import KNOWN_INTERFACE_NAME, interface_hash, is_ordinal
from schemas.networks import NETWORK_STATUS, NETWORKS, parse_network_status, parse_networks

MODELS = (None, "", "virtio")
"""The models of a card that can be plugged."""

ORDINAL = "its pod was made with ordinal interface names (net1, …), which would be renumbered; restart the VM first"


def why_fixed(interface: Interface, network: Network | None) -> str | None:
    """Why an interface can be neither plugged nor unplugged while the VM runs; ``None`` when it can be."""
    name = interface.name
    if network is None:
        return f"interface {name!r} has no network of its name"
    if network.multus is None or network.multus.default:
        return f"interface {name!r} is on the pod's primary network, which stays as it is while the VM runs"
    if interface.bridge is None:
        return f"interface {name!r} is not bound by bridge, the only binding that can change while the VM runs"
    return None


def why_not_pluggable(interface: Interface, network: Network | None) -> str | None:
    """Why an interface as written cannot be plugged; ``None`` when it can be."""
    if not KNOWN_INTERFACE_NAME.fullmatch(interface.name):
        return f"interface name {interface.name!r} is malformed: letters, digits, '-' and '_' only"
    if (why := why_fixed(interface, network)) is not None:
        return why
    if interface.model not in MODELS:
        return f"interface {interface.name!r} is of model {interface.model}; only virtio can be plugged"
    return None


def hash_collision(spec: VmiSpec, name: str) -> str | None:
    """Another interface of the spec whose links in the pod would be called alike; ``None`` when there is none."""
    others = (str(item.get("name")) for item in spec.domain.devices.interfaces or ())
    return next((o for o in others if o != name and interface_hash(o) == interface_hash(name)), None)


def ordinal(pod: Pod) -> bool:
    """Whether a pod has interface names of the old, ordinal scheme: then nothing can be unplugged from it.

    :raises ValueError: an annotation is malformed.
    """
    annotations = pod.metadata.annotations
    present = [e.requested_interface for e in parse_networks(annotations.get(NETWORKS))]
    present += [s.interface for s in parse_network_status(annotations.get(NETWORK_STATUS))]
    return any(name is not None and is_ordinal(name) for name in present)
