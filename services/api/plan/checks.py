"""Checks that requests about a VM and about a VMI share, and the refusals they raise. Pure: no I/O.

A function ``check_…`` raises a refusal or returns ``None``. The checks run before the patch, so that a request which is
known to fail later is refused at once.
Next: :mod:`services.api.plan.vmi`.
"""

from typing import Any

from schemas.cni import MAX_CONFIG_BYTES, MAX_PLUGINS, SUPPORTED_VERSIONS
from schemas.inputs import Edge, InputDecoder, RejectedInput
from schemas.kubernetes.networks import RESOURCE_NAME
from schemas.kubernetes.objects import Interface, Network, NetworkAttachmentDefinition, VmiSpec
from schemas.kubernetes.operations import read_nic_slots
from schemas.kubernetes.options import AddInterfaceOptions
from services.api.plan.answers import Observed, Refused, RefuseRequest, conflict, invalid
from services.common.domain.eligibility import ORDINAL_NAMES, find_change_obstacle, find_hash_collision
from services.common.domain.kubevirt.capabilities import HOTPLUG_GATE, Capabilities
from services.common.domain.nic import Nic, VmiNics, qualified_nad
from services.common.domain.operations import ABSENT
from services.common.domain.status_interfaces import DOMAIN

_configuration = InputDecoder(Edge.NETWORK, dict[str, Any], max_bytes=MAX_CONFIG_BYTES)

GATE_DISABLED = f'Unable to Add Interface because the "{HOTPLUG_GATE}" feature gate is not enabled.'
"""The refusal while the feature gate is off, in KubeVirt's words, for ``removeinterface`` as well."""

GATE_BESIDE = (
    f"{GATE_DISABLED} KubeVirt owns the VMs, so list it in the KubeVirt object: "
    "spec.configuration.developerConfiguration.featureGates"
)
NO_OWNER = (
    "no interface can be plugged or unplugged in this cluster now: HOTNIC_VM_OWNER is hotnic while KubeVirt's "
    "controllers run, or it is kubevirt and there is no KubeVirt object; stop KubeVirt's controllers, or correct the "
    "setting"
)
INSTALLING = (
    "KubeVirt is being installed (its object has no status.observedKubeVirtVersion yet), and nobody follows a change "
    "of a VM; try again when it is installed"
)

CNI_VERSIONS = ("0.1.0", "0.2.0", "0.3.0", *SUPPORTED_VERSIONS)
"""Versions of a CNI configuration that multus reads."""

MARKERS = ("bridge.network.kubevirt.io/", "ovs-cni.network.kubevirt.io/")
"""Prefixes of resources that only mark the nodes which have a bridge: no plugin needs a device of them."""


def find_mode_obstacle(beside: Capabilities | None, *, enabled: bool) -> tuple[int, str, str] | None:
    """Return why no interface can change in this cluster, as code, reason and message; ``None`` if one can.

    :param beside: what the KubeVirt that owns the VMs can do; ``None`` where hotnic owns them.
    :param enabled: whether hot-plug is enabled by hotnic's setting.
    """
    if beside is not None and beside.installing:
        return 409, "Conflict", INSTALLING
    if beside is not None and beside.gate:
        return 400, "BadRequest", GATE_BESIDE
    return None if enabled else (400, "BadRequest", GATE_DISABLED)


def requested_nad(observed: Observed) -> str:
    """Return the NAD of an ``addinterface`` request as ``namespace/name``."""
    assert isinstance(observed.options, AddInterfaceOptions)
    return qualified_nad(observed.options.network_attachment_definition_name, observed.namespace)


def is_requested_network(observed: Observed, network: Network | None) -> bool:
    """Return whether a network of a spec uses the NAD that the request names."""
    reference = network.multus.network_name if network is not None and network.multus is not None else ""
    return bool(reference) and qualified_nad(reference, observed.namespace) == requested_nad(observed)


def name_taken(observed: Observed, interface: Interface, network: Network | None, state: str) -> Refused:
    """Return a 409 refusal that names the network which has the interface's name.

    :param state: the state of that interface as a clause, such as " and is being unplugged"; may be empty.
    """
    multus = network.multus.network_name if network is not None and network.multus is not None else ""
    owner = f"network attachment {multus!r}" if multus else "the pod network"
    why = f"interface name {interface.name!r} is taken by {owner}{state}; choose another name"
    return conflict(observed, why, "AlreadyExists")


def check_name(observed: Observed, spec: VmiSpec) -> None:
    """Refuse a name that collides with the link names of another interface or with the name of a network."""
    name = observed.options.name
    if (other := find_hash_collision(spec, name)) is not None:
        raise conflict(observed, f"interface name {name!r} has the same link names as {other!r}; choose another name")
    interfaces = {item.get("name") for item in spec.domain.devices.interfaces or ()}
    if name not in interfaces and any(item.get("name") == name for item in spec.networks or ()):
        raise conflict(observed, f"network name {name!r} is taken; choose another name", "AlreadyExists")


def check_nad(observed: Observed, *, may_migrate: bool = False) -> None:
    """Refuse a NAD that the user may not use, that does not exist, or whose links cannot be bridged to a guest.

    :param may_migrate: whether a migration can attach what a running pod cannot get.
    """
    namespace, _, name = requested_nad(observed).partition("/")
    kind = "network-attachment-definitions"
    if not observed.nad_allowed:
        # Checked first, and worded as the API server does: the user must not learn whether the NAD exists.
        message = (
            f'{kind}.k8s.cni.cncf.io "{name}" is forbidden: User "{observed.user}" cannot get resource "{kind}" '
            f'in API group "k8s.cni.cncf.io" in the namespace "{namespace}"'
        )
        raise Refused(RefuseRequest(403, "Forbidden", message, kind, name))
    # KubeVirt does not read the NAD, so the plug fails later, in Multus.
    if observed.nad is None:
        message = f'{kind}.k8s.cni.cncf.io "{name}" not found in namespace "{namespace}"'
        raise Refused(RefuseRequest(404, "NotFound", message, kind, name))
    running = observed.vmi is not None and not may_migrate
    if (why := find_nad_obstacle(observed.nad, running=running)) is not None:
        message = f"network attachment {namespace}/{name} {why}"
        raise Refused(RefuseRequest(422, "Invalid", message, kind, name))


def nad_warnings(observed: Observed) -> tuple[str, ...]:
    """Return what the api cannot check of the requested NAD, for the user."""
    if observed.nad is None or observed.nad.spec.config.strip():
        return ()
    return (
        f"network attachment {requested_nad(observed)} has no spec.config: the plug fails unless its configuration is "
        "a file of the VM's node",
    )


def check_free_slot(observed: Observed, nics: VmiNics, pending: int) -> None:
    """Refuse a plug when the free slots of the domain are needed for the plugs in progress.

    :param pending: the number of plugs in progress whose interface the VMI's spec does not have yet.
    """
    slots = read_nic_slots(nics.vmi.metadata.annotations)
    # Plugs in progress take their slots before this one (ADR 14).
    pending += sum(_will_take_slot(nic) for nic in nics)
    # A count for an earlier pod does not apply to the domain that runs now.
    if slots is not None and slots.pod_uid in nics.vmi.status.active_pods and slots.free <= pending:
        others = f" (plugs in progress: {pending}, free slots: {slots.free})" if slots.free else ""
        raise conflict(
            observed,
            f"no free slot for another NIC: the domain has {slots.nics}{others}; "
            "unplug one or restart the VM with more slots",
        )


def _will_take_slot(nic: Nic) -> bool:
    """Return whether a NIC will take a slot that is still counted as free."""
    failed = nic.written is not None and nic.written.failed is not None
    return nic.interface.bridge is not None and not nic.absent and not failed and DOMAIN not in nic.tokens


def unknown_interface(observed: Observed, hint: str = "") -> Refused:
    """Return a 404 refusal: the target has no such interface.

    :param hint: text after the message.
    """
    name = observed.options.name
    message = f'interface "{name}" not found in {observed.target}.kubevirt.io "{observed.name}"{hint}'
    # The details name the interface. With the VM in them, a client would conclude that the VM does not exist.
    return Refused(RefuseRequest(404, "NotFound", message, "interface", name))


def check_removable(observed: Observed, interface: Interface, network: Network | None, ordinal: bool) -> None:
    """Refuse to remove an interface that cannot be unplugged, because of its network, its binding or its pod.

    :param ordinal: whether the running pod has ordinal interface names.
    """
    if (why := find_change_obstacle(interface, network)) is not None:
        raise invalid(observed, f"{_kubevirt_prefix(interface, network)}{why}")
    if ordinal:
        raise conflict(observed, f"interface {interface.name!r} cannot be unplugged: {ORDINAL_NAMES}")


def _kubevirt_prefix(interface: Interface, network: Network | None) -> str:
    """Return the beginning of the refusal in the words of KubeVirt's webhook; empty where KubeVirt has none."""
    if network is None:
        return ""
    default = network.multus is None or network.multus.default
    words = "not supported on default networks" if default else "supported only for bridge binding"
    return f'"{interface.name}" interface\'s state "{ABSENT}" is {words}: '


def find_device(nad: NetworkAttachmentDefinition) -> str:
    """Return the resource of a device plugin that a pod needs for a network; empty if it needs none."""
    resource = nad.metadata.annotations.get(RESOURCE_NAME, "")
    return "" if resource.startswith(MARKERS) else resource[:80]


def find_nad_obstacle(nad: NetworkAttachmentDefinition, *, running: bool) -> str | None:
    """Return why a NAD cannot be attached for a bridge interface, as a predicate; ``None`` if no reason is known.

    :param running: whether the VM runs.
    """
    if running and (device := find_device(nad)):
        return (
            f"needs the device {device!r}, and a running pod gets no more devices; use a network of the bridge "
            "plugin, or stop the VM first"
        )
    if not nad.spec.config.strip():
        return None
    try:
        document = _configuration.decode(nad.spec.config)
    except RejectedInput as error:
        return f"has a spec.config that is not a JSON object: {error}"
    found = document.get("plugins") if "plugins" in document else [document]
    plugins = [one for one in found if isinstance(one, dict)] if isinstance(found, list) else []
    if not any(isinstance(one.get("type"), str) and one["type"] for one in plugins):
        return 'has a spec.config that names no plugin: it has no "type"'
    if len(plugins) > MAX_PLUGINS:
        return f"has a spec.config with {len(plugins)} plugins; the limit is {MAX_PLUGINS}"
    offered = document.get("cniVersions")
    versions = [document.get("cniVersion"), *(offered if isinstance(offered, list) else ())]
    # A configuration without a version gets the daemon's default.
    if versions[0] and not any(version in CNI_VERSIONS for version in versions):
        return f"has cniVersion {str(versions[0])[:40]!r}; {', '.join(CNI_VERSIONS)} are supported"
    plugin = next((one["type"] for one in plugins if _is_unbridgeable(one)), None)
    if plugin is None:
        return None
    return f"creates {plugin} links, which pass no traffic of a bridged guest; use a network of the bridge plugin"


def _is_unbridgeable(plugin: dict[str, Any]) -> bool:
    """Return whether the links of a plugin pass only frames of their own MAC, as macvlan's do but for ``passthru``."""
    return plugin.get("type") == "ipvlan" or (
        plugin.get("type") == "macvlan" and plugin.get("mode", "bridge") != "passthru"
    )
