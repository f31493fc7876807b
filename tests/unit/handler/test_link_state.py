"""Which cables the handler plugs and pulls, and what the VMI says of them."""

import pytest

from schemas.kube import Interface, VirtualMachineInstance
from services.common.domain.status_interfaces import entry_of
from services.handler.guest.port import Card, GuestView
from services.handler.link_state import SetLink, link_changes, wants_link
from services.handler.status import entries
from tests.support.objects import nic, vmi


def view(**up: bool | None) -> GuestView:
    return GuestView({f"ua-{name}": Card(f"ua-{name}", "02:00:00:00:00:01", state) for name, state in up.items()}, ())


def stated(state: str) -> VirtualMachineInstance:
    return vmi(nic("iface1", **({"state": state} if state else {})))


@pytest.mark.parametrize(
    ("state", "up", "expected"),
    [
        ("", True, None),
        ("up", True, None),
        ("down", False, None),
        ("down", True, SetLink("iface1", up=False, changes=True)),
        ("", False, SetLink("iface1", up=True, changes=True)),
        # After a restart nobody knows: it is set once more.
        ("down", None, SetLink("iface1", up=False, changes=False)),
        ("up", None, SetLink("iface1", up=True, changes=False)),
        # A card that is let go of keeps what it has.
        ("absent", False, None),
        ("absent", None, None),
    ],
)
def test_the_spec_says_which_cables_are_plugged(state: str, up: bool | None, expected: SetLink | None) -> None:
    found = link_changes(stated(state), view(default=True, iface1=up))
    assert found == ([expected] if expected else [])


def test_the_primary_card_has_a_cable_too_and_a_card_to_come_has_none() -> None:
    assert link_changes(stated("down"), view(default=False)) == [SetLink("default", up=True, changes=True)]
    assert not wants_link(Interface("iface1", state="down"))


@pytest.mark.parametrize(("up", "expected"), [(True, "up"), (False, "down"), (None, "down")])
def test_the_vmi_says_what_is_known_and_keeps_its_word_where_nothing_is(up: bool | None, expected: str) -> None:
    before = [{"name": "iface1", "infoSource": "domain", "linkState": "down"}]
    entry = entry_of(entries(before, ["iface1"], {}, view(iface1=up), None), "iface1")
    assert entry is not None
    assert entry["linkState"] == expected
