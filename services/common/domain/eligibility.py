"""Whether an interface can be plugged or unplugged at run time, and the reason if not, for api and controller.

Decided from specs and pod annotations only; free NIC slots and the existence of NADs are checked elsewhere.
Next: :mod:`services.common.domain.attachments`, the attachments that the pod then needs.
"""

from schemas.kubernetes.objects import Interface, Network, VmiSpec
from schemas.names import KNOWN_INTERFACE_NAME, interface_hash
from services.common.domain.nic import VmiNics

MODELS = (None, "", "virtio")
"""Models of a NIC that can be hot-plugged; the default is virtio."""

ORDINAL_NAMES = "its pod has ordinal interface names (net1, …), which an unplug would renumber; restart the VM first"


def find_change_obstacle(interface: Interface, network: Network | None) -> str | None:
    """Return why an interface can be neither plugged nor unplugged while the VM runs; ``None`` if it can."""
    name = interface.name
    if network is None:
        return f"interface {name!r} has no network of the same name; add it to spec.networks"
    if network.multus is None or network.multus.default:
        return f"interface {name!r} is on the pod's primary network, which cannot change while the VM runs"
    if interface.bridge is None:
        return (
            f"interface {name!r} does not use the bridge binding; only bridge interfaces can change while the VM runs"
        )
    return None


def find_plug_obstacle(interface: Interface, network: Network | None) -> str | None:
    """Return why an interface cannot be plugged as specified; ``None`` if it can."""
    if not KNOWN_INTERFACE_NAME.fullmatch(interface.name):
        return f"interface name {interface.name!r} is malformed: use only letters, digits, '-' and '_'"
    if (why := find_change_obstacle(interface, network)) is not None:
        return why
    if interface.model not in MODELS:
        return f"interface {interface.name!r} has model {interface.model}; only virtio can be hot-plugged"
    return None


def find_hash_collision(spec: VmiSpec, name: str) -> str | None:
    """Return another interface of the spec with the same ``<h>`` as ``name``; ``None`` if there is none."""
    digits = interface_hash(name)
    others = (str(item.get("name")) for item in spec.domain.devices.interfaces or ())
    return next((other for other in others if other != name and interface_hash(other) == digits), None)


def find_unplug_obstacle(nics: VmiNics, name: str) -> str | None:
    """Return why an interface of a running VMI cannot be unplugged; ``None`` if it can."""
    ordinal = f"interface {name!r} cannot be unplugged: {ORDINAL_NAMES}" if nics.ordinal else None
    return find_change_obstacle(nics.interfaces[name], nics.networks.get(name)) or ordinal
