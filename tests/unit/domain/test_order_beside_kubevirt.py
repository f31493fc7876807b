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
from schemas.kubernetes.operations import Operation, encode_annotation, operation_key, unplug_key
from schemas.names import pod_interface
from schemas.stages import OperationKind, Stage
from services.common.domain.kubevirt.capabilities import Capabilities
from services.common.domain.nic import parse_nics
from services.common.domain.status.hotplug_status import derive_statuses
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

        def nics_of(state: str | None) -> list[tuple[dict[str, object], dict[str, object]]]:
            fields = {"state": "absent"} if state == "absent" else {}
            return [objects.nic("iface1", self.nad, **fields)] if state is not None else []

        entries = {operation_key("iface1"): encode_annotation(PLUG)}
        entries |= {unplug_key("iface1"): encode_annotation(UNPLUG)} if self.unplugs else {}
        status = [{"name": "iface1", "infoSource": self.tokens}] if self.tokens else []
        migration: dict[str, Any] = {"migrationState": {}} if self.migrating else {}
        vmi = objects.vmi(*nics_of(self.vmi), status=status, annotations=entries, owned=True, **migration)
        elements = [NetworkSelectionElement(self.element, "default", interface=LINK)] if self.element else []
        statuses = [NetworkStatus(f"default/{self.attached}", LINK)] if self.attached else []
        pod = objects.pod({NETWORKS: encode_networks(elements), NETWORK_STATUS: encode_network_status(statuses)})
        found = derive_statuses(parse_nics(vmi, pod), objects.vm(*nics_of(self.template)), beside)
        return next((one for one in found if one.interface == "iface1"), None)


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
