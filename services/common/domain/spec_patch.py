"""Guarded JSON patches for networks and interfaces in the spec of a VMI or in a VM's template.

A patch has ``test`` operations on both lists (as KubeVirt's own patches) and on every annotation it changes. So it
applies only to the state on which the decision is based, and spec and operation change in one write.
Next: :mod:`services.common.domain.template`, the differences between a VM's template and its VMI.
"""

from collections.abc import Iterable, Mapping
from typing import Any

import msgspec

from schemas.kubernetes.objects import ObjectMeta, VirtualMachine, VirtualMachineInstance, VmiSpec
from schemas.kubernetes.operations import Operation, encode_annotation, held_by, operation_key
from services.common.domain.operations import ABSENT

ANNOTATIONS_PATH = "/metadata/annotations"
VMI_SPEC_PATH = "/spec"
TEMPLATE_SPEC_PATH = "/spec/template/spec"

PatchOp = dict[str, Any]
SpecItem = dict[str, Any]


class InterfaceLists(msgspec.Struct, frozen=True):
    """The two lists of a spec as decoded JSON; ``None`` where the object has no list.

    The methods return changed copies.
    """

    networks: list[SpecItem] | None
    interfaces: list[SpecItem] | None

    def with_interface(self, interface: SpecItem, network: SpecItem | None) -> "InterfaceLists":
        """Append an interface and its network; ``network`` is ``None`` if the list has it already."""
        networks = [*(self.networks or ()), network] if network is not None else self.networks
        return InterfaceLists(networks, [*(self.interfaces or ()), interface])

    def with_absent(self, names: Iterable[str]) -> "InterfaceLists":
        """Set ``state: absent`` on these interfaces, which requests their unplug."""
        selected = set(names)
        items = [{**item, "state": ABSENT} if item.get("name") in selected else item for item in self.interfaces or ()]
        return InterfaceLists(self.networks, items)

    def with_link_states(self, states: Mapping[str, str]) -> "InterfaceLists":
        """Set ``state`` of these interfaces; an empty state removes the field."""
        items = []
        for item in self.interfaces or ():
            state = states.get(str(item.get("name")))
            rest = item if state is None else {key: value for key, value in item.items() if key != "state"}
            items.append({**rest, "state": state} if state else rest)
        return InterfaceLists(self.networks, items)

    def without_interfaces(self, names: Iterable[str]) -> "InterfaceLists":
        """Remove these interfaces and their networks."""
        selected = set(names)
        return InterfaceLists(
            [item for item in self.networks or () if item.get("name") not in selected],
            [item for item in self.interfaces or () if item.get("name") not in selected],
        )


class SpecHolder(msgspec.Struct, frozen=True):
    """An object that contains the two lists: a VMI, or a VM in its template.

    :ivar metadata: metadata of the object.
    :ivar spec: the spec of the VMI, or of the VM's template.
    :ivar path: JSON pointer to that spec in the object.
    """

    metadata: ObjectMeta
    spec: VmiSpec
    path: str

    @property
    def lists(self) -> InterfaceLists:
        """The current lists."""
        return InterfaceLists(self.spec.networks, self.spec.domain.devices.interfaces)


def vmi_spec_holder(vmi: VirtualMachineInstance) -> SpecHolder:
    """Return the holder for the spec of a VMI."""
    return SpecHolder(vmi.metadata, vmi.spec, VMI_SPEC_PATH)


def template_spec_holder(vm: VirtualMachine) -> SpecHolder:
    """Return the holder for the template of a VM."""
    return SpecHolder(vm.metadata, vm.spec.template.spec, TEMPLATE_SPEC_PATH)


def pointer_segment(text: str) -> str:
    """Return text escaped as a segment of a JSON pointer (RFC 6901)."""
    return text.replace("~", "~0").replace("/", "~1")


def annotation_path(key: str) -> str:
    """Return the JSON pointer to an annotation."""
    return f"{ANNOTATIONS_PATH}/{pointer_segment(key)}"


def build_annotation_ops(
    annotations: Mapping[str, str], resource_version: str, changes: Mapping[str, str | None]
) -> list[PatchOp]:
    """Return patch operations that set annotations, or remove them where the value is ``None``.

    An object without annotations needs the whole map added. That would overwrite an annotation added in the meantime,
    so the object's resource version guards this write.
    """
    if not annotations:
        added = {key: value for key, value in changes.items() if value is not None}
        if not added:
            return []
        return [
            {"op": "test", "path": "/metadata/resourceVersion", "value": resource_version},
            {"op": "add", "path": ANNOTATIONS_PATH, "value": added},
        ]
    ops: list[PatchOp] = []
    for key, value in changes.items():
        target = annotation_path(key)
        if value is not None:
            ops.append({"op": "add", "path": target, "value": value})
        elif key in annotations:
            ops.append({"op": "remove", "path": target})
    return ops


def operation_annotations(operations: Iterable[Operation], uid: str) -> dict[str, str | None]:
    """Return the annotations for these operations of the object with this UID."""
    return {operation_key(one.interface): encode_annotation(held_by(one, uid)) for one in operations}


def build_patch(holder: SpecHolder, lists: InterfaceLists, annotations: Mapping[str, str | None]) -> list[PatchOp]:
    """Return the patch that changes an object to these lists and annotations.

    :param annotations: new values; ``None`` removes the annotation. The patch tests that each still has the value in
        ``holder``, or is still absent.
    """
    current, present = holder.lists, holder.metadata.annotations
    paths = {"networks": f"{holder.path}/networks", "interfaces": f"{holder.path}/domain/devices/interfaces"}
    ops: list[PatchOp] = [{"op": "test", "path": path, "value": getattr(current, name)} for name, path in paths.items()]
    if present:
        # A test for null also succeeds on a missing annotation.
        ops += [{"op": "test", "path": annotation_path(key), "value": present.get(key)} for key in annotations]
    # `add` also replaces a value, and unlike `replace` it works where the list is missing (RFC 6902 section 4.1).
    ops += [
        {"op": "add", "path": path, "value": getattr(lists, name)}
        for name, path in paths.items()
        if getattr(lists, name) != getattr(current, name)
    ]
    return ops + build_annotation_ops(present, holder.metadata.resource_version, annotations)
