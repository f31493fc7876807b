"""Which link states the handler sets, and the link state in the VMI's status."""

import pytest

from schemas.kubernetes.objects import Interface, VirtualMachineInstance
from services.common.domain.nic import parse_nics
from services.common.domain.status_interfaces import find_entry
from services.common.guest.port import GuestView, NetDevice
from services.handler.plan.actions import SetLinkState
from services.handler.plan.link_state import plan_link_states, wants_link_up
from services.handler.plan.report import status_entries
from tests.support.observed.objects import nic, pod, vmi


def view(**up: bool | None) -> GuestView:
    return GuestView(
        {f"ua-{name}": NetDevice(f"ua-{name}", "02:00:00:00:00:01", state) for name, state in up.items()}, ()
    )


def vmi_with_state(state: str) -> VirtualMachineInstance:
    return vmi(nic("iface1", **({"state": state} if state else {})))


@pytest.mark.parametrize(
    ("state", "up", "expected"),
    [
        ("", True, None),
        ("up", True, None),
        ("down", False, None),
        ("down", True, SetLinkState("iface1", up=False, changes=True)),
        ("", False, SetLinkState("iface1", up=True, changes=True)),
        # After a restart the link state is not known, so it is set again.
        ("down", None, SetLinkState("iface1", up=False, changes=False)),
        ("up", None, SetLinkState("iface1", up=True, changes=False)),
        # A NIC that is being unplugged is not changed.
        ("absent", False, None),
        ("absent", None, None),
    ],
)
def test_the_spec_defines_the_link_state(state: str, up: bool | None, expected: SetLinkState | None) -> None:
    found = plan_link_states(parse_nics(vmi_with_state(state), pod()), view(default=True, iface1=up))
    assert found == ([expected] if expected else [])


def test_the_link_of_the_primary_nic_is_set_and_a_nic_outside_the_domain_is_skipped() -> None:
    assert plan_link_states(parse_nics(vmi_with_state("down"), pod()), view(default=False)) == [
        SetLinkState("default", up=True, changes=True)
    ]
    assert not wants_link_up(Interface("iface1", state="down"))


@pytest.mark.parametrize(("up", "expected"), [(True, "up"), (False, "down"), (None, "down")])
def test_the_status_has_the_known_link_state_or_the_last_one(up: bool | None, expected: str) -> None:
    before = [{"name": "iface1", "infoSource": "domain", "linkState": "down"}]
    entry = find_entry(status_entries(before, [Interface("iface1", bridge={})], {}, view(iface1=up), None), "iface1")
    assert entry is not None
    assert entry["linkState"] == expected
