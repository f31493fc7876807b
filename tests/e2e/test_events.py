"""What happened to a VM's NICs, as its user is told: Kubernetes Events once per transition, and the bus' own story."""

import json
import signal
import subprocess
import sys
from typing import Any

from schemas.stages import OperationKind, stage_path
from tests.support.lab import Lab, until

WAY = [(str(kind), str(stage)) for kind in OperationKind for stage in stage_path(kind)]


def nats(lab: Lab) -> str:
    """The address that ``lab up`` has printed."""
    identity = lab.layout.identity()
    assert identity is not None
    return f"nats://127.0.0.1:{identity.nats_port}"


def told(lab: Lab, vm: str, interface: str, *options: str) -> list[dict[str, Any]]:
    done = lab.hotnic("events", vm, "--interface", interface, "-o", "json", *options)
    assert done.returncode == 0, done.stderr
    found: list[dict[str, Any]] = json.loads(done.stdout)
    return found


def stages(lines: list[dict[str, Any]]) -> list[tuple[str, str]]:
    """Kind and stage of each line, what repeats in a row once."""
    found = [(line["kind"], line["stage"]) for line in lines]
    return [one for before, one in zip([None, *found], found, strict=False) if one != before]


def test_both_tell_a_plug_and_an_unplug_and_each_transition_is_one_event(lab: Lab, vm: str, interface: str) -> None:
    command = [sys.executable, "-m", "services.cli", "events", vm, "--interface", interface, "-f", "-o", "json"]
    with subprocess.Popen(
        [*command, "--nats-url", nats(lab)],
        env=lab.environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as following:
        add = lab.hotnic(
            "addinterface", vm, "--name", interface, "--network-attachment-definition-name", "bridge-net", "--wait"
        )
        assert add.returncode == 0, add.stderr
        assert lab.hotnic("removeinterface", vm, "--name", interface, "--wait").returncode == 0
        assert following.stdout is not None
        heard = []
        for line in following.stdout:
            heard.append(json.loads(line))
            if heard[-1]["stage"] == WAY[-1][1]:
                break
        following.send_signal(signal.SIGINT)
        assert following.stderr is not None
        assert "Traceback" not in following.stderr.read()
    assert stages(heard) == WAY
    history = told(lab, vm, interface, "--nats-url", nats(lab))
    assert history == heard
    assert len({line["operation"] for line in history}) == 2
    assert all(line["traceId"] and line["time"] and line["attempt"] == 1 for line in history)

    until(lambda: len(told(lab, vm, interface)) >= len(WAY))
    events = told(lab, vm, interface)
    assert sorted((line["kind"], line["stage"]) for line in events) == sorted(WAY)
    assert {line["operation"] for line in events} == {line["operation"] for line in history}
    assert {line["traceId"] for line in events} == {line["traceId"] for line in history}
    lab.give_slot_back(vm)


def test_a_bus_that_is_away_is_said_and_the_events_are_told_instead(lab: Lab, vm: str) -> None:
    done = lab.hotnic("events", vm, "--nats-url", "nats://127.0.0.1:9")
    assert done.returncode == 0
    assert "does not answer" in done.stderr
    assert lab.hotnic("dead-letter", "list", "--nats-url", nats(lab)).returncode == 0
