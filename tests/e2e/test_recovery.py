"""VMs that go in the middle of a plug, and come again with the NICs that their template says."""

import asyncio
import json
import subprocess
import sys
import time
from typing import Any

import pytest

from schemas.names import pod_interface
from schemas.networks import NETWORK_STATUS, parse_network_status
from services.common.domain.status_interfaces import DOMAIN, MULTUS_STATUS, entry_of, tokens
from services.lab.guest.console import LinkEvent
from tests.support.lab import SAMPLE_NAD, Lab, until
from tests.support.node_state import node_state

NAD = ("--network-attachment-definition-name", SAMPLE_NAD)
QUIET = 2.0
"""Seconds in which nobody may try again what cannot be done any more."""


@pytest.mark.parametrize(("role", "stage"), [("networks", "pod-annotated"), ("handler", "multus-attached")])
def test_a_vm_deleted_in_the_middle_of_a_plug_leaves_nothing(lab: Lab, interface: str, role: str, stage: str) -> None:
    before = on_the_node(lab)
    name = f"vm-{interface}"
    lab.boot(name, guest="double")
    with lab.without(role):
        command = [sys.executable, "-m", "services.cli", "addinterface", name, "--name", interface, *NAD, "--wait"]
        waiting = subprocess.Popen(command, env=lab.environment, stderr=subprocess.PIPE, text=True)
        until(lambda: reached(lab, name, interface) == stage)
        lab.kubectl("delete", "vm", name)
        _, said = waiting.communicate(timeout=30)
        assert waiting.returncode == 1, said
        assert "gone" in said or "deleted" in said, said
    until(lambda: lab.kubectl("get", "vmi,pods", "-o", "name").count(name) == 0)
    until(lambda: on_the_node(lab) == before)
    # Nobody goes on with it.
    tried = retries(lab, name)
    time.sleep(QUIET)
    assert retries(lab, name) == tried
    # The name is as good as new.
    lab.boot(name, guest="double")
    done = lab.hotnic("addinterface", name, "--name", interface, *NAD, "--wait")
    assert done.returncode == 0, done.stderr
    lab.kubectl("delete", "vm", name)
    until(lambda: on_the_node(lab) == before)


@pytest.mark.parametrize("how", ["its pod is deleted", "it is stopped and started"])
def test_a_vm_that_starts_again_has_the_nics_of_its_template_and_no_others(
    lab: Lab, own: str, interface: str, how: str
) -> None:
    kept, lost, gone = (f"{interface}-{what}" for what in ("kept", "lost", "gone"))
    for name, flags in ((kept, ("--persist",)), (lost, ()), (gone, ("--persist",))):
        change(lab, "addinterface", own, name, *NAD, *flags)
    change(lab, "removeinterface", own, gone, "--persist")
    first = lab.vmi(own)
    mac = entry_of(first.status.interfaces, kept)
    if how == "its pod is deleted":
        lab.kubectl("delete", "pod", lab.pod(first).metadata.name)
    else:
        lab.kubectl("patch", "vm", own, "--type=merge", "-p", '{"spec":{"running":false}}')
        until(lambda: lab.kubectl("get", "vmi", own, "--ignore-not-found") == "")
        lab.kubectl("patch", "vm", own, "--type=merge", "-p", '{"spec":{"running":true}}')
    until(lambda: uid(lab, own) not in ("", first.metadata.uid), timeout=30)
    until(lambda: {DOMAIN, MULTUS_STATUS} <= tokens(entry_of(lab.vmi(own).status.interfaces, kept) or {}), timeout=30)
    vmi = lab.vmi(own)
    assert [item.name for item in vmi.spec.interface_items()] == ["default", kept]
    statuses = parse_network_status(lab.pod(vmi).metadata.annotations[NETWORK_STATUS])
    assert {status.interface for status in statuses} == {"eth0", pod_interface(kept)}
    assert mac is not None
    asyncio.run(cards(lab, own, 2))
    shown = json.loads(lab.hotnic("status", own, "-o", "json").stdout)["interfaces"]
    assert [(nic_status["interface"], nic_status["stage"]) for nic_status in shown] == [(kept, "guest-attached")]
    change(lab, "removeinterface", own, kept, "--persist")


def on_the_node(lab: Lab) -> tuple[object, ...]:
    """What cards leave on the node, without the files that a plugin keeps once it was used."""
    state = node_state(lab)
    return state.links, state.veths, state.leases, state.records


async def cards(lab: Lab, vm: str, count: int) -> None:
    """Wait until the guest has so many cards."""
    async with lab.console(lab.vmi(vm)) as console:
        while len(console.links_seen()) != count:
            seen = len(console.events)
            await console.wait_for(lambda event: isinstance(event, LinkEvent), timeout=10, since=seen)


def change(lab: Lab, verb: str, vm: str, interface: str, *flags: str) -> None:
    done = lab.hotnic(verb, vm, "--name", interface, *flags, "--wait")
    assert done.returncode == 0, done.stderr


def uid(lab: Lab, vm: str) -> str:
    return lab.kubectl("get", "vmi", vm, "--ignore-not-found", "-o", "jsonpath={.metadata.uid}")


def reached(lab: Lab, vm: str, interface: str) -> str:
    shown: dict[str, Any] = json.loads(lab.hotnic("status", vm, "-o", "json").stdout)
    return next((nic_status["stage"] for nic_status in shown["interfaces"] if nic_status["interface"] == interface), "")


def retries(lab: Lab, vm: str) -> int:
    """How often the roles have said that they try something of a VM again, or that it is a bug."""
    lines = [line for file in (lab.layout.dir / "logs").glob("*.log") for line in file.read_text().splitlines()]
    said = [json.loads(line) for line in lines if line.startswith("{") and vm in line]
    return sum(line.get("event") in ("retry", "bug in a reconcile") for line in said)
