"""VMs that are deleted during a plug, and VMs that start again with the interfaces of their template."""

import asyncio
import json
import subprocess
import sys
import time
from typing import Any

import pytest

from lab.guest.console import LinkEvent
from schemas.kubernetes.networks import NETWORK_STATUS, parse_network_status
from schemas.names import pod_interface
from services.common.domain.status_interfaces import DOMAIN, MULTUS_STATUS, find_entry, parse_tokens
from tests.support.lab.node_state import node_state
from tests.support.lab.process import DEADLINE
from tests.support.lab.running import SAMPLE_NAD, Lab, wait_until

NAD = ("--network-attachment-definition-name", SAMPLE_NAD)
QUIET = 2.0
"""Seconds for which no role may retry after the VM is deleted. The absence of retries needs a fixed time."""


@pytest.mark.parametrize(("role", "stage"), [("networks", "pod-annotated"), ("handler", "multus-attached")])
def test_vm_deleted_during_a_plug_leaves_nothing(lab: Lab, interface: str, role: str, stage: str) -> None:
    before = on_the_node(lab)
    name = f"vm-{interface}"
    lab.boot(name, guest="double")
    with lab.stopped(role):
        command = [sys.executable, "-m", "services.cli", "addinterface", name, "--name", interface, *NAD, "--wait"]
        waiting = subprocess.Popen(command, env=lab.environment, stderr=subprocess.PIPE, text=True)
        assert waiting.stderr is not None
        with waiting.stderr as errors:
            # The command itself must have observed the stage: it has then read the VMI and watches it.
            assert any(stage in line for line in errors)
            wait_until(lambda: reached(lab, name, interface) == stage)
            lab.kubectl("delete", "vm", name)
            rest = errors.read()
        assert waiting.wait(timeout=45) == 1, rest
        assert "deleted" in rest, rest
    wait_until(lambda: lab.kubectl("get", "vmi,pods", "-o", "name").count(name) == 0)
    wait_until(lambda: on_the_node(lab) == before)
    # No role retries.
    tried = retries(lab, name)
    time.sleep(QUIET)
    assert retries(lab, name) == tried
    # The name can be used again.
    lab.boot(name, guest="double")
    done = lab.hotnic("addinterface", name, "--name", interface, *NAD, "--wait")
    assert done.returncode == 0, done.stderr
    lab.kubectl("delete", "vm", name)
    wait_until(lambda: on_the_node(lab) == before)


@pytest.mark.parametrize("how", ["its pod is deleted", "it is stopped and started"])
def test_restarted_vm_has_exactly_the_interfaces_of_its_template(lab: Lab, own: str, interface: str, how: str) -> None:
    permanent, temporary, unplugged = (f"{interface}-{what}" for what in ("permanent", "temporary", "unplugged"))
    for name, flags in ((permanent, ("--persist",)), (temporary, ()), (unplugged, ("--persist",))):
        change(lab, "addinterface", own, name, *NAD, *flags)
    change(lab, "removeinterface", own, unplugged, "--persist")
    first = lab.vmi(own)
    mac = find_entry(first.status.interfaces, permanent)
    if how == "its pod is deleted":
        lab.kubectl("delete", "pod", lab.pod(first).metadata.name)
    else:
        lab.kubectl("patch", "vm", own, "--type=merge", "-p", '{"spec":{"running":false}}')
        wait_until(lambda: lab.kubectl("get", "vmi", own, "--ignore-not-found") == "")
        lab.kubectl("patch", "vm", own, "--type=merge", "-p", '{"spec":{"running":true}}')
    wait_until(lambda: uid(lab, own) not in ("", first.metadata.uid), timeout=45)
    wait_until(
        lambda: {DOMAIN, MULTUS_STATUS} <= parse_tokens(find_entry(lab.vmi(own).status.interfaces, permanent) or {}),
        timeout=45,
    )
    vmi = lab.vmi(own)
    assert [item.name for item in vmi.spec.interface_items()] == ["default", permanent]
    statuses = parse_network_status(lab.pod(vmi).metadata.annotations[NETWORK_STATUS])
    assert {status.interface for status in statuses} == {"eth0", pod_interface(permanent)}
    assert mac is not None
    asyncio.run(wait_for_nics(lab, own, 2))
    shown = json.loads(lab.hotnic("status", own, "-o", "json").stdout)["interfaces"]
    assert [(nic_status["interface"], nic_status["stage"]) for nic_status in shown] == [(permanent, "guest-attached")]
    change(lab, "removeinterface", own, permanent, "--persist")


def on_the_node(lab: Lab) -> tuple[object, ...]:
    """Return the state of NICs on the node, without the files that a plugin does not remove."""
    state = node_state(lab)
    return state.links, state.veths, state.leases, state.records


async def wait_for_nics(lab: Lab, vm: str, count: int) -> None:
    """Wait until the guest, which may have to boot, has this number of NICs."""
    async with lab.console(lab.vmi(vm)) as console:
        while len(console.links_seen()) != count:
            seen = len(console.events)
            await console.wait_for(lambda event: isinstance(event, LinkEvent), timeout=DEADLINE, since=seen)


def change(lab: Lab, verb: str, vm: str, interface: str, *flags: str) -> None:
    done = lab.hotnic(verb, vm, "--name", interface, *flags, "--wait")
    assert done.returncode == 0, done.stderr


def uid(lab: Lab, vm: str) -> str:
    return lab.kubectl("get", "vmi", vm, "--ignore-not-found", "-o", "jsonpath={.metadata.uid}")


def reached(lab: Lab, vm: str, interface: str) -> str:
    shown: dict[str, Any] = json.loads(lab.hotnic("status", vm, "-o", "json").stdout)
    return next((nic_status["stage"] for nic_status in shown["interfaces"] if nic_status["interface"] == interface), "")


def retries(lab: Lab, vm: str) -> int:
    """Return the number of log lines in which a role reports a retry or a bug for a VM."""
    lines = [line for file in (lab.layout.dir / "logs").glob("*.log") for line in file.read_text().splitlines()]
    output = [json.loads(line) for line in lines if line.startswith("{") and vm in line]
    return sum(line.get("event") in ("reconcile requeued", "unexpected reconcile error") for line in output)
