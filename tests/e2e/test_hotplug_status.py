"""Where each NIC stands, for its user: by API, as a watch, without the bus, without hotnic's own api, by one of two."""

import contextlib
import json
import shlex
import signal
import subprocess
import sys
from collections.abc import Iterator
from typing import Any

from schemas.stages import OperationKind, stage_path
from tests.support.lab import Lab, until

PLUGGED = [str(stage) for stage in stage_path(OperationKind.PLUG)]


def hotplug_status(lab: Lab, vm: str) -> dict[str, Any]:
    """The ladder by API, as kubectl reads it."""
    where = f"/apis/subresources.hotnic.io/v1/namespaces/default/virtualmachineinstances/{vm}/interfaces"
    found: dict[str, Any] = json.loads(lab.kubectl("get", "--raw", where))
    return found


def nic_status(found: dict[str, Any], interface: str) -> dict[str, Any]:
    """One of its NICs; empty when it is not listed."""
    return next((one for one in found.get("items", ()) if one["interface"] == interface), {})


def plug(lab: Lab, vm: str, interface: str) -> dict[str, Any]:
    """Plug and wait; what the command line says."""
    done = lab.hotnic(
        "addinterface", vm, "--name", interface, "--network-attachment-definition-name", "bridge-net", "--wait",
        "-o", "json",
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    answer: dict[str, Any] = json.loads(done.stdout)
    return answer


def test_a_watch_shows_a_plug_climb_and_the_api_knows_since_when(lab: Lab, vm: str, interface: str) -> None:
    command = [sys.executable, "-m", "services.cli", "status", vm, "--watch", "-o", "json"]
    with subprocess.Popen(command, env=lab.environment, stdout=subprocess.PIPE, text=True) as watch:
        assert watch.stdout is not None
        first = json.loads(watch.stdout.readline())
        assert (first["vmi"], first["degraded"]) == (vm, None)
        operation = plug(lab, vm, interface)["operation"]
        seen = []
        for line in watch.stdout:
            one = nic_status({"items": json.loads(line)["interfaces"]}, interface)
            if one:
                seen.append(one["stage"])
            if one.get("stage") == PLUGGED[-1] and one.get("since"):
                break
        watch.send_signal(signal.SIGINT)
    assert seen == sorted(seen, key=PLUGGED.index)
    found = nic_status(hotplug_status(lab, vm), interface)
    assert (found["operation"], found["stage"], found["attempts"]) == (operation, "guest-attached", 1)
    assert found["requestedAt"] < found["since"]
    shown = lab.hotnic("status", vm)
    line = next(line for line in shown.stdout.splitlines() if line.startswith(f"{interface} "))
    assert found["since"] in line
    assert operation in line


def test_an_unplugged_nic_leaves_the_ladder(lab: Lab, vm: str, interface: str) -> None:
    plug(lab, vm, interface)
    assert nic_status(hotplug_status(lab, vm), interface)
    assert lab.hotnic("removeinterface", vm, "--name", interface, "--wait").returncode == 0
    assert not nic_status(hotplug_status(lab, vm), interface)
    lab.give_slot_back(vm)


def test_without_the_api_or_the_bus_the_ladder_is_told_from_objects(lab: Lab, vm: str, interface: str) -> None:
    plug(lab, vm, interface)
    with lab.without("nats"):
        until(lambda: hotplug_status(lab, vm).get("degraded") == "bus")
        assert nic_status(hotplug_status(lab, vm), interface)["stage"] == "guest-attached"
    # What the projector has heard outlives the absence of the bus.
    until(lambda: bool(nic_status(hotplug_status(lab, vm), interface).get("since")))
    with lab.without("api"):
        done = lab.hotnic("status", vm, "-o", "json")
        found = json.loads(done.stdout)
        assert (done.returncode, found["degraded"]) == (0, "api")
        assert interface in {one["interface"] for one in found["interfaces"]}


def holder(lab: Lab) -> str:
    """Who leads."""
    return lab.kubectl("get", "lease", "hotnic-controller", "-o", "jsonpath={.spec.holderIdentity}")


@contextlib.contextmanager
def second_controller(lab: Lab) -> Iterator[None]:
    """Another controller beside the lab's own."""
    note = lab.layout.dir / "second.pid"
    script = f"echo $$ > {shlex.quote(str(note))}; exec {shlex.quote(sys.executable)} -m services.controller"
    settings = ["HOTNIC_IDENTITY=second", "HOTNIC_VM_OWNER=hotnic", f"HOTNIC_TRACE_DIR={lab.layout.traces}"]
    command = [sys.executable, "-m", "services.cli", "lab", "exec", "--", "env", *settings, "sh", "-c", script]
    with (lab.layout.logs / "second.log").open("w") as log:
        running = subprocess.Popen(command, env=lab.environment, stdout=log, stderr=log)
    try:
        until(lambda: note.exists() and bool(note.read_text()))
        yield
    finally:
        lab.hotnic("lab", "exec", "--", "kill", note.read_text().strip())
        running.wait(timeout=20)


def test_of_two_controllers_one_leads_and_the_other_takes_over(lab: Lab, vm: str, interface: str) -> None:
    first = holder(lab)
    assert first
    with second_controller(lab):
        until(lambda: '"condition":"lease"' in (lab.layout.logs / "second.log").read_text())
        assert holder(lab) == first
        with lab.without("controller"):
            until(lambda: holder(lab) == "second")
            plug(lab, vm, interface)
            until(lambda: bool(nic_status(hotplug_status(lab, vm), interface).get("since")))
        assert holder(lab) == "second"
    until(lambda: holder(lab) == first)
