"""The hot-plug status: by API, as a watch, without NATS, without hotnic's api, and with two controllers."""

import contextlib
import json
import shlex
import signal
import subprocess
import sys
from collections.abc import Iterator
from typing import Any

from schemas.stages import OperationKind, stage_path
from tests.support.lab.running import Lab, wait_until

PLUGGED = [str(stage) for stage in stage_path(OperationKind.PLUG)]


def hotplug_status(lab: Lab, vm: str) -> dict[str, Any]:
    """Return the hot-plug status from hotnic's api by kubectl."""
    where = f"/apis/subresources.hotnic.io/v1/namespaces/default/virtualmachineinstances/{vm}/interfaces"
    found: dict[str, Any] = json.loads(lab.kubectl("get", "--raw", where))
    return found


def nic_status(found: dict[str, Any], interface: str) -> dict[str, Any]:
    """Return the status of one interface; empty when it is not listed."""
    return next((one for one in found.get("items", ()) if one["interface"] == interface), {})


def plug(lab: Lab, vm: str, interface: str) -> dict[str, Any]:
    """Plug an interface, wait, and return the output of the command."""
    done = lab.hotnic(
        "addinterface", vm, "--name", interface, "--network-attachment-definition-name", "bridge-net", "--wait",
        "-o", "json",
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    answer: dict[str, Any] = json.loads(done.stdout)
    return answer


def test_watch_shows_the_stages_of_a_plug_and_the_api_has_their_times(lab: Lab, vm: str, interface: str) -> None:
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


def test_unplugged_interface_is_not_listed(lab: Lab, vm: str, interface: str) -> None:
    plug(lab, vm, interface)
    assert nic_status(hotplug_status(lab, vm), interface)
    assert lab.hotnic("removeinterface", vm, "--name", interface, "--wait").returncode == 0
    assert not nic_status(hotplug_status(lab, vm), interface)
    lab.release_slot(vm)


def test_status_is_derived_from_objects_without_the_api_or_nats(lab: Lab, vm: str, interface: str) -> None:
    plug(lab, vm, interface)
    with lab.stopped("nats"):
        wait_until(lambda: hotplug_status(lab, vm).get("degraded") == "bus")
        assert nic_status(hotplug_status(lab, vm), interface)["stage"] == "guest-attached"
    # The stage history survives the restart of NATS.
    wait_until(lambda: bool(nic_status(hotplug_status(lab, vm), interface).get("since")))
    with lab.stopped("api"):
        done = lab.hotnic("status", vm, "-o", "json")
        found = json.loads(done.stdout)
        assert (done.returncode, found["degraded"]) == (0, "api")
        assert interface in {one["interface"] for one in found["interfaces"]}


def holder(lab: Lab) -> str:
    """Return the identity of the leading controller."""
    return lab.kubectl("get", "lease", "hotnic-controller", "-n", "hotnic", "-o", "jsonpath={.spec.holderIdentity}")


@contextlib.contextmanager
def second_controller(lab: Lab) -> Iterator[None]:
    """Run a second controller beside the lab's controller."""
    pid_file = lab.layout.dir / "second.pid"
    script = f"echo $$ > {shlex.quote(str(pid_file))}; exec {shlex.quote(sys.executable)} -m services.controller"
    kubeconfig = f"KUBECONFIG={lab.layout.role_kubeconfig('controller')}"
    identity = f"NATS_NKEY={lab.layout.nats_seed('controller')}"
    settings = ["HOTNIC_IDENTITY=second", "HOTNIC_VM_OWNER=hotnic", f"HOTNIC_TRACE_DIR={lab.layout.traces}"]
    env = ["env", kubeconfig, identity, *settings]
    command = [sys.executable, "-m", "services.cli", "lab", "exec", "--", *env, "sh", "-c", script]
    with (lab.layout.logs / "second.log").open("w") as log:
        running = subprocess.Popen(command, env=lab.environment, stdout=log, stderr=log)
    try:
        wait_until(lambda: pid_file.exists() and bool(pid_file.read_text()))
        yield
    finally:
        lab.hotnic("lab", "exec", "--", "kill", pid_file.read_text().strip())
        running.wait(timeout=45)


def test_second_controller_takes_over_when_the_leader_stops(lab: Lab, vm: str, interface: str) -> None:
    first = holder(lab)
    assert first
    with second_controller(lab):
        wait_until(lambda: '"condition":"lease"' in (lab.layout.logs / "second.log").read_text())
        assert holder(lab) == first
        with lab.stopped("controller"):
            wait_until(lambda: holder(lab) == "second")
            plug(lab, vm, interface)
            wait_until(lambda: bool(nic_status(hotplug_status(lab, vm), interface).get("since")))
        assert holder(lab) == "second"
    wait_until(lambda: holder(lab) == first)
