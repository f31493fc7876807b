"""A lab in which hotnic runs beside the played KubeVirt, used as its documentation says."""

import json
import re
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from lab.layout import BESIDE_KUBEVIRT, NODE_NAME
from schemas.kubernetes.networks import NETWORK_STATUS
from schemas.names import pod_interface
from schemas.stages import OperationKind, stage_path
from tests.support.lab.node_state import node_state
from tests.support.lab.rights import assert_rights_suffice
from tests.support.lab.running import SAMPLE_NAD, SAMPLE_VM, Lab, on_kubernetes, running_lab, wait_until
from tests.support.sampled import LONG

LATEST = "1.9"
OLDER = [f"1.{minor}" for minor in range(9)]
NIC = "blue"
STAGE = re.compile(r"^ *[0-9.]+ s  ([a-z-]+)$", re.MULTILINE)


@pytest.fixture(scope="module", params=[LATEST, *(OLDER if LONG and not on_kubernetes() else ())])
def beside(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[str, Lab]]:
    """A version of KubeVirt, and a lab in which hotnic runs beside it."""
    directory: Path = tmp_path_factory.mktemp("lab")
    with running_lab(directory, kubevirt=request.param) as lab:
        yield request.param, lab
        if on_kubernetes():
            assert_rights_suffice(lab, BESIDE_KUBEVIRT)


def change(lab: Lab, kind: OperationKind, interface: str) -> None:
    """Plug or unplug an interface and wait; each stage must be reported in its order."""
    network = ("--network-attachment-definition-name", SAMPLE_NAD)
    command, more = ("addinterface", network) if kind is OperationKind.PLUG else ("removeinterface", ())
    done = lab.hotnic(command, SAMPLE_VM, "--name", interface, *more, "--wait")
    assert done.returncode == 0, done.stderr
    assert STAGE.findall(done.stderr) == [str(stage) for stage in stage_path(kind)], done.stderr


def test_plug_and_unplug_from_the_command_line(beside: tuple[str, Lab]) -> None:
    version, lab = beside
    # KubeVirt 1.0 and 1.1 never take the last secondary interface out.
    kept = ["other"] if version in ("1.0", "1.1") else []
    for interface in (*kept, NIC):
        change(lab, OperationKind.PLUG, interface)
    in_pod = [name for name, links in node_state(lab).links.items() if pod_interface(NIC) in links]
    assert len(in_pod) == 1
    annotations = lab.pod(lab.vmi(SAMPLE_VM)).metadata.annotations
    (entry,) = [one for one in json.loads(annotations[NETWORK_STATUS]) if one["interface"] == pod_interface(NIC)]
    assert entry["ips"][0] in node_state(lab).leases
    report = json.loads(output(lab, "status", SAMPLE_VM, "-o", "json"))
    shown = {one["interface"]: one["stage"] for one in report["interfaces"]}
    assert shown == dict.fromkeys((*kept, NIC), "guest-attached")
    trace = output(lab, "trace", "--last")
    assert "kubevirt annotate" in trace
    assert "cni ADD bridge" in trace
    # On the node the doctor misses what no virt-handler has made in the pod.
    wait_until(lambda: "no findings" in lab.hotnic("doctor", "-A").stdout)

    change(lab, OperationKind.UNPLUG, NIC)
    state = node_state(lab)
    assert state.state_of(NIC) == []
    assert len([address for address in state.leases if address.startswith("10.77.")]) == len(kept)
    assert NIC not in lab.kubectl("get", "vm,vmi,pod", "-o", "json")
    # A role records the Event of a stage after it has told the stage to the command that waits.
    expected = sorted(str(stage) for kind in OperationKind for stage in stage_path(kind))
    wait_until(lambda: recorded_stages(lab) == expected)

    output(lab, "lab", "status")
    if kept:
        return
    doctor = ("-m", "services.cli", "doctor", "-A", "--node", NODE_NAME)
    assert "no findings" in output(lab, "lab", "exec", "--", sys.executable, *doctor)


def recorded_stages(lab: Lab) -> list[str]:
    """Return the stages of the interface that Events show, sorted."""
    events = json.loads(output(lab, "events", SAMPLE_VM, "-o", "json"))
    return sorted(event["stage"] for event in events if event["interface"] == NIC)


def output(lab: Lab, *command: str) -> str:
    """Run a command that must succeed, and return what it prints."""
    done = lab.hotnic(*command)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout
