"""Guarded JSON patches of a spec's networks and interfaces, of a VMI or of a VM's template.

A patch carries ``test`` operations on both lists (KubeVirt's form) and on every annotation it touches, so that it can
only be applied to the state the decision was taken on; spec and operation change in one write.
Next: :mod:`services.common.domain.template`, what of a VM's template its VMI still lacks.
"""

from collections.abc import Iterable, Mapping
from typing import Any

import msgspec

from schemas.kube import ObjectMeta, VirtualMachine, VirtualMachineInstance, VmiSpec
from schemas.operations import Operation, encode, operation_key
from services.common.domain.operations import ABSENT

ANNOTATIONS_PATH = "/metadata/annotations"
VMI_SPEC_PATH = "/spec"
TEMPLATE_SPEC_PATH = "/spec/template/spec"

Op = dict[str, Any]
Item = dict[str, Any]


class Lists(msgspec.Struct, frozen=True):
    """The two lists of a spec, as decoded JSON; ``None`` where the object has none."""

    networks: list[Item] | None
    interfaces: list[Item] | None

    def plus(self, interface: Item, network: Item | None) -> "Lists":
        """With a NIC appended; ``network`` is ``None`` when it stands there already."""
        networks = [*(self.networks or ()), network] if network is not None else self.networks
        return Lists(networks, [*(self.interfaces or ()), interface])

    def absent(self, names: Iterable[str]) -> "Lists":
        """With these interfaces asked to be unplugged."""
        gone = set(names)
        items = [{**item, "state": ABSENT} if item.get("name") in gone else item for item in self.interfaces or ()]
        return Lists(self.networks, items)

    def linked(self, states: Mapping[str, str]) -> "Lists":
        """With these interfaces' ``state`` as given; an empty one is taken out."""
        items = []
        for item in self.interfaces or ():
            state = states.get(str(item.get("name")))
            kept = item if state is None else {key: value for key, value in item.items() if key != "state"}
            items.append({**kept, "state": state} if state else kept)
        return Lists(self.networks, items)

    def without(self, names: Iterable[str]) -> "Lists":
        """Without these interfaces and their networks."""
        gone = set(names)
        return Lists(
            [item for item in self.networks or () if item.get("name") not in gone],
            [item for item in self.interfaces or () if item.get("name") not in gone],
        )


class Holder(msgspec.Struct, frozen=True):
    """What carries the two lists: a VMI, or a VM in its template. ``path`` is where its spec stands."""

    metadata: ObjectMeta
    spec: VmiSpec
    path: str

    @property
    def lists(self) -> Lists:
        """The lists as they stand."""
        return Lists(self.spec.networks, self.spec.domain.devices.interfaces)


def of_vmi(vmi: VirtualMachineInstance) -> Holder:
    """A VMI's own spec."""
    return Holder(vmi.metadata, vmi.spec, VMI_SPEC_PATH)


def of_vm(vm: VirtualMachine) -> Holder:
    """The template of a VM."""
    return Holder(vm.metadata, vm.spec.template.spec, TEMPLATE_SPEC_PATH)


def pointer_segment(text: str) -> str:
    """A JSON pointer segment (RFC 6901)."""
    return text.replace("~", "~0").replace("/", "~1")


def annotation_path(key: str) -> str:
    """The JSON pointer to an annotation."""
    return f"{ANNOTATIONS_PATH}/{pointer_segment(key)}"


def annotate(annotations: Mapping[str, str], resource_version: str, changes: Mapping[str, str | None]) -> list[Op]:
    """Operations that set (or, with ``None``, remove) annotations.

    An object without annotations needs the map made, which would wipe another's first annotation: that write is
    guarded by the object's version.
    """
    if not annotations:
        added = {key: value for key, value in changes.items() if value is not None}
        if not added:
            return []
        return [
            {"op": "test", "path": "/metadata/resourceVersion", "value": resource_version},
            {"op": "add", "path": ANNOTATIONS_PATH, "value": added},
        ]
    ops: list[Op] = []
    for key, value in changes.items():
        target = annotation_path(key)
        if value is not None:
            ops.append({"op": "add", "path": target, "value": value})
        elif key in annotations:
            ops.append({"op": "remove", "path": target})
    return ops


def notes(operations: Iterable[Operation]) -> dict[str, str | None]:
    """The annotations that carry these operations."""
    return {operation_key(operation.interface): encode(operation) for operation in operations}


def change(holder: Holder, lists: Lists, annotations: Mapping[str, str | None]) -> list[Op]:
    """The patch that makes the lists and these annotations so.

    :param annotations: ``None`` removes one. Each is tested to be still what was seen, or still absent.
    """
    before, known = holder.lists, holder.metadata.annotations
    paths = {"networks": f"{holder.path}/networks", "interfaces": f"{holder.path}/domain/devices/interfaces"}
    ops: list[Op] = [{"op": "test", "path": path, "value": getattr(before, name)} for name, path in paths.items()]
    if known:
        # A null test holds where nothing stands, too.
        ops += [{"op": "test", "path": annotation_path(key), "value": known.get(key)} for key in annotations]
    ops += [
        {"op": "add", "path": path, "value": getattr(lists, name)}
        for name, path in paths.items()
        if getattr(lists, name) != getattr(before, name)
    ]
    return ops + annotate(known, holder.metadata.resource_version, annotations)
