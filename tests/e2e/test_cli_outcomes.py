"""Messages and exit codes of the command line for every outcome of a request."""

import json
import signal
import subprocess
import sys

from schemas.kubernetes.operations import read_operation
from tests.support.lab.running import SAMPLE_NAD, Lab, wait_until

NAD = ("--network-attachment-definition-name", SAMPLE_NAD)


def test_refused_request_has_exit_code_3_and_names_the_namespace(lab: Lab) -> None:
    done = lab.hotnic("addinterface", "nobody", "--name", "a", *NAD)
    assert (done.returncode, done.stdout) == (3, "")
    assert 'no running VM "nobody" in namespace "default"' in done.stderr
    assert "kubectl get vmi -n default" in done.stderr
    assert "cluster https://127.0.0.1:" in done.stderr
    assert lab.hotnic("status", "nobody", "-n", "elsewhere").returncode == 3


def test_unreachable_cluster_has_exit_code_5(lab: Lab) -> None:
    done = lab.hotnic("status", "vm", "--kubeconfig", str(lab.layout.dir / "no-such-file"))
    assert done.returncode == 5
    assert "--kubeconfig" in done.stderr
    done = lab.hotnic("status", "vm", "--context", "no-such-context")
    assert done.returncode == 5
    assert "no-such-context" in done.stderr


def test_accepted_request_prints_its_operation(lab: Lab, vm: str, interface: str) -> None:
    done = lab.hotnic("addinterface", vm, "--name", interface, *NAD, "-o", "json")
    assert done.returncode == 0, done.stderr
    answer = json.loads(done.stdout)
    operation = read_operation(lab.vmi(vm).metadata.annotations, interface)
    assert operation is not None
    assert answer == {"operation": operation.id, "namespace": "default", "vmi": vm, "interface": interface}
    assert operation.traceparent is not None
    lab.wait_for_spans(operation.traceparent.split("-")[1], {"send hotplug.guest-attached"})
    for arguments in ((operation.id,), ("--last",)):
        drawn = lab.hotnic("trace", *arguments)
        assert drawn.returncode == 0, drawn.stderr
        assert "qmp device_add" in drawn.stdout


def test_timeout_and_ctrl_c_leave_the_operation_running(lab: Lab, vm: str, interface: str) -> None:
    plug = ("addinterface", vm, "--name", interface, *NAD, "--wait")
    follow = f"hotnic status {vm} -n default"
    with lab.stopped("handler"):
        assert lab.hotnic(*plug[:-1]).returncode == 0
        wait_until(lambda: stage_of(lab, vm, interface) == "multus-attached")
        # The same request again joins the same operation.
        done = lab.hotnic(*plug, "--timeout", "3s")
        assert (done.returncode, done.stdout) == (4, ""), done.stderr
        assert "reached stage multus-attached" in done.stderr
        assert "waiting for handler" in done.stderr
        assert follow in done.stderr

        waiting = subprocess.Popen(
            [sys.executable, "-m", "services.cli", *plug], env=lab.environment, stderr=subprocess.PIPE, text=True
        )
        assert waiting.stderr is not None
        with waiting.stderr as errors:
            assert any("multus-attached" in line for line in errors)
            waiting.send_signal(signal.SIGINT)
            rest = errors.read()
        assert waiting.wait(timeout=45) == 130
        assert follow in rest
        assert "Traceback" not in rest
    # With the handler running again, the operation completes.
    done = lab.hotnic(*plug)
    assert done.returncode in (0, 3), done.stderr
    if done.returncode == 3:
        # The operation completed before this request, so the name is taken.
        assert "taken" in done.stderr
    assert stage_of(lab, vm, interface) == "guest-attached"


def stage_of(lab: Lab, vm: str, interface: str) -> str:
    interfaces = json.loads(lab.hotnic("status", vm, "-o", "json").stdout)["interfaces"]
    return next((str(one["stage"]) for one in interfaces if one["interface"] == interface), "")


def test_command_line_joins_the_trace_of_traceparent(lab: Lab, vm: str, interface: str) -> None:
    trace = "4bf92f3577b34da6a3ce929d0e0e4736"
    done = subprocess.run(
        [sys.executable, "-m", "services.cli", "addinterface", vm, "--name", interface, *NAD, "--wait"],
        env={
            **lab.environment,
            "HOTNIC_TRACE_DIR": str(lab.layout.traces),
            "TRACEPARENT": f"00-{trace}-00f067aa0ba902b7-01",
        },
        capture_output=True,
        text=True,
        timeout=45,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    names = {"hotnic addinterface", "send hotplug.requested", "send hotplug.guest-attached"}
    (root,) = [span for span in lab.wait_for_spans(trace, names) if span["name"] == "hotnic addinterface"]
    assert root["parentSpanId"].lower() == "00f067aa0ba902b7"
    assert root["service"] == "hotnic-cli"
