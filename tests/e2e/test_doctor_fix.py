"""`hotnic doctor --fix` removes what is left over in a lab, and nothing that a guest uses."""

import json
import os
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from schemas.kubernetes.networks import NETWORK_STATUS, NETWORKS
from schemas.kubernetes.operations import Operation, encode_annotation, operation_key, pod_nic_key, read_pod_nic
from schemas.names import pod_interface, tap
from schemas.stages import OperationKind
from services.cli.doctor.fix.choose import SANDBOX_GRACE
from tests.support.lab.doctor import assert_no_findings, codes, run_doctor, run_fix
from tests.support.lab.running import SAMPLE_NAD, Lab, wait_until

VM, NIC, GONE = "fixed", "blue", "gone"
UNUSED_IP = "10.77.0.251"


@pytest.fixture(scope="module")
def fixed(doubles: Lab) -> Iterator[Lab]:
    """The lab, with a VM that has one NIC and that only this module uses."""
    doubles.boot(VM, guest="double")
    network = ("--network-attachment-definition-name", SAMPLE_NAD)
    done = doubles.hotnic("addinterface", VM, "--name", NIC, *network, "--wait")
    assert done.returncode == 0, done.stderr
    assert_no_findings(doubles)
    yield doubles
    doubles.kubectl("delete", "vm", VM, "--wait=true")
    assert_no_findings(doubles)


def links_in_pod(lab: Lab) -> set[str]:
    return {link["ifname"] for link in json.loads(lab.run_inside("ip", "-n", netns(lab), "-j", "link"))}


def netns(lab: Lab) -> str:
    record = read_pod_nic(lab.pod(lab.vmi(VM)).metadata.annotations, pod_nic_key(NIC))
    assert record is not None
    file = lab.layout.state / "cni" / "multus" / "sandboxes" / f"{record.sandbox_id}.json"
    return Path(json.loads(file.read_text())["netns"]).name


def test_stray_element_and_operations_are_removed(fixed: Lab) -> None:
    lab, operation = fixed, encode_annotation(Operation("x", OperationKind.PLUG, GONE))
    pod = lab.pod(lab.vmi(VM))
    before = pod.metadata.annotations[NETWORKS]
    stray = {"name": SAMPLE_NAD, "namespace": "default", "interface": pod_interface(GONE)}
    # Networks would attach the element, and the controller would remove the operations.
    with lab.stopped("networks"), lab.stopped("controller"):
        after_edit = json.dumps([*json.loads(before), stray])
        lab.kubectl("annotate", "pod", pod.metadata.name, "--overwrite", f"{NETWORKS}={after_edit}")
        for kind in ("vm", "vmi"):
            lab.kubectl("annotate", kind, VM, f"{operation_key(GONE)}={operation}")
        assert codes(run_doctor(lab, VM)) >= {"ElementLeftOver", "OperationLeftOver"}
        code, changes = run_fix(lab, VM, "--dry-run")
        assert (code, {outcome for outcome, _ in changes}, len(changes)) == (0, {"would fix"}, 3), changes
        assert lab.pod(lab.vmi(VM)).metadata.annotations[NETWORKS] == after_edit
        code, changes = run_fix(lab, VM)
        assert (code, {outcome for outcome, _ in changes}, len(changes)) == (0, {"fixed"}, 3), changes
        assert json.loads(lab.pod(lab.vmi(VM)).metadata.annotations[NETWORKS]) == json.loads(before)
        assert run_fix(lab, VM) == (0, [])
    assert_no_findings(lab)
    assert tap(NIC) in links_in_pod(lab)


def test_stray_element_that_networks_has_attached_is_removed_on_its_node(fixed: Lab) -> None:
    lab = fixed
    pod = lab.pod(lab.vmi(VM))
    before = pod.metadata.annotations[NETWORKS]
    stray = {"name": SAMPLE_NAD, "namespace": "default", "interface": pod_interface(GONE)}
    edited = json.dumps([*json.loads(before), stray])
    lab.kubectl("annotate", "pod", pod.metadata.name, "--overwrite", f"{NETWORKS}={edited}")
    wait_until(lambda: pod_interface(GONE) in lab.pod(lab.vmi(VM)).metadata.annotations[NETWORK_STATUS])
    assert pod_interface(GONE) in links_in_pod(lab)
    # Outside the node it is not visible whether the guest uses the link.
    done = lab.hotnic("doctor", VM, "--fix")
    assert (done.returncode, "removed" in done.stdout) == (1, False), done.stdout
    assert "ElementLeftOver" in done.stdout
    assert "cluster http" in done.stderr
    code, changes = run_fix(lab, VM)
    assert (code, [outcome for outcome, _ in changes]) == (0, ["fixed"]), changes
    wait_until(lambda: pod_interface(GONE) not in links_in_pod(lab))
    assert_no_findings(lab)
    assert tap(NIC) in links_in_pod(lab)


def test_lease_and_tap_that_nothing_uses_are_removed(fixed: Lab) -> None:
    lab = fixed
    lease = lab.layout.state / "cni" / "networks" / SAMPLE_NAD / UNUSED_IP
    lease.write_text("0123456789abcdef\r\nnet1")
    lab.run_inside("ip", "-n", netns(lab), "tuntap", "add", "dev", tap(GONE), "mode", "tap")
    code, changes = run_fix(lab, "-A")
    assert code == 1, changes
    # The lease may belong to a sandbox that is being created.
    assert [outcome for outcome, _ in changes] == ["fixed", "failed"], changes
    assert "has just begun" in changes[1][1]
    assert tap(GONE) not in links_in_pod(lab)
    assert tap(NIC) in links_in_pod(lab)
    assert lease.exists()
    old = time.time() - 2 * SANDBOX_GRACE
    os.utime(lease, (old, old))
    code, changes = run_fix(lab, "-A")
    assert (code, [outcome for outcome, _ in changes]) == (0, ["fixed"]), changes
    assert not lease.exists()
    assert_no_findings(lab)
