"""An operation beside KubeVirt whose changes come in any order, or not at all: its id holds, "complete" is true."""

from typing import Any

import msgspec
from hypothesis import given
from hypothesis import strategies as st

from schemas.bus.hotplug_status import InterfaceHotplugStatus
from schemas.kubernetes.networks import (
    NETWORK_STATUS,
    NETWORKS,
    NetworkSelectionElement,
    NetworkStatus,
    encode_network_status,
    encode_networks,
)
from schemas.kubernetes.objects import Pod, VirtualMachine, VirtualMachineInstance
from schemas.kubernetes.operations import Operation, encode_annotation, operation_key, unplug_key
from schemas.names import pod_interface
from schemas.stages import OperationKind, Stage
from services.common.domain.kubevirt.capabilities import Capabilities
from services.common.domain.nic import parse_nics
from services.common.domain.status.hotplug_status import derive_statuses
from services.controller.observe import parse_objects
from services.controller.plan.observing import plan_entries
from tests.support.observed import objects
from tests.support.observed.kubevirt import capabilities

LINK = pod_interface("iface1")
PLUG = Operation(
    "plug", OperationKind.PLUG, "iface1", f"00-{'a' * 32}-{'b' * 16}-01", "2026-01-01T00:00:00Z", vm=objects.VM_UID
)
UNPLUG = msgspec.structs.replace(PLUG, id="unplug", kind=OperationKind.UNPLUG)
BESIDE = capabilities("v1.9.0")


class World(msgspec.Struct, frozen=True):
    """What each object says of one interface. Each field is changed by somebody else, at any time.

    :ivar template: ``None``, ``present`` or ``absent``; ``vmi`` is the same for the VMI's spec.
    :ivar nad: the NAD in both specs.
    :ivar element: the NAD in the networks annotation, ``attached`` that in the network status.
    :ivar tokens: ``infoSource`` in the VMI's status.
    """

    unplugs: bool = False
    template: str | None = "present"
    vmi: str | None = None
    nad: str = "net1"
    element: str | None = None
    attached: str | None = None
    tokens: str = ""
    migrating: bool = False

    def derive(self, beside: Capabilities | None = BESIDE) -> InterfaceHotplugStatus | None:
        """Return the status of the interface."""
        entries = {operation_key("iface1"): encode_annotation(PLUG)}
        entries |= {unplug_key("iface1"): encode_annotation(UNPLUG)} if self.unplugs else {}
        found = derive_statuses(parse_nics(self.vmi_object(entries), self.pod_object()), self.vm_object(), beside)
        return next((one for one in found if one.interface == "iface1"), None)

    def vm_object(self) -> VirtualMachine:
        """Return the VM."""
        return objects.vm(*self._nics_of(self.template))

    def vmi_object(self, entries: dict[str, str]) -> VirtualMachineInstance:
        """Return the VMI with these entries of operations."""
        primary = [{"name": "default", "infoSource": "domain", "mac": "02:00:00:00:00:01"}]
        status = [*primary, *([{"name": "iface1", "infoSource": self.tokens}] if self.tokens else [])]
        migration: dict[str, Any] = {"migrationState": {}} if self.migrating else {}
        return objects.vmi(*self._nics_of(self.vmi), status=status, annotations=entries, owned=True, **migration)

    def pod_object(self) -> Pod:
        """Return the acting pod."""
        elements = [NetworkSelectionElement(self.element, "default", interface=LINK)] if self.element else []
        statuses = [NetworkStatus(f"default/{self.attached}", LINK)] if self.attached else []
        return objects.pod({NETWORKS: encode_networks(elements), NETWORK_STATUS: encode_network_status(statuses)})

    def _nics_of(self, state: str | None) -> list[tuple[dict[str, object], dict[str, object]]]:
        fields = {"state": "absent"} if state == "absent" else {}
        return [objects.nic("iface1", self.nad, **fields)] if state is not None else []


NADS = st.sampled_from([None, "net1", "net2"])
TOKENS = st.sampled_from(["", "multus-status", "domain", "domain, multus-status", "guest-agent"])
SPECS = st.sampled_from([None, "present", "absent"])
CHANGES = st.one_of(
    st.tuples(st.just("vmi"), st.sampled_from([None, "present"])),
    st.tuples(st.just("nad"), st.sampled_from(["net1", "net2"])),
    st.tuples(st.just("element"), NADS),
    st.tuples(st.just("attached"), NADS),
    st.tuples(st.just("tokens"), TOKENS),
    st.tuples(st.just("migrating"), st.booleans()),
)


@given(st.lists(CHANGES, max_size=12))
def test_plug_keeps_its_id_and_is_complete_only_with_device_and_network(changes: list[tuple[str, object]]) -> None:
    world = World()
    for field, value in changes:
        world = msgspec.structs.replace(world, **{field: value})
        status = world.derive()
        assert status is not None
        assert (status.operation, status.kind, status.trace_id) == ("plug", OperationKind.PLUG, "a" * 32)
        done = world.vmi is not None and "domain" in world.tokens and world.attached == world.nad
        assert status.complete is done
        assert done or (status.reason and status.message)


@given(st.lists(CHANGES, max_size=12), st.booleans())
def test_unplug_keeps_its_id_and_is_complete_only_when_nothing_is_left(
    changes: list[tuple[str, object]], known: bool
) -> None:
    world = World(unplugs=True, template="absent", vmi="present", element="net1", attached="net1", tokens="domain")
    for field, value in [("start", None), *changes]:
        if field == "vmi":
            value = "absent"  # what KubeVirt follows is never taken back
        world = msgspec.structs.replace(world, **({field: value} if field != "start" else {}))
        status = world.derive(BESIDE if known else None)
        assert status is not None
        assert (status.operation, status.kind) == ("unplug", OperationKind.UNPLUG)
        left = world.vmi != "absent" or "domain" in world.tokens or world.element or world.attached
        assert status.complete is not bool(left)
        if world.vmi == "absent":
            assert (status.stage is Stage.REQUESTED) is ("domain" in world.tokens)
        assert not known or (status.reason and status.message)
    assert msgspec.structs.replace(world, template=None, vmi=None).derive() is None


def story(*changes: dict[str, Any], start: World) -> list[World]:
    """Return the moments of a story."""
    worlds = [start]
    for change in changes:
        worlds.append(msgspec.structs.replace(worlds[-1], **change))
    return worlds


PLUGGING = story(
    {"template": "present"},
    {"vmi": "present"},
    {"element": "net1"},
    {"attached": "net1"},
    {"tokens": "multus-status"},
    {"tokens": "domain, multus-status"},
    start=World(template=None),
)
UNPLUGGINGS = [
    story(
        {"template": "absent"},
        {"vmi": "absent"},
        {"element": None},
        *released,
        {"tokens": ""},
        {"vmi": None},
        {"template": None},
        start=PLUGGING[-1],
    )
    # The guest or Multus is first.
    for released in (
        ({"tokens": "multus-status"}, {"attached": None}),
        ({"attached": None}, {"tokens": "domain"}),
    )
]


class Watching:
    """A controller that sees VM, VMI and pod of a story at different moments, and writes the entries that it plans.

    :ivar entries: what the VMI has.
    :ivar written: the ids that were written, by kind.
    """

    def __init__(self, worlds: list[World], entries: dict[str, str]) -> None:
        self._worlds, self.entries = worlds, entries
        self._seen = [0, 0, 0]
        self.written: list[OperationKind] = []

    def look(self, part: int, steps: int) -> None:
        """See one object some moments later, and act on it; moments in between are missed."""
        self._seen[part] = min(self._seen[part] + steps, len(self._worlds) - 1)
        vm, vmi, pod = (self._worlds[at] for at in self._seen)
        observed = parse_objects(
            vm.vm_object(),
            vmi.vmi_object(self.entries),
            pod.pod_object(),
            enabled=True,
            now="2026-01-01T00:00:10Z",
            refused_interfaces=frozenset(),
            one_at_a_time=False,
        )
        changes = plan_entries(observed, BESIDE)
        self.entries = {key: text for key, text in self.entries.items() if key not in changes.removed}
        for entry in changes.added:
            operation = msgspec.structs.replace(PLUG, id=f"new-{len(self.written)}", kind=entry.kind)
            self.entries[entry.key] = encode_annotation(operation)
            self.written.append(entry.kind)

    def look_at_the_end(self) -> None:
        """See the last moment of every object."""
        for part in range(3):
            self.look(part, len(self._worlds))


LOOKS = st.lists(st.tuples(st.integers(0, 2), st.integers(1, 3)), max_size=12)


@given(LOOKS)
def test_plug_by_kubectl_gets_one_operation_that_stays(looks: list[tuple[int, int]]) -> None:
    watching = Watching(PLUGGING, {})
    for part, steps in looks:
        before = dict(watching.entries)
        watching.look(part, steps)
        assert before.items() <= watching.entries.items()
    watching.look_at_the_end()
    # Nobody looked in time if there is none.
    assert watching.written in ([], [OperationKind.PLUG])
    assert list(watching.entries) == [operation_key("iface1")] * len(watching.written)


@given(st.sampled_from(UNPLUGGINGS), LOOKS, st.booleans())
def test_unplug_by_kubectl_gets_one_operation_and_leaves_none(
    worlds: list[World], looks: list[tuple[int, int]], plugged: bool
) -> None:
    plug = {operation_key("iface1"): encode_annotation(PLUG)} if plugged else {}
    watching = Watching(worlds, dict(plug))
    for part, steps in looks:
        watching.look(part, steps)
        # The plug's operation goes with that of the unplug, and not before.
        assert not watching.entries or plug.items() <= watching.entries.items()
    watching.look_at_the_end()
    assert watching.written in ([], [OperationKind.UNPLUG])
    assert not watching.written or watching.entries == {}


def test_waiting_for_multus_is_not_waiting_for_the_guest() -> None:
    released = World(unplugs=True, template="absent", vmi="absent", attached="net1", tokens="multus-status").derive()
    held = World(unplugs=True, template="absent", vmi="absent", tokens="domain").derive()
    assert released is not None
    assert held is not None
    assert (released.stage, released.reason) == (Stage.GUEST_DETACHED, "WaitingForMultusDetached")
    assert (held.stage, held.reason) == (Stage.REQUESTED, "WaitingForGuestDetached")
    assert "does not have the interface any more" in str(held.message)


def test_interface_that_the_template_has_again_comes_back() -> None:
    status = World(unplugs=True, template="present", vmi="absent", tokens="domain").derive()
    assert status is not None
    assert (status.operation, status.reason, status.at_restart) == ("unplug", "ComesBack", None)


def test_interface_that_lost_its_element_is_not_complete() -> None:
    status = World(vmi="present", tokens="domain").derive()
    assert status is not None
    assert (status.stage, status.reason) == (Stage.REQUESTED, "ElementMissing")
