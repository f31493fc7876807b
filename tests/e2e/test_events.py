"""``hotnic events``: the same stages from NATS and from Kubernetes Events, one event for each transition."""

import json
import signal
import subprocess
import sys
from datetime import datetime
from typing import Any

from schemas.stages import OperationKind, stage_path
from tests.support.lab.running import Lab, wait_until

STAGES = [(str(kind), str(stage)) for kind in OperationKind for stage in stage_path(kind)]


def list_events(lab: Lab, vm: str, interface: str, *options: str) -> list[dict[str, Any]]:
    done = lab.hotnic("events", vm, "--interface", interface, "-o", "json", *options)
    assert done.returncode == 0, done.stderr
    found: list[dict[str, Any]] = json.loads(done.stdout)
    return found


def stages(lines: list[dict[str, Any]]) -> list[tuple[str, str]]:
    """Return kind and stage of each line, without repetitions."""
    found = [(line["kind"], line["stage"]) for line in lines]
    return [one for before, one in zip([None, *found], found, strict=False) if one != before]


def reached(lines: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return the lines of stages that were reached: on a busy machine a guest may be too slow for the first attempt."""
    return [line for line in lines if line["stage"] != "failed"]


def test_both_sources_have_every_stage_of_a_plug_and_an_unplug(lab: Lab, vm: str, interface: str) -> None:
    command = [sys.executable, "-m", "services.cli", "events", vm, "--interface", interface, "-f", "-o", "json"]
    with subprocess.Popen(
        [*command, "--nats-url", lab.nats_url],
        env=lab.environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as following:
        assert following.stderr is not None
        # Standard error ends when the command fails, so this waits for the subscription or fails.
        assert any(
            f"following events of default/{vm} from NATS at {lab.nats_url}; press Ctrl-C to stop" in line
            for line in following.stderr
        )
        add = lab.hotnic(
            "addinterface", vm, "--name", interface, "--network-attachment-definition-name", "bridge-net", "--wait"
        )
        assert add.returncode == 0, add.stderr
        assert lab.hotnic("removeinterface", vm, "--name", interface, "--wait").returncode == 0
        assert following.stdout is not None
        followed = []
        for line in following.stdout:
            followed.append(json.loads(line))
            if set(STAGES) <= set(stages(followed)):
                break
        following.send_signal(signal.SIGINT)
        errors = following.stderr.read()
        assert "Traceback" not in errors
        assert "following events" not in errors
    # Each role publishes after its own change, so `requested` may arrive after `pod-annotated`.
    assert sorted(stages(reached(followed))) == sorted(STAGES)
    history = list_events(lab, vm, interface, "--nats-url", lab.nats_url)
    assert sorted(history, key=json.dumps) == sorted(followed, key=json.dumps)
    assert stages(reached(history)) == STAGES
    times = [datetime.fromisoformat(line["time"]) for line in history]
    assert times == sorted(times)
    assert len({line["operation"] for line in history}) == 2
    assert all(line["traceId"] and line["time"] and line["attempt"] >= 1 for line in history)

    wait_until(lambda: len(reached(list_events(lab, vm, interface))) >= len(STAGES))
    events = list_events(lab, vm, interface)
    assert sorted(stages(reached(events))) == sorted(STAGES)
    assert {line["operation"] for line in events} == {line["operation"] for line in history}
    assert {line["traceId"] for line in events} == {line["traceId"] for line in history}
    lab.release_slot(vm)


def test_events_come_from_the_kubernetes_api_when_nats_does_not_answer(lab: Lab, vm: str) -> None:
    done = lab.hotnic("events", vm, "--nats-url", "nats://127.0.0.1:9")
    assert done.returncode == 0
    assert "does not answer" in done.stderr
    assert lab.hotnic("dead-letter", "list", "--nats-url", lab.nats_url).returncode == 0
