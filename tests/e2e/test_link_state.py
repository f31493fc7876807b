"""The link state of any NIC is set down and up while the VM runs; guest kernel, VMI and ``hotnic status`` show it."""

import asyncio
import json

import msgspec

from lab.guest.console import ConsoleFollower, GuestEvent, LinkEvent
from services.common.domain.status_interfaces import find_entry
from tests.support.guest import shell as guest_shell
from tests.support.lab.running import SAMPLE_NAD, Lab, link_events, wait_until

INTERFACES = "/domain/devices/interfaces"


def states(lab: Lab, vm: str, **wanted: str) -> None:
    """Set the states of interfaces in the template; an empty string is the default."""
    items = json.loads(lab.kubectl("get", "vm", vm, "-o", "json"))["spec"]["template"]["spec"]["domain"]["devices"]
    ops = []
    for at, item in enumerate(items["interfaces"]):
        if item["name"] in wanted:
            ops += [("test", f"{INTERFACES}/{at}/name", item["name"])]
            ops += [("add", f"{INTERFACES}/{at}/state", wanted[item["name"]])]
    lab.edit_template(vm, *ops)


def shown(lab: Lab, vm: str, interface: str) -> str | None:
    return (find_entry(lab.vmi(vm).status.interfaces, interface) or {}).get("linkState")


def both(lab: Lab, vm: str, interface: str) -> tuple[str | None, str | None]:
    return shown(lab, vm, interface), shown(lab, vm, "default")


async def carrier(console: ConsoleFollower, mac: str, on: bool, since: int) -> None:
    """Wait until the guest's kernel reports this carrier of a link that is up."""

    def has_carrier(event: GuestEvent) -> bool:
        return isinstance(event, LinkEvent) and event.mac == mac and event.up is True and event.carrier is on

    await console.wait_for(has_carrier, timeout=45, since=since)


async def test_link_is_set_down_and_up_while_the_vm_runs(lab: Lab, vm: str, interface: str) -> None:
    nic = {"name": interface, "bridge": {}, "state": "down", "acpiIndex": 101}
    network = {"name": interface, "multus": {"networkName": SAMPLE_NAD}}
    lab.edit_template(vm, ("add", f"{INTERFACES}/-", nic), ("add", "/networks/-", network))
    wait_until(lambda: shown(lab, vm, interface) == "down")
    vmi = lab.vmi(vm)
    mac, primary = (str((find_entry(vmi.status.interfaces, name) or {})["mac"]) for name in (interface, "default"))
    async with lab.console(vmi) as console:
        # QEMU creates a NIC with its link up and sets it down by the next command, so that a guest on a busy machine
        # may see a carrier for a moment (docs/critiques.md). None remains.
        await carrier(console, mac, on=False, since=0)
        await asyncio.to_thread(wait_until, lambda: link_events(console.events, mac)[-1].carrier is False)
        # The firmware's index of the device, from which udev makes the link's name: eno101. This guest has no udev.
        index = f"cat /sys/class/net/{link_events(console.events, mac)[-1].name}/device/../acpi_index"
        folder = lab.layout.guests / vmi.metadata.uid
        assert await asyncio.to_thread(guest_shell.run, folder, index) == (0, "101\n")
        status = json.loads(lab.hotnic("status", vm, "-o", "json").stdout)
        (nic_status,) = [nic_status for nic_status in status["interfaces"] if nic_status["interface"] == interface]
        assert (nic_status["stage"], nic_status["linkState"]) == ("guest-attached", "down")

        since = len(console.events)
        states(lab, vm, **{interface: "up"}, default="down")
        await carrier(console, mac, on=True, since=since)
        await carrier(console, primary, on=False, since=since)
        await asyncio.to_thread(wait_until, lambda: both(lab, vm, interface) == ("up", "down"))

        # A handler that has just started sets every link once more, which the guest must not notice.
        since = len(console.events)
        with lab.stopped("handler"):
            states(lab, vm, **{interface: "down"}, default="")
        await carrier(console, mac, on=False, since=since)
        await carrier(console, primary, on=True, since=since)
        await asyncio.to_thread(wait_until, lambda: both(lab, vm, interface) == ("down", "up"))
        assert len([e for e in console.events[since:] if isinstance(e, LinkEvent) and e.mac in (mac, primary)]) == 2
    interfaces = {i.name: i for i in lab.vmi(vm).spec.interface_items()}
    assert interfaces["default"] == msgspec.structs.replace(interfaces["default"], state="")

    # An interface whose link is down can be unplugged.
    done = lab.hotnic("removeinterface", vm, "--name", interface, "--persist", "--wait")
    assert done.returncode == 0, done.stderr
    lab.release_slot(vm)
