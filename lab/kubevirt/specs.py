"""Make networks and interfaces of a VMI follow its VM, and remove unplugged ones from both, as virt-controller does.

All functions are pure; specs are decoded JSON. The template is followed from 1.1, the request queue in 1.0.
Next: `annotations.py`, the attachments of the VMI's pod.
"""

from __future__ import annotations

from typing import Any, Final, NamedTuple

from lab.kubevirt.versions import Behaviour

Object = dict[str, Any]

ABSENT: Final = "absent"


class SpecLists(NamedTuple):
    """Networks and interfaces of a VMI's spec or of a VM's template."""

    networks: list[Object]
    interfaces: list[Object]

    def interface(self, name: str) -> Object | None:
        """Return the interface of that name."""
        return next((item for item in self.interfaces if item.get("name") == name), None)

    def network(self, name: str) -> Object | None:
        """Return the network of that name."""
        return next((item for item in self.networks if item.get("name") == name), None)

    def without(self, names: set[str]) -> SpecLists:
        """Return the lists without these interfaces and their networks."""
        return SpecLists(
            [item for item in self.networks if item.get("name") not in names],
            [item for item in self.interfaces if item.get("name") not in names],
        )

    def with_interface(self, interface: Object) -> SpecLists:
        """Return the lists with the interface of that name replaced."""
        name = interface["name"]
        return SpecLists(self.networks, [interface if item.get("name") == name else item for item in self.interfaces])

    def with_network(self, network: Object) -> SpecLists:
        """Return the lists with the network of that name replaced."""
        name = network["name"]
        return SpecLists([network if item.get("name") == name else item for item in self.networks], self.interfaces)


def lists_of(spec: Object) -> SpecLists:
    """Return the lists of a VMI's spec."""
    return SpecLists(spec.get("networks") or [], spec.get("domain", {}).get("devices", {}).get("interfaces") or [])


def is_secondary(network: Object | None) -> bool:
    """Return whether a network is one of Multus, and not the pod's default network."""
    return bool(network and network.get("multus") and not network["multus"].get("default"))


def hotpluggable(interface: Object, network: Object | None) -> bool:
    """Return whether an interface is plugged at run time: bridge binding, or SR-IOV by a migration."""
    return is_secondary(network) and ("bridge" in interface or "sriov" in interface)


def follow_template(
    template: SpecLists, vmi: SpecLists, entries: list[Object], behaviour: Behaviour, *, clear: bool = True
) -> SpecLists:
    """Return the lists that a running VMI gets from its VM's template.

    :param entries: the VMI's `status.interfaces`.
    :param clear: whether absent interfaces without an entry are removed in the same step.
    """
    lists = vmi
    for interface in template.interfaces:
        name, network = interface["name"], template.network(interface["name"])
        present = lists.interface(name)
        if present is None:
            if interface.get("state") != ABSENT and network is not None and hotpluggable(interface, network):
                lists = SpecLists([*lists.networks, network], [*lists.interfaces, interface])
        elif (changed := _with_state(present, interface, entries, vmi, behaviour)) is not present:
            lists = lists.with_interface(changed)
    if clear:
        lists = clear_unplugged(lists, entries)
    if behaviour.nad_change:
        lists = _with_nads(lists, template)
    return lists


def _with_state(present: Object, wanted: Object, entries: list[Object], vmi: SpecLists, behaviour: Behaviour) -> Object:
    """Return the VMI's interface with the template's state; an absent interface stays absent."""
    before, after = present.get("state", ""), wanted.get("state", "")
    if before in (after, ABSENT):
        return present
    if after == ABSENT:
        # Without an entry that names its pod interface, a pod with ordinal names cannot be told from others.
        if "podInterfaceName" in behaviour.entry_fields and not _naming_known(vmi, entries):
            return present
    elif not behaviour.link_state:
        return present
    rest = {key: value for key, value in present.items() if key != "state"}
    return {**rest, "state": after} if after else rest


def _naming_known(vmi: SpecLists, entries: list[Object]) -> bool:
    return any(e.get("podInterfaceName") and is_secondary(vmi.network(str(e.get("name")))) for e in entries)


def _with_nads(lists: SpecLists, template: SpecLists) -> SpecLists:
    for wanted in template.networks:
        present = lists.network(wanted["name"])
        if present is None or not (is_secondary(present) and is_secondary(wanted)):
            continue
        if present["multus"].get("networkName") != wanted["multus"].get("networkName"):
            multus = {**present["multus"], "networkName": wanted["multus"].get("networkName")}
            lists = lists.with_network({**present, "multus": multus})
    return lists


def clear_unplugged(lists: SpecLists, entries: list[Object]) -> SpecLists:
    """Return the lists without the absent interfaces that have no entry in `status.interfaces`."""
    names = {entry.get("name") for entry in entries}
    gone = {i["name"] for i in lists.interfaces if i.get("state") == ABSENT and i["name"] not in names}
    return lists.without(gone) if gone else lists


def clear_template(
    template: SpecLists, vmi: SpecLists | None, entries: list[Object], behaviour: Behaviour
) -> SpecLists:
    """Return the template without the absent interfaces that are unplugged.

    :param vmi: the lists of the VMI; `None` for a stopped VM.
    """
    if vmi is None:
        return clear_unplugged(template, []) if behaviour.clears_stopped else template
    names = {entry.get("name") for entry in entries}
    if behaviour.clears_template_last:
        names |= {interface["name"] for interface in vmi.interfaces}
    gone = {i["name"] for i in template.interfaces if i.get("state") == ABSENT and i["name"] not in names}
    return template.without(gone) if gone else template


def with_request(lists: SpecLists, request: Object) -> SpecLists:
    """Return the lists with one request of the queue applied; a request that changes nothing leaves them as they are.

    :param request: an item of `status.interfaceRequests`.
    """
    if add := request.get("addInterfaceOptions"):
        if lists.interface(add["name"]) is not None:
            return lists
        network = {"name": add["name"], "multus": {"networkName": add["networkAttachmentDefinitionName"]}}
        return SpecLists([*lists.networks, network], [*lists.interfaces, {"name": add["name"], "bridge": {}}])
    name = request.get("removeInterfaceOptions", {}).get("name")
    present = lists.interface(name)
    return lists if present is None else lists.with_interface({**present, "state": ABSENT})


def is_done(request: Object, template: SpecLists, vmi: SpecLists | None) -> bool:
    """Return whether a request leaves the queue: template and VMI show it. One for an unknown interface never does."""
    sides = [template, *([vmi] if vmi is not None else [])]
    if add := request.get("addInterfaceOptions"):
        return all(side.interface(add["name"]) is not None for side in sides)
    name = request.get("removeInterfaceOptions", {}).get("name")
    return all((side.interface(name) or {}).get("state") == ABSENT for side in sides)


def with_model(lists: SpecLists, model: str) -> SpecLists:
    """Return the lists with the model that a preference names, on every interface that has none."""
    if not model:
        return lists
    return SpecLists(lists.networks, [{"model": model, **interface} for interface in lists.interfaces])


def needs_restart(template: SpecLists, vmi: SpecLists, behaviour: Behaviour) -> bool:
    """Return whether the template has a change of networks that only a restart applies.

    :param vmi: the lists of the VMI; where every edit needs a restart, those of the template that it started from.
    """
    if not template.interfaces:
        # KubeVirt gives the default interface to a VM that lists none.
        template = vmi.without({i["name"] for i in vmi.interfaces if is_secondary(vmi.network(i["name"]))})
    if any("pod" in network and vmi.network(network["name"]) is None for network in template.networks):
        return True
    if behaviour.network_edit_needs_restart:
        return (template.networks, template.interfaces) != (vmi.networks, vmi.interfaces)
    return any(_differs(present, template.interface(present["name"]), ("state",)) for present in vmi.interfaces) or any(
        _differs(_kept(present, behaviour), _kept(template.network(present["name"]), behaviour), ())
        for present in vmi.networks
        if (vmi.interface(present["name"]) or {}).get("state") != ABSENT
    )


def _differs(present: Object | None, wanted: Object | None, ignored: tuple[str, ...]) -> bool:
    if present is None or wanted is None:
        # An absent interface may be gone from the template already.
        return present is not None and present.get("state") != ABSENT
    return any(present.get(key) != wanted.get(key) for key in {*present, *wanted} - {*ignored})


def _kept(network: Object | None, behaviour: Behaviour) -> Object | None:
    """Return what may not change in a network: all of it, but for the NAD where its change is followed."""
    if network is None or not is_secondary(network) or not behaviour.nad_change:
        return network
    return {**network, "multus": {key: value for key, value in network["multus"].items() if key != "networkName"}}
