"""The node's objects: VMI from VM, launcher pod from VMI, statuses."""

from typing import Any

import pytest

from lab.kubevirt import objects as kubevirt_objects
from lab.kubevirt.versions import behaviour_of
from lab.node import kubelet, launcher, objects, scheduler
from lab.node.cri import SandboxStatus
from schemas.kubernetes.networks import NETWORKS, parse_networks

NOW = "2026-01-01T00:00:00Z"
LATER = "2026-01-01T00:01:00Z"


def vm(spec: dict[str, Any] | None = None) -> dict[str, Any]:
    """A VM with two NICs."""
    return {
        "metadata": {"name": "vm1", "namespace": "ns", "uid": "vm-uid"},
        "spec": {
            "running": True,
            "template": {
                "metadata": {"labels": {"app": "x"}, "annotations": {"note": "y"}},
                "spec": {
                    "domain": {
                        "unknown": {"kept": 1},
                        "devices": {
                            "interfaces": [
                                {"name": "default", "masquerade": {}},
                                {"name": "iface1", "bridge": {}, "macAddress": "02:00:00:00:00:01"},
                            ]
                        },
                    },
                    "networks": [
                        {"name": "default", "pod": {}},
                        {"name": "iface1", "multus": {"networkName": "net1"}},
                    ],
                },
            },
            **(spec or {}),
        },
    }


def vmi(**metadata: Any) -> dict[str, Any]:
    """The VMI of that VM, as the API server stores it."""
    instance = objects.vmi_of(vm())
    instance["metadata"] |= {"uid": "vmi-uid", **metadata}
    return instance


@pytest.mark.parametrize(
    ("spec", "phase", "needed", "restart"),
    [
        ({}, None, True, False),
        ({}, "Running", True, False),
        ({}, "Failed", True, True),
        ({}, "Succeeded", True, True),
        ({"running": False}, "Running", False, False),
        ({"running": None, "runStrategy": "Halted"}, "Running", False, False),
        ({"running": None, "runStrategy": "Manual"}, None, False, False),
        ({"running": None, "runStrategy": "Manual"}, "Running", True, False),
        ({"running": None, "runStrategy": "RerunOnFailure"}, "Failed", True, True),
        ({"running": None, "runStrategy": "RerunOnFailure"}, "Succeeded", True, False),
        ({"running": None, "runStrategy": "Once"}, None, True, False),
        ({"running": None, "runStrategy": "Once"}, "Failed", True, False),
        ({"running": None}, None, False, False),
    ],
)
def test_run_strategy_decides_whether_vm_needs_vmi(
    spec: dict[str, Any], phase: str | None, needed: bool, restart: bool
) -> None:
    machine = vm(spec)
    instance = None if phase is None else {**vmi(), "status": {"phase": phase}}
    assert objects.needs_vmi(machine, instance) is needed
    if instance is not None:
        assert objects.needs_restart(machine, instance) is restart


def test_vmi_is_a_full_copy_of_the_template() -> None:
    machine = vm()
    instance = objects.vmi_of(machine)
    assert instance["spec"] == machine["spec"]["template"]["spec"]
    instance["spec"]["domain"]["unknown"]["kept"] = 2
    assert machine["spec"]["template"]["spec"]["domain"]["unknown"]["kept"] == 1
    assert instance["metadata"]["labels"] == {"app": "x", "kubevirt.io/vm": "vm1"}
    assert instance["metadata"]["annotations"] == {"note": "y"}
    (owner,) = instance["metadata"]["ownerReferences"]
    assert (owner["kind"], owner["uid"], owner["controller"]) == ("VirtualMachine", "vm-uid", True)


def test_launcher_pod_requests_secondary_networks_with_hashed_names() -> None:
    pod = objects.launcher_pod(vmi())
    (element,) = parse_networks(pod["metadata"]["annotations"][NETWORKS])
    assert (element.name, element.namespace, element.interface) == ("net1", "ns", "pod7e0055a6880")
    assert element.mac == "02:00:00:00:00:01"
    assert pod["metadata"]["labels"]["kubevirt.io/created-by"] == "vmi-uid"
    assert pod["metadata"]["annotations"]["kubevirt.io/domain"] == "vm1"
    assert [c["name"] for c in pod["spec"]["containers"]] == ["compute"]


def test_launcher_pod_without_secondary_networks_has_no_annotation() -> None:
    instance = vmi()
    instance["spec"] = {}
    assert NETWORKS not in objects.launcher_pod(instance)["metadata"]["annotations"]


@pytest.mark.parametrize(
    ("domain", "expected"),
    [
        ({}, 192),
        ({"memory": {"guest": "256Mi"}}, 256),
        ({"memory": {"guest": "1Gi"}}, 1024),
        ({"resources": {"requests": {"memory": "128M"}}}, 122),
        ({"memory": {"guest": "64Mi"}, "resources": {"requests": {"memory": "1Gi"}}}, 64),
        ({"memory": {"guest": 1}}, 1),
    ],
)
def test_guest_memory_in_mib(domain: dict[str, Any], expected: int) -> None:
    assert objects.memory_mib({"spec": {"domain": domain}}) == expected


def test_invalid_memory_quantity_raises() -> None:
    with pytest.raises(ValueError, match="lots"):
        objects.memory_mib({"spec": {"domain": {"memory": {"guest": "lots"}}}})


def test_condition_transition_time_changes_only_with_its_value() -> None:
    first = objects.with_conditions([{"type": "Other", "status": "True"}], {"Ready": (False, "Booting")}, NOW)
    same = objects.with_conditions(first, {"Ready": (False, "Booting")}, LATER)
    assert same == first
    (other, ready) = objects.with_conditions(first, {"Ready": (True, "")}, LATER)
    assert other == {"type": "Other", "status": "True"}
    assert ready == {"type": "Ready", "status": "True", "lastTransitionTime": LATER}


def test_vm_printable_status_follows_vmi() -> None:
    def printable(instance: dict[str, Any] | None, spec: dict[str, Any] | None = None) -> str:
        return str(objects.vm_status(vm(spec), instance)["printableStatus"])

    assert printable(None) == "Starting"
    assert printable(None, {"running": False}) == "Stopped"
    assert printable({**vmi(), "status": {"phase": "Scheduled"}}) == "Starting"
    assert printable({**vmi(), "status": {"phase": "Running"}}) == "Running"
    assert printable({**vmi(deletionTimestamp=NOW), "status": {"phase": "Running"}}) == "Stopping"
    assert printable({**vmi(), "status": {"phase": "Failed"}}) == "Stopped"


def test_only_the_primary_nic_is_present_at_boot() -> None:
    (nic,) = launcher.boot_nics(vmi())
    assert nic.interface == "default"
    assert nic.mac == launcher.derived_mac(vmi())
    assert int(nic.mac[:2], 16) & 0b11 == 0b10, "locally administered, unicast"
    assert nic.mac != launcher.derived_mac(vmi(uid="other"))


def test_vmi_without_interfaces_gets_default_nic_unless_disabled() -> None:
    instance = vmi()
    instance["spec"] = {"domain": {"devices": {}}}
    assert [nic.interface for nic in launcher.boot_nics(instance)] == ["default"]
    instance["spec"]["domain"]["devices"]["autoattachPodInterface"] = False
    assert launcher.boot_nics(instance) == []


@pytest.mark.parametrize(
    ("spec", "expected"),
    [
        ({}, True),
        ({"nodeName": "lab"}, False),
        ({"schedulerName": "other"}, False),
        ({"nodeSelector": {"kubernetes.io/os": "linux"}}, True),
        ({"nodeSelector": {"kubernetes.io/os": "plan9"}}, False),
    ],
)
def test_scheduler_selects_unbound_matching_pods(spec: dict[str, Any], expected: bool) -> None:
    pod = {"metadata": {"name": "p"}, "spec": spec}
    node = {"metadata": {"name": "n", "labels": {"kubernetes.io/os": "linux"}}, "spec": {}}
    assert (scheduler.is_unscheduled(pod) and scheduler.fits(pod, node)) is expected
    assert not scheduler.fits(pod, {**node, "spec": {"unschedulable": True}})
    pod["metadata"]["deletionTimestamp"] = NOW
    assert not scheduler.is_unscheduled(pod)


def test_scheduler_spreads_pods_that_run() -> None:
    places = [("lab", "Running"), ("lab-2", "Running"), ("lab", "Failed"), ("lab-2", "Failed"), (None, "Pending")]
    pods = [{"spec": {"nodeName": node} if node else {}, "status": {"phase": phase}} for node, phase in places]
    assert scheduler.emptiest({"lab-2", "lab"}, pods) == "lab"
    assert scheduler.emptiest({"lab-3", "lab-2", "lab"}, pods) == "lab-3"


def test_target_pod_of_a_migration_waits_for_a_node_without_pods_of_its_vm() -> None:
    vmi = {"metadata": {"name": "vm1", "namespace": "ns", "uid": "vmi-uid"}, "spec": {}}
    migration = {"metadata": {"name": "m", "uid": "m-uid"}}
    behaviour = behaviour_of("1.9")
    target = kubevirt_objects.launcher_pod(vmi, behaviour, migration=migration)
    assert scheduler.avoided_pods(target) == ["kubevirt.io/created-by=vmi-uid"]
    assert scheduler.avoided_pods(kubevirt_objects.launcher_pod(vmi, behaviour)) == []


def test_pod_status_while_running_and_after_exit() -> None:
    pod = objects.launcher_pod(vmi())
    status = kubelet.pod_status(pod, SandboxStatus("s1", ("10.88.0.2", "fd00::2"), "/run/netns/x", 7), NOW)
    assert status["phase"] == "Running"
    assert status["podIPs"] == [{"ip": "10.88.0.2"}, {"ip": "fd00::2"}]
    (container,) = status["containerStatuses"]
    assert (container["name"], container["containerID"]) == ("compute", "containerd://s1")
    pod["status"] = status
    assert kubelet.pod_status(pod, SandboxStatus("s1", ("10.88.0.2", "fd00::2"), "/run/netns/x", 7), LATER) == status
    for code, phase in ((0, "Succeeded"), (9, "Failed")):
        ended = kubelet.terminated_status(pod, code, LATER)
        assert ended["phase"] == phase
        assert ended["containerStatuses"][0]["state"]["terminated"]["exitCode"] == code
        assert ended["containerStatuses"][0]["containerID"] == "containerd://s1"
        assert {c["type"]: c["status"] for c in ended["conditions"]}["Ready"] == "False"
