"""A cable is pulled and plugged while the VM runs, of any card; the guest's kernel, the VMI and the user see it."""

import asyncio
import json

import msgspec

from services.common.domain.status_interfaces import entry_of
from services.lab.guest.console import ConsoleFollower, GuestEvent, LinkEvent
from tests.support.lab import SAMPLE_NAD, Lab, until

INTERFACES = "/domain/devices/interfaces"


def states(lab: Lab, vm: str, **wanted: str) -> None:
    """What the template says of the cables, by interface; empty for nothing."""
    items = json.loads(lab.kubectl("get", "vm", vm, "-o", "json"))["spec"]["template"]["spec"]["domain"]["devices"]
    ops = []
    for at, item in enumerate(items["interfaces"]):
        if item["name"] in wanted:
            ops += [("test", f"{INTERFACES}/{at}/name", item["name"])]
            ops += [("add", f"{INTERFACES}/{at}/state", wanted[item["name"]])]
    lab.edit_template(vm, *ops)


def shown(lab: Lab, vm: str, interface: str) -> str | None:
    return (entry_of(lab.vmi(vm).status.interfaces, interface) or {}).get("linkState")


def both(lab: Lab, vm: str, interface: str) -> tuple[str | None, str | None]:
    return shown(lab, vm, interface), shown(lab, vm, "default")


async def carrier(console: ConsoleFollower, mac: str, on: bool, since: int) -> None:
    """Wait until the guest's kernel says so of a link that is up."""

    def says(event: GuestEvent) -> bool:
        return isinstance(event, LinkEvent) and event.mac == mac and event.up is True and event.carrier is on

    await console.wait_for(says, timeout=10, since=since)


async def test_a_cable_is_pulled_and_plugged_while_the_vm_runs(lab: Lab, vm: str, interface: str) -> None:
    nic = {"name": interface, "bridge": {}, "state": "down"}
    network = {"name": interface, "multus": {"networkName": SAMPLE_NAD}}
    lab.edit_template(vm, ("add", f"{INTERFACES}/-", nic), ("add", "/networks/-", network))
    until(lambda: shown(lab, vm, interface) == "down")
    vmi = lab.vmi(vm)
    mac, primary = (str((entry_of(vmi.status.interfaces, name) or {})["mac"]) for name in (interface, "default"))
    async with lab.console(vmi) as console:
        # It is in the guest, and never had a carrier there.
        await carrier(console, mac, on=False, since=0)
        assert not any(isinstance(e, LinkEvent) and e.mac == mac and e.carrier for e in console.events)
        status = json.loads(lab.hotnic("status", vm, "-o", "json").stdout)
        (nic_status,) = [nic_status for nic_status in status["interfaces"] if nic_status["interface"] == interface]
        assert (nic_status["stage"], nic_status["link"]) == ("guest-attached", "down")

        since = len(console.events)
        states(lab, vm, **{interface: "up"}, default="down")
        await carrier(console, mac, on=True, since=since)
        await carrier(console, primary, on=False, since=since)
        await asyncio.to_thread(until, lambda: both(lab, vm, interface) == ("up", "down"))

        # The handler knows nothing of what it did before, and the guest notices nothing of that.
        since = len(console.events)
        with lab.without("handler"):
            states(lab, vm, **{interface: "down"}, default="")
        await carrier(console, mac, on=False, since=since)
        await carrier(console, primary, on=True, since=since)
        await asyncio.to_thread(until, lambda: both(lab, vm, interface) == ("down", "up"))
        assert len([e for e in console.events[since:] if isinstance(e, LinkEvent) and e.mac in (mac, primary)]) == 2
    interfaces = {i.name: i for i in lab.vmi(vm).spec.interface_items()}
    assert interfaces["default"] == msgspec.structs.replace(interfaces["default"], state="")

    # One whose cable is pulled can be unplugged like any other.
    done = lab.hotnic("removeinterface", vm, "--name", interface, "--persist", "--wait")
    assert done.returncode == 0, done.stderr
    lab.give_slot_back(vm)
